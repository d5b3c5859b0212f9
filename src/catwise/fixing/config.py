"""What `fix` is told, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catwise._configs import FixConfig

__all__ = ["FixConfig", "FixResult"]


@dataclass(frozen=True, eq=False)
class FixResult:
    """What `fix` leaves.

    Attributes:
        out: the folder.
        checkpoint: the new checkpoint, a file or a folder.
        report: one page: what changed, how sure that is, what was left alone and why.
        card: a snippet for the model's card.
        evaluation: JSON-ready: verdict, means and categories before and after on the test images,
            as in `TuneResult.evaluation`; None without test labels.
        run: the account of the tuning as `run_document` gives it: summary, records, gap, notes.
        left_out: what became of labelled images that could not be used: a table of id, split and
            reason, one row each.
        steps: of each step whether it "ran" now, or what it had made was "kept".
        notes: what to know, a sentence each.
    """

    out: Path
    checkpoint: Path
    report: Path
    card: Path
    evaluation: dict[str, Any] | None
    run: dict[str, Any]
    left_out: list[dict[str, str]]
    steps: dict[str, str]
    notes: list[str]
