"""Category-wise fine-tuning of multi-label image classifiers trained on partial labels.

Public names load on first use, so that ``import catwise`` costs nothing:

>>> import catwise
>>> labels = catwise.PartialLabels.from_array([[1, 0], [0, 1]], encoding="nan")
>>> labels.shape
(2, 2)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from catwise._version import __version__
from catwise.errors import CatwiseError, InSampleWarning

if TYPE_CHECKING:
    from catwise.features import FeatureStore, open_store, read_features
    from catwise.fixing import fix
    from catwise.heads import (
        Head,
        list_heads,
        load_head,
        read_head,
        save_head,
        write_head,
    )
    from catwise.labels import LabelPolicy, PartialLabels
    from catwise.metrics import Evaluation, compare_heads, evaluate
    from catwise.models.extraction import extract
    from catwise.tuning import SelectResult, TuneResult, select, tune

_HOME = {
    "Evaluation": "catwise.metrics",
    "FeatureStore": "catwise.features",
    "Head": "catwise.heads",
    "LabelPolicy": "catwise.labels",
    "PartialLabels": "catwise.labels",
    "SelectResult": "catwise.tuning",
    "TuneResult": "catwise.tuning",
    "compare_heads": "catwise.metrics",
    "evaluate": "catwise.metrics",
    "extract": "catwise.models.extraction",
    "fix": "catwise.fixing",
    "list_heads": "catwise.heads",
    "load_head": "catwise.heads",
    "open_store": "catwise.features",
    "read_features": "catwise.features",
    "read_head": "catwise.heads",
    "save_head": "catwise.heads",
    "select": "catwise.tuning",
    "tune": "catwise.tuning",
    "write_head": "catwise.heads",
}

__all__ = [
    "CatwiseError",
    "Evaluation",
    "FeatureStore",
    "Head",
    "InSampleWarning",
    "LabelPolicy",
    "PartialLabels",
    "SelectResult",
    "TuneResult",
    "__version__",
    "compare_heads",
    "evaluate",
    "extract",
    "fix",
    "list_heads",
    "load_head",
    "open_store",
    "read_features",
    "read_head",
    "save_head",
    "select",
    "tune",
    "write_head",
]


def __getattr__(name: str) -> object:
    """Load a public name from its home the first time that it is asked for."""
    if name not in _HOME:
        msg = f"module 'catwise' has no attribute {name!r}"
        raise AttributeError(msg)
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
