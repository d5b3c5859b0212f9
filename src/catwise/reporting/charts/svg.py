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


def inline(chart: Chart) -> str:
    """The element for a page that has the style sheet of charts."""
    return _element(chart, "")


def file_text(chart: Chart) -> str:
    """A file of its own."""
    style = f"<style>{chart_style()}</style>"
    return _element(chart, style, ' xmlns="http://www.w3.org/2000/svg"')


def _element(chart: Chart, style: str, more: str = "") -> str:
    size = f'width="{chart.width}" height="{chart.height}"'
    box = f'viewBox="0 0 {chart.width} {chart.height}"'
    label = escape(clean(f"{chart.title}. {chart.description}"), quote=True)
    marks = "".join(_mark(one) for one in (*frame_marks(chart), *data_marks(chart)))
    return (
        f'<svg class="cw" role="img" aria-label="{label}" {size} {box}{more}>{style}{marks}</svg>'
    )


def _mark(mark: Mark) -> str:
    kind, name, *values = mark
    if kind == "p":
        return f'<path class="{name}" d="{values[0]}"/>'
    if kind == "c":
        return f'<circle class="{name}" cx="{values[0]}" cy="{values[1]}" r="{values[2]}"/>'
    if kind == "r":
        x, y, width, height = values
        return f'<rect class="{name}" x="{x}" y="{y}" width="{width}" height="{height}"/>'
    x, y, text = values
    return f'<text class="{name}" x="{x}" y="{y}">{escape(text, quote=False)}</text>'
