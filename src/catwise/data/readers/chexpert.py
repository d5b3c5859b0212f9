"""CheXpert: chest radiographs with labels found in reports, and radiologists' labels to test on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import places, refuse_two, refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, listed
from catwise.data.packed import first_there
from catwise.data.readers._kit import (
    Images,
    dataset,
    distinct,
    find_splits,
    in_column,
    matches,
    numbered,
    read_columns,
    relative,
)
from catwise.data.source import in_rows, text_scalar, texts_of
from catwise.data.table import open_labels
from catwise.errors import (
    CategoryError,
    ConfigError,
    IdError,
    LabelError,
    check_choice,
    nearest,
)
from catwise.labels.codes import NEGATIVE, UNKNOWN, Codes, Rows
from catwise.labels.encodings import ENCODINGS
from catwise.labels.names import category_names, refuse_repeats

OBSERVATIONS: Final = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
"""The 14 observations, in the order of the tables."""

COMPETITION: Final = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion",
)  # fmt: skip
"""The 5 observations that the CheXpert competition is scored on."""

LUNG, AIRSPACE = "Lung Opacity", "Airspace Opacity"
VIEW: Final = "Frontal/Lateral"
VIEWS: Final = ("all", "frontal", "lateral")
BLANKS: Final = ("unknown", "negative")
SPLITS: Final = ("train", "valid", "test")
BATCH: Final = "CheXpert-v1.0 batch "
PLACES: Final = (
    "",
    "CheXpert-v1.0/",
    "CheXpert-v1.0-small/",
    f"{BATCH}1 (validate & csv)/",
    "CheXpert/",
    "cheXpert-test-set-labels/",
)
WHAT: Final = "table of CheXpert"
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
RATERS: Final = ("majority", *(f"bc{n}" for n in range(1, 9)))
RATED: Final = {
    **{f"bc{n}": f"radiologists/groundtruth/bc{n}_gt.csv" for n in (1, 2, 3, 5, 7)},
    **{f"bc{n}": f"radiologists/benchmark_radiologists/bc{n}.csv" for n in (4, 6, 8)},
}
"""The tables of the radiologists of the test set: the first five made the majority."""
SECTIONS: Final = ("impression", "findings", "report")
PLUS: Final = "path_to_image"  # the key of image paths in the label files of CheXpert Plus
UNITS: Final = ("image", "study")
BLANK_NOTE: Final = "Blanks are read as negative: observations that a report does not mention."


def read_chexpert(
    root: str | os.PathLike[str],
    *,
    split: Literal["train", "valid", "test"] | None = None,
    views: Literal["all", "frontal", "lateral"] = "all",
    categories: Literal["all", "competition"] | Sequence[str] = "all",
    blanks: Literal["unknown", "negative"] = "unknown",
    tables: Mapping[str, str] | None = None,
    rater: Literal["majority", "bc1", "bc2", "bc3", "bc4", "bc5", "bc6", "bc7", "bc8"] = "majority",
    labeler: Literal["impression", "findings", "report"] | None = None,
    by: Literal["image", "study"] = "image",
) -> Dataset:
    """Read the labels of CheXpert v1.0 or v1.0-small, and of CheXpert Plus.

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
        rater: of the test set: the "majority" of five radiologists, or one radiologist: "bc1",
            "bc2", "bc3", "bc5" or "bc7", who made it, "bc4", "bc6" or "bc8", who did not.
        labeler: labels of CheXpert Plus for train and valid: those that CheXbert found in the
            "impression", the "findings" or the whole "report", out of
            chexbert_labels/impression_fixed.json and so on (JSON lines).
        by: "study": one row a study, where a table lists these; ids are such as
            "test/patient64741/study1", and there are no paths.

    Returns:
        One row an image, in the order of the tables. Ids are such as
        "train/patient00001/study1/view1_frontal.jpg" in every release, groups are patients, and
        paths lead to the images from `root`. Uncertain labels stay uncertain.

    Errors are those of all readers (`catwise.data.readers`): a path that is none of CheXpert
    or belongs to another split, and a patient in two splits, are an IdError; two releases with the
    same table a ConfigError.

    Source: Irvin et al., "CheXpert: a large chest radiograph dataset with uncertainty labels and
    expert comparison", AAAI 2019, sections 2 and 3; test set: Saporta et al., Nature Machine
    Intelligence 4, 2022 (CheXlocalize), and the repository rajpurkarlab/cheXpert-test-set-labels;
    CheXpert Plus: Chambon et al., 2024, arXiv:2405.19538.
    """
    check_choice("split", split, (None, *SPLITS))
    check_choice("views", views, VIEWS)
    check_choice("blanks", blanks, BLANKS)
    names = chosen_categories(categories)
    root, named = Path(root), _named_tables(tables, rater, labeler, by, views)
    found_tables = _find_tables(root, split, named).items()
    parts = [_Part.read(root, *found, names, by=by) for found in found_tables]
    images, splits, codes = _joined(parts)
    counts: dict[str, Any] = {
        "tables": relative({part.split: part.file.path for part in parts}, root),
        "images_in_tables": {part.split: len(part.codes) for part in parts},
    }
    counts.update(sum((part.counts for part in parts), Counter()))
    own = {name: f"{name}: labels of {table}." for name, table in named.items()}
    notes = [own.get(part.split, NOTES[part.split]) for part in parts]
    notes += [note for part in parts for note in part.notes]
    if views != "all":
        rows = np.flatnonzero(images.views == views)
        counts["images_of_other_views"] = len(codes) - len(rows)
        if not len(rows):
            raise LabelError(f"{listed([str(part.file) for part in parts])} has no {views} images.")
        images = images.take(rows)
        codes, splits = codes[rows], splits[rows]
    if blanks == "negative":
        counts["blanks_as_negative"] = int((codes == UNKNOWN).sum())
        codes[codes == UNKNOWN] = NEGATIVE
        notes.append(BLANK_NOTE)
    counts["patients"] = len(np.unique(images.patients))
    of_splits = (images.studies[splits == part.split] for part in parts)
    counts["studies"] = sum(len(distinct(studies)) for studies in of_splits)
    images_read = Images(images.ids, images.paths, splits, images.patients)
    rest: dict[str, Any] = {"counts": counts, "notes": notes, "checked": True}  # by `_parsed`
    return dataset("chexpert", root, (codes, names), images_read, **rest)


def _named_tables(
    tables: Mapping[str, str] | None, rater: str, labeler: str | None, by: str, views: str
) -> dict[str, str]:
    """The tables that other options name; refuses options that do not go together."""
    check_choice("rater", rater, RATERS)
    check_choice("labeler", labeler, (None, *SECTIONS))
    check_choice("by", by, UNITS)
    named = dict(tables or {})
    asked = {"test"} if rater != "majority" else set()
    asked |= {"train", "valid"} if labeler is not None else set()
    if twice := sorted(asked & named.keys()):
        raise ConfigError(
            "two options name the table of one split.",
            found=f"tables={{{twice[0]!r}: {named[twice[0]]!r}}}, rater={rater!r}, "
            f"labeler={labeler!r}",
        )
    if by == "study" and views != "all":
        raise ConfigError("a study has no view.", found=f"by={by!r}, views={views!r}")
    if rater != "majority":
        named["test"] = RATED[rater]
    if labeler is not None:
        named |= dict.fromkeys(("train", "valid"), f"chexbert_labels/{labeler}_fixed.json")
    return named


def _joined(parts: Sequence[_Part]) -> tuple[_Images, NDArray[np.str_], Codes]:
    """The images of all splits, their splits and codes; refuses a patient in two splits."""
    if len(parts) == 1:  # nothing to compare, and nothing is copied
        return parts[0].images, np.full(len(parts[0].codes), parts[0].split), parts[0].codes
    images = _Images(*map(np.concatenate, zip(*[part.images for part in parts], strict=True)))
    splits = np.repeat([part.split for part in parts], [len(part.codes) for part in parts])
    refuse_two(
        images.patients,
        splits,
        places([(len(part.codes), part.place) for part in parts]),
        "a patient of CheXpert is in two splits.",
        expected="every patient in one split",
    )
    return images, splits, np.concatenate([part.codes for part in parts])


def study_ids(paths: Iterable[str]) -> NDArray[np.str_]:
    """The study of each image (patient and number), by its id or path; IdError if it is neither.

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
    """(N,) each."""

    ids: NDArray[np.str_]
    paths: NDArray[np.str_]
    patients: NDArray[np.str_]
    studies: Rows  # numbers, within a split
    views: NDArray[np.str_]

    def take(self, rows: Rows) -> _Images:
        """Some of them."""
        values: list[Any] = [every[rows] for every in self]
        return _Images(*values)


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

    def place(self, i: int) -> str:
        """Where image i is in the table, for people."""
        return self.file.place(int(self.origin[i]))

    @classmethod
    def read(
        cls, root: Path, split: str, path: Path, names: Sequence[str], *, by: str = "image"
    ) -> _Part:
        """Read the table of a split."""
        file = open_labels(path, [PLUS])
        column = next((one for one in (PLUS, "Path", "Study") if one in file.names), "Path")
        roles = {column: "the paths of the images"}
        if VIEW in file.names:
            roles[VIEW] = "the view"
        texts, codes = read_observations(file, roles, names)
        mine = np.arange(len(codes))
        if column == PLUS:  # which holds the images of all splits
            mine = _of_split(file, texts[column], split)
            texts, codes = {name: array.take(mine) for name, array in texts.items()}, codes[mine]
        parsed = _parsed(file, column, texts[column], split, mine)
        counts: Counter[str] = Counter()
        folders = _Folders.find(root, path.parent, split)
        notes = [folders.note] if folders.note else []
        rows = np.arange(len(codes))
        if by == "study":
            images = _studies(file, column, parsed, split)
        elif column == "Study":
            images, rows = _images_of_studies(root, folders, parsed, file)
            counts["studies_without_images"] = len(codes) - len(np.unique(rows))
            notes.append(f"{split}: {path.name} lists studies; images are those in their folders.")
        else:
            images = _images_of_paths(folders, parsed)
            counts["images_without_files"] = int((images.paths == "").sum())
        if AIRSPACE in file.names:
            notes.append(f"{split}: the column {AIRSPACE} is read as {LUNG}.")
        if by == "study":
            pass
        elif VIEW in texts:
            views = _views(file, texts[VIEW])[rows]
            counts["views_unlike_file_names"] = int((views != images.views).sum())
            images = images._replace(views=views)
        else:
            notes.append(f"{split}: the names of the files tell the views.")
        return cls(split, file, images, codes[rows], mine[rows], counts, tuple(notes))


