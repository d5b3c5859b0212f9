"""Open Images: verified labels in the layouts of V3, V6 and V7, and what can be wrong with them."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers.openimages import label_count_groups, read_openimages
from catwise.errors import CategoryError, ConfigError, IdError, LabelError
from catwise.labels import PartialLabels

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER = "ImageID,Source,LabelName,Confidence"
HUMAN, CROWD = "verification", "crowdsource-verification"
A, B, C, D = "000002b66c9c498e", "000026e7ee790996", "f0000e7ee790996a", "fffffffffffffff0"
CAT, DOG, BISHOP, PIECE, CAR = "/m/01yrx", "/m/0bt9lr", "/m/01b7b", "/m/027k49j", "/g/11bc5"
TRAINABLE = [DOG, CAT, PIECE]
NAMES = {CAT: "Cat", DOG: "Dog", BISHOP: "Bishop", PIECE: "Bishop", CAR: '"Car, old"'}
LABELS = [
    (B, HUMAN, CAT, "1"),
    (B, CROWD, DOG, "0"),
    (A, HUMAN, PIECE, "0.0"),
    (A, HUMAN, CAR, "1"),  # not trainable
    (C, HUMAN, CAR, "0"),  # an image without a trainable label
    (A, CROWD, CAT, "1.0"),
    (A, HUMAN, CAT, "0"),  # contradicts the line before
    (B, CROWD, CAT, "1"),  # repeats the first line
    (D, "machine-made", DOG, "0.7"),
    (D, HUMAN, DOG, "1"),
]
CODES = {A: [-1, -2, 0], B: [0, 1, -1], D: [1, -1, -1]}
COUNTS = {"label_rows": 10, "images": 3, "images_without_label": 1} | {
    "label_rows_by_source": {HUMAN: 6, CROWD: 3},
    "label_rows_of_other_sources": {"machine-made": 1},
    "label_rows_of_other_categories": 2,
}
COUNTS |= {"conflicting_labels": 1, "repeated_labels": 1, "categories_without_label": 0}
MACHINE = [  # B, CAT is verified too; C and the last have no such label; CAR is not trainable
    (image, "machine", mid, value)
    for image, mid, value in (
        *((A, DOG, "0.9"), (B, CAT, "0.6"), (B, PIECE, "0.5"), (B, PIECE, "0.8")),
        *((C, CAT, "1"), (D, CAR, "0.9"), ("f" * 16, DOG, "1")),
    )
]


def table(rows: Iterable[tuple[str, ...]], header: str = HEADER) -> str:
    return "".join(f"{line}\n" for line in [header, *map(",".join, rows)])


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_v3(root: Path, labels=LABELS, *, split: str = "train", below: str = "") -> Path:
    """A miniature of V3: no header in the lists of classes."""
    folder = root / below
    write(folder / split / "annotations-human.csv", table(labels))
    write(folder / split / "annotations-machine.csv", table(MACHINE))
    images = [(i, split, "http://example.org/o.jpg", '"a, b\nc"') for i in ("0" * 16, A, B, C, D)]
    write(folder / split / "images.csv", table(images, "ImageID,Subset,OriginalURL,Title"))
    write(folder / "classes-trainable.txt", "".join(f"{mid}\n" for mid in TRAINABLE))
    write(folder / "classes-bbox.txt", f"{CAT}\n{CAR}\n")
    write(folder / "class-descriptions.csv", "".join(f"{m},{n}\n" for m, n in NAMES.items()))
    return root


def write_v6(root: Path, split: str, *, version: str = "v6", old: bool = False) -> Path:
    """A miniature of V6 or V7: all in one folder, with headers."""
    late = f"oid{version}-"
    short = "val" if (version, split) == ("v7", "validation") else split
    head = split if old else late + short
    write(root / f"{head}-annotations-human-imagelabels.csv", table(LABELS))
    write(root / f"{head}-annotations-machine-imagelabels.csv", table(MACHINE))
    write(root / f"{late}classes-trainable.txt", "".join(f"{mid}\n" for mid in TRAINABLE))
    described = table(NAMES.items(), "LabelName,DisplayName")
    write(root / f"{late}class-descriptions.csv", described)
    boxable = table([(CAT, "Cat"), (CAR, NAMES[CAR])], "LabelName,DisplayName")
    write(root / f"{late}class-descriptions-boxable.csv", boxable)
    images = [("1" * 16, "other", "0.0"), *((i, split, "90.0") for i in (D, C, B, A))]
    name = "oidv6-train-images-with-labels" if split == "train" else f"{split}-images"
    write(root / f"{name}-with-rotation.csv", table(images, "ImageID,Subset,Rotation"))
    return root


def check(dataset, codes=CODES, categories=TRAINABLE) -> None:
    assert dataset.labels.ids.tolist() == list(codes)
    assert dataset.labels.categories == tuple(categories)
    np.testing.assert_array_equal(dataset.labels.codes, list(codes.values()))


@pytest.mark.parametrize("below", ["", "2017_11", "2017_07"])
def test_v3(tmp_path, below):
    """V3 in its own folder, in the parent's, and in the folder of V2's archives."""
    dataset = read_openimages(write_v3(tmp_path, below=below))
    check(dataset)
    assert (dataset.name, dataset.root) == ("openimages_v3", tmp_path)
    assert (dataset.paths.tolist(), dataset.splits.tolist()) == ([""] * 3, ["train"] * 3)
    assert dataset.groups is None
    assert (dataset.labels.storage, dataset.labels.entries(0)[1].dtype) == ("columns", np.int8)
    assert dataset.counts == COUNTS
    front = f"{below}/" if below else ""
    files = f"{front}classes-trainable.txt, {front}train/annotations-human.csv"
    assert dataset.notes == (
        f"0 and 1 were verified by people; other categories are unknown. Read from {files}.",
        "3 classes are listed, officially 5,000.",
        "1 contradictory labels count as uncertain.",
        "1 images without a label are left out.",
    )


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("version", ["v6", "v7"])
def test_v6_and_v7(tmp_path, version, split):
    """The names of V6 and V7, in one folder or in the split's, with V5's names for validation."""
    old = version == "v6" and split != "train"
    write_v6(tmp_path, split, version=version, old=old)
    options = {"version": version, "split": split}
    dataset = read_openimages(tmp_path, **options)
    check(dataset)
    assert (dataset.name, set(dataset.splits)) == (f"openimages_{version}", {split})
    assert dataset.counts == COUNTS
    head = split if old else f"oid{version}-{'val' if split == 'validation' else split}"
    assert f"{head}-annotations-human-imagelabels.csv" in dataset.notes[0]
    assert any("officially 9,605" in note for note in dataset.notes) == (version == "v6")
    for path in tmp_path.glob(f"{head}-annotations*"):
        (tmp_path / split).mkdir(exist_ok=True)
        path.rename(tmp_path / split / path.name)
    assert read_openimages(tmp_path, **options).labels == dataset.labels
    everything = read_openimages(tmp_path, **options, images="all")
    check(everything, {A: CODES[A], B: CODES[B], C: [-1, -1, -1], D: CODES[D]})
    assert everything.counts["images_of_other_subsets"] == 1


def test_newer_file_first(tmp_path):
    """V3's folder is read rather than V2's, and V6's file rather than one of an older name."""
    write_v3(tmp_path, below="2017_11")
    write_v3(tmp_path, [(A, HUMAN, CAT, "1")], below="2017_07")
    assert len(read_openimages(tmp_path)) == 3
    write_v6(tmp_path, "train")
    write(tmp_path / "train-annotations-human-imagelabels.csv", table([(A, HUMAN, CAT, "1")]))
    assert len(read_openimages(tmp_path, version="v6")) == 3


