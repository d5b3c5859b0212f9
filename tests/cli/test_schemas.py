"""The schemas of what `--json` prints: one for each command, and they refuse what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from catwise.cli.main import COMMANDS, main
from cli.schemas import FOLDER, check, check_call

ERROR = {"kind": "LabelError", "what": "w", "found": None, "expected": None, "remedy": "r"}


def test_every_command_with_json_has_a_schema() -> None:
    told = set()
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        if any("--json" in one.opts for one in command.params):
            told.add(name)
    assert {path.stem for path in FOLDER.glob("*.json")} == {*told, "error"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_schema_is_one_and_says_what_it_holds(path: Path) -> None:
    schema = json.loads((FOLDER / f"{path.stem}.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["description"]
    assert "command" in schema["required"]
    with pytest.raises(AssertionError, match=r"docs/schemas"):
        check(path.stem, {"command": 1})


def test_what_is_missing_or_of_another_type_is_refused() -> None:
    document = {"command": "tune", "exit_code": 3, "error": ERROR}
    check_call(["tune"], 3, json.dumps(document))
    for wrong in ({"exit_code": "3"}, {"error": {"kind": "LabelError"}}, {"other": 1}):
        with pytest.raises(AssertionError, match=r"error\.json"):
            check_call(["tune"], 3, json.dumps({**document, **wrong}))
    with pytest.raises(AssertionError, match="2 documents"):
        check_call(["tune"], 0, "{} {}")
