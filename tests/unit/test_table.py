"""Label tables: wide and long, text and Parquet, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from catwise.data import open_table, read_label_table, split_counts
from catwise.data.source import texts_of
from catwise.errors import CategoryError, CatwiseError, ConfigError, IdError, LabelError
from catwise.labels import PartialLabels

if TYPE_CHECKING:
    from pathlib import Path

WIDE = "image,patient,cat,dog\na,p1,1,\nb,p1,0,1\nc,p2,,0\n"
CODES = [[1, -1], [0, 1], [-1, 0]]
LONG = "id,category,value,patient\na,cat,1,p1\nb,cat,0,p1\nb,dog,1,p1\nc,cat,,p2\nc,dog,0,p2\n"
NAMED = {"id_column": "image", "group_column": "patient", "encoding": "nan"}


def write(folder: Path, content: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_parquet(folder: Path, columns: dict[str, Any], name: str = "labels.parquet") -> Path:
    parquet.write_table(pa.table(columns), folder / name)
    return folder / name


def check(labels: PartialLabels) -> None:
    np.testing.assert_array_equal(labels.codes, CODES)
    assert labels.categories == ("cat", "dog")
    assert labels.ids.tolist() == ["a", "b", "c"]
    assert labels.groups.tolist() == ["p1", "p1", "p2"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", WIDE.encode()),
        ("a.tsv", WIDE.replace(",", "\t").encode()),
        ("a.csv.gz", gzip.compress(WIDE.encode())),
        ("bom.csv", b"\xef\xbb\xbf" + WIDE.encode()),
        ("crlf.CSV", WIDE.replace("\n", "\r\n").encode()),
        ("blank.csv", b"\n" + WIDE.replace("\n", "\n\n").encode()),
        ("open.csv", WIDE.strip().encode()),
        ("quoted.csv", WIDE.replace("dog", '"dog"').replace(",1", ',"1"').encode()),
        ("words.csv", WIDE.replace(",1", ",True").replace(",0", ",FALSE").encode()),
        ("floats.csv", WIDE.replace(",1", ",1.0").replace(",0", ", 0.0 ").encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wide_text(tmp_path, name, content):
    """A wide text table in its many spellings."""
    path = write(tmp_path, content, name)
    check(read_label_table(path, **NAMED))
    check(read_label_table(path, **NAMED))


@pytest.mark.parametrize(
    "values",
    [
        (pa.array([1, 0, None]), pa.array([None, 1, 0])),
        (pa.array([1.0, 0.0, np.nan]), pa.array([None, 1, 0], pa.float32())),
        (pa.array([True, False, None]), pa.array([None, 1, 0], pa.int8())),
        (pa.array(["1", "0", ""]), pa.array([None, "1", "0"]).dictionary_encode()),
    ],
)
def test_wide_parquet(tmp_path, values):
    """A wide Parquet table in its many types."""
    columns = {"image": list("abc"), "patient": ["p1", "p1", "p2"], "cat": values[0]}
    path = write_parquet(tmp_path, {**columns, "dog": values[1]})
    check(read_label_table(path, **NAMED))


def test_long(tmp_path):
    """A long table, as text and as Parquet: rows and categories in order of appearance."""
    options = {"layout": "long", "group_column": "patient", "encoding": "nan"}
    path = write(tmp_path, LONG)
    labels = read_label_table(path, **options)
    check(labels)
    rows = [line.split(",") for line in LONG.splitlines()[1:]]
    image, category, value, patient = zip(*rows, strict=True)
    numbers = [None if v == "" else int(v) for v in value]
    columns = {"image": image, "name": category, "label": numbers, "patient": patient}
    path = write_parquet(tmp_path, columns)
    names = {"id_column": "image", "category_column": "name", "value_column": "label"}
    assert read_label_table(path, **options, **names) == labels
    sparse = read_label_table(path, **options, **names, storage="columns")
    assert sparse.storage == "columns"
    assert sparse == labels


def test_rows_without_ids(tmp_path):
    """A wide table without an id column is positional; a single blank cell is a blank line."""
    path = write(tmp_path, "cat\n1\n\n0\n")
    labels = read_label_table(path, encoding="nan")
    assert labels.ids is None
    assert labels.codes.tolist() == [[1], [-1], [0]]
    with pytest.raises(LabelError, match="line 4, column 'cat'"):
        read_label_table(write(tmp_path, "cat\n1\n\n-1\n"), encoding="nan")


def test_chosen_categories(tmp_path):
    """Categories are read in the order asked for; other columns are not looked at."""
    path = write(tmp_path, WIDE.replace("p1", "whatever"))
    labels = read_label_table(path, encoding="nan", id_column="image", categories=["dog", "cat"])
    assert labels.categories == ("dog", "cat")
    np.testing.assert_array_equal(labels.codes, np.array(CODES)[:, ::-1])
    long = read_label_table(
        write(tmp_path, LONG), encoding="nan", layout="long", categories=["dog"]
    )
    assert long.ids.tolist() == ["a", "b", "c"]
    assert long.codes.tolist() == [[-1], [1], [0]]


def test_splits(tmp_path):
    """Only the rows of a split are read; a category may be missing in one of them."""
    text = "id,category,value,fold\na,cat,1,train\nb,cat,0,valid\na,dog,0,train\n"
    path = write(tmp_path, text)
    options: dict[str, Any] = {"encoding": "complete", "layout": "long", "split_column": "fold"}
    valid = read_label_table(path, split="valid", categories=["dog", "cat"], **options)
    assert valid.ids.tolist() == ["b"]
    assert valid.codes.tolist() == [[-1, 0]]
    assert split_counts(path, "fold") == {"train": 2, "valid": 1}
    with pytest.raises(LabelError, match="no rows of the split 'val'") as caught:
        read_label_table(path, split="val", **options)
    assert caught.value.found == "'train' (2), 'valid' (1)"
    with pytest.raises(ConfigError, match="go together"):
        read_label_table(path, **options)


def test_ids_are_fitted_to_the_features(tmp_path):
    """What surrounds an id is taken off, and other text put around it."""
    path = write(tmp_path, "image,cat\nx/a.png,1\nx/b.png,0\n")
    options: dict[str, Any] = {"encoding": "nan", "id_column": "image", "strip_prefix": "x/"}
    labels = read_label_table(
        path, strip_suffix=".png", id_prefix="train/", id_suffix=".jpg", **options
    )
    assert labels.ids.tolist() == ["train/a.jpg", "train/b.jpg"]
    with pytest.raises(IdError, match="not every id ends") as caught:
        read_label_table(path, strip_suffix="a.png", **options)
    assert "'x/b.png'" in caught.value.found
    assert "line 3, column 'image'" in caught.value.found
    with pytest.raises(ConfigError, match="needs an id_column"):
        read_label_table(path, encoding="nan", id_suffix=".jpg")


#: What is wrong → the content, the error, and what its message must hold.
FAULTS: dict[str, tuple[str | bytes, type[CatwiseError], str]] = {
    "empty": ("", LabelError, "is empty"),
    "blank": ("\n\n", LabelError, "is empty"),
    "no rows": ("image,cat\n", LabelError, "header but no rows"),
    "only a header": ("image,cat", LabelError, "header but no rows"),
    "short line": ("image,cat\na\nb,0\n", LabelError, "line 2: not as many fields"),
    "long line": ("image,cat\na,1\nb,0,1\n", LabelError, "line 3: not as many fields"),
    "cut line": ("image,cat,dog\na,1,1\nb,0", LabelError, "truncated"),
    "cut quote": ('image,cat\na,1\n"b,0\n', LabelError, "truncated"),
    "zeroed end": (b"image,cat\na,1\n" + b"\0" * 50, LabelError, "line 3"),
    "latin-1": (b"image,cat\na,1\nyk\xe9,0\n", LabelError, "line 3: is not UTF-8"),
    "latin-1 header": (b"imag\xe9,cat\na,1\n", LabelError, "line 1: is not UTF-8"),
    "latin-1, CR": (b"image,cat\ra,1\r\ryk\xe9,0\r", LabelError, "line 4: is not UTF-8"),
    "cut character": (b"image,cat\na,1\nb,0\xc3", LabelError, "line 3: is not UTF-8"),
    "UTF-16": ("image,cat\na,1\n".encode("utf-16"), LabelError, "line 1: is not UTF-8"),
    "UTF-16, no mark": ("image,cat\na,1\n".encode("utf-16-le"), LabelError, "a zero byte"),
    "zero byte": (b"image,cat\na,1\n\nb\0,0\n", LabelError, "line 4: no text of a table"),
    "zero byte at the end of an id": (b"image,cat\na\0,1\n", LabelError, "line 2: no text"),
    "text after a quote": ('image,cat\na,1\n"b"c,0\n', LabelError, "line 3: no row of a table"),
    "space after a quote": ('image,cat\r\n"b" ,0\r\n', LabelError, "line 2: no row of a table"),
    "open quote": ('image,cat\n"a\n",1\nb,"0', LabelError, "begins in line 4 is never closed"),
    "open quote in the header": ('image,"cat\na,1\n', LabelError, "line 1 is never closed"),
    "huge field": ("image,cat\na,1\n" + "b" * 131_073 + ",0\n", LabelError, "line 3: no row"),
    "semicolons": ("\nimage;cat\na;1\n", LabelError, "line 2: a single column"),
    "two columns": ("image,cat,cat\na,1,1\n", LabelError, "line 1: has two columns of one name"),
    "no id column": ("\n\nimg,cat\na,1\n", LabelError, "line 3: has no column 'image'"),
    "no category": ("image\na\n", LabelError, "line 1: has no column of labels"),
    "two ids": ('image,cat\n"a\nb",1\nc,1\n\nc,0\n', IdError, "line 4"),
    "blank id": ('image,cat\n"a\nb",1\n,1\n', IdError, "line 4, column 'image'"),
    "text": ("image,cat\na,1\nb,maybe\n", LabelError, "line 3, column 'cat'"),
    "number": ("image,cat\na,1\nb,-1\n", LabelError, "encoding='minus_one_unknown'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_text(tmp_path, fault):
    """Every fault has its own error, which names the file and the line."""
    content, kind, message = FAULTS[fault]
    path = write(tmp_path, content)
    with pytest.raises(kind) as caught:
        read_label_table(path, encoding="nan", id_column="image")
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "labels.csv" in str(caught.value)


def test_both_lines_of_a_repeat(tmp_path):
    """A repeated id is shown with both lines; quoted line ends and blank lines count."""
    path = write(tmp_path, 'image,cat\n"a\nb",1\nc,1\n\nc,0\n')
    with pytest.raises(IdError, match="duplicate id") as caught:
        read_label_table(path, encoding="nan", id_column="image")
    assert caught.value.found == f"'c' in '{path}', line 4 and '{path}', line 6 (1 repeats in all)"


def test_the_first_wrong_value(tmp_path):
    """The first in the order of the file is shown, however columns are read."""
    path = write(tmp_path, "cat,dog\n1,0\n1,-1\n-1,2\n")
    with pytest.raises(LabelError) as caught:
        read_label_table(path, encoding="nan")
    assert caught.value.found == f"-1 in '{path}', line 3, column 'dog' (first of 3)"


def test_columns_that_are_no_labels(tmp_path):
    """Columns that no encoding fits are named, and the others get their suggestion."""
    path = write(tmp_path, "sex,cat,dog\nF,1,\nM,-1,0\n")
    for encoding in ("nan", None):
        with pytest.raises(LabelError) as caught:
            read_label_table(path, encoding=encoding)
        assert "leave out or correct 'sex'" in caught.value.remedy
        with pytest.raises(LabelError) as caught:  # and where they were named
            read_label_table(path, encoding=encoding, categories=["sex", "cat", "dog"])
        assert "leave out or correct 'sex'" in caught.value.remedy
        assert "--ignore-column NAME" in caught.value.remedy
        assert "minus_one_uncertain" in caught.value.remedy
    labels = read_label_table(path, encoding="minus_one_uncertain", categories=["cat", "dog"])
    assert labels.codes.tolist() == [[1, -1], [-2, 0]]


def test_the_encoding_is_named(tmp_path):
    """No encoding is guessed; a wrong name is refused before the file is opened."""
    path = write(tmp_path, WIDE)
    with pytest.raises(LabelError, match="must be named") as caught:
        read_label_table(path, id_column="image", group_column="patient")
    assert "encoding='nan'" in caught.value.remedy
    with pytest.raises(LabelError, match="no such encoding"):
        read_label_table(tmp_path / "nowhere.csv", encoding="nans")


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ("b,dog,1,p1\n", IdError, "image 'b', category 'dog': positive in"),
        ("b,dog,0,p1\n", IdError, "negative in"),
        ("c,bee,1,p3\n", IdError, "'p2' in"),
        (",cat,1,p1\n", IdError, "line 7, column 'id'"),
        ("d,,1,p1\n", LabelError, "line 7, column 'category'"),
        ("d,cat,1,\n", IdError, "line 7, column 'patient'"),
        ("d,cat,x,p1\n", LabelError, "line 7, column 'value'"),
    ],
)
def test_faults_of_long_tables(tmp_path, more, kind, message):
    """Repeated labels, images in two groups, and blanks are shown with their lines."""
    path = write(tmp_path, LONG + more)
    with pytest.raises(kind) as caught:
        read_label_table(path, encoding="nan", layout="long", group_column="patient")
    assert message in str(caught.value)
    assert "line 7" in str(caught.value)


def test_columns_that_are_not_there(tmp_path):
    """Missing columns and categories suggest the nearest name."""
    path = write(tmp_path, WIDE)
    with pytest.raises(LabelError, match="did you mean 'image'"):
        read_label_table(path, encoding="nan", id_column="images")
    with pytest.raises(CategoryError, match="did you mean 'dog'"):
        read_label_table(path, encoding="nan", categories=["dogs", "cat"])
    with pytest.raises(CategoryError, match="several names"):
        read_label_table(path, encoding="nan", categories="cat")
    with pytest.raises(CategoryError, match="one name"):
        read_label_table(path, encoding="nan", categories=["cat", "cat"])
    with pytest.raises(ConfigError, match="layout"):
        read_label_table(path, encoding="nan", layout="log")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="belong to layout='long'"):
        read_label_table(path, encoding="nan", value_column="x")
    path = write(tmp_path, LONG)
    with pytest.raises(LabelError, match="no column 'name', which should hold the category names"):
        read_label_table(path, encoding="nan", layout="long", category_column="name")
    with pytest.raises(CategoryError, match="did you mean 'dog'"):
        read_label_table(path, encoding="nan", layout="long", categories=["dogs"])


def test_files_that_cannot_be_read(tmp_path):
    """A missing file, a folder, an unknown suffix and a bad delimiter."""
    with pytest.raises(LabelError, match="there is no table"):
        open_table(tmp_path / "labels.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(LabelError, match="cannot read"):
        open_table(tmp_path / "folder.csv")
    path = write(tmp_path, WIDE, "labels.txt")
    with pytest.raises(LabelError, match="suffix"):
        open_table(path)
    with pytest.raises(ConfigError, match="one character"):
        open_table(path, delimiter="::")
    assert open_table(path, delimiter=",").names == ("image", "patient", "cat", "dog")


def test_damaged_archives(tmp_path):
    """A gzip file that ends too early, or is none."""
    packed = gzip.compress((WIDE + "".join(f"{i},p,1,0\n" for i in range(5000))).encode())
    with pytest.raises(LabelError, match="truncated"):
        read_label_table(write(tmp_path, packed[:-50], "a.csv.gz"), **NAMED)
    with pytest.raises(LabelError, match="not a gzip file"):
        read_label_table(write(tmp_path, WIDE, "b.csv.gz"), **NAMED)


def test_damaged_parquet(tmp_path):
    """A Parquet file that ends too early, has damaged pages, or is none; and one without rows."""
    path = write_parquet(tmp_path, {"image": ["a", "b"], "cat": [1, 0]})
    whole = path.read_bytes()
    for content, message in (
        (whole[:-20], "truncated"),
        (b"image,cat\na,1\n", "not a Parquet file"),
        (whole[:4] + bytes(100) + whole[104:], "damaged"),
        (whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:], "damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(LabelError, match=message):
            read_label_table(path, encoding="nan", id_column="image")
    path = write_parquet(tmp_path, {"image": pa.array([], pa.string()), "cat": pa.array([], "f4")})
    with pytest.raises(LabelError, match="no rows"):
        read_label_table(path, encoding="nan", id_column="image")
    path = write_parquet(tmp_path, {"image": [1.0, 2.0], "cat": [1, 0]})
    with pytest.raises(IdError, match="texts or whole numbers"):
        read_label_table(path, encoding="nan", id_column="image")
    path = write_parquet(tmp_path, {"image": [1, 1], "cat": [1, 0]})
    with pytest.raises(IdError, match="row 1 and"):
        read_label_table(path, encoding="nan", id_column="image")


def test_many_sparse_columns_are_never_dense(tmp_path, monkeypatch):
    """A wide table of many mostly blank columns is compressed block by block."""
    monkeypatch.setattr("catwise.data.files.BATCH_ROWS", 100)
    values = np.full((300, 80), np.nan)
    rng = np.random.default_rng(0)
    values[rng.integers(0, 300, 500), rng.integers(0, 80, 500)] = rng.integers(0, 2, 500)
    path = write_parquet(tmp_path, {f"c{j}": values[:, j] for j in range(80)})
    labels = read_label_table(path, encoding="nan", storage="columns")
    assert labels.storage == "columns"
    names = [f"c{j}" for j in range(80)]
    assert labels == PartialLabels.from_array(values, encoding="nan", categories=names)


def test_a_long_table_of_many_blocks(tmp_path, monkeypatch):
    """Numbers of names stay the same from block to block."""
    monkeypatch.setattr("catwise.data.files.BLOCK_BYTES", 1000)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (50, 20))
    order = rng.permutation(1000)
    lines = [f"image {k // 20},category {k % 20},{values[k // 20, k % 20]}" for k in order]
    path = write(tmp_path, "id,category,value\n" + "\n".join(lines) + "\n")
    labels = read_label_table(path, encoding="complete", layout="long")
    rows = [int(name.split()[1]) for name in labels.ids]
    columns = [int(name.split()[1]) for name in labels.categories]
    assert rows == list(dict.fromkeys((order // 20).tolist()))
    np.testing.assert_array_equal(labels.codes, values[rows][:, columns])


@pytest.mark.parametrize("kind", ["string", "dictionary", "sliced"])
@pytest.mark.parametrize("last", ["", "ü", "\0", None])
def test_texts_of_arrow(kind: str, last: str | None) -> None:
    """Arrow's texts become numpy's: of ASCII at once, others one by one; nulls are ""."""
    values = ["a", "bcd", "", *["x" * 9, "y"] * 40_000, last]
    array = pa.array(["z", *values] if kind == "sliced" else values, pa.string())
    array = array.slice(1) if kind == "sliced" else array
    array = array.dictionary_encode() if kind == "dictionary" else array
    texts = texts_of(array)
    assert texts.dtype.kind == "U"
    assert texts.tolist() == [(value or "").rstrip("\0") for value in values]


def test_no_texts_of_arrow() -> None:
    """Nothing, and nothing but blanks."""
    assert texts_of(pa.array([], pa.string())).tolist() == []
    assert texts_of(pa.array(["", ""])).tolist() == ["", ""]
