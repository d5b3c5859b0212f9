"""The four states of a label, and the type of an array of them."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

NEGATIVE: Final = 0
"""Known: the category is not in the image."""
POSITIVE: Final = 1
"""Known: the category is in the image."""
UNKNOWN: Final = -1
"""Nobody has said."""
UNCERTAIN: Final = -2
"""Somebody has looked and could not say."""

CODE_NAMES: Final = {
    POSITIVE: "positive",
    NEGATIVE: "negative",
    UNKNOWN: "unknown",
    UNCERTAIN: "uncertain",
}

OTHERS: Final = {"unknown": UNKNOWN, "negative": NEGATIVE}
"""What it may mean that a source which lists labels does not list one."""

Codes: TypeAlias = NDArray[np.int8]
Rows: TypeAlias = NDArray[np.int64]


class LabelCounts(NamedTuple):
    """How many labels each category has; (C,) int64 each."""

    known: NDArray[np.int64]
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    uncertain: NDArray[np.int64]
