"""Scenes of several handwritten digits each, and which digits each scene holds.

The digits are real: the 1,797 that scikit-learn bundles. They are split first, so
that no digit of a training scene is ever seen in a validation or a test scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catwise.errors import ConfigError

CATEGORIES = tuple(f"digit {digit}" for digit in range(10))
_DIGIT = 8
_CELL = 9
_GRID = 3
CANVAS = _CELL * _GRID
"""Height and width of a scene in pixels."""


@dataclass(frozen=True)
class SceneSet:
    """Scenes with their complete labels.

    Attributes:
        images: (N, 27, 27) float32.
        present: (N, 10) int8; 1 where the scene holds the digit, else 0.
        digits: (N, 9) int64; the index of the digit in each cell of the
            grid, -1 where the cell is empty.
    """

    images: NDArray[np.float32]
    present: NDArray[np.int8]
    digits: NDArray[np.int64]


def read_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Digits, (1797, 8, 8) float32 in [0, 1], and which digit each one is, (1797,) int64."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)


def split_digits(
    kinds: NDArray[np.int64], shares: tuple[float, ...], *, seed: int
) -> tuple[NDArray[np.int64], ...]:
    """Split digit indices into ascending, disjoint parts, each kind of digit in the same shares.

    >>> first, second = split_digits(np.array([0, 0, 1, 1]), (0.5, 0.5), seed=0)
    >>> sorted([*first.tolist(), *second.tolist()])
    [0, 1, 2, 3]
    """
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise ConfigError(
            "the shares of the digits do not make a split.",
            found=f"shares={shares}",
            expected="positive numbers that sum to 1",
        )
    generator = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in shares]
    for kind in np.unique(kinds):
        rows = generator.permutation(np.flatnonzero(kinds == kind))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def make_scenes(
    images: NDArray[np.float32],
    kinds: NDArray[np.int64],
    *,
    allowed: NDArray[np.int64],
    n_scenes: int,
    seed: int,
    n_digits: tuple[int, int] = (2, 5),
    noise: float = 0.15,
) -> SceneSet:
    """Paste digits into the cells of a 3 × 3 grid, with changing contrast and noise.

    Kinds of digits are not equally frequent: 0 is the commonest, 9 about four times rarer, so that
    categories differ in their prevalence. Images (M, 8, 8) in [0, 1], kinds (M,); allowed are the
    indices that these scenes may hold; n_digits the fewest and most in a scene, both inclusive.
    """
    generator = np.random.default_rng(seed)
    digits = _draw_digits(generator, kinds, allowed, n_scenes, n_digits)
    canvas = np.zeros((n_scenes, CANVAS, CANVAS), dtype=np.float32)
    for cell in range(_GRID * _GRID):
        rows = np.flatnonzero(digits[:, cell] >= 0)
        patches = images[digits[rows, cell]]
        contrast = generator.uniform(0.35, 1.0, len(rows)).astype(np.float32)
        jitter = generator.integers(0, _CELL - _DIGIT + 1, (2, len(rows)))
        top = cell // _GRID * _CELL + jitter[0]
        left = cell % _GRID * _CELL + jitter[1]
        reach = np.arange(_DIGIT)
        canvas[
            rows[:, None, None],
            (top[:, None] + reach)[:, :, None],
            (left[:, None] + reach)[:, None, :],
        ] = patches * contrast[:, None, None]
    canvas += noise * generator.standard_normal(canvas.shape, dtype=np.float32)
    present = np.zeros((n_scenes, len(CATEGORIES)), dtype=np.int8)
    rows, cells = np.nonzero(digits >= 0)
    present[rows, kinds[digits[rows, cells]]] = 1
    return SceneSet(canvas, present, digits)


def _draw_digits(
    generator: np.random.Generator,
    kinds: NDArray[np.int64],
    allowed: NDArray[np.int64],
    n_scenes: int,
    n_digits: tuple[int, int],
) -> NDArray[np.int64]:
    """Choose the digit of each cell of each scene; -1 for an empty cell."""
    frequency = 1.0 / (1.0 + np.arange(len(CATEGORIES)) / 3.0)
    kind_of_cell = generator.choice(
        len(CATEGORIES), size=(n_scenes, _GRID * _GRID), p=frequency / frequency.sum()
    )
    digits = np.full((n_scenes, _GRID * _GRID), -1, dtype=np.int64)
    for kind in range(len(CATEGORIES)):
        pool = allowed[kinds[allowed] == kind]
        mask = kind_of_cell == kind
        digits[mask] = generator.choice(pool, size=int(mask.sum()))
    order = generator.random((n_scenes, _GRID * _GRID)).argsort(axis=1)
    filled = generator.integers(n_digits[0], n_digits[1] + 1, n_scenes)
    digits[order >= filled[:, None]] = -1
    return digits
