"""Reading rows block by block: what a mapped file leaves in memory, and what it keeps."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from catwise.features.blocks import forget, iterate_blocks
from catwise.tuning.rows.products import squared


def resident(rows: np.ndarray) -> int:
    """Bytes of this process that a mapped array holds."""
    start = rows.__array_interface__["data"][0]
    for part in Path("/proc/self/smaps").read_text().split("VmFlags")[:-1]:
        lines = part.splitlines()
        head = next(line for line in lines if "-" in line.split(" ")[0] and ":" in line)
        low, high = (int(end, 16) for end in head.split(" ")[0].split("-"))
        if low <= start < high:
            return 1024 * int(next(line for line in lines if line.startswith("Rss")).split()[1])
    raise AssertionError("not mapped")


@pytest.mark.skipif(
    not (Path("/proc/self/smaps").exists() and hasattr(mmap, "MADV_DONTNEED")),
    reason="the system does not tell what a mapping holds",
)
def test_mapped_rows_do_not_stay_in_memory(tmp_path: Path) -> None:
    """Reading a float16 map block by block holds a block of it, and gives the same rows."""
    values = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float16)
    np.save(tmp_path / "z.npy", values)
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    assert float(mapped.sum(dtype=np.float64)) != 0
    assert resident(mapped) > values.nbytes // 2
    rows = torch.cat([block for _, block in iterate_blocks(mapped)])
    assert resident(mapped) < values.nbytes // 10
    assert torch.equal(rows, torch.from_numpy(values).float())
    assert np.array_equal(mapped, values)


def test_a_private_copy_keeps_what_was_changed(tmp_path: Path) -> None:
    """Values that were written to a copy-on-write map are not read from the file again."""
    np.save(tmp_path / "z.npy", np.zeros((8, 2), dtype=np.float32))
    mapped = np.load(tmp_path / "z.npy", mmap_mode="c")
    mapped[3] = 7
    ((_, rows),) = iterate_blocks(mapped)
    assert rows[3].tolist() == [7, 7]
    forget(mapped)
    assert mapped[3].tolist() == [7, 7]
    forget(np.zeros(3))


@pytest.mark.parametrize("shape", [(5, 3), (3_000_000, 3), (4, 0)])
def test_sums_of_squares(shape: tuple[int, int]) -> None:
    """A few columns at a time give what all at once give."""
    rows = torch.arange(shape[0] * shape[1], dtype=torch.float32).view(shape) % 3
    found = torch.cat([part.sum(0, keepdim=True) for part in squared(rows)], 1)
    assert torch.equal(found, rows.square().sum(0, keepdim=True))
