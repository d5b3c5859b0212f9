"""The feature store: what is written is read; what is damaged is found."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from catwise.errors import (
    CatwiseError,
    ConfigError,
    FeatureError,
    FeatureStoreError,
    IdError,
    OutputError,
    ShapeError,
)
from catwise.features import (
    Features,
    FeatureStore,
    block_of,
    iterate_blocks,
    open_store,
    row_digests,
    store_writer,
    write_store,
)

VALUES = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
IDS = [f"train/img {i}.jpg" for i in range(11)]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

dtypes = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 4 rows in half precision, of 2 in float32."""
    monkeypatch.setattr("catwise.features.writer.SHARD_BYTES", 24)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@dtypes
@pytest.mark.usefixtures("small_shards")
def test_round_trip_is_exact(tmp_path: Path, dtype: str) -> None:
    """Values that the dtype can hold come back bit for bit, over shards, in blocks and rows."""
    exact = torch.from_numpy(VALUES).to(DTYPES[dtype])
    store = write_store(tmp_path / "s", exact, ids=IDS, origin={"model": "m"})
    assert store.dtype == dtype
    assert store.shape == (11, 3)
    assert len(store) == 11
    assert [s.rows for s in store.shards] == ([2] * 5 + [1] if dtype == "float32" else [4, 4, 3])
    wide = exact.float().numpy()
    for start in range(12):
        for stop in range(12):
            np.testing.assert_array_equal(store.block(start, stop), wide[start:stop])
    index = np.array([10, 0, 0, 7, -1, 3])
    np.testing.assert_array_equal(store.rows(index), wide[index])
    np.testing.assert_array_equal(store.rows(wide[:, 0] > 0), wide[wide[:, 0] > 0])
    assert store.rows([]).shape == (0, 3)
    assert store.ids is not None
    assert store.ids.tolist() == IDS
    assert store.origin == {"model": "m"}
    store.verify()


@dtypes
@pytest.mark.usefixtures("small_shards")
def test_the_cut_into_blocks_changes_no_byte(tmp_path: Path, dtype: str) -> None:
    """An array, blocks of any size, tensors and another store give the same files."""
    write_store(tmp_path / "a", VALUES, ids=IDS, dtype=dtype)
    expected = files(tmp_path / "a")
    blocks = (torch.from_numpy(VALUES[i : i + 5]) for i in range(0, 11, 5))
    write_store(tmp_path / "b", blocks, ids=IDS, dtype=DTYPES[dtype])
    write_store(tmp_path / "c", Features(VALUES, IDS), dtype=dtype)
    write_store(tmp_path / "d", open_store(tmp_path / "a"), dtype=dtype)
    with store_writer(tmp_path / "e", dtype=dtype) as writer:
        for i in range(11):
            writer.write(VALUES[i : i + 1], ids=IDS[i : i + 1])
        assert writer.n_rows == 11
    for name in "bcde":
        assert files(tmp_path / name) == expected
        assert open_store(tmp_path / name).digest == open_store(tmp_path / "a").digest


@dtypes
@pytest.mark.usefixtures("small_shards")
def test_shards_are_plain_safetensors(tmp_path: Path, dtype: str) -> None:
    """Each shard can be read by the safetensors library."""
    store = write_store(tmp_path / "s", VALUES, dtype=dtype)
    parts = [safetensors.torch.load_file(store.path / s.file)["features"] for s in store.shards]
    assert torch.equal(torch.cat(parts), torch.from_numpy(VALUES).to(DTYPES[dtype]))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (VALUES.astype(np.float16), "float16"),
        (VALUES, "float32"),
        (VALUES.astype(np.float64), "float32"),
        (np.ones((2, 2), dtype=np.int64), "float32"),
        (torch.ones(2, 2, dtype=torch.bfloat16), "bfloat16"),
        (torch.ones(2, 2, dtype=torch.float16), "float16"),
        (VALUES.astype(">f4"), "float32"),
        (VALUES.astype(">f2"), "float16"),
    ],
)
def test_dtype_without_asking(tmp_path: Path, values: Any, dtype: str) -> None:
    """Half precision stays what it is; all the rest becomes float32."""
    store = write_store(tmp_path / "s", values)
    assert store.dtype == dtype
    if isinstance(values, torch.Tensor):
        values = values.float().numpy()
    np.testing.assert_array_equal(store.block(0, len(store)), values.astype(np.float32))


