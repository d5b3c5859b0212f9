"""Quality of catwise on real tuning tasks, against category-wise fine-tuning as published.

    python benches/_quality_run.py --data DIR [--tasks GLOB] [--keep-valid 0.3 --seeds 1 2 3]
                                   [--json FILE] [--jobs N] [--redo METHOD …] [--final]

DIR (or the environment variable CATWISE_TASKS) holds tasks as `.npz`; see `_quality_task.py`.
Test rows are cut in two by a hash of their index: half 1 is for design, half 2 is scored by
`--final` only. Prints Markdown: test mean AP of the base head, the published methods, catwise
and the ceiling that all labels would allow; shares of what the ceiling gains; and the bars.
Every finished task is appended to the JSON file (one line each), from which a run resumes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _quality_report import report
from _quality_task import METHODS, Job, run_job, say

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_MASK = 0
"""The seed of runs whose validation labels are all kept."""

KEYS = ("task", "half", "keep_valid", "seed", "resamples")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("CATWISE_TASKS")
    parser.add_argument("--data", type=Path, default=data, required=data is None)
    parser.add_argument("--final", action="store_true", help="score half 2 of the test rows")
    parser.add_argument("--tasks", default="*", metavar="GLOB", help="names without .npz")
    parser.add_argument("--keep-valid", type=float, default=1.0, metavar="SHARE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the masks")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--redo", nargs="+", default=[], choices=[*METHODS, "ceiling"])
    given = parser.parse_args()
    if not 0 < given.keep_valid <= 1:
        parser.error("--keep-valid takes a share in (0, 1]")
    if not list(tasks(given)):
        parser.error(f"no {given.tasks}.npz in {given.data}")
    return given


def tasks(given: argparse.Namespace) -> list[Path]:
    return sorted(Path(given.data).glob(f"{given.tasks}.npz"))


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in KEYS)


def stored(path: Path | None) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Lines of earlier runs; results of the same key are joined, the later win."""
    runs: dict[tuple[Any, ...], dict[str, Any]] = {}
    if path is None or not path.exists():
        return runs
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            say("skipped a broken line of", path)
            continue
        if not {*KEYS, "results"} <= line.keys():
            raise SystemExit(f"{path} is not a file of this bench; name another one.")
        runs.setdefault(key_of(line), line)["results"].update(line["results"])
    return runs


def lend_ceilings(runs: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """The ceiling is the same for every mask of the validation labels: fit it once."""
    found = {
        (run["task"], run["half"], run["resamples"]): run["results"]["ceiling"]
        for run in runs.values()
        if "ceiling" in run["results"]
    }
    for run in runs.values():
        top = found.get((run["task"], run["half"], run["resamples"]))
        if top is not None:
            run["results"].setdefault("ceiling", top)


def planned(
    given: argparse.Namespace, runs: dict[tuple[Any, ...], dict[str, Any]]
) -> Iterator[tuple[Job, bool]]:
    """Every job of this run, with the methods still to do, and whether there are any."""
    half = 2 if given.final else 1
    have = {
        (r["task"], r["half"], r["resamples"]) for r in runs.values() if "ceiling" in r["results"]
    }
    for seed in given.seeds if given.keep_valid < 1 else [NO_MASK]:
        for path in tasks(given):
            job = Job(path, half, given.keep_valid, seed, given.resamples, ())
            done = set(runs.get(key_of(job.key), {"results": {}})["results"]) - set(given.redo)
            ceiling = (path.stem, half, given.resamples)
            todo = [name for name in METHODS if name not in done]
            if "ceiling" not in done and ("ceiling" in given.redo or ceiling not in have):
                todo.append("ceiling")
                have.add(ceiling)
            yield job._replace(methods=tuple(todo)), bool(todo)


def finished(jobs: list[Job], n_processes: int) -> Iterator[dict[str, Any]]:
    """Lines, in the order in which they are ready."""
    if n_processes <= 1:
        yield from map(run_job, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        futures = [pool.submit(run_job, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()


def append(path: Path, line: dict[str, Any]) -> None:
    """One line, after a line that an interruption may have left unfinished."""
    broken = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * broken + json.dumps(line) + "\n")


def main() -> None:
    given = arguments()
    runs = stored(given.json)
    plan = list(planned(given, runs))
    todo = [job for job, needed in plan if needed]
    start = time.perf_counter()
    say(f"{len(plan)} runs, {len(todo)} of them to do")
    for i, line in enumerate(finished(todo, given.jobs), start=1):
        if given.json is not None:
            append(given.json, line)
        runs.setdefault(key_of(line), line)["results"].update(line["results"])
        spent = time.perf_counter() - start
        left = spent / i * (len(todo) - i)
        say(f"{i} of {len(todo)} done, {spent:.0f} s, about {left:.0f} s left")
    lend_ceilings(runs)
    shown = [runs[key_of(job.key)] for job, _ in plan]
    half = 2 if given.final else 1
    print(report(shown, half=half, keep_valid=given.keep_valid, resamples=given.resamples))


if __name__ == "__main__":
    main()
