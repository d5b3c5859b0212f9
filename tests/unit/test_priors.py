"""Labels missing not at random: propensities, weights, and a prevalence under SCAR."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from catwise.errors import CategoryError, ConfigError, FeatureError, LabelError, ShapeError
from catwise.labels import PartialLabels
from catwise.labels.priors import (
    ASSUMPTIONS,
    VERDICTS,
    estimate_prevalence,
    inverse_propensity_weights,
    selection_bias,
)


def labels_of(*counts, categories=None):
    """Categories of (positive, negative, uncertain) labels among 1,000 rows."""
    codes = np.full((1000, len(counts)), -1)
    for j, (positive, negative, uncertain) in enumerate(counts):
        codes[:positive, j] = 1
        codes[positive : positive + negative, j] = 0
        codes[positive + negative : positive + negative + uncertain, j] = -2
    return PartialLabels(codes, categories=categories)


def simulated(rows=50_000, *, prevalence, of_positive, of_negative, seed=0):
    """True labels of which positives and negatives became known by these chances; and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, len(prevalence))) < prevalence
    known = rng.random(truth.shape) < np.where(truth, of_positive, of_negative)
    return PartialLabels(np.where(known, truth, -1)), truth


def test_shares_and_propensities():
    """Bayes' theorem by hand; uncertain labels count as unknown; the result is JSON-ready."""
    labels = labels_of((150, 50, 30), (0, 0, 5), categories=["cat", "dog"])
    cat, dog = selection_bias(labels, {"cat": 0.3})
    assert json.loads(json.dumps([cat, dog])) == [cat, dog]
    assert cat == {
        "category": "cat",
        "index": 0,
        "known": 200,
        "positive": 150,
        "negative": 50,
        "share_known": 0.2,
        "share_positive": 0.75,
        "prevalence": 0.3,
        "known_given_positive": 0.5,
        "known_given_negative": pytest.approx(50 / 700),
        "ratio": pytest.approx(7.0),
        "verdict": "positives_favoured",
        "explanation": VERDICTS["positives_favoured"],
    }
    assert (dog["known"], dog["share_positive"], dog["prevalence"]) == (0, None, None)
    assert (dog["known_given_positive"], dog["ratio"]) == (None, None)
    assert dog["verdict"] == "no_known_label"


@pytest.mark.parametrize(
    ("counts", "prevalence", "verdict"),
    [
        ((0, 0, 0), 0.3, "no_known_label"),
        ((10, 10, 0), None, "not_identified"),
        ((60, 140, 0), 0.3, "as_at_random"),
        ((72, 128, 0), 0.3, "as_at_random"),
        ((74, 126, 0), 0.3, "positives_favoured"),
        ((47, 153, 0), 0.3, "negatives_favoured"),
        ((300, 0, 0), 0.3, "positives_favoured"),
        ((0, 300, 0), 0.3, "negatives_favoured"),
        ((350, 10, 0), 0.3, "impossible"),
        ((10, 750, 0), 0.3, "impossible"),
        ((300, 700, 0), 0.3, "as_at_random"),
    ],
)
def test_verdicts(counts, prevalence, verdict):
    """Each verdict, just within and just beyond what chance explains."""
    row = selection_bias(labels_of(counts), prevalence)[0]
    assert row["verdict"] == verdict
    assert row["explanation"] == VERDICTS[verdict]


def test_no_negative_known_gives_no_ratio():
    """Where no negative is known its propensity is 0 and the ratio is not there."""
    row = selection_bias(labels_of((30, 0, 0)), 0.3)[0]
    assert (row["known_given_negative"], row["ratio"]) == (0.0, None)


def test_a_simulated_bias_is_found():
    """With the true prevalence the true propensities come out, and random ones are told."""
    chances = {
        "prevalence": np.array([0.1, 0.3, 0.5]),
        "of_positive": np.array([0.8, 0.2, 0.4]),
        "of_negative": np.array([0.1, 0.2, 0.6]),
    }
    labels, _ = simulated(**chances)
    rows = selection_bias(labels, chances["prevalence"])
    for name, key in (
        ("of_positive", "known_given_positive"),
        ("of_negative", "known_given_negative"),
    ):
        np.testing.assert_allclose([row[key] for row in rows], chances[name], rtol=0.04)
    verdicts = [row["verdict"] for row in rows]
    assert verdicts == ["positives_favoured", "as_at_random", "negatives_favoured"]


