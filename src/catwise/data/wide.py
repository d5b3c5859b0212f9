"""Wide label tables: one row an image, one column a category."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from catwise.data.files import listed
from catwise.data.source import Source, encode_column, refuse_values
from catwise.errors import CategoryError, LabelError, nearest
from catwise.labels.codes import UNKNOWN, Codes, Rows
from catwise.labels.columns import COLUMNS_BELOW, Columns, Storage
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import UNFIT, Encoding
from catwise.labels.names import category_names, refuse_repeats

SPARSE_CATEGORIES: Final = 64


def read_wide(
    source: Source, encoding: Encoding | None, wanted: list[str] | None, storage: Storage
) -> PartialLabels:
    """Read a wide table."""
    names = _categories(source, wanted)
    if encoding is None:
        refuse_values(source, names, None, named=wanted is not None)
    blocks, ids, groups, origins = _Blocks(), [], [], []
    for batch, origin in source.batches(names, coded=names):
        codes = np.empty((batch.num_rows, len(names)), dtype=np.int8)
        for j, name in enumerate(names):
            codes[:, j] = encode_column(batch.column(name), encoding)
        if bool((codes == UNFIT).any()):
            refuse_values(source, names, encoding, named=wanted is not None)
        blocks.add(codes)
        origins.append(origin)
        if source.id_column is not None:
            ids.append(source.texts(batch, source.id_column, origin))
        if source.group_column is not None:
            groups.append(source.texts(batch, source.group_column, origin))
    return PartialLabels.from_content(
        blocks.joined(),
        blocks.n_rows,
        category_names(names, len(names)),
        ids=_ids(source, ids, np.concatenate(origins)),
        groups=np.concatenate(groups) if groups else None,
        storage=storage,
    )


def _categories(source: Source, wanted: list[str] | None) -> list[str]:
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


class _Blocks:
    """Blocks of rows, compressed where that is smaller."""

    def __init__(self) -> None:
        self.parts: list[Codes | Columns] = []
        self.sizes: list[int] = []

    @property
    def n_rows(self) -> int:
        """Rows so far."""
        return sum(self.sizes)

    def add(self, codes: Codes) -> None:
        """Add rows."""
        n_entries = np.count_nonzero(codes != UNKNOWN)
        sparse = n_entries < codes.size * COLUMNS_BELOW and codes.shape[1] >= SPARSE_CATEGORIES
        self.parts.append(Columns.from_dense(codes) if sparse else codes)
        self.sizes.append(len(codes))

    def joined(self) -> Codes | Columns:
        """All rows: dense if any block is."""
        if all(isinstance(part, Columns) for part in self.parts):
            return Columns.stacked(self.parts, self.sizes)  # type: ignore[arg-type]
        parts = zip(self.parts, self.sizes, strict=True)
        return np.concatenate(
            [part.dense(0, n) if isinstance(part, Columns) else part for part, n in parts]
        )


def _ids(source: Source, parts: list[NDArray[np.str_]], origin: Rows) -> NDArray[np.str_] | None:
    if not parts:
        return None
    file, column = source.file, source.id_column
    ids = source.edges.apply(np.concatenate(parts), lambda i: file.place(int(origin[i]), column))
    refuse_repeats(
        ids,
        lambda i: file.place(int(origin[i])),
        f"{file} has a duplicate id.",
        expected="every id once",
        remedy="layout='long' if each row is one label",
    )
    return ids
