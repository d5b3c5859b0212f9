"""Metrics on logits over known labels, per category and as stated means."""

from __future__ import annotations

from catwise.metrics.ranking import RankingPlan, auroc_columns, average_precision_columns

__all__ = ["RankingPlan", "auroc_columns", "average_precision_columns"]
