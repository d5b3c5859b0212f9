"""Slopes that categories share, against scipy's minimiser; unknown labels drawn as negatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from catwise.tuning.fits.directions import fit_directions, with_drawn_negatives
from catwise.tuning.fits.shared import SharedRows, fit_shared
from catwise.tuning.rows.tuning_rows import TuningRows


def drawn(n_categories=4, n_rows=120, heads=3, seed=0):
    """(J, C, n) logits, labels that two of them tell, and which are known."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(heads, n_categories, n_rows)) + rng.normal(
        size=(heads, n_categories, 1)
    )
    odds = 1.5 * logits[0] - 0.7 * logits[-1] + rng.normal(size=(n_categories, 1))
    target = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float)
    known = (rng.random(odds.shape) < rng.uniform(0.2, 0.9, (n_categories, 1))).astype(float)
    fold = rng.integers(0, 3, n_rows)
    return logits, target, known, np.broadcast_to(fold, odds.shape)


def shared_rows(logits, target, known, fold):
    tensors = (torch.from_numpy(np.ascontiguousarray(a)) for a in (logits, target, known))
    return SharedRows.of(*tensors, torch.from_numpy(fold.copy()).to(torch.int8))


def plainly(logits, target, known, ridge):
    """The objective as written, minimised by scipy; J slopes."""
    n_heads, n_categories, _ = logits.shape
    positives = (target * known).sum(1)
    balance = (positives + 10) ** -0.5
    unit = positives.sum() / (balance * positives).sum()
    centred = logits - ((logits * known).sum(2) / known.sum(1))[:, :, None]
    spread = np.sqrt((centred**2 * known).sum((1, 2)) / known.sum())

    def loss(theta):
        slopes, own = theta[:n_heads], theta[n_heads:]
        z = np.einsum("j,jcn->cn", slopes, centred) + own[:, None]
        each = (np.logaddexp(0, z) - target * z) * known * balance[:, None] * unit
        return each.sum() + ridge / 2 * ((slopes * spread) ** 2).sum() + 0.005 * (own**2).sum()

    start = np.zeros(n_heads + n_categories)
    return minimize(loss, start, method="BFGS", options={"gtol": 1e-7}).x[:n_heads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_logits_say_nothing(dtype):
    """A head of zeros and a bias: rounding of its mean is no spread, and its slope stays small."""
    logits, target, known, fold = drawn(heads=2, n_rows=20_001)
    logits[0] = np.array([-2.1, -1.7, -0.3, -4.6])[:, None]
    logits[1] *= 1e-3  # small is not none
    tensors = (torch.from_numpy(a.copy()).to(dtype) for a in (logits, target, known))
    rows = SharedRows.of(*tensors, torch.from_numpy(fold.copy()).to(torch.int8))
    assert not rows.logits[0].any()
    found = fit_shared([rows], ridge=3.0)
    assert abs(float(found.slopes[0])) < 1
    expected = plainly(logits[1:], target, known, 3.0)
    np.testing.assert_allclose(found.slopes[1:].numpy(), expected, rtol=2e-3)


@pytest.mark.parametrize("ridge", [0.0, 3.0, 1e6])
def test_shared_slopes_are_those_of_the_plain_objective(ridge):
    """Newton steps on all categories lead where a general minimiser leads."""
    task = drawn()
    found = fit_shared([shared_rows(*task)], ridge=ridge)
    expected = plainly(*task[:3], ridge)
    np.testing.assert_allclose(found.slopes.numpy(), expected, atol=2e-4)
    if ridge == 1e6:
        assert float(found.slopes.abs().max()) < 1e-3


def test_parts_of_the_categories_are_one_answer():
    """Blocks change nothing, nor does where the search starts."""
    logits, target, known, fold = drawn()
    whole = fit_shared([shared_rows(logits, target, known, fold)], ridge=3.0)
    cut = [slice(0, 1), slice(1, 4)]
    parts = [shared_rows(logits[:, c], target[c], known[c], fold[c]) for c in cut]
    found = fit_shared(parts, ridge=3.0)
    again = fit_shared(parts, ridge=3.0, start=fit_shared([p.without(0) for p in parts]))
    for other in (found, again):
        np.testing.assert_allclose(other.slopes, whole.slopes, atol=2e-4)
        assert other.loss == pytest.approx(whole.loss, abs=1e-6)


def test_labels_of_a_fold_do_not_count_without_it():
    """Turning them all around changes nothing."""
    logits, target, known, fold = drawn()
    turned = np.where(fold == 1, 1 - target, target)
    parts = [shared_rows(logits, y, known, fold) for y in (target, turned)]
    one, other = (fit_shared([part.without(1)]).slopes for part in parts)
    np.testing.assert_allclose(one, other, rtol=0.1, atol=2e-3)  # but for the categories' weights
    assert not np.allclose(one, fit_shared(parts[1:]).slopes, atol=0.1)


def test_logits_that_are_all_equal_weigh_nothing():
    """A head of zeros is no division by zero."""
    logits, target, known, fold = drawn()
    logits[1] = 0.0
    found = fit_shared([shared_rows(logits, target, known, fold)], ridge=3.0)
    assert abs(float(found.slopes[1])) < 1e-3
    assert bool(found.slopes.isfinite().all())


def test_drawn_negatives_are_bounded_and_weigh_what_all_would():
    """For each known label some unknown ones; their weights sum to those of all unknown labels."""
    rng = np.random.default_rng(0)
    codes = torch.full((2, 4_000), -1, dtype=torch.int8)
    codes[0, :100] = torch.from_numpy(rng.integers(0, 2, 100)).to(torch.int8)
    codes[1, :2_000] = 0
    x = torch.from_numpy(rng.normal(size=(4_000, 3))).float()
    rows = TuningRows(x, torch.zeros(2, 4_000), codes)
    draws = torch.from_numpy(rng.random((2, 4_000))).float()
    source = with_drawn_negatives(rows, draws, per_known=4.0, weight=0.2)
    weight, places = source.weight, (source.weight > 0).sum(1)
    assert 450 < int(places[0]) < 550  # 100 known and about 400 drawn
    assert int(places[1]) == 4_000  # there are no more
    assert float(weight[0].sum()) == pytest.approx(100 + 0.2 * 3_900, rel=0.1)
    assert float(weight[1].sum()) == pytest.approx(2_000 + 0.2 * 2_000, rel=1e-5)
    assert float(source.target.sum()) == int((codes == 1).sum())
    (fit,) = fit_directions(codes, source, [5.0], tolerance=1e-3)
    assert bool(fit.delta.isfinite().all())
