"""Tables of every kind as data sets: labels, splits and paths in step."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, parquet

from catwise import data
from catwise.data import read_label_table, read_table
from catwise.errors import ConfigError, IdError, LabelError
from catwise.labels import ENCODINGS

ROWS: list[dict[str, Any]] = [
    {"id": "a", "who": "p", "part": "train", "file": "x/a.jpg", "cat": 1, "dog": None},
    {"id": "b", "who": "q", "part": "test", "file": "x/b.jpg", "cat": None, "dog": None},
    {"id": "c", "who": "p", "part": "train", "file": "c.jpg", "cat": 0, "dog": 1},
]
LONG = [
    {
        **{key: row[key] for key in ("id", "who", "part", "file")},
        "category": name,
        "value": row[name],
    }
    for row in ROWS
    for name in ("cat", "dog")
]
CODES = [[1, -1], [-1, -1], [0, 1]]
NAMES = {"id_column": "id", "group_column": "who", "split_column": "part", "path_column": "file"}


def write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    """The same rows in every format."""
    path = folder / f"labels{suffix}"
    table = pa.Table.from_pylist(rows)
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        mark = "," if suffix == ".csv" else "\t"
        csv.write_csv(table, path, csv.WriteOptions(delimiter=mark))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("layout", ["wide", "long"])
def test_every_format(tmp_path, suffix, layout):
    """Wide and long tables say the same in CSV, TSV, Parquet and JSON lines."""
    path = write(tmp_path, suffix, ROWS if layout == "wide" else LONG)
    found = read_table(path, layout=layout, encoding="nan", **NAMES)
    assert found.labels.codes.tolist() == CODES
    assert found.labels.categories == ("cat", "dog")
    assert found.labels.ids.tolist() == ["a", "b", "c"]
    assert found.groups.tolist() == ["p", "q", "p"]
    assert found.splits.tolist() == ["train", "test", "train"]
    assert found.paths.tolist() == ["x/a.jpg", "x/b.jpg", "c.jpg"]
    assert found.root == tmp_path
    assert found.counts == {"images_without_known_label": 1}
    part = read_table(path, layout=layout, encoding="nan", split="train", **NAMES)
    assert part.labels == found.split("train").labels
    assert part.paths.tolist() == ["x/a.jpg", "c.jpg"]


@pytest.mark.parametrize("split", [None, "train"])
def test_lists(tmp_path, split):
    """Lists of positives and negatives with splits and paths."""
    records = [
        {"id": "a", "part": "train", "file": "a.jpg", "positive": ["cat"], "note": 1},
        {"id": "b", "part": "test", "file": "b.jpg", "negative": ["cat", "dog"], "note": 2},
    ]
    path = write(tmp_path, ".jsonl", records)
    names = {"split_column": "part", "path_column": "file", "ignore": ["note"]}
    found = read_table(path, layout="lists", others="unknown", split=split, **names)
    assert found.paths.tolist() == ["a.jpg", "b.jpg"][: len(found)]
    assert found.splits.tolist() == ["train", "test"][: len(found)]
    assert found.labels.codes.tolist() == [[1, -1], [0, 0]][: len(found)]
    assert len(found) == (2 if split is None else 1)


def test_columns_that_are_not_named(tmp_path):
    """Without names of columns rows are positional, and splits and paths are blank."""
    path = write(tmp_path, ".csv", [{"cat": 1}, {"cat": 0}])
    found = read_table(path, encoding="nan")
    assert found.labels.ids is None
    assert found.splits.tolist() == found.paths.tolist() == ["", ""]


def test_an_image_at_two_places(tmp_path):
    """A long table must say the same of an image in each of its rows."""
    path = write(tmp_path, ".csv", [LONG[0], {**LONG[1], "file": "other.jpg"}])
    with pytest.raises(IdError, match="two values in the column 'file'") as caught:
        read_table(path, layout="long", encoding="nan", **NAMES)
    assert "'x/a.jpg' in" in str(caught.value)
    assert "line 3" in str(caught.value)


def test_faults(tmp_path):
    """Options that do not go together, and columns that are not there."""
    path = write(tmp_path, ".csv", ROWS)
    with pytest.raises(ConfigError, match="split needs split_column"):
        read_table(path, encoding="nan", split="train")
    with pytest.raises(ConfigError, match="layout cannot be 'list'"):
        read_table(path, layout="list")
    with pytest.raises(LabelError, match="no column 'parts'"):
        read_table(path, encoding="nan", split_column="parts")
    with pytest.raises(LabelError, match="no column 'files'"):
        read_table(path, encoding="nan", path_column="files")
    with pytest.raises(LabelError, match="no column 'notes'"):
        read_table(path, encoding="nan", ignore=["notes"])
    with pytest.raises(ConfigError, match="JSON lines have no delimiter"):
        read_label_table(tmp_path / "a.jsonl", encoding="nan", delimiter=";")


def test_names_of_json_lines_are_texts_or_whole_numbers(tmp_path):
    """In a long table of JSON lines a category that is a list or a fraction is refused."""
    for wrong in (1.5, ["cat"]):
        path = write(tmp_path, ".jsonl", [{"id": 1, "category": wrong, "value": 1}])
        with pytest.raises(IdError, match="line 1, key 'category'"):
            read_label_table(path, layout="long", encoding="nan")
    path = write(tmp_path, ".jsonl", [{"id": 1, "category": "cat", "value": True}])
    assert read_label_table(path, layout="long", encoding="nan").ids.tolist() == ["1"]


def test_readers_are_reachable():
    """Every reader is a name of `catwise.data`, and loads when asked for."""
    for name in data.readers.__all__:
        assert getattr(data, name) is getattr(data.readers, name)
        assert name in data.__all__
    with pytest.raises(AttributeError, match="no attribute 'read_imagenet'"):
        _ = data.read_imagenet


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_written_is_read(drawn):
    """Random labels, groups, splits and paths come back from every format and both layouts."""
    categories = drawn.draw(st.lists(TEXTS.map("k{}".format), min_size=1, max_size=4, unique=True))
    ids = drawn.draw(st.lists(TEXTS.map("i{}".format), min_size=1, max_size=6, unique=True))
    encoding = drawn.draw(st.sampled_from(["nan", "minus_one_uncertain", "zero_unknown"]))
    raw = {code: value for value, code in ENCODINGS[encoding].codes}
    labels = drawn.draw(
        st.lists(
            st.lists(
                st.sampled_from(sorted(raw)), min_size=len(categories), max_size=len(categories)
            ),
            min_size=len(ids),
            max_size=len(ids),
        )
    )
    told = {
        key: drawn.draw(st.lists(TEXTS, min_size=len(ids), max_size=len(ids)))
        for key in ("who", "part", "file")
    }
    keys = [{"id": name, **{k: v[i] for k, v in told.items()}} for i, name in enumerate(ids)]
    suffix = drawn.draw(st.sampled_from([".csv", ".tsv", ".parquet", ".jsonl"]))
    layout = drawn.draw(st.sampled_from(["wide", "long"]))
    rows: list[dict[str, Any]] = []
    for key, row in zip(keys, labels, strict=True):
        cells = {name: raw[code] for name, code in zip(categories, row, strict=True)}
        if layout == "wide":
            rows.append({**key, **cells})
        else:
            rows += [{**key, "category": name, "value": value} for name, value in cells.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), suffix, rows)
        found = read_table(path, layout=layout, encoding=encoding, **NAMES)
    assert found.labels.codes.tolist() == labels
    assert found.labels.categories == tuple(categories)
    assert found.labels.ids.tolist() == ids
    assert found.groups.tolist() == told["who"]
    assert found.splits.tolist() == told["part"]
    assert found.paths.tolist() == told["file"]
