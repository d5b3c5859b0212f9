"""Every document that `--json` prints in a test is held against its schema in docs/schemas."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from catwise.cli.main import main

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"


def check(name: str, document: Any) -> None:
    """Fail with the first fault where a document is not what docs/schemas/NAME.json says."""
    schema = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    for fault in Draft202012Validator(schema).iter_errors(document):
        raise AssertionError(f"docs/schemas/{name}.json, {fault.json_path}: {fault.message}")


def check_call(call: list[str], code: int, stdout: str) -> None:
    """Hold what a call with `--json` printed against the schemas.

    A command that fails prints the error last; before it may stand the document of work
    that is done all the same (such as an update that made a head worse).
    """
    reader, documents, text = json.JSONDecoder(), [], stdout.strip()
    while text:
        document, end = reader.raw_decode(text)
        documents.append(document)
        text = text[end:].strip()
    if code:
        if documents:
            check("error", documents.pop())
    elif os.environ.get("RANK", "0") == "0":
        assert len(documents) == 1, f"{call} printed {len(documents)} documents"
    for document in documents:
        check(call[0], document)


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """See what a test's calls of the command line print."""
    plain = CliRunner.invoke

    def invoke(self: CliRunner, cli: Any, args: Any = None, **more: Any) -> Any:
        result = plain(self, cli, args, **more)
        call = [str(one) for one in args] if isinstance(args, (list, tuple)) else []
        if cli is main and "--json" in call[1:] and "--help" not in call:
            check_call(call, result.exit_code, result.stdout)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CliRunner, "invoke", invoke)
        yield
