"""Losses on logits, elementwise, with their first and second derivatives in closed form.

Every loss is a pure function ``(logits, target) -> loss`` of two tensors that broadcast,
without reduction, and has a twin ``..._derivatives(logits, target) -> (slope, curvature)``:
the derivative by the logit, and a positive second derivative for Newton steps and
preconditioners. Targets lie in [0, 1]; a soft target mixes the positive and the negative
term, ``target * positive + (1 - target) * negative``. Values and gradients are finite for
logits of +-1,000 in float32 and float64.

The curvature of a convex loss is the true one. Elsewhere the true one turns negative for
some logits; there it is replaced by ``|slope| * sigmoid(-logits)`` for the negative term
and ``|slope| * sigmoid(logits)`` for the positive, the ratio that binary cross-entropy has.

>>> import torch
>>> float(binary_cross_entropy(torch.tensor(0.0), torch.tensor(1.0)))
0.693147...
>>> sorted(LOSSES)
['asl', 'asl_published', 'bce', 'focal', 'proper_asymmetric']
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from catwise.errors import check_choice, check_rules

__all__ = [
    "LOSSES",
    "AsymmetricOptions",
    "Derivatives",
    "Loss",
    "ProperAsymmetricOptions",
    "asymmetric",
    "asymmetric_derivatives",
    "binary_cross_entropy",
    "binary_cross_entropy_derivatives",
    "focal",
    "focal_derivatives",
    "proper_asymmetric",
    "proper_asymmetric_derivatives",
    "proper_asymmetric_probability",
    "resolve_loss",
]

#: The smallest probability whose logarithm the published losses take.
PUBLISHED_EPSILON = 1e-8


class Derivatives(NamedTuple):
    """Elementwise derivatives of a loss by the logit.

    Attributes:
        slope: first derivative.
        curvature: second derivative, or a positive stand-in for it; >= 0.
    """

    slope: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class Loss:
    """A loss with its options filled in.

    Args:
        name: as in `LOSSES`.
        value: ``(logits, target) -> loss``, elementwise, differentiable by autograd.
        slope: ``(logits, target) -> derivative by the logit``; what autograd gives.
        slope_curvature: ``(logits, target) -> Derivatives``.
        probability: the inverse link: the probability that a logit stands for when the
            loss is at its minimum. `torch.sigmoid` except where a loss says otherwise.
        convex: whether the loss is convex in the logit, so that the curvature is true.
        is_gradient: whether `slope` is the derivative of `value` with nothing held
            constant; a line search needs that.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    slope_curvature: Callable[[Tensor, Tensor], Derivatives]
    probability: Callable[[Tensor], Tensor] = torch.sigmoid
    convex: bool = False
    is_gradient: bool = True


