"""Arrays of any kind become codes; choices of rows become positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from catwise.errors import ShapeError
from catwise.labels.encodings import (
    UNFIT,
    Encoding,
    Raw,
    encode_values,
    encoding_error,
    raw_values,
    resolve_encoding,
    suggestion,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from catwise.labels.codes import Codes, Rows

__all__ = ["encode_array", "place_of", "row_positions", "two_dimensional"]

BLOCK_ENTRIES = 1 << 20


def two_dimensional(values: Any) -> NDArray[Any]:
    """Values as an (N, C) array.

    Raises:
        ShapeError: If they are not two-dimensional.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        array: NDArray[Any] = values.numpy()
    elif hasattr(values, "to_numpy"):
        array = np.asarray(values.to_numpy())
    else:
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise ShapeError("rows of labels differ in length.", found=str(error)) from error
    if array.ndim != 2:
        raise ShapeError(
            "labels must have one row for each image and one column for each category.",
            found=f"shape {array.shape}",
            expected="shape (N, C)",
            remedy="PartialLabels.from_columns for sparse labels" if array.ndim == 0 else None,
        )
    return array


def encode_array(
    values: NDArray[Any],
    encoding: str | Encoding | None,
    *,
    where: Callable[[tuple[int, ...]], str],
) -> Codes:
    """Codes of (N, C) raw values.

    Args:
        values: numbers, truth values, texts or objects.
        encoding: its name, or itself.
        where: tells the place of an entry for the error.

    Raises:
        LabelError: If the encoding is not named or does not know a value.
    """
    if encoding is None:
        resolve_encoding(None, _all_raw(values))
    chosen = resolve_encoding(encoding)
    codes = np.empty(values.shape, dtype=np.int8)
    for rows in _row_blocks(values):
        codes[rows] = encode_values(values[rows], chosen)
    unfit = codes == UNFIT
    if unfit.any():
        row = int(unfit.any(axis=1).argmax())
        place = row, int(unfit[row].argmax())
        raise encoding_error(
            chosen,
            values[place],
            where=where(place),
            n_unfit=int(np.count_nonzero(unfit)),
            remedy=suggestion(_all_raw(values)),
        )
    return codes


def _all_raw(values: NDArray[Any]) -> set[Raw]:
    seen: set[Raw] = set()
    for rows in _row_blocks(values):
        seen |= raw_values(values[rows])
    return seen


def _row_blocks(values: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows that hold about a million entries each."""
    step = max(1, BLOCK_ENTRIES // max(values.shape[1], 1))
    for start in range(0, len(values), step):
        yield slice(start, min(start + step, len(values)))


def place_of(place: tuple[int, ...], categories: tuple[str, ...]) -> str:
    """The place of an entry, for people."""
    return f"row {place[0]}, column {place[1]} ({categories[place[1]]!r})"


def row_positions(index: Any, n_rows: int) -> Rows:
    """Positions from positions, a mask or a slice."""
    if isinstance(index, slice):
        return np.arange(n_rows)[index]
    array = np.asarray(index.detach().cpu().numpy() if hasattr(index, "detach") else index)
    if array.dtype.kind == "b" and array.shape == (n_rows,):
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ShapeError(
            "this is no choice of rows.",
            found=f"shape {array.shape}, dtype {array.dtype}",
            expected=f"positions, a slice, or a mask of {n_rows:,} truth values",
        )
    rows = array.astype(np.int64)
    rows[rows < 0] += n_rows
    wrong = np.flatnonzero((rows < 0) | (rows >= n_rows))
    if len(wrong):
        raise ShapeError(
            "a row is not there.", found=f"row {array[wrong[0]]}", expected=f"0 to {n_rows - 1:,}"
        )
    return rows
