"""What `fix` is told, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from catwise.errors import check_rules

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.labels import LabelPolicy

__all__ = ["FixConfig", "FixResult"]


@dataclass(frozen=True)
class FixConfig:
    """Options of `fix`.

    Args:
        metric: what is to become better.
        preset: as in `tune`.
        methods: as in `tune`.
        validation: as in `tune`.
        policy: as in `tune`.
        seed: as in `tune`.
        force: go on although head and labels look mismatched.
        batch_rows: images in a batch.
        workers: processes that read images.
        flips: average the features with those of the images flipped left to right.
        device: where to run the model; None: the CPU.
        undecodable: "refuse" or "skip" images that cannot be decoded.
        missing: "refuse" or "skip" ids without an image.

    Raises:
        ConfigError: If an option is not possible.
    """

    metric: str = "average_precision"
    preset: str = "default"
    methods: tuple[str, ...] | None = None
    validation: str | None = None
    policy: LabelPolicy | None = None
    seed: int = 0
    force: bool = False
    batch_rows: int = 64
    workers: int = 0
    flips: bool = False
    device: str | None = None
    undecodable: Literal["refuse", "skip"] = "refuse"
    missing: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        rules = {
            "undecodable 'refuse' or 'skip'": self.undecodable in ("refuse", "skip"),
            "missing 'refuse' or 'skip'": self.missing in ("refuse", "skip"),
            "batch_rows >= 1": self.batch_rows >= 1,
            "workers and seed >= 0": min(self.workers, self.seed) >= 0,
        }
        check_rules("options of fix", self, rules)


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