# ------------------------------------------------------------------ binary cross-entropy


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy (log-loss): ``-y log p - (1 - y) log(1 - p)``, p = sigmoid(logits).

    Args:
        logits: any shape, unbounded.
        target: broadcasts to it, in [0, 1].

    Returns:
        The loss of each element, >= 0; convex and strictly proper.

    Source: Good, Rational Decisions, JRSS B 14, 1952 (the logarithmic score).

    >>> binary_cross_entropy(torch.tensor([1000.0, -1000.0]), torch.tensor([1.0, 1.0]))
    tensor([   -0., 1000.])
    """
    return -(target * logsigmoid(logits) + (1 - target) * logsigmoid(-logits))


def _bce_slope(logits: Tensor, target: Tensor) -> Tensor:
    return torch.sigmoid(logits).sub_(target)


def binary_cross_entropy_derivatives(logits: Tensor, target: Tensor) -> Derivatives:
    """Derivatives of `binary_cross_entropy`: ``p - y`` and ``p (1 - p)``.

    >>> binary_cross_entropy_derivatives(torch.tensor(0.0), torch.tensor(1.0))
    Derivatives(slope=tensor(-0.5000), curvature=tensor(0.2500))
    """
    p = torch.sigmoid(logits)
    return Derivatives(p - target, p * torch.sigmoid(-logits))


# ------------------------------------------------------------------------ focal and ASL


def focal(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, as_published: bool = False
) -> Tensor:
    """Focal loss: ``-(1 - p_t)**gamma * log(p_t)``, p_t the probability of the true side.

    Args:
        logits: any shape, unbounded.
        target: broadcasts to it, in [0, 1].
        gamma: focusing exponent, >= 0; 0 gives binary cross-entropy.
        as_published: hold the focusing factor constant in the gradient and clamp the
            argument of the logarithm at 1e-8, as code for the asymmetric loss does.

    Returns:
        The loss of each element, >= 0.

    Raises:
        ConfigError: If gamma is negative or not finite.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4.

    >>> focal(torch.tensor(0.0), torch.tensor(1.0))
    tensor(0.1733)
    """
    options = {"gamma_neg": gamma, "gamma_pos": gamma, "clip": 0.0}
    return asymmetric(logits, target, **options, as_published=as_published)


def focal_derivatives(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, as_published: bool = False
) -> Derivatives:
    """Derivatives of `focal`; the curvature is kept positive (see the module).

    >>> focal_derivatives(torch.tensor(0.0), torch.tensor(1.0)).slope
    tensor(-0.2983)
    """
    options = {"gamma_neg": gamma, "gamma_pos": gamma, "clip": 0.0}
    return asymmetric_derivatives(logits, target, **options, as_published=as_published)


@dataclass(frozen=True)
class AsymmetricOptions:
    """Options of the asymmetric loss.

    Attributes:
        gamma_neg: focusing exponent of the negative term, >= 0.
        gamma_pos: focusing exponent of the positive term, >= 0.
        clip: probability margin in [0, 1).
        as_published: as in the authors' code, the focusing factor is a constant to the
            gradient and the logarithms are clamped at 1e-8. Then the gradient is no
            gradient of the value: no line search on it.

    Raises:
        ConfigError: If one is out of range.
    """

    gamma_neg: float = 4.0
    gamma_pos: float = 0.0
    clip: float = 0.05
    as_published: bool = False

    def __post_init__(self) -> None:
        check_rules(
            "options of the asymmetric loss",
            self,
            {
                f"{name} >= 0, and finite": math.isfinite(value) and value >= 0
                for name, value in (("gamma_neg", self.gamma_neg), ("gamma_pos", self.gamma_pos))
            }
            | {"0 <= clip < 1": 0 <= self.clip < 1},
        )


def asymmetric(logits: Tensor, target: Tensor, **options: float) -> Tensor:
    """Asymmetric loss (ASL): focal terms of their own for positives and negatives.

    Positive: ``-(1 - p)**gamma_pos * log(p)``. Negative: ``-m**gamma_neg * log(1 - m)``
    with the shifted probability ``m = max(p - clip, 0)``, so that easy negatives cost
    nothing.

    Args:
        logits: any shape, unbounded.
        target: broadcasts to it, in [0, 1].
        options: of `AsymmetricOptions`.

    Returns:
        The loss of each element, >= 0; neither convex nor proper.

    Raises:
        ConfigError: If an option is out of range.

    Source: Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021.

    >>> asymmetric(torch.tensor([-1000.0, 0.0, 1000.0]), torch.tensor(0.0))
    tensor([0.0000, 0.0245, 2.4400])
    """
    o = AsymmetricOptions(**options)  # type: ignore[arg-type]
    if o.as_published:
        positive = _published_positive(logits, o.gamma_pos)
        negative = _published_negative(logits, o.gamma_neg, o.clip)
    else:
        positive = -_factor(logits, o.gamma_pos) * logsigmoid(logits)
        negative = _shifted_negative(logits, o.gamma_neg, o.clip)
    return target * positive + (1 - target) * negative


def asymmetric_derivatives(logits: Tensor, target: Tensor, **options: float) -> Derivatives:
    """Derivatives of `asymmetric`, with the same options.

    The slope is what autograd gives, in both forms. The curvature is kept positive (see
    the module); in the published form it is the stand-in throughout.

    >>> asymmetric_derivatives(torch.tensor(0.0), torch.tensor(1.0)).slope
    tensor(-0.5000)
    """
    o = AsymmetricOptions(**options)  # type: ignore[arg-type]
    p, s = torch.sigmoid(logits), torch.sigmoid(-logits)
    if o.as_published:
        positive = _published_positive_slope(p, s, o.gamma_pos)
        negative = _published_negative_slope(p, s, o.gamma_neg, o.clip)
        curvatures = -positive * p, negative * s
    else:
        positive, curvature_positive = _positive_terms(logits, p, s, o.gamma_pos)
        negative, curvature_negative = _negative_terms(logits, p, s, o.gamma_neg, o.clip)
        curvatures = curvature_positive, curvature_negative
    return _mixed((positive, negative), curvatures, target)


def _mixed(
    slopes: tuple[Tensor, Tensor], curvatures: tuple[Tensor, Tensor], target: Tensor
) -> Derivatives:
    """Derivatives of the positive and of the negative term, in the shares of a target."""
    slope, curvature = (
        target * positive + (1 - target) * negative for positive, negative in (slopes, curvatures)
    )
    return Derivatives(slope, curvature)


def _asl_published_slope(logits: Tensor, target: Tensor) -> Tensor:
    """Slope of the published ASL(4, 0, 0.05) in few passes over memory."""
    p = torch.sigmoid(logits)
    s = torch.sigmoid(-logits)
    negative = _published_negative_slope(p, s, 4.0, 0.05)
    positive = _published_positive_slope(p, s, 0.0)
    return torch.lerp(negative, positive, target)


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` by products for the exponents in use; 1 for exponent 0."""
    if exponent == 0:
        return torch.ones_like(base)
    if exponent == 1:
        return base
    if exponent == 2:
        return base.square()
    if exponent == 4:
        return base.square().square()
    return base.pow(exponent)


