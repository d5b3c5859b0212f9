"""`catwise conformal`: sets of answers that hold the true one with a stated probability."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.decisions import HeldOutOptions, hold_outputs, load_decisions
from catwise.cli.options import CSV_HELP


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise conformal` is given."""

    decisions: HeldOutOptions = group("Logits")
    alpha: float = option(
        0.1,
        above=0,
        below=1,
        first=True,
        help="Share of positives whose set may lack positive, and of negatives whose set may lack "
        "negative.",
    )
    confidence: float | None = option(
        None,
        above=0,
        below=1,
        help="With which each category's own share is at most that.  [default: in the mean over "
        "categories]",
    )
    out: Path = option(metavar="FILE", first=True, help="The cut-offs, as JSON.")
    csv_path: Path | None = option(None, names="--csv", metavar="FILE", help=CSV_HELP)
    output: Output = group("Output")


@make_command("conformal", "Find sets of answers that hold the true one.")
def command(given: Options) -> None:
    """Find sets of answers that hold the true one with a stated probability.

    Two cut-offs for each category: from one up "positive" is in the set of an image, below the
    other "negative"; an image between them has both (unsure) or none. Positives and negatives are
    each in their set for a share of 1 - alpha. Where too few labels are known the class is in every
    set, and how many it would take is shown. What is covered is shown on test rows, with intervals.
    """
    decisions, output = given.decisions, given.output
    hold_outputs(decisions, given.out, given.csv_path)
    source = load_decisions(decisions, output)
    from catwise.decisions import conformal
    from catwise.reporting.tables import conformal_table

    found = conformal(
        source.source,
        source.labels,
        alpha=given.alpha,
        confidence=given.confidence,
        test=source.test,
        level=decisions.level,
    )
    found.save(given.out)
    if given.csv_path is not None:
        found.write_csv(given.csv_path)
    output.table(conformal_table(found.records(), limit=output.rows))
    lacking = [one for one in found.categories if None in (one.positive.cut, one.negative.cut)]
    for one in lacking[: output.rows or None]:
        output.line(f"{one.category}: {one.explanation}")
    for note in found.notes:
        output.line(note)
    output.document({"command": "conformal", "inputs": source.about, **found.to_dict()})
