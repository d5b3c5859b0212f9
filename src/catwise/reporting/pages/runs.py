"""The page of runs side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from catwise._text import count, gain, interval, plural, score
from catwise.reporting import tables, terminal
from catwise.reporting.next_step import next_step_of_runs
from catwise.reporting.page import (
    CategoryTable,
    Facts,
    Grid,
    Heading,
    Listing,
    Page,
    Part,
    Row,
    Section,
)
from catwise.reporting.pages.parts import about, provenance, sentence_case
from catwise.reporting.pages.words import metric_words, words
from catwise.reporting.summary import metric_label

_SIDE_BY_SIDE = 4
"""Runs at most whose categories stand side by side."""

_VERDICTS = (
    ("helped", "better on average", "better"),
    ("harmed", "worse on average", "worse"),
    ("no_difference", "no difference shown", ""),
    ("not_judged", "not judged", ""),
)


def runs_page(document: Mapping[str, Any]) -> Page:
    """What the page of a comparison of runs holds.

    Args:
        document: as `RunComparison.page_document` gives it, with `inputs`, `date`.
    """
    metrics, reference = document["metrics"], str(document["reference"])
    variants, sentences = document["variants"], list(document["sentences"])
    first = [one for one in variants if one["metric"] == metrics[0]]
    judged = [one for one in first if one["difference"] is not None]
    found = Counter(str(one["verdict"]) for one in judged)
    sections = (
        [Section("sentences", "What it shows", [Listing(sentences)])] if sentences[1:] else []
    )
    for metric in metrics:
        grid = tables.variants_grid(variants, metric, reference=reference)
        heading = f"Mean {metric_label(metric)}"
        caption = f"Differences are to {reference}; better and worse: categories."
        sections.append(Section(f"runs-{metric}", heading, [_grid(grid, caption)]))
    settings = tables.settings_grid(variants)
    if settings.cells:
        sections.append(
            Section(
                "settings",
                "What the runs differ in",
                [_grid(settings, "Each setting, run by run.")],
            )
        )
    notes = [str(one) for one in document.get("notes") or []]
    return Page(
        title=f"{plural(len(first), 'run')} side by side",
        facts=about(document),
        metric=metric_label(metrics[0]),
        tone="",
        verdict=sentences[0] if sentences else "There is nothing to compare with.",
        scores=[],
        scores_text=f"Mean {metric_label(metrics[0])}, compared with {reference}",
        counts=[(count(found[key]), text, tone) for key, text, tone in _VERDICTS],
        next_step=next_step_of_runs(document),
        table=_table(document["rows"], metrics[0], reference),
        sections=(sections, [Section("notes", "Notes", [Listing(notes)])] if notes else []),
        parts=_parts(document["rows"]),
        words=words(
            "category", "head", "original, new", *metric_words([metric_label(m) for m in metrics]),
            "interval", "not judged", "test rows",
        ),
        provenance=provenance(document, {"Inputs": "inputs"}),
        version=str(document.get("catwise", "")),
    )  # fmt: skip


def _grid(grid: terminal.Grid, caption: str) -> Grid:
    texts = sum(not one for one in grid.numeric)
    return Grid(" ".join([caption, *grid.lines]), grid.headings, grid.cells, texts=texts)


def _categories(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["category"] is not None:
            found.setdefault(str(row["category"]), []).append(row)
    return found


def _table(rows: Sequence[Mapping[str, Any]], metric: str, reference: str) -> CategoryTable:
    own = [row for row in rows if row["metric"] == metric]
    runs = list(dict.fromkeys(str(row["run"]) for row in own))
    shown = runs[:_SIDE_BY_SIDE]
    made = []
    for number, (name, found) in enumerate(_categories(own).items()):
        of = {str(one["run"]): one for one in found}
        scores = [of[run]["score"] if run in of else None for run in shown]
        first = found[0]
        cells: list[tuple[str, str | float]] = [(name, name)]
        cells += [(score(one), "" if one is None else float(one)) for one in scores]
        cells.append((count(first["n_positive"]), first["n_positive"] or 0))
        outcomes = {str(one["outcome"]) for one in found}
        group = next((o for o in ("better", "worse") if o in outcomes), "no difference shown")
        made.append(Row(name, number, "", group, cells))
    left = len(runs) - len(shown)
    more = f" {plural(left, 'further run')} in the parts below." if left else ""
    return CategoryTable(
        caption=f"{sentence_case(metric)} of each category in each run; differences are to "
        f"{reference}. A heading sorts, a name leads to all of its category.{more}",
        headings=(
            Heading("category"),
            *(Heading(run, "number", wide=at > 1) for at, run in enumerate(shown)),
            Heading("positives", "number", wide=True),
        ),
        rows=made,
        groups=("better", "worse", "no difference shown"),
    )


def _parts(rows: Sequence[Mapping[str, Any]]) -> list[Part]:
    parts = []
    for number, (name, found) in enumerate(_categories(rows).items()):
        pairs = []
        for one in found:
            text = score(one["score"])
            if one["difference"] is not None:
                bounds = interval(one["difference_low"], one["difference_high"])
                text += f" ({gain(one['difference'])}, {bounds})"
            pairs.append((f"{metric_label(one['metric'])}, {one['run']}", text))
        summary = f"{count(found[0]['n_positive'])} positives"
        parts.append(Part(name, number, summary, [Facts(pairs)]))
    return parts
