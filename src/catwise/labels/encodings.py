"""Named encodings: which raw value of an array or a table means what.

The same number means different things in different data sets: −1 is "uncertain" in CheXpert,
"unknown" in most partial-label sets and "negative" where 0 stands for unknown. So an encoding is
always named, and values that it does not know are refused with the encodings that would fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catwise.errors import LabelError, nearest
from catwise.labels.codes import CODE_NAMES, NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN, Codes

UNFIT: Final = -128  # the code of a raw value that an encoding does not know; never kept

Raw: TypeAlias = "float | str | None"
"""A raw value in its plain form: a number, a text that is not a number, or None for a blank."""

BLANK_TEXTS: Final = frozenset({"", "nan", "na", "n/a", "null", "none", "<na>"})
TRUTH_TEXTS: Final = {"true": 1.0, "false": 0.0}
SHOWN_VALUES: Final = 6


@dataclass(frozen=True, slots=True)
class Encoding:
    """What raw values mean.

    Args:
        name: how it is asked for.
        text: one line for people.
        codes: pairs of a raw value and its code; None stands for every kind of blank (NaN, None,
            an empty cell). LabelError if a code is not one of the four, or a value is given twice.

    >>> ENCODINGS["minus_one_uncertain"].mapping
    {1.0: 1, 0.0: 0, -1.0: -2, None: -1}
    """

    name: str
    text: str
    codes: tuple[tuple[float | str | None, int], ...]

    def __post_init__(self) -> None:
        raws = [raw for raw, _ in self.codes]
        wrong = [code for _, code in self.codes if code not in CODE_NAMES]
        if wrong or len(set(raws)) != len(raws):
            raise LabelError(
                f"the encoding {self.name!r} cannot be used.",
                found=f"the code {wrong[0]}" if wrong else "a raw value that is given twice",
                expected="different raw values, each with a code: "
                + ", ".join(f"{code} {name}" for code, name in CODE_NAMES.items()),
            )

    @property
    def mapping(self) -> dict[float | str | None, int]:
        """Raw value → code; None is a blank."""
        return dict(self.codes)

    def __str__(self) -> str:
        return f"{self.name!r} ({self.text})"


_ALL: Final = (
    Encoding(
        "nan",
        "1 positive, 0 negative, blank or NaN unknown",
        ((1.0, POSITIVE), (0.0, NEGATIVE), (None, UNKNOWN)),
    ),
    Encoding(
        "minus_one_unknown",
        "1 positive, 0 negative, -1 unknown",
        ((1.0, POSITIVE), (0.0, NEGATIVE), (-1.0, UNKNOWN)),
    ),
    Encoding(
        "minus_one_uncertain",
        "CheXpert: 1 positive, 0 negative, -1 uncertain, blank unknown",
        ((1.0, POSITIVE), (0.0, NEGATIVE), (-1.0, UNCERTAIN), (None, UNKNOWN)),
    ),
    Encoding(
        "zero_unknown",
        "1 positive, -1 negative, 0 unknown",
        ((1.0, POSITIVE), (-1.0, NEGATIVE), (0.0, UNKNOWN)),
    ),
    Encoding(
        "codes",
        "catwise's own: 1 positive, 0 negative, -1 unknown, -2 uncertain",
        ((1.0, POSITIVE), (0.0, NEGATIVE), (-1.0, UNKNOWN), (-2.0, UNCERTAIN)),
    ),
    Encoding(
        "complete",
        "1 positive, 0 negative, nothing blank",
        ((1.0, POSITIVE), (0.0, NEGATIVE)),
    ),
)

ENCODINGS: Final[Mapping[str, Encoding]] = {encoding.name: encoding for encoding in _ALL}
"""The named encodings."""


def encoding_of(meanings: Mapping[Any, str]) -> Encoding:
    """An encoding of your own: what each raw value means.

    Args:
        meanings: "positive", "negative", "unknown" or "uncertain" by raw value: a number, a text,
            or None for every kind of blank, which else is refused.

    Raises:
        LabelError: If a meaning is none of the four, or one value has two.

    >>> encoding_of({3: "positive", 0: "negative", -100: "unknown", "?": "uncertain"}).codes
    ((3.0, 1), (0.0, 0), (-100.0, -1), ('?', -2))
    """
    codes = {name: code for code, name in CODE_NAMES.items()}
    wrong = [meaning for meaning in meanings.values() if meaning not in codes]
    if wrong or not meanings:
        raise LabelError(
            "a raw value must mean something.",
            found=f"{wrong[0]!r}{nearest(str(wrong[0]), codes)}" if wrong else "no values",
            expected=", ".join(codes),
        )
    pairs = [(raw_value(value), meaning) for value, meaning in meanings.items()]
    text = ", ".join(f"{show_raw(raw)} {meaning}" for raw, meaning in pairs)
    return Encoding("given", text, tuple((raw, codes[meaning]) for raw, meaning in pairs))


def raw_value(value: Any) -> Raw:
    """The plain form of one raw value: a number, None for a blank, or the text as it stands."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, str):
        text = value.strip()
        lower = text.lower()
        if lower in BLANK_TEXTS:
            return None
        if lower in TRUTH_TEXTS:
            return TRUTH_TEXTS[lower]
        value = text
    elif isinstance(value, (complex, np.complexfloating, np.timedelta64, np.datetime64)):
        return str(value)  # some of which `float` would take, in part
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return None if number != number else number  # noqa: PLR0124 - NaN is what differs from itself


