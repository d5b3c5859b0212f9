"""Outputs that a command holds until it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

_HELD: Final = "catwise.held_outputs"


@contextlib.contextmanager
def held_outputs(context: click.Context) -> Iterator[None]:
    """What `hold_output` holds in the block is let go when it ends."""
    with contextlib.ExitStack() as held:
        context.meta[_HELD] = held
        yield


def hold_output(path: Path | None, *, inside: bool = False, parents: bool = False) -> None:
    """Keep other processes from writing a file or folder until this command ends.

    Arguments and errors are those of `catwise._io.exclusive`; None is nothing to hold.
    """
    from catwise._lock import exclusive

    if path is not None:
        held: contextlib.ExitStack = click.get_current_context().meta[_HELD]
        held.enter_context(exclusive(path, inside=inside, parents=parents))
