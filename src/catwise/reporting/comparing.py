"""Runs side by side: what differs between them, what they reach, and what a seed changes.

Runs that differ by nothing but the seed are one *variant*: its scores have a mean and a standard
deviation over the seeds. On given test rows every run is compared with a reference, row by row;
without them with its own original head, as its `evaluation.json` says.

The interval of a variant's mean difference is the mean of its runs' paired intervals. As the
standard error of a mean is at most the mean of the standard errors, whatever runs share, it is
never too short for the rows; how seeds differ stands beside it and is not in it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._json import json_ready, number
from catwise._reported import Reported
from catwise._text import gain, plural, score, some, value_text
from catwise._version import __version__
from catwise.errors import ConfigError, OutputError, nearest
from catwise.heads import Head, load_head
from catwise.labels import ChosenCells, LabelPolicy, PartialLabels
from catwise.metrics.evaluating import compare_heads
from catwise.metrics.pooling import By
from catwise.progress import Progress, ProgressCallback
from catwise.reporting.run import read_run, run_document
from catwise.reporting.summary import bounds_text, is_loss, metric_label

ORIGINAL: Final = "original head"
IN_SAMPLE: Final = "in_sample"
_VERDICTS: Final = ("helped", "harmed", "no_difference", "not_judged", IN_SAMPLE)
_NO_SETTING: Final = frozenset({"catwise", "torch", "device", "base", "seed"})
_FITTING: Final = ("train labels", "valid labels")
_READING: Final = frozenset(
    {"path", "dataset", "options", "encoding", "layout", "split", "split_column", "category"}
)
"""What of the labels' description says how they were read, rather than what was found."""


class Run(NamedTuple):
    """A run that is compared.

    Attributes:
        name: of its folder, or as given.
        head: what came of it.
        seed: that it was made with, or None.
        settings: what was asked for, by dotted names, without the seed.
        evaluation: on its own test rows, or None.
    """

    name: str
    head: Head
    seed: int | None
    settings: Mapping[str, str]
    evaluation: Mapping[str, Any] | None


@dataclass(frozen=True, eq=False, repr=False)
class RunComparison(Reported):
    """Runs side by side.

    Attributes:
        rows: a JSON-ready dict for each run, metric and category, and for each mean, where
            `category` is None: run, variant, seed, metric, category, score, reference, difference,
            difference_low, difference_high, outcome, n_positive, n_negative.
        variants: a JSON-ready dict for each variant and metric: variant, settings (what differs
            between variants), runs, seeds, score and score_sd over the seeds, difference,
            difference_low, difference_high, difference_sd, verdict ("helped", "harmed",
            "no_difference", "not_judged", "in_sample"; None for the reference alone), better and
            worse (categories, mean over runs), same_head (whether a seed changes nothing; None for
            one run).
        metrics: their names.
        reference: the name of the run that all are compared with, or `ORIGINAL`.
        level: confidence level of the intervals.
        notes: what to know about it, a sentence each.
    """

    rows: list[dict[str, Any]]
    variants: list[dict[str, Any]]
    metrics: tuple[str, ...]
    reference: str
    level: float
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        n = len({one["variant"] for one in self.variants})
        return f"RunComparison(n_variants={n}, reference={self.reference!r})"

    def sentences(self) -> list[str]:
        """What each variant shows against the reference, by the first metric, in plain words."""
        return [
            _sentence(one, self.reference, self.level)
            for one in self.variants
            if one["metric"] == self.metrics[0] and one["difference"] is not None
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            "metrics": list(self.metrics),
            "reference": self.reference,
            "level": self.level,
            "variants": self.variants,
            "rows": self.rows,
            "notes": list(self.notes),
        }

    def page_document(self) -> dict[str, Any]:
        """What the page is made of, JSON-ready."""
        ready: dict[str, Any] = json_ready(self.to_dict())
        more = {"sentences": self.sentences()}
        return {"kind": "runs", "catwise": __version__, **ready, **more}


