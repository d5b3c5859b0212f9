"""`catwise tune`: features, partly known labels and a trained head in, a better head out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from catwise.cli.inputs import (
    check_device,
    describe_head,
    environment,
    load_logits,
    load_pair,
    load_policy,
    load_the_head,
    name_rows,
)
from catwise.cli.options import (
    head_options,
    metric_option,
    output_options,
    pair_options,
    path_type,
    policy_options,
    seed_option,
    table_options,
)
from catwise.cli.outputs import hold_output
from catwise.cli.runs import finish

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.cli.inputs import Pair
    from catwise.cli.options import HeadOptions, PairOptions, PolicyOptions, TableOptions
    from catwise.heads import Head

__all__ = ["command"]

METHODS: Final = ("bp_bce", "bp_asl", "ga")
"""Written here a second time, since their home loads torch; a test compares them."""


@click.command("tune", short_help="Make a trained head better with the labels that are known.")
@pair_options
@table_options
@policy_options
@head_options
@click.option(
    "--logits",
    type=path_type(),
    metavar="FILE",
    help="The model's own logits of the training rows, (N, C): they must equal the head's.",
)
@metric_option()
@click.option(
    "--preset",
    type=click.Choice(["default", "paper"]),
    default="default",
    show_default=True,
    help="paper: as published, step for step.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    help="For paper (repeatable).  [default: the preset's]",
)
@click.option(
    "--validation",
    type=click.Choice(["fit_and_select", "select"]),
    help="What validation labels are used for.  [default: fit_and_select; paper: select]",
)
@seed_option
@click.option("--device", help="Such as cpu or cuda:0.  [default: cpu]")
@click.option("--force", is_flag=True, help="Go on although head and data look mismatched.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything, say what would run; write nothing."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier run there.")
@click.option(
    "--out", type=path_type(), required=True, metavar="DIR", help="Where the run shall be."
)
@output_options
def command(
    *,
    data: PairOptions,
    table: TableOptions,
    policy: PolicyOptions,
    source: HeadOptions,
    logits: Path | None,
    metric: str,
    preset: str,
    methods: tuple[str, ...],
    validation: str | None,
    seed: int,
    device: str | None,
    force: bool,
    dry_run: bool,
    overwrite: bool,
    out: Path,
    output: Output,
) -> None:
    """Make a trained head better with the labels that are really known.

    Features are what the head is given by the model: one row for each image. DIR gets the tuned
    head, the records of all categories (JSON, CSV), the configuration and report.html. Test rows,
    which fit and choose nothing, judge the result where there are any.
    """
    from catwise._choices import check_choices

    check_choices(preset, methods, validation, has_valid=data.valid is not None)
    fitting = load_policy(policy)
    from catwise.reporting.run import check_output

    if not dry_run:
        hold_output(out, parents=True)
    check_output(out, overwrite=overwrite)
    check_device(device)
    pair = load_pair(data, table)
    head, named = name_rows(load_the_head(source), pair.train[1])
    about = describe_head(source, head)
    if named:
        about["names"] = "of the label columns, in their order"
    inputs = {"head": about, **pair.about, "environment": environment()}
    settings: dict[str, Any] = {
        "metric": metric,
        "preset": preset,
        "methods": list(methods) or None,
        "validation": validation,
        "seed": seed,
        "device": device,
        "force": force,
        "policy": fitting,
        "logits": None if logits is None else load_logits(logits, data, table, pair),
    }
    if dry_run:
        _rehearse(head, pair, settings, inputs, out=out, output=output)
        return
    from catwise.tuning import tune

    with output.progress() as progress:
        result = tune(head, pair.train, pair.valid, test=pair.test, progress=progress, **settings)
    finish("tune", result, out, inputs=inputs, overwrite=overwrite, output=output)


def _rehearse(
    head: Head,
    pair: Pair,
    settings: dict[str, Any],
    inputs: dict[str, Any],
    *,
    out: Path,
    output: Output,
) -> None:
    """Check all that `tune` would check before it starts, and say what it would do."""
    from catwise._text import value_text
    from catwise.reporting.run import RUN_FILES

    notes = _check_doors(head, pair, settings)
    shown = {**settings, "policy": settings["policy"] and str(settings["policy"])}
    shown["logits"] = settings["logits"] is not None
    output.line("dry run: everything fits; nothing was written")
    for part in (inputs, {"settings": shown}):
        for name, values in part.items():
            output.line(f"{name}: {value_text(values)}")
    for note in notes:
        output.line(note)
    output.line(f"would write {', '.join(RUN_FILES)} to '{out}'")
    output.document(
        {
            "command": "tune",
            "dry_run": True,
            "out": str(out),
            "files": list(RUN_FILES),
            "inputs": inputs,
            "settings": shown,
            "notes": notes,
        }
    )


def _check_doors(head: Head, pair: Pair, settings: dict[str, Any]) -> list[str]:
    """All that `tune` refuses before it starts: options, rows, columns, values, a mismatch."""
    from catwise.tuning.account.held_out import open_test
    from catwise.tuning.inputs import check_logits, check_sources, open_work
    from catwise.tuning.plan import make_plan

    plan = make_plan(
        settings["preset"],
        settings["methods"],
        settings["validation"],
        settings["metric"],
        config=None,
        has_valid=pair.valid is not None,
    )
    fitting = {name: settings[name] for name in ("policy", "seed", "device")}
    work = open_work(head, pair.train, pair.valid, **fitting)
    check_logits(work, settings["logits"])
    others = {"training": pair.train, "validation": pair.valid}
    _, notes = open_test(work, pair.test, others, plan.metric, force=settings["force"])
    train, valid = (
        None if data is None else work.scored.logits(data.features)
        for data in (work.train, work.valid)
    )
    return work.notes + check_sources(work, train, valid, force=settings["force"]) + notes
