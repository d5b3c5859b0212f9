"""`catwise compare` beyond what docs/cli.md shows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from catwise.cli import main
from catwise.errors import ConfigError, OutputError
from cli.example import make_example

TABLE = ["--encoding", "nan", "--id-column", "image", "--group-column", "patient"]
ALL = ["--features", "all.npz", "--labels", "all.csv", "--split-column", "split", *TABLE]
TEST = ["--features", "test.npz", "--labels", "test.csv", *TABLE, "--ignore-column", "split"]
MODEL = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]
JUDGED = ["--test-features", "test.npz", "--test-labels", "test.csv"]


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, and another policy for uncertain labels."""
    folder = tmp_path_factory.mktemp("case")
    make_example(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, more in (("a", []), ("b", ["--seed", "1"]), ("c", ["--uncertain", "positive"])):
            run("tune", *ALL, *MODEL, *JUDGED, *more, "--out", f"runs/{name}", "--quiet")
    return folder


@pytest.fixture(autouse=True)
def _inside(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case)


def test_files(tmp_path: Path) -> None:
    """Every number in CSV, the tables in Markdown and LaTeX, one document on stdout."""
    files = ["--csv", f"{tmp_path}/a.csv", "--markdown", f"{tmp_path}/a.md", "--latex",
             f"{tmp_path}/a.tex", "--report", f"{tmp_path}/a.html"]  # fmt: skip
    said = json.loads(run("compare", "runs/a", "runs/b", "runs/c", *TEST, *files, "--json").stdout)
    assert (said["reference"], said["command"]) == ("a", "compare")
    assert [one["variant"] for one in said["variants"][::2]] == ["a, b", "c"]
    with (tmp_path / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 2 * 7
    assert {row["variant"] for row in rows} == {"a, b", "c"}
    text = (tmp_path / "a.md").read_text()
    assert "| policy.uncertain | unknown | positive |" in text
    assert "**AUROC of each category**" not in text
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "2 runs side by side" in page
    assert "policy.uncertain" in page
    latex = (tmp_path / "a.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    assert r"policy.uncertain & unknown & positive \\" in latex


def test_cells_and_categories_that_are_not_scored(tmp_path: Path) -> None:
    """Chosen cells are left out; categories that no head has are, where that is asked for."""
    with Path("test.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "yak"])
        writer.writeheader()
        writer.writerows({**row, "yak": "1"} for row in rows)
    with (tmp_path / "cells.csv").open("w", newline="") as stream:
        cells = csv.writer(stream)
        cells.writerow(["id", "category"])
        cells.writerows([row["image"], "ant"] for row in rows[:20])
    line = [one if one != "test.csv" else str(tmp_path / "t.csv") for one in TEST]
    assert "yak" in run("compare", "runs/a", "runs/c", *line, code=5).stderr
    more = ["--unknown-categories", "ignore", "--chosen", str(tmp_path / "cells.csv"), "--json"]
    said = json.loads(run("compare", "runs/a", "runs/c", *line, *more).stdout)
    plain = json.loads(run("compare", "runs/a", "runs/c", *TEST, "--json").stdout)
    known = [
        {one["category"]: one["n_positive"] + one["n_negative"] for one in found["rows"]
         if one["category"] is not None}
        for found in (said, plain)
    ]  # fmt: skip
    assert known[0].keys() == known[1].keys()
    assert known[1]["ant"] - known[0]["ant"] == sum(row["ant"] in {"0", "1"} for row in rows[:20])
    assert any("were chosen by a model" in note for note in said["notes"])
    assert (
        "--chosen needs test rows" in run("compare", "runs/a", "runs/c", *more[2:4], code=2).stderr
    )


def test_terminal_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of a table is longer."""
    monkeypatch.setenv("COLUMNS", "80")
    result = run("compare", "runs/a", "runs/b", "runs/c", "--against", "runs/c", *TEST)
    lines = result.output.splitlines()
    start = lines.index("a, b: " + next(line for line in lines if line.startswith("a, b: "))[6:])
    assert max(map(len, lines[:start])) <= 80
    assert any("differences to c" in line for line in lines)


def test_a_head_as_reference() -> None:
    """The checkpoint's own head would have no names; a run's head has."""
    result = run("compare", "runs/a", "runs/c", "--against", "runs/b/head.safetensors", *TEST)
    assert "differences to the reference" in result.output


@pytest.mark.parametrize(
    ("line", "text", "code"),
    [
        (["runs/a"], "two runs or more", 2),
        ([], "Missing argument 'RUN...'", 2),
        (["runs/a", "runs/b", "--against", "runs/a"], "--against needs test rows", 2),
        (["runs/a", "runs/b", "--features", "test.npz"], "--labels or --dataset", 2),
        (["runs/a", "runs/none"], "is not a run", OutputError.exit_code),
        (["runs/a", "runs/b", *TEST, "--against", "runs/x"], "none of the runs",
         ConfigError.exit_code),
        (["runs/a", "runs/b", "--csv", "runs/a/records.csv"], "records.csv", OutputError.exit_code),
    ],
)  # fmt: skip
def test_wrong_use(line: list[str], text: str, code: int) -> None:
    """Said at once, and nothing is written."""
    before = Path("runs/a/records.csv").read_bytes()
    assert text in run("compare", *line, code=code).output
    assert Path("runs/a/records.csv").read_bytes() == before
