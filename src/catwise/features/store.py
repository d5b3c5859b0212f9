"""Feature stores: opened in no time, read block by block from mapped files, or from afar."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from catwise._limits import MAX_JSON
from catwise._text import some
from catwise.errors import FeatureStoreError, reason_of
from catwise.features.arrays import widen_bfloat16
from catwise.features.blocks import forget
from catwise.features.id_files import ids_array
from catwise.features.ids import row_index
from catwise.features.manifest import (
    DATA_START,
    FIRST_IDS,
    MANIFEST_FILE,
    STORE_DTYPES,
    Manifest,
    StoredFile,
    parse_manifest,
    shard_header,
)
from catwise.features.places import LocalPlace, Place, open_place

_MAX_MAPPED: Final = 64
_REMEDY: Final = "copy the store again, or extract the features again"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FeatureStore:
    """Features on disk. Opened by :func:`open_store`, written by `write_store`. Immutable.

    Attributes:
        path: the folder, absolute; an URL where the store is elsewhere.
        digest: SHA-256 of the manifest, which holds the checksums of all files: equal digests mean
            equal features, ids and origin.
        manifest: what its files are.
    """

    path: Path | str
    digest: str
    manifest: Manifest
    _place: Place
    _starts: tuple[int, ...]
    _mapped: dict[int, Any] = field(default_factory=dict)
    _latest: list[int] = field(default_factory=list)
    _ids: list[NDArray[np.str_]] = field(default_factory=list)

    def __repr__(self) -> str:
        n_rows, n_features = self.shape
        return (
            f"FeatureStore(n_rows={n_rows}, n_features={n_features}, dtype={self.dtype}, "
            f"ids={bool(self.manifest.ids)}, path='{self.path}')"
        )

    def __len__(self) -> int:
        return self.manifest.n_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (str(self.path),)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.manifest.n_rows, self.manifest.n_features

    @property
    def dtype(self) -> str:
        """How the numbers are stored: float16, bfloat16 or float32."""
        return self.manifest.dtype

    @property
    def _stored(self) -> str:
        return STORE_DTYPES[self.dtype].numpy

    @property
    def origin(self) -> dict[str, Any]:
        """Where the features come from, as their writer said; a new copy each time."""
        value: dict[str, Any] = json.loads(self.manifest.origin)
        return value

    @property
    def shards(self) -> tuple[StoredFile, ...]:
        """The files of rows, with their numbers of rows, sizes and checksums."""
        return self.manifest.shards

    @property
    def ids(self) -> NDArray[np.str_] | None:
        """(N,) texts, read-only, or None; read when asked for. FeatureStoreError if damaged."""
        if not self.manifest.ids:
            return None
        if not self._ids:
            raw = self.id_files()
            try:
                self._ids.append(ids_array(raw, len(self)))
            except ValueError as error:
                raise _damaged(self.path, [f"the ids: {error}"]) from error
        return self._ids[0]

    def id_files(self) -> list[bytes]:
        """The bytes of the files of ids, compared with their checksums; else FeatureStoreError."""
        found, problems = [], []
        for part in self.manifest.ids:
            try:
                raw = self._place.read(part.file, part.bytes)
            except (OSError, ValueError) as error:
                problems.append(f"{part.file}: {reason_of(error)}")
                continue
            if hashlib.sha256(raw).hexdigest() != part.sha256:
                problems.append(f"{part.file} differs from its checksum")
            found.append(raw)
        if problems:
            raise _damaged(self.path, problems)
        return found

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop, as slices count; no others are read. FeatureStoreError if that fails.

        (stop − start, D): float16 or float32 as stored, bfloat16 widened to float32. A read-only
        view of the mapped file where the rows lie in one shard.
        """
        first, last, _ = slice(start, stop).indices(len(self))
        if first >= last:
            return self._as_numbers(np.empty((0, self.shape[1]), self._stored))
        parts = []
        at = bisect_right(self._starts, first) - 1
        while first < last:
            begin, end = self._starts[at], self._starts[at] + self.shards[at].rows
            parts.append(self._take(at, slice(first - begin, min(last, end) - begin)))
            first, at = end, at + 1
        return self._as_numbers(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def rows(self, index: Any) -> NDArray[Any]:
        """Copies of the rows with these numbers, in that order; no others are read.

        The known rows of a category are ``store.rows(labels.known(category)[0])``. The index holds
        (K,) whole numbers, negative ones from the end, or an (N,) mask; there come (K, D), as for
        :meth:`block`. IndexError if there is no such row, FeatureStoreError if a file is gone.
        """
        wanted = np.arange(len(self))[row_index(index)]
        out = np.empty((len(wanted), self.shape[1]), self._stored)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for at in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == at)
            out[here] = self._take(at, wanted[here] - self._starts[at])
        return self._as_numbers(out)

    def _as_numbers(self, stored: NDArray[Any]) -> NDArray[Any]:
        return widen_bfloat16(stored) if self.dtype == "bfloat16" else stored

    def _take(self, at: int, key: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Rows of one shard; few shards stay mapped, and only the last one read holds memory."""
        shard = self.shards[at]
        try:
            if (latest := self._latest[:]) not in ([], [at]):
                forget(self._mapped.get(latest[0]))
            self._latest[:] = [at]
            rows = self._mapped.get(at)
            if rows is None:
                shape = (shard.rows, self.shape[1])
                rows = self._place.rows(shard.file, self._stored, shape)
                while len(self._mapped) >= _MAX_MAPPED:
                    self._mapped.pop(next(iter(self._mapped)), None)
                self._mapped[at] = rows
            taken: NDArray[Any] = rows[key]
        except (OSError, ValueError) as error:
            raise _damaged(self.path, [f"{shard.file}: {reason_of(error)}"]) from error
        return taken

    def verify(self) -> None:
        """Compare every file with its checksum; FeatureStoreError names those that differ."""
        rows = {
            shard.file: f" (rows {start:,} to {start + shard.rows - 1:,})"
            for start, shard in zip(self._starts, self.shards, strict=True)
        }
        problems = [
            f"{part.file}{rows.get(part.file, '')} differs from its checksum"
            for part in self.manifest.files
            if not _is_whole(self._place, part.file, part.sha256)
        ]
        if problems:
            raise _damaged(self.path, problems)


def open_store(path: str | os.PathLike[str], *, verify: bool = False) -> FeatureStore:
    """Open a feature store; no feature is read.

    Every file's presence, header and size are checked: a shard that was cut short is found here.
    At an URL, nothing but the rows that are asked for is fetched, each time that they are asked
    for; ``"filecache::s3://…"`` is fsspec's way to keep what was fetched.

    Args:
        path: the folder, or an URL that fsspec opens, such as ``"s3://bucket/train"``.
        verify: also read every file and compare it with its checksum.

    Raises:
        FeatureStoreError: If it is not a store, or files are missing or damaged; all are named.
        MissingExtraError: If what an URL needs is not installed.

    >>> import tempfile
    >>> from catwise.features import write_store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_store(f"{folder}/train", np.eye(3), ids=["a", "b", "c"], dtype="float16")
    ...     store = open_store(f"{folder}/train", verify=True)
    ...     store.rows([2, 0])
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float16)
    """
    place = open_place(path)
    try:
        raw = place.read(MANIFEST_FILE, MAX_JSON, "bytes of JSON")
    except ValueError as error:
        raise FeatureStoreError(
            f"cannot read the manifest of '{path}'.",
            found=str(error),
            expected="the manifest.json that write_store wrote",
            remedy=_REMEDY,
        ) from error
    except OSError as error:
        folder = isinstance(place, LocalPlace) and place.folder.is_dir()
        raise FeatureStoreError(
            f"'{path}' is not a feature store.",
            found="it has no manifest.json" if folder else reason_of(error),
            expected="a folder that write_store wrote",
            remedy="check the path",
        ) from error
    manifest = parse_manifest(f"{place}/{MANIFEST_FILE}", raw)
    starts = tuple(accumulate((shard.rows for shard in manifest.shards[:-1]), initial=0))
    shown = place.folder if isinstance(place, LocalPlace) else str(place)
    if problems := _problems(place, manifest):
        raise _damaged(shown, problems)
    store = FeatureStore(shown, hashlib.sha256(raw).hexdigest(), manifest, place, starts)
    if verify:
        store.verify()
    return store


def _problems(place: Place, manifest: Manifest) -> list[str]:
    """All that is wrong with the files, as their sizes and headers tell."""
    found = []
    try:
        heads = place.heads([part.file for part in manifest.files])
    except OSError as error:
        return [reason_of(error)]
    for part, head in zip(manifest.files, heads, strict=True):
        if isinstance(head, OSError):
            found.append(f"{part.file}: {reason_of(head)}")
        elif head[0] < part.bytes:
            found.append(f"{part.file} is cut short: {head[0]:,} bytes, {part.bytes:,} expected")
        elif head[0] > part.bytes or not _is_described(part, head[1], manifest):
            found.append(f"{part.file} is not the file that the manifest describes")
    if not manifest.ids and not isinstance(place.heads([FIRST_IDS])[0], OSError):
        found.append(f"{FIRST_IDS} is there, and the manifest names no ids")
    return found


def _is_described(part: StoredFile, head: bytes, manifest: Manifest) -> bool:
    """Whether a file's size and first bytes are those of its rows."""
    if part in manifest.ids:
        return True
    item = STORE_DTYPES[manifest.dtype].itemsize
    size = DATA_START + part.rows * manifest.n_features * item
    expected = shard_header(manifest.dtype, part.rows, manifest.n_features, item)
    return (head, part.bytes) == (expected, size)


def _is_whole(place: Place, name: str, sha256: str) -> bool:
    try:
        return place.sha256(name) == sha256
    except OSError:
        return False


def _damaged(path: object, problems: list[str]) -> FeatureStoreError:
    return FeatureStoreError(
        f"the feature store '{path}' is damaged.",
        found=some(problems, 3, sep="; ", noun="files"),
        remedy=_REMEDY,
    )
