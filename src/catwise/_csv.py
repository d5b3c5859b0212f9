"""Rows as CSV that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from catwise._json import json_ready

# Excel, LibreOffice and Google Sheets run what starts so as a formula; the wide forms count too.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")


def defuse(text: str) -> str:
    """A text that no spreadsheet takes for a formula: an apostrophe before ``= + - @`` (OWASP)."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # the csv module leaves "\r" unquoted
    return "'" + text if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def armed(text: str) -> str:
    """The text that `defuse` was given.

    >>> armed(defuse("=1+1")), armed("'tis")
    ('=1+1', "'tis")
    """
    rest = text.removeprefix("'")
    return rest if defuse(rest) != rest else text


def _cell(value: Any) -> str:
    value = json_ready(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return defuse(value)
    return defuse(json.dumps(value, ensure_ascii=False))


def columns_csv(columns: Mapping[str, Sequence[Any]], *, header: bool = True) -> str:
    """Columns as CSV, as `rows_csv` writes rows; texts of numbers stand as they are.

    Args:
        columns: their cells by name: texts, of which only the first column's are defused, or None.
        header: whether to begin with the names.

    >>> print(columns_csv({"id": ["=a", "b"], "x": ["-1.5", None]}), end="")
    id,x
    '=a,-1.5
    b,
    """
    first, *others = columns.values()
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow([defuse(name) for name in columns])
    writer.writerows(zip(map(defuse, first), *others, strict=True))
    return buffer.getvalue()


def rows_csv(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = ()) -> str:
    """Rows as CSV (RFC 4180), with a header line and Unix line ends; `columns` stand first.

    Numbers keep all their digits; None and NaN are empty; lists and tables are JSON; texts that a
    spreadsheet would run are defused.
    """
    names = dict.fromkeys(columns)
    for row in rows:
        names.update(dict.fromkeys(map(str, row)))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([defuse(name) for name in names])
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return buffer.getvalue()
