"""A tiny run, record by record: what changes here changes what people read and compare."""

from __future__ import annotations

import numpy as np
import pytest

import catwise
from catwise.testing import make_task

# One category gained, one has no validation labels, one has too few and follows the others.
RECORDS = [
    {
        "category": "category 0",
        "index": 0,
        "status": "replaced",
        "reason": "gain",
        "explanation": "The tuned head scored better on labels that did not fit it.",
        "candidate": "penalty=0.3",
        "metric": "average_precision",
        "before": 0.754293,
        "after": 0.799403,
        "gain": 0.04511,
        "gain_low": -0.045241,
        "gain_high": 0.135462,
        "interval_reason": None,
        "selected_on": 0.819069,
        "scored_on": "validation, cross-fitted in 5 folds",
        "n_positive_train": 6,
        "n_negative_train": 21,
        "n_positive_valid": 26,
        "n_negative_valid": 34,
        "gap_auroc": 0.177494,
        "gap_average_precision": 0.17498,
    },
    {
        "category": "category 1",
        "index": 1,
        "status": "skipped",
        "reason": "no_known_label_in_valid",
        "explanation": "No label is known in the validation data.",
        "candidate": "base",
        "metric": "average_precision",
        "before": None,
        "after": None,
        "gain": None,
        "gain_low": None,
        "gain_high": None,
        "interval_reason": None,
        "selected_on": None,
        "scored_on": None,
        "n_positive_train": 13,
        "n_negative_train": 20,
        "n_positive_valid": 0,
        "n_negative_valid": 0,
        "gap_auroc": None,
        "gap_average_precision": None,
    },
    {
        "category": "category 2",
        "index": 2,
        "status": "replaced",
        "reason": "pooled_gain",
        "explanation": "Too few positives to judge this category alone; the mean gain over all "
        "categories decided.",
        "candidate": "penalty=0.3",
        "metric": "average_precision",
        "before": 0.105715,
        "after": 0.075411,
        "gain": -0.030305,
        "gain_low": -0.376908,
        "gain_high": 0.316299,
        "interval_reason": None,
        "selected_on": 0.075198,
        "scored_on": "validation, cross-fitted in 5 folds",
        "n_positive_train": 3,
        "n_negative_train": 24,
        "n_positive_valid": 4,
        "n_negative_valid": 56,
        "gap_auroc": None,
        "gap_average_precision": None,
    },
]

SUMMARY = {
    "metric": "average_precision",
    "n_categories": 3,
    "n_replaced": 2,
    "n_kept": 0,
    "n_skipped": 1,
    "n_scored": 2,
    "before": 0.430004,
    "after": 0.437407,
    "gain": 0.007403,
    "gain_low": -0.160737,
    "gain_high": 0.175542,
    "level": 0.95,
    "selected_on": 0.447134,
    "choice": {
        "candidate": "penalty=0.3",
        "penalty": 0.3,
        "refinement": {"temperature": 0.7, "penalty": 3.0},
        "log_loss": 0.353387,
    },
    "rows": {"train": 60, "valid": 60},
}

FOLDS = "334042433104133410322441312112100124232222302100301143000444"


@pytest.fixture(scope="module")
def result():
    made = make_task(60, 60, 10, 4, 3, known=0.5, seed=7)
    labels = made.valid.labels
    codes = labels.codes.copy()
    codes[:, 1] = -1
    valid = made.valid.features, catwise.PartialLabels(codes, labels.ids, labels.categories)
    return catwise.tune(made.head, made.train.pair, valid)


def assert_same(found, expected):
    """Keys in their order, words exactly, numbers to the sixth digit."""
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value, abs=2e-6) if isinstance(value, float) else value)


def test_the_records_of_a_tiny_run(result):
    """Every key, word and number of every category."""
    assert len(result.records) == len(RECORDS)
    for found, expected in zip(result.records, RECORDS, strict=True):
        assert_same(found, expected)


def test_the_summary_of_a_tiny_run(result):
    """Means, counts and the choice; time and passes are free to change."""
    kept = {k: v for k, v in result.summary.items() if k not in {"seconds", "passes"}}
    assert_same(kept, SUMMARY)


def test_the_folds_of_a_tiny_run(result):
    """Ids and seed deal the rows on every machine alike."""
    assert "".join(map(str, result.folds.fold)) == FOLDS
    assert np.bincount(result.folds.fold).tolist() == [12] * 5
