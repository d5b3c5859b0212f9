"""The page of an audit of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from catwise._text import count, plural, score, some, value_text
from catwise.reporting.charts.progress import known_labels
from catwise.reporting.next_step import next_step_of_audit
from catwise.reporting.page import (
    Block,
    CategoryTable,
    Facts,
    Grid,
    Heading,
    Listing,
    Names,
    Page,
    Part,
    Row,
    Section,
    Text,
)
from catwise.reporting.pages.parts import about, forest, provenance
from catwise.reporting.pages.words import words

_GROUPS = {"ok": "enough", "few_positives": "few", "few_negatives": "few"}


def audit_page(document: Mapping[str, Any]) -> Page:
    """What the page of an audit holds.

    Args:
        document: of `catwise audit`: "summary", "categories", "findings", "unknown_together",
            "selection", "estimated_prevalence", "dataset", "next", "inputs".
    """
    rows, summary = document.get("categories") or [], document["summary"]
    groups = Counter(_group(one) for one in rows)
    usable = groups["enough"] + groups["few"]
    total = plural(len(rows), "category", "categories")
    images, known = plural(int(summary["n_rows"]), "image"), float(summary["coverage"])
    return Page(
        title="What is known of the labels",
        facts=about(document),
        metric="labels",
        tone="",
        verdict=f"{usable:,} of {total} can be fine-tuned and scored: both positives and negatives "
        "of them are known.",
        scores=[f"{known:.1%}"],
        scores_text=f"of all labels are known: {images}, {total}, "
        f"{count(summary['n_positive'])} positives and {count(summary['n_negative'])} negatives",
        counts=[
            (count(groups["enough"]), "with enough labels", ""),
            (count(groups["few"]), "with few labels", ""),
            (
                count(groups["not usable"]),
                "cannot be used",
                "worse",
            ),
        ],
        next_step=next_step_of_audit(document),
        table=_table(rows),
        sections=([_bars(rows, int(summary["n_rows"]))] if rows else [], _sections(document)),
        parts=_parts(document),
        words=words("category", "known, unknown", "coverage", "prevalence"),
        provenance=provenance(
            document, {"Inputs": "inputs", "Data set": "dataset", "Summary": "summary"}
        ),
        version=str(document.get("catwise", "")),
    )


def _group(row: Mapping[str, Any]) -> str:
    return _GROUPS.get(str(row["reason"]), "not usable")


def _bars(rows: Sequence[Mapping[str, Any]], n_rows: int) -> Section:
    drawn = forest(partial(known_labels, rows, n_rows))
    return Section("labels", "Which labels are known", [Text(drawn.wide.description, soft=True),
                                                        drawn])  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]]) -> CategoryTable:
    made = []
    for number, one in enumerate(rows):
        share = one["prevalence"]
        cells: list[tuple[str, str | float]] = [
            (str(one["category"]), str(one["category"])),
            *((count(one[key]), float(one[key])) for key in ("positive", "negative", "uncertain")),
            (f"{one['coverage']:.1%}", float(one["coverage"])),
            (score(share), "" if share is None else float(share)),
            (_group(one), _group(one)),
        ]
        made.append(Row(str(one["category"]), number, "", _group(one), cells))
    return CategoryTable(
        caption="Known labels of each category. Coverage: share of the images whose label is "
        "known. Share positive: among the known ones. A heading sorts.",
        headings=(
            Heading("category"),
            Heading("positives", "number"),
            Heading("negatives", "number"),
            Heading("uncertain", "number", wide=True),
            Heading("coverage", "number", wide=True),
            Heading("share positive", "number", wide=True),
            Heading("labels"),
        ),
        rows=made,
        groups=("enough", "few", "not usable"),
    )


def _sections(document: Mapping[str, Any]) -> list[Section]:
    found = [
        _reasons(document.get("categories") or []),
        _findings(document.get("findings") or []),
        _together(document.get("unknown_together") or {}),
        _selection(document.get("selection")),
        _estimates(document.get("estimated_prevalence")),
        _commands(document.get("next")),
    ]
    notes = [*(document.get("dataset") or {}).get("notes", []), *(document.get("notes") or [])]
    if notes:
        found.append(Section("notes", "Notes", [Listing([str(note) for note in notes])]))
    return [one for one in found if one is not None]


def _reasons(rows: Sequence[Mapping[str, Any]]) -> Section:
    groups: dict[str, list[tuple[str, int]]] = {}
    texts = {}
    for number, one in enumerate(rows):
        groups.setdefault(str(one["reason"]), []).append((str(one["category"]), number))
        texts[str(one["reason"])] = str(one["explanation"])
    blocks: list[Block] = [
        Names(
            {"enough": "Enough", "few": "Few"}.get(_GROUPS.get(reason, ""), "Cannot be used"),
            plural(len(names), "category", "categories"),
            texts[reason],
            names,
        )
        for reason, names in sorted(groups.items(), key=lambda one: (one[0] == "ok", -len(one[1])))
    ]
    return Section("why", "What can be done with each category", blocks)


def _findings(findings: Sequence[Mapping[str, Any]]) -> Section | None:
    if not findings:
        return None
    items = []
    for found in findings:
        groups = [" = ".join(map(str, names)) for names in found["examples"]]
        items.append(f"{found['explanation']} {some(groups, 8)} ({found['n']:,} in all)")
    return Section("odd", "What looks odd", [Listing(items)])


def _together(together: Mapping[str, Any]) -> Section | None:
    """Which categories are unknown in the same images."""
    if not together or together["n_categories"] < 2:
        return None
    blocks: list[Block] = []
    if same := together["same"]:
        items = [f"Unknown in exactly the same images: {some(names, 8)}." for names in same]
        blocks.append(Listing(items))
    if pairs := together["pairs"]:
        rows = [
            [str(one["first"]), str(one["second"]), count(one["n_together"]),
             count(one["expected"]), f"{one['phi']:.2f}"]
            for one in pairs
        ]  # fmt: skip
        headings = ("category", "and", "both unknown", "by chance", "correlation")
        caption = f"The strongest of {plural(together['n_beyond_chance'], 'pair')} beyond chance."
        blocks.append(Grid(caption, headings, rows, texts=2))
    if not blocks:
        blocks.append(Text("No two categories are unknown together more often than by chance."))
    return Section("together", "What is unknown together", blocks)


def _selection(selection: Sequence[Mapping[str, Any]] | None) -> Section | None:
    """Whether positives or negatives became known more often."""
    given = [one for one in selection or [] if one.get("prevalence") is not None]
    if not given:
        return None
    rows = [
        [str(one["category"]), score(one["share_positive"]), score(one["prevalence"]),
         str(one["verdict"]).replace("_", " ")]
        for one in given
    ]  # fmt: skip
    texts = {str(one["verdict"]): str(one["explanation"]) for one in given}
    headings = ("category", "share positive among the known", "true prevalence", "verdict")
    items = [f"{name.replace('_', ' ')}: {text}" for name, text in texts.items()]
    return Section(
        "selection",
        "Whether the known labels are like the rest",
        [Grid("Against the prevalence that was given.", headings, rows), Listing(items)],
    )


def _estimates(estimated: Mapping[str, Any] | None) -> Section | None:
    if not estimated:
        return None
    names = ("prevalence", "label_frequency", "lowest", "highest")
    rows = [
        [str(one["category"]), *(score(one.get(name)) for name in names)]
        for one in estimated["categories"]
    ]
    headings = ("category", "prevalence", "known of positives", "at least", "at most")
    caption = f"The share of positives, estimated under the assumption {estimated['assumption']}."
    return Section("estimates", "Estimated prevalence", [Grid(caption, headings, rows)])


def _commands(told: Mapping[str, Any] | None) -> Section | None:
    """The options that read these labels again, and the command that repairs a model with them."""
    names = {"options": "options that read these labels", "fix": "command that repairs a model",
             "dataset": "the data set"}  # fmt: skip
    pairs = [(name, str(told[key])) for key, name in names.items() if told and told.get(key)]
    return Section("commands", "Commands that follow", [Facts(pairs)]) if pairs else None


def _parts(document: Mapping[str, Any]) -> list[Part]:
    parts = []
    for number, one in enumerate(document.get("categories") or []):
        pairs = [
            ("known", f"{count(one['positive'])} positives, {count(one['negative'])} negatives"),
            ("uncertain", value_text(one["uncertain"])),
            ("coverage", f"{one['coverage']:.1%}"),
            ("what can be done", str(one["explanation"])),
        ]
        text = f"{count(one['positive'])} positives, {count(one['negative'])} negatives"
        parts.append(Part(str(one["category"]), number, text, [Facts(pairs)]))
    return parts
