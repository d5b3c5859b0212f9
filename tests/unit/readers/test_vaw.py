"""VAW in miniature: instances, positives and negatives, and what can be wrong with them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers.vaw import read_vaw, read_vaw_instances
from catwise.errors import CategoryError, CatwiseError, ConfigError, IdError, LabelError

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.data import Dataset

ATTRIBUTES = ("amber", "red", "wooden", "wet", "sitting")
FILES = ("train_part1.json", "train_part2.json", "val.json", "test.json")


def instance(
    image: str | int,
    name: str | int,
    positive: list[Any],
    negative: list[Any],
    **others: Any,
) -> dict[str, Any]:
    """An instance, with all the fields of the release in its order."""
    return {
        "image_id": image,
        "instance_id": name,
        "instance_bbox": [0.0, 182.5, 500.25, 148.5],
        "instance_polygon": [[[432.5, 214.25], [425.75, 194.25], [447.5, 190.0]]],
        "object_name": "floor",
        "positive_attributes": positive,
        "negative_attributes": negative,
        **others,
    }


MINI = (
    [
        instance("2373241", "2373241004", ["red", "wet"], ["amber"]),
        instance("2373241", "2373241009", ["wooden"], [], instance_polygon=None),
    ],
    [instance("285797", "4225", [], ["red", "sitting"], object_name="dining table")],
    [instance("61513", "0713545", [], [])],
    [instance("498335", "498335000", ["sitting"], ["wet"], instance_bbox=[1, 2, 3, 4])],
)


def write_vaw(root: Path, files: Any = MINI, attributes: tuple[str, ...] = ATTRIBUTES) -> Path:
    """Write the folder data of the release; returns it."""
    folder = root / "data"
    folder.mkdir(parents=True, exist_ok=True)
    index = {name: j for j, name in enumerate(attributes)}
    (folder / "attribute_index.json").write_text(json.dumps(index))
    for name, instances in zip(FILES, files, strict=True):
        (folder / name).write_text(json.dumps(instances))
    return folder


def labels_by_name(dataset: Dataset) -> dict[str, tuple[set[str], set[str]]]:
    """Positives and negatives of each instance."""
    names = np.array(dataset.labels.categories)
    return {
        str(dataset.labels.ids[i]): (set(names[row == 1]), set(names[row == 0]))
        for i, row in enumerate(dataset.labels.codes)
    }


def test_golden(tmp_path):
    """The miniature."""
    write_vaw(tmp_path)
    dataset = read_vaw(tmp_path)
    assert dataset.name == "vaw"
    assert dataset.labels.categories == ATTRIBUTES
    assert dataset.labels.ids.tolist() == [
        "2373241004",
        "2373241009",
        "4225",
        "0713545",
        "498335000",
    ]
    assert dataset.groups.tolist() == ["2373241", "2373241", "285797", "61513", "498335"]
    assert dataset.splits.tolist() == ["train", "train", "train", "val", "test"]
    assert dataset.labels.codes.tolist() == [
        [0, 1, -1, 1, -1],
        [-1, -1, 1, -1, -1],
        [-1, 0, -1, -1, 0],
        [-1, -1, -1, -1, -1],
        [-1, -1, -1, 0, 1],
    ]
    assert dataset.paths.tolist() == [""] * 5
    assert dataset.root == tmp_path
    assert dataset.counts == {
        "instances_in_files": {
            "train_part1.json": 2,
            "train_part2.json": 1,
            "val.json": 1,
            "test.json": 1,
        },
        "images": 4,
        "images_in_two_splits": 0,
        "instances_without_labels": 1,
        "conflicting_labels": 0,
        "repeated_labels": 0,
        "images_without_files": 4,
        "images_in_both_folders": 0,
    }
    json.dumps(dataset.counts)
    assert dataset.notes == (
        "Rows are instances, which are objects in images; groups are the images.",
        "Positives and negatives are explicit; an attribute in neither list is unknown.",
        "There is no folder VG_100K or VG_100K_2: paths are blank.",
    )


def test_splits(tmp_path):
    """A split is read alone, train from its two parts; the rest need not be there."""
    folder = write_vaw(tmp_path)
    whole = read_vaw(tmp_path)
    for split in ("train", "val", "test"):
        assert read_vaw(tmp_path, split=split).labels == whole.split(split).labels
    (folder / "val.json").unlink()
    assert len(read_vaw(tmp_path, split="train")) == 3
    with pytest.raises(LabelError, match=r"no file '.*val\.json'"):
        read_vaw(tmp_path)
    (folder / "train_part2.json").unlink()
    with pytest.raises(LabelError, match=r"no file '.*train_part2\.json'"):
        read_vaw(tmp_path, split="train")


def test_places(tmp_path):
    """The root is the folder of the release or that of the JSON files."""
    folder = write_vaw(tmp_path)
    assert read_vaw(str(folder)).labels == read_vaw(tmp_path).labels
    with pytest.raises(LabelError, match=r"no file '.*attribute_index\.json'"):
        read_vaw(tmp_path / "nowhere")


def test_images(tmp_path):
    """Paths lead to the whole images of Visual Genome, wherever they are."""
    write_vaw(tmp_path / "vaw")
    other = tmp_path / "vg"
    with pytest.raises(LabelError, match="holds no images of Visual Genome"):
        read_vaw(tmp_path / "vaw", images=other)
    for folder, name in (("VG_100K", "2373241"), ("VG_100K_2", "61513")):
        (other / folder).mkdir(parents=True)
        (other / folder / f"{name}.jpg").touch()
    dataset = read_vaw(tmp_path / "vaw", images=other)
    assert dataset.root == other
    assert dataset.paths.tolist() == [
        "VG_100K/2373241.jpg",
        "VG_100K/2373241.jpg",
        "",
        "VG_100K_2/61513.jpg",
        "",
    ]
    assert dataset.counts["images_without_files"] == 2


def test_order_of_the_index(tmp_path):
    """Categories are in the order of their positions, not of the file."""
    folder = write_vaw(tmp_path)
    before = read_vaw(tmp_path).labels
    index = {name: j for j, name in enumerate(ATTRIBUTES)}
    (folder / "attribute_index.json").write_text(json.dumps(dict(reversed(index.items()))))
    assert read_vaw(tmp_path).labels == before


def test_whole_numbers(tmp_path):
    """Ids may be whole numbers, as the release describes them, or texts, as it has them."""
    files = ([instance(7, 70001, ["red"], [])], *MINI[1:])
    write_vaw(tmp_path, files)
    dataset = read_vaw(tmp_path)
    assert (dataset.labels.ids[0], dataset.groups[0]) == ("70001", "7")


@pytest.mark.parametrize(
    ("conflicts", "code"), [("unknown", -1), ("uncertain", -2), ("positive", 1), ("negative", 0)]
)
def test_conflicts(tmp_path, conflicts, code):
    """An attribute in both lists is read as asked for, counted and noted."""
    files = (*MINI[:3], [instance("9", "90", ["red", "wet", "red"], ["wet"])])
    write_vaw(tmp_path, files)
    dataset = read_vaw(tmp_path, conflicts=conflicts)
    assert dataset.labels.codes[-1].tolist() == [-1, 1, -1, code, -1]
    assert dataset.counts["conflicting_labels"] == 1
    assert dataset.counts["repeated_labels"] == 1
    assert dataset.notes[-1] == (
        f"An attribute that is both positive and negative is read as {conflicts}."
    )


def test_conflict_refused(tmp_path):
    """An attribute in both lists can be refused: file, instance and attribute are named."""
    conflict = instance("9", "90", ["amber", "wet"], ["wet"])
    write_vaw(
        tmp_path, (MINI[0], [*MINI[1], conflict], MINI[2], [instance("8", "8", ["red"], ["red"])])
    )
    words = r"train_part2\.json', instance 2 \(instance_id '90'\)(.|\n)*'wet' \(first of 2\)"
    with pytest.raises(LabelError, match=words):
        read_vaw(tmp_path, conflicts="error")
    assert read_vaw(tmp_path, split="val", conflicts="error").counts["conflicting_labels"] == 0


def test_image_in_two_splits(tmp_path):
    """An image with instances in two splits is counted."""
    write_vaw(tmp_path, (*MINI[:3], [instance("285797", "1", ["red"], [])]))
    dataset = read_vaw(tmp_path)
    assert dataset.counts["images_in_two_splits"] == 1
    assert dataset.counts["images"] == 3


sides = st.lists(st.sampled_from(ATTRIBUTES), max_size=4)
rows_of = st.lists(st.tuples(st.integers(0, 5), sides, sides), min_size=4, max_size=12)


@settings(max_examples=40, deadline=None)
@given(rows=rows_of, cuts=st.lists(st.integers(1, 3), min_size=3, max_size=3, unique=True))
def test_round_trip(tmp_path_factory, rows, cuts):
    """Labels that are written in the layout of the release are read back."""
    root = tmp_path_factory.mktemp("vaw")
    written = [instance(image, 100 + i, *some) for i, (image, *some) in enumerate(rows)]
    first, second, third = sorted(cuts)
    parts = (written[:first], written[first:second], written[second:third], written[third:])
    write_vaw(root, parts)
    dataset = read_vaw(root, conflicts="uncertain")
    assert labels_by_name(dataset) == {
        str(100 + i): (set(positive) - set(negative), set(negative) - set(positive))
        for i, (_, positive, negative) in enumerate(rows)
    }
    conflicts = [set(positive) & set(negative) for _, positive, negative in rows]
    assert int((dataset.labels.codes == -2).sum()) == sum(map(len, conflicts))
    assert dataset.counts["conflicting_labels"] == sum(map(len, conflicts))
    assert dataset.groups.tolist() == [str(image) for image, *_ in rows]
    assert dataset.counts["repeated_labels"] == sum(
        len(side) - len(set(side)) for _, *both in rows for side in both
    )
    shutil.rmtree(root)


def test_large_is_sparse(tmp_path):
    """With many instances and attributes, labels are stored as columns."""
    attributes = tuple(f"a{j}" for j in range(620))
    many = [instance(i // 3, i, [f"a{i % 620}"], ["a7", f"a{i * 31 % 620}"]) for i in range(2000)]
    write_vaw(tmp_path, (many[:900], many[900:1800], many[1800:1900], many[1900:]), attributes)
    dataset = read_vaw(tmp_path, conflicts="negative")
    assert dataset.labels.shape == (2000, 620)
    assert dataset.labels.storage == "columns"
    for i in (0, 7, 899, 900, 1999):
        expected = {f"a{i % 620}": 1} | {"a7": 0, f"a{i * 31 % 620}": 0}
        row = dataset.labels.block(i, i + 1)[0]
        assert {f"a{j}": int(row[j]) for j in np.flatnonzero(row != -1)} == expected


def test_instances(tmp_path):
    """Boxes and names of objects are in the order of the labels."""
    write_vaw(tmp_path)
    found = read_vaw_instances(tmp_path)
    assert found.ids.tolist() == read_vaw(tmp_path).labels.ids.tolist()
    assert found.boxes.dtype == np.float64
    assert found.boxes.tolist() == [[0.0, 182.5, 500.25, 148.5]] * 4 + [[1, 2, 3, 4]]
    assert found.objects.tolist() == ["floor", "floor", "dining table", "floor", "floor"]
    assert read_vaw_instances(tmp_path, split="test").ids.tolist() == ["498335000"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"instance_bbox": [1, 2, 3]}, "instance_bbox is not a box"),
        ({"instance_bbox": None}, "instance_bbox is not a box"),
        ({"instance_bbox": [1, 2, 3, "4"]}, "instance_bbox is not a box"),
        ({"instance_bbox": [1, 2, 3, float("nan")]}, "instance_bbox is not a box"),
        ({"instance_bbox": [1, 2, 3, 10**400]}, "instance_bbox is not a box"),
        ({"object_name": ""}, "object_name is not a name"),
        ({"object_name": 3}, "object_name is not a name"),
    ],
)
def test_bad_instances(tmp_path, fields, words):
    """What is wrong with a box or a name is told with the file and the instance."""
    write_vaw(tmp_path, (*MINI[:3], [*MINI[3], instance("1", "11", [], [], **fields)]))
    with pytest.raises(LabelError, match=r"test\.json', instance 2 \(instance_id '11'\): " + words):
        read_vaw_instances(tmp_path)
    assert len(read_vaw(tmp_path)) == 6


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in instance("1", "11", ["red"], []).items() if key != name}


HERE = r"train_part2\.json', instance 2 \(instance_id '11'\): "


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (without("positive_attributes"), LabelError, HERE + "there is no positive_attributes"),
        (without("negative_attributes"), LabelError, HERE + "there is no negative_attributes"),
        (without("image_id"), LabelError, HERE + "there is no image_id"),
        (without("instance_id"), LabelError, r"instance 2: there is no instance_id"),
        (["red"], LabelError, r"instance 2: not an object(.|\n)*a list"),
        (None, LabelError, r"instance 2: not an object(.|\n)*null"),
        (instance("1", "11", "red", []), LabelError, HERE + "positive_attributes is not a list"),
        (instance("1", "11", [], None), LabelError, HERE + "negative_attributes is not a list"),
        (
            instance("1", "11", [], ["ref"]),
            LabelError,
            HERE + r"negative_attributes holds an attribute that is not in attribute_index.json"
            r"(.|\n)*'ref' \(did you mean 'red'",
        ),
        (instance("1", "11", ["Red"], []), LabelError, HERE + r"positive(.|\n)*the text 'Red'"),
        (instance("1", "11", [3], []), LabelError, HERE + r"positive(.|\n)*the number 3"),
        (instance("1", "11", [["red"]], []), LabelError, HERE + r"positive(.|\n)*a list"),
        (instance("", "11", [], []), IdError, HERE + "image_id is not an id"),
        (instance(7.5, "11", [], []), IdError, HERE + "image_id is not an id(.|\n)*the number 7.5"),
        (instance(True, "11", [], []), IdError, HERE + "image_id is not an id(.|\n)*true"),
        (instance("1", "", [], []), IdError, r"instance_id is not an id"),
        (instance("1", None, [], []), IdError, r"instance 2: instance_id is not an id(.|\n)*null"),
        (
            instance("1", "2373241009", [], []),
            IdError,
            r"duplicate instance_id(.|\n)*part1\.json', instance 2 and .*part2\.json', instance 2",
        ),
        (
            instance("1", 4225, [], []),
            IdError,
            r"duplicate instance_id(.|\n)*part2\.json', instance 1 and .*part2\.json', instance 2",
        ),
    ],
)
def test_bad_labels(tmp_path, bad, error, words):
    """What is wrong with an instance is told with its file, its number and its id."""
    write_vaw(tmp_path, (MINI[0], [*MINI[1], bad], *MINI[2:]))
    with pytest.raises(error, match=words) as caught:
        read_vaw(tmp_path)
    assert "train_part2.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("[]", "is not a list of instances"),
        ("{}", "is not a list of instances"),
        ('{"image_id": "1"}', "is not a list of instances(.|\n)*an object"),
        ('[{"image_id": "1",\n "instance_id"', "is truncated(.|\n)*line 2"),
        (
            '[{"instance_id": "5", "image_id": "1", "image_id": "2"}]',
            "twice(.|\n)*'image_id' of '5'",
        ),
        ('[{"image_id": "1"},\n]', "line .: is not JSON|line ., column .*: is not JSON"),
    ],
)
def test_bad_files(tmp_path, content, words):
    """A file that is damaged or truncated is named."""
    (write_vaw(tmp_path) / "val.json").write_text(content)
    with pytest.raises(LabelError, match=words) as caught:
        read_vaw(tmp_path)
    assert "val.json" in str(caught.value)


def test_truncation(tmp_path):
    """A file that is cut anywhere is refused."""
    path = write_vaw(tmp_path) / "test.json"
    content = path.read_bytes()
    for n in range(len(content)):
        path.write_bytes(content[:n])
        with pytest.raises(CatwiseError, match=r"test\.json"):
            read_vaw(tmp_path, split="test")


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ('{"red": 0, "wet": 2}', LabelError, "'wet'"),
        ('{"red": 0, "wet": 0}', LabelError, "0 in 'red' and 'wet'"),
        ('{"red": 0, "": 1}', CategoryError, "has a blank name"),
        ('{"red": 0, "red": 1}', LabelError, "a key twice"),
    ],
)
def test_bad_index(tmp_path, content, error, words):
    """What is wrong with the index of attributes is told with its file."""
    (write_vaw(tmp_path) / "attribute_index.json").write_text(content)
    with pytest.raises(error, match=words) as caught:
        read_vaw(tmp_path)
    assert "attribute_index.json" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "valid"}, "did you mean 'val'"),
        ({"conflicts": "drop"}, "conflicts cannot be 'drop'"),
    ],
)
def test_bad_options(tmp_path, options, words):
    """Options that are not possible are named."""
    write_vaw(tmp_path)
    with pytest.raises(ConfigError, match=words):
        read_vaw(tmp_path, **options)
