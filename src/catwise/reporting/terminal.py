"""Tables on a terminal of any width: tighter where needed, then in parts; no letter is lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

_WIDE: Final = 3  # cells between two columns where there is room
_TIGHT: Final = 2
_SHORTEST: Final = 10  # a text column of longer words is not made narrower than this


class Grid(NamedTuple):
    """A table as texts, before it is written for a terminal, in Markdown or in LaTeX.

    Attributes:
        headings: of the columns.
        numeric: which of them hold numbers.
        cells: a list a row.
        styles: of the rows on a terminal, such as "green".
        title: what stands above, or None.
        lines: what stands below.
    """

    headings: list[str]
    numeric: list[bool]
    cells: list[list[str]]
    styles: list[str]
    title: str | None
    lines: list[str]


@dataclass(frozen=True)
class TerminalTable:
    """A grid that fits the terminal it is drawn on.

    Columns that do not fit beside one another follow below, in parts that repeat the first column.
    """

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Any]:
        """What is drawn, of `rich`'s tables."""
        del console
        room = options.max_width
        wide = [_natural(self.grid, at) for at in range(len(self.grid.headings))]
        if _total(wide, _WIDE) + 4 <= room:
            yield _drawn(self.grid, range(len(wide)), wide, tight=False, last=True)
            return
        parts, widths = _fitted(self.grid, wide, room)
        for part in parts:
            grid = self.grid if part is parts[0] else self.grid._replace(title=None)
            yield _drawn(grid, part, widths, tight=True, last=part is parts[-1])


def _fitted(grid: Grid, wide: Sequence[int], room: int) -> tuple[list[list[int]], list[int]]:
    """Columns part by part, and how wide each is: texts are folded between words first."""
    columns = range(len(wide))
    widths = list(wide)
    for at in sorted((at for at in columns if not grid.numeric[at]), reverse=True):
        if _total(widths, _TIGHT) > room:
            widths[at] = min(widths[at], max(_longest_word(grid, at), _SHORTEST))
    if _total(widths, _TIGHT) <= room:
        return [[*columns]], widths
    widths = [
        width if numeric else min(width, max(room // (2 if at else 3), 1))
        for at, (width, numeric) in enumerate(zip(wide, grid.numeric, strict=True))
    ]
    parts = [[0]]
    for at in columns[1:]:
        if len(parts[-1]) > 1 and _total([widths[i] for i in [*parts[-1], at]], _TIGHT) > room:
            parts.append([0])
        parts[-1].append(at)
    return parts, widths


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _texts(grid: Grid, at: int) -> list[str]:
    return [grid.headings[at], *(row[at] for row in grid.cells)]


def _natural(grid: Grid, at: int) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, _texts(grid, at)))


def _longest_word(grid: Grid, at: int) -> int:
    from rich.cells import cell_len

    return max((cell_len(word) for text in _texts(grid, at) for word in text.split()), default=1)


def _drawn(
    grid: Grid, part: Iterable[int], widths: Sequence[int], *, tight: bool, last: bool
) -> Table:
    """Some columns as a table of `rich`, each as wide as is said."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    form: dict[str, Any] = {"padding": (0, 0, 0, 1), "pad_edge": False, "show_edge": False}
    columns = [*part]
    table = Table(
        title=grid.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        **(form if tight else {}),
    )
    for at in columns:
        justify: Any = "right" if grid.numeric[at] else "left"
        width = widths[at] if tight else None
        table.add_column(
            Text(grid.headings[at]),
            justify=justify, no_wrap=grid.numeric[at], overflow="fold", width=width,
        )  # fmt: skip
    for cells, style in zip(grid.cells, grid.styles, strict=True):
        table.add_row(*(Text(cells[at]) for at in columns), style=style)
    table.caption = "\n".join(grid.lines) if last and grid.lines else None
    return table