def test_class_lists(tmp_path):
    """All and the boxable classes, with the labels that only they have."""
    write_v3(tmp_path)
    everything = read_openimages(tmp_path, categories="all")
    assert everything.labels.categories == tuple(NAMES)
    assert everything.labels.column(CAR).tolist() == [1, -1, 0, -1]
    assert everything.counts["label_rows_of_other_categories"] == 0
    assert everything.counts["categories_without_label"] == 1
    write_v6(tmp_path, "train")
    for version in ("v3", "v6"):
        boxable = read_openimages(tmp_path, version=version, categories="boxable")
        check(boxable, {A: [-2, 1], B: [1, -1], C: [-1, 0]}, [CAT, CAR])
        assert len(boxable.notes) == 3


def test_display_names(tmp_path):
    """Display names; those of several classes get the MID, whichever classes are read."""
    write_v3(tmp_path)
    dataset = read_openimages(tmp_path, category_names="display")
    check(dataset, CODES, ["Dog", "Cat", f"Bishop ({PIECE})"])
    both = read_openimages(tmp_path, category_names="display", categories="all")
    expected = ("Cat", "Dog", f"Bishop ({BISHOP})", f"Bishop ({PIECE})", "Car, old")
    assert both.labels.categories == expected
    write(tmp_path / "class-descriptions.csv", f"{CAT},Cat\n{DOG},\n")
    dataset = read_openimages(tmp_path, category_names="display")
    assert dataset.labels.categories == (DOG, "Cat", PIECE)


