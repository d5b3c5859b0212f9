"""Options that several commands share; each group arrives in a command as one frozen value."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from catwise.cli.console import Output
from catwise.errors import ConfigError, nearest

__all__ = [
    "DATASET_NAMES",
    "ENCODING_NAMES",
    "METRIC_NAMES",
    "HeadOptions",
    "LabelledOptions",
    "PairOptions",
    "PolicyOptions",
    "SourceOptions",
    "TableOptions",
    "head_options",
    "labelled_options",
    "metric_option",
    "option_value",
    "output_options",
    "pair_options",
    "path_type",
    "place_type",
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
DATASET_NAMES: Final = (
    "celeba",
    "chestxray14",
    "chexpert",
    "coco",
    "lvis",
    "mimic_cxr",
    "nuswide",
    "openimages",
    "vaw",
    "vindr",
    "visual_genome",
    "voc",
)

_TRUTHS: Final = {"true": True, "false": False, "yes": True, "no": False}


def path_type() -> click.Path:
    """A path; whether it can be read is for the reader to say, with its own message and code."""
    return click.Path(path_type=Path, readable=False)


class _Place(click.Path):
    """A path, or an URL that stays as it was typed."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, str) and ("://" in value or "::" in value):
            return value
        return super().convert(value, param, ctx)


def place_type() -> click.Path:
    """A path as :func:`path_type` gives it, or the URL of a feature store."""
    return _Place(path_type=Path, readable=False)


def grouped(kind: type[Any], name: str, options: list[Function]) -> Callable[[Function], Function]:
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
    header: bool | None
    others: str | None
    separator: str | None

    def __post_init__(self) -> None:
        if self.layout == "lists":
            if self.encoding is not None:
                raise click.UsageError("--encoding does not belong to --layout lists.")
            return
        if self.others is not None or self.separator is not None:
            raise click.UsageError("--others and --separator belong to --layout lists.")
        if self.category and self.ignore_column:
            raise click.UsageError("give either --category or --ignore-column.")
        if self.ignore_column and self.layout == "long":
            raise click.UsageError("--ignore-column belongs to --layout wide.")


table_options = grouped(
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
            type=click.Choice(["wide", "long", "lists"]),
            default="wide",
            show_default=True,
            help="wide: one row an image, one column a category. long: one row a label. lists: one "
            "row an image, columns positive, negative and uncertain that list categories.",
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
        click.option(
            "--header/--no-header",
            default=None,
            help="Whether a text table has a header line. If not, its columns are 1, 2, … Without "
            "the option it has one, and a first line that looks like data is refused.",
        ),
        click.option(
            "--others",
            type=click.Choice(["unknown", "negative"]),
            help="What a category is that is in no list of an image. Never guessed.",
        ),
        click.option(
            "--separator", metavar="TEXT", help="Between the categories of a list in a text table."
        ),
    ],
)


@dataclass(frozen=True, slots=True)
class LabelledOptions:
    """Where labels come from: a table, or a data set in its official layout."""

    labels: Path | None
    dataset: str | None
    root: Path | None
    option: tuple[str, ...]
    split_column: str | None
    split: str | None

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.dataset is None):
            raise click.UsageError("give either --labels FILE or --dataset NAME --root FOLDER.")
        if self.labels is not None:
            if self.root is not None or self.option:
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


LABELS_HELP: Final = "Label table: CSV, TSV, Parquet or JSON lines."

DATASET_OPTIONS: Final = [
    click.option(
        "--dataset",
        type=click.Choice(DATASET_NAMES),
        metavar="NAME",
        help="Or a data set in its official layout: " + ", ".join(DATASET_NAMES) + ".",
    ),
    click.option(
        "--root",
        type=path_type(),
        metavar="FOLDER",
        help="Where the data set is.",
    ),
    click.option(
        "--option",
        metavar="NAME=VALUE",
        multiple=True,
        help="An option of the data set's reader, such as views=frontal (repeatable).",
    ),
]

labelled_options = grouped(
    LabelledOptions,
    "source",
    [
        click.option("--labels", type=path_type(), metavar="FILE", help=LABELS_HELP),
        *DATASET_OPTIONS,
        click.option(
            "--split-column",
            metavar="NAME",
            help="Column of --labels that tells the split of each row.",
        ),
        click.option("--split", metavar="VALUE", help="Only the rows of this split."),
    ],
)


def option_value(name: str, texts: list[str], annotation: str) -> Any:
    """What the texts of a reader's option are, by the type that the reader wants.

    Args:
        name: of the option.
        texts: what was given; several where the option was repeated.
        annotation: the type as it is written in the reader.

    Raises:
        ConfigError: If a text is nothing of that type.

    >>> option_value("year", ["2017"], "Literal[2014, 2017]")
    2017
    >>> option_value("categories", ["Edema"], "Literal['all'] | Sequence[str]")
    ['Edema']
    >>> option_value("tables", ["train=a.csv"], "Mapping[str, str] | None")
    {'train': 'a.csv'}
    """
    literals, kinds = _annotated(annotation)
    if "Mapping" in kinds:
        pairs = [text.partition("=") for text in texts]
        if all(equals for _, equals, _ in pairs):
            return {key: value for key, _, value in pairs}
    elif len(texts) == 1:
        with contextlib.suppress(ValueError):
            return _one_value(texts[0], literals, kinds)
    elif "Sequence" in kinds:
        return texts
    choices = [*map(str, literals), *(_TRUTHS if "bool" in kinds else ())]
    words = {"float": "a number", "Mapping": "NAME=VALUE", "str": "one text", "None": "none"}
    choices += [text for kind, text in words.items() if kind in kinds]
    raise ConfigError(
        f"the option {name!r} has no such value.",
        found=" and ".join(texts) + nearest(texts[0], choices),
        expected=" or ".join(choices),
    )


