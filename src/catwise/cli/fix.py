"""`catwise fix`: a checkpoint, images and labels in, a better checkpoint out, in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from catwise.cli.inputs import (
    check_device,
    environment,
    load_policy,
)
from catwise.cli.labelled import describe_labels, load_dataset
from catwise.cli.models import load_the_model, model_options
from catwise.cli.options import (
    labelled_options,
    metric_option,
    output_options,
    path_type,
    policy_options,
    seed_option,
    table_options,
)
from catwise.errors import ConfigError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.cli.models import ModelOptions
    from catwise.cli.options import LabelledOptions, PolicyOptions, TableOptions
    from catwise.data import Dataset
    from catwise.fixing import FixConfig, FixResult, FoundImages, PreparedFix

__all__ = ["command"]


@click.command("fix", short_help="From checkpoint, images and labels to a better checkpoint.")
@model_options
@click.option(
    "--missing",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="Labelled images that are not there.",
)
@labelled_options
@click.option("--train-split", metavar="VALUE", default="train", show_default=True)
@click.option("--valid-split", metavar="VALUE", default="valid", show_default=True)
@click.option(
    "--test-split",
    metavar="VALUE",
    default="test",
    show_default=True,
    help="Images that choose nothing and judge at the end; 'none' for none.",
)
@table_options
@policy_options
@metric_option()
@click.option(
    "--preset",
    type=click.Choice(["default", "paper"]),
    default="default",
    show_default=True,
    help="paper: as published, step for step.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="For paper: bp_bce, bp_asl or ga (repeatable).  [default: the preset's]",
)
@click.option(
    "--validation",
    type=click.Choice(["fit_and_select", "select"]),
    help="What validation labels are used for.  [default: fit_and_select; paper: select]",
)
@seed_option
@click.option("--force", is_flag=True, help="Go on although head and labels look mismatched.")
@click.option("--dry-run", is_flag=True, help="Check model, labels and images, say what would run.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a run with other inputs; its features stay if they would be the same.",
)
@click.option(
    "--out",
    type=path_type(),
    required=True,
    metavar="DIR",
    help="Where all shall be; an unfinished run there goes on.",
)
@output_options
def command(
    *,
    model: ModelOptions,
    missing: str,
    source: LabelledOptions,
    train_split: str,
    valid_split: str,
    test_split: str,
    table: TableOptions,
    policy: PolicyOptions,
    metric: str,
    preset: str,
    methods: tuple[str, ...],
    validation: str | None,
    seed: int,
    force: bool,
    dry_run: bool,
    overwrite: bool,
    out: Path,
    output: Output,
) -> None:
    """Read, extract, tune, write back, verify, evaluate and report, in one command.

    DIR gets the new checkpoint under the old one's name, report.html, a snippet for the model's
    card, the scores on the test images, the run and the features. Stopped, the same command goes on
    where it was.
    """
    check_device(model.device)
    from catwise.fixing import FixConfig

    config = FixConfig(
        metric=metric,
        preset=preset,
        methods=methods or None,
        validation=validation,
        policy=load_policy(policy),
        seed=seed,
        force=force,
        batch_rows=model.batch_size,
        workers=model.workers,
        flips=model.flips,
        device=model.device,
        undecodable=model.undecodable,  # type: ignore[arg-type]  # click.Choice
        missing=missing,  # type: ignore[arg-type]  # click.Choice
    )
    if source.split is not None:
        raise click.UsageError("fix takes --train-split, --valid-split and --test-split.")
    dataset = load_dataset(source, table)
    wanted = {"train": train_split, "valid": valid_split, "test": test_split}
    parts = _splits(dataset, wanted)
    about = {
        "labels": describe_labels(source, dataset.labels, table),
        "splits": {
            name: {"images": len(part), "called": str(part.splits[0])}
            for name, part in parts.items()
        },
        "images": str(model.images or dataset.root),
        "environment": environment(),
    }
    job = _prepare(model, dataset, parts, config, about, out=out, overwrite=overwrite)
    _introduce(job, output)
    if dry_run:
        output.line(f"dry run: all fits; would run {', '.join(job.ahead) or 'nothing'}")
        output.line(f"nothing was written to '{out}'")
        output.document(
            {
                "command": "fix",
                "dry_run": True,
                "out": str(out),
                "steps": job.ahead,
                "inputs": about,
                "left_out": job.left_out,
                "notes": job.notes,
            }
        )
        return
    with output.progress() as progress:
        result = job.run(progress)
    _tell(result, output)


def _splits(dataset: Dataset, wanted: dict[str, str]) -> dict[str, Dataset]:
    """Training, validation and test rows; all are training rows where there are no splits."""
    there = set(dataset.splits.tolist())
    if there == {""}:
        return {"train": dataset}
    for name, value in wanted.items():
        absent = set() if name == "train" else {name, "none"}  # nobody named it, or wants none
        if value not in there | absent:
            raise ConfigError(
                f"no row is in the split {value!r}{nearest(value, there)}.",
                expected=" or ".join(sorted(there)),
                remedy="--train-split, --valid-split and --test-split name the splits; 'none' of "
                "the last two is for none",
            )
    if len(set(wanted.values())) < len(wanted):
        raise ConfigError("one split cannot serve twice.", found=", ".join(wanted.values()))
    return {name: dataset.split(value) for name, value in wanted.items() if value in there}


def _images(
    model: ModelOptions, dataset: Dataset, parts: dict[str, Dataset], *, skip_missing: bool
) -> FoundImages:
    """The images: the files that the data set names, or those named after the ids."""
    import numpy as np

    from catwise.fixing import find_images, listed_images

    every = [one for part in parts.values() for one in _ids(part)]
    if any(dataset.paths):
        paths = [path for part in parts.values() for path in part.paths.tolist()]
        return listed_images(model.images or dataset.root, paths, every, skip_missing=skip_missing)
    if model.images is None:
        raise click.UsageError("Missing option '--images'.")
    return find_images(model.images, np.array(every, dtype=np.str_), skip_missing=skip_missing)


def _ids(part: Dataset) -> list[str]:
    if part.labels.ids is None:
        raise ConfigError(
            "the labels have no ids to find the images by.",
            remedy="name the column of the ids: --id-column",
        )
    return part.labels.ids.tolist()  # type: ignore[no-any-return]


def _prepare(
    model: ModelOptions,
    dataset: Dataset,
    parts: dict[str, Dataset],
    config: FixConfig,
    about: dict[str, Any],
    *,
    out: Path,
    overwrite: bool,
) -> PreparedFix:
    from catwise.fixing import prepare

    return prepare(
        load_the_model(model),
        _images(model, dataset, parts, skip_missing=config.missing == "skip"),
        {name: part.labels for name, part in parts.items()},
        out,
        config=config,
        inputs=about,
        overwrite=overwrite,
    )


def _introduce(job: PreparedFix, output: Output) -> None:
    """What was understood, before the work begins."""
    from catwise.fixing.account import preprocessing_text

    output.line(f"{job.model.name}: classification layer {job.model.layer}")
    output.line(f"input: {preprocessing_text(job.model.preprocessing)}")
    sizes = [f"{part.n_rows:,} {name}" for name, part in job.splits.items()]
    output.line(f"labelled images: {', '.join(sizes)}")
    for note in job.notes:
        output.line(note)


def _tell(result: FixResult, output: Output) -> None:
    """What came of it, and where it is."""
    from catwise.fixing.account import result_lines
    from catwise.reporting import run_table

    kept = [step for step, what in result.steps.items() if what == "kept"]
    if kept:
        output.line(f"kept from before: {', '.join(kept)}")
    output.table(run_table(result.run, limit=output.rows))
    for line in result_lines(result.run):
        output.line(line)
    for line in result.run["notes"]:
        output.line(line)
    if result.left_out:
        where = result.out / "left_out.csv"
        output.line(f"{len(result.left_out):,} labelled images were left out; they are in {where}")
    output.line()
    output.line(f"checkpoint: {result.checkpoint}")
    output.line(f"model card: {result.card}")
    output.line(f"report:     {result.report}")
    output.document(
        {
            "command": "fix",
            "out": str(result.out),
            "checkpoint": str(result.checkpoint),
            "report": str(result.report),
            "card": str(result.card),
            "steps": result.steps,
            **result.run,
            "left_out": result.left_out,
            "notes": result.notes,
        }
    )
