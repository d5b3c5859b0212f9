"""`--engine` of extract, tune and fix: the same bytes, the same errors, and what goes together."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from catwise.cli import main
from cli.example import make_example
from cli.tiny import MODEL, make_images

LOCAL = ("--engine", "local", "--workers", "2")
TABLE = ["--encoding", "nan", "--id-column", "image", "--group-column", "patient"]
TRAIN = ["--features", "train.npz", "--labels", "train.csv", *TABLE, "--ignore-column", "split"]
VALID = ["--valid-features", "valid.npz", "--valid-labels", "valid.csv"]
HEAD = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]
TUNE = ("tune", *TRAIN, *VALID, *HEAD)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_extract() -> None:
    """A store of two processes is that of one, and an image that cannot be read is told alike."""
    names = make_images(Path("images"))
    extract = ("extract", *MODEL, "--images", "images", "--batch-size", "3")
    run(*extract, "--out", "one")
    run(*extract, *LOCAL, "--out", "two")
    assert files("one") == files("two")
    Path("images", names[5]).write_bytes(b"none")
    told = [run(*extract, *how, "--out", "x", code=7).output for how in ((), LOCAL)]
    assert told[0] == told[1]
    assert names[5] in told[0]
    assert "Traceback" not in told[1]


def test_tune() -> None:
    """A head of two processes is that of one."""
    make_example(Path())
    run(*TUNE, "--out", "one")
    run(*TUNE, *LOCAL, "--out", "two")
    one, two = files("one"), files("two")
    assert one["head.safetensors"] == two["head.safetensors"]
    assert one["records.csv"] == two["records.csv"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--address", "auto"), "--address goes with --engine ray"),
        (("--engine", "local", "--address", "auto"), "--address goes with --engine ray"),
        (("--shared", "x"), "--shared goes with --engine"),
        (("--engine", "dask"), "'dask' is not one of 'local', 'ray'"),
        (("--engine", "local", "--preset", "paper"), "--engine goes with --preset default"),
        (("--engine", "local", "--validation", "select"), "--engine goes with --preset default"),
    ],
)
def test_what_goes_together(options: tuple[str, ...], said: str) -> None:
    """Options that would do nothing are refused before anything is read."""
    make_example(Path())
    assert said in run(*TUNE, *options, "--out", "x", code=2).output
