"""What tells images and features from others with the same names: so that nothing old is taken.

Files are told by size and time of change, what is in memory by its bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catwise.features import BLOCK_ROWS
from catwise.features.manifest import manifest_text
from catwise.models.given import GivenImages, is_place
from catwise.models.loading import ImageRows
from catwise.models.sources import FolderImages, TarImages
from catwise.predicting.inputs import Images, Rows, row_block, store_of


def content_digest(given: Images | Rows) -> str:
    """A digest of what images or features are.

    >>> content_digest(torch.zeros(1, 1, 2, 2)) == content_digest(torch.ones(1, 1, 2, 2))
    False
    """
    total = hashlib.sha256()
    for piece in _pieces(given):
        total.update(len(piece).to_bytes(8, "little"))
        total.update(piece)
    return total.hexdigest()


def _pieces(given: Any) -> Iterator[bytes]:
    """Bytes that are others where the content is."""
    if isinstance(given, ImageRows):
        yield given.rows.tobytes()
        given = given.source
    if isinstance(given, Tensor):
        yield _raw(given)
    elif isinstance(given, FolderImages):
        yield from (_state(given.locate(row)[0]) for row in range(len(given)))
    elif isinstance(given, TarImages):
        yield from map(_state, given.paths)
    elif isinstance(given, GivenImages):
        yield from map(_of_image, given.images)
    elif hasattr(given, "values"):
        yield from _of_rows(given)
    else:  # a source of the user's: by its ids and origin, which stand elsewhere
        yield str(getattr(given, "origin", None)).encode()


def _of_image(image: Any) -> bytes:
    if is_place(image):
        return _state(image)
    if isinstance(image, (bytes, np.ndarray)):
        return bytes(image) if isinstance(image, bytes) else image.tobytes()
    return f"{image.size} {image.mode}".encode() + bytes(image.tobytes())


def _of_rows(rows: Rows) -> Iterator[bytes]:
    """Of features: a store tells by its manifest, which holds the digests of its files."""
    store = store_of(rows)
    if store is not None:
        yield manifest_text(store.manifest).encode()
        return
    for start in range(0, len(rows), BLOCK_ROWS):
        part = row_block(rows, start, min(start + BLOCK_ROWS, len(rows)))
        values = getattr(part, "values", part) if not isinstance(part, Tensor) else part
        yield _raw(values if isinstance(values, Tensor) else torch.as_tensor(np.array(values)))


def _raw(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _state(place: Any) -> bytes:
    """Path, size and time of change; a file that is not there has none."""
    path = Path(os.fspath(place))
    try:
        found = path.stat()
    except OSError:
        return f"{path}".encode()
    return f"{path} {found.st_size} {found.st_mtime_ns}".encode()
