"""What may come in as an array: labels, features, heads, logits and ids, each right or refused."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import sparse

from catwise import Head, PartialLabels, read_head
from catwise._device import resolve_device
from catwise.errors import (
    CatwiseError,
    ConfigError,
    FeatureError,
    HeadError,
    IdError,
    LabelError,
    ShapeError,
)
from catwise.features import Features, check_finite
from catwise.joining import aligned_features
from catwise.labels.encodings import Encoding
from catwise.metrics import average_precision

MASK = [[False, True], [False, False]]
INTEGERS = np.array([[1, 0], [0, 1]])
LOOSE = -np.eye(2)[::-1, ::-1]


def masked(dtype: Any, **options: Any) -> Any:
    return np.ma.array(INTEGERS, mask=MASK, dtype=dtype, **options)


def objects() -> Any:
    array = np.array([[1, np.ma.masked], [0, 1]], dtype=object)
    assert array[0, 1] is np.ma.masked
    return array


class TorchMasked(torch.Tensor):
    """As `torch.masked.MaskedTensor`, which takes seconds to load."""

    def get_mask(self) -> torch.Tensor:
        return torch.tensor(MASK).logical_not()

    def get_data(self) -> torch.Tensor:
        return torch.tensor(INTEGERS * 1.0)


class Lazy:
    """As dask: numpy's way to it drops the mask."""

    dask = "graph"
    dtype = np.dtype(float)

    def __init__(self, values: Any) -> None:
        self.values, self.shape = values, values.shape

    def __getitem__(self, key: Any) -> Lazy:
        return Lazy(self.values[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self.values)

    def compute(self) -> Any:
        return self.values


class Sliced:
    """As HDF5: slices only."""

    def __init__(self, values: Any) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, key: slice) -> Any:
        assert isinstance(key, slice)
        return self.values[key]


MASKED = [
    masked(int),
    masked(np.uint8),
    masked(float, hard_mask=True),
    masked(bool),
    masked(object),
    masked("U1"),
    objects(),
    np.ma.array([[1, 7], [0, 1]], mask=MASK),
    [[1, np.ma.masked], [0, 1]],
    [np.ma.array([1, 0], mask=[False, True]), [0, 1]],
    Lazy(masked(int)),
]


@pytest.mark.parametrize("y", MASKED, ids=lambda y: f"{type(y).__name__} {getattr(y, 'dtype', '')}")
def test_masked_labels_are_unknown(y: Any) -> None:
    """A masked entry is unknown, whatever lies under the mask and however it is masked."""
    labels = PartialLabels.from_array(y, encoding="minus_one_unknown")
    assert labels.codes.tolist() == [[1, -1], [0, 1]]


def test_masked_codes_are_unknown() -> None:
    """So they are where an array holds catwise's own codes, and where columns are given."""
    assert PartialLabels(masked(np.uint8)).codes.tolist() == [[1, -1], [0, 1]]
    given = torch.tensor(INTEGERS).as_subclass(TorchMasked)
    assert PartialLabels(given).codes.tolist() == [[1, -1], [0, 1]]
    scores = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert average_precision(scores, masked(int)).isnan().tolist() == [False, True]


def test_a_mask_without_masked_entries_changes_nothing() -> None:
    """No mask, a mask of False and a shrunk one are as a plain array."""
    for array in (np.ma.array(INTEGERS), np.ma.array(INTEGERS, mask=False, shrink=False)):
        assert PartialLabels(array).codes.tolist() == INTEGERS.tolist()
        assert type(Features(array).values) is np.ndarray


def test_masked_where_nothing_is_unknown() -> None:
    """An encoding without unknown labels has no place for masked ones."""
    for encoding in ("complete", Encoding("own", "", ((1.0, 1), (0.0, 0), (None, 0)))):
        with pytest.raises(LabelError, match=r"blank in row 0, column 1(.|\n)*encoding='nan'"):
            PartialLabels.from_array(masked(int), encoding=encoding)


