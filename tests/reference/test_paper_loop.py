"""The batched paper preset equals a plain per-category loop in float64."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from catwise.metrics import Metric
from catwise.tuning.fits.adam import BackpropConfig, fit_backprop
from catwise.tuning.fits.loop import TuningData
from catwise.tuning.rows import known as layouts
from catwise.tuning.rows import sampled
from reference.paper_loop import asl, bce, paper_loop, plain_average_precision

LAYOUTS = ["dense", "sparse", "gathered"]
KEPT = (1, 2, 3, 10, 25, 50)
STOPPING = {"lr": 3e-3, "max_steps": 100, "patience": 25}
LOSS = {"bce": bce, "asl_published": asl}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Known entries come in many tiles: 16 rows by 4 categories."""
    monkeypatch.setattr(sampled, "_TILE_BYTES", 16 * 12 * 8)
    monkeypatch.setattr(layouts, "_HEAD_BYTES", 4 * 12 * 8)


def task(*, seed=0, n=160, m=70, d=12, c=9, uneven=True):
    """Planted heads, noisy starts, ragged known labels, uncertain codes, one-class columns."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(c, d, generator=g, dtype=torch.float64)

    def split(rows):
        z = torch.randn(rows, d, generator=g, dtype=torch.float64)
        y = (z @ truth.T + torch.randn(rows, c, generator=g, dtype=torch.float64) > 0.5).to(
            torch.int8
        )
        share = torch.linspace(0.1, 0.9, c) if uneven else torch.full((c,), 0.4)
        y[torch.rand(rows, c, generator=g) > share] = -1
        y[torch.rand(rows, c, generator=g) < 0.02] = -2
        return z, y

    train, valid = split(n), split(m)
    train[1][:, 3] = train[1][:, 3].clamp(max=0)  # no known positive
    valid[1][:, 5] = -1  # nothing known
    weight = truth + 2 * torch.randn(c, d, generator=g, dtype=torch.float64)
    return weight, torch.randn(c, generator=g, dtype=torch.float64), train, valid


def plain_metric():
    """The reference metric, one category at a time."""

    def scores(logits, codes, *, weight=None):
        rows = [
            plain_average_precision(z[y >= 0], y[y >= 0] == 1)
            for z, y in zip(logits, codes, strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    return Metric("plain_ap", "Plain AP", scores)


@cache
def expected(loss, *, bias):
    """Result of the plain loop with early stopping, computed once for all layouts."""
    weight, b, train, valid = task()
    return paper_loop(weight, b if bias else None, train, valid, loss=LOSS[loss], **STOPPING)


@cache
def expected_first_steps(loss, *, uneven):
    """Heads of the plain loop after some of the first 50 steps."""
    weight, b, train, valid = task(seed=1, uneven=uneven)
    return paper_loop(weight, b, train, valid, loss=LOSS[loss], max_steps=50, keep=KEPT)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", list(LOSS))
def test_batched_equals_the_plain_loop(loss, layout, bias):
    """Every one of the first 50 steps' heads, the final head, its step and its stop agree."""
    weight, b, train, valid = task()
    b = b if bias else None
    wanted = expected(loss, bias=bias)
    config = BackpropConfig(
        loss=loss, metric=plain_metric(), dtype=torch.float64, layout=layout, **STOPPING
    )
    got = fit_backprop(weight, b, TuningData(*train), TuningData(*valid), config)
    for c, one in enumerate(wanted):
        if one is None:
            assert got.stop_reason[c] == "skipped"
            assert torch.equal(got.weight[c], weight[c])
            continue
        assert int(got.best_step[c]) == one["best_step"]
        assert int(got.steps[c]) == one["steps"]
        assert float(got.best_score[c]) == pytest.approx(one["best"], rel=1e-9)
        assert float(got.base_score[c]) == pytest.approx(one["base"], rel=1e-9)
        torch.testing.assert_close(got.weight[c], one["head"][0], rtol=1e-9, atol=0)
        if bias:
            torch.testing.assert_close(got.bias[c], one["head"][1], rtol=1e-9, atol=0)
    steps = [one["steps"] for one in wanted if one is not None]
    assert min(steps) < max(steps)  # some columns did leave the batch early
    assert {i for i, one in enumerate(wanted) if one is None} == {3, 5}


@pytest.mark.parametrize("uneven", [True, False], ids=["ragged", "even"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", list(LOSS))
def test_each_of_the_first_50_steps_agrees(loss, layout, uneven):
    """A metric that always improves makes the best head that of the last step."""
    weight, b, train, valid = task(seed=1, uneven=uneven)
    wanted = expected_first_steps(loss, uneven=uneven)
    for last in KEPT:
        seen = iter(range(last + 1))
        rising = Metric(
            "rising",
            "Rising",
            lambda z, _, seen=seen: torch.full((len(z),), float(next(seen))),
        )
        config = BackpropConfig(
            loss=loss, metric=rising, dtype=torch.float64, layout=layout, max_steps=last
        )
        got = fit_backprop(weight, b, TuningData(*train), TuningData(*valid), config)
        for c, one in enumerate(wanted):
            if one is not None:
                torch.testing.assert_close(got.weight[c], one["kept"][last][0], rtol=1e-9, atol=0)
                torch.testing.assert_close(got.bias[c], one["kept"][last][1], rtol=1e-9, atol=0)
