"""How much each row moves a metric: the derivative of its value by the row's weight.

A metric of one category is a smooth function of the weights of its rows. In a stratified
resample (as many positives and as many negatives, weights w) it is to first order

    ``value + mean_w(rows of the positives) + mean_w(rows of the negatives)``

with weighted means, so that hundreds of resamples of dozens of heads are one matrix product,
and a standard error is a sum of squares. For AUROC this is DeLong's method, exactly; Brier
score and log-loss are linear, so nothing is lost; best F1 and calibration error hold their
threshold and their bins fixed.

Source: Efron, "Nonparametric estimates of standard error", Biometrika 68, 1981 (infinitesimal
jackknife); DeLong et al., Biometrics 44, 1988 (AUROC).

>>> import numpy as np
>>> scores, positive = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False])
>>> value, rows = influence("auroc", scores, positive)
>>> value, rows.tolist()
(0.75, [0.25, -0.25, -0.25, 0.25])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from catwise.errors import ConfigError
from catwise.metrics.calibration import ECE_BINS
from catwise.metrics.ranking import MAX_FPR, partial_auroc_columns
from catwise.metrics.threshold import best_f1_threshold_columns


class Influence(NamedTuple):
    """A metric of one category, and what each known row adds to it."""

    value: float
    rows: NDArray[np.float64]  # (n,), mean 0 over the positives and over the negatives


def influence(
    metric: str,
    scores: NDArray[Any],
    positive: NDArray[np.bool_],
    *,
    prevalence: float | None = None,
) -> Influence:
    """The value of a metric, and its (n,) derivative by the weight of each row within its class.

    Scores (n,) hold no NaN, positive (n,) both classes; thresholds are at a logit of 0.
    ConfigError where a metric has no influence function.
    """
    if metric not in _FUNCTIONS:
        raise ConfigError(
            f"no influence function is known for {metric!r}",
            expected="one of " + ", ".join(_FUNCTIONS),
        )
    score = np.asarray(scores)
    if score.dtype not in (np.float32, np.float64):
        score = score.astype(np.float64)
    k = int(np.count_nonzero(positive))
    share = k / positive.size if prevalence is None else prevalence
    return _FUNCTIONS[metric](score, positive, share)


def _auroc(scores: NDArray[Any], positive: NDArray[np.bool_], share: float) -> Influence:
    del share
    high, low = scores[positive], scores[~positive]
    ordered_high, ordered_low = np.sort(high), np.sort(low)
    below = (ordered_low.searchsorted(high, "left") + ordered_low.searchsorted(high, "right")) / (
        2.0 * low.size
    )
    under = (ordered_high.searchsorted(low, "left") + ordered_high.searchsorted(low, "right")) / (
        2.0 * high.size
    )
    value = float(below.mean())
    rows = np.empty(scores.size)
    rows[positive], rows[~positive] = below - value, (1.0 - under) - value
    return Influence(value, rows)


def _partial_auroc(scores: NDArray[Any], positive: NDArray[np.bool_], share: float) -> Influence:
    """Area under TPR as a function of FPR up to F: rows move both, and where F is reached.

    With q the score at which FPR is F, a negative above q adds TPR(s) − TPR(q): what it adds to
    the area less what it pushes beyond F. Source: Dodd & Pepe, "Partial AUC estimation and
    regression", Biometrics 59, 2003, for the area of the top negatives.
    """
    del share
    kernel = partial_auroc_columns(torch.from_numpy(scores), torch.from_numpy(positive).byte())
    high, low = np.sort(scores[positive]), scores[~positive]
    top = np.sort(low)[::-1]
    reach = MAX_FPR * low.size
    n_whole = int(reach)
    part = reach - n_whole
    edge = top[min(n_whole, low.size - 1)]

    def rate(values: NDArray[Any]) -> NDArray[np.float64]:
        found = high.searchsorted(values, "left") + high.searchsorted(values, "right")
        return np.asarray(1.0 - found / (2.0 * high.size), dtype=np.float64)

    at_edge = float(rate(np.array([edge]))[0])
    lowest = np.sort(top[:n_whole])
    own = scores[positive]
    above = lowest.searchsorted(own, "left") + lowest.searchsorted(own, "right")
    gained = (above / 2.0 + part * ((own > edge) + 0.5 * (own == edge))) / low.size
    rows = np.empty(scores.size)
    rows[positive] = gained - gained.mean()
    pushed = np.where(low > edge, rate(low) - at_edge, 0.0)
    rows[~positive] = pushed - pushed.mean()
    return Influence(float(kernel), rows / (2.0 * (MAX_FPR - MAX_FPR**2 / 2)))


def _average_precision(
    scores: NDArray[Any], positive: NDArray[np.bool_], share: float
) -> Influence:
    """With T and F the rates at each positive j, ``AP = mean_j h(T_j, F_j)``; see the module."""
    high, low = scores[positive], scores[~positive]
    order = np.argsort(low)  # sorted keys are found several times faster than unsorted ones
    steps, ordered_low = np.sort(high), low[order]
    k = high.size
    true = (k - steps.searchsorted(steps, "left")) / k
    false = (low.size - ordered_low.searchsorted(steps, "left")) / low.size
    whole = share * true + (1.0 - share) * false
    precision = share * true / whole
    by_true = share * (1.0 - share) * false / whole**2
    by_false = -share * (1.0 - share) * true / whole**2
    value = float(precision.mean())
    rows = np.empty(scores.size)
    place = steps.searchsorted(high, "right")
    rows[positive] = (precision[place - 1] - value) + (
        _sums(by_true)[place] - (by_true * true).sum()
    ) / k
    reached = np.empty(low.size)
    reached[order] = _sums(by_false)[steps.searchsorted(ordered_low, "right")]
    rows[~positive] = (reached - (by_false * false).sum()) / k
    return Influence(value, rows)


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, … values."""
    return np.concatenate([np.zeros(1), np.cumsum(values)])