def test_chosen_categories(tmp_path):
    """Categories by MID and by display name, in the order asked for."""
    write_v3(tmp_path)
    asked = [CAT, "Car, old", f"Bishop ({PIECE})"]
    dataset = read_openimages(tmp_path, categories=asked)
    check(dataset, {A: [-2, 1, 0], B: [1, -1, -1], C: [-1, 0, -1]}, [CAT, CAR, PIECE])


@pytest.mark.parametrize(
    ("categories", "match"),
    [
        (["Bishop"], r"has 2 classes 'Bishop'[^$]*'Bishop \(/m/01b7b\)'"),
        (["Catt"], "has no classes 'Catt'[^$]*'Cat'"),
        (["/m/01yrxx"], r"has no classes '/m/01yrxx'[^$]*'/m/01yrx'"),
        (["Cat", CAT], "asked for twice"),
        ([], "no categories"),
    ],
)
def test_wrong_categories(tmp_path, categories, match):
    """Categories that are not there, mean several, or come twice."""
    write_v3(tmp_path)
    with pytest.raises(CategoryError, match=match):
        read_openimages(tmp_path, categories=categories)


def test_conflicts(tmp_path):
    """Contradictory labels are uncertain, positive, or an error that names their lines."""
    write_v3(tmp_path)
    positive = read_openimages(tmp_path, conflict="positive")
    check(positive, CODES | {A: [-1, 1, 0]})
    assert positive.counts["conflicting_labels"] == 1
    place = r"[^$]*human\.csv', line {}, column 'Confidence'"
    with pytest.raises(LabelError, match=f"{CAT}[^$]*{A} in {place.format(7)}{place.format(8)}"):
        read_openimages(tmp_path, conflict="error")
    human = read_openimages(tmp_path, conflict="error", sources=[HUMAN])
    check(human, {A: [-1, 0, 0], B: [-1, 1, -1], D: CODES[D]})


def test_sources(tmp_path):
    """Chosen sources, and all; a source that is not there."""
    write_v3(tmp_path)
    dataset = read_openimages(tmp_path, sources=(CROWD,))
    check(dataset, {A: [-1, 1, -1], B: [0, 1, -1]})
    assert dataset.counts["label_rows_of_other_sources"] == {HUMAN: 6, "machine-made": 1}
    assert dataset.counts["images_without_label"] == 2
    with pytest.raises(LabelError, match=r"human\.csv', line 10, column 'Confidence'"):
        read_openimages(tmp_path, sources=None)
    write_v3(tmp_path, [*LABELS[:8], (D, "machine-made", DOG, "1")])
    assert read_openimages(tmp_path, sources=None).labels.column(DOG).tolist() == [-1, 0, 1]
    with pytest.raises(LabelError, match=r"no label of the source 'verified'[^$]*'verification'"):
        read_openimages(tmp_path, sources=("verified", HUMAN))
    write_v3(tmp_path, [(A, CROWD, CAT, "1")])
    assert read_openimages(tmp_path).counts["label_rows_by_source"] == {CROWD: 1}
    for options in ({"sources": (HUMAN,)}, {"categories": [CAR]}):
        with pytest.raises(LabelError, match="no label of the sources and categories"):
            read_openimages(tmp_path, **options)


def test_all_images(tmp_path):
    """Images without a label are kept if the list of images is asked for."""
    write_v3(tmp_path)
    dataset = read_openimages(tmp_path, images="all", image_folder="train/")
    unknown = [-1, -1, -1]
    check(dataset, {"0" * 16: unknown, A: CODES[A], B: CODES[B], C: unknown, D: CODES[D]})
    assert dataset.paths[1] == f"train/{A}.jpg"
    assert dataset.counts["images"] == 5
    assert dataset.counts["images_without_label"] == 2
    assert dataset.counts["images_of_other_subsets"] == 0
    assert dataset.notes[-1] == "2 images without a label are kept."


