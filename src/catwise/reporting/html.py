"""A run as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, Final

from catwise._text import (
    clean,
    count,
    gain,
    interval,
    plural,
    score,
    value_text,
)
from catwise.reporting.summary import (
    STATUSES,
    bounds_text,
    facts,
    gain_interval,
    headline,
    metric_label,
    outcome_of,
    outcome_text,
    scored_on,
)
from catwise.reporting.tables import Column, by_difference, numbers, text

_TITLES: Final = {"tune": "Category-wise fine-tuning", "select": "Selection of heads"}
_SHOWN_NAMES: Final = 12


def render_report(document: Mapping[str, Any]) -> str:
    """One self-contained page for a run: it loads nothing and runs only its own sorting script.

    Args:
        document: what :func:`~catwise.reporting.run_document` gives: `kind`, `summary`, `records`,
            `config`, `inputs`, `gap`, `notes`, `catwise`, `evaluation` (both heads on test rows,
            and under `heads` further ones); of `fix` the `checkpoint`; `thresholds`, as
            :meth:`catwise.decisions.Thresholds.to_dict` gives them. What is absent is left out of
            the page.

    Returns:
        HTML that is well-formed XML too. Every text from outside is escaped.

    >>> page = render_report({"kind": "tune", "summary": {}, "records": []})
    >>> page.startswith("<!DOCTYPE html>"), "://" in page
    (True, False)
    """
    from jinja2 import Environment, StrictUndefined

    folder = resources.files("catwise.reporting") / "templates"
    style = (folder / "report.css").read_text(encoding="utf-8")
    script = (folder / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if hasattr(value, "__html__") else _text(value),
    )
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        **_view(document),
        policy=_policy(style, script),
        style=_Verbatim(style),
        script=_Verbatim(script),
    )


def _text(value: object) -> object:
    return clean(value) if isinstance(value, str) else value


class _Verbatim:
    """A text of this package that goes into the page as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __html__(self) -> str:
        return self._text


