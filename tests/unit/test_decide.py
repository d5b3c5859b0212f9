"""Decisions: pooled and shrunk gains, keep or replace, and the correction for the choosing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from catwise.tuning.choice.nested import FoldScores, nested_choice, nested_keep
from catwise.tuning.choice.rules import (
    MIN_POSITIVES,
    choose_each,
    choose_greedy,
    clearly_worse,
    keep_or_take,
    pooled_gain,
    shrunk,
)

NAN = float("nan")


def corrected(scores, decision):
    """(C,) gains of the choice: each fold's by the choice made without it."""
    folds, index = range(len(scores.positives)), np.arange(scores.positives.shape[1])
    after = np.stack([scores.values[decision.chosen_without[f], f, index] for f in folds])
    return FoldScores(after[None], scores.positives).mean()[0] - scores.mean()[0]


def raw(scores, decision):
    """(C,) gains of the chosen, on the scores that chose it."""
    mean = scores.mean()
    return mean[decision.chosen, np.arange(mean.shape[1])] - mean[0]


def noise(seed, *, candidates=12, folds=5, categories=40, size=0.05, positives=8):
    """Candidates that differ from the base by noise of each fold alone."""
    rng = np.random.default_rng(seed)
    values = 0.5 + size * rng.normal(size=(candidates + 1, folds, categories))
    return FoldScores(values, np.full((folds, categories), float(positives)))


def test_fold_means_are_weighted_by_positives():
    """A fold counts by its positives; one without a score does not count."""
    scores = FoldScores(np.array([[[0.2], [0.8], [NAN]]]), np.array([[1.0], [3.0], [0.0]]))
    assert scores.mean()[0, 0] == pytest.approx(0.65)
    assert scores.mean(without=1)[0, 0] == pytest.approx(0.2)


def test_a_category_without_any_score_is_nan():
    """Nothing is made up where no fold has both classes."""
    scores = FoldScores(np.full((2, 3, 1), NAN), np.zeros((3, 1)))
    assert np.isnan(scores.mean()).all()
    decision = nested_keep(scores, 1, [1, 1, 1])
    assert decision.chosen.tolist() == [0]
    assert np.isnan(corrected(scores, decision)).all()


def test_pooled_gain_leaves_unknown_gains_out():
    """Categories weigh n / (n + 100); NaN weighs nothing."""
    gain = np.array([[0.1, 0.4, NAN]])
    expected = (0.1 * 0.5 + 0.4 * 0.75) / 1.25
    assert pooled_gain(gain, np.array([100.0, 300.0, 50.0]))[0] == pytest.approx(expected)
    assert pooled_gain(np.array([[NAN]]), np.array([10.0])).tolist() == [0.0]


def test_few_positives_shrink_to_the_pooled_mean():
    """Below five positives nothing of a category's own gain is left."""
    gain = np.array([[0.2, -0.5, -0.5, NAN]])
    positives = np.array([1000.0, MIN_POSITIVES - 1.0, 900.0, 400.0])
    mean = pooled_gain(gain, positives)[0]
    pulled = shrunk(gain, positives, 100.0)[0]
    assert pulled[1] == pulled[3] == mean
    assert pulled[2] == pytest.approx(mean + 0.9 * (-0.5 - mean))


def test_under_five_positives_the_pooled_decision_applies():
    """A rare category follows the others, in both directions."""
    positives = np.array([200.0, 200.0, 200.0, 4.0])
    base = np.full(4, 0.5)
    up = np.stack([base, base + np.array([0.1, 0.1, 0.1, -0.4])])
    assert keep_or_take(up - up[0], positives, 1).tolist() == [1, 1, 1, 1]
    assert choose_each(up, positives)[0].tolist() == [1, 1, 1, 1]
    down = np.stack([base, base - np.array([0.1, 0.1, 0.1, -0.4])])
    assert keep_or_take(down - down[0], positives, 1).tolist() == [0, 0, 0, 0]
    assert choose_each(down, positives)[0].tolist() == [0, 0, 0, 0]
    own = np.array([200.0, 200.0, 200.0, 2_000.0])
    assert choose_each(up, own)[0].tolist() == [1, 1, 1, 0]


def test_a_rule_names_no_candidate_for_all():
    """Each category has its own: the second value, one for all, is -1 by both rules."""
    scores, positives = np.array([[0.5, 0.6], [0.6, 0.5]]), np.array([40.0, 40.0])
    assert choose_each(scores, positives)[1] == -1
    assert choose_greedy(scores, positives)[1] == -1


def test_gains_are_shrunk_by_a_prior_of_thirty():
    """By default: a loss that a prior of 30 leaves one, and a prior of 31 does not."""
    positives = np.array([500.0, 40.0])

    def pulled(loss, prior):
        return shrunk(np.array([[0.0, 0.0], [0.1, -loss]]), positives, prior)[1, 1]

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if pulled(middle, 30.5) > 0 else (low, middle)
    assert pulled(low, 30.0) < 0 < pulled(low, 31.0)
    scores = np.array([[0.5, 0.5], [0.6, 0.5 - low]])
    assert choose_each(scores, positives)[0].tolist() == [1, 0]
    assert choose_each(scores, positives, prior=31.0)[0].tolist() == [1, 1]


def test_gains_are_over_the_first_candidate():
    """Where candidates are judged by other positives, their level does not count, only the gain."""
    scores = np.array([[0.9, 0.1], [0.89, 0.11]])
    positives = np.array([[200.0, 200.0], [20.0, 2000.0]])
    moved = scores + np.array([0.0, 0.8])
    assert choose_each(scores, positives)[0].tolist() == choose_each(moved, positives)[0].tolist()


