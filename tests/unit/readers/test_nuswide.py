"""NUS-WIDE in miniature: lists with backslashes, a text file a concept, and what goes wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers.nuswide import read_nuswide
from catwise.errors import CategoryError, CatwiseError, ConfigError, IdError, LabelError
from faults import check_fault

CONCEPTS = ["airport", "cat", "zebra"]
IMAGES = ["actor/0001_11.jpg", "actor/0002_22.jpg", "zebra/0001_33.jpg", "zoo/0001_22.jpg"]
CODES = [[1, 0, 1], [0, 0, 0], [0, 0, 1], [0, 1, 0]]
SPLITS = ["train", "test", "test", "train"]
PREFIXES = {"train": "Train", "test": "Test"}


def write(root: Path, name: str, lines: list[Any], end: str = "\n") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())
    return path


def write_release(
    root: Path, images: Any = IMAGES, codes: Any = CODES, splits: Any = SPLITS, end: str = "\r\n"
) -> Path:
    """The official folders: image lists have backslashes and Windows' line ends."""
    table = np.asarray(codes, dtype=np.int8).reshape(len(images), -1)
    names = CONCEPTS[: table.shape[1]]
    write(root, "ConceptsList/Concepts81.txt", names, end)
    everyone = [image.replace("/", "\\") for image in images]
    write(root, "ImageList/Imagelist.txt", everyone, end)
    for j, name in enumerate(names):
        write(root, f"Groundtruth/AllLabels/Labels_{name}.txt", table[:, j].tolist())
    for split, prefix in PREFIXES.items():
        rows = [i for i, one in enumerate(splits) if one == split]
        write(root, f"ImageList/{prefix}Imagelist.txt", [everyone[i] for i in rows], end)
        for j, name in enumerate(names):
            file = f"Groundtruth/TrainTestLabels/Labels_{name}_{prefix}.txt"
            write(root, file, table[rows, j].tolist())
    return root


def test_every_image(tmp_path):
    """Without a split: AllLabels in the order of the list, and the split of each image."""
    dataset = read_nuswide(write_release(tmp_path))
    assert dataset.labels.categories == tuple(CONCEPTS)
    assert dataset.labels.codes.tolist() == CODES
    assert dataset.labels.ids.tolist() == IMAGES
    assert dataset.paths.tolist() == [f"Flickr/{image}" for image in IMAGES]
    assert dataset.splits.tolist() == SPLITS
    assert dataset.groups is None
    assert dataset.root == tmp_path
    assert dataset.counts == {
        "images_listed": 4,
        "images_without_positive": 1,
        "images_dropped": 0,
        "photos_listed_twice": 1,
        "photos_in_two_splits": 1,
    }
    assert dataset.notes == (
        "Every label is known: 1 in the ground truth is positive, 0 negative.",
        "1 images without one positive label are negative throughout.",
        "1 Flickr photos are listed under two paths.",
        "1 Flickr photos are in train and in test.",
    )


@pytest.mark.parametrize(("split", "rows"), [("train", [0, 3]), ("test", [1, 2])])
def test_a_split(tmp_path, split, rows):
    """A split comes from its own files; nothing of the whole release is needed."""
    root = write_release(tmp_path)
    (root / "ImageList/Imagelist.txt").unlink()
    for path in (root / "Groundtruth/AllLabels").iterdir():
        path.unlink()
    dataset = read_nuswide(root, split=split)
    assert dataset.labels.codes.tolist() == [CODES[i] for i in rows]
    assert dataset.labels.ids.tolist() == [IMAGES[i] for i in rows]
    assert dataset.splits.tolist() == [split] * 2
    assert "photos_in_two_splits" not in dataset.counts
    assert dataset.counts["photos_listed_twice"] == 0


