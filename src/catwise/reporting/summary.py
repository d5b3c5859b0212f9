"""What a run came to, in a few texts: for the page and for the terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from catwise._text import count, gain, interval, score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["STATUSES", "facts", "headline", "metric_label", "summary_lines"]

STATUSES: Final = ("replaced", "kept", "skipped")
_METRIC_NAMES: Final = {"auroc": "AUROC", "f1": "F1", "best_f1": "best F1", "ece": "ECE"}


def summary_lines(document: Mapping[str, Any]) -> list[str]:
    """The result of a run in a few lines.

    Args:
        document: as :func:`~catwise.reporting.run_document` gives it.

    >>> summary_lines({"summary": {}, "records": [{"status": "kept"}]})[-1]
    '0 replaced, 1 kept, 0 skipped'
    """
    records = document.get("records") or []
    told = headline(document)
    found = Counter(str(record.get("status", "")) for record in records)
    scores = f"{told['before']} → {told['after']}, " if told["before"] else ""
    return [
        f"mean {told['metric']}: {scores}{told['change']}",
        told["covers"],
        ", ".join(f"{found[status]:,} {status}" for status in STATUSES),
    ]


def metric_label(name: object) -> str:
    """A metric's name for people."""
    text = str(name or "metric")
    return _METRIC_NAMES.get(text, text.replace("_", " "))


def headline(document: Mapping[str, Any]) -> dict[str, str]:
    """The mean before and after, its interval, what it covers."""
    summary = document.get("summary") or {}
    records = document.get("records") or []
    metric = metric_label(summary.get("metric"))
    before, after = summary.get("before"), summary.get("after")
    if before is None:
        return {
            "before": "",
            "after": "",
            "change": "no category could be scored",
            "covers": "Nothing is known about whether the head became better.",
            "metric": metric,
        }
    n_scored, total = summary.get("n_scored"), summary.get("n_categories", len(records))
    places = {str(record["scored_on"]) for record in records if record.get("scored_on")}
    where = f", {places.pop()}" if len(places) == 1 else ""
    return {
        "before": score(before),
        "after": score(after) if after is not None else "?",
        "change": _change(document, summary),
        "covers": f"Mean over {count(n_scored)} of {count(total)} categories{where}.",
        "metric": metric,
    }


def _change(document: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The gain and how sure it is."""
    if summary.get("after") is None:
        raw = score(summary.get("selected_on"))
        return f"not known without other data; {raw} on the data that chose it, not corrected"
    bounds = interval(summary.get("gain_low"), summary.get("gain_high"))
    level = summary.get("level") or (document.get("config") or {}).get("level") or 0.95
    return f"{gain(summary.get('gain'))} ({level:.0%} interval {bounds})"


def facts(
    summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """How many categories came to what, and the raw score."""
    found = Counter(str(record.get("status", "")) for record in records)
    pairs = [(status, f"{found[status]:,}") for status in STATUSES]
    if summary.get("selected_on") is not None:
        pairs.append(
            ("mean on the data that chose it (not corrected)", score(summary["selected_on"]))
        )
    if summary.get("seconds") is not None:
        pairs.append(("seconds", f"{float(summary['seconds']):,.3g}"))
    return pairs
