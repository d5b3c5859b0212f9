"""What curves are drawn from: a head's scores of the known rows of each category, thinned.

Nothing is scored or chosen from these; they are pictures of rows that were scored elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise.labels import PartialLabels
from catwise.metrics.inputs import Array, checked_labels, known_scores, label_shape

BINS: Final = 10
"""Bins of equal mass of a reliability diagram, at most."""

STEPS: Final = 20
"""Steps of equal width of a distribution of scores."""

MOVED: Final = 6
"""Images of a category whose probability moved most, at most."""

_POINTS: Final = 24
_FEW_POINTS: Final = 10
_FEW_MOVED: Final = 3
_MANY: Final = 500


@dataclass(frozen=True, kw_only=True)
class HeadCurves:
    """One head on the known rows of one category."""

    true: Annotated[list[int], "positives that score at least a cut-off, for falling cut-offs"]
    false: Annotated[list[int], "negatives that score at least the same cut-offs"]
    probability: Annotated[list[float], "mean probability in bins of equally many rows"]
    positive: Annotated[list[int], "positives in these bins"]
    rows: Annotated[list[int], "rows in these bins"]
    low: Annotated[float, "logit where the distribution begins"]
    high: Annotated[float, "logit where it ends"]
    positives_at: Annotated[list[int], "positives in steps of equal width from low to high"]
    negatives_at: Annotated[list[int], "negatives in these steps"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class MovedRow:
    """One known row, and its probability with either head."""

    id: Annotated[str | None, "of the image (or study, or patient); null where there are no ids"]
    row: Annotated[int, "its place among the rows, from 0"]
    before: Annotated[float, "probability by the original head"]
    after: Annotated[float, "probability by the new head"]
    positive: Annotated[bool, "whether its known label is positive"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class CategoryCurves:
    """One category: how its known rows score, by head ("before" and "after", or "score").

    `moved` are the known rows whose probability differs most between the two heads, most first.
    """

    category: str
    n_positive: int
    n_negative: int
    heads: Mapping[str, HeadCurves]
    moved: tuple[MovedRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        heads = {name: one.to_dict() for name, one in self.heads.items()}
        return {
            "category": self.category,
            "n_positive": self.n_positive,
            "n_negative": self.n_negative,
            "heads": heads,
            **({"moved": [one.to_dict() for one in self.moved]} if "after" in heads else {}),
        }


class CurveCollector:
    """Curves of all categories, block by block; labels are all (N, C)."""

    def __init__(self, categories: tuple[str, ...]) -> None:
        self._categories = categories
        many = len(categories) > _MANY
        self._points = _FEW_POINTS if many else _POINTS
        self._most = _FEW_MOVED if many else MOVED
        self._found: list[CategoryCurves] = []

    def add(self, block: slice, logits: Mapping[str, Array], labels: PartialLabels | Array) -> None:
        """Take a block of B categories in: (N, B) logits by head, and their labels."""
        sides = {name: torch.as_tensor(one) for name, one in logits.items()}
        labels = checked_labels(labels)
        ids = labels.ids if isinstance(labels, PartialLabels) else None
        for at, c in enumerate(range(block.start, block.stop)):
            known = {name: known_scores(side, labels, at) for name, side in sides.items()}
            scores = {name: one.scores.astype(np.float64) for name, one in known.items()}
            first = next(iter(known.values()))
            positive = first.positive
            heads = {
                name: curves_of(side, positive, points=self._points)
                for name, side in scores.items()
                if positive.size
            }
            moved = _moved(scores, first.rows, positive, ids, most=self._most)
            n_positive = int(np.count_nonzero(positive))
            self._found.append(
                CategoryCurves(
                    category=self._categories[c],
                    n_positive=n_positive,
                    n_negative=positive.size - n_positive,
                    heads=heads,
                    moved=moved,
                )
            )

    def result(self) -> tuple[CategoryCurves, ...]:
        """All categories so far."""
        return tuple(self._found)


def draw_curves(
    logits: Mapping[str, Array], labels: PartialLabels | Array, categories: tuple[str, ...]
) -> tuple[CategoryCurves, ...]:
    """Curves of (N, C) logits by head on the known rows of (N, C) labels.

    >>> logits = {"score": np.array([[2.0], [1.0], [0.0], [-1.0]])}
    >>> found = draw_curves(logits, np.array([[1], [0], [1], [0]]), ("cat",))[0]
    >>> found.heads["score"].true, found.heads["score"].false
    ([0, 1, 1, 2, 2], [0, 0, 1, 1, 2])
    """
    collector = CurveCollector(categories)
    collector.add(slice(0, label_shape(labels)[1]), logits, labels)
    return collector.result()


def curves_of(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], *, points: int = _POINTS
) -> HeadCurves:
    """Of the (n,) logits of known rows, at least one."""
    order = np.argsort(scores)
    ranked, hits = scores[order], positive[order]
    starts = np.append(0, np.flatnonzero(np.diff(ranked)) + 1)  # of each distinct logit
    true, false = _operating_points(hits, starts, points)
    probability, n_positive, rows = _bins(ranked, hits, starts)
    low, high = float(ranked[0]), float(ranked[-1])
    place = np.minimum(
        (STEPS * ((ranked - low) / ((high - low) or 1.0))).astype(np.int64), STEPS - 1
    )
    return HeadCurves(
        true=true.tolist(),
        false=false.tolist(),
        probability=[float(f"{value:.4g}") for value in probability],
        positive=n_positive.tolist(),
        rows=rows.tolist(),
        low=float(f"{low:.4g}"),
        high=float(f"{high:.4g}"),
        positives_at=np.bincount(place[hits], minlength=STEPS).tolist(),
        negatives_at=np.bincount(place[~hits], minlength=STEPS).tolist(),
    )


def _moved(
    scores: Mapping[str, NDArray[np.float64]],
    rows: NDArray[np.int64],
    positive: NDArray[np.bool_],
    ids: NDArray[np.str_] | None,
    *,
    most: int,
) -> tuple[MovedRow, ...]:
    """The known rows whose probability differs most; none that is the same, none of one head."""
    if scores.keys() != {"before", "after"}:
        return ()
    before, after = _sigmoid(scores["before"]), _sigmoid(scores["after"])
    change = np.abs(after - before)
    order = np.argsort(-change, kind="stable")[:most]  # of equal ones the first rows
    return tuple(
        MovedRow(
            id=None if ids is None else str(ids[rows[at]]),
            row=int(rows[at]),
            before=float(f"{before[at]:.4g}"),
            after=float(f"{after[at]:.4g}"),
            positive=bool(positive[at]),
        )
        for at in order.tolist()
        if change[at] > 0
    )


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        found: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logits))
    return found


def _operating_points(
    hits: NDArray[np.bool_], starts: NDArray[np.int64], points: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positives and negatives from each cut-off up; tied rows are one cut-off.

    Kept are the cut-offs that first reach evenly spaced shares of the positives, or of the
    negatives: what is between them lies within one such step of both curves.
    """
    below = np.append(0, np.cumsum(hits))[starts]  # positives that score less
    true = np.append(0, (int(np.count_nonzero(hits)) - below)[::-1])
    false = np.append(0, (hits.size - starts)[::-1]) - true
    kept = [np.array([0, true.size - 1])]
    for total in (true, false):
        levels = np.linspace(0, total[-1], points + 1)[1:]
        kept.append(np.searchsorted(total, levels))
    index = np.unique(np.concatenate(kept))
    return true[index].astype(np.int64), false[index].astype(np.int64)


def _bins(
    ranked: NDArray[np.float64], hits: NDArray[np.bool_], starts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Mean probability, positives and rows by the rule of `ece_columns`, in fewer bins."""
    place = BINS * starts // ranked.size  # of a distinct logit, by the rows that score less
    first = starts[np.append(0, np.flatnonzero(np.diff(place)) + 1)]
    rows = np.diff(np.append(first, ranked.size))
    mean = np.add.reduceat(_sigmoid(ranked), first) / rows
    return mean, np.add.reduceat(hits.astype(np.int64), first), rows