def test_dtype_of_a_store_is_kept_by_name(tmp_path: Path) -> None:
    """A bfloat16 store copied without a dtype stays bfloat16."""
    first = write_store(tmp_path / "a", VALUES, dtype="bf16")
    assert write_store(tmp_path / "b", first).dtype == "bfloat16"
    assert write_store(tmp_path / "c", Features(first)).dtype == "bfloat16"


def test_rounding_is_torchs(tmp_path: Path) -> None:
    """Halves round to even, as torch casts."""
    values = np.array([[1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-9, 1 + 3 * 2**-9]], dtype=np.float32)
    for dtype, kind in DTYPES.items():
        store = write_store(tmp_path / dtype, values, dtype=dtype)
        assert torch.equal(block_of(store, 0, 1), torch.from_numpy(values).to(kind).float())


def test_blocks_are_views(tmp_path: Path) -> None:
    """A block of one shard is a view of the file that cannot be written to."""
    store = write_store(tmp_path / "s", VALUES)
    block = store.block(2, 9)
    assert not block.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        block[0, 0] = 1
    tensor = block_of(store, 2, 9)
    tensor[0, 0] = 99
    np.testing.assert_array_equal(store.block(2, 9), VALUES[2:9])


@pytest.mark.usefixtures("small_shards")
def test_store_serves_as_features(tmp_path: Path) -> None:
    """Block reading and digests work on a store; digests come from its ids."""
    store = write_store(tmp_path / "s", VALUES, ids=IDS)
    parts = [rows for _, rows in iterate_blocks(store, block_rows=4)]
    assert torch.equal(torch.cat(parts), torch.from_numpy(VALUES))
    np.testing.assert_array_equal(row_digests(store), row_digests(VALUES, ids=IDS))
    assert store.ids is store.ids
    with pytest.raises(AttributeError):
        store.path = tmp_path  # type: ignore[misc]


@pytest.mark.usefixtures("small_shards")
def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many shards there are, only so many are mapped; threads may read at once."""
    monkeypatch.setattr("catwise.features.store._MAX_MAPPED", 2)
    store = write_store(tmp_path / "s", VALUES)
    wrong = []

    def read(seed: int) -> None:
        order = np.random.default_rng(seed).integers(0, 11, 200)
        wrong.extend(i for i in order if not np.array_equal(store.block(i, i + 1)[0], VALUES[i]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(store._mapped) <= 2 + len(threads)


def test_store_pickles_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker process opens the store again, from wherever it runs."""
    monkeypatch.chdir(tmp_path)
    store = write_store("s", VALUES)
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(store))  # noqa: S301  # our own
    assert isinstance(again, FeatureStore)
    np.testing.assert_array_equal(again.block(0, 11), store.block(0, 11))
    assert repr(again) == repr(store)


def test_ids_survive(tmp_path: Path) -> None:
    """Spaces, non-Latin letters, quotes and odd line ends in ids come back as they were."""
    ids = ["a b", " c ", "Zürich/é.jpg", "影像", '"', "\u2028", "\r", "tab\t", "0", "00", "\\n"]
    store = write_store(tmp_path / "s", VALUES, ids=ids)
    assert store.ids is not None
    assert store.ids.tolist() == ids


# Refusals in writing


