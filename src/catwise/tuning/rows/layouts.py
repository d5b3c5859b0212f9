"""Products of head rows with training rows, counted at known labels only: three ways, one result.

An epoch needs the logits of the known labels and, from their slopes, the gradient. Dense: two
matrix products over rows that all categories share, most of which is thrown away where few
labels are known. Sparse: the known entries only, in tiles of rows and categories small enough
to stay in the processor's cache, so that every row is read from memory once. Gathered: each
category's rows laid out in a copy of their own, for very few known labels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from catwise.tuning.rows.gathered import Gathered, gathered_rows
from catwise.tuning.rows.products import product
from catwise.tuning.rows.sampled import MAX_PLACES, KnownEntries, is_compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from catwise.tuning.fits.columns import HeadColumns

__all__ = ["Regime", "RegimeName", "TrainingRows", "choose_regime", "lay_out"]

RegimeName = Literal["dense", "sparse", "gathered"]

_NEGATIVE = 0
_INDEXED_BELOW = 0.5
# Head rows of a tile stay in the core's cache: whole, or a chunk of each where they are compiled.
_HEAD_BYTES, _HEAD_ROWS = 1 << 20, 1_024


class _Rates(NamedTuple):
    """What a machine does in a second; only the ratios matter."""

    dense: float  # multiply-adds of a product of float32 matrices
    sampled: float  # multiply-adds of known entries, in tiles
    gathered: float  # bytes of gathered copies


_CPU = _Rates(1.0e11, 1.6e10, 1.0e10)  # measured on a core of a Zen 5 server
_COMPILED = _CPU._replace(sampled=3.0e10)
_GPU = _Rates(2.5e13, 0.0, 4.0e12)  # data sheet of an H200; sampled products bring nothing there


class Regime(NamedTuple):
    """How the products over the training features are done, and what each way would cost.

    Attributes:
        name: "dense", "sparse" or "gathered".
        dense_seconds: modelled time of one epoch's products, dense.
        sparse_seconds: the same, over known entries in tiles.
        gathered_seconds: the same, gathered.
        gathered_bytes: size of the gathered copies.
    """

    name: RegimeName
    dense_seconds: float
    sparse_seconds: float
    gathered_seconds: float
    gathered_bytes: int


def choose_regime(
    n_rows: int,
    counts: Tensor,
    n_features: int,
    *,
    itemsize: int = 4,
    gather_bytes: int = 1 << 30,
    device: str = "cpu",
) -> Regime:
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
        The regime with all costs.

    >>> choose_regime(20_000, torch.full((80,), 10_000), 2_048).name
    'dense'
    >>> choose_regime(20_000, torch.full((80,), 2_000), 2_048).name
    'sparse'
    >>> choose_regime(20_000, torch.full((80,), 200), 2_048, device="cuda").name
    'gathered'
    """
    size = gathered_rows(counts) * n_features * itemsize
    on_cpu = _COMPILED if is_compiled() and itemsize == 4 else _CPU
    rates, wide = on_cpu if device == "cpu" else _GPU, itemsize / 4
    dense = 2.0 * n_rows * n_features * len(counts) * wide / rates.dense
    entries = 2.0 * int(counts.sum()) * n_features * wide
    sparse = entries / rates.sampled if rates.sampled else math.inf
    gathered = 2.0 * size / rates.gathered
    costs: dict[RegimeName, float] = {"dense": dense, "sparse": sparse}
    if size <= gather_bytes:
        costs["gathered"] = gathered
    return Regime(min(costs, key=costs.__getitem__), dense, sparse, gathered, size)


