"""One loop over categories: a stepper moves their head rows, validation decides which step to keep.

Each category is tuned by itself, but all are the columns of one batch. After every step, of Adam
(`adam`) or of the genetic algorithm (`genetic`), the rows are scored on validation; a score must
improve strictly to replace the best, and the original head counts as the first. A category stops
`patience` steps after its best one, and leaves the batch.

Source: Chong et al., Category-wise Fine-Tuning: Resisting incorrect pseudo-labels in multi-label
image classification with partial labels, Neurocomputing 647, 2025, arXiv 2401.16991.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from catwise.errors import ShapeError, check_rules
from catwise.labels.reasons import class_reason
from catwise.metrics import Metric, resolve_metric
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.rows.costs import LayoutCosts
from catwise.tuning.rows.products import product

_COMPACT_SHARE = 1 / 8


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Options of the loop; the defaults are the published ones.

    Args:
        metric: name in `catwise.metrics.METRICS`, or a `Metric`: what validation chooses by.
        max_steps: bound on the steps of every category.
        patience: a category stops that many steps after its best one.
        dtype: precision of the arithmetic, float32 or float64.
        gather_bytes: copies of features, or scores that are kept, are not made beyond that size.
        progress_every: steps between two calls of the progress callback.

    Raises:
        ConfigError: If an option is out of range.
    """

    metric: str | Metric = "average_precision"
    max_steps: int = 5_000
    patience: int = 300
    dtype: torch.dtype = torch.float32
    gather_bytes: int = 1 << 30
    progress_every: int = 20

    stage: ClassVar[str]  # of progress
    title: ClassVar[str]
    limit: ClassVar[str] = "max_steps"  # why a category stopped that was not out of patience

    def __post_init__(self) -> None:
        resolve_metric(self.metric)
        check_rules(f"options of {self.title}", self, self.rules())

    def rules(self) -> dict[str, bool]:
        """What must hold."""
        return {
            "max_steps >= 1": self.max_steps >= 1,
            "patience >= 1": self.patience >= 1,
            "gather_bytes >= 0": self.gather_bytes >= 0,
            "progress_every >= 1": self.progress_every >= 1,
            "dtype float32 or float64": self.dtype in (torch.float32, torch.float64),
        }


