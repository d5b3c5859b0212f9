"""Runs side by side: paired differences, means over seeds, settings that differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import catwise
from catwise import PartialLabels, compare_heads, compare_runs, tune
from catwise._configs import PaperConfig
from catwise.errors import ConfigError, InSampleWarning, OutputError
from catwise.reporting.comparing import ORIGINAL, run_names
from catwise.reporting.tables import (
    Grid,
    as_latex,
    as_markdown,
    run_categories_grid,
    settings_grid,
    variants_grid,
)
from catwise.testing import make_task


@pytest.fixture(scope="module")
def task() -> Any:
    return make_task(seed=3)


@pytest.fixture(scope="module")
def runs(task: Any) -> dict[str, Any]:
    """Two seeds by default, two seeds as published (no draws), and another policy."""
    train, valid, test = task.train.pair, task.valid.pair, task.test.pair
    made: dict[str, Any] = {
        f"default {seed}": tune(task.head, train, valid, test=test, seed=seed) for seed in (0, 1)
    }
    for seed in (0, 1):
        made[f"paper {seed}"] = tune(
            task.head, train, valid, test=test, preset="paper", config=PaperConfig(max_steps=30),
            seed=seed,
        )  # fmt: skip
    policy = catwise.LabelPolicy(blank="negative")
    made["blank"] = tune(task.head, train, valid, test=test, policy=policy)
    return made


def test_seeds_have_a_mean_and_a_deviation(runs: dict[str, Any], task: Any) -> None:
    """Numbers are those of compare_heads for each run; the interval is the mean of intervals."""
    found = compare_runs(runs, task.test.pair, against="paper 0")
    first = {row["variant"]: row for row in found.variants if row["metric"] == "average_precision"}
    own = first["default 0, default 1"]
    each = [
        compare_heads(runs["paper 0"].head, runs[f"default {seed}"].head, task.test.pair).first
        for seed in (0, 1)
    ]
    scores = [one.mean_after for one in each]
    assert own["score"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert own["score_sd"] == pytest.approx(np.std(scores, ddof=1), abs=1e-12)
    assert own["score_sd"] == 0  # folds decide scale and offset alone here
    note = "The seed changes no average precision in default 0, default 1, though the heads differ."
    assert note in found.notes
    loss = compare_runs(runs, task.test.pair, against="paper 0", metrics=["log_loss"]).variants[0]
    assert loss["score_sd"] > 0
    assert loss["difference_sd"] == pytest.approx(loss["score_sd"])
    assert own["difference"] == pytest.approx(np.mean([one.mean_difference for one in each]))
    assert own["difference_low"] == pytest.approx(np.mean([one.mean_low for one in each]))
    assert own["difference_high"] == pytest.approx(np.mean([one.mean_high for one in each]))
    assert own["better"] == np.mean([one.counts()["better"] for one in each])
    assert own["verdict"] == "helped"
    assert own["same_head"] is False
    rows = [row for row in found.rows if row["run"] == "default 1" and row["category"]]
    wanted = {one["category"]: one for one in each[1].records()}
    for row in rows:
        if row["metric"] == "average_precision":
            assert row["difference"] == wanted[row["category"]]["difference"]
            assert row["outcome"] == wanted[row["category"]]["outcome"]


def test_a_seed_that_changes_nothing_is_said(runs: dict[str, Any], task: Any) -> None:
    """The published steps draw nothing; a deviation of 0 is not taken for certainty."""
    found = compare_runs(runs, task.test.pair)
    notes = [note for note in found.notes if "changes nothing" in note]
    assert len(notes) == 1
    assert notes[0].startswith(
        "The seed changes nothing in paper 0, paper 1: the runs of seeds 0, 1"
    )
    paper = next(row for row in found.variants if row["variant"] == "paper 0, paper 1")
    assert paper["same_head"] is True
    assert paper["score_sd"] == 0


def test_one_seed_twice_is_said(runs: dict[str, Any], task: Any) -> None:
    """Its deviation is none of seeds."""
    twice = {"a": runs["default 0"], "b": runs["default 0"], "c": runs["default 1"]}
    found = compare_runs(twice, task.test.pair)
    assert any("a seed stands twice (0, 0, 1)" in note for note in found.notes)


def test_settings_that_differ(runs: dict[str, Any], task: Any) -> None:
    """Policies and presets side by side; options that one preset alone has say nothing."""
    found = compare_runs(runs, task.test.pair)
    settings = {row["variant"]: row["settings"] for row in found.variants}
    assert settings == {
        "default 0, default 1": {
            "preset": "default", "methods": "–", "validation": "fit_and_select",
            "policy.blank": "unknown",
        },
        "paper 0, paper 1": {
            "preset": "paper", "methods": "bp_bce", "validation": "select",
            "policy.blank": "unknown",
        },
        "blank": {
            "preset": "default", "methods": "–", "validation": "fit_and_select",
            "policy.blank": "negative",
        },
    }  # fmt: skip
    grid = settings_grid(found.variants)
    assert grid.headings == ["setting", "default 0, default 1", "paper 0, paper 1", "blank"]
    assert grid.cells[-2:] == [
        ["policy.blank", "unknown", "unknown", "negative"],
        ["seed", "0, 1", "0, 1", "0"],
    ]


def test_own_evaluations(runs: dict[str, Any]) -> None:
    """Without rows each run stands against its original head, as it was judged."""
    found = compare_runs(runs)
    assert found.reference == ORIGINAL
    assert found.metrics == ("average_precision", "auroc", "log_loss")
    row = next(
        row
        for row in found.rows
        if (row["run"], row["metric"], row["category"]) == ("blank", "auroc", None)
    )
    mean = runs["blank"].evaluation["means"]["auroc"]
    assert (row["score"], row["difference"]) == (mean["after"], mean["difference"])
    assert found.sentences()[2].startswith("blank: better than original head, mean average")
    assert "Each run is compared with its own original head" in found.notes[0]
    better = next(one["better"] for one in found.variants if one["metric"] == "auroc")
    assert better is None  # the runs do not tell


def test_folders(runs: dict[str, Any], task: Any, tmp_path: Path) -> None:
    """Runs that were written give the same; names are the last parts that tell them apart."""
    for name in ("default 0", "paper 1"):
        runs[name].save(tmp_path / name.replace(" ", "/"))
    paths = [tmp_path / "default/0", tmp_path / "paper/1"]
    found = compare_runs(paths, task.test.pair)
    wanted = compare_runs({"0": runs["default 0"], "1": runs["paper 1"]}, task.test.pair)
    assert found.rows == wanted.rows
    assert compare_runs(paths).variants == compare_runs(
        {"0": runs["default 0"], "1": runs["paper 1"]}
    ).variants  # fmt: skip
    assert run_names(["a/x", "b/x", "c/y"]) == ["a/x", "b/x", "c/y"]
    assert run_names(["a/x", "b/y/"]) == ["x", "y"]


def test_what_cannot_be_compared(runs: dict[str, Any], task: Any, tmp_path: Path) -> None:
    """One error each, that says what to do."""
    some = {name: runs[name] for name in ("default 0", "paper 0")}
    with pytest.raises(ConfigError, match="two runs or more"):
        compare_runs({"a": runs["blank"]})
    with pytest.raises(ConfigError, match=r"'default' is none of the runs(.|\n)*'default 0'"):
        compare_runs(some, task.test.pair, against="default")
    with pytest.raises(ConfigError, match="needs test rows"):
        compare_runs(some, against="paper 0")
    with pytest.raises(OutputError, match="is not a run"):
        compare_runs([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ConfigError, match="given twice"):
        compare_runs([tmp_path / "a", f"{tmp_path}/a/"])
    with pytest.raises(ConfigError, match="is not one"):
        compare_runs({"a": 1, "b": 2})
    unjudged = replace(runs["blank"], evaluation=None, test=None)
    with pytest.raises(ConfigError, match=r"not judged on test rows(.|\n)*--features"):
        compare_runs({"a": unjudged, "b": runs["blank"]})


def test_rows_that_fitted(runs: dict[str, Any], task: Any) -> None:
    """No verdict is given on them."""
    some = {name: runs[name] for name in ("paper 0", "default 0")}
    with pytest.warns(InSampleWarning):
        found = compare_runs(some, task.valid.pair)
    own = next(row for row in found.variants if row["variant"] == "default 0")
    assert own["verdict"] == "in_sample"
    assert "in sample, so no verdict" in found.sentences()[-1]
    assert any("in sample, and gives no verdict" in note for note in found.notes)


def test_a_head_as_reference(runs: dict[str, Any], task: Any) -> None:
    """The original head, or any other, on the same rows."""
    found = compare_runs({"a": runs["default 0"], "b": runs["blank"]}, task.test.pair,
                         against=task.head)  # fmt: skip
    assert found.reference == "the reference"
    row = found.variants[0]
    assert row["difference"] == pytest.approx(runs["default 0"].test.mean_difference, abs=1e-9)
    grid = run_categories_grid(found.rows, "average_precision", reference=found.reference, limit=2)
    assert grid.headings == ["category", "positives", "the reference", "a", "b"]
    assert len(grid.cells) == 2
    assert grid.lines == ["4 further categories are not shown"]


def test_labels_by_study(runs: dict[str, Any], task: Any) -> None:
    """What is scored as one is passed on."""
    features, labels = task.test.pair
    half = {name: f"group {at // 2}" for at, name in enumerate(labels.ids.tolist())}
    found = compare_runs(
        {"a": runs["default 0"], "b": runs["blank"]}, (features, labels), by=half, pool="max"
    )
    assert any("200 groups" in note for note in found.notes)


def test_markdown_and_latex_hold_any_name() -> None:
    """What a renderer would take for markup is escaped; titles and notes stand outside."""
    rows: list[dict[str, Any]] = [
        {"variant": "a|b_c & $x$ {y} 50% <i>", "metric": "auroc", "runs": ["a"], "seeds": [0],
         "score": 0.5, "score_sd": None, "difference": -0.25, "difference_low": -0.5,
         "difference_high": 0.125, "better": 1.5, "worse": 0, "verdict": "no_difference",
         "settings": {}}
    ]  # fmt: skip
    grid = variants_grid(rows, "auroc", reference="first")
    assert isinstance(grid, Grid)
    assert grid.cells[0][1:] == ["0.5000", "−0.2500", "−0.5000 to +0.1250", "1.5", "0"]
    text = as_markdown(grid).splitlines()
    assert text[0] == "**mean AUROC, differences to first**"
    assert text[-1].startswith(r"| a\|b\_c &amp; $x$ {y} 50% &lt;i&gt; | 0.5000 |")
    latex = as_latex(grid).splitlines()
    assert latex[0] == "% mean AUROC, differences to first"
    assert latex[5] == (
        r"a\textbar{}b\_c \& \$x\$ \{y\} 50\% \textless{}i\textgreater{} & 0.5000 & $-$0.2500 & "
        r"$-$0.5000 to +0.1250 & 1.5 & 0 \\"
    )


def test_categories_that_differ_most_come_first_when_cut(task: Any) -> None:
    """A limit keeps those in which runs differ; a lacking score is a dash."""
    rows: list[dict[str, Any]] = [
        {"run": run, "variant": run, "seed": 0, "metric": "auroc", "category": category,
         "score": score, "reference": 0.5, "n_positive": 3}
        for category, pair in {"x": (0.5, 0.6), "y": (0.5, 0.9), "z": (0.5, None)}.items()
        for run, score in zip("ab", pair, strict=True)
    ]  # fmt: skip
    grid = run_categories_grid(rows, "auroc", limit=1)
    assert grid.cells == [["y", "3", "0.5000", "0.9000"]]
    every = run_categories_grid(rows, "auroc", most=1)
    assert every.headings == ["category", "positives", "a"]
    assert every.lines == ["1 further run not shown"]
    assert run_categories_grid(rows, "auroc").cells[2][-1] == "–"


def test_labels_without_a_class(runs: dict[str, Any], task: Any) -> None:
    """A category that cannot be scored has no number, and the mean is of the others."""
    features, labels = task.test.pair
    codes = labels.codes.copy()
    codes[:, 0] = -1
    lacking = PartialLabels(codes, labels.ids, labels.categories)
    found = compare_runs({"a": runs["default 0"], "b": runs["blank"]}, (features, lacking))
    row = next(row for row in found.rows if row["run"] == "b" and row["category"] == "category 0")
    assert (row["score"], row["difference"]) == (None, None)
    assert found.variants[0]["score"] is not None