def test_machine_labels(tmp_path):
    """Machine labels count only from a threshold on, where nobody has said anything."""
    write_v3(tmp_path)
    dataset = read_openimages(tmp_path, machine=0.6)
    check(dataset, {A: [-2, -2, 0], B: [0, 1, -2], D: CODES[D]})
    assert dataset.counts["machine_labels"] == {
        "rows": 7,
        "under_threshold": 1,
        "of_other_images_or_categories": 3,
        "repeated_or_verified": 1,
        "used": 2,
    }
    assert dataset.notes[-1] == "2 labels are by a model and count as uncertain."
    positive = read_openimages(tmp_path, machine=0.5, machine_as="positive", images="all")
    assert positive.labels.column(CAT).tolist() == [-1, -2, 1, 1, -1]
    assert positive.labels.column(PIECE).tolist() == [-1, 0, 1, -1, -1]
    assert positive.counts["machine_labels"]["repeated_or_verified"] == 2
    check(read_openimages(tmp_path, machine=1.0))
    for value in ("high", "", "1.5", "-0.1", "nan"):
        rows = [*MACHINE, (A, "machine", CAT, value)]
        write(tmp_path / "train" / "annotations-machine.csv", table(rows))
        with pytest.raises(LabelError, match=r"machine\.csv', line 9, column 'Confidence'"):
            read_openimages(tmp_path, machine=0.5)


@pytest.mark.parametrize(
    ("row", "error", "match"),
    [
        ((A[1:], HUMAN, CAT, "1"), IdError, "line 12, column 'ImageID'"),
        ((A.upper(), HUMAN, CAT, "1"), IdError, "line 12, column 'ImageID'[^$]*lower case"),
        (("2.6E+15", HUMAN, CAT, "1"), IdError, "'2.6E\\+15'"),
        (("", HUMAN, CAT, "1"), IdError, "line 12, column 'ImageID'"),
        ((A, HUMAN, "cat", "1"), LabelError, "'cat' in [^$]*line 12, column 'LabelName'"),
        ((A, HUMAN, "", "1"), LabelError, "line 12, column 'LabelName'"),
        ((A, HUMAN, CAT, "0.5"), LabelError, "'0.5' in [^$]*line 12, column 'Confidence'"),
        ((A, HUMAN, CAR, "-1"), LabelError, "line 12, column 'Confidence'"),
        ((A, HUMAN, CAT, ""), LabelError, "line 12, column 'Confidence'"),
        ((A, HUMAN, CAT), LabelError, "line 12: not as many fields"),
    ],
)
def test_wrong_rows(tmp_path, row, error, match):
    """A row that is no label is refused with its file, line and column."""
    write_v3(tmp_path, [*LABELS, row, (B, HUMAN, CAT, "1")])
    with pytest.raises(error, match=rf"annotations-human\.csv'[^$]*{match}"):
        read_openimages(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is empty"),
        (f"{HEADER}\n", "no rows"),
        (table(LABELS).replace("Confidence", "confidence", 1), "no column 'Confidence'"),
        (table(LABELS).replace("Source,", "", 1), "no column 'Source'"),
        (table(LABELS)[:-24], "truncated"),
        (b"\xff\xfe" + table(LABELS).encode("utf-16-le"), "not UTF-8"),
        (table(LABELS).replace(CAT, "/m/\xe4", 1).encode("latin-1"), "not UTF-8"),
    ],
)
def test_damaged_tables(tmp_path, content, match):
    """Label files that are empty, truncated, without a column, or no UTF-8."""
    write_v3(tmp_path)
    write(tmp_path / "train" / "annotations-human.csv", content)
    with pytest.raises(LabelError, match=rf"annotations-human\.csv'[^$]*{match}"):
        read_openimages(tmp_path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("train/annotations-human.csv", {}),
        ("classes-trainable.txt", {}),
        ("class-descriptions.csv", {"category_names": "display"}),
        ("class-descriptions.csv", {"categories": [CAT]}),
        ("classes-bbox.txt", {"categories": "boxable"}),
        ("train/images.csv", {"images": "all"}),
        ("train/annotations-machine.csv", {"machine": 0.5}),
    ],
)
def test_missing_files(tmp_path, name, options):
    """Only the files that are needed must be there; the error names the one that is not."""
    write_v3(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(LabelError, match=f"expected: +'{name}'"):
        read_openimages(tmp_path, **options)
    if options:
        check(read_openimages(tmp_path))
    (tmp_path / name).mkdir()  # a folder in its place
    with pytest.raises(LabelError, match=name):
        read_openimages(tmp_path, **options)


def test_wrong_root(tmp_path):
    """A root that is not there, or has another release."""
    with pytest.raises(LabelError, match="no such folder"):
        read_openimages(tmp_path / "nowhere")
    write_v3(tmp_path)
    with pytest.raises(LabelError, match=r"Images V6[^$]*'oidv6-train-annotations-human"):
        read_openimages(tmp_path, version="v6")


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (f"{CAT},Cat\n{DOG}\n", LabelError, "line 2: is not a class"),
        (f"{CAT},Cat\n{DOG},Dog,2\n", LabelError, "line 2: is not a class"),
        (f"{CAT},Cat\n{CAT},Dog\n", CategoryError, "line 2: the class '/m/01yrx'"),
        (f"Cat,{CAT}\n", LabelError, "line 1: is not a class"),
        ("", LabelError, "is empty"),
        ("LabelName,DisplayName\n", LabelError, "lists no classes"),
        (f"{CAT},Cat\n{DOG},\"Dog\n", LabelError, "not a list of classes"),
        (f"{CAT},K\xe4tzchen\n".encode("latin-1"), LabelError, "line 1: is not UTF-8"),
    ],
)  # fmt: skip
def test_class_files(tmp_path, content, error, match):
    """Lists of classes that are damaged."""
    write_v3(tmp_path)
    write(tmp_path / "class-descriptions.csv", content)
    with pytest.raises(error, match=rf"class-descriptions\.csv'[^$]*{match}"):
        read_openimages(tmp_path, categories="all")


