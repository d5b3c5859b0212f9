"""Visual Attributes in the Wild (VAW): objects, with the attributes they have and have not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import places
from catwise.data.dataset import Dataset
from catwise.data.readers._kit import Images, dataset, describe, distinct, read_json, sparse
from catwise.data.readers.visual_genome import find_images, read_names
from catwise.errors import IdError, LabelError, check_choice, nearest
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN, Rows
from catwise.labels.columns import Columns
from catwise.labels.names import category_names, refuse_repeats

FILES: Final = {
    "train": ("train_part1.json", "train_part2.json"),
    "val": ("val.json",),
    "test": ("test.json",),
}
INDEX: Final = "attribute_index.json"
SIDES: Final = ("positive_attributes", "negative_attributes")
LARGEST: Final = 1e6  # pixels; far beyond any image
CONFLICTS: Final = {
    "unknown": UNKNOWN,
    "uncertain": UNCERTAIN,
    "positive": POSITIVE,
    "negative": NEGATIVE,
}


def read_vaw(
    root: str | os.PathLike[str],
    *,
    split: Literal["train", "val", "test"] | None = None,
    conflicts: Literal["unknown", "uncertain", "positive", "negative", "error"] = "unknown",
    images: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Read the labels of VAW.

    Files are looked for in the folder data of `root`, or in `root` itself: attribute_index.json,
    train_part1.json and train_part2.json, val.json, test.json.

    Args:
        root: the folder of the release, or the one that holds the JSON files.
        split: "train", "val" or "test"; None: all three.
        conflicts: what an attribute is that an instance has both as a positive and as a negative:
            "unknown", "uncertain", "positive" or "negative"; "error" refuses it.
        images: the folder that holds VG_100K and VG_100K_2 of Visual Genome; None: `root`.

    Returns:
        One row an instance, which is an object in an image, in the order of the files. Ids are the
        instance ids, groups the image ids of Visual Genome. Attributes in neither of the lists of
        an instance are unknown. Paths lead to the whole image from `images` and are blank where
        neither folder has it; `read_vaw_instances` gives the boxes to cut out.

    Errors are those of all readers (`catwise.data.readers`): an attribute that is not in the
    index, a conflict that "error" refuses, and `images` that holds neither folder are a LabelError.

    Source: Pham et al., "Learning to predict visual attributes in the wild", CVPR 2021, section 3,
    and the repository adobe-research/vaw_dataset.
    """
    check_choice("conflicts", conflicts, (*CONFLICTS, "error"))
    folder = _folder(Path(root))
    names = read_names(folder / INDEX)
    index = {name: j for j, name in enumerate(names)}
    fields = {"instance_id", "image_id", *SIDES}
    parts = [_Part.read(*one, index) for one in _instances(folder, split, fields)]
    ids, groups = (np.concatenate([part[i] for part in parts]) for i in (2, 3))
    place = places([(len(part.ids), part.place) for part in parts])
    refuse_repeats(ids, place, "duplicate instance_id of VAW.")
    content, counts = _joined(parts, index, conflicts)
    splits = np.repeat([part.split for part in parts], [len(part.ids) for part in parts])
    base = Path(root) if images is None else Path(images)
    files = [f"{group}.jpg" for group in groups.tolist()]
    paths, found, notes = find_images(base, files, required=images is not None)
    n_images = len(set(groups.tolist()))
    n_pairs = len(set(zip(splits.tolist(), groups.tolist(), strict=True)))
    counts = {
        "instances_in_files": {part.path.name: len(part.ids) for part in parts},
        "images": n_images,
        "images_in_two_splits": n_pairs - n_images,
        "instances_without_labels": len(ids) - int((np.bincount(content.rows) > 0).sum()),
        **counts,
        **found,
    }
    notes = [
        "Rows are instances, which are objects in images; groups are the images.",
        "Positives and negatives are explicit; an attribute in neither list is unknown.",
        *notes,
    ]
    if counts["conflicting_labels"]:
        notes.append(f"An attribute that is both positive and negative is read as {conflicts}.")
    images_read = Images(ids, paths, splits, groups)
    labels = content, category_names(names, len(names))
    return dataset("vaw", base, labels, images_read, counts=counts, notes=notes)


