"""`catwise split`: groups whole, shares kept, and a table that reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from catwise.cli import main
from catwise.data import read_table
from catwise.errors import ConfigError, OutputError

SOURCE = ["--labels", "labels.csv", "--encoding", "minus_one_uncertain", "--id-column", "image"]
SOURCE += ["--group-column", "patient"]
SHARES = ["--share", "train=0.75", "--share", "valid=0.25"]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["image,patient,cat,dog"]
    for i in range(80):
        values = ["1" if i % 5 == 0 else "0", "" if i % 2 else "-1" if i % 7 == 0 else "1"]
        lines.append(",".join([f"i{i}", f"p{i // 2}", *values]))
    Path("labels.csv").write_text("\n".join(lines) + "\n")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["split", *arguments])


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_table_with_splits() -> None:
    """Shares of rows and positives, whole patients, and labels as they were."""
    encoding = ["--out-encoding", "minus_one_uncertain"]
    found = document(*SOURCE, *SHARES, *encoding, "--out", "out.csv")
    assert {row["split"]: row["rows"] for row in found["splits"]} == {"train": 60, "valid": 20}
    assert [row["groups"] for row in found["splits"]] == [30, 10]
    names = {"id_column": "image", "group_column": "patient", "encoding": "minus_one_uncertain"}
    before = read_table("labels.csv", **names)
    after = read_table("out.csv", split_column="split", **names)
    assert after.labels == before.labels
    of_group: dict[str, set[str]] = {}
    for group, split in zip(after.groups, after.splits, strict=True):
        of_group.setdefault(str(group), set()).add(str(split))
    assert all(len(splits) == 1 for splits in of_group.values())
    positives = after.split("valid").labels.counts().positive
    assert abs(positives[0] - 4) <= 1


def test_reproducible() -> None:
    """The same seed gives the same bytes, another one others."""
    tables = []
    for i, seed in enumerate(("3", "3", "4")):
        out = f"{i}.csv"
        document(*SOURCE, *SHARES, "--out-encoding", "codes", "--seed", seed, "--out", out)
        tables.append(Path(out).read_bytes())
    assert tables[0] == tables[1] != tables[2]


def test_people_are_told_how_to_read_it() -> None:
    """The lines name each split, and the options that read the table."""
    result = run(*SOURCE, *SHARES, "--out-encoding", "codes", "--out", "out.csv")
    assert "train: 60 images of 30 groups" in result.stdout
    assert "--split-column split" in result.stdout


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (["train=0.5", "valid=0.4"], "whose sum is 0.9"),
        (["train=0.5", "train=0.5"], "each name once"),
        (["train"], "must be NAME=SHARE"),
        (["train=half"], "must be NAME=SHARE"),
    ],
)
def test_wrong_shares(shares: list[str], words: str) -> None:
    """What is no set of shares is refused, and nothing is written."""
    given = [text for share in shares for text in ("--share", share)]
    result = run(*SOURCE, *given, "--out-encoding", "codes", "--out", "out.csv")
    assert result.exit_code == ConfigError.exit_code
    assert words in result.stderr
    assert not Path("out.csv").exists()


def test_files_are_kept() -> None:
    """Neither the input nor another file is replaced unasked."""
    given = [*SOURCE, *SHARES, "--out-encoding", "codes"]
    before = Path("labels.csv").read_bytes()
    for out in ("labels.csv", "other.csv"):
        Path("other.csv").write_text("mine")
        assert run(*given, "--out", out).exit_code == OutputError.exit_code
    assert run(*given, "--out", "labels.csv", "--force").exit_code == OutputError.exit_code
    assert Path("labels.csv").read_bytes() == before
    assert run(*given, "--out", "other.csv", "--force").exit_code == 0
