"""JSON: values that it can hold; what is read is bounded, and every field of it checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from catwise._limits import MAX_JSON, check_at_most, check_depth, read_within
from catwise.errors import CatwiseError


def number(value: float) -> float | int | None:
    """A number that JSON can hold: None for NaN and infinities; whole numbers stay whole."""
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def json_ready(value: Any) -> Any:
    """A nested value that JSON can hold: NaN and infinities become null, arrays and sets lists."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_ready(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return json_ready(value.tolist())
    return str(value)


@dataclass(frozen=True, slots=True)
class Field:
    """What a field of a table must be: in words, as a test, and whether it must be there."""

    expected: str
    test: Callable[[Any], bool]
    required: bool = True


TEXT: Final = Field("a text", lambda value: type(value) is str and value != "")
WHOLE: Final = Field("a whole number from 0 on", lambda value: type(value) is int and value >= 0)
COUNT: Final = Field("a positive whole number", lambda value: type(value) is int and value > 0)
TABLE: Final = Field("a table", lambda value: type(value) is dict)
TABLES: Final = Field(
    "a list of tables",
    lambda value: type(value) is list and all(type(item) is dict for item in value),
)
TEXTS: Final = Field(
    "a list of texts",
    lambda value: type(value) is list and all(type(item) is str for item in value),
)


def parse(raw: str | bytes, **options: Any) -> Any:
    """The value of a JSON text; of bytes as UTF-8, without a byte-order mark; not too deep."""
    try:
        return json.loads(raw if isinstance(raw, str) else raw.decode("utf-8"), **options)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    except ValueError as error:
        if "int_max_str_digits" in str(error):
            raise ValueError("a number has too many digits") from error
        raise


def own(raw: str | bytes) -> Any:
    """The value of a JSON text that catwise wrote: small, flat, without NaN or repeated keys."""
    check_at_most(len(raw), MAX_JSON, "bytes of JSON")
    value = parse(raw, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    if isinstance(value, (dict, list)):
        check_depth(value)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in table if names.count(name) > 1)
        raise ValueError(f"it has the field {twice!r} twice")
    return table


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"it holds {text}, which is not JSON")


def ready_text(
    table: Mapping[str, Any] | None,
    *,
    what: str,
    error: type[CatwiseError],
    sort_keys: bool = False,
) -> str:
    """A table as JSON text that reads back as it was; `error` where `what` is not JSON-ready."""
    try:
        text = json.dumps(dict(table or {}), sort_keys=sort_keys, allow_nan=False)
        own(text)  # as it will be read
    except (TypeError, ValueError, RecursionError) as reason:
        raise error(
            f"{what} must be JSON-ready.",
            found=str(reason),
            remedy="use texts, finite numbers, lists and tables with text keys",
        ) from reason
    return text


def read_file(path: Path) -> Any:
    """The value in a JSON file that catwise wrote."""
    return own(read_within(path, MAX_JSON, "bytes of JSON"))


def read_fields(table: Any, fields: Mapping[str, Field], what: str = "it") -> dict[str, Any]:
    """Those of the fields that a table has, if each is what it must be; ValueError otherwise."""
    if type(table) is not dict:
        raise ValueError(f"{what} is not a table")
    missing = [name for name, field in fields.items() if field.required and name not in table]
    wrong = [
        (name, field)
        for name, field in fields.items()
        if name in table and not field.test(table[name])
    ]
    if missing or wrong:
        problems = [f"{what} has no " + ", ".join(map(repr, missing))] if missing else []
        problems += [
            f"its {name!r} is {table[name]!r:.40}, not {field.expected}" for name, field in wrong
        ]
        raise ValueError("; ".join(problems))
    return {name: table[name] for name in fields if name in table}
