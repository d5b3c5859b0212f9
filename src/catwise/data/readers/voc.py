"""PASCAL VOC 2007 and 2012: 20 categories, with objects that are marked as difficult."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from xml.etree import ElementTree as ET

import numpy as np

from catwise._limits import MAX_LINE
from catwise.data.dataset import Dataset
from catwise.data.files import listed
from catwise.data.readers.visual_genome import read_text
from catwise.errors import ConfigError, IdError, LabelError, check_choice, nearest
from catwise.labels.codes import NEGATIVE, POSITIVE, UNKNOWN
from catwise.labels.core import PartialLabels

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["CATEGORIES", "read_voc"]

CATEGORIES: Final = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The 20 categories, in the order of the development kit."""

YEARS: Final = (2007, 2012)
SPLITS: Final = ("train", "val", "trainval", "test")
SOURCES: Final = ("auto", "image_sets", "annotations", "both")
DIFFICULT: Final = {"unknown": UNKNOWN, "positive": POSITIVE, "negative": NEGATIVE}

PRESENT, ONLY_DIFFICULT, ABSENT = 1, 0, -1
MARKS: Final = {str(mark): mark for mark in (PRESENT, ONLY_DIFFICULT, ABSENT)}
DECLARATION: Final = re.compile(r"<!(?!--|\[CDATA\[)")

Marks: TypeAlias = "NDArray[np.int8]"
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

    Raises:
        LabelError: If a file is missing or damaged, a mark is none of 1, 0 and -1, an object is of
            no category, or the two sources do not agree.
        IdError: If an image is listed twice, or a category has other images than the list.
        ConfigError: If an option is not possible, such as the test images of 2012, which were
            published without labels.

    Source: Everingham et al., "The PASCAL visual object classes (VOC) challenge", IJCV 88, 2010;
    VOC2007 and VOC2012 development kit documentation, "Classification task".

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     main = Path(folder, "VOC2007/ImageSets/Main")
    ...     main.mkdir(parents=True)
    ...     _ = (main / "val.txt").write_text("000005")
    ...     for name in CATEGORIES:
    ...         mark = {"chair": " 1", "sofa": " 0"}.get(name, "-1")
    ...         _ = (main / f"{name}_val.txt").write_text(f"000005 {mark}")
    ...     labels = read_voc(folder, split="val").labels
    >>> [int(labels.column(name)[0]) for name in ("chair", "sofa", "cat")]
    [1, -1, 0]
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
    ids, lines = _read_ids(folder / "ImageSets" / "Main" / f"{split}.txt", split)
    marks, counts, notes = _read_marks(folder, split, source, ids, lines)
    counts["difficult_labels"] = int((marks == ONLY_DIFFICULT).sum())
    counts["images_without_objects"] = int((marks == ABSENT).all(axis=1).sum())
    paths, counts["images_without_files"] = _paths(root, folder, ids)
    notes.append(f"A category with difficult objects only is read as {difficult}.")
    if not (folder / "JPEGImages").is_dir():
        notes.append("There is no folder JPEGImages; paths tell where it should be.")
    codes = np.full(marks.shape, NEGATIVE, dtype=np.int8)
    codes[marks == PRESENT] = POSITIVE
    codes[marks == ONLY_DIFFICULT] = DIFFICULT[difficult]
    labels = PartialLabels.from_content(
        codes, len(codes), CATEGORIES, ids=np.array(ids), groups=None, storage="auto"
    )
    splits = np.full(len(ids), split)
    return Dataset(f"voc{int(year)}", root, paths, labels, splits, counts, tuple(notes))


def _folder(root: Path, year: int) -> Path:
    """The folder of the year.

    Raises:
        LabelError: If it is not there.
    """
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


def _paths(root: Path, folder: Path, ids: Sequence[str]) -> tuple[NDArray[np.str_], int]:
    """The images' paths from the root, and how many are not there."""
    images = folder / "JPEGImages"
    there = frozenset(path.name for path in images.iterdir()) if images.is_dir() else frozenset()
    files = [f"{name}.jpg" for name in ids]
    base = images.relative_to(root).as_posix()
    paths = np.array([f"{base}/{file}" for file in files], dtype=np.str_)
    return paths, sum(file not in there for file in files)


def _read_fields(path: Path, what: str, n_fields: int) -> list[tuple[int, list[str]]]:
    """(line, fields) of a list that is separated by blanks; blank lines do not count.

    Raises:
        LabelError: If a line has another number of fields.
        IdError: If the first field repeats.
    """
    text = read_text(path, what)
    rows = [(i, fields) for i, line in enumerate(text.split("\n"), 1) if (fields := line.split())]
    seen: dict[str, int] = {}
    for line, fields in rows:
        if len(fields) != n_fields:
            raise LabelError(
                f"'{path}', line {line:,}: not as many fields as there should be.",
                found=" ".join(fields)[:60],
                expected="an image and its mark, such as '000005 -1'"
                if n_fields == 2
                else "an image, such as '000005'",
            )
        first = seen.setdefault(fields[0], line)
        if first != line:
            raise IdError(
                f"'{path}', line {line:,}: an image is listed twice.",
                found=f"{fields[0]!r}, first in line {first:,}",
            )
    return rows


