"""What an evaluation found, and how two of them compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._json import number
from catwise._reported import Reported
from catwise._text import count
from catwise._version import __version__
from catwise.metrics.curves import CategoryCurves
from catwise.metrics.paired import PairedComparison


class Interval(NamedTuple):
    """Intervals of one metric (`catwise.metrics.intervals`)."""

    per_category: NDArray[np.float64]  # (C, 2) low and high; NaN where there is none
    macro: tuple[float, float]


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Reported):
    """Metrics of a head on labelled features.

    Attributes:
        categories: C names.
        head_index: (C,) int64 row of the head of each category.
        values: {metric: (C,) float64}, NaN where undefined.
        means: {metric: {"macro", "micro", "n_categories"}}: the mean over the `n_categories`
            categories that have a value, and the metric over all known labels pooled.
        reasons: C times None, or why a category has no metrics: "no_known_label",
            "no_known_positive", "no_known_negative".
        intervals: {metric: Interval}; metrics of one's own have none.
        interval_reasons: C times None, or why there is no interval: as `reasons`, or
            "few_positives", "few_negatives".
        n_rows: N.
        n_positive: (C,) int64 known positives.
        n_negative: (C,) int64 known negatives.
        n_in_sample: rows that fitted or selected the head; None where that is not known.
        options: prevalence and threshold, where given.
        level: confidence level of the intervals.
        notes: what was done with the input, a sentence each.
        curves: of each category what curves are drawn from, if asked for; not in `to_dict`.
    """

    categories: tuple[str, ...]
    head_index: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float64]]
    means: Mapping[str, dict[str, Any]]
    reasons: tuple[str | None, ...]
    intervals: Mapping[str, Interval]
    interval_reasons: tuple[str | None, ...]
    n_rows: int
    n_positive: NDArray[np.int64]
    n_negative: NDArray[np.int64]
    n_in_sample: int | None
    options: Mapping[str, Any]
    level: float
    notes: tuple[str, ...]
    curves: tuple[CategoryCurves, ...] | None = None

    @property
    def in_sample(self) -> bool | None:
        """Whether some of the rows fitted or selected the head; None where that is not known."""
        return None if self.n_in_sample is None else self.n_in_sample > 0

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{name}={mean['macro']:.4f} over {mean['n_categories']}"
            for name, mean in list(self.means.items())[:2]
        )
        size = f"n_rows={self.n_rows}, n_categories={len(self.categories)}"
        return f"Evaluation({size}, {scores}{', in_sample=True' if self.in_sample else ''})"

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category; None where a number is not defined.

        Keys: category, index (row of the head), n_known, n_positive, n_negative, reason,
        interval_reason, and each metric, alone and with "_low" and "_high".
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
            "interval_reason": self.interval_reasons[c],
        }
        for name, values in self.values.items():
            record[name] = number(values[c])
            if name in self.intervals:
                low, high = self.intervals[name].per_category[c]
                record[f"{name}_low"], record[f"{name}_high"] = number(low), number(high)
        return record

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready; None where a number is not defined."""
        means = {}
        for name, mean in self.means.items():
            means[name] = {key: number(value) for key, value in mean.items()}
            if name in self.intervals:
                low, high = self.intervals[name].macro
                means[name] |= {"macro_low": number(low), "macro_high": number(high)}
        return {
            "n_rows": self.n_rows,
            "n_categories": len(self.categories),
            "in_sample": self.in_sample,
            "n_in_sample": self.n_in_sample,
            "means": means,
            "options": dict(self.options),
            "level": self.level,
            "notes": list(self.notes),
            "categories": self.records(),
        }

    def page_document(self) -> dict[str, Any]:
        """What the page is made of, JSON-ready."""
        return {"kind": "evaluate", **self.to_dict(), **_drawn(self.curves)}


@dataclass(frozen=True, eq=False, repr=False)
class HeadComparison(Reported):
    """Two heads on the same labelled features.

    Attributes:
        comparisons: {metric: PairedComparison}, in the order in which the metrics were named.
        n_in_sample: rows that fitted or selected the head before, and the head after; None where
            that is not known.
        options: prevalence and threshold, where given.
        notes: what was done with the input, a sentence each.
        curves: of each category what curves are drawn from, if asked for; not in `to_dict`.
    """

    comparisons: Mapping[str, PairedComparison]
    n_in_sample: tuple[int | None, int | None]
    options: Mapping[str, Any]
    notes: tuple[str, ...]
    curves: tuple[CategoryCurves, ...] | None = None

    def __repr__(self) -> str:
        return f"HeadComparison({self.sentence()!r})"

    @property
    def first(self) -> PairedComparison:
        """By the metric that was named first."""
        return next(iter(self.comparisons.values()))

    @property
    def in_sample(self) -> bool | None:
        """Whether some of the rows fitted or selected a head; None where that is not known."""
        if any(self.n_in_sample):
            return True
        return None if None in self.n_in_sample else False

    @property
    def verdict(self) -> str:
        """As `PairedComparison.verdict`, of the first metric; "in_sample" where rows were."""
        return self._verdict_of(self.first)

    def _verdict_of(self, one: PairedComparison) -> str:
        return "in_sample" if self.in_sample else one.verdict

    def sentence(self) -> str:
        """Whether rows were in sample, and what the first metric shows, in plain words."""
        return self._sentence_of(self.first)

    def _sentence_of(self, one: PairedComparison) -> str:
        if not self.in_sample:
            return one.sentence("row")
        seen = " and ".join(
            f"{count(n)} of these rows fitted or selected the head {side}"
            for side, n in zip(("before", "after"), self.n_in_sample, strict=True)
            if n
        )
        return f"In sample, so no verdict: {seen}. {one.sentence('row', judged=False)}"

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each metric and category, with the keys of `to_dict`."""
        return [
            {"metric": name, **record}
            for name, one in self.comparisons.items()
            for record in one.records()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready; None where a number is not defined."""
        before, after = self.n_in_sample
        return {
            "sentence": self.sentence(),
            "verdict": self.verdict,
            "in_sample": self.in_sample,
            "n_in_sample_before": before,
            "n_in_sample_after": after,
            "comparisons": [
                {
                    **one.to_dict("row"),
                    "verdict": self._verdict_of(one),
                    "sentence": self._sentence_of(one),
                }
                for one in self.comparisons.values()
            ],
            "options": dict(self.options),
            "notes": list(self.notes),
        }

    def page_document(self) -> dict[str, Any]:
        """What the page is made of, JSON-ready."""
        return {"kind": "compare", **self.to_dict(), **_drawn(self.curves)}


def _drawn(curves: tuple[CategoryCurves, ...] | None) -> dict[str, Any]:
    """For a page: the version, and what curves are drawn from."""
    document: dict[str, Any] = {"catwise": __version__}
    if curves is not None:
        document["curves"] = {"rows": "", "categories": [one.to_dict() for one in curves]}
    return document
