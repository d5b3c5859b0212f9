"""Every metric against scikit-learn and against a slow plain twin, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from catwise.metrics import RankingPlan, auroc_columns, average_precision_columns

RANKING = [
    (average_precision_columns, average_precision_score),
    (auroc_columns, roc_auc_score),
]


def tied_case(seed: int, *, categories: int = 6, rows: int = 120, levels: int = 7):
    """Scores of few distinct values, partial codes of very uneven prevalence, integer weights."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-levels, levels, size=(categories, rows)) / 4.0
    share = np.linspace(0.05, 0.9, categories)[:, None]
    codes = (rng.random((categories, rows)) < share).astype(np.int8)
    codes[rng.random(codes.shape) < 0.3] = -1
    codes[rng.random(codes.shape) < 0.05] = -2
    weight = rng.integers(0, 4, size=codes.shape)
    return scores, codes, weight


def by_sklearn(function, scores, codes, weight=None):
    """One category at a time over its known rows."""
    values = []
    for c, row in enumerate(codes):
        known = row >= 0
        used = None if weight is None else weight[c, known]
        values.append(function(row[known], scores[c, known].astype(float), sample_weight=used))
    return np.array(values)


def naive_average_precision(scores, codes, *, prevalence=None):
    """The definition, positive by positive."""
    values = []
    for row, score in zip(codes, scores, strict=True):
        positives, negatives = score[row == 1], score[row == 0]
        precisions = []
        for s in positives:
            true, false = float((positives >= s).sum()), float((negatives >= s).sum())
            if prevalence is not None:
                true *= prevalence / len(positives)
                false *= (1 - prevalence) / len(negatives)
            precisions.append(true / (true + false))
        values.append(np.mean(precisions))
    return np.array(values)


@pytest.mark.parametrize(("ours", "theirs"), RANKING)
@pytest.mark.parametrize("seed", range(5))
def test_ranking_kernels_equal_sklearn_with_heavy_ties(ours, theirs, seed):
    """AP and AUROC per category equal scikit-learn's where scores tie."""
    scores, codes, _ = tied_case(seed)
    np.testing.assert_allclose(
        ours(scores, codes).numpy(), by_sklearn(theirs, scores, codes), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("ours", "theirs"), RANKING)
def test_ranking_kernels_equal_sklearn_with_weights(ours, theirs):
    """Row weights, zeros included, mean what scikit-learn's sample weights mean."""
    scores, codes, weight = tied_case(3)
    np.testing.assert_allclose(
        ours(scores, codes, weight=weight).numpy(),
        by_sklearn(theirs, scores, codes, weight),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(("ours", "theirs"), RANKING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ranking_kernels_take_every_float_type(ours, theirs, dtype):
    """Half-precision scores are ranked as stored, ties as they are."""
    scores, codes, _ = tied_case(4, levels=200)
    stored = torch.from_numpy(scores / 3).to(dtype)
    expected = by_sklearn(theirs, stored.double().numpy(), codes)
    np.testing.assert_allclose(ours(stored, codes).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prevalence", [0.01, 0.5, 0.9])
def test_average_precision_at_a_prevalence_equals_the_definition(prevalence):
    """All three paths restate the precision at the assumed prevalence."""
    scores, codes, _ = tied_case(5)
    expected = naive_average_precision(scores, codes, prevalence=prevalence)
    plan = RankingPlan(codes)
    paths = [
        average_precision_columns(scores, codes, prevalence=prevalence),
        average_precision_columns(scores, codes, weight=np.ones(()), prevalence=prevalence),
        plan.average_precision(scores, prevalence=np.full(len(codes), prevalence)),
    ]
    for value in paths:
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("complete", [True, False])
def test_device_batch_equals_the_cpu_path(complete):
    """The padded batch that other devices use gives the CPU's numbers, −inf scores too."""
    from catwise.metrics import ranking

    scores, codes, _ = tied_case(6)
    codes = np.abs(codes) % 2 if complete else codes.copy()
    codes[2] = 1
    scores[:, :20] = -np.inf
    score = torch.from_numpy(np.stack([scores, -scores, scores**2]))
    score[1, 3, np.flatnonzero(codes[3] >= 0)[0]] = float("nan")
    plan = RankingPlan(codes)
    batch = plan._batch(torch.device("cpu"))
    for share in (None, torch.tensor(0.2, dtype=torch.float64)):
        torch.testing.assert_close(
            ranking._ap_counts_batch(batch, score, share),
            plan.average_precision(score, prevalence=share),
            equal_nan=True,
            rtol=0,
            atol=1e-12,
        )
    torch.testing.assert_close(
        ranking._auroc_counts_batch(batch, score), plan.auroc(score), equal_nan=True
    )
