"""Features in which every category, or group of categories, has a vector of its own: (N, K, D).

Models with a query or a node for each category (SSGRL, Query2Label, ML-Decoder) score category c
of an image by ``z[c] · w_c + b_c``. All that reads rows sees such features as rows of K × D
numbers; what scores or fits a category reads the columns of its vector alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._arrays import as_numpy
from catwise.errors import FeatureError, ShapeError
from catwise.features.blocks import BLOCK_ROWS, RowBlocks, as_rows
from catwise.features.ids import as_ids, row_index

_BLOCK_NUMBERS: Final = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class CategoryFeatures:
    """K vectors of D numbers for each image, and which of them each category takes.

    Args:
        values: (N, K, D) numpy array, memmap or torch tensor; or (N, K · D) features of any kind,
            such as a feature store, with `n_groups`. Kept as they are, never copied.
        ids: (N,) different texts or whole numbers, or None.
        n_groups: K, where the values have two axes.
        groups: (C,) the vector that each category takes, in 0 … K − 1. None: category c takes
            vector c; of fewer vectors than categories, vector ``c // ceil(C / K)``, as in
            ML-Decoder.
        index: (N,) rows of the values to take, in that order; None: all.

    Raises:
        FeatureError: If the values have not two or three axes, or K does not divide their columns.
        ShapeError: If the ids or groups do not fit.

    >>> features = CategoryFeatures(np.arange(12.0).reshape(2, 3, 2), ids=["a.jpg", "b.jpg"])
    >>> features
    CategoryFeatures(n_rows=2, n_groups=3, n_features=2, ids=True)
    >>> features.of(1).block(0, 2)
    array([[2., 3.],
           [8., 9.]])

    Source: Chen et al., "Learning Semantic-Specific Graph Representation for Multi-Label Image
    Recognition", ICCV 2019, equation 5; Liu et al., "Query2Label", arXiv 2107.10834, equation 3;
    Ridnik et al., "ML-Decoder", WACV 2023, section 3.2 (groups).
    """

    values: Any
    ids: NDArray[np.str_] | None = None
    n_groups: int = 0
    groups: NDArray[np.int64] | None = None
    index: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "values", as_rows(self.values))
        shape = tuple(self.values.shape)
        n_groups = self.n_groups or (shape[1] if len(shape) == 3 else 0)
        whole = len(shape) in {2, 3} and n_groups > 0 and 0 not in shape[1:]
        if not whole or (shape[1] % n_groups if len(shape) == 2 else shape[1] != n_groups):
            raise FeatureError(
                "category-specific features must have a vector for each category or group.",
                found=f"shape {shape}" + (f", {n_groups} groups" if n_groups else ""),
                expected="shape (N, K, D), or (N, K · D) with n_groups=K",
            )
        put(self, "n_groups", int(n_groups))
        if self.ids is not None:
            put(self, "ids", as_ids(self.ids, self.shape[0]))
        if self.groups is not None:
            groups = as_numpy(self.groups, name="groups", error=ShapeError).astype(np.int64)
            if groups.ndim != 1 or ((groups < 0) | (groups >= n_groups)).any():
                raise ShapeError(
                    "the groups of the categories do not fit the features.",
                    found=f"shape {groups.shape}, up to {groups.max(initial=-1)}",
                    expected=f"one number for each category, in 0 … {n_groups - 1}",
                )
            put(self, "groups", groups)

    def __repr__(self) -> str:
        return (
            f"CategoryFeatures(n_rows={self.shape[0]}, n_groups={self.n_groups}, "
            f"n_features={self.n_features}, ids={self.ids is not None})"
        )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K · D): as rows of numbers."""
        n_rows = self.values.shape[0] if self.index is None else len(self.index)
        return n_rows, int(np.prod(self.values.shape[1:]))

    @property
    def n_features(self) -> int:
        """D."""
        return self.shape[1] // self.n_groups

    @property
    def device(self) -> torch.device | None:
        """Where a tensor is; None for all else."""
        return self.values.device if isinstance(self.values, torch.Tensor) else None

    @property
    def block_rows(self) -> int:
        """Rows at a time that keep memory bounded; a matter of K and D alone."""
        return max(1, min(BLOCK_ROWS, _BLOCK_NUMBERS // self.shape[1]))

    def groups_of(self, n_categories: int) -> NDArray[np.int64]:
        """(C,) the vector that each of so many categories takes; ShapeError if they do not fit."""
        given = self.groups
        if given is None and self.n_groups <= n_categories:
            return np.arange(n_categories) // -(-n_categories // self.n_groups)
        if given is None or len(given) != n_categories:
            raise ShapeError(
                "category-specific features do not fit the categories.",
                found=f"{self.n_groups:,} vectors an image, "
                + ("no groups" if given is None else f"groups of {len(given):,} categories"),
                expected=f"a vector for each of {n_categories:,} categories, or groups of them",
                remedy="CategoryFeatures(…, groups=[…]) says which vector a category takes",
            )
        return given

    def take_rows(self, index: Any) -> CategoryFeatures:
        """The rows with these numbers, in that order, read when asked for."""
        wanted = np.arange(len(self))[row_index(index)]
        own = wanted if self.index is None else self.index[wanted]
        ids = None if self.ids is None else self.ids[wanted]
        return self._with(ids=ids, index=own)

    def take_categories(self, index: Sequence[int], n_categories: int) -> CategoryFeatures:
        """The same rows for some of so many categories, in that order."""
        return self._with(groups=self.groups_of(n_categories)[np.asarray(index, dtype=np.int64)])

    def _with(self, **changes: Any) -> CategoryFeatures:
        """A copy that is not checked again."""
        made = object.__new__(CategoryFeatures)
        for name in self.__slots__:
            object.__setattr__(made, name, changes.get(name, getattr(self, name)))
        return made

    def block(self, start: int, stop: int) -> Any:
        """Rows start to stop, (rows, K · D), as the values give them: numpy array or tensor."""
        return self._read(start, stop, slice(0, self.shape[1]))

    def rows(self, index: Any) -> Any:
        """Copies of the rows with these numbers, in that order: (rows, K · D)."""
        taken = self.take_rows(index)
        return taken.block(0, len(taken))

    def of(self, group: int) -> GroupColumns:
        """The vectors of one group as (N, D) features, read when asked for."""
        return GroupColumns(self, group)

    def _read(self, start: int, stop: int, columns: slice) -> Any:
        start, stop, _ = slice(start, stop).indices(len(self))
        if self.index is None:
            return self._stored(start, max(start, stop))[:, columns]
        wanted = self.index[start:stop]
        if isinstance(self.values, torch.Tensor):
            at = torch.from_numpy(wanted).to(self.values.device)
            return self.values.flatten(1)[at, columns]
        out = np.empty((len(wanted), columns.stop - columns.start), self._stored(0, 0).dtype)
        for first in np.unique(wanted // BLOCK_ROWS) * BLOCK_ROWS:
            here = np.flatnonzero((wanted >= first) & (wanted < first + BLOCK_ROWS))
            out[here] = self._stored(first, first + BLOCK_ROWS)[wanted[here] - first, columns]
        return out

    def _stored(self, start: int, stop: int) -> Any:
        """Rows as they are held, with two axes."""
        values = self.values
        read = isinstance(values, RowBlocks)
        part = values.block(int(start), int(stop)) if read else values[start:stop]
        return part.reshape(len(part), self.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class GroupColumns:
    """(N, D) features: the vectors of one group."""

    whole: CategoryFeatures
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self.whole), self.whole.n_features

    def block(self, start: int, stop: int) -> Any:
        """Rows start to stop."""
        first = self.group * self.whole.n_features
        return self.whole._read(start, stop, slice(first, first + self.whole.n_features))  # noqa: SLF001  # a view of it


def by_category(features: Any) -> CategoryFeatures | None:
    """Features as category-specific ones, if that is what they are; None for (N, D) features.

    They are where they have three axes, or come from a feature store that `extract` wrote of such.

    >>> by_category(np.ones((4, 3, 2)))
    CategoryFeatures(n_rows=4, n_groups=3, n_features=2, ids=False)
    >>> by_category(np.ones((4, 6))) is None
    True
    """
    if isinstance(features, CategoryFeatures):
        return features
    features = as_rows(features)
    ids = getattr(features, "ids", None)
    values = getattr(features, "values", features)
    if callable(values):  # a tensor's
        values = features
    origin = getattr(values, "origin", None)
    made = origin.get("extract") if isinstance(origin, dict) else None
    shape = made.get("shape") if isinstance(made, dict) else None
    if isinstance(shape, list) and len(shape) == 2:
        return CategoryFeatures(values, ids, int(shape[0]))
    if len(getattr(values, "shape", ())) == 3:
        return CategoryFeatures(values, ids)
    return None


def of_categories(features: Any, index: Sequence[int], n_categories: int) -> Any:
    """Features for some of so many categories: those of (N, D) are the same for all."""
    if isinstance(features, CategoryFeatures):
        return features.take_categories(index, n_categories)
    return features


def category_runs(features: Any, n_categories: int) -> list[tuple[slice, Any]]:
    """Runs of neighbouring categories that share (N, D) features, and those.

    >>> runs = category_runs(CategoryFeatures(np.ones((1, 2, 5))), 4)
    >>> [(run.start, run.stop, part.group) for run, part in runs]
    [(0, 2, 0), (2, 4, 1)]
    >>> category_runs("(N, D) features", 4)
    [(slice(0, 4, None), '(N, D) features')]
    """
    if not isinstance(features, CategoryFeatures):
        return [(slice(0, n_categories), features)]
    groups = features.groups_of(n_categories)
    cuts = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), n_categories]
    return [
        (slice(start, stop), features.of(int(groups[start])))
        for start, stop in itertools.pairwise(cuts)
        if stop > start
    ]
