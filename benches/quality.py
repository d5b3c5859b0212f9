"""Quality of catwise on ready tuning tasks, on test rows that selected nothing.

    python benches/quality.py --data TASKS [--final] [--keep-valid 0.3] [--seed 0] [--json FILE]
    python benches/quality.py --data TASKS --metric auroc [--final]
    python benches/quality.py --data TASKS --methods bp_bce bp_asl select default

TASKS is a folder of .npz files: z_train, z_valid, z_test (n, D), weight (C, D), bias (C,), y_train
int8 (1 / 0 / -1 unknown), y_train_full, y_valid, y_test. The test rows are cut in two by a
hash of the row index: half 1 is for decisions on the design, half 2 (`--final`) for the
published table. Shares are (method - base) / (ceiling - base), summed over the tasks of a data
set (the name up to the first underscore), then averaged over data sets. Where task names end in
_s1, _s2, …, the seeds that dropped their labels, shares are shown for each seed too. Finished
tasks are kept in the JSON file: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch

from catwise import Head, PartialLabels, tune
from catwise.metrics import auroc, average_precision, benjamini_hochberg, paired_bootstrap
from catwise.metrics.bootstrap import bootstrap_replicates
from catwise.tuning.presets.default_config import DefaultConfig

METHODS = {
    "bp_bce": {"preset": "paper", "methods": ["bp_bce"]},
    "bp_asl": {"preset": "paper", "methods": ["bp_asl"]},
    "ga": {"preset": "paper", "methods": ["ga"]},
    "select": {"validation": "select"},
    "bp": {"config": DefaultConfig(refinements={})},
    "default": {},
}
LABELS = {
    "bp_bce": "paper BP-BCE",
    "bp_asl": "paper BP-ASL",
    "ga": "paper GA",
    "select": "select",
    "bp": "default without refinement",
    "default": "default",
}
SCORES = {"average_precision": average_precision, "auroc": auroc}
CEILING_WEIGHTS = (1.0, 0.3, 0.0)
CEILING_PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
REPLICATES = 200
MIN_TEST_POSITIVES = 20
WORSE_BAR = 0.01


def half_of(n: int, half: int) -> np.ndarray:
    """(n,) bool: the rows of half 1 or 2, by a hash of the row index."""
    index = np.arange(1, n + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return (index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(63) == np.uint64(half - 1)


def load(path: Path, half: int, keep_valid: float, seed: int) -> dict:
    """One task: features, codes, head; test rows of one half."""
    task = dict(np.load(path))
    rows = half_of(len(task["z_test"]), half)
    task["z_test"], task["y_test"] = task["z_test"][rows], task["y_test"][rows]
    for name in ("y_train", "y_train_full", "y_valid", "y_test"):
        task[name] = task[name].astype(np.int8)
    if keep_valid < 1:
        drawn = np.random.default_rng(seed).random(task["y_valid"].shape)
        task["y_valid"] = np.where(drawn < keep_valid, task["y_valid"], -1).astype(np.int8)
    return task


def labelled(task: dict, name: str) -> tuple[np.ndarray, PartialLabels]:
    """Features and labels with ids, so that equal rows of different images stay apart."""
    codes = task[f"y_{name}"]
    ids = [f"{name}-{i}" for i in range(len(codes))]
    return task[f"z_{name}"], PartialLabels.from_array(codes, encoding="codes", ids=ids)


def ceiling(path: Path, half: int) -> float:
    """The best head that all labels could give; chosen on test, a denominator only.

    Heads pulled to the base head, fitted by BCE to all labels of training (weight 1, 0.3 or 0)
    and validation rows, over penalties from strong to weak.
    """
    task = load(path, half, 1.0, 0)
    z = torch.from_numpy(np.concatenate([task["z_train"], task["z_valid"]]).astype(np.float32))
    y = torch.from_numpy(np.concatenate([task["y_train_full"], task["y_valid"]])).float()
    w0, b0 = (torch.from_numpy(task[k].astype(np.float32)) for k in ("weight", "bias"))
    best = test_map(task, w0, b0)
    for train_weight in CEILING_WEIGHTS:
        weight = torch.ones(len(z), 1)
        weight[: len(task["z_train"])] = train_weight
        for penalty in CEILING_PENALTIES:
            w, b = w0.clone().requires_grad_(), b0.clone().requires_grad_()
            adam = torch.optim.Adam([w, b], lr=3e-3)
            decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 300)
            for _ in range(300):
                adam.zero_grad()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    z @ w.T + b, y, reduction="none"
                )
                pull = 0.5 * penalty * (w - w0).square().sum()
                ((loss * weight).sum() / weight.sum() + pull).backward()
                adam.step()
                decay.step()
            best = max(best, test_map(task, w.detach(), b.detach()))
    return best


def test_logits(task: dict, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(task["z_test"].astype(np.float64)) @ w.double().T + b.double()


def test_map(task: dict, w: torch.Tensor, b: torch.Tensor) -> float:
    return mean_score("average_precision", test_logits(task, w, b), task)


def mean_score(metric: str, logits: torch.Tensor, task: dict) -> float:
    return float(SCORES[metric](logits, task["y_test"]).nanmean())


def run_task(path: Path, args: argparse.Namespace) -> dict:
    """Run all methods on one task."""
    task = load(path, 2 if args.final else 1, args.keep_valid, args.seed)
    head = Head(task["weight"].astype(np.float32), task["bias"].astype(np.float32))
    base = test_logits(task, head.weight, head.bias)
    logits, row = {"base": base}, {"task": path.stem, "methods": {}}
    for name in args.methods:
        options = METHODS[name]
        print(f"  {path.stem}: {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        result = tune(
            head, labelled(task, "train"), labelled(task, "valid"), metric=args.metric, **options
        )
        seconds = time.perf_counter() - start
        logits[name] = test_logits(task, result.head.weight, result.head.bias)
        changed = np.array([r["status"] == "replaced" for r in result.records])
        row["methods"][name] = {
            "score": mean_score(args.metric, logits[name], task),
            "seconds": seconds,
            "selected_on": result.summary["selected_on"],
            "after": result.summary["after"],
            "choice": result.summary["choice"],
            **worse(base, logits[name], task["y_test"], changed, args.metric),
        }
    row["base"] = mean_score(args.metric, base, task)
    replicates = bootstrap_replicates(
        list(logits.values()), task["y_test"], args.metric, n_resamples=REPLICATES
    )
    row["replicates"] = {
        name: np.nanmean(values, axis=1).round(6).tolist()
        for name, values in zip(logits, replicates, strict=True)
    }
    return row


def worse(
    base: torch.Tensor, tuned: torch.Tensor, codes: np.ndarray, changed: np.ndarray, metric: str
) -> dict:
    """Changed categories with enough test positives, and how many are significantly worse."""
    enough = changed & ((codes == 1).sum(0) >= MIN_TEST_POSITIVES)
    if not enough.any():
        return {"n_changed": 0, "n_worse": 0}
    columns = np.flatnonzero(enough)
    found = paired_bootstrap(
        base[:, columns], tuned[:, columns], codes[:, columns], metric, n_resamples=1000
    )
    significant = benjamini_hochberg(found.p_value, 0.05)
    n_worse = int((significant & (np.asarray(found.difference) < 0)).sum())
    return {"n_changed": int(enough.sum()), "n_worse": n_worse}


# ------------------------------------------------------------------------------ the table


def share(rows: list[dict], name: str, replicate: int | None = None) -> float:
    """Mean over data sets of the share of a method; "paper" is the better one on validation."""
    shares = []
    for data_set in sorted({row["task"].split("_")[0] for row in rows}):
        mine = [row for row in rows if row["task"].split("_")[0] == data_set]
        won = room = 0.0
        for row in mine:
            method = paper_of(row) if name == "paper" else name
            if replicate is None:
                won += row["methods"][method]["score"] - row["base"]
            else:
                kept = row["replicates"]
                won += kept[method][replicate] - kept["base"][replicate]
            room += row["ceiling"] - row["base"]
        shares.append(won / room)
    return float(np.mean(shares))


def paper_of(row: dict) -> str:
    """The published loss that validation prefers."""
    return max(("bp_bce", "bp_asl"), key=lambda m: row["methods"][m]["selected_on"])


def show(rows: list[dict], args: argparse.Namespace) -> None:
    """Print the table, the shares and the bars."""
    print(
        f"\nhalf {2 if args.final else 1} of the test rows; {args.keep_valid:.0%} of the validation"
    )
    print(f"labels, seed {args.seed}; mean {args.metric} over categories\n")
    names = args.methods
    print(f"| task | base | {' | '.join(LABELS[n] for n in names)} | ceiling | s |")
    print("|---" * (len(names) + 4) + "|")
    for row in rows:
        cells = [f"{row['methods'][n]['score']:.4f}" for n in names]
        seconds = " / ".join(f"{row['methods'][n]['seconds']:.1f}" for n in names)
        top = f"{row['ceiling']:.4f}" if "ceiling" in row else "–"
        print(f"| {row['task']} | {row['base']:.4f} | {' | '.join(cells)} | {top} | {seconds} |")
    if "bp" in names:
        show_refinement(rows, names)
    if args.metric == "average_precision" and {"bp_bce", "bp_asl"} <= set(names):
        show_shares(rows, args)
        show_seeds(rows, names)


def show_refinement(rows: list[dict], names: list[str]) -> None:
    """The refinement against the fit that it starts from, and every method against the base."""
    print("\n| method | mean | minus without it | 95% interval | worst task (errors) | worse |")
    print("|---|---|---|---|---|---|")
    for name in names:
        label = LABELS[name]
        scores = np.array([row["methods"][name]["score"] for row in rows])
        fit = np.array([row["methods"]["bp"]["score"] for row in rows])
        drawn = np.mean(
            [np.subtract(r["replicates"][name], r["replicates"]["bp"]) for r in rows], axis=0
        )
        low, high = np.quantile(drawn, [0.025, 0.975])
        errors, where = worst_task(rows, name)
        bad = sum(row["methods"][name]["n_worse"] for row in rows)
        changed = sum(row["methods"][name]["n_changed"] for row in rows)
        print(
            f"| {label} | {scores.mean():.4f} | {(scores - fit).mean():+.4f} | {low:+.4f} to "
            f"{high:+.4f} | {where} ({errors:+.1f}) | {bad} of {changed} |"
        )


def worst_task(rows: list[dict], name: str) -> tuple[float, str]:
    """The lowest gain over the base in bootstrap errors, and its task."""
    found = []
    for row in rows:
        method = paper_of(row) if name == "paper" else name
        kept = row["replicates"]
        error = np.std(np.subtract(kept[method], kept["base"])) + 1e-12
        found.append(((row["methods"][method]["score"] - row["base"]) / error, row["task"]))
    return min(found)


def show_shares(rows: list[dict], args: argparse.Namespace) -> None:
    """Print shares of the way to the ceiling, and the bars."""
    print(
        "\n| method | share | 95% interval | minus P | 95% interval | worst task (errors) | worse |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in (*args.methods, "paper"):
        print(summary_line(rows, name))
    print("\nIntervals: rows of each task resampled, positives and negatives apart.")
    bars = {"default": 0.10 if args.keep_valid < 1 else 0.25}
    if args.keep_valid >= 1:
        bars["select"] = 0.05
    p = share(rows, "paper")
    for name, bar in ((name, bar) for name, bar in bars.items() if name in args.methods):
        got = share(rows, name) - p
        print(f"{name} - P = {got:.3f}, bar {bar}: {'met' if got >= bar else 'NOT met'}")
        changed = sum(row["methods"][name]["n_changed"] for row in rows)
        bad = sum(row["methods"][name]["n_worse"] for row in rows)
        met = "met" if bad <= WORSE_BAR * changed else "NOT met"
        print(f"{name}: {bad} of {changed} changed categories worse, bar {WORSE_BAR:.0%}: {met}")


def show_seeds(rows: list[dict], names: list[str]) -> None:
    """Print the shares by the seed at the end of the tasks' names, where there are several."""
    seeds: dict[str, list[dict]] = {}
    for row in rows:
        found = re.search(r"_s(\d+)$", row["task"])
        seeds.setdefault(found[1] if found else "0", []).append(row)
    if len(seeds) < 2:
        return
    shown = [*names, "paper"]
    print(f"\n| seed | tasks | {' | '.join(shown)} |")
    print("|---" * (len(shown) + 2) + "|")
    found = np.array([[share(mine, name) for name in shown] for mine in seeds.values()])
    for (seed, mine), shares in zip(seeds.items(), found, strict=True):
        print(f"| {seed} | {len(mine)} | {' | '.join(f'{s:.3f}' for s in shares)} |")
    means, spreads = found.mean(0), found.std(0, ddof=1)
    cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(means, spreads, strict=True)]
    print(f"| mean ± standard deviation | {len(rows)} | {' | '.join(cells)} |")


