"""Open Images: image-level labels that people have verified, in the layouts of V3, V6 and V7.

A verified label says that a category is in the image (confidence 1) or is not (confidence 0). All
other categories of the image are unknown. Labels that a model has made are never hard labels.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catwise.data.checks import refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, listed, no_rows, open_table
from catwise.data.readers._kit import AGAIN, Images, dataset, distinct, find, read_text, sparse
from catwise.errors import (
    CategoryError,
    ConfigError,
    IdError,
    LabelError,
    check_choice,
    check_rules,
    nearest,
)
from catwise.labels.codes import POSITIVE, UNCERTAIN, Codes, Rows
from catwise.labels.columns import Storage
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import ENCODINGS, UNFIT, encode_values, raw_value
from catwise.labels.names import category_names as checked_names

HUMAN_SOURCES: Final = ("verification", "crowdsource-verification")
"""Where verified labels come from: annotators, and the public's Crowdsource app."""

Numbers: TypeAlias = NDArray[np.uint64]
Labelled: TypeAlias = tuple[Rows, Codes]  # category × images + row, ascending, and its code

COLUMNS: Final = ("ImageID", "LabelName", "Confidence", "Source")
SHIFT: Final = 2  # makes a code a number from 0 to 3
HEX: Final = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)  # and 16 of them are an id
NIBBLES: Final = np.full(256, 255, dtype=np.uint8)
NIBBLES[HEX] = np.arange(16)
N_TRAINABLE: Final = {"v3": 5_000, "v6": 9_605}
LISTS: Final = ("trainable", "boxable", "all")
TRAIN_IMAGES: Final = "oidv6-{split}-images-with-labels-with-rotation.csv"
FILES: Final = {
    "human": ("{split}/annotations-human.csv", "-{short}-annotations-human-imagelabels.csv"),
    "machine": ("{split}/annotations-machine.csv", "-{short}-annotations-machine-imagelabels.csv"),
    "images": ("{split}/images.csv", TRAIN_IMAGES, "{split}-images-with-rotation.csv"),
    "trainable": ("classes-trainable.txt", "-classes-trainable.txt"),
    "boxable": ("classes-bbox.txt", "-class-descriptions-boxable.csv"),
    "all": ("class-descriptions.csv", "-class-descriptions.csv"),
}
"""Role → name in V3, names since V6; one that begins with "-" has the release's prefix, or none."""


def read_openimages(
    root: str | os.PathLike[str],
    *,
    version: Literal["v3", "v6", "v7"] = "v3",
    split: Literal["train", "validation", "test"] = "train",
    sources: Sequence[str] | None = HUMAN_SOURCES,
    categories: Literal["trainable", "boxable", "all"] | Sequence[str] = "trainable",
    category_names: Literal["mid", "display"] = "mid",
    conflict: Literal["uncertain", "error", "positive"] = "uncertain",
    images: Literal["labelled", "all"] = "labelled",
    machine: float | None = None,
    machine_as: Literal["uncertain", "positive"] = "uncertain",
    image_folder: str | None = None,
    storage: Storage = "columns",
) -> Dataset:
    """Read the image-level labels of one split of Open Images.

    The ids are Open Images' own, 16 hexadecimal digits; rows are in their order. Time and memory
    grow with the labels, not with images × categories.

    Args:
        root: the folder of the release. V3: it, or its "2017_11" (V2: "2017_07"), holds
            "train/annotations-human.csv" and so on. V6, V7: it, or its "train", holds
            "oidv6-train-annotations-human-imagelabels.csv", or the name without "oidv6-".
        version: which layout.
        split: which one.
        sources: labels of which sources count; None: of all in the file. Others are left out.
        categories: "trainable", "boxable" or "all" classes, in the order of the release's list; or
            MIDs such as "/m/01g317" and display names. Others are left out.
        category_names: "mid", or "display", where classes of one display name get their MID put
            behind it: "Bishop (/m/01b7b)".
        conflict: what an image is in a category where one label says yes and another says no.
        images: "labelled": only images that have such a label; "all": all in the release's list.
        machine: the least confidence of machine labels that count where no person has said
            anything, over 0 and up to 1. None: they are not read. They never add images.
        machine_as: what such a machine label is.
        image_folder: where paths say that the images are, such as "train"; None: paths are empty.
        storage: as for `PartialLabels`.

    Returns:
        The images, without groups. `counts` tells what was left out, repeated or contradictory.

    Errors are those of all readers (`catwise.data.readers`): labels that conflict where that
    is an error are a LabelError; an image with labels that is not in the list is an IdError, a
    display name of several classes a CategoryError.

    Source: Kuznetsova et al., The Open Images Dataset V4, IJCV 2020, section 2; Krasin et al.,
        OpenImages, 2017, https://github.com/openimages/dataset/blob/main/READMEV3.md (V3).
    """
    check_choice("version", version, ("v3", "v6", "v7"))
    check_choice("split", split, ("train", "validation", "test"))
    check_choice("category_names", category_names, ("mid", "display"))
    check_choice("conflict", conflict, ("uncertain", "error", "positive"))
    check_choice("images", images, ("labelled", "all"))
    check_choice("machine_as", machine_as, ("uncertain", "positive"))
    several = sources is None or (not isinstance(sources, str) and len(sources) > 0)
    rules = {"machine: over 0, up to 1": machine is None or 0 < machine <= 1}
    rules["sources: one name or more"] = several
    check_rules("options of Open Images", {"machine": machine, "sources": sources}, rules)
    release = _Release(Path(root), version, split)
    names = _categories(release, categories, category_names)
    human = _read_human(release, sources)
    ids = _row_ids(release, human, images)
    pair, codes = _settled(release, human, ids, conflict)
    if machine is not None:
        code = POSITIVE if machine_as == "positive" else UNCERTAIN
        pair, codes = _added(release, ids, (pair, codes), machine, code)
    content = sparse(pair, codes, len(ids), len(names))
    release.counts["categories_without_label"] = int((np.diff(content.starts) == 0).sum())
    images_read = _images(_id_texts(ids), image_folder, split)
    told: dict[str, Any] = {
        "counts": release.counts,
        "notes": _notes(release, conflict, images, machine_as),
    }
    name, labels = f"openimages_{version}", (content, names)
    return dataset(name, release.root, labels, images_read, storage=storage, checked=True, **told)


