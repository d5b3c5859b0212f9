"""What every way of tuning columns works on: data, a block of head rows, validation, skips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from catwise.errors import ShapeError
from catwise.metrics import Metric, resolve_metric
from catwise.metrics.ranking import RankingPlan
from catwise.tuning.rows.products import product

__all__ = [
    "ColumnMetric",
    "ColumnScores",
    "HeadColumns",
    "Passes",
    "TuningData",
    "Validation",
    "check_shapes",
    "resolve_column_metric",
    "skip_reasons",
]

_POSITIVE, _NEGATIVE = 1, 0

ColumnScores = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ColumnMetric:
    """A validation metric over a block of categories.

    Args:
        name: for messages.
        prepare: given the known labels, codes (A, M) int8, returns a function from logits
            (A, M) to scores (A,) float64; called again when the batch shrinks.
        higher_is_better: direction of improvement.
    """

    name: str
    prepare: Callable[[Tensor], ColumnScores]
    higher_is_better: bool = True


@dataclass(frozen=True, eq=False)
class TuningData:
    """Features and the labels known for them.

    Args:
        features: (N, D) floating.
        codes: (N, C) int8; 1 positive, 0 negative, all else is not known here.
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


class Passes(NamedTuple):
    """How often the rows were read: forward and backward for training."""

    train: int
    valid: int


class HeadColumns(NamedTuple):
    """Weights (A, D) and biases (A,), if any, of some categories."""

    weight: Tensor
    bias: Tensor | None

    def take(self, index: Tensor) -> HeadColumns:
        """Some of the rows."""
        return HeadColumns(self.weight[index], None if self.bias is None else self.bias[index])

    def parameters(self) -> list[Tensor]:
        """Weight, and bias if there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def copy(self) -> HeadColumns:
        """The same values in memory of their own."""
        return HeadColumns(self.weight.clone(), None if self.bias is None else self.bias.clone())


class Validation:
    """Scores of a block of categories on the validation rows; higher is always better."""

    def __init__(self, features: Tensor, codes: Tensor, metric: ColumnMetric) -> None:
        self._features, self._codes, self._metric = features, codes, metric
        self._scores = metric.prepare(codes)

    def take(self, keep: Tensor) -> Validation:
        """The scorer of some categories."""
        return Validation(self._features, self._codes[keep], self._metric)

    def __call__(self, head: HeadColumns) -> Tensor:
        """(A,) float64 scores of a block of head rows."""
        # Rows first, then turned: the product is faster by more than turning takes.
        logits = product(self._features, head.weight.T).T.contiguous()
        if head.bias is not None:
            logits += head.bias[:, None]
        scores = self._scores(logits).to(torch.float64)
        return scores if self._metric.higher_is_better else -scores


def check_shapes(weight: Tensor, bias: Tensor | None, train: TuningData, valid: TuningData) -> None:
    """Refuse a head and data that do not fit together.

    Raises:
        ShapeError: If a shape differs.
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


def skip_reasons(codes: Tensor, codes_valid: Tensor) -> list[str | None]:
    """Say per category why it cannot be tuned, or None."""
    reasons: list[str | None] = [None] * codes.shape[1]
    for place, table in (("validation", codes_valid), ("train", codes)):
        for code, name in ((_NEGATIVE, "negative"), (_POSITIVE, "positive")):
            missing = ~(table == code).any(0)
            for c in missing.nonzero().flatten().tolist():
                reasons[c] = f"no_known_{name}_in_{place}"
    return reasons


def resolve_column_metric(metric: str | Metric | ColumnMetric) -> ColumnMetric:
    """Return the metric's kernel over blocks of categories, by name."""
    if isinstance(metric, ColumnMetric):
        return metric
    found = resolve_metric(metric)
    if found.name == "average_precision":
        return ColumnMetric(found.name, lambda codes: RankingPlan(codes).average_precision)
    if found.name == "auroc":
        return ColumnMetric(found.name, lambda codes: RankingPlan(codes).auroc)
    return ColumnMetric(
        found.name,
        lambda codes: lambda scores: found.columns(scores, codes),
        higher_is_better=found.higher_is_better,
    )
