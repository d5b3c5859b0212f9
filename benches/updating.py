"""How far is a run that was brought up to date from one tuned anew with the same labels?

    OMP_NUM_THREADS=1 python benches/updating.py [--shares 0.01 0.05 0.1 0.2 0.4] [--json FILE]

A task is made and tuned with a part of its known labels turned round, the wrong ones (as before
somebody corrects them): in every category, or in a tenth of them. Then they are corrected,
`update_run` tunes the categories that changed with what all share held, and `tune` tunes all anew.
Printed are, by the share of labels that were corrected, processor time of both, mean test average
precision of the uncorrected run, of the update and of the run anew, and the largest and the mean
difference of a category between the two.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import catwise
from catwise.testing import make_task


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its processor time."""
    began = time.process_time()
    return call(), time.process_time() - began


def turned(split: Any, share: float, rng: np.random.Generator, *, within: np.ndarray) -> Any:
    """The split's features, with a share of all known labels turned round, in some categories."""
    codes = split.labels.codes.copy()
    rows, columns = np.nonzero((codes >= 0) & within)
    n = min(len(rows), round(share * np.count_nonzero(codes >= 0)))
    at = rng.permutation(len(rows))[:n]
    codes[rows[at], columns[at]] ^= 1
    return split.features, catwise.PartialLabels(codes, split.labels.ids, split.labels.categories)


def scores(head: catwise.Head, split: Any) -> np.ndarray:
    """(C,) test average precision."""
    found = catwise.evaluate(head, split.pair, metrics=("average_precision",), force=True)
    return np.asarray(found.values["average_precision"], dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--rows", type=int, nargs=3, default=[4000, 2000, 4000])
    parser.add_argument("--size", type=int, nargs=2, default=[128, 40])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    task = make_task(*args.rows, *args.size, known=0.2, known_valid=0.5, seed=args.seed)
    rng = np.random.default_rng(args.seed)
    n_categories = args.size[1]
    few = rng.permutation(n_categories) < max(1, n_categories // 10)
    print("| labels corrected | in | categories | update, s | anew, s | AP before | update | anew "
          "| largest difference | mean |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    found = []
    for share, within, where in [
        *((share, np.ones(n_categories, bool), "all") for share in args.shares),
        *((share, few, "a tenth") for share in args.shares if share < 0.03),
    ]:
        wrong = [turned(one, share, rng, within=within) for one in (task.train, task.valid)]
        run = catwise.tune(task.head, *wrong)
        pairs = task.train.pair, task.valid.pair
        done, mine = timed(lambda run=run, pairs=pairs: catwise.update_run(run, *pairs))
        anew, theirs = timed(lambda pairs=pairs: catwise.tune(task.head, *pairs))
        three = [scores(one.head, task.test) for one in (run, done.result, anew)]
        gap = three[1] - three[2]
        row = {
            "share": done.changes.share,
            "in": where,
            "categories": len(done.categories),
            "update": mine,
            "anew": theirs,
            "ap": [float(np.nanmean(one)) for one in three],
            "largest": float(np.nanmax(np.abs(gap))),
            "mean": float(np.nanmean(gap)),
        }
        found.append(row)
        means = " | ".join(f"{one:.4f}" for one in row["ap"])
        print(f"| {row['share']:.1%} | {where} | {row['categories']} | {mine:.1f} | {theirs:.1f} | "
              f"{means} | {row['largest']:.4f} | {row['mean']:+.5f} |", flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
