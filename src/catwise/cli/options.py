"""Options that several commands share; each group arrives in a command as one frozen value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from catwise.cli.console import Output

__all__ = [
    "ENCODING_NAMES",
    "METRIC_NAMES",
    "HeadOptions",
    "PairOptions",
    "PolicyOptions",
    "SourceOptions",
    "TableOptions",
    "head_options",
    "metric_option",
    "output_options",
    "pair_options",
    "path_type",
    "policy_options",
    "seed_option",
    "source_options",
    "table_options",
]

Function = Callable[..., Any]

# Written here a second time, since their homes load numpy and torch; a test compares them.
METRIC_NAMES: Final = (
    "average_precision",
    "auroc",
    "partial_auroc",
    "f1",
    "best_f1",
    "precision",
    "recall",
    "brier",
    "log_loss",
    "ece",
)
ENCODING_NAMES: Final = (
    "nan",
    "minus_one_unknown",
    "minus_one_uncertain",
    "zero_unknown",
    "codes",
    "complete",
)


def path_type() -> click.Path:
    """A path; whether it can be read is for the reader to say, with its own message and code."""
    return click.Path(path_type=Path, readable=False)


def _grouped(kind: type[Any], name: str, options: list[Function]) -> Callable[[Function], Function]:
    """Add options to a command, which get there as one argument `name` of type `kind`."""
    fields = [field.name for field in dataclasses.fields(kind)]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            value = kind(**{field: given.pop(field) for field in fields})
            return function(*args, **{name: value}, **given)

        for option in reversed(options):
            call = option(call)
        return call

    return decorate


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How label tables are read."""

    encoding: str | None
    layout: str
    id_column: str | None
    id_prefix: str
    id_suffix: str
    strip_prefix: str
    strip_suffix: str
    group_column: str | None
    category: tuple[str, ...]
    ignore_column: tuple[str, ...]
    category_column: str | None
    value_column: str | None
    delimiter: str | None

    def __post_init__(self) -> None:
        if self.category and self.ignore_column:
            raise click.UsageError("give either --category or --ignore-column.")
        if self.ignore_column and self.layout == "long":
            raise click.UsageError("--ignore-column belongs to --layout wide.")


table_options = _grouped(
    TableOptions,
    "table",
    [
        click.option(
            "--encoding",
            type=click.Choice(ENCODING_NAMES),
            help="What the values of the label table mean. Never guessed.",
        ),
        click.option(
            "--layout",
            type=click.Choice(["wide", "long"]),
            default="wide",
            show_default=True,
            help="wide: one row an image, one column a category. long: one row a label.",
        ),
        click.option("--id-column", metavar="NAME", help="Column of the image ids."),
        click.option(
            "--id-prefix", metavar="TEXT", default="", help="Put before each id of the table."
        ),
        click.option(
            "--id-suffix", metavar="TEXT", default="", help="Put after each id of the table."
        ),
        click.option(
            "--strip-prefix", metavar="TEXT", default="", help="Taken off each id of the table."
        ),
        click.option(
            "--strip-suffix", metavar="TEXT", default="", help="Taken off each id of the table."
        ),
        click.option(
            "--group-column",
            metavar="NAME",
            help="Column of the groups (patients) that are never split.",
        ),
        click.option(
            "--category",
            metavar="NAME",
            multiple=True,
            help="Only this category (repeatable); otherwise every column that is left.",
        ),
        click.option(
            "--ignore-column",
            metavar="NAME",
            multiple=True,
            help="A column that is no category (repeatable).",
        ),
        click.option(
            "--category-column",
            metavar="NAME",
            help="Column of the category names in a long table.  [default: category]",
        ),
        click.option(
            "--value-column",
            metavar="NAME",
            help="Column of the values in a long table.  [default: value]",
        ),
        click.option(
            "--delimiter", metavar="TEXT", help="Between fields, if not as the file's suffix says."
        ),
    ],
)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """One labelled source: features, labels, and which rows of them."""

    features: Path
    labels: Path
    features_key: str | None
    ids_key: str | None
    split_column: str | None
    split: str | None

    def __post_init__(self) -> None:
        if (self.split is None) != (self.split_column is None):
            raise click.UsageError("--split and --split-column belong together.")


FEATURE_KEYS: Final = [
    click.option(
        "--features-key", metavar="NAME", help="The features' name in an .npz or .safetensors."
    ),
    click.option("--ids-key", metavar="NAME", help="The ids' name in such a file."),
]


