"""`catwise study`: what is printed, its files, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from catwise.cli import main
from catwise.errors import StudyError
from study_case import DECLARED, make_study


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    declared = (
        DECLARED.replace("seed = [0, 1]", "")
        .replace("[[mean]]", "")
        .replace('over = ["scheme"]', "")
    )
    return make_study(tmp_path_factory.mktemp("study"), declared)


def run(*call: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["study", *map(str, call)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_listed_run_and_shown(file: Path, tmp_path: Path) -> None:
    """Cells by number and the budget first; then a piece, the rest, the table, one document."""
    out = tmp_path / "out"
    printed = run(file, "--out", out, "--dry-run")
    assert "1   planted 50% ignore neck default seed 0" in printed
    assert "4 cells ahead, of 2 models; no cell is done" in printed
    assert not out.exists()
    printed = run(file, "--out", out, "--cells", "1-2")
    assert "cells done: 2, ahead: 2" in printed
    listed = json.loads(run(file, "--out", out, "--dry-run", "--json"))
    assert [one["state"] for one in listed["cells"]] == ["done", "done", "ahead", "ahead"]
    assert listed["budget"]["seconds"] > 0
    printed = run(file, "--out", out)
    assert "2 cells ahead, of 1 model; about " in printed
    assert "mean average precision on test rows, 95% intervals" in printed
    assert "assume_negative" in printed
    assert "cells done: 4, ahead: 0" in printed
    found = json.loads(run(file, "--out", out, "--json"))
    assert len(found["cells"]) == 4
    assert len(found["lines"]) == 6
    assert found["n_ahead"] == 0


def test_several_processes(file: Path, tmp_path: Path) -> None:
    """Models in processes of their own come to the same tables, byte for byte."""
    run(file, "--out", tmp_path / "one", "--only", "method=default")
    run(file, "--out", tmp_path / "two", "--only", "method=default", "--engine", "local",
        "--workers", "2")  # fmt: skip
    for name in ("table.csv", "table.md", "table.tex"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "--engine" in run(file, "--out", tmp_path / "no", "--workers", "2", code=2)


def test_a_failed_cell(file: Path, tmp_path: Path) -> None:
    """The others are done; the failure is said, and the exit code is its own."""
    declared = file.read_text().replace('model = "mlp"', 'model = "mlp"\ndropout = 0.1')
    declared += '\n[backbones.other]\nmodel = "timm:resnet18"\n'
    other = make_study(tmp_path, declared)
    call = (other, "--out", tmp_path / "out", "--only", "scheme=ignore", "--only", "method=paper")
    printed = run(*call, code=StudyError.exit_code)
    assert "cells done: 1, ahead: 7" in printed
    assert "failed: planted 50% ignore other paper seed 0: ConfigError" in printed
    assert "the same command tries them again" in printed
    found = run(*call, "--json", code=StudyError.exit_code)
    assert '"kind": "StudyError"' in found


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--only", "sed=0"], 12, "did you mean 'seed'"),
        (["--cells", "7-8"], 12, "from 1 to 4"),
        (["--minutes", "0"], 2, "--minutes"),
    ],
)
def test_wrong_use(file: Path, tmp_path: Path, more: list[str], code: int, said: str) -> None:
    """One error, and nothing is written."""
    printed = run(file, "--out", tmp_path / "out", *more, code=code)
    assert said in " ".join(printed.split())
    assert not (tmp_path / "out").exists()
    assert "give one file" in run(file, file, "--out", tmp_path / "out", code=2)
    missing = run(tmp_path / "no.toml", "--out", tmp_path / "out", code=12)
    assert "No such file" in missing
