"""Category-wise fine-tuning by back-propagation, as published, for all categories at once.

Each category is a logistic regression of its own on that category's known labels, started
at the model's own weights and moved by full-batch Adam. Validation decides, after every
step, which step to keep. Here the categories are the columns of one batch: an epoch is two
matrix products over the shared training features (forward and backward) and one over the
validation features, whatever the number of categories. A column that has stopped leaves
the batch.

Source: Chong et al., Category-wise Fine-Tuning: Resisting incorrect pseudo-labels in
multi-label image classification with partial labels, Neurocomputing 647, 2025,
arXiv 2401.16991 (CFT_BP); Kingma & Ba, Adam, ICLR 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from catwise.errors import ConfigError, nearest
from catwise.losses import Loss, resolve_loss
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.columns import (
    ColumnMetric,
    HeadColumns,
    Passes,
    TuningData,
    Validation,
    check_shapes,
    resolve_column_metric,
    skip_reasons,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BackpropConfig",
    "BackpropResult",
    "ColumnMetric",
    "Passes",
    "Regime",
    "TuningData",
    "choose_regime",
    "fit_backprop",
    "group_by_length",
]

_NEGATIVE = 0
_STAGE = "backprop"
_COMPACT_SHARE = 1 / 8
_INDEXED_BELOW = 0.5
_BUCKET_SHARE = 0.8

# Arithmetic and memory rates of one core of a current x86 server; see `choose_regime`. A
# GPU has other rates with much the same ratio (H200: 50 Tflop/s, 4 TB/s), and only the
# ratio decides.
_FLOPS_PER_SECOND = 1.0e11
_BYTES_PER_SECOND = 1.0e10


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
        regime: "dense", "gathered", or "auto", which chooses by cost.
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
    regime: Literal["auto", "dense", "gathered"] = "auto"
    gather_bytes: int = 1 << 30
    progress_every: int = 20

    def __post_init__(self) -> None:
        resolve_loss(self.loss)
        regimes = ("auto", "dense", "gathered")
        if self.regime not in regimes:
            raise ConfigError(
                f"There is no regime {self.regime!r}{nearest(self.regime, regimes)}.",
                expected=", ".join(regimes),
            )
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
        if failed := [rule for rule, holds in checks.items() if not holds]:
            raise ConfigError(
                "Options of back-propagation are out of range.",
                found=", ".join(f"{n}={getattr(self, n)}" for n in (r.split()[0] for r in failed)),
                expected="; ".join(failed),
            )


class Regime(NamedTuple):
    """How the products over the training features are done, and what each way would cost.

    Attributes:
        name: "dense" or "gathered".
        dense_seconds: modelled time of one epoch's products, dense.
        gathered_seconds: the same, gathered.
        gathered_bytes: size of the gathered copies.
    """

    name: Literal["dense", "gathered"]
    dense_seconds: float
    gathered_seconds: float
    gathered_bytes: int


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
    regime: Regime
    passes: Passes


def choose_regime(
    n_rows: int, counts: Tensor, n_features: int, *, itemsize: int = 4, gather_bytes: int = 1 << 30
) -> Regime:
    """Choose between one shared product and gathered rows, by modelled time.

    Dense: forward and backward take ``4 N D C`` operations at the rate of a matrix-matrix
    product. Gathered: each category reads its own copy of its known rows, padded to its
    group's longest, forward and backward, ``2 sum(n_c) D itemsize`` bytes at the rate of
    memory. Measured on one x86 core: 100 Gflop/s and 10 GB/s, so that in float32 gathering
    wins where under some 5% of the labels are known. Only the ratio matters; on GPUs it is
    much the same.

    Args:
        n_rows: training rows with any known label.
        counts: (C,) known training labels of each category.
        n_features: D.
        itemsize: bytes of one feature in the arithmetic's precision.
        gather_bytes: copies beyond that size are never made.

    Returns:
        The regime with both costs.

    >>> choose_regime(20_000, torch.full((80,), 2_000), 2_048).name
    'dense'
    >>> choose_regime(20_000, torch.full((80,), 200), 2_048).name
    'gathered'
    """
    padded = sum(length * len(members) for length, members in group_by_length(counts))
    size = padded * n_features * itemsize
    dense = 4.0 * n_rows * n_features * len(counts) * (itemsize / 4) / _FLOPS_PER_SECOND
    gathered = 2.0 * size / _BYTES_PER_SECOND
    fits = size <= gather_bytes
    return Regime("gathered" if fits and gathered < dense else "dense", dense, gathered, size)


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
    rows, regime = _rows(train.features, codes, config)
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
    rows: _DenseRows | _GatheredRows,
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
        columns.adam_step(rows.gradients(columns.head, slope), step, config)
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
                columns, rows, scorer = columns.take(keep), rows.take(keep), scorer.take(keep)
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


# ---------------------------------------------------------------- products over the rows


class _DenseRows:
    """Rows shared by all categories: two matrix products, slopes only at known labels."""

    def __init__(self, features: Tensor, codes: Tensor) -> None:
        self._features, self._codes = features, codes
        known = codes >= _NEGATIVE
        shape = codes.shape
        self._logits = features.new_empty(shape)
        self._slopes = features.new_zeros(shape)
        self._index: Tensor | None = None
        if float(known.float().mean()) < _INDEXED_BELOW:
            self._index = known.flatten().nonzero().flatten()
            self._column = self._index % codes.shape[1]
            self._target = torch.take(codes, self._index).to(features.dtype)
        else:
            self._target = codes.clamp(min=0).to(features.dtype)
            self._known = known.to(features.dtype)

    def take(self, keep: Tensor) -> _DenseRows:
        return _DenseRows(self._features, self._codes[:, keep])

    def gradients(
        self, head: HeadColumns, slope: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        """Gradient of the summed loss by weight (A, D) and, if there is one, bias (A,)."""
        torch.mm(self._features, head.weight.T, out=self._logits)
        if self._index is None:
            logits = self._logits if head.bias is None else self._logits.add_(head.bias)
            torch.mul(slope(logits, self._target), self._known, out=self._slopes)
        else:
            known = torch.take(self._logits, self._index)
            if head.bias is not None:
                known += torch.take(head.bias, self._column)
            self._slopes.view(-1)[self._index] = slope(known, self._target)
        gradients = [self._slopes.T @ self._features]
        return gradients if head.bias is None else [*gradients, self._slopes.sum(0)]


class _Group(NamedTuple):
    """Categories with about as many known rows each: their rows, padded to one length."""

    columns: Tensor  # (g,) position in the batch
    block: Tensor  # (g, n, D)
    target: Tensor  # (g, n)
    known: Tensor  # (g, n), 0 where padded


class _GatheredRows:
    """A copy of its known rows for every category, in groups padded to one length."""

    def __init__(self, groups: list[_Group]) -> None:
        self._groups = groups

    @classmethod
    def build(cls, features: Tensor, codes: Tensor, dtype: torch.dtype) -> _GatheredRows:
        counts = (codes >= _NEGATIVE).sum(0)
        groups = []
        for length, members in group_by_length(counts):
            columns = torch.tensor(members, device=codes.device)
            part = codes[:, columns].T
            order = torch.argsort((part < _NEGATIVE).to(torch.int8), dim=1, stable=True)
            order = order[:, :length]
            picked = part.gather(1, order)
            known = (picked >= _NEGATIVE).to(dtype)
            block = features.new_empty((len(members), length, features.shape[1]), dtype=dtype)
            for row, source in zip(block, order, strict=True):
                row.copy_(features[source])
            groups.append(_Group(columns, block, picked.clamp(min=0).to(dtype), known))
        return cls(groups)

    def take(self, keep: Tensor) -> _GatheredRows:
        place = {int(old): new for new, old in enumerate(keep)}
        groups = []
        for group in self._groups:
            rows = [i for i, c in enumerate(group.columns.tolist()) if c in place]
            if rows:
                columns = torch.tensor([place[int(group.columns[i])] for i in rows])
                part = [t if len(rows) == len(t) else t[rows] for t in group[1:]]
                groups.append(_Group(columns.to(keep.device), part[0], part[1], part[2]))
        return _GatheredRows(groups)

    def gradients(
        self, head: HeadColumns, slope: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        """Gradient of the summed loss by weight (A, D) and, if there is one, bias (A,)."""
        gradients = [torch.zeros_like(p) for p in head.parameters()]
        for columns, block, target, known in self._groups:
            logits = torch.bmm(block, head.weight[columns][:, :, None]).squeeze(2)
            if head.bias is not None:
                logits += head.bias[columns][:, None]
            slopes = slope(logits, target) * known
            gradients[0][columns] = torch.bmm(slopes[:, None], block).squeeze(1)
            if head.bias is not None:
                gradients[1][columns] = slopes.sum(1)
        return gradients


def _rows(
    features: Tensor, codes: Tensor, config: BackpropConfig
) -> tuple[_DenseRows | _GatheredRows, Regime]:
    """Lay the training rows out in the regime that the config or the costs ask for."""
    known = codes >= _NEGATIVE
    any_known = known.any(1)
    n_rows = int(any_known.sum())
    regime = choose_regime(
        n_rows,
        known.sum(0),
        features.shape[1],
        itemsize=config.dtype.itemsize,
        gather_bytes=config.gather_bytes,
    )
    if config.regime != "auto":
        regime = regime._replace(name=config.regime)
    if regime.name == "gathered":
        return _GatheredRows.build(features, codes, config.dtype), regime
    if n_rows < len(features):
        features, codes = features[any_known], codes[any_known]
    return _DenseRows(features.to(config.dtype), codes.contiguous()), regime


def group_by_length(counts: Tensor) -> list[tuple[int, list[int]]]:
    """Cut categories, longest first, into groups whose shortest is 80% of the longest.

    Returns:
        For each group its padded length and its categories in ascending order.
    """
    values = counts.tolist()
    groups: list[tuple[int, list[int]]] = []
    for c in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        if not groups or values[c] < _BUCKET_SHARE * groups[-1][0]:
            groups.append((values[c], []))
        groups[-1][1].append(c)
    return [(length, sorted(members)) for length, members in groups]


# ------------------------------------------------------------------------------- reasons


def _stop_reasons(
    outcome: _Outcome, skipped: list[str | None], config: BackpropConfig
) -> list[str]:
    waited = (outcome.steps - outcome.best_step >= config.patience).tolist()
    return [
        "skipped" if why is not None else "patience" if patient else "max_steps"
        for why, patient in zip(skipped, waited, strict=True)
    ]
