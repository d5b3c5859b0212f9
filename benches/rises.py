"""Which categories' log-loss rises by tuning, why, and what two remedies do about it.

    python benches/rises.py --data TASKS --fits FOLDER [--keep 0.1 0.3] [--half 1] [--remedies]

The fits are those of `decisions.py`, calibrated. A category rises where `compare_logits` calls its
log-loss on the test rows worse than the original head's (Benjamini-Hochberg at 5% within a task).
For each of them: what an offset alone, and a slope alone, fitted on the test rows, would take back
of the rise. With --remedies: a stronger prior of the slope, and keeping the original row where the
out-of-fold log-loss, shrunk, does not fall.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from decisions import fits
from scipy.optimize import minimize

from catwise import PartialLabels, calibrate
from catwise.metrics import average_precision, compare_logits, log_loss
from catwise.tuning.fits.affine import fit_affine

Task = dict[str, np.ndarray]


def outcomes(task: Task, after: np.ndarray) -> np.ndarray:
    """(C,) "better", "worse", … of the log-loss against the original head's."""
    return np.array(compare_logits(task["base_test"], after, task["y_test"], "log_loss").outcome)


def bce(logits: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, logits) - positive * logits


def taken_back(logits: np.ndarray, positive: np.ndarray, rise: float) -> tuple[float, float]:
    """Shares of a rise that an offset alone, and a slope around the mean alone, take back."""
    now, middle = bce(logits, positive).mean(), logits.mean()
    forms: tuple[Callable[[float], np.ndarray], ...] = (
        lambda by: logits + by,
        lambda by: middle + np.exp(by) * (logits - middle),
    )
    least = [
        minimize(lambda by, form=form: bce(form(by[0]), positive).mean(), [0.0]).fun
        for form in forms
    ]
    return tuple((now - one) / rise for one in least)  # type: ignore[return-value]


def rises(args: argparse.Namespace, keep: float) -> None:
    """A line for each category that rises."""
    print(f"\nrises, {keep:.0%} of the validation labels, half {args.half}")
    print("| task | category | positives of known | share known, test | test positives | rise | "
          "offset takes back | slope | out of fold |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name, task in fits(args, keep):
        y, codes = task["y_test"], task["y_valid"]
        after = calibrate(task["oof"], PartialLabels(codes)).logits(task["tuned_test"]).numpy()
        found, lower = outcomes(task, after), 0
        before, own = (log_loss(one, y).numpy() for one in (task["base_test"], after))
        inside = log_loss(task["oof"], codes).numpy() - log_loss(task["base_valid"], codes).numpy()
        lower = int((found == "better").sum())
        for c in np.flatnonzero(found == "worse"):
            known, rise = codes[:, c] >= 0, own[c] - before[c]
            offset, slope = taken_back(after[:, c].astype(np.float64), y[:, c] == 1, rise)
            k, n = int((codes[:, c] == 1).sum()), int(known.sum())
            print(
                f"| {name} | {c} | {k} of {n} | {k / n:.3f}, {(y[:, c] == 1).mean():.3f} | "
                f"{int((y[:, c] == 1).sum())} | {rise:+.4f} | {offset:.0%} | {slope:.0%} | "
                f"{inside[c]:+.4f} |"
            )
        if args.verbose:
            print(f"  {name}: {lower} fall, {(found == 'worse').sum()} rise, of {len(found)}")


def calibrated(task: Task, precision: float) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold and test logits, calibrated with a precision of the slope's prior.

    Logits are standardised first, so an affine map of before makes no difference.
    """
    parts = (torch.from_numpy(np.ascontiguousarray(task[key].T)) for key in ("oof", "y_valid"))
    level = torch.from_numpy(np.ascontiguousarray(task["base_valid"].T))
    with patch("catwise.tuning.fits.affine._PRIOR_SLOPE", precision):
        scale, offset = (one.numpy() for one in fit_affine(*parts, level=level))
    return task["oof"] * scale + offset, task["tuned_test"] * scale + offset


def slope_prior(precision: float) -> Callable[[Task], np.ndarray]:
    return lambda task: calibrated(task, precision)[1]


def keep_rule(k: float) -> Callable[[Task], np.ndarray]:
    """The original row where the out-of-fold gain of log-loss, over the entropy, is below zero.

    It is shrunk to the mean over categories by n / (n + k), and the two numbers that were fitted on
    the same labels count one.
    """

    def logits(task: Task) -> np.ndarray:
        inside, found = calibrated(task, 4.0)
        known, positive = task["y_valid"] >= 0, task["y_valid"] == 1
        n, n_positive = known.sum(0), positive.sum(0)
        share = np.clip(n_positive / n, 1e-6, 1 - 1e-6)
        entropy = -share * np.log(share) - (1 - share) * np.log1p(-share)
        gain = np.where(known, bce(task["base_valid"], positive) - bce(inside, positive), 0.0)
        both = (n_positive > 0) & (n_positive < n)
        each = np.where(both, (gain.sum(0) - 1.0) / n / entropy, 0.0)
        weight = np.where(both, n_positive / (n_positive + 100.0), 0.0)
        mean = (weight * each).sum() / weight.sum()
        worse = both & (mean + n_positive / (n_positive + k) * (each - mean) < 0)
        return np.where(worse, task["base_test"], found)

    return logits


def remedies(args: argparse.Namespace, keep: float) -> None:
    """Rises, log-loss and average precision of each remedy, less those of the rule as it is."""
    ways: dict[str, Any] = {"as it is": slope_prior(4.0)}
    ways |= {f"slope prior N(t0, 1/{one:g})": slope_prior(one) for one in (10.0, 20.0)}
    ways |= {f"original row by log-loss, k = {one:g}": keep_rule(one) for one in (0.0, 10.0, 30.0)}
    tasks = list(fits(args, keep))
    print(f"\n| {keep:.0%} of the labels, half {args.half} | rise | log-loss (1e-4) | AP (1e-4) |")
    print("|---|---|---|---|")
    for name, way in ways.items():
        n, losses, precisions = 0, [], []
        for _, task in tasks:
            y, after, plain = task["y_test"], way(task), ways["as it is"](task)
            n += int((outcomes(task, after) == "worse").sum())
            scored = (y == 1).any(0) & (task["y_valid"] == 1).any(0)
            losses.append((log_loss(after, y) - log_loss(plain, y)).numpy()[scored])
            precisions.append((average_precision(after, y) - average_precision(plain, y)).numpy())
        loss, precision = np.concatenate(losses), np.concatenate(precisions)
        error = loss.std(ddof=1) / loss.size**0.5
        print(f"| {name} | {n} | {1e4 * loss.mean():+.1f} ± {1e4 * error:.1f} | "
              f"{1e4 * np.nanmean(precision):+.1f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CATWISE_TASKS"))
    parser.add_argument("--fits", type=Path, required=True, help="folder that keeps the fits")
    parser.add_argument("--tasks", default="*.npz", help="glob of the tasks to run")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half", type=int, default=1, choices=(1, 2))
    parser.add_argument("--cached", action="store_true", help="only fits that are in the folder")
    parser.add_argument("--remedies", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="a line for each task")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of tasks: --data, or CATWISE_TASKS")
    args.data = Path(args.data)
    args.fits.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for keep in args.keep:
        (remedies if args.remedies else rises)(args, keep)


if __name__ == "__main__":
    main()