def test_chance_alone_is_told_as_a_bias_once_in_twenty():
    """The verdict's level is that of its description."""
    labels, _ = simulated(
        2000, prevalence=np.full(1000, 0.3), of_positive=0.2, of_negative=0.2, seed=1
    )
    verdicts = [row["verdict"] for row in selection_bias(labels, 0.3)]
    assert 0.03 < 1 - verdicts.count("as_at_random") / 1000 < 0.07


@pytest.mark.parametrize("storage", ["dense", "columns"])
def test_weighted_labels_have_the_prevalence(storage):
    """Weighted counts have the prevalence; means and sums are as described."""
    labels = labels_of((150, 50, 30), (20, 80, 0)).with_storage(storage)
    counts, pi = labels.counts(), np.array([0.3, 0.6])
    for stabilised, total in ((True, counts.known), (False, 1000)):
        positive, negative = inverse_propensity_weights(labels, pi, stabilised=stabilised)
        mass = positive * counts.positive, negative * counts.negative
        np.testing.assert_allclose(mass[0] / (mass[0] + mass[1]), pi)
        np.testing.assert_allclose(mass[0] + mass[1], np.broadcast_to(total, 2))
    rows = selection_bias(labels, pi)
    np.testing.assert_allclose(positive, [1 / row["known_given_positive"] for row in rows])
    np.testing.assert_allclose(negative, [1 / row["known_given_negative"] for row in rows])


def test_weights_undo_a_simulated_bias():
    """The weighted mean over known labels is the mean over all: here of a column of features."""
    rng = np.random.default_rng(2)
    labels, truth = simulated(prevalence=np.array([0.2]), of_positive=0.9, of_negative=0.05)
    feature = 2.0 * truth[:, 0] + rng.normal(size=len(truth))
    rows, is_positive = labels.known(0)
    positive, negative = inverse_propensity_weights(labels, 0.2)
    weight = np.where(is_positive, positive[0], negative[0])
    weighted = np.average(feature[rows], weights=weight)
    assert abs(weighted - feature.mean()) < 0.03
    assert abs(feature[rows].mean() - feature.mean()) > 0.5


def test_classes_without_a_known_label():
    """They are refused by name, or given NaN or 1 where asked for."""
    labels = labels_of((10, 0, 0), (10, 10, 0), (0, 10, 0), categories=["ant", "bee", "cat"])
    with pytest.raises(LabelError, match="'ant', 'cat'"):
        inverse_propensity_weights(labels, 0.5)
    for missing, value in (("nan", np.nan), ("one", 1.0)):
        for weight in inverse_propensity_weights(labels, 0.5, missing=missing):
            np.testing.assert_allclose(weight, [value, 1.0, value])
    with pytest.raises(ConfigError, match="missing cannot be 'drop'"):
        inverse_propensity_weights(labels, 0.5, missing="drop")  # type: ignore[arg-type]


def test_ways_to_give_a_prevalence():
    """One number, an array, a tensor, a list, and a mapping are the same."""
    labels = labels_of((30, 60, 0), (20, 80, 0), categories=["cat", "dog"])
    plain = selection_bias(labels, 0.25)
    many = (np.full(2, 0.25), torch.full((2,), 0.25), [0.25, 0.25], {"dog": 0.25, "cat": 0.25})
    for given_ in (*many, np.float32(0.25), np.array(0.25)):
        assert selection_bias(labels, given_) == plain
    half = selection_bias(labels, [0.25, None])
    assert half == selection_bias(labels, {"cat": 0.25}) == selection_bias(labels, [0.25, np.nan])
    assert half[0] == plain[0]
    assert half[1]["verdict"] == "not_identified"


@pytest.mark.parametrize(
    ("prevalence", "error", "message"),
    [
        (0.0, ConfigError, "inside"),
        (1.0, ConfigError, "'cat': 1"),
        ([0.5, 1.5], ConfigError, "'dog': 1.5"),
        ("many", ConfigError, "inside"),
        ([0.5, "x"], ConfigError, "inside"),
        ([[0.5], [0.5]], ConfigError, "inside"),
        ([[0.5], [0.5, 0.5]], ConfigError, "inside"),
        ({0.4, 0.5}, ConfigError, "inside"),
        ("0.5", ConfigError, "inside"),
        ([0.5], ShapeError, "1 shares"),
        ({"cats": 0.5, "dog": 0.5}, CategoryError, "did you mean 'cat'"),
        ({1: 0.5}, CategoryError, "'1'"),
    ],
)
def test_prevalences_that_cannot_be_used(prevalence, error, message):
    """Each wrong prevalence has an error that names the category."""
    labels = labels_of((30, 60, 0), (20, 80, 0), categories=["cat", "dog"])
    with pytest.raises(error, match=message):
        selection_bias(labels, prevalence)
    with pytest.raises(error, match=message):
        inverse_propensity_weights(labels, prevalence)


