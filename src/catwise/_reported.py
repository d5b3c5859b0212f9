"""What every result has that a page can be made of: its report, and what a notebook shows."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from catwise._io import write_text


class Reported(ABC):
    """A result that `catwise.reporting` draws; that lies above, so it is loaded when asked."""

    @abstractmethod
    def page_document(self) -> dict[str, Any]:
        """What the page is made of, JSON-ready; :mod:`catwise.plots` draws parts of it."""

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the report alone, one HTML page that loads nothing.

        Args:
            path: of the page; a file there is replaced.

        Raises:
            OutputError: If it cannot be written.
        """
        write_text(path, reporting("render_report")(self.page_document()))
        return Path(path)

    def _repr_html_(self) -> str:
        found: str = reporting("render_summary")(self.page_document())
        return found


def reporting(name: str) -> Any:
    """A function of `catwise.reporting`."""
    return getattr(importlib.import_module("catwise.reporting"), name)
