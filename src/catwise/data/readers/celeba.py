"""CelebA: 202,599 face images, 40 attributes, as released or as the CSV files on Kaggle.

Read are `Anno/list_attr_celeba.txt`, `Eval/list_eval_partition.txt` and `Anno/identity_CelebA.txt`,
or `list_attr_celeba.csv` and `list_eval_partition.csv`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import Place, refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import open_table, truncated
from catwise.data.readers._kit import (
    AGAIN,
    Images,
    dataset,
    decode,
    find,
    in_column,
    matched,
    read_bytes,
    read_columns,
)
from catwise.data.source import texts_of
from catwise.data.table import read_label_table
from catwise.errors import CategoryError, LabelError, check_choice
from catwise.labels.codes import NEGATIVE, POSITIVE, Codes
from catwise.labels.encodings import Encoding
from catwise.labels.names import refuse_repeats

SPLITS: Final = {"0": "train", "1": "valid", "2": "test"}
FILES: Final = {
    "attributes": ("Anno/list_attr_celeba", "list_attr_celeba"),
    "partition": ("Eval/list_eval_partition", "list_eval_partition"),
}
IDENTITY: Final = ("Anno/identity_CelebA.txt", "identity_CelebA.txt")
ENCODING: Final = Encoding(
    "celeba", "CelebA: 1 positive, -1 negative", ((1.0, POSITIVE), (-1.0, NEGATIVE))
)


def read_celeba(
    root: str | os.PathLike[str],
    *,
    split: Literal["train", "valid", "test"] | None = None,
    groups: Literal["identity"] | None = "identity",
    images: str = "Img/img_align_celeba",
) -> Dataset:
    r"""Read CelebA from the folders of its release, or from the CSV files on Kaggle.

    The labels are complete: each attribute is positive (1) or negative (-1) in every image. Ids
    are the names of the files, such as "000001.jpg". No image is opened or looked for.

    Args:
        root: the folder that holds `Anno` and `Eval`, or the files themselves. Where a text file
            and its CSV variant are both there, the text file is read.
        split: the split to read: 0, 1 and 2 of the partition are "train", "valid" and "test".
            None: every image.
        groups: "identity": the person, from `identity_CelebA.txt`, which Kaggle does not have.
            None: no groups.
        images: the folder of the images in `root`; on Kaggle "img_align_celeba/img_align_celeba".

    Returns:
        The images in the order of the attribute file. `counts` holds "images_listed" and, with
        groups, "identities" and "identities_in_two_splits"; all three before the split is taken.

    Errors are those of all readers (`catwise.data.readers`): a file that is not as long as it
    says is a LabelError, two files that do not name the same images an IdError.

    Source: Liu, Luo, Wang, Tang, "Deep learning face attributes in the wild", ICCV 2015;
    https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html.
    """
    check_choice("split", split, (*SPLITS.values(), None))
    check_choice("groups", groups, ("identity", None))
    folder = Path(root)
    attributes, categories, codes = _attributes(_find(folder, "attributes"))
    ids = attributes.ids
    numbers = _partition(_find(folder, "partition")).values_for(attributes)
    splits = np.array([SPLITS[number] for number in numbers.tolist()], dtype=np.str_)
    counts: dict[str, Any] = {"images_listed": len(splits)}
    notes = ["Every label is known: 1 is positive, -1 negative."]
    people = None
    if groups is not None:
        remedy = "download the file, or groups=None"
        path = find(folder, IDENTITY, "file of CelebA's identities", remedy=remedy)
        people = _identities(path).values_for(attributes)
        counts |= _identity_counts(people, splits)
        n, many = counts["identities_in_two_splits"], counts["identities"]
        notes.append(f"The group of an image is its identity; {n:,} of {many:,} are in two splits.")
    images_read = Images(
        ids, [f"{images}/{name}" if images else name for name in ids], splits, people
    )
    labels = codes, categories
    read = dataset("celeba", folder, labels, images_read, counts=counts, notes=notes)
    return read if split is None else read.split(split)


class _Column(NamedTuple):
    """A value for each image, and where it is."""

    path: Path
    ids: NDArray[np.str_]
    values: NDArray[Any]
    place: Place

    def values_for(self, images: _Column) -> NDArray[Any]:
        """The values in the order of other images, which must be the same."""
        if np.array_equal(self.ids, images.ids):
            return self.values
        for mine, theirs in ((self, images), (images, self)):
            refuse_wrong(
                mine.ids,
                np.isin(mine.ids, theirs.ids),
                mine.place,
                f"'{mine.path}' has images that '{theirs.path}' does not have.",
                expected="the same images in both",
            )
        return self.values[matched(images.ids, self.ids)]

    def checked(self, good: NDArray[np.bool_], expected: str) -> _Column:
        """The column; refuses values that are not good, and images that repeat."""
        what = f"'{self.path}' has an unrecognised value."
        refuse_wrong(self.values, good, self.place, what, expected=expected, error=LabelError)
        refuse_repeats(self.ids, self.place, f"'{self.path}' has a duplicate image.")
        return self


def _find(folder: Path, what: str) -> Path:
    """The text file, or else its CSV variant."""
    names = [f"{stem}{suffix}" for suffix in (".txt", ".csv") for stem in FILES[what]]
    remedy = "correct the root, or download the file into it"
    return find(folder, names, f"file of CelebA's {what}", remedy=remedy)


def _attributes(path: Path) -> tuple[_Column, tuple[str, ...], Codes]:
    """The images, the names of the attributes, and (N, C) codes."""
    if path.suffix == ".csv":
        labels = read_label_table(path, encoding=ENCODING, id_column="image_id")
        ids = np.array(labels.ids)
        return _Column(path, ids, ids, open_table(path).place), labels.categories, labels.codes
    count, names, body = _head(path, _text(path))
    table = _fields(path, body, 2, names, "int8")
    codes = np.empty((table.num_rows, len(names)), dtype=np.int8)
    good = np.ones(table.num_rows, dtype=np.bool_)
    for j in range(len(names)):
        values = table.column(j + 1).to_numpy()
        good &= (values == 1) | (values == -1)
        codes[:, j] = np.where(values == 1, POSITIVE, NEGATIVE)
    if not good.all():
        raise _fault(path, body, 2, names, labels=True)
    if count != len(codes):
        raise LabelError(
            f"'{path}' is not as long as its first line says.",
            found=f"{len(codes):,} images",
            expected=f"{count:,}",
            remedy=AGAIN,
        )
    return _column(path, table, 2).checked(good, ""), names, codes


def _head(path: Path, raw: bytes) -> tuple[int, tuple[str, ...], bytes]:
    """(number of images, names, the rest) of the attribute file."""
    lines = raw.split(b"\n", 2)
    first = lines[0].strip().decode("utf-8", "replace")
    if not (first.isascii() and first.isdecimal()):
        raise LabelError(
            f"'{path}', line 1: is not the number of images.",
            found=repr(first[:60]),
            expected="the number of images alone, then a line of names",
        )
    if len(lines) < 3 or not lines[2].strip():
        raise truncated(path, "there is no image after the line of names")
    names = lines[1].decode("utf-8", "replace").split()
    if not names:
        raise LabelError(f"'{path}', line 2: has no names of attributes.", found="a blank line")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise CategoryError(f"'{path}', line 2: names an attribute twice.", found=repr(twice[0]))
    return int(first), tuple(names), lines[2]


def _partition(path: Path) -> _Column:
    """0, 1 or 2 for each image."""
    if path.suffix == ".csv":
        file = open_table(path)
        texts, _ = read_columns(file, {"image_id": "the images", "partition": "the splits"})
        ids, values = (texts_of(array) for array in texts.values())
        column = _Column(path, ids, values, in_column(file, "partition"))
    else:
        column = _column(path, _fields(path, _text(path), 0, ["partition"], "string"), 0)
    return column.checked(np.isin(column.values, list(SPLITS)), "0 train, 1 valid or 2 test")


def _identities(path: Path) -> _Column:
    """The number of the person in each image."""
    column = _column(path, _fields(path, _text(path), 0, ["identity"], "string"), 0)
    return column.checked(np.char.isdecimal(column.values), "the number of a person")


def _column(path: Path, table: Any, skip: int) -> _Column:
    """The first two fields of each line."""
    ids, values = (np.array(table.column(k).to_pylist(), dtype=np.str_) for k in (0, 1))
    return _Column(path, ids, values, lambda i: f"'{path}', line {i + 1 + skip:,}")


def _identity_counts(people: NDArray[np.str_], splits: NDArray[np.str_]) -> dict[str, int]:
    _, number = np.unique(people, return_inverse=True)
    _, part = np.unique(splits, return_inverse=True)
    pairs = np.unique(number * len(SPLITS) + part)
    in_splits = np.bincount(pairs // len(SPLITS))
    return {
        "identities": len(in_splits),
        "identities_in_two_splits": int((in_splits > 1).sum()),
    }


def _text(path: Path) -> bytes:
    """A text file with plain line ends and single spaces, no space around its lines."""
    raw = read_bytes(path, "a line for each image")
    raw = raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\t", b" ")
    while b"  " in raw:
        raw = raw.replace(b"  ", b" ")
    return raw.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip(b" ")


def _fields(path: Path, body: bytes, skip: int, columns: Sequence[str], kind: str) -> Any:
    """The fields of each line as an Arrow table: the image, then columns of one type."""
    import pyarrow as pa
    from pyarrow import csv

    names = [str(k) for k in range(len(columns) + 1)]
    kinds = {name: pa.type_for_alias(kind if k else "string") for k, name in enumerate(names)}
    lines = body.rstrip()
    if b"\n\n" not in b"\n" + lines:
        try:
            return csv.read_csv(
                pa.BufferReader(lines),
                read_options=csv.ReadOptions(column_names=names, use_threads=False),
                parse_options=csv.ParseOptions(delimiter=" ", quote_char=False),
                convert_options=csv.ConvertOptions(
                    column_types=kinds, null_values=[], strings_can_be_null=False
                ),
            )
        except pa.ArrowException as error:
            raise _fault(path, body, skip, columns, labels=kind == "int8") from error
    raise _fault(path, body, skip, columns, labels=kind == "int8")


def _fault(
    path: Path, body: bytes, skip: int, columns: Sequence[str], *, labels: bool
) -> LabelError:
    """The error for the first line that is not as it should be."""
    lines = body.rstrip(b"\n").split(b"\n")
    for i, line in enumerate(lines):
        where = f"'{path}', line {i + 1 + skip:,}"
        try:
            fields = decode(path, line, above=i + skip).split()
        except LabelError as error:
            return error
        found = f"{len(fields)} of {len(columns) + 1} fields"
        if i + 1 == len(lines) and len(fields) <= len(columns) and not body.endswith(b"\n"):
            return truncated(path, f"line {i + 1 + skip:,} has {found}")
        if len(fields) != len(columns) + 1:
            return LabelError(f"{where}: not as many fields as there should be.", found=found)
        for name, field in zip(columns, fields[1:], strict=True):
            if labels and field not in ("1", "-1"):
                return LabelError(
                    f"{where}, column {name!r}: is not a label.",
                    found=repr(field),
                    expected=ENCODING.text,
                )
    return LabelError(f"'{path}' is damaged.", remedy=AGAIN)
