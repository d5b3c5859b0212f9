"""Files that gzip or zstd packed: read as if they were not."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any, Final, cast

PACKINGS: Final = {".gz": "gzip", ".zst": "zstd"}
"""The packings by the suffix of a file."""


class DamagedPackingError(EOFError):
    """A packed file that cannot be unpacked to its end."""


UNPACK_ERRORS: Final = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a packed file raises where that is damaged."""


def packing_of(path: Path) -> str | None:
    """How a file is packed, by its suffix: "gzip", "zstd" or None."""
    return PACKINGS.get(path.suffix.lower())


def unpacked_name(path: Path) -> Path:
    """The name that a packed file has when it is unpacked.

    >>> unpacked_name(Path("train.csv.zst")).name
    'train.csv'
    """
    return path.with_suffix("") if packing_of(path) else path


def open_unpacked(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked where its suffix says that it is packed."""
    packing = packing_of(path)
    if packing == "gzip":
        return cast("IO[bytes]", gzip.open(path))
    if packing == "zstd":
        return io.BufferedReader(_Zstd(path))
    return path.open("rb")


class _Zstd(io.RawIOBase):
    """What a file holds that zstd packed; a damaged one is a `DamagedPackingError`."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        path.open("rb").close()  # the system's own error where it cannot be opened
        self._stream = pa.input_stream(str(path), compression="zstd")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        try:
            return int(self._stream.readinto(buffer))
        except OSError as error:
            raise DamagedPackingError(str(error)) from error

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


def first_there(folder: Path, name: str) -> Path | None:
    """A file of a folder, packed or not; None if it is not there."""
    names = (name, *(name + suffix for suffix in PACKINGS))
    return next((folder / one for one in names if (folder / one).is_file()), None)
