"""Partial labels: what is positive, negative, unknown or uncertain.

>>> from catwise.labels import PartialLabels
>>> labels = PartialLabels.from_array([[1, -1], [0, None]], encoding="minus_one_uncertain")
>>> labels.codes
array([[ 1, -2],
       [ 0, -1]], dtype=int8)
"""

from __future__ import annotations

from catwise.labels.audit import LabelAudit, audit_labels
from catwise.labels.chosen import ChosenCells
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN, LabelCounts
from catwise.labels.core import PartialLabels
from catwise.labels.dropping import DRAWS, drop_uniform, keep_per_category, keep_single_positive
from catwise.labels.encodings import ENCODINGS, Encoding, encoding_of, fitting_encodings
from catwise.labels.findings import FINDINGS, find_suspicious, unknown_together
from catwise.labels.hierarchy import Expanded, Hierarchy
from catwise.labels.partition import split_labels
from catwise.labels.policy import LabelPolicy, Targets, make_targets
from catwise.labels.priors import (
    ASSUMPTIONS,
    VERDICTS,
    PrevalenceEstimate,
    estimate_prevalence,
    inverse_propensity_weights,
    selection_bias,
)
from catwise.labels.reasons import REASONS

__all__ = [
    "ASSUMPTIONS",
    "DRAWS",
    "ENCODINGS",
    "FINDINGS",
    "NEGATIVE",
    "POSITIVE",
    "REASONS",
    "UNCERTAIN",
    "UNKNOWN",
    "VERDICTS",
    "ChosenCells",
    "Encoding",
    "Expanded",
    "Hierarchy",
    "LabelAudit",
    "LabelCounts",
    "LabelPolicy",
    "PartialLabels",
    "PrevalenceEstimate",
    "Targets",
    "audit_labels",
    "drop_uniform",
    "encoding_of",
    "estimate_prevalence",
    "find_suspicious",
    "fitting_encodings",
    "inverse_propensity_weights",
    "keep_per_category",
    "keep_single_positive",
    "make_targets",
    "selection_bias",
    "split_labels",
    "unknown_together",
]
