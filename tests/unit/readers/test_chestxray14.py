"""ChestX-ray14: its table, its lists and its folders, and what can be wrong with them."""

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
from catwise.data.readers.chestxray14 import DISEASES, read_chestxray14
from catwise.errors import CatwiseError, ConfigError, IdError, LabelError
from faults import check_fault

NEW, OLD = "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"
HEAD = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = {
    "00000001_000.png": "Cardiomegaly",
    "00000001_001.png": "Cardiomegaly|Emphysema",
    "00000002_000.png": "No Finding",
    "00000003_000.png": "Hernia",
    "00000003_001.png": "Pleural_Thickening|Effusion|Atelectasis",
}
TRAIN, TEST = list(ROWS)[:3], list(ROWS)[3:]
NAMES = [
    {"Cardiomegaly"},
    {"Cardiomegaly", "Emphysema"},
    set(),
    {"Hernia"},
    {"Pleural_Thickening", "Effusion", "Atelectasis"},
]


def codes_of(rows: list[set[str]]) -> list[list[int]]:
    """Codes of the 14 diseases, from their names."""
    return [[int(name in row) for name in DISEASES] for row in rows]


def write_table(root: Path, rows: dict[str, str], name: str = NEW, end: str = "") -> Path:
    """A table as released; the older edition ends every line with one more comma."""
    lines = [HEAD + end]
    for image, findings in rows.items():
        patient, follow = int(image[:8]), int(image[9:12])
        fields = f"{follow},{patient},58,M,PA,2682,2749,0.14300000000000002,0.14300000000000002"
        lines.append(f"{image},{findings},{fields}{end}")
    path = root / name
    path.write_text("\n".join(lines) + "\n")
    return path


def write_release(root: Path, name: str = NEW, end: str = "") -> Path:
    """A small release without images."""
    write_table(root, ROWS, name, end)
    (root / "train_val_list.txt").write_text("\n".join(TRAIN))
    (root / "test_list.txt").write_text("\n".join(TEST) + "\n")
    return root


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_release(tmp_path):
    """Codes, ids, groups, splits, counts and notes of a small release."""
    data = read_chestxray14(write_release(tmp_path))
    assert data.name == "chestxray14"
    assert data.root == tmp_path
    assert data.labels.categories == DISEASES
    assert len(set(DISEASES)) == 14
    np.testing.assert_array_equal(data.labels.codes, codes_of(NAMES))
    assert data.labels.ids.tolist() == list(ROWS)
    assert data.groups.tolist() == ["1", "1", "2", "3", "3"]
    assert data.splits.tolist() == ["train_val"] * 3 + ["test"] * 2
    assert data.paths.tolist() == [f"images/{name}" for name in ROWS]
    assert data.counts == {
        "table": NEW,
        "images_in_table": 5,
        "images_of_splits": {"train_val": 3, "test": 2},
        "images_in_neither_list": 0,
        "listed_images_without_labels": 0,
        "patients_unlike_file_names": 0,
        "patients": 3,
        "images_without_findings": 1,
    }
    assert json.loads(json.dumps(data.counts)) == data.counts
    assert data.notes == (
        "Labels are found in the text of reports; what a report does not name is negative.",
        "No patient is in both lists.",
        "There is no folder of images; paths tell where they should be.",
    )


def test_the_older_edition(tmp_path):
    """The same labels from the edition whose lines end with a comma; text paths do too."""
    data = read_chestxray14(str(write_release(tmp_path, OLD, ",")))
    np.testing.assert_array_equal(data.labels.codes, codes_of(NAMES))
    assert data.counts["table"] == OLD
    assert data.groups.tolist() == ["1", "1", "2", "3", "3"]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_line_ends_and_marks(tmp_path, ends):
    """Line ends of Windows, byte-order marks and blank lines change nothing."""
    write_release(tmp_path)
    for path in tmp_path.iterdir():
        text = path.read_text().rstrip("\n") + "\n\n"
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", ends).encode())
    data = read_chestxray14(tmp_path)
    np.testing.assert_array_equal(data.labels.codes, codes_of(NAMES))
    assert data.splits.tolist() == ["train_val"] * 3 + ["test"] * 2


