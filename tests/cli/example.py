"""A tiny case on disk: features with ids, partly known labels, a checkpoint; all synthetic."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from cli.tiny import make_images

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
SPLITS = {"train": 400, "valid": 240, "test": 400}
N_FEATURES = 8
NETWORK = """
from torch import nn
from catwise.models import LoadedModel, Preprocessing

def load():
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(8, 6))
    return LoadedModel("mynet", module, "4", Preprocessing((16, 16)))
"""


def make_example(folder: Path, *, known: float = 0.5) -> None:
    """Write train, valid and test features and labels, model.safetensors and names.txt.

    The checkpoint's head has half of its truth replaced by noise, so there is something to gain.
    No positive of "fox" is known for training or validation.
    """
    random = np.random.default_rng(7)
    truth = random.normal(size=(len(NAMES), N_FEATURES))
    for split, n_rows in SPLITS.items():
        features = random.normal(size=(n_rows, N_FEATURES)).astype(np.float32)
        noise = random.logistic(size=(n_rows, len(NAMES)))
        positive = features @ truth.T + noise > 1
        shown = random.random(positive.shape) < (1.0 if split == "test" else known)
        if split != "test":
            shown[:, -1] &= ~positive[:, -1]
        ids = [f"{split}_{i:03d}" for i in range(n_rows)]
        np.savez(folder / f"{split}.npz", features=features, ids=np.array(ids))
        _write_table(folder / f"{split}.csv", split, ids, positive, shown)
    base = (truth + random.normal(size=truth.shape)).astype(np.float32)
    tensors = {
        "body.weight": torch.ones(N_FEATURES, 3),
        "fc.weight": torch.from_numpy(base),
        "fc.bias": torch.full((len(NAMES),), -1.0),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "mynet.py").write_text(NETWORK, encoding="utf-8")
    make_images(folder / "photos", 5)
    (folder / "photos" / "b" / "001.png").write_bytes(b"no image")
    _join(folder)


def _write_table(
    path: Path, split: str, ids: list[str], positive: np.ndarray, shown: np.ndarray
) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "patient", "split", *NAMES])
        for i, name in enumerate(ids):
            values = [
                str(int(one)) if known else ""
                for one, known in zip(positive[i], shown[i], strict=True)
            ]
            writer.writerow([name, f"{split}_{i // 2}", split, *values])


def _join(folder: Path) -> None:
    """all.npz and all.csv: training and validation rows in one file."""
    parts = [np.load(folder / f"{split}.npz") for split in ("train", "valid")]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in ("features", "ids")}
    np.savez(folder / "all.npz", **joined)
    lines = [(folder / f"{split}.csv").read_text().splitlines() for split in ("train", "valid")]
    (folder / "all.csv").write_text("\n".join([*lines[0], *lines[1][1:]]) + "\n")
