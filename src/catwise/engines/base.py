"""What an engine is; the order of results, and what becomes of tasks whose worker has died."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from catwise._lock import Temporary, sweep, translated
from catwise.engines.packing import map_packed, pack, unpack, write_packed
from catwise.errors import CatwiseError, ConfigError, reason_of

T_co = TypeVar("T_co", covariant=True)
Task = TypeVar("Task")
Found = TypeVar("Found")
Worker = TypeVar("Worker")

_AHEAD: Final = 4  # tasks that are begun or done and wait for their turn, for each worker
_DEATHS: Final = 3  # of workers in a row, without a task that was finished


class Shared(Protocol[T_co]):
    """A value that was shared out once and is there for all tasks."""

    @property
    def value(self) -> T_co:
        """The value; in a worker its arrays are mapped from the file that holds it."""

    def __hash__(self) -> int:
        """Equal for the same value, so that a worker can keep what it makes of it."""


class Engine(Protocol):
    """Where tasks run. Use it in a ``with`` block, or `close` it.

    In a preset or a command::

        def score(rows: Shared[Tensor], block: slice) -> Tensor:  # at the top of a module
            return rows.value[block].sum()

        rows = engine.share(tensor)
        for found in engine.map(partial(score, rows), blocks):  # in the order of the blocks
            ...

    Attributes:
        workers: how many tasks run at a time.
    """

    workers: int

    def map(self, function: Callable[[Task], Found], tasks: Iterable[Task]) -> Iterator[Found]:
        """Results of a function, in the order of the tasks.

        Tasks are taken a few ahead of the results that were asked for, so that neither has to fit
        in memory. A task whose worker died runs again; it may have run in part, so a function
        that writes must write whole files under names of its own (`catwise._io.atomic_path`).

        Args:
            function: of the top of a module (or a `functools.partial` of one), for it is pickled.
            tasks: picklable; any iterable, also without an end.

        Raises:
            ConfigError: If the function or a task cannot be pickled, workers die again and again,
                or the engine cannot start.
            Exception: What the function raised, at the place of the first task that failed.
        """

    def share(self, value: Found) -> Shared[Found]:
        """Make a large value known to all tasks: written once, read by each worker once."""

    def close(self) -> None:
        """End the workers; what they work on is given up. It may be used again afterwards."""

    def __enter__(self) -> Engine: ...  # noqa: PYI034 - Self came with Python 3.11

    def __exit__(self, *error: object) -> None: ...


class _Here:
    def __init__(self, value: Any) -> None:
        self.value = value


class _InProcess:
    """One task after the other, in this process."""

    workers: int = 1

    def map(self, function: Callable[[Task], Found], tasks: Iterable[Task]) -> Iterator[Found]:
        return map(function, tasks)

    def share(self, value: Found) -> Shared[Found]:
        return _Here(value)

    def close(self) -> None:
        pass

    def __enter__(self) -> _InProcess:  # noqa: PYI034
        return self

    def __exit__(self, *error: object) -> None:
        pass


IN_PROCESS: Final[Engine] = _InProcess()
"""What runs tasks where no engine is asked for."""


# --------------------------------------------------------------------------- in a worker


@lru_cache(8)
def _mapped(path: Path) -> Any:
    try:
        return map_packed(path)
    except OSError as error:
        raise ConfigError(
            f"a worker cannot read '{path}'.",
            found=reason_of(error),
            expected="a folder that all workers and the driver see under the same name",
            remedy="name one with shared='…'",
        ) from error


class _Stored(NamedTuple):
    """A value in a file that all workers see."""

    path: Path

    @property
    def value(self) -> Any:
        return _mapped(self.path)


class Failed(NamedTuple):
    """What a task raised, and how it came to that."""

    error: Exception
    trace: str


def run_task(call: bytes, task: bytes) -> bytes:
    """The packed result of a packed function, or what it raised."""
    import traceback

    try:
        function, value = _arrived(call, task)
        return pack(function(value))
    except Exception as error:  # noqa: BLE001 - raised again by the driver
        failed = Failed(error, traceback.format_exc())
        try:
            unpack(raw := pack(failed))
        except Exception:  # noqa: BLE001 - an error that cannot be sent
            told = CatwiseError(f"a task failed: {reason_of(error, named=True)}")
            return pack(Failed(told, failed.trace))
        return raw


def _arrived(call: bytes, task: bytes) -> tuple[Any, Any]:
    """The function and its task, as far as this process can import what they are."""
    try:
        return _unpacked(call), unpack(task)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "a worker cannot import what it is to run.",
            found=reason_of(error, named=True),
            expected="modules that are installed, or on PYTHONPATH, wherever workers run",
            remedy="put what a script defines into a module",
        ) from error


@lru_cache(4)
def _unpacked(call: bytes) -> Any:
    return unpack(call)


class _InWorker(Exception):  # noqa: N818 - as concurrent.futures does: the cause of an error
    """Where in a worker an error was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# --------------------------------------------------------------------------- in the driver


class Reply(NamedTuple, Generic[Worker]):
    """What came of a task: packed; None if the worker has died."""

    worker: Worker
    raw: bytes | None


