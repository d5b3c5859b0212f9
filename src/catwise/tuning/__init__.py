"""Tuning: fits of the last layer, the choice between them, and an honest account of it."""

from __future__ import annotations

from catwise.tuning.account.results import FoldArtifacts, TuneResult
from catwise.tuning.api import tune
from catwise.tuning.selecting import SelectResult, select

__all__ = ["FoldArtifacts", "SelectResult", "TuneResult", "select", "tune"]
