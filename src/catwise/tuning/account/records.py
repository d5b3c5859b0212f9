"""Records of the categories: status, reason, candidate, scores before and after, on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from catwise._json import number
from catwise.labels import LabelCounts
from catwise.labels.reasons import MISSING, explain, with_consequence
from catwise.metrics.intervals import LEVEL, MIN_COUNT
from catwise.tuning.account.documents import OnTestRows, Record, Summary

EXPLANATIONS: Final = {
    "gain": "The tuned head scored better on labels that did not fit it.",
    "shared_gain": "Its own labels show no gain, but they are too few to outweigh the mean gain "
    "over all categories.",
    "pooled_gain": "Too few positives to judge this category alone; the mean gain over all "
    "categories decided.",
    "gain_in_folds": "Inside the folds the tuned heads were better in the mean over all "
    "categories. The original head was trained on these labels, so that gains are reported too "
    "low.",
    "no_gain": "The tuned head did not score better on labels that did not fit it.",
    "clearly_worse": "The tuned head was clearly worse in this category: the interval of its gain "
    "lies wholly on the wrong side of zero.",
    "no_pooled_gain": "In the mean over all categories no candidate scored better than the "
    "original head.",
    "no_mean_gain": "Corrected for the choosing, the mean gain over all categories was not above "
    "zero, so no category was replaced.",
    "best_step": "Validation scored this step best.",
    "base_best": "Validation scored no step better than the original head.",
    **{
        f"{code}_in_{part}": explain(f"{code}_in_{part}")
        for part in ("train", "valid")
        for code in MISSING
    },
    **{
        code: with_consequence(code, "too few for an interval.", few=MIN_COUNT)
        for code in ("few_positives", "few_negatives")
    },
    "unchanged": "The original head was kept, so nothing changed.",
    "order_unchanged": "No known positive and negative changed their order, which says nothing "
    "about others.",
    "not_corrected": "The labels that chose this step cannot say what it is worth.",
    "no_interval_for_metric": "There is no interval for this metric.",
}
"""A sentence for each reason code, of `reason` and of `interval_reason`."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What the records are made from; (C,) each."""

    status: list[str]  # "replaced", "kept" or "skipped"
    reason: list[str]  # key of `EXPLANATIONS`
    candidate: list[str]  # name of what the category has now
    before: NDArray[np.float64]  # score of the original head
    # score of what the category has now, corrected for the choosing; NaN if not known
    after: NDArray[np.float64]
    selected_on: NDArray[np.float64]  # score of the chosen candidate on the data that chose it
    low: NDArray[np.float64]  # lower end of the gain's interval
    high: NDArray[np.float64]  # upper end
    # why there is no interval, a key of `EXPLANATIONS`, else None
    interval_reason: list[str | None]

    def updated(self, at: NDArray[np.int64], other: Scores) -> Scores:
        """With the (K,) scores of some categories in place of theirs."""

        def put(mine: Any, theirs: Any) -> Any:
            merged = list(mine)
            for c, value in zip(at.tolist(), theirs, strict=True):
                merged[c] = value
            return np.array(merged) if isinstance(mine, np.ndarray) else merged

        names = [one.name for one in fields(self)]
        return Scores(*(put(getattr(self, name), getattr(other, name)) for name in names))


def make_records(
    categories: Sequence[str],
    index: Sequence[int],
    scores: Scores,
    *,
    metric: str,
    scored_on: str,
    train: LabelCounts,
    valid: LabelCounts | None,
    gaps: Sequence[Mapping[str, Any]] | None,
    evaluation: Mapping[str, Any] | None = None,
) -> tuple[Record, ...]:
    """One for each category."""
    records = []
    for c, category in enumerate(categories):
        before, after = number(scores.before[c]), number(scores.after[c])
        records.append(
            Record(
                category=category,
                index=int(index[c]),
                status=scores.status[c],
                reason=scores.reason[c],
                explanation=EXPLANATIONS[scores.reason[c]],
                candidate=scores.candidate[c],
                metric=metric,
                before=before,
                after=after,
                gain=None if before is None or after is None else after - before,
                gain_low=number(scores.low[c]),
                gain_high=number(scores.high[c]),
                interval_reason=scores.interval_reason[c],
                selected_on=number(scores.selected_on[c]),
                scored_on=scored_on if before is not None else None,
                n_positive_train=int(train.positive[c]),
                n_negative_train=int(train.negative[c]),
                n_positive_valid=None if valid is None else int(valid.positive[c]),
                n_negative_valid=None if valid is None else int(valid.negative[c]),
                gap_auroc=None if gaps is None else gaps[c]["gap_auroc"],
                gap_average_precision=None if gaps is None else gaps[c]["gap_average_precision"],
                test=None if evaluation is None else on_test_rows(evaluation["categories"][c]),
            )
        )
    return tuple(records)


def on_test_rows(row: Mapping[str, Any]) -> OnTestRows:
    """Of a category of an evaluation."""
    return OnTestRows(
        test_before=row["before"],
        test_after=row["after"],
        test_difference=row["difference"],
        test_low=row["difference_low"],
        test_high=row["difference_high"],
        test_outcome=row["outcome"],
        test_reason=row["reason"],
        n_positive_test=row["n_positive"],
        n_negative_test=row["n_negative"],
    )


def make_summary(
    metric: str,
    scores: Scores,
    mean_gain: tuple[float, float, float],
    *,
    choice: dict[str, Any],
    passes: dict[str, int],
    seconds: float,
    rows: dict[str, int] | None,
) -> Summary:
    """Means over the categories that have a score, and counts."""
    before, (gain, low, high) = mean_of(scores.before), mean_gain
    return Summary(
        metric=metric,
        n_categories=len(scores.status),
        n_replaced=scores.status.count("replaced"),
        n_kept=scores.status.count("kept"),
        n_skipped=scores.status.count("skipped"),
        n_scored=int(np.isfinite(scores.before).sum()),
        before=number(before),
        after=number(before + gain),
        gain=number(gain),
        gain_low=number(low),
        gain_high=number(high),
        level=LEVEL,
        selected_on=number(mean_of(scores.selected_on)),
        choice=choice,
        seconds=round(seconds, 3),
        passes=passes,
        rows=rows,
    )


def mean_of(values: NDArray[np.float64]) -> float:
    """The mean of what is finite; NaN without any."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
