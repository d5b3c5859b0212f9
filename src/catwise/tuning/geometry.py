"""Coordinates in which heads are fitted, and the way back to weights and biases.

Features are centred on the fresh rows and divided by one number, the root of their total
variance, so that a penalty means the same on any backbone. Their own proportions stay: a
pull in these coordinates is stronger along directions in which the features hardly vary.
With many features only the leading principal directions are kept; a pulled fit hardly
moves along the rest, and the original weights there stay as they are.

Category-specific features (N, C, D) have coordinates of their own for every run of categories
that shares a vector, and rows that are projected when a block of categories asks for them.

Source of the decomposition: any text on principal components; here the eigenvectors of the
rows' covariance, accumulated in float64 block by block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catwise.features import CategoryFeatures, category_runs
from catwise.features.blocks import feature_shape, iterate_blocks
from catwise.tuning.products import product
from catwise.tuning.rows import OwnRows

if TYPE_CHECKING:
    from catwise.heads import Head

__all__ = ["MAX_DIRECTIONS", "Coordinates", "OwnCoordinates", "fit_coordinates", "read_rows"]

MAX_DIRECTIONS = 512
"""Principal directions that are kept at most."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """An affine map of features (D) to coordinates (k).

    Args:
        mean: (D,) float64, what is subtracted; zeros for a head without a bias.
        basis: (D, k) float64, orthogonal columns divided by the scale.
        variance: (k,) float64, of the fresh rows along the coordinates; its sum is at most 1.
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor

    def project(self, rows: Tensor) -> Tensor:
        """(n, D) features to (n, k) coordinates, in the features' dtype."""
        basis = self.basis.to(rows.device, rows.dtype)
        return product(rows - self.mean.to(rows.device, rows.dtype), basis)

    def fold_back(self, delta: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """A change in coordinates as the change of weights (C, D) and biases (C,), float64."""
        weight = delta.double() @ self.basis.T.to(delta.device)
        return weight, intercept.double() - weight @ self.mean.to(delta.device)

    def variance_of(self, block: slice) -> Tensor:
        """(k,) variance of the coordinates of a block of categories: the same for all."""
        del block
        return self.variance


@dataclass(frozen=True, eq=False)
class OwnCoordinates:
    """Coordinates of category-specific features.

    Args:
        runs: neighbouring categories, and the coordinates that they share.
    """

    runs: list[tuple[slice, Coordinates]]

    def of(self, block: slice) -> Coordinates:
        """The coordinates of a block of categories within one run."""
        return next(own for run, own in self.runs if run.start <= block.start < run.stop)

    def fold_back(self, delta: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """As `Coordinates.fold_back`."""
        parts = [own.fold_back(delta[run], intercept[run]) for run, own in self.runs]
        weights, biases = zip(*parts, strict=True)
        return torch.cat(weights), torch.cat(biases)

    def variance_of(self, block: slice) -> Tensor:
        """As `Coordinates.variance_of`."""
        return self.of(block).variance


def fit_coordinates(
    features: Any,
    *,
    n_categories: int = 1,
    centred: bool = True,
    device: torch.device | None = None,
) -> Coordinates | OwnCoordinates:
    """Mean, scale and leading directions of features, in one pass.

    Args:
        features: (N, D) fresh features of any kind, or category-specific ones.
        n_categories: C; counts for category-specific features.
        centred: False for a head without a bias, which cannot take up a mean.
        device: where to compute; the CPU by default.

    Returns:
        Coordinates of the full dimension, or of `MAX_DIRECTIONS`.
    """
    if isinstance(features, CategoryFeatures):
        made: dict[int, Coordinates] = {}
        runs = category_runs(features, n_categories)
        for _, part in runs:
            if part.group not in made:
                made[part.group] = _fit_coordinates(part, centred=centred, device=device)
        return OwnCoordinates([(run, made[part.group]) for run, part in runs])
    return _fit_coordinates(features, centred=centred, device=device)


def _fit_coordinates(features: Any, *, centred: bool, device: torch.device | None) -> Coordinates:
    n_rows, n_features = feature_shape(features)
    device = device or torch.device("cpu")
    total = torch.zeros(n_features, dtype=torch.float64, device=device)
    gram = torch.zeros(n_features, n_features, dtype=torch.float64, device=device)
    shift: Tensor | None = None
    for _, rows in iterate_blocks(features, dtype=torch.float32):
        block = rows.to(device)
        # Sums of differences to some row keep float32 products exact enough for any offset.
        shift = block.mean(0) if shift is None else shift
        block = block - shift
        total += block.sum(0, dtype=torch.float64)
        gram += product(block.T, block)
    origin = torch.zeros_like(total) if shift is None else shift.double()
    offset = total / max(n_rows, 1)
    covariance = gram / max(n_rows, 1) - torch.outer(offset, offset)
    mean = origin + offset
    spread = covariance.diagonal().sum()
    spread = torch.where(spread > 0, spread, 1.0)
    keep = min(n_features, MAX_DIRECTIONS)
    # The leading of many directions need no more digits than float32 has, at half the time.
    digits = torch.float64 if keep == n_features else torch.float32
    values, vectors = torch.linalg.eigh((covariance / spread).to(digits))
    values, vectors = values.double(), vectors.double()
    basis = vectors.flip(1)[:, :keep] / spread.sqrt()
    if not centred:
        mean = torch.zeros_like(mean)
    return Coordinates(mean, basis, values.flip(0)[:keep].clamp_min(0))


def read_rows(
    features: Any, head: Head, coordinates: Coordinates | OwnCoordinates, *, device: torch.device
) -> tuple[Tensor | OwnRows, Tensor]:
    """Coordinates and the stored head's logits of all rows, in one pass.

    Args:
        features: (N, D) features of any kind.
        head: the head, scored as stored.
        coordinates: where to project.
        device: where the results are.

    Returns:
        (N, k) float32 coordinates, or what projects those of a block of categories; and (C, N)
        float32 logits.
    """
    if isinstance(coordinates, OwnCoordinates):
        logits = head.logits(features).T.to(device, torch.float32).contiguous()
        return _own_rows(features, head.n_categories, coordinates, device), logits
    n_rows = feature_shape(features)[0]
    x = torch.empty(n_rows, coordinates.basis.shape[1], device=device)
    logits = torch.empty(head.n_categories, n_rows, device=device)
    weight = head.weight.to(device, head.compute_dtype)
    bias = None if head.bias is None else head.bias.to(device, head.compute_dtype)
    for start, rows in iterate_blocks(features, dtype=head.compute_dtype):
        block = rows.to(device)
        stop = start + len(block)
        scores = product(block, weight.T)
        logits[:, start:stop] = (scores if bias is None else scores + bias).T
        x[start:stop] = coordinates.project(block.float())
    return x, logits


def _own_rows(
    features: CategoryFeatures, n_categories: int, coordinates: OwnCoordinates, device: torch.device
) -> OwnRows:
    runs = category_runs(features, n_categories)
    n_rows, k = len(features), coordinates.runs[0][1].basis.shape[1]

    def project(number: int, index: Tensor | None) -> Tensor:
        run, part = runs[number]
        own = coordinates.of(run)
        rows = n_rows if index is None else len(index)
        x = torch.empty(rows, k, device=device)
        if index is not None:
            part = features.take_rows(index.cpu().numpy()).of(part.group)
        for start, block in iterate_blocks(part, dtype=torch.float32):
            x[start : start + len(block)] = own.project(block.to(device))
        return x

    return OwnRows([run for run, _ in runs], project, (n_rows, k), device)
