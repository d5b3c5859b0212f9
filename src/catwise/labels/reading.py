"""Arrays of any kind become codes; choices of rows become positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catwise._arrays import Dense, as_numpy, read_dense, stored_entries
from catwise.errors import LabelError, ShapeError, nearest
from catwise.labels.codes import NEGATIVE, OTHERS, UNKNOWN, Codes, Rows
from catwise.labels.columns import Columns, check_codes
from catwise.labels.encodings import (
    UNFIT,
    Encoding,
    Raw,
    encode_values,
    encoding_error,
    fitting_encodings,
    raw_values,
    resolve_encoding,
    suggestion,
)
from catwise.labels.names import category_names

BLOCK_ENTRIES = 1 << 20


def two_dimensional(values: Any) -> Dense:
    """Values as an (N, C) numpy array, and which of them are masked."""
    found = read_dense(values, name="labels", error=LabelError, numpy=True)
    array = found.values
    if array.ndim != 2:
        raise ShapeError(
            "labels must have one row for each image and one column for each category.",
            found=f"shape {array.shape}",
            expected="shape (N, C)",
            remedy="PartialLabels.from_columns for labels as lists" if array.ndim == 0 else None,
        )
    return found


def array_names(values: Any) -> list[str] | None:
    """The names that the columns of a data frame or table have; None for all else."""
    names = getattr(values, "column_names", None)  # an Arrow table, whose `columns` are values
    if names is None and hasattr(values, "to_numpy"):
        names = getattr(values, "columns", None)
    return None if names is None else [str(name) for name in names]


def array_codes(values: Any, categories: Sequence[str] | None = None) -> Codes:
    """A new (N, C) int8 array of codes; masked entries are unknown."""
    array = two_dimensional(values)
    names = category_names(categories, array.values.shape[1])
    codes = check_codes(_blanked(array), where=lambda place: describe_cell(place, names))
    return _unknown_where(codes, array.masked)


def _blanked(array: Dense) -> NDArray[Any]:
    """Values in which whatever lies under a mask is 0."""
    if array.masked is None:
        return np.asarray(array.values)
    values = array.values.copy()
    values[array.masked] = 0
    return np.asarray(values)


def _unknown_where(codes: Codes, masked: NDArray[np.bool_] | None) -> Codes:
    if masked is not None:
        codes[masked] = UNKNOWN
    return codes


def encode_array(
    array: Dense, encoding: str | Encoding | None, *, where: Callable[[tuple[int, ...]], str]
) -> Codes:
    """Codes of (N, C) raw values; a masked entry is unknown, whatever lies under the mask."""
    values, masked = array
    if encoding is None:
        resolve_encoding(None, _all_raw(array))
    chosen = resolve_encoding(encoding)
    codes = np.empty(values.shape, dtype=np.int8)
    for rows in _row_blocks(values):
        codes[rows] = encode_values(values[rows], chosen)
    _unknown_where(codes, masked)
    unfit = codes == UNFIT
    if masked is not None and UNKNOWN not in chosen.mapping.values():
        unfit |= masked
    if unfit.any():
        row = int(unfit.any(axis=1).argmax())
        place = row, int(unfit[row].argmax())
        blank = masked is not None and bool(masked[place])
        raise encoding_error(
            chosen,
            None if blank else values[place],
            where=where(place),
            n_unfit=int(np.count_nonzero(unfit)),
            remedy=_remedy(array),
        )
    return codes


def _remedy(array: Dense) -> str:
    """Which encodings fit; of unsigned numbers, also what they are as signed ones."""
    values = array.values
    if values.dtype.kind == "u":
        signed = values.view(values.dtype.str.replace("u", "i"))
        seen = _all_raw(Dense(signed, array.masked))
        if fitting_encodings(seen) and not fitting_encodings(_all_raw(array)):
            kind = signed.dtype.name
            return f"the numbers were negative before they lost their sign: y.view({kind!r})"
    return suggestion(_all_raw(array))


def sparse_codes(
    values: Any,
    encoding: str | Encoding | None,
    others: str | None,
    categories: Sequence[str] | None = None,
) -> tuple[Codes | Columns, int, tuple[str, ...]]:
    """Codes of a sparse (N, C) array, how many rows it has, and the categories."""
    if others not in OTHERS:
        raise LabelError(
            "labels in a sparse array: it must be said what entries mean that are not stored.",
            found=f"{type(values).__name__}, others={others!r}{nearest(str(others), OTHERS)}",
            expected="others='unknown' or others='negative'",
            remedy="others='unknown' where only what is stored was looked at",
        )
    stored = stored_entries(values, name="labels", error=LabelError)
    n_rows, n_columns = stored.shape
    names = category_names(categories, n_columns)
    codes = encode_array(
        Dense(stored.values[:, None], None),
        encoding,
        where=lambda i: describe_cell((int(stored.rows[i[0]]), int(stored.columns[i[0]])), names),
    )[:, 0]
    order = np.argsort(stored.columns, kind="stable")
    ends = np.searchsorted(stored.columns[order], np.arange(1, n_columns))
    split = (np.split(part[order], ends) for part in (stored.rows, codes))
    columns = Columns.from_pairs(list(zip(*split, strict=True))[:n_columns], n_rows)
    if OTHERS[others] == UNKNOWN:
        return columns, n_rows, names
    filled = np.full(stored.shape, NEGATIVE, dtype=np.int8)
    filled[stored.rows, stored.columns] = codes
    return filled, n_rows, names


def _all_raw(array: Dense) -> set[Raw]:
    """The different raw values that are not masked."""
    values, masked = array
    seen: set[Raw] = set()
    for rows in _row_blocks(values):
        seen |= raw_values(values[rows] if masked is None else values[rows][~masked[rows]])
    return seen


def _row_blocks(values: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows that hold about a million entries each."""
    step = max(1, BLOCK_ENTRIES // max(values.shape[1], 1))
    for start in range(0, len(values), step):
        yield slice(start, min(start + step, len(values)))


def describe_cell(place: tuple[int, ...], categories: tuple[str, ...]) -> str:
    """The place of an entry, for people."""
    return f"row {place[0]}, column {place[1]} ({categories[place[1]]!r})"


def row_positions(index: Any, n_rows: int) -> Rows:
    """Positions from positions, a mask or a slice."""
    if isinstance(index, slice):
        return np.arange(n_rows)[index]
    array = as_numpy(index, name="a choice of rows", error=ShapeError)
    if array.dtype.kind == "b" and array.shape == (n_rows,):
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ShapeError(
            "this is not a choice of rows.",
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
