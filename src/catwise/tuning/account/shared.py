"""What the categories of a run share; `retune` holds it and fits the rest of some of them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from catwise.labels import LabelPolicy, PartialLabels
from catwise.labels.columns import Columns
from catwise.metrics import Metric
from catwise.tuning.account.records import Scores
from catwise.tuning.choice.rules import Floats
from catwise.tuning.fits.affine import Pooled
from catwise.tuning.rows.coordinates import Coordinates, OwnCoordinates


class Starts(NamedTuple):
    """Where the fits of a run ended, from which they start again; weights and intercepts."""

    heads: Tensor  # (J − 1, C, k + 1) of the training labels
    folds: dict[int, Tensor]  # (F, C, k + S) without each fold, by setting; before refinement
    whole: Tensor  # (C, k + S) of all rows

    def take(self, at: NDArray[np.int64]) -> Starts:
        """Of (K,) categories."""
        folds = {setting: one[:, at] for setting, one in self.folds.items()}
        return Starts(self.heads[:, at], folds, self.whole[at])


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedFits:
    """What all categories of the preset `default` have in common; F folds."""

    coordinates: Coordinates | OwnCoordinates
    fold: NDArray[np.int8]  # (n,) of the rows that judge
    typical_positives: float  # geometric mean of held-out positives, in the growth of penalties
    slopes: Tensor  # (F + 1, J) of the anchor: without each fold, and of all rows
    settings: tuple[int, ...]  # F + 1, the penalty chosen without each fold, and from all
    means: tuple[float, ...]  # F + 1, the pooled gain that keep or replace is shrunk to
    has_mean_gain: bool  # whether the corrected mean gain let anything be replaced
    # of the calibration of what leaves, and by (setting, fold) of what judges
    calibration: Pooled
    calibrations: dict[tuple[int, int], Pooled]
    gains: Floats  # (C,) corrected for the choosing, of which the mean gain is the mean
    starts: Starts


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """A run as `retune` takes it up: what is shared, what was asked for, and on which rows."""

    fits: SharedFits
    categories: tuple[str, ...]  # C names, those of the scores and gains
    scores: Scores  # of the C records
    metric: Metric
    config: Any  # DefaultConfig
    policy: LabelPolicy | None
    digests: tuple[NDArray[np.uint64], ...]  # of the training rows, and of validation's
    content: tuple[str, ...]  # a digest of the features of each source
    labels: tuple[Columns, ...]  # of each source, with which each category was tuned last
    fresh: tuple[Columns, ...]  # the same when all were tuned together
    test: str | None = None  # a digest of the test rows and their labels

    def updated(
        self,
        at: NDArray[np.int64],
        scores: Scores,
        gains: Floats,
        labels: Sequence[PartialLabels],
    ) -> Shared:
        """With scores, gains and labels of (K,) categories in place of theirs.

        Fits go on to start where the run's ended, so that what was tuned before changes nothing.
        """
        merged = self.fits.gains.copy()
        merged[at] = gains
        columns = tuple(
            _with_columns(mine, now, at) for mine, now in zip(self.labels, labels, strict=True)
        )
        fits = replace(self.fits, gains=merged)
        return replace(self, fits=fits, scores=self.scores.updated(at, scores), labels=columns)


def _with_columns(mine: Columns, labels: PartialLabels, at: NDArray[np.int64]) -> Columns:
    """With (K,) categories as they are in labels."""
    taken = set(at.tolist())
    entries = [
        labels.entries(c) if c in taken else (mine.rows[mine.span(c)], mine.codes[mine.span(c)])
        for c in range(mine.n_columns)
    ]
    parts = ((np.array([len(rows)]), rows, codes) for rows, codes in entries)
    return Columns.joined(parts, labels.n_rows)


class LabelChanges(NamedTuple):
    """How many labels of each category were added, changed and removed; (C,) each."""

    added: NDArray[np.int64]
    changed: NDArray[np.int64]
    removed: NDArray[np.int64]
    n_labels: int  # that there were before

    @property
    def each(self) -> NDArray[np.int64]:
        """(C,) all three together."""
        return self.added + self.changed + self.removed

    @property
    def share(self) -> float:
        """All of them, relative to the labels that there were before."""
        return float(self.each.sum()) / max(self.n_labels, 1)

    def __str__(self) -> str:
        n = int(np.count_nonzero(self.each))
        counts = [
            f"{int(part.sum()):,} {what}"
            for part, what in zip(self[:3], ("added", "changed", "removed"), strict=True)
        ]
        return f"labels: {', '.join(counts)}, in {n:,} of {self.each.size:,} categories"


def changes_between(before: Sequence[Columns], labels: Sequence[PartialLabels]) -> LabelChanges:
    """What is different in the labels of each source, of rows and categories in the same order."""
    counts = np.zeros((3, before[0].n_columns), dtype=np.int64)
    for old, now in zip(before, labels, strict=True):
        new, n_columns = now.as_columns(), old.n_columns
        own, other = (_places(one, now.n_rows) for one in (old, new))
        both, mine, theirs = np.intersect1d(own, other, assume_unique=True, return_indices=True)
        n_both = np.bincount(both // now.n_rows, minlength=n_columns)
        differs = both[old.codes[mine] != new.codes[theirs]] // now.n_rows
        counts[0] += np.diff(new.starts) - n_both
        counts[1] += np.bincount(differs, minlength=n_columns)
        counts[2] += np.diff(old.starts) - n_both
    added, changed, removed = counts
    return LabelChanges(added, changed, removed, sum(len(one.rows) for one in before))


def _places(columns: Columns, n_rows: int) -> NDArray[np.int64]:
    """(entries,) ascending, a number for each row of each category."""
    column = np.repeat(np.arange(columns.n_columns), np.diff(columns.starts))
    found: NDArray[np.int64] = column * n_rows + columns.rows
    return found
