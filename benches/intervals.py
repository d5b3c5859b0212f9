"""How often intervals that say 95% hold what they should, and how wide they are.

    python benches/intervals.py [--samples 2000] [--part levels] [--json FILE]

Made-up populations whose true scores are known; k positives and 500 negatives (or the other way
round) are drawn again and again. Every table gives, over its populations, the mean coverage and the
worst one in per cent, the mean width, and that width over the width of the rule that it is
measured against. The rules are written here once more, for a batch of samples at a time; a part
of every batch is computed by catwise as well and must agree.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri, stdtr, stdtrit

from catwise.metrics.intervals import (
    MeanError,
    Units,
    difference_of,
    estimate_of,
    interval_between,
    interval_of_difference,
    interval_of_score,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

COUNTS = (3, 5, 10, 20, 50)
OTHERS = 500
METRICS = ("auroc", "average_precision")
CHECKED = 6  # samples of a batch that catwise computes as well
Z = float(ndtri(0.975))


class Population(NamedTuple):
    """Scores of positives and of negatives, and the distribution function of the negatives."""

    positives: Callable[..., NDArray[np.float64]]
    negatives: Callable[..., NDArray[np.float64]]
    below: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def truth(self, metric: str, prevalence: float) -> float:
        """The score of the whole population, by 400,000 positives."""
        return _truth(self, metric, prevalence)


@cache
def _truth(population: Population, metric: str, prevalence: float) -> float:
    high = np.sort(population.positives(np.random.default_rng(1), (400_000,)))[::-1]
    if metric == "auroc":
        return float(population.below(high).mean())
    true, false = (np.arange(high.size) + 0.5) / high.size, 1.0 - population.below(high)
    called = prevalence * true + (1.0 - prevalence) * false
    return float((prevalence * true / called).mean())


def shift_of(area: float, sd: float = 1.0) -> float:
    """How far apart two normal distributions are that have this AUROC."""
    return float(ndtri(area) * np.sqrt(1.0 + sd**2))


@cache
def binormal(area: float, sd: float = 1.0) -> Population:
    """Normal scores; those of the positives with their own standard deviation."""
    shift = shift_of(area, sd)
    return Population(
        lambda rng, shape: shift + sd * rng.standard_normal(shape),
        lambda rng, shape: rng.standard_normal(shape),
        ndtr,
    )


def mixed(share: float, low: float, high: float) -> Population:
    """A share of the positives is shifted by `low`, the others by `high`."""
    return Population(
        lambda rng, shape: (
            np.where(rng.random(shape) < share, low, high) + rng.standard_normal(shape)
        ),
        lambda rng, shape: rng.standard_normal(shape),
        ndtr,
    )


def students(shift: float) -> Population:
    """Heavy tails: three degrees of freedom."""
    return Population(
        lambda rng, shape: shift + rng.standard_t(3, shape),
        lambda rng, shape: rng.standard_t(3, shape),
        lambda x: stdtr(3, x),
    )


def exponential(scale: float) -> Population:
    """Skewed scores that start at 0."""
    return Population(
        lambda rng, shape: rng.exponential(scale, shape),
        lambda rng, shape: rng.exponential(1.0, shape),
        lambda x: -np.expm1(-x),
    )


POPULATIONS = {
    "binormal .70": binormal(0.70),
    "binormal .85": binormal(0.85),
    "binormal .95": binormal(0.95),
    "binormal .99": binormal(0.99),
    "30% as negatives": mixed(0.3, 0.0, 2.5),
    "SD 2": binormal(0.85, 2.0),
    "SD 0.5": binormal(0.85, 0.5),
    "Student's t": students(2.0),
    "exponential": exponential(5.0),
    "half easy": mixed(0.5, 1.0, 4.0),
}
#: AUROC before and after, on rows whose scores are correlated.
PAIRS = ((0.80, 0.80), (0.95, 0.95), (0.70, 0.75), (0.80, 0.85), (0.90, 0.95))
CORRELATION = 0.9


def paired(
    rng: np.random.Generator, pair: tuple[float, float], shape: tuple[int, int], k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of two heads on the same rows, of which the first k are positive."""
    before, own = rng.standard_normal(shape), rng.standard_normal(shape)
    after = CORRELATION * before + np.sqrt(1.0 - CORRELATION**2) * own
    before[:, :k] += shift_of(pair[0])
    after[:, :k] += shift_of(pair[1])
    return before, after


