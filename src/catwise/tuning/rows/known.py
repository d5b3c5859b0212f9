"""The one layout of known rows: rows that categories share, and products at known labels only.

`KnownRows` holds (N, k) rows and the places where the labels of C categories are known. Products
with head rows (C, k) and sums over rows are the same whichever way they are done:

- dense: matrix products over all rows; a place for every row.
- indexed: the same products, but a place for known rows alone. For less work element by element.
- sparse: products at the known entries alone (`sampled`).
- gathered: a copy of its own known rows for every category (`gathered`).

Places are category-major, (C, L): L is N for dense, else the number of rows of the category that
knows most, known ones first; what is left is padding, whose weight is 0. For a consumer that takes
slopes only, `by_rows` lays them out in the order of the rows instead, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from catwise.errors import ShapeError
from catwise.tuning.rows.costs import LayoutCosts, LayoutName, choose_layout
from catwise.tuning.rows.gathered import Gathered
from catwise.tuning.rows.products import product, squared
from catwise.tuning.rows.sampled import MAX_PLACES, KnownEntries, is_compiled
from catwise.tuning.rows.tuning_rows import TuningRows

_INDEX_MAX_DENSITY = 0.5
# Head rows of a tile stay in the core's cache: whole, or a chunk of each where they are compiled.
_HEAD_BYTES, _HEAD_ROWS = 1 << 20, 1_024


class KnownRows:
    """Rows (N, k) and the places of C categories; this class is the dense layout.

    Args:
        x: (N, k) float.
        by_rows: keep the places (C, N) in the memory order of the rows.
    """

    def __init__(self, x: Tensor, *, by_rows: bool = False) -> None:
        self.x, self.by_rows = x, by_rows

    def forward(self, weight: Tensor) -> Tensor:
        """Products of the rows with (C, k) weights, at the places."""
        if self.by_rows:
            return product(self.x, weight.T).T
        return product(weight, self.x.T)

    def backward(self, slopes: Tensor) -> Tensor:
        """(C, k) sums of the rows times the slopes at their places."""
        return product(slopes, self.x)

    def squares(self, curvatures: Tensor) -> Tensor:
        """(C, k) sums of the squared rows times the curvatures at their places."""
        return torch.cat([product(curvatures, part) for part in squared(self.x)], 1)

    def select_categories(self, keep: Tensor) -> KnownRows:
        """The layout of some categories, given by ascending number (A,) or as a mask (C,)."""
        del keep
        return self

    def at(self, values: Tensor) -> Tensor:
        """(C, N) values at the places; zeros or other rows' where padded."""
        return values.T.contiguous().T if self.by_rows else values

    def select(self, values: Tensor, keep: Tensor) -> Tensor:
        """Values at the places of some categories."""
        return self.at(values[keep])

    def spread(self, values: Tensor) -> Tensor:
        """(C,) values of categories, to be added at their places."""
        return values[:, None]

    def sums(self, values: Tensor) -> Tensor:
        """(C,) sums over the places of each category."""
        return values.sum(1)


class _Indexed(KnownRows):
    """Matrix products over all rows, of which each category takes its known ones, (C, L)."""

    def __init__(self, x: Tensor, index: Tensor) -> None:
        super().__init__(x)
        self.index = index

    def forward(self, weight: Tensor) -> Tensor:
        return product(weight, self.x.T).gather(1, self.index)

    def backward(self, slopes: Tensor) -> Tensor:
        return product(self._everywhere(slopes), self.x)

    def squares(self, curvatures: Tensor) -> Tensor:
        everywhere = self._everywhere(curvatures)
        return torch.cat([product(everywhere, part) for part in squared(self.x)], 1)

    def _everywhere(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(values), len(self.x)).scatter_(1, self.index, values)

    def select_categories(self, keep: Tensor) -> _Indexed:
        return _Indexed(self.x, self.index[keep])

    def at(self, values: Tensor) -> Tensor:
        return values.gather(1, self.index)

    def select(self, values: Tensor, keep: Tensor) -> Tensor:
        return values[keep]


