"""A document as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib import resources
from typing import Any, Final

from catwise._text import clean
from catwise.progress import Progress, ProgressCallback
from catwise.reporting.charts.chart import Chart
from catwise.reporting.charts.marks import Mark, data_marks, frame_marks
from catwise.reporting.charts.svg import chart_style, element, label_of, mark_text
from catwise.reporting.page import (
    MANY,
    CategoryTable,
    Charts,
    Facts,
    Forest,
    Page,
    Part,
    Picture,
    Pictures,
    Text,
)
from catwise.reporting.pages.audit import audit_page
from catwise.reporting.pages.decisions import calibration_page, ensemble_page
from catwise.reporting.pages.evaluation import comparison_page, evaluation_page
from catwise.reporting.pages.run import run_page
from catwise.reporting.pages.runs import runs_page

_PAGES: Final = {
    "evaluate": evaluation_page,
    "compare": comparison_page,
    "audit": audit_page,
    "calibrate": calibration_page,
    "ensemble": ensemble_page,
    "runs": runs_page,
}
_CHUNK: Final = 100
"""Parts in one piece of embedded records: what the page's script parses at once."""

_FIRST_ROWS: Final = 100
"""Rows of a long table that stand in the page itself."""


def render_report(document: Mapping[str, Any], *, progress: ProgressCallback | None = None) -> str:
    """One self-contained page: it loads nothing and runs only its own script.

    Args:
        document: with `kind`: "tune" and "select" as :func:`~catwise.reporting.page_document`
            gives them (of `fix` with its `checkpoint`; with `thresholds`, as
            :meth:`~catwise.Thresholds.to_dict` gives them); "evaluate" and "compare", what
            `to_dict` of an evaluation or a comparison gives; "audit", what `catwise audit` does;
            "calibrate", "ensemble" and "runs" (side by side), what their `page_document` gives.
            Further `inputs`, `curves`, `date` and `catwise`. What is absent is left out.
        progress: called now and then; a page of thousands of categories takes seconds.

    Returns:
        HTML that is well-formed XML too. Every text from outside is escaped. Beyond 500 categories
        their parts are embedded as records, which the page's script draws when asked.

    >>> page = render_report({"kind": "tune", "summary": {}, "records": []})
    >>> page.startswith("<!DOCTYPE html>"), "://" in page
    (True, False)
    """
    from jinja2 import Environment, StrictUndefined

    page = _PAGES.get(str(document.get("kind")), run_page)(document)
    counter = _Counter(0 if page.table is None else len(page.table.rows), progress)
    parts = tuple(counter.each(page.parts))
    page = replace(page, parts=parts)
    style = _raw("report.css") + chart_style()
    scripts = [f"/*<![CDATA[*/\n{_raw('report.js')}/*]]>*/"]
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if hasattr(value, "__html__") else _text(value),
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    frames = _Frames(page)
    shown = dict.fromkeys(one.source for one in _pictures(page) if one.source)
    sources = {source: place for place, source in enumerate(shown)}
    template = environment.from_string(_raw("report.html.j2"))
    return template.render(
        page=page,
        many=len(parts) > MANY,
        first_rows=_FIRST_ROWS,
        rows=_Verbatim(_table_json(page.table if len(parts) > MANY else None)),
        chunks=[_Verbatim(chunk) for chunk in _chunks(parts, frames, sources, counter)],
        pictures_json=_Verbatim(_json(list(sources))) if sources else None,
        chunk_size=_CHUNK,
        draw=lambda chart: _Verbatim(frames.draw(chart)),
        frames=_Verbatim(frames.definitions()),
        policy=_policy(style, scripts, has_images=bool(sources)),
        style=_Verbatim(style),
        script=_Verbatim(scripts[0]),
    )


def render_summary(document: Mapping[str, Any]) -> str:
    """A few lines and one chart, for a notebook: verdict, counts, next step, categories.

    Args:
        document: as :func:`render_report` takes it.
    """
    page = _PAGES.get(str(document.get("kind")), run_page)(document)
    counts = ", ".join(f"{number} {text}" for number, text, _ in page.counts)
    lines = [f"<strong>{escape(clean(page.verdict))}</strong>"]
    lines += [escape(clean(page.scores_text)), escape(counts)]
    lines.append(f"Next step: {escape(clean(page.next_step))}")
    text = "".join(f"<p>{line}</p>" for line in lines if line)
    first = next((b for one in page.sections[0] for b in one.blocks if isinstance(b, Forest)), None)
    return f"<div>{text}{'' if first is None else first.wide.svg()}</div>"


def _raw(name: str) -> str:
    folder = resources.files("catwise.reporting") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _text(value: object) -> object:
    return clean(value) if isinstance(value, str) else value


