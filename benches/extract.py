"""Extraction against the bare backbone; memory; kills; a feature store of ten million rows.

    OMP_NUM_THREADS=1 python benches/extract.py speed [--images N] [--device cuda] [--models …]
    python benches/extract.py memory [--images N]
    python benches/extract.py store [--rows N] [--features D]
    python benches/extract.py kills [--kills N] [--images N]

`speed` runs a model's own forward pass and `catwise.extract` on the same tensors in memory, in
turns, and asserts that the features are the same. `memory` and `store` measure each step in a
process of its own. `kills` ends `catwise extract` by SIGKILL at random moments, lets the command
run again, and asserts the bytes of an uninterrupted run. All files are temporary.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import catwise
from catwise.features import append_store, store_writer
from catwise.models import LoadedModel, Preprocessing

MODELS = ("mobilenetv2_035", "resnet50")
BATCH = 64
BARS = {"speed": 0.9, "memory": 1.05}


# ------------------------------------------------------------------------------- speed


def compare_speed(name: str, n: int, laps: int, device: str) -> dict[str, Any]:
    """Images/s of the model's own forward pass and of extract, on the same batches, in turns."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=20).eval().to(device)
    images = torch.rand(n, 3, 224, 224)
    kind = torch.device(device).type
    half = torch.float16 if kind == "cuda" else None

    def bare() -> None:
        with torch.no_grad(), torch.autocast(kind, half, enabled=bool(half)):
            for part in images.split(BATCH):
                model(part.to(device, non_blocking=True))
        if half:
            torch.cuda.synchronize()

    def ours() -> None:
        found: Any = catwise.extract(model, lambda row: images[row:].split(BATCH), folder,
                                     ids=np.arange(n), batch_rows=BATCH, resume=False,
                                     overwrite=True)  # fmt: skip
        stores.append(found)

    stores: list[Any] = []
    bare()
    with tempfile.TemporaryDirectory() as place:
        folder = f"{place}/store"
        turns = [(clocked(bare), clocked(ours)) for _ in range(laps)]
        check_features(model, images, stores[-1], kind, half)
    wall, busy = ([own[at] / our[at] for own, our in turns] for at in (0, 1))
    own, our = (n / min(turn[at][0] for turn in turns) for at in (0, 1))
    return {"model": name, "images": n, "batch": BATCH, "device": device, "bare": own,
            "extract": our, "ratio": statistics.median(wall), "ratios": wall,
            "processor": statistics.median(busy)}  # fmt: skip


def clocked(task: Any) -> tuple[float, float]:
    """Seconds by the wall, and of the processor."""
    begun, used = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - begun, time.process_time() - used


def check_features(model: Any, images: Any, store: Any, kind: str, half: Any) -> None:
    """The store holds what timm itself calls the features before the logits."""
    with torch.no_grad(), torch.autocast(kind, half, enabled=bool(half)):
        first = model.forward_features(images[:BATCH].to(kind))
        own = model.forward_head(first, pre_logits=True).half().cpu().numpy()
    np.testing.assert_array_equal(store.block(0, BATCH), own)
    assert store.shape == (len(images), own.shape[1])


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for name in options.models:
        n = options.images or (2048 if "mobile" in name else 512)
        row = compare_speed(name, n, options.laps, options.device)
        found.append(row)
        told = f"laps {' '.join(f'{ratio:.3f}' for ratio in row['ratios'])}; bar {BARS['speed']}"
        print(f"{name}: best laps: bare {row['bare']:.1f} images/s, extract {row['extract']:.1f}; "
              f"median of the ratios {row['ratio']:.3f} ({told}); of processor time "
              f"{row['processor']:.3f}", flush=True)  # fmt: skip
    return found


# ------------------------------------------------------------------------- a tiny model


def tiny() -> LoadedModel:
    """What `kills` and `memory` run: fast, so that all else shows."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(*parts, nn.Linear(16, 5))
    return LoadedModel("tiny", module, "4", Preprocessing((24, 24), (0.5,) * 3, (0.5,) * 3))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(*arguments: object) -> dict[str, Any]:
    """Run a step of this file in a process of its own."""
    line = [sys.executable, __file__, "step", *map(str, arguments)]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


# ------------------------------------------------------------------------------ memory


def step_memory(n: int, folder: str) -> dict[str, Any]:
    """Extract n made-up images, whose ids come with the batches."""
    images = torch.rand(1024, 3, 24, 24)

    def batches(row: int) -> Any:
        for start in range(row, n, 1024):
            size = min(1024, n - start)
            yield images[:size], [f"folder/{at:012d}.jpg" for at in range(start, start + size)]

    before = peak()
    begun = time.perf_counter()
    store: Any = catwise.extract(tiny(), batches, folder, batch_rows=1024)
    seconds = time.perf_counter() - begun
    assert store.shape == (n, 16)
    return {"images": n, "before": before, "peak": peak(), "seconds": seconds}


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for n in (options.images or 100_000, 4 * (options.images or 100_000)):
        with tempfile.TemporaryDirectory() as folder:
            found.append(alone("memory", n, f"{folder}/store"))
        row = found[-1]
        print(f"{n:,} images: peak {row['peak']:,.0f} MiB, of which {row['before']:,.0f} before; "
              f"{row['seconds']:.0f} s", flush=True)  # fmt: skip
    grown = found[1]["peak"] / found[0]["peak"]
    print(f"peak at 4 N / peak at N: {grown:.3f} (bar {BARS['memory']})")
    return found


# ------------------------------------------------------------------------------- store


def rows_of(start: int, stop: int, width: int) -> np.ndarray:
    """Made-up features that any row's number tells."""
    numbers = np.arange(start, stop, dtype=np.int64)[:, None] * 31 + np.arange(width)
    return (numbers % 2000 / 1000 - 1).astype(np.float16)


