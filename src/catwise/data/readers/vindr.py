"""VinDr-CXR: chest radiographs that three radiologists each labelled on their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, no_rows, open_table
from catwise.data.source import check_textual, encode_column, texts_of
from catwise.errors import ConfigError, IdError, LabelError, check_choice, nearest
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN, Codes, Rows
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import ENCODINGS, UNFIT, encoding_error

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["GLOBAL_LABELS", "KAGGLE_CLASSES", "LOCAL_LABELS", "read_vindr"]

LOCAL_LABELS: Final = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
)
"""The 22 findings that radiologists marked with a box."""

GLOBAL_LABELS: Final = (
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)
"""The 6 labels of a whole image."""

KAGGLE_CLASSES: Final = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "No finding",
)
"""The 15 classes of the VinBigData competition; class_id is the position."""

SPLITS: Final = ("train", "test")
LAYOUTS: Final = ("physionet", "kaggle")
POLICIES: Final = ("majority", "any", "all", "unanimous")
TABLES: Final = {"train": "image_labels_train.csv", "test": "image_labels_test.csv"}
PLACES: Final = ("annotations", "")
KAGGLE_TABLE: Final = "train.csv"
ALIASES: Final = {"Other diseases": "Other disease"}
N_RATERS: Final = 3

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

    Raises:
        LabelError: If a table is missing, damaged, lacks a column or has a value of no meaning.
        IdError: If an id is blank, an image is twice in the test table or in both tables, or a
            radiologist has two rows for one image of the training table.
        ConfigError: If an option is not possible, or both layouts are there.

    Source: Nguyen et al., "VinDr-CXR: an open dataset of chest X-rays with radiologist's
    annotations", Scientific Data 9, 429, 2022; PhysioNet, vindr-cxr 1.0.0; Kaggle, VinBigData
    Chest X-ray Abnormalities Detection.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    ...     rows += ["a,Cardiomegaly,3,R1,1,1,9,9", "a,Cardiomegaly,3,R2,2,1,9,9"]
    ...     rows += ["a,No finding,14,R3,,,,"]
    ...     _ = Path(folder, "train.csv").write_text(chr(10).join(rows))
    ...     dataset = read_vindr(folder, raters="unanimous")
    >>> dataset.labels.codes.tolist()
    [[0, 0, 0, -2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -2]]
    """
    check_choice("split", split, (None, *SPLITS))
    check_choice("raters", raters, POLICIES)
    check_choice("layout", layout, (None, *LAYOUTS))
    if not suffix.startswith("."):
        raise ConfigError("a suffix begins with a dot.", found=repr(suffix), expected="'.dicom'")
    root = Path(root)
    chosen, tables = _find_tables(root, split, layout)
    categories = KAGGLE_CLASSES if chosen == "kaggle" else (*LOCAL_LABELS, *GLOBAL_LABELS)
    counts: dict[str, Any] = {
        "layout": chosen,
        "tables": {name: path.relative_to(root).as_posix() for name, path in tables.items()},
    }
    notes = [] if split or len(tables) == 2 else [f"Only the split {next(iter(tables))!r} is here."]
    parts: dict[str, tuple[Any, Codes]] = {}
    missing: list[int] = []
    paths: list[NDArray[np.str_]] = []
    for name, path in tables.items():
        file = open_table(path)
        votes = _read_boxes(file) if chosen == "kaggle" else _read_votes(file, name, categories)
        if name == "train":
            codes, found = _settled(votes, raters, categories)
            notes.append(f"train: labelled by radiologists on their own; {RULES[raters]}.")
        else:
            codes, found = votes.codes, {"blank_labels_of_test": _n_blank(votes.codes)}
            notes.append("test: the consensus of five radiologists.")
        counts.update(found)
        counts[f"contradictory_rows_of_{name}"] = _n_contradictory(votes.codes, categories)
        parts[name] = votes.ids, codes
        notes += _contradiction(name, counts[f"contradictory_rows_of_{name}"])
        paths.append(_paths(root, name, votes.ids, suffix))
        if (root / name).is_dir():
            missing.append(int(np.count_nonzero(paths[-1] == "")))
        else:
            notes.append(f"There is no folder {name}; paths tell where its images should be.")
    _check_apart(root, tables, parts)
    if missing:
        counts["images_without_files"] = sum(missing)
    if chosen == "kaggle":
        notes.append("A finding is negative for a radiologist who drew no box of it.")
    notes.append("The release names no patients, so images are in no groups.")
    content = np.concatenate([codes for _, codes in parts.values()])
    labels = PartialLabels.from_content(
        content,
        len(content),
        tuple(categories),
        ids=np.concatenate([texts_of(ids) for ids, _ in parts.values()]),
        groups=None,
        storage="auto",
    )
    splits = np.repeat(list(parts), [len(codes) for _, codes in parts.values()])
    return Dataset("vindr", root, np.concatenate(paths), labels, splits, counts, tuple(notes))


