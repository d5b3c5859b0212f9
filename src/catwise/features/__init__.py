"""Features: one row for each image, on disk or in memory."""

from __future__ import annotations

from catwise.features.blocks import BLOCK_ROWS, RowBlocks, block_of, feature_shape, iterate_blocks
from catwise.features.by_category import (
    CategoryFeatures,
    by_category,
    category_runs,
    of_categories,
)
from catwise.features.digests import row_digests
from catwise.features.ids import as_ids
from catwise.features.inputs import Features, check_finite, read_features
from catwise.features.store import FeatureStore, open_store
from catwise.features.writer import StoreWriter, append_store, store_writer, write_store

__all__ = [
    "BLOCK_ROWS",
    "CategoryFeatures",
    "FeatureStore",
    "Features",
    "RowBlocks",
    "StoreWriter",
    "append_store",
    "as_ids",
    "block_of",
    "by_category",
    "category_runs",
    "check_finite",
    "feature_shape",
    "iterate_blocks",
    "of_categories",
    "open_store",
    "read_features",
    "row_digests",
    "store_writer",
    "write_store",
]
