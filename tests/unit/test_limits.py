"""Files that claim more than they hold, or nest, repeat and number beyond all bounds."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from catwise import Head, load_head, read_features, read_head, save_head
from catwise._limits import check_depth, check_shape, check_unpacked
from catwise._safetensors import build
from catwise.data import read_table
from catwise.data.readers import _kit, coco
from catwise.errors import (
    CatwiseError,
    CheckpointError,
    FeatureStoreError,
    HeadError,
    IdError,
    LabelError,
    OutputError,
)
from catwise.features import Features, write_store
from catwise.fixing.folder import STATE, State
from catwise.heads.pickles import interpret
from catwise.models import parts
from catwise.reporting.run import read_run
from catwise.tuning.account.results import FoldArtifacts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VALUES = np.arange(6.0, dtype=np.float32).reshape(3, 2)
LONG = "9" * 10_000  # more digits than Python reads


def npy(shape: Any, *, values: np.ndarray = VALUES, descr: str = "'<f4'", more: str = "") -> bytes:
    """A .npy file whose header says what it likes."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {more}}}".encode()
    text = text.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values.tobytes()


def npz(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


HEADERS = [
    ("(4, 2)", {}, "cut short"),
    ("(2, 2)", {}, "longer than its header"),
    ("(3, True)", {}, "not a whole number: True"),
    ("(True, 6)", {}, "not a whole number: True"),
    ("(-3, -2)", {}, "not a whole number: -3"),
    ("(3.0, 2)", {}, "header"),
    ("'32'", {}, "header"),
    (f"({2**62}, {2**62})", {}, "entries"),
    (f"(0, {2**70})", {}, "entries"),
    (f"({'1,' * 65})", {}, "65 axes"),
    ("(3, 2)", {"descr": "'|O'"}, "neither numbers nor texts"),
    ("(3, 2)", {"descr": "'nonsense'"}, "header"),
    ("(3, 2", {}, "header"),
    ('"""', {}, "header"),
    ("(3, 2)", {"more": "'x': " + "(" * 60 + ")" * 60}, "header"),
]


@pytest.mark.parametrize(("shape", "options", "reason"), HEADERS)
@pytest.mark.parametrize("packing", ["npy", "stored", "deflated"])
def test_a_header_and_its_bytes(
    tmp_path: Path, shape: str, options: dict[str, str], reason: str, packing: str
) -> None:
    """What a header claims is compared with the bytes that are there: alone, stored, compressed."""
    data = npy(shape, **options)
    path = tmp_path / "x.npz"
    if packing == "npy":
        path.write_bytes(data)
    else:
        kind = zipfile.ZIP_STORED if packing == "stored" else zipfile.ZIP_DEFLATED
        npz(path, {"features.npy": data, "other.npy": npy("(3, 2)")}, kind)
    with pytest.raises(FeatureStoreError, match=reason):
        read_features(path, key=None if packing == "npy" else "features")


def test_a_good_member_is_read_alone(tmp_path: Path) -> None:
    """Neighbours, Fortran order, zip64 and other members are no harm."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            np.save(member, np.asfortranarray(VALUES))
        archive.writestr("b.npy", npy("(3, 2)", values=VALUES + 100))
        archive.writestr("note.txt", "no array")
    assert read_features(path).block(0, 9).tolist() == VALUES.tolist()


def test_the_directory_of_an_archive_is_not_believed(tmp_path: Path) -> None:
    """A member that is said to reach into the next one, or is there twice, is refused."""
    path = npz(tmp_path / "x.npz", {"features.npy": npy("(3, 2)"), "b.npy": npy("(3, 2)")})
    whole = path.read_bytes()
    size = struct.pack("<I", 128 + VALUES.nbytes)
    at = whole.index(b"PK\x01\x02") + 20
    assert whole[at : at + 8] == size * 2
    longer = struct.pack("<I", 128 + VALUES.nbytes + 100)
    path.write_bytes(whole[:at] + longer * 2 + whole[at + 8 :])
    with pytest.raises(FeatureStoreError, match=r"reaches into|Overlapped|cut short"):
        read_features(path, key="features")
    npz(path, {"a.npy": npy("(3, 2)")})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.npy", npy("(3, 2)"))
    with pytest.raises(FeatureStoreError, match="two records of one name"):
        read_features(path)


def test_compressed_members_that_claim_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the bytes can give is refused at once, and so is more than memory holds."""
    path = npz(tmp_path / "x.npz", {"features.npy": npy("(3, 2)")}, zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02") + 24
    path.write_bytes(whole[:at] + struct.pack("<I", 2**32 - 2) + whole[at + 4 :])
    with pytest.raises(FeatureStoreError, match=r"more than its \d+ can give"):
        read_features(path)
    path.write_bytes(whole)
    monkeypatch.setattr("catwise._limits.MAX_UNPACKED", 100)
    with pytest.raises(FeatureStoreError, match="becomes 152 bytes, more than 100"):
        read_features(path)
    with pytest.raises(ValueError, match="can give"):
        check_unpacked(10**6, 10**12, "it")


def test_encrypted_and_unknown_members(tmp_path: Path) -> None:
    """An encrypted member, and a way of compressing that nobody knows, are named."""
    path = npz(tmp_path / "x.npz", {"features.npy": npy("(3, 2)")})
    whole = path.read_bytes()
    for offset, value, reason in ((8, 1, "is encrypted"), (10, 77, "compress")):
        at = whole.index(b"PK\x01\x02") + offset
        path.write_bytes(whole[:at] + struct.pack("<H", value) + whole[at + 2 :])
        with pytest.raises(FeatureStoreError, match=reason):
            read_features(path)


def safetensors(path: Path, header: str, data: bytes = b"") -> Path:
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (f'"shape":[{",".join(["1"] * 65)}],"data_offsets":[0,4]', "65 axes"),
        (f'"shape":[0,{2**80}],"data_offsets":[0,0]', "entries"),
        (f'"shape":[{"9" * 5000}],"data_offsets":[0,4]', "too many digits"),
        ('"shape":[true],"data_offsets":[0,4]', "lacks a dtype, shape"),
        ('"shape":[1],"data_offsets":[0,8]', "takes 8 bytes"),
        ('"shape":[1],"data_offsets":[4,8]', "unused bytes"),
        ('"shape":' + "[" * 5000, "nests too deeply|not JSON"),
    ],
)
def test_safetensors_headers(tmp_path: Path, entry: str, reason: str) -> None:
    """Axes, sizes, digits and depth of a header are bounded, for features and for heads."""
    path = safetensors(tmp_path / "x.safetensors", f'{{"a":{{"dtype":"F32",{entry}}}}}', b"0000")
    for read in (read_features, read_head, load_head):
        with pytest.raises(CatwiseError, match=reason):
            read(path)


