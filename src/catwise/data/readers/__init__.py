"""Readers of the field's data sets, one module each, in their official layouts.

They load on first use:

>>> from catwise.data import readers
>>> readers.read_chexpert.__name__
'read_chexpert'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catwise.data.readers.chestxray14 import read_chestxray14
    from catwise.data.readers.chexpert import read_chexpert
    from catwise.data.readers.mimic_cxr import read_mimic_cxr
    from catwise.data.readers.vindr import read_vindr

_HOME = {
    "read_chestxray14": "chestxray14",
    "read_chexpert": "chexpert",
    "read_mimic_cxr": "mimic_cxr",
    "read_vindr": "vindr",
}

__all__ = [
    "read_chestxray14",
    "read_chexpert",
    "read_mimic_cxr",
    "read_vindr",
]


def __getattr__(name: str) -> object:
    """Load a reader the first time that it is asked for."""
    if name not in _HOME:
        msg = f"module 'catwise.data.readers' has no attribute {name!r}"
        raise AttributeError(msg)
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
