"""Speed and memory of reading labels at the size of the field's data sets.

    python benches/labels.py [--rows N] [--images N] [--shuffled] [--chexpert] [--json FILE]
    python benches/labels.py --against ../before/src [--pairs 5]
    python benches/labels.py --columns 10000 100000 [--pairs 3]

Writes a generated label file of Open Images' V3 layout into a temporary folder, reads it and
audits it in a process of its own (all that `catwise audit` computes: the table, findings, and what
is unknown together), and prints seconds and peak memory. With `--chexpert` it
writes and reads 223,414 rows of CheXpert's layout too. What is read is asserted against numpy's
own counts of what was written.

`--against` reads and audits CheXpert's size with the source of another checkout too, in turns, and
prints the ratio of the processor times of each pair. `--columns` reads wide tables of so many
columns in turns, with equally many rows and with equally many cells: time should grow with the
columns, not with their square.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_CATEGORIES = 5_000
WRITE_ROWS = 500_000
CHEXPERT_ROWS = 223_414
GIB = 2**30
BARS = {"read": 30.0, "read_and_audit": 60.0, "gib": 4.0, "chexpert": 5.0, "ratio": 0.7}
OBSERVATIONS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
SHARES = (  # positive and uncertain, in percent of all studies
    (8.86, 0.0), (4.81, 5.41), (12.26, 3.52), (49.39, 2.31), (3.65, 0.57), (26.06, 6.17),
    (6.78, 12.78), (2.44, 8.34), (15.63, 15.66), (9.23, 1.42), (40.34, 5.02), (1.3, 0.94),
    (3.87, 0.26), (56.4, 0.48),
)  # fmt: skip
TABLE_CELLS = 5_000_000


# ----------------------------------------------------------------------------- Open Images


def hexadecimal(numbers: np.ndarray) -> np.ndarray:
    """Ids of 16 digits, as bytes; not by the reader's own code."""
    return np.array([b"%016x" % number for number in numbers.tolist()], dtype="S16")