def _of_split(file: TableFile, array: Any, split: str) -> Rows:
    """The rows of a table of all splits that are of one."""
    folders = "|".join(FOLDERS[split])
    rows = np.flatnonzero(matches(array, rf"^(?:.*/)?(?:{folders})/patient"))
    if not len(rows):
        raise LabelError(f"{file} has no images of the split {split!r}.")
    return rows


def _studies(file: TableFile, column: str, parsed: Any, split: str) -> _Images:
    """The studies of a table that lists these, as if each was an image."""
    from pyarrow import compute

    if column != "Study":
        raise ConfigError(
            f"{file} lists images, not studies.",
            expected="a table with the column 'Study', such as groundtruth.csv",
            remedy="by='image'; metrics pool images by study themselves",
        )
    names = parsed.field("patient"), parsed.field("study")
    ids = texts_of(compute.binary_join_element_wise(split, *names, "/"))
    blank = np.zeros(len(ids), dtype="U1")
    return _Images(ids, blank, texts_of(parsed.field("patient")), np.arange(len(ids)), blank)


def _views(file: TableFile, array: Any) -> NDArray[np.str_]:
    views: NDArray[np.str_] = np.char.lower(texts_of(array))
    refuse_wrong(
        array,
        np.isin(views, VIEWS[1:]),
        in_column(file, VIEW),
        f"{file} has an unrecognised view.",
        expected="Frontal or Lateral",
        error=LabelError,
    )
    return views


