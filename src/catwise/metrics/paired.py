"""Two heads on the same rows: per category, in the mean, and in one sentence.

Every account of a change (of `tune`, `select`, `fix`, `evaluate --against`) is made here: scores
before and after, the difference with its paired interval (:mod:`catwise.metrics.intervals`), and
what that shows. A category is better or worse if its two-sided paired test is rejected at a false
discovery rate of 5% over the categories of one evaluation (Benjamini & Hochberg, JRSS B 57, 1995);
with fewer than 3 known positives or negatives it is not judged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._json import number
from catwise._text import count, gain, interval, plural, score
from catwise.errors import ConfigError
from catwise.labels import PartialLabels
from catwise.labels.reasons import FEW, MISSING
from catwise.metrics.bootstrap import benjamini_hochberg, category_names
from catwise.metrics.inputs import (
    Array,
    checked_labels,
    checked_logits,
    known_scores,
    label_shape,
    option_at,
)
from catwise.metrics.intervals import (
    LEVEL,
    Differences,
    Units,
    has_interval,
    p_value,
    paired_difference,
)
from catwise.metrics.per_category import undefined_reason
from catwise.metrics.registry import METRICS, Metric, resolve_metric

OUTCOMES: Final = ("better", "worse", "no_difference", "not_judged")
"""What a category's scores show."""

FALSE_DISCOVERIES: Final = 0.05
"""Expected share of wrong ones among the categories called better or worse."""


