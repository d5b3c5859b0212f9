"""Reading what the options name. All heavy imports are inside the functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._limits import MAX_TEXT, read_within
from catwise.cli.building import spelled_as
from catwise.cli.labelled import (
    describe_labels,
    known_categories,
    load_dataset,
    read_renames,
    scored_as_one,
    with_cell_labels,
)
from catwise.cli.options import (
    HeadOptions,
    LabelledOptions,
    PairOptions,
    PolicyOptions,
    SourceOptions,
    TableOptions,
)
from catwise.errors import ConfigError, OutputError, ShapeError

if TYPE_CHECKING:
    from catwise.cli.console import Output
    from catwise.data import Dataset
    from catwise.features.by_category import CategoryFeatures
    from catwise.features.inputs import Features
    from catwise.heads import Head
    from catwise.labels import ChosenCells, LabelPolicy, PartialLabels

POLICIES: Final = ("unknown", "negative", "positive")


def load_source(
    data: SourceOptions, table: TableOptions, by: str = "image"
) -> tuple[Any, PartialLabels, Any, Dataset]:
    """Read features and labels of one source, what is scored as one, and the data set."""
    from catwise.features import read_features

    dataset = load_dataset(data, table)
    labels = dataset.labels
    features = read_features(data.features, key=data.features_key, ids_key=data.ids_key)
    rows = split_features(features, labels, data, table)
    return rows, labels, scored_as_one(dataset, by), dataset


def named_paths(given: Sequence[str], option: str) -> dict[str, Path]:
    """NAME=PATH texts of an option as a table, in their order."""
    found: dict[str, Path] = {}
    wrong = ""
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            wrong = wrong or f"{text!r} is not NAME=PATH."
        elif name in found:
            wrong = wrong or f"the name {name!r} is given twice."
        found[name] = Path(path)
    if wrong:
        raise click.BadParameter(wrong, param_hint=f"'{option}'")
    return found


@dataclass(frozen=True)
class Pair:
    """Training data and, where there are any, validation and test data.

    Attributes:
        train: features and labels.
        valid: features and labels, or None.
        test: features and labels of rows that fit and choose nothing, or None.
        about: what the report says about them.
        judging: which of them says what changed, and its data set: test, else validation, else
            training.
    """

    train: tuple[Any, PartialLabels]
    valid: tuple[Any, PartialLabels] | None
    test: tuple[Any, PartialLabels] | None
    about: dict[str, Any]
    judging: tuple[LabelledOptions, Dataset]

    def with_cells(self, chosen: ChosenCells | None, output: Output) -> Pair:
        """The same with the labels that were filled in beside cells that a model chose."""

        def added(source: tuple[Any, PartialLabels] | None) -> Any:
            return source and (source[0], with_cell_labels(source[1], chosen, output))

        train, valid, test = added(self.train), added(self.valid), added(self.test)
        return dataclasses.replace(self, train=train, valid=valid, test=test)

    def known_to(self, head: Sequence[str], how: str, output: Output) -> Pair:
        """The same without the categories that a head does not have, where these are ignored."""

        def kept(source: tuple[Any, PartialLabels] | None, told: Output | None = None) -> Any:
            return source and (source[0], known_categories(source[1], head, how, told))

        train, valid, test = kept(self.train, output), kept(self.valid), kept(self.test)
        return dataclasses.replace(self, train=train, valid=valid, test=test)


def load_pair(data: PairOptions, table: TableOptions) -> Pair:
    """Read training, validation and test data; what checks them looks at their values."""
    from catwise.features import read_features

    read = partial(read_features, key=data.features_key, ids_key=data.ids_key, check=False)
    common = read(data.features)
    found: dict[str, tuple[Any, PartialLabels]] = {}
    about: dict[str, Any] = {}
    own = {"valid": data.valid_features, "test": data.test_features}
    wanted = {"train": data.train, "valid": data.valid, "test": _test_of(data, table)}
    for name, source in wanted.items():
        if source is None:
            continue
        path = own.get(name)
        features: Any = common if path is None else read(path)
        dataset = load_dataset(source, table)
        labels, judging = dataset.labels, (source, dataset)
        about[f"{name} features"] = describe_features(path or data.features, features)
        about[f"{name} labels"] = describe_labels(source, labels, table)
        if (own["valid"] if name == "train" else path) is None:
            features = split_features(features, labels, source, table)
        found[name] = features, labels
    return Pair(found["train"], found.get("valid"), found.get("test"), about, judging)


def _test_of(data: PairOptions, table: TableOptions) -> LabelledOptions | None:
    """The test labels, in the training labels' table or in one of their own."""
    if data.test is None or data.test_labels is None:
        return data.test
    return own_table(data.test, data.split_column, table)