@dataclass(frozen=True, eq=False)
class TuningData:
    """Features and the labels known for them.

    Args:
        features: (N, D) floating.
        codes: (N, C) int8; 1 positive, 0 negative, all else is not known here.

    Raises:
        ShapeError: If they do not fit together.
    """

    features: Tensor
    codes: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.features.shape), tuple(self.codes.shape)
        if self.features.ndim != 2 or self.codes.ndim != 2 or shapes[0][0] != shapes[1][0]:
            raise ShapeError(
                "Features and label codes do not fit together.",
                found=f"features {shapes[0]}, codes {shapes[1]}",
                expected="features (N, D) and codes (N, C) with the same N",
            )

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and codes (A, N) of some categories."""
        return self.features, self.codes.to(index.device)[:, index].T


class HeadColumns(NamedTuple):
    """Weights (A, D) and biases (A,), if any, of some categories."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def copied(
        cls, weight: Tensor, bias: Tensor | None, device: torch.device, dtype: torch.dtype
    ) -> HeadColumns:
        """The same values on a device, in memory of their own."""
        parts = (
            None if p is None else p.detach().to(device, dtype, copy=True) for p in (weight, bias)
        )
        return cls(*parts)  # type: ignore[arg-type]  # the weight is there

    def select_categories(self, keep: Tensor) -> HeadColumns:
        """Copies of some of the rows."""
        return HeadColumns(self.weight[keep], None if self.bias is None else self.bias[keep])

    def parameters(self) -> list[Tensor]:
        """Weight, and bias if there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class Stepper(Protocol):
    """What moves the head rows of a batch of categories."""

    head: HeadColumns
    step_size: float
    objective: str  # "loss", or "fitness"

    def step(self, step: int, *, measure: bool) -> Tensor | None:
        """Move the rows; return (A,) the objective of those before on training labels, if asked."""

    def measures(self) -> dict[str, Tensor]:
        """(A,) of each, for the history."""

    def select_categories(self, keep: Tensor) -> Stepper:
        """The stepper of some categories, by ascending number."""

    def train_passes(self, steps: int) -> int:
        """How often so many steps have read the training rows."""


class Validation:
    """Scores of a batch of categories on the validation rows; higher is always better.

    Args:
        features: (M, D) in the precision of the arithmetic.
        codes: (A, M) int8.
        metric: what is scored.
    """

    def __init__(self, features: Tensor, codes: Tensor, metric: Metric) -> None:
        self._features, self._codes, self._metric = features, codes, metric
        self._scores = metric.prepare(codes)

    def select_categories(self, keep: Tensor) -> Validation:
        """The scorer of some categories."""
        return Validation(self._features, self._codes[keep], self._metric)

    def __call__(self, head: HeadColumns) -> Tensor:
        """(A,) float64 scores of a batch of head rows."""
        # Rows first, then turned: the product is faster by more than turning takes.
        logits = product(self._features, head.weight.T).T.contiguous()
        if head.bias is not None:
            logits += head.bias[:, None]
        return self._scores(logits).to(torch.float64) * self._metric.sign


class Passes(NamedTuple):
    """How often the rows of a category were read, forward and backward for training."""

    train: int
    valid: int


@dataclass(frozen=True, eq=False)
class LoopResult:
    """What the loop found.

    Attributes:
        weight: (C, D) in the config's dtype; a skipped category's is the original.
        bias: (C,), or None where the head has none.
        best_step: (C,) int64; 0 means that the original head was best.
        steps: (C,) int64, steps taken.
        best_score: (C,) float64 on validation, which chose it; NaN where skipped.
        base_score: (C,) float64, of the original head; NaN where skipped.
        stop_reason: per category "patience", "max_steps" ("max_generations") or "skipped".
        skipped: per category None or the reason: "no_known_positive_in_train", …
        history: a dict per step: step, active (categories), score (mean over them), best (mean of
            the best so far over all tuned categories), what the stepper measures and step_size.
        curves: a dict per tuned category: index, and lists of the same length: step, "loss" or
            "fitness" on the training labels, and score on validation; at most 200 of each.
        passes: how often the rows were read.
        layout: of the training rows and the costs it was chosen by, or None.
    """

    weight: Tensor
    bias: Tensor | None
    best_step: Tensor
    steps: Tensor
    best_score: Tensor
    base_score: Tensor
    stop_reason: list[str]
    skipped: list[str | None]
    history: list[dict[str, float | int]]
    curves: list[dict[str, Any]]
    passes: Passes
    layout: LayoutCosts | None = None


# ------------------------------------------------------------------------------- the loop


@dataclass(eq=False)
class ColumnLoop:
    """The loop and what it has found so far; `run` takes one batch of categories after another.

    Args:
        head: (C, D) the original rows, in memory that may be written to: the best replace them.
        skipped: per category None, or why it is not tuned.
        config: options.
    """

    head: HeadColumns
    skipped: list[str | None]
    config: LoopConfig

    def __post_init__(self) -> None:
        n, device = len(self.skipped), self.head.weight.device
        self.metric = resolve_metric(self.config.metric)
        self.best_step = torch.zeros(n, dtype=torch.int64, device=device)
        self.steps = torch.zeros_like(self.best_step)
        self.best_score = torch.full((n,), torch.nan, dtype=torch.float64, device=device)
        self.base_score = self.best_score.clone()
        self.layout: LayoutCosts | None = None
        self.tuned = [c for c, why in enumerate(self.skipped) if why is None]
        self._done = 0
        self._batches: list[_History] = []
        self._curves: list[dict[str, Any]] = []
        self._passes: list[Passes] = [Passes(0, 0)]

    def run(
        self,
        index: Tensor,
        stepper: Stepper,
        validation: Validation,
        *,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Step until the stepper's categories, at (A,) ascending positions, have stopped."""
        config, n_batch = self.config, len(index)
        scores = validation(stepper.head)
        batch = _Batch.start(index, stepper.head, scores)
        self.base_score[index] = self.best_score[index] = scores
        history, curves = _History(stepper.step_size), _Curves(n_batch)
        n_alive, step, check = n_batch, 0, config.patience  # no category can stop before `check`
        for step in range(1, config.max_steps + 1):
            objective = stepper.step(step, measure=curves.wants(step - 1))
            if objective is not None:
                curves.add(step - 1, batch, objective, scores)
            scores = validation(stepper.head)
            batch.keep_best(stepper.head, scores, step)
            self.best_score[batch.index] = batch.best_score
            history.add(n_alive, batch.alive, self.best_score[index], scores, stepper.measures())
            if step >= check or step == config.max_steps:
                leaving = step - batch.best_step >= config.patience
                self._leave(batch, leaving | (step == config.max_steps), step)
                n_alive = int(batch.alive.sum())
                if n_alive == 0:
                    break
                check = int(batch.best_step[batch.alive].min()) + config.patience
                if len(batch.alive) - n_alive >= _COMPACT_SHARE * len(batch.alive):
                    keep = batch.alive.nonzero().flatten()
                    batch, scores = batch.select_categories(keep), scores[keep]
                    stepper = stepper.select_categories(keep)
                    validation = validation.select_categories(keep)
            if progress is not None and step % config.progress_every == 0:
                message = f"{n_alive} of {n_batch} categories still moving"
                progress(self._progress(step, n_batch, message))
        if progress is not None:
            progress(self._progress(step, n_batch, "all categories have stopped"))
        self._done += n_batch
        self._batches.append(history)
        self._curves += curves.of(index, self.steps, stepper.objective, self.metric.sign)
        self._passes.append(Passes(stepper.train_passes(step), step + 1))

    def _leave(self, batch: _Batch, leaving: Tensor, step: int) -> None:
        """Take the categories down that stop now."""
        leaving = leaving & batch.alive
        where = batch.index[leaving]
        for total, best in zip(self.head.parameters(), batch.best.parameters(), strict=True):
            total[where] = best[leaving]
        self.best_step[where] = batch.best_step[leaving]
        self.steps[where] = step
        batch.alive = batch.alive & ~leaving

    def _progress(self, step: int, n_batch: int, message: str) -> Progress:
        """Steps of a batch as a part of those of all batches."""
        limit = self.config.max_steps
        done = (self._done * limit + n_batch * step) // len(self.tuned)
        return Progress(self.config.stage, done, limit, message)

    def result(self) -> LoopResult:
        """All categories, after the last batch."""
        sign, config = self.metric.sign, self.config
        waited = (self.steps - self.best_step >= config.patience).tolist()
        reasons = ["patience" if patient else config.limit for patient in waited]
        return LoopResult(
            weight=self.head.weight,
            bias=self.head.bias,
            best_step=self.best_step,
            steps=self.steps,
            best_score=self.best_score * sign,
            base_score=self.base_score * sign,
            stop_reason=["skipped" if s else r for s, r in zip(self.skipped, reasons, strict=True)],
            skipped=self.skipped,
            history=_merged(self._batches, len(self.tuned), sign),
            curves=self._curves,
            passes=Passes(*(max(p) for p in zip(*self._passes, strict=True))),
            layout=self.layout,
        )


