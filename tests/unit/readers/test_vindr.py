"""VinDr-CXR: votes of radiologists in the layouts of PhysioNet and Kaggle."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data import open_table
from catwise.data.readers.vindr import (
    GLOBAL_LABELS,
    KAGGLE_CLASSES,
    LOCAL_LABELS,
    read_vindr,
)
from catwise.errors import CatwiseError, ConfigError, IdError, LabelError
from faults import check_fault

LABELS = (*LOCAL_LABELS, *GLOBAL_LABELS)
TRAIN, TEST, BOXES = "image_labels_train.csv", "image_labels_test.csv", "train.csv"
A, B, C = "50a418190bc3fb1ef1633bf9678929b3", "9a5094b2563a1ef3ff50dc5c7ff71345", "c" * 32
NAMES = ("Aortic enlargement", "Cardiomegaly", "Pneumonia", "No finding")

#: (image, radiologist, what the radiologist says is there), not ordered by image.
VOTES = [
    (B, "R10", {"No finding"}),
    (A, "R8", {"Aortic enlargement", "Cardiomegaly"}),
    (A, "R9", {"Aortic enlargement", "Pneumonia"}),
    (B, "R11", {"No finding"}),
    (A, "R10", {"Aortic enlargement", "Cardiomegaly"}),
    (B, "R8", {"Cardiomegaly"}),
]
#: Codes of `NAMES` for images B and A under each policy.
SETTLED = {
    "majority": ([0, 0, 0, 1], [1, 1, 0, 0]),
    "any": ([0, 1, 0, 1], [1, 1, 1, 0]),
    "all": ([0, 0, 0, 0], [1, 0, 0, 0]),
    "unanimous": ([0, -2, 0, -2], [1, -2, -2, 0]),
}

RULE = "a label is what more than half of its radiologists say; a tie is uncertain"


def codes_of(named: Any, categories: tuple[str, ...] = LABELS) -> list[list[int]]:
    """All codes, from those of `NAMES`; every other label is negative."""
    rows = [dict(zip(NAMES, row, strict=True)) for row in named]
    return [[row.get(name, 0) for name in categories] for row in rows]


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return path


def write_votes(path: Path, votes: list[tuple[str, str, Any]]) -> Path:
    """The training table of PhysioNet."""
    rows = [[image, rater, *[str(int(n in says)) for n in LABELS]] for image, rater, says in votes]
    return write_csv(path, [["image_id", "rad_id", *LABELS], *rows])


def write_consensus(path: Path, images: dict[str, Any]) -> Path:
    """The test table of PhysioNet, which spells one label otherwise."""
    head = ["image_id", *[name.replace("Other diseases", "Other disease") for name in LABELS]]
    rows = [[image, *[str(int(n in says)) for n in LABELS]] for image, says in images.items()]
    return write_csv(path, [head, *rows])


def write_boxes(path: Path, votes: list[tuple[str, str, Any]], boxes: int = 1) -> Path:
    """The table of Kaggle; labels that it does not have are left out."""
    rows = [["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]]
    for image, rater, says in votes:
        for name in [name for name in KAGGLE_CLASSES if name in says]:
            fields = [image, name, str(KAGGLE_CLASSES.index(name)), rater]
            if name == "No finding":
                rows.append([*fields, "", "", "", ""])
            else:
                rows += [[*fields, "691", f"{i}", "1653", "1831"] for i in range(boxes)]
    return write_csv(path, rows)


def write_physionet(root: Path) -> Path:
    """A small release of PhysioNet without images."""
    write_votes(root / "annotations" / TRAIN, VOTES)
    write_consensus(root / "annotations" / TEST, {C: {"Other diseases", "Cardiomegaly"}})
    return root


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_physionet(tmp_path):
    """Codes, ids, splits, counts and notes of a small release."""
    data = read_vindr(write_physionet(tmp_path))
    assert data.name == "vindr"
    assert data.root == tmp_path
    assert data.labels.categories == LABELS
    assert len(set(LABELS)) == 28
    np.testing.assert_array_equal(data.labels.codes[:2], codes_of(SETTLED["majority"]))
    assert data.labels.codes[2].tolist() == [int(n in ("Cardiomegaly", LABELS[26])) for n in LABELS]
    assert data.labels.ids.tolist() == [B, A, C]
    assert data.groups is None
    assert data.splits.tolist() == ["train", "train", "test"]
    assert data.paths.tolist() == [f"train/{B}.dicom", f"train/{A}.dicom", f"test/{C}.dicom"]
    disagreed = {"Cardiomegaly": 2, "Pneumonia": 1, "No finding": 1}
    assert data.counts == {
        "layout": "physionet",
        "tables": {"train": f"annotations/{TRAIN}", "test": f"annotations/{TEST}"},
        "raters": "majority",
        "radiologists": 4,
        "rows_of_train": 6,
        "images_by_radiologists": {"3": 2},
        "images_without_three_radiologists": 0,
        "labels_agreed_on": 2 * 28 - 4,
        "labels_disagreed_on": 4,
        "images_disagreed_on": {name: disagreed.get(name, 0) for name in LABELS},
        "ties_as_uncertain": 0,
        "blank_votes": 0,
        "contradictory_rows_of_train": 0,
        "blank_labels_of_test": 0,
        "contradictory_rows_of_test": 0,
    }
    assert json.loads(json.dumps(data.counts)) == data.counts
    assert data.notes == (
        f"train: labelled by radiologists on their own; {RULE}.",
        "There is no folder train; paths tell where its images should be.",
        "test: the consensus of five radiologists.",
        "There is no folder test; paths tell where its images should be.",
        "The release names no patients, so images are in no groups.",
    )


@pytest.mark.parametrize("policy", SETTLED)
def test_policies(tmp_path, policy):
    """Three votes become a label as the policy says, in both layouts; the test table stays."""
    data = read_vindr(write_physionet(tmp_path / "physionet"), raters=policy)
    np.testing.assert_array_equal(data.labels.codes[:2], codes_of(SETTLED[policy]))
    assert data.labels.codes[2].sum() == 2
    assert data.counts["raters"] == policy
    assert data.counts["labels_disagreed_on"] == 4
    votes = [(image, rater, says - {"Pneumonia"}) for image, rater, says in VOTES]
    write_boxes(tmp_path / "kaggle" / BOXES, votes, boxes=2)
    boxes = read_vindr(str(tmp_path / "kaggle"), raters=policy)
    named = [[*row[:2], 0, row[3]] for row in SETTLED[policy]]
    np.testing.assert_array_equal(boxes.labels.codes, codes_of(named, KAGGLE_CLASSES))
    assert boxes.counts["labels_disagreed_on"] == 3


def test_kaggle(tmp_path):
    """Codes, ids, counts and notes of a small release; many boxes of a finding are one vote."""
    write_boxes(tmp_path / BOXES, VOTES, boxes=2)
    data = read_vindr(tmp_path)
    assert data.labels.categories == KAGGLE_CLASSES
    assert set(KAGGLE_CLASSES) < set(LABELS)
    np.testing.assert_array_equal(data.labels.codes, codes_of(SETTLED["majority"], KAGGLE_CLASSES))
    assert data.labels.ids.tolist() == [B, A]
    assert data.groups is None
    assert data.splits.tolist() == ["train", "train"]
    assert data.paths.tolist() == [f"train/{B}.dicom", f"train/{A}.dicom"]
    assert data.counts["layout"] == "kaggle"
    assert data.counts["tables"] == {"train": BOXES}
    assert data.counts["rows_of_train"] == 14
    assert data.counts["radiologists"] == 4
    assert data.counts["images_by_radiologists"] == {"3": 2}
    assert data.notes[0] == "Only the split 'train' is here."
    assert "A finding is negative for a radiologist who drew no box of it." in data.notes


def test_ties_and_other_numbers_of_radiologists(tmp_path):
    """As many yes as no has no majority; other than three radiologists are counted."""
    votes = [
        (A, "R1", {"Edema"}),
        (A, "R2", set()),
        (B, "R1", {"Edema"}),
        *[(C, f"R{i}", {"Edema"} if i < 3 else set()) for i in range(5)],
    ]
    write_votes(tmp_path / TRAIN, votes)
    data = read_vindr(tmp_path)
    edema = LABELS.index("Edema")
    assert data.labels.codes[:, edema].tolist() == [-2, 1, 1]
    assert np.count_nonzero(data.labels.codes) == 3
    assert data.counts["ties_as_uncertain"] == 1
    assert data.counts["images_by_radiologists"] == {"1": 1, "2": 1, "5": 1}
    assert data.counts["images_without_three_radiologists"] == 3
    assert data.counts["tables"] == {"train": TRAIN}
    assert read_vindr(tmp_path, raters="any").counts["ties_as_uncertain"] == 0


def test_blank_cells(tmp_path):
    """A blank is no vote; without a vote, and in the test table, the label is unknown."""
    path = write_votes(tmp_path / TRAIN, [(A, f"R{i}", set()) for i in range(3)])
    lines = path.read_text().splitlines()
    lines[1] = f"{A},R0,1,," + ",".join("0" * 26)
    lines[2] = f"{A},R1,,,1.0," + ",".join("0" * 25)
    lines[3] = f"{A},R2,0,,1," + ",".join("0" * 25)
    path.write_text("\n".join(lines))
    change(write_consensus(tmp_path / TEST, {C: set()}), f"{C},0", f"{C},")
    for policy, first in {"majority": -2, "any": 1, "all": 0, "unanimous": -2}.items():
        data = read_vindr(tmp_path, raters=policy)
        assert data.labels.codes[0, :2].tolist() == [first, -1]
        assert data.counts["blank_votes"] == 4
        assert data.counts["labels_agreed_on"] == 25
    assert data.labels.codes[1, :2].tolist() == [-1, 0]
    assert data.counts["blank_labels_of_test"] == 1


def test_a_finding_and_no_finding(tmp_path):
    """Votes that contradict each other are taken as they are, and counted."""
    votes = [(A, f"R{i}", {"No finding", "Edema"}) for i in range(2)]
    write_votes(tmp_path / TRAIN, [*votes, (A, "R2", set())])
    write_consensus(tmp_path / TEST, {C: {"No finding", "COPD"}})
    data = read_vindr(tmp_path)
    assert data.labels.codes.sum(axis=1).tolist() == [2, 2]
    assert data.counts["contradictory_rows_of_train"] == 2
    assert data.counts["contradictory_rows_of_test"] == 1
    assert "train: 2 votes for 'No finding' next to a finding count as they are." in data.notes


def test_images(tmp_path):
    """Paths are empty for images that are not in their folder; other suffixes are asked for."""
    write_physionet(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / f"train/{A}.dicom").touch()
    (tmp_path / f"train/{B}.png").touch()
    data = read_vindr(tmp_path)
    assert data.paths.tolist() == ["", f"train/{A}.dicom", f"test/{C}.dicom"]
    assert data.counts["images_without_files"] == 1
    assert "There is no folder train; paths tell where its images should be." not in data.notes
    (tmp_path / "test").mkdir()
    png = read_vindr(tmp_path, suffix=".png")
    assert png.paths.tolist() == [f"train/{B}.png", "", ""]
    assert png.counts["images_without_files"] == 2
    with pytest.raises(ConfigError, match="begins with a dot"):
        read_vindr(tmp_path, suffix="png")


def test_splits_and_layouts(tmp_path):
    """A split has its table only; two layouts are refused until one is named."""
    write_physionet(tmp_path)
    test = read_vindr(tmp_path, split="test")
    assert test.labels.ids.tolist() == [C]
    assert "raters" not in test.counts
    assert test.counts["tables"] == {"test": f"annotations/{TEST}"}
    assert read_vindr(tmp_path, split="train").labels.ids.tolist() == [B, A]
    write_boxes(tmp_path / BOXES, VOTES)
    with pytest.raises(ConfigError, match="two layouts") as caught:
        read_vindr(tmp_path)
    assert TRAIN in caught.value.found
    assert BOXES in caught.value.found
    assert read_vindr(tmp_path, layout="kaggle").labels.n_categories == 15
    assert read_vindr(tmp_path, layout="physionet").labels.n_categories == 28
    with pytest.raises(
        LabelError, match=r"has no table of VinDr-CXR.* for the split 'test'"
    ) as caught:
        read_vindr(tmp_path, layout="kaggle", split="test")
    assert "test images have no labels" in caught.value.found
    (tmp_path / "annotations" / TRAIN).unlink()
    with pytest.raises(LabelError, match=r"no table of .* for the split 'train'") as caught:
        read_vindr(tmp_path, layout="physionet", split="train")
    assert caught.value.expected == f"'annotations/{TRAIN}' or '{TRAIN}'"
    for name, value in {"split": "valid", "raters": "mean", "layout": "nih"}.items():
        with pytest.raises(ConfigError, match=f"{name} cannot be '{value}'"):
            read_vindr(tmp_path, **{name: value})
    (tmp_path / BOXES).unlink()
    with pytest.raises(LabelError, match="no table of VinDr-CXR as on kaggle"):
        read_vindr(tmp_path, layout="kaggle")
    with pytest.raises(LabelError, match="no table of VinDr-CXR"):
        read_vindr(tmp_path / "nowhere")


#: What is wrong → the table, a text in it, what takes its place, the error, what it must say.
FAULTS: dict[str, tuple[str, str, str, type[CatwiseError], str]] = {
    "value": (TRAIN, f"{A},R9,1", f"{A},R9,2", LabelError, "line 4, column 'Aortic enlargement'"),
    "text": (TRAIN, f"{B},R10,0,0", f"{B},R10,0,x", LabelError, "line 2, column 'Atelectasis'"),
    "uncertain": (TEST, f"{C},0", f"{C},-1", LabelError, "line 2, column 'Aortic enlargement'"),
    "label column": (TRAIN, "Lung tumor", "Tumour", LabelError, "no column 'Lung tumor'"),
    "no radiologists": (TRAIN, "rad_id", "rater", LabelError, "no column 'rad_id'"),
    "no ids": (TEST, "image_id", "id", LabelError, "no column 'image_id'"),
    "blank id": (TRAIN, f"{A},R9", ",R9", IdError, "line 4, column 'image_id'"),
    "blank radiologist": (TRAIN, "R9", "", IdError, "line 4, column 'rad_id'"),
    "two rows": (TRAIN, f"{A},R10", f"{A},R8", IdError, "line 6 (1 repeats"),
    "ragged": (TRAIN, f"{A},R9,1", f"{A},R9,1,1", LabelError, "line 4: not as many fields"),
    "class": (BOXES, "Cardiomegaly,3", "Cardiomegaly,4", LabelError, "line 4, column 'class_id'"),
    "class name": (BOXES, "Cardiomegaly,3", "Big heart,3", LabelError, "Big heart'"),
    "class number": (BOXES, "finding,14,R10", "finding,15,R10", LabelError, "0 to 14"),
    "blank class": (BOXES, "Cardiomegaly,3", ",3", LabelError, "line 4, column 'class_name'"),
    "box without id": (BOXES, f"{A},Aortic", ",Aortic", IdError, "line 3, column 'image_id'"),
    "class column": (BOXES, "class_id", "label", LabelError, "the numbers of the findings"),
    "short box": (BOXES, "R11,,,,", "R11", LabelError, "line 6: not as many fields"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    """Every fault has its own error, which names the file and the place."""
    name, old, new, kind, message = FAULTS[fault]
    if name == BOXES:
        path = write_boxes(tmp_path / BOXES, VOTES)
    else:
        path = write_physionet(tmp_path) / "annotations" / name
    change(path, old, new)
    check_fault(lambda: read_vindr(tmp_path), kind, message, name)


@pytest.mark.parametrize("name", [TRAIN, TEST, BOXES])
def test_empty_and_cut_tables(tmp_path, name):
    """A table without rows, cut or empty is named."""
    write_boxes(tmp_path / BOXES, VOTES) if name == BOXES else write_physionet(tmp_path)
    path = tmp_path / name if name == BOXES else tmp_path / "annotations" / name
    text = path.read_text()
    path.write_text(text[:-12])
    with pytest.raises(LabelError, match=f"{name}' is truncated"):
        read_vindr(tmp_path)
    path.write_text(text.splitlines()[0] + "\n")
    with pytest.raises(LabelError, match=f"{name}' has a header but no rows"):
        read_vindr(tmp_path)
    path.write_text("")
    with pytest.raises(LabelError, match=f"{name}' is empty"):
        read_vindr(tmp_path)


@pytest.mark.parametrize("name", [TRAIN, BOXES])
def test_tables_of_many_blocks(tmp_path, name, monkeypatch):
    """A table that is read in several blocks gives the same labels and the same places."""
    says = {"R1": {"ILD", "Edema"}, "R2": {"ILD", "Calcification"}}
    votes = [(f"image{i}", rater, says[rater]) for i in range(300) for rater in says]
    path = (write_boxes if name == BOXES else write_votes)(tmp_path / name, votes)
    whole = read_vindr(tmp_path)
    monkeypatch.setattr("catwise.data.files.BLOCK_BYTES", 1 << 12)
    assert len(list(open_table(path).batches(["image_id"]))) > 3
    blocks = read_vindr(tmp_path)
    assert blocks.labels == whole.labels
    assert blocks.counts == whole.counts
    change(path, "image299,", ",")
    line = 1 + path.read_text()[: path.read_text().index("\n,") + 1].count("\n")
    assert line > 500
    with pytest.raises(IdError, match=f"line {line}, column 'image_id'"):
        read_vindr(tmp_path)


def test_the_first_of_many_faults(tmp_path, monkeypatch):
    """Of many values without meaning, and of many repeats, the first of the file is shown."""
    votes = [(f"{(i * 7) % 97}", f"R{k}", set()) for k in (1, 2) for i in range(97)]
    path = write_votes(tmp_path / TRAIN, votes)
    good = path.read_text()
    monkeypatch.setattr("catwise.data.files.BLOCK_BYTES", 1 << 12)
    path.write_text(good.replace(",R2,0,0", ",R2,0,5"))
    with pytest.raises(LabelError) as caught:
        read_vindr(tmp_path)
    assert f"{TRAIN}', line 99, column 'Atelectasis' (first of 97)" in caught.value.found
    path.write_text(good.replace("R2", "R1"))
    with pytest.raises(IdError, match="two rows of one radiologist") as caught:
        read_vindr(tmp_path)
    assert f"'0 by R1' in '{path}', line 2 and '{path}', line 99 (97" in caught.value.found
    path.write_text(good.replace(",R2,", ",R1,").replace("0,R1,", "0,R3,", 1))
    with pytest.raises(IdError) as caught:
        read_vindr(tmp_path)
    assert f"'7 by R1' in '{path}', line 3 and '{path}', line 100 (96" in caught.value.found


def test_images_twice(tmp_path):
    """An image is once in the test table, and in one split."""
    path = write_physionet(tmp_path) / "annotations" / TEST
    text = path.read_text()
    path.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(IdError, match="two rows for one image") as caught:
        read_vindr(tmp_path)
    assert f"{TEST}', line 2 and" in caught.value.found
    assert f"{TEST}', line 3" in caught.value.found
    path.write_text(text.replace(C, A))
    with pytest.raises(IdError, match="share images") as caught:
        read_vindr(tmp_path)
    assert caught.value.found.startswith(repr(A))
    assert TEST in caught.value.found
    assert read_vindr(tmp_path, split="test").labels.ids.tolist() == [A]


ratings = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 17), st.sets(st.sampled_from(LABELS))),
    min_size=1,
    max_size=15,
    unique_by=lambda vote: vote[:2],
)


def expected(votes: list[Any], image: int, name: str, policy: str) -> int:
    """The code by counting votes one by one."""
    said = [name in says for i, _, says in votes if i == image]
    if policy == "any":
        return int(any(said))
    if policy == "all":
        return int(all(said))
    if policy == "unanimous":
        return int(said[0]) if len(set(said)) == 1 else -2
    balance = 2 * sum(said) - len(said)
    return -2 if balance == 0 else int(balance > 0)


@given(votes=ratings, policy=st.sampled_from(sorted(SETTLED)))
@settings(max_examples=60, deadline=None)
def test_votes_are_counted(votes: list[Any], policy: str):
    """Any votes in any order come to what counting them one by one gives."""
    images = list(dict.fromkeys(image for image, _, _ in votes))
    rows = [(f"i{image}", f"R{rater}", says) for image, rater, says in votes]
    with tempfile.TemporaryDirectory() as folder:
        write_votes(Path(folder, TRAIN), rows)
        data = read_vindr(folder, raters=policy)
    codes = [[expected(votes, image, name, policy) for name in LABELS] for image in images]
    np.testing.assert_array_equal(data.labels.codes, codes)
    assert data.labels.ids.tolist() == [f"i{image}" for image in images]


@given(
    images=st.dictionaries(
        st.text("0123456789abcdef", min_size=1, max_size=32),
        st.lists(
            st.sets(st.sampled_from(KAGGLE_CLASSES[:-1])).map(lambda s: s or {"No finding"}),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=40, deadline=None)
def test_boxes_are_votes(images: dict[str, Any]):
    """Boxes give the labels that the same votes in the layout of PhysioNet give."""
    votes = [(i, f"R{k}", says) for i, all_say in images.items() for k, says in enumerate(all_say)]
    with tempfile.TemporaryDirectory() as folder:
        write_boxes(Path(folder, BOXES), votes, boxes=3)
        write_votes(Path(folder, TRAIN), votes)
        boxes = read_vindr(folder, layout="kaggle").labels
        labels = read_vindr(folder, layout="physionet").labels
    assert boxes.ids.tolist() == labels.ids.tolist() == list(images)
    np.testing.assert_array_equal(
        boxes.codes, labels.codes[:, [LABELS.index(name) for name in KAGGLE_CLASSES]]
    )
