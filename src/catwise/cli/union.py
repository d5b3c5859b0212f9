"""`catwise union`: label tables of several data sets as one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._names import DATASETS, ENCODINGS
from catwise._options import group, option
from catwise.cli.building import make_command, spelled_as
from catwise.cli.console import Output
from catwise.cli.inputs import named_paths, refuse_inputs
from catwise.cli.labelled import describe_labels, load_dataset, read_renames
from catwise.cli.options import LabelledOptions, TableOptions
from catwise.cli.outputs import hold_output
from catwise.cli.tables import TableWriter, WrittenOptions
from catwise.errors import CategoryError, ConfigError, OutputError, check_choice, nearest

_OPTION: Final = re.compile(r"--option (\w+)=")

if TYPE_CHECKING:
    from catwise.data import Dataset


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise union` is given."""

    sets: tuple[str, ...] = option(
        positional=True,
        metavar="NAME=FILE...",
        help="Label tables by the name of their source; or NAME=DATASET:FOLDER, a data set in its "
        "official layout.",
    )
    table: TableOptions = group("Label tables")
    split_column: str | None = option(
        None, metavar="NAME", first=True, help="Column of the tables that tells the split."
    )
    encoding_of: tuple[str, ...] = option(
        (),
        metavar="NAME=ENCODING",
        help="The encoding of one table, where it is another than --encoding (repeatable).",
    )
    option_of: tuple[str, ...] = option(
        (),
        metavar="NAME=OPTION=VALUE",
        help="An option of one data set's reader, such as zoo=year=2017 (repeatable).",
    )
    images: tuple[str, ...] = option(
        (),
        metavar="NAME=DIR",
        help="The folder of a set's images: files named after the ids, or where the data set's "
        "paths start (repeatable). The table then tells each image's path.",
    )
    groups: str = option(
        "source",
        choices=("source", "own"),
        help="The group of an image: its source, or its own group led by its source.",
    )
    out: Path = option(metavar="FILE", first=True, help="The label table to write (.csv).")
    written: WrittenOptions = group("Output")
    force: bool = option(default=False, help="Replace a file of this name.")
    output: Output = group("Output")


@make_command("union", "Join the labels of several data sets, category by category.")
def command(given: Options) -> None:
    """Join the labels of several data sets into one table, category by category.

    SETS are label tables (NAME=FILE) or data sets in their official layout (NAME=DATASET:FOLDER). A
    category that a set does not have is unknown in its images. Ids are led by the name of their
    source, as in "a/0001.jpg", and the source is the group, so that splits can leave out whole
    sources.
    """
    out, output = given.out, given.output
    sources = _sources(given)
    refuse_inputs(out, *(source.labels for source, _ in sources.values()))
    hold_output(out)
    if out.exists() and not given.force:
        raise OutputError(f"'{out}' exists.", remedy="another name, or --force to replace it")
    read = _read_all(given, sources)
    about = {
        name: describe_labels(source, read[name].labels, table)
        for name, (source, table) in sources.items()
    }
    from catwise.data import union

    made = union(_renamed(read, given.table.rename), groups=given.groups)  # type: ignore[arg-type]
    plain = LabelledOptions(labels=out, split_column=given.split_column)
    writer = TableWriter(made, given.table, plain, given.written, home=out.parent)
    writer.check(made.labels)
    writer.write(made.labels, out)
    _tell(read, made, output)
    notes = [*made.notes, *_without_paths(read)]
    if writer.splits_groups:
        notes.append(
            f"groups are in several splits, so that the column {writer.columns['group']!r} only "
            "says where images are from."
        )
    for note in notes:
        output.line(note)
    output.line(f"read it with: --labels {out} {writer.reading}")
    output.document(
        {
            "command": "union",
            "inputs": about,
            "table": str(out),
            "columns": writer.columns,
            "categories": list(made.labels.categories),
            "counts": made.counts,
            "notes": notes,
        }
    )


def _read_all(
    given: Options, sources: dict[str, tuple[LabelledOptions, TableOptions]]
) -> dict[str, Dataset]:
    """The labels of each set, with the paths of its images where their folder is named."""
    folders = named_paths(given.images, "--images")
    _refuse_unknown("--images", folders, sources)
    return {
        name: _with_images(_read(name, *source), folders.get(name))
        for name, source in sources.items()
    }


def _tell(read: dict[str, Dataset], made: Dataset, output: Output) -> None:
    """What each set has of the whole."""
    for name, one in read.items():
        n_known = int(one.labels.counts().known.sum())
        output.line(
            f"{name}: {len(one):,} images, {one.labels.n_categories:,} of "
            f"{made.labels.n_categories:,} categories, {n_known:,} known labels"
        )