@dataclass
class _Batch:
    """The best so far of the categories in the batch."""

    index: Tensor
    best: HeadColumns
    best_score: Tensor
    best_step: Tensor
    alive: Tensor

    @classmethod
    def start(cls, index: Tensor, head: HeadColumns, scores: Tensor) -> _Batch:
        copies = HeadColumns(*(None if p is None else p.clone() for p in head))  # type: ignore[arg-type]
        alive = torch.ones_like(index, dtype=torch.bool)
        return cls(index, copies, scores, torch.zeros_like(index), alive)

    def select_categories(self, keep: Tensor) -> _Batch:
        best = self.best.select_categories(keep)
        parts = self.best_score, self.best_step, self.alive
        return _Batch(self.index[keep], best, *(part[keep] for part in parts))

    def keep_best(self, head: HeadColumns, scores: Tensor, step: int) -> None:
        """Remember the rows that score strictly better than any before."""
        better = (scores > self.best_score) & self.alive
        self.best_score = torch.where(better, scores, self.best_score)
        self.best_step = torch.where(better, step, self.best_step)
        for now, best in zip(head.parameters(), self.best.parameters(), strict=True):
            torch.where(better.view(-1, *[1] * (now.ndim - 1)), now, best, out=best)


# ----------------------------------------------------------------------------- the account


@dataclass
class _History:
    """Sums over the categories of a batch after every step, kept on the device until the end."""

    step_size: float
    names: list[str] = field(default_factory=list)
    active: list[int] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)

    def add(
        self,
        n_alive: int,
        alive: Tensor,
        best: Tensor,
        scores: Tensor,
        measures: dict[str, Tensor],
    ) -> None:
        moving = [torch.where(alive, v, 0.0).nansum() for v in (scores, *measures.values())]
        self.names = ["score", *measures]
        self.active.append(n_alive)
        self.sums.append(torch.stack([best.nansum(), *moving]))


