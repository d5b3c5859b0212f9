"""CheXpert: its releases in their folders, and what can be wrong with them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers.chexpert import COMPETITION, OBSERVATIONS, read_chexpert, study_ids
from catwise.errors import CategoryError, CatwiseError, ConfigError, IdError, LabelError
from faults import check_fault

SMALL = "CheXpert-v1.0-small"
BATCH = "CheXpert-v1.0 batch"
TEXTS = {1: "1.0", 0: "0.0", -2: "-1.0", -1: ""}
HEAD = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
FRONTAL, LATERAL = "study1/view1_frontal.jpg", "study1/view2_lateral.jpg"

#: Image → the codes of its first observations; the others are blank (train) or negative.
TRAIN = {
    f"train/patient00001/{FRONTAL}": (1, -1, 0),
    f"train/patient00001/{LATERAL}": (1, -2, 0),
    "train/patient00002/study3/view1_frontal.jpg": (-1, -1, -1),
}
VALID = {f"valid/patient64541/{FRONTAL}": (0, 1), f"valid/patient64541/{LATERAL}": (0, 1)}
TEST = {f"test/patient64741/{FRONTAL}": (1, 0), f"test/patient64742/{FRONTAL}": (0, 1)}


def codes_of(rows: dict[str, tuple[int, ...]], rest: int) -> list[list[int]]:
    """All 14 codes of each image."""
    return [[*first, *[rest] * (14 - len(first))] for first in rows.values()]


def write_csv(path: Path, head: tuple[str, ...], rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(row) for row in [list(head), *rows]) + "\n")
    return path


def write_table(
    path: Path, codes: dict[str, Any], prefix: str = f"{SMALL}/", names: Any = OBSERVATIONS
) -> Path:
    """A table as released: what is known of the patient, then the observations."""
    rows = []
    for image, row in codes.items():
        view = ["Frontal", "AP"] if "frontal" in image else ["Lateral", ""]
        rows.append([prefix + image, "Female", "68", *view, *[TEXTS[int(code)] for code in row]])
    return write_csv(path, (*HEAD, *names), rows)


def write_test_labels(path: Path, codes: dict[str, Any], column: str = "Path") -> Path:
    """A table of radiologists: no patient, whole numbers."""
    rows = [[image, *[str(int(code)) for code in row]] for image, row in codes.items()]
    return write_csv(path, (column, *OBSERVATIONS), rows)


def full(rows: dict[str, tuple[int, ...]], rest: int) -> dict[str, list[int]]:
    return dict(zip(rows, codes_of(rows, rest), strict=True))


def write_small(parent: Path) -> Path:
    """CheXpert-v1.0-small: two tables, and the folders of images."""
    root = parent / SMALL
    write_table(root / "train.csv", full(TRAIN, -1))
    write_table(root / "valid.csv", full(VALID, 0))
    for image in [*TRAIN, *VALID]:
        touch(root / image)
    return root


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_the_small_release(tmp_path):
    """Codes, ids, patients, splits and paths of the release, blanks unknown, -1 uncertain."""
    root = write_small(tmp_path)
    data = read_chexpert(root)
    assert data.labels.categories == OBSERVATIONS
    assert data.labels.ids.tolist() == [*TRAIN, *VALID]
    assert data.paths.tolist() == [*TRAIN, *VALID]
    assert data.labels.codes.tolist() == codes_of(TRAIN, -1) + codes_of(VALID, 0)
    assert data.groups.tolist() == ["patient00001"] * 2 + ["patient00002"] + ["patient64541"] * 2
    assert data.splits.tolist() == ["train"] * 3 + ["valid"] * 2
    assert data.counts == {
        "tables": {"train": "train.csv", "valid": "valid.csv"},
        "images_in_tables": {"train": 3, "valid": 2},
        "patients": 3,
        "studies": 3,
    }
    assert json.loads(json.dumps(data.counts)) == data.counts
    assert len(data.notes) == 2
    assert "three radiologists" in data.notes[1]
    assert (data.name, data.root) == ("chexpert", root)


def test_the_parent_is_a_root_too(tmp_path):
    """From the parent, paths lead through the release, and ids stay the same."""
    root = write_small(tmp_path)
    data = read_chexpert(str(tmp_path))
    assert data.labels == read_chexpert(root).labels
    assert all((data.root / path).is_file() for path in data.paths)
    assert data.paths[0] == f"{SMALL}/train/patient00001/{FRONTAL}"
    assert data.counts["tables"]["train"] == f"{SMALL}/train.csv"


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", f"{SMALL}/", ""])
def test_the_first_folder_of_a_path_does_not_matter(tmp_path, prefix):
    """Tables of every release give the same ids."""
    write_table(tmp_path / "valid.csv", full(VALID, 0), prefix)
    data = read_chexpert(tmp_path, split="valid")
    assert data.labels.ids.tolist() == [*VALID]
    assert "there is no folder valid" in data.notes[-1]


def test_splits(tmp_path):
    """One split is read alone; its table must be there."""
    root = write_small(tmp_path)
    assert read_chexpert(root, split="valid").labels.ids.tolist() == [*VALID]
    with pytest.raises(LabelError, match="for the split 'test'") as caught:
        read_chexpert(root, split="test")
    assert "groundtruth.csv" in str(caught.value)
    with pytest.raises(LabelError, match="no table of CheXpert"):
        read_chexpert(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="did you mean 'valid'"):
        read_chexpert(root, split="val")


def test_the_full_release_in_batches(tmp_path):
    """Train images lie in batches that are not merged; patients of none have no path."""
    first = tmp_path / f"{BATCH} 1 (validate & csv)"
    write_table(first / "train.csv", full(TRAIN, -1), "CheXpert-v1.0/")
    write_table(first / "valid.csv", full(VALID, 0), "CheXpert-v1.0/")
    touch(first / f"valid/patient64541/{FRONTAL}")
    touch(tmp_path / f"{BATCH} 2 (train 1)/patient00001/{FRONTAL}")
    (tmp_path / f"{BATCH} 3 (train 2)").mkdir()
    data = read_chexpert(tmp_path)
    assert data.paths.tolist() == [
        f"{BATCH} 2 (train 1)/patient00001/{FRONTAL}",
        f"{BATCH} 2 (train 1)/patient00001/{LATERAL}",
        "",
        f"{first.name}/valid/patient64541/{FRONTAL}",
        f"{first.name}/valid/patient64541/{LATERAL}",
    ]
    assert data.labels.ids.tolist() == [*TRAIN, *VALID]
    assert data.counts["images_without_files"] == 1
    assert any("batches are not merged" in note for note in data.notes)


def test_the_test_images_of_another_release(tmp_path):
    """CheXpert/test_labels.csv next to the small release: no views but those of file names."""
    write_small(tmp_path)
    write_test_labels(tmp_path / "CheXpert/test_labels.csv", full(TEST, 0))
    write_test_labels(tmp_path / "CheXpert/val_labels.csv", full(VALID, 0))
    for image in TEST:
        touch(tmp_path / "CheXpert" / image)
    data = read_chexpert(tmp_path)
    assert data.split("test").paths.tolist() == [f"CheXpert/{image}" for image in TEST]
    assert data.split("test").labels.codes.tolist() == codes_of(TEST, 0)
    assert data.counts["tables"]["valid"] == f"{SMALL}/valid.csv"
    assert data.notes[-1] == "test: the names of the files tell the views."
    with pytest.raises(LabelError, match="no lateral images"):
        read_chexpert(tmp_path, split="test", views="lateral")


def test_the_folder_val(tmp_path):
    """The valid images of CheXpert/val_labels.csv lie in val; ids say valid as ever."""
    write_test_labels(
        tmp_path / "CheXpert/val_labels.csv",
        {f"CheXpert-v1.0/{image}": row for image, row in full(VALID, 0).items()},
    )
    touch(tmp_path / f"CheXpert/val/patient64541/{FRONTAL}")
    data = read_chexpert(tmp_path)
    assert data.labels.ids.tolist() == [*VALID]
    assert data.paths[0] == f"CheXpert/val/patient64541/{FRONTAL}"


def test_a_table_of_studies(tmp_path):
    """groundtruth.csv lists studies: each image in the folder of one gets its labels."""
    studies = {
        "CheXpert-v1.0/test/patient64741/study1": [1] * 14,
        "CheXpert-v1.0/test/patient64742/study1": [0] * 14,
        "CheXpert-v1.0/test/patient64743/study1": [0] * 14,
    }
    write_test_labels(tmp_path / "groundtruth.csv", studies, "Study")
    with pytest.raises(LabelError, match="there are no images of them"):
        read_chexpert(tmp_path)
    names = [f"patient64741/{FRONTAL}", f"patient64741/{LATERAL}", f"patient64743/{FRONTAL}"]
    for name in [*names, "patient64741/study1/.DS_Store"]:
        touch(tmp_path / "CheXpert/test" / name)
    data = read_chexpert(tmp_path)
    assert data.labels.ids.tolist() == [f"test/{name}" for name in names]
    assert data.paths.tolist() == [f"CheXpert/test/{name}" for name in names]
    assert data.labels.codes[:, 0].tolist() == [1, 1, 0]
    assert data.groups.tolist() == ["patient64741", "patient64741", "patient64743"]
    assert data.counts["studies_without_images"] == 1
    assert read_chexpert(tmp_path, views="lateral").labels.ids.tolist() == [f"test/{names[1]}"]


def test_other_tables(tmp_path):
    """A table can be named for a split; nothing else is read in its place."""
    root = write_small(tmp_path)
    write_table(root / "train_visualCheXbert.csv", full(TRAIN, 1))
    data = read_chexpert(root, tables={"train": "train_visualCheXbert.csv"})
    assert data.split("train").labels.codes.tolist() == codes_of(TRAIN, 1)
    assert data.notes[0] == "train: labels of train_visualCheXbert.csv."
    with pytest.raises(LabelError, match="for the split 'train'") as caught:
        read_chexpert(root, tables={"train": "train_cheXbert.csv"})
    assert "train_cheXbert.csv" in caught.value.expected
    with pytest.raises(ConfigError, match="a split of tables cannot be 'val'"):
        read_chexpert(root, tables={"val": "valid.csv"})


def test_several_releases(tmp_path):
    """Two releases under one parent are not chosen between."""
    write_small(tmp_path)
    write_table(tmp_path / "CheXpert-v1.0/train.csv", full(TRAIN, -1))
    with pytest.raises(ConfigError, match="more than one table") as caught:
        read_chexpert(tmp_path)
    assert caught.value.found == f"'CheXpert-v1.0/train.csv', '{SMALL}/train.csv'"


def test_views(tmp_path):
    """The column tells the view; where it is unlike the file name, that is counted."""
    root = write_small(tmp_path)
    lateral = read_chexpert(root, views="lateral")
    assert lateral.labels.ids.tolist() == [list(TRAIN)[1], list(VALID)[1]]
    assert lateral.counts["images_of_other_views"] == 3
    table = root / "train.csv"
    table.write_text(table.read_text().replace(",Lateral", ",Frontal"))
    frontal = read_chexpert(root, split="train", views="frontal")
    assert len(frontal) == 3
    assert frontal.counts["views_unlike_file_names"] == 1
    table.write_text(table.read_text().replace(",68,Frontal", ",68,Oblique", 1))
    with pytest.raises(LabelError, match="unrecognised view") as caught:
        read_chexpert(root)
    assert "'Oblique' in" in caught.value.found
    assert "train.csv', line 2, column 'Frontal/Lateral'" in caught.value.found


def test_categories(tmp_path):
    """All, those of the competition, or named ones in the order given."""
    root = write_small(tmp_path)
    labels = read_chexpert(root, categories="competition").labels
    assert labels.categories == COMPETITION
    assert labels.column("Cardiomegaly").tolist() == [0, 0, -1, 0, 0]
    named = read_chexpert(root, categories=["Cardiomegaly", "No Finding"]).labels
    assert named.codes.tolist() == [[0, 1], [0, 1], [-1, -1], [0, 0], [0, 0]]
    with pytest.raises(CategoryError, match="did you mean 'Edema'"):
        read_chexpert(root, categories=["Edemas"])
    with pytest.raises(CategoryError, match="no categories"):
        read_chexpert(root, categories=[])
    with pytest.raises(CategoryError, match="one name"):
        read_chexpert(root, categories=["Edema", "Edema"])
    with pytest.raises(ConfigError, match="did you mean 'competition'"):
        read_chexpert(root, categories="competitions")


def test_blanks_as_negative(tmp_path):
    """Blanks become negative and are counted; uncertain labels stay uncertain."""
    root = write_small(tmp_path)
    data = read_chexpert(root, split="train", blanks="negative")
    codes = np.array(codes_of(TRAIN, -1))
    assert data.counts["blanks_as_negative"] == int((codes == -1).sum())
    np.testing.assert_array_equal(data.labels.codes, np.where(codes == -1, 0, codes))
    assert any("negative" in note for note in data.notes)
    frontal = read_chexpert(root, split="train", blanks="negative", views="frontal")
    assert frontal.counts["blanks_as_negative"] == 12 + 14
    with pytest.raises(ConfigError, match="did you mean 'negative'"):
        read_chexpert(root, blanks="negatives")
    with pytest.raises(ConfigError, match="views cannot be 'front'"):
        read_chexpert(root, views="front")


def test_another_name_of_lung_opacity(tmp_path):
    """Airspace Opacity is read as Lung Opacity, and said."""
    names = [name.replace("Lung Opacity", "Airspace Opacity") for name in OBSERVATIONS]
    write_table(tmp_path / "valid.csv", full(VALID, 1), names=names)
    data = read_chexpert(tmp_path)
    assert data.labels.categories == OBSERVATIONS
    assert data.labels.column("Lung Opacity").tolist() == [1, 1]
    assert any("Airspace Opacity" in note for note in data.notes)


#: What is wrong → (what is replaced in valid.csv, by what), the error, what its message holds.
FAULTS: dict[str, tuple[str, str, type[CatwiseError], str]] = {
    "no path column": ("Path,", "File,", LabelError, "no column 'Path'"),
    "no observation": (",Edema", ",Oedema", LabelError, "no column 'Edema'"),
    "value": (",0.0,1.0,0.0", ",0.0,1.0,2.0", LabelError, "2 in"),
    "value's place": (",0.0,1.0,0.0", ",0.0,1.0,x", LabelError, "line 2, column 'Cardiomegaly'"),
    "path": ("patient64541/", "p64541/", IdError, "line 2, column 'Path' (first of 2)"),
    "blank path": (f"{SMALL}/valid/patient64541/{FRONTAL}", "", IdError, "line 2, column 'Path'"),
    "another split": (f"valid/patient64541/{LATERAL}", f"train/patient1/{LATERAL}", IdError,
                      "line 3, column 'Path' (first of 1)"),
    "repeat": (LATERAL, FRONTAL, IdError, "line 3, column 'Path'"),
    "truncated": (",0.0,0.0\n", "", LabelError, "valid.csv"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    """Every fault has its error, which names the file and the place."""
    old, new, kind, message = FAULTS[fault]
    root = write_small(tmp_path)
    table = root / "valid.csv"
    text = table.read_text()
    assert old in text
    count = 2 if fault == "path" else 1
    head, body = text.split("\n", 1)
    table.write_text("\n".join([head.replace(old, new), body.replace(old, new, count)]))
    check_fault(lambda: read_chexpert(root), kind, message, "valid.csv")


def test_a_table_without_rows_or_cut(tmp_path):
    """A header alone, an empty file and a file that ends in a row are refused."""
    path = write_table(tmp_path / "valid.csv", full(VALID, 0))
    text = path.read_text()
    for content, message in (
        (text.split("\n", 1)[0] + "\n", "no rows"),
        ("", "is empty"),
        (text[:-20], "is truncated"),
    ):
        path.write_text(content)
        with pytest.raises(LabelError, match=message):
            read_chexpert(tmp_path)


def test_a_patient_in_two_splits(tmp_path):
    """A patient of train must not be in valid; both lines are named."""
    root = write_small(tmp_path)
    write_table(root / "valid.csv", full({f"valid/patient00002/{FRONTAL}": (1,)}, 0))
    with pytest.raises(IdError, match="in two splits") as caught:
        read_chexpert(root)
    assert caught.value.found == (
        f"'patient00002': 'train' in '{root / 'train.csv'}', line 4 and "
        f"'valid' in '{root / 'valid.csv'}', line 2 (first of 1)"
    )
    assert len(read_chexpert(root, split="valid")) == 1


def test_a_repeat_under_two_prefixes(tmp_path):
    """One image is one image, whatever release its path names."""
    image = next(iter(VALID))
    rows = {f"{SMALL}/{image}": [0] * 14, f"CheXpert-v1.0/{image}": [1] * 14}
    path = write_table(tmp_path / "valid.csv", rows, "")
    with pytest.raises(IdError, match="duplicate entry") as caught:
        read_chexpert(tmp_path)
    assert f"'{path}', line 2, column 'Path' and '{path}', line 3" in caught.value.found


def test_study_ids(tmp_path):
    """The study of an image, from ids or paths; other texts are refused."""
    data = read_chexpert(write_small(tmp_path).parent)
    expected = ["patient00001/study1"] * 2 + ["patient00002/study3"] + ["patient64541/study1"] * 2
    assert study_ids(data.labels.ids).tolist() == expected
    assert study_ids(data.paths).tolist() == expected
    assert study_ids([]).tolist() == []
    with pytest.raises(IdError, match="none of CheXpert") as caught:
        study_ids(["a.jpg"])
    assert caught.value.found == "'a.jpg'"


images = st.tuples(
    st.integers(0, 99999),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["frontal", "lateral"]),
)
codes = st.lists(st.sampled_from([1, 0, -1, -2]), min_size=14, max_size=14)


@given(rows=st.dictionaries(images, codes, min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(rows):
    """Random labels in the official format come back the same, for every choice of views."""
    table = {f"train/patient{p:05d}/study{s}/view{v}_{w}.jpg": row
             for (p, s, v, w), row in rows.items()}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder, "train.csv"), table)
        data = read_chexpert(folder)
        assert data.labels.ids.tolist() == [*table]
        assert data.labels.codes.tolist() == [*table.values()]
        assert data.groups.tolist() == [image.split("/")[1] for image in table]
        for view in {image[3] for image in rows}:
            part = read_chexpert(folder, views=view)
            kept = [image for image in table if view in image]
            assert part.labels.ids.tolist() == kept
            assert part.labels.codes.tolist() == [table[image] for image in kept]


# ------------------------------------------------------------------ the test set by radiologists


def write_raters(root: Path) -> None:
    """The repository of the test set: the majority, and a table for each radiologist."""
    studies = {
        "CheXpert-v1.0/test/patient64741/study1": (1, 0),
        "CheXpert-v1.0/test/patient64742/study1": (0, 1),
    }
    write_test_labels(root / "groundtruth.csv", full(studies, 0), "Study")
    for n in range(1, 9):
        folder, name = (
            ("groundtruth", f"bc{n}_gt")
            if n in {1, 2, 3, 5, 7}
            else ("benchmark_radiologists", f"bc{n}")
        )
        own = {study: (int(n % 2 == 0), first) for study, (first, _) in studies.items()}
        write_test_labels(root / f"radiologists/{folder}/{name}.csv", full(own, 0), "Study")


@pytest.mark.parametrize("place", ["", "cheXpert-test-set-labels"])
def test_the_test_set_by_studies_and_radiologists(tmp_path: Path, place: str) -> None:
    """Rows are studies, which need no images; each radiologist has labels of their own."""
    write_raters(tmp_path / place)
    read = read_chexpert(tmp_path, by="study")
    assert read.labels.ids is not None
    assert read.labels.ids.tolist() == ["test/patient64741/study1", "test/patient64742/study1"]
    assert read.labels.codes[:, :2].tolist() == [[1, 0], [0, 1]]
    assert read.paths.tolist() == ["", ""]
    assert read.splits.tolist() == ["test", "test"]
    assert read.counts is not None
    assert read.counts["studies"] == 2
    assert read.groups is not None
    assert read.groups.tolist() == ["patient64741", "patient64742"]
    for n in range(1, 9):
        own = read_chexpert(tmp_path, rater=f"bc{n}", by="study", split="test")  # type: ignore[arg-type]
        assert own.labels.codes[:, :2].tolist() == [[int(n % 2 == 0), 1], [int(n % 2 == 0), 0]]
        assert f"bc{n}" in own.notes[0]
    touch(tmp_path / "test/patient64742" / FRONTAL)
    images = read_chexpert(tmp_path, rater="bc4", split="test")
    assert images.labels.ids is not None
    assert images.labels.ids.tolist() == [f"test/patient64742/{FRONTAL}"]
    assert images.labels.codes[:, :2].tolist() == [[1, 0]]


def test_options_of_raters_that_do_not_fit(tmp_path: Path) -> None:
    """Views of studies, two tables of one split, and studies of a table of images are refused."""
    write_raters(tmp_path)
    with pytest.raises(ConfigError, match="no view"):
        read_chexpert(tmp_path, by="study", views="frontal")
    with pytest.raises(ConfigError, match="two options name"):
        read_chexpert(tmp_path, rater="bc1", tables={"test": "x.csv"})
    with pytest.raises(ConfigError, match="lists images, not studies"):
        read_chexpert(write_small(tmp_path), by="study")
    (tmp_path / "radiologists/groundtruth/bc1_gt.csv").unlink()
    with pytest.raises(LabelError, match="bc1_gt"):
        read_chexpert(tmp_path, rater="bc1", by="study")


# ------------------------------------------------------------------------------- CheXpert Plus


def write_plus(root: Path, section: str, lines: dict[str, tuple[Any, ...]]) -> Path:
    """The label file of a section: JSON lines of both splits."""
    path = root / "chexbert_labels" / f"{section}_fixed.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for image, values in lines.items():
            rest = dict.fromkeys(OBSERVATIONS)
            rest |= dict(zip(OBSERVATIONS, values, strict=False))
            file.write(json.dumps({"path_to_image": image, **rest}) + "\n")
    return path


PLUS_LINES: dict[str, tuple[Any, ...]] = {
    f"valid/patient64541/{FRONTAL}": (None, 1.0),
    f"train/patient00001/{FRONTAL}": (1.0, None, 0.0),
    f"train/patient00001/{LATERAL}": (1.0, -1.0, 0.0),
}


def test_labels_of_chexpert_plus(tmp_path: Path) -> None:
    """One file of JSON lines holds both splits; each section of the reports has its own."""
    write_plus(tmp_path, "impression", PLUS_LINES)
    write_plus(tmp_path, "findings", dict.fromkeys(PLUS_LINES, (0.0,)))
    train = read_chexpert(tmp_path, labeler="impression", split="train")
    assert train.labels.codes[:, :4].tolist() == [[1, -1, 0, -1], [1, -2, 0, -1]]
    assert train.labels.ids is not None
    assert train.labels.ids.tolist() == list(PLUS_LINES)[1:]
    assert "impression_fixed.json" in train.notes[0]
    both = read_chexpert(tmp_path, labeler="findings")
    assert both.splits.tolist() == ["train", "train", "valid"]
    assert both.labels.codes[:, 0].tolist() == [0, 0, 0]
    frontal = read_chexpert(tmp_path, labeler="impression", views="frontal")
    assert len(frontal) == 2


def test_faults_of_chexpert_plus(tmp_path: Path) -> None:
    """Places are those of the file, though some of its lines are of another split."""
    write_plus(tmp_path, "report", {**PLUS_LINES, f"train/patient00002/{FRONTAL}": (2.0,)})
    check_fault(
        lambda: read_chexpert(tmp_path, labeler="report", split="train"), LabelError, "line 4", "2"
    )
    path = write_plus(tmp_path, "report", PLUS_LINES)
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, *rest, rest[0]]) + "\n")
    check_fault(
        lambda: read_chexpert(tmp_path, labeler="report", split="train"), IdError,
        "duplicate", "line 2", "line 4",
    )  # fmt: skip
    write_plus(tmp_path, "report", dict(list(PLUS_LINES.items())[1:]))
    with pytest.raises(LabelError, match="no images of the split 'valid'"):
        read_chexpert(tmp_path, labeler="report", split="valid")
    with pytest.raises(LabelError, match="findings_fixed"):
        read_chexpert(tmp_path, labeler="findings")
