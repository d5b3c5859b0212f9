"""A table opened for its labels: rows of one split, ids, groups, and values as codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import Place, first_rows, refuse_wrong
from catwise.data.files import TableFile, listed, no_rows
from catwise.errors import CategoryError, ConfigError, IdError, LabelError, nearest
from catwise.labels.codes import Codes, Rows
from catwise.labels.encodings import (
    UNFIT,
    Encoding,
    Raw,
    encode_values,
    encoding_error,
    fitting_encodings,
    raw_values,
    suggestion,
    unnamed_encoding,
)
from catwise.labels.names import category_names, refuse_repeats

TEXTS_AT_ONCE: Final = 1 << 16


class IdAffixes(NamedTuple):
    """What is taken from ids and put to them."""

    prefix: str
    suffix: str
    strip_prefix: str
    strip_suffix: str

    def apply(self, ids: NDArray[np.str_], place: Place) -> NDArray[np.str_]:
        """The ids as the features have them; `place` tells where id i is."""
        if not any(self):
            return ids
        checks = (
            (np.char.startswith(ids, self.strip_prefix), "begin", self.strip_prefix),
            (np.char.endswith(ids, self.strip_suffix), "end", self.strip_suffix),
        )
        for good, verb, text in checks:
            what = f"not every id {verb}s with {text!r}, which should be taken off."
            refuse_wrong(ids, good, place, what)
        cut = [i.removeprefix(self.strip_prefix).removesuffix(self.strip_suffix) for i in ids]
        return np.array([f"{self.prefix}{i}{self.suffix}" for i in cut], dtype=np.str_)


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A table and the columns that are not labels."""

    file: TableFile
    id_column: str | None
    group_column: str | None
    split_column: str | None
    split: str | None
    affixes: IdAffixes

    @property
    def keys(self) -> list[str]:
        """The columns that are not labels."""
        named = (self.id_column, self.group_column, self.split_column)
        return list(dict.fromkeys(name for name in named if name is not None))

    def check(self) -> None:
        """Refuse columns that are not there."""
        roles = ("the image ids", "the groups", "the split of each row")
        named = (self.id_column, self.group_column, self.split_column)
        for name, role in zip(named, roles, strict=True):
            if name is not None:
                self.file.require(name, role)
        if self.id_column is None and any(self.affixes):
            raise ConfigError("a prefix or suffix of ids needs an id_column.")

    def batches(self, labels: Sequence[str], coded: Sequence[str]) -> Iterator[tuple[Any, Rows]]:
        """Yield (batch, its rows in the file), only rows of the split."""
        columns = list(dict.fromkeys([*self.keys, *labels]))
        coded = [*coded, *([self.split_column] if self.split_column else [])]
        n_rows = n_taken = 0
        splits: Counter[str] = Counter()
        for batch in self.file.batches(columns, coded=coded):
            index = np.arange(batch.num_rows)
            if self.split_column is not None:
                found = texts_of(batch.column(self.split_column), self.split_column, self.file)
                splits.update(found.tolist())
                index = np.flatnonzero(found == self.split)
            if len(index):
                yield (batch.take(index) if self.split_column else batch), index + n_rows
            n_rows += batch.num_rows
            n_taken += len(index)
        if not n_rows:
            raise no_rows(str(self.file))
        if not n_taken:
            raise LabelError(
                f"{self.file} has no rows of the split {self.split!r}"
                f"{nearest(str(self.split), splits)}.",
                found=", ".join(f"{name!r} ({n:,})" for name, n in splits.most_common(8)),
            )

    def texts(self, batch: Any, column: str, origin: Rows) -> NDArray[np.str_]:
        """Ids or groups of a batch; blank ones are refused."""
        texts = texts_of(batch.column(column), column, self.file)
        kind = "id" if column == self.id_column else "group"
        what = f"{self.file} has a blank {kind}."
        refuse_wrong(texts, texts != "", in_rows(self.file, origin, column), what)
        return texts


def in_rows(file: TableFile, origin: Rows, column: str | None = None) -> Place:
    """The places of rows that are at `origin` in a file."""
    return lambda i: file.place(int(origin[i]), column)


