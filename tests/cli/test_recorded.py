"""What decided the meaning of labels: every option of it is recorded, a change of it is noticed."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from catwise.cli import main
from catwise.cli.labelled import describe_labels
from catwise.cli.options import LabelledOptions, PolicyOptions, TableOptions
from catwise.errors import OutputError
from catwise.labels import PartialLabels
from cli import fix_case
from cli.example import NAMES, make_example

if TYPE_CHECKING:
    from collections.abc import Iterator

LABELS = PartialLabels.from_array(np.array([[1, 0]]), encoding="complete")
NOTHING: dict[str, Any] = {
    field.name: () if field.name in {"category", "ignore_column"} else None
    for field in dataclasses.fields(TableOptions)
} | {"layout": "wide"}
CHOSEN: dict[str, Any] = {
    "layout": "long", "header": False, "category": ("cat",), "ignore_column": ("note",),
    "encoding": "nan",
}  # fmt: skip
LISTS = {"others", "separator", "positive_column", "negative_column", "uncertain_column"}


def option(name: str) -> dict[str, Any]:
    """A table's options of which this one says something."""
    given = {name: CHOSEN.get(name, "x")}
    return NOTHING | given | ({"layout": "lists"} if name in LISTS else {})


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TableOptions)])
def test_every_option_of_a_table_is_described(name: str) -> None:
    """Also one that says no, and one that is added later."""
    wanted = option(name)
    about = describe_labels(Path("labels.csv"), LABELS, TableOptions(**wanted))
    value = wanted[name]
    assert about[name] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(LabelledOptions)])
def test_every_option_of_a_source_is_described(name: str) -> None:
    """The file or the data set, its reader's options, the split."""
    empty = LabelledOptions(labels=Path("a.csv"), split_column="part", split="one")
    if name in {"dataset", "root", "options"}:
        empty = LabelledOptions(
            dataset="coco", root=Path("here"), options=("year=2014",), split="val"
        )
    about = describe_labels(empty, LABELS, TableOptions(**NOTHING))
    field = {"labels": "path", "root": "path"}.get(name, name)
    value = getattr(empty, name)
    assert about[field] == (list(value) if isinstance(value, tuple) else str(value))


# ----------------------------------------------------------------------- commands for real


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments])


