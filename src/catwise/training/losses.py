"""Losses of a batch with unknown labels, entry by entry.

Every one is a pure function ``(logits, known, target) -> (N, C) losses`` without reduction:

- `logits` (N, C), unbounded, of any float type; computed in float32 at least.
- `known` (N, C) bool: whether the label counts as known.
- `target` (N, C), bool or in [0, 1]: what a known label says. Not looked at elsewhere.

A loss of 0 with a gradient of 0 is what an entry has that does not count, whatever its logit is,
infinite and NaN included. Values and gradients are finite for logits of +-10,000.

>>> logits = torch.tensor([[0.0, 2.0]])
>>> known = torch.tensor([[True, False]])
>>> ignore_unknown(logits, known, torch.tensor([[1.0, 0.0]]))
tensor([[0.6931, 0.0000]])
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import softplus

from catwise.errors import ShapeError, check_choice
from catwise.losses import asymmetric, binary_cross_entropy, focal
from catwise.training.options import UNKNOWN

__all__ = [
    "assume_negative",
    "asymmetric_loss",
    "check_batch",
    "entropy_maximization",
    "focal_loss",
    "hill",
    "ignore_unknown",
    "label_smoothing",
    "partial_asymmetric",
    "partial_bce",
    "splc",
    "weak_assume_negative",
]

_HALF: Final = (torch.float16, torch.bfloat16)


def check_batch(logits: Tensor, known: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32 or float64, known as bool, target in their type; 0 where unknown.

    ShapeError if they are not three (N, C).
    """
    shapes = [tuple(part.shape) for part in (logits, known, target)]
    if logits.ndim != 2 or len(set(shapes)) > 1:
        raise ShapeError(
            "logits, known and target of a batch do not fit together.",
            found=", ".join(map(str, shapes)),
            expected="three of (images, categories)",
        )
    values = logits.float() if logits.dtype in _HALF else logits
    known = known.bool()
    return values, known, torch.where(known, target.to(values.dtype), 0.0)


def _counted(logits: Tensor, counts: Tensor) -> Tensor:
    """Logits with 0 where an entry does not count, so that nothing of it reaches a gradient."""
    return torch.where(counts, logits, 0.0)


def ignore_unknown(logits: Tensor, known: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of known labels; unknown ones are left out.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).

    Returns:
        (N, C) losses, >= 0; 0 where unknown.

    Raises:
        ShapeError: If they differ in shape.

    Source: Cole et al., Multi-Label Learning from Single Positive Labels, CVPR 2021 (the loss "IU",
    ignore unobserved).
    """
    values, known, target = check_batch(logits, known, target)
    losses = binary_cross_entropy(_counted(values, known), target)
    return torch.where(known, losses, 0.0)


def partial_bce(
    logits: Tensor,
    known: Tensor,
    target: Tensor,
    *,
    alpha: float = -4.45,
    beta: float = 5.45,
    gamma: float = 1.0,
) -> Tensor:
    """Binary cross-entropy of known labels, those of images with few known ones weighing more.

    An image of which the share p of labels is known has the weight ``alpha * p**gamma + beta``,
    which is 1 for p = 1 with the published numbers.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).
        alpha: slope of the weight.
        beta: its value at p = 0.
        gamma: exponent, > 0.

    Returns:
        (N, C) losses; 0 where unknown.

    Raises:
        ShapeError: If they differ in shape.

    Source: Durand et al., Learning a Deep ConvNet for Multi-label Classification with Partial
    Labels, CVPR 2019, partial-BCE with its normalisation g.

    >>> one = torch.zeros(1, 2), torch.tensor([[True, False]]), torch.ones(1, 2)
    >>> partial_bce(*one) / ignore_unknown(*one)[0, 0]
    tensor([[3.2250, 0.0000]])
    """
    values, known, target = check_batch(logits, known, target)
    share = known.to(values.dtype).mean(dim=1, keepdim=True)
    return (alpha * share**gamma + beta) * ignore_unknown(values, known, target)


def assume_negative(logits: Tensor, known: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy with every unknown label taken as negative.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).

    Returns:
        (N, C) losses, >= 0.

    Raises:
        ShapeError: If they differ in shape.

    Source: Cole et al., CVPR 2021, the loss "AN".

    >>> none = torch.zeros(1, 1, dtype=torch.bool)
    >>> assume_negative(torch.zeros(1, 1), none, torch.ones(1, 1))
    tensor([[0.6931]])
    """
    values, _, target = check_batch(logits, known, target)
    return binary_cross_entropy(values, target)