class VawInstances(NamedTuple):
    """What the objects are and where, in the order of the rows of `read_vaw`."""

    ids: NDArray[np.str_]  # (N,) instance ids
    boxes: NDArray[np.float64]  # (N, 4) x, y, width, height in pixels of the image
    objects: NDArray[np.str_]  # (N,) names of the objects


def read_vaw_instances(
    root: str | os.PathLike[str], *, split: Literal["train", "val", "test"] | None = None
) -> VawInstances:
    """Ids (N,), boxes (N, 4) of x, y, width, height in pixels, and objects' names (N,) of VAW."""
    fields = {"instance_id", "instance_bbox", "object_name"}
    ids, boxes, objects = [], [], []
    for _, path, found in _instances(_folder(Path(root)), split, fields):
        ids.append(_texts(path, found, "instance_id"))
        objects.append(_texts(path, found, "object_name"))
        for i, one in enumerate(found):
            box = one["instance_bbox"]
            numbers = type(box) is list and len(box) == 4 and {*map(type, box)} <= {int, float}
            if not numbers or not all(abs(number) < LARGEST for number in box):
                raise LabelError(
                    f"{_place(path, found, i)}: instance_bbox is not a box.",
                    found=str(box)[:60],
                    expected="[x, y, width, height]",
                )
        boxes.append(np.array([one["instance_bbox"] for one in found], dtype=np.float64))
    return VawInstances(np.concatenate(ids), np.concatenate(boxes), np.concatenate(objects))


def _folder(root: Path) -> Path:
    """The folder of the JSON files: data in `root` if there is one with the index, or `root`."""
    return root / "data" if (root / "data" / INDEX).is_file() else root


def _instances(
    folder: Path, split: str | None, fields: set[str]
) -> Iterator[tuple[str, Path, list[dict[str, Any]]]]:
    """(split, file, its instances with some of their fields), a file at a time.

    Polygons and what else is not asked for is let go while the file is read: it is most of it.
    """
    check_choice("split", split, (None, *FILES))
    for name in FILES if split is None else (split,):
        for file in FILES[name]:
            path = folder / file
            found = read_json(
                path,
                f"instances of the split {name!r}",
                keep=lambda pairs: {key: value for key, value in pairs if key in fields},
            )
            if not isinstance(found, list) or not found:
                raise LabelError(
                    f"'{path}' is not a list of instances.",
                    found=describe(found) if found else "nothing in it",
                    expected='[{"image_id": …, "instance_id": …}, …]',
                )
            for i, one in enumerate(found):
                if type(one) is not dict or len(one) < len(fields):
                    lacks = type(one) is dict and sorted(fields - one.keys())
                    raise LabelError(
                        f"{_place(path, found, i)}: "
                        + (f"there is no {lacks[0]}." if lacks else "not an object."),
                        found=f"only {sorted(one)}" if lacks else describe(one),
                    )
            yield name, path, found


def _place(path: Path, found: Sequence[Any], i: int) -> str:
    """Where instance i (from 0) is, for people: its number in the file and its id."""
    one = found[i]
    own = one.get("instance_id") if isinstance(one, dict) else None
    named = "" if own is None else f" (instance_id {own!r})"
    return f"'{path}', instance {i + 1:,}{named}"


class _Part(NamedTuple):
    """What one file holds."""

    split: str
    path: Path
    ids: NDArray[np.str_]
    groups: NDArray[np.str_]
    labels: tuple[tuple[Rows, Rows], ...]  # rows and columns of the positives, of the negatives

    def place(self, i: int) -> str:
        """Where instance i is, for people."""
        return f"'{self.path}', instance {i + 1:,}"

    @classmethod
    def read(
        cls, split: str, path: Path, found: Sequence[dict[str, Any]], index: Mapping[str, int]
    ) -> _Part:
        """Turn instances into arrays."""
        sides = tuple(_attributes(path, found, side, index) for side in SIDES)
        ids, groups = (_texts(path, found, key) for key in ("instance_id", "image_id"))
        return cls(split, path, ids, groups, sides)


