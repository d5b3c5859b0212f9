"""Brier score, log-loss and expected calibration error of the positive class, from logits.

All three read a logit s as the probability ``sigmoid(s)`` and stay finite and exact for logits
of ±1,000: nothing is computed as one minus a rounded probability. Lower is better. They are means
over the known labels, so that a category of which only one class is known has them too, and NaN
is left where no label is known. What all kernels take and give is said in :mod:`catwise.metrics`.

>>> import torch
>>> logits = torch.tensor([[1000.0, -1000.0, 0.0]])
>>> codes = torch.tensor([[1, 0, 1]], dtype=torch.int8)
>>> brier_columns(logits, codes), log_loss_columns(logits, codes)
(tensor([0.0833], dtype=torch.float64), tensor([0.2310], dtype=torch.float64))
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from catwise.metrics.inputs import Array, Entries, entries, in_order, where_known
from catwise.metrics.ranking import tie_edges

#: Equal-mass bins of the calibration error.
ECE_BINS = 15


def brier_columns(scores: Array, codes: Array, *, weight: Array | None = None) -> Tensor:
    """Brier score ``mean((sigmoid(s) − y)²)``, in [0, 1].

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950, in the
    one-class form. Matches: scikit-learn ``brier_score_loss``.
    """
    given = entries(scores, codes, weight)
    score = given.score.double()
    wrong = given.positive * torch.sigmoid(-score) ** 2 + given.negative * torch.sigmoid(score) ** 2
    return _mean(wrong, given)


def log_loss_columns(scores: Array, codes: Array, *, weight: Array | None = None) -> Tensor:
    """Log-loss ``mean(softplus(−s))`` over positives and ``softplus(s)`` over negatives, in nats.

    In [0, inf): probabilities are not clipped, a logit of −1,000 on a positive costs 1,000.

    Matches: scikit-learn ``log_loss`` where that does not clip.
    """
    given = entries(scores, codes, weight)
    score = given.score.double()
    # a weight of 0 must silence an infinite loss: 0 · inf is NaN
    positive = torch.where(given.positive > 0, given.positive * softplus(-score), 0.0)
    negative = torch.where(given.negative > 0, given.negative * softplus(score), 0.0)
    return _mean(positive + negative, given)


def ece_columns(
    scores: Array, codes: Array, *, weight: Array | None = None, n_bins: int = ECE_BINS
) -> Tensor:
    """Expected calibration error of the positive-class probability, in `n_bins` equal-mass bins.

    The rule: the known rows of a category are ranked by logit. A row goes to bin
    ``floor(n_bins · b / n)``, where b is the number (weight) of rows that score strictly less
    and n that of all known rows; so tied rows share a bin, every bin holds n / n_bins rows but
    for ties and rounding, and with fewer rows than bins each distinct logit is a bin of its
    own. The error is the mean over bins, weighted by their rows, of
    ``|mean probability − share of positives|``.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015, with the equal-mass bins of Nguyen & O'Connor, EMNLP 2015.
    """
    given = entries(scores, codes, weight)
    weights = given.positive + given.negative
    if not weights.shape[-1]:
        return where_known(given.n_positive, given)
    # nothing that does not count may split a tie or fill a bin: it has no weight
    order = given.score.argsort(dim=-1)
    ranked = in_order(given.score, order)
    mass = in_order(weights, order)
    first, _ = tie_edges(ranked)
    below = in_order(mass.cumsum(-1) - mass, first)
    total = (given.n_positive + given.n_negative)[..., None]
    place = (n_bins * below / total).nan_to_num(0.0).floor().clamp(0, n_bins - 1).long()
    gap = mass * torch.sigmoid(ranked.double()) - in_order(given.positive, order)
    bins = gap.new_zeros((*gap.shape[:-1], n_bins)).scatter_add(-1, place, gap)
    return where_known(bins.abs().sum(-1) / total.squeeze(-1), given)


def _mean(total: Tensor, given: Entries) -> Tensor:
    return where_known(total.sum(-1) / (given.n_positive + given.n_negative), given)
