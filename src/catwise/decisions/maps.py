"""Maps from a logit to a calibrated logit, a category each; none of them ever falls.

An affine map is a scale > 0 and an offset. A map by knots goes straight from one to the next in
logits and is constant beyond them; probabilities of 0 and 1 are not promised by any number of
rows, so knots of isotonic regression lie between 1 / (n + 2) and 1 − 1 / (n + 2).

Source: Zadrozny & Elkan, KDD 2002 (isotonic regression); Vovk, Petej & Fedorova, "Large-scale
probabilistic predictors with and without guarantees of validity", NeurIPS 2015 (inductive
Venn-Abers predictors, and the merged probability p1 / (1 − p0 + p1)).

>>> CategoryMap(scale=2.0, offset=-1.0)(np.array([0.0, 1.0]))
array([-1.,  1.])
>>> CategoryMap(knots=((0.0, -1.0), (2.0, 3.0)))(np.array([-5.0, 1.0, 9.0]))
array([-1.,  1.,  3.])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

#: Knots of a Venn-Abers map at most: each is two isotonic regressions of all rows.
_KNOTS: Final = 200


@dataclass(frozen=True)
class CategoryMap:
    """The map of one category: ``scale · z + offset``, or by knots.

    Attributes:
        scale: > 0; 1 where there are knots.
        offset: added in the end, to what knots give too.
        knots: (logit, calibrated logit) pairs, strictly rising in the first and not falling in
            the second; empty for an affine map.
    """

    scale: float = 1.0
    offset: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    @property
    def is_affine(self) -> bool:
        """Whether it folds into a weight and a bias."""
        return not self.knots

    def __call__(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """Calibrated logits of logits of any shape."""
        if self.is_affine:
            return np.asarray(self.scale * logits + self.offset, dtype=np.float64)
        x, y = zip(*self.knots, strict=True)
        return np.asarray(np.interp(logits, x, y) + self.offset, dtype=np.float64)

    def lowest_at_least(self, calibrated: float) -> float | None:
        """The lowest logit that is mapped to a calibrated logit or above; None if none is."""
        if self.is_affine:
            return (calibrated - self.offset) / self.scale
        x, y = (np.array(side) for side in zip(*self.knots, strict=True))
        wanted = calibrated - self.offset
        at = int(np.searchsorted(y, wanted, side="left"))
        if at == len(y):
            return None
        if at == 0:
            return float(x[0]) if wanted == y[0] else -math.inf
        share = (wanted - y[at - 1]) / (y[at] - y[at - 1])
        return float(x[at - 1] + share * (x[at] - x[at - 1]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        knots = [list(pair) for pair in self.knots]
        return {"scale": self.scale, "offset": self.offset, "knots": knots}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], name: str) -> CategoryMap:
        """What :meth:`to_dict` wrote, of the category `name`.

        Raises:
            ValueError: If the map falls, or is not finite.
            KeyError: If something is missing.
        """
        knots = tuple((float(x), float(y)) for x, y in table["knots"])
        steps = np.diff(np.array(knots).reshape(-1, 2), axis=0)
        scale, offset = float(table["scale"]), float(table["offset"])
        is_finite = np.isfinite([scale, offset, *(x for pair in knots for x in pair)]).all()
        rises = (steps[:, 0] > 0).all() and (steps[:, 1] >= 0).all()
        if not (scale > 0 and is_finite and rises):
            raise ValueError(f"the map of {name!r} falls, or is not finite")
        return cls(scale, offset, knots)

    def moved(self, offset: float) -> CategoryMap:
        """The same, with something added to the calibrated logit."""
        return CategoryMap(self.scale, self.offset + offset, self.knots)


class CalibrationModule(nn.Module):
    """Calibrated logits of (…, C) logits, for what does not fold into a head.

    Args:
        maps: one for each category.

    >>> module = CalibrationModule([CategoryMap(2.0, 1.0), CategoryMap(knots=((0, 0), (1, 3)))])
    >>> module(torch.tensor([[1.0, 0.5], [0.0, -2.0]]))
    tensor([[3.0000, 1.5000],
            [1.0000, 0.0000]])
    """

    scale: Tensor
    offset: Tensor
    x: Tensor
    y: Tensor
    by_knots: Tensor

    def __init__(self, maps: Sequence[CategoryMap]) -> None:
        super().__init__()
        self.has_knots = any(one.knots for one in maps)  # not read from a tensor: it exports
        width = max([2, *(len(one.knots) for one in maps)])
        table = np.zeros((2, len(maps), width))
        for c, one in enumerate(maps):
            # Padded on the right by steps that rise by nothing.
            pairs = one.knots or ((0.0, 0.0), (1.0, 0.0))
            last, value = pairs[-1]
            padded = [*pairs, *((last + 1.0 + i, value) for i in range(width - len(pairs)))]
            table[:, c] = np.array(padded).T
        self.register_buffer("scale", torch.tensor([one.scale for one in maps]).float())
        self.register_buffer("offset", torch.tensor([one.offset for one in maps]).float())
        self.register_buffer("x", torch.tensor(table[0]).float())
        self.register_buffer("y", torch.tensor(table[1]).float())
        self.register_buffer("by_knots", torch.tensor([bool(one.knots) for one in maps]))

    def forward(self, logits: Tensor) -> Tensor:
        """(…, C) calibrated logits."""
        affine = logits * self.scale + self.offset
        if not self.has_knots:
            return affine
        z = logits[..., None]
        x, y = self.x, self.y
        # A sum of ramps, one for each stretch between knots: no search, so that it exports.
        share = ((z - x[:, :-1]) / (x[:, 1:] - x[:, :-1]).clamp_min(1e-30)).clamp(0.0, 1.0)
        curve = y[:, 0] + (share * (y[:, 1:] - y[:, :-1])).sum(-1) + self.offset
        return torch.where(self.by_knots, curve, affine)


def logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log odds of probabilities in (0, 1)."""
    return np.asarray(np.log(probability) - np.log1p(-probability), dtype=np.float64)


