"""Writing feature stores, block by block, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import torch

from catwise._io import atomic_folder
from catwise.errors import ConfigError, FeatureError, ShapeError
from catwise.features.arrays import bfloat16_bits
from catwise.features.blocks import BLOCK_ROWS, block_of, feature_shape
from catwise.features.ids import as_ids
from catwise.features.inputs import Features, check_finite
from catwise.features.manifest import (
    DATA_START,
    IDS_FILE,
    MANIFEST_FILE,
    IdsFile,
    Manifest,
    ShardFile,
    dtype_name,
    file_sha256,
    manifest_text,
    shard_header,
)
from catwise.features.store import FeatureStore, open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["StoreWriter", "store_writer", "write_store"]

SHARD_BYTES: Final = 2**28
_ITEM_SIZES: Final = {"float16": 2, "bfloat16": 2, "float32": 4}
_FLOAT16_MAX: Final = 65504.0


def write_store(
    path: str | os.PathLike[str],
    blocks: Any,
    *,
    ids: Any = None,
    dtype: Any = None,
    origin: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> FeatureStore:
    """Write features as a store; a reader never sees half of one.

    The bytes depend on the rows, ids, dtype and origin only, not on how the rows are cut in blocks.

    Args:
        path: the folder to make; the folder around it must exist.
        blocks: (N, D) features of any kind, or an iterable of (rows, D) blocks.
        ids: (N,) different texts or whole numbers; those of the features when not given.
        dtype: float16, bfloat16 or float32; when not given, float16 and bfloat16 features stay
            what they are and all others become float32. Numbers round to the nearest, half to even.
        origin: where the features come from, JSON-ready.
        overwrite: replace what is in the folder.

    Returns:
        The store, opened.

    Raises:
        FeatureError: If there are no rows, or values are not finite numbers in that dtype.
        ShapeError: If blocks differ in columns, or the ids are not one for each row.
        IdError: If an id is empty or there twice.
        ConfigError: If dtype or origin cannot be stored.
        OutputError: If the folder has content, or cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = write_store(f"{folder}/train", np.eye(3), origin={"model": "resnet50"})
    ...     store.shape, store.dtype, store.origin
    ((3, 3), 'float32', {'model': 'resnet50'})
    """
    if ids is None:
        ids = getattr(blocks, "ids", None)
    kept = dtype if dtype is not None else _half(blocks)
    with store_writer(path, dtype=kept, origin=origin, overwrite=overwrite) as writer:
        for rows in _blocks(blocks):
            writer.write(rows)
        if ids is not None:
            writer.set_ids(ids)
    return open_store(path)


def _half(values: Any) -> str | None:
    """The dtype's name if features are stored in half precision."""
    dtype = getattr(values.values if isinstance(values, Features) else values, "dtype", None)
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    return name if name in {"float16", "bfloat16"} else None


def _blocks(blocks: Any) -> Iterator[Any]:
    if not hasattr(blocks, "shape"):
        yield from blocks
        return
    features = Features(blocks)
    for start in range(0, len(features), BLOCK_ROWS):
        yield features.block(start, min(start + BLOCK_ROWS, len(features)))


