"""Forests: categories one below the other, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from catwise._json import json_ready
from catwise._text import count, plural
from catwise.reporting.charts.changes import Change, by_gain, changes
from catwise.reporting.charts.chart import Axis, Chart, Series, Tone, axis_over, ticks
from catwise.reporting.charts.marks import height_for
from catwise.reporting.summary import is_loss, metric_label

MOST: Final = 60
"""Categories of a forest, if not told otherwise."""

_TONES: Final[tuple[Tone, ...]] = ("better", "worse", "same")
_LABELS: Final = {"better": "better", "worse": "worse", "same": "no difference shown"}


def gains(
    records: Sequence[Mapping[str, Any]],
    *,
    metric: str | None = None,
    most: int = MOST,
    width: int = 760,
) -> Chart:
    """Every category before → after, what gained most first.

    A hollow dot is the score of the original head, a full one that of the new head. The bar is
    the interval of the gain, set at the score before: it leaves out the hollow dot where a change
    is shown, and is coloured then. Test rows are drawn where the records have them. Known
    positives stand beside.

    Args:
        records: of a run, as `TuneResult.records` (or `records.json`), or the categories of an
            evaluation of two heads.
        metric: name of the metric; by default that of the records.
        most: at most so many categories: of more, half are those that gained most and half those
            that lost most.
        width: pixels.

    >>> record = {"category": "cat", "before": 0.5, "after": 0.75, "gain": 0.25, "gain_low": 0.125,
    ...           "gain_high": 0.375, "metric": "auroc", "n_positive_valid": 40}
    >>> chart = gains([record])
    >>> chart.rows, chart.beside, chart.description
    (('cat',), ('40',), '1 category; AUROC went up in 1 and down in 0.')
    """
    if metric is None:
        metric = next((str(one["metric"]) for one in records if one.get("metric")), None)
    found = by_gain(changes(records), metric)
    shown = _ends(found, most)
    rises = sum((one.gain or 0.0) > 0 for one in found)
    falls = sum((one.gain or 0.0) < 0 for one in found)
    size = plural(len(found), "category", "categories")
    cut = f"; the {len(shown) // 2} best and worst are drawn" if len(shown) < len(found) else ""
    label = metric_label(metric)
    values = [v for one in shown for v in _extent(one)]
    return Chart(
        title="Before and after, by category",
        description=f"{size}{cut}; {label} went up in {rises} and down in {falls}.",
        x=axis_over(_axis_label(metric), values),
        y=_rows_axis(len(shown)),
        series=(*_intervals(shown), *_moves(shown), *_dots(shown)),
        width=width,
        height=height_for(len(shown)),
        rows=tuple(one.category for one in shown),
        beside=tuple(count(one.n_positive) for one in shown),
        beside_label="positives",
    )


def _ends(found: list[Change], most: int) -> list[Change]:
    if len(found) <= most:
        return found
    half = max(1, most // 2)
    return [*found[:half], *found[-half:]]


def _axis_label(metric: object) -> str:
    return f"{metric_label(metric)} ({'less' if is_loss(metric) else 'more'} is better)"


def _rows_axis(n: int) -> Axis:
    return Axis("", -0.5, max(n, 1) - 0.5)


def _extent(one: Change) -> list[float]:
    before = one.before or 0.0
    ends = [before + end for end in (one.low, one.high) if end is not None]
    return [before, before + (one.gain or 0.0), *ends]


def _intervals(shown: list[Change]) -> list[Series]:
    """The interval of the gain, at the score before, by what it shows."""
    found = []
    for tone in _TONES:
        rows = [
            (i, one.before + one.low, one.before + one.high)
            for i, one in enumerate(shown)
            if one.tone == tone
            and one.before is not None
            and one.low is not None
            and one.high is not None
        ]
        if rows:
            y, low, high = zip(*rows, strict=True)
            found.append(Series("spans", tone, low, y, high, y, label=_LABELS[tone]))
    return found


def _moves(shown: list[Change]) -> list[Series]:
    """A thin line from before to after."""
    return [
        Series("line", one.tone, (one.before, one.before + one.gain), (i, i))  # type: ignore[arg-type]
        for i, one in enumerate(shown)
        if one.before is not None and one.gain
    ]


def _dots(shown: list[Change]) -> list[Series]:
    rows = [(i, cast("float", one.before), one) for i, one in enumerate(shown)]
    found = [
        Series(
            "dots",
            tone,
            tuple(before + (one.gain or 0.0) for _, before, one in rows if one.tone == tone),
            tuple(float(i) for i, _, one in rows if one.tone == tone),
        )
        for tone in _TONES
    ]
    before = Series(
        "dots",
        "before",
        tuple(value for _, value, _ in rows),
        tuple(float(i) for i, _, _ in rows),
        label="original",
    )
    return [before, *(one for one in found if one.x)]


def scores(
    records: Sequence[Mapping[str, Any]], metric: str, *, most: int = MOST, width: int = 760
) -> Chart:
    """The score of every category of one head with its interval, the highest first.

    Args:
        records: as `Evaluation.records()` gives them.
        metric: one of its metrics.
        most: at most so many categories: of more, half are the highest and half the lowest.
        width: pixels.

    >>> rows = [{"category": "cat", "auroc": 0.75, "auroc_low": 0.5, "auroc_high": 0.875,
    ...          "n_positive": 9}]
    >>> scores(rows, "auroc").rows
    ('cat',)
    """
    ready = [one for one in map(json_ready, records) if one.get(metric) is not None]
    ready.sort(key=lambda one: (-one[metric], str(one["category"])))
    if len(ready) > most:
        half = max(1, most // 2)
        ready = [*ready[:half], *ready[-half:]]
    low, high = f"{metric}_low", f"{metric}_high"
    spans = [(i, one[low], one[high]) for i, one in enumerate(ready) if one.get(low) is not None]
    y, lows, highs = zip(*spans, strict=True) if spans else ((), (), ())
    values = [
        v for one in ready for v in (one[metric], one.get(low), one.get(high)) if v is not None
    ]
    axis = axis_over(_axis_label(metric), values)
    return Chart(
        title="Score of each category",
        description=f"{metric_label(metric)} of {plural(len(ready), 'category', 'categories')} "
        "with intervals.",
        x=axis,
        y=_rows_axis(len(ready)),
        series=(
            Series("spans", "after", lows, y, highs, y),
            Series(
                "dots",
                "after",
                tuple(one[metric] for one in ready),
                tuple(float(i) for i in range(len(ready))),
            ),
        ),
        width=width,
        height=height_for(len(ready)),
        rows=tuple(str(one["category"]) for one in ready),
        beside=tuple(count(one.get("n_positive")) for one in ready),
        beside_label="positives",
    )


def all_gains(
    records: Sequence[Mapping[str, Any]], *, metric: str | None = None, width: int = 760
) -> Chart:
    """The gains of very many categories as one line, sorted, with up to 100 of their intervals.

    Args:
        records: as :func:`gains`.
        metric: name of the metric; by default that of the records.
        width: pixels.
    """
    if metric is None:
        metric = next((str(one["metric"]) for one in records if one.get("metric")), None)
    found = by_gain(changes(records), metric)
    drawn, few = _every(found, 400), _every(found, 100)
    values = [one.gain or 0.0 for one in found]
    ends = [v for _, one in few for v in (one.low, one.high) if v is not None]
    spans = [
        (float(i), one.low, one.high, one.tone)
        for i, one in few
        if one.low is not None and one.high is not None
    ]
    series = [
        Series.of("spans", tone, rows, label=_LABELS[tone])
        for tone in _TONES
        if (rows := [(x, low, x, high) for x, low, high, kind in spans if kind == tone])
    ]
    last = max(1, len(found) - 1)
    return Chart(
        title="The gain of every category, sorted",
        description=f"{plural(len(found), 'category', 'categories')}, what gained most first.",
        x=Axis("categories, sorted by gain", 0.0, float(last), ticks(0.0, float(last))),
        y=axis_over(f"gain in {metric_label(metric)}", [0.0, *values, *ends]),
        series=(
            *series,
            Series("line", "ideal", (0.0, float(last)), (0.0, 0.0)),
            Series(
                "line",
                "after",
                tuple(float(i) for i, _ in drawn),
                tuple(one.gain or 0.0 for _, one in drawn),
            ),
        ),
        width=width,
        height=280,
    )


def _every(found: list[Change], most: int) -> list[tuple[int, Change]]:
    """So many of them, evenly spaced, the last one too."""
    step = max(1, -(-len(found) // most))
    return [(i, one) for i, one in enumerate(found) if i % step == 0 or i == len(found) - 1]