def _sources(given: Options) -> dict[str, tuple[LabelledOptions, TableOptions]]:
    """Where the labels of each set come from, and how they are read; nothing is renamed yet."""
    found: dict[str, tuple[LabelledOptions, TableOptions]] = {}
    own, more = _encodings(given.encoding_of), _options(given.option_of)
    plain = dataclasses.replace(given.table, rename=())
    for text in given.sets:
        name, equals, place = text.partition("=")
        if not equals:
            name, place = Path(text).name.partition(".")[0], text
        if name in found or not name or not place:
            raise ConfigError(
                "each set must have a name of its own.",
                found=text,
                expected="NAME=FILE, or NAME=DATASET:FOLDER",
            )
        kind, colon, folder = place.partition(":")
        if colon and kind in DATASETS:
            bare = TableOptions(
                **{key: getattr(plain, key) for key in ("category", "hierarchy", "id_prefix",
                   "id_suffix", "strip_prefix", "strip_suffix")}
            )  # fmt: skip
            options = tuple(more.pop(name, ()))
            found[name] = LabelledOptions(dataset=kind, root=Path(folder), options=options), bare
            continue
        source = LabelledOptions(labels=Path(place), split_column=given.split_column)
        table = dataclasses.replace(plain, encoding=own[name]) if name in own else plain
        found[name] = source, _own_columns(Path(place), table)
    _refuse_unknown("--encoding-of", own, found)
    _refuse_unknown("--option-of", more, [name for name, (one, _) in found.items() if one.dataset])
    return found


def _own_columns(path: Path, table: TableOptions) -> TableOptions:
    """The options of one table, which may have no column of paths."""
    if table.path_column is None or not path.is_file():
        return table
    from catwise.data.readers.table import column_names

    there = column_names(path, table.path_column, delimiter=table.delimiter)
    return table if table.path_column in there else dataclasses.replace(table, path_column=None)


def _refuse_unknown(option: str, names: Iterable[str], sets: Iterable[str]) -> None:
    if lost := [name for name in names if name not in set(sets)]:
        raise ConfigError(
            f"{option} names no set: {lost[0]!r}{nearest(lost[0], sets)}.",
            expected=", ".join(sets),
        )


def _with_images(dataset: Dataset, folder: Path | None) -> Dataset:
    """The set with the paths of its images below a folder; blank for those that are not there."""
    ids = dataset.labels.ids
    if folder is None or ids is None:
        return dataset
    if any(dataset.paths):
        return dataclasses.replace(dataset, root=folder)
    import numpy as np

    from catwise.fixing import find_images
    from catwise.models.sources import FolderImages

    source = find_images(folder, ids, skip_missing=True).source
    if not isinstance(source, FolderImages):
        raise ConfigError(
            f"'{folder}' holds tar shards, whose samples have no paths.",
            expected="a folder of image files",
            remedy="leave --images out, and give the shards to fix",
        )
    rows = range(len(source))
    found = {name: str(source.locate(row)[0]) for row, name in zip(rows, source.ids, strict=True)}
    paths = [
        Path(found[one]).relative_to(folder).as_posix() if one in found else ""
        for one in ids.tolist()
    ]
    return dataclasses.replace(dataset, root=folder, paths=np.array(paths, dtype=np.str_))


def _without_paths(read: dict[str, Dataset]) -> list[str]:
    """Sets that do not say which file each image is, where others do."""
    there = {name: int((one.paths != "").sum()) for name, one in read.items()}
    if not any(there.values()):
        return []
    return [
        f"{name}: {len(one) - there[name]:,} images have no path; --images {name}=DIR finds them "
        "by their ids."
        for name, one in read.items()
        if there[name] < len(one)
    ]


def _read(name: str, source: LabelledOptions, table: TableOptions) -> Dataset:
    """One set; what an error says of its reader's options is said as this command has them."""
    with spelled_as({}, lambda text: _OPTION.sub(rf"--option-of {name}=\1=", text)):
        return load_dataset(source, table)


def _options(given: tuple[str, ...]) -> dict[str, list[str]]:
    """Options of readers by the name of the set."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if not (name and equals and "=" in rest):
            raise click.BadParameter(
                f"{text!r} is not NAME=OPTION=VALUE.", param_hint="'--option-of'"
            )
        found.setdefault(name, []).append(rest)
    return found


def _encodings(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, encoding = text.partition("=")
        if not equals:
            raise click.BadParameter(
                f"{text!r} is not NAME=ENCODING.", param_hint="'--encoding-of'"
            )
        check_choice("--encoding-of", encoding, ENCODINGS)
        found[name] = encoding
    return found


def _renamed(read: dict[str, Dataset], given: tuple[str, ...]) -> dict[str, Dataset]:
    """The sets with other names of categories; each new name is of a category of some set."""
    pairs: dict[str, str] = read_renames(given)
    every = {name for one in read.values() for name in one.labels.categories}
    if lost := [old for old in pairs if old not in every]:
        raise CategoryError(f"no set has a category {lost[0]!r}{nearest(lost[0], every)}.")
    made: dict[str, Any] = {}
    for name, one in read.items():
        here = {old: new for old, new in pairs.items() if old in one.labels.categories}
        labels = one.labels.rename_categories(here)
        made[name] = dataclasses.replace(one, labels=labels)
    return made
