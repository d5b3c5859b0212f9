"""Rows of features in bounded memory, whatever holds them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._arrays import UNREADABLE, as_numpy, dense, is_sparse, is_tensor
from catwise.errors import FeatureError

BLOCK_ROWS: Final = 4096
"""Rows in a block: fixed, so that the way a computation is cut never depends on the machine."""

Values = Any
"""What holds features: a numpy array or memmap, a torch tensor, a store, `Features`, a list."""


@runtime_checkable
class RowBlocks(Protocol):
    """Anything with a shape that gives its rows block by block."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop, as an array in memory or a view of a mapped file."""


def as_rows(values: Values, *, name: str = "features") -> Values:
    """What holds features, ready to be read block by block."""
    if _is_plain(values):
        return values
    try:
        read = not is_tensor(values) and isinstance(values, RowBlocks)
        lazy = not read and _is_lazy(values)
    except UNREADABLE as error:  # a data set of a file that is closed
        raise FeatureError(f"{name} cannot be read.", found=str(error)) from error
    if read or lazy:
        return values if read else SlicedRows(values, name)
    found = dense(values, name=name, error=FeatureError)
    if is_tensor(found):
        real = not (found.is_complex() or found.dtype == torch.bool)
    else:
        real = found.dtype.kind in "fiu"
    if not real:
        raise _not_numbers(name, f"dtype {found.dtype}")
    return found


def _is_plain(values: Any) -> bool:
    """Whether these are features without a closer look, as nearly all are."""
    if type(values) is torch.Tensor:
        odd = values.is_nested or values.is_quantized or values.is_meta
        return not odd and values.layout == torch.strided and values.is_floating_point()
    return type(values) is np.ndarray and values.dtype.kind in "fiu"


def _is_lazy(values: Any) -> bool:
    """Whether rows should be read as slices, because not all may be in memory."""
    if is_tensor(values) or isinstance(values, (np.ndarray, list, tuple)) or is_sparse(values):
        return False
    has_rows = all(hasattr(values, part) for part in ("shape", "dtype", "__getitem__"))
    return has_rows and not hasattr(values, "to_numpy")


class SlicedRows:
    """Rows of an object (N, D, …) that is read by slicing it."""

    __slots__ = ("_name", "_values")

    def __init__(self, values: Any, name: str) -> None:
        self._values, self._name = values, name
        if self.block(0, 0).shape != (0, *self.shape[1:]):
            raise _not_numbers(name, f"a {type(values).__name__} whose slices are not rows")

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        try:
            return tuple(int(size) for size in self._values.shape)
        except UNREADABLE as error:  # dask does not know every size, a closed file none
            raise FeatureError(
                f"{self._name} must have a known shape.",
                found=f"{type(self._values).__name__}: {error}",
                remedy="keep its file open, and compute the sizes of its chunks first",
            ) from error

    @property
    def dtype(self) -> Any:
        """As the object has it."""
        return self._values.dtype

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop."""
        try:
            part = self._values[start:stop]
        except (*UNREADABLE, LookupError, OSError) as error:
            raise _not_numbers(self._name, f"{type(self._values).__name__}: {error}") from error
        rows: NDArray[Any] = as_numpy(part, name=self._name, error=FeatureError)
        if rows.dtype.kind not in "fiu":
            raise _not_numbers(self._name, f"dtype {rows.dtype}")
        return rows


def feature_shape(values: Values, *, name: str = "features") -> tuple[int, int]:
    """Return (N, D) of features of any kind, called `name` in the FeatureError if they have others.

    >>> feature_shape([[1.0, 2.0, 3.0]])
    (1, 3)
    """
    shape = tuple(int(size) for size in as_rows(values, name=name).shape)
    if len(shape) != 2:
        raise FeatureError(
            f"{name} must have one row for each image.",
            found=f"shape {shape}",
            expected="shape (N, D)",
            remedy="flatten or pool what the backbone gives to one vector for each image; a vector "
            "for each category, (N, C, D), is CategoryFeatures(values, ids)",
        )
    return shape


def block_of(
    values: Values, start: int, stop: int, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Rows start to stop as a tensor of the given dtype that shares no memory with a mapped file.

    Half-precision features widen exactly. `values` are (N, D) features of any kind, the result is
    (stop − start, D), float32 or float64, on their device (the CPU for what is not a tensor).
    FeatureError if they are not real numbers.

    >>> block_of(np.array([[1, 2], [3, 4]], dtype=np.float16), 1, 2)
    tensor([[3., 4.]])
    """
    values = as_rows(values)
    plain = isinstance(values, (torch.Tensor, np.ndarray))
    rows = values[start:stop] if plain else as_rows(values.block(start, stop))
    if isinstance(rows, torch.Tensor):
        return rows.detach().to(dtype)
    if rows.dtype == np.float16 and rows.dtype.isnative:
        block = torch.from_numpy(np.array(rows)).to(dtype)
    else:
        wide = np.float64 if dtype.itemsize == 8 else np.float32
        block = torch.from_numpy(np.array(rows, dtype=wide))
    forget(rows)
    return block


def forget(rows: Any) -> None:
    """Let the system take back the memory of a file that is mapped for reading alone.

    Views of it stay what they are: what is read again comes from the file.
    """
    base = rows
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    with memoryview(base) as view:
        if not view.readonly:  # changes of a private copy would be lost
            return
    base.madvise(mmap.MADV_DONTNEED)


def _not_numbers(name: str, found: str) -> FeatureError:
    return FeatureError(
        f"{name} must be real numbers.",
        found=found,
        expected="float16, bfloat16, float32 or float64",
    )


def iterate_blocks(
    values: Values, *, block_rows: int = BLOCK_ROWS, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, rows) block by block; memory stays bounded by one block.

    >>> [(start, len(rows)) for start, rows in iterate_blocks(np.zeros((5, 2)), block_rows=2)]
    [(0, 2), (2, 2), (4, 1)]
    """
    values = as_rows(values)
    n_rows, _ = feature_shape(values)
    block_rows = min(block_rows, getattr(values, "block_rows", block_rows))
    for start in range(0, n_rows, block_rows):
        yield start, block_of(values, start, min(start + block_rows, n_rows), dtype=dtype)
