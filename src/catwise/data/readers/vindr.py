"""VinDr-CXR: chest radiographs that three radiologists each labelled on their own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from catwise.data.checks import refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, open_table
from catwise.data.readers._kit import (
    Images,
    dataset,
    find_splits,
    in_column,
    locate_images,
    numbered,
    read_columns,
    relative,
)
from catwise.errors import ConfigError, IdError, LabelError, check_choice, check_rules, nearest
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN, Codes, Rows
from catwise.labels.encodings import ENCODINGS
from catwise.labels.names import refuse_repeats

LOCAL_LABELS: Final = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture",
    "Consolidation", "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity",
    "Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass", "Pleural effusion",
    "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture", "Other lesion",
)  # fmt: skip
"""The 22 findings that radiologists marked with a box."""

GLOBAL_LABELS: Final = (
    "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding",
)  # fmt: skip
"""The 6 labels of a whole image."""

KAGGLE_CLASSES: Final = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation",
    "ILD", "Infiltration", "Lung Opacity", "Nodule/Mass", "Other lesion", "Pleural effusion",
    "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "No finding",
)  # fmt: skip
"""The 15 classes of the VinBigData competition; class_id is the position."""

SPLITS: Final = ("train", "test")
POLICIES: Final = ("majority", "any", "all", "unanimous")
TABLES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "physionet": {
        split: (f"annotations/image_labels_{split}.csv", f"image_labels_{split}.csv")
        for split in SPLITS
    },
    "kaggle": {"train": ("train.csv",), "test": ()},
}
ALIASES: Final = {"Other diseases": "Other disease"}
N_RATERS: Final = 3
SUFFIX: Final = "suffix begins with a dot, as '.dicom'"

RULES: Final = {
    "majority": "a label is what more than half of its radiologists say; a tie is uncertain",
    "any": "a label is positive where any radiologist says so",
    "all": "a label is positive where all its radiologists say so",
    "unanimous": "a label on which its radiologists disagree is uncertain",
}


def read_vindr(
    root: str | os.PathLike[str],
    *,
    split: Literal["train", "test"] | None = None,
    raters: Literal["majority", "any", "all", "unanimous"] = "majority",
    layout: Literal["physionet", "kaggle"] | None = None,
    suffix: str = ".dicom",
) -> Dataset:
    """Read the labels of VinDr-CXR, in the layout of PhysioNet or of Kaggle (VinBigData).

    PhysioNet: annotations/image_labels_train.csv has one row for each image and radiologist,
    annotations/image_labels_test.csv the consensus of five, both 28 columns of 1 and 0 (also
    found right in `root`). Kaggle: train.csv has a row for each box of a radiologist, 14 findings
    and "No finding"; a finding is negative for a radiologist who drew no box of it. Its test
    images have no labels.

    Args:
        root: the folder that holds annotations/ or train.csv.
        split: "train" or "test"; None: every split whose table is there.
        raters: how the radiologists of a training image become one label, in each category:
            "majority": what more than half say, and uncertain if as many say yes as no; "any":
            positive if one says so; "all": positive if all say so; "unanimous": uncertain unless
            all say the same. Blank cells are no vote; without a vote a label is unknown.
        layout: "physionet" or "kaggle"; None: the one whose tables are there.
        suffix: how the names of the image files end; other than ".dicom" if you converted them.

    Returns:
        One row an image, in the order of the tables' first rows for each. Ids are the release's
        image_id. Groups are None: the release names no patients. Paths are such as
        "train/<id>.dicom"; they are empty for images that are not there, if their folder is.

    Errors are those of all readers (`catwise.data.readers`): an image in both tables, and a
    radiologist with two rows for one training image, are an IdError; both layouts a ConfigError.

    Source: Nguyen et al., "VinDr-CXR: an open dataset of chest X-rays with radiologist's
    annotations", Scientific Data 9, 429, 2022; PhysioNet, vindr-cxr 1.0.0; Kaggle, VinBigData
    Chest X-ray Abnormalities Detection.
    """
    check_choice("split", split, (None, *SPLITS))
    check_choice("raters", raters, POLICIES)
    check_choice("layout", layout, (None, *TABLES))
    check_rules("options of VinDr-CXR", {"suffix": suffix}, {SUFFIX: suffix.startswith(".")})
    root = Path(root)
    chosen, tables = _find_tables(root, split, layout)
    categories = KAGGLE_CLASSES if chosen == "kaggle" else (*LOCAL_LABELS, *GLOBAL_LABELS)
    counts: dict[str, Any] = {"layout": chosen, "tables": relative(tables, root)}
    notes = [] if split or len(tables) == 2 else [f"Only the split {next(iter(tables))!r} is here."]
    ids: list[str] = []
    parts: list[tuple[Codes, Any, list[str]]] = []
    for name, path in tables.items():
        file = open_table(path)
        votes = _read_boxes(file) if chosen == "kaggle" else _read_votes(file, name, categories)
        if name == "train":
            codes, found = _settled(votes, raters, categories)
            notes.append(f"train: labelled by radiologists on their own; {RULES[raters]}.")
        else:
            codes, found = votes.codes, {"blank_labels_of_test": _n_blank(votes.codes)}
            notes.append("test: the consensus of five radiologists.")
        n_odd = _n_contradictory(votes.codes, categories)
        counts.update(found | {f"contradictory_rows_of_{name}": n_odd})
        if n_odd:
            what = f"{n_odd:,} votes for 'No finding' next to a finding count as they are"
            notes.append(f"{name}: {what}.")
        paths = _paths(root, name, [f"{image}{suffix}" for image in votes.ids], counts, notes)
        parts.append((codes, paths, [name] * len(codes)))
        ids += votes.ids
    content, paths, splits = (np.concatenate(part) for part in zip(*parts, strict=True))
    what = f"the tables of VinDr-CXR in '{root}' share images."
    refuse_repeats(ids, lambda i: f"'{tables[str(splits[i])]}'", what)
    if chosen == "kaggle":
        notes.append("A finding is negative for a radiologist who drew no box of it.")
    notes.append("The release names no patients, so images are in no groups.")
    labels = content, categories
    return dataset("vindr", root, labels, Images(ids, paths, splits), counts=counts, notes=notes)


def _paths(
    root: Path, split: str, files: list[str], counts: dict[str, Any], notes: list[str]
) -> Any:
    """Paths of the images; "" for those that are not there, if their folder is."""
    found = locate_images(root, (split,), files)
    if not found.there:
        notes.append(f"There is no folder {split}; paths tell where its images should be.")
        return [f"{split}/{file}" for file in files]
    counts["images_without_files"] = counts.get("images_without_files", 0) + found.n_missing
    return found.paths


class _Votes(NamedTuple):
    """What each radiologist says of an image; a consensus counts as one."""

    ids: list[str]  # N, in order of first appearance
    image: Rows  # (R,) which image each row is about
    n_raters: int  # different radiologists
    n_rows: int  # rows of the table
    codes: Codes  # (R, C) positive, negative, or unknown where the cell is blank


def _find_tables(root: Path, split: str | None, layout: str | None) -> tuple[str, dict[str, Path]]:
    """The layout, and the table of each split to read."""
    there = {
        name: [file for files in names.values() for file in files if (root / file).is_file()]
        for name, names in TABLES.items()
        if layout in (None, name)
    }
    if all(there.values()) and len(there) > 1:
        raise ConfigError(
            f"'{root}' holds VinDr-CXR in two layouts.",
            found=" and ".join(f"'{files[0]}'" for files in there.values()),
            remedy="layout='physionet' or 'kaggle'",
        )
    chosen = next((name for name, files in there.items() if files), next(iter(there)))
    hidden = "the layout of Kaggle, whose test images have no labels"
    return chosen, find_splits(
        root,
        TABLES[chosen] if chosen == "physionet" or split == "test" else {"train": ("train.csv",)},
        split,
        f"table of VinDr-CXR{f' as on {layout}' if layout else ''}",
        found=hidden if there.get("kaggle") and split == "test" else None,
        remedy="give the folder that holds annotations/ (PhysioNet) or train.csv (Kaggle)"
        if split != "test"
        else "the labels of the test images are in the release on PhysioNet",
    )


def _read_votes(file: TableFile, split: str, categories: Sequence[str]) -> _Votes:
    """Read a table of PhysioNet; the test table calls "Other diseases" "Other disease"."""
    keys = {"image_id": "the ids of the images"}
    if split == "train":
        keys["rad_id"] = "the radiologists"
    columns = [name if name in file.names else ALIASES.get(name, name) for name in categories]
    texts, codes = read_columns(file, keys, labels=columns, encoding=ENCODINGS["nan"])
    _refuse_blanks(file, texts)
    ids, image = numbered(texts["image_id"])
    n_raters = len(numbered(texts["rad_id"])[0]) if split == "train" else 1
    rows = [" by ".join(row) for row in zip(*(a.tolist() for a in texts.values()), strict=True)]
    what = "of one radiologist for one image" if split == "train" else "for one image"
    refuse_repeats(rows, file.place, f"{file} has two rows {what}.", expected="one row")
    return _Votes(ids.to_pylist(), image, n_raters, len(image), codes)


def _refuse_blanks(file: TableFile, texts: dict[str, Any]) -> None:
    from pyarrow import compute

    for name, array in texts.items():
        error = LabelError if name.startswith("class") else IdError
        told = compute.not_equal(array, "")
        refuse_wrong(array, told, in_column(file, name), f"{file} has a blank {name}.", error=error)


def _read_boxes(file: TableFile) -> _Votes:
    """Read the table of Kaggle: each row is a box, or says that there is no finding."""
    from pyarrow import compute

    keys = {
        "image_id": "the ids of the images",
        "class_name": "the findings",
        "class_id": "the numbers of the findings",
        "rad_id": "the radiologists",
    }
    texts, _ = read_columns(file, keys, coded=["class_name", "class_id", "rad_id"])
    _refuse_blanks(file, texts)
    ids, image = numbered(texts["image_id"])
    names, rater = numbered(texts["rad_id"])
    known = {f"{i} {name}": i for i, name in enumerate(KAGGLE_CLASSES)}
    classes = compute.binary_join_element_wise(texts["class_id"], texts["class_name"], " ")
    different, local = numbered(classes)
    wrong = [text for text in different.to_pylist() if text not in known]
    if wrong:
        refuse_wrong(
            classes,
            ~np.isin(local, [different.to_pylist().index(text) for text in wrong]),
            in_column(file, "class_id"),
            f"{file} has a finding that is not one of the competition's{nearest(wrong[0], known)}.",
            error=LabelError,
            expected="0 to 14, each with its own name: " + ", ".join(KAGGLE_CLASSES),
        )
    number = np.array([known[text] for text in different.to_pylist()], dtype=np.int64)
    pairs, pair = np.unique(image * len(names) + rater, return_inverse=True)
    codes = np.full((len(pairs), len(KAGGLE_CLASSES)), NEGATIVE, dtype=np.int8)
    codes[pair, number[local]] = POSITIVE
    return _Votes(ids.to_pylist(), pairs // len(names), len(names), len(image), codes)


def _settled(votes: _Votes, policy: str, categories: Sequence[str]) -> tuple[Codes, dict[str, Any]]:
    """(N, C) codes that the votes come to, and how much the radiologists agree."""
    order = np.argsort(votes.image, kind="stable")
    starts = np.searchsorted(votes.image[order], np.arange(len(votes.ids)))
    ordered = votes.codes[order]
    yes, no = (
        np.add.reduceat((ordered == code).astype(np.int32), starts, axis=0)
        for code in (POSITIVE, NEGATIVE)
    )
    split = (yes > 0) & (no > 0)
    codes: Codes = np.where(yes > 0, POSITIVE, NEGATIVE).astype(np.int8)
    tied = np.zeros_like(split)
    if policy == "majority":
        codes[no > yes] = NEGATIVE
        tied = split & (yes == no)
        codes[tied] = UNCERTAIN
    elif policy == "all":
        codes[split] = NEGATIVE
    elif policy == "unanimous":
        codes[split] = UNCERTAIN
    codes[(yes == 0) & (no == 0)] = UNKNOWN
    n_raters = np.bincount(votes.image)
    disagreed = split.sum(axis=0).tolist()
    return codes, {
        "raters": policy,
        "radiologists": votes.n_raters,
        "rows_of_train": votes.n_rows,
        "images_by_radiologists": {
            str(n): count for n, count in sorted(Counter(n_raters.tolist()).items())
        },
        "images_without_three_radiologists": int(np.count_nonzero(n_raters != N_RATERS)),
        "labels_agreed_on": int((~split & (yes + no > 0)).sum()),
        "labels_disagreed_on": int(split.sum()),
        "images_disagreed_on": dict(zip(categories, disagreed, strict=True)),
        "ties_as_uncertain": int(tied.sum()),
        "blank_votes": _n_blank(votes.codes),
    }


def _n_blank(codes: Codes) -> int:
    return int(np.count_nonzero(codes == UNKNOWN))


def _n_contradictory(codes: Codes, categories: Sequence[str]) -> int:
    """How many radiologists say of an image that there is no finding, and name one too."""
    nothing = categories.index("No finding")
    others = np.delete(codes, nothing, axis=1) == POSITIVE
    return int(np.count_nonzero((codes[:, nothing] == POSITIVE) & others.any(axis=1)))