def test_both_editions(tmp_path):
    """Two editions are refused until one is named."""
    write_release(tmp_path)
    write_table(tmp_path, {**ROWS, "00000001_000.png": "Mass"}, OLD, ",")
    with pytest.raises(ConfigError, match="more than one table") as caught:
        read_chestxray14(tmp_path)
    assert NEW in caught.value.remedy
    assert read_chestxray14(tmp_path, table=NEW).labels.codes[0, 1] == 1
    data = read_chestxray14(tmp_path, table=OLD)
    assert data.labels.codes[0, 1] == 0
    assert data.labels.codes[0, DISEASES.index("Mass")] == 1


def test_splits(tmp_path):
    """One split has its images and its counts only."""
    data = read_chestxray14(write_release(tmp_path), split="test")
    assert data.labels.ids.tolist() == TEST
    np.testing.assert_array_equal(data.labels.codes, codes_of(NAMES[3:]))
    assert data.groups.tolist() == ["3", "3"]
    assert data.counts["patients"] == 1
    assert data.counts["images_without_findings"] == 0
    assert data.counts["images_of_splits"] == {"train_val": 3, "test": 2}
    assert read_chestxray14(tmp_path, split="train_val").labels.ids.tolist() == TRAIN
    with pytest.raises(ConfigError, match="split cannot be 'train'") as caught:
        read_chestxray14(tmp_path, split="train")
    assert caught.value.expected == "'train_val' or 'test' or None"


def test_no_finding(tmp_path):
    """No Finding is the opposite of any of the 14."""
    data = read_chestxray14(write_release(tmp_path), no_finding=True)
    assert data.labels.categories == (*DISEASES, "No Finding")
    assert data.labels.codes[:, 14].tolist() == [0, 0, 1, 0, 0]
    np.testing.assert_array_equal(data.labels.codes[:, :14], codes_of(NAMES))
    assert "'No Finding' is positive where none of the 14 diseases is." in data.notes


def test_images_in_neither_list(tmp_path):
    """They are left out, kept as a split of their own, or refused; always counted."""
    write_release(tmp_path)
    (tmp_path / "test_list.txt").write_text(TEST[1])
    data = read_chestxray14(tmp_path)
    assert data.labels.ids.tolist() == [*TRAIN, TEST[1]]
    assert data.counts["images_in_neither_list"] == 1
    assert "Images in neither list are left out: 1." in data.notes
    kept = read_chestxray14(tmp_path, unlisted="keep")
    assert kept.splits.tolist() == ["train_val"] * 3 + ["unlisted", "test"]
    assert "Images in neither list are kept as the split 'unlisted': 1." in kept.notes
    one = read_chestxray14(tmp_path, unlisted="keep", split="test")
    assert one.labels.ids.tolist() == [TEST[1]]
    assert "Images in neither list are left out: 1." in one.notes
    with pytest.raises(LabelError, match="in neither list") as caught:
        read_chestxray14(tmp_path, unlisted="refuse")
    assert f"{NEW}', line 5, column 'Image Index'" in caught.value.found
    with pytest.raises(ConfigError, match="did you mean 'keep'"):
        read_chestxray14(tmp_path, unlisted="keeps")


def test_listed_images_that_the_table_lacks(tmp_path):
    """They are counted and said."""
    write_release(tmp_path)
    with (tmp_path / "test_list.txt").open("a") as file:
        file.write("00000009_000.png\n")
    data = read_chestxray14(tmp_path)
    assert len(data) == 5
    assert data.counts["listed_images_without_labels"] == 1
    assert "Images in a list but not in the table have no labels: 1." in data.notes


def test_a_patient_unlike_the_name(tmp_path):
    """The table tells the patient; what differs from the file's name is counted."""
    write_release(tmp_path)
    change(tmp_path / NEW, "No Finding,0,2,", "No Finding,0,7,")
    data = read_chestxray14(tmp_path)
    assert data.groups.tolist() == ["1", "1", "7", "3", "3"]
    assert data.counts["patients_unlike_file_names"] == 1


def test_images_in_one_folder(tmp_path):
    """Paths lead into images/; they are empty for images that are not there."""
    write_release(tmp_path)
    for name in (*TRAIN, TEST[0]):
        touch(tmp_path / "images" / name)
    data = read_chestxray14(tmp_path)
    assert data.paths.tolist() == [f"images/{name}" for name in (*TRAIN, TEST[0])] + [""]
    assert data.counts["images_without_files"] == 1
    assert data.counts["files_in_two_folders"] == 0
    assert len(data.notes) == 2


