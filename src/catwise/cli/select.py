"""`catwise select`: the best of several heads for each category."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from catwise._names import METRICS
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import (
    describe_features,
    environment,
    load_source,
    named_paths,
)
from catwise.cli.labelled import describe_labels, known_categories
from catwise.cli.options import FORCE_HELP, SEED_HELP, MatchOptions, SourceOptions, TableOptions
from catwise.cli.outputs import hold_output
from catwise.cli.runs import OVERWRITE_HELP, RUN_HELP, finish, read_candidate


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise select` is given."""

    candidates: tuple[str, ...] = option(
        names="--candidate",
        metavar="NAME=PATH",
        first=True,
        help="A head, a checkpoint or the folder of a run, and its name (repeat). The first, or "
        "the one called base, is the original.",
    )
    data: SourceOptions = group("Features and labels", prefix="valid-")
    table: TableOptions = group("Label tables")
    match: MatchOptions = group("Label tables")
    metric: str = option(
        "average_precision", choices=METRICS, first=True, help="Metric to optimise."
    )
    rule: str = option(
        "honest",
        choices=("honest", "greedy"),
        help="greedy: the best on validation, as published. honest: shrunk gains, so that the "
        "original stays unless the evidence says otherwise.",
    )
    seed: int = option(0, low=0, help=SEED_HELP)
    force: bool = option(default=False, help=FORCE_HELP)
    overwrite: bool = option(default=False, help=OVERWRITE_HELP)
    out: Path = option(metavar="DIR", first=True, help=RUN_HELP)
    output: Output = group("Output")


@make_command("select", "Take the best of several heads for each category.")
def command(given: Options) -> None:
    """Take, for each category, the head that validation favours.

    A run is judged by its out-of-fold logits on the rows that fitted it, a head only by rows that
    it has not seen.
    """
    candidates, data, out = named_paths(given.candidates, "--candidate"), given.data, given.out
    if len(candidates) < 2:
        raise click.BadParameter("at least two heads are needed.", param_hint="'--candidate'")
    from catwise.joining import name_rows
    from catwise.reporting.run import check_output
    from catwise.tuning import select

    hold_output(out, parents=True)
    check_output(out, overwrite=given.overwrite)
    features, labels, *_ = load_source(data, given.table)
    read = {name: read_candidate(path) for name, path in candidates.items()}
    for run in read.values():
        how = given.match.unknown_categories
        labels = known_categories(labels, run.head.categories, how, given.output)
    named = {
        name: run._replace(head=name_rows(run.head, labels.categories))
        for name, run in read.items()
    }
    with given.output.progress() as progress:
        result = select(
            named,
            valid=(features, labels),
            metric=given.metric,
            rule=given.rule,  # type: ignore[arg-type]  # one of its choices
            seed=given.seed,
            force=given.force,
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
        "valid labels": describe_labels(data, labels, given.table),
        "environment": environment(),
    }
    finish("select", result, out, inputs=inputs, overwrite=given.overwrite, output=given.output)
