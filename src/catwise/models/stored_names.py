"""Names of a model's rows as configuration files hold them: a list, or a table of numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from catwise._json import parse
from catwise.errors import CategoryError

_SHOWN = 5


def _refuse(where: str, found: str, expected: str) -> CategoryError:
    return CategoryError(
        f"{where} does not name the rows of the classification layer.",
        found=found,
        expected=expected,
        remedy="correct the file, so that row 0 has the first name (apply takes names with "
        "--head-categories FILE, load_model with categories=[…])",
    )


def names_by_number(names: object, *, where: str, n_rows: int | None = None) -> list[str]:
    """The names of rows 0, 1, … out of a list, or of a table whose keys are these numbers."""
    if isinstance(names, Mapping):
        keys = {str(key): key for key in names}
        wanted = [str(i) for i in range(len(names))]
        if wrong := [key for key in keys if key not in set(wanted)]:
            gaps = [key for key in wanted if key not in keys]
            raise _refuse(
                where,
                f"numbers {', '.join(wrong[:_SHOWN])}, and none for row {', '.join(gaps[:_SHOWN])}",
                f"the numbers 0 to {len(names) - 1:,}, each once",
            )
        names = [names[keys[key]] for key in wanted]
    if not isinstance(names, (list, tuple)):
        raise _refuse(where, f"a {type(names).__name__}", "a list, or a table of numbers and names")
    if odd := [name for name in names if not isinstance(name, (str, int, float))]:
        raise _refuse(where, f"a {type(odd[0]).__name__} as a name", "texts")
    if n_rows is not None and len(names) != n_rows:
        raise _refuse(where, f"{len(names):,} names", f"{n_rows:,}, one for each row")
    return [str(name) for name in names]


def check_inverse(names: list[str], inverse: object, *, where: str) -> None:
    """Refuse a table from names to numbers (`label2id`) that says something else than the names.

    An empty or absent table says nothing, nor does one of the names LABEL_0, LABEL_1, … that
    transformers writes when only the other table was set.
    """
    if not inverse:
        return
    if not isinstance(inverse, Mapping):
        raise _refuse(where, f"a {type(inverse).__name__}", "a table from names to numbers")
    table: Mapping[Any, Any] = inverse
    said = {str(name): str(number) for name, number in table.items()}
    if all(name == f"LABEL_{number}" for name, number in said.items()):
        return
    rows: dict[str, set[str]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, set()).add(str(row))
    wrong = [f"{n!r} is {said.get(n, 'absent')}" for n in rows if said.get(n) not in rows[n]]
    wrong += [f"{n!r} is {number}" for n, number in said.items() if n not in rows]
    if wrong:
        raise _refuse(where, "; ".join(wrong[:_SHOWN]), "the inverse of id2label, or none")


def unique_names(names: Sequence[str]) -> list[str]:
    """Tell equal names apart by their positions; ImageNet has two cranes."""
    seen = Counter(names)
    return [f"{name} ({i})" if seen[name] > 1 else name for i, name in enumerate(names)]


def with_fields(text: str, fields: Mapping[str, Any]) -> str:
    """A configuration with some fields set; the others stay as and where they are.

    >>> print(with_fields('{"b": 1, "num_labels": 2}', {"num_labels": 3}))
    {
      "b": 1,
      "num_labels": 3
    }
    """
    table = {**parse(text), **fields}
    return json.dumps(table, indent=2) + ("\n" if text.endswith("\n") else "")
