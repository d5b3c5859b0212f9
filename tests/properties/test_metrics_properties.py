"""What holds for every metric, selection and join, whatever the data."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from catwise.features import Features
from catwise.heads import Head
from catwise.joining import align, aligned_features, join_rows
from catwise.labels import PartialLabels
from catwise.metrics import METRICS, evaluate
from catwise.metrics.influence import influence
from catwise.tuning.account.memorisation import memorisation_gap
from catwise.tuning.selecting import select

CODES = st.sampled_from([-2, -1, 0, 0, 1, 1])
RANKING = sorted(name for name, metric in METRICS.items() if metric.ranks_only)
SHAPES = st.tuples(st.integers(2, 30), st.integers(1, 5))


@st.composite
def tables(draw, shapes=SHAPES):
    """Logits with ties, and codes of all four kinds."""
    shape = draw(shapes)
    codes = draw(hnp.arrays(np.int8, shape, elements=CODES))
    steps = draw(hnp.arrays(np.int16, shape, elements=st.integers(-40, 40)))
    return steps / 8.0, codes


def same(a, b, **tolerance):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), equal_nan=True, **tolerance)


@settings(deadline=None)
@given(tables(), st.integers(0, 2**32 - 1))
def test_unknown_labels_never_change_a_metric(table, seed):
    """Whatever the logits of unknown and uncertain entries are."""
    logits, codes = table
    noise = np.random.default_rng(seed).normal(size=logits.shape) * 100
    other = np.where(codes < 0, noise, logits)
    hidden = np.where(codes < 0, -1, codes).astype(np.int8)
    for metric in METRICS.values():
        expected = metric.per_category(logits, codes)
        same(metric.per_category(other, codes), expected)
        same(metric.per_category(logits, hidden), expected)


@settings(deadline=None)
@given(tables())
def test_ranking_metrics_are_invariant_to_increasing_maps(table):
    """Strictly increasing, exact in floating point: ties stay ties."""
    logits, codes = table
    for name in RANKING:
        metric = METRICS[name]
        expected = metric.per_category(logits, codes)
        same(metric.per_category(logits * 4.0 - 3.0, codes), expected)
        same(metric.per_category(logits**3, codes), expected)
        same(metric.per_category(logits.astype(np.float16), codes), expected)


@settings(deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_permuting_rows_and_categories_permutes_results(table, random):
    """No order matters."""
    logits, codes = table
    rows, columns = list(range(codes.shape[0])), list(range(codes.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    for metric in METRICS.values():
        expected = metric.per_category(logits, codes)[columns]
        found = metric.per_category(logits[rows][:, columns], codes[rows][:, columns])
        same(found, expected, rtol=1e-12, atol=1e-14)


@settings(deadline=None)
@given(tables(), st.integers(1, 3))
def test_duplicates_are_weights(table, times):
    """A row that is there twice is a row with the weight 2."""
    logits, codes = table
    weight = np.arange(codes.shape[0]) % (times + 1)
    rows = np.repeat(np.arange(codes.shape[0]), weight)
    assume(rows.size)
    for metric in METRICS.values():
        found = metric.columns(
            torch.from_numpy(logits.T.copy()), torch.from_numpy(codes.T.copy()), weight=weight
        )
        same(found, metric.per_category(logits[rows], codes[rows]), rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(tables())
def test_metrics_are_in_range_or_undefined(table):
    """NaN exactly where a class is not known, or, for means over labels, no label."""
    logits, codes = table
    both = (codes == 1).any(0) & (codes == 0).any(0)
    for metric in METRICS.values():
        values = metric.per_category(logits, codes).numpy()
        there = (codes >= 0).any(0) if metric.one_class else both
        assert (np.isfinite(values) == there).all()
        assert (values[there] >= 0).all()
        if metric.name != "log_loss":
            assert (values[there] <= 1 + 1e-12).all()


@settings(deadline=None)
@given(tables())
def test_influence_is_centred_and_its_value_is_the_metric(table):
    """For every metric and category of which both classes are known."""
    logits, codes = table
    both = (codes == 1).any(0) & (codes == 0).any(0)
    for name, metric in METRICS.items():
        values = metric.per_category(logits, codes).numpy()
        for c in np.flatnonzero(both):
            known = codes[:, c] >= 0
            positive = codes[known, c] == 1
            found = influence(name, logits[known, c], positive)
            assert abs(found.value - values[c]) < 1e-12
            assert abs(found.rows[positive].sum()) < 1e-9
            assert abs(found.rows[~positive].sum()) < 1e-9
            assert np.isfinite(found.rows).all()


@settings(max_examples=40, deadline=None)
@given(tables())
def test_evaluation_is_the_metrics_and_their_means(table):
    """Values, means, cover; in dense and in column storage."""
    logits, codes = table
    assume((codes >= 0).any())  # all unknown is an error
    n = codes.shape[1]
    head = Head(np.eye(n), categories=[f"c{i}" for i in range(n)])
    labels = PartialLabels(codes, categories=head.categories)
    for storage in ("dense", "columns"):
        data = logits, labels.with_storage(storage)
        result = evaluate(head, data, metrics=list(METRICS), force=True)
        for name, metric in METRICS.items():
            expected = metric.per_category(logits, codes).numpy()
            same(result.values[name], expected, rtol=1e-12, atol=1e-14)
            covered = np.isfinite(expected)
            assert result.means[name]["n_categories"] == covered.sum()
            if covered.any():
                same(result.means[name]["macro"], expected[covered].mean(), rtol=1e-12)
            same(result.means[name]["micro"], metric.micro(logits, codes), rtol=1e-12, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_categories_changes_no_interval(table, random):
    """Each category has its own, wherever it stands."""
    logits, codes = table
    assume((codes >= 0).any())  # all unknown is an error
    n = codes.shape[1]
    order = list(range(n))
    random.shuffle(order)
    names = [f"c{i}" for i in range(n)]
    head = Head(np.eye(n), categories=names)
    labels = PartialLabels(codes, categories=names)
    options = {"force": True, "metrics": list(METRICS)}
    whole = evaluate(head, (logits, labels), **options)
    turned = evaluate(head, (logits, labels.take_categories(order)), **options)
    for name in METRICS:
        same(
            turned.intervals[name].per_category,
            whole.intervals[name].per_category[order],
            rtol=1e-9,
            atol=1e-12,
        )


@settings(deadline=None)
@given(st.lists(st.text("ab01.", min_size=1, max_size=4), min_size=1, unique=True), st.data())
def test_joining_by_id_finds_each_row(ids, data):
    """Any order, any subset; features in the labels' order."""
    wanted = data.draw(st.lists(st.sampled_from(ids), min_size=1, unique=True))
    features = Features(np.arange(float(len(ids)))[:, None], ids=ids)
    labels = PartialLabels(np.zeros((len(wanted), 1), dtype=np.int8), ids=wanted)
    joined = join_rows(features, labels)
    taken = aligned_features(features, joined.rows)
    found = np.asarray(taken.block(0, len(wanted)))[:, 0]
    assert [ids[int(i)] for i in found] == wanted
    assert joined.n_unlabelled == len(ids) - len(wanted)


