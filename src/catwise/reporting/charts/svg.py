"""Marks as SVG: inside a page, whose style sheet has the looks, or as a file with its own."""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from catwise._text import clean
from catwise.reporting.charts.marks import Mark, data_marks, frame_marks

if TYPE_CHECKING:
    from catwise.reporting.charts.chart import Chart


def chart_style() -> str:
    """The style sheet of charts."""
    folder = resources.files("catwise.reporting") / "templates"
    return (folder / "charts.css").read_text(encoding="utf-8")


def file_text(chart: Chart) -> str:
    """A file of its own."""
    marks = "".join(mark_text(one) for one in (*frame_marks(chart), *data_marks(chart)))
    style = f"<style>{chart_style()}</style>"
    return element(chart, style + marks, ' xmlns="http://www.w3.org/2000/svg"')


def element(chart: Chart, inside: str, more: str = "") -> str:
    """The element of a chart, with what is drawn."""
    size = f'width="{chart.width}" height="{chart.height}"'
    box = f'viewBox="0 0 {chart.width} {chart.height}"'
    label = escape(label_of(chart), quote=True)
    return f'<svg class="cw" role="img" aria-label="{label}" {size} {box}{more}>{inside}</svg>'


def label_of(chart: Chart) -> str:
    """What a chart shows, for those who do not see it."""
    return clean(f"{chart.title}. {chart.description}")


def mark_text(mark: Mark) -> str:
    """One mark as an element."""
    kind, name, *values = mark
    if kind == "p":
        return f'<path class="{name}" d="{values[0]}"/>'
    if kind == "c":
        return f'<circle class="{name}" cx="{values[0]}" cy="{values[1]}" r="{values[2]}"/>'
    x, y, text = values
    return f'<text class="{name}" x="{x}" y="{y}">{escape(text, quote=False)}</text>'
