"""Shares, intervals, tables and bars from the results of `_quality_run.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from _quality_task import METHODS, data_set

TITLES = {
    "base": "base",
    "bp_bce": "paper BP-BCE",
    "bp_asl": "paper BP-ASL",
    "select": "default (select)",
    "default": "default",
    "ceiling": "ceiling",
}
PAPER = ("bp_bce", "bp_asl")
MAX_WORSE = 0.01

Run = dict[str, Any]


class Share(NamedTuple):
    """Share of what the ceiling could gain that a method gained.

    Attributes:
        value: mean over data sets.
        replicates: (R,) of it.
        by_data_set: each data set's own.
    """

    value: float
    replicates: np.ndarray
    by_data_set: dict[str, float]

    def minus(self, other: Share) -> Share:
        return Share(self.value - other.value, self.replicates - other.replicates, {})

    def __str__(self) -> str:
        low, high = np.quantile(self.replicates, [0.025, 0.975])
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


def picked(run: Run) -> str:
    """The better of the published methods by its validation score."""
    return max(PAPER, key=lambda name: run["results"][name]["selected_on"])


def share(runs: list[Run], method: str) -> Share:
    """Σ(method − base) / Σ(ceiling − base) in each data set, then the mean over data sets.

    Args:
        runs: of tasks, with the results of every method.
        method: a key of `METHODS`, or "P" for the better published one of each task.
    """
    values, replicates, own = [], [], {}
    for name in sorted({data_set(run["task"]) for run in runs}):
        gained, possible = 0.0, 0.0
        drawn, drawn_possible = np.zeros(1), np.zeros(1)
        for run in runs:
            if data_set(run["task"]) != name:
                continue
            results = run["results"]
            chosen, base = results[picked(run) if method == "P" else method], results["base"]
            top = results["ceiling"]
            gained += chosen["map"] - base["map"]
            possible += top["map"] - base["map"]
            drawn = drawn + np.subtract(chosen["replicates"], base["replicates"])
            drawn_possible = drawn_possible + np.subtract(top["replicates"], base["replicates"])
        own[name] = gained / possible
        values.append(own[name])
        replicates.append(drawn / drawn_possible)
    return Share(float(np.mean(values)), np.mean(replicates, axis=0), own)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _name(run: Run) -> str:
    return run["task"] + (f", mask {run['seed']}" if run["keep_valid"] < 1 else "")


def _scores(runs: list[Run]) -> str:
    names = list(TITLES)
    header = ["task", *TITLES.values(), "seconds " + " / ".join(names[1:])]
    rows = []
    for run in runs:
        r = run["results"]
        cells = [f"{r[n]['map']:.4f}" + ("*" if n == picked(run) else "") for n in names]
        seconds = " / ".join(f"{r[n]['seconds']:.1f}" for n in names[1:])
        rows.append([_name(run), *cells, seconds])
    mean = [f"{np.mean([run['results'][n]['map'] for run in runs]):.4f}" for n in names]
    spent = " / ".join(
        f"{np.mean([run['results'][n]['seconds'] for run in runs]):.1f}" for n in names[1:]
    )
    rows.append(["mean", *mean, spent])
    return _table(header, rows) + "\n\n\\* the published method that validation picks (P)"


def _difference(run: Run, method: str) -> tuple[float, float]:
    """Difference to the base and its bootstrap standard error."""
    one, base = run["results"][method], run["results"]["base"]
    replicates = np.subtract(one["replicates"], base["replicates"])
    return one["map"] - base["map"], float(replicates.std(ddof=1))


def _differences(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        cells = []
        for name in METHODS:
            difference, error = _difference(run, name)
            v = run["results"][name]["verdicts"]
            tally = f"{v['worse']}/{v['better']}/{v['tested']}"
            cells.append(f"{difference:+.4f} ± {error:.4f} ({tally})")
        rows.append([_name(run), *cells])
    return _table(["task", *(TITLES[n] for n in METHODS)], rows)


def _shares(runs: list[Run]) -> str:
    rows = []
    sets = sorted({data_set(run["task"]) for run in runs})
    best = share(runs, "P")
    for name in (*METHODS, "P"):
        one = best if name == "P" else share(runs, name)
        title = "P" if name == "P" else TITLES[name]
        rest = "" if name == "P" else str(one.minus(best))
        rows.append([title, *(f"{one.by_data_set[s]:.3f}" for s in sets), str(one), rest])
    return _table(["share", *sets, "mean over data sets", "minus P"], rows)


def _seeds(runs: list[Run]) -> str:
    seeds = sorted({run["seed"] for run in runs})
    if len(seeds) < 2:
        return ""
    rows = []
    for seed in seeds:
        of = [run for run in runs if run["seed"] == seed]
        rows.append([str(seed), *(f"{share(of, n).value:.3f}" for n in (*METHODS, "P"))])
    return _table(["mask", *(TITLES[n] for n in METHODS), "P"], rows)


def bars(runs: list[Run]) -> list[tuple[str, str, bool]]:
    """What is asked, what was found, and whether it passes."""
    best = share(runs, "P")
    complete = all(run["keep_valid"] == 1 for run in runs)
    wanted = {"default": 0.25, "select": 0.05} if complete else {"default": 0.10}
    out = []
    for name, margin in wanted.items():
        found = share(runs, name).minus(best)
        ask = f"{TITLES[name]}: share at least P + {margin:.2f}"
        out.append((ask, f"P + {found}", found.value >= margin))
    for name in ("default", "select"):
        margins = [(d + e, _name(run), d, e) for run in runs for d, e in [_difference(run, name)]]
        low = min(margins)
        ask = f"{TITLES[name]}: no task below base by more than its bootstrap error"
        out.append((ask, f"lowest: {low[1]} {low[2]:+.4f} ± {low[3]:.4f}", low[0] >= 0))
    for name in ("default", "select"):
        verdicts = [run["results"][name]["verdicts"] for run in runs]
        worse, tested = (sum(v[k] for v in verdicts) for k in ("worse", "tested"))
        ask = f"{TITLES[name]}: at most {MAX_WORSE:.0%} of the changed categories worse"
        out.append((ask, f"{worse} of {tested}", worse <= MAX_WORSE * tested))
    return out


def report(runs: list[Run], *, half: int, keep_valid: float, resamples: int) -> str:
    """The whole page, in Markdown."""
    runs = sorted(runs, key=lambda run: (run["task"], run["seed"]))
    missing = [
        _name(run) for run in runs if not {"base", *METHODS, "ceiling"} <= run["results"].keys()
    ]
    runs = [run for run in runs if _name(run) not in missing]
    if not runs:
        return "No task is finished."
    checks = [[ask, found, "pass" if ok else "FAIL"] for ask, found, ok in bars(runs)]
    parts = [
        f"## Test mean AP, half {half}" + (" (final)" if half == 2 else " (design)"),
        f"{keep_valid:.0%} of the validation labels known; {len(runs)} runs"
        + (f"; unfinished: {', '.join(missing)}" if missing else ""),
        _scores(runs),
        "### Difference to base",
        (
            "± bootstrap standard error; (significantly worse / better / tested): changed "
            "categories with at least 20 test positives, Benjamini–Hochberg at 5% per task."
        ),
        _differences(runs),
        "### Shares",
        (
            "Σ(method − base) / Σ(ceiling − base) per data set; 95% by a bootstrap of "
            f"{resamples:,} replicates over test rows, paired over methods and tasks of a data "
            "set, stratified (positives and negatives of each category drawn apart)."
        ),
        _shares(runs),
        _seeds(runs),
        "### Bars",
        _table(["bar", "found", ""], checks),
    ]
    return "\n\n".join(part for part in parts if part)