@pytest.mark.parametrize("values", [masked(float), Lazy(masked(float)), [masked(float)[0]]])
def test_masked_numbers_are_refused(values: Any) -> None:
    """Features, heads and logits must have a value everywhere."""
    with pytest.raises(FeatureError, match="entries are masked"):
        check_finite(values)
    with pytest.raises(HeadError, match="entries are masked"):
        Head(values)
    with pytest.raises(FeatureError, match="logits must have a value in every place"):
        average_precision(values, np.ones((len(np.asarray(values)), 2), dtype=np.int8))
    with pytest.raises(IdError, match=r"1 of 2 entries are masked, first \[1\]"):
        PartialLabels([[1], [0]], ids=np.ma.array(["a", "b"], mask=[False, True]))
    with pytest.raises(IdError, match="masked"):
        Features(np.eye(2), ids=["a", np.ma.masked])


SPARSE = [
    sparse.coo_array,
    sparse.csr_array,
    sparse.csc_matrix,
    sparse.lil_array,
    sparse.dok_array,
    lambda y: torch.tensor(y).to_sparse_coo(),
    lambda y: torch.tensor(y).to_sparse_csr(),
    lambda y: torch.tensor(y).to_sparse_csc(),
]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("make", SPARSE)
def test_sparse_labels(make: Any) -> None:
    """What a sparse array does not store is what is said, and nothing unless it is said."""
    y = make(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    with pytest.raises(LabelError, match="others='unknown' or others='negative'"):
        PartialLabels.from_array(y, encoding="nan")
    found = PartialLabels.from_array(y, encoding="nan", others="unknown", categories=list("abc"))
    assert found.codes.tolist() == [[1, -1, -1], [-1, -1, 1]]
    assert found.categories == ("a", "b", "c")
    found = PartialLabels.from_array(y, encoding="nan", others="negative")
    assert found.codes.tolist() == [[1, 0, 0], [0, 0, 1]]
    for use in (Features, PartialLabels, Head):
        with pytest.raises(CatwiseError, match="a sparse"):
            use(y)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_stored_zeros_and_what_is_stored_twice() -> None:
    """A zero that is stored is a label; two labels of one entry are not added up."""
    y = sparse.coo_array(([1, 0], ([0, 0], [0, 1])), shape=(2, 2))
    found = PartialLabels.from_array(y, encoding="nan", others="unknown")
    assert found.codes.tolist() == [[1, 0], [-1, -1]]
    y = sparse.coo_array(([1, -1], ([0, 0], [1, 1])), shape=(2, 2))
    with pytest.raises(LabelError, match="category 1 has two labels for one row"):
        PartialLabels.from_array(y, encoding="minus_one_unknown", others="unknown")
    y = torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 1.0], (2, 2))
    with pytest.raises(LabelError, match="two labels for one row"):
        PartialLabels.from_array(y, encoding="nan", others="negative")
    for padded in (sparse.bsr_array(np.eye(2)), sparse.dia_array(np.eye(2))):
        with pytest.raises(LabelError, match="hold padding"):
            PartialLabels.from_array(padded, encoding="nan", others="unknown")
    with pytest.raises(ConfigError, match="belongs to sparse"):
        PartialLabels.from_array([[1]], encoding="nan", others="unknown")


def nested() -> Any:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


NO_VALUES = [
    (lambda: torch.empty(2, 2, device="meta"), "on the meta device"),
    (lambda: torch.quantize_per_tensor(torch.eye(2), 1.0, 0, torch.quint8), "quantised"),
    (nested, "nested"),
    (lambda: torch.eye(2).to_mkldnn(), "of the layout torch._mkldnn"),
    (lambda: np.array([(1, 0)], dtype=[("a", int), ("b", int)]), "structured"),
    (lambda: np.ma.array([(1, 0)], dtype=[("a", int), ("b", int)], mask=[(0, 1)]), "structured"),
    (lambda: np.array([[1, 0]], dtype="M8[ns]"), "dates"),
    (lambda: np.array([[1, 0]], dtype="m8[ns]"), "time differences"),
    (lambda: [[1], [1, 0]], "differ in length"),
    (lambda: [torch.ones(1), torch.ones(2)], "differ in length"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "words"), NO_VALUES, ids=[words for _, words in NO_VALUES])
