"""The check that what errors recommend is run: `cli.remedies`, and the list that it holds to."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from catwise.cli.main import main
from cli.remedies import Run, add, template, watching
from cli.remedies_table import REMEDIES

CALL = ["audit", "--labels", "l.csv"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("l.csv").write_text("cat,dog\n1,\n0,1\n")
    return tmp_path


def test_few_are_not_run() -> None:
    """At most one in five, each with a reason; keys are texts as they are looked for."""
    reasons = [how for how in REMEDIES.values() if isinstance(how, str)]
    assert all(reasons)
    assert len(reasons) <= len(REMEDIES) / 5
    assert [key for key in REMEDIES if template(key) != key] == []


def test_a_remedy_that_does_not_help_is_found(here: Path) -> None:
    """As is one that is not listed, and an option of its text that is not run."""
    key = "the values fit --encoding …"
    for table, told in (
        ({}, "does not list"),
        ({key: Run((add("--few 3"),))}, "not help"),
        ({key: Run((add("--encoding codes --no-such-option"),))}, "not help"),
        ({key: Run((add("--code 0=negative --code 1=positive --code blank=unknown"),))}, "not run"),
    ):
        with (
            pytest.raises(AssertionError, match=told),
            watching(here.parent, table, anew=True),
        ):
            assert CliRunner().invoke(main, CALL).exit_code != 0
    with watching(here.parent, {key: Run((add("--encoding nan"),))}, anew=True):
        assert CliRunner().invoke(main, CALL).exit_code != 0


def test_files_are_as_the_test_left_them(here: Path) -> None:
    """What a remedy writes is gone afterwards; it is run on the files that the error was of."""
    change = add("--encoding nan --csv t.csv")
    table: dict[str, Run | str] = {"the values fit --encoding …": Run((change,))}
    with watching(here.parent, table, anew=True):
        assert CliRunner().invoke(main, CALL).exit_code != 0
        Path("l.csv").write_text("not what it was")
    assert Path("l.csv").read_text() == "not what it was"
    assert [path.name for path in here.iterdir()] == ["l.csv"]