def test_weights_need_every_prevalence():
    """What is not given is named; nothing is filled in."""
    labels = labels_of((30, 60, 0), (20, 80, 0), categories=["cat", "dog"])
    for prevalence in ({"cat": 0.5}, [0.5, None], [0.5, np.nan]):
        with pytest.raises(CategoryError, match="nothing for 'dog'"):
            inverse_propensity_weights(labels, prevalence)


def scar(prevalence, frequency, distance, *, rows=40_000, seed=0):
    """Normal scores of both classes and known positives by chance: scores, labels, P(known | x)."""
    rng = np.random.default_rng(seed)
    truth = rng.random(rows) < prevalence
    known = truth & (rng.random(rows) < frequency)
    score = rng.normal(size=rows) + distance * truth
    logit = distance * score - distance**2 / 2 + np.log(prevalence / (1 - prevalence))
    chance = frequency / (1 + np.exp(-logit))
    return score[:, None], PartialLabels(np.where(known, 1, -1)[:, None]), chance[:, None]


@pytest.mark.parametrize("prevalence", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("frequency", [0.1, 0.5, 1.0])
def test_a_simulated_prevalence_is_found(prevalence, frequency):
    """Where the highest scores are positive, "top" finds the truth; the naive share does not."""
    scores, labels, _ = scar(prevalence, frequency, 3.0)
    found = estimate_prevalence(scores, labels, assumption="scar")
    assert found.prevalence[0] == pytest.approx(prevalence, rel=0.15)
    assert found.label_frequency[0] == pytest.approx(frequency, rel=0.15)
    assert found.lowest[0] == pytest.approx(prevalence * frequency, rel=0.1)
    assert found.highest[0] == 1.0
    assert found.assumption == "scar"


def test_the_mean_estimator():
    """Elkan and Noto's first estimator: exact for separate classes, too high where they overlap."""
    for distance, ratio in ((8.0, 1.0), (2.0, 1.5)):
        _, labels, chance = scar(0.3, 0.4, distance)
        found = estimate_prevalence(chance, labels, assumption="scar", estimator="mean")
        assert found.prevalence[0] / 0.3 == pytest.approx(ratio, rel=0.05)
    expected = np.mean(chance[labels.known(0)[0], 0])
    assert found.label_frequency[0] == pytest.approx(expected)


def test_overlapping_classes_come_out_too_high():
    """What the description says of "top": its error is on one side where classes overlap."""
    scores, labels, _ = scar(0.05, 0.3, 1.0)
    found = estimate_prevalence(scores, labels, assumption="scar")
    assert found.prevalence[0] > 0.06


def test_only_ranks_matter():
    """Logits, probabilities, tensors, half precision and float32 give the same."""
    scores, labels, _ = scar(0.3, 0.5, 3.0, rows=3000)
    scores = scores.astype(np.float16).astype(np.float64)
    plain = estimate_prevalence(scores, labels, assumption="scar")
    for same in (
        1 / (1 + np.exp(-scores)),
        torch.from_numpy(scores).requires_grad_(),
        torch.from_numpy(scores).half(),
        scores.astype(np.float32),
    ):
        found = estimate_prevalence(same, labels, assumption="scar")
        np.testing.assert_array_equal(found.prevalence, plain.prevalence)
    turned = labels.take_rows(slice(None, None, -1))
    found = estimate_prevalence(scores[::-1], turned, assumption="scar")
    np.testing.assert_array_equal(found.prevalence, plain.prevalence)
    rough = torch.from_numpy(scores).bfloat16()
    assert np.isfinite(estimate_prevalence(rough, labels, assumption="scar").prevalence).all()


def test_tied_scores_are_one_threshold():
    """Where all scores are tied nothing can be told but the share among all rows."""
    first = labels_of((100, 0, 0))
    for labels in (first, first.take_rows(slice(None, None, -1))):
        found = estimate_prevalence(np.zeros((1000, 1)), labels, assumption="scar")
        assert (found.label_frequency[0], found.prevalence[0]) == (0.1, 1.0)


def test_a_lucky_few_at_the_top_do_not_count():
    """Under ten known positives at the top do not tell the label frequency."""
    codes = np.full((2000, 1), -1)
    codes[:9] = 1
    codes[15:1000:10] = 1
    found = estimate_prevalence(
        -np.arange(2000.0)[:, None], PartialLabels(codes), assumption="scar"
    )
    assert found.label_frequency[0] < 0.7
    codes[9] = 1
    found = estimate_prevalence(
        -np.arange(2000.0)[:, None], PartialLabels(codes), assumption="scar"
    )
    assert found.label_frequency[0] == 1.0


def test_known_negatives_bound_the_estimate():
    """The estimate is never beyond what known labels allow; too few positives give NaN."""
    codes = np.zeros((100, 3), dtype=np.int8)
    codes[:20] = 1
    codes[9:, 1] = 0
    codes[:, 2] = -1
    scores = np.tile(-np.arange(100.0)[::-1, None], 3)
    found = estimate_prevalence(scores, PartialLabels(codes), assumption="scar")
    np.testing.assert_allclose(found.lowest, [0.2, 0.09, 0.0])
    np.testing.assert_allclose(found.highest, [0.2, 0.09, 1.0])
    np.testing.assert_allclose(found.prevalence, [0.2, np.nan, np.nan])
    with np.errstate(all="raise"):
        mean = estimate_prevalence(
            np.full((100, 3), 0.5), PartialLabels(codes), assumption="scar", estimator="mean"
        )
    np.testing.assert_allclose(mean.prevalence, [0.2, 0.09, np.nan])
    np.testing.assert_allclose(mean.label_frequency, [0.5, 0.5, np.nan])


def test_the_assumption_is_named():
    """Without a named assumption nothing is estimated, and the error says why and what there is."""
    labels, scores = labels_of((30, 60, 0)), np.zeros((1000, 1))
    with pytest.raises(ConfigError, match="not identified without an assumption") as caught:
        estimate_prevalence(scores, labels)
    assert "assumption='scar'" in str(caught.value.expected)
    assert ASSUMPTIONS["scar"] in str(caught.value.expected)
    with pytest.raises(ConfigError, match="did you mean 'scar'"):
        estimate_prevalence(scores, labels, assumption="scars")
    with pytest.raises(ConfigError, match="estimator cannot be 'max'"):
        estimate_prevalence(scores, labels, assumption="scar", estimator="max")  # type: ignore[arg-type]


def test_scores_that_cannot_be_used():
    """Another shape, NaN, texts, and values that are no probabilities where these are needed."""
    labels = labels_of((30, 60, 0), (20, 0, 0), categories=["cat", "dog"])
    scores = np.zeros((1000, 2))
    for wrong in (scores.T, scores[:-1], scores.astype(str)):
        with pytest.raises(ShapeError, match="do not fit"):
            estimate_prevalence(wrong, labels, assumption="scar")
    scores[7, 1] = np.nan
    with pytest.raises(FeatureError, match="nan in row 7, category 'dog'"):
        estimate_prevalence(scores, labels, assumption="scar")
    for value in (-0.1, 1.1, np.nan):
        scores[7, 1] = value
        with pytest.raises(FeatureError, match="row 7, category 'dog'"):
            estimate_prevalence(scores, labels, assumption="scar", estimator="mean")


@given(
    codes=arrays.arrays(
        np.int8,
        st.tuples(st.integers(1, 30), st.integers(1, 3)),
        elements=st.sampled_from([-2, -1, 0, 1]),
    ),
    prevalence=st.floats(0.01, 0.99),
)
def test_any_labels(codes, prevalence):
    """Bayes' theorem holds: propensities times classes are what is known; weights undo them."""
    labels = PartialLabels(codes)
    positive, negative = inverse_propensity_weights(
        labels, prevalence, stabilised=False, missing="nan"
    )
    for j, row in enumerate(selection_bias(labels, prevalence)):
        of_positive, of_negative = row["known_given_positive"], row["known_given_negative"]
        total = of_positive * prevalence + of_negative * (1 - prevalence)
        assert total == pytest.approx(row["share_known"])
        assert row["verdict"] in VERDICTS
        if row["positive"] and row["negative"]:
            assert positive[j] * of_positive == pytest.approx(1)
            assert negative[j] * of_negative == pytest.approx(1)
        else:
            assert np.isnan(positive[j])
            assert np.isnan(negative[j])