def weak_assume_negative(
    logits: Tensor, known: Tensor, target: Tensor, *, weight: float | None = None
) -> Tensor:
    """The same, with a small weight for what is only assumed.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).
        weight: of an unknown label, in [0, 1]; None: 1 / (C − 1), so that all of them together
            weigh like one known positive.

    Returns:
        (N, C) losses, >= 0.

    Raises:
        ShapeError: If they differ in shape.

    Source: Cole et al., CVPR 2021, the loss "WAN", after Mac Aodha et al., ICCV 2019.

    >>> none = torch.zeros(1, 5, dtype=torch.bool)
    >>> weak_assume_negative(torch.zeros(1, 5), none, torch.ones(1, 5)).sum() / 5
    tensor(0.1733)
    """
    values, known, target = check_batch(logits, known, target)
    share = 1 / max(logits.shape[1] - 1, 1) if weight is None else weight
    return torch.where(known, 1.0, share) * binary_cross_entropy(values, target)


def label_smoothing(
    logits: Tensor,
    known: Tensor,
    target: Tensor,
    *,
    epsilon: float = 0.1,
    unknown: str = "negative",
) -> Tensor:
    """Binary cross-entropy with targets pulled to one half.

    A target y becomes ``(1 - epsilon) * y + epsilon / 2``.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).
        epsilon: how far, in [0, 1].
        unknown: "negative": counts as that, smoothed like the others; "ignore": left out.

    Returns:
        (N, C) losses, >= 0.

    Raises:
        ShapeError: If they differ in shape.
        ConfigError: If `unknown` is something else.

    Source: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016; with unknown as
    negative "AN-LS" of Cole et al., CVPR 2021.

    >>> label_smoothing(torch.full((1, 1), 9.0), torch.ones(1, 1) > 0, torch.ones(1, 1))
    tensor([[0.4501]])
    """
    values, known, target = check_batch(logits, known, target)
    counts = _counts(known, unknown)
    losses = binary_cross_entropy(_counted(values, counts), (1 - epsilon) * target + epsilon / 2)
    return torch.where(counts, losses, 0.0)


def _counts(known: Tensor, unknown: str) -> Tensor:
    check_choice("unknown", unknown, UNKNOWN)
    return known if unknown == "ignore" else torch.ones_like(known)


def focal_loss(
    logits: Tensor,
    known: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    unknown: str = "negative",
) -> Tensor:
    """Focal loss: what the model is already sure of weighs little.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).
        gamma: focusing exponent, >= 0.
        unknown: "negative" or "ignore".

    Returns:
        (N, C) losses, >= 0.

    Raises:
        ShapeError: If they differ in shape.
        ConfigError: If `unknown` is something else.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4, without its
    class weight; see `catwise.losses.focal`.

    >>> focal_loss(torch.zeros(1, 1), torch.ones(1, 1) > 0, torch.ones(1, 1))
    tensor([[0.1733]])
    """
    values, known, target = check_batch(logits, known, target)
    counts = _counts(known, unknown)
    return torch.where(counts, focal(_counted(values, counts), target, gamma=gamma), 0.0)


