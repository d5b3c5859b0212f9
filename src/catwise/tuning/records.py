"""One record for each category: status, reason, candidate, scores before and after, on what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from catwise.errors import ConfigError
from catwise.metrics.influence import influence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from catwise.labels import LabelCounts

__all__ = ["EXPLANATIONS", "GainInterval", "Scores", "gain_interval", "make_records"]

LEVEL: Final = 0.95
_QUANTILE: Final = 1.959963984540054

EXPLANATIONS: Final = {
    "gain": "The tuned head scored better on labels that did not fit it.",
    "shared_gain": "Its own labels show no gain, but too weakly to stand against the other "
    "categories, in which the tuned heads were better.",
    "pooled_gain": "Too few fresh positives to judge this category alone; the tuned heads "
    "were better on the whole.",
    "no_gain": "The tuned head did not score better on labels that did not fit it.",
    "no_pooled_gain": "On the whole no candidate scored better than the original head.",
    "best_step": "Validation scored this step best.",
    "base_best": "Validation scored no step better than the original head.",
    "no_known_label_in_train": "No training label of this category is known.",
    "no_known_positive_in_train": "No positive of this category is known in the training data.",
    "no_known_negative_in_train": "No negative of this category is known in the training data.",
    "no_known_label_in_valid": "No validation label of this category is known.",
    "no_known_positive_in_valid": "No positive of this category is known in the validation data.",
    "no_known_negative_in_valid": "No negative of this category is known in the validation data.",
}
"""A sentence for each reason code."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What the records are made from; (C,) each.

    Attributes:
        status: "replaced", "kept" or "skipped".
        reason: key of `EXPLANATIONS`.
        candidate: name of what the category has now.
        before: score of the original head.
        after: score of what the category has now, corrected for the choosing; NaN if not known.
        selected_on: score of the chosen candidate on the data that chose it.
        low: lower end of the gain's interval.
        high: upper end.
    """

    status: list[str]
    reason: list[str]
    candidate: list[str]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    selected_on: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def number(value: float) -> float | None:
    """A JSON-ready number: None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


def make_records(
    categories: Sequence[str],
    scores: Scores,
    *,
    metric: str,
    scored_on: str,
    train: LabelCounts,
    fresh: LabelCounts | None,
    gaps: Sequence[dict[str, Any]] | None,
) -> list[dict[str, Any]]:
    """One JSON-ready dict for each category.

    Args:
        categories: C names.
        scores: see there.
        metric: name of the metric.
        scored_on: which data gave the scores, in words.
        train: how many labels of each category are known.
        fresh: the same of the validation set, or None without one.
        gaps: per category dicts with `gap_auroc` and `gap_average_precision`, or None.
    """
    counts: dict[str, NDArray[np.int64] | None] = {}
    for name, known in (("train", train), ("valid", fresh)):
        for word in ("positive", "negative"):
            counts[f"n_{word}_{name}"] = None if known is None else getattr(known, word)
    records = []
    for c, category in enumerate(categories):
        before, after = number(scores.before[c]), number(scores.after[c])
        gain = None if before is None or after is None else after - before
        records.append(
            {
                "category": category,
                "index": c,
                "status": scores.status[c],
                "reason": scores.reason[c],
                "explanation": EXPLANATIONS[scores.reason[c]],
                "candidate": scores.candidate[c],
                "metric": metric,
                "before": before,
                "after": after,
                "gain": gain,
                "gain_low": number(scores.low[c]),
                "gain_high": number(scores.high[c]),
                "selected_on": number(scores.selected_on[c]),
                "scored_on": scored_on if before is not None else None,
                **{k: None if n is None else int(n[c]) for k, n in counts.items()},
                "gap_auroc": None if gaps is None else gaps[c]["gap_auroc"],
                "gap_average_precision": None if gaps is None else gaps[c]["gap_average_precision"],
            }
        )
    return records


@dataclass(frozen=True, eq=False)
class GainInterval:
    """95% intervals of gains around given centres.

    Attributes:
        error: (C,) standard error of each category's gain; NaN where not known.
        mean_error: standard error of their mean, with the rows that categories share.
    """

    error: NDArray[np.float64]
    mean_error: float

    def around(self, gain: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper ends for (C,) gains."""
        return gain - _QUANTILE * self.error, gain + _QUANTILE * self.error


def gain_interval(
    metric: str,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    codes: NDArray[np.int8],
    fold: NDArray[np.int8],
    *,
    groups: NDArray[Any] | None = None,
) -> GainInterval:
    """Standard errors of paired gains, from influence functions inside each fold.

    Args:
        metric: name of the metric.
        before: (C, n) logits of the original head.
        after: (C, n) logits of the other heads.
        codes: (C, n) label codes.
        fold: (n,) int8; scores are taken inside a fold and averaged by its positives.
        groups: (n,) rows of one group move together, or None.

    Returns:
        The errors; all NaN where the metric has no influence function.
    """
    n_categories, n = codes.shape
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    error = np.full(n_categories, np.nan)
    pooled = np.zeros(int(unit.max()) + 1 if n else 0)
    try:
        for c in range(n_categories):
            moved = _moved(metric, before[c], after[c], codes[c], fold)
            if moved is not None:
                total = np.bincount(unit, weights=moved, minlength=pooled.size)
                error[c] = math.sqrt(float((total**2).sum()))
                pooled += total
    except ConfigError:
        return GainInterval(np.full(n_categories, np.nan), float("nan"))
    scored = int(np.isfinite(error).sum())
    mean_error = math.sqrt(float((pooled**2).sum())) / scored if scored else float("nan")
    return GainInterval(error, mean_error)


def _moved(
    metric: str,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    codes: NDArray[np.int8],
    fold: NDArray[np.int8],
) -> NDArray[np.float64] | None:
    """(n,) what each row adds to the gain averaged over folds; None where it is not defined."""
    moved = np.zeros(codes.size)
    total = 0
    for f in np.unique(fold):
        rows = np.flatnonzero((fold == f) & (codes >= 0))
        positive = codes[rows] == 1
        k = int(positive.sum())
        if k in {0, rows.size}:
            continue
        total += k
        sizes = np.where(positive, k, rows.size - k)
        sides = [influence(metric, side[rows], positive).rows for side in (after, before)]
        moved[rows] = k * (sides[0] - sides[1]) / sizes
    return moved / total if total else None