def _read_ids(path: Path, split: str) -> tuple[list[str], list[int]]:
    """The images of a split, and their lines."""
    rows = _read_fields(path, f"the images of the split {split!r}", 1)
    for line, (name,) in rows:
        if "/" in name or "\\" in name:
            raise IdError(
                f"'{path}', line {line:,}: no image of PASCAL VOC.",
                found=repr(name),
                expected="the name of a file without its suffix, such as '000005'",
            )
    return [fields[0] for _, fields in rows], [line for line, _ in rows]


def _read_marks(
    folder: Path, split: str, source: str, ids: list[str], lines: list[int]
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
        marks = _marks_of_sets(files, ids, main / f"{split}.txt")
        return marks, counts, ["Labels are those of ImageSets/Main/<category>_<split>.txt."]
    marks, counts["objects_without_difficult"] = _marks_of_objects(
        folder, ids, lines, main / f"{split}.txt"
    )
    notes = ["Labels are those of the objects in Annotations."]
    if counts["objects_without_difficult"]:
        notes.append("An object that does not say whether it is difficult is read as not.")
    if source == "both":
        _check_agreement(
            folder, files, ids, _marks_of_sets(files, ids, main / f"{split}.txt"), marks
        )
        notes[0] = "Labels of ImageSets/Main and of the objects in Annotations agree."
    return marks, counts, notes


def _marks_of_sets(files: Sequence[Path], ids: list[str], list_path: Path) -> Marks:
    """The marks that the lists of the categories give.

    Raises:
        LabelError: If a mark is none of 1, 0 and -1.
        IdError: If a category has other images than the list.
    """
    marks = np.empty((len(ids), len(files)), dtype=np.int8)
    row_of = {name: i for i, name in enumerate(ids)}
    for j, path in enumerate(files):
        rows = _read_fields(path, f"marks of the category {CATEGORIES[j]!r}", 2)
        for line, (name, mark) in rows:
            if mark not in MARKS:
                raise LabelError(
                    f"'{path}', line {line:,}: no mark.",
                    found=repr(mark),
                    expected="1 (an object), 0 (difficult objects only) or -1 (none)",
                )
            if name not in row_of:
                raise IdError(
                    f"'{path}', line {line:,}: an image is not in '{list_path}'.", found=repr(name)
                )
        if len(rows) < len(ids):
            there = {fields[0] for _, fields in rows}
            absent = [name for name in ids if name not in there]
            raise IdError(
                f"'{path}' has no marks of images in '{list_path}'.",
                found=f"{len(absent):,} without, the first {absent[0]!r}",
                remedy="download the file again",
            )
        at = [row_of[fields[0]] for _, fields in rows]
        marks[at, j] = [MARKS[fields[1]] for _, fields in rows]
    return marks


def _marks_of_objects(
    folder: Path, ids: list[str], lines: list[int], list_path: Path
) -> tuple[Marks, int]:
    """The marks that the objects in the annotations give, and how many lack `difficult`."""
    marks = np.full((len(ids), len(CATEGORIES)), ABSENT, dtype=np.int8)
    column_of = {name: j for j, name in enumerate(CATEGORIES)}
    n_silent = 0
    for i, name in enumerate(ids):
        path = folder / "Annotations" / f"{name}.xml"
        if not path.is_file():
            raise LabelError(
                f"'{list_path}', line {lines[i]:,}: an image has no annotation.",
                found=f"{name!r}, no file '{path}'",
                remedy="unpack the annotations of the split, or source='image_sets'",
            )
        for number, one in enumerate(_parse(path).findall("object"), 1):
            place = f"'{path}', object {number}"
            category = (one.findtext("name") or "").strip()
            if category not in column_of:
                raise LabelError(
                    f"{place}: its name is no category of PASCAL VOC.",
                    found=f"{category!r}{nearest(category, CATEGORIES)}",
                )
            flag = one.findtext("difficult")
            n_silent += flag is None
            if flag is not None and flag.strip() not in ("0", "1"):
                raise LabelError(
                    f"{place}: no value of difficult.", found=repr(flag), expected="0 or 1"
                )
            mark = ONLY_DIFFICULT if flag is not None and flag.strip() == "1" else PRESENT
            j = column_of[category]
            marks[i, j] = max(marks[i, j], mark)
    return marks, n_silent


def _parse(path: Path) -> ET.Element:
    """The annotation of an image.

    A document type declaration is refused, since its entities can be made to grow without end.

    Raises:
        LabelError: If the file is no such XML.
    """
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
            f"'{path}', line {line:,}, column {column + 1:,}: no XML.",
            found=str(error).split(":")[0],
            remedy="download the file again",
        ) from error
    if tree.tag != "annotation":
        raise LabelError(f"'{path}' is no annotation.", found=f"<{tree.tag}>")
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
