"""Reading the cells that a model chose, from the tables that `catwise suggest` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from catwise._csv import armed
from catwise.data.source import texts_of
from catwise.data.table import open_labels
from catwise.labels.chosen import ChosenCells

ID, CATEGORY, WHY = "id", "category", "why"


def read_chosen(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> ChosenCells:
    """Read the cells that a model chose.

    Args:
        paths: one table or several (CSV, TSV, Parquet, JSON lines) with columns "id" and
            "category". Where there is a column "why", cells that are "random" in one of the tables
            are not chosen.

    Raises:
        LabelError: If a table cannot be read, or lacks a column.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    cells: list[tuple[str, str]] = []
    marks: list[str] = []
    for path in map(Path, paths):
        file = open_labels(path, [ID, CATEGORY, WHY])
        for name, role in ((ID, "the ids"), (CATEGORY, "the categories")):
            file.require(name, role)
        has_why = WHY in file.names
        names = [ID, CATEGORY, WHY] if has_why else [ID, CATEGORY]
        for batch in file.batches(names):
            ids, categories = (
                [armed(text) for text in texts_of(batch.column(name), name, file).tolist()]
                for name in names[:2]
            )
            cells += zip(ids, categories, strict=True)
            marks += texts_of(batch.column(WHY), WHY, file).tolist() if has_why else [""] * len(ids)
    return ChosenCells.of(cells, marks)
