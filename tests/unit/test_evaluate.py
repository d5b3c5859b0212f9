"""Evaluation: values, means, reasons, options, intervals, in-sample rows, comparison."""

from __future__ import annotations

import json
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch

from catwise.errors import (
    CategoryError,
    ConfigError,
    FeatureError,
    InSampleWarning,
    LabelError,
    MismatchError,
    ShapeError,
)
from catwise.features import Features
from catwise.heads import Head
from catwise.joining import source_digests
from catwise.labels import PartialLabels
from catwise.metrics import (
    DEFAULT_METRICS,
    METRICS,
    bootstrap_replicates,
    compare,
    evaluate,
    paired_bootstrap,
)
from catwise.metrics.bootstrap import Resampler
from catwise.metrics.mismatch import check_match, cross_auroc
from catwise.metrics.replicates import metric_replicates

NAMES = ("ant", "bee", "cat", "dog", "eel")


def case(seed=0, *, rows=120, names=NAMES, ids=None, groups=None, noise=1.0):
    """A head that knows something, features and labels with gaps."""
    rng = np.random.default_rng(seed)
    n = len(names)
    features = rng.normal(size=(rows, 8)).astype(np.float32)
    weight = rng.normal(size=(n, 8)).astype(np.float32)
    truth = features @ weight.T + noise * rng.normal(size=(rows, n)) > 0.8
    codes = np.where(rng.random((rows, n)) < 0.3, -1, truth).astype(np.int8)
    labels = PartialLabels(codes, ids=ids, categories=names, groups=groups)
    return Head(weight, np.zeros(n, np.float32), categories=names), features, labels


def test_values_are_the_metrics_of_the_logits():
    """Every default metric, per category and pooled."""
    head, features, labels = case()
    result = evaluate(head, (features, labels))
    logits = head.logits(features)
    assert tuple(result.values) == DEFAULT_METRICS
    for name in DEFAULT_METRICS:
        metric = METRICS[name]
        expected = metric.per_category(logits, labels).numpy()
        np.testing.assert_array_equal(result.values[name], expected)
        assert result.means[name]["macro"] == pytest.approx(expected.mean())
        assert result.means[name]["micro"] == pytest.approx(metric.micro(logits, labels))
        assert result.means[name]["n_categories"] == 5
    assert result.intervals == {}
    assert not result.in_sample


def test_categories_without_both_classes_are_left_out_of_the_mean():
    """They have a reason, and the mean says how many it covers."""
    head, features, labels = case()
    codes = labels.codes.copy()
    codes[:, 1] = np.where(codes[:, 1] == 1, -1, codes[:, 1])
    codes[:, 3] = -2
    result = evaluate(head, (features, PartialLabels(codes, categories=NAMES)), metrics=["auroc"])
    assert result.reasons == (None, "no_known_positive", None, "no_known_label", None)
    assert np.isnan(result.values["auroc"][[1, 3]]).all()
    assert result.means["auroc"]["n_categories"] == 3
    assert result.means["auroc"]["macro"] == pytest.approx(result.values["auroc"][[0, 2, 4]].mean())
    assert result.records()[1]["auroc"] is None


def test_no_category_that_can_be_scored_gives_nan_and_none():
    """No category with both classes, no mean."""
    head, features, _ = case()
    result = evaluate(
        head, (features, PartialLabels(np.zeros((120, 5), dtype=np.int8))), bootstrap=3
    )
    assert result.means["auroc"]["n_categories"] == 0
    assert np.isnan(result.means["auroc"]["macro"])
    assert result.to_dict()["means"]["auroc"]["macro"] is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_no_known_label_is_an_error():
    """Labels of which none is known were read wrongly, or are the wrong ones."""
    head, features, labels = case()
    blank = PartialLabels(np.full_like(labels.codes, -1), categories=NAMES)
    with pytest.raises(LabelError, match="no label is known"):
        evaluate(head, (features, blank))