def test_no_plain_values(make: Any, words: str) -> None:
    """What is no array of plain values is refused alike wherever an array may be given."""
    for use in (
        lambda y: PartialLabels.from_array(y, encoding="nan"),
        PartialLabels,
        Features,
        Head,
        lambda y: average_precision(y, np.ones((2, 2), dtype=np.int8)),
        lambda y: average_precision(np.ones((2, 2)), y),
    ):
        with pytest.raises(CatwiseError, match=words):
            use(make())


READ = [
    (torch.tensor([[1.0, 0.0]], requires_grad=True), [[1, 0]]),
    ([torch.ones(2, requires_grad=True), torch.zeros(2)], [[1, 1], [0, 0]]),
    ([[torch.tensor(1.0), torch.tensor(0.0)]], [[1, 0]]),
    (torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), [[1, 0]]),
    (torch.tensor([[1.0, 0.0]]).to(torch.float8_e4m3fn), [[1, 0]]),
    (torch.tensor([[1 - 1j, 1 + 0j]]).conj().imag, [[1, 0]]),
    (np.matrix([[1, 0]]), [[1, 0]]),
    (np.array([[1, 0]], dtype=">i4"), [[1, 0]]),
    (np.array([[1, np.nan]], dtype=">f2"), [[1, -1]]),
    (LOOSE * -1, [[1, 0], [0, 1]]),
    (np.array([[True, None]]), [[1, -1]]),
    ([[decimal.Decimal(1), None]], [[1, -1]]),
    ([[-0.0, 1]], [[0, 1]]),
    (np.array([[b"1", b""]]), [[1, -1]]),
    (memoryview(np.array([[1, 0]])), [[1, 0]]),
    ([range(2)], [[0, 1]]),
    (pa.table({"a": [1, None], "b": [0, 1]}), [[1, 0], [-1, 1]]),
    (Lazy(np.eye(2)), [[1, 0], [0, 1]]),
]


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize(("y", "codes"), READ, ids=lambda y: type(y).__name__)
def test_labels_that_are_read(y: Any, codes: list[list[int]]) -> None:
    """Gradients, byte orders, strides, tables and odd containers make no difference."""
    assert PartialLabels.from_array(y, encoding="nan").codes.tolist() == codes


REFUSED = [
    (np.array([[1, 255]], dtype=np.uint8), r"y.view\('int8'\)"),
    ([[1, 2**70]], "or correct them"),
    ([[0.5, 1]], "0.5 in row 0"),
    (np.array([[1 + 5j]]), r"\(1\+5j\)"),
    (np.array([[np.complex128(1 + 5j)]], dtype=object), r"\(1\+5j\)"),
    (np.array([[np.timedelta64(1, "ns")]], dtype=object), "1 nanoseconds"),
    (np.array([[b"\xff"]]), "xff"),
]


@pytest.mark.parametrize(("y", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_labels_that_are_refused(y: Any, words: str) -> None:
    """A value that an encoding does not know is never made one that it does."""
    with pytest.raises(LabelError, match=words):
        PartialLabels.from_array(y, encoding="minus_one_unknown")


def test_columns_of_an_arrow_table() -> None:
    """The names of its columns are the categories."""
    table = pa.table({"cat": [1, None]})
    assert PartialLabels.from_array(table, encoding="nan").categories == ("cat",)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float8_e4m3fn])
def test_features_in_eight_bits(dtype: torch.dtype) -> None:
    """They widen exactly, and NaN among them is found."""
    check_finite(torch.eye(2).to(dtype))
    assert Head(np.eye(2)).logits(torch.eye(2).to(dtype)).tolist() == np.eye(2).tolist()
    with pytest.raises(FeatureError, match="row 1, column 0"):
        check_finite(torch.tensor([[1.0], [float("nan")]]).to(dtype))


