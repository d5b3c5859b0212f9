"""The page of a run of `tune`, `fix` or `select`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from catwise._text import count, gain, interval, plural, score
from catwise.reporting.charts.changes import Change, by_gain, changes
from catwise.reporting.charts.gains import MOST, all_gains, gains
from catwise.reporting.charts.progress import known_labels, learning, memorisation
from catwise.reporting.next_step import next_step_of_run
from catwise.reporting.page import (
    Block,
    CategoryTable,
    Charts,
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
from catwise.reporting.pages.thresholds import thresholds_section
from catwise.reporting.pages.words import metric_words, words
from catwise.reporting.summary import (
    STATUSES,
    bounds_text,
    facts,
    gain_interval,
    headline,
    metric_label,
    outcome_of,
    outcome_text,
    scored_on,
)

_TITLES: Final = {"tune": "Category-wise fine-tuning", "select": "Selection of heads"}
_SHOWN: Final = {"better": "better", "worse": "worse", "": "no difference shown"}
_STATUS_TEXTS: Final = {
    "replaced": "replaced",
    "kept": "left as they were",
    "skipped": "could not be judged",
}


def run_page(document: Mapping[str, Any]) -> Page:
    """What the page of a run holds.

    Args:
        document: as :func:`~catwise.reporting.page_document` gives it.
    """
    records = list(document.get("records") or [])
    summary = dict(document.get("summary") or {})
    first = headline(document)
    metric = summary.get("metric")
    scores, scores_text = _scores(document)
    found = changes(_judging(document))
    return Page(
        title=_TITLES.get(str(document.get("kind", "tune")), "Run"),
        facts=about(document),
        metric=metric_label(metric),
        tone=first.verdict if first.verdict in {"helped", "harmed"} else "",
        verdict=first.text,
        scores=scores,
        scores_text=scores_text,
        counts=_counts(document, found),
        next_step=next_step_of_run(document),
        notes=[first.chose] if first.chose else [],
        table=_table(document, records) if records else None,
        sections=(_first_sections(document, found), _more_sections(document, records)),
        parts=_parts(document, records),
        words=_words(document),
        provenance=_provenance(document),
        version=str(document.get("catwise", "")),
    )


def _judging(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The rows that say what changed: of the test rows, else the records."""
    evaluation = document.get("evaluation") or {}
    return evaluation.get("categories") or document.get("records") or []


def _scores(document: Mapping[str, Any]) -> tuple[list[str], str]:
    """Before and after, and what they are of."""
    evaluation, summary = document.get("evaluation"), document.get("summary") or {}
    found = evaluation or summary
    if found.get("before") is None or found.get("after") is None:
        return [], ""
    names = ("difference", "difference_low", "difference_high")
    where = f"{plural(int(evaluation['n_rows']), 'test row')}" if evaluation else ""
    if not evaluation:
        names = ("gain", "gain_low", "gain_high")
        rows = headline(document).rows
        where = f"{rows} rows, corrected for the choosing"
    change, low, high = (found.get(name) for name in names)
    bounds = bounds_text(low, high, found.get("level") or 0.95)
    text = f"Mean {metric_label(summary.get('metric'))} on {where}: {gain(change)} ({bounds})"
    return [score(found["before"]), score(found["after"])], text


def _counts(document: Mapping[str, Any], found: Sequence[Change]) -> list[tuple[str, str, str]]:
    """How many categories are better, worse, and so on."""
    evaluation = document.get("evaluation")
    if evaluation:
        outcomes = Counter(str(one.get("outcome")) for one in evaluation.get("categories") or [])
    else:
        outcomes = Counter(one.outcome or _unshown(one) for one in found)
    texts = (
        ("better", "better", "better"),
        ("worse", "worse", "worse"),
        ("no_difference", "no difference shown", ""),
        ("not_judged", "not judged", ""),
    )
    return [(count(outcomes[key]), text, tone) for key, text, tone in texts]


def _unshown(one: Change) -> str:
    return "not_judged" if one.gain is None else "no_difference"


# ---------------------------------------------------------------------------------- table


