"""`catwise demo`: the whole path on scenes of handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.options import SEED_HELP
from catwise.cli.outputs import hold_output

if TYPE_CHECKING:
    from catwise.demo import DemoResult


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise demo` is given."""

    out: Path = option(
        Path("catwise-demo"),
        metavar="DIR",
        first=True,
        help="Output directory of the demonstration's files.",
    )
    seed: int = option(0, low=0, help=SEED_HELP)
    output: Output = group("Output")


@make_command("demo", "Show the whole path on handwritten digits, in 90 s.")
def command(given: Options) -> None:
    """Show the whole path on scenes of several handwritten digits each.

    A small network is trained as if every unknown label were negative; its features are cached; its
    head is tuned as published and by catwise; clean test scenes judge. The path of the report is
    printed last.
    """
    from catwise.demo import run_demo

    hold_output(given.out, parents=True)
    with given.output.progress() as progress:
        result = run_demo(out=given.out, seed=given.seed, progress=progress)
    show(result, given.output)


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
