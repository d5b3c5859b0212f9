"""Engines: results in order, errors in turn, killed workers, and the bytes of one process."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catwise.engines import IN_PROCESS, Engine, LocalEngine, open_engine
from catwise.engines.packing import pack, unpack
from catwise.errors import ConfigError, FeatureError, InSampleWarning
from catwise.models.extraction import extract
from catwise.reporting import write_run
from catwise.testing import make_task
from catwise.tuning import tune
from catwise.tuning.presets import pooled_anchor
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.rows import tuning_rows
from engine_case import (
    Images,
    check_kills,
    double,
    files,
    later_first,
    net,
    refuse_odd,
    rows_of,
)

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def local() -> Iterator[Engine]:
    with LocalEngine(2) as engine:
        yield engine


def test_results_come_in_order(local: Engine) -> None:
    """Whichever task ends first; and other processes did them."""
    numbers, workers = zip(*local.map(later_first, range(12)), strict=True)
    assert list(numbers) == list(range(12))
    assert len(set(workers)) == 2
    assert os.getpid() not in workers


def test_tasks_are_taken_as_they_are_needed(local: Engine) -> None:
    """An endless stream of tasks gives results, and only a few tasks are taken ahead."""
    taken = itertools.count()
    found = local.map(double, taken)
    assert list(itertools.islice(found, 5)) == [0, 2, 4, 6, 8]
    assert next(taken) < 5 + 4 * 2 + 2
    assert list(local.map(double, [7])) == [14]


def test_calls_share_the_workers(local: Engine) -> None:
    """Of two streams of tasks each gets its own results, also where one is left."""
    first, second = local.map(double, range(20)), local.map(abs, range(0, -20, -1))
    assert list(zip(first, second, strict=True)) == [(2 * n, n) for n in range(20)]
    left = local.map(double, itertools.count())
    assert next(left) == 0
    assert list(local.map(double, range(5))) == [0, 2, 4, 6, 8]
    assert next(left) == 2


@pytest.mark.parametrize("name", [None, "local"])
def test_errors_come_in_turn(name: str | None, local: Engine) -> None:
    """The error is that of the first task that fails, after the results before it."""
    engine = local if name else IN_PROCESS
    found = engine.map(refuse_odd, [0, 2, 1, 3])
    assert [next(found), next(found)] == [0, 2]
    with pytest.raises(FeatureError, match="1 is odd") as caught:
        next(found)
    assert (caught.value.found, caught.value.remedy) == ("odd", "add one")
    assert list(engine.map(double, [1])) == [2]


def test_errors_of_tasks_that_cannot_be_made(local: Engine) -> None:
    """An error while tasks are made comes after the results of those before."""

    def tasks() -> Iterator[int]:
        yield 1
        raise FeatureError("no more images.")

    found = local.map(double, tasks())
    assert next(found) == 2
    with pytest.raises(FeatureError, match="no more images"):
        next(found)


def test_large_values_are_shared(tmp_path: Path) -> None:
    """Workers map a file; what they write stays with them; the file goes with the engine."""
    rows = torch.arange(3000.0).reshape(1000, 3)
    with LocalEngine(2, shared=tmp_path) as engine:
        shared = engine.share(rows)
        for _ in range(2):
            blocks = [slice(0, 500), slice(500, 1000)]
            found = list(engine.map(partial(rows_of, shared), blocks))
            torch.testing.assert_close(torch.cat(found).mean(), (rows + 1).mean(), atol=2, rtol=0)
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())
    assert rows[0, 0] == 0


def test_killed_workers_lose_nothing(tmp_path: Path, local: Engine) -> None:
    """Their tasks run again, and no result comes twice."""
    check_kills(local, tmp_path, (0, 5, 6, 19))


def test_workers_that_always_die(local: Engine) -> None:
    """A task that kills whoever takes it is given up."""
    with pytest.raises(ConfigError, match="die again and again") as caught:
        list(local.map(os._exit, [1]))
    assert caught.value.remedy is not None
    assert list(local.map(double, [4])) == [8]


def test_what_cannot_be_sent(local: Engine) -> None:
    """A function of a function is refused before a process sees it."""
    with pytest.raises(ConfigError, match="cannot be sent to other processes"):
        list(local.map(lambda x: x, [1]))


def test_what_a_worker_cannot_import(local: Engine) -> None:
    """A module that is only here is told, with what to do."""
    module = types.ModuleType("only_here")
    exec("def f(x): return x", vars(module))  # noqa: S102 - of a module without a file
    module.f.__module__ = "only_here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "only_here", module)
        with pytest.raises(ConfigError, match="cannot import what it is to run") as caught:
            list(local.map(module.f, [1]))
    assert "No module named 'only_here'" in str(caught.value.found)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_workers_are_counted(workers: Any) -> None:
    """By a whole number of one or more."""
    with pytest.raises(ConfigError, match="needs workers"):
        LocalEngine(workers)


def test_names_of_engines() -> None:
    """None is this process; others are suggested."""
    assert open_engine(None) is IN_PROCESS
    with pytest.raises(ConfigError, match="did you mean 'local'"):
        open_engine("locl")
    with pytest.raises(ConfigError, match="no engine"):
        open_engine(None, shared="folder")


def test_packing_keeps_values() -> None:
    """Tensors and arrays of any kind, views and shared ones too."""
    base = torch.arange(4096.0)
    value = {
        "half": base.half(),
        "brain": base.bfloat16(),
        "bool": base > 3,
        "view": base[1000:2000],
        "turned": base.reshape(64, 64).T,
        "weight": torch.nn.Parameter(base),
        "codes": np.arange(2000, dtype=np.int8),
        "texts": np.array(["a", "bc"] * 500),
        "none": torch.empty(0),
        "objects": np.array([None, "x"] * 600, dtype=object),
    }
    raw = pack(value)
    assert len(raw) < 90_000  # a view is not its whole storage
    found = unpack(raw)
    for name, part in value.items():
        same = torch.equal if isinstance(part, torch.Tensor) else np.array_equal
        assert same(found[name], part), name
        assert found[name].dtype == part.dtype
    found["half"] += 1
    one, two = unpack(pack([base, base]))
    assert one is two or torch.equal(one, two)


IDS = [f"i{number}" for number in range(53)]
SMALL: dict[str, Any] = {"batch_rows": 4, "part_rows": 12}


@pytest.mark.parametrize("kind", ["dataset", "iterable"])
def test_extraction_keeps_its_bytes(tmp_path: Path, kind: str, local: Engine) -> None:
    """Features of two processes are those of one, also where this one reads the images."""
    images: Any = Images()
    if kind == "iterable":
        images = [
            (torch.stack([images[row][0] for row in range(53)]), [f"i{n}" for n in range(53)])
        ]
    extract(net(), images, tmp_path / "a", **SMALL)
    extract(net(), images, tmp_path / "b", **SMALL, engine=local)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    here, there = (extract(net(), images, engine=one, **SMALL) for one in (None, local))
    assert torch.equal(here[0], there[0])  # type: ignore[index]
    assert torch.equal(here[2], there[2])  # type: ignore[index]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_extraction_survives_a_kill(tmp_path: Path, local: Engine) -> None:
    """A worker that dies with a batch is replaced, and the batch runs again."""
    extract(net(), Images(), tmp_path / "a", **SMALL)
    extract(net(), Images(tmp_path / "killed"), tmp_path / "b", **SMALL, engine=local)
    assert (tmp_path / "killed").exists()
    assert files(tmp_path / "a") == files(tmp_path / "b")


DRIVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from catwise.engines import LocalEngine
import engine_case
if __name__ == "__main__":
    with LocalEngine(2) as engine:
        for number, pid in engine.map(engine_case.later_first, range(10**6)):
            print(pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_driver(number: int) -> None:
    """Neither a kill nor Ctrl-C of the driver leaves processes behind."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(TESTS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    workers = {int(driver.stdout.readline()) for _ in range(20)}
    driver.send_signal(number)
    _, said = driver.communicate(timeout=30)
    assert driver.returncode != 0
    assert said.count("Traceback") == (number == signal.SIGINT)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def tuned_bytes(result: Any, folder: Path) -> dict[str, bytes]:
    """A run's files, but for how long it took."""
    result.summary["seconds"] = None
    write_run(result, folder)
    return files(folder)


