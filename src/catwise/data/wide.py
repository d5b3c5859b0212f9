"""Wide label tables: one row an image, one column a category."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from catwise.data.files import listed
from catwise.data.source import LabelTable, encode_columns, read_rows, refuse_values
from catwise.errors import CategoryError, LabelError, nearest
from catwise.labels.codes import UNKNOWN, Codes, Rows
from catwise.labels.columns import COLUMNS_BELOW, Columns, Storage
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import UNFIT, Encoding
from catwise.labels.names import category_names

SPARSE_CATEGORIES: Final = 64


def read_wide(
    source: LabelTable, encoding: Encoding | None, wanted: list[str] | None, storage: Storage
) -> PartialLabels:
    """Read a wide table."""
    names = _categories(source, wanted)
    if encoding is None:
        refuse_values(source, names, None)

    def read(batch: Any, _origin: Rows) -> Codes | Columns:
        codes = encode_columns(batch, names, encoding)
        if bool((codes == UNFIT).any()):
            refuse_values(source, names, encoding)
        return _compressed(codes)

    remedy = "layout='long' if each row is one label"
    rows = read_rows(source, names, read, coded=names, remedy=remedy)
    return PartialLabels.from_content(
        _joined(rows.parts, rows.sizes),
        sum(rows.sizes),
        category_names(names, len(names)),
        ids=rows.ids,
        groups=rows.groups,
        storage=storage,
    )


def _categories(source: LabelTable, wanted: list[str] | None) -> list[str]:
    """The columns of the categories."""
    file, keys = source.file, set(source.keys)
    if wanted is None:
        wanted = [name for name in file.names if name not in keys]
    there = set(file.names)
    missing = [name for name in wanted if name not in there]
    if missing:
        raise CategoryError(
            f"{file.head()} has no column for {len(missing):,} of the categories asked for.",
            found=f"no {missing[0]!r}{nearest(missing[0], file.names)}",
            expected=listed(file.names),
        )
    if any(not name.strip(" \t") for name in wanted):
        raise CategoryError(
            f"{file.head()} has a column of labels without a name.",
            found=listed(wanted),
            remedy="name it in the file; or say that it holds something else (id_column='')",
        )
    if not wanted:
        raise LabelError(
            f"{file.head()} has no column of labels.",
            found=listed(file.names),
            remedy="layout='long' if each row is one label",
        )
    return wanted


def _compressed(codes: Codes) -> Codes | Columns:
    """A block of rows, as columns where that is smaller."""
    n_entries = np.count_nonzero(codes != UNKNOWN)
    sparse = n_entries < codes.size * COLUMNS_BELOW and codes.shape[1] >= SPARSE_CATEGORIES
    return Columns.from_dense(codes) if sparse else codes


def _joined(parts: list[Any], sizes: list[int]) -> Codes | Columns:
    """All rows: dense if any block is."""
    if all(isinstance(part, Columns) for part in parts):
        return Columns.stacked(parts, sizes)
    pairs = zip(parts, sizes, strict=True)
    dense = [part.dense(0, n) if isinstance(part, Columns) else part for part, n in pairs]
    return np.concatenate(dense)
