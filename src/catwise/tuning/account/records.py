"""One record for each category: status, reason, candidate, scores before and after, on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from catwise._json import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from catwise.labels import LabelCounts

__all__ = ["EXPLANATIONS", "Scores", "add_test_scores", "make_records"]

EXPLANATIONS: Final = {
    "gain": "The tuned head scored better on labels that did not fit it.",
    "shared_gain": "Its own labels show no gain, but they are too few to outweigh the mean gain "
    "over all categories.",
    "pooled_gain": "Too few positives to judge this category alone; the mean gain over all "
    "categories decided.",
    "gain_in_folds": "Inside the folds the tuned heads were better in the mean over all "
    "categories. The original head was trained on these labels, so that gains are told too low.",
    "no_gain": "The tuned head did not score better on labels that did not fit it.",
    "clearly_worse": "The tuned head was clearly worse in this category: the interval of its gain "
    "lies wholly on the wrong side of zero.",
    "no_pooled_gain": "In the mean over all categories no candidate scored better than the "
    "original head.",
    "no_mean_gain": "Corrected for the choosing, the mean gain over all categories was not above "
    "zero, so no category was replaced.",
    "best_step": "Validation scored this step best.",
    "base_best": "Validation scored no step better than the original head.",
    "no_known_label_in_train": "No training label of this category is known.",
    "no_known_positive_in_train": "No positive of this category is known in the training data.",
    "no_known_negative_in_train": "No negative of this category is known in the training data.",
    "no_known_label_in_valid": "No validation label of this category is known.",
    "no_known_positive_in_valid": "No positive of this category is known in the validation data.",
    "no_known_negative_in_valid": "No negative of this category is known in the validation data.",
    "few_positives": "Fewer than 3 positives are known: too few for an interval.",
    "few_negatives": "Fewer than 3 negatives are known: too few for an interval.",
    "unchanged": "The original head was kept, so nothing changed.",
    "order_unchanged": "No known positive and negative changed their order, which says nothing "
    "about others.",
    "not_corrected": "The labels that chose this step cannot say what it is worth.",
    "no_interval_for_metric": "There is no interval for this metric.",
}
"""A sentence for each reason code, of `reason` and of `interval_reason`."""


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
        interval_reason: why there is no interval, a key of `EXPLANATIONS`, else None.
    """

    status: list[str]
    reason: list[str]
    candidate: list[str]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    selected_on: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    interval_reason: list[str | None]


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
                "interval_reason": scores.interval_reason[c],
                "selected_on": number(scores.selected_on[c]),
                "scored_on": scored_on if before is not None else None,
                **{k: None if n is None else int(n[c]) for k, n in counts.items()},
                "gap_auroc": None if gaps is None else gaps[c]["gap_auroc"],
                "gap_average_precision": None if gaps is None else gaps[c]["gap_average_precision"],
            }
        )
    return records


_ON_TEST: Final = {
    "test_before": "before",
    "test_after": "after",
    "test_difference": "difference",
    "test_low": "difference_low",
    "test_high": "difference_high",
    "test_outcome": "outcome",
    "test_reason": "reason",
    "n_positive_test": "n_positive",
    "n_negative_test": "n_negative",
}


def add_test_scores(records: list[dict[str, Any]], evaluation: dict[str, Any]) -> None:
    """Put each category's scores on test rows into its record.

    Args:
        records: of the same categories in the same order; they are changed.
        evaluation: as `evaluation_of` gives it.
    """
    for record, row in zip(records, evaluation["categories"], strict=True):
        record.update({key: row[name] for key, name in _ON_TEST.items()})
