"""`catwise evaluate`: a head on labelled features, alone or against another one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._names import METRICS, POOLS, UNITS
from catwise._options import group, option
from catwise.cli.building import make_command, spelled_as
from catwise.cli.console import Output
from catwise.cli.inputs import (
    check_device,
    describe_features,
    describe_head,
    load_source,
    load_the_head,
    read_names,
    refuse_inputs,
)
from catwise.cli.labelled import describe_labels, known_categories, load_chosen, with_cell_labels
from catwise.cli.options import (
    CHOSEN_HELP,
    CSV_HELP,
    DEVICE_HELP,
    FORCE_HELP,
    REPORT_HELP,
    HeadOptions,
    MatchOptions,
    SourceOptions,
    TableOptions,
)
from catwise.cli.outputs import hold_output
from catwise.cli.pages import write_page
from catwise.cli.prevalence import PREVALENCE_HELP, one_or_many
from catwise.cli.thumbnails import ThumbnailOptions, open_images, thumbnails_of

if TYPE_CHECKING:
    from catwise.heads import Head

_DEFAULT_METRICS: Final = ("average_precision", "auroc")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise evaluate` is given."""

    data: SourceOptions = group("Features and labels")
    table: TableOptions = group("Label tables")
    source: HeadOptions = group("Head")
    match: MatchOptions = group("Label tables")
    metrics: tuple[str, ...] = option(
        _DEFAULT_METRICS,
        names="--metric",
        choices=METRICS,
        first=True,
        help=f"Repeatable.  [default: {', '.join(_DEFAULT_METRICS)}]",
    )
    prevalence: tuple[str, ...] = option(
        (),
        metavar="SHARE",
        help="Average precision, precision and F1 as they would be at this share of positives: one "
        "number for all categories, " + PREVALENCE_HELP,
    )
    threshold: float | None = option(None, help="Logit for precision, recall and F1.  [default: 0]")
    by: str = option(
        "image",
        choices=UNITS,
        help="What is scored as one. study: images in one folder; patient: of one group.",
    )
    pool: str = option(
        "mean", choices=POOLS, help="How the probabilities of its images become one."
    )
    chosen: tuple[Path, ...] = option((), metavar="FILE", help=CHOSEN_HELP)
    against: Path | None = option(
        None,
        metavar="FILE",
        first=True,
        help="Another head, or the checkpoint that holds it: what is better and what worse than "
        "there.",
    )
    against_key: str | None = option(
        None, metavar="KEY", help="Its weight's key, if it is in a checkpoint and not clear."
    )
    level: float = option(0.95, above=0, below=1, help="Of the intervals.")
    device: str | None = option(None, help=DEVICE_HELP)
    force: bool = option(default=False, help=FORCE_HELP)
    csv_path: Path | None = option(None, names="--csv", metavar="FILE", help=CSV_HELP)
    report: Path | None = option(None, metavar="FILE", help=REPORT_HELP)
    pictures: ThumbnailOptions = group("Images in the report")
    output: Output = group("Output")

    def __post_init__(self) -> None:
        asked = self.pictures.images is not None or self.pictures.thumbnails
        if asked and (self.against is None or self.report is None):
            raise click.UsageError(
                "--images and --thumbnails show what moved from one head to another: they need "
                "--against and --report."
            )


@make_command("evaluate", "Score a head, category by category.")
def command(given: Options) -> None:
    """Score a head on the known labels, category by category and in the mean.

    Every score has an interval, unless fewer than 3 positives or negatives are known. With
    --against the scores are compared with another head's on the same rows: differences with paired
    intervals, and what they show. Rows that fitted or selected a head are found out, and the result
    is marked in-sample.
    """
    data, source, output = given.data, given.source, given.output
    if given.against_key is not None and given.against is None:
        raise click.UsageError("--against-key needs --against.")
    shares = one_or_many(given.prevalence)
    check_device(given.device)
    _hold(given)
    head = load_the_head(source, given.table)
    other = (
        None if given.against is None else _other(given.against, given.against_key, source, head)
    )
    features, labels, by, dataset = load_source(data, given.table, given.by)
    drawn = other is not None and given.report is not None and given.by == "image"
    images = open_images(given.pictures, data, dataset) if drawn else None
    chosen = load_chosen(given.chosen)
    labels = with_cell_labels(labels, chosen, output)
    labels = known_categories(labels, head.categories, given.match.unknown_categories, output)
    more = {"prevalence": shares, "by": by, "chosen": chosen}
    found = _scored(given, head, other, (features, labels), **more)
    inputs = {
        "features": describe_features(data.features, features),
        "labels": describe_labels(data, labels, given.table),
        "head": describe_head(source, head),
    }
    if other is not None:
        inputs["against"] = {"path": str(given.against), "sha256": other.digest}
    if given.csv_path is not None:
        _write(given.csv_path, found.records())
    if given.report is not None:
        page = found.page_document()
        pictures = thumbnails_of(page.get("curves"), images, output)
        write_page(given.report, {**page, "thumbnails": pictures}, inputs, output)
    document = found.to_dict()
    if other is None:
        _show(document, tuple(dict.fromkeys(given.metrics)), output)
    else:
        _show_comparison(document, output)
    output.document({"command": "evaluate", "inputs": inputs, **document})


def _hold(given: Options) -> None:
    """What is written is held, and is none of what is read."""
    source = given.source
    for path in (given.csv_path, given.report):
        if path is not None:
            heads = source.head, source.checkpoint, given.against
            refuse_inputs(path, given.data.features, given.data.labels, *heads)
        hold_output(path)


def _scored(given: Options, head: Head, other: Head | None, data: Any, **more: Any) -> Any:
    """The evaluation, or the comparison with another head."""
    from catwise.metrics import compare_heads, evaluate

    score = evaluate if other is None else partial(compare_heads, other)
    return score(
        head,
        data,
        metrics=tuple(dict.fromkeys(given.metrics)),
        thresholds=given.threshold,
        pool=given.pool,
        level=given.level,
        device=given.device,
        force=given.force,
        curves=given.report is not None,
        **more,
    )


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    from catwise._csv import rows_csv
    from catwise._io import write_text

    if path is not None:
        write_text(path, rows_csv(rows))


def _other(path: Path, key: str | None, source: HeadOptions, head: Head) -> Head:
    """The head to compare with; one without names takes those of the head, row by row."""
    from catwise.heads import read_head
    from catwise.joining import name_rows

    names = None if source.head_categories is None else read_names(source.head_categories)
    with spelled_as({"key": "--against-key"}):
        return name_rows(read_head(path, key=key), names or head.categories)


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
