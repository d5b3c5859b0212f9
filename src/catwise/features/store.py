"""Feature stores on disk: opened in no time, read block by block from mapped files."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from catwise._safetensors import read_layout
from catwise.errors import FeatureStoreError
from catwise.features.arrays import widen_bfloat16
from catwise.features.ids import as_ids, row_index
from catwise.features.manifest import (
    MANIFEST_FILE,
    SAFETENSORS_NAMES,
    Manifest,
    ShardFile,
    file_sha256,
    parse_manifest,
)

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

__all__ = ["FeatureStore", "open_store"]

_MAX_MAPPED: Final = 64
_STORED: Final = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}
_REMEDY: Final = "copy the store again, or extract the features again"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FeatureStore:
    """Features on disk. Opened by :func:`open_store`, written by :func:`write_store`. Immutable.

    Attributes:
        path: the folder, absolute.
        digest: SHA-256 of the manifest, which holds the checksums of all files: equal digests mean
            equal features, ids and origin.
    """

    path: Path
    digest: str
    _manifest: Manifest
    _starts: tuple[int, ...]
    _data_starts: tuple[int, ...]
    _mapped: dict[int, NDArray[Any]] = field(default_factory=dict)
    _ids: list[NDArray[np.str_]] = field(default_factory=list)

    def __repr__(self) -> str:
        n_rows, n_features = self.shape
        return (
            f"FeatureStore(n_rows={n_rows}, n_features={n_features}, dtype={self.dtype}, "
            f"ids={self._manifest.ids is not None}, path='{self.path}')"
        )

    def __len__(self) -> int:
        return self._manifest.n_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (str(self.path),)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self._manifest.n_rows, self._manifest.n_features

    @property
    def dtype(self) -> str:
        """How the numbers are stored: float16, bfloat16 or float32."""
        return self._manifest.dtype

    @property
    def origin(self) -> dict[str, Any]:
        """Where the features come from, as their writer said; a fresh copy each time."""
        value: dict[str, Any] = json.loads(self._manifest.origin)
        return value

    @property
    def shards(self) -> tuple[ShardFile, ...]:
        """The files of rows, with their numbers of rows, sizes and checksums."""
        return self._manifest.shards

    @property
    def ids(self) -> NDArray[np.str_] | None:
        """(N,) texts, read-only, or None. Read when first asked for.

        Raises:
            FeatureStoreError: If the file of ids is not the one that was written.
        """
        if self._manifest.ids is None:
            return None
        if not self._ids:
            self._ids.append(self._read_ids())
        return self._ids[0]

    def _read_ids(self) -> NDArray[np.str_]:
        assert self._manifest.ids is not None  # noqa: S101  # asked by `ids`
        path = self.path / self._manifest.ids.file
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise _damaged(self.path, [f"{path.name}: {error.strerror}"]) from error
        if hashlib.sha256(raw).hexdigest() != self._manifest.ids.sha256:
            raise _damaged(self.path, [f"{path.name} differs from its checksum"])
        return as_ids(raw.decode("utf-8").split("\n")[:-1], len(self))

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop, as slices count.

        Returns:
            (stop − start, D): float16 or float32 as stored, bfloat16 widened to float32. A
            read-only view of the mapped file where the rows lie in one shard.
        """
        first, last, _ = slice(start, stop).indices(len(self))
        if first >= last:
            return self._as_numbers(np.empty((0, self.shape[1]), _STORED[self.dtype]))
        parts = []
        at = bisect_right(self._starts, first) - 1
        while first < last:
            begin, end = self._starts[at], self._starts[at] + self.shards[at].rows
            parts.append(self._shard(at)[first - begin : min(last, end) - begin])
            first, at = end, at + 1
        return self._as_numbers(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def rows(self, index: Any) -> NDArray[Any]:
        """Copies of the rows with these numbers, in that order.

        Args:
            index: (K,) whole numbers, negative ones from the end, or an (N,) mask.

        Returns:
            (K, D), as for :meth:`block`.

        Raises:
            IndexError: If there is no such row.
        """
        wanted = np.arange(len(self))[row_index(index)]
        out = np.empty((len(wanted), self.shape[1]), _STORED[self.dtype])
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for at in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == at)
            out[here] = self._shard(at)[wanted[here] - self._starts[at]]
        return self._as_numbers(out)

    def _as_numbers(self, stored: NDArray[Any]) -> NDArray[Any]:
        return widen_bfloat16(stored) if self.dtype == "bfloat16" else stored

    def _shard(self, at: int) -> NDArray[Any]:
        """One shard, mapped. A mapping holds a file open, so that only so many are kept."""
        mapped = self._mapped.get(at)
        if mapped is None:
            shard = self.shards[at]
            shape = (shard.rows, self.shape[1])
            start, dtype = self._data_starts[at], _STORED[self.dtype]
            try:
                whole = np.memmap(self.path / shard.file, dtype, "r", start, shape)
            except (OSError, ValueError) as error:
                raise _damaged(self.path, [f"{shard.file}: {error}"]) from error
            mapped = whole.view(np.ndarray)
            while len(self._mapped) >= _MAX_MAPPED:
                self._mapped.pop(next(iter(self._mapped)), None)
            self._mapped[at] = mapped
        return mapped

    def verify(self) -> None:
        """Read every file and compare it with its checksum.

        Raises:
            FeatureStoreError: If files are missing or differ; names them and their rows.
        """
        problems = []
        for start, shard in zip(self._starts, self.shards, strict=True):
            if not _is_whole(self.path / shard.file, shard.sha256):
                rows = f"rows {start:,} to {start + shard.rows - 1:,}"
                problems.append(f"{shard.file} ({rows}) differs from its checksum")
        ids = self._manifest.ids
        if ids is not None and not _is_whole(self.path / ids.file, ids.sha256):
            problems.append(f"{ids.file} differs from its checksum")
        if problems:
            raise _damaged(self.path, problems)


