"""`catwise select`: the best of several heads for each category."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catwise.cli.inputs import (
    describe_features,
    describe_labels,
    environment,
    load_source,
    name_rows,
)
from catwise.cli.options import (
    metric_option,
    output_options,
    path_type,
    seed_option,
    source_options,
    table_options,
)
from catwise.cli.outputs import hold_output
from catwise.cli.runs import finish, read_candidate

if TYPE_CHECKING:
    from catwise.cli.console import Output
    from catwise.cli.options import SourceOptions, TableOptions

__all__ = ["command"]


def _pairs(
    ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, Path]:
    """NAME=PATH texts as a table, in their order."""
    del ctx
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{text!r} is not NAME=PATH.", param=parameter)
        if name in found:
            raise click.BadParameter(f"the name {name!r} is given twice.", param=parameter)
        found[name] = Path(path)
    if len(found) < 2:
        raise click.BadParameter("at least two heads are needed.", param=parameter)
    return found


@click.command("select", short_help="Take the best of several heads for each category.")
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    required=True,
    callback=_pairs,
    metavar="NAME=PATH",
    help="A head, a checkpoint or the folder of a run, and its name (repeat). The first, or the "
    "one called base, is the original.",
)
@source_options("valid-")
@table_options
@metric_option()
@click.option(
    "--rule",
    type=click.Choice(["honest", "greedy"]),
    default="honest",
    show_default=True,
    help="greedy: the best on validation, as published. honest: the original unless the evidence "
    "says otherwise.",
)
@seed_option
@click.option("--force", is_flag=True, help="Go on although head and data look mismatched.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run there.")
@click.option(
    "--out", type=path_type(), required=True, metavar="DIR", help="Where the run shall be."
)
@output_options
def command(
    *,
    candidates: dict[str, Path],
    data: SourceOptions,
    table: TableOptions,
    metric: str,
    rule: str,
    seed: int,
    force: bool,
    overwrite: bool,
    out: Path,
    output: Output,
) -> None:
    """Take, for each category, the head that validation favours.

    A run is judged by its out-of-fold logits on the rows that fitted it, a head only by rows that
    it has not seen.
    """
    from catwise.reporting.run import check_output
    from catwise.tuning import select

    hold_output(out, parents=True)
    check_output(out, overwrite=overwrite)
    features, labels = load_source(data, table)
    read = {name: read_candidate(path) for name, path in candidates.items()}
    named = {name: run._replace(head=name_rows(run.head, labels)[0]) for name, run in read.items()}
    with output.progress() as progress:
        result = select(
            named,
            valid=(features, labels),
            metric=metric,
            rule=rule,  # type: ignore[arg-type]  # click.Choice
            seed=seed,
            force=force,
            progress=progress,
        )
    inputs: dict[str, Any] = {
        "candidates": {
            name: {
                "path": str(path),
                "sha256": named[name].head.digest,
                "out_of_fold": named[name].folds is not None,
            }
            for name, path in candidates.items()
        },
        "valid features": describe_features(data.features, features),
        "valid labels": describe_labels(data.labelled, labels, table),
        "environment": environment(),
    }
    finish("select", result, out, inputs=inputs, overwrite=overwrite, output=output)
