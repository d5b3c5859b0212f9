"""PartialLabels, encodings, policies, dropping and the audit."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from catwise.errors import CategoryError, ConfigError, IdError, LabelError, ShapeError
from catwise.labels import (
    ENCODINGS,
    REASONS,
    UNCERTAIN,
    UNKNOWN,
    Encoding,
    LabelPolicy,
    PartialLabels,
    audit_labels,
    drop_uniform,
    fitting_encodings,
    keep_per_category,
    keep_single_positive,
    make_targets,
)

CODES = np.array(
    [[1, -1, 0], [0, -2, 1], [-1, 1, 0], [-1, -1, -1], [1, 0, -2]],
    dtype=np.int8,
)
GOLDEN = ([7, 15], [0, 3, 6, 7, 12, 14, 17])
STORAGES = pytest.mark.parametrize("storage", ["dense", "columns"])


def make(storage: Any = "dense") -> PartialLabels:
    return PartialLabels(
        CODES,
        ids=list("abcde"),
        categories=["ant", "bee", "cat"],
        groups=[1, 1, 2, 2, 3],
        storage=storage,
    )


@STORAGES
def test_what_is_there(storage):
    """Shape, names, codes, known labels and counts."""
    labels = make(storage)
    assert labels.shape == (5, 3) == (labels.n_rows, labels.n_categories)
    assert len(labels) == 5
    assert labels.storage == storage
    assert labels.categories == ("ant", "bee", "cat")
    assert labels.ids.tolist() == list("abcde")
    assert labels.groups.tolist() == ["1", "1", "2", "2", "3"]
    assert labels.codes.dtype == np.int8
    np.testing.assert_array_equal(labels.codes, CODES)
    np.testing.assert_array_equal(labels.column("cat"), CODES[:, 2])
    rows, positive = labels.known(1)
    assert (rows.dtype, rows.tolist()) == (np.dtype(np.int64), [2, 4])
    assert (positive.dtype, positive.tolist()) == (np.dtype(bool), [True, False])
    counts = labels.counts()
    assert counts.known.tolist() == [3, 2, 3]
    assert counts.positive.tolist() == [2, 1, 1]
    assert counts.negative.tolist() == [1, 1, 2]
    assert counts.uncertain.tolist() == [0, 1, 1]
    assert all(count.dtype == np.int64 for count in counts)


@STORAGES
def test_blocks_are_cut_like_slices(storage):
    """A block beyond the end is cut; an empty one keeps its width."""
    labels = make(storage)
    np.testing.assert_array_equal(labels.block(1, 99), CODES[1:])
    assert labels.block(3, 3).shape == (0, 3)


@STORAGES
def test_pickles_copies_and_equals(storage):
    """A copy is equal, stored alike and still immutable."""
    labels = make(storage)
    for twin in (pickle.loads(pickle.dumps(labels)), copy.deepcopy(labels)):  # noqa: S301
        assert twin == labels
        assert twin.storage == storage
        with pytest.raises(ValueError, match="read-only"):
            twin.ids[0] = "z"
    assert labels == make("dense") == make("columns")
    assert labels != labels.take_rows([1, 0, 2, 3, 4])
    assert labels != PartialLabels(CODES, categories=["ant", "bee", "cat"])
    assert labels != "labels"


@STORAGES
def test_is_immutable(storage):
    """Neither attributes nor arrays can be changed, and what went in is not shared."""
    codes = CODES.copy()
    labels = PartialLabels(codes, storage=storage)
    codes[:] = 0
    np.testing.assert_array_equal(labels.codes, CODES)
    with pytest.raises(AttributeError, match="immutable"):
        labels.ids = None  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del labels.groups
    with pytest.raises(ValueError, match="read-only"):
        labels.codes[0, 0] = 0
    with pytest.raises(TypeError, match="unhashable"):
        hash(labels)


@STORAGES
@pytest.mark.parametrize(
    "index",
    [
        [4, 0, 2],
        np.array([-1, 1]),
        slice(None, None, 2),
        np.array([True, False, True, True, False]),
        torch.tensor([3]),
        [],
    ],
)
def test_take_rows(storage, index):
    """Rows by position, mask or slice, with their ids and groups, in either storage."""
    taken = make(storage).take_rows(index)
    if isinstance(index, (list, torch.Tensor)):
        index = np.array([int(i) for i in index], dtype=np.int64)
    np.testing.assert_array_equal(taken.codes, CODES[index])
    assert taken.ids.tolist() == np.array(list("abcde"))[index].tolist()
    assert taken.storage == storage
    assert taken.shape == (len(CODES[index]), 3)


@STORAGES
def test_take_rows_repeats_only_without_ids(storage):
    """Rows may repeat where they have no names."""
    index = [4, 1, 1, 0, 4]
    taken = PartialLabels(CODES, storage=storage).take_rows(index)
    np.testing.assert_array_equal(taken.codes, CODES[index])
    with pytest.raises(IdError, match="taken twice"):
        make(storage).take_rows(index)


@STORAGES
def test_take_categories(storage):
    """Categories by name and position."""
    taken = make(storage).take_categories(["cat", 0])
    assert taken.categories == ("cat", "ant")
    np.testing.assert_array_equal(taken.codes, CODES[:, [2, 0]])
    with pytest.raises(CategoryError, match="did you mean 'bee'"):
        make(storage).take_categories(["bees"])
    with pytest.raises(CategoryError, match="one name"):
        make(storage).take_categories([0, "ant"])
    with pytest.raises(CategoryError, match="position 3"):
        make(storage).known(3)


def test_storage_is_chosen_by_density():
    """Large sparse labels become columns, small or dense ones do not."""
    codes = np.full((2048, 1024), UNKNOWN, dtype=np.int8)
    codes[:, :100] = 0
    assert PartialLabels(codes).storage == "columns"
    assert PartialLabels(codes[:100]).storage == "dense"
    codes[:, :200] = 0
    assert PartialLabels(codes).storage == "dense"
    with pytest.raises(ConfigError, match="storage cannot be"):
        PartialLabels(codes, storage="csr")  # type: ignore[arg-type]


def test_from_columns():
    """Columns in any row order give the same labels; bad ones are refused."""
    columns = [
        ([4, 0, 1], [1, 1, 0]),
        ([1, 2, 4], [-2, 1, 0]),
        ([0, 1, 2, 4, 3], [0, 1, 0, -2, -1]),
    ]
    labels = PartialLabels.from_columns(columns, 5)
    assert labels.storage == "columns"
    assert labels == PartialLabels(CODES)
    with pytest.raises(LabelError, match=r"two labels for one row[^$]*row 2"):
        PartialLabels.from_columns([([2, 2], [0, 1])], 5)
    with pytest.raises(ShapeError, match="not there"):
        PartialLabels.from_columns([([5], [0])], 5)
    with pytest.raises(ShapeError, match="fit together"):
        PartialLabels.from_columns([([0.5], [0])], 5)
    with pytest.raises(LabelError, match="row 3 of category 0"):
        PartialLabels.from_columns([([3], [7])], 5)


@pytest.mark.parametrize(
    ("make_array", "encoding"),
    [
        (lambda: [[1, None], [0.0, float("nan")]], "nan"),
        (lambda: np.array([[1, np.nan], [0, np.nan]], dtype=np.float16), "nan"),
        (lambda: torch.tensor([[1, -1], [0, -1]]), "minus_one_unknown"),
        (lambda: torch.tensor([[1, 0], [-1, 0]], dtype=torch.bfloat16), "zero_unknown"),
        (lambda: np.array([["1", ""], ["0.0", " NaN "]]), "nan"),
        (lambda: np.array([[b"1", b""], [b"0", b"NA"]]), "nan"),
        (lambda: [["True", None], ["false", "null"]], "nan"),
        (lambda: np.array([[1, -1], [0, -1]]), "codes"),
    ],
)
def test_from_array(make_array, encoding):
    """Arrays of every kind, in several encodings, mean the same."""
    labels = PartialLabels.from_array(make_array(), encoding=encoding)
    np.testing.assert_array_equal(labels.codes, [[1, UNKNOWN], [0, UNKNOWN]])


def test_from_a_data_frame():
    """What looks like a data frame brings its column names."""

    class Frame:
        columns = ("cat", "dog")

        def to_numpy(self) -> np.ndarray:
            return np.array([[True, False]])

    labels = PartialLabels.from_array(Frame(), encoding="complete")
    assert labels.categories == ("cat", "dog")
    np.testing.assert_array_equal(labels.codes, [[1, 0]])


def test_chexpert_keeps_uncertain_apart():
    """−1 is uncertain in CheXpert; a blank is unknown."""
    labels = PartialLabels.from_array([[-1.0, None, 1.0]], encoding="minus_one_uncertain")
    np.testing.assert_array_equal(labels.codes, [[UNCERTAIN, UNKNOWN, 1]])


def test_the_encoding_must_be_named():
    """Without an encoding, the ones that fit the values are listed."""
    with pytest.raises(LabelError, match="must be named") as caught:
        PartialLabels.from_array([[1, 0, -1]])
    assert "zero_unknown" in str(caught.value.remedy)
    assert "'nan'" not in str(caught.value.remedy)
    with pytest.raises(LabelError, match="did you mean 'minus_one_unknown'"):
        PartialLabels.from_array([[1, 0]], encoding="minus_one_unknow")


def test_an_encoding_that_does_not_fit():
    """The first wrong value is named with row, column and the encodings that fit all values."""
    y = np.array([[1, 0, 1], [0, 1, -1], [1, -1, 0]])
    with pytest.raises(LabelError) as caught:
        PartialLabels.from_array(y, encoding="nan", categories=["ant", "bee", "cat"])
    assert caught.value.found == "-1 in row 1, column 2 ('cat') (first of 2)"
    assert "encoding='minus_one_unknown'" in caught.value.remedy
    with pytest.raises(LabelError, match="no encoding fits all of 1, 2, 'maybe'"):
        PartialLabels.from_array([[1, 2, "maybe"]], encoding="nan")
    with pytest.raises(LabelError, match="blank in row 0"):
        PartialLabels.from_array([[None, -1, 0]], encoding="minus_one_unknown")


def test_fitting_encodings():
    """Complete labels fit all encodings that know 1 and 0."""
    assert fitting_encodings([0, 1]) == tuple(ENCODINGS)
    assert fitting_encodings([-2]) == ("codes",)
    assert fitting_encodings(["-1", ""]) == ("minus_one_uncertain",)
    assert fitting_encodings([3]) == ()


def test_own_encoding():
    """An encoding of one's own works by itself; a bad one is refused."""
    own = Encoding("stars", "5 positive, 1 negative", ((5.0, 1), (1.0, 0)))
    assert PartialLabels.from_array([[5, 1]], encoding=own).codes.tolist() == [[1, 0]]
    with pytest.raises(LabelError, match="the code 7"):
        Encoding("bad", "", ((1.0, 7),))
    with pytest.raises(LabelError, match="given twice"):
        Encoding("bad", "", ((1.0, 1), (1.0, 0)))


