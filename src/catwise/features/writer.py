"""Writing feature stores and adding rows to them, block by block, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._io import atomic_folder, growing_folder
from catwise._json import ready_text
from catwise.errors import ConfigError, FeatureError, OutputError, ShapeError
from catwise.features.arrays import bfloat16_bits
from catwise.features.blocks import BLOCK_ROWS, block_of, feature_shape
from catwise.features.id_files import IdsWriter
from catwise.features.ids import as_ids
from catwise.features.inputs import Features, check_finite
from catwise.features.manifest import (
    DATA_START,
    MANIFEST_FILE,
    STORE_DTYPES,
    Manifest,
    StoredFile,
    dtype_name,
    file_number,
    file_sha256,
    manifest_text,
    shard_header,
)
from catwise.features.places import RemotePlace, is_url
from catwise.features.store import FeatureStore, open_store

SHARD_BYTES: Final = 2**28
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
    At an URL, a file is copied as soon as it is full, and the manifest last.

    Args:
        path: the folder to make; the folder around it must exist. Or an URL that fsspec opens,
            such as ``"s3://bucket/train"``.
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
        IdError: If an id is empty or a duplicate.
        ConfigError: If dtype or origin cannot be stored.
        MissingExtraError: If what an URL needs is not installed.
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
        _fill(writer, blocks, ids)
    return open_store(path)


def append_store(
    path: str | os.PathLike[str],
    blocks: Any,
    *,
    ids: Any = None,
    origin: Mapping[str, Any] | None = None,
) -> FeatureStore:
    """Add rows to a store. What is there is not written again.

    The rows become new files; then a new manifest takes the place of the old one, so that a reader
    sees the old store or the new one, and one that is open stays what it was. Stopped before that,
    nothing was added.

    Args:
        path: the store's folder or URL. While a folder is added to, nobody else can add to it; at
            an URL that is yours to see to.
        blocks: features of any kind, or an iterable of (rows, D) blocks; they take the store's
            dtype.
        ids: ids of the new rows; those of the features when not given.
        origin: where they come from; that of the features when not given. In the store's own
            origin it is listed under "appended".

    Returns:
        The store with all rows, opened.

    Raises:
        FeatureStoreError: If there is no store.
        ShapeError: If the rows differ from the store's in columns, or have ids where it has none,
            or none where it has ids.
        IdError: If an id is in the store already, or is a duplicate.
        FeatureError: If there are no rows, or values are not finite numbers in the store's dtype.
        OutputError: If the folder cannot be written, or somebody else adds to it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_store(f"{folder}/train", np.eye(2), ids=["a", "b"])
    ...     append_store(f"{folder}/train", [[5.0, 6.0]], ids=["c"]).rows([2, 0])
    array([[5., 6.],
           [1., 0.]], dtype=float32)
    """
    if not hasattr(blocks, "shape") and isinstance(blocks, (list, tuple)):
        blocks = np.asarray(blocks) if np.ndim(blocks[0] if blocks else 0) == 1 else blocks
    ids = getattr(blocks, "ids", None) if ids is None else ids
    source = origin if origin is not None else getattr(blocks, "origin", None)
    open_store(path)
    with _destination(path, grow=True) as (folder, publish, _):
        store = open_store(path)
        _sweep(store)
        about: dict[str, Any] = {"dtype": store.dtype, "origin": _origin_text(source)}
        with closing(StoreWriter(folder, **about, publish=publish, store=store)) as writer:
            _fill(writer, blocks, ids)
            writer.finish()
    return open_store(path)


def _sweep(store: FeatureStore) -> None:
    """Remove what an addition that was killed left in a local folder."""
    listed = {part.file for part in store.manifest.files}
    for path in store.path.iterdir() if isinstance(store.path, Path) else ():
        if file_number(path.name) is not None and path.name not in listed:
            path.unlink()


def _fill(writer: StoreWriter, blocks: Any, ids: Any) -> None:
    for rows in _blocks(blocks):
        writer.write(rows)
    if ids is not None:
        writer.set_ids(ids)


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


@contextmanager
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
    with _destination(path, overwrite=overwrite) as (folder, publish, number):
        made = StoreWriter(folder, dtype=name, origin=text, publish=publish, number=number)
        with closing(made) as writer:
            yield writer
            writer.finish()


@contextmanager
def _destination(
    path: str | os.PathLike[str], *, overwrite: bool = False, grow: bool = False
) -> Iterator[tuple[Path, Callable[[Path], None], int]]:
    """A folder to write files in, what is to be done with each, and the number of the first."""
    if is_url(path):
        with _remote(str(path), overwrite=overwrite, grow=grow) as there:
            yield there
    elif grow:
        with growing_folder(path, last=MANIFEST_FILE) as (folder, publish):
            yield folder, publish, 0
    else:
        with atomic_folder(path, overwrite=overwrite) as folder:
            yield folder, lambda _: None, 0


@contextmanager
def _remote(
    url: str, *, overwrite: bool, grow: bool
) -> Iterator[tuple[Path, Callable[[Path], None], int]]:
    """Files go to an URL one by one; those of a store that is replaced are removed at the end."""
    place = RemotePlace(url)
    try:
        old = place.sizes()
    except OSError as error:
        raise OutputError(f"cannot write '{url}'.", found=str(error)) from error
    if old and not (overwrite or grow):
        raise OutputError(
            f"'{url}' exists and is not empty.",
            found=", ".join(sorted(old)[:3]),
            remedy="choose another place, or replace it with overwrite=True",
        )
    numbers = [number for name in old if (number := file_number(name)) is not None]
    sent: list[str] = []

    def publish(file: Path) -> None:
        sent.append(file.name)
        place.put(file)
        file.unlink()

    with tempfile.TemporaryDirectory(prefix="catwise-") as folder:
        try:
            yield Path(folder), publish, max(numbers, default=-1) + 1
        except BaseException:
            if MANIFEST_FILE not in sent:
                with suppress(OSError):
                    place.remove(sent)
            raise
    if not grow:
        with suppress(OSError):
            place.remove(
                [name for name in old if name not in sent and file_number(name) is not None]
            )


def _origin_text(origin: Mapping[str, Any] | None) -> str:
    return ready_text(origin, what="the origin of features", error=ConfigError)


class StoreWriter:
    """Cuts rows into shards as they come. Made by :func:`store_writer` and :func:`append_store`."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str | None,
        origin: str,
        publish: Callable[[Path], None],
        number: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        self.n_rows = 0
        self._folder = folder
        self._dtype = dtype
        self._origin = origin
        self._publish = publish
        self._store = store
        self._number = number
        if store is not None:
            names = [part.file for part in store.manifest.files]
            self._number = 1 + max(file_number(name) or 0 for name in names)
        self._n_features = 0 if store is None else store.shape[1]
        self._ids: IdsWriter | None = None
        self._shards: list[StoredFile] = []
        self._open: _Shard | None = None

    def write(self, rows: Any, *, ids: Any = None) -> None:
        """Add rows, (K, D), with their ids (K,); with ids in every block or in none.

        FeatureError if values are not finite numbers that the dtype can hold; ShapeError if the
        columns are not as many as before, or the ids not one for each row.
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
            self._add_ids(as_ids(ids, len(features)))
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
        """Give the ids of all rows at once, after the last row; errors as for :func:`as_ids`."""
        if self._ids is not None:
            self._ids.close()
            self._ids = None
        self._add_ids(as_ids(ids, self.n_rows))

    def _add_ids(self, ids: NDArray[np.str_]) -> None:
        if self._ids is None:
            before = () if self._store is None else (self._store.id_files,)
            self._ids = IdsWriter(self._folder / f"ids-{self._number:05d}.txt", *before)
        for start in range(0, len(ids), BLOCK_ROWS):
            self._ids.add(ids[start : start + BLOCK_ROWS].tolist())

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
            self._finished_ids(),
            self._origin,
        )
        if self._store is not None:
            manifest = _joined(self._store.manifest, manifest)
        path = self._folder / MANIFEST_FILE
        path.write_bytes(manifest_text(manifest).encode("utf-8"))
        self._publish(path)

    def _finished_ids(self) -> tuple[StoredFile, ...]:
        had = self._store is not None and bool(self._store.manifest.ids)
        if self._store is not None and had != (self._ids is not None):
            raise ShapeError(
                "the rows do not fit those that are there.",
                found="no ids" if had else "ids",
                expected="ids, as the store has them" if had else "no ids: the store has none",
            )
        if self._ids is None:
            return ()
        part = self._ids.finish(self.n_rows)
        self._publish(self._folder / part.file)
        return (part,)

    def close(self) -> None:
        """Close the files that are open, finished or not."""
        if self._ids is not None:
            self._ids.close()
        if self._open is not None:
            with suppress(OSError):
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
        number = self._number + len(self._shards)
        path = self._folder / f"features-{number:05d}.safetensors"
        self._open = _Shard(path, self._dtype, self._n_features)
        return self._open

    def _close_shard(self) -> None:
        assert self._open is not None  # noqa: S101  # asked by the callers
        self._shards.append(self._open.finish())
        self._open = None
        self._publish(self._folder / self._shards[-1].file)


def _joined(old: Manifest, new: Manifest) -> Manifest:
    """The manifest of a store to which rows were added."""
    origin = json.loads(old.origin)
    part = {"first_row": old.n_rows, "rows": new.n_rows, "origin": json.loads(new.origin)}
    origin["appended"] = [*origin.get("appended", []), part]
    return Manifest(
        old.dtype,
        old.n_rows + new.n_rows,
        old.n_features,
        (*old.shards, *new.shards),
        (*old.ids, *new.ids),
        json.dumps(origin),
    )


class _Shard:
    """A shard that is being written. Its header says first that it is full."""

    stream: BinaryIO

    def __init__(self, path: Path, dtype: str, n_features: int) -> None:
        self._path = path
        self._dtype = dtype
        self._n_features = n_features
        self._item_size = STORE_DTYPES[dtype].itemsize
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

    def finish(self) -> StoredFile:
        """Close the file; a shard that did not become full gets its true header."""
        if self.room:
            self.stream.seek(0)
            self.stream.write(self._header(self._rows))
        self.stream.close()
        sha256 = file_sha256(self._path) if self.room else self._total.hexdigest()
        size = DATA_START + self._rows * self._n_features * self._item_size
        return StoredFile(self._path.name, self._rows, size, sha256)
