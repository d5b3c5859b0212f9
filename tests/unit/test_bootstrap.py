"""Paired bootstrap: weights, strata, groups, intervals; Benjamini–Hochberg."""

from __future__ import annotations

import numpy as np
import pytest

from catwise.errors import ConfigError, ShapeError
from catwise.metrics import (
    METRICS,
    benjamini_hochberg,
    bootstrap_replicates,
    paired_bootstrap,
)
from catwise.metrics import bootstrap as module


def case(seed: int = 0, *, rows: int = 200, categories: int = 6):
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.array([0, 0, 0, 1, -1], dtype=np.int8), size=(rows, categories))
    base = rng.normal(size=codes.shape) + (codes == 1)
    return base, base + rng.normal(size=codes.shape), codes


def draw(codes, units=None, seed=0):
    """Weights of one category's known rows in the first chunk."""
    rows = np.flatnonzero(codes >= 0)
    units = np.arange(codes.size) if units is None else units
    resampler = module.Resampler(units, seed=seed)
    strata = resampler.strata(rows, codes[rows] == 1)
    return rows, resampler.weights(strata, resampler.layers(0), 0, key="x")


def test_positives_and_negatives_are_drawn_apart():
    """Every replicate has as many positives and negatives as the sample."""
    codes = case()[2][:, 0]
    rows, weights = draw(codes)
    assert np.all(weights[:, codes[rows] == 1].sum(axis=1) == (codes == 1).sum())
    assert np.all(weights[:, codes[rows] == 0].sum(axis=1) == (codes == 0).sum())
    assert weights.min() == 0


def test_weights_have_the_moments_of_a_multinomial():
    """Shared layers leave mean 1, variance 1 − 1/k and covariance −1/k."""
    codes = np.zeros(8, dtype=np.int8)
    codes[:5] = 1
    weights = np.concatenate([draw(codes, seed=seed)[1] for seed in range(100)])[:, :5]
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.04)
    covariance = np.cov(weights.T)
    np.testing.assert_allclose(np.diag(covariance), 0.8, atol=0.05)
    np.testing.assert_allclose(covariance[~np.eye(5, dtype=bool)], -0.2, atol=0.05)


def test_a_row_weighs_alike_in_all_categories():
    """Categories share their draws, so that a mean's interval sees correlated errors."""
    codes = np.zeros((400, 2), dtype=np.int8)
    codes[:100, 0] = codes[50:150, 1] = 1
    resampler = module.Resampler(np.arange(400), seed=0)
    layers, rows = resampler.layers(0), np.arange(400)
    first, second = (
        resampler.weights(resampler.strata(rows, codes[:, c] == 1), layers, 0, key=str(c))
        for c in range(2)
    )
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.7


def test_groups_are_drawn_whole():
    """All known rows of a patient have one weight."""
    codes = case()[2][:, 0]
    units = np.arange(codes.size) // 5
    rows, weights = draw(codes, units)
    for unit in np.unique(units[rows]):
        assert np.all(np.ptp(weights[:, units[rows] == unit], axis=1) == 0)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_replicates_equal_the_metric_on_materialised_duplicates(name):
    """A weight of 2 is the row twice, for every metric."""
    base, _, codes = case(1, rows=60, categories=2)
    base = np.round(base * 3) / 3
    (found,) = bootstrap_replicates([base], codes, name, n_resamples=5, seed=4)
    for c in range(2):
        resampler = module.Resampler(np.arange(60), seed=4)
        rows = np.flatnonzero(codes[:, c] >= 0)
        strata = resampler.strata(rows, codes[rows, c] == 1)
        weights = resampler.weights(strata, resampler.layers(0), 0, key=str(c))
        for r in range(5):
            again = np.repeat(rows, weights[r])
            expected = METRICS[name].per_category(base[again, c][:, None], codes[again, c][:, None])
            assert found[r, c] == pytest.approx(float(expected[0]), abs=1e-12)


def test_both_sides_get_the_same_weights():
    """Equal logits differ by exactly 0 in every replicate, and p is 1."""
    base, _, codes = case()
    result = paired_bootstrap(base, base * 2 + 1, codes, n_resamples=50)
    assert np.array_equal(result.replicates_a, result.replicates_b)
    assert result.mean_p_value == 1.0
    assert result.mean_interval == (0.0, 0.0)


def test_a_clear_loss_is_found():
    """Noise added to informative logits lowers AP in the mean, with a small p-value."""
    base, noisy, codes = case(rows=400)
    result = paired_bootstrap(base, noisy, codes, n_resamples=200, seed=1)
    assert result.mean_difference < 0
    assert result.mean_interval[1] < 0
    assert result.mean_p_value == pytest.approx(2 / 201)
    assert np.all(result.interval[:, 0] <= result.difference)
    assert np.all(result.difference <= result.interval[:, 1])


def test_undefined_categories_are_left_out_of_the_mean():
    """One class only: NaN, and the mean says how many categories it covers."""
    base, noisy, codes = case()
    codes[:, 2] = 0
    result = paired_bootstrap(base, noisy, codes, n_resamples=20)
    assert np.isnan(result.difference[2])
    assert np.isnan(result.interval[2]).all()
    assert np.isnan(result.p_value[2])
    assert result.n_categories == 5
    assert np.isfinite(result.mean_interval).all()


def test_same_seed_same_result_and_more_replicates_extend_it():
    """Draws are keyed by seed and replicate; another seed gives others."""
    base, noisy, codes = case()
    few = bootstrap_replicates([base, noisy], codes, "auroc", n_resamples=30, seed=5)
    many = bootstrap_replicates([base, noisy], codes, "auroc", n_resamples=130, seed=5)
    other = bootstrap_replicates([base, noisy], codes, "auroc", n_resamples=30, seed=6)
    assert np.array_equal(few[1], many[1][:30])
    assert not np.array_equal(few[1], other[1])


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """AUROC 0.5 for both: the 90% interval of the difference holds 0 in most samples."""
    rng = np.random.default_rng(0)
    codes = (rng.random((120, 60)) < 0.3).astype(np.int8)
    a, b = rng.normal(size=(2, 120, 60))
    result = paired_bootstrap(a, b, codes, "auroc", n_resamples=200, level=0.9)
    inside = (result.interval[:, 0] <= 0) & (result.interval[:, 1] >= 0)
    assert 0.75 <= inside.mean() <= 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": 1.0}, "level"), ({"n_resamples": 0}, "replicates"), ({"metric": "ap"}, "unknown")],
)
def test_bad_options_are_refused(options, message):
    """Each with its own message."""
    base, noisy, codes = case()
    with pytest.raises(ConfigError, match=message):
        paired_bootstrap(base, noisy, codes, **options)


def test_groups_of_another_length_are_refused():
    """One group for each row."""
    base, noisy, codes = case()
    with pytest.raises(ShapeError, match="groups"):
        paired_bootstrap(base, noisy, codes, groups=np.zeros(3))


def test_benjamini_hochberg_equals_the_definition():
    """The largest k with p_(k) ≤ k·level/m, and all below it; NaN is no hypothesis."""
    p = np.array([0.001, np.nan, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205])
    assert benjamini_hochberg(p, 0.05).tolist() == [True, False, True] + [False] * 6
    assert not benjamini_hochberg([np.nan, np.nan]).any()
    assert benjamini_hochberg([0.04, 0.05]).all()
    with pytest.raises(ConfigError):
        benjamini_hochberg(p, 0.0)