def _by_knots(x: NDArray[np.float64], p: NDArray[np.float64], n_rows: int) -> CategoryMap:
    """A map through probabilities, which stay between 1 / (n + 2) and 1 − 1 / (n + 2)."""
    edge = 1.0 / (n_rows + 2.0)
    y = np.maximum.accumulate(logit(np.clip(p, edge, 1.0 - edge)))
    return CategoryMap(knots=tuple(zip(x.tolist(), y.tolist(), strict=True)))


def fit_isotonic(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> CategoryMap:
    """Isotonic regression of the labels on the logits of one category.

    Args:
        scores: (n,) logits.
        positive: (n,) bool, with both classes.
    """
    from sklearn.isotonic import IsotonicRegression

    fit = IsotonicRegression(y_min=0.0, y_max=1.0).fit(scores, positive.astype(np.float64))
    return _by_knots(fit.X_thresholds_, fit.y_thresholds_, scores.size)


def fit_venn_abers(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], *, n_knots: int = _KNOTS
) -> CategoryMap:
    """The merged probability of an inductive Venn-Abers predictor of one category.

    At a score s, p0 and p1 are what isotonic regression gives s after (s, 0), or (s, 1), has been
    added to the rows. Both rise with s, and so does ``p1 / (1 − p0 + p1)``. It is found exactly at
    the knots, quantiles of the distinct scores; between them the map is straight in logits.

    Args:
        scores: (n,) logits.
        positive: (n,) bool, with both classes.
        n_knots: knots at most, 2 or more.
    """
    distinct, place = np.unique(scores, return_inverse=True)
    weight = np.bincount(place).astype(np.float64)
    total = np.bincount(place, weights=positive)
    picked = np.unique(np.linspace(0, distinct.size - 1, min(n_knots, distinct.size)).astype(int))
    p = np.empty((2, picked.size))
    for label in (0, 1):
        for at, j in enumerate(picked):
            more = weight.copy()
            more[j] += 1.0
            hits = total.copy()
            hits[j] += label
            p[label, at] = _isotonic(hits / more, more)[j]
    merged = p[1] / (1.0 - p[0] + p[1])
    return _by_knots(distinct[picked], merged, scores.size)


#: Knots of a map to ranks at most, and by how many logits it goes on rising beyond the rows.
_RANKS: Final = 200
_BEYOND: Final = 2.0


def fit_ranks(scores: NDArray[np.float64], *, n_knots: int = _RANKS) -> CategoryMap:
    """The logit of a score's rank among some rows: their distribution function, as knots.

    A rank is the share of rows below, ties counted half. Knots are spaced evenly in ranks and in
    their logits; beyond the rows the map goes on rising, over as far as they reach, so that new
    scores out there stay apart.

    Args:
        scores: (n,) of the rows, known or not.
        n_knots: at most, apart from the two ends; 4 or more.

    >>> ranks = fit_ranks(np.arange(9.0))
    >>> (1 / (1 + np.exp(-ranks(np.array([0.0, 4.0, 8.0]))))).round(3)
    array([0.056, 0.5  , 0.944])
    """
    distinct, counts = np.unique(scores, return_counts=True)
    rank = logit((np.cumsum(counts) - counts / 2.0) / scores.size)
    if distinct.size == 1:
        return CategoryMap(knots=((float(distinct[0]), 0.0),))
    half, last = n_knots // 2, distinct.size - 1
    even = np.linspace(0, last, min(half, distinct.size)).astype(int)
    ends = np.searchsorted(rank, np.linspace(rank[0], rank[-1], half)).clip(0, last)
    picked = np.unique(np.concatenate([even, ends]))
    reach = distinct[-1] - distinct[0]
    x = [distinct[0] - reach, *distinct[picked], distinct[-1] + reach]
    y = [rank[0] - _BEYOND, *rank[picked], rank[-1] + _BEYOND]
    return CategoryMap(knots=tuple((float(a), float(b)) for a, b in zip(x, y, strict=True)))


def _isotonic(values: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.isotonic import isotonic_regression

    return np.asarray(isotonic_regression(values, sample_weight=weight), dtype=np.float64)