def _at_threshold(
    formula: Callable[[float, float, float], tuple[float, float, float]],
) -> Callable[..., Influence]:
    """Influence of a function of the rates at one threshold."""

    def of(
        scores: NDArray[Any], positive: NDArray[np.bool_], share: float, threshold: float = 0.0
    ) -> Influence:
        called = (scores >= threshold).astype(np.float64)
        true, false = float(called[positive].mean()), float(called[~positive].mean())
        value, by_true, by_false = formula(true, false, share)
        rows = np.where(positive, by_true * (called - true), by_false * (called - false))
        return Influence(value, rows)

    return of


def _precision(true: float, false: float, share: float) -> tuple[float, float, float]:
    whole = share * true + (1.0 - share) * false
    if whole == 0.0:
        return 0.0, 0.0, 0.0
    product = share * (1.0 - share) / whole**2
    return share * true / whole, product * false, -product * true


def _recall(true: float, false: float, share: float) -> tuple[float, float, float]:
    del false, share
    return true, 1.0, 0.0


def _f1(true: float, false: float, share: float) -> tuple[float, float, float]:
    whole = share * true + (1.0 - share) * false + share
    value = 2.0 * share * true / whole
    return value, (2.0 - value) * share / whole, -value * (1.0 - share) / whole


def _best_f1(scores: NDArray[Any], positive: NDArray[np.bool_], share: float) -> Influence:
    codes = torch.from_numpy(positive.astype(np.int8))
    best = best_f1_threshold_columns(torch.from_numpy(scores), codes, prevalence=share)
    return _at_threshold(_f1)(scores, positive, share, float(best.threshold))


def _linear(rows: NDArray[np.float64], positive: NDArray[np.bool_]) -> Influence:
    """Influence on a plain mean over all rows."""
    centred = rows.astype(np.float64)
    for one in (positive, ~positive):
        if not one.any():
            continue
        centred[one] = (centred[one] - centred[one].mean()) * (np.count_nonzero(one) / one.size)
    return Influence(float(rows.mean()), centred)


def _brier(scores: NDArray[Any], positive: NDArray[np.bool_], share: float) -> Influence:
    del share
    return _linear(_wrong(scores, positive) ** 2, positive)


def _log_loss(scores: NDArray[Any], positive: NDArray[np.bool_], share: float) -> Influence:
    del share
    signed = np.where(positive, -scores, scores).astype(np.float64)
    return _linear(np.logaddexp(0.0, signed), positive)


def _ece(scores: NDArray[Any], positive: NDArray[np.bool_], share: float) -> Influence:
    del share
    below = np.sort(scores).searchsorted(scores, "left")
    bins = np.minimum(ECE_BINS * below // scores.size, ECE_BINS - 1)
    gap = np.where(positive, -1.0, 1.0) * _wrong(scores, positive)
    sign = np.sign(np.bincount(bins, weights=gap, minlength=ECE_BINS))
    return _linear(sign[bins] * gap, positive)


def _wrong(scores: NDArray[Any], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of the probability from the truth, in [0, 1]."""
    signed = np.where(positive, -scores, scores).astype(np.float64)
    return torch.sigmoid(torch.from_numpy(signed)).numpy()


_FUNCTIONS: dict[str, Callable[..., Influence]] = {
    "average_precision": _average_precision,
    "auroc": _auroc,
    "partial_auroc": _partial_auroc,
    "f1": _at_threshold(_f1),
    "best_f1": _best_f1,
    "precision": _at_threshold(_precision),
    "recall": _at_threshold(_recall),
    "brier": _brier,
    "log_loss": _log_loss,
    "ece": _ece,
}
