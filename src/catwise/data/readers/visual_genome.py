"""Visual Genome as a multi-label data set: VG-500 and VG-200, with the lists of their authors."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from catwise._json import parse
from catwise.data.dataset import Dataset
from catwise.data.files import read_whole, truncated
from catwise.errors import CategoryError, IdError, LabelError, check_choice
from catwise.labels.codes import NEGATIVE, POSITIVE, UNKNOWN, Codes, Rows
from catwise.labels.columns import Columns, row_dtype
from catwise.labels.core import PartialLabels
from catwise.labels.names import category_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["read_visual_genome"]

SPLITS: Final = ("train", "test")
ABSENT: Final = ("negative", "unknown")
SIZES: Final = (200, 500)
FOLDERS: Final = ("VG_100K", "VG_100K_2")

LIST: Final = "{split}_list_500.txt"
LABELS: Final = "vg_category_{n}_labels_index.json"

CHECK: Final = "download the file again, or correct it"


def read_visual_genome(
    root: str | os.PathLike[str],
    *,
    split: Literal["train", "test"] | None = None,
    n_categories: Literal[200, 500] = 200,
    absent: Literal["negative", "unknown"] = "negative",
    names: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Read the labels of VG-500 or VG-200.

    `root` holds train_list_500.txt and test_list_500.txt, which both data sets share, and
    vg_category_500_labels_index.json or vg_category_200_labels_index.json: for each image the
    positions of its positive categories. The lists say which images are read.

    Args:
        root: the folder of the lists and the labels.
        split: "train" or "test"; None: both.
        n_categories: 200 or 500. VG-200 is the first 200 of the 500 categories.
        absent: what a category is that is not listed for an image: "negative", as the field
            evaluates it, or "unknown".
        names: a file of the categories' names in the order of their positions: a name a line, or
            JSON (a list of names, or an object of positions). The release has none; None:
            categories are called "0", "1", ….
        images: the folder that holds VG_100K and VG_100K_2; None: `root`.

    Returns:
        One row an image, in the order of the lists. Ids are the file names, such as "107899.jpg";
        paths start from `images` and are blank where neither folder has the file.

    Raises:
        LabelError: If a file is missing or damaged, a label is no position of a category, or
            `images` is given and holds neither folder.
        IdError: If a list has a line that is no file name, or an image twice.
        CategoryError: If names are not as many as the categories, or repeat.
        ConfigError: If an option is not possible.

    Source: Krishna et al., "Visual Genome", IJCV 123, 2017. VG-500: Chen et al., "Learning
    semantic-specific graph representation for multi-label image recognition", ICCV 2019, and the
    repository HCPLab-SYSU/SSGRL. VG-200: Chen et al., "Structured semantic transfer for
    multi-label recognition with partial labels", AAAI 2022, and HCPLab-SYSU/HCP-MLR-PL.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "test_list_500.txt").write_text("7.jpg")
    ...     file = Path(folder, "vg_category_200_labels_index.json")
    ...     _ = file.write_text('{"7.jpg": [0, 199]}')
    ...     dataset = read_visual_genome(folder, split="test")
    >>> dataset.labels.codes[0, [0, 1, 199]]
    array([1, 0, 1], dtype=int8)
    """
    check_choice("split", split, (None, *SPLITS))
    check_choice("n_categories", n_categories, SIZES)
    check_choice("absent", absent, ABSENT)
    root, n_categories = Path(root), 200 if n_categories == 200 else 500
    lists = [_List.read(root, name) for name in SPLITS if split in (None, name)]
    _check_repeats(lists)
    path = _labels_path(root, n_categories)
    rows, columns = _positives(path, lists, n_categories)
    files = np.array(list(chain.from_iterable(one.names for one in lists)), dtype=np.str_)
    base = root if images is None else Path(images)
    paths, counts, notes = find_images(base, files, required=images is not None)
    keys = distinct(columns * len(files) + rows)
    categories = None if names is None else read_names(Path(names), n_categories)
    labels = PartialLabels.from_content(
        _content(keys, len(files), n_categories, absent),
        len(files),
        category_names(categories, n_categories),
        ids=files,
        groups=None,
        storage="auto",
    )
    counts = {
        "labels": path.name,
        "images_in_lists": {one.split: len(one.names) for one in lists},
        "images_without_positives": int((np.bincount(rows, minlength=len(files)) == 0).sum()),
        "repeated_positives": len(rows) - len(keys),
        **counts,
    }
    meaning = {
        "negative": "A category that is not listed for an image is read as negative, though "
        "Visual Genome is not annotated exhaustively.",
        "unknown": "A category that is not listed for an image is read as unknown: there are no "
        "negatives.",
    }
    notes = [meaning[absent], *notes]
    if names is None:
        notes.append("The release does not name the categories: they are called by position.")
    splits = np.repeat([one.split for one in lists], [len(one.names) for one in lists])
    name = f"visual_genome_{n_categories}"
    return Dataset(name, base, paths, labels, splits, counts, tuple(notes))


