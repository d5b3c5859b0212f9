"""`catwise audit`: what is known of each category, and what looks odd."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catwise.cli.inputs import describe_dataset, load_dataset, refuse_inputs
from catwise.cli.options import labelled_options, output_options, path_type, table_options
from catwise.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from catwise.cli.console import Output
    from catwise.cli.options import LabelledOptions, TableOptions
    from catwise.data import Dataset

__all__ = ["command"]


@click.command("audit", short_help="Say what is known of each category.")
@labelled_options
@table_options
@click.option(
    "--few",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Under so many known positives (or negatives) a category has few.",
)
@click.option(
    "--prevalence",
    metavar="NAME=VALUE",
    multiple=True,
    help="The true share of positives of a category, known from elsewhere (repeatable); or a file: "
    "CSV with the columns category and prevalence, or JSON.",
)
@click.option("--csv", "csv_path", type=path_type(), metavar="FILE", help="Write the table as CSV.")
@output_options
def command(
    *,
    source: LabelledOptions,
    table: TableOptions,
    few: int,
    prevalence: tuple[str, ...],
    csv_path: Path | None,
    output: Output,
) -> None:
    """Say what is known of each category, what fine-tuning can do with it, and what looks odd.

    Labels come from a table (--labels), or from a data set in its official layout (--dataset,
    --root). Metrics speak of the labelled part of the images; with --prevalence the audit says
    whether positives or negatives became known more often.
    """
    from catwise.labels import find_suspicious, selection_bias, unknown_together

    if csv_path is not None:
        refuse_inputs(csv_path, source.labels)
    shares = load_prevalence(prevalence)
    dataset = load_dataset(source, table)
    labels = dataset.labels
    audit = labels.audit(few=few)
    bias = selection_bias(labels, shares) if shares else None
    suspicious = find_suspicious(
        labels, splits=dataset.splits, paths=dataset.paths, counts=dataset.counts
    )
    together = unknown_together(labels)
    if csv_path is not None:
        from catwise._io import write_text
        from catwise.reporting.tables import rows_csv

        write_text(csv_path, rows_csv(audit.rows))
    _show_audit(dataset, audit.rows, [*dataset.notes, *audit.notes], output)
    _show_bias(bias, output)
    _show_together(together, output)
    _show_findings(suspicious, output)
    _show_counts(dataset, output)
    output.document(
        {
            "command": "audit",
            "inputs": {"labels": describe_dataset(source, dataset, table)},
            **audit.to_dict(),
            "findings": suspicious,
            "unknown_together": together,
            "selection": bias,
            "dataset": {
                "splits": _split_sizes(dataset),
                "counts": dataset.counts,
                "notes": list(dataset.notes),
            },
        }
    )


def _show_audit(
    dataset: Dataset, rows: list[dict[str, Any]], notes: Sequence[str], output: Output
) -> None:
    from catwise.reporting.tables import audit_table
    from catwise.reporting.text import plural

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
    from catwise.reporting.text import count, score

    given = [row for row in bias if row["prevalence"] is not None]
    rows = [
        {
            "category": row["category"],
            "known": count(row["known"]),
            "share positive": score(row["share_positive"]),
            "prevalence": score(row["prevalence"]),
            "known | positive": score(row["known_given_positive"]),
            "known | negative": score(row["known_given_negative"]),
            "verdict": row["verdict"],
        }
        for row in given
    ]
    output.line()
    output.line("Known labels against the prevalence:")
    output.table(_table(rows, output.rows))
    for verdict, text in {row["verdict"]: row["explanation"] for row in given}.items():
        output.line(f"{verdict}: {text}")


def _show_together(together: Mapping[str, Any], output: Output) -> None:
    """Which categories are unknown in the same rows."""
    from catwise.reporting.text import count, plural, score

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
    rows = [
        {
            "category": pair["first"],
            "and": pair["second"],
            "both unknown": count(pair["n_together"]),
            "by chance": count(pair["expected"]),
            "phi": score(pair["phi"]),
        }
        for pair in together["pairs"]
    ]
    n, searched = together["n_beyond_chance"], together["n_rows_searched"]
    pairs, where = plural(n, "pair"), plural(searched, "row")
    output.line(f"Unknown together: the strongest of {pairs} beyond chance in {where}:")
    output.table(_table(rows, output.rows))


def _show_findings(suspicious: Sequence[Mapping[str, Any]], output: Output) -> None:
    if suspicious:
        output.line()
    for found in suspicious:
        groups = [" = ".join(map(repr, names)) for names in found["examples"][:5]]
        more = f", … ({found['n']:,} in all)" if found["n"] > 5 else ""
        output.line(f"{found['finding']}: {', '.join(groups)}{more}. {found['explanation']}")


def _show_counts(dataset: Dataset, output: Output) -> None:
    """What the reader met, as it counted it."""
    from catwise.reporting.text import value_text

    if dataset.counts:
        output.line()
    for name, value in (dataset.counts or {}).items():
        output.line(f"{name}: {value_text(value)}")


def _some(names: Sequence[str], few: int = 8) -> str:
    shown = ", ".join(map(repr, names[:few]))
    return shown + (f", … ({len(names):,} in all)" if len(names) > few else "")


def _table(rows: Sequence[Mapping[str, str]], limit: int) -> Any:
    """Rows of texts as a table for a terminal; the first column and words are flush left."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from catwise.reporting.text import clean

    table = Table(box=box.SIMPLE_HEAD)
    words = ("category", "and", "verdict")
    for name in rows[0] if rows else ():
        numeric = name not in words
        justify: Any = "right" if numeric else "left"
        table.add_column(name, justify=justify, no_wrap=numeric, overflow="fold")
    shown = rows if limit <= 0 else rows[:limit]
    for row in shown:
        table.add_row(*(Text(clean(cell)) for cell in row.values()))
    if len(rows) > len(shown):
        table.caption = f"{len(rows) - len(shown):,} further rows are not shown"
    return table


