"""Which candidate to take, from scores per candidate, fold and category; and what that is worth.

A score is taken inside one fold, on rows that did not fit the candidate, and averaged over
folds by the fold's known positives. Choices are few: one setting for all categories, and per
category only whether to replace the original head, with strength shared over categories.

What was chosen is scored by the choice made without that fold (`gains`): for fold f everything is
chosen anew from the other folds' scores, and only its rows on f count. (Selection
repeated on every part, as in nested cross-validation; Cawley & Talbot, On Over-fitting in
Model Selection, JMLR 11, 2010.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Choose = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.int64], int]]

__all__ = [
    "MIN_POSITIVES",
    "Decision",
    "FoldScores",
    "choose_each",
    "choose_one",
    "choose_staged",
    "clearly_worse",
    "decide",
    "pooled_gain",
    "shrunk",
]

MIN_POSITIVES = 5
"""Below that many fresh positives a category follows the pooled decision."""

_POOLED_PRIOR = 100.0
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class FoldScores:
    """Scores of candidates, larger is better; candidate 0 is the original head.

    Args:
        values: (K, F, C) float64, NaN where a fold lacks a class.
        positives: (F, C) known positives of each fold, 0 where the score is not defined.
    """

    values: NDArray[np.float64]
    positives: NDArray[np.float64]

    def mean(self, folds: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """(K, C) averages over folds by their positives; NaN where no fold has a score."""
        use = np.ones(self.positives.shape[0], bool) if folds is None else folds
        weight = self.positives[use]
        total = np.einsum("kfc,fc->kc", np.nan_to_num(self.values[:, use]), weight)
        count = weight.sum(0)
        return np.where(count > 0, total / np.maximum(count, _TINY), np.nan)

    def without(self, fold: int) -> NDArray[np.bool_]:
        """All folds but one."""
        rest: NDArray[np.bool_] = np.arange(self.positives.shape[0]) != fold
        return rest


class Decision(NamedTuple):
    """What was chosen.

    Attributes:
        chosen: (C,) int64 candidate of each category; 0 is the original head.
        setting: the candidate chosen for all, -1 where each category has its own.
        pooled: (K,) pooled mean gain of each candidate.
        chosen_without: (F, C) int64 what was chosen without each fold.
        settings_without: what was chosen for all without each fold; as `setting`.
    """

    chosen: NDArray[np.int64]
    setting: int
    pooled: NDArray[np.float64]
    chosen_without: NDArray[np.int64]
    settings_without: tuple[int, ...]


def pooled_gain(gain: NDArray[np.float64], positives: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) mean gains over categories, weighted n / (n + 100) by their n positives.

    Args:
        gain: (K, C) float64; NaN is left out.
        positives: (C,) known fresh positives; or (K, C).
    """
    weight = np.where(np.isfinite(gain), positives / (positives + _POOLED_PRIOR), 0.0)
    total = (np.nan_to_num(gain) * weight).sum(1)
    mean: NDArray[np.float64] = total / np.maximum(weight.sum(1), _TINY)
    return mean


def shrunk(
    gain: NDArray[np.float64], positives: NDArray[np.float64], prior: float
) -> NDArray[np.float64]:
    """(K, C) gains pulled to their pooled mean: m + n / (n + prior) (gain − m).

    Below `MIN_POSITIVES`, and where a gain is not known, it is the pooled mean.
    """
    mean = pooled_gain(gain, positives)[:, None]
    trust = np.where(positives < MIN_POSITIVES, 0.0, positives / (positives + prior))
    own = np.where(np.isfinite(gain), gain, mean)
    pulled: NDArray[np.float64] = mean + trust * (own - mean)
    return pulled


def choose_one(
    scores: NDArray[np.float64], positives: NDArray[np.float64], *, n_preferred: int | None = None
) -> tuple[NDArray[np.int64], int]:
    """The candidate with the best pooled mean for all; each category keeps or takes it.

    Candidates beyond the preferred ones must beat the best of those by more than one standard
    error of the paired difference over categories (the one-standard-error rule of Breiman et
    al., Classification and Regression Trees, 1984), so that few labels do not decide by chance.

    Args:
        scores: (K, C) larger is better, candidate 0 the original head.
        positives: (C,) known fresh positives.
        n_preferred: candidates 1 … n_preferred are preferred; all of them if None.

    Returns:
        (C,) chosen candidates and the one chosen for all, which is 0 if no gain is positive.
    """
    gain = scores - scores[:1]
    pooled = pooled_gain(gain, positives)
    first = len(scores) - 1 if n_preferred is None else n_preferred
    best = int(np.argmax(pooled[: first + 1]))
    if first + 1 < len(scores):
        rival = first + 1 + int(np.argmax(pooled[first + 1 :]))
        difference = gain[rival] - gain[best]
        if pooled[rival] - pooled[best] > _standard_error(difference, positives):
            best = rival
    return _keep_or_take(gain, positives, best), best