def _policy(style: str, script: str) -> str:
    """A content security policy that allows this page's own style and script, and nothing else."""

    def allow(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return f"default-src 'none'; style-src {allow(style)}; script-src {allow(script)}"


def _view(document: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template shows, as texts."""
    summary = dict(document.get("summary") or {})
    records = list(document.get("records") or [])
    kind = str(document.get("kind", "tune"))
    where, role = scored_on(document)
    return {
        "title": _TITLES.get(kind, "Run"),
        "metric": metric_label(summary.get("metric")),
        "version": document.get("catwise", ""),
        "headline": headline(document),
        "scores": _scores(document),
        "facts": facts(summary, records),
        "test": _test(document.get("evaluation")),
        "thresholds": _thresholds(document.get("thresholds")),
        "where": where,
        "role": role,
        "table": _table(records),
        "reasons": _reasons(records),
        "gap": _gap(document.get("gap")),
        "notes": [str(note) for note in document.get("notes") or []],
        "groups": [
            (name, _flat(document[key]))
            for name, key in (
                ("Checkpoint", "checkpoint"),
                ("Inputs", "inputs"),
                ("Choices", "choices"),
                ("Configuration", "config"),
                ("Summary", "summary"),
            )
            if document.get(key)
        ],
    }


def _candidates(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the candidates whose scores the records hold."""
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(record.get("candidates") or {}))
    return list(names)


def _columns(candidates: Sequence[str]) -> list[Column]:
    """Every column after the category's name."""
    counts = {
        f"{data} {sign}": f"n_{name}_{data}"
        for data in ("train", "valid")
        for sign, name in (("+", "positive"), ("−", "negative"))
    }

    def candidate(name: str) -> Callable[[Mapping[str, Any]], object]:
        return lambda record: score((record.get("candidates") or {}).get(name))

    return [
        text("status"),
        *numbers(score, "before", "after"),
        *numbers(gain, "gain"),
        Column("interval", gain_interval, "gain_low"),
        *numbers(score, raw="selected_on"),
        *numbers(count, **counts),
        *numbers(gain, **{"AUROC gap": "gap_auroc"}),
        *(Column(f"{name} (raw)", candidate(name), name) for name in candidates),
        text("candidate"),
        Column("why", _why, "reason", numeric=False),
    ]


def _sort_key(record: Mapping[str, Any], column: Column) -> Any:
    of = (record.get("candidates") or {}) if column.name.endswith(" (raw)") else record
    value = of.get(column.key)
    return "" if value is None else value


def _table(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of all categories; columns in which no category has a number are left out."""
    columns = [
        (column, [_sort_key(record, column) for record in records])
        for column in _columns(_candidates(records))
    ]
    shown = [one for one in columns if not one[0].numeric or any(key != "" for key in one[1])]
    rows = []
    for number, record in enumerate(records):
        status = str(record.get("status", ""))
        rows.append(
            {
                "name": str(record.get("category", number)),
                "number": number,
                "status": status if status in STATUSES else "other",
                "outcome": outcome_of(record),
                "cells": [
                    (_kind(column, cell=True), str(column.cell(record)), keys[number])
                    for column, keys in shown
                ],
            }
        )
    return {"headings": [(column.name, _kind(column)) for column, _ in shown], "rows": rows}


def _kind(column: Column, *, cell: bool = False) -> str:
    """The class of a column's heading, and of its cells."""
    if column.numeric:
        return "number change" if cell and column.name == "gain" else "number"
    return column.name if column.name in {"status", "why"} else "text"


def _why(record: Mapping[str, Any]) -> str:
    return str(record.get("explanation") or record.get("reason") or "")


def _reasons(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The categories that share a status and a reason, largest group first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        key = (str(record.get("status", "")), str(record.get("reason", "")))
        groups.setdefault(key, []).append(record)
    order = {status: place for place, status in enumerate(STATUSES)}
    ordered = sorted(groups.items(), key=lambda item: (order.get(item[0][0], 9), -len(item[1])))
    result = []
    for (status, reason), members in ordered:
        texts = Counter(_why(record) for record in members)
        names = [str(record.get("category", "")) for record in members]
        result.append(
            {
                "status": status,
                "reason": reason,
                "count": plural(len(members), "category", "categories"),
                "explanation": next(iter(texts)) if len(texts) == 1 else "",
                "names": names[:_SHOWN_NAMES],
                "more": names[_SHOWN_NAMES:],
            }
        )
    return result


def _scores(document: Mapping[str, Any]) -> dict[str, str] | None:
    """The numbers of the headline; None where there are none."""
    found = document.get("evaluation") or document.get("summary") or {}
    if found.get("before") is None or found.get("after") is None:
        return None
    names = ("difference", "difference_low", "difference_high")
    if not document.get("evaluation"):
        names = ("gain", "gain_low", "gain_high")
    change, low, high = (found.get(name) for name in names)
    return {
        "before": score(found["before"]),
        "after": score(found["after"]),
        "change": gain(change),
        "bounds": bounds_text(low, high, found.get("level") or 0.95),
    }


def _test(evaluation: object) -> dict[str, Any] | None:
    """Both heads on test rows: the means, and each category, the largest difference first."""
    if not isinstance(evaluation, Mapping) or not evaluation:
        return None
    total = count(evaluation.get("n_categories"))
    means = [
        [*_differences(mean, metric_label(name)), f"{count(mean.get('n_scored'))} of {total}"]
        for name, mean in (evaluation.get("means") or {}).items()
    ]
    categories = [
        {
            "outcome": str(row.get("outcome", "")),
            "cells": [
                *_differences(row, str(row.get("category", ""))),
                count(row.get("n_positive")),
                count(row.get("n_negative")),
            ],
            "shows": outcome_text(row),
        }
        for row in by_difference(evaluation.get("categories") or [], evaluation.get("metric"))
    ]
    return {
        "rows": plural(int(evaluation["n_rows"]), "test row"),
        "level": f"{evaluation.get('level') or 0.95:.0%}",
        "means": means,
        "categories": categories,
        "heads": [_head_row(one) for one in evaluation.get("heads") or []],
    }


def _differences(row: Mapping[str, Any], name: str) -> list[str]:
    """Name, before, after, difference, interval."""
    low, high = row.get("difference_low"), row.get("difference_high")
    sides = (score(row.get(side)) for side in ("before", "after"))
    return [name, *sides, gain(row.get("difference")), interval(low, high)]


def _thresholds(found: object) -> dict[str, Any] | None:
    """From which logit each category is called positive, and what that reaches on test rows."""
    if not isinstance(found, Mapping) or not found.get("categories"):
        return None
    categories = found["categories"]
    rates = ("sensitivity", "specificity", "precision")
    is_tested = any("sensitivity" in one for one in categories)
    rows = []
    for one in categories:
        cells = [str(one["category"]), score(one["threshold"]), score(one["probability"])]
        if is_tested:
            for name in rates:
                cells.append(score(one.get(name)))
                cells.append(interval(one.get(f"{name}_low"), one.get(f"{name}_high")))
            cells.append(count(one.get("alerts_per_1000")))
        rows.append({"cells": cells, "explanation": str(one["explanation"])})
    headings = ["threshold (logit)", "probability there"]
    if is_tested:
        headings += [name for rate in rates for name in (rate, "interval")]
        headings.append("alerts per 1,000")
    lines = [str(found.get("population") or ""), *map(str, found.get("notes") or [])]
    return {
        "headings": headings,
        "rows": rows,
        "lines": [line for line in lines if line],
        "shown": "what that reaches on test rows, with intervals"
        if is_tested
        else "not tried on test rows",
    }


def _head_row(one: Mapping[str, Any]) -> list[str]:
    """One of several heads on the test rows."""
    bounds = interval(one.get("gain_low"), one.get("gain_high"))
    name = str(one.get("name", ""))
    return [name, score(one.get("score")), gain(one.get("gain")), bounds]


def _gap(gap: object) -> dict[str, Any] | None:
    """The memorisation gap: its advice and its numbers."""
    if not isinstance(gap, Mapping) or not gap:
        return None
    advice = gap.get("advice")
    lines = advice if isinstance(advice, (list, tuple)) else [advice] if advice else []
    rows = [
        [
            metric_label(name),
            score(one.get("training")),
            score(one.get("fresh")),
            gain(one.get("gap")),
            interval(one.get("low"), one.get("high")),
            count(one.get("n_categories")),
        ]
        for name, one in gap.items()
        if isinstance(one, Mapping)
    ]
    level = gap.get("level") or 0.95
    return {"advice": [str(line) for line in lines], "rows": rows, "level": f"{level:.0%}"}


def _flat(value: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    """A nested table as (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{path}{str(key).replace('_', ' ')}"
        if isinstance(item, Mapping) and item:
            pairs += _flat(item, f"{name} · ")
        else:
            pairs.append((name, value_text(item)))
    return pairs