def test_features_that_are_sliced() -> None:
    """What gives rows when it is sliced is read block by block, in any order of rows."""
    values = np.arange(8.0).reshape(4, 2)
    assert Features(Sliced(values)).rows([3, 1, 1]).tolist() == values[[3, 1, 1]].tolist()
    assert Features(Sliced(values)).rows(values[:, 0] > 3).tolist() == values[2:].tolist()
    index = np.array([3, 0])
    assert aligned_features(Sliced(values), index).block(0, 2).tolist() == values[index].tolist()
    assert Head(np.eye(2)).logits(Lazy(values)).tolist() == values.tolist()
    for wrong in (Sliced(np.array([["a"]])), Sliced(np.ones((1, 2), dtype=bool))):
        with pytest.raises(FeatureError, match="real numbers"):
            Features(wrong)


def test_logits_of_any_kind() -> None:
    """Byte order, width and eight bits do not matter to a metric; texts and complex ones do."""
    codes = np.array([[1], [0]], dtype=np.int8)
    for dtype in (">f8", np.longdouble, "f2"):
        assert average_precision(np.array([[1.0], [0.0]], dtype=dtype), codes).tolist() == [1.0]
    eight = torch.tensor([[1.0], [0.0]]).to(torch.float8_e4m3fn)
    assert average_precision(eight, codes).tolist() == [1.0]
    for wrong in (torch.ones(2, 1, dtype=torch.cfloat), np.array([["a"], ["b"]])):
        with pytest.raises(FeatureError, match="logits must be real numbers"):
            average_precision(wrong, codes)


def test_data_frames() -> None:
    """Nullable, categorical and sparse columns; a column called ids is no ids."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "cat": pd.array([1, None], dtype="Int8"),
            "dog": [0.0, 1.0],
            "cow": pd.array([True, None], dtype="boolean"),
            "owl": pd.Categorical([1, None]),
            "elk": pd.arrays.SparseArray([1.0, np.nan]),
        }
    )
    labels = PartialLabels.from_array(frame, encoding="nan")
    assert labels.codes.tolist() == [[1, 0, 1, 1, 1], [-1, 1, -1, -1, -1]]
    zeros = pd.DataFrame({"cat": pd.arrays.SparseArray([1, 0], fill_value=0)})
    with pytest.raises(LabelError, match="entries mean that are not stored"):
        PartialLabels.from_array(zeros, encoding="nan")
    numbers = pd.DataFrame({"ids": pd.array([1.0, 2.0], dtype="Float32"), "b": [3, 4]})
    features = Features(numbers)
    assert (features.ids, features.rows([1]).tolist()) == (None, [[2.0, 4.0]])
    with pytest.raises(FeatureError, match="real numbers"):
        Features(pd.DataFrame({"id": ["a"], "x": [1.0]}))


def test_ids_from_arrow_and_a_masked_choice_of_rows() -> None:
    """Arrow's texts are ids; a masked row number is no row."""
    assert Features(np.eye(2), ids=pa.array(["a", "b"])).ids.tolist() == ["a", "b"]
    with pytest.raises(ShapeError, match="masked"):
        PartialLabels([[1], [0]]).take_rows(np.ma.array([0, 1], mask=[False, True]))


@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_of_a_state_dict() -> None:
    """They are no head; beside one they do no harm to the search."""
    with pytest.raises(HeadError):
        read_head({"fc.weight": nested()})
    for odd in (
        torch.empty(2, 2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.eye(2).to_mkldnn(),
    ):
        with pytest.raises(HeadError, match="fc"):
            read_head({"fc.weight": odd})


def test_the_meta_device_is_refused() -> None:
    """It holds shapes and no numbers."""
    with pytest.raises(ConfigError, match="'meta' cannot be used"):
        resolve_device("meta")
