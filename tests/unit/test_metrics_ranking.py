"""Ranking kernels: shapes, layouts, undefined categories, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catwise.errors import ConfigError, ShapeError
from catwise.metrics import RankingPlan, auroc_columns, average_precision_columns

KERNELS = [average_precision_columns, auroc_columns]


def case(seed: int = 0, *, categories: int = 37, rows: int = 60):
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.array([0, 0, 1, -1, -2], dtype=np.int8), size=(categories, rows))
    return rng.normal(size=(categories, rows)).astype(np.float32), codes


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_row_gives_a_scalar(kernel):
    """A single category may be given without its leading dimension."""
    scores, codes = case()
    value = kernel(scores[0], codes[0])
    assert value.shape == ()
    assert value == kernel(scores, codes)[0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_codes_broadcast_against_leading_dimensions(kernel):
    """Population × category scores need the codes only once."""
    scores, codes = case()
    population = np.stack([scores, -scores, scores**2])
    value = kernel(population, codes)
    assert value.shape == (3, 37)
    for got, one in zip(value, population, strict=True):
        torch.testing.assert_close(got, kernel(one, codes), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_codes_may_have_more_dimensions_than_scores(kernel):
    """One row of scores against several rows of codes."""
    scores, codes = case()
    value = kernel(scores[0], codes)
    torch.testing.assert_close(value, kernel(np.tile(scores[0], (37, 1)), codes), equal_nan=True)


@pytest.mark.parametrize("method", ["average_precision", "auroc"])
def test_plan_reads_row_major_logits(method):
    """(M, C) logits with rows_first equal their transpose, to the bit."""
    scores, codes = case()
    plan = RankingPlan(codes)
    by_rows = getattr(plan, method)(np.ascontiguousarray(scores.T), rows_first=True)
    torch.testing.assert_close(by_rows, getattr(plan, method)(scores), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["average_precision", "auroc"])
def test_thread_count_changes_no_bit(method):
    """Threads only share out the categories."""
    scores, codes = case()
    one = getattr(RankingPlan(codes, n_threads=1), method)(scores)
    three = getattr(RankingPlan(codes, n_threads=3), method)(scores)
    assert torch.equal(one, three)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weight", [None, np.ones(())])
@pytest.mark.parametrize("only", [0, 1, -1])
def test_one_class_gives_nan(kernel, weight, only):
    """No known positive, no known negative or no known label is NaN, never 0 or 1."""
    scores, codes = case()
    codes[1] = only
    value = kernel(scores, codes, weight=weight)
    assert value[1].isnan()
    assert value[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weight", [None, np.ones(())])
def test_nan_score_of_a_known_row_gives_nan(kernel, weight):
    """A NaN among known scores makes that category NaN; among unknown ones it is not seen."""
    scores, codes = case()
    expected = kernel(scores, codes, weight=weight)
    scores[0, np.flatnonzero(codes[0] < 0)[0]] = np.nan
    scores[1, np.flatnonzero(codes[1] == 0)[0]] = np.nan
    value = kernel(scores, codes, weight=weight)
    assert value[0] == expected[0]
    assert value[1].isnan()


def test_plan_does_not_follow_later_changes_of_the_codes():
    """The plan keeps its own copy and leaves the caller's arrays alone."""
    scores, codes = case()
    plan = RankingPlan(codes)
    before, kept = plan.average_precision(scores), scores.copy()
    codes[:] = 0
    assert torch.equal(plan.average_precision(scores), before)
    assert np.array_equal(scores, kept)


def test_read_only_and_non_contiguous_scores():
    """Memory maps, views and reversed arrays are read as they are."""
    scores, codes = case()
    plan = RankingPlan(codes)
    frozen = scores.copy()
    frozen.flags.writeable = False
    assert torch.equal(plan.auroc(frozen), plan.auroc(scores))
    assert torch.equal(plan.auroc(scores[::-1]), plan.auroc(scores[::-1].copy()))
    assert torch.equal(plan.auroc(torch.from_numpy(scores.T.copy()).T), plan.auroc(scores))


def test_turned_scores_are_refused_with_the_remedy():
    """Scores in the other layout are not guessed."""
    scores, codes = case()
    with pytest.raises(ShapeError, match="rows_first=True"):
        RankingPlan(codes).auroc(scores.T.copy())
    with pytest.raises(ShapeError, match="expected"):
        RankingPlan(codes).auroc(scores[:, :5])


def test_codes_of_a_plan_are_two_dimensional():
    """A plan needs one row of codes per category."""
    with pytest.raises(ShapeError, match="one row of codes per category"):
        RankingPlan(np.zeros(3, dtype=np.int8))


@pytest.mark.parametrize("kernel", KERNELS)
def test_shapes_that_do_not_broadcast_are_refused(kernel):
    """The message shows all shapes."""
    scores, codes = case()
    with pytest.raises(ShapeError, match="do not broadcast"):
        kernel(scores[:, :5], codes)


@pytest.mark.parametrize("prevalence", [0.0, 1.0, float("nan"), -0.2])
def test_prevalence_outside_its_range_is_refused(prevalence):
    """A prevalence of 0 or 1 leaves no ranking to score."""
    scores, codes = case()
    with pytest.raises(ConfigError, match="prevalence"):
        average_precision_columns(scores, codes, prevalence=prevalence)


def test_no_rows_at_all():
    """Empty rows give NaN."""
    empty = np.zeros((4, 0))
    for weight in (None, np.ones(())):
        value = average_precision_columns(empty, empty.astype(np.int8), weight=weight)
        assert value.isnan().all()
        assert value.shape == (4,)
