"""LVIS: photographs of MS-COCO with instances of over 1,200 categories, most of them unknown.

Each category is labelled in some images only. There it is either annotated or verified to be
absent; in all other images nothing is known of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.data.dataset import Dataset
from catwise.data.readers._kit import Images, dataset, distinct, find_splits, relative, sparse
from catwise.data.readers.coco import (
    KINDS,
    SPLITS,
    AnnotationFile,
    load,
    same_categories,
    unique_images,
)
from catwise.errors import LabelError, check_choice
from catwise.labels.codes import NEGATIVE, POSITIVE, Rows
from catwise.labels.columns import Columns, Storage

VERSIONS: Final = ("v1", "v0.5")
CATEGORY_FIELDS: Final = {"id": "number", "name": "text", "synset": "text", "frequency": "text"}
FIELDS: Final = {
    "images": {
        "id": "number",
        "coco_url": "text",
        "neg_category_ids": "numbers",
        "not_exhaustive_category_ids": "numbers",
    },
    "annotations": {"image_id": "number", "category_id": "number"},
    "categories": CATEGORY_FIELDS,
}
SHARED: Final = ("id", "name", "synset")
"""What the categories of all files of a release have in common."""
FREQUENCIES: Final = ("r", "c", "f")
URL: Final = r"^\w+://[^?#]*/(?P<path>[^/?#]+/[^/?#]+)$"
NOTES: Final = (
    "An annotated category is positive, also where not all of its instances are annotated.",
    "A category that the image lists as verified to be absent is negative.",
    "All other categories are unknown.",
)
CONFLICT_NOTES: Final = {
    "positive": "A category both annotated and listed as absent is positive.",
    "unknown": "A category both annotated and listed as absent is unknown.",
}


class LvisCategory(NamedTuple):
    """A category of LVIS."""

    id: int  # the official number
    name: str
    synset: str  # of WordNet; it tells categories apart across releases, which ids do not
    frequency: str  # "r", "c" or "f": in 1 to 10, 11 to 100 or more images of the train split


def read_lvis(
    root: str | os.PathLike[str],
    *,
    version: Literal["v1", "v0.5"] = "v1",
    split: Literal["train", "val"] | None = None,
    conflict: Literal["error", "positive", "unknown"] = "error",
    storage: Storage = "auto",
) -> Dataset:
    """Read what is known of the categories of LVIS.

    A category is positive where it is annotated, negative where the image lists it as verified to
    be absent (neg_category_ids), and unknown in all other images. Where only some of its instances
    are annotated (not_exhaustive_category_ids), it is positive still; a category that is listed
    there without any annotation is unknown, also if it is listed as absent as well. Categories
    are ordered by their ids. All images are kept, those of which nothing is known too.

    Args:
        root: the folder that holds lvis_v1_train.json and so on, itself or in annotations/; the
            images of COCO 2017 are in train2017/ and val2017/ in it. They are not opened.
        version: "v1" (1,203 categories) or "v0.5" (1,230).
        split: "train" or "val"; None: every split whose file is there. The images of val of v1
            are in both of COCO's folders.
        conflict: a category both annotated and listed as absent: "error", "positive" or
            "unknown".
        storage: as for `PartialLabels`; "auto" keeps columns, as under two labels in a hundred
            are known.

    Returns:
        One row an image, in the order of the files, train before val. Ids are the official image
        ids as texts, which are those of COCO; paths are the ends of coco_url, such as
        "train2017/000000391895.jpg".

    Errors are those of all readers (`catwise.data.readers`): labels that conflict are a
    LabelError, splits with other categories a CategoryError, two copies of a file a ConfigError.

    Source: Gupta, Dollár and Girshick, "LVIS: a dataset for large vocabulary instance
    segmentation", CVPR 2019 (the design as a federated data set); format:
    https://www.lvisdataset.org/dataset.
    """
    check_choice("version", version, VERSIONS)
    check_choice("split", split, (*SPLITS, None))
    check_choice("conflict", conflict, ("error", "positive", "unknown"))
    root = Path(root)
    files = _find(root, version, split)
    read = {name: load(path, FIELDS) for name, path in files.items()}
    categories = same_categories(list(read.values()), SHARED)
    known = _categories(next(iter(read.values())))
    ids, splits = unique_images(read)
    paths = np.concatenate([_paths(file) for file in read.values()])
    met: Counter[str] = Counter()
    parts = [_entries(file, conflict, met) for file in read.values()]
    frequencies = Counter(category.frequency for category in known)
    counts = {
        "files": relative(files, root),
        "images_in_files": {name: int((splits == name).sum()) for name in read},
        "categories_by_frequency": {name: frequencies[name] for name in FREQUENCIES},
        **met,
    }
    more = [CONFLICT_NOTES[conflict]] if met["annotated_and_negative"] else []
    images_read = Images(ids, paths, splits)
    labels = (
        _columns(parts, len(known), [len(file.ids("images")) for file in read.values()]),
        categories,
    )
    return dataset(
        "lvis", root, labels, images_read, counts=counts, notes=(*NOTES, *more), storage=storage
    )


def read_lvis_categories(
    root: str | os.PathLike[str],
    *,
    version: Literal["v1", "v0.5"] = "v1",
    split: Literal["train", "val"] | None = None,
) -> tuple[LvisCategory, ...]:
    """The categories, in the order of :func:`read_lvis`; without a split of train, else of val."""
    check_choice("version", version, VERSIONS)
    check_choice("split", split, (*SPLITS, None))
    path = next(iter(_find(Path(root), version, split).values()))
    file = load(path, {"categories": CATEGORY_FIELDS})
    same_categories([file], SHARED)
    return _categories(file)


def _find(root: Path, version: str, split: str | None) -> dict[str, Path]:
    """The annotation file of each split to read."""
    files = {name: f"lvis_{version}_{name}.json" for name in SPLITS}
    names = {name: (f"annotations/{file}", file) for name, file in files.items()}
    others = sorted({p.name for p in [*root.glob("lvis_*.json"), *root.glob("*/lvis_*.json")]})
    return find_splits(
        root,
        names,
        split,
        f"file of annotations of LVIS {version}",
        alone="remove one",
        found=", ".join(others) or None,
        remedy=f"unpack lvis_{version}_{split or 'train'}.json.zip there",
    )


def _categories(file: AnnotationFile) -> tuple[LvisCategory, ...]:
    """The categories of a file, ordered by id."""
    columns = [file.column("categories", field).to_pylist() for field in LvisCategory._fields]
    file.check("categories", "frequency", np.isin(columns[-1], FREQUENCIES), "'r', 'c' or 'f'")
    return tuple(sorted(map(LvisCategory._make, zip(*columns, strict=True))))


def _paths(file: AnnotationFile) -> NDArray[np.str_]:
    """The folder and name of each image, out of its address."""
    from pyarrow import compute

    found = compute.extract_regex(file.column("images", "coco_url"), URL)
    return file.paths("coco_url", compute.struct_field(found, "path"), "")


class _Keys(NamedTuple):
    """Sorted keys of the labels of one file: category position × images + image position."""

    positive: Rows
    negative: Rows


def _entries(file: AnnotationFile, conflict: str, met: Counter[str]) -> _Keys:
    """The labels of one file; what is met is added to the counts."""
    n_images = len(file.ids("images"))
    rank = file.rank("categories")
    rows = file.positions("annotations", "image_id", "images")
    annotated = rank[file.positions("annotations", "category_id", "categories")] * n_images + rows
    listed = []
    for field in ("neg_category_ids", "not_exhaustive_category_ids"):
        values, images = _lists(file, field)
        at = file.positions("images", field, "categories", (values, images))
        listed.append(distinct(rank[at] * n_images + images))
    positive, (negative, partial) = distinct(annotated), listed
    both = np.intersect1d(positive, negative, assume_unique=True)
    if len(both) and conflict == "error":
        i = int(np.flatnonzero(annotated == both[0])[0])
        raise LabelError(
            f"{file.place('images', both[0] % n_images, 'neg_category_ids')} lists a category as "
            "absent that is annotated.",
            found=f"category {file.numbers('annotations', 'category_id')[i]} in annotations[{i}] "
            f"(first of {len(both):,})",
            expected="categories that are not in the image",
            remedy='conflict="positive" or conflict="unknown"',
        )
    bare = np.setdiff1d(partial, positive, assume_unique=True)
    doubted = np.intersect1d(bare, negative, assume_unique=True)
    met["annotations"] += len(rows)
    met["annotated_and_negative"] += len(both)
    met["negative_and_not_exhaustive"] += len(doubted)
    met["not_exhaustive_positives"] += len(partial) - len(bare)
    met["not_exhaustive_without_annotation"] += len(bare)
    negative = np.setdiff1d(negative, np.union1d(both, doubted), assume_unique=True)
    if conflict == "unknown":
        positive = np.setdiff1d(positive, both, assume_unique=True)
    has_label = np.zeros(n_images, dtype=bool)
    has_label[positive % n_images] = has_label[negative % n_images] = True
    met["images_without_known_labels"] += int((~has_label).sum())
    return _Keys(positive, negative)


def _lists(file: AnnotationFile, field: str) -> tuple[Rows, Rows]:
    """Every value of a field of lists, and the image that it belongs to."""
    array = file.column("images", field)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    images = np.repeat(np.arange(len(lengths)), lengths)
    values = array.flatten()
    if values.null_count:
        i = values.is_null().index(value=True).as_py()
        raise LabelError(
            f"{file.place('images', images[i], field)} is not what it should be.",
            found="a null in the list",
            expected=KINDS["numbers"],
        )
    return values.to_numpy(zero_copy_only=False), images


def _columns(parts: Sequence[_Keys], n_categories: int, n_images: Sequence[int]) -> Columns:
    """The labels of all files, the images of one below those of the other."""
    keys, codes = [], []
    base, n_rows = 0, sum(n_images)
    for part, n in zip(parts, n_images, strict=True):
        for some, code in ((part.positive, POSITIVE), (part.negative, NEGATIVE)):
            keys.append(some // n * n_rows + some % n + base)
            codes.append(np.full(len(some), code, dtype=np.int8))
        base += n
    key = np.concatenate(keys)
    order = np.argsort(key, kind="stable")
    return sparse(key[order], np.concatenate(codes)[order], n_rows, n_categories)
