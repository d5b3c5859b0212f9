"""`catwise suggest`, and `--chosen` of the commands that take its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from catwise.cli import main
from catwise.errors import LabelError, OutputError
from cli.example import make_example

TABLE = ["--encoding", "nan", "--id-column", "image", "--group-column", "patient"]
ALL = ["--labels", "all.csv", "--split-column", "split", *TABLE]
VALID = [*ALL, "--split", "valid"]
MODEL = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a first purchase, and the labels with it; all positive, which is no matter here."""
    folder = tmp_path_factory.mktemp("case")
    make_example(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("tune", "--features", "all.npz", *ALL, *MODEL, "--out", "run", "--quiet")
        run("suggest", "--run", "run", *VALID, "--cells", "60", "--out", "cells.csv", "--quiet")
        with Path("cells.csv").open(newline="") as stream:
            bought = {(row["id"], row["category"]) for row in csv.DictReader(stream)}
        with Path("all.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            for one, category in bought:
                if row["image"] == one:
                    row[category] = "1"
        with Path("more.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.fixture(autouse=True)
def _inside(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case)


MORE = ["--labels", "more.csv", "--split-column", "split", *TABLE]


def test_rounds(tmp_path: Path) -> None:
    """A second round asks for other cells, and says which chosen ones are random after all."""
    line = ["suggest", "--run", "run", *MORE, "--split", "valid", "--cells", "300", "--chosen",
            "cells.csv", "--out", f"{tmp_path}/next.csv", "--suspects-out", f"{tmp_path}/wrong.csv",
            "--suspects", "4"]  # fmt: skip
    said = json.loads(run(*line, "--json").stdout)
    with Path("cells.csv").open(newline="") as stream:
        first = {(row["id"], row["category"]) for row in csv.DictReader(stream)}
    new = {(cell["id"], cell["category"]) for cell in said["cells"] if not cell["known"]}
    assert len(new) == 300
    assert not new & first
    again = {(cell["id"], cell["category"]) for cell in said["cells"] if cell["known"]}
    assert again <= first
    assert (len(said["false_negatives"]), len(said["false_positives"])) == (4, 4)
    result = run(*line, "--rows", "3")
    assert "297 further cells are not shown" in result.output
    assert "300 cells to label, 60 of them drawn at random" in result.output
    assert "Known positives that are probably negative" in result.output
    with (tmp_path / "wrong.csv").open(newline="") as stream:
        assert [row["given"] for row in csv.DictReader(stream)] == ["0"] * 4 + ["1"] * 4


def test_what_takes_chosen_cells(tmp_path: Path) -> None:
    """tune, evaluate, audit and calibrate say how many there are, and what is done with them."""
    given = ["--chosen", "cells.csv"]
    result = run("tune", "--features", "all.npz", *MORE, *MODEL, *given, "--out", f"{tmp_path}/run")
    assert "48 of " in result.output
    assert "were chosen by a model" in result.output
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["chosen"] == 48
    assert "chosen" not in json.loads(Path("run/config.json").read_text())["config"]
    dry = run("tune", "--features", "all.npz", *MORE, *MODEL, *given, "--dry-run", "--out", "x")
    assert "chosen 48" in dry.output
    result = run("audit", *MORE, "--split", "valid", *given)
    assert "48 of " in result.output
    assert "chosen" in result.output.splitlines()[2]
    result = run("evaluate", "--features", "valid.npz", *MORE, "--split", "valid", *MODEL, *given)
    assert "they are not scored" in result.output
    one = ["calibrate", "--run", f"{tmp_path}/run", *MORE, "--split", "valid", *given, "--out"]
    run(*one, f"{tmp_path}/maps.json", "--quiet")
    positives = {
        row["category"]: row["n_positive"]
        for row in json.loads((tmp_path / "maps.json").read_text())["categories"]
    }
    run(*one[:-3], "--out", f"{tmp_path}/all.json", "--quiet")
    other = json.loads((tmp_path / "all.json").read_text())["categories"]
    assert sum(row["n_positive"] for row in other) - sum(positives.values()) == 48


@pytest.mark.parametrize(
    ("line", "text", "code"),
    [
        (["--out", "x.csv"], "either --run DIR or --logits FILE", 2),
        (["--run", "run", "--out", "all.csv"], "all.csv", OutputError.exit_code),
        (["--run", "run", "--out", "cells.csv", "--chosen", "cells.csv"], "cells.csv",
         OutputError.exit_code),
        (["--run", "run", "--out", "x.csv", "--chosen", "test.csv"], "'id'",
         LabelError.exit_code),
    ],
)  # fmt: skip
def test_wrong_use(line: list[str], text: str, code: int) -> None:
    """Said at once; nothing is written over."""
    before = Path("cells.csv").read_bytes()
    assert text in run("suggest", *VALID, *line, code=code).output
    assert Path("cells.csv").read_bytes() == before
    assert not Path("x.csv").exists()


def filled(path: Path, label: str = "") -> dict[tuple[str, str], str]:
    """Fill in labels beside the cells: given ones, or 1 and 0 in turn; every fifth stays empty."""
    with Path("cells.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for at, row in enumerate(rows):
        row["label"] = "" if at % 5 == 4 else label or str(at % 2)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {(row["id"], row["category"]): row["label"] for row in rows}


def test_labels_that_were_filled_in_are_added(tmp_path: Path) -> None:
    """suggest, labels filled in, tune: as if they stood in the table; the table stays as it is."""
    cells, before = filled(tmp_path / "done.csv"), Path("all.csv").read_bytes()
    with Path("all.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        for (one, category), label in cells.items():
            if row["image"] == one and label:
                row[category] = label
    with (tmp_path / "merged.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plain = [str(tmp_path / "merged.csv"), "--split-column", "split", *TABLE]
    records = []
    for name, labels in (("a", ALL), ("b", ["--labels", *plain])):
        more = ["--chosen", str(tmp_path / "done.csv"), "--out", str(tmp_path / name)]
        said = run("tune", "--features", "all.npz", *labels, *MODEL, *more).output
        assert ("48 labels of the cells of --chosen were added" in said) == (name == "a")
        records.append((tmp_path / name / "records.json").read_bytes())
    assert records[0] == records[1]
    assert Path("all.csv").read_bytes() == before
    audited = run("audit", *VALID, "--chosen", str(tmp_path / "done.csv")).output
    assert "48 labels of the cells of --chosen were added" in audited
    line = ["suggest", "--run", "run", *VALID, "--cells", "60", "--chosen",
            str(tmp_path / "done.csv"), "--out", str(tmp_path / "next.csv")]  # fmt: skip
    said = json.loads(run(*line, "--json").stdout)
    new = {(one["id"], one["category"]) for one in said["cells"] if not one["known"]}
    assert not new & {cell for cell, label in cells.items() if label}


def test_labels_that_contradict_known_ones_are_refused(tmp_path: Path) -> None:
    """All of the table are positive there; and a label that is none is named with its cell."""
    filled(tmp_path / "done.csv", "0")
    wrong = ["audit", *MORE, "--chosen", str(tmp_path / "done.csv")]
    said = run(*wrong, code=LabelError.exit_code).stderr
    assert "48 labels of the cells that were chosen contradict known ones." in said
    assert "negative in the cells, positive in the labels" in said
    filled(tmp_path / "done.csv", "yes")
    said = run(*wrong, code=LabelError.exit_code).stderr
    assert "found:    'yes'" in said
