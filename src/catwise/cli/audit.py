"""`catwise audit`: what is known of each category, and what looks odd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catwise._names import ASSUMPTIONS
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import refuse_inputs
from catwise.cli.labelled import (
    dataset_hint,
    describe_labels,
    load_chosen,
    load_dataset,
    reading_options,
    with_cell_labels,
)
from catwise.cli.options import (
    CHOSEN_HELP,
    CSV_HELP,
    REPORT_HELP,
    LabelledOptions,
    TableOptions,
)
from catwise.cli.outputs import hold_output
from catwise.cli.pages import write_page
from catwise.cli.prevalence import PREVALENCE_HELP, load_prevalence

if TYPE_CHECKING:
    from catwise.data import Dataset
    from catwise.labels import PartialLabels


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise audit` is given."""

    source: LabelledOptions = group("Labels")
    table: TableOptions = group("Label tables")
    few: int = option(
        5,
        low=1,
        help="Under so many known positives (or negatives) a category has few.",
    )
    prevalence: tuple[str, ...] = option(
        (),
        metavar="NAME=VALUE",
        first=True,
        help="The true share of positives, known from elsewhere. " + PREVALENCE_HELP,
    )
    assume: str | None = option(
        None,
        choices=ASSUMPTIONS,
        help="Estimate the share of positives where none is known, under this assumption (with "
        "--logits). scar: every positive had the same chance to become known.",
    )
    logits: Path | None = option(
        None,
        help="For --assume: logits (N, C) of a head that was not fitted on these rows.",
    )
    chosen: tuple[Path, ...] = option((), metavar="FILE", help=CHOSEN_HELP)
    csv_path: Path | None = option(None, names="--csv", metavar="FILE", first=True, help=CSV_HELP)
    report: Path | None = option(None, metavar="FILE", help=REPORT_HELP)
    output: Output = group("Output")


@make_command("audit", "Say what is known of each category.")
def command(given: Options) -> None:
    """Say what is known of each category, what fine-tuning can do with it, and what looks odd.

    Labels come from a table (--labels), or from a data set in its official layout (--dataset,
    --root). Metrics speak of the labelled part of the images; with --prevalence the audit says
    whether positives or negatives became known more often.
    """
    from catwise.labels import audit_labels, find_suspicious, selection_bias, unknown_together

    source, table, assume, logits = given.source, given.table, given.assume, given.logits
    csv_path, output = given.csv_path, given.output
    if (assume is None) != (logits is None):
        raise click.UsageError("--assume and --logits belong together.")
    _hold(given)
    shares = load_prevalence(given.prevalence)
    dataset = load_dataset(source, table)
    chosen = load_chosen(given.chosen)
    labels = with_cell_labels(dataset.labels, chosen, output)
    audit = audit_labels(labels, few=given.few, chosen=chosen)
    sample = labels if chosen is None else chosen.without(labels)
    bias = selection_bias(sample, shares) if shares else None
    estimate = None if assume is None else _estimate(labels, logits, assume)
    suspicious = find_suspicious(
        labels, splits=dataset.splits, paths=dataset.paths, counts=dataset.counts
    )
    together = unknown_together(labels)
    _write(csv_path, audit.rows)
    _show_audit(dataset, audit.rows, [*dataset.notes, *audit.notes], output)
    _show_bias(bias, output)
    _show_estimate(estimate, assume, output)
    _show_together(together, output)
    _show_findings(suspicious, output)
    _show_counts(dataset, output)
    document = {
        "command": "audit",
        "inputs": {"labels": describe_labels(source, dataset.labels, table)},
        **audit.to_dict(),
        "findings": suspicious,
        "unknown_together": together,
        "selection": bias,
        "estimated_prevalence": estimate and {"assumption": assume, "categories": estimate},
        "next": _show_next(source, table, dataset, output),
        "dataset": _about(dataset),
    }
    if given.report is not None:
        write_page(given.report, {"kind": "audit", **document}, document["inputs"], output)
    output.document(document)


def _hold(given: Options) -> None:
    """What is written is held, and is none of what is read."""
    for path in (given.csv_path, given.report):
        if path is not None:
            refuse_inputs(path, given.source.labels, given.logits)
        hold_output(path)


def _about(dataset: Dataset) -> dict[str, Any]:
    """What the reader met, for machines."""
    facts = {"splits": _split_sizes(dataset), "counts": dataset.counts}
    return {**facts, "notes": list(dataset.notes)}


def _write(path: Path | None, rows: list[dict[str, Any]]) -> None:
    from catwise._csv import rows_csv
    from catwise._io import write_text

    if path is not None:
        write_text(path, rows_csv(rows))


def _show_audit(
    dataset: Dataset, rows: list[dict[str, Any]], notes: Sequence[str], output: Output
) -> None:
    from catwise._text import plural
    from catwise.reporting.tables import audit_table

    sizes = _split_sizes(dataset)
    n_categories = plural(dataset.labels.n_categories, "category", "categories")
    title = f"{plural(len(dataset), 'row')}, {n_categories}"
    if len(sizes) > 1:
        title += " (" + ", ".join(f"{name} {n:,}" for name, n in sizes.items()) + ")"
    output.table(audit_table(rows, limit=output.rows, title=title))
    for reason, text in {row["reason"]: row["explanation"] for row in rows}.items():
        output.line(f"{reason}: {text}")
    for note in notes:
        output.line(note)