def _find_tables(root: Path, split: str | None, named: Mapping[str, str]) -> dict[str, Path]:
    """The table of each split to read."""
    for name in named:
        check_choice("a split of tables", name, SPLITS)
    files = TABLES | {name: (file,) for name, file in named.items()}
    names = {name: _candidates(root, some) for name, some in files.items()}
    options = {
        "alone": "give the folder of one release as the root",
        "remedy": "give the folder that holds the table, or its parent",
    }
    for name in named:  # which must be there
        if split in (None, name):
            find_splits(root, names, name, WHAT, **options)
    return find_splits(root, names, split, WHAT, **options)


def _candidates(root: Path, files: Sequence[str]) -> Sequence[str]:
    """The first of some files that is in the root, or else in the releases in it."""
    for file in files:
        there = [name for place in PLACES if first_there(root, name := place + file)]
        if there:
            return there[:1] if there[0] == file else there
    return files


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
        """The folder of each patient, as Arrow texts, or of all."""
        import pyarrow as pa

        if not self.of_patient:
            return text_scalar(self.folder)
        return pa.array([self.of_patient.get(name) for name in patients.to_pylist()], pa.string())


def _train_batches(root: Path) -> dict[str, str]:
    """Patient → the folder of its batch, in a full release that is not merged."""
    batches = sorted(path for path in root.glob(BATCH + "*") if path.is_dir())
    folders = (folder for batch in batches for folder in batch.glob("patient*"))
    return {folder.name: folder.parent.name for folder in folders}