@pytest.mark.parametrize("bad", [[[2]], [[np.nan]], [[0.5]], np.array([[255]], dtype=np.uint8)])
def test_codes_must_be_codes(bad):
    """Only the four codes are taken, and a wrong one is shown with its place."""
    with pytest.raises(LabelError, match="row 0, column 0"):
        PartialLabels(bad)


def test_shapes_and_names_must_fit():
    """Shape, ids, groups and categories each have their own message."""
    with pytest.raises(ShapeError, match="shape"):
        PartialLabels([1, 0])
    with pytest.raises(ShapeError, match="differ in length"):
        PartialLabels([[1], [1, 0]])
    with pytest.raises(ShapeError, match="ids do not fit"):
        PartialLabels(CODES, ids=["a"])
    with pytest.raises(IdError, match="'a' in row 0 and row 4"):
        PartialLabels(CODES, ids=list("abcda"))
    with pytest.raises(IdError, match="blank"):
        PartialLabels(CODES, groups=["1", "", "2", "3", "4"])
    with pytest.raises(IdError, match="texts or whole numbers"):
        PartialLabels(CODES, ids=[1.5, 2, 3, 4, 5])
    with pytest.raises(IdError, match="None"):
        PartialLabels(CODES, ids=["a", None, "c", "d", "e"])
    with pytest.raises(CategoryError, match="column 0 and column 2"):
        PartialLabels(CODES, categories=["a", "b", "a"])
    with pytest.raises(CategoryError, match="several names"):
        PartialLabels(CODES, categories="abc")
    with pytest.raises(ShapeError, match="categories do not fit"):
        PartialLabels(CODES, categories=["a"])


