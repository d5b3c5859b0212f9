"""What engines cost and gain: time a task, and the speed-up of Ray beside that of plain processes.

    python benches/engines.py [--workers 2] [--laps 5] [--address HOST:PORT]

Laps of one process, of `LocalEngine` and of `RayEngine` follow one another, so that a busy machine
is as busy for all; the load average is printed. An engine is started before its first lap and
warmed up. Work: empty tasks; matrix products of about 0.1 s each; images through a small
convolutional model. "CPU" is processor time of this process and of all workers, in s a lap.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from catwise.engines import IN_PROCESS, Engine, LocalEngine, RayEngine
from catwise.models.extraction import extract

sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # what actors import from


def nothing(number: int) -> int:
    return number


def products(times: int, number: int) -> float:
    """Products of matrices, one thread."""
    a = torch.full((256, 256), 1.0 + number)
    for _ in range(times):
        a = (a @ a).clamp(-1, 1)
    return float(a.sum())


def cpu_seconds(_: int) -> tuple[int, float]:
    """Of a worker, with its number; a little sleep, so that all are asked."""
    time.sleep(0.05)
    return os.getpid(), time.process_time()


class Images(Dataset[Any]):
    """Made-up images."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> Any:
        return torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(row)), str(row)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.Conv2d(after, after, 3, 1, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 20))


def run_tasks(function: Callable[[int], Any], n: int, engine: Engine) -> None:
    for _ in engine.map(function, range(n)):
        pass


def run_images(model: nn.Module, images: Images, engine: Engine) -> None:
    extract(model, images, batch_rows=32, engine=engine)


def spent(engine: Engine) -> float:
    """CPU seconds so far, of this process and of the engine's workers."""
    here = time.process_time()
    if engine is IN_PROCESS:
        return here
    found: dict[int, float] = {}
    while len(found) < engine.workers:
        found |= dict(engine.map(cpu_seconds, range(2 * engine.workers)))
    return here + sum(found.values())


def laps(
    work: Callable[[Engine], None], engines: dict[str, Engine], n: int
) -> dict[str, tuple[float, float, list[float]]]:
    """Median wall and CPU seconds of each engine, and the wall seconds of all laps."""
    wall: dict[str, list[float]] = {name: [] for name in engines}
    cpu: dict[str, list[float]] = {name: [] for name in engines}
    for lap in range(n + 1):
        for name, engine in engines.items():
            before, began = spent(engine), time.perf_counter()
            work(engine)
            took = time.perf_counter() - began
            if lap:  # the first warms up
                wall[name].append(took)
                cpu[name].append(spent(engine) - before)
    return {k: (statistics.median(wall[k]), statistics.median(cpu[k]), wall[k]) for k in engines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--address")
    parser.add_argument("--images", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, images = network(), Images(given.images)
    works: dict[str, tuple[Callable[[Engine], None], int]] = {
        "2,000 empty tasks": (partial(run_tasks, nothing, 2_000), 2_000),
        "40 tasks of products": (partial(run_tasks, partial(products, 100), 40), 40),
        f"{given.images} images": (partial(run_images, model, images), given.images // 32),
    }
    with (
        LocalEngine(given.workers) as local,
        RayEngine(given.workers, address=given.address) as ray,
    ):
        engines = {"one process": IN_PROCESS, "local": local, "ray": ray}
        load = os.getloadavg()[0]
        print(f"{os.cpu_count()} CPUs, {given.workers} workers of one thread, load {load:.1f}")
        for title, (work, n_tasks) in works.items():
            found = laps(work, engines, given.laps)
            print(f"\n{title} (median of {given.laps} laps; load {os.getloadavg()[0]:.1f})")
            for name, (wall, cpu, every) in found.items():
                ratios = [b / a for a, b in zip(every, found["one process"][2], strict=True)]
                print(
                    f"  {name:12} {wall:7.3f} s  CPU {cpu:7.3f} s  "
                    f"{1e3 * wall / n_tasks:8.2f} ms a task  "
                    f"speed-up {statistics.median(ratios):5.2f}"
                )
            pairs = zip(found["local"][2], found["ray"][2], strict=True)
            print(f"  ray's speed-up / local's: {statistics.median([a / b for a, b in pairs]):.2f}")


if __name__ == "__main__":
    from engines import main as run  # this file as a module, which workers can import

    run()
