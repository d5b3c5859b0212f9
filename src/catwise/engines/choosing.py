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
    address: str | None = None,
    shared: str | os.PathLike[str] | None = None,
) -> Engine:
    """The engine that options ask for, to be used in a ``with`` block.

    Args:
        name: "local", "ray", or None for this process alone.
        workers: how many tasks run at a time; None: the engine's own number.
        address: of a Ray cluster, such as "10.0.0.1:6379" or "auto".
        shared: folder that all workers see, for what all of them read.

    Raises:
        ConfigError: If an option is not possible, or does not go with the engine.
        MissingExtraError: If Ray is asked for and not installed.
    """
    check_choice("engine", name, (*ENGINES, None))
    if name != "ray" and address is not None:
        raise ConfigError(
            "address is of a Ray cluster.", found=f"address={address!r}", remedy="engine='ray'"
        )
    if name == "ray":
        from catwise.engines.ray_engine import RayEngine

        return RayEngine(workers, address=address, shared=shared)
    if name == "local":
        from catwise.engines.local import LocalEngine

        return LocalEngine(workers, shared=shared)
    if shared is not None:
        raise ConfigError(
            "shared is for what workers read.",
            found=f"shared={os.fspath(shared)!r}, and no engine",
            remedy="engine='local' or 'ray'",
        )
    return IN_PROCESS
