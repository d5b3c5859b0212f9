"""Stores at URLs, which fsspec opens: as on the disk, and no row is fetched that nobody wants."""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from catwise.errors import (
    ConfigError,
    FeatureStoreError,
    MissingExtraError,
    OutputError,
    ShapeError,
)
from catwise.features import (
    append_store,
    check_finite,
    iterate_blocks,
    open_store,
    read_features,
    row_digests,
    write_store,
)
from catwise.features.places import LocalPlace, RemotePlace, is_url, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

fsspec = pytest.importorskip("fsspec")

VALUES = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float16)
IDS = [f"img {i}.jpg" for i in range(1000)]
URL = "memory://stores/train"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty file system in memory, and shards of 300 rows."""
    monkeypatch.setattr("catwise.features.writer.SHARD_BYTES", 2400)
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def names() -> list[str]:
    return sorted(RemotePlace(URL).sizes())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    """Rows, ids, digests and files are those of the same store on the disk."""
    local = write_store(tmp_path / "s", VALUES, ids=IDS, dtype=dtype)
    store = write_store(URL, VALUES, ids=IDS, dtype=dtype)
    assert (store.digest, store.shape, store.path) == (local.digest, (1000, 4), URL)
    place = RemotePlace(URL)
    assert {name: place.read(name, 10**6) for name in names()} == {
        path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()
    }
    index = [999, 0, 0, 300, 299, -2]
    np.testing.assert_array_equal(store.block(250, 950), local.block(250, 950))
    np.testing.assert_array_equal(store.rows(index), local.rows(index))
    np.testing.assert_array_equal(store.ids, local.ids)
    np.testing.assert_array_equal(row_digests(store), row_digests(local))
    for (start, rows), (_, expected) in zip(
        iterate_blocks(store, block_rows=170), iterate_blocks(local, block_rows=170), strict=True
    ):
        assert rows.equal(expected), start
    check_finite(store)
    store.verify()
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301  # our own
    np.testing.assert_array_equal(copy.rows([5]), local.rows([5]))


def test_only_wanted_rows_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block, and known rows of a category, cost their own bytes; near rows come together."""
    monkeypatch.setattr("catwise.features.places._GAP_BYTES", 16)
    store = write_store(URL, VALUES, ids=IDS)
    fetched: list[list[tuple[int, int]]] = []
    fetch = RemotePlace.fetch

    def counted(self: Any, name: str, spans: Any) -> Any:
        fetched.append(list(spans))
        return fetch(self, name, spans)

    monkeypatch.setattr(RemotePlace, "fetch", counted)
    np.testing.assert_array_equal(store.block(298, 302), VALUES[298:302])
    assert fetched == [[(256 + 298 * 8, 256 + 300 * 8)], [(256, 256 + 2 * 8)]]
    fetched.clear()
    known = np.zeros(1000, dtype=bool)
    known[[3, 5, 100, 700]] = True
    np.testing.assert_array_equal(store.rows(known), VALUES[known])
    assert fetched == [
        [(256 + 3 * 8, 256 + 6 * 8), (256 + 100 * 8, 256 + 101 * 8)],
        [(256 + 100 * 8, 256 + 101 * 8)],
    ]


def test_a_store_is_replaced_on_request() -> None:
    """The old store is there until the new manifest is; then its files go."""
    old = write_store(URL, VALUES, ids=IDS)
    with pytest.raises(OutputError, match="not empty"):
        write_store(URL, VALUES)
    new = write_store(URL, old, dtype="float32", overwrite=True)
    np.testing.assert_array_equal(new.block(0, 1000), VALUES)
    new.verify()
    assert len(names()) == len(new.shards) + 2
    assert open_store(URL).digest == new.digest


def test_what_fails_leaves_nothing() -> None:
    """An error while writing removes what was copied, and an old store stays."""

    def blocks() -> Iterator[Any]:
        yield VALUES[:600]
        yield VALUES[:600, :3]

    with pytest.raises(ShapeError):
        write_store(URL, blocks())
    assert names() == []
    old = write_store(URL, VALUES)
    there = names()
    with pytest.raises(ShapeError):
        write_store(URL, blocks(), overwrite=True)
    with pytest.raises(ShapeError):
        append_store(URL, blocks())
    assert names() == there
    open_store(URL, verify=True)
    np.testing.assert_array_equal(old.block(0, 1000), VALUES)


