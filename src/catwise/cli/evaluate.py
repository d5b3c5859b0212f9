"""`catwise evaluate`: a head on labelled features, alone or against another one."""

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
    read_names,
    refuse_inputs,
)
from catwise.cli.options import (
    METRIC_NAMES,
    head_options,
    output_options,
    path_type,
    source_options,
    table_options,
)
from catwise.cli.outputs import hold_output
from catwise.cli.prevalence import PREVALENCE_HELP, one_or_many

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.cli.options import HeadOptions, SourceOptions, TableOptions
    from catwise.heads import Head

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
    "--against",
    type=path_type(),
    metavar="FILE",
    help="Another head, or the checkpoint that holds it: what is better and what worse than there.",
)
@click.option(
    "--against-key",
    metavar="KEY",
    help="Its weight's key, if it is in a checkpoint and not clear.",
)
@click.option(
    "--level",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the intervals.",
)
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
    against: Path | None,
    against_key: str | None,
    level: float,
    device: str | None,
    force: bool,
    csv_path: Path | None,
    output: Output,
) -> None:
    """Score a head on the known labels, category by category and in the mean.

    Every score has an interval, unless fewer than 3 positives or negatives are known. With
    --against the scores are compared with another head's on the same rows: differences with paired
    intervals, and what they show. Rows that fitted or selected a head are found out, and the result
    is marked in-sample.
    """
    metrics = tuple(dict.fromkeys(metrics)) or _DEFAULT_METRICS
    if against_key is not None and against is None:
        raise click.UsageError("--against-key needs --against.")
    shares = one_or_many(prevalence)
    check_device(device)
    if csv_path is not None:
        heads = source.head, source.checkpoint, against
        refuse_inputs(csv_path, data.features, data.labels, *heads)
    hold_output(csv_path)
    head = load_the_head(source)
    other = None if against is None else _other(against, against_key, source, head)
    features, labels = load_source(data, table)
    found = _score(
        other,
        head,
        (features, labels),
        metrics=metrics,
        prevalence=shares,
        thresholds=threshold,
        level=level,
        device=device,
        force=force,
    )
    if csv_path is not None:
        from catwise._io import write_text
        from catwise.reporting.tables import rows_csv

        write_text(csv_path, rows_csv(found.records()))
    document = found.to_dict()
    if other is None:
        _show(document, metrics, output)
    else:
        _show_comparison(document, output)
    inputs = {
        "features": describe_features(data.features, features),
        "labels": describe_labels(data.labelled, labels, table),
        "head": describe_head(source, head),
    }
    if other is not None:
        inputs["against"] = {"path": str(against), "sha256": other.digest}
    output.document({"command": "evaluate", "inputs": inputs, **document})


def _other(path: Path, key: str | None, source: HeadOptions, head: Head) -> Head:
    """The head to compare with; one without names takes those of the head, row by row."""
    from catwise.heads import read_head
    from catwise.joining import has_default_names

    names = None if source.head_categories is None else read_names(source.head_categories)
    other = read_head(path, key=key)
    if has_default_names(other.categories) and other.n_categories == len(names or head.categories):
        return other.replace(categories=names or head.categories)
    return other


def _score(other: Head | None, head: Head, data: Any, **options: Any) -> Any:
    """An evaluation of one head, or a comparison of two."""
    from catwise.metrics import compare_heads, evaluate

    if other is None:
        return evaluate(head, data, **options)
    return compare_heads(other, head, data, **options)


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


def _show_comparison(document: dict[str, Any], output: Output) -> None:
    from catwise.reporting.summary import metric_label
    from catwise.reporting.tables import differences_table

    output.line(document["sentence"])
    for one in document["comparisons"]:
        output.line()
        title = f"{metric_label(one['metric'])} on {one['n_rows']:,} rows"
        output.table(differences_table(one, limit=output.rows, title=title))
    for note in document["notes"]:
        output.line(note)
