"""Slopes that all categories share, by logistic regression; each category has its own intercept.

J logits of every known label, such as those of J heads, are weighed by one slope b_j each::

    minimise over b, a   sum_c w_c sum_i weight_ci BCE(sum_j b_j s_jci + a_c, y_ci)
                         + ridge / 2 sum_j (b_j sd_j)^2 + 0.01 / 2 sum_c a_c^2

Rare categories count for more than their labels and frequent ones for less, w_c in proportion to
``(n + 10) ** -0.5`` by their n positives, so that no category decides alone; sd_j is the standard
deviation of all logits of head j. Newton steps, of which the intercepts are eliminated.

With few slopes and many categories nothing here can be fitted to chance: that is what the anchor of
the `default` preset is weighed by, and, with one slope, what its penalty is chosen by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

_INTERCEPT_PENALTY: Final = 0.01
_PRIOR_POSITIVES: Final = 10.0
_MAX_STEPS: Final = 25
_LONGEST: Final = 2.0
_SETTLED: Final = 1e-3
_TINY: Final = 1e-12


@dataclass(frozen=True, eq=False)
class SharedRows:
    """Logits at known labels of some categories; places that are not known have weight 0."""

    logits: Tensor  # (J, C, L) centred in each category
    target: Tensor  # (C, L) in [0, 1]
    weight: Tensor  # (C, L), times w_c
    fold: Tensor  # (C, L) int8 fold of the row

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, weight: Tensor, fold: Tensor) -> SharedRows:
        """From (J, C, L) logits as they are, and weights without w_c."""
        balance = ((target * weight).sum(1) + _PRIOR_POSITIVES).rsqrt()
        total = weight.sum(1).clamp_min(_TINY)
        # First less one of the known: equal logits are then 0 and not the rounding of their mean,
        # to which a slope without bound would be fitted.
        least = logits.masked_fill(weight == 0, torch.inf).amin(2, keepdim=True)
        centred = logits - least.nan_to_num(0.0, posinf=0.0)
        centred = centred - (torch.einsum("jcl,cl->jc", centred, weight) / total)[:, :, None]
        return cls(centred, target, weight * balance[:, None], fold)

    def without(self, fold: int) -> SharedRows:
        """The labels outside of a fold."""
        return replace(self, weight=self.weight * (self.fold != fold))

    def only(self, head: int) -> SharedRows:
        """One of the J logits."""
        return replace(self, logits=self.logits[head : head + 1])


class SharedFit(NamedTuple):
    """What was found."""

    slopes: Tensor  # (J,)
    intercepts: list[Tensor]  # (C,) of each part, for centred logits
    loss: float  # weighted mean log-loss, without penalties


def fit_shared(
    parts: Sequence[SharedRows], *, ridge: float = 0.0, start: SharedFit | None = None
) -> SharedFit:
    """The shared slopes that fit parts of the categories together best.

    Args:
        parts: at least one.
        ridge: >= 0, of the standardised slopes.
        start: slopes and intercepts to start from; None: 1 / J of all, and the share of positives.
    """
    scale = _spread(parts)
    slopes = (parts[0].logits.new_ones(len(scale)) / len(scale)) if start is None else start.slopes
    intercepts = [_base_rate(p) for p in parts] if start is None else list(start.intercepts)
    # So that the ridge means the same whatever w_c are: positives count once in the mean.
    positives = sum(float((p.target * (p.weight > 0)).sum()) for p in parts)
    unit = positives / max(sum(float((p.target * p.weight).sum()) for p in parts), _TINY)
    penalty = torch.full_like(scale, ridge) * scale.square() + _TINY
    for _ in range(_MAX_STEPS):
        sums = [_normal(p, slopes, a, unit) for p, a in zip(parts, intercepts, strict=True)]
        curvature = torch.diag(penalty) + torch.stack([s.reduced for s in sums]).sum(0)
        slope = penalty * slopes + torch.stack([s.slope for s in sums]).sum(0)
        move = torch.linalg.solve(curvature, slope)
        moves = [s.intercept(move) for s in sums]
        longest = max(float((move * scale).abs().max()), *(float(m.abs().max()) for m in moves))
        share = min(1.0, _LONGEST / max(longest, _TINY))
        slopes = slopes - share * move
        intercepts = [a - share * m for a, m in zip(intercepts, moves, strict=True)]
        if longest < _SETTLED:
            break
    return SharedFit(slopes, intercepts, _loss(parts, slopes, intercepts))


class _Normal(NamedTuple):
    """Derivatives of one part: those by the intercepts are eliminated."""

    reduced: Tensor  # (J, J)
    slope: Tensor  # (J,)
    across: Tensor  # (J, C) second derivatives by slope and intercept
    own: Tensor  # (C,) by the intercept, divided out
    rest: Tensor  # (C,) gradient by the intercept

    def intercept(self, move: Tensor) -> Tensor:
        """(C,) Newton steps of the intercepts, given that of the slopes."""
        return (self.rest - self.across.T @ move) / self.own


def _normal(part: SharedRows, slopes: Tensor, intercept: Tensor, unit: float) -> _Normal:
    p = torch.sigmoid(torch.einsum("j,jcl->cl", slopes, part.logits) + intercept[:, None])
    weight = part.weight * unit
    wrong, curvature = (p - part.target) * weight, p * (1 - p) * weight
    bent = part.logits * curvature
    flat = part.logits.flatten(1)
    across, own = bent.sum(2), curvature.sum(1) + _INTERCEPT_PENALTY
    rest = wrong.sum(1) + _INTERCEPT_PENALTY * intercept
    reduced = bent.flatten(1) @ flat.T - (across / own) @ across.T
    slope = flat @ wrong.flatten() - (across / own) @ rest
    return _Normal(reduced, slope, across, own, rest)


def _loss(parts: Sequence[SharedRows], slopes: Tensor, intercepts: Sequence[Tensor]) -> float:
    total = weight = 0.0
    for part, a in zip(parts, intercepts, strict=True):
        z = torch.einsum("j,jcl->cl", slopes, part.logits) + a[:, None]
        total += float(((softplus(z) - part.target * z) * part.weight).sum(dtype=torch.float64))
        weight += float(part.weight.sum(dtype=torch.float64))
    return total / max(weight, _TINY)


def _spread(parts: Sequence[SharedRows]) -> Tensor:
    """(J,) root mean squares of the logits at known labels; 1 where they are all 0."""
    known = [p.weight > 0 for p in parts]
    squares = [(p.logits.square() * k).sum((1, 2)) for p, k in zip(parts, known, strict=True)]
    count = max(1, sum(int(k.sum()) for k in known))
    spread = (torch.stack(squares).sum(0) / count).sqrt()
    return torch.where(spread > 0, spread, 1.0)


def _base_rate(part: SharedRows) -> Tensor:
    """(C,) log odds of the weighted share of positives, half a label of each kind added."""
    positive, total = (part.target * part.weight).sum(1), part.weight.sum(1)
    half = 0.5 * total / (part.weight > 0).sum(1).clamp_min(1)
    return torch.logit(
        ((positive + half) / (total + 2 * half)).nan_to_num(0.5).clamp(1e-6, 1 - 1e-6)
    )
