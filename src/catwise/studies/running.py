"""The tasks of a study: one for each model, with all methods that tune it.

A task writes what it finds, and gives it back; a failure is what a cell came to, not the end. It is
a plain function of plain values, so that any `map` runs it.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from catwise._io import make_folder, write_json
from catwise._json import json_ready, read_file
from catwise.errors import CatwiseError, ConfigError, InSampleWarning
from catwise.heads import Head, load_head, save_head
from catwise.labels import PartialLabels
from catwise.metrics import HeadComparison, compare_heads
from catwise.studies.bases import Base, make_base
from catwise.studies.cells import Cell
from catwise.studies.declared import Study
from catwise.studies.sources import load_data
from catwise.tuning import tune
from catwise.tuning.account.held_out import METRICS, evaluation_of

CELLS: Final = "cells"
BASES: Final = "bases"

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Runs a function on tasks and gives what came of each, in any order."""


def in_sequence(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """One task after another, in this process."""
    for task in tasks:
        yield function(task)


class CellTask(NamedTuple):
    """A model, and the cells that tune it.

    Attributes:
        study: what is declared.
        folder: of the study.
        base: key of the model.
        cells: with their keys, those that others are compared with first.
    """

    study: Study
    folder: Path
    base: str
    cells: tuple[tuple[Cell, str], ...]


class _Opened(NamedTuple):
    """A task, its model and the test rows."""

    task: CellTask
    base: Base
    test: tuple[Any, PartialLabels]


def run_task(task: CellTask) -> list[dict[str, Any]]:
    """Do what is left of a task; what each cell came to, as its file holds it."""
    began = time.perf_counter()
    first, _ = task.cells[0]
    found: dict[str, dict[str, Any]] = {}
    try:
        place = task.folder / BASES / task.base
        make_folder(place)
        base = make_base(task.study, first, place)
        test = base.pair("test")
        if test is None:
            raise ConfigError(f"[data.{first.data}] has no test rows.")  # noqa: TRY301
    except Exception as error:  # noqa: BLE001 - a failure is what these cells came to
        failed = _failure(error)
        return [_written(task, cell, key, {"error": failed}) for cell, key in task.cells]
    spent = time.perf_counter() - began
    for cell, key in task.cells:
        document = read_cell(task.folder, key)
        if document is None or "error" in document:
            document = _run_cell(_Opened(task, base, test), cell, key, spent)
            spent = 0.0
        found[cell.method] = _compared(_Opened(task, base, test), cell, document, found)
    return list(found.values())


def cell_path(folder: Path, key: str) -> Path:
    """Where a cell's result is."""
    return folder / CELLS / f"{key}.json"


def read_cell(folder: Path, key: str) -> dict[str, Any] | None:
    """What a cell came to; None where it was not run, or its file is not as it was written."""
    path = cell_path(folder, key)
    try:
        document: dict[str, Any] = read_file(path)
    except (OSError, ValueError):
        return None
    is_whole = isinstance(document, dict) and ("error" in document or "means" in document)
    if not is_whole or ("means" in document and not _head_path(folder, key).is_file()):
        return None
    return document


def _head_path(folder: Path, key: str) -> Path:
    return folder / CELLS / f"{key}.safetensors"


def cell_head(folder: Path, key: str) -> Head:
    """The tuned head of a cell."""
    return load_head(_head_path(folder, key))


def _run_cell(opened: _Opened, cell: Cell, key: str, spent: float) -> dict[str, Any]:
    """Tune by one method and score on the test rows."""
    began = time.perf_counter()
    task, base, test = opened
    study = task.study
    config = study.methods[cell.method].config(study.metric, cell.seed)
    policy = load_data(study, cell.data).policy
    try:
        train = base.pair("train")
        assert train is not None  # noqa: S101  # there are training rows
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=InSampleWarning)
            result = tune(base.head, train, base.held_out, policy=policy, **config.tuning())
        found = scored(study, cell, base.head, result.head, test)
        save_head(result.head, _head_path(task.folder, key))
    except Exception as error:  # noqa: BLE001 - a failure is what this cell came to
        return _written(task, cell, key, {"error": _failure(error)})
    about = {**evaluation_of(found), "notes": result.notes}
    about["seconds"] = {"base": spent, "method": time.perf_counter() - began}
    return _written(task, cell, key, about)


def scored(
    study: Study, cell: Cell, before: Head, after: Head, test: tuple[Any, PartialLabels]
) -> HeadComparison:
    """Two heads on the test rows, by the metric of the study and further ones."""
    data = study.data[cell.data]
    unit = load_data(study, cell.data).by
    own = [
        name for name in METRICS if name != study.metric and (unit is None or name in METRICS[:2])
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=InSampleWarning)
        return compare_heads(
            before,
            after,
            test,
            metrics=[study.metric, *own],
            by=unit,
            pool=data.pool,
            level=study.level,
            force=True,
        )


def _compared(
    opened: _Opened, cell: Cell, document: dict[str, Any], found: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The document with the difference to the method that all are compared with, if it is there."""
    task, key = opened.task, document["key"]
    name = task.study.against
    other = None if name in (None, cell.method) else found.get(str(name))
    if other is None or "error" in other or "error" in document:
        return document
    if document.get("against", {}).get("key") == other["key"]:
        return document
    heads = cell_head(task.folder, other["key"]), cell_head(task.folder, key)
    first = scored(task.study, cell, *heads, opened.test).first
    told = {"key": other["key"], "method": name, "verdict": first.verdict, **first.mean()}
    return _written(task, cell, key, {**document, "against": told})


def _written(task: CellTask, cell: Cell, key: str, about: dict[str, Any]) -> dict[str, Any]:
    """Write what a cell came to, and give it."""
    document = json_ready({**about, "cell": cell._asdict(), "key": key, "base": task.base})
    write_json(cell_path(task.folder, key), document)
    return dict(document)


def _failure(error: Exception) -> dict[str, str]:
    """What is kept of a failure; where nobody expected it also where it was."""
    told = {"type": type(error).__name__, "message": str(error)}
    if not isinstance(error, CatwiseError):
        told["traceback"] = "".join(traceback.format_exception(error))
    return told
