"""A bound of memory: it holds for tuning, changes rounding alone, or is refused with what works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import catwise
from catwise._configs import FixConfig, memory_bytes
from catwise.engines import LocalEngine
from catwise.errors import ConfigError
from catwise.testing import make_task
from catwise.tuning.rows.tuning_rows import BLOCK_ENTRIES
from tuning_case import QUICK, SMALL

CHILD = """
import resource, sys
from pathlib import Path
import numpy as np, catwise
from catwise.tuning.presets.default_config import DefaultConfig
rng = np.random.default_rng(0)
weight = rng.normal(size=(200, 8)).astype(np.float32)
def part(n):
    z = rng.normal(size=(n, 8)).astype(np.float32)
    known = rng.random((n, 200), dtype=np.float32) < 0.4
    codes = np.where(known, z @ weight.T > 1, -1).astype(np.int8)
    return z, catwise.PartialLabels(codes)
noise = 0.3 * rng.normal(size=weight.shape).astype(np.float32)
head = catwise.Head(weight + noise, np.zeros(200, np.float32))
train, valid = part(9000), part(3000)
config = DefaultConfig(penalties=(2.5,), n_folds=2, refinements={})
memory = int(sys.argv[1]) << 20 if sys.argv[1:] else None
held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
Path("/proc/self/clear_refs").write_text("5")
catwise.tune(head, train, valid, config=config, memory=memory, force=True)
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) * 1024 - held >> 20)
"""


def peak(*given: str) -> int:
    """MiB that tuning holds at most beyond what the process held before, in one of its own."""
    given_env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", CHILD, *given]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=given_env)
    return int(done.stdout)


def writable() -> bool:
    """Whether this system can start to measure the peak anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not writable(), reason="needs /proc/self/clear_refs, as Linux has it")
def test_the_bound_holds() -> None:
    """Measured: without it more is held."""
    assert peak("200") <= 200 < peak()


def test_smaller_blocks_change_rounding_alone() -> None:
    """The least that works is named where a bound is refused, and works: a category at a time."""
    task = make_task(300, 200, 200, 16, 6, known=0.5, known_valid=0.8, seed=3)
    pairs = task.train.pair, task.valid.pair
    with pytest.raises(ConfigError, match="does not fit") as error:
        catwise.tune(task.head, *pairs, memory=1000, config=SMALL)
    least = re.search(r"at least memory=(\w+)", str(error.value))
    assert least is not None
    memory = memory_bytes(least[1])
    assert memory is not None
    one = catwise.tune(task.head, *pairs, config=SMALL)
    two = catwise.tune(task.head, *pairs, memory=memory, config=SMALL)
    assert "block_entries" not in one.config
    assert 500 <= two.config["block_entries"] < BLOCK_ENTRIES
    torch.testing.assert_close(two.head.weight, one.head.weight, rtol=2e-3, atol=2e-3)
    assert [r["status"] for r in two.records] == [r["status"] for r in one.records]


def test_what_is_refused() -> None:
    """Texts that are no number of bytes, and the preset that knows no blocks."""
    task = make_task(60, 60, 8, 4, 2, seed=0)
    pairs = task.train.pair, task.valid.pair
    with pytest.raises(ConfigError, match="for the preset 'default' alone"):
        catwise.tune(task.head, *pairs, preset="paper", config=QUICK, memory=1 << 30)
    with LocalEngine(1) as engine, pytest.raises(ConfigError, match="is of one process"):
        catwise.tune(task.head, *pairs, engine=engine, memory=1 << 30)
    for text in ("", "much", "-1GB", "0", "1.2.3MB", "8XB"):
        with pytest.raises(ConfigError, match="not a number of bytes"):
            FixConfig(memory=text)
    assert FixConfig(memory="1.5 GiB").tuning()["memory"] == 3 << 29
    assert "memory" not in FixConfig().tuning()
