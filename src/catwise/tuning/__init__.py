"""Tuning: fits of the last layer, the choice between them, and a full account of it."""

from __future__ import annotations

from catwise.tuning.account.documents import Account, Record, Summary
from catwise.tuning.account.results import FoldArtifacts, SelectResult, TuneResult
from catwise.tuning.api import tune
from catwise.tuning.selecting import select

__all__ = [
    "Account",
    "FoldArtifacts",
    "Record",
    "SelectResult",
    "Summary",
    "TuneResult",
    "select",
    "tune",
]
