"""`catwise fix`: a checkpoint, images and labels in, a better checkpoint out, in one command."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catwise._configs import FixConfig
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import check_device, environment, load_policy, read_names
from catwise.cli.labelled import (
    describe_labels,
    known_categories,
    load_chosen,
    load_dataset,
    with_cell_labels,
)
from catwise.cli.models import ROW_NAMES_HELP, ModelOptions, load_the_model
from catwise.cli.options import (
    CHOSEN_HELP,
    EngineOptions,
    LabelledOptions,
    MatchOptions,
    PolicyOptions,
    TableOptions,
)
from catwise.cli.parts import images_of, named_parts
from catwise.cli.runs import PREVIOUS_FILE, refuse_harm
from catwise.cli.thumbnails import is_medical
from catwise.cli.unchanged import NOTHING_TO_DO, inputs_digest, is_unchanged, note_unchanged

if TYPE_CHECKING:
    from catwise.data import Dataset
    from catwise.fixing import FixResult, PreparedFix


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise fix` is given."""

    model: ModelOptions = group("Model and its input")
    head_categories: Path | None = option(
        None, metavar="FILE", group="Model and its input", help=ROW_NAMES_HELP
    )
    source: LabelledOptions = group("Labels")
    train_split: str = option("train", metavar="VALUE", group="Labels", help="Images that fit.")
    valid_split: str = option(
        "valid",
        metavar="VALUE",
        group="Labels",
        help="Images that the model was not trained on; they fit and choose. 'none' for none.",
    )
    test_split: str = option(
        "test",
        metavar="VALUE",
        group="Labels",
        help="Images that choose nothing and judge at the end; 'none' for none.",
    )
    table: TableOptions = group("Label tables")
    match: MatchOptions = group("Label tables")
    policy: PolicyOptions = group("Fitting")
    config: FixConfig = group("Fitting")
    chosen: tuple[Path, ...] = option((), metavar="FILE", group="Fitting", help=CHOSEN_HELP)
    engine: EngineOptions = group("Several processes or machines")
    dry_run: bool = option(
        default=False, help="Check model, labels and images, say what would run."
    )
    overwrite: bool = option(
        default=False,
        help="Replace a run with other inputs; its features stay if they would be the same.",
    )
    update: bool = option(
        default=False,
        help="Bring a run up to date with images and labels as they are now; only images that were "
        "added or changed are run.",
    )
    out: Path = option(
        metavar="DIR",
        first=True,
        help="Output directory of everything; an unfinished run there is resumed.",
    )
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if self.update and self.overwrite:
            raise click.UsageError("--update takes no --overwrite.")


@make_command("fix", "From checkpoint, images and labels to a better checkpoint.")
def command(given: Options) -> None:
    """Read, extract, tune, write back, verify, evaluate and report, in one command.

    DIR gets the new checkpoint under the old one's name, report.html, a snippet for the model's
    card, the scores on the test images, the run and the features. Stopped, the same command resumes
    where it was.
    """
    model, source, table, output = given.model, given.source, given.table, given.output
    check_device(given.config.device)
    if source.split is not None:
        raise click.UsageError("fix takes --train-split, --valid-split and --test-split.")
    digest = inputs_digest(given, given.out) if given.update else ""
    if given.update and not given.dry_run and is_unchanged(given.out, digest):
        output.line(NOTHING_TO_DO)
        output.document({"command": "fix", "out": str(given.out), "unchanged": True})
        return
    config = _config(given)
    dataset = load_dataset(source, table)
    parts = named_parts(dataset, given.train_split, given.valid_split, given.test_split)
    about = {
        "labels": describe_labels(source, dataset.labels, table),
        "splits": {
            name: {"images": len(part), "called": str(part.splits[0])}
            for name, part in parts.items()
        },
        "images": str(model.images or dataset.root),
        "environment": environment(),
    }
    job = _prepare(given, dataset, parts, config, about)
    _introduce(job, output)
    if given.dry_run:
        output.line(f"dry run: all fits; would run {', '.join(job.ahead) or 'nothing'}")
        output.line(f"nothing was written to '{given.out}'")
        told = {"inputs": about, "left_out": job.left_out, "notes": job.notes}
        plan = {"command": "fix", "dry_run": True, "out": str(given.out), "steps": job.ahead}
        output.document({**plan, **told})
        return
    with given.engine.opened(config.workers, given.out) as engine, output.progress() as progress:
        result = job.run(progress, engine=engine)
    _tell(result, output)
    refuse_harm(result.against, result.out / PREVIOUS_FILE)
    if given.update:
        note_unchanged(given.out, digest)


def _config(given: Options) -> FixConfig:
    """The options with what labels count as; medical images are shown only if asked for."""
    config = dataclasses.replace(given.config, policy=load_policy(given.policy))
    if config.thumbnails is None and is_medical(given.source):
        return dataclasses.replace(config, thumbnails=False)
    return config


def _prepare(
    given: Options,
    dataset: Dataset,
    parts: dict[str, Dataset],
    config: FixConfig,
    about: dict[str, Any],
) -> PreparedFix:
    from catwise.fixing import prepare

    names = None if given.head_categories is None else read_names(given.head_categories)
    model, how = load_the_model(given.model, names), given.match.unknown_categories
    rows = model.head.categories if model.head else ()
    chosen, labels = load_chosen(given.chosen), {}
    for name, part in parts.items():
        output = given.output if name == "train" else None
        known = known_categories(part.labels, rows, how, output)
        labels[name] = with_cell_labels(known, chosen, output)
    return prepare(
        model,
        images_of(given.model, dataset, parts, skip_missing=config.missing == "skip"),
        labels,
        given.out,
        config=config,
        chosen=chosen,
        inputs=about,
        overwrite=given.overwrite,
        update=given.update,
    )


def _introduce(job: PreparedFix, output: Output) -> None:
    """What was understood, before the work starts."""
    from catwise.models.card import preprocessing_text

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
    if result.updated is not None:
        output.line(f"images: {result.updated}")
    if result.relabelled is not None:
        output.line(str(result.relabelled))
    output.table(run_table(result.run, limit=output.rows))
    for line in result_lines(result.run):
        output.line(line)
    for line in result.run["notes"]:
        output.line(line)
    if result.against is not None:
        output.line(f"against the head before: {result.against.sentence()}")
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
            "update": result.updated and result.updated.done(),
            "labels": result.relabelled and result.relabelled.done(),
            "against": result.against and result.against.sentence(),
            **result.run,
            "left_out": result.left_out,
            "notes": result.notes,
        }
    )
