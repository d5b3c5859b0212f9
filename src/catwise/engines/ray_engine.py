"""A Ray cluster, or Ray on this machine."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch

from catwise._extras import import_optional
from catwise._version import __version__
from catwise.engines.base import Reply, WorkerEngine, run_task
from catwise.errors import ConfigError, reason_of

_POLL_SECONDS: Final = 1.0
_START_SECONDS: Final = 120.0
_ANSWER_SECONDS: Final = 10.0


class _Actor(NamedTuple):
    """A process of the cluster, and what it was asked last."""

    handle: Any
    asked: list[Any]  # one reference


class RayEngine(WorkerEngine[_Actor]):
    """Actors of a Ray cluster, as many as `workers`, each on as many CPUs as it has threads.

    They compute with as many threads as this process (`torch.get_num_threads()`), so that results
    keep their bytes. A cluster needs catwise, torch and Ray in the versions of this process, and
    folders that all its machines see: of the images, of stores of features, and `shared`.

    Args:
        workers: actors; None: what the cluster's CPUs allow.
        address: of a cluster that runs, such as "10.0.0.1:6379", or "auto" for that of this
            machine; None: what RAY_ADDRESS says, else Ray is started here, for as long as the
            engine is used.
        shared: folder for what all of them read; None: the system's for temporary files, which
            machines do not share.
        start_seconds: how long to wait for a first actor, where others use the cluster's CPUs.

    Raises:
        ConfigError: If `workers` is not a whole number of 1 or more.
        MissingExtraError: If Ray is not installed.
    """

    title = "ray"
    remedy = "use fewer workers: memory ran out, or machines were taken away"

    def __init__(
        self,
        workers: int | None = None,
        *,
        address: str | None = None,
        shared: str | os.PathLike[str] | None = None,
        start_seconds: float = _START_SECONDS,
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers
        self._ray = import_optional("ray", extra="ray", purpose="the engine 'ray'")
        self._wanted, self._address = workers, address
        self._patience = start_seconds
        self._threads = torch.get_num_threads()
        self._connected = self._ours = False
        self._all: list[_Actor] = []
        self._starting: list[_Actor] = []
        super().__init__(1 if workers is None else workers, shared)

    def __enter__(self) -> RayEngine:  # noqa: PYI034 - Self came with Python 3.11
        self._connect()  # what is wrong with the cluster is told at once
        return self

    def start(self, *, wait: bool) -> list[_Actor]:
        """Actors that have said that they are there; waits for one."""
        self._connect()
        missing = self.workers - len(self._all) - len(self._starting)
        self._starting += [self._new_actor() for _ in range(missing)]
        deadline, seconds = time.monotonic() + self._patience, 0.0
        while self._starting:
            waited = [actor.asked[0] for actor in self._starting]
            ready, _ = self._ray.wait(waited, timeout=seconds)
            if ready or not wait:
                return self._joined(ready)
            seconds = _POLL_SECONDS
            if time.monotonic() > deadline:
                raise ConfigError(
                    "no worker could start on the Ray cluster.",
                    found=f"{self._ray.available_resources().get('CPU', 0):g} CPUs free after "
                    f"{self._patience:,.0f} s",
                    expected=f"{self._threads} for each worker",
                    remedy="wait until others have ended, or use fewer threads (OMP_NUM_THREADS)",
                )
        return []

    def send(self, worker: _Actor, call: bytes, task: bytes) -> bool:
        """By a call of the actor's; whether it lives shows when it is waited for."""
        worker.asked[0] = worker.handle.run.remote(call, task)
        return True

    def wait(self, busy: list[_Actor]) -> list[Reply[_Actor]]:
        """Replies that have come; none where an actor has started meanwhile."""
        waited = [actor.asked[0] for actor in (*busy, *self._starting)]
        ready = set(self._ray.wait(waited, num_returns=1)[0])
        more = [ref for ref in waited if ref not in ready]
        if more:
            ready |= set(self._ray.wait(more, num_returns=len(more), timeout=0)[0])
        return [Reply(one, self._received(one.asked[0])) for one in busy if one.asked[0] in ready]

    def lost(self, worker: _Actor) -> None:
        """Leave it to `start` to make another."""
        self._all.remove(worker)

    def end(self) -> None:
        """Kill all actors, and end Ray if it was started here."""
        actors = [*self._all, *self._starting]
        self._all, self._starting = [], []
        for actor in actors:
            with contextlib.suppress(Exception):  # it is gone, or the cluster is
                self._ray.kill(actor.handle)

    def close(self) -> None:
        """End the workers, remove what was shared, and leave the cluster."""
        super().close()
        if self._ours:
            self._ray.shutdown()
        self._connected = self._ours = False

    # the cluster

    def _connect(self) -> None:
        """Join the cluster, or start one; refuse workers that it has no CPUs for."""
        if self._connected:
            return
        if not self._ray.is_initialized():
            self._ours = True
            self._initialise()
        cpus = [node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]]
        room = sum(int(count // self._threads) for count in cpus)
        if (self._wanted or 1) > room:
            raise ConfigError(
                "the Ray cluster has not so many CPUs.",
                found=f"{sum(cpus):g} CPUs on {len(cpus)} machines: room for {room} workers of "
                f"{self._threads} threads",
                expected=f"room for {self._wanted or 1}",
                remedy="fewer workers, or fewer threads for each (OMP_NUM_THREADS)",
            )
        self.workers = self._wanted or room
        self._connected = True

    def _initialise(self) -> None:
        """`ray.init`, with what it says and raises made short."""
        address = self._address or os.environ.get("RAY_ADDRESS")
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            how |= {"num_cpus": self._wanted and self._wanted * self._threads}
            how |= {"include_dashboard": False}
        try:
            if address is not None:
                _check_address(address)
            with _own_signals():
                self._ray.init(address=address, **how)
        except Exception as error:  # of many kinds
            self._ours = False
            with contextlib.suppress(Exception):
                self._ray.shutdown()
            what = f"no Ray cluster at {address!r} can be joined."
            raise ConfigError(
                "Ray cannot be started on this machine." if address is None else what,
                found=reason_of(error, named=True),
                remedy="start one with 'ray start --head', with the Ray and the Python that are "
                "used here",
            ) from error

    def _new_actor(self) -> _Actor:
        kind = self._ray.remote(_Worker)
        options = {"num_cpus": self._threads, "max_restarts": 0, "max_task_retries": 0}
        handle = kind.options(**options).remote(self._threads)
        return _Actor(handle, [handle.about.remote()])

    def _joined(self, ready: list[Any]) -> list[_Actor]:
        """Those that have started; refused where their versions differ."""
        joined = [actor for actor in self._starting if actor.asked[0] in ready]
        self._starting = [actor for actor in self._starting if actor not in joined]
        alive = []
        for actor in joined:
            try:
                host, versions = self._ray.get(actor.asked[0])
            except self._ray.exceptions.RayActorError as error:
                raise ConfigError(
                    "a worker of the Ray cluster cannot start.",
                    found=_reason(error),
                    expected="catwise and torch on all machines of the cluster",
                ) from error
            if versions != _versions():
                raise ConfigError(
                    "a worker of the Ray cluster has other versions.",
                    found=f"{versions} on {host}",
                    expected=_versions(),
                )
            alive.append(actor)
        self._all += alive
        return alive

    def _received(self, reference: Any) -> bytes | None:
        try:
            raw: bytes = self._ray.get(reference)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError):
            return None
        return raw


def _check_address(address: str) -> None:
    """Ask whether anything answers there; Ray itself would wait for minutes. OSError if not."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """SIGTERM stays whose it is; Ray would take it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # else of somebody who is not Python
            signal.signal(signal.SIGTERM, before)


def _versions() -> str:
    return f"catwise {__version__}, torch {torch.__version__}"


def _reason(error: BaseException) -> str:
    """The last line of what Ray says, which is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _Worker:
    """An actor: tasks in, results out."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def about(self) -> tuple[str, str]:
        """Where it is, and what with."""
        return platform.node(), _versions()

    def run(self, call: bytes, task: bytes) -> bytes:
        """See `run_task`."""
        return run_task(call, task)