# The rules for a batch: (S, n) scores of S samples; k in each of their rows are positive.


class Influences(NamedTuple):
    """Scores of a batch, and what each row adds to them."""

    value: NDArray[np.float64]  # (S,)
    rows: NDArray[np.float64]  # (S, n)


def influences(
    metric: str, scores: NDArray[np.float64], positive: NDArray[np.bool_], k: int
) -> Influences:
    """AUROC or average precision of every sample, without ties."""
    order = np.argsort(-scores, axis=1)
    positive = np.take_along_axis(positive, order, axis=1)
    n = scores.shape[1] - k
    true = np.cumsum(positive, axis=1) / k
    false = np.cumsum(~positive, axis=1) / n
    rows = np.empty_like(scores)
    if metric == "auroc":
        value = ((1.0 - false) * positive).sum(axis=1) / k
        ordered = np.where(positive, 1.0 - false, true) - value[:, None]
    else:
        share = k / (k + n)
        called = share * true + (1.0 - share) * false
        precision = share * true / called
        value = (precision * positive).sum(axis=1) / k
        change = positive * share * (1.0 - share) / called**2
        by_true, by_false = change * false, -change * true
        from_here = [np.cumsum(x[:, ::-1], axis=1)[:, ::-1] for x in (by_true, by_false)]
        own = precision - value[:, None] + from_here[0] / k
        own -= (by_true * true).sum(axis=1, keepdims=True) / k
        reached = from_here[1] - (by_false * false).sum(axis=1, keepdims=True)
        ordered = np.where(positive, own, reached / k)
    np.put_along_axis(rows, order, ordered, axis=1)
    return Influences(value, rows)


class Batch(NamedTuple):
    """Scores, or differences, of S samples, and how unsure they are."""

    value: NDArray[np.float64]
    error: NDArray[np.float64]
    usual: NDArray[np.float64]  # variance
    k: int
    n: int
    shares: NDArray[np.float64]  # (S, n) parts of the error

    @property
    def few(self) -> int:
        """Units of the scarcer class."""
        return min(self.k, self.n)

    def pooled(self, units: int) -> tuple[NDArray[np.float64], int]:
        """The error pooled with the usual one, and its degrees of freedom."""
        freedom = self.few - 1
        square = (freedom * self.error**2 + units * self.usual) / (freedom + units)
        return np.sqrt(square), freedom + units


def usual_variance(metric: str, value: NDArray[np.float64], k: int, n: int) -> Any:
    few, floor = min(k, n), k / (k + n)
    if metric == "auroc":
        area = (few * value + 0.5) / (few + 1.0)
        return area * (1.0 - area) ** 2 / (2.0 - area) / few
    share = (few * value + max(0.5, floor)) / (few + 1.0)
    return share * (1.0 - share) * min(1.0, 2.0 * (1.0 - floor)) / few


def of_scores(
    metric: str, scores: NDArray[np.float64], positive: NDArray[np.bool_], k: int
) -> Batch:
    """As `catwise.metrics.intervals.estimate_of`, for a batch."""
    n = scores.shape[1] - k
    found = influences(metric, scores, positive, k)
    scale = np.where(positive, 1.0 / np.sqrt(k * (k - 1.0)), 1.0 / np.sqrt(n * (n - 1.0)))
    shares = found.rows * scale
    usual = usual_variance(metric, found.value, k, n)
    return Batch(found.value, np.linalg.norm(shares, axis=1), usual, k, n, shares)


def of_difference(
    metric: str,
    sides: tuple[NDArray[np.float64], NDArray[np.float64]],
    positive: NDArray[np.bool_],
    k: int,
) -> Batch:
    """As `catwise.metrics.intervals.difference_of`, for a batch."""
    (old_value, own), (new_value, other) = (
        (batch.value, batch.shares) for batch in (of_scores(metric, z, positive, k) for z in sides)
    )
    n, moved = positive.shape[1] - k, other - own
    is_common = positive if k > n else ~positive
    old, new, common = (((x * is_common) ** 2).sum(axis=1) for x in (own, other, moved))
    error = np.linalg.norm(moved, axis=1)
    spread = 0.75 if metric == "auroc" else 1.0 / 3.0
    usual = sum(usual_variance(metric, value, k, n) for value in (old_value, new_value))
    seen = np.where(old + new > 0.0, old + new, 1.0)  # else nothing moved, and there is no interval
    usual = spread * usual * common / seen + common
    return Batch(new_value - old_value, error, usual, k, n, moved)


