"""What calibration and thresholds are worth on ready tuning tasks, on test rows that chose nothing.

    python benches/decisions.py --data TASKS --fits FOLDER [--tasks 'posters_*.npz'] [--half 1]

Every task is tuned by the `default` preset at each share of known validation labels (`--keep`) and
kept in FOLDER, so that an interrupted run goes on. Four tables follow, on half 2 of the test rows:
log-loss before and after calibration (of the original head, of `default`, of
`validation="select"`); macro-F1 of the rule "f1" against a sweep over the same labels; how often a
guaranteed sensitivity is reached, over draws of k known positives; and what conformal sets cover,
over draws of n known rows of a class.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from quality import half_of, labelled

from catwise import Head, PartialLabels, calibrate, conformal, threshold, tune
from catwise.decisions.rules import order_statistic
from catwise.metrics import best_f1_threshold, compare_logits, f1, log_loss

TARGETS = (0.8, 0.95)
COUNTS = (11, 20, 50, 200)
ALPHAS = (0.1, 0.05)
CLASS_COUNTS = (5, 10, 20, 50, 100, 200)
DRAWS = 20
MIN_POSITIVES = 50


def fitted(path: Path, keep: float, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Out-of-fold and test logits of a task; tuned only where they are not in the folder."""
    file = folder / f"{path.stem}_{keep:g}_{seed}.npz"
    if not file.exists() and keep == 1.0:
        file = folder / f"{path.stem}_1.0_{seed}.npz"
    if file.exists():
        return dict(np.load(file))
    task = dict(np.load(path).items())
    for name in ("y_train", "y_valid", "y_test"):
        task[name] = task[name].astype(np.int8)
    if keep < 1:
        drawn = np.random.default_rng(seed).random(task["y_valid"].shape)
        task["y_valid"] = np.where(drawn < keep, task["y_valid"], -1).astype(np.int8)
    head = Head(task["weight"].astype(np.float32), task["bias"].astype(np.float32))
    train, valid = labelled(task, "train"), labelled(task, "valid")
    tuned = tune(head, train, valid)
    chosen = tune(head, train, valid, validation="select").head
    found = {"oof": tuned.folds.logits, "fold": tuned.folds.fold}
    found |= {name: task[name] for name in ("y_valid", "y_test")}
    found["half"] = half_of(len(task["y_test"]), 2)
    for name, one in (("base", head), ("tuned", tuned.head), ("select", chosen)):
        for part in ("valid", "test"):
            z = torch.from_numpy(task[f"z_{part}"].astype(np.float64))
            logits = z @ one.weight.double().T + one.bias.double()
            found[f"{name}_{part}"] = logits.numpy().astype(np.float32)
    np.savez(file, **found)
    return found


def fits(args: argparse.Namespace, keep: float) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for path in sorted(args.data.glob(args.tasks)):
        name = f"{path.stem}_{keep:g}_{args.seed}.npz"
        is_there = (args.fits / name).exists() or (
            args.fits / name.replace("_1_", "_1.0_")
        ).exists()
        if args.cached and not is_there:
            continue
        found = fitted(path, keep, args.seed, args.fits)
        rows = found["half"] if args.half == 2 else ~found["half"]
        for key in [key for key in found if key.endswith("_test")]:
            found[key] = found[key][rows]
        yield path.stem, found


