"""Rows by id, categories by name, sources apart: reported once, at the door."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catwise.errors import CategoryError, IdError, ShapeError
from catwise.features import Features
from catwise.heads import Head
from catwise.joining import (
    align,
    aligned_features,
    check_disjoint,
    join_rows,
    match_categories,
    source_digests,
)
from catwise.labels import PartialLabels


class Store:
    """Features that can only give neighbouring rows, as a store on disk."""

    def __init__(self, values, ids=None):
        self.values, self.ids = np.asarray(values), None if ids is None else np.array(ids)
        self.shape, self.calls = self.values.shape, []

    def block(self, start, stop):
        self.calls.append((start, stop))
        return self.values[start:stop]


def labelled(n_rows, *, ids=None, categories=None, groups=None, n_categories=2):
    codes = np.zeros((n_rows, len(categories) if categories else n_categories), dtype=np.int8)
    return PartialLabels(codes, ids=ids, categories=categories, groups=groups)


def rows_of(n_rows, n_features=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n_rows, n_features)).astype(np.float32)


def test_rows_are_joined_by_id_in_the_order_of_the_labels():
    """Features without labels are counted and left out."""
    joined = join_rows(Store(rows_of(4), ids=list("dcba")), labelled(3, ids=["a", "c", "d"]))
    assert joined.rows.tolist() == [3, 1, 0]
    assert joined.n_unlabelled == 1
    assert "1 feature rows are not among its labels" in joined.notes[1]


def test_equal_ids_need_no_taking():
    """Rows in the same order stay as they are."""
    assert join_rows(Store(rows_of(2), ids=["x", "y"]), labelled(2, ids=["x", "y"])).rows is None


def test_ids_of_different_width_match():
    """Numpy's fixed-width texts do not cut an id."""
    store = Store(rows_of(2), ids=np.array(["img", "image-17"]))
    assert join_rows(store, labelled(1, ids=np.array(["image-17"]))).rows.tolist() == [1]


def test_unmatched_ids_show_three_of_each_side_and_counts():
    """The message names what was not found, on both sides."""
    features = Store(rows_of(5), ids=["q", "r", "s", "t", "a"])
    labels = labelled(5, ids=["a", "u", "v", "w", "x"])
    with pytest.raises(IdError) as caught:
        join_rows(features, labels, name="valid")
    text = str(caught.value)
    assert "valid: 4 of 5 labelled rows have no features" in text
    assert "'u', 'v', 'w' and 1 more" in text
    assert "features without labels (4): 'q', 'r', 's' and 1 more" in text


@pytest.mark.parametrize(
    ("of_features", "of_labels", "says"),
    [
        ("images/{}.jpg", "{}", "--id-prefix 'images/' --id-suffix '.jpg'"),
        ("{}", "images/{}.jpg", "--strip-prefix 'images/' --strip-suffix '.jpg'"),
        ("new/{}.jpg", "old/{}.jpg", "--strip-prefix 'old/' --id-prefix 'new/'"),
    ],
)
def test_ids_that_differ_by_folder_and_suffix_get_a_remedy(
    of_features: str, of_labels: str, says: str
) -> None:
    """The options that make the ids of the table those of the features are named."""
    names = ["a", "b"]
    features = Features(np.ones((2, 3)), ids=[of_features.format(name) for name in names])
    labels = PartialLabels([[1], [0]], ids=[of_labels.format(name) for name in names])
    with pytest.raises(IdError, match=f"but for folder and suffix: {says}$"):
        join_rows(features, labels)


def test_no_features_at_all_is_an_id_error():
    """An empty store matches nothing."""
    with pytest.raises(IdError, match="1 of 1 labelled rows"):
        join_rows(Store(rows_of(0), ids=np.empty(0, dtype="U1")), labelled(1, ids=["a"]))