class WorkerEngine(ABC, Generic[Worker]):
    """An engine with workers of its own; a kind says how they start, take tasks and end.

    Each worker has one task at a time, so that a slow one keeps nobody waiting.
    """

    title: str
    remedy: str = "use fewer workers: memory ran out, or somebody ended them"

    def __init__(self, workers: int, shared: str | os.PathLike[str] | None) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ConfigError("an engine needs workers.", found=f"workers={workers!r}")
        self.workers = workers
        self.shared = None if shared is None else Path(os.path.realpath(shared))
        self._idle: list[Worker] = []
        self._busy: dict[int, tuple[Worker, int, _Tasks]] = {}  # by id: with its task's number
        self._cleanup = contextlib.ExitStack()
        self._folder: Path | None = None
        self._count = 0

    # what a kind brings

    @abstractmethod
    def start(self, *, wait: bool) -> list[Worker]:
        """Workers that have started since the last call; with `wait`, one at least.

        The first call starts all; later ones those in place of workers that have died.
        """

    @abstractmethod
    def send(self, worker: Worker, call: bytes, task: bytes) -> bool:
        """Give a worker a task; False if it has died."""

    @abstractmethod
    def wait(self, busy: list[Worker]) -> list[Reply[Worker]]:
        """What has come from workers: one reply at least, unless others can start meanwhile."""

    @abstractmethod
    def end(self) -> None:
        """End all workers at once, and what goes with them."""

    def lost(self, worker: Worker) -> None:
        """A worker has died; `start` makes another."""

    # what all share

    def __enter__(self) -> WorkerEngine[Worker]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def share(self, value: Found) -> Shared[Found]:
        """Write a value into a file that all workers map; see `Engine`."""
        target = (self.shared or Path(tempfile.gettempdir())) / "catwise-engine"
        with translated(target.parent):
            if self._folder is None:
                sweep(target)
                self._folder = self._cleanup.enter_context(Temporary(target))
                self._folder.mkdir()
            self._count += 1
            stored = _Stored(self._folder / f"{self._count}.shared")
            with stored.path.open("wb") as stream:
                write_packed(value, stream)
        return stored

    def close(self) -> None:
        """End the workers and remove what was shared."""
        with self._cleanup:
            self._idle, self._busy = [], {}
            self.end()
        self._folder = None

    def map(self, function: Callable[[Task], Found], tasks: Iterable[Task]) -> Iterator[Found]:
        """Results in the order of the tasks; see `Engine`."""
        yield from map(_result, self._replies(pack(function), map(pack, tasks)))

    def _replies(self, call: bytes, tasks: Iterator[bytes]) -> Iterator[bytes | Failed]:
        """Packed results by number, from 0 on; other calls may share the workers meanwhile."""
        state = _Tasks(tasks, lambda: self.workers * _AHEAD)
        for turn in itertools.count():
            while turn not in state.done:
                self._fill(call, state)
                if not state.running and not state.has_more:
                    return
                self._collect()
                if state.deaths >= _DEATHS + self.workers:
                    raise ConfigError(
                        f"workers of the {self.title} engine die again and again.",
                        found=f"{state.deaths} in a row, none of which finished a task",
                        remedy=self.remedy,
                    )
            yield state.done.pop(turn)

    def _fill(self, call: bytes, state: _Tasks) -> None:
        """Give tasks to workers that have none."""
        while (task := state.next()) is not None:
            if not self._idle and len(self._busy) < self.workers:
                self._idle += self.start(wait=not self._busy)
            if not self._idle:
                state.put_back(*task)
                return
            worker = self._idle.pop(0)
            number, state.running[number] = task
            if self.send(worker, call, state.running[number]):
                self._busy[id(worker)] = worker, number, state
            else:
                self.lost(worker)
                state.died(number)

    def _collect(self) -> None:
        """Take what has come from workers, for whichever call it is."""
        for worker, raw in self.wait([worker for worker, _, _ in self._busy.values()]):
            _, number, state = self._busy.pop(id(worker))
            if raw is None:
                self.lost(worker)
                state.died(number)
            else:
                self._idle.append(worker)
                state.finish(number, raw)


class _Tasks:
    """Tasks that are ahead, run or are done, by number."""

    def __init__(self, tasks: Iterator[bytes], ahead: Callable[[], int]) -> None:
        self._tasks, self._ahead, self._taken = tasks, ahead, 0
        self._again: collections.deque[tuple[int, bytes]] = collections.deque()
        self._ended = False
        self.deaths = 0
        self.running: dict[int, bytes] = {}
        self.done: dict[int, bytes | Failed] = {}

    @property
    def has_more(self) -> bool:
        """Whether a task may be left to begin."""
        return bool(self._again) or not self._ended

    def next(self) -> tuple[int, bytes] | None:
        """The next task to begin; None if there is none, or results wait for their turn."""
        if self._again:
            return self._again.popleft()
        if self._ended or len(self.running) + len(self.done) >= self._ahead():
            return None
        try:
            task = next(self._tasks, None)
        except Exception as error:  # noqa: BLE001 - raised at its turn, after earlier results
            task, self.done[self._taken] = None, Failed(error, "")
        self._ended = task is None
        self._taken += 1
        return None if task is None else (self._taken - 1, task)

    def put_back(self, number: int, task: bytes) -> None:
        """It is the next again."""
        self._again.appendleft((number, task))

    def died(self, number: int) -> None:
        """The worker of a task has died."""
        self.put_back(number, self.running.pop(number))
        self.deaths += 1

    def finish(self, number: int, raw: bytes) -> None:
        """A task is done."""
        del self.running[number]
        self.done[number], self.deaths = raw, 0


def _result(raw: bytes | Failed) -> Any:
    found = unpack(raw) if isinstance(raw, bytes) else raw
    if isinstance(found, Failed):
        raise found.error from (_InWorker(found.trace) if found.trace else found.error.__cause__)
    return found