def test_blank_lines_and_byte_order_mark(tmp_path):
    """Blank lines, CRLF and a byte-order mark change nothing; lines are still counted right."""
    write_v3(tmp_path)
    content = "\ufeff" + table(LABELS).replace("\n", "\r\n\r\n")
    write(tmp_path / "train" / "annotations-human.csv", content)
    write(tmp_path / "classes-trainable.txt", "\ufeff" + "\r\n\r\n".join(TRAINABLE))
    check(read_openimages(tmp_path))
    write(tmp_path / "train" / "annotations-human.csv", content + f"x,{HUMAN},{CAT},1\n")
    with pytest.raises(IdError, match="line 23"):
        read_openimages(tmp_path)


def test_lists_of_images(tmp_path):
    """The list of images must have every labelled image, each once."""
    write_v3(tmp_path)
    path = tmp_path / "train" / "images.csv"
    whole = path.read_text()
    path.write_text(whole + f"{B},train,x,y\n")
    with pytest.raises(IdError, match=rf"twice[^$]*{B} in .*line 6.* and .*line 12"):
        read_openimages(tmp_path, images="all")
    path.write_text(whole.replace(C, "c" * 16))
    with pytest.raises(IdError, match=rf"not in the list[^$]*{C} in .*human.csv', line 6"):
        read_openimages(tmp_path, images="all")
    path.write_text(whole.replace(",train", ",test"))
    with pytest.raises(IdError, match=f"not in the list[^$]*{A}"):
        read_openimages(tmp_path, images="all")
    path.write_text(whole.replace("Subset", "Set"))
    with pytest.raises(LabelError, match="no column 'Subset'"):
        read_openimages(tmp_path, images="all")


def test_wrong_options(tmp_path):
    """Options of no meaning."""
    write_v3(tmp_path)
    texts = "version=v5 split=valid categories=trainables category_names=name conflict=negative"
    texts += f" images=some machine_as=negative sources={HUMAN} storage=sparse"
    wrong = [(name, value) for name, value in (text.split("=") for text in texts.split())]
    wrong += [("machine", 0.0), ("machine", 1.1), ("machine", float("nan")), ("sources", [])]
    for name, value in wrong:
        with pytest.raises(ConfigError):
            read_openimages(tmp_path, **{name: value})


