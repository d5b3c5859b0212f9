"""A chart as marks at pixels: the one geometry that SVG and the page's script draw.

A mark is a list: its kind, its class, its numbers. ["p", class, path], ["c", class, x, y, radius],
["t", class, x, y, text].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from catwise._text import clean
from catwise.reporting.charts.pixels import rounded

if TYPE_CHECKING:
    from catwise.reporting.charts.chart import Chart, Series

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

    def x(self, chart: Chart, values: Sequence[float]) -> list[float]:
        """The pixels of values of the horizontal axis."""
        return chart.x.pixels(values, self.left, self.right)

    def y(self, chart: Chart, values: Sequence[float]) -> list[float]:
        """The pixels of values of the vertical axis; rows from the top."""
        if not chart.rows:
            return chart.y.pixels(values, self.bottom, self.top)
        height = (self.bottom - self.top) / len(chart.rows)
        return [rounded(self.top + (value + 0.5) * height) for value in values]


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


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _x_axis(chart: Chart, frame: Frame) -> Iterator[Mark]:
    top, bottom = rounded(frame.top), rounded(frame.bottom)
    places = frame.x(chart, [value for value, _ in chart.x.ticks])
    for x, (_, text) in zip(places, chart.x.ticks, strict=True):
        yield ["p", "cw-grid", _path([(x, top), (x, bottom)])]
        yield ["t", "cw-tick cw-middle", x, bottom + 14, text]
    yield ["p", "cw-axis", _path([(rounded(frame.left), bottom), (rounded(frame.right), bottom)])]
    middle = rounded((frame.left + frame.right) / 2)
    yield ["t", "cw-label cw-middle", middle, bottom + 30, clean(chart.x.label)]


def _y_axis(chart: Chart, frame: Frame) -> Iterator[Mark]:
    left, right = rounded(frame.left), rounded(frame.right)
    places = frame.y(chart, [value for value, _ in chart.y.ticks])
    for y, (_, text) in zip(places, chart.y.ticks, strict=True):
        yield ["p", "cw-grid", _path([(left, y), (right, y)])]
        yield ["t", "cw-tick cw-end", left - 5, rounded(y + 4), text]
    yield ["p", "cw-axis", _path([(left, rounded(frame.top)), (left, rounded(frame.bottom))])]
    y = rounded((frame.top + frame.bottom) / 2)
    yield ["t", "cw-label cw-middle cw-turned", 11, y, clean(chart.y.label)]


def _row_labels(chart: Chart, frame: Frame) -> Iterator[Mark]:
    most = int((frame.left - 8) / _LETTER)
    right = chart.width - 4
    places = frame.y(chart, range(len(chart.rows)))
    for i, (name, place) in enumerate(zip(chart.rows, places, strict=True)):
        y = rounded(place + 4)
        yield ["t", "cw-name cw-end", rounded(frame.left - 8), y, shortened(name, most)]
        if chart.beside:
            yield ["t", "cw-tick cw-end", right, y, chart.beside[i]]
    if chart.beside_label:
        yield ["t", "cw-label cw-end", right, rounded(frame.top - 6), chart.beside_label]


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
            yield ["c", f"cw-{one.tone}", rounded(x + 6), 8, 4]
        else:
            yield ["p", f"cw-{one.kind} cw-{one.tone}", _path([(x, 8), (x + 14, 8)])]
        yield ["t", "cw-tick", rounded(x + 18), 12, one.label]
        x = rounded(x + 28 + len(one.label) * (_LETTER - 0.9))


def _line(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    points = list(zip(frame.x(chart, one.x), frame.y(chart, one.y), strict=True))
    if points:
        yield ["p", f"cw-line cw-{one.tone}", _path(points)]


def _dots(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    for x, y in zip(frame.x(chart, one.x), frame.y(chart, one.y), strict=True):
        yield ["c", f"cw-{one.tone}", x, y, 4]


def _ends(chart: Chart, frame: Frame, one: Series) -> Iterator[tuple[float, ...]]:
    """x, y, x2, y2 of bars and spans."""
    sides = frame.x(chart, one.x), frame.y(chart, one.y)
    others = frame.x(chart, one.x2), frame.y(chart, one.y2)
    yield from zip(*sides, *others, strict=True)


def _bars(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    parts = []
    for x, y, x2, y2 in _ends(chart, frame, one):
        width, height = rounded(abs(x2 - x)), rounded(abs(y2 - y))
        if width and height:
            parts.append(f"M{min(x, x2)} {min(y, y2)}h{width}v{height}h-{width}z")
    if parts:
        yield ["p", f"cw-bars cw-{one.tone}", "".join(parts)]


def _spans(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    for x, y, x2, y2 in _ends(chart, frame, one):
        yield ["p", f"cw-spans cw-{one.tone}", _path([(x, y), (x2, y2)])]


def _rules(chart: Chart, frame: Frame, one: Series) -> Iterator[Mark]:
    for x in frame.x(chart, one.x):
        ends = [(x, rounded(frame.top)), (x, rounded(frame.bottom))]
        yield ["p", f"cw-rules cw-{one.tone}", _path(ends)]


_DRAW: Final[dict[str, Callable[[Chart, Frame, Series], Iterator[Mark]]]] = {
    "line": _line,
    "dots": _dots,
    "bars": _bars,
    "spans": _spans,
    "rules": _rules,
}
