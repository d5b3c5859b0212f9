"""Reading the labels that options name: a table, or a data set in its official layout."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise.cli.building import given_options, spelled_as
from catwise.cli.options import LabelFiles, LabelledOptions, TableOptions
from catwise.cli.reader_options import option_value
from catwise.errors import CatwiseError, ConfigError, nearest, reason_of

if TYPE_CHECKING:
    from catwise.cli.console import Output
    from catwise.data import Dataset
    from catwise.labels import ChosenCells, PartialLabels

_CONFLICTS: Final = 20
FOR_ALL: Final = (
    "category",
    "rename",
    "hierarchy",
    "id_prefix",
    "id_suffix",
    "strip_prefix",
    "strip_suffix",
)
"""Options of tables that hold for data sets too."""

_OF_TABLES: Final = {"categories": "--category", "ignore": "--ignore-column"}
"""What arguments of `read_table` are called here, where that is not their own name."""


def load_dataset(source: LabelledOptions, table: TableOptions) -> Dataset:
    """Read a label table, or a data set in its official layout, with all that is known of its rows.

    Splits of a table are those of its split column; without one they are blank, as its paths are.
    """
    dataset = _load(source, table)
    if table.rename:
        labels = dataset.labels.rename_categories(read_renames(table.rename))
        dataset = dataclasses.replace(dataset, labels=labels)
    return dataset if table.hierarchy is None else _with_ancestors(dataset, table.hierarchy)


def _with_ancestors(dataset: Dataset, path: Path) -> Dataset:
    """The data set with what follows from a hierarchy, counted."""
    from catwise.data import read_hierarchy

    found = read_hierarchy(path).apply(dataset.labels)
    counts = {
        "positives_by_hierarchy": found.n_positive,
        "negatives_by_hierarchy": found.n_negative,
        "conflicts_with_hierarchy": found.n_conflicts,
    }
    n_new = f"{found.n_positive:,} more positives and {found.n_negative:,} more negatives"
    notes = [f"By the hierarchy of '{path}': {n_new}."]
    if found.conflicts:
        shown = [
            f"{one.image!r}: {one.positive!r} positive, {one.negative!r} negative"
            for one in found.conflicts[:_CONFLICTS]
        ]
        rest = found.n_conflicts - len(shown)
        more = f"; and {rest:,} more" if rest else ""
        notes.append(f"Known labels contradict the hierarchy: {'; '.join(shown)}{more}.")
    return dataclasses.replace(
        dataset,
        labels=found.labels,
        counts={**(dataset.counts or {}), **counts},
        notes=(*dataset.notes, *notes),
    )


def read_renames(given: Sequence[str]) -> dict[str, str]:
    """New names by the old ones, from OLD=NEW texts and files of such lines, or of JSON."""
    from catwise._json import parse
    from catwise._limits import MAX_TEXT, read_within

    pairs: list[str] = []
    found: dict[str, str] = {}
    for text in given:
        if "=" in text:
            pairs.append(text)
            continue
        try:
            content = read_within(Path(text), MAX_TEXT).decode("utf-8-sig")
            told = parse(content) if content.lstrip().startswith("{") else None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot read new names from '{text}'.",
                found=reason_of(error),
                expected="OLD=NEW, or a file (UTF-8) of such lines, or of JSON: names by old names",
            ) from error
        found |= {str(old): str(new) for old, new in (told or {}).items()}
        pairs += [] if told is not None else [line for line in content.splitlines() if line.strip()]
    for text in pairs:
        old, equals, new = (part.strip() for part in text.partition("="))
        if not (old and equals and new) or "=" in new:
            raise ConfigError(
                "a new name must be given as OLD=NEW.",
                found=f"--rename {text}",
                remedy='where a name holds \'=\', a file of JSON says it: {"OLD": "NEW"}',
            )
        found[old] = new
    return found


def known_categories(
    labels: PartialLabels, head: Sequence[str], how: str, output: Output | None = None
) -> PartialLabels:
    """Labels without the categories that a head does not have, where these are to be ignored."""
    from catwise.joining import has_default_names

    if how != "ignore" or has_default_names(head) or has_default_names(labels.categories):
        return labels
    there = set(head)
    kept = [name for name in labels.categories if name in there]
    lost = [name for name in labels.categories if name not in there]
    if not kept or not lost:
        return labels
    if output is not None:
        from catwise._text import plural, some

        what = plural(len(lost), "category is", "categories are")
        output.line(f"{what} not of the head, and ignored: {some(lost)}")
    return labels.take_categories(kept)


def _load(source: LabelledOptions, table: TableOptions) -> Dataset:
    """What `load_dataset` gives, before anything is renamed."""
    if source.labels is not None:
        return _read_table(source.labels, table, source.split_column, source.split)
    for name, value in _given(table).items():
        if name not in FOR_ALL:
            option = "no-header" if value is False else name.replace("_", "-")
            raise click.UsageError(
                f"--{option} belongs to --labels; --option NAME=VALUE is for the data set's reader."
            )
    dataset = _read_dataset(source, table.category)
    if table.category:
        labels = dataset.labels.take_categories(table.category)
        dataset = dataclasses.replace(dataset, labels=labels)
    return _with_affixes(dataset, table)


def _read_table(
    path: Path, table: TableOptions, split_column: str | None, split: str | None
) -> Dataset:
    from catwise.data import read_table

    options: dict[str, Any] = {"encoding": _encoding(table)}
    if table.layout == "lists":
        options = {"others": table.others, "separator": table.separator}
        options |= {f"{role}_key": name for role, name in table.list_columns.items()}
    elif table.layout == "long":
        columns = {"category_column": table.category_column, "value_column": table.value_column}
        options |= {name: column for name, column in columns.items() if column is not None}
    if table.category:
        options["categories"] = list(table.category)
    with _recognised(path), spelled_as(_OF_TABLES):
        return read_table(
            path,
            layout=table.layout,  # type: ignore[arg-type]  # click.Choice
            id_column=table.id_column,
            group_column=table.group_column,
            split_column=split_column,
            split=split,
            path_column=table.path_column,
            ignore=table.ignore_column,
            delimiter=table.delimiter,
            header=table.header,
            id_prefix=table.id_prefix,
            id_suffix=table.id_suffix,
            strip_prefix=table.strip_prefix,
            strip_suffix=table.strip_suffix,
            **options,
        )


def dataset_hint(path: Path) -> str | None:
    """How a table is read better that is of a data set in its official layout."""
    import shlex

    from catwise.data.recognising import recognised_dataset

    found = recognised_dataset(path)
    if found is None:
        return None
    name, root = found
    options = shlex.join(["--dataset", name, "--root", str(root)])
    return f"this looks like a table of the data set {name}: {options} reads it as it is meant"


@contextlib.contextmanager
def _recognised(path: Path) -> Iterator[None]:
    """Errors about the table of a data set say how that is read."""
    try:
        yield
    except CatwiseError as error:
        hint = dataset_hint(path)
        if hint is None:
            raise
        told = {"found": error.found, "expected": error.expected}
        remedy = hint if error.remedy is None else f"{error.remedy}; or: {hint}"
        raise type(error)(error.what, **told, remedy=remedy) from error


def reading_options(source: LabelFiles, table: TableOptions) -> list[str]:
    """The options by which these labels were read, to be given to another command."""
    return given_options(source, table, leave_out=("split",))


def _encoding(table: TableOptions) -> Any:
    """What the values of a table mean: a named encoding, or what --code says of each value."""
    if not table.code:
        return table.encoding
    from catwise.labels import encoding_of

    meanings: dict[Any, str] = {}
    for text in table.code:
        value, equals, meaning = text.rpartition("=")
        raw = None if value.strip().lower() == "blank" else value.strip()
        if not equals or raw == "" or raw in meanings:
            raise click.BadParameter(
                f"{text!r} is not VALUE=MEANING, each value once; a blank is called blank.",
                param_hint="'--code'",
            )
        meanings[raw] = meaning.strip()
    return encoding_of(meanings)


def _read_dataset(source: LabelledOptions, categories: Sequence[str]) -> Dataset:
    """Call the reader of a data set with the options that were given, and the categories."""
    import inspect

    from catwise.data import readers

    reader = getattr(readers, f"read_{source.dataset}")
    parameters = dict(inspect.signature(reader).parameters)
    first, *_ = parameters
    del parameters[first]
    given: dict[str, list[str]] = {} if source.split is None else {"split": [source.split]}
    for text in source.options:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in parameters:
            raise ConfigError(
                f"the reader of {source.dataset!r} has no such option."
                if equals
                else "an option of a reader must be NAME=VALUE.",
                found=f"--option {text}{nearest(name, parameters)}",
                expected=", ".join(parameters),
            )
        given.setdefault(name, []).append(value)
    if categories and "categories" in parameters:
        given.setdefault("categories", list(categories))
    options = {
        name: option_value(name, texts, str(parameters[name].annotation))
        for name, texts in given.items()
    }
    assert source.root is not None  # noqa: S101 - the options say so
    with spelled_as({name: f"--option {name}=" for name in parameters}):
        found: Dataset = reader(source.root, **options)
    return found


def load_chosen(paths: tuple[Path, ...]) -> ChosenCells | None:
    """The cells that a model chose; None where no table is given."""
    if not paths:
        return None
    from catwise.data.chosen import read_chosen

    return read_chosen(paths)


def with_cell_labels(
    labels: PartialLabels, chosen: ChosenCells | None, output: Output | None = None
) -> PartialLabels:
    """The labels with those that were filled in beside the cells; says how many are new."""
    if chosen is None or not chosen.labelled:
        return labels
    added = chosen.added_to(labels)
    before, after = (int(one.counts().known.sum()) for one in (labels, added))
    if output is not None and after > before:
        output.line(f"{after - before:,} labels of the cells of --chosen were added")
    return added


def scored_as_one(dataset: Dataset, by: str) -> Any:
    """What --by names, for the library: studies by the images' paths if the ids are none."""
    from catwise.metrics.pooling import units_by_paths

    return units_by_paths(by, dataset.labels.ids, dataset.paths)


