"""Scale and offset of logits, fitted on known labels; both fold back into (w, b).

Average precision and AUROC are blind to a shift and to a positive scale of a category's
logits, so a search that maximises them leaves both anywhere. This puts them right: after it a
probability of 0.5 means what it says, and no rank has changed.

A few positives tell a slope badly, and all categories together tell it well. So the log slope
of a category, in units of the standard deviation of its own logits, has the prior N(t0, 1/4)
around a slope t0 that all categories share, and t0 has the prior N(0, 1); all are fitted at once.
In these units neither the scale of all logits nor that of one category matters.

A few positives tell the share of positives badly, too, and logits of a trained head say something
about it. So where such logits are given, the offset is shrunk to the level that they have, moved by
what all categories share (labels that were filled in move all of them); by how much, the spread of
the categories' own offsets says. Where levels mean nothing the spread is large, and nothing is
shrunk.

Source: Platt, "Probabilistic outputs for support vector machines", Advances in Large Margin
Classifiers, 1999 (logistic scaling, and the targets of the rule "platt"); Paule and Mandel,
"Consensus values and weighting factors", 1982 (the variance between categories). Both are measured
in docs/decisions.md. The slope is exp(t), so that no map falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from catwise.errors import check_choice

AFFINE_RULES: Final = ("shrunk", "offset", "platt")

#: Precision of a category's log slope around the pooled one, and of the pooled one around 0.
_PRIOR_SLOPE: Final = 4.0
_PRIOR_POOLED: Final = 1.0
_PRIOR_OFFSET: Final = 0.01
#: In place of a prior of the slope where there is none.
_WEAK: Final = 1e-6
_MAX_LOG_SLOPE: Final = 5.0
_PASSES: Final = 8
#: With fewer categories of both classes their spread is not known, and no offset is shrunk.
_MIN_CATEGORIES: Final = 10
#: Labels that are looked at at once: 32 MiB as float64.
_BLOCK: Final = 1 << 18


def fit_affine(
    logits: Tensor,
    codes: Tensor,
    *,
    level: Tensor | None = None,
    free_offset: bool = True,
    rule: str = "shrunk",
    max_iterations: int = 100,
) -> tuple[Tensor, Tensor]:
    """Scale and offset of every category that fit its known labels best.

    "shrunk" minimises ``Σ BCE(exp(t) z + o, y) + 4 (t − t0)² / 2 + 0.01 o² / 2`` over t and o of
    every category, and over t0 of them all, on which ``t0² / 2`` is added; z are standardised
    logits. "offset" leaves the scale at 1. "platt" has no prior of the slope, and Platt's targets
    (k + 1) / (k + 2) and 1 / (n + 2) in place of 1 and 0. Damped Newton steps.

    With "shrunk" and a level, the offset is then shrunk to it: a category whose probabilities are s
    above the level in log odds, known to a variance v, is moved to ``b + τ² / (τ² + v) (s − b)``
    above it; b is the weighted mean of s over categories, τ² its variance by Paule and Mandel.
    From 10 categories on; what it gives is left as it is where it is the level of a second fit.

    Args:
        logits: (C, n) float.
        codes: (C, n) int8; 1 positive, 0 negative, all else is not known.
        level: (C, n) logits whose mean probability says something about how many rows are
            positive, and which these labels have not fitted; None shrinks no offset.
        free_offset: False where the head has no bias to take one up.
        rule: one of `AFFINE_RULES`.
        max_iterations: bound on the steps.

    Returns:
        (C,) float64 scales > 0 and offsets; 1 and 0 where no positive or no negative is known.

    Raises:
        ConfigError: If there is no such rule.

    >>> z = torch.tensor([[-2.0, -1.0, 1.0, 2.0]]).repeat(1, 50)
    >>> codes = (torch.sigmoid(z) > 0.4).to(torch.int8)
    >>> scale, offset = fit_affine(z, codes)
    >>> bool(scale > 1)
    True
    """
    fit = fit_pooled(
        logits,
        codes,
        level=level,
        free_offset=free_offset,
        rule=rule,
        max_iterations=max_iterations,
    )
    return fit.scale, fit.offset


class Pooled(NamedTuple):
    """What the categories of a fit share."""

    slope: float = 0.0  # log slope that the scales are pulled to
    above: float = 0.0  # how far probabilities are above the level, in log odds
    between: float = float("inf")  # variance of that between categories; infinite: nothing shrinks


class AffineFit(NamedTuple):
    """Scale and offset of every category, and what they share."""

    scale: Tensor  # (C,) float64 > 0
    offset: Tensor  # (C,) float64
    pooled: Pooled


def fit_pooled(
    logits: Tensor,
    codes: Tensor,
    *,
    level: Tensor | None = None,
    free_offset: bool = True,
    rule: str = "shrunk",
    max_iterations: int = 100,
    pooled: Pooled | None = None,
    weight: Tensor | None = None,
) -> AffineFit:
    """As `fit_affine`, with what categories share: found, or held where it is given.

    `weight` is (C, n) of the known labels; None: 1 each.
    """
    check_choice("rule", rule, AFFINE_RULES)
    width = max(1, _BLOCK // max(logits.shape[1], 1))
    cuts = [slice(at, at + width) for at in range(0, len(logits), width)]
    weights = [None if weight is None else weight[cut] for cut in cuts]
    options: dict[str, Any] = {"free_offset": free_offset, "rule": rule}
    parts = [
        _Part(logits[cut], codes[cut], own, **options)
        for cut, own in zip(cuts, weights, strict=True)
    ]
    around, held = 0.0 if pooled is None else pooled.slope, pooled is not None
    for _ in range(_PASSES):
        for part in parts:
            part.minimise(around, max_iterations)
        if held or rule != "shrunk":
            break
        # A Newton step of the pooled slope, given each category's own best fit around it.
        pull, curvature = (sum(side) for side in zip(*(p.pull(around) for p in parts), strict=True))
        step = (pull - _PRIOR_POOLED * around) / (curvature + _PRIOR_POOLED)
        if abs(step) < 1e-3:
            break
        around += min(max(step, -2.0), 2.0)
    shared = Pooled(around) if pooled is None else pooled
    if level is not None and free_offset and rule == "shrunk":
        shared = _shrink_offsets(parts, torch.split(level, width), shared, is_held=held)
    scale, offset = (torch.cat(side) for side in zip(*(p.found() for p in parts), strict=True))
    return AffineFit(scale, offset, shared)


class _Part:
    """Some categories: their standardised logits, and the best log slope t and offset o so far."""

    def __init__(
        self,
        logits: Tensor,
        codes: Tensor,
        weight: Tensor | None = None,
        *,
        free_offset: bool,
        rule: str,
    ) -> None:
        positive, negative = codes == 1, codes == 0
        self.both = positive.any(1) & negative.any(1)
        self.known = (positive | negative) & self.both[:, None]
        self.w = self.known.double()
        if weight is not None:
            self.w = torch.where(self.known, weight.double(), 0.0)
        n = self._n()
        z = torch.where(self.known, logits.double(), 0.0)
        self.mean = (self.w * z).sum(1) / n * free_offset
        z = torch.where(self.known, z - self.mean[:, None], 0.0)
        spread = ((self.w * z.square()).sum(1) / n).sqrt()
        self.spread = torch.where(spread > 0, spread, 1.0)
        self.z, self.y = z / self.spread[:, None], positive.double()
        if rule == "platt":
            k, m = positive.sum(1, keepdim=True), negative.sum(1, keepdim=True)
            self.y = torch.where(positive, (k + 1.0) / (k + 2.0), 1.0 / (m + 2.0))
        self.precision = _PRIOR_SLOPE if rule == "shrunk" else _WEAK
        self.free_slope, self.free_offset = float(rule != "offset"), float(free_offset)
        self.t = self.spread.log() if rule == "offset" else torch.zeros_like(self.spread)
        self.o = torch.zeros_like(self.t)

    def _n(self) -> Tensor:
        """(C,) weight of the known labels; 1 where there are none."""
        n = self.w.sum(1)
        return torch.where(n > 0, n, 1.0)

    def loss(self, t: Tensor, o: Tensor, pooled: float) -> Tensor:
        u = t.exp()[:, None] * self.z + o[:, None]
        each = (self.w * (softplus(u) - self.y * u)).sum(1)
        slope = self.free_slope * self.precision * (t - pooled) ** 2
        return each + (slope + _PRIOR_OFFSET * o**2) / 2

    def curvatures(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the loss by t, by both and by o, without the prior of t; and y's residuals."""
        scaled = self.t.exp()[:, None] * self.z
        p = torch.sigmoid(scaled + self.o[:, None])
        wrong = self.w * (p - self.y)
        each = self.w * (p * (1 - p))
        # Gauss-Newton: positive definite, and exact at the optimum's slope of zero.
        by_both = self.free_offset * self.free_slope * (each * scaled).sum(1)
        return (each * scaled**2).sum(1), by_both, each.sum(1) + _PRIOR_OFFSET, wrong

    def minimise(self, pooled: float, max_iterations: int) -> None:
        """Damped Newton steps on t and o for a pooled slope."""
        damping = torch.full_like(self.t, 1e-3)
        now = self.loss(self.t, self.o, pooled)
        for _ in range(max_iterations):
            h_tt, h_to, h_oo, wrong = self.curvatures()
            scaled = self.t.exp()[:, None] * self.z
            g_t = (wrong * scaled).sum(1) + self.precision * (self.t - pooled)
            g_o = self.free_offset * (wrong.sum(1) + _PRIOR_OFFSET * self.o)
            g_t = self.free_slope * g_t
            a, d = (h_tt + self.precision) * (1 + damping), h_oo * (1 + damping)
            det = a * d - h_to**2
            t = self.t - self.free_slope * (d * g_t - h_to * g_o) / det
            t = t.clamp(-_MAX_LOG_SLOPE, _MAX_LOG_SLOPE) if self.free_slope else t
            o = self.o - self.free_offset * (a * g_o - h_to * g_t) / det
            then = self.loss(t, o, pooled)
            better = then < now
            self.t, self.o = torch.where(better, t, self.t), torch.where(better, o, self.o)
            damping = torch.where(better, damping / 5, damping * 10).clamp(1e-9, 1e12)
            settled = (now - then).abs() <= 1e-12 * now.abs() + 1e-15
            now = torch.where(better, then, now)
            if bool((settled | (damping >= 1e12)).all()):
                break

    def above(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """How far probabilities are above those of other logits, in log odds, and its variance."""
        u = torch.where(self.known, self.t.exp()[:, None] * self.z + self.o[:, None], -torch.inf)
        wanted = torch.where(self.known, self.w * torch.sigmoid(level.double()), 0.0).sum(1)
        wanted = (wanted / self._n()).clamp(1e-6, 1 - 1e-6)
        p = torch.sigmoid(u)
        variance = 1 / (self.w * p * (1 - p)).sum(1).clamp_min(1e-12)
        return _shift_to(u, wanted, self.w), variance

    def pull(self, pooled: float) -> tuple[float, float]:
        """Slope and curvature, by the pooled slope, of the loss at each category's best fit."""
        h_tt, h_to, h_oo, _ = self.curvatures()
        own = (h_tt - h_to**2 / h_oo).clamp_min(0.0)
        gradient = (self.precision * (self.t - pooled))[self.both].sum()
        curvature = (self.precision * own / (self.precision + own))[self.both].sum()
        return float(gradient), float(curvature)

    def found(self) -> tuple[Tensor, Tensor]:
        """Scale and offset of the logits as they were given."""
        scale = self.t.exp() / self.spread
        offset = self.o - scale * self.mean
        return torch.where(self.both, scale, 1.0), torch.where(self.both, offset, 0.0)


def _shift_to(u: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """What to take from (C, n) logits for (C,) mean probabilities; −inf is not known."""
    n = weight.sum(1).clamp_min(1e-12)
    low = torch.full_like(wanted, -80.0)
    high, shift = -low, torch.zeros_like(wanted)
    aim = torch.logit(wanted)
    for _ in range(60):
        p = torch.sigmoid(u - shift[:, None])
        mean = ((weight * p).sum(1) / n).clamp(1e-300, 1 - 1e-16)
        too_high = mean > wanted
        low, high = torch.where(too_high, shift, low), torch.where(too_high, high, shift)
        # Newton in log odds, which are nearly linear in the shift; else halves.
        fall = ((weight * p * (1 - p)).sum(1) / n).clamp_min(1e-300) / (mean * (1 - mean))
        step = (torch.logit(mean) - aim) / fall
        inside = (shift + step > low) & (shift + step < high)
        then = torch.where(inside, shift + step, (low + high) / 2)
        settled = (then - shift).abs() <= 1e-10
        shift = then
        if bool(settled.all()):
            break
    return shift


def _shrink_offsets(
    parts: Sequence[_Part], levels: Sequence[Tensor], shared: Pooled, *, is_held: bool
) -> Pooled:
    """Move the offsets of all parts to a level, by what the categories have in common."""
    both = torch.cat([part.both for part in parts])
    if not is_held and int(both.sum()) < _MIN_CATEGORIES:
        return shared
    found = [part.above(level) for part, level in zip(parts, levels, strict=True)]
    above, variance = (torch.cat(side) for side in zip(*found, strict=True))
    if not is_held:
        mean, between = _spread(above[both], variance[both])
        shared = shared._replace(above=float(mean), between=between)
    moved = (shared.above - above) * variance / (variance + shared.between)
    for part, move in zip(parts, torch.split(moved, [len(part.o) for part in parts]), strict=True):
        part.o = part.o + torch.where(part.both, move, 0.0)
    return shared


_BINS: Final = 10


def sampling_weights(logits: Tensor, codes: Tensor) -> Tensor:
    """(C, n) weights with which known labels stand for all cells, where a model chose some of them.

    Cells over known cells in each tenth of a category's logits; together they weigh as many labels
    as they are worth, (Σ w)² / Σ w².

    >>> logits = torch.arange(20.0)[None]
    >>> codes = torch.full((1, 20), -1); codes[0, ::2] = 0; codes[0, 1] = 1
    >>> sampling_weights(logits, codes)[0, :4].round(decimals=2).tolist()
    [0.53, 0.53, 1.05, 0.0]
    """
    known = (codes == 1) | (codes == 0)
    rank = logits.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    bins = (rank * _BINS) // max(logits.shape[1], 1)
    shape = len(logits), _BINS
    every = torch.zeros(shape, dtype=torch.float64, device=logits.device)
    own = every.scatter_add(1, bins, known.double())
    every = every.scatter_add(1, bins, torch.ones_like(bins, dtype=torch.float64))
    weight = torch.where(known, (every / own.clamp_min(1.0)).gather(1, bins), 0.0)
    total, squares = weight.sum(1, keepdim=True), weight.square().sum(1, keepdim=True)
    return weight * total / squares.clamp_min(1e-12)


def _spread(values: Tensor, variance: Tensor) -> tuple[Tensor, float]:
    """Weighted mean of values of known variance, and the variance between them on top of it."""

    def at(between: float) -> tuple[Tensor, float]:
        weight = 1 / (variance + between)
        mean = (weight * values).sum() / weight.sum()
        return mean, float((weight * (values - mean) ** 2).sum())

    n, low, high = len(values) - 1, 0.0, 1e4
    if at(low)[1] <= n:
        return at(low)[0], low
    for _ in range(100):  # the sum falls as the variance rises
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] > n else (low, middle)
    return at(high)[0], high
