"""Tasks for engines: in a file of their own, which worker processes import, too."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from catwise.engines import Engine
from catwise.engines.base import Shared
from catwise.errors import FeatureError

N = 53


def double(number: int) -> int:
    return 2 * number


def later_first(number: int) -> tuple[int, int]:
    """The first of two tasks takes longest; with it, who did it."""
    time.sleep(0.2 if number == 0 else 0)
    return number, os.getpid()


def refuse_odd(number: int) -> int:
    """The first odd number is refused last."""
    time.sleep(0.3 if number == 1 else 0)
    if number % 2:
        raise FeatureError(f"{number} is odd.", found="odd", remedy="add one")
    return number


def rows_of(rows: Shared[Tensor], block: slice) -> Tensor:
    part = rows.value[block]
    part += 1  # stays in the worker
    return part


class Kill(NamedTuple):
    """Tasks that kill their worker once, where a file says that they have not yet."""

    folder: Path
    at: tuple[int, ...]

    def __call__(self, number: int) -> int:
        with (self.folder / "begun").open("a") as stream:
            stream.write(f"{number}\n")
        if number in self.at and not (self.folder / f"{number}").exists():
            (self.folder / f"{number}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def check_kills(engine: Engine, folder: Path, at: tuple[int, ...]) -> None:
    """Killed workers lose nothing, and results come once and in order."""
    kill = Kill(folder, at)
    assert list(engine.map(kill, range(20))) == list(range(20))
    begun = (folder / "begun").read_text().split()
    assert len(begun) == 20 + len(at)
    assert set(begun) == {str(n) for n in range(20)}


class Net(nn.Module):
    """A backbone with batch normalisation, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.stem(x)).relu().mean((2, 3)))


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


class Images(Dataset[Any]):
    """Random images with ids, made when they are asked for; one may kill who reads it, once."""

    def __init__(self, killed_by: Path | None = None) -> None:
        self.killed_by = killed_by

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> Any:
        if row == 29 and self.killed_by is not None and not self.killed_by.exists():
            self.killed_by.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        image = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(row))
        return image, f"img{row}"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
