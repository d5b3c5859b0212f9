"""MS-COCO: photographs with the instances of 80 categories, and its format of annotation files.

The files are one JSON object of hundreds of megabytes, most of it outlines of instances. Only the
few fields that labels need are kept, as columns; the rest is skipped while parsing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._limits import MAX_TEXT
from catwise.data.checks import places, refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import unreadable
from catwise.data.packed import packing_of
from catwise.data.readers._kit import (
    AGAIN,
    Images,
    dataset,
    find,
    find_splits,
    read_bytes,
    read_json,
    relative,
)
from catwise.data.source import texts_of
from catwise.errors import CategoryError, ConfigError, IdError, LabelError, check_choice
from catwise.labels.codes import NEGATIVE, POSITIVE, UNKNOWN, Codes, Rows
from catwise.labels.columns import Storage
from catwise.labels.names import refuse_repeats

SPLITS: Final = ("train", "val")
YEARS: Final = (2014, 2017)
FIELDS: Final = {
    "images": {"id": "image", "file_name": "text"},
    "annotations": {"image_id": "image", "category_id": "category", "iscrowd": "flag"},
    "categories": {"id": "category", "name": "text"},
}
KINDS: Final = {
    "number": "a whole number",
    "text": "a text",
    "numbers": "a list of whole numbers",
    "image": "a whole number, or a text where all ids of images are",
    "category": "a whole number, or a text where all ids of categories are",
    "flag": "a whole number, or in no entry",
}
INT64: Final = np.iinfo(np.int64)
SHOWN: Final = 40
NO_PATH: Final = r"^\s*$|^/|\\|\x00|(^|/)\.\.?(/|$)"

NOTE: Final = "COCO is labelled exhaustively: what an image has no instance of is negative."
CROWD_NOTES: Final = {
    "positive": "Crowd regions count as instances of their category.",
    "unknown": "A category with crowd regions only is unknown.",
    "ignore": "Crowd regions are ignored: a category with nothing else is negative.",
}
UNANNOTATED_NOTES: Final = {
    "drop": "Images without any annotation are dropped.",
    "negative": "Images without any annotation are negative in every category.",
    "unknown": "Images without any annotation are unknown in every category.",
}


def read_coco(
    root: str | os.PathLike[str],
    *,
    year: Literal[2014, 2017] = 2014,
    split: Literal["train", "val"] | None = None,
    unannotated: Literal["drop", "negative", "unknown"] = "drop",
    crowd: Literal["positive", "unknown", "ignore"] = "positive",
    files: Mapping[str, str] | None = None,
    storage: Storage = "auto",
) -> Dataset:
    """Read which categories the images of MS-COCO have, or of any file in its format.

    A category is positive where the image has an instance of it and negative everywhere else:
    COCO's 80 categories are labelled exhaustively. Categories are ordered by their ids, which
    run from 1 to 90 with gaps.

    Some images have no annotation at all: 702 of the 82,783 of train2014 and 367 of the 40,504 of
    val2014, 1,021 of the 118,287 of train2017 and 48 of the 5,000 of val2017. By default they are
    dropped, as nearly all published multi-label results do (82,081 and 40,137 images), so that
    results compare, and because a missing annotation is weaker than a label.

    Args:
        root: the folder that holds annotations/instances_train2014.json and so on; the images are
            in train2014/, val2014/ and so on next to it. They are not opened. Or one file of this
            format, of any name, whose images lie beside it.
        year: 2014 or 2017, the release. Both have the same images, split in other ways.
        split: "train" or "val"; None: every split whose file is there.
        unannotated: images without any annotation, crowds included: "drop", "negative" in every
            category, or "unknown" in every category.
        crowd: categories of which an image has only crowd regions (iscrowd 1: many instances
            under one outline): "positive"; "unknown"; or "ignore" the regions: negative.
        files: the file of each split, from the root, instead of those above; the paths of images
            are then from the root, such as {"train": "train.json", "valid": "val.json"}.
        storage: as for `PartialLabels`.

    Ids may be texts; where no annotation has `iscrowd`, none is a crowd.

    Returns:
        One row an image, in the order of the files, train before val. Ids are the official image
        ids as texts, such as "391895"; paths are such as
        "train2014/COCO_train2014_000000391895.jpg", the names as the files give them.

    Errors are those of all readers (`catwise.data.readers`): a reference to an image or
    category that is not there is a LabelError, splits with other categories are a CategoryError.

    Source: Lin et al., "Microsoft COCO: common objects in context", ECCV 2014; format:
    https://cocodataset.org/#format-data.
    """
    check_choice("year", year, YEARS)
    root = Path(root)
    own = _own_files(root, files)
    check_choice("split", split, (*(own or SPLITS), None))
    check_choice("unannotated", unannotated, ("drop", "negative", "unknown"))
    check_choice("crowd", crowd, ("positive", "unknown", "ignore"))
    paths = _find(root, year, split, own)
    read = {name: load(path, FIELDS) for name, path in paths.items()}
    categories = same_categories(list(read.values()), ("id", "name"))
    ids, splits = unique_images(read)
    folders = {name: "" if own else f"{name}{year}" for name in read}
    parts = [_labels(file, folders[name], crowd) for name, file in read.items()]
    images, codes, bare = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:3])
    counts: dict[str, Any] = {
        "files": relative(paths, root.parent if root.is_file() else root),
        "images_in_files": {name: int((splits == name).sum()) for name in read},
        "annotations": sum(len(file.column("annotations", "iscrowd")) for file in read.values()),
        "crowd_annotations": sum(part.n_crowds for part in parts),
        "labels_of_crowds_only": sum(part.n_crowd_labels for part in parts),
        "images_without_annotations": int(bare.sum()),
    }
    notes = (NOTE, CROWD_NOTES[crowd], UNANNOTATED_NOTES[unannotated])
    if unannotated == "unknown":
        codes[bare] = UNKNOWN
    elif unannotated == "drop":
        if bare.all():
            raise LabelError(
                f"no image of {' and '.join(map(str, read.values()))} has an annotation.",
                remedy='unannotated="negative" if there are no instances in the images',
            )
        ids, images, codes, splits = (array[~bare] for array in (ids, images, codes, splits))
    images_read = Images(ids, images, splits)
    labels = codes, categories
    root = root.parent if root.is_file() else root
    return dataset("coco", root, labels, images_read, counts=counts, notes=notes, storage=storage)


class _Labels(NamedTuple):
    """Of one split: (N,) paths, (N, C) codes, (N,) has no annotation, and what was met."""

    paths: NDArray[np.str_]
    codes: Codes
    bare: NDArray[np.bool_]
    n_crowds: int
    n_crowd_labels: int


def _labels(file: AnnotationFile, folder: str, crowd: str) -> _Labels:
    rank = file.rank("categories")
    rows = file.positions("annotations", "image_id", "images")
    columns = rank[file.positions("annotations", "category_id", "categories")]
    crowded = file.numbers("annotations", "iscrowd")
    file.check("annotations", "iscrowd", (crowded == 0) | (crowded == 1), "0 or 1")
    shape, crowds = (len(file.ids("images")), len(rank)), crowded == 1
    single, crowd_only = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    single[rows[~crowds], columns[~crowds]] = True
    crowd_only[rows[crowds], columns[crowds]] = True
    crowd_only &= ~single
    codes = np.where(single, np.int8(POSITIVE), np.int8(NEGATIVE))
    if crowd != "ignore":
        codes[crowd_only] = POSITIVE if crowd == "positive" else UNKNOWN
    bare = np.bincount(rows, minlength=shape[0]) == 0
    paths = file.paths("file_name", file.column("images", "file_name"), folder)
    return _Labels(paths, codes, bare, int(crowds.sum()), int(crowd_only.sum()))


def _own_files(root: Path, files: Mapping[str, str] | None) -> dict[str, str] | None:
    """The files of the splits that were named, or the root itself; None: those of the release."""
    if root.is_file():
        if files:
            raise ConfigError("files are looked for in a folder.", found=f"the file '{root}'")
        return {"": root.name}
    return dict(files) if files else None


def _find(
    root: Path, year: int, split: str | None, own: Mapping[str, str] | None
) -> dict[str, Path]:
    """The annotation file of each split to read; `own` ones have other names."""
    if own is not None:
        folder = root.parent if root.is_file() else root
        wanted = own if split is None else {split: own[split]}
        return {name: find(folder, [file], "file of annotations") for name, file in wanted.items()}
    names = {name: [f"annotations/instances_{name}{year}.json"] for name in SPLITS}
    other = next(y for y in YEARS if y != year)
    other_there = list(root.glob(f"annotations/instances_*{other}.json"))
    archive = f"unpack annotations_trainval{year}.zip there"
    return find_splits(
        root,
        names,
        split,
        f"file of annotations of COCO {year}",
        remedy=f"year={other}, whose files are there" if other_there else archive,
    )


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """An annotation file in the format of COCO: some fields of its lists, as Arrow columns."""

    path: Path
    columns: Mapping[tuple[str, str], Any]

    def __str__(self) -> str:
        return f"'{self.path}'"

    def place(self, part: str, i: object, field: str) -> str:
        """Where a value is, for people."""
        return f"{self}, {part}[{i}].{field}"

    def column(self, part: str, field: str) -> Any:
        """The values of a field, as an Arrow array."""
        return self.columns[part, field]

    def numbers(self, part: str, field: str) -> Rows:
        """The values of a field of whole numbers."""
        column = self.column(part, field)
        if str(column.type) == "string":
            return np.array(column.to_pylist(), dtype=np.str_)
        result: Rows = column.to_numpy(zero_copy_only=False)
        return result

    def check(self, part: str, field: str, good: NDArray[np.bool_], expected: str) -> None:
        """Refuse values that are not marked as good."""
        refuse_wrong(
            self.column(part, field),
            good,
            lambda i: self.place(part, i, field),
            f"{self} has an unrecognised value of {field}.",
            expected=expected,
            error=LabelError,
        )

    def ids(self, part: str) -> Rows:
        """The ids of a list's entries; repeats are refused."""
        ids = self.numbers(part, "id")
        what = f"{self} has a duplicate id of {part}."
        error = CategoryError if part == "categories" else IdError
        if len(np.unique(ids)) < len(ids):
            refuse_repeats(ids, lambda i: f"{part}[{i}]", what, error=error)
        return ids

    def rank(self, part: str) -> Rows:
        """The place of each entry in the order of the ids."""
        ranks = np.empty(len(self.ids(part)), dtype=np.int64)
        ranks[np.argsort(self.ids(part))] = np.arange(len(ranks))
        return ranks

    def positions(
        self, part: str, field: str, of: str, values: tuple[Rows, Rows] | None = None
    ) -> Rows:
        """The entry of the list `of` that each value of a field names by its id."""
        ids = self.ids(of)
        order = np.argsort(ids, kind="stable")
        wanted, entries = values or (self.numbers(part, field), None)
        at: Rows = order[np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)]
        refuse_wrong(
            wanted,
            ids[at] == wanted,
            lambda i: self.place(part, i if entries is None else entries[i], field),
            f"{self} refers to an entry of {of} that is not there.",
            expected=f"one of the {len(ids):,} ids of {of}",
            error=LabelError,
        )
        return at

    def paths(self, field: str, names: Any, folder: str) -> NDArray[np.str_]:
        """Image paths from names in a folder; refuses repeats and what leads out of it."""
        from pyarrow import compute

        bad = compute.fill_null(compute.match_substring_regex(names, NO_PATH), fill_value=True)
        good = ~bad.to_numpy(zero_copy_only=False)
        self.check("images", field, good, "the name of an image inside the data set's folder")
        paths = texts_of(compute.binary_join_element_wise(folder, names, "/") if folder else names)
        refuse_repeats(paths, lambda i: f"images[{i}]", f"{self} gives two images one path.")
        return paths


