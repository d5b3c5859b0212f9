"""Matrix products at the rate of the machine.

On x86 PyTorch hands float32 products to MKL, which leaves AVX-512 unused on processors by AMD.
oneDNN, which PyTorch carries for convolutions and bfloat16, uses it: on Zen 5 it takes less than
half the time for the shapes here (see docs/speed.md). So large products go there, through the
operator that PyTorch's own compiler calls for linear layers. Both sum in float32. Elsewhere (other
types, devices, processors, or a PyTorch without that operator) products are PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

_LARGE = 1 << 22  # multiply-adds; below, the call itself costs more than is won
_SQUARES = 1 << 22


def product(first: Tensor, second: Tensor) -> Tensor:
    """The matrix product of (n, k) and (k, m), without a gradient.

    Args:
        first: (n, k) float, of any strides.
        second: (k, m), in the type and on the device of `first`.

    Returns:
        (n, m) in memory of its own.

    >>> product(torch.ones(2, 3), torch.ones(3, 1))
    tensor([[3.],
            [3.]])
    """
    n_rows, n_terms = first.shape
    large = n_rows * n_terms * second.shape[1] >= _LARGE
    if large and first.dtype == second.dtype == torch.float32 and first.device.type == "cpu":
        by_onednn = _by_onednn()
        if by_onednn is not None:
            return by_onednn(first, second)
    return first @ second


def squared(rows: Tensor) -> Iterator[Tensor]:
    """The squares of (n, k) rows, few columns at a time."""
    width = max(1, _SQUARES // max(1, len(rows)))
    return (part.square() for part in torch.split(rows, width, dim=1))


@cache
def _by_onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """A product by oneDNN, if it is there, is of use, and is right."""
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    if not (wide and there):
        return None

    def by_onednn(first: Tensor, second: Tensor) -> Tensor:
        linear = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 -- there is no public name
        with torch.no_grad():
            found: Tensor = linear(first, second.T, None, "none", [], "")
        return found

    first = torch.arange(12.0).view(3, 4)
    second = torch.arange(20.0).view(5, 4).T
    try:
        right = torch.equal(by_onednn(first, second), first @ second)
    except (AttributeError, RuntimeError):  # an operator of PyTorch's own, which may change
        return None
    return by_onednn if right else None
