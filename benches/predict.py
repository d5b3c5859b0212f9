"""`predict` against `extract` on the same images; exported graphs; memory.

    export OMP_NUM_THREADS=1
    python benches/predict.py speed --images DIR --checkpoint FILE [--n N] [--laps N]
    python benches/predict.py export --images DIR --checkpoint FILE --labels CSV
    python benches/predict.py memory [--rows N]

The model is timm's mobilenetv2_035 with 22 categories, on film posters of 128 x 192 pixels. `speed`
runs `extract`, which writes a store, and `write_predictions`, which writes a file of each format,
on the same images, in turns. Asserted: probabilities and decisions are those of the head on the
features. `export` runs 1,000 images through the exported graphs. `memory` measures each size in a
process of its own. All files are temporary.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import catwise
from catwise.decisions import Calibration, CategoryCalibration, Thresholds, threshold
from catwise.decisions.maps import fit_isotonic, fit_venn_abers
from catwise.features import store_writer
from catwise.models import LoadedModel, Preprocessing
from catwise.models.loading import ImageRows
from catwise.models.registry import load_model
from catwise.models.sources import FolderImages
from catwise.predicting import Classifier, load_classifier, save_classifier, write_predictions

BAR = 0.95
NEAR = 1e-5
BATCH = 64
HALF = (0.5, 0.5, 0.5)
FORMATS = ("csv", "parquet", "jsonl")


def poster_model(checkpoint: Path) -> LoadedModel:
    """The model of the posters, and its input."""
    args = {"pad_type": "same", "bn_eps": 1e-3}
    loaded = load_model("timm:mobilenetv2_035", checkpoint=checkpoint, model_args=args)
    loaded.preprocessing = Preprocessing((192, 128), HALF, HALF)
    return loaded


def made_up_rules(logits: torch.Tensor, names: tuple[str, ...]) -> tuple[Calibration, Thresholds]:
    """An affine calibration and thresholds of labels that the logits themselves give."""
    drawn = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    positive = (drawn < torch.sigmoid(logits)).numpy().astype(np.int8)
    labels = catwise.PartialLabels(positive, categories=names)
    maps = catwise.calibrate(logits, labels)
    return maps, threshold(logits, labels, calibration=maps)


# ------------------------------------------------------------------------------- speed


def clocked(task: Any) -> tuple[float, float]:
    """Seconds by the wall, and of the processor."""
    begun, used = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - begun, time.process_time() - used


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    model = poster_model(options.checkpoint)
    every = FolderImages.scan(options.images)
    source = FolderImages(options.images, every.ids[: options.n].tolist())
    with tempfile.TemporaryDirectory() as folder:
        some = range(min(512, len(source)))
        first: Any = catwise.extract(model, ImageRows(source, model.preprocessing, rows=some))
        assert model.head is not None
        maps, cuts = made_up_rules(first.logits, model.head.categories)
        save_classifier(model, f"{folder}/made", calibration=maps, thresholds=cuts)
        classifier = load_classifier(f"{folder}/made")
        assert classifier.model is not None  # loaded and checked before the clock runs

        def extracted() -> None:
            catwise.extract(classifier.model, source, f"{folder}/store", batch_rows=BATCH,
                            resume=False, overwrite=True)  # fmt: skip

        def predicted(kind: str) -> None:
            write_predictions(classifier, source, f"{folder}/said.{kind}", batch_rows=BATCH,
                              resume=False, overwrite=True)  # fmt: skip

        tasks = {"extract": extracted} | {kind: partial(predicted, kind) for kind in FORMATS}
        turns = []
        for lap in range(options.laps):  # each goes first as often
            order = [*tasks][lap % len(tasks) :] + [*tasks][: lap % len(tasks)]
            turns.append({name: clocked(tasks[name]) for name in order})
        for kind in FORMATS:
            check_rows(classifier, Path(folder, "store"), Path(folder, f"said.{kind}"))
    return [told(kind, turns, len(source)) for kind in FORMATS]


def told(kind: str, turns: list[dict[str, tuple[float, float]]], n: int) -> dict[str, Any]:
    """The ratios of one format's laps to those of extract."""
    wall, busy = ([turn["extract"][at] / turn[kind][at] for turn in turns] for at in (0, 1))
    own, our = (n / min(turn[name][0] for turn in turns) for name in ("extract", kind))
    laps = " ".join(f"{ratio:.3f}" for ratio in wall)
    print(f"{kind}: best laps: extract {own:.1f} images/s, predict {our:.1f}; median of the ratios "
          f"{statistics.median(wall):.3f} (laps {laps}; bar {BAR}); of processor time "
          f"{statistics.median(busy):.3f}", flush=True)  # fmt: skip
    return {"format": kind, "images": n, "extract": own, "predict": our,
            "ratio": statistics.median(wall), "ratios": wall,
            "processor": statistics.median(busy)}  # fmt: skip