def own_table(source: LabelledOptions, column: str | None, table: TableOptions) -> LabelledOptions:
    """Labels in a table of their own, in which a split column, if it is there, is no category."""
    if column is None or source.labels is None:
        return source
    from catwise.data.readers.table import column_names

    there = column_names(source.labels, column, delimiter=table.delimiter)
    return dataclasses.replace(source, split_column=column) if column in there else source


def split_features(
    features: Features | CategoryFeatures,
    labels: PartialLabels,
    source: LabelledOptions,
    table: TableOptions,
) -> Any:
    """Features of the split of a table: all where ids will join them, else the split's rows."""
    joined = features.ids is not None and labels.ids is not None
    if joined or table.layout == "long" or source.labels is None or source.split_column is None:
        return features
    if source.split is None:
        return features
    import numpy as np

    from catwise.data.readers.table import column_texts
    from catwise.joining import aligned_features

    names = column_texts(
        source.labels, source.split_column, delimiter=table.delimiter, header=table.header
    )
    if len(names) != features.shape[0]:
        raise ShapeError(
            f"'{source.labels}' and its features differ in their number of rows, and there are no "
            "ids.",
            found=f"{features.shape[0]:,} rows of features, {len(names):,} rows of labels",
            expected="equal numbers, or ids on both sides to join them by",
        )
    return aligned_features(features, np.flatnonzero(names == source.split))


def load_logits(path: Path, data: PairOptions, table: TableOptions, pair: Pair) -> Any:
    """Read the model's own logits of the training images, in the order of their labels.

    Rows without ids are those of the training features' file.
    """
    from catwise.features import Features, block_of, check_finite, read_features
    from catwise.joining import aligned_features, join_rows

    features, labels = pair.train
    logits: Any = read_features(path, check=False)
    check_finite(logits, name="logits")
    if logits.ids is None and features.ids is not None and logits.shape[0] == features.shape[0]:
        logits = Features(logits.values, features.ids)
    logits = split_features(logits, labels, data.train, table)
    rows = join_rows(logits, labels, name="logits").rows
    return block_of(aligned_features(logits, rows), 0, labels.n_rows)


def load_the_head(source: HeadOptions, table: TableOptions | None = None) -> Head:
    """Read the head from its own file or out of a checkpoint, and rename its rows.

    With a model the rows have the names that it knows.
    """
    from catwise.heads import load_head, read_head
    from catwise.labels.renaming import renamed

    names = None if source.head_categories is None else read_names(source.head_categories)
    if source.head is not None:
        head = load_head(source.head)
        head = head if names is None else head.replace(categories=names)
    elif source.model is not None:
        head = _of_model(source, names)
    else:
        head = read_head(
            str(source.checkpoint), key=source.head_key, bias_key=source.bias_key, categories=names
        )
    pairs = read_renames(() if table is None else table.rename)
    here = {old: new for old, new in pairs.items() if old in set(head.categories)}
    if not here:
        return head
    return head.replace(categories=renamed(head.categories, here, of="the head"))


