"""Partial labels: what is positive, negative, unknown or uncertain.

>>> from catwise.labels import PartialLabels
>>> labels = PartialLabels.from_array([[1, -1], [0, None]], encoding="minus_one_uncertain")
>>> labels.codes
array([[ 1, -2],
       [ 0, -1]], dtype=int8)
"""

from __future__ import annotations

from catwise.labels.audit import REASONS, LabelAudit, audit_labels
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN
from catwise.labels.core import LabelCounts, PartialLabels
from catwise.labels.dropping import drop_uniform, keep_per_category, keep_single_positive
from catwise.labels.encodings import ENCODINGS, Encoding, fitting_encodings
from catwise.labels.policy import LabelPolicy, Targets

__all__ = [
    "ENCODINGS",
    "NEGATIVE",
    "POSITIVE",
    "REASONS",
    "UNCERTAIN",
    "UNKNOWN",
    "Encoding",
    "LabelAudit",
    "LabelCounts",
    "LabelPolicy",
    "PartialLabels",
    "Targets",
    "audit_labels",
    "drop_uniform",
    "fitting_encodings",
    "keep_per_category",
    "keep_single_positive",
]
