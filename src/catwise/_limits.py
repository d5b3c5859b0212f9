"""How large, deep and long what is read from files may be: every bound, and the checks of them.

A file says how much it holds before it is read. What it says is compared with these bounds first,
so that a damaged or hostile file costs neither memory nor time. All of them are far above what is
used in practice.

Every check raises ValueError whose message is the reason; who reads the file makes the error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "MAX_COLUMNS",
    "MAX_DEPTH",
    "MAX_DIMENSIONS",
    "MAX_HEADER",
    "MAX_ID",
    "MAX_JSON",
    "MAX_LINE",
    "MAX_MEMBERS",
    "MAX_NPY_HEADER",
    "MAX_PICKLE",
    "MAX_SIZE",
    "MAX_STEPS",
    "MAX_TABLES",
    "MAX_UNPACKED",
    "check_at_most",
    "check_depth",
    "check_shape",
    "check_unpacked",
]

MAX_DEPTH: Final = 64
"""Tables and lists inside one another, in JSON and in pickles."""
MAX_TABLES: Final = 100_000
"""Tables in a checkpoint."""
MAX_STEPS: Final = 2_000_000
"""Instructions of a pickle; the state of a model and its optimizer takes some 100 a tensor."""
MAX_PICKLE: Final = 256 * 2**20
"""Bytes of a pickle: names, shapes and options; tensors lie outside of it."""
MAX_DIMENSIONS: Final = 64
"""Axes of an array, as in numpy."""
MAX_SIZE: Final = 2**63 - 1
"""Entries along an axis, and of a whole array."""
MAX_HEADER: Final = 100_000_000
"""Bytes of a safetensors header, as in the format's own reader."""
MAX_NPY_HEADER: Final = 10_000
"""Bytes of a .npy header, as in numpy."""
MAX_MEMBERS: Final = 1_000_000
"""Members of a zip archive."""
MAX_UNPACKED: Final = 2**36
"""Bytes of a compressed member; also no more than this machine's memory."""
MAX_JSON: Final = 512 * 2**20
"""Bytes of a JSON file that catwise wrote."""
MAX_LINE: Final = 64 * 2**20
"""Bytes of a line of JSON lines."""
MAX_COLUMNS: Final = 1_000_000
"""Columns of a table."""
MAX_ID: Final = 2**16
"""Characters of an image's id."""

_DEFLATE: Final = 1032
"""No compressed byte gives more than so many (zlib, "Maximum Compression Factor")."""


def check_at_most(value: int, limit: int, what: str) -> None:
    """Refuse more than a bound allows.

    >>> check_at_most(3, 2, "columns")
    Traceback (most recent call last):
    ValueError: 3 columns, more than 2
    """
    if value > limit:
        raise ValueError(f"{value:,} {what}, more than {limit:,}")


def check_shape(shape: Iterable[Any], what: str = "the array") -> tuple[int, ...]:
    """The sizes of an array, if they are whole numbers that an array can have.

    >>> check_shape([2, 3])
    (2, 3)
    >>> check_shape([2, True])
    Traceback (most recent call last):
    ValueError: the array has a size that is no whole number: True
    """
    sizes = tuple(shape)
    check_at_most(len(sizes), MAX_DIMENSIONS, f"axes of {what}")
    total = 1
    for size in sizes:
        if type(size) is not int or size < 0:
            raise ValueError(f"{what} has a size that is no whole number: {size!r:.40}")
        total *= max(size, 1)
        if total > MAX_SIZE:
            raise ValueError(f"{what} has more than {MAX_SIZE:,} entries")
    return sizes


def check_depth(value: Any, limit: int = MAX_DEPTH) -> None:
    """Refuse what nests too deeply, or holds itself; parts that are shared are looked at once.

    >>> check_depth([[1], [2]], limit=2)
    >>> check_depth([[[1]]], limit=2)
    Traceback (most recent call last):
    ValueError: it nests more than 2 tables and lists
    """
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

    Args:
        packed: bytes in the file, of a deflated part; None if nobody knows what they can give.
        size: bytes that they are said to become.
        what: the part.
    """
    if packed is not None and size > packed * _DEFLATE + _DEFLATE:
        raise ValueError(f"{what} claims {size:,} bytes, more than its {packed:,} can give")
    limit = min(MAX_UNPACKED, _memory())
    if size > limit:
        raise ValueError(
            f"{what} becomes {size:,} bytes, more than {limit:,}: save it uncompressed"
        )


def _memory() -> int:
    """Bytes of memory of this machine, where it tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return MAX_UNPACKED
