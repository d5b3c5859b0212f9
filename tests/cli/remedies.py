"""What errors of the command line recommend is run, in the case in which a test met the error.

`watching` sees every call of the command line in a test. Where one fails with a remedy, its text
must be in `REMEDIES`: there it says by which changes of the call it is followed, or why it cannot
be run. After the test has ended, and what it had broken on purpose is whole again, the call
is made as the remedy says, in the files as they were: it must end well, or go past that error. Each
remedy is run once in a session.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner

from catwise.cli.building import as_options
from catwise.cli.main import main
from catwise.errors import CatwiseError

Change = Callable[[list[str], str, str], list[str]]
"""A call, the remedy's text and what was wrong → the call that follows the remedy."""

_OPTION = re.compile(r"--[a-z][\w-]+")
_TOLD = re.compile(r"(--[a-z][\w-]+)(?: ((?:'[^']*'|\"[^\"]*\"|:(?=\S)|[^\s;,:()'\"])+))?")
_ENCODING = re.compile(r"--encoding \w+ \((?:[^()]|\([^()]*\))*\)(?:; (?=--))?")
_ALL = bool(os.environ.get("CATWISE_ALL_REMEDIES"))
"""Whether a remedy is run in every case that meets it, not in the first one alone."""
_DONE: list[str] = []


def template(text: str) -> str:
    """A remedy without what differs from case to case: names, numbers, paths, encodings."""
    text = re.sub("\0+", "--encoding …", _ENCODING.sub("\0", text))
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", text)
    text = re.sub(r"(?<![\w.])/[\w./-]+", "…", text)
    text = re.sub(r"\b\d[\d,]*(?:\.\d+)?\b", "0", text)
    text = re.sub(r"of the (?:training|validation|test) data", "of the … data", text)
    return re.sub(r"(?:--(rename|ignore-column|option categories=)[ =]?\S+ ?)+", r"--\1 … ", text)


class Run(NamedTuple):
    """Changes that follow a remedy, one for each thing that it recommends.

    `also` names options of its text that are told of and not recommended.
    """

    changes: tuple[Change, ...]
    also: tuple[str, ...] = ()


def add(words: str) -> Change:
    """The call with more options."""

    def change(call: list[str], text: str, what: str) -> list[str]:
        del text, what
        return [*call, *shlex.split(words)]

    return change


def instead(option: str, value: str) -> Change:
    """The call with another value of an option, wherever it stands."""

    def change(call: list[str], text: str, what: str) -> list[str]:
        del text, what
        made = list(call)
        for at, word in enumerate(call[:-1]):
            if word == option:
                made[at + 1] = value
        return made

    return change


def without(option: str, *, value: bool = True) -> Change:
    """The call without an option."""

    def change(call: list[str], text: str, what: str) -> list[str]:
        del text, what
        made, words = [], iter(call)
        for word in words:
            if word == option:
                if value:
                    next(words)
                continue
            made.append(word)
        return made

    return change


def other_output(call: list[str], text: str, what: str) -> list[str]:
    """The call with another name for what it writes."""
    del text, what
    names = {"--out", "--report", "--csv"}
    places = [at + 1 for at, word in enumerate(call) if word in names]
    made = list(call)
    for at in places:
        name = Path(call[at]).name
        made[at] = str(Path(call[at]).with_name(f"new-{name}")) if name else "new-folder"
    return made


def again(call: list[str], text: str, what: str) -> list[str]:
    """The same call, now that nothing is in its way."""
    del text, what
    return call


def as_told(call: list[str], text: str, what: str = "") -> list[str]:
    """The call with all options of the text, with the values that stand there."""
    del what
    command = main.get_command(click.Context(main), call[0])
    assert command is not None
    flags = {
        name
        for one in command.params
        if isinstance(one, click.Option) and one.is_flag
        for name in (*one.opts, *one.secondary_opts)
    }
    words: list[str] = []
    for found in _TOLD.finditer(text):
        words += [found[1]] if found[1] in flags or not found[2] else shlex.split(found[0])
    return [*call, *words]


@dataclass
class Met:
    """A remedy that is to be run: the call, the error, and the files as they were."""

    call: list[str]
    what: str
    text: str
    here: str
    path: list[str] = field(default_factory=lambda: list(sys.path))
    kept: dict[Path, Path] = field(default_factory=dict)