def mean(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    if values.size < 2:
        return "–"
    return f"{values.mean():+.4f} ± {values.std(ddof=1) / values.size**0.5:.4f}"


def calibration(args: argparse.Namespace, keep: float) -> None:
    """Log-loss of heads, and after calibration on logits that fitted nothing."""
    rows, above_base, above_default, rises = [], 0, 0, []
    for name, task in fits(args, keep):
        y = task["y_test"]
        valid = PartialLabels(task["y_valid"])
        scored = ((y == 1).any(0)) & ((task["y_valid"] == 1).any(0))
        loss = {"base": log_loss(task["base_test"], y), "default": log_loss(task["tuned_test"], y)}
        after = calibrate(task["oof"], valid).logits(task["tuned_test"])
        loss["calibrated"] = log_loss(after, y)
        if "select_valid" in task:
            loss["select"] = log_loss(task["select_test"], y)
            fit = calibrate(task["select_valid"], valid)
            loss["select, calibrated"] = log_loss(fit.logits(task["select_test"]), y)
        loss = {key: value.numpy()[scored] for key, value in loss.items()}
        d = loss["calibrated"] - loss["default"]
        z = d.mean() / max(d.std(ddof=1) / d.size**0.5, 1e-12)
        above_base += loss["calibrated"].mean() >= loss["base"].mean()
        above_default += z > 2
        worse = [
            compare_logits(task[key], after, y, "log_loss").outcome.count("worse")
            for key in ("base_test", "tuned_test")
        ]
        rises.append((*worse, y.shape[1]))
        rows.append((name, loss, d))
        if args.verbose:
            text = ", ".join(f"{key} {value.mean():.4f}" for key, value in loss.items())
            print(f"  {name}: {text}; calibrated − default {mean(d)} (z {z:.1f})")
    if not rows:
        return
    print(f"\nlog-loss, {keep:.0%} of the validation labels, {len(rows)} tasks, half {args.half}")
    for key in ("base", "default", "calibrated", "select", "select, calibrated"):
        values = [loss[key].mean() for _, loss, _ in rows if key in loss]
        if values:
            print(f"| {key} | {np.mean(values):.4f} | {len(values)} |")
    print(f"calibrated − default: {mean(np.concatenate([d for *_, d in rows]))} over categories")
    gaps = [
        loss["select, calibrated"].mean() - loss["calibrated"].mean()
        for _, loss, _ in rows
        if "select" in loss
    ]
    if gaps:
        print(f"select, calibrated, above default by at most {max(gaps):+.4f}")
    base, default, n = (sum(side) for side in zip(*rises, strict=True))
    print(
        f"tasks not below base: {above_base}; above default by 2 standard errors: {above_default}"
    )
    print(
        f"of {n} categories clearly (false discovery rate 5%) above base {base}, above default "
        f"{default}"
    )


def rule_f1(args: argparse.Namespace, keep: float) -> None:
    """Macro-F1 of half of the best expected F1, and of a sweep over the same labels."""
    gains, rates = [], {"F*/2": [], "sweep": [], "half": []}
    for name, task in fits(args, keep):
        y = task["y_test"]
        known = ((task["y_valid"] == 1).any(0)) & ((task["y_valid"] == 0).any(0)) & (y == 1).any(0)
        found = threshold(task["oof"], PartialLabels(task["y_valid"])).values()
        swept = best_f1_threshold(task["oof"], task["y_valid"]).threshold.numpy()
        for key, cut in (("F*/2", found), ("sweep", swept), ("half", np.zeros_like(swept))):
            values = f1(task["tuned_test"], y, threshold=np.nan_to_num(cut, nan=1e9))
            rates[key].append(float(values[torch.from_numpy(known)].nanmean()))
        gains.append(rates["F*/2"][-1] - rates["sweep"][-1])
        if args.verbose:
            print(f"  {name}: F*/2 − sweep {gains[-1]:+.4f}")
    if gains:
        text = ", ".join(f"{key} {np.mean(values):.4f}" for key, values in rates.items())
        won = np.mean(np.array(gains) > 0)
        print(f"\nmacro-F1, {keep:.0%} of the labels, {len(gains)} fits: {text}")
        print(f"F*/2 − sweep: {mean(np.array(gains))}, above in {won:.0%}, worst {min(gains):+.4f}")


def guarantees(args: argparse.Namespace) -> None:
    """How often a sensitivity that is guaranteed with 90% is reached on test rows."""
    print("\nsensitivity guaranteed with 90%: category × draw cells, all labels known")
    print("| target | k | cells | reached in | mean sensitivity | specificity |")
    print("|---|---|---|---|---|---|")
    pooled = {target: [0, 0] for target in TARGETS}
    tasks = list(fits(args, 1.0))
    for target in TARGETS:
        for k in COUNTS:
            sens, spec = [], []
            for _, task in tasks:
                for c in range(task["y_test"].shape[1]):
                    scores, y = task["tuned_test"][:, c], task["y_test"][:, c]
                    own = task["oof"][task["y_valid"][:, c] == 1, c].astype(np.float64)
                    if own.size < max(k, MIN_POSITIVES) or (y == 1).sum() < MIN_POSITIVES:
                        continue
                    rng = np.random.default_rng((c, k))
                    for _ in range(DRAWS):
                        drawn = rng.choice(own, k, replace=False)
                        cut, _ = order_statistic(drawn, target, 0.9, above=True)
                        if cut.threshold is not None:
                            sens.append(float((scores[y == 1] >= cut.threshold).mean()))
                            spec.append(float((scores[y == 0] < cut.threshold).mean()))
            if sens:
                hit = np.array(sens) >= target
                pooled[target][0] += int(hit.sum())
                pooled[target][1] += hit.size
                row = f"{np.mean(hit):.3f} | {np.mean(sens):.3f} | {np.mean(spec):.3f}"
                print(f"| {target} | {k} | {hit.size} | {row} |")
    for target, (hit, n) in pooled.items():
        print(f"pooled, {target}: {hit / max(n, 1):.3f} of {n}")


def drawn_sets(
    tasks: list[tuple[str, dict[str, np.ndarray]]], alpha: float, n: int
) -> Iterator[tuple[str, float, float, float]]:
    """Of each draw of n known rows a class: category, positives covered, P(lower) said, unsure."""
    for name, task in tasks:
        y = task["y_test"]
        for c in np.flatnonzero((y == 1).sum(0) >= MIN_POSITIVES):
            sides = [np.flatnonzero(task["y_valid"][:, c] == code) for code in (1, 0)]
            if min(side.size for side in sides) < max(n, MIN_POSITIVES):
                continue
            rng = np.random.default_rng((c, n))
            for _ in range(DRAWS):
                rows = np.concatenate([rng.choice(side, n, replace=False) for side in sides])
                labels = PartialLabels(task["y_valid"][rows][:, [c]])
                sets = conformal(task["oof"][rows][:, [c]], labels, alpha=alpha)
                codes = sets.decide(task["tuned_test"][:, [c]]).numpy()[:, 0]
                share = float(np.isin(codes[y[:, c] == 1], (2, 3)).mean())
                said = sets.categories[0].positive.chance_lower or 0.0
                yield f"{name} {c}", share, said, float((codes == 3).mean())


def coverage(args: argparse.Namespace) -> None:
    """What conformal sets cover on test rows, by the known rows of a class."""
    print("\nconformal sets: category × draw cells, all labels known")
    print("| alpha | n | cells | positives covered | 10% below | lower in (said) | unsure |")
    print("|---|---|---|---|---|---|---|")
    tasks = list(fits(args, 1.0))
    for alpha in ALPHAS:
        for n in CLASS_COUNTS:
            found = list(drawn_sets(tasks, alpha, n))
            if not found:
                continue
            names, *columns = zip(*found, strict=True)
            share, said, unsure = map(np.array, columns)
            per = np.bincount(np.unique(names, return_inverse=True)[1], weights=share) / DRAWS
            error = per.std(ddof=1) / per.size**0.5
            lower = (share < 1 - alpha).mean()
            print(
                f"| {alpha} | {n} | {share.size} | {share.mean():.3f} ± {error:.3f} | "
                f"{np.quantile(share, 0.1):.3f} | {lower:.2f} ({said.mean():.2f}) | "
                f"{unsure.mean():.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CATWISE_TASKS"))
    parser.add_argument("--fits", type=Path, required=True, help="folder that keeps the fits")
    parser.add_argument("--tasks", default="*.npz", help="glob of the tasks to run")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half", type=int, default=2, choices=(1, 2))
    parser.add_argument("--cached", action="store_true", help="only fits that are in the folder")
    parser.add_argument("--verbose", action="store_true", help="a line for each task")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of tasks: --data, or CATWISE_TASKS")
    args.data = Path(args.data)
    args.fits.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for keep in args.keep:
        calibration(args, keep)
        rule_f1(args, keep)
    guarantees(args)
    coverage(args)


if __name__ == "__main__":
    main()