def check_rows(classifier: Classifier, store: Path, out: Path) -> None:
    """Ids are those of the store; probabilities and decisions those of the head on its features."""
    features = catwise.open_store(store)
    assert features.ids is not None
    rows = read_rows(out, classifier.categories)
    assert list(rows) == features.ids.tolist()
    logits = classifier.head.logits(features.block(0, len(features)).astype(np.float32))
    wanted = classifier.rules.decide(logits)
    found = np.array([[one[0] for one in row] for row in rows.values()])
    np.testing.assert_allclose(found, wanted.probabilities, atol=5e-3)  # float16 features
    decided = np.array([[one[1] for one in row] for row in rows.values()])
    clear = np.abs(logits.numpy() - classifier.rules.thresholds) > 0.02
    np.testing.assert_array_equal(decided[clear], wanted.decisions[clear])


def read_rows(path: Path, names: tuple[str, ...]) -> dict[str, list[tuple[float, int]]]:
    """Id → probability and decision of each category; -1 without one."""
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        every = {one["id"]: [one["categories"][name] for name in names] for one in records}
        return {
            key: [(one["probability"], code(one["decision"])) for one in row]
            for key, row in every.items()
        }
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as stream:
            table: list[Any] = list(csv.DictReader(stream))
    else:
        table = pq.read_table(path).to_pylist()
    return {
        row["id"]: [
            (float(row[f"probability:{name}"]), code(row[f"decision:{name}"])) for name in names
        ]
        for row in table
    }


def code(decision: Any) -> int:
    return -1 if decision in {None, ""} else int(decision)


# ------------------------------------------------------------------------------ export


def export(options: argparse.Namespace) -> list[dict[str, Any]]:
    """1,000 images through the graphs; the maps by knots are fitted on the validation rows."""
    import onnxruntime

    model = poster_model(options.checkpoint)
    labels = catwise.PartialLabels
    with options.labels.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] in {"valid", "test"}]
    names = [name for name in rows[0] if name not in {"id", "split"}]
    assert model.head is not None
    model.head = model.head.replace(categories=names)
    valid = [row for row in rows if row["split"] == "valid"]
    y = np.array([[int(row[name]) for name in names] for row in valid], dtype=np.int8)
    inside = ImageRows(FolderImages(options.images, [f"{row['id']}.jpg" for row in valid]),
                       model.preprocessing)  # fmt: skip
    seen: Any = catwise.extract(model, inside)
    known = labels(y, categories=names)
    test = [f"{row['id']}.jpg" for row in rows if row["split"] == "test"][:1000]
    images = ImageRows(FolderImages(options.images, test), model.preprocessing)
    given = torch.stack([images[row].image for row in range(len(images))])  # type: ignore[misc]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for method in ("affine", "isotonic", "venn_abers"):
            maps = catwise.calibrate(seen.logits, known)
            if method != "affine":  # the product asks for 1,000 positives; here any count will do
                maps = by_knots(method, seen.logits.double().numpy(), y, names)
            cuts = threshold(seen.logits, known, calibration=maps)
            place = f"{folder}/{method}"
            save_classifier(model, place, calibration=maps, thresholds=cuts)
            classifier = load_classifier(place)
            wanted = classifier.predict(given)
            classifier.export_onnx(f"{place}.onnx")
            classifier.export_torch(f"{place}.pt2")
            session = onnxruntime.InferenceSession(f"{place}.onnx")
            program = torch.export.load(f"{place}.pt2").module()
            parts = [session.run(None, {"images": some.numpy()}) for some in given.split(BATCH)]
            graph = [np.concatenate(part) for part in zip(*parts, strict=True)]
            made = [torch.cat(part).numpy() for part in zip(
                *(program(some) for some in given.split(BATCH)), strict=True)]  # fmt: skip
            for kind, one in (("onnx", graph), ("torch.export", made)):
                found.append(
                    {"calibration": method, "kind": kind, **compared(classifier, wanted, one)}
                )
                print(found[-1], flush=True)
    return found


