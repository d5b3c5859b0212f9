"""Tables without a header line: noticed, and read where that is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from catwise.data import read_table
from catwise.data.files import looks_like_data
from catwise.data.readers import read_label_lists
from catwise.data.table import read_label_table, split_counts
from catwise.errors import CategoryError, CatwiseError, ConfigError, LabelError

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


LOST = [
    ("wide", "1,0,1\n0,1,1\n"),
    ("wide", "1,0\n0,1\n"),
    ("wide", "1\n0\n"),
    ("wide", "1.0,0.0,\n0.0,1.0,1.0\n"),
    ("wide", "True,False\nFalse,True\n"),
    ("wide", "0.5,0.25\n0,1\n"),
    ("wide", "a1,1,0,1\na2,0,1,1\n"),
    ("wide", "17,1,0\n18,0,1\n"),
    ("wide", "a.jpg,cat,1\nb.jpg,dog,0\n"),
    ("wide", "2020-01-31,1,0\n2020-02-01,0,1\n"),
    ("wide", "2020-01-31,2020-02-01\n1,0\n"),
    ("wide", "\ufeff1,0,1\n0,1,1\n"),
    ("wide", "\n1,0,1\n0,1,1\n"),
    ("long", "a.jpg,cat,1\nb.jpg,cat,0\n"),
    ("long", "17,cat,1\n18,cat,0\n"),
    ("lists", "a.jpg,cat|dog\nb.jpg,dog\n"),
]


@pytest.mark.parametrize(("layout", "text"), LOST)
@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv"])
def test_a_first_line_of_data(tmp_path: Path, layout: str, text: str, name: str) -> None:
    """It is refused where it would be lost or become names, with what to say."""
    path = write(tmp_path, text.replace(",", "\t") if name.endswith("tsv") else text, name)
    options: dict[str, Any] = {"encoding": "nan"}
    if layout == "lists":
        options = {"others": "unknown", "separator": "|"}
    with pytest.raises(LabelError, match=r"the first line looks like data(.|\n)*--no-header"):
        read_table(path, layout=layout, **options)  # type: ignore[arg-type]


def test_headers_that_are_headers(tmp_path: Path) -> None:
    """Default names of categories, a blank name of the ids, and a column that was asked for."""
    for text in ("id,0,1\na,1,0\n", ",0,1\na,1,0\n", "0,1\n1,0\n", "a.jpg,1\na,1\n", "id,1\na,1\n"):
        column = text.split(",")[0] if not text.startswith("0") else None
        labels = read_table(write(tmp_path, text), encoding="nan", id_column=column).labels
        assert labels.n_rows == 1
    text = "1,-1\n1,0\n"
    labels = read_table(write(tmp_path, text), encoding="nan", categories=["-1"]).labels
    assert (labels.categories, labels.codes.tolist()) == (("-1",), [[0]])
    labels = read_table(write(tmp_path, text), encoding="nan", header=True).labels
    assert labels.categories == ("1", "-1")


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.csv.gz"])
def test_no_header_wide(tmp_path: Path, name: str) -> None:
    """No row is lost; columns are known by their position."""
    text = "a.jpg,p1,1,\nb.jpg,p1,0,1\n"
    path = tmp_path / name
    if name.endswith("gz"):
        import gzip

        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text.replace(",", "\t") if name.endswith("tsv") else text)
    options: dict[str, Any] = {"encoding": "nan", "id_column": "1", "group_column": "2"}
    labels = read_table(path, header=False, **options).labels
    assert labels.ids is not None
    assert labels.groups is not None
    assert (labels.ids.tolist(), labels.groups.tolist()) == (["a.jpg", "b.jpg"], ["p1", "p1"])
    assert (labels.categories, labels.codes.tolist()) == (("3", "4"), [[1, -1], [0, 1]])
    some = read_label_table(path, header=False, categories=["4"], **options)
    assert some.codes.tolist() == [[-1], [1]]


def test_no_header_long_and_lists(tmp_path: Path) -> None:
    """Id, category and value, or id and positives, stand first if nothing else is said."""
    path = write(tmp_path, "a.jpg,cat,1\nb.jpg,cat,0\n")
    labels = read_table(path, layout="long", encoding="nan", header=False).labels
    assert (labels.codes.tolist(), labels.categories) == ([[1], [0]], ("cat",))
    path = write(tmp_path, "a.jpg\tcat|dog\nb.jpg\tdog\n", "lists.tsv")
    labels = read_table(path, layout="lists", others="negative", separator="|", header=False).labels
    assert labels.codes.tolist() == [[1, 1], [0, 1]]
    path = write(tmp_path, "cat,dog,a.jpg\n", "lists.csv")
    options: dict[str, Any] = {"positive_key": "1", "negative_key": "2", "id_key": "3"}
    lists = read_label_lists(path, others="unknown", separator="|", header=False, **options)
    assert lists.codes.tolist() == [[1, 0]]


def test_lists_without_a_header_line(tmp_path: Path) -> None:
    """Numbers before texts may be names: none of them lists categories, and that is said."""
    for text in ("1,cat|dog\n2,dog\n", "a,cat\nb,dog\n", "a,cat,dog\n"):
        path = write(tmp_path, text)
        for named in ({}, {"id_key": text[0]}):
            with pytest.raises(LabelError, match=r"no lists of categories[\s\S]*header=F"):
                read_label_lists(path, others="unknown", separator="|", **named)
    given: dict[str, Any] = {"others": "unknown", "separator": "|", "header": False}
    with pytest.raises(LabelError, match="not expected"):  # is it a list of negatives, a split?
        read_label_lists(path, **given)
    assert read_label_lists(path, **given, negative_key="3").codes.tolist() == [[1, 0]]
    assert read_label_lists(path, **given, ignore=["3"]).codes.tolist() == [[1]]
    assert read_label_lists(path, **given, split_key="3", split="dog").ids.tolist() == ["a"]


def test_names_of_thousands_of_letters(tmp_path: Path) -> None:
    """An error shows where they begin."""
    long = "9" * 10_000
    for text in (f"{long},{long}\na,1\n", f"{long},cat\na,1\n"):
        with pytest.raises(LabelError) as error:
            read_table(write(tmp_path, text), encoding="nan", id_column="id", header=True)
        assert len(str(error.value)) < 1000


def test_lines_of_a_table_without_header(tmp_path: Path) -> None:
    """An error names the line that is meant; quotes, blank lines and one column are no harm."""
    path = write(tmp_path, '"a",1\n"b",7\n')
    with pytest.raises(LabelError, match="line 2, column '2'"):
        read_table(path, encoding="nan", id_column="1", header=False)
    path = write(tmp_path, '"a",1\n"b"\n')
    with pytest.raises(LabelError, match="line 2: not as many fields"):
        read_table(path, encoding="nan", id_column="1", header=False)
    path = write(tmp_path, "\n\n1\n\n0\n")
    labels = read_table(path, encoding="nan", header=False).labels
    assert labels.codes.tolist() == [[1], [-1], [0]]
    path = write(tmp_path, "a,1\n")
    assert read_table(path, encoding="nan", id_column="1", header=False).labels.n_rows == 1
    assert split_counts(path, "1", header=False) == {"a": 1}


BEFORE = [
    ("CheXpert labels\nid,cat,dog\na,1,0\n", "not as many fields|a single column"),
    ("CheXpert,,\nid,cat,dog\na,1,0\n", "two columns of one name"),
    ("# labels of 2020\nid,cat\na,1\n", "not as many fields"),
    ("id,cat,cat\na,1,0\n", "two columns of one name"),
    ("a.jpg,1,1\nb.jpg,0,1\n", "looks like data"),
    ("id,,cat\na,1,0\n", "a column of labels without a name"),
]


@pytest.mark.parametrize(("text", "reason"), BEFORE)
def test_other_first_lines(tmp_path: Path, text: str, reason: str) -> None:
    """Titles, comments, names that repeat or are blank: one error each, no category of them."""
    with pytest.raises(CatwiseError, match=reason):
        read_table(write(tmp_path, text), encoding="nan", id_column=None)


def test_an_index_without_a_name(tmp_path: Path) -> None:
    """What pandas writes first is no category; it can be the ids."""
    path = write(tmp_path, ",cat,dog\n0,1,0\n1,0,1\n")
    with pytest.raises(CategoryError, match="without a name"):
        read_table(path, encoding="nan")
    assert read_table(path, encoding="nan", id_column="").labels.categories == ("cat", "dog")


def test_header_belongs_to_text(tmp_path: Path) -> None:
    """JSON lines and Parquet have names always."""
    path = write(tmp_path, '{"id": "a", "cat": 1}\n', "labels.jsonl")
    with pytest.raises(ConfigError, match="belongs to text tables"):
        read_table(path, encoding="nan", id_column="id", header=False)
    with pytest.raises(ConfigError, match="belong to tables"):
        read_label_lists(path, others="unknown", header=False)


def test_what_looks_like_data() -> None:
    """Numbers beyond labels, dates in words and infinity are names."""
    for names in (["7", "12"], ["1", "3", "17"], ["id", "inf"], ["May 2020"], ["", ""], ["id"]):
        assert not looks_like_data(names), names
    for names in (["x", "0.5"], ["IMG.PNG"], ["p/1.dcm.gz", "x"], ["1", "nan"]):
        assert looks_like_data(names), names
