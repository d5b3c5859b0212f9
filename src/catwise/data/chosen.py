"""Reading the cells that a model chose, from the tables that `catwise suggest` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from catwise._csv import armed
from catwise.data.source import texts_of
from catwise.data.table import open_labels
from catwise.errors import LabelError
from catwise.labels.chosen import ChosenCells
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN

ID, CATEGORY, WHY, LABEL = "id", "category", "why", "label"

_MEANINGS: Final = {
    **dict.fromkeys(("1", "1.0", "positive"), POSITIVE),
    **dict.fromkeys(("0", "0.0", "negative"), NEGATIVE),
    "uncertain": UNCERTAIN,
}


def read_chosen(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> ChosenCells:
    """Read the cells that a model chose.

    Args:
        paths: one table or several (CSV, TSV, Parquet, JSON lines) with columns "id" and
            "category". Where there is a column "why", cells that are "random" in one of the tables
            are not chosen. Where there is a column "label", what is filled in there (1, 0,
            positive, negative or uncertain) goes along: `ChosenCells.added_to` adds it to labels.

    Raises:
        LabelError: If a table cannot be read, lacks a column or has another label, or two labels of
            one cell differ.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    cells: list[tuple[str, str]] = []
    marks: list[str] = []
    labelled: dict[tuple[str, str], int] = {}
    for path in map(Path, paths):
        file = open_labels(path, [ID, CATEGORY, WHY, LABEL])
        for name, role in ((ID, "the ids"), (CATEGORY, "the categories")):
            file.require(name, role)
        has_why, has_label = WHY in file.names, LABEL in file.names
        names = [ID, CATEGORY, *([WHY] if has_why else []), *([LABEL] if has_label else [])]
        for batch in file.batches(names):
            ids, categories = (
                [armed(text) for text in texts_of(batch.column(name), name, file).tolist()]
                for name in names[:2]
            )
            pairs = list(zip(ids, categories, strict=True))
            cells += pairs
            if has_label:
                texts = texts_of(batch.column(LABEL), LABEL, file).tolist()
                _note(labelled, pairs, texts, path)
            marks += texts_of(batch.column(WHY), WHY, file).tolist() if has_why else [""] * len(ids)
    return ChosenCells.of(cells, marks, labelled)


def _note(
    labelled: dict[tuple[str, str], int],
    cells: Sequence[tuple[str, str]],
    texts: Sequence[str],
    path: Path,
) -> None:
    """Take the labels that were filled in."""
    for cell, text in zip(cells, texts, strict=True):
        word = text.strip().lower()
        if not word:
            continue
        if word not in _MEANINGS:
            raise LabelError(
                f"'{path}' has a label that is not known, of {cell[0]!r} and {cell[1]!r}.",
                found=repr(text),
                expected="1, 0, positive, negative, uncertain, or nothing",
            )
        if labelled.setdefault(cell, _MEANINGS[word]) != _MEANINGS[word]:
            raise LabelError(
                f"two labels of {cell[0]!r} and {cell[1]!r} differ.",
                found=f"{text!r} in '{path}', another one before",
                remedy="correct one of the two",
            )
