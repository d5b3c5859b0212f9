"""What the refit of scale and offset after a metric stage or the genetic algorithm is worth.

    python benches/calibration.py --data TASKS [--tasks 'posters_0.1*.npz'] [--json FILE]

Heads with and without the refit (`catwise.tuning.fits.affine`), on half 1 of the test rows: the
means over categories of log-loss and calibration error, of F1 at probability 0.5, and of the
metric, which must not change. The row "F1, best" says what the best threshold of each category
would give; it is chosen on the test rows.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from quality import labelled, load

from catwise import Head, tune
from catwise._configs import PaperConfig
from catwise.metrics import METRICS
from catwise.tuning.fits.affine import AffineFit, Pooled

SHOWN = ("log_loss", "ece", "f1", "best_f1")


def identity(_: torch.Tensor, codes: torch.Tensor, **_options: object):
    """In place of `fit_pooled`: scale 1, offset 0."""
    one = torch.ones(len(codes), dtype=torch.float64)
    return AffineFit(one, torch.zeros_like(one), Pooled())


def heads(head: Head, train, valid, metric: str) -> dict[str, Head]:
    """The original head, and each way of tuning without and with the refit."""
    given = {"metric": metric}
    evolved = {**given, "preset": "paper", "methods": ["ga"]}
    plain = PaperConfig(recalibrate=False)
    found = {"original": head}
    found["paper GA, as evolved"] = tune(head, train, valid, config=plain, **evolved).head
    found["paper GA"] = tune(head, train, valid, **evolved).head
    with patch("catwise.tuning.presets.task.fit_pooled", identity):
        found["default, as fitted"] = tune(head, train, valid, **given).head
    found["default"] = tune(head, train, valid, **given).head
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CATWISE_TASKS"))
    parser.add_argument("--tasks", default="*.npz", help="glob of the tasks to run")
    parser.add_argument("--metric", default="average_precision", choices=sorted(METRICS))
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of tasks: --data, or CATWISE_TASKS")
    sums: dict[str, list[list[float]]] = {}
    for path in sorted(Path(args.data).glob(args.tasks)):
        task = load(path, 1, 1.0, 0)
        head = Head(task["weight"].astype(np.float32), task["bias"].astype(np.float32))
        z = torch.from_numpy(task["z_test"].astype(np.float64))
        tuned = heads(head, labelled(task, "train"), labelled(task, "valid"), args.metric)
        for name, one in tuned.items():
            logits = z @ one.weight.double().T + one.bias.double()
            row = [
                float(METRICS[metric].per_category(logits, task["y_test"]).nanmean())
                for metric in (args.metric, *SHOWN)
            ]
            sums.setdefault(name, []).append(row)
    print(f"half 1 of the test rows, {len(next(iter(sums.values())))} tasks")
    print(f"| head | {args.metric} | log-loss | ECE | F1 at 0.5 | F1, best |")
    print("|---|---|---|---|---|---|")
    if args.json:
        args.json.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    for name, rows in sums.items():
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in np.mean(rows, axis=0)) + " |")


if __name__ == "__main__":
    main()
