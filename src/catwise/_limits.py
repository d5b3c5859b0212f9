"""How large, deep and long what is read from files may be: every bound, and the checks of them.

A file says how much it holds before it is read. What it says is compared with these bounds first,
so that a damaged or hostile file costs neither memory nor time. All of them are far above what is
used in practice.

Every check raises ValueError whose message is the reason; who reads the file makes the error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

MAX_DEPTH: Final = 64  # tables and lists inside one another, in JSON and in pickles
MAX_TABLES: Final = 100_000  # tables in a checkpoint
# instructions of a pickle (the state of a model and its optimizer takes some 100 a tensor), fields
# and nodes of an ONNX file (some 10 a node)
MAX_STEPS: Final = 2_000_000
MAX_ELEMENTS: Final = 1_000_000  # reads that the elements of a DICOM file take, one or two each
# bytes of a pickle: names, shapes and options; tensors lie outside of it
MAX_PICKLE: Final = 256 * 2**20
MAX_DIMENSIONS: Final = 64  # axes of an array, as in numpy
MAX_SIZE: Final = 2**63 - 1  # entries along an axis, and of a whole array
MAX_HEADER: Final = 100_000_000  # bytes of a safetensors header, as in the format's own reader
MAX_NPY_HEADER: Final = 10_000  # bytes of a .npy header, as in numpy
MAX_MEMBERS: Final = 1_000_000  # members of a zip archive
MAX_DIRECTORY: Final = 64 * 2**20  # bytes of the directory of a zip archive
# bytes of a header in a tar archive, the long names and attributes of a file among them
MAX_TAR_HEADER: Final = 2**20
MAX_UNPACKED: Final = 2**36  # bytes of a compressed member; also no more than this machine's memory
MAX_JSON: Final = 512 * 2**20  # bytes of a JSON file that catwise wrote
# bytes of a text or JSON file of others that is read whole: Arrow's largest block
MAX_TEXT: Final = 2**31 - 2
# bytes of a line of JSON lines, of the first record of a text table, of an image's XML
MAX_LINE: Final = 64 * 2**20
MAX_COLUMNS: Final = 1_000_000  # columns of a table
MAX_ROWS: Final = 10**9  # rows that a Parquet file claims
MAX_ID: Final = 2**16  # characters of an image's id
MAX_PROTOBUF: Final = 2**31 - 1  # bytes of an ONNX file without its external data, as in protobuf
MAX_IMAGE: Final = 2**32  # bytes of an image file, as in the lengths of DICOM
MAX_SEQUENCE: Final = 2**24  # bytes of a sequence of a DICOM file that is looked into
MAX_INFLATED: Final = 2**28  # bytes that a DICOM file becomes which is deflated as a whole
MAX_PIXELS: Final = 178_956_970  # pixels of an image, as in Pillow
# the environment variable that sets another bound than `MAX_PIXELS`
PIXELS_VARIABLE: Final = "CATWISE_MAX_PIXELS"

_PIECE: Final = 2**22
# no compressed byte gives more than so many (zlib, "Maximum Compression Factor")
_DEFLATE: Final = 1032


def check_at_most(value: int, limit: int, what: str) -> None:
    """Refuse more than a bound allows."""
    if value > limit:
        raise ValueError(f"{value:,} {what}, more than {limit:,}")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, and not a truth value.

    >>> is_whole(3), is_whole(True), is_whole(3.0)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool)


def check_shape(shape: Iterable[Any], what: str = "the array") -> tuple[int, ...]:
    """The sizes of an array, if they are whole numbers that an array can have."""
    sizes = tuple(shape)
    check_at_most(len(sizes), MAX_DIMENSIONS, f"axes of {what}")
    total = 1
    for size in sizes:
        if not is_whole(size) or size < 0:
            raise ValueError(f"{what} has a size that is not a whole number: {size!r:.40}")
        total *= max(size, 1)
        if total > MAX_SIZE:
            raise ValueError(f"{what} has more than {MAX_SIZE:,} entries")
    return sizes


def check_depth(value: Any, limit: int | None = None) -> None:
    """Refuse what nests too deeply, or holds itself; parts that are shared are looked at once."""
    limit = MAX_DEPTH if limit is None else limit
    heights: dict[int, int] = {}
    path, open_parts, inside = [id(value)], [_parts(value)], [0]
    while path:
        part = next(open_parts[-1], None)
        if part is None:  # all parts of this one are known
            open_parts.pop()
            heights[path.pop()] = height = inside.pop() + 1
        elif id(part) in heights:
            height = heights[id(part)]
        elif len(path) < limit and id(part) not in path:
            path.append(id(part))
            open_parts.append(_parts(part))
            inside.append(0)
            continue
        else:
            raise ValueError(f"it nests more than {limit:,} tables and lists")
        if len(path) + height > limit:
            raise ValueError(f"it nests more than {limit:,} tables and lists")
        if inside:
            inside[-1] = max(inside[-1], height)


def _parts(value: Any) -> Iterator[Any]:
    """What of a table or list is a table or list again."""
    inner = value.values() if isinstance(value, dict) else value
    return (part for part in inner if isinstance(part, (dict, list, tuple)))


def check_unpacked(packed: int | None, size: int, what: str) -> None:
    """Refuse a compressed part that claims more than its bytes can give, or than fits in memory.

    `packed` are the bytes of a deflated part in the file; None if nobody knows what they can give.
    """
    if packed is not None and size > packed * _DEFLATE + _DEFLATE:
        raise ValueError(f"{what} claims {size:,} bytes, more than its {packed:,} can give")
    limit = min(MAX_UNPACKED, _memory())
    if size > limit:
        raise ValueError(
            f"{what} becomes {size:,} bytes, more than {limit:,}: save it uncompressed"
        )


def check_memory(size: int, what: str) -> None:
    """Refuse a part of a file that is to be read at once and does not fit in memory."""
    limit = _memory()
    if size > limit:
        raise ValueError(
            f"{what} has {size:,} bytes, more than the {limit:,} of this machine's memory"
        )


def max_pixels(pillow: int | None = MAX_PIXELS // 2) -> int | None:
    """Pixels that an image may have, twice Pillow's `MAX_IMAGE_PIXELS`; None without a bound."""
    text = os.environ.get(PIXELS_VARIABLE, "").strip()
    if not text:
        return None if pillow is None else 2 * pillow
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text)):
        raise ValueError(f"{PIXELS_VARIABLE} is {text!r:.40}, not a positive whole number")
    return int(text)