def _images(ids: NDArray[np.str_], folder: str | None, split: str) -> Images:
    paths = np.zeros(len(ids), "U1")
    if folder is not None:
        paths = np.char.add(np.char.add(folder.rstrip("/") + "/", ids), ".jpg")
    return Images(ids, paths, np.full(len(ids), split))


def label_count_groups(labels: PartialLabels, n_groups: int = 5) -> NDArray[np.int64]:
    """The group of each category, (C,) int64, when they are sorted by how many labels they have.

    Group 0 has the fewest known labels. There are `n_groups`, from 1 to the number of categories
    (else ConfigError), as equal in size as can be; of categories with equally many labels the
    earlier is sorted first. The field puts the 5,000 trainable classes of Open Images V3 into five
    groups of 1,000, by the training labels.

    Source: Chong et al., category-wise fine-tuning, 2025, mAP per group of Open Images V3.

    >>> labels = PartialLabels([[1, -1, 0, 1], [0, -2, 1, -1]])
    >>> label_count_groups(labels, 2)
    array([1, 0, 1, 0])
    """
    n = labels.n_categories
    if not 1 <= n_groups <= n:
        raise ConfigError(f"{n:,} categories cannot be put into {n_groups} groups.")
    groups = np.empty(n, dtype=np.int64)
    groups[np.argsort(labels.counts().known, kind="stable")] = np.arange(n) * n_groups // n
    return groups


class _Release:
    """One split of a release: its files, the categories asked for, and what was counted."""

    def __init__(self, root: Path, version: str, split: str) -> None:
        self.root, self.version, self.split = root, version, split
        self.used: dict[str, str] = {}
        self.mids: list[str] = []
        self.counts: dict[str, Any] = {}

    def file(self, role: str) -> Path:
        """The file of a role: the first that is there."""
        old = self.version == "v3"
        short = "val" if (self.version, self.split) == ("v7", "validation") else self.split
        names = []
        for name in FILES[role][:1] if old else FILES[role][1:]:
            if name.startswith("-"):
                names.append(f"oid{self.version}{name.format(short=short)}")
            names.append(name.removeprefix("-").format(short=self.split, split=self.split))
        folders = ("", "2017_11/", "2017_07/") if old else ("", f"{self.split}/")
        path = find(
            self.root,
            [f"{folder}{name}" for folder in folders for name in names],
            f"file of Open Images {self.version.upper()}",
            remedy="correct root, or download the file into it",
        )
        self.used[role] = path.relative_to(self.root).as_posix()
        return path


