"""Precision, recall and F1 at a threshold, and the threshold with the best F1.

An image counts as called positive when its logit is at least the threshold, ties included;
a logit of 0 is a probability of one half. Where nothing is called positive, precision and F1
are 0, as in scikit-learn. What all kernels take and give is said in :mod:`catwise.metrics`.

>>> import torch
>>> logits = torch.tensor([[2.0, 1.0, -1.0, -2.0]])
>>> codes = torch.tensor([[1, 0, 1, 0]], dtype=torch.int8)
>>> f1_columns(logits, codes), best_f1_threshold_columns(logits, codes).threshold
(tensor([0.5000], dtype=torch.float64), tensor([-1.], dtype=torch.float64))
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from catwise.metrics.inputs import (
    Array,
    Entries,
    as_tensor,
    checked_prevalence,
    entries,
    restated,
    where_defined,
)
from catwise.metrics.ranking import accumulate


class BestF1(NamedTuple):
    """The best F1 of each category and the logit that reaches it."""

    value: Tensor  # (...,) float64
    threshold: Tensor  # (...,) float64


def precision_columns(
    scores: Array,
    codes: Array,
    *,
    weight: Array | None = None,
    threshold: float | Array = 0.0,
    prevalence: float | Array | None = None,
) -> Tensor:
    """Precision ``TP / (TP + FP)`` at a threshold, 0 where nothing is called positive.

    Matches: scikit-learn ``precision_score(zero_division=0)``.
    """
    given = entries(scores, codes, weight)
    true, false = _called(given, threshold, prevalence)
    return where_defined(torch.where(true + false > 0, true / (true + false), 0.0), given)


def recall_columns(
    scores: Array,
    codes: Array,
    *,
    weight: Array | None = None,
    threshold: float | Array = 0.0,
    prevalence: float | Array | None = None,
) -> Tensor:
    """Recall ``TP / (TP + FN)`` at a threshold; the prevalence is checked, and changes nothing.

    Matches: scikit-learn ``recall_score``.
    """
    given = entries(scores, codes, weight)
    checked_prevalence(prevalence, given.score.device)
    true, _ = _called(given, threshold, None)
    return where_defined(true / given.n_positive, given)


def f1_columns(
    scores: Array,
    codes: Array,
    *,
    weight: Array | None = None,
    threshold: float | Array = 0.0,
    prevalence: float | Array | None = None,
) -> Tensor:
    """F1 ``2 TP / (2 TP + FP + FN)`` at a threshold.

    Matches: scikit-learn ``f1_score(zero_division=0)``. Source: van Rijsbergen, "Information
    Retrieval", 1979, ch. 7.
    """
    given = entries(scores, codes, weight)
    true, false = _called(given, threshold, prevalence)
    share = checked_prevalence(prevalence, given.score.device)
    every = given.n_positive if share is None else share
    return where_defined(2.0 * true / (true + false + every), given)


def best_f1_columns(
    scores: Array,
    codes: Array,
    *,
    weight: Array | None = None,
    prevalence: float | Array | None = None,
) -> Tensor:
    """The best F1 over all thresholds; see :func:`best_f1_threshold_columns`."""
    return best_f1_threshold_columns(scores, codes, weight=weight, prevalence=prevalence).value


def best_f1_threshold_columns(
    scores: Array,
    codes: Array,
    *,
    weight: Array | None = None,
    prevalence: float | Array | None = None,
) -> BestF1:
    """The best F1 over all thresholds, and the threshold, (...,) each.

    The thresholds tried are the known logits themselves; of several with the same F1 the
    highest is given. Chosen and scored on the same rows the value is optimistic.

    Matches: the maximum over scikit-learn's ``precision_recall_curve``.
    """
    sums = accumulate(scores, codes, weight)
    given, share = sums.given, checked_prevalence(prevalence, sums.given.score.device)
    true, false = sums.restated(share)
    if not true.shape[-1]:
        nothing = where_defined(given.n_positive, given)
        return BestF1(nothing, nothing)
    every = (given.n_positive if share is None else share)[..., None]
    value, place = (2.0 * true / (true + false + every)).max(dim=-1, keepdim=True)
    threshold = sums.ranked.double().expand(true.shape).gather(-1, place)
    return BestF1(
        where_defined(value.squeeze(-1), given), where_defined(threshold.squeeze(-1), given)
    )


def _called(
    given: Entries, threshold: float | Array, prevalence: float | Array | None
) -> tuple[Tensor, Tensor]:
    """Weights of the true and the false positives, restated at the prevalence."""
    device = given.score.device
    limit = as_tensor(threshold, "the threshold").to(device, torch.float64)
    called = given.score.double() >= limit[..., None]
    true, false = (given.positive * called).sum(-1), (given.negative * called).sum(-1)
    share = checked_prevalence(prevalence, device)
    if share is None:
        return true, false
    return restated(true, false, given.n_positive, given.n_negative, share)
