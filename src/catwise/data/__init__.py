"""Readers of label tables and data sets."""

from __future__ import annotations

from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, open_table
from catwise.data.table import read_label_table, split_counts

__all__ = ["Dataset", "TableFile", "open_table", "read_label_table", "split_counts"]
