"""Visual Genome as a multi-label data set: VG-500 and VG-200, with the lists of their authors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import places
from catwise.data.dataset import Dataset
from catwise.data.readers._kit import (
    AGAIN,
    Images,
    Listing,
    dataset,
    describe,
    distinct,
    find,
    locate_images,
    read_json,
    read_list,
    read_text,
    sparse,
)
from catwise.errors import CategoryError, LabelError, check_choice
from catwise.labels.codes import NEGATIVE, POSITIVE, Codes, Rows
from catwise.labels.columns import Columns
from catwise.labels.names import category_names, refuse_repeats

SPLITS: Final = ("train", "test")
ABSENT: Final = {
    "negative": "A category that is not listed for an image is read as negative, though Visual "
    "Genome is not annotated exhaustively.",
    "unknown": "A category that is not listed for an image is read as unknown: there are no "
    "negatives.",
}
SIZES: Final = (200, 500)
FOLDERS: Final = ("VG_100K", "VG_100K_2")

LIST: Final = "{split}_list_500.txt"
LABELS: Final = "vg_category_{n}_labels_index.json"


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

    Errors are those of all readers (`catwise.data.readers`): a label that is no position of a
    category, and `images` that holds neither folder, are a LabelError; names that are not as many
    as the categories a CategoryError.

    Source: Krishna et al., "Visual Genome", IJCV 123, 2017. VG-500: Chen et al., "Learning
    semantic-specific graph representation for multi-label image recognition", ICCV 2019, and the
    repository HCPLab-SYSU/SSGRL. VG-200: Chen et al., "Structured semantic transfer for
    multi-label recognition with partial labels", AAAI 2022, and HCPLab-SYSU/HCP-MLR-PL.
    """
    check_choice("split", split, (None, *SPLITS))
    check_choice("n_categories", n_categories, SIZES)
    check_choice("absent", absent, ABSENT)
    root, n_categories = Path(root), 200 if n_categories == 200 else 500
    wanted = [name for name in SPLITS if split in (None, name)]
    lists = {name: _read_list(root / LIST.format(split=name), name) for name in wanted}
    files = list(chain.from_iterable(one.names for one in lists.values()))
    place = places([(len(one.names), one.place) for one in lists.values()])
    refuse_repeats(files, place, "an image of Visual Genome is listed twice.")
    path = _labels_path(root, n_categories)
    rows, columns = _positives(path, list(lists.values()), n_categories)
    base = root if images is None else Path(images)
    paths, counts, notes = find_images(base, files, required=images is not None)
    keys = distinct(columns * len(files) + rows)
    categories = None if names is None else read_names(Path(names), n_categories)
    counts = {
        "labels": path.name,
        "images_in_lists": {name: len(one.names) for name, one in lists.items()},
        "images_without_positives": int((np.bincount(rows, minlength=len(files)) == 0).sum()),
        "repeated_positives": len(rows) - len(keys),
        **counts,
    }
    notes = [ABSENT[absent], *notes]
    if names is None:
        notes.append("The release does not name the categories: they are called by position.")
    splits = np.repeat(list(lists), [len(one.names) for one in lists.values()])
    images_read = Images(files, paths, splits)
    content = _content(keys, len(files), n_categories, absent)
    labels = content, category_names(categories, n_categories)
    return dataset(
        f"visual_genome_{n_categories}", base, labels, images_read, counts=counts, notes=notes
    )


def _read_list(path: Path, split: str) -> Listing:
    listing = read_list(path, f"the images of the split {split!r}")
    listing.refuse(r"[^\s/\\]+", "the name of a file, such as '107899.jpg'")
    return listing


def _labels_path(root: Path, n: int) -> Path:
    """The file of the labels; the error says when the other one is there."""
    remedy = "correct the root; images may be elsewhere: images=…"
    if n == 200 and (root / LABELS.format(n=500)).is_file():
        remedy = "n_categories=500 and labels.take_categories(range(200)): they are its first 200"
    return find(root, [LABELS.format(n=n)], f"labels of VG-{n}", remedy=remedy)


def _positives(path: Path, lists: Sequence[Listing], n: int) -> tuple[Rows, Rows]:
    """Rows and categories of the positive labels, in the order of the lists."""
    labels = read_json(path, "the labels")
    if not isinstance(labels, dict):
        raise LabelError(
            f"'{path}' is not an object of images.",
            found=describe(labels),
            expected='{"107899.jpg": [0, 5], …}',
        )
    entries: list[Any] = []
    for one in lists:
        missing = [i for i, name in enumerate(one.names) if name not in labels]
        if missing:
            raise LabelError(
                f"{one.place(missing[0])}: an image has no labels in '{path}'.",
                found=f"{one.names[missing[0]]!r} (first of {len(missing):,})",
                remedy="take the lists and the labels from one release",
            )
        entries += [labels[name] for name in one.names]
    columns = list(chain.from_iterable(e for e in entries if type(e) is list))
    numbers = set(map(type, columns)) <= {int}
    if not (set(map(type, entries)) == {list} and numbers and all(0 <= j < n for j in columns)):
        _refuse_positions(path, lists, entries, n)
    rows = np.repeat(np.arange(len(entries)), np.fromiter(map(len, entries), np.int64))
    return rows, np.array(columns, dtype=np.int64)


