"""Change files step by step towards unseen code, and hold readers to catwise's own errors.

    scripts/fuzz --list                               what can be fuzzed
    scripts/fuzz npz --seconds 600                    one parser
    scripts/fuzz parsers --seconds 600                each parser of bytes
    scripts/fuzz datasets --seconds 120               each reader of a data set

Whatever the bytes, a reader reads them or raises one of the classes of `catwise.errors`: no other
exception, no hang (`HANG_SECONDS`), no more memory than `RSS_MB`. What CSV and JSON lines hold is
compared with the strict parser of `tests/properties/test_table_corruptions.py` as well.

Coverage guides the changes (atheris). Inputs begin as sound files; archives are changed inside,
with sums that fit, headers of safetensors as JSON, so that changes reach beyond the first check.
The first byte of an input says which file of a data set, or which kind of table, the rest is.

The inputs that reached new code stay in FOLDER/TARGET/corpus and are where a repeated call begins;
what is found lies in FOLDER/TARGET/found, once for each exception and line. Exit code 1 if any.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import hashlib
import importlib
import io
import json
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1] / "tests"
HANG_SECONDS = 30
RSS_MB = 4096
LARGEST = 1 << 15  # bytes of an input

#: Data sets: the reader, and what of its tests writes a small release.
DATASETS: dict[str, tuple[str, dict[str, Any]]] = {
    "celeba": ("write_release", {}),
    "chestxray14": ("write_release", {}),
    "chexpert": ("write_small", {}),
    "coco": ("content", {}),
    "lvis": ("content", {}),
    "mimic_cxr": ("write_release", {}),
    "nuswide": ("write_release", {}),
    "openimages": ("write_v3", {}),
    "vaw": ("write_vaw", {}),
    "vindr": ("write_physionet", {}),
    "visual_genome": ("write_vg", {"n": 200, "images": False}),
    "voc": ("write_voc", {}),
}


class Target(NamedTuple):
    """What is fuzzed: seeds, what an input does, and how it is changed beside byte by byte."""

    seeds: Callable[[Path], Iterator[bytes]]
    run: Callable[[Path, bytes], Any]
    change: Callable[[bytes, Callable[[bytes], bytes], random.Random], bytes] | None = None


class WrongError(Exception):
    """Something was read that is not there."""


# ----------------------------------------------------------------------------------- changes


def change_zip(data: bytes, mutate: Callable[[bytes], bytes], rng: random.Random) -> bytes:
    """Another content of one member; sums and places fit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        parts = [(info, archive.read(info)) for info in infos]
    which = rng.randrange(len(parts))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for k, (info, part) in enumerate(parts):
            archive.writestr(info, mutate(part) if k == which else part)
    return made.getvalue()


def change_header(data: bytes, mutate: Callable[[bytes], bytes], rng: random.Random) -> bytes:
    """Another JSON header of a safetensors file, its length with it."""
    (size,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + size], data[8 + size :]
    if rng.random() < 0.5:  # a number, which bytes seldom make
        text = header.decode("utf-8", "replace")
        numbers = [k for k, char in enumerate(text) if char.isdigit()]
        k = rng.choice(numbers)
        new = str(rng.choice((0, 1, 2, 7, 255, 2**31, 2**63, 2**64, -1)))
        header = (text[:k] + new + text[k + 1 :]).encode()
    else:
        header = mutate(header)
    return struct.pack("<Q", len(header)) + header + rest


# ----------------------------------------------------------------------------------- targets


