"""Extraction against the bare backbone; memory; kills; a feature store of ten million rows.

    OMP_NUM_THREADS=1 python benches/extract.py speed [--images N] [--device cuda] [--models …]
    python benches/extract.py decoding [--laps N]
    python benches/extract.py memory [--images N]
    python benches/extract.py store [--rows N] [--features D]
    python benches/extract.py kills [--kills N] [--images N]

`speed` runs a model's own forward pass and `catwise.extract` in each way on the same images,
decoded (uint8) in memory, in turns, and asserts how near the features are; `--compile` compiles,
too. `decoding` measures what an image takes from its file to the model's input. `memory` and
`store` measure each step in a process of its own. `kills` ends `catwise extract` by SIGKILL at
random moments, lets the command run again, and asserts the bytes of an uninterrupted run. All files
are temporary.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
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
from catwise.models.ways import EXACT, choose_way, distance, processor, running

MODELS = ("resnet50", "mobilenetv2_100", "vit_small_patch16_224", "densenet121")
BATCH = 64
BARS = {"memory": 1.05}


# ------------------------------------------------------------------------------- speed


def compare_speed(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Images/s of a model's own forward pass and of extract in each way, in turns."""
    import timm

    torch.manual_seed(0)
    n, device = options.images or 512, options.device
    model = timm.create_model(name, num_classes=20).eval().to(device)
    pixels = torch.randint(0, 256, (n, 3, 224, 224), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        tasks = {"plain": lambda: bare(model, pixels, device)}
        for precision in ("exact", "fast"):
            way = choose_way(model, device, precision)
            if precision == "fast" and way.half is None:
                print(f"{name}: {' '.join(way.notes)}")
                continue
            folder = f"{place}/{precision}"
            tasks[precision] = functools.partial(ours, model, pixels, folder, precision, device)
            if options.compile:
                key = f"compiled {precision}"
                tasks[key], first = compiled(model, pixels, precision, device, stack)
                print(f"{name}, {key}: the first images take {first:.1f} s", flush=True)
        found = {key: task() for key, task in tasks.items()}  # once each, to warm up
        laps = [{key: clocked(task) for key, task in tasks.items()} for _ in range(options.laps)]
    gaps = {key: distance(found[key], found["plain"]) for key in tasks if key != "plain"}
    for key, gap in gaps.items():
        assert gap <= (EXACT if "exact" in key else 0.05), (name, key, gap)
    return {"model": name, "images": n, "batch": BATCH, "device": device, "gaps": gaps,
            "laps": laps, "load": os.getloadavg()}  # fmt: skip


def as_input(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.to(torch.float32).div_(255).sub_(0.5).div_(0.25)


def bare(model: Any, pixels: torch.Tensor, device: str) -> torch.Tensor:
    """What a plain loop does: the features of the model's own forward pass, logits and all."""
    rows: list[torch.Tensor] = []
    hook = model.get_classifier().register_forward_pre_hook(lambda _, args: rows.append(args[0]))
    with hook, torch.no_grad():
        for part in pixels.split(BATCH):
            model(as_input(part).to(device))
    return torch.cat(rows).float().cpu()


def ours(
    model: Any, pixels: torch.Tensor, folder: str, precision: Any, device: str
) -> torch.Tensor:
    """The store of `catwise.extract`, written, joined and checksummed."""
    n = len(pixels)
    store: Any = catwise.extract(
        model,
        lambda row: map(as_input, pixels[row:].split(BATCH)),
        folder,
        ids=np.arange(n),
        batch_rows=BATCH,
        resume=False,
        overwrite=True,
        precision=precision,
        device=device,
        dtype="float32",
    )
    return torch.from_numpy(store.block(0, n).copy())


def compiled(
    model: Any, pixels: torch.Tensor, precision: Any, device: str, stack: Any
) -> tuple[Any, float]:
    """The compiled pass after the first images, and how long these took."""
    way = choose_way(model, device, precision, compiled=True)
    layer = model.pretrained_cfg["classifier"]
    run = stack.enter_context(running(copy.deepcopy(model), layer, way))
    size = way.rows or BATCH

    def task() -> torch.Tensor:
        every = (part for batch in pixels.split(BATCH) for part in as_input(batch).split(size))
        return torch.cat([run(part)[0].float().cpu() for part in every])

    begun = time.perf_counter()
    run(as_input(pixels[:size]))
    return task, time.perf_counter() - begun


def clocked(task: Any) -> tuple[float, float]:
    """Seconds by the wall, and of the processor."""
    begun, used = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - begun, time.process_time() - used


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Ratios to the plain pass, the median of laps; of processor time, too, for a busy machine."""
    print(f"processor: {processor(torch.device(options.device))}")
    found = []
    for name in options.models:
        row = compare_speed(name, options)
        found.append(row)
        for key in row["laps"][0]:
            wall, busy = ([lap["plain"][at] / lap[key][at] for lap in row["laps"]] for at in (0, 1))
            seconds = statistics.median(lap[key][1] for lap in row["laps"])
            told = f"; features {row['gaps'][key]:.1e} off" if key in row["gaps"] else ""
            print(f"{name}, {key}: {row['images'] / seconds:.1f} images a processor second, "
                  f"{statistics.median(busy):.2f} x plain ({min(busy):.2f} to {max(busy):.2f}; "
                  f"by the wall {statistics.median(wall):.2f}){told}; "
                  f"load {row['load'][0]:.1f}", flush=True)  # fmt: skip
    return found


# ---------------------------------------------------------------------------- decoding


def encoded(kind: str, height: int, width: int) -> bytes:
    """An image file of made-up content with edges and texture."""
    from PIL import Image

    drawn = np.random.default_rng(0)
    coarse = drawn.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = drawn.normal(0, 6, (height, width, 1))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    raw = io.BytesIO()
    if kind == "DICOM":
        write_dicom(raw, pixels[..., 0])
    else:
        Image.fromarray(pixels).save(raw, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return raw.getvalue()


def write_dicom(raw: io.BytesIO, pixels: np.ndarray) -> None:
    """An uncompressed grey image of 12 bits."""
    from pydicom.dataset import Dataset, FileMetaDataset

    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    one.Rows, one.Columns, one.SamplesPerPixel = *pixels.shape, 1
    one.PhotometricInterpretation, one.PixelRepresentation = "MONOCHROME2", 0
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 12, 11
    one.PixelData = (pixels.astype(np.uint16) * 16).tobytes()
    one.save_as(raw, enforce_file_format=True)


def decoding(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of processor time from a file's bytes to the input of a model, by kind."""
    from catwise.models.given import GivenImages
    from catwise.models.loading import ImageRows

    found = []
    files = {
        "JPEG, 4,000 x 3,000": ("JPEG", 3000, 4000),
        "JPEG, 500 x 375": ("JPEG", 375, 500),
        "JPEG, 128 x 192": ("JPEG", 192, 128),
        "PNG, 500 x 375": ("PNG", 375, 500),
        "DICOM, 2,048 x 2,048": ("DICOM", 2048, 2048),
    }
    for label, (kind, height, width) in files.items():
        source = GivenImages([encoded(kind, height, width)])
        ways = ("full", "reduced") if kind == "JPEG" else ("full",)
        rows = {}
        for way in ways:
            rows[way] = ImageRows(source, Preprocessing((224, 224), decoding=way))
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.laps):
            for way in ways:
                begun, n = time.process_time(), 1 if height > 1000 else 20
                for _ in range(n):
                    image = rows[way][0].image
                times[way].append(1000 * (time.process_time() - begun) / n)
        row: dict[str, Any] = {way: statistics.median(laps) for way, laps in times.items()}
        if len(ways) > 1:
            pair = [rows[way][0].image for way in ways]
            row["levels"] = float((pair[0] - pair[1]).abs().mean()) * 255 * 0.226
        assert image is not None
        found.append({"file": label, **row})
        told = "; ".join(f"{way} {row[way]:.1f} ms" for way in ways)
        more = f"; {row['levels']:.2f} levels apart in the mean" if "levels" in row else ""
        print(f"{label}: {told}{more}", flush=True)
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
    parser.add_argument("what", choices=["speed", "decoding", "memory", "store", "kills"])
    parser.add_argument("--models", nargs="+", default=MODELS, help="of timm")
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="speed: compile the models, too")
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
