"""Partial labels: what is positive, negative, unknown or uncertain.

>>> from catwise.labels import PartialLabels
>>> labels = PartialLabels.from_array([[1, -1], [0, None]], encoding="minus_one_uncertain")
>>> labels.codes
array([[ 1, -2],
       [ 0, -1]], dtype=int8)
"""

from __future__ import annotations

from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN
from catwise.labels.core import LabelCounts, PartialLabels
from catwise.labels.encodings import ENCODINGS, Encoding, fitting_encodings

__all__ = [
    "ENCODINGS",
    "NEGATIVE",
    "POSITIVE",
    "UNCERTAIN",
    "UNKNOWN",
    "Encoding",
    "LabelCounts",
    "PartialLabels",
    "fitting_encodings",
]
