"""From an image to a model's input, with Pillow and torch alone, and from many to batches.

The geometry and the arithmetic are those of timm's evaluation transform, so that a model sees the
pixels that it was trained with. The order of the batches and their values do not depend on how many
workers read them.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from catwise._extras import import_optional
from catwise.errors import CatwiseError, ConfigError, FeatureError, IdError, check_rules
from catwise.features.ids import as_ids, compact
from catwise.models.images import as_channels, pixel_limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from catwise.models.core import Preprocessing
    from catwise.models.sources import ImageSource

__all__ = [
    "ImageBatch",
    "ImageLoader",
    "ImageRow",
    "ImageRows",
    "Undecodable",
    "preprocess",
    "reading",
]

_SHOWN: Final = 3


def preprocess(image: Image, preprocessing: Preprocessing) -> Tensor:
    """Resize, cut and normalise one image.

    With s = floor(size / crop_pct) for height and width, the image is resized to

    - "center": its shorter side to s (the longer side is rounded down; for s of two different
      numbers, the larger scale of the two, rounded), then cut;
    - "squash": both sides to s, then cut;
    - "border": the scale at which it just fits into s, then padded with the mean colour.

    Where the resized image is smaller than the cut it is padded with black, or with the mean colour
    for "border". Images of mode "F" keep their precision through the resizing; what an
    interpolation puts beyond black and white is cut, as in 8 bits.

    Args:
        image: a Pillow image as :func:`~catwise.models.images.read_image` gives it; other modes
            are converted.
        preprocessing: what the model needs.

    Returns:
        (channels, height, width) float32.

    Raises:
        FeatureError: If the image has no pixels, is so narrow that resizing it would take too many,
            or cannot be converted.
        ConfigError: If Pillow is missing.

    Matches: timm.data.create_transform(is_training=False), to 1e-6.

    >>> from PIL import Image
    >>> from catwise.models import Preprocessing
    >>> grey = Image.new("L", (40, 30), 128)
    >>> preprocess(grey, Preprocessing(size=(8, 8))).shape
    torch.Size([3, 8, 8])
    """
    import_optional("PIL.Image", extra="images", purpose="preprocessing images")
    ready = as_channels(image, channels=preprocessing.channels)
    if not min(ready.size):
        raise FeatureError("the image has no pixels.", found=f"size {ready.size}")
    pixels = _cut(_resized(ready, preprocessing), preprocessing)
    values = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    if values.dtype == torch.uint8:
        values = values.to(torch.float32).div_(255)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(-1, 1, 1)
    return values.sub_(mean).div_(std)


def _resized(image: Image, preprocessing: Preprocessing) -> Image:
    from PIL import Image

    height, width = _target(image.height, image.width, preprocessing)
    if (width, height) == image.size:
        return image
    limit = pixel_limit()
    if limit is not None and width * height > limit:
        raise FeatureError(
            "the image is too narrow to be resized.",
            found=f"{image.width:,} x {image.height:,}, resized {width:,} x {height:,}",
            expected=f"at most {limit:,} pixels",
            remedy='leave it out, or use crop_mode="squash"',
        )
    return image.resize(
        (width, height), Image.Resampling[preprocessing.interpolation.upper()], reducing_gap=None
    )


def _target(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """(height, width) of the resized image, at least one pixel each."""
    rows, columns = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.size)
    if preprocessing.crop_mode == "squash":
        return rows, columns
    if preprocessing.crop_mode == "center" and rows == columns:
        if width <= height:
            return int(rows * height / width), rows
        return rows, int(rows * width / height)
    choose = max if preprocessing.crop_mode == "border" else min
    ratio = choose(height / rows, width / columns)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _cut(image: Image, preprocessing: Preprocessing) -> NDArray[Any]:
    """(height, width, channels) from the centre, padded where the image is smaller."""
    height, width = preprocessing.size
    top, above = _span(image.height, height)
    left, before = _span(image.width, width)
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    pixels = np.array(image.crop(box) if box != (0, 0, *image.size) else image)
    if pixels.dtype == np.float32:
        np.clip(pixels, 0.0, 1.0, out=pixels)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    channels = preprocessing.channels
    if pixels.shape != (height, width, channels):
        padded = np.empty((height, width, channels), dtype=pixels.dtype)
        padded[:] = _fill(preprocessing, pixels.dtype)
        padded[above : above + pixels.shape[0], before : before + pixels.shape[1]] = pixels
        return padded
    return pixels


def _span(have: int, want: int) -> tuple[int, int]:
    """Where the cut starts in the image, and where the image starts in the cut."""
    return (round((have - want) / 2), 0) if have >= want else (0, (want - have) // 2)


def _fill(preprocessing: Preprocessing, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The colour of the padding, for each channel."""
    if preprocessing.crop_mode != "border":
        return np.zeros(preprocessing.channels, dtype=dtype)
    levels = np.clip([round(255 * value) for value in preprocessing.mean], 0, 255)
    return (levels / 255 if dtype.kind == "f" else levels).astype(dtype)


class Undecodable(NamedTuple):
    """In place of an image that could not be read.

    Attributes:
        row: row number in the source.
        id: of the image.
        error: why; a FeatureError where the image is at fault, another one where it is not.
    """

    row: int
    id: str
    error: CatwiseError

    @property
    def reason(self) -> str:
        """One line."""
        found = f" ({self.error.found})" if self.error.found else ""
        return f"{self.error.what}{found}"


class ImageRow(NamedTuple):
    """One image of :class:`ImageRows`: a row number and a tensor, or None and what is wrong."""

    row: int
    image: Tensor | None
    problem: Undecodable | None = None


