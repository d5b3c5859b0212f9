"""Paired, stratified bootstrap of metrics, by group, with integer row weights.

A replicate draws, for each category apart, as many positives as there are from the positives
and as many negatives from the negatives, with replacement; a row drawn twice has the weight 2,
nothing is copied. With groups (patients), whole groups are drawn: those that hold a positive
of the category apart from those that do not. Both sides of a comparison get the same weights.

The draws of different categories share their randomness as far as the strata allow: in every
replicate a row that weighs much in one category weighs much in the others, because it is the
same image. So the interval of a mean over categories counts correlated errors as such, while
each category's own draw is exactly multinomial.

Percentile intervals are right from some 50 positives on. With 3, 5, 10 and 20 positives, of which
95% are to hold the truth, 60, 73, 81 and 87% do (AUROC), 75, 84, 90 and 92% (average precision),
and 77 to 92% of those of a difference: :mod:`catwise.metrics.intervals` does better, and is what
everything else in catwise uses.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._arrays import as_numpy
from catwise.errors import ConfigError, IdError, ShapeError
from catwise.labels import PartialLabels
from catwise.metrics.inputs import (
    Array,
    checked_labels,
    checked_logits,
    known_rows,
    label_shape,
)
from catwise.metrics.registry import Metric, resolve_metric

#: Replicates drawn at once: fixed, because the random streams are cut here.
_CHUNK = 100
#: Mean weights of the shared layers of a draw; together a little under 1.
_LAYERS = (0.7, 0.15, 0.1)
#: Metrics whose weighted form the fast ranking below computes.
_RANKING = ("average_precision", "auroc")


@dataclass(frozen=True)
class PairedBootstrap:
    """The difference b − a of a metric between two sets of logits on the same labels.

    Args:
        metric: name of the metric.
        categories: names, (C,).
        difference: (C,) float64 b − a on the rows themselves; NaN where undefined.
        interval: (C, 2) float64 lower and upper percentile of the difference.
        standard_error: (C,) float64, standard deviation of the replicates.
        p_value: (C,) float64, two-sided, counted: twice the smaller share of replicates on
            one side of 0, at least ``2 / (n_resamples + 1)``.
        mean_difference: mean over the `n_categories` categories defined for both.
        mean_interval: lower and upper percentile of that mean.
        mean_p_value: as `p_value`, of the mean.
        n_categories: categories that the mean covers.
        n_resamples: replicates.
        level: confidence level of the intervals.
        replicates_a: (R, C) float64 metric of a in each replicate.
        replicates_b: (R, C) float64 metric of b in the same replicates.
    """

    metric: str
    categories: tuple[str, ...]
    difference: NDArray[np.float64]
    interval: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    p_value: NDArray[np.float64]
    mean_difference: float
    mean_interval: tuple[float, float]
    mean_p_value: float
    n_categories: int
    n_resamples: int
    level: float
    replicates_a: NDArray[np.float64]
    replicates_b: NDArray[np.float64]


def paired_bootstrap(
    logits_a: Array,
    logits_b: Array,
    labels: PartialLabels | Array,
    metric: str | Metric = "average_precision",
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: Array | Sequence[Any] | None = None,
) -> PairedBootstrap:
    """Compare two sets of logits on the same rows, per category and in the mean.

    With few positives the intervals are too short (see the module);
    :func:`~catwise.metrics.compare_logits` has better ones.

    Args:
        logits_a: (N, C) float, for example of the original head.
        logits_b: (N, C) float, for example of the tuned head.
        labels: (N, C) `PartialLabels` or int8 codes; hard known labels count.
        metric: name or `Metric`.
        n_resamples: replicates, at least 1.
        level: confidence level of the percentile intervals, in (0, 1).
        seed: of the draws, which are keyed by it, the replicates and the category's name.
        groups: (N,) group of each row; by default those of the labels, if they have any.

    Returns:
        Differences b − a with intervals; their sign is the metric's, so for a loss a negative
        difference is an improvement.

    Raises:
        ShapeError: If logits, labels and groups do not fit together.
        ConfigError: If an option is out of range.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13 (percentile)
    and 16 (two samples).
    """
    chosen = resolve_metric(metric)
    if not 0.0 < level < 1.0:
        raise ConfigError("the level of an interval", found=f"level={level}", expected="in (0, 1)")
    plain = [chosen.per_category(x, labels).cpu().numpy() for x in (logits_a, logits_b)]
    a, b = bootstrap_replicates(
        (logits_a, logits_b), labels, chosen, n_resamples=n_resamples, seed=seed, groups=groups
    )
    difference, replicates = plain[1] - plain[0], b - a
    covered = np.isfinite(difference)
    mean = float(difference[covered].mean()) if covered.any() else float("nan")
    means = row_means(replicates[:, covered])
    low, high = percentile_interval(means[:, None], level)[0]
    return PairedBootstrap(
        metric=chosen.name,
        categories=category_names(labels),
        difference=difference,
        interval=percentile_interval(replicates, level),
        standard_error=_standard_error(replicates),
        p_value=_p_values(replicates, difference),
        mean_difference=mean,
        mean_interval=(float(low), float(high)),
        mean_p_value=float(_p_values(means[:, None], np.array([mean]))[0]),
        n_categories=int(covered.sum()),
        n_resamples=n_resamples,
        level=level,
        replicates_a=a,
        replicates_b=b,
    )


def bootstrap_replicates(
    logits: Sequence[Array],
    labels: PartialLabels | Array,
    metric: str | Metric,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    groups: Array | Sequence[Any] | None = None,
) -> list[NDArray[np.float64]]:
    """A metric of several sets of logits (N, C) in the same bootstrap replicates.

    One (R, C) float64 array for each set; NaN where a category is undefined, or (with groups)
    where a replicate happened to draw one class only. Arguments and errors are those of
    :func:`paired_bootstrap`.
    """
    if n_resamples < 1:
        raise ConfigError("too few replicates", found=f"{n_resamples}", expected="at least 1")
    chosen = resolve_metric(metric)
    labels = checked_labels(labels)
    shape = label_shape(labels)
    sets = [checked_logits(one, shape).cpu() for one in logits]
    resampler = Resampler(_groups(labels, groups, shape[0]), seed=seed)
    columns = [
        _Column.build(name, known_rows(labels, c), [one[:, c] for one in sets], resampler, chosen)
        for c, name in enumerate(category_names(labels))
    ]
    results = [np.full((n_resamples, shape[1]), np.nan) for _ in sets]
    for chunk, start in enumerate(range(0, n_resamples, _CHUNK)):
        stop = min(start + _CHUNK, n_resamples)
        layers = resampler.layers(chunk)
        for c, column in enumerate(columns):
            if column.strata is None:
                continue
            weights = resampler.weights(column.strata, layers, chunk, key=column.name)
            for result, scorer in zip(results, column.scorers, strict=True):
                result[start:stop, c] = scorer(weights)[: stop - start]
    return results


class _Strata(NamedTuple):
    """The units (rows, or groups) of one category that are drawn apart."""

    units: tuple[NDArray[np.int64], ...]
    rows: NDArray[np.int64]  # (n,) place of each known row's unit in the joined strata


class Resampler:
    """Bootstrap weights that categories share as far as their strata allow; `units` (N,) of rows.

    A chunk of replicates has three shared layers of Poisson counts for all units. A stratum
    of k units takes the layers while their sum stays at most k and draws the rest at random:
    given its sum, a vector of independent Poisson counts is multinomial, so the weights of a
    stratum are exactly multinomial with k draws, whatever was shared.
    """

    __slots__ = ("n_units", "seed", "units")

    def __init__(self, units: NDArray[np.int64], *, seed: int) -> None:
        self.units = units
        self.n_units = int(units.max(initial=-1)) + 1
        self.seed = seed

    def strata(self, rows: NDArray[np.int64], positive: NDArray[np.bool_]) -> _Strata:
        """Units with a positive among `rows`, and the others among them."""
        units, place = np.unique(self.units[rows], return_inverse=True)
        with_positive = np.bincount(place[positive], minlength=units.size) > 0
        order = np.argsort(~with_positive, kind="stable")
        back = np.empty(units.size, dtype=np.int64)
        back[order] = np.arange(units.size)
        split = int(with_positive.sum())
        return _Strata((units[order[:split]], units[order[split:]]), back[place])

    def layers(self, chunk: int) -> list[NDArray[np.uint8]]:
        """(100, U) counts of each shared layer for one chunk of replicates."""
        rng = np.random.default_rng([self.seed, chunk])
        shape = (_CHUNK, self.n_units)
        return [rng.poisson(rate, shape).astype(np.uint8) for rate in _LAYERS]

    def weights(
        self, strata: _Strata, layers: list[NDArray[np.uint8]], chunk: int, *, key: str
    ) -> NDArray[np.int64]:
        """(100, n) integer weights of the known rows of one category in one chunk."""
        rng = np.random.default_rng([self.seed, chunk, zlib.crc32(key.encode())])
        parts = [_multinomial(units, layers, rng) for units in strata.units if units.size]
        return np.concatenate(parts, axis=1)[:, strata.rows]


def _multinomial(
    units: NDArray[np.int64], layers: list[NDArray[np.uint8]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Exactly multinomial counts with k draws over k units, near the shared layers."""
    k = units.size
    weights = np.zeros((_CHUNK, k), dtype=np.int64)
    left = np.full(_CHUNK, k, dtype=np.int64)
    for layer in layers:
        counts = layer[:, units]
        total = counts.sum(axis=1, dtype=np.int64)
        fits = total <= left
        weights[fits] += counts[fits]
        left[fits] -= total[fits]
    drawn = np.repeat(np.arange(_CHUNK) * k, left) + rng.integers(k, size=int(left.sum()))
    weights += np.bincount(drawn, minlength=_CHUNK * k).reshape(_CHUNK, k)
    return weights