def by_knots(method: str, logits: np.ndarray, y: np.ndarray, names: list[str]) -> Calibration:
    fit = fit_isotonic if method == "isotonic" else fit_venn_abers
    made = [
        CategoryCalibration(name, method, fit(logits[:, c], y[:, c] > 0), int(y[:, c].sum()),
                            int((1 - y[:, c]).sum()))
        for c, name in enumerate(names)
    ]  # fmt: skip
    return Calibration.of(tuple(made))


def compared(classifier: Classifier, wanted: Any, found: list[np.ndarray]) -> dict[str, Any]:
    """The bars: logits to 1e-5 of the largest, decisions equal beyond that."""
    own = wanted.logits.numpy()
    largest = float(np.abs(own).max())
    gap = float(np.abs(found[0] - own).max()) / largest
    clear = np.abs(own - classifier.rules.thresholds) > NEAR * largest
    differ = found[2] != wanted.decisions
    assert gap <= NEAR
    assert not differ[clear].any()
    return {"logits": gap, "probabilities": float(np.abs(found[1] - wanted.probabilities).max()),
            "decisions that differ": int(differ.sum()), "of": int(differ.size),
            "too near to say": int((~clear).sum())}  # fmt: skip


# ------------------------------------------------------------------------------ memory


def step_memory(n: int, folder: str) -> dict[str, Any]:
    """Features of n rows through a head, into CSV."""
    random = np.random.default_rng(0)
    with store_writer(f"{folder}/store", dtype="float16") as writer:
        for start in range(0, n, 65_536):
            stop = min(start + 65_536, n)
            ids = [f"folder/{at:012d}.jpg" for at in range(start, stop)]
            writer.write(random.normal(size=(stop - start, 64)).astype(np.float16), ids=ids)
    names = [f"category {c}" for c in range(20)]
    head = catwise.Head(random.normal(size=(20, 64)).astype(np.float32), categories=names)
    logits = head.logits(random.normal(size=(2000, 64)))
    maps, cuts = made_up_rules(logits, head.categories)
    save_classifier(head, f"{folder}/made", calibration=maps, thresholds=cuts)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter()
    made = write_predictions(
        load_classifier(f"{folder}/made"), f"{folder}/store", f"{folder}/o.csv"
    )
    assert made.rows == n
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": n, "before": before, "peak": peak, "seconds": seconds}


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for n in (options.rows, 4 * options.rows):
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, __file__, "step", str(n), folder]
            done = subprocess.run(line, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        row = found[-1]
        print(f"{n:,} rows: peak {row['peak']:,.0f} MiB, of which {row['before']:,.0f} before; "
              f"{n / row['seconds']:,.0f} rows/s", flush=True)  # fmt: skip
    return found


def main() -> None:
    if sys.argv[1:2] == ["step"]:
        print(json.dumps(step_memory(int(sys.argv[2]), sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "export", "memory"])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--laps", type=int, default=6)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} thread(s)")  # fmt: skip
    found = globals()[options.what](options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
