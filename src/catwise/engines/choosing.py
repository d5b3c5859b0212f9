"""The engine of a name, as options say it."""

from __future__ import annotations

import os

from catwise._names import ENGINES
from catwise.engines.base import IN_PROCESS, Engine
from catwise.errors import ConfigError, check_choice


def open_engine(
    name: str | None,
    *,
    workers: int | None = None,
    shared: str | os.PathLike[str] | None = None,
) -> Engine:
    """The engine that options ask for, to be used in a ``with`` block.

    Args:
        name: "local", or None for this process alone.
        workers: how many tasks run at a time; None: the engine's own number.
        shared: folder that all workers see, for what all of them read.

    Raises:
        ConfigError: If an option is not possible, or does not go with the engine.
    """
    check_choice("engine", name, (*ENGINES, None))
    if name == "local":
        from catwise.engines.local import LocalEngine

        return LocalEngine(workers, shared=shared)
    if shared is not None:
        raise ConfigError(
            "shared is for what workers read.",
            found=f"shared={os.fspath(shared)!r}, and no engine",
            remedy="engine='local'",
        )
    return IN_PROCESS
