"""`catwise study`: a declared grid of data, schemes, backbones and methods, and its table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.options import EngineOptions
from catwise.errors import StudyError

if TYPE_CHECKING:
    from catwise.studies import PreparedStudy, StudyResult

_SHOWN: Final = 5
_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise study` is given."""

    declared: tuple[Path, ...] = option((), positional=True, metavar="FILE")
    root: Path | None = option(
        None,
        metavar="FOLDER",
        help="What relative paths in FILE start from.  [default: its folder]",
    )
    only: tuple[str, ...] = option(
        (), metavar="AXIS=VALUE", first=True, help="Only these cells, such as seed=0 (repeatable)."
    )
    cells: str | None = option(
        None, metavar="N-M", first=True, help="Only the cells of these numbers; see --dry-run."
    )
    minutes: float | None = option(None, above=0, help="Start no further model after so many.")
    dry_run: bool = option(
        default=False, first=True, help="List the cells and about how long they take; run nothing."
    )
    engine: EngineOptions = group("Several processes or machines")
    workers: int = option(
        0,
        low=0,
        group="Several processes or machines",
        help="Processes of --engine, each of which runs a model at a time.  "
        "[default: what the CPUs allow]",
    )
    out: Path = option(
        metavar="DIR", first=True, help="Output directory; a study that was stopped goes on there."
    )
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if len(self.declared) != 1:
            raise click.UsageError("give one file.")
        if self.workers and self.engine.engine is None:
            raise click.UsageError("--workers goes with --engine.")


@make_command("study", "A grid of schemes and methods, run to its table.")
def command(given: Options) -> None:
    """Run a declared study: data, known shares, schemes, backbones, methods and seeds.

    FILE (TOML or YAML) names them and the grids over them. DIR gets a result for each cell under a
    key of all that it depends on, the table (table.csv, table.md, table.tex: mean ± standard
    deviation over seeds, differences to the base with intervals, published figures beside), every
    cell in cells.csv, and plots. Run again it does what is left: what was stopped, failed, or
    depends on something that was changed.
    """
    from catwise.studies import prepare_study
    from catwise.studies.running import in_sequence

    output = given.output
    prepared = prepare_study(
        given.declared[0], given.out, root=given.root, only=given.only, cells=given.cells
    )
    if given.dry_run:
        _list(prepared, output)
        return
    budget = prepared.budget()
    output.line(f"{prepared.study.name}: {_ahead(budget)}")
    with given.engine.opened(given.workers, given.out) as engine, output.progress() as progress:
        run = in_sequence if engine is None else engine.map
        result = prepared.run(progress, minutes=given.minutes, run=run)
    _show(result, output)
    output.document({"command": "study", "name": prepared.study.name, **result.to_dict()})
    _refuse_failures(result)


def _list(prepared: PreparedStudy, output: Output) -> None:
    """The cells by number, what is done of them, and what is ahead."""
    from catwise.reporting.tables import Column, build_table, numbers, text

    rows = []
    for number, cell in enumerate(prepared.cells, 1):
        document = prepared.document(cell)
        state = "ahead" if document is None else "failed" if "error" in document else "done"
        key = prepared.keys.get(cell, ("", ""))[0]
        state = state if key else "data not there"
        asked = cell in prepared.wanted
        rows.append(
            {"number": number, **cell._asdict(), "state": state, "asked": asked, "key": key}
        )
    budget = prepared.budget()
    shown = [row for row in rows if row["asked"]]
    columns = [
        *numbers(str, **{"no.": "number"}),
        Column("cell", lambda row: prepared.cells[row["number"] - 1].label, "", numeric=False),
        text("state"),
    ]
    output.table(build_table(shown, columns, title=prepared.study.name, limit=output.rows,
                             rest="cells"))  # fmt: skip
    output.line(_ahead(budget))
    output.line(f"dry run: nothing was written to '{prepared.out}'")
    output.document({"command": "study", "dry_run": True, "cells": rows, "budget": budget})


def _ahead(budget: dict[str, Any]) -> str:
    """What is ahead, in words."""
    from catwise._text import plural

    if not budget["cells"]:
        return "all cells are done"
    seconds = budget["seconds"]
    models = plural(budget["models"], "model")
    time = "no cell is done, by which the time could be estimated"
    if seconds is not None:
        time = f"about {_duration(seconds)}"
    return f"{plural(budget['cells'], 'cell')} ahead, of {models}; {time}"


def _duration(seconds: float) -> str:
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} minutes"
    return f"{seconds / _HOUR:.1f} hours"


def _show(result: StudyResult, output: Output) -> None:
    """The table, failures, and where everything is."""
    from catwise.reporting.tables import as_terminal, study_grid

    grid = study_grid(
        result.lines, result.metric, level=result.level, against=result.against, limit=output.rows
    )
    if result.lines:
        output.table(as_terminal(grid))
    for one in result.failures[:_SHOWN]:
        output.line(f"failed: {one['label']}: {one['type']}: {one['message']}")
    if len(result.failures) > _SHOWN:
        output.line(f"… and {len(result.failures) - _SHOWN:,} more")
    output.line(f"cells done: {len(result.cells):,}, ahead: {result.n_ahead:,}")
    output.line(f"tables and plots: {result.out}")


def _refuse_failures(result: StudyResult) -> None:
    """End with an exit code of its own where cells failed; all that did not is there."""
    if result.failures:
        first = result.failures[0]
        raise StudyError(
            f"{len(result.failures):,} cells of the study failed.",
            found=f"{first['label']}: {first['type']}: {first['message'].splitlines()[0]}",
            remedy="the same command tries them again; `failures` of --json has every message",
        )
