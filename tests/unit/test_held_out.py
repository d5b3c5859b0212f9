"""Test rows of `tune`: they judge, and they change nothing."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import catwise
from catwise import PartialLabels
from catwise.errors import (
    CategoryError,
    ConfigError,
    FeatureError,
    IdError,
    InSampleWarning,
    LabelError,
    MismatchError,
)
from catwise.joining import source_digests
from catwise.metrics import Metric, compare_logits
from catwise.metrics.calibration import brier_columns
from catwise.testing import assert_same_head
from catwise.tuning.account.held_out import METRICS
from tuning_case import QUICK, SMALL, task

if TYPE_CHECKING:
    from catwise.tuning.account.results import TuneResult


def tuned(test=None, **options) -> TuneResult:
    made = task()
    train, valid = options.pop("train", made.train.pair), options.pop("valid", made.valid.pair)
    options = {"config": SMALL, **options}
    return catwise.tune(options.pop("head", made.head), train, valid, test=test, **options)


@cache
def judged() -> TuneResult:
    return tuned(task().test.pair)


def renamed(labels: PartialLabels, **changes) -> PartialLabels:
    parts = {"ids": labels.ids, "categories": labels.categories, "groups": labels.groups}
    return PartialLabels(labels.codes, **{**parts, **changes})


def test_test_rows_compare_the_two_heads():
    """The result's comparison is that of the base's and the tuned head's logits on these rows."""
    result, (features, labels) = judged(), task().test.pair
    expected = compare_logits(task().head.logits(features), result.head.logits(features), labels)
    assert result.test.verdict == "helped"
    assert result.test.sentence() == expected.sentence()
    np.testing.assert_allclose(result.test.difference, expected.difference, rtol=0, atol=1e-6)
    assert result.evaluation["sentence"] == result.test.sentence()
    assert result.evaluation["n_rows"] == labels.n_rows
    assert list(result.evaluation["means"]) == list(METRICS)
    assert "Helped: on 400 test rows" in repr(result)


def test_test_rows_choose_nothing():
    """Head, scores, choice and history are those of a tuning without test rows."""
    alone, result = tuned(), judged()
    assert_same_head(result.head, alone.head)
    assert np.array_equal(result.head.fitted_on, alone.head.fitted_on)
    assert result.history == alone.history
    both = [
        {key: value for key, value in record.items() if "test" not in key}
        for record in result.records
    ]
    assert both == alone.records
    assert (alone.test, alone.evaluation) == (None, None)


def test_records_hold_the_test_scores():
    """Every category's record has its scores on test rows, as the evaluation gives them."""
    for record, row in zip(judged().records, judged().evaluation["categories"], strict=True):
        assert record["category"] == row["category"]
        assert record["test_difference"] == row["difference"]
        assert (record["test_low"], record["test_high"]) == (
            row["difference_low"],
            row["difference_high"],
        )
        assert record["test_outcome"] == row["outcome"]
        assert record["n_positive_test"] == row["n_positive"]
        assert row["other_metrics"]["auroc"]["after"] > 0.5


@pytest.mark.parametrize(("other", "name"), [("train", "training"), ("valid", "validation")])
def test_rows_of_other_sources_are_refused(other, name):
    """An id, and a group, of the training or validation rows cannot judge."""
    (features, labels), (_, seen) = task().test.pair, getattr(task(), other).pair
    ids = labels.ids.astype(object)
    ids[7] = seen.ids[3]
    with pytest.raises(IdError, match=f"1 ids are in both the {name} and the test data"):
        tuned((features.values, renamed(labels, ids=ids.astype(str))))
    groups = [f"own {row}" for row in range(labels.n_rows)]
    own = renamed(seen, groups=[f"{name} {row}" for row in range(seen.n_rows)])
    groups[5] = f"{name} 2"
    sources = {other: (getattr(task(), other).features, own)}
    with pytest.raises(IdError, match=f"1 groups are in both the {name} and the test data"):
        tuned((features, renamed(labels, groups=groups)), **sources)


def test_repeated_features_without_ids_are_refused():
    """Without ids the content of the rows tells."""
    features, labels = task().valid.pair
    with pytest.raises(IdError, match="test rows have the same features as a validation row"):
        tuned((features.values, renamed(labels, ids=None)))


