"""Rows in coordinates, metrics inside folds, and blocks of categories: what a preset works on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from catwise.metrics import METRICS
from catwise.metrics.ranking import RankingPlan
from catwise.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from catwise.metrics import Metric

__all__ = ["Counter", "FoldScorer", "Rows", "category_blocks", "moved", "prepared_metric"]

_BLOCK_ENTRIES = 1 << 24


class Rows(NamedTuple):
    """Rows of one source in coordinates, with the original logits and the known labels.

    Attributes:
        x: (n, k) float32.
        logits: (C, n) float32, of the original head as stored.
        codes: (C, n) int8; 1 positive, 0 negative, all else unknown. They choose and score.
        intercept: whether the head has a bias to take an intercept up.
        target: (C, n) float32 in [0, 1], what is fitted, where a label policy says more than
            the codes; else None.
        weight: (C, n) float32 of the targets, or None.
    """

    x: Tensor
    logits: Tensor
    codes: Tensor
    intercept: bool = True
    target: Tensor | None = None
    weight: Tensor | None = None

    def take(self, categories: slice, rows: Tensor | None = None) -> Rows:
        """Some categories, and all rows or some."""

        def cut(values: Tensor) -> Tensor:
            part = values[categories]
            return part if rows is None else part[:, rows]

        return Rows(
            self.x if rows is None else self.x[rows],
            cut(self.logits),
            cut(self.codes),
            self.intercept,
            None if self.target is None else cut(self.target),
            None if self.weight is None else cut(self.weight),
        )

    def known(self) -> Rows:
        """The rows with any label to fit."""
        fitted = self.codes >= 0 if self.weight is None else self.weight > 0
        return self.take(slice(None), fitted.any(0).nonzero().flatten())


class FoldScorer:
    """A metric inside every fold.

    Args:
        codes: (C, n) int8 of the fresh rows.
        fold: (n,) fold of each row.
        metric: what is scored.

    Attributes:
        positives: (F, C) known positives of each fold; 0 where a class is missing there.
    """

    def __init__(self, codes: Tensor, fold: NDArray[np.int8], metric: Metric) -> None:
        self._codes, self._metric = codes, metric
        self._rows = [
            torch.from_numpy(np.flatnonzero(fold == f)).to(codes.device)
            for f in range(int(fold.max()) + 1)
        ]
        counted = [codes[:, rows] for rows in self._rows]
        positive = torch.stack([(part == 1).sum(1) for part in counted])
        negative = torch.stack([(part == 0).sum(1) for part in counted])
        both = torch.where((positive > 0) & (negative > 0), positive, 0)
        self.positives: NDArray[np.float64] = both.cpu().numpy().astype(np.float64)
        self._scorers: dict[tuple[int, int], list[Callable[[Tensor], Tensor]]] = {}

    def __call__(self, logits: Tensor, block: slice) -> NDArray[np.float64]:
        """(F, B) scores of (B, n) logits of a block of categories."""
        scorers = self._of(block)[1:]
        parts = [s(logits[:, rows]) for s, rows in zip(scorers, self._rows, strict=True)]
        return torch.stack(parts).cpu().numpy()

    def whole(self, logits: Tensor, block: slice) -> NDArray[np.float64]:
        """(B,) scores on all rows together."""
        score: NDArray[np.float64] = self._of(block)[0](logits).cpu().numpy()
        return score

    def _of(self, block: slice) -> list[Callable[[Tensor], Tensor]]:
        key = (block.start or 0, block.stop or 0)
        if key not in self._scorers:
            codes = self._codes[block]
            parts = [codes, *(codes[:, rows] for rows in self._rows)]
            self._scorers[key] = [prepared_metric(self._metric, part) for part in parts]
        return self._scorers[key]


def prepared_metric(metric: Metric, codes: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from (B, n) logits to (B,) scores against fixed (B, n) codes."""
    if metric is METRICS["average_precision"]:
        return RankingPlan(codes).average_precision
    if metric is METRICS["auroc"]:
        return RankingPlan(codes).auroc
    return lambda logits: metric.columns(logits, codes)


def moved(rows: Rows, delta: Tensor, intercept: Tensor, at: Tensor) -> Tensor:
    """(C, m) logits of some rows after a change."""
    return rows.logits[:, at] + torch.addmm(intercept[:, None], delta, rows.x[at].T)


def category_blocks(fresh: Rows, train: Rows | None) -> Iterator[slice]:
    """Blocks of categories whose entries stay bounded, whatever the machine."""
    n = fresh.x.shape[0] + (0 if train is None else train.x.shape[0])
    width = max(1, _BLOCK_ENTRIES // max(n, 1))
    n_categories = fresh.logits.shape[0]
    for start in range(0, n_categories, width):
        yield slice(start, min(start + width, n_categories))


class Counter:
    """Tells the caller how many pieces are done."""

    def __init__(self, progress: ProgressCallback | None, stage: str, total: int) -> None:
        self._progress, self._stage, self._total, self._done = progress, stage, total, 0

    def step(self, message: str) -> None:
        """Another piece is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(Progress(self._stage, self._done, self._total, message))
