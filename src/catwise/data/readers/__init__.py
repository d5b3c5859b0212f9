"""Readers of the field's data sets, one module each, in their official layouts.

All of them raise:

- LabelError if a file is missing, damaged or truncated, lacks a column or field, holds a value that
  is not allowed there, or has no image of the split;
- IdError if an id is blank, not as it should be, or repeats, and if what belongs to one image or
  split is in two;
- CategoryError if a category repeats or is not there;
- ConfigError if an option is not possible.

They load on first use:

>>> from catwise.data import readers
>>> readers.read_chexpert.__name__
'read_chexpert'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catwise._lazy import attach
from catwise._names import DATASETS

if TYPE_CHECKING:
    from catwise.data.readers.celeba import read_celeba as read_celeba
    from catwise.data.readers.chestxray14 import read_chestxray14 as read_chestxray14
    from catwise.data.readers.chexpert import read_chexpert as read_chexpert
    from catwise.data.readers.coco import read_coco as read_coco
    from catwise.data.readers.lists import read_jsonl_table as read_jsonl_table
    from catwise.data.readers.lists import read_label_lists as read_label_lists
    from catwise.data.readers.lvis import read_lvis as read_lvis
    from catwise.data.readers.mimic_cxr import read_mimic_cxr as read_mimic_cxr
    from catwise.data.readers.nuswide import read_nuswide as read_nuswide
    from catwise.data.readers.openimages import read_openimages as read_openimages
    from catwise.data.readers.table import read_table as read_table
    from catwise.data.readers.vaw import read_vaw as read_vaw
    from catwise.data.readers.vindr import read_vindr as read_vindr
    from catwise.data.readers.visual_genome import read_visual_genome as read_visual_genome
    from catwise.data.readers.voc import read_voc as read_voc

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        **{f"{__name__}.{name}": f"read_{name}" for name in DATASETS},
        f"{__name__}.lists": "read_jsonl_table read_label_lists",
        f"{__name__}.table": "read_table",
    },
)