def read_within(path: Path, limit: int, what: str = "bytes") -> bytes:
    """The bytes of a file or pipe; ValueError where it is, or grows, larger than the limit."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        check_at_most(size, limit, what)
        check_memory(size, "it")
        parts, n_bytes = [stream.read(size)], size
        while part := stream.read(min(_PIECE, limit + 1 - n_bytes)):
            parts.append(part)
            n_bytes += len(part)
            check_at_most(n_bytes, limit, what)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class BoundedStream:
    """A seekable binary file that gives so many pieces (None: any number) of at most `size` bytes.

    A piece that reaches beyond the file's end is cut before it is asked for, so that a length that
    a header claims costs no memory.
    """

    def __init__(self, stream: BinaryIO, *, size: int, what: str, pieces: float = math.inf) -> None:
        at = stream.tell()
        self._stream, self._end = stream, stream.seek(0, os.SEEK_END)
        stream.seek(at)
        self._pieces, self._size, self._what = pieces, size, what
        self._n_read = 0
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, all that follow by default."""
        rest = max(0, self._end - self._stream.tell())
        wanted = rest if size is None or size < 0 else min(size, rest)
        self._n_read += 1
        if wanted > self._size:
            raise ValueError(
                f"{self._what} has a part of {wanted:,} bytes, more than {self._size:,}"
            )
        if self._n_read > self._pieces:
            raise ValueError(f"{self._what} has more than {self._pieces:,} parts")
        return self._stream.read(wanted)


def _memory() -> int:
    """Bytes of memory of this machine, where it tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return MAX_UNPACKED
