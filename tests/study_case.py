"""A small study over features: planted signal, two schemes, the network in seconds."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from catwise.testing import make_task

if TYPE_CHECKING:
    from pathlib import Path

DECLARED = """
name = "Small"
against = "paper"

[train]
epochs = 2
batch_size = 32
lr = 0.01

[data.planted]
labels = "planted.csv"
features = "planted.npz"
options = { encoding = "nan", id_column = "id", split_column = "split" }

[schemes]
ignore = {}
assume_negative = {}

[backbones.neck]
model = "mlp"
hidden = [8]

[methods.default]
force = true

[methods.paper]
preset = "paper"
max_steps = 20
force = true

[[grid]]
known = [0.5]
seed = [0, 1]

[[mean]]
over = ["scheme"]
"""


def make_study(folder: Path, declared: str = DECLARED) -> Path:
    """Write planted.npz, planted.csv and study.toml; give the last."""
    task = make_task(160, 90, 120, 10, 3, known=1.0, seed=0)
    rows, features = [], []
    for split in ("train", "valid", "test"):
        part = getattr(task, split)
        features.append(np.asarray(part.features.values, dtype=np.float32))
        codes = part.labels.codes.tolist()
        rows += [[f"{split}{i}", split, *row] for i, row in enumerate(codes)]
    ids = np.array([row[0] for row in rows])
    np.savez(folder / "planted.npz", features=np.concatenate(features), ids=ids)
    with (folder / "planted.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "split", "ant", "bee", "cat"], *rows])
    file = folder / "study.toml"
    file.write_text(declared)
    return file
