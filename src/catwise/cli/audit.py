"""`catwise audit`: what is known of each category."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from catwise.cli.inputs import describe_labels, load_labels
from catwise.cli.options import output_options, path_type, table_options

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.cli.options import TableOptions

__all__ = ["command"]


@click.command("audit", short_help="Say what is known of each category.")
@click.option(
    "--labels", type=path_type(), required=True, metavar="FILE", help="CSV, TSV or Parquet."
)
@table_options
@click.option("--split-column", metavar="NAME", help="Column that tells the split of each row.")
@click.option("--split", metavar="VALUE", help="Only the rows of this split.")
@click.option(
    "--few",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Under so many known positives (or negatives) a category has few.",
)
@click.option("--csv", "csv_path", type=path_type(), metavar="FILE", help="Write the table as CSV.")
@output_options
def command(
    *,
    labels: Path,
    table: TableOptions,
    split_column: str | None,
    split: str | None,
    few: int,
    csv_path: Path | None,
    output: Output,
) -> None:
    """Say what is known of each category, and what fine-tuning can do with it."""
    if split is not None and split_column is None:
        raise click.UsageError("--split needs --split-column.")
    found = load_labels(labels, table, split_column=split_column, split=split)
    audit = found.audit(few=few)
    from catwise.reporting.tables import audit_table, rows_csv

    if csv_path is not None:
        from catwise._io import write_text

        write_text(csv_path, rows_csv(audit.rows))
    title = f"{found.n_rows:,} rows, {found.n_categories:,} categories"
    output.table(audit_table(audit.rows, limit=output.rows, title=title))
    for reason, text in {row["reason"]: row["explanation"] for row in audit.rows}.items():
        output.line(f"{reason}: {text}")
    for note in audit.notes:
        output.line(note)
    inputs = {"labels": describe_labels(labels, found, table)}
    output.document({"command": "audit", "inputs": inputs, **audit.to_dict()})
