"""Public names that load on first use, so that ``import catwise`` and ``--help`` stay cheap."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping


def attach(
    package: str, homes: Mapping[str, str], names: tuple[str, ...] = ()
) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a package that loads its names when asked.

    `homes` are {module: its public names, with spaces between them}; `names` are there already.

    >>> names, load, listed = attach("catwise._lazy", {"catwise.errors": "ShapeError nearest"})
    >>> names, load("nearest").__name__, "nearest" in listed()
    (['ShapeError', 'nearest'], 'nearest', True)
    """
    home = {name: module for module, own in homes.items() for name in own.split()}
    public = sorted([*home, *names])

    def load(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return public, load, lambda: sorted({*vars(sys.modules[package]), *public})