def asymmetric_loss(
    logits: Tensor,
    known: Tensor,
    target: Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    unknown: str = "negative",
    as_published: bool = True,
) -> Tensor:
    """Asymmetric loss (ASL): easy negatives cost next to nothing.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).
        gamma_neg: focusing exponent of negatives, >= 0.
        gamma_pos: focusing exponent of positives, >= 0.
        clip: probability margin in [0, 1).
        unknown: "negative" or "ignore".
        as_published: the focusing factor is a constant to the gradient, as in the authors' code.

    Returns:
        (N, C) losses, >= 0.

    Raises:
        ShapeError: If they differ in shape.
        ConfigError: If `unknown` is something else.

    Source: Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021; see
    `catwise.losses.asymmetric`.

    >>> asymmetric_loss(torch.zeros(1, 1), torch.ones(1, 1) > 0, torch.zeros(1, 1))
    tensor([[0.0245]])
    """
    values, known, target = check_batch(logits, known, target)
    counts = _counts(known, unknown)
    options = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    losses = asymmetric(_counted(values, counts), target, **options, as_published=as_published)
    return torch.where(counts, losses, 0.0)


def partial_asymmetric(
    logits: Tensor,
    known: Tensor,
    target: Tensor,
    *,
    gamma_pos: float = 0.0,
    gamma_neg: float = 1.0,
    gamma_unknown: float = 2.0,
    alpha_unknown: float = 1.0,
    clip: float = 0.0,
    counts: Tensor | None = None,
) -> Tensor:
    """Partial asymmetric loss (P-ASL): an exponent of its own for labels that are unknown.

    Unknown labels count as negatives, the less the surer the model already is; which of them
    count at all is said by `counts` (`selective` makes it).

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).
        gamma_pos: focusing exponent of known positives, >= 0.
        gamma_neg: of known negatives, >= 0.
        gamma_unknown: of unknown labels, >= 0.
        alpha_unknown: weight of unknown labels, >= 0.
        clip: probability margin of negatives, in [0, 1).
        counts: (N, C) bool, whether an unknown entry counts; None: all.

    Returns:
        (N, C) losses, >= 0.

    Raises:
        ShapeError: If they differ in shape.

    Source: Ben-Baruch et al., Multi-label Classification with Partial Annotations using Class-aware
    Selective Loss, CVPR 2022 (P-ASL; defaults of the authors' code).

    >>> none = torch.zeros(1, 1, dtype=torch.bool)
    >>> partial_asymmetric(torch.zeros(1, 1), none, torch.ones(1, 1))
    tensor([[0.1733]])
    """
    values, known, target = check_batch(logits, known, target)
    kept = torch.ones_like(known) if counts is None else counts.bool() | known
    values = _counted(values, kept)
    said = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    blank = {"gamma_neg": gamma_unknown, "gamma_pos": 0.0, "clip": clip}
    known_losses = asymmetric(values, target, **said, as_published=True)
    assumed = asymmetric(values, torch.zeros_like(target), **blank, as_published=True)
    losses = torch.where(known, known_losses, alpha_unknown * assumed)
    return torch.where(kept, losses, 0.0)


