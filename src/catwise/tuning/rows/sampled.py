"""Products of head rows with feature rows, counted at known labels only.

The logits of the known labels are a sampled matrix product (SDDMM), the gradient from their slopes
a sparse one (SpMM). On Linux with AVX2 or AVX-512 both are in C (`_native/sampled.c`), which is
compiled when catwise is installed, if a C compiler is there. Otherwise, and in float64, they are
PyTorch's sampled product and embedding bags, in tiles of rows that stay in the processor's cache.
Times of both are in docs/speed.md.
"""

from __future__ import annotations

import ctypes
import warnings
import zlib
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from catwise.errors import ShapeError
from catwise.tuning.rows.products import squared

MAX_PLACES: Final = (1 << 31) - 1
"""Places are counted in 32 bits."""

_FOLDER = Path(__file__).parents[2] / "_native"
_VARIANTS = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}  # the better one first
_TILE_BYTES = 4 << 20
_ENTRIES_PER_PART, _MAX_PARTS = 256, 16


class KnownEntries:
    """Where the labels of (n, C) are known, by rows, for products at these entries.

    Logits and slopes of the entries are in the order of the rows, or, where a length L is given,
    by category: entry number r of category c, counted along the rows, is at ``c * L + r``, and
    what is left of the (C, L) is zero.

    Args:
        known: (n, C) bool.
        length: L, at least the number of entries of any category; None: in the order of the rows.

    Raises:
        ShapeError: If there are more places than 32 bits count.

    >>> known = torch.tensor([[True, False], [True, True]])
    >>> features = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> KnownEntries(known).forward(features, torch.eye(2))
    tensor([1., 3., 4.])
    >>> KnownEntries(known).backward(features, torch.tensor([1.0, 1.0, 0.5]))
    tensor([[4.0000, 6.0000],
            [1.5000, 2.0000]])
    >>> KnownEntries(known, length=2).forward(features, torch.eye(2)).view(2, 2)
    tensor([[1., 3.],
            [4., 0.]])
    """

    def __init__(self, known: Tensor, *, length: int | None = None) -> None:
        self.start = pad(known.sum(1).cumsum(0), (1, 0))
        self.category = known.nonzero()[:, 1].to(torch.int32)
        self.n_categories, self.length = known.shape[1], length
        if self.n_places > MAX_PLACES:
            raise ShapeError(
                "too many known entries for one batch of categories.",
                found=f"{self.n_places:,}",
                expected=f"at most {MAX_PLACES:,}",
            )
        if length is None:
            self.place = _count(self.category)
        else:
            rank = known.cumsum(0) - 1
            rank += length * torch.arange(self.n_categories, device=known.device)
            self.place = rank[known].to(torch.int32)
        self._tiled: tuple[tuple[int, torch.dtype], list[_Tile]] | None = None

    def select_categories(self, keep: Tensor) -> KnownEntries:
        """The entries of some categories, given by ascending number (A,) or as a mask (C,)."""
        keep = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        new = torch.full((self.n_categories,), -1, dtype=torch.int32, device=keep.device)
        new[keep] = _count(keep)
        category = new[self.category]
        kept = category >= 0
        taken = copy(self)
        taken.start = pad(kept.cumsum(0), (1, 0))[self.start]
        taken.category, taken.n_categories = category[kept], len(keep)
        taken.place = _count(taken.category)
        if self.length is not None:
            gone = self.category[kept] - taken.category
            taken.place = self.place[kept] - gone * self.length
        taken._tiled = None  # noqa: SLF001 -- of this class
        return taken

    def at(self, values: Tensor) -> Tensor:
        """(n_places,) of (C, n) values, at the entries; zeros elsewhere."""
        row = torch.repeat_interleave(self.start.diff())
        found = values[self.category.long(), row]
        if self.length is None:
            return found
        return values.new_zeros(self.n_places).index_put_((self.place.long(),), found)

    @property
    def n_places(self) -> int:
        """How many logits and slopes there are."""
        by_rows = len(self.category)
        return by_rows if self.length is None else self.n_categories * self.length

    @torch.no_grad()
    def forward(self, features: Tensor, weight: Tensor) -> Tensor:
        """(n_places,) logits at the entries, zeros elsewhere; without a gradient.

        Args:
            features: (n, D) float, on the entries' device.
            weight: (C, D), in the same type.

        Raises:
            ShapeError: If the arrays do not fit the entries.
        """
        self._check(features, "weight", weight, (self.n_categories, *features.shape[1:]))
        logits = features.new_zeros(self.n_places)
        library = _library(features)
        if library is None:
            return self._forward_tiles(features, weight, logits)
        z, w = features.contiguous(), weight.contiguous()
        shape = (*z.shape, self.n_categories)
        pointers = _pointers(self.start, self.category, self.place, logits)
        failed = library.catwise_sampled_forward(
            *_pointers(z, w), *shape, *pointers, torch.get_num_threads()
        )
        return logits if not failed else self._forward_tiles(features, weight, logits)

    @torch.no_grad()
    def backward(self, features: Tensor, slopes: Tensor) -> Tensor:
        """(C, D) sums over the entries of a category of their slopes times their rows.

        Args:
            features: (n, D) float, on the entries' device.
            slopes: (n_places,), in the same type.

        Raises:
            ShapeError: If the arrays do not fit the entries.
        """
        self._check(features, "slopes", slopes, (self.n_places,))
        library = _library(features)
        if library is not None:
            z, s = features.contiguous(), slopes.contiguous()
            gradient = z.new_empty(self.n_categories, z.shape[1])
            pointers = _pointers(self.start, self.category, self.place, gradient)
            shape, options = (*z.shape, self.n_categories), (self._n_parts, torch.get_num_threads())
            failed = library.catwise_sampled_backward(*_pointers(z, s), *shape, *pointers, *options)
            if not failed:
                return gradient
        gradient = features.new_zeros(self.n_categories, features.shape[1])
        for tile in self._tiles(features):
            gradient += embedding_bag(
                tile.row,
                features[tile.rows],
                tile.first,
                mode="sum",
                per_sample_weights=slopes[tile.turned],
            )
        return gradient

    def squares(self, features: Tensor, curvatures: Tensor) -> Tensor:
        """As `backward`, of the squared rows."""
        return torch.cat([self.backward(part, curvatures) for part in squared(features)], 1)

    def _check(self, features: Tensor, name: str, other: Tensor, shape: tuple[int, ...]) -> None:
        rows = len(self.start) - 1
        right = features.ndim == 2 and features.shape[0] == rows and tuple(other.shape) == shape
        if right and other.dtype == features.dtype and other.device == features.device:
            return
        raise ShapeError(
            "arrays do not fit the known entries.",
            found=f"features {_described(features)}, {name} {_described(other)}",
            expected=f"features ({rows}, D), {name} {shape}, of one type and on one device",
        )

    def _forward_tiles(self, features: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
        for tile in self._tiles(features):
            z = features[tile.rows]
            values = torch.sparse.sampled_addmm(tile.pattern, z, weight.T, beta=0.0).values()
            logits[tile.place] = values
        return logits

    @property
    def _n_parts(self) -> int:
        """Parts of the rows with sums of their own: a power of two, by what there is to add."""
        share = len(self.category) // (_ENTRIES_PER_PART * max(1, self.n_categories))
        return min(_MAX_PARTS, 1 << max(0, share.bit_length() - 1))

    def _tiles(self, features: Tensor) -> list[_Tile]:
        height = max(1, _TILE_BYTES // max(1, features.shape[1] * features.element_size()))
        n_rows = len(self.start) - 1
        key, tiled = (height, features.dtype), self._tiled
        if tiled is None or tiled[0] != key:
            rows = [slice(i, min(i + height, n_rows)) for i in range(0, n_rows, height)]
            tiled = self._tiled = key, [self._tile(r, features.dtype) for r in rows]
        return tiled[1]

    def _tile(self, rows: slice, dtype: torch.dtype) -> _Tile:
        start = self.start[rows.start : rows.stop + 1]
        here = slice(int(start[0]), int(start[-1]))
        category, place = self.category[here].long(), self.place[here].long()
        local = start - start[0]
        row = torch.repeat_interleave(local.diff())
        turned = category.argsort(stable=True)
        counts = torch.bincount(category, minlength=self.n_categories)
        with warnings.catch_warnings():  # that sparse rows are in beta: what is used here is tested
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            pattern = torch.sparse_csr_tensor(
                local,
                category,
                torch.zeros(len(category), dtype=dtype, device=start.device),
                (len(local) - 1, self.n_categories),
                check_invariants=True,
            )
        first = pad(counts.cumsum(0), (1, 0))[:-1]
        return _Tile(rows, pattern, place, place[turned], row[turned], first)


class _Tile(NamedTuple):
    """The entries of some rows, by row and by category."""

    rows: slice
    pattern: Tensor  # (n, C) sparse by rows, zero at the entries
    place: Tensor  # (e,) in order of the rows
    turned: Tensor  # (e,) places in order of the categories
    row: Tensor  # (e,) in order of the categories
    first: Tensor  # (C,) where each category's entries begin in that order


def _described(values: Tensor) -> str:
    return f"{tuple(values.shape)} {str(values.dtype).removeprefix('torch.')} on {values.device}"


def _count(values: Tensor) -> Tensor:
    return torch.arange(len(values), dtype=torch.int32, device=values.device)


def is_compiled(dtype: torch.dtype = torch.float32) -> bool:
    """Whether products of that type on the CPU are the compiled ones."""
    return dtype == torch.float32 and _compiled() is not None


def _library(features: Tensor) -> ctypes.CDLL | None:
    usable = features.dtype == torch.float32 and features.device.type == "cpu"
    return _compiled() if usable else None


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


@cache
def _compiled() -> ctypes.CDLL | None:
    """The best library for this processor that was built from this source, starts, and is right."""
    for variant in _VARIANTS.get(torch.backends.cpu.get_cpu_capability(), ()):
        library = _open(_FOLDER / f"sampled_{variant}.so")
        if library is not None and _is_right(library):
            return library
    return None


def _open(path: Path) -> ctypes.CDLL | None:
    """A library, if it is there, starts, and was built from the source that lies beside it."""
    try:
        source = path.with_name("sampled.c").read_bytes()
        library = ctypes.CDLL(str(path))
        library.catwise_sampled_source.restype = ctypes.c_uint32
        if library.catwise_sampled_source() != zlib.crc32(source):
            return None
    except (OSError, AttributeError):  # none, another platform's, or without its runtime
        return None
    arrays, sizes, counts = [ctypes.c_void_p], [ctypes.c_int64], [ctypes.c_int32]
    shared: list[Any] = 2 * arrays + 3 * sizes + 4 * arrays
    library.catwise_sampled_forward.argtypes = shared + counts
    library.catwise_sampled_backward.argtypes = shared + 2 * counts
    return library


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether both products of whole numbers come out exactly."""

    def numbers(values: NDArray[Any]) -> Tensor:  # whatever torch's default type and device are
        return torch.from_numpy(values.astype(np.float32))

    z, w, slopes = (
        numbers(a) for a in (np.arange(600).reshape(2, 300), np.ones((3, 300)), np.r_[1:4])
    )
    start = torch.from_numpy(np.array([0, 1, 3]))
    category, place = torch.from_numpy(np.array([[1, 0, 1], [0, 1, 2]], dtype=np.int32))
    logits, gradient = numbers(np.zeros(3)), numbers(np.zeros((3, 300)))
    entries = 2, 300, 3, *_pointers(start, category, place)
    failed = library.catwise_sampled_forward(*_pointers(z, w), *entries, *_pointers(logits), 1)
    failed |= library.catwise_sampled_backward(
        *_pointers(z, slopes), *entries, *_pointers(gradient), 2, 1
    )
    sums = torch.stack([2 * z[1], z[0] + 3 * z[1], 0 * z[0]])
    return not failed and torch.equal(logits, z.sum(1)[[0, 1, 1]]) and torch.equal(gradient, sums)
