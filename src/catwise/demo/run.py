"""The demonstration from end to end: scenes, network, tuning, clean test, files."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from catwise._io import (
    atomic_folder,
    atomic_path,
    folder_names,
    write_bytes,
    write_json,
    write_text,
)
from catwise._lock import translated
from catwise._options import check_options, described, option
from catwise.demo.model import HEAD_KEY, SceneNet, extract_features, fit_ceiling, train_network
from catwise.demo.scenes import CATEGORIES, SceneSet, make_scenes, read_digits, split_digits
from catwise.features import Features
from catwise.heads import Head, read_head, write_head
from catwise.heads.provenance import side_file
from catwise.labels import UNKNOWN, LabelPolicy, PartialLabels, drop_uniform, make_targets
from catwise.metrics import PairedComparison, compare_heads
from catwise.progress import Progress, ProgressCallback
from catwise.reporting import write_run
from catwise.tuning import TuneResult, tune

METHODS: Final = {
    "before": "before",
    "paper": "CFT as published",
    "default": "catwise",
    "ceiling": "ceiling: all labels known",
}
"""The rows of the table: key and name for people."""

_METRIC: Final = "average_precision"
_SPLITS: Final = ("train", "valid", "test")
_FILES: Final = {
    "checkpoint": "network.pt",
    "tuned_checkpoint": "network-tuned.pt",
    "features": "features.npz",
    "labels": "labels.csv",
    "table": "demo.json",
    "run": "run",
}


@described
@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demonstration.

    They were set by looking at the network before tuning and at the ceiling only: it knows its
    training scenes clearly better than others, and the ceiling is within reach.

    Raises:
        ConfigError: If a size is out of range.
    """

    n_train: int = option(4_000, above=0, help="Training scenes.")
    n_valid: int = option(600, above=0, help="Validation scenes, completely labelled.")
    n_test: int = option(
        2_000, above=0, help="Test scenes, completely labelled; they judge and choose nothing."
    )
    keep: float = option(0.2, above=0, high=1, help="Share of the training labels that stay known.")
    epochs: int = option(8, above=0, help="Passes of the network's training.")
    width: int = option(16, above=0, help="Of the network; the features are eight times as wide.")
    noise: float = option(0.15, above=0, help="Standard deviation of the noise on each pixel.")

    def __post_init__(self) -> None:
        check_options("sizes of the demonstration", self)


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demonstration made.

    Attributes:
        table: a dict for each of `METHODS`: method, name, score (mean average precision on
            the test scenes), gain over "before" with gain_low and gain_high (None for "before"),
            n_categories, seconds.
        categories: a dict for each category: category, n_positive (test scenes), and its average
            precision by method.
        facts: numbers of scenes, labels and seconds, by name.
        files: path of each file by its role: checkpoint, tuned_checkpoint, features, labels, table,
            run (a folder), report.
        result: what catwise's default gave.
        paper: what the published recipe gave.
    """

    table: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    facts: dict[str, Any]
    files: dict[str, Path]
    result: TuneResult
    paper: TuneResult

    @property
    def report(self) -> Path:
        """The report of catwise's run."""
        return self.files["report"]

    def to_dict(self) -> dict[str, Any]:
        """Table, categories, facts and paths, JSON-ready."""
        return {
            "table": self.table,
            "categories": self.categories,
            "facts": self.facts,
            "files": {role: str(path) for role, path in self.files.items()},
        }


class _Split(NamedTuple):
    """Scenes, what is known of them, and everything that is true of them."""

    ids: list[str]
    scenes: SceneSet
    labels: PartialLabels
    truth: PartialLabels