def compare_runs(
    runs: Mapping[str, Any] | Sequence[str | os.PathLike[str]],
    data: tuple[Any, PartialLabels] | None = None,
    *,
    against: str | Head | None = None,
    metrics: Sequence[str] = ("average_precision", "auroc"),
    by: By = None,
    pool: str = "mean",
    chosen: ChosenCells | None = None,
    level: float = 0.95,
    device: str | None = None,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> RunComparison:
    """Compare runs of `tune` or `select`: paired differences, and means over seeds.

    Args:
        runs: folders of runs, or results by name, or folders by name; 2 or more.
        data: features and labels of test rows, on which every run is scored anew. Without them the
            runs' own evaluations are shown, each against its original head.
        against: with `data`: the name of the run that the others are compared with, or a head; by
            default the first run.
        metrics: names; the first gives the verdicts. Without `data`: those that the runs have.
        by: as in `evaluate`.
        pool: as in `evaluate`.
        chosen: as in `evaluate`.
        level: confidence level of the intervals, in (0, 1); without `data` the runs' own.
        device: where logits are computed.
        force: compare heads that do not match the rows.
        progress: called after each run.

    Raises:
        ConfigError: If there are fewer than 2 runs, or the reference is none of them; without
            `data`, if a run was not judged on test rows.
        OutputError: If a folder is not a run, or is not as it was written.
        CatwiseError: As `evaluate`.

    >>> import catwise
    >>> from catwise.testing import make_task
    >>> task = make_task(seed=0)
    >>> made = {f"seed {i}": catwise.tune(task.head, task.train.pair, task.valid.pair, seed=i)
    ...         for i in range(2)}
    >>> found = compare_runs(made, task.test.pair)
    >>> found.variants[0]["runs"], found.variants[0]["score_sd"] < 0.05
    (['seed 0', 'seed 1'], True)
    """
    read = read_runs(runs)
    names = _variants(read)
    if data is None:
        if against is not None:
            raise ConfigError(
                "a reference needs test rows.",
                found="against without data",
                remedy="give features and labels of test rows (--features, --labels)",
            )
        rows, level = _own_rows(read)
        reference, notes = ORIGINAL, _unlike(read)
    else:
        head, reference = _reference(read, against)
        options = {"metrics": metrics, "by": by, "pool": pool, "level": level, "device": device}
        more = {"chosen": chosen, "force": force}
        rows, notes = _scored(read, head, reference, data, progress, **options, **more)
    for row in rows:
        row["variant"] = names[row["run"]]
    order = tuple(dict.fromkeys(row["metric"] for row in rows))
    variants = _summed(read, names, rows, order)
    notes += _about_seeds(variants, order[0])
    return RunComparison(rows, variants, order, reference, level, tuple(notes))


def read_runs(runs: Mapping[str, Any] | Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Runs from their folders or results, by names of their own."""
    if not isinstance(runs, Mapping):
        runs = dict(zip(run_names([os.fspath(one) for one in runs]), runs, strict=True))
    if len(runs) < 2:
        raise ConfigError("a comparison takes two runs or more.", found=plural(len(runs), "run"))
    return [_read(str(name), one) for name, one in runs.items()]


def run_names(paths: list[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    parts = [Path(os.path.normpath(path)).parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1)
        raise ConfigError("a run is given twice.", found=f"'{twice}'")
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-n:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read(name: str, given: Any) -> Run:
    """One run: a folder, or a result."""
    if not isinstance(given, (str, os.PathLike)):
        if not hasattr(given, "head") or not hasattr(given, "config"):
            raise ConfigError(
                f"the run {name!r} is not one.",
                found=type(given).__name__,
                expected="a folder that `catwise tune` wrote, or what `tune` or `select` gave",
            )
        document, head = run_document(given), given.head
    else:
        folder = Path(given)
        inside = folder / "run"  # of `catwise fix`
        folder = inside if (inside / "head.safetensors").is_file() else folder
        if not (folder / "head.safetensors").is_file():
            raise OutputError(
                f"'{folder}' is not a run.",
                found="no head.safetensors in it",
                expected="a folder that `catwise tune`, `select` or `fix` wrote",
            )
        document, head = read_run(folder), load_head(folder / "head.safetensors")
    config = document.get("config") or {}
    seed = config.get("seed")
    return Run(
        name,
        head,
        seed if isinstance(seed, int) else None,
        _settings(config, document.get("inputs") or {}),
        document.get("evaluation"),
    )


def _settings(config: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for, by dotted names: options, and how labels were read."""
    given = {key: value for key, value in config.items() if key not in _NO_SETTING}
    if "policy" in given:
        given["policy"] = given["policy"] or LabelPolicy().to_dict()
    found = dict(_flat(given, ""))
    for what, about in inputs.items():
        if what in _FITTING and isinstance(about, Mapping):
            own = {key: value for key, value in about.items() if key in _READING}
            found |= dict(_flat(own, what))
    return found


def _flat(value: Any, name: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value_text(value)


def _differing(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that runs do not have in common, in the order of the first that has it.

    Options that belong to one preset say nothing where presets differ.
    """
    every = dict.fromkeys(key for run in runs for key in run.settings)
    found = [key for key in every if len({run.settings.get(key, "") for run in runs}) > 1]
    if "preset" in found:
        found = [
            key
            for key in found
            if not key.startswith("options.") or all(key in run.settings for run in runs)
        ]
    return found


def _variants(runs: Sequence[Run]) -> dict[str, str]:
    """The name of each run's variant: those of its runs."""
    differ = _differing(runs)
    kinds: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        kinds.setdefault(tuple(run.settings.get(key, "") for key in differ), []).append(run.name)
    return {name: some(own, 3) for own in kinds.values() for name in own}


def _reference(runs: Sequence[Run], against: str | Head | None) -> tuple[Head, str]:
    """The head that all are compared with, and its name."""
    if isinstance(against, Head):
        return against, "the reference"
    heads = {run.name: run.head for run in runs}
    name = runs[0].name if against is None else against
    if name not in heads:
        raise ConfigError(
            f"{name!r} is none of the runs{nearest(name, heads)}.",
            expected=", ".join(map(repr, heads)),
        )
    return heads[name], name


def _scored(
    runs: Sequence[Run],
    head: Head,
    reference: str,
    data: tuple[Any, PartialLabels],
    progress: ProgressCallback | None,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every run against the reference, on the rows given."""
    rows: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    for at, run in enumerate(runs):
        found = compare_heads(head, run.head, data, **options)
        is_reference = run.name == reference
        for metric, one in found.comparisons.items():
            mean = {"outcome": IN_SAMPLE if found.in_sample else one.verdict, **one.mean()}
            lines = ({"category": None, **mean}, *one.records())
            rows += [_row(run, metric, row, is_reference=is_reference) for row in lines]
        told = found.notes
        if found.in_sample:
            told += (_SEEN,)
        notes |= dict.fromkeys(_named(note, run.name, reference) for note in told)
        if progress is not None:
            progress(Progress("compare", at + 1, len(runs), run.name))
    return rows, list(notes)


_SEEN: Final = (
    "some of these rows fitted or selected the head before or the head after: the comparison is in "
    "sample, and gives no verdict."
)


def _named(note: str, run: str, reference: str) -> str:
    """A note of a comparison of two heads, with the names that they have here."""
    return note.replace("the head before", repr(reference)).replace("the head after", repr(run))


def _row(run: Run, metric: str, row: Mapping[str, Any], *, is_reference: bool) -> dict[str, Any]:
    """A line of the comparison; the reference has no difference to itself."""
    differs = () if is_reference else ("difference", "difference_low", "difference_high", "outcome")
    return {
        "run": run.name,
        "variant": "",
        "seed": run.seed,
        "metric": metric,
        "category": row["category"],
        "score": row["after"],
        "reference": row["before"],
        **{key: row.get(key) if key in differs else None
           for key in ("difference", "difference_low", "difference_high", "outcome")},
        "n_positive": row.get("n_positive"),
        "n_negative": row.get("n_negative"),
    }  # fmt: skip


def _own_rows(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], float]:
    """What the runs themselves say of their test rows."""
    lacking = [run.name for run in runs if run.evaluation is None]
    if lacking:
        raise ConfigError(
            f"{lacking[0]!r} was not judged on test rows.",
            found=f"{len(lacking):,} such runs",
            expected="runs with test rows, or test rows to compare them on",
            remedy="give features and labels of test rows: compare_runs(runs, (features, labels)) "
            "(--features, --labels)",
        )
    rows, levels = [], set()
    for run in runs:
        found = run.evaluation or {}
        levels.add(float(found["level"]))
        first = found["metric"]
        for metric, mean in found["means"].items():
            low, high = mean["difference_low"], mean["difference_high"]
            verdict = _verdict(mean["difference"], low, high, metric)
            rows.append(_row(run, metric, {"category": None, "outcome": verdict, **mean},
                             is_reference=False))  # fmt: skip
            for one in found["categories"]:
                own = one if metric == first else {**one, **_NONE, **one["other_metrics"][metric]}
                rows.append(_row(run, metric, own, is_reference=False))
    if len(levels) > 1:
        raise ConfigError(
            "the runs have intervals of different levels.",
            found=", ".join(f"{level:.0%}" for level in sorted(levels)),
            expected="one level",
            remedy="give features and labels of test rows, to compare them anew",
        )
    return rows, levels.pop()


_OWN: Final = (
    "Each run is compared with its own original head, on its own test rows; give test rows to "
    "compare runs with one another, row by row."
)
_NONE: Final = dict.fromkeys(
    ("before", "after", "difference", "difference_low", "difference_high", "outcome")
)


def _unlike(runs: Sequence[Run]) -> list[str]:
    """What keeps the runs' own evaluations from being compared, in words."""
    sizes = {(run.evaluation or {}).get("n_rows") for run in runs}
    notes = [_OWN]
    if len(sizes) > 1:
        counts = ", ".join(f"{n:,}" for n in sorted(n for n in sizes if n is not None))
        notes.append(f"The runs were judged on different test rows ({counts} rows).")
    return notes


def _summed(
    runs: Sequence[Run],
    names: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
) -> list[dict[str, Any]]:
    """A line for each variant and metric."""
    differ, found = _differing(runs), []
    for variant in dict.fromkeys(names.values()):
        own = [run for run in runs if names[run.name] == variant]
        settings = {key: own[0].settings.get(key) for key in differ}
        about = {"variant": variant, "settings": settings, "runs": [run.name for run in own],
                 "seeds": [run.seed for run in own], "same_head": _is_same(own)}  # fmt: skip
        for metric in metrics:
            part = [row for row in rows if row["variant"] == variant and row["metric"] == metric]
            found.append({**about, "metric": metric, **moments(part, metric)})
    return found


def moments(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Means and standard deviations over the runs of a variant, from the means of the runs.

    Rows are those of `RunComparison.rows`; the means are those whose category is None.
    """
    means = [row for row in rows if row["category"] is None]
    score, score_sd = _mean_sd(row["score"] for row in means)
    compared = [row for row in means if row["difference"] is not None]
    difference, difference_sd = _mean_sd(row["difference"] for row in compared)
    low, _ = _mean_sd(row["difference_low"] for row in compared)
    high, _ = _mean_sd(row["difference_high"] for row in compared)
    outcomes = [row["outcome"] for row in rows if row["category"] is not None]
    judged = bool(compared) and any(outcomes)
    seen = any(row["outcome"] == IN_SAMPLE for row in compared)
    verdict = IN_SAMPLE if seen else _verdict(difference, low, high, metric)
    return {
        "score": score,
        "score_sd": score_sd,
        "difference": difference,
        "difference_sd": difference_sd,
        "difference_low": low,
        "difference_high": high,
        "verdict": verdict if compared else None,
        **{
            word: outcomes.count(word) / len(compared) if judged else None
            for word in ("better", "worse")
        },
    }


def _mean_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (of a sample); None where one is not known, or of one alone."""
    given: NDArray[np.float64] = np.array(
        [math.nan if value is None else value for value in values], dtype=np.float64
    )
    if not given.size or np.isnan(given).any():
        return None, None
    spread = float(given.std(ddof=1)) if given.size > 1 else None
    return number(float(given.mean())), spread


def _verdict(difference: float | None, low: float | None, high: float | None, metric: str) -> str:
    """What an interval shows; where heads are the same there is none."""
    if low is None or high is None:
        return "no_difference" if difference == 0.0 else "not_judged"
    if low <= 0.0 <= high:
        return "no_difference"
    return "harmed" if (low > 0.0) == is_loss(metric) else "helped"


def _is_same(runs: Sequence[Run]) -> bool | None:
    """Whether runs of different seeds came to one head; None where there is one seed."""
    if len({run.seed for run in runs}) < 2:
        return None
    return len({run.head.digest for run in runs}) == 1


def _about_seeds(variants: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Where a seed changes nothing, or one seed stands twice."""
    notes = []
    for one in variants:
        if one["metric"] != metric:
            continue
        seeds = ", ".join(map(str, one["seeds"]))
        if one["same_head"]:
            notes.append(
                f"The seed changes nothing in {one['variant']}: the runs of seeds {seeds} have the "
                "same head. Their standard deviation of 0 says nothing of chance."
            )
        elif one["score_sd"] == 0.0:
            notes.append(
                f"The seed changes no {metric_label(metric)} in {one['variant']}, though the heads "
                "differ."
            )
        if len(set(one["seeds"])) < len(one["seeds"]):
            notes.append(
                f"In {one['variant']} a seed stands twice ({seeds}): those runs are alike, and "
                "the standard deviation is too small."
            )
    return notes


_SAID: Final = dict(
    zip(
        _VERDICTS,
        (
            "better than",
            "worse than",
            "no difference shown to",
            "not judged against",
            "in sample, so no verdict against",
        ),
        strict=True,
    )
)


def _sentence(row: Mapping[str, Any], reference: str, level: float) -> str:
    seeds = f" in the mean of {len(row['runs'])} runs" if len(row["runs"]) > 1 else ""
    bounds = bounds_text(row["difference_low"], row["difference_high"], level)
    return (
        f"{row['variant']}: {_SAID[row['verdict']]} {reference}, mean {metric_label(row['metric'])}"
        f" {score(row['score'])} ({gain(row['difference'])}, {bounds}){seeds}."
    )
