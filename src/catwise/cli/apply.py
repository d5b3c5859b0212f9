"""`catwise apply`: a tuned head into a copy of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from catwise.cli.inputs import read_names
from catwise.cli.options import output_options, path_type

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output

__all__ = ["command"]


@click.command("apply", short_help="Write a tuned head into a copy of a checkpoint.")
@click.option(
    "--head", type=path_type(), required=True, metavar="FILE", help="The head that tune wrote."
)
@click.option(
    "--checkpoint",
    type=path_type(),
    required=True,
    metavar="FILE",
    help="The model's checkpoint (.safetensors, .pt); it is never changed.",
)
@click.option("--out", type=path_type(), required=True, metavar="FILE", help="The new checkpoint.")
@click.option(
    "--name",
    "--head-key",
    "name",
    metavar="KEY",
    help="The weight's key, such as fc.weight or state_dict_ema:fc.weight; found if not given.",
)
@click.option("--bias-key", metavar="KEY", help="The bias's key, if named otherwise.")
@click.option(
    "--head-categories",
    type=path_type(),
    metavar="FILE",
    help="Names of the checkpoint's rows, one a line: the head's rows are matched by name and may "
    "be some of them.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@output_options
def command(
    *,
    head: Path,
    checkpoint: Path,
    out: Path,
    name: str | None,
    bias_key: str | None,
    head_categories: Path | None,
    overwrite: bool,
    output: Output,
) -> None:
    """Write a tuned head into a copy of a checkpoint.

    Only the head's bytes change. Names, dtypes, container and all other tensors stay bit for bit,
    and nothing in the checkpoint is executed.
    """
    from catwise.heads import load_head, write_head

    names = None if head_categories is None else read_names(head_categories)
    tuned = load_head(head)
    report = write_head(
        checkpoint, tuned, out, key=name, bias_key=bias_key, categories=names, overwrite=overwrite
    )
    output.line(f"{report} written")
    output.line(str(out))
    output.document(
        {
            "command": "apply",
            "out": str(out),
            "key": report.location.name,
            "bias_key": report.location.bias_key,
            "rows": report.rows,
            "n_categories": report.location.n_categories,
            "rounding": report.cast or None,
        }
    )
