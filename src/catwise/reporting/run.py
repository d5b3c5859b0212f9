"""The folder that a run leaves behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from catwise._io import atomic_folder, folder_names, named_as, write_json, write_text
from catwise._json import TABLE, TABLES, TEXT, Field, json_ready, read_fields, read_file
from catwise._lock import translated
from catwise._version import __version__
from catwise.errors import MismatchError, OutputError
from catwise.progress import ProgressCallback
from catwise.reporting.html import render_report
from catwise.reporting.summary import headline
from catwise.reporting.tables import records_csv

if TYPE_CHECKING:
    from catwise.heads import Head
    from catwise.tuning import Account, SelectResult, TuneResult


RUN_FILES: Final = (
    "head.safetensors",
    "records.json",
    "records.csv",
    "config.json",
    "summary.json",
    "history.json",
    "folds.safetensors",
    "shared.safetensors",
    "evaluation.json",
    "curves.json",
    "report.html",
)
"""The files of a run; `history.json`, `folds.safetensors`, `shared.safetensors` (what an update
holds), `evaluation.json` (both heads on test rows) and `curves.json` (what curves are drawn from)
where there is something in them."""

PREVIOUS_HEAD: Final = "previous.safetensors"
_UPDATED: Final = (PREVIOUS_HEAD, "unchanged.json")
"""What an update leaves besides."""

_DRAWN: Final = ("history", "curves")
"""What only charts need: files of their own, and parts of the document of a page."""

_RECORD: Final = {"category": TEXT}


def run_document(
    result: TuneResult | SelectResult, *, inputs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All of a run but the tensors, JSON-ready: NaN is None.

    Args:
        result: what `tune` or `select` gave.
        inputs: where features, labels and head came from.

    Returns:
        `catwise` (version), `kind` ("tune" or "select"), `inputs`, `config`, `summary`, `records`,
        `gap`, `notes` and `evaluation`, both heads on test rows; the history of the fits has its
        own file. The summary has the headline, its verdict and which rows these are of.
    """
    kind = "tune" if hasattr(result, "base") else "select"
    document = {
        "catwise": __version__,
        "kind": kind,
        "inputs": inputs or {},
        "config": result.config,
        "summary": result.summary,
        "records": result.records,
        "gap": getattr(result, "gap", None),
        "notes": result.notes,
        "evaluation": getattr(result, "evaluation", None),
    }
    first = headline(document)
    document["summary"] = {
        "verdict": first.verdict,
        "headline": first.text,
        "headline_rows": first.rows,
        "chose": first.chose,
        **result.summary,
    }
    ready: dict[str, Any] = json_ready(document)
    return ready


