"""The one rule for intervals: of a score, of the difference of two, and of means of either.

Everything rests on influence functions (:mod:`catwise.metrics.influence`). Units are rows, or
groups where rows have groups: what goes together is added up before it is squared. With k units
in the scarcer class:

- a **difference** of two heads on the same rows is ``d ± t(k + 1) · se``. The scarcer class's part
  of the variance, which a handful of rows knows badly, is pooled with the usual one for such
  scores, times how far the heads move the rows of the other class; that counts as 2 further units;
- a **score** that ranks (AUROC) has the outer one of Newcombe's score interval and of
  ``expit(logit v ± t(k − 1) · se / (v (1 − v)))``;
- a **score that is a share** (average precision, precision, recall, F1) has the latter with its
  variance pooled with the binomial one, which counts as 5 further units; where all is right, the
  exact bound of as many equal outcomes;
- below 3 units of a class there is no interval, and a reason.

Percentile and BCa bootstrap intervals miss 20 to 40% of the time with 3 to 10 positives, which is
why none is used; ``benches/intervals.py`` measures the coverage of these.

Source: DeLong et al., Biometrics 44, 1988; Efron, Biometrika 68, 1981; Hanley & McNeil, Radiology
143, 1982 (the usual variance of an AUROC); Newcombe, Statistics in Medicine 25, 2006 (method 5);
Satterthwaite, Biometrics Bulletin 2, 1946 (means).

>>> interval_of_difference(Estimate(0.04, 0.01, 12, 80))
(0.017..., 0.062...)
>>> interval_of_difference(Estimate(0.04, 0.01, 2, 80))
(nan, nan)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.labels import PartialLabels
from catwise.metrics.bootstrap import _groups
from catwise.metrics.influence import influence
from catwise.metrics.inputs import Array, label_shape
from catwise.metrics.registry import METRICS, Metric

LEVEL: Final = 0.95  # confidence level where nobody names another

MIN_COUNT: Final = 3  # known positives, and known negatives, below which there is no interval

#: Metrics that are a share of positives or of what is called; the others in [0, 1] are not.
_SHARES: Final = frozenset(
    {"average_precision", "partial_auroc", "precision", "recall", "f1", "best_f1"}
)
#: Units that the usual variance counts for, in a score and in a difference of scores.
_UNITS_OF_SCORE: Final = 5
_UNITS_OF_DIFFERENCE: Final = 2
#: Variance of the difference of two unrelated heads, over the usual variances of both (measured).
#: Recall depends on positives alone, so that negatives do not tell how far heads differ.
_SPREAD: Final = {"auroc": 0.75, **dict.fromkeys(_SHARES - {"recall"}, 1 / 3)}
#: Metrics that are 1 only where every positive did as well as can be, and 0 where none did.
_ALL_RIGHT: Final = frozenset({"auroc", *_SHARES}) - {"precision"}
_ALL_WRONG: Final = frozenset({"auroc", "recall"})
_EDGE: Final = 1e-12


class Estimate(NamedTuple):
    """A score of one category, or a difference of two, and how unsure it is."""

    value: float  # NaN where a class is not known
    error: float  # standard error; NaN or infinite where it cannot be estimated
    n_positive: int  # units with a known positive
    n_negative: int
    # standard error that is usual for such scores of as many units, with which the interval pools
    # the one that was found; NaN where none is known
    usual_error: float = math.nan

    @property
    def scarcer(self) -> int:
        """Units of the scarcer class."""
        return min(self.n_positive, self.n_negative)


class Units(NamedTuple):
    """What is counted as one: rows, or groups of rows, numbered by (n,) int64 `of_row`."""

    of_row: NDArray[np.int64]
    is_grouped: bool

    @classmethod
    def of_labels(cls, labels: PartialLabels | Array) -> Units:
        """The groups of all rows of labels, or the rows themselves."""
        is_grouped = getattr(labels, "groups", None) is not None
        return cls(_groups(labels, None, label_shape(labels)[0]), is_grouped)

    @property
    def n_units(self) -> int:
        """How many there are."""
        return int(self.of_row.max(initial=-1)) + 1

    def take(self, rows: NDArray[Any]) -> Units:
        """The units of some rows."""
        return Units(self.of_row[rows], self.is_grouped)

    def by_class(self, positive: NDArray[np.bool_]) -> tuple[int, int]:
        """How many units hold a positive row, and how many a negative one."""
        k = int(np.count_nonzero(positive))
        if not self.is_grouped:
            return k, positive.size - k
        sides = (np.unique(self.of_row[side]).size for side in (positive, ~positive))
        return int(next(sides)), int(next(sides))


class Difference(NamedTuple):
    """A metric of two sets of scores of one category on the same rows."""

    before: float  # of the first
    after: float  # of the second
    estimate: Estimate  # of after − before
    # (n,) each row's part in the error; parts of a unit are added up before squaring
    shares: NDArray[np.float64]


def t_quantile(p: float, freedom: float) -> float:
    """Student's t: p in (0, 1) is the probability below it, freedom above 0."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, p))


