"""Preprocessed images of a source, for any number of workers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from catwise._extras import import_optional
from catwise.errors import CatwiseError, ConfigError, IdError
from catwise.features.ids import as_ids, compact
from catwise.models.core import Preprocessing, Undecodable
from catwise.models.pixels import enough, preprocess
from catwise.models.sources import ImageSource

_SHOWN: Final = 3


class ImageRow(NamedTuple):
    """One image of :class:`ImageRows`: a row number and a tensor, or None and what is wrong."""

    row: int
    image: Tensor | None
    problem: Undecodable | None = None


class ImageRows(Dataset[ImageRow]):
    """Preprocessed images of a source for a `torch.utils.data.DataLoader`.

    Nothing is raised in a worker: what cannot be read is None, with the reason. Order and values do
    not depend on how many workers read them. `rows` are those of the source to read, in which order
    (all by default; IdError if one is not there); `white` is that of :func:`read_image`, by default
    the preprocessing's.
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
        self.white = preprocessing.white if white is None else white
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
        """Ids of the rows, an Arrow array; IdError if a row is a duplicate."""
        ids = self.source.compact_ids
        if np.array_equal(self.rows, np.arange(len(ids))):
            return ids
        return compact(as_ids(ids.take(self.rows).to_pylist()))

    def __getitem__(self, index: int) -> ImageRow:
        row = int(self.rows[index])
        try:
            how: dict[str, Any] = {"channels": self.preprocessing.channels, "white": self.white}
            if self.preprocessing.decoding == "reduced":
                how["enough"] = functools.partial(enough, self.preprocessing)
            image = self.source.read(row, **how)
            return ImageRow(row, preprocess(image, self.preprocessing))
        except CatwiseError as error:
            return ImageRow(row, None, Undecodable(row, self.source.id(row), error))


@contextmanager
def reading_images() -> Iterator[None]:
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
