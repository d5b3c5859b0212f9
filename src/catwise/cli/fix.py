"""`catwise fix`: a checkpoint, images and labels in, a better checkpoint out, in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from catwise.cli.inputs import check_device, describe_labels, environment, load_labels
from catwise.cli.models import load_options, model_options, preprocessing_of
from catwise.cli.options import metric_option, output_options, path_type, seed_option, table_options

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.cli.models import ModelOptions
    from catwise.cli.options import TableOptions

__all__ = ["command"]


@click.command("fix", short_help="From checkpoint, images and labels to a better checkpoint.")
@model_options
@click.option(
    "--labels", type=path_type(), required=True, metavar="FILE", help="CSV, TSV or Parquet."
)
@table_options
@click.option("--split-column", metavar="NAME", help="Column that tells the split of each row.")
@click.option("--train-split", metavar="VALUE", default="train", show_default=True)
@click.option("--valid-split", metavar="VALUE", default="valid", show_default=True)
@click.option(
    "--test-split", metavar="VALUE", default="test", show_default=True, help="Chooses nothing."
)
@metric_option()
@click.option(
    "--preset", type=click.Choice(["default", "paper"]), default="default", show_default=True
)
@click.option("--method", "methods", multiple=True, metavar="NAME", help="For paper.")
@click.option("--validation", type=click.Choice(["fit_and_select", "select"]))
@seed_option
@click.option("--force", is_flag=True, help="Go on although head and labels look mismatched.")
@click.option("--dry-run", is_flag=True, help="Check model and labels, say what would run.")
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
    labels: Path,
    table: TableOptions,
    split_column: str | None,
    train_split: str,
    valid_split: str,
    test_split: str,
    metric: str,
    preset: str,
    methods: tuple[str, ...],
    validation: str | None,
    seed: int,
    force: bool,
    dry_run: bool,
    out: Path,
    output: Output,
) -> None:
    """Read, extract, tune, write back, verify, evaluate and report, in one command.

    DIR gets the features, the run with its report, the new checkpoint under the old one's name, the
    scores on the test rows and a snippet for the model's card. Stopped, it goes on where it was.
    """
    check_device(model.device)
    from catwise.data import split_counts
    from catwise.fixing import FixConfig, find_images, fix
    from catwise.models.registry import load_model

    names = {"train": train_split, "valid": valid_split, "test": test_split}
    if split_column is None:
        parts = {"train": load_labels(labels, table)}
    else:
        there = split_counts(labels, split_column, delimiter=table.delimiter)
        parts = {
            name: load_labels(labels, table, split_column=split_column, split=value)
            for name, value in names.items()
            if name == "train" or value in there
        }
    about = {f"{name} labels": describe_labels(labels, part, table) for name, part in parts.items()}
    given = load_options(model)
    loaded = load_model(model.model, checkpoint=model.checkpoint, **given)
    preprocessing = preprocessing_of(model, loaded.preprocessing)
    output.line(f"{loaded.name}: classification layer {loaded.layer}")
    output.line(f"preprocessing: {_preprocessing(preprocessing.to_dict())}")
    for note in loaded.notes:
        output.line(note)
    if dry_run:
        every = [one for part in parts.values() if part.ids is not None for one in part.ids]
        find_images(model.images, _array(every))
        output.line("dry run: model, labels and images fit; nothing was written")
        output.document({"command": "fix", "dry_run": True, "inputs": about})
        return
    config = FixConfig(
        metric=metric,
        preset=preset,
        methods=methods or None,
        validation=validation,
        seed=seed,
        force=force,
        batch_rows=model.batch_size,
        workers=model.workers,
        flips=model.flips,
        device=model.device,
        undecodable=model.undecodable,
    )
    with output.progress() as progress:
        result = fix(
            model.model,
            model.images,
            parts,
            out,
            checkpoint=model.checkpoint,
            model_options=given,
            preprocessing=preprocessing,
            config=config,
            inputs={**about, "environment": environment()},
            progress=progress,
        )
    for step, what in result.steps.items():
        output.line(f"{step}: {what}")
    _show(result.summary, result.evaluation, metric, output)
    output.line()
    output.line(f"checkpoint: {result.checkpoint}")
    output.line(f"report: {result.report}")
    output.document(
        {
            "command": "fix",
            "out": str(result.out),
            "checkpoint": str(result.checkpoint),
            "report": str(result.report),
            "steps": result.steps,
            "summary": result.summary,
            "evaluation": result.evaluation,
            "notes": result.notes,
        }
    )


def _array(ids: list[str]) -> Any:
    import numpy as np

    return np.array(ids, dtype=np.str_)


def _preprocessing(values: dict[str, Any]) -> str:
    height, width = values["size"]
    return (
        f"{height} x {width} pixels (height x width), {values['crop_mode']} crop of "
        f"{values['crop_pct']:g}, {values['interpolation']}, mean {_list(values['mean'])}, "
        f"std {_list(values['std'])}; from {values['source']}"
    )


def _list(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _show(summary: Any, evaluation: Any, metric: str, output: Output) -> None:
    """What came of it, in two lines."""
    output.line(
        f"{summary['n_replaced']} of {summary['n_categories']} categories replaced; mean {metric} "
        f"on fresh labels {_number(summary['before'])} -> {_number(summary['after'])}"
    )
    if evaluation is None:
        output.line("no test split: score the new checkpoint on images that chose nothing")
        return
    before, after = evaluation["before"][metric], evaluation["after"][metric]
    gain = (evaluation.get("gain") or {}).get(metric) or {}
    span = gain.get("interval")
    told = "" if not span else f" (gain {span[0]:+.4f} to {span[1]:+.4f})"
    output.line(
        f"on {evaluation['rows']:,} test images: {_number(before)} -> {_number(after)}{told}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