def draw(n_rows: int, n_images: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """(image, category, code) of each row: Zipf's law over categories, 1 in 500 is repeated."""
    weight = 1 / np.arange(1, N_CATEGORIES + 1)
    category = rng.choice(N_CATEGORIES, n_rows, p=weight / weight.sum()).astype(np.int64)
    image = rng.integers(0, n_images, n_rows)
    code = (rng.random(n_rows) < 0.45).astype(np.int64)
    again = rng.random(n_rows) < 1 / 500
    again[0] = False
    at = np.flatnonzero(again)
    image[at], category[at] = image[at - 1], category[at - 1]
    return image, category, code


def expected_counts(image: np.ndarray, category: np.ndarray, code: np.ndarray) -> dict:
    """Positives, negatives, conflicts of each category, by two tables of seen pairs."""
    pair = category * (int(image.max()) + 1) + image
    yes, no = np.unique(pair[code == 1]), np.unique(pair[code == 0])
    both = np.intersect1d(yes, no, assume_unique=True)
    width = int(image.max()) + 1
    parts = (np.setdiff1d(yes, both), np.setdiff1d(no, both), both)
    positive, negative, uncertain = (
        np.bincount(part // width, minlength=N_CATEGORIES).tolist() for part in parts
    )
    return {
        "images": len(np.unique(image)),
        "positive": positive,
        "negative": negative,
        "uncertain": uncertain,
        "repeated": len(pair) - len(yes) - len(no),
    }


def write_openimages(folder: Path, n_rows: int, n_images: int, *, shuffled: bool) -> None:
    """Put a label file, a list of classes and what they hold on disk."""
    rng = np.random.default_rng(0)
    image, category, code = draw(n_rows, n_images, rng)
    if not shuffled:  # the released files are in the order of the ids
        order = np.argsort(image, kind="stable")
        image, category, code = image[order], category[order], code[order]
    ids = np.sort(rng.integers(0, 1 << 63, 2 * n_images).astype(np.uint64))
    ids = hexadecimal(np.unique(ids)[:n_images])
    mids = [f"/m/0{j:05x}" for j in range(N_CATEGORIES)]
    crowd = rng.random(n_rows) < 0.1
    endings = np.array(
        [
            [f",{source},{mid},{c}\n".encode() for c in (0, 1)]
            for source in ("verification", "crowdsource-verification")
            for mid in mids
        ],
        dtype=object,
    )
    (folder / "train").mkdir(parents=True)
    (folder / "classes-trainable.txt").write_text("\n".join(mids) + "\n", encoding="utf-8")
    with (folder / "train" / "annotations-human.csv").open("wb") as file:
        file.write(b"ImageID,Source,LabelName,Confidence\n")
        for start in range(0, n_rows, WRITE_ROWS):
            span = slice(start, start + WRITE_ROWS)
            which = crowd[span] * N_CATEGORIES + category[span]
            rest = endings[which, code[span]].tolist()
            head = ids[image[span]].tolist()
            file.write(b"".join([part for pair in zip(head, rest, strict=True) for part in pair]))
    truth = json.dumps(expected_counts(image, category, code))
    (folder / "truth.json").write_text(truth, encoding="utf-8")


def audit_all(dataset: object) -> list[dict]:
    """All that `catwise audit` computes; the rows of its table."""
    from catwise.labels import audit_labels, find_suspicious, unknown_together

    rows = audit_labels(dataset.labels).rows
    told = {"splits": dataset.splits, "paths": dataset.paths, "counts": dataset.counts}
    find_suspicious(dataset.labels, **told)
    unknown_together(dataset.labels)
    return rows


def report_of(clock: list[float], work: list[float], peak: int) -> dict[str, float]:
    """Seconds of the clock, and of all processors, for reading and for the audit."""
    (read, audit), (read_cpu, audit_cpu) = (np.diff(times).tolist() for times in (clock, work))
    return {
        "read": read,
        "audit": audit,
        "read_cpu": read_cpu,
        "audit_cpu": audit_cpu,
        "peak_rss_bytes": peak,
    }


def read_openimages(folder: Path) -> dict[str, float]:
    """Read and audit, in a process of its own; assert what was read."""
    from catwise.data.readers.openimages import read_openimages as read

    clock = [time.perf_counter()]
    work = [time.process_time()]
    dataset = read(folder)
    clock.append(time.perf_counter())
    work.append(time.process_time())
    rows = audit_all(dataset)
    clock.append(time.perf_counter())
    work.append(time.process_time())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    counts = dataset.labels.counts()
    assert dataset.labels.storage == "columns"
    assert len(dataset) == truth["images"]
    assert dataset.counts["repeated_labels"] == truth["repeated"]
    assert dataset.counts["conflicting_labels"] == sum(truth["uncertain"])
    for name in ("positive", "negative", "uncertain"):
        assert getattr(counts, name).tolist() == truth[name], name
        assert [row[name] for row in rows] == truth[name], name
    return report_of(clock, work, peak)


# -------------------------------------------------------------------------------- CheXpert


def write_chexpert(folder: Path) -> None:
    """Put a train.csv of CheXpert's size and layout, and its counts, on disk.

    Shares of positive and uncertain labels are those of the paper's table 1 (Irvin et al. 2019).
    """
    rng = np.random.default_rng(1)
    positive, uncertain = np.array(SHARES).T / 100
    negative = 0.3 * (1 - positive - uncertain)
    edges = np.cumsum([positive, negative, uncertain], axis=0)
    drawn = rng.random((CHEXPERT_ROWS, len(OBSERVATIONS)))
    kinds = (drawn[..., None] >= edges.T).sum(axis=-1)  # positive, negative, uncertain, blank
    texts = np.array(["1.0", "0.0", "-1.0", ""], dtype=object)[kinds].tolist()
    head = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(OBSERVATIONS) + "\n"
    patient = study = view = 0
    ages, chances = rng.integers(18, 91, CHEXPERT_ROWS), rng.random((CHEXPERT_ROWS, 3))
    with (folder / "train.csv").open("w", encoding="utf-8") as file:
        file.write(head)
        for row, age, chance in zip(texts, ages.tolist(), chances.tolist(), strict=True):
            view += 1
            if view == 1 or chance[0] > 0.16:  # 223,414 images are of 187,641 studies
                study, view = study + 1, 1
            if patient == 0 or (view == 1 and chance[1] < 0.345):  # of 64,540 patients
                patient, study = patient + 1, 1
            side, position = ("frontal", "AP") if chance[2] < 0.855 else ("lateral", "")
            path = f"CheXpert-v1.0-small/train/patient{patient:05d}/study{study}/view{view}_{side}"
            about = f"Female,{age},{side.capitalize()},{position}"
            file.write(f"{path}.jpg,{about},{','.join(row)}\n")
    found = {
        name: (kinds == kind).sum(axis=0).tolist()
        for kind, name in enumerate(("positive", "negative", "uncertain"))
    }
    (folder / "truth.json").write_text(json.dumps(found), encoding="utf-8")


def read_chexpert(folder: Path) -> dict[str, float]:
    """Read and audit, in a process of its own; assert what was read."""
    read = importlib.import_module("catwise.data.readers.chexpert").read_chexpert
    clock = [time.perf_counter()]
    work = [time.process_time()]
    dataset = read(folder, split="train")
    clock.append(time.perf_counter())
    work.append(time.process_time())
    audit_all(dataset)
    clock.append(time.perf_counter())
    work.append(time.process_time())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    counts = dataset.labels.counts()
    assert len(dataset) == CHEXPERT_ROWS
    for j, name in enumerate(dataset.labels.categories):
        k = OBSERVATIONS.index(name)
        for kind, values in truth.items():
            assert int(getattr(counts, kind)[j]) == values[k], (name, kind)
    return report_of(clock, work, peak)


# ------------------------------------------------------------------------------ wide tables


def write_columns(folder: Path, n_columns: int, n_rows: int) -> None:
    """Put a wide table, a tenth of whose labels are known, and its counts on disk."""
    rng = np.random.default_rng(2)
    kinds = rng.choice(3, (n_rows, n_columns), p=(0.9, 0.06, 0.04)).astype(np.int8)
    texts = np.array(["", "1", "0"], dtype=object)
    with (folder / "train.csv").open("w", encoding="utf-8") as file:
        file.write("id," + ",".join(f"category {j}" for j in range(n_columns)) + "\n")
        for i in range(n_rows):
            file.write(f"{i:06d}.jpg,{','.join(texts[kinds[i]])}\n")
    found = {
        name: (kinds == kind).sum(axis=0).tolist()
        for kind, name in ((1, "positive"), (2, "negative"))
    }
    (folder / "truth.json").write_text(json.dumps(found), encoding="utf-8")


def read_columns(folder: Path) -> dict[str, float]:
    """Read, in a process of its own; assert what was read."""
    read = importlib.import_module("catwise.data").read_label_table
    importlib.import_module("catwise.labels.audit")
    clock, work = [time.perf_counter()], [time.process_time()]
    labels = read(folder / "train.csv", encoding="nan", id_column="id")
    clock.append(time.perf_counter())
    work.append(time.process_time())
    counts = labels.counts()
    clock.append(time.perf_counter())
    work.append(time.process_time())
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    for name, values in truth.items():
        assert getattr(counts, name).tolist() == values, name
    return report_of(clock, work, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# ------------------------------------------------------------------------------- the run

CHILDREN = {
    "write_openimages": lambda a: write_openimages(a.folder, a.rows, a.images, shuffled=a.shuffled),
    "read_openimages": lambda a: read_openimages(a.folder),
    "write_chexpert": lambda a: write_chexpert(a.folder),
    "read_chexpert": lambda a: read_chexpert(a.folder),
    "write_columns": lambda a: write_columns(a.folder, a.images, a.rows),
    "read_columns": lambda a: read_columns(a.folder),
}


def child(
    name: str, folder: Path, args: argparse.Namespace, source: Path | None = None
) -> dict[str, float]:
    """Run one step in a process of its own: a process's peak memory never goes down again.

    `source` is another folder that catwise is imported from.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
    command += ["--folder", str(folder), "--rows", str(args.rows), "--images", str(args.images)]
    command += ["--shuffled"] if args.shuffled else []
    own = {"PYTHONPATH": str(source.resolve())} if source else {}
    env = {**os.environ, **own}
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Write and read one data set."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        child(f"write_{name}", Path(folder), args)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.csv"))
        print(f"{name}: {size / 1e6:,.0f} MB written in {time.perf_counter() - start:.0f} s")
        return child(f"read_{name}", Path(folder), args)


def compare(args: argparse.Namespace) -> dict[str, object]:
    """CheXpert's size with two sources, in turns."""
    here = Path(__file__).resolve().parents[1] / "src"
    ratios, pairs = [], []
    with tempfile.TemporaryDirectory() as folder:
        child("write_chexpert", Path(folder), args)
        for turn in range(args.pairs + 1):
            found = [
                child("read_chexpert", Path(folder), args, source)
                for source in ((here, args.against) if turn % 2 else (args.against, here))
            ]
            new, old = found if turn % 2 else found[::-1]
            if turn == 0:  # what is read and compiled first
                continue
            work = [run["read_cpu"] + run["audit_cpu"] for run in (new, old)]
            ratios.append(work[0] / work[1])
            pairs.append({"here": new, "against": old})
            print(f"  {work[0]:.2f} s against {work[1]:.2f} s of processor time: {ratios[-1]:.2f}")
    median = statistics.median(ratios)
    print(
        f"{CHEXPERT_ROWS:,} rows read and audited: {median:.2f} of the time "
        f"({min(ratios):.2f} to {max(ratios):.2f} of {len(ratios)} pairs; bar: {BARS['ratio']})"
    )
    return {"ratio": median, "ratios": ratios, "pairs": pairs}


def many_columns(args: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Wide tables of several widths and equally many cells, and of equally many rows, in turns."""
    few = min(args.columns)
    sizes = {(n, TABLE_CELLS // n) for n in args.columns} | {
        (n, TABLE_CELLS // max(args.columns)) for n in args.columns
    }
    report: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n, rows in sizes:
            (Path(folder) / f"{n}x{rows}").mkdir()
            args.images, args.rows = n, rows
            child("write_columns", Path(folder) / f"{n}x{rows}", args)
        runs: dict[tuple[int, int], list[float]] = {size: [] for size in sorted(sizes)}
        for _ in range(args.pairs):
            for (n, rows), seconds in runs.items():
                found = child("read_columns", Path(folder) / f"{n}x{rows}", args)
                seconds.append(found["read_cpu"])
    for (n, rows), seconds in runs.items():
        cpu = statistics.median(seconds)
        print(f"  {n:,} columns, {rows:,} rows: {cpu:.2f} s of processor time", end="")
        report[f"{n}x{rows}"] = {"seconds": seconds}
        if n > few and (narrow := runs.get((few, rows))):
            ratio = cpu / statistics.median(narrow)
            report[f"{n}x{rows}"]["ratio"] = ratio
            print(f", {ratio:.1f} times that of {few:,} (bar: {n / few:g})", end="")
        print()
    return report


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--images", type=int, default=1_700_000)
    parser.add_argument("--shuffled", action="store_true", help="rows in no order of the images")
    parser.add_argument("--chexpert", action="store_true", help="read CheXpert's size too")
    parser.add_argument("--against", type=Path, metavar="SRC", help="another source to compare")
    parser.add_argument("--columns", type=int, nargs="+", help="widths of tables to compare")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each that is compared")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return
    if args.against or args.columns:
        found = compare(args) if args.against else many_columns(args)
        if args.json:
            args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return
    report: dict[str, object] = {"rows": args.rows, "machine": platform.platform()}
    out = report["openimages"] = measure("openimages", args)
    both, gib = out["read"] + out["audit"], out["peak_rss_bytes"] / GIB
    print(
        f"  {args.rows:,} rows: read {out['read']:.1f} s (bar: {BARS['read']:.0f}), with audit "
        f"{both:.1f} s (bar: {BARS['read_and_audit']:.0f}), peak RSS {gib:.2f} GiB "
        f"(bar: {BARS['gib']:.0f}); processors: {out['read_cpu']:.1f} s and "
        f"{out['audit_cpu']:.1f} s"
    )
    if args.chexpert:
        out = report["chexpert"] = measure("chexpert", args)
        gib = out["peak_rss_bytes"] / GIB
        print(
            f"  {CHEXPERT_ROWS:,} rows: read {out['read']:.1f} s (bar: {BARS['chexpert']:.0f}), "
            f"with audit {out['read'] + out['audit']:.1f} s, peak RSS {gib:.2f} GiB; processors: "
            f"{out['read_cpu']:.1f} s and {out['audit_cpu']:.1f} s"
        )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
