"""`default` and `select` with all, 30% and 10% of the validation labels, beside another tree.

    python benches/few_labels.py --data TASKS [--other ../before/src] [--final]
        [--metric auroc] [--json FILE]

One command makes every table of docs/results.md on few labels. Each task is tuned with all
validation labels, and with 30% and 10% of them by three draws each: by a coin for every label,
and for the first draw also by a rule that depends on the features (`features`: in each category a
label is the more likely to be known the further an image lies along a random direction). Test
rows selected nothing; half 1 of them is for decisions on the design, half 2 (`--final`) for what
is published.

Tasks of `posters` and `tmc2007` are said as shares of the way from the base to the ceiling (the
best head that all labels could give), both data sets weighed equally; others as differences of
the mean score on known test labels. Intervals are over categories: a cell is a task with one draw,
and its difference is that of the means over categories with the standard error of paired
differences. The other tree, such as a worktree of an earlier commit, runs in a process of its own.
Finished cells are kept in the JSON file: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from quality import half_of, read, write

from catwise.metrics import auroc, average_precision, compare_logits

SCORES = {"average_precision": average_precision, "auroc": auroc}
KEEPS, DRAWS = (1.0, 0.3, 0.1), 3
SHARED = ("posters", "tmc2007")
TILT = 2.0
MIN_POSITIVES = 20
CHILD = """
import json, sys, time, warnings
import numpy as np, catwise
warnings.simplefilter("ignore")
for line in sys.stdin:
    given, options, found = json.loads(line)
    task = np.load(given)
    def pair(name):
        codes = task["y_" + name].astype(np.int8)
        ids = [f"{name}-{i}" for i in range(len(codes))]
        return task["z_" + name], catwise.PartialLabels.from_array(codes, encoding="codes", ids=ids)
    head = catwise.Head(task["weight"].astype(np.float32), task["bias"].astype(np.float32))
    start = time.perf_counter()
    result = catwise.tune(head, pair("train"), pair("valid"), force=True, **options)
    seconds = time.perf_counter() - start
    changed = [r["status"] == "replaced" for r in result.records]
    weight, bias = np.asarray(result.head.weight), np.asarray(result.head.bias)
    np.savez(found, weight=weight, bias=bias, changed=changed, seconds=seconds)
    print("done", flush=True)
