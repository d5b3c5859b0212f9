"""Metrics on logits over known labels: per category, macro, micro, and with intervals.

Functions of (N, C) logits live here by their plain names. Kernels on category-major blocks end in
``_columns``; all of them take

- ``scores`` (..., M) logits, of which only the order matters to metrics that rank;
- ``codes`` (..., M) int8, which broadcast against the scores: 1 positive, 0 negative; all other
  codes are ignored;
- ``weight`` (..., M) non-negative row weights (a duplicate is a weight of 2), or None;
- ``threshold``, where the metric has one: the logit from which an image is called positive; and
  ``prevalence``: the share of positives to assume, in (0, 1), at which true and false positives
  count ``π TPR`` and ``(1 − π) FPR``. Both broadcast against the result.

They give (...,) float64 on the device of the scores, in [0, 1] unless they say otherwise; NaN where
a class that the metric needs is not known, or a known score is NaN. What does not broadcast is a
ShapeError, an option out of range a ConfigError.
"""

from __future__ import annotations

from catwise.metrics.bootstrap import (
    PairedBootstrap,
    benjamini_hochberg,
    bootstrap_replicates,
    paired_bootstrap,
)
from catwise.metrics.calibration import ECE_BINS, brier_columns, ece_columns, log_loss_columns
from catwise.metrics.evaluating import DEFAULT_METRICS, compare_heads, evaluate
from catwise.metrics.evaluation import Evaluation, HeadComparison, Interval
from catwise.metrics.paired import PairedComparison, compare_logits
from catwise.metrics.per_category import (
    auroc,
    average_precision,
    best_f1,
    best_f1_threshold,
    brier,
    ece,
    f1,
    log_loss,
    precision,
    recall,
    undefined_reason,
)
from catwise.metrics.ranking import RankingPlan, auroc_columns, average_precision_columns
from catwise.metrics.registry import METRICS, Metric, resolve_metric
from catwise.metrics.threshold import (
    BestF1,
    best_f1_columns,
    best_f1_threshold_columns,
    f1_columns,
    precision_columns,
    recall_columns,
)

__all__ = [
    "DEFAULT_METRICS",
    "ECE_BINS",
    "METRICS",
    "BestF1",
    "Evaluation",
    "HeadComparison",
    "Interval",
    "Metric",
    "PairedBootstrap",
    "PairedComparison",
    "RankingPlan",
    "auroc",
    "auroc_columns",
    "average_precision",
    "average_precision_columns",
    "benjamini_hochberg",
    "best_f1",
    "best_f1_columns",
    "best_f1_threshold",
    "best_f1_threshold_columns",
    "bootstrap_replicates",
    "brier",
    "brier_columns",
    "compare_heads",
    "compare_logits",
    "ece",
    "ece_columns",
    "evaluate",
    "f1",
    "f1_columns",
    "log_loss",
    "log_loss_columns",
    "paired_bootstrap",
    "precision",
    "precision_columns",
    "recall",
    "recall_columns",
    "resolve_metric",
    "undefined_reason",
]
