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
    from catwise.data.readers.celeba import read_celeba
    from catwise.data.readers.chestxray14 import read_chestxray14
    from catwise.data.readers.chexpert import read_chexpert
    from catwise.data.readers.coco import read_coco
    from catwise.data.readers.lists import read_jsonl_table, read_label_lists
    from catwise.data.readers.lvis import read_lvis
    from catwise.data.readers.mimic_cxr import read_mimic_cxr
    from catwise.data.readers.nuswide import read_nuswide
    from catwise.data.readers.openimages import read_openimages
    from catwise.data.readers.table import read_table
    from catwise.data.readers.vaw import read_vaw
    from catwise.data.readers.vindr import read_vindr
    from catwise.data.readers.visual_genome import read_visual_genome
    from catwise.data.readers.voc import read_voc

_HOME = {
    "read_celeba": "celeba",
    "read_chestxray14": "chestxray14",
    "read_chexpert": "chexpert",
    "read_coco": "coco",
    "read_jsonl_table": "lists",
    "read_label_lists": "lists",
    "read_lvis": "lvis",
    "read_mimic_cxr": "mimic_cxr",
    "read_nuswide": "nuswide",
    "read_openimages": "openimages",
    "read_table": "table",
    "read_vaw": "vaw",
    "read_vindr": "vindr",
    "read_visual_genome": "visual_genome",
    "read_voc": "voc",
}

__all__ = [
    "read_celeba",
    "read_chestxray14",
    "read_chexpert",
    "read_coco",
    "read_jsonl_table",
    "read_label_lists",
    "read_lvis",
    "read_mimic_cxr",
    "read_nuswide",
    "read_openimages",
    "read_table",
    "read_vaw",
    "read_vindr",
    "read_visual_genome",
    "read_voc",
]


def __getattr__(name: str) -> object:
    """Load a reader the first time that it is asked for."""
    if name not in _HOME:
        msg = f"module 'catwise.data.readers' has no attribute {name!r}"
        raise AttributeError(msg)
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
