"""`catwise calibrate`: probabilities that mean what they say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from catwise._names import CALIBRATIONS
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.decisions import HEAD, DecisionOptions, hold_outputs, load_decisions
from catwise.cli.options import CSV_HELP, REPORT_HELP
from catwise.cli.pages import write_page
from catwise.cli.prevalence import one_or_many


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise calibrate` is given."""

    decisions: DecisionOptions = group("Logits")
    method: str = option(
        "affine",
        choices=CALIBRATIONS,
        first=True,
        help="affine: scale and offset, the slope shrunk to that of all categories. isotonic and "
        "venn_abers need 1,000 known positives. choose: by held-out log-loss where there are as "
        "many, else affine.",
    )
    out: Path = option(metavar="FILE", first=True, help="The maps, as JSON.")
    csv_path: Path | None = option(None, names="--csv", metavar="FILE", help=CSV_HELP)
    head_out: Path | None = option(
        None, metavar="FILE", help="The head of --run with the maps folded in (affine ones only)."
    )
    report: Path | None = option(None, metavar="FILE", help=REPORT_HELP)
    output: Output = group("Output")


@make_command("calibrate", "Calibrate probabilities on rows that fitted nothing.")
def command(given: Options) -> None:
    """Fit a map from logits to calibrated logits, category by category.

    The out-of-fold logits of a run of `catwise tune` are used, with the labels of the rows that it
    cross-fitted, or logits of other rows that fitted nothing. With test rows, log-loss, Brier score
    and calibration error are shown before and after. No rank changes by an affine map.
    """
    decisions, output = given.decisions, given.output
    if given.head_out is not None and decisions.run is None:
        raise click.UsageError("--head-out needs --run.")
    hold_outputs(decisions, given.out, given.csv_path, given.head_out, given.report)
    source = load_decisions(decisions, output)
    from catwise.decisions import calibrate
    from catwise.heads import load_head, save_head
    from catwise.reporting.tables import calibration_table

    found = calibrate(
        source.source,
        source.labels,
        method=given.method,
        prevalence=one_or_many(decisions.prevalence),
        test=source.test,
        level=decisions.level,
    )
    if given.head_out is not None:
        save_head(found.fold(load_head((decisions.run or Path()) / HEAD)), given.head_out)
    found.save(given.out)
    if given.csv_path is not None:
        found.write_csv(given.csv_path)
    if given.report is not None:
        write_page(given.report, found, source.about, output)
    output.table(calibration_table(found.records(), limit=output.rows))
    output.line(found.population)
    for comparison in (found.test or {}).values():
        output.line(comparison.sentence())
    for note in found.notes:
        output.line(note)
    output.document({"command": "calibrate", "inputs": source.about, **found.to_dict()})
