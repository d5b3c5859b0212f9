"""One tuning task: what is given, the methods that tune its head, and their scores on test.

A task is a `.npz` with `z_train, z_valid, z_test` (n, D), the trained head's `weight` (C, D)
and `bias` (C,), `y_train` int8 (1, 0, −1 unknown), and complete `y_train_full, y_valid,
y_test`. `y_train_full` serves the ceiling only, `y_test` the scores only.
"""

from __future__ import annotations

import sys
import time
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

import catwise
from catwise.labels import drop_uniform
from catwise.metrics import average_precision, benjamini_hochberg, bootstrap_replicates

if TYPE_CHECKING:
    from pathlib import Path

METHODS: dict[str, dict[str, Any]] = {
    "bp_bce": {"preset": "paper", "methods": ["bp_bce"]},
    "bp_asl": {"preset": "paper", "methods": ["bp_asl"]},
    "select": {"preset": "default", "validation": "select"},
    "default": {"preset": "default"},
}
"""Options of `catwise.tune` for each method."""

ROUND_TRIP = 6  # decimals of a figure in the JSON
MIN_TEST_POSITIVES = 20
CEILING_TRAIN_WEIGHTS = (1.0, 0.3, 0.0)
CEILING_PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
CEILING_STEPS = 300
CEILING_LR = 3e-3


class Job(NamedTuple):
    """One task under one set of validation labels, and what of it is to be run."""

    path: Path
    half: int
    keep_valid: float
    seed: int
    resamples: int
    methods: tuple[str, ...]

    @property
    def key(self) -> dict[str, Any]:
        """What the results depend on, beside the method."""
        return {
            "task": self.path.stem,
            "half": self.half,
            "keep_valid": self.keep_valid,
            "seed": self.seed,
            "resamples": self.resamples,
        }


def data_set(task: str) -> str:
    """The name before the first underscore."""
    return task.split("_", maxsplit=1)[0]


def half_of(n_rows: int) -> np.ndarray:
    """(n,) 0 for the rows of half 1, 1 for those of half 2: the top bit of a Fibonacci hash."""
    index = np.arange(1, n_rows + 1, dtype=np.uint64)
    return (index * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(63)).astype(np.int64)


def say(*words: object) -> None:
    """Progress, on stderr."""
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


class Task(NamedTuple):
    """A head to tune, its data, and the half of the test rows that scores it."""

    name: str
    head: catwise.Head
    arrays: dict[str, np.ndarray]
    z_test: torch.Tensor
    y_test: np.ndarray

    @classmethod
    def read(cls, path: Path, half: int) -> Task:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        z_test, y_test = arrays.pop("z_test"), arrays.pop("y_test")
        rows = half_of(len(z_test)) == half - 1
        head = catwise.Head(arrays["weight"], arrays["bias"])
        z_test = torch.from_numpy(z_test[rows].astype(np.float32))
        return cls(path.stem, head, arrays, z_test, y_test[rows].astype(np.int8))

    def source(self, name: str) -> tuple[torch.Tensor, catwise.PartialLabels]:
        """Features and labels of "train" or "valid"; ids tell rows of equal content apart."""
        z, y = self.arrays[f"z_{name}"], self.arrays[f"y_{name}"]
        ids = [f"{name}-{i}" for i in range(len(y))]
        labels = catwise.PartialLabels.from_array(y, encoding="minus_one_unknown", ids=ids)
        return torch.from_numpy(z.astype(np.float32)), labels


# ----------------------------------------------------------------------------- the ceiling


def ceiling_logits(task: Task) -> torch.Tensor:
    """(N, C) test logits of the best head that all the labels could give, chosen on this half.

    BCE heads pulled to the base head are fitted to every label of train (at several weights)
    and of validation, over penalties from strong to weak. A denominator, not a method.
    """
    best, best_score = task.head.logits(task.z_test).float(), -1.0
    best_score = mean_ap(best, task.y_test)
    for train_weight in CEILING_TRAIN_WEIGHTS:
        weight, bias = _ceiling_heads(task, train_weight)
        for p in range(len(CEILING_PENALTIES)):
            logits = torch.addmm(bias[p], task.z_test, weight[p].T)
            score = mean_ap(logits, task.y_test)
            if score > best_score:
                best, best_score = logits, score
    return best


