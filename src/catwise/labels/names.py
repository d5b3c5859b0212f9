"""Names of rows, groups and categories: checked once, where they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catwise._arrays import as_numpy
from catwise.errors import CategoryError, CatwiseError, IdError, ShapeError, nearest

Names: TypeAlias = NDArray[np.str_]


def row_names(values: Any, n_rows: int, what: str, *, unique: bool) -> Names | None:
    """Ids or groups (N,) as a read-only array of texts; whole numbers become texts."""
    if values is None:
        return None
    array = _as_text(values, what)
    if array.shape != (n_rows,):
        raise ShapeError(
            f"{what} do not fit the labels.",
            found=f"shape {array.shape}",
            expected=f"({n_rows:,},): one for each row",
        )
    blank = np.flatnonzero(array == "")
    if len(blank):
        raise IdError(
            f"{what} must not be blank.",
            found=f"{len(blank):,} blank, first in row {int(blank[0])}",
            remedy="give every row a name" + ("" if unique else ", its own where it has no group"),
        )
    if unique:
        refuse_repeats(array, "row {}".format, f"{what} repeat.", expected="every id once")
    array.flags.writeable = False
    return array


def _as_text(values: Any, what: str) -> Names:
    array = as_numpy(values, name=what, error=IdError)
    if array.dtype.kind == "O":
        wrong = [v for v in array.ravel() if not isinstance(v, (str, int, np.integer))]
        if wrong:
            raise _no_name(what, repr(wrong[0]))
    elif array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise _no_name(what, str(error)) from error
    elif array.dtype.kind not in "UiuT" and array.size:
        raise _no_name(what, f"dtype {array.dtype}")
    return np.array(array, dtype=np.str_)  # a copy


def _no_name(what: str, found: str) -> IdError:
    return IdError(f"{what} must be texts or whole numbers.", found=found)


def refuse_repeats(
    values: Any,
    place: Callable[[int], str],
    what: str,
    *,
    error: type[CatwiseError] = IdError,
    expected: str = "every one once",
    remedy: str | None = None,
) -> None:
    """Refuse (N,) values, a sequence or an array (numpy, Arrow), of which one repeats."""
    if hasattr(values, "unique") and len(values.unique()) == len(values):  # Arrow's own is quick
        return
    if not isinstance(values, (list, tuple)):
        values = values.tolist()
    n_twice = len(values) - len(set(values))
    seen: dict[Any, int] = {}
    for i, value in enumerate(values if n_twice else ()):
        first = seen.setdefault(value, i)
        if first != i:
            found = f"{value!r} in {place(first)} and {place(i)} ({n_twice:,} repeats in all)"
            raise error(what, found=found, expected=expected, remedy=remedy)


def category_names(
    names: Sequence[str] | None, n: int, *, of: str = "the labels", each: str = "column"
) -> tuple[str, ...]:
    """Different category names, one for `each`; "0", "1", … when not given."""
    if names is None:
        return tuple(str(j) for j in range(n))
    if isinstance(names, str):
        raise CategoryError("categories must be several names.", found=f"the text {names!r}")
    texts = tuple(str(name) for name in names)
    if len(texts) != n:
        raise ShapeError(
            f"categories do not fit {of}.",
            found=f"{len(texts):,} names",
            expected=f"{n:,}, one for each {each}",
        )
    what = "two categories have one name."
    refuse_repeats(texts, f"{each} {{}}".format, what, error=CategoryError)
    return texts


def category_positions(
    categories: tuple[str, ...], wanted: Iterable[str | int], *, of: str = "the labels have"
) -> NDArray[np.int64]:
    """Positions of categories given by name or by position."""
    lookup = {name: j for j, name in enumerate(categories)}
    found = []
    for one in wanted:
        position = lookup.get(one, -1) if isinstance(one, str) else int(one)
        if isinstance(one, str) and position < 0:
            raise CategoryError(
                f"{of} no category {one!r}{nearest(one, categories)}.",
                expected=f"one of {len(categories):,} names such as "
                + ", ".join(map(repr, categories[:3])),
            )
        if not 0 <= position < len(categories):
            raise CategoryError(
                f"{of} no category at position {position}.",
                expected=f"0 to {len(categories) - 1}",
            )
        found.append(position)
    return np.array(found, dtype=np.int64)
