"""PASCAL VOC 2007 and 2012: 20 categories, with objects that are marked as difficult."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from catwise._limits import MAX_LINE
from catwise.data.checks import refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import listed
from catwise.data.readers._kit import (
    AGAIN,
    Images,
    Listing,
    dataset,
    locate_images,
    read_list,
    read_text,
)
from catwise.errors import ConfigError, LabelError, check_choice, nearest
from catwise.labels.codes import NEGATIVE, POSITIVE, UNKNOWN
from catwise.labels.names import refuse_repeats

CATEGORIES: Final = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""The 20 categories, in the order of the development kit."""

YEARS: Final = (2007, 2012)
SPLITS: Final = ("train", "val", "trainval", "test")
SOURCES: Final = ("auto", "image_sets", "annotations", "both")
DIFFICULT: Final = {"unknown": UNKNOWN, "positive": POSITIVE, "negative": NEGATIVE}

PRESENT, ONLY_DIFFICULT, ABSENT = 1, 0, -1
DECLARATION: Final = re.compile(r"<!(?!--|\[CDATA\[)")

Marks: TypeAlias = NDArray[np.int8]
"""(N, 20) of 1: an object, 0: difficult objects only, -1: no object."""


def read_voc(
    root: str | os.PathLike[str],
    *,
    year: Literal[2007, 2012] = 2007,
    split: Literal["train", "val", "trainval", "test"] = "trainval",
    difficult: Literal["unknown", "positive", "negative"] = "unknown",
    source: Literal["auto", "image_sets", "annotations", "both"] = "auto",
) -> Dataset:
    """Read the image labels of PASCAL VOC 2007 or 2012.

    The folder VOC2007 or VOC2012 is `root` itself, or is in it, or is in VOCdevkit in it: the
    first that is there. ImageSets/Main/<split>.txt says which images are read.

    Args:
        root: the folder VOCdevkit, its parent, or the folder of the year.
        year: 2007 or 2012.
        split: "train", "val", "trainval" (both), or "test" (2007 only).
        difficult: what a category is of which an image has difficult objects only: "unknown", as
            the challenge leaves these images out of the category; "positive"; or "negative", as
            much work on partial labels has it.
        source: where labels come from: "image_sets", ImageSets/Main/<category>_<split>.txt;
            "annotations", the objects in Annotations/<image>.xml; "both", which must agree;
            "auto": the image sets if they are there, else the annotations.

    Returns:
        One row an image, in the order of the list. Ids are those of the release, such as "000005"
        and "2008_000002"; paths lead to JPEGImages from `root`. A category of which an image has
        no object is negative: the release annotates all objects.

    Errors are those of all readers (`catwise.data.readers`): two sources that do not agree are
    a LabelError, a category with other images than the list an IdError, the test images of 2012,
    published without labels, a ConfigError.

    Source: Everingham et al., "The PASCAL visual object classes (VOC) challenge", IJCV 88, 2010;
    VOC2007 and VOC2012 development kit documentation, "Classification task".
    """
    check_choice("year", year, YEARS)
    check_choice("split", split, SPLITS)
    check_choice("difficult", difficult, tuple(DIFFICULT))
    check_choice("source", source, SOURCES)
    if (year, split) == (2012, "test"):
        raise ConfigError(
            "the test images of VOC2012 have no labels: the evaluation server keeps them.",
            found="year=2012, split='test'",
            expected="'train', 'val' or 'trainval', or year=2007",
        )
    root = Path(root)
    folder = _folder(root, int(year))
    images = _read_ids(folder / "ImageSets" / "Main" / f"{split}.txt", split)
    marks, counts, notes = _read_marks(folder, split, source, images)
    counts["difficult_labels"] = int((marks == ONLY_DIFFICULT).sum())
    counts["images_without_objects"] = int((marks == ABSENT).all(axis=1).sum())
    jpegs = (folder / "JPEGImages").relative_to(root).as_posix()
    files = [f"{name}.jpg" for name in images.names]
    found = locate_images(root, (jpegs,), files)
    counts["images_without_files"] = found.n_missing
    notes.append(f"A category with difficult objects only is read as {difficult}.")
    if not found.there:
        notes.append("There is no folder JPEGImages; paths tell where it should be.")
    codes = np.full(marks.shape, NEGATIVE, dtype=np.int8)
    codes[marks == PRESENT] = POSITIVE
    codes[marks == ONLY_DIFFICULT] = DIFFICULT[difficult]
    images_read = Images(images.names, [f"{jpegs}/{file}" for file in files], [split] * len(files))
    labels = codes, CATEGORIES
    return dataset(f"voc{int(year)}", root, labels, images_read, counts=counts, notes=notes)


def _folder(root: Path, year: int) -> Path:
    """The folder of the year."""
    name = f"VOC{year}"
    places = (root, root / name, root / "VOCdevkit" / name)
    for place in places if root.resolve().name == name else places[1:]:
        if (place / "ImageSets" / "Main").is_dir():
            return place
    raise LabelError(
        f"'{root}' has no folder {name}/ImageSets/Main.",
        found="a folder without it" if root.is_dir() else "no folder",
        remedy="give the folder VOCdevkit as the root",
    )


def _read_ids(path: Path, split: str) -> Listing:
    """The images of a split."""
    listing = read_list(path, f"the images of the split {split!r}")
    listing.refuse(r"[^\s/\\]+", "the name of a file without its suffix, such as '000005'")
    listing.refuse_repeats()
    return listing