@dataclass(frozen=True, eq=False, repr=False)
class PairedComparison:
    """A metric of two heads on the same rows; `difference` is after − before.

    Attributes:
        metric: name.
        categories: C names.
        before: (C,) float64 scores of the first head; NaN where a class is not known.
        after: (C,) float64 of the second.
        difference: (C,) float64; for a loss a negative one is an improvement.
        low: (C,) float64 lower end of its interval; NaN where there is none.
        high: (C,) float64 upper end.
        p_value: (C,) float64, two-sided and paired; NaN where there is none.
        outcome: C of `OUTCOMES`.
        reason: C times None, or why there is no interval: as `undefined_reason`, "few_positives",
            "few_negatives", "unchanged" (both heads score every row alike) or "order_unchanged"
            (no known pair of rows changed its order).
        n_positive: (C,) int64 known positives.
        n_negative: (C,) int64 known negatives.
        mean_before: mean over the `n_scored` categories with a score.
        mean_after: likewise.
        mean_low: lower end of the interval of the mean difference.
        mean_high: upper end.
        n_scored: categories that the means cover.
        n_rows: rows that have labels.
        level: confidence level of the intervals.
        higher_is_better: False for losses.
    """

    metric: str
    categories: tuple[str, ...]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    difference: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p_value: NDArray[np.float64]
    outcome: tuple[str, ...]
    reason: tuple[str | None, ...]
    n_positive: NDArray[np.int64]
    n_negative: NDArray[np.int64]
    mean_before: float
    mean_after: float
    mean_low: float
    mean_high: float
    n_scored: int
    n_rows: int
    level: float
    higher_is_better: bool

    @property
    def mean_difference(self) -> float:
        """Mean after − mean before."""
        return self.mean_after - self.mean_before

    @property
    def verdict(self) -> str:
        """One of "helped", "harmed", "no_difference", and "not_judged" without an interval."""
        if not math.isfinite(self.mean_low):
            return "no_difference" if self._is_same else "not_judged"
        if self.mean_low <= 0.0 <= self.mean_high:
            return "no_difference"
        return "helped" if (self.mean_low > 0.0) == self.higher_is_better else "harmed"

    @property
    def _is_same(self) -> bool:
        """Whether both heads score every row alike in each category that can be scored."""
        return self.n_scored > 0 and set(self.reason) <= {"unchanged", *MISSING}

    def __repr__(self) -> str:
        return f"PairedComparison({self.sentence()!r})"

    def counts(self) -> dict[str, int]:
        """How many categories came to which outcome."""
        found = Counter(self.outcome)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    def sentence(self, rows: str = "test row", *, judged: bool = True) -> str:
        """What the comparison shows, in plain words; a row is called `rows`.

        It begins with the verdict if `judged`, which says nothing where rows fitted a head.
        """
        where = f"on {plural(self.n_rows, rows)}"
        if not self.n_scored:
            return f"Not judged: {where} no category has a known positive and a known negative."
        if self._is_same:
            start = f"No difference: {where}" if judged else where.capitalize()
            name = resolve_metric(self.metric).text
            same = f"both heads score alike, mean {name} {score(self.mean_before)}"
            return f"{start} {same}. {self._categories_text()}"
        change = (
            f"mean {resolve_metric(self.metric).text} went from {score(self.mean_before)} to "
            f"{score(self.mean_after)} ({gain(self.mean_difference)}"
        )
        if math.isfinite(self.mean_low):
            bounds = interval(self.mean_low, self.mean_high)
            change += f", {self.level:.0%} interval {bounds}"
        start = f"{_VERDICTS[self.verdict]}: {where}" if judged else where.capitalize()
        return f"{start} the {change}). {self._categories_text()}"

    def _categories_text(self) -> str:
        found = self.counts()
        words = [f"{count(found['better'])} better", f"{count(found['worse'])} worse"]
        words.append(f"{count(found['no_difference'])} without a difference shown")
        if unchanged := self.reason.count("unchanged"):
            words[-1] += f" ({count(unchanged)} unchanged)"
        if found["not_judged"]:
            words.append(f"{count(found['not_judged'])} not judged")
        text = f"{', '.join(words[:-1])} and {words[-1]}"
        return f"Of {plural(len(self.categories), 'category', 'categories')}: {text}."

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category; None where a number is not defined."""
        columns = {
            "before": self.before,
            "after": self.after,
            "difference": self.difference,
            "difference_low": self.low,
            "difference_high": self.high,
            "p_value": self.p_value,
        }
        return [
            {
                "category": category,
                **{name: number(values[c]) for name, values in columns.items()},
                "outcome": self.outcome[c],
                "reason": self.reason[c],
                "n_positive": int(self.n_positive[c]),
                "n_negative": int(self.n_negative[c]),
            }
            for c, category in enumerate(self.categories)
        ]

    def to_dict(self, rows: str = "test row") -> dict[str, Any]:
        """Everything, JSON-ready; the sentence calls a row `rows`."""
        return {
            "metric": self.metric,
            "verdict": self.verdict,
            "sentence": self.sentence(rows),
            **self.mean(),
            "level": self.level,
            "n_rows": self.n_rows,
            "n_categories": len(self.categories),
            "outcomes": self.counts(),
            "categories": self.records(),
        }

    def mean(self) -> dict[str, Any]:
        """The means, JSON-ready."""
        return {
            "before": number(self.mean_before),
            "after": number(self.mean_after),
            "difference": number(self.mean_difference),
            "difference_low": number(self.mean_low),
            "difference_high": number(self.mean_high),
            "n_scored": self.n_scored,
        }


_VERDICTS: Final = {
    "helped": "Helped",
    "harmed": "Harmed",
    "no_difference": "No difference shown",
    "not_judged": "Not judged",
}


def compare_logits(
    before: Array,
    after: Array,
    labels: PartialLabels | Array,
    metric: str | Metric = "average_precision",
    *,
    level: float = LEVEL,
) -> PairedComparison:
    """Compare two sets of logits on the same labelled rows.

    Args:
        before: (N, C) float logits, for example of the original head.
        after: (N, C) float logits, for example of the tuned head.
        labels: (N, C); hard known labels count. Rows of a group are one unit.
        metric: name or `Metric` with an influence function.
        level: confidence level, in (0, 1).

    Raises:
        ShapeError: If logits and labels differ in shape.
        FeatureError: If a logit is NaN or infinite.
        ConfigError: If the metric has no influence function.

    >>> rng = np.random.default_rng(0)
    >>> codes = (rng.random((400, 2)) < 0.3).astype(np.int8)
    >>> old, new = (rng.normal(size=(400, 2)) + shift * codes for shift in (0.5, 2.0))
    >>> found = compare_logits(old, new, codes, "auroc")
    >>> found.verdict, found.outcome
    ('helped', ('better', 'better'))
    """
    labels = checked_labels(labels)
    shape = label_shape(labels)
    scores = PairedScores(metric, labels, level=level)
    old, new = (checked_logits(one, shape) for one in (before, after))
    scores.add(slice(0, shape[1]), old, new, labels)
    return scores.result()


class PairedScores:
    """A comparison that is made block by block of categories; labels are all (N, C)."""

    def __init__(
        self,
        metric: str | Metric,
        labels: PartialLabels | Array,
        *,
        level: float = LEVEL,
        categories: Sequence[str] | None = None,
    ) -> None:
        self.metric, self.level = resolve_metric(metric), level
        if not has_interval(self.metric):
            raise ConfigError(
                f"no influence function is known for {self.metric.name!r}",
                expected="one of " + ", ".join(METRICS),
            )
        self.categories = tuple(category_names(labels) if categories is None else categories)
        self.n_rows, n_categories = label_shape(labels)
        self.units, reason = Units.of_labels(labels), undefined_reason(labels)
        self.found = Differences(n_categories, self.units, level, reason=reason)
        self.table = np.full((4, n_categories), np.nan)
        self.counts = np.zeros((2, n_categories), dtype=np.int64)

    def add(
        self,
        block: slice,
        before: Array,
        after: Array,
        labels: PartialLabels | Array,
        *,
        threshold: float | Sequence[float] = 0.0,
        prevalence: float | Sequence[float] | None = None,
    ) -> None:
        """Compare a block of B categories: logits (N, B) before and after; options one or (B,)."""
        sides, labels = [torch.as_tensor(one) for one in (before, after)], checked_labels(labels)
        for at, c in enumerate(range(block.start, block.stop)):
            old, new = (known_scores(side, labels, at) for side in sides)
            k = int(np.count_nonzero(old.positive))
            self.counts[:, c] = k, old.positive.size - k
            if self.metric.covers(old.positive):
                cut = option_at(threshold, at) or 0.0
                scores = old.above(cut), new.above(cut)
                self._add_one(c, old.rows, scores, old.positive, option_at(prevalence, at))

    def _add_one(
        self,
        c: int,
        rows: NDArray[np.int64],
        sides: tuple[NDArray[Any], NDArray[Any]],
        positive: NDArray[np.bool_],
        prevalence: float | None,
    ) -> None:
        units = self.units.take(rows)
        found = paired_difference(self.metric.name, *sides, positive, units, prevalence=prevalence)
        self.found.add(c, found, rows, is_same=np.array_equal(*sides))
        p = p_value(found.estimate)
        self.table[:, c] = found.before, found.after, found.estimate.value, p

    def result(self) -> PairedComparison:
        """The comparison, when all categories are in."""
        before, after, difference, p = self.table
        scored = np.isfinite(difference)
        means = [float(x[scored].mean()) if scored.any() else math.nan for x in (before, after)]
        return PairedComparison(
            self.metric.name,
            self.categories,
            before,
            after,
            difference,
            self.found.low,
            self.found.high,
            p,
            tuple(self._outcomes(difference, p)),
            tuple(self.found.reason),
            self.counts[0],
            self.counts[1],
            means[0],
            means[1],
            *self.found.mean.interval_of_difference(self.level),
            int(scored.sum()),
            self.n_rows,
            self.level,
            self.metric.higher_is_better,
        )

    def _outcomes(self, difference: NDArray[np.float64], p: NDArray[np.float64]) -> list[str]:
        shown = benjamini_hochberg(p, FALSE_DISCOVERIES)
        outcomes = []
        for c, reason in enumerate(self.found.reason):
            if reason in (*MISSING, *FEW):
                outcomes.append("not_judged")
            elif not shown[c]:
                outcomes.append("no_difference")
            else:
                outcomes.append("better" if difference[c] * self.metric.sign > 0 else "worse")
        return outcomes