def _one_value(text: str, literals: list[Any], kinds: set[str]) -> Any:
    """The value of one text.

    Raises:
        ValueError: If it is none.
    """
    for value in literals:
        if str(value) == text:
            return value
    if "None" in kinds and text.lower() == "none":
        return None
    if "Sequence" in kinds:
        return [text]
    if kinds & {"str", "Storage"}:
        return text
    if "bool" in kinds and text.lower() in _TRUTHS:
        return _TRUTHS[text.lower()]
    if "float" in kinds:
        return float(text)
    raise ValueError(text)


def _annotated(annotation: str) -> tuple[list[Any], set[str]]:
    """The literal values that a type allows, and the names that are in it."""
    literals: list[Any] = []
    kinds: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            values = ast.literal_eval(node.slice)
            literals.extend(values if isinstance(values, tuple) else [values])
            return
        if isinstance(node, ast.Subscript):
            kinds.add(ast.unparse(node.value))
            return
        if isinstance(node, (ast.Name, ast.Constant)):
            kinds.add(ast.unparse(node))
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(annotation, mode="eval").body)
    return literals, kinds


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """One labelled source: features, labels, and which rows of them."""

    features: Path
    labels: Path | None
    dataset: str | None
    root: Path | None
    option: tuple[str, ...]
    features_key: str | None
    ids_key: str | None
    split_column: str | None
    split: str | None

    def __post_init__(self) -> None:
        if self.labels is not None and (self.split is None) != (self.split_column is None):
            raise click.UsageError("--split and --split-column belong together.")
        _ = self.labelled

    @property
    def labelled(self) -> LabelledOptions:
        """Where the labels come from."""
        return LabelledOptions(
            self.labels, self.dataset, self.root, self.option, self.split_column, self.split
        )


FEATURE_KEYS: Final = [
    click.option(
        "--features-key", metavar="NAME", help="The features' name in an .npz or .safetensors."
    ),
    click.option("--ids-key", metavar="NAME", help="The ids' name in such a file."),
]


def source_options(prefix: str = "") -> Callable[[Function], Function]:
    """The options of one labelled source, such as ``--features``; with a prefix before each."""
    return grouped(
        SourceOptions,
        "data",
        [
            click.option(
                f"--{prefix}features",
                "features",
                type=place_type(),
                required=True,
                metavar="PATH",
                help="A feature store's folder or URL, or .npy, .npz, .safetensors.",
            ),
            click.option(
                f"--{prefix}labels", "labels", type=path_type(), metavar="FILE", help=LABELS_HELP
            ),
            *DATASET_OPTIONS,
            *FEATURE_KEYS,
            click.option(
                "--split-column", metavar="NAME", help="Column that tells the split of each row."
            ),
            click.option("--split", metavar="VALUE", help="Only the rows of this split."),
        ],
    )


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Training data, and validation and test data if there are any."""

    features: Path
    labels: Path | None
    dataset: str | None
    root: Path | None
    option: tuple[str, ...]
    valid_features: Path | None
    valid_labels: Path | None
    test_features: Path | None
    test_labels: Path | None
    features_key: str | None
    ids_key: str | None
    split_column: str | None
    train_split: str
    valid_split: str | None
    test_split: str | None

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
            return LabelledOptions(self.valid_labels, None, None, (), None, None)
        if self.dataset is not None:
            return None if self.valid_split is None else self._labelled(None, self.valid_split)
        if self.split_column is None:
            return None
        return self._labelled(self.labels, self.valid_split or "valid")

    @property
    def test(self) -> LabelledOptions | None:
        """Where the test labels come from; None without any."""
        if self.test_labels is not None:
            return LabelledOptions(self.test_labels, None, None, (), None, None)
        return None if self.test_split is None else self._labelled(self.labels, self.test_split)

    def _labelled(self, labels: Path | None, split: str | None) -> LabelledOptions:
        return LabelledOptions(
            labels, self.dataset, self.root, self.option, self.split_column, split
        )


pair_options = grouped(
    PairOptions,
    "data",
    [
        click.option(
            "--features",
            type=place_type(),
            required=True,
            metavar="PATH",
            help="Training features: a feature store's folder or URL, or .npy, .npz, .safetensors.",
        ),
        click.option(
            "--labels",
            type=path_type(),
            metavar="FILE",
            help="Training labels: CSV, TSV, Parquet or JSON lines.",
        ),
        *DATASET_OPTIONS,
        click.option(
            "--valid-features",
            type=place_type(),
            metavar="PATH",
            help="Validation features.  [default: those of --features, joined by id]",
        ),
        click.option("--valid-labels", type=path_type(), metavar="FILE", help="Validation labels."),
        click.option(
            "--test-features",
            type=place_type(),
            metavar="PATH",
            help="Features of rows that fit and choose nothing and judge at the end.  [default: "
            "those of --features, joined by id]",
        ),
        click.option(
            "--test-labels", type=path_type(), metavar="FILE", help="Labels of these rows."
        ),
        *FEATURE_KEYS,
        click.option(
            "--split-column",
            metavar="NAME",
            help="Column of --labels that tells training, validation and test rows apart.",
        ),
        click.option(
            "--train-split",
            metavar="VALUE",
            default="train",
            show_default=True,
            help="Of --split-column or --dataset.",
        ),
        click.option(
            "--valid-split",
            metavar="VALUE",
            help="The same for validation; with --dataset there is none unless it is named.  "
            "[default: valid]",
        ),
        click.option(
            "--test-split", metavar="VALUE", help="The same for test; none unless it is named."
        ),
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


head_options = grouped(
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


policy_options = grouped(
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

output_options = grouped(
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
