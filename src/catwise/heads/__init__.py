"""Heads: the last layer of a classifier, read from checkpoints and written back."""

from __future__ import annotations

from catwise.heads.core import Head, save_head
from catwise.heads.locate import HeadLocation, list_heads
from catwise.heads.saved import load_head
from catwise.heads.state import read_head
from catwise.heads.surgery import WriteReport, write_head, write_head_to_state_dict

__all__ = [
    "Head",
    "HeadLocation",
    "WriteReport",
    "list_heads",
    "load_head",
    "read_head",
    "save_head",
    "write_head",
    "write_head_to_state_dict",
]
