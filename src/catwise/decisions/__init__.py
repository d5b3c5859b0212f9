"""From logits to decisions: probabilities that mean what they say, and thresholds.

Both are made from the logits of rows that fitted nothing, such as the out-of-fold logits that
`tune` leaves, and judged on test rows.
"""

from __future__ import annotations

from catwise.decisions.calibrate import METHODS, Calibration, CategoryCalibration, calibrate
from catwise.decisions.inputs import head_logits
from catwise.decisions.maps import CalibrationModule, CategoryMap
from catwise.decisions.reached import Rate, Reached
from catwise.decisions.rules import RULES
from catwise.decisions.thresholds import CategoryThreshold, Thresholds, threshold

__all__ = [
    "METHODS",
    "RULES",
    "Calibration",
    "CalibrationModule",
    "CategoryCalibration",
    "CategoryMap",
    "CategoryThreshold",
    "Rate",
    "Reached",
    "Thresholds",
    "calibrate",
    "head_logits",
    "threshold",
]
