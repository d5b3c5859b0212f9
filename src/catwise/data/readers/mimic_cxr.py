"""MIMIC-CXR-JPG: chest radiographs with labels found in reports, one row a study."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import refuse_two, refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, open_table
from catwise.data.readers._kit import (
    Images,
    dataset,
    find,
    in_column,
    matched,
    matches,
    read_columns,
)
from catwise.data.readers.chexpert import (
    AIRSPACE,
    BLANK_NOTE,
    BLANKS,
    LUNG,
    VIEWS,
    chosen_categories,
    read_observations,
)
from catwise.data.source import texts_of
from catwise.errors import IdError, LabelError, check_choice
from catwise.labels.codes import NEGATIVE, UNKNOWN, Codes, Rows
from catwise.labels.names import refuse_repeats

FRONTAL: Final = ("AP", "PA")  # the values of ViewPosition that are read as frontal

LATERAL: Final = ("LATERAL", "LL")  # the values of ViewPosition that are read as lateral

SPLITS: Final = ("train", "validate", "test")
LABELS: Final = {
    "chexpert": "mimic-cxr-2.0.0-chexpert.csv",
    "negbio": "mimic-cxr-2.0.0-negbio.csv",
    "radiologist": "mimic-cxr-2.1.0-test-set-labeled.csv",
}
SPLIT_TABLE: Final = "mimic-cxr-2.0.0-split.csv"
METADATA: Final = "mimic-cxr-2.0.0-metadata.csv"

NO_FILES: Final = "There is no folder files; paths tell where it should be."
NOTES: Final = {
    "chexpert": "Labels found in the reports by the CheXpert labeler; -1 is uncertain.",
    "negbio": "Labels found in the reports by NegBio; -1 is uncertain.",
    "radiologist": "Labels of the reports of the test set, by one radiologist; -1 is uncertain.",
}


def read_mimic_cxr(
    root: str | os.PathLike[str],
    *,
    labeler: Literal["chexpert", "negbio", "radiologist"] = "chexpert",
    split: Literal["train", "validate", "test"] | None = None,
    views: Literal["all", "frontal", "lateral"] = "all",
    categories: Literal["all", "competition"] | Sequence[str] = "all",
    blanks: Literal["unknown", "negative"] = "unknown",
    unlabelled: Literal["keep", "drop"] = "keep",
) -> Dataset:
    """Read the labels of MIMIC-CXR-JPG 2.0.0 or 2.1.0.

    Labels belong to studies: every image of a study has those of its report. Tables may be
    unpacked (.csv) or not (.csv.gz). The metadata are only read where views are chosen.

    Args:
        root: the folder that holds the tables, and the images in files/.
        labeler: whose labels: "chexpert", "negbio", or "radiologist" (2.1.0, reports of the test
            set only).
        split: "train", "validate" or "test"; None: all.
        views: "all", "frontal" (ViewPosition AP or PA) or "lateral" (LATERAL or LL) images. Rare
            and blank positions are neither, and counted.
        categories: "all" 14 observations in the order of CheXpert, the 5 of its "competition", or
            a list of names.
        blanks: what a blank means, an observation that the report does not mention: "unknown" or
            "negative".
        unlabelled: what to do with the images of studies that the table of labels does not list:
            "keep" them, all unknown whatever blanks mean, or "drop" them.

    Returns:
        One row an image, in the order of the table of splits. Ids are those of the images
        (dicom_id), groups are patients (subject_id). Uncertain labels stay uncertain.

    Errors are those of all readers (`catwise.data.readers`): a study with two patients, and a
    patient in two splits, are an IdError; no image that is left a LabelError.

    Source: Johnson et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest
    radiographs", 2019, arXiv:1901.07042, and physionet.org/content/mimic-cxr-jpg.
    """
    check_choice("labeler", labeler, tuple(LABELS))
    check_choice("split", split, (None, *SPLITS))
    check_choice("views", views, VIEWS)
    check_choice("blanks", blanks, BLANKS)
    check_choice("unlabelled", unlabelled, ("keep", "drop"))
    names, root = chosen_categories(categories), Path(root)
    images = _Images.read(_table(root, SPLIT_TABLE))
    studies = _Studies.read(_table(root, LABELS[labeler]), names)
    study = studies.of(images)
    counts: dict[str, Any] = {
        "images_in_tables": len(study),
        "labelled_studies_without_images": int((~np.isin(studies.ids, images.studies)).sum()),
    }
    notes = [NOTES[labeler]]
    notes += [f"The column {AIRSPACE} is read as {LUNG}."] * (AIRSPACE in studies.file.names)
    notes += [NO_FILES] * (not (root / "files").is_dir())
    keep = np.ones(len(study), dtype=np.bool_) if split is None else images.splits == split
    if views != "all":
        keep &= _of_views(_table(root, METADATA), images, keep, views, counts)
    unlisted = keep & (study < 0)
    counts["studies_without_labels"] = len(np.unique(images.studies[unlisted]))
    counts["images_without_labels"] = int(unlisted.sum())
    if counts["images_without_labels"]:
        what = "kept, all unknown" if unlabelled == "keep" else "left out"
        notes.append(f"Images of studies that the table of labels does not list are {what}.")
    rows = np.flatnonzero(keep & ~unlisted if unlabelled == "drop" else keep)
    if not len(rows):
        found = f"split={split!r}, views={views!r}, unlabelled={unlabelled!r}"
        raise LabelError(f"no image of {images.file} with labels is left.", found=found)
    codes = _codes(studies.codes, study[rows], blanks, counts)
    notes += [BLANK_NOTE] if blanks == "negative" else []
    for name, numbers in (("studies", images.studies), ("patients", images.patients)):
        counts[name] = len(np.unique(numbers[rows]))
    labels = codes, names
    return dataset("mimic-cxr", root, labels, images.taken(rows), counts=counts, notes=notes)


def _codes(codes: Codes, study: Rows, blanks: str, counts: dict[str, Any]) -> Codes:
    """The codes of images from those of their studies, -1 for those that are not listed."""
    listed = study[:, None] >= 0
    silent = (codes == UNKNOWN).all(axis=1)
    counts["studies_without_mentions"] = len(np.unique(study[silent[study] & (study >= 0)]))
    codes = np.where(listed, codes[study], np.int8(UNKNOWN))
    if blanks == "negative":
        blank = (codes == UNKNOWN) & listed
        codes[blank] = NEGATIVE
        counts["blanks_as_negative"] = int(blank.sum())
    return codes


@dataclass(frozen=True, slots=True)
class _Images:
    """The table of splits: (N,) texts each, and numbers of studies."""

    file: TableFile
    ids: NDArray[np.str_]
    studies: Rows
    patients: NDArray[np.str_]
    splits: NDArray[np.str_]

    @classmethod
    def read(cls, file: TableFile) -> _Images:
        """Read the table, and check that studies and patients are whole."""
        roles = {
            "dicom_id": "the ids of the images",
            "study_id": "the studies",
            "subject_id": "the patients",
            "split": "the splits",
        }
        texts, _ = read_columns(file, roles)
        ids, splits = texts_of(texts["dicom_id"]), texts_of(texts["split"])
        refuse_wrong(
            ids,
            ids != "",
            in_column(file, "dicom_id"),
            f"{file} has a blank id of an image.",
            expected="02aa804e-bde0afdd-112c0b34-7bc16630-4e384014",
        )
        refuse_repeats(ids, in_column(file, "dicom_id"), f"{file} has a duplicate id.")
        refuse_wrong(
            splits,
            np.isin(splits, SPLITS),
            in_column(file, "split"),
            f"{file} has an unrecognised split.",
            expected=" or ".join(map(repr, SPLITS)),
            error=LabelError,
        )
        studies, patients = (_numbers(file, name, texts) for name in ("study_id", "subject_id"))
        refuse_two(studies, patients, file.place, f"{file}: a study has two patients.")
        refuse_two(patients, splits, file.place, f"{file}: a patient is in two splits.")
        return cls(file, ids, studies, texts_of(texts["subject_id"]), splits)

    def taken(self, rows: Rows) -> Images:
        """Some images; they are at files/p10/p10000032/s50414267/<dicom_id>.jpg."""
        ids, patients, studies = self.ids[rows], self.patients[rows], self.studies[rows]
        parts = zip(patients.tolist(), studies.tolist(), ids.tolist(), strict=True)
        paths = [f"files/p{p[:2]}/p{p}/s{s}/{i}.jpg" for p, s, i in parts]
        return Images(ids, paths, self.splits[rows], patients)


@dataclass(frozen=True, slots=True)
class _Studies:
    """The table of labels: a row a study."""

    file: TableFile
    ids: Rows
    patients: Rows | None
    codes: Codes

    @classmethod
    def read(cls, file: TableFile, names: Sequence[str]) -> _Studies:
        """Read the table; that of the radiologist tells no patients."""
        roles = {"study_id": "the studies"}
        if "subject_id" in file.names:
            roles["subject_id"] = "the patients"
        texts, codes = read_observations(file, roles, names)
        numbers = {name: _numbers(file, name, texts) for name in roles}
        ids = numbers["study_id"]
        refuse_repeats(ids, in_column(file, "study_id"), f"{file} has a duplicate study.")
        return cls(file, ids, numbers.get("subject_id"), codes)

    def of(self, images: _Images) -> Rows:
        """The row of each image's study, -1 where it is not listed."""
        rows = matched(images.studies, self.ids)
        if self.patients is not None:
            differ = (self.patients[rows] != images.patients.astype(np.int64)) & (rows >= 0)
            if differ.any():
                i = int(np.flatnonzero(differ)[0])
                row = int(rows[i])
                raise IdError(
                    f"two tables do not agree on the patient of study {self.ids[row]}.",
                    found=f"{images.patients[i]} in {images.file.place(i, 'subject_id')}, "
                    f"{self.patients[row]} in {self.file.place(row, 'subject_id')}",
                    expected="tables of one release",
                )
        return rows