def test_images_without_a_positive_label(tmp_path):
    """They are dropped on demand, and counted."""
    dataset = read_nuswide(write_release(tmp_path), unannotated="drop")
    assert dataset.labels.ids.tolist() == [IMAGES[i] for i in (0, 2, 3)]
    assert dataset.labels.codes.tolist() == [CODES[i] for i in (0, 2, 3)]
    assert dataset.splits.tolist() == [SPLITS[i] for i in (0, 2, 3)]
    assert dataset.counts["images_listed"] == 4
    assert dataset.counts["images_dropped"] == dataset.counts["images_without_positive"] == 1
    assert "left out" in dataset.notes[1]


def test_photos_as_groups(tmp_path):
    """Two paths of one Flickr photo are one group; a name without a photo has none."""
    root = write_release(tmp_path)
    dataset = read_nuswide(root, groups="photo", images="")
    assert dataset.groups.tolist() == ["11", "22", "33", "22"]
    assert dataset.paths.tolist() == IMAGES
    root = write_release(tmp_path, images=[*IMAGES[:3], "zoo/lion.jpg"])
    assert read_nuswide(root).counts["photos_listed_twice"] == 0
    with pytest.raises(IdError, match=r"tells no Flickr photo(.|\n)*line 4") as caught:
        read_nuswide(root, groups="photo")
    assert "'zoo/lion.jpg'" in caught.value.found


@pytest.mark.parametrize(
    "text", ["1\r\n0\r\n0\r\n0\r\n", "1\n0\n0\n0", "1\n0\n0\n0\n\n \n", " 1 \n0\t\n0\n0 \n"]
)
def test_spellings_of_label_files(tmp_path, text):
    """Line ends, a missing last one, blank lines at the end, and space around the digits."""
    root = write_release(tmp_path)
    (root / "Groundtruth/AllLabels/Labels_airport.txt").write_bytes(text.encode())
    assert read_nuswide(root).labels.codes.tolist() == CODES


def test_spellings_of_lists(tmp_path):
    """Forward slashes, a byte-order mark, plain line ends; the concepts beside the folders."""
    root = write_release(tmp_path, end="\n")
    path = root / "ImageList/Imagelist.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\\", b"/") + b"\n\n")
    (root / "ConceptsList/Concepts81.txt").rename(root / "Concepts81.txt")
    dataset = read_nuswide(str(root))
    assert dataset.labels.ids.tolist() == IMAGES
    assert dataset.labels.categories == tuple(CONCEPTS)


