"""The commands in docs/cli.md print what the page says: the golden tests of the command line."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from catwise.cli import main
from catwise.cli.console import Output
from catwise.reporting.terminal import TerminalTable
from cli.example import make_example
from unit.test_terminal import check_fits

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def commands() -> list[tuple[str, str]]:
    """Each ``$ catwise …`` of the page's console blocks, and what is printed below it."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            part = part.replace("\\\n", " ")  # noqa: PLW2901
            line, _, printed = part.partition("\n")
            found.append((line, printed))
    return found


@pytest.mark.filterwarnings("default")
def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of the page run, in order, in one folder, and print what stands there.

    Every table that they print fits 80 columns, too, without losing a number.

    "[exit 3]" at the end of an output is the exit code; without it the code is 0.
    """
    make_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    shown = []
    draw = Output.table

    def table(self: Output, given: TerminalTable) -> None:
        shown.append(given)
        draw(self, given)

    monkeypatch.setattr(Output, "table", table)
    checker = doctest.OutputChecker()
    assert commands()
    for line, expected in commands():
        program, *arguments = shlex.split(line)
        assert program == "catwise"
        result = CliRunner().invoke(main, arguments)
        printed = result.output + (f"[exit {result.exit_code}]\n" if result.exit_code else "")
        assert checker.check_output(expected, printed, FLAGS), f"$ {line}\n{printed}"
    assert len(shown) > 15
    for one in shown:
        check_fits(one, 80)
