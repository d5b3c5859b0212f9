"""How numbers and names are written for people."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

NOTHING: Final = "–"


def clean(text: object) -> str:
    r"""A text in which controls, overrides and lone surrogates cannot act on a terminal or page.

    Line ends and tabs become spaces; all else is shown as "�".
    """
    text = str(text)
    if text.isprintable():  # so says Python of none of the kinds below
        return text
    return "".join(
        " "
        if letter in "\t\n\r"
        else "\ufffd"
        if unicodedata.category(letter) in {"Cc", "Cs", "Cn"} or letter in _REORDERING
        else letter
        for letter in text
    )


_REORDERING: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def score(value: object) -> str:
    """A metric with four decimals; a dash where there is none."""
    number = _number(value)
    return NOTHING if number is None else f"{number:.4f}"


def gain(value: object) -> str:
    """A difference with its sign."""
    number = _number(value)
    if number is None:
        return NOTHING
    text = f"{abs(number):.4f}"
    if not text.strip("0."):
        return text
    return ("+" if number > 0 else "\N{MINUS SIGN}") + text


def interval(low: object, high: object) -> str:
    """An interval of differences."""
    if _number(low) is None or _number(high) is None:
        return NOTHING
    return f"{gain(low)} to {gain(high)}"


def count(value: object) -> str:
    """A number of things."""
    number = _number(value)
    return NOTHING if number is None else f"{round(number):,}"


def plural(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def some(texts: Sequence[str], n: int = 5, *, sep: str = ", ", noun: str = "") -> str:
    """The first of several texts, and how many more there are."""
    more = len(texts) - n
    rest = f"{sep.strip(', ')} and {more:,} more {noun}".rstrip() if more > 0 else ""
    return sep.join(texts[:n]) + rest


_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40
}  # fmt: skip


def bytes_of(text: str) -> int:
    """How many bytes a text such as 8GB, 500 MiB or 2e9 says; ValueError if none.

    >>> bytes_of("1.5GB"), bytes_of("2MiB")
    (1500000000, 2097152)
    """
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) *([kmgt]i?)?b?", text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is not a number of bytes")
    n = float(found[1]) * _UNITS[found[2] or ""]
    if not (math.isfinite(n) and n >= 1):
        raise ValueError(f"{text!r} is not a number of bytes")
    return int(n)


def value_text(value: Any) -> str:
    """Any plain value of a configuration, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else NOTHING
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value)) or NOTHING
    if isinstance(value, dict):
        value = "; ".join(f"{key} {value_text(item)}" for key, item in value.items())
    return NOTHING if value is None else clean(value) or NOTHING
