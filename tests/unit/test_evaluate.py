"""Evaluation: values, means, reasons, options, intervals, in-sample rows, comparison."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
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
    compare_heads,
    compare_logits,
    evaluate,
)
from catwise.metrics.intervals import MeanError, Units, estimate_of, interval_of_score
from catwise.metrics.mismatch import check_match, cross_auroc

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
    assert set(result.intervals) == set(DEFAULT_METRICS)
    assert result.in_sample is None


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
    result = evaluate(head, (features, PartialLabels(np.zeros((120, 5), dtype=np.int8))))
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
    options = {"thresholds": np.linspace(-0.5, 0.5, 5)}
    whole = evaluate(head, (features, labels), **options)
    monkeypatch.setattr(import_module("catwise.metrics.evaluating"), "_ENTRIES", 250)
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
    dense = evaluate(head, (features, labels))
    columns = evaluate(head, (features, labels.with_storage("columns")))
    for name, values in dense.values.items():
        np.testing.assert_allclose(columns.values[name], values, rtol=1e-12)
        ends = (one.intervals[name].per_category for one in (columns, dense))
        np.testing.assert_allclose(*ends, rtol=1e-12)


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


def test_intervals_are_those_of_the_one_rule():
    """Per category from its known rows, with threshold and prevalence; the mean shares rows."""
    head, features, labels = case(groups=[f"p{i // 2}" for i in range(120)])
    limits = np.array([0.5, -0.2, 0.0, 1.0, -1.0])
    result = evaluate(head, (features, labels), thresholds=limits, prevalence=0.2)
    logits, units = head.logits(features).double().numpy(), Units.of_labels(labels)
    for name in DEFAULT_METRICS:
        takes, mean = METRICS[name].takes, MeanError(60)
        for c in range(5):
            rows, positive = labels.known(c)
            scores = logits[rows, c] - (limits[c] if "threshold" in takes else 0.0)
            share = 0.2 if "prevalence" in takes else None
            own = units.take(rows)
            found, shares = estimate_of(name, scores, positive, own, prevalence=share)
            assert found.value == pytest.approx(result.values[name][c], abs=1e-6)
            expected = interval_of_score(name, found)
            np.testing.assert_allclose(result.intervals[name].per_category[c], expected, atol=1e-6)
            mean.add(found, shares, own.of_row)
        expected = mean.interval_of_score(name)
        assert result.intervals[name].macro == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sign", [1, 0])
def test_no_interval_below_three_of_a_class_and_a_reason(sign):
    """The score stays; the record and a note say why it has no interval."""
    head, features, labels = case()
    codes = labels.codes.copy()
    places = np.flatnonzero(codes[:, 2] == sign)
    codes[places[2:], 2] = -1
    result = evaluate(head, (features, PartialLabels(codes, categories=NAMES)), metrics="auroc")
    record = result.records()[2]
    assert record["reason"] is None
    assert record["auroc"] is not None
    assert record["auroc_low"] is record["auroc_high"] is None
    assert record["interval_reason"] == ("few_positives" if sign else "few_negatives")
    known = "positives" if sign else "negatives"
    assert any(f"1 category with fewer than 3 known {known}" in note for note in result.notes)


def test_a_mean_with_categories_of_one_class_has_their_errors_too():
    """Brier score and log-loss are means over rows: they need no second class."""
    head, features, labels = case()
    codes = labels.codes.copy()
    codes[codes[:, 2] == 1, 2] = -1
    result = evaluate(head, (features, PartialLabels(codes, categories=NAMES)))
    assert result.interval_reasons[2] == "no_known_positive"
    logits = head.logits(features).double().numpy()
    rows = codes[:, 2] == 0
    wrong = 1.0 / (1.0 + np.exp(-logits[rows, 2]))
    units = Units.of_labels(labels)
    found, _ = estimate_of("brier", logits[rows, 2], np.zeros(rows.sum(), bool), units.take(rows))
    assert found.value == pytest.approx((wrong**2).mean())
    assert found.error == pytest.approx((wrong**2).std(ddof=1) / np.sqrt(rows.sum()))
    low, high = result.intervals["brier"].macro
    assert result.means["brier"]["n_categories"] == 5
    assert low < result.means["brier"]["macro"] < high
    assert np.isnan(result.intervals["brier"].per_category[2]).all()


def test_groups_count_as_one_for_the_reason_too():
    """Ten positive rows of two patients are two positives."""
    head, features, labels = case()
    codes, groups = labels.codes.copy(), [f"p{i}" for i in range(120)]
    places = np.flatnonzero(codes[:, 2] == 1)[:10]
    codes[codes[:, 2] == 1, 2] = -1
    codes[places, 2] = 1
    for i, place in enumerate(places):
        groups[place] = f"few{i % 2}"
    given = PartialLabels(codes, categories=NAMES, groups=groups)
    result = evaluate(head, (features, given), metrics="auroc")
    assert result.interval_reasons[2] == "few_positives"
    assert np.isnan(result.intervals["auroc"].per_category[2]).all()


def test_average_precision_of_few_positives_is_said_to_be_too_high():
    """The note names the categories and their positives; AUROC needs none."""
    head, features, labels = case()
    codes = labels.codes.copy()
    codes[np.flatnonzero(codes[:, 3] == 1)[5:], 3] = -1
    given = (features, PartialLabels(codes, categories=NAMES))
    note = "average precision from fewer than 10 positives tends to be too high: 1 category, 'dog'"
    assert any(note in one for one in evaluate(head, given).notes)
    assert not any("too high" in one for one in evaluate(head, given, metrics="auroc").notes)


def test_a_metric_of_ones_own_has_no_interval():
    """Its value stands, also under a known name, and a note says so."""
    head, features, labels = case()
    own = replace(METRICS["auroc"], label="my AUROC")
    result = evaluate(head, (features, labels), metrics=[own])
    assert result.intervals == {}
    assert "no interval is known for 'auroc'." in result.notes
    with pytest.raises(ConfigError, match="no influence function"):
        compare_heads(head, head, (features, labels), metrics=[own])


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
    with pytest.raises(ConfigError, match=r"metrics=\[\], level=1\.0"):
        evaluate(head, (features, labels), metrics=[], level=1.0)
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
    result = evaluate(head, (features, labels), metrics=["auroc", "ece"])
    records = result.records()
    assert [record["category"] for record in records] == list(NAMES)
    assert list(records[0]) == [
        "category",
        "index",
        "n_known",
        "n_positive",
        "n_negative",
        "reason",
        "interval_reason",
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


def test_what_fitted_a_head_may_not_be_known():
    """Then nothing is said to be out of sample: null, and a note."""
    head, features, labels = case()
    result = evaluate(head, (features, labels), metrics="auroc")
    assert result.to_dict()["in_sample"] is result.to_dict()["n_in_sample"] is None
    assert any("not known whether some of these rows fitted" in note for note in result.notes)
    fresh = evaluate(head.with_fitted_on([1]), (features, labels), metrics="auroc")
    assert fresh.in_sample is False
    assert not any("not known whether" in note for note in fresh.notes)


def other(head, seed=1):
    """A head that knows less."""
    rng = np.random.default_rng(seed)
    return head.replace(weight=head.weight + torch.from_numpy(rng.normal(size=(5, 8))).float())


def test_two_heads_are_compared_on_the_same_rows():
    """Before and after are what `evaluate` says, differences those of `compare_logits`."""
    head, features, labels = case(rows=300)
    base = other(head)
    found = compare_heads(base, head, (features, labels), metrics=["auroc", "f1"], thresholds=0.4)
    options = {"metrics": ["auroc", "f1"], "thresholds": 0.4}
    sides = [evaluate(one, (features, labels), **options) for one in (base, head)]
    for name, one in found.comparisons.items():
        np.testing.assert_allclose(one.before, sides[0].values[name], rtol=1e-6)
        np.testing.assert_allclose(one.after, sides[1].values[name], rtol=1e-6)
        assert one.mean_after == pytest.approx(sides[1].means[name]["macro"])
    logits = [one.logits(features) for one in (base, head)]
    expected = compare_logits(*logits, labels, "auroc")
    np.testing.assert_allclose(found.first.low, expected.low)
    assert found.first.mean_low == pytest.approx(expected.mean_low)
    assert found.first.outcome == expected.outcome
    shifted = compare_logits(*(one.double() - 0.4 for one in logits), labels, "f1")
    np.testing.assert_allclose(found.comparisons["f1"].high, shifted.high)


def test_heads_of_other_row_orders_are_compared_by_name(monkeypatch):
    """Rows of both heads are found by name, block by block, and thresholds by name too."""
    head, features, labels = case(rows=300)
    base = other(head)
    turned = base.take_categories(NAMES[::-1])
    options = {"thresholds": dict(zip(NAMES, [0.1, 0.2, 0.3, 0.4, 0.5], strict=True))}
    given = {"metrics": ["f1", "average_precision"], "prevalence": [0.1, 0.2, 0.3, 0.4, 0.5]}
    plain = compare_heads(base, head, (features, labels), **options, **given)
    monkeypatch.setattr(import_module("catwise.metrics.evaluating"), "_ENTRIES", 700)
    found = compare_heads(turned, head, (features, labels), **options, **given)
    for name in plain.comparisons:
        one, same = found.comparisons[name], plain.comparisons[name]
        np.testing.assert_allclose(one.difference, same.difference, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(one.high, same.high, rtol=1e-6, atol=1e-9)


def test_rows_that_fitted_either_head_are_said():
    """The sentence and the document say of which head, and how many."""
    ids = [f"i{i}" for i in range(120)]
    head, features, labels = case(ids=ids)
    fitted = head.with_fitted_on(source_digests(features, labels)[:7])
    named = r"7 of 120 rows fitted or selected the head after \('i0', 'i1', 'i2' and 4 more\)"
    with pytest.warns(InSampleWarning, match=named):
        found = compare_heads(other(head), fitted, (features, labels))
    assert found.n_in_sample == (None, 7)
    assert found.sentence().startswith(
        "In sample, so no verdict: 7 of these rows fitted or selected the head after. On 120 rows "
    )
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert found.verdict == told["verdict"] == "in_sample"
    assert told["in_sample"] is found.in_sample is True
    for one in told["comparisons"]:
        assert one["verdict"] == "in_sample"
        assert one["sentence"].startswith("In sample, so no verdict: ")
        assert not {"Helped", "Harmed"} & set(one["sentence"].replace(":", " ").split())
    assert (told["n_in_sample_before"], told["n_in_sample_after"]) == (None, 7)
    assert any("fitted the head before" in note for note in found.notes)
    assert [record["metric"] for record in found.records()] == [
        name for name in ("average_precision", "auroc") for _ in NAMES
    ]
    assert "120 rows" in repr(found)


def test_the_verdict_stands_where_no_row_is_known_to_have_fitted():
    """Out of sample, and where that is not known, which the document says."""
    head, features, labels = case()
    for first, second, in_sample in (
        (other(head), head, None),
        (other(head).with_fitted_on([1]), head, None),
        (other(head).with_fitted_on([1]), head.with_fitted_on([2]), False),
    ):
        found = compare_heads(first, second, (features, labels))
        told = found.to_dict()
        assert told["in_sample"] is in_sample
        assert told["verdict"] == found.first.verdict == "helped"
        assert told["comparisons"][0]["sentence"] == told["sentence"] == found.first.sentence("row")
        assert told["sentence"].startswith("Helped: on 120 rows")


def test_heads_are_compared_on_the_labels_categories_alone():
    """Either head may have more rows; one that lacks a category is refused."""
    head, features, labels = case()
    few = labels.take_categories(NAMES[1:3])
    found = compare_heads(head.take_categories(NAMES[:3]), head, (features, few))
    assert found.first.categories == NAMES[1:3]
    assert found.first.verdict == "no_difference"
    assert set(found.first.reason) == {"unchanged"}
    with pytest.raises(CategoryError, match="the head before lacks 1 of 2"):
        compare_heads(head.take_categories(NAMES[:2]), head, (features, few))
