"""Records as CSV, as plain JSON values and as tables on a terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from catwise._text import NOTHING, clean, count, gain, interval, plural, score
from catwise.reporting.summary import (
    gain_interval,
    is_loss,
    metric_label,
    outcome_of,
    outcome_text,
    scored_on,
)
from catwise.tuning.account.documents import Record

if TYPE_CHECKING:
    from rich.table import Table


RECORD_COLUMNS: Final = Record.columns()
"""What every record of a run holds, in the order of `records.csv`."""

# Excel, LibreOffice and Google Sheets run what starts so as a formula; the wide forms count too.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
_SIGNS: Final = ("positive", "negative")
_STYLES: Final = {"better": "green", "worse": "red"}
_MANY: Final = (
    "among many categories some intervals leave out 0 by chance: better and worse are "
    "at a false discovery rate of 5%"
)


def json_ready(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinities become null, arrays become lists.

    Args:
        value: numbers, texts, mappings, sequences, numpy or torch values, paths; nested.

    Returns:
        The same in None, bool, int, float, str, list and dict with text keys.

    >>> json_ready({"a": float("nan"), 1: (2, None)})
    {'a': None, '1': [2, None]}
    """
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


def defuse(text: str) -> str:
    """A text that no spreadsheet takes for a formula: an apostrophe goes before ``= + - @``.

    Source: OWASP, "CSV Injection".

    >>> defuse("=1+1"), defuse("-x"), defuse("a=b")
    ("'=1+1", "'-x", 'a=b')
    """
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
    """Rows as CSV (RFC 4180), with a header line and Unix line ends.

    Numbers keep all their digits; None and NaN are empty; lists and tables are JSON; texts that a
    spreadsheet would run are defused.

    Args:
        rows: one mapping a row.
        columns: these first; further keys follow in the order in which they are met.

    >>> print(rows_csv([{"name": "=a,b", "x": -1.5}, {"x": None}]), end="")
    name,x
    "'=a,b",-1.5
    ,
    """
    names = dict.fromkeys(columns)
    for row in rows:
        names.update(dict.fromkeys(map(str, row)))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([defuse(name) for name in names])
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return buffer.getvalue()


def records_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """The records of a run as CSV, :data:`RECORD_COLUMNS` first; see :func:`rows_csv`."""
    return rows_csv(records, RECORD_COLUMNS)


def _table(title: str, columns: Sequence[tuple[str, bool]]) -> Table:
    """An empty table; the flag says that a column holds numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name, numeric in columns:
        table.add_column(
            name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold"
        )
    return table


def _add(table: Table, cells: Iterable[str], style: str = "") -> None:
    """Add a row; names are shown as they are, never as markup."""
    from rich.text import Text

    table.add_row(*(Text(clean(cell)) for cell in cells), style=style)


def _first(
    rows: Sequence[Mapping[str, Any]], limit: int, importance: str
) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The rows to show, in their order, and what to say about the others."""
    if limit <= 0 or len(rows) <= limit:
        return rows, ""

    def size(position: int) -> tuple[float, int]:
        value = json_ready(rows[position].get(importance))
        number = abs(value) if isinstance(value, (int, float)) else -1.0
        return -number, position

    chosen = sorted(sorted(range(len(rows)), key=size)[:limit])
    return [rows[i] for i in chosen], f"{len(rows) - limit:,} further categories are not shown"


def records_table(
    records: Sequence[Mapping[str, Any]], *, limit: int = 40, title: str = "Categories"
) -> Table:
    """The records of a run as a table for a terminal: what the rows that chose say.

    Green is a gain that is shown, red a loss; what was kept has no colour.

    Args:
        records: as in `TuneResult.records`; the known labels shown are the validation labels, or
            the training labels where there are no others.
        limit: at most so many rows, those with the largest gain or loss; 0 shows all.
        title: what stands above; it says which rows the scores are of.
    """
    raw = any(r.get("after") is None and r.get("selected_on") is not None for r in records)
    names = ["before", "after", *(["raw"] if raw else []), "gain", "interval", "+ / −"]
    columns = [("category", False), ("status", False), *((name, True) for name in names)]
    table = _table(title, [*columns, ("why", False)])
    shown, rest = _first(records, limit, "gain")
    for record in shown:
        status = str(record.get("status", ""))
        cells = [
            str(record.get("category", "")),
            status,
            score(record.get("before")),
            score(record.get("after")),
            *([score(record.get("selected_on"))] if raw else []),
            gain(record.get("gain")),
            gain_interval(record),
            _known(record),
            str(record.get("reason", "")),
        ]
        _add(table, cells, "dim" if status == "skipped" else _STYLES.get(outcome_of(record), ""))
    table.caption = rest or None
    return table


def _known(record: Mapping[str, Any]) -> str:
    """Known positives and negatives of the data that scored."""
    where = "train" if record.get("n_positive_valid") is None else "valid"
    return " / ".join(count(record.get(f"n_{sign}_{where}")) for sign in _SIGNS)


def by_difference(rows: Iterable[Mapping[str, Any]], metric: object) -> list[Mapping[str, Any]]:
    """Categories of an evaluation, what became best first, those without a difference last."""
    sign = 1 if is_loss(metric) else -1

    def place(row: Mapping[str, Any]) -> tuple[bool, float]:
        value = json_ready(row.get("difference"))
        return value is None, 0.0 if value is None else sign * value

    return sorted(rows, key=place)


def run_table(document: Mapping[str, Any], *, limit: int = 40) -> Table:
    """The categories of a run as a table for a terminal: on test rows where there are any.

    Args:
        document: as :func:`~catwise.reporting.run_document` gives it.
        limit: at most so many rows; 0 shows all.
    """
    if document.get("evaluation"):
        return differences_table(document["evaluation"], limit=limit)
    where, role = scored_on(document)
    return records_table(document["records"], limit=limit, title=f"On {where}, which {role}")


