"""`catwise ensemble`: one answer of several models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catwise._names import ENSEMBLE_METHODS, OUTPUT_KINDS
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import refuse_inputs
from catwise.cli.members import (
    OTHER_ROWS,
    Both,
    LabelSides,
    Members,
    Places,
    load_both,
    load_members,
)
from catwise.cli.options import CSV_HELP, FORCE_HELP, REPORT_HELP
from catwise.cli.outputs import hold_output
from catwise.cli.pages import write_page
from catwise.cli.prevalence import PREVALENCE_HELP, one_or_many

if TYPE_CHECKING:
    from catwise.decisions import Combined, Ensemble
    from catwise.heads import Head


@dataclass(frozen=True, kw_only=True)
class Options(LabelSides):
    """What `catwise ensemble` is given."""

    members: tuple[str, ...] = option(
        names="--member",
        metavar="NAME=PLACE",
        first=True,
        help="A run of `catwise tune`, or outputs of a model for labelled rows that did not fit "
        "it: a table with ids in the first column, .npy, .npz, .safetensors (repeat).",
    )
    kind: str = option(
        "logits",
        choices=OUTPUT_KINDS,
        help="What files of outputs hold; of scores only the order means something.",
    )
    method: str | None = option(
        None,
        choices=ENSEMBLE_METHODS,
        help="What is averaged.  [default: probability; rank where members give none]",
    )
    weights: tuple[str, ...] = option(
        (),
        metavar="NAME=VALUE",
        help="Weight of a member (repeat for each), or: fitted.  [default: equal]",
    )
    prevalence: tuple[str, ...] = option(
        (),
        metavar="SHARE",
        help="Share of positives among the images that will be met: one number for all "
        "categories, " + PREVALENCE_HELP,
    )
    test_member: tuple[str, ...] = option(
        (),
        metavar="NAME=PLACE",
        group=OTHER_ROWS,
        help="Test rows of a member: features for the head of a run, or outputs (repeat).",
    )
    predict_member: tuple[str, ...] = option(
        (),
        metavar="NAME=PLACE",
        group=OTHER_ROWS,
        help="Rows to predict, of each member (repeat).  [default: the test rows]",
    )
    level: float = option(0.95, above=0, below=1, help="Of the intervals.")
    force: bool = option(default=False, help=FORCE_HELP)
    out: Path = option(metavar="FILE", first=True, help="The ensemble, as JSON.")
    csv_path: Path | None = option(None, names="--csv", metavar="FILE", help=CSV_HELP)
    predictions: Path | None = option(
        None, metavar="FILE", help="Probabilities of the rows to predict, as CSV."
    )
    submission: Path | None = option(
        None, metavar="FILE", help="The same, in the layout of the CheXpert competition."
    )
    logits_out: Path | None = option(
        None,
        metavar="FILE",
        help="Logits of the rows that calibrated (.npz), for --logits of threshold and conformal.",
    )
    head_out: Path | None = option(
        None,
        metavar="FILE",
        help="The one head that a mean of logits is, of runs on the same features.",
    )
    report: Path | None = option(None, metavar="FILE", help=REPORT_HELP)
    output: Output = group("Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.test_member) != self.has_test:
            raise click.UsageError(
                "test rows need --test-member, and --test-labels or --test-split."
            )
        if (self.predictions or self.submission) and not (self.predict_member or self.test_member):
            raise click.UsageError("predictions need --predict-member, or test rows.")
        if self.submission is not None and "study" not in {self.by, self.preset and "study"}:
            raise click.UsageError("--submission needs --by study.")
        if self.logits_out is not None and (self.by or self.preset or "image") != "image":
            raise click.UsageError("--logits-out is of images.")
        if self.predict_member and self.by == "patient":
            raise click.UsageError("--predict-member tells no patients.")

    @property
    def outputs(self) -> tuple[Path | None, ...]:
        """Everything that is written."""
        files = self.predictions, self.submission, self.logits_out, self.head_out
        return self.out, self.csv_path, self.report, *files


@make_command("ensemble", "Make one answer of several models.")
def command(given: Options) -> None:
    """Make one answer of several models: checkpoints, backbones, seeds, views of an image.

    The mean of probabilities, each member calibrated on rows that did not fit it (a run brings its
    out-of-fold logits). Where a member gives no probabilities, ranks are averaged. The ensemble is
    compared with every member on test rows; a difference that is not shown is undecided.
    """
    places = Places.of(given.members, given.test_member, given.predict_member)
    for path in given.outputs:
        if path is not None:
            refuse_inputs(path, given.data.labels, given.test_labels, *places.paths)
        hold_output(path)
    labels = load_both(given)
    members = load_members(places.members, labels.valid.categories)
    test = None
    if labels.test is not None:
        test = members.rows(places.test), labels.test
    from catwise.decisions import ensemble

    kinds = {name: "logits" if name in members.heads else given.kind for name in members.given}
    with given.output.progress() as progress:
        found = ensemble(
            members.given,
            labels.valid,
            kind=kinds,
            method=given.method or labels.preset.get("method"),
            weights=_weights(given.weights),
            prevalence=one_or_many(given.prevalence),
            by=labels.by,
            pool=labels.pool,
            test=test,
            metrics=labels.preset.get("metrics"),
            level=given.level,
            force=given.force,
            progress=progress,
        )
    said = _said(found, places, members, labels)
    if given.logits_out is not None:
        members.save_logits(given.logits_out, found, labels.valid)
    _write(given, found, said, members.heads)
    about = labels.about | {"members": places.about}
    if given.report is not None:
        write_page(given.report, found, about, given.output)
    _show(given.output, found, about)


def _weights(given: tuple[str, ...]) -> str | dict[str, float] | None:
    """What --weights says."""
    if not given or given == ("fitted",):
        return given[0] if given else None
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(
                f"{text!r} is not NAME=VALUE, nor fitted alone.", param_hint="'--weights'"
            )
    return found


def _said(found: Ensemble, places: Places, members: Members, labels: Both) -> Combined | None:
    """What the ensemble says of the rows to predict: those without labels, else the test rows."""
    if places.predict:
        return found.combine(members.rows(places.predict))
    if labels.test is None:
        return None
    rows, test = members.rows(places.test), labels.test
    by = labels.by if isinstance(labels.by, dict) else None
    return found.combine(rows, ids=test.ids, groups=test.groups, by=by)


def _write(
    given: Options, found: Ensemble, said: Combined | None, heads: Mapping[str, Head]
) -> None:
    """Every file that was asked for."""
    from catwise.decisions import write_probabilities, write_submission

    if given.head_out is not None:
        from catwise.heads import save_head

        save_head(found.collapse(heads), given.head_out)
    found.save(given.out)
    if given.csv_path is not None:
        found.write_csv(given.csv_path)
    if given.predictions is not None and said is not None:
        write_probabilities(given.predictions, said, found.categories, by=found.by)
    if given.submission is not None and said is not None:
        write_submission(given.submission, said, found.categories)


def _show(output: Output, found: Ensemble, about: dict[str, Any]) -> None:
    from catwise.reporting.tables import ensemble_table

    names = [one.name for one in found.members]
    metric = next(iter(found.scores or {}), None)
    output.table(ensemble_table(found.records(), names, metric=metric, limit=output.rows))
    output.line(found.calibration.population)
    for line in (*found.sentences(), *found.notes):
        output.line(line)
    document = found.to_dict()
    del document["calibration"]
    document["members"] = [{"name": one.name, "kind": one.kind} for one in found.members]
    output.document({"command": "ensemble", "inputs": about, **document})
