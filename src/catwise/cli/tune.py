"""`catwise tune`: features, partly known labels and a trained head in, a better head out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from catwise._configs import MEMORY_HELP, TuneConfig, memory_bytes
from catwise._names import check_choices, takes_engine
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import (
    Pair,
    check_device,
    describe_head,
    environment,
    load_logits,
    load_pair,
    load_policy,
    load_the_head,
)
from catwise.cli.labelled import load_chosen
from catwise.cli.options import (
    CHOSEN_HELP,
    DEVICE_HELP,
    EngineOptions,
    HeadOptions,
    MatchOptions,
    PairOptions,
    PolicyOptions,
    TableOptions,
)
from catwise.cli.outputs import hold_output
from catwise.cli.runs import OVERWRITE_HELP, RUN_HELP, finish
from catwise.cli.thumbnails import Images, ThumbnailOptions, open_images
from catwise.cli.unchanged import NOTHING_TO_DO, inputs_digest, is_unchanged, note_unchanged

if TYPE_CHECKING:
    from catwise.heads import Head


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise tune` is given."""

    data: PairOptions = group("Features and labels")
    table: TableOptions = group("Label tables")
    policy: PolicyOptions = group("Fitting")
    source: HeadOptions = group("Head")
    match: MatchOptions = group("Label tables")
    logits: Path | None = option(
        None,
        metavar="FILE",
        group="Head",
        help="The model's own logits of the training rows, (N, C): they must equal the head's.",
    )
    config: TuneConfig = group("Fitting")
    chosen: tuple[Path, ...] = option((), metavar="FILE", group="Fitting", help=CHOSEN_HELP)
    device: str | None = option(None, group="Fitting", help=DEVICE_HELP)
    memory: str | None = option(None, metavar="SIZE", group="Fitting", help=MEMORY_HELP)
    engine: EngineOptions = group("Several processes or machines")
    workers: int = option(
        0,
        low=0,
        group="Several processes or machines",
        help="Processes of --engine.  [default: what the CPUs allow]",
    )
    dry_run: bool = option(
        default=False, help="Check everything, say what would run; write nothing."
    )
    overwrite: bool = option(default=False, help=OVERWRITE_HELP)
    pictures: ThumbnailOptions = group("Images in the report")
    update: Path | None = option(
        None,
        metavar="RUN",
        help="Bring this run up to date with labels as they are now: only categories whose labels "
        "changed are tuned again. The same options each time; made where it is not there.",
    )
    out: Path | None = option(None, metavar="DIR", first=True, help=RUN_HELP)
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if self.update is None and self.out is None:
            raise click.UsageError("Missing option '--out' (or '--update').")
        if self.update is not None and (self.out is not None or self.overwrite):
            what = "--overwrite" if self.out is None else "--out"
            raise click.UsageError(
                f"--update takes no {what}: the run itself is brought up to date."
            )
        if self.update is not None and (
            self.chosen or self.config.preset == "paper" or self.config.validation == "select"
        ):
            raise click.UsageError(
                "--update is for the preset 'default' that fits on validation labels, without "
                "--chosen."
            )

    @property
    def folder(self) -> Path:
        """The folder that is written."""
        folder = self.update if self.out is None else self.out
        assert folder is not None  # noqa: S101 - checked when built
        return folder


@make_command("tune", "Fine-tune the classification head on the known labels.")
def command(given: Options) -> None:
    """Fine-tune the classification head, category by category, on the known labels.

    Features are what the head is given by the model: one row for each image. DIR gets the tuned
    head, the records of all categories (JSON, CSV), the configuration and report.html. Test rows,
    which fit and choose nothing, judge the result where there are any.
    """
    config, data, out, output = given.config, given.data, given.folder, given.output
    check_choices(
        config.preset, config.methods, config.validation, has_valid=data.valid is not None
    )
    if given.engine.engine is not None and not takes_engine(config.preset, config.validation):
        raise click.UsageError(
            "--engine goes with --preset default and --validation fit_and_select."
        )
    digest = "" if given.update is None else inputs_digest(given, out)
    if given.update is not None and not given.dry_run and is_unchanged(out, digest):
        output.line(NOTHING_TO_DO)
        output.document({"command": "tune", "out": str(out), "unchanged": True})
        return
    job = _read(given)
    if given.update is not None and (out / "config.json").is_file():
        from catwise.cli.updating import update

        update(out, *job[:4], images=job.images, dry_run=given.dry_run, output=output)
    elif given.dry_run:
        rehearse("tune", *job[:4], out=out, output=output)
    else:
        _run(given, job)
    if given.update is not None and not given.dry_run:
        note_unchanged(out, digest)


