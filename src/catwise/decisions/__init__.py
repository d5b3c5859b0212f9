"""From logits to decisions: probabilities that mean what they say, thresholds, sets of answers.

All are made from the logits of rows that fitted nothing, such as the out-of-fold logits that
`tune` leaves, and judged on test rows.
"""

from __future__ import annotations

from catwise.decisions.calibrate import METHODS, Calibration, CategoryCalibration, calibrate
from catwise.decisions.combining import ensemble
from catwise.decisions.deciding import DecisionModule, DecisionRules, Decisions
from catwise.decisions.inputs import head_logits
from catwise.decisions.maps import CalibrationModule, CategoryMap
from catwise.decisions.members import Combined, Ensemble, EnsembleModule, Member
from catwise.decisions.outputs import Outputs, read_outputs
from catwise.decisions.reached import Covered, Rate, Reached
from catwise.decisions.rules import RULES, SETS
from catwise.decisions.sets import CategorySets, ClassCut, ConformalSets, conformal
from catwise.decisions.submission import CHEXPERT, write_probabilities, write_submission
from catwise.decisions.suggesting import Suggestions, suggest
from catwise.decisions.thresholds import CategoryThreshold, Thresholds, threshold

__all__ = [
    "CHEXPERT",
    "METHODS",
    "RULES",
    "SETS",
    "Calibration",
    "CalibrationModule",
    "CategoryCalibration",
    "CategoryMap",
    "CategorySets",
    "CategoryThreshold",
    "ClassCut",
    "Combined",
    "ConformalSets",
    "Covered",
    "DecisionModule",
    "DecisionRules",
    "Decisions",
    "Ensemble",
    "EnsembleModule",
    "Member",
    "Outputs",
    "Rate",
    "Reached",
    "Suggestions",
    "Thresholds",
    "calibrate",
    "conformal",
    "ensemble",
    "head_logits",
    "read_outputs",
    "suggest",
    "threshold",
    "write_probabilities",
    "write_submission",
]
