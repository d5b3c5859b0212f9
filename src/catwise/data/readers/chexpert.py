"""CheXpert: chest radiographs with labels found in reports, and radiologists' labels to test on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, listed, open_table
from catwise.data.source import Edges, Source, encode_column, refuse_values, texts_of
from catwise.errors import (
    CategoryError,
    CatwiseError,
    ConfigError,
    IdError,
    LabelError,
    check_choice,
    nearest,
)
from catwise.labels.codes import NEGATIVE, UNKNOWN, Codes, Rows
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import ENCODINGS, UNFIT
from catwise.labels.names import category_names

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["COMPETITION", "OBSERVATIONS", "read_chexpert", "study_ids"]

OBSERVATIONS: Final = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 observations, in the order of the tables."""

COMPETITION: Final = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The 5 observations that the CheXpert competition is scored on."""

LUNG, AIRSPACE = "Lung Opacity", "Airspace Opacity"
VIEW: Final = "Frontal/Lateral"
VIEWS: Final = ("all", "frontal", "lateral")
BLANKS: Final = ("unknown", "negative")
SPLITS: Final = ("train", "valid", "test")
BATCH: Final = "CheXpert-v1.0 batch "
PLACES: Final = (
    "",
    "CheXpert-v1.0",
    "CheXpert-v1.0-small",
    f"{BATCH}1 (validate & csv)",
    "CheXpert",
    "cheXpert-test-set-labels",
)
TABLES: Final = {
    "train": ("train.csv",),
    "valid": ("valid.csv", "val_labels.csv"),
    "test": ("test.csv", "test_labels.csv", "groundtruth.csv"),
}
FOLDERS: Final = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
STUDY: Final = (
    r"^(?:.*/)?(?P<split>train|valid|val|test)/(?P<patient>patient\d+)/(?P<study>study\d+)"
)
EXAMPLE: Final = "…/train/patient00001/study1/view1_frontal.jpg"
IMAGE: Final = STUDY + r"/(?P<file>view\d+_(?P<view>frontal|lateral)\.\w+)$"
NOTES: Final = {
    "train": "train: labels found in the reports by a labeler; -1 is uncertain.",
    "valid": "valid: labelled from the images, by the majority of three radiologists.",
    "test": "test: labelled from the images, by the majority of five radiologists.",
}


def read_chexpert(
    root: str | os.PathLike[str],
    *,
    split: Literal["train", "valid", "test"] | None = None,
    views: Literal["all", "frontal", "lateral"] = "all",
    categories: Literal["all", "competition"] | Sequence[str] = "all",
    blanks: Literal["unknown", "negative"] = "unknown",
    tables: Mapping[str, str] | None = None,
) -> Dataset:
    """Read the labels of CheXpert v1.0 or v1.0-small.

    Tables are looked for in `root` and then in the folders of the releases in it: train.csv;
    valid.csv or val_labels.csv; test.csv, test_labels.csv or groundtruth.csv, the first that is
    there. Images are looked for in the same folders: train, valid (or val) and test, or the train
    batches of the full release, not merged. groundtruth.csv lists studies: the images of each are
    those in its folder.

    Args:
        root: the folder that holds train.csv, or its parent.
        split: "train", "valid" or "test"; None: every split whose table is there.
        views: "all", "frontal" or "lateral" images. The column Frontal/Lateral tells; in a table
            without it, the name of the file.
        categories: "all" 14 observations, the 5 of the "competition", or a list of names.
        blanks: what a blank of train.csv means, an observation that the report does not mention:
            "unknown" or "negative". It holds for the tables of radiologists too, which have none.
        tables: the file to read for a split instead of those above, such as
            {"train": "train_visualCheXbert.csv"}.

    Returns:
        One row an image, in the order of the tables. Ids are such as
        "train/patient00001/study1/view1_frontal.jpg" in every release, groups are patients, and
        paths lead to the images from `root`. Uncertain labels stay uncertain.

    Raises:
        LabelError: If a table is missing, damaged, lacks a column or has a value of no meaning.
        IdError: If a path is none of CheXpert, repeats or belongs to another split, or a patient
            is in two splits.
        CategoryError: If there is no such observation.
        ConfigError: If an option is not possible, or two releases have the same table.

    Source: Irvin et al., "CheXpert: a large chest radiograph dataset with uncertainty labels and
    expert comparison", AAAI 2019, sections 2 and 3; test set: Saporta et al., Nature Machine
    Intelligence 4, 2022 (CheXlocalize), and the repository rajpurkarlab/cheXpert-test-set-labels.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     row = "CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg,Frontal,1.0,-1.0"
    ...     table = Path(folder, "valid.csv")
    ...     _ = table.write_text("Path,Frontal/Lateral,Edema,Fracture" + chr(10) + row)
    ...     dataset = read_chexpert(folder, categories=["Fracture", "Edema"])
    >>> dataset.labels.ids.tolist(), dataset.labels.codes.tolist()
    (['valid/patient64541/study1/view1_frontal.jpg'], [[-2, 1]])
    """
    check_choice("views", views, VIEWS)
    check_choice("blanks", blanks, BLANKS)
    names = chosen_categories(categories)
    root, named = Path(root), dict(tables or {})
    parts = [_Part.read(root, *found, names) for found in _find_tables(root, split, named)]
    _check_patients(parts)
    images = _Images(*map(np.concatenate, zip(*[part.images for part in parts], strict=True)))
    codes = np.concatenate([part.codes for part in parts])
    splits = np.repeat([part.split for part in parts], [len(part.codes) for part in parts])
    counts: dict[str, Any] = {
        "tables": {part.split: part.file.path.relative_to(root).as_posix() for part in parts},
        "images_in_tables": {part.split: len(part.codes) for part in parts},
    }
    counts.update(sum((part.counts for part in parts), Counter()))
    notes = [
        NOTES[part.split]
        if part.split not in named
        else f"{part.split}: labels of {named[part.split]}."
        for part in parts
    ]
    notes += [note for part in parts for note in part.notes]
    if views != "all":
        rows = np.flatnonzero(images.views == views)
        counts["images_of_other_views"] = len(codes) - len(rows)
        if not len(rows):
            raise LabelError(f"{listed([str(part.file) for part in parts])} has no {views} images.")
        images = _Images(*(texts[rows] for texts in images))
        codes, splits = codes[rows], splits[rows]
    if blanks == "negative":
        counts["blanks_as_negative"] = int((codes == UNKNOWN).sum())
        codes[codes == UNKNOWN] = NEGATIVE
        notes.append("Blanks are read as negative: observations that a report does not mention.")
    counts["patients"] = len(np.unique(images.patients))
    counts["studies"] = len(np.unique(study_ids(images.ids)))
    rest = {"ids": images.ids, "groups": images.patients, "storage": "auto"}
    labels = PartialLabels.from_content(codes, len(codes), names, **rest)
    return Dataset("chexpert", root, images.paths, labels, splits, counts, tuple(notes))


def study_ids(paths: Iterable[str]) -> NDArray[np.str_]:
    """The study of each image: its patient and the number of the study.

    Args:
        paths: ids or paths of images of CheXpert.

    Raises:
        IdError: If one is no such path.

    >>> study_ids(["train/patient00001/study1/view1_frontal.jpg"]).tolist()
    ['patient00001/study1']
    """
    import pyarrow as pa
    from pyarrow import compute

    array = pa.array([str(path) for path in paths], pa.string())
    parsed = compute.extract_regex(array, IMAGE)
    if parsed.null_count:
        wrong = array[parsed.is_null().index(True).as_py()].as_py()
        raise IdError("a path is none of CheXpert.", found=repr(wrong), expected=EXAMPLE)
    names = parsed.field("patient"), parsed.field("study")
    return texts_of(compute.binary_join_element_wise(*names, "/"))


class _Images(NamedTuple):
    """(N,) texts each."""

    ids: NDArray[np.str_]
    paths: NDArray[np.str_]
    patients: NDArray[np.str_]
    views: NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class _Part:
    """The images of one split, and what the reader met."""

    split: str
    file: TableFile
    images: _Images
    codes: Codes
    origin: Rows
    counts: Counter[str]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, root: Path, split: str, path: Path, names: Sequence[str]) -> _Part:
        """Read the table of a split."""
        file = open_table(path)
        column = "Study" if "Study" in file.names and "Path" not in file.names else "Path"
        roles = {column: "the paths of the images"}
        if VIEW in file.names:
            roles[VIEW] = "the view"
        texts, codes = read_labels(file, roles, names)
        parsed = _parsed(file, column, texts[column], split)
        counts: Counter[str] = Counter()
        folders = _Folders.find(root, path.parent, split)
        notes = [folders.note] if folders.note else []
        rows = np.arange(len(codes))
        if column == "Study":
            images, rows = _images_of_studies(root, folders, parsed, file)
            counts["studies_without_images"] = len(codes) - len(np.unique(rows))
            notes.append(f"{split}: {path.name} lists studies; images are those in their folders.")
        else:
            images = _images_of_paths(folders, parsed)
            counts["images_without_files"] = int((images.paths == "").sum())
        if AIRSPACE in file.names:
            notes.append(f"{split}: the column {AIRSPACE} is read as {LUNG}.")
        if VIEW in texts:
            array = texts[VIEW]
            views = np.char.lower(texts_of(array))
            good = np.isin(views, VIEWS[1:])
            view = {"what": "has a view of no meaning", "expected": "Frontal or Lateral"}
            check_column(file, VIEW, array, good, **view, error=LabelError)
            views = views[rows]
            counts["views_unlike_file_names"] = int((views != images.views).sum())
            images = images._replace(views=views)
        else:
            notes.append(f"{split}: the names of the files tell the views.")
        return cls(split, file, images, codes[rows], rows, counts, tuple(notes))


def _find_tables(root: Path, split: str | None, named: Mapping[str, str]) -> list[tuple[str, Path]]:
    """(split, its table) of the splits to read."""
    check_choice("split", split, (None, *SPLITS))
    for name in named:
        check_choice("a split of tables", name, SPLITS)
    found, missing = [], []
    for name in SPLITS if split is None else (split,):
        candidates = (named[name],) if name in named else TABLES[name]
        path = _find_table(root, candidates)
        if path is not None:
            found.append((name, path))
        elif split is not None or name in named:
            missing.append((name, candidates))
    if missing or not found:
        lacking = missing or list(TABLES.items())
        raise LabelError(
            f"'{root}' has no table of CheXpert for {' or '.join(name for name, _ in lacking)}.",
            expected=", ".join(name for _, candidates in lacking for name in candidates),
            remedy="give the folder that holds the table, or its parent",
        )
    return found


def _find_table(root: Path, candidates: Sequence[str]) -> Path | None:
    for name in candidates:
        paths = [path for place in PLACES if (path := root / place / name).is_file()]
        if len(paths) > 1 and paths[0].parent != root:
            raise ConfigError(
                f"'{root}' holds several releases of CheXpert.",
                found=listed([path.relative_to(root).as_posix() for path in paths]),
                remedy="give the folder of one release as the root",
            )
        if paths:
            return paths[0]
    return None


class _Folders(NamedTuple):
    """Where the images of a split are: one folder, or a folder for each patient."""

    split: str
    folder: str
    of_patient: Mapping[str, str]
    note: str = ""

    @classmethod
    def find(cls, root: Path, home: Path, split: str) -> _Folders:
        """Look next to the table first, then in the releases, then in the train batches."""
        bases = dict.fromkeys([home, *(root / place for place in PLACES)])
        folders = [base / name for base in bases for name in FOLDERS[split]]
        there = next((folder for folder in folders if folder.is_dir()), None)
        folder = (there or folders[0]).relative_to(root).as_posix()
        batches = _train_batches(root) if split == "train" and there is None else {}
        if batches:
            note = "train: the batches are not merged; paths lead into them."
        else:
            note = f"{split}: there is no folder {folder}; paths tell where it should be."
        return cls(split, folder, batches, "" if there else note)

    def __call__(self, patients: Any) -> Any:
        """The folder that holds each patient's, as an Arrow array; "" where there is none."""
        import pyarrow as pa

        names = patients.to_pylist()
        if not self.of_patient:
            return pa.array([self.folder] * len(names))
        return pa.array([self.of_patient.get(name) for name in names], pa.string())