def run_demo(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    config: DemoConfig | None = None,
) -> DemoResult:
    """Show the whole path on scenes of handwritten digits.

    Scenes hold several real digits each; no digit of a training scene is in a validation or a test
    scene. Most training labels are dropped, a small network is trained as if what is unknown
    were negative, and its last layer is tuned, as published and by catwise's default. Clean
    test scenes, which choose nothing, judge. Everything runs on one thread, so that a seed gives
    the same numbers whatever the number of cores.

    Args:
        out: the folder for everything; an earlier demonstration there is replaced.
        seed: of the scenes, the dropping, the network and the tuning.
        progress: called now and then.
        config: sizes; the demonstration's own if None.

    Returns:
        The table, and where the files are.

    Raises:
        OutputError: If `out` cannot be written, or holds something else.
    """
    config = config or DemoConfig()
    target = _checked_out(Path(out))
    started = time.perf_counter()
    with _one_thread(), atomic_folder(target, overwrite=True) as folder:
        splits = _make_splits(config, seed)
        network, seconds = _train(splits["train"], config, seed, progress)
        features = {name: _features(network, split) for name, split in splits.items()}
        _write_inputs(folder, network, splits, features)
        base = read_head(folder / _FILES["checkpoint"], key=HEAD_KEY, categories=CATEGORIES)
        base = base.replace(provenance={"checkpoint": _FILES["checkpoint"], "key": HEAD_KEY})
        tuned, took = _tune_all(base, splits, features, seed, progress)
        ceiling, took["ceiling"] = _fit_ceiling(base, splits, features)
        test = (features["test"], splits["test"].truth)
        found = {method: one.test for method, one in tuned.items() if one.test is not None}
        found["ceiling"] = compare_heads(base, ceiling, test, metrics=_METRIC).first
        table = _table(found, {"before": seconds, **took})
        categories = _categories(found)
        result = _with_heads(tuned["default"], table)
        facts = _facts(splits, config, seed)
        facts["seconds"] = round(time.perf_counter() - started, 2)
        write_head(
            folder / _FILES["checkpoint"],
            result.head,
            folder / _FILES["tuned_checkpoint"],
            key=HEAD_KEY,
            categories=CATEGORIES,
        )
        inputs = {role: _FILES[role] for role in ("checkpoint", "features", "labels")}
        written = write_run(result, folder / _FILES["run"], inputs=inputs)
        document = {"table": table, "categories": categories, "facts": facts}
        write_json(folder / _FILES["table"], document)
    files = {role: target / name for role, name in _FILES.items()}
    files["report"] = files["run"] / written["report.html"].name
    return DemoResult(table, categories, facts, files, result, tuned["paper"])


def _checked_out(out: Path) -> Path:
    """The folder, if it is absent, empty, or an earlier demonstration."""
    own = {*_FILES.values(), side_file(out / _FILES["tuned_checkpoint"]).name}
    is_ours = _FILES["table"] in folder_names(out)
    folder_names(out, own=own if is_ours else (), what="demonstration")
    with translated(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    return out


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, and put the number of threads back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_splits(config: DemoConfig, seed: int) -> dict[str, _Split]:
    """Scenes of disjoint digits; labels are dropped in training only."""
    images, kinds = read_digits()
    sizes = (config.n_train, config.n_valid, config.n_test)
    pools = split_digits(kinds, (0.5, 0.2, 0.3), seed=seed)
    seeds = np.random.SeedSequence(seed).generate_state(len(_SPLITS))
    splits = {}
    for name, n_scenes, pool, own in zip(_SPLITS, sizes, pools, seeds, strict=True):
        scenes = make_scenes(
            images, kinds, allowed=pool, n_scenes=n_scenes, seed=int(own), noise=config.noise
        )
        ids = [f"{name}-{number:05d}" for number in range(n_scenes)]
        truth = PartialLabels(scenes.present, ids=ids, categories=CATEGORIES)
        labels = drop_uniform(truth, config.keep, seed=seed) if name == "train" else truth
        splits[name] = _Split(ids, scenes, labels, truth)
    return splits


def _train(
    train: _Split, config: DemoConfig, seed: int, progress: ProgressCallback | None
) -> tuple[SceneNet, float]:
    """The network, trained the assume-negative way, and the seconds it took."""
    target, weight = make_targets(train.labels, LabelPolicy(blank="negative"))
    started = time.perf_counter()

    def report(epoch: int) -> None:
        if progress is not None:
            progress(Progress("training the network", epoch, config.epochs))

    report(0)
    network = train_network(
        train.scenes.images,
        target,
        weight,
        width=config.width,
        epochs=config.epochs,
        seed=seed,
        on_epoch=report,
    )
    return network, round(time.perf_counter() - started, 2)


def _features(network: SceneNet, split: _Split) -> Features:
    return Features(extract_features(network, split.scenes.images), ids=np.array(split.ids))


def _write_inputs(
    folder: Path, network: SceneNet, splits: dict[str, _Split], features: dict[str, Features]
) -> None:
    """What a user would bring: a checkpoint, cached features, a label table full of blanks."""
    saved = io.BytesIO()  # torch.save tells of a full disk as a RuntimeError
    torch.save(network.state_dict(), saved)
    write_bytes(folder / _FILES["checkpoint"], saved.getvalue())
    with atomic_path(folder / _FILES["features"]) as temporary:
        np.savez(
            temporary,
            features=np.concatenate([part.values for part in features.values()]),
            ids=np.array([one for split in splits.values() for one in split.ids]),
        )
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "split", *CATEGORIES])
    for name, split in splits.items():
        for number, codes in zip(split.ids, split.labels.codes, strict=True):
            rows.writerow([number, name, *("" if c == UNKNOWN else c for c in codes.tolist())])
    write_text(folder / _FILES["labels"], text.getvalue())


