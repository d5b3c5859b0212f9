"""Metrics on logits over known labels: per category, macro, micro, and with intervals.

Functions of (N, C) logits live here by their plain names; kernels on category-major blocks
end in ``_columns``.
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
