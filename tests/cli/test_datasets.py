"""Data sets in their official layout, and tables of every kind, in the commands that use labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from catwise import _names
from catwise.cli import main
from catwise.errors import ConfigError, IdError
from catwise.heads import Head, save_head
from catwise.labels import ASSUMPTIONS

NAMES = ["Bald", "Smiling", "Young"]
PARTS = {"train": 240, "valid": 120, "test": 120}
CELEBA = ["--dataset", "celeba", "--root", "celeba"]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CelebA of 480 images, their features, and a head that is roughly right."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    n = sum(PARTS.values())
    weight = rng.normal(size=(3, 6))
    features = rng.normal(size=(n, 6)).astype(np.float32)
    truth = features @ weight.T + rng.normal(size=(n, 3)) > 0
    ids = [f"{i:06}.jpg" for i in range(1, n + 1)]
    rows = [
        " ".join([name, *("1" if y else "-1" for y in row)])
        for name, row in zip(ids, truth, strict=True)
    ]
    text = "\n".join([str(n), " ".join(NAMES) + " ", *rows]) + "\n"
    part = np.repeat(["0", "1", "2"], list(PARTS.values()))
    Path("celeba").mkdir()
    Path("celeba/list_attr_celeba.txt").write_text(text)
    lines = [f"{name} {number}" for name, number in zip(ids, part, strict=True)]
    Path("celeba/list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{name} {i // 2}" for i, name in enumerate(ids)]
    Path("celeba/identity_CelebA.txt").write_text("\n".join(lines) + "\n")
    np.savez("all.npz", features=features, ids=np.array(ids))
    np.savez("logits.npz", features=features @ weight.T, ids=np.array(ids))
    save_head(Head(weight + rng.normal(size=weight.shape), categories=NAMES), "head.safetensors")
    lines = [
        json.dumps({"id": name, **{c: int(y) for c, y in zip(NAMES, row, strict=True)}})
        for name, row in zip(ids, truth, strict=True)
    ]
    Path("labels.jsonl").write_text("\n".join(lines) + "\n")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_evaluate() -> None:
    """One split of a data set, joined to the features by id."""
    given = ["evaluate", "--features", "all.npz", "--head", "head.safetensors"]
    found = document(*given, *CELEBA, "--split", "test")
    assert found["n_rows"] == PARTS["test"]
    about = found["inputs"]["labels"]
    assert (about["dataset"], about["split"], about["groups"]) == ("celeba", "test", True)
    part = document(*given, *CELEBA, "--category", "Young")
    assert [row["category"] for row in part["categories"]] == ["Young"]
    assert part["n_rows"] == sum(PARTS.values())
    table = ["--labels", "labels.jsonl", "--encoding", "complete", "--id-column", "id"]
    plain, grouped = (document(*given, *source)["means"] for source in (table, CELEBA))
    for name, mean in plain.items():  # people are groups in one of them only: other intervals
        assert mean["macro"] == grouped[name]["macro"]
        assert mean["macro_low"] != grouped[name]["macro_low"]


def test_ids_are_fitted_to_the_features() -> None:
    """What surrounds the ids of a data set can be taken off."""
    given = ["evaluate", "--features", "all.npz", "--head", "head.safetensors", *CELEBA]
    result = run(*given, "--strip-suffix", ".jpg")
    assert result.exit_code == IdError.exit_code
    assert "'000001'" in result.stderr
    assert document(*given, "--strip-suffix", ".jpg", "--id-suffix", ".jpg")["n_rows"] == 480


def test_tune() -> None:
    """Training and validation rows are splits of the data set; identities are groups."""
    given = ["tune", "--features", "all.npz", *CELEBA, "--head", "head.safetensors", "--dry-run"]
    found = document(*given, "--out", "run", "--valid-split", "valid")
    rows = {name: about.get("rows") for name, about in found["inputs"].items()}
    assert rows["train labels"] == PARTS["train"]
    assert rows["valid labels"] == PARTS["valid"]
    assert "valid labels" not in document(*given, "--out", "run")["inputs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--features", "all.npz"], "either --labels FILE or --dataset"),
        (
            ["evaluate", "--features", "all.npz", *CELEBA, "--encoding", "nan"],
            "belongs to --labels",
        ),
        (["tune", "--features", "all.npz", *CELEBA, "--valid-labels", "x.csv"], "--valid-split"),
        (["tune", "--features", "all.npz", *CELEBA, "--valid-features", "all.npz"], "needs"),
    ],
)
def test_wrong_use(arguments: list[str], words: str) -> None:
    """Options that do not go together."""
    out = ["--out", "run"] if arguments[0] == "tune" else []
    result = run(*arguments, "--head", "head.safetensors", *out)
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_prevalence_of_an_evaluation() -> None:
    """One share for all categories, or one for each by name or from a file."""
    given = ["evaluate", "--features", "all.npz", "--head", "head.safetensors", *CELEBA]
    plain = document(*given)["means"]["average_precision"]["macro"]
    rare = document(*given, "--prevalence", "0.01")["means"]["average_precision"]["macro"]
    assert rare < plain
    Path("shares.json").write_text(json.dumps(dict.fromkeys(NAMES, 0.01)))
    found = document(*given, "--prevalence", "shares.json")
    assert found["means"]["average_precision"]["macro"] == pytest.approx(rare, abs=1e-12)
    named = [text for name in NAMES for text in ("--prevalence", f"{name}=0.01")]
    found = document(*given, *named)
    assert found["means"]["average_precision"]["macro"] == pytest.approx(rare, abs=1e-12)
    for wrong in (["1.5"], ["Bald=0.1"], ["nothing.csv"]):
        result = run(*given, *(text for one in wrong for text in ("--prevalence", one)))
        assert result.exit_code == ConfigError.exit_code, wrong


def test_what_metrics_speak_of() -> None:
    """Where labels are unknown, an evaluation says that it speaks of the labelled part."""
    lines = Path("labels.jsonl").read_text().replace('"Bald": 1', '"Bald": null')
    Path("labels.jsonl").write_text(lines)
    given = ["evaluate", "--features", "all.npz", "--head", "head.safetensors"]
    table = ["--labels", "labels.jsonl", "--encoding", "nan", "--id-column", "id"]
    notes = document(*given, *table)["notes"]
    assert any("speak of the labelled part only" in note for note in notes)
    notes = document(*given, *CELEBA)["notes"]
    assert not any("labelled part" in note for note in notes)


def test_estimated_prevalence() -> None:
    """Only under a named assumption, from logits, with its bounds."""
    given = ["audit", *CELEBA]
    found = document(*given, "--assume", "scar", "--logits", "logits.npz")["estimated_prevalence"]
    assert found["assumption"] == "scar"
    assert [row["category"] for row in found["categories"]] == NAMES
    for row in found["categories"]:
        assert row["lowest"] <= row["prevalence"] <= row["highest"]
    text = run(*given, "--assume", "scar", "--logits", "logits.npz").stdout
    assert "Estimated, if this holds: Selected completely at random" in text
    assert document(*given)["estimated_prevalence"] is None
    result = run(*given, "--assume", "scar")
    assert result.exit_code == 2
    assert "--assume and --logits belong together" in result.stderr
    assert tuple(ASSUMPTIONS) == _names.ASSUMPTIONS
