"""One process at a time; what a killed one left is removed; what was written must stay."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from catwise import _io, _lock
from catwise._io import atomic_folder, atomic_path, write_text
from catwise._lock import exclusive
from catwise.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

fcntl = pytest.importorskip("fcntl")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leftover(target: Path, pid: int, end: str = "") -> Path:
    """A temporary of a target, as a process of that number left it."""
    made = _lock.Temporary(target)._path
    other = re.sub(r"-\d+-([0-9a-f]{8})", rf"-{pid}-\1", made.name, count=1)
    path = made.with_name(other + end)
    path.write_text("half")
    return path


@pytest.mark.parametrize("inside", [False, True])
def test_one_process_at_a_time(tmp_path: Path, inside: bool) -> None:
    """A second one is refused while the first is at work, and let in afterwards."""
    code = (
        "import sys; from catwise._lock import exclusive\n"
        f"with exclusive(sys.argv[1], inside={inside}): print('in')"
    )
    out = tmp_path / "out"
    if inside:
        out.mkdir()

    def other() -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-c", code, str(out)]
        return subprocess.run(call, capture_output=True, text=True, check=False)

    with exclusive(out, inside=inside):
        assert f"another process is writing '{out}'" in other().stderr
    assert other().stdout == "in\n"
    assert names(out if inside else tmp_path) == []


def test_threads_are_others_too(tmp_path: Path) -> None:
    """Two threads of a process exclude each other as two processes do."""
    seen: list[BaseException] = []

    def second() -> None:
        try:
            with atomic_folder(tmp_path / "out"):
                pass
        except OutputError as error:
            seen.append(error)

    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another process" in str(seen[0])
    assert names(tmp_path / "out") == ["a"]


def test_a_command_that_holds_its_output_writes_it(tmp_path: Path) -> None:
    """The writer within is the same work; a second writer at once is not."""
    with exclusive(tmp_path / "out"):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("x")
            with (
                pytest.raises(OutputError, match="another process"),
                atomic_folder(tmp_path / "out"),
            ):
                pass
        with atomic_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "b").write_text("x")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["b"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path, dead: int) -> None:
    """By the next that writes the same file; a running neighbour's, and other files', stay."""
    target = tmp_path / "a.csv"
    leftover(target, dead)
    leftover(target, dead, "-first.pt")
    leftover(target, os.getpid())  # another process had our number
    running = leftover(target, os.getppid())
    other = leftover(tmp_path / "b.csv", dead)
    write_text(target, "whole")
    assert names(tmp_path) == sorted(["a.csv", running.name, other.name])
    with exclusive(target):  # none but this process can have one now
        pass
    assert names(tmp_path) == sorted(["a.csv", other.name])


def test_temporaries_of_another_machine_stay(tmp_path: Path, dead: int) -> None:
    """Numbers of processes mean nothing elsewhere, as in another container; a hold does."""
    path = leftover(tmp_path / "a", dead)
    there = path.rename(path.with_name(path.name.replace(_lock._machine(), "0" * 6)))
    write_text(tmp_path / "a", "x")
    assert names(tmp_path) == sorted(["a", there.name])
    with exclusive(tmp_path / "a"):
        assert there.name not in names(tmp_path)


def test_devices_are_not_held() -> None:
    """Nothing is put beside a device or a pipe."""
    with pytest.raises(OutputError, match="neither a file nor a folder"), exclusive(os.devnull):
        pass


def test_temporaries_in_temporaries_are_of_the_same_target(tmp_path: Path, dead: int) -> None:
    """What is built in steps leaves nothing either."""
    with atomic_path(tmp_path / "a.pt") as outer, atomic_path(outer) as inner:
        inner.write_text("x")
        nested = inner.name
        assert _lock.Temporary.is_stale(nested, locked=True) is False
    leftover(tmp_path / re.sub(r"-\d+-", f"-{dead}-", nested, count=1), dead)
    write_text(tmp_path / "a.pt", "y")
    assert names(tmp_path) == ["a.pt"]


def test_a_folder_that_is_worked_in_is_tidied(tmp_path: Path, dead: int) -> None:
    """Everything hidden of ours, of any target, goes at the start; the user's files stay."""
    leftover(tmp_path / "a.csv", dead)
    (tmp_path / ".catwise-0123456789abcdef").write_text("half")
    (tmp_path / "mine").write_text("x")
    with exclusive(tmp_path, inside=True):
        assert names(tmp_path) == [".catwise-lock", "mine"]
    assert names(tmp_path) == ["mine"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_replaced_folder_is_never_lost(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """Names are exchanged at once; where that cannot be, a kill between is made good."""
    if not exchange:
        monkeypatch.setattr(_io, "_exchange", lambda *_: False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("x")
    with atomic_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert names(out) == ["new"]
    out.rename(leftover(out, dead, ".gone").with_name(leftover(out, dead).name + ".old"))
    with exclusive(out):
        assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command goes on, with a warning, and leaves what may be another's."""

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    running = leftover(tmp_path / "out", os.getppid())
    for inside in (False, True):
        with (
            pytest.warns(UserWarning, match="has no locks"),
            exclusive(tmp_path if inside else tmp_path / "out", inside=inside),
        ):
            write_text(tmp_path / "out", "x")
    assert names(tmp_path) == sorted(["out", running.name])


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced", "emptied"])
def test_outputs_that_vanish_are_found_out(tmp_path: Path, how: str) -> None:
    """What was written must be there when the work ends."""
    out = tmp_path / "out"
    out.mkdir()

    def spoil() -> None:
        if how == "emptied":
            (out / "a.csv").unlink()
            return
        out.rename(tmp_path / "elsewhere")
        if how == "removed":
            return
        out.mkdir() if how == "replaced" else None

    def work() -> None:
        with exclusive(out, inside=True):
            write_text(out / "a.csv", "x")
            spoil()

    with pytest.raises(OutputError, match=r"removed or (changed|replaced)"):
        work()
    for path in tmp_path.rglob(".catwise-*"):
        assert path.parent.name == "elsewhere"


def test_an_output_removed_at_once_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is gone before anybody could look at it."""
    sync = _io._sync_folder

    def removed(folder: Path) -> None:
        (tmp_path / "a").unlink(missing_ok=True)
        sync(folder)

    monkeypatch.setattr(_io, "_sync_folder", removed)

    def work() -> None:
        with exclusive(tmp_path / "a"):
            write_text(tmp_path / "a", "x")

    with pytest.raises(OutputError, match="removed or changed"):
        work()


def test_nothing_is_written_into_a_folder_that_took_the_place(tmp_path: Path) -> None:
    """Another run may be at work in it."""
    out = tmp_path / "out"
    out.mkdir()

    def work() -> None:
        with exclusive(out, inside=True):
            out.rename(tmp_path / "elsewhere")
            out.mkdir()
            write_text(out / "a.csv", "x")

    with pytest.raises(OutputError, match="removed or replaced"):
        work()
    assert names(out) == []


def test_what_is_removed_on_purpose_is_not_missed(tmp_path: Path) -> None:
    """Neither what is replaced nor what the work itself takes away."""
    with exclusive(tmp_path, inside=True):
        write_text(tmp_path / "a", "x")
        write_text(tmp_path / "a", "longer")
        with atomic_folder(tmp_path / "b") as folder:
            (folder / "c").write_text("x")
        _io.remove(tmp_path / "b")
    assert names(tmp_path) == ["a"]


def test_folders_around_it_are_made_and_unmade(tmp_path: Path) -> None:
    """Folders that were made for an output that never came go away again."""

    def fail() -> None:
        with exclusive(tmp_path / "a" / "b" / "out", parents=True):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == []
    with exclusive(tmp_path / "a" / "out", parents=True):
        write_text(tmp_path / "a" / "out", "x")
    assert names(tmp_path / "a") == ["out"]


def test_a_forked_process_holds_nothing(tmp_path: Path) -> None:
    """A worker that outlives its parent keeps no one out."""
    with exclusive(tmp_path / "out"):
        child = os.fork()
        if not child:
            os._exit(len(_lock._HOLDS))
        assert os.waitpid(child, 0)[1] == 0


def test_the_same_bytes_may_stay(tmp_path: Path) -> None:
    """Where nothing may be replaced, what is there already is no conflict."""
    target = tmp_path / "a"
    write_text(target, "x")
    stamp = target.stat().st_mtime_ns
    _io.write_bytes(target, b"x", replace=False)
    assert target.stat().st_mtime_ns == stamp
    with pytest.raises(OutputError, match="with other content"):
        _io.write_bytes(target, b"y", replace=False)
    assert target.read_text() == "x"
    assert names(tmp_path) == ["a"]
