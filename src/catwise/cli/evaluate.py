"""`catwise evaluate`: a head on labelled features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from catwise.cli.inputs import (
    check_device,
    describe_features,
    describe_head,
    describe_labels,
    load_source,
    load_the_head,
    refuse_inputs,
)
from catwise.cli.options import (
    METRIC_NAMES,
    head_options,
    output_options,
    path_type,
    seed_option,
    source_options,
    table_options,
)
from catwise.cli.outputs import hold_output
from catwise.cli.prevalence import PREVALENCE_HELP, one_or_many

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.cli.options import HeadOptions, SourceOptions, TableOptions

__all__ = ["command"]

_DEFAULT_METRICS = ("average_precision", "auroc")


@click.command("evaluate", short_help="Score a head, category by category.")
@source_options()
@table_options
@head_options
@click.option(
    "--metric",
    "metrics",
    type=click.Choice(METRIC_NAMES),
    multiple=True,
    help="Repeatable.  [default: average_precision, auroc]",
)
@click.option(
    "--prevalence",
    metavar="SHARE",
    multiple=True,
    help="Average precision, precision and F1 as they would be at this share of positives: one "
    "number for all categories, " + PREVALENCE_HELP,
)
@click.option("--threshold", type=float, help="Logit for precision, recall and F1.  [default: 0]")
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Resamples for the intervals; 0 for none.",
)
@click.option(
    "--level",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the intervals.",
)
@seed_option
@click.option("--device", help="Such as cpu or cuda:0.  [default: cpu]")
@click.option("--force", is_flag=True, help="Go on although head and data look mismatched.")
@click.option("--csv", "csv_path", type=path_type(), metavar="FILE", help="Write the table as CSV.")
@output_options
def command(
    *,
    data: SourceOptions,
    table: TableOptions,
    source: HeadOptions,
    metrics: tuple[str, ...],
    prevalence: tuple[str, ...],
    threshold: float | None,
    bootstrap: int,
    level: float,
    seed: int,
    device: str | None,
    force: bool,
    csv_path: Path | None,
    output: Output,
) -> None:
    """Score a head on the known labels, category by category and in the mean.

    Rows that fitted or selected the head are found out, and the result is marked in-sample.
    """
    metrics = tuple(dict.fromkeys(metrics)) or _DEFAULT_METRICS
    shares = one_or_many(prevalence)
    from catwise.metrics.evaluate import evaluate

    check_device(device)
    if csv_path is not None:
        refuse_inputs(csv_path, data.features, data.labels, source.head, source.checkpoint)
    hold_output(csv_path)
    head = load_the_head(source)
    features, labels = load_source(data, table)
    result = evaluate(
        head,
        (features, labels),
        metrics=metrics,
        prevalence=shares,
        thresholds=threshold,
        bootstrap=bootstrap,
        level=level,
        seed=seed,
        device=device,
        force=force,
    )
    if csv_path is not None:
        from catwise._io import write_text
        from catwise.reporting.tables import rows_csv

        write_text(csv_path, rows_csv(result.records()))
    document = result.to_dict()
    _show(document, metrics, output)
    inputs = {
        "features": describe_features(data.features, features),
        "labels": describe_labels(data.labelled, labels, table),
        "head": describe_head(source, head),
    }
    output.document({"command": "evaluate", "inputs": inputs, **document})


def _show(document: dict[str, Any], metrics: tuple[str, ...], output: Output) -> None:
    from catwise.reporting.tables import evaluation_table, means_table

    title = f"{document['n_rows']:,} rows"
    rows = document["categories"]
    output.table(evaluation_table(rows, metrics, limit=output.rows, title=title))
    output.table(means_table(document["means"]))
    for note in document["notes"]:
        output.line(note)
    if document["in_sample"]:
        output.line(
            f"in sample: {document['n_in_sample']:,} of these rows fitted or selected the head; "
            "these scores are too high"
        )
