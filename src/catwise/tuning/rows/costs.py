"""Which layout of known rows costs least, by modelled time.

An epoch needs the logits of the known labels and, from their slopes, the gradient. Dense: two
matrix products over rows that all categories share, most of which is thrown away where few
labels are known. Sparse: the known entries only, in tiles of rows and categories small enough
to stay in the processor's cache, so that every row is read from memory once. Gathered: each
category's rows laid out in a copy of their own, for very few known labels.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor

from catwise.tuning.rows.gathered import gathered_rows
from catwise.tuning.rows.sampled import is_compiled

LayoutName = Literal["dense", "sparse", "gathered"]


class _Rates(NamedTuple):
    """What a machine does in a second; only the ratios matter."""

    dense: float  # multiply-adds of a product of float32 matrices
    sampled: float  # multiply-adds of known entries, in tiles
    gathered: float  # bytes of gathered copies


_CPU = _Rates(1.0e11, 1.6e10, 1.0e10)  # measured on a core of a Zen 5 server
_COMPILED = _CPU._replace(sampled=3.0e10)
_GPU = _Rates(2.5e13, 0.0, 4.0e12)  # data sheet of an H200; sampled products bring nothing there


class LayoutCosts(NamedTuple):
    """How the products over the training features are done, and what each way would cost.

    Attributes:
        name: "dense", "sparse" or "gathered".
        dense_seconds: modelled time of one epoch's products, dense.
        sparse_seconds: the same, over known entries in tiles.
        gathered_seconds: the same, gathered.
        gathered_bytes: size of the gathered copies.
    """

    name: LayoutName
    dense_seconds: float
    sparse_seconds: float
    gathered_seconds: float
    gathered_bytes: int


def choose_layout(
    n_rows: int,
    counts: Tensor,
    n_features: int,
    *,
    itemsize: int = 4,
    gather_bytes: int = 1 << 30,
    device: str = "cpu",
) -> LayoutCosts:
    """Choose between shared products, known entries in tiles, and gathered rows, by modelled time.

    Dense: forward and backward take ``2 N D C`` multiply-adds at the rate of a matrix product.
    Sparse: ``2 sum(n_c) D`` of them at the rate of a sampled product, which loads an operand from
    the cache for each. Gathered: each category reads its own copy of its known rows, padded to its
    group's longest, forward and backward, ``2 sum(n_c) D itemsize`` bytes at the rate of memory.
    Measured on one x86 core: 100 and 30 G multiply-adds a second, and 10 GB/s; so sparse wins where
    under 30% of the labels are known (16 G, and under 16%, where its products are not compiled). On
    a GPU the choice is between the other two.

    Args:
        n_rows: training rows with any known label.
        counts: (C,) known training labels of each category.
        n_features: D.
        itemsize: bytes of one feature in the arithmetic's precision.
        gather_bytes: copies beyond that size are never made.
        device: its type, such as "cpu" or "cuda".

    Returns:
        The layout with all costs.

    >>> import torch
    >>> choose_layout(20_000, torch.full((80,), 10_000), 2_048).name
    'dense'
    >>> choose_layout(20_000, torch.full((80,), 2_000), 2_048).name
    'sparse'
    >>> choose_layout(20_000, torch.full((80,), 200), 2_048, device="cuda").name
    'gathered'
    """
    size = gathered_rows(counts) * n_features * itemsize
    on_cpu = _COMPILED if is_compiled() and itemsize == 4 else _CPU
    rates, wide = on_cpu if device == "cpu" else _GPU, itemsize / 4
    dense = 2.0 * n_rows * n_features * len(counts) * wide / rates.dense
    entries = 2.0 * int(counts.sum()) * n_features * wide
    sparse = entries / rates.sampled if rates.sampled else math.inf
    gathered = 2.0 * size / rates.gathered
    costs: dict[LayoutName, float] = {"dense": dense, "sparse": sparse}
    if size <= gather_bytes:
        costs["gathered"] = gathered
    return LayoutCosts(min(costs, key=costs.__getitem__), dense, sparse, gathered, size)