def summary_line(rows: list[dict], name: str) -> str:
    """One method's share with its interval, its lead over P, and its worst task."""
    shares = np.array([share(rows, name, r) for r in range(REPLICATES)])
    leads = shares - np.array([share(rows, "paper", r) for r in range(REPLICATES)])
    low, high = np.quantile(shares, [0.025, 0.975])
    lead = share(rows, name) - share(rows, "paper")
    lead_low, lead_high = np.quantile(leads, [0.025, 0.975])
    n_changed, n_worse = 0, 0
    for row in rows:
        method = paper_of(row) if name == "paper" else name
        n_changed += row["methods"][method]["n_changed"]
        n_worse += row["methods"][method]["n_worse"]
    worst, where = worst_task(rows, name)
    return (
        f"| {name} | {share(rows, name):.3f} | {low:.3f} to {high:.3f} | {lead:+.3f} "
        f"| {lead_low:+.3f} to {lead_high:+.3f} | {where} ({worst:+.1f} errors) "
        f"| {n_worse} of {n_changed} |"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CATWISE_TASKS"))
    parser.add_argument("--final", action="store_true", help="half 2 of the test rows")
    parser.add_argument("--tasks", default="*.npz", help="glob of the tasks to run")
    parser.add_argument("--keep-valid", type=float, default=1.0, help="share of labels kept")
    parser.add_argument("--seed", type=int, default=0, help="of the labels dropped")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--metric", choices=list(SCORES), default="average_precision")
    parser.add_argument("--json", type=Path, help="keep finished tasks there, and go on from it")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of tasks: --data, or CATWISE_TASKS")
    return args


def read(path: Path | None) -> dict:
    return json.loads(path.read_text()) if path and path.exists() else {}


def write(path: Path | None, value: dict) -> None:
    if path:
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(value))
        part.replace(path)


