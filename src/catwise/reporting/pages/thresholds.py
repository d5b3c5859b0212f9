"""Thresholds on a page."""

from __future__ import annotations

from collections.abc import Mapping

from catwise._text import count, interval, score
from catwise.reporting.page import MANY, Block, Grid, Section, Text


def thresholds_section(found: object) -> Section | None:
    """From which logit each category is called positive, and what that reaches on test rows."""
    if not isinstance(found, Mapping) or not found.get("categories"):
        return None
    categories = found["categories"]
    if len(categories) > MANY:
        text = "The threshold of each category stands in its own part."
        return Section("thresholds", "Thresholds", [Text(text)])
    rates = ("sensitivity", "specificity", "precision")
    tested = any("sensitivity" in one for one in categories)
    rows = []
    for one in categories:
        cells = [str(one["category"]), score(one["threshold"]), score(one["probability"])]
        for name in rates if tested else ():
            low, high = one.get(f"{name}_low"), one.get(f"{name}_high")
            bounds = interval(low, high).replace("+", "")
            cells.append(f"{score(one.get(name))} ({bounds})" if low is not None else score(None))
        rows.append([*cells, *([count(one.get("alerts_per_1000"))] if tested else [])])
    headings = ["category", "threshold (logit)", "probability there"]
    headings += [*rates, "alerts per 1,000"] if tested else []
    reached = "what that reaches on test rows, with intervals"
    shown = reached if tested else "not tried on test rows"
    lines = [str(found.get("population") or ""), *map(str, found.get("notes") or [])]
    blocks: list[Block] = [Text(line) for line in lines if line]
    caption = f"From which logit each category is called positive; {shown}."
    blocks.append(Grid(caption, headings, rows))
    meanings = {str(one["category"]): str(one["explanation"]) for one in categories}
    blocks.append(Grid("What each threshold means.", ["category", "meaning"],
                       [list(pair) for pair in meanings.items()], texts=2))  # fmt: skip
    return Section("thresholds", "Thresholds", blocks)
