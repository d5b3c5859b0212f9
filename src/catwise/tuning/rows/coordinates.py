"""Coordinates in which heads are fitted, and the way back to weights and biases.

Features are centred on the held-out rows and divided by one number, the root of their total
variance, so that a penalty means the same on any backbone. A power of two near that number is
divided out first, which is exact: features times any power of two have the same coordinates, to
the last bit, as long as float32 holds them. Their own proportions stay: a
pull in these coordinates is stronger along directions in which the features hardly vary.
With many features only the leading principal directions are kept; a pulled fit hardly
moves along the rest, and the original weights there stay as they are.

Category-specific features (N, C, D) have coordinates of their own for every run of categories
that shares a vector, and rows that are projected when a block of categories asks for them.

Source of the decomposition: any text on principal components; here the eigenvectors of the
rows' covariance, accumulated in float64 block by block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from catwise.features import CategoryFeatures, category_runs
from catwise.features.blocks import feature_shape, iterate_blocks
from catwise.heads import Head
from catwise.tuning.rows.products import product
from catwise.tuning.rows.tuning_rows import OwnRows

MAX_DIRECTIONS = 512
"""Principal directions that are kept at most."""

_FEW_ROWS, _HEAVY = 20, 0.5
_EXPONENTS = 126  # of two: float32 holds both powers with all their digits


@dataclass(frozen=True, eq=False)
class Coordinates:
    """An affine map of features (D) to coordinates (k).

    Args:
        mean: (D,) float64, what is subtracted of the features divided by the unit; zeros for a
            head without a bias.
        basis: (D, k) float64, orthogonal columns divided by the scale in units.
        variance: (k,) float64, of the held-out rows along the coordinates; its sum is at most 1.
        unit: a power of two.
        heaviest: the held-out row that lies farthest from the others, and its share of their total
            variance.
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor
    unit: float = 1.0
    heaviest: tuple[int, float] = (0, 0.0)

    def project(self, rows: Tensor) -> Tensor:
        """(n, D) features to (n, k) coordinates, in the features' dtype."""
        basis = self.basis.to(rows.device, rows.dtype)
        mean = self.mean.to(rows.device, rows.dtype)
        return product(torch.add(-mean, rows, alpha=1 / self.unit), basis)

    def fold_back(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """A change in coordinates as the change of weights (C, D) and biases (C,), float64."""
        weight = delta.double() @ self.basis.T.to(delta.device)
        return weight / self.unit, -weight @ self.mean.to(delta.device)

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

    @property
    def heaviest(self) -> tuple[int, float]:
        """The largest of all runs."""
        return max((own.heaviest for _, own in self.runs), key=lambda found: found[1])

    def of(self, block: slice) -> Coordinates:
        """The coordinates of a block of categories within one run."""
        return next(own for run, own in self.runs if run.start <= block.start < run.stop)

    def fold_back(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """As `Coordinates.fold_back`."""
        parts = [own.fold_back(delta[run]) for run, own in self.runs]
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
    """Mean, scale and leading directions of (N, D) held-out features, in one pass.

    At most `MAX_DIRECTIONS`. C counts for category-specific features. `centred` is False for a head
    without a bias, which cannot take up a mean.
    """
    if isinstance(features, CategoryFeatures):
        made: dict[int, Coordinates] = {}
        runs = category_runs(features, n_categories)
        for _, part in runs:
            if part.group not in made:
                made[part.group] = _fit_coordinates(part, centred=centred, device=device)
        return OwnCoordinates([(run, made[part.group]) for run, part in runs])
    return _fit_coordinates(features, centred=centred, device=device)


def outlying_rows(coordinates: Coordinates | OwnCoordinates, n_rows: int) -> list[str]:
    """A sentence where one held-out row holds more than half of the features' variance.

    Everything is divided by that variance, so such a row makes the others small, and the pull to
    the original weights strong.
    """
    row, share = coordinates.heaviest
    if n_rows < _FEW_ROWS or share <= _HEAVY:
        return []
    note = (
        f"Row {row:,} of the features that were fitted on holds {min(share, 1):.0%} of their "
        "variance, so the heads hardly moved: extract that image again, or leave it out."
    )
    return [note]


def _fit_coordinates(features: Any, *, centred: bool, device: torch.device | None) -> Coordinates:
    n_rows, n_features = feature_shape(features)
    origin, total, covariance, (row, square) = _Moments.of(features, device or torch.device("cpu"))
    offset = total / max(n_rows, 1)
    covariance.div_(max(n_rows, 1)).addr_(offset, offset, alpha=-1)
    mean = origin + offset
    spread = covariance.diagonal().sum()
    spread = torch.where(spread > 0, spread, 1.0)
    # Within what float32 holds, with its inverse.
    unit = 2.0 ** min(max(math.frexp(math.sqrt(float(spread)))[1], -_EXPONENTS), _EXPONENTS)
    keep = min(n_features, MAX_DIRECTIONS)
    # The leading of many directions need no more digits than float32 has, at half the time.
    digits = torch.float64 if keep == n_features else torch.float32
    covariance = covariance.div_(spread).to(digits)
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors[:, -keep:].double().flip(1).div_(spread.sqrt() / unit)
    values = values[-keep:].double().flip(0).clamp_min(0)
    mean = mean / unit if centred else torch.zeros_like(mean)
    share = square / (max(n_rows, 1) * float(spread))
    return Coordinates(mean, basis, values, unit, (row, share))


class _Moments(NamedTuple):
    """Sums over the rows of their differences to an origin, of these products, and the farthest.

    Sums are float64, which holds the square of any float32; products are float32, of values
    divided by the power of two that bounds their block.
    """

    origin: Tensor  # (D,) the mean of the first block
    total: Tensor  # (D,)
    gram: Tensor  # (D, D)
    farthest: tuple[int, float]  # a row, and its squared distance

    @classmethod
    def of(cls, features: Any, device: torch.device) -> _Moments:
        """Over all rows, in one pass."""
        n_features = feature_shape(features)[1]
        empty = torch.zeros(n_features, dtype=torch.float64, device=device)
        found = cls(empty, empty.clone(), empty.new_zeros(n_features, n_features), (0, 0.0))
        for start, rows in iterate_blocks(features, dtype=torch.float32):
            found = found._with(start, rows.to(device))
        return found

    def _with(self, start: int, rows: Tensor) -> _Moments:
        """With another block; sums grow in place."""
        # Differences to some row keep float32 products exact enough for any offset.
        origin = self.origin
        if start == 0:
            unit = _unit_of(rows)
            origin = (rows / unit).mean(0).double() * unit
        unit = max(_unit_of(rows), _unit_of(origin))
        block = torch.add(-(origin / unit).float(), rows, alpha=1 / unit)
        self.total.add_(block.sum(0, dtype=torch.float64), alpha=unit)
        self.gram.add_(_gram(block), alpha=unit**2)
        squares = block.square().sum(1)
        row = int(squares.argmax())
        here = start + row, float(squares[row]) * unit**2
        farthest = max(self.farthest, here, key=lambda found: found[1])
        return self._replace(origin=origin, farthest=farthest)


def _gram(block: Tensor) -> Tensor:
    """(D, D) products of the columns; of two halves with one another once."""
    left, right = block.tensor_split(2, dim=1)
    n, gram = left.shape[1], block.new_empty(block.shape[1], block.shape[1])
    gram[:n, :n], gram[n:, n:] = product(left.T, left), product(right.T, right)
    gram[:n, n:] = product(left.T, right)
    gram[n:, :n] = gram[:n, n:].T
    return gram


def _unit_of(values: Tensor) -> float:
    """The power of two just above the largest magnitude, within what float32 holds."""
    exponent = math.frexp(float(values.abs().max()))[1]
    return 2.0 ** min(max(exponent, -_EXPONENTS), _EXPONENTS)


def read_rows(
    features: Any, head: Head, coordinates: Coordinates | OwnCoordinates, *, device: torch.device
) -> tuple[Tensor | OwnRows, Tensor]:
    """Coordinates (N, k) of (N, D) features and the stored head's logits (C, N), in one pass.

    Both float32; for category-specific features, what projects those of a block of categories.
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
    project = _Projection(features, runs, coordinates, k, device)
    return OwnRows([run for run, _ in runs], project, (n_rows, k), device)


@dataclass(frozen=True, eq=False)
class _Projection:
    """Coordinates of the rows of a run of categories, all or some."""

    features: CategoryFeatures
    runs: list[Any]
    coordinates: OwnCoordinates
    k: int
    device: torch.device

    def __call__(self, number: int, index: Tensor | None) -> Tensor:
        """(n, k) of the run of that number."""
        run, part = self.runs[number]
        own = self.coordinates.of(run)
        rows = len(self.features) if index is None else len(index)
        x = torch.empty(rows, self.k, device=self.device)
        if index is not None:
            part = self.features.take_rows(index.cpu().numpy()).of(part.group)
        for start, block in iterate_blocks(part, dtype=torch.float32):
            x[start : start + len(block)] = own.project(block.to(self.device))
        return x