def unique_images(
    files: Mapping[str, AnnotationFile],
) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """The ids of the images of all splits, and the split of each; refuses one in two splits."""
    parts = [file.ids("images") for file in files.values()]
    ids = np.concatenate(parts)

    def place(file: AnnotationFile) -> Callable[[int], str]:
        return lambda i: file.place("images", i, "id")

    refuse_repeats(
        ids,
        places([(len(p), place(f)) for p, f in zip(parts, files.values(), strict=True)]),
        "an image is in two splits.",
        expected="every image in one split",
    )
    return ids.astype(np.str_), np.repeat(list(files), list(map(len, parts)))


def same_categories(files: Sequence[AnnotationFile], fields: Sequence[str]) -> tuple[str, ...]:
    """The names of the categories in the order of their ids; all files must have the same."""
    tables: list[list[tuple[Any, ...]]] = []
    for file in files:
        file.ids("categories")
        columns = [file.column("categories", field).to_pylist() for field in fields]
        tables.append(sorted(zip(*columns, strict=True)))
    for file, table in zip(files, tables, strict=True):
        if table != tables[0]:
            here, there = set(table), set(tables[0])
            one = sorted(here ^ there)[0]
            raise CategoryError(
                f"{files[0]} and {file} have different categories.",
                found=f"{one} in the {'second' if one in here else 'first'} only "
                f"({len(here ^ there):,} such)",
                remedy="read the splits of one release",
            )
    names = tuple(str(row[list(fields).index("name")]) for row in tables[0])
    if not all(map(str.strip, names)):
        raise CategoryError(f"{files[0]} has a category without a name.")
    what = f"{files[0]} has a duplicate name of a category."
    refuse_repeats(names, lambda j: f"category {j}", what, error=CategoryError)
    return names