@pytest.mark.parametrize("ids", [["a", "a", "b"], ["b", "a", "a"]])
def test_an_id_twice_in_the_features_is_refused(ids):
    """Whether or not the labels ask for it."""
    with pytest.raises(IdError, match="a duplicate id"):
        join_rows(Store(rows_of(3), ids=ids), labelled(1, ids=["b"]))


@pytest.mark.parametrize("with_ids", [0, 1, 2])
def test_without_ids_on_both_sides_rows_are_positional(with_ids):
    """Position is all there is, and the note says why."""
    store = Store(rows_of(2), ids=["a", "b"] if with_ids == 1 else None)
    joined = join_rows(store, labelled(2, ids=["a", "b"] if with_ids == 2 else None))
    assert joined.rows is None
    assert "by position" in joined.notes[0]


def test_positional_rows_must_be_equal_in_number():
    """Different counts cannot be joined by position."""
    with pytest.raises(ShapeError, match="the labels have no ids") as caught:
        join_rows(Store(rows_of(3), ids=list("abc")), labelled(2))
    assert "3 rows of features, 2 rows of labels" in str(caught.value)


def test_categories_match_by_name():
    """The head may have more rows than the labels have columns."""
    index, notes = match_categories(["a", "b", "c"], ["c", "a"])
    assert index.tolist() == [2, 0]
    assert "1 rows of the head have no labels" in notes[0]


@pytest.mark.parametrize(("head", "labels"), [(("a", "b"), ("0", "1")), (("0", "1"), ("a", "b"))])
def test_default_names_match_by_position(head, labels):
    """A side that only has positions for names is matched by position."""
    assert match_categories(head, labels)[0].tolist() == [0, 1]
    with pytest.raises(ShapeError, match="no category names"):
        match_categories(head, labels[:1])


def test_numbers_as_names_match_by_name_where_the_head_has_them():
    """Categories taken out of unnamed labels keep their numbers."""
    assert match_categories([str(i) for i in range(9)], ["7", "3"])[0].tolist() == [7, 3]


def test_a_missing_category_names_the_nearest():
    """The head lacks a column of the labels."""
    with pytest.raises(CategoryError, match="did you mean 'Edema'") as caught:
        match_categories(["Edema", "Mass"], ["Edema ", "Mass"])
    assert "lacks 1 of 2" in str(caught.value)


def test_align_gives_positions_and_names():
    """Rows by id, columns by name, the head's names."""
    head = Head(np.arange(9.0).reshape(3, 3), categories=["a", "b", "c"])
    labels = labelled(2, ids=["y", "x"], categories=["c", "b"])
    aligned = align(head, Store(rows_of(2), ids=["x", "y"]), labels)
    assert aligned.rows.tolist() == [1, 0]
    assert aligned.head_index.tolist() == [2, 1]
    assert aligned.categories == ("c", "b")
    assert aligned.scored.categories == ("c", "b")
    assert torch.equal(aligned.scored.weight, head.weight[[2, 1]])
    assert aligned.head is head


def test_align_keeps_the_labels_names_where_the_head_has_none():
    """The side that has names gives them."""
    aligned = align(Head(np.eye(3)[:2]), rows_of(2), labelled(2, categories=["a", "b"]))
    assert aligned.categories == ("a", "b")
    assert aligned.scored is aligned.head


def test_features_that_do_not_feed_the_head_are_refused():
    """D differs."""
    with pytest.raises(ShapeError, match="valid features do not feed the head"):
        align(Head(np.eye(2)), rows_of(2), labelled(2), name="valid")


@pytest.mark.parametrize("kind", ["array", "tensor", "store", "list"])
def test_aligned_features_read_rows_in_any_order(kind):
    """Whatever holds them; repeated rows too."""
    values = rows_of(20)
    rows = np.array([3, 19, 4, 5, 3, 0, 18])
    held = {
        "array": values,
        "tensor": torch.from_numpy(values),
        "store": Store(values, ids=[f"i{i}" for i in range(20)]),
        "list": values.tolist(),
    }[kind]
    taken = aligned_features(held, rows)
    assert taken.shape == (7, 3)
    np.testing.assert_allclose(np.asarray(taken.block(1, 6)), values[rows[1:6]])
    assert np.asarray(taken.block(2, 2)).shape == (0, 3)