class _Cache(dict[Any, int]):
    """Raw value → code, worked out once for each different value."""

    def __init__(self, mapping: Mapping[Raw, int]) -> None:
        super().__init__()
        self.mapping = mapping

    def __missing__(self, value: Any) -> int:
        code = self.mapping.get(raw_value(value), UNFIT)
        if not isinstance(value, float) or value == value:  # noqa: PLR0124 - not NaN
            self[value] = code
        return code


def encode_values(values: NDArray[Any], encoding: Encoding) -> Codes:
    """int8 codes of raw values, `UNFIT` where the encoding does not know the value."""
    mapping = encoding.mapping
    if values.dtype.kind in "biuf":
        return _encode_numbers(values, mapping)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "surrogateescape")
    cache = _Cache(mapping)
    flat = values.ravel().tolist()
    codes = np.fromiter(map(cache.__getitem__, map(_hashable, flat)), np.int8, len(flat))
    return codes.reshape(values.shape)


def _hashable(value: Any) -> Any:
    return value if value.__hash__ is not None else str(value)


def _encode_numbers(values: NDArray[Any], mapping: Mapping[Raw, int]) -> Codes:
    codes = np.full(values.shape, UNFIT, dtype=np.int8)
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    for raw, code in mapping.items():
        if isinstance(raw, str):
            continue
        if raw is not None:
            codes[values == raw] = code
        elif values.dtype.kind == "f":
            codes[np.isnan(values)] = code
    return codes


def raw_values(values: NDArray[Any]) -> set[Raw]:
    """The different plain values of an array."""
    if values.dtype.kind in "biuf":
        return {raw_value(value) for value in np.unique(values).tolist()}
    return {raw_value(value) for value in {_hashable(v) for v in values.ravel().tolist()}}


def fitting_encodings(values: Iterable[Any]) -> tuple[str, ...]:
    """Names of the encodings that know every one of these raw values.

    Several may fit, and they mean different things: a person has to say which one is right.

    >>> fitting_encodings([1, 0, None])
    ('nan', 'minus_one_uncertain')
    >>> fitting_encodings([1, 0, -1])
    ('minus_one_unknown', 'minus_one_uncertain', 'zero_unknown', 'codes')
    """
    plain = {raw_value(value) for value in values}
    return tuple(name for name, encoding in ENCODINGS.items() if plain <= encoding.mapping.keys())


def resolve_encoding(encoding: str | Encoding | None, values: Iterable[Any] = ()) -> Encoding:
    """The encoding of that name."""
    if isinstance(encoding, Encoding):
        return encoding
    if isinstance(encoding, str) and encoding in ENCODINGS:
        return ENCODINGS[encoding]
    if encoding is None:
        raise unnamed_encoding(suggestion(values))
    raise LabelError(
        "there is no such encoding of labels.",
        found=f"{encoding!r}{nearest(str(encoding), ENCODINGS)}",
        expected="one of " + ", ".join(map(repr, ENCODINGS)),
    )


def unnamed_encoding(remedy: str) -> LabelError:
    """The error for labels without a named encoding."""
    return LabelError(
        "the encoding of the labels must be named: the same number means different things in "
        "different data sets.",
        expected="one of " + ", ".join(map(repr, ENCODINGS)),
        remedy=remedy,
    )


def suggestion(values: Iterable[Any]) -> str:
    """Which encodings fit these raw values, as a sentence."""
    plain = {raw_value(value) for value in values}
    names = fitting_encodings(plain)
    if names:
        return "the values fit " + "; ".join(f"encoding={ENCODINGS[name]}" for name in names)
    return (
        f"no encoding fits all of {_shown(plain)}: say what they mean, "
        "encoding_of({…: 'positive', …}) (--code VALUE=MEANING), or correct them"
    )


def _shown(values: Iterable[Raw]) -> str:
    ordered = sorted(values, key=lambda value: (value is None, isinstance(value, str), str(value)))
    texts = [show_raw(value) for value in ordered[:SHOWN_VALUES]]
    return ", ".join(texts) + (", …" if len(ordered) > SHOWN_VALUES else "")


def show_raw(value: Raw) -> str:
    """A raw value as people write it."""
    if value is None:
        return "blank"
    return repr(value) if isinstance(value, str) else f"{value:g}"


def encoding_error(
    encoding: Encoding, value: Any, *, where: str, n_unfit: int, remedy: str
) -> LabelError:
    """The error for values that an encoding does not know."""
    return LabelError(
        f"the encoding {encoding.name!r} does not know a value of the labels.",
        found=f"{show_raw(raw_value(value))} in {where} (first of {n_unfit:,})",
        expected=encoding.text,
        remedy=remedy,
    )