def _factor(logits: Tensor, gamma: float) -> Tensor:
    """Focusing factor ``sigmoid(-logits) ** gamma``, with a gradient safe for any gamma."""
    return torch.exp(gamma * logsigmoid(-logits))


def _shifted_negative(logits: Tensor, gamma: float, clip: float) -> Tensor:
    """Negative term of the differentiable asymmetric loss."""
    if clip == 0:
        return -_factor(-logits, gamma) * logsigmoid(-logits)
    shifted = torch.sigmoid(logits) - clip
    counts = shifted > 0
    m = torch.where(counts, shifted, 0.5)  # no 0 reaches a power or a logarithm
    loss = -_power(m, gamma) * torch.log1p(-m)
    return torch.where(counts, loss, 0.0)


def _published_positive(logits: Tensor, gamma: float) -> Tensor:
    """Positive term with a constant focusing factor."""
    factor = _power(torch.sigmoid(-logits).detach(), gamma)
    return -factor * torch.log(torch.sigmoid(logits).clamp(min=PUBLISHED_EPSILON))


def _published_negative(logits: Tensor, gamma: float, clip: float) -> Tensor:
    """Negative term with a constant focusing factor."""
    q = (torch.sigmoid(-logits) + clip).clamp(max=1)
    factor = _power((torch.sigmoid(logits) - clip).clamp(min=0).detach(), gamma)
    return -factor * torch.log(q.clamp(min=PUBLISHED_EPSILON))


def _published_positive_slope(p: Tensor, s: Tensor, gamma: float) -> Tensor:
    return torch.where(p >= PUBLISHED_EPSILON, -_power(s, gamma + 1), 0.0)


def _published_negative_slope(p: Tensor, s: Tensor, gamma: float, clip: float) -> Tensor:
    q = s + clip
    slope = _power((p - clip).clamp(min=0), gamma) * (p * s / q.clamp(min=PUBLISHED_EPSILON))
    return torch.where((q <= 1) & (q >= PUBLISHED_EPSILON), slope, 0.0)


