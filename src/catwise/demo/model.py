"""The small network of the demonstration, and how it is trained and read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

HEAD_KEY = "head.weight"
"""The key of the classification layer in the network's ``state_dict``."""


class SceneNet(nn.Module):
    """Three convolutions, a maximum over the scene, and one linear layer.

    What the last convolution sees is 10 × 10 pixels: about one digit.

    Args:
        n_categories: rows of the classification layer.
        width: channels of the first convolution; the features have eight times as many.
    """

    def __init__(self, n_categories: int, *, width: int = 16) -> None:
        super().__init__()
        self.n_features = 8 * width
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 3 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(3 * width),
            nn.ReLU(),
            nn.Conv2d(3 * width, self.n_features, 1, bias=False),
            nn.BatchNorm2d(self.n_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.n_features, n_categories)

    def features(self, images: Tensor) -> Tensor:
        """Return what the classification layer sees: (N, 27, 27) → (N, D)."""
        maps: Tensor = self.backbone(images.unsqueeze(1))
        return maps.amax(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: (N, 27, 27) → (N, C)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def train_network(
    images: NDArray[np.float32],
    target: NDArray[np.float32],
    weight: NDArray[np.float32],
    *,
    width: int,
    epochs: int,
    seed: int,
    device: torch.device | None = None,
    batch: int = 32,
    learning_rate: float = 8e-3,
    on_epoch: Callable[[int], None] | None = None,
) -> SceneNet:
    """Train the network with binary cross-entropy.

    Images (N, 27, 27), target (N, C) in [0, 1], weight (N, C): 0 where a label does not count. The
    global random state of torch is put back afterwards; the network is in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SceneNet(target.shape[1], width=width)
    network.to(device)
    generator = torch.Generator().manual_seed(seed)
    data = [torch.from_numpy(array).to(device) for array in (images, target, weight)]
    steps = -(-len(images) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=epochs * steps
    )
    network.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator).to(device)
        for rows in torch.split(order, batch):
            x, y, w = (part[rows] for part in data)
            loss = nn.functional.binary_cross_entropy_with_logits(network(x), y, weight=w)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch + 1)
    return network.eval()


@torch.no_grad()
def extract_features(
    network: SceneNet, images: NDArray[np.float32], *, batch: int = 512
) -> NDArray[np.float32]:
    """Return the features of each scene: (N, 27, 27) → (N, D) float32."""
    device = network.head.weight.device
    blocks = [
        network.features(torch.from_numpy(images[start : start + batch]).to(device)).cpu()
        for start in range(0, len(images), batch)
    ]
    return torch.cat(blocks).numpy()


def fit_ceiling(
    weight: Tensor,
    bias: Tensor,
    features: NDArray[np.float32],
    present: NDArray[np.int8],
    *,
    penalty: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """What the same features would allow if no label were unknown.

    Minimises, for each category, the mean binary cross-entropy over all rows plus
    ``penalty / 2 * |w - weight|^2``, by L-BFGS.

    Args:
        weight: (C, D) of the head before.
        bias: (C,) of the head before.
        features: (N, D).
        present: (N, C) complete labels, 1 and 0.
        penalty: pull to the weights before.

    Returns:
        Weight (C, D) and bias (C,).
    """
    z, y = torch.from_numpy(features), torch.from_numpy(present).float()
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        fit = nn.functional.binary_cross_entropy_with_logits(z @ w.T + b, y) * y.shape[1]
        total: Tensor = fit + 0.5 * penalty * (w - weight).square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return w.detach(), b.detach()