def open_store(path: str | os.PathLike[str], *, verify: bool = False) -> FeatureStore:
    """Open a feature store; no feature is read.

    Every file's presence, header and size are checked: a shard that was cut short is found here.

    Args:
        path: the folder.
        verify: also read every file and compare it with its checksum.

    Raises:
        FeatureStoreError: If it is no store, or files are missing or damaged; all are named.

    >>> import tempfile
    >>> from catwise.features import write_store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_store(f"{folder}/train", np.eye(3), ids=["a", "b", "c"], dtype="float16")
    ...     store = open_store(f"{folder}/train", verify=True)
    ...     store.rows([2, 0])
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float16)
    """
    folder = Path(path).absolute()
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        reason = "it has no manifest.json" if folder.is_dir() else error.strerror
        raise FeatureStoreError(
            f"'{path}' is no feature store.",
            found=reason,
            expected="a folder that write_store wrote",
            remedy="check the path",
        ) from error
    manifest = parse_manifest(folder / MANIFEST_FILE, raw)
    starts = tuple(accumulate((shard.rows for shard in manifest.shards[:-1]), initial=0))
    data_starts = _check_files(folder, manifest)
    store = FeatureStore(folder, hashlib.sha256(raw).hexdigest(), manifest, starts, data_starts)
    if verify:
        store.verify()
    return store


def _check_files(folder: Path, manifest: Manifest) -> tuple[int, ...]:
    """Where each shard's numbers start; all that is wrong with the files is told at once."""
    found = [_shard_start(folder / shard.file, shard, manifest) for shard in manifest.shards]
    problems = [problem for problem in found if isinstance(problem, str)]
    if manifest.ids is not None:
        problems += _ids_problem(folder / manifest.ids.file, manifest.ids.bytes)
    if problems:
        raise _damaged(folder, problems)
    return tuple(start for start in found if isinstance(start, int))


def _shard_start(path: Path, shard: ShardFile, manifest: Manifest) -> int | str:
    """Where a shard's numbers start, or what is wrong with it."""
    try:
        size = path.stat().st_size
        if size < shard.bytes:
            return f"{path.name} is cut short: {size:,} bytes, {shard.bytes:,} expected"
        tensors = read_layout(path).tensors
    except (OSError, ValueError) as error:
        return f"{path.name}: {getattr(error, 'strerror', None) or error}"
    expected = (SAFETENSORS_NAMES[manifest.dtype], (shard.rows, manifest.n_features))
    if size != shard.bytes or [(t.dtype, t.shape) for t in tensors] != [expected]:
        return f"{path.name} is not the file that the manifest describes"
    return tensors[0].start


def _ids_problem(path: Path, expected: int) -> list[str]:
    try:
        size = path.stat().st_size
    except OSError as error:
        return [f"{path.name}: {error.strerror}"]
    return [f"{path.name}: {size:,} bytes, {expected:,} expected"] if size != expected else []


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


def _damaged(folder: Path, problems: list[str]) -> FeatureStoreError:
    more = len(problems) - 3
    return FeatureStoreError(
        f"the feature store '{folder}' is damaged.",
        found="; ".join(problems[:3]) + (f"; and {more:,} more files" if more > 0 else ""),
        remedy=_REMEDY,
    )
