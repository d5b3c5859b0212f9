"""Cells (an image and a category) whose label was asked for because a model was unsure of them.

They teach most and tell nothing of all cells: scores, log-loss and probabilities on them are those
of the hard ones. So they fit, and judge nothing; what was drawn at random beside them judges
(`catwise.suggest` marks both), and a calibration weights known labels so that they stand for all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catwise.errors import IdError, ShapeError
from catwise.labels.core import PartialLabels

RANDOM = "random"
"""What marks a cell that was drawn at random: it is not chosen, wherever else it stands."""


@dataclass(frozen=True, eq=False, repr=False)
class ChosenCells:
    """Which cells a model chose.

    Attributes:
        ids: (M,) of the images.
        categories: (M,) names.

    >>> chosen = ChosenCells(np.array(["a", "b"]), np.array(["cat", "cat"]))
    >>> labels = PartialLabels([[1], [0], [1]], ["a", "b", "c"], ["cat"])
    >>> chosen.without(labels).codes[:, 0].tolist()
    [-1, -1, 1]
    """

    ids: NDArray[np.str_]
    categories: NDArray[np.str_]

    def __post_init__(self) -> None:
        if self.ids.shape != self.categories.shape or self.ids.ndim != 1:
            raise ShapeError(
                "chosen cells need an id and a category each.",
                found=f"shapes {self.ids.shape} and {self.categories.shape}",
                expected="(M,) and (M,)",
            )

    def __repr__(self) -> str:
        return f"ChosenCells({len(self.ids):,})"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """Of the cells, in any order: "sha256:…"."""
        pairs = sorted(zip(self.ids.tolist(), self.categories.tolist(), strict=True))
        return f"sha256:{hashlib.sha256(json.dumps(pairs).encode()).hexdigest()}"

    @classmethod
    def of(cls, cells: Iterable[tuple[str, str]], why: Iterable[str] | None = None) -> ChosenCells:
        """Cells as (id, category) pairs; those that are "random" by `why` are left out.

        >>> len(ChosenCells.of([("a", "cat"), ("b", "cat")], ["uncertain", "random"]))
        1
        """
        pairs = [(str(one), str(category)) for one, category in cells]
        marks = [""] * len(pairs) if why is None else [str(mark) for mark in why]
        drawn = {pair for pair, mark in zip(pairs, marks, strict=True) if mark == RANDOM}
        kept = [pair for pair in dict.fromkeys(pairs) if pair not in drawn]
        columns = [np.array([pair[side] for pair in kept], dtype=np.str_) for side in (0, 1)]
        return cls(columns[0], columns[1])

    def mask(self, labels: PartialLabels) -> NDArray[np.bool_]:
        """(N, C) whether a cell of the labels was chosen; cells of other images are passed over.

        Raises:
            IdError: If labels have no ids.
        """
        if labels.ids is None:
            raise IdError(
                "labels without ids do not tell which cells were chosen.",
                expected="PartialLabels(…, ids=…)",
                remedy="name their column (--id-column)",
            )
        found = np.zeros(labels.shape, dtype=bool)
        row = {name: at for at, name in enumerate(labels.ids.tolist())}
        column = {name: at for at, name in enumerate(labels.categories)}
        for one, category in zip(self.ids.tolist(), self.categories.tolist(), strict=True):
            if one in row and category in column:
                found[row[one], column[category]] = True
        return found

    def without(self, labels: PartialLabels) -> PartialLabels:
        """The labels with every chosen cell unknown.

        Raises:
            IdError: If labels have no ids.
        """
        mask = self.mask(labels)
        return labels.keep_entries(lambda c, rows, _: ~mask[rows, c])


def chosen_note(labels: PartialLabels, rest: PartialLabels, what: str) -> list[str]:
    """How many known labels were chosen, and what that means, in a sentence; [] for none."""
    known, kept = (int(one.counts().known.sum()) for one in (labels, rest))
    if known == kept:
        return []
    n = f"{known - kept:,} of {known:,} known labels"
    return [f"{n} were chosen by a model, so that they are no sample: {what}."]
