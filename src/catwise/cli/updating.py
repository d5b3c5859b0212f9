"""`catwise tune --update`: a run brought up to date with its labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catwise.cli.console import Output
from catwise.cli.inputs import Pair
from catwise.cli.runs import PREVIOUS_FILE, finish, refuse_harm
from catwise.cli.thumbnails import Images

if TYPE_CHECKING:
    from catwise.heads import Head
    from catwise.tuning.updating import PreparedUpdate


def update(
    out: Path,
    head: Head,
    pair: Pair,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    images: Images | None,
    dry_run: bool,
    output: Output,
) -> None:
    """Tune again what changed in a run that is there, and compare it with the head before."""
    from catwise.heads import load_head
    from catwise.tuning import TuneResult
    from catwise.tuning.updating import check_same_options, compare_with_previous, prepare_update

    run = TuneResult.load(out, head)
    names = ("preset", "methods", "validation", "metric", "seed", "device", "policy")
    given = {name: settings[name] for name in names}
    check_same_options(out, run.config, has_valid=pair.valid is not None, **given)
    job = prepare_update(run, pair.train, pair.valid)
    output.line(str(job.changes))
    if dry_run:
        _rehearse(job, out, output)
        return
    force = settings["force"]
    with output.progress() as progress:
        done = job.run(pair.test, force=force, progress=progress)
    kept = out / PREVIOUS_FILE
    previous = run.head if done.categories else load_head(kept) if kept.is_file() else None
    against = None
    if previous is not None:
        against = compare_with_previous(previous, done.result.head, pair.test, run.config["metric"])
    more = {"update": done.done(), "against": against and against.sentence()}
    if done.is_unchanged:
        output.line("no label changed since the last update")
        output.document({"command": "tune", "out": str(out), "unchanged": True, **more})
    else:
        output.line(str(done))
        how: dict[str, Any] = {"overwrite": True, "output": output, "images": images}
        finish("tune", done.result, out, inputs=inputs, previous=previous, more=more, **how)
    if against is not None:
        output.line(f"against the head before: {against.sentence()}")
    refuse_harm(against, kept)


def _rehearse(job: PreparedUpdate, out: Path, output: Output) -> None:
    """Say what would be tuned again."""
    names = list(job.categories)
    output.line(f"dry run: {len(names):,} categories would be tuned again; nothing was written")
    about = {"command": "tune", "dry_run": True, "out": str(out), "categories": names}
    output.document(about)
