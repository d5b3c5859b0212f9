"""What a preset gives to `tune`: a head, and the account of every category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from catwise.heads import Head
from catwise.metrics import Metric
from catwise.tuning.account.memorisation import MemorisationGap
from catwise.tuning.account.records import Scores
from catwise.tuning.account.results import FoldArtifacts
from catwise.tuning.account.shared import SharedFits

NOT_KNOWN: Final = (float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a preset found."""

    head: Head
    scores: Scores  # of every category
    scored_on: str  # which data gave them, in words
    choice: dict[str, Any]  # what was chosen, JSON-ready
    gap: MemorisationGap | None
    history: list[dict[str, Any]]  # of each candidate or step, JSON-ready
    passes: dict[str, int]  # how often the rows were read, by what for
    notes: list[str]  # what to know, a sentence each
    mean_gain: tuple[float, float, float] = NOT_KNOWN  # and the ends of its interval
    folds: FoldArtifacts | None = None
    shared: SharedFits | None = None


def refitted_note(metric: Metric, rows: str, stage: str) -> str:
    """What to know where scale and offset were refitted."""
    return (
        f"{metric.label} is blind to scale and offset, so both were refitted on {rows} after "
        f"{stage}. No rank changed."
    )