def _with_affixes(dataset: Dataset, table: TableOptions) -> Dataset:
    """The ids of a data set as the features have them."""
    from catwise.data.source import IdAffixes
    from catwise.labels import PartialLabels

    affixes = IdAffixes(table.id_prefix, table.id_suffix, table.strip_prefix, table.strip_suffix)
    labels = dataset.labels
    if labels.ids is None or not any(affixes):
        return dataset
    ids = affixes.apply(labels.ids, lambda i: f"image {i + 1:,} of {dataset.name}")
    content: Any = labels.as_columns() if labels.storage == "columns" else labels.codes
    renamed = PartialLabels.from_content(
        content,
        labels.n_rows,
        labels.categories,
        ids=ids,
        groups=labels.groups,
        storage=labels.storage,
    )
    return dataclasses.replace(dataset, labels=renamed)


def _given(table: TableOptions) -> dict[str, Any]:
    """The options of a table that were given: they decide what its values mean."""
    every = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    return {
        name: list(value)
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in every.items()
        if value not in (None, "", ()) and (name, value) != ("layout", "wide")
    }


def describe_labels(
    source: LabelledOptions | Path, labels: PartialLabels, table: TableOptions
) -> dict[str, Any]:
    """What the report says about labels and where they came from."""
    counts = labels.counts()
    about: dict[str, Any] = {"path": str(source), **_given(table)}
    if not isinstance(source, Path):
        about["path"] = str(source.labels if source.labels is not None else source.root)
        if source.dataset is not None:
            about = {"dataset": source.dataset, "options": list(source.options), **about}
        for name in ("split_column", "split"):
            if getattr(source, name) is not None:
                about[name] = getattr(source, name)
    return {
        **about,
        "rows": labels.shape[0],
        "categories": labels.shape[1],
        "positive": int(counts.positive.sum()),
        "negative": int(counts.negative.sum()),
        "uncertain": int(counts.uncertain.sum()),
        "ids": labels.ids is not None,
        "groups": labels.groups is not None,
    }
