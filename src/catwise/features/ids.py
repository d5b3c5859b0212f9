"""Which row is which: a different text for each image, and row numbers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from catwise._arrays import as_numpy
from catwise._limits import MAX_ID
from catwise._text import some
from catwise.errors import IdError, ShapeError

_SHOWN: Final = 3
_BLOCK_LETTERS: Final = 2**20
_BLOCK_TEXTS: Final = 2**16
_LINE_BREAK: Final = np.uint32(10)
_SURROGATE: Final = np.uint32(0xD800 >> 11)


def as_ids(ids: Any, n_rows: int | None = None, *, name: str = "ids") -> NDArray[np.str_]:
    """Return ids as a read-only (N,) array of different, non-empty texts.

    Ids are texts, bytes or whole numbers; numbers become their decimal digits. ShapeError, which
    calls them `name`, if they are not one for each of `n_rows`; IdError if one is empty, is not a
    text or number, or is a duplicate.

    >>> as_ids([7, 12]).tolist()
    ['7', '12']
    """
    array = as_numpy(ids, name=name, error=IdError)
    if array.ndim != 1 or (n_rows is not None and len(array) != n_rows):
        raise ShapeError(
            f"{name} must be one for each row.",
            found=f"shape {array.shape}",
            expected="shape (N,)" if n_rows is None else f"shape ({n_rows},)",
        )
    texts = array
    if array.dtype.kind != "U" or array.flags.writeable or not array.flags.c_contiguous:
        values = array if array.dtype.kind == "U" else _texts(array, name)
        texts = np.array(values, dtype=np.str_)  # a copy that nobody else can change
    if len(texts):
        _check(texts, name)
    texts.flags.writeable = False
    return texts


def _texts(array: NDArray[Any], name: str) -> list[str]:
    try:
        return [id_text(item) for item in array.tolist()]
    except (TypeError, UnicodeDecodeError) as error:
        raise IdError(
            f"{name} must be texts or whole numbers.", found=f"{error} (dtype {array.dtype})"
        ) from error


def _check(texts: NDArray[np.str_], name: str) -> None:
    """Refuse what cannot be an id, and duplicates; no text becomes a Python object."""
    width = max(texts.dtype.itemsize // 4, 1)
    if width > MAX_ID:
        raise IdError(
            f"{name} are too long.", found=f"{width:,} characters", expected=f"{MAX_ID:,}"
        )
    letters = texts.view(np.uint32).reshape(len(texts), -1) if texts.dtype.itemsize else None
    hashes = np.zeros(len(texts), dtype=np.uint64)
    keys = np.random.default_rng(0).integers(1, 2**63, width, dtype=np.uint64) * np.uint64(2)
    step = max(1, _BLOCK_LETTERS // width)
    for start in range(0, len(texts), step):
        if letters is None or (wrong := _wrong_rows(letters[start : start + step])).any():
            row = start + (0 if letters is None else int(wrong.argmax()))
            text = _shown(letters[row]) if letters is not None else ""
            raise IdError(f"{name} hold one that {_wrong(text)}.", found=f"row {row:,}: {text!r}")
        part = letters[start : start + step]
        for column, key in enumerate(keys + np.uint64(1)):
            hashes[start : start + step] += _mixed(part[:, column] * key + key)
    check_distinct(hashes, lambda rows: texts[rows].tolist(), name)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread the bits, so that sums of different texts differ (the end of MurmurHash3)."""
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    return values


def _wrong_rows(letters: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which rows hold a text that cannot be an id."""
    bad = (letters == _LINE_BREAK) | ((letters >> np.uint32(11)) == _SURROGATE)
    bad |= letters > sys.maxunicode  # which a file can hold, and of which Python makes no text
    bad[:, 0] |= letters[:, 0] == 0
    bad[:, 1:] |= (letters[:, :-1] == 0) & (letters[:, 1:] != 0)  # NUL inside a text
    return np.asarray(bad.any(axis=1))


def _shown(letters: NDArray[np.uint32]) -> str:
    """A text, with U+FFFD for what is no character."""
    known = np.where(letters > sys.maxunicode, np.uint32(0xFFFD), letters)
    return "".join(map(chr, known.tolist())).rstrip("\0")


def _wrong(text: str) -> str:
    """Why a text cannot be an id."""
    if not text:
        return "is empty"
    if "\n" in text or "\0" in text:
        return "holds a line break or a NUL character"
    return "is not Unicode text"


def check_distinct(
    hashes: NDArray[Any], texts_of: Callable[[NDArray[np.int64]], list[str]], name: str
) -> None:
    """Refuse duplicate texts of (N,) 64-bit hashes; `texts_of` tells those with one hash apart."""
    ordered = np.sort(hashes)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(twice):
        return
    rows = np.flatnonzero(np.isin(hashes, twice))
    where: dict[str, list[int]] = {}
    for row, text in zip(rows.tolist(), texts_of(rows), strict=True):
        where.setdefault(text, []).append(row)
    repeated = {text: found for text, found in where.items() if len(found) > 1}
    if repeated:
        raise _duplicated(repeated, name)


def id_text(item: object) -> str:
    """One id as a text."""
    if isinstance(item, str):
        return item
    if isinstance(item, bytes):
        return item.decode("utf-8")
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        return str(int(item))
    raise TypeError(f"{item!r}, a {type(item).__name__}")


def _duplicated(twice: dict[str, list[int]], name: str) -> IdError:
    shown = [f"{text!r} in rows {rows[0]:,} and {rows[1]:,}" for text, rows in twice.items()]
    return IdError(
        f"{name} hold {len(twice):,} more than once.",
        found=some(shown, _SHOWN, sep="; "),
        expected="a different id for each row",
        remedy="remove the repeated rows, or make the ids longer (with the folder's name)",
    )


def row_index(index: Any) -> NDArray[Any]:
    """Row numbers, or a mask of rows, as numpy indexes with them; an empty list is no rows."""
    array = as_numpy(index, name="a choice of rows", error=ShapeError)
    return array if array.size else array.astype(np.int64)


def compact(texts: Any) -> Any:
    """Texts as one block of memory, an Arrow array: a Python object for none of them."""
    return pa.array(np.asarray(texts, dtype=np.str_), type=pa.large_string())


def digest_of(texts: Any) -> str:
    """A short digest of an Arrow array of texts."""
    total = hashlib.sha256()
    for start in range(0, len(texts), _BLOCK_TEXTS):
        lines = (f"{text}\0" for text in texts.slice(start, _BLOCK_TEXTS).to_pylist())
        total.update("".join(lines).encode("utf-8", "surrogatepass"))
    return total.hexdigest()[:16]
