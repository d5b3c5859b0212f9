"""Influence functions: values as the kernels', derivatives as finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catwise.errors import ConfigError
from catwise.metrics import METRICS, bootstrap_replicates
from catwise.metrics.influence import influence

NAMES = sorted(METRICS)


def case(seed=0, *, rows=60, ties=False):
    rng = np.random.default_rng(seed)
    positive = rng.random(rows) < 0.3
    positive[:2] = True, False
    scores = rng.normal(size=rows) + positive
    return (np.round(scores * 3) / 3 if ties else scores), positive


def kernel(name, scores, positive, weight=None, **options):
    codes = torch.from_numpy(positive.astype(np.int8))
    weight = None if weight is None else torch.from_numpy(weight)
    return float(METRICS[name].columns(torch.from_numpy(scores), codes, weight=weight, **options))


def standard_error(given, positive, groups=None):
    k = np.where(positive, positive.sum(), (~positive).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = given.rows / np.sqrt(k * (k - 1.0))
    return np.linalg.norm(shares if groups is None else np.bincount(groups, shares))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_value_is_the_kernels(name, ties):
    """To rounding, ties included."""
    scores, positive = case(ties=ties)
    assert influence(name, scores, positive).value == pytest.approx(
        kernel(name, scores, positive), abs=1e-12
    )


@pytest.mark.parametrize("name", ["average_precision", "precision", "f1", "best_f1"])
def test_a_stated_prevalence_is_taken(name):
    """As the kernels take it."""
    scores, positive = case()
    value = influence(name, scores, positive, prevalence=0.05).value
    assert value == pytest.approx(kernel(name, scores, positive, prevalence=0.05), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "ties"),
    # two thresholds with the same best F1 are a kink; so are the bins of the calibration error,
    # and ties where the partial AUROC ends
    [
        (n, t)
        for n in NAMES
        for t in (False, True)
        if n != "ece" and (n, t) not in {("best_f1", True), ("partial_auroc", True)}
    ],
)
def test_rows_are_derivatives_by_weight(name, ties):
    """Moving a little weight from its class to one row changes the metric by its influence."""
    scores, positive = case(3, ties=ties)
    given, step = influence(name, scores, positive), 1e-6
    for row in range(0, scores.size, 7):
        same = positive == positive[row]
        changed = []
        for sign in (1.0, -1.0):
            weight = np.where(same, 1.0 - sign * step, 1.0)
            weight[row] += sign * step * same.sum()
            changed.append(kernel(name, scores, positive, weight))
        slope = (changed[0] - changed[1]) / (2 * step)
        assert given.rows[row] == pytest.approx(slope, abs=2e-6)


def test_calibration_error_holds_its_bins():
    """Within the bins of the sample the derivative is exact."""
    scores, positive = case(5, rows=300)
    given = influence("ece", scores, positive)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(300, np.full(300, 1 / 300), size=400)
    values = [kernel("ece", scores, positive, w.astype(float)) for w in weights]
    assert given.rows[positive].mean() == pytest.approx(0.0, abs=1e-12)
    assert given.rows[~positive].mean() == pytest.approx(0.0, abs=1e-12)
    assert 0.4 < standard_error(given, positive) / np.std(values) < 2.5


@pytest.mark.parametrize("name", NAMES)
def test_rows_have_mean_zero_in_each_class(name):
    """Nothing changes when nothing is resampled."""
    scores, positive = case(1)
    rows = influence(name, scores, positive).rows
    assert abs(rows[positive].mean()) < 1e-12
    assert abs(rows[~positive].mean()) < 1e-12


@pytest.mark.parametrize("name", ["average_precision", "auroc", "f1", "brier", "log_loss"])
def test_the_standard_error_is_the_bootstraps(name):
    """Within what 500 replicates can tell."""
    scores, positive = case(2, rows=600)
    codes = positive.astype(np.int8)[:, None]
    replicates = bootstrap_replicates((scores[:, None],), codes, name, n_resamples=500)[0]
    error = standard_error(influence(name, scores, positive), positive)
    assert error == pytest.approx(replicates.std(), rel=0.15)


def test_rows_of_a_group_count_together():
    """Every row twice with one group is as good as every row once."""
    scores, positive = case(4, rows=200)
    twice, both = np.repeat(scores, 2), np.repeat(positive, 2)
    groups = np.repeat(np.arange(200), 2)
    once = standard_error(influence("auroc", scores, positive), positive)
    grouped = standard_error(influence("auroc", twice, both), both, groups)
    alone = standard_error(influence("auroc", twice, both), both)
    assert grouped == pytest.approx(once, rel=0.02)
    assert alone < 0.8 * once


def test_single_precision_and_half_are_taken():
    """Half precision widens exactly."""
    scores, positive = case()
    half = scores.astype(np.float16)
    for dtype in (np.float32, np.float64):
        assert (
            influence("auroc", half, positive)[0]
            == influence("auroc", half.astype(dtype), positive).value
        )


def test_one_row_of_a_class_has_no_standard_error():
    """There is no spread to see."""
    scores, positive = np.arange(4.0), np.array([True, False, False, False])
    assert not np.isfinite(standard_error(influence("auroc", scores, positive), positive))


def test_an_unknown_metric_is_refused():
    """The message lists those that work."""
    with pytest.raises(ConfigError, match="no influence function"):
        influence("accuracy", np.arange(2.0), np.array([True, False]))
