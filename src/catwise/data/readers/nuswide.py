r"""NUS-WIDE: 269,648 Flickr images, 81 concepts, in the folders of the official release.

Read are `Groundtruth/AllLabels` and `Groundtruth/TrainTestLabels` (a text file a concept, one 0
or 1 a line), `ImageList` (paths with Windows' backslashes) and `ConceptsList/Concepts81.txt`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from catwise.data.dataset import Dataset
from catwise.data.files import listed, read_whole, unreadable
from catwise.errors import CategoryError, IdError, LabelError, check_choice, nearest
from catwise.labels.codes import POSITIVE
from catwise.labels.core import PartialLabels
from catwise.labels.names import category_names

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from catwise.labels.codes import Codes

__all__ = ["read_nuswide"]

CONCEPT_LISTS: Final = ("ConceptsList/Concepts81.txt", "Concepts81.txt")
SPLITS: Final = {"train": "Train", "test": "Test"}
ZERO, ONE, NEWLINE = b"01\n"


def read_nuswide(
    root: str | os.PathLike[str],
    *,
    split: Literal["train", "test"] | None = None,
    unannotated: Literal["keep", "drop"] = "keep",
    groups: Literal["photo"] | None = None,
    images: str = "Flickr",
) -> Dataset:
    r"""Read NUS-WIDE from the folders of its release.

    The labels are complete: each concept is positive or negative in every image. Ids are the paths
    of the image list with "/", such as "actor/0001_2124494179.jpg". No image is opened or looked
    for.

    Args:
        root: the folder that holds `Groundtruth`, `ImageList` and `ConceptsList` (or
            `Concepts81.txt` itself).
        split: "train" or "test": from `TrainTestLabels` and the list of that split. None: every
            image, from `AllLabels` and `Imagelist.txt`; which split an image is in is told by the
            two other lists.
        unannotated: what becomes of images without one positive label: "keep" them, negative
            throughout, or "drop" them. They are counted either way.
        groups: "photo": the Flickr photo, the number after the last "_" of the file's name. None:
            no groups.
        images: the folder of the images in `root`.

    Returns:
        The images in the order of their list. `counts` holds "images_listed",
        "images_without_positive", "images_dropped", "photos_listed_twice" and, if split is None,
        "photos_in_two_splits".

    Raises:
        LabelError: If a file is missing or unreadable, holds something else than 0 and 1, or is
            not as long as the image list.
        IdError: If a list names an image twice, or the lists do not name the same images.
        CategoryError: If a label file belongs to no concept of the list.
        ConfigError: If there is no such split, policy or group.

    Source: Chua, Tang, Hong, Li, Luo, Zheng, "NUS-WIDE: a real-world web image database from
    National University of Singapore", CIVR 2009.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name, text in {
    ...         "ConceptsList/Concepts81.txt": "cat\ndog\n",
    ...         "ImageList/TrainImagelist.txt": "pets\\0001_12.jpg\npets\\0002_34.jpg\n",
    ...         "Groundtruth/TrainTestLabels/Labels_cat_Train.txt": "1\n0\n",
    ...         "Groundtruth/TrainTestLabels/Labels_dog_Train.txt": "1\n0\n",
    ...     }.items():
    ...         Path(root, name).parent.mkdir(parents=True, exist_ok=True)
    ...         _ = Path(root, name).write_text(text)
    ...     dataset = read_nuswide(root, split="train", unannotated="drop")
    >>> dataset
    Dataset('nuswide', n_images=1, n_categories=2, splits={'train': 1})
    >>> dataset.labels.ids.tolist(), dataset.counts["images_dropped"]
    (['pets/0001_12.jpg'], 1)
    """
    check_choice("split", split, ("train", "test", None))
    check_choice("unannotated", unannotated, ("keep", "drop"))
    check_choice("groups", groups, ("photo", None))
    folder = Path(root)
    concepts_file, names = _concepts(folder)
    list_file, ids = _image_list(folder, "" if split is None else SPLITS[split])
    if split is None:
        labels_folder, ending = folder / "Groundtruth/AllLabels", ".txt"
        splits = _splits(folder, ids, list_file)
    else:
        labels_folder, ending = folder / "Groundtruth/TrainTestLabels", f"_{SPLITS[split]}.txt"
        splits = np.array([split] * len(ids), dtype=np.str_)
    _check_files(labels_folder, ending, names, concepts_file)
    codes = np.empty((len(ids), len(names)), dtype=np.int8)
    for j, name in enumerate(names):
        codes[:, j] = _column(labels_folder / f"Labels_{name}{ending}", len(ids), list_file)
    photos = _photos(ids, list_file, needed=groups == "photo")
    blank = ~(codes == POSITIVE).any(axis=1)
    counts = {
        "images_listed": len(ids),
        "images_without_positive": int(blank.sum()),
        "images_dropped": int(blank.sum()) if unannotated == "drop" else 0,
        **_photo_counts(photos, splits, across=split is None),
    }
    dataset = Dataset(
        "nuswide",
        folder,
        np.array([f"{images}/{name}" if images else name for name in ids], dtype=np.str_),
        PartialLabels.from_content(
            codes, len(ids), names, ids=ids, groups=photos if groups else None, storage="auto"
        ),
        splits,
        counts,
        _notes(counts, unannotated),
    )
    return dataset.take(np.flatnonzero(~blank)) if unannotated == "drop" else dataset


def _notes(counts: dict[str, int], unannotated: str) -> tuple[str, ...]:
    n = counts["images_without_positive"]
    fate = "left out" if unannotated == "drop" else "negative throughout"
    notes = [
        "Every label is known: 1 in the ground truth is positive, 0 negative.",
        f"{n:,} images without one positive label are {fate}.",
    ]
    if counts["photos_listed_twice"]:
        notes.append(f"{counts['photos_listed_twice']:,} Flickr photos are listed under two paths.")
    if counts.get("photos_in_two_splits"):
        n = counts["photos_in_two_splits"]
        notes.append(f"{n:,} Flickr photos are in train and in test.")
    return tuple(notes)


def _concepts(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """(file, names) of the concepts."""
    paths = [folder / name for name in CONCEPT_LISTS]
    path = next((path for path in paths if path.exists()), paths[0])
    lines = _lines(path)
    seen: dict[str, int] = {}
    for i, name in enumerate(lines, 1):
        first = seen.setdefault(name, i)
        if first != i:
            raise CategoryError(
                f"'{path}' lists a concept twice.", found=f"{name!r} in line {first} and line {i}"
            )
    return path, category_names(lines, len(lines))


def _image_list(folder: Path, prefix: str) -> tuple[Path, NDArray[np.str_]]:
    """(file, ids) of an image list; backslashes become "/"."""
    path = folder / "ImageList" / f"{prefix}Imagelist.txt"
    ids = [line.replace("\\", "/") for line in _lines(path)]
    if len(set(ids)) != len(ids):
        seen: dict[str, int] = {}
        for i, name in enumerate(ids, 1):
            first = seen.setdefault(name, i)
            if first != i:
                raise IdError(
                    f"'{path}' lists an image twice.",
                    found=f"{name!r} in line {first:,} and line {i:,}",
                    expected="every image once",
                )
    return path, np.array(ids, dtype=np.str_)


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without the space around them; only the end may be blank."""
    try:
        lines = [line.strip() for line in _bytes(path).decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise LabelError(
            f"'{path}', line {line:,}: is not UTF-8 text.",
            found=f"byte {error.object[error.start]:#04x}",
        ) from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise LabelError(f"'{path}' is empty.", remedy="download the file again")
    if "" in lines:
        raise LabelError(f"'{path}', line {lines.index('') + 1:,}: is blank.")
    return lines


def _bytes(path: Path) -> bytes:
    try:
        return read_whole(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _splits(folder: Path, ids: NDArray[np.str_], list_file: Path) -> NDArray[np.str_]:
    """The split of each image, from the lists of the splits."""
    where: dict[str, tuple[str, Path]] = {}
    files = []
    for split, prefix in SPLITS.items():
        path, members = _image_list(folder, prefix)
        files.append(path)
        for name in members.tolist():
            if name in where:
                raise IdError(
                    "an image of NUS-WIDE is in two splits.",
                    found=f"{name!r} in '{where[name][1]}' and '{path}'",
                )
            where[name] = split, path
    everyone = ids.tolist()
    missing = [name for name in everyone if name not in where]
    if missing:
        raise IdError(
            f"an image of '{list_file}' is in no list of a split.",
            found=f"{missing[0]!r} in line {everyone.index(missing[0]) + 1:,} "
            f"(first of {len(missing):,})",
            expected="each image in " + " or ".join(f"'{path}'" for path in files),
        )
    if len(where) != len(everyone):
        known = set(everyone)
        beyond = [(name, path) for name, (_, path) in where.items() if name not in known]
        raise IdError(
            f"an image of a split is not in '{list_file}'.",
            found=f"{beyond[0][0]!r} of '{beyond[0][1]}' (first of {len(beyond):,})",
        )
    return np.array([where[name][0] for name in everyone], dtype=np.str_)


def _check_files(folder: Path, ending: str, names: tuple[str, ...], concepts: Path) -> None:
    """Refuse a folder whose label files are not those of the concepts."""
    if not folder.is_dir():
        raise LabelError(
            f"there is no folder '{folder}'.",
            expected=f"{len(names):,} files such as 'Labels_{names[0]}{ending}'",
            remedy="correct the path, or download the ground truth",
        )
    there = {path.name for path in folder.glob(f"Labels_*{ending}")}
    wanted = [f"Labels_{name}{ending}" for name in names]
    missing = [name for name in wanted if name not in there]
    if missing:
        raise LabelError(
            f"'{folder}' has no labels of {len(missing):,} concepts of '{concepts}'.",
            found=f"no {missing[0]!r}{nearest(missing[0], there)}",
            expected="a file for each concept",
        )
    beyond = sorted(there - set(wanted))
    if beyond:
        raise CategoryError(
            f"'{folder}' has labels of {len(beyond):,} concepts that '{concepts}' does not list.",
            found=listed(beyond),
            expected=f"the {len(names):,} concepts of the list",
            remedy="restore the list of concepts, or take the files away",
        )


def _column(path: Path, n: int, list_file: Path) -> Codes:
    """The labels of one concept."""
    raw = _bytes(path).replace(b"\r\n", b"\n").rstrip()
    table = np.frombuffer(raw + b"\n", dtype=np.uint8)
    plain = len(table) % 2 == 0 and bool((table[1::2] == NEWLINE).all())
    values = table[::2] if plain else np.frombuffer(_digits(path, raw), dtype=np.uint8)
    wrong = np.flatnonzero((values != ZERO) & (values != ONE))
    if len(wrong):
        found = bytes(values[wrong[:1]]).decode("latin-1")
        raise _no_label(path, int(wrong[0]) + 1, found)
    if len(values) != n:
        raise LabelError(
            f"'{path}' is not as long as the image list.",
            found=f"{len(values):,} labels, {n:,} images in '{list_file}'",
            expected="a line for each image",
            remedy="download both files again",
        )
    codes: Codes = (values == ONE).astype(np.int8)
    return codes


def _digits(path: Path, raw: bytes) -> bytes:
    """The characters of lines that may have space around them."""
    fields = [line.strip() for line in raw.split(b"\n")] if raw else []
    for i, field in enumerate(fields, 1):
        if field not in (b"0", b"1"):
            raise _no_label(path, i, field.decode("latin-1"))
    return b"".join(fields)


def _no_label(path: Path, line: int, found: str) -> LabelError:
    return LabelError(
        f"'{path}', line {line:,}: no label.",
        found=repr(found) if found else "a blank line",
        expected="0 negative or 1 positive",
    )


def _photos(ids: NDArray[np.str_], list_file: Path, *, needed: bool) -> NDArray[np.str_]:
    """The Flickr photo of each image; "" where the name of the file does not tell it."""
    photos = [name.rsplit("/", 1)[-1].rsplit(".", 1)[0].rpartition("_")[2] for name in ids.tolist()]
    wrong = [i for i, photo in enumerate(photos) if not photo.isdecimal()]
    if wrong and needed:
        raise IdError(
            f"'{list_file}', line {wrong[0] + 1:,}: the name tells no Flickr photo.",
            found=f"{str(ids[wrong[0]])!r} (first of {len(wrong):,})",
            expected="a name such as '0001_2124494179.jpg'",
            remedy="groups=None",
        )
    for i in wrong:
        photos[i] = ""
    return np.array(photos, dtype=np.str_)


def _photo_counts(
    photos: NDArray[np.str_], splits: NDArray[np.str_], *, across: bool
) -> dict[str, int]:
    told = np.flatnonzero(photos != "")
    _, number, copies = np.unique(photos[told], return_inverse=True, return_counts=True)
    counts = {"photos_listed_twice": int((copies > 1).sum())}
    if across:
        trained = np.bincount(number, splits[told] == "train", minlength=len(copies))
        counts["photos_in_two_splits"] = int(((trained > 0) & (trained < copies)).sum())
    return counts
