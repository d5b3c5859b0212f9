"""Readers of data sets and label tables, splits, conversions, and masks of dropped labels.

Readers (`read_chexpert`, `read_coco`, …) and conversions load on first use:

>>> from catwise import data
>>> data.read_chexpert.__name__
'read_chexpert'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from catwise.data import readers
from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, open_table
from catwise.data.masks import Mask, apply_mask, read_mask, save_mask
from catwise.data.table import read_label_table, split_counts

if TYPE_CHECKING:
    from catwise.data.convert import (
        fiftyone_samples,
        to_cleanlab,
        to_cleanlab_lists,
        to_fiftyone,
        to_huggingface,
    )
    from catwise.data.readers import (
        read_celeba,
        read_chestxray14,
        read_chexpert,
        read_coco,
        read_jsonl_table,
        read_label_lists,
        read_lvis,
        read_mimic_cxr,
        read_nuswide,
        read_openimages,
        read_table,
        read_vaw,
        read_vindr,
        read_visual_genome,
        read_voc,
    )

__all__ = [
    "Dataset",
    "Mask",
    "TableFile",
    "apply_mask",
    "fiftyone_samples",
    "open_table",
    "read_celeba",
    "read_chestxray14",
    "read_chexpert",
    "read_coco",
    "read_jsonl_table",
    "read_label_lists",
    "read_label_table",
    "read_lvis",
    "read_mask",
    "read_mimic_cxr",
    "read_nuswide",
    "read_openimages",
    "read_table",
    "read_vaw",
    "read_vindr",
    "read_visual_genome",
    "read_voc",
    "readers",
    "save_mask",
    "split_counts",
    "to_cleanlab",
    "to_cleanlab_lists",
    "to_fiftyone",
    "to_huggingface",
]

_CONVERSIONS = (
    "fiftyone_samples",
    "to_cleanlab",
    "to_cleanlab_lists",
    "to_fiftyone",
    "to_huggingface",
)


def __getattr__(name: str) -> object:
    """Load a reader or a conversion the first time that it is asked for."""
    if name in readers.__all__:
        return getattr(readers, name)
    if name in _CONVERSIONS:
        return getattr(importlib.import_module("catwise.data.convert"), name)
    msg = f"module 'catwise.data' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