def saved(path: Path, **changes: str) -> Path:
    metadata = {"catwise_head": "1", "categories": '["a"]', "provenance": "{}", **changes}
    path.write_bytes(build({"weight": ("F32", (1, 1), b"0000")}, metadata))
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("provenance", '{"a":' * 70 + "1" + "}" * 70),
        ("provenance", "[" * 100_000),
        ("provenance", "[]"),
        ("provenance", '{"a": NaN}'),
        ("provenance", '{"a": 1, "a": 2}'),
        ("provenance", "9" * 5000),
        ("categories", '{"a": 1}'),
        ("categories", '"a"'),
        ("categories", "[1]"),
        ("categories", "null"),
    ],
)
def test_metadata_of_a_saved_head(tmp_path: Path, name: str, text: str) -> None:
    """It is bounded, and every field is what it must be."""
    path = saved(tmp_path / "head.safetensors", **{name: text})
    for read in (load_head, read_head):
        with pytest.raises(CheckpointError, match="damaged head"):
            read(path)


def test_a_provenance_that_could_not_be_read_back() -> None:
    """What nests too deeply is refused before it is saved."""
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    with pytest.raises(HeadError, match="nests more than 64"):
        Head([[1.0]], provenance={"a": deep})


class Steps:
    """A pickle, written by hand."""

    def __init__(self) -> None:
        self.data = pickle.PROTO + b"\x02"

    def add(self, *parts: bytes) -> Steps:
        self.data += b"".join(parts)
        return self

    def end(self) -> bytes:
        return self.data + pickle.STOP


def nested(opening: Callable[[bytes], bytes], depth: int) -> bytes:
    inner = pickle.EMPTY_TUPLE
    for _ in range(depth):
        inner = opening(inner)
    return inner


def test_pickles_that_nest() -> None:
    """Tables, lists and tuples inside one another are bounded, and none holds itself."""
    for depth, good in ((60, True), (70, False)):
        data = Steps().add(nested(lambda inner: inner + pickle.TUPLE1, depth)).end()
        if good:
            interpret(data)
        else:
            with pytest.raises(ValueError, match="nests more than 64"):
                interpret(data)
    itself = Steps().add(pickle.EMPTY_LIST, b"q\x00", b"h\x00", pickle.APPEND).end()
    with pytest.raises(ValueError, match="nests more than 64"):
        interpret(itself)


