"""Small networks and generated images, for `catwise train`."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn

from catwise.models import LoadedModel, Preprocessing
from catwise.models.adapters.torch_modules import adapt_module

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("ant", "bee", "cat", "dog")
MODEL = "python:cli.train_case:small_net"
INPUT = Preprocessing(size=(12, 12), mean=(0.5,) * 3, std=(0.25,) * 3)
SIZES = {"train": 160, "valid": 80, "test": 60}


class SmallNet(nn.Module):
    """A convolution, its mean over the image, and one linear layer."""

    def __init__(self, n_categories: int = 4, *, dropout: float = 0.1, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12) if norm else nn.GroupNorm(3, 12)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(12, n_categories)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.norm(self.conv(images)))
        return self.fc(self.drop(maps.mean((2, 3))))


def small_net(
    checkpoint: Path | None = None, n_categories: int = 4, dropout: float = 0.1, norm: bool = False
) -> LoadedModel:
    """What `--model python:cli.train_case:small_net` calls."""
    return adapt_module(
        SmallNet(n_categories, dropout=dropout, norm=norm),
        name="small",
        preprocessing=INPUT,
        layers="fc",
        checkpoint=checkpoint,
    )


def make_images(folder: Path, *, seed: int = 0, known: float = 0.5, grouped: bool = True) -> Path:
    """Write images/*.png and labels.csv, whose training labels are known in part.

    A category is a colour of the image; two images make a group.
    """
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    truth = np.array([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2], [1, 1, -2]])
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "split", *(["patient"] if grouped else []), *NAMES])
        for split, n in SIZES.items():
            for i in range(n):
                tint = random.random(3)
                noise = random.random((12, 12, 3))
                pixels = (255 * (0.6 * tint + 0.4 * noise)).astype(np.uint8)
                name = f"{split}_{i:03d}"
                Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
                score = truth @ (tint - 0.5) + random.normal(size=4) / 6
                shown = random.random(4) < (known if split == "train" else 1)
                cells = [str(int(s > 0.2)) if k else "" for s, k in zip(score, shown, strict=True)]
                group = [f"{split}{i // 2}"] if grouped else []
                writer.writerow([name, split, *group, *cells])
    return folder


def arguments(folder: Path, *more: object, model: str = MODEL) -> list[str]:
    """`catwise train` on the case; what stands in `more` wins."""
    return [
        *("train", "--model", model, "--images", str(folder / "images")),
        *("--labels", str(folder / "labels.csv"), "--encoding", "nan", "--id-column", "image"),
        *("--split-column", "split", "--group-column", "patient", "--epochs", "3"),
        *("--batch-size", "16", "--lr", "0.02", "--out", str(folder / "out"), *map(str, more)),
    ]
