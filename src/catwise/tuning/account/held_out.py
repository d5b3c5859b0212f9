"""Test rows: they choose and fit nothing; both heads are scored on them when all is done."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from catwise.errors import ConfigError, IdError, InSampleWarning
from catwise.features import check_finite, of_categories
from catwise.joining import (
    COINCIDENCE,
    Aligned,
    align,
    check_disjoint,
    open_source,
    require_known,
    seen_rows,
    source_ids,
)
from catwise.metrics.evaluating import compare_heads
from catwise.metrics.influence import influence
from catwise.metrics.inputs import check_head_logits
from catwise.metrics.mismatch import check_match
from catwise.tuning.inputs import Data, check_kinds, make_data, same_categories

if TYPE_CHECKING:
    from catwise.heads import Head
    from catwise.labels import PartialLabels
    from catwise.metrics import Metric, PairedComparison
    from catwise.tuning.inputs import Work

__all__ = ["compare_on", "evaluation_of", "open_test"]

METRICS: Final = ("average_precision", "auroc", "log_loss")
"""What test rows are scored by, beside the metric that was to become better."""

#: Logits that are looked at before the work begins: 256 MiB as float32.
_ENTRIES: Final = 1 << 26


def open_test(
    work: Work,
    test: tuple[Any, PartialLabels] | None,
    others: dict[str, tuple[Any, PartialLabels] | None],
    metric: Metric,
    *,
    force: bool,
) -> tuple[Data | None, list[str]]:
    """Check and join test rows as training and validation rows are.

    Args:
        work: the head and the training labels that they must fit.
        test: features and labels, or None.
        others: the other sources by their names for people; no row or group may be in two.
        metric: what is to become better.
        force: go on where head, features and columns look mismatched.

    Returns:
        The rows in the order of the labels, and what to know, a sentence each.

    Raises:
        ConfigError: If there is no interval for this metric.
        IdError: If an id or a group is in another source too, or a row fitted the head given.
        CatwiseError: As `tune`, for its other sources.
    """
    if test is None:
        return None, []
    _check_metric(metric)
    features, labels = open_source(test, name="test")
    check_kinds(work.train.features, features, "test")
    notes: list[str] = []
    for name, source in others.items():
        if source is not None:
            notes += check_disjoint(source, (features, labels), names=(name, "test"))
    aligned = align(work.base, features, labels, name="test")
    require_known(labels, "test label")
    train = Aligned(work.base, None, work.train.labels, work.index, [])
    ordered = same_categories(train, aligned, "test")
    taken = replace(aligned, head_index=work.index).take(features)
    check_finite(taken, name="test features")
    data = make_data(taken, ordered, None, work.seed)
    notes += aligned.notes
    index = range(min(work.scored.n_categories, max(1, _ENTRIES // max(ordered.n_rows, 1))))
    own = of_categories(taken, index, work.scored.n_categories)
    names = work.categories[: len(index)]
    logits = check_head_logits(work.scored.take_categories(index).logits(own), names, name="test")
    some = ordered.take_categories(index)
    notes += check_match(logits, some, name="test", categories=names, force=force)
    return data, [*notes, *_fitted_before(work, data)]


def _check_metric(metric: Metric) -> None:
    """Refuse what has no interval before the work begins, not after."""
    try:
        influence(metric.name, np.array([1.0, 0.0]), np.array([True, False]))
    except ConfigError as error:
        raise ConfigError(
            "test rows cannot be compared by this metric.",
            found=metric.name,
            expected=error.expected,
            remedy="another metric, or no test rows: evaluate both heads afterwards",
        ) from error


def _fitted_before(work: Work, data: Data) -> list[str]:
    """Refuse rows that fitted the head that was given: its score before would be too good.

    Without ids a few may be equal images, as in `check_disjoint`.
    """
    seen = np.flatnonzero(seen_rows(work.base, data.digests)[0])
    if not seen.size:
        return []
    text = f"{seen.size:,} of {data.digests.size:,} test rows fitted or selected the head given"
    ids = source_ids(data.features, data.labels)
    if ids is None and seen.size <= COINCIDENCE * data.digests.size:
        return [f"{text}, by the content of their features."]
    first = f"row {seen[0]:,}" if ids is None else repr(str(ids[seen[0]]))
    raise IdError(
        f"{text}, so they cannot judge it.",
        found=f"first {first}",
        expected="rows that neither that head nor this tuning has seen",
        remedy="other test rows, or the head as it was before these were used",
    )


def compare_on(
    data: tuple[Any, PartialLabels], before: Head, after: Head, metric: str | Metric
) -> list[PairedComparison]:
    """Two heads on rows that were checked, by the metric first and then by `METRICS`.

    Args:
        data: features and labels, as :func:`catwise.metrics.compare_heads` takes them.
        before: the original head.
        after: the tuned head.
        metric: name or `Metric`.

    Raises:
        ConfigError: If there is no interval for the metric.
    """
    others = [name for name in METRICS if name != getattr(metric, "name", metric)]
    with warnings.catch_warnings():  # rows that fitted a head were refused or noted
        warnings.simplefilter("ignore", category=InSampleWarning)
        found = compare_heads(before, after, data, metrics=[metric, *others], force=True)
    return list(found.comparisons.values())


def evaluation_of(found: list[PairedComparison]) -> dict[str, Any]:
    """Comparisons on test rows as one JSON-ready document; the first one leads.

    Args:
        found: as `compare_on` gives them.

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
