"""Matrix products: the same numbers whichever library does them."""

from __future__ import annotations

import pytest
import torch

from catwise.tuning.rows import products
from catwise.tuning.rows.products import product


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 2), (300, 200, 100), (1_000, 512, 80), (1, 8_192, 600)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_is_torchs(shape, dtype, turned):
    """Large and small, in either memory order, products are those of torch in float64."""
    n, k, m = shape
    first, second = normal(n, k, dtype=dtype), normal(k, m, dtype=dtype, seed=1)
    if turned:
        first, second = first.T.contiguous().T, second.T.contiguous().T
    wanted = first.double() @ second.double()
    got = product(first, second)
    assert got.dtype == dtype
    size = first.double().abs() @ second.double().abs()
    bound = 2**-20 if dtype == torch.float32 else 2**-48
    assert bool(((got.double() - wanted).abs() <= bound * size).all())


def test_without_onednn_products_are_torchs_own(monkeypatch):
    """A PyTorch that lacks the operator computes all the same."""
    monkeypatch.setattr(products, "_by_onednn", lambda: None)
    first, second = normal(300, 200), normal(200, 100)
    assert torch.equal(product(first, second), first @ second)


def test_an_operator_that_fails_is_not_used(monkeypatch):
    """If PyTorch's operator changes its arguments, it is left alone."""

    def refuse(*_):
        raise RuntimeError("expected other arguments")

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", refuse, raising=False)
    products._by_onednn.cache_clear()
    try:
        assert products._by_onednn() is None
    finally:
        monkeypatch.undo()
        products._by_onednn.cache_clear()


def test_the_same_product_has_the_same_bytes():
    """Two calls agree in every bit."""
    first, second = normal(1_000, 512), normal(512, 80)
    assert torch.equal(product(first, second), product(first, second))