def _train_batches(root: Path) -> dict[str, str]:
    """Patient → the folder of its batch, in a full release that is not merged."""
    batches = sorted(path for path in root.glob(BATCH + "*") if path.is_dir())
    folders = (folder for batch in batches for folder in batch.glob("patient*"))
    return {folder.name: folder.parent.name for folder in folders}


def _parsed(file: TableFile, column: str, array: Any, split: str) -> Any:
    """The parts of paths, each checked, as an Arrow struct."""
    from pyarrow import compute

    parsed = compute.extract_regex(array, IMAGE if column == "Path" else STUDY + "/?$")
    good = parsed.is_valid().to_numpy(zero_copy_only=False)
    what = "has a path that is none of CheXpert"
    check_column(file, column, array, good, what=what, expected=EXAMPLE)
    good = np.isin(texts_of(parsed.field("split")), FOLDERS[split])
    what = f"has an image of another split than {split!r}"
    check_column(file, column, array, good, what=what, expected=f"{split}/patient…")
    names = [name for name in ("patient", "study", "file") if name in parsed.type.names]
    keys = compute.binary_join_element_wise(*(parsed.field(name) for name in names), "/")
    check_repeats(file, column, keys)
    return parsed


def _images_of_paths(folders: _Folders, parsed: Any) -> _Images:
    from pyarrow import compute

    patients = parsed.field("patient")
    rest = (patients, parsed.field("study"), parsed.field("file"), "/")
    paths = compute.binary_join_element_wise(folders(patients), *rest)
    return _Images(
        texts_of(compute.binary_join_element_wise(folders.split, *rest)),
        texts_of(paths),
        texts_of(patients),
        texts_of(parsed.field("view")),
    )


