"""What a run came to, in a few texts: for the page, the terminal and `summary.json`.

Where there are test rows, which chose nothing, the headline is theirs; what the rows that fitted
or chose say stands beside it and is named so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from catwise._text import count, gain, interval, plural, score

STATUSES: Final = ("replaced", "kept", "skipped")
_OUTCOME_TEXTS: Final = {
    "no_difference": "no difference",
    "not_judged": "not judged",
    "no_known_label": "no label",
    "no_known_positive": "no positive",
    "no_known_negative": "no negative",
    "few_positives": "few positives",
    "few_negatives": "few negatives",
    "order_unchanged": "same order",
    "not_corrected": "not corrected",
    "no_interval_for_metric": "not for this metric",
}


class Headline(NamedTuple):
    """What stands first.

    Attributes:
        rows: which rows it is about: "test", "validation" or "training".
        verdict: "helped", "harmed", "no_difference" or "not_judged"; of test rows alone.
        text: one or two sentences, the verdict first.
        chose: what the rows that fitted or chose say, beside it; "" where the text says that.
    """

    rows: str
    verdict: str
    text: str
    chose: str


def headline(document: Mapping[str, Any]) -> Headline:
    """What a run came to.

    Args:
        document: as :func:`~catwise.reporting.run_document` gives it.

    >>> found = headline({"summary": {"before": 0.5, "after": 0.75, "gain": 0.25}, "records": []})
    >>> found.rows, found.verdict, found.text[:16]
    ('validation', 'not_judged', 'Validation only:')
    """
    evaluation = document.get("evaluation")
    where, role = scored_on(document)
    rows = "training" if where.startswith("training") else "validation"
    if evaluation:
        verdict, text = str(evaluation["verdict"]), str(evaluation["sentence"])
        return Headline("test", verdict, text, f"On {where}, which {role}: {_change(document)}.")
    start = "Training labels only" if rows == "training" else "Validation only"
    if _is_unchanged(document):
        text = f"Nothing replaced: {_change(document)} on {where}, which {role}."
        return Headline(rows, "not_judged", text, "")
    text = f"{start}: on {where}, which {role}, {_change(document)}."
    return Headline(rows, "not_judged", f"{text} Test rows, which choose nothing, would judge.", "")


def scored_on(document: Mapping[str, Any]) -> tuple[str, str]:
    """On which rows the records' own scores are, and what these rows did."""
    records = document.get("records") or []
    places = {str(record["scored_on"]) for record in records if record.get("scored_on")}
    where = places.pop() if len(places) == 1 else "validation"
    where, chose, _ = where.partition(", which chose")
    use = (document.get("config") or {}).get("validation")
    fitted = not chose and (where.startswith("training") or use == "fit_and_select")
    return where, "fitted and chose" if fitted else "chose"


def _is_unchanged(document: Mapping[str, Any]) -> bool:
    """Whether rows of the head were looked at, and all of them are as they were."""
    found = {record.get("status") for record in document.get("records") or []}
    known = (document.get("summary") or {}).get("after") is not None
    return known and "kept" in found and "replaced" not in found


def _change(document: Mapping[str, Any]) -> str:
    """The means before and after on the rows of the records."""
    summary = document.get("summary") or {}
    metric = metric_label(summary.get("metric"))
    if summary.get("before") is None:
        return "no category could be scored"
    before, after = score(summary["before"]), summary.get("after")
    total = summary.get("n_categories", len(document.get("records") or []))
    over = f"over {count(summary.get('n_scored'))} of {plural(total, 'category', 'categories')}"
    if after is None and summary.get("reason"):
        return f"mean {metric} {over} went from {before} to ?: {summary['reason']}"
    if after is None and summary.get("selected_on") is None:
        return f"mean {metric} {over} was {before} before, and after is not known (?)"
    if after is None:
        raw = score(summary["selected_on"])
        return (
            f"mean {metric} {over} went from {before} to {raw}, which is not corrected for the "
            "choosing and too high"
        )
    if _is_unchanged(document):
        return f"mean {metric} {over} stays {before}"
    level = summary.get("level") or (document.get("config") or {}).get("level") or 0.95
    bounds = bounds_text(summary.get("gain_low"), summary.get("gain_high"), level)
    return (
        f"mean {metric} {over} went from {before} to {score(after)} ({gain(summary.get('gain'))}, "
        f"{bounds}, corrected for the choosing)"
    )


