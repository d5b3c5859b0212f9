"""Category-wise fine-tuning by back-propagation, as published, for all categories at once.

Each category is a logistic regression of its own on that category's known labels, started
at the model's own weights and moved by full-batch Adam. Validation decides, after every
step, which step to keep. Here the categories are the columns of one batch: an epoch is one
product forward and one backward over the training rows (`rows.known`) and one over the validation
rows, whatever the number of categories. A column that has stopped leaves the batch.

Source: Chong et al., Category-wise Fine-Tuning: Resisting incorrect pseudo-labels in
multi-label image classification with partial labels, Neurocomputing 647, 2025,
arXiv 2401.16991 (CFT_BP); Kingma & Ba, Adam, ICLR 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from catwise.errors import check_choice, check_rules
from catwise.losses import Loss, resolve_loss
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.fits.columns import (
    ColumnMetric,
    HeadColumns,
    Passes,
    TuningData,
    Validation,
    check_shapes,
    resolve_column_metric,
    skip_reasons,
)
from catwise.tuning.rows.costs import LayoutCosts, LayoutName
from catwise.tuning.rows.known import LabelledRows, known_rows

__all__ = [
    "BackpropConfig",
    "BackpropResult",
    "ColumnMetric",
    "Passes",
    "TuningData",
    "fit_backprop",
]

_STAGE = "backprop"
_COMPACT_SHARE = 1 / 8


@dataclass(frozen=True)
class BackpropConfig:
    """Options of `fit_backprop`; the defaults are the published ones.

    Args:
        loss: name in `catwise.losses.LOSSES`, or a `Loss`; summed over known labels. The
            published methods are "bce" and "asl_published" ("asl" is differentiable
            throughout).
        metric: name in `catwise.metrics.METRICS`, or a `ColumnMetric`.
        lr: Adam's step size.
        betas: Adam's decay rates of the two moments.
        eps: Adam's denominator offset.
        max_steps: bound on the steps of every category.
        patience: a category stops that many steps after its best one.
        dtype: precision of the arithmetic, float32 or float64.
        regime: "dense", "sparse", "gathered" (see `rows.known`), or "auto", which chooses by cost.
        gather_bytes: "auto" does not gather copies of features beyond that size.
        progress_every: steps between two calls of the progress callback.
    """

    loss: str | Loss = "bce"
    metric: str | ColumnMetric = "average_precision"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_steps: int = 5_000
    patience: int = 300
    dtype: torch.dtype = torch.float32
    regime: LayoutName | Literal["auto"] = "auto"
    gather_bytes: int = 1 << 30
    progress_every: int = 20

    def __post_init__(self) -> None:
        resolve_loss(self.loss)
        check_choice("regime", self.regime, ("auto", "dense", "sparse", "gathered"))
        checks = {
            "lr > 0": math.isfinite(self.lr) and self.lr > 0,
            "eps > 0": math.isfinite(self.eps) and self.eps > 0,
            "betas in [0, 1)": all(0 <= b < 1 for b in self.betas),
            "max_steps >= 1": self.max_steps >= 1,
            "patience >= 1": self.patience >= 1,
            "gather_bytes >= 0": self.gather_bytes >= 0,
            "progress_every >= 1": self.progress_every >= 1,
            "dtype float32 or float64": self.dtype in (torch.float32, torch.float64),
        }
        check_rules("options of back-propagation", self, checks)


@dataclass(frozen=True, eq=False)
class BackpropResult:
    """What `fit_backprop` found.

    Attributes:
        weight: (C, D) in the config's dtype; a skipped category's is the original.
        bias: (C,), or None where the head has none.
        best_step: (C,) int64; 0 means that the original head was best.
        steps: (C,) int64, steps taken.
        best_score: (C,) float64 on validation, which chose it; NaN where skipped.
        base_score: (C,) float64, of the original head; NaN where skipped.
        stop_reason: per category "patience", "max_steps" or "skipped".
        skipped: per category None or the reason: "no_known_positive_in_train", …
        history: a dict per step: step, active (categories), score (mean over them), best
            (mean of the best so far over all tuned categories).
        regime: the way chosen and the costs it was chosen by.
        passes: how often the rows were read.
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
    regime: LayoutCosts
    passes: Passes


