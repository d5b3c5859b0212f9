"""PASCAL VOC in miniature: lists, marks, annotations, and what can be wrong with them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.data.readers.voc import CATEGORIES, read_voc
from catwise.errors import CatwiseError, ConfigError, IdError, LabelError

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.data import Dataset

# Marks of each image: 1 where there is an object, 0 where there are difficult ones only.
TRAIN = {"000012": {"car": 1}, "000017": {"person": 1, "horse": 1, "car": 0}}
VAL = {"000005": {"chair": 1, "train": 0}, "000007": {}}
TEST = {"000001": {"dog": 1, "person": 0}}
MINI = {"train": TRAIN, "val": VAL, "trainval": {**VAL, **TRAIN}, "test": TEST}

DIFFICULT_CODES = {"unknown": -1, "positive": 1, "negative": 0}


def object_xml(name: str, difficult: int | None) -> str:
    """An object as the release writes it, with a part that has a name and a box of its own."""
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><pose>Left</pose>{flag}{part}</object>"


def annotation_xml(image: str, marks: dict[str, int]) -> str:
    """An annotation: where a category has an object, a difficult one may be next to it."""
    objects = []
    for name, mark in marks.items():
        objects += [object_xml(name, 1)] * 2 if mark == 0 else [object_xml(name, 0)]
        if mark == 1 and name == "person":
            objects.append(object_xml(name, 1))
    source = (
        f"<source><database>VOC</database></source><owner><name>{escape('J & é')}</name></owner>"
    )
    return (
        f"<annotation>\n\t<filename>{image}.jpg</filename>\n\t{source}\n\t"
        + "\n\t".join(objects)
        + "\n</annotation>\n"
    )


def write_voc(
    root: Path, year: int = 2007, splits: dict[str, dict[str, dict[str, int]]] = MINI
) -> Path:
    """Write VOCdevkit as the release has it; returns the folder of the year."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    main = folder / "ImageSets" / "Main"
    for place in (main, folder / "Annotations", folder / "JPEGImages"):
        place.mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        (main / f"{split}.txt").write_text("".join(f"{image}\n" for image in images))
        for name in CATEGORIES:
            lines = [f"{image} {marks.get(name, -1):2d}\n" for image, marks in images.items()]
            (main / f"{name}_{split}.txt").write_text("".join(lines))
        for image, marks in images.items():
            text = annotation_xml(image, marks)
            (folder / "Annotations" / f"{image}.xml").write_text(text, encoding="utf-8")
            (folder / "JPEGImages" / f"{image}.jpg").touch()
    return folder


def remove_sets(folder: Path) -> None:
    """Leave the annotations as the only source."""
    for name in CATEGORIES:
        for path in (folder / "ImageSets" / "Main").glob(f"{name}_*.txt"):
            path.unlink()


def known(dataset: Dataset) -> dict[str, dict[str, int]]:
    """The labels of each image that are not negative."""
    return {
        str(dataset.labels.ids[i]): {
            name: int(code)
            for name, code in zip(dataset.labels.categories, row, strict=True)
            if code != 0
        }
        for i, row in enumerate(dataset.labels.codes)
    }


def test_golden(tmp_path):
    """The miniature, read from its lists."""
    write_voc(tmp_path)
    dataset = read_voc(tmp_path)
    assert dataset.name == "voc2007"
    assert dataset.labels.categories == CATEGORIES
    assert len(CATEGORIES) == 20
    assert dataset.labels.ids.tolist() == ["000005", "000007", "000012", "000017"]
    assert known(dataset) == {
        "000005": {"chair": 1, "train": -1},
        "000007": {},
        "000012": {"car": 1},
        "000017": {"person": 1, "horse": 1, "car": -1},
    }
    assert dataset.paths.tolist()[0] == "VOCdevkit/VOC2007/JPEGImages/000005.jpg"
    assert (dataset.root / dataset.paths[0]).is_file()
    assert dataset.splits.tolist() == ["trainval"] * 4
    assert dataset.groups is None
    assert dataset.counts == {
        "labels_from": "image_sets",
        "difficult_labels": 2,
        "images_without_objects": 1,
        "images_without_files": 0,
    }
    json.dumps(dataset.counts)
    assert dataset.notes == (
        "Labels are those of ImageSets/Main/<category>_<split>.txt.",
        "A category with difficult objects only is read as unknown.",
    )


@pytest.mark.parametrize("split", list(MINI))
@pytest.mark.parametrize("difficult", list(DIFFICULT_CODES))
def test_sources_agree(tmp_path, split, difficult):
    """Lists and annotations give the same labels for every split and every policy."""
    folder = write_voc(tmp_path)
    options = {"split": split, "difficult": difficult}
    read = {
        source: read_voc(tmp_path, source=source, **options)
        for source in ("auto", "image_sets", "annotations", "both")
    }
    remove_sets(folder)
    read["fallback"] = read_voc(tmp_path, **options)
    assert read["auto"].counts["labels_from"] == "image_sets"
    assert read["fallback"].counts["labels_from"] == "annotations"
    assert read["fallback"].notes[0] == "Labels are those of the objects in Annotations."
    for dataset in read.values():
        assert dataset.labels == read["auto"].labels
    expected = {
        image: {
            name: code
            for name, mark in marks.items()
            if (code := 1 if mark else DIFFICULT_CODES[difficult])
        }
        for image, marks in MINI[split].items()
    }
    assert known(read["auto"]) == expected