@STORAGES
@pytest.mark.parametrize(
    ("policy", "target", "weight"),
    [
        (None, [1, 0, 0, 0], [1, 1, 0, 0]),
        (LabelPolicy(uncertain="negative"), [1, 0, 0, 0], [1, 1, 0, 1]),
        (LabelPolicy(uncertain="positive"), [1, 0, 0, 1], [1, 1, 0, 1]),
        (LabelPolicy(blank="negative"), [1, 0, 0, 0], [1, 1, 1, 0]),
        (LabelPolicy(uncertain=(0.25, 0.25), blank="negative"), [1, 0, 0, 0.25], [1, 1, 1, 1]),
    ],
)
def test_targets(storage, policy, target, weight):
    """Every policy says what unknown and uncertain labels count as."""
    made = make_targets(PartialLabels([[1, 0, -1, -2]], storage=storage), policy)
    assert made.target.dtype == made.weight.dtype == np.float32
    np.testing.assert_array_equal(made.target, [target])
    np.testing.assert_array_equal(made.weight, [weight])
    assert str(policy or LabelPolicy()) in made.description
    assert "1 uncertain, 1 unknown of 4" in made.description
    for mine, whole in zip(made, (made.target, made.weight), strict=True):
        assert mine is whole


@STORAGES
def test_soft_targets(storage):
    """Soft targets fill their range, repeat with the seed, and follow names and ids."""
    labels = PartialLabels(
        np.full((500, 3), UNCERTAIN), ids=range(500), categories=["a", "b", "c"], storage=storage
    )
    policy = LabelPolicy(uncertain=(0.55, 0.85))
    target = make_targets(labels, policy, seed=1).target
    assert target.min() >= 0.55
    assert target.max() <= 0.85
    assert abs(target.mean() - 0.7) < 0.01
    assert len(np.unique(target)) > 1400
    np.testing.assert_array_equal(make_targets(labels, policy, seed=1).target, target)
    assert (make_targets(labels, policy, seed=2).target != target).mean() > 0.9
    part = labels.take_rows([7, 3]).take_categories(["c", "a"])
    np.testing.assert_array_equal(
        make_targets(part, policy, seed=1).target, target[[7, 3]][:, [2, 0]]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"uncertain": "postive"},
        {"uncertain": (0.9, 0.1)},
        {"uncertain": (0.5, 1.5)},
        {"uncertain": 0.5},
        {"uncertain": (0.5, float("nan"))},
        {"uncertain": ("low", "high")},
        {"blank": "positive"},
    ],
)
def test_a_bad_policy_is_refused(options):
    """A policy is checked when it is built."""
    with pytest.raises(ConfigError):
        LabelPolicy(**options)


