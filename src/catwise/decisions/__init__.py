"""From logits to decisions: probabilities that mean what they say, thresholds, sets of answers.

All are made from the logits of rows that fitted nothing, such as the out-of-fold logits that
`tune` leaves, and judged on test rows.
"""

from __future__ import annotations

from catwise.decisions.calibrate import METHODS, Calibration, CategoryCalibration, calibrate
from catwise.decisions.inputs import head_logits
from catwise.decisions.maps import CalibrationModule, CategoryMap
from catwise.decisions.reached import Covered, Rate, Reached
from catwise.decisions.rules import RULES, SETS
from catwise.decisions.sets import CategorySets, ClassCut, ConformalSets, conformal
from catwise.decisions.thresholds import CategoryThreshold, Thresholds, threshold

__all__ = [
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
    "ConformalSets",
    "Covered",
    "Rate",
    "Reached",
    "Thresholds",
    "calibrate",
    "conformal",
    "head_logits",
    "threshold",
]
