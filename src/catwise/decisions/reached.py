"""What thresholds and sets reach on labelled rows that chose nothing; the table of all cut-offs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._json import number
from catwise.decisions.inputs import HeldOut
from catwise.decisions.rules import SETS, set_codes
from catwise.metrics.intervals import Units, estimate_of, interval_of_score
from catwise.metrics.registry import resolve_metric

_RATES: Final = ("sensitivity", "specificity", "precision", "f1")


class Rate(NamedTuple):
    """A rate on test rows with its interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Reached:
    """What a threshold reaches on test rows, which chose nothing.

    Attributes:
        n_positive: known positives among them.
        n_negative: known negatives.
        sensitivity: share of the positives that are called.
        specificity: share of the negatives that are not called.
        precision: share of positives among the known rows that are called.
        f1: of both.
        alerts_per_1000: rows called positive among 1,000 test rows, known or not.
    """

    n_positive: int
    n_negative: int
    sensitivity: Rate
    specificity: Rate
    precision: Rate
    f1: Rate
    alerts_per_1000: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a rate has its ends under its name with "_low" and "_high"."""
        record: dict[str, Any] = {
            "n_positive_test": self.n_positive,
            "n_negative_test": self.n_negative,
        }
        for name in _RATES:
            rate: Rate = getattr(self, name)
            record |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return {**record, "alerts_per_1000": self.alerts_per_1000}


def score_intervals(
    rows: HeldOut, metrics: Sequence[str], level: float
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Scores of logits on labelled rows, by metric: (C,) values and (C, 2) their intervals.

    Args:
        rows: that chose nothing.
        metrics: names.
        level: confidence level of the intervals.
    """
    n, every = len(rows.categories), rows.units
    found = {name: (np.full(n, np.nan), np.full((n, 2), np.nan)) for name in metrics}
    for c in range(n):
        known = rows.known(c)
        units = every.take(known.rows)
        for name, (values, ends) in found.items():
            if resolve_metric(name).covers(known.positive):
                estimate, _ = estimate_of(name, known.scores, known.positive, units)
                values[c] = estimate.value
                ends[c] = interval_of_score(name, estimate, level)
    return found


@dataclass(frozen=True)
class Covered:
    """What the sets of a category hold on test rows, which chose nothing.

    Attributes:
        n_positive: known positives among them.
        n_negative: known negatives.
        positive: share of the positives with "positive" in their set.
        negative: share of the negatives with "negative" in their set.
        per_1000: rows whose set is none, negative, positive, both, among 1,000 test rows, known or
            not.
    """

    n_positive: int
    n_negative: int
    positive: Rate
    negative: Rate
    per_1000: tuple[float, float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        record: dict[str, Any] = {
            "n_positive_test": self.n_positive,
            "n_negative_test": self.n_negative,
        }
        for name in ("positive", "negative"):
            rate: Rate = getattr(self, name)
            key = f"{name}_covered"
            record |= {key: rate.value, f"{key}_low": rate.low, f"{key}_high": rate.high}
        per = zip(SETS, self.per_1000, strict=True)
        return {**record, **{f"{name}_per_1000": value for name, value in per}}


def covered(
    rows: HeldOut,
    c: int,
    cuts: tuple[float | None, float | None],
    every: Units,
    level: float,
) -> Covered:
    """What the sets of category number c hold on labelled rows.

    Args:
        rows: that chose nothing.
        c: number of the category.
        cuts: from which logit "positive" and below which "negative" is in a set; None: always.
        every: units of all rows.
        level: confidence level of the intervals.
    """
    low, high = -np.inf if cuts[0] is None else cuts[0], np.inf if cuts[1] is None else cuts[1]
    known, scores = rows.known(c), rows.column(c)
    units, k = every.take(known.rows), int(known.positive.sum())
    counts = 1000.0 * np.bincount(set_codes(scores, low, high), minlength=4) / scores.size
    sides = (known.scores >= low, known.positive), (known.scores < high, ~known.positive)
    first, second = (rate_of("recall", *side, units, level) for side in sides)
    none, negative, positive, both = counts.tolist()
    per = (none, negative, positive, both)
    return Covered(k, known.positive.size - k, first, second, per)


def cutoff_rows(rows: HeldOut, c: int) -> list[dict[str, Any]]:
    """The cut-offs of category number c on labelled rows; see :meth:`Thresholds.cutoffs`."""
    known = rows.known(c)
    k, n = int(known.positive.sum()), int((~known.positive).sum())
    every = np.sort(rows.column(c))
    order = np.argsort(-known.scores, kind="stable")
    ranked, hits = known.scores[order], np.cumsum(known.positive[order])
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], [True] * bool(ranked.size)))
    found = []
    for i in last:
        true, false = int(hits[i]), int(i + 1 - hits[i])
        called = every.size - int(np.searchsorted(every, ranked[i], side="left"))
        found.append(
            {
                "threshold": float(ranked[i]),
                "n_called": int(i + 1),
                "true_positives": true,
                "false_positives": false,
                "sensitivity": true / k if k else None,
                "specificity": 1.0 - false / n if n else None,
                "precision": true / (i + 1),
                "f1": 2.0 * true / (i + 1 + k) if k else None,
                "alerts_per_1000": 1000.0 * called / every.size,
            }
        )
    return found


def reached(rows: HeldOut, c: int, cut: float, every: Units, level: float) -> Reached:
    """What a threshold of category number c reaches on labelled rows.

    Args:
        rows: that chose nothing.
        c: number of the category.
        cut: the threshold.
        every: units of all rows.
        level: confidence level of the intervals.
    """
    known = rows.known(c)
    called = known.scores >= cut
    k = int(known.positive.sum())
    alerts = 1000.0 * float((rows.column(c) >= cut).mean())
    sides = {
        "sensitivity": ("recall", called, known.positive),
        "specificity": ("recall", ~called, ~known.positive),
        "precision": ("precision", called, known.positive),
        "f1": ("f1", called, known.positive),
    }
    units = every.take(known.rows)
    rates = {name: rate_of(*side, units, level) for name, side in sides.items()}
    return Reached(k, called.size - k, **rates, alerts_per_1000=alerts)


def rate_of(
    metric: str,
    called: NDArray[np.bool_],
    positive: NDArray[np.bool_],
    units: Units,
    level: float,
) -> Rate:
    """A rate of called rows with its interval.

    Args:
        metric: "recall", "precision" or "f1".
        called: (n,) bool.
        positive: (n,) bool.
        units: of these rows.
        level: confidence level of the interval.
    """
    if not 0 < int(positive.sum()) < positive.size:
        return Rate(None, None, None)
    if metric == "precision" and not called.any():
        return Rate(None, None, None)
    estimate, _ = estimate_of(metric, np.where(called, 1.0, -1.0), positive, units)
    low, high = interval_of_score(metric, estimate, level)
    return Rate(number(estimate.value), number(low), number(high))