class _Gathered(KnownRows):
    """Copies of the known rows."""

    def __init__(self, x: Tensor, copies: Gathered) -> None:
        super().__init__(x)
        self.copies = copies

    def forward(self, weight: Tensor) -> Tensor:
        return self.copies.forward(weight)

    def backward(self, slopes: Tensor) -> Tensor:
        return self.copies.backward(slopes)

    def squares(self, curvatures: Tensor) -> Tensor:
        return self.copies.squares(curvatures)

    def select_categories(self, keep: Tensor) -> _Gathered:
        return _Gathered(self.x, self.copies.select_categories(keep))

    def at(self, values: Tensor) -> Tensor:
        return self.copies.at(values)

    def select(self, values: Tensor, keep: Tensor) -> Tensor:
        return values[keep]


class _Sparse(KnownRows):
    """Products at the known entries, in tiles of categories whose head rows stay in the cache.

    Args:
        x: (N, k).
        tiles: of ascending categories.
        length: L of places (C, L); None: places (e,), tile by tile and in the order of the rows.
    """

    def __init__(self, x: Tensor, tiles: list[KnownEntries], length: int | None) -> None:
        super().__init__(x, by_rows=length is None)
        self.tiles, self.length = tiles, length
        self._widths = [tile.n_categories for tile in tiles]
        self._sizes = [tile.n_places for tile in tiles]
        firsts = torch.tensor([0, *self._widths]).cumsum(0).tolist()
        self._category = _joined(
            [tile.category.long() + c for tile, c in zip(tiles, firsts, strict=False)]
        )

    def forward(self, weight: Tensor) -> Tensor:
        parts = torch.split(weight, self._widths)
        found = _joined([t.forward(self.x, w) for t, w in zip(self.tiles, parts, strict=True)])
        return found if self.length is None else found.view(-1, self.length)

    def backward(self, slopes: Tensor) -> Tensor:
        parts = torch.split(slopes.flatten(), self._sizes)
        return _joined([t.backward(self.x, s) for t, s in zip(self.tiles, parts, strict=True)])

    def squares(self, curvatures: Tensor) -> Tensor:
        parts = torch.split(curvatures.flatten(), self._sizes)
        return _joined([t.squares(self.x, c) for t, c in zip(self.tiles, parts, strict=True)])

    def select_categories(self, keep: Tensor) -> _Sparse:
        keep = _mask(keep, sum(self._widths))
        parts = torch.split(keep, self._widths)
        kept = [t.select_categories(own) for t, own in zip(self.tiles, parts, strict=True)]
        return _Sparse(self.x, [t for t in kept if t.n_categories] or kept[:1], self.length)

    def at(self, values: Tensor) -> Tensor:
        parts = torch.split(values, self._widths)
        found = _joined([t.at(v) for t, v in zip(self.tiles, parts, strict=True)])
        return found if self.length is None else found.view(-1, self.length)

    def select(self, values: Tensor, keep: Tensor) -> Tensor:
        if self.length is not None:
            return values[keep]
        return values[_mask(keep, sum(self._widths))[self._category]]

    def spread(self, values: Tensor) -> Tensor:
        return values[self._category] if self.length is None else values[:, None]

    def sums(self, values: Tensor) -> Tensor:
        if self.length is not None:
            return values.sum(1)
        total = values.new_zeros(sum(self._widths))
        return total.index_add_(0, self._category, values)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _mask(keep: Tensor, n: int) -> Tensor:
    if keep.dtype == torch.bool:
        return keep
    return torch.zeros(n, dtype=torch.bool, device=keep.device).index_fill_(0, keep, value=True)