def _images_of_studies(
    root: Path, folders: _Folders, parsed: Any, file: TableFile
) -> tuple[_Images, Rows]:
    """The images in the folders of studies, and the row of the study of each."""
    import pyarrow as pa
    from pyarrow import compute

    found, rows = [], []
    studies = compute.binary_join_element_wise(parsed.field("patient"), parsed.field("study"), "/")
    for row, study in enumerate(studies.to_pylist()):
        folder = root / folders.folder / study
        files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        found += [f"{folders.split}/{study}/{name}" for name in files]
        rows += [row] * len(files)
    parts = compute.extract_regex(pa.array(found, pa.string()), IMAGE)
    good = np.flatnonzero(parts.is_valid().to_numpy(zero_copy_only=False))
    if not len(good):
        raise LabelError(
            f"{file} lists studies, and there are no images of them.",
            expected=f"images such as '{root / folders.folder}/{EXAMPLE[8:]}'",
            remedy="put the images there, or read test_labels.csv, which lists images",
        )
    return _images_of_paths(folders, parts.take(pa.array(good))), np.array(rows)[good]


def _check_patients(parts: Sequence[_Part]) -> None:
    """Refuse a patient in two splits."""
    seen: dict[str, tuple[_Part, int]] = {}
    for part in parts:
        names, first = np.unique(part.images.patients, return_index=True)
        for name, i in zip(names.tolist(), first.tolist(), strict=True):
            other, row = seen.setdefault(name, (part, i))
            if other is not part:
                places = [p.file.place(int(p.origin[k])) for p, k in ((other, row), (part, i))]
                raise IdError(
                    "a patient of CheXpert is in two splits.",
                    found=f"{name!r} in {places[0]} and {places[1]}",
                    expected="every patient in one split",
                )