def test_a_store_is_read_in_runs():
    """Neighbouring rows are one read; ids follow the rows."""
    store = Store(rows_of(9), ids=[f"i{i}" for i in range(9)])
    taken = aligned_features(store, np.array([5, 6, 7, 1, 2]))
    taken.block(0, 5)
    assert store.calls == [(1, 3), (5, 8)]
    assert taken.ids.tolist() == ["i5", "i6", "i7", "i1", "i2"]


def test_logits_of_aligned_features_are_those_of_the_rows():
    """Heads read aligned features like any others."""
    values, head = rows_of(6), Head(rows_of(2, seed=1))
    rows = np.array([5, 0, 3])
    assert torch.equal(
        head.logits(aligned_features(Store(values), rows)), head.logits(values)[rows]
    )


def test_digests_follow_ids_before_content():
    """A row is known by its id; the order of the features does not matter."""
    labels = labelled(2, ids=["y", "x"])
    store = Store(rows_of(2), ids=["x", "y"])
    by_id = source_digests(store, labels, np.array([1, 0]))
    other = source_digests(rows_of(2, seed=3), labelled(2, ids=["x", "y"]))
    assert by_id.tolist() == other[::-1].tolist()
    by_content = source_digests(rows_of(2), labelled(2))
    assert by_content.dtype == np.uint64
    assert not np.isin(by_content, by_id).any()


def test_an_id_in_both_sources_is_refused():
    """No image may fit and judge."""
    train = (rows_of(2), labelled(2, ids=["a", "b"]))
    valid = (rows_of(2, seed=1), labelled(2, ids=["b", "c"]))
    with pytest.raises(IdError, match="1 ids are in both"):
        check_disjoint(train, valid)


def test_a_group_in_both_sources_is_refused():
    """No patient either."""
    train = (rows_of(2), labelled(2, ids=["a", "b"], groups=["p1", "p2"]))
    valid = (rows_of(2, seed=1), labelled(2, ids=["c", "d"], groups=["p2", "p3"]))
    with pytest.raises(IdError, match="1 groups are in both"):
        check_disjoint(train, valid)


def test_equal_content_is_refused_without_ids():
    """The same file given twice has no ids to say so."""
    values = rows_of(5)
    with pytest.raises(IdError, match="5 validation rows have the same features"):
        check_disjoint((values, labelled(5)), (values[::-1].copy(), labelled(5)))
    assert check_disjoint((values, labelled(5)), (rows_of(5, seed=1), labelled(5))) == []


def test_content_is_compared_where_one_source_has_no_ids():
    """Ids on one side alone cannot tell images apart."""
    values = rows_of(5)
    store = Store(values, ids=list("abcde"))
    with pytest.raises(IdError, match="same features as a training row"):
        check_disjoint((store, labelled(5)), (values, labelled(5)))


def test_stores_take_rows_their_own_way():
    """Whatever has `rows(index)` is asked for them."""
    features = Features(rows_of(5), ids=list("abcde"))
    taken = aligned_features(features, np.array([4, 0]))
    np.testing.assert_array_equal(np.asarray(taken.block(0, 2)), rows_of(5)[[4, 0]])
    assert taken.ids.tolist() == ["e", "a"]


def test_a_few_equal_images_are_noted_only():
    """One blank page among hundreds does not stop the work."""
    train, valid = rows_of(300), rows_of(200, seed=1)
    valid[7] = train[3]
    notes = check_disjoint((train, labelled(300)), (valid, labelled(200)))
    assert notes == ["1 validation rows have the same features as a training row."]
