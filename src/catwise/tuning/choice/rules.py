"""Rules of choosing: from scores per candidate and category to what each category has.

Choices are few: one candidate for all categories, and per category only whether to replace the
original head; or one for each category, with strength shared over categories. A rule takes (K, C)
scores, larger is better, candidate 0 the original head, and the positives that judge; it gives the
(C,) chosen candidates, and the one chosen for all or −1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Chosen: TypeAlias = NDArray[np.int64]
Rule: TypeAlias = Callable[[Floats, Floats], tuple[Chosen, int]]

MIN_POSITIVES: Final = 5
"""Below that many held-out positives a category follows the pooled decision."""

_POOLED_PRIOR = 100.0
_TINY = 1e-12


def pooled_gain(gain: Floats, positives: Floats) -> Floats:
    """(K,) mean gains over categories, weighted n / (n + 100) by their n positives.

    Args:
        gain: (K, C); NaN is left out.
        positives: (C,), or (K, C).
    """
    weight = np.where(np.isfinite(gain), positives / (positives + _POOLED_PRIOR), 0.0)
    total = (np.nan_to_num(gain) * weight).sum(1)
    mean: Floats = total / np.maximum(weight.sum(1), _TINY)
    return mean


def shrunk(gain: Floats, positives: Floats, prior: float, *, mean: float | None = None) -> Floats:
    """(K, C) gains pulled to their pooled mean: m + n / (n + prior) (gain − m).

    Below `MIN_POSITIVES`, and where a gain is not known, it is the pooled mean; that of other
    categories where it is given.
    """
    pooled = pooled_gain(gain, positives)[:, None] if mean is None else np.float64(mean)
    trust = np.where(positives < MIN_POSITIVES, 0.0, positives / (positives + prior))
    own = np.where(np.isfinite(gain), gain, pooled)
    pulled: Floats = pooled + trust * (own - pooled)
    return pulled


def choose_each(scores: Floats, positives: Floats, *, prior: float = 30.0) -> tuple[Chosen, int]:
    """Per category the candidate with the best shrunk gain; ties go to the first.

    Positives may be (K, C), those that judge each candidate.
    """
    pulled = shrunk(scores - scores[:1], positives, prior)
    return np.where(_defined(scores, positives), pulled.argmax(0), 0).astype(np.int64), -1


def choose_greedy(scores: Floats, positives: Floats) -> tuple[Chosen, int]:
    """Per category the candidate with the best score; ties go to the first.

    >>> choose_greedy(np.array([[0.5, 0.5], [0.6, 0.5]]), np.array([40.0, 40.0]))[0]
    array([1, 0])
    """
    best = np.where(np.isfinite(scores), scores, -np.inf).argmax(0)
    return np.where(_defined(scores, positives), best, 0).astype(np.int64), -1


RuleName = Literal["honest", "greedy"]
RULES: Final[Mapping[str, Rule]] = {"honest": choose_each, "greedy": choose_greedy}
"""The rules of `select` by name."""


def clearly_worse(low: Floats, high: Floats, *, higher_is_better: bool = True) -> NDArray[np.bool_]:
    """(C,) where an interval of the gain lies wholly on the wrong side of zero: keep the original.

    Shapes:
        low: (C,) lower ends of intervals of score after − before; NaN where there is none.
        high: (C,) upper ends.

    >>> clearly_worse(np.array([-0.3, -0.3, np.nan]), np.array([-0.1, 0.1, np.nan]))
    array([ True, False, False])
    """
    return np.asarray(high < 0.0 if higher_is_better else low > 0.0)


def _defined(scores: Floats, positives: Floats) -> NDArray[np.bool_]:
    """(C,) whether the original head has a score."""
    return np.asarray(np.broadcast_to(positives, scores.shape)[0] > 0)


def keep_or_take(
    gain: Floats, positives: Floats, best: int, *, mean: float | None = None
) -> Chosen:
    """(C,) the candidate chosen for all where its shrunk gain is positive, else 0.

    `mean` is the pooled gain that it is shrunk to, where that is held.

    Shapes:
        gain: (K, C) over the original head, candidate 0.
        positives: (C,) known held-out positives.
    """
    if best == 0:
        return np.zeros(gain.shape[1], dtype=np.int64)
    better = shrunk(gain[best : best + 1], positives, _POOLED_PRIOR, mean=mean)[0] > 0
    return np.where(better & (positives > 0), best, 0).astype(np.int64)
