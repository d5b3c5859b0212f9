"""Losses under any logits: properties that hold for all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catwise.losses import LOSSES, proper_asymmetric_probability

ALL = [pytest.param(loss, id=name) for name, loss in LOSSES.items()]
logits = st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=20)
unit = st.floats(0, 1, width=32)


@pytest.mark.parametrize("loss", ALL)
@given(z=logits, y=unit)
def test_values_and_derivatives_are_finite(loss, z, y):
    """Losses are never negative, slopes never infinite, curvatures never negative."""
    z = torch.tensor(z)
    y = torch.full_like(z, y)
    value = loss.value(z, y)
    slope, curvature = loss.slope_curvature(z, y)
    assert bool(torch.isfinite(value).all() & torch.isfinite(slope).all())
    assert bool((value >= 0).all())
    assert bool(torch.isfinite(curvature).all() & (curvature >= 0).all())


@pytest.mark.parametrize("loss", ALL)
@given(z=logits)
def test_hard_labels_pull_to_their_side(loss, z):
    """A positive never pushes its logit down, nor a negative up."""
    z = torch.tensor(z)
    assert bool((loss.slope(z, torch.ones_like(z)) <= 0).all())
    assert bool((loss.slope(z, torch.zeros_like(z)) >= 0).all())


@pytest.mark.parametrize("loss", ALL)
@given(z=logits, y=unit)
def test_soft_targets_mix_the_two_sides(loss, z, y):
    """Value and slope are linear in the target."""
    z = torch.tensor(z, dtype=torch.float64)
    sides = torch.ones_like(z), torch.zeros_like(z)
    for function in (loss.value, loss.slope):
        wanted = y * function(z, sides[0]) + (1 - y) * function(z, sides[1])
        got = function(z, torch.full_like(z, y))
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ALL)
@given(z=logits, y=unit)
def test_elements_do_not_meet(loss, z, y):
    """Each element's loss depends on that element alone."""
    z = torch.tensor(z, dtype=torch.float64)
    together = loss.slope(z, torch.full_like(z, y))
    alone = torch.stack([loss.slope(v, torch.tensor(y, dtype=torch.float64)) for v in z])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


@given(a=st.floats(-30, 30), b=st.floats(-30, 30))
def test_the_proper_link_keeps_order(a, b):
    """A higher logit never means a lower probability."""
    low, high = proper_asymmetric_probability(torch.tensor(sorted((a, b)), dtype=torch.float64))
    assert 0 <= low <= high <= 1