def has_interval(metric: Metric) -> bool:
    """Whether the error of a metric is known: of those in `METRICS`, not of one's own."""
    return METRICS.get(metric.name) is metric


def reason_without_interval(n_positive: int, n_negative: int) -> str | None:
    """Why a category has no interval: "few_positives", "few_negatives", or None if it has one."""
    if n_positive < MIN_COUNT:
        return "few_positives"
    return "few_negatives" if n_negative < MIN_COUNT else None


def reason_without_difference(estimate: Estimate, *, is_same: bool) -> str | None:
    """Why not, as :func:`reason_without_interval`, or "unchanged", "order_unchanged", or None.

    `is_same`: both sets score every known row alike.
    """
    if is_same:
        return "unchanged"
    few = reason_without_interval(estimate.n_positive, estimate.n_negative)
    return few or ("order_unchanged" if estimate.error == 0.0 else None)


def estimate_of(
    metric: str,
    scores: NDArray[Any],
    positive: NDArray[np.bool_],
    units: Units,
    *,
    prevalence: float | None = None,
) -> tuple[Estimate, NDArray[np.float64]]:
    """A metric of one category with its standard error, and each row's part (n,) in that.

    Scores (n,) are of the known rows; one class is enough for metrics that are a mean over rows.
    """
    value, rows = influence(metric, scores, positive, prevalence=prevalence)
    counts, k = units.by_class(positive), int(np.count_nonzero(positive))
    shares = _corrected(rows / np.where(positive, k, rows.size - k), positive, counts)
    found = Estimate(value, math.sqrt(_square(shares, units)), *counts)
    usual = _usual_variance(metric, found, prevalence)
    return found._replace(usual_error=math.sqrt(usual)), shares


def difference_of(
    metric: str,
    before: NDArray[Any],
    after: NDArray[Any],
    positive: NDArray[np.bool_],
    units: Units,
) -> Difference | None:
    """As :func:`paired_difference`; None without both classes."""
    if positive.all() or not positive.any():
        return None
    return paired_difference(metric, before, after, positive, units)


def paired_difference(
    metric: str,
    before: NDArray[Any],
    after: NDArray[Any],
    positive: NDArray[np.bool_],
    units: Units,
    *,
    prevalence: float | None = None,
) -> Difference:
    """The difference of a metric of two (n,) scores of the same known rows, as `estimate_of`."""
    (old, own), (new, moved) = (
        estimate_of(metric, scores, positive, units, prevalence=prevalence)
        for scores in (before, after)
    )
    shares = moved - own
    found = Estimate(new.value - old.value, math.sqrt(_square(shares, units)), *new[2:4])
    usual = old.usual_error**2 + new.usual_error**2
    error = _usual_difference(metric, found, (own, moved), positive, units, usual=usual)
    return Difference(old.value, new.value, found._replace(usual_error=error), shares)


