"""What a command that failed says to machines: one JSON document, as one that did not fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from catwise.cli.building import as_options
from catwise.errors import CatwiseError

JSON: Final = "--json"
_PARTS: Final = ("what", "found", "expected", "remedy")


def failure_document(
    command: str | None, error: BaseException, code: int, options: Mapping[str, str]
) -> dict[str, Any]:
    """What failed and what can be done, in the words of the command line.

    "exit_code" is that of the process; "error" holds "kind" (the class), "what", "found",
    "expected" and "remedy" (a sentence each, or None).
    """
    about: dict[str, Any] = dict.fromkeys(_PARTS)
    if isinstance(error, CatwiseError):
        for part in _PARTS:
            text = getattr(error, part)
            about[part] = None if text is None else as_options(text, options)
    elif isinstance(error, click.ClickException):
        about["what"] = error.format_message()
    else:
        about["what"] = str(error) or type(error).__name__
    kind = {"kind": type(error).__name__}
    return {"command": command, "exit_code": code, "error": {**kind, **about}}


def print_failure(document: Mapping[str, Any]) -> None:
    """Print the document on stdout, in what its encoding can say."""
    plain = (getattr(sys.stdout, "encoding", None) or "").lower() not in {"utf-8", "utf8"}
    click.echo(json.dumps(document, indent=2, ensure_ascii=plain))
