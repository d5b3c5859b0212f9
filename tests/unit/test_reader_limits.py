"""Every reader of files refuses what exceeds its bound: early, and as one clear error.

The inputs are small: the bound is made smaller than they are. docs/limits.md is the list; what
DICOM and ONNX files claim is tested beside their readers.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import struct
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch

import catwise
from catwise import Head, PartialLabels, load_head, read_features, read_head, save_head
from catwise._safetensors import build
from catwise.cli.inputs import read_names
from catwise.cli.prevalence import _json_shares
from catwise.data import read_table
from catwise.data.files import open_table
from catwise.data.masks import read_mask, save_mask
from catwise.data.readers import _kit, celeba, chestxray14, coco, openimages, voc
from catwise.errors import CatwiseError
from catwise.features import open_store, write_store
from catwise.fixing.folder import STATE, State
from catwise.models import parts
from catwise.models.adapters import transformers_folder
from catwise.models.card import run_summary
from catwise.models.images import read_image
from catwise.models.sources import TarImages
from catwise.reporting.run import read_run
from catwise.tuning.account.results import FoldArtifacts

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCES = Path(catwise.__file__).parent
VALUES = np.arange(6.0, dtype=np.float32).reshape(3, 2)


def shrink(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    """Set a bound wherever it is known by its name."""
    found = False
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("catwise.") and hasattr(module, name):
            monkeypatch.setattr(module, name, value)
            found = True
    assert found, name


def npz(path: Path, *, packed: bool = False) -> None:
    save = np.savez_compressed if packed else np.savez
    with path.open("wb") as stream:
        save(stream, features=VALUES, other=VALUES)


def checkpoint(path: Path) -> None:
    torch.save({"state": {"fc.weight": torch.eye(3), "fc.bias": torch.zeros(3)}}, path)


def saved(path: Path) -> None:
    save_head(Head(np.eye(3)), path)


def stored(path: Path) -> None:
    write_store(path, VALUES, ids=["a", "b", "c"])


def masked(path: Path) -> None:
    full = PartialLabels.from_array(np.array([[1, 0], [0, 1]]), encoding="nan")
    kept = PartialLabels.from_array(np.array([[1, np.nan], [0, 1]]), encoding="nan")
    save_mask(path, full, kept, protocol={"name": "by hand", "seed": 0})


def folds(path: Path) -> None:
    arrays = {
        "fold": ("I8", (2,), bytes(2)),
        "logits": ("F32", (2, 1), bytes(8)),
        "weight": ("F32", (1, 1, 3), bytes(12)),
    }
    metadata = {"catwise_folds": "1", "categories": '["a"]', "ids": "null"}
    path.write_bytes(build(arrays, metadata))


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    return write


def packed(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(gzip.compress(content.encode()))  # type: ignore[return-value]


def parquet(path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet as format_

    format_.write_table(pa.table({"id": ["a", "b", "c"], "cat": [1, 0, 1]}), path)


def png(path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)


def shard(path: Path, name: str = "a.png") -> None:
    made = io.BytesIO()
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(made, "PNG")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(made.getvalue())
        archive.addfile(member, io.BytesIO(made.getvalue()))


def rows_of(path: Path) -> Any:
    return list(open_table(path).batches(["id", "cat"]))


CSV = "id,cat,dog\na,1,0\nb,0,1\n"
LONG_ROW = f'id,cat,dog\na,1,"{" " * 200}"\n'
OBJECTS = '{"images": [{"id": 1}], "annotations": [{"image_id": 1}], "categories": [{"id": 1}]}'
XML = "<annotation><object><name>cat</name></object></annotation>"
JSONL = '{"id": "a", "cat": 1}\n'


class Reader(NamedTuple):
    """What makes a small file, what reads it, and a bound that it then exceeds."""

    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    limit: str
    value: int
    reason: str


READERS: dict[str, Reader] = {
    "npy header": Reader(
        "x.npy", lambda p: np.save(p, VALUES), read_features, "MAX_NPY_HEADER", 20, "its header"
    ),
    "npy axes": Reader(
        "x.npy", lambda p: np.save(p, VALUES), read_features, "MAX_DIMENSIONS", 1, "2 axes"
    ),
    "npz members": Reader(
        "x.npz", npz, lambda p: read_features(p, key="other"), "MAX_MEMBERS", 1, "2 members"
    ),
    "npz directory": Reader(
        "x.npz", npz, lambda p: read_features(p, key="other"), "MAX_DIRECTORY", 50, "directory"
    ),
    "npz unpacked": Reader(
        "x.npz",
        lambda p: npz(p, packed=True),
        lambda p: read_features(p, key="other"),
        "MAX_UNPACKED",
        100,
        "becomes",
    ),
    "safetensors features": Reader(
        "x.safetensors", saved, lambda p: read_features(p, key="weight"), "MAX_HEADER", 20, "header"
    ),
    "safetensors checkpoint": Reader("x.safetensors", saved, read_head, "MAX_HEADER", 20, "header"),
    "saved head": Reader("x.safetensors", saved, load_head, "MAX_HEADER", 20, "header"),
    "checkpoint pickle": Reader("x.pt", checkpoint, read_head, "MAX_PICKLE", 20, "its pickle"),
    "checkpoint steps": Reader("x.pt", checkpoint, read_head, "MAX_STEPS", 9, "9 instructions"),
    "checkpoint depth": Reader("x.pt", checkpoint, read_head, "MAX_DEPTH", 1, "nests|deep"),
    "checkpoint tables": Reader("x.pt", checkpoint, read_head, "MAX_TABLES", 1, "more than 1"),
    "checkpoint directory": Reader("x.pt", checkpoint, read_head, "MAX_DIRECTORY", 50, "directory"),
    "manifest": Reader(
        "store",
        stored,
        open_store,
        "MAX_JSON",
        50,
        "bytes of JSON",
    ),
    "ids": Reader("store", stored, lambda p: open_store(p).ids, "MAX_ID", 0, "characters in an id"),
    "mask header": Reader("m.safetensors", masked, read_mask, "MAX_HEADER", 20, "header"),
    "mask": Reader("m.safetensors", masked, read_mask, "MAX_UNPACKED", 20, "bytes, more than 20"),
    "folds": Reader("f.safetensors", folds, FoldArtifacts.load, "MAX_HEADER", 20, "header"),
    "table columns": Reader(
        "x.csv", text(CSV), open_table, "MAX_COLUMNS", 2, "^'.*too many columns"
    ),
    "table header": Reader("x.csv", text(CSV), open_table, "MAX_LINE", 5, "line 1: is too long"),
    "packed table header": Reader(
        "x.csv.gz", packed(CSV), open_table, "MAX_LINE", 5, "line 1: is too long"
    ),
    "table line": Reader("x.csv", text(LONG_ROW), rows_of, "MAX_LINE", 100, "is too long"),
    "packed table line": Reader(
        "x.csv.gz", packed(LONG_ROW), rows_of, "MAX_LINE", 100, "is too long"
    ),
    "Parquet columns": Reader(
        "x.parquet", parquet, open_table, "MAX_COLUMNS", 1, "too many columns"
    ),
    "Parquet rows": Reader("x.parquet", parquet, open_table, "MAX_ROWS", 2, "too many rows"),
    "JSON lines": Reader(
        "x.jsonl",
        text(JSONL),
        lambda p: read_table(p, encoding="nan", id_column="id"),
        "MAX_LINE",
        9,
        "too long",
    ),
    "COCO, LVIS": Reader(
        "x.json",
        text(OBJECTS),
        lambda p: coco.load(p, {"images": {"id": "number"}}),
        "MAX_TEXT",
        20,
        "too large",
    ),
    "Visual Genome, VAW": Reader(
        "x.json", text("[]"), lambda p: _kit.read_json(p, "it"), "MAX_TEXT", 1, "too large"
    ),
    "VOC lists": Reader(
        "x.txt",
        text("a 1\n"),
        lambda p: _kit.read_text(p, "it"),
        "MAX_TEXT",
        1,
        "too large",
    ),
    "VOC annotations": Reader("x.xml", text(XML), voc._parse, "MAX_LINE", 20, "too large"),
    "CelebA": Reader("x.txt", text("a 1\n"), celeba._text, "MAX_TEXT", 1, "too large"),
    "NUS-WIDE": Reader(
        "x.txt",
        text("a 1\n"),
        lambda path: _kit.read_bytes(path, "numbers"),
        "MAX_TEXT",
        1,
        "too large",
    ),
    "ChestX-ray14": Reader(
        "x.txt",
        text("00000001_000.png\n"),
        lambda path: chestxray14._read_list(path, "test"),
        "MAX_TEXT",
        1,
        "too large",
    ),
    "Open Images": Reader(
        "x.csv",
        text("/m/01g317,Person\n"),
        lambda p: openimages._classes(p, described=True),
        "MAX_TEXT",
        1,
        "too large",
    ),
    "names": Reader("x.txt", text("cat\ndog\n"), read_names, "MAX_TEXT", 5, "more than 5"),
    "prevalences": Reader("x.json", text('{"a": 0.1}'), _json_shares, "MAX_JSON", 5, "more than 5"),
    "transformers": Reader(
        "config.json", text("{}"), transformers_folder.read_table, "MAX_JSON", 1, "more than 1"
    ),
    "a run's files": Reader(
        "run/config.json",
        text('{"config": {}}'),
        lambda p: read_run(p.parent),
        "MAX_JSON",
        5,
        "more than 5",
    ),
    "a run's state": Reader(
        STATE,
        text('{"inputs": {}, "target": "m.pt", "finished": {}}'),
        lambda p: State.read(p.parent, {}, "m.pt"),
        "MAX_JSON",
        5,
        "more than 5",
    ),
    "unfinished features": Reader(
        "progress.json", text('{"dtype": "float32"}'), parts._progress, "MAX_JSON", 5, "more than 5"
    ),
    "images": Reader("x.png", png, read_image, "MAX_IMAGE", 20, "too large"),
    "tar shards": Reader(
        "x.tar", shard, lambda p: TarImages([p]).locate(0), "MAX_IMAGE", 20, "too large"
    ),
    "tar headers": Reader(
        "x.tar",
        lambda p: shard(p, "deep/" * 300 + "a.png"),
        lambda p: TarImages([p]),
        "MAX_TAR_HEADER",
        600,
        "a header has a part",
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_refuses_what_exceeds_its_bound(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file is read within the bound; beyond it the error says what was found."""
    reader = READERS[name]
    path = tmp_path / reader.file
    reader.make(path)
    monkeypatch.setattr("catwise.data.files.SCAN_BYTES", 16)  # of a table, looked at at once
    if name not in {"a run's files"}:
        reader.read(path)
    shrink(monkeypatch, reader.limit, reader.value)
    with pytest.raises(CatwiseError, match=reader.reason) as refused:
        reader.read(path)
    assert refused.value.found
    assert refused.value.expected or refused.value.remedy


