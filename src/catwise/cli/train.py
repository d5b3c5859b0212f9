"""`catwise train`: a model, images and partly known labels in, a checkpoint for `fix` out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catwise._configs import TrainConfig
from catwise._options import group, option
from catwise.cli.building import given_options, make_command
from catwise.cli.console import Output
from catwise.cli.inputs import check_device, load_policy
from catwise.cli.labelled import load_dataset
from catwise.cli.models import ModelOptions, load_options, model_args, preprocessing_of
from catwise.cli.options import LabelledOptions, PolicyOptions, TableOptions
from catwise.cli.parts import images_of, images_root, named_parts, paths_below

if TYPE_CHECKING:
    from catwise.progress import ProgressCallback
    from catwise.training.loop import TrainCallback
    from catwise.training.run import PreparedTrain, TrainResult


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise train` is given."""

    model: ModelOptions = group("Model and its input")
    source: LabelledOptions = group("Labels")
    train_split: str = option("train", metavar="VALUE", group="Labels", help="Images to train on.")
    valid_split: str = option(
        "valid", metavar="VALUE", group="Labels", help="Images that choose the epoch, or 'none'."
    )
    test_split: str = option(
        "test", metavar="VALUE", group="Labels", help="Images that are only listed, or 'none'."
    )
    machine_labels: Path | None = option(
        None,
        metavar="FILE",
        group="Labels",
        help="A machine's probabilities, in place of unknown labels: ids, a column a category.",
    )
    machine_weight: float = option(
        0.3, low=0, group="Labels", help="Weight of such a label; a person's weighs 1."
    )
    table: TableOptions = group("Label tables")
    policy: PolicyOptions = group("Training")
    config: TrainConfig = group("Training")
    scheme_arg: tuple[str, ...] = option(
        (),
        metavar="NAME=VALUE",
        group="Training",
        help="An option of the scheme, such as gamma_neg=2 (repeatable).",
    )
    tensorboard: bool = option(
        default=False, group="Training", help="Write files for TensorBoard to DIR/tensorboard."
    )
    dry_run: bool = option(default=False, help="Check model, labels and images; train nothing.")
    overwrite: bool = option(default=False, help="Replace a run with other inputs.")
    out: Path = option(
        metavar="DIR", first=True, help="Output directory; an unfinished run there is resumed."
    )
    output: Output = group("Output")


@make_command("train", "From images and labels to a checkpoint.")
def command(given: Options) -> None:
    """Train a model on partly known labels, by any scheme.

    DIR gets the checkpoint (model.safetensors, or the folder model for transformers), the history,
    and labels.csv, which says what split each image is in: `catwise fix` takes both. Stopped, the
    same command resumes after the last whole epoch (with --save-every after the last state that was
    saved), and ends with the same weights. torchrun starts several processes that share each step.
    """
    output = given.output
    if _is_other():
        output = dataclasses.replace(output, quiet=True, json=False)
    with output.progress() as progress:
        job = _prepare(given, progress)
    _introduce(job, output)
    if given.dry_run:
        job.check_folder()
        output.line(f"dry run: all fits; nothing was written to '{given.out}'")
        output.document({"command": "train", "dry_run": True, "notes": job.notes})
        return
    with output.progress() as progress, _tensorboard(given) as callbacks:
        result = job.run(progress, callbacks)
    _tell(result, given, images_root(job.data.images.source) or given.model.images, output)


@contextlib.contextmanager
def _tensorboard(given: Options) -> Iterator[list[TrainCallback]]:
    """What writes for TensorBoard, if that is asked for."""
    if not given.tensorboard:
        yield []
        return
    from catwise.training.tensorboard import TensorboardCallback

    writer = TensorboardCallback(given.out / "tensorboard")
    try:
        yield [writer]
    finally:
        writer.close()


def _is_other() -> bool:
    """Whether this is not the process that speaks."""
    from catwise.models.layers import ranks_of

    return ranks_of()[0] > 0


def _prepare(given: Options, progress: ProgressCallback | None) -> PreparedTrain:
    from catwise.decisions import read_outputs
    from catwise.training.run import prepare_train

    model, source = given.model, given.source
    check_device(given.config.device)
    if source.split is not None:
        raise click.UsageError("train takes --train-split, --valid-split and --test-split.")
    config = dataclasses.replace(
        given.config,
        policy=load_policy(given.policy),
        scheme_options=model_args(given.scheme_arg, "--scheme-arg"),
    )
    dataset = load_dataset(source, given.table)
    parts = named_parts(dataset, given.train_split, given.valid_split, given.test_split)
    images = images_of(model, dataset, parts, skip_missing=config.missing == "skip")
    return prepare_train(
        model.model,
        images,
        {name: part.labels for name, part in parts.items()},
        given.out,
        checkpoint=model.checkpoint,
        model_options=load_options(model),
        machine=None if given.machine_labels is None else read_outputs(given.machine_labels),
        machine_weight=given.machine_weight,
        paths=paths_below(images.source) if any(dataset.paths) else {},
        config=config,
        preprocessing=lambda own: preprocessing_of(model, own),
        overwrite=given.overwrite,
        progress=progress,
    )


def _introduce(job: PreparedTrain, output: Output) -> None:
    """What was understood, before the work starts."""
    from catwise.models.card import preprocessing_text

    output.line(f"{job.model.name}: classification layer {job.model.layer}")
    output.line(f"input: {preprocessing_text(job.model.preprocessing)}")
    sizes = [f"{part.n_rows:,} {name}" for name, part in job.splits.items()]
    output.line(f"labelled images: {', '.join(sizes)}")
    for note in job.notes:
        output.line(note)


def _tell(result: TrainResult, given: Options, images: Path | None, output: Output) -> None:
    """What came of it, and what comes next."""
    for record in result.history:
        score = record.get("score")
        more = "" if score is None else f", {record['metric']} {score:.4f}"
        output.line(f"epoch {record['epoch']}: loss {record['loss']:.5f}{more}")
    chosen = "the last epoch" if result.score is None else f"epoch {result.epoch}, the best"
    output.line(f"checkpoint of {chosen}: {result.checkpoint}")
    output.line(f"labels and splits: {result.labels}")
    output.line(f"next: {_next(result, given, images)}")
    output.document(
        {
            "command": "train",
            "out": str(result.out),
            "checkpoint": str(result.checkpoint),
            "labels": str(result.labels),
            "epoch": result.epoch,
            "score": result.score,
            "reserved": result.reserved,
            "history": result.history,
            "notes": result.notes,
        }
    )


def _next(result: TrainResult, given: Options, images: Path | None) -> str:
    """The command that tunes the head of what was trained."""
    import shlex

    name = given.model.model
    where: list[Any] = ["--model", name, "--checkpoint", result.checkpoint]
    if name.startswith("transformers:"):
        where = ["--model", f"transformers:{result.checkpoint}"]
    where += ["--images", images]
    told = ("model", "checkpoint", "images", "prefix")  # the new checkpoint has no prefix
    where += given_options(given.model, leave_out=told)
    where += ["--labels", result.labels, "--encoding", "codes", "--id-column", "id"]
    where += ["--split-column", "split"]
    where += ["--valid-split", "reserved"] if result.reserved else []
    with result.labels.open(encoding="utf-8") as stream:
        grouped = ",group," in stream.readline()
    where += ["--group-column", "group"] if grouped else []
    return shlex.join(map(str, ["catwise", "fix", *where, "--out", "DIR"]))
