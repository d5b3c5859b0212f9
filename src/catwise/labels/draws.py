"""Random draws keyed by seed, purpose, category name and row.

A draw depends on nothing else: not on the order of categories or rows (where rows have ids), on
the storage, or on how the work is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from catwise._splitmix import mix
from catwise.errors import ConfigError
from catwise.labels.core import PartialLabels

CHUNK_ROWS: Final = 1 << 16

U64 = NDArray[np.uint64]


def row_keys(labels: PartialLabels) -> U64:
    """(N,) uint64: from the ids, or from the positions of rows that have none."""
    if labels.ids is None:
        return mix(np.arange(labels.n_rows, dtype=np.uint64))
    return text_keys(labels.ids)


def text_keys(texts: NDArray[np.str_]) -> U64:
    """(N,) uint64 hashes of texts, whatever the width of the array."""
    keys = np.zeros(len(texts), dtype=np.uint64)
    n_pairs = max((texts.dtype.itemsize // 4 + 1) // 2, 1)
    padded = np.ascontiguousarray(texts, dtype=f"<U{2 * n_pairs}")
    lengths = np.char.str_len(padded)
    pairs = padded.view("<u8").reshape(len(texts), n_pairs)  # two characters in each number
    for start in range(0, len(texts), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        key = mix(lengths[rows].astype(np.uint64))
        for i in range(n_pairs):
            key = np.where(2 * i < lengths[rows], mix(key ^ pairs[rows, i]), key)
        keys[rows] = key
    return keys


def category_keys(seed: int, purpose: str, names: Sequence[str]) -> U64:
    """(C,) uint64 keys of categories for one purpose."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ConfigError("a seed must be a whole number.", found=repr(seed))
    keys = [_digest(f"{int(seed)}\0{purpose}\0{name}") for name in names]
    return np.array(keys, dtype=np.uint64)


def _digest(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def draws(rows: U64, category: U64 | np.uint64) -> U64:
    """One uint64 for each row key, for one category key or one for each row."""
    return mix(rows ^ category)


def uniform(values: U64) -> NDArray[np.float64]:
    """Draws as float64 in [0, 1), multiples of 2^-53."""
    result: NDArray[Any] = (values >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return result
