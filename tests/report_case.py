"""Documents of runs with as many categories as one likes, made from scores that are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from catwise._json import json_ready
from catwise.metrics import HeadComparison, compare_logits
from catwise.metrics.curves import draw_curves
from catwise.tuning.account.held_out import curves_document, evaluation_of

METRICS = ("average_precision", "auroc", "log_loss")


def make_document(
    n_categories: int,
    *,
    n_rows: int = 200,
    names: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
) -> dict[str, Any]:
    """What a page of a run is made of, with test rows: most gain, some lose, some lack labels."""
    rng = np.random.default_rng(seed)
    categories = tuple(names or (f"category {c}" for c in range(n_categories)))
    share = rng.uniform(0.05, 0.4, n_categories)
    codes = (rng.random((n_rows, n_categories)) < share).astype(np.int8)
    codes[:, rng.random(n_categories) < 0.05] = 0
    before, gain = rng.uniform(0.2, 1.5, n_categories), rng.normal(0.5, 0.5, n_categories)
    noise = rng.normal(size=(n_rows, n_categories))
    old = noise + before * codes - 1.5
    new = old + gain * codes + 0.3 * rng.normal(size=noise.shape)
    found = HeadComparison(
        comparisons={name: _compared(old, new, codes, name, categories) for name in metrics},
        n_in_sample=(0, 0),
        options={},
        notes=(),
    )
    evaluation = evaluation_of(found)
    records = [_record(row, index) for index, row in enumerate(evaluation["categories"])]
    curves = draw_curves({"before": old, "after": new}, codes, categories)
    document = {
        "catwise": "0",
        "kind": "tune",
        "date": "2026-01-01",
        "inputs": {"model": {"name": "resnet50"}, "train labels": {"path": "train.csv"}},
        "config": {"preset": "default", "seed": 0},
        "summary": {
            "metric": metrics[0], "n_categories": n_categories, "n_scored": n_categories,
            "before": 0.5, "after": 0.6, "gain": 0.1, "gain_low": 0.05, "gain_high": 0.15,
            "level": 0.95, "rows": {"train": 4000, "valid": n_rows},
        },
        "records": records,
        "gap": None,
        "notes": ["train: rows were joined by id."],
        "evaluation": evaluation,
        "curves": curves_document("test", curves),
    }  # fmt: skip
    ready: dict[str, Any] = json_ready(document)
    return ready


def _compared(old: Any, new: Any, codes: Any, metric: str, names: tuple[str, ...]) -> Any:
    from dataclasses import replace

    return replace(compare_logits(old, new, codes, metric), categories=names)


def _record(row: dict[str, Any], index: int) -> dict[str, Any]:
    scored = row["before"] is not None
    return {
        "category": row["category"],
        "index": index,
        "status": "replaced" if scored else "skipped",
        "reason": "gain" if scored else "no_known_positive_in_valid",
        "explanation": "It was better." if scored else "No positive is known.",
        "candidate": "penalty=1" if scored else "base",
        "metric": "average_precision",
        "before": row["before"],
        "after": row["after"],
        "gain": row["difference"],
        "gain_low": row["difference_low"],
        "gain_high": row["difference_high"],
        "selected_on": row["after"],
        "scored_on": "validation",
        "n_positive_train": 40,
        "n_negative_train": 1000,
        "n_positive_valid": row["n_positive"],
        "n_negative_valid": row["n_negative"],
        "test_outcome": row["outcome"],
    }
