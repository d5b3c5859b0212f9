"""`catwise package`: model or head, calibration and thresholds, as one classifier."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import read_names, refuse_inputs
from catwise.cli.models import ROW_NAMES_HELP, AnyModelOptions, load_the_model
from catwise.cli.outputs import hold_output


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise package` is given."""

    fix: Path | None = option(
        None, metavar="DIR", first=True, help="A folder that `catwise fix` filled."
    )
    head: Path | None = option(
        None,
        metavar="FILE",
        first=True,
        help="A head, such as tune writes: to be written into --model's layer; without --model a "
        "classifier of features.",
    )
    calibration: Path | None = option(
        None, metavar="FILE", first=True, help="Maps by `catwise calibrate`, of the head's logits."
    )
    thresholds: Path | None = option(
        None, metavar="FILE", first=True, help="Thresholds by `catwise threshold`, of the same."
    )
    conformal: Path | None = option(
        None, metavar="FILE", first=True, help="Sets by `catwise conformal`, of the same."
    )
    model: AnyModelOptions = group("Model and its input")
    head_categories: Path | None = option(
        None, metavar="FILE", group="Model and its input", help=ROW_NAMES_HELP
    )
    flips: bool = option(
        default=False, help="Logits are means over an image and its mirror image, as in extract."
    )
    features: Path | str | None = option(
        None, help="The store that a head alone was tuned on: others will be refused."
    )
    overwrite: bool = option(default=False, help="Replace a classifier that is there.")
    out: Path = option(metavar="DIR", first=True, help="The classifier to make: a folder.")
    output: Output = group("Output")

    def __post_init__(self) -> None:
        has_model = self.model.model is not None
        if self.fix is not None and (has_model or self.head is not None or self.flips):
            raise click.UsageError("--fix has a model, a head and --flips of its own.")
        if self.fix is None and not has_model and self.head is None:
            raise click.UsageError("give --fix DIR, --model KIND:NAME, or --head FILE.")
        given = vars(self.model)
        lone = [item.name for item in dataclasses.fields(self.model) if given[item.name]]
        if not has_model and lone:
            raise click.UsageError(f"--{lone[0].replace('_', '-')} needs --model.")
        if self.features is not None and (has_model or self.fix is not None):
            raise click.UsageError("--features belongs to a head alone.")
        if self.flips and not has_model:
            raise click.UsageError("--flips needs --model.")
        if self.head_categories is not None and not has_model:
            raise click.UsageError("--head-categories needs --model.")

    @property
    def paths(self) -> tuple[Path | str | None, ...]:
        """Everything that is read."""
        own = (self.fix, self.head, self.calibration, self.thresholds, self.conformal)
        return (*own, self.features, self.model.checkpoint)


@make_command("package", "Put model, calibration and thresholds into one classifier.")
def command(given: Options) -> None:
    """Put head or checkpoint, calibration, thresholds and preprocessing into one folder.

    `catwise predict` and `catwise.load_classifier` take it; it holds everything that they need, a
    model card, and digests of all of it. Calibration and thresholds must be of this head's logits:
    those of the same run, not of a head into which the calibration was folded.
    """
    output = given.output
    refuse_inputs(given.out, *given.paths)
    hold_output(given.out)
    from catwise._lock import still_there
    from catwise.predicting import load_classifier, save_classifier

    source, head = _source(given)
    own: dict[str, Any] = {}
    if given.features is not None:
        from catwise.features import open_store

        own["features"] = open_store(given.features)
    if given.model.model is not None:
        own["flips"] = given.flips
    save_classifier(
        source,
        given.out,
        head=head,
        calibration=given.calibration,
        thresholds=given.thresholds,
        conformal=given.conformal,
        overwrite=given.overwrite,
        **own,
    )
    with still_there(given.out):
        made = load_classifier(given.out)
    n_thresholds = int((~(made.rules.thresholds != made.rules.thresholds)).sum())
    output.line(f"{len(made.categories):,} categories, {n_thresholds:,} with a threshold")
    output.line(made.population)
    output.line(str(given.out))
    output.document(
        {
            "command": "package",
            "out": str(given.out),
            "categories": made.categories,
            "thresholds": n_thresholds,
            "population": made.population,
            "digest": made.digest,
        }
    )


def _source(given: Options) -> tuple[Any, Any]:
    """What `save_classifier` takes, and the head that is to be written into it."""
    if given.fix is not None:
        return given.fix, None
    from catwise.heads import load_head

    head = None if given.head is None else load_head(given.head)
    if given.model.model is None:
        return head, None
    names = None if given.head_categories is None else read_names(given.head_categories)
    return load_the_model(given.model, names), head