def step_store(what: str, path: str, n: int, width: int) -> dict[str, Any]:
    """One thing that is done with a store."""
    before = peak()
    begun = time.perf_counter()
    if what == "write":
        with store_writer(path, dtype="float16") as writer:
            for start in range(0, n, 65_536):
                stop = min(start + 65_536, n)
                ids = [f"images/{at:010d}.jpg" for at in range(start, stop)]
                writer.write(rows_of(start, stop, width), ids=ids)
    elif what == "append":
        ids = [f"more/{at:010d}.jpg" for at in range(n // 100)]
        append_store(path, rows_of(n, n + n // 100, width), ids=ids)
    else:
        read_store(what, path, n, width)
    return {"step": what, "seconds": time.perf_counter() - begun,
            "before": before, "peak": peak()}  # fmt: skip


def read_store(what: str, path: str, n: int, width: int) -> None:
    store = catwise.open_store(path)
    if what == "verify":
        store.verify()
    elif what == "blocks":
        total = 0.0
        for at in range(0, len(store), 4096):
            total += float(store.block(at, at + 4096).sum(dtype=np.float32))
        assert np.isfinite(total)
    elif what == "known rows":
        known = np.unique(np.random.default_rng(0).integers(0, n, n // 100))
        got = store.rows(known)
        some = known[:: len(known) // 50]
        expected = np.concatenate([rows_of(row, row + 1, width) for row in some])
        np.testing.assert_array_equal(got[:: len(known) // 50], expected)
    elif what == "ids":
        assert store.ids is not None
        assert store.ids[n - 1] == f"images/{n - 1:010d}.jpg"


def store(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    n, width = options.rows, options.features
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/store"
        for what in ("write", "open", "verify", "blocks", "known rows", "ids", "append"):
            found.append(alone("store", what, path, n, width))
            row = found[-1]
            print(f"{n:,} x {width}, {what}: {row['seconds']:.2f} s, peak {row['peak']:,.0f} MiB "
                  f"({row['before']:,.0f} before)", flush=True)  # fmt: skip
    return found


# ------------------------------------------------------------------------------- kills


def make_shard(path: Path, n: int) -> None:
    """A tar shard of n small images."""
    from PIL import Image

    drawn = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for row in range(n):
            raw = io.BytesIO()
            image = drawn.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(image).save(raw, "PNG", compress_level=0)
            info = tarfile.TarInfo(f"{row:06d}.png")
            info.size = raw.tell()
            raw.seek(0)
            archive.addfile(info, raw)


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Kill one run after another at a moment drawn over the time that a whole run takes."""
    draw = random.Random(0)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        make_shard(Path(folder, "images.tar"), options.images or 14_000)

        def line(out: str) -> list[str]:
            model = ["--model", "python:extract:tiny", "--images", f"{folder}/images.tar"]
            out = f"{folder}/{out}"
            return [sys.executable, "-m", "catwise", "extract", *model, "--out", out, "-q"]

        begun = time.perf_counter()
        subprocess.run(line("whole"), check=True, env=env)
        seconds = time.perf_counter() - begun
        expected = contents(Path(folder, "whole"))
        number = killed = states = 0
        while killed < options.kills:
            number += 1
            out = f"run{number}"
            process = subprocess.Popen(line(out), env=env)
            time.sleep(draw.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
            ended = process.wait() == -signal.SIGKILL
            killed += ended
            states += ended and any(Path(folder).glob(f"{out}.parts/*/part-*"))
            subprocess.run(line(out), check=True, env=env)
            assert contents(Path(folder, out)) == expected, out
            left = sorted(path.name for path in Path(folder).glob(f"{out}*"))
            assert left == [out], left
        print(f"{killed} of {number} runs of about {seconds:.0f} s were killed, {states} of them "
              "with finished parts; all went on to the uninterrupted run's bytes")  # fmt: skip
    return {"kills": killed, "runs": number, "with parts": states, "seconds": seconds}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# -------------------------------------------------------------------------------- main


def main() -> None:
    if sys.argv[1:2] == ["step"]:
        kind, *rest = sys.argv[2:]
        if kind == "memory":
            print(json.dumps(step_memory(int(rest[0]), rest[1])))
        else:
            print(json.dumps(step_store(rest[0], rest[1], int(rest[2]), int(rest[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory", "store", "kills"])
    parser.add_argument("--models", nargs="+", default=MODELS, help="of timm")
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} thread(s), {options.device}")  # fmt: skip
    found = globals()[options.what](options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
