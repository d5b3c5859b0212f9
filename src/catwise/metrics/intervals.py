"""The one rule for intervals: of a score, of the difference of two, and of means of either.

Everything rests on influence functions (:mod:`catwise.metrics.influence`). Units are rows, or
groups where rows have groups: what goes together is added up before it is squared. With k units
in the scarcer class:

- a **difference** of two heads on the same rows is ``d ± t(k − 1) · se``. Where scores are
  averages over folds, each positive's influence counts with its fold's difference and is centred
  on the mean over all folds: centred inside a fold, the only positive of a fold has none;
- a **score** that ranks (AUROC) has the outer one of Newcombe's score interval and of
  ``expit(logit v ± t(k − 1) · se / (v (1 − v)))``;
- a **score that is a share** (average precision, precision, recall, F1) has the latter with its
  variance pooled with the binomial one, which counts as 5 further units;
- below 3 units of a class there is no interval, and a reason.

Percentile and BCa bootstrap intervals miss 20 to 40% of the time with 3 to 10 positives, which is
why none is used; ``benches/intervals.py`` measures the coverage of these.

Source: DeLong et al., Biometrics 44, 1988; Efron, Biometrika 68, 1981; Newcombe, Statistics in
Medicine 25, 2006 (method 5); Satterthwaite, Biometrics Bulletin 2, 1946 (means).

>>> interval_of_difference(Estimate(0.04, 0.01, 12, 80))
(0.017..., 0.062...)
>>> interval_of_difference(Estimate(0.04, 0.01, 2, 80))
(nan, nan)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from catwise.metrics.influence import influence

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LEVEL",
    "MIN_COUNT",
    "Difference",
    "Estimate",
    "MeanError",
    "Units",
    "difference_of",
    "estimate_of",
    "interval_of_difference",
    "interval_of_score",
    "p_value",
    "reason_without_interval",
    "t_quantile",
]

LEVEL: Final = 0.95
"""Confidence level where nobody names another."""

MIN_COUNT: Final = 3
"""Known positives, and known negatives, below which there is no interval."""

#: Metrics that are a share of positives or of what is called; the others in [0, 1] are not.
_SHARES: Final = frozenset(
    {"average_precision", "partial_auroc", "precision", "recall", "f1", "best_f1"}
)
#: Units that the binomial variance of a share counts for.
_BINOMIAL_UNITS: Final = 5
_EDGE: Final = 1e-12


class Estimate(NamedTuple):
    """A score of one category, or a difference of two, and how unsure it is.

    Attributes:
        value: the score or difference; NaN where a class is not known.
        error: standard error; NaN or infinite where it cannot be estimated.
        n_positive: units with a known positive.
        n_negative: units with a known negative.
    """

    value: float
    error: float
    n_positive: int
    n_negative: int

    @property
    def scarcer(self) -> int:
        """Units of the scarcer class."""
        return min(self.n_positive, self.n_negative)


class Units(NamedTuple):
    """What is counted as one: rows, or groups of rows.

    Attributes:
        of_row: (n,) int64 unit of each row.
        is_grouped: whether a unit may hold several rows.
    """

    of_row: NDArray[np.int64]
    is_grouped: bool

    def count(self, rows: NDArray[Any]) -> int:
        """How many units these rows belong to."""
        return int(np.unique(self.of_row[rows]).size) if self.is_grouped else int(rows.size)


class Difference(NamedTuple):
    """A metric of two sets of scores of one category on the same rows.

    Attributes:
        before: of the first; with folds the average over folds by their positives.
        after: of the second, likewise.
        estimate: of after − before.
        shares: (n,) each row's part in the error; parts of a unit are added up before squaring.
    """

    before: float
    after: float
    estimate: Estimate
    shares: NDArray[np.float64]


def t_quantile(p: float, freedom: float) -> float:
    """Student's t.

    Args:
        p: probability below it, in (0, 1).
        freedom: degrees of freedom, above 0.

    >>> round(t_quantile(0.975, 2), 2), round(t_quantile(0.975, 10), 2)
    (4.3, 2.23)
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, p))


def reason_without_interval(n_positive: int, n_negative: int) -> str | None:
    """Why a category has no interval: "few_positives", "few_negatives", or None if it has one.

    >>> reason_without_interval(2, 900), reason_without_interval(3, 3)
    ('few_positives', None)
    """
    if n_positive < MIN_COUNT:
        return "few_positives"
    return "few_negatives" if n_negative < MIN_COUNT else None


def estimate_of(
    metric: str,
    scores: NDArray[Any],
    positive: NDArray[np.bool_],
    units: Units,
    *,
    prevalence: float | None = None,
) -> tuple[Estimate, NDArray[np.float64]]:
    """A metric of one category with its standard error, and each row's part in that.

    Args:
        metric: name of a metric that has an influence function.
        scores: (n,) logits of the known rows.
        positive: (n,) bool, with both classes.
        units: of these rows.
        prevalence: share of positives to assume.
    """
    value, rows = influence(metric, scores, positive, prevalence=prevalence)
    shares = _scaled(rows, positive)
    return _estimate(value, shares, positive, units), shares


