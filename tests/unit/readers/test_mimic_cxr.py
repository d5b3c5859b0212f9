"""MIMIC-CXR-JPG: tables of studies and images, and what can be wrong with them."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers._kit import matched
from catwise.data.readers.chexpert import COMPETITION, OBSERVATIONS
from catwise.data.readers.mimic_cxr import read_mimic_cxr
from catwise.errors import CategoryError, CatwiseError, ConfigError, IdError, LabelError
from faults import check_fault

NAMES = sorted(OBSERVATIONS)  # the order of the official tables
TEXTS = {1: "1.0", 0: "0.0", -2: "-1.0", -1: ""}

#: Image: study, patient, split, position.
IMAGES = {
    "02aa-1": (50414267, 10000032, "train", "PA"),
    "02aa-2": (50414267, 10000032, "train", "LATERAL"),
    "174413-1": (53189527, 10000032, "train", "AP"),
    "2a2277-1": (53911762, 19999987, "test", "LL"),
    "2a2277-2": (53911762, 19999987, "test", ""),
    "e084-1": (56699142, 18888888, "validate", "PA LLD"),
}
#: Study: patient, codes of the first observations; the others are blank. 56699142 has no row.
STUDIES = {
    53911762: (19999987, {"Edema": 1, "Fracture": -2}),
    50414267: (10000032, {"Edema": 0, "No Finding": 1}),
    53189527: (10000032, {}),
    59999999: (10000032, {"Edema": 1}),
}
PATHS = [
    "files/p10/p10000032/s50414267/02aa-1.jpg",
    "files/p10/p10000032/s50414267/02aa-2.jpg",
    "files/p10/p10000032/s53189527/174413-1.jpg",
    "files/p19/p19999987/s53911762/2a2277-1.jpg",
    "files/p19/p19999987/s53911762/2a2277-2.jpg",
    "files/p18/p18888888/s56699142/e084-1.jpg",
]


def write(root: Path, name: str, lines: list[str], *, packed: bool) -> None:
    text = "\n".join(lines) + "\n"
    root.mkdir(parents=True, exist_ok=True)
    if packed:
        (root / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (root / name).write_text(text)


def write_release(
    root: Path, images: dict[str, Any] = IMAGES, studies: dict[int, Any] = STUDIES, *,
    packed: bool = False, labeler: str = "chexpert",
) -> Path:  # fmt: skip
    """The tables of the release."""
    rows = [f"{i},{study},{subject},{split}" for i, (study, subject, split, _) in images.items()]
    lines = ["dicom_id,study_id,subject_id,split", *rows]
    write(root, "mimic-cxr-2.0.0-split.csv", lines, packed=packed)
    rows = [
        f'{i},{subject},{study},"CHEST (PA, LAT)",{view},3056,2544'
        for i, (study, subject, _, view) in reversed(images.items())
    ]
    lines = ["dicom_id,subject_id,study_id,Procedure,ViewPosition,Rows,Columns", *rows]
    write(root, "mimic-cxr-2.0.0-metadata.csv", lines, packed=packed)
    rows = [
        f"{subject},{study}," + ",".join(TEXTS[codes.get(name, -1)] for name in NAMES)
        for study, (subject, codes) in studies.items()
    ]
    lines = ["subject_id,study_id," + ",".join(NAMES), *rows]
    write(root, f"mimic-cxr-2.0.0-{labeler}.csv", lines, packed=packed)
    return root


def row(codes: dict[str, int], blank: int = -1) -> list[int]:
    return [codes.get(name, blank) for name in OBSERVATIONS]


EXPECTED = [row({"Edema": 0, "No Finding": 1})] * 2 + [row({})]
EXPECTED += [row({"Edema": 1, "Fracture": -2})] * 2 + [row({})]


@pytest.mark.parametrize("packed", [False, True])
def test_the_release(tmp_path, packed):
    """Every image has the labels of its study; tables may be packed."""
    data = read_mimic_cxr(write_release(tmp_path, packed=packed))
    assert data.labels.categories == OBSERVATIONS
    assert data.labels.ids.tolist() == [*IMAGES]
    assert data.labels.codes.tolist() == EXPECTED
    assert data.groups.tolist() == [str(image[1]) for image in IMAGES.values()]
    assert data.splits.tolist() == [image[2] for image in IMAGES.values()]
    assert data.paths.tolist() == PATHS
    assert data.counts == {
        "images_in_tables": 6,
        "labelled_studies_without_images": 1,
        "studies_without_labels": 1,
        "images_without_labels": 1,
        "studies_without_mentions": 1,
        "studies": 4,
        "patients": 3,
    }
    assert json.loads(json.dumps(data.counts)) == data.counts
    assert "CheXpert labeler" in data.notes[0]
    assert "files" in data.notes[1]
    assert "kept, all unknown" in data.notes[2]
    (tmp_path / "files").mkdir()
    assert len(read_mimic_cxr(str(tmp_path)).notes) == 2


def test_labelers(tmp_path):
    """Each labeler has its table; one that is not there is named."""
    write_release(tmp_path)
    studies = {study: (subject, {"Edema": -2}) for study, (subject, _) in STUDIES.items()}
    write_release(tmp_path, studies=studies, labeler="negbio")
    edema = read_mimic_cxr(tmp_path, labeler="negbio").labels.column("Edema")
    assert edema.tolist() == [-2, -2, -2, -2, -2, -1]
    with pytest.raises(LabelError, match="has no table 'mimic") as caught:
        read_mimic_cxr(tmp_path, labeler="radiologist")
    assert "mimic-cxr-2.1.0-test-set-labeled.csv" in str(caught.value)
    with pytest.raises(ConfigError, match="did you mean 'chexpert'"):
        read_mimic_cxr(tmp_path, labeler="chexbert")


def test_the_radiologist(tmp_path):
    """The table of the test set has no patients, and another name for Lung Opacity."""
    write_release(tmp_path)
    names = ["Airspace Opacity" if name == "Lung Opacity" else name for name in NAMES]
    values = ["1" if name == "Airspace Opacity" else "" for name in names]
    lines = [",".join(["study_id", *names]), ",".join(["53911762", *values])]
    write(tmp_path, "mimic-cxr-2.1.0-test-set-labeled.csv", lines, packed=False)
    data = read_mimic_cxr(tmp_path, labeler="radiologist", unlabelled="drop")
    assert data.labels.ids.tolist() == ["2a2277-1", "2a2277-2"]
    assert data.labels.codes.tolist() == [row({"Lung Opacity": 1})] * 2
    assert data.counts["images_without_labels"] == 4
    assert any("Airspace Opacity" in note for note in data.notes)


def test_splits(tmp_path):
    """One split is read alone; counts are those of its images."""
    write_release(tmp_path)
    data = read_mimic_cxr(tmp_path, split="train")
    assert data.labels.ids.tolist() == [*IMAGES][:3]
    assert data.counts["images_without_labels"] == 0
    assert len(data.notes) == 2
    with pytest.raises(ConfigError, match="did you mean 'validate'"):
        read_mimic_cxr(tmp_path, split="valid")


def test_views(tmp_path):
    """Frontal is AP and PA, lateral LATERAL and LL; other positions are counted."""
    write_release(tmp_path)
    frontal = read_mimic_cxr(tmp_path, views="frontal")
    assert frontal.labels.ids.tolist() == ["02aa-1", "174413-1"]
    assert frontal.counts["images_of_other_views"] == {
        "LATERAL": 1, "LL": 1, "PA LLD": 1, "blank": 1,
    }  # fmt: skip
    lateral = read_mimic_cxr(tmp_path, views="lateral", split="test")
    assert lateral.labels.ids.tolist() == ["2a2277-1"]
    assert lateral.labels.codes.tolist() == EXPECTED[3:4]
    assert lateral.counts["images_of_other_views"] == {"blank": 1}
    with pytest.raises(LabelError, match="is left") as caught:
        read_mimic_cxr(tmp_path, views="lateral", split="validate")
    assert "split='validate', views='lateral'" in caught.value.found


def test_images_without_metadata(tmp_path):
    """An image that the metadata do not list has no view; without a choice, it is read."""
    write_release(tmp_path)
    path = tmp_path / "mimic-cxr-2.0.0-metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "02aa-1" not in line) + "\n")
    data = read_mimic_cxr(tmp_path, views="frontal")
    assert data.labels.ids.tolist() == ["174413-1"]
    assert data.counts["images_without_metadata"] == 1
    lateral = read_mimic_cxr(tmp_path, views="lateral")
    assert lateral.labels.ids.tolist() == ["02aa-2", "2a2277-1"]
    path.unlink()
    assert len(read_mimic_cxr(tmp_path)) == 6
    with pytest.raises(LabelError, match=r"metadata\.csv\.gz"):
        read_mimic_cxr(tmp_path, views="frontal")


def test_unlabelled_studies_and_blanks(tmp_path):
    """A study without a row stays unknown, or is dropped; blanks of the others become negative."""
    write_release(tmp_path)
    data = read_mimic_cxr(tmp_path, blanks="negative")
    expected = [[0 if code == -1 else code for code in codes] for codes in EXPECTED]
    expected[-1] = [-1] * 14
    assert data.labels.codes.tolist() == expected
    assert data.counts["blanks_as_negative"] == 2 * 12 + 14 + 2 * 12
    dropped = read_mimic_cxr(tmp_path, unlabelled="drop")
    assert dropped.labels.ids.tolist() == [*IMAGES][:5]
    assert dropped.counts["images_without_labels"] == 1
    assert "left out" in dropped.notes[-1]
    with pytest.raises(LabelError, match="is left"):
        read_mimic_cxr(tmp_path, unlabelled="drop", split="validate")
    for wrong in ({"unlabelled": "skip"}, {"blanks": "zero"}, {"views": "side"}):
        with pytest.raises(ConfigError, match="cannot be"):
            read_mimic_cxr(tmp_path, **wrong)


def test_categories(tmp_path):
    """Those of the competition, or named ones; a row blank in all of them has no mention."""
    write_release(tmp_path)
    data = read_mimic_cxr(tmp_path, categories="competition")
    assert data.labels.categories == COMPETITION
    assert data.labels.column("Edema").tolist() == [0, 0, -1, 1, 1, -1]
    fracture = read_mimic_cxr(tmp_path, categories=["Fracture"])
    assert fracture.labels.codes.tolist() == [[-1], [-1], [-1], [-2], [-2], [-1]]
    assert fracture.counts["studies_without_mentions"] == 2
    with pytest.raises(CategoryError, match="did you mean 'Fracture'"):
        read_mimic_cxr(tmp_path, categories=["Fractures"])


#: What is wrong → (table, what is replaced, by what), the error, what its message holds.
FAULTS: dict[str, tuple[tuple[str, str, str], type[CatwiseError], str]] = {
    "no split": (("split", "dicom_id,", "dicom,"), LabelError, "no column 'dicom_id'"),
    "no study": (("chexpert", "study_id", "study"), LabelError, "no column 'study_id'"),
    "no observation": (("chexpert", "Edema", "Oedema"), LabelError, "no column 'Edema'"),
    "no position": (("metadata", "ViewPosition", "View"), LabelError, "no column 'ViewPosition'"),
    "value": (("chexpert", "1.0", "3.0"), LabelError, "3 in"),
    "text": (("chexpert", ",1.0", ",yes"), LabelError, "line 2, column 'Edema'"),
    "split": (("split", "validate", "valid"), LabelError, "line 7, column 'split'"),
    "blank id": (("split", "02aa-2", ""), IdError, "line 3, column 'dicom_id'"),
    "image twice": (("split", "02aa-2", "02aa-1"), IdError, "line 2, column 'dicom_id' and"),
    "metadata twice": (("metadata", "02aa-2", "02aa-1"), IdError, "line 7, column 'dicom_id'"),
    "study twice": (("chexpert", "53189527", "50414267"), IdError, "line 4, column 'study_id'"),
    "float": (("split", "10000032", "10000032.0"), IdError, "line 2, column 'subject_id'"),
    "short id": (("chexpert", "59999999", "5999"), IdError, "line 5, column 'study_id'"),
    "two patients": (("split", "10000032", "10000031"), IdError, "10000032 in"),
    "two splits": (("split", "train", "test"), IdError, "a patient is in two splits"),
    "other patient": (("chexpert", "19999987", "19999988"), IdError,
                      "19999988 in"),
    "short line": (("split", ",train", ""), LabelError, "line 2: not as many fields"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    """Every fault has its error, which names the file and the place."""
    (table, old, new), kind, message = FAULTS[fault]
    path = write_release(tmp_path) / f"mimic-cxr-2.0.0-{table}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    check_fault(lambda: read_mimic_cxr(tmp_path, views="frontal"), kind, message, path.name)


def test_two_patients_of_a_study_within_the_table(tmp_path):
    """Both lines are named."""
    images = {**IMAGES, "02aa-2": (50414267, 17777777, "train", "PA")}
    with pytest.raises(IdError, match="a study has two patients") as caught:
        read_mimic_cxr(write_release(tmp_path, images))
    assert "line 2 and 17777777 in" in caught.value.found
    assert "line 3" in caught.value.found


def test_damaged_tables(tmp_path):
    """A packed table that is cut, and one without rows."""
    write_release(tmp_path, packed=True)
    path = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LabelError, match="truncated"):
        read_mimic_cxr(tmp_path)
    path.write_bytes(gzip.compress(b"dicom_id,study_id,subject_id,split\n"))
    with pytest.raises(LabelError, match="no rows"):
        read_mimic_cxr(tmp_path)


def test_matched():
    """The place of values among keys that are in no order, texts too."""
    assert matched(np.array([3, 9, 1]), np.array([1, 2, 3])).tolist() == [2, -1, 0]
    assert matched(np.array(["b", "zz"]), np.array(["b", "a"])).tolist() == [0, -1]


positions = st.sampled_from(["AP", "PA", "LATERAL", "LL", ""])
codes = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([1, 0, -2]))
studies_of = st.lists(
    st.tuples(st.lists(positions, max_size=3), st.none() | codes), min_size=1, max_size=6
)


@given(patients=st.lists(studies_of, min_size=1, max_size=4), data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(patients, data):
    """Random labels of random studies come back on their images, in any order of the tables."""
    images: dict[str, Any] = {}
    studies: dict[int, Any] = {}
    for patient, own in enumerate(patients):
        subject, split = 10000000 + patient, ("train", "validate", "test")[patient % 3]
        for number, (views, labels) in enumerate(own):
            study = 50000000 + 7919 * (patient * 10 + number) % 9999999
            if labels is not None:
                studies[study] = (subject, labels)
            for k, view in enumerate(views):
                images[f"{study}-{k}"] = (study, subject, split, view)
    images = {name: images[name] for name in data.draw(st.permutations([*images]))}
    studies = {name: studies[name] for name in data.draw(st.permutations([*studies]))}
    if not images or not studies:
        return
    with tempfile.TemporaryDirectory() as folder:
        write_release(Path(folder), images, studies, packed=True)
        read = read_mimic_cxr(folder)
        assert read.labels.ids.tolist() == [*images]
        expected = [row(studies.get(study, (0, {}))[1]) for study, *_ in images.values()]
        assert read.labels.codes.tolist() == expected
        assert read.groups.tolist() == [str(image[1]) for image in images.values()]
        assert read.splits.tolist() == [image[2] for image in images.values()]
        frontal = [name for name, image in images.items() if image[3] in ("AP", "PA")]
        if frontal:
            assert read_mimic_cxr(folder, views="frontal").labels.ids.tolist() == frontal
