"""Long label tables: one row a label."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import first_rows, refuse_two, refuse_wrong
from catwise.data.files import listed
from catwise.data.source import (
    Interner,
    LabelTable,
    check_textual,
    encode_column,
    in_rows,
    refuse_values,
    texts_of,
)
from catwise.errors import CategoryError, IdError, LabelError, nearest
from catwise.labels.codes import CODE_NAMES, Codes, Rows
from catwise.labels.columns import Storage
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import UNFIT, Encoding


class _Entries(NamedTuple):
    """All the rows of a long table: numbers of category, id and group, code, row in the file."""

    category: Rows
    id: Rows
    group: Rows  # none where there are no groups
    code: Codes
    origin: Rows


def read_long(
    source: LabelTable,
    encoding: Encoding | None,
    wanted: list[str] | None,
    columns: tuple[str, str],
    storage: Storage,
) -> PartialLabels:
    """Read a long table."""
    file = source.file
    file.require(columns[0], "the category names")
    file.require(columns[1], "the values")
    if encoding is None:
        refuse_values(source, columns[1:], None)
    entries, found, images, groups = _read(source, encoding, columns)
    names = list(found) if wanted is None else wanted
    if wanted is not None:
        entries = _chosen(source, entries, list(found), wanted, columns[0])
    ids = np.array(list(images), dtype=np.str_)
    return PartialLabels.from_columns(
        _columns(source, entries, ids, names),
        len(ids),
        names,
        ids=_with_affixes(source, ids, entries),
        groups=_groups(source, entries, ids, list(groups)),
        storage=storage,
    )


def _read(
    source: LabelTable, encoding: Encoding, columns: tuple[str, str]
) -> tuple[_Entries, Interner, Interner, Interner]:
    """The rows as numbers, and the names of categories, images and groups."""
    roles = (columns[0], source.id_column, source.group_column)
    names = (Interner(), Interner(), Interner())
    parts = []
    for batch, origin in source.batches(columns, coded=[*source.keys, *columns]):
        codes = encode_column(batch.column(columns[1]), encoding)
        if bool((codes == UNFIT).any()):
            refuse_values(source, columns[1:], encoding)
        numbers = [
            codes[:0] if column is None else _numbers(source, name, batch, column, origin)
            for name, column in zip(names, roles, strict=True)
        ]
        parts.append((*numbers, codes, origin))
    return _Entries(*map(np.concatenate, zip(*parts, strict=True))), *names


def _numbers(source: LabelTable, names: Interner, batch: Any, column: str, origin: Rows) -> Rows:
    """The number of the name in each row; nulls and blanks are refused."""
    import pyarrow as pa

    file, array = source.file, batch.column(column)
    check_textual(array.type, column, file)
    if array.null_count or not pa.types.is_dictionary(array.type):
        array = array.cast(pa.string()).fill_null("").dictionary_encode()
    texts = texts_of(array.dictionary).tolist()
    local = array.indices.to_numpy(zero_copy_only=False)
    blank = texts.index("") if "" in texts else -1
    is_id = column in (source.id_column, source.group_column)
    place = in_rows(file, origin, column)
    refuse_wrong(
        [""] * len(local),
        local != blank,
        place,
        f"{file} has a blank name.",
        error=IdError if is_id else LabelError,
        expected="a name in every row",
    )
    return names.add(texts, local, place)


def _chosen(
    source: LabelTable, entries: _Entries, names: list[str], wanted: list[str], column: str
) -> _Entries:
    """Entries numbered by the categories asked for; -1 for the others."""
    missing = set(wanted) - set(names)
    if missing:
        missing -= _everywhere(source, column)
    if missing:
        name = next(name for name in wanted if name in missing)
        raise CategoryError(
            f"{source.file} has no label of {len(missing):,} of the categories asked for.",
            found=f"no {name!r}{nearest(name, names)}",
            expected=listed(names),
        )
    place = {name: j for j, name in enumerate(wanted)}
    number = np.array([place.get(name, -1) for name in names], dtype=np.int64)
    return entries._replace(category=number[entries.category])


def _everywhere(source: LabelTable, column: str) -> set[str]:
    """The category names of all splits."""
    names: set[str] = set()
    for batch in source.file.batches([column], coded=[column]):
        names.update(np.unique(texts_of(batch.column(0))).tolist())
    return names


def _columns(
    source: LabelTable, entries: _Entries, ids: NDArray[np.str_], names: list[str]
) -> list[tuple[Rows, Codes]]:
    """(rows, codes) of each category; refuses two labels of one image in one category."""
    here = np.flatnonzero(entries.category >= 0)
    key = entries.category[here] * len(ids) + entries.id[here]
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        k = twice[np.argmin(order[twice + 1])]  # the repeat that the file has first
        pair = int(here[order[k]]), int(here[order[k + 1]])
        image, category = str(ids[entries.id[pair[0]]]), names[int(entries.category[pair[0]])]
        what = f"image {image!r}, category {category!r}"
        raise _labelled_twice(source, entries, pair, what, len(twice))
    rows, codes = ordered % len(ids), entries.code[here][order]
    ends = np.searchsorted(ordered, np.arange(1, len(names)) * len(ids))
    return list(zip(np.split(rows, ends), np.split(codes, ends), strict=True))


def _labelled_twice(
    source: LabelTable, entries: _Entries, pair: tuple[int, int], what: str, n_twice: int
) -> IdError:
    meaning = [
        f"{CODE_NAMES[int(entries.code[i])]} in {source.file.place(int(entries.origin[i]))}"
        for i in pair
    ]
    return IdError(
        f"{source.file} has two labels of one image in one category.",
        found=f"{what}: {meaning[0]}, {meaning[1]} ({n_twice:,} repeats in all)",
        expected="each image and category once",
        remedy="settle which label holds before reading the table",
    )


def _with_affixes(source: LabelTable, ids: NDArray[np.str_], entries: _Entries) -> NDArray[np.str_]:
    def place(i: int) -> str:
        row = int(np.flatnonzero(entries.id == i)[0])
        return source.file.place(int(entries.origin[row]), source.id_column)

    return source.affixes.apply(ids, place)


def _groups(
    source: LabelTable, entries: _Entries, ids: NDArray[np.str_], names: list[str]
) -> NDArray[np.str_] | None:
    """The group of each image; refuses an image in two groups."""
    if source.group_column is None:
        return None
    groups = np.array(names, dtype=np.str_)
    refuse_two(
        entries.id,
        entries.group,
        in_rows(source.file, entries.origin),
        f"{source.file} has an image in two groups.",
        names=(ids, groups),
        expected="one group for each image",
    )
    return groups[entries.group[first_rows(entries.id, len(ids))]]