def load_prevalence(given: tuple[str, ...]) -> dict[str, float]:
    """True shares of positives from files and from NAME=VALUE; what comes later counts.

    A file is a table with the columns "category" and "prevalence", or JSON: an object of shares.

    Raises:
        ConfigError: If one is no share, or a file holds none.
        LabelError: If a table cannot be read.
    """
    shares: dict[str, float] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        path = Path(text)
        if equals and not path.is_file():
            shares[name] = _share(value, f"--prevalence {text}")
        elif not path.is_file():
            raise ConfigError(
                "a prevalence must be NAME=VALUE or a file.",
                found=f"--prevalence {text}",
                expected="such as cat=0.1, or a file that is there",
            )
        elif path.suffix.lower() == ".json":
            shares |= _json_shares(path)
        else:
            shares |= _table_shares(path)
    return shares


def _json_shares(path: Path) -> dict[str, float]:
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"cannot read prevalences from '{path}'.",
            found=getattr(error, "strerror", None) or str(error),
            expected='JSON such as {"cat": 0.1}',
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"'{path}' holds no prevalences.",
            found=type(found).__name__,
            expected='a JSON object such as {"cat": 0.1}',
        )
    return {name: _share(value, f"{name!r} in '{path}'") for name, value in found.items()}


def _table_shares(path: Path) -> dict[str, float]:
    from catwise.data.files import open_table
    from catwise.data.source import texts_of

    file = open_table(path)
    file.require("category", "the names of the categories")
    file.require("prevalence", "the share of positives of each")
    shares: dict[str, float] = {}
    row = 0
    for batch in file.batches(["category", "prevalence"]):
        values = batch.column("prevalence").to_pylist()
        for name, value in zip(texts_of(batch.column("category")).tolist(), values, strict=True):
            where = file.place(row, "prevalence")
            row += 1
            if name in shares:
                raise ConfigError(f"{where}: {name!r} is there twice.")
            if value is not None and str(value).strip():
                shares[name] = _share(value, where)
    return shares


def _share(value: Any, where: str) -> float:
    with contextlib.suppress(TypeError, ValueError):
        share = float(value)
        if not isinstance(value, bool) and 0 < share < 1:
            return share
    raise ConfigError(
        "a prevalence is a share of positives.",
        found=f"{value!r} ({where})",
        expected="a number inside (0, 1), such as cat=0.1",
    )