def test_a_policy_is_a_sentence_and_json():
    """A policy can be printed and written."""
    policy = LabelPolicy(uncertain=[0, 0.3], blank="negative")  # type: ignore[arg-type]
    assert str(policy) == (
        "Uncertain labels get soft targets between 0 and 0.3; unknown labels count as negative."
    )
    assert json.loads(json.dumps(policy.to_dict())) == {"uncertain": [0, 0.3], "blank": "negative"}
    assert hash(policy) == hash(LabelPolicy(uncertain=(0.0, 0.3), blank="negative"))


def complete(n: int = 2000, c: int = 5, storage: Any = "dense") -> PartialLabels:
    codes = np.random.default_rng(0).integers(0, 2, (n, c))
    names = [f"category {j}" for j in range(c)]
    return PartialLabels(codes, ids=np.arange(n), categories=names, storage=storage)


def test_drop_uniform_keeps_its_share():
    """About the share asked for stays, evenly over categories, positives and negatives."""
    labels = complete()
    kept = drop_uniform(labels, 0.1, seed=3)
    counts = kept.counts()
    assert abs(counts.known.sum() / 10_000 - 0.1) < 0.01
    assert abs(counts.positive.sum() / counts.known.sum() - 0.5) < 0.05
    assert drop_uniform(labels, 0.1, seed=3) == kept
    assert drop_uniform(labels, 0.1, seed=4) != kept
    assert drop_uniform(labels, 1, seed=3) == labels
    assert drop_uniform(labels, 0, seed=3).counts().known.sum() == 0
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="probability"):
            drop_uniform(labels, bad)
    with pytest.raises(ConfigError, match="whole number"):
        drop_uniform(labels, 0.5, seed=0.5)  # type: ignore[arg-type]


