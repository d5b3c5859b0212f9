"""Every metric against scikit-learn and against a slow plain twin, ties included."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
)

from catwise.metrics import RankingPlan, auroc_columns, average_precision_columns
from catwise.metrics.calibration import brier_columns, ece_columns, log_loss_columns
from catwise.metrics.ranking import partial_auroc_columns
from catwise.metrics.threshold import (
    best_f1_threshold_columns,
    f1_columns,
    precision_columns,
    recall_columns,
)

RANKING = [
    (average_precision_columns, average_precision_score),
    (auroc_columns, roc_auc_score),
    (partial_auroc_columns, partial(roc_auc_score, max_fpr=0.1)),
    (partial(partial_auroc_columns, max_fpr=0.63), partial(roc_auc_score, max_fpr=0.63)),
    (partial(partial_auroc_columns, max_fpr=1.0), roc_auc_score),
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
    codes[4:6] = 0  # one positive, and none
    codes[4, 30] = 1
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


def test_confusion_metrics_equal_sklearn_at_a_threshold():
    """Precision, recall and F1 equal scikit-learn's, a tie with the threshold called positive."""
    scores, codes, weight = tied_case(7)
    for threshold in (-0.5, 0.0, 1.25, 99.0):
        for ours, theirs in (
            (precision_columns, precision_score),
            (recall_columns, recall_score),
            (f1_columns, f1_score),
        ):
            for used in (None, weight):

                def called(truth, score, theirs=theirs, threshold=threshold, **options):
                    return theirs(truth, score >= threshold, zero_division=0, **options)

                np.testing.assert_allclose(
                    ours(scores, codes, weight=used, threshold=threshold).numpy(),
                    by_sklearn(called, scores, codes, used),
                    rtol=0,
                    atol=1e-12,
                )


def best_f1_by_sklearn(truth, score, sample_weight=None):
    precision, recall, _ = precision_recall_curve(truth, score, sample_weight=sample_weight)
    total = precision + recall
    return np.max(2 * precision * recall / np.where(total > 0, total, 1))


@pytest.mark.parametrize("weighted", [False, True])
def test_best_f1_is_the_maximum_of_sklearns_curve(weighted):
    """The best F1 is scikit-learn's, and its threshold reaches it."""
    scores, codes, weight = tied_case(8)
    used = weight if weighted else None
    best = best_f1_threshold_columns(scores, codes, weight=used)
    np.testing.assert_allclose(
        best.value.numpy(), by_sklearn(best_f1_by_sklearn, scores, codes, used), atol=1e-12
    )
    again = f1_columns(scores, codes, weight=used, threshold=best.threshold)
    torch.testing.assert_close(again, best.value)


@pytest.mark.parametrize("weighted", [False, True])
def test_brier_and_log_loss_equal_sklearn(weighted):
    """The proper scores equal scikit-learn's on probabilities."""
    scores, codes, weight = tied_case(9)
    used = weight if weighted else None
    for ours, theirs in ((brier_columns, brier_score_loss), (log_loss_columns, log_loss)):

        def on_probabilities(truth, score, theirs=theirs, **options):
            return theirs(truth, 1 / (1 + np.exp(-score)), **options)

        np.testing.assert_allclose(
            ours(scores, codes, weight=used).numpy(),
            by_sklearn(on_probabilities, scores, codes, used),
            rtol=0,
            atol=1e-12,
        )


def naive_ece(truth, score, sample_weight=None, n_bins=15):
    """The rule in words, row by row, duplicates materialised."""
    if sample_weight is not None:
        truth, score = np.repeat(truth, sample_weight), np.repeat(score, sample_weight)
    bins = [[] for _ in range(n_bins)]
    for y, s in zip(truth, score, strict=True):
        bins[int((score < s).sum()) * n_bins // len(score)].append((y, 1 / (1 + np.exp(-s))))
    filled = [np.array(one) for one in bins if one]
    return sum(abs((one[:, 1] - one[:, 0]).sum()) for one in filled) / len(score)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [12, 120, 400])
def test_ece_equals_the_rule_in_words(weighted, rows):
    """Equal-mass bins, ties whole, duplicates as weights, also with fewer rows than bins."""
    scores, codes, weight = tied_case(10, rows=rows, levels=30)
    codes[:, :2] = [0, 1]
    weight[:, :2] = 1
    used = weight if weighted else None
    np.testing.assert_allclose(
        ece_columns(scores, codes, weight=used).numpy(),
        by_sklearn(naive_ece, scores, codes, used),
        rtol=0,
        atol=1e-12,
    )
