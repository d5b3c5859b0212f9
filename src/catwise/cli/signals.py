"""SIGTERM and SIGHUP end a command as Ctrl-C does: it cleans up, and its exit code tells which."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, Final

from catwise._lock import put_off

_NAMES: Final = ("SIGTERM", "SIGHUP")
_HANDLED: Final[list[int]] = []


class Ended(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ending_by_signals() -> Iterator[list[int]]:
    """Raise `Ended` in the block when such a signal comes; gives the numbers of those that came.

    A signal that is ignored, as SIGHUP is under nohup, or that somebody else handles, stays so. The
    first one counts; more of them do not cut the cleaning up short. Processes that are forked end
    with this one: a hangup of the terminal does not end them before.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def end(number: int, frame: Any) -> None:
        del frame
        came.append(number)
        for one in _HANDLED:
            signal.signal(one, signal.SIG_IGN)
        if hasattr(signal, "SIGCHLD"):  # where all of a group are asked to end, workers are no news
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

        def ended() -> None:
            raise Ended(number)

        if not put_off(ended):
            ended()

    numbers = [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]
    _HANDLED[:] = [one for one in numbers if signal.getsignal(one) == signal.SIG_DFL]
    for one in _HANDLED:
        signal.signal(one, end)
    try:
        yield came
    finally:
        for one in _HANDLED:
            signal.signal(one, signal.SIG_DFL)
        _HANDLED.clear()


def _in_child() -> None:
    for one in _HANDLED:
        hangup = one == getattr(signal, "SIGHUP", None)
        signal.signal(one, signal.SIG_IGN if hangup else signal.SIG_DFL)
    _HANDLED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
