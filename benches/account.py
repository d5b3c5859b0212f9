"""What `tune` says of itself, against test rows that it never saw.

    python benches/account.py --data TASKS [--keep 0.1 0.3 1] [--masks 2] [--seeds 2] [--final]

Tasks as for `quality.py`. Each is tuned with a share of the validation labels kept (by several
masks), and again with other seeds of the folds. Then:

- level and gain: the mean over categories that the summary tells, minus that of the test rows,
  averaged over runs (error); its size (absolute); the root mean square over categories (category);
- coverage: how often gain told minus gain on test rows is within the interval told, the error of
  the test rows counted in;
- seeds: how far "after" and the gain move with the seed of the folds alone, beside the test rows.

A kept category gained nothing. `--keep-harmed` replaces what is clearly worse, too, to see what
keeping it is worth. Half 1 of the test rows is for decisions on the design, half 2 (`--final`) for
the table. Finished runs are kept in the file named by `--json`: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from quality import labelled, load

from catwise import Head, tune
from catwise.metrics.intervals import Units, difference_of, t_quantile

COUNTS = ((1, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, 10**9))
MIN_TEST_POSITIVES = 20


def on_test(task: dict, base: Head, tuned: Head, metric: str) -> list[dict]:
    """Per category the scores of test rows, and the error of their difference."""
    z, found = torch.from_numpy(task["z_test"].astype(np.float64)), []
    sides = [(z @ h.weight.double().T + h.bias.double()).numpy() for h in (base, tuned)]
    for c in range(base.n_categories):
        rows = np.flatnonzero(task["y_test"][:, c] >= 0)
        positive = task["y_test"][rows, c] == 1
        units = Units(np.arange(rows.size), is_grouped=False)
        pair = (side[rows, c] for side in sides)
        got = difference_of(metric, *pair, positive, units)
        value = [None] * 3 if got is None else [got.before, got.after, got.estimate.error]
        names = ("test_before", "test_after", "test_error")
        found.append(dict(zip(names, value, strict=True)) | {"test_n": int(positive.sum())})
    return found


def run(path: Path, keep: float, mask: int, seed: int, args: argparse.Namespace) -> dict:
    """One tuning and what test rows say of it."""
    task = load(path, 2 if args.final else 1, keep, mask)
    head = Head(task["weight"].astype(np.float32), task["bias"].astype(np.float32))
    data = labelled(task, "train"), labelled(task, "valid")
    result = tune(head, *data, metric=args.metric, seed=seed, force=True)
    keys = ("status", "reason", "before", "after", "gain", "gain_low", "gain_high")
    counts = {"n": "n_positive_valid", "n_negative": "n_negative_valid"}
    rows = [
        {k: r[k] for k in keys} | {k: r[v] for k, v in counts.items()} | test
        for r, test in zip(
            result.records, on_test(task, head, result.head, args.metric), strict=True
        )
    ]
    summary = {k: result.summary[k] for k in ("before", "after", "gain", "gain_low", "gain_high")}
    return {"summary": summary, "rows": rows}


def runs(args: argparse.Namespace) -> dict[str, dict]:
    """All runs by "task|keep|mask|seed"; other seeds with the first mask only."""
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    paths = sorted(Path(args.data).glob(args.tasks))
    plan = [(mask, 0) for mask in range(args.masks)] + [(0, seed) for seed in range(1, args.seeds)]
    never = patch(
        "catwise.tuning.choice.gains.clearly_worse", lambda low, *_, **__: np.zeros(low.size, bool)
    )
    for (mask, seed), keep, path in itertools.product(plan, args.keep, paths):
        key = f"{path.stem}|{keep}|{mask}|{seed}"
        if key not in found and not (keep == 1.0 and mask):
            print(key, file=sys.stderr, flush=True)
            with never if args.keep_harmed else nullcontext():
                found[key] = run(path, keep, mask, seed, args)
            if args.json:
                args.json.write_text(json.dumps(found))
    return found


def column(rows: list[dict], name: str) -> np.ndarray:
    return np.array([np.nan if r[name] is None else r[name] for r in rows], dtype=float)


def errors(one: dict) -> dict[str, tuple[float, float]]:
    """Error of the mean and root mean square over categories, of levels and gain."""
    rows = [r for r in one["rows"] if r["test_before"] is not None and r["before"] is not None]
    told = {k: column(rows, k) for k in ("before", "after", "gain")}
    test = {k: column(rows, f"test_{k}") for k in ("before", "after")}
    test["gain"] = test["after"] - test["before"]
    # The mean gain of the summary counts what the choosing does to categories that are kept, too.
    means = {k: told[k].mean() for k in told} | {"gain": one["summary"]["gain"]}
    means["after"] = means["before"] + means["gain"]
    wrong = {k: told[k] - test[k] for k in told}
    return {k: (means[k] - test[k].mean(), float(np.sqrt((wrong[k] ** 2).mean()))) for k in told}


def show_errors(found: dict[str, dict]) -> None:
    print(
        "| data | labels | runs | before: error | absolute | after: error | absolute | category "
        "| gain: error | absolute | category |"
    )
    print("|---" * 11 + "|")
    groups: dict[tuple[str, float], list[dict]] = {}
    for key, one in found.items():
        name, keep, _, _ = key.split("|")
        groups.setdefault((name.split("_")[0], float(keep)), []).append(errors(one))
    for (data, keep), rows in sorted(groups.items()):
        cells = []
        for name in ("before", "after", "gain"):
            wrong, category = np.array([r[name] for r in rows]).T
            cells += [f"{wrong.mean():+.4f}", f"{np.abs(wrong).mean():.4f}"]
            cells += [] if name == "before" else [f"{category.mean():.3f}"]
        print(f"| {data} | {keep:.0%} | {len(rows)} | {' | '.join(cells)} |")


def show_coverage(found: dict[str, dict]) -> None:
    print("\n| known positives | categories | without interval | mean width | error | covered |")
    print("|---" * 6 + "|")
    every = [r for one in found.values() for r in one["rows"] if r["status"] == "replaced"]
    every = [r for r in every if r["test_n"] >= MIN_TEST_POSITIVES and r["gain"] is not None]
    for low, high in COUNTS:
        rows = [r for r in every if low <= r["n"] <= high]
        told = [r for r in rows if r["gain_low"] is not None]
        if not rows:
            continue
        wrong = column(rows, "gain") - (column(rows, "test_after") - column(rows, "test_before"))
        cells = [f"{low} to {high}" if high < 10**9 else f"{low} or more", len(rows)]
        cells += [len(rows) - len(told), "–", f"{np.std(wrong):.3f}", "–"]
        if told:
            width = column(told, "gain_high") - column(told, "gain_low")
            off = column(told, "gain") - (column(told, "test_after") - column(told, "test_before"))
            reach = np.hypot(width / 2, t_quantile(0.975, np.inf) * column(told, "test_error"))
            cells[3], cells[5] = f"{width.mean():.3f}", f"{(np.abs(off) <= reach).mean():.1%}"
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


def show_seeds(found: dict[str, dict]) -> None:
    """Standard deviation and largest range over seeds of the folds, task by task."""
    print(
        "\n| labels | tasks | after: sd | largest range | gain: sd | largest range "
        "| test rows: sd | largest range |"
    )
    print("|---" * 8 + "|")
    groups: dict[float, dict[str, list[list[float]]]] = {}
    for key, one in found.items():
        name, keep, mask, _ = key.split("|")
        if mask == "0":
            told = [one["summary"]["after"], one["summary"]["gain"]]
            row = [*told, float(np.nanmean(column(one["rows"], "test_after")))]
            groups.setdefault(float(keep), {}).setdefault(name, []).append(row)
    for keep, tasks in sorted(groups.items()):
        parts = [np.array(rows) for rows in tasks.values() if len(rows) > 1]
        if parts:
            sd = np.sqrt(np.mean([part.var(0, ddof=1) for part in parts], axis=0))
            most = np.max([np.ptp(part, axis=0) for part in parts], axis=0)
            cells = " | ".join(f"{s:.4f} | {m:.4f}" for s, m in zip(sd, most, strict=True))
            print(f"| {keep:.0%} | {len(parts)} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CATWISE_TASKS"))
    parser.add_argument("--tasks", default="*.npz", help="glob of the tasks to run")
    parser.add_argument("--metric", default="average_precision")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--masks", type=int, default=2, help="draws of the labels that are kept")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the folds")
    parser.add_argument("--final", action="store_true", help="half 2 of the test rows")
    parser.add_argument("--keep-harmed", action="store_true", help="without the rule of no harm")
    parser.add_argument("--json", type=Path, help="where finished runs are kept")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of tasks: --data, or CATWISE_TASKS")
    warnings.simplefilter("ignore")
    found = runs(args)
    show_errors(found)
    show_coverage(found)
    show_seeds(found)
    rows = [r for one in found.values() for r in one["rows"]]
    vetoed = sum(r["reason"] == "clearly_worse" for r in rows)
    print(f"\n{vetoed} of {len(rows):,} categories were kept because they were clearly worse.")


if __name__ == "__main__":
    main()
