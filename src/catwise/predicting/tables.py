"""Predictions as CSV, Parquet or JSON lines, some rows at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from catwise._csv import columns_csv, defuse
from catwise.errors import ConfigError
from catwise.predicting.predictions import Predictions

FORMATS: Final = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""Formats by the suffix of the file."""
SEPARATOR: Final = "|"
"""Between the tags of an image in CSV."""

Write = Callable[[Predictions], None]


def format_of(path: Path) -> str:
    """The format of a file, by its suffix.

    >>> format_of(Path("tags.jsonl"))
    'jsonl'
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise ConfigError(
            f"the name of '{path}' does not say in which format predictions are written.",
            expected="a name that ends in " + ", ".join(FORMATS),
        )
    return found


def check_tags(categories: tuple[str, ...], kind: str) -> None:
    """Refuse names that a list of tags in a CSV cell could not hold."""
    if kind == "csv" and (wrong := [name for name in categories if SEPARATOR in name]):
        raise ConfigError(
            f"tags in CSV are separated by {SEPARATOR!r}, which a category has in its name.",
            found=repr(wrong[0]),
            remedy="write JSON lines or Parquet, which hold lists",
        )


@contextlib.contextmanager
def table_writer(path: Path, kind: str, *, tags: bool) -> Iterator[Write]:
    """Give a function that adds rows to a new file."""
    if kind == "parquet":
        with _parquet_writer(path, tags=tags) as write:
            yield write
        return
    with path.open("w", encoding="utf-8", newline="") as stream:
        if kind == "csv":
            yield _csv_writer(stream, tags=tags)
        elif tags:
            yield lambda rows: stream.writelines(map(_line, _tag_records(rows)))
        else:
            yield lambda rows: stream.writelines(map(_line, _records(rows)))


def _table(rows: Predictions, *, tags: bool) -> pa.Table:
    return rows.tag_table() if tags else rows.table()


@contextlib.contextmanager
def _parquet_writer(path: Path, *, tags: bool) -> Iterator[Write]:
    with contextlib.ExitStack() as opened:
        writers: list[Any] = []

        def write(rows: Predictions) -> None:
            table = _table(rows, tags=tags)
            if not writers:
                writers.append(opened.enter_context(pq.ParquetWriter(path, table.schema)))
            writers[0].write_table(table)

        yield write


def _csv_writer(stream: TextIO, *, tags: bool) -> Write:
    begun = False

    def write(rows: Predictions) -> None:
        nonlocal begun
        table = _table(rows, tags=tags)
        cells = {name: _cells(table.column(name)) for name in table.column_names}
        stream.write(columns_csv(cells, header=not begun))
        begun = True

    return write


def _cells(column: Any) -> list[str | None]:
    """Texts of a column: the shortest that a float32 reads back from; lists joined."""
    if pa.types.is_list(column.type):
        flat = _cells(column.combine_chunks().flatten())
        counts = [len(one) for one in column.to_pylist()]
        ends = [sum(counts[: at + 1]) for at in range(len(counts))]
        pairs = zip(counts, ends, strict=True)
        joined = (SEPARATOR.join(map(str, flat[end - count : end])) for count, end in pairs)
        return [defuse(text) for text in joined] if pa.types.is_string(
            column.type.value_type) else list(joined)  # fmt: skip
    if pa.types.is_string(column.type):
        return list(column.to_pylist())
    return list(column.cast(pa.string()).to_pylist())


def _number(value: Any) -> float:
    """A float32 by the shortest digits that tell it."""
    return float(str(value))


def _tag_records(rows: Predictions) -> Iterator[dict[str, Any]]:
    p = rows.probabilities.astype("float32")
    for name, own, tags in zip(rows.ids, p, rows.tags(), strict=True):
        at = [rows.categories.index(tag) for tag in tags]
        yield {"id": name, "tags": tags, "probabilities": [_number(own[c]) for c in at]}


def _records(rows: Predictions) -> Iterator[dict[str, Any]]:
    table = rows.table().to_pydict()
    p = rows.probabilities.astype("float32")
    keys = ["decision", *(["set"] if rows.sets is not None else []), "abstains"]
    for row, name in enumerate(rows.ids):
        found = {}
        for c, category in enumerate(rows.categories):
            more = {key: table[f"{key}:{category}"][row] for key in keys}
            found[category] = {"probability": _number(p[row, c]), **more}
        yield {"id": name, "categories": found}


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
