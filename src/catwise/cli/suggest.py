"""`catwise suggest`: what to label next, and which known labels are probably wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catwise._options import group, option
from catwise._text import plural
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.decisions import LogitsOptions, hold_outputs, known_labels, load_source_logits
from catwise.cli.inputs import refuse_inputs
from catwise.cli.labelled import describe_labels, load_chosen, with_cell_labels

if TYPE_CHECKING:
    from catwise.decisions import Suggestions


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise suggest` is given."""

    logits: LogitsOptions = group("Logits")
    cells: int = option(
        100,
        low=0,
        first=True,
        help="Cells (an image and a category) to label, as many in every category.",
    )
    random_share: float = option(
        0.2,
        low=0,
        high=1,
        help="Share of them that is drawn at random: what keeps later scores right.  "
        "[default: 0.2]",
    )
    suspects: int = option(
        50, low=0, help="Known labels that are probably wrong, in each of the two lists."
    )
    seed: int = option(0, help="Of the draw; the same in all rounds.")
    chosen: tuple[Path, ...] = option(
        (), metavar="FILE", help="Cells of earlier rounds, as they were written (repeat)."
    )
    out: Path = option(metavar="FILE", first=True, help="The cells to label, as CSV.")
    suspects_out: Path | None = option(
        None, metavar="FILE", first=True, help="Known labels that are probably wrong, as CSV."
    )
    output: Output = group("Output")


@make_command("suggest", "Say what to label next, and what is probably wrong.")
def command(given: Options) -> None:
    """Say which cells to label next, and which known labels are probably wrong.

    In every category the same number of unknown cells is chosen, those whose out-of-fold
    probability is nearest one half; a fifth is drawn at random instead and marked. Fill in the
    column "label", and give the file to `tune`, `evaluate` and `audit` as --chosen later: what a
    model chose is no sample. Known labels that are probably wrong are two lists: negatives with a
    high probability, and positives with a low one.
    """
    output = given.output
    hold_outputs(given.logits, given.out, given.suspects_out)
    for path in (given.out, given.suspects_out):
        if path is not None:
            refuse_inputs(path, *given.chosen)
    chosen = load_chosen(given.chosen)
    labels = with_cell_labels(known_labels(given.logits, output), chosen, output)
    source, about = load_source_logits(given.logits, labels)
    from catwise.decisions import suggest

    found = suggest(
        source,
        labels,
        given.cells,
        chosen=chosen,
        random_share=given.random_share,
        n_suspects=given.suspects,
        seed=given.seed,
    )
    found.write_cells(given.out)
    if given.suspects_out is not None:
        found.write_suspects(given.suspects_out)
    _show(found, given)
    inputs = {"labels": describe_labels(given.logits.data, labels, given.logits.table), **about}
    output.document({"command": "suggest", "inputs": inputs, **found.to_dict()})


def _show(found: Suggestions, given: Options) -> None:
    """The tables and what they are."""
    from catwise.reporting.tables import cells_table, suspects_table

    output = given.output
    cells = found.to_label
    output.table(cells_table(cells, limit=output.rows))
    lists = {
        "Known negatives that are probably positive": found.false_negatives,
        "Known positives that are probably negative": found.false_positives,
    }
    for title, rows in lists.items():
        if rows:
            output.table(suspects_table(rows, limit=output.rows, title=title))
    n_random = sum(cell["why"] == "random" for cell in cells)
    output.line(f"{plural(len(cells), 'cell')} to label, {n_random:,} of them drawn at random")
    if again := len(found.cells) - len(cells):
        output.line(f"{plural(again, 'cell')} chosen before turned out to be among the random ones")
    for note in found.notes:
        output.line(note)
    output.line(str(given.out))
