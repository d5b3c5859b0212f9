"""The card of a classifier: the model's, and what is decided by which threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from catwise._text import clean
from catwise.heads import Head
from catwise.models import LoadedModel
from catwise.models.card import model_card
from catwise.models.hub import front_matter, hub_metadata

_COLUMNS: Final = {
    "calibration": "calibration",
    "threshold": "threshold (logit)",
    "probability": "probability there",
    "rule": "rule",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "alerts_per_1000": "alerts per 1,000",
    "positive_from": "positive in the set from (logit)",
    "negative_below": "negative in it below",
}


def classifier_card(
    head: Head,
    model: LoadedModel | None,
    population: str,
    *,
    calibration: Mapping[str, Any] | None,
    thresholds: Mapping[str, Any] | None,
    conformal: Mapping[str, Any] | None,
    lines: Sequence[str],
) -> str:
    """Markdown for the card.

    Args:
        head: of the classifier.
        model: whose layer it is, as it was given; None for a head alone.
        population: of which images the probabilities speak.
        calibration: as JSON, or None.
        thresholds: as JSON, or None, with what they reach on test rows where that is known.
        conformal: sets of answers as JSON, or None.
        lines: what was verified, a sentence each.
    """
    parts = [front_matter(hub_metadata(model)), "# Classifier", ""]
    if model is not None:
        base = model.head
        parts += [
            model_card(
                model.name,
                head,
                [model.weight_key or model.layer],
                head.n_categories,
                len(model.row_names) or head.n_categories,
                base=None if base is None or base.digest == head.digest else base,
                lines=lines,
                preprocessing=model.preprocessing,
            )
        ]
    parts += ["## Probabilities and decisions", "", population, ""]
    records = _records(head.categories, calibration, thresholds)
    cuts = {one["category"]: one for one in (conformal or {}).get("categories", ())}
    for record in records if cuts else ():
        own = cuts.get(record["category"], {})
        record |= {name: own.get(name) for name in ("positive_from", "negative_below")}
    shown = [name for name in _COLUMNS if any(name in record for record in records)]
    titles = ["category", *(_COLUMNS[name] for name in shown)]
    parts += [_line(titles), _line(["---"] * len(titles))]
    for record in records:
        parts.append(_line([record["category"], *(_cell(record.get(name)) for name in shown)]))
    return "\n".join([*parts, ""])


def _records(
    categories: Sequence[str],
    calibration: Mapping[str, Any] | None,
    thresholds: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """What is known of each category."""
    methods = {one["category"]: one["method"] for one in (calibration or {}).get("categories", ())}
    chosen = {one["category"]: one for one in (thresholds or {}).get("categories", ())}
    found = []
    for name in categories:
        record: dict[str, Any] = {"category": name}
        if calibration is not None:
            record["calibration"] = methods.get(name, "none")
        if thresholds is not None:
            own = chosen.get(name, {})
            keep = ("threshold", "probability", "rule", *list(_COLUMNS)[4:-2])
            record |= {key: own[key] for key in keep if key in own}
            record.setdefault("threshold", None)
        found.append(record)
    return found


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(clean(cell).replace("|", "\\|") for cell in cells) + " |"
