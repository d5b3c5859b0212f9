"""With --json a command that fails says so in one document on stdout, with its exit code."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from catwise.cli import audit as audit_module
from catwise.cli.main import COMMANDS, main
from catwise.errors import LabelError

FIELDS = ["kind", "what", "found", "expected", "remedy"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("l.csv").write_text("id,cat\na,1\nb,\n")


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["audit", "--labels", "no.csv", "--encoding", "nan"], 3, "LabelError"),
        (["audit", "--labels", "l.csv"], 3, "LabelError"),
        (["audit", "--labels", "l.csv", "--dataset", "coco"], 2, "UsageError"),
        (["audit", "--few", "x", "--labels", "l.csv"], 2, "BadParameter"),
        (["audit", "--no-such-option"], 2, "NoSuchOption"),
        (["nothing"], 2, "UsageError"),
        (["evaluate", "--features", "f.npz", "--labels", "l.csv", "--encoding", "nan",
          "--id-column", "id", "--head", "no.safetensors"], 10, "CheckpointError"),
        (["split", "--labels", "l.csv", "--encoding", "nan", "--id-column", "id", "--share", "a=1",
          "--out", "l.csv"], 13, "OutputError"),
    ],
)  # fmt: skip
def test_failures_are_documents(arguments: list[str], code: int, kind: str) -> None:
    """What, found, expected and remedy are apart; without --json stdout is empty."""
    plain = CliRunner().invoke(main, arguments)
    assert (plain.exit_code, plain.stdout) == (code, "")
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == code
    document = json.loads(result.stdout)
    assert list(document) == ["command", "exit_code", "error"]
    assert document["exit_code"] == code
    assert document["command"] == (arguments[0] if arguments[0] in COMMANDS else None)
    assert list(document["error"]) == FIELDS
    assert document["error"]["kind"] == kind
    assert document["error"]["what"]
    if code != 2:  # people still read it on stderr
        assert document["error"]["what"] in result.stderr


def test_remedies_are_those_of_the_command_line() -> None:
    """As on stderr, arguments of Python are options."""
    result = CliRunner().invoke(main, ["audit", "--labels", "l.csv", "--json"])
    assert "--encoding nan" in json.loads(result.stdout)["error"]["remedy"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LabelError("it is\nwrong", found="ä"), 3),
        (OSError(28, "No space left on device", "x"), 13),
        (OSError(5, "Input/output error"), 1),
        (KeyboardInterrupt(), 128 + signal.SIGINT),
    ],
)
def test_other_ends(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    """A full disk, a broken one and Ctrl-C are documents too."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(audit_module, "load_dataset", fail)
    line = ["audit", "--labels", "l.csv", "--encoding", "nan", "--json"]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == code
    document = json.loads(result.stdout)
    assert (document["exit_code"], document["command"]) == (code, "audit")


def test_success_and_help_have_no_error() -> None:
    """Where nothing fails there is the command's own document, or the help."""
    line = ["audit", "--labels", "l.csv", "--encoding", "nan", "--id-column", "id", "--json"]
    assert "error" not in json.loads(CliRunner().invoke(main, line).stdout)
    assert "Usage" in CliRunner().invoke(main, ["audit", "--json", "--help"]).stdout
