"""Options that several commands share; each group arrives in a command as one frozen value."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._names import DATASETS, ENCODINGS, ENGINES
from catwise._options import option

if TYPE_CHECKING:
    from catwise.engines import Engine

FEATURES_HELP: Final = "A feature store's folder or URL, or .npy, .npz, .safetensors."
FORCE_HELP: Final = "Proceed although head and data look mismatched."
DEVICE_HELP: Final = "Such as cpu or cuda:0.  [default: cpu]"
SEED_HELP: Final = "Of every random draw."
REPORT_HELP: Final = "One HTML page with charts, which loads nothing."
CHOSEN_HELP: Final = (
    "Cells that a model chose: a table by `catwise suggest` (repeat). They are no sample: they "
    "fit, and are not scored. What its column label says by now is added to the labels."
)
CSV_HELP: Final = "Write the table as CSV."


@dataclass(frozen=True)
class TableOptions:
    """How label tables are read."""

    encoding: str | None = option(
        None,
        choices=ENCODINGS,
        first=True,
        help="What the values of the label table mean. Never guessed.",
    )
    code: tuple[str, ...] = option(
        (),
        metavar="VALUE=MEANING",
        help="What a value means, in place of --encoding (repeatable): positive, negative, unknown "
        "or uncertain, such as 3=positive or blank=unknown.",
    )
    layout: str = option(
        "wide",
        choices=("wide", "long", "lists"),
        help="wide: one row an image, one column a category. long: one row a label. lists: one "
        "row an image, columns positive, negative and uncertain that list categories.",
    )
    id_column: str | None = option(
        None, metavar="NAME", first=True, help="Column of the image ids."
    )
    id_prefix: str = option("", help="Put before each id of the table.")
    id_suffix: str = option("", help="Put after each id of the table.")
    strip_prefix: str = option("", help="Taken off each id of the table.")
    strip_suffix: str = option("", help="Taken off each id of the table.")
    group_column: str | None = option(
        None, metavar="NAME", help="Column of the groups (patients) that are never split."
    )
    path_column: str | None = option(
        None,
        metavar="NAME",
        help="Column of the paths of image files, from --images or else the table's folder.",
    )
    category: tuple[str, ...] = option(
        (),
        metavar="NAME",
        help="Only this category (repeatable); otherwise every column that is left.",
    )
    ignore_column: tuple[str, ...] = option(
        (), metavar="NAME", help="A column that is not a category (repeatable)."
    )
    rename: tuple[str, ...] = option(
        (),
        metavar="OLD=NEW",
        help="Another name for a category, in labels and heads (repeatable), or a file of such "
        "lines. --category and --ignore-column say the old ones.",
    )
    hierarchy: Path | None = option(
        None,
        metavar="FILE",
        help="Which categories are kinds of which (child, parent; or Open Images' JSON): a known "
        "positive makes its ancestors positive, a known negative its descendants negative.",
    )
    category_column: str | None = option(
        None,
        metavar="NAME",
        help="Column of the category names in a long table.  [default: category]",
    )
    value_column: str | None = option(
        None, metavar="NAME", help="Column of the values in a long table.  [default: value]"
    )
    delimiter: str | None = option(None, help="Between fields, if not as the file's suffix says.")
    header: bool | None = option(
        None,
        names="--header/--no-header",
        help="Whether a text table has a header line. If not, its columns are 1, 2, … Without "
        "the option it has one, and a first line that looks like data is refused.",
    )
    others: str | None = option(
        None,
        choices=("unknown", "negative"),
        help="What a category is that is in no list of an image. Never guessed.",
    )
    separator: str | None = option(None, help="Between the categories of a list in a text table.")
    positive_column: str | None = option(
        None, metavar="NAME", help="Column of the lists of positives.  [default: positive]"
    )
    negative_column: str | None = option(
        None, metavar="NAME", help="Column of the lists of negatives.  [default: negative]"
    )
    uncertain_column: str | None = option(
        None, metavar="NAME", help="Column of the lists of uncertain ones.  [default: uncertain]"
    )

    @property
    def list_columns(self) -> dict[str, str]:
        """The columns of lists that were named, by what they hold."""
        roles = ("positive", "negative", "uncertain")
        named = {role: getattr(self, f"{role}_column") for role in roles}
        return {role: name for role, name in named.items() if name is not None}

    def __post_init__(self) -> None:
        if self.encoding is not None and self.code:
            raise click.UsageError("give either --encoding or --code.")
        if self.layout == "lists":
            if self.encoding is not None or self.code:
                name = "--encoding" if self.encoding is not None else "--code"
                raise click.UsageError(f"{name} does not belong to --layout lists.")
            return
        if self.list_columns:
            name = next(iter(self.list_columns))
            raise click.UsageError(f"--{name}-column belongs to --layout lists.")
        if self.others is not None or self.separator is not None:
            raise click.UsageError("--others and --separator belong to --layout lists.")
        if self.category and self.ignore_column:
            raise click.UsageError("give either --category or --ignore-column.")
        if self.ignore_column and self.layout == "long":
            raise click.UsageError("--ignore-column belongs to --layout wide.")


@dataclass(frozen=True)
class MatchOptions:
    """What becomes of categories that only one side has."""

    unknown_categories: str = option(
        "refuse",
        choices=("refuse", "ignore"),
        help="Categories of the labels that the head does not have: an error, or left out.",
    )


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """A label table, or a data set in its official layout."""

    labels: Path | None = option(
        None,
        metavar="FILE",
        first=True,
        prefixed=True,
        help="Label table: CSV, TSV, Parquet or JSON lines.",
    )
    dataset: str | None = option(
        None,
        choices=DATASETS,
        metavar="NAME",
        first=True,
        help="Or a data set in its official layout: " + ", ".join(DATASETS) + ".",
    )
    root: Path | None = option(None, metavar="FOLDER", help="Where the data set is.")
    options: tuple[str, ...] = option(
        (),
        names="--option",
        metavar="NAME=VALUE",
        help="An option of the data set's reader, such as views=frontal (repeatable).",
    )
    split_column: str | None = option(
        None,
        metavar="NAME",
        first=True,
        help="Column of --labels that tells the split of each row.",
    )


@dataclass(frozen=True, kw_only=True)
class LabelledOptions(LabelFiles):
    """Where labels come from, and which rows of them."""

    split: str | None = option(None, metavar="VALUE", help="Only the rows of this split.")

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.dataset is None):
            raise click.UsageError("give either --labels FILE or --dataset NAME --root FOLDER.")
        if self.labels is not None:
            if self.root is not None or self.options:
                raise click.UsageError("--root and --option belong to --dataset.")
            if self.split is not None and self.split_column is None:
                raise click.UsageError("--split needs --split-column.")
            return
        if self.root is None:
            raise click.UsageError("--dataset needs --root, the folder of the release.")
        if self.split_column is not None:
            raise click.UsageError(
                "--split-column belongs to --labels; --dataset knows its splits."
            )


@dataclass(frozen=True, kw_only=True)
class FileKeys:
    """What arrays are called in a file of features."""

    features_key: str | None = option(
        None, metavar="NAME", help="The features' name in an .npz or .safetensors."
    )
    ids_key: str | None = option(None, metavar="NAME", help="The ids' name in such a file.")


@dataclass(frozen=True, kw_only=True)
class SourceOptions(LabelledOptions, FileKeys):
    """One labelled source: features, labels, and which rows of them."""

    features: Path | str = option(first=True, prefixed=True, help=FEATURES_HELP)

    def __post_init__(self) -> None:
        if self.labels is not None and (self.split is None) != (self.split_column is None):
            raise click.UsageError("--split and --split-column belong together.")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class PairOptions(LabelFiles, FileKeys):
    """Training data, and validation and test data if there are any."""

    features: Path | str = option(first=True, help=f"Training features. {FEATURES_HELP}")
    valid_features: Path | str | None = option(
        None,
        help="Validation features.  [default: those of --features, joined by id]",
    )
    valid_labels: Path | None = option(None, metavar="FILE", help="Validation labels.")
    test_features: Path | str | None = option(
        None,
        help="Features of rows that fit and choose nothing and judge at the end.  [default: "
        "those of --features, joined by id]",
    )
    test_labels: Path | None = option(None, metavar="FILE", help="Labels of these rows.")
    train_split: str = option("train", metavar="VALUE", help="Of --split-column or --dataset.")
    valid_split: str | None = option(
        None,
        metavar="VALUE",
        help="The same for validation; with --dataset there is none unless it is named.  "
        "[default: valid]",
    )
    test_split: str | None = option(
        None, metavar="VALUE", help="The same for test; none unless it is named."
    )

    def __post_init__(self) -> None:
        if self.test_labels is not None and self.test_split is not None:
            raise click.UsageError("give either --test-labels or --test-split.")
        if self.test_labels is not None and self.dataset is not None:
            raise click.UsageError("give either --test-labels or --dataset with --test-split.")
        if self.test_split is not None and self.split_column is None and self.dataset is None:
            raise click.UsageError("--test-split needs --split-column or --dataset.")
        if self.test_features is not None and self.test is None:
            raise click.UsageError("--test-features needs --test-labels or --test-split.")
        if self.split_column is not None and self.valid_labels is not None:
            raise click.UsageError("give either --valid-labels or --split-column.")
        if self.dataset is not None and self.valid_labels is not None:
            raise click.UsageError("give either --valid-labels or --dataset with --valid-split.")
        if self.valid_features is not None and self.valid is None:
            raise click.UsageError("--valid-features needs validation labels or --split-column.")
        _ = self.train

    @property
    def train(self) -> LabelledOptions:
        """Where the training labels come from."""
        split = self.train_split if self.split_column or self.dataset else None
        return self._labelled(self.labels, split)

    @property
    def valid(self) -> LabelledOptions | None:
        """Where the validation labels come from; None without any."""
        if self.valid_labels is not None:
            return LabelledOptions(labels=self.valid_labels)
        if self.dataset is not None:
            return None if self.valid_split is None else self._labelled(None, self.valid_split)
        if self.split_column is None:
            return None
        return self._labelled(self.labels, self.valid_split or "valid")

    @property
    def test(self) -> LabelledOptions | None:
        """Where the test labels come from; None without any."""
        if self.test_labels is not None:
            return LabelledOptions(labels=self.test_labels)
        return None if self.test_split is None else self._labelled(self.labels, self.test_split)

    def _labelled(self, labels: Path | None, split: str | None) -> LabelledOptions:
        shared = {item.name: getattr(self, item.name) for item in dataclasses.fields(LabelFiles)}
        return LabelledOptions(**{**shared, "labels": labels, "split": split})


@dataclass(frozen=True)
class HeadOptions:
    """Which head."""

    head: Path | None = option(None, metavar="FILE", first=True, help="A head that catwise wrote.")
    checkpoint: Path | None = option(
        None,
        metavar="FILE",
        first=True,
        help="A model's checkpoint (.safetensors, .pt); nothing in it is executed.",
    )
    head_key: str | None = option(
        None,
        metavar="KEY",
        help="The weight's key in the checkpoint, such as fc.weight; found if not given.",
    )
    bias_key: str | None = option(None, metavar="KEY", help="The bias's key, if named otherwise.")
    head_categories: Path | None = option(
        None, metavar="FILE", help="Names of the checkpoint's rows, one a line, in order, or JSON."
    )
    model: str | None = option(
        None,
        metavar="KIND:NAME",
        help="The model that the checkpoint is of: its own names of the rows, such as those of "
        "xrv:NAME, and its layer are taken.",
    )
    model_arg: tuple[str, ...] = option(
        (), metavar="NAME=VALUE", help="An option of its architecture (repeatable)."
    )

    def __post_init__(self) -> None:
        if self.head is not None and (self.checkpoint is not None or self.model is not None):
            raise click.UsageError("give either --head FILE or --checkpoint FILE.")
        if self.head is None and self.checkpoint is None and self.model is None:
            raise click.UsageError("give either --head FILE or --checkpoint FILE.")
        if self.checkpoint is None and (self.head_key or self.bias_key):
            raise click.UsageError("--head-key and --bias-key belong to --checkpoint.")
        if self.model is not None and (self.head_key or self.bias_key):
            raise click.UsageError("--head-key and --bias-key are for a file without --model.")
        if self.model_arg and self.model is None:
            raise click.UsageError("--model-arg needs --model.")


@dataclass(frozen=True)
class PolicyOptions:
    """What uncertain and blank labels count as while fitting."""

    uncertain: str | None = option(
        None,
        metavar="POLICY",
        help="Uncertain labels while fitting: unknown, negative, positive or LOW:HIGH, a range "
        "of soft targets.  [default: unknown]",
    )
    blank: str | None = option(
        None,
        choices=("unknown", "negative"),
        help="Unknown labels while fitting.  [default: unknown]",
    )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where the work runs, beside this process."""

    engine: str | None = option(
        None,
        choices=ENGINES,
        help="Work in --workers processes: of this machine (local), or of a Ray cluster.  "
        "[default: in one]",
    )
    address: str | None = option(
        None,
        metavar="HOST:PORT",
        help="Of the Ray cluster.  [default: RAY_ADDRESS, else Ray is started here]",
    )
    shared: Path | None = option(
        None,
        metavar="DIR",
        help="Folder that all workers see, for what all of them read.  [default: that of --out]",
    )

    def __post_init__(self) -> None:
        if self.engine != "ray" and self.address is not None:
            raise click.UsageError("--address goes with --engine ray.")
        if self.engine is None and self.shared is not None:
            raise click.UsageError("--shared goes with --engine.")

    @contextlib.contextmanager
    def opened(self, workers: int, out: Path | str) -> Iterator[Engine | None]:
        """The engine while the block runs; None for this process alone."""
        if self.engine is None:
            yield None
            return
        from catwise.engines import open_engine
        from catwise.features.places import is_url

        shared = self.shared or (None if is_url(out) else Path(out).absolute().parent)
        how: dict[str, Any] = {"address": self.address, "shared": shared}
        with open_engine(self.engine, workers=workers or None, **how) as engine:
            yield engine
