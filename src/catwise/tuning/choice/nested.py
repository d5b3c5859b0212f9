"""The nested choice: made from all rows, and again without each part of them.

The best of many candidates looks better than it is. So the whole choice is repeated without each
part of the rows, and only that part scores what was chosen without it: the folds of `tune`, or the
tenths of many random splits in `select`. What chooses is the same `Rule` in all of them.

Source: Varma & Simon, "Bias in error estimation when using cross-validation for model
selection", BMC Bioinformatics 7, 2006; Cawley & Talbot, "On over-fitting in model selection",
JMLR 11, 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from catwise.tuning.choice.rules import Chosen, Floats, Rule, keep_or_take, pooled_gain


class Judged(NamedTuple):
    """Floats of K candidates, larger is better, and the positives that judge: (C,) or (K, C)."""

    scores: Floats
    positives: Floats


class Candidates(Protocol):
    """What a choice is made from; candidate 0 is the original head."""

    @property
    def n_parts(self) -> int:
        """How many parts of the rows there are."""

    def whole(self) -> Judged:
        """On all rows."""

    def without(self, part: int) -> Judged:
        """On the rows outside of a part."""


class Decision(NamedTuple):
    """What was chosen."""

    chosen: Chosen  # (C,) candidate of each category; 0 is the original head
    setting: int  # the candidate chosen for all, −1 where each category has its own
    pooled: Floats  # (K,) pooled mean gain of each candidate
    chosen_without: Chosen  # (P, C) what was chosen without each part
    settings_without: tuple[int, ...]  # P, what was chosen for all without each part; as `setting`


def nested_choice(candidates: Candidates, rule: Rule) -> Decision:
    """Choose from all rows, and without each part of them."""
    whole = candidates.whole()
    chosen, setting = rule(*whole)
    without, settings = zip(
        *(rule(*candidates.without(part)) for part in range(candidates.n_parts)), strict=True
    )
    pooled = pooled_gain(whole.scores - whole.scores[:1], whole.positives)
    return Decision(chosen, setting, pooled, np.stack(without), settings)


def pooled_means(candidates: Candidates, setting: int, without: Sequence[int]) -> list[float]:
    """The pooled gain of what was chosen for all without each part, and of the one chosen last."""
    judged = [*(candidates.without(part) for part in range(candidates.n_parts)), candidates.whole()]
    return [
        float(pooled_gain(scores[one : one + 1] - scores[:1], positives)[0])
        for (scores, positives), one in zip(judged, (*without, setting), strict=True)
    ]


def nested_keep(
    candidates: Candidates,
    setting: int,
    without: Sequence[int],
    *,
    means: Sequence[float] | None = None,
) -> Decision:
    """Where one candidate was chosen for all, and one without each part: keep or take it.

    `means` are `pooled_means` of more categories than these, where they are held.
    """
    own = pooled_means(candidates, setting, without) if means is None else means
    whole = candidates.whole()
    gain = whole.scores - whole.scores[:1]
    parts = [candidates.without(part) for part in range(candidates.n_parts)]
    chosen = [
        keep_or_take(part.scores - part.scores[:1], part.positives, one, mean=mean)
        for part, one, mean in zip(parts, without, own[:-1], strict=True)
    ]
    taken = keep_or_take(gain, whole.positives, setting, mean=own[-1])
    pooled = pooled_gain(gain, whole.positives)
    pooled[~np.isfinite(gain).any(1)] = np.nan  # not judged
    return Decision(taken, setting, pooled, np.stack(chosen), tuple(without))


@dataclass(frozen=True, eq=False)
class FoldScores:
    """Scores inside every fold, on rows that did not fit the candidate."""

    # (K, F, C) larger is better, candidate 0 the original head; NaN where a fold lacks a class
    values: Floats
    positives: Floats  # (F, C) known positives of each fold, 0 where the score is not defined
    # (K, C) what chooses from all rows where that is not the average over folds
    final: Floats | None = None

    @property
    def n_parts(self) -> int:
        """F."""
        return len(self.positives)

    def whole(self) -> Judged:
        """Averages over all folds, or the final scores."""
        total = self.mean() if self.final is None else self.final
        return Judged(total, self.positives.sum(0))

    def without(self, part: int) -> Judged:
        """Averages over the other folds."""
        return Judged(self.mean(without=part), self.positives[self._others(part)].sum(0))

    def mean(self, *, without: int | None = None) -> Floats:
        """(K, C) averages over folds by their positives; NaN where no fold has a score."""
        use = self._others(without)
        values = self.values[:, use]
        weight = np.where(np.isfinite(values), self.positives[use], 0.0)
        total, count = (np.nan_to_num(values) * weight).sum(1), weight.sum(1)
        return np.where(count > 0, total / np.maximum(count, 1e-12), np.nan)

    def _others(self, fold: int | None) -> Chosen:
        return np.flatnonzero(np.arange(self.n_parts) != (-1 if fold is None else fold))
