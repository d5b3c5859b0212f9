"""`catwise demo`: the whole path on scenes of handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from catwise.cli.options import output_options, path_type, seed_option
from catwise.cli.outputs import hold_output

if TYPE_CHECKING:
    from catwise.cli.console import Output
    from catwise.demo import DemoResult

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

    hold_output(out, parents=True)
    with output.progress() as progress:
        result = run_demo(out=out, seed=seed, progress=progress)
    show(result, output)


def show(result: DemoResult, output: Output) -> None:
    """Print the demonstration's table, what it made, and the report's path last."""
    from catwise.reporting.tables import comparison_table

    facts = result.facts
    title = f"{facts['n_test']:,} clean test scenes, {facts['n_categories']} categories"
    output.line(
        f"{facts['n_train']:,} training scenes with {facts['known_train_share']:.0%} of their "
        f"labels known; {facts['positives_taken_for_negative']:,} hidden positives were taken for "
        "negative; "
        f"{facts['n_valid']:,} validation scenes"
    )
    output.line()
    output.table(comparison_table(result.table, title=title))
    output.line(f"checkpoint:         {result.files['checkpoint']}")
    output.line(f"patched checkpoint: {result.files['tuned_checkpoint']}")
    output.line("report:")
    output.line(str(result.report))
    output.document({"command": "demo", **result.to_dict()})
