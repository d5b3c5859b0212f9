"""Pictures of how known rows score: of one category, or of several together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from catwise._text import plural
from catwise.reporting.charts.chart import (
    TONE_TEXTS,
    Axis,
    Chart,
    Series,
    Tone,
    axis_over,
    share_axis,
    ticks,
)

Record: TypeAlias = Mapping[str, Any]
"""Of one category, as `curves.json` and `CategoryCurves.to_dict` have it."""

Curves: TypeAlias = Record | Sequence[Record]

_GRID: Final = np.linspace(0.0, 1.0, 41)
_GROUPS: Final = 10
_TONES: Final[Mapping[str, Tone]] = {
    "before": "before",
    "after": "after",
    "score": "after",
    "uncalibrated": "before",
    "calibrated": "after",
}
_OWN_TEXTS: Final = ("uncalibrated", "calibrated")


def precision_recall(curves: Curves) -> Chart:
    """Precision at every recall, of the original head and the new one.

    Args:
        curves: of one category; of several, the mean of their precisions at every recall.

    >>> head = {"true": [0, 1, 2], "false": [0, 0, 1]}
    >>> one = {"category": "cat", "n_positive": 2, "n_negative": 3, "heads": {"score": head}}
    >>> precision_recall(one).series[0].y
    (1.0, 1.0, 0.6667)
    """
    return _ranking(curves, "Precision and recall", "recall", "precision", _precisions)


def roc(curves: Curves) -> Chart:
    """The share of positives found at every share of false alerts (the ROC curve).

    Args:
        curves: as :func:`precision_recall`.
    """
    chart = _ranking(
        curves, "True and false alerts (ROC)", "false positive rate", "true positive rate", _rates
    )
    chance = Series("line", "ideal", (0.0, 1.0), (0.0, 1.0))
    return _with(chart, (chance, *chart.series))


def reliability(curves: Curves) -> Chart:
    """How often images were positive against the probability that was given to them.

    On the diagonal probabilities mean what they say. Bins hold equally many rows.

    Args:
        curves: of one category; of several, their bins put together by probability.
    """
    records = _records(curves)
    series = [Series("line", "ideal", (0.0, 1.0), (0.0, 1.0))]
    for name in _heads(records):
        x, y = _reliability(records, name)
        tone, label = _TONES[name], _label(name, records)
        series += [Series("line", tone, x, y, label=label), Series("dots", tone, x, y)]
    return Chart(
        title="Do probabilities mean what they say?",
        description=f"Share of positives by predicted probability; {_rows_text(records)}.",
        x=share_axis("predicted probability"),
        y=share_axis("share that was positive"),
        series=tuple(series),
    )


def distribution(
    curves: Record, *, head: str | None = None, threshold: float | None = None
) -> Chart:
    """Where the known positives and negatives of one category score.

    Args:
        curves: of one category.
        head: "before", "after" or "score"; by default the last.
        threshold: logit from which an image is called positive; drawn as a line.
    """
    name = head or list(curves["heads"])[-1]
    one = curves["heads"][name]
    n = len(one["positives_at"])
    edges = np.linspace(
        one["low"], one["high"] if one["high"] > one["low"] else one["low"] + 1, n + 1
    )
    totals = {"negative": curves["n_negative"], "positive": curves["n_positive"]}
    series, top = [], 0.0
    sides: list[tuple[Tone, str]] = [("negative", "negatives_at"), ("positive", "positives_at")]
    for tone, key in sides:
        height = [value / max(1, totals[tone]) for value in one[key]]
        top = max(top, *height)
        steps = [i for i, value in enumerate(height) if value]
        series.append(
            Series(
                "bars",
                tone,
                tuple(float(edges[i]) for i in steps),
                (0.0,) * len(steps),
                tuple(float(edges[i + 1]) for i in steps),
                tuple(_short(height[i]) for i in steps),
                label=f"{TONE_TEXTS[tone]}s",
            )
        )
    if threshold is not None:
        series.append(Series("rules", "rule", (threshold,), label="threshold"))
    values = [*edges.tolist(), *([threshold] if threshold is not None else [])]
    return Chart(
        title="Where positives and negatives score",
        description=f"Distribution of the {_head_text(name)} logits; {_rows_text([curves])}.",
        x=axis_over("logit", values, most=5),
        y=Axis("share of rows", 0.0, top or 1.0, ticks(0.0, top or 1.0, 5)),
        series=tuple(series),
    )


def _with(chart: Chart, series: tuple[Series, ...]) -> Chart:
    return Chart(chart.title, chart.description, chart.x, chart.y, series)


def _records(curves: Curves) -> list[Record]:
    return [curves] if isinstance(curves, Mapping) else list(curves)


def _heads(records: Sequence[Record]) -> list[str]:
    """Names of the heads, in their order."""
    return list(dict.fromkeys(name for one in records for name in one["heads"]))


def _label(name: str, records: Sequence[Record]) -> str:
    text = name if name in _OWN_TEXTS else TONE_TEXTS[_TONES[name]]
    return text if len(_heads(records)) > 1 else ""


def _head_text(name: str) -> str:
    if name in _OWN_TEXTS:
        return name
    return {"before": "original head's", "after": "new head's"}.get(name, "head's")


def _rows_text(records: Sequence[Record]) -> str:
    if len(records) == 1:
        one = records[0]
        known = plural(one["n_positive"], "known positive")
        return f"{known} and {plural(one['n_negative'], 'negative')}"
    return f"{plural(len(records), 'category', 'categories')} together"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _ranking(
    curves: Curves,
    title: str,
    x_label: str,
    y_label: str,
    points: Any,
) -> Chart:
    """A curve of each head, over the categories that have both classes."""
    records = [one for one in _records(curves) if one["n_positive"] and one["n_negative"]]
    series = []
    for name in _heads(records):
        found = [points(one, one["heads"][name]) for one in records]
        if len(found) == 1:
            x, y = found[0]
        else:
            x = _GRID
            y = np.mean([np.interp(_GRID, own_x, own_y) for own_x, own_y in found], axis=0)
        series.append(
            Series(
                "line",
                _TONES[name],
                tuple(_short(v) for v in x.tolist()),
                tuple(_short(v) for v in y.tolist()),
                label=_label(name, records),
            )
        )
    mean = "Mean over " if len(records) > 1 else ""
    size = plural(len(records), "category", "categories")
    return Chart(
        title=title,
        description=f"{mean}{size}." if mean else f"{_rows_text(records)}.",
        x=share_axis(x_label),
        y=share_axis(y_label),
        series=tuple(series),
    )


def _counts(head: Record) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array(head["true"], dtype=np.float64), np.array(head["false"], dtype=np.float64)


def _precisions(record: Record, head: Record) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision; at recall 0 the precision of the highest scores."""
    true, false = _counts(head)
    called = true + false
    precision = np.divide(true, called, out=np.zeros_like(true), where=called > 0)
    if precision.size > 1:
        precision[0] = precision[1]
    return true / record["n_positive"], precision


def _rates(record: Record, head: Record) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rate."""
    true, false = _counts(head)
    return false / record["n_negative"], true / record["n_positive"]


def _reliability(
    records: Sequence[Record], name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean probability and share of positives; bins of several categories by probability."""
    bins = [
        (probability, positive, rows)
        for one in records
        if name in one["heads"]
        for probability, positive, rows in zip(
            *(one["heads"][name][key] for key in ("probability", "positive", "rows")), strict=True
        )
    ]
    if len(records) > 1:
        groups: dict[int, list[tuple[float, int, int]]] = {}
        for probability, positive, rows in bins:
            groups.setdefault(min(_GROUPS - 1, int(probability * _GROUPS)), []).append(
                (probability, positive, rows)
            )
        bins = [
            (
                sum(p * rows for p, _, rows in group) / sum(rows for *_, rows in group),
                sum(positive for _, positive, _ in group),
                sum(rows for *_, rows in group),
            )
            for _, group in sorted(groups.items())
        ]
    x = tuple(_short(probability) for probability, _, _ in bins)
    return x, tuple(_short(cast("float", positive / rows)) for _, positive, rows in bins)
