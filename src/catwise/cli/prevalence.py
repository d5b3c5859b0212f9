"""True shares of positives, from the command line and from files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Final

from catwise.errors import ConfigError

PREVALENCE_HELP: Final = (
    "NAME=VALUE for a category (repeatable), or a file: CSV with the columns category and "
    "prevalence, or JSON."
)


def one_or_many(given: tuple[str, ...]) -> float | dict[str, float] | None:
    """One share for all categories, or shares by name; None where none is given."""
    if not given:
        return None
    if len(given) == 1:
        with contextlib.suppress(ValueError):
            float(given[0])
            return _share(given[0], f"--prevalence {given[0]}")
    return load_prevalence(given)


def load_prevalence(given: tuple[str, ...]) -> dict[str, float]:
    """True shares of positives from files and from NAME=VALUE; what comes later counts.

    A file is a table with the columns "category" and "prevalence", or JSON: an object of shares.
    """
    shares: dict[str, float] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        path = Path(text)
        if equals and not path.is_file():
            shares[name] = _share(value, f"--prevalence {text}")
        elif not path.is_file():
            raise ConfigError(
                "a prevalence must be NAME=VALUE or a file.",
                found=f"--prevalence {text}",
                expected="such as cat=0.1, or a file that is there",
            )
        elif path.suffix.lower() == ".json":
            shares |= _json_shares(path)
        else:
            shares |= _table_shares(path)
    return shares


def _json_shares(path: Path) -> dict[str, float]:
    from catwise._json import parse
    from catwise._limits import MAX_JSON, read_within

    try:
        found = parse(read_within(path, MAX_JSON).decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read prevalences from '{path}'.",
            found=getattr(error, "strerror", None) or str(error),
            expected='JSON such as {"cat": 0.1}',
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"'{path}' holds no prevalences.",
            found=type(found).__name__,
            expected='a JSON object such as {"cat": 0.1}',
        )
    return {name: _share(value, f"{name!r} in '{path}'") for name, value in found.items()}


def _table_shares(path: Path) -> dict[str, float]:
    from catwise.data.files import open_table
    from catwise.data.source import texts_of

    file = open_table(path)
    file.require("category", "the names of the categories")
    file.require("prevalence", "the share of positives of each")
    shares: dict[str, float] = {}
    row = 0
    for batch in file.batches(["category", "prevalence"]):
        values = batch.column("prevalence").to_pylist()
        for name, value in zip(texts_of(batch.column("category")).tolist(), values, strict=True):
            where = file.place(row, "prevalence")
            row += 1
            if name in shares:
                raise ConfigError(f"{where}: duplicate category {name!r}.")
            if value is not None and str(value).strip():
                shares[name] = _share(value, where)
    return shares


def _share(value: Any, where: str) -> float:
    with contextlib.suppress(TypeError, ValueError):
        share = float(value)
        if not isinstance(value, bool) and 0 < share < 1:
            return share
    raise ConfigError(
        "a prevalence is a share of positives.",
        found=f"{value!r} ({where})",
        expected="a number inside (0, 1), such as cat=0.1",
    )