def _categories(release: _Release, wanted: str | Sequence[str], kind: str) -> tuple[str, ...]:
    """The names of the categories, whose MIDs are put into the release."""
    shown: dict[str, str] = {}
    if not isinstance(wanted, str) or kind == "display":
        path = release.file("all")
        classes = _classes(path, described=True)
        often = Counter(classes.values())
        shown = {m: text if often[text] == 1 else f"{text} ({m})" for m, text in classes.items()}
    if isinstance(wanted, str):
        check_choice("categories", wanted, LISTS)
        release.mids = list(_classes(release.file(wanted), described=wanted == "all"))
    else:
        release.mids = _picked(list(wanted), shown, path)
    names = [shown.get(mid, mid) if kind == "display" else mid for mid in release.mids]
    return checked_names(names, len(names))


def _classes(path: Path, *, described: bool) -> dict[str, str]:
    """MID → name (the MID where it has none), in the order of a file with or without a header."""
    classes: dict[str, str] = {}
    reader = csv.reader(read_text(path, "classes").splitlines(keepends=True), strict=True)
    try:
        for i, fields in enumerate(reader):
            mid, name = ([text.strip() for text in fields] + ["", ""])[:2]
            if not fields or (i == 0 and mid.lower() in ("labelname", "id")):
                continue
            where = f"'{path}', line {reader.line_num:,}"
            if not mid.startswith("/") or (described and len(fields) != len((mid, name))):
                right = "a MID, such as '/m/01g317'" + " and its name" * described
                raise LabelError(f"{where}: is not a class.", found=f"{fields}", expected=right)
            if mid in classes:
                raise CategoryError(f"{where}: the class {mid!r} is listed a second time.")
            classes[mid] = name or mid
    except csv.Error as error:
        raise LabelError(f"'{path}' is not a list of classes.", found=str(error)) from error
    if not classes:
        raise LabelError(f"'{path}' lists no classes.", remedy=AGAIN)
    return classes


def _picked(wanted: list[str], shown: dict[str, str], path: Path) -> list[str]:
    """The MIDs of categories given by MID or display name."""
    mid_of = {name: mid for mid, name in shown.items()}
    picked: list[str] = []
    for one in wanted:
        mid = one if one in shown else mid_of.get(one)
        if mid is None:
            alike = [name for name in mid_of if name.startswith(f"{one} (/")]
            hint = listed(alike) if alike else nearest(str(one), [*shown, *mid_of]).strip(" ()")
            raise CategoryError(f"'{path}' has {len(alike) or 'no'} classes {one!r}.", remedy=hint)
        if mid in picked:
            raise CategoryError("a category is asked for twice.", found=repr(one))
        picked.append(mid)
    if not picked:
        raise CategoryError("no categories are asked for.", expected="MIDs or display names")
    return picked


class _Batch(NamedTuple):
    """Some rows of a file: the first one's number, images, and the other columns."""

    file: TableFile
    start: int
    image: Numbers
    coded: dict[str, tuple[list[str], Rows]]  # different texts, and which of them each row has

    def refuse(self, column: str, wrong: NDArray[np.bool_], expected: str) -> None:
        """Refuse the first row that is marked."""
        if bool(wrong.any()):
            texts, index = self.coded[column]

            def place(row: int) -> str:
                return self.file.place(self.start + row, column)

            what = f"{self.file} has an unrecognised value of {column}."
            values = np.array(texts, dtype=object)[index]
            refuse_wrong(values, ~wrong, place, what, expected=expected, error=LabelError)

    def categories(self, mids: list[str]) -> Rows:
        """The category of each row, −1 where it is not asked for."""
        place = {mid: j for j, mid in enumerate(mids)}
        names, index = self.coded["LabelName"]
        wrong = np.array([not name.startswith("/") for name in names])[index]
        self.refuse("LabelName", wrong, "a MID, such as '/m/01g317'")
        return np.array([place.get(name, -1) for name in names], dtype=np.int64)[index]


def _batches(file: TableFile, columns: Sequence[str]) -> Iterator[_Batch]:
    for name in columns:
        file.require(name, "the image ids" if name == "ImageID" else f"the {name.lower()}")
    start = 0
    for batch in file.batches(columns, coded=columns[1:]):
        if batch.num_rows:
            arrays = [(name, batch.column(name)) for name in columns[1:]]
            coded = {
                name: (array.dictionary.to_pylist(), array.indices.to_numpy().astype(np.int64))
                for name, array in arrays
            }
            yield _Batch(file, start, _id_numbers(batch.column("ImageID"), file, start), coded)
        start += batch.num_rows
    if not start:
        raise no_rows(str(file))


