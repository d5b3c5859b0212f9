"""A label table of any kind as a data set: what it says of labels, splits and paths."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.data.arrays import ArrayFile, category_texts, is_arrays
from catwise.data.checks import refuse_two
from catwise.data.dataset import Dataset
from catwise.data.files import TableFile
from catwise.data.readers.lists import read_label_lists
from catwise.data.source import IdAffixes, texts_of
from catwise.data.table import open_labels, read_label_table
from catwise.errors import ConfigError, check_choice
from catwise.labels.audit import known_per_row
from catwise.labels.columns import Storage
from catwise.labels.core import PartialLabels

_AFFIXES: Final = ("id_prefix", "id_suffix", "strip_prefix", "strip_suffix")
_UNFIT: Final = ("layout", "path_column", "ignore", "delimiter")
LAYOUTS: Final = ("wide", "long", "lists")


def read_table(
    root: str | os.PathLike[str],
    *,
    layout: Literal["wide", "long", "lists"] = "wide",
    id_column: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    split: str | None = None,
    path_column: str | None = None,
    ignore: Sequence[str] = (),
    delimiter: str | None = None,
    header: bool | None = None,
    **options: Any,
) -> Dataset:
    r"""Read a label table with the split and the path of each image.

    Args:
        root: the file: .csv, .tsv, .tab, .jsonl, .ndjson (each also .gz or .zst), .parquet or .pq;
            or .npz, .safetensors or .npy: an array "labels" of rows and categories, and maybe
            "ids", "groups" and "categories", or what the columns below are called.
        layout: "wide": one row an image, one column a category; "long": one row a label; "lists":
            one row an image, columns that list categories, as for `read_label_lists`.
        id_column: the column of image ids. None: rows are positional (wide), "id" (long, lists).
        group_column: the column of groups, such as patients. None: no groups (wide, long), "group"
            if there is one (lists).
        split_column: the column that tells the split of each image. None: splits are blank.
        split: the split to read; None: every image.
        path_column: the column of image paths, from the folder of the table. None: paths are blank.
        ignore: further columns that are no categories (wide) or lists.
        delimiter: between the fields of a text table that is not separated as its suffix says.
        header: whether a text table has a header line, as for `read_label_table`.
        options: the others of `read_label_table`, such as `encoding`, which must be given (wide,
            long); or of `read_label_lists`, such as `others`, which must be given (lists).

    Returns:
        One row an image, in the order of the file. `counts` tells how many images
        have no known label; these stay.

    Raises:
        LabelError: As for `read_label_table` and `read_label_lists`.
        IdError: As for these, and if a long table has an image in two splits or at two paths.
        CategoryError: If a category is not there.
        ConfigError: If options do not go together.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels.csv")
    ...     _ = path.write_text("id,part,cat,dog\na.jpg,train,1,\nb.jpg,test,0,1\n")
    ...     read_table(path, encoding="nan", id_column="id", split_column="part")
    Dataset('labels.csv', n_images=2, n_categories=2, splits={'train': 1, 'test': 1})
    """
    _check_options(layout, split_column, split)
    path = Path(root)
    if is_arrays(path):
        columns = _ArrayColumns(id_column, group_column, split_column, split)
        unfit = [layout != "wide", path_column, ignore, delimiter]
        return _of_arrays(path, columns, unfit, **options)
    if layout != "wide" and id_column is None:
        id_column = "1" if header is False else "id"
    keys = [one for one in (id_column, group_column, split_column, path_column) if one is not None]
    asked = (*keys, *ignore, *(options.get("categories") or ()))
    file = open_labels(path, keys, delimiter=delimiter, header=header)
    file.check_header(asked, n_texts=2 if layout == "long" else 1)
    _require(file, split_column, path_column)
    others = [*([] if path_column is None else [path_column]), *ignore]
    options |= {"delimiter": delimiter, "header": header, "split": split}
    if layout == "lists":
        options |= {} if group_column is None else {"group_key": group_column}
        options |= {} if split_column is None else {"split_key": split_column}
        labels = read_label_lists(path, id_key=str(id_column), ignore=others, **options)
    else:
        beyond = others or (split_column is not None and split is None)
        if layout == "wide" and options.get("categories") is None and beyond:
            options |= _categories(file, keys, ignore)
        options |= {"group_column": group_column, "id_column": id_column}
        options["split_column"] = None if split is None else split_column
        labels = read_label_table(path, layout=layout, **options)
    by_id = id_column if layout == "long" else None
    splits, paths = _told(file, (split_column, path_column), labels, by_id, split)
    counts = {"images_without_known_label": int((known_per_row(labels) == 0).sum())}
    return Dataset(path.name, path.parent, paths, labels, splits, counts)


def _check_options(layout: str, split_column: str | None, split: str | None) -> None:
    check_choice("layout", layout, LAYOUTS)
    if split is not None and split_column is None:
        raise ConfigError("split needs split_column.", found=f"split={split!r}")


def _require(file: TableFile, split_column: str | None, path_column: str | None) -> None:
    """Refuse columns of splits and paths that are not there."""
    for column, role in ((split_column, "the split of each row"), (path_column, "the paths")):
        if column is not None:
            file.require(column, role)


def column_names(path: Path, column: str, *, delimiter: str | None = None) -> tuple[str, ...]:
    """Names of a table's columns, or of a file's arrays; `column` is one of names."""
    if is_arrays(path):
        return ArrayFile(path).names
    return open_labels(path, [column], delimiter=delimiter).names


def column_texts(
    path: Path, column: str, *, delimiter: str | None = None, header: bool | None = None
) -> NDArray[np.str_]:
    """One column of names of a table, or array of a file, a text for each row."""
    if is_arrays(path):
        file = ArrayFile(path)
        return file.texts(column, "the split of each row", file.labels().shape[0])
    table = open_labels(path, [column], delimiter=delimiter, header=header)
    parts = [texts_of(batch.column(0), column, table) for batch in table.batches([column])]
    return np.concatenate(parts)


class _ArrayColumns(NamedTuple):
    """What arrays hold ids, groups and splits, and the split that is wanted."""

    ids: str | None
    groups: str | None
    splits: str | None
    split: str | None


def _of_arrays(
    path: Path,
    columns: _ArrayColumns,
    unfit: Sequence[Any],
    *,
    encoding: Any = None,
    categories: Sequence[str] | None = None,
    storage: Storage = "auto",
    **affixes: str,
) -> Dataset:
    """Labels out of a file of arrays; ids and groups are its arrays "ids" and "groups"."""
    refused = {name for name, value in zip(_UNFIT, unfit, strict=True) if value}
    refused |= affixes.keys() - {"id_prefix", "id_suffix", "strip_prefix", "strip_suffix"}
    if refused:
        raise ConfigError(
            f"a file of arrays takes no {', '.join(sorted(refused))}.", found=f"'{path}'"
        )
    file = ArrayFile(path)
    values = file.labels()
    n, n_categories = values.shape
    ids, groups, splits = (
        file.texts(name or usual, role, n) if name or (usual and usual in file) else None
        for name, usual, role in (
            (columns.ids, "ids", "the image ids"),
            (columns.groups, "groups", "the groups"),
            (columns.splits, "", "the split of each row"),
        )
    )
    if ids is not None:
        shift = IdAffixes(*(affixes.get(field, "") for field in _AFFIXES))
        ids = shift.apply(ids, lambda i: f"'{path}', row {i:,}")
    labels = PartialLabels.from_array(
        file.open(values),
        encoding=encoding,
        ids=ids,
        groups=groups,
        categories=category_texts(file, n_categories),
        storage=storage,
    )
    if categories is not None:
        labels = labels.take_categories(categories)
    blank = np.zeros(n, dtype="U1")
    made = Dataset(path.name, path.parent, blank, labels, blank if splits is None else splits)
    made = made if columns.split is None else made.split(columns.split)
    counts = {"images_without_known_label": int((known_per_row(made.labels) == 0).sum())}
    return dataclasses.replace(made, counts=counts)


def _categories(file: TableFile, keys: Sequence[str], ignore: Sequence[str]) -> dict[str, Any]:
    """The columns of a wide table that are left."""
    for column in ignore:
        file.require(column, "no category")
    names = [name for name in file.names if name not in (*keys, *ignore)]
    return {"categories": names} if names else {}


def _told(
    file: TableFile,
    columns: tuple[str | None, str | None],
    labels: PartialLabels,
    id_column: str | None,
    split: str | None,
) -> list[NDArray[np.str_]]:
    """The split and the path of each image; blank where there is no such column."""
    wanted = dict.fromkeys(name for name in (*columns, id_column) if name is not None)
    parts: dict[str, list[NDArray[np.str_]]] = {name: [] for name in wanted}
    if any(columns):
        for batch in file.batches(list(wanted)):
            for name, column in parts.items():
                column.append(texts_of(batch.column(name), name, file))
    table = {name: np.concatenate(column) for name, column in parts.items() if column}
    rows = np.arange(len(next(iter(table.values()), ())))
    if split is not None and columns[0] is not None:
        rows = np.flatnonzero(table[columns[0]] == split)
    first = rows
    if id_column is not None and table:
        images = table[id_column][rows]
        for name in filter(None, columns):
            refuse_two(
                images,
                table[name][rows],
                lambda i: file.place(int(rows[i])),
                f"{file} has an image with two values in the column {name!r}.",
                expected="one value for each image",
            )
        first = rows[np.sort(np.unique(images, return_index=True)[1])]
    blank = np.zeros(labels.n_rows, dtype="U1")
    return [blank if name is None else table[name][first] for name in columns]