def as_file(name: str, *readers: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    """An input is a whole file, which several readers take."""

    def run(folder: Path, data: bytes) -> None:
        from catwise.errors import CatwiseError

        path = folder / name
        path.write_bytes(data)
        for read in readers[:-1]:
            with contextlib.suppress(CatwiseError):
                read(path)
        readers[-1](path)  # whose error counts

    return run


def array_seeds(suffix: str) -> Callable[[Path], Iterator[bytes]]:
    def seeds(folder: Path) -> Iterator[bytes]:
        import numpy as np

        path = folder / f"seed{suffix}"
        for dtype in ("float32", "float16", "float64"):
            values = np.arange(6).reshape(3, 2).astype(dtype)
            ids = np.array(["a", "b", "ü.jpg"])
            if suffix == ".npy":
                np.save(path, values)
            else:
                save = np.savez if dtype == "float16" else np.savez_compressed
                save(path, features=values, ids=ids)
            yield path.read_bytes()

    return seeds


def checkpoint_seeds(suffix: str) -> Callable[[Path], Iterator[bytes]]:
    def seeds(folder: Path) -> Iterator[bytes]:
        import torch
        from safetensors.torch import save_file

        path = folder / f"seed{suffix}"
        tensors = {"backbone.0.weight": torch.zeros(2, 2), "fc.weight": torch.ones(3, 2),
                   "fc.bias": torch.zeros(3)}  # fmt: skip
        if suffix == ".safetensors":
            for dtype in (torch.float32, torch.bfloat16):
                save_file({k: v.to(dtype) for k, v in tensors.items()}, path, {"format": "pt"})
                yield path.read_bytes()
            return
        for content in (tensors, {"state_dict": {f"module.{k}": v for k, v in tensors.items()}}):
            for zipped in (True, False):
                torch.save(content, path, _use_new_zipfile_serialization=zipped)
                yield path.read_bytes()

    return seeds


def head_seeds(folder: Path) -> Iterator[bytes]:
    import torch

    from catwise import Head, save_head

    path = folder / "head.safetensors"
    for bias in (None, torch.zeros(2)):
        save_head(Head(torch.ones(2, 3), bias, categories=["a", "b"]), path)
        yield path.read_bytes()


def onnx_seeds(folder: Path) -> Iterator[bytes]:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    del folder
    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "fc.weight")
    bias = numpy_helper.from_array(np.zeros(3, np.float32), "fc.bias")
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight, bias])
    yield onnx.helper.make_model(graph).SerializeToString()


def manifest_seeds(folder: Path) -> Iterator[bytes]:
    import numpy as np

    from catwise.features import write_store

    write_store(folder / "seed", np.ones((3, 2), np.float32), ids=["a", "b", "c"])
    yield (folder / "seed" / "manifest.json").read_bytes()


def run_manifest(folder: Path, data: bytes) -> None:
    from catwise.features import open_store

    store = folder / "store"
    if not store.exists():  # beside the seed's own
        shutil.copytree(folder / "seed", store)
    (store / "manifest.json").write_bytes(data)
    opened = open_store(store, verify=True)
    _ = opened.ids, opened.origin


def parquet_seeds(folder: Path) -> Iterator[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"id": ["a", "b", "c"], "cat": [1.0, 0.0, None], "dog": [0, 1, 1]})
    for codec in ("none", "snappy"):
        parquet.write_table(table, folder / "seed.parquet", compression=codec)
        yield (folder / "seed.parquet").read_bytes()


def text_target(kind: str) -> Target:
    """Label tables, against the strict parser."""
    cases_of = importlib.import_module("test_table_corruptions")
    made = (cases_of.make(random.Random(f"fuzz/{k}")) for k in range(1000))
    texts = kind == "csv"

    def is_good(case: Any) -> bool:
        with contextlib.suppress(cases_of.RefusalError):
            cases_of.STRICT[case.kind](case.data, case)
            return (case.suffix in (".csv", ".tsv")) == texts
        return False

    cases = [case for case in made if is_good(case)][:64]

    def seeds(_: Path) -> Iterator[bytes]:
        for k, case in enumerate(cases):
            yield bytes([k]) + case.data

    def run(folder: Path, data: bytes) -> None:
        from catwise.errors import LabelError

        case = cases[data[0] % len(cases)] if data else cases[0]
        found = cases_of.verdict(folder / f"labels{case.suffix}", case, data[1:])
        if found == "refused":
            raise LabelError("refused")  # counted as such
        if found != "same":
            raise WrongError(f"{case.kind}: {found}")

    return Target(seeds, run)