def _id_numbers(array: Any, file: TableFile, start: int) -> Numbers:
    """Ids of 16 hexadecimal digits as 64-bit numbers."""
    _, ends, data = array.buffers()
    edges = np.frombuffer(ends, np.int32)[array.offset : array.offset + len(array) + 1]
    if bool((np.diff(edges) == len(HEX)).all()):
        digits = NIBBLES[np.frombuffer(data, np.uint8)[edges[0] : edges[-1]]]
        if int(digits.max()) < len(HEX):
            return ((digits[0::2] << 4) | digits[1::2]).view(">u8").astype(np.uint64)
    good = set(HEX.tobytes().decode())
    texts = enumerate(array.to_pylist())
    row, text = next((i, t) for i, t in texts if len(t) != len(HEX) or not set(t) <= good)
    where = file.place(start + row, "ImageID")
    right = "16 hexadecimal digits in lower case; spreadsheets damage them"
    raise IdError(f"unrecognised image id in {where}.", found=repr(text), expected=right)


def _id_texts(numbers: Numbers) -> NDArray[np.str_]:
    """64-bit numbers as ids of 16 hexadecimal digits."""
    single = numbers.astype(">u8").view(np.uint8)
    digits = np.stack([HEX[single >> 4], HEX[single & 15]], axis=1).astype(np.uint32)
    return digits.reshape(-1).view("U16")


class _Human(NamedTuple):
    """Verified labels: image, and category × 4 + code + 2, of each; all images of the file."""

    file: TableFile
    image: list[Numbers]
    meaning: list[NDArray[np.int32]]
    seen: list[Numbers]


def _read_human(release: _Release, sources: Sequence[str] | None) -> _Human:
    file, counts = open_table(release.file("human")), release.counts
    human = _Human(file, [], [], [])
    met: Counter[str] = Counter()
    n_other = 0
    for batch in _batches(file, COLUMNS):
        category = batch.categories(release.mids)
        (names, index), (texts, which) = batch.coded["Source"], batch.coded["Confidence"]
        met.update(dict(zip(names, np.bincount(index, minlength=len(names)).tolist(), strict=True)))
        here = np.array([sources is None or name in sources for name in names])[index]
        codes = encode_values(np.array(texts, dtype=object), ENCODINGS["complete"])[which]
        batch.refuse("Confidence", here & (codes == UNFIT), "0 for absent or 1 for present")
        n_other += int(np.count_nonzero(here & (category < 0)))
        here &= category >= 0
        human.seen.append(distinct(batch.image))
        human.image.append(batch.image[here])
        human.meaning.append((category[here] * 4 + codes[here] + SHIFT).astype(np.int32))
    missing = sorted(set(sources or ()) - {*met, *HUMAN_SOURCES})
    if missing or not any(map(len, human.image)):
        what = f"source {missing[0]!r}" if missing else "sources and categories asked for"
        found = ", ".join(f"{name!r} ({n:,})" for name, n in met.most_common(8))
        raise LabelError(f"{file} has no label of the {what}.", found=f"labels of {found}")
    used = {name: n for name, n in met.items() if sources is None or name in sources}
    counts |= {"label_rows": sum(met.values()), "label_rows_by_source": used}
    counts["label_rows_of_other_sources"] = {n: met[n] for n in met if n not in used}
    counts["label_rows_of_other_categories"] = n_other
    return human


def _row_ids(release: _Release, human: _Human, images: str) -> Numbers:
    """The images of the rows, ascending."""
    seen, ids = (distinct(np.concatenate(part)) for part in (human.seen, human.image))
    without = len(seen) - len(ids)
    if images == "all":
        labelled, ids = ids, _listed_images(release, seen, human.file)
        without = len(ids) - len(labelled)
    release.counts |= {"images": len(ids), "images_without_label": without}
    return ids


def _listed_images(release: _Release, seen: Numbers, labels: TableFile) -> Numbers:
    """The images of the split in the release's list."""
    file, parts, n_all = open_table(release.file("images")), [], 0
    for batch in _batches(file, ["ImageID", "Subset"]):
        n_all += len(batch.image)
        texts, index = batch.coded["Subset"]
        parts.append(batch.image[np.array([text == release.split for text in texts])[index]])
    ids, times = np.unique(np.concatenate(parts), return_counts=True)
    twice, absent = ids[times > 1], np.setdiff1d(seen, ids, assume_unique=True)
    for wrong, table, what in (
        (twice, file, f"{file} lists an image twice."),
        (absent, labels, f"an image with labels is not in the list {file}."),
    ):
        if len(wrong):
            places = [table.place(row, "ImageID") for row in _rows_of(table, wrong[0])[:2]]
            found = f"{_id_texts(wrong[:1])[0]} in {' and '.join(places)} (first of {len(wrong):,})"
            raise IdError(what, found=found, remedy="images='labelled' does without the list")
    release.counts["images_of_other_subsets"] = n_all - len(ids)
    return ids


