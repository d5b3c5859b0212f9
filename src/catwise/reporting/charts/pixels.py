"""Pixels, as they are written."""

from __future__ import annotations


def rounded(value: float) -> float:
    """A pixel: to one digit, as JSON writes it.

    >>> rounded(2.04), rounded(2.16)
    (2, 2.2)
    """
    value = round(value, 1)
    whole = int(value)
    return whole if whole == value else value