def entropy_maximization(
    logits: Tensor,
    known: Tensor,
    target: Tensor,
    pseudo: Tensor | None = None,
    pseudo_target: Tensor | None = None,
    *,
    alpha: float = 0.1,
    beta: float = 0.2,
) -> Tensor:
    """Entropy maximisation (EM): unknown labels are kept undecided, but for pseudo-labels.

    An unknown label has the loss ``-alpha * H(p)`` with the entropy H of its probability, one with
    a pseudo-label ``beta`` times the cross-entropy with it.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).
        pseudo: (N, C) bool, where there is a pseudo-label (a known label goes before it); or None.
        pseudo_target: (N, C) in [0, 1]: the pseudo-labels.
        alpha: weight of the entropy, >= 0.
        beta: weight of a pseudo-label, >= 0.

    Returns:
        (N, C) losses; those of undecided entries are negative.

    Raises:
        ShapeError: If they differ in shape.

    Source: Zhou et al., Acknowledging the Unknown for Multi-label Learning with Single Positive
    Labels, ECCV 2022. Known negatives, which they have not, count as in cross-entropy.

    >>> none = torch.zeros(1, 1, dtype=torch.bool)
    >>> entropy_maximization(torch.zeros(1, 1), none, torch.ones(1, 1))
    tensor([[-0.0693]])
    """
    values, known, target = check_batch(logits, known, target)
    p = torch.sigmoid(values)
    entropy = p * softplus(-values) + (1 - p) * softplus(values)
    losses = torch.where(known, binary_cross_entropy(values, target), -alpha * entropy)
    if pseudo is None or pseudo_target is None:
        return losses
    chosen = pseudo.bool() & ~known
    pseudo_target = torch.where(chosen, pseudo_target.to(values.dtype), 0.0)
    return torch.where(chosen, beta * binary_cross_entropy(values, pseudo_target), losses)


def splc(
    logits: Tensor,
    known: Tensor,
    target: Tensor,
    *,
    epoch: int = 1,
    threshold: float = 0.6,
    change_epoch: int = 1,
    margin: float = 1.0,
    gamma: float = 2.0,
) -> Tensor:
    """Self-paced loss correction (SPLC): an assumed negative that scores high counts as positive.

    Focal loss; the logits of known positives are lowered by the margin. From `change_epoch` on
    an unknown label with a probability above the threshold is taken as positive, else as negative.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).
        epoch: how many epochs have gone by.
        threshold: in (0, 1).
        change_epoch: the first epoch with corrections.
        margin: of known positives, on the logit axis, >= 0.
        gamma: focusing exponent, >= 0.

    Returns:
        (N, C) losses, >= 0.

    Raises:
        ShapeError: If they differ in shape.

    Source: Zhang et al., Simple and Robust Loss Design for Multi-Label Learning with Missing
    Labels, arXiv 2112.07368 (SPLC; its focal margin loss). Known negatives are never corrected.

    >>> none = torch.zeros(1, 2, dtype=torch.bool)
    >>> splc(torch.tensor([[3.0, 0.0]]), none, torch.zeros(1, 2))
    tensor([[1.0928e-04, 1.7329e-01]])
    """
    values, known, target = check_batch(logits, known, target)
    shifted = values - margin * target
    if epoch >= change_epoch:
        believed = ~known & (torch.sigmoid(values.detach()) > threshold)
        target = torch.where(believed, 1.0, target)
    return focal(shifted, target, gamma=gamma)


def hill(
    logits: Tensor,
    known: Tensor,
    target: Tensor,
    *,
    lamb: float = 1.5,
    margin: float = 1.0,
    gamma: float = 2.0,
) -> Tensor:
    """Hill loss: what is taken as negative and scores high weighs less again.

    Negative: ``(lamb - p) * p**2``, whose slope falls to nothing where p nears 1, so that a label
    that is missing does little harm. Positive: focal loss of the logit minus a margin.

    Args:
        logits: (N, C); see the module.
        known: (N, C).
        target: (N, C).
        lamb: place of the hill, >= 1.
        margin: of positives, on the logit axis, >= 0.
        gamma: focusing exponent of positives, >= 0.

    Returns:
        (N, C) losses, >= 0.

    Raises:
        ShapeError: If they differ in shape.

    Source: Zhang et al., arXiv 2112.07368 (Hill; its focal margin loss).

    >>> hill(torch.zeros(1, 1), torch.ones(1, 1) > 0, torch.zeros(1, 1))
    tensor([[0.2500]])
    """
    values, known, target = check_batch(logits, known, target)
    p = torch.sigmoid(values)
    negative = (lamb - p) * p.square()
    positive = focal(values - margin, torch.ones_like(target), gamma=gamma)
    return target * positive + (1 - target) * negative
