"""Heads: the last layer of a classifier, read from checkpoints and written back."""

from __future__ import annotations

from catwise.heads.core import Head, save_head
from catwise.heads.saved import load_head

__all__ = ["Head", "load_head", "save_head"]
