"""Labels: properties that hold for all of them."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from catwise.labels import (
    ENCODINGS,
    LabelPolicy,
    PartialLabels,
    audit_labels,
    drop_uniform,
    keep_per_category,
    keep_single_positive,
    make_targets,
)

shapes = st.tuples(st.integers(0, 12), st.integers(0, 6))
codes_of = arrays.arrays(np.int8, shapes, elements=st.sampled_from([-2, -1, 0, 1]))
seeds = st.integers(0, 2**64)
shares = st.floats(0, 1)


def both(codes: np.ndarray) -> tuple[PartialLabels, PartialLabels]:
    """The same named labels, dense and as columns."""
    ids = [f"image {i}" for i in range(len(codes))]
    names = [f"category {j}" for j in range(codes.shape[1])]
    groups = [str(i // 2) for i in range(len(codes))]
    return tuple(  # type: ignore[return-value]
        PartialLabels(codes, ids, names, groups, storage=storage)
        for storage in ("dense", "columns")
    )


def kept(labels: PartialLabels) -> set[tuple[str, str, int]]:
    """The entries that are not unknown, by name."""
    rows, columns = np.nonzero(labels.codes != -1)
    return {
        (str(labels.ids[i]), labels.categories[j], int(labels.codes[i, j]))
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
    }


@given(codes=codes_of, data=st.data())
def test_storage_changes_nothing(codes, data):
    """Dense labels and columns give the same answers to every question."""
    dense, columns = both(codes)
    assert (dense.storage, columns.storage) == ("dense", "columns")
    n, c = codes.shape
    start, stop = data.draw(st.integers(0, n)), data.draw(st.integers(0, n + 2))
    for labels in (dense, columns):
        np.testing.assert_array_equal(labels.codes, codes)
        np.testing.assert_array_equal(labels.block(start, stop), codes[start:stop])
        for j in range(c):
            rows, positive = labels.known(j)
            np.testing.assert_array_equal(rows, np.flatnonzero(codes[:, j] >= 0))
            np.testing.assert_array_equal(positive, codes[rows, j] == 1)
            np.testing.assert_array_equal(labels.column(j), codes[:, j])
        np.testing.assert_array_equal(labels.counts().known, (codes >= 0).sum(axis=0))
        np.testing.assert_array_equal(labels.counts().positive, (codes == 1).sum(axis=0))
        np.testing.assert_array_equal(labels.counts().uncertain, (codes == -2).sum(axis=0))
        assert pickle.loads(pickle.dumps(labels)) == dense  # noqa: S301
        assert labels.with_storage("columns").with_storage("dense") == columns
    assert audit_labels(dense) == audit_labels(columns)
    policy = LabelPolicy(uncertain=(0.2, 0.8))
    for mine, theirs in zip(
        make_targets(dense, policy, 5), make_targets(columns, policy, 5), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


@given(codes=codes_of, data=st.data())
def test_taking_rows_and_categories(codes, data):
    """Taking is indexing, in either storage; without ids rows may repeat."""
    n, c = codes.shape
    some = data.draw(st.lists(st.integers(0, n - 1), max_size=20)) if n else []
    rows = np.array(some, dtype=np.int64)
    order = np.array(data.draw(st.permutations(range(c))), dtype=np.int64)
    for storage in ("dense", "columns"):
        plain = PartialLabels(codes, storage=storage)  # type: ignore[arg-type]
        np.testing.assert_array_equal(plain.take_rows(rows).codes, codes[rows])
        np.testing.assert_array_equal(plain.take_categories(order).codes, codes[:, order])
        mask = np.isin(np.arange(n), rows)
        assert plain.take_rows(mask) == plain.take_rows(np.flatnonzero(mask))


@given(codes=codes_of, small=shares, large=shares, seed=seeds)
def test_dropping_is_nested(codes, small, large, seed):
    """What stays at a small share stays at a larger one; dropping twice is dropping once."""
    small, large = min(small, large), max(small, large)
    for labels in both(codes):
        less, more = drop_uniform(labels, small, seed), drop_uniform(labels, large, seed)
        assert kept(less) <= kept(more) <= kept(labels)
        assert drop_uniform(more, small, seed) == less


@given(codes=codes_of, small=st.integers(0, 5), large=st.integers(0, 5), seed=seeds)
def test_keeping_per_category_is_nested(codes, small, large, seed):
    """A smaller number keeps a part of what a larger one keeps, and exactly as many as it can."""
    small, large = min(small, large), max(small, large)
    for labels in both(codes):
        less, more = keep_per_category(labels, small, seed), keep_per_category(labels, large, seed)
        assert kept(less) <= kept(more) <= kept(labels)
        counts = labels.counts()
        np.testing.assert_array_equal(less.counts().positive, np.minimum(counts.positive, small))
        np.testing.assert_array_equal(less.counts().negative, np.minimum(counts.negative, small))


@given(codes=codes_of, share=shares, seed=seeds, data=st.data())
def test_order_and_storage_change_no_draw(codes, share, seed, data):
    """Named rows and categories keep the same labels in any order and storage."""
    dense, columns = both(codes)
    rows = data.draw(st.permutations(range(len(codes))))
    order = data.draw(st.permutations(range(codes.shape[1])))
    for drop in (
        lambda labels: drop_uniform(labels, share, seed),
        lambda labels: keep_per_category(labels, 2, seed),
        lambda labels: keep_single_positive(labels, seed),
    ):
        assert drop(dense) == drop(columns)
        turned = columns.take_rows(rows).take_categories(order)
        assert drop(turned) == drop(dense).take_rows(rows).take_categories(order)


@given(codes=codes_of, name=st.sampled_from(sorted(ENCODINGS)))
def test_encodings_round_trip(codes, name):
    """Labels written in an encoding that can hold them are read back as they were."""
    mapping = {code: raw for raw, code in ENCODINGS[name].codes}
    codes = np.where(np.isin(codes, list(mapping)), codes, 0).astype(np.int8)
    raw = np.array([mapping[int(code)] for code in codes.ravel()], dtype=object)
    raw = raw.reshape(codes.shape)
    texts = np.array([["" if v is None else f" {v:g}" for v in row] for row in raw], dtype=object)
    for values in (raw, raw.astype(np.float32), texts.reshape(codes.shape)):
        labels = PartialLabels.from_array(values, encoding=name)
        np.testing.assert_array_equal(labels.codes, codes)
