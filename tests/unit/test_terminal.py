"""Tables fit the terminal: tighter, then in parts; no number is cut, folded or lost."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from catwise.reporting.terminal import Grid, TerminalTable

GRID = Grid(
    ["category", "before", "after", "difference", "95% interval", "positives", "shows"],
    [False, True, True, True, True, True, False],
    [
        ["bee", "0.4092", "0.7293", "+0.3201", "+0.2357 to +0.4045", "135", "better"],
        ["Enlarged Cardiomediastinum", "0.5", "0.6", "0.0", "–", "7", "no difference"],
    ],
    ["green", ""],
    "average precision on 400 test rows",
    ["4 further categories are not shown"],
)


def drawn(table: TerminalTable, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, markup=False, emoji=False).print(table)
    return stream.getvalue()


def check_fits(table: TerminalTable, width: int) -> None:
    """Every line fits, and every number stands whole in a line."""
    lines = drawn(table, width).splitlines()
    assert max(map(cell_len, lines)) <= width, "\n".join(lines)
    for row in table.grid.cells:
        for text, numeric in zip(row, table.grid.numeric, strict=True):
            assert not numeric or any(text in line for line in lines), (text, lines)


@pytest.mark.parametrize("width", [40, 60, 70, 80, 100, 120])
def test_tables_fit(width: int) -> None:
    """At any width, with the title and what stands below once."""
    check_fits(TerminalTable(GRID), width)
    text = " ".join(drawn(TerminalTable(GRID), width).split())
    assert text.count("average precision on 400 test rows") == 1
    assert text.count("4 further categories are not shown") == 1


def test_parts_repeat_the_first_column() -> None:
    """What does not fit follows below, beside the names of its rows."""
    text = drawn(TerminalTable(GRID), 50)
    assert [line.split()[0] for line in text.splitlines() if line.startswith("bee")] == ["bee"] * 3
    assert text.count("category") == 3


def test_words_are_folded_between_words_alone() -> None:
    """A text column is made narrower before a table is cut into parts, never within a word."""
    grid = GRID._replace(cells=[GRID.cells[0], ["bees", *GRID.cells[1][1:]]])
    lines = drawn(TerminalTable(grid), 80).splitlines()
    assert sum("category" in line for line in lines) == 1
    assert any(line.rstrip().endswith("  no") for line in lines)
    assert any(line.split() == ["difference"] for line in lines)


def test_room_is_used() -> None:
    """On a wide terminal it is one table with space between the columns."""
    line = next(one for one in drawn(TerminalTable(GRID), 120).splitlines() if "bee" in one)
    assert "0.4092   0.7293" in line