def _of_model(source: HeadOptions, names: list[str] | None) -> Head:
    """The head of a model, with its rows' names."""
    from catwise.cli.models import OF_MODELS, model_args
    from catwise.models.registry import load_model

    options: dict[str, Any] = {"categories": names, "model_args": model_args(source.model_arg)}
    with spelled_as(OF_MODELS):
        loaded = load_model(
            source.model or "",
            checkpoint=source.checkpoint,
            **{key: value for key, value in options.items() if value},
        )
    if loaded.checkpoint is None or loaded.head is None:
        raise click.UsageError(f"--model {source.model} needs --checkpoint: its weights.")
    return loaded.head


def check_device(name: str | None) -> str | None:
    """Refuse a device that is not there."""
    if name is None:
        return None
    from catwise._device import resolve_device

    resolve_device(name)
    return name


def refuse_inputs(out: Path, *inputs: Path | str | None) -> None:
    """Refuse to write over a file that is read."""
    for path in inputs:
        if path is not None and out.exists() and Path(path).exists() and out.samefile(path):
            raise OutputError(
                f"'{out}' is one of the inputs.",
                expected="a new file: an input is never changed",
                remedy="choose another name",
            )


def read_names(path: Path) -> list[str]:
    """Read names, one a line; blank lines at the end do not count."""
    try:
        raw = read_within(path, MAX_TEXT)
        names = _listed_names(raw.decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read names from '{path}'.",
            found=getattr(error, "strerror", None) or str(error),
            expected="a text file (UTF-8) with one name a line",
        ) from error
    blank = [number for number, name in enumerate(names, 1) if not name.strip()]
    if blank or not names:
        raise ConfigError(
            f"'{path}' lacks names.",
            found=f"line {blank[0]} is blank" if blank else "an empty file",
            expected="one name a line",
        )
    return [name.strip() for name in names]


def _listed_names(text: str) -> list[str]:
    """Names one a line, or in JSON: a list, or a table of row numbers and names."""
    from catwise._json import parse
    from catwise.models.stored_names import names_by_number

    if text.lstrip()[:1] not in {"[", "{"}:
        return text.rstrip().splitlines()
    told = parse(text)
    told = told.get("id2label", told) if isinstance(told, dict) else told
    return names_by_number(told, where="the file of names")


def load_policy(policy: PolicyOptions) -> LabelPolicy | None:
    """What uncertain and blank labels count as; None where neither was given."""
    if policy.uncertain is None and policy.blank is None:
        return None
    given: dict[str, Any] = {}
    if policy.uncertain is not None:
        given["uncertain"] = _uncertain(policy.uncertain)
    if policy.blank is not None:
        given["blank"] = policy.blank
    from catwise.labels import LabelPolicy

    return LabelPolicy(**given)


def _uncertain(text: str) -> str | tuple[float, float]:
    if text in POLICIES:
        return text
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        choices = ", ".join(POLICIES)
        raise click.BadParameter(
            f"{text!r} is not one of {choices}, nor a range such as 0.55:0.85.",
            param_hint="'--uncertain'",
        ) from None
    return low, high


def describe_features(path: Path | str, features: Features | CategoryFeatures) -> dict[str, Any]:
    """What the report says about features."""
    n_rows, n_features = features.shape
    has_ids = features.ids is not None
    about = {"path": str(path), "rows": n_rows, "features": n_features, "ids": has_ids}
    groups = getattr(features, "n_groups", 0)
    return about | ({"vectors": groups, "features": n_features // groups} if groups else {})


def describe_head(source: HeadOptions, head: Head) -> dict[str, Any]:
    """What the report says about the head that was given."""
    return {
        "path": str(source.head or source.checkpoint or source.model),
        **({} if source.model is None else {"model": source.model}),
        "sha256": head.digest,
        "categories": head.n_categories,
        "features": head.n_features,
        "bias": head.bias is not None,
        "dtype": str(head.dtype).removeprefix("torch."),
        **{f"from {key}": value for key, value in head.provenance.items() if key == "key"},
    }


def environment() -> dict[str, Any]:
    """The versions on which the bytes of a result depend."""
    import platform

    import numpy as np
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