def _keep_or_take(
    gain: NDArray[np.float64], positives: NDArray[np.float64], best: int
) -> NDArray[np.int64]:
    """(C,) the candidate chosen for all where its shrunk gain is positive, else 0."""
    if best == 0:
        return np.zeros(gain.shape[1], dtype=np.int64)
    better = shrunk(gain[best : best + 1], positives, _POOLED_PRIOR)[0] > 0
    return np.where(better & (positives > 0), best, 0).astype(np.int64)


def choose_staged(
    scores: NDArray[np.float64],
    positives: NDArray[np.float64],
    *,
    choose: Choose,
    variants: Mapping[int, Sequence[int]],
    n_plain: int,
) -> tuple[NDArray[np.int64], int]:
    """One candidate for all by `choose`, then the best of it and its variants, on the pooled mean.

    Args:
        scores: (K, C) larger is better, candidate 0 the original head.
        positives: (C,) known fresh positives.
        choose: the rule among the first `n_plain` candidates.
        variants: of a candidate, what was made from it.
        n_plain: candidates that are no variants.

    Returns:
        As `choose_one`.
    """
    chosen, best = choose(scores[:n_plain], positives)
    options = [best, *variants.get(best, ())]
    if len(options) == 1:
        return chosen, best
    gain = scores - scores[:1]
    pooled = pooled_gain(gain[options], positives)
    best = options[int(np.argmax(pooled))]
    return _keep_or_take(gain, positives, best), best


def _standard_error(difference: NDArray[np.float64], positives: NDArray[np.float64]) -> float:
    """Of the pooled mean of (C,) differences, from their spread over categories."""
    known = np.isfinite(difference)
    weight = np.where(known, positives / (positives + _POOLED_PRIOR), 0.0)
    values = np.where(known, difference, 0.0)
    total = max(float(weight.sum()), _TINY)
    mean = float((weight * values).sum()) / total
    return float(np.sqrt((weight**2 * (values - mean) ** 2).sum())) / total


def choose_each(
    scores: NDArray[np.float64], positives: NDArray[np.float64], *, prior: float = 30.0
) -> tuple[NDArray[np.int64], int]:
    """Per category the candidate with the best shrunk gain; ties go to the first.

    Arguments and result as `choose_one`, but positives may be (K, C), those that judge each
    candidate; the second value is −1.
    """
    pulled = shrunk(scores - scores[:1], positives, prior)
    defined = np.broadcast_to(positives, scores.shape)[0] > 0
    return np.where(defined, pulled.argmax(0), 0).astype(np.int64), -1


def clearly_worse(
    low: NDArray[np.float64], high: NDArray[np.float64], *, higher_is_better: bool = True
) -> NDArray[np.bool_]:
    """(C,) where an interval of the gain lies wholly on the wrong side of zero: keep the original.

    Args:
        low: (C,) lower ends of intervals of score after − before; NaN where there is none.
        high: (C,) upper ends.
        higher_is_better: of the metric.

    >>> clearly_worse(np.array([-0.3, -0.3, np.nan]), np.array([-0.1, 0.1, np.nan]))
    array([ True, False, False])
    """
    return np.asarray(high < 0.0 if higher_is_better else low > 0.0)


def decide(
    scores: FoldScores,
    choose: Choose = choose_one,
    *,
    final: NDArray[np.float64] | None = None,
) -> Decision:
    """Choose from all folds, and without each.

    Args:
        scores: of all candidates.
        choose: the rule, from (K, C) scores and (C,) positives.
        final: (K, C) scores to choose from, where the average over folds is not what
            chooses, such as the score on all validation rows.
    """
    total = scores.mean() if final is None else final
    chosen, setting = choose(total, scores.positives.sum(0))
    n_folds, n_categories = scores.positives.shape
    chosen_without = np.zeros((n_folds, n_categories), dtype=np.int64)
    settings_without: list[int] = []
    for fold in range(n_folds):
        rest = scores.without(fold)
        chosen_without[fold], own = choose(scores.mean(rest), scores.positives[rest].sum(0))
        settings_without.append(own)
    pooled = pooled_gain(total - total[:1], scores.positives.sum(0))
    return Decision(chosen, setting, pooled, chosen_without, tuple(settings_without))
