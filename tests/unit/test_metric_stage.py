"""Smooth ranking losses on bins, and the stage that follows their slope."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catwise.metrics import METRICS
from catwise.tuning.fits.ranking_loss import Stage, refine
from catwise.tuning.fits.smooth_ranking import SmoothRanking

KINDS = ["average_precision", "auroc"]


def problem(seed: int = 0, *, c: int = 4, n: int = 200, k: int = 6):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, k)))
    truth = torch.from_numpy(rng.normal(size=(c, k)))
    noise = torch.from_numpy(rng.normal(size=(c, n)))
    codes = (truth @ x.T + noise > 2).to(torch.int8)
    codes[torch.from_numpy(rng.random((c, n)) < 0.2)] = -1
    codes[:, :2] = torch.tensor([0, 1], dtype=torch.int8)
    start = 0.3 * truth + 0.5 * torch.from_numpy(rng.normal(size=(c, k)))
    return x, codes, start @ x.T


def plain_loss(logits, codes, kind: str, tau: float) -> torch.Tensor:
    """All pairs, one by one."""
    lost = []
    for z, code in zip(logits, codes, strict=True):
        positives, negatives = z[code == 1], z[code == 0]
        total = torch.zeros(())
        for own in positives:
            false = torch.sigmoid((negatives - own) / tau).sum()
            true = torch.sigmoid((positives - own) / tau).sum() + 0.5
            total = total + (false / len(negatives) if kind == "auroc" else false / (true + false))
        lost.append(total)
    return torch.stack(lost)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_bins_are_the_pairs(kind: str, tau: float) -> None:
    """To what 512 bins resolve."""
    _, codes, logits = problem()
    loss = SmoothRanking(logits, codes, kind, temperature=tau)
    torch.testing.assert_close(
        loss.value(logits), plain_loss(logits, codes, kind, tau), rtol=2e-3, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_are_those_of_the_value(kind: str) -> None:
    """Autograd through the pairs agrees; unknown rows have none."""
    _, codes, logits = problem(1)
    loss = SmoothRanking(logits, codes, kind, temperature=1.0)
    value, slopes = loss.slope(logits)
    torch.testing.assert_close(value, loss.value(logits))
    given = logits.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(plain_loss(given, codes, kind, 1.0).sum(), given)
    torch.testing.assert_close(slopes, wanted, rtol=0.02, atol=2e-3)
    assert bool((slopes[codes == -1] == 0).all())
    assert float(slopes.abs().max()) > 0.01


def test_a_cold_loss_is_the_metric() -> None:
    """As the temperature falls it becomes positives × (1 − AUROC)."""
    _, codes, logits = problem(2)
    loss = SmoothRanking(logits, codes, "auroc", temperature=0.02, n_bins=2_000)
    positives = (codes == 1).sum(1)
    auroc = METRICS["auroc"].columns(logits, codes)
    torch.testing.assert_close(loss.value(logits), positives * (1 - auroc), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_climbs_and_the_penalty_holds_it(kind: str) -> None:
    """The metric rises on the rows it was fitted to; a stronger pull moves less."""
    x, codes, start = problem(3)
    metric = METRICS[kind].columns
    far = refine(x, start, codes, kind, Stage(1.0, 0.01))
    near = refine(x, start, codes, kind, Stage(1.0, 10.0))
    assert bool((far.loss[1] < far.loss[0]).all())
    assert bool((far.delta.norm(dim=1) > near.delta.norm(dim=1)).all())
    assert float(near.delta.norm(dim=1).min()) > 0
    moved = start + far.delta @ x.T
    assert float(metric(moved, codes).mean()) > float(metric(start, codes).mean()) + 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_ends_at_a_minimum(kind: str) -> None:
    """The slope of the pairs' loss with its penalty is near zero there."""
    x, codes, start = problem(4)
    fit = refine(x, start, codes, kind, Stage(1.0, 1.0), max_iterations=100)
    e = fit.delta.clone().requires_grad_()
    total = plain_loss(start + e @ x.T, codes, kind, 1.0).sum() + e.square().sum() / 2
    (slope,) = torch.autograd.grad(total, e)
    zero = torch.zeros_like(e).requires_grad_()
    first = plain_loss(start + zero @ x.T, codes, kind, 1.0).sum()
    (reference,) = torch.autograd.grad(first, zero)
    assert float(slope.norm()) < 0.05 * float(reference.norm())


def test_categories_do_not_touch_each_other() -> None:
    """Alone, in another order, and in company the change is the same."""
    x, codes, start = problem(5)
    whole = refine(x, start, codes, "average_precision", Stage(1.0, 1.0))
    turned = refine(x, start.flip(0), codes.flip(0), "average_precision", Stage(1.0, 1.0))
    torch.testing.assert_close(turned.delta.flip(0), whole.delta, rtol=1e-9, atol=1e-10)
    alone = refine(x, start[2:3], codes[2:3], "average_precision", Stage(1.0, 1.0))
    torch.testing.assert_close(alone.delta, whole.delta[2:3], rtol=1e-9, atol=1e-10)
    assert len(set(whole.iterations.tolist())) > 1


def test_a_category_of_one_class_stays() -> None:
    """Nothing can be ranked there."""
    x, codes, start = problem(6)
    codes = codes.clone()
    codes[1][codes[1] == 1] = -1
    fit = refine(x, start, codes, "auroc", Stage(1.0, 1.0))
    assert float(fit.delta[1].abs().max()) == 0
    assert float(fit.delta[0].abs().max()) > 0