Interval = tuple["NDArray[np.float64]", "NDArray[np.float64]"]


def student(freedom: Any) -> Any:
    return stdtrit(freedom, 0.975)


def on_logit_scale(value: Any, error: Any, quantile: Any) -> Interval:
    with np.errstate(divide="ignore", invalid="ignore"):
        half = quantile * error / (value * (1.0 - value))
        return expit(logit(value) - half), expit(logit(value) + half)


def newcombe(batch: Batch) -> Interval:
    """Method 5 of Newcombe (2006), by bisection."""
    half = (batch.k + batch.n) / 2.0 - 1.0

    def near(area: NDArray[np.float64]) -> NDArray[np.bool_]:
        spread = 1.0 + half * (1.0 - area) / (2.0 - area) + half * area / (1.0 + area)
        variance = area * (1.0 - area) * spread / (batch.k * batch.n)
        return np.asarray(np.abs(batch.value - area) <= Z * np.sqrt(variance))

    ends = []
    for outside in (np.zeros_like(batch.value), np.ones_like(batch.value)):
        inside, far = batch.value.copy(), outside
        for _ in range(45):
            middle = (inside + far) / 2.0
            is_near = near(middle)
            inside, far = np.where(is_near, middle, inside), np.where(is_near, far, middle)
        ends.append(inside)
    return ends[0], ends[1]


def of_auroc(batch: Batch) -> Interval:
    """The outer one of Newcombe's interval and of that on the logit scale."""
    own = on_logit_scale(batch.value, batch.error, student(batch.few - 1))
    reach = 0.025 ** (1.0 / batch.few)
    for end, (whole, none) in enumerate(((reach, 0.0), (1.0, 1.0 - reach))):
        own[end][batch.value == 1.0], own[end][batch.value == 0.0] = whole, none
    other = newcombe(batch)
    return np.minimum(own[0], other[0]), np.maximum(own[1], other[1])


def inside(batch: Batch) -> NDArray[np.float64]:
    """Values a little away from 0 and 1."""
    edge = 1.0 / (2.0 * batch.k * batch.n)
    return np.clip(batch.value, edge, 1.0 - edge)


def of_share(batch: Batch) -> Interval:
    """On the logit scale, with the pooled error."""
    error, freedom = batch.pooled(5)
    low, high = on_logit_scale(inside(batch), error, student(freedom))
    is_one = batch.value == 1.0
    return np.where(is_one, 0.025 ** (1.0 / batch.few), low), np.where(is_one, 1.0, high)


def of_gain(batch: Batch) -> Interval:
    """Student's t with the pooled error; none where nothing moved."""
    error, freedom = batch.pooled(2)
    half = np.where(batch.error > 0.0, student(freedom) * error, np.nan)
    return batch.value - half, batch.value + half


SCORES: dict[str, Callable[[Batch], Interval]] = {"auroc": of_auroc, "average_precision": of_share}

# The rules that these are measured against: the outer one for AUROC is the same.


def plain_share(batch: Batch) -> Interval:
    """The binomial variance around (k AP + ½) / (k + 1), whichever class is the scarcer."""
    share = (batch.few * batch.value + 0.5) / (batch.few + 1.0)
    variance = (batch.few - 1) * batch.error**2 + 5.0 * share * (1.0 - share) / batch.few
    error = np.sqrt(variance / (batch.few + 4))
    return on_logit_scale(inside(batch), error, student(batch.few + 4))


def plain_gain(batch: Batch) -> Interval:
    """Student's t with k − 1 degrees of freedom, nothing pooled."""
    half = np.where(batch.error > 0.0, student(batch.few - 1) * batch.error, np.nan)
    return batch.value - half, batch.value + half


PLAIN = {"auroc": of_auroc, "average_precision": plain_share}


# What catwise itself says of a few samples of a batch.


def units_of(n: int) -> Units:
    return Units(np.arange(n), is_grouped=False)


def check_scores(
    metric: str, scores: NDArray[np.float64], positive: NDArray[np.bool_], found: Interval
) -> None:
    for s in range(CHECKED):
        estimate, _ = estimate_of(metric, scores[s], positive[s], units_of(scores.shape[1]))
        said = interval_of_score(metric, estimate)
        np.testing.assert_allclose([found[0][s], found[1][s]], said, rtol=1e-6, atol=1e-9)


