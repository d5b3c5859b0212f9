"""The Ray engine on a real cluster of two nodes: bytes, kills of workers, actors and the driver."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import torch

from catwise.engines import RayEngine
from catwise.errors import ConfigError, FeatureError, MissingExtraError
from catwise.features import open_store
from catwise.models.extraction import extract
from catwise.testing import make_task
from catwise.tuning import tune
from catwise.tuning.presets.default_config import DefaultConfig
from engine_case import (
    Images,
    check_kills,
    files,
    later_first,
    net,
    refuse_odd,
)

TESTS = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"batch_rows": 4, "part_rows": 12}

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")


def test_no_cluster() -> None:
    """An address where nothing answers is told at once, in a line."""
    import ray

    connected = ray.is_initialized()
    if connected:
        pytest.skip("this process is in a cluster")
    with pytest.raises(ConfigError, match=r"no Ray cluster at '127\.0\.0\.1:9'"):
        RayEngine(1, address="127.0.0.1:9").__enter__()


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray that is not installed is told with how to install it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'catwise\[ray\]'"):
        RayEngine(1)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two nodes with a CPU each, whose processes find the tests' modules."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), before)))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def engine(address: str) -> Iterator[RayEngine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with RayEngine(address=address) as engine:
        yield engine
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A worker takes a CPU for each thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def wait_for_both(engine: RayEngine) -> None:
    """Until both workers have started."""
    found, workers = engine.map(later_first, itertools.repeat(1)), set[int]()
    while len(workers) < 2:
        workers.add(next(found)[1])
        time.sleep(0.01)


def test_order_and_errors(engine: RayEngine) -> None:
    """Results in order from several processes, and the error of the first task that fails."""
    assert engine.workers == 2
    wait_for_both(engine)
    numbers, workers = zip(*engine.map(later_first, range(12)), strict=True)
    assert list(numbers) == list(range(12))
    assert len(set(workers)) == 2
    found = engine.map(refuse_odd, [0, 2, 1, 3])
    assert [next(found), next(found)] == [0, 2]
    with pytest.raises(FeatureError, match="1 is odd") as caught:
        next(found)
    assert type(caught.value) is FeatureError
    assert caught.value.remedy == "add one"


def test_extraction_keeps_its_bytes(tmp_path: Path, engine: RayEngine) -> None:
    """Also where a worker is killed with a batch."""
    extract(net(), Images(), tmp_path / "a", **SMALL)
    images = Images(tmp_path / "killed")
    extract(net(), images, tmp_path / "b", **SMALL, engine=engine)
    assert (tmp_path / "killed").exists()
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_tuning_keeps_its_bytes(engine: RayEngine) -> None:
    """The head of a run on the cluster is that of one here."""
    task = make_task(80, 60, 1, 6, 3, known=0.5, seed=1)
    sides = [(part.features, part.labels) for part in (task.train, task.valid)]
    options: dict[str, Any] = {"seed": 3, "force": True, "config": DefaultConfig(n_folds=3)}
    here, there = (tune(task.head, *sides, engine=one, **options) for one in (None, engine))
    assert torch.equal(here.head.weight, there.head.weight)
    assert here.records == there.records
    assert here.history == there.history


def test_killed_workers_and_actors_lose_nothing(tmp_path: Path, engine: RayEngine) -> None:
    """Processes that kill themselves, and an actor that the cluster ends, cost no result."""
    import ray

    check_kills(engine, tmp_path, (0, 6))
    results = engine.map(later_first, range(1, 12))
    found = [next(results)]
    ray.kill(engine._all[0].handle)
    found += results
    assert [number for number, _ in found] == list(range(1, 12))


def test_too_few_cpus(engine: RayEngine) -> None:
    """Workers that would wait for ever are refused, with what there is."""
    wait_for_both(engine)
    with pytest.raises(ConfigError, match="not so many CPUs") as caught, RayEngine(3) as more:
        list(more.map(abs, [1]))
    assert caught.value.found == "2 CPUs on 2 machines: room for 2 workers of 1 threads"
    with (
        pytest.raises(ConfigError, match="no worker could start"),
        RayEngine(1, start_seconds=0.5) as other,
    ):
        list(other.map(abs, [1]))


DRIVER = """
import sys
from catwise.engines import RayEngine
from catwise.models.extraction import extract
import engine_case, torch, time
torch.set_num_threads(1)

def slowly(progress):
    print(progress.done, flush=True)
    time.sleep(float(sys.argv[3]))

with RayEngine(2, address=sys.argv[1], shared=sys.argv[2]) as engine:
    images, out = engine_case.Images(), sys.argv[2] + "/s"
    how = {"batch_rows": 4, "part_rows": 12, "engine": engine, "progress": slowly}
    extract(engine_case.net(), images, out, **how)
"""


def test_a_killed_driver_resumes(tmp_path: Path, address: str, engine: RayEngine) -> None:
    """What it had finished is kept, nothing else is left, and the bytes are those of one run."""
    engine.end()  # its CPUs are wanted

    def driver(pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, address, str(tmp_path), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    first = driver(0.05)
    assert first.stdout is not None
    while int(first.stdout.readline()) < 28:
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert list(tmp_path.glob("s.parts/*/part-000001"))
    second = driver(0)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    assert int(said.split()[0]) >= 24
    extract(net(), Images(), tmp_path / "here", **SMALL)
    assert files(tmp_path / "s") == files(tmp_path / "here")
    assert open_store(tmp_path / "s", verify=True).shape == (53, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "s"]