class _List(NamedTuple):
    """The images of one split, and the line of each."""

    split: str
    path: Path
    names: list[str]
    lines: list[int]

    @classmethod
    def read(cls, root: Path, split: str) -> _List:
        """Read a list of file names, one a line; blank lines do not count."""
        path = root / LIST.format(split=split)
        text = read_text(path, f"the images of the split {split!r}")
        pairs = [(line.strip(), i) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        for name, i in pairs:
            if len(name.split()) > 1 or "/" in name or "\\" in name:
                raise IdError(
                    f"'{path}', line {i:,}: no name of an image.",
                    found=repr(name),
                    expected="the name of a file, such as '107899.jpg'",
                )
        return cls(split, path, [name for name, _ in pairs], [i for _, i in pairs])


def _check_repeats(lists: Sequence[_List]) -> None:
    """Refuse an image that is listed twice, in one split or in two."""
    seen: dict[str, str] = {}
    for one in lists:
        for name, line in zip(one.names, one.lines, strict=True):
            here = f"'{one.path}', line {line:,}"
            first = seen.setdefault(name, here)
            if first is not here:
                raise IdError(
                    f"{here}: an image is listed twice.", found=f"{name!r}, first in {first}"
                )


def _labels_path(root: Path, n: int) -> Path:
    """The file of the labels.

    Raises:
        LabelError: If it is not there; says when the other one is.
    """
    path = root / LABELS.format(n=n)
    if path.is_file():
        return path
    remedy = "correct the root; images may be elsewhere: images=…"
    if n == 200 and (root / LABELS.format(n=500)).is_file():
        remedy = "n_categories=500 and labels.take_categories(range(200)): they are its first 200"
    raise LabelError(f"'{root}' has no labels of VG-{n}.", expected=path.name, remedy=remedy)


def _positives(path: Path, lists: Sequence[_List], n: int) -> tuple[Rows, Rows]:
    """Rows and categories of the positive labels, in the order of the lists.

    Raises:
        LabelError: If an image has no entry, or its entry is no list of positions.
    """
    labels = load_json(path, "the labels")
    if not isinstance(labels, dict):
        raise LabelError(
            f"'{path}' is no object of images.",
            found=kind(labels),
            expected='{"107899.jpg": [0, 5], …}',
        )
    entries: list[Any] = []
    for one in lists:
        missing = next((i for i, name in enumerate(one.names) if name not in labels), None)
        if missing is not None:
            n_missing = sum(name not in labels for name in one.names)
            raise LabelError(
                f"'{one.path}', line {one.lines[missing]:,}: an image has no labels in '{path}'.",
                found=f"{one.names[missing]!r} (first of {n_missing:,})",
                remedy="take the lists and the labels from one release",
            )
        entries += [labels[name] for name in one.names]
    if set(map(type, entries)) != {list}:
        raise _no_positions(path, lists, entries, n)
    columns = list(chain.from_iterable(entries))
    if not set(map(type, columns)) <= {int} or (
        columns and not 0 <= min(columns) <= max(columns) < n
    ):
        raise _no_positions(path, lists, entries, n)
    rows = np.repeat(np.arange(len(entries)), np.fromiter(map(len, entries), np.int64))
    return rows, np.array(columns, dtype=np.int64)


def _no_positions(path: Path, lists: Sequence[_List], entries: list[Any], n: int) -> LabelError:
    """The error for the first entry that is no list of positions."""
    names = chain.from_iterable(one.names for one in lists)
    for name, entry in zip(names, entries, strict=True):
        if type(entry) is not list:
            return LabelError(
                f"'{path}', image {name!r}: no list.",
                found=kind(entry),
                expected="positions of categories, such as [0, 5]",
            )
        wrong = next((j for j in entry if type(j) is not int or not 0 <= j < n), None)
        if wrong is not None or None in entry:
            larger = type(wrong) is int and wrong >= n
            return LabelError(
                f"'{path}', image {name!r}: a label is no position of a category.",
                found=str(wrong)[:40] if type(wrong) is int else kind(wrong),
                expected=f"a whole number from 0 to {n - 1}",
                remedy="n_categories=500" if larger and n == 200 else CHECK,
            )
    raise AssertionError  # pragma: no cover - called for an entry that is wrong


def _content(keys: Rows, n_rows: int, n: int, absent: str) -> Codes | Columns:
    """Labels from the sorted keys (category × rows + row) of the positives."""
    columns, rows = np.divmod(keys, n_rows)
    if absent == "negative":
        codes = np.full((n_rows, n), NEGATIVE, dtype=np.int8)
        codes[rows, columns] = POSITIVE
        return codes
    return sparse(columns, rows, np.full(len(rows), POSITIVE, dtype=np.int8), n_rows, n)


def sparse(columns: Rows, rows: Rows, codes: Codes, n_rows: int, n: int) -> Columns:
    """Labels sorted by category and row as compressed columns; unknown ones are left out."""
    here = codes != UNKNOWN
    counted = np.bincount(columns[here], minlength=n)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counted, dtype=np.int64)])
    return Columns(starts, rows[here].astype(row_dtype(n_rows)), codes[here])


