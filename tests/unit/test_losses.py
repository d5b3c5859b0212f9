"""Losses: values, closed-form derivatives, safety at extreme logits, the registry."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from catwise.errors import ConfigError
from catwise.losses import (
    LOSSES,
    Loss,
    asymmetric,
    asymmetric_derivatives,
    binary_cross_entropy,
    focal,
    focal_derivatives,
    proper_asymmetric,
    proper_asymmetric_derivatives,
    proper_asymmetric_probability,
    resolve_loss,
)

ALL = [pytest.param(loss, id=name) for name, loss in LOSSES.items()]
OPTIONS = [
    {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05},
    {"gamma_neg": 2.0, "gamma_pos": 1.0, "clip": 0.0},
    {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.2},
    {"gamma_neg": 0.5, "gamma_pos": 0.5, "clip": 0.05},
    {"gamma_neg": 3.5, "gamma_pos": 2.0, "clip": 0.1},
]


def grid(dtype=torch.float64):
    logits = torch.linspace(-12.3, 12.1, 101, dtype=dtype)
    target = torch.tensor([0.0, 1.0, 0.3], dtype=dtype)[:, None]
    return logits.expand(3, -1).contiguous(), target.expand(3, 101).contiguous()


def autograd_slope(value, logits, target):
    z = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(z, target).sum(), z)
    return slope


@pytest.mark.parametrize("loss", ALL)
def test_slope_equals_autograd(loss):
    """Both closed-form slopes are what autograd gives for the value."""
    logits, target = grid()
    wanted = autograd_slope(loss.value, logits, target)
    torch.testing.assert_close(loss.slope(logits, target), wanted, rtol=1e-10, atol=1e-14)
    slope, _ = loss.slope_curvature(logits, target)
    torch.testing.assert_close(slope, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("as_published", [False, True])
def test_asymmetric_slope_equals_autograd_for_every_option(options, as_published):
    """Exponents of 0, between 0 and 1, whole and broken ones, with and without a margin."""
    logits, target = grid()
    form = {**options, "as_published": as_published}
    wanted = autograd_slope(partial(asymmetric, **form), logits, target)
    got = asymmetric_derivatives(logits, target, **form).slope
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss", [p for p in ALL if p.values[0].is_gradient])
def test_slope_equals_finite_differences_of_the_value(loss):
    """The value's central differences agree, where the slope is a gradient."""
    logits, target = grid()
    step = 1e-5
    wanted = (loss.value(logits + step, target) - loss.value(logits - step, target)) / (2 * step)
    torch.testing.assert_close(loss.slope(logits, target), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", [p for p in ALL if p.values[0].convex])
def test_curvature_of_a_convex_loss_is_the_true_one(loss):
    """Central differences of the slope give the curvature."""
    logits, target = grid()
    step = 1e-5
    wanted = (loss.slope(logits + step, target) - loss.slope(logits - step, target)) / (2 * step)
    got = loss.slope_curvature(logits, target).curvature
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [o for o in OPTIONS if o["gamma_neg"] != 0.5])
def test_curvature_elsewhere_is_the_true_one_or_above_it(options):
    """For hard labels the curvature is never under the true one; mostly it equals it."""
    logits, target = (t[:2] for t in grid())
    derivatives = partial(asymmetric_derivatives, **options)
    step = 1e-6
    ahead, behind = derivatives(logits + step, target), derivatives(logits - step, target)
    true = (ahead.slope - behind.slope) / (2 * step)
    smooth = (torch.sigmoid(logits) - options["clip"]).abs() > 1e-3
    got = derivatives(logits, target).curvature
    assert bool((got - true >= -1e-7)[smooth].all())
    assert float(((got - true).abs() < 1e-7)[smooth].double().mean()) > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ALL)
def test_extreme_logits_are_safe(loss, dtype):
    """At logits of +-1,000 value, gradient and curvature are finite, curvature >= 0."""
    logits = torch.tensor([-1000.0, -100.0, -20.0, 0.0, 20.0, 100.0, 1000.0], dtype=dtype)
    for label in (0.0, 1.0, 0.25):
        target = torch.full_like(logits, label)
        slope, curvature = loss.slope_curvature(logits, target)
        tensors = [loss.value(logits, target), loss.slope(logits, target), slope, curvature]
        tensors.append(autograd_slope(loss.value, logits, target))
        assert all(bool(torch.isfinite(t).all()) for t in tensors)
        assert all(t.dtype == dtype for t in tensors)
        assert bool((curvature >= 0).all())
        torch.testing.assert_close(tensors[-1], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_extreme_logits_are_safe_for_every_option(options, as_published):
    """No power or logarithm of zero leaks into a gradient."""
    logits = torch.tensor([-1000.0, 0.0, 1000.0])
    form = {**options, "as_published": as_published}
    for label in (0.0, 1.0):
        target = torch.full_like(logits, label)
        assert bool(
            torch.isfinite(autograd_slope(partial(asymmetric, **form), logits, target)).all()
        )
        assert all(
            bool(torch.isfinite(t).all()) for t in asymmetric_derivatives(logits, target, **form)
        )


@pytest.mark.parametrize("loss", ALL)
def test_inputs_are_not_changed(loss):
    """Neither logits nor target are written to."""
    logits, target = grid()
    before = logits.clone(), target.clone()
    loss.value(logits, target)
    loss.slope(logits, target)
    loss.slope_curvature(logits, target)
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])