def _rows_of(file: TableFile, image: np.uint64, mid: str | None = None) -> list[int]:
    """The rows of a file that are about an image (and category): for errors."""
    rows: list[int] = []
    for batch in _batches(file, ["ImageID", "LabelName"] if mid else ["ImageID"]):
        here = batch.image == image
        for texts, index in batch.coded.values():
            here &= np.array([text == mid for text in texts])[index]
        rows += (np.flatnonzero(here) + batch.start).tolist()
    return rows


def _settled(release: _Release, human: _Human, ids: Numbers, conflict: str) -> Labelled:
    """One code for each image and category."""
    image, meaning = np.concatenate(human.image), np.concatenate(human.meaning)
    del human.image[:], human.meaning[:]
    order = np.argsort(image, kind="stable")  # ids are found many times faster in order
    key, meaning = np.searchsorted(ids, image[order]), meaning[order]
    del image, order
    key += np.multiply(meaning >> 2, len(ids), dtype=np.int64)
    key <<= 2
    key |= meaning & 3
    key.sort()
    new = np.append(True, (key[1:] ^ key[:-1]) > 3)
    low, high = key[new], key[np.append(new[1:], True)]
    pair, codes, both = low >> 2, ((high & 3) - SHIFT).astype(np.int8), low != high
    if conflict == "error" and bool(both.any()):
        category, row = divmod(int(pair[np.argmax(both)]), len(ids))
        name, mid = _id_texts(ids[row : row + 1])[0], release.mids[category]
        rows = _rows_of(human.file, ids[row], mid)[:4]
        places = " and ".join(human.file.place(i, "Confidence") for i in rows)
        raise LabelError(
            f"an image has contradictory labels in the category {mid!r}.",
            found=f"{name} in {places} (first of {np.count_nonzero(both):,})",
            remedy="conflict='uncertain' or conflict='positive'",
        )
    if conflict == "uncertain":
        codes[both] = UNCERTAIN  # otherwise positive, which is sorted last
    release.counts["conflicting_labels"] = int(np.count_nonzero(both))
    release.counts["repeated_labels"] = int(np.count_nonzero(key[1:] == key[:-1]))
    return pair, codes


def _added(release: _Release, ids: Numbers, known: Labelled, least: float, code: int) -> Labelled:
    """Labels with those of the machine where nobody has said anything."""
    pair, codes = known
    file, parts, n_rows, n_low = open_table(release.file("machine")), [pair[:0]], 0, 0
    for batch in _batches(file, COLUMNS):
        category = batch.categories(release.mids)
        texts, index = batch.coded["Confidence"]
        plain = [raw_value(text) for text in texts]
        values = np.array([v if isinstance(v, float) else np.nan for v in plain])[index]
        batch.refuse("Confidence", ~((values >= 0) & (values <= 1)), "a number from 0 to 1")
        row = np.minimum(np.searchsorted(ids, batch.image), len(ids) - 1)
        used = (values >= least) & (category >= 0) & (ids[row] == batch.image)
        parts.append(category[used] * len(ids) + row[used])
        n_rows, n_low = n_rows + len(values), n_low + int(np.count_nonzero(values < least))
    n_found = sum(map(len, parts))
    new = np.setdiff1d(distinct(np.concatenate(parts)), pair, assume_unique=True)
    release.counts["machine_labels"] = {
        "rows": n_rows,
        "under_threshold": n_low,
        "of_other_images_or_categories": n_rows - n_low - n_found,
        "repeated_or_verified": n_found - len(new),
        "used": len(new),
    }
    pair = np.concatenate([pair, new])
    order = np.argsort(pair, kind="stable")
    return pair[order], np.concatenate([codes, np.full(len(new), code, np.int8)])[order]


def _notes(release: _Release, conflict: str, images: str, machine_as: str) -> tuple[str, ...]:
    """What the labels are, as sentences."""
    counts, files, n = release.counts, ", ".join(release.used.values()), len(release.mids)
    official = N_TRAINABLE.get(release.version, n) if "trainable" in release.used else n
    conflicts, without = counts["conflicting_labels"], counts["images_without_label"]
    machine, kept = counts.get("machine_labels", {}).get("used"), {"all": "kept"}
    said = (
        (f"0 and 1 were verified by people; other categories are unknown. Read from {files}.", 1),
        (f"{n:,} classes are listed, officially {official:,}.", n != official),
        (f"{conflicts:,} contradictory labels count as {conflict}.", conflicts),
        (f"{without:,} images without a label are {kept.get(images, 'left out')}.", without),
        (f"{machine or 0:,} labels are by a model and count as {machine_as}.", machine),
    )
    return tuple(note for note, true in said if true)
