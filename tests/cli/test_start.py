"""How `catwise` starts, completes, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner

from catwise import _names
from catwise.cli import main
from catwise.cli.main import COMMANDS
from catwise.errors import CatwiseError, InSampleWarning, LabelError

HEAVY = ("torch", "sklearn", "pyarrow", "scipy", "pandas")

PROBE = f"""
import sys
from catwise import _names
from catwise.cli import main
try:
    main(prog_name="catwise")
finally:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    sys.stderr.write("LOADED " + ",".join(loaded) + "\\n")
"""


TUNE = ["tune", "--features", "f", "--labels", "l", "--head", "h", "--out", "no-such-folder/o"]


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *(([command, "--help"], 0) for command in COMMANDS),
        (["tune"], 2),
        (["tune", "--preset", "papper"], 2),
        (["tune", "--features", "f", "--labels", "l", "--out", "o", "--valid-features", "v"], 2),
        (["evaluate", "--features", "f", "--labels", "l", "--split", "valid"], 2),
        (["select", "--candidate", "a"], 2),
        ([*TUNE, "--method", "ga"], 12),
        ([*TUNE, "--preset", "paper", "--method", "sga"], 2),
        ([*TUNE, "--preset", "paper"], 12),
        ([*TUNE, "--validation", "select"], 12),
        ([*TUNE, "--valid-labels", "v", "--preset", "paper", "--validation", "fit_and_select"], 12),
        ([*TUNE, "--uncertain", "bad"], 2),
        (["evaluate", "--features", "f", "--labels", "l", "--head", "h", "--prevalence", "x"], 12),
        (["nothing"], 2),
    ],
)
def test_nothing_heavy_is_loaded(arguments: list[str], code: int) -> None:
    """Help and argument errors load neither torch nor scikit-learn nor pyarrow."""
    done = start(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "LOADED "
    assert "Traceback" not in done.stderr


def test_completion_loads_nothing_heavy() -> None:
    """Completion offers commands and choices without torch."""
    words = {"_CATWISE_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    done = start(COMP_WORDS="catwise tune --metric au", **words)
    assert done.stdout.split() == ["plain,auroc"]
    assert done.stderr.splitlines()[-1] == "LOADED "


def test_module_is_the_command() -> None:
    """`python -m catwise` is `catwise`."""
    done = subprocess.run(
        [sys.executable, "-m", "catwise", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: catwise [OPTIONS] COMMAND")


def test_choices_are_those_of_the_library() -> None:
    """The names that the options repeat are the ones that the library knows."""
    from catwise.labels import ENCODINGS
    from catwise.metrics import METRICS

    assert tuple(METRICS) == _names.METRICS
    assert tuple(ENCODINGS) == _names.ENCODINGS


def test_unknown_command_is_told_its_neighbour() -> None:
    """A mistyped command is answered with the nearest one."""
    result = CliRunner().invoke(main, ["tuen"])
    assert result.exit_code == 2
    assert "did you mean 'tune'?" in result.stderr


def _raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Any:
    @click.command("audit")
    def command() -> None:
        raise error

    monkeypatch.setattr("catwise.cli.audit.command", command)
    return CliRunner().invoke(main, ["audit"])


def _all(kind: type[CatwiseError]) -> list[type[CatwiseError]]:
    return [kind, *(one for sub in kind.__subclasses__() for one in _all(sub))]


@pytest.mark.parametrize("kind", _all(CatwiseError))
def test_errors_become_exit_codes(
    monkeypatch: pytest.MonkeyPatch, kind: type[CatwiseError]
) -> None:
    """Every error of the library is a message on stderr and its exit code, without a traceback."""
    result = _raising(monkeypatch, kind("it is wrong.", found="x", remedy="y"))
    assert result.exit_code == kind.exit_code
    assert result.stderr.startswith(f"{kind.__name__}: it is wrong.\n  found:    x\n")
    assert result.stdout == ""


def test_names_cannot_act_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control characters in a message are shown as such."""
    result = _raising(monkeypatch, LabelError("column '\x1b[31mred\x07'"))
    assert result.stderr == "LabelError: column '�[31mred�'\n"


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with 130, in one line."""
    result = _raising(monkeypatch, KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(("number", "code"), [(28, 13), (30, 13), (5, 1)])
def test_system_errors(monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    """What the system refuses is one line; a full or read-only disk has the code of outputs."""
    result = _raising(monkeypatch, OSError(number, os.strerror(number)))
    assert result.exit_code == code
    assert os.strerror(number) in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not ours keeps its traceback."""
    result = _raising(monkeypatch, ZeroDivisionError("a bug"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning for users is a line on stderr, not a place in our code."""
    import warnings

    @click.command("audit")
    def command() -> None:
        warnings.warn("these rows fitted the head", InSampleWarning, stacklevel=1)

    monkeypatch.setattr("catwise.cli.audit.command", command)
    result = CliRunner().invoke(main, ["audit"])
    assert (result.exit_code, result.stderr) == (0, "warning: these rows fitted the head\n")
    assert result.stdout == ""


def test_terminal_without_the_signs() -> None:
    """Where stdout cannot show a sign it is replaced; JSON is escaped and loses nothing."""
    code = (
        "import click, catwise.cli.audit as m\n"
        "from catwise.cli.console import Output\n"
        "def show():\n"
        "    Output().line('−1'); Output(json=True).document({'a': '−1'})\n"
        "m.command = click.Command('audit', callback=show)\n"
        "from catwise.cli import main\n"
        "main(['audit'])"
    )
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environment
    )
    assert done.stdout.decode("cp1252").splitlines() == ["?1", "{", '  "a": "\\u22121"', "}"]


TALKS = (
    "import click, catwise.cli.audit as m\n"
    "m.command = click.Command('audit', callback=lambda: click.echo('x' * 200_000))\n"
    "from catwise.cli import main\n"
    "main(['audit'])"
)


def test_a_reader_that_goes_away() -> None:
    """What nobody reads to its end, as in `catwise … | head -1`, ends with 141 and no message."""
    pipe = subprocess.PIPE
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}  # without a buffer Python drops the rest
    with subprocess.Popen(
        [sys.executable, "-c", TALKS], stdout=pipe, stderr=pipe, env=buffered
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.skipif(os.name != "posix", reason="no shell of this kind")
def test_no_stdout_at_all() -> None:
    """A stdout that is closed from the start is no reason to fail."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, TALKS],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_full_stdout() -> None:
    """A document that does not fit where stdout goes is an error, not a silence."""
    import catwise.cli.audit as module

    code = (
        "import click, catwise.cli.audit as m\n"
        "m.command = click.Command('audit', callback=lambda: click.echo('x'))\n"
        "from catwise.cli import main\n"
        "main(['audit'])"
    )
    assert module.command.name == "audit"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 13
    assert "No space left" in done.stderr
