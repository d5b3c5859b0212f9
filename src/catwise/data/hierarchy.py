"""Reading which categories are kinds of which: a table of children and parents, or a tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from catwise.data.files import open_table
from catwise.data.packed import unpacked_name
from catwise.data.readers._kit import describe, read_json
from catwise.data.source import texts_of
from catwise.errors import LabelError
from catwise.labels.hierarchy import Hierarchy

_NAME, _KINDS, _PARTS = "LabelName", "Subcategory", "Part"
_HEADERS: Final = {("child", "parent"), ("name", "parent"), ("category", "parent")}
"""Header lines of tables of children and parents."""


def read_hierarchy(path: str | os.PathLike[str]) -> Hierarchy:
    r"""Read which categories are kinds of which.

    Args:
        path: a CSV or TSV of two columns, child and parent, with or without a header line "child",
            "parent"; or a tree in JSON as Open Images has it: an object with "LabelName" and a list
            "Subcategory" of such objects. A "Part" is not a kind of what it is a part of, and is
            looked into for its own kinds alone.

    Raises:
        LabelError: If the file cannot be read, holds something else, or a category is a kind of
            itself.

    Source: https://storage.googleapis.com/openimages/web/download_v7.html, "Class hierarchy" of the
    600 boxable classes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "kinds.csv")
    ...     _ = path.write_text("child,parent\ndog,animal\n")
    ...     sorted(read_hierarchy(path).ancestors["dog"])
    ['animal']
    """
    path = Path(path)
    if unpacked_name(path).suffix.lower() == ".json":
        tree = read_json(path, "a tree of categories")
        return Hierarchy.of(_edges(path, tree))
    return Hierarchy.of(_pairs(path))


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """(child, parent) of each line of a table."""
    first = open_table(path, header=False)
    if len(first.names) != 2:
        raise LabelError(
            f"'{path}' is not a table of children and parents.",
            found=f"{len(first.names):,} columns",
            expected="two columns: child, parent",
        )
    for batch in first.batches(first.names):
        columns = [texts_of(batch.column(at)).tolist() for at in (0, 1)]
        for child, parent in zip(*columns, strict=True):
            names = child.strip(), parent.strip()
            if tuple(name.lower() for name in names) in _HEADERS:
                continue
            if not all(names):
                raise LabelError(
                    f"'{path}' has a line without a child or a parent.",
                    found=f"{child!r}, {parent!r}",
                )
            yield names


def _edges(path: Path, tree: Any) -> Iterator[tuple[str, str]]:
    """(child, parent) of each branch of a tree in JSON."""
    ahead = [tree]
    while ahead:
        node = ahead.pop()
        name = node.get(_NAME) if isinstance(node, dict) else None
        lists = [node.get(key, []) for key in (_KINDS, _PARTS)] if isinstance(node, dict) else []
        if not isinstance(name, str) or not all(isinstance(one, list) for one in lists):
            raise LabelError(
                f"'{path}' is not a tree of categories.",
                found=describe(node)
                if name is None or not isinstance(name, str)
                else "something else than a list",
                expected=f'objects with "{_NAME}" and maybe a list "{_KINDS}"',
            )
        for kind in lists[0]:
            if isinstance(kind, dict) and isinstance(kind.get(_NAME), str):
                yield kind[_NAME], name
        ahead += [*lists[0], *lists[1]]