class _Verbatim:
    """A text of this package that goes into the page as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __html__(self) -> str:
        return self._text


def _policy(style: str, scripts: Iterable[str], *, has_images: bool) -> str:
    """A content security policy that allows what is in this page, and nothing from elsewhere."""

    def allow(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    allowed = " ".join(map(allow, scripts))
    images = "; img-src data:" if has_images else ""
    return f"default-src 'none'; style-src {allow(style)}; script-src {allowed}{images}"


class _Counter:
    """Tells how far a page is: its parts are made, and then they are written."""

    def __init__(self, n_parts: int, progress: ProgressCallback | None) -> None:
        self._done, self._total, self._progress = 0, 2 * n_parts, progress

    def each(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts, counted."""
        for part in parts:
            yield part
            self._done += 1
            if self._progress is not None and self._done % _CHUNK == 0:
                self._progress(Progress("report", min(self._done, self._total), self._total))


class _Frames:
    """Axes that several charts share: defined once, used by reference."""

    def __init__(self, page: Page) -> None:
        found = Counter(map(_frame_key, charts := list(_charts(page))))
        shared = {key: one for one in charts if found[key := _frame_key(one)] > 1}
        self._number = {key: number for number, key in enumerate(shared)}
        self._shared = [frame_marks(one) for one in shared.values()]

    def _frame(self, chart: Chart) -> tuple[int | None, list[Mark]]:
        """Its number, if several charts have it; and axes, names and legend of a chart."""
        number = self._number.get(_frame_key(chart))
        return number, frame_marks(chart) if number is None else self._shared[number]

    def definitions(self) -> str:
        """The shared ones, for a hidden element."""
        texts = ("".join(map(mark_text, marks)) for marks in self._shared)
        return "".join(f'<g id="f{n}">{text}</g>' for n, text in enumerate(texts))

    def draw(self, chart: Chart) -> str:
        """The element of a chart, whose axes may be a reference."""
        number, marks = self._frame(chart)
        frame = "".join(map(mark_text, marks)) if number is None else f'<use href="#f{number}"/>'
        return element(chart, frame + "".join(map(mark_text, data_marks(chart))))

    def record(self, chart: Chart) -> list[Any]:
        """A chart for the page's script: size, what it shows, its axes and its marks."""
        number, marks = self._frame(chart)
        frame = marks if number is None else number
        return [chart.width, chart.height, label_of(chart), frame, data_marks(chart)]


def _frame_key(chart: Chart) -> tuple[Any, ...]:
    """What is the same of two charts that have the same axes, names and legend."""
    legend = tuple((one.kind, one.tone, one.label) for one in chart.series if one.label)
    size = chart.width, chart.height, chart.beside, chart.beside_label
    return chart.x, chart.y, chart.rows, legend, size


def _charts(page: Page) -> Iterator[Chart]:
    """All charts of a page."""
    blocks = [
        block
        for sections in (*page.sections, page.provenance)
        for section in sections
        for block in section.blocks
    ]
    blocks += [block for part in page.parts for block in part.blocks]
    for block in blocks:
        if isinstance(block, Charts):
            yield from block.charts
        elif isinstance(block, Forest):
            yield from (block.wide, block.narrow)


def _pictures(page: Page) -> Iterator[Picture]:
    """All images of a page, shown or not."""
    for part in page.parts:
        for block in part.blocks:
            if isinstance(block, Pictures):
                yield from block.pictures


# ------------------------------------------------------------------------ embedded records


def _table_json(table: CategoryTable | None) -> str:
    """Rows of a long table, for the page's script."""
    if table is None:
        return "[]"
    return _json(
        [
            [row.number, row.outcome, row.group, [clean(text) for text, _ in row.cells],
             [key for _, key in row.cells]]
            for row in table.rows
        ]
    )  # fmt: skip


def _chunks(
    parts: Sequence[Part], frames: _Frames, sources: Mapping[str, int], counter: _Counter
) -> Iterator[str]:
    """The parts of very many categories, in pieces."""
    if len(parts) <= MANY:
        return
    for start in range(0, len(parts), _CHUNK):
        some = counter.each(parts[start : start + _CHUNK])
        yield _json([_part_record(part, frames, sources) for part in some])


def _part_record(part: Part, frames: _Frames, sources: Mapping[str, int]) -> dict[str, Any]:
    facts = [pair for block in part.blocks if isinstance(block, Facts) for pair in block.pairs]
    texts = [block.text for block in part.blocks if isinstance(block, Text)]
    charts = [one for block in part.blocks if isinstance(block, Charts) for one in block.charts]
    listed = [block for block in part.blocks if isinstance(block, Pictures)]
    return {
        "title": clean(listed[0].title) if listed else "",
        "pictures": [
            [clean(one.name), clean(one.alternative) if one.source else "",
             [clean(line) for line in one.lines], sources.get(one.source)]
            for block in listed
            for one in block.pictures
        ],
        "name": clean(part.name),
        "summary": clean(part.summary),
        "facts": [[clean(name), clean(text)] for name, text in facts],
        "texts": [clean(text) for text in texts],
        "charts": [frames.record(chart) for chart in charts],
    }  # fmt: skip


def _json(value: object) -> str:
    """JSON that ends no element and is XML too."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
