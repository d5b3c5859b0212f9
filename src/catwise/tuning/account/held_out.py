"""Test rows: they choose and fit nothing; both heads are scored on them when all is done."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from catwise.errors import InSampleWarning
from catwise.heads import Head
from catwise.labels import PartialLabels
from catwise.metrics import HeadComparison, Metric
from catwise.metrics.curves import CategoryCurves, draw_curves
from catwise.metrics.evaluating import compare_heads
from catwise.tuning.account.results import FoldArtifacts

if TYPE_CHECKING:
    from catwise.tuning.inputs import LabelledSource

METRICS: Final = ("average_precision", "auroc", "log_loss")
"""What test rows are scored by, beside the metric to optimise."""


def compare_on(
    data: tuple[Any, PartialLabels], before: Head, after: Head, metric: str | Metric
) -> HeadComparison:
    """Two heads on rows that were checked, by the metric first and then by `METRICS`."""
    others = [name for name in METRICS if name != getattr(metric, "name", metric)]
    with warnings.catch_warnings():  # rows that fitted a head were refused or noted
        warnings.simplefilter("ignore", category=InSampleWarning)
        return compare_heads(
            before, after, data, metrics=[metric, *others], force=True, curves=True
        )


def evaluation_of(found: HeadComparison) -> dict[str, Any]:
    """A comparison on test rows as one JSON-ready document; the first metric leads.

    Returns:
        What `PairedComparison.to_dict` gives of the first, `means` by metric, and for each category
        the `other_metrics`.
    """
    first, *others = found.comparisons.values()
    document = first.to_dict()
    document["means"] = {one.metric: one.mean() for one in (first, *others)}
    keys = ("before", "after", "difference", "difference_low", "difference_high")
    for one in others:
        for row, record in zip(document["categories"], one.records(), strict=True):
            row.setdefault("other_metrics", {})[one.metric] = {key: record[key] for key in keys}
    return document


def curves_document(rows: str, curves: Sequence[CategoryCurves] | None) -> dict[str, Any] | None:
    """What curves are drawn from, JSON-ready: of which rows, and each category; None without."""
    if curves is None:
        return None
    return {"rows": rows, "categories": [one.to_dict() for one in curves]}


def fold_curves(
    rows: LabelledSource, before: Head, folds: FoldArtifacts | None, *, where: str
) -> dict[str, Any] | None:
    """Curves of the rows that were cross-fitted, each by the head fitted without its fold.

    Args:
        rows: with features in the order of the folds' rows.
        before: the original head's rows of the labels' categories.
        folds: what cross-fitting left; None: no curves.
        where: what the rows are called.
    """
    if folds is None:
        return None
    logits = {"before": before.logits(rows.features), "after": torch.from_numpy(folds.logits)}
    return curves_document(where, draw_curves(logits, rows.labels, folds.categories))
