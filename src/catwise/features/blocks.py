"""Rows of features in bounded memory, whatever holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
import torch

from catwise.errors import FeatureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["BLOCK_ROWS", "RowBlocks", "block_of", "feature_shape", "iterate_blocks"]

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


def _plain(values: Values) -> Values:
    """Lists become arrays; what has a shape stays as it is."""
    return values if hasattr(values, "shape") else np.asarray(values)


def feature_shape(values: Values, *, name: str = "features") -> tuple[int, int]:
    """Return (N, D).

    Args:
        values: features of any kind.
        name: what to call them in an error.

    Raises:
        FeatureError: If they have not two axes.

    >>> feature_shape([[1.0, 2.0, 3.0]])
    (1, 3)
    """
    shape = tuple(int(size) for size in _plain(values).shape)
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

    Half-precision features widen exactly.

    Args:
        values: (N, D) features of any kind.
        start: first row.
        stop: one past the last row.
        dtype: float32 or float64.

    Returns:
        (stop − start, D), on the device of `values` (the CPU for what is no tensor).

    Raises:
        FeatureError: If the values are not real numbers.

    >>> block_of(np.array([[1, 2], [3, 4]], dtype=np.float16), 1, 2)
    tensor([[3., 4.]])
    """
    if isinstance(values, torch.Tensor):
        if values.is_complex() or values.is_quantized or values.dtype == torch.bool:
            raise _not_numbers(str(values.dtype))
        return values.detach()[start:stop].to(dtype)
    rows = values.block(start, stop) if isinstance(values, RowBlocks) else values
    if rows is values:
        rows = np.asarray(values[start:stop])
    if isinstance(rows, torch.Tensor):
        return rows.detach().to(dtype)
    if rows.dtype.kind not in "fiu":
        raise _not_numbers(str(rows.dtype))
    if rows.dtype == np.float16 and rows.dtype.isnative:
        return torch.from_numpy(np.array(rows)).to(dtype)
    return torch.from_numpy(np.array(rows, dtype=np.float64 if dtype.itemsize == 8 else np.float32))


def _not_numbers(found: str) -> FeatureError:
    return FeatureError(
        "features must be real numbers.",
        found=f"dtype {found}",
        expected="float16, bfloat16, float32 or float64",
    )


def iterate_blocks(
    values: Values, *, block_rows: int = BLOCK_ROWS, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, rows) block by block; memory stays bounded by one block.

    >>> [(start, len(rows)) for start, rows in iterate_blocks(np.zeros((5, 2)), block_rows=2)]
    [(0, 2), (2, 2), (4, 1)]
    """
    values = _plain(values)
    n_rows, _ = feature_shape(values)
    block_rows = min(block_rows, getattr(values, "block_rows", block_rows))
    for start in range(0, n_rows, block_rows):
        yield start, block_of(values, start, min(start + block_rows, n_rows), dtype=dtype)