@pytest.mark.parametrize(
    ("values", "options", "error", "reason"),
    [
        (np.zeros((0, 3)), {}, FeatureError, "no rows"),
        (np.zeros((3, 0)), {}, FeatureError, "no columns"),
        ([], {}, FeatureError, "no rows"),
        (np.zeros(3), {}, FeatureError, r"shape \(N, D\)"),
        ([VALUES, VALUES[:, :2]], {}, ShapeError, "rows 11 and on"),
        ([VALUES, VALUES * np.nan], {}, FeatureError, "11 rows .* row 11, column 0"),
        (VALUES * 1e6, {"dtype": "fp16"}, FeatureError, r"too large(.|\n)*65,504(.|\n)*bfloat16"),
        (np.full((2, 2), 3.4e38), {"dtype": "bf16"}, FeatureError, "too large"),
        (np.full((2, 2), 1e300), {}, FeatureError, "must be finite"),
        (np.ones((2, 2), dtype=bool), {}, FeatureError, "real numbers"),
        (VALUES, {"ids": IDS[:-1]}, ShapeError, "one for each row"),
        (VALUES, {"ids": [*IDS[:-1], IDS[0]]}, IdError, "more than once"),
        (VALUES, {"ids": [*IDS[:-1], ""]}, IdError, "empty"),
        (VALUES, {"dtype": "int8"}, ConfigError, "int8"),
        (VALUES, {"dtype": "floot16"}, ConfigError, "did you mean 'float16'"),
        (VALUES, {"origin": {"a": float("nan")}}, ConfigError, "JSON"),
        (VALUES, {"origin": {"a": Path("x")}}, ConfigError, "JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_written(
    tmp_path: Path, values: Any, options: dict[str, Any], error: type[CatwiseError], reason: str
) -> None:
    """Each unusable input has its own error, and nothing is left behind."""
    with pytest.raises(error, match=reason):
        write_store(tmp_path / "s", values, **options)
    assert list(tmp_path.iterdir()) == []


def test_ids_with_some_blocks_only(tmp_path: Path) -> None:
    """Ids come with every block or with none."""

    def write() -> None:
        with store_writer(tmp_path / "s") as writer:
            writer.write(VALUES, ids=IDS)
            writer.write(VALUES)

    with pytest.raises(ShapeError, match="one for each row"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_existing_folder(tmp_path: Path) -> None:
    """A folder with content is replaced on request only; an empty one is taken."""
    (tmp_path / "s").mkdir()
    write_store(tmp_path / "s", VALUES)
    with pytest.raises(OutputError, match="not empty"):
        write_store(tmp_path / "s", VALUES * 2)
    np.testing.assert_array_equal(open_store(tmp_path / "s").block(0, 11), VALUES)
    write_store(tmp_path / "s", VALUES * 2, overwrite=True)
    np.testing.assert_array_equal(open_store(tmp_path / "s").block(0, 11), VALUES * 2)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    with pytest.raises(OutputError, match="make the folder"):
        write_store(tmp_path / "no" / "s", VALUES)


def test_a_store_replaces_itself(tmp_path: Path) -> None:
    """A store can be rewritten from its own rows."""
    store = write_store(tmp_path / "s", VALUES, ids=IDS)
    new = write_store(tmp_path / "s", store, dtype="float16", overwrite=True)
    np.testing.assert_array_equal(new.block(0, 11), VALUES.astype(np.float16))
    assert new.ids is not None


def test_interrupted_writing(tmp_path: Path) -> None:
    """An error between blocks leaves no folder and no open file."""

    def blocks() -> Any:
        yield VALUES
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s", blocks())
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up is an OutputError that says so, and nothing is left behind."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("catwise.features.writer._Shard.write", refuse)
    with pytest.raises(OutputError, match="free some space"):
        write_store(tmp_path / "s", VALUES)
    assert list(tmp_path.iterdir()) == []


# Damage found in reading


@pytest.fixture
def damaged(tmp_path: Path, small_shards: None) -> Path:
    """A store of three shards with ids, to be damaged."""
    write_store(tmp_path / "s", VALUES, ids=IDS, dtype="float16")
    return tmp_path / "s"


SHARD = "features-00001.safetensors"


@pytest.mark.parametrize("name", [SHARD, "ids-00000.txt"])
@pytest.mark.parametrize("change", ["cut", "longer", "empty", "missing"])
def test_sizes_are_checked_at_opening(damaged: Path, name: str, change: str) -> None:
    """A file that is cut short, too long, empty or missing is named at opening."""
    path = damaged / name
    raw = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": raw[:-1], "longer": raw + b"x", "empty": b""}[change])
    with pytest.raises(FeatureStoreError, match=name):
        open_store(damaged)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 256, 260])
def test_a_shard_cut_anywhere(damaged: Path, size: int) -> None:
    """A shard cut in its header or its numbers is said to be cut short."""
    path = damaged / SHARD
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FeatureStoreError, match=r"cut short: .* expected"):
        open_store(damaged)


