"""Labels as lists of categories: JSON lines, and tables whose cells hold several categories.

Also JSON lines with one key a category. JSON lines are read as one more kind of table: a key is a
column. Every error names the file, the line (the row of a Parquet file) and the column.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from catwise.data.checks import refuse_wrong
from catwise.data.files import TableFile, listed, open_table
from catwise.data.jsonl import JsonLines, is_json_lines
from catwise.data.source import IdAffixes, Interner, LabelTable, read_rows
from catwise.data.table import read_label_table
from catwise.errors import ConfigError, LabelError, nearest
from catwise.labels.codes import (
    CODE_NAMES,
    NEGATIVE,
    OTHERS,
    POSITIVE,
    UNCERTAIN,
    UNKNOWN,
    Codes,
    Rows,
)
from catwise.labels.columns import Columns, Storage
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import Encoding
from catwise.labels.names import refuse_repeats

TEXTS: Final = ("string", "large_string")
DEFAULTS: Final = ("positive", "negative", "uncertain", "group", "split")


def read_label_lists(
    path: str | os.PathLike[str],
    *,
    others: Literal["unknown", "negative"] | None = None,
    categories: Sequence[str] | None = None,
    id_key: str = "id",
    positive_key: str = "positive",
    negative_key: str = "negative",
    uncertain_key: str = "uncertain",
    group_key: str = "group",
    split_key: str = "split",
    split: str | None = None,
    ignore: Sequence[str] = (),
    separator: str | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
    id_prefix: str = "",
    id_suffix: str = "",
    strip_prefix: str = "",
    strip_suffix: str = "",
    storage: Storage = "auto",
) -> PartialLabels:
    r"""Read labels from records that list the categories of each image.

    A record of a JSON lines file is `{"id": "a.jpg", "positive": ["cat"], "negative": ["dog"]}`;
    lists may be absent, null or empty. A table has a column for each list, of texts such as
    "cat|dog" or, in Parquet, of lists. Keys and columns without a role are refused. Those of
    `DEFAULTS` may be absent from the file; any other name that is given must be there.

    Args:
        path: .jsonl or .ndjson (also .gz), or a table as for `read_label_table`.
        others: what it says about a category that it is in none of an image's lists: "unknown"
            nothing, "negative" that it is not there. It must be given.
        categories: which categories, in which order; the file may name no other. None: every
            category of the file, whatever the split, in the order of first appearance; in one
            record positives come first, then negatives.
        id_key: the key or column of image ids.
        positive_key: the key or column that lists the categories that are there.
        negative_key: the one that lists those that are not there.
        uncertain_key: the one that lists those that somebody could not tell.
        group_key: the one of groups, such as patients; all images have one, or none.
        split_key: the one that tells the split of each image.
        split: the split to read; images of the others are left out. None: every image.
        ignore: keys or columns that are not read.
        separator: between the categories of a text; must be given where a column holds texts, and
            only there. Space around the names is taken off.
        delimiter: between the fields of a text table, as for `read_label_table`.
        header: whether a text table has a header line, as for `read_label_table`; without one
            `id_key` is "1" and `positive_key` is "2" if nothing else is said.
        id_prefix: put before every id, so that ids are those of the features.
        id_suffix: put after every id.
        strip_prefix: taken from the start of every id first; each must have it.
        strip_suffix: taken from the end of every id first; each must have it.
        storage: as for `PartialLabels`. With others="negative" every label is known, and takes a
            byte at least.

    Returns:
        The labels; rows in the order of the file.

    Raises:
        LabelError: If the file cannot be read, has a key or column that is not expected, or lists
            a category of an image twice.
        IdError: If an id or group is blank or no text or whole number, or an id repeats.
        CategoryError: If a name is not one of `categories`.
        ConfigError: If `others` is not given, or options do not go together.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels.jsonl")
    ...     _ = path.write_text('{"id": "a", "positive": ["cat"]}\n{"id": "b"}\n')
    ...     read_label_lists(path, others="negative").codes.tolist()
    [[1], [0]]
    """
    fill = _meaning(others)
    if header is False:
        id_key = "1" if id_key == "id" else id_key
        positive_key = "2" if positive_key == "positive" else positive_key
    lists = (positive_key, negative_key, uncertain_key)
    keys = (id_key, *lists, group_key, split_key)
    _check_roles((*keys, *ignore))
    if is_json_lines(path):
        if separator is not None or delimiter is not None or header is False:
            raise ConfigError("separator, delimiter and header=False belong to tables.")
        file: TableFile = JsonLines.open(Path(path), (id_key, group_key, split_key), lists)
    else:
        file = _open_table(path, keys, lists, delimiter, header)
    _check_columns(file, keys, ignore, needed=() if split is None else (split_key,))
    affixes = IdAffixes(id_prefix, id_suffix, strip_prefix, strip_suffix)
    group = group_key if group_key in file.names else None
    source = LabelTable(file, id_key, group, None if split is None else split_key, split, affixes)
    codes = zip(lists, (POSITIVE, NEGATIVE, UNCERTAIN), strict=True)
    columns = _Lists(file, {key: code for key, code in codes if key in file.names}, separator)
    if not columns.codes:
        raise LabelError(f"{file} has no lists of categories.", found=listed(file.names))
    return _read(source, columns, Interner(categories), fill, storage)


def _meaning(others: str | None) -> int:
    if others not in OTHERS:
        what = "others must say what it means that a category is in none of an image's lists."
        found = f"others={others!r}{nearest(str(others), OTHERS)}"
        raise ConfigError(what, found=found, expected="'unknown' or 'negative'")
    return OTHERS[others]


def _open_table(
    path: str | os.PathLike[str],
    keys: Sequence[str],
    lists: Sequence[str],
    delimiter: str | None,
    header: bool | None,  # noqa: FBT001 - as the user gave it
) -> TableFile:
    """Open a table; a first line that names none of the lists may not be a header."""
    file = open_table(path, delimiter=delimiter, header=header)
    file.check_header(named=keys)
    if file.delimiter is not None and header is None and {*lists}.isdisjoint(file.names):
        raise LabelError(
            f"{file.head()} has no lists of categories.",
            found=listed(file.names),
            expected=" or ".join(map(repr, lists)),
            remedy="say which they are: positive_key='…' (--positive-column NAME), "
            "negative_key='…' (--negative-column NAME); or header=False (--no-header) if there is "
            "no header line: columns are then '1', '2', …",
        )
    return file


def _check_columns(
    file: TableFile, keys: Sequence[str], ignore: Sequence[str], needed: Sequence[str]
) -> None:
    """Refuse keys and columns without a role, and roles without a column that were named."""
    known = {*keys, *ignore}
    beyond = [name for name in file.names if name not in known]
    if beyond:
        line = f", line {file.first[beyond[0]]:,}" if isinstance(file, JsonLines) else ""
        raise LabelError(
            f"{file}{line}: has a key or column that is not expected.",
            found=f"{beyond[0]!r}{nearest(beyond[0], known)}",
            expected=", ".join(map(repr, keys)),
            remedy=f"say what it holds, or ignore={beyond!r}",
        )
    for key in keys:
        if key not in DEFAULTS or key in needed:
            file.require(key, "ids, labels, groups or splits")


def read_jsonl_table(
    path: str | os.PathLike[str],
    *,
    encoding: str | Encoding | None = None,
    id_key: str = "id",
    group_key: str | None = None,
    split_key: str | None = None,
    split: str | None = None,
    categories: Sequence[str] | None = None,
    id_prefix: str = "",
    id_suffix: str = "",
    strip_prefix: str = "",
    strip_suffix: str = "",
    storage: Storage = "auto",
) -> PartialLabels:
    r"""Read labels from JSON lines with one key a category: `{"id": "a.jpg", "cat": 1}`.

    A category that a record does not have is a blank, as null is: the encoding says what it means.
    Time goes with rows × categories; `read_label_lists` suits many categories better. A key is what
    a column is for :func:`~catwise.data.read_label_table`, whose other arguments and errors these
    are; no other key than `categories` is read, where they are given.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels.jsonl")
    ...     _ = path.write_text('{"id": "a", "cat": 1, "dog": null}\n{"id": "b", "cat": 0}\n')
    ...     read_jsonl_table(path, encoding="nan").codes.tolist()
    [[1, -1], [0, -1]]
    """
    if not is_json_lines(path):
        what = f"the suffix of '{path}' is not that of JSON lines."
        raise LabelError(what, expected=".jsonl or .ndjson (each also .gz)")
    if (split_key is None) != (split is None):
        found = f"split_key={split_key!r}, split={split!r}"
        raise ConfigError("split_key and split go together.", found=found)
    _check_roles([key for key in (id_key, group_key, split_key) if key is not None])
    return read_label_table(
        path,
        encoding=encoding,
        id_column=id_key,
        group_column=group_key,
        split_column=split_key,
        split=split,
        categories=categories,
        id_prefix=id_prefix,
        id_suffix=id_suffix,
        strip_prefix=strip_prefix,
        strip_suffix=strip_suffix,
        storage=storage,
    )


def _check_roles(keys: Sequence[str]) -> None:
    what = "a key or column is named twice."
    refuse_repeats(keys, "role {}".format, what, error=ConfigError)


class _Lists(NamedTuple):
    """The columns that list categories."""

    file: TableFile
    codes: dict[str, int]
    separator: str | None

    def entries(self, batch: Any, origin: Rows, names: Interner) -> tuple[Rows, Rows, Codes]:
        """(rows, categories, codes) of the entries of a batch, in the order of the file."""
        import pyarrow as pa

        keys = list(self.codes)
        parts = [self._items(batch.column(key), key, origin) for key in keys]
        kind = np.repeat(np.arange(len(keys)), [len(row) for row, _ in parts])
        row = np.concatenate([row for row, _ in parts])
        order = np.argsort(row, kind="stable")
        row, kind = row[order], kind[order]
        coded = pa.concat_arrays([items for _, items in parts]).dictionary_encode()
        texts, local = coded.dictionary.to_pylist(), coded.indices.to_numpy()[order]

        def place(i: int) -> str:
            return self.file.place(int(origin[row[i]]), keys[int(kind[i])])

        codes = np.array(list(self.codes.values()), dtype=np.int8)[kind]
        return row, names.add(texts, local, place), codes

    def _items(self, array: Any, key: str, origin: Rows) -> tuple[Rows, Any]:
        """(row, name) of each category that a column lists."""
        import pyarrow as pa
        from pyarrow import compute

        array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
        if str(array.type) in TEXTS:
            array = self._split(array, key)
        elif str(array.type) == "null":
            array = array.cast(pa.list_(pa.string()))
        nested = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
        items = compute.list_flatten(array) if nested else array
        items = items.dictionary_decode() if pa.types.is_dictionary(items.type) else items
        if str(items.type) not in (*TEXTS, "null") or not nested:
            found = str(array.type)
            raise LabelError(f"the column {key!r} of {self.file} holds no lists.", found=found)
        lengths = compute.fill_null(compute.list_value_length(array), 0).to_numpy()
        row = np.repeat(np.arange(len(array)), lengths)
        items = compute.utf8_trim_whitespace(items.cast(pa.string()).fill_null(""))
        refuse_wrong(
            items,
            compute.not_equal(items, ""),
            lambda i: self.file.place(int(origin[row[i]]), key),
            f"{self.file} has a blank name of a category.",
            error=LabelError,
        )
        return row, items

    def _split(self, array: Any, key: str) -> Any:
        """Texts as lists; blank ones are null."""
        import pyarrow as pa
        from pyarrow import compute

        if not self.separator:
            what = f"the column {key!r} of {self.file} holds texts: what separates the categories?"
            raise ConfigError(what, remedy="separator='|', or what the texts have")
        text = compute.utf8_trim_whitespace(array.cast(pa.string()))
        text = compute.if_else(compute.equal(text, ""), pa.scalar(None, pa.string()), text)
        return compute.split_pattern(text, self.separator)


def _read(
    source: LabelTable, lists: _Lists, names: Interner, fill: int, storage: Storage
) -> PartialLabels:
    """Read lists; `fill` is the code of what no list names."""
    file, keys = source.file, list(lists.codes)
    if source.split is not None and not names.fixed:
        start = 0
        for batch in file.batches(keys):  # every split shall have the same categories
            lists.entries(batch, np.arange(start, start + batch.num_rows), names)
            start += batch.num_rows

    def read(batch: Any, origin: Rows) -> Columns:
        return _compressed(file, origin, lists.entries(batch, origin, names), names)

    rows = read_rows(source, keys, read)
    if not names:
        raise LabelError(
            f"{file} names no category.", remedy="name the categories: categories=['…']"
        )
    for i, part in enumerate(rows.parts):  # the first ones know fewer categories
        ends = np.pad(part.starts, (0, len(names) - part.n_columns), mode="edge")
        rows.parts[i] = part._replace(starts=ends)
    columns = Columns.stacked(rows.parts, rows.sizes)
    content: Codes | Columns = columns
    if fill != UNKNOWN:
        content = columns.dense(0, sum(rows.sizes))
        content[content == UNKNOWN] = fill
    return PartialLabels.from_content(
        content, sum(rows.sizes), tuple(names), ids=rows.ids, groups=rows.groups, storage=storage
    )


def _compressed(
    file: TableFile, origin: Rows, entries: tuple[Rows, Rows, Codes], names: Interner
) -> Columns:
    """The entries of a batch as columns; refuses two of one image in one category."""
    row, category, code = entries
    n = max(len(origin), 1)
    packed = ((category * n + row) << 2) | (code + 2)  # sorts many times faster than an index
    packed.sort()
    pair, code = packed >> 2, ((packed & 3) - 2).astype(np.int8)
    twice = np.flatnonzero(pair[1:] == pair[:-1])
    if len(twice):
        k = int(twice[np.argmin(pair[twice] % n)])  # the first in the file
        name = list(names)[int(pair[k]) // n]
        found = " and ".join(CODE_NAMES[int(c)] for c in code[[k + 1, k]])
        raise LabelError(
            f"{file.place(int(origin[pair[k] % n]))}: a category is listed twice.",
            found=f"{name!r}: {found} (first of {len(twice):,} in this part of the file)",
            expected="each category in one list, once",
        )
    return Columns.joined([(np.bincount(pair // n, minlength=len(names)), pair % n, code)], n)