def test_draws_are_independent():
    """Which labels stay is unrelated between categories, rows and seeds."""
    known = [drop_uniform(complete(), 0.5, seed=s).codes >= 0 for s in (0, 1)]
    columns = np.concatenate(known, axis=1).astype(float)
    correlation = np.corrcoef(columns.T) - np.eye(10)
    assert abs(correlation).max() < 0.1
    assert abs(np.corrcoef(columns[1:, 0], columns[:-1, 0])[0, 1]) < 0.1


def test_draws_stay_the_same_for_ever():
    """The choice that a seed makes is a promise: other versions must make it too."""
    labels = PartialLabels(np.ones((20, 1)), categories=["cat"])
    named = PartialLabels(np.ones((20, 1)), ids=[f"img_{i}.jpg" for i in range(20)])
    assert np.flatnonzero(drop_uniform(labels, 0.2, 0).codes[:, 0] == 1).tolist() == GOLDEN[0]
    assert np.flatnonzero(drop_uniform(named, 0.2, 0).codes[:, 0] == 1).tolist() == GOLDEN[1]


@STORAGES
def test_keep_per_category(storage):
    """N positives and n negatives stay; a category that has fewer keeps them all."""
    labels = complete(storage=storage)
    counts = keep_per_category(labels, 7, seed=1).counts()
    assert counts.positive.tolist() == counts.negative.tolist() == [7] * 5
    rare = PartialLabels([[1, -2], [0, 0], [0, 0], [-1, 0]], storage=storage)
    counts = keep_per_category(rare, 2).counts()
    assert counts.positive.tolist() == [1, 0]
    assert counts.negative.tolist() == [2, 2]
    assert counts.uncertain.tolist() == [0, 0]
    with pytest.raises(ConfigError, match="whole number"):
        keep_per_category(labels, -1)