def check_differences(
    metric: str,
    sides: tuple[NDArray[np.float64], NDArray[np.float64]],
    positive: NDArray[np.bool_],
    found: Interval,
) -> None:
    for s in range(CHECKED):
        own = sides[0][s], sides[1][s], positive[s], units_of(positive.shape[1])
        said = difference_of(metric, *own)
        assert said is not None
        interval = interval_of_difference(said.estimate)
        np.testing.assert_allclose([found[0][s], found[1][s]], interval, rtol=1e-6, atol=1e-9)


class Cell(NamedTuple):
    """One population: coverage in per cent, mean width, and share of samples with an interval."""

    coverage: float
    width: float
    given: float


def measured(interval: Interval, truth: float) -> Cell:
    low, high = interval
    given = np.isfinite(low)
    holds = ((low <= truth) & (truth <= high))[given]
    return Cell(100.0 * holds.mean(), float((high - low)[given].mean()), 100.0 * given.mean())


def row_of(name: str, cells: dict[str, tuple[Cell, Cell | None]]) -> dict[str, Any]:
    """One line of a table, from the rule's and the plain rule's cells by population."""
    ours = {population: cell[0] for population, cell in cells.items()}
    plain = [cell[1] for cell in cells.values() if cell[1] is not None]
    worst = min(ours, key=lambda population: ours[population].coverage)
    width = float(np.mean([cell.width for cell in ours.values()]))
    return {
        "cell": name,
        "coverage": float(np.mean([cell.coverage for cell in ours.values()])),
        "worst": ours[worst].coverage,
        "of": worst,
        "width": width,
        "ratio": width / float(np.mean([cell.width for cell in plain])) if plain else None,
        "plain": float(np.mean([cell.coverage for cell in plain])) if plain else None,
        "plain_worst": min((cell.coverage for cell in plain), default=None),
        "given": min(cell.given for cell in ours.values()),
    }


# The tables.


def levels(samples: int, *, few_negatives: bool = False) -> list[dict[str, Any]]:
    """Scores of one head, k positives and 500 negatives or the other way round."""
    rows = []
    for metric in METRICS:
        for few in COUNTS:
            k, n = (OTHERS, few) if few_negatives else (few, OTHERS)
            positive = np.broadcast_to(np.arange(k + n) < k, (samples, k + n))
            cells: dict[str, tuple[Cell, Cell | None]] = {}
            for number, (name, population) in enumerate(POPULATIONS.items()):
                rng = np.random.default_rng([few, number, few_negatives])
                sides = (
                    population.positives(rng, (samples, k)),
                    population.negatives(rng, (samples, n)),
                )
                scores = np.concatenate(sides, axis=1)
                batch = of_scores(metric, scores, positive, k)
                found, truth = SCORES[metric](batch), population.truth(metric, k / (k + n))
                check_scores(metric, scores, positive, found)
                cells[name] = measured(found, truth), measured(PLAIN[metric](batch), truth)
            rows.append(row_of(f"{metric} {few}", cells))
    return rows


def differences(samples: int, *, few_negatives: bool = False) -> list[dict[str, Any]]:
    """Two heads on the same rows."""
    rows = []
    for metric in METRICS:
        for few in COUNTS:
            k, n = (OTHERS, few) if few_negatives else (few, OTHERS)
            positive = np.broadcast_to(np.arange(k + n) < k, (samples, k + n))
            cells: dict[str, tuple[Cell, Cell | None]] = {}
            for number, pair in enumerate(PAIRS):
                rng = np.random.default_rng([few, number, 0, few_negatives, 1])
                sides = paired(rng, pair, (samples, k + n), k)
                batch = of_difference(metric, sides, positive, k)
                found = of_gain(batch)
                check_differences(metric, sides, positive, found)
                old, new = (binormal(area).truth(metric, k / (k + n)) for area in pair)
                cells[f"{pair[0]:.2f} to {pair[1]:.2f}"] = (
                    measured(found, new - old),
                    measured(plain_gain(batch), new - old),
                )
            rows.append(row_of(f"{metric} {few}", cells))
    return rows


class Drawn(NamedTuple):
    """Several categories of the same rows, one after the other."""

    sides: tuple[NDArray[np.float64], NDArray[np.float64]]
    positive: NDArray[np.bool_]
    pair: tuple[float, float]


