"""LVIS: annotated is positive, verified absent is negative, and all else is unknown."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers.lvis import LvisCategory, read_lvis, read_lvis_categories
from catwise.errors import CategoryError, CatwiseError, ConfigError, IdError, LabelError
from faults import check_fault

NAMES = {1: "aerosol_can", 3: "bat_(animal)", 4: "Bible", 2: "air_conditioner", 5: "awning"}
FREQUENCIES = {1: "c", 2: "f", 3: "r", 4: "c", 5: "f"}
#: image → its folder, the category of each instance, what is absent, and what is not exhaustive.
Image = tuple[str, list[int], list[int], list[int]]
TRAIN: dict[int, Image] = {
    391895: ("train2017", [3, 3, 1], [5, 2], [3]),
    522418: ("train2017", [], [], []),
    184613: ("train2017", [2], [1], [2, 4]),
}
VAL: dict[int, Image] = {
    397133: ("val2017", [5], [4], []),
    37777: ("train2017", [], [1, 2, 3, 4, 5, 5], [4]),
}


def content(images: dict[int, Image], version: str = "v1") -> dict[str, Any]:
    """What an official file holds, with all the fields that nobody needs here."""
    names = {"file_name": "COCO_val2014_000000391895.jpg"} if version == "v0.5" else {}
    pairs = [(image, category) for image, found in images.items() for category in found[1]]
    return {
        "info": {"description": f"LVIS {version}", "version": version, "year": 2020},
        "licenses": [{"id": 1, "name": "x", "url": "http://creativecommons.org/licenses/by/2.0/"}],
        "images": [
            {
                "date_captured": "2013-11-14 16:28:13",
                "neg_category_ids": absent,
                "id": image,
                "license": 4,
                "height": 480,
                "width": 640,
                "flickr_url": "http://farm7.staticflickr.com/6116/6255196340_da26cf2c9e_z.jpg",
                "coco_url": f"http://images.cocodataset.org/{folder}/{image:012d}.jpg",
                "not_exhaustive_category_ids": partial,
                **names,
            }
            for image, (folder, _, absent, partial) in images.items()
        ],
        "annotations": [
            {
                "area": 1146.65,
                "id": k + 1,
                "segmentation": [[429.59, 361.22, 430.5, 366.01, 429.6, 361.2]],
                "image_id": image,
                "bbox": [429.59, 361.22, 0.91, 4.79],
                "category_id": category,
            }
            for k, (image, category) in enumerate(pairs)
        ],
        "categories": [
            {
                "image_count": 64,
                "synonyms": [name],
                "def": "a thing",
                "id": number,
                "synset": f"{name}.n.01",
                "name": name,
                "frequency": FREQUENCIES[number],
                "instance_count": 109,
            }
            for number, name in NAMES.items()
        ],
    }


def write(root: Path, value: Any, split: str = "train", version: str = "v1") -> Path:
    path = root / f"lvis_{version}_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path):
    write(tmp_path, content(TRAIN))
    write(tmp_path, content(VAL), "val")
    return tmp_path


CODES = [
    [1, 0, 1, -1, 0],
    [-1, -1, -1, -1, -1],
    [0, 1, -1, -1, -1],
    [-1, -1, -1, 0, 1],
    [0, 0, 0, -1, 0],
]


@pytest.mark.parametrize("storage", ["auto", "dense", "columns"])
def test_golden(root, storage):
    """Both splits: codes, ids, paths, categories by id, splits and counts."""
    dataset = read_lvis(root, storage=storage)
    assert dataset.name == "lvis"
    assert dataset.labels.storage == ("dense" if storage == "auto" else storage)
    assert dataset.labels.categories == (
        "aerosol_can",
        "air_conditioner",
        "bat_(animal)",
        "Bible",
        "awning",
    )
    assert dataset.labels.ids.tolist() == ["391895", "522418", "184613", "397133", "37777"]
    assert dataset.paths.tolist() == [
        "train2017/000000391895.jpg",
        "train2017/000000522418.jpg",
        "train2017/000000184613.jpg",
        "val2017/000000397133.jpg",
        "train2017/000000037777.jpg",
    ]
    assert dataset.splits.tolist() == ["train"] * 3 + ["val"] * 2
    assert dataset.groups is None
    np.testing.assert_array_equal(dataset.labels.codes, CODES)
    assert dataset.counts == {
        "files": {"train": "lvis_v1_train.json", "val": "lvis_v1_val.json"},
        "images_in_files": {"train": 3, "val": 2},
        "categories_by_frequency": {"r": 1, "c": 2, "f": 2},
        "annotations": 5,
        "annotated_and_negative": 0,
        "negative_and_not_exhaustive": 1,
        "not_exhaustive_positives": 2,
        "not_exhaustive_without_annotation": 2,
        "images_without_known_labels": 1,
    }
    assert json.loads(json.dumps(dataset.counts)) == dataset.counts
    assert len(dataset.notes) == 3


def test_columns_are_well_formed(root):
    """Columns built at once equal those that the dense codes give."""
    labels = read_lvis(root, storage="columns").labels
    dense = read_lvis(root, storage="dense").labels
    assert labels == dense
    assert int(labels.counts().known.sum()) == sum(code >= 0 for row in CODES for code in row)
    rows, codes = labels.entries("air_conditioner")
    assert rows.tolist() == [0, 2, 4]
    assert codes.tolist() == [0, 1, 0]


def test_many_categories_stay_sparse(tmp_path):
    """A matrix of a million entries is never dense, unless asked for."""
    images: dict[int, Image] = {i: ("train2017", [i % 5 + 1], [], []) for i in range(1, 1001)}
    value = content(images)
    value["categories"] = [
        {"id": j, "name": f"c{j}", "synset": f"c{j}.n.01", "frequency": "r"} for j in range(1, 1204)
    ]
    write(tmp_path, value)
    labels = read_lvis(tmp_path).labels
    assert labels.storage == "columns"
    assert labels.shape == (1000, 1203)
    assert labels.counts().positive[:6].tolist() == [200] * 5 + [0]


def test_version_and_place_of_the_file(tmp_path):
    """Files of v0.5 name images by the rules of 2014: their addresses tell where they are."""
    write(tmp_path / "annotations", content(VAL, "v0.5"), "val", "v0.5")
    dataset = read_lvis(tmp_path, version="v0.5")
    assert dataset.paths.tolist() == ["val2017/000000397133.jpg", "train2017/000000037777.jpg"]
    assert dataset.splits.tolist() == ["val", "val"]
    assert dataset.counts["files"] == {"val": "annotations/lvis_v0.5_val.json"}
    with pytest.raises(LabelError, match="no file of annotations of LVIS v1") as caught:
        read_lvis(str(tmp_path))
    assert caught.value.found == "lvis_v0.5_val.json"
    assert "'lvis_v1_train.json' or 'annotations/lvis_v1_val.json'" in caught.value.expected
    with pytest.raises(LabelError, match="no file of annotations"):
        read_lvis(tmp_path, version="v0.5", split="train")
    write(tmp_path, content(VAL, "v0.5"), "val", "v0.5")
    with pytest.raises(ConfigError, match="more than one file of annotations"):
        read_lvis(tmp_path, version="v0.5")


def test_categories(root):
    """Ordered as the labels are; another split has the same."""
    categories = read_lvis_categories(root)
    assert categories[2] == LvisCategory(3, "bat_(animal)", "bat_(animal).n.01", "r")
    assert tuple(category.name for category in categories) == read_lvis(root).labels.categories
    assert read_lvis_categories(root, split="val") == categories
    with pytest.raises(ConfigError, match="version"):
        read_lvis_categories(root, version="v2")  # type: ignore[arg-type]


def test_conflicts(root):
    """Annotated and listed as absent: an error with its place, or a policy that is counted."""
    images = {**TRAIN, 184613: ("train2017", [2, 5], [1, 2, 5], [2])}
    write(root, content(images))
    with pytest.raises(LabelError, match="as absent that is annotated") as caught:
        read_lvis(root)
    assert "lvis_v1_train.json', images[2].neg_category_ids" in str(caught.value)
    assert caught.value.found == "category 2 in annotations[3] (first of 2)"
    for conflict, code in (("positive", 1), ("unknown", -1)):
        dataset = read_lvis(root, conflict=conflict)
        assert dataset.labels.codes[2].tolist() == [0, code, -1, -1, code]
        assert dataset.labels.codes[0].tolist() == CODES[0]
        assert dataset.counts["annotated_and_negative"] == 2
        assert dataset.notes[-1].endswith(f"listed as absent is {conflict}.")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_labels_are_read_back(data):
    """Whatever is written, in whatever order, the labels are those."""
    some = st.lists(st.sampled_from(list(NAMES)), max_size=5)
    numbers = data.draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=6, unique=True))
    images = {n: ("val2017", *(data.draw(some) for _ in range(3))) for n in numbers}
    value = content(images)
    value["annotations"] = data.draw(st.permutations(value["annotations"]))
    value["categories"] = data.draw(st.permutations(value["categories"]))
    conflict = data.draw(st.sampled_from(["positive", "unknown"]))
    cut = data.draw(st.integers(0, len(numbers)))
    expected = []
    for _, found, absent, partial in images.values():
        row = []
        for j in sorted(NAMES):
            if j in found:
                row.append(-1 if j in absent and conflict == "unknown" else 1)
            else:
                row.append(0 if j in absent and j not in partial else -1)
        expected.append(row)
    with tempfile.TemporaryDirectory() as folder:
        for split, part in (("train", numbers[:cut]), ("val", numbers[cut:])):
            entries = [e for e in value["images"] if e["id"] in part]
            instances = [e for e in value["annotations"] if e["image_id"] in part]
            if part:
                write(Path(folder), {**value, "images": entries, "annotations": instances}, split)
        dataset = read_lvis(folder, conflict=conflict, storage="columns")
    assert dataset.labels.ids.tolist() == [str(n) for n in numbers]
    assert dataset.labels.codes.tolist() == expected
    assert (dataset.splits == "train").sum() == cut
    known = sum(any(code >= 0 for code in row) for row in expected)
    assert dataset.counts["images_without_known_labels"] == len(numbers) - known


def change(*path: Any, value: Any = None, delete: bool = False) -> dict[str, Any]:
    """The file of train with one value put in or taken out."""
    whole = content(TRAIN)
    entry: Any = whole
    for key in path[:-1]:
        entry = entry[key]
    if delete:
        del entry[path[-1]]
    else:
        entry[path[-1]] = value
    return whole


URL = "http://images.cocodataset.org"

#: What is wrong → the file, the error, and what its message must hold.
FAULTS: dict[str, tuple[Any, type[CatwiseError], list[str]]] = {
    "image infos": (change("annotations", delete=True), LabelError, ["no list 'annotations'"]),
    "a list": ([], LabelError, ["is not what it should be", "an object"]),
    "no absent": (
        change("images", 1, "neg_category_ids", delete=True),
        LabelError,
        ["images without 'neg_category_ids'", "in images[1]", "a list of whole numbers"],
    ),
    "no partial": (
        change("images", 2, "not_exhaustive_category_ids"),
        LabelError,
        ["images without 'not_exhaustive_category_ids'", "in images[2]"],
    ),
    "absent as number": (
        change("images", 0, "neg_category_ids", value=5),
        LabelError,
        ["images[0].neg_category_ids is not", "found:    5"],
    ),
    "absent as texts": (
        change("images", 0, "neg_category_ids", value=[2, "5"]),
        LabelError,
        ["images[0].neg_category_ids is not", '[2, "5"]'],
    ),
    "absent null": (
        change("images", 2, "neg_category_ids", value=[1, None]),
        LabelError,
        ["images[2].neg_category_ids is not", "a null in the list"],
    ),
    "absent unknown": (
        change("images", 2, "neg_category_ids", value=[1, 1204]),
        LabelError,
        ["images[2].neg_category_ids (first", "1204 in", "5 ids of categories"],
    ),
    "partial unknown": (
        change("images", 0, "not_exhaustive_category_ids", value=[0]),
        LabelError,
        ["images[0].not_exhaustive_category_ids (first", "0 in"],
    ),
    "annotated unknown": (
        change("annotations", 1, "category_id", value=6),
        LabelError,
        ["annotations[1].category_id (first"],
    ),
    "unknown image": (
        change("annotations", 1, "image_id", value=6),
        LabelError,
        ["annotations[1].image_id (first"],
    ),
    "no url": (
        change("images", 1, "coco_url", delete=True),
        LabelError,
        ["images without 'coco_url'", "in images[1]"],
    ),
    "frequency": (
        change("categories", 1, "frequency", value="x"),
        LabelError,
        ["categories[1].frequency (first", "'x'", "'r', 'c' or 'f'"],
    ),
    "no synset": (
        change("categories", 1, "synset", delete=True),
        LabelError,
        ["categories without 'synset'", "in categories[1]"],
    ),
    "two images": (
        change("images", 2, "id", value=391895),
        IdError,
        ["images[0] and images[2]"],
    ),
    "one path": (
        change("images", 2, "coco_url", value=f"{URL}/train2017/000000391895.jpg"),
        IdError,
        ["one path", "images[0] and images[2]"],
    ),
    "two categories": (
        change("categories", 4, "id", value=3),
        CategoryError,
        ["categories[1] and categories[4]"],
    ),
    "one name": (change("categories", 4, "name", value="Bible"), CategoryError, ["'Bible'"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    """Every fault has its error, which names the file and the place in it."""
    value, kind, messages = FAULTS[fault]
    path = write(tmp_path, value)
    check_fault(lambda: read_lvis(tmp_path), kind, path, *messages)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.jpg",
        "train2017/a.jpg",
        f"{URL}/a.jpg",
        f"{URL}/../a.jpg",
        f"{URL}/train2017/",
        f"{URL}/a.jpg?b",
    ],
)
def test_addresses_that_lead_nowhere(tmp_path, url):
    """An address must end with the folder and name of an image."""
    write(tmp_path, change("images", 1, "coco_url", value=url))
    with pytest.raises(LabelError, match=r"of coco_url(.|\n)*images\[1\]\.coco_url"):
        read_lvis(tmp_path)


def test_truncated(root):
    """A file that ends too early, for its labels and for its categories."""
    path = root / "lvis_v1_val.json"
    path.write_bytes(path.read_bytes()[:-100])
    for read in (read_lvis, read_lvis_categories):
        with pytest.raises(LabelError, match=r"lvis_v1_val\.json' is truncated"):
            read(root, split="val")


def test_splits_that_do_not_belong_together(root):
    """An image in both splits, and another release's categories."""
    write(root, content({**VAL, 391895: TRAIN[391895]}), "val")
    with pytest.raises(IdError, match="an image is in two splits"):
        read_lvis(root)
    value = content(VAL)
    value["categories"][1]["synset"] = "bat.n.02"
    write(root, value, "val")
    with pytest.raises(CategoryError, match="different categories") as caught:
        read_lvis(root)
    assert "(3, 'bat_(animal)', 'bat" in caught.value.found


def test_options(root):
    """Every option is checked."""
    wrong: list[dict[str, Any]] = [
        {"version": "v2"},
        {"split": "test"},
        {"conflict": "negative"},
        {"storage": "sparse"},
    ]
    for options in wrong:
        with pytest.raises(ConfigError):
            read_lvis(root, **options)
