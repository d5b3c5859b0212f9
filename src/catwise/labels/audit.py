"""What each category has in labels, and what category-wise fine-tuning can do with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from catwise.labels.chosen import ChosenCells, chosen_note
from catwise.labels.codes import UNCERTAIN, LabelCounts
from catwise.labels.core import PartialLabels
from catwise.labels.reasons import REASONS, class_reason

MOSTLY: Final = 0.9
"""Share of positives among the known labels beyond which a prevalence is asked for."""


@dataclass(frozen=True, slots=True)
class LabelAudit:
    """What labels hold.

    Attributes:
        summary: "n_rows", "n_categories", "n_groups" (None without groups), "n_known",
            "n_positive", "n_negative", "n_uncertain", "n_unknown", "coverage" (known share of all
            entries), "n_rows_without_label", and "reasons": how many categories have each code.
        rows: for each category "category", "index", "known", "positive", "negative", "uncertain",
            "coverage" (known share of the rows), "prevalence" (positive share of the known; None if
            none is), with `chosen` cells "chosen", "reason" (a key of `REASONS`) and "explanation".
        notes: sentences about the labels as a whole.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The audit, JSON-ready."""
        rows = [dict(row) for row in self.rows]
        return {"summary": dict(self.summary), "categories": rows, "notes": list(self.notes)}


def audit_labels(
    labels: PartialLabels, *, few: int = 5, chosen: ChosenCells | None = None
) -> LabelAudit:
    """Count what each category has, and say what can be done with it.

    A category has few positives, or negatives, under `few` known ones. Takes time in proportion to
    the labels that are there and never makes (N, C). Where cells were `chosen` by a model, rows
    count them too, "chosen", and "prevalence" is that of the others.

    >>> from catwise.labels import PartialLabels
    >>> audit = audit_labels(PartialLabels([[1, -1], [0, -1]], categories=["cat", "dog"]))
    >>> [(row["category"], row["reason"]) for row in audit.rows]
    [('cat', 'few_positives'), ('dog', 'no_known_label')]
    """
    counts = labels.counts()
    rows = [_row(labels, counts, j, few) for j in range(labels.n_categories)]
    summary = _summary(labels, counts, rows)
    notes = _notes(labels, summary)
    if chosen is not None:
        rest = chosen.without(labels)
        what = "the prevalence is that of the others, which alone score"
        notes += chosen_note(labels, rest, what)
        left = rest.counts()
        for row, known, positive in zip(rows, left.known, left.positive, strict=True):
            row["chosen"] = row["known"] - int(known)
            row["prevalence"] = int(positive) / int(known) if known else None
        summary["n_chosen"] = sum(row["chosen"] for row in rows)
    return LabelAudit(summary, rows, notes)


def _row(labels: PartialLabels, counts: LabelCounts, j: int, few: int) -> dict[str, Any]:
    known, positive, negative, uncertain = (int(count[j]) for count in counts)
    reason = class_reason(positive, negative, few=few) or "ok"
    return {
        "category": labels.categories[j],
        "index": j,
        "known": known,
        "positive": positive,
        "negative": negative,
        "uncertain": uncertain,
        "coverage": known / labels.n_rows if labels.n_rows else 0.0,
        "prevalence": positive / known if known else None,
        "reason": reason,
        "explanation": REASONS[reason].format(few=few),
    }


def _summary(
    labels: PartialLabels, counts: LabelCounts, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    known, positive, negative, uncertain = (int(count.sum()) for count in counts)
    n_entries = labels.n_rows * labels.n_categories
    found = Counter(row["reason"] for row in rows)
    return {
        "n_rows": labels.n_rows,
        "n_categories": labels.n_categories,
        "n_groups": None if labels.groups is None else len(set(labels.groups.tolist())),
        "n_known": known,
        "n_positive": positive,
        "n_negative": negative,
        "n_uncertain": uncertain,
        "n_unknown": n_entries - known - uncertain,
        "coverage": known / n_entries if n_entries else 0.0,
        "n_rows_without_label": int(np.count_nonzero(known_per_row(labels) == 0)),
        "reasons": {reason: found[reason] for reason in REASONS if found[reason]},
    }


def known_per_row(labels: PartialLabels) -> NDArray[np.int64]:
    """(N,) int64: in how many categories each row has a hard known label."""
    total = np.zeros(labels.n_rows, dtype=np.int64)
    for start, codes in labels.blocks() if labels.storage == "dense" else ():
        total[start : start + len(codes)] = np.count_nonzero(codes >= 0, axis=1)
    if labels.storage == "columns":
        columns = labels.as_columns()
        step = 1 << 22
        for start in range(0, len(columns.rows), step):
            span = slice(start, start + step)
            rows = columns.rows[span][columns.codes[span] != UNCERTAIN]
            total += np.bincount(rows, minlength=labels.n_rows)
    return total


def _notes(labels: PartialLabels, summary: dict[str, Any]) -> list[str]:
    notes = []
    known, uncertain = summary["n_known"], summary["n_uncertain"]
    if not known:
        notes.append("No label is known: nothing can be tuned or scored. Check the encoding.")
    elif not summary["n_negative"]:
        notes.append(
            "Every known label is positive: tuning and scoring need known negatives too. If images "
            "were labelled with what they show only, LabelPolicy(blank='negative') counts the "
            "rest as negative when fitting; scores still need negatives that are really known."
        )
    elif not summary["n_positive"]:
        notes.append("Every known label is negative. Check the encoding.")
    elif not summary["n_unknown"] and not uncertain:
        notes.append(
            "No label is unknown. If blanks were written as 0, name the encoding in which 0 is "
            "unknown."
        )
    if summary["n_negative"] and summary["n_positive"] > MOSTLY * known:
        share = summary["n_positive"] / known
        notes.append(
            f"{share:.0%} of the known labels are positive: negatives were hardly written down, "
            "and scores speak of that part. If the share of positives is known from elsewhere, say "
            "it: selection_bias(labels, …), --prevalence NAME=SHARE."
        )
    if uncertain:
        notes.append(
            f"{uncertain:,} labels are uncertain: they are left out unless a policy counts them."
        )
    if known and summary["n_rows_without_label"]:
        n = summary["n_rows_without_label"]
        notes.append(f"{n:,} of {labels.n_rows:,} rows have no known label and take no part.")
    if known:
        notes += [
            f"{note} Whether the rest is like it cannot be told from known labels; a prevalence "
            "from elsewhere can tell."
            for note in labelled_part(labels)
        ]
    if labels.ids is None:
        notes.append("Rows have no ids: they join features by position.")
    return notes


def labelled_part(labels: PartialLabels) -> list[str]:
    """The sentence that goes with every metric of labels of which some are unknown."""
    counts, n_entries = labels.counts(), labels.n_rows * labels.n_categories
    n_unknown = n_entries - int(counts.known.sum() + counts.uncertain.sum())
    if not n_unknown:
        return []
    share = n_unknown / n_entries
    text = f"{share:.1%}" if share >= 0.001 else f"{n_unknown:,}"
    return [f"{text} of the labels are unknown: metrics speak of the labelled part only."]