def _ceiling_heads(task: Task, train_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, C, D) weights and (P, C) biases, one head for each penalty, by Adam in one product.

    Each penalty's columns are independent of the others', so all are one wide head.
    """
    names = ("valid",) if train_weight == 0 else ("valid", "train")
    suffix = {"valid": "", "train": "_full"}
    z = torch.cat([torch.from_numpy(task.arrays[f"z_{n}"].astype(np.float32)) for n in names])
    y = [torch.from_numpy(task.arrays[f"y_{n}{suffix[n]}"].astype(np.float32)) for n in names]
    target = torch.cat(y).repeat(1, len(CEILING_PENALTIES))
    row_weight = torch.cat([torch.full((len(z), 1), 1.0 if n == "valid" else train_weight)
                            for n, z in zip(names, y, strict=True)])  # fmt: skip
    row_weight /= row_weight.sum()
    n_categories, n_features = task.head.weight.shape
    penalty = torch.tensor(CEILING_PENALTIES).repeat_interleave(n_categories)[:, None]
    base = task.head.weight.detach().float().repeat(len(CEILING_PENALTIES), 1)
    weight = base.clone().requires_grad_()
    bias = task.arrays["bias"].astype(np.float32)
    bias = torch.from_numpy(bias).repeat(len(CEILING_PENALTIES)).requires_grad_()
    adam = torch.optim.Adam([weight, bias], lr=CEILING_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, CEILING_STEPS)
    with torch.no_grad():
        for _ in range(CEILING_STEPS):
            slope = torch.addmm(bias, z, weight.T).sigmoid_().sub_(target).mul_(row_weight)
            weight.grad = torch.addmm(penalty * (weight - base), slope.T, z)
            bias.grad = slope.sum(0)
            adam.step()
            schedule.step()
    shape = (len(CEILING_PENALTIES), n_categories)
    return weight.detach().reshape(*shape, n_features), bias.detach().reshape(shape)


# --------------------------------------------------------------------------------- scoring


def mean_ap(logits: torch.Tensor, labels: np.ndarray) -> float:
    """Mean average precision over the categories where it is defined."""
    return float(average_precision(logits, labels).nanmean())


def p_values(difference: np.ndarray, replicates: np.ndarray) -> np.ndarray:
    """(C,) two-sided and counted, by the rule of `catwise.metrics.paired_bootstrap`.

    Args:
        difference: (C,) on the rows themselves, NaN where undefined.
        replicates: (R, C) of it.
    """
    side = np.minimum((replicates <= 0).sum(0), (replicates >= 0).sum(0))
    p = np.minimum(1.0, 2.0 * (1.0 + side) / (1.0 + len(replicates)))
    return np.where(np.isfinite(difference), p, np.nan)


def _verdicts(
    difference: np.ndarray, replicates: np.ndarray, changed: np.ndarray, labels: np.ndarray
) -> dict[str, int]:
    """How many changed categories with enough positives are significantly worse or better."""
    tested = changed & ((labels == 1).sum(0) >= MIN_TEST_POSITIVES) & np.isfinite(difference)
    p = np.where(tested, p_values(difference, replicates), np.nan)
    significant = benjamini_hochberg(p, 0.05)
    return {
        "replaced": int(changed.sum()),
        "tested": int(tested.sum()),
        "worse": int((significant & (difference < 0)).sum()),
        "better": int((significant & (difference > 0)).sum()),
    }


def run_job(job: Job) -> dict[str, Any]:
    """Run the methods of one job; a JSON-ready line with a result for each, "base" included."""
    torch.set_num_threads(1)
    task = Task.read(job.path, job.half)
    logits: dict[str, torch.Tensor] = {"base": task.head.logits(task.z_test).float()}
    results: dict[str, dict[str, Any]] = {"base": {"seconds": 0.0}}
    for name in job.methods:
        start = time.perf_counter()
        if name == "ceiling":
            logits[name], results[name] = ceiling_logits(task), {}
        else:
            logits[name], results[name] = _tuned(task, job, name)
        seconds = time.perf_counter() - start
        results[name]["seconds"] = round(seconds, 2)
        score = mean_ap(logits[name], task.y_test)
        say(f"{task.name} mask {job.seed}: {name} {score:.4f} in {seconds:.1f} s")
    _score(task, job, logits, results)
    return {**job.key, "results": results}


def _tuned(task: Task, job: Job, method: str) -> tuple[torch.Tensor, dict[str, Any]]:
    train, (z_valid, labels) = task.source("train"), task.source("valid")
    if job.keep_valid < 1:
        labels = drop_uniform(labels, job.keep_valid, job.seed)
    result = catwise.tune(task.head, train, (z_valid, labels), seed=0, **METHODS[method])
    changed = [int(record["status"] == "replaced") for record in result.records]
    facts = {
        "selected_on": result.summary["selected_on"],
        "after": result.summary["after"],
        "choice": result.summary["choice"],
        "changed": changed,
    }
    return result.head.logits(task.z_test).float(), facts


def _score(
    task: Task, job: Job, logits: dict[str, torch.Tensor], results: dict[str, dict[str, Any]]
) -> None:
    """Add test scores, bootstrap replicates of the mean, and the verdicts to the results.

    The draws depend on the data set, its labels and the half alone: replicates of any method,
    task, mask and run of one data set are of the same rows, thus paired.
    """
    seed = zlib.crc32(data_set(task.name).encode())
    names = list(logits)
    drawn = bootstrap_replicates(
        [logits[n] for n in names],
        task.y_test,
        "average_precision",
        n_resamples=job.resamples,
        seed=seed,
    )
    replicates = dict(zip(names, drawn, strict=True))
    ap = {n: average_precision(logits[n], task.y_test).numpy() for n in names}
    for name in names:
        out = results[name]
        out["map"] = float(np.nanmean(ap[name]))
        out["n_categories"] = int(np.isfinite(ap[name]).sum())
        out["ap"] = [None if np.isnan(v) else round(float(v), ROUND_TRIP) for v in ap[name]]
        out["replicates"] = np.nanmean(replicates[name], axis=1).round(ROUND_TRIP).tolist()
        if name in METHODS:
            changed = np.array(out["changed"], dtype=bool)
            difference = ap[name] - ap["base"]
            moved = replicates[name] - replicates["base"]
            out["verdicts"] = _verdicts(difference, moved, changed, task.y_test)
