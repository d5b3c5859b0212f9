r"""NUS-WIDE: 269,648 Flickr images, 81 concepts, in the folders of the official release.

Read are `Groundtruth/AllLabels` and `Groundtruth/TrainTestLabels` (a text file a concept, one 0
or 1 a line), `ImageList` (paths with Windows' backslashes) and `ConceptsList/Concepts81.txt`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import places, refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import listed
from catwise.data.readers._kit import AGAIN, Images, Listing, dataset, find, read_bytes, read_list
from catwise.errors import CategoryError, LabelError, check_choice, nearest
from catwise.labels.codes import POSITIVE, Codes
from catwise.labels.names import category_names, refuse_repeats

CONCEPT_LISTS: Final = ("ConceptsList/Concepts81.txt", "Concepts81.txt")
REMEDY: Final = "correct the root, or download the file into it"
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
            image, from `AllLabels` and `Imagelist.txt`; which split an image is in follows from the
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

    Errors are those of all readers (`catwise.data.readers`): a file that is not as long as the
    image list is a LabelError, lists that do not name the same images are an IdError, a label file
    of no concept a CategoryError.

    Source: Chua, Tang, Hong, Li, Luo, Zheng, "NUS-WIDE: a real-world web image database from
    National University of Singapore", CIVR 2009.
    """
    check_choice("split", split, ("train", "test", None))
    check_choice("unannotated", unannotated, ("keep", "drop"))
    check_choice("groups", groups, ("photo", None))
    folder = Path(root)
    concepts = _lines(find(folder, CONCEPT_LISTS, "list of concepts", remedy=REMEDY))
    concepts.refuse_repeats("concept", error=CategoryError)
    names = category_names(concepts.names, len(concepts.names))
    listing = _image_list(folder, "" if split is None else SPLITS[split])
    ids = np.array(listing.names)
    if split is None:
        labels_folder, ending = folder / "Groundtruth/AllLabels", ".txt"
        splits = _splits(folder, listing)
    else:
        labels_folder, ending = folder / "Groundtruth/TrainTestLabels", f"_{SPLITS[split]}.txt"
        splits = np.array([split] * len(ids), dtype=np.str_)
    _check_files(labels_folder, ending, names, concepts.path)
    codes = np.empty((len(ids), len(names)), dtype=np.int8)
    for j, name in enumerate(names):
        codes[:, j] = _column(labels_folder / f"Labels_{name}{ending}", len(ids), listing.path)
    photos = _photos(listing, needed=groups == "photo")
    blank = ~(codes == POSITIVE).any(axis=1)
    counts = {
        "images_listed": len(ids),
        "images_without_positive": int(blank.sum()),
        "images_dropped": int(blank.sum()) if unannotated == "drop" else 0,
        **_photo_counts(photos, splits, across=split is None),
    }
    paths = [f"{images}/{name}" if images else name for name in listing.names]
    images_read = Images(ids, paths, splits, photos if groups else None)
    labels = codes, names
    read = dataset(
        "nuswide", folder, labels, images_read, counts=counts, notes=_notes(counts, unannotated)
    )
    return read.take(np.flatnonzero(~blank)) if unannotated == "drop" else read


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


def _image_list(folder: Path, prefix: str) -> Listing:
    """An image list; backslashes become "/"."""
    listing = _lines(folder / "ImageList" / f"{prefix}Imagelist.txt")
    listing = listing._replace(names=[name.replace("\\", "/") for name in listing.names])
    listing.refuse_repeats()
    return listing


def _lines(path: Path) -> Listing:
    """The lines of a text file, of which only the end may be blank."""
    listing = read_list(path, "a name in each line")
    blank = [i for i, line in enumerate(listing.lines, 1) if i != line]
    if blank:
        raise LabelError(f"'{path}', line {blank[0]:,}: is blank.", remedy=AGAIN)
    return listing


def _splits(folder: Path, everyone: Listing) -> NDArray[np.str_]:
    """The split of each image, from the lists of the splits."""
    lists = {split: _image_list(folder, prefix) for split, prefix in SPLITS.items()}
    members = [name for one in lists.values() for name in one.names]
    place = places([(len(one.names), one.place) for one in lists.values()])
    refuse_repeats(members, place, "an image of NUS-WIDE is in two splits.")
    where = {name: split for split, one in lists.items() for name in one.names}
    refuse_wrong(
        everyone.names,
        [name in where for name in everyone.names],
        everyone.place,
        f"an image of '{everyone.path}' is in no list of a split.",
        expected="each image in " + " or ".join(f"'{one.path}'" for one in lists.values()),
    )
    known = set(everyone.names)
    what = f"an image of a split is not in '{everyone.path}'."
    refuse_wrong(members, [name in known for name in members], place, what)
    return np.array([where[name] for name in everyone.names], dtype=np.str_)


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
    raw = read_bytes(path, "0 or 1 in each line").replace(b"\r\n", b"\n").rstrip()
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
        f"'{path}', line {line:,}: is not a label.",
        found=repr(found) if found else "a blank line",
        expected="0 negative or 1 positive",
    )


def _photos(listing: Listing, *, needed: bool) -> NDArray[np.str_]:
    """The Flickr photo of each image; "" where the name of the file does not tell it."""
    stems = [name.rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in listing.names]
    photos = np.array([stem.rpartition("_")[2] for stem in stems], dtype=np.str_)
    told = np.char.isdecimal(photos)
    if needed:
        refuse_wrong(
            listing.names,
            told,
            listing.place,
            f"'{listing.path}' has a name that tells no Flickr photo.",
            expected="a name such as '0001_2124494179.jpg'",
            remedy="groups=None",
        )
    return np.where(told, photos, "")


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