class TableRows(NamedTuple):
    """What a table with one row an image holds: what was made of each batch, and the names."""

    parts: list[Any]
    sizes: list[int]
    ids: NDArray[np.str_] | None
    groups: NDArray[np.str_] | None


def read_rows(
    source: LabelTable,
    columns: Sequence[str],
    read: Callable[[Any, Rows], Any],
    *,
    coded: Sequence[str] = (),
    remedy: str | None = None,
) -> TableRows:
    """Read a table with one row an image; `read` gets each batch and its rows in the file."""
    file, column = source.file, source.id_column
    parts, origins = [], []
    ids: list[NDArray[np.str_]] = []
    groups: list[NDArray[np.str_]] = []
    for batch, origin in source.batches(columns, coded=coded):
        parts.append(read(batch, origin))
        origins.append(origin)
        for name, texts in ((column, ids), (source.group_column, groups)):
            if name is not None:
                texts.append(source.texts(batch, name, origin))
    at = np.concatenate(origins)
    named = None
    if ids:
        named = source.affixes.apply(np.concatenate(ids), in_rows(file, at, column))
        refuse_repeats(
            named,
            in_rows(file, at),
            f"{file} has a duplicate id.",
            expected="every id once",
            remedy=remedy,
        )
    grouped = np.concatenate(groups) if groups else None
    return TableRows(parts, list(map(len, origins)), named, grouped)


class Interner(dict[str, int]):
    """Names and their numbers: those asked for, or in the order of first appearance."""

    def __init__(self, wanted: Sequence[str] | None = None) -> None:
        names = () if wanted is None else category_names(wanted, len(wanted))
        super().__init__((name, j) for j, name in enumerate(names))
        self.fixed = wanted is not None

    def add(self, texts: list[str], local: Rows, place: Place) -> Rows:
        """The number of each row's text, (N,) from `local`; refuses one that was not asked for."""
        first = first_rows(local, len(texts))
        used = np.flatnonzero(first >= 0)
        numbers = np.full(len(texts), -1, dtype=np.int64)
        for i in used[np.argsort(first[used])].tolist():
            if self.fixed and texts[i] not in self:
                raise CategoryError(
                    f"{place(int(first[i]))}: no such category.",
                    found=f"{texts[i]!r}{nearest(texts[i], self)}",
                    expected=listed(list(self)),
                    remedy="add it to the categories asked for, or read all of them",
                )
            numbers[i] = self.setdefault(texts[i], len(self))
        result: Rows = numbers[local]
        return result


def texts_of(array: Any, column: str = "", file: TableFile | None = None) -> NDArray[np.str_]:
    """A column of texts or whole numbers as texts; nulls become ""."""
    import pyarrow as pa

    check_textual(array.type, column, file)
    texts = filled(array)
    parts = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    if len(parts) == 1 and (plain := _plain_texts(parts[0])) is not None:
        return plain
    return np.array(texts.to_pylist(), dtype=np.str_)


def filled(array: Any) -> Any:
    """An Arrow array of texts or whole numbers as texts, "" where it has nulls."""
    import pyarrow as pa

    texts = array.cast(pa.string())
    return texts.fill_null(text_scalar("")) if texts.null_count else texts


def text_scalar(text: str) -> Any:
    """A text as Arrow's, made from its bytes: `pyarrow.scalar` imports pandas where it is there."""
    import pyarrow as pa

    content = text.encode()
    ends = np.array([0, len(content)], dtype=np.int32)
    parts = [None, pa.py_buffer(ends), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.string(), 1, parts)[0]


def _plain_texts(texts: Any) -> NDArray[np.str_] | None:
    """Arrow texts as numpy's, without an object for each; None where one is not of ASCII."""
    _, ends, content = texts.buffers()
    if not len(texts) or content is None:
        return None
    bounds = np.frombuffer(ends, np.int32, len(texts) + 1, 4 * texts.offset)
    values = np.frombuffer(content, np.uint8, bounds[-1] - bounds[0], bounds[0])
    if not len(values) or values.max() > 127 or not values.min():
        return None
    lengths = np.diff(bounds)
    places = np.arange(lengths.max())
    found = np.zeros((len(texts), len(places)), dtype=np.uint32)  # numpy's texts are UTF-32
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        rows = slice(start, start + TEXTS_AT_ONCE)
        here = values[bounds[start] - bounds[0] : bounds[min(rows.stop, len(texts))] - bounds[0]]
        found[rows][places < lengths[rows, None]] = here
    return found.view(f"U{len(places)}").ravel()


