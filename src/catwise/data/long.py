"""Long label tables: one row a label."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import first_rows, refuse_two, refuse_wrong
from catwise.data.files import TableFile, listed
from catwise.data.source import Source, check_textual, encode_column, refuse_values, texts_of
from catwise.errors import CategoryError, IdError, LabelError, nearest
from catwise.labels.codes import CODE_NAMES, Codes, Rows
from catwise.labels.columns import Storage
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import UNFIT, Encoding


class _Register:
    """Texts numbered in the order of their first appearance."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The texts, in order."""
        return list(self.numbers)

    def add(self, array: Any, column: str, file: TableFile) -> Rows:
        """The number of each row's text; nulls become ""."""
        import pyarrow as pa

        check_textual(array.type, column, file)
        if array.null_count or not pa.types.is_dictionary(array.type):
            array = array.cast(pa.string()).fill_null("").dictionary_encode()
        texts = texts_of(array.dictionary).tolist()
        local = array.indices.to_numpy(zero_copy_only=False)
        first = first_rows(local, len(texts))
        used = np.flatnonzero(first >= 0)
        numbers = np.full(len(texts), -1, dtype=np.int64)
        for i in used[np.argsort(first[used])].tolist():
            numbers[i] = self.numbers.setdefault(texts[i], len(self.numbers))
        result: Rows = numbers[local]
        return result


class _Rows:
    """The rows of a long table as numbers."""

    def __init__(self, source: Source, columns: tuple[str, str]) -> None:
        self.source = source
        self.category_column, self.value_column = columns
        self.ids, self.categories, self.groups = _Register(), _Register(), _Register()
        self.id_numbers: list[Rows] = []
        self.category_numbers: list[Rows] = []
        self.group_numbers: list[Rows] = []
        self.codes: list[Codes] = []
        self.origins: list[Rows] = []

    def add(self, batch: Any, origin: Rows, encoding: Encoding) -> bool:
        """Add a batch; False if the encoding does not know one of its values."""
        source = self.source
        codes = encode_column(batch.column(self.value_column), encoding)
        if bool((codes == UNFIT).any()):
            return False
        self.codes.append(codes)
        self.origins.append(origin)
        self.id_numbers.append(self._numbers(self.ids, batch, source.id_column, origin))
        self.category_numbers.append(
            self._numbers(self.categories, batch, self.category_column, origin)
        )
        if source.group_column is not None:
            self.group_numbers.append(
                self._numbers(self.groups, batch, source.group_column, origin)
            )
        return True

    def joined(self) -> _Entries:
        """All rows."""
        return _Entries(
            np.concatenate(self.id_numbers),
            np.concatenate(self.category_numbers),
            np.concatenate(self.group_numbers) if self.group_numbers else None,
            np.concatenate(self.codes),
            np.concatenate(self.origins),
        )

    def _numbers(self, register: _Register, batch: Any, column: str | None, origin: Rows) -> Rows:
        file = self.source.file
        numbers = register.add(batch.column(column), column or "", file)
        refuse_wrong(
            [""] * len(numbers),
            numbers != register.numbers.get("", -1),
            lambda i: file.place(int(origin[i]), column),
            f"{file} has a blank name.",
            error=LabelError if column == self.category_column else IdError,
            expected="a name in every row",
        )
        return numbers


class _Entries(NamedTuple):
    """All the rows of a long table: numbers of id, category and group, code, row in the file."""

    id: Rows
    category: Rows
    group: Rows | None
    code: Codes
    origin: Rows


def read_long(
    source: Source,
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
        refuse_values(source, columns[1:], None, named=True)
    rows = _Rows(source, columns)
    for batch, origin in source.batches(columns, coded=[*source.keys, *columns]):
        if not rows.add(batch, origin, encoding):
            refuse_values(source, columns[1:], encoding, named=True)
    entries = rows.joined()
    names = rows.categories.names
    if wanted is not None:
        entries = _chosen(source, entries, names, wanted, columns[0])
        names = wanted
    ids = np.array(rows.ids.names, dtype=np.str_)
    return PartialLabels.from_columns(
        _columns(source, entries, ids, names),
        len(ids),
        names,
        ids=_edged(source, ids, entries),
        groups=_groups(source, entries, ids, rows.groups.names),
        storage=storage,
    )


def _chosen(
    source: Source, entries: _Entries, names: list[str], wanted: list[str], column: str
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


def _everywhere(source: Source, column: str) -> set[str]:
    """The category names of all splits."""
    names: set[str] = set()
    for batch in source.file.batches([column], coded=[column]):
        names.update(np.unique(texts_of(batch.column(0))).tolist())
    return names


def _columns(
    source: Source, entries: _Entries, ids: NDArray[np.str_], names: list[str]
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
    source: Source, entries: _Entries, pair: tuple[int, int], what: str, n_twice: int
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


def _edged(source: Source, ids: NDArray[np.str_], entries: _Entries) -> NDArray[np.str_]:
    def place(i: int) -> str:
        row = int(np.flatnonzero(entries.id == i)[0])
        return source.file.place(int(entries.origin[row]), source.id_column)

    return source.edges.apply(ids, place)


def _groups(
    source: Source, entries: _Entries, ids: NDArray[np.str_], names: list[str]
) -> NDArray[np.str_] | None:
    """The group of each image; refuses an image in two groups."""
    if entries.group is None:
        return None
    groups = np.array(names, dtype=np.str_)
    refuse_two(
        entries.id,
        entries.group,
        lambda i: source.file.place(int(entries.origin[i])),
        f"{source.file} has an image in two groups.",
        names=(ids, groups),
        expected="one group for each image",
    )
    return groups[entries.group[first_rows(entries.id, len(ids))]]
