"""A chart as a matplotlib figure; matplotlib is loaded when one is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from catwise._extras import import_optional
from catwise._io import write_bytes, write_text
from catwise._text import clean
from catwise.errors import ConfigError

if TYPE_CHECKING:
    from catwise.reporting.charts.chart import Chart, Series

_COLOURS: Final = {
    "before": "#6e7781",
    "after": "#0550ae",
    "better": "#116329",
    "worse": "#a40e26",
    "same": "#57606a",
    "positive": "#0550ae",
    "negative": "#bf8700",
    "unknown": "#d0d7de",
    "ideal": "#57606a",
    "rule": "#1b1f24",
}
_DPI: Final = 100
_METADATA: Final[Mapping[str, Mapping[str, None]]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What would differ from run to run or machine to machine is left out."""


def _figures() -> Any:
    return import_optional("matplotlib.figure", extra="plots", purpose="A figure")


def draw(chart: Chart, axes: Any = None) -> Any:
    """Draw into the axes, or into a new figure; the figure."""
    if axes is None:
        size = chart.width / _DPI, chart.height / _DPI
        figure = _figures().Figure(figsize=size, dpi=_DPI, layout="constrained")
        axes = figure.add_subplot()
    axes.set_title(chart.title, fontsize=9)
    for one in chart.series:
        _DRAW[one.kind](axes, one, _COLOURS[one.tone])
    axes.set_xlim(chart.x.low, chart.x.high)
    if chart.x.log:
        axes.set_xscale("symlog", linthresh=1.0)
    values, texts = [v for v, _ in chart.x.ticks], [text for _, text in chart.x.ticks]
    axes.set_xticks(values, texts, fontsize=8)
    axes.set_xlabel(clean(chart.x.label), fontsize=8)
    if chart.rows:
        names = [clean(name).replace("$", r"\$") for name in chart.rows]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        _beside(axes, chart)
    else:
        axes.set_ylim(chart.y.low, chart.y.high)
        axes.set_yticks([v for v, _ in chart.y.ticks], [t for _, t in chart.y.ticks], fontsize=8)
        axes.set_ylabel(clean(chart.y.label), fontsize=8)
    if any(one.label for one in chart.series):
        axes.legend(fontsize=8, frameon=False)
    return axes.figure


def save(chart: Chart, path: Any) -> None:
    """Write by the ending of the path."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending == ".svg":
        write_text(path, chart.svg())
        return
    if ending not in _METADATA:
        raise ConfigError(
            "a chart is written by the ending of its name.",
            found=f"{path.name!r}",
            expected="a name that ends in .svg, .png or .pdf",
        )
    stream = io.BytesIO()
    figure = draw(chart)
    figure.savefig(stream, format=ending[1:], metadata=dict(_METADATA[ending]))
    write_bytes(path, stream.getvalue())


def _beside(axes: Any, chart: Chart) -> None:
    """The texts at the right of the rows."""
    place = axes.get_yaxis_transform()
    for i, text in enumerate(chart.beside):
        axes.text(1.01, i, text, transform=place, va="center", fontsize=8)
    if chart.beside_label:
        axes.text(1.01, -0.9, chart.beside_label, transform=place, va="center", fontsize=8)


def _line(axes: Any, one: Series, colour: str) -> None:
    style = {"before": "--", "ideal": ":"}.get(one.tone, "-")
    axes.plot(one.x, one.y, style, color=colour, label=one.label or None, linewidth=1.5)


def _dots(axes: Any, one: Series, colour: str) -> None:
    face = "none" if one.tone == "before" else colour
    axes.scatter(
        one.x, one.y, s=24, facecolors=face, edgecolors=colour, label=one.label or None, zorder=3
    )


def _bars(axes: Any, one: Series, colour: str) -> None:
    sides = zip(one.x, one.y, one.x2, one.y2, strict=True)
    for number, (x, y, x2, y2) in enumerate(sides):
        label = one.label if not number and one.label else None
        axes.fill([x, x2, x2, x], [y, y, y2, y2], color=colour, alpha=0.75, label=label,
                  linewidth=0)  # fmt: skip


def _spans(axes: Any, one: Series, colour: str) -> None:
    for number, (x, y, x2, y2) in enumerate(zip(one.x, one.y, one.x2, one.y2, strict=True)):
        label = one.label if not number and one.label else None
        axes.plot([x, x2], [y, y2], color=colour, alpha=0.55, linewidth=3, label=label,
                  solid_capstyle="butt")  # fmt: skip


def _rules(axes: Any, one: Series, colour: str) -> None:
    for number, x in enumerate(one.x):
        label = one.label if not number and one.label else None
        axes.axvline(x, color=colour, linestyle="--", linewidth=1, label=label)


_DRAW: Final[dict[str, Callable[[Any, Series, str], None]]] = {
    "line": _line,
    "dots": _dots,
    "bars": _bars,
    "spans": _spans,
    "rules": _rules,
}