def test_one_candidate_for_all_is_kept_or_taken_by_each():
    """A category whose own gain is clearly negative keeps its row; the original is no candidate."""
    positives = np.full(4, 500.0)
    gain = np.array([[0.0] * 4, [0.1, 0.1, 0.1, -0.2], [0.05, 0.05, 0.05, 0.05]])
    assert keep_or_take(gain, positives, 2).tolist() == [2, 2, 2, 2]
    assert keep_or_take(gain, positives, 1).tolist() == [1, 1, 1, 0]
    assert keep_or_take(gain, positives, 0).tolist() == [0, 0, 0, 0]


def test_each_fold_keeps_or_takes_what_was_chosen_without_it():
    """By the other folds' scores; candidates that nobody took need no score."""
    values = np.full((4, 2, 2), NAN)
    values[0] = 0.5
    values[1] = [[0.9, 0.9], [0.1, 0.9]]  # the first category gains in the first fold only
    values[3] = 0.6
    decision = nested_keep(FoldScores(values, np.full((2, 2), 1000.0)), 3, [1, 1])
    assert (decision.chosen.tolist(), decision.setting) == ([3, 3], 3)
    assert decision.chosen_without.tolist() == [[0, 1], [1, 1]]
    assert decision.settings_without == (1, 1)
    assert np.isnan(decision.pooled[2])
    assert decision.pooled[3] == pytest.approx(0.1)


def test_no_positive_no_change():
    """A category without a fresh positive keeps its head, whatever the others do."""
    scores = np.array([[0.5, 0.5, NAN], [0.7, 0.7, NAN]])
    positives = np.array([100.0, 100.0, 0.0])
    assert keep_or_take(scores - scores[0], positives, 1).tolist() == [1, 1, 0]
    assert choose_each(scores, positives)[0].tolist() == [1, 1, 0]


def test_ties_keep_the_first():
    """Equal gains go to the candidate that was named first; no gain keeps the base."""
    positives = np.full(3, 50.0)
    same = np.full((3, 3), 0.5)
    assert keep_or_take(same - same[0], positives, 1).tolist() == [0, 0, 0]
    assert choose_each(same, positives)[0].tolist() == [0, 0, 0]
    same[1:] = 0.6
    assert choose_each(same, positives)[0].tolist() == [1, 1, 1]


def test_a_fold_is_scored_by_the_choice_made_without_it():
    """Fold 0 alone speaks for candidate 1: without it the base is kept there."""
    values = np.zeros((2, 4, 1))
    values[1, 0], values[1, 1:] = 0.9, -0.1
    scores = FoldScores(values, np.full((4, 1), 50.0))
    decision = nested_choice(scores, choose_each)
    assert decision.chosen.tolist() == [1]
    assert decision.chosen_without[:, 0].tolist() == [0, 1, 1, 1]
    assert raw(scores, decision)[0] == pytest.approx(0.15)
    assert corrected(scores, decision)[0] == pytest.approx(-0.075)


def test_the_scores_of_a_fold_do_not_reach_its_own_choice():
    """Whatever happens in a fold, what was chosen without it stays."""
    scores = noise(5)
    first = nested_choice(scores, choose_each)
    changed = scores.values.copy()
    changed[7, 2] += 10.0
    second = nested_choice(FoldScores(changed, scores.positives), choose_each)
    assert np.array_equal(first.chosen_without[2], second.chosen_without[2])
    assert (second.chosen == 7).any()


def test_noise_shows_no_gain_after_the_correction():
    """Of many candidates without merit one looks better, but is not said to be."""
    shown, true = [], []
    for seed in range(40):
        scores = noise(seed)
        decision = nested_choice(scores, choose_each)
        shown.append(raw(scores, decision).mean())
        true.append(corrected(scores, decision).mean())
    error = np.std(true) / np.sqrt(len(true))
    assert np.mean(shown) > 10 * error
    assert abs(np.mean(true)) < 3 * error


def test_a_real_gain_survives_the_correction():
    """What is better in every fold is chosen in every fold."""
    scores = noise(0, size=0.01)
    scores.values[4] += 0.2
    decision = nested_choice(scores, choose_each)
    assert (decision.chosen == 4).all()
    assert (decision.chosen_without == 4).all()
    assert corrected(scores, decision).mean() == pytest.approx(0.2, abs=0.01)


def test_another_score_may_choose():
    """What chooses may be a score on all rows; without a fold, the other folds choose."""
    scores = noise(1, size=0.01)
    scores.values[3] += 0.2
    other = scores.mean()  # such as average precision on all rows, which differs in level
    other[5] += 0.4
    decision = nested_choice(replace(scores, final=other), choose_each)
    assert (decision.chosen == 5).all()
    assert (decision.chosen_without == 3).all()


def test_clearly_worse_is_an_interval_on_the_wrong_side_of_zero():
    """For losses that is the upper side; what has no interval is not judged."""
    low, high = np.array([-0.3, -0.3, 0.1, NAN]), np.array([-0.1, 0.1, 0.3, NAN])
    assert clearly_worse(low, high).tolist() == [True, False, False, False]
    loss = clearly_worse(low, high, higher_is_better=False)
    assert loss.tolist() == [False, False, True, False]


def test_choices_without_nan():
    """A category without a score keeps the original head under every rule."""
    values = np.array([[0.5, np.nan, 0.5], [0.6, np.nan, 0.4]])
    positives = np.array([50.0, 0.0, 50.0])
    assert choose_greedy(values, positives)[0].tolist() == [1, 0, 0]
    assert choose_each(values, positives)[0].tolist() == [1, 0, 0]
