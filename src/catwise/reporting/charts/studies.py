"""Pictures of a study: what each method changes, and scores over the share of known labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from catwise._text import plural
from catwise.reporting.charts.chart import Axis, Chart, Series, Tone, axis_over, share_axis
from catwise.reporting.charts.marks import height_for
from catwise.reporting.summary import is_loss, metric_label

MOST: Final = 60
"""Rows of a picture, if not told otherwise."""
_TONES: Final[tuple[Tone, ...]] = ("after", "negative", "better", "worse", "positive", "same")
_ROW: Final = ("known", "reserve", "scheme", "backbone")


def study_differences(
    lines: Sequence[Mapping[str, Any]], metric: str, *, most: int = MOST, width: int = 760
) -> Chart | None:
    """What each method changes against the base, with its interval: a row for each kind of model.

    Args:
        lines: as `StudyResult.lines`, of one data set.
        metric: name of the metric.
        most: at most so many rows, the first.
        width: pixels.

    Returns:
        None where nothing was compared.

    >>> line = {"known": 0.1, "reserve": 0.0, "scheme": "asl", "backbone": "neck", "seeds": [0],
    ...         "method": "default", "difference": 0.5, "difference_low": 0.25,
    ...         "difference_high": 0.75}
    >>> chart = study_differences([line], "auroc")
    >>> chart.rows, [(one.kind, one.x) for one in chart.series]
    (('10% asl',), [('rules', (0.0,)), ('spans', (0.25,)), ('dots', (0.5,))])
    """
    compared = [line for line in lines if line["difference"] is not None]
    if not compared:
        return None
    differ = [axis for axis in _ROW if len({str(line[axis]) for line in compared}) > 1]
    differ = differ or ["known", "scheme"]
    names = dict.fromkeys(_row_name(line, differ) for line in compared)
    rows = {name: i for i, name in enumerate(list(names)[:most])}
    methods = list(dict.fromkeys(str(line["method"]) for line in compared))[: len(_TONES)]
    series = [Series("rules", "rule", (0.0,))]
    for k, (method, tone) in enumerate(zip(methods, _TONES, strict=False)):
        own = [
            one for one in compared if one["method"] == method and _row_name(one, differ) in rows
        ]
        at = [rows[_row_name(one, differ)] + 0.22 * (k - (len(methods) - 1) / 2) for one in own]
        spans = [
            (one["difference_low"], y, one["difference_high"], y)
            for one, y in zip(own, at, strict=True)
            if one["difference_low"] is not None
        ]
        series += [Series.of("spans", tone, spans)] if spans else []
        dots = [(one["difference"], y) for one, y in zip(own, at, strict=True)]
        label = method if len(methods) > 1 else ""
        series.append(Series.of("dots", tone, dots, label=label))
    values = [v for one in series for v in (*one.x, *one.x2)]
    better = "less" if is_loss(metric) else "more"
    cut = f"; the first {most} of {len(names)} rows" if len(names) > most else ""
    return Chart(
        title="What each method changes",
        description=f"{plural(len(names), 'kind of model', 'kinds of models')}, mean over seeds"
        f"{cut}.",
        x=axis_over(f"{metric_label(metric)} − that of the base ({better} is better)", values),
        y=Axis("", -0.5, max(len(rows), 1) - 0.5),
        series=tuple(series),
        width=width,
        height=height_for(2 * len(rows) if len(methods) > 2 else len(rows)),
        rows=tuple(rows),
    )


def _row_name(line: Mapping[str, Any], axes: Sequence[str]) -> str:
    """The values of some axes; an ensemble says so."""
    values = [line[axis] for axis in axes]
    texts = [f"{100 * value:.4g}%" if isinstance(value, float) else str(value) for value in values]
    if line["seeds"] == ["ensemble"]:
        texts.append("ensemble")
    return " ".join(texts)


def known_shares(
    lines: Sequence[Mapping[str, Any]], metric: str, *, width: int = 420
) -> Chart | None:
    """The score over the share of known labels: a line for each method, mean over what is left.

    Args:
        lines: as `StudyResult.lines`, of one data set.
        metric: name of the metric.
        width: pixels.

    Returns:
        None where there are not two shares.

    >>> lines = [{"known": known, "method": "base", "scheme": "asl", "backbone": "neck",
    ...           "reserve": 0.0, "seeds": [0], "score": score, "n_cells": 1}
    ...          for known, score in ((0.1, 0.25), (0.5, 0.5))]
    >>> known_shares(lines, "auroc").series[0].y
    (0.25, 0.5)
    """
    single = [
        line
        for line in lines
        if isinstance(line["known"], float)
        and not {"mean", "ensemble"} & {line["scheme"], line["backbone"], *line["seeds"]}
        and line["score"] is not None
    ]
    if len({line["known"] for line in single}) < 2:
        return None
    methods = list(dict.fromkeys(str(line["method"]) for line in single))[: len(_TONES)]
    kinds = {method: _kinds(single, method) for method in methods}
    shared = set.intersection(*kinds.values())
    if len({known for known, *_ in shared}) < 2:
        shared = set.union(*kinds.values())
    tones: tuple[Tone, ...] = ("before", *_TONES)
    series = []
    for method, tone in zip(methods, tones, strict=False):
        found: dict[float, list[float]] = {}
        for line in single:
            if line["method"] == method and _kind(line) in shared:
                found.setdefault(line["known"], []).append(line["score"])
        points = [(known, sum(own) / len(own)) for known, own in sorted(found.items())]
        if points:
            series += [Series.of("line", tone, points, label=method),
                       Series.of("dots", tone, points)]  # fmt: skip
    return Chart(
        title="Score by the share of known labels",
        description="Mean over schemes, backbones and seeds that all methods have.",
        x=share_axis("share of the training labels that is known"),
        y=axis_over(f"mean {metric_label(metric)}", [y for one in series for y in one.y]),
        series=tuple(series),
        width=width,
        height=300,
    )


def _kind(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["known"], line["reserve"], line["scheme"], line["backbone"], tuple(line["seeds"])


def _kinds(lines: Sequence[Mapping[str, Any]], method: str) -> set[tuple[Any, ...]]:
    return {_kind(line) for line in lines if line["method"] == method}
