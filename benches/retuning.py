"""One changed category of a run: how long does `retune` take beside the whole run?

    OMP_NUM_THREADS=2 python benches/retuning.py --scale issue [--repeats 5] [--json FILE]

A run of the preset `default` is made, its rows are read once for `retune`, and then 20 known
validation labels of one category are turned round, of another category each time. Printed are wall
time and CPU time (of all threads; wall time means little on a shared machine) of the run, of the
reading, of `retune` with rows that were read, and once without; and how far the new rows are from
those of a whole run with the same labels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _synthetic import SCALES, make_task

import catwise


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call gives, and its seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return found, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=sorted(SCALES), default="issue")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    task = make_task(SCALES[args.scale], seed=args.seed)
    head = catwise.Head(task.weight, task.bias)
    names = head.categories
    train, valid = (
        (part.features, catwise.PartialLabels(part.codes.numpy())) for part in task[2:4]
    )
    run, seconds = timed(lambda: catwise.tune(head, train, valid))
    found = {"tune": seconds}
    rows, found["read_retune_rows"] = timed(lambda: catwise.read_retune_rows(run, train, valid))
    calls = []
    for n in range(args.repeats):
        codes = valid[1].codes.copy()
        codes[np.flatnonzero(codes[:, n] >= 0)[:20], n] ^= 1
        changed = valid[0], catwise.PartialLabels(codes)
        new, seconds = timed(
            lambda n=n, changed=changed: catwise.retune(
                run, train, changed, categories=[names[n]], rows=rows
            )
        )
        calls.append(seconds)
    found["retune, rows read (median)"] = {
        key: float(np.median([one[key] for one in calls])) for key in ("wall", "cpu")
    }
    _, found["retune, nothing read"] = timed(
        lambda: catwise.retune(run, train, changed, categories=[names[n]])
    )
    anew, _ = timed(lambda: catwise.tune(head, train, changed))
    near = torch.nn.functional.cosine_similarity(new.head.weight[n], anew.head.weight[n], dim=0)
    for name, seconds in found.items():
        print(f"{name:30s} {seconds['wall']:8.3f} s   CPU {seconds['cpu']:8.3f} s")
    print(f"cosine of the last row with that of a whole run: {float(near):.5f}")
    if args.json:
        args.json.write_text(json.dumps({"scale": args.scale, "seconds": found}, indent=2))


if __name__ == "__main__":
    main()