def add_ceilings(rows: list[dict], args: argparse.Namespace) -> None:
    """Ceilings do not depend on the labels kept: they have a file of their own."""
    half = 2 if args.final else 1
    file = args.json and args.json.with_name("ceilings.json")
    for row in rows if args.keep_valid >= 1 else rows[::-1]:
        key, kept = f"{row['task']} half {half}", read(file)
        if key not in kept:
            print(f"  {row['task']}: ceiling", file=sys.stderr, flush=True)
            found = ceiling(Path(args.data) / f"{row['task']}.npz", half)
            kept = {**read(file), key: found}
            write(file, kept)
        row["ceiling"] = kept[key]


def main() -> None:
    args = parse()
    kept = read(args.json)
    key = f"{args.metric} final={args.final} keep={args.keep_valid} seed={args.seed}"
    if args.methods != list(METHODS):
        key += f" methods={','.join(args.methods)}"
    done = kept.setdefault(key, {})
    for path in sorted(Path(args.data).glob(args.tasks)):
        if path.stem not in done:
            done[path.stem] = run_task(path, args)
            write(args.json, kept)
    rows = [done[name] for name in sorted(done)]
    if args.metric == "average_precision":
        add_ceilings(rows, args)
    show(rows, args)


if __name__ == "__main__":
    main()
