"""`catwise join`: heads of different categories as one; rows left out, or in another order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import read_names
from catwise.cli.outputs import hold_output

if TYPE_CHECKING:
    from catwise.heads import Head


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise join` is given."""

    heads: tuple[Path, ...] = option(
        names="--head",
        metavar="PATH",
        first=True,
        help="A head, a checkpoint or the folder of a run (repeat); all over one backbone.",
    )
    head_categories: Path | None = option(
        None,
        metavar="FILE",
        help="Names of the first one's rows, one a line, where it has none.",
    )
    head_key: str | None = option(
        None, metavar="KEY", help="The weight's key in the first one, if it is a checkpoint."
    )
    drop: tuple[str, ...] = option(
        (), metavar="NAME", first=True, help="A category that is left out (repeatable)."
    )
    order: Path | None = option(
        None,
        metavar="FILE",
        first=True,
        help="The names of the rows that the new head gets, one a line, in their order; others are "
        "left out.",
    )
    out: Path = option(metavar="FILE", first=True, help="The new head.")
    overwrite: bool = option(default=False, help="Replace a file that is there.")
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if self.drop and self.order is not None:
            raise click.UsageError("give either --drop or --order.")
        changes = self.drop or self.order is not None or self.head_categories is not None
        if len(self.heads) == 1 and not changes:
            raise click.UsageError("give several --head, or --drop, --order or --head-categories.")


@make_command("join", "Put heads of different categories together, or leave rows out.")
def command(given: Options) -> None:
    """Put the rows of several heads over one backbone into one head, or rows of one.

    Their numbers do not change. Whether heads belong to one backbone cannot be seen from them: only
    that they take as many features. `catwise apply --resize` writes the new head into a copy of the
    model and runs it.
    """
    names = None if given.head_categories is None else read_names(given.head_categories)
    order = None if given.order is None else read_names(given.order)
    from catwise.heads import save_head
    from catwise.heads.fit import check_destination

    hold_output(given.out)
    files = [path for path in given.heads if path.is_file()]
    check_destination(given.out, files, what="one of the inputs", overwrite=given.overwrite)
    first, *others = _read(given.heads, names, given.head_key)
    joined = first.join(*others) if others else first
    head = joined
    if order is not None:
        head = joined.take_categories(order)
    elif given.drop:
        head = joined.drop_categories(given.drop)
    save_head(head, given.out)
    left_out = [name for name in joined.categories if name not in set(head.categories)]
    output = given.output
    output.line(
        f"{head.n_categories:,} of {joined.n_categories:,} rows of {len(given.heads)} "
        f"head{'s' if others else ''}, {head.n_features:,} features"
    )
    if left_out:
        output.line(f"left out: {', '.join(left_out)}")
    output.line(str(given.out))
    output.document(
        {
            "command": "join",
            "out": str(given.out),
            "heads": [str(path) for path in given.heads],
            "categories": list(head.categories),
            "left_out": left_out,
            "n_features": head.n_features,
            "sha256": head.digest,
        }
    )


def _read(paths: tuple[Path, ...], names: list[str] | None, key: str | None) -> list[Head]:
    """All heads; the first one's rows may be named."""
    from catwise.cli.runs import read_candidate
    from catwise.heads import read_head

    first = paths[0]
    is_run = first.is_dir()
    head = read_candidate(first).head if is_run else read_head(first, categories=names, key=key)
    if is_run and names is not None:
        head = head.replace(categories=names)
    return [head, *(read_candidate(path).head for path in paths[1:])]
