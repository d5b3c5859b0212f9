"""A chart as marks at pixels: the one geometry that SVG and the page's script draw.

A mark is a list: its kind, its class, its numbers. ["p", class, path], ["c", class, x, y, radius],
["t", class, x, y, text].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from catwise._text import clean

if TYPE_CHECKING:
    from catwise.reporting.charts.chart import Axis, Chart, Series

Mark: TypeAlias = list[Any]

ROW: Final = 22
"""Height of a row of a forest."""

_LETTER: Final = 6.6  # mean width of a letter of the labels
_LEGEND: Final = 18


class Frame(NamedTuple):
    """Where the drawing area of a chart lies."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def of(cls, chart: Chart) -> Frame:
        """The area that labels and legend leave."""
        top = 8 + (_LEGEND if any(one.label for one in chart.series) else 0)
        if not chart.rows:
            return cls(52, top, chart.width - 12, chart.height - 38)
        longest = max(len(name) for name in chart.rows)
        left = min(longest * _LETTER + 10, chart.width * 0.36)
        beside = max((len(one) for one in (*chart.beside, chart.beside_label)), default=0)
        top += 16 if chart.beside_label else 0
        return cls(left, top, chart.width - (beside * _LETTER + 12 if beside else 12),
                   chart.height - 38)  # fmt: skip

    def x(self, axis: Axis, value: float) -> float:
        """The pixel of a value of the horizontal axis."""
        return _round(self.left + axis.share(value) * (self.right - self.left))

    def y(self, chart: Chart, value: float) -> float:
        """The pixel of a value of the vertical axis; rows from the top."""
        if chart.rows:
            height = (self.bottom - self.top) / len(chart.rows)
            return _round(self.top + (value + 0.5) * height)
        return _round(self.bottom - chart.y.share(value) * (self.bottom - self.top))


def height_for(n_rows: int) -> int:
    """The height of a chart of so many rows."""
    return ROW * max(1, n_rows) + 38 + 8 + _LEGEND + 16


def frame_marks(chart: Chart) -> list[Mark]:
    """Axes, ticks, labels, legend: what charts of one kind share."""
    frame = Frame.of(chart)
    marks = list(_x_axis(chart, frame))
    marks += _row_labels(chart, frame) if chart.rows else _y_axis(chart, frame)
    return [*marks, *_legend(chart)]


def data_marks(chart: Chart) -> list[Mark]:
    """What is drawn of the data."""
    frame = Frame.of(chart)
    return [mark for one in chart.series for mark in _DRAW[one.kind](chart, frame, one)]


def _round(value: float) -> float:
    rounded = round(value, 1)
    return int(rounded) if rounded == int(rounded) else rounded


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _x_axis(chart: Chart, frame: Frame) -> Iterator[Mark]:
    bottom = _round(frame.bottom)
    for value, text in chart.x.ticks:
        x = frame.x(chart.x, value)
        yield ["p", "cw-grid", _path([(x, _round(frame.top)), (x, bottom)])]
        yield ["t", "cw-tick cw-middle", x, bottom + 14, text]
    ends = [(_round(frame.left), bottom), (_round(frame.right), bottom)]
    yield ["p", "cw-axis", _path(ends)]
    middle = _round((frame.left + frame.right) / 2)
    yield ["t", "cw-label cw-middle", middle, bottom + 30, clean(chart.x.label)]


def _y_axis(chart: Chart, frame: Frame) -> Iterator[Mark]:
    left = _round(frame.left)
    for value, text in chart.y.ticks:
        y = frame.y(chart, value)
        yield ["p", "cw-grid", _path([(left, y), (_round(frame.right), y)])]
        yield ["t", "cw-tick cw-end", left - 5, y + 4, text]
    yield ["p", "cw-axis", _path([(left, _round(frame.top)), (left, _round(frame.bottom))])]
    y = _round((frame.top + frame.bottom) / 2)
    yield ["t", "cw-label cw-middle cw-turned", 11, y, clean(chart.y.label)]


def _row_labels(chart: Chart, frame: Frame) -> Iterator[Mark]:
    most = int((frame.left - 8) / _LETTER)
    right = chart.width - 4
    for i, name in enumerate(chart.rows):
        y = frame.y(chart, i) + 4
        yield ["t", "cw-name cw-end", _round(frame.left - 8), _round(y), shortened(name, most)]
        if chart.beside:
            yield ["t", "cw-tick cw-end", right, _round(y), chart.beside[i]]
    if chart.beside_label:
        yield ["t", "cw-label cw-end", right, _round(frame.top - 6), chart.beside_label]


def shortened(name: str, most: int) -> str:
    """A name in so many letters; of a longer one the beginning and the end.

    >>> shortened("pleural effusion", 9)
    'pleur…ion'
    """
    name = clean(name)
    if len(name) <= most:
        return name
    end = max(0, (most - 1) * 2 // 5)
    return name[: max(1, most - 1 - end)] + "…" + name[len(name) - end :]


def _legend(chart: Chart) -> Iterator[Mark]:
    x: float = 4 if chart.rows else 52
    seen: set[str] = set()
    for one in chart.series:
        if not one.label or one.label in seen:
            continue
        seen.add(one.label)
        if one.kind == "bars":
            yield ["p", f"cw-bars cw-{one.tone}", f"M{x} 3h12v10h-12z"]
        elif one.kind == "dots":
            yield ["c", f"cw-{one.tone}", _round(x + 6), 8, 4]
        else:
            yield ["p", f"cw-{one.kind} cw-{one.tone}", _path([(x, 8), (x + 14, 8)])]
        yield ["t", "cw-tick", _round(x + 18), 12, one.label]
        x = _round(x + 28 + len(one.label) * (_LETTER - 0.9))


def _line(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    points = [(frame.x(chart.x, x), frame.y(chart, y)) for x, y in zip(one.x, one.y, strict=True)]
    if points:
        yield ["p", f"cw-line cw-{one.tone}", _path(points)]


def _dots(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    for x, y in zip(one.x, one.y, strict=True):
        yield ["c", f"cw-{one.tone}", frame.x(chart.x, x), frame.y(chart, y), 4]


def _bars(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    parts = []
    for x, y, x2, y2 in zip(one.x, one.y, one.x2, one.y2, strict=True):
        left, right = sorted((frame.x(chart.x, x), frame.x(chart.x, x2)))
        top, bottom = sorted((frame.y(chart, y), frame.y(chart, y2)))
        if right > left and bottom > top:
            width, height = _round(right - left), _round(bottom - top)
            parts.append(f"M{left} {top}h{width}v{height}h-{width}z")
    if parts:
        yield ["p", f"cw-bars cw-{one.tone}", "".join(parts)]


def _spans(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    for x, y, x2, y2 in zip(one.x, one.y, one.x2, one.y2, strict=True):
        ends = [(frame.x(chart.x, x), frame.y(chart, y)), (frame.x(chart.x, x2),
                frame.y(chart, y2))]  # fmt: skip
        yield ["p", f"cw-spans cw-{one.tone}", _path(ends)]


def _rules(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    for value in one.x:
        x = frame.x(chart.x, value)
        ends = [(x, _round(frame.top)), (x, _round(frame.bottom))]
        yield ["p", f"cw-rules cw-{one.tone}", _path(ends)]


_DRAW: Final[dict[str, Callable[[Chart, Frame, Series], Iterator[Mark]]]] = {
    "line": _line,
    "dots": _dots,
    "bars": _bars,
    "spans": _spans,
    "rules": _rules,
}
