"""The fuzzer's own parts, without the library that guides it: seeds, changes, targets."""

from __future__ import annotations

import importlib.util
import random
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest

from catwise.errors import CatwiseError

BENCH = Path(__file__).parents[2] / "benches" / "fuzzing.py"


def fuzzing() -> ModuleType:
    """The bench as a module."""
    spec = importlib.util.spec_from_file_location("fuzzing_bench", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAMES = [*fuzzing().parsers(), *fuzzing().DATASETS]


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_sound(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Every target begins with files that are read, and refuses what is cut."""
    if name == "onnx":
        pytest.importorskip("onnx")
    monkeypatch.setattr(sys, "path", [*sys.path])
    target = fuzzing().target_of(name)
    seeds = list(target.seeds(tmp_path))

    def is_read(data: bytes) -> bool:
        try:
            target.run(tmp_path, data)
        except CatwiseError:
            return False
        return True

    outcomes = [is_read(seed) for seed in seeds]
    old = [True, False] * 2  # of PyTorch before 1.6, which is refused
    assert outcomes == (old if name == "pt" else [True] * len(seeds))
    assert not all(is_read(seed[: len(seed) // 2]) for seed in seeds)


def test_changes_inside_an_archive(tmp_path: Path) -> None:
    """One member is another one, and all sums fit."""
    module = fuzzing()
    seed = next(iter(module.array_seeds(".npz")(tmp_path)))
    new = module.change_zip(seed, lambda part: part + b"x", random.Random(0))
    with zipfile.ZipFile(BytesIO(seed)) as old, zipfile.ZipFile(BytesIO(new)) as changed:
        assert changed.testzip() is None
        assert old.namelist() == changed.namelist()
        differ = [name for name in old.namelist() if old.read(name) != changed.read(name)]
        assert len(differ) == 1
    assert module.target_of("npz").change is module.change_zip


def test_changes_of_a_header(tmp_path: Path) -> None:
    """The length says how long the changed header is; what follows is as it was."""
    module = fuzzing()
    seed = next(iter(module.checkpoint_seeds(".safetensors")(tmp_path)))
    for k in range(20):
        new = module.change_header(seed, lambda part: part + b" ", random.Random(k))
        size = int.from_bytes(new[:8], "little")
        old_size = int.from_bytes(seed[:8], "little")
        assert new[8 + size :] == seed[8 + old_size :]
        assert new != seed
