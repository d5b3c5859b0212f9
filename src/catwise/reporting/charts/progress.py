"""Pictures of the way there: steps of a fit, what was memorised, which labels are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from catwise._json import json_ready
from catwise._text import count, plural
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
from catwise.reporting.charts.marks import height_for
from catwise.reporting.summary import metric_label

_METRICS: Final = ("auroc", "average_precision")
_METHOD_TONES: Final[tuple[Tone, ...]] = ("after", "negative", "better", "worse")


def learning(
    history: Sequence[Mapping[str, Any]],
    category: str | None = None,
    *,
    quantity: str = "score",
    metric: str | None = None,
) -> Chart | None:
    """A quantity after every step of back-propagation, or every generation of the genetic search.

    Args:
        history: of a run, as `TuneResult.history` or `history.json`.
        category: its curve; None: the mean over all tuned categories, of the score that of the
            best step so far.
        quantity: "score" on the validation labels, or "loss" or "fitness" on the training labels.
        metric: name of the metric that the score is of.

    Returns:
        None where the history has no such steps: preset `default` takes none.

    >>> steps = [{"method": "bp_bce", "step": s, "best": 0.5 + s / 10} for s in range(1, 4)]
    >>> learning(steps).series[0].y
    (0.6, 0.7, 0.8)
    """
    key = "best" if category is None and quantity == "score" else quantity
    lines = {
        name: (x, y)
        for name, (x, y) in _lines(history, category, key).items()
        if any(value is not None for value in y)
    }
    if not lines:
        return None
    series = [
        Series.of(
            "line",
            tone,
            [(float(a), float(f"{b:.5g}")) for a, b in zip(x, y, strict=True) if b is not None],
            label=name if len(lines) > 1 else "",
        )
        for tone, (name, (x, y)) in zip(_METHOD_TONES, lines.items(), strict=False)
    ]
    last = max(float(x[-1]) for x, _ in lines.values())
    values = [v for one in series for v in one.y]
    best = "best " if key == "best" else ""
    text = (
        f"{best}validation {metric_label(metric)}"
        if quantity == "score"
        else f"training {quantity}"
    )
    unit = "generation" if quantity == "fitness" or set(lines) == {"ga"} else "step"
    of = "mean over the tuned categories" if category is None else category
    return Chart(
        title=f"{text[0].upper()}{text[1:]} after every {unit}",
        description=f"{of}; {plural(int(last), unit)}.",
        x=Axis(unit, 0.0, last or 1.0, ticks(0.0, last or 1.0, 5)),
        y=axis_over(text, values, least=1e-4),
        series=tuple(series),
    )


def _lines(
    history: Sequence[Mapping[str, Any]], category: str | None, quantity: str
) -> dict[str, tuple[list[int], list[Any]]]:
    """Steps and values by method."""
    lines: dict[str, tuple[list[int], list[Any]]] = {}
    for entry in history:
        if quantity not in entry or "step" not in entry:
            continue
        name = str(entry.get("method", ""))
        if "category" in entry:
            if entry["category"] == category:
                lines[name] = list(entry["step"]), list(entry[quantity])
        elif category is None:
            steps, values = lines.setdefault(name, ([], []))
            steps.append(int(entry["step"]))
            values.append(json_ready(entry[quantity]))
    return {name: _thinned(*line) for name, line in lines.items()}


def _thinned(x: list[int], y: list[Any], most: int = 200) -> tuple[list[int], list[Any]]:
    step = -(-len(x) // most) if x else 1
    keep = [i for i in range(len(x)) if i % step == 0 or i == len(x) - 1]
    return [x[i] for i in keep], [y[i] for i in keep]


def memorisation(gap: Mapping[str, Any], *, width: int = 620) -> Chart | None:
    """The original head on images that the model was trained on, and on others.

    Args:
        gap: as `TuneResult.gap` has it.
        width: pixels.

    Returns:
        None where no category could be compared.
    """
    ready = json_ready(gap)
    shown = [
        (name, ready[name])
        for name in _METRICS
        if (ready.get(name) or {}).get("training") is not None
    ]
    if not shown:
        return None
    series = _gap_series(shown)
    values = [v for one in series for v in (*one.x, *one.x2)]
    return Chart(
        title="How much the model has memorised",
        description="; ".join(
            f"{metric_label(name)} {one['training']:.3f} on images it was trained on, "
            f"{one['fresh']:.3f} on others"
            for name, one in shown
        )
        + ".",
        x=axis_over("score of the original head (more is better)",
                    values),
        y=Axis("", -0.5, len(shown) - 0.5),
        series=series,
        width=width,
        height=height_for(len(shown)),
        rows=tuple(metric_label(name) for name, _ in shown),
    )  # fmt: skip


def _gap_series(shown: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Series, ...]:
    """Both sides of each metric, and the interval of the gap, set at the training side."""
    rows = range(len(shown))
    sides: list[tuple[Tone, str, str]] = [
        ("after", "fresh", "other images"),
        ("negative", "training", "images it was trained on"),
    ]
    dots = [
        Series(
            "dots", tone, tuple(one[key] for _, one in shown), tuple(map(float, rows)), label=label
        )
        for tone, key, label in sides
    ]
    spans = [
        (one["training"] - one["high"], float(i), one["training"] - one["low"], float(i))
        for i, (_, one) in enumerate(shown)
        if one["low"] is not None and one["high"] is not None
    ]
    lines = [
        Series("line", "same", (one["fresh"], one["training"]), (float(i),) * 2)
        for i, (_, one) in enumerate(shown)
    ]
    return (Series.of("spans", "after", spans), *lines, *dots)


def known_labels(
    rows: Sequence[Mapping[str, Any]], n_rows: int, *, most: int = 60, width: int = 760
) -> Chart:
    """Of each category the known positives and negatives, and what is unknown.

    Args:
        rows: with "category", "positive" and "negative", as `LabelAudit.rows`.
        n_rows: images.
        most: at most so many categories: those with the fewest known positives.
        width: pixels.

    >>> rows = [{"category": "cat", "positive": 2, "negative": 3}]
    >>> [(one.tone, one.x, one.x2) for one in known_labels(rows, 10).series]
    [('positive', (0.0,), (0.2,)), ('negative', (0.2,), (0.5,)), ('unknown', (0.5,), (1.0,))]
    """
    shown = sorted(rows, key=lambda one: (int(one["positive"]), str(one["category"])))[:most]
    ends = [[0.0, *_shares(one, n_rows), 1.0] for one in shown]
    tones: tuple[Tone, ...] = ("positive", "negative", "unknown")
    series = [
        Series(
            "bars",
            tone,
            tuple(row[k] for row in ends),
            tuple(i - 0.36 for i in range(len(shown))),
            tuple(row[k + 1] for row in ends),
            tuple(i + 0.36 for i in range(len(shown))),
            label=TONE_TEXTS[tone],
        )
        for k, tone in enumerate(tones)
    ]
    cut = f"the {len(shown)} with the fewest of " if len(shown) < len(rows) else ""
    size = plural(len(rows), "category", "categories")
    return Chart(
        title="What is known of each category",
        description=f"Share of {plural(n_rows, 'image')} by label; {cut}{size}, "
        "the fewest known positives first.",
        x=share_axis("share of the images"),
        y=Axis("", -0.5, max(1, len(shown)) - 0.5),
        series=tuple(series),
        width=width,
        height=height_for(len(shown)),
        rows=tuple(str(one["category"]) for one in shown),
        beside=tuple(count(one["positive"]) for one in shown),
        beside_label="positives",
    )


def _shares(one: Mapping[str, Any], n_rows: int) -> tuple[float, float]:
    """Where positives end, and where negatives do."""
    positive, known = int(one["positive"]), int(one["positive"]) + int(one["negative"])
    total = max(1, n_rows)
    return float(f"{positive / total:.4g}"), float(f"{known / total:.4g}")