def test_bce_equals_torch():
    """Binary cross-entropy is PyTorch's, soft targets too."""
    logits, target = grid()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, target), wanted, rtol=1e-12, atol=1e-14)


def test_focal_without_focus_is_bce():
    """Gamma = 0 leaves binary cross-entropy."""
    logits, target = grid()
    torch.testing.assert_close(
        focal(logits, target, gamma=0.0), binary_cross_entropy(logits, target)
    )
    slope = focal_derivatives(logits, target, gamma=0.0).slope
    torch.testing.assert_close(slope, LOSSES["bce"].slope(logits, target))


def test_asymmetric_equals_the_formula():
    """Both sides by the published formula, written with plain numbers."""
    for z in (-3.0, -1.0, 0.5, 2.0):
        p = 1 / (1 + math.exp(-z))
        m = max(p - 0.05, 0.0)
        pair = asymmetric(torch.tensor(z, dtype=torch.float64), torch.tensor([0.0, 1.0]).double())
        assert pair.tolist() == pytest.approx([-(m**4) * math.log(1 - m), -math.log(p)], rel=1e-12)


def test_published_value_equals_the_differentiable_one():
    """Holding the focus constant changes the gradient only."""
    logits, target = grid()
    torch.testing.assert_close(
        asymmetric(logits, target, as_published=True), asymmetric(logits, target)
    )


def test_published_slope_ignores_the_focus():
    """With the focus constant the positive slope of gamma 2 is bce's times its factor."""
    logits, _ = grid()
    ones = torch.ones_like(logits)
    got = focal_derivatives(logits, ones, gamma=2.0, as_published=True).slope
    torch.testing.assert_close(got, -(torch.sigmoid(-logits) ** 3))


def test_published_slope_is_zero_under_the_clamp():
    """A positive with probability under 1e-8 no longer pulls."""
    got = LOSSES["asl_published"].slope(torch.tensor([-19.0, -18.0]), torch.tensor([1.0, 1.0]))
    assert got[0] == 0
    assert got[1] < -0.9


@pytest.mark.parametrize("probability", [0.001, 0.03, 0.2, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.convex])
def test_proper_losses_are_least_at_the_true_probability(name, probability):
    """The expected loss has its one minimum where the inverse link gives the truth."""
    loss = LOSSES[name]
    logits = torch.linspace(-14, 14, 28_001, dtype=torch.float64)
    expected = loss.value(logits, torch.full_like(logits, probability))
    best = logits[expected.argmin()]
    assert float(loss.probability(best)) == pytest.approx(probability, rel=2e-3)
    falling = expected.diff() < 0
    assert int(falling.sum()) == int(expected.argmin())  # falls up to the minimum, then rises


def test_plain_asl_is_not_proper():
    """The reason why the proper loss exists: ASL's minimum lies elsewhere."""
    logits = torch.linspace(-14, 14, 28_001, dtype=torch.float64)
    expected = asymmetric(logits, torch.full_like(logits, 0.2))
    assert float(torch.sigmoid(logits[expected.argmin()])) > 0.3


def test_proper_link_is_sigmoid_for_symmetric_options():
    """With both sides alike the loss is binary cross-entropy and its link the sigmoid."""
    logits, target = grid()
    same = {"zeta_neg": 1.0, "k_neg": 1.0, "b_neg": 0.0}
    torch.testing.assert_close(
        proper_asymmetric(logits, target, **same), binary_cross_entropy(logits, target)
    )
    got = proper_asymmetric_probability(logits, **same)
    torch.testing.assert_close(got, torch.sigmoid(logits))
    slope = proper_asymmetric_derivatives(logits, target, **same).slope
    torch.testing.assert_close(slope, LOSSES["bce"].slope(logits, target))


def test_easy_negatives_cost_less_than_easy_positives():
    """The proper loss is asymmetric in the sense of its name."""
    two = torch.tensor(2.0)
    assert proper_asymmetric(-two, torch.tensor(0.0)) < proper_asymmetric(two, torch.tensor(1.0))


def test_unknown_loss_names_the_nearest():
    """A misspelt name is refused with the right one."""
    with pytest.raises(ConfigError, match="did you mean 'focal'"):
        resolve_loss("focl")


def test_resolve_passes_a_loss_through():
    """A loss with options of one's own can be used directly."""
    own = Loss("own", focal, LOSSES["focal"].slope, focal_derivatives)
    assert resolve_loss(own) is own
    assert resolve_loss("bce") is LOSSES["bce"]


@pytest.mark.parametrize(
    "call",
    [
        partial(asymmetric, gamma_neg=-1.0),
        partial(asymmetric, clip=1.0),
        partial(asymmetric_derivatives, gamma_pos=math.nan),
        partial(focal, gamma=math.inf),
        partial(proper_asymmetric, k_pos=0.0),
        partial(proper_asymmetric_derivatives, b_neg=math.nan),
    ],
)
def test_options_out_of_range_are_refused(call):
    """Bad options give a ConfigError that shows what was found."""
    with pytest.raises(ConfigError, match="out of range"):
        call(torch.zeros(1), torch.zeros(1))


def test_every_bad_option_is_reported_at_once():
    """One error lists all of them."""
    with pytest.raises(ConfigError, match=r"gamma_neg=-1.*clip=2"):
        asymmetric(torch.zeros(1), torch.zeros(1), gamma_neg=-1.0, clip=2.0)
