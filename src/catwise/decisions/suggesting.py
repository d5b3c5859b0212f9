"""What to label next, and which known labels are probably wrong.

From out-of-fold logits, in every category the same number of unknown cells whose probability is
nearest one half: choosing the cell and spending equally over categories is what brings most, more
than any list over all categories. A fifth of the cells is drawn at random instead, and marked: what
a model chose is no sample, and scores on it are wrong.

The random cells have the lowest keyed numbers of a category among all that were not known at
first. So in a later round a cell that was chosen before may turn out to be one of them: it is told
as such, and costs nothing. What is marked random stays a sample of all cells, over any number of
rounds with the same seed.

Known labels that are probably wrong are two lists: given negatives by highest probability, and
given positives by lowest. A single list by loss finds nearly no missed positive.

Source: Lewis & Gale, "A sequential algorithm for training text classifiers", SIGIR 1994
(uncertainty sampling); Northcutt, Jiang & Chuang, JAIR 70, 2021 (labels by self-confidence). All of
it is measured in docs/labelling.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._csv import rows_csv
from catwise._io import write_text
from catwise._json import json_ready
from catwise._text import plural
from catwise.decisions.inputs import HeldOut, read_held_out
from catwise.errors import IdError, check_rules
from catwise.labels import NEGATIVE, POSITIVE, UNKNOWN, PartialLabels
from catwise.labels.chosen import RANDOM, ChosenCells
from catwise.labels.draws import category_keys, draws, row_keys, uniform

UNCERTAIN: Final = "uncertain"
"""What marks a cell that was chosen, as its probability is near one half."""
RANDOM_SHARE: Final = 0.2
SUSPECTS: Final = 50
CELL_COLUMNS: Final = ("id", "category", "probability", "why", "known", "label")
SUSPECT_COLUMNS: Final = ("id", "category", "given", "probability")


@dataclass(frozen=True, eq=False, repr=False)
class Suggestions:
    """What to label next, and what to look at again.

    Attributes:
        cells: a JSON-ready dict for each cell, image by image: id, category, probability (out of
            fold), why ("uncertain" or "random"), known (whether it is known already, and is told
            here since it counts as random now), label (None, to be filled in).
        false_negatives: known negatives that are probably positive, the most probable first: id,
            category, given, probability.
        false_positives: known positives that are probably negative, the most probable first.
        notes: what to know about it, a sentence each.
    """

    cells: list[dict[str, Any]]
    false_negatives: list[dict[str, Any]]
    false_positives: list[dict[str, Any]]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        n = len(self.false_negatives) + len(self.false_positives)
        return f"Suggestions(n_cells={len(self.to_label)}, n_suspects={n})"

    @property
    def to_label(self) -> list[dict[str, Any]]:
        """The cells whose label is asked for."""
        return [cell for cell in self.cells if not cell["known"]]

    @property
    def chosen(self) -> ChosenCells:
        """The cells that a model chose, for `tune`, `evaluate` and `audit_labels`."""
        pairs = ((cell["id"], cell["category"]) for cell in self.cells)
        return ChosenCells.of(pairs, [cell["why"] for cell in self.cells])

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        found: dict[str, Any] = json_ready(
            {
                "cells": self.cells,
                "false_negatives": self.false_negatives,
                "false_positives": self.false_positives,
                "notes": list(self.notes),
            }
        )
        return found

    def write_cells(self, path: str | os.PathLike[str]) -> None:
        """Write the cells as CSV: fill in "label", and give the file as chosen cells later.

        Raises:
            OutputError: If it cannot be written.
        """
        write_text(path, rows_csv(self.cells, CELL_COLUMNS))

    def write_suspects(self, path: str | os.PathLike[str]) -> None:
        """Write both lists of known labels as CSV, one after the other.

        Raises:
            OutputError: If it cannot be written.
        """
        write_text(path, rows_csv([*self.false_negatives, *self.false_positives], SUSPECT_COLUMNS))


def suggest(
    source: Any,
    labels: PartialLabels,
    n_cells: int,
    *,
    chosen: ChosenCells | None = None,
    random_share: float = RANDOM_SHARE,
    n_suspects: int = SUSPECTS,
    seed: int = 0,
) -> Suggestions:
    """Say which cells to label next, and which known labels are probably wrong.

    Args:
        source: a `TuneResult` or its `FoldArtifacts`, whose out-of-fold logits are used, or (N, C)
            logits of rows that fitted nothing.
        labels: (N, C) of these rows, with ids; joined by id and name where both sides have them.
        n_cells: to label, in all; every category gets as many, as far as it has unknown ones. 0
            asks for known labels that are probably wrong alone.
        chosen: cells that were chosen in earlier rounds.
        random_share: of the cells that are drawn at random, in [0, 1].
        n_suspects: known labels in each of the two lists at most; only those that the logits
            contradict: the category is less likely than one half, or than in the mean of its known
            cells (of a negative: more likely).
        seed: of the draw; the same in all rounds.

    Raises:
        ConfigError: If an option is out of range, or a tuning has no out-of-fold logits.
        IdError: If labels have no ids, or a labelled row has no logits.
        CatwiseError: As `calibrate`.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(100, 2))
    >>> codes = np.where(rng.random((100, 2)) < 0.5, -1, z + rng.normal(size=z.shape) > 0)
    >>> labels = PartialLabels(codes.astype(np.int8), [f"image {i}" for i in range(100)])
    >>> found = suggest(3 * z, labels, 20)
    >>> len(found.cells), sum(cell["why"] == "random" for cell in found.cells)
    (20, 4)
    """
    values = {"n_cells": n_cells, "random_share": random_share, "n_suspects": n_suspects}
    rules = {
        "n_cells >= 0": n_cells >= 0,
        "random_share in [0, 1]": 0.0 <= random_share <= 1.0,
        "n_suspects >= 0": n_suspects >= 0,
    }
    check_rules("options of suggest", values, rules)
    held_out = read_held_out(source, labels)
    if held_out.labels.ids is None:
        raise IdError(
            "labels without ids do not tell which cells to label.",
            expected="PartialLabels(…, ids=…)",
            remedy="name their column (--id-column)",
        )
    pool = _Pool.of(held_out, chosen, seed)
    wanted = _shared_out(n_cells, pool.unknown.sum(0))
    drawn = _random_counts(wanted, random_share)
    picked = [
        pool.pick(c, int(n), int(of_these))
        for c, (n, of_these) in enumerate(zip(wanted, drawn, strict=True))
    ]
    return Suggestions(
        _cells(held_out, pool, picked),
        _suspects(held_out, pool.probability, NEGATIVE, n_suspects),
        _suspects(held_out, pool.probability, POSITIVE, n_suspects),
        _notes(held_out, wanted, n_cells),
    )


class _Picked(NamedTuple):
    """Rows of a category."""

    uncertain: NDArray[np.int64]
    random: NDArray[np.int64]
    already: NDArray[np.int64]  # chosen before and known, and now found to be of the random ones


class _Pool(NamedTuple):
    """The cells of the rows that were cross-fitted."""

    unknown: NDArray[np.bool_]  # (N, C)
    before: NDArray[np.bool_]  # (N, C) chosen in an earlier round, and known now
    probability: NDArray[np.float64]  # (N, C)
    distance: NDArray[np.float64]  # (N, C) of the logit from 0
    draw: NDArray[np.float64]  # (N, C) keyed numbers in [0, 1)

    @classmethod
    def of(cls, held_out: HeldOut, chosen: ChosenCells | None, seed: int) -> _Pool:
        labels = held_out.labels
        codes = labels.codes
        before = np.zeros(labels.shape, dtype=bool)
        if chosen is not None:
            before = chosen.mask(labels) & (codes != UNKNOWN)
        rows = row_keys(labels)
        keys = category_keys(seed, "random cell", labels.categories)
        logits = held_out.logits.double().cpu().numpy()
        draw = np.stack([uniform(draws(rows, key)) for key in keys], axis=1)
        probability = 1.0 / (1.0 + np.exp(-np.clip(logits, -700.0, 700.0)))
        return cls(codes == UNKNOWN, before, probability, np.abs(logits), draw)

    def pick(self, c: int, n: int, n_random: int) -> _Picked:
        """Of a category: n unknown cells, so many of them at random."""
        order = np.argsort(self.draw[:, c], kind="stable")
        order = order[(self.unknown | self.before)[order, c]]
        is_new = self.unknown[order, c]
        stop = int(np.searchsorted(np.cumsum(is_new), n_random, side="left")) + 1 if n_random else 0
        random, already = order[:stop][is_new[:stop]], order[:stop][~is_new[:stop]]
        left = order[stop:][is_new[stop:]]
        near = left[np.argsort(self.distance[left, c], kind="stable")]
        return _Picked(near[: n - n_random], random, already)


def _shared_out(n: int, available: NDArray[np.int64]) -> NDArray[np.int64]:
    """(C,) the same number for every category, as far as it has cells; the rest to the others."""
    wanted = np.zeros_like(available)
    left = min(n, int(available.sum()))
    while left:
        open_ = np.flatnonzero(wanted < available)
        each = max(left // open_.size, 1)
        take = np.minimum(each, available[open_] - wanted[open_])[:left]
        wanted[open_[: take.size]] += take
        left -= int(take.sum())
    return wanted


def _random_counts(wanted: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """(C,) how many of each category's cells are random, so that the share holds over all."""
    upto = np.floor(np.cumsum(wanted) * share + 1e-9).astype(np.int64)
    found: NDArray[np.int64] = np.diff(upto, prepend=0)
    return np.minimum(found, wanted)