ROWS = 300


def correlated(samples: int, n_categories: int, counts: tuple[int, ...]) -> Iterator[Drawn]:
    """Categories whose labels and scores share half of their variance."""
    rng = np.random.default_rng([n_categories, *counts])
    shape, half = (samples, ROWS), np.sqrt(0.5)
    of_labels, before, after = (rng.standard_normal(shape) for _ in range(3))
    for c in range(n_categories):
        k, pair = counts[c % len(counts)], PAIRS[c % len(PAIRS)]
        latent = half * (of_labels + rng.standard_normal(shape))
        positive = np.zeros(shape, dtype=bool)
        top = np.argpartition(-latent, k - 1, axis=1)[:, :k]
        np.put_along_axis(positive, top, values=True, axis=1)
        old = half * (before + rng.standard_normal(shape))
        own = half * (after + rng.standard_normal(shape))
        new = CORRELATION * old + np.sqrt(1.0 - CORRELATION**2) * own
        areas = (shift_of(area) * positive for area in pair)
        yield Drawn((old + next(areas), new + next(areas)), positive, pair)


def means(samples: int) -> list[dict[str, Any]]:
    """Means over categories of the same rows: of differences, and of the second head's scores.

    A mean of average precisions should hold its own mean: few positives make it too high.
    """
    rows = []
    for metric in METRICS:
        for kind in ("difference", "score"):
            for counts in ((3,), (5,), (10,), (20,), (3, 5, 10, 50)):
                cells: dict[str, tuple[Cell, Cell | None]] = {}
                for n_categories in (2, 5, 20):
                    drawn = correlated(samples, n_categories, counts)
                    found, truth = mean_of(metric, kind, drawn)
                    cells[f"{n_categories} categories"] = measured(found, truth), None
                rows.append(row_of(f"{metric} {kind} {counts}", cells))
    return rows


def mean_of(metric: str, kind: str, drawn: Iterator[Drawn]) -> tuple[Interval, float]:
    """Intervals of a mean over categories, and what they should hold."""
    units = 2 if kind == "difference" else 5
    total: Any = 0.0
    errors, values, truths = [], [], []
    said = [MeanError(ROWS) for _ in range(CHECKED)]
    for one in drawn:
        k = int(one.positive[0].sum())
        if kind == "difference":
            batch = of_difference(metric, one.sides, one.positive, k)
        else:
            batch = of_scores(metric, one.sides[1], one.positive, k)
        total = total + batch.shares
        error, freedom = batch.pooled(units)
        errors.append((batch.error**2, error**2, np.full(error.shape, float(freedom))))
        values.append(batch.value)
        areas = (binormal(area).truth(metric, k / ROWS) for area in one.pair)
        truths.append(-next(areas) * (kind == "difference") + next(areas))
        add_to(said, metric, kind, one)
    plain, own, freedom = np.array(errors).transpose(1, 0, 2)
    n, mean = len(values), np.mean(values, axis=0)
    variance = (total**2).sum(axis=1) + np.maximum((own - plain).sum(axis=0), 0.0)
    quantile = student(own.sum(axis=0) ** 2 / (own**2 / freedom).sum(axis=0))
    error = np.sqrt(variance) / n
    if kind == "difference":
        found = mean - quantile * error, mean + quantile * error
    else:
        found = on_logit_scale(mean, error, quantile)
    for s, whole in enumerate(said):
        is_gain = kind == "difference"
        ends = whole.interval_of_difference() if is_gain else whole.interval_of_score(metric)
        np.testing.assert_allclose([found[0][s], found[1][s]], ends, rtol=1e-6, atol=1e-9)
    is_own = kind == "score" and metric == "average_precision"
    return found, float(mean.mean()) if is_own else float(np.mean(truths))


def add_to(said: list[MeanError], metric: str, kind: str, one: Drawn) -> None:
    """Count a category in as catwise does."""
    units = units_of(ROWS)
    for s, mean in enumerate(said):
        if kind == "difference":
            found = difference_of(metric, one.sides[0][s], one.sides[1][s], one.positive[s], units)
            assert found is not None
            mean.add(found.estimate, found.shares, units.of_row)
        else:
            mean.add(*estimate_of(metric, one.sides[1][s], one.positive[s], units), units.of_row)


