"""A small case for `catwise fix` on disk: images, partly known labels, a network's checkpoint."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from catwise.heads import read_head
from catwise.models import LoadedModel, Preprocessing
from catwise.models.pixels import preprocess

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("ant", "bee", "cat", "dog")
SPLITS = {"train": 120, "valid": 100, "test": 80}
INPUT = Preprocessing(size=(8, 8))
MODEL = "python:cli.fix_case:tiny_net"


class TinyNet(nn.Module):
    """Eight by eight pixels, twelve features, four categories."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 12), nn.Tanh())
        self.fc = nn.Linear(12, len(NAMES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images))


def tiny_net(checkpoint: Path) -> LoadedModel:
    """What `--model python:cli.fix_case:tiny_net` calls."""
    module = TinyNet()
    module.load_state_dict(load_file(checkpoint))
    return LoadedModel(
        name="tiny",
        module=module.eval(),
        layer="fc",
        preprocessing=INPUT,
        head=read_head(checkpoint, key="fc.weight"),
        weight_key="fc.weight",
        bias_key="fc.bias",
        checkpoint=checkpoint,
    )


def seeded(build: type[nn.Module] = TinyNet) -> nn.Module:
    """A network with weights that are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build().eval()


def make_case(
    folder: Path,
    module: nn.Module | None = None,
    layer: str = "fc",
    preprocessing: Preprocessing = INPUT,
    *,
    known: float = 0.6,
    seed: int = 3,
) -> nn.Module:
    """Write images/*.png, labels.csv and net.safetensors; give the module with its worse head.

    Labels come from a true head over the module's own features; the checkpoint holds that head with
    noise, so there is something to gain.
    """
    random = np.random.default_rng(seed)
    module = seeded() if module is None else module
    (folder / "images").mkdir(parents=True)
    ids = [f"{split}_{i:03d}" for split, n in SPLITS.items() for i in range(n)]
    inputs = []
    for name in ids:
        colour = random.integers(0, 256, size=(8, 8, 3)) // 2 + random.integers(0, 128, size=3)
        image = Image.fromarray(colour.astype(np.uint8))
        image.save(folder / "images" / f"{name}.png")
        inputs.append(preprocess(image, preprocessing))
    head = module.get_submodule(layer)
    positive = _truth(module, head, torch.stack(inputs), random)
    _write_labels(folder / "labels.csv", ids, positive, random.random(positive.shape) < known)
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(state, folder / "net.safetensors")
    return module


def _truth(
    module: nn.Module, head: nn.Module, images: torch.Tensor, random: np.random.Generator
) -> np.ndarray:
    """Labels by a true head, of which the module's own becomes a noisy copy."""
    caught: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        module(images)
        handle.remove()
        features = caught[0].reshape(len(images), -1).double()
        scale = features.std(0) + 1e-6
        truth = torch.from_numpy(random.normal(size=(len(NAMES), features.shape[1]))) / scale
        logits = ((features - features.mean(0)) @ truth.T).numpy()
        noisy = truth + torch.from_numpy(random.normal(size=truth.shape)) / scale
        head.weight.copy_(noisy.reshape(head.weight.shape))  # type: ignore[operator, union-attr]
        head.bias.copy_(-(noisy @ features.mean(0)))  # type: ignore[operator, union-attr]
    spread = logits.std(0)
    noise = random.logistic(size=logits.shape) / 3
    return logits / spread + noise > 0.6  # type: ignore[no-any-return]


def _write_labels(path: Path, ids: list[str], positive: np.ndarray, shown: np.ndarray) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "split", *NAMES])
        for i, name in enumerate(ids):
            split = name.partition("_")[0]
            cells = [
                str(int(one)) if split != "train" or known else ""
                for one, known in zip(positive[i], shown[i], strict=True)
            ]
            writer.writerow([name, split, *cells])


def arguments(folder: Path, *more: str, model: str = MODEL) -> list[str]:
    """`catwise fix` on the case; what stands in `more` wins."""
    return [
        *("fix", "--model", model, "--checkpoint", str(folder / "net.safetensors")),
        *("--images", str(folder / "images"), "--encoding", "nan", "--batch-size", "16"),
        *("--labels", str(folder / "labels.csv"), "--id-column", "image"),
        *("--split-column", "split", "--out", str(folder / "out"), *more),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