class _Column(NamedTuple):
    """One category: what is drawn, and how each set of logits is scored."""

    name: str
    strata: _Strata | None  # None where the metric is undefined
    scorers: list[Any]  # weights (R, n) -> (R,)

    @staticmethod
    def build(
        name: str,
        known: tuple[NDArray[np.int64], NDArray[np.bool_]],
        columns: list[torch.Tensor],
        resampler: Resampler,
        metric: Metric,
    ) -> _Column:
        rows, positive = known
        if not metric.covers(positive):
            return _Column(name, None, [])
        index = torch.from_numpy(rows)
        kind: Any = _Ranked if metric.name in _RANKING else _Scored
        scorers = [kind(column[index], positive, metric) for column in columns]
        return _Column(name, resampler.strata(rows, positive), scorers)


class _Scored:
    """Any metric through its own kernel; the scores are sorted once for all replicates."""

    def __init__(self, scores: torch.Tensor, positive: NDArray[np.bool_], metric: Metric) -> None:
        self.scores, self.columns = scores, metric.columns
        self.codes = torch.from_numpy(positive.astype(np.int8))

    def __call__(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.columns(self.scores, self.codes, weight=weights).numpy()


class _Ranked:
    """AP and AUROC: both classes are sorted once; a replicate only accumulates weights."""

    def __init__(self, scores: torch.Tensor, positive: NDArray[np.bool_], metric: Metric) -> None:
        wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        array = -wide.numpy()
        at_p, at_n = np.flatnonzero(positive), np.flatnonzero(~positive)
        self.positives = at_p[np.argsort(array[at_p], kind="stable")]
        self.negatives = at_n[np.argsort(array[at_n], kind="stable")]
        high, low = array[self.positives], array[self.negatives]
        self.last = high.searchsorted(high, "right") - 1  # last positive of each tie
        self.ge = low.searchsorted(high, "right")  # negatives at least as high
        self.gt = low.searchsorted(high, "left")
        self.is_auroc = metric.name == "auroc"

    def __call__(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        positive = weights[:, self.positives].astype(np.float64)
        negative = np.zeros((len(weights), self.negatives.size + 1))
        np.cumsum(weights[:, self.negatives], axis=1, out=negative[:, 1:])
        n_positive, n_negative = positive.sum(axis=1), negative[:, -1]
        false = negative[:, self.ge]
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.is_auroc:
                beaten = (positive * (false + negative[:, self.gt])).sum(axis=1)
                value = 1.0 - beaten / (2.0 * n_positive * n_negative)
            else:
                true = np.cumsum(positive, axis=1)[:, self.last]
                precision = np.where(positive > 0, true / (true + false), 0.0)
                value = (positive * precision).sum(axis=1) / n_positive
        undefined = (n_positive == 0) | (n_negative == 0)
        return np.asarray(np.where(undefined, np.nan, value))


def benjamini_hochberg(p_values: Array, level: float = 0.05) -> NDArray[np.bool_]:
    """Which hypotheses to reject so that at most `level` of the rejected are false, on average.

    `p_values` (K,) are in [0, 1]; NaN is no hypothesis: it is neither counted nor rejected.
    ConfigError if the level, the false discovery rate, is not inside (0, 1).

    Source: Benjamini & Hochberg, "Controlling the false discovery rate", JRSS B 57, 1995.

    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.9]).tolist()
    [True, False, False, False]
    """
    if not 0.0 < level < 1.0:
        raise ConfigError("the false discovery rate", found=f"level={level}", expected="in (0, 1)")
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")  # NaN last
    m = int(np.isfinite(p).sum())
    passed = np.flatnonzero(p[order[:m]] <= level * np.arange(1, m + 1) / max(m, 1))
    rejected = np.zeros(p.shape, dtype=bool)
    if passed.size:
        rejected[order[: passed[-1] + 1]] = True
    return rejected


def percentile_interval(replicates: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """(C, 2) percentiles of (R, C) replicates, those that are NaN left out."""
    tail = (1.0 - level) / 2.0
    interval = np.full((replicates.shape[1], 2), np.nan)
    for c, column in enumerate(replicates.T):
        finite = column[np.isfinite(column)]
        if finite.size:
            interval[c] = np.quantile(finite, [tail, 1.0 - tail])
    return interval


def row_means(replicates: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) means over the categories that are defined in each replicate."""
    finite = np.isfinite(replicates)
    count = finite.sum(axis=1)
    total = np.where(finite, replicates, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def category_names(labels: PartialLabels | Array) -> tuple[str, ...]:
    """The labels' category names, or their numbers."""
    names = getattr(labels, "categories", None)
    if names is None:
        return tuple(str(c) for c in range(label_shape(labels)[1]))
    return tuple(names)


def _standard_error(replicates: NDArray[np.float64]) -> NDArray[np.float64]:
    errors = np.full(replicates.shape[1], np.nan)
    for c, column in enumerate(replicates.T):
        finite = column[np.isfinite(column)]
        if finite.size > 1:
            errors[c] = finite.std(ddof=1)
    return errors


def _p_values(
    replicates: NDArray[np.float64], difference: NDArray[np.float64]
) -> NDArray[np.float64]:
    finite = np.isfinite(replicates).sum(axis=0)
    below, above = (replicates <= 0).sum(axis=0), (replicates >= 0).sum(axis=0)
    p = np.minimum(1.0, 2.0 * (1.0 + np.minimum(below, above)) / (1.0 + finite))
    return np.where(np.isfinite(difference) & (finite > 0), p, np.nan)


def _groups(
    labels: PartialLabels | Array, groups: Array | Sequence[Any] | None, n_rows: int
) -> NDArray[np.int64]:
    """(N,) int64 unit of each row: its group, or itself."""
    if groups is None:
        return labels.units() if isinstance(labels, PartialLabels) else np.arange(n_rows)
    array = as_numpy(groups, name="groups", error=IdError)
    if array.shape != (n_rows,):
        raise ShapeError(
            "groups do not fit the labels",
            found=f"groups {array.shape}, labels of {n_rows} rows",
            expected="one group for each row",
        )
    return np.unique(array, return_inverse=True)[1].astype(np.int64)