def test_rows_join_by_id_and_columns_by_name():
    """Shuffled features and reordered, fewer columns give the same numbers."""
    ids = [f"i{i}" for i in range(120)]
    head, features, labels = case(ids=ids)
    order = np.random.default_rng(1).permutation(120)
    shuffled = Features(features[order], ids=[ids[i] for i in order])
    plain = evaluate(head, (features, labels))
    joined = evaluate(head, (shuffled, labels.take_categories(["eel", "bee"])))
    assert joined.categories == ("eel", "bee")
    assert joined.head_index.tolist() == [4, 1]
    for name, values in plain.values.items():
        np.testing.assert_allclose(joined.values[name], values[[4, 1]], rtol=1e-12)


def test_blocks_of_categories_change_nothing(monkeypatch):
    """However many fit in memory at a time."""
    head, features, labels = case()
    options = {"bootstrap": 20, "thresholds": np.linspace(-0.5, 0.5, 5)}
    whole = evaluate(head, (features, labels), **options)
    monkeypatch.setattr(import_module("catwise.metrics.evaluate"), "_ENTRIES", 250)
    cut = evaluate(head, (features, labels), **options)
    for name in whole.values:
        np.testing.assert_allclose(cut.values[name], whole.values[name], rtol=1e-6)
        assert cut.means[name]["micro"] == pytest.approx(whole.means[name]["micro"], rel=1e-6)
        np.testing.assert_allclose(
            cut.intervals[name].per_category, whole.intervals[name].per_category, rtol=1e-6
        )


def test_labels_stored_as_columns_give_the_same_numbers():
    """Storage is not content."""
    head, features, labels = case()
    dense = evaluate(head, (features, labels), bootstrap=10)
    columns = evaluate(head, (features, labels.with_storage("columns")), bootstrap=10)
    for name, values in dense.values.items():
        np.testing.assert_allclose(columns.values[name], values, rtol=1e-12)
        np.testing.assert_allclose(columns.replicates[name], dense.replicates[name], rtol=1e-12)


def test_thresholds_may_differ_by_category():
    """As numbers in the order of the columns, or by name; micro means use them too."""
    head, features, labels = case()
    limits = np.array([0.5, -0.2, 0.0, 1.0, -1.0])
    result = evaluate(head, (features, labels), thresholds=limits)
    by_name = evaluate(
        head, (features, labels), thresholds=dict(zip(NAMES, limits.tolist(), strict=True))
    )
    logits = head.logits(features).double()
    for name in ("precision", "recall", "f1"):
        expected = METRICS[name].per_category(logits, labels, threshold=limits)
        np.testing.assert_array_equal(result.values[name], expected.numpy())
        np.testing.assert_array_equal(by_name.values[name], expected.numpy())
        shifted = METRICS[name].micro(logits - torch.from_numpy(limits), labels)
        assert result.means[name]["micro"] == pytest.approx(shifted)
    np.testing.assert_array_equal(
        result.values["auroc"], METRICS["auroc"].per_category(logits, labels).numpy()
    )


def test_prevalence_is_passed_on():
    """One for all, or one each; one pool has no prevalence per category."""
    head, features, labels = case()
    one = evaluate(head, (features, labels), prevalence=0.1)
    each = evaluate(head, (features, labels), prevalence=[0.1] * 5)
    logits = head.logits(features)
    for name in ("average_precision", "precision", "f1", "best_f1"):
        expected = METRICS[name].per_category(logits, labels, prevalence=0.1).numpy()
        np.testing.assert_array_equal(one.values[name], expected)
        np.testing.assert_array_equal(each.values[name], expected)
        micro = METRICS[name].micro(logits, labels, prevalence=0.1)
        assert one.means[name]["micro"] == pytest.approx(micro)
        assert np.isnan(each.means[name]["micro"])
    assert "prevalence" in " ".join(each.notes)
    assert each.to_dict()["options"] == {"prevalence": [0.1] * 5}


