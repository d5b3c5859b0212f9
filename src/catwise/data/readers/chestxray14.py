"""NIH ChestX-ray14: frontal chest radiographs with 14 diseases found in the reports' text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import places, refuse_two, refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, open_table
from catwise.data.readers._kit import (
    Images,
    Listing,
    dataset,
    find,
    in_column,
    locate_images,
    numbered,
    read_columns,
    read_list,
)
from catwise.data.source import texts_of
from catwise.errors import LabelError, check_choice, nearest
from catwise.labels.codes import NEGATIVE, POSITIVE, Codes, Rows
from catwise.labels.names import refuse_repeats

DISEASES: Final = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
    "Hernia",
)  # fmt: skip
"""The 14 diseases, in the order of the paper; spelled as in the table."""

NO_FINDING: Final = "No Finding"  # what the table says of an image with none of the 14

TABLES: Final = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS: Final = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
UNLISTED: Final = "unlisted"
POLICIES: Final = ("leave_out", "keep", "refuse")

IMAGE_COLUMN: Final = "Image Index"
FINDINGS_COLUMN: Final = "Finding Labels"
PATIENT_COLUMN: Final = "Patient ID"
IMAGE: Final = r"(?P<patient>\d{8})_\d{3}\.png"
IMAGE_TEXT: Final = "a name such as '00000001_000.png'"


def read_chestxray14(
    root: str | os.PathLike[str],
    *,
    split: Literal["train_val", "test"] | None = None,
    no_finding: bool = False,
    unlisted: Literal["leave_out", "keep", "refuse"] = "leave_out",
    table: str | None = None,
) -> Dataset:
    """Read the labels of NIH ChestX-ray14.

    The release has Data_Entry_2017.csv or its newer edition Data_Entry_2017_v2020.csv,
    train_val_list.txt and test_list.txt; both lists must be there, whatever the split. Images are
    looked for in images/, then in images_001/images/ to images_012/images/ (or right in those
    folders); the first file of a name counts.

    Args:
        root: the folder that holds the table and the lists.
        split: "train_val" or "test", as the lists tell; None: both.
        no_finding: add "No Finding" as a 15th category: positive where the table says so, which
            is where all 14 are negative.
        unlisted: what happens to images of the table that are in neither list: "leave_out"; "keep"
            them as a split "unlisted" when `split` is None; or "refuse". The release has none.
        table: the name of the table. None: the one edition that is there.

    Returns:
        One row an image, in the order of the table; every label is positive or negative. Ids are
        the names of the files, such as "00000001_000.png"; groups are the patients, as the table
        has them. Paths lead to the images from `root`; they are empty for images that are not
        there, and "images/" and the name where there is no folder of images at all.

    Errors are those of all readers (`catwise.data.readers`): findings that contradict each
    other are a LabelError; an image or a patient in both lists is an IdError, both editions of the
    table a ConfigError.

    Source: Wang et al., "ChestX-ray8: hospital-scale chest X-ray database and benchmarks on
    weakly-supervised classification and localization of common thorax diseases", CVPR 2017, and
    the release's own README (14 diseases, official lists), nihcc.app.box.com/v/ChestXray-NIHCC.
    """
    check_choice("split", split, (None, *LISTS))
    check_choice("unlisted", unlisted, POLICIES)
    root = Path(root)
    file = open_table(_find_table(root, table))
    entries = _read_table(file)
    lists = {name: _read_list(root / text, name) for name, text in LISTS.items()}
    _check_lists(root, lists)
    splits = _splits(entries, lists)
    _check_patients(file, entries, splits)
    rows = _rows_of(file, entries, splits, split, unlisted)
    categories = (*DISEASES, *([NO_FINDING] if no_finding else []))
    codes = _codes(file, entries.findings, categories)[rows]
    groups, ids = texts_of(entries.patients)[rows], texts_of(entries.names)[rows]
    paths, path_counts, path_notes = _paths(root, ids.tolist())
    counts: dict[str, Any] = {
        "table": file.path.name,
        "images_in_table": len(splits),
        "images_of_splits": {name: int(np.count_nonzero(splits == name)) for name in LISTS},
        "images_in_neither_list": int(np.count_nonzero(splits == UNLISTED)),
        "listed_images_without_labels": _n_without_labels(entries, lists),
        "patients_unlike_file_names": entries.n_unlike,
        "patients": len(np.unique(groups)),
        "images_without_findings": int(np.count_nonzero(~(codes[:, :14] == POSITIVE).any(axis=1))),
        **path_counts,
    }
    notes = (*_notes(counts, unlisted, split, no_finding=no_finding), *path_notes)
    images_read = Images(ids, paths, splits[rows], groups)
    labels = codes, categories
    return dataset("chestxray14", root, labels, images_read, counts=counts, notes=notes)


def _find_table(root: Path, table: str | None) -> Path:
    """The table asked for, or the one edition that is there."""
    return find(
        root,
        TABLES if table is None else (table,),
        "table of ChestX-ray14",
        alone="table={!r} reads the newer one",
        remedy="give the folder that holds the table, or its name as table=…",
    )


def _rows_of(
    file: TableFile, entries: _Entries, splits: NDArray[np.str_], split: str | None, unlisted: str
) -> Rows:
    """The rows of the table to read."""
    if unlisted == "refuse":
        refuse_wrong(
            entries.names,
            splits != UNLISTED,
            in_column(file, IMAGE_COLUMN),
            f"{file} has images that are in neither list.",
            error=LabelError,
            remedy="unlisted='leave_out' or 'keep'",
        )
    kept = [split] if split else [*LISTS, *([UNLISTED] if unlisted == "keep" else [])]
    rows = np.flatnonzero(np.isin(splits, kept))
    if not len(rows):
        raise LabelError(
            f"{file} has no image of the split {split or ' or '.join(LISTS)!r}.",
            found=f"{len(splits):,} images, none of them in the list",
            remedy="take the table and the lists of one release",
        )
    return rows


class _Entries(NamedTuple):
    """The rows of the table, as Arrow arrays of texts."""

    names: Any
    findings: Any
    patients: Any
    n_unlike: int  # patients that are not the one of the file's name


def _read_table(file: TableFile) -> _Entries:
    """Read the three columns, and check names and patients.

    The header's last names hold commas ("OriginalImage[Width,Height]"), so that each is two
    columns, and some copies end every line with one more comma. None of these columns is read.
    """
    from pyarrow import compute

    roles = {
        IMAGE_COLUMN: "the names of the images",
        FINDINGS_COLUMN: "the findings",
        PATIENT_COLUMN: "the patients",
    }
    columns, _ = read_columns(file, roles, coded=[FINDINGS_COLUMN])
    names, patients = columns[IMAGE_COLUMN], columns[PATIENT_COLUMN]
    parsed = compute.extract_regex(names, f"^{IMAGE}$")
    place = in_column(file, IMAGE_COLUMN)
    what = f"{file} has an entry that is not the name of an image."
    refuse_wrong(names, parsed.is_valid(), place, what, expected=IMAGE_TEXT)
    refuse_repeats(names, place, f"{file} has a duplicate image.")
    told = compute.not_equal(patients, "")
    refuse_wrong(patients, told, in_column(file, PATIENT_COLUMN), f"{file} has a blank patient.")
    padded = compute.utf8_lpad(patients, 8, "0")
    alike = compute.equal(padded, parsed.field("patient")).true_count
    return _Entries(names, columns[FINDINGS_COLUMN], patients, len(names) - alike)


def _codes(file: TableFile, findings: Any, categories: Sequence[str]) -> Codes:
    """(N, C) codes of texts such as "Mass|Hernia"; each different text is parsed once."""
    different, number = numbered(findings)
    place = {name: j for j, name in enumerate((*DISEASES, NO_FINDING))}
    codes = np.full((len(different), len(place)), NEGATIVE, dtype=np.int8)
    for i, text in enumerate(different.to_pylist()):
        names = text.split("|")
        wrong = _fault(names, place)
        if wrong:
            row = int(np.argmax(number == i))
            raise LabelError(
                f"{file} has unrecognised findings: {wrong}.",
                found=f"{text!r} in {file.place(row, FINDINGS_COLUMN)}",
                expected=f"{NO_FINDING!r}, or some of {', '.join(DISEASES)} with '|' between",
            )
        codes[i, [place[name] for name in names]] = POSITIVE
    chosen = np.ascontiguousarray(codes[:, [place[name] for name in categories]])
    result: Codes = chosen[number]
    return result


def _fault(names: list[str], known: dict[str, int]) -> str:
    """What is wrong with the findings of an image, or ""."""
    if names == [""]:
        return "they are blank"
    unknown = [name for name in names if name not in known]
    if unknown:
        return f"there is no {unknown[0]!r}{nearest(unknown[0], known)}"
    if len(set(names)) < len(names):
        return "one repeats"
    if NO_FINDING in names and len(names) > 1:
        return f"{NO_FINDING!r} does not go with a disease"
    return ""


def _read_list(path: Path, split: str) -> Listing:
    """The images of a split, each once."""
    listing = read_list(path, f"the images of the split {split!r}, one name a line")
    listing.refuse(IMAGE, IMAGE_TEXT)
    listing.refuse_repeats()
    return listing


def _check_lists(root: Path, lists: dict[str, Listing]) -> None:
    """Refuse an image in both lists."""
    refuse_repeats(
        [name for one in lists.values() for name in one.names],
        places([(len(one.names), one.place) for one in lists.values()]),
        f"the lists in '{root}' share images.",
        expected="every image in one list",
    )


def _splits(entries: _Entries, lists: dict[str, Listing]) -> NDArray[np.str_]:
    """The split of each row."""
    split_of = {image: name for name, found in lists.items() for image in found.names}
    return np.array([split_of.get(image, UNLISTED) for image in entries.names.to_pylist()])


def _n_without_labels(entries: _Entries, lists: dict[str, Listing]) -> int:
    """How many names in the lists are not in the table."""
    known = set(entries.names.to_pylist())
    return sum(len(set(found.names) - known) for found in lists.values())


def _check_patients(file: TableFile, entries: _Entries, splits: NDArray[np.str_]) -> None:
    """Refuse a patient in both splits."""
    rows = np.flatnonzero(splits != UNLISTED)
    refuse_two(
        texts_of(entries.patients)[rows],
        splits[rows],
        lambda i: file.place(int(rows[i]), IMAGE_COLUMN),
        "the lists of ChestX-ray14 share patients.",
        expected="every patient in one list, as in the release",
        remedy="download the lists again",
    )


def _paths(root: Path, names: Sequence[str]) -> tuple[Any, dict[str, int], list[str]]:
    """The path of each image, with counts and notes."""
    parts = sorted(path.name for path in root.glob("images_[0-9][0-9][0-9]") if path.is_dir())
    parts = [f"{part}/images" if (root / part / "images").is_dir() else part for part in parts]
    found = locate_images(root, ("images", *parts), names)
    if not found.there:
        note = "There is no folder of images; paths tell where they should be."
        return [f"images/{name}" for name in names], {}, [note]
    counts = {"images_without_files": found.n_missing, "files_in_two_folders": found.n_twice}
    return found.paths, counts, []


def _notes(
    counts: dict[str, Any], unlisted: str, split: str | None, *, no_finding: bool
) -> list[str]:
    """What the labels mean, and what a user should know."""
    notes = [
        "Labels are found in the text of reports; what a report does not name is negative.",
        "No patient is in both lists.",
    ]
    if no_finding:
        notes.append(f"{NO_FINDING!r} is positive where none of the 14 diseases is.")
    if counts["images_in_neither_list"]:
        kept = unlisted == "keep" and split is None
        what = f"kept as the split {UNLISTED!r}" if kept else "left out"
        notes.append(f"Images in neither list are {what}: {counts['images_in_neither_list']:,}.")
    if counts["listed_images_without_labels"]:
        n = counts["listed_images_without_labels"]
        notes.append(f"Images in a list but not in the table have no labels: {n:,}.")
    return notes