def page_document(
    result: TuneResult | SelectResult, *, inputs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a page is made of: `run_document`, with the `history` and the `curves` to draw.

    Args:
        result: what `tune` or `select` gave.
        inputs: where features, labels and head came from.
    """
    drawn: dict[str, Any] = {"date": today()}
    drawn |= {name: json_ready(getattr(result, name, None)) for name in _DRAWN}
    return run_document(result, inputs=inputs) | {k: v for k, v in drawn.items() if v}


def today() -> str:
    """The date, in UTC; that of SOURCE_DATE_EPOCH where it is set, as for other builds."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(epoch) if epoch.isdecimal() else time.time()
    return datetime.fromtimestamp(seconds, tz=timezone.utc).date().isoformat()


def read_run(folder: Path) -> dict[str, Any]:
    """The document of a run's page, as `page_document` gave it, from its files.

    Raises:
        OutputError: If one of them is not as it was written.
    """
    parts = [_read(folder / f"{name}.json", {name: TABLE}) for name in ("config", "summary")]
    records = _read(folder / "records.json", None)
    path = folder / "evaluation.json"
    evaluation = _read(path, {"metric": TEXT, "means": TABLE}) if path.exists() else None
    found = {key: value for part in parts for key, value in part.items()}
    drawn: dict[str, Any] = {}
    if (path := folder / "history.json").exists():
        drawn["history"] = _read(path, None, {})
    if (path := folder / "curves.json").exists():
        drawn["curves"] = _read(path, {"rows": TEXT, "categories": TABLES})
    return {**found, "records": records, "evaluation": evaluation, **drawn}


def read_result(folder: str | os.PathLike[str], base: Head) -> TuneResult:
    """What `tune` gave, from the folder that it was written to; see `TuneResult.load`."""
    from catwise.heads import load_head
    from catwise.tuning import FoldArtifacts, TuneResult
    from catwise.tuning.account.shared_file import SHARED_FILE, load_shared

    path = Path(folder)
    if not (path / "config.json").is_file():
        raise OutputError(
            f"'{path}' holds no run.",
            expected="the folder that tune wrote",
            remedy="check the path",
        )
    run = read_run(path)
    config = run["config"]
    if config.get("base") != base.digest:
        raise MismatchError(
            f"the head is not the one that '{path}' was tuned from.",
            found=f"a head with the digest {base.digest}",
            expected=f"{config.get('base')}",
            remedy="give the original head, not the tuned one; or tune all categories again, with "
            "--overwrite (overwrite=True)",
        )
    shared = load_shared(path / SHARED_FILE, config["device"])
    folds = path / "folds.safetensors"
    return TuneResult(
        head=load_head(path / "head.safetensors"),
        base=base,
        account=_read_account(path, run),
        config=config,
        gap=run.get("gap"),
        history=run.get("history", []),
        folds=FoldArtifacts.load(folds) if folds.is_file() else None,
        notes=list(run.get("notes", [])),
        evaluation=run["evaluation"],
        curves=run.get("curves"),
        shared=shared,
    )


def _read_account(path: Path, run: Mapping[str, Any]) -> Account:
    """Records and summary of a run, as they were."""
    from catwise.tuning.account.documents import Account, Record, Summary

    try:
        records = tuple(Record.from_dict(row) for row in run["records"])
        return Account(records, Summary.from_dict(run["summary"]))
    except (TypeError, ValueError) as error:
        raise OutputError(
            f"the records of '{path}' are not as they were written.",
            found=str(error),
            remedy="tune all categories again, with --overwrite (overwrite=True)",
        ) from error


def _read(
    path: Path, fields: Mapping[str, Field] | None, of_each: Mapping[str, Field] = _RECORD
) -> Any:
    """A document that was written: a table with these fields, or None for a list of tables."""
    try:
        document = read_file(path)
        if fields is not None:
            read_fields(document, fields)
        for table in document if fields is None else ():
            read_fields(table, of_each)
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(
            f"'{path}' is not as it was written.",
            found=getattr(error, "strerror", None) or str(error),
            remedy="remove it and repeat the command, which makes it again",
        ) from error
    return document


def check_output(folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Say at once, before any work, that a run could not be written.

    A folder with files that no run writes is never replaced, whatever is asked for.

    Args:
        folder: output directory; missing parents will be made.
        overwrite: whether an earlier run there may be replaced.

    Returns:
        The path.

    Raises:
        OutputError: If a file is in the way, the folder is not empty, or it cannot be written.
    """
    path = Path(folder)
    if (inside := folder_names(path)) and not overwrite:
        raise OutputError(
            f"'{path}' exists and is not empty.",
            found=", ".join(inside[:3]),
            remedy="choose another folder, or replace an earlier run with --overwrite "
            "(overwrite=True)",
        )
    folder_names(path, own=(*RUN_FILES, *_UPDATED), what="run")
    # A run is built beside its folder and renamed, so it is the parent that must be writable.
    _check_parent(path)
    return path


def _check_parent(path: Path) -> None:
    """The nearest parent that exists must be a folder that may be written to."""
    parent = Path(os.path.realpath(path)).parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(
            f"cannot write '{path}'.",
            found=f"'{parent}' is a file",
            remedy="correct the path",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write '{path}'.",
            found=f"no permission to write in '{parent}'",
            remedy="choose a folder that you may write to, or change its permissions",
        )


def write_run(
    result: TuneResult | SelectResult,
    folder: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Any] | None = None,
    thumbnails: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    previous: Head | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, Path]:
    """Write a run: the head, its records, summary, configuration, folds and report.

    The folder appears whole or not at all: it is built under a temporary name beside its place.

    Args:
        result: what `tune` or `select` gave.
        folder: where; missing parents are made.
        inputs: where features, labels and head came from, JSON-ready.
        thumbnails: pictures for the report, of `catwise.models.thumbnails.make_thumbnails`.
        overwrite: replace an earlier run there.
        previous: the head before an update, to be kept beside the new one.
        progress: called now and then while the report is made.

    Returns:
        The path of each file by its name, as in :data:`~catwise.reporting.RUN_FILES`.

    Raises:
        OutputError: As :func:`check_output`, or if the disk is full.
    """
    from catwise.heads import save_head
    from catwise.tuning.account.shared_file import SHARED_FILE, can_save, save_shared

    path = check_output(folder, overwrite=overwrite)
    document = page_document(result, inputs=inputs)
    folds = getattr(result, "folds", None)
    summary = {key: document[key] for key in ("catwise", "kind", "summary", "gap", "notes")}
    config = {key: document[key] for key in ("catwise", "kind", "date", "inputs", "config")}
    writers: dict[str, Callable[[Path], object]] = {
        "head.safetensors": lambda target: save_head(result.head, target),
        "records.json": lambda target: write_json(target, document["records"]),
        "records.csv": lambda target: write_text(target, records_csv(document["records"])),
        "config.json": lambda target: write_json(target, config),
        "summary.json": lambda target: write_json(target, summary),
        "report.html": lambda target: write_text(
            target, render_report({**document, "thumbnails": thumbnails}, progress=progress)
        ),
    }
    for name in filter(document.get, _DRAWN):  # thousands of numbers: no spaces
        writers[f"{name}.json"] = partial(_write_compact, value=document[name])
    if folds is not None:
        writers["folds.safetensors"] = folds.save
    shared = getattr(result, "shared", None)
    if shared is not None and can_save(shared):
        writers[SHARED_FILE] = partial(save_shared, shared)
    if previous is not None:
        writers[PREVIOUS_HEAD] = partial(save_head, previous)
    if document["evaluation"] is not None:
        writers["evaluation.json"] = lambda target: write_json(target, document["evaluation"])
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(path, overwrite=overwrite) as temporary, named_as(path, temporary):
        for name, write in writers.items():
            write(temporary / name)
    return {name: path / name for name in RUN_FILES if name in writers}


def _write_compact(target: Path, *, value: object) -> None:
    write_json(target, value, indent=None)