def done(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def as_lists(path: Path, out: Path, *, header: bool, split: bool = False) -> None:
    """A wide table as lists of positives and negatives, cut by ';' and '|'."""
    names = fix_case.NAMES if split else NAMES
    lines = []
    for row in csv.DictReader(path.read_text().splitlines()):
        lists = ["|".join(name for name in names if row[name] == code) for code in "10"]
        lines.append(";".join([row["image"], *lists, *([row["split"]] if split else [])]))
    top = ["id;positive;negative;split" if split else "id;positive;negative"] if header else []
    out.write_text("\n".join([*top, *lines]) + "\n")


READ = ["--layout", "lists", "--separator", "|", "--delimiter", ";"]
HEAD = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]
OTHERS = ("unknown", "negative")


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_example(tmp_path)
    for split in ("train", "valid", "test"):
        as_lists(tmp_path / f"{split}.csv", tmp_path / f"{split}.lists.csv", header=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def known(about: dict[str, Any]) -> int:
    return about["positive"] + about["negative"]  # type: ignore[no-any-return]


def test_evaluate_says_what_decided(example: Path) -> None:
    """Other meanings of the same file: other scores, and both say why."""
    call = ["evaluate", "--features", "valid.npz", "--labels", "valid.lists.csv", *HEAD, *READ]
    first, second = (done(*call, "--others", others) for others in OTHERS)
    for document, others in ((first, "unknown"), (second, "negative")):
        about = document["inputs"]["labels"]
        assert [about[name] for name in ("layout", "others", "separator", "delimiter")] == [
            "lists", others, "|", ";",
        ]  # fmt: skip
    assert known(first["inputs"]["labels"]) < known(second["inputs"]["labels"])
    assert first["means"] != second["means"]


def test_tune_and_select_say_what_decided(example: Path) -> None:
    """Of training, validation and test rows alike; an earlier run is never taken for another."""
    test = ["--test-features", "test.npz", "--test-labels", "test.lists.csv"]
    call = ["tune", "--features", "train.npz", "--labels", "train.lists.csv", *HEAD, *READ]
    call += ["--valid-features", "valid.npz", "--valid-labels", "valid.lists.csv", *test]
    call += ["--uncertain", "positive", "--out", "run"]
    document = done(*call, "--others", "unknown")
    for name in ("train", "valid", "test"):
        assert document["inputs"][f"{name} labels"]["others"] == "unknown"
    recorded = json.loads(Path("run/config.json").read_text())
    assert recorded["inputs"] == document["inputs"]
    assert recorded["config"]["policy"] == {"uncertain": "positive", "blank": "unknown"}
    assert run(*call, "--others", "negative").exit_code == OutputError.exit_code
    document = done(*call, "--others", "negative", "--blank", "negative", "--overwrite")
    assert document["inputs"]["valid labels"]["others"] == "negative"
    assert document["config"]["policy"] == {"uncertain": "positive", "blank": "negative"}

    call = ["select", "--candidate", "base=model.safetensors", "--candidate", "tuned=run", *READ]
    call += ["--valid-features", "test.npz", "--valid-labels", "test.lists.csv", "--out", "s"]
    document = done(*call, "--others", "negative", "--force")
    assert document["inputs"]["valid labels"]["others"] == "negative"
    assert json.loads(Path("s/config.json").read_text())["inputs"] == document["inputs"]
    assert run(*call, "--others", "unknown").exit_code == OutputError.exit_code


def test_tables_without_header_say_so(example: Path) -> None:
    """An option that says no decides as much as one that says yes."""
    for split in ("train", "valid"):
        as_lists(example / f"{split}.csv", example / f"{split}.bare.csv", header=False)
    call = ["evaluate", "--features", "valid.npz", "--labels", "valid.bare.csv", *HEAD, *READ]
    call += ["--others", "negative", "--no-header", "--ignore-column", "3"]
    document = done(*call)
    about = document["inputs"]["labels"]
    assert (about["header"], about["ignore_column"]) == (False, ["3"])
    assert about["negative"] > 0


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Path]:
    fix_case.make_case(tmp_path)
    as_lists(tmp_path / "labels.csv", tmp_path / "lists.csv", header=True, split=True)
    return tmp_path


def fix(case: Path, *more: str) -> list[str]:
    call = fix_case.arguments(case)
    for name in ("--encoding", "--labels", "--id-column"):
        at = call.index(name)
        del call[at : at + 2]
    names = [part for name in fix_case.NAMES for part in ("--category", name)]  # the head's order
    return [*call, "--labels", str(case / "lists.csv"), "--id-column", "id", *names, *READ, *more]


def test_fix_says_what_decided(case: Path) -> None:
    """Also what is in none of an image's lists; the same call with another meaning is refused."""
    document = done(*fix(case, "--others", "unknown"))
    assert document["inputs"]["labels"]["others"] == "unknown"
    recorded = json.loads((case / "out/run/config.json").read_text())
    about = recorded["inputs"]["labels"]
    assert [about[name] for name in ("others", "separator", "delimiter", "split_column")] == [
        "unknown", "|", ";", "split",
    ]  # fmt: skip
    result = run(*fix(case, "--others", "negative"))
    assert result.exit_code == OutputError.exit_code
    assert "train labels: other content" in result.stderr
    document = done(*fix(case, "--others", "negative", "--overwrite"))
    assert document["inputs"]["labels"]["others"] == "negative"
    assert json.loads((case / "out/run/config.json").read_text())["inputs"]["labels"]["others"] == (
        "negative"
    )


def test_every_option_of_a_policy_is_one_of_the_labels() -> None:
    """The options that say what counts as what while fitting; both are tested above."""
    assert {field.name for field in dataclasses.fields(PolicyOptions)} == {"uncertain", "blank"}