def test_mismatched_test_rows_are_refused():
    """Shuffled test features stop the work before it begins; force goes on and says so."""
    features, labels = task().test.pair
    order = np.random.default_rng(0).permutation(labels.n_rows)
    test = (features.values[order], renamed(labels, ids=None))
    with pytest.raises(MismatchError, match="test: columns or features look mismatched"):
        tuned(test)
    assert any(note.startswith("test: ") for note in tuned(test, force=True).notes)


def test_columns_are_matched_by_name():
    """Columns in another order, with one more in between, change nothing."""
    features, labels = task().test.pair
    names = [*labels.categories[::-1], "other"]
    codes = np.concatenate([labels.codes[:, ::-1], labels.codes[:, :1]], axis=1)
    weight = torch.cat([task().head.weight, task().head.weight[:1]])
    bias = torch.cat([task().head.bias, task().head.bias[:1]])
    head = catwise.Head(weight, bias, categories=[*task().head.categories, "other"])
    found = tuned((features, PartialLabels(codes, labels.ids, names)), head=head)
    assert found.test.categories == judged().test.categories
    np.testing.assert_allclose(found.test.difference, judged().test.difference, atol=1e-6)


def test_what_test_rows_cannot_be():
    """Lacking a category, not finite, without a known label, or for a metric without interval."""
    features, labels = task().test.pair
    few = labels.take_categories(range(4))
    with pytest.raises(CategoryError, match="the test labels lack 1 of"):
        tuned((features, few))
    wrong = np.array(features.values)
    wrong[3, 2] = np.nan
    with pytest.raises(FeatureError, match="test features"):
        tuned((wrong, labels))
    with pytest.raises(LabelError, match="no test label is known"):
        tuned((features, renamed(labels, ids=None) and PartialLabels(
            np.full(labels.shape, -1, dtype=np.int8), labels.ids, labels.categories
        )))  # fmt: skip
    own = Metric("own", "Own", brier_columns, higher_is_better=False)
    with pytest.raises(ConfigError, match="test rows cannot be compared by this metric"):
        tuned((features, labels), metric=own)


def test_rows_that_fitted_the_head_given_are_refused():
    """One is enough by id; of rows without ids a few may be equal images, which is noted."""
    features, labels = task().test.pair
    test = features.values, renamed(labels, ids=None)
    one = task().head.with_fitted_on(source_digests(features, labels)[7:8])
    with pytest.raises(IdError, match=f"(?s)1 of 400 test rows fitted.*{labels.ids[7]!s}"):
        tuned((features, labels), head=one)
    digests = source_digests(*test)
    with pytest.raises(IdError, match=r"(?s)81 of 400 test rows fitted or selected.*first row 0"):
        tuned(test, head=task().head.with_fitted_on(digests[:81]))
    note = "3 of 400 test rows fitted or selected the head given, by the content of their features."
    assert note in tuned(test, head=task().head.with_fitted_on(digests[:3])).notes


def test_rows_that_choose_and_fitted_the_head_given_are_noted():
    """What it scores there is too good; without validation rows it is the training rows."""
    digests = source_digests(*task().valid.pair)
    head = task().head.with_fitted_on(digests[:5])
    note = f"5 of {digests.size:,} validation rows fitted or selected the head given: "
    assert any(one.startswith(note) for one in tuned(None, head=head).notes)
    assert not any("head given" in one for one in tuned(None).notes)


@pytest.mark.parametrize("options", [{"preset": "paper"}, {"metric": "brier"}, {"valid": None}])
def test_every_way_of_tuning_is_judged(options):
    """The published recipe, losses, and training labels alone."""
    config = QUICK if options.get("preset") else None
    alone = pytest.warns(InSampleWarning) if "valid" in options else contextlib.nullcontext()
    with alone:
        found = tuned(task().test.pair, config=config, **options)
    assert found.test.metric == options.get("metric", "average_precision")
    verdict = "no_difference" if "valid" in options else "helped"
    assert found.evaluation["verdict"] == found.test.verdict == verdict


def test_few_positives_have_no_interval():
    """Two known positives give scores, no interval, and a reason."""
    features, labels = task().test.pair
    codes = np.array(labels.codes)
    codes[np.flatnonzero(codes[:, 0] == 1)[2:], 0] = -1
    test = (features, PartialLabels(codes, labels.ids, labels.categories))
    record = tuned(test).records[0]
    assert record["test_difference"] is not None
    assert (record["test_low"], record["test_reason"]) == (None, "few_positives")
    assert record["test_outcome"] == "not_judged"
