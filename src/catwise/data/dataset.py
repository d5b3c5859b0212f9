"""What a reader of a data set gives back: image paths, labels, groups and splits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catwise.errors import ConfigError, ShapeError
from catwise.labels.codes import Rows
from catwise.labels.core import PartialLabels


def _own(texts: Any) -> NDArray[np.str_]:
    """Texts as an array that nobody else can change: a copy, unless they are one already."""
    if isinstance(texts, np.ndarray) and texts.dtype.kind == "U":
        frozen = not texts.flags.writeable and texts.base is None
        return texts if frozen else texts.copy()
    return np.array(texts, dtype=np.str_)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and what is known about them. Immutable.

    Attributes:
        name: of the data set, such as "chexpert".
        root: the folder that paths start from.
        paths: (N,) image paths relative to `root`, with "/"; empty texts where the release
            gives ids but no files.
        labels: (N, C), with the images' ids.
        splits: (N,) the split of each image, such as "train".
        counts: what the reader met and how it treated it, such as images without
            annotations; JSON-ready.
        notes: what the labels mean, a sentence each.

    Raises:
        ShapeError: If paths or splits are not as many as the labels' rows.

    >>> from pathlib import Path
    >>> from catwise.labels import PartialLabels
    >>> labels = PartialLabels([[1, 0], [0, -1]], ids=["a", "b"])
    >>> dataset = Dataset("mine", Path("."), ["a.jpg", "b.jpg"], labels, ["train", "test"])
    >>> dataset
    Dataset('mine', n_images=2, n_categories=2, splits={'train': 1, 'test': 1})
    >>> dataset.split("test").paths.tolist()
    ['b.jpg']
    """

    name: str
    root: Path
    paths: NDArray[np.str_]
    labels: PartialLabels
    splits: NDArray[np.str_]
    counts: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = self.labels.n_rows
        for field in ("paths", "splits"):
            texts = _own(getattr(self, field))
            if texts.shape != (n,):
                raise ShapeError(
                    f"{field} of the data set {self.name!r} do not fit its labels.",
                    found=f"{field} {texts.shape}, labels of {n} images",
                    expected=f"({n},)",
                )
            texts.flags.writeable = False
            object.__setattr__(self, field, texts)
        object.__setattr__(self, "counts", dict(self.counts or {}))
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def groups(self) -> NDArray[np.str_] | None:
        """(N,) such as the patient of each image, or None."""
        return self.labels.groups

    def __len__(self) -> int:
        return self.labels.n_rows

    def __repr__(self) -> str:
        names, sizes = np.unique(self.splits, return_counts=True)
        order = np.argsort([np.flatnonzero(self.splits == name)[0] for name in names])
        splits = {str(names[i]): int(sizes[i]) for i in order}
        shape = f"n_images={len(self)}, n_categories={self.labels.n_categories}"
        return f"Dataset({self.name!r}, {shape}, splits={splits})"

    def take(self, rows: Rows) -> Dataset:
        """Some of the images, in the order given."""
        at = np.asarray(rows)
        return Dataset(
            self.name,
            self.root,
            self.paths[at],
            self.labels.take_rows(at),
            self.splits[at],
            self.counts,
            self.notes,
        )

    def split(self, name: str) -> Dataset:
        """The images of one split; ConfigError if there is no such split."""
        rows = np.flatnonzero(self.splits == name)
        if not rows.size:
            raise ConfigError(
                f"the data set {self.name!r} has no split {name!r}.",
                expected=" or ".join(sorted(set(self.splits.tolist()))) or "images",
            )
        return self.take(rows)

    def with_splits(self, shares: Any, *, seed: int = 0) -> Dataset:
        """The same images assigned to new splits, as :func:`~catwise.labels.split_labels` does it.

        Groups stay whole; positives and negatives of every category are spread as the shares say,
        as far as they are known.

        >>> from pathlib import Path
        >>> from catwise.labels import PartialLabels
        >>> labels = PartialLabels([[1], [0], [1], [0]], groups=["p", "p", "q", "q"])
        >>> Dataset("mine", Path("."), [""] * 4, labels, [""] * 4).with_splits([0.5, 0.5])
        Dataset('mine', n_images=4, n_categories=1, splits={'0': 2, '1': 2})
        """
        from catwise.labels.partition import split_labels

        return dataclasses.replace(self, splits=split_labels(self.labels, shares, seed=seed))
