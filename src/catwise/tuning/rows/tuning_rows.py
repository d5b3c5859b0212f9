"""Rows in coordinates, metrics inside folds, and blocks of categories: what a preset works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise.metrics import Metric
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.rows.products import product

BLOCK_ENTRIES = 1 << 24
"""Rows times categories of a block, where no bound of memory asks for less."""

SMALL_ENTRIES = 1 << 20
"""Entries of a block's labels, once for each fold, up to which all folds are one batch."""

_KEPT = 1 << 27


class OwnRows:
    """Coordinates of category-specific features: one (n, k) for each run of categories.

    They are made when a block of categories asks for them; what a few runs need is kept.

    Args:
        runs: neighbouring categories that share their features; together all categories.
        project: the number of a run and some rows, or None for all → (rows, k) float32.
        shape: (n, k).
        device: where they are made.
        index: (n,) int64 rows that are taken; None: all.
    """

    def __init__(
        self,
        runs: Sequence[slice],
        project: Callable[[int, Tensor | None], Tensor],
        shape: tuple[int, int],
        device: torch.device,
        index: Tensor | None = None,
    ) -> None:
        self.runs, self.shape, self.device = list(runs), torch.Size(shape), device
        self._project, self._index = project, index
        self._kept: dict[int, Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnRows, (self.runs, self._project, self.shape, self.device, self._index)

    def of(self, categories: slice) -> Tensor:
        """(n, k) of a block of categories within one run."""
        number = next(i for i, r in enumerate(self.runs) if r.start <= categories.start < r.stop)
        if number not in self._kept:
            while (len(self._kept) + 1) * self.shape.numel() > max(_KEPT, self.shape.numel()):
                self._kept.pop(next(iter(self._kept)))
            self._kept[number] = self._project(number, self._index)
        return self._kept[number]

    def take(self, rows: Tensor) -> OwnRows:
        """Some of the rows."""
        index = rows if self._index is None else self._index[rows]
        shape = len(index), self.shape[1]
        return OwnRows(self.runs, self._project, shape, self.device, index)


class TuningRows(NamedTuple):
    """Rows of one source in coordinates, with the original logits and the known labels.

    Attributes:
        x: (n, k) float32, or `OwnRows`; those of a block of categories are always the former.
        logits: (C, n) float32, of the original head as stored.
        codes: (C, n) int8; 1 positive, 0 negative, all else unknown.
        intercept: whether the head has a bias to take an intercept up.
        target: (C, n) float32 in [0, 1], what is fitted, where a label policy says more than
            the codes; else None.
        weight: (C, n) float32 of the targets, or None.
        judged: (C, n) int8, those of the codes that keep or replace and score, where cells that a
            model chose do not; else None: all do.
    """

    x: Any
    logits: Tensor
    codes: Tensor
    intercept: bool = True
    target: Tensor | None = None
    weight: Tensor | None = None
    judged: Tensor | None = None

    @property
    def judging(self) -> Tensor:
        """(C, n) int8 codes that keep or replace and score."""
        return self.codes if self.judged is None else self.judged

    def take(self, categories: slice, rows: Tensor | None = None) -> TuningRows:
        """Some categories, and all rows or some."""

        def cut(values: Tensor) -> Tensor:
            part = values[categories]
            return part if rows is None else part[:, rows]

        return TuningRows(
            self._coordinates(categories, rows),
            cut(self.logits),
            cut(self.codes),
            self.intercept,
            None if self.target is None else cut(self.target),
            None if self.weight is None else cut(self.weight),
            None if self.judged is None else cut(self.judged),
        )

    def _coordinates(self, categories: slice, rows: Tensor | None) -> Any:
        x = self.x
        if isinstance(x, OwnRows):
            if categories == slice(None):
                return x if rows is None else x.take(rows)
            x = x.of(categories)
        return x if rows is None else x[rows]

    def known(self) -> Tensor:
        """The rows with any label to fit."""
        fitted = self.codes >= 0 if self.weight is None else self.weight > 0
        return fitted.any(0).nonzero().flatten()

    def repeated(self, times: int) -> TuningRows:
        """The categories again and again, (times · C, n)."""

        def tile(values: Tensor | None) -> Any:
            # one value for all entries stays one
            return None if values is None else values.expand(times, -1, -1).flatten(0, 1)

        return TuningRows(
            self.x,
            tile(self.logits),
            tile(self.codes),
            self.intercept,
            tile(self.target),
            tile(self.weight),
            tile(self.judged),
        )

    def without_folds(self, fold: Tensor, folds: range) -> TuningRows:
        """The categories once for each of some folds, (F · C, n), there without its labels.

        For one fold its rows are left out.
        """
        if len(folds) == 1:
            return self.take(slice(None), (fold != folds[0]).nonzero().flatten())
        own = fold == torch.tensor(folds, device=fold.device)[:, None]
        out = own.repeat_interleave(len(self.codes), 0)
        found = self.repeated(len(folds))
        weight = None if found.weight is None else found.weight.masked_fill(out, 0.0)
        return found._replace(codes=found.codes.masked_fill(out, -1), weight=weight)

    def without_logits(self) -> TuningRows:
        """As of a head of zeros."""
        return self._replace(
            logits=torch.zeros((), device=self.logits.device).expand_as(self.logits)
        )


class FoldScorer:
    """A metric inside every fold.

    Args:
        codes: (C, n) int8 of the rows that judge.
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
            self._scorers[key] = [self._metric.prepare(part) for part in parts]
        return self._scorers[key]


def updated_logits(
    rows: TuningRows, delta: Tensor, original: Tensor | float = 1.0, at: Tensor | None = None
) -> Tensor:
    """(C, m) logits of some rows, or all: the original ones times a factor, and a change.

    Shapes:
        delta: (C, k) change in coordinates.
        original: (C,), or one for all.
    """
    if isinstance(rows.x, OwnRows):
        factor = torch.as_tensor(original, device=delta.device).expand(len(delta))
        parts = [updated_logits(rows.take(run), delta[run], factor[run], at) for run in rows.x.runs]
        return torch.cat(parts)
    x, logits = (rows.x, rows.logits) if at is None else (rows.x[at], rows.logits[:, at])
    if isinstance(original, float):
        return product(delta, x.T).add_(logits, alpha=original)
    return product(delta, x.T).addcmul_(logits, original[:, None])


def category_blocks(
    valid: TuningRows, train: TuningRows | None, entries: int | None = None
) -> Iterator[slice]:
    """Blocks of categories whose entries stay bounded, whatever the machine.

    Category-specific features cut them where the vector changes.
    """
    n = valid.x.shape[0] + (0 if train is None else train.x.shape[0])
    width = max(1, (entries or BLOCK_ENTRIES) // max(n, 1))
    runs = valid.x.runs if isinstance(valid.x, OwnRows) else [slice(0, valid.logits.shape[0])]
    for run in runs:
        for start in range(run.start, run.stop, width):
            yield slice(start, min(start + width, run.stop))


class Counter:
    """Tells the caller how many pieces are done."""

    def __init__(self, progress: ProgressCallback | None, stage: str, total: int) -> None:
        self._progress, self._stage, self._total, self._done = progress, stage, total, 0

    def step(self, message: str, pieces: int = 1) -> None:
        """Further pieces are done."""
        self._done += pieces
        if self._progress is not None:
            self._progress(Progress(self._stage, self._done, self._total, message))
