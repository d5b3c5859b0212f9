"""SplitMix64: every bit of a number spread over all of them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

STEP: Final = np.uint64(0x9E3779B97F4A7C15)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit of 64 over all of them; one-to-one (SplitMix64, Steele et al., 2014)."""
    z = values + STEP
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    spread: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return spread
