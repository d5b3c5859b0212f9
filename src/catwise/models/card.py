"""A few lines for a model's card: what became of its classification layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from catwise._json import parse
from catwise._limits import MAX_JSON, read_within
from catwise._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from catwise.heads import Head, WriteReport
    from catwise.models.verify import Verified

__all__ = ["model_card", "run_summary"]


def model_card(
    name: str,
    head: Head,
    reports: Sequence[WriteReport],
    *,
    base: Head | None = None,
    verified: Verified | None = None,
    summary: Mapping[str, Any] | None = None,
    preprocessing: str | None = None,
) -> str:
    """Markdown for the model's card.

    Args:
        name: of the model or its checkpoint.
        head: what was written.
        reports: where.
        base: the head that was there.
        verified: what was seen when the model ran before and after.
        summary: of the run that tuned the head, as `tune` gives it.
        preprocessing: how images become the model's input.
    """
    tuned = head.provenance.get("catwise")
    places = " and ".join(f"`{report.location.name}`" for report in reports)
    rows, of = len(reports[0].rows), reports[0].location.n_categories
    lines = [
        f"## The classification layer of {name}",
        "",
        (
            f"{rows:,} of the {of:,} rows of {places} were written by catwise {__version__}. Every "
            "other tensor is the original's, bit for bit."
        ),
        "",
    ]
    if isinstance(tuned, dict):
        how = ", ".join(
            f"{key} {tuned[key]}" for key in ("preset", "metric", "seed") if key in tuned
        )
        lines.append(f"- tuned category by category on known labels: {how}")
    told = summary or {}
    lines += [f"- {told[key]}" for key in ("headline", "chose") if told.get(key)]
    if verified is not None:
        lines.append(f"- {verified}")
    if preprocessing:
        lines.append(f"- preprocessing: {preprocessing}")
    lines.append(f"- head: sha256 {head.digest}")
    if base is not None:
        lines.append(f"- it took the place of: sha256 {base.digest}")
    return "\n".join(lines) + "\n"


def run_summary(path: Path) -> dict[str, Any] | None:
    """The summary in a run's `summary.json`; None if that is something else."""
    try:
        found = parse(read_within(path, MAX_JSON))["summary"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and "n_replaced" in found else None
