"""Cells as rows of a table: means over seeds and axes, ensembles, published figures beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from catwise.data.readers.openimages import label_count_groups
from catwise.decisions.inputs import head_logits
from catwise.decisions.members import mean_logits, pooled
from catwise.metrics import compare_logits
from catwise.metrics.pooling import Pooling
from catwise.reporting.comparing import moments
from catwise.studies.bases import make_base
from catwise.studies.cells import Cell
from catwise.studies.declared import AXES, BASE, EnsembleOptions, MeanOptions, Study
from catwise.studies.running import BASES, cell_head
from catwise.studies.sources import load_data

MEAN: Final = "mean"
ENSEMBLE: Final = "ensemble"
_DIFFERENCES: Final = ("difference", "difference_low", "difference_high")
Done = Sequence[tuple[Cell, dict[str, Any]]]


def cell_rows(study: Study, done: Done) -> list[dict[str, Any]]:
    """A row for each cell: axes, score, differences, and the outcomes of its categories."""
    rows = []
    for cell, document in done:
        mean, against = _ends(document["means"][study.metric]), _ends(document.get("against") or {})
        rows.append(
            {
                **cell._asdict(),
                "score": mean["after"],
                "base": mean["before"],
                **{key: mean[key] for key in _DIFFERENCES},
                "outcome": document["verdict"],
                **{f"against_{key}": against.get(key) for key in _DIFFERENCES},
                "against_outcome": against.get("verdict"),
                **{
                    f"{name}_{side}": one[side]
                    for name, one in document["means"].items()
                    if name != study.metric
                    for side in ("before", "after")
                },
                "seconds": sum(document["seconds"].values()),
                "key": document["key"],
                "categories": [one["outcome"] for one in document["categories"]],
                **_groups(study, cell, document),
            }
        )
    return rows


def _ends(mean: Mapping[str, Any]) -> Mapping[str, Any]:
    """A comparison; where every row is scored alike its interval is 0 to 0."""
    if mean.get("difference") == 0.0 and mean["difference_low"] is None:
        return {**mean, "difference_low": 0.0, "difference_high": 0.0}
    return mean


def _groups(study: Study, cell: Cell, document: Mapping[str, Any]) -> dict[str, Any]:
    """Means over groups of categories, those with the fewest training labels first."""
    n_groups = study.data[cell.data].groups
    if not n_groups:
        return {}
    numbers = label_count_groups(load_data(study, cell.data).splits["train"], n_groups)
    found: dict[str, Any] = {}
    for side in ("after", "before"):
        scores = [one[side] for one in document["categories"]]
        own = [[s for s, at in zip(scores, numbers, strict=True) if at == g and s is not None]
               for g in range(n_groups)]  # fmt: skip
        found[f"groups_{side}"] = [_mean(values) for values in own]
    return found


def lines_of(study: Study, folder: Path, done: Done) -> list[dict[str, Any]]:
    """The lines of the table: each combination over its seeds, means over axes, ensembles."""
    rows = cell_rows(study, done)
    rows = [*_bases(rows), *rows]
    found = [_line(study, own) for own in _grouped(rows, ("seed",))]
    for one in study.means:
        found += _means(study, one, rows)
    for several in study.ensembles:
        found += _ensembles(study, several, folder, done)
    return [{**line, **_published(study, line)} for line in found]


def _bases(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model before it is tuned."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        own = {axis: row[axis] for axis in AXES} | {"method": BASE}
        empty = dict.fromkeys((*_DIFFERENCES, "outcome"))
        empty |= {f"against_{key}": None for key in (*_DIFFERENCES, "outcome")}
        found[tuple(own.values())] = {**own, "score": row["base"], **empty, "categories": []}
        if "groups_before" in row:
            found[tuple(own.values())]["groups_after"] = row["groups_before"]
    return list(found.values())


def _grouped(rows: Iterable[Mapping[str, Any]], but: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Rows that have all axes in common but these."""
    axes = [axis for axis in AXES if axis not in but]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[axis] for axis in axes), []).append(dict(row))
    return list(groups.values())


def _line(study: Study, rows: list[dict[str, Any]], **axes: Any) -> dict[str, Any]:
    """Rows that differ by their seed as one line: means and standard deviations."""
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows}, key=str)
    found = _summed(study, rows)
    against = _summed(
        study,
        [
            {**row, **{key: row[f"against_{key}"] for key in (*_DIFFERENCES, "outcome")}}
            for row in rows
            if row["against_difference"] is not None
        ],
    )
    return {
        **{axis: axes.get(axis, first[axis]) for axis in AXES if axis != "seed"},
        "seeds": seeds,
        "n_cells": sum(row.get("n_cells", 1) for row in rows),
        "groups": _group_means(rows),
        **found,
        **{f"against_{key}": against[key] for key in (*_DIFFERENCES, "difference_sd", "verdict")},
    }