class Watch:
    """What a test's calls of the command line end with."""

    def __init__(self, base: Path, remedies: dict[str, Run | str], *, anew: bool) -> None:
        self.base, self.remedies, self.anew = base, remedies, anew
        self.met: list[tuple[str, Met]] = []
        self.unknown: list[str] = []
        self.last: tuple[str, str] | None = None

    def ended(self, call: list[str]) -> None:
        """Note the error that a call has just ended with."""
        if self.last is None or not self.last[1] or call[0] == "demo":  # which takes long
            return
        what, text = self.last
        key = template(text)
        if key not in self.remedies:
            self.unknown.append(f"{key!r}: {text!r} (of {call[0]})")
        elif isinstance(self.remedies[key], Run) and (self.anew or key not in _DONE):
            _DONE.append(key)
            one = Met(list(call), what, text, self._here())
            with _no_limit():
                for folder in self._folders([one.here, *call]):
                    one.kept[folder] = self.base / f"kept-{len(_DONE)}-{len(one.kept)}"
                    shutil.copytree(folder, one.kept[folder], symlinks=True)
            self.met.append((key, one))

    def _here(self) -> str:
        """Where the call is made again: where it was made, or an empty folder of the tests."""
        here = os.getcwd()  # noqa: PTH109 - it may be gone
        if f"{here}/".startswith(f"{self.base}/"):
            return here
        empty = self.base / f"elsewhere-{len(_DONE)}"
        empty.mkdir()
        return str(empty)

    def _folders(self, texts: list[str]) -> set[Path]:
        """The folders of the tests that a call can reach."""
        lead = f"{self.base}/"
        parts = [text.partition(lead)[2].partition("/")[0] for text in texts if lead in text]
        return {self.base / part for part in parts if part and (self.base / part).is_dir()}


@contextlib.contextmanager
def _no_limit() -> Iterator[None]:
    """Files may be as large as they are, whatever limit a test has set."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def watching(base: Path, remedies: dict[str, Run | str], *, anew: bool = False) -> Iterator[None]:
    """See what a test's calls end with; in the end run what errors have recommended.

    A remedy that was run before is run again if `anew`.
    """
    module: Any = importlib.import_module("catwise.cli.main")
    watch = Watch(base, remedies, anew=anew or _ALL)
    plain, ended = CliRunner.invoke, module._ended_by

    def see(error: BaseException, came: list[int], options: Any) -> Any:
        if isinstance(error, CatwiseError) and not came:
            watch.last = as_options(error.what, options), as_options(error.remedy or "", options)
        return ended(error, came, options)

    def invoke(self: CliRunner, cli: Any, args: Any = None, **more: Any) -> Any:
        watch.last = None
        result = plain(self, cli, args, **more)
        if cli is main and args and result.exit_code not in (0, 2):
            watch.ended([str(one) for one in args])
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CliRunner, "invoke", invoke)
        patch.setattr(module, "_ended_by", see)
        yield
        patch.setattr(CliRunner, "invoke", plain)
        assert not watch.unknown, "remedies that tests/cli/remedies.py does not list: " + "\n".join(
            watch.unknown
        )
        for key, met in watch.met:
            _follow(watch, remedies[key], met)


def _follow(watch: Watch, how: Run | str, met: Met) -> None:
    """Run what a remedy recommends."""
    assert isinstance(how, Run)
    used: set[str] = set()
    for number, change in enumerate(how.changes):
        with _files_of(met), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", met.path)
            call = change(met.call, met.text, met.what)
            watch.last = None
            result = CliRunner().invoke(main, call)
        used |= {*call}
        about = f"{met.text!r} ({number}): catwise {shlex.join(call)}\n{result.output}"
        same = watch.last is not None and template(watch.last[0]) == template(met.what)
        assert result.exit_code == 0 or (watch.last is not None and not same), (
            f"the remedy does not help: {about} {result.exception!r}"
        )
    left = set(_OPTION.findall(met.text)) - used - {*how.also}
    assert not left, f"options of {met.text!r} that are not run: {left}"


@contextlib.contextmanager
def _files_of(met: Met) -> Iterator[None]:
    """The files as they were when the error came; afterwards they are as the test left them."""
    moved = {}
    before = os.getcwd()  # noqa: PTH109
    try:
        for folder, kept in met.kept.items():
            aside = folder.with_name(f"{folder.name}-aside")
            if folder.exists():
                folder.rename(aside)
                moved[folder] = aside
            shutil.copytree(kept, folder, symlinks=True)
        os.chdir(met.here)
        yield
    finally:
        os.chdir("/")
        for folder in met.kept:
            shutil.rmtree(folder, ignore_errors=True)
            if folder in moved:
                moved[folder].rename(folder)
        os.chdir(before)
