"""`catwise extend`: rows of a head for categories that the model never had."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from catwise._configs import TuneConfig
from catwise._names import check_choices
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import (
    check_device,
    describe_head,
    environment,
    load_pair,
    load_policy,
    load_the_head,
)
from catwise.cli.options import DEVICE_HELP, HeadOptions, PairOptions, PolicyOptions, TableOptions
from catwise.cli.outputs import hold_output
from catwise.cli.runs import OVERWRITE_HELP, RUN_HELP, finish
from catwise.cli.tune import rehearse


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise extend` is given."""

    data: PairOptions = group("Features and labels")
    table: TableOptions = group("Label tables")
    policy: PolicyOptions = group("Fitting")
    source: HeadOptions = group("Head")
    config: TuneConfig = group("Fitting")
    device: str | None = option(None, group="Fitting", help=DEVICE_HELP)
    dry_run: bool = option(
        default=False, help="Check everything, say what would run; write nothing."
    )
    overwrite: bool = option(default=False, help=OVERWRITE_HELP)
    out: Path = option(metavar="DIR", first=True, help=RUN_HELP)
    output: Output = group("Output")


@make_command("extend", "Fit rows for categories that the model never had.")
def command(given: Options) -> None:
    """Fit rows for the categories of the labels that the head does not have.

    Its own rows stay as they are. The new ones are fitted as `catwise tune` fits, from nothing:
    "before" is a row that says the same of every image. DIR gets the whole head, with the records
    of the new categories; `catwise apply --resize` writes it into a copy of the model.
    """
    config, data, out, output = given.config, given.data, given.out, given.output
    check_choices(
        config.preset, config.methods, config.validation, has_valid=data.valid is not None
    )
    policy = load_policy(given.policy)
    from catwise.reporting.run import check_output
    from catwise.tuning.extending import extend_head, new_rows

    if not given.dry_run:
        hold_output(out, parents=True)
    check_output(out, overwrite=given.overwrite)
    check_device(given.device)
    pair = load_pair(data, given.table)
    head = load_the_head(given.source, given.table)
    inputs = {
        "head": describe_head(given.source, head),
        **pair.about,
        "environment": environment(),
    }
    settings = {**config.tuning(), "device": given.device, "policy": policy}
    if given.dry_run:
        new = new_rows(head, pair.train, pair.valid, pair.test)
        fits = replace(pair, train=new.train, valid=new.valid, test=new.test)
        settings["logits"] = None
        rehearse("extend", new.base, fits, settings, inputs, out=out, output=output)
        return
    with output.progress() as progress:
        result = extend_head(
            head, pair.train, pair.valid, test=pair.test, progress=progress, **settings
        )
    finish("extend", result, out, inputs=inputs, overwrite=given.overwrite, output=output)