"""


def kept(task: dict, keep: float, draw: int, rule: str) -> np.ndarray:
    """(n, C) validation codes with a share of the labels."""
    codes = task["y_valid"].astype(np.int8)
    if keep >= 1:
        return codes
    rng = np.random.default_rng(draw)
    drawn, chance = rng.random(codes.shape), np.full(codes.shape, keep)
    if rule == "features":
        z = task["z_valid"].astype(np.float64)
        along = (z - z.mean(0)) @ rng.normal(size=(z.shape[1], codes.shape[1]))
        chance = 1 / (1 + np.exp(-np.log(keep / (1 - keep)) - TILT * along / along.std(0)))
        chance *= keep / chance.mean(0)
    return np.where(drawn < chance, codes, -1).astype(np.int8)


class Tree:
    """A source tree that tunes in a process of its own."""

    def __init__(self, source: Path, folder: Path) -> None:
        given = {**os.environ, "PYTHONPATH": str(source.resolve())}
        command, pipe = [sys.executable, "-c", CHILD], subprocess.PIPE
        self.child = subprocess.Popen(command, env=given, text=True, stdin=pipe, stdout=pipe)
        self.folder = folder

    def tune(self, task: dict, options: dict) -> dict[str, np.ndarray]:
        """The tuned head, which categories changed, and the seconds."""
        given, found = self.folder / "task.npz", self.folder / "head.npz"
        np.savez(given, **task)
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps([str(given), options, str(found)]) + "\n")
        self.child.stdin.flush()
        if self.child.stdout.readline() != "done\n":
            raise SystemExit("the tuning failed, see above")
        return dict(np.load(found))


def cell(task: dict, heads: dict[str, dict], half: int, metric: str) -> dict:
    """Scores, log-losses and what is significantly worse than the base, of each head."""
    rows = half_of(len(task["z_test"]), half)
    z, codes = task["z_test"][rows].astype(np.float64), task["y_test"][rows].astype(np.int8)
    row: dict = {}
    base = None
    for name, head in heads.items():
        logits = z @ head["weight"].astype(np.float64).T + head["bias"]
        base = logits if base is None else base
        loss = np.logaddexp(0, logits) - (codes == 1) * logits
        each = np.where(codes >= 0, loss, 0).sum(0) / np.maximum((codes >= 0).sum(0), 1)
        row[name] = {
            "score": SCORES[metric](torch.from_numpy(logits), codes).tolist(),
            "log_loss": each.tolist(),
            "seconds": float(head.get("seconds", 0.0)),
            "worse": worse(base, logits, codes, head.get("changed"), metric),
        }
    return row


def worse(
    base: np.ndarray, logits: np.ndarray, codes: np.ndarray, changed: np.ndarray | None, metric: str
) -> tuple[int, int]:
    """How many changed categories with enough positives there are, and how many got worse."""
    enough = (codes == 1).sum(0) >= MIN_POSITIVES
    columns = np.flatnonzero(enough if changed is None else enough & changed)
    if changed is None or not columns.size:
        return 0, 0
    sides = (torch.from_numpy(side[:, columns]) for side in (base, logits))
    found = compare_logits(*sides, codes[:, columns], metric)
    return int(columns.size), found.outcome.count("worse")


def run(args: argparse.Namespace) -> dict[str, dict]:
    """Every cell, by name."""
    done, folder = read(args.json), Path(tempfile.mkdtemp())
    trees = {"": Tree(Path(__file__).resolve().parents[1] / "src", folder)}
    if args.other:
        trees["other "] = Tree(args.other, folder)
    for path in sorted(args.data.glob(args.tasks)):
        task = dict(np.load(path))
        for keep in args.keep:
            draws = [(d, "coin") for d in range(DRAWS if keep < 1 else 1)]
            draws += [(0, "features")] if keep < 1 else []
            for draw, rule in draws:
                key = f"{path.stem}|{keep:g}|{rule}|{draw}|{args.metric}|{2 if args.final else 1}"
                if key in done:
                    continue
                print(key, file=sys.stderr, flush=True)
                given = {**task, "y_valid": kept(task, keep, draw, rule)}
                heads = {"base": {"weight": task["weight"], "bias": task["bias"]}}
                for method in args.methods:
                    options = {"metric": args.metric}
                    options |= {"validation": "select"} if method == "select" else {}
                    for name, tree in trees.items():
                        heads[name + method] = tree.tune(given, options)
                done[key] = cell(task, heads, 2 if args.final else 1, args.metric)
                write(args.json, done)
    suffix = f"|{args.metric}|{2 if args.final else 1}"
    return {key: row for key, row in done.items() if key.endswith(suffix)}


def difference(row: dict, name: str, other: str, what: str = "score") -> tuple[float, float]:
    """Of the means over categories, and its standard error."""
    each = np.array(row[name][what], dtype=float) - np.array(row[other][what], dtype=float)
    each = each[np.isfinite(each)]
    return float(each.mean()), float(
        each.std(ddof=1) / np.sqrt(each.size)
    ) if each.size > 1 else 0.0


def shares(rows: dict[str, dict], name: str, rooms: dict[str, float]) -> tuple[float, float]:
    """The mean share over data sets, and its standard error over categories of the cells."""
    found, errors = [], []
    for data_set in SHARED:
        mine = {key: row for key, row in rows.items() if key.startswith(data_set)}
        if not mine:
            continue
        room = sum(rooms[key.split("|")[0]] for key in mine)
        gains = [difference(row, name, "base") for row in mine.values()]
        found.append(sum(gain for gain, _ in gains) / room)
        # Draws of one task share their test rows and categories: errors add up, not their squares.
        errors.append(sum(error for _, error in gains) / room / np.sqrt(len(rooms_of(mine))))
    return float(np.mean(found)), float(np.sqrt(np.sum(np.square(errors))) / max(len(errors), 1))


def rooms_of(rows: dict[str, dict]) -> set[str]:
    return {key.split("|")[0] for key in rows}


def show(rows: dict[str, dict], args: argparse.Namespace) -> None:
    """Print the tables."""
    rooms = ceilings()
    names = [name for name in next(iter(rows.values())) if name != "base"]
    print(f"\nhalf {2 if args.final else 1}, {args.metric}\n")
    print(f"| tasks | labels | rule | {' | '.join(names)} |\n|---|---|---|{'---|' * len(names)}")
    for keep in args.keep:
        for rule in ("coin", "features"):
            here = {k: r for k, r in rows.items() if k.split("|")[1:3] == [f"{keep:g}", rule]}
            both = {k: r for k, r in here.items() if k.startswith(SHARED)}
            if both and args.metric == "average_precision":
                cells = [shares(both, name, rooms) for name in names]
                line = " | ".join(f"{value:.3f} ± {error:.3f}" for value, error in cells)
                print(f"| share, {len(both)} cells | {keep:.0%} | {rule} | {line} |")
            for data_set in sorted({k.split("_")[0] for k in here}):
                mine = [r for k, r in here.items() if k.startswith(data_set)]
                line = " | ".join(
                    f"{np.mean([difference(r, name, 'base')[0] for r in mine]):+.4f}"
                    for name in names
                )
                print(f"| {data_set}, gain | {keep:.0%} | {rule} | {line} |")
    for name in names:
        show_harm(rows, name)


def show_harm(rows: dict[str, dict], name: str) -> None:
    """Cells below the base and below the other tree, log-loss, categories that got worse."""
    changed, bad = (sum(row[name]["worse"][i] for row in rows.values()) for i in (0, 1))
    print(f"\n{name}: {bad} of {changed} changed categories worse (5% false discovery rate)")
    for other in ("base", f"other {name}"):
        if other not in next(iter(rows.values())):
            continue
        found = {key: difference(row, name, other) for key, row in rows.items()}
        low = {key: (d, e) for key, (d, e) in found.items() if d < -e and e > 0}
        twice = [key for key, (d, e) in low.items() if d < -2 * e]
        print(
            f"  below {other} by over one standard error: {len(low)} of {len(rows)} cells, ", end=""
        )
        print(f"by over two: {len(twice)} {twice}")
        losses = [difference(row, name, other, "log_loss") for row in rows.values()]
        higher = sum(d > 2 * e for d, e in losses)
        print(
            f"  log-loss {np.mean([d for d, _ in losses]):+.4f}; clearly higher in {higher} cells"
        )


def ceilings() -> dict[str, float]:
    """Room above the base of each task, on half 2: docs/figures/quality.json."""
    figures = Path(__file__).resolve().parents[1] / "docs" / "figures" / "quality.json"
    rows = json.loads(figures.read_text())["average_precision final=True keep=1.0 seed=0"]
    return {task: row["ceiling"] - row["base"] for task, row in rows.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CATWISE_TASKS"))
    parser.add_argument("--other", type=Path, help="the src folder of another commit")
    parser.add_argument("--final", action="store_true", help="half 2 of the test rows")
    parser.add_argument("--tasks", default="*.npz", help="glob of the tasks to run")
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEPS))
    parser.add_argument("--methods", nargs="+", default=["default"], choices=["default", "select"])
    parser.add_argument("--metric", choices=list(SCORES), default="average_precision")
    parser.add_argument("--json", type=Path, help="keep finished cells there, and go on from it")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of tasks: --data, or CATWISE_TASKS")
    args.data = Path(args.data)
    return args


def main() -> None:
    args = parse()
    show(run(args), args)


if __name__ == "__main__":
    main()