def _group_means(rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The mean of each group of categories, where all rows have them."""
    parts = [row.get("groups_after") or [] for row in rows]
    return [_mean(list(own)) for own in zip(*parts, strict=False)]


def _summed(study: Study, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations, as `compare` has them of runs."""
    means = [{**row, "category": None} for row in rows]
    outcomes = [
        {"category": i, "outcome": one} for row in rows for i, one in enumerate(row["categories"])
    ]
    return moments([*means, *outcomes], study.metric)


def _means(
    study: Study, given: MeanOptions, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A line for each combination of the other axes: the mean over some, then over seeds."""
    kept = [row for row in rows if _has(row, given.where)]
    lines = []
    for group in _grouped(kept, ("seed", *given.over)):
        each = [_averaged(own) for own in _grouped(group, given.over)]
        most = max(one["n_cells"] for one in each)
        if most > 1:  # of the seeds that have all of them
            whole = [one for one in each if one["n_cells"] == most]
            lines.append(_line(study, whole, **dict.fromkeys(given.over, MEAN)))
    return lines


def _has(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    values = {axis: row[axis] for axis in AXES}
    return all(
        values[axis] in (wanted if isinstance(wanted, (list, tuple)) else (wanted,))
        for axis, wanted in where.items()
    )


def _averaged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of cells of one seed; the mean of their intervals is never too short."""
    keys = ("score", *_DIFFERENCES, *(f"against_{key}" for key in _DIFFERENCES))
    means = {key: _mean([row[key] for row in rows]) for key in keys}
    joined = {"n_cells": len(rows), "categories": [c for row in rows for c in row["categories"]]}
    return {**rows[0], **means, "outcome": None, "against_outcome": None, **joined}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) and known else None


def _ensembles(
    study: Study, given: EnsembleOptions, folder: Path, done: Done
) -> list[dict[str, Any]]:
    """A line for each combination of the other axes: the mean of the members' probabilities."""
    kept = [(cell, document) for cell, document in done if cell.matches(given.where)]
    groups: dict[Cell, list[tuple[Cell, dict[str, Any]]]] = {}
    for cell, document in kept:
        named: dict[str, Any] = dict.fromkeys(given.over, ENSEMBLE)
        shared = cell._replace(**named)
        groups.setdefault(shared, []).append((cell, document))
    rows = []
    for shared, own in groups.items():
        if len(own) > 1:
            rows += _ensemble_rows(study, shared, folder, own)
    return [_line(study, group) for group in _grouped(rows, ("seed",))]


def _ensemble_rows(study: Study, shared: Cell, folder: Path, own: Done) -> list[dict[str, Any]]:
    """The ensemble of the models before and after, on the test rows."""
    data = load_data(study, shared.data)
    labels = data.splits["test"]
    sides: list[list[Any]] = [[], []]
    for cell, document in own:
        base = make_base(study, cell, folder / BASES / document["base"])
        test = base.pair("test")
        assert test is not None  # noqa: S101  # cells have test rows
        for side, head in zip(sides, (base.head, cell_head(folder, document["key"])), strict=True):
            side.append(head_logits(head, test)[0].double().numpy())
    pooling = Pooling.of(data.by, labels, study.data[shared.data].pool)
    weights = np.full((len(own), labels.n_categories), 1 / len(own))
    before, after = (pooled(mean_logits(side, weights, "probability"), pooling) for side in sides)
    truth = labels if pooling is None else pooling.labels(labels)
    found = compare_logits(before, after, truth, study.metric, level=study.level)
    mean, none = found.mean(), {f"against_{key}": None for key in (*_DIFFERENCES, "outcome")}
    row = {
        **shared._asdict(),
        "score": mean["after"],
        **{key: mean[key] for key in _DIFFERENCES},
        "outcome": found.verdict,
        **none,
        "categories": list(found.outcome),
        "n_cells": len(own),
    }
    first = {**row, "method": BASE, "score": mean["before"], "categories": [], "outcome": None}
    return [{**first, **dict.fromkeys(_DIFFERENCES)}, row]


def _published(study: Study, line: Mapping[str, Any]) -> dict[str, Any]:
    """The published figure of a line, if there is one."""
    for one in study.published:
        if all(_is_at(line, axis, value) for axis, value in one.where.items()):
            return {"published": one.score, "source": one.source}
    return {"published": None, "source": None}


def _is_at(line: Mapping[str, Any], axis: str, value: Any) -> bool:
    if axis == "seed":
        return [str(value)] == [str(seed) for seed in line["seeds"]]
    return bool(line[axis] == value)
