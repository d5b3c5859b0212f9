"""Batches of images from any row on, whatever a loader is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils import data as torch_data

from catwise.errors import ConfigError, ShapeError
from catwise.features.ids import as_ids, compact, id_text
from catwise.models import layers
from catwise.models.loading import ImageRow, ImageRows, reading_images

_IMAGE_KEYS: Final = ("images", "image", "pixel_values", "img")
_ID_KEYS: Final = ("ids", "id", "image_ids", "image_id")
_READER_OPTIONS: Final = (
    "num_workers", "pin_memory", "timeout", "worker_init_fn", "prefetch_factor",
    "multiprocessing_context",
)  # fmt: skip
_NO_MORE: Final = object()


class ImageBatch(NamedTuple):
    """Images of some rows, with no tensor where one could not be decoded, and their ids."""

    images: Any
    ids: list[str] | None


def _split(value: Any, is_id: Callable[[Any], bool]) -> tuple[Any, Any]:
    """Images and ids in a batch, or image and id in an item."""
    if isinstance(value, Mapping):
        image = next((value[key] for key in _IMAGE_KEYS if key in value), value)
        return image, next((value[key] for key in _ID_KEYS if key in value), None)
    if isinstance(value, ImageRow):  # of ImageRows, whose ids are known
        return value.problem if value.image is None else value.image, None
    if isinstance(value, (tuple, list)) and value:
        return value[0], next((part for part in value[1:] if is_id(part)), None)
    return value, None


def _collate(items: list[Any]) -> dict[str, Any]:
    """Items of a dataset as a batch; made by the workers."""
    pairs = [_split(item, lambda part: isinstance(part, str)) for item in items]
    images = [torch.as_tensor(i) if isinstance(i, np.ndarray) else i for i, _ in pairs]
    ids = None if any(name is None for _, name in pairs) else [name for _, name in pairs]
    whole = all(isinstance(image, Tensor) and image.shape == images[0].shape for image in images)
    return {"images": torch.stack(images) if whole else images, "ids": ids}


def _rows_of(batch: Any) -> ImageBatch:
    images, ids = _split(
        batch,
        lambda part: isinstance(part, (list, tuple)) and all(isinstance(i, str) for i in part),
    )
    known = isinstance(images, (list, tuple)) and all(
        image is None or isinstance(image, Tensor) or hasattr(image, "reason") for image in images
    )
    if not known and not (isinstance(images, Tensor) and images.ndim):
        raise ConfigError(
            "a batch of the loader holds no images.",
            found=f"a {type(images).__name__} in a {type(batch).__name__}",
            expected=f"a tensor, or a list of tensors and None; in a table as {_IMAGE_KEYS[0]!r}",
            remedy="make tensors of the images, as the model's preprocessing says",
        )
    if ids is not None:
        ids = [id_text(name) for name in (ids.tolist() if hasattr(ids, "tolist") else ids)]
        if len(ids) != len(images):
            raise _uneven(len(ids), f"{len(images):,}")
    return ImageBatch(images if isinstance(images, Tensor) else list(images), ids)


def merge_batches(parts: list[ImageBatch]) -> ImageBatch:
    """Rows of several batches, copied: at another place in memory, sums could round otherwise."""
    names = [part.ids for part in parts]
    ids = None if None in names else [name for part in parts for name in part.ids or ()]
    if parts and all(isinstance(part.images, Tensor) for part in parts):
        return ImageBatch(layers.stacked(torch.cat, [part.images for part in parts]), ids)
    return ImageBatch([image for part in parts for image in part.images], ids)


def _uneven(n_ids: int, found: str) -> ShapeError:
    return ShapeError(
        "the ids are not one for each image.",
        found=f"{n_ids:,} ids, {found} images",
        remedy="give the ids of the loader's images in its order, those that cannot be decoded too",
    )


class Reading(NamedTuple):
    """How any process reads a batch of a dataset."""

    dataset: Any
    collate: Callable[[list[Any]], Any]

    def batch(self, row: int, count: int) -> ImageBatch:
        """So many rows from a row on."""
        span: Any = range(row, row + count)
        reader: Any = torch_data.DataLoader(
            self.dataset,
            batch_sampler=[span],
            collate_fn=self.collate,
            generator=torch.Generator(),
        )
        rows = _rows_of(next(iter(reader)))
        if len(rows.images) != count:
            raise _uneven(count, f"{len(rows.images):,} (of collate_fn)")
        return rows


class BatchSource:
    """Batches of images from any row on, `batch_rows` each; ids, n_rows and origin if known."""

    def __init__(self, loader: Any, batch_rows: int | None, workers: int, ids: Any) -> None:
        self._options: dict[str, Any] = {"num_workers": workers, "collate_fn": _collate}
        if isinstance(loader, Tensor):
            loader = torch_data.TensorDataset(loader)
        self._loader = loader
        if isinstance(loader, torch_data.DataLoader):
            batch_rows = batch_rows or loader.batch_size
            self._take_apart(loader)
        rows = self._loader
        self.origin = rows.source.origin if isinstance(rows, ImageRows) else None
        mapped = isinstance(rows, torch_data.Dataset)
        if mapped and not isinstance(rows, torch_data.IterableDataset):
            ids = rows.compact_ids if ids is None and isinstance(rows, ImageRows) else ids
            self._loader, batch_rows = self._read, batch_rows or 64
            self._dataset, n_rows = rows, len(rows)
        self._opens = callable(self._loader) and not hasattr(self._loader, "__iter__")
        if ids is not None and not isinstance(ids, pa.Array):
            ids = compact(as_ids(ids if hasattr(ids, "shape") else list(ids)))
        self.ids = ids
        self.n_rows: int | None = None if self.ids is None else len(self.ids)
        if self._loader == self._read:
            if self.n_rows not in {None, n_rows}:
                raise _uneven(self.n_rows, f"{n_rows:,}")
            self.n_rows = n_rows
        self._stream: Iterator[Any] = iter(())
        self._kept: list[ImageBatch] = []
        self._position = -1
        self.batch_rows = len(self.first().images) if batch_rows is None else batch_rows
        if self.batch_rows < 1 or self.n_rows == 0:
            raise ConfigError("there are no images.", found=f"batches of {self.batch_rows} rows")

    def _take_apart(self, loader: Any) -> None:
        """Use a loader's dataset and options, so that reading can begin at any row."""
        iterable = isinstance(loader.dataset, torch_data.IterableDataset)
        shuffled = isinstance(loader.sampler, torch_data.RandomSampler)
        if shuffled or loader.drop_last:
            raise ConfigError(
                "the loader shuffles, or drops its last rows.",
                expected="all rows in their own order: DataLoader(…, shuffle=False)",
            )
        if (
            type(loader.sampler) is torch_data.SequentialSampler
            and loader.batch_size
            and not iterable
        ):
            self._loader = loader.dataset
            own = loader.collate_fn is not torch_data.default_collate
            own = own and not isinstance(loader.dataset, ImageRows)
            self._options = {name: getattr(loader, name) for name in _READER_OPTIONS}
            self._options["collate_fn"] = loader.collate_fn if own else _collate

    def _read(self, row: int) -> Iterator[ImageBatch]:
        """Batches of a dataset from a row on."""
        starts = range(row, self.n_rows or 0, self.batch_rows)
        spans: Any = [range(at, min(at + self.batch_rows, self.n_rows or 0)) for at in starts]
        reader: Any = torch_data.DataLoader(
            self._dataset, batch_sampler=spans, generator=torch.Generator(), **self._options
        )
        with reading_images():
            for span, batch in zip(spans, reader, strict=True):
                rows = _rows_of(batch)
                if len(rows.images) != len(span):
                    raise _uneven(len(span), f"{len(rows.images):,} (of collate_fn)")
                yield rows

    def batches(
        self, parts: Iterable[int], part_rows: int
    ) -> Iterator[tuple[int, int, ImageBatch]]:
        """Yield (part, first row, rows); the part at which the images end may have no rows."""
        size, n = self.batch_rows, self.n_rows
        starts = (
            (p, row) for p in parts for row in range(p * part_rows, (p + 1) * part_rows, size)
        )
        for part, row in itertools.takewhile(lambda at: n is None or at[1] < n, starts):
            if self._position < 0 or (self._opens and self._position != row):
                self._open(row)
            while self._position < row:
                if not len(self._take(min(size, row - self._position)).images):
                    break
            count = size if n is None else min(size, n - row)
            rows = self._take(count) if self._position == row else ImageBatch([], None)
            missing = len(rows.images) < count
            if n is not None and missing:
                raise _uneven(n, f"{self._position:,}")
            if len(rows.images) or row % part_rows == 0:
                yield part, row, rows
            if missing:
                return
        if self._position == n and len(self._take(1).images):
            raise _uneven(n, "more")

    @property
    def reading(self) -> Reading | None:
        """How another process reads the images; None where only this one can."""
        if self._loader != self._read:
            return None
        return Reading(self._dataset, self._options["collate_fn"])

    def starts(self, parts: Iterable[int], part_rows: int) -> Iterator[tuple[int, int, int]]:
        """(part, first row, rows) of the batches of a dataset, without reading them."""
        n = self.n_rows or 0
        for part in parts:
            first, end = part * part_rows, min((part + 1) * part_rows, n)
            if first >= n:
                return
            for row in range(first, end, self.batch_rows):
                yield part, row, min(self.batch_rows, end - row)

    def _open(self, row: int) -> None:
        self._stream = iter(self._loader(row) if self._opens else self._loader)
        self._kept, self._position = [], row if self._opens else 0

    def first(self) -> ImageBatch:
        """The first batch, which stays."""
        if self._position != 0:
            self._open(0)
        self._kept = self._kept or [_rows_of(batch) for batch in itertools.islice(self._stream, 1)]
        return self._kept[0] if self._kept else ImageBatch([], None)

    def few(self) -> Tensor:
        """One or two images, to try a model with."""
        images = [image for image in self.first().images if isinstance(image, Tensor)]
        return layers.stacked(torch.stack, images[:2])

    def _take(self, count: int) -> ImageBatch:
        """The next rows, fewer where the images end; a batch of the right size as it is."""
        while sum(len(rows.images) for rows in self._kept) < count:
            batch = next(self._stream, _NO_MORE)
            if batch is _NO_MORE:
                break
            self._kept.append(batch if isinstance(batch, ImageBatch) else _rows_of(batch))
        if self._kept and len(self._kept[0].images) == count:
            self._position += count
            return self._kept.pop(0)
        taken: list[ImageBatch] = []
        while self._kept and count:
            images, ids = self._kept.pop(0)
            if len(images) > count:
                self._kept.insert(0, ImageBatch(images[count:], ids and ids[count:]))
                images, ids = images[:count], ids and ids[:count]
            taken.append(ImageBatch(images, ids))
            count -= len(images)
            self._position += len(images)
        return merge_batches(taken)