images_of = st.dictionaries(
    st.from_regex(r"(2007|2008)_[0-9]{6}|[0-9]{6}", fullmatch=True),
    st.dictionaries(st.sampled_from(CATEGORIES), st.sampled_from([0, 1])),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(images=images_of, source=st.sampled_from(["image_sets", "annotations", "both"]))
def test_round_trip(tmp_path_factory, images, source):
    """Labels that are written in the layout of the release are read back."""
    root = tmp_path_factory.mktemp("voc")
    write_voc(root, 2012, {"train": images})
    dataset = read_voc(root, year=2012, split="train", source=source)
    codes = {1: 1, 0: -1}
    assert known(dataset) == {
        image: {name: codes[mark] for name, mark in marks.items()}
        for image, marks in images.items()
    }
    assert dataset.labels.ids.tolist() == list(images)
    assert dataset.counts["difficult_labels"] == sum(
        mark == 0 for marks in images.values() for mark in marks.values()
    )
    shutil.rmtree(root)


def test_places(tmp_path):
    """The root is the folder of the year, VOCdevkit or its parent; paths start from it."""
    folder = write_voc(tmp_path)
    for root in (folder, folder.parent, tmp_path):
        dataset = read_voc(str(root), split="test")
        assert dataset.root == root
        assert all((root / path).is_file() for path in dataset.paths)
    with pytest.raises(LabelError, match="no folder VOC2012/ImageSets/Main"):
        read_voc(folder, year=2012)
    with pytest.raises(LabelError, match=r"no folder VOC2007(.|\n)*found: +no folder"):
        read_voc(tmp_path / "nowhere")


def test_missing_images(tmp_path):
    """Labels are read without the images, which are counted."""
    folder = write_voc(tmp_path)
    (folder / "JPEGImages" / "000005.jpg").unlink()
    dataset = read_voc(tmp_path)
    assert dataset.counts["images_without_files"] == 1
    assert len(dataset.notes) == 2
    shutil.rmtree(folder / "JPEGImages")
    dataset = read_voc(tmp_path)
    assert dataset.counts["images_without_files"] == 4
    assert dataset.notes[-1] == "There is no folder JPEGImages; paths tell where it should be."


def test_order_and_line_ends(tmp_path):
    """Marks are joined by image, not by line; Windows line ends and blank lines do no harm."""
    folder = write_voc(tmp_path)
    before = read_voc(tmp_path).labels
    path = folder / "ImageSets" / "Main" / "person_trainval.txt"
    path.write_bytes("\r\n\r\n".join(reversed(path.read_text().splitlines())).encode())
    list_path = folder / "ImageSets" / "Main" / "trainval.txt"
    list_path.write_bytes(b"\xef\xbb\xbf" + list_path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_voc(tmp_path).labels == before


def test_silent_about_difficult(tmp_path):
    """An object without `difficult` is not difficult, as in the development kit; it is counted."""
    folder = write_voc(tmp_path)
    path = folder / "Annotations" / "000007.xml"
    path.write_text(f"<annotation>{object_xml('cow', None)}</annotation>")
    dataset = read_voc(tmp_path, source="annotations")
    assert known(dataset)["000007"] == {"cow": 1}
    assert dataset.counts["objects_without_difficult"] == 1
    assert dataset.notes[1] == "An object that does not say whether it is difficult is read as not."


def test_parts_are_no_objects(tmp_path):
    """The name and the flags of a part, wherever it stands, are not those of its object."""
    path = write_voc(tmp_path) / "Annotations" / "000007.xml"
    part = "<part><name>head</name><difficult>1</difficult></part>"
    path.write_text(f"<annotation><object>{part}<name>cow</name></object>{part}</annotation>")
    dataset = read_voc(tmp_path, source="annotations")
    assert known(dataset)["000007"] == {"cow": 1}


def test_test_images_of_2012(tmp_path):
    """The test images of 2012 have no labels, and the error says so."""
    write_voc(tmp_path, 2012)
    with pytest.raises(ConfigError, match="VOC2012 have no labels"):
        read_voc(tmp_path, year=2012, split="test")
    assert read_voc(tmp_path, year=2012, split="val").name == "voc2012"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"year": 2010}, "year cannot be 2010"),
        ({"split": "vla"}, "did you mean 'val'"),
        ({"difficult": "uncertain"}, "difficult cannot be 'uncertain'"),
        ({"source": "xml"}, "source cannot be 'xml'"),
    ],
)
def test_bad_options(tmp_path, options, words):
    """Options that are not possible are named."""
    with pytest.raises(ConfigError, match=words):
        read_voc(tmp_path, **options)