def dataset_target(name: str, only: str = "", **options: str) -> Target:
    """A small release of which one file is changed."""
    tests = importlib.import_module(f"test_{name}")
    reader = getattr(importlib.import_module(f"catwise.data.readers.{name}"), f"read_{name}")
    read = functools.partial(reader, **options)
    made = Path(tempfile.mkdtemp(prefix="catwise-fuzz-"))
    make, how = DATASETS[name]
    if make == "content":
        for split in ("train", "val"):
            (made / "annotations").mkdir(exist_ok=True)
            content = tests.content(getattr(tests, split.upper()))
            tests.write(made, content, split)
        root = made
    else:
        root = getattr(tests, make)(made, **how) or made
    root = root if root.is_dir() else made
    suffixes = {only} if only else {".csv", ".json", ".txt", ".xml", ".lst", ""}
    files = sorted(p for p in made.rglob("*") if p.is_file() and p.suffix in suffixes)
    files = [path for path in files if path.stat().st_size]
    sound = [path.read_bytes() for path in files]

    def seeds(_: Path) -> Iterator[bytes]:
        read(root)  # or there is nothing to change
        for k, content in enumerate(sound):
            yield bytes([k]) + content

    def run(_: Path, data: bytes) -> None:
        k = data[0] % len(files) if data else 0
        files[k].write_bytes(data[1:])
        try:
            read(root)
        finally:
            files[k].write_bytes(sound[k])

    return Target(seeds, run)


def parsers() -> dict[str, Callable[[], Target]]:
    """The parsers of bytes; what they import is imported when one is run."""

    def features(path: Path) -> None:
        from catwise import read_features

        read_features(path)

    def head(path: Path) -> None:
        from catwise.heads import read_head

        read_head(path)

    def heads(path: Path) -> None:
        from catwise.heads import list_heads

        list_heads(path)

    def saved(path: Path) -> None:
        from catwise.heads import load_head

        load_head(path)

    def graph(path: Path) -> None:
        from catwise.models.registry import load_model

        load_model(f"onnx:{path}")

    def table(path: Path) -> None:
        from catwise.data import read_label_table

        read_label_table(path, encoding="nan", id_column="id")

    safetensors = as_file("x.safetensors", features, heads, head)
    return {
        "npy": lambda: Target(array_seeds(".npy"), as_file("x.npy", features)),
        "npz": lambda: Target(array_seeds(".npz"), as_file("x.npz", features), change_zip),
        "safetensors": lambda: Target(checkpoint_seeds(".safetensors"), safetensors, change_header),
        "pt": lambda: Target(checkpoint_seeds(".pt"), as_file("x.pt", heads, head), change_zip),
        "onnx": lambda: Target(onnx_seeds, as_file("x.onnx", graph)),
        "manifest": lambda: Target(manifest_seeds, run_manifest),
        "saved_head": lambda: Target(head_seeds, as_file("x.safetensors", saved), change_header),
        "csv": lambda: text_target("csv"),
        "jsonl": lambda: text_target("jsonl"),
        "coco_json": lambda: dataset_target("coco", ".json"),
        "voc_xml": lambda: dataset_target("voc", ".xml", source="annotations"),
        "parquet": lambda: Target(parquet_seeds, as_file("x.parquet", table)),
    }


def target_of(name: str) -> Target:
    sys.path[:0] = [str(TESTS), str(TESTS / "properties"), str(TESTS / "unit" / "readers")]
    return parsers()[name]() if name in parsers() else dataset_target(name)


# -------------------------------------------------------------------------------------- runs


