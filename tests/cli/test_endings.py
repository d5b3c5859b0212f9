"""How commands end: signals, kills, another process at work, outputs that vanish."""

from __future__ import annotations

import os
import shutil
import signal
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from catwise import _lock
from catwise._lock import exclusive
from catwise.cli import main
from catwise.cli.tables import TableWriter
from catwise.data import masks
from catwise.errors import OutputError
from cli.example import make_example

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = ["--encoding", "nan", "--id-column", "image", "--group-column", "patient"]
LABELS = ["--labels", "all.csv", *ROWS, "--ignore-column", "split"]
SIMULATE = ["simulate", *LABELS, "--n", "9", "--n", "20", "--out", "out"]
CHECKPOINT = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]
TEST = ["--features", "test.npz", "--labels", "test.csv", *ROWS, "--ignore-column", "split"]
VALID = ["--valid-features", "test.npz", "--valid-labels", "test.csv", *TEST[4:]]
CALLS = {
    "split": [*LABELS, "--share", "a=0.5", "--share", "b=0.5", "--out", "out"],
    "simulate": SIMULATE[1:],
    "audit": [*LABELS, "--csv", "out"],
    "evaluate": [*TEST, *CHECKPOINT, "--csv", "out"],
    "tune": [*TEST, *CHECKPOINT, "--out", "out"],
    "select": ["--candidate", "a=x", "--candidate", "b=y", *VALID, "--out", "out"],
    "apply": ["--head", "x", "--checkpoint", "model.safetensors", "--out", "out"],
    "demo": ["--out", "out"],
}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    make_example(folder)
    return folder


@pytest.fixture(autouse=True)
def _inside(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in example.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments])


def contents(folder: str = "out") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def hidden() -> list[str]:
    return [str(path) for path in Path().rglob(".catwise-*")]


def on_write(monkeypatch: pytest.MonkeyPatch, do: Callable[[], Any], *, after: int = 0) -> None:
    """Do something in the middle of one of the tables."""
    write, left = TableWriter._write_wide, [after]

    def writing(self: TableWriter, *arguments: Any) -> None:
        write(self, *arguments)
        left[0] -= 1
        if left[0] < 0:
            do()

    monkeypatch.setattr(TableWriter, "_write_wide", writing)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_end_a_command_cleanly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, no temporary file, the shell's exit code; afterwards all is as before."""
    number = getattr(signal, name)
    # As in a terminal: what nohup or a shell's & ignores stays ignored.
    usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    given = signal.signal(number, usual)
    before = signal.getsignal(number)

    def twice() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            if number != signal.SIGINT:  # a second one does not cut the cleaning up short
                os.kill(os.getpid(), number)

    on_write(monkeypatch, twice)
    result = run(*SIMULATE)
    assert result.exit_code == 128 + number
    told = "interrupted" if name == "SIGINT" else f"ended by {name}"
    assert result.stderr == f"{told}\n"
    assert contents() == {}
    assert hidden() == []
    assert signal.getsignal(number) == before
    signal.signal(number, given)
    monkeypatch.undo()


@pytest.mark.parametrize("step", ["_acquire", "release"])
def test_a_signal_does_not_part_the_steps_of_a_lock(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making the lock's file and knowing of it, and while it is removed."""
    home = _lock if step == "_acquire" else _lock.Hold
    right = getattr(home, step)

    def interrupted(*arguments: Any) -> Any:
        if step == "release":
            os.kill(os.getpid(), signal.SIGTERM)
            return right(*arguments)
        found = right(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(home, step, interrupted)
    result = run(*SIMULATE)
    assert (result.exit_code, result.stderr) == (143, "ended by SIGTERM\n")
    assert hidden() == []
    assert _lock._HOLDS == []
    monkeypatch.undo()


def test_workers_that_end_with_the_command_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loader does at the end of a worker is not done once the command is ending."""
    told: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: told.append(number))

    def end() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            child = os.fork()
            if not child:
                os._exit(1)
            os.waitpid(child, 0)

    try:
        on_write(monkeypatch, end)
        assert run(*SIMULATE).exit_code == 143
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert told == []


def test_an_error_after_a_signal_is_its_consequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a worker process that the same signal has ended."""

    def fail() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("a worker was killed") from None

    on_write(monkeypatch, fail)
    result = run(*SIMULATE)
    assert (result.exit_code, result.stderr) == (143, "ended by SIGTERM\n")


def test_what_a_command_held_is_let_go_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a loader ends its workers itself; at exit they would be ended with a traceback."""
    held: list[weakref.ref[set[int]]] = []

    def interrupted() -> None:
        loader = set[int]()
        held.append(weakref.ref(loader))
        os.kill(os.getpid(), signal.SIGTERM)

    on_write(monkeypatch, interrupted)
    result = run(*SIMULATE)
    assert result.exit_code == 143
    assert result.exc_info is not None
    assert held[0]() is None


def test_a_hangup_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        on_write(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert run(*SIMULATE).exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_leave_signals_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process ends at SIGTERM, and at a hangup when the command ends it."""
    seen = []

    def fork() -> None:
        child = os.fork()
        if not child:
            kept = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
            os._exit(kept != (signal.SIG_DFL, signal.SIG_IGN))
        seen.append(os.waitpid(child, 0)[1])

    on_write(monkeypatch, fork)
    assert run(*SIMULATE).exit_code == 0
    assert set(seen) == {0}


@pytest.mark.parametrize("command", CALLS)
def test_two_at_once(command: str) -> None:
    """Whatever writes an output refuses one that another process is writing."""
    inside = command == "simulate"
    if inside:
        Path("out").mkdir()
    with exclusive("out", inside=inside):
        result = run(command, *CALLS[command])
    assert result.exit_code == OutputError.exit_code
    assert "another process is writing 'out'" in result.stderr
    assert "Traceback" not in result.output
    assert hidden() == []


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End this process before one of its renames."""
    replace, left = Path.replace, [moment]

    def replaced(self: Path, target: Path) -> Path:
        left[0] -= 1
        return replace(self, target) if left[0] >= 0 else os._exit(9)

    monkeypatch.setattr(Path, "replace", replaced)


def test_a_kill_between_files_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before any of its renames, the same call ends with the bytes of a whole run."""
    assert run(*SIMULATE).exit_code == 0
    expected = contents()
    for moment in range(len(expected)):
        shutil.rmtree("out")
        child = os.fork()
        if not child:
            killed_at(moment, monkeypatch)
            run(*SIMULATE)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert hidden(), "a kill leaves its temporary"
        assert len([name for name in contents() if not name.startswith(".")]) == moment
        assert run(*SIMULATE).exit_code == 0
        assert contents() == expected
        assert hidden() == []


@pytest.mark.parametrize("how", ["removed", "replaced", "emptied"])
def test_an_output_that_vanishes_is_an_error(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0 says that all files are there."""

    def spoil() -> None:
        if how == "emptied":
            Path("out/per_category_9_seed0.csv").unlink(missing_ok=True)
            return
        shutil.rmtree("out")
        if how == "replaced":
            Path("out").mkdir()

    save = masks.save_mask
    monkeypatch.setattr("catwise.data.save_mask", lambda *a, **k: (save(*a, **k), spoil())[0])
    result = run(*SIMULATE)
    assert result.exit_code == OutputError.exit_code
    assert "while catwise" in result.stderr
    assert not Path("out").exists() or hidden() == []