def test_disagreement(tmp_path):
    """With both sources, the first label they do not share is named."""
    folder = write_voc(tmp_path)
    path = folder / "Annotations" / "000012.xml"
    path.write_text(path.read_text(encoding="utf-8").replace(">car<", ">bus<"), encoding="utf-8")
    with pytest.raises(LabelError, match=r"bus_trainval.txt(.|\n)*000012(.|\n)*first of 2"):
        read_voc(tmp_path, source="both")
    assert known(read_voc(tmp_path))["000012"] == {"car": 1}


MAIN = "ImageSets/Main"


@pytest.mark.parametrize(
    ("file", "content", "error", "words"),
    [
        (f"{MAIN}/trainval.txt", None, LabelError, r"no file '.*trainval\.txt'"),
        (f"{MAIN}/trainval.txt", "", LabelError, "is empty"),
        (f"{MAIN}/trainval.txt", "\ufeff", LabelError, "is empty"),
        (
            f"{MAIN}/trainval.txt",
            "000005\n000005\n",
            IdError,
            r"duplicate(.|\n)*line 1 and .*line 2",
        ),
        (f"{MAIN}/trainval.txt", "000005\n\n000007  1\n", IdError, r"000007  1' in .*line 3"),
        (f"{MAIN}/trainval.txt", "../000005\n", IdError, r"\.\./000005' in .*line 1"),
        (f"{MAIN}/trainval.txt", b"000005\n\xff\n", LabelError, "line 2: is not UTF-8"),
        (f"{MAIN}/cow_trainval.txt", None, LabelError, r"no 'cow_trainval\.txt'"),
        (f"{MAIN}/cow_trainval.txt", "000005  2\n", LabelError, r"000005  2' in .*line 1"),
        (f"{MAIN}/cow_trainval.txt", "000005\n", LabelError, "000005' in .*line 1"),
        (f"{MAIN}/cow_trainval.txt", "000099 -1\n", IdError, r"000099' in .*line 1"),
        (f"{MAIN}/cow_trainval.txt", "000005 -1\n000005 -1\n", IdError, "line 1 and .*line 2"),
        (f"{MAIN}/cow_trainval.txt", "000005 -1\n", IdError, r"'000007' in .*first of 3"),
    ],
)
def test_bad_lists(tmp_path, file, content, error, words):
    """What is wrong with a list is told with its file and line."""
    path = write_voc(tmp_path) / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=words) as caught:
        read_voc(tmp_path)
    assert "trainval.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"trainval\.txt', line 1: an image has no annotation"),
        ("", "is empty"),
        ("<annotation><object>\n<name>dog</na", "line 2, column .*: is not XML"),
        ("<annotations/>", "is not an annotation"),
        ("<annotation><object></object></annotation>", "object 1: its name is not a category"),
        (
            f"<annotation>{object_xml('cat', 0)}{object_xml('Car', 0)}</annotation>",
            r"object 2: its name(.|\n)*did you mean 'car'",
        ),
        (
            f"<annotation>{object_xml('cat', 0).replace('>0<', '>yes<')}</annotation>",
            r"object 1: unrecognised value of difficult(.|\n)*'yes'",
        ),
        ("<!DOCTYPE a>\n<annotation/>", "line 1: a declaration is not allowed"),
        (
            '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY x SYSTEM "file:///a">]>\n<annotation/>',
            "line 2: a declaration is not allowed",
        ),
        ("<annotation><object><name>&x;</name></object></annotation>", "is not XML"),
        (b"<annotation>\n\xe9</annotation>", "line 2: is not UTF-8"),
    ],
)
def test_bad_annotations(tmp_path, content, words):
    """What is wrong with an annotation is told with its file and the object."""
    path = write_voc(tmp_path) / "Annotations" / "000005.xml"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelError, match=words) as caught:
        read_voc(tmp_path, source="annotations")
    assert "000005.xml" in str(caught.value)
    assert read_voc(tmp_path, source="image_sets").labels.n_rows == 4


def test_truncation(tmp_path):
    """An annotation cut anywhere is refused by an error of catwise, or is whole but for blanks."""
    path = write_voc(tmp_path) / "Annotations" / "000005.xml"
    content = path.read_bytes()
    for n in range(len(content.rstrip())):
        path.write_bytes(content[:n])
        with pytest.raises(CatwiseError, match=r"000005\.xml"):
            read_voc(tmp_path, source="annotations")
    path.write_bytes(content.rstrip())
    assert read_voc(tmp_path, source="both").labels.n_rows == 4


def test_dense(tmp_path):
    """Codes are read-only and of one byte."""
    write_voc(tmp_path)
    codes = read_voc(tmp_path).labels.codes
    assert codes.dtype == np.int8
    assert not codes.flags.writeable