def check_textual(kind: Any, column: str, file: TableFile | None) -> None:
    """Refuse a column of names that holds neither texts nor whole numbers."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or _is_text(kind) or pa.types.is_null(kind)):
        raise IdError(
            f"the column {column!r} of {file} must hold texts or whole numbers.", found=f"{kind}"
        )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def encode_column(array: Any, encoding: Encoding) -> Codes:
    """Codes of a column of raw values; `UNFIT` where the encoding does not know one."""
    values, index = _distinct(array)
    if index is None:
        return encode_values(values, encoding)
    return encode_values(values, encoding)[index]


def encode_columns(batch: Any, names: Sequence[str], encoding: Encoding) -> Codes:
    """(N, C) codes of columns of raw values; `UNFIT` where the encoding does not know one."""
    codes = np.empty((batch.num_rows, len(names)), dtype=np.int8)
    for j, name in enumerate(names):
        codes[:, j] = encode_column(batch.column(name), encoding)
    return codes


def _distinct(array: Any) -> tuple[NDArray[Any], Rows | None]:
    """(values, None), or (different values, index of each row's value)."""
    import pyarrow as pa

    if pa.types.is_null(array.type):
        return np.array([None], dtype=object), np.zeros(len(array), dtype=np.int64)
    if _is_text(array.type):
        array = array.dictionary_encode()
    if not pa.types.is_dictionary(array.type):
        return array.to_numpy(zero_copy_only=False), None
    values = np.array([*array.dictionary.to_pylist(), None], dtype=object)
    index = array.indices
    if index.null_count:
        index = index.cast(pa.int64()).fill_null(len(values) - 1)
    rows: Any = np.from_dlpack(index)  # `to_numpy` would import pandas
    return values, rows


def _seen(array: Any) -> set[Raw]:
    values, index = _distinct(array)
    return raw_values(values if index is None else values[np.unique(index)])


class _ValueSummary:
    """What the label columns hold, and where the first value is that does not fit."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.seen: dict[str, set[Raw]] = {name: set() for name in labels}
        self.n_unfit = 0
        self.first: tuple[int, str, Any] | None = None

    def add(self, batch: Any, origin: Rows, encoding: Encoding | None) -> None:
        """Look at one batch."""
        first: list[tuple[int, int, str]] = []
        for j, name in enumerate(self.seen):
            column = batch.column(name)
            self.seen[name] |= _seen(column)
            if encoding is not None:
                unfit = np.flatnonzero(encode_column(column, encoding) == UNFIT)
                self.n_unfit += len(unfit)
                first += [(int(unfit[0]), j, name)] if len(unfit) else []
        if first and self.first is None:
            row, _, name = min(first)
            self.first = int(origin[row]), name, batch.column(name)[row].as_py()

    def remedy(self) -> str:
        """Which encodings fit, and which columns look like no labels at all."""
        odd = [name for name, seen in self.seen.items() if not fitting_encodings(seen)]
        if not odd or len(odd) == len(self.seen):
            return suggestion(set().union(*self.seen.values()))
        rest = set().union(*(self.seen[name] for name in self.seen.keys() - {*odd}))
        return (
            f"leave out or correct {listed(odd)}, which no encoding fits: categories=['…'] "
            "(--ignore-column NAME, or --group-column NAME where it holds patients); "
            f"in the other columns {suggestion(rest)}"
        )


def refuse_values(source: LabelTable, labels: Sequence[str], encoding: Encoding | None) -> NoReturn:
    """Read the whole table once more, to say what is wrong with its values and what would fit."""
    summary = _ValueSummary(labels)
    for batch, origin in source.batches(labels, coded=labels):
        summary.add(batch, origin, encoding)
    remedy = summary.remedy()
    if encoding is None or summary.first is None:
        raise unnamed_encoding(remedy)
    row, column, value = summary.first
    where = source.file.place(row, column)
    raise encoding_error(encoding, value, where=where, n_unfit=summary.n_unfit, remedy=remedy)