def groups(samples: int) -> list[dict[str, Any]]:
    """Differences of rows in groups of three that share their label and half of their noise.

    By catwise itself, and the same with the groups not told.
    """
    rows = []
    for metric in METRICS:
        for few in COUNTS:
            cells: dict[str, tuple[Cell, Cell | None]] = {}
            for number, pair in enumerate(PAIRS):
                rng = np.random.default_rng([few, number, 3])
                found: list[list[tuple[float, float]]] = [[], []]
                truths = [binormal(a).truth(metric, few / (few + OTHERS)) for a in pair]
                for _ in range(samples):
                    sides, positive, units = grouped(rng, pair, few)
                    for side, one in enumerate((units, units_of(positive.size))):
                        said = difference_of(metric, *sides, positive, one)
                        assert said is not None
                        found[side].append(interval_of_difference(said.estimate))
                cells[f"{pair[0]:.2f} to {pair[1]:.2f}"] = tuple(  # type: ignore[assignment]
                    measured(tuple(np.array(one).T), truths[1] - truths[0]) for one in found
                )
            rows.append(row_of(f"{metric} {few}", cells))
    return rows


def grouped(
    rng: np.random.Generator, pair: tuple[float, float], few: int
) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_], Units]:
    """Three rows of each of `few` groups of positives and 500 of negatives."""
    of_row = np.repeat(np.arange(few + OTHERS), 3)
    positive = of_row < few
    half = np.sqrt(0.5)
    noise = [
        half * (rng.standard_normal(few + OTHERS)[of_row] + rng.standard_normal(of_row.size))
        for _ in range(2)
    ]
    after = CORRELATION * noise[0] + np.sqrt(1.0 - CORRELATION**2) * noise[1]
    sides = noise[0] + shift_of(pair[0]) * positive, after + shift_of(pair[1]) * positive
    return sides, positive, Units(of_row, is_grouped=True)


def sources(samples: int) -> list[dict[str, Any]]:
    """Scores of one head on two sources of rows, such as training and fresh ones."""
    rows = []
    for metric in METRICS:
        for few in COUNTS:
            positive = np.broadcast_to(np.arange(few + OTHERS) < few, (samples, few + OTHERS))
            cells: dict[str, tuple[Cell, Cell | None]] = {}
            for number, pair in enumerate(PAIRS):
                rng = np.random.default_rng([few, number, 4])
                sides = []
                for area in pair:
                    noise = rng.standard_normal((samples, few + OTHERS))
                    batch = of_scores(metric, noise + shift_of(area) * positive, positive, few)
                    sides.append((batch.value, SCORES[metric](batch)))
                (old, (old_low, old_high)), (new, (new_low, new_high)) = sides
                low = new - old - np.hypot(new - new_low, old_high - old)
                high = new - old + np.hypot(new_high - new, old - old_low)
                said = interval_between(
                    (new[0], old[0]), (new_low[0], new_high[0]), (old_low[0], old_high[0])
                )
                np.testing.assert_allclose([low[0], high[0]], said)
                truths = [binormal(a).truth(metric, few / (few + OTHERS)) for a in pair]
                name = f"{pair[0]:.2f} to {pair[1]:.2f}"
                cells[name] = measured((low, high), truths[1] - truths[0]), None
            rows.append(row_of(f"{metric} {few}", cells))
    return rows


PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "levels": levels,
    "levels, few negatives": lambda samples: levels(samples, few_negatives=True),
    "differences": differences,
    "differences, few negatives": lambda samples: differences(samples, few_negatives=True),
    "means over categories": means,
    "groups (samples / 10)": lambda samples: groups(max(samples // 10, CHECKED)),
    "two sources": sources,
}


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table in Markdown; the last two columns are those of the rule measured against."""
    print(f"\n{title}\n")
    print("| | coverage (worst) | worst in | width | with an interval | width / plain | plain |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        against = "| – | – |"
        if row["ratio"] is not None:
            against = f"| {row['ratio']:.2f} | {row['plain']:.1f} ({row['plain_worst']:.1f}) |"
        print(
            f"| {row['cell']} | {row['coverage']:.1f} ({row['worst']:.1f}) | {row['of']} "
            f"| {row['width']:.3f} | {row['given']:.1f} {against}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2_000, help="of each population")
    parser.add_argument("--part", choices=PARTS, action="append", help="one table (repeatable)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tables = {}
    for part in args.part or PARTS:
        tables[part] = PARTS[part](args.samples)
        show(part, tables[part])
    if args.json is not None:
        args.json.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
