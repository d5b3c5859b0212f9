"""Which threshold each rule takes, from the held-out rows of one category.

A row is called positive when its logit is at least the threshold. Rules of two kinds:

- from calibrated probabilities: the best expected F-beta, a ratio of costs, Youden's J. A sweep
  over the rows that choose is optimistic and, below hundreds of positives, worse (measured in
  docs/decisions.md);
- from counted rows: the least sensitivity or specificity by an order statistic, the least
  precision by testing cut-offs from the top, a share of rows.

Source: Lipton, Elkan & Naryanaswamy, "Optimal thresholding of classifiers to maximize F1
measure", ECML PKDD 2014 (half of the best F1); Wilks, Annals of Mathematical Statistics 12, 1941
(the beta law of order statistics); Westfall & Krishen, Journal of Statistical Planning and
Inference 99, 2001 (fixed sequences of tests).

>>> needed_positives(0.95, 0.9), needed_positives(0.8, 0.9), needed_positives(0.95, None)
(45, 11, 19)
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

RULES: Final = {
    "f1": "the best expected F1",
    "f_beta": "the best expected F-beta",
    "cost": "the least expected cost",
    "youden": "the best expected sensitivity + specificity",
    "alert_rate": "a share of rows that are called positive",
    "prevalence": "as many rows called positive as are positive",
    "sensitivity": "a least sensitivity",
    "specificity": "a least specificity",
    "precision": "a least precision",
}
"""The rules, and what each aims at."""

WITH_VALUE: Final = ("f_beta", "cost", "alert_rate", "sensitivity", "specificity", "precision")
_MISSES: Final = 2
GUARANTEED: Final = ("sensitivity", "specificity", "precision")
BY_PROBABILITY: Final = ("f1", "f_beta", "cost", "youden")
"""Rules whose thresholds depend on the calibration; so does an expected precision."""


SETS: Final = ("none", "negative", "positive", "both")
"""Sets of answers; the place of each is its code."""


class Choice(NamedTuple):
    """A threshold, or how many rows of a class it would take.

    Attributes:
        threshold: logit; None where there is none.
        needed: rows that would be needed, where too few are known.
    """

    threshold: float | None
    needed: int | None = None


def needed_positives(least: float, confidence: float | None) -> int:
    """How many known positives a least sensitivity needs; of negatives for a specificity.

    Args:
        least: sensitivity, in (0, 1).
        confidence: with which it is to be reached, in (0, 1); None: in expectation.
    """
    if confidence is None:
        return math.ceil(least / (1.0 - least) - 1e-9)
    return max(1, math.ceil(math.log1p(-confidence) / math.log(least) - 1e-9))


def rank_of(n: int, least: float, confidence: float | None) -> int:
    """The largest r for which the r-th lowest of n scores keeps a share `least` of new ones.

    The share of new scores at or above the r-th lowest of n follows Beta(n − r + 1, r).

    Returns:
        r, 0 where none does.
    """
    if confidence is None:
        return math.floor((n + 1) * (1.0 - least) + 1e-9)
    from scipy.special import betainc

    ranks = np.arange(1, n + 1)
    kept = 1.0 - betainc(n - ranks + 1.0, ranks, least)
    return int(np.count_nonzero(kept >= confidence - 1e-12))  # falls with r


def chance_below(n: int, rank: int, least: float) -> float:
    """The probability that less than a share `least` of new scores is kept by a rank of n.

    >>> round(chance_below(10, 1, 0.9), 3)  # 0.9 ** 10
    0.349
    """
    from scipy.special import betainc

    return float(betainc(n - rank + 1.0, rank, least))


def kept_with(n: int, rank: int, confidence: float) -> float:
    """The share of new scores that a rank of n keeps with a confidence.

    >>> round(kept_with(10, 1, 0.9), 3)  # 0.1 ** (1 / 10)
    0.794
    """
    from scipy.special import betaincinv

    return float(betaincinv(n - rank + 1.0, rank, 1.0 - confidence))


def order_statistic(
    scores: NDArray[np.float64], least: float, confidence: float | None, *, above: bool
) -> tuple[Choice, int]:
    """The threshold that keeps a share of new rows of one class on its side, and its rank.

    Args:
        scores: (n,) logits of the known rows of that class.
        least: the share, in (0, 1).
        confidence: with which at least this share is kept; None: kept in expectation.
        above: True to keep positives at or above it (sensitivity), False to keep negatives
            below it (specificity).
    """
    r = rank_of(scores.size, least, confidence)
    if not r:
        return Choice(None, needed_positives(least, confidence)), 0
    if above:
        return Choice(float(np.partition(scores, r - 1)[r - 1])), r
    edge = float(-np.partition(-scores, r - 1)[r - 1])
    return Choice(next_above(edge)), r


def set_codes(
    scores: NDArray[Any], low: NDArray[np.float64] | float, high: NDArray[np.float64] | float
) -> NDArray[np.int8]:
    """Sets of answers, as codes of `SETS`.

    Args:
        scores: logits.
        low: logit from which "positive" is in the set.
        high: logit below which "negative" is in the set.

    >>> set_codes(np.array([-1.0, 0.5, 2.0]), 0.0, 1.0).tolist()
    [1, 3, 2]
    """
    codes = 1 * (scores < high) + 2 * (scores >= low)
    return np.asarray(codes, dtype=np.int8)


def next_above(value: float) -> float:
    """The next larger float32: logits that are stored in float32 stay on their side of it."""
    nearest = np.float32(value)
    return float(nearest) if nearest > value else float(np.nextafter(nearest, np.float32(np.inf)))


def first_cutoff(least: float, confidence: float) -> int:
    """How many called rows, all but two of them positive, first show a precision.

    >>> first_cutoff(0.5, 0.9), first_cutoff(0.8, 0.9)
    (9, 25)
    """
    from scipy.special import bdtrc

    n = _MISSES + 1
    while bdtrc(n - _MISSES - 1.0, n, least) > 1.0 - confidence + 1e-12:
        n += 1
    return n


def least_precision(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], least: float, confidence: float
) -> Choice:
    """The lowest cut-off down to which every test of "precision is below `least`" is rejected.

    Cut-offs are tested from the top, at a level of 1 − confidence each, beginning with the first
    that would pass with two negatives among its called rows, and end with the first that is not
    rejected: so the probability that a precision below `least` comes out is at most
    1 − confidence, over all that ask. It says nothing of those where one was found. (Beginning
    where no negative is allowed finds fewer and lower: one negative at the top ends it.)

    Args:
        scores: (n,) logits of the known rows.
        positive: (n,) bool.
        least: precision, in (0, 1).
        confidence: in (0, 1).
    """
    from scipy.special import bdtrc

    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    first = first_cutoff(least, confidence)
    if hits.size == 0 or hits[-1] < first - _MISSES:
        return Choice(None, first - _MISSES)
    is_last = np.append(ranked[1:] < ranked[:-1], True)
    called = np.arange(1, ranked.size + 1)
    tested = is_last & (called >= first)
    # P(as many positives or more among the called | precision = least)
    chance = np.where(hits > 0, bdtrc(hits - 1.0, called, least), 1.0)
    passed = chance <= 1.0 - confidence + 1e-12
    failed = np.flatnonzero(tested & ~passed)
    end = int(failed[0]) if failed.size else ranked.size
    kept = np.flatnonzero(tested[:end])
    return Choice(float(ranked[kept[-1]])) if kept.size else Choice(None)


def expected_precision(
    scores: NDArray[np.float64], probabilities: NDArray[np.float64], least: float
) -> tuple[Choice, float | None]:
    """The lowest cut-off whose called rows have a mean probability of at least `least`, and that.

    Args:
        scores: (n,) logits.
        probabilities: (n,) calibrated, rising with the logits.
        least: precision, in (0, 1).
    """
    order = np.argsort(-scores, kind="stable")
    ranked, p = scores[order], probabilities[order]
    mean = np.cumsum(p) / np.arange(1, p.size + 1)
    is_last = np.append(ranked[1:] < ranked[:-1], True)
    kept = np.flatnonzero(is_last & (mean >= least))
    if not kept.size:
        return Choice(None), None
    return Choice(float(ranked[kept[-1]])), float(mean[kept[-1]])


def share_of_rows(scores: NDArray[np.float64], share: float) -> Choice:
    """The threshold at or above which a share of new rows lies, in expectation or less.

    Args:
        scores: (n,) logits.
        share: in (0, 1).
    """
    r = math.floor((scores.size + 1) * share + 1e-9)
    if not r:
        return Choice(None, math.ceil(1.0 / share - 1e-9) - 1)
    r = min(r, scores.size)
    return Choice(float(-np.partition(-scores, r - 1)[r - 1]))


def best_expected_f(probabilities: NDArray[np.float64], beta: float) -> float:
    """The best expected F-beta over all cut-offs of calibrated probabilities.

    ``F = max_j (1 + β²) Σ_{i ≤ j} p_i / (j + β² Σ p)`` over the probabilities in falling order; a
    row is then worth calling where its probability is at least ``F / (1 + β²)``.

    Args:
        probabilities: (n,) of all rows, in [0, 1].
        beta: how many times sensitivity counts as much as precision, > 0.

    >>> round(best_expected_f(np.array([0.9, 0.8, 0.1]), 1.0), 4)
    0.8947
    """
    p = np.sort(probabilities)[::-1]
    called = np.arange(1, p.size + 1)
    return float(((1.0 + beta**2) * np.cumsum(p) / (called + beta**2 * p.sum())).max(initial=0.0))
