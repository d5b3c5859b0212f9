"""What an evaluation found, and how two of them compare."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from catwise.errors import CategoryError
from catwise.metrics.bootstrap import percentile_interval, row_means

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Comparison", "Evaluation", "Interval", "compare"]


class Interval(NamedTuple):
    """Percentile intervals of one metric."""

    per_category: NDArray[np.float64]  # (C, 2) low and high; NaN where undefined
    macro: tuple[float, float]

    @staticmethod
    def of(replicates: NDArray[np.float64], values: NDArray[np.float64], level: float) -> Interval:
        """Intervals from (R, C) replicates; the mean covers the categories with a value."""
        means = row_means(replicates[:, np.isfinite(values)])
        low, high = percentile_interval(means[:, None], level)[0]
        return Interval(percentile_interval(replicates, level), (float(low), float(high)))


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Metrics of a head on labelled features.

    Attributes:
        categories: C names.
        head_index: (C,) int64 row of the head of each category.
        values: {metric: (C,) float64}, NaN where undefined.
        means: {metric: {"macro", "micro", "n_categories"}}: the mean over the `n_categories`
            categories that have a value, and the metric over all known labels pooled.
        reasons: C times None, or why a category has no metrics: "no_known_label",
            "no_known_positive", "no_known_negative".
        intervals: {metric: Interval}; empty without bootstrap.
        n_rows: N.
        n_positive: (C,) int64 known positives.
        n_negative: (C,) int64 known negatives.
        n_in_sample: rows that fitted or selected the head.
        options: prevalence and threshold, where given.
        level: confidence level of the intervals.
        notes: what was done with the input, a sentence each.
        replicates: {metric: (R, C) float64}; empty without bootstrap.
        sample: fingerprint of labels and draws; two evaluations that share it are paired.
    """

    categories: tuple[str, ...]
    head_index: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float64]]
    means: Mapping[str, dict[str, Any]]
    reasons: tuple[str | None, ...]
    intervals: Mapping[str, Interval]
    n_rows: int
    n_positive: NDArray[np.int64]
    n_negative: NDArray[np.int64]
    n_in_sample: int
    options: Mapping[str, Any]
    level: float
    notes: tuple[str, ...]
    replicates: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    sample: str = ""

    @property
    def in_sample(self) -> bool:
        """Whether some of the rows fitted or selected the head."""
        return self.n_in_sample > 0

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{name}={mean['macro']:.4f} over {mean['n_categories']}"
            for name, mean in list(self.means.items())[:2]
        )
        size = f"n_rows={self.n_rows}, n_categories={len(self.categories)}"
        return f"Evaluation({size}, {scores}{', in_sample=True' if self.in_sample else ''})"

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category; None where a number is not defined.

        Keys: category, index (row of the head), n_known, n_positive, n_negative, reason, each
        metric, and with bootstrap each metric with "_low" and "_high".
        """
        return [self._record(c) for c in range(len(self.categories))]

    def _record(self, c: int) -> dict[str, Any]:
        n_positive, n_negative = int(self.n_positive[c]), int(self.n_negative[c])
        record: dict[str, Any] = {
            "category": self.categories[c],
            "index": int(self.head_index[c]),
            "n_known": n_positive + n_negative,
            "n_positive": n_positive,
            "n_negative": n_negative,
            "reason": self.reasons[c],
        }
        for name, values in self.values.items():
            record[name] = _number(values[c])
            if name in self.intervals:
                low, high = self.intervals[name].per_category[c]
                record[f"{name}_low"], record[f"{name}_high"] = _number(low), _number(high)
        return record

    def to_dict(self) -> dict[str, Any]:
        """Everything but the replicates, JSON-ready; None where a number is not defined."""
        means = {}
        for name, mean in self.means.items():
            means[name] = {key: _number(value) for key, value in mean.items()}
            if name in self.intervals:
                low, high = self.intervals[name].macro
                means[name] |= {"macro_low": _number(low), "macro_high": _number(high)}
        return {
            "n_rows": self.n_rows,
            "n_categories": len(self.categories),
            "in_sample": self.in_sample,
            "n_in_sample": self.n_in_sample,
            "means": means,
            "options": dict(self.options),
            "level": self.level if self.intervals else None,
            "notes": list(self.notes),
            "categories": self.records(),
        }


@dataclass(frozen=True)
class Comparison:
    """One metric of two evaluations, over the categories that both define.

    Attributes:
        metric: its name.
        categories: the names that the means cover.
        n_categories: how many.
        mean_a: mean of the first.
        mean_b: mean of the second.
        difference: b − a; for a loss a negative one is an improvement.
        interval: percentile interval of the difference where both were resampled with the same
            draws on the same labels, else None.
        n_only_a: categories that only the first defines.
        n_only_b: categories that only the second defines.
    """

    metric: str
    categories: tuple[str, ...]
    n_categories: int
    mean_a: float
    mean_b: float
    difference: float
    interval: tuple[float, float] | None
    n_only_a: int
    n_only_b: int


def compare(a: Evaluation, b: Evaluation) -> dict[str, Comparison]:
    """Compare two evaluations metric by metric, on the categories that both define.

    Args:
        a: for example of the original head.
        b: for example of the tuned head.

    Returns:
        {metric: Comparison} for the metrics that both have.

    Raises:
        CategoryError: If they have no category in common.

    >>> import numpy as np
    >>> from catwise.heads import Head
    >>> from catwise.labels import PartialLabels
    >>> from catwise.metrics import evaluate
    >>> labels = PartialLabels([[1], [0], [1]])
    >>> z = [[3.0, 0.0], [2.0, 1.0], [1.0, 2.0]]
    >>> a, b = (evaluate(Head([w]), (z, labels), metrics="auroc") for w in ([1.0, 0.0], [0.0, 1.0]))
    >>> compare(a, b)["auroc"].difference
    0.0
    """
    place = {name: c for c, name in enumerate(b.categories)}
    pairs = [(c, place[name]) for c, name in enumerate(a.categories) if name in place]
    if not pairs:
        raise CategoryError(
            "two evaluations have no category in common.",
            found=f"{a.categories[0]!r}, … and {b.categories[0]!r}, …",
        )
    at_a, at_b = (np.array(side) for side in zip(*pairs, strict=True))
    return {
        metric: _compared(metric, a, b, at_a, at_b) for metric in a.values if metric in b.values
    }


def _compared(
    metric: str,
    a: Evaluation,
    b: Evaluation,
    at_a: NDArray[np.int64],
    at_b: NDArray[np.int64],
) -> Comparison:
    values_a, values_b = a.values[metric], b.values[metric]
    both = np.isfinite(values_a[at_a]) & np.isfinite(values_b[at_b])
    at_a, at_b = at_a[both], at_b[both]
    covered = int(both.sum())
    means = [
        float(values.mean()) if covered else float("nan")
        for values in (values_a[at_a], values_b[at_b])
    ]
    interval = None
    if covered and a.sample and a.sample == b.sample and metric in a.replicates:
        differences = row_means(b.replicates[metric][:, at_b] - a.replicates[metric][:, at_a])
        low, high = percentile_interval(differences[:, None], a.level)[0]
        interval = float(low), float(high)
    return Comparison(
        metric=metric,
        categories=tuple(a.categories[c] for c in at_a),
        n_categories=covered,
        mean_a=means[0],
        mean_b=means[1],
        difference=means[1] - means[0],
        interval=interval,
        n_only_a=int(np.isfinite(values_a).sum()) - covered,
        n_only_b=int(np.isfinite(values_b).sum()) - covered,
    )


def _number(value: float) -> float | int | None:
    """JSON knows no NaN."""
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None
