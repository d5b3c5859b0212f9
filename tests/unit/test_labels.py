"""PartialLabels, encodings, policies, dropping and the audit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from catwise.errors import CategoryError, ConfigError, IdError, LabelError, ShapeError
from catwise.labels import ENCODINGS, UNCERTAIN, UNKNOWN, Encoding, PartialLabels, fitting_encodings

CODES = np.array(
    [[1, -1, 0], [0, -2, 1], [-1, 1, 0], [-1, -1, -1], [1, 0, -2]],
    dtype=np.int8,
)
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
    with pytest.raises(ConfigError, match="no such storage"):
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
    with pytest.raises(IdError, match="'a' in rows 0 and 4"):
        PartialLabels(CODES, ids=list("abcda"))
    with pytest.raises(IdError, match="blank"):
        PartialLabels(CODES, groups=["1", "", "2", "3", "4"])
    with pytest.raises(IdError, match="texts or whole numbers"):
        PartialLabels(CODES, ids=[1.5, 2, 3, 4, 5])
    with pytest.raises(IdError, match="None"):
        PartialLabels(CODES, ids=["a", None, "c", "d", "e"])
    with pytest.raises(CategoryError, match="columns 0 and 2"):
        PartialLabels(CODES, categories=["a", "b", "a"])
    with pytest.raises(CategoryError, match="several names"):
        PartialLabels(CODES, categories="abc")
    with pytest.raises(ShapeError, match="categories do not fit"):
        PartialLabels(CODES, categories=["a"])
