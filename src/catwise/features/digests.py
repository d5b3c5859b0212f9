"""Short fingerprints of rows, by which a head remembers what fitted it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._arrays import as_numpy
from catwise._splitmix import STEP, mix
from catwise.errors import ShapeError
from catwise.features.blocks import feature_shape, iterate_blocks
from catwise.features.ids import id_text

_CHUNK_BYTES: Final = 2**20
_HIGH: Final = np.uint64(0xFFFFFFFF00000000)


def row_digests(features: Any, ids: Any = None) -> NDArray[np.uint64]:
    """Digest each row by its id, or by its content where there are no ids.

    An id is hashed as UTF-8 text by BLAKE2b. Content is the row's float32 numbers (half precision
    widens exactly, float64 is rounded, −0 counts as 0): two multilinear hashes of their 32-bit
    words with fixed 64-bit keys, the upper 32 bits of each. Two different rows agree with a chance
    of 2⁻⁶⁴ for keys drawn at random. Memory stays bounded by one block.

    Args:
        features: (N, D) features of any kind; not read when there are ids.
        ids: (N,) texts or whole numbers, or None for `features.ids`.

    Returns:
        (N,) uint64, in the order of the rows. Equal on every machine and for every block size.

    Raises:
        ShapeError: If the ids are not one for each row.
        FeatureError: If the features are not an (N, D) array of real numbers.

    Source: D. Lemire and O. Kaser, "Strongly universal string hashing is fast", The Computer
    Journal 57(11), 2014.

    >>> row_digests(np.zeros((2, 1)), ids=["a.jpg", "b.jpg"])
    array([ 9918916968011810814, 16059500937911089302], dtype=uint64)
    >>> a, b = row_digests([[1.0, 2.0], [2.0, 1.0]])
    >>> bool(a == b)
    False
    """
    if ids is None:
        ids = getattr(features, "ids", None)
    if ids is not None:
        return _of_ids(ids, feature_shape(features)[0])
    return content_digests(features)


def content_digests(features: Any) -> NDArray[np.uint64]:
    """Digest each row of (N, D) features by its content, whatever its id; see `row_digests`."""
    n_rows, n_features = feature_shape(features)
    out = np.empty(n_rows, dtype=np.uint64)
    chunk = max(1, _CHUNK_BYTES // (8 * n_features + 8))
    for start, rows in iterate_blocks(features, dtype=torch.float32):
        numbers = rows.cpu().numpy()
        for first in range(0, len(numbers), chunk):
            part = numbers[first : first + chunk]
            out[start + first : start + first + len(part)] = _of_content(part)
    return out


def _of_ids(ids: Any, n_rows: int) -> NDArray[np.uint64]:
    items = as_numpy(ids, name="ids", error=ShapeError)
    if items.shape != (n_rows,):
        raise ShapeError(
            "ids do not fit the features.",
            found=f"ids of shape {items.shape} for {n_rows:,} rows",
            expected=f"shape ({n_rows},)",
        )
    hashes = (
        hashlib.blake2b(id_text(item).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for item in items.tolist()
    )
    return np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)


@lru_cache(maxsize=8)
def _keys(n_features: int) -> NDArray[np.uint64]:
    """(2, D + 1) fixed random keys, another part of the sequence of SplitMix64 for each D."""
    count = np.arange(2 * (n_features + 1), dtype=np.uint64)
    keys = mix((count + (np.uint64(n_features) << np.uint64(32))) * STEP)
    keys = keys.reshape(2, n_features + 1)
    keys.flags.writeable = False
    return keys


def _of_content(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """The hash of each row of a contiguous block."""
    words = (rows + np.float32(0)).view(np.uint32).astype(np.uint64)  # −0 + 0 is 0
    keys = _keys(rows.shape[1])
    upper = words @ keys[0, 1:] + keys[0, 0]
    lower = words @ keys[1, 1:] + keys[1, 0]
    result: NDArray[np.uint64] = (upper & _HIGH) | (lower >> np.uint64(32))
    return result