def test_intervals_are_the_existing_bootstraps():
    """Same draws, same percentiles, every metric and option."""
    head, features, labels = case()
    result = evaluate(head, (features, labels), bootstrap=150, seed=3)
    logits = head.logits(features)
    for name in DEFAULT_METRICS:
        replicates = bootstrap_replicates((logits,), labels, name, n_resamples=150, seed=3)[0]
        np.testing.assert_allclose(result.replicates[name], replicates, rtol=1e-9, atol=1e-12)
        low, high = result.intervals[name].macro
        assert low < result.means[name]["macro"] + 0.05
        assert high > result.means[name]["macro"] - 0.05


@pytest.mark.parametrize("name", ["average_precision", "precision", "recall", "f1", "best_f1"])
def test_replicates_with_options_are_the_kernels(name):
    """Thresholds and prevalence enter every replicate."""
    head, features, labels = case()
    metric, logits = METRICS[name], head.logits(features)
    options = dict.fromkeys(metric.takes, 0.2)
    resampler = Resampler(np.arange(120), seed=0)
    found = metric_replicates(logits, labels, [(metric, [options] * 5)], resampler, n_resamples=7)[
        name
    ]
    rows, positive = labels.known(2)
    weights = resampler.weights(
        resampler.strata(rows, positive), resampler.layers(0), 0, key="cat"
    )[:7]
    codes = torch.from_numpy(positive.astype(np.int8))
    expected = metric.columns(logits[rows, 2], codes, weight=weights, **options)
    np.testing.assert_allclose(found[:, 2], expected.numpy(), rtol=1e-9)


def test_groups_are_drawn_together():
    """The labels' groups are the units of the bootstrap."""
    groups = [f"p{i // 4}" for i in range(120)]
    head, features, labels = case(groups=groups)
    result = evaluate(head, (features, labels), metrics="auroc", bootstrap=30)
    expected = bootstrap_replicates((head.logits(features),), labels, "auroc", n_resamples=30)[0]
    np.testing.assert_allclose(result.replicates["auroc"], expected)


def test_rows_that_fitted_the_head_are_marked():
    """By id; the count says how many."""
    ids = [f"i{i}" for i in range(120)]
    head, features, labels = case(ids=ids)
    fitted = head.with_fitted_on(source_digests(features, labels)[:7])
    with pytest.warns(InSampleWarning, match="7 of 120 rows"):
        result = evaluate(fitted, (features, labels), metrics="auroc")
    assert result.in_sample
    assert result.n_in_sample == 7
    assert "in_sample=True" in repr(result)
    assert result.to_dict()["n_in_sample"] == 7


