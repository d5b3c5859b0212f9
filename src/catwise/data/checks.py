"""What is refused of values that a file holds: one error for each rule, which names the places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catwise.errors import CatwiseError, IdError
from catwise.labels.codes import Rows

Place: TypeAlias = Callable[[int], str]  # where value i is, for people


def refuse_wrong(
    values: Any,
    good: Any,
    place: Place,
    what: str,
    *,
    error: type[CatwiseError] = IdError,
    expected: str | None = None,
    remedy: str | None = None,
) -> None:
    """Refuse values that are not good: (N,) truth values, or an Arrow array of them."""
    if getattr(good, "true_count", -1) == len(good):  # Arrow's own, quick
        return
    wrong = np.flatnonzero(~np.asarray(good, dtype=np.bool_))
    if len(wrong):
        row = int(wrong[0])
        value = values[row].as_py() if hasattr(values[row], "as_py") else values[row]
        value = value.item() if isinstance(value, np.generic) else value
        found = f"{value!r} in {place(row)} (first of {len(wrong):,})"
        raise error(what, found=found, expected=expected, remedy=remedy)


def refuse_two(
    keys: NDArray[Any],
    values: NDArray[Any],
    place: Place,
    what: str,
    *,
    names: tuple[NDArray[Any], NDArray[Any]] | None = None,
    expected: str | None = None,
    remedy: str | None = None,
) -> None:
    """Refuse a key (such as a patient) with two values (such as splits); both (N,)."""
    if names is None:
        _, first, keyed = np.unique(keys, return_index=True, return_inverse=True)
    else:
        first, keyed = first_rows(keys, len(names[0])), keys
    differ = np.flatnonzero(values != values[first[keyed]])
    if len(differ):
        row = int(differ[0])
        both = [int(first[keyed[row]]), row]
        key, two = keys[row], values[both]
        if names is not None:
            key, two = names[0][key], names[1][two]
        found = " and ".join(
            f"{v!r} in {place(i)}" for v, i in zip(two.tolist(), both, strict=True)
        )
        raise IdError(
            what,
            found=f"{key.item()!r}: {found} (first of {len(differ):,})",
            expected=expected,
            remedy=remedy,
        )


def first_rows(numbers: NDArray[Any], n: int) -> Rows:
    """(n,) the first row in which each number appears, -1 where it does not."""
    first = np.full(n, -1, dtype=np.int64)
    first[numbers[::-1]] = np.arange(len(numbers))[::-1]  # what is written last stays
    return first


def places(parts: Sequence[tuple[int, Place]]) -> Place:
    """The places of the values of several files, one after the other: (how many, their places)."""
    ends = np.cumsum([n for n, _ in parts])

    def place(i: int) -> str:
        k = int(np.searchsorted(ends, i, "right"))
        return parts[k][1](i - int(ends[k]) + parts[k][0])

    return place
