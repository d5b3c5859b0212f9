"""CelebA in miniature: the aligned text files, the CSV files on Kaggle, and what goes wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers.celeba import read_celeba
from catwise.errors import CategoryError, CatwiseError, ConfigError, IdError, LabelError
from faults import check_fault

NAMES = ["5_o_Clock_Shadow", "Bald", "Young"]
IDS = ["000001.jpg", "000002.jpg", "000003.jpg", "000004.jpg"]
CODES = [[0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 0]]
PARTS = [0, 1, 2, 0]
PEOPLE = [2880, 2937, 2880, 7]
ATTRIBUTES, PARTITION = "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"
IDENTITY = "Anno/identity_CelebA.txt"


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def write_release(
    root: Path,
    ids: Any = IDS,
    codes: Any = CODES,
    parts: Any = PARTS,
    people: Any = PEOPLE,
    end: str = "\n",
) -> Path:
    """The official files: a line of names that ends in a space, and values that are aligned."""
    rows = ["".join(f"{2 * code - 1:3}" for code in row) for row in codes]
    names = NAMES[: len(codes[0])]
    lines = [str(len(ids)), "".join(f"{name} " for name in names)]
    lines += [name + row for name, row in zip(ids, rows, strict=True)]
    write(root, ATTRIBUTES, "".join(line + end for line in lines))
    for file, values in ((PARTITION, parts), (IDENTITY, people)):
        pairs = zip(ids, values, strict=True)
        write(root, file, "".join(f"{name} {value}{end}" for name, value in pairs))
    return root


def write_csv(root: Path) -> Path:
    """The two files on Kaggle."""
    lines = [",".join(["image_id", *NAMES])]
    pairs = zip(IDS, CODES, strict=True)
    lines += [",".join([name, *(str(2 * code - 1) for code in row)]) for name, row in pairs]
    write(root, "list_attr_celeba.csv", "\n".join(lines) + "\n")
    lines = ["image_id,partition", *(f"{i},{p}" for i, p in zip(IDS, PARTS, strict=True))]
    write(root, "list_eval_partition.csv", "\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_release(tmp_path, end):
    """Codes, ids, splits, identities and counts of the whole miniature."""
    dataset = read_celeba(write_release(tmp_path, end=end))
    assert dataset.labels.categories == tuple(NAMES)
    assert dataset.labels.codes.tolist() == CODES
    assert dataset.labels.ids.tolist() == IDS
    assert dataset.splits.tolist() == ["train", "valid", "test", "train"]
    assert dataset.groups.tolist() == ["2880", "2937", "2880", "7"]
    assert dataset.paths.tolist() == [f"Img/img_align_celeba/{name}" for name in IDS]
    assert dataset.root == tmp_path
    assert dataset.counts == {"images_listed": 4, "identities": 3, "identities_in_two_splits": 1}
    assert dataset.notes == (
        "Every label is known: 1 is positive, -1 negative.",
        "The group of an image is its identity; 1 of 3 are in two splits.",
    )


def test_a_split(tmp_path):
    """One split; the identities are counted before it is taken."""
    dataset = read_celeba(write_release(tmp_path), split="train")
    assert dataset.labels.ids.tolist() == ["000001.jpg", "000004.jpg"]
    assert dataset.labels.codes.tolist() == [CODES[0], CODES[3]]
    assert dataset.groups.tolist() == ["2880", "7"]
    assert dataset.splits.tolist() == ["train", "train"]
    assert dataset.counts["identities_in_two_splits"] == 1


def test_a_split_without_images(tmp_path):
    """A partition that has none of a split says which it has."""
    root = write_release(tmp_path, parts=[0, 0, 2, 0])
    with pytest.raises(ConfigError, match="no split 'valid'"):
        read_celeba(root, split="valid")


def test_identities_in_one_split(tmp_path):
    """Identities that keep to a split are not counted."""
    root = write_release(tmp_path, people=[5, 6, 7, 5])
    counts = read_celeba(root).counts
    assert (counts["identities"], counts["identities_in_two_splits"]) == (3, 0)


def test_csv_files(tmp_path):
    """The CSV variants say the same; they have no identities."""
    root = write_csv(tmp_path / "csv")
    folder = "img_align_celeba/img_align_celeba"
    dataset = read_celeba(root, groups=None, images=folder)
    official = read_celeba(write_release(tmp_path / "txt"), groups=None)
    assert dataset.labels == official.labels
    assert dataset.splits.tolist() == official.splits.tolist()
    assert dataset.paths.tolist() == [f"{folder}/{name}" for name in IDS]
    assert dataset.groups is None
    assert dataset.counts == {"images_listed": 4}
    with pytest.raises(LabelError, match="identity_CelebA") as caught:
        read_celeba(root)
    assert "groups=None" in caught.value.remedy


def test_text_files_come_first(tmp_path):
    """Where both variants are there, the text files are read; they may lie in the root itself."""
    root = write_csv(write_release(tmp_path))
    path = root / "list_eval_partition.csv"
    path.write_text(path.read_text().replace(",0", ",2"))
    assert read_celeba(root).splits.tolist() == ["train", "valid", "test", "train"]
    for name in (ATTRIBUTES, PARTITION, IDENTITY):
        (root / name).rename(root / Path(name).name)
    assert read_celeba(root).splits.tolist() == ["train", "valid", "test", "train"]
    (root / "list_eval_partition.txt").unlink()
    assert read_celeba(root).splits.tolist() == ["test", "valid", "test", "test"]


def test_another_order(tmp_path):
    """Partition and identities are matched by name, not by line."""
    root = write_release(tmp_path)
    for name in (PARTITION, IDENTITY):
        lines = (root / name).read_text().splitlines()
        (root / name).write_text("\n".join([lines[i] for i in (2, 0, 3, 1)]))
    dataset = read_celeba(root)
    assert dataset.splits.tolist() == ["train", "valid", "test", "train"]
    assert dataset.groups.tolist() == ["2880", "2937", "2880", "7"]


def test_spellings(tmp_path):
    """Tabs, a byte-order mark, space at the ends of lines, and no last line end."""
    root = write_release(tmp_path)
    path = root / ATTRIBUTES
    text = path.read_text().replace("\n", " \n").replace(".jpg ", ".jpg\t").rstrip()
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    (root / PARTITION).write_text(" 000001.jpg  0\n000002.jpg\t1\n000003.jpg 2\n000004.jpg 0\n\n")
    dataset = read_celeba(root)
    assert dataset.labels.codes.tolist() == CODES
    assert dataset.splits.tolist() == ["train", "valid", "test", "train"]


HEAD = "2\nBald Young \n"
#: What is wrong → the file, its new text (None: it is missing), the error, its message.
FAULTS: dict[str, tuple[str, str | bytes | None, type[CatwiseError], str]] = {
    "no attributes": (ATTRIBUTES, None, LabelError, "has no file of"),
    "no partition": (PARTITION, None, LabelError, "has no file of"),
    "no identities": (IDENTITY, None, LabelError, "has no file of"),
    "empty": (ATTRIBUTES, "\n", LabelError, "is empty"),
    "no number": (ATTRIBUTES, "Bald Young\na.jpg 1 1\n", LabelError, "line 1: is not the number"),
    "no names": (ATTRIBUTES, "1\n\na.jpg 1 1\n", LabelError, "line 2: has no names"),
    "names twice": (ATTRIBUTES, "1\nBald Bald\na.jpg 1 1\n", CategoryError, "line 2: "),
    "only a head": (ATTRIBUTES, HEAD, LabelError, "truncated"),
    "fewer images": (ATTRIBUTES, HEAD + "a.jpg 1 1\n", LabelError, "1 images"),
    "more images": (ATTRIBUTES, "1\nBald Young\na.jpg 1 1\nb.jpg 1 1\n", LabelError, "2 images"),
    "cut": (ATTRIBUTES, HEAD + "a.jpg  1 -1\nb.jpg -1", LabelError, "line 4 has 2 of 3 fields"),
    "short": (ATTRIBUTES, HEAD + "a.jpg  1\nb.jpg -1  1\n", LabelError, "line 3: not as many"),
    "long": (ATTRIBUTES, HEAD + "a.jpg 1 1\nb.jpg 1 1 1\n", LabelError, "line 4: not as many"),
    "gap": (ATTRIBUTES, HEAD + "a.jpg 1 1\n\nb.jpg 1 1\n", LabelError, "line 4: not as many"),
    "early gap": (ATTRIBUTES, HEAD + "\na.jpg 1 1\nb.jpg 1 1\n", LabelError, "line 3: not as"),
    "zero": (ATTRIBUTES, HEAD + "a.jpg 1 1\nb.jpg 1 0\n", LabelError, "line 4, column 'Young'"),
    "word": (ATTRIBUTES, HEAD + "a.jpg x 1\nb.jpg 1 1\n", LabelError, "line 3, column 'Bald'"),
    "large": (ATTRIBUTES, HEAD + "a.jpg 1 1\nb.jpg 257 1\n", LabelError, "line 4, column 'Bald'"),
    "latin-1": (ATTRIBUTES, HEAD.encode() + b"\xe9.jpg 1 1\nb 1 1\n", LabelError, "line 3: is"),
    "image twice": (ATTRIBUTES, HEAD + "a.jpg 1 1\na.jpg 1 1\n", IdError, "line 3 and "),
    "part 3": (PARTITION, "000001.jpg 0\n000002.jpg 3\n", LabelError, "line 2 (first of"),
    "part twice": (PARTITION, "a.jpg 0\nb.jpg 1\na.jpg 0\n", IdError, "line 1 and"),
    "part cut": (PARTITION, "000001.jpg 0\n000002.jpg", LabelError, "line 2 has 1 of 2 fields"),
    "part wide": (PARTITION, "000001.jpg 0 0\n", LabelError, "line 1: not as many"),
    "part latin-1": (PARTITION, b"000001.jpg 0\n\xe9.jpg 0\n", LabelError, "line 2: is not UTF-8"),
    "part missing": (PARTITION, "000001.jpg 0\n000002.jpg 1\n", IdError, "'000003.jpg' in"),
    "part beyond": (
        PARTITION,
        "".join(f"{name} 0\n" for name in [*IDS, "000009.jpg"]),
        IdError,
        "'000009.jpg' in",
    ),
    "identity head": (IDENTITY, "img label\n000001.jpg 1\n", LabelError, "line 1 (first of"),
    "identity missing": (IDENTITY, "000001.jpg 1\n", IdError, "'000002.jpg' in"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    """Every fault has its own error, which names the file and the line."""
    name, text, kind, message = FAULTS[fault]
    path = write_release(tmp_path) / name
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    check_fault(lambda: read_celeba(tmp_path), kind, message, name if text is None else path)


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("attr_celeba", "image_id,Bald\na.jpg,1\nb.jpg,0\n", LabelError, "line 3, column 'Bald'"),
        ("attr_celeba", "image,Bald\na.jpg,1\n", LabelError, "no column 'image_id'"),
        ("attr_celeba", "image_id,Bald\na.jpg,1\na.jpg,1\n", IdError, "line 3"),
        ("eval_partition", "image_id,split\na.jpg,1\n", LabelError, "no column 'partition'"),
        ("eval_partition", "image_id,partition\n", LabelError, "no rows"),
        ("eval_partition", "image_id,partition\na,0\nb,train\n", LabelError, "line 3, column"),
        ("eval_partition", "image_id,partition\na,0\nb,1\na,0\n", IdError, "line 2"),
        ("eval_partition", "image_id,partition\n000001.jpg,0\n", IdError, "'000002.jpg' in"),
    ],
)
def test_faults_of_csv_files(tmp_path, name, text, kind, message):
    """The CSV variants are checked alike."""
    path = write(write_csv(tmp_path), f"list_{name}.csv", text)
    check_fault(lambda: read_celeba(tmp_path, groups=None), kind, message, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "did you mean 'valid'"),
        ({"groups": "person"}, "groups cannot be 'person'"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    """Wrong choices are refused before any file is opened."""
    with pytest.raises(ConfigError) as caught:
        read_celeba(tmp_path / "nowhere", **options)
    assert message in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read(data):
    """Random labels, splits and identities come back as they were."""
    n, n_names = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 3))
    bits = st.lists(st.integers(0, 1), min_size=n_names, max_size=n_names)
    codes = data.draw(st.lists(bits, min_size=n, max_size=n))
    parts = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    people = data.draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    ids = [f"{i:06}.jpg" for i in data.draw(st.permutations(range(1, n + 1)))]
    with tempfile.TemporaryDirectory() as folder:
        root = write_release(Path(folder), ids, codes, parts, people)
        for name in (PARTITION, IDENTITY):
            lines = (root / name).read_text().splitlines()
            (root / name).write_text("\n".join(data.draw(st.permutations(lines))))
        dataset = read_celeba(root)
    assert dataset.labels.codes.tolist() == codes
    assert dataset.labels.ids.tolist() == ids
    assert dataset.splits.tolist() == [("train", "valid", "test")[part] for part in parts]
    assert dataset.groups.tolist() == [str(person) for person in people]
    found = {
        person: {p for p, q in zip(parts, people, strict=True) if q == person} for person in people
    }
    assert dataset.counts["identities"] == len(found)
    assert dataset.counts["identities_in_two_splits"] == sum(len(s) > 1 for s in found.values())