def _table(document: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> CategoryTable:
    """All categories: what changed, how sure that is, what was done."""
    summary = document.get("summary") or {}
    tested = by_category((document.get("evaluation") or {}).get("categories") or [])
    metric = summary.get("metric")
    where, role = scored_on(document)
    raw = not tested and any(
        one.get("after") is None and one.get("selected_on") is not None for one in records
    )
    rows = [
        _row(number, record, tested.get(str(record.get("category"))), raw=raw)
        for number, record in enumerate(records)
    ]
    found = changes(tested.get(str(r.get("category")), r) for r in records)
    order = [one.number for one in by_gain(found, metric)]
    rest = sorted(set(range(len(rows))) - set(order))
    on = "test rows" if tested else f"{where}, which {role}, corrected for the choosing"
    return CategoryTable(
        caption=f"{sentence_case(metric)} of each category on {on}. Positives: known among "
        "these rows. A heading sorts, a name leads to all that is known of its category.",
        headings=(
            Heading("category"),
            Heading("before", "number", wide=True),
            Heading("after", "number", wide=True),
            *([Heading("after, not corrected", "number", wide=True)] if raw else []),
            Heading("change", "number", signed=True),
            Heading("interval", "number", wide=True),
            Heading("positives", "number", wide=True),
            Heading("done", wide=True),
            Heading("shows"),
        ),
        rows=[rows[number] for number in (*order, *rest)],
        groups=("better", "worse", "no difference shown", "not judged"),
    )


def _row(
    number: int, record: Mapping[str, Any], tested: Mapping[str, Any] | None, *, raw: bool
) -> Row:
    """One category: of the test rows where there are any."""
    one = changes([tested or record])[0]
    outcome = one.outcome
    if tested is not None:
        bounds, shows = interval(one.low, one.high), outcome_text(tested)
    else:
        bounds = gain_interval(record)
        shows = _SHOWN[outcome] if one.gain is not None else "not judged"
    selected = record.get("selected_on")
    judged = (tested or {}).get("outcome") != "not_judged" and one.gain is not None
    return Row(
        name=one.category,
        number=number,
        outcome=outcome,
        group=outcome or ("no difference shown" if judged else "not judged"),
        cells=[
            (one.category, one.category),
            (score(one.before), _key(one.before)),
            (score(one.after), _key(one.after)),
            *([(score(selected), _key(selected))] if raw else []),
            (gain(one.gain), _key(one.gain)),
            (bounds, _key(one.low)),
            (count(one.n_positive), _key(one.n_positive)),
            (str(record.get("status", "")), str(record.get("status", ""))),
            (shows, shows),
        ],
    )


def _key(value: float | None) -> str | float:
    return "" if value is None else value


# ------------------------------------------------------------------------------- sections


def _first_sections(document: Mapping[str, Any], found: Sequence[Change]) -> list[Section]:
    """What stands before the table."""
    metric = (document.get("summary") or {}).get("metric")
    shown = by_gain(found, metric)
    if not shown:
        return []
    rows = _judging(document)
    blocks: list[Block] = [
        Text(
            "A hollow dot is the score of the original head, a full dot that of the new head. The "
            "bar is the interval of the change, set at the hollow dot: green or red where a "
            "change is shown.",
            soft=True,
        )
    ]
    if len(shown) > MOST:
        blocks += [forest(partial(all_gains, rows, metric=metric))]
        blocks += [Text(f"The {MOST // 2} that gained most, and the {MOST // 2} that lost most:")]
    blocks.append(forest(partial(gains, rows, metric=metric)))
    return [Section("gains", "What changed, by category", blocks)]


def _more_sections(
    document: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[Section]:
    """What stands after the table."""
    found = [
        _reasons(records),
        *curve_sections(document.get("curves")),
        *moved_section(document.get("curves"), document.get("thumbnails")),
        thresholds_section(document.get("thresholds")),
        _metrics(document.get("evaluation")),
        _gap(document.get("gap")),
        _learning(document),
        _labels(document, records),
        _notes(document),
    ]
    return [one for one in found if one is not None]


def _reasons(records: Sequence[Mapping[str, Any]]) -> Section:
    """What was done with which categories and why, what was left alone first."""
    groups: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for number, record in enumerate(records):
        key = (str(record.get("status", "")), str(record.get("reason", "")))
        groups.setdefault(key, []).append((number, record))
    order = {status: place for place, status in enumerate(("kept", "skipped", "replaced"))}
    ordered = sorted(groups.items(), key=lambda one: (order.get(one[0][0], 9), -len(one[1])))
    blocks: list[Block] = []
    for (status, _), members in ordered:
        texts = Counter(str(r.get("explanation") or r.get("reason") or "") for _, r in members)
        title = _STATUS_TEXTS.get(status, status)
        blocks.append(
            Names(
                title=title[:1].upper() + title[1:],
                count=plural(len(members), "category", "categories"),
                explanation=next(iter(texts)) if len(texts) == 1 else "",
                names=[(str(r.get("category", "")), number) for number, r in members],
            )
        )
    if not blocks:
        blocks.append(Text("No category was looked at."))
    return Section("why", "What was left alone, and why", blocks)


def _metrics(evaluation: object) -> Section | None:
    """Further metrics on the test rows, and further heads."""
    if not isinstance(evaluation, Mapping) or not evaluation:
        return None
    total, level = count(evaluation.get("n_categories")), evaluation.get("level") or 0.95
    rows = plural(int(evaluation["n_rows"]), "test row")
    means = [
        [*difference_cells(mean, metric_label(name)), f"{count(mean.get('n_scored'))} of {total}"]
        for name, mean in (evaluation.get("means") or {}).items()
    ]
    headings = ("before", "after", "difference", f"{level:.0%} interval", "categories")
    caption = f"Means over the categories that can be scored, on {rows}."
    blocks: list[Block] = [Grid(caption, ("metric", *headings), means)]
    if heads := evaluation.get("heads"):
        table = [
            [str(one.get("name", "")), score(one.get("score")), gain(one.get("gain")),
             interval(one.get("gain_low"), one.get("gain_high"))]
            for one in heads
        ]  # fmt: skip
        metric = metric_label(evaluation.get("metric"))
        caption = f"Several heads on the same rows: mean {metric}, and the gain over the first."
        headings_of = ("head", "score", "gain", f"{level:.0%} interval")
        blocks.append(Grid(caption, headings_of, table))
    return Section("metrics", "Other metrics on the test rows", blocks)


def _gap(gap: object) -> Section | None:
    """How much of what the original head seems to know it has only memorised."""
    if not isinstance(gap, Mapping) or not gap:
        return None
    advice = gap.get("advice")
    lines = advice if isinstance(advice, (list, tuple)) else [advice] if advice else []
    level = gap.get("level") or 0.95
    rows = [
        [metric_label(name), score(one.get("training")), score(one.get("fresh")),
         gain(one.get("gap")), interval(one.get("low"), one.get("high")),
         count(one.get("n_categories"))]
        for name, one in gap.items()
        if isinstance(one, Mapping)
    ]  # fmt: skip
    blocks: list[Block] = [
        Text(
            "A model looks better on the images that it was trained on than it is: it has "
            "memorised some of their labels. The gap says how much.",
            soft=True,
        ),
        *(Text(str(line)) for line in lines),
    ]
    if (chart := memorisation(gap)) is not None:
        blocks.append(Charts([chart]))
    if rows:
        headings = ("metric", "trained on", "other", "gap", f"{level:.0%} interval", "categories")
        caption = "The original head, mean over the categories that have both kinds of labels."
        blocks.append(Grid(caption, headings, rows))
    return Section("memorised", "What the model has memorised", blocks)


def _learning(document: Mapping[str, Any]) -> Section | None:
    """How the fits went: steps, generations, or candidates."""
    history = list(document.get("history") or [])
    metric = str((document.get("summary") or {}).get("metric"))
    charts = [
        chart
        for quantity in ("score", "loss", "fitness")
        if (chart := learning(history, quantity=quantity, metric=metric)) is not None
    ]
    if charts:
        text = "After every step, as the mean over the tuned categories; the best step is taken."
        return Section("learning", "How the fits went", [Text(text, soft=True), Charts(charts)])
    tried = [one for one in history if "candidate" in one]
    if len(tried) < 2:
        return None
    rows = [
        [str(one["candidate"]), score(one.get("log_loss")), gain(one.get("pooled_gain"))]
        for one in tried
    ]
    caption = "What was tried for all categories together; the least held-out log-loss wins."
    headings = ("candidate", "held-out log-loss", "mean gain")
    return Section("learning", "What was tried", [Grid(caption, headings, rows)], folded=True)


def _labels(document: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Section | None:
    """What is known of each category, in training and validation."""
    sizes = (document.get("summary") or {}).get("rows") or {}
    blocks: list[Block] = []
    for part, name in (("valid", "validation"), ("train", "training")):
        rows = [
            {"category": r.get("category"), "positive": r.get(f"n_positive_{part}"),
             "negative": r.get(f"n_negative_{part}")}
            for r in records
            if r.get(f"n_positive_{part}") is not None
        ]  # fmt: skip
        if rows and sizes.get(part):
            blocks.append(Text(f"{plural(int(sizes[part]), f'{name} image')}:"))
            blocks.append(forest(partial(known_labels, rows, int(sizes[part]))))
    if not blocks:
        return None
    return Section("labels", "Which labels are known", blocks)


def _notes(document: Mapping[str, Any]) -> Section | None:
    notes = [str(note) for note in document.get("notes") or []]
    return Section("notes", "Notes", [Listing(notes)]) if notes else None


# ---------------------------------------------------------------------------------- parts


def _parts(document: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """All that is known of each category."""
    tested = by_category((document.get("evaluation") or {}).get("categories") or [])
    curves = by_category((document.get("curves") or {}).get("categories") or [])
    limits = by_category((document.get("thresholds") or {}).get("categories") or [])
    history = _by_category(document.get("history") or [])
    metric = str((document.get("summary") or {}).get("metric"))
    where = rows_name(document.get("curves"))
    for number, record in enumerate(records):
        name = str(record.get("category", number))
        limit = limits.get(name, {}).get("threshold")
        charts = category_charts(curves.get(name), limit, history.get(name, []), metric)
        note = [Text(f"Curves of {where}.", soft=True)] if charts else []
        more = [] if limit is None else [("threshold (logit)", score(limit))]
        pairs = Facts([*_facts(record, tested.get(name)), *more])
        summary = _summary(record, tested.get(name))
        moved = moved_images(curves.get(name), where, document.get("thumbnails"))
        yield Part(name, number, summary, [pairs, *note, *charts, *moved])


def _by_category(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in history:
        if "category" in entry:
            found.setdefault(str(entry["category"]), []).append(entry)
    return found


def _summary(record: Mapping[str, Any], tested: Mapping[str, Any] | None) -> str:
    """One category in a line."""
    one = changes([tested or record])[0]
    if one.gain is None:
        return str(record.get("status", ""))
    shown = outcome_text(tested) if tested is not None else _SHOWN[outcome_of(record)]
    return f"{score(one.before)} → {score(one.after)} ({gain(one.gain)}), {shown}"


def _facts(record: Mapping[str, Any], tested: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The numbers of one category, named."""
    metric = metric_label(record.get("metric"))
    pairs: list[tuple[str, str]] = []
    if tested is not None:
        pairs.append((f"{metric} on test rows", _change_text(tested, "difference")))
        for name, other in (tested.get("other_metrics") or {}).items():
            pairs.append((f"{metric_label(name)} on test rows", _change_text(other, "difference")))
    if record.get("before") is not None:
        where = f"on {record.get('scored_on') or 'validation'}"
        pairs.append((f"{metric} {where}", _change_text(record, "gain")))
    pairs.append(("what was done", str(record.get("status", ""))))
    pairs.append(("why", str(record.get("explanation") or record.get("reason") or "")))
    if record.get("selected_on") is not None:
        raw = score(record["selected_on"])
        pairs.append(("score on the data that chose it", f"{raw}, not corrected: too high"))
    if record.get("candidate"):
        pairs.append(("what it has now", str(record["candidate"])))
    for part, name in (("train", "training"), ("valid", "validation"), ("test", "test")):
        if record.get(f"n_positive_{part}") is not None:
            known = (count(record.get(f"n_{sign}_{part}")) for sign in ("positive", "negative"))
            pairs.append((f"known in {name}", "{} positives, {} negatives".format(*known)))
    if record.get("gap_auroc") is not None:
        pairs.append(("memorised (AUROC gap)", gain(record["gap_auroc"])))
    for name, value in (record.get("candidates") or {}).items():
        pairs.append((f"{name}, not corrected for the choosing", score(value)))
    return pairs


def _change_text(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    bounds = bounds_text(low, high, 0.95)
    sides = f"{score(row.get('before'))} → {score(row.get('after'))}"
    return f"{sides} ({gain(row.get(name))}, {bounds})"


# ----------------------------------------------------------------------------------- rest


def _words(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    evaluation = document.get("evaluation") or {}
    metric = (document.get("summary") or {}).get("metric")
    metrics = [metric_label(name) for name in {**(evaluation.get("means") or {}), metric: None}]
    rows = ["test rows"] if evaluation else []
    shown = "better, worse" if evaluation else "better or worse"
    return words(
        "category", "row", "head", "original, new", "known, unknown", *metric_words(metrics),
        "interval", shown, "not judged", *rows, "validation rows", "training rows",
        "replaced, kept, skipped", "precision, recall", "probability, logit",
        *(["threshold"] if document.get("thresholds") else []),
    )  # fmt: skip


def _provenance(document: Mapping[str, Any]) -> list[Section]:
    summary, records = document.get("summary") or {}, document.get("records") or []
    keys = {"Checkpoint": "checkpoint", "Inputs": "inputs", "Choices": "choices"}
    more = {"Configuration": "config", "Summary": "summary"}
    told = [(name, text) for name, text in facts(summary, records) if name not in STATUSES]
    counts = [Section("in-rows", "Rows of the head", [Facts(_status_counts(records) + told)])]
    return [*provenance(document, keys), *counts, *provenance(document, more)]


def _status_counts(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    found = Counter(str(record.get("status", "")) for record in records)
    return [(status, count(found[status])) for status in STATUSES]
