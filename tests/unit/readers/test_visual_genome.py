"""VG-500 and VG-200 in miniature: lists, positions, folders, and what can be wrong with them."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers._kit import read_json
from catwise.data.readers.visual_genome import read_names, read_visual_genome
from catwise.errors import CategoryError, ConfigError, IdError, LabelError

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.data import Dataset

read_500 = partial(read_visual_genome, n_categories=500)
TRAIN = {"107899.jpg": [0, 5, 499], "2.jpg": [7, 7, 199]}
TEST = {"2417997.jpg": [], "61540.jpg": [300]}


def write_vg(
    root: Path,
    train: dict[str, list[int]] = TRAIN,
    test: dict[str, list[int]] = TEST,
    *,
    n: int = 500,
    images: bool = True,
) -> Path:
    """Write lists, labels and images; VG-200 is the first 200 of the 500, as it was made."""
    labels = {k: [j for j in v if j < n] for k, v in {**train, **test}.items()}
    (root / f"vg_category_{n}_labels_index.json").write_text(json.dumps(labels))
    (root / "train_list_500.txt").write_text("".join(f"{name}\n" for name in train))
    (root / "test_list_500.txt").write_text("".join(f"{name}\n" for name in test))
    for i, name in enumerate((*train, *test) if images else ()):
        folder = root / ("VG_100K", "VG_100K_2")[i % 2]
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    return root


def positives(dataset: Dataset) -> dict[str, list[int]]:
    """The positions of the positives of each image."""
    return {
        str(dataset.labels.ids[i]): np.flatnonzero(row == 1).tolist()
        for i, row in enumerate(dataset.labels.codes)
    }


def test_golden(tmp_path):
    """The miniature of VG-500."""
    dataset = read_500(write_vg(tmp_path))
    assert dataset.name == "visual_genome_500"
    assert dataset.labels.shape == (4, 500)
    assert dataset.labels.ids.tolist() == ["107899.jpg", "2.jpg", "2417997.jpg", "61540.jpg"]
    assert positives(dataset) == {
        "107899.jpg": [0, 5, 499],
        "2.jpg": [7, 199],
        "2417997.jpg": [],
        "61540.jpg": [300],
    }
    assert set(np.unique(dataset.labels.codes)) == {0, 1}
    assert dataset.labels.categories[:2] == ("0", "1")
    assert dataset.splits.tolist() == ["train", "train", "test", "test"]
    assert dataset.groups is None
    assert dataset.paths.tolist() == [
        "VG_100K/107899.jpg",
        "VG_100K_2/2.jpg",
        "VG_100K/2417997.jpg",
        "VG_100K_2/61540.jpg",
    ]
    assert dataset.counts == {
        "labels": "vg_category_500_labels_index.json",
        "images_in_lists": {"train": 2, "test": 2},
        "images_without_positives": 1,
        "repeated_positives": 1,
        "images_without_files": 0,
        "images_in_both_folders": 0,
    }
    json.dumps(dataset.counts)
    assert dataset.notes[0].endswith("though Visual Genome is not annotated exhaustively.")
    assert dataset.notes[1:] == (
        "The release does not name the categories: they are called by position.",
    )


def test_vg_200(tmp_path):
    """VG-200 shares the lists and is the first 200 categories of VG-500."""
    write_vg(write_vg(tmp_path), n=200)
    small = read_visual_genome(tmp_path, n_categories=200)
    assert small.name == "visual_genome_200"
    assert small.labels.shape == (4, 200)
    assert positives(small)["61540.jpg"] == []
    assert small.counts["images_without_positives"] == 2
    whole = read_500(tmp_path)
    assert whole.labels.take_categories(range(200)) == small.labels


@pytest.mark.parametrize("absent", ["negative", "unknown"])
@pytest.mark.parametrize("split", ["train", "test", None])
def test_options(tmp_path, absent, split):
    """One split or both, and what a category is that is not listed."""
    write_vg(tmp_path)
    dataset = read_500(tmp_path, split=split, absent=absent)
    expected = {**(TRAIN if split != "test" else {}), **(TEST if split != "train" else {})}
    assert list(positives(dataset)) == list(expected)
    assert positives(dataset) == {name: sorted(set(v)) for name, v in expected.items()}
    others = dataset.labels.codes[dataset.labels.codes != 1]
    assert set(others.tolist()) == {0 if absent == "negative" else -1}
    assert f"is read as {absent}" in dataset.notes[0]
    if split is None:
        assert (
            dataset.split("test").labels == read_500(tmp_path, split="test", absent=absent).labels
        )


labels_of = st.dictionaries(
    st.integers(1, 10**7).map(lambda number: f"{number}.jpg"),
    st.lists(st.integers(0, 199), max_size=6),
    min_size=2,
    max_size=8,
)


@settings(max_examples=30, deadline=None)
@given(images=labels_of, data=st.data())
def test_round_trip(tmp_path_factory, images, data):
    """Labels that are written in the layout of the release are read back, in either storage."""
    root = tmp_path_factory.mktemp("vg")
    n_train = data.draw(st.integers(1, len(images) - 1))
    items = list(images.items())
    n = data.draw(st.sampled_from([200, 500]))
    write_vg(root, dict(items[:n_train]), dict(items[n_train:]), n=n, images=False)
    expected = {name: sorted(set(v)) for name, v in images.items()}
    for absent in ("negative", "unknown"):
        dataset = read_visual_genome(root, n_categories=n, absent=absent)
        assert positives(dataset) == expected
        assert dataset.labels.with_storage("columns") == dataset.labels
    repeats = sum(len(v) - len(set(v)) for v in images.values())
    assert dataset.counts["repeated_positives"] == repeats
    assert dataset.splits.tolist() == ["train"] * n_train + ["test"] * (len(items) - n_train)
    shutil.rmtree(root)


def test_large_is_sparse(tmp_path):
    """Where absent is unknown and there are many images, labels are stored as columns."""
    train = {f"{i}.jpg": [i % 500, (i * 7 + 1) % 500] for i in range(3000)}
    write_vg(tmp_path, train, TEST, images=False)
    dataset = read_500(tmp_path, absent="unknown")
    assert dataset.labels.storage == "columns"
    negative = read_500(tmp_path)
    assert negative.labels.storage == "dense"
    assert positives(dataset) == positives(negative)


def test_images(tmp_path):
    """Images may be elsewhere, in one folder only, in both, or absent; all of it is counted."""
    write_vg(tmp_path, images=False)
    dataset = read_500(tmp_path)
    assert dataset.paths.tolist() == [""] * 4
    assert dataset.counts["images_without_files"] == 4
    assert "There is no folder VG_100K or VG_100K_2: paths are blank." in dataset.notes
    other = tmp_path / "images"
    with pytest.raises(LabelError, match="holds no images of Visual Genome"):
        read_500(tmp_path, images=other)
    (other / "VG_100K").mkdir(parents=True)
    for name in TRAIN:
        (other / "VG_100K" / name).touch()
    dataset = read_500(tmp_path, images=other)
    assert dataset.root == other
    assert dataset.paths.tolist() == ["VG_100K/107899.jpg", "VG_100K/2.jpg", "", ""]
    assert dataset.counts["images_without_files"] == 2
    assert dataset.notes[1].endswith("; there is no folder VG_100K_2.")
    (other / "VG_100K_2").mkdir()
    for name in ("2.jpg", *TEST):
        (other / "VG_100K_2" / name).touch()
    dataset = read_500(tmp_path, images=other)
    assert dataset.paths.tolist()[1:3] == ["VG_100K/2.jpg", "VG_100K_2/2417997.jpg"]
    assert dataset.counts["images_in_both_folders"] == 1
    assert dataset.counts["images_without_files"] == 0


def test_line_ends(tmp_path):
    """Windows line ends, blank lines and a missing last line end do no harm."""
    write_vg(tmp_path)
    before = read_500(tmp_path)
    path = tmp_path / "train_list_500.txt"
    path.write_bytes(b"\xef\xbb\xbf107899.jpg\r\n\r\n2.jpg")
    assert read_500(tmp_path).labels == before.labels


@pytest.mark.parametrize("suffix", [".txt", "list", "index"])
def test_names(tmp_path, suffix):
    """Names come from a text file, a JSON list or a JSON object of positions."""
    names = [f"thing {j}" for j in range(500)]
    path = tmp_path / (f"names{suffix}" if suffix == ".txt" else "names.json")
    turned = dict(reversed([(name, j) for j, name in enumerate(names)]))
    path.write_text(
        "\r\n".join(names) + "\n"
        if suffix == ".txt"
        else json.dumps(names if suffix == "list" else turned)
    )
    dataset = read_500(write_vg(tmp_path), names=str(path))
    assert dataset.labels.categories == tuple(names)
    assert not any("called by position" in note for note in dataset.notes)
    assert dataset.labels.column("thing 5").tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("file", "content", "error", "words"),
    [
        ("names.txt", None, LabelError, "no file"),
        ("names.txt", "sky\ntree", CategoryError, "2 names"),
        ("names.txt", "sky\ntree\nsky", CategoryError, "'sky' in line 1 and line 3"),
        ("names.txt", "sky\n\ntree", CategoryError, "blank name(.|\n)*line 2"),
        ("names.json", "3", LabelError, "the number 3"),
        ("names.json", "{}", LabelError, "holds no names"),
        ("names.json", '["sky", 1, "sun"]', LabelError, "the number 1 in place 1"),
        ("names.json", '{"sky": 0, "sun": 1, "sea": 3}', LabelError, "name 'sea': not a position"),
        ("names.json", '{"sky": 0, "sun": "1", "sea": 2}', LabelError, "the text '1'"),
        ("names.json", '{"sky": 0, "sun": true, "sea": 2}', LabelError, "'sun'(.|\n)*true"),
        ("names.json", '{"sky": 0, "sun": 1, "sea": 1}', LabelError, "1 in 'sun' and 'sea'"),
    ],
)
def test_bad_names(tmp_path, file, content, error, words):
    """What is wrong with the names is told with the file."""
    path = tmp_path / file
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=words) as caught:
        read_names(path, 3)
    assert file in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "val"}, "split cannot be 'val'"),
        ({"split": "tset"}, "did you mean 'test'"),
        ({"n_categories": 80}, "n_categories cannot be 80"),
        ({"absent": "positive"}, "absent cannot be 'positive'"),
    ],
)
def test_bad_options(tmp_path, options, words):
    """Options that are not possible are named."""
    with pytest.raises(ConfigError, match=words):
        read_500(tmp_path, **options)


def test_missing_files(tmp_path):
    """A missing file is named, and the other labels are recalled."""
    write_vg(tmp_path)
    with pytest.raises(LabelError, match=r"VG-200(.|\n)*take_categories\(range\(200\)\)"):
        read_visual_genome(tmp_path, n_categories=200)
    (tmp_path / "vg_category_500_labels_index.json").unlink()
    with pytest.raises(LabelError, match=r"expected: +'vg_category_500_labels_index\.json'"):
        read_500(tmp_path)
    (tmp_path / "test_list_500.txt").unlink()
    with pytest.raises(LabelError, match=r"no file '.*test_list_500\.txt'"):
        read_500(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("", LabelError, "is empty"),
        ("2.jpg\n2.jpg\n", IdError, r"listed twice(.|\n)*line 1 and .*line 2"),
        ("2.jpg\n\n61540.jpg\n", IdError, r"train_list_500.*3 and .*test_list_500.txt', line 2"),
        ("2.jpg\nVG_100K/3.jpg\n", IdError, "VG_100K/3.jpg' in .*line 2"),
        ("2.jpg 1\n", IdError, "2.jpg 1' in .*line 1"),
        ("2.jpg\n3.jpg\n4.jpg\n", LabelError, r"line 2: an image has no(.|\n)*3.jpg' \(first of 2"),
        (b"2.jpg\n\xff.jpg\n", LabelError, "line 2: is not UTF-8"),
    ],
)
def test_bad_lists(tmp_path, content, error, words):
    """What is wrong with a list is told with its file and line."""
    path = write_vg(tmp_path) / "train_list_500.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=words) as caught:
        read_500(tmp_path)
    assert "train_list_500.txt" in str(caught.value)


GOOD: dict[str, Any] = {**TRAIN, **TEST}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "is not an object of images(.|\n)*a list"),
        ({**GOOD, "2.jpg": 7}, "image '2.jpg': not a list(.|\n)*the number 7"),
        ({**GOOD, "2.jpg": {"7": 1}}, "image '2.jpg': not a list(.|\n)*an object"),
        ({**GOOD, "2.jpg": None}, "image '2.jpg': not a list(.|\n)*null"),
        ({**GOOD, "2.jpg": [7, 500]}, "image '2.jpg': a label(.|\n)*500"),
        ({**GOOD, "2.jpg": [-1]}, "image '2.jpg': a label(.|\n)*-1"),
        ({**GOOD, "2.jpg": [10**30]}, "image '2.jpg': a label(.|\n)*1000"),
        ({**GOOD, "2.jpg": ["7"]}, "image '2.jpg': a label(.|\n)*the text '7'"),
        ({**GOOD, "2.jpg": [7.0]}, "image '2.jpg': a label(.|\n)*the number 7.0"),
        ({**GOOD, "2.jpg": [True]}, "image '2.jpg': a label(.|\n)*true"),
        ({**GOOD, "2.jpg": [None]}, "image '2.jpg': a label(.|\n)*null"),
        ({**GOOD, "2.jpg": [[7]]}, "image '2.jpg': a label(.|\n)*a list"),
    ],
)
def test_bad_labels(tmp_path, content, words):
    """What is wrong with the labels is told with the file and the image."""
    path = write_vg(tmp_path) / "vg_category_500_labels_index.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LabelError, match=words) as caught:
        read_500(tmp_path)
    assert path.name in str(caught.value)


def test_labels_of_the_other_size(tmp_path):
    """Labels of VG-500 under the name of VG-200 are noticed."""
    write_vg(tmp_path)
    (tmp_path / "vg_category_500_labels_index.json").rename(
        tmp_path / "vg_category_200_labels_index.json"
    )
    with pytest.raises(LabelError, match=r"499(.|\n)*n_categories=500"):
        read_visual_genome(tmp_path, n_categories=200)


def test_unlisted_images_are_not_looked_at(tmp_path):
    """The labels of images in neither list are left out, whatever they are."""
    path = write_vg(tmp_path) / "vg_category_500_labels_index.json"
    before = read_500(tmp_path).labels
    path.write_text(json.dumps({**GOOD, "3.jpg": ["?"]}))
    assert read_500(tmp_path).labels == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"2.jpg": [1, 2', "is truncated"),
        ('{"2.jp', "is truncated"),
        ('{"2.jpg": [1]}\n}', "line 2, column 1: is not JSON"),
        ("{'2.jpg': [1]}", "line 1, column 2: is not JSON"),
        ('{"2.jpg": [1], "3.jpg": [], "2.jpg": [2]}', "a key twice(.|\n)*'2.jpg'"),
        ("[" * 200_000, "that can be read"),
        (b'{"2.jpg\xff": []}', "line 1: is not UTF-8"),
    ],
)
def test_bad_json(tmp_path, content, words):
    """JSON that is damaged, truncated or abused ends in an error of catwise that names the file."""
    path = tmp_path / "labels.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelError, match=words) as caught:
        read_json(path, "labels")
    assert "labels.json" in str(caught.value)


def test_truncation(tmp_path):
    """Labels that are cut anywhere are refused."""
    path = write_vg(tmp_path) / "vg_category_500_labels_index.json"
    content = path.read_bytes()
    for n in range(len(content)):
        path.write_bytes(content[:n])
        with pytest.raises(LabelError, match=r"is truncated|is empty"):
            read_500(tmp_path)
