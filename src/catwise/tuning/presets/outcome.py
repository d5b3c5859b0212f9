"""What a preset gives to `tune`: a head, and the account of every category."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from catwise.heads import Head
from catwise.metrics import Metric
from catwise.tuning.account.memorisation import MemorisationGap
from catwise.tuning.account.records import Scores
from catwise.tuning.account.results import FoldArtifacts

NAN3: Final = (float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a preset found.

    Attributes:
        head: tuned.
        scores: of every category.
        scored_on: which data gave them, in words.
        mean_gain: corrected for the choosing, and the ends of its interval; NaN if not known.
        choice: what was chosen, JSON-ready.
        gap: the memorisation gap, or None without validation rows.
        history: a JSON-ready dict for each candidate or step.
        passes: how often the rows were read, by what for.
        folds: what cross-fitting left, or None.
        notes: what to know, a sentence each.
    """

    head: Head
    scores: Scores
    scored_on: str
    choice: dict[str, Any]
    gap: MemorisationGap | None
    history: list[dict[str, Any]]
    passes: dict[str, int]
    notes: list[str]
    mean_gain: tuple[float, float, float] = NAN3
    folds: FoldArtifacts | None = field(default=None)


def refitted_note(metric: Metric, rows: str, stage: str) -> str:
    """What to know where scale and offset were refitted."""
    return (
        f"{metric.label} is blind to scale and offset, so both were refitted on {rows} after "
        f"{stage}. No rank changed."
    )