def differences_table(
    evaluation: Mapping[str, Any], *, limit: int = 40, title: str | None = None
) -> Table:
    """Both heads on the same rows, category by category, as a table for a terminal.

    Args:
        evaluation: as in `TuneResult.evaluation`.
        limit: at most so many rows, those with the largest difference; 0 shows all.
        title: what stands above; by default that these are test rows.
    """
    if title is None:
        rows = plural(int(evaluation["n_rows"]), "test row")
        title = f"{metric_label(evaluation['metric'])} on {rows}, which chose nothing"
    names = ("before", "after", "difference", f"{evaluation['level']:.0%} interval", "positives")
    columns = [("category", False), *((name, True) for name in names), ("shows", False)]
    table = _table(title, columns)
    shown, rest = _first(evaluation["categories"], limit, "difference")
    for row in by_difference(shown, evaluation["metric"]):
        cells = (
            str(row.get("category", "")),
            score(row.get("before")),
            score(row.get("after")),
            gain(row.get("difference")),
            interval(row.get("difference_low"), row.get("difference_high")),
            count(row.get("n_positive")),
            outcome_text(row),
        )
        _add(table, cells, _STYLES.get(str(row.get("outcome")), ""))
    told = [rest, _MANY if any(map(_is_one_of_many, shown)) else ""]
    table.caption = "\n".join(filter(None, told)) or None
    return table


def _is_one_of_many(row: Mapping[str, Any]) -> bool:
    """Whether its interval alone would show a difference, which among many it does not."""
    low, high = row.get("difference_low"), row.get("difference_high")
    if low is None or high is None or low <= 0 <= high:
        return False
    return row.get("outcome") == "no_difference"


def evaluation_table(
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    *,
    limit: int = 40,
    title: str = "Evaluation",
) -> Table:
    """Metrics per category as a table for a terminal, one or two of them with intervals.

    Args:
        rows: as `Evaluation.records()` gives them.
        metrics: the metrics to show, in order.
        limit: at most so many rows; 0 shows all.
        title: what stands above.
    """
    has_notes = any(row.get("interval_reason") for row in rows)
    names = [name for metric in metrics for name in (metric, "interval")[: 1 + (len(metrics) < 3)]]
    columns = [("category", False), *((name, True) for name in names)]
    table = _table(title, [*columns, *([("note", False)] if has_notes else [])])
    shown = rows if limit <= 0 else rows[:limit]
    for row in shown:
        cells = [str(row.get("category", ""))]
        for metric in metrics:
            cells.append(score(row.get(metric)))
            if len(metrics) < 3:
                cells.append(_range(row.get(f"{metric}_low"), row.get(f"{metric}_high")))
        _add(table, [*cells, *([str(row.get("interval_reason") or "")] if has_notes else [])])
    if len(shown) < len(rows):
        table.caption = f"{len(rows) - len(shown):,} further categories are not shown"
    return table


def _range(low: object, high: object) -> str:
    """The interval of a score."""
    return NOTHING if low is None or high is None else f"{score(low)} to {score(high)}"


def means_table(means: Mapping[str, Mapping[str, Any]], *, title: str = "Means") -> Table:
    """The means of an evaluation as a table for a terminal; each says how much it covers.

    Args:
        means: as `Evaluation.to_dict()["means"]` gives them.
        title: what stands above.
    """
    names = ["macro", "interval", "micro", "categories"]
    table = _table(title, [("metric", False), *((name, True) for name in names)])
    for name, mean in means.items():
        cells = [score(mean.get("macro")), _range(mean.get("macro_low"), mean.get("macro_high"))]
        _add(table, (name, *cells, score(mean.get("micro")), count(mean.get("n_categories"))))
    return table


def comparison_table(
    rows: Sequence[Mapping[str, Any]], *, metric: str = "mean AP", title: str
) -> Table:
    """Several heads on the same test data as a table for a terminal.

    Args:
        rows: dicts with name, score, gain, gain_low, gain_high, n_categories, seconds.
        metric: what the score is.
        title: what stands above.
    """
    names = (metric, "gain", "interval", "categories", "seconds")
    table = _table(title, [("head", False), *((name, True) for name in names)])
    for row in rows:
        seconds = json_ready(row.get("seconds"))
        cells = (
            str(row.get("name", "")),
            score(row.get("score")),
            gain(row.get("gain")),
            interval(row.get("gain_low"), row.get("gain_high")),
            count(row.get("n_categories")),
            NOTHING if seconds is None else f"{seconds:.1f}",
        )
        _add(table, cells)
    return table


def audit_table(rows: Sequence[Mapping[str, Any]], *, limit: int = 0, title: str) -> Table:
    """What is known of each category as a table for a terminal.

    Args:
        rows: as `LabelAudit.rows` gives them.
        limit: at most so many rows, those with the most known labels; 0 shows all.
        title: what stands above.
    """
    counts = ("known", "positive", "negative", "uncertain")
    shares = ("coverage", "prevalence")
    names = [
        ("category", False),
        *((n, True) for n in (*counts, *shares)),
        ("what CFT can do", False),
    ]
    table = _table(title, names)
    shown, rest = _first(rows, limit, "known")
    for row in shown:
        _add(
            table,
            (
                str(row.get("category", "")),
                *(count(row.get(name)) for name in counts),
                *(score(row.get(name)) for name in shares),
                str(row.get("reason", "")),
            ),
        )
    table.caption = rest or None
    return table