def test_rows_are_added() -> None:
    """New rows are new files and a new manifest."""
    write_store(URL, VALUES[:400], ids=IDS[:400])
    store = append_store(URL, VALUES[400:], ids=IDS[400:])
    np.testing.assert_array_equal(store.block(0, 1000), VALUES)
    assert store.ids is not None
    assert store.ids.tolist() == IDS
    store.verify()


def test_damage_is_found(memory: Any) -> None:
    """Files that are missing, cut or changed are named, when opened, read or verified."""
    store = write_store(URL, VALUES, ids=IDS)
    place = RemotePlace(URL)
    name = "features-00001.safetensors"
    path, raw = f"/stores/train/{name}", place.read(name, 10**6)
    memory.pipe_file(path, raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(FeatureStoreError, match=r"features-00001.safetensors \(rows 300 to 599\)"):
        open_store(URL, verify=True)
    memory.pipe_file(path, raw[:1000])
    with pytest.raises(FeatureStoreError, match="cut short"):
        open_store(URL)
    with pytest.raises(FeatureStoreError, match="cut short"):
        store.block(0, 1000)
    memory.rm_file(path)
    with pytest.raises(FeatureStoreError, match=r"features-00001\.safetensors: No such"):
        open_store(URL)
    with pytest.raises(FeatureStoreError, match="damaged"):
        store.rows([400])


def test_no_store_there() -> None:
    """An URL with nothing, of no known kind, or whose package is missing says so."""
    with pytest.raises(FeatureStoreError, match="not a feature store"):
        open_store(URL)
    with pytest.raises(ConfigError, match="nosuch"):
        open_store("nosuch://a/b")


def test_fsspec_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the line that installs it is shown."""
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingExtraError, match=r"catwise\[remote\]"):
        open_store("s3://bucket/train")


def test_files_and_caches(tmp_path: Path) -> None:
    """A file:// URL is the folder itself, memory-mapped; fsspec's caches may come before."""
    local = write_store(tmp_path / "a b", VALUES, ids=IDS)
    assert not is_url(f"file://{tmp_path}/a%20b")
    assert str(open_place(f"file://{tmp_path}/a%20b")) == str(tmp_path / "a b")
    write_store(URL, VALUES, ids=IDS)
    store = open_store(f"simplecache::{URL}")
    np.testing.assert_array_equal(store.rows([7, 600]), local.rows([7, 600]))


def test_read_features_takes_an_url() -> None:
    """Where features are read, an URL does."""
    write_store(URL, VALUES, ids=IDS)
    features = read_features(URL)
    assert features.shape == (1000, 4)
    np.testing.assert_array_equal(features.rows([1]), VALUES[[1]])


@pytest.mark.parametrize("where", ["local", "remote", "unsized"])
def test_the_size_of_a_manifest_is_looked_at(
    where: str, tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest beyond the bound is refused, and no more than the bound is ever read of it."""
    place = str(tmp_path / "s") if where == "local" else URL
    write_store(place, VALUES, ids=IDS)
    raw = LocalPlace(tmp_path / "s").read if where == "local" else RemotePlace(URL).read
    size = len(raw("manifest.json", 10**6))
    asked: list[Any] = []
    if where == "unsized":
        monkeypatch.setattr(type(memory), "info", lambda *_, **__: {"type": "file"})
    cat_file = type(memory).cat_file

    def watched(self: Any, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        asked.append(end)
        return cat_file(self, path, start, end, **options)

    monkeypatch.setattr(type(memory), "cat_file", watched)
    monkeypatch.setattr("catwise.features.store.MAX_JSON", size)
    assert open_store(place).shape == (1000, 4)
    monkeypatch.setattr("catwise.features.store.MAX_JSON", size - 1)
    asked.clear()
    with pytest.raises(FeatureStoreError, match=f"{size:,} bytes of JSON, more than"):
        open_store(place)
    assert asked == ([size] if where == "unsized" else [])


def test_ids_that_grew_are_not_read(tmp_path: Path) -> None:
    """A file of ids is read up to what the manifest says of it."""
    store = open_store(write_store(tmp_path / "s", VALUES, ids=IDS).path)
    with (tmp_path / "s" / "ids-00000.txt").open("ab") as stream:
        stream.write(b"more\n" * 1000)
    with pytest.raises(FeatureStoreError, match="bytes, more than"):
        _ = store.ids
