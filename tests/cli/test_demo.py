"""`catwise demo`: what it prints. The demonstration itself is tested beside its own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from catwise.cli import main

FILES = ("checkpoint", "tuned_checkpoint", "report")


class Made:
    """Takes the place of what the demonstration made."""

    def __init__(self, out: Path) -> None:
        self.table = [
            {
                "name": name,
                "score": value,
                "gain": gain,
                "gain_low": gain and gain / 2,
                "gain_high": gain and gain * 2,
                "n_categories": 10,
                "seconds": 1.25,
            }
            for name, value, gain in (("before", 0.5, None), ("catwise", 0.625, 0.125))
        ]
        self.facts = {
            "n_train": 4000,
            "n_valid": 600,
            "n_test": 2000,
            "n_categories": 10,
            "known_train_share": 0.2,
            "positives_taken_for_negative": 9000,
        }
        self.files = {name: out / name for name in FILES}
        self.report = self.files["report"]

    def to_dict(self) -> dict[str, Any]:
        files = {k: str(v) for k, v in self.files.items()}
        return {"table": self.table, "categories": [], "facts": self.facts, "files": files}


GOLDEN = """\
4,000 training scenes with 20% of their labels known; 9,000 hidden positives were taken for \
negative; 600 validation scenes

2,000 clean test scenes, 10 categories

  head      mean AP      gain             interval   categories   seconds
 ─────────────────────────────────────────────────────────────────────────
  before     0.5000         –                    –           10       1.2
  catwise    0.6250   +0.1250   +0.0625 to +0.2500           10       1.2

checkpoint:         here/checkpoint
patched checkpoint: here/tuned_checkpoint
report:
here/report
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def run_demo(*, out: Path, **more: Any) -> Made:
        found.append({"out": out, **more})
        return Made(out)

    monkeypatch.setattr("catwise.demo.run_demo", run_demo)
    return found


def test_printed(calls: list[dict[str, Any]]) -> None:
    """What was made of what, the table, and the report's path last."""
    result = CliRunner().invoke(main, ["demo", "--out", "here", "--seed", "3"])
    assert (result.exit_code, result.stdout) == (0, GOLDEN)
    assert calls == [{"out": Path("here"), "seed": 3, "progress": None}]


def test_json(calls: list[dict[str, Any]]) -> None:
    """One document, nothing else; the folder has a name of its own."""
    document = json.loads(CliRunner().invoke(main, ["demo", "--json"]).stdout)
    assert document["table"][0]["gain"] is None
    assert calls[0]["out"] == Path("catwise-demo")
