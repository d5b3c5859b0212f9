"""Blocks that several pages have: curves, one category's part, provenance, small tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from catwise._text import gain, interval, plural, score, value_text
from catwise.reporting.charts.chart import Chart
from catwise.reporting.charts.curves import distribution, precision_recall, reliability, roc
from catwise.reporting.charts.progress import learning
from catwise.reporting.page import Block, Charts, Facts, Forest, Picture, Pictures, Section, Text
from catwise.reporting.summary import metric_label

_DATA = ("train labels", "labels", "valid labels", "train features", "features")
_NAMED_BY = ("name", "dataset", "path", "key")

WIDE, NARROW = 960, 440
"""Widths of a forest."""

_PICTURE = "data:image/jpeg;base64,"

_ROWS = {"test": "test rows", "validation": "validation rows", "training": "training rows"}


def forest(draw: Callable[..., Chart]) -> Forest:
    """A forest for wide and for narrow windows."""
    return Forest(draw(width=WIDE), draw(width=NARROW))


def curve_sections(curves: Mapping[str, Any] | None) -> list[Section]:
    """Of all categories together: how scores order images, and what probabilities mean."""
    records = [one for one in (curves or {}).get("categories") or [] if one["heads"]]
    both = [one for one in records if one["n_positive"] and one["n_negative"]]
    if not both:
        return []
    where = rows_name(curves)
    size = plural(len(both), "category", "categories")
    compared = len(records[0]["heads"]) > 1
    heads = "; the dashed line is the original head, the full one the new head" if compared else ""
    ranking = Section(
        "curves",
        "How scores order images",
        [
            Text(
                f"On {where}, as the mean over {size}{heads}. Higher is better. The curves of "
                "one category stand in its own part.",
                soft=True,
            ),
            Charts([precision_recall(both), roc(both)]),
        ],
    )
    meaning = Section(
        "reliability",
        "What probabilities mean",
        [
            Text(
                f"On {where}, all categories together: of the images that were given a "
                "probability, how many were positive. On the dotted diagonal probabilities mean "
                "what they say; below it they promise too much.",
                soft=True,
            ),
            Charts([reliability(records)]),
        ],
    )
    return [ranking, meaning]


def rows_name(curves: Mapping[str, Any] | None) -> str:
    """Of which images curves are, for people."""
    rows = str((curves or {}).get("rows") or "")
    return _ROWS.get(rows, "these rows")


def category_charts(
    curve: Mapping[str, Any] | None,
    threshold: float | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    metric: str | None = None,
) -> list[Block]:
    """The curves of one category, where its labels allow any."""
    drawn: list[Chart] = []
    name = None if curve is None else str(curve["category"])
    if curve is not None and curve["n_positive"] and curve["n_negative"]:
        drawn += [precision_recall(curve), roc(curve), reliability(curve)]
    if curve is not None and curve["heads"]:
        drawn.append(distribution(curve, threshold=threshold))
    for quantity in ("score", "loss", "fitness") if history and name else ():
        chart = learning(history, name, quantity=quantity, metric=metric)
        drawn += [] if chart is None else [chart]
    return [Charts(drawn)] if drawn else []


def moved_images(
    curve: Mapping[str, Any] | None, where: str, thumbnails: Mapping[str, Any] | None
) -> list[Block]:
    """The images of one category whose probability moved most, with pictures where there are any.

    Args:
        curve: of the category.
        where: of which images it is.
        thumbnails: as :func:`catwise.models.thumbnails.make_thumbnails` gives them.
    """
    rows = (curve or {}).get("moved") or []
    if curve is None or not rows:
        return []
    told = thumbnails or {}
    shown = set((told.get("categories") or {}).get(str(curve["category"])) or [])
    pictures = []
    for one in rows:
        name = str(one["id"]) if one["id"] is not None else f"in row {one['row']:,}"
        label = "known positive" if one["positive"] else "known negative"
        lines = [f"{score(one['before'])} → {score(one['after'])}", label]
        if problem := (told.get("problems") or {}).get(one["id"]):
            lines.append(str(problem))
        source = told["images"][one["id"]] if one["id"] in shown else ""
        pictures.append(Picture(name, lines, source if source.startswith(_PICTURE) else ""))
    return [Pictures(f"Images whose probability moved most, of {where}", pictures)]


def moved_section(
    curves: Mapping[str, Any] | None, thumbnails: Mapping[str, Any] | None
) -> list[Section]:
    """Where the images that moved most stand, and why some are not shown."""
    if not any(one.get("moved") for one in (curves or {}).get("categories") or []):
        return []
    text = (
        f"The part of each category names the images, of {rows_name(curves)}, whose probability "
        "differs most between the two heads, with their known label."
    )
    notes = [Text(str(one)) for one in (thumbnails or {}).get("notes") or []]
    return [Section("moved", "Which images moved most", [Text(text), *notes])]


def by_category(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Rows by the name of their category."""
    return {str(row.get("category")): row for row in rows}


def difference_cells(row: Mapping[str, Any], name: str) -> list[str]:
    """Name, before, after, difference, interval."""
    low, high = row.get("difference_low"), row.get("difference_high")
    sides = (score(row.get(side)) for side in ("before", "after"))
    return [name, *sides, gain(row.get("difference")), interval(low, high)]


def provenance(document: Mapping[str, Any], keys: Mapping[str, str]) -> list[Section]:
    """What went in and how it was done, a section for each: {heading: key}."""
    return [
        Section(f"in-{key}", heading, [Facts(flat(document[key]))])
        for heading, key in keys.items()
        if document.get(key)
    ]


def flat(value: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    """A nested table as (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{path}{str(key).replace('_', ' ')}"
        if isinstance(item, Mapping) and item:
            pairs += flat(item, f"{name} · ")
        else:
            pairs.append((name, value_text(item)))
    return pairs


def about(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Model, data and date, as far as the document knows them."""
    inputs: Mapping[str, Any] = document.get("inputs") or {}
    found = {
        "Model": _place(inputs, "model", "head", "checkpoint"),
        "Heads": ", ".join(map(str, inputs.get("candidates") or [])),
        "Compared with": _place(inputs, "against"),
        "Data": _place(inputs, *_DATA),
        "Date": str(document.get("date") or ""),
    }
    return [(name, text) for name, text in found.items() if text]


def _place(inputs: Mapping[str, Any], *names: str) -> str:
    """The name or the place of the first of these inputs."""
    for name in names:
        one = inputs.get(name)
        if isinstance(one, Mapping):
            text = next(
                (one[key] for key in ("name", "dataset", "path", "key") if one.get(key)), ""
            )
        else:
            text = one or ""
        if text:
            return str(text)
    return ""


def sentence_case(metric: object) -> str:
    """A metric's name at the start of a sentence."""
    label = metric_label(metric)
    return label[:1].upper() + label[1:]
