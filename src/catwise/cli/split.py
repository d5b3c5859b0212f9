"""`catwise split`: assign images to splits, groups whole, stratified over partial labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import refuse_inputs
from catwise.cli.labelled import describe_labels, load_dataset
from catwise.cli.options import SEED_HELP, LabelledOptions, TableOptions
from catwise.cli.outputs import hold_output
from catwise.cli.tables import TableWriter, WrittenOptions
from catwise.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from catwise.data import Dataset


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise split` is given."""

    source: LabelledOptions = group("Labels")
    table: TableOptions = group("Label tables")
    share: tuple[str, ...] = option(
        metavar="NAME=SHARE",
        first=True,
        help="A split and its share of the images, such as valid=0.2 (repeatable; their sum is 1).",
    )
    seed: int = option(0, low=0, help=SEED_HELP)
    out: Path = option(
        metavar="FILE",
        first=True,
        help="The label table to write, with the column of splits (.csv).",
    )
    written: WrittenOptions = group("Output")
    force: bool = option(default=False, help="Replace a file of this name.")
    output: Output = group("Output")


@make_command("split", "Assign images to splits, groups whole.")
def command(given: Options) -> None:
    """Assign images to splits and write one label table that says which.

    Groups (patients) stay whole. Known positives and negatives of every category are spread as the
    shares say. The same seed gives the same splits; they depend on the names of groups or the ids
    of rows, not on their order. What is read may be one split of a data set (--split).
    """
    source, table, out, output = given.source, given.table, given.out, given.output
    shares = _shares(given.share)
    refuse_inputs(out, source.labels)
    hold_output(out)
    if out.exists() and not given.force:
        raise OutputError(f"'{out}' exists.", remedy="another name, or --force to replace it")
    dataset = load_dataset(source, table)
    assigned = dataset.with_splits(shares, seed=given.seed)
    writer = TableWriter(assigned, table, source, given.written, home=out.parent)
    writer.check(assigned.labels)
    writer.write(assigned.labels, out)
    splits = [_about(assigned.split(name), name) for name in shares]
    for row in splits:
        groups = "" if row["groups"] is None else f" of {row['groups']:,} groups"
        output.line(
            f"{row['split']}: {row['rows']:,} images{groups}; {row['positive']:,} known positives, "
            f"{row['negative']:,} negatives; {row['categories_both']:,} of "
            f"{assigned.labels.n_categories:,} categories have both"
        )
    output.line(f"read it with: --labels {out} {writer.reading}")
    output.document(
        {
            "command": "split",
            "inputs": {"labels": describe_labels(source, dataset.labels, table)},
            "seed": given.seed,
            "table": str(out),
            "columns": writer.columns,
            "splits": splits,
        }
    )


def _shares(given: tuple[str, ...]) -> dict[str, float]:
    """Names of splits and their shares."""
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