class _Votes(NamedTuple):
    """What each radiologist says of an image; a consensus counts as one."""

    ids: Any  # (N,) Arrow texts, in order of first appearance
    image: Rows  # (R,) which image each row is about
    n_raters: int  # different radiologists
    n_rows: int  # rows of the table
    codes: Codes  # (R, C) positive, negative, or unknown where the cell is blank


def _find_tables(root: Path, split: str | None, layout: str | None) -> tuple[str, dict[str, Path]]:
    """The layout, and the table of each split to read.

    Raises:
        LabelError: If there is none, or not the one of the split.
        ConfigError: If both layouts are there and none is asked for.
    """
    tables = {
        "physionet": {
            name: paths[0]
            for name, text in TABLES.items()
            if (paths := [p for place in PLACES if (p := root / place / text).is_file()])
        },
        "kaggle": {"train": root / KAGGLE_TABLE} if (root / KAGGLE_TABLE).is_file() else {},
    }
    there = [name for name in ([layout] if layout else LAYOUTS) if tables[name]]
    if len(there) > 1:
        raise ConfigError(
            f"'{root}' holds VinDr-CXR in two layouts.",
            found=" and ".join(str(next(iter(found.values()))) for found in tables.values()),
            remedy="layout='physionet' or 'kaggle'",
        )
    if not there:
        raise LabelError(
            f"'{root}' has no table of VinDr-CXR{f' as on {layout}' if layout else ''}.",
            expected="annotations/image_labels_train.csv and image_labels_test.csv (PhysioNet), "
            "or train.csv (Kaggle)",
            remedy="give the folder that holds annotations/ or train.csv",
        )
    found = tables[there[0]]
    if split is not None and split not in found:
        kaggle = there[0] == "kaggle"
        raise LabelError(
            f"'{root}' has no table of the split {split!r} of VinDr-CXR.",
            found="the layout of Kaggle, whose test images have no labels" if kaggle else None,
            expected=f"annotations/{TABLES[split]}",
            remedy="the labels of the test images are in the release on PhysioNet"
            if kaggle
            else None,
        )
    return there[0], {
        name: found[name] for name in SPLITS if name in found and split in (None, name)
    }


def _read_votes(file: TableFile, split: str, categories: Sequence[str]) -> _Votes:
    """Read a table of PhysioNet; the test table calls "Other diseases" "Other disease"."""
    keys = {"image_id": "the ids of the images"}
    if split == "train":
        keys["rad_id"] = "the radiologists"
    columns = [name if name in file.names else ALIASES.get(name, name) for name in categories]
    for name, role in [*keys.items(), *((name, "a label") for name in columns)]:
        file.require(name, role)
    encoding = ENCODINGS["nan"]
    texts: dict[str, list[Any]] = {name: [] for name in keys}
    blocks, n_rows, n_unfit = [np.empty((0, len(columns)), np.int8)], 0, 0
    first: tuple[int, str, Any] | None = None
    for batch in file.batches([*keys, *columns], coded=columns):
        codes = np.empty((batch.num_rows, len(columns)), dtype=np.int8)
        for j, name in enumerate(columns):
            codes[:, j] = encode_column(batch.column(name), encoding)
        unfit = np.argwhere(codes == UNFIT)
        if len(unfit) and first is None:
            row, j = unfit[0].tolist()
            first = n_rows + row, columns[j], batch.column(columns[j])[row].as_py()
        for name, arrays in texts.items():
            arrays.append(_texts(batch.column(name), name, file, n_rows))
        blocks.append(codes)
        n_rows, n_unfit = n_rows + batch.num_rows, n_unfit + len(unfit)
    if first is not None:
        raise encoding_error(
            encoding,
            first[2],
            where=file.place(*first[:2]),
            n_unfit=n_unfit,
            remedy="correct the value, or download the file again",
        )
    if not n_rows:
        raise no_rows(str(file))
    ids, image = _numbered(texts["image_id"])
    names, rater = _numbered(texts["rad_id"]) if split == "train" else ([""], np.zeros_like(image))
    _check_once(file, ids, image, rater, split)
    return _Votes(ids, image, len(names), n_rows, np.concatenate(blocks))


