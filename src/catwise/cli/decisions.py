"""What `calibrate`, `threshold` and `conformal` read: logits that fitted nothing, and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from catwise._options import group, option
from catwise.cli.inputs import own_table, refuse_inputs
from catwise.cli.labelled import (
    describe_labels,
    known_categories,
    load_chosen,
    load_dataset,
    with_cell_labels,
)
from catwise.cli.options import CHOSEN_HELP, LabelledOptions, MatchOptions, TableOptions
from catwise.cli.outputs import hold_output
from catwise.cli.prevalence import PREVALENCE_HELP

if TYPE_CHECKING:
    from catwise.cli.console import Output
    from catwise.labels import PartialLabels

FOLDS = "folds.safetensors"
HEAD = "head.safetensors"


@dataclass(frozen=True, kw_only=True)
class LogitsOptions:
    """Logits of rows that fitted nothing, and their labels."""

    run: Path | None = option(
        None,
        metavar="DIR",
        first=True,
        help="A run of `catwise tune`: its out-of-fold logits are used, with the labels of its "
        "validation rows.",
    )
    logits: Path | None = option(
        None,
        metavar="FILE",
        first=True,
        help="Or logits of rows that fitted nothing, (N, C): .npy, .npz, .safetensors.",
    )
    data: LabelledOptions = group("Labels")
    table: TableOptions = group("Label tables")
    match: MatchOptions = group("Label tables")

    def __post_init__(self) -> None:
        if (self.run is None) == (self.logits is None):
            raise click.UsageError("give either --run DIR or --logits FILE.")

    @property
    def paths(self) -> tuple[Path | str | None, ...]:
        """Everything that is read."""
        inside = () if self.run is None else (self.run / FOLDS, self.run / HEAD)
        return (*inside, self.logits, self.data.labels)


@dataclass(frozen=True, kw_only=True)
class HeldOutOptions(LogitsOptions):
    """The same, and test rows."""

    test_features: Path | str | None = option(
        None,
        group="Test rows",
        help="Features of rows that fitted and chose nothing, for the head of --run.",
    )
    test_logits: Path | None = option(
        None, metavar="FILE", group="Test rows", help="Or their logits, with --logits."
    )
    test_labels: Path | None = option(None, metavar="FILE", group="Test rows", help="Their labels.")
    test_split: str | None = option(
        None, metavar="VALUE", group="Test rows", help="Or their split of --labels or --dataset."
    )
    chosen: tuple[Path, ...] = option((), metavar="FILE", help=CHOSEN_HELP)
    level: float = option(0.95, above=0, below=1, help="Of the intervals.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_features is not None and self.run is None:
            raise click.UsageError("--test-features needs --run; with --logits, --test-logits.")
        if self.test_logits is not None and self.logits is None:
            raise click.UsageError("--test-logits needs --logits; with --run, --test-features.")
        has_rows = self.test_features is not None or self.test_logits is not None
        if self.test_labels is not None and self.test_split is not None:
            raise click.UsageError("give either --test-labels or --test-split.")
        if has_rows != (self.test_labels is not None or self.test_split is not None):
            raise click.UsageError(
                "test rows need --test-features (or --test-logits), and --test-labels or "
                "--test-split."
            )
        if self.test_split is not None and self.data.split_column is None and not self.data.dataset:
            raise click.UsageError("--test-split needs --split-column or --dataset.")

    @property
    def paths(self) -> tuple[Path | str | None, ...]:
        """Everything that is read."""
        return (*super().paths, self.test_features, self.test_logits, self.test_labels)


@dataclass(frozen=True, kw_only=True)
class DecisionOptions(HeldOutOptions):
    """The same, and the share of positives that probabilities speak of."""

    prevalence: tuple[str, ...] = option(
        (),
        metavar="SHARE",
        help="Share of positives among the images that will be met, where that is not the share "
        "among the known labels: one number for all categories, " + PREVALENCE_HELP,
    )


class Source(NamedTuple):
    """What the functions of `catwise.decisions` take."""

    source: Any
    labels: PartialLabels
    test: tuple[Any, PartialLabels] | None
    about: dict[str, Any]


def hold_outputs(given: LogitsOptions, *outputs: Path | None) -> None:
    """Refuse to write over what is read, and keep others from writing what is written."""
    for path in outputs:
        if path is not None:
            refuse_inputs(path, *given.paths)
        hold_output(path)


def load_decisions(given: HeldOutOptions, output: Output) -> Source:
    """Read logits and labels, and the logits of test rows where there are any."""
    known = _names_of(given)
    how = given.match.unknown_categories
    labels = known_labels(given, output)
    if (chosen := load_chosen(given.chosen)) is not None:
        labels = chosen.without(with_cell_labels(labels, chosen))
    test_labels, about = None, {"labels": describe_labels(given.data, labels, given.table)}
    if given.test_labels is not None or given.test_split is not None:
        wanted = test_options(given)
        test_labels = known_categories(load_dataset(wanted, given.table).labels, known, how)
        about["test labels"] = describe_labels(wanted, test_labels, given.table)
    source, more = load_source_logits(given, labels)
    if given.logits is None:
        test = _of_run(given, given.run or Path(), test_labels)
        return Source(source, labels, test, about | more)
    pair = None
    if given.test_logits is not None and test_labels is not None:
        pair = _logits(given.test_logits, test_labels), test_labels
    return Source(source, labels, pair, about | more)


def known_labels(given: LogitsOptions, output: Output) -> PartialLabels:
    """The labels, without categories that the run does not have, where these are ignored."""
    labels = load_dataset(given.data, given.table).labels
    return known_categories(labels, _names_of(given), given.match.unknown_categories, output)


def _names_of(given: LogitsOptions) -> tuple[str, ...]:
    """The categories of the run; none where logits are given, which have no names."""
    if given.run is None or given.match.unknown_categories != "ignore":
        return ()
    from catwise.tuning import FoldArtifacts

    return FoldArtifacts.load(given.run / FOLDS).categories


def load_source_logits(given: LogitsOptions, labels: PartialLabels) -> tuple[Any, dict[str, Any]]:
    """Logits of rows that fitted nothing, and where they are from."""
    if given.logits is not None:
        return _logits(given.logits, labels), {"logits": {"path": str(given.logits)}}
    from catwise.tuning import FoldArtifacts

    folder = given.run or Path()
    return FoldArtifacts.load(folder / FOLDS), {"run": {"path": str(folder)}}


def test_options(given: Any) -> LabelledOptions:
    """Where the test labels are, from the options `test_labels`, `test_split`, `data`, `table`."""
    from dataclasses import replace

    if given.test_labels is not None:
        own = LabelledOptions(labels=given.test_labels)
        return own_table(own, given.data.split_column, given.table)
    data: LabelledOptions = given.data
    return replace(data, split=given.test_split)


def _logits(path: Path, labels: PartialLabels) -> Any:
    """Logits in the order of the labels' rows, by id where both have them."""
    from catwise.features import block_of, read_features
    from catwise.joining import aligned_features, join_rows

    rows: Any = read_features(path, check=False)
    joined = join_rows(rows, labels, name="logits").rows
    return block_of(aligned_features(rows, joined), 0, labels.n_rows)


def _of_run(
    given: HeldOutOptions, folder: Path, labels: PartialLabels | None
) -> tuple[Any, PartialLabels] | None:
    """Logits of the run's head on the test rows."""
    if labels is None or given.test_features is None:
        return None
    from catwise.decisions import head_logits
    from catwise.features import read_features
    from catwise.heads import load_head

    head = load_head(folder / HEAD)
    found = head_logits(head, (read_features(given.test_features), labels))
    return found[0], found[1]
