"""Every error that catwise raises on purpose.

CatwiseError
├── LabelError (ValueError)            labels, encodings, label tables
├── ShapeError (ValueError)            arrays that do not fit together
├── CategoryError (LookupError)        a category name or index that is not there
├── IdError (LookupError)              image ids: unmatched, duplicated, in two sources
├── FeatureError (ValueError)          feature values (NaN, Inf, wrong dtype)
├── FeatureStoreError (OSError)        a feature store on disk
├── HeadError (ValueError)             a classification layer that cannot be used
├── CheckpointError (OSError)          a checkpoint file that cannot be read or written
├── MismatchError (ValueError)         head, features and labels do not belong together
├── ConfigError (ValueError)           an option or a combination of options
├── OutputError (OSError)              a result that cannot be written
├── MissingExtraError (ImportError)    an optional dependency that is absent or broken
├── HarmError (RuntimeError)           an update whose head is worse than the one before
└── StudyError (RuntimeError)          a study of which cells failed

Each carries what was found, what was expected and what to try; `str(error)` is the
whole message. `exit_code` is what the command line returns for it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

__all__ = [
    "CategoryError",
    "CatwiseError",
    "CheckpointError",
    "ConfigError",
    "FeatureError",
    "FeatureStoreError",
    "HarmError",
    "HeadError",
    "IdError",
    "InSampleWarning",
    "LabelError",
    "MismatchError",
    "MissingExtraError",
    "OutputError",
    "ShapeError",
    "StudyError",
    "check_choice",
    "check_rules",
    "nearest",
    "reason_of",
]


class CatwiseError(Exception):
    """Base of all errors that catwise raises on purpose.

    Args:
        what: one sentence: what is wrong, and where.
        found: what was found.
        expected: what would have been right.
        remedy: what the user can do.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        found: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.found = found
        self.expected = expected
        self.remedy = remedy
        lines = [what]
        for label, text in (("found", found), ("expected", expected), ("try", remedy)):
            if text:
                lines.append(f"  {label + ':':<10}{text}")
        super().__init__("\n".join(lines))

    def __str__(self) -> str:
        return str(self.args[0])


class LabelError(CatwiseError, ValueError):
    """Labels, their encoding or their table cannot be used as given."""

    exit_code = 3


class ShapeError(CatwiseError, ValueError):
    """Arrays that do not fit together."""

    exit_code = 4


class CategoryError(CatwiseError, LookupError):
    """A category that is not where it should be."""

    exit_code = 5


class IdError(CatwiseError, LookupError):
    """Image or group ids that do not match, repeat, or sit in two sources."""

    exit_code = 6


class FeatureError(CatwiseError, ValueError):
    """Feature values that cannot be used."""

    exit_code = 7


class FeatureStoreError(CatwiseError, OSError):
    """A feature store or feature file that cannot be read or written."""

    exit_code = 8


class HeadError(CatwiseError, ValueError):
    """A classification layer that cannot be used."""

    exit_code = 9


class CheckpointError(CatwiseError, OSError):
    """A checkpoint file that cannot be read or written."""

    exit_code = 10


class MismatchError(CatwiseError, ValueError):
    """Head, features and labels that do not belong together."""

    exit_code = 11


class ConfigError(CatwiseError, ValueError):
    """An option, or a combination of options, that is not possible."""

    exit_code = 12


class OutputError(CatwiseError, OSError):
    """A result that cannot be written."""

    exit_code = 13


class MissingExtraError(CatwiseError, ImportError):
    """An optional dependency that is absent or broken."""

    exit_code = 14


class HarmError(CatwiseError, RuntimeError):
    """An update ended, and its head is worse than the one before on the same test rows."""

    exit_code = 15


class StudyError(CatwiseError, RuntimeError):
    """A study ended, and some of its cells failed; what did not is there."""

    exit_code = 16


class InSampleWarning(UserWarning):
    """A result was computed on rows that fitted or selected the head."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest valid name, or an empty string.

    >>> nearest("adm", ["adam", "lbfgs"])
    " (did you mean 'adam'?)"
    """
    found = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def reason_of(error: BaseException, *, named: bool = False) -> str:
    r"""What an error says in one line: the operating system's words, else its own first line.

    Args:
        error: of the operating system, or of another package.
        named: lead it by the error's class.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'No such file or directory'
    >>> reason_of(ValueError("no\nmore"), named=True)
    'ValueError: no'
    """
    words = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    kind = type(error).__name__
    return f"{kind}: {words}" if named and words else words or kind


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse the value of an option that is not one of its choices.

    Args:
        name: of the option, or what it is in words.
        value: as it was given.
        choices: what it may be; None among them is named last.

    Raises:
        ConfigError: Suggests the nearest.

    >>> check_choice("rule", "onest", ("honest", "greedy"))
    Traceback (most recent call last):
    catwise.errors.ConfigError: rule cannot be 'onest' (did you mean 'honest'?).
      expected: 'honest' or 'greedy'
    """
    allowed = sorted(choices, key=lambda choice: choice is None)
    if not any(value is choice or value == choice for choice in allowed):
        texts = [str(choice) for choice in allowed if choice is not None]
        raise ConfigError(
            f"{name} cannot be {value!r}{nearest(str(value), texts)}.",
            expected=" or ".join(map(repr, allowed)),
        )


def check_rules(what: str, options: object, rules: Mapping[str, bool]) -> None:
    """Refuse options that break a rule; all broken ones are named at once.

    Args:
        what: the options, such as "options of the genetic algorithm".
        options: a dataclass or a dict that holds them.
        rules: each rule, led by the names of the options that it is about, and whether it holds.

    Raises:
        ConfigError: Names the values found and the rules.

    >>> check_rules("options of a fit", {"lr": -1.0}, {"lr > 0": False})
    Traceback (most recent call last):
    catwise.errors.ConfigError: options of a fit are out of range.
      found:    lr=-1.0
      expected: lr > 0
    """
    broken = [rule for rule, holds in rules.items() if not holds]
    if not broken:
        return
    values = options if isinstance(options, dict) else vars(options)
    words = {word for rule in broken for word in re.findall(r"\w+", rule)}
    raise ConfigError(
        f"{what} are out of range.",
        found=", ".join(f"{name}={value!r}" for name, value in values.items() if name in words),
        expected="; ".join(broken),
    )
