"""The loop over categories: curves of loss and score, and batches that are one run."""

from __future__ import annotations

import itertools

import pytest
import torch

from catwise.losses import LOSSES
from catwise.metrics import METRICS
from catwise.tuning.fits.adam import BackpropConfig, fit_backprop
from catwise.tuning.fits.loop import TuningData


def data(n: int = 40, d: int = 4, c: int = 3):
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(c, d, generator=g, dtype=torch.float64)

    def split(rows: int) -> TuningData:
        z = torch.randn(rows, d, generator=g, dtype=torch.float64)
        y = (z @ truth.T + torch.randn(rows, c, generator=g) > 0).to(torch.int8)
        y[torch.rand(rows, c, generator=g) > 0.8] = -1
        return TuningData(z, y)

    return (
        torch.zeros(c, d, dtype=torch.float64),
        torch.zeros(c, dtype=torch.float64),
        split(n),
        split(n),
    )


def run(**options):
    given = {"dtype": torch.float64, "lr": 1e-2, "metric": "log_loss", "patience": 10**6}
    return fit_backprop(*data(), BackpropConfig(**{**given, **options}))


@pytest.mark.parametrize("steps", [1, 7, 150, 205, 450, 3_500])
def test_curves_are_thinned_as_they_get_long(steps):
    """At most 200 points, from the original head on, never further apart than an eighth."""
    for curve in run(max_steps=steps).curves:
        at = curve["step"]
        assert at[0] == 0
        assert len(at) == len(curve["loss"]) == len(curve["score"]) <= 200
        assert all(b - a <= max(1, a / 8) for a, b in itertools.pairwise([*at, steps]))
        assert at[:16] == list(range(min(steps, 16)))


def test_a_point_of_a_curve_is_one_head_on_both_splits():
    """Loss on the known training labels and score on validation, of one head."""
    weight, bias, train, valid = data()
    curves = run(max_steps=12).curves
    for step in (0, 8):
        head = weight, bias
        if step:
            last = run(max_steps=step, metric="brier")  # its score only falls here
            assert last.best_step.tolist() == [step] * 3
            head = last.weight, last.bias
        logits = train.features @ head[0].T + head[1]
        each = LOSSES["bce"].value(logits, (train.codes == 1).double()) * (train.codes >= 0)
        score = METRICS["log_loss"].per_category(valid.features @ head[0].T + head[1], valid.codes)
        for c, curve in enumerate(curves):
            place = curve["step"].index(step)
            assert curve["loss"][place] == pytest.approx(float(each[:, c].sum()), rel=1e-5)
            assert curve["score"][place] == pytest.approx(float(score[c]), rel=1e-5)


def test_a_curve_ends_where_its_category_stopped():
    """Columns that left the batch have no later points."""
    result = run(max_steps=400, patience=20, metric="average_precision", lr=5e-2)
    steps = result.steps.tolist()
    assert min(steps) < max(steps)
    for curve in result.curves:
        assert curve["step"][-1] < steps[curve["index"]]
        assert all(v == v for v in curve["loss"] + curve["score"])  # noqa: PLR0124 -- no NaN


def test_history_says_the_means_over_moving_categories():
    """One row a step; the best so far never falls."""
    result = run(max_steps=30, metric="average_precision")
    assert [row["step"] for row in result.history] == list(range(1, 31))
    assert set(result.history[0]) == {"step", "active", "best", "score", "step_size"}
    best = [row["best"] for row in result.history]
    assert best == sorted(best)
    assert best[-1] == pytest.approx(float(result.best_score.mean()))
