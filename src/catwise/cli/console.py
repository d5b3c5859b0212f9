"""What the commands print: tables for people, one JSON document for machines, progress."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._options import option
from catwise.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from rich.console import Console


_WIDTH: Final = 120
"""Columns where the output is not a terminal and COLUMNS is not set."""


@dataclass(frozen=True)
class Output:
    """How a command talks."""

    json: bool = option(default=False, help="One JSON document on stdout, nothing else.")
    quiet: bool = option(default=False, names="-q --quiet", help="No tables, notes or progress.")
    rows: int = option(40, low=0, help="At most N rows of a table on the terminal; 0 for all.")

    @property
    def talks(self) -> bool:
        """Whether tables and notes are wanted."""
        return not (self.json or self.quiet)

    def document(self, value: Mapping[str, Any]) -> None:
        """Print the JSON document, if it is wanted; NaN becomes null."""
        from catwise._json import json_ready

        if self.json:
            plain = (getattr(sys.stdout, "encoding", None) or "").lower() not in {"utf-8", "utf8"}
            text = json.dumps(json_ready(value), indent=2, ensure_ascii=plain, allow_nan=False)
            click.echo(text)

    def table(self, table: Any) -> None:
        """Print a table on stdout, if people read."""
        if not self.talks:
            return
        console = _console(sys.stdout)
        with console.capture() as drawn:
            console.print(table)
        click.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))

    def line(self, text: str = "") -> None:
        """Print a line on stdout, if people read; it is shown as it is, never as markup."""
        from catwise._text import clean

        if self.talks:
            click.echo(clean(text))

    @contextlib.contextmanager
    def progress(self) -> Iterator[ProgressCallback | None]:
        """Give a callback that draws progress with an estimate of the time left.

        None where nobody looks: stderr is not a terminal, or quiet or JSON output is wanted.
        """
        if not self.talks or not sys.stderr.isatty():
            yield None
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}", markup=False),
            console=_console(sys.stderr),
            transient=True,
        )
        with bars:
            yield _drawer(bars)


def _drawer(bars: Any) -> ProgressCallback:
    """One bar for each stage, in the order in which they come."""
    tasks: dict[str, Any] = {}

    def draw(progress: Progress) -> None:
        if progress.stage not in tasks:
            # Work may end early; the first stage may hold the others.
            for task in list(tasks.values())[1:]:
                bars.stop_task(task)
            tasks[progress.stage] = bars.add_task(progress.stage, message="")
        bars.update(
            tasks[progress.stage],
            completed=progress.done,
            total=progress.total,
            message=progress.message,
        )

    return draw


def _console(stream: Any) -> Console:
    from rich.console import Console

    width = None if stream.isatty() or os.environ.get("COLUMNS") else _WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
