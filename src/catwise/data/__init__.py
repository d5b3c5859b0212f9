"""Readers of label tables and data sets, and masks of simulated partial labels."""

from __future__ import annotations

from catwise.data import readers
from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, open_table
from catwise.data.masks import Mask, apply_mask, read_mask, save_mask
from catwise.data.table import read_label_table, split_counts

__all__ = [
    "Dataset",
    "Mask",
    "TableFile",
    "apply_mask",
    "open_table",
    "read_label_table",
    "read_mask",
    "readers",
    "save_mask",
    "split_counts",
]
