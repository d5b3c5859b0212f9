"""Processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import Any, Final, NamedTuple

import torch

from catwise.engines.base import Reply, WorkerEngine, run_task
from catwise.errors import ConfigError

_PRELOADED: Final = ["torch", "catwise.engines.local"]


class _Process(NamedTuple):
    process: Any
    pipe: Any


class LocalEngine(WorkerEngine[_Process]):
    """Processes of this machine, as many as `workers`.

    Each computes with as many threads as this process (`torch.get_num_threads()`), so that results
    keep their bytes: start with ``OMP_NUM_THREADS`` at the number of cores divided by the workers.

    Args:
        workers: processes; None: the cores that are there divided by the threads.
        shared: folder for what all of them read; None: the system's for temporary files.

    Raises:
        ConfigError: If `workers` is not a whole number of 1 or more.

    >>> with LocalEngine(2) as engine:  # doctest: +SKIP
    ...     list(engine.map(abs, [-3, -2, -1]))
    [3, 2, 1]
    """

    title = "local"

    def __init__(
        self, workers: int | None = None, *, shared: str | os.PathLike[str] | None = None
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        default = max(1, (cores or 1) // torch.get_num_threads())
        super().__init__(default if workers is None else workers, shared)
        self._all: list[_Process] = []

    def start(self, *, wait: bool) -> list[_Process]:
        """Processes up to the number of workers; they take tasks at once."""
        del wait
        if multiprocessing.current_process().daemon:
            raise ConfigError(
                "an engine cannot start processes inside a worker process.",
                remedy="call it from the main process",
            )
        context = _context()
        started = [_started(context) for _ in range(self.workers - len(self._all))]
        self._all += started
        return started

    def send(self, worker: _Process, call: bytes, task: bytes) -> bool:
        """Through its pipe."""
        try:
            worker.pipe.send_bytes(call)
            worker.pipe.send_bytes(task)
        except OSError:
            return False
        return True

    def wait(self, busy: list[_Process]) -> list[Reply[_Process]]:
        """Replies that have come, and the ends of pipes whose processes have died."""
        ready = connection.wait([worker.pipe for worker in busy])
        return [Reply(worker, _received(worker.pipe)) for worker in busy if worker.pipe in ready]

    def lost(self, worker: _Process) -> None:
        """Leave it to `start` to make another."""
        self._all.remove(worker)
        _ended(worker)

    def end(self) -> None:
        """Kill all processes."""
        for worker in self._all:
            worker.process.kill()
        while self._all:
            _ended(self._all.pop())


def _context() -> Any:
    """Processes that begin as new ones: a fork of a process that runs threads may hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # where there is one

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with _deaf_children():
        forkserver.ensure_running()
    return context


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that begin now pay no heed to Ctrl-C, not even while they import."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _started(context: Any) -> _Process:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, torch.get_num_threads()), daemon=True)
    process.start()
    theirs.close()
    return _Process(process, ours)


def _received(pipe: Any) -> bytes | None:
    try:
        raw: bytes = pipe.recv_bytes()
    except (EOFError, OSError):
        return None
    return raw


def _ended(worker: _Process) -> None:
    worker.process.kill()
    worker.process.join()
    worker.process.close()
    worker.pipe.close()


def _serve(pipe: Any, threads: int) -> None:
    """What a worker does: tasks in, results out, until the driver has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with suppress(EOFError, OSError):
        while True:
            call = pipe.recv_bytes()
            pipe.send_bytes(run_task(call, pipe.recv_bytes()))


def _end_with_parent() -> None:
    """A driver that was killed leaves no worker behind, not even one that computes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