def difference_of(
    metric: str,
    before: NDArray[Any],
    after: NDArray[Any],
    positive: NDArray[np.bool_],
    units: Units,
    *,
    fold: NDArray[Any] | None = None,
    prevalence: float | None = None,
) -> Difference | None:
    """The difference of a metric between two sets of scores on the same known rows.

    Args:
        metric: as in :func:`estimate_of`.
        before: (n,) logits.
        after: (n,) logits.
        positive: (n,) bool.
        units: of these rows.
        fold: (n,) part of each row, or None for one part. Scores are taken inside a part and
            averaged by its positives; parts without both classes are left out.
        prevalence: share of positives to assume.

    Returns:
        None where no part has both classes.
    """
    parts = [np.arange(positive.size)] if fold is None else _parts(fold)
    centred, used, total = np.zeros(positive.size), np.zeros(positive.size, bool), 0
    sums = np.zeros(2)
    for rows in parts:
        side = positive[rows]
        k = int(side.sum())
        if k in {0, rows.size}:
            continue
        old, new = (
            influence(metric, scores[rows], side, prevalence=prevalence)
            for scores in (before, after)
        )
        moved = new.rows - old.rows
        centred[rows] = np.where(side, moved + (new.value - old.value), moved * k / (rows.size - k))
        sums += k * np.array([old.value, new.value])
        used[rows] = True
        total += k
    if not total:
        return None
    values = sums / total
    gain = float(values[1] - values[0])
    centred[used & positive] -= gain
    shares = np.zeros(positive.size)
    shares[used] = _scaled_folds(centred[used], positive[used])
    kept = Units(units.of_row[used], units.is_grouped)
    estimate = _estimate(gain, shares[used], positive[used], kept)
    return Difference(float(values[0]), float(values[1]), estimate, shares)


def _parts(fold: NDArray[Any]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(fold == part) for part in np.unique(fold)]


