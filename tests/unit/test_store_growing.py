"""Rows that are added to a store: nothing that is there changes, and a kill costs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from catwise.errors import CatwiseError, FeatureError, FeatureStoreError, IdError, OutputError
from catwise.errors import ShapeError as Shapes
from catwise.features import FeatureStore, append_store, open_store, write_store

if TYPE_CHECKING:
    from collections.abc import Callable

VALUES = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
IDS = [f"img {i}.jpg" for i in range(11)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 4 rows in half precision."""
    monkeypatch.setattr("catwise.features.writer.SHARD_BYTES", 24)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def begun(folder: Path, rows: int = 5) -> FeatureStore:
    origin = {"model": "m"}
    return write_store(folder, VALUES[:rows], ids=IDS[:rows], dtype="float16", origin=origin)


def check(store: FeatureStore, rows: int = 11) -> None:
    """All rows and ids, read in blocks and by number."""
    expected = VALUES[:rows].astype(np.float16)
    np.testing.assert_array_equal(store.block(0, rows), expected)
    np.testing.assert_array_equal(store.rows([rows - 1, 0, 4]), expected[[rows - 1, 0, 4]])
    assert store.ids is not None
    assert store.ids.tolist() == IDS[:rows]
    store.verify()


def test_rows_are_added(tmp_path: Path) -> None:
    """New rows follow the old ones, in files of their own; the old files stay as they are."""
    before = begun(tmp_path / "s")
    old = files(tmp_path / "s")
    middle = append_store(tmp_path / "s", [VALUES[5:6], VALUES[6:8]], ids=IDS[5:8])
    check(middle, 8)
    other = write_store(tmp_path / "t", VALUES[8:], ids=IDS[8:], origin={"day": 2})
    after = append_store(tmp_path / "s", other)
    check(after)
    check(before, 5)
    assert after.origin == {
        "model": "m",
        "appended": [
            {"first_row": 5, "rows": 3, "origin": {}},
            {"first_row": 8, "rows": 3, "origin": {"day": 2}},
        ],
    }
    new = files(tmp_path / "s")
    assert {name: new[name] for name in old if name != "manifest.json"} == {
        name: data for name, data in old.items() if name != "manifest.json"
    }
    assert len({before.digest, middle.digest, after.digest}) == 3


def test_a_store_without_ids_grows(tmp_path: Path) -> None:
    """Ids are wanted where there are some, and only there."""
    write_store(tmp_path / "s", VALUES[:5], dtype="bfloat16")
    store = append_store(tmp_path / "s", VALUES[5:].tolist())
    assert (store.shape, store.dtype, store.ids) == ((11, 3), "bfloat16", None)
    with pytest.raises(Shapes, match="no ids: the store has none"):
        append_store(tmp_path / "s", VALUES[:1], ids=["new"])
    begun(tmp_path / "t")
    with pytest.raises(Shapes, match="ids, as the store has them"):
        append_store(tmp_path / "t", VALUES[5:])


@pytest.mark.parametrize(
    ("rows", "ids", "error", "reason"),
    [
        (VALUES[5:, :2], IDS[5:], Shapes, "expected: 3 columns"),
        (VALUES[5:], [*IDS[5:10], IDS[2]], IdError, r"'img 2.jpg' in rows 2 and 10"),
        (VALUES[5:], [*IDS[5:10], IDS[5]], IdError, "more than once"),
        (VALUES[5:], IDS[5:9], Shapes, "one for each row"),
        (VALUES[5:] * 1e6, IDS[5:], FeatureError, "too large"),
        (VALUES[5:5], [], FeatureError, "no rows"),
        ([], None, FeatureError, "no rows"),
    ],
)
def test_what_cannot_be_added(
    tmp_path: Path, rows: Any, ids: Any, error: type[CatwiseError], reason: str
) -> None:
    """Each has its own error; the store and its folder stay as they were."""
    begun(tmp_path / "s")
    before = files(tmp_path / "s")
    with pytest.raises(error, match=reason):
        append_store(tmp_path / "s", rows, ids=ids)
    assert files(tmp_path / "s") == before


def test_nothing_to_add_to(tmp_path: Path) -> None:
    """A folder that is no store is not made one."""
    with pytest.raises(FeatureStoreError, match="not a feature store"):
        append_store(tmp_path / "s", VALUES)
    assert not (tmp_path / "s").exists()


def test_one_at_a_time(tmp_path: Path) -> None:
    """Who adds rows while somebody else does is told so."""
    begun(tmp_path / "s")

    def rows() -> Any:
        yield VALUES[5:6]
        with pytest.raises(OutputError, match="another process is writing"):
            append_store(tmp_path / "s", VALUES[6:], ids=IDS[6:])

    check(append_store(tmp_path / "s", rows(), ids=IDS[5:6]), 6)


class Killed(BaseException):
    """The process ends here."""


def killing(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """End at one of the renames, without cleaning up."""
    replace: Callable[[Path, Path], Path] = Path.replace
    left = moment

    def replaced(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr("catwise._io.remove", lambda _: None)
    monkeypatch.setattr("catwise._lock.remove", lambda _: None)


def test_killed_while_adding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before any rename, the store is the old one; adding again gives the same bytes."""
    begun(tmp_path / "whole")
    append_store(tmp_path / "whole", VALUES[5:], ids=IDS[5:])
    expected = files(tmp_path / "whole")
    moments = 0
    for moment in range(len(expected)):
        folder = tmp_path / str(moment)
        begun(folder)
        with monkeypatch.context() as patch:
            killing(patch, moment)
            try:
                append_store(folder, VALUES[5:], ids=IDS[5:])
                break
            except Killed:
                moments += 1
        check(open_store(folder), 5)
        append_store(folder, VALUES[5:], ids=IDS[5:])
        assert files(folder) == expected
    assert moments == 4, "two shards, ids and manifest"


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    """Files that the manifest does not list are taken away; other ones are the user's."""
    begun(tmp_path / "s")
    for name in ("features-00007.safetensors", "ids-00007.txt", "notes.txt"):
        (tmp_path / "s" / name).write_bytes(b"")
    append_store(tmp_path / "s", VALUES[5:], ids=IDS[5:])
    table = json.loads((tmp_path / "s" / "manifest.json").read_text(encoding="utf-8"))
    listed = {part["file"] for part in (*table["shards"], *table["ids"])}
    assert set(files(tmp_path / "s")) == listed | {"manifest.json", "notes.txt"}
