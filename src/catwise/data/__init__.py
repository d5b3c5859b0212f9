"""Readers of data sets and label tables, splits, conversions, and masks of dropped labels.

Readers (`read_chexpert`, `read_coco`, …) and conversions load on first use:

>>> from catwise import data
>>> data.read_chexpert.__name__
'read_chexpert'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catwise._lazy import attach
from catwise.data import readers as readers

if TYPE_CHECKING:
    from catwise.data.convert import fiftyone_samples as fiftyone_samples
    from catwise.data.convert import to_cleanlab as to_cleanlab
    from catwise.data.convert import to_cleanlab_lists as to_cleanlab_lists
    from catwise.data.convert import to_fiftyone as to_fiftyone
    from catwise.data.convert import to_huggingface as to_huggingface
    from catwise.data.dataset import Dataset as Dataset
    from catwise.data.files import TableFile as TableFile
    from catwise.data.files import open_table as open_table
    from catwise.data.hierarchy import read_hierarchy as read_hierarchy
    from catwise.data.masks import Mask as Mask
    from catwise.data.masks import apply_mask as apply_mask
    from catwise.data.masks import read_mask as read_mask
    from catwise.data.masks import save_mask as save_mask
    from catwise.data.readers import read_celeba as read_celeba
    from catwise.data.readers import read_chestxray14 as read_chestxray14
    from catwise.data.readers import read_chexpert as read_chexpert
    from catwise.data.readers import read_coco as read_coco
    from catwise.data.readers import read_jsonl_table as read_jsonl_table
    from catwise.data.readers import read_label_lists as read_label_lists
    from catwise.data.readers import read_lvis as read_lvis
    from catwise.data.readers import read_mimic_cxr as read_mimic_cxr
    from catwise.data.readers import read_nuswide as read_nuswide
    from catwise.data.readers import read_openimages as read_openimages
    from catwise.data.readers import read_table as read_table
    from catwise.data.readers import read_vaw as read_vaw
    from catwise.data.readers import read_vindr as read_vindr
    from catwise.data.readers import read_visual_genome as read_visual_genome
    from catwise.data.readers import read_voc as read_voc
    from catwise.data.table import read_label_table as read_label_table
    from catwise.data.table import split_counts as split_counts
    from catwise.data.uniting import union as union

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "catwise.data.convert": "fiftyone_samples to_cleanlab to_cleanlab_lists to_fiftyone "
        "to_huggingface",
        "catwise.data.dataset": "Dataset",
        "catwise.data.files": "TableFile open_table",
        "catwise.data.hierarchy": "read_hierarchy",
        "catwise.data.masks": "Mask apply_mask read_mask save_mask",
        "catwise.data.table": "read_label_table split_counts",
        "catwise.data.uniting": "union",
        "catwise.data.readers": " ".join(readers.__all__),
    },
    ("readers",),
)
