"""Many metrics in the same bootstrap replicates, each with its own options per category.

The draws are those of :mod:`catwise.metrics.bootstrap`, made once for all metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from catwise.metrics._inputs import Array, checked_labels, label_shape
from catwise.metrics.bootstrap import (
    _CHUNK,
    _RANKING,
    Resampler,
    _known,
    _Ranked,
    category_names,
)

if TYPE_CHECKING:
    from catwise.labels import PartialLabels
    from catwise.metrics.registry import Metric

__all__ = ["Options", "metric_replicates"]

#: Values of a metric's options for one category.
Options: TypeAlias = Mapping[str, float]
_Scorer: TypeAlias = Callable[[NDArray[Any]], NDArray[np.float64]]


def metric_replicates(
    logits: Array,
    labels: PartialLabels | Array,
    metrics: Sequence[tuple[Metric, Sequence[Options]]],
    resampler: Resampler,
    *,
    n_resamples: int,
) -> dict[str, NDArray[np.float64]]:
    """Several metrics of one set of logits in the same replicates.

    Args:
        logits: (N, C) float.
        labels: (N, C).
        metrics: each with the options of every category.
        resampler: over the N rows or their groups.
        n_resamples: R.

    Returns:
        (R, C) float64 for each metric's name; NaN where a category is undefined.
    """
    labels = checked_labels(labels)
    scores, n_categories = torch.as_tensor(logits).cpu(), label_shape(labels)[1]
    out = {metric.name: np.full((n_resamples, n_categories), np.nan) for metric, _ in metrics}
    names, columns = category_names(labels), []
    for c in range(n_categories):
        rows, positive = _known(labels, c)
        column = scores[torch.from_numpy(rows), c]
        scorers = [
            (metric.name, _scorer(metric, column, positive, options[c]))
            for metric, options in metrics
            if metric.covers(positive)
        ]
        if scorers:
            columns.append((c, resampler.strata(rows, positive), scorers))
    for chunk, start in enumerate(range(0, n_resamples, _CHUNK)):
        stop = min(start + _CHUNK, n_resamples)
        layers = resampler.layers(chunk)
        for c, strata, scorers in columns:
            weights = resampler.weights(strata, layers, chunk, key=names[c])
            for name, scorer in scorers:
                out[name][start:stop, c] = scorer(weights)[: stop - start]
    return out


def _scorer(
    metric: Metric, scores: torch.Tensor, positive: NDArray[np.bool_], options: Options
) -> _Scorer:
    """The cheapest exact way to a metric in many replicates."""
    if metric.name in _RANKING and not options:
        return _Ranked(scores, positive, metric)
    if metric.name in _COUNTED:
        return _Counted(metric, scores, positive, options)
    codes = torch.from_numpy(positive.astype(np.int8))
    kernel = partial(metric.columns, scores, codes, **options)
    return lambda weights: kernel(weight=weights).numpy()


class _Counted:
    """Metrics that are formulas of a few weighted counts: replicates are a matrix product."""

    def __init__(
        self,
        metric: Metric,
        scores: torch.Tensor,
        positive: NDArray[np.bool_],
        options: Options,
    ) -> None:
        values = scores.double().numpy()
        called = values >= options.get("threshold", 0.0)
        signed = np.where(positive, -values, values)
        wrong = torch.sigmoid(torch.from_numpy(signed)).numpy()
        self.formula, self.one_class = _COUNTED[metric.name], metric.one_class
        self.prevalence = options.get("prevalence")
        self.basis = np.stack(
            [
                positive.astype(np.float64),
                (~positive).astype(np.float64),
                (positive & called).astype(np.float64),
                (~positive & called).astype(np.float64),
                wrong**2,
                np.logaddexp(0.0, signed),
            ],
            axis=1,
        )

    def __call__(self, weights: NDArray[Any]) -> NDArray[np.float64]:
        sums = weights.astype(np.float64) @ self.basis
        n_positive, n_negative, true, false, squares, losses = sums.T
        if self.prevalence is not None:
            true = self.prevalence * true / n_positive
            false = (1.0 - self.prevalence) * false / n_negative
        every = n_positive if self.prevalence is None else np.full_like(true, self.prevalence)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = self.formula(true, false, every, n_positive + n_negative, squares, losses)
        fewest = np.maximum if self.one_class else np.minimum
        undefined = fewest(n_positive, n_negative) == 0
        return np.asarray(np.where(undefined, np.nan, value), dtype=np.float64)


def _precision(true: Any, false: Any, *_: Any) -> Any:
    return np.where(true + false > 0, true / (true + false), 0.0)


#: Formulas of true and false positives, positives, rows, squared errors and log-losses.
_COUNTED: dict[str, Callable[..., Any]] = {
    "precision": _precision,
    "recall": lambda true, _, every, *__: true / every,
    "f1": lambda true, false, every, *_: 2.0 * true / (true + false + every),
    "brier": lambda *sums: sums[4] / sums[3],
    "log_loss": lambda *sums: sums[5] / sums[3],
}