def place_of(error: BaseException) -> str:
    """The innermost line of catwise that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "/catwise/" in frame.filename] or frames
    return f"{Path(inside[-1].filename).name}:{inside[-1].lineno}"


class Session:
    """One target's inputs: what becomes of each, and what is found."""

    def __init__(self, target: Target, folder: Path, work: Path, good: type[Exception]) -> None:
        self.target, self.folder, self.work, self.good = target, folder, work, good
        self.counted: Counter[str] = Counter()
        self.started = self.last = time.monotonic()

    def one(self, data: bytes) -> None:
        """Read an input."""
        (self.folder / "current").write_bytes(data)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            self.target.run(self.work, data)
            outcome = "read"
        except self.good:
            outcome = "refused"
        except Exception as error:  # noqa: BLE001 - what is looked for
            outcome = "wrong"
            self.keep(data, error)
        faulthandler.cancel_dump_traceback_later()
        self.counted.update(("tried", outcome))
        if time.monotonic() - self.last > 1 or self.counted["tried"] < 10:
            self.last = time.monotonic()
            document = dict(self.counted) | {"seconds": round(self.last - self.started)}
            (self.folder / "counts.json").write_text(json.dumps(document), encoding="utf-8")

    def keep(self, data: bytes, error: Exception) -> None:
        """The first input of each exception and line."""
        place = self.folder / "found" / f"{type(error).__name__}-{place_of(error)}"
        if not place.exists():
            place.write_bytes(data)
            text = "".join(traceback.format_exception(error))
            place.with_name(f"{place.name}.txt").write_text(text, encoding="utf-8")

    def change(self, data: bytes, largest: int, seed: int) -> bytes:
        """Another input."""
        import atheris

        def mutate(part: bytes) -> bytes:
            return bytes(atheris.Mutate(bytes(part), max(len(part) + 64, 64)))

        rng = random.Random(seed)
        if self.target.change and rng.random() < 0.8:
            # what is no longer an archive is changed byte by byte
            with contextlib.suppress(Exception):
                new = self.target.change(data, mutate, rng)
                if 0 < len(new) <= largest:
                    return new
        return bytes(atheris.Mutate(data, largest))


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    importlib.import_module("torch")
    work = Path(tempfile.mkdtemp(prefix="catwise-fuzz-", dir=shm()))
    with atheris.instrument_imports(include=["catwise"]):
        for module in ("catwise", "catwise.heads", "catwise.data.readers", "catwise.features"):
            importlib.import_module(module)
        target = target_of(name)
        good = importlib.import_module("catwise.errors").CatwiseError
        session = Session(target, folder, work, good)
        seeds = list(target.seeds(work))
        for seed in seeds:  # what they import on first use is instrumented too
            with contextlib.suppress(good):
                target.run(work, seed)
    warnings.simplefilter("ignore")
    corpus, found = folder / "corpus", folder / "found"
    for path in (corpus, found):
        path.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    arguments = [
        sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-timeout=300",
        f"-rss_limit_mb={RSS_MB}", f"-max_len={LARGEST}", f"-artifact_prefix={found}/",
        "-print_final_stats=0", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup(arguments, session.one, custom_mutator=session.change)
    atheris.Fuzz()


def shm() -> str | None:
    """Memory as a folder, where the system has it."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


def run_one(name: str, folder: Path, seconds: int) -> bool:
    """Fuzz in a process of its own; whether nothing was found."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "counts.json").unlink(missing_ok=True)
    command = [sys.executable, __file__, name, "--seconds", str(seconds), "--folder", str(folder)]
    with (place / "log.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run([*command, "--child"], check=False, stdout=log, stderr=log)
    counts = (
        Counter(json.loads((place / "counts.json").read_text(encoding="utf-8")))
        if (place / "counts.json").exists()
        else Counter()
    )
    if done.returncode:
        counts["wrong"] += 1
        if not (place / "current").exists():
            sys.exit(f"{name} cannot begin:\n{(place / 'log.txt').read_text(encoding='utf-8')}")
        shutil.copy(place / "current", place / "found" / f"exit-{done.returncode}")
    line = {"target": name, "seconds": counts["seconds"], "tried": counts["tried"],
            "read": counts["read"], "refused": counts["refused"], "wrong": counts["wrong"],
            "exit": done.returncode}  # fmt: skip
    with (folder / "runs.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
    print(
        f"{name:<14} {line['tried']:>9,} tried, {line['read']:,} read, "
        f"{line['refused']:,} refused, {line['wrong']:,} wrong in "
        f"{line['seconds']} s (exit code {done.returncode})",
        flush=True,
    )
    return not line["wrong"]


def main() -> None:
    names = {"parsers": list(parsers()), "datasets": list(DATASETS)}
    known = [*names["parsers"], *names["datasets"]]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="or: parsers, datasets")
    parser.add_argument("--seconds", type=int, default=600, help="of each target")
    parser.add_argument("--folder", type=Path, default=Path(".venv-fuzz-corpus"))
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    targets = [one for name in options.targets for one in names.get(name, [name])]
    if unknown := sorted({*targets} - {*known}):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    if options.list or not targets:
        print("\n".join(f"{kind}: {' '.join(names[kind])}" for kind in names))
        return
    if options.child:
        fuzz(targets[0], options.folder / targets[0], options.seconds)
        return
    sound = [run_one(name, options.folder, options.seconds) for name in targets]
    sys.exit(not all(sound))


if __name__ == "__main__":
    main()
