"""What `catwise ensemble` reads: members, their other rows, and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from catwise._names import ENSEMBLE_PRESETS, POOLS, UNITS
from catwise._options import group, option
from catwise.cli.decisions import FOLDS, HEAD, test_options
from catwise.cli.inputs import named_paths
from catwise.cli.labelled import describe_labels, load_dataset, scored_as_one
from catwise.cli.options import LabelledOptions, TableOptions

if TYPE_CHECKING:
    from catwise.data import Dataset
    from catwise.decisions import Ensemble
    from catwise.heads import Head
    from catwise.labels import PartialLabels


OTHER_ROWS: Final = "Other rows"


class Places(NamedTuple):
    """Where the members' rows are, by the members' names."""

    members: dict[str, Path]
    test: dict[str, Path]
    predict: dict[str, Path]

    @classmethod
    def of(cls, members: Sequence[str], test: Sequence[str], predict: Sequence[str]) -> Places:
        """From NAME=PLACE texts."""
        return cls(
            named_paths(members, "--member"),
            named_paths(test, "--test-member"),
            named_paths(predict, "--predict-member"),
        )

    @property
    def paths(self) -> list[Path]:
        """Every file that may be read."""
        every = [path for side in self for path in side.values()]
        return [one for path in every for one in (path, path / FOLDS, path / HEAD)]

    @property
    def about(self) -> dict[str, str]:
        """The members, JSON-ready."""
        return {name: str(path) for name, path in self.members.items()}


class Members(NamedTuple):
    """What the members gave for labelled rows, and the heads of those that are runs."""

    given: dict[str, Any]
    heads: dict[str, Head]
    categories: tuple[str, ...]

    def rows(self, places: Mapping[str, Path]) -> dict[str, Any]:
        """Other rows: features for the head of a run, or outputs."""
        from catwise.decisions import read_outputs
        from catwise.features import read_features

        return {
            name: (self.heads[name], read_features(path))
            if name in self.heads
            else read_outputs(path, categories=self.categories)
            for name, path in places.items()
        }

    def save_logits(self, path: Path, found: Ensemble, labels: PartialLabels) -> None:
        """Write the ensemble's logits of the labelled rows, with their ids."""
        import numpy as np

        from catwise._io import atomic_path
        from catwise.decisions.outputs import common_rows

        said = found.combine(self.given, ids=common_rows(self.given, labels)[0].ids)
        values, ids = said.logits.numpy(), said.ids
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            if ids is None:
                np.savez(file, features=values)
            else:
                np.savez(file, features=values, ids=ids)


def load_members(places: Mapping[str, Path], categories: tuple[str, ...]) -> Members:
    """Read runs and files of outputs."""
    from catwise.decisions import read_outputs
    from catwise.heads import load_head
    from catwise.tuning import FoldArtifacts

    given: dict[str, Any] = {}
    heads = {}
    for name, path in places.items():
        if (path / HEAD).is_file():
            given[name] = FoldArtifacts.load(path / FOLDS)
            heads[name] = load_head(path / HEAD)
        else:
            given[name] = read_outputs(path, categories=categories)
    return Members(given, heads, categories)


class Both(NamedTuple):
    """Labels of the rows that calibrate, and of test rows."""

    valid: PartialLabels
    test: PartialLabels | None
    by: Any
    pool: str
    preset: Mapping[str, Any]
    about: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LabelSides:
    """Which labels, of which categories, and what is scored as one."""

    data: LabelledOptions = group("Labels")
    table: TableOptions = group("Label tables")
    preset: str | None = option(
        None,
        choices=ENSEMBLE_PRESETS,
        help="chexpert: the 5 observations of the competition, by study, the largest over views.",
    )
    by: str | None = option(
        None,
        choices=UNITS,
        help="What is scored as one. study: images in one folder; patient: of one group.  "
        "[default: image]",
    )
    pool: str | None = option(
        None, choices=POOLS, help="How the probabilities of its images become one.  [default: mean]"
    )
    test_labels: Path | None = option(
        None, metavar="FILE", group=OTHER_ROWS, help="Labels of the test rows."
    )
    test_split: str | None = option(
        None, metavar="VALUE", group=OTHER_ROWS, help="Or their split of --labels or --dataset."
    )

    def __post_init__(self) -> None:
        if self.test_labels is not None and self.test_split is not None:
            raise click.UsageError("give either --test-labels or --test-split.")
        if self.test_split is not None and self.data.split_column is None and not self.data.dataset:
            raise click.UsageError("--test-split needs --split-column or --dataset.")

    @property
    def has_test(self) -> bool:
        """Whether there are test rows."""
        return self.test_labels is not None or self.test_split is not None


def load_both(given: LabelSides) -> Both:
    """Read the labels, of the categories and the units that a preset names."""
    preset: Mapping[str, Any] = {}
    if given.preset is not None:
        from catwise.decisions import CHEXPERT

        preset = CHEXPERT
    by, pool = given.by or preset.get("by", "image"), given.pool or preset.get("pool", "mean")
    valid = _of_preset(load_dataset(given.data, given.table), given.preset)
    about = {"labels": describe_labels(given.data, valid.labels, given.table)}
    unit, test = scored_as_one(valid, by), None
    if given.has_test:
        wanted = test_options(given)
        other = _of_preset(load_dataset(wanted, given.table), given.preset)
        about["test labels"] = describe_labels(wanted, other.labels, given.table)
        test, more = other.labels, scored_as_one(other, by)
        unit = unit | more if isinstance(unit, dict) and isinstance(more, dict) else unit
    return Both(valid.labels, test, unit, pool, preset, about)


def _of_preset(dataset: Dataset, preset: str | None) -> Dataset:
    """The data set with the categories that a preset is about."""
    if preset is None:
        return dataset
    from catwise.data.readers.chexpert import COMPETITION

    return replace(dataset, labels=dataset.labels.take_categories(COMPETITION))
