"""Images mixed with one another, and what is then known of the mixture.

A mixture is a new image: schemes that remember something of each image do not go with it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from catwise.errors import ConfigError, ShapeError, check_rules

__all__ = ["Mixed", "logic_mix", "mixup_pme"]


class Mixed(NamedTuple):
    """Mixed images and their labels.

    Attributes:
        images: (N, …).
        known: (N, C) bool.
        target: (N, C) float in [0, 1]; 0 where unknown.
    """

    images: Tensor
    known: Tensor
    target: Tensor


def _partners(n: int, k: int, generator: torch.Generator) -> Tensor:
    """(k, n) rows: each image itself, then k - 1 partners drawn without the image itself."""
    if n < 2:
        raise ConfigError("a batch of one image cannot be mixed.", remedy="use larger batches")
    own = torch.arange(n)
    others = torch.randint(1, n, (k - 1, n), generator=generator)
    return torch.cat([own[None], (own + others) % n])


def _check(images: Tensor, known: Tensor, target: Tensor) -> None:
    if known.shape != target.shape or known.ndim != 2 or len(images) != len(known):
        raise ShapeError(
            "images and labels of a batch do not fit together.",
            found=f"{len(images)} images, {tuple(known.shape)} and {tuple(target.shape)}",
            expected="a row of known and target for each image",
        )


def mixup_pme(
    images: Tensor,
    known: Tensor,
    target: Tensor,
    *,
    generator: torch.Generator,
    low: float = 0.75,
) -> Mixed:
    """MixUp for partly known labels: the partner's unknown labels count as one half.

    Image i becomes ``s * x_i + (1 - s) * x_j`` and so does its target, with s drawn evenly from
    `low` to 1. What is unknown of image i stays unknown, whatever is known of image j.

    Args:
        images: (N, …) float.
        known: (N, C) bool.
        target: (N, C) in [0, 1].
        generator: of the draws, on the CPU.
        low: least share of the image itself, in [0.5, 1].

    Returns:
        Images and labels of the same shapes.

    Raises:
        ShapeError: If images and labels differ in number.
        ConfigError: If `low` is out of range, or there is one image.

    Source: Zhang et al., mixup, ICLR 2018; the form for unknown labels that Chong et al., LogicMix,
    arXiv 2405.15860, compare with as MixUp-PME.

    >>> draw = torch.Generator().manual_seed(0)
    >>> known = torch.tensor([[True, False], [False, True]])
    >>> mixup_pme(torch.eye(2), known, torch.eye(2), generator=draw).known.tolist()
    [[True, False], [False, True]]
    """
    check_rules("options of MixUp-PME", {"low": low}, {"low in [0.5, 1]": 0.5 <= low <= 1})
    _check(images, known, target)
    n = len(images)
    partner = _partners(n, 2, generator)[1].to(images.device)
    share = (low + (1 - low) * torch.rand(n, generator=generator)).to(images.device)
    broad = share.view(-1, *[1] * (images.ndim - 1)).to(images.dtype)
    mixed = broad * images + (1 - broad) * images[partner]
    said = torch.where(known, target.float(), 0.5)
    blended = share[:, None] * said + (1 - share[:, None]) * said[partner]
    return Mixed(mixed, known.bool(), torch.where(known, blended, 0.0))


def logic_mix(
    images: Tensor,
    known: Tensor,
    target: Tensor,
    *,
    generator: torch.Generator,
    k: int = 2,
) -> Mixed:
    """Mean of k images, with labels by logical OR, which knows what to do with unknown ones.

    The mixture is positive in a category where one of its images is known to be, negative where all
    are known to be, else unknown. Soft targets join as independent ones: ``1 - prod(1 - y)``.

    Args:
        images: (N, …) float.
        known: (N, C) bool.
        target: (N, C) in [0, 1].
        generator: of the draws, on the CPU.
        k: how many images make one, >= 2.

    Returns:
        Images and labels of the same shapes.

    Raises:
        ShapeError: If images and labels differ in number.
        ConfigError: If `k` is out of range, or there is one image.

    Source: Chong et al., Free Performance Gain from Mixing Multiple Partially Labeled Samples in
    Multi-label Image Classification, arXiv 2405.15860 (LogicMix).

    >>> draw = torch.Generator().manual_seed(0)
    >>> known = torch.tensor([[True, False], [True, True]])
    >>> mixed = logic_mix(torch.eye(2), known, torch.eye(2), generator=draw)
    >>> mixed.known.tolist(), mixed.target.tolist()
    ([[True, True], [True, True]], [[1.0, 1.0], [1.0, 1.0]])
    """
    check_rules("options of LogicMix", {"k": k}, {"k >= 2": k >= 2})
    _check(images, known, target)
    rows = _partners(len(images), k, generator).to(images.device)
    mixed = images[rows].mean(dim=0)
    said, sure = known[rows].bool(), torch.where(known, target.float(), 0.0)[rows]
    known_now = said.all(dim=0) | (sure == 1).any(dim=0)
    joined = 1 - (1 - sure).prod(dim=0)
    return Mixed(mixed, known_now, torch.where(known_now, joined, 0.0))
