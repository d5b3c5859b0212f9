"""Images per second of `catwise train` beside a minimal loop: same model, images and precision.

    OMP_NUM_THREADS=1 python benches/training.py [--pairs 5] [--images 256] [--size 64]

The minimal loop is what one writes by hand: a DataLoader, the loss, AdamW, OneCycleLR. Both read
the same PNG files by the same preprocessing. Runs are interleaved, each pair in turn the other way
round; what is compared is processor time of a whole run, without validation; `catwise train` also
writes its folder, and its state after each epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from catwise._configs import TrainConfig
from catwise.labels import PartialLabels
from catwise.models import LoadedModel, Preprocessing
from catwise.models.adapters.torch_modules import adapt_module
from catwise.models.loading import ImageRows
from catwise.models.sources import FolderImages
from catwise.training.losses import assume_negative
from catwise.training.run import prepare_train

C = 20


def network() -> nn.Module:
    """A small convolutional network."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for wide, deep in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(wide, deep, 3, stride=2, padding=1), nn.BatchNorm2d(deep), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, C))


class Labelled(Dataset):
    """What a minimal loop reads."""

    def __init__(self, images: ImageRows, target: np.ndarray, known: np.ndarray) -> None:
        self.images, self.target, self.known = images, target, known

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        return self.images[i].image, self.target[i], self.known[i]


def minimal(images: ImageRows, codes: np.ndarray, epochs: int, batch: int) -> float:
    """Processor seconds of the loop that one writes by hand."""
    module = network().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    data = Labelled(images, (codes == 1).astype(np.float32), codes >= 0)
    loader = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, epochs * len(loader))
    began = time.process_time()
    for _ in range(epochs):
        for pixels, target, known in loader:
            optimizer.zero_grad()
            assume_negative(module(pixels), known, target).mean().backward()
            optimizer.step()
            schedule.step()
    return time.process_time() - began


def ours(
    source: FolderImages, labels: PartialLabels, take: Preprocessing, epochs: int, batch: int
) -> float:
    """Processor seconds of the epochs of `catwise train`."""
    model: LoadedModel = adapt_module(network(), name="bench", preprocessing=take, layers="11")
    config = TrainConfig(scheme="assume_negative", epochs=epochs, batch_size=batch, lr=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        job = prepare_train(model, source, {"train": labels}, Path(folder, "out"), config=config)
        began = time.process_time()
        job.run()
        return time.process_time() - began


def main() -> None:
    """Print the ratio of each pair, and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("pairs", 5), ("images", 256), ("size", 64), ("epochs", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    take = Preprocessing(size=(given.size, given.size))
    with tempfile.TemporaryDirectory() as folder:
        for i in range(given.images):
            pixels = random.integers(0, 256, (given.size, given.size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder, f"{i:05d}.png"))
        source = FolderImages.scan(folder)
        codes = random.choice([-1, 0, 1], p=[0.6, 0.3, 0.1], size=(given.images, C))
        labels = PartialLabels(codes.astype(np.int8), ids=source.ids)
        images = ImageRows(source, take)
        ratios = []
        for pair in range(given.pairs + 1):
            runs = {
                "minimal": lambda: minimal(images, codes, given.epochs, 32),
                "catwise": lambda: ours(source, labels, take, given.epochs, 32),
            }
            order = sorted(runs, reverse=bool(pair % 2))
            seconds = {name: runs[name]() for name in order}
            if pair:  # the first warms up
                ratios.append(seconds["minimal"] / seconds["catwise"])
                print(f"minimal {seconds['minimal']:.2f} s, catwise {seconds['catwise']:.2f} s")
    print(f"images per second, catwise / minimal: median {statistics.median(ratios):.3f}")
    print("of", ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios)))


if __name__ == "__main__":
    main()
