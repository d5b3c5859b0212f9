"""`catwise split`: deal images into splits, groups whole, stratified over partial labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from catwise.cli.inputs import refuse_inputs
from catwise.cli.labelled import describe_labels, load_dataset
from catwise.cli.options import (
    labelled_options,
    output_options,
    path_type,
    seed_option,
    table_options,
)
from catwise.cli.outputs import hold_output
from catwise.cli.tables import TableWriter, written_table_options
from catwise.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.cli.options import LabelledOptions, TableOptions
    from catwise.data import Dataset

__all__ = ["command"]


@click.command("split", short_help="Deal images into splits, groups whole.")
@labelled_options
@table_options
@click.option(
    "--share",
    metavar="NAME=SHARE",
    multiple=True,
    required=True,
    help="A split and its share of the images, such as valid=0.2 (repeatable; their sum is 1).",
)
@seed_option
@click.option(
    "--out",
    type=path_type(),
    required=True,
    metavar="FILE",
    help="Where the label table with the column of splits shall be (.csv).",
)
@written_table_options
@click.option("--force", is_flag=True, help="Replace a file of this name.")
@output_options
def command(
    *,
    source: LabelledOptions,
    table: TableOptions,
    share: tuple[str, ...],
    seed: int,
    out: Path,
    out_encoding: str,
    out_layout: str,
    force: bool,
    output: Output,
) -> None:
    """Deal images into splits and write one label table that tells them.

    Groups (patients) stay whole. Known positives and negatives of every category are spread as the
    shares say. The same seed gives the same splits; they hang on the names of groups or the ids of
    rows, not on their order. What is read may be one split of a data set (--split).
    """
    shares = _shares(share)
    refuse_inputs(out, source.labels)
    hold_output(out)
    if out.exists() and not force:
        raise OutputError(f"'{out}' exists.", remedy="another name, or --force to replace it")
    dataset = load_dataset(source, table)
    dealt = dataset.with_splits(shares, seed=seed)
    writer = TableWriter(dealt, table, source, out_encoding, out_layout)
    writer.check(dealt.labels)
    writer.write(dealt.labels, out)
    splits = [_about(dealt.split(name), name) for name in shares]
    for row in splits:
        groups = "" if row["groups"] is None else f" of {row['groups']:,} groups"
        output.line(
            f"{row['split']}: {row['rows']:,} images{groups}; {row['positive']:,} known positives, "
            f"{row['negative']:,} negatives; {row['categories_both']:,} of "
            f"{dealt.labels.n_categories:,} categories have both"
        )
    output.line(f"read it with: --labels {out} {writer.reading}")
    output.document(
        {
            "command": "split",
            "inputs": {"labels": describe_labels(source, dataset.labels, table)},
            "seed": seed,
            "table": str(out),
            "columns": writer.columns,
            "splits": splits,
        }
    )


def _shares(given: tuple[str, ...]) -> dict[str, float]:
    """Names of splits and their shares.

    Raises:
        ConfigError: If one is not NAME=SHARE, or comes twice.
    """
    shares: dict[str, float] = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not name or name in shares or number != number:  # noqa: PLR0124 - NaN
            raise ConfigError(
                "a share must be NAME=SHARE, and each name once.",
                found=f"--share {text}",
                expected="such as --share train=0.8 --share valid=0.2",
            )
        shares[name] = number
    return shares


def _about(part: Dataset, name: str) -> dict[str, Any]:
    counts = part.labels.counts()
    return {
        "split": name,
        "rows": len(part),
        "groups": None if part.groups is None else len(set(part.groups.tolist())),
        "positive": int(counts.positive.sum()),
        "negative": int(counts.negative.sum()),
        "categories_both": int(((counts.positive > 0) & (counts.negative > 0)).sum()),
    }
