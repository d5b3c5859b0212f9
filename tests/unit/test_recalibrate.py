"""Scale and offset after a search that is blind to both."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize

from catwise.metrics import METRICS
from catwise.tuning.fits.affine import fit_affine


def problem(seed: int = 0, c: int = 6, n: int = 400):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(c, n)) * 2
    codes = (rng.random((c, n)) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    codes[rng.random((c, n)) < 0.3] = -1
    logits = truth * rng.uniform(0.05, 6, size=(c, 1)) + rng.normal(size=(c, 1)) * 4
    return torch.from_numpy(logits), torch.from_numpy(codes)


def test_it_is_the_minimum() -> None:
    """Category by category what a general minimiser finds."""
    logits, codes = problem()
    scale, offset = fit_affine(logits, codes)
    for c in range(len(logits)):
        known = (codes[c] >= 0).numpy()
        z, y = logits[c].numpy()[known], codes[c].numpy()[known]

        def loss(v, z=z, y=y):
            u = np.exp(v[0]) * z + v[1]
            return (np.logaddexp(0, u) - y * u).sum() + v[0] ** 2 / 2 + 0.005 * v[1] ** 2

        best = min((minimize(loss, [s, 0.0]) for s in (-2.0, 0.0, 1.0)), key=lambda r: r.fun)
        mine = loss(np.array([np.log(float(scale[c])), float(offset[c])]))
        assert mine <= best.fun + 1e-6


def test_ranks_stay_and_calibration_improves() -> None:
    """AUROC is what it was; log-loss falls."""
    logits, codes = problem(1)
    scale, offset = fit_affine(logits, codes)
    moved = scale[:, None] * logits + offset[:, None]
    auroc, loss = METRICS["auroc"].columns, METRICS["log_loss"].columns
    torch.testing.assert_close(auroc(moved, codes), auroc(logits, codes), rtol=0, atol=1e-12)
    assert bool((loss(moved, codes) < loss(logits, codes)).all())


def test_extreme_categories_stay_finite() -> None:
    """Separable, reversed, one-class and unknown ones."""
    z = torch.linspace(-3, 3, 50).repeat(4, 1)
    codes = torch.stack(
        [z[0] > 0, z[0] < 0, torch.ones(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool)]
    ).to(torch.int8)
    codes[3] = -1
    scale, offset = fit_affine(z * 100, codes)
    assert bool((scale > 0).all())
    assert bool(torch.isfinite(scale).all())
    assert bool(torch.isfinite(offset).all())
    assert (float(scale[3]), float(offset[3])) == (1.0, 0.0)


def test_without_a_bias_the_offset_stays_zero() -> None:
    """A head without a bias has nowhere to put it."""
    logits, codes = problem(2)
    _, offset = fit_affine(logits, codes, free_offset=False)
    assert bool((offset == 0).all())
