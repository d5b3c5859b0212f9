"""The files of a store's ids: written as the ids come, read without a Python object for each."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from catwise._limits import MAX_ID, check_at_most
from catwise.errors import ShapeError
from catwise.features.ids import check_distinct
from catwise.features.manifest import StoredFile

_CHUNK: Final = 2**22


class IdsWriter:
    """Ids into a file, one on a line, after those of `before`; memory holds a hash of each."""

    def __init__(self, path: Path, before: Callable[[], Iterable[bytes]] = tuple) -> None:
        self._path = path
        self._before = before
        self._stream = path.open("w+b")
        self._total = hashlib.sha256()
        self._bytes = 0
        self._hashes = array("q")
        for raw in before():
            for texts in _lines(raw):
                self._hashes.extend(map(hash, texts))
        self._n_before = len(self._hashes)

    def __len__(self) -> int:
        return len(self._hashes) - self._n_before

    def add(self, texts: Sequence[str]) -> None:
        """Write ids, each of which is one that :func:`as_ids` lets pass."""
        raw = "".join(f"{text}\n" for text in texts).encode("utf-8")
        self._stream.write(raw)
        self._total.update(raw)
        self._bytes += len(raw)
        self._hashes.extend(map(hash, texts))

    def finish(self, n_rows: int) -> StoredFile:
        """Close the file."""
        if len(self) != n_rows:
            raise ShapeError(
                "ids must be one for each row.",
                found=f"{len(self):,} ids, {n_rows:,} rows",
                remedy="give ids with every block, or with none",
            )
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        check_distinct(hashes, self._texts, "ids")
        self.close()
        return StoredFile(self._path.name, n_rows, self._bytes, self._total.hexdigest())

    def _texts(self, rows: NDArray[np.int64]) -> list[str]:
        """The ids of some rows, those from before first."""
        self._stream.seek(0)
        found: list[str] = []
        first = 0
        for raw in (*self._before(), self._stream.read()):
            for texts in _lines(raw):
                here = rows[(rows >= first) & (rows < first + len(texts))] - first
                found += [texts[row] for row in here.tolist()]
                first += len(texts)
        return found

    def close(self) -> None:
        """Close the file, finished or not."""
        self._stream.close()


def _lines(raw: bytes) -> Iterator[list[str]]:
    """The lines of a file of ids, some at a time."""
    start = 0
    while start < len(raw):
        stop = len(raw) if start + _CHUNK >= len(raw) else raw.rindex(b"\n", start, start + _CHUNK)
        stop = min(stop + 1, len(raw))
        yield raw[start:stop].decode("utf-8").split("\n")[:-1]
        start = stop


def ids_array(files: Sequence[bytes], n_rows: int) -> NDArray[np.str_]:
    r"""Make one array of the ids in files, whose bytes are given in order."""
    width = max((len(text) for raw in files for texts in _lines(raw) for text in texts), default=1)
    check_at_most(width, MAX_ID, "characters in an id")
    ids = np.empty(n_rows, dtype=f"<U{max(width, 1)}")
    first = 0
    for raw in files:
        for texts in _lines(raw):
            ids[first : first + len(texts)] = texts
            first += len(texts)
    if first != n_rows:
        raise ValueError(f"there are {first:,} ids for {n_rows:,} rows")
    ids.flags.writeable = False
    return ids
