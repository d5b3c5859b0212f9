"""`catwise threshold`: from which logit a category is called positive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catwise._names import THRESHOLD_RULES
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.decisions import DecisionOptions, hold_outputs, load_decisions
from catwise.cli.inputs import refuse_inputs
from catwise.cli.options import CSV_HELP
from catwise.cli.prevalence import one_or_many

if TYPE_CHECKING:
    from catwise.decisions import Thresholds


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise threshold` is given."""

    decisions: DecisionOptions = group("Logits")
    rule: str = option(
        "f1", choices=THRESHOLD_RULES, first=True, help="What a threshold is to reach."
    )
    value: float | None = option(
        None,
        first=True,
        help="The least sensitivity, specificity or precision; the alert rate; beta of f_beta; the "
        "cost of a missed positive over that of a false alert.",
    )
    confidence: float = option(
        0.9,
        above=0,
        below=1,
        help="With which a least sensitivity, specificity or precision is reached.",
    )
    expected: bool = option(
        default=False, help="Reach it in expectation instead, without a guarantee."
    )
    calibration: Path | None = option(
        None,
        metavar="FILE",
        help="Maps by `catwise calibrate` of the same logits.  [default: fitted here]",
    )
    out: Path = option(metavar="FILE", first=True, help="The thresholds, as JSON.")
    csv_path: Path | None = option(None, names="--csv", metavar="FILE", help=CSV_HELP)
    cutoffs: Path | None = option(
        None, metavar="FILE", help="All cut-offs of the test rows, as CSV."
    )
    transformers: Path | None = option(
        None, metavar="FILE", help="Entries of a transformers config, as JSON."
    )
    report: Path | None = option(
        None, metavar="FILE", help="The report of --run with the thresholds in it, as HTML."
    )
    output: Output = group("Output")


@make_command("threshold", "Choose from which logit each category is called positive.")
def command(given: Options) -> None:
    """Choose from which logit each category is called positive.

    Rules by calibrated probabilities (f1, f_beta, cost, youden) and by counted rows (sensitivity,
    specificity and precision with a guarantee, alert_rate, prevalence). Where too few labels are
    known there is no threshold, and how many it would take. What is reached is shown on test rows,
    with intervals; never on the rows that chose.
    """
    decisions, output = given.decisions, given.output
    if given.cutoffs is not None and decisions.test_labels is None and decisions.test_split is None:
        raise click.UsageError("--cutoffs needs test rows.")
    if given.report is not None and decisions.run is None:
        raise click.UsageError("--report needs --run.")
    outputs = (given.out, given.csv_path, given.cutoffs, given.transformers, given.report)
    hold_outputs(decisions, *outputs)
    document = _document(given)
    source = load_decisions(decisions, output)
    from catwise.decisions import Calibration, threshold
    from catwise.reporting.tables import thresholds_table

    calibration = None if given.calibration is None else Calibration.load(given.calibration)
    found = threshold(
        source.source,
        source.labels,
        given.rule,
        value=given.value,
        confidence=None if given.expected else given.confidence,
        calibration=calibration,
        prevalence=one_or_many(decisions.prevalence),
        test=source.test,
        level=decisions.level,
    )
    _write(given, found, document)
    output.table(thresholds_table(found.records(), limit=output.rows))
    for one in [one for one in found.categories if one.threshold is None][: output.rows or None]:
        output.line(f"{one.category}: {one.explanation}")
    output.line(found.population)
    for note in found.notes:
        output.line(note)
    about = {"command": "threshold", "inputs": source.about, "op_threshs": found.op_threshs()}
    output.document({**about, **found.to_dict()})


def _document(given: Options) -> dict[str, Any] | None:
    """Of the run whose report is to be written."""
    folder = given.decisions.run
    if folder is None or given.report is None:
        return None
    from catwise.reporting.run import RUN_FILES, read_run

    own = (folder / name for name in RUN_FILES if name != "report.html")
    refuse_inputs(given.report, *own)
    return read_run(folder)


def _write(given: Options, found: Thresholds, document: Mapping[str, Any] | None) -> None:
    """Every file that is asked for."""
    from catwise._io import write_json, write_text
    from catwise.reporting import render_report

    found.save(given.out)
    if given.csv_path is not None:
        found.write_csv(given.csv_path)
    if given.cutoffs is not None:
        found.write_cutoffs(given.cutoffs)
    if given.transformers is not None:
        write_json(given.transformers, found.to_transformers())
    if given.report is not None and document is not None:
        with given.output.progress() as progress:
            page = {**document, "thresholds": found.to_dict()}
            write_text(given.report, render_report(page, progress=progress))
