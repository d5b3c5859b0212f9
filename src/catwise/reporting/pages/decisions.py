"""Pages of what is decided after tuning: calibrated probabilities, ensembles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from catwise._text import count, gain, plural, score
from catwise.reporting.next_step import next_step_of_calibration, next_step_of_ensemble
from catwise.reporting.page import (
    MANY,
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
from catwise.reporting.pages.evaluation import comparison_page
from catwise.reporting.pages.parts import about, curve_sections, difference_cells, provenance
from catwise.reporting.pages.words import words
from catwise.reporting.summary import metric_label, outcome_text

_WORDS = ("category", "known, unknown", "interval", "probability, logit")


def calibration_page(document: Mapping[str, Any]) -> Page:
    """What the page of a calibration holds.

    Args:
        document: as `Calibration.page_document` gives it, with `inputs`, `date`.
    """
    rows = document["categories"]
    changed = [one for one in rows if one["method"] != "none"]
    size = plural(len(rows), "category", "categories")
    if not document.get("comparisons"):
        return _bare(
            document,
            "Calibration of probabilities",
            f"The logits of {len(changed):,} of {size} are calibrated. No test rows say whether "
            "that helped.",
            counts=[(count(n), text, "") for text, n in Counter(_done(r) for r in rows).items()],
            next_step=next_step_of_calibration(document),
            table=_maps_table(rows),
            sections=[*_population(document), *_notes(document)],
            parts=[Part(str(one["category"]), c, _done(one), [Facts(_facts(one))])
                   for c, one in enumerate(rows)],
        )  # fmt: skip
    first = document["comparisons"][0]
    told = {
        **document, **{key: first[key] for key in ("sentence", "verdict")},
        "sides": ("the logits as they were", "the calibrated ones"),
    }  # fmt: skip
    page = comparison_page({**told, "curves": None})
    meaning = curve_sections(document.get("curves"))[1:]
    metrics = [one for one in page.sections[1] if one.id == "metrics"]
    after = [*meaning, *_maps_section(rows), *_population(document), *metrics, *_notes(document)]
    curves = comparison_page(told).parts
    parts = [
        replace(part, blocks=[Facts([*_facts(row), *_pairs(part)]), *part.blocks[1:]])
        for part, row in zip(curves, rows, strict=True)
    ]
    return replace(
        page,
        title="Calibration of probabilities",
        next_step=next_step_of_calibration(document),
        sections=(page.sections[0], after),
        parts=parts,
        words=words("log-loss", "better, worse", "not judged", "test rows", *_WORDS),
    )


def _pairs(part: Part) -> Sequence[tuple[str, str]]:
    first = part.blocks[0]
    return first.pairs if isinstance(first, Facts) else ()


def _done(row: Mapping[str, Any]) -> str:
    """What became of one category."""
    return "left as they were" if row["method"] == "none" else f"by {row['method']}"


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = f"{count(row['n_positive'])} positives, {count(row['n_negative'])} negatives"
    pairs = [("calibrated", _done(row)), ("fitted on", known)]
    if "knots" not in row:
        pairs.append(("map", f"{score(row['scale'])} × logit {_offset(row)}"))
    if row.get("reason"):
        pairs.append(("why", outcome_text({"reason": row["reason"]})))
    return pairs


def _offset(row: Mapping[str, Any]) -> str:
    """With its sign; 0 has a plus."""
    text = gain(row["offset"])
    return f"+{text}" if text[0].isdecimal() else text


def _maps_section(rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    if len(rows) > MANY:
        text = "How each category is calibrated stands in its own part."
        return [Section("maps", "How logits are calibrated", [Text(text)])]
    cells = [
        [str(one["category"]), _done(one), score(one["scale"]), _offset(one),
         count(one["n_positive"]), count(one["n_negative"])]
        for one in rows
    ]  # fmt: skip
    headings = ("category", "method", "scale", "offset", "positives", "negatives")
    caption = "Calibrated logit = scale × logit + offset, for the affine methods."
    return [Section("maps", "How logits are calibrated", [Grid(caption, headings, cells, texts=2)])]


def _maps_table(rows: Sequence[Mapping[str, Any]]) -> CategoryTable:
    groups = list(dict.fromkeys(map(_done, rows)))
    made = [
        Row(str(one["category"]), c, "", _done(one), [
            (str(one["category"]), str(one["category"])), (_done(one), _done(one)),
            (score(one["scale"]), float(one["scale"])), (_offset(one), float(one["offset"])),
            *((count(one[key]), one[key]) for key in ("n_positive", "n_negative")),
        ])
        for c, one in enumerate(rows)
    ]  # fmt: skip
    return CategoryTable(
        caption="How the logits of each category are calibrated. A heading sorts.",
        headings=(
            Heading("category"),
            Heading("method"),
            Heading("scale", "number"),
            Heading("offset", "number"),
            Heading("positives", "number", wide=True),
            Heading("negatives", "number", wide=True),
        ),
        rows=made,
        groups=groups,
    )


def ensemble_page(document: Mapping[str, Any]) -> Page:
    """What the page of an ensemble holds.

    Args:
        document: as `Ensemble.page_document` gives it, with `inputs`, `date`.
    """
    members = [str(one["name"]) for one in document["members"]]
    rows, size = document["categories"], plural(len(members), "member")
    made = Section("members", "Members", _members(document))
    if not document.get("comparisons"):
        every = [one for one in rows if one["n_members"] == len(members)]
        return _bare(
            document,
            "Ensemble",
            f"One answer of {size} ({', '.join(members)}), by their mean "
            f"{document['method']}. No test rows say whether it is better than one of them.",
            counts=[
                (count(len(every)), "categories of all members", ""),
                (count(len(rows) - len(every)), "categories of some members", ""),
            ],
            next_step=next_step_of_ensemble(document),
            table=None,
            sections=[made, *_population(document), *_notes(document)],
            parts=(),
        )
    first, best = document["comparisons"][0], document["best"]
    told = {
        **document, **{key: first[key] for key in ("sentence", "verdict")},
        "sides": (f"the member {best}", "the ensemble"),
    }  # fmt: skip
    page = comparison_page(told)
    more = [*_population(document), *_notes(document)]
    against = f"{first['sentence']} Compared with its best member, {best}."
    return replace(
        page,
        title=f"Ensemble of {size}",
        verdict=against,
        next_step=next_step_of_ensemble(document),
        sections=(page.sections[0], [made, *more]),
    )


def _members(document: Mapping[str, Any]) -> list[Block]:
    """Kinds and mean weights of the members, and the ensemble against each."""
    weights = document["weights"]
    rows = [
        [str(one["name"]), str(one["kind"]), score(sum(own) / max(1, len(own)))]
        for one, own in zip(document["members"], weights, strict=True)
    ]
    caption = "Weight: its mean over the categories."
    blocks: list[Block] = [Grid(caption, ("member", "outputs", "weight"), rows, texts=2)]
    for name, found in (document.get("against") or {}).items():
        cells = [difference_cells(one, metric_label(metric)) for metric, one in found.items()]
        headings = ("metric", "member", "ensemble", "difference", "interval")
        blocks.append(Grid(f"The ensemble against {name}, on test rows.", headings, cells))
    worth = (document.get("worth") or {}).values()
    return [*blocks, *(Text(f"Weights against equal ones: {one['sentence']}") for one in worth)]


def _population(document: Mapping[str, Any]) -> list[Section]:
    text = document.get("population")
    return [Section("population", "Of which images they speak", [Text(str(text))])] if text else []


def _notes(document: Mapping[str, Any]) -> list[Section]:
    notes = [str(note) for note in document.get("notes") or []]
    return [Section("notes", "Notes", [Listing(notes)])] if notes else []


def _bare(document: Mapping[str, Any], title: str, verdict: str, **more: Any) -> Page:
    """A page of what no test rows have judged."""
    sections, next_step = more.pop("sections"), more.pop("next_step")
    return Page(
        title=title,
        facts=about(document),
        metric="probabilities",
        tone="",
        verdict=verdict,
        scores=[],
        scores_text="",
        next_step=next_step,
        sections=([], sections),
        words=words("test rows", *_WORDS),
        provenance=provenance(document, {"Inputs": "inputs"}),
        version=str(document.get("catwise", "")),
        **more,
    )
