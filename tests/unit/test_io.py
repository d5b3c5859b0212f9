"""Atomic writing."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from catwise._io import atomic_folder, atomic_path, write_bytes, write_json, write_text
from catwise.errors import FeatureStoreError, OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_whole(tmp_path: Path) -> None:
    """The file is there after the block, not before, and nothing else is left."""
    target = tmp_path / "a.bin"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"x")
        assert not target.exists()
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
    assert target.read_bytes() == b"x"
    assert names(tmp_path) == ["a.bin"]


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    """An error inside the block leaves the old file and no temporary one."""
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "may write to"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "check the path"),
    ],
)
def test_system_errors_are_explained(tmp_path: Path, code: int, advice: str) -> None:
    """What the operating system says becomes an OutputError with path, reason and remedy."""
    target = tmp_path / "a.bin"
    with pytest.raises(OutputError, match=advice) as caught, atomic_path(target):
        raise OSError(code, os.strerror(code))
    assert str(target) in str(caught.value)
    assert os.strerror(code) in str(caught.value)


def test_own_errors_pass(tmp_path: Path) -> None:
    """An error of catwise is not relabelled, though it is an OSError too."""
    with pytest.raises(FeatureStoreError), atomic_path(tmp_path / "a"):
        raise FeatureStoreError("broken")


def test_missing_folder(tmp_path: Path) -> None:
    """A folder that does not exist is named as the reason."""
    with pytest.raises(OutputError, match="make the folder first"):
        write_bytes(tmp_path / "no" / "a", b"x")


def test_folder_in_the_way(tmp_path: Path) -> None:
    """A folder is never replaced by a file."""
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="a folder has this name"):
        write_bytes(tmp_path / "a", b"x")


def test_device_is_not_replaced() -> None:
    """A device such as /dev/null is no place for an atomic file."""
    with pytest.raises(OutputError, match="not a regular file"):
        write_bytes(os.devnull, b"x")
    assert not Path(os.devnull).is_file()


def test_file_size_limit(tmp_path: Path) -> None:
    """A file that the system cuts off is removed and reported."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError):
            write_bytes(tmp_path / "a", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without write permission is an OutputError before any work is done."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="may write to"), atomic_path(tmp_path / "a"):
        pytest.fail("the block ran")


def test_link_is_followed(tmp_path: Path) -> None:
    """A symbolic link stays; the file behind it is replaced."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_json(tmp_path: Path) -> None:
    """JSON is written with a line end; NaN is refused before anything is written."""
    write_json(tmp_path / "a.json", {"é": 1})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "é": 1\n}\n'
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", float("nan"))
    assert "é" in (tmp_path / "a.json").read_text("utf-8")


def test_folder_appears_whole(tmp_path: Path) -> None:
    """A folder takes its name when the block ends."""
    target = tmp_path / "store"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("x")
        assert not target.exists()
    assert (target / "a").read_text() == "x"
    assert names(tmp_path) == ["store"]


def test_folder_is_not_overwritten_unasked(tmp_path: Path) -> None:
    """A folder with content is replaced only on request, and then wholly."""
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").write_text("x")
    with pytest.raises(OutputError, match="not empty"), atomic_folder(target):
        pass
    with atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_text("y")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["store"]


def test_failed_folder_is_removed(tmp_path: Path) -> None:
    """An error inside the block leaves nothing."""

    def fail() -> None:
        with atomic_folder(tmp_path / "s") as temporary:
            (temporary / "a").write_text("x")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="No space"):
        fail()
    assert names(tmp_path) == []
