"""Numbers that no computer holds, wherever a file of labels may have one: an error, never a crash.

Python reads no whole number of more than 4,300 digits, numpy none of more than 64 bits, and JSON
has numbers beyond what floats hold.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from catwise.data import read_table, readers
from catwise.data.readers.lvis import read_lvis_categories
from catwise.data.readers.vaw import read_vaw_instances
from catwise.errors import CatwiseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NUMBERS = ["7" * 10_000, "-" + "7" * 10_000, "7" * 10_000 + ".5", "9" * 20, "1e400", "NaN"]
MARK = "<number>"

COCO: Any = {
    "images": [{"id": 9, "file_name": "000000000009.jpg"}],
    "annotations": [{"id": 1, "image_id": 9, "category_id": 2, "iscrowd": 0}],
    "categories": [{"id": 2, "name": "cat"}],
}
LVIS: Any = {
    "images": [
        {"id": 9, "coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg",
         "neg_category_ids": [3], "not_exhaustive_category_ids": []},
    ],
    "annotations": [{"id": 1, "image_id": 9, "category_id": 2}],
    "categories": [
        {"id": 2, "name": "cat", "frequency": "f", "synset": "cat.n.01", "synonyms": ["cat"],
         "def": "a cat", "image_count": 1, "instance_count": 1},
        {"id": 3, "name": "dog", "frequency": "f", "synset": "dog.n.01", "synonyms": ["dog"],
         "def": "a dog", "image_count": 1, "instance_count": 1},
    ],
}  # fmt: skip
VAW: Any = [
    {"image_id": "71", "instance_id": "8", "instance_bbox": [1.0, 2, 3, 4], "object_name": "cat",
     "positive_attributes": ["wet"], "negative_attributes": ["red"],
     "instance_polygon": None},
]  # fmt: skip
GENOME: Any = {"1.jpg": [0, 3]}
LISTS: Any = {"id": "a", "positive": ["cat"], "negative": ["dog"], "group": "g", "split": "s"}

read_vaw = partial(readers.read_vaw, split="val")
read_instances = partial(read_vaw_instances, split="val")

#: Name of the file → its content, what it lies beside, and how it is read.
FILES: dict[str, tuple[Any, dict[str, Any], Callable[[Path], object]]] = {
    "annotations/instances_val2017.json": (
        COCO,
        {},
        lambda root: readers.read_coco(root, year=2017),
    ),
    "lvis_v1_val.json": (LVIS, {}, readers.read_lvis),
    "annotations/lvis_v1_val.json": (LVIS, {}, read_lvis_categories),
    "val.json": (VAW, {"attribute_index.json": {"red": 0, "wet": 1}}, read_vaw),
    "data/val.json": (VAW, {"data/attribute_index.json": {"red": 0, "wet": 1}}, read_instances),
    "attribute_index.json": ({"red": 0, "wet": 1}, {"val.json": VAW}, read_vaw),
    "vg_category_500_labels_index.json": (
        GENOME,
        {"train_list_500.txt": "1.jpg\n", "test_list_500.txt": "", "VG_100K/1.jpg": ""},
        lambda root: readers.read_visual_genome(root, n_categories=500, split="train"),
    ),
    "lists.jsonl": (
        LISTS,
        {},
        lambda root: readers.read_label_lists(root / "lists.jsonl", others="unknown"),
    ),
    "table.jsonl": (
        {"id": "a", "cat": 1, "g": "x"},
        {},
        lambda root: readers.read_jsonl_table(
            root / "table.jsonl", encoding="nan", group_key="g"
        ),
    ),
}  # fmt: skip


def put(root: Path, name: str, content: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def marked(value: Any) -> Iterator[Any]:
    """The value with a mark in place of each of its parts."""
    yield MARK
    if isinstance(value, dict):
        for key, part in value.items():
            yield from ({**value, key: other} for other in marked(part))
    elif isinstance(value, list):
        for at, part in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in marked(part))


@pytest.mark.parametrize("name", FILES)
def test_json(tmp_path: Path, name: str) -> None:
    """In the place of every part of a file of every kind that is JSON."""
    content, beside, read = FILES[name]
    for other, text in beside.items():
        put(tmp_path, other, text)
    put(tmp_path, name, content)
    read(tmp_path)  # as it is, it can be read
    reasons = []
    for value in marked(content):
        for number in NUMBERS:
            put(tmp_path, name, json.dumps(value).replace(json.dumps(MARK), number))
            try:
                read(tmp_path)
            except CatwiseError as error:
                reasons.append(str(error))
    assert len(reasons) >= len(NUMBERS)
    assert max(map(len, reasons)) < 1000


ENCODINGS = ["nan", "minus_one_unknown", "minus_one_uncertain", "zero_unknown", "codes", "complete"]


@pytest.mark.parametrize("number", NUMBERS[:-1])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_cells(tmp_path: Path, encoding: str, number: str) -> None:
    """A cell of a table that holds a label; as an id it is a text like others."""
    path = tmp_path / "labels.csv"
    for layout, text in (
        ("wide", f"id,cat\na,{number}\nb,1\n"),
        ("long", f"id,category,value\na,cat,{number}\nb,cat,1\n"),
    ):
        path.write_text(text)
        with pytest.raises(CatwiseError) as error:
            read_table(path, layout=layout, encoding=encoding, id_column="id")
        assert len(str(error.value)) < 1000
    path.write_text(f"id,cat\n{number},1\nb,1\n")
    found = read_table(path, encoding=encoding, id_column="id").labels
    assert found.ids is not None
    assert found.ids[0] == number