class ImageBatch(NamedTuple):
    """Images that go through a model together.

    Attributes:
        images: (B, channels, height, width) float32.
        rows: (B,) int64, row numbers in the source.
        undecodable: what is missing between these rows.
    """

    images: Tensor
    rows: Tensor
    undecodable: tuple[Undecodable, ...]


class ImageRows(Dataset[ImageRow]):
    """Preprocessed images of a source for a `torch.utils.data.DataLoader`.

    Nothing is raised in a worker: what cannot be read is None, with the reason, and `collate` sets
    it aside.

    Args:
        source: of the images.
        preprocessing: what the model needs.
        rows: which rows of the source, in which order; all when not given.
        white: as in :func:`read_image`.

    Raises:
        IdError: If a row is not in the source.
        ConfigError: If Pillow is missing.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        *,
        rows: Any = None,
        white: float | None = None,
    ) -> None:
        import_optional("PIL.Image", extra="images", purpose="reading images")
        self.source = source
        self.preprocessing = preprocessing
        self.white = white
        self.rows = np.arange(len(source)) if rows is None else np.array(rows, dtype=np.int64)
        outside = (self.rows < 0) | (self.rows >= len(source))
        if outside.any():
            raise IdError(
                "rows are not in the source of images.",
                found=f"{self.rows[outside][:_SHOWN].tolist()}",
                expected=f"row numbers from 0 to {len(source) - 1:,}",
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def compact_ids(self) -> Any:
        """Ids of the rows, an Arrow array.

        Raises:
            IdError: If a row is there twice.
        """
        ids = self.source.compact_ids
        if np.array_equal(self.rows, np.arange(len(ids))):
            return ids
        return compact(as_ids(ids.take(self.rows).to_pylist()))

    def __getitem__(self, index: int) -> ImageRow:
        row = int(self.rows[index])
        try:
            image = self.source.read(row, channels=self.preprocessing.channels, white=self.white)
            return ImageRow(row, preprocess(image, self.preprocessing))
        except CatwiseError as error:
            return ImageRow(row, None, Undecodable(row, self.source.id(row), error))

    def collate(self, rows: Sequence[ImageRow]) -> ImageBatch:
        """Stack what could be read; for `collate_fn` of a DataLoader."""
        kept = [(item.row, item.image) for item in rows if item.image is not None]
        shape = (0, self.preprocessing.channels, *self.preprocessing.size)
        return ImageBatch(
            torch.stack([image for _, image in kept]) if kept else torch.empty(shape),
            torch.tensor([row for row, _ in kept], dtype=torch.int64),
            tuple(item.problem for item in rows if item.problem is not None),
        )


class ImageLoader:
    """Batches of a source's images, in order, read by several workers.

    Iterating gives :class:`ImageBatch`; one without a single image is passed over. The global
    random state is not touched.

    Args:
        source: of the images.
        preprocessing: what the model needs.
        batch_size: rows a batch; fewer where images are undecodable, and in the last one.
        workers: processes that decode; 0 decodes in this one.
        undecodable: "refuse" raises at the first batch with one; "skip" goes on without them.
        rows: which rows of the source, in which order, such as ``range(k, n)`` to resume.
        white: as in :func:`read_image`.
        pin_memory: for a faster way to a GPU.

    Attributes:
        undecodable: what the latest iteration has met so far, in order.

    Raises:
        ConfigError: If an option is not possible. While iterating, if a worker died or something
            that reading needs is missing.
        FeatureError: While iterating, with "refuse", if images cannot be decoded.
        FeatureStoreError: While iterating, if the machine failed to read, whatever the policy.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        *,
        batch_size: int = 64,
        workers: int = 0,
        undecodable: Literal["refuse", "skip"] = "refuse",
        rows: Any = None,
        white: float | None = None,
        pin_memory: bool = False,
    ) -> None:
        options = {"batch_size": batch_size, "workers": workers, "undecodable": undecodable}
        rules = {
            "batch_size >= 1": batch_size >= 1,
            "workers >= 0": workers >= 0,
            'undecodable "refuse" or "skip"': undecodable in ("refuse", "skip"),
        }
        check_rules("options of an image loader", options, rules)
        self.dataset = ImageRows(source, preprocessing, rows=rows, white=white)
        self.batch_size = batch_size
        self.workers = workers
        self.policy = undecodable
        self.pin_memory = pin_memory
        self.undecodable: list[Undecodable] = []

    def __len__(self) -> int:
        return (len(self.dataset) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[ImageBatch]:
        self.undecodable = []
        loader = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=self.dataset.collate,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        with reading():
            for batch in loader:
                self.undecodable += batch.undecodable
                self._judge(batch.undecodable)
                if len(batch.rows):
                    yield batch

    def _judge(self, problems: Sequence[Undecodable]) -> None:
        """Raise what is not about an image, or what shall not be skipped."""
        for problem in problems:
            if not isinstance(problem.error, FeatureError):
                raise problem.error
        if problems and self.policy == "refuse":
            lines = [f"{problem.id!r}: {problem.reason}" for problem in problems[:_SHOWN]]
            more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
            raise FeatureError(
                f"{len(problems):,} images of a batch cannot be decoded (policy: refuse).",
                found="; ".join(lines) + more,
                remedy=problems[0].error.remedy or "repair them, or use undecodable='skip'",
            )


@contextmanager
def reading() -> Iterator[None]:
    """Tell what happened where a worker process died."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ConfigError(
            "a process that decodes images died.",
            found=str(error).partition("\n")[0],
            remedy="use fewer workers or smaller batches: memory or shared memory ran out",
        ) from error
