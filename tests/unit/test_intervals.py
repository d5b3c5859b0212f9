"""The one rule for intervals, against plain twins and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from catwise.metrics import METRICS, compare_logits
from catwise.metrics.intervals import (
    Estimate,
    MeanError,
    Units,
    difference_of,
    estimate_of,
    interval_between,
    interval_of_difference,
    interval_of_score,
    p_value,
    reason_without_interval,
    t_quantile,
)


def sample(seed: int, k: int = 6, n: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two sets of scores and the labels of k positives and n negatives."""
    rng = np.random.default_rng(seed)
    positive = rng.permutation(np.arange(k + n) < k)
    before = rng.normal(size=k + n) + positive
    return before, before + 0.5 * rng.normal(size=k + n), positive


def rows_of(positive: np.ndarray) -> Units:
    """Every row its own unit."""
    return Units(np.arange(positive.size), is_grouped=False)


def auroc_parts(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's placements by a plain loop: one value for each positive and each negative."""
    high, low = scores[positive], scores[~positive]
    psi = np.array([[(h > x) + 0.5 * (h == x) for x in low] for h in high])
    return psi.mean(1), psi.mean(0)


def test_a_difference_has_delongs_error() -> None:
    """AUROC's paired error is DeLong's, each class with its n − 1."""
    before, after, positive = sample(0)
    found = difference_of("auroc", before, after, positive, rows_of(positive))
    assert found is not None
    old, new = auroc_parts(before, positive), auroc_parts(after, positive)
    variance = sum((b - a).var(ddof=1) / a.size for a, b in zip(old, new, strict=True))
    assert found.estimate.value == pytest.approx(new[0].mean() - old[0].mean())
    assert found.estimate.error == pytest.approx(math.sqrt(variance))
    low, high = interval_of_difference(found.estimate._replace(usual_error=math.nan))
    assert (high - low) / 2 == pytest.approx(t_quantile(0.975, 5) * math.sqrt(variance))


def test_the_positives_part_of_an_error_is_pooled_with_the_usual_one() -> None:
    """Hanley and McNeil's, by how far the heads move the negatives; it counts as two positives."""
    before, after, positive = sample(0)
    found = difference_of("auroc", before, after, positive, rows_of(positive))
    assert found is not None
    (of_k, of_n), (new_k, new_n) = auroc_parts(before, positive), auroc_parts(after, positive)
    moved = (new_n - of_n).var() / (of_n.var() + new_n.var())
    usual = 0.0
    for area in (of_k.mean(), new_k.mean()):
        inner = (6 * area + 0.5) / 7
        usual += inner * (1 - inner) ** 2 / (2 - inner) / 6
    own = (new_k - of_k).var(ddof=1) / 6
    variance = (5 * own + 2 * 0.75 * moved * usual) / 7 + (new_n - of_n).var(ddof=1) / 80
    low, high = interval_of_difference(found.estimate)
    assert (high - low) / 2 == pytest.approx(t_quantile(0.975, 7) * math.sqrt(variance))
    p = p_value(found.estimate._replace(value=(high - low) / 2))
    assert p == pytest.approx(0.05)


def test_nothing_is_pooled_where_the_other_class_tells_nothing() -> None:
    """Recall depends on positives alone; losses have no usual error."""
    before, after, positive = sample(0)
    for metric in ("recall", "log_loss", "brier", "ece"):
        found = difference_of(metric, before, after, positive, rows_of(positive))
        assert found is not None
        assert math.isnan(found.estimate.usual_error)


def test_an_interval_between_two_sources_joins_their_own() -> None:
    """Each end is as far as the root of the squares of what each source allows."""
    low, high = interval_between((0.9, 0.7), (0.86, 0.95), (0.6, 0.73))
    assert low == pytest.approx(0.2 - math.hypot(0.04, 0.03))
    assert high == pytest.approx(0.2 + math.hypot(0.05, 0.10))


def test_few_negatives_do_not_make_a_high_average_precision_uncertain() -> None:
    """Among 500 positives and 5 negatives it lies near 1, whatever the head does."""
    rng = np.random.default_rng(3)
    positive = np.arange(505) < 500
    scores = rng.normal(size=505) + positive
    estimate, _ = estimate_of("average_precision", scores, positive, rows_of(positive))
    low, high = interval_of_score("average_precision", estimate)
    assert 0.9 < low < estimate.value < high <= 1.0


def test_groups_are_one_unit() -> None:
    """Every row four times in a group: the error is that of the rows once."""
    before, after, positive = sample(3)
    copied = [np.repeat(x, 4) for x in (before, after, positive)]
    units = Units(np.repeat(np.arange(positive.size), 4), is_grouped=True)
    once = difference_of("auroc", before, after, positive, rows_of(positive))
    grouped = difference_of("auroc", copied[0], copied[1], copied[2], units)
    assert once is not None
    assert grouped is not None
    assert grouped.estimate.n_positive == once.estimate.n_positive
    assert grouped.estimate == pytest.approx(once.estimate)


@pytest.mark.parametrize(("n_positive", "n_negative"), [(2, 90), (90, 2), (0, 0)])
def test_no_interval_from_fewer_than_three(n_positive: int, n_negative: int) -> None:
    """Below 3 of a class there is neither an interval nor a p-value, and a reason."""
    estimate = Estimate(0.9, 0.01, n_positive, n_negative)
    assert np.isnan(interval_of_difference(estimate)).all()
    assert np.isnan(interval_of_score("auroc", estimate)).all()
    assert math.isnan(p_value(estimate))
    assert reason_without_interval(n_positive, n_negative) in {"few_positives", "few_negatives"}


def test_no_known_pair_that_changed_its_order_is_not_known() -> None:
    """An error of 0 says that nothing was seen: no interval "0 to 0"."""
    assert np.isnan(interval_of_difference(Estimate(0.0, 0.0, 40, 40))).all()
    before, _, positive = sample(4)
    labels = positive[:, None].astype(np.int8)
    found = compare_logits(before[:, None], 2 * before[:, None] + 1, labels, "auroc")
    assert found.reason == ("order_unchanged",)
    assert found.outcome == ("no_difference",)
    assert found.verdict == "not_judged"


def test_t_quantiles_are_exact_with_few_degrees_of_freedom() -> None:
    """Values of printed tables."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 10: 2.228, 120: 1.980}
    for freedom, value in table.items():
        assert t_quantile(0.975, freedom) == pytest.approx(value, abs=5e-4)


def test_the_interval_of_an_auroc_holds_newcombes() -> None:
    """Every area inside is near by its own error; just outside neither rule holds it."""
    estimate = Estimate(0.85, 0.04, 10, 500)
    low, high = interval_of_score("auroc", estimate)

    def is_near(area: float) -> bool:
        n = (10 + 500) / 2 - 1
        spread = 1 + n * (1 - area) / (2 - area) + n * area / (1 + area)
        return bool(abs(0.85 - area) <= 1.959964 * math.sqrt(area * (1 - area) * spread / 5000))

    areas = np.linspace(0.001, 0.999, 2000)
    near = areas[[is_near(area) for area in areas]]
    assert low <= near.min()
    assert high >= near.max()
    assert 0.0 < low < 0.85 < high < 1.0


def test_a_perfect_auroc_has_an_exact_bound() -> None:
    """With 3 positives above all negatives the lower end is 0.025 to the power of 1/3."""
    low, high = interval_of_score("auroc", Estimate(1.0, 0.0, 3, 500))
    assert low == pytest.approx(0.025 ** (1 / 3), abs=1e-6)
    assert high == 1.0


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_has_an_interval_that_holds_its_value(metric: str) -> None:
    """Scores lie inside their own intervals, and these inside the metric's range."""
    before, _, positive = sample(5, k=12, n=60)
    estimate, _ = estimate_of(metric, before, positive, rows_of(positive))
    low, high = interval_of_score(metric, estimate)
    assert 0.0 <= low <= estimate.value <= high
    assert high <= 1.0 or metric == "log_loss"


def test_the_mean_over_one_category_has_that_categorys_interval() -> None:
    """One rule for a category and for the mean over it alone."""
    before, after, positive = sample(6)
    units = rows_of(positive)
    found = difference_of("average_precision", before, after, positive, units)
    assert found is not None
    mean = MeanError(positive.size)
    mean.add(found.estimate, found.shares, units.of_row)
    assert mean.interval_of_difference() == pytest.approx(interval_of_difference(found.estimate))


def test_errors_that_categories_share_count_as_shared() -> None:
    """The mean over a category and its copy is as unsure as the category."""
    before, after, positive = sample(7)
    units = rows_of(positive)
    found = difference_of("auroc", before, after, positive, units)
    assert found is not None
    mean = MeanError(positive.size)
    plain = found.estimate._replace(usual_error=math.nan)
    for _ in range(2):
        mean.add(plain, found.shares, units.of_row)
    assert mean.estimate()[0] == pytest.approx(plain.error)


def test_a_mean_of_perfect_scores_has_an_interval() -> None:
    """Two categories ranked without a mistake: the lower end says how little that is."""
    scores = np.concatenate([np.ones(5), np.zeros(40)]) + np.linspace(0.0, 0.1, 45)
    positive = np.arange(45) < 5
    for metric in ("auroc", "average_precision"):
        mean = MeanError(45)
        for _ in range(2):
            mean.add(*estimate_of(metric, scores, positive, rows_of(positive)), np.arange(45))
        low, high = mean.interval_of_score(metric)
        assert 0.0 <= low < 0.99
        assert high > 0.99


def test_a_category_with_one_positive_widens_the_mean() -> None:
    """Its error is not known; it counts with that of the others for each positive."""
    before, after, positive = sample(8)
    units = rows_of(positive)
    found = difference_of("auroc", before, after, positive, units)
    assert found is not None
    mean = MeanError(positive.size)
    plain = found.estimate._replace(usual_error=math.nan)
    mean.add(plain, found.shares, units.of_row)
    mean.add(Estimate(0.1, math.inf, 1, 80), found.shares, units.of_row)
    error, _ = mean.estimate()
    assert error == pytest.approx(plain.error * math.sqrt(1 + 6) / 2)


def test_a_category_of_one_group_of_positives_widens_the_mean_too() -> None:
    """Four rows of one group are one unit: how much such units vary is not known."""
    before, after, positive = sample(9, k=4)
    units = Units(np.where(positive, 0, np.arange(positive.size)), is_grouped=True)
    found = difference_of("auroc", before, after, positive, units)
    assert found is not None
    assert found.estimate.n_positive == 1
    assert np.isnan(interval_of_difference(found.estimate)).all()
    mean = MeanError(positive.size)
    mean.add(found.estimate, found.shares, units.of_row)
    assert mean.n_categories == 1
    assert np.isnan(mean.interval_of_difference()).all()


def comparison(shift: float) -> object:
    """Two categories of 60 positives, the second head better by `shift`."""
    rng = np.random.default_rng(9)
    codes = (rng.random((600, 3)) < 0.1).astype(np.int8)
    codes[:, 2] = -1
    noise = rng.normal(size=codes.shape)
    before = noise + 0.7 * (codes == 1)
    return compare_logits(before, before + shift * (codes == 1), codes, "auroc")


@pytest.mark.parametrize(
    ("shift", "verdict", "word"), [(1.0, "helped", "Helped"), (-1.0, "harmed", "Harmed")]
)
def test_the_sentence_says_what_was_found(shift: float, verdict: str, word: str) -> None:
    """Verdict, rows, means, interval and counts stand in one sentence."""
    found = comparison(shift)
    assert found.verdict == verdict  # type: ignore[attr-defined]
    text = found.sentence()  # type: ignore[attr-defined]
    assert text.startswith(f"{word}: on 600 test rows the mean AUROC went from ")
    assert "95% interval" in text
    assert "1 not judged" in text


def test_a_loss_is_better_when_it_falls() -> None:
    """The sign of a difference is the metric's; the verdict is the reader's."""
    before, _, positive = sample(10, k=40, n=200)
    codes = positive[:, None].astype(np.int8)
    good = np.where(positive, 2.0, -2.0)[:, None] + 0.1 * before[:, None]
    found = compare_logits(before[:, None], good, codes, "log_loss")
    assert found.mean_difference < 0
    assert found.verdict == "helped"
    assert found.outcome == ("better",)
