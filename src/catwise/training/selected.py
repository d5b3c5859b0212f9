"""Losses that look at a whole batch, or learn targets beside the model.

Arguments are those of `catwise.training.losses`: logits, known and target of (N, C).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from catwise.errors import ShapeError
from catwise.losses import binary_cross_entropy
from catwise.training.losses import check_batch

__all__ = [
    "RoleLoss",
    "auc_margin",
    "boost_lu",
    "estimate_prior",
    "expected_positives",
    "large_loss",
    "large_losses",
    "role",
    "role_gradient",
    "selective",
]

# --------------------------------------------------------------------------- large losses


def large_losses(losses: Tensor, known: Tensor, share: float) -> Tensor:
    """The largest losses of unknown labels in a batch.

    Args:
        losses: (N, C), of assumed negatives where unknown.
        known: (N, C) bool.
        share: of all N · C entries that are picked, in [0, 1]: ``ceil(share * N * C)`` of them, as
            many as are unknown at most; ties with the last one are picked too.

    Returns:
        (N, C) bool; never where a label is known, or a loss is 0.

    Source: Kim et al., Large Loss Matters in Weakly Supervised Multi-Label Classification, CVPR
    2022, R(t).

    >>> large_losses(torch.tensor([[0.1, 3.0, 2.0]]), torch.tensor([[0, 0, 1]]) > 0, 0.3)
    tensor([[False,  True, False]])
    """
    unknown = ~known.bool()
    count = min(math.ceil(share * losses.numel()), int(unknown.sum()))
    if count < 1:
        return torch.zeros_like(unknown)
    values = torch.where(unknown, losses.detach(), -1.0)
    least = values.flatten().topk(count).values[-1]
    return unknown & (values >= least) & (values > 0)


def large_loss(
    logits: Tensor, known: Tensor, target: Tensor, *, share: float, correct: bool = False
) -> Tensor:
    """Binary cross-entropy with unknown as negative, but for the largest losses of unknown labels.

    Args:
        logits: (N, C).
        known: (N, C).
        target: (N, C).
        share: as `large_losses` has it; published: the number of epochs gone by times Δrel.
        correct: count them as positive (LL-Ct; LL-Cp where that stays) instead of leaving them out
            (LL-R).

    Returns:
        (N, C) losses, >= 0.

    Raises:
        ShapeError: If they differ in shape.

    Source: Kim et al., CVPR 2022, LL-R, LL-Ct and LL-Cp.

    >>> none = torch.zeros(1, 2, dtype=torch.bool)
    >>> large_loss(torch.tensor([[3.0, -3.0]]), none, torch.zeros(1, 2), share=0.5)
    tensor([[0.0000, 0.0486]])
    """
    values, known, target = check_batch(logits, known, target)
    picked = large_losses(binary_cross_entropy(values, target), known, share)
    if correct:
        return binary_cross_entropy(values, torch.where(picked, 1.0, target))
    kept = binary_cross_entropy(torch.where(picked, 0.0, values), target)
    return torch.where(picked, 0.0, kept)


# ------------------------------------------------------------------ class-aware selective


def estimate_prior(logits: Tensor) -> Tensor:
    """Prior of each category: the mean probability over images.

    Args:
        logits: (N, C) of a model that was trained on known labels alone, for images of the training
            set.

    Returns:
        (C,) float64 in [0, 1].

    Source: Ben-Baruch et al., CVPR 2022 (the class distribution by a temporary model).

    >>> estimate_prior(torch.tensor([[0.0], [-100.0]]))
    tensor([0.2500], dtype=torch.float64)
    """
    return torch.sigmoid(logits.detach().double()).mean(dim=0)


def selective(
    logits: Tensor,
    known: Tensor,
    *,
    prior: Tensor | None = None,
    likelihood_top: int = 5,
    prior_threshold: float = 0.05,
) -> Tensor:
    """Which unknown labels count as negatives: rare categories', with a low score.

    An unknown label is left out where the category's prior is above the threshold, or its score is
    among the `likelihood_top` · N highest of unknown labels in the batch.

    Args:
        logits: (N, C).
        known: (N, C).
        prior: (C,) in [0, 1]; None: the score alone decides.
        likelihood_top: how many for each image of the batch, >= 0.
        prior_threshold: in [0, 1].

    Returns:
        (N, C) bool: True where known or counted as negative.

    Raises:
        ShapeError: If they differ in shape.

    Source: Ben-Baruch et al., CVPR 2022 (class-aware selective loss; the code's defaults).

    >>> none = torch.zeros(1, 3, dtype=torch.bool)
    >>> selective(torch.tensor([[2.0, 1.0, 0.0]]), none, likelihood_top=1)
    tensor([[False,  True,  True]])
    """
    values, known, _ = check_batch(logits, known, torch.zeros_like(logits))
    values, unknown = values.detach(), ~known
    if prior is not None and prior.shape != values.shape[1:]:
        raise ShapeError(
            "the prior is not one for each category.",
            found=f"{tuple(prior.shape)}",
            expected=f"{tuple(values.shape[1:])}",
        )
    left_out = torch.zeros_like(known)
    if prior is not None:
        left_out |= prior.to(values.device) > prior_threshold
    count = min(likelihood_top * len(values), int(unknown.sum()))
    if count:
        order = torch.where(unknown, values, -torch.inf).flatten().topk(count).indices
        left_out.view(-1)[order] = True
    return known | ~left_out


# ----------------------------------------------------------------------------------- ROLE


class RoleLoss(NamedTuple):
    """The loss of `role`.

    Attributes:
        entries: (N, C) losses.
        regulariser: scalar: how far the expected numbers of positives are off.
    """

    entries: Tensor
    regulariser: Tensor


def expected_positives(known: Tensor, target: Tensor) -> float:
    """Positives of an image that its known labels let expect, all categories alike.

    The share of positives among known labels times the number of categories.

    >>> expected_positives(torch.tensor([[1, 1, 0, 0]]) > 0, torch.tensor([[1.0, 0, 0, 0]]))
    2.0
    """
    known = known.bool()
    share = torch.where(known, target.double(), 0.0).sum() / known.sum().clamp(min=1)
    return float(share) * known.shape[1]


def role(
    logits: Tensor,
    known: Tensor,
    target: Tensor,
    estimates: Tensor,
    *,
    expected: float,
) -> RoleLoss:
    """Regularised online label estimation (ROLE): labels are learned beside the model.

    Half of the model's loss and half of the estimates': each is the cross-entropy of known labels
    plus that with the other one's probabilities, held constant; and ``((S - k) / C)**2`` with
    the mean S of an image's expected positives.

    Args:
        logits: (N, C).
        known: (N, C).
        target: (N, C).
        estimates: (N, C) logits of the label estimates of these images.
        expected: k, positives of an image.

    Returns:
        Losses of entries, and the regulariser of both.

    Raises:
        ShapeError: If they differ in shape.

    Source: Cole et al., CVPR 2021, ROLE. There known labels are positives; known negatives count in
    the same way.

    >>> none = torch.zeros(1, 2, dtype=torch.bool)
    >>> loss = role(torch.zeros(1, 2), none, torch.zeros(1, 2), torch.zeros(1, 2), expected=1.0)
    >>> loss.entries, float(loss.regulariser)
    (tensor([[0.6931, 0.6931]]), 0.0)
    """
    values, known, target = check_batch(logits, known, target)
    estimates = check_batch(estimates, known, target)[0]
    entries = torch.zeros_like(values)
    regulariser = values.new_zeros(())
    for one, other in ((values, estimates), (estimates, values)):
        seen = torch.where(known, one, 0.0)
        entries = entries + 0.5 * torch.where(known, binary_cross_entropy(seen, target), 0.0)
        entries = entries + 0.5 * binary_cross_entropy(one, torch.sigmoid(other.detach()))
        off = (torch.sigmoid(one).sum(dim=1).mean() - expected) / values.shape[1]
        regulariser = regulariser + 0.5 * off.square()
    return RoleLoss(entries, regulariser)


def role_gradient(
    logits: Tensor, known: Tensor, target: Tensor, estimates: Tensor, *, expected: float
) -> Tensor:
    """Gradient by the estimates of ``entries.mean() + regulariser`` of `role`; (N, C)."""
    values, known, target = check_batch(logits.detach(), known, target)
    estimates = check_batch(estimates.detach(), known, target)[0]
    q = torch.sigmoid(estimates)
    entries = 0.5 * (torch.where(known, q - target, 0.0) + q - torch.sigmoid(values))
    off = q.sum(dim=1).mean() - expected
    scale = off / (values.shape[1] ** 2 * len(values))
    return entries / values.numel() + scale * q * (1 - q)


# --------------------------------------------------------------------- AUC margin, BoostLU


def auc_margin(logits: Tensor, known: Tensor, target: Tensor, *, margin: float = 1.0) -> Tensor:
    """Squared hinge on each pair of a known positive and a known negative of a category.

    The mean of ``max(margin - (p_positive - p_negative), 0)**2`` over pairs, with probabilities p.

    Args:
        logits: (N, C).
        known: (N, C).
        target: (N, C); positive where above one half.
        margin: > 0.

    Returns:
        (C,) losses, >= 0; 0 without a gradient where the batch has no such pair.

    Raises:
        ShapeError: If they differ in shape.

    Source: Yuan et al., Large-scale Robust Deep AUC Maximization, ICCV 2021: the margin surrogate
    of the AUROC, here over the pairs of the batch and not in min-max form.

    >>> both = torch.ones(2, 1, dtype=torch.bool)
    >>> auc_margin(torch.zeros(2, 1), both, torch.tensor([[1.0], [0.0]]))
    tensor([1.])
    """
    values, known, target = check_batch(logits, known, target)
    positive, negative = known & (target > 0.5), known & (target <= 0.5)
    losses = []
    for c in range(values.shape[1]):
        high = torch.sigmoid(values[positive[:, c], c])
        low = torch.sigmoid(values[negative[:, c], c])
        short = (margin - (high[:, None] - low[None, :])).clamp(min=0)
        losses.append(short.square().mean() if short.numel() else values.new_zeros(()))
    return torch.stack(losses)


def boost_lu(maps: Tensor, *, alpha: float = 5.0) -> Tensor:
    """Boost the positive attributions of class activation maps: ``max(x, alpha * x)``.

    Args:
        maps: (N, C, …) class activations at places of the image; their mean is the logit.
        alpha: factor of positive ones, >= 1.

    Returns:
        Maps of the same shape. Their mean over places is the boosted logit, on which any loss goes.

    Source: Kim et al., Bridging the Gap between Model Explanations in Partially Annotated
    Multi-label Classification, CVPR 2023 (BoostLU; alpha = 5 there).

    >>> boost_lu(torch.tensor([[[-1.0, 2.0]]]))
    tensor([[[-1., 10.]]])
    """
    return torch.maximum(maps, alpha * maps)