def _tune_all(
    base: Head,
    splits: dict[str, _Split],
    features: dict[str, Features],
    seed: int,
    progress: ProgressCallback | None,
) -> tuple[dict[str, TuneResult], dict[str, float]]:
    """CFT as published and catwise's default, on the same labels, and their seconds."""
    train = (features["train"], splits["train"].labels)
    valid = (features["valid"], splits["valid"].labels)
    test = (features["test"], splits["test"].truth)
    results, seconds = {}, {}
    for preset, methods in (("paper", ["bp_bce"]), ("default", None)):
        started = time.perf_counter()
        results[preset] = tune(
            base,
            train,
            valid,
            test=test,
            metric=_METRIC,
            preset=preset,
            methods=methods,
            seed=seed,
            progress=_named(METHODS[preset], progress),
        )
        seconds[preset] = round(time.perf_counter() - started, 2)
    return results, seconds


def _named(name: str, progress: ProgressCallback | None) -> ProgressCallback | None:
    """Put what is being tuned before each stage."""
    if progress is None:
        return None
    return lambda step: progress(step._replace(stage=f"{name}: {step.stage}"))


def _fit_ceiling(
    base: Head, splits: dict[str, _Split], features: dict[str, Features]
) -> tuple[Head, float]:
    """A head fitted to all the labels of the training and validation scenes."""
    started = time.perf_counter()
    assert base.bias is not None  # noqa: S101  # the network's head has one
    weight, bias = fit_ceiling(
        base.weight,
        base.bias,
        np.concatenate([features[name].values for name in ("train", "valid")]),
        np.concatenate([splits[name].scenes.present for name in ("train", "valid")]),
    )
    return base.replace(weight=weight, bias=bias), round(time.perf_counter() - started, 2)


def _table(found: dict[str, PairedComparison], seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Every head's mean on the test scenes, and its gain over the head before tuning."""
    first = next(iter(found.values()))
    rows: list[dict[str, Any]] = [
        {"method": "before", "score": first.mean_before, "gain": None, "gain_low": None,
         "gain_high": None, "n_categories": first.n_scored}
    ]  # fmt: skip
    for method, one in found.items():
        mean = one.mean()
        rows.append(
            {
                "method": method,
                "score": mean["after"],
                "gain": mean["difference"],
                "gain_low": mean["difference_low"],
                "gain_high": mean["difference_high"],
                "n_categories": mean["n_scored"],
            }
        )
    return [
        {**row, "name": METHODS[row["method"]], "seconds": seconds[row["method"]]} for row in rows
    ]


def _categories(found: dict[str, PairedComparison]) -> list[dict[str, Any]]:
    """The test scenes' positives of each category, and its scores by method."""
    rows: list[dict[str, Any]] = []
    for method, one in found.items():
        for c, record in enumerate(one.records()):
            if len(rows) <= c:
                rows.append({"category": record["category"], "n_positive": record["n_positive"],
                             "before": record["before"]})  # fmt: skip
            rows[c][method] = record["after"]
    return rows


def _with_heads(result: TuneResult, table: list[dict[str, Any]]) -> TuneResult:
    """The result, whose report shows the other heads on the same test scenes too."""
    return replace(result, evaluation={**(result.evaluation or {}), "heads": table})


def _facts(splits: dict[str, _Split], config: DemoConfig, seed: int) -> dict[str, Any]:
    """What was put in, in numbers."""
    train = splits["train"]
    counts = train.labels.counts()
    hidden = int(train.scenes.present.sum() - counts.positive.sum())
    return {
        "seed": seed,
        "n_train": config.n_train,
        "n_valid": config.n_valid,
        "n_test": config.n_test,
        "n_features": 8 * config.width,
        "n_categories": len(CATEGORIES),
        "known_train_labels": int(counts.known.sum()),
        "known_train_share": config.keep,
        "positives_taken_for_negative": hidden,
    }