def fit_backprop(
    head_weight: Tensor,
    head_bias: Tensor | None,
    train: TuningData,
    valid: TuningData,
    config: BackpropConfig | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> BackpropResult:
    """Tune every category's (w, b) on its known training labels; validation picks the step.

    A category is skipped unless training and validation both know a positive and a
    negative. Scores must improve strictly to replace the best, and the original head
    counts as the first.

    Args:
        head_weight: (C, D), any floating dtype.
        head_bias: (C,), or None; a missing bias stays missing.
        train: what is fitted.
        valid: what chooses the step.
        config: options; the published ones if None.
        progress: called now and then with a `Progress` in steps.

    Returns:
        The best head of each category and how it was found. The arithmetic runs where the
        training features are; tensors of the result are there too.

    Raises:
        ShapeError: If head, training and validation data do not fit together.
        ConfigError: If the metric's name is unknown.
    """
    config = config or BackpropConfig()
    metric = resolve_column_metric(config.metric)
    check_shapes(head_weight, head_bias, train, valid)
    device, dtype = train.features.device, config.dtype
    codes, codes_valid = train.codes.to(device), valid.codes.to(device)
    skipped = skip_reasons(codes, codes_valid)
    index = torch.tensor([c for c, why in enumerate(skipped) if why is None], device=device).long()
    codes, codes_valid = codes[:, index], codes_valid[:, index].T.contiguous()

    base = HeadColumns(
        head_weight.detach().to(device, dtype, copy=True),
        None if head_bias is None else head_bias.detach().to(device, dtype, copy=True),
    )
    rows, regime = _training_rows(train.features, codes.T, config)
    scorer = Validation(valid.features.to(device, dtype), codes_valid, metric)
    outcome = _Outcome.start(base, len(skipped))
    history: list[dict[str, float | int]] = []
    train_passes, valid_passes = 0, 0
    if len(index):
        columns = _Columns.start(base.take(index), index)
        history, train_passes, valid_passes = _descend(
            columns, rows, scorer, outcome, config, progress=progress
        )
    sign = 1.0 if metric.higher_is_better else -1.0
    return BackpropResult(
        outcome.head.weight,
        outcome.head.bias,
        outcome.best_step,
        outcome.steps,
        outcome.best_score * sign,
        outcome.base_score * sign,
        _stop_reasons(outcome, skipped, config),
        skipped,
        [{k: v * sign if k in ("score", "best") else v for k, v in h.items()} for h in history],
        regime,
        Passes(train_passes, valid_passes),
    )


def _training_rows(
    features: Tensor, codes: Tensor, config: BackpropConfig
) -> tuple[LabelledRows, LayoutCosts]:
    known = codes >= 0
    some = known.any(0)
    if not bool(some.all()):
        features, codes, known = features[some], codes[:, some], known[:, some]
    rows, costs = known_rows(
        features,
        known,
        dtype=config.dtype,
        layout=config.regime,
        gather_bytes=config.gather_bytes,
        by_rows=True,
    )
    return LabelledRows.from_codes(rows, codes), costs


def _gradients(
    labelled: LabelledRows, head: HeadColumns, slope: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """Gradient of the summed loss by weight (A, D) and, if there is one, bias (A,)."""
    rows = labelled.rows
    logits = rows.forward(head.weight)
    if head.bias is not None:
        logits += rows.spread(head.bias)
    slopes = slope(logits, labelled.target)
    if labelled.weight is not None:
        slopes *= labelled.weight
    gradient = rows.backward(slopes)
    return [gradient] if head.bias is None else [gradient, rows.sums(slopes)]


# ------------------------------------------------------------------------------ the loop


@dataclass
class _Outcome:
    """Results of all categories, filled as columns leave the batch."""

    head: HeadColumns
    best_step: Tensor
    steps: Tensor
    best_score: Tensor
    base_score: Tensor

    @classmethod
    def start(cls, base: HeadColumns, n_categories: int) -> _Outcome:
        device = base.weight.device
        zeros = torch.zeros(n_categories, dtype=torch.int64, device=device)
        nan = torch.full((n_categories,), torch.nan, dtype=torch.float64, device=device)
        return cls(base, zeros, zeros.clone(), nan, nan.clone())


@dataclass
class _Columns:
    """The batch: what is moving, Adam's moments, and the best so far, one row a category."""

    index: Tensor
    head: HeadColumns
    first: list[Tensor]
    second: list[Tensor]
    best: HeadColumns
    best_score: Tensor
    best_step: Tensor
    alive: Tensor

    @classmethod
    def start(cls, head: HeadColumns, index: Tensor) -> _Columns:
        zeros = [torch.zeros_like(p) for p in head.parameters()]
        return cls(
            index,
            head,
            zeros,
            [z.clone() for z in zeros],
            head.copy(),
            torch.full(index.shape, -torch.inf, dtype=torch.float64, device=index.device),
            torch.zeros_like(index),
            torch.ones_like(index, dtype=torch.bool),
        )

    def take(self, keep: Tensor) -> _Columns:
        return _Columns(
            self.index[keep],
            self.head.take(keep),
            [m[keep] for m in self.first],
            [v[keep] for v in self.second],
            self.best.take(keep),
            self.best_score[keep],
            self.best_step[keep],
            self.alive[keep],
        )

    def adam_step(self, gradients: list[Tensor], step: int, config: BackpropConfig) -> None:
        """Move every parameter in place (Kingma & Ba 2015, algorithm 1)."""
        beta1, beta2 = config.betas
        size = config.lr / (1 - beta1**step)
        correction = math.sqrt(1 - beta2**step)
        moments = zip(self.head.parameters(), gradients, self.first, self.second, strict=True)
        for parameter, gradient, first, second in moments:
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            parameter.addcdiv_(first, (second.sqrt() / correction).add_(config.eps), value=-size)

    def keep_best(self, scores: Tensor, step: int) -> None:
        """Remember the moving head where it scores strictly better than any before."""
        better = (scores > self.best_score) & self.alive
        self.best_score = torch.where(better, scores, self.best_score)
        self.best_step = torch.where(better, step, self.best_step)
        pairs = zip(self.head.parameters(), self.best.parameters(), strict=True)
        for now, best in pairs:
            torch.where(better.view(-1, *[1] * (now.ndim - 1)), now, best, out=best)

    def leave(self, leaving: Tensor, step: int, outcome: _Outcome) -> None:
        """Write the columns that have finished into the outcome."""
        where = self.index[leaving]
        for total, best in zip(outcome.head.parameters(), self.best.parameters(), strict=True):
            total[where] = best[leaving]
        outcome.best_step[where] = self.best_step[leaving]
        outcome.best_score[where] = self.best_score[leaving]
        outcome.steps[where] = step
        self.alive = self.alive & ~leaving


def _descend(
    columns: _Columns,
    rows: LabelledRows,
    scorer: Validation,
    outcome: _Outcome,
    config: BackpropConfig,
    *,
    progress: ProgressCallback | None,
) -> tuple[list[dict[str, float | int]], int, int]:
    """Step until every column has left; return history, training and validation passes."""
    slope = resolve_loss(config.loss).slope
    n_tuned, n_alive = len(columns.index), len(columns.index)
    track = _Track()
    base = scorer(columns.head)
    outcome.base_score[columns.index] = base
    outcome.best_score[columns.index] = base
    columns.keep_best(base, 0)
    check, step = config.patience, 0  # no column can finish before that step
    for step in range(1, config.max_steps + 1):
        columns.adam_step(_gradients(rows, columns.head, slope), step, config)
        scores = scorer(columns.head)
        columns.keep_best(scores, step)
        track.add(step, n_alive, scores, columns, outcome)
        if step >= check or step == config.max_steps:
            leaving = columns.alive & (
                (step - columns.best_step >= config.patience) | (step == config.max_steps)
            )
            columns.leave(leaving, step, outcome)
            n_alive = int(columns.alive.sum())
            if n_alive == 0:
                break
            check = int(columns.best_step[columns.alive].min()) + config.patience
            if len(columns.alive) - n_alive >= _COMPACT_SHARE * len(columns.alive):
                keep = columns.alive.nonzero().flatten()
                columns, scorer = columns.take(keep), scorer.take(keep)
                rows = rows.select_categories(keep)
        if progress is not None and step % config.progress_every == 0:
            message = f"{n_alive} of {n_tuned} categories still moving"
            progress(Progress(_STAGE, step, config.max_steps, message))
    if progress is not None:
        progress(Progress(_STAGE, step, config.max_steps, "all categories have stopped"))
    return track.history(), 2 * step, step + 1


class _Track:
    """Means of every step, kept on the device until the end."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int]] = []
        self._means: list[Tensor] = []

    def add(
        self, step: int, n_alive: int, scores: Tensor, columns: _Columns, outcome: _Outcome
    ) -> None:
        alive = columns.alive
        outcome.best_score[columns.index] = columns.best_score
        score = torch.where(alive, scores, 0.0).sum() / alive.sum()
        self._steps.append((step, n_alive))
        self._means.append(torch.stack([score, outcome.best_score.nanmean()]))

    def history(self) -> list[dict[str, float | int]]:
        means = torch.stack(self._means).tolist() if self._means else []
        return [
            {"step": step, "active": active, "score": score, "best": best}
            for (step, active), (score, best) in zip(self._steps, means, strict=True)
        ]


# ------------------------------------------------------------------------------- reasons


def _stop_reasons(
    outcome: _Outcome, skipped: list[str | None], config: BackpropConfig
) -> list[str]:
    waited = (outcome.steps - outcome.best_step >= config.patience).tolist()
    return [
        "skipped" if why is not None else "patience" if patient else "max_steps"
        for why, patient in zip(skipped, waited, strict=True)
    ]
