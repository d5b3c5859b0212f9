"""The images that a command is given: a folder, a table over a folder, tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from catwise.models.sources import ImageSource


def read_images(
    root: Path, table: Path | None, path_column: str, id_column: str | None
) -> ImageSource:
    """The images of a folder, of a table over a folder, or of tar shards."""
    from catwise.errors import ConfigError
    from catwise.models.sources import FolderImages, TarImages, find_shards

    shards = find_shards(root)
    if table is not None and not shards:
        paths, ids = _columns(table, path_column, id_column)
        return FolderImages(root, paths, ids)
    if id_column is not None and table is None:
        raise click.UsageError("--id-column belongs to --table.")
    if not shards:
        return FolderImages.scan(root)
    if table is not None or _holds_images(root):
        raise ConfigError(
            f"'{root}' holds tar shards: what else is meant is not clear.",
            found=f"{len(shards):,} shards, and " + ("a table" if table else "image files"),
            remedy="give a folder that holds either shards or images; shards take no --table",
        )
    return TarImages(shards)


def read_units(
    by: str, table: Path | None, path_column: str, id_column: str | None, group_column: str | None
) -> Any:
    """What --by names, for the library: by the table's columns where the ids do not tell."""
    from catwise.errors import IdError
    from catwise.metrics.pooling import folders

    if by == "image" or table is None or (by == "study" and id_column is None):
        return by
    own = path_column if id_column is None else id_column
    key, role = (path_column, "the paths of the images")
    if by == "patient":
        key, role = str(group_column), "the patients"
    found = _texts(table, {own: "the ids", key: role})
    groups = folders(found[key]) if by == "study" else found[key]
    units: dict[str, str] = {}
    for one, unit in zip(found[own].tolist(), groups.tolist(), strict=True):
        if not unit or units.setdefault(one, unit) != unit:
            raise IdError(
                f"'{table}' does not tell one {by} of {one!r}.",
                found=repr(unit) + (f" and {units[one]!r}" if unit else ""),
                expected=f"one {by} in each row, and the same for the same id",
            )
    return units


def _holds_images(root: Path) -> bool:
    from catwise.errors import ConfigError
    from catwise.models.sources import FolderImages

    try:
        return len(FolderImages.scan(root)) > 0
    except ConfigError:
        return False


def _columns(table: Path, path_column: str, id_column: str | None) -> tuple[Any, Any]:
    """The paths and, if their column is named, the ids."""
    roles = {path_column: "the paths of the images"}
    columns = _texts(table, roles if id_column is None else roles | {id_column: "the ids"})
    return columns[path_column], None if id_column is None else columns[id_column]


def _texts(table: Path, roles: dict[str, str]) -> dict[str, Any]:
    """Columns of texts, by what they are for."""
    import numpy as np

    from catwise.data.source import texts_of
    from catwise.data.table import open_labels

    names = list(roles)
    file = open_labels(table, names)
    for name, role in roles.items():
        file.require(name, role)
    found: dict[str, list[Any]] = {name: [] for name in names}
    for batch in file.batches(names):
        for name, texts in found.items():
            texts.append(texts_of(batch.column(name), name, file))
    return {name: np.concatenate(texts) for name, texts in found.items()}
