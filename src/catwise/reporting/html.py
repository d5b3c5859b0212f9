"""A run as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, Final, NamedTuple, TypeAlias

from catwise._text import (
    clean,
    count,
    gain,
    interval,
    plural,
    score,
    value_text,
)
from catwise.reporting.summary import STATUSES, facts, headline, metric_label

__all__ = ["render_report"]

_TITLES: Final = {"tune": "Category-wise fine-tuning", "select": "Selection of heads"}
_SHOWN_NAMES: Final = 12


def render_report(document: Mapping[str, Any]) -> str:
    """One self-contained page for a run: it loads nothing and runs only its own sorting script.

    Args:
        document: what :func:`~catwise.reporting.run_document` gives: `kind`, `summary`, `records`,
            `config`, `inputs`, `gap`, `notes`, `catwise`; and of `fix`: `test`, the scores on
            images that chose nothing, and `checkpoint`. What is absent is left out of the page.

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
        finalize=lambda value: clean(value) if isinstance(value, str) else value,
    )
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        **_view(document),
        policy=_policy(style, script),
        style=_Verbatim(style),
        script=_Verbatim(script),
    )


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
    metric = metric_label(summary.get("metric"))
    return {
        "title": _TITLES.get(kind, "Run"),
        "metric": metric,
        "version": document.get("catwise", ""),
        "headline": headline(document),
        "facts": facts(summary, records),
        "test": _test(document.get("test")),
        "table": _table(_with_test(records, document.get("test"))),
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


class _Cell(NamedTuple):
    """What a cell shows, and what it is sorted by."""

    text: str
    key: Any


def _plain(value: object) -> str:
    return "" if value is None else str(value)


def _columns(candidates: Sequence[str]) -> list[tuple[str, str, _Maker]]:
    """Heading, kind and cells of every column after the category's name."""

    def of(key: str, text: Callable[[object], str] = _plain) -> _Maker:
        return lambda record: _Cell(text(record.get(key)), _sort_key(record.get(key)))

    def bounds(record: Mapping[str, Any]) -> _Cell:
        low, high = record.get("gain_low"), record.get("gain_high")
        return _Cell(interval(low, high), _sort_key(low))

    def candidate(name: str) -> _Maker:
        return lambda record: of(name, score)(record.get("candidates") or {})

    return [
        ("status", "status", of("status")),
        ("before", "number", of("before", score)),
        ("after", "number", of("after", score)),
        ("gain", "number", of("gain", gain)),
        ("interval", "number", bounds),
        ("raw", "number", of("selected_on", score)),
        ("test before", "number", of("test_before", score)),
        ("test after", "number", of("test_after", score)),
        ("train +", "number", of("n_positive_train", count)),
        ("train −", "number", of("n_negative_train", count)),
        ("fresh +", "number", of("n_positive_valid", count)),
        ("fresh −", "number", of("n_negative_valid", count)),
        ("AUROC gap", "number", of("gap_auroc", gain)),
        *((f"{name} (raw)", "number", candidate(name)) for name in candidates),
        ("candidate", "text", of("candidate")),
        ("why", "why", lambda record: _Cell(_why(record), str(record.get("reason", "")))),
    ]


_Maker: TypeAlias = "Callable[[Mapping[str, Any]], _Cell]"


def _sort_key(value: Any) -> Any:
    return "" if value is None else value


def _table(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of all categories; columns in which no category has a number are left out."""
    made = [
        (heading, kind, [make(record) for record in records])
        for heading, kind, make in _columns(_candidates(records))
    ]
    columns = [one for one in made if one[1] != "number" or any(c.key != "" for c in one[2])]
    rows = []
    for number, record in enumerate(records):
        status = str(record.get("status", ""))
        rows.append(
            {
                "name": str(record.get("category", number)),
                "number": number,
                "status": status if status in STATUSES else "other",
                "cells": [(kind, *cells[number]) for _, kind, cells in columns],
            }
        )
    return {"headings": [(heading, kind) for heading, kind, _ in columns], "rows": rows}


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


def _test(test: object) -> dict[str, Any] | None:
    """The means before and after on test images."""
    if not isinstance(test, Mapping) or not test:
        return None
    rows = [
        [
            metric_label(name),
            score(mean.get("before")),
            score(mean.get("after")),
            gain(mean.get("change")),
            interval(mean.get("change_low"), mean.get("change_high")),
            f"{count(mean.get('n_categories'))} of {count(test.get('n_categories'))}",
        ]
        for name, mean in (test.get("means") or {}).items()
    ]
    level = f"{test.get('level') or 0.95:.0%}"
    return {"images": count(test.get("images")), "rows": rows, "level": level}


def _with_test(records: Sequence[Mapping[str, Any]], test: object) -> list[Mapping[str, Any]]:
    """The records with each category's scores on the test images."""
    if not isinstance(test, Mapping) or not test:
        return list(records)
    metric, found = test.get("metric"), {}
    for row in test.get("categories") or []:
        sides = {f"test_{side}": row.get(f"{metric}_{side}") for side in ("before", "after")}
        found[str(row["category"])] = sides
    return [{**record, **found.get(str(record.get("category")), {})} for record in records]


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
