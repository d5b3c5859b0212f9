"""A study and its folder: what is done, what is ahead, and how it is run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from catwise._csv import rows_csv
from catwise._io import folder_names, make_folder, write_json, write_text
from catwise._json import json_ready
from catwise._lock import exclusive
from catwise._text import plural
from catwise.errors import CatwiseError
from catwise.progress import Progress, ProgressCallback
from catwise.reporting.charts.studies import known_shares, study_differences
from catwise.reporting.tables import as_latex, as_markdown, study_grid
from catwise.studies.cells import Cell, base_key, cell_key, cells_of, chosen_cells
from catwise.studies.declared import Study, read_study
from catwise.studies.running import (
    BASES,
    CELLS,
    CellTask,
    Map,
    in_sequence,
    read_cell,
    run_task,
)
from catwise.studies.sources import forget_data, load_data, path_digest, weights_place
from catwise.studies.tables import cell_rows, lines_of

_DECLARED: Final = "study.json"
_TABLE: Final = "table"
_ROWS: Final = "cells.csv"
_PLOTS: Final = "plots"
_OURS: Final = (_DECLARED, CELLS, BASES, _ROWS, _PLOTS,
                *(f"{_TABLE}.{ending}" for ending in ("csv", "md", "tex")))  # fmt: skip


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study came to.

    Attributes:
        out: the folder.
        cells: a JSON-ready dict for each cell that is done: its axes, score, difference to the
            base with its interval, and that to the method that all are compared with.
        lines: a JSON-ready dict for each line of the table: axes ("mean" or "ensemble" where a line
            stands for several), score and score_sd over seeds, difference with its interval,
            n_cells, published and source.
        failures: a dict for each failed cell: cell, label, type and message.
        n_ahead: cells that are not done.
        metric: by which the table is.
        level: confidence level of the intervals.
        against: the method that all are compared with, or None.
    """

    out: Path
    cells: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    n_ahead: int
    metric: str
    level: float
    against: str | None

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        found: dict[str, Any] = json_ready({**vars(self), "out": str(self.out)})
        return found


def run_study(
    study: Study | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    cells: str | None = None,
    minutes: float | None = None,
    run: Map = in_sequence,
    progress: ProgressCallback | None = None,
) -> StudyResult:
    """Run the cells of a study that are not done, and write its table.

    Each cell's result is kept under a key of all that it depends on: a study that was stopped goes
    on, and where something was changed only the cells that it touches are run again. A failure is
    kept as what a cell came to, and tried again by the next call.

    Args:
        study: what is declared, or a TOML or YAML file.
        out: the study's folder.
        root: what relative paths in the file start from; None: the file's folder.
        only: texts ``AXIS=VALUE``; only cells that have these values are run.
        cells: the numbers of the cells to run, ``N`` or ``FIRST-LAST``.
        minutes: start no further model after so many.
        run: ``run(function, tasks)`` gives what the function gives for each task, in any order.
        progress: called after each model, with the number of cells that are done.

    Returns:
        Cells and table lines, failures and how much is ahead.

    Raises:
        ConfigError: If what is declared is not possible.
        OutputError: If `out` holds something else.
        CatwiseError: As the readers of the data that are asked for.
    """
    prepared = prepare_study(study, out, root=root, only=only, cells=cells)
    return prepared.run(progress, minutes=minutes, run=run)


def prepare_study(
    study: Study | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    cells: str | None = None,
) -> PreparedStudy:
    """Read the data of a study and find out what is done; write nothing.

    Arguments and errors are those of `run_study`.
    """
    if not isinstance(study, Study):
        study = read_study(os.fspath(study), None if root is None else os.fspath(root))
    every = cells_of(study)
    wanted = set(chosen_cells(every, only, cells))
    folder = Path(out)
    folder_names(folder, own=_OURS, what="study")
    forget_data()
    keys = _keys(study, every, {cell.data for cell in wanted}, {cell.backbone for cell in wanted})
    return PreparedStudy(study, folder, every, wanted, keys)