@STORAGES
def test_keep_single_positive(storage):
    """Each row keeps one of its positives, evenly chosen, and nothing else."""
    labels = complete(storage=storage)
    single = keep_single_positive(labels, seed=1)
    assert single.storage == storage
    codes = single.codes
    had = (labels.codes == 1).any(axis=1)
    np.testing.assert_array_equal((codes == 1).sum(axis=1), had)
    assert set(np.unique(codes)) == {-1, 1}
    assert (labels.codes[codes == 1] == 1).all()
    share = single.counts().positive / had.sum()
    assert abs(share - 0.2).max() < 0.04


@STORAGES
def test_audit(storage):
    """Counts, coverage, prevalence and a reason for each category."""
    codes = np.full((20, 6), UNKNOWN)
    codes[:10, 0] = [1] * 5 + [0] * 5
    codes[:10, 1] = [1] * 4 + [0] * 6
    codes[:10, 2] = [1] * 6 + [0] * 4
    codes[:5, 3] = 0
    codes[:5, 4] = 1
    codes[:3, 5] = UNCERTAIN
    audit = audit_labels(PartialLabels(codes, groups=[1] * 20, storage=storage))
    reasons = "ok few_positives few_negatives no_known_positive no_known_negative no_known_label"
    assert [row["reason"] for row in audit.rows] == reasons.split()
    assert audit.rows[1] == {
        "category": "1",
        "index": 1,
        "known": 10,
        "positive": 4,
        "negative": 6,
        "uncertain": 0,
        "coverage": 0.5,
        "prevalence": 0.4,
        "reason": "few_positives",
        "explanation": REASONS["few_positives"].format(few=5),
    }
    assert audit.rows[5]["prevalence"] is None
    assert audit.summary["n_rows_without_label"] == 10
    assert audit.summary["n_unknown"] == 120 - 40 - 3
    assert audit.summary["n_groups"] == 1
    assert sum(audit.summary["reasons"].values()) == 6
    assert json.loads(json.dumps(audit.to_dict(), allow_nan=False)) == audit.to_dict()
    assert audit_labels(PartialLabels(codes), few=4).rows[1]["reason"] == "ok"


@pytest.mark.parametrize(
    ("codes", "note"),
    [
        ([[-1, -2]], "nothing can be tuned"),
        ([[1, -1]], "Every known label is positive"),
        ([[0, -1]], "Every known label is negative"),
        ([[0, 1]], "No label is unknown"),
        ([[0, -2]], "1 labels are uncertain"),
        ([[0, 1], [-1, -1]], "1 of 2 rows have no known label"),
    ],
)
def test_audit_notes(codes, note):
    """What is odd about the labels as a whole is said in a sentence."""
    assert any(note in line for line in audit_labels(PartialLabels(codes)).notes)


def test_labels_without_rows_or_categories():
    """Empty labels are legal and count nothing."""
    for shape in ((0, 3), (3, 0)):
        labels = PartialLabels(np.zeros(shape, dtype=np.int8))
        assert labels.with_storage("columns") == labels
        assert audit_labels(labels).summary["coverage"] == 0.0
        assert make_targets(labels).target.shape == shape
        assert keep_single_positive(drop_uniform(labels, 0.5)).shape == shape


def test_methods_that_moved_say_so(tmp_path):
    """The deprecated methods do what the functions do, and name them."""
    labels = PartialLabels([[1, -1], [0, -2]], categories=["cat", "dog"])
    with pytest.deprecated_call(match=r"use catwise\.labels\.audit_labels"):
        assert labels.audit(few=1) == audit_labels(labels, few=1)
    with pytest.deprecated_call(match=r"use catwise\.labels\.make_targets"):
        target, weight = labels.targets()
    assert (target.tolist(), weight.tolist()) == ([[1, 0], [0, 0]], [[1, 0], [1, 0]])
    path = tmp_path / "labels.csv"
    path.write_text("cat,dog\n1,\n0,\n")
    with pytest.deprecated_call(match=r"use catwise\.data\.read_label_table"):
        read = PartialLabels.from_table(path, encoding="nan")
    assert read.codes.tolist() == [[1, -1], [0, -1]]