def _usual_variance(metric: str, estimate: Estimate, prevalence: float | None) -> float:
    """What the scarcer class usually adds to the variance of a score; NaN if that is not known.

    Of an AUROC as if the scores of that class were exponential (Hanley & McNeil 1982), of a share
    the binomial one; a share among many positives moves in what is left for it. Scores are taken
    a little away from their ends, as if there were one unit more.
    """
    k, n = estimate.n_positive, estimate.n_negative
    few = k if metric == "recall" else min(k, n)
    if not few:
        return math.nan
    if metric == "auroc":
        area = (few * estimate.value + 0.5) / (few + 1)
        return area * (1.0 - area) ** 2 / (2.0 - area) / few
    if metric not in _SHARES:
        return math.nan
    floor = k / (k + n) if prevalence is None else prevalence
    if metric == "recall":
        floor = 0.5
    share = (few * estimate.value + max(0.5, floor)) / (few + 1)
    return share * (1.0 - share) * min(1.0, 2.0 * (1.0 - floor)) / few


def _usual_difference(
    metric: str,
    estimate: Estimate,
    sides: tuple[NDArray[np.float64], NDArray[np.float64]],
    positive: NDArray[np.bool_],
    units: Units,
    *,
    usual: float,
) -> float:
    """The usual error of a difference: as much of two scores' variance as the commoner class moved.

    The commoner class's own part of the error stays what it is.
    """
    if metric not in _SPREAD:
        return math.nan
    is_common = positive if estimate.n_positive > estimate.n_negative else ~positive
    moved = sides[1] - sides[0]
    old, new, common = (_square(part * is_common, units) for part in (*sides, moved))
    if old + new == 0.0:
        return math.nan
    rest = max(estimate.error**2 - _square(moved * ~is_common, units), 0.0)
    return math.sqrt(_SPREAD[metric] * usual * common / (old + new) + rest)


def _square(shares: NDArray[np.float64], units: Units) -> float:
    """The sum of squares over units."""
    added = np.bincount(units.of_row, weights=shares) if units.is_grouped else shares
    return float(added @ added)


def _corrected(
    shares: NDArray[np.float64], positive: NDArray[np.bool_], counts: tuple[int, int]
) -> NDArray[np.float64]:
    """Shares times √(units / (units − 1)) of their class; NaN where it has one unit alone."""
    scale = [math.sqrt(n / (n - 1.0)) if n > 1 else math.nan for n in counts]
    return np.asarray(shares * np.where(positive, *scale))