def _parsed(file: TableFile, column: str, array: Any, split: str, rows: Rows) -> Any:
    """The parts of paths, each checked, as an Arrow struct; they are at `rows` of the file."""
    from pyarrow import compute

    place = in_rows(file, rows, column)
    parsed = compute.extract_regex(array, STUDY + "/?$" if column == "Study" else IMAGE)
    good = parsed.is_valid()
    what = f"{file} has a path that is not one of CheXpert."
    refuse_wrong(array, good, place, what, expected=EXAMPLE)
    good = matches(parsed.field("split"), f"^(?:{'|'.join(FOLDERS[split])})$")
    what = f"{file} has an image of another split than {split!r}."
    refuse_wrong(array, good, place, what, expected=f"{split}/patient…")
    names = [name for name in ("patient", "study", "file") if name in parsed.type.names]
    keys = _with_slashes(*(parsed.field(name) for name in names))
    refuse_repeats(keys, place, f"{file} has a duplicate entry.")
    return parsed


def _images_of_paths(folders: _Folders, parsed: Any) -> _Images:
    patients = parsed.field("patient")
    studies = _with_slashes(patients, parsed.field("study"))
    rest = _with_slashes(studies, parsed.field("file"))
    return _Images(
        texts_of(_with_slashes(text_scalar(folders.split), rest)),
        texts_of(_with_slashes(folders(patients), rest)),
        texts_of(patients),
        numbered(studies)[1],
        texts_of(parsed.field("view")),
    )


def _with_slashes(*parts: Any) -> Any:
    """Arrow texts, one after the other."""
    from pyarrow import compute

    return compute.binary_join_element_wise(*parts, text_scalar("/"))


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


def read_observations(
    file: TableFile, roles: Mapping[str, str], names: Sequence[str]
) -> tuple[dict[str, Any], Codes]:
    """Columns of names as Arrow arrays, and (N, C) codes of 1, 0, -1 (uncertain) and blank."""
    lung = AIRSPACE if AIRSPACE in file.names else LUNG
    columns = [lung if name == LUNG else name for name in names]
    missing = [column for column in columns if column not in file.names]
    if missing:
        there = [name for name in OBSERVATIONS if (lung if name == LUNG else name) in file.names]
        spelled = nearest(missing[0], file.names).strip(" ()")
        own = f"categories={there!r} for those that are there" if there else ""
        raise LabelError(
            f"{file.head()} has no column {missing[0]!r}, which should hold labels.",
            found=listed(file.names),
            expected=f"columns of all {len(columns)} observations that are asked for",
            remedy=" or ".join(filter(None, (spelled, own))) or None,
        )
    return read_columns(file, roles, labels=columns, encoding=ENCODINGS["minus_one_uncertain"])
