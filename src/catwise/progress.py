"""What long work tells whoever called it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Progress", "ProgressCallback"]


class Progress(NamedTuple):
    """How far a piece of work has come.

    Attributes:
        stage: name of the piece of work.
        done: units finished, 0 <= done <= total.
        total: units in all; work may end early.
        message: one line for people, possibly empty.
    """

    stage: str
    done: int
    total: int
    message: str = ""


ProgressCallback = Callable[[Progress], None]
