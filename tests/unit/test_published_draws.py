"""Labels dropped by published streams are those that the published code drops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from catwise import _names
from catwise.errors import ConfigError
from catwise.labels import DRAWS, PartialLabels, drop_uniform


def random_labels(seed: int = 0, shape: tuple[int, int] = (60, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-2, 2, shape)


def loop_over_lists(codes: np.ndarray, keep: float, seed: int) -> np.ndarray:
    """One number a label: of each row its positives, then negatives, then uncertain labels."""
    stream = np.random.Generator(np.random.PCG64(seed=seed))
    kept = np.full_like(codes, -1)
    for i, row in enumerate(codes.tolist()):
        for code in (1, 0, -2):
            for j in [j for j, here in enumerate(row) if here == code]:
                if stream.random() < keep:
                    kept[i, j] = code
    return kept


def masked_matrix(codes: np.ndarray, keep: float, seed: int) -> np.ndarray:
    """One number an entry of the whole matrix, from numpy's global generator."""
    state = np.random.get_state()  # noqa: NPY002 - the published code uses it
    np.random.seed(seed)  # noqa: NPY002
    stays = np.random.random(codes.shape) < keep  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    return np.where(stays, codes, -1)


REFERENCE = {"mlcpl": loop_over_lists, "matrix": masked_matrix}


@pytest.mark.parametrize("draws", list(REFERENCE))
@pytest.mark.parametrize("storage", ["dense", "columns"])
@pytest.mark.parametrize(("keep", "seed"), [(0.1, 526), (0.5, 0), (0.9, 0), (1.0, 3), (0.0, 3)])
def test_equal_to_the_published_loop(draws, storage, keep, seed, monkeypatch):
    """The same seed keeps the same labels as a plain loop, whatever the storage and blocks."""
    monkeypatch.setattr("catwise.labels.dropping.BLOCK_DRAWS", 20)
    codes = random_labels()
    found = drop_uniform(PartialLabels(codes, storage=storage), keep, seed, draws=draws)
    assert np.array_equal(found.codes, REFERENCE[draws](codes, keep, seed))


def test_the_series_is_nested():
    """What 10% keeps, 20% keeps too, and so on."""
    labels = PartialLabels(random_labels(1))
    for draws in DRAWS:
        kept = [drop_uniform(labels, i / 10, 526, draws=draws).codes != -1 for i in range(11)]
        assert all((less <= more).all() for less, more in itertools.pairwise(kept))


def test_pinned():
    """The first labels of the authors' seed, written down: a change breaks published masks."""
    complete = PartialLabels(np.tile([[1, 0, 1, 0]], (4, 1)))
    kept = drop_uniform(complete, 0.5, 526, draws="mlcpl").codes.tolist()
    assert kept == PINNED


PINNED = [[1, 0, 1, -1], [1, 0, 1, -1], [-1, 0, -1, -1], [1, 0, -1, -1]]


def test_wrong_draws():
    """Names and seeds that are not there."""
    labels = PartialLabels([[1]])
    with pytest.raises(ConfigError, match="draws cannot be") as caught:
        drop_uniform(labels, 0.5, draws="matrx")  # type: ignore[arg-type]
    assert "'matrix'" in str(caught.value)
    with pytest.raises(ConfigError, match="no such seed"):
        drop_uniform(labels, 0.5, -1, draws="matrix")
    assert tuple(DRAWS) == _names.DRAWS
