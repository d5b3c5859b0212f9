"""`catwise tune --update`: only categories whose labels changed are tuned again."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from catwise.cli import main
from catwise.errors import ConfigError, HarmError, IdError, OutputError
from catwise.heads import load_head
from cli.example import NAMES, make_example

TESTS = Path(__file__).parents[1]
FEATURES = ["--features", "train.npz", "--valid-features", "valid.npz"]
TABLE = ["--encoding", "nan", "--id-column", "image", "--group-column", "patient"]
LABELS = ["--labels", "train.csv", "--valid-labels", "valid.csv", "--ignore-column", "split"]
TEST = ["--test-features", "test.npz", "--test-labels", "test.csv"]
HEAD = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]
WORDS = ["tune", *FEATURES, *TABLE, *LABELS, *TEST, *HEAD]


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def update(*more: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*WORDS, "--update", "run", *more])
    assert result.exit_code == code, result.output
    return result


def document(*more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(update("--json", *more).stdout)
    return found


def edit(name: str, change: Any) -> None:
    """Rewrite a table of labels; `change` gets the rows as tables and gives new ones."""
    path = Path(f"{name}.csv")
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    new = change(rows)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(new)


def turned(*names: str, n: int | None = None) -> Any:
    """The first n known labels of some categories turned round."""

    def change(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        for name in names:
            for row in [row for row in rows if row[name]][:n]:
                row[name] = str(1 - int(float(row[name])))
        return rows

    return change


def contents(folder: str) -> dict[str, bytes]:
    """The bytes of a run that do not depend on the clock."""
    timed = {"summary.json", "report.html", "unchanged.json", "config.json"}
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name not in timed}


def test_every_night(case: Path) -> None:
    """Made, found unchanged without torch, brought up to date, refused: one command each time."""
    assert "update" not in document()
    assert document()["unchanged"]
    line = "import sys; from catwise.cli import main\n"
    line += "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
    line += "assert not {'torch', 'numpy'} & set(sys.modules), 'loaded'\n"
    words = [sys.executable, "-c", line, *WORDS, "--update", "run"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout == "nothing has changed since the last update\n"
    before = load_head("run/head.safetensors")
    edit("valid", turned("bee", n=4))
    text = update("--dry-run").output
    assert "labels: 0 added, 4 changed, 0 removed, in 1 of 6 categories" in text
    assert "1 categories would be tuned again" in text
    found = document()
    assert found["update"]["categories"] == ["bee"]
    assert (found["update"]["changed"], found["config"]["retuned"]) == (4, ["bee"])
    assert "average precision" in found["against"]
    after, kept = load_head("run/head.safetensors"), load_head("run/previous.safetensors")
    rest = [c for c, name in enumerate(NAMES) if name != "bee"]
    assert bool((after.weight[rest] == before.weight[rest]).all())
    assert not bool((after.weight == before.weight).all())
    assert bool((kept.weight == before.weight).all())
    assert document()["unchanged"]
    Path("valid.csv").touch()  # nothing in it has changed
    assert document()["unchanged"]
    edit("test", lambda rows: rows[:-3])  # the head stays, its scores are others
    again = document()
    assert (again["update"]["categories"], again["summary"]["n_categories"]) == ([], 6)
    assert bool((load_head("run/head.safetensors").weight == after.weight).all())


def test_what_is_refused(case: Path) -> None:
    """Other rows and options, older runs, and options that do not go together."""
    document()
    made = contents("run")
    text = update("--seed", "3", code=ConfigError.exit_code).output
    assert "seed 0 before, 3 now" in text
    edit("train", lambda rows: rows[1:])
    assert "399 rows, not 400" in update(code=IdError.exit_code).output
    assert contents("run") == made
    make_example(case)
    Path("train.csv").touch()
    raw = Path("run/shared.safetensors").read_bytes()
    Path("run/shared.safetensors").write_bytes(raw[:-1])
    assert "cut short" in update(code=OutputError.exit_code).output
    Path("run/shared.safetensors").unlink()
    text = update(code=ConfigError.exit_code).output
    assert "no 'shared.safetensors'" in text
    assert "--overwrite" in text
    for more in (["--out", "other"], ["--overwrite"], ["--preset", "paper"]):
        assert "--update" in update(*more, code=2).output
    assert CliRunner().invoke(main, WORDS).exit_code == 2


def test_a_worse_head_has_its_own_exit_code(case: Path) -> None:
    """Said as long as it is so; the head before is kept."""
    document()
    before = load_head("run/head.safetensors")
    for name in ("train", "valid"):
        edit(name, turned(*NAMES[:5]))
    for _ in range(2):
        result = update("--force", code=HarmError.exit_code)
        assert "worse than the one before" in result.output
    assert "of the labels have changed since" in Path("run/summary.json").read_text()
    kept = load_head("run/previous.safetensors")
    assert bool((kept.weight == before.weight).all())


def test_killed_and_repeated(case: Path) -> None:
    """Killed between two categories the run is whole, as it was; repeated it is the same update."""
    document()
    edit("valid", turned("ant", "cat", n=5))
    made = contents("run")
    line = (
        "import os, signal, sys\nfrom catwise.cli import main\n"
        "from catwise.tuning import updating\n"
        "real, calls = updating.fit_again, []\n"
        "def fit_again(*given):\n    calls.append(0)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n    return real(*given)\n"
        "updating.fit_again = fit_again\nmain(sys.argv[1:])\n"
    )
    words = [sys.executable, "-c", line, *WORDS, "--update", "run"]
    assert subprocess.run(words, check=False, capture_output=True).returncode == -9
    assert contents("run") == made
    document()
    done = contents("run")
    assert not [path for path in Path().iterdir() if path.name.startswith(".catwise")]
    edit("valid", turned("ant", "cat", n=5))  # and in two steps, from the run anew
    CliRunner().invoke(main, [*WORDS, "--out", "run", "--overwrite"])
    for name in ("ant", "cat"):
        edit("valid", turned(name, n=5))
        document()
    assert contents("run")["head.safetensors"] == done["head.safetensors"]
    assert contents("run")["folds.safetensors"] == done["folds.safetensors"]