def _keys(
    study: Study, cells: Sequence[Cell], data: set[str], backbones: set[str]
) -> dict[Cell, tuple[str, str]]:
    """The keys of each cell, its own and that of its model; data must be there if asked for."""
    digests: dict[str, str | None] = {}
    for name in study.data:
        digests[name] = None
        with contextlib.nullcontext() if name in data else contextlib.suppress(CatwiseError):
            digests[name] = load_data(study, name).digest
    weights: dict[str, str | None] = {}
    for name in study.backbones:
        weights[name] = None
        with contextlib.nullcontext() if name in backbones else contextlib.suppress(CatwiseError):
            place = weights_place(study, name)
            weights[name] = "" if place is None else path_digest(place)
    found = {}
    for cell in cells:
        digest, checkpoint = digests[cell.data], weights[cell.backbone]
        if digest is not None and checkpoint is not None:
            base = base_key(study, cell, digest, checkpoint)
            found[cell] = cell_key(study, cell, base), base
    return found


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    """A study whose data are there.

    Attributes:
        study: what is declared.
        out: the folder.
        cells: all, in order; their numbers start at 1.
        wanted: those that are asked for.
        keys: of each cell whose data are there: its own and that of its model.
    """

    study: Study
    out: Path
    cells: list[Cell]
    wanted: set[Cell]
    keys: dict[Cell, tuple[str, str]]

    def document(self, cell: Cell) -> dict[str, Any] | None:
        """What a cell came to; None where it was not run."""
        keys = self.keys.get(cell)
        return None if keys is None else read_cell(self.out, keys[0])

    @property
    def ahead(self) -> list[Cell]:
        """Cells that are asked for and not done, those that failed too."""
        return [cell for cell in self.cells if cell in self.wanted and not self._is_done(cell)]

    def _is_done(self, cell: Cell) -> bool:
        document = self.document(cell)
        return document is not None and "error" not in document

    def budget(self) -> dict[str, Any]:
        """What is ahead, and about how long it takes, by what was done of the same kind.

        Returns:
            "cells", "models" and "seconds", which is None as long as nothing was done.
        """
        ahead = self.ahead
        spent: list[tuple[Cell, float]] = []
        for cell in self.cells:
            document = self.document(cell) or {}
            if "seconds" in document:
                spent.append((cell, sum(document["seconds"].values())))
        seconds = [_expected(cell, spent) for cell in ahead]
        return {
            "cells": len(ahead),
            "models": len({cell.base for cell in ahead}),
            "seconds": sum(s for s in seconds if s is not None) if spent else None,
        }

    def tasks(self) -> list[CellTask]:
        """What is ahead, a task for each model; it holds what was done with it, too."""
        ahead = {cell.base for cell in self.ahead}
        found: dict[Cell, list[tuple[Cell, str]]] = {}
        for cell in self.cells:
            if cell.base in ahead and (cell in self.wanted or self._is_done(cell)):
                found.setdefault(cell.base, []).append((cell, self.keys[cell][0]))
        return [
            CellTask(self.study, self.out, self.keys[own[0][0]][1], tuple(self._in_order(own)))
            for own in found.values()
        ]

    def _in_order(self, own: list[tuple[Cell, str]]) -> list[tuple[Cell, str]]:
        """The method that others are compared with comes first."""
        return sorted(own, key=lambda one: one[0].method != self.study.against)

    def run(
        self,
        progress: ProgressCallback | None = None,
        *,
        minutes: float | None = None,
        run: Map = in_sequence,
    ) -> StudyResult:
        """Run what is ahead and write the table; see `run_study`."""
        make_folder(self.out)
        with exclusive(self.out, inside=True):
            folder_names(self.out, own=_OURS, what="study")
            make_folder(self.out / CELLS)
            make_folder(self.out / BASES)
            write_json(self.out / _DECLARED, json_ready(_declared(self.study)))
            tasks = self.tasks()
            total = sum(len(task.cells) for task in tasks)
            done = 0
            _tell(progress, done, total, "")
            for documents in run(run_task, _until(tasks, minutes)):
                done += len(documents)
                _tell(progress, done, total, _message(documents))
            result = self.result()
            self._write(result)
            return result

    def result(self) -> StudyResult:
        """The table of what is done, and the failures."""
        done, failures = [], []
        for cell in self.cells:
            document = self.document(cell)
            if document is None:
                continue
            if "error" in document:
                about = {key: document["error"][key] for key in ("type", "message")}
                failures.append({"cell": cell._asdict(), "label": cell.label, **about})
            else:
                done.append((cell, document))
        return StudyResult(
            out=self.out,
            cells=cell_rows(self.study, done),
            lines=lines_of(self.study, self.out, done),
            failures=failures,
            n_ahead=sum(not self._is_done(cell) for cell in self.cells),
            metric=self.study.metric,
            level=self.study.level,
            against=self.study.against,
        )

    def _write(self, result: StudyResult) -> None:
        """Every table and plot."""
        lists = ("categories", "groups_before", "groups_after")
        rows = [{k: v for k, v in row.items() if k not in lists} for row in result.cells]
        write_text(self.out / _ROWS, rows_csv(rows))
        write_text(self.out / f"{_TABLE}.csv", rows_csv(result.lines))
        grid = study_grid(result.lines, result.metric, level=result.level, against=result.against)
        write_text(self.out / f"{_TABLE}.md", as_markdown(grid))
        write_text(self.out / f"{_TABLE}.tex", as_latex(grid))
        make_folder(self.out / _PLOTS)
        for name in self.study.data:
            own = [line for line in result.lines if line["data"] == name]
            charts = {
                "differences": study_differences(own, result.metric),
                "known": known_shares(own, result.metric),
            }
            for kind, chart in charts.items():
                if chart is not None:
                    write_text(self.out / _PLOTS / f"{name}_{kind}.svg", chart.svg())


def _declared(study: Study) -> dict[str, Any]:
    """What is declared, as plain values."""
    return {key: str(value) if key == "root" else _plain(value)
            for key, value in vars(study).items()}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return {k: _plain(v) for k, v in vars(value).items()} if hasattr(value, "__dict__") else value


def _until(tasks: Iterable[CellTask], minutes: float | None) -> Iterator[CellTask]:
    """The tasks that start in time."""
    began = time.monotonic()
    for task in tasks:
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            return
        yield task


def _expected(cell: Cell, spent: Sequence[tuple[Cell, float]]) -> float | None:
    """Mean seconds of cells that are most like it."""
    kinds = (("data", "backbone", "method"), ("backbone", "method"), ("method",), ())
    for axes in kinds:
        like = [s for other, s in spent if all(getattr(other, a) == getattr(cell, a) for a in axes)]
        if like:
            return sum(like) / len(like)
    return None


def _tell(progress: ProgressCallback | None, done: int, total: int, message: str) -> None:
    if progress is not None:
        progress(Progress("study", done, total, message))


def _message(documents: Sequence[dict[str, Any]]) -> str:
    """What was done last, and whether it failed."""
    failed = sum("error" in one for one in documents)
    last = Cell(**documents[-1]["cell"])
    return last.label + (f": {plural(failed, 'cell')} failed" if failed else "")
