"""Labels as compressed columns: for each category the rows that have a label, and their codes.

All that is done here takes time and memory in proportion to the labels that are there, never to
rows × categories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catwise._arrays import as_numpy
from catwise.errors import LabelError, ShapeError, check_choice
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN, Codes, Rows

COUNT_ROWS: Final = 1 << 14
DENSE_BLOCK: Final = 1 << 24
ENTRIES_BLOCK: Final = 1 << 22
CODE_SHIFT: Final = 2
COUNTED: Final = (POSITIVE, NEGATIVE, UNCERTAIN)

COLUMNS_BELOW: Final = 1 / 8
"""Share of entries that are not unknown under which columns take over: they need 5 bytes each."""
COLUMNS_FROM: Final = 1 << 20  # entries (rows × categories) from which columns are worth it

Storage: TypeAlias = Literal["auto", "dense", "columns"]


class Columns(NamedTuple):
    """Entries that are not unknown, category after category, rows ascending in each."""

    starts: NDArray[np.int64]  # (C + 1,): entries of category j are starts[j]:starts[j + 1]
    rows: NDArray[np.integer[Any]]  # (entries,) int32, or int64 beyond two thousand million rows
    codes: Codes  # (entries,)

    @property
    def n_columns(self) -> int:
        """How many categories."""
        return len(self.starts) - 1

    def span(self, j: int) -> slice:
        """Where the entries of category j are."""
        return slice(int(self.starts[j]), int(self.starts[j + 1]))

    @classmethod
    def from_dense(cls, codes: Codes) -> Columns:
        """Compress (N, C) codes."""
        n_rows, n_columns = codes.shape
        width = max(1, DENSE_BLOCK // max(n_rows, 1))
        parts = []
        for start in range(0, n_columns, width):
            block = np.ascontiguousarray(codes[:, start : start + width].T)
            column, row = np.nonzero(block != UNKNOWN)
            parts.append((np.bincount(column, minlength=len(block)), row, block[column, row]))
        return cls.joined(parts, n_rows)

    @classmethod
    def joined(
        cls, parts: Iterable[tuple[NDArray[np.int64], NDArray[Any], Codes]], n_rows: int
    ) -> Columns:
        """Put runs of categories (entries per category, rows, codes) one after the other."""
        dtype = row_dtype(n_rows)
        lengths, rows, codes = [np.zeros(1, np.int64)], [np.empty(0, dtype)], [np.empty(0, np.int8)]
        for length, row, code in parts:
            lengths.append(np.asarray(length, dtype=np.int64))
            rows.append(np.asarray(row).astype(dtype, copy=False))
            codes.append(code)
        return cls(np.cumsum(np.concatenate(lengths)), np.concatenate(rows), np.concatenate(codes))

    @classmethod
    def stacked(cls, parts: Sequence[Columns], n_rows: Sequence[int]) -> Columns:
        """Put blocks of rows of the same categories one under the other."""
        lengths = np.array([np.diff(part.starts) for part in parts])
        above = np.cumsum(lengths, axis=0) - lengths
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths.sum(axis=0))])
        rows = np.empty(int(starts[-1]), dtype=row_dtype(sum(n_rows)))
        codes = np.empty(len(rows), dtype=np.int8)
        base = 0
        for i, part in enumerate(parts):
            at = ranges(starts[:-1] + above[i], lengths[i])
            rows[at] = part.rows.astype(rows.dtype) + base
            codes[at] = part.codes
            base += n_rows[i]
        return cls(starts, rows, codes)

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[Any, Any]], n_rows: int) -> Columns:
        """Check and sort (rows, codes) of each category."""
        parts = [_checked_pair(j, rows, codes, n_rows) for j, (rows, codes) in enumerate(pairs)]
        return cls.joined(parts, n_rows)

    def counts(self) -> NDArray[np.int64]:
        """(3, C): positives, negatives and uncertain ones of each category."""
        counted = np.zeros((3, self.n_columns), dtype=np.int64)
        for j in range(self.n_columns):
            codes = self.codes[self.span(j)]
            counted[:, j] = [np.count_nonzero(codes == code) for code in COUNTED]
        return counted

    def dense(self, start: int, stop: int) -> Codes:
        """Rows start to stop as (stop − start, C) codes."""
        block = np.full((stop - start, self.n_columns), UNKNOWN, dtype=np.int8)
        first, last = self.bisect(start), self.bisect(stop)
        index = ranges(first, last - first)
        column = np.repeat(np.arange(self.n_columns), last - first)
        block[self.rows[index] - start, column] = self.codes[index]
        return block

    def bisect(self, row: int) -> NDArray[np.int64]:
        """For each category, the first entry whose row is not below `row`."""
        low, high = self.starts[:-1].copy(), self.starts[1:].copy()
        last = max(len(self.rows) - 1, 0)
        while bool((low < high).any()):
            middle = (low + high) >> 1
            below = (self.rows[np.minimum(middle, last)] < row) & (low < high)
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        result: NDArray[np.int64] = low
        return result

    def take_rows(self, index: Rows, n_rows: int) -> Columns:
        """Rows in a new order; rows may repeat."""
        order = np.argsort(index, kind="stable")
        copies = np.bincount(index, minlength=n_rows)
        first = np.cumsum(copies) - copies
        ascending = bool((np.diff(index) >= 0).all())
        parts = [
            self._taken(run, order, copies, first, ascending=ascending) for run in self._runs()
        ]
        return Columns.joined(parts, len(index))

    def _taken(
        self, run: slice, order: Rows, copies: Rows, first: Rows, *, ascending: bool
    ) -> tuple[Rows, Rows, Codes]:
        span = slice(int(self.starts[run.start]), int(self.starts[run.stop]))
        rows = self.rows[span]
        times = copies[rows]
        new = order[ranges(first[rows], times)]
        codes = np.repeat(self.codes[span], times)
        n_columns = run.stop - run.start
        column = np.repeat(
            np.repeat(np.arange(n_columns), np.diff(self.starts[run.start : run.stop + 1])), times
        )
        if not ascending:
            # Sorting one packed number for each entry is many times faster than sorting an index.
            packed = ((column * len(order) + new) << 2) | (codes + CODE_SHIFT)
            packed.sort()
            codes = ((packed & 3) - CODE_SHIFT).astype(np.int8)
            new = (packed >> 2) % len(order)
        return np.bincount(column, minlength=n_columns).astype(np.int64), new, codes

    def _runs(self) -> Iterable[slice]:
        """Runs of categories with about four million entries each."""
        start = 0
        while start < self.n_columns:
            stop = int(np.searchsorted(self.starts, self.starts[start] + ENTRIES_BLOCK, "right"))
            stop = min(max(stop - 1, start + 1), self.n_columns)
            yield slice(start, stop)
            start = stop

    def take_columns(self, index: NDArray[np.int64]) -> Columns:
        """Categories in a new order."""
        lengths = np.diff(self.starts)[index]
        entries = ranges(self.starts[:-1][index], lengths)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return Columns(starts, self.rows[entries], self.codes[entries])

    def keep(self, kept: NDArray[np.bool_]) -> Columns:
        """The entries that are marked."""
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])
        return Columns(before[self.starts], self.rows[kept], self.codes[kept])


def as_stored(content: Codes | Columns, n_rows: int, storage: Storage) -> Codes | Columns:
    """Codes in the storage asked for; "auto" chooses by size and density."""
    check_choice("storage", storage, ("auto", "dense", "columns"))
    if isinstance(content, Columns):
        size, entries = n_rows * content.n_columns, len(content.rows)
    else:
        size, entries = content.size, _n_entries(content) if storage == "auto" else 0
    if storage == "auto":
        sparse = size >= COLUMNS_FROM and entries < size * COLUMNS_BELOW
        storage = "columns" if sparse else "dense"
    if isinstance(content, Columns):
        return content if storage == "columns" else content.dense(0, n_rows)
    return content if storage == "dense" else Columns.from_dense(content)


def _n_entries(codes: Codes) -> int:
    blocks = range(0, len(codes), COUNT_ROWS)
    return sum(int(np.count_nonzero(codes[i : i + COUNT_ROWS] != UNKNOWN)) for i in blocks)


def dense_counts(codes: Codes) -> NDArray[np.int64]:
    """(3, C): positives, negatives and uncertain ones of each column of (N, C) codes."""
    counted = np.zeros((3, codes.shape[1]), dtype=np.int64)
    for start in range(0, len(codes), COUNT_ROWS):
        block = codes[start : start + COUNT_ROWS]
        for i, code in enumerate(COUNTED):
            counted[i] += np.count_nonzero(block == code, axis=0)
    return counted


def row_dtype(n_rows: int) -> type[np.int32 | np.int64]:
    """The smallest type that holds a row number."""
    return np.int32 if n_rows <= np.iinfo(np.int32).max else np.int64


def ranges(first: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """All the numbers of several ranges, one range after the other."""
    before = np.cumsum(lengths) - lengths
    result: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(
        first.astype(np.int64) - before, lengths
    )
    return result


def _checked_pair(j: int, rows: Any, codes: Any, n_rows: int) -> tuple[Rows, Rows, Codes]:
    row = as_numpy(rows, name=f"rows of category {j}", error=ShapeError)
    code = as_numpy(codes, name=f"codes of category {j}", error=LabelError)
    if row.ndim != 1 or row.shape != code.shape or (row.size and row.dtype.kind not in "iu"):
        raise ShapeError(
            f"rows and codes of category {j} do not fit together.",
            found=f"rows {row.shape} {row.dtype}, codes {code.shape}",
            expected="two arrays of one length, the rows integers",
        )
    if row.size and (int(row.min()) < 0 or int(row.max()) >= n_rows):
        wrong = row[(row < 0) | (row >= n_rows)][0]
        raise ShapeError(
            f"category {j} has a label in a row that is not there.",
            found=f"row {int(wrong)}",
            expected=f"0 to {n_rows - 1:,}",
        )
    code = check_codes(code, where=lambda place: f"row {int(row[place[0]])} of category {j}")
    if bool((np.diff(row) <= 0).any()):
        order = np.argsort(row, kind="stable")
        row, code = row[order], code[order]
        twice = np.flatnonzero(np.diff(row) == 0)
        if len(twice):
            raise LabelError(
                f"category {j} has two labels for one row.", found=f"row {int(row[twice[0]])}"
            )
    here = code != UNKNOWN
    return np.array([np.count_nonzero(here)]), row[here], code[here]


def check_codes(array: NDArray[Any], *, where: Callable[[tuple[int, ...]], str]) -> Codes:
    """A new int8 array of codes."""
    if array.dtype.kind not in "biuf":
        raise LabelError(
            "label codes must be numbers.",
            found=f"dtype {array.dtype}",
            remedy="PartialLabels.from_array(y, encoding=…) reads texts, None and NaN",
        )
    good = np.isin(array, (-2, -1, 0, 1)) if array.dtype.kind == "f" else _in_range(array)
    if not good.all():
        place = tuple(int(i) for i in np.argwhere(~good)[0])
        raise LabelError(
            "label codes hold another value.",
            found=f"{array[place]} in {where(place)} (first of {int((~good).sum()):,})",
            expected="1 positive, 0 negative, -1 unknown, -2 uncertain",
            remedy="PartialLabels.from_array(y, encoding=…) reads other encodings",
        )
    return np.array(array, dtype=np.int8, order="C")


def _in_range(array: NDArray[Any]) -> NDArray[np.bool_]:
    if array.dtype.kind == "b":
        return np.ones((), dtype=bool)
    return (array <= 1) if array.dtype.kind == "u" else (array >= -2) & (array <= 1)