def interval_of_difference(estimate: Estimate, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a difference on the same rows; NaN where there is none.

    There is none below :data:`MIN_COUNT`, and where no known pair of rows changed its order: then
    the error is 0, which says that nothing was seen, not that nothing changed.
    """
    if not _has_interval(estimate) or estimate.error == 0.0:
        return math.nan, math.nan
    error, freedom = _pooled(estimate, _UNITS_OF_DIFFERENCE)
    half = t_quantile(0.5 + level / 2.0, freedom) * error
    return estimate.value - half, estimate.value + half


def p_value(estimate: Estimate) -> float:
    """Two-sided, paired, of no difference; it agrees with the interval. NaN where there is none."""
    from scipy.special import stdtr

    if not _has_interval(estimate) or estimate.error == 0.0:
        return math.nan
    error, freedom = _pooled(estimate, _UNITS_OF_DIFFERENCE)
    return float(2.0 * stdtr(freedom, -abs(estimate.value) / error))


def interval_of_score(metric: str, estimate: Estimate, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a score; NaN below :data:`MIN_COUNT`."""
    if not _has_interval(estimate):
        return math.nan, math.nan
    tail = 0.5 + level / 2.0
    if metric != "auroc" and (bound := _exact(metric, estimate, tail)) is not None:
        return bound
    if metric in _SHARES:
        edge = 1.0 / (2.0 * estimate.n_positive * estimate.n_negative)
        value = min(max(estimate.value, edge), 1.0 - edge)
        error, freedom = _pooled(estimate, _UNITS_OF_SCORE)
        return _on_logit_scale(value, error, t_quantile(tail, freedom))
    quantile = t_quantile(tail, estimate.scarcer - 1)
    if metric == "log_loss":
        return _on_log_scale(estimate.value, estimate.error, quantile)
    own = _exact(metric, estimate, tail) or _on_logit_scale(
        estimate.value, estimate.error, quantile
    )
    if metric != "auroc":
        return own
    other = _newcombe(estimate, t_quantile(tail, math.inf))
    return min(own[0], other[0]), max(own[1], other[1])


def _exact(metric: str, estimate: Estimate, tail: float) -> tuple[float, float] | None:
    """The bound of as many equal outcomes, where all are right or all wrong and no error shows."""
    k = estimate.n_positive if metric == "recall" else estimate.scarcer
    reach = (1.0 - tail) ** (1.0 / max(k, 1))
    if estimate.value == 1.0 and metric in _ALL_RIGHT:
        return reach, 1.0
    return (0.0, 1.0 - reach) if estimate.value == 0.0 and metric in _ALL_WRONG else None


def interval_between(
    values: tuple[float, float], first: tuple[float, float], second: tuple[float, float]
) -> tuple[float, float]:
    """The interval of first less second `values`, scores of different rows, from their intervals.

    Source: Zou & Donner, Statistics in Medicine 27, 2008 (variance estimates recovery).
    """
    (a, b), (low_a, high_a), (low_b, high_b) = values, first, second
    low = a - b - math.hypot(a - low_a, high_b - b)
    return low, a - b + math.hypot(high_a - a, b - low_b)


def _has_interval(estimate: Estimate) -> bool:
    return estimate.scarcer >= MIN_COUNT and math.isfinite(estimate.error + estimate.value)


def _pooled(estimate: Estimate, units: int) -> tuple[float, float]:
    """An error pooled with the usual one, which counts for some units, and its freedom."""
    freedom = max(estimate.scarcer or max(estimate[2:4]), 2) - 1  # of one class: of its units
    if not math.isfinite(estimate.usual_error):
        return estimate.error, freedom
    total = freedom + units
    square = (freedom * estimate.error**2 + units * estimate.usual_error**2) / total
    return math.sqrt(square), total


def _on_logit_scale(value: float, error: float, quantile: float) -> tuple[float, float]:
    if not _EDGE < value < 1.0 - _EDGE:
        return math.nan, math.nan
    centre, half = math.log(value / (1.0 - value)), quantile * error / (value * (1.0 - value))
    return _expit(centre - half), _expit(centre + half)


def _expit(value: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * value))


def _on_log_scale(value: float, error: float, quantile: float) -> tuple[float, float]:
    if value <= 0.0:
        return math.nan, math.nan
    reach = math.exp(min(quantile * error / value, 700.0))
    return value / reach, value * reach


def _newcombe(estimate: Estimate, z: float) -> tuple[float, float]:
    """All areas from which the one seen is at most z of their own standard errors away."""
    n = estimate.n_positive * estimate.n_negative
    half = (estimate.n_positive + estimate.n_negative) / 2.0 - 1.0

    def is_near(area: float) -> bool:
        spread = 1.0 + half * (1.0 - area) / (2.0 - area) + half * area / (1.0 + area)
        return abs(estimate.value - area) <= z * math.sqrt(area * (1.0 - area) * spread / n)

    return _edge(is_near, estimate.value, 0.0), _edge(is_near, estimate.value, 1.0)


def _edge(is_near: Any, inside: float, outside: float) -> float:
    """Where a condition that holds at one end and not at the other changes, by bisection."""
    for _ in range(40):  # to 1e-12
        middle = (inside + outside) / 2.0
        inside, outside = (middle, outside) if is_near(middle) else (inside, middle)
    return inside


class Differences:
    """Paired differences of many categories: their intervals, and that of their mean.

    Attributes:
        low: (C,) lower ends; NaN where there is no interval.
        high: (C,) upper ends.
        reason: C times None, or why there is none (:func:`reason_without_difference`); those
            that are given, known before, stand.
        mean: over the categories that count.
    """

    def __init__(
        self,
        n_categories: int,
        units: Units,
        level: float = LEVEL,
        *,
        reason: Sequence[str | None] = (),
    ) -> None:
        self.low, self.high = np.full((2, n_categories), np.nan)
        self.reason: list[str | None] = list(reason) or [None] * n_categories
        self.mean = MeanError(units.n_units)
        self._units, self._level = units, level

    def add(
        self, c: int, found: Difference, rows: NDArray[Any], *, is_same: bool, counts: bool = True
    ) -> None:
        """Put in category c, with shares of rows (n,); `counts`: whether the mean covers it."""
        self.low[c], self.high[c] = interval_of_difference(found.estimate, self._level)
        if self.reason[c] is None:
            self.reason[c] = reason_without_difference(found.estimate, is_same=is_same)
        if counts:
            self.mean.add(found.estimate, found.shares, self._units.of_row[rows])


