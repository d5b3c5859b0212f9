"""The written checkpoint, run beside the original on a few of the user's images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from catwise.fixing.images import places
from catwise.models.loading import ImageRows
from catwise.models.verify import noise, verify_copy

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.fixing.run import PreparedFix
    from catwise.heads import Head
    from catwise.models.verify import Verified

__all__ = ["verify"]

_IMAGES: Final = 8


def verify(job: PreparedFix, target: Path, head: Head) -> Verified:
    """Load the new checkpoint as the original was loaded, run both, compare all other tensors.

    Args:
        job: model and images.
        target: the new checkpoint; removed if it does not hold.
        head: what was written into it.

    Returns:
        What was seen.

    Raises:
        MismatchError: If features or other tensors differ, or logits are not the head's.
        CatwiseError: If the checkpoint cannot be loaded or run.
    """
    seen = verify_copy(job.model, target, head, _few(job))
    return seen._replace(gap=float(f"{seen.gap:.0e}"), change=float(f"{seen.change:.3g}"))


def _few(job: PreparedFix) -> torch.Tensor:
    """The first training images that can be decoded; made-up ones if none can."""
    ids = job.splits["train"].ids
    assert ids is not None  # noqa: S101 - checked in prepare
    images = ImageRows(job.source, job.model.preprocessing, rows=places(job.source, ids[:_IMAGES]))
    read = [row.image for row in map(images.__getitem__, range(len(images)))]
    found = [image for image in read if image is not None]
    return torch.stack(found) if found else noise(job.model)
