"""`catwise view`: a run's report in the browser."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.signals import Ended


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise view` is given."""

    run: tuple[Path, ...] = option((), positional=True, metavar="RUN")
    port: int = option(0, low=0, high=65535, first=True, help="0: a free one.  [default: 0]")
    browser: bool = option(
        default=True, names="--browser/--no-browser", first=True, help="Open a browser there."
    )
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if len(self.run) != 1:
            raise click.UsageError("give one run.")


@make_command("view", "Show a run's report in the browser.")
def command(given: Options) -> None:
    """Show the report of a run in the browser, until Ctrl-C.

    RUN is a folder of `tune`, `select`, `extend` or `fix`, or a report's file. The page is served
    to this machine alone (127.0.0.1), and nothing else of the folder is. Where a run has no report
    it is made of its records; nothing is written.
    """
    from catwise.reporting.serving import PageServer, read_page

    (run,) = given.run
    read_page(run)
    with PageServer(partial(read_page, run), given.port) as server, _until_interrupted():
        given.output.line(f"{server.address} shows '{run}'; Ctrl-C ends it")
        given.output.document({"command": "view", "run": str(run), "address": server.address})
        sys.stdout.flush()
        if given.browser:
            _open(server.address, given.output)
        server.serve_forever(poll_interval=0.2)


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C is how it ends; other signals end it as they end every command."""
    try:
        yield
    except Ended:
        raise
    except KeyboardInterrupt:
        return


def _open(address: str, output: Output) -> None:
    import webbrowser

    if not webbrowser.open(address):
        output.line("no browser was found: open the address in yours")
