"""How much `validation="select"` should pull a category's gains to the mean over all categories.

    python benches/choosing.py --data TASKS [TASKS ...] [--masks 3] [--priors 10 30 60 ...]

TASKS are folders of tuning tasks (see quality.py). Every prior chooses on the validation labels,
all of them and 30% of them by several masks; what it chose is scored on half 1 of the test rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from quality import labelled, load, test_map

from catwise import Head, tune
from catwise.tuning.presets.default_config import DefaultConfig

KEPT = 0.3
SCALE = 1e4


def gains(path: Path, priors: list[float], keep: float, seed: int) -> list[float]:
    """Gain in mean AP over the base head for each prior."""
    task = load(path, 1, keep, seed)
    head = Head(task["weight"].astype(np.float32), task["bias"].astype(np.float32))
    base = test_map(task, head.weight, head.bias)
    found = []
    for prior in priors:
        result = tune(
            head,
            train=labelled(task, "train"),
            valid=labelled(task, "valid"),
            validation="select",
            config=DefaultConfig(grid_prior=prior),
            force=True,
        )
        found.append(test_map(task, result.head.weight, result.head.bias) - base)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--masks", type=int, default=3)
    parser.add_argument("--priors", type=float, nargs="+", default=[10, 30, 60, 100, 150, 200, 400])
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    paths = sorted(itertools.chain(*(folder.glob("*.npz") for folder in args.data)))
    draws = [(1.0, 0), *((KEPT, seed) for seed in range(args.masks))]
    table: dict[tuple[float, str], list[list[float]]] = {}
    for keep, seed in draws:
        for path in paths:
            print(f"  {path.stem}, {keep:.0%}, mask {seed}", file=sys.stderr, flush=True)
            name = path.stem.split("_")[0]
            table.setdefault((keep, name), []).append(gains(path, args.priors, keep, seed))
    if args.json:
        kept = {f"{keep:g} {name}": rows for (keep, name), rows in table.items()}
        report = {"priors": args.priors, "gains": kept}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("gain in mean AP over the base head, half 1 of the test rows, in units of 0.0001\n")
    print("| labels | data set | prior | mean | lowest task | below the base |")
    print("|---|---|---|---|---|---|")
    for (keep, name), rows in table.items():
        for prior, column in zip(args.priors, SCALE * np.array(rows).T, strict=True):
            below = f"{int((column < 0).sum())} of {len(column)}"
            mean, low = column.mean(), column.min()
            print(f"| {keep:.0%} | {name} | {prior:g} | {mean:.1f} | {low:.1f} | {below} |")


if __name__ == "__main__":
    main()