def _cells(held_out: HeldOut, pool: _Pool, picked: Sequence[_Picked]) -> list[dict[str, Any]]:
    """A line for each cell, image by image."""
    ids = held_out.labels.ids
    assert ids is not None  # noqa: S101  # checked
    found = []
    for c, one in enumerate(picked):
        parts = ((one.uncertain, UNCERTAIN, False), (one.random, RANDOM, False),
                 (one.already, RANDOM, True))  # fmt: skip
        for rows, why, known in parts:
            found += [(int(row), c, why, known) for row in rows]
    return [
        {
            "id": str(ids[row]),
            "category": held_out.categories[c],
            "probability": float(pool.probability[row, c]),
            "why": why,
            "known": known,
            "label": None,
        }
        for row, c, why, known in sorted(found)
    ]


def _suspects(
    held_out: HeldOut, probability: NDArray[np.float64], code: int, n: int
) -> list[dict[str, Any]]:
    """Known labels of one kind, those that the logits contradict most first.

    A label is contradicted where its category is less likely (a positive) or more likely (a
    negative) than in the mean of its known cells, or than not: one half speaks against a positive
    of a rare category, too.
    """
    ids, codes = held_out.labels.ids, held_out.labels.codes
    assert ids is not None  # noqa: S101  # checked
    known = np.isin(codes, (POSITIVE, NEGATIVE))
    mean = (probability * known).sum(0) / np.maximum(known.sum(0), 1)
    if code == POSITIVE:
        against = probability < np.maximum(mean, 0.5)
    else:
        against = probability > np.minimum(mean, 0.5)
    rows, columns = np.nonzero((codes == code) & against)
    logits = held_out.logits.double().cpu().numpy()[rows, columns]
    order = np.argsort(logits if code == POSITIVE else -logits, kind="stable")[:n]
    return [
        {
            "id": str(ids[rows[at]]),
            "category": held_out.categories[columns[at]],
            "given": int(code),
            "probability": float(probability[rows[at], columns[at]]),
        }
        for at in order
    ]


def _notes(held_out: HeldOut, wanted: NDArray[np.int64], n_cells: int) -> tuple[str, ...]:
    """What to know about the cells."""
    notes = list(held_out.notes)
    total = int(wanted.sum())
    if total < n_cells:
        notes.append(f"{plural(total, 'cell')} of these rows can be labelled: no more are unknown.")
    full = [name for name, n in zip(held_out.categories, wanted, strict=True) if n < wanted.max()]
    if full and wanted.max() - wanted.min() > 1:
        notes.append(f"{plural(len(full), 'category has', 'categories have')} fewer unknown cells.")
    return tuple(notes)
