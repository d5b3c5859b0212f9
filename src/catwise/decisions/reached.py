"""What a threshold reaches on labelled rows that chose nothing, and the table of all cut-offs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from catwise._json import number
from catwise.decisions.inputs import HeldOut
from catwise.metrics.intervals import Units, estimate_of, interval_of_score

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
    units = every.take(known.rows)
    k = int(known.positive.sum())
    alerts = 1000.0 * float((rows.column(c) >= cut).mean())
    sides = {
        "sensitivity": ("recall", called, known.positive),
        "specificity": ("recall", ~called, ~known.positive),
        "precision": ("precision", called, known.positive),
        "f1": ("f1", called, known.positive),
    }
    rates = {}
    for name, (metric, right, positive) in sides.items():
        if not 0 < k < called.size:
            rates[name] = Rate(None, None, None)
            continue
        estimate, _ = estimate_of(metric, np.where(right, 1.0, -1.0), positive, units)
        ends = interval_of_score(metric, estimate, level)
        is_defined = name != "precision" or bool(called.any())
        low, high = (number(end) if is_defined else None for end in ends)
        rates[name] = Rate(number(estimate.value) if is_defined else None, low, high)
    return Reached(k, called.size - k, **rates, alerts_per_1000=alerts)
