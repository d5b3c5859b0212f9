"""Coordinates: what is said about the fit there holds for the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catwise.features import Features
from catwise.heads import Head
from catwise.tuning.rows import coordinates as geometry
from catwise.tuning.rows.coordinates import fit_coordinates, read_rows

CPU = torch.device("cpu")


def features(rows=120, columns=9, *, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns))
    return (mixed + offset).astype(np.float32)


def test_coordinates_are_centred_and_of_unit_total_variance():
    """Mean 0, total variance 1, uncorrelated, the largest first."""
    z = features(offset=5.0)
    coordinates = fit_coordinates(z)
    x = coordinates.project(torch.from_numpy(z)).double()
    assert x.mean(0).abs().max() < 1e-5
    covariance = x.T @ x / len(x)
    assert float(covariance.trace()) == pytest.approx(1.0, abs=1e-5)
    assert (covariance - torch.diag(coordinates.variance)).abs().max() < 1e-5
    assert (coordinates.variance.diff() <= 0).all()


def test_distances_keep_their_proportions():
    """One number for all directions: nothing is whitened."""
    z = features()
    x = fit_coordinates(z).project(torch.from_numpy(z)).double()
    ratio = torch.pdist(x) / torch.pdist(torch.from_numpy(z).double())
    assert float(ratio.std() / ratio.mean()) < 1e-4


@pytest.mark.parametrize("centred", [True, False])
def test_a_change_in_coordinates_is_the_same_change_of_logits(centred):
    """fold_back gives the weights and biases that move the logits as the fit did."""
    z = features(offset=3.0)
    coordinates = fit_coordinates(z, centred=centred)
    rng = np.random.default_rng(1)
    delta = torch.from_numpy(rng.normal(size=(4, coordinates.basis.shape[1])))
    weight, bias = coordinates.fold_back(delta)
    assert weight.dtype == bias.dtype == torch.float64
    rows = torch.from_numpy(z).double()
    inside = coordinates.project(rows) @ delta.T
    torch.testing.assert_close(rows @ weight.T + bias, inside, rtol=1e-9, atol=1e-9)


def test_without_a_bias_nothing_is_subtracted():
    """A head without a bias could not take up a mean."""
    coordinates = fit_coordinates(features(offset=3.0), centred=False)
    assert not coordinates.mean.any()
    _, bias = coordinates.fold_back(torch.ones(2, 9))
    assert not bias.any()


def test_a_huge_common_offset_does_not_drown_the_variance():
    """Sums are taken around a row, so float32 features far from 0 keep their directions."""
    z = features()
    near, far = fit_coordinates(z), fit_coordinates(z + np.float32(1e3))
    torch.testing.assert_close(far.variance, near.variance, rtol=1e-3, atol=1e-6)


def test_only_leading_directions_are_kept(monkeypatch):
    """The kept directions are the leading ones; weights along the rest do not move."""
    z = features()
    whole = fit_coordinates(z)
    monkeypatch.setattr(geometry, "MAX_DIRECTIONS", 4)
    few = fit_coordinates(z)
    assert few.basis.shape == (9, 4)
    torch.testing.assert_close(few.variance, whole.variance[:4], rtol=1e-5, atol=1e-6)
    weight, _ = few.fold_back(torch.ones(1, 4))
    rest = whole.basis[:, 4:]
    assert (weight @ rest).abs().max() < 1e-5 * weight.norm() * rest.norm()


def test_constant_features_are_no_division_by_zero():
    """Features that do not vary give finite coordinates."""
    coordinates = fit_coordinates(np.ones((10, 3), dtype=np.float32))
    x = coordinates.project(torch.ones(10, 3))
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("bias", [True, False])
def test_one_pass_gives_coordinates_and_logits(bias):
    """Logits are the head's as stored, also of half-precision heads and of blocks."""
    z = features()
    head = Head(
        torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).half(),
        torch.ones(3).half() if bias else None,
    )
    coordinates = fit_coordinates(z)
    x, logits = read_rows(Features(z), head, coordinates, device=CPU)
    assert (x.dtype, logits.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(logits.T, head.logits(z).float())
    torch.testing.assert_close(x, coordinates.project(torch.from_numpy(z)))