def test_rows_without_ids_are_known_by_their_content():
    """The features themselves say that they were seen, in whatever order."""
    head, features, labels = case()
    fitted = head.with_fitted_on(source_digests(features, labels))
    with pytest.warns(InSampleWarning):
        evaluate(fitted, (features[::-1].copy(), labels), metrics="auroc", force=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = case(5)
        assert not evaluate(fitted, (fresh[1], fresh[2]), metrics="auroc", force=True).in_sample


def test_mixed_up_columns_are_refused():
    """The head's rows in another order rank the wrong columns best; force goes on and notes it."""
    head, features, labels = case(rows=400, noise=0.3)
    turned = PartialLabels(np.roll(labels.codes, 1, axis=1))
    with pytest.raises(MismatchError, match="columns or features look mismatched") as caught:
        evaluate(head, (features, turned))
    assert "ranks column" in str(caught.value)
    forced = evaluate(head, (features, turned), force=True)
    assert "look mismatched" in forced.notes[-1]


def test_features_of_another_model_are_refused():
    """Everything near chance."""
    head, features, labels = case(rows=400)
    noise = np.random.default_rng(9).normal(size=features.shape)
    with pytest.raises(MismatchError):
        evaluate(head, (noise, labels))


def test_few_labels_are_not_called_mismatched():
    """Under ten of each class nothing can be said."""
    codes = np.zeros((60, 4), dtype=np.int8)
    codes[:9] = 1
    logits = np.zeros((60, 4))
    assert check_match(logits, codes) == []


def test_cross_auroc_is_the_auroc_where_all_is_known():
    """The diagonal is each category's own."""
    head, features, labels = case(rows=300)
    codes = np.abs(labels.codes)
    logits = head.logits(features)
    expected = METRICS["auroc"].per_category(logits, codes).numpy()
    np.testing.assert_allclose(np.diag(cross_auroc(logits.numpy(), codes)), expected, atol=1e-5)


def test_options_are_checked():
    """All problems at once, with what was expected."""
    head, features, labels = case()
    with pytest.raises(ConfigError, match=r"metrics is empty; bootstrap=-1; level=1\.0"):
        evaluate(head, (features, labels), metrics=[], bootstrap=-1, level=1.0)
    with pytest.raises(ConfigError, match="did you mean 'auroc'"):
        evaluate(head, (features, labels), metrics=["aurco"])
    with pytest.raises(ShapeError, match="thresholds does not fit"):
        evaluate(head, (features, labels), thresholds=[0.0])
    with pytest.raises(ConfigError, match="none for 4, first 'bee'"):
        evaluate(head, (features, labels), prevalence={"ant": 0.5})
    with pytest.raises(ConfigError, match=r"inside \(0, 1\)"):
        evaluate(head, (features, labels), prevalence=1.0)


def test_nan_features_are_refused():
    """The first place is named."""
    head, features, labels = case()
    features[3, 2] = np.nan
    with pytest.raises(FeatureError, match="row 3"):
        evaluate(head, (features, labels))


def test_records_and_dict_are_json_ready():
    """One record a category, in their order."""
    head, features, labels = case()
    result = evaluate(head, (features, labels), metrics=["auroc", "ece"], bootstrap=5)
    records = result.records()
    assert [record["category"] for record in records] == list(NAMES)
    assert list(records[0]) == [
        "category",
        "index",
        "n_known",
        "n_positive",
        "n_negative",
        "reason",
        "auroc",
        "auroc_low",
        "auroc_high",
        "ece",
        "ece_low",
        "ece_high",
    ]
    assert records[0]["n_known"] == int((labels.codes[:, 0] >= 0).sum())
    total = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert total["means"]["auroc"]["macro_low"] <= total["means"]["auroc"]["macro_high"]
    assert repr(result).startswith("Evaluation(n_rows=120, n_categories=5, auroc=0.")


def test_comparison_uses_the_intersection():
    """Means of both over the categories that both define."""
    head, features, labels = case()
    codes = labels.codes.copy()
    codes[:, 0] = -1
    a = evaluate(head, (features, labels), metrics=["auroc", "f1"])
    b = evaluate(
        head, (features, PartialLabels(codes, categories=NAMES).take_categories(NAMES[:4]))
    )
    found = compare(a, b)
    assert set(found) == {"auroc", "f1"}
    auroc = found["auroc"]
    assert auroc.categories == ("bee", "cat", "dog")
    assert (auroc.n_categories, auroc.n_only_a, auroc.n_only_b) == (3, 2, 0)
    assert auroc.difference == 0.0
    assert auroc.mean_a == pytest.approx(a.values["auroc"][1:4].mean())
    assert auroc.interval is None


def test_comparison_is_paired_on_the_same_draws():
    """The interval is that of the paired bootstrap."""
    head, features, labels = case()
    other = head.replace(weight=head.weight + 0.5 * torch.tensor([[1.0, -1.0] * 4] * 5))
    a, b = (evaluate(h, (features, labels), metrics="auroc", bootstrap=200) for h in (head, other))
    expected = paired_bootstrap(
        head.logits(features), other.logits(features), labels, "auroc", n_resamples=200
    )
    found = compare(a, b)["auroc"]
    assert found.difference == pytest.approx(expected.mean_difference)
    assert found.interval == pytest.approx(expected.mean_interval)
    changed = evaluate(head, (features, labels), metrics="auroc", bootstrap=200, seed=1)
    assert compare(a, changed)["auroc"].interval is None


def test_comparison_needs_a_common_category():
    """Nothing in common cannot be compared."""
    head, features, labels = case()
    a, b = (
        evaluate(head, (features, labels.take_categories(names)), metrics="auroc")
        for names in (NAMES[:2], NAMES[2:])
    )
    with pytest.raises(CategoryError, match="no category in common"):
        compare(a, b)
