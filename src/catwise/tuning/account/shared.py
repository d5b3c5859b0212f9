"""What the categories of a run share; `retune` holds it and fits the rest of some of them again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from catwise.labels import LabelPolicy
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

    def updated(self, at: NDArray[np.int64], scores: Scores, other: SharedFits) -> Shared:
        """With the scores and gains of (K,) categories in place of theirs.

        Fits go on to start where the run's ended, so that what was tuned before changes nothing.
        """
        gains = self.fits.gains.copy()
        gains[at] = other.gains
        fits = replace(self.fits, gains=gains)
        return replace(self, fits=fits, scores=self.scores.updated(at, scores))
