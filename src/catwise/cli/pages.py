"""Reports of commands that make no run: a page in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catwise.cli.console import Output


def write_page(path: Path, found: Any, inputs: Mapping[str, Any], output: Output) -> None:
    """Write the page of a result, or of a document, with what went in and the date."""
    from catwise._io import write_text
    from catwise._version import __version__
    from catwise.reporting import render_report
    from catwise.reporting.run import today

    document = found if isinstance(found, Mapping) else found.page_document()
    more = {"catwise": __version__, "date": today(), "inputs": dict(inputs)}
    with output.progress() as progress:
        write_text(path, render_report({**document, **more}, progress=progress))
