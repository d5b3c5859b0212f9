"""The `catwise` group: commands load when they are named, errors become exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from catwise._version import __version__
from catwise.cli.building import as_options, option_names
from catwise.cli.failures import JSON, failure_document, print_failure
from catwise.cli.outputs import held_outputs
from catwise.cli.signals import ending_by_signals
from catwise.errors import CatwiseError, OutputError, nearest

COMMANDS: Final = (
    "fix",
    "train",
    "extract",
    "audit",
    "simulate",
    "split",
    "union",
    "tune",
    "extend",
    "join",
    "select",
    "evaluate",
    "compare",
    "view",
    "study",
    "calibrate",
    "threshold",
    "conformal",
    "suggest",
    "ensemble",
    "apply",
    "package",
    "predict",
    "export",
    "demo",
)
"""Each is the module of its name in this package."""

NO_READER: Final = 141
"""The exit code where nobody reads the output to its end: 128 + SIGPIPE, as in a shell."""

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})

_EPILOG: Final = """\b
Exit codes: 0 done; 2 wrong use; 3 labels; 4 shapes; 5 categories; 6 ids;
7 feature values; 8 feature files; 9 head; 10 checkpoint; 11 head, features
and labels do not belong together; 12 options; 13 output; 14 missing extra;
129, 130, 143 ended by SIGHUP, Ctrl-C, SIGTERM; 141 the reader of the output
went away; 1 anything else.
"""


class _LazyGroup(click.Group):
    """Imports a command's module when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"catwise.cli.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[JSON] = JSON in args
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"no command {name!r}{nearest(name, COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        _prepare_streams()
        with warnings.catch_warnings(), ending_by_signals() as came:
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning(warnings.showwarning)
            try:
                with held_outputs(ctx):
                    result = super().invoke(ctx)
                sys.stdout.flush()
            except (Exception, KeyboardInterrupt) as error:
                name = ctx.invoked_subcommand
                options = option_names(self.get_command(ctx, name or ""))
                code = _ended_by(error, came, options)
                told = error.exit_code if isinstance(error, click.ClickException) else code
                if told not in {None, NO_READER} and ctx.meta.get(JSON):
                    print_failure(failure_document(name, error, int(told or 1), options))
                if code is None:
                    raise
                _let_go(error)
                ctx.exit(code)
            return result


def _prepare_streams() -> None:
    """A stream that is closed, or a sign that a terminal lacks, is no reason to fail."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start, as by >&-
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the end
            setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _ended_by(error: BaseException, signals: list[int], options: Mapping[str, str]) -> int | None:
    """Say why a command ended, and give its exit code; None for an error that nobody expected.

    After a signal every error is its consequence, such as that a worker process has ended too.
    Arguments of the library that have an option here are named as the option.
    """
    if signals or isinstance(error, KeyboardInterrupt):
        number = signals[0] if signals else signal.SIGINT
        _complain("interrupted" if not signals else f"ended by {signal.Signals(number).name}")
        return 128 + number
    if isinstance(error, CatwiseError):
        _complain(f"{type(error).__name__}: {as_options(str(error), options)}")
        return error.exit_code
    return _refused(error) if isinstance(error, OSError) else None


def _let_go(error: BaseException | None) -> None:
    """Drop what the frames of an error hold: a loader ends its worker processes then, not at exit.

    At exit they would be ended as if they had failed, with a traceback.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _refused(error: OSError) -> int:
    """Say what the operating system refused, and give the exit code for it."""
    if error.errno == errno.EPIPE:  # what was asked for is done; only the telling is cut short
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    if error.errno in _DISK_FULL:
        where = f" '{error.filename}'" if error.filename else " the output"
        _complain(f"OutputError: cannot write{where}: {error.strerror}")
        return OutputError.exit_code
    _complain(f"{type(error).__name__}: {error}")
    return 1


def _complain(text: str) -> None:
    """A message of several lines on stderr; control characters in names cannot act there."""
    from catwise._text import clean

    click.echo("\n".join(clean(line) for line in text.split("\n")), err=True)


def _show_warning(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Warnings for users as one line; all others as Python shows them."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, UserWarning):
            _complain(f"warning: {message}")
        else:
            otherwise(message, category, *place, **more)

    return show


@click.command(
    cls=_LazyGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="catwise")
def main() -> None:
    """Repair the last layer of a multi-label image classifier, category by category.

    Give features, labels that are only partly known, and the trained head; get a better head and an
    account of what changed, how sure that is, and what was left alone and why.
    """