def test_flipped_bits_are_found_by_verifying(damaged: Path) -> None:
    """A flipped bit is found by its checksum, with the rows; opening alone does not read them."""
    path = damaged / SHARD
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    store = open_store(damaged)
    with pytest.raises(FeatureStoreError, match=r"features-00001\.safetensors \(rows 4 to 7\)"):
        store.verify()
    with pytest.raises(FeatureStoreError, match="differs from its checksum"):
        open_store(damaged, verify=True)


def test_exchanged_shards_are_found(damaged: Path) -> None:
    """Two shards of equal size that changed places are found by verifying, both named."""
    first, second = damaged / "features-00000.safetensors", damaged / SHARD
    first.rename(damaged / "x")
    second.rename(first)
    (damaged / "x").rename(second)
    with pytest.raises(FeatureStoreError, match=r"00000.*00001"):
        open_store(damaged, verify=True)


def test_changed_ids_are_always_found(damaged: Path) -> None:
    """Ids are compared with their checksum whenever they are read."""
    path = damaged / "ids-00000.txt"
    path.write_bytes(path.read_bytes().replace(b"img 3", b"img 4"))
    store = open_store(damaged)
    with pytest.raises(FeatureStoreError, match=r"ids-00000\.txt differs"):
        store.ids  # noqa: B018  # reading is the point
    with pytest.raises(FeatureStoreError, match=r"ids-00000\.txt differs"):
        store.verify()


def test_a_shard_of_another_store(damaged: Path, tmp_path: Path) -> None:
    """A shard with another dtype or shape is not the one that the manifest describes."""
    other = write_store(tmp_path / "o", VALUES, dtype="bfloat16")
    shutil.copy(other.path / SHARD, damaged / SHARD)
    with pytest.raises(FeatureStoreError, match="not the file that the manifest"):
        open_store(damaged)


def test_several_problems_are_told_at_once(damaged: Path) -> None:
    """All that is wrong with the files stands in one error."""
    (damaged / "features-00000.safetensors").unlink()
    (damaged / SHARD).write_bytes(b"")
    (damaged / "ids-00000.txt").write_bytes(b"")
    with pytest.raises(FeatureStoreError, match=r"(?s)00000.*00001.*ids-00000\.txt"):
        open_store(damaged)


def test_a_shard_that_vanishes_later(damaged: Path) -> None:
    """A shard removed after opening is an error of the store, not of numpy."""
    store = open_store(damaged)
    (damaged / SHARD).unlink()
    with pytest.raises(FeatureStoreError, match="No such file"):
        store.block(0, 11)


def change(table: dict[str, Any], path: str, value: Any) -> None:
    """Set or remove one entry of a manifest; the path's parts are keys or positions."""
    *outer, last = (int(part) if part.isdigit() else part for part in path.split("."))
    inner: Any = table
    for part in outer:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("format", "other", "not the manifest"),
        ("version", 2, "another version"),
        ("dtype", "int8", "int8"),
        ("dtype", ..., "no 'dtype'"),
        ("n_rows", 12, "do not sum"),
        ("n_rows", True, "positive"),
        ("n_features", -3, "positive"),
        ("n_features", 4, "not the file that the manifest"),
        ("shards", [], "not a list of files"),
        ("shards", {}, "not a list of files"),
        ("shards.1.file", "../s/features-00001.safetensors", "'file' is '../s"),
        ("shards.1.file", "/etc/passwd", "'file' is '/etc/passwd'"),
        ("shards.1.file", ["features-00001.safetensors"], "'file' is"),
        ("version", True, "'version' is True, not 1"),
        ("version", ..., "no 'version'"),
        ("version", 1.0, "'version' is 1.0"),
        ("dtype", ["float16"], "'dtype' is"),
        ("shards", [[]], "the entry of a file is not a table"),
        ("ids", None, "ids-00000.txt is there, and the manifest names no ids"),
        ("ids", [], "'ids' is"),
        ("ids", {}, "'ids' is"),
        ("ids", False, "'ids' is False"),
        ("origin", None, "'origin' is None"),
        ("origin", [], "'origin' is"),
        ("sha256", 3, "'sha256' is 3"),
        ("shards.1.file", "features-00000.safetensors", "twice"),
        ("shards.1.rows", 4.0, "positive"),
        ("shards.1.rows", ..., "no 'rows'"),
        ("shards.1.sha256", "", "checksum"),
        ("shards.1.bytes", 10**20, "cut short"),
        ("shards.1", "x", "damaged"),
        ("ids.0.file", "manifest.json", "'file' is 'manifest.json'"),
        ("ids.0.rows", 10, "are not those"),
        ("ids", ..., "no 'ids'"),
        ("origin", 3, "origin"),
    ],
)
def test_damaged_manifest(damaged: Path, path: str, value: Any, reason: str) -> None:
    """A manifest that was changed is refused with its own reason; it never leads elsewhere."""
    manifest = damaged / "manifest.json"
    table = json.loads(manifest.read_text(encoding="utf-8"))
    del table["sha256"]  # as stores of earlier versions are
    change(table, path, value)
    manifest.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(FeatureStoreError, match=reason):
        open_store(damaged)