def test_pickles_with_keys_that_hold_something() -> None:
    """A key of several parts is of no interest: it is neither hashed nor followed."""
    deep = nested(lambda inner: inner + pickle.TUPLE1, 200)
    one = b"K\x01"
    for data in (
        Steps().add(pickle.EMPTY_DICT, deep, one, pickle.SETITEM).end(),
        Steps().add(pickle.MARK, deep, one, pickle.DICT).end(),
        Steps().add(pickle.EMPTY_DICT, pickle.EMPTY_LIST, one, pickle.SETITEM).end(),
        Steps().add(pickle.EMPTY_DICT, pickle.EMPTY_DICT, one, pickle.SETITEM).end(),
    ):
        assert list(interpret(data).values()) == [1]
    table = interpret(pickle.dumps(OrderedDict({(1, 2): "a", "b": 3}), 2))
    assert list(table.values()) == ["a", 3]


def test_pickles_of_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of instructions is bounded, and so are the axes of a tensor."""
    data = pickle.dumps([float(i) for i in range(1000)])
    interpret(data)
    monkeypatch.setattr("catwise.heads.pickles.MAX_STEPS", 500)
    with pytest.raises(ValueError, match="does not end within 500 instructions"):
        interpret(data)


def test_a_checkpoint_beyond_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused as a checkpoint, with the reason."""
    path = tmp_path / "model.pt"
    torch.save({"fc.weight": torch.eye(2), "deep": [[[[]]]]}, path)
    assert read_head(path, key="fc").n_categories == 2
    monkeypatch.setattr("catwise.heads.pickles.MAX_STEPS", 10)
    with pytest.raises(CheckpointError, match="within 10 instructions"):
        read_head(path)
    monkeypatch.undo()
    monkeypatch.setattr("catwise._limits.MAX_DIMENSIONS", 1)
    with pytest.raises(CheckpointError, match="2 axes of a tensor"):
        read_head(path)


READERS: dict[str, Callable[[Path], Any]] = {
    "coco": lambda path: coco.load(path, {"images": {"id": "number"}}),
    "genome": lambda path: _kit.read_json(path, "labels"),
}


@pytest.mark.parametrize("layout", ["jsonl", *READERS])
def test_numbers_of_many_digits_and_depth(tmp_path: Path, layout: str) -> None:
    """A number of 10,000 digits, and JSON that nests without end, are errors of their file."""
    for text in ("9" * 10_000, "[" * 50_000):
        if layout == "jsonl":
            path = tmp_path / "x.jsonl"
            path.write_text(f'{{"id": "a", "cat": {text}}}\n')
            with pytest.raises(LabelError, match=r"line 1: is not a record"):
                read_table(path, encoding="nan")
            continue
        path = tmp_path / "x.json"
        path.write_text(f'{{"images": [{{"id": {text}}}], "annotations": [], "categories": []}}')
        with pytest.raises(LabelError, match=r"digits|deeply"):
            READERS[layout](path)


def test_lines_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that does not end, and a record that nests, are refused."""
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": "a", "cat": 1, "more": "x" * 100}) + "\n")
    monkeypatch.setattr("catwise.data.jsonl.MAX_LINE", 50)
    with pytest.raises(LabelError, match=r"line 1: is too long"):
        read_table(path, encoding="nan")
    monkeypatch.undo()
    path.write_text('{"id": "a", "cat": ' + "[" * 70 + "]" * 70 + "}\n")
    with pytest.raises(LabelError, match="nests more than 64"):
        read_table(path, encoding="nan")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("categories", '{"a": 1}', "'categories'"),
        ("categories", '["a", "b"]', "do not fit one another"),
        ("categories", None, "no 'categories'"),
        ("ids", "[1, 2]", "'ids'"),
        ("ids", '["a"]', "1 ids for 2 rows"),
        ("ids", "[" * 100_000, "deeply"),
        ("ids", f"[{LONG}]", "too many digits"),
        ("catwise_folds", "2", "no folds that this version reads"),
    ],
)
def test_folds_that_were_changed(tmp_path: Path, name: str, value: str, reason: str) -> None:
    """What cross-fitting left is read as strictly as it was written."""
    path = tmp_path / "folds.safetensors"
    metadata = {"catwise_folds": "1", "categories": '["a"]', "ids": "null"}
    metadata = {k: v for k, v in {**metadata, name: value}.items() if v is not None}
    arrays = {
        "fold": ("I8", (2,), bytes(2)),
        "logits": ("F32", (2, 1), bytes(8)),
        "weight": ("F32", (1, 1, 3), bytes(12)),
    }
    path.write_bytes(build(arrays, metadata))
    with pytest.raises(FeatureStoreError, match=reason):
        FoldArtifacts.load(path)


def test_a_head_is_saved_and_loaded_at_the_bounds(tmp_path: Path) -> None:
    """What may be saved can be loaded."""
    deep: Any = 1
    for _ in range(62):
        deep = [deep]
    save_head(Head([[1.0]], provenance={"a": deep}), tmp_path / "h.safetensors")
    assert load_head(tmp_path / "h.safetensors").provenance == {"a": deep}


def test_bounds_of_shape_and_depth() -> None:
    """Shared parts are looked at once; what is within the bounds passes."""
    shared: Any = [1]
    for _ in range(40):
        shared = [shared, shared]
    check_depth(shared)
    assert check_shape([0, 2**62]) == (0, 2**62)


def test_columns_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is bounded; with a lot of them each is still read once."""
    path = tmp_path / "x.csv"
    names = [f"c{i}" for i in range(2000)]
    path.write_text(",".join(("id", *names)) + "\n" + ",".join(("a", *["1"] * 1999, '"0"')) + "\n")
    labels = read_table(path, encoding="nan", id_column="id").labels
    assert labels.codes.sum() == 1999
    with pytest.raises(LabelError, match="must be named"):
        read_table(path, id_column="id")
    monkeypatch.setattr("catwise.data.files.MAX_COLUMNS", 2000)
    with pytest.raises(LabelError, match=r"too many columns(.|\n)*2,001"):
        read_table(path, encoding="nan", id_column="id")