def load(path: Path, fields: Mapping[str, Mapping[str, str]]) -> AnnotationFile:
    """Read some fields of a JSON file of lists of objects; all others are skipped."""
    table = _parsed(path, fields)
    columns: dict[tuple[str, str], Any] = {}
    for part, kinds in fields.items():
        entries = table.column(part).combine_chunks()
        if entries.null_count:
            raise LabelError(
                f"'{path}' has no list {part!r}.",
                remedy="give the file of instances: files of image infos have no labels",
            )
        arrays = entries.flatten().flatten()
        if not len(arrays[0]) and part != "annotations":
            raise LabelError(f"'{path}' has no {part}.", expected=f"at least one entry in {part}")
        for (name, kind), array in zip(kinds.items(), arrays, strict=True):
            if kind == "flag" and array.null_count == len(array):
                array = array.fill_null(0)  # noqa: PLW2901
            _refuse_missing(path, part, name, array, KINDS[kind])
            columns[part, name] = array
    return AnnotationFile(path, columns)


def _parsed(path: Path, fields: Mapping[str, Mapping[str, str]]) -> Any:
    """The file as an Arrow table of one row, a column for each list."""
    import pyarrow as pa

    packed = packing_of(path) is not None
    content = read_bytes(path, "an object of lists") if packed else b""
    size = len(content) if packed else _size_of(path)
    first: Exception | None = None
    for texts in ((), ("image",), ("category",), ("image", "category")):
        try:  # texts are tried where numbers do not fit
            source = pa.BufferReader(content) if packed else str(path)
            table = _parsed_as(source, size, fields, texts)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            first = first or error
        except OSError as error:
            raise unreadable(path, error) from error
        else:
            if table.num_rows != 1:
                raise _fault(path, fields, f"{table.num_rows} JSON values")
            return table
        if not _kinds(fields) & {"image", "category"}:
            break
    raise _fault(path, fields, str(first)) from first


