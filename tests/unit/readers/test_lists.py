"""Labels as lists: JSON lines, text tables, Parquet, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from catwise.data import jsonl as module
from catwise.data.readers.lists import read_jsonl_table, read_label_lists
from catwise.errors import CategoryError, CatwiseError, ConfigError, IdError, LabelError
from faults import check_fault

if TYPE_CHECKING:
    from catwise.labels import PartialLabels

RECORDS: list[dict[str, Any]] = [
    {"id": "a", "positive": ["cat"], "negative": ["dog"], "group": "p", "split": "train"},
    {"id": "b", "negative": ["bee", "cat"], "positive": [], "group": "p", "split": "valid"},
    {"id": "c", "uncertain": ["dog"], "positive": None, "group": "q", "split": "train"},
    {"id": "d", "group": "r", "split": "train"},
]
CODES = [[1, 0, -1], [0, -1, 0], [-1, -2, -1], [-1, -1, -1]]
FILLED = [[1, 0, 0], [0, 0, 0], [0, -2, 0], [0, 0, 0]]
KEYS = {1: "positive", 0: "negative", -2: "uncertain"}


def write(folder: Path, content: str | bytes, name: str = "labels.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def dump(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def check(labels: PartialLabels, codes: Any = CODES) -> None:
    np.testing.assert_array_equal(labels.codes, codes)
    assert labels.categories == ("cat", "dog", "bee")
    assert labels.ids.tolist() == list("abcd")
    assert labels.groups.tolist() == list("ppqr")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", dump(RECORDS).encode()),
        ("a.ndjson", dump(RECORDS).strip().encode()),
        ("a.jsonl.gz", gzip.compress(dump(RECORDS).encode())),
        ("A.JSONL", dump(RECORDS).replace("\n", "\r\n").encode()),
        ("bom.jsonl", b"\xef\xbb\xbf" + dump(RECORDS).encode()),
        ("blank.jsonl", b"\n" + dump(RECORDS).replace("\n", "\n \n").encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_json_lines(tmp_path, name, content):
    """Records in their many spellings; what no list names is unknown or negative."""
    path = write(tmp_path, content, name)
    check(read_label_lists(path, others="unknown"))
    check(read_label_lists(path, others="negative"), FILLED)


@pytest.mark.parametrize("storage", ["dense", "columns"])
@pytest.mark.parametrize("others", ["unknown", "negative"])
def test_storage(tmp_path, others, storage):
    """Both storages hold the same."""
    labels = read_label_lists(write(tmp_path, dump(RECORDS)), others=others, storage=storage)
    assert labels.storage == storage
    check(labels, CODES if others == "unknown" else FILLED)


TABLE = (
    'id,positive,negative,uncertain,group\na,cat,dog,,p\nb,,"bee| cat",,p\nc, ,,dog ,q\nd,,,,r\n'
)


@pytest.mark.parametrize(
    ("name", "content", "separator"),
    [
        ("a.csv", TABLE, "|"),
        ("a.tsv", TABLE.replace(",", "\t"), "|"),
        ("comma.csv", TABLE.replace("|", ","), ","),
        ("two.csv", TABLE.replace("|", " ; "), ";"),
        ("long.csv", TABLE.replace("| ", "and"), "and"),
    ],
)
def test_text_tables(tmp_path, name, content, separator):
    """Cells that hold several categories; blank cells hold none."""
    path = write(tmp_path, content, name)
    check(read_label_lists(path, others="unknown", separator=separator))
    check(read_label_lists(path, others="negative", separator=separator), FILLED)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.string(),
    ],
    ids=str,
)
def test_parquet(tmp_path, kind):
    """List columns, nulls in them, and texts."""
    columns = {"id": list("abcd"), "group": list("ppqr")}
    for key in KEYS.values():
        values = [record.get(key) for record in RECORDS]
        if kind == pa.string():
            values = [None if value is None else "|".join(value) for value in values]
        columns[key] = pa.array(values, kind)
    path = tmp_path / "labels.parquet"
    parquet.write_table(pa.table(columns), path)
    separator = "|" if kind == pa.string() else None
    check(read_label_lists(path, others="unknown", separator=separator))


def test_a_parquet_column_without_lists(tmp_path):
    """A column of nulls lists nothing; numbers are refused, and so are lists of them."""
    path = tmp_path / "labels.parquet"
    columns = {"id": [1, 2], "positive": [["cat"], None], "negative": pa.nulls(2)}
    parquet.write_table(pa.table(columns), path)
    assert read_label_lists(path, others="unknown").ids.tolist() == ["1", "2"]
    for values in ([1, 2], [[1], [2]], [[["a"]], None]):
        parquet.write_table(pa.table({**columns, "negative": values}), path)
        with pytest.raises(LabelError, match=r"the column 'negative' of .* holds no lists"):
            read_label_lists(path, others="unknown")
    parquet.write_table(pa.table({"id": ["a", "b"], "positive": [["cat"], ["cat", None]]}), path)
    with pytest.raises(LabelError, match="row 2, column 'positive'"):
        read_label_lists(path, others="unknown")


def test_a_split(tmp_path):
    """Every split has the categories of the whole file, in one order."""
    path = write(tmp_path, dump(RECORDS))
    train = read_label_lists(path, others="unknown", split="train")
    assert train.categories == ("cat", "dog", "bee")
    assert train.ids.tolist() == ["a", "c", "d"]
    assert train.codes.tolist() == [CODES[i] for i in (0, 2, 3)]
    assert train.groups.tolist() == ["p", "q", "r"]
    valid = read_label_lists(path, others="unknown", split="valid")
    assert valid.categories == train.categories
    assert valid.codes.tolist() == [CODES[1]]
    with pytest.raises(LabelError, match="no rows of the split 'val'") as caught:
        read_label_lists(path, others="unknown", split="val")
    assert caught.value.found == "'train' (3), 'valid' (1)"
    path = write(tmp_path, '{"id": "a", "positive": ["cat"]}')
    with pytest.raises(LabelError, match="no column 'split'"):
        read_label_lists(path, others="unknown", split="train")


def test_categories_are_given(tmp_path):
    """They come in the order given, also those that no list names; any other name is refused."""
    path = write(tmp_path, dump(RECORDS))
    names = ["ant", "bee", "cat", "dog"]
    labels = read_label_lists(path, others="unknown", categories=names)
    assert labels.categories == tuple(names)
    assert labels.codes.tolist() == [[-1, row[2], row[0], row[1]] for row in CODES]
    with pytest.raises(CategoryError) as caught:
        read_label_lists(path, others="unknown", categories=["dogs", "cat"])
    assert "line 1, key 'negative': no such category" in str(caught.value)
    assert caught.value.found == "'dog' (did you mean 'dogs'?)"
    for wrong in ("cat", ["cat", "cat"]):
        with pytest.raises(CategoryError):
            read_label_lists(path, others="unknown", categories=wrong)


def test_other_keys(tmp_path):
    """Keys can be named otherwise, and left out by name only."""
    records = [{"image": 7, "yes": ["cat"], "no": ["dog"], "width": 640}]
    path = write(tmp_path, dump(records))
    keys: dict[str, Any] = {"id_key": "image", "positive_key": "yes", "negative_key": "no"}
    labels = read_label_lists(path, others="unknown", ignore=["width"], **keys)
    assert labels.ids.tolist() == ["7"]
    assert labels.codes.tolist() == [[1, 0]]
    assert labels.groups is None
    with pytest.raises(LabelError, match="line 1: has a key or column") as caught:
        read_label_lists(path, others="unknown", **keys)
    assert "ignore=['width']" in caught.value.remedy
    with pytest.raises(LabelError, match="no column 'unsure'"):
        read_label_lists(path, others="unknown", ignore=["width"], uncertain_key="unsure", **keys)
    with pytest.raises(ConfigError, match="named twice"):
        read_label_lists(path, others="unknown", ignore=["yes"], **keys)


def test_ids_are_fitted_to_the_features(tmp_path):
    """What surrounds an id is taken off, and other text put around it."""
    path = write(tmp_path, dump(RECORDS).replace('"id": "', '"id": "x/'))
    labels = read_label_lists(path, others="unknown", strip_prefix="x/", id_suffix=".jpg")
    assert labels.ids.tolist() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    with pytest.raises(IdError, match="not every id ends") as caught:
        read_label_lists(path, others="unknown", strip_suffix="a")
    assert "'x/b' in" in caught.value.found
    assert "line 2" in caught.value.found


GOOD = '{"id": "a", "positive": ["cat"], "group": 1}\n\n'
#: What is wrong → what follows one good record and a blank line, the error, its message.
FAULTS: dict[str, tuple[str | bytes, type[CatwiseError], str]] = {
    "no JSON": ("{'id': 'b'}\n", LabelError, "line 3: is not a record"),
    "comma": ('{"id": "b",}\n', LabelError, "line 3: is not a record"),
    "two": ('{"id": "b", "group": 1} {"id": "c"}\n', LabelError, "line 3: is not a record"),
    "array": ('[{"id": "b"}]\n', LabelError, "line 3: is not a record"),
    "number": ("12\n", LabelError, "line 3: is not a record"),
    "null": ("null\n", LabelError, "line 3: is not a record"),
    "key twice": ('{"id": "b", "id": "c"}\n', LabelError, "the key 'id' twice"),
    "deep": ("[" * 200_000 + "\n", LabelError, "line 3: is not a record"),
    "digits": ('{"id": ' + "1" * 5000 + "}\n", LabelError, "line 3: is not a record"),
    "half a character": (r'{"id": "\ud800", "group": 1}', LabelError, "line 3: is not a record"),
    "latin-1": (b'{"id": "\xe9"}\n', LabelError, "line 3: is not a record"),
    "cut text": ('{"id": "b', LabelError, "is truncated"),
    "cut list": ('{"id": "b", "positive": ["cat"', LabelError, "line 3 ends inside"),
    "unknown key": ('{"id": "b", "positives": []}\n', LabelError, "line 3: has a key"),
    "a text": (
        '{"id": "b", "positive": "cat"}\n',
        LabelError,
        "line 3, key 'positive': is not a list",
    ),
    "an object": ('{"id": "b", "negative": {"cat": 1}}\n', LabelError, "line 3, key 'negative'"),
    "zero": ('{"id": "b", "negative": 0}\n', LabelError, "line 3, key 'negative': is not a list"),
    "a number in it": ('{"id": "b", "positive": ["cat", 1]}\n', LabelError, "key 'positive'"),
    "null in it": ('{"id": "b", "positive": [null]}\n', LabelError, "line 3, key 'positive'"),
    "a list in it": ('{"id": "b", "positive": [["cat"]]}\n', LabelError, "key 'positive'"),
    "blank name": ('{"id": "b", "uncertain": [" "]}\n', LabelError, "line 3, key 'uncertain'"),
    "conflict": (
        '{"id": "b", "positive": ["dog", "cat"], "negative": ["cat"], "group": 1}\n',
        LabelError,
        "line 3: a category is listed twice.\n  found:    'cat': positive and negative",
    ),
    "uncertain conflict": (
        '{"id": "b", "uncertain": ["cat"], "negative": ["cat"], "group": 1}\n',
        LabelError,
        "'cat': negative and uncertain",
    ),
    "repeat": (
        '{"id": "b", "negative": ["cat", "cat"], "group": 1}\n',
        LabelError,
        "'cat': negative and negative",
    ),
    "no id": ('{"positive": ["cat"], "group": 1}\n', IdError, "line 3, key 'id'"),
    "blank id": ('{"id": "", "group": 1}\n', IdError, "line 3, key 'id'"),
    "true id": ('{"id": true, "group": 1}\n', IdError, "line 3, key 'id': is neither a text"),
    "float id": ('{"id": 1.5, "group": 1}\n', IdError, "line 3, key 'id': is neither a text"),
    "list id": ('{"id": ["b"], "group": 1}\n', IdError, "line 3, key 'id': is neither a text"),
    "id twice": ('{"id": "a", "group": 1}\n', IdError, "line 1 and "),
    "no group": ('{"id": "b"}\n', IdError, "line 3, key 'group'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_json_lines(tmp_path, fault):
    """Every fault has its own error, which names the file, the line and the key."""
    content, kind, message = FAULTS[fault]
    content = content.encode() if isinstance(content, str) else content
    path = write(tmp_path, GOOD.encode() + content)
    check_fault(lambda: read_label_lists(path, others="unknown"), kind, message, path)


#: What is wrong → the content of a table, the error, its message.
TABLE_FAULTS: dict[str, tuple[str, type[CatwiseError], str]] = {
    "no id": ("name,positive\na,cat\n", LabelError, "not expected"),
    "no lists": ("id,group\na,p\n", LabelError, "has no lists of categories"),
    "unknown column": ("id,positive,negativ\na,cat,\n", LabelError, "did you mean 'negative'"),
    "blank name": ("id,positive\na,cat\nb,cat|\n", LabelError, "line 3, column 'positive'"),
    "conflict": ("id,positive,negative\na,,\nb,cat,dog|cat\n", LabelError, "line 3: a category"),
    "id twice": ("id,positive\na,cat\n\na,cat\n", IdError, "line 2 and "),
    "blank id": ("id,positive\na,cat\n,cat\n", IdError, "line 3, column 'id'"),
    "blank group": ("id,positive,group\na,cat,p\nb,cat,\n", IdError, "line 3, column 'group'"),
    "no rows": ("id,positive\n", LabelError, "no rows"),
    "no names": ("id,positive\na,\n", LabelError, "names no category"),
    "cut": ("id,positive,negative\na,cat,\nb,cat", LabelError, "truncated"),
}


@pytest.mark.parametrize("fault", TABLE_FAULTS)
def test_faults_of_tables(tmp_path, fault):
    """Tables are checked alike."""
    content, kind, message = TABLE_FAULTS[fault]
    path = write(tmp_path, content, "labels.csv")
    read = partial(read_label_lists, path, others="unknown", separator="|")
    check_fault(read, kind, message, path)


def test_options(tmp_path):
    """What must be said is asked for; what does not go together is refused."""
    path = write(tmp_path, dump(RECORDS))
    with pytest.raises(ConfigError, match="others must say") as caught:
        read_label_lists(path)
    assert caught.value.expected == "'unknown' or 'negative'"
    with pytest.raises(ConfigError, match="did you mean 'negative'"):
        read_label_lists(path, others="negatives")  # type: ignore[arg-type]
    for option in ({"separator": "|"}, {"delimiter": ";"}):
        with pytest.raises(ConfigError, match="belong to tables"):
            read_label_lists(path, others="unknown", **option)
    with pytest.raises(ConfigError, match="named twice"):
        read_label_lists(path, others="unknown", positive_key="negative")
    path = write(tmp_path, TABLE, "labels.csv")
    with pytest.raises(ConfigError, match="what separates the categories"):
        read_label_lists(path, others="unknown")


def test_files_that_cannot_be_read(tmp_path):
    """A missing file, a folder, an empty file, and damaged archives."""
    with pytest.raises(LabelError, match="there is no table"):
        read_label_lists(tmp_path / "labels.jsonl", others="unknown")
    with pytest.raises(LabelError, match="there is no table"):
        read_label_lists(tmp_path / "labels.csv", others="unknown")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(LabelError, match="cannot read"):
        read_label_lists(tmp_path / "folder.jsonl", others="unknown")
    with pytest.raises(LabelError, match="holds no records"):
        read_label_lists(write(tmp_path, "\n"), others="unknown")
    packed = gzip.compress("".join(f'{{"id": {i}}}\n' for i in range(5000)).encode())
    for content in (packed[:-50], dump(RECORDS).encode()):
        with pytest.raises(LabelError, match="truncated"):
            read_label_lists(write(tmp_path, content, "a.jsonl.gz"), others="unknown")


def test_many_parts(tmp_path, monkeypatch):
    """Categories that come late, and errors, are the same however the file is cut."""
    monkeypatch.setattr(module, "BATCH_RECORDS", 2)
    path = write(tmp_path, "\n" + dump(RECORDS))
    check(read_label_lists(path, others="unknown", storage="columns"))
    check(read_label_lists(path, others="negative"), FILLED)
    valid = read_label_lists(path, others="unknown", split="train")
    assert valid.codes.tolist() == [CODES[i] for i in (0, 2, 3)]
    late = write(tmp_path, dump([{"id": i, "positive": [c]} for i, c in enumerate("xxxyyz")]))
    labels = read_label_lists(late, others="unknown", storage="columns")
    assert labels.categories == ("x", "y", "z")
    assert [labels.entries(j)[0].tolist() for j in range(3)] == [[0, 1, 2], [3, 4], [5]]
    wrong = write(tmp_path, dump([*RECORDS, {"id": [1]}]))
    with pytest.raises(IdError, match="line 5, key 'id'"):
        read_label_lists(wrong, others="unknown")
    more = [{"id": "e", "positive": ["x"], "negative": ["x"]}, {"id": "f"}]
    path = write(tmp_path, "\n" + dump([*RECORDS, {"id": "g", "group": 1}, *more]))
    with pytest.raises(LabelError, match=r"line 7: a category is listed twice"):
        read_label_lists(path, others="unknown")


def test_wide_records(tmp_path):
    """One key a category; a key that a record lacks is a blank."""
    records = [
        {"id": "a", "cat": 1, "dog": None, "patient": 5, "fold": "x"},
        {"id": "b", "dog": 0, "cat": True, "patient": "q", "fold": "y"},
        {"id": 3, "bee": "0", "dog": 1.0, "patient": 5, "fold": "x"},
    ]
    path = write(tmp_path, dump(records))
    options: dict[str, Any] = {"encoding": "nan", "group_key": "patient"}
    labels = read_jsonl_table(path, categories=["dog", "cat"], **options)
    assert labels.codes.tolist() == [[-1, 1], [0, 1], [1, -1]]
    assert labels.ids.tolist() == ["a", "b", "3"]
    assert labels.groups.tolist() == ["5", "q", "5"]
    part = read_jsonl_table(path, split_key="fold", split="x", **options)
    assert part.categories == ("cat", "dog", "bee")
    assert part.codes.tolist() == [[1, -1, -1], [-1, 1, 0]]
    with pytest.raises(LabelError, match="line 1, key 'fold'"):
        read_jsonl_table(path, **options)
    with pytest.raises(CategoryError, match="did you mean 'dog'"):
        read_jsonl_table(path, categories=["dogs"], **options)
    with pytest.raises(ConfigError, match="go together"):
        read_jsonl_table(path, split="x", **options)
    with pytest.raises(ConfigError, match="named twice"):
        read_jsonl_table(path, encoding="nan", group_key="id")
    with pytest.raises(LabelError, match="no column 'image'"):
        read_jsonl_table(path, encoding="nan", id_key="image")
    with pytest.raises(LabelError, match="not that of JSON lines"):
        read_jsonl_table(tmp_path / "labels.csv", encoding="nan")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("-1", "-1 in"),
        ('"maybe"', "'maybe' in"),
        ("[1]", "'[1]' in"),
        ('{"a": 1}', "in"),
        ("1e400", "inf in"),
        ("1" * 400, "in"),
    ],
)
def test_wide_values_that_do_not_fit(tmp_path, value, found):
    """Values outside the encoding are shown with line and key, and the encodings that fit."""
    text = f'{{"id": "a", "cat": 1}}\n\n{{"id": "b", "dog": {value}}}\n'
    path = write(tmp_path, text)
    with pytest.raises(LabelError, match="does not know a value") as caught:
        read_jsonl_table(path, encoding="nan")
    assert found in caught.value.found
    assert f"'{path}', line 3, key 'dog'" in caught.value.found


def test_wide_records_need_an_encoding(tmp_path):
    """None is guessed; blanks must fit it too."""
    path = write(tmp_path, '{"id": "a", "cat": 1}\n{"id": "b", "dog": -1}\n')
    with pytest.raises(LabelError, match="must be named") as caught:
        read_jsonl_table(path)
    assert "minus_one_uncertain" in caught.value.remedy
    with pytest.raises(LabelError, match="does not know a value") as caught:
        read_jsonl_table(path, encoding="codes")
    assert f"blank in '{path}', line 1, key 'dog'" in caught.value.found
    with pytest.raises(LabelError, match="no such encoding"):
        read_jsonl_table(tmp_path / "nowhere.jsonl", encoding="nans")
    with pytest.raises(IdError, match="line 2"):
        read_jsonl_table(write(tmp_path, dump([{"id": "a", "cat": 1}] * 2)), encoding="nan")


@st.composite
def labelled(draw: Any) -> tuple[list[list[int]], list[str], list[str]]:
    """Codes, ids and category names."""
    text = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
    names = draw(st.lists(text, min_size=1, max_size=5, unique=True))
    ids = draw(st.lists(text, min_size=1, max_size=8, unique=True))
    row = st.lists(st.sampled_from([1, 0, -1, -2]), min_size=len(names), max_size=len(names))
    return draw(st.lists(row, min_size=len(ids), max_size=len(ids))), ids, names


@settings(max_examples=60, deadline=None)
@given(labelled(), st.sampled_from(["unknown", "negative"]), st.booleans())
def test_what_is_written_is_read(drawn, others, escaped):
    """Random labels come back as they were, from JSON lines and from Parquet."""
    codes, ids, names = drawn
    records = []
    for name, row in zip(ids, codes, strict=True):
        record: dict[str, Any] = {"id": name}
        for code, key in KEYS.items():
            record[key] = [c for c, found in zip(names, row, strict=True) if found == code]
        records.append(record)
    expected = np.array(codes)
    if others == "negative":
        expected[expected == -1] = 0
    text = "".join(json.dumps(record, ensure_ascii=escaped) + "\n" for record in records)
    kind = pa.list_(pa.string())
    columns = {key: pa.array([r[key] for r in records], kind) for key in KEYS.values()}
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), text)
        table = Path(folder, "labels.parquet")
        parquet.write_table(pa.table({"id": ids, **columns}), table)
        for file in (path, table):
            labels = read_label_lists(file, others=others, categories=names)
            np.testing.assert_array_equal(labels.codes, expected)
            assert labels.ids.tolist() == ids
            assert labels.categories == tuple(names)
        if any(code != -1 for row in codes for code in row):
            free = read_label_lists(path, others=others)
            assert free == read_label_lists(table, others=others)
            seen = [c for r in records for key in KEYS.values() for c in r[key]]
            assert free.categories == tuple(dict.fromkeys(seen))
            assert free == labels.take_categories(free.categories)


@settings(max_examples=40, deadline=None)
@given(labelled(), st.data())
def test_wide_records_are_read(drawn, data):
    """Random wide records come back as they were, whether blanks are null or not there."""
    codes, ids, names = drawn
    names = [f"c {name}" for name in names]
    raw = {1: [1, 1.0, True, "1"], 0: [0, False, "0"], -1: [None, ""], -2: [-1, "-1.0"]}
    records = []
    for name, row in zip(ids, codes, strict=True):
        pairs = zip(names, row, strict=True)
        record = {key: data.draw(st.sampled_from(raw[code])) for key, code in pairs}
        dropped = {
            key for key, value in record.items() if value is None and data.draw(st.booleans())
        }
        records.append({"id": name} | {k: v for k, v in record.items() if k not in dropped})
    present = [name for name in names if any(name in record for record in records)]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), dump(records))
        if not present:
            with pytest.raises(LabelError, match="no column of labels"):
                read_jsonl_table(path, encoding="minus_one_uncertain")
            return
        labels = read_jsonl_table(path, encoding="minus_one_uncertain", categories=present)
    expected = np.array(codes)[:, [names.index(name) for name in present]]
    np.testing.assert_array_equal(labels.codes, expected)
    assert labels.ids.tolist() == ids
