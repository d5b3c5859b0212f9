"""Tuning on a vector for each category: time and memory, beside shared features of one vector.

    OMP_NUM_THREADS=2 python benches/category_features.py
    OMP_NUM_THREADS=2 python benches/category_features.py --categories 80 --features 768

A made-up task: the vector of a category tells its label, noisily; 30% of the training labels are
known, all of validation. Shared features are the first category's vectors, for all.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import catwise


def draw(
    rows: int, planted: np.ndarray[Any, np.dtype[np.float64]], known: float, seed: int
) -> tuple[Any, catwise.PartialLabels]:
    """Vectors (N, C, D) in half precision, and labels that they tell."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, *planted.shape), dtype=np.float32)
    labels = (np.einsum("ncd,cd->nc", z, planted) + rng.standard_normal(z.shape[:2]) > 1.5) * 1.0
    labels[rng.random(labels.shape) > known] = np.nan
    ids = [f"{seed}-{row}" for row in range(rows)]
    return z.astype(np.float16), catwise.PartialLabels.from_array(labels, encoding="nan", ids=ids)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("categories", 40), ("features", 256), ("train", 8000), ("valid", 3000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    asked = parser.parse_args()
    report = []
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(asked.categories, asked.features)) / asked.features**0.5
    train, valid = draw(asked.train, planted, 0.3, 1), draw(asked.valid, planted, 1.0, 2)
    wrong = planted + rng.normal(size=planted.shape) / asked.features**0.5
    head = catwise.Head(wrong.astype(np.float32), np.zeros(asked.categories, np.float32))
    shared = [(z[:, 0], labels) for z, labels in (train, valid)]
    data = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = f"{asked.train:,} + {asked.valid:,} rows, {asked.categories} × {asked.features}"
    print(f"{size}; {torch.get_num_threads()} threads; {data:.2f} GiB before tuning\n")
    print("| what | features | seconds | AP before | after | peak GiB |")
    print("|---|---|---|---|---|---|")
    for what, options in (
        ("default", {}),
        ("default, select", {"validation": "select"}),
        ("paper", {"preset": "paper"}),
    ):
        for features, pair in (("(N, C, D)", (train, valid)), ("(N, D)", shared)):
            began = time.perf_counter()
            result = catwise.tune(head, *pair, force=True, **options)  # type: ignore[arg-type]
            seconds = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            after = result.summary["after"] or result.summary["selected_on"]
            scores = f"{result.summary['before']:.3f} | {after:.3f}"
            report.append({"what": what, "features": features, "seconds": seconds, "after": after})
            print(f"| {what} | {features} | {seconds:.1f} | {scores} | {peak:.2f} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