def _kinds(fields: Mapping[str, Mapping[str, str]]) -> set[str]:
    return {kind for kinds in fields.values() for kind in kinds.values()}


def _size_of(path: Path) -> int:
    """The size of a file that is parsed at once."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
    if not 0 < size <= MAX_TEXT:
        raise LabelError(
            f"'{path}' is too large." if size else f"'{path}' is empty.",
            found=f"{size:,} bytes",
            expected=f"1 to {MAX_TEXT:,}",
            remedy="write what it holds as a table or JSON lines: these are read in parts"
            if size
            else AGAIN,
        )
    return size


def _parsed_as(
    source: Any, size: int, fields: Mapping[str, Mapping[str, str]], texts: Sequence[str]
) -> Any:
    """The same, where ids of the kinds `texts` are texts."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    types = {"number": pa.int64(), "text": pa.string(), "numbers": pa.list_(pa.int64())}
    types |= dict.fromkeys(("image", "category", "flag"), pa.int64())
    types |= dict.fromkeys(texts, pa.string())
    schema = pa.schema(
        (part, pa.list_(pa.struct([(name, types[kind]) for name, kind in kinds.items()])))
        for part, kinds in fields.items()
    )
    table = arrow_json.read_json(
        source,
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=size + 1),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=schema,
            newlines_in_values=True,
            unexpected_field_behavior="ignore",
        ),
    ).combine_chunks()
    table.validate(full=True)
    return table