def distinct(keys: Rows) -> Rows:
    """Different numbers, ascending: `numpy.unique`, which is slow where it hashes.

    >>> distinct(np.array([3, 1, 3]))
    array([1, 3])
    """
    ordered = np.sort(keys)
    new = np.ones(len(ordered), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new]


def find_images(
    folder: Path, files: NDArray[np.str_], *, required: bool
) -> tuple[NDArray[np.str_], dict[str, Any], list[str]]:
    """Where images of Visual Genome are.

    Args:
        folder: holds VG_100K and VG_100K_2.
        files: (N,) names of files; they may repeat.
        required: whether one of the two folders must be there.

    Returns:
        (N,) paths from `folder`, blank where neither has the file; counts; notes.

    Raises:
        LabelError: If a folder cannot be read, or one is required and there is none.
    """
    held = {name: _listed(folder / name) for name in FOLDERS}
    first, second = (held[name] or frozenset() for name in FOLDERS)
    where = dict.fromkeys(second, FOLDERS[1]) | dict.fromkeys(first, FOLDERS[0])
    names = files.tolist()
    paths = [f"{where[name]}/{name}" if name in where else "" for name in names]
    different = set(names)
    counts = {
        "images_without_files": sum(name not in where for name in different),
        "images_in_both_folders": len(different & first & second),
    }
    absent = [name for name in FOLDERS if held[name] is None]
    notes = []
    if len(absent) == len(FOLDERS):
        if required:
            raise LabelError(
                f"'{folder}' holds no images of Visual Genome.",
                expected=" or ".join(f"a folder {name}" for name in FOLDERS),
                remedy="correct images=…",
            )
        notes.append(f"There is no folder {FOLDERS[0]} or {FOLDERS[1]}: paths are blank.")
    elif counts["images_without_files"]:
        where_not = f"; there is no folder {absent[0]}" if absent else ""
        notes.append(f"Paths are blank where neither folder has the image{where_not}.")
    if counts["images_in_both_folders"]:
        notes.append(f"Images that are in both folders are taken from {FOLDERS[0]}.")
    return np.array(paths, dtype=np.str_), counts, notes


def _listed(folder: Path) -> frozenset[str] | None:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - a hundred thousand names at once
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LabelError(f"cannot read the folder '{folder}'.", found=error.strerror) from error


