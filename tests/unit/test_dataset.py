"""What readers of data sets give back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catwise.data import Dataset
from catwise.errors import ConfigError, ShapeError
from catwise.labels import PartialLabels

LABELS = PartialLabels([[1, 0], [0, -1], [1, 1]], ids=["a", "b", "c"], groups=["p", "q", "p"])


def dataset() -> Dataset:
    return Dataset("mine", Path(), ["a.jpg", "b.jpg", "c.jpg"], LABELS, ["train", "test", "train"])


def test_a_split_keeps_what_belongs_together() -> None:
    """Paths, ids, labels and groups of a split stay in step."""
    part = dataset().split("train")
    assert part.paths.tolist() == ["a.jpg", "c.jpg"]
    assert part.labels.ids is not None
    assert part.labels.ids.tolist() == ["a", "c"]
    assert part.groups is not None
    assert part.groups.tolist() == ["p", "p"]
    assert np.array_equal(part.labels.codes, [[1, 0], [1, 1]])


def test_an_unknown_split_names_those_there_are() -> None:
    """The error lists the splits."""
    with pytest.raises(ConfigError, match="no split 'valid'") as caught:
        dataset().split("valid")
    assert "test or train" in str(caught.value)


def test_arrays_cannot_be_changed() -> None:
    """A data set is frozen."""
    with pytest.raises(ValueError, match="read-only"):
        dataset().paths[0] = "x"


def test_lengths_must_agree() -> None:
    """As many paths and splits as rows of labels."""
    with pytest.raises(ShapeError, match="paths of the data set 'mine'"):
        Dataset("mine", Path(), ["a.jpg"], LABELS, ["train"] * 3)
