"""Where a store's files are: a folder of this machine, or any place that fsspec knows."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from catwise._extras import import_optional
from catwise._limits import check_at_most, read_within
from catwise.errors import ConfigError, MissingExtraError, OutputError
from catwise.features.manifest import DATA_START, file_sha256

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_GAP_BYTES: Final = 2**16
"""Rows of a remote file that lie no farther apart are fetched in one piece."""
_CHUNK_BYTES: Final = 2**24


class Place(Protocol):
    """A folder of files that are read and never change. Errors are OSErrors."""

    def read(self, name: str, limit: int, what: str = "bytes") -> bytes:
        """The bytes of a file, whose size is looked at first; ValueError where it is too large."""

    def heads(self, names: Sequence[str]) -> list[tuple[int, bytes] | OSError]:
        """Size and first bytes of files, or why they cannot be read."""

    def rows(self, name: str, dtype: str, shape: tuple[int, int]) -> Any:
        """The rows of a shard, read when they are indexed: by a slice, or by row numbers."""

    def sha256(self, name: str) -> str:
        """The checksum of a file."""


def is_url(path: object) -> bool:
    """Whether a path names a place that fsspec opens; a Windows drive ("C:/") does not."""
    return isinstance(path, str) and _URL.match(path) is not None and not path.startswith("file://")


def open_place(path: str | os.PathLike[str]) -> Place:
    """The place that a path or an URL names; a ``file://`` one is local."""
    if is_url(path):
        return RemotePlace(str(path))
    text = str(path)
    return LocalPlace(Path(unquote(urlsplit(text).path) if text.startswith("file://") else text))


class LocalPlace:
    """A folder of this machine; shards are memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str, limit: int, what: str = "bytes") -> bytes:
        """The bytes of a file, whose size is looked at first; ValueError where it is too large."""
        return read_within(self.folder / name, limit, what)

    def heads(self, names: Sequence[str]) -> list[tuple[int, bytes] | OSError]:
        """Size and first bytes of files, or why they cannot be read."""
        return [self._head(self.folder / name) for name in names]

    @staticmethod
    def _head(path: Path) -> tuple[int, bytes] | OSError:
        try:
            with path.open("rb") as stream:
                return path.stat().st_size, stream.read(DATA_START)
        except OSError as error:
            return error

    def rows(self, name: str, dtype: str, shape: tuple[int, int]) -> Any:
        """The rows of a shard, mapped."""
        return np.memmap(self.folder / name, dtype, "r", DATA_START, shape).view(np.ndarray)

    def sha256(self, name: str) -> str:
        """The checksum of a file."""
        return file_sha256(self.folder / name)


class RemotePlace:
    """A folder that fsspec opens; only the rows that are asked for are fetched."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        core = import_optional("fsspec.core", extra="remote", purpose=f"opening '{url}'")
        try:
            self._files, self._root = core.url_to_fs(self.url)
        except ImportError as error:
            raise MissingExtraError(
                f"opening '{url}' needs a package that is not installed.",
                found=" ".join(str(error).split()),
                remedy="install what fsspec asks for: s3fs for s3://, gcsfs for gs://",
            ) from error
        except ValueError as error:
            found = " ".join(str(error).split())
            raise ConfigError(f"'{url}' cannot be opened.", found=found) from error

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def read(self, name: str, limit: int, what: str = "bytes") -> bytes:
        """The bytes of a file; ValueError beyond the limit, also where the place tells no size."""
        with _as_os_error():
            size = self._files.info(self._path(name)).get("size")
        check_at_most(size or 0, limit, what)
        with _as_os_error():
            end = limit + 1 if size is None else None
            data: bytes = self._files.cat_file(self._path(name), end=end)
        check_at_most(len(data), limit, what)
        return data

    def sizes(self) -> dict[str, int]:
        """The files that are there and their sizes; none where there is no folder."""
        with _as_os_error():
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {str(one["name"]).rpartition("/")[2]: int(one["size"] or 0) for one in found}

    def heads(self, names: Sequence[str]) -> list[tuple[int, bytes] | OSError]:
        """Size and first bytes of files, or why they cannot be read."""
        sizes = self.sizes()
        there = [name for name in names if name in sizes]
        ends = [min(DATA_START, sizes[name]) for name in there]
        with _as_os_error():
            raw = self._files.cat_ranges(list(map(self._path, there)), [0] * len(there), ends)
        found = {
            name: (sizes[name], data) if isinstance(data, bytes) else OSError(str(data))
            for name, data in zip(there, raw, strict=True)
        }
        missing = FileNotFoundError(2, "No such file")
        return [found.get(name, missing) for name in names]

    def rows(self, name: str, dtype: str, shape: tuple[int, int]) -> Any:
        """The rows of a shard, fetched when they are indexed."""
        return _RemoteRows(self, name, np.dtype(dtype), shape)

    def fetch(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of a file from the first to before the second position of each span."""
        with _as_os_error():
            starts, stops = ([span[at] for span in spans] for at in (0, 1))
            paths = [self._path(name)] * len(spans)
            data: list[bytes] = self._files.cat_ranges(paths, starts, stops, on_error="raise")
        for (start, stop), part in zip(spans, data, strict=True):
            if len(part) != stop - start:
                raise OSError(f"{name} is cut short")
        return data

    def sha256(self, name: str) -> str:
        """The checksum of a file."""
        total = hashlib.sha256()
        with _as_os_error(), self._files.open(self._path(name), "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                total.update(chunk)
        return total.hexdigest()

    def put(self, path: Path) -> None:
        """Copy a file of this machine to the place, under its own name."""
        try:
            try:
                self._files.put_file(str(path), self._path(path.name))
            except FileNotFoundError:  # where folders are made, and this one was not yet
                self._files.makedirs(self._root, exist_ok=True)
                self._files.put_file(str(path), self._path(path.name))
        except Exception as error:  # a file system may raise anything
            raise OutputError(
                f"cannot write '{self.url}/{path.name}'.", found=str(error)
            ) from error

    def remove(self, names: Sequence[str]) -> None:
        """Remove files; those that are not there do not matter."""
        for name in names:
            with _as_os_error():
                try:
                    self._files.rm_file(self._path(name))
                except FileNotFoundError:
                    continue


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Whatever a file system raises is an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class _RemoteRows:
    """Rows of a file elsewhere."""

    def __init__(
        self, place: RemotePlace, name: str, dtype: np.dtype[Any], shape: tuple[int, int]
    ) -> None:
        self._place = place
        self._name = name
        self._dtype = dtype
        self.shape = shape

    def __getitem__(self, key: Any) -> NDArray[Any]:
        if isinstance(key, slice):
            start, stop, _ = key.indices(self.shape[0])
            return self._fetched([(start, stop)])[0]
        wanted, back = np.unique(np.asarray(key), return_inverse=True)
        gap = _GAP_BYTES // (self.shape[1] * self._dtype.itemsize) + 1
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > gap) + 1)
        parts = self._fetched([(int(run[0]), int(run[-1]) + 1) for run in runs])
        picked = [part[run - run[0]] for part, run in zip(parts, runs, strict=True)]
        found: NDArray[Any] = np.concatenate(picked)[back]
        return found

    def _fetched(self, spans: list[tuple[int, int]]) -> list[NDArray[Any]]:
        width = self.shape[1]
        row = width * self._dtype.itemsize
        places = [(DATA_START + start * row, DATA_START + stop * row) for start, stop in spans]
        raw = self._place.fetch(self._name, places)
        return [np.frombuffer(data, self._dtype).reshape(-1, width) for data in raw]
