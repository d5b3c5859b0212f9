"""The page of an evaluation: of one head, or of two on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from catwise._text import NOTHING, count, gain, interval, plural, score
from catwise.reporting.charts.changes import by_gain, changes
from catwise.reporting.charts.gains import MOST, all_gains, gains, scores
from catwise.reporting.next_step import next_step_of_evaluation
from catwise.reporting.page import (
    Block,
    CategoryTable,
    Facts,
    Grid,
    Heading,
    Listing,
    Page,
    Part,
    Row,
    Section,
    Text,
)
from catwise.reporting.pages.parts import (
    about,
    by_category,
    category_charts,
    curve_sections,
    difference_cells,
    forest,
    moved_images,
    moved_section,
    provenance,
    rows_name,
    sentence_case,
)
from catwise.reporting.pages.words import metric_words, words
from catwise.reporting.summary import bounds_text, metric_label, outcome_text

_HEADS = ("the first head", "the second head")

_COUNTED = (
    ("better", "better", "better"),
    ("worse", "worse", "worse"),
    ("no_difference", "no difference shown", ""),
    ("not_judged", "not judged", ""),
)


def _range(low: object, high: object) -> str:
    return NOTHING if low is None or high is None else f"{score(low)} to {score(high)}"


def evaluation_page(document: Mapping[str, Any]) -> Page:
    """What the page of one head's evaluation holds.

    Args:
        document: as `Evaluation.to_dict` gives it, with `inputs`, `curves`, `date`, `catwise`.
    """
    rows, means = document.get("categories") or [], document["means"]
    metric, mean = next(iter(means.items()))
    total, n_scored = len(rows), int(mean["n_categories"])
    where = plural(int(document["n_rows"]), "row")
    bounds = _range(mean.get("macro_low"), mean.get("macro_high"))
    level = f"{document.get('level') or 0.95:.0%} interval {bounds}"
    seen = "In sample, so too good: " if document.get("in_sample") else ""
    start = f"{seen}mean {metric_label(metric)} {score(mean['macro'])}"
    judged = sum(one.get("interval_reason") is None for one in rows)
    return Page(
        title="Evaluation of a head",
        facts=about(document),
        metric=metric_label(metric),
        tone="",
        verdict=f"{start[:1].upper()}{start[1:]} over {n_scored:,} of "
        f"{plural(total, 'category', 'categories')}, on {where}.",
        scores=[score(mean["macro"])],
        scores_text=f"Mean {metric_label(metric)} on {where} ({level})",
        counts=[
            (count(judged), "scored with an interval", ""),
            (count(n_scored - judged), "scored from very few", ""),
            (count(total - n_scored), "could not be scored", ""),
        ],
        next_step=next_step_of_evaluation(document),
        table=_score_table(document, list(means)),
        sections=(_scores_section(rows, metric), _sections(document)),
        parts=_parts(document, list(means)),
        words=words(
            "category", "row", "head", "known, unknown",
            *metric_words([metric_label(name) for name in means]), "interval",
            "precision, recall", "probability, logit",
        ),
        provenance=provenance(document, {"Inputs": "inputs", "Options": "options"}),
        version=str(document.get("catwise", "")),
    )  # fmt: skip


def _scores_section(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Section]:
    if not any(one.get(metric) is not None for one in rows):
        return []
    text = "A dot is the score of a category, the bar its interval; the highest first."
    if len(rows) > MOST:
        text += f" Drawn are the {MOST // 2} highest and the {MOST // 2} lowest."
    drawn = forest(partial(scores, rows, metric))
    return [Section("scores", "How well each category is scored", [Text(text, soft=True), drawn])]


def _score_table(document: Mapping[str, Any], metrics: Sequence[str]) -> CategoryTable:
    """The first metric with its interval, up to four others beside it."""
    first, others = metrics[0], list(metrics[1:5])
    notes = any(one.get("interval_reason") for one in document.get("categories") or [])
    rows = []
    for number, one in enumerate(document.get("categories") or []):
        reason = one.get("interval_reason")
        cells: list[tuple[str, str | float]] = [
            (str(one["category"]), str(one["category"])),
            (score(one.get(first)), _key(one.get(first))),
            (_range(one.get(f"{first}_low"), one.get(f"{first}_high")),
             _key(one.get(f"{first}_low"))),
            *((score(one.get(name)), _key(one.get(name))) for name in others),
            (count(one["n_positive"]), one["n_positive"]),
            *([(outcome_text({"reason": reason}) if reason else "", str(reason or ""))]
              if notes else []),
        ]  # fmt: skip
        scored = one.get(first) is not None
        group = "scored" if scored and not reason else "few labels" if scored else "not scored"
        rows.append(Row(str(one["category"]), number, "", group, cells))
    rows.sort(key=lambda row: (row.cells[1][1] == "", -float(row.cells[1][1] or 0.0)))
    return CategoryTable(
        caption="Scores of each category. A heading sorts, a name leads to all that is known of "
        "its category.",
        headings=(
            Heading("category"),
            Heading(metric_label(first), "number"),
            Heading("interval", "number"),
            *(Heading(metric_label(name), "number", wide=True) for name in others),
            Heading("positives", "number", wide=True),
            *([Heading("note", wide=True)] if notes else []),
        ),
        rows=rows,
        groups=("scored", "few labels", "not scored"),
    )


def _key(value: Any) -> str | float:
    return "" if value is None else float(value)


def _sections(document: Mapping[str, Any]) -> list[Section]:
    rows = [
        [metric_label(name), score(mean["macro"]),
         _range(mean.get("macro_low"), mean.get("macro_high")), score(mean.get("micro")),
         count(mean["n_categories"])]
        for name, mean in document["means"].items()
    ]  # fmt: skip
    headings = ("metric", "mean", "interval", "all labels pooled", "categories")
    caption = "Means over the categories that can be scored."
    found = [
        *curve_sections(document.get("curves")),
        Section("metrics", "All metrics", [Grid(caption, headings, rows)]),
    ]
    return [*found, *_notes(document)]


def _notes(document: Mapping[str, Any]) -> list[Section]:
    notes = [str(note) for note in document.get("notes") or []]
    return [Section("notes", "Notes", [Listing(notes)])] if notes else []


def _parts(document: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[Part]:
    curves = by_category((document.get("curves") or {}).get("categories") or [])
    limit = (document.get("options") or {}).get("threshold", 0.0)
    for number, one in enumerate(document.get("categories") or []):
        name = str(one["category"])
        threshold = limit[number] if isinstance(limit, list) else limit
        pairs = [
            (metric_label(key),
             f"{score(one.get(key))} ({_range(one.get(f'{key}_low'), one.get(f'{key}_high'))})")
            for key in metrics
        ]  # fmt: skip
        known = f"{count(one['n_positive'])} positives, {count(one['n_negative'])} negatives"
        pairs.append(("known", known))
        text = f"{metric_label(metrics[0])} {score(one.get(metrics[0]))}"
        blocks: list[Block] = [Facts(pairs), *category_charts(curves.get(name), threshold)]
        yield Part(name, number, text, blocks)


# ------------------------------------------------------------------------------ two heads


def comparison_page(document: Mapping[str, Any]) -> Page:
    """What the page of two heads on the same images holds.

    Args:
        document: as `HeadComparison.to_dict` gives it, with `inputs`, `curves`, `date`, `catwise`;
            `sides` are the names of the two.
    """
    sides = document.get("sides") or _HEADS
    first, *others = document["comparisons"]
    metric = first["metric"]
    label, where = metric_label(metric), plural(int(first["n_rows"]), "row")
    low, high = first.get("difference_low"), first.get("difference_high")
    bounds = bounds_text(low, high, first.get("level") or 0.95)
    change = f"{gain(first.get('difference'))} ({bounds})"
    outcomes = first.get("outcomes") or {}
    rows = first["categories"]
    verdict = str(document.get("verdict"))
    return Page(
        title="Two heads on the same images",
        facts=about(document),
        metric=label,
        tone=verdict if verdict in {"helped", "harmed"} else "",
        verdict=str(document["sentence"]),
        scores=[score(first["before"]), score(first["after"])],
        scores_text=f"Mean {label} on {where}: {change}",
        counts=[(count(outcomes.get(key, 0)), text, tone) for key, text, tone in _COUNTED],
        next_step=next_step_of_evaluation(document),
        table=_difference_table(rows, metric, sides),
        sections=(_changes_section(rows, metric, sides), _comparison_sections(document)),
        parts=_comparison_parts(document, [first, *others]),
        words=words(
            "category", "row", "head", "original, new", "known, unknown",
            *metric_words([metric_label(one["metric"]) for one in document["comparisons"]]),
            "interval", "better, worse", "not judged", "precision, recall", "probability, logit",
        ),
        provenance=provenance(document, {"Inputs": "inputs", "Options": "options"}),
        version=str(document.get("catwise", "")),
    )  # fmt: skip


def _changes_section(
    rows: Sequence[Mapping[str, Any]], metric: str, sides: Sequence[str]
) -> list[Section]:
    if not by_gain(changes(rows), metric):
        return []
    text = (
        f"A hollow dot is the score of {sides[0]}, a full dot that of {sides[1]}. The bar is the "
        " interval of the difference, set at the hollow dot: green or red where a difference "
        "is shown."
    )
    blocks: list[Block] = [Text(text, soft=True)]
    if len(rows) > MOST:
        blocks.append(forest(partial(all_gains, rows, metric=metric)))
    blocks.append(forest(partial(gains, rows, metric=metric)))
    return [Section("gains", "What differs, by category", blocks)]


def _difference_table(
    rows: Sequence[Mapping[str, Any]], metric: str, sides: Sequence[str]
) -> CategoryTable:
    found = changes(rows)
    made = []
    for one, row in zip(found, rows, strict=True):
        judged = row.get("outcome") != "not_judged"
        shows = outcome_text(row)
        made.append(
            Row(
                one.category,
                one.number,
                one.outcome,
                one.outcome or ("no difference shown" if judged else "not judged"),
                [
                    (one.category, one.category),
                    (score(one.before), _key(one.before)),
                    (score(one.after), _key(one.after)),
                    (gain(one.gain), _key(one.gain)),
                    (interval(one.low, one.high), _key(one.low)),
                    (count(one.n_positive), _key(one.n_positive)),
                    (shows, shows),
                ],
            )
        )
    order = [one.number for one in by_gain(found, metric)]
    rest = sorted(set(range(len(made))) - set(order))
    return CategoryTable(
        caption=f"{sentence_case(metric)} of each category with {sides[0]} (before) and "
        f"{sides[1]} (after). A heading sorts, a name leads to all that is known of its category.",
        headings=(
            Heading("category"),
            Heading("before", "number", wide=True),
            Heading("after", "number", wide=True),
            Heading("change", "number", signed=True),
            Heading("interval", "number", wide=True),
            Heading("positives", "number", wide=True),
            Heading("shows"),
        ),
        rows=[made[number] for number in (*order, *rest)],
        groups=("better", "worse", "no difference shown", "not judged"),
    )


def _comparison_sections(document: Mapping[str, Any]) -> list[Section]:
    rows = [
        [*difference_cells(one, metric_label(one["metric"])), count(one.get("n_scored"))]
        for one in document["comparisons"]
    ]
    headings = ("metric", "before", "after", "difference", "interval", "categories")
    caption = "Means over the categories that can be scored."
    return [
        *curve_sections(document.get("curves")),
        *moved_section(document.get("curves"), document.get("thumbnails")),
        Section("metrics", "All metrics", [Grid(caption, headings, rows)]),
        *_notes(document),
    ]


def _comparison_parts(
    document: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]]
) -> Iterator[Part]:
    curves = by_category((document.get("curves") or {}).get("categories") or [])
    for number, rows in enumerate(zip(*(one["categories"] for one in comparisons), strict=True)):
        name = str(rows[0]["category"])
        pairs = [
            (metric_label(one["metric"]), _difference_text(row, one.get("level") or 0.95))
            for one, row in zip(comparisons, rows, strict=True)
        ]
        known = (
            f"{count(rows[0]['n_positive'])} positives, {count(rows[0]['n_negative'])} negatives"
        )
        text = f"{score(rows[0]['before'])} → {score(rows[0]['after'])}, {outcome_text(rows[0])}"
        moved = moved_images(
            curves.get(name), rows_name(document.get("curves")), document.get("thumbnails")
        )
        facts = Facts([*pairs, ("known", known)])
        blocks = [facts, *category_charts(curves.get(name)), *moved]
        yield Part(name, number, text, blocks)


def _difference_text(row: Mapping[str, Any], level: float) -> str:
    bounds = bounds_text(row.get("difference_low"), row.get("difference_high"), level)
    sides = f"{score(row.get('before'))} → {score(row.get('after'))}"
    return f"{sides} ({gain(row.get('difference'))}, {bounds})"