def _read_marks(
    folder: Path, split: str, source: str, images: Listing
) -> tuple[Marks, dict[str, Any], list[str]]:
    """The marks of the images, what was met, and notes."""
    main = folder / "ImageSets" / "Main"
    files = [main / f"{name}_{split}.txt" for name in CATEGORIES]
    missing = [path.name for path in files if not path.is_file()]
    if source == "auto":
        source = "annotations" if len(missing) == len(files) else "image_sets"
    if source in ("image_sets", "both") and missing:
        raise LabelError(
            f"'{main}' lacks the images of some categories.",
            found=f"no {listed(missing, 3)}",
            expected=f"<category>_{split}.txt of all {len(files)} categories",
            remedy="source='annotations'",
        )
    counts: dict[str, Any] = {"labels_from": source}
    if source == "image_sets":
        marks = _marks_of_sets(files, images)
        return marks, counts, ["Labels are those of ImageSets/Main/<category>_<split>.txt."]
    marks, counts["objects_without_difficult"] = _marks_of_objects(folder, images)
    notes = ["Labels are those of the objects in Annotations."]
    if counts["objects_without_difficult"]:
        notes.append("An object that does not say whether it is difficult is read as not.")
    if source == "both":
        _check_agreement(folder, files, images.names, _marks_of_sets(files, images), marks)
        notes[0] = "Labels of ImageSets/Main and of the objects in Annotations agree."
    return marks, counts, notes


def _marks_of_sets(files: Sequence[Path], images: Listing) -> Marks:
    """The marks that the lists of the categories give."""
    marks = np.empty((len(images.names), len(files)), dtype=np.int8)
    row_of = {name: i for i, name in enumerate(images.names)}
    for j, path in enumerate(files):
        listing = read_list(path, f"marks of the category {CATEGORIES[j]!r}")
        expected = "an image and its mark 1 (an object), 0 (difficult objects only) or -1 (none)"
        listing.refuse(r"\S+\s+(1|0|-1)", f"{expected}, such as '000005 -1'", error=LabelError)
        names, values = zip(*(line.split() for line in listing.names), strict=True)
        refuse_repeats(names, listing.place, f"'{path}' has a duplicate image.")
        what = f"'{path}' has an image that is not in '{images.path}'."
        refuse_wrong(names, [name in row_of for name in names], listing.place, what)
        there = set(names)
        what = f"'{path}' lacks an image of '{images.path}'."
        good = [name in there for name in images.names]
        refuse_wrong(images.names, good, images.place, what, remedy=AGAIN)
        marks[[row_of[name] for name in names], j] = [int(value) for value in values]
    return marks


def _marks_of_objects(folder: Path, images: Listing) -> tuple[Marks, int]:
    """The marks that the objects in the annotations give, and how many lack `difficult`."""
    marks = np.full((len(images.names), len(CATEGORIES)), ABSENT, dtype=np.int8)
    column_of = {name: j for j, name in enumerate(CATEGORIES)}
    n_silent = 0
    for i, name in enumerate(images.names):
        path = folder / "Annotations" / f"{name}.xml"
        if not path.is_file():
            raise LabelError(
                f"{images.place(i)}: an image has no annotation.",
                found=f"{name!r}, no file '{path}'",
                remedy="unpack the annotations of the split, or source='image_sets'",
            )
        for number, one in enumerate(_parse(path).findall("object"), 1):
            place = f"'{path}', object {number}"
            category = (one.findtext("name") or "").strip()
            if category not in column_of:
                raise LabelError(
                    f"{place}: its name is not a category of PASCAL VOC.",
                    found=f"{category!r}{nearest(category, CATEGORIES)}",
                )
            flag = one.findtext("difficult")
            n_silent += flag is None
            if flag is not None and flag.strip() not in ("0", "1"):
                raise LabelError(
                    f"{place}: unrecognised value of difficult.",
                    found=repr(flag),
                    expected="0 or 1",
                )
            mark = ONLY_DIFFICULT if flag is not None and flag.strip() == "1" else PRESENT
            j = column_of[category]
            marks[i, j] = max(marks[i, j], mark)
    return marks, n_silent


def _parse(path: Path) -> ET.Element:
    """The annotation of an image; document types are refused: entities can grow without end."""
    text = read_text(path, "the annotation of an image", limit=MAX_LINE)
    declared = DECLARATION.search(text)
    if declared:
        line = text.count("\n", 0, declared.start()) + 1
        raise LabelError(
            f"'{path}', line {line:,}: a declaration is not allowed here.",
            found=text[declared.start() :].split("\n")[0][:40],
            expected="elements only; annotations of PASCAL VOC declare no types and entities",
        )
    try:
        tree = ET.fromstring(text)  # noqa: S314 - declarations are refused above
    except ET.ParseError as error:
        line, column = error.position
        raise LabelError(
            f"'{path}', line {line:,}, column {column + 1:,}: is not XML.",
            found=str(error).split(":")[0],
            remedy=AGAIN,
        ) from error
    if tree.tag != "annotation":
        raise LabelError(f"'{path}' is not an annotation.", found=f"<{tree.tag}>")
    return tree


def _check_agreement(
    folder: Path, files: Sequence[Path], ids: Sequence[str], sets: Marks, objects: Marks
) -> None:
    """Refuse labels that are not the same in both sources."""
    differ = np.argwhere(sets != objects)
    if not len(differ):
        return
    i, j = (int(k) for k in differ[0])
    by_category = Counter(CATEGORIES[k] for k in differ[:, 1].tolist())
    raise LabelError(
        f"'{files[j]}' and '{folder / 'Annotations' / ids[i]}.xml' do not agree.",
        found=f"image {ids[i]!r}: mark {sets[i, j]}, objects make it {objects[i, j]} (first of "
        f"{len(differ):,}, {by_category.most_common(1)[0][0]!r} most of all)",
        remedy="source='image_sets' or source='annotations'",
    )