class MeanError:
    """The error of a mean over categories; errors that they share through rows count as shared.

    What pooling with the usual errors adds to the categories' own is added to the mean's.
    Degrees of freedom are Satterthwaite's; the mean over one category has that category's
    interval. A category with one unit of a class, whose error cannot be estimated, counts with
    the average of the others' per unit.
    """

    def __init__(self, n_units: int) -> None:
        self._total = np.zeros(n_units)
        self._estimates: list[Estimate] = []
        self._unknown: list[Estimate] = []

    def add(self, estimate: Estimate, shares: NDArray[np.float64], units: NDArray[Any]) -> None:
        """Count a category in, by each row's share (n,) of its error and the unit of each row."""
        if not math.isfinite(estimate.error):
            self._unknown.append(estimate)
            return
        self._estimates.append(estimate)
        np.add.at(self._total, units, shares)  # units of a category are few among all

    @property
    def n_categories(self) -> int:
        """Categories that were counted in."""
        return len(self._estimates) + len(self._unknown)

    @property
    def mean(self) -> float:
        """The mean of the values."""
        values = [one.value for one in (*self._estimates, *self._unknown)]
        return float(np.mean(values)) if values else math.nan

    def estimate(self, units: int = _UNITS_OF_DIFFERENCE) -> tuple[float, float]:
        """Standard error of the mean and its degrees of freedom; NaN where not known.

        The usual errors count for as many further `units`.
        """
        pooled = np.array([_pooled(one, units) for one in self._estimates]).reshape(-1, 2)
        own, freedom = pooled[:, 0] ** 2, pooled[:, 1]
        varies = own > 0
        if not varies.any():
            return math.nan, math.nan
        counts = [one.scarcer or max(one[2:4]) for one in self._estimates]
        per_unit = float((own * counts)[varies].mean())
        added = sum(per_unit / max(one.scarcer, 1) for one in self._unknown)
        added += max(float(own.sum()) - sum(one.error**2 for one in self._estimates), 0.0)
        variance = float(self._total @ self._total) + added
        total = own.sum() ** 2 / (own**2 / freedom).sum()
        return math.sqrt(variance) / self.n_categories, float(total)

    def interval_of_difference(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval of the mean difference; NaN where there is none."""
        if self.n_categories == 1 and self._estimates:
            return interval_of_difference(self._estimates[0], level)
        error, freedom = self.estimate()
        if not math.isfinite(error) or self._too_few():
            return math.nan, math.nan
        half = t_quantile(0.5 + level / 2.0, freedom) * error
        return self.mean - half, self.mean + half

    def interval_of_score(self, metric: str, level: float = LEVEL) -> tuple[float, float]:
        """The interval of the mean score, on the logit scale for what lies in [0, 1]."""
        if self._too_few():
            return math.nan, math.nan
        if self.n_categories == 1:
            return interval_of_score(metric, self._estimates[0], level)
        exact = [_exact(metric, one, 0.5 + level / 2.0) for one in self._estimates]
        bounds = [one for one in exact if one is not None]
        if self.mean in {0.0, 1.0} and bounds:
            low, high = np.mean(bounds, axis=0).tolist()
            return low, high
        error, freedom = self.estimate(_UNITS_OF_SCORE)
        if not math.isfinite(error):
            return math.nan, math.nan
        quantile = t_quantile(0.5 + level / 2.0, freedom)
        if metric == "log_loss":
            return _on_log_scale(self.mean, error, quantile)
        return _on_logit_scale(self.mean, error, quantile)

    def _too_few(self) -> bool:
        """Whether no category has enough units for an interval of its own."""
        return all(one.scarcer < MIN_COUNT for one in self._estimates)
