"""The logits that a model returns, beside those that a head gives for its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from catwise.errors import HeadError

if TYPE_CHECKING:
    from catwise.heads.core import Head

__all__ = ["TOLERANCE", "check_logits", "logits_gap", "logits_of", "scores"]

TOLERANCE: Final = {
    torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2,
}  # fmt: skip
"""What rounding explains, as a share of the largest logit."""


def logits_of(output: object) -> Tensor:
    """The logits in what a model returns: (N, C).

    Args:
        output: a tensor; something with `logits`; a table with ``"logits"``; or a tuple that begins
            with one of these.

    Raises:
        HeadError: If there are none.

    >>> logits_of({"logits": torch.zeros(2, 3, 1, 1)}).shape
    torch.Size([2, 3])
    """
    found = output
    if isinstance(found, (tuple, list)) and found and not hasattr(found, "logits"):
        found = found[0]
    if isinstance(found, Mapping) and "logits" in found:
        found = found["logits"]
    found = getattr(found, "logits", found)
    if isinstance(found, Tensor) and found.ndim >= 2:
        return found.detach().flatten(1)
    raise HeadError(
        "the model returns no logits.",
        found=type(output).__name__
        + (f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""),
        expected="a tensor (N, C), or something with `logits`",
    )


def scores(head: Head, features: Tensor) -> Tensor:
    """The head's logits: (N, C), of (N, D) or category-specific (N, K, D) features."""
    return head.logits(features)


def logits_gap(head: Head, features: Tensor, output: object) -> float:
    """How far a model's logits are from what the head gives for the features.

    Args:
        head: the head.
        features: (N, D), or (N, C, D) with one vector for each category.
        output: what the model returned.

    Returns:
        The largest difference, divided by the largest logit; infinity if the shapes differ.

    >>> from catwise import Head
    >>> logits_gap(Head([[2.0]]), torch.ones(1, 1), torch.full((1, 1), 1.5))
    0.25
    """
    expected, logits = scores(head, features).double(), logits_of(output)
    if expected.shape != logits.shape:
        return float("inf")
    gap = (expected - logits.to(expected)).abs().max()
    return float(gap / expected.abs().max().clamp_min(1e-30))


def check_logits(head: Head, features: Tensor, output: object, *, name: str) -> float:
    """Refuse a layer, called `name`, that does not make the model's logits; give the gap.

    Raises:
        HeadError: If the gap is more than rounding explains, or there are no logits.
    """
    gap, logits = logits_gap(head, features, output), logits_of(output)
    if not gap <= max(1e-3, *(TOLERANCE.get(dtype, 0) for dtype in (head.dtype, logits.dtype))):
        raise HeadError(
            f"the layer {name!r} does not make the model's logits.",
            found=f"logits {tuple(logits.shape)}, and {head.n_categories:,} categories from the "
            f"layer; they differ by {gap:.2g} of the largest",
            expected="features @ weight.T + bias, to float tolerance",
            remedy="name the right layer with layer='…'; take out a sigmoid, a scaling or a mean "
            "of heads behind it, or use check=False if only the features matter",
        )
    return gap