def _merged(batches: list[_History], n_tuned: int, sign: float) -> list[dict[str, float | int]]:
    """Means of every step over all batches, as if they had been one."""
    n_steps = max((len(batch.active) for batch in batches), default=0)
    if not n_steps:
        return []
    active, sums = np.zeros(n_steps, dtype=np.int64), np.zeros((n_steps, 1 + len(batches[0].names)))
    for batch in batches:
        own = torch.stack(batch.sums).cpu().numpy()
        active[: len(own)] += batch.active
        sums[: len(own)] += own
        sums[len(own) :, 0] += own[-1, 0]  # the best stay when all have stopped
    means = (
        sign
        * sums
        / np.column_stack([np.full(n_steps, n_tuned), *[active] * len(batches[0].names)])
    )
    return [
        {
            "step": step,
            "active": int(active[step - 1]),
            **dict(zip(["best", *batches[0].names], row, strict=True)),
            "step_size": batches[0].step_size,
        }
        for step, row in enumerate(means.tolist(), start=1)
    ]


class _Curves:
    """Objective and score of the categories of a batch at some steps.

    At every one of the first 16, then at eight for each doubling, since the logarithms of a loss
    take a good part of a small epoch: at most 200 up to 2²⁸ steps.
    """

    def __init__(self, n_categories: int) -> None:
        self._n = n_categories
        self._points: list[tuple[int, Tensor, Tensor]] = []

    def wants(self, step: int) -> bool:
        """Whether the rows after a step are to be measured."""
        return step % (1 << max(0, step.bit_length() - 4)) == 0

    def add(self, step: int, batch: _Batch, objective: Tensor, scores: Tensor) -> None:
        """(A,) objective and score of the rows after a step."""
        self._points.append((step, batch.index, torch.stack([objective.to(scores), scores])))

    def of(self, index: Tensor, steps: Tensor, objective: str, sign: float) -> list[dict[str, Any]]:
        """A dict for each category of the batch: its points until it stopped."""
        place = {int(c): i for i, c in enumerate(index)}
        at = [step for step, _, _ in self._points]
        table = np.full((len(at), 2, self._n), np.nan)
        for row, (_, members, values) in zip(table, self._points, strict=True):
            row[:, [place[c] for c in members.tolist()]] = values.cpu().numpy()
        curves = []
        for c, i in place.items():
            n = sum(step < int(steps[c]) for step in at)
            measured, scored = ([float(f"{v:.6g}") for v in table[:n, k, i]] for k in range(2))
            scores = [sign * v for v in scored]
            curves.append({"index": c, "step": at[:n], objective: measured, "score": scores})
        return curves


# ------------------------------------------------------------------------------- the start


def start_loop(
    weight: Tensor,
    bias: Tensor | None,
    train: TuningData,
    valid: TuningData,
    config: LoopConfig,
) -> tuple[ColumnLoop, Tensor]:
    """The loop for a head and its data, and (A,) the categories that can be tuned.

    Raises:
        ShapeError: If head, training and validation data do not fit together.
    """
    n_categories, n_features = weight.shape
    problems = [
        f"{name} {tuple(data.features.shape)}, codes {tuple(data.codes.shape)}"
        for name, data in (("training features", train), ("validation features", valid))
        if data.features.shape[1] != n_features or data.codes.shape[1] != n_categories
    ]
    if bias is not None and tuple(bias.shape) != (n_categories,):
        problems.append(f"bias {tuple(bias.shape)}")
    if problems:
        raise ShapeError(
            "Head, training and validation data do not fit together.",
            found=f"weight {tuple(weight.shape)}; " + "; ".join(problems),
            expected=f"features (N, {n_features}), codes (N, {n_categories}), "
            f"bias ({n_categories},) or none",
        )
    device = train.features.device
    head = HeadColumns.copied(weight, bias, device, config.dtype)
    loop = ColumnLoop(head, skip_reasons(train.codes.T, valid.codes.T), config)
    return loop, torch.tensor(loop.tuned, dtype=torch.int64, device=device)


def skip_reasons(codes: Tensor, codes_valid: Tensor) -> list[str | None]:
    """Why a category of (C, N) codes cannot be tuned, or None."""
    counts = [
        torch.stack([(part == code).sum(1) for code in (1, 0)], 1).tolist()
        for part in (codes, codes_valid)
    ]
    return [
        class_reason(*train, part="train") or class_reason(*valid, part="valid")
        for train, valid in zip(*counts, strict=True)
    ]
