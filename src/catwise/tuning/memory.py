"""What tuning with the preset `default` holds at most, and blocks of categories that fit a bound.

Counted is what is held beyond what the process held when it began: interpreter, libraries and
labels are not. Features are read block by block, so that rows in coordinates, the original logits
and tables of heads stay, whatever the bound; what a block of categories needs grows with its rows
times categories, and that is what a bound makes smaller.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from catwise.errors import ConfigError
from catwise.features.blocks import BLOCK_ROWS, feature_shape
from catwise.features.by_category import CategoryFeatures
from catwise.tuning.inputs import LabelledSource, TuningInputs
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.rows.coordinates import MAX_DIRECTIONS
from catwise.tuning.rows.tuning_rows import BLOCK_ENTRIES, SMALL_ENTRIES

_FLOAT: Final = 4
#: Arrays of rows times categories that are alive at once in the fits of a block: targets, weights,
#: offsets, places, logits and curvatures of three points of the path, slopes, dense products.
_BLOCK_ARRAYS: Final = 20
#: Arrays of rows times all categories while heads are judged.
_JUDGING_ARRAYS: Final = 6
#: What libraries and the allocator keep: workspaces of LAPACK and oneDNN, freed but not returned.
_LIBRARIES: Final = 128 << 20
_READING: Final = 4  # copies of a block of features: as stored, widened, centred, projected


class Need(NamedTuple):
    """Bytes at most: whatever the blocks are, and of blocks of one category."""

    fixed: int
    rows: int  # of all sources: entries of one category
    n_folds: int

    def of(self, entries: int) -> int:
        """With blocks of so many entries; small ones hold all folds at once."""
        block = max(entries, min(self.n_folds * entries, SMALL_ENTRIES))
        return self.fixed + _BLOCK_ARRAYS * _FLOAT * block

    @property
    def least(self) -> int:
        """With blocks of one category."""
        return self.of(self.rows)


def need_of(inputs: TuningInputs, config: DefaultConfig, test: LabelledSource | None) -> Need:
    """What tuning these inputs takes."""
    judging, n_categories = inputs.judging, len(inputs.categories)
    n_features = _width(judging)
    k = min(n_features, MAX_DIRECTIONS)
    n, n_train = judging.labels.n_rows, 0 if inputs.valid is None else inputs.train.labels.n_rows
    own = n_categories * (_FLOAT * (1 if judging.target is None else 3) + 1)
    rows = (n + 2 * n_train) * (_FLOAT * k + own) + n * _FLOAT * k  # known rows, and a fold's rest
    n_penalties, n_folds = len(config.penalties), config.n_folds
    n_heads = len(config.anchor_penalties) + len(config.negative_penalties)
    tables = n_penalties * n_folds + n_folds * min(n_folds + 1, n_penalties) + 2 * n_heads + 8
    longest = int(judging.labels.counts().known.max(initial=0))
    held = (
        tables * n_categories * k
        + (n_penalties + 3) * n_categories * longest
        + _JUDGING_ARRAYS * n_categories * (n + (0 if test is None else test.labels.n_rows))
        + 2 * (n_folds + 3) * n_categories * n_features
    )
    reading = _READING * _FLOAT * BLOCK_ROWS * n_features + 6 * _FLOAT * n_features**2
    return Need(rows + max(_FLOAT * held, reading) + _LIBRARIES, n + n_train, n_folds)


def _width(source: LabelledSource) -> int:
    features = source.features
    n_features = feature_shape(features)[1]
    return n_features // features.n_groups if isinstance(features, CategoryFeatures) else n_features


def bounded(
    inputs: TuningInputs, config: object, test: LabelledSource | None, memory: int | None
) -> TuningInputs:
    """The inputs with blocks of categories that keep to a bound.

    Raises:
        ConfigError: If the preset knows no blocks, or not even one category at a time fits.
    """
    if memory is None:
        return inputs
    shared = not isinstance(inputs.judging.features, CategoryFeatures)
    if not isinstance(config, DefaultConfig) or not shared:
        raise ConfigError(
            "memory is bounded for the preset 'default' alone, on one vector for each image.",
            remedy="leave the bound out",
        )
    need = need_of(inputs, config, test)
    if memory < need.least:
        raise ConfigError(
            "tuning does not fit into that much memory.",
            found=f"memory={memory}",
            expected=f"at least memory={int(np.ceil(need.least / 2**20))}MiB, beside what the "
            "process holds when it begins",
            remedy="allow more; fewer categories or rows at a time take less",
        )
    most = max(1, min(len(inputs.categories), BLOCK_ENTRIES // max(need.rows, 1)))
    fitting = [width for width in range(1, most + 1) if need.of(width * need.rows) <= memory]
    return replace(inputs, entries=max(fitting) * need.rows)
