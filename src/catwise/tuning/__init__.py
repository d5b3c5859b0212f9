"""Tuning: fits of the last layer, the choice between them, and an honest account of it."""

from __future__ import annotations

from catwise.tuning.results import FoldArtifacts, TuneResult
from catwise.tuning.select import SelectResult, select
from catwise.tuning.tune import tune

__all__ = ["FoldArtifacts", "SelectResult", "TuneResult", "select", "tune"]