def _refuse_missing(path: Path, part: str, name: str, array: Any, expected: str) -> None:
    """Refuse entries without a field."""
    what = f"'{path}' has an entry of {part} without {name!r}."
    place = f"{part}[{{}}]".format
    refuse_wrong(array, array.is_valid(), place, what, expected=expected, error=LabelError)


def _fault(path: Path, fields: Mapping[str, Mapping[str, str]], seen: str) -> LabelError:
    """The error for a file that the fast parser gave up on: what is wrong, and where."""
    known = set(fields) | {name for kinds in fields.values() for name in kinds}

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if name in known}

    try:
        content = read_json(path, "an object of lists", keep=keep)
    except LabelError as error:
        return error
    wrong = _wrong_type(path, fields, content)
    damaged = LabelError(f"'{path}' is damaged.", found=" ".join(seen.split()), remedy=AGAIN)
    return damaged if wrong is None else wrong


def _wrong_type(
    path: Path, fields: Mapping[str, Mapping[str, str]], content: Any
) -> LabelError | None:
    """The error for the first value of another type than it should be, or None."""
    if not isinstance(content, dict):
        return _typed(f"'{path}'", content, "an object")
    texts = {}
    for kind, part in (("image", "images"), ("category", "categories")):
        listed = content.get(part)
        first = next(iter(listed), None) if isinstance(listed, list) else None
        if isinstance(first, dict) and isinstance(first.get("id"), str):
            texts[kind] = "text"
    for part, kinds in fields.items():
        entries = content.get(part)
        if entries is not None and not isinstance(entries, list):
            return _typed(f"'{path}', {part}", entries, "a list of objects")
        for i, entry in enumerate(entries or ()):
            if entry is not None and not isinstance(entry, dict):
                return _typed(f"'{path}', {part}[{i}]", entry, "an object")
            for name, kind in kinds.items():
                value = (entry or {}).get(name)
                if value is not None and not _fits(value, texts.get(kind, kind)):
                    return _typed(f"'{path}', {part}[{i}].{name}", value, KINDS[kind])
    return None


def _fits(value: Any, kind: str) -> bool:
    if kind == "numbers":
        return isinstance(value, list) and all(v is None or _fits(v, "number") for v in value)
    if kind == "text":
        return isinstance(value, str)
    return type(value) is int and INT64.min <= value <= INT64.max


def _typed(where: str, value: Any, expected: str) -> LabelError:
    found = json.dumps(value)
    return LabelError(
        f"{where} is not what it should be.",
        found=found if len(found) <= SHOWN else f"{found[:SHOWN]}…",
        expected=expected,
    )
