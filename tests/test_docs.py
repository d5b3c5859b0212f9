"""What README.md and the pages of docs/ show runs: Python blocks, and the options of commands.

The Python blocks of a page run in order, in one namespace, in an empty folder. A block with
prompts (>>>) is a doctest. A block that readers need not see stands in a comment:

    <!-- python
    labels = ...
    -->

Every `catwise …` line of a console or shell block must be a call that the command line accepts.
"""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from catwise.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


SHELLS = ("console", "bash", "sh", "shell", "")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

_BLOCK = re.compile(
    r"^(?:```(?P<kind>[\w{}]*)[^\n]*\n(?P<shown>.*?)^```"
    r"|<!-- (?P<hidden_kind>\w+)\n(?P<hidden>.*?)^-->)",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """One block of a page."""

    kind: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    """The fenced blocks and the hidden ones, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        kind = match["kind"] if match["shown"] is not None else match["hidden_kind"]
        content = match["shown"] if match["shown"] is not None else match["hidden"]
        found.append(Block(kind, content, text[: match.start()].count("\n") + 2))
    return found


def commands(text: str) -> list[str]:
    """The calls of catwise in the shell blocks; what is piped or chained after them is cut."""
    found = []
    for block in blocks(text):
        if block.kind not in SHELLS:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            called = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(catwise\b.*)", line)
            if called:
                found.append(called[1].strip())
    return found


def parse(line: str) -> None:
    """Give a call to the command line's parser, which runs nothing.

    Raises:
        click.UsageError: If it does not take the call.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            break
        words.append(word)
    _, *arguments = words
    try:
        if not arguments or arguments[0].startswith("-"):
            main.make_context("catwise", arguments)
            return
        with click.Context(main, info_name="catwise") as context:
            name, command, left = main.resolve_command(context, arguments)
            assert command is not None
            with command.make_context(name, left, parent=context):
                pass
    except click.exceptions.Exit:  # --help, --version
        return


def refusal(line: str) -> str:
    """Why the command line does not take a call; empty if it does."""
    try:
        parse(line)
    except click.UsageError as error:
        return error.format_message()
    return ""


def run_python(block: Block, namespace: dict[str, object], name: str) -> None:
    if ">>>" not in block.text:
        exec(compile("\n" * (block.line - 1) + block.text, name, "exec"), namespace)  # noqa: S102
        return
    test = doctest.DocTestParser().get_doctest(block.text, namespace, name, name, block.line)
    told: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append, clear_globs=False)
    namespace.update(test.globs)
    assert not told, "".join(told)


_PLACEHOLDER = re.compile(r"\b(?:AP|AUROC|SHARE)_[A-Z]+\b|\b(?:TODO|TBD|FIXME|XXX)\b|\?\?\?")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_figure_is_left_to_fill_in(page: Path) -> None:
    """A table is published with its numbers."""
    assert not _PLACEHOLDER.findall(page.read_text("utf-8"))


def test_placeholders_are_found() -> None:
    """The pattern sees what drafts are made with, and no option or constant."""
    assert _PLACEHOLDER.findall("| base | AP_BASE | TBD |") == ["AP_BASE", "TBD"]
    assert not _PLACEHOLDER.search("OMP_NUM_THREADS=2 average_precision CATWISE_TASKS AP_")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python of a page runs from top to bottom."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind == "python":
            run_python(block, namespace, page.name)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_exist(page: Path) -> None:
    """Each call has a command, options and choices that exist, and all that are required."""
    refused = {line: refusal(line) for line in commands(page.read_text(encoding="utf-8"))}
    assert {line: why for line, why in refused.items() if why} == {}


EXAMPLE = """
```python
x = 1
```
<!-- python
y = x + 1
-->
```python
>>> y
2
```
```console
$ catwise tune --features a.npz \\
    --out b | tee log
[exit 2]
```
"""


def test_installations_are_of_a_checkout() -> None:
    """No index has it: blocks install a folder, with extras that there are."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    calls = [
        match[0]
        for page in PAGES
        for block in blocks(page.read_text())
        for match in re.finditer(r"pip install .*", block.text)
    ]
    assert len(calls) >= 3
    for call in calls:
        (what,) = [word for word in shlex.split(call) if re.match(r"(\.|/src|catwise)(\[|$)", word)]
        assert not what.startswith("catwise"), call
        assert set(re.findall(r"\[(\w+)\]", what)) <= extras, call


def test_blocks_are_found() -> None:
    """Shown and hidden blocks come in order, calls without their output."""
    assert [block.kind for block in blocks(EXAMPLE)] == ["python", "python", "python", "console"]
    assert commands(EXAMPLE) == ["catwise tune --features a.npz      --out b | tee log"]


def test_python_shares_a_namespace() -> None:
    """What one block defines, hidden or not, the next one sees; wrong output fails."""
    namespace: dict[str, object] = {}
    for block in blocks(EXAMPLE)[:3]:
        run_python(block, namespace, "example")
    with pytest.raises(AssertionError, match="Expected"):
        run_python(Block("python", ">>> y\n3\n", 1), namespace, "example")


@pytest.mark.parametrize(
    "line", ["catwise --help", "catwise demo --out a", "catwise tune --help", "catwise demo > log"]
)
def test_good_calls_pass(line: str) -> None:
    """What the command line takes passes."""
    parse(line)


@pytest.mark.parametrize(
    "line", ["catwise dema", "catwise demo --autput a", "catwise demo --seed many", "catwise tune"]
)
def test_bad_calls_fail(line: str) -> None:
    """Unknown commands and options, wrong values and missing options are found."""
    with pytest.raises(click.UsageError):
        parse(line)
