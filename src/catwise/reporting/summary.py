"""What a run came to, in a few texts: for the page and for the terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from catwise.reporting.text import count, gain, interval, score

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
    summary = document.get("summary") or {}
    records = document.get("records") or []
    told = headline(summary, records)
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


def headline(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The mean before and after, its interval, what it covers."""
    metric = metric_label(summary.get("metric"))
    if summary.get("before") is None or summary.get("after") is None:
        return {
            "before": "",
            "after": "",
            "change": "No category could be scored.",
            "covers": "Nothing is known about whether the head became better.",
            "metric": metric,
        }
    scored = summary.get("n_scored")
    total = summary.get("n_categories", len(records))
    places = {str(r["scored_on"]) for r in records if r.get("scored_on")}
    where = f", {places.pop()}" if len(places) == 1 else ""
    bounds = interval(summary.get("gain_low"), summary.get("gain_high"))
    level = summary.get("level", 0.95)
    return {
        "before": score(summary.get("before")),
        "after": score(summary.get("after")),
        "change": f"{gain(summary.get('gain'))} ({level:.0%} interval {bounds})",
        "covers": f"Mean over {count(scored)} of {count(total)} categories{where}.",
        "metric": metric,
    }


def facts(
    summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """How many categories came to what, and the raw score."""
    found = Counter(str(record.get("status", "")) for record in records)
    pairs = [(status, f"{found[status]:,}") for status in STATUSES]
    if summary.get("selected_on") is not None:
        pairs.append(("mean on the data that chose it (too high)", score(summary["selected_on"])))
    if summary.get("seconds") is not None:
        pairs.append(("seconds", f"{float(summary['seconds']):,.1f}"))
    return pairs
