"""`catwise demo`: the whole path on scenes of handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from catwise.cli.options import output_options, path_type, seed_option

if TYPE_CHECKING:
    from catwise.cli.console import Output

__all__ = ["command"]


@click.command("demo", short_help="Show the whole path on handwritten digits, in 90 s.")
@click.option(
    "--out",
    type=path_type(),
    default=Path("catwise-demo"),
    show_default=True,
    metavar="DIR",
    help="Where the demonstration's files go.",
)
@seed_option
@output_options
def command(*, out: Path, seed: int, output: Output) -> None:
    """Show the whole path on scenes of several handwritten digits each.

    A small network is trained as if every unknown label were negative; its features are cached; its
    head is tuned as published and by catwise; clean test scenes judge. The path of the report is
    printed last.
    """
    from catwise.demo import run_demo

    with output.progress() as progress:
        result = run_demo(out=out, seed=seed, progress=progress)
    report(result, output)


def report(result: object, output: Output) -> None:
    """Print the demonstration's table, and the report's path last."""
    raise NotImplementedError
