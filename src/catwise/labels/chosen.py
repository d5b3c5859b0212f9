"""Cells (an image and a category) whose label was asked for because a model was unsure of them.

They teach most and tell nothing of all cells: scores, log-loss and probabilities on them are those
of the hard ones. So they fit, and judge nothing; what was drawn at random beside them judges
(`catwise.suggest` marks both), and a calibration weights known labels so that they stand for all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from catwise._text import plural
from catwise.errors import IdError, LabelError, ShapeError
from catwise.labels.codes import CODE_NAMES, NEGATIVE, POSITIVE
from catwise.labels.core import PartialLabels

RANDOM = "random"
"""What marks a cell that was drawn at random: it is not chosen, wherever else it stands."""


@dataclass(frozen=True, eq=False, repr=False)
class ChosenCells:
    """Which cells a model chose.

    Attributes:
        ids: (M,) of the images.
        categories: (M,) names.
        labelled: {(id, category): code} of the cells that have a label by now, of those that were
            drawn at random too.

    >>> chosen = ChosenCells(np.array(["a", "b"]), np.array(["cat", "cat"]))
    >>> labels = PartialLabels([[1], [0], [1]], ["a", "b", "c"], ["cat"])
    >>> chosen.without(labels).codes[:, 0].tolist()
    [-1, -1, 1]
    """

    ids: NDArray[np.str_]
    categories: NDArray[np.str_]
    labelled: Mapping[tuple[str, str], int] = field(default_factory=dict)

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
    def of(
        cls,
        cells: Iterable[tuple[str, str]],
        why: Iterable[str] | None = None,
        labelled: Mapping[tuple[str, str], int] | None = None,
    ) -> ChosenCells:
        """Cells as (id, category) pairs; those that are "random" by `why` are left out.

        >>> len(ChosenCells.of([("a", "cat"), ("b", "cat")], ["uncertain", "random"]))
        1
        """
        pairs = [(str(one), str(category)) for one, category in cells]
        marks = [""] * len(pairs) if why is None else [str(mark) for mark in why]
        drawn = {pair for pair, mark in zip(pairs, marks, strict=True) if mark == RANDOM}
        kept = [pair for pair in dict.fromkeys(pairs) if pair not in drawn]
        columns = [np.array([pair[side] for pair in kept], dtype=np.str_) for side in (0, 1)]
        return cls(columns[0], columns[1], dict(labelled or {}))

    def added_to(self, labels: PartialLabels) -> PartialLabels:
        """The labels with those that the cells have by now; other images are passed over.

        Raises:
            IdError: If labels have no ids.
            LabelError: If a label that is known says something else.

        >>> chosen = ChosenCells.of([("a", "cat")], labelled={("a", "cat"): 1})
        >>> chosen.added_to(PartialLabels([[-1], [0]], ["a", "b"], ["cat"])).codes[:, 0].tolist()
        [1, 0]
        """
        row, column = _places(labels)
        found: dict[int, dict[int, int]] = {}
        for (one, category), code in self.labelled.items():
            if one in row and category in column:
                found.setdefault(column[category], {})[row[one]] = code
        _refuse_others(labels, found)
        for at, cells in found.items():
            rows, codes = np.array(list(cells), dtype=np.int64), np.array(list(cells.values()))
            labels = labels.with_entries(at, rows, codes.astype(np.int8))
        return labels

    def mask(self, labels: PartialLabels) -> NDArray[np.bool_]:
        """(N, C) whether a cell of the labels was chosen; cells of other images are passed over.

        Raises:
            IdError: If labels have no ids.
        """
        row, column = _places(labels)
        found = np.zeros(labels.shape, dtype=bool)
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


def _places(labels: PartialLabels) -> tuple[dict[str, int], dict[str, int]]:
    """The row of each id, and the column of each category."""
    if labels.ids is None:
        raise IdError(
            "labels without ids do not tell which cells were chosen.",
            expected="PartialLabels(…, ids=…)",
            remedy="name their column (--id-column)",
        )
    row = {name: at for at, name in enumerate(labels.ids.tolist())}
    return row, {name: at for at, name in enumerate(labels.categories)}


def _refuse_others(labels: PartialLabels, cells: Mapping[int, Mapping[int, int]]) -> None:
    """Labels that are known stay as they are: a cell, of a column and row, may not differ."""
    wrong = [
        (at, row, int(known), code)
        for at, column in cells.items()
        for row, code, known in zip(
            column, column.values(), labels.column(at)[list(column)], strict=True
        )
        if known in (NEGATIVE, POSITIVE) and known != code
    ]
    if not wrong:
        return
    at, row, known, code = wrong[0]
    cell = f"{'' if labels.ids is None else str(labels.ids[row])!r}, {labels.categories[at]!r}"
    raise LabelError(
        f"{plural(len(wrong), 'label')} of the cells that were chosen contradict known ones.",
        found=f"{cell}: {CODE_NAMES[code]} in the cells, {CODE_NAMES[known]} in the labels",
        remedy="correct one of the two, or empty the cell's label",
    )


def chosen_note(labels: PartialLabels, rest: PartialLabels, what: str) -> list[str]:
    """How many known labels were chosen, and what that means, in a sentence; [] for none."""
    known, kept = (int(one.counts().known.sum()) for one in (labels, rest))
    if known == kept:
        return []
    n = f"{known - kept:,} of {known:,} known labels"
    return [f"{n} were chosen by a model, so that they are no sample: {what}."]
