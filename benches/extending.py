"""Rows fitted from nothing, against the trained model's own: what is a new category worth?

    python benches/extending.py --data TASKS [--tasks 'posters_*.npz'] [--final] [--keep-valid 0.3]

TASKS are as in `quality.py`. Every second category is taken away from the head and fitted again by
`extend_head`, first the even ones, then the odd: its rows are compared, on test rows that chose
nothing, with the model's own rows, with these tuned, and with scikit-learn's logistic regression, a
penalty for each category by log-loss over five folds, from the validation rows alone and together
with the known training labels. Out of fold is the average precision that `extend_head` itself
reports: it should not be above that on test rows by more than few positives explain.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from quality import half_of, labelled
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler

from catwise import Head, PartialLabels, extend_head, tune
from catwise.metrics import average_precision

PENALTIES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
ENOUGH = 5
MIN_TEST_POSITIVES = 20


def load(path: Path, half: int, keep_valid: float) -> dict:
    """One task with the test rows of one half, and a share of its validation labels."""
    task = dict(np.load(path))
    rows = half_of(len(task["z_test"]), half)
    task["z_test"], task["y_test"] = task["z_test"][rows], task["y_test"][rows]
    for name in ("y_train", "y_valid", "y_test"):
        task[name] = task[name].astype(np.int8)
    kept = np.random.default_rng(0).random(task["y_valid"].shape) < keep_valid
    task["y_valid"] = np.where(kept, task["y_valid"], -1).astype(np.int8)
    return task


def measures(head: Head, task: dict) -> np.ndarray:
    """(2, C) average precision and log-loss on the test rows; NaN under 20 known positives."""
    codes = task["y_test"]
    logits = head.logits(task["z_test"].astype(np.float32))
    known = PartialLabels.from_array(codes, encoding="codes")
    scores = average_precision(logits, known).numpy()
    signed = logits.double().numpy() * (2.0 * codes - 1.0)
    loss = np.where(codes >= 0, np.logaddexp(0.0, -signed), np.nan)
    enough = (codes == 1).sum(0) >= MIN_TEST_POSITIVES
    return np.where(enough, [scores, np.nanmean(loss, axis=0)], np.nan)


def regression(task: dict, base: Head, names: list[str]) -> Head:
    """Logistic regressions of scikit-learn from the rows of the named sources."""
    weight, bias = np.zeros(base.weight.shape, np.float32), np.zeros(base.n_categories, np.float32)
    scaler = StandardScaler().fit(task["z_valid"].astype(np.float32))
    rows = np.concatenate([scaler.transform(task[f"z_{n}"].astype(np.float32)) for n in names])
    codes = np.concatenate([task[f"y_{n}"] for n in names])
    for c in range(base.n_categories):
        known = codes[:, c] >= 0
        y = codes[known, c]
        bias[c] = np.log(((y == 1).sum() + 0.5) / ((y == 0).sum() + 0.5))
        if min((y == 1).sum(), (y == 0).sum()) >= ENOUGH:
            model = LogisticRegressionCV(
                Cs=PENALTIES, cv=5, scoring="neg_log_loss", max_iter=200, l1_ratios=(0,),
                use_legacy_attributes=False,
            ).fit(rows[known], y)  # fmt: skip
            weight[c] = model.coef_[0] / scaler.scale_
            bias[c] = model.intercept_[0] - weight[c] @ scaler.mean_
    return Head(weight, bias, categories=base.categories)


def extended(base: Head, pairs: dict) -> tuple[Head, np.ndarray]:
    """All categories fitted from nothing, half of them at a time, and their out-of-fold scores."""
    names, found, after = list(base.categories), {}, {}
    for half in (0, 1):
        kept = base.drop_categories(names[half::2])
        result = extend_head(kept, pairs["train"], pairs["valid"])
        found |= {n: result.head.take_categories([n]) for n in names[half::2]}
        after |= {one["category"]: one["after"] for one in result.records}
        assert torch.equal(result.head.weight[: kept.n_categories], kept.weight)
    first, *others = (found[name] for name in names)
    scores = np.array([after[name] for name in names], dtype=float)
    return first.join(*others), scores


def compare(path: Path, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Means over categories of one task, by method."""
    task = load(path, 2 if args.final else 1, args.keep_valid)
    names = [f"c{i}" for i in range(len(task["weight"]))]
    base = Head(
        task["weight"].astype(np.float32), task["bias"].astype(np.float32), categories=names
    )
    pairs = {}
    for name in ("train", "valid"):
        z, labels = labelled(task, name)
        named = PartialLabels(labels.codes, labels.ids, names)
        pairs[name] = z.astype(np.float32), named
    new, out_of_fold = extended(base, pairs)
    found = {
        "the model's own": measures(base, task),
        "tuned": measures(tune(base, pairs["train"], pairs["valid"], force=True).head, task),
        "from nothing": measures(new, task),
        "regression, validation": measures(regression(task, base, ["valid"]), task),
        "regression, all": measures(regression(task, base, ["train", "valid"]), task),
    }
    scored = np.isfinite(found["from nothing"][0])
    means = {name: np.nanmean(values, axis=1) for name, values in found.items()}
    return {**means, "out of fold": np.array([np.nanmean(out_of_fold[scored]), np.nan])}


def main() -> None:
    """Print a table for every task, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["*.npz"], help="globs of the tasks to run")
    parser.add_argument("--final", action="store_true", help="half 2 of the test rows")
    parser.add_argument("--keep-valid", type=float, default=1.0, help="share of labels kept")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    paths = sorted({path for glob in args.tasks for path in args.data.glob(glob)})
    rows = {path.stem: compare(path, args) for path in paths}
    names = list(next(iter(rows.values())))
    for k, what in enumerate(("average precision", "log-loss")):
        print(f"\n{what}, half {2 if args.final else 1}, {args.keep_valid:.0%} of validation\n")
        print(f"| task | {' | '.join(names)} |")
        print("|---" * (len(names) + 1) + "|")
        every = np.array([[row[name][k] for name in names] for row in rows.values()])
        for task, values in [*zip(rows, every, strict=True), ("mean", every.mean(0))]:
            print(f"| {task} | {' | '.join(f'{v:.4f}' for v in values)} |")


if __name__ == "__main__":
    main()
