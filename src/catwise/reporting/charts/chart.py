"""A chart: axes, series in the units of the data, and texts beside the rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, TypeAlias

from catwise.reporting.charts.pixels import rounded_within

Kind: TypeAlias = Literal["line", "dots", "bars", "spans", "rules"]
"""How a series is drawn.

line    through (x, y)
dots    at (x, y)
bars    from (x, y) to (x2, y2), two corners each
spans   from (x, y) to (x2, y2), thick horizontal lines with ends
rules   vertical lines at x, over the whole height
"""

Tone: TypeAlias = Literal[
    "before", "after", "better", "worse", "same", "positive", "negative", "unknown", "ideal", "rule"
]
"""What a series means; style sheet and matplotlib give it its look."""

TONE_TEXTS: Final = {
    "before": "original",
    "after": "new",
    "better": "better",
    "worse": "worse",
    "same": "no difference shown",
    "positive": "positive",
    "negative": "negative",
    "unknown": "unknown",
}


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: what it shows.
        low: its beginning, in units of the data.
        high: its end.
        ticks: (value, text) pairs.
        log: logarithm of 1 + value.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...] = ()
    log: bool = False

    def pixels(self, values: Iterable[float], start: float, end: float) -> list[float]:
        """Where values lie between two pixels; beyond the ends of the axis at them.

        >>> Axis("x", 0.0, 2.0).pixels([0.0, 0.5, 3.0], 10, 20)
        [10, 12.5, 20]
        """
        low, high = self.low, self.high
        if self.log:
            low, high = math.log1p(low), math.log1p(high)
            values = map(math.log1p, values)
        scale = (end - start) / ((high - low) or 1.0)
        places = [start + (value - low) * scale for value in values]
        return rounded_within(places, min(start, end), max(start, end))


@dataclass(frozen=True)
class Series:
    """Something drawn, in units of the data."""

    kind: Kind
    tone: Tone
    x: tuple[float, ...]
    y: tuple[float, ...] = ()
    x2: tuple[float, ...] = ()
    y2: tuple[float, ...] = ()
    label: str = ""  # in the legend

    @classmethod
    def of(
        cls, kind: Kind, tone: Tone, points: Iterable[Sequence[float]], label: str = ""
    ) -> Series:
        """From points: (x, y), or (x, y, x2, y2) of bars and spans.

        >>> Series.of("line", "after", [(0, 1), (2, 3)]).y
        (1, 3)
        """
        x, y, x2, y2 = [*zip(*points, strict=True), (), (), (), ()][:4]
        return cls(kind, tone, x, y, x2, y2, label)


@dataclass(frozen=True, repr=False)
class Chart:
    """A picture of records.

    A notebook shows it as SVG; the same records give the same bytes.

    Attributes:
        title: what it shows, in a few words.
        description: the same as sentences, for those who do not see it.
        x: horizontal axis.
        y: vertical axis; values grow upwards, unless `rows`.
        series: in the order in which they are drawn.
        width: pixels.
        height: pixels.
        rows: names from the top, where row i is at y = i; its `y` axis has them as ticks.
        beside: a text at the right of each row.
        beside_label: their heading.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    width: int = 300
    height: int = 240
    rows: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    beside_label: str = ""

    def __repr__(self) -> str:
        return f"Chart({self.title!r})"

    def svg(self) -> str:
        """An SVG file with its own style sheet, for light and dark."""
        from catwise.reporting.charts.svg import file_text

        return file_text(self)

    def _repr_svg_(self) -> str:
        return self.svg()

    def figure(self, axes: Any = None) -> Any:
        """The same as a matplotlib figure (``pip install catwise[plots]``).

        Args:
            axes: matplotlib axes to draw into; a new figure if None.

        Returns:
            The `matplotlib.figure.Figure`.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        from catwise.reporting.charts.figure import draw

        return draw(self, axes)

    def save(self, path: Any) -> None:
        """Write as .svg, .png or .pdf, by the ending; the same records give the same bytes.

        Raises:
            ConfigError: If the ending is another one.
            MissingExtraError: If matplotlib, which draws .png and .pdf, is not installed.
            OutputError: If it cannot be written.
        """
        from catwise.reporting.charts.figure import save

        save(self, path)


def ticks(low: float, high: float, most: int = 6) -> tuple[tuple[float, str], ...]:
    """Round values between two ends, as (value, text).

    >>> ticks(0.0, 1.0)
    ((0.0, '0'), (0.2, '0.2'), (0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8'), (1.0, '1'))
    >>> [text for _, text in ticks(-0.03, 0.11, 4)]
    ['0', '0.05', '0.1']
    """
    if not high > low:
        return ((low, number_text(low)),)
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple((float(f"{i * step:.10g}"), number_text(i * step)) for i in range(first, last + 1))


def number_text(value: float) -> str:
    """A tick: at most four digits, a true minus.

    >>> number_text(-0.25), number_text(20000.0), number_text(-0.0)
    ('−0.25', '20,000', '0')
    """
    text = f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"
    return "0" if text in {"-0", "0"} else text.replace("-", "\N{MINUS SIGN}")


@cache
def share_axis(label: str) -> Axis:
    """From 0 to 1."""
    return Axis(label, 0.0, 1.0, ticks(0.0, 1.0))


def axis_over(
    label: str, values: list[float], *, most: int = 6, least: float = 0.02, log: bool = False
) -> Axis:
    """An axis that holds all the values, with a little room; at least so wide."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log:
        found = [0.0, *(10.0**k for k in range(10) if 10.0**k <= max(high, 1.0))]
        return Axis(label, 0.0, max(high, 1.0), tuple((v, number_text(v)) for v in found), log=True)
    room = max(0.04 * (high - low), (least - (high - low)) / 2, 1e-9)
    low, high = low - room, high + room
    return Axis(label, low, high, ticks(low, high, most))
