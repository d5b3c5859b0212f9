"""Metrics of (N, C) logits against partial labels, one value per category.

All of them read `labels` as :class:`catwise.PartialLabels` or as an (N, C) int8 array of label
codes, use hard known labels only, return (C,) float64 tensors on the device of the logits, give
NaN where a category lacks a known positive or a known negative (:func:`undefined_reason` says
which; :func:`brier`, :func:`log_loss` and :func:`ece` need one known label only), and raise:

- ShapeError if logits and labels differ in shape;
- FeatureError if a logit is NaN or infinite;
- ConfigError if a prevalence is not inside (0, 1).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise.labels import PartialLabels
from catwise.labels.reasons import class_reason
from catwise.metrics.inputs import (
    Array,
    category_blocks,
    checked_labels,
    checked_logits,
    label_shape,
)
from catwise.metrics.registry import METRICS
from catwise.metrics.threshold import BestF1, best_f1_threshold_columns


def average_precision(
    logits: Array, labels: PartialLabels | Array, *, prevalence: float | Array | None = None
) -> Tensor:
    """Average precision of each category over its known labels, (C,) float64 in [0, 1].

    Tied logits count as one threshold. Logits are ranked as given: a float32 sigmoid would
    merge large ones.

    Args:
        logits: (N, C) float, unbounded; not probabilities.
        labels: (N, C); unknown entries are ignored.
        prevalence: share of positives to assume instead of the known one, a number or (C,).

    Source: see :func:`catwise.metrics.average_precision_columns`. Matches:
    scikit-learn, per category.

    >>> import numpy as np
    >>> codes = np.array([[1, 0], [0, 0], [1, -1]], dtype=np.int8)
    >>> average_precision(np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 0.0]]), codes)
    tensor([0.8333,    nan], dtype=torch.float64)
    """
    return METRICS["average_precision"].per_category(logits, labels, prevalence=prevalence)


def auroc(logits: Array, labels: PartialLabels | Array) -> Tensor:
    """Area under the ROC curve of each category over its known labels; a tie counts half.

    Source: see :func:`catwise.metrics.auroc_columns`. Matches: scikit-learn.
    """
    return METRICS["auroc"].per_category(logits, labels)


def precision(
    logits: Array,
    labels: PartialLabels | Array,
    *,
    threshold: float | Array = 0.0,
    prevalence: float | Array | None = None,
) -> Tensor:
    """Precision of each category, calling positive what reaches the threshold: (C,) in [0, 1].

    It is 0 where nothing is called positive. The threshold is a logit, or one for each category; 0
    is a probability of one half. The rest is as for `average_precision`. Matches: scikit-learn.
    """
    return METRICS["precision"].per_category(
        logits, labels, threshold=threshold, prevalence=prevalence
    )


def recall(
    logits: Array, labels: PartialLabels | Array, *, threshold: float | Array = 0.0
) -> Tensor:
    """Recall of each category; arguments as :func:`precision`. Matches: scikit-learn."""
    return METRICS["recall"].per_category(logits, labels, threshold=threshold)


def f1(
    logits: Array,
    labels: PartialLabels | Array,
    *,
    threshold: float | Array = 0.0,
    prevalence: float | Array | None = None,
) -> Tensor:
    """F1 of each category; arguments as :func:`precision`. Matches: scikit-learn."""
    return METRICS["f1"].per_category(logits, labels, threshold=threshold, prevalence=prevalence)


def best_f1(
    logits: Array, labels: PartialLabels | Array, *, prevalence: float | Array | None = None
) -> Tensor:
    """The F1 of each category at its own best threshold; see :func:`best_f1_threshold`."""
    return METRICS["best_f1"].per_category(logits, labels, prevalence=prevalence)


def best_f1_threshold(
    logits: Array, labels: PartialLabels | Array, *, prevalence: float | None = None
) -> BestF1:
    """The best F1 of each category and the logit from which to call positive to reach it.

    Value and threshold, (C,) float64 each. Of several thresholds with the same F1 the highest; on
    other rows the F1 will be lower than the value. Arguments as :func:`best_f1`.
    """
    score = checked_logits(logits, label_shape(labels))
    found = [
        best_f1_threshold_columns(scores, codes, prevalence=prevalence)
        for _, scores, codes in category_blocks(score, labels)
    ]
    if not found:
        return BestF1(*(torch.zeros(0, dtype=torch.float64),) * 2)
    return BestF1(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def brier(logits: Array, labels: PartialLabels | Array) -> Tensor:
    """Brier score of each category: the mean squared error of ``sigmoid(logit)``.

    In [0, 1]; lower is better. Source: see :func:`catwise.metrics.brier_columns`.
    Matches: scikit-learn.
    """
    return METRICS["brier"].per_category(logits, labels)


def log_loss(logits: Array, labels: PartialLabels | Array) -> Tensor:
    """Mean cross-entropy of each category in nats, from logits, without clipping.

    In [0, inf); lower is better. Matches: scikit-learn where that does not clip.
    """
    return METRICS["log_loss"].per_category(logits, labels)


def ece(logits: Array, labels: PartialLabels | Array) -> Tensor:
    """Expected calibration error of each category's positive-class probability.

    15 bins of equal mass; the rule in words is in
    :func:`catwise.metrics.ece_columns`. In [0, 1]; lower is better.
    """
    return METRICS["ece"].per_category(logits, labels)


def undefined_reason(labels: PartialLabels | Array) -> list[str | None]:
    """Why a category has no metric that needs both classes, in the order of the categories.

    None where both are known, else "no_known_label", "no_known_positive" or "no_known_negative".

    >>> import numpy as np
    >>> undefined_reason(np.array([[1, 0, 1, -1], [0, 0, 1, -2]], dtype=np.int8))
    [None, 'no_known_positive', 'no_known_negative', 'no_known_label']
    """
    pairs = zip(*class_counts(labels), strict=True)
    return [class_reason(int(positive), int(negative)) for positive, negative in pairs]


def class_counts(labels: PartialLabels | Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(C,) int64 known positives and negatives of each category."""
    labels = checked_labels(labels)
    if isinstance(labels, PartialLabels):
        counts = labels.counts()
        return np.asarray(counts.positive), np.asarray(counts.negative)
    positive, negative = (np.count_nonzero(labels == code, axis=0) for code in (1, 0))
    return positive.astype(np.int64), negative.astype(np.int64)
