"""Which row is which: a different text for each image, and row numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from catwise.errors import IdError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["as_ids", "id_text", "row_index"]

_SHOWN = 3


def as_ids(ids: Any, n_rows: int | None = None, *, name: str = "ids") -> NDArray[np.str_]:
    """Return ids as a read-only array of different, non-empty texts.

    Args:
        ids: texts, bytes or whole numbers; numbers become their decimal digits.
        n_rows: how many there must be, where that is known.
        name: what to call them in an error.

    Returns:
        (N,) numpy texts.

    Raises:
        ShapeError: If they are not one for each row.
        IdError: If one is empty, is no text or number, or is there twice.

    >>> as_ids([7, 12]).tolist()
    ['7', '12']
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (n_rows is not None and len(array) != n_rows):
        raise ShapeError(
            f"{name} must be one for each row.",
            found=f"shape {array.shape}",
            expected="shape (N,)" if n_rows is None else f"shape ({n_rows},)",
        )
    texts = _texts(array, name)
    for row, text in enumerate(texts):
        reason = _wrong(text)
        if reason:
            raise IdError(f"{name} hold one that {reason}.", found=f"row {row:,}: {text!r}")
    if len(set(texts)) != len(texts):
        raise _duplicated(texts, name)
    result = np.array(texts, dtype=np.str_)
    result.flags.writeable = False
    return result


def _texts(array: NDArray[Any], name: str) -> list[str]:
    if array.dtype.kind == "U":
        return [str(item) for item in array.tolist()]
    try:
        return [id_text(item) for item in array.tolist()]
    except (TypeError, UnicodeDecodeError) as error:
        raise IdError(
            f"{name} must be texts or whole numbers.", found=f"{error} (dtype {array.dtype})"
        ) from error


def id_text(item: object) -> str:
    """One id as a text.

    Raises:
        TypeError: If it is neither text, bytes nor a whole number.

    >>> id_text(b"a.jpg"), id_text(3)
    ('a.jpg', '3')
    """
    if isinstance(item, str):
        return item
    if isinstance(item, bytes):
        return item.decode("utf-8")
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        return str(int(item))
    msg = f"{item!r}, a {type(item).__name__}"
    raise TypeError(msg)


def _wrong(text: str) -> str:
    """Why a text cannot be an id, or ''."""
    if not text:
        return "is empty"
    if "\n" in text or "\0" in text:
        return "holds a line break or a NUL character"
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return "is no Unicode text"
    return ""


def _duplicated(texts: list[str], name: str) -> IdError:
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text, []).append(row)
    twice = {text: where for text, where in rows.items() if len(where) > 1}
    shown = [f"{text!r} in rows {where[0]:,} and {where[1]:,}" for text, where in twice.items()]
    more = len(shown) - _SHOWN
    return IdError(
        f"{name} hold {len(twice):,} more than once.",
        found="; ".join(shown[:_SHOWN]) + (f"; and {more:,} more" if more > 0 else ""),
        expected="a different id for each row",
        remedy="remove the repeated rows, or make the ids longer (with the folder's name)",
    )


def row_index(index: Any) -> NDArray[Any]:
    """Row numbers, or a mask of rows, as numpy indexes with them; an empty list is no rows.

    >>> row_index([]).dtype
    dtype('int64')
    """
    array = np.asarray(index)
    return array if array.size else array.astype(np.int64)