@pytest.mark.parametrize("kind", ["many blocks", "without validation", "own features"])
def test_tuning_keeps_its_bytes(
    tmp_path: Path, kind: str, local: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of two processes is that of one, file by file."""
    task = make_task(80, 60, 1, 6, 4, known=0.5, seed=1)
    head, sides = task.head, [(part.features, part.labels) for part in (task.train, task.valid)]
    monkeypatch.setattr(tuning_rows, "BLOCK_ENTRIES", 300)
    monkeypatch.setattr(pooled_anchor, "SMALL_ENTRIES", 300)
    if kind == "without validation":
        sides = sides[:1]
    if kind == "own features":
        sides = [(np.stack([x.values, x.values * 2] * 2, 1), labels) for x, labels in sides]
    options: dict[str, Any] = {"seed": 3, "force": True, "config": DefaultConfig(n_folds=3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InSampleWarning)
        runs = [tune(head, *sides, engine=engine, **options) for engine in (None, local)]
    first, second = (tuned_bytes(run, tmp_path / str(n)) for n, run in enumerate(runs))
    assert first == second
    replaced = sum(record["status"] == "replaced" for record in runs[0].records)
    assert replaced or kind == "without validation"
    assert len({step["pooled_gain"] for step in runs[0].history}) > 2


def test_presets_that_run_here(local: Engine) -> None:
    """An engine is refused where nothing would run on it."""
    task = make_task(40, 40, 1, 4, 2, seed=1)
    train, valid = ((part.features, part.labels) for part in (task.train, task.valid))
    for options in ({"preset": "paper"}, {"validation": "select"}):
        with pytest.raises(ConfigError, match="only the preset 'default'"):
            tune(task.head, train, valid, engine=local, **options)  # type: ignore[arg-type]