def bounds_text(low: float | None, high: float | None, level: float) -> str:
    """An interval and its level inside a sentence.

    >>> bounds_text(-0.01, 0.02, 0.95), bounds_text(None, None, 0.95)
    ('95% interval −0.0100 to +0.0200', 'no interval')
    """
    if low is None or high is None:
        return "no interval"
    return f"{level:.0%} interval {interval(low, high)}"


def summary_lines(document: Mapping[str, Any]) -> list[str]:
    """The result of a run in a few lines, the headline first.

    Args:
        document: as :func:`~catwise.reporting.run_document` gives it.

    >>> summary_lines({"summary": {}, "records": [{"status": "kept"}]})[-1]
    'Rows of the head: 0 replaced, 1 kept, 0 skipped.'
    """
    first = headline(document)
    found = Counter(str(record.get("status", "")) for record in document.get("records") or [])
    counts = ", ".join(f"{found[status]:,} {status}" for status in STATUSES)
    return [*filter(None, (first.text, first.chose)), f"Rows of the head: {counts}."]


def metric_label(name: object) -> str:
    """A metric's name for people, as it stands inside a sentence.

    >>> metric_label("auroc"), metric_label("log_loss"), metric_label(None)
    ('AUROC', 'log-loss', 'metric')
    """
    from catwise.metrics import METRICS

    known = METRICS.get(str(name))
    return str(name or "metric").replace("_", " ") if known is None else known.text


def is_loss(metric: object) -> bool:
    """Whether less of a metric is better.

    >>> is_loss("log_loss"), is_loss("auroc")
    (True, False)
    """
    from catwise.metrics import METRICS

    known = METRICS.get(str(metric))
    return known is not None and not known.higher_is_better


def outcome_of(record: Mapping[str, Any]) -> str:
    """What a category's scores show: "better", "worse", or "" where neither is shown.

    That is what test rows say; without them what the interval of its corrected gain says.

    Args:
        record: of a run.

    >>> outcome_of({"metric": "auroc", "gain_low": 0.01, "gain_high": 0.2})
    'better'
    >>> outcome_of({"metric": "log_loss", "gain_low": 0.01, "gain_high": 0.2})
    'worse'
    """
    if "test_outcome" in record:
        found = str(record["test_outcome"])
        return found if found in {"better", "worse"} else ""
    low, high, metric = record.get("gain_low"), record.get("gain_high"), record.get("metric")
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "worse" if (low > 0) == is_loss(metric) else "better"


def outcome_text(row: Mapping[str, Any]) -> str:
    """What a category of an evaluation shows, or why nothing, in a few words.

    Args:
        row: with `outcome` and `reason`, as in `evaluation.json`.

    >>> outcome_text({"outcome": "not_judged", "reason": "few_positives"})
    'few positives'
    """
    found = str(row.get("reason") or row.get("outcome") or "")
    return _OUTCOME_TEXTS.get(found, found)


def gain_interval(record: Mapping[str, Any]) -> str:
    """The interval of a record's gain, or in a few words why there is none.

    >>> gain_interval({"gain_low": None, "gain_high": None, "interval_reason": "few_positives"})
    'few positives'
    """
    low, high, reason = (record.get(f) for f in ("gain_low", "gain_high", "interval_reason"))
    if reason and (low is None or high is None):
        return _OUTCOME_TEXTS.get(str(reason), str(reason))
    return interval(low, high)


def facts(
    summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """How many rows of the head came to what, and the raw score."""
    found = Counter(str(record.get("status", "")) for record in records)
    pairs = [(status, f"{found[status]:,}") for status in STATUSES]
    if summary.get("selected_on") is not None:
        pairs.append(
            ("mean on the data that chose it (not corrected)", score(summary["selected_on"]))
        )
    if summary.get("seconds") is not None:
        pairs.append(("seconds", f"{float(summary['seconds']):,.3g}"))
    return pairs
