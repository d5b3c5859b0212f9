"""`catwise join` and `catwise extend`: heads that come together, rows that come and go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from catwise.cli import main
from catwise.errors import CategoryError, CheckpointError, ConfigError, OutputError
from catwise.heads import load_head, read_head, save_head
from cli.example import NAMES, make_example

ROWS = ["--encoding", "nan", "--id-column", "image", "--group-column", "patient"]
DATA = ["--features", "all.npz", "--labels", "all.csv", "--split-column", "split", *ROWS]
MODEL = ["--head", "model.safetensors", "--head-categories", "names.txt"]


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
    return CliRunner().invoke(main, list(arguments))


def test_rows_are_left_out_and_reordered() -> None:
    """--drop keeps the order, --order gives it; the numbers are those of the checkpoint."""
    base = read_head("model.safetensors", categories=NAMES)
    result = run("join", *MODEL, "--drop", "eel", "--drop", "ant", "--out", "a.safetensors")
    assert result.exit_code == 0, result.output
    assert "left out: ant, eel" in result.stdout
    assert load_head("a.safetensors").categories == ("bee", "cat", "dog", "fox")
    Path("order.txt").write_text("fox\nbee\n")
    result = run("join", *MODEL, "--order", "order.txt", "--out", "b.safetensors", "--json")
    document = json.loads(result.stdout)
    assert document["categories"] == ["fox", "bee"]
    head = load_head("b.safetensors")
    assert document["sha256"] == head.digest == base.take_categories(["fox", "bee"]).digest


def test_heads_are_joined() -> None:
    """Rows of two heads, one of which is a checkpoint; a clash is told before anything is there."""
    base = read_head("model.safetensors", categories=NAMES)
    new = base.take_categories(["eel"]).replace(categories=["gnu"])
    save_head(new, "new.safetensors")
    result = run("join", *MODEL, "--head", "new.safetensors", "--out", "all.safetensors")
    assert result.exit_code == 0, result.output
    assert load_head("all.safetensors").digest == base.join(new).digest
    save_head(new.replace(categories=["eel"], bias=[9.0]), "clash.safetensors")
    result = run("join", *MODEL, "--head", "clash.safetensors", "--out", "x.safetensors")
    assert result.exit_code == CategoryError.exit_code
    assert "--drop NAME" in result.stderr
    assert not Path("x.safetensors").exists()


def test_what_is_refused() -> None:
    """Nothing to do, unknown names, files that are there, the input itself."""
    assert run("join", *MODEL[:2], "--out", "x.safetensors").exit_code == 2
    order = ["--order", "names.txt", "--drop", "eel"]
    assert run("join", *MODEL, *order, "--out", "x.safetensors").exit_code == 2
    result = run("join", *MODEL, "--drop", "eeel", "--out", "x.safetensors")
    assert result.exit_code == CategoryError.exit_code
    assert "did you mean 'eel'" in result.stderr
    result = run("join", "--head", "no.safetensors", "--drop", "eel", "--out", "x.safetensors")
    assert result.exit_code == CheckpointError.exit_code
    result = run("join", *MODEL, "--order", "no.txt", "--out", "x.safetensors")
    assert result.exit_code == ConfigError.exit_code
    assert not Path("x.safetensors").exists()
    Path("x.safetensors").write_text("mine")
    drop = [*MODEL, "--drop", "eel", "--out"]
    assert run("join", *drop, "x.safetensors").exit_code == OutputError.exit_code
    assert run("join", *drop, "model.safetensors", "--overwrite").exit_code == OutputError.exit_code
    assert run("join", *drop, "x.safetensors", "--overwrite").exit_code == 0


def test_a_category_comes_to_a_model() -> None:
    """Fitted, written into a copy of the checkpoint with a row more, and of use on test images."""
    run("join", *MODEL, "--drop", "eel", "--out", "five.safetensors")
    five = load_head("five.safetensors")
    apply = ["apply", "--checkpoint", "model.safetensors", "--name", "fc.weight", "--resize"]
    assert run(*apply, "--head", "five.safetensors", "--out", "five.model").exit_code == 0
    assert load_file("five.model")["fc.weight"].shape == (5, 8)
    Path("five.txt").write_text("\n".join(five.categories))
    head = ["--checkpoint", "five.model", "--head-categories", "five.txt"]
    rows = ["--test-features", "test.npz", "--test-labels", "test.csv"]
    result = run("extend", *DATA, *rows, *head, "--out", "run", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (record,) = document["records"]
    assert (record["category"], record["index"], record["status"]) == ("eel", 5, "replaced")
    assert record["test_after"] > 0.7 > record["test_before"]
    assert document["config"]["added"] == ["eel"]
    grown = ["apply", "--checkpoint", "five.model", "--resize", "--out", "six.model"]
    assert run(*grown, "--head", "run/head.safetensors").exit_code == 0
    old, new = load_file("five.model"), load_file("six.model")
    assert new["fc.weight"].shape == (6, 8)
    assert (new["fc.weight"][:5] == old["fc.weight"]).all()
    assert (new["body.weight"] == old["body.weight"]).all()
    again = run("extend", *DATA, *head, "--out", "run")
    assert again.exit_code == OutputError.exit_code


def test_dry_run_and_nothing_new() -> None:
    """What would run is said, and nothing is written; a head that has all says so."""
    run("join", *MODEL, "--drop", "eel", "--out", "five.safetensors")
    call = ["extend", *DATA, "--head", "five.safetensors", "--out", "run", "--dry-run"]
    result = run(*call)
    assert result.exit_code == 0, result.output
    assert "dry run: everything fits" in result.stdout
    assert not Path("run").exists()
    head = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]
    result = run("extend", *DATA, *head, "--out", "run")
    assert result.exit_code == CategoryError.exit_code
    assert "no category that the head lacks" in result.stderr
