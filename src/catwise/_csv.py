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
