"""What every result has that a page can be made of: its report, and what a notebook shows."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catwise._io import write_text

if TYPE_CHECKING:
    from catwise.models.sources import ImageSource


class Reported(ABC):
    """A result that `catwise.reporting` draws; that lies above, so it is loaded when asked."""

    @abstractmethod
    def page_document(self) -> dict[str, Any]:
        """What the page is made of, JSON-ready; :mod:`catwise.plots` draws parts of it."""

    def report(self, path: str | os.PathLike[str], *, images: ImageSource | None = None) -> Path:
        """Write the report alone, one HTML page that loads nothing.

        Args:
            path: of the page; a file there is replaced.
            images: by the labels' ids, such as `FolderImages.scan(folder)`: those whose probability
                moved most are shown small.

        Raises:
            OutputError: If it cannot be written.
        """
        document = self.page_document()
        if images is not None and document.get("curves"):
            make = importlib.import_module("catwise.models.thumbnails").make_thumbnails
            document["thumbnails"] = make(document["curves"], images, wanted=True)
        write_text(path, reporting("render_report")(document))
        return Path(path)

    def _repr_html_(self) -> str:
        found: str = reporting("render_summary")(self.page_document())
        return found


def reporting(name: str) -> Any:
    """A function of `catwise.reporting`."""
    return getattr(importlib.import_module("catwise.reporting"), name)