MEMORY: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "saved head": (saved, load_head),
    "checkpoint": (checkpoint, read_head),
    "safetensors": (
        lambda path: path.write_bytes(  # type: ignore[misc, return-value]
            build({"fc.weight": ("F32", (3, 3), bytes(36))}, {})
        ),
        lambda path: read_head(path, key="fc"),
    ),
    "mask": (masked, read_mask),
    "folds": (folds, FoldArtifacts.load),
}


@pytest.mark.parametrize("name", MEMORY)
def test_what_does_not_fit_in_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file can hold more than memory: its size is compared before it is read."""
    make, read = MEMORY[name]
    make(path := tmp_path / "x.safetensors")
    read(path)
    monkeypatch.setattr("catwise._limits._memory", lambda: 7)
    with pytest.raises(CatwiseError, match="of this machine's memory"):
        read(path)


def test_what_need_not_be_there_is_not_read_beyond_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summary beside a head is only for its card: too large a one is none."""
    path = tmp_path / "summary.json"
    path.write_text('{"summary": {"n_replaced": 1}}')
    assert run_summary(path) == {"n_replaced": 1}
    shrink(monkeypatch, "MAX_JSON", 5)
    assert run_summary(path) is None


def test_a_directory_that_claims_too_much(tmp_path: Path) -> None:
    """The real bound, with and without zip64, by a claim of a few bytes."""
    npz(path := tmp_path / "x.npz")
    whole = path.read_bytes()
    at = whole.rindex(b"PK\x05\x06")
    path.write_bytes(whole[: at + 12] + struct.pack("<L", 2**31) + whole[at + 16 :])
    with pytest.raises(CatwiseError, match="2,147,483,648 bytes of the archive's directory"):
        read_features(path, key="other")
    end = b"PK\x06\x06" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 2, 2, 2**40, 0)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, at, 1)
    full = whole[at : at + 12] + b"\xff" * 4 + whole[at + 16 :]
    path.write_bytes(whole[:at] + end + locator + full)
    with pytest.raises(CatwiseError, match="1,099,511,627,776 bytes of the archive's directory"):
        read_features(path, key="other")


def test_large_tables_are_within_the_bounds(tmp_path: Path) -> None:
    """Five thousand categories, and long texts in quotes, are no harm."""
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", *(f"category number {i}" for i in range(5000))])
        rows.writerows([f"image {n}", *["1", "0", ""] * 1666, "1", "0"] for n in range(50))
    assert read_table(path, encoding="nan", id_column="id").labels.shape == (50, 5000)


OPENERS = {
    "read_bytes": {"tuning/rows/sampled.py"},
    "read_text": {"reporting/html.py", "reporting/charts/svg.py", "models/ways.py"},
    "ZipFile": {"_zip.py", "heads/resizing.py"},  # the latter writes one
    "loadtxt": set[str](),
    "genfromtxt": set[str](),
    "fromfile": set[str](),
}
"""What reads a whole file without looking at it, and who may: for files of the package itself, and
for what Linux says of the processor."""


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda p: p.name)
def test_nothing_reads_past_the_one_place(path: Path) -> None:
    """Whole files are read by `_limits.read_within`, archives opened by `_zip.open_zip`."""
    where = path.relative_to(SOURCES).as_posix()
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert {name for name in called & OPENERS.keys() if where not in OPENERS[name]} == set()