def _split_sizes(dataset: Dataset) -> dict[str, int]:
    """Rows of each split; none where rows have no split."""
    import numpy as np

    names, sizes = np.unique(dataset.splits, return_counts=True)
    pairs = zip(names.tolist(), sizes.tolist(), strict=True)
    return {name: size for name, size in pairs if name}


def _show_bias(bias: list[dict[str, Any]] | None, output: Output) -> None:
    """How the known labels compare with the given prevalences."""
    if bias is None:
        return
    from catwise._text import count, score
    from catwise.reporting.tables import build_table, numbers, text

    given = [row for row in bias if row["prevalence"] is not None]
    columns = [
        text("category"),
        *numbers(count, "known"),
        *numbers(score, **{"share positive": "share_positive"}),
        *numbers(score, "prevalence"),
        *numbers(score, **{"known | positive": "known_given_positive"}),
        *numbers(score, **{"known | negative": "known_given_negative"}),
        text("verdict"),
    ]
    output.line()
    output.line("Known labels against the prevalence:")
    output.table(build_table(given, columns, limit=output.rows, rest="rows"))
    for verdict, why in {row["verdict"]: row["explanation"] for row in given}.items():
        output.line(f"{verdict}: {why}")


def _estimate(labels: PartialLabels, path: Path | None, assumption: str) -> list[dict[str, Any]]:
    """What the share of positives of each category would be under an assumption."""
    from catwise.features import block_of, read_features
    from catwise.joining import aligned_features, join_rows
    from catwise.labels import estimate_prevalence

    assert path is not None  # noqa: S101 - the options say so
    given = read_features(path)
    rows = join_rows(given, labels, name="logits").rows
    scores = block_of(aligned_features(given, rows), 0, labels.n_rows)
    found = estimate_prevalence(scores, labels, assumption=assumption)
    names = ("prevalence", "label_frequency", "lowest", "highest")
    columns = [getattr(found, name).tolist() for name in names]
    return [
        {"category": category, **dict(zip(names, row, strict=True))}
        for category, *row in zip(labels.categories, *columns, strict=True)
    ]


def _show_estimate(
    estimate: list[dict[str, Any]] | None, assumption: str | None, output: Output
) -> None:
    """What the share of positives would be; a dash where it is unknown."""
    if estimate is None:
        return
    from catwise._text import score
    from catwise.labels import ASSUMPTIONS
    from catwise.reporting.tables import build_table, numbers, text

    titles = {"known | positive": "label_frequency", "at least": "lowest", "at most": "highest"}
    columns = [text("category"), *numbers(score, "prevalence", **titles)]
    output.line()
    output.line(f"Estimated, if this holds: {ASSUMPTIONS[str(assumption)]}")
    output.table(build_table(estimate, columns, limit=output.rows, rest="rows"))


def _show_together(together: Mapping[str, Any], output: Output) -> None:
    """Which categories are unknown in the same rows."""
    from catwise._text import count, plural, score
    from catwise.reporting.tables import build_table, numbers, text

    if together["n_categories"] < 2:
        return
    output.line()
    for names in together["same"][:5]:
        output.line(f"unknown in exactly the same rows: {_some(names)}")
    if together["n_same"] > 5:
        output.line(f"… and {together['n_same'] - 5:,} further sets of such categories")
    if not together["pairs"]:
        if not together["n_same"]:
            output.line("unknown together: no two categories more often than by chance")
        return
    columns = [
        text("category", "first"),
        text("and", "second"),
        *numbers(count, **{"both unknown": "n_together", "by chance": "expected"}),
        *numbers(score, "phi"),
    ]
    n, searched = together["n_beyond_chance"], together["n_rows_searched"]
    pairs, where = plural(n, "pair"), plural(searched, "row")
    output.line(f"Unknown together: the strongest of {pairs} beyond chance in {where}:")
    output.table(build_table(together["pairs"], columns, limit=output.rows, rest="rows"))


def _show_findings(suspicious: Sequence[Mapping[str, Any]], output: Output) -> None:
    if suspicious:
        output.line()
    for found in suspicious:
        groups = [" = ".join(map(repr, names)) for names in found["examples"][:5]]
        more = f", … ({found['n']:,} in all)" if found["n"] > 5 else ""
        output.line(f"{found['finding']}: {', '.join(groups)}{more}. {found['explanation']}")


def _show_counts(dataset: Dataset, output: Output) -> None:
    """What the reader met, as it counted it."""
    from catwise._text import value_text

    if dataset.counts:
        output.line()
    for name, value in (dataset.counts or {}).items():
        output.line(f"{name}: {value_text(value)}")


def _show_next(
    source: LabelledOptions, table: TableOptions, dataset: Dataset, output: Output
) -> dict[str, str | None]:
    """The options that read these labels, and the command that repairs a model with them."""
    import shlex

    options = reading_options(source, table)
    command = ["catwise", "fix", "--model", "KIND:NAME", "--checkpoint", "FILE"]
    command += ["--images", "DIR", *options, "--out", "DIR"]
    hint = None if source.labels is None else dataset_hint(source.labels)
    told = {"options": shlex.join(options), "fix": shlex.join(command), "dataset": hint}
    output.line()
    if hint is not None:
        output.line(hint)
    output.line(f"read with: {told['options']}")
    if dataset.labels.ids is not None:
        output.line(f"next:      {told['fix']}")
    return told


def _some(names: Sequence[str], few: int = 8) -> str:
    shown = ", ".join(map(repr, names[:few]))
    return shown + (f", … ({len(names):,} in all)" if len(names) > few else "")