def source_options(prefix: str = "") -> Callable[[Function], Function]:
    """The options of one labelled source, such as ``--features``; with a prefix before each."""
    return _grouped(
        SourceOptions,
        "data",
        [
            click.option(
                f"--{prefix}features",
                "features",
                type=path_type(),
                required=True,
                metavar="PATH",
                help="A feature store's folder, or .npy, .npz, .safetensors.",
            ),
            click.option(
                f"--{prefix}labels",
                "labels",
                type=path_type(),
                required=True,
                metavar="FILE",
                help="Label table: CSV, TSV or Parquet.",
            ),
            *FEATURE_KEYS,
            click.option(
                "--split-column", metavar="NAME", help="Column that tells the split of each row."
            ),
            click.option("--split", metavar="VALUE", help="Only the rows of this split."),
        ],
    )


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Training data, and validation data if there are any."""

    features: Path
    labels: Path
    valid_features: Path | None
    valid_labels: Path | None
    features_key: str | None
    ids_key: str | None
    split_column: str | None
    train_split: str
    valid_split: str

    def __post_init__(self) -> None:
        if self.split_column is not None and self.valid_labels is not None:
            raise click.UsageError("give either --valid-labels or --split-column.")
        if self.valid_features is not None and not (self.valid_labels or self.split_column):
            raise click.UsageError("--valid-features needs --valid-labels or --split-column.")


pair_options = _grouped(
    PairOptions,
    "data",
    [
        click.option(
            "--features",
            type=path_type(),
            required=True,
            metavar="PATH",
            help="Training features: a feature store's folder, or .npy, .npz, .safetensors.",
        ),
        click.option(
            "--labels",
            type=path_type(),
            required=True,
            metavar="FILE",
            help="Training labels: CSV, TSV or Parquet.",
        ),
        click.option(
            "--valid-features",
            type=path_type(),
            metavar="PATH",
            help="Validation features.  [default: those of --features, joined by id]",
        ),
        click.option("--valid-labels", type=path_type(), metavar="FILE", help="Validation labels."),
        *FEATURE_KEYS,
        click.option(
            "--split-column",
            metavar="NAME",
            help="Column of --labels that tells training and validation rows apart.",
        ),
        click.option("--train-split", metavar="VALUE", default="train", show_default=True),
        click.option("--valid-split", metavar="VALUE", default="valid", show_default=True),
    ],
)


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """Which head."""

    head: Path | None
    checkpoint: Path | None
    head_key: str | None
    bias_key: str | None
    head_categories: Path | None

    def __post_init__(self) -> None:
        if (self.head is None) == (self.checkpoint is None):
            raise click.UsageError("give either --head FILE or --checkpoint FILE.")
        if self.head is not None and (self.head_key or self.bias_key):
            raise click.UsageError("--head-key and --bias-key belong to --checkpoint.")


head_options = _grouped(
    HeadOptions,
    "source",
    [
        click.option("--head", type=path_type(), metavar="FILE", help="A head that catwise wrote."),
        click.option(
            "--checkpoint",
            type=path_type(),
            metavar="FILE",
            help="A model's checkpoint (.safetensors, .pt); nothing in it is executed.",
        ),
        click.option(
            "--head-key",
            metavar="KEY",
            help="The weight's key in the checkpoint, such as fc.weight; found if not given.",
        ),
        click.option("--bias-key", metavar="KEY", help="The bias's key, if named otherwise."),
        click.option(
            "--head-categories",
            type=path_type(),
            metavar="FILE",
            help="Names of the checkpoint's rows, one a line, in order.",
        ),
    ],
)


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What uncertain and blank labels count as while fitting."""

    uncertain: str | None
    blank: str | None


policy_options = _grouped(
    PolicyOptions,
    "policy",
    [
        click.option(
            "--uncertain",
            metavar="POLICY",
            help="Uncertain labels while fitting: unknown, negative, positive or LOW:HIGH, a range "
            "of soft targets.  [default: unknown]",
        ),
        click.option(
            "--blank",
            type=click.Choice(["unknown", "negative"]),
            help="Unknown labels while fitting.  [default: unknown]",
        ),
    ],
)

output_options = _grouped(
    Output,
    "output",
    [
        click.option(
            "--json", "json", is_flag=True, help="One JSON document on stdout, nothing else."
        ),
        click.option("-q", "--quiet", is_flag=True, help="No tables, notes or progress."),
        click.option(
            "--rows",
            type=click.IntRange(min=0),
            default=40,
            show_default=True,
            metavar="N",
            help="At most N rows of a table on the terminal; 0 for all.",
        ),
    ],
)

seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every random draw."
)


def metric_option(default: str = "average_precision") -> Callable[[Function], Function]:
    """The metric that decides."""
    return click.option(
        "--metric",
        type=click.Choice(METRIC_NAMES),
        default=default,
        show_default=True,
        help="What is to become better.",
    )