class _Job(NamedTuple):
    """What `tune` is given."""

    head: Head
    pair: Pair
    settings: dict[str, Any]
    inputs: dict[str, Any]
    images: Images | None


def _read(given: Options) -> _Job:
    """Check the output, and read everything."""
    config, data, out, output = given.config, given.data, given.folder, given.output
    policy = load_policy(given.policy)
    from catwise.joining import name_rows
    from catwise.reporting.run import check_output

    if not given.dry_run:
        hold_output(out, parents=True)
    check_output(out, overwrite=given.overwrite or given.update is not None)
    check_device(given.device)
    chosen = load_chosen(given.chosen)
    pair = load_pair(data, given.table).with_cells(chosen, output)
    images = open_images(given.pictures, *pair.judging)
    read = load_the_head(given.source, given.table)
    pair = pair.known_to(read.categories, given.match.unknown_categories, output)
    head = name_rows(read, pair.train[1].categories)
    about = describe_head(given.source, head)
    if head is not read:
        about["names"] = "of the label columns, in their order"
    inputs = {"head": about, **pair.about, "environment": environment()}
    logits = None if given.logits is None else load_logits(given.logits, data, given.table, pair)
    settings = {
        **config.tuning(),
        "device": given.device,
        "policy": policy,
        "logits": logits,
        "chosen": chosen,
    }
    if given.memory is not None:
        settings["memory"] = memory_bytes(given.memory)
    return _Job(head, pair, settings, inputs, images)


def _run(given: Options, job: _Job) -> None:
    """Tune all categories, and write the run."""
    from catwise.tuning import tune

    pair, out = job.pair, given.folder
    with given.engine.opened(given.workers, out) as engine, given.output.progress() as progress:
        settings = {**job.settings, "engine": engine, "progress": progress}
        result = tune(job.head, pair.train, pair.valid, test=pair.test, **settings)
    how: dict[str, Any] = {"overwrite": given.overwrite, "output": given.output}
    finish("tune", result, out, inputs=job.inputs, images=job.images, **how)


def rehearse(
    command: str,
    head: Head,
    pair: Pair,
    settings: dict[str, Any],
    inputs: dict[str, Any],
    *,
    out: Path,
    output: Output,
) -> None:
    """Check all that `tune` would check before it starts, and say what it would do."""
    from catwise._text import value_text
    from catwise.reporting.run import RUN_FILES
    from catwise.tuning.api import check_tune

    notes = check_tune(head, pair.train, pair.valid, test=pair.test, **settings)
    shown = {**settings, "policy": settings["policy"] and str(settings["policy"])}
    shown["logits"] = settings["logits"] is not None
    chosen = settings.get("chosen")  # `extend` has none
    shown["chosen"] = chosen and len(chosen)
    if "config" in shown:
        shown["config"] = asdict(shown["config"])
    output.line("dry run: everything fits; nothing was written")
    for part in (inputs, {"settings": shown}):
        for name, values in part.items():
            output.line(f"{name}: {value_text(values)}")
    for note in notes:
        output.line(note)
    output.line(f"would write {', '.join(RUN_FILES)} to '{out}'")
    output.document(
        {
            "command": command,
            "dry_run": True,
            "out": str(out),
            "files": list(RUN_FILES),
            "inputs": inputs,
            "settings": shown,
            "notes": notes,
        }
    )