def _refuse_positions(path: Path, lists: Sequence[Listing], entries: list[Any], n: int) -> None:
    """Refuse the first entry that is not a list of positions."""
    names = chain.from_iterable(one.names for one in lists)
    for name, entry in zip(names, entries, strict=True):
        if type(entry) is not list:
            raise LabelError(
                f"'{path}', image {name!r}: not a list.",
                found=describe(entry),
                expected="positions of categories, such as [0, 5]",
            )
        wrong = [j for j in entry if type(j) is not int or not 0 <= j < n]
        if wrong:
            larger = type(wrong[0]) is int and wrong[0] >= n
            raise LabelError(
                f"'{path}', image {name!r}: a label is not the position of a category.",
                found=describe(wrong[0]),
                expected=f"a whole number from 0 to {n - 1}",
                remedy="n_categories=500" if larger and n == 200 else AGAIN,
            )


def _content(keys: Rows, n_rows: int, n: int, absent: str) -> Codes | Columns:
    """Labels from the sorted keys (category × rows + row) of the positives."""
    if absent == "negative":
        columns, rows = np.divmod(keys, n_rows)
        codes = np.full((n_rows, n), NEGATIVE, dtype=np.int8)
        codes[rows, columns] = POSITIVE
        return codes
    return sparse(keys, np.full(len(keys), POSITIVE, dtype=np.int8), n_rows, n)


def find_images(
    folder: Path, files: Sequence[str], *, required: bool
) -> tuple[NDArray[np.str_], dict[str, Any], list[str]]:
    """Paths of images of Visual Genome from `folder`, counts and notes."""
    found = locate_images(folder, FOLDERS, files)
    counts = {"images_without_files": found.n_missing, "images_in_both_folders": found.n_twice}
    absent = [name for name in FOLDERS if name not in found.there]
    notes = []
    if not found.there:
        if required:
            raise LabelError(
                f"'{folder}' holds no images of Visual Genome.",
                expected=" or ".join(f"a folder {name}" for name in FOLDERS),
                remedy="correct images=…",
            )
        notes.append(f"There is no folder {FOLDERS[0]} or {FOLDERS[1]}: paths are blank.")
    elif found.n_missing:
        where_not = f"; there is no folder {absent[0]}" if absent else ""
        notes.append(f"Paths are blank where neither folder has the image{where_not}.")
    if found.n_twice:
        notes.append(f"Images that are in both folders are taken from {FOLDERS[0]}.")
    return found.paths, counts, notes


def read_names(path: Path, n: int | None = None) -> list[str]:
    """The names of categories, in the order of their positions."""
    what = "the names of categories"
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in read_text(path, what).strip().split("\n")]
    else:
        names = _names_of(path, read_json(path, what))
    if n is not None and len(names) != n:
        raise CategoryError(
            f"'{path}' does not fit the categories.", found=f"{len(names):,} names", expected=f"{n}"
        )
    if "" in names:
        found = f"line {names.index('') + 1:,}"
        raise CategoryError(f"'{path}' has a blank name of a category.", found=found)
    what = f"'{path}' has a duplicate name of a category."
    refuse_repeats(names, lambda i: f"line {i + 1:,}", what, error=CategoryError)
    return names


def _names_of(path: Path, content: Any) -> list[str]:
    expected = '["sky", "tree", …] or {"sky": 0, "tree": 1, …}'
    if isinstance(content, list):
        wrong = next((i for i, name in enumerate(content) if not isinstance(name, str)), None)
        if wrong is not None:
            found = f"{describe(content[wrong])} in place {wrong}"
            raise LabelError(f"'{path}' is not a list of names.", found=found, expected=expected)
        return content
    if not isinstance(content, dict) or not content:
        raise LabelError(f"'{path}' holds no names.", found=describe(content), expected=expected)
    for name, at in content.items():
        if type(at) is not int or not 0 <= at < len(content):
            raise LabelError(
                f"'{path}', name {name!r}: not a position.",
                found=str(at)[:40] if type(at) is int else describe(at),
                expected=f"each whole number from 0 to {len(content) - 1} once",
            )
    what, names = f"'{path}': two names have one position.", list(content)
    refuse_repeats(list(content.values()), lambda i: repr(names[i]), what, error=LabelError)
    return sorted(content, key=content.__getitem__)
