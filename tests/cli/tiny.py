"""A tiny model and some images, for the commands that take ``--model``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from catwise.models import LoadedModel, Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

MODEL = ("--model", "python:cli.tiny:load")


def load(checkpoint: Any = None) -> LoadedModel:
    """A convolution, its mean over the image, and a linear layer of five categories."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(8, 5),
        )
    half = (0.5, 0.5, 0.5)
    return LoadedModel("tiny", module, "6", Preprocessing((16, 16), half, half))


def make_images(folder: Path, n: int = 10) -> list[str]:
    """Write n images in two folders; their paths, in order."""
    random = np.random.default_rng(1)
    names = [f"{'ab'[row % 2]}/{row:03d}.png" for row in range(n)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(path)
    return sorted(names)


def load_pixels(channels: int = 3) -> LoadedModel:
    """What goes into its linear layer is the mean of each channel of the input."""
    half = (0.5,) * channels
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
    take = Preprocessing((16, 16), half, half, channels=channels)
    return LoadedModel("pixels", module.eval(), "2", take)