def known_rows(
    x: Tensor,
    known: Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: LayoutName | Literal["auto"] = "auto",
    gather_bytes: int = 1 << 30,
    by_rows: bool = False,
) -> tuple[KnownRows, LayoutCosts]:
    """Lay rows out in the way that is asked for, or that costs least.

    Args:
        x: (N, k) float.
        known: (C, N) bool.
        dtype: of the arithmetic; that of `x` if None.
        layout: the way; "dense" is indexed where no category knows more than half of the rows.
        gather_bytes: "auto" makes no copies beyond that size.
        by_rows: places without padding, in the order of the rows, where the layout has such.
    """
    dtype = dtype or x.dtype
    counts = known.sum(1)
    longest = int(counts.max()) if len(counts) else 0
    costs = choose_layout(
        len(x),
        counts.cpu(),
        x.shape[1],
        itemsize=dtype.itemsize,
        gather_bytes=gather_bytes,
        device=x.device.type,
    )
    if layout != "auto":
        costs = costs._replace(name=layout)
    elif costs.name == "sparse" and not (by_rows or is_compiled(dtype)):
        costs = costs._replace(name="dense")
    if costs.name == "gathered":
        return _Gathered(x, Gathered.build(x, known, dtype)), costs
    x = x.to(dtype)
    if costs.name == "sparse":
        return _sparse(x, known, None if by_rows else max(1, longest)), costs
    if longest <= _INDEX_MAX_DENSITY * len(x):
        order = known.to(torch.int8).sort(dim=1, descending=True, stable=True).indices
        return _Indexed(x, order[:, : max(1, longest)]), costs
    return KnownRows(x, by_rows=by_rows), costs


def _sparse(x: Tensor, known: Tensor, length: int | None) -> _Sparse:
    row_bytes = max(1, x.shape[1] * x.element_size())
    width = _HEAD_ROWS if is_compiled(x.dtype) else _HEAD_BYTES // row_bytes
    width = max(1, min(width, MAX_PLACES // max(1, len(x))))
    tiles = [KnownEntries(part.T.contiguous(), length=length) for part in torch.split(known, width)]
    return _Sparse(x.contiguous(), tiles, length)


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Known rows with what is fitted there; arrays are at the places of `rows`.

    Args:
        rows: their layout.
        target: in [0, 1].
        weight: >= 0, 0 where a place is not known; None: 1 everywhere.
        offset: logits without the change, or None where the whole head is fitted.
        intercept: whether an intercept of its own is fitted.

    Raises:
        ShapeError: If the arrays do not fit together.
    """

    rows: KnownRows
    target: Tensor
    weight: Tensor | None = None
    offset: Tensor | None = None
    intercept: bool = True

    def __post_init__(self) -> None:
        arrays = self.target, self.weight, self.offset
        shapes = {tuple(t.shape) for t in arrays if t is not None}
        x = self.rows.x
        whole = type(self.rows) is not KnownRows or self.target.shape[-1] == len(x)
        if len(shapes) != 1 or x.ndim != 2 or not whole:
            raise ShapeError(
                "arrays of labelled rows do not fit together.",
                found=f"x {tuple(x.shape)}, others {sorted(shapes)}",
                expected="x (n, k); target, weight and offset (C, n)",
            )

    @classmethod
    def from_codes(
        cls, rows: KnownRows, codes: Tensor, offset: Tensor | None = None, *, intercept: bool = True
    ) -> LabelledRows:
        """Hard labels: (C, N) int8 codes, 1 positive, 0 negative, all else unknown."""
        target = (rows.at(codes) == 1).to(rows.x.dtype)
        exact = isinstance(rows, _Sparse) and rows.length is None  # known places and no others
        weight = None if exact else rows.at(codes >= 0).to(rows.x.dtype)
        return cls(rows, target, weight, None if offset is None else rows.at(offset), intercept)

    def select_categories(self, keep: Tensor) -> LabelledRows:
        """The same of some categories, given by ascending number (A,) or as a mask (C,)."""

        def select(values: Tensor | None) -> Tensor | None:
            return None if values is None else self.rows.select(values, keep)

        return replace(
            self,
            rows=self.rows.select_categories(keep),
            target=self.rows.select(self.target, keep),
            weight=select(self.weight),
            offset=select(self.offset),
        )


def lay_out(rows: TuningRows, *, gather_bytes: int = 1 << 30) -> LabelledRows:
    """Rows of a preset, for a penalised fit: all entries, the known ones, or copies of them.

    Whichever costs less; no more than `gather_bytes` are gathered.
    """
    x, codes = rows.x, rows.codes
    if rows.target is not None and rows.weight is not None:
        return LabelledRows(KnownRows(x), rows.target, rows.weight, rows.logits, rows.intercept)
    laid_out, _ = known_rows(x, codes >= 0, gather_bytes=gather_bytes)
    return LabelledRows.from_codes(laid_out, codes, rows.logits, intercept=rows.intercept)