def _positive_terms(logits: Tensor, p: Tensor, s: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Slope and positive curvature of ``-s**gamma * log(p)``."""
    log_p = logsigmoid(logits)
    factor = _power(s, gamma)
    slope = factor * (gamma * p * log_p - s)
    true = factor * p * (s * (1 + 2 * gamma) + gamma * log_p * (s - gamma * p))
    return slope, torch.maximum(true, -slope * p)


def _negative_terms(
    logits: Tensor, p: Tensor, s: Tensor, gamma: float, clip: float
) -> tuple[Tensor, Tensor]:
    """Slope and positive curvature of ``-m**gamma * log(1 - m)``, m = max(p - clip, 0)."""
    if clip == 0:
        slope, curvature = _positive_terms(-logits, s, p, gamma)
        return -slope, curvature
    shifted = p - clip
    counts = shifted > 0
    m = torch.where(counts, shifted, 0.5)
    rest = 1 - m
    cost = -torch.log1p(-m)
    factor = _power(m, gamma)
    ps = p * s
    first = factor * (1 / rest + gamma * cost / m)
    second = factor * (
        gamma * (gamma - 1) * cost / m.square() + 2 * gamma / (m * rest) + 1 / rest.square()
    )
    slope = ps * first
    true = second * ps.square() + first * ps * (s - p)
    curvature = torch.maximum(true, slope * s)
    return torch.where(counts, slope, 0.0), torch.where(counts, curvature, 0.0)


# ------------------------------------------------------------- strictly proper asymmetric


@dataclass(frozen=True)
class ProperAsymmetricOptions:
    """Options of the strictly proper asymmetric loss.

    Attributes:
        zeta_pos: divisor of the positive term, > 0.
        k_pos: its steepness, > 0.
        b_pos: its place on the logit axis.
        zeta_neg: divisor of the negative term, > 0.
        k_neg: its steepness, > 0.
        b_neg: its place on the logit axis.

    Raises:
        ConfigError: If one is out of range.
    """

    zeta_pos: float = 1.0
    k_pos: float = 1.0
    b_pos: float = 0.0
    zeta_neg: float = 5.0
    k_neg: float = 3.0
    b_neg: float = 1.0

    def __post_init__(self) -> None:
        finite = {f"{name} is finite": math.isfinite(value) for name, value in vars(self).items()}
        above = ("zeta_pos", "k_pos", "zeta_neg", "k_neg")
        rules = finite | {f"{name} > 0": getattr(self, name) > 0 for name in above}
        check_rules("options of the strictly proper asymmetric loss", self, rules)


def proper_asymmetric(logits: Tensor, target: Tensor, **options: float) -> Tensor:
    """Strictly proper asymmetric loss: two softplus terms and the link that fits them.

    Positive: ``-log sigmoid(k_pos (u - b_pos)) / zeta_pos``. Negative:
    ``-log sigmoid(-k_neg (u - b_neg)) / zeta_neg``. Both are convex in the logit u, and
    easy negatives cost far less than easy positives. The expected loss under a true
    probability has one minimum, where `proper_asymmetric_probability` equals it: with that
    inverse link the loss is strictly proper. `sigmoid` is *not* the link: heads tuned by
    this loss rank like others, but their logits are log-odds only through the link.

    Args:
        logits: any shape, unbounded.
        target: broadcasts to it, in [0, 1].
        options: of `ProperAsymmetricOptions`.

    Returns:
        The loss of each element, >= 0; convex.

    Raises:
        ConfigError: If an option is out of range.

    Source: Cheng & Vasconcelos, Towards Calibrated Multi-label Deep Neural Networks, CVPR
    2024 (the loss and its defaults); Reid & Williamson, Composite Binary Losses, JMLR 11,
    2010 (the link of a composite proper loss, by stationarity).

    >>> proper_asymmetric(torch.tensor(1.0), torch.tensor([0.0, 1.0]))
    tensor([0.1386, 0.3133])
    """
    o = ProperAsymmetricOptions(**options)
    positive = -logsigmoid(o.k_pos * (logits - o.b_pos)) / o.zeta_pos
    negative = -logsigmoid(-o.k_neg * (logits - o.b_neg)) / o.zeta_neg
    return target * positive + (1 - target) * negative


def proper_asymmetric_derivatives(logits: Tensor, target: Tensor, **options: float) -> Derivatives:
    """Derivatives of `proper_asymmetric`, with the same options; the curvature is true.

    >>> proper_asymmetric_derivatives(torch.tensor(1.0), torch.tensor(0.0))
    Derivatives(slope=tensor(0.3000), curvature=tensor(0.4500))
    """
    o = ProperAsymmetricOptions(**options)
    above, below = o.k_pos * (logits - o.b_pos), o.k_neg * (logits - o.b_neg)
    miss, hit = torch.sigmoid(-above), torch.sigmoid(below)
    curvature_positive = o.k_pos**2 / o.zeta_pos * miss * torch.sigmoid(above)
    curvature_negative = o.k_neg**2 / o.zeta_neg * hit * torch.sigmoid(-below)
    slopes = -o.k_pos / o.zeta_pos * miss, o.k_neg / o.zeta_neg * hit
    return _mixed(slopes, (curvature_positive, curvature_negative), target)


def proper_asymmetric_probability(logits: Tensor, **options: float) -> Tensor:
    """Return the probability whose expected `proper_asymmetric` loss is least at the logit.

    Where the expected slope is zero, ``p / (1 - p)`` is the ratio of the negative term's
    slope to the positive term's. It increases strictly with the logit.

    Args:
        logits: any shape, unbounded.
        options: of `ProperAsymmetricOptions`.

    Returns:
        Probabilities in [0, 1], same shape.

    Raises:
        ConfigError: If an option is out of range.

    Source: Reid & Williamson, Composite Binary Losses, JMLR 11, 2010.

    >>> proper_asymmetric_probability(torch.tensor([0.0, 1.0, 2.0]))
    tensor([0.0538, 0.5273, 0.8274])
    """
    o = ProperAsymmetricOptions(**options)
    ratio = math.log(o.k_neg * o.zeta_pos / (o.k_pos * o.zeta_neg))
    log_odds = (
        ratio + logsigmoid(o.k_neg * (logits - o.b_neg)) - logsigmoid(-o.k_pos * (logits - o.b_pos))
    )
    return torch.sigmoid(log_odds)


# ------------------------------------------------------------------------------ registry


def _loss(
    name: str,
    value: Callable[[Tensor, Tensor], Tensor],
    derivatives: Callable[[Tensor, Tensor], Derivatives],
    *,
    slope: Callable[[Tensor, Tensor], Tensor] | None = None,
    probability: Callable[[Tensor], Tensor] = torch.sigmoid,
    convex: bool = False,
    is_gradient: bool = True,
) -> Loss:
    """A loss, with a slope that is made of its derivatives where there is no shorter way."""

    def of_derivatives(logits: Tensor, target: Tensor) -> Tensor:
        return derivatives(logits, target).slope

    return Loss(name, value, slope or of_derivatives, derivatives, probability, convex, is_gradient)


_ALL = (
    _loss(
        "bce",
        binary_cross_entropy,
        binary_cross_entropy_derivatives,
        slope=_bce_slope,
        convex=True,
    ),
    _loss("focal", focal, focal_derivatives),
    _loss("asl", asymmetric, asymmetric_derivatives),
    _loss(
        "asl_published",
        partial(asymmetric, as_published=True),
        partial(asymmetric_derivatives, as_published=True),
        slope=_asl_published_slope,
        is_gradient=False,
    ),
    _loss(
        "proper_asymmetric",
        proper_asymmetric,
        proper_asymmetric_derivatives,
        probability=proper_asymmetric_probability,
        convex=True,
    ),
)
#: Every loss by name, with its default options.
LOSSES: Mapping[str, Loss] = MappingProxyType({loss.name: loss for loss in _ALL})


def resolve_loss(loss: str | Loss) -> Loss:
    """Return the loss of that name; a `Loss` passes through.

    Raises:
        ConfigError: If there is no loss of that name.

    >>> resolve_loss("bce").convex
    True
    """
    if isinstance(loss, Loss):
        return loss
    check_choice("loss", loss, LOSSES)
    return LOSSES[loss]
