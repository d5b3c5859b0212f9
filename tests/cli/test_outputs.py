"""A full disk, and outputs that are removed while a command runs: every command that writes."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from catwise.cli import main
from catwise.errors import OutputError
from catwise.heads import read_head, save_head
from catwise.predicting import save_classifier
from cli import fix_case
from cli.example import NAMES, make_example

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = ["--encoding", "nan", "--id-column", "image", "--group-column", "patient"]
LABELS = ["--labels", "all.csv", *ROWS, "--ignore-column", "split"]
CHECKPOINT = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]
ROWS += ["--ignore-column", "split"]
TEST = ["--features", "test.npz", "--labels", "test.csv", *ROWS]
VALID = ["--valid-features", "test.npz", "--valid-labels", "test.csv", *ROWS]
NET = ["--model", fix_case.MODEL, "--checkpoint", "case/net.safetensors"]
OUT = "place/out"
FILE = f"{OUT}.safetensors"
CALLS = {
    "split": ["split", *LABELS, "--share", "a=0.5", "--share", "b=0.5", "--out", OUT],
    "simulate": ["simulate", *LABELS, "--n", "9", "--n", "20", "--out", OUT],
    "audit": ["audit", *LABELS, "--csv", OUT],
    "evaluate": ["evaluate", *TEST, *CHECKPOINT, "--csv", OUT],
    "tune": ["tune", *TEST, *CHECKPOINT, "--out", OUT],
    "extend": ["extend", *TEST, "--head", "four.safetensors", "--out", OUT],
    "join": ["join", "--head", "head.safetensors", "--head-categories", "names.txt", "--drop",
             "fox", "--out", FILE],
    "select": ["select", "--candidate", "a=model.safetensors", "--candidate", "b=other.safetensors",
               *VALID, "--out", OUT],
    "apply": ["apply", "--head", "head.safetensors", "--checkpoint", "model.safetensors", "--out",
              FILE],
    "apply --model": ["apply", "--head", "case/head.safetensors", *NET, "--out", FILE, "--card",
                      f"{OUT}.md"],
    "extract": ["extract", *NET, "--images", "case/images", "--out", OUT],
    "fix": fix_case.arguments(Path("case"), "--out", OUT),
    "package": ["package", "--head", "head.safetensors", "--out", OUT],
    "package --model": ["package", *NET, "--out", OUT],
    "predict": ["predict", "--classifier", "classifier", "--features", "test.npz", "--out",
                f"{OUT}.csv"],
    "export": ["export", "--classifier", "classifier", "--torch-export", f"{OUT}.pt2"],
}  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    make_example(folder)
    fix_case.make_case(folder / "case")
    head = read_head(folder / "model.safetensors")
    save_head(head.replace(weight=head.weight * 1.5), folder / "head.safetensors")
    save_classifier(head, folder / "classifier")
    save_head(head.replace(categories=NAMES).drop_categories(["eel"]), folder / "four.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    head = read_head(folder / "case/net.safetensors", key="fc.weight")
    save_head(head.replace(weight=head.weight * 1.5), folder / "case/head.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _inside(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in example.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    Path("place").mkdir()


def run(command: str) -> Result:
    return CliRunner().invoke(main, CALLS[command])


def on_sync(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> list[int]:
    """Do something when a file is flushed to the disk for the so-many-th time; what is counted."""
    sync, seen = os.fsync, []

    def synced(descriptor: int) -> None:
        seen.append(descriptor)
        if len(seen) == number:
            act()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    return seen


def moments(n: int) -> list[int]:
    """The first and the last, and some between them."""
    return sorted({1, n // 2, n - 1, n} - {0})


def files() -> list[str]:
    return sorted(str(path) for path in Path("place").rglob("*") if path.is_file())


def is_unfinished(name: str) -> bool:
    """What the next call of `extract` and `fix` goes on with, and whole files of `simulate`."""
    return "features" in name or ".parts/" in name or name.endswith(("fix.json", ".csv"))


def refused(result: Result) -> None:
    assert result.exit_code == OutputError.exit_code, result.output
    assert result.stderr.splitlines()[-3].startswith(("OutputError: ", "  found:"))
    assert "Traceback" not in result.output
    assert ".catwise-" not in result.output
    assert "  try:      " in result.stderr


@pytest.mark.parametrize("command", CALLS)
def test_a_disk_that_is_full(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment: one error with what to do, no half of anything; then the same call works."""

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        seen = on_sync(patch, 0, full)
        assert run(command).exit_code == 0
        n = len(seen)
    whole = files()
    for number in moments(n):
        shutil.rmtree("place")
        Path("place").mkdir()
        with monkeypatch.context() as patch:
            on_sync(patch, number, full)
            result = run(command)
        if result.exit_code == 0:  # a folder's names could not be flushed: not every disk can
            assert files() == whole
            continue
        refused(result)
        assert "No space left on device" in result.stderr
        assert "free some space" in result.stderr
        left = files()
        assert not [name for name in left if ".catwise-" in name]
        assert set(left) <= set(whole) or all(map(is_unfinished, left))
    assert run(command).exit_code == 0 or files() == whole
    assert files() == whole


@pytest.mark.parametrize("command", CALLS)
def test_files_that_may_not_be_that_large(command: str) -> None:
    """A limit of the system on the size of files is told as a full disk is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        result = run(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(result)
    assert "File too large" in result.stderr
    assert files() == []


@pytest.mark.parametrize("command", CALLS)
def test_a_folder_that_is_removed_meanwhile(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error; nothing is made anew there, also where a new folder is, and the next call works."""

    def removed() -> None:
        shutil.rmtree("place")
        if number % 2:
            Path("place").mkdir()

    number = 0
    with monkeypatch.context() as patch:
        seen = on_sync(patch, number, removed)
        assert run(command).exit_code == 0
        n = len(seen)
    whole = files()
    for number in moments(n):
        shutil.rmtree("place", ignore_errors=True)
        Path("place").mkdir()
        with monkeypatch.context() as patch:
            on_sync(patch, number, removed)
            result = run(command)
        assert result.exit_code == OutputError.exit_code, (number, result.output)
        assert re.search("while catwise|leave the folder alone", result.stderr), result.stderr
        assert ".catwise-" not in result.output
        assert Path("place").exists() == bool(number % 2)
        assert list(Path("place").rglob("*")) == []
    Path("place").mkdir(exist_ok=True)
    assert run(command).exit_code == 0
    assert files() == whole