def chosen_categories(categories: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the observations asked for; refuses others."""
    if isinstance(categories, str):
        check_choice("categories", categories, ("all", "competition"))
        return OBSERVATIONS if categories == "all" else COMPETITION
    wrong = [name for name in categories if name not in OBSERVATIONS]
    if wrong or not categories:
        raise CategoryError(
            f"there is no observation {wrong[0]!r}{nearest(str(wrong[0]), OBSERVATIONS)}."
            if wrong
            else "no categories are asked for.",
            expected=", ".join(OBSERVATIONS),
        )
    return category_names(categories, len(categories))


def read_labels(
    file: TableFile, roles: Mapping[str, str], names: Sequence[str]
) -> tuple[dict[str, Any], Codes]:
    """Read a table whose values are 1, 0, -1 (uncertain) and blank.

    Args:
        file: the table.
        roles: columns of texts to read along, and what each holds.
        names: the observations.

    Returns:
        The columns of texts as Arrow arrays, and (N, C) codes.

    Raises:
        LabelError: If a column is not there, a value has no meaning, or there are no rows.
    """
    import pyarrow as pa

    for column, role in roles.items():
        file.require(column, role)
    lung = AIRSPACE if AIRSPACE in file.names else LUNG
    columns = [lung if name == LUNG else name for name in names]
    for column in columns:
        file.require(column, "labels")
    encoding = ENCODINGS["minus_one_uncertain"]
    source = Source(file, None, None, None, None, Edges("", "", "", ""))
    texts: dict[str, list[Any]] = {column: [] for column in roles}
    blocks = []
    for batch, _ in source.batches([*roles, *columns], coded=columns):
        codes = np.stack([encode_column(batch.column(name), encoding) for name in columns], axis=1)
        if bool((codes == UNFIT).any()):
            refuse_values(source, columns, encoding, named=True)
        blocks.append(codes)
        for column, parts in texts.items():
            parts.append(batch.column(column))
    return {name: pa.concat_arrays(parts) for name, parts in texts.items()}, np.concatenate(blocks)


def check_column(
    file: TableFile,
    column: str,
    array: Any,
    good: NDArray[np.bool_],
    *,
    what: str,
    expected: str,
    error: type[CatwiseError] = IdError,
) -> None:
    """Refuse a column with values that are not good, naming the first."""
    wrong = np.flatnonzero(~good)
    if len(wrong):
        row = int(wrong[0])
        place = f"{file.place(row, column)} (first of {len(wrong):,})"
        raise error(
            f"{file} {what}.", found=f"{array[row].as_py()!r} in {place}", expected=expected
        )


def check_repeats(file: TableFile, column: str, array: Any) -> None:
    """Refuse texts or numbers that repeat in a column, naming both lines."""
    values = array.to_pylist()
    if len(set(values)) == len(values):
        return
    first: dict[Any, int] = {}
    row = next(i for i, value in enumerate(values) if first.setdefault(value, i) != i)
    raise IdError(
        f"{file} lists an entry twice.",
        found=f"'{values[row]}' in {file.place(first[values[row]])} and {file.place(row, column)}",
        expected="every one once",
    )