@contextlib.contextmanager
def store_writer(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    origin: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Iterator[StoreWriter]:
    """Give a writer that takes rows as they come; the store is there when the block ends well.

    Arguments and errors are those of :func:`write_store`.

    >>> import tempfile
    >>> from catwise.features import open_store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with store_writer(f"{folder}/train", dtype="bfloat16") as writer:
    ...         writer.write([[1.0, 2.0]], ids=["a.jpg"])
    ...         writer.write([[3.0, 4.0]], ids=["b.jpg"])
    ...     open_store(f"{folder}/train").block(0, 2)
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    """
    name = None if dtype is None else dtype_name(dtype)
    text = _origin_text(origin)
    with atomic_folder(path, overwrite=overwrite) as folder:
        writer = StoreWriter(folder, dtype=name, origin=text)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def _origin_text(origin: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(origin or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "the origin of features must be JSON-ready.",
            found=str(error),
            remedy="use texts, finite numbers, lists and tables with text keys",
        ) from error


class StoreWriter:
    """Cuts rows into shards as they come. Made by :func:`store_writer`."""

    def __init__(self, folder: Path, *, dtype: str | None, origin: str) -> None:
        self.n_rows = 0
        self._folder = folder
        self._dtype = dtype
        self._origin = origin
        self._n_features = 0
        self._ids: list[Any] = []
        self._shards: list[ShardFile] = []
        self._open: _Shard | None = None

    def write(self, rows: Any, *, ids: Any = None) -> None:
        """Add rows.

        Args:
            rows: (K, D) array, tensor or nested lists.
            ids: (K,) ids of these rows; given with every block or with none.

        Raises:
            FeatureError: If values are not finite numbers that the dtype can hold.
            ShapeError: If the columns are not as many as before, or the ids not one for each row.
        """
        features = Features(rows)
        if not self._n_features:
            self._start(features)
        if features.shape[1] != self._n_features:
            raise ShapeError(
                f"rows {self.n_rows:,} and on do not fit those before.",
                found=f"{features.shape[1]:,} columns",
                expected=f"{self._n_features:,} columns",
            )
        if ids is not None:
            self._ids.extend(as_ids(ids, len(features)).tolist())
        check_finite(features, first_row=self.n_rows)
        stored = self._stored(features)
        while len(stored):
            shard = self._open or self._new_shard()
            taken = stored[: shard.room]
            shard.write(taken)
            stored = stored[len(taken) :]
            self.n_rows += len(taken)
            if not shard.room:
                self._close_shard()

    def set_ids(self, ids: Any) -> None:
        """Give the ids of all rows at once, after the last row.

        Raises:
            ShapeError: If they are not one for each row.
            IdError: If one is empty or there twice.
        """
        self._ids = as_ids(ids, self.n_rows).tolist()

    def finish(self) -> None:
        """Write what is left and the manifest."""
        if self._open is not None:
            self._close_shard()
        if not self.n_rows or self._dtype is None:
            raise FeatureError("there are no features to write.", found="no rows")
        manifest = Manifest(
            self._dtype,
            self.n_rows,
            self._n_features,
            tuple(self._shards),
            self._write_ids(),
            self._origin,
        )
        path = self._folder / MANIFEST_FILE
        path.write_bytes(manifest_text(manifest).encode("utf-8"))

    def close(self) -> None:
        """Close the file that is open, finished or not."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.stream.close()

    def _start(self, features: Features) -> None:
        n_features = feature_shape(features)[1]
        if not n_features:
            raise FeatureError("there are no features to write.", found="no columns")
        self._n_features = n_features
        if self._dtype is None:
            self._dtype = _half(features) or "float32"

    def _stored(self, features: Features) -> NDArray[Any]:
        """Rows as they go into the file."""
        rows = block_of(features, 0, len(features), dtype=torch.float32).cpu()
        if self._dtype == "bfloat16":
            stored: NDArray[Any] = bfloat16_bits(rows.numpy())
            overflow = (stored & 0x7FFF) == 0x7F80
        elif self._dtype == "float16":
            stored = rows.to(torch.float16).numpy()
            overflow = np.isinf(stored)
        else:
            stored, overflow = rows.numpy(), np.zeros((1, 1), dtype=np.bool_)
        if bool(overflow.any()):
            row = int(overflow.any(1).nonzero()[0][0])
            raise FeatureError(
                f"features do not fit into {self._dtype}: a number is too large.",
                found=f"{float(rows[row].abs().max()):.6g} in row {self.n_rows + row:,}",
                expected=f"at most {_FLOAT16_MAX:,.0f}" if self._dtype == "float16" else None,
                remedy="write the store as bfloat16 or float32",
            )
        return np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<"))

    def _new_shard(self) -> _Shard:
        assert self._dtype is not None  # noqa: S101  # set by _start
        path = self._folder / f"features-{len(self._shards):05d}.safetensors"
        self._open = _Shard(path, self._dtype, self._n_features)
        return self._open

    def _close_shard(self) -> None:
        assert self._open is not None  # noqa: S101  # asked by the callers
        self._shards.append(self._open.finish())
        self._open = None

    def _write_ids(self) -> IdsFile | None:
        if not self._ids:
            return None
        raw = "".join(f"{text}\n" for text in as_ids(self._ids, self.n_rows).tolist()).encode()
        (self._folder / IDS_FILE).write_bytes(raw)
        return IdsFile(IDS_FILE, len(raw), hashlib.sha256(raw).hexdigest())


class _Shard:
    """A shard that is being written. Its header says first that it is full."""

    stream: BinaryIO

    def __init__(self, path: Path, dtype: str, n_features: int) -> None:
        self._path = path
        self._dtype = dtype
        self._n_features = n_features
        self._item_size = _ITEM_SIZES[dtype]
        self._capacity = max(1, SHARD_BYTES // (n_features * self._item_size))
        self._rows = 0
        self._total = hashlib.sha256()
        self.stream = path.open("wb")
        self._put(self._header(self._capacity))

    @property
    def room(self) -> int:
        """How many rows still fit."""
        return self._capacity - self._rows

    def _header(self, rows: int) -> bytes:
        return shard_header(self._dtype, rows, self._n_features, self._item_size)

    def _put(self, data: bytes | memoryview) -> None:
        self.stream.write(data)
        self._total.update(data)

    def write(self, rows: NDArray[Any]) -> None:
        self._put(rows.reshape(-1).view(np.uint8).data)
        self._rows += len(rows)

    def finish(self) -> ShardFile:
        """Close the file; a shard that did not become full gets its true header."""
        if self.room:
            self.stream.seek(0)
            self.stream.write(self._header(self._rows))
        self.stream.close()
        sha256 = file_sha256(self._path) if self.room else self._total.hexdigest()
        size = DATA_START + self._rows * self._n_features * self._item_size
        return ShardFile(self._path.name, self._rows, size, sha256)
