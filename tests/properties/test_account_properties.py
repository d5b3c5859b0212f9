"""What holds for every account of a change, whatever the data: no clear harm, no false green."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import catwise
from catwise import PartialLabels
from catwise._configs import PaperConfig
from catwise.metrics import METRICS
from catwise.reporting.summary import outcome_of
from catwise.testing import make_task
from catwise.tuning.account.records import EXPLANATIONS
from catwise.tuning.choice.rules import clearly_worse
from catwise.tuning.presets.default_config import DefaultConfig

if TYPE_CHECKING:
    from catwise.heads import Head

SMALL = DefaultConfig(
    penalties=(2.5, 0.3), n_folds=3, grid_penalties=(5.0, 0.3), grid_steps=(1.0, 8.0)
)
QUICK = PaperConfig(lr=5e-3, max_steps=15, patience=8)
NAMES = ("average_precision", "auroc", "log_loss")
OFTEN = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def thinned(labels: PartialLabels, rng: np.random.Generator) -> PartialLabels:
    """With 0 to 6 positives, or negatives, left in some of the categories."""
    codes = labels.codes.copy()
    for c in range(codes.shape[1]):
        if (kind := rng.integers(0, 4)) < 2:
            rows = rng.permutation(np.flatnonzero(codes[:, c] == kind))
            codes[rows[rng.integers(0, 7) :], c] = -1
    if not (codes == 1).any():
        codes[:3] = 1
    return PartialLabels(codes, labels.ids, labels.categories, labels.groups)


def drawn(seed: int) -> tuple:
    """A head that is good or poor, and labels that are short of a class in some categories."""
    rng = np.random.default_rng(seed)
    task = make_task(150, 90, 90, 8, 5, seed=seed % 7)
    weight = task.head.weight.numpy() * rng.choice([1.0, 1.0, 0.2], (5, 1))
    head = task.head.replace(weight=weight + rng.normal(size=weight.shape) * rng.choice([0.0, 0.3]))
    valid = task.valid.features, thinned(task.valid.labels, rng)
    test = task.test.features, thinned(task.test.labels, rng)
    return head, task.train.pair, valid, test


def holds(records: list[dict], base: Head, head: Head) -> None:
    """The rules of an account, for each record."""
    for record in records:
        higher = METRICS[record["metric"]].higher_is_better
        low, high, gain = record["gain_low"], record["gain_high"], record["gain"]
        ends = (np.array([np.nan if x is None else x]) for x in (low, high))
        if record["status"] == "replaced":
            assert not clearly_worse(*ends, higher_is_better=higher)[0], record
        else:
            row = record["index"]
            assert np.array_equal(base.weight[row], head.weight[row])
            assert low is None
        assert (low is None) == (high is None)
        if low is not None:
            assert min(record["n_positive_valid"], record["n_negative_valid"]) >= 3, record
            assert record["interval_reason"] is None
            assert low <= gain <= high
        elif record["status"] != "skipped":
            assert record["interval_reason"] in EXPLANATIONS, record
            if gain is not None and record["status"] == "replaced":
                few = min(record["n_positive_valid"], record["n_negative_valid"]) < 3
                told = record["interval_reason"].startswith("few_")
                assert few == told or record["interval_reason"] == "order_unchanged", record
        own = {key: value for key, value in record.items() if key != "test_outcome"}
        if shown := outcome_of(own):
            assert record["status"] == "replaced"
            assert (gain > 0) == (higher == (shown == "better")), record
            assert gain != 0
        if "test_outcome" not in record:
            continue
        scarce = min(record["n_positive_test"], record["n_negative_test"])
        assert (record["test_low"] is None) == (record["test_reason"] is not None)
        assert scarce >= 3 or record["test_low"] is None
        too_few = scarce < 3 and record["test_reason"] != "unchanged"
        assert too_few == (record["test_outcome"] == "not_judged"), record
        if shown := outcome_of(record):
            better = (record["test_difference"] > 0) == higher
            assert record["test_difference"] != 0
            assert shown == ("better" if better else "worse"), record


@pytest.mark.parametrize(
    "options",
    [
        {"config": SMALL},
        {"config": SMALL, "validation": "select"},
        {"preset": "paper", "config": QUICK},
    ],
    ids=["default", "select", "paper"],
)
@OFTEN
@given(st.integers(0, 10**6), st.sampled_from(NAMES))
def test_every_account_of_tune(options, seed, metric):
    """Never clearly worse and replaced; green only for a gain; no interval without 3 of a class."""
    head, train, valid, test = drawn(seed)
    result = catwise.tune(head, train, valid, test=test, metric=metric, force=True, **options)
    holds(result.records, head, result.head)
    if not any(record["status"] == "replaced" for record in result.records):
        assert result.summary["gain"] in {0.0, None}
        assert result.summary["gain_low"] is None
    if result.summary["gain"] is not None and options.get("preset") != "paper":
        sign = 1 if METRICS[metric].higher_is_better else -1
        assert (sign * result.summary["gain"] > 0) == (result.summary["n_replaced"] > 0)


@OFTEN
@given(st.integers(0, 10**6), st.sampled_from(NAMES), st.sampled_from(["honest", "greedy"]))
@example(1629, "average_precision", "honest")  # a positive alone in its category
def test_every_account_of_select(seed, metric, rule):
    """The same of a choice among heads, better and worse ones, one of them a run."""
    head, train, valid, _ = drawn(seed)
    rng = np.random.default_rng(seed)
    shape = tuple(head.weight.shape)
    others = {
        f"noise {k}": head.replace(weight=head.weight.numpy() + 0.5 * rng.normal(size=shape))
        for k in range(3)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", catwise.InSampleWarning)
        run = catwise.tune(head, train, valid, metric=metric, force=True, config=SMALL)
        found = catwise.select(
            {"base": head, "run": run, **others}, valid, metric=metric, rule=rule, splits=3,
            force=True,
        )  # fmt: skip
    holds(found.records, head, found.head)
