"""Pixels, as they are written."""

from __future__ import annotations

from typing import Final

_TENTHS: Final = tuple(n // 10 if n % 10 == 0 else n / 10 for n in range(20_001))
"""What pixels up to 2,000 are written as: a table, since a large page has millions of them."""


def rounded(value: float) -> float:
    """A pixel: to one digit, as JSON writes it.

    >>> rounded(2.04), rounded(2.16)
    (2, 2.2)
    """
    tenths = round(value * 10)
    if 0 <= tenths < len(_TENTHS):
        return _TENTHS[tenths]
    return tenths // 10 if tenths % 10 == 0 else tenths / 10


def rounded_within(values: list[float], low: float, high: float) -> list[float]:
    """Pixels between two others, or at these.

    >>> rounded_within([1.0, 2.04, 9.0], 2, 4.5)
    [2, 2, 4.5]
    """
    table, first, last = _TENTHS, round(10 * low), round(10 * high)
    if first < 0 or last >= len(table):
        return [rounded(min(high, max(low, value))) for value in values]
    return [
        table[first if place < first else last if place > last else place]
        for place in [round(10 * value) for value in values]
    ]
