"""The genetic algorithm as users reach it: every metric, stop reasons, history, calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import catwise
from catwise._configs import EvolutionConfig, PaperConfig
from catwise.metrics import METRICS, Metric
from tuning_case import task

EVOLVE = PaperConfig(
    max_steps=40, patience=15, operators=EvolutionConfig(population_size=12, mutation_scale=0.1)
)


def evolved(metric, **options):
    made = task()
    return catwise.tune(
        made.head,
        made.train.pair,
        made.valid.pair,
        preset="paper",
        methods=["ga"],
        metric=metric,
        config=EVOLVE,
        **options,
    )


def on_valid(head, metric: Metric) -> np.ndarray:
    """(C,) of a head on the validation labels."""
    valid = task().valid
    logits = head.logits(valid.features.values)
    return metric.columns(logits.T, torch.from_numpy(valid.labels.codes.T.copy())).numpy()


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"precision", "recall"}))
def test_any_metric_is_a_fitness(name: str) -> None:
    """What validation chose is better, in the metric's own direction, and is in the head.

    Precision and recall at a threshold are left out: the original head has the best there is.
    """
    metric, result = METRICS[name], evolved(name)
    sign = 1 if metric.higher_is_better else -1
    replaced = [r for r in result.records if r["status"] == "replaced"]
    assert replaced
    now = on_valid(result.head, metric)
    for record in replaced:
        assert sign * record["selected_on"] > sign * record["before"]
        assert now[record["index"]] == pytest.approx(record["selected_on"], abs=2e-3)
    fitness = [sign * row["best_fitness"] for row in result.history if row.get("active") == 5]
    assert fitness == sorted(fitness)


def test_a_metric_of_ones_own_is_a_fitness() -> None:
    """Here the share of positives among the forty best; it is called with codes and scores."""

    def precision_at_forty(scores, codes, *, weight=None):
        known = scores.masked_fill(codes < 0, -torch.inf)
        best = known.topk(40, dim=-1).indices
        return (codes.expand(scores.shape).gather(-1, best) == 1).double().mean(-1)

    metric = Metric("precision_at_forty", "Precision at 40", precision_at_forty, ranks_only=True)
    result = evolved(metric)
    assert result.summary["metric"] == "precision_at_forty"
    now, before = on_valid(result.head, metric), on_valid(task().head, metric)
    for record in result.records:
        if record["status"] == "replaced":
            assert now[record["index"]] > before[record["index"]]
    assert any(record["status"] == "replaced" for record in result.records)


def test_the_run_says_how_it_went_and_why_it_stopped() -> None:
    """A record a generation, a curve a category, and a stop reason for every one."""
    result = evolved("average_precision")
    steps = [row for row in result.history if "category" not in row]
    keys = {"method", "step", "active", "score", "best", "best_fitness", "mean_fitness"}
    assert all(set(row) == {*keys, "step_size"} for row in steps)
    assert {row["step_size"] for row in steps} == {0.1}
    curves = result.history[len(steps) :]
    assert {row["category"] for row in curves} == {r["category"] for r in result.records}
    for row in curves:
        assert len(row["step"]) == len(row["fitness"]) == len(row["score"]) <= 200
        assert row["fitness"] == sorted(row["fitness"])
    stopped = result.summary["choice"]["stopped"]["ga"]
    assert set(stopped) <= {"patience", "max_generations", "skipped"}
    assert sum(stopped.values()) == 5


def test_the_bias_is_written_back() -> None:
    """The authors' code evolves it and drops it: here thresholds move with it."""
    made = task()
    result = evolved("log_loss")
    rows = [r["index"] for r in result.records if r["status"] == "replaced"]
    assert rows
    moved = result.head.bias - made.head.bias
    assert bool((moved[rows] != 0).all())


def test_after_a_search_blind_to_scale_the_half_means_what_it_says() -> None:
    """Where the original logits are stretched, log-loss and calibration error fall; ranks stay."""
    made = task()
    head = made.head.replace(weight=made.head.weight * 6, bias=made.head.bias * 6 + 2)
    given = {"preset": "paper", "methods": ["ga"], "config": EVOLVE, "force": True}
    result = catwise.tune(head, made.train.pair, made.valid.pair, **given)
    rows = [r["index"] for r in result.records if r["status"] == "replaced"]
    assert rows
    before, after = (
        catwise.evaluate(h, made.test.pair, metrics=["log_loss", "ece"]).values
        for h in (head, result.head)
    )
    for name in ("log_loss", "ece"):
        assert np.nanmean(after[name][rows]) < 0.7 * np.nanmean(before[name][rows])
