"""What holds for every tuning: seeds, orders, and rows that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import catwise
from catwise import PartialLabels
from catwise.features import Features, row_digests
from catwise.heads.core import head_bytes
from catwise.labels.partition import assign_folds
from catwise.testing import assert_same_head, make_task
from catwise.tuning.choice.nested import FoldScores, nested_choice
from catwise.tuning.choice.rules import choose_each, choose_greedy
from tuning_case import QUICK, SMALL, default_result, task, tuned, with_codes


@pytest.mark.parametrize(
    "options",
    [{}, {"validation": "select"}, {"preset": "paper", "config": QUICK}],
    ids=["default", "select", "paper"],
)
def test_the_same_seed_gives_the_same_bytes(options):
    """Head and records do not change from run to run."""
    one, two = tuned(**options), tuned(**options)
    assert head_bytes(one.head) == head_bytes(two.head)
    assert one.records == two.records
    assert one.history == two.history
    drop = {"seconds"}
    assert {k: v for k, v in one.summary.items() if k not in drop} == {
        k: v for k, v in two.summary.items() if k not in drop
    }


def test_another_seed_draws_other_folds():
    """The seed reaches the folds."""
    assert not np.array_equal(tuned(seed=1).folds.fold, default_result().folds.fold)


@pytest.mark.parametrize(
    "options",
    [{}, {"validation": "select"}, {"preset": "paper", "config": QUICK}],
    ids=["default", "select", "paper"],
)
def test_permuting_categories_permutes_the_result(options):
    """No category gains from its place."""
    made = task()
    order = [2, 4, 0, 3, 1]
    first = tuned(**options)
    head = made.head.take_categories(order)
    pairs = [(s.features, s.labels.take_categories(order)) for s in (made.train, made.valid)]
    second = catwise.tune(head, *pairs, **options)
    scale = float(first.head.weight.abs().max())
    assert_same_head(second.head, first.head.take_categories(order), rtol=1e-4, atol=1e-4 * scale)
    for record, c in zip(second.records, order, strict=True):
        other = first.records[c]
        for key in ("category", "status", "reason", "candidate", "n_positive_train"):
            assert record[key] == other[key]
        if record["after"] is not None:
            assert record["after"] == pytest.approx(other["after"], abs=1e-4)


def test_unknown_rows_change_nothing_but_the_memory():
    """A training row without any known label is not fitted."""
    made = task()
    codes = made.train.labels.codes.copy()
    codes[::3] = -1
    features = np.asarray(made.train.features.values).copy()
    first = catwise.tune(made.head, with_codes(made.train, codes), made.valid.pair)
    features[::3] = 1e3
    moved = Features(features, ids=made.train.features.ids)
    labels = with_codes(made.train, codes)[1]
    second = catwise.tune(made.head, (moved, labels), made.valid.pair)
    assert_same_head(second.head, first.head)


def test_the_base_is_not_touched():
    """Tuning writes into nothing that it was given."""
    made = make_task(120, 80, 10, 8, 4, seed=5)
    before = head_bytes(made.head), np.asarray(made.train.features.values).copy()
    tuned(made, config=SMALL)
    assert head_bytes(made.head) == before[0]
    assert np.array_equal(made.train.features.values, before[1])


# --------------------------------------------------------------------- folds and decisions


@st.composite
def tables(draw):
    """Partial labels with ids, perhaps in groups."""
    rows, columns = draw(st.integers(6, 60)), draw(st.integers(1, 5))
    codes = draw(
        hnp.arrays(np.int8, (rows, columns), elements=st.sampled_from([-2, -1, 0, 0, 1, 1]))
    )
    groups = None
    if draw(st.booleans()):
        member = draw(hnp.arrays(np.int8, rows, elements=st.integers(0, 20)))
        groups = [f"g{m}" for m in member]
    ids = [f"r{i}" for i in range(rows)]
    return PartialLabels(codes, ids=ids, groups=groups)


@settings(deadline=None, max_examples=60)
@given(tables(), st.integers(2, 5), st.integers(-5, 2**64 + 5), st.randoms())
def test_folds_cover_keep_groups_and_ignore_order(labels, n_folds, seed, random):
    """Each row has a fold, groups are whole, and a permutation of rows permutes the folds."""
    n_units = labels.n_rows if labels.groups is None else len(set(labels.groups.tolist()))
    assume(n_units >= n_folds)
    digests = row_digests(np.zeros((labels.n_rows, 1)), ids=labels.ids)
    fold = assign_folds(labels, n_folds=n_folds, seed=seed, digests=digests)
    assert set(fold.tolist()) <= set(range(n_folds))
    if labels.groups is None:
        # Positives of the rarest category are dealt first, so they are spread exactly.
        counts = (labels.codes == 1).sum(0)
        first = min(range(len(counts)), key=lambda c: (counts[c], labels.categories[c]))
        spread = np.bincount(fold[labels.codes[:, first] == 1], minlength=n_folds)
        assert spread.max() - spread.min() <= 1
    else:
        pairs = set(zip(labels.groups.tolist(), fold.tolist(), strict=True))
        assert len(pairs) == n_units
    order = np.array(random.sample(range(labels.n_rows), labels.n_rows))
    moved = assign_folds(
        labels.take_rows(order), n_folds=n_folds, seed=seed, digests=digests[order]
    )
    assert np.array_equal(moved, fold[order])


@st.composite
def fold_scores(draw):
    """Scores of candidates with folds that lack a class."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(2, 5), st.integers(1, 6)))
    values = draw(hnp.arrays(np.float64, shape, elements=st.integers(0, 64).map(lambda n: n / 64)))
    positives = draw(
        hnp.arrays(np.float64, shape[1:], elements=st.sampled_from([0.0, 1.0, 3.0, 40.0]))
    )
    return FoldScores(np.where(positives == 0, np.nan, values), positives)


@settings(deadline=None)
@given(fold_scores(), st.sampled_from([choose_greedy, choose_each]))
def test_decisions_are_in_range(scores, choose):
    """A choice is a candidate; without positives it is the base."""
    found = nested_choice(scores, choose)
    assert ((found.chosen >= 0) & (found.chosen < len(scores.values))).all()
    nothing = scores.positives.sum(0) == 0
    assert (found.chosen[nothing] == 0).all()
    assert (found.chosen_without[:, nothing] == 0).all()


@settings(deadline=None)
@given(fold_scores(), st.sampled_from([choose_greedy, choose_each]), st.randoms())
def test_averages_permute_with_categories_and_folds(scores, choose, random):
    """Neither the order of categories nor that of folds matters to what a choice is made from."""
    _, n_folds, n_categories = scores.values.shape
    columns = random.sample(range(n_categories), n_categories)
    folds = random.sample(range(n_folds), n_folds)
    moved = FoldScores(scores.values[:, folds][:, :, columns], scores.positives[folds][:, columns])
    first, second = nested_choice(scores, choose), nested_choice(moved, choose)
    np.testing.assert_allclose(moved.mean()[0], scores.mean()[0, columns], equal_nan=True)
    np.testing.assert_allclose(second.pooled, first.pooled, atol=1e-12)


@settings(deadline=None)
@given(fold_scores())
def test_equal_candidates_never_replace(scores):
    """Copies of the original head show no gain, so nothing is replaced."""
    copies = FoldScores(np.repeat(scores.values[:1], 4, axis=0), scores.positives)
    for choose in (choose_greedy, choose_each):
        found = nested_choice(copies, choose)
        assert (found.chosen == 0).all()
        assert (found.chosen_without == 0).all()