@settings(deadline=None)
@given(st.permutations(["a", "b", "c", "d"]), st.data())
def test_categories_join_by_name(names, data):
    """Any order, any subset of the head's."""
    kept = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    labels = PartialLabels(np.zeros((1, len(kept)), dtype=np.int8), categories=kept)
    aligned = align(Head(np.eye(4), categories=names), np.ones((1, 4)), labels)
    assert aligned.scored.categories == tuple(kept)
    assert [names[i] for i in aligned.head_index] == kept


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["greedy", "honest"]))
@example(3273, "greedy")  # two categories with as many positives
def test_selection_ignores_the_order_of_categories(seed, rule):
    """Statuses, candidates and scores follow the names; the head's rows are candidates' rows."""
    rng = np.random.default_rng(seed)
    names = ["a", "b", "c"]
    z = rng.integers(-8, 9, size=(60, 4)) / 8.0
    codes = rng.choice(np.array([-1, 0, 0, 1], dtype=np.int8), size=(60, 3))
    heads = {
        name: Head(rng.integers(-8, 9, size=(3, 4)) / 8.0, categories=names)
        for name in ("base", "x", "y")
    }
    labels = PartialLabels(codes, categories=names)
    order = rng.permutation(3).tolist()
    a = select(heads, (z, labels), rule=rule, splits=1, force=True)
    b = select(heads, (z, labels.take_categories(order)), rule=rule, splits=1, force=True)
    for one, other in zip(a.records, b.records, strict=True):
        assert one["category"] == other["category"]
        assert one["candidate"] == other["candidate"]
        assert one["before"] == other["before"]
        assert one["after"] == other["after"]
    for c, record in enumerate(a.records):
        assert torch.equal(a.head.weight[c], heads[record["candidate"]].weight[c])


@settings(max_examples=40, deadline=None)
@given(tables(st.tuples(st.integers(20, 60), st.integers(1, 3))))
def test_a_source_has_no_gap_to_itself(table):
    """The same rows on both sides: nothing was memorised."""
    logits, codes = table
    found = memorisation_gap(logits, codes, logits, codes)
    defined = np.array([reason is None for reason in found.reasons])
    same(found.auroc.gap[defined], 0.0)
    same(found.average_precision.gap[defined], 0.0)
    assert np.isnan(found.auroc.gap[~defined]).all()
    assert (found.auroc.low[defined] <= 0).all()
    assert (found.auroc.high[defined] >= 0).all()