def test_images_in_twelve_folders(tmp_path):
    """Paths lead into images_001/images/ and so on, or right into images_001/; first come."""
    write_release(tmp_path)
    touch(tmp_path / "images_001/images" / TRAIN[0])
    touch(tmp_path / "images_002/images" / TRAIN[0])
    touch(tmp_path / "images_002/images" / TRAIN[1])
    touch(tmp_path / "images_012" / TEST[0])
    touch(tmp_path / "images_012" / "notes.txt")
    touch(tmp_path / "images_002/images" / "notes.txt")
    touch(tmp_path / "images_resized" / TEST[1])
    data = read_chestxray14(tmp_path)
    assert data.paths.tolist() == [
        f"images_001/images/{TRAIN[0]}",
        f"images_002/images/{TRAIN[1]}",
        "",
        f"images_012/{TEST[0]}",
        "",
    ]
    assert data.counts["images_without_files"] == 2
    assert data.counts["files_in_two_folders"] == 1
    touch(tmp_path / "images" / TRAIN[0])
    assert read_chestxray14(tmp_path).paths[0] == f"images/{TRAIN[0]}"


#: What is wrong → the file, a text in it, what takes its place, the error, and what it must say.
FAULTS: dict[str, tuple[str, str, str, type[CatwiseError], str]] = {
    "disease": (NEW, "Hernia", "Hernias", LabelError, "did you mean 'Hernia'"),
    "place": (NEW, ",Hernia", ",Scoliosis", LabelError, "line 5, column 'Finding Labels'"),
    "spaces": (NEW, "ly|Em", "ly| Em", LabelError, "no ' Emphysema'"),
    "blank": (NEW, "No Finding", "", LabelError, "they are blank"),
    "empty part": (NEW, "ly|Em", "ly||Em", LabelError, "line 3, column 'Finding Labels'"),
    "repeat": (NEW, "ly|Emphysema", "ly|Cardiomegaly", LabelError, "one repeats"),
    "contradiction": (NEW, "ly|Emphysema", "ly|No Finding", LabelError, "does not go with"),
    "column": (NEW, "Finding Labels", "Findings", LabelError, "no column 'Finding Labels'"),
    "patients": (NEW, "Patient ID", "Patient", LabelError, "which should hold the patients"),
    "blank patient": (NEW, "Hernia,0,3", "Hernia,0,", IdError, "line 5, column 'Patient ID'"),
    "name": (NEW, "00000003_000.png", "3_000.png", IdError, "line 5, column 'Image Index'"),
    "twice": (NEW, TEST[1], TEST[0], IdError, "line 5, column 'Image Index' and"),
    "quoted header": (NEW, "[Width,Height]", "[WidthHeight]", LabelError, "line 2: not as many"),
    "listed twice": ("test_list.txt", TEST[1], TEST[0], IdError, "test_list.txt', line 2 (1 rep"),
    "in both lists": ("test_list.txt", TEST[1], TRAIN[1], IdError, "train_val_list.txt', line 2"),
    "cut list": ("test_list.txt", f"{TEST[1]}\n", "00000003_0", IdError, "line 2"),
    "no list": ("test_list.txt", TEST[0], "<html>", IdError, "is not as it should be"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    """Every fault has its own error, which names the file and the place."""
    name, old, new, kind, message = FAULTS[fault]
    change(write_release(tmp_path) / name, old, new)
    check_fault(lambda: read_chestxray14(tmp_path), kind, message, name)


@pytest.mark.parametrize("name", [NEW, "train_val_list.txt", "test_list.txt"])
def test_missing_empty_and_undecodable_files(tmp_path, name):
    """A file that is not there, is empty or is no text is named."""
    path = write_release(tmp_path) / name
    good = path.read_bytes()
    path.write_bytes(good.replace(b".png", b".p\xe9g", 1))
    with pytest.raises(LabelError, match=f"{name}', line .: is not UTF-8"):
        read_chestxray14(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(LabelError, match=f"{name}' is empty"):
        read_chestxray14(tmp_path)
    path.unlink()
    with pytest.raises(LabelError) as caught:
        read_chestxray14(tmp_path)
    assert name in str(caught.value)


def test_a_cut_table(tmp_path):
    """A table whose last line is cut is truncated."""
    path = write_release(tmp_path) / NEW
    path.write_text(path.read_text()[:-60])
    with pytest.raises(LabelError, match="truncated") as caught:
        read_chestxray14(tmp_path)
    assert caught.value.found == "line 6 ends after 4 of 11 fields"


def test_a_table_of_many_blocks(tmp_path, monkeypatch):
    """A table that is read in several blocks gives the same labels and the same places."""
    rows = {f"{i:08d}_000.png": DISEASES[i % 14] for i in range(1, 400)}
    path = write_table(write_release(tmp_path), rows)
    (tmp_path / "train_val_list.txt").write_text("\n".join(list(rows)[:300]))
    (tmp_path / "test_list.txt").write_text("\n".join(list(rows)[300:]))
    whole = read_chestxray14(tmp_path)
    monkeypatch.setattr("catwise.data.files.BLOCK_BYTES", 1 << 12)
    assert len(list(open_table(path).batches(["Image Index"]))) > 3
    assert read_chestxray14(tmp_path).labels == whole.labels
    np.testing.assert_array_equal(whole.labels.codes, codes_of([{n} for n in rows.values()]))
    change(path, f"00000390_000.png,{DISEASES[390 % 14]}", "00000390_000.png,Gout")
    with pytest.raises(LabelError) as caught:
        read_chestxray14(tmp_path)
    assert "line 391, column 'Finding Labels'" in caught.value.found


def test_other_missing_things(tmp_path):
    """No folder, a table of another name, a table without rows, a list of another release."""
    with pytest.raises(LabelError, match="has no table of ChestX-ray14"):
        read_chestxray14(tmp_path / "nowhere")
    write_release(tmp_path)
    with pytest.raises(LabelError, match="has no table"):
        read_chestxray14(tmp_path, table=OLD)
    (tmp_path / "test_list.txt").write_text("00000009_000.png\n")
    with pytest.raises(LabelError, match="no image of the split 'test'"):
        read_chestxray14(tmp_path, split="test")
    (tmp_path / NEW).write_text(HEAD + "\n")
    with pytest.raises(LabelError, match="header but no rows"):
        read_chestxray14(tmp_path)


def test_a_patient_in_both_lists(tmp_path):
    """It is refused, naming the patient and both images."""
    write_release(tmp_path)
    (tmp_path / "train_val_list.txt").write_text("\n".join([*TRAIN, TEST[0]]))
    (tmp_path / "test_list.txt").write_text(TEST[1])
    for split in (None, "train_val", "test"):
        with pytest.raises(IdError, match="share patients") as caught:
            read_chestxray14(tmp_path, split=split)
        assert "'3': 'train_val' in" in caught.value.found
        assert f"{NEW}', line 5, column 'Image Index' and 'test' in" in caught.value.found
        assert f"{NEW}', line 6" in caught.value.found


found = st.lists(st.sampled_from(DISEASES), unique=True, max_size=14)
patients = st.integers(1, 99_999_999)


@given(
    rows=st.dictionaries(
        patients, st.tuples(st.booleans(), st.lists(found, min_size=1, max_size=3)), min_size=1
    )
)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(rows: dict[int, Any]):
    """Any labels of any patients come back; each patient in one split."""
    table, names, groups, splits = {}, [], [], []
    for patient, (test, images) in rows.items():
        for i, diseases in enumerate(images):
            table[f"{patient:08d}_{i:03d}.png"] = "|".join(diseases) or "No Finding"
            names.append(set(diseases))
            groups.append(str(patient))
            splits.append("test" if test else "train_val")
    # Every list has at least one line; these images are in no table.
    lists = {"train_val": ["00000000_000.png"], "test": ["00000000_001.png"]}
    for name, split in zip(table, splits, strict=True):
        lists[split].append(name)
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder), table, OLD, ",")
        for split, images in lists.items():
            Path(folder, f"{split}_list.txt").write_text("\n".join(images))
        data = read_chestxray14(folder, no_finding=True)
    np.testing.assert_array_equal(data.labels.codes[:, :14], codes_of(names))
    np.testing.assert_array_equal(data.labels.codes[:, 14], [not row for row in names])
    assert data.labels.ids.tolist() == list(table)
    assert data.groups.tolist() == groups
    assert data.splits.tolist() == splits
    assert data.counts["images_without_findings"] == sum(not row for row in names)
    assert data.counts["listed_images_without_labels"] == 2
