"""`default` beside LogisticRegressionCV of scikit-learn, by category on the same known rows.

    OMP_NUM_THREADS=1 python benches/logistic_cv.py --data TASKS [--tasks GLOB] [--keep 1 0.3 0.1]
    OMP_NUM_THREADS=1 python benches/logistic_cv.py --scale issue [--categories 3] [--json FILE]

The peer is what a user of scikit-learn would write: for each category the known rows of training
and validation together, standardised, five penalties by five stratified folds, average precision as
the score. A category that has not five known positives and negatives keeps the original row.
Processor time of both, in turns, in one process and on one thread; test AP on half 2 of the test
rows, which selected nothing. At the issue's scale some categories stand for all: their time is
multiplied by how many there are, the AP is theirs alone.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from _synthetic import SCALES, make_task
from few_labels import kept
from quality import half_of
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import catwise
from catwise.metrics import average_precision

FOLDS = PENALTIES = 5


def peer(task: SimpleNamespace, columns: range) -> tuple[np.ndarray, float]:
    """(n, k) test logits of some categories, and the seconds."""
    features = np.concatenate([task.z_train, task.z_valid]).astype(np.float32)
    codes, out = np.concatenate([task.y_train, task.y_valid]), []
    seconds = 0.0
    for c in columns:
        start = time.process_time()
        rows = np.flatnonzero(codes[:, c] >= 0)
        y = codes[rows, c] == 1
        if min(y.sum(), (~y).sum()) < FOLDS:
            logits = task.z_test @ task.weight[c] + task.bias[c]
        else:
            model = make_pipeline(
                StandardScaler(),
                LogisticRegressionCV(
                    Cs=PENALTIES,
                    cv=FOLDS,
                    scoring="average_precision",
                    l1_ratios=(0.0,),
                    use_legacy_attributes=False,
                ),
            )
            model.fit(features[rows], y)
            seconds += time.process_time() - start
            logits = model.decision_function(task.z_test)
        out.append(logits)
    return np.stack(out, 1), seconds


def ours(task: SimpleNamespace) -> tuple[np.ndarray, float]:
    """(n, C) test logits and the seconds."""

    def pair(name: str) -> tuple[np.ndarray, catwise.PartialLabels]:
        codes = getattr(task, "y_" + name)
        ids = [f"{name}-{i}" for i in range(len(codes))]
        labels = catwise.PartialLabels.from_array(codes, encoding="codes", ids=ids)
        return getattr(task, "z_" + name), labels

    head = catwise.Head(task.weight, task.bias)
    start = time.process_time()
    result = catwise.tune(head, pair("train"), pair("valid"), force=True)
    seconds = time.process_time() - start
    weight, bias = np.asarray(result.head.weight), np.asarray(result.head.bias)
    return task.z_test @ weight.T + bias, seconds


def compared(task: SimpleNamespace, columns: range) -> dict[str, float]:
    """Seconds and test AP of the base and both contestants."""
    tuned, own = ours(task)
    regressed, other = peer(task, columns)
    base = task.z_test @ task.weight.T + task.bias
    shown = {"base": base[:, columns], "ours": tuned[:, columns], "peer": regressed}
    codes = task.y_test[:, columns]
    found = {
        name: float(np.nanmean(average_precision(torch.from_numpy(logits), codes).numpy()))
        for name, logits in shown.items()
    }
    other *= len(task.weight) / len(columns)
    return {**found, "ours_seconds": own, "peer_seconds": other, "ratio": other / own}


def ready(path: Path, keep: float) -> SimpleNamespace:
    """A ready task with a share of its validation labels, and half 2 of its test rows."""
    given = dict(np.load(path))
    given["y_valid"] = kept(given, keep, 0, "coin")
    rows = half_of(len(given["z_test"]), 2)
    for name in ("z_test", "y_test"):
        given[name] = given[name][rows]
    labels = {n: given[n].astype(np.int8) for n in ("y_train", "y_valid", "y_test")}
    floats = {n: given[n].astype(np.float32) for n in ("z_test", "weight", "bias")}
    return SimpleNamespace(**{**given, **labels, **floats})


def synthetic(scale: str) -> SimpleNamespace:
    """A generated task."""
    made = make_task(SCALES[scale])
    parts = {"train": made.train, "valid": made.valid, "test": made.test}
    found = {f"z_{name}": part.features.numpy() for name, part in parts.items()}
    codes = {name: part.codes.numpy() for name, part in parts.items()}
    codes["test"] = made.test.truth.numpy().astype(np.int8)
    return SimpleNamespace(
        **found,
        **{f"y_{name}": one.astype(np.int8) for name, one in codes.items()},
        weight=made.weight.numpy(),
        bias=made.bias.numpy(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of ready tasks")
    parser.add_argument("--tasks", default="*.npz")
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0])
    parser.add_argument("--scale", choices=sorted(SCALES))
    parser.add_argument("--categories", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    compared(synthetic("small"), range(1))  # what is imported then is not counted
    found: dict[str, dict[str, float]] = {}
    print("| task | base AP | catwise | LogisticRegressionCV | CPU s | CPU s | ratio |")
    print("|---|---|---|---|---|---|---|")

    def show(name: str, task: SimpleNamespace, columns: range) -> None:
        row = found[name] = compared(task, columns)
        print(
            f"| {name} | {row['base']:.4f} | {row['ours']:.4f} | {row['peer']:.4f} | "
            f"{row['ours_seconds']:.1f} | {row['peer_seconds']:.1f} | {row['ratio']:.1f} |",
            flush=True,
        )

    if args.scale:
        task = synthetic(args.scale)
        show(args.scale, task, range(min(args.categories, len(task.weight))))
    elif args.data:
        for path in sorted(args.data.glob(args.tasks)):
            for keep in args.keep:
                task = ready(path, keep)
                show(f"{path.stem}, {keep:.0%}", task, range(len(task.weight)))
    else:
        parser.error("--data or --scale")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