def read_names(path: Path, n: int | None = None) -> list[str]:
    """The names of categories, in the order of their positions.

    Args:
        path: a name a line, or .json: a list of names or an object of positions.
        n: how many there must be; None: any number.

    Raises:
        LabelError: If the file is missing, damaged or nothing of this kind.
        CategoryError: If names are not n, or repeat.
    """
    what = "the names of categories"
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in read_text(path, what).strip().split("\n")]
    else:
        names = _names_of(path, load_json(path, what))
    if n is not None and len(names) != n:
        raise CategoryError(
            f"'{path}' does not fit the categories.", found=f"{len(names):,} names", expected=f"{n}"
        )
    for name, count in Counter(names).items():
        if count > 1 or not name:
            here = f"line {names.index(name) + 1:,}" if name == "" else f"{count} times"
            raise CategoryError(
                f"'{path}': a name of a category is blank or repeats.", found=f"{name!r}, {here}"
            )
    return names


def _names_of(path: Path, content: Any) -> list[str]:
    expected = '["sky", "tree", …] or {"sky": 0, "tree": 1, …}'
    if isinstance(content, list):
        wrong = next((i for i, name in enumerate(content) if not isinstance(name, str)), None)
        if wrong is not None:
            found = f"{kind(content[wrong])} in place {wrong}"
            raise LabelError(f"'{path}' is no list of names.", found=found, expected=expected)
        return content
    if not isinstance(content, dict) or not content:
        raise LabelError(f"'{path}' holds no names.", found=kind(content), expected=expected)
    for name, at in content.items():
        if type(at) is not int or not 0 <= at < len(content):
            raise LabelError(
                f"'{path}', name {name!r}: no position.",
                found=str(at)[:40] if type(at) is int else kind(at),
                expected=f"each whole number from 0 to {len(content) - 1} once",
            )
    if len(set(content.values())) < len(content):
        position, _ = Counter(content.values()).most_common(1)[0]
        two = [name for name, at in content.items() if at == position]
        raise LabelError(
            f"'{path}': two names have one position.",
            found=f"{two[0]!r} and {two[1]!r}: {position}",
        )
    return sorted(content, key=content.__getitem__)


def load_json(
    path: Path, what: str, *, keep: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Load a JSON file.

    Args:
        path: the file.
        what: what it holds, for the error.
        keep: called with the pairs of each object, gives what is kept of it; None: a dict.

    Raises:
        LabelError: If the file is missing or damaged, or an object has a key twice.
    """

    def pairs_of(pairs: list[tuple[str, Any]]) -> Any:
        if len({key for key, _ in pairs}) < len(pairs):
            key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            named = next((f" of {v!r}" for k, v in pairs if k == "instance_id" and v), "")
            raise LabelError(f"'{path}': an object has a key twice.", found=f"{key!r}{named}")
        return dict(pairs) if keep is None else keep(pairs)

    text = read_text(path, what)
    try:
        return parse(text, object_pairs_hook=pairs_of)
    except LabelError:
        raise
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise truncated(path, f"it ends in line {error.lineno:,}: {error.msg}") from error
        raise LabelError(
            f"'{path}', line {error.lineno:,}, column {error.colno:,}: no JSON.",
            found=error.msg,
            remedy=CHECK,
        ) from error
    except ValueError as error:
        raise LabelError(f"'{path}' is no JSON that can be read.", found=str(error)) from error


def read_text(path: Path, what: str, *, limit: int | None = None) -> str:
    """The text of a file; a byte-order mark is skipped.

    Args:
        path: the file.
        what: what it holds, for the error.
        limit: how many bytes it may have.

    Raises:
        LabelError: If it is missing, empty, unreadable, too large or not UTF-8.
    """
    try:
        content = read_whole(path, limit)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise LabelError(
            f"there is no file '{path}'." if missing else f"cannot read '{path}'.",
            found=None if missing else error.strerror,
            expected=what,
            remedy="correct the root" if missing else "check the path and its permissions",
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LabelError(
            f"'{path}', line {line:,}: not UTF-8 text.",
            found=f"byte {content[error.start]:#04x}",
            remedy=CHECK,
        ) from error
    if not text.strip():
        raise LabelError(f"'{path}' is empty.", expected=what, remedy="download the file again")
    return text


def kind(value: Any) -> str:
    """What a value of a JSON file is, for people.

    >>> kind("a"), kind(True), kind(None), kind([1])
    ("the text 'a'", 'true', 'null', 'a list')
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, (int, float)):
        return f"the number {value!r}"[:60]
    return "a list" if isinstance(value, list) else "an object"
