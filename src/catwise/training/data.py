"""Training images: which come when, and how they are changed, as functions of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from catwise.errors import ConfigError, FeatureError
from catwise.models.loading import ImageRow, ImageRows, reading_images
from catwise.progress import Progress, ProgressCallback

#: Images that are tried at once, whether they can be decoded.
_TRIED: Final = 32
#: How far images are shifted, as a share of their size.
_SHIFT: Final = 8
_ORDER, _AUGMENT, MIX, MODEL = range(4)
"""What is drawn: each has draws of its own."""


def draw_seed(purpose: int, seed: int, *keys: int) -> int:
    """A seed for one purpose, epoch and place; of numpy's SeedSequence."""
    words = np.random.SeedSequence([purpose, seed, *keys]).generate_state(2, np.uint32)
    return int(words[0]) << 31 ^ int(words[1])


class Plan(NamedTuple):
    """How the images of an epoch are cut into steps.

    A step is `accumulate` rounds of one batch in each of `world` processes. Images that do not fill
    the last step are left out; they are others in each epoch.
    """

    n_images: int
    batch_size: int
    accumulate: int
    world: int

    @property
    def step_images(self) -> int:
        """Images of a step, those of all processes."""
        return self.batch_size * self.accumulate * self.world

    @property
    def steps(self) -> int:
        """Steps of an epoch; at least 1."""
        if self.n_images < self.step_images:
            raise ConfigError(
                "there are fewer training images than one step takes.",
                found=f"{self.n_images:,} images, {self.step_images:,} in a step",
                remedy="a smaller --batch-size (batch_size) or --accumulate (accumulate)",
            )
        return self.n_images // self.step_images

    def batches(self, seed: int, epoch: int, rank: int) -> list[NDArray[np.int64]]:
        """The rows of each batch of a process in an epoch: `steps` · `accumulate` of them.

        Batch j of a step is that of process j modulo `world`, so that one process that accumulates
        sees the batches that several see.
        """
        random = np.random.default_rng(draw_seed(_ORDER, seed, epoch))
        order = random.permutation(self.n_images)[: self.steps * self.step_images]
        cut = order.reshape(self.steps, self.accumulate, self.world, self.batch_size)
        return list(cut[:, :, rank].reshape(-1, self.batch_size))


def read_batches(
    images: ImageRows, batches: Sequence[NDArray[np.int64]], workers: int
) -> Iterator[Tensor]:
    """The images of some rows, batch by batch; FeatureError if one cannot be decoded."""
    loader = DataLoader(
        images,
        batch_sampler=[rows.tolist() for rows in batches],
        collate_fn=_stacked,
        num_workers=workers,
        generator=torch.Generator(),
    )
    with reading_images():
        yield from loader


def undecodable_ids(
    images: ImageRows, workers: int, progress: ProgressCallback | None
) -> list[str]:
    """The ids of the images that cannot be decoded, of a pass over all of them."""
    loader = DataLoader(
        images,
        batch_size=_TRIED,
        collate_fn=_problems,
        num_workers=workers,
        generator=torch.Generator(),
    )
    lost: list[str] = []
    with reading_images():
        for done, found in enumerate(loader):
            if progress is not None:
                n = min(done * _TRIED, len(images))
                progress(Progress("read", n, len(images), "looking for images not to be decoded"))
            lost += found
    return lost


def _problems(rows: list[ImageRow]) -> list[str]:
    return [row.problem.id for row in rows if row.problem is not None]


def _stacked(rows: list[ImageRow]) -> Tensor:
    found = [row.image for row in rows if row.image is not None]
    if lost := [row.problem for row in rows if row.problem is not None]:
        raise FeatureError(
            f"the image {lost[0].id!r} cannot be decoded.",
            found=lost[0].reason,
            remedy="repair it, or leave such images out with undecodable='skip'",
        )
    return torch.stack(found)


def augmented(images: Tensor, rows: Tensor, *, seed: int, epoch: int, kind: str) -> Tensor:
    """Images mirrored, and shifted by up to an eighth, at random by seed, epoch and row.

    What a shift uncovers is mirrored from beside it.
    """
    if kind == "none":
        return images
    height, width = images.shape[-2:]
    far = (height // _SHIFT, width // _SHIFT) if kind == "flip_shift" else (0, 0)
    wide = pad(images, (far[1], far[1], far[0], far[0]), mode="reflect") if any(far) else images
    changed = torch.empty_like(images)
    for i, row in enumerate(rows.tolist()):
        random = np.random.default_rng(draw_seed(_AUGMENT, seed, epoch, row))
        top, left = (int(random.integers(2 * reach + 1)) for reach in far)
        one = wide[i, :, top : top + height, left : left + width]
        changed[i] = one.flip(-1) if random.random() < 1 / 2 else one
    return changed
