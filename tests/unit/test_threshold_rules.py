"""Thresholds by rule: what they choose, promise and refuse."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

import catwise
from catwise import PartialLabels, Thresholds, calibrate, threshold
from catwise._names import THRESHOLD_RULES
from catwise.decisions.rules import (
    RULES,
    best_expected_f,
    least_precision,
    needed_positives,
    order_statistic,
    share_of_rows,
)
from catwise.errors import CategoryError, ConfigError


def problem(n: int = 800, c: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, c)) * 1.5 - 1.5
    codes = (rng.random((n, c)) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    return 2 * truth + 1, PartialLabels(codes, categories=[f"c{i}" for i in range(c)])


@pytest.mark.parametrize("least", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("confidence", [0.9, 0.6])
def test_order_statistic_is_the_brute_force_one(least: float, confidence: float) -> None:
    """The highest score that keeps `least` with the confidence, by the beta law of each rank."""
    rng = np.random.default_rng(0)
    for k in (1, 5, 11, 22, 45, 60, 200):
        scores = rng.normal(size=k)
        ranked = np.sort(scores)
        good = [r for r in range(1, k + 1) if beta.sf(least, k - r + 1, r) >= confidence - 1e-12]
        found, rank = order_statistic(scores, least, confidence, above=True)
        assert rank == max(good, default=0)
        if good:
            assert found.threshold == ranked[max(good) - 1]
        else:
            assert found.threshold is None
            assert found.needed == needed_positives(least, confidence)
            assert found.needed is not None
            assert found.needed > k
            assert beta.sf(least, found.needed, 1) >= confidence - 1e-12
            assert beta.sf(least, found.needed - 1, 1) < confidence


def test_specificity_is_sensitivity_of_the_negatives() -> None:
    """The same rank from the top, and a negative just at it is not called."""
    scores = np.random.default_rng(0).normal(size=100).astype(np.float32).astype(np.float64)
    above, rank = order_statistic(-scores, 0.9, 0.9, above=True)
    below, same = order_statistic(scores, 0.9, 0.9, above=False)
    assert rank == same
    assert below.threshold is not None
    assert above.threshold is not None
    assert (scores < below.threshold).sum() == (-scores >= above.threshold).sum()


@pytest.mark.parametrize(("least", "k"), [(0.8, 30), (0.95, 60), (0.5, 8)])
def test_the_guarantee_holds(least: float, k: int) -> None:
    """Over 4,000 draws of k positives: at least 90% keep the sensitivity, within 3 errors."""
    rng = np.random.default_rng(1)
    reached = []
    for scores in rng.exponential(size=(4000, k)):
        found, _ = order_statistic(scores, least, 0.9, above=True)
        reached.append(np.exp(-max(found.threshold or 0.0, 0.0)))  # of new rows of the same law
    share = np.mean(np.array(reached) >= least)
    assert share >= 0.9 - 3 * np.sqrt(0.09 / 4000)


@pytest.mark.parametrize(("least", "k"), [(0.8, 9), (0.95, 40)])
def test_the_expectation_holds(least: float, k: int) -> None:
    """Without a confidence the mean sensitivity of new rows is 1 − r / (k + 1), at least that."""
    rng = np.random.default_rng(2)
    reached, rank = [], 0
    for scores in rng.random((4000, k)):
        found, rank = order_statistic(scores, least, None, above=True)
        reached.append(1.0 - (found.threshold or 0.0))
    error = 3 * np.std(reached) / np.sqrt(4000)
    assert np.mean(reached) == pytest.approx(1 - rank / (k + 1), abs=error)
    assert 1 - rank / (k + 1) >= least - 1e-9


def plain_precision(scores, positive, least, confidence):
    """Cut-offs from the top, one after the other, as the rule is told in words."""
    best, started = None, False
    for cut in sorted(set(scores), reverse=True):
        called = scores >= cut
        n, hits = int(called.sum()), int(positive[called].sum())
        if not started and binom.sf(n - 3, n, least) > 1 - confidence + 1e-12:
            continue  # with two negatives it could not pass
        started = True
        if binom.sf(hits - 1, n, least) > 1 - confidence + 1e-12:
            break
        best = cut
    return best


def test_least_precision_is_the_plain_loop() -> None:
    """With ties, too."""
    rng = np.random.default_rng(0)
    n_found = 0
    for _ in range(60):
        scores = np.round(rng.normal(size=150), 1)
        positive = rng.random(150) < 1 / (1 + np.exp(-4 * scores))
        for least in (0.5, 0.8):
            found = least_precision(scores, positive, least, 0.9).threshold
            assert found == plain_precision(scores, positive, least, 0.9)
            n_found += found is not None
    assert n_found > 20


def test_least_precision_fails_seldom() -> None:
    """Where every row has a precision just below, at most 10% of 2,000 draws find a threshold."""
    rng = np.random.default_rng(3)
    found = [
        least_precision(rng.random(200), rng.random(200) < 0.79, 0.8, 0.9).threshold is not None
        for _ in range(2000)
    ]
    assert np.mean(found) <= 0.1 + 3 * np.sqrt(0.09 / 2000)
    assert np.mean(found) > 0.0


def test_best_expected_f_is_the_mean_over_labels() -> None:
    """Of all cut-offs the best ratio of expected counts."""
    p = np.random.default_rng(0).random(30)
    for b in (0.5, 1.0, 2.0):
        best = max(
            (1 + b**2) * p[p >= cut].sum() / ((p >= cut).sum() + b**2 * p.sum()) for cut in p
        )
        assert best_expected_f(p, b) == pytest.approx(best)
        called = p >= best_expected_f(p, b) / (1 + b**2)
        reached = (1 + b**2) * p[called].sum() / (called.sum() + b**2 * p.sum())
        assert reached == pytest.approx(best)  # so the cut-off reaches it


def test_f1_is_half_of_the_best_expected_one() -> None:
    """The threshold has that calibrated probability; what is expected is the F1 itself."""
    logits, labels = problem()
    found, maps = threshold(logits, labels), calibrate(logits, labels)
    for c, one in enumerate(found.categories):
        p = maps.probabilities(logits)[:, c].numpy()
        assert one.expected == pytest.approx(best_expected_f(p, 1.0))
        assert one.probability == pytest.approx(best_expected_f(p, 1.0) / 2)
    same = threshold(logits, labels, "f_beta", value=1.0)
    np.testing.assert_allclose(same.values(), found.values())


def test_cost_and_youden() -> None:
    """Costs of 9 to 1 call from a probability of 0.1; Youden from the share of positives."""
    logits, labels = problem()
    cost = threshold(logits, labels, "cost", value=9.0)
    assert [one.probability for one in cost.categories] == pytest.approx([0.1] * 3)
    maps = calibrate(logits, labels)
    for c, one in enumerate(threshold(logits, labels, "youden").categories):
        mean = float(maps.probabilities(logits)[:, c].mean())
        assert one.probability == pytest.approx(mean)
        assert one.expected is not None
        assert 0.2 < one.expected < 0.8


def test_shares_of_rows() -> None:
    """An alert rate calls that share of new rows or fewer; the prevalence as many as there are."""
    scores = np.random.default_rng(0).random(99)
    assert share_of_rows(scores, 0.1).threshold == np.sort(scores)[-10]
    assert share_of_rows(scores, 0.005) == (None, 199)
    logits, labels = problem()
    found = threshold(logits, labels, "prevalence")
    share = (labels.codes == 1).mean(axis=0)
    np.testing.assert_allclose((found.decide(logits) == 1).double().mean(0), share, atol=0.003)
    stated = threshold(logits, labels, "prevalence", prevalence=0.05)
    called = (stated.decide(logits) == 1).double().mean(0)
    np.testing.assert_allclose(called, 0.05, atol=0.002)


def test_too_few_known_positives_are_told() -> None:
    """None, how many are needed and are known; other categories have their threshold."""
    logits, labels = problem()
    codes = labels.codes.copy()
    codes[np.flatnonzero(codes[:, 1] == 1)[13:], 1] = -1
    found = threshold(
        logits, PartialLabels(codes, categories=labels.categories), "sensitivity", value=0.95
    )
    one = found.categories[1]
    assert (one.threshold, one.needed, one.reason) == (None, 45, "too_few_known")
    assert one.explanation == "95% sensitivity needs 45 known positives; 13 are known."
    assert found.categories[0].threshold is not None
    assert bool((found.decide(logits)[:, 1] == -1).all())
    assert np.isnan(found.op_threshs()[1])
    assert found.to_transformers()["decision_thresholds"]["c1"] is None


def test_precision_by_hand() -> None:
    """Guaranteed from the top; aimed at by calibrated probabilities without a confidence."""
    logits, labels = problem(3000)
    sure = threshold(logits, labels, "precision", value=0.5).values()
    aimed = threshold(logits, labels, "precision", value=0.5, confidence=None).values()
    found = np.isfinite(sure)
    assert found.sum() >= 2
    assert bool((sure[found] >= aimed[found]).all())
    other, test = problem(3000, seed=1)
    reached = threshold(logits, labels, "precision", value=0.5, test=(other, test))
    for one in reached.categories:
        assert (one.reached is not None) == (one.threshold is not None)
        if one.reached is not None:
            assert one.reached.precision.value is not None
            assert one.reached.precision.value >= 0.45
    never = threshold(logits, labels, "precision", value=0.999)
    assert {one.reason for one in never.categories} <= {"too_few_known", "not_shown"}
    with pytest.raises(ConfigError, match="like the labelled ones"):
        threshold(logits, labels, "precision", value=0.5, prevalence=0.1)


def test_what_is_reached_is_of_test_rows() -> None:
    """Rates as the metrics have them, with intervals around; alerts of all rows."""
    logits, labels = problem()
    other, test = problem(seed=1)
    found = threshold(logits, labels, test=(other, test))
    recall = catwise.metrics.recall(other, test, threshold=found.values()).numpy()
    precision = catwise.metrics.precision(other, test, threshold=found.values()).numpy()
    f1 = catwise.metrics.f1(other, test, threshold=found.values()).numpy()
    for c, one in enumerate(found.categories):
        assert one.reached is not None
        called = other[:, c] >= found.values()[c]
        negative = test.codes[:, c] == 0
        values = {
            "sensitivity": recall[c],
            "precision": precision[c],
            "f1": f1[c],
            "specificity": (~called[negative]).mean(),
        }
        for name, value in values.items():
            rate = getattr(one.reached, name)
            assert rate.value == pytest.approx(value)
            assert rate.low < value < rate.high
        assert one.reached.alerts_per_1000 == pytest.approx(1000 * called.mean())


def test_cutoffs_are_of_test_rows() -> None:
    """At a cut-off the rates that the metrics give there; without test rows there are none."""
    logits, labels = problem()
    other, test = problem(seed=1)
    found = threshold(logits, labels, test=(other, test))
    table = found.cutoffs("c1")
    assert len(table) == len(np.unique(other[:, 1]))
    row = table[100]
    assert row["n_called"] == (other[:, 1] >= row["threshold"]).sum()
    f1 = catwise.metrics.f1(other, test, threshold=row["threshold"])[1]
    assert row["f1"] == pytest.approx(float(f1))
    with pytest.raises(CategoryError, match="did you mean 'c1'"):
        found.cutoffs("c11")
    with pytest.raises(ConfigError, match="without test rows"):
        threshold(logits, labels).cutoffs("c1")


def test_folds_show_the_spread() -> None:
    """The thresholds of a tuning lie about those that each fold leaves."""
    rng = np.random.default_rng(0)
    logits, labels = problem()
    folds = catwise.tuning.FoldArtifacts(
        rng.integers(0, 5, 800).astype(np.int8),
        logits.astype(np.float32),
        np.zeros((5, 3, 2), np.float32),
        None,
        labels.categories,
    )
    for rule, value in (("f1", None), ("sensitivity", 0.8)):
        for one in threshold(folds, labels, rule, value=value).categories:
            assert one.fold_low is not None
            assert one.fold_high is not None
            assert one.fold_low < one.fold_high
            assert one.threshold is not None
            assert one.fold_low - 0.5 < one.threshold < one.fold_high + 0.5
    assert threshold(logits, labels).categories[0].fold_low is None


def test_by_knots_and_by_given_calibration() -> None:
    """The threshold of a map by knots has the probability that was asked for."""
    logits, labels = problem(9000, c=1)
    maps = calibrate(logits, labels, method="isotonic")
    found = threshold(logits, labels, "cost", value=3.0, calibration=maps)
    one = found.categories[0]
    assert one.threshold is not None
    assert float(maps.probabilities([[one.threshold]])[0, 0]) == pytest.approx(0.25, abs=1e-6)
    with pytest.raises(CategoryError, match="other categories"):
        threshold(*problem(c=2), calibration=maps)
    with pytest.raises(ConfigError, match="prevalence already"):
        threshold(logits, labels, calibration=maps, prevalence=0.1)


def test_forms_for_other_packages() -> None:
    """Probabilities: of calibrated outputs, or of the logits as they were."""
    logits, labels = problem()
    found = threshold(logits, labels)
    calibrated = [one.probability for one in found.categories]
    assert found.op_threshs() == calibrated
    plain = torch.sigmoid(torch.from_numpy(found.values())).tolist()
    assert found.op_threshs(calibrated=False) == pytest.approx(plain)
    config = found.to_transformers()
    assert config["problem_type"] == "multi_label_classification"
    assert config["decision_thresholds"] == dict(zip(found.names, calibrated, strict=True))


def test_it_is_saved_and_read(tmp_path) -> None:
    """Thresholds come back equal; what is reached is in the files."""
    logits, labels = problem()
    found = threshold(logits, labels, "sensitivity", value=0.9, test=problem(seed=1))
    found.save(tmp_path / "t.json")
    again = Thresholds.load(tmp_path / "t.json")
    np.testing.assert_array_equal(again.values(), found.values())
    assert [one.explanation for one in again.categories] == [
        one.explanation for one in found.categories
    ]
    document = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert document["categories"][0]["sensitivity"] > 0.5
    found.write_csv(tmp_path / "t.csv")
    found.write_cutoffs(tmp_path / "cutoffs.csv")
    with (tmp_path / "cutoffs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["category"] for row in rows} == {"c0", "c1", "c2"}
    (tmp_path / "t.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot read thresholds"):
        Thresholds.load(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("sensitivity", {}, "needs a value"),
        ("f1", {"value": 2.0}, "takes no value"),
        ("sensitivity", {"value": 1.0}, "out of range"),
        ("f_beta", {"value": 0.0}, "out of range"),
        ("sensitivity", {"value": 0.9, "confidence": 1.5}, "out of range"),
        ("sensitvity", {"value": 0.9}, "did you mean 'sensitivity'"),
        ("sensitivity", {"value": {"c0": 0.9}}, "has no number"),
    ],
)
def test_bad_options_are_named(rule: str, options: dict[str, object], message: str) -> None:
    """Before anything is chosen."""
    with pytest.raises(ConfigError, match=message):
        threshold(*problem(), rule, **options)


def test_names_are_those_of_the_command_line() -> None:
    """In this order."""
    assert tuple(RULES) == THRESHOLD_RULES


def test_groups_are_told_of() -> None:
    """A guarantee over rows says less where rows come in groups."""
    logits, labels = problem()
    grouped = PartialLabels(labels.codes, groups=[f"p{i // 2}" for i in range(800)])
    found = threshold(logits, grouped, "sensitivity", value=0.8)
    assert any("group" in note for note in found.notes)
