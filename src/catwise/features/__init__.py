"""Features: one row for each image, on disk or in memory."""

from __future__ import annotations

from catwise.features.blocks import BLOCK_ROWS, RowBlocks, block_of, feature_shape, iterate_blocks

__all__ = ["BLOCK_ROWS", "RowBlocks", "block_of", "feature_shape", "iterate_blocks"]