def test_ids_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long id would make all the others as wide."""
    store = write_store(tmp_path / "s", VALUES, ids=["a", "bcdef", "g"])
    monkeypatch.setattr("catwise.features.id_files.MAX_ID", 4)
    monkeypatch.setattr("catwise.features.ids.MAX_ID", 4)
    with pytest.raises(FeatureStoreError, match="5 characters in an id, more than 4"):
        _ = store.ids
    with pytest.raises(IdError, match="too long"):
        Features(VALUES, ids=["a", "bcdef", "g"])


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, '{"config": 1}', "[]", "{", '{"config": {}, "a": NaN}', f'{{"config": {LONG}}}'],
)
def test_the_folder_of_a_run(tmp_path: Path, text: str) -> None:
    """What is read back of it is what was written, or an error that names the file."""
    (tmp_path / "summary.json").write_text('{"summary": {}}')
    (tmp_path / "records.json").write_text('[{"category": "a"}]')
    (tmp_path / "config.json").write_text('{"config": {"seed": 1}}')
    assert read_run(tmp_path)["records"] == [{"category": "a"}]
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(OutputError, match=r"config\.json' is not as it was written"):
        read_run(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(OutputError, match="No such file"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {"a": 1}},
        {"inputs": []},
        {"finished": {"tune": 1}},
        {"finished": None},
        {"target": ""},
        {"target": 3},
    ],
)
def test_the_state_of_a_run(tmp_path: Path, change: dict[str, Any]) -> None:
    """Every field of it is checked."""
    document = {"inputs": {"a": "b"}, "target": "m.pt", "finished": {"tune": {"n": 1}}}
    path = tmp_path / STATE
    path.write_text(json.dumps(document))
    assert State.read(tmp_path, {"a": "b"}, "m.pt").finished == {"tune": {"n": 1}}
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(OutputError, match=f"'{next(iter(change))}' is"):
        State.read(tmp_path, {"a": "b"}, "m.pt")


def test_a_state_with_a_number_of_many_digits(tmp_path: Path) -> None:
    """The file is named, and what to do."""
    document = {"inputs": {}, "target": "m.pt", "finished": "LONG"}
    (tmp_path / STATE).write_text(json.dumps(document).replace('"LONG"', LONG))
    with pytest.raises(OutputError, match="too many digits"):
        State.read(tmp_path, {}, "m.pt")


@pytest.mark.parametrize("text", ["[" * 5000, "[]", "{}", '{"dtype": 1}', LONG])
def test_unfinished_work(tmp_path: Path, text: str) -> None:
    """Parts of features say what they were made of, or cannot be used."""
    path = tmp_path / "progress.json"
    path.write_text(text)
    with pytest.raises(OutputError, match="its parts cannot be used"):
        parts._progress(path)


def test_a_part_that_is_not_whole(tmp_path: Path) -> None:
    """What it says of itself is checked field by field, and against its size."""
    path = tmp_path / "part-0"
    about = {"rows": 1, "seen": 1, "shape": [2], "ids": ["a"], "skipped": [], "gap": 0.0}
    about |= {"way": "as it is", "off": 0.0}
    for change in ({}, {"rows": True}, {"shape": [2.0]}, {"ids": [1]}, {"gap": None}, {"rows": 2}):
        text = json.dumps({**about, **change}).encode()
        path.write_bytes(bytes(8) + text + parts._LENGTH.pack(len(text)))
        found = parts._read_about(path, "float32")
        assert (found is None) == bool(change), change