@pytest.mark.parametrize(
    ("path", "value"), [("origin", {"x": 1}), ("ids", None), ("n_features", 4)]
)
def test_a_manifest_knows_its_own_checksum(damaged: Path, path: str, value: Any) -> None:
    """Whatever was changed in it is found; how it is set in lines does not matter."""
    manifest = damaged / "manifest.json"
    table = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps(table), encoding="utf-8")
    open_store(damaged)
    change(table, path, value)
    manifest.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(FeatureStoreError, match="its checksum is wrong"):
        open_store(damaged)


def test_an_origin_that_could_not_be_read_back(tmp_path: Path) -> None:
    """What nests too deeply, or would name a key twice, is not written."""
    deep: Any = "x"
    for _ in range(80):
        deep = [deep]
    for origin in ({"a": deep}, {1: "a", "1": "b"}):
        with pytest.raises(ConfigError, match="JSON-ready"):
            write_store(tmp_path / "s", VALUES, origin=origin)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000, b"1" * 9999, b'{"a":1,"a":2}']
)
def test_no_manifest_at_all(damaged: Path, raw: bytes) -> None:
    """An empty, cut or foreign manifest is refused."""
    (damaged / "manifest.json").write_bytes(raw)
    with pytest.raises(FeatureStoreError, match="damaged"):
        open_store(damaged)


def test_not_a_store(tmp_path: Path) -> None:
    """A missing folder, an empty one and a file say what they are."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FeatureStoreError, match="No such file"):
        open_store(tmp_path / "no")
    with pytest.raises(FeatureStoreError, match=r"no manifest\.json"):
        open_store(tmp_path)
    with pytest.raises(FeatureStoreError, match="Not a directory"):
        open_store(tmp_path / "file")


def test_rows_out_of_range(tmp_path: Path) -> None:
    """A row number that is not there is an IndexError."""
    with pytest.raises(IndexError):
        write_store(tmp_path / "s", VALUES).rows([11])


def resident(path: Path) -> int:
    """KiB of a file that this process holds in memory."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)
    here = [part for part in parts if str(path) in part.partition("\n")[0]]
    return sum(int(re.search(r"^Rss:\s+(\d+) kB", part, re.MULTILINE)[1]) for part in here)  # type: ignore[index]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_memory_of_shards_that_were_read_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading on in another shard gives back the memory of the one before; views stay valid."""
    monkeypatch.setattr("catwise.features.writer.SHARD_BYTES", 2**20)
    values = np.random.default_rng(0).standard_normal((4096, 256)).astype(np.float32)
    store = write_store(tmp_path / "s", values)
    first, second = (tmp_path / "s" / shard.file for shard in store.shards[:2])
    view = store.block(0, 1024)
    np.testing.assert_array_equal(view, values[:1024])
    assert resident(first) >= 1000
    np.testing.assert_array_equal(store.rows(range(1024, 1100)), values[1024:1100])
    assert resident(first) == 0
    assert resident(second) > 0
    np.testing.assert_array_equal(view, values[:1024])