def _texts(path: Path, found: Sequence[dict[str, Any]], key: str) -> NDArray[np.str_]:
    """A field of every instance as text; ids may be whole numbers."""
    types = {str} if key == "object_name" else {str, int}
    values = [one[key] for one in found]
    if not set(map(type, values)) <= types or "" in values:
        i = next(i for i, value in enumerate(values) if type(value) not in types or value == "")
        named = key == "object_name"
        raise (LabelError if named else IdError)(
            f"{_place(path, found, i)}: {key} is not {'a name' if named else 'an id'}.",
            found=describe(values[i]),
            expected="a text" if named else "a text or a whole number",
        )
    return np.array(list(map(str, values)), dtype=np.str_)


def _attributes(
    path: Path, found: Sequence[dict[str, Any]], side: str, index: Mapping[str, int]
) -> tuple[Rows, Rows]:
    """Rows and columns of the attributes in one of the lists of each instance."""
    lists = [one[side] for one in found]
    if set(map(type, lists)) != {list}:
        i = next(i for i, names in enumerate(lists) if type(names) is not list)
        raise LabelError(
            f"{_place(path, found, i)}: {side} is not a list.",
            found=describe(lists[i]),
            expected="names of attributes",
        )
    names = list(chain.from_iterable(lists))
    if not set(map(type, names)) <= {str} or not index.keys() >= set(names):
        i, name = next(
            (i, name)
            for i, some in enumerate(lists)
            for name in some
            if type(name) is not str or name not in index
        )
        near = nearest(name, index) if type(name) is str else ""
        raise LabelError(
            f"{_place(path, found, i)}: {side} holds an attribute that is not in {INDEX}.",
            found=f"{describe(name)}{near}",
            expected=f"one of its {len(index):,} names",
        )
    rows = np.repeat(np.arange(len(lists)), np.fromiter(map(len, lists), np.int64))
    return rows, np.fromiter(map(index.__getitem__, names), np.int64, len(names))


def _sides(parts: Sequence[_Part]) -> list[list[tuple[Rows, Rows]]]:
    """For positives and for negatives (rows of all files, columns), a pair a file."""
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    return [
        [(part.labels[k][0] + starts[p], part.labels[k][1]) for p, part in enumerate(parts)]
        for k in range(len(SIDES))
    ]


def _joined(
    parts: Sequence[_Part], index: Mapping[str, int], conflicts: str
) -> tuple[Columns, dict[str, Any]]:
    """The labels of all files, and what was met."""
    n_rows = sum(len(part.ids) for part in parts)
    given = [
        np.concatenate([columns * n_rows + rows for rows, columns in side])
        for side in _sides(parts)
    ]
    positive, negative = map(distinct, given)
    both = np.intersect1d(positive, negative, assume_unique=True)
    if len(both) and conflicts == "error":
        raise _conflict(parts, index, both, n_rows)
    keys = distinct(np.concatenate([positive, negative]))
    codes = np.full(len(keys), NEGATIVE, dtype=np.int8)
    codes[np.searchsorted(keys, positive)] = POSITIVE
    codes[np.searchsorted(keys, both)] = CONFLICTS.get(conflicts, UNKNOWN)
    counts = {
        "conflicting_labels": len(both),
        "repeated_labels": sum(map(len, given)) - len(positive) - len(negative),
    }
    return sparse(keys, codes, n_rows, len(index)), counts


def _conflict(
    parts: Sequence[_Part], index: Mapping[str, int], both: Rows, n_rows: int
) -> LabelError:
    """The error for the first instance with an attribute in both lists."""
    columns, rows = np.divmod(both, n_rows)
    at = int(np.argmin(rows))
    row, name = int(rows[at]), list(index)[int(columns[at])]
    place = places([(len(part.ids), part.place) for part in parts])(row)
    one = str(np.concatenate([part.ids for part in parts])[row])
    return LabelError(
        f"{place} (instance_id {one!r}): an attribute is both positive and negative.",
        found=f"{name!r} (first of {len(both):,})",
        remedy="conflicts='unknown'",
    )
