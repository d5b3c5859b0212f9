"""Packages that are not dependencies: imported where they are used, or told how to install."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any, Final

from catwise.errors import MissingExtraError

MUST_FIT: Final = "the packages must fit one another; torch and torchvision come in pairs"
_BROKEN: Final = (ImportError, RuntimeError, OSError, AttributeError, ValueError)
"""What an absent package raises on import, and one whose parts do not fit together."""
_REASON: Final = 240


def import_optional(module: str, *, extra: str, purpose: str) -> Any:
    """Import a module of an extra, or say how to install it; `purpose` starts that sentence."""
    if (found := sys.modules.get(module)) is not None:
        return found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except _BROKEN as error:
        package = module.partition(".")[0]
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == package
        state = "not installed" if is_absent else "installed, and cannot be imported"
        reason = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))
        install = f"pip install 'catwise[{extra}]'"
        raise MissingExtraError(
            f"{purpose} needs the package {package!r}, which is {state}.",
            found=None if is_absent else reason[:_REASON],
            remedy=install if is_absent else f"{install} in a fresh environment: {MUST_FIT}",
        ) from error
