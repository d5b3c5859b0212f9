"""Test rows: they choose and fit nothing; both heads are scored on them when all is done."""

from __future__ import annotations

import warnings
from typing import Any, Final

from catwise.errors import InSampleWarning
from catwise.heads import Head
from catwise.labels import PartialLabels
from catwise.metrics import Metric, PairedComparison
from catwise.metrics.evaluating import compare_heads

METRICS: Final = ("average_precision", "auroc", "log_loss")
"""What test rows are scored by, beside the metric to optimise."""


def compare_on(
    data: tuple[Any, PartialLabels], before: Head, after: Head, metric: str | Metric
) -> list[PairedComparison]:
    """Two heads on rows that were checked, by the metric first and then by `METRICS`."""
    others = [name for name in METRICS if name != getattr(metric, "name", metric)]
    with warnings.catch_warnings():  # rows that fitted a head were refused or noted
        warnings.simplefilter("ignore", category=InSampleWarning)
        found = compare_heads(before, after, data, metrics=[metric, *others], force=True)
    return list(found.comparisons.values())


def evaluation_of(found: list[PairedComparison]) -> dict[str, Any]:
    """Comparisons on test rows as one JSON-ready document; the first one leads.

    Returns:
        What `PairedComparison.to_dict` gives of the first, `means` by metric, and for each category
        the `other_metrics`.
    """
    first, *others = found
    document = first.to_dict()
    document["means"] = {one.metric: one.mean() for one in found}
    keys = ("before", "after", "difference", "difference_low", "difference_high")
    for one in others:
        for row, record in zip(document["categories"], one.records(), strict=True):
            row.setdefault("other_metrics", {})[one.metric] = {key: record[key] for key in keys}
    return document