class TrainingRows(Protocol):
    """Training rows of a batch of categories, laid out in one of the ways."""

    def take(self, keep: Tensor) -> TrainingRows:
        """The rows for some of the categories."""

    def gradients(
        self, head: HeadColumns, slope: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        """Gradient of the summed loss by weight (A, D) and, if there is one, bias (A,)."""


def lay_out(
    features: Tensor,
    codes: Tensor,
    dtype: torch.dtype,
    *,
    regime: RegimeName | Literal["auto"] = "auto",
    gather_bytes: int = 1 << 30,
) -> tuple[TrainingRows, Regime]:
    """Lay the training rows out in the way that is asked for, or that costs least.

    Args:
        features: (N, D).
        codes: (N, C) int8; 1 positive, 0 negative, all else is not known.
        dtype: of the arithmetic.
        regime: the way, or "auto".
        gather_bytes: "auto" makes no copies beyond that size.

    Returns:
        The rows and the regime chosen.
    """
    known = codes >= _NEGATIVE
    any_known = known.any(1)
    n_rows = int(any_known.sum())
    chosen = choose_regime(
        n_rows,
        known.sum(0),
        features.shape[1],
        itemsize=dtype.itemsize,
        gather_bytes=gather_bytes,
        device=features.device.type,
    )
    if regime != "auto":
        chosen = chosen._replace(name=regime)
    if chosen.name == "gathered":
        return _GatheredRows.build(features, codes, dtype), chosen
    if n_rows < len(features):
        features, codes = features[any_known], codes[any_known]
    kind = _SparseRows if chosen.name == "sparse" else _DenseRows
    return kind(features.to(dtype), codes.contiguous()), chosen


class _Tile(NamedTuple):
    """The known entries of some categories."""

    columns: slice
    entries: KnownEntries
    column: Tensor  # (e,) category of each entry, counted from the tile's first
    target: Tensor  # (e,)


class _SparseRows:
    """The known entries of all categories, in tiles of categories that stay in the cache."""

    def __init__(self, features: Tensor, codes: Tensor) -> None:
        self._features, self._codes = features.contiguous(), codes
        row_bytes = max(1, features.shape[1] * features.element_size())
        compiled = is_compiled(features.dtype)
        width = _HEAD_ROWS if compiled else _HEAD_BYTES // row_bytes
        width = max(1, min(width, MAX_PLACES // max(1, len(codes))))
        columns = [slice(j, j + width) for j in range(0, codes.shape[1], width)]
        self._tiles = [self._tile(part) for part in columns]

    def _tile(self, columns: slice) -> _Tile:
        part = self._codes[:, columns]
        known = part >= _NEGATIVE
        entries = KnownEntries(known)
        return _Tile(
            columns, entries, entries.category.long(), part[known].to(self._features.dtype)
        )

    def take(self, keep: Tensor) -> _SparseRows:
        return _SparseRows(self._features, self._codes[:, keep])

    def gradients(
        self, head: HeadColumns, slope: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        """Gradient of the summed loss by weight (A, D) and, if there is one, bias (A,)."""
        gradients = [torch.zeros_like(p) for p in head.parameters()]
        for columns, entries, column, target in self._tiles:
            logits = entries.forward(self._features, head.weight[columns])
            if head.bias is not None:
                logits += head.bias[columns][column]
            slopes = slope(logits, target)
            gradients[0][columns] = entries.backward(self._features, slopes)
            if head.bias is not None:
                gradients[1][columns].index_add_(0, column, slopes)
        return gradients


class _DenseRows:
    """Rows shared by all categories: two matrix products, slopes only at known labels."""

    def __init__(self, features: Tensor, codes: Tensor) -> None:
        self._features, self._codes = features, codes
        known = codes >= _NEGATIVE
        shape = codes.shape
        self._slopes = features.new_zeros(shape)
        self._index: Tensor | None = None
        if float(known.float().mean()) < _INDEXED_BELOW:
            self._index = known.flatten().nonzero().flatten()
            self._column = self._index % codes.shape[1]
            self._target = torch.take(codes, self._index).to(features.dtype)
        else:
            self._target = codes.clamp(min=0).to(features.dtype)
            self._known = known.to(features.dtype)

    def take(self, keep: Tensor) -> _DenseRows:
        return _DenseRows(self._features, self._codes[:, keep])

    def gradients(
        self, head: HeadColumns, slope: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        """Gradient of the summed loss by weight (A, D) and, if there is one, bias (A,)."""
        logits = product(self._features, head.weight.T)
        if self._index is None:
            logits = logits if head.bias is None else logits.add_(head.bias)
            torch.mul(slope(logits, self._target), self._known, out=self._slopes)
        else:
            known = torch.take(logits, self._index)
            if head.bias is not None:
                known += torch.take(head.bias, self._column)
            self._slopes.view(-1)[self._index] = slope(known, self._target)
        gradients = [product(self._slopes.T, self._features)]
        return gradients if head.bias is None else [*gradients, self._slopes.sum(0)]


class _GatheredRows:
    """A copy of its known rows for every category, in groups padded to one length."""

    def __init__(self, gathered: Gathered, codes: Tensor) -> None:
        self._gathered, self._codes = gathered, codes
        self._labels = [codes[:, g.columns].T.gather(1, g.rows) for g in gathered.groups]

    @classmethod
    def build(cls, features: Tensor, codes: Tensor, dtype: torch.dtype) -> _GatheredRows:
        return cls(Gathered.build(features, (codes >= _NEGATIVE).T, dtype), codes)

    def take(self, keep: Tensor) -> _GatheredRows:
        return _GatheredRows(self._gathered.take(keep), self._codes[:, keep])

    def gradients(
        self, head: HeadColumns, slope: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        """Gradient of the summed loss by weight (A, D) and, if there is one, bias (A,)."""
        gradients = [torch.zeros_like(p) for p in head.parameters()]
        for (columns, _, block), labels in zip(self._gathered.groups, self._labels, strict=True):
            logits = torch.bmm(block, head.weight[columns][:, :, None]).squeeze(2)
            if head.bias is not None:
                logits += head.bias[columns][:, None]
            slopes = slope(logits, labels.clamp(min=0).to(logits.dtype)) * (labels >= _NEGATIVE)
            gradients[0][columns] = torch.bmm(slopes[:, None], block).squeeze(1)
            if head.bias is not None:
                gradients[1][columns] = slopes.sum(1)
        return gradients
