"""Packages that are no dependencies: imported where they are used, or told how to install."""

from __future__ import annotations

import importlib
from typing import Any, Final

from catwise.errors import MissingExtraError

__all__ = ["import_extra"]

_REASON: Final = 240


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """Import what is no dependency, or say how to install it.

    Args:
        module: dotted name.
        extra: the extra of catwise that brings it.
        purpose: what needs it, the start of a sentence.

    Returns:
        The module.

    Raises:
        MissingExtraError: If it is absent or breaks on import.

    >>> import_extra("json", "images", "reading JSON").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError, AttributeError, ValueError) as error:
        package = module.partition(".")[0]
        reason = " ".join(str(error).split())[:_REASON]
        raise MissingExtraError(
            f"{purpose} needs the package {package!r}, which cannot be imported.",
            found=f"{type(error).__name__}: {reason}" if reason else type(error).__name__,
            remedy=f"pip install 'catwise[{extra}]'",
        ) from error