LABELS = "Groundtruth/AllLabels/Labels_cat.txt"
#: What is wrong → the file, its new content (None: it is missing), the error, its message.
FAULTS: dict[str, tuple[str, bytes | None, type[CatwiseError], str]] = {
    "no concepts": ("ConceptsList/Concepts81.txt", None, LabelError, "Concepts81.txt'"),
    "concept twice": (
        "ConceptsList/Concepts81.txt",
        b"airport\ncat\ncat\n",
        CategoryError,
        "line 3 (1 repeats",
    ),
    "fewer concepts": (
        "ConceptsList/Concepts81.txt",
        b"airport\ncat\n",
        CategoryError,
        "'Labels_zebra.txt'",
    ),
    "more concepts": (
        "ConceptsList/Concepts81.txt",
        b"airport\ncat\nzebra\nzebras\n",
        LabelError,
        "no 'Labels_zebras.txt' (did you mean 'Labels_zebra.txt'?)",
    ),
    "empty list": ("ImageList/Imagelist.txt", b"\n", LabelError, "is empty"),
    "no list": ("ImageList/Imagelist.txt", None, LabelError, "Imagelist.txt'"),
    "blank line": ("ImageList/Imagelist.txt", b"a_1.jpg\n\nb_2.jpg\n", LabelError, "line 2: is"),
    "not UTF-8": ("ImageList/Imagelist.txt", b"a_1.jpg\nb\xe9_2.jpg\n", LabelError, "line 2: is"),
    "image twice": (
        "ImageList/Imagelist.txt",
        b"a_1.jpg\nb_2.jpg\na_1.jpg\n",
        IdError,
        "line 3 (1 repeats",
    ),
    "no split": ("ImageList/TrainImagelist.txt", b"actor\\0001_11.jpg\n", IdError, "in no list"),
    "two splits": (
        "ImageList/TestImagelist.txt",
        b"actor\\0001_11.jpg\nactor\\0002_22.jpg\nzebra\\0001_33.jpg\n",
        IdError,
        "'actor/0001_11.jpg' in",
    ),
    "beyond": (
        "ImageList/TestImagelist.txt",
        b"x\\0009_9.jpg\nactor\\0002_22.jpg\nzebra\\0001_33.jpg\n",
        IdError,
        "'x/0009_9.jpg' in",
    ),
    "no labels": (LABELS, None, LabelError, "no 'Labels_cat.txt'"),
    "too short": (LABELS, b"0\n0\n0\n", LabelError, "3 labels, 4 images in"),
    "too long": (LABELS, b"0\n0\n0\n1\n0\n", LabelError, "5 labels, 4 images in"),
    "empty": (LABELS, b"", LabelError, "is empty"),
    "two": (LABELS, b"0\n0\n2\n1\n", LabelError, "Labels_cat.txt', line 3: is not a label"),
    "minus one": (LABELS, b"0\n-1\n0\n1\n", LabelError, "Labels_cat.txt', line 2: is not a label"),
    "gap": (LABELS, b"0\n\n0\n1\n", LabelError, "Labels_cat.txt', line 2: is not a label"),
    "matrix": (
        LABELS,
        b"0 1\n0 0\n0 1\n1 1\n",
        LabelError,
        "cat.txt', line 1: is not a label",
    ),
    "binary": (LABELS, b"\xff\n0\n0\n1\n", LabelError, "cat.txt', line 1: is not a label"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    """Every fault has its own error, which names the file and the place."""
    name, content, kind, message = FAULTS[fault]
    path = write_release(tmp_path) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    where = tmp_path if content is None else path
    check_fault(lambda: read_nuswide(tmp_path), kind, message, where)


def test_the_split_must_be_there(tmp_path):
    """A release without the folder of the splits' labels says so."""
    root = write_release(tmp_path)
    (root / "Groundtruth/TrainTestLabels").rename(root / "elsewhere")
    with pytest.raises(LabelError, match="there is no folder") as caught:
        read_nuswide(root, split="train")
    assert "Labels_airport_Train.txt" in caught.value.expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split cannot be 'valid'"),
        ({"unannotated": "dropp"}, "did you mean 'drop'"),
        ({"groups": "photos"}, "did you mean 'photo'"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    """Wrong choices are refused before any file is opened."""
    with pytest.raises(ConfigError) as caught:
        read_nuswide(tmp_path / "nowhere", **options)
    assert message in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read(data):
    """Random labels, splits and line ends come back as they were, from both folders."""
    n, n_names = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 3))
    bits = st.lists(st.integers(0, 1), min_size=n_names, max_size=n_names)
    codes = data.draw(st.lists(bits, min_size=n, max_size=n))
    rest = data.draw(st.lists(st.sampled_from(["train", "test"]), min_size=n - 2, max_size=n - 2))
    splits = ["train", "test", *rest]
    images = [f"f{i % 3}/{i:04}_{data.draw(st.integers(1, 5))}.jpg" for i in range(n)]
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    with tempfile.TemporaryDirectory() as folder:
        root = write_release(Path(folder), images, codes, splits, end)
        dataset = read_nuswide(root)
        assert dataset.labels.codes.tolist() == codes
        assert dataset.labels.ids.tolist() == images
        assert dataset.splits.tolist() == splits
        for split in PREFIXES:
            part = read_nuswide(root, split=split)
            assert part.labels == dataset.split(split).labels
            assert part.paths.tolist() == dataset.split(split).paths.tolist()
        kept = read_nuswide(root, unannotated="drop").labels
        assert kept == dataset.labels.take_rows([i for i in range(n) if any(codes[i])])
