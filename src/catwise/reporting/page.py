"""What a page holds, before it is HTML: a headline, sections of blocks, a table, categories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from catwise.reporting.charts.chart import Chart

MANY: Final = 500
"""Beyond so many categories their parts are drawn on demand, by the page's own script."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    soft: bool = False


@dataclass(frozen=True)
class Listing:
    """Sentences, one below the other."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Forest:
    """One chart in two widths: for wide and for narrow windows."""

    wide: Chart
    narrow: Chart


@dataclass(frozen=True)
class Grid:
    """A small table: texts first, numbers after them."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1  # so many columns are texts


@dataclass(frozen=True)
class Names:
    """A group of categories, and why they are in it."""

    title: str
    count: str
    explanation: str
    names: Sequence[tuple[str, int]]  # and their numbers, for links


@dataclass(frozen=True)
class Picture:
    """One image: its name, what is said of it, and its "data:" address where it is shown."""

    name: str
    lines: Sequence[str]
    source: str = ""

    @property
    def alternative(self) -> str:
        """What stands for it where it is not seen."""
        return f"Image {self.name}: {', '.join(self.lines)}"


@dataclass(frozen=True)
class Pictures:
    """Images side by side, or what is said of them where they are not shown."""

    title: str
    pictures: Sequence[Picture]


Block: TypeAlias = Text | Listing | Facts | Charts | Forest | Grid | Names | Pictures


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    id: str
    heading: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True)
class Heading:
    """Of a column of the table of categories."""

    name: str
    kind: str = "text"  # or "number"
    wide: bool = False  # left out of narrow windows
    signed: bool = False  # coloured where a change is shown


@dataclass(frozen=True)
class Row:
    """One category in the table."""

    name: str
    number: int
    outcome: str  # "better", "worse", or ""
    group: str  # what the filter calls it
    cells: Sequence[tuple[str, str | float]]  # text, and what it is sorted by


@dataclass(frozen=True)
class CategoryTable:
    """All categories."""

    caption: str
    headings: Sequence[Heading]
    rows: Sequence[Row]
    groups: Sequence[str]  # of the filter


@dataclass(frozen=True)
class Part:
    """All that is known of one category."""

    name: str
    number: int
    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: what was done.
        facts: model, data, date.
        metric: name of the metric, for people.
        tone: "helped", "harmed", or "".
        verdict: the sentence that comes first.
        scores: (before, after) as texts, one score, or none.
        scores_text: what they are of, with the interval.
        counts: (number, word, tone) of the categories.
        next_step: what to do now.
        sections: before the table, and after it.
        table: of the categories.
        parts: of each category, made as they are taken.
        words: (word, meaning) pairs.
        provenance: what went in, at the end.
        version: of catwise.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    metric: str
    tone: str
    verdict: str
    scores: Sequence[str]
    scores_text: str
    counts: Sequence[tuple[str, str, str]]
    next_step: str
    table: CategoryTable | None
    sections: tuple[Sequence[Section], Sequence[Section]]
    parts: Iterable[Part] = ()
    words: Sequence[tuple[str, str]] = ()
    provenance: Sequence[Section] = ()
    version: str = ""
    notes: Sequence[str] = field(default=())