edges = st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1])
ids = (edges | st.integers(0, 2**64 - 1)).map(lambda number: f"{number:016x}")
row = st.tuples(ids, st.sampled_from([HUMAN, CROWD]), st.sampled_from(TRAINABLE), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(row, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_read_back(rows, random):
    """Random labels written in the official format are read back equal, whatever their order."""
    rows += [(image, HUMAN, mid, not yes) for image, _, mid, yes in rows[:2]]
    expected: dict[str, dict[str, set[bool]]] = {}
    for image, _, mid, yes in rows:
        expected.setdefault(image, {}).setdefault(mid, set()).add(yes)
    random.shuffle(rows)
    texts = [(image, source, mid, str(int(yes))) for image, source, mid, yes in rows]
    with tempfile.TemporaryDirectory() as folder:
        dataset = read_openimages(write_v3(Path(folder), texts))
    code = {frozenset([True]): 1, frozenset([False]): 0, frozenset([True, False]): -2}
    codes = {
        image: [code[frozenset(found[mid])] if mid in found else -1 for mid in TRAINABLE]
        for image, found in sorted(expected.items())
    }
    check(dataset, codes)
    n_different = len({(image, mid, yes) for image, _, mid, yes in rows})
    assert dataset.counts["repeated_labels"] == len(rows) - n_different


def test_many_batches(tmp_path, monkeypatch):
    """Blocks of the file change nothing, and lines are counted across them."""
    rng = np.random.default_rng(0)
    image, mid, yes = (rng.integers(0, n, 5_000) for n in (900, 3, 2))
    texts = zip([f"{i * 1_000:016x}" for i in image], [TRAINABLE[j] for j in mid], yes, strict=True)
    rows = [(name, HUMAN, category, str(value)) for name, category, value in texts]
    write_v3(tmp_path, rows)
    one = read_openimages(tmp_path)
    monkeypatch.setattr("catwise.data.files.BLOCK_BYTES", 4_096)
    many = read_openimages(tmp_path, storage="dense")
    assert many.labels.storage == "dense"
    assert many.labels == one.labels
    assert many.counts == one.counts
    dense = np.full((900, 3), -1)
    for value in (0, 1):
        here = yes == value
        dense[image[here], mid[here]] = value
    no = np.zeros((900, 3), dtype=bool)
    no[image[yes == 0], mid[yes == 0]] = True
    dense[(dense == 1) & no] = -2
    np.testing.assert_array_equal(one.labels.codes, dense[np.unique(image)])
    write_v3(tmp_path, [*rows, (A, HUMAN, CAT, "2")])
    with pytest.raises(LabelError, match="line 5,002"):
        read_openimages(tmp_path)


def test_label_count_groups():
    """Categories by how many labels are known, fewest first; equal ones by their position."""
    columns = [(np.arange(n), np.ones(n, dtype=int)) for n in (4, 0, 2, 9, 4, 1)]
    labels = PartialLabels.from_columns(columns, 9)
    assert label_count_groups(labels, 3).tolist() == [1, 0, 1, 2, 2, 0]
    assert label_count_groups(labels, 1).tolist() == [0] * 6
    assert label_count_groups(labels, 6).tolist() == [3, 0, 2, 5, 4, 1]
    assert np.bincount(label_count_groups(labels)).tolist() == [2, 1, 1, 1, 1]
    assert label_count_groups(labels).dtype == np.int64
    unsure = PartialLabels([[1, -2, 0], [-1, -2, 0]])  # uncertain labels do not count
    assert label_count_groups(unsure, 3).tolist() == [1, 0, 2]
    lengths = np.random.default_rng(0).permutation(5_000)
    columns = [(np.arange(n), np.zeros(n, dtype=int)) for n in lengths]
    labels = PartialLabels.from_columns(columns, 5_000)
    np.testing.assert_array_equal(label_count_groups(labels), lengths // 1_000)
    for n_groups in (0, 5_001, -1):
        with pytest.raises(ConfigError, match="5,000 categories"):
            label_count_groups(labels, n_groups)


def test_errors_are_ours(tmp_path):
    """Any prefix of a label file is read, or refused with one of catwise's errors."""
    whole = table(LABELS)
    write_v3(tmp_path)
    for end in range(len(whole)):
        write(tmp_path / "train" / "annotations-human.csv", whole[:end])
        with suppress(LabelError, IdError):
            read_openimages(tmp_path)
