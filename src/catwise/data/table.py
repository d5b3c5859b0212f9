"""Label tables in CSV, TSV, Parquet or JSON lines files: wide or long.

Wide: one row an image, one column a category. Long: one row a label: image id, category, value.
Every error names the file, the line (the row of a Parquet file) and the column.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from catwise.data.files import TableFile, open_table
from catwise.data.jsonl import JsonLines, is_json_lines
from catwise.data.long import read_long
from catwise.data.source import IdAffixes, LabelTable, texts_of
from catwise.data.wide import read_wide
from catwise.errors import CategoryError, ConfigError, check_choice
from catwise.labels.columns import Storage
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import Encoding, resolve_encoding


def read_label_table(
    path: str | os.PathLike[str],
    *,
    encoding: str | Encoding | None = None,
    layout: Literal["wide", "long"] = "wide",
    id_column: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    split: str | None = None,
    categories: Sequence[str] | None = None,
    category_column: str | None = None,
    value_column: str | None = None,
    id_prefix: str = "",
    id_suffix: str = "",
    strip_prefix: str = "",
    strip_suffix: str = "",
    delimiter: str | None = None,
    header: bool | None = None,
    storage: Storage = "auto",
) -> PartialLabels:
    r"""Read labels from a CSV, TSV, Parquet or JSON lines table.

    Args:
        path: the file: .csv, .tsv, .tab, .jsonl, .ndjson (each also .gz or .zst), .parquet or
            .pq. In JSON lines a key is a column; a key that a record does not have is a blank.
        encoding: what its values mean: a name in `catwise.labels.ENCODINGS`, or an `Encoding`. It
            must be given.
        layout: "wide": one row an image, one column a category; "long": one row a label.
        id_column: the column of image ids. None: rows are positional (wide), "id" (long; without a
            header "1").
        group_column: the column of groups, such as patients.
        split_column: the column that tells the split of each row; `split` must be given too.
        split: the split to read; rows of the others are left out.
        categories: which categories, in which order. None: all the other columns (wide), every
            category in order of appearance (long).
        category_column: the column of category names in a long table; None: "category" (without
            a header "2").
        value_column: the column of values in a long table; None: "value" (without a header "3").
        id_prefix: put before every id, so that ids are those of the features.
        id_suffix: put after every id.
        strip_prefix: taken from the start of every id first; each must have it.
        strip_suffix: taken from the end of every id first; each must have it.
        delimiter: between the fields of a text table that is not separated as its suffix says.
        header: whether a text table has a header line. None: it has, and a first line that looks
            like data is refused. False: it has none, and columns are "1", "2", … from the left.
        storage: as for `PartialLabels`.

    Returns:
        The labels; rows in the order of the file (wide) or of the ids' first appearance (long).

    Raises:
        LabelError: If the file is missing, unreadable, empty, truncated or damaged, lacks a column
            or the split, or its values do not fit the encoding.
        IdError: If an id or group is blank, an id repeats (wide) or has two labels in one category
            (long), or is in two groups.
        CategoryError: If a category is not there.
        ConfigError: If options do not go together.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels.csv")
    ...     _ = path.write_text("image,cat,dog\na,1,\nb,0,1\n")
    ...     labels = read_label_table(path, encoding="nan", id_column="image", id_suffix=".jpg")
    >>> labels.codes
    array([[ 1, -1],
           [ 0,  1]], dtype=int8)
    >>> labels.ids.tolist()
    ['a.jpg', 'b.jpg']
    """
    check_choice("layout", layout, ("wide", "long"))
    if layout == "wide" and (category_column or value_column):
        raise ConfigError("category_column and value_column belong to layout='long'.")
    if isinstance(categories, str):
        raise CategoryError("categories must be several names.", found=f"the text {categories!r}")
    chosen = None if encoding is None else resolve_encoding(encoding)
    wanted = None if categories is None else list(categories)
    usual = ("1", "2", "3") if header is False else ("id", "category", "value")
    if id_column is None and layout == "long":
        id_column = usual[0]
    names = category_column or usual[1], value_column or usual[2]
    source = _open_source(
        path,
        (id_column, group_column, split_column),
        split,
        IdAffixes(id_prefix, id_suffix, strip_prefix, strip_suffix),
        texts=names[:1] if layout == "long" else (),
        named=wanted or (),
        delimiter=delimiter,
        header=header,
    )
    if layout == "wide":
        return read_wide(source, chosen, wanted, storage)
    return read_long(source, chosen, wanted, names, storage)


def _open_source(
    path: str | os.PathLike[str],
    keys: tuple[str | None, str | None, str | None],
    split: str | None,
    affixes: IdAffixes,
    *,
    texts: Sequence[str],
    named: Sequence[str],
    delimiter: str | None,
    header: bool | None,
) -> LabelTable:
    """Open a table whose columns of ids, groups and splits are `keys`, and check them.

    `texts` are other columns of names, `named` the categories that were asked for.
    """
    if (keys[2] is None) != (split is None):
        found = f"split_column={keys[2]!r}, split={split!r}"
        raise ConfigError("split_column and split go together.", found=found)
    told = [*(name for name in keys if name is not None), *texts]
    source = LabelTable(
        open_labels(path, told, delimiter=delimiter, header=header), *keys, split, affixes
    )
    source.file.check_header([*source.keys, *named], n_texts=1 + len(texts))
    source.check()
    return source


def open_labels(
    path: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    delimiter: str | None = None,
    header: bool | None = None,
) -> TableFile:
    """Open a table of any kind; `texts` are the columns that hold names."""
    if not is_json_lines(path):
        return open_table(path, delimiter=delimiter, header=header)
    if header is False:
        raise ConfigError("header=False (--no-header) belongs to text tables.", found=f"'{path}'")
    if delimiter is not None:
        raise ConfigError("JSON lines have no delimiter.", found=f"delimiter={delimiter!r}")
    return JsonLines.open(Path(path), texts)


def split_counts(
    path: str | os.PathLike[str],
    split_column: str,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
) -> dict[str, int]:
    """How many rows of a table are in each split, in order of appearance; else LabelError."""
    file = open_labels(path, [split_column], delimiter=delimiter, header=header)
    file.check_header(named=[split_column])
    file.require(split_column, "the split of each row")
    counted: Counter[str] = Counter()
    for batch in file.batches([split_column], coded=[split_column]):
        counted.update(texts_of(batch.column(0)).tolist())
    return dict(counted)
