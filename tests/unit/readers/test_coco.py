"""MS-COCO: instances become labels, every policy is counted, every fault is placed."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers.coco import read_coco
from catwise.errors import CategoryError, CatwiseError, ConfigError, IdError, LabelError
from faults import check_fault

#: As in the release: ids with gaps, not in the order of the list.
CATEGORIES = {62: "chair", 1: "person", 90: "toothbrush", 18: "dog"}
OUTLINE: dict[bool, Any] = {
    False: [[510.66, 423.01, 511.72, 420.03, 510.45, 423.0]],
    True: {"counts": [272, 2, 4, 4, 4, 4, 2, 9], "size": [240, 320]},
}
#: image → (category, iscrowd) of each instance.
TRAIN: dict[int, list[tuple[int, int]]] = {
    391895: [(1, 0), (1, 0), (18, 0)],
    9: [],
    522418: [(1, 1), (62, 0), (62, 1)],
    184613: [(18, 1)],
}
VAL: dict[int, list[tuple[int, int]]] = {139: [(90, 0)], 285: []}


def content(
    instances: dict[int, list[tuple[int, int]]], split: str = "train", year: int = 2014
) -> dict[str, Any]:
    """What an official file holds, with all the fields that nobody needs here."""
    start = f"COCO_{split}2014_" if year == 2014 else ""
    pairs = [(image, *pair) for image, found in instances.items() for pair in found]
    return {
        "info": {"description": f"COCO {year} Dataset", "year": year, "version": "1.0"},
        "images": [
            {
                "license": 3,
                "file_name": f"{start}{image:012d}.jpg",
                "coco_url": f"http://images.cocodataset.org/{split}{year}/{start}{image:012d}.jpg",
                "height": 360,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
                "id": image,
            }
            for image in instances
        ],
        "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "x"}],
        "annotations": [
            {
                "segmentation": OUTLINE[bool(crowd)],
                "area": 702.1057499999998,
                "iscrowd": crowd,
                "image_id": image,
                "bbox": [473.07, 395.93, 38.65, 28.67],
                "category_id": category,
                "id": 900100000000 + k,
            }
            for k, (image, category, crowd) in enumerate(pairs)
        ],
        "categories": [
            {"supercategory": "thing", "id": number, "name": name}
            for number, name in CATEGORIES.items()
        ],
    }


def write(root: Path, value: Any, split: str = "train", year: int = 2014) -> Path:
    path = root / "annotations" / f"instances_{split}{year}.json"
    path.parent.mkdir(exist_ok=True)
    text = value if isinstance(value, (str, bytes)) else json.dumps(value)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture
def root(tmp_path):
    write(tmp_path, content(TRAIN))
    write(tmp_path, content(VAL, "val"), "val")
    return tmp_path


def test_golden(root):
    """Both splits: codes, ids, paths, categories by id, splits and counts."""
    dataset = read_coco(root)
    assert dataset.name == "coco"
    assert dataset.labels.categories == ("person", "dog", "chair", "toothbrush")
    assert dataset.labels.ids.tolist() == ["391895", "522418", "184613", "139"]
    assert dataset.paths.tolist() == [
        "train2014/COCO_train2014_000000391895.jpg",
        "train2014/COCO_train2014_000000522418.jpg",
        "train2014/COCO_train2014_000000184613.jpg",
        "val2014/COCO_val2014_000000000139.jpg",
    ]
    assert dataset.splits.tolist() == ["train", "train", "train", "val"]
    assert dataset.groups is None
    np.testing.assert_array_equal(
        dataset.labels.codes, [[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    )
    assert dataset.counts == {
        "files": {
            "train": "annotations/instances_train2014.json",
            "val": "annotations/instances_val2014.json",
        },
        "images_in_files": {"train": 4, "val": 2},
        "annotations": 8,
        "crowd_annotations": 3,
        "labels_of_crowds_only": 2,
        "images_without_annotations": 2,
    }
    assert json.loads(json.dumps(dataset.counts)) == dataset.counts
    assert dataset.notes == (
        "COCO is labelled exhaustively: what an image has no instance of is negative.",
        "Crowd regions count as instances of their category.",
        "Images without any annotation are dropped.",
    )


@pytest.mark.parametrize(
    ("unannotated", "row"), [("negative", [0, 0, 0, 0]), ("unknown", [-1, -1, -1, -1])]
)
def test_images_without_annotations_are_kept(root, unannotated, row):
    """In the order of the file, with the codes asked for, counted alike."""
    dataset = read_coco(root, unannotated=unannotated)
    assert dataset.labels.ids.tolist() == ["391895", "9", "522418", "184613", "139", "285"]
    assert dataset.splits.tolist() == ["train"] * 4 + ["val"] * 2
    codes = dataset.labels.codes
    assert codes[1].tolist() == codes[5].tolist() == row
    assert codes[0].tolist() == [1, 1, 0, 0]
    assert dataset.counts["images_without_annotations"] == 2
    assert unannotated in dataset.notes[-1]


@pytest.mark.parametrize(("crowd", "code"), [("positive", 1), ("unknown", -1), ("ignore", 0)])
def test_crowds(root, crowd, code):
    """Only where there is nothing but crowd regions; images with crowds only are never dropped."""
    dataset = read_coco(root, split="train", crowd=crowd)
    assert dataset.labels.ids.tolist() == ["391895", "522418", "184613"]
    np.testing.assert_array_equal(
        dataset.labels.codes, [[1, 1, 0, 0], [code, 0, 1, 0], [0, code, 0, 0]]
    )
    assert dataset.counts["labels_of_crowds_only"] == 2


def test_one_split_and_the_release_of_2017(root):
    """Names of images are those of the file; other files are not touched."""
    write(root, content(VAL, "val", 2017), "val", 2017)
    write(root, "damaged", "train", 2017)
    dataset = read_coco(str(root), year=2017, split="val")
    assert dataset.paths.tolist() == ["val2017/000000000139.jpg"]
    assert dataset.counts["images_in_files"] == {"val": 2}
    assert read_coco(root, split="val").splits.tolist() == ["val"]


def test_only_the_splits_that_are_there(tmp_path):
    """Without a split asked for, a missing file is no error, and the counts tell."""
    write(tmp_path, content(VAL, "val"), "val")
    assert read_coco(tmp_path).counts["files"] == {"val": "annotations/instances_val2014.json"}
    with pytest.raises(LabelError, match="no file of annotations of COCO 2014") as caught:
        read_coco(tmp_path, split="train")
    assert "instances_train2014.json" in caught.value.expected
    with pytest.raises(LabelError, match="no file of annotations of COCO 2017") as caught:
        read_coco(tmp_path, year=2017)
    assert caught.value.remedy == "year=2014, whose files are there"
    with pytest.raises(LabelError, match="unpack annotations_trainval2014"):
        read_coco(tmp_path / "nowhere")


def test_layouts_of_the_file(tmp_path):
    """Indented, with a byte-order mark, other orders of fields, names beyond ASCII, NaN."""
    value = content(TRAIN)
    value["images"][0]["file_name"] = "größe\U0001f600.jpg"
    value["annotations"][0]["area"] = float("nan")
    write(tmp_path, value)
    expected = read_coco(tmp_path)
    assert expected.paths[0] == "train2014/größe\U0001f600.jpg"
    mixed = {name: value[name] for name in ("categories", "annotations", "images")}
    mixed["annotations"] = [dict(sorted(entry.items())) for entry in mixed["annotations"]]
    for text in (
        json.dumps(value, indent=2),
        "\ufeff" + json.dumps(value, ensure_ascii=False) + "\r\n\n",
        json.dumps(mixed, separators=(",", ":")),
    ):
        write(tmp_path, text)
        dataset = read_coco(tmp_path)
        assert dataset.labels == expected.labels
        assert dataset.paths.tolist() == expected.paths.tolist()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_labels_are_read_back(data):
    """Whatever instances are written, in whatever order, the labels are those."""
    numbers = data.draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=6, unique=True))
    pair = st.tuples(st.sampled_from(list(CATEGORIES)), st.integers(0, 1))
    instances = {n: data.draw(st.lists(pair, max_size=5)) for n in numbers}
    value = content(instances)
    value["annotations"] = data.draw(st.permutations(value["annotations"]))
    crowd = data.draw(st.sampled_from(["positive", "unknown", "ignore"]))
    bare = data.draw(st.sampled_from(["negative", "unknown"]))
    code = {"positive": 1, "unknown": -1, "ignore": 0}[crowd]
    expected = []
    for found in instances.values():
        row = [1 if (j, 0) in found else code if (j, 1) in found else 0 for j in sorted(CATEGORIES)]
        expected.append(row if found or bare == "negative" else [-1] * len(row))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), value)
        dataset = read_coco(folder, crowd=crowd, unannotated=bare)
    assert dataset.labels.ids.tolist() == [str(n) for n in numbers]
    assert dataset.labels.codes.tolist() == expected
    assert dataset.counts["images_without_annotations"] == sum(not f for f in instances.values())


def change(*path: Any, value: Any = None, delete: bool = False) -> bytes:
    """The file of train with one value put in or taken out."""
    whole = content(TRAIN)
    entry: Any = whole
    for key in path[:-1]:
        entry = entry[key]
    if delete:
        del entry[path[-1]]
    else:
        entry[path[-1]] = value
    return json.dumps(whole).encode()


WHOLE = json.dumps(content(TRAIN)).encode()

#: What is wrong → the file, the error, and what its message must hold.
FAULTS: dict[str, tuple[bytes, type[CatwiseError], list[str]]] = {
    "empty": (b"", LabelError, ["is empty"]),
    "blank": (b" \n", LabelError, ["is empty"]),
    "cut": (WHOLE[: len(WHOLE) // 2], LabelError, ["is truncated"]),
    "cut in a text": (WHOLE[: WHOLE.index(b"flickr_url") + 30], LabelError, ["is truncated"]),
    "zeroed end": (WHOLE[:-40] + bytes(40), LabelError, ["is truncated"]),
    "end lacks": (WHOLE[:-2] + b"}", LabelError, ["line 1, column", "is not JSON"]),
    "two objects": (WHOLE + b"\n" + WHOLE, LabelError, ["line 2, column 1", "Extra data"]),
    "words after": (WHOLE + b" end", LabelError, ["Extra data: 'end'"]),
    "comma": (b'{"images": [],\n}', LabelError, ["line 2, column 1", "is not JSON"]),
    "csv": (b"image,cat\na,1\n", LabelError, ["line 1, column 1: is not JSON", "image,cat"]),
    "latin-1": (
        b"\n" + WHOLE.replace(b"_000000391895", b"_\xe9", 1),
        LabelError,
        ["line 2: is not UTF-8", "is not UTF-8", "0xe9"],
    ),
    "UTF-16": (json.dumps(content(TRAIN)).encode("utf-16"), LabelError, ["is not UTF-8"]),
    "half a character": (WHOLE.replace(b"COCO_", b"\\ud83d", 1), LabelError, ["is damaged"]),
    "deep": (b'{"images": ' + b"[" * 9**5 + b"]" * 9**5 + b"}", LabelError, ["too deeply"]),
    "twice one field": (
        WHOLE.replace(b'"iscrowd": 0', b'"iscrowd": 0, "iscrowd": 1', 1),
        LabelError,
        ["a key twice", "iscrowd"],
    ),
    "a list": (b"[1]", LabelError, ["is not what it should be", "[1]", "an object"]),
    "no images": (change("images", delete=True), LabelError, ["has no list 'images'"]),
    "no annotations": (
        change("annotations", delete=True),
        LabelError,
        ["has no list 'annotations'", "image infos"],
    ),
    "null categories": (change("categories"), LabelError, ["has no list 'categories'"]),
    "zero images": (change("images", value=[]), LabelError, ["has no images"]),
    "zero categories": (change("categories", value=[]), LabelError, ["has no categories"]),
    "zero annotations": (change("annotations", value=[]), LabelError, ["has an annotation"]),
    "images as object": (
        change("images", value={"9": {}}),
        LabelError,
        [", images is not", "a list of objects"],
    ),
    "image as number": (
        change("images", 1, value=9),
        LabelError,
        ["images[1] is not", "an object"],
    ),
    "null image": (change("images", 1), LabelError, ["images without 'id'", "in images[1]"]),
    "no file name": (
        change("images", 2, "file_name", delete=True),
        LabelError,
        ["images without 'file_name'", "in images[2]", "a text"],
    ),
    "no iscrowd": (
        change("annotations", 3, "iscrowd", delete=True),
        LabelError,
        ["annotations without 'iscrowd'", "in annotations[3]"],
    ),
    "id as text": (
        change("images", 1, "id", value="9"),
        LabelError,
        ["images[1].id is not", '"9"', "a whole number"],
    ),
    "id as fraction": (change("images", 1, "id", value=9.0), LabelError, ["images[1].id", "9.0"]),
    "id as truth": (change("images", 1, "id", value=True), LabelError, ["images[1].id", "true"]),
    "huge id": (change("images", 1, "id", value=1 << 63), LabelError, ["images[1].id", "92233"]),
    "name as number": (
        change("categories", 3, "name", value=1),
        LabelError,
        ["categories[3].name is not", "a text"],
    ),
    "crowd 2": (
        change("annotations", 3, "iscrowd", value=2),
        LabelError,
        ["annotations[3].iscrowd (first", "2 in", "0 or 1"],
    ),
    "unknown image": (
        change("annotations", 4, "image_id", value=10),
        LabelError,
        ["annotations[4].image_id (first", "10 in", "4 ids of images"],
    ),
    "unknown category": (
        change("annotations", 4, "category_id", value=91),
        LabelError,
        ["annotations[4].category_id (first", "91 in"],
    ),
    "two images": (
        change("images", 3, "id", value=391895),
        IdError,
        ["duplicate id of images", "images[0] and images[3]"],
    ),
    "one path": (
        change("images", 3, "file_name", value="COCO_train2014_000000000009.jpg"),
        IdError,
        ["one path", "images[1] and images[3]"],
    ),
    "two categories": (
        change("categories", 2, "id", value=1),
        CategoryError,
        ["duplicate id of categories", "categories[1] and categories[2]"],
    ),
    "one name": (
        change("categories", 2, "name", value="dog"),
        CategoryError,
        ["duplicate name", "'dog'"],
    ),
    "blank name": (change("categories", 2, "name", value=" "), CategoryError, ["without a name"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    """Every fault has its error, which names the file and the place in it."""
    data, kind, messages = FAULTS[fault]
    path = write(tmp_path, data)
    check_fault(lambda: read_coco(tmp_path), kind, path, *messages)


@pytest.mark.parametrize(
    "name", ["", " ", "/x/a.jpg", "../a.jpg", "a/../../b.jpg", "a\\b.jpg", "..", "a\0.jpg"]
)
def test_names_that_lead_elsewhere(tmp_path, name):
    """A name must be that of a file inside the folder of its split."""
    write(tmp_path, change("images", 2, "file_name", value=name))
    with pytest.raises(LabelError, match=r"of file_name(.|\n)*images\[2\]\.file_name"):
        read_coco(tmp_path)


def test_splits_that_do_not_belong_together(root):
    """An image in both splits, and categories that differ."""
    write(root, content({**VAL, 9: [(1, 0)]}, "val"), "val")
    with pytest.raises(IdError, match="an image is in two splits") as caught:
        read_coco(root)
    assert caught.value.found.startswith("9 in ")
    assert "instances_train2014.json', images[1].id" in caught.value.found
    assert "instances_val2014.json', images[2].id" in caught.value.found
    value = content(VAL, "val")
    value["categories"][3]["name"] = "wolf"
    write(root, value, "val")
    with pytest.raises(CategoryError, match="different categories") as caught:
        read_coco(root)
    assert "(18, 'dog') in the first only" in caught.value.found
    value["categories"] = value["categories"][::-1]
    value["categories"][0]["name"] = "dog"
    write(root, value, "val")
    assert read_coco(root).labels.categories == ("person", "dog", "chair", "toothbrush")


def test_options(root):
    """Every option is checked, and the nearest choice suggested."""
    wrong: list[dict[str, Any]] = [
        {"year": 2015},
        {"split": "test"},
        {"unannotated": "negatives"},
        {"crowd": "no"},
        {"storage": "sparse"},
    ]
    for options in wrong:
        with pytest.raises(ConfigError):
            read_coco(root, **options)
    with pytest.raises(ConfigError, match="did you mean 'negative'"):
        read_coco(root, unannotated="negatives")
    assert read_coco(root, storage="columns").labels.storage == "columns"


def test_files_that_are_too_large(root, monkeypatch):
    """More than the parser can take as one block is refused before it is read."""
    monkeypatch.setattr("catwise.data.readers.coco.MAX_TEXT", 1000)
    with pytest.raises(LabelError, match="is too large"):
        read_coco(root)


def own_file(path: Path, *, text: bool, crowd: bool) -> None:
    """A file in COCO's format as other tools write it."""
    name = (lambda n: f"x{n}") if text else int
    document = {
        "images": [{"id": name(1), "file_name": "a/1.jpg"}, {"id": name(2), "file_name": "2.jpg"}],
        "annotations": [
            {"image_id": name(1), "category_id": name(7)} | ({"iscrowd": 0} if crowd else {}),
            {"image_id": name(2), "category_id": name(3)} | ({"iscrowd": 0} if crowd else {}),
        ],
        "categories": [{"id": name(7), "name": "cat"}, {"id": name(3), "name": "dog"}],
    }
    content = json.dumps(document).encode()
    if path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(content)
    else:
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("name", ["mine.json", "mine.json.gz", "mine.json.zst"])
def test_files_of_other_names(tmp_path: Path, name: str, crowd: bool, text: bool) -> None:
    """One file of any name, packed or not, with ids that are texts, without iscrowd."""
    own_file(tmp_path / name, text=text, crowd=crowd)
    read = read_coco(tmp_path / name)
    assert read.labels.categories == ("dog", "cat")
    assert read.labels.codes.tolist() == [[0, 1], [1, 0]]
    assert read.paths.tolist() == ["a/1.jpg", "2.jpg"]
    assert read.root == tmp_path
    assert read.splits.tolist() == ["", ""]
    own_file(tmp_path / "other.json", text=text, crowd=crowd)
    both = {"train": name.removesuffix(".gz").removesuffix(".zst"), "valid": "other.json"}
    with pytest.raises(IdError, match="in two splits"):
        read_coco(tmp_path, files=both)
    assert set(read_coco(tmp_path, files=both, split="train").splits) == {"train"}
    with pytest.raises(ConfigError, match="split"):
        read_coco(tmp_path, files=both, split="test")
    with pytest.raises(ConfigError, match="in a folder"):
        read_coco(tmp_path / name, files=both)


def test_iscrowd_in_some_entries_only(tmp_path: Path) -> None:
    """Where some annotations have it and others do not, something is wrong."""
    own_file(tmp_path / "mine.json", text=False, crowd=True)
    document = json.loads((tmp_path / "mine.json").read_text())
    del document["annotations"][1]["iscrowd"]
    (tmp_path / "mine.json").write_text(json.dumps(document))
    with pytest.raises(LabelError, match="annotations without 'iscrowd'"):
        read_coco(tmp_path / "mine.json")