def _read_boxes(file: TableFile) -> _Votes:
    """Read the table of Kaggle: each row is a box, or says that there is no finding."""
    import pyarrow as pa
    from pyarrow import compute

    keys = {
        "image_id": "the ids of the images",
        "class_name": "the findings",
        "class_id": "the numbers of the findings",
        "rad_id": "the radiologists",
    }
    for name, role in keys.items():
        file.require(name, role)
    texts: dict[str, list[Any]] = {name: [] for name in keys}
    n_rows = 0
    for batch in file.batches(list(keys), coded=["class_name", "class_id", "rad_id"]):
        for name, arrays in texts.items():
            arrays.append(_texts(batch.column(name), name, file, n_rows))
        n_rows += batch.num_rows
    if not n_rows:
        raise no_rows(str(file))
    ids, image = _numbered(texts["image_id"])
    names, rater = _numbered(texts["rad_id"])
    numbers, titles = (pa.concat_arrays(texts[name]) for name in ("class_id", "class_name"))
    known = {f"{i} {name}": i for i, name in enumerate(KAGGLE_CLASSES)}
    classes = compute.binary_join_element_wise(numbers, titles, " ").dictionary_encode()
    local = classes.indices.to_numpy(zero_copy_only=False)
    for i, text in enumerate(classes.dictionary.to_pylist()):
        if text not in known:
            row = int(np.flatnonzero(local == i)[0])
            raise LabelError(
                f"{file} has a finding that is none of the competition's{nearest(text, known)}.",
                found=f"class_id {numbers[row].as_py()!r} with class_name "
                f"{titles[row].as_py()!r} in {file.place(row, 'class_id')}",
                expected="0 to 14, each with its own name: " + ", ".join(KAGGLE_CLASSES),
            )
    number = np.array([known[text] for text in classes.dictionary.to_pylist()], dtype=np.int64)
    pairs, pair = np.unique(image * len(names) + rater, return_inverse=True)
    codes = np.full((len(pairs), len(KAGGLE_CLASSES)), NEGATIVE, dtype=np.int8)
    codes[pair, number[local]] = POSITIVE
    return _Votes(ids, pairs // len(names), len(names), n_rows, codes)


def _texts(array: Any, column: str, file: TableFile, start: int) -> Any:
    """Texts of a column; blank ones are refused."""
    import pyarrow as pa
    from pyarrow import compute

    check_textual(array.type, column, file)
    texts = array.cast(pa.string()).fill_null("")
    blank = compute.equal(texts, "").index(True).as_py()
    if blank >= 0:
        error = LabelError if column.startswith("class") else IdError
        raise error(f"blank {column} in {file.place(start + blank, column)}.")
    return texts


def _numbered(parts: list[Any]) -> tuple[Any, Rows]:
    """Different texts in order of first appearance, and the number of each row's text."""
    import pyarrow as pa

    coded = pa.concat_arrays(parts).dictionary_encode()
    return coded.dictionary, coded.indices.cast(pa.int64()).to_numpy(zero_copy_only=False)


def _check_once(file: TableFile, ids: Any, image: Rows, rater: Rows, split: str) -> None:
    """Refuse two rows for one image, or for one image and radiologist."""
    key = image * (int(rater.max()) + 1) + rater
    order = np.argsort(key, kind="stable")
    twice = np.flatnonzero(np.diff(key[order]) == 0)
    if not len(twice):
        return
    k = twice[np.argmin(order[twice + 1])]
    rows = int(order[k]), int(order[k + 1])
    what = "of one radiologist for one image" if split == "train" else "for one image"
    raise IdError(
        f"{file} has two rows {what}.",
        found=f"image {ids[int(image[rows[0]])].as_py()!r} in {file.place(rows[0])} and "
        f"{file.place(rows[1])} ({len(twice):,} repeats in all)",
        expected="one row",
    )


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


def _check_apart(root: Path, tables: dict[str, Path], parts: dict[str, tuple[Any, Codes]]) -> None:
    """Refuse an image in both splits."""
    from pyarrow import compute

    if len(parts) < 2:
        return
    train, test = (parts[name][0] for name in SPLITS)
    both = test.filter(compute.is_in(test, value_set=train))
    if len(both):
        names = " and ".join(f"'{path.relative_to(root).as_posix()}'" for path in tables.values())
        raise IdError(
            f"the tables {names} in '{root}' share {len(both):,} images.",
            found=f"{both[0].as_py()!r}",
            expected="every image in one split",
        )


def _contradiction(split: str, n: int) -> list[str]:
    """What is noted of rows that say both that there is no finding and what it is."""
    return [f"{split}: {n:,} votes for 'No finding' next to a finding count as they are."] * (n > 0)


def _paths(root: Path, split: str, ids: Any, suffix: str) -> NDArray[np.str_]:
    """The path of each image; empty if the folder is there and the image is not in it."""
    import pyarrow as pa
    from pyarrow import compute

    names = compute.binary_join_element_wise(ids, pa.scalar(suffix), "")
    paths = texts_of(compute.binary_join_element_wise(pa.scalar(split), names, "/"))
    if not (root / split).is_dir():
        return paths
    files = pa.array([path.name for path in (root / split).iterdir()], pa.string())
    there = compute.is_in(names, value_set=files).to_numpy(zero_copy_only=False)
    return np.where(there, paths, "")
