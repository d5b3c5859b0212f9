"""What `catwise suggest` saves over labels at random, and what it finds of wrong labels.

    python benches/suggest.py --data TASKS --out FILE.json [--half 1] [--seeds 0 1 2]

Labelling is simulated on ready tasks: 10% of the validation cells are known, more are bought, and
the head is tuned anew by `default`, which is told what was chosen. Bought are the cells of
`suggest` (a fifth of them at random), or random ones. Shown are, on a half of the test rows: how
many random cells give the mean average precision that the suggested ones give; and the gain that
the tuning reports beside the true one. Then validation labels are made wrong: 5% of all, or a fifth
of the positives; what the two lists find at the number of wrong labels, beside a single list by
loss, which is cleanlab's self-confidence. FILE keeps what is done, of both halves.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import half_of, labelled

from catwise import Head, PartialLabels, suggest, tune
from catwise.metrics import average_precision, log_loss

TASKS = (
    "posters_0.1_AN_bce",
    "posters_0.1_Ignore_bce",
    "tmc2007_0.1_AN_bce",
    "bgg_0.1_AN_bce",
)
IMAGES = ("posters", "bgg")
START = 0.1
BOUGHT = (0.05, 0.1, 0.2)
NOT_TOLD = (0.2,)
RANDOM = (0.05, 0.1, 0.2, 0.3, 0.45)


class Simulation:
    """A task in which some validation cells are known."""

    def __init__(self, path: Path, seed: int) -> None:
        task = dict(np.load(path).items())
        self.train = labelled({**task, "y_train": task["y_train"].astype(np.int8)}, "train")
        self.head = Head(task["weight"].astype(np.float32), task["bias"].astype(np.float32))
        self.z, self.truth = task["z_valid"].astype(np.float32), task["y_valid"].astype(np.int8)
        self.ids = [f"image {row}" for row in range(len(self.z))]
        self.test = task["z_test"].astype(np.float64), task["y_test"].astype(np.int8)
        self.seed = seed
        self.drawn = np.random.default_rng(seed).random(self.truth.shape)

    def labels(self, known: np.ndarray) -> PartialLabels:
        """The labels of the cells that are known."""
        codes = np.where(known, self.truth, -1).astype(np.int8)
        return PartialLabels(codes, self.ids, self.train[1].categories)

    def tuned(self, labels: PartialLabels, chosen: Any = None, *, force: bool = False) -> Any:
        """By `default`."""
        options = {"seed": self.seed, "chosen": chosen, "force": force}
        return tune(self.head, self.train, (self.z, labels), **options)

    def scores(self, head: Head) -> dict[str, float]:
        """Mean AP and log-loss on each half of the test rows."""
        logits = torch.from_numpy(self.test[0]) @ head.weight.double().T + head.bias.double()
        found = {}
        for half in (1, 2):
            rows = half_of(len(self.test[1]), half)
            z, y = logits[torch.from_numpy(rows)], self.test[1][rows]
            found[f"ap {half}"] = float(average_precision(z, y).nanmean())
            found[f"loss {half}"] = float(log_loss(z, y).nanmean())
        return found

    def row(self, run: Any) -> dict[str, float]:
        """Scores, those of the original head, and the gain that is reported."""
        before = {f"before {name}": value for name, value in self.scores(self.head).items()}
        return {**self.scores(run.head), **before, "said": run.summary["gain"]}


def curves(path: Path, seed: int) -> dict[str, dict[str, float]]:
    """By what was bought: suggested cells, the same told as if they were a sample, random ones."""
    one = Simulation(path, seed)
    known = one.drawn < START
    run = one.tuned(one.labels(known))
    found = {"start": one.row(run)}
    at = {name: i for i, name in enumerate(one.ids)}
    column = {name: c for c, name in enumerate(one.train[1].categories)}
    for share in BOUGHT:
        said = suggest(run, one.labels(known), round(share * known.size), seed=seed)
        more = known.copy()
        for cell in said.to_label:
            more[at[cell["id"]], column[cell["category"]]] = True
        labels = one.labels(more)
        found[f"suggested {share:g}"] = one.row(one.tuned(labels, said.chosen))
        if share in NOT_TOLD:
            found[f"not told {share:g}"] = one.row(one.tuned(labels))
    for share in RANDOM:
        found[f"random {share:g}"] = one.row(one.tuned(one.labels(one.drawn < START + share)))
    return found


def wrong(path: Path, seed: int) -> dict[str, float]:
    """Precision at the number of wrong labels: of the two lists, and of one list by loss."""
    one, random = Simulation(path, seed), np.random.default_rng(100 + seed)
    found = {}
    for kind, share in (("flipped", 0.05), ("missed", 0.2)):
        is_wrong = random.random(one.truth.shape) < share
        if kind == "missed":
            is_wrong &= one.truth == 1
        codes = np.where(is_wrong, 1 - one.truth, one.truth).astype(np.int8)
        labels = PartialLabels(codes, one.ids, one.train[1].categories)
        run = one.tuned(labels, force=True)  # wrong labels may look mismatched
        counts = [int((is_wrong & (codes == code)).sum()) for code in (0, 1)]
        said = suggest(run, labels, 0, n_suspects=max(counts))
        lists = (said.false_negatives[: counts[0]], said.false_positives[: counts[1]])
        at = {name: i for i, name in enumerate(one.ids)}
        column = {name: c for c, name in enumerate(labels.categories)}
        hits = [is_wrong[at[r["id"]], column[r["category"]]] for part in lists for r in part]
        found[f"{kind}, two lists"] = float(np.mean(hits))
        z = run.folds.logits.astype(np.float64)
        loss = np.logaddexp(0.0, np.where(codes == 1, -z, z))
        first = np.argsort(-loss, axis=None)[: sum(counts)]
        found[f"{kind}, one list by loss"] = float(is_wrong.reshape(-1)[first].mean())
    return found


def saved(found: dict[str, dict[str, float]], share: float, half: int) -> float:
    """How many fewer cells than random ones give the same AP, as a share of these.

    Where it takes more, how many fewer random ones do, as a share of the suggested ones, below 0.
    """
    budgets = np.array([0.0, *RANDOM])
    names = ["start", *(f"random {one:g}" for one in RANDOM)]
    ap = np.maximum.accumulate([found[name][f"ap {half}"] for name in names])
    wanted = found[f"suggested {share:g}"][f"ap {half}"]
    needed = float(np.interp(wanted, ap + 1e-12 * np.arange(len(ap)), budgets))
    return (needed - share) / max(needed, share)


def gains(found: dict[str, dict[str, float]], how: str, half: int) -> tuple[float, float]:
    """The gain that is reported, and the true one."""
    row = found[how]
    return row["said"], row[f"ap {half}"] - row[f"before ap {half}"]


def show(rows: dict[str, Any], half: int) -> None:
    """What is saved and what is reported, by task and in the mean."""
    tasks = list(dict.fromkeys(key.split()[0] for key in rows))
    mean = {}
    for task in tasks:
        own = [row for key, row in rows.items() if key.startswith(f"{task} ")]
        mean[task] = {
            name: {key: float(np.mean([one[name][key] for one in own])) for key in own[0][name]}
            for name in own[0]
        }
    print(f"half {half} of the test rows, {len(rows)} simulations")
    print("| task | fewer labels at +5% | +10% | +20% | gain said / true at +20% | not told |")
    print("|---|---|---|---|---|---|")
    groups = {task: [task] for task in tasks} | {"all": tasks}
    groups["images"] = [task for task in tasks if task.startswith(IMAGES)]
    for name, chosen in groups.items():
        parts = [
            f"{np.mean([saved(mean[task], share, half) for task in chosen]):.0%}"
            for share in BOUGHT
        ]
        for how in ("suggested 0.2", "not told 0.2"):
            said, true = np.mean([gains(mean[task], how, half) for task in chosen], axis=0)
            parts.append(f"{said:.4f} / {true:.4f} ({said / true - 1:+.0%})")
        print(f"| {name} | {' | '.join(parts)} |")
    for share in BOUGHT:
        for what, key in (("AP", f"ap {half}"), ("log-loss", f"loss {half}")):
            d = np.array([row[f"suggested {share:g}"][key] - row[f"random {share:g}"][key]
                          for row in rows.values()])  # fmt: skip
            error = d.std(ddof=1) / d.size**0.5 if d.size > 1 else float("nan")
            print(f"{what} less random's at +{share:.0%}: {1e4 * d.mean():+.0f} ± "
                  f"{1e4 * error:.0f} (1e-4)")  # fmt: skip
    key = f"loss {half}"
    d = [row["suggested 0.2"][key] - row["not told 0.2"][key] for row in rows.values()]
    print(f"log-loss told less not told at +20%: {1e4 * np.mean(d):+.0f} (1e-4)")


def show_wrong(rows: dict[str, Any], tasks: list[str]) -> None:
    """What the lists find, by task and in the mean."""
    names = list(next(iter(rows.values())))
    print("| wrong labels, precision at their number | " + " | ".join(names) + " |")
    for task in [*tasks, ""]:
        own = [list(row.values()) for key, row in rows.items() if key.startswith(task)]
        values = " | ".join(f"{value:.2f}" for value in np.mean(own, axis=0))
        print(f"| {task or 'mean'} | {values} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CATWISE_TASKS"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--half", type=int, default=1, choices=(1, 2))
    parser.add_argument("--out", type=Path, required=True, help="keeps what is done")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of tasks: --data, or CATWISE_TASKS")
    warnings.simplefilter("ignore")
    rows = json.loads(args.out.read_text()) if args.out.exists() else {"curves": {}, "wrong": {}}
    for seed in args.seeds:
        for name in args.tasks:
            path, key = Path(args.data) / f"{name}.npz", f"{name} {seed}"
            for what, measure in (("curves", curves), ("wrong", wrong)):
                if key not in rows[what]:
                    rows[what][key] = measure(path, seed)
                    args.out.write_text(json.dumps(rows, indent=1))
    show(rows["curves"], args.half)
    show_wrong(rows["wrong"], args.tasks)


if __name__ == "__main__":
    main()