def _table(root: Path, name: str) -> TableFile:
    """A table, unpacked or not."""
    return open_table(find(root, (name, f"{name}.gz"), f"table '{name}'"))


def _numbers(file: TableFile, column: str, texts: dict[str, Any]) -> Rows:
    """Ids of patients or studies, which are numbers of eight digits."""
    import pyarrow as pa

    array = texts[column]
    good = matches(array, r"^[1-9]\d{7}$")
    what = f"{file} has an id that is not a number of eight digits."
    refuse_wrong(array, good, in_column(file, column), what, expected="such as 10000032")
    numbers: Rows = array.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return numbers


def _of_views(
    file: TableFile, images: _Images, keep: NDArray[np.bool_], views: str, counts: dict[str, Any]
) -> NDArray[np.bool_]:
    """Which images have one of these views; the others of `keep` are counted by position."""
    roles = {"dicom_id": "the ids of the images", "ViewPosition": "the views"}
    texts, _ = read_columns(file, roles)
    what = f"{file} has a duplicate id."
    refuse_repeats(texts["dicom_id"], in_column(file, "dicom_id"), what)
    rows = matched(images.ids, texts_of(texts["dicom_id"]))
    positions = texts_of(texts["ViewPosition"])[rows]
    good = np.isin(positions, FRONTAL if views == "frontal" else LATERAL) & (rows >= 0)
    names, sizes = np.unique(positions[keep & ~good & (rows >= 0)], return_counts=True)
    pairs = zip(names.tolist(), sizes.tolist(), strict=True)
    counts["images_of_other_views"] = {name or "blank": size for name, size in pairs}
    counts["images_without_metadata"] = int((keep & (rows < 0)).sum())
    return good