def _scaled(rows: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Influences as parts of an error: divided by √(k (k − 1)) of their class."""
    k = np.bincount(positive, minlength=2).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1.0 / np.sqrt(k * (k - 1.0))
        return np.asarray(rows * scale[positive.astype(np.int64)])


def _scaled_folds(rows: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """As `_scaled`, for influences whose negatives are weighted by positives over negatives."""
    k, n = int(positive.sum()), int((~positive).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        of_positive = 1.0 / np.sqrt(k * (k - 1.0))
        of_negative = np.sqrt(n / (n - 1.0)) / k
        return np.asarray(np.where(positive, rows * of_positive, rows * of_negative))


def _estimate(
    value: float, shares: NDArray[np.float64], positive: NDArray[np.bool_], units: Units
) -> Estimate:
    added = np.bincount(units.of_row, weights=shares) if units.is_grouped else shares
    counts = (units.count(np.flatnonzero(side)) for side in (positive, ~positive))
    return Estimate(value, float(np.linalg.norm(added)), *counts)


def interval_of_difference(estimate: Estimate, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a difference on the same rows; NaN where there is none.

    There is none below :data:`MIN_COUNT`, and where no known pair of rows changed its order: then
    the error is 0, which says that nothing was seen, not that nothing changed.

    Args:
        estimate: of the difference.
        level: confidence level, in (0, 1).
    """
    if not _has_interval(estimate) or estimate.error == 0.0:
        return math.nan, math.nan
    half = t_quantile(0.5 + level / 2.0, estimate.scarcer - 1) * estimate.error
    return estimate.value - half, estimate.value + half


def p_value(estimate: Estimate) -> float:
    """Two-sided, paired, of no difference; it agrees with the interval. NaN where there is none."""
    from scipy.special import stdtr

    if not _has_interval(estimate) or estimate.error == 0.0:
        return math.nan
    return float(2.0 * stdtr(estimate.scarcer - 1, -abs(estimate.value) / estimate.error))


def interval_of_score(metric: str, estimate: Estimate, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a score; NaN below :data:`MIN_COUNT`.

    Args:
        metric: its name.
        estimate: of the score.
        level: confidence level, in (0, 1).
    """
    if not _has_interval(estimate):
        return math.nan, math.nan
    k, tail = estimate.scarcer, 0.5 + level / 2.0
    if metric == "log_loss":
        return _on_log_scale(estimate, t_quantile(tail, k - 1))
    if metric in _SHARES:
        return _on_logit_scale(*_with_binomial(estimate), t_quantile(tail, k + 4))
    own = _on_logit_scale(estimate.value, estimate.error, t_quantile(tail, k - 1))
    if metric != "auroc":
        return own
    if estimate.value in {0.0, 1.0}:  # no error: the exact bound of k equal outcomes
        reach = (1.0 - tail) ** (1.0 / k)
        own = (reach, 1.0) if estimate.value else (0.0, 1.0 - reach)
    other = _newcombe(estimate, t_quantile(tail, math.inf))
    return min(own[0], other[0]), max(own[1], other[1])


def _has_interval(estimate: Estimate) -> bool:
    return estimate.scarcer >= MIN_COUNT and math.isfinite(estimate.error + estimate.value)


def _with_binomial(estimate: Estimate) -> tuple[float, float]:
    """A share away from 0 and 1, and its error pooled with the binomial one."""
    k = estimate.scarcer
    share = (k * estimate.value + 0.5) / (k + 1)
    variance = (k - 1) * estimate.error**2 + _BINOMIAL_UNITS * share * (1.0 - share) / k
    edge = 1.0 / (2.0 * estimate.n_positive * estimate.n_negative)
    value = min(max(estimate.value, edge), 1.0 - edge)
    return value, math.sqrt(variance / (k - 1 + _BINOMIAL_UNITS))


def _on_logit_scale(value: float, error: float, quantile: float) -> tuple[float, float]:
    if not _EDGE < value < 1.0 - _EDGE:
        return math.nan, math.nan
    centre, half = math.log(value / (1.0 - value)), quantile * error / (value * (1.0 - value))
    return _expit(centre - half), _expit(centre + half)


def _expit(value: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * value))


def _on_log_scale(estimate: Estimate, quantile: float) -> tuple[float, float]:
    if estimate.value <= 0.0:
        return math.nan, math.nan
    reach = math.exp(min(quantile * estimate.error / estimate.value, 700.0))
    return estimate.value / reach, estimate.value * reach


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
    for _ in range(50):
        middle = (inside + outside) / 2.0
        inside, outside = (middle, outside) if is_near(middle) else (inside, middle)
    return inside


class MeanError:
    """The error of a mean over categories; errors that they share through rows count as shared.

    Degrees of freedom are Satterthwaite's, so that the mean over one category has that
    category's interval. A category with one unit of a class, whose error cannot be estimated,
    counts with the average of the others' per unit.

    Args:
        n_units: units that there are in all rows.
    """

    def __init__(self, n_units: int) -> None:
        self._total = np.zeros(n_units)
        self._estimates: list[Estimate] = []
        self._unknown: list[Estimate] = []

    def add(self, estimate: Estimate, shares: NDArray[np.float64], units: NDArray[Any]) -> None:
        """Count a category in.

        Args:
            estimate: its score or difference.
            shares: (n,) each row's part in its error.
            units: (n,) unit of each row.
        """
        if not math.isfinite(estimate.error):
            self._unknown.append(estimate)
            return
        self._estimates.append(estimate)
        self._total += np.bincount(units, weights=shares, minlength=self._total.size)

    @property
    def n_categories(self) -> int:
        """Categories that were counted in."""
        return len(self._estimates) + len(self._unknown)

    @property
    def mean(self) -> float:
        """The mean of the values."""
        values = [one.value for one in (*self._estimates, *self._unknown)]
        return float(np.mean(values)) if values else math.nan

    def estimate(self) -> tuple[float, float]:
        """Standard error of the mean and its degrees of freedom; NaN where not known."""
        errors = np.array([one.error for one in self._estimates])
        counts = np.array([one.scarcer for one in self._estimates], dtype=np.float64)
        varies = errors > 0
        if not varies.any():
            return math.nan, math.nan
        per_unit = float((errors[varies] ** 2 * counts[varies]).mean())
        added = sum(per_unit / max(one.scarcer, 1) for one in self._unknown)
        variance = float(self._total @ self._total) + added
        own = errors[varies] ** 2
        freedom = own.sum() ** 2 / (own**2 / np.maximum(counts[varies] - 1.0, 1.0)).sum()
        return math.sqrt(variance) / self.n_categories, float(freedom)

    def interval_of_difference(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval of the mean difference; NaN where there is none."""
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
        error, freedom = self.estimate()
        if not math.isfinite(error):
            return math.nan, math.nan
        error = math.hypot(error, self._binomial_part(metric))
        quantile = t_quantile(0.5 + level / 2.0, freedom)
        if metric == "log_loss":
            return _on_log_scale(Estimate(self.mean, error, 0, 0), quantile)
        return _on_logit_scale(self.mean, error, quantile)

    def _too_few(self) -> bool:
        """Whether no category has enough units for an interval of its own."""
        return all(one.scarcer < MIN_COUNT for one in self._estimates)

    def _binomial_part(self, metric: str) -> float:
        """What pooling with the binomial variance adds to the error of the mean."""
        if metric not in _SHARES:
            return 0.0
        added = sum(_with_binomial(one)[1] ** 2 - one.error**2 for one in self._estimates)
        return math.sqrt(max(added, 0.0)) / self.n_categories
