"""NIH ChestX-ray14: frontal chest radiographs with 14 diseases found in the reports' text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, listed, no_rows, open_table, read_whole
from catwise.data.source import check_textual, texts_of
from catwise.errors import ConfigError, IdError, LabelError, check_choice, nearest
from catwise.labels.codes import NEGATIVE, POSITIVE, Codes, Rows
from catwise.labels.core import PartialLabels

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["DISEASES", "NO_FINDING", "read_chestxray14"]

DISEASES: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""The 14 diseases, in the order of the paper; spelled as in the table."""

NO_FINDING: Final = "No Finding"
"""What the table says of an image with none of the 14."""

TABLES: Final = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS: Final = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
UNLISTED: Final = "unlisted"
POLICIES: Final = ("leave_out", "keep", "refuse")

IMAGE_COLUMN: Final = "Image Index"
FINDINGS_COLUMN: Final = "Finding Labels"
PATIENT_COLUMN: Final = "Patient ID"
IMAGE: Final = r"^(?P<patient>\d{8})_\d{3}\.png$"
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

    Raises:
        LabelError: If a file is missing, damaged or lacks a column, findings are unknown, repeat
            or contradict each other, the split has no images, or images are refused.
        IdError: If the name of an image is none, repeats, or is in both lists, or a patient is
            blank or in both splits.
        ConfigError: If an option is not possible, or both editions of the table are there.

    Source: Wang et al., "ChestX-ray8: hospital-scale chest X-ray database and benchmarks on
    weakly-supervised classification and localization of common thorax diseases", CVPR 2017, and
    the release's own README (14 diseases, official lists), nihcc.app.box.com/v/ChestXray-NIHCC.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = ["Image Index,Finding Labels,Patient ID", "00000001_000.png,Mass|Hernia,1"]
    ...     texts = [chr(10).join([*rows, "00000002_000.png,No Finding,2"])]
    ...     texts += ["00000001_000.png", "00000002_000.png"]
    ...     names = ["Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"]
    ...     _ = [Path(folder, name).write_text(text) for name, text in zip(names, texts)]
    ...     dataset = read_chestxray14(folder)
    >>> dataset
    Dataset('chestxray14', n_images=2, n_categories=14, splits={'train_val': 1, 'test': 1})
    >>> dataset.labels.codes[0].tolist()
    [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    """
    check_choice("split", split, (None, *LISTS))
    check_choice("unlisted", unlisted, POLICIES)
    root = Path(root)
    file = open_table(_find_table(root, table))
    entries = _read_table(file)
    lists = {name: _read_list(root / text) for name, text in LISTS.items()}
    _check_lists(root, lists)
    splits = _splits(entries, lists)
    _check_patients(file, entries, splits)
    n_unlisted = _check_unlisted(file, splits, unlisted)
    kept = [split] if split else [*LISTS, *([UNLISTED] if unlisted == "keep" else [])]
    rows = np.flatnonzero(np.isin(splits, kept))
    if not len(rows):
        raise LabelError(
            f"{file} has no image of the split {split or ' or '.join(LISTS)!r}.",
            found=f"{len(splits):,} images, none of them in the list",
            remedy="take the table and the lists of one release",
        )
    categories = (*DISEASES, *([NO_FINDING] if no_finding else []))
    codes = _codes(file, entries.findings, categories)[rows]
    groups, ids = texts_of(entries.patients)[rows], texts_of(entries.names)[rows]
    paths, path_counts, path_notes = _paths(root, entries.names.take(rows))
    counts: dict[str, Any] = {
        "table": file.path.name,
        "images_in_table": len(splits),
        "images_of_splits": {name: int(np.count_nonzero(splits == name)) for name in LISTS},
        "images_in_neither_list": n_unlisted,
        "listed_images_without_labels": _n_without_labels(entries, lists),
        "patients_unlike_file_names": entries.n_unlike,
        "patients": len(np.unique(groups)),
        "images_without_findings": int(np.count_nonzero(~(codes[:, :14] == POSITIVE).any(axis=1))),
        **path_counts,
    }
    labels = PartialLabels.from_content(
        codes, len(codes), categories, ids=ids, groups=groups, storage="auto"
    )
    notes = (*_notes(counts, unlisted, split, no_finding=no_finding), *path_notes)
    return Dataset("chestxray14", root, paths, labels, splits[rows], counts, notes)


class _Entries(NamedTuple):
    """The rows of the table, as Arrow arrays of texts."""

    names: Any
    findings: Any
    patients: Any
    n_unlike: int  # patients that are not the one of the file's name


def _find_table(root: Path, table: str | None) -> Path:
    """The table asked for, or the one edition that is there.

    Raises:
        LabelError: If there is none.
        ConfigError: If there are both.
    """
    if table is not None:
        return root / table
    found = [root / name for name in TABLES if (root / name).is_file()]
    if len(found) > 1:
        raise ConfigError(
            f"'{root}' has two editions of the table.",
            found=listed([path.name for path in found]),
            remedy=f"table={found[0].name!r} reads the newer one",
        )
    if not found:
        raise LabelError(
            f"'{root}' has no table of ChestX-ray14.",
            expected=" or ".join(TABLES),
            remedy="give the folder that holds the table, or its name as table=…",
        )
    return found[0]


def _read_table(file: TableFile) -> _Entries:
    """Read the three columns, and check names and patients.

    The header's last names hold commas ("OriginalImage[Width,Height]"), so that each is two
    columns, and some copies end every line with one more comma. None of these columns is read.
    """
    import pyarrow as pa
    from pyarrow import compute

    roles = {
        IMAGE_COLUMN: "the names of the images",
        FINDINGS_COLUMN: "the findings",
        PATIENT_COLUMN: "the patients",
    }
    parts: dict[str, list[Any]] = {name: [] for name in roles}
    for name, role in roles.items():
        file.require(name, role)
    for batch in file.batches(list(roles), coded=[FINDINGS_COLUMN]):
        for name, arrays in parts.items():
            check_textual(batch.column(name).type, name, file)
            arrays.append(batch.column(name).cast(pa.string()).fill_null(""))
    columns = {name: pa.concat_arrays(arrays) for name, arrays in parts.items() if arrays}
    if not columns or not len(columns[IMAGE_COLUMN]):
        raise no_rows(str(file))
    names, patients = columns[IMAGE_COLUMN], columns[PATIENT_COLUMN]
    parsed = compute.extract_regex(names, IMAGE)
    if parsed.null_count:
        row = parsed.is_null().index(True).as_py()
        raise IdError(
            f"{file} has no name of an image.",
            found=f"{names[row].as_py()!r} in {file.place(row, IMAGE_COLUMN)} "
            f"(first of {parsed.null_count:,})",
            expected=IMAGE_TEXT,
        )
    _check_repeats(names.to_pylist(), lambda row: file.place(row, IMAGE_COLUMN), str(file))
    blank = compute.equal(patients, "")
    if blank.true_count:
        raise IdError(f"blank patient in {file.place(blank.index(True).as_py(), PATIENT_COLUMN)}.")
    padded = compute.utf8_lpad(patients, 8, "0")
    alike = compute.equal(padded, parsed.field("patient")).true_count
    return _Entries(names, columns[FINDINGS_COLUMN], patients, len(names) - alike)


def _check_repeats(texts: Sequence[str], place: Any, where: str) -> None:
    """Refuse texts that repeat, naming both places."""
    n_twice = len(texts) - len(set(texts))
    if not n_twice:
        return
    seen: dict[str, int] = {}
    for row, text in enumerate(texts):
        first = seen.setdefault(text, row)
        if first != row:
            raise IdError(
                f"{where} lists an image twice.",
                found=f"{text!r} in {place(first)} and {place(row)} ({n_twice:,} repeats in all)",
                expected="every image once",
            )


def _codes(file: TableFile, findings: Any, categories: Sequence[str]) -> Codes:
    """(N, C) codes of texts such as "Mass|Hernia"; each different text is parsed once."""
    coded = findings.dictionary_encode()
    place = {name: j for j, name in enumerate((*DISEASES, NO_FINDING))}
    codes = np.full((len(coded.dictionary), len(place)), NEGATIVE, dtype=np.int8)
    for i, text in enumerate(coded.dictionary.to_pylist()):
        names = text.split("|")
        wrong = _fault(names, place)
        if wrong:
            row = coded.indices.index(i).as_py()
            raise LabelError(
                f"{file} has findings of no meaning: {wrong}.",
                found=f"{text!r} in {file.place(row, FINDINGS_COLUMN)}",
                expected=f"{NO_FINDING!r}, or some of {', '.join(DISEASES)} with '|' between",
            )
        codes[i, [place[name] for name in names]] = POSITIVE
    chosen = np.ascontiguousarray(codes[:, [place[name] for name in categories]])
    result: Codes = chosen[coded.indices.to_numpy(zero_copy_only=False)]
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


class _List(NamedTuple):
    """The names in a list file, and the line of each."""

    path: Path
    names: list[str]
    lines: list[int]

    def place(self, index: int) -> str:
        """Where a name is, for people."""
        return f"'{self.path}', line {self.lines[index]:,}"


def _read_list(path: Path) -> _List:
    """Read a list of images, one name a line; blank lines do not count.

    Raises:
        LabelError: If the file is missing, empty or no text.
        IdError: If a line is no name of an image, or one repeats.
    """
    import pyarrow as pa
    from pyarrow import compute

    try:
        text = read_whole(path).decode("utf-8-sig")
    except OSError as error:
        raise LabelError(
            f"cannot read the list '{path}'.",
            found=error.strerror or str(error),
            expected="the official list, one name of an image a line",
            remedy="put the lists of the release next to its table",
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise LabelError(
            f"'{path}', line {line:,}: is not UTF-8 text.",
            found=f"byte {error.object[error.start]:#04x}",
            remedy="download the file again",
        ) from error
    pairs = [(line.strip(), number) for number, line in enumerate(text.splitlines(), 1)]
    found = _List(path, [n for n, _ in pairs if n], [line for n, line in pairs if n])
    if not found.names:
        raise LabelError(f"'{path}' is empty.", remedy="download the file again")
    good = compute.match_substring_regex(pa.array(found.names), IMAGE)
    if good.false_count:
        index = good.index(False).as_py()
        raise IdError(
            f"'{path}' is no list of images.",
            found=f"{found.names[index]!r} in {found.place(index)}",
            expected=IMAGE_TEXT,
            remedy="download the file again: it may be truncated",
        )
    _check_repeats(found.names, found.place, f"'{path}'")
    return found


def _check_lists(root: Path, lists: dict[str, _List]) -> None:
    """Refuse an image in both lists."""
    one, other = lists.values()
    both = set(one.names) & set(other.names)
    if both:
        index = next(i for i, name in enumerate(one.names) if name in both)
        name = one.names[index]
        raise IdError(
            f"the lists in '{root}' share {len(both):,} images.",
            found=f"{name!r} in {one.place(index)} and {other.place(other.names.index(name))}",
            expected="every image in one list",
        )


def _splits(entries: _Entries, lists: dict[str, _List]) -> NDArray[np.str_]:
    """The split of each row."""
    import pyarrow as pa
    from pyarrow import compute

    splits = np.full(len(entries.names), UNLISTED, dtype=f"<U{max(map(len, (*LISTS, UNLISTED)))}")
    for name, found in lists.items():
        here = compute.is_in(entries.names, value_set=pa.array(found.names, pa.string()))
        splits[here.to_numpy(zero_copy_only=False)] = name
    return splits


def _n_without_labels(entries: _Entries, lists: dict[str, _List]) -> int:
    """How many names in the lists are not in the table."""
    known = set(entries.names.to_pylist())
    return sum(len(set(found.names) - known) for found in lists.values())


def _check_patients(file: TableFile, entries: _Entries, splits: NDArray[np.str_]) -> None:
    """Refuse a patient in both splits."""
    numbers = entries.patients.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    one, other = (np.flatnonzero(splits == name) for name in LISTS)
    both = np.intersect1d(numbers[one], numbers[other])
    if len(both):
        rows = [int(part[np.isin(numbers[part], both[:1])][0]) for part in (one, other)]
        places = [f"{name} ({file.place(r)})" for name, r in zip(LISTS, rows, strict=True)]
        raise IdError(
            f"the lists of ChestX-ray14 share {len(both):,} patients.",
            found=f"{entries.patients[rows[0]].as_py()!r} in {' and '.join(places)}",
            expected="every patient in one list, as in the release",
            remedy="download the lists again",
        )


def _check_unlisted(file: TableFile, splits: NDArray[np.str_], policy: str) -> int:
    """How many images are in neither list; refuses them if asked to."""
    rows: Rows = np.flatnonzero(splits == UNLISTED)
    if len(rows) and policy == "refuse":
        raise LabelError(
            f"{file} has images that are in neither list.",
            found=f"{len(rows):,}, the first in {file.place(int(rows[0]), IMAGE_COLUMN)}",
            remedy="unlisted='leave_out' or 'keep'",
        )
    return len(rows)


def _paths(root: Path, names: Any) -> tuple[NDArray[np.str_], dict[str, int], list[str]]:
    """The path of each image, with counts and notes."""
    import pyarrow as pa
    from pyarrow import compute

    parts = sorted(path for path in root.glob("images_[0-9][0-9][0-9]") if path.is_dir())
    parts = [part / "images" if (part / "images").is_dir() else part for part in parts]
    folders = [path for path in (root / "images", *parts) if path.is_dir()]
    if not folders:
        note = "There is no folder of images; paths tell where they should be."
        return texts_of(compute.binary_join_element_wise("images", names, "/")), {}, [note]
    files, paths = [], []
    for folder in folders:
        there = sorted(path.name for path in folder.iterdir() if path.suffix == ".png")
        files += there
        paths += [f"{folder.relative_to(root).as_posix()}/{name}" for name in there]
    first = np.unique(np.array(files, dtype=np.str_), return_index=True)[1]
    known = pa.array([files[i] for i in first.tolist()], pa.string())
    at = compute.index_in(names, value_set=known)
    found = pa.array([paths[i] for i in first.tolist()], pa.string()).take(at)
    counts = {
        "images_without_files": found.null_count,
        "files_in_two_folders": len(files) - len(first),
    }
    return texts_of(found), counts, []


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
