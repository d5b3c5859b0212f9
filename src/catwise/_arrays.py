"""What may come in as an array: one answer for labels, features, heads, logits and ids.

Dense numpy arrays and torch tensors pass as they are. Lists, data frames and whatever numpy can
read become numpy arrays. What has no value in some places (masked entries), does not say what
stands there (sparse arrays), or has no plain numbers at all (quantised, nested, meta tensors) is
told apart here, so that none of it is read as numbers by accident.
"""

from __future__ import annotations

import sys
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.errors import CatwiseError, ShapeError

UNREADABLE: Final = (TypeError, ValueError, RuntimeError, OverflowError, UnicodeError)
"""What numpy and torch raise at what they cannot make an array of."""
_NOT_VALUES: Final = {
    "V": (
        "a structured array",
        "numpy.lib.recfunctions.structured_to_unstructured makes one axis of its fields",
    ),
    "M": ("dates", "leave these columns out"),
    "m": ("time differences", "leave these columns out"),
}


class Dense(NamedTuple):
    """Values, and where there are none."""

    values: Any  # numpy array or strided tensor
    masked: NDArray[np.bool_] | None  # of the same shape; None where every entry has a value


class Stored(NamedTuple):
    """The entries that a sparse array stores, those that are zero too."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[Any]
    shape: tuple[int, int]


_MASKED: Final = Dense(np.array(None), np.ones((), dtype=bool))


def is_tensor(values: object) -> bool:
    """Whether this is a torch tensor; torch is not loaded for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def is_sparse(values: Any) -> bool:
    """Whether entries that are not stored count as something; not blank ones of a sparse frame."""
    if is_tensor(values):
        return not values.is_nested and str(values.layout).startswith("torch.sparse")
    if hasattr(values, "nnz") and (hasattr(values, "toarray") or hasattr(values, "todense")):
        return True
    return any(
        str(dtype).startswith("Sparse") and dtype.fill_value == dtype.fill_value
        for dtype in _column_dtypes(values)
    )


def _column_dtypes(values: Any) -> list[Any]:
    """The dtypes of the columns of a pandas frame or series; empty for all else."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(values, (pandas.DataFrame, pandas.Series)):
        return []
    return list(values.dtypes) if isinstance(values, pandas.DataFrame) else [values.dtype]


def dense(values: Any, *, name: str, error: type[CatwiseError], numpy: bool = False) -> Any:
    """Values of which every entry is there and none masked, as a numpy array or a strided tensor.

    Tensors stay tensors unless `numpy`; all else becomes an array, or an `error` about `name`.
    """
    found = read_dense(values, name=name, error=error, numpy=numpy)
    if found.masked is not None:
        n_masked = int(np.count_nonzero(found.masked))
        first = ", ".join(map(str, np.argwhere(found.masked)[0].tolist()))
        raise error(
            f"{name} must have a value in every place.",
            found=f"{n_masked:,} of {found.masked.size:,} entries are masked, first [{first}]",
            remedy="leave these out, or give them values",
        )
    return found.values


def as_numpy(values: Any, *, name: str, error: type[CatwiseError]) -> NDArray[Any]:
    """Values as a numpy array; arguments and errors as for :func:`dense`."""
    array: NDArray[Any] = dense(values, name=name, error=error, numpy=True)
    return array


def read_dense(values: Any, *, name: str, error: type[CatwiseError], numpy: bool = False) -> Dense:
    """Values and where they are masked; arguments and errors as for :func:`dense`."""
    fault = None
    try:
        if hasattr(values, "compute") and hasattr(values, "dask"):
            values = values.compute()  # numpy's way to it would drop a mask
        fault = _fault(values)
        if fault is None:
            found = _read(values)
            if numpy and is_tensor(found.values):
                found = Dense(tensor_to_numpy(found.values), found.masked)
            fault = _not_values(found.values)
            if fault is None:
                return found
    except UNREADABLE as reason:
        if isinstance(values, (list, tuple)) and isinstance(reason, ValueError):
            raise ShapeError(f"rows of {name} differ in length.", found=str(reason)) from reason
        fault = " ".join(str(reason).split())[:200] or type(values).__name__, None
    raise error(
        f"{name} must be a dense array of plain values.",
        found=fault[0],
        expected="a numpy array, a torch tensor or nested lists of one length",
        remedy=fault[1],
    )


def _not_values(array: Any) -> tuple[str, str | None] | None:
    """What an array holds instead of numbers or texts, and what to do; None if it does not."""
    kind = getattr(array.dtype, "kind", "")
    if kind == "V" and array.dtype.names is None:
        return f"dtype {array.dtype}", None
    return _NOT_VALUES.get(kind)


def _fault(values: Any) -> tuple[str, str | None] | None:
    """What keeps an array from being read, and what to do; None if nothing is seen."""
    kind = type(values).__name__
    if is_sparse(values):
        call = ".toarray()" if hasattr(values, "toarray") else ".todense()"
        if is_tensor(values):
            call = ".to_dense()"
        elif _column_dtypes(values):
            call = ".sparse.to_dense()"
        return f"a sparse {kind}", f"{call}, if what is not stored is zero"
    return _odd_tensor(values) if is_tensor(values) else None


def _odd_tensor(tensor: Any) -> tuple[str, str | None] | None:
    """What a tensor that is not sparse has instead of plain values."""
    if tensor.is_nested:  # first: most questions are errors
        return "a nested tensor", "pool its parts to rows of one length"
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        return "a tensor without values (on the meta device)", "load it on the CPU: device='cpu'"
    if str(tensor.layout) != "torch.strided":
        return f"a tensor of the layout {tensor.layout}", ".to_dense()"
    if tensor.is_quantized:
        return f"a quantised tensor ({tensor.dtype})", ".dequantize(), or values before quantising"
    return None


def _read(values: Any) -> Dense:
    if is_tensor(values):
        return _from_tensor(values)
    if isinstance(values, np.ma.MaskedArray):
        return _with_mask(np.asarray(np.ma.getdata(values)), np.ma.getmaskarray(values))
    if isinstance(values, (list, tuple)):
        return _from_list(values)
    if isinstance(values, np.memmap):
        return Dense(values, None)  # what is mapped stays known as such
    array = _from_frame(values) if hasattr(values, "to_numpy") else np.asanyarray(values)
    if isinstance(array, np.ma.MaskedArray):  # what a lazy array gives, for one
        return _read(array)
    return _objects(np.asarray(array))


def _with_mask(values: NDArray[Any], masked: NDArray[Any]) -> Dense:
    if values.dtype.kind == "V":  # the mask of a structured array is structured too
        return Dense(values, None)
    found = _objects(values)
    masked = masked if found.masked is None else masked | found.masked
    return Dense(found.values, masked if bool(masked.any()) else None)


def _objects(values: NDArray[Any]) -> Dense:
    """An array without numpy's `masked`; floats that only a package has become float32, exactly."""
    if values.dtype.kind == "V" and values.dtype.names is None and "float" in values.dtype.name:
        return Dense(values.astype(np.float32), None)
    if values.dtype.kind != "O":
        return Dense(values, None)
    flat = [item is np.ma.masked for item in values.ravel().tolist()]
    masked = np.array(flat, dtype=bool).reshape(values.shape)
    if not masked.any():
        return Dense(values, None)
    values = values.copy()
    values[masked] = None
    return Dense(values, masked)


def _from_list(items: list[Any] | tuple[Any, ...]) -> Dense:
    """Values or rows of any kind in a list; masks and gradients inside it are seen."""
    kinds = set(map(type, items))
    if kinds and all(issubclass(kind, (list, tuple)) for kind in kinds):
        kinds = set(map(type, chain.from_iterable(items)))
    if all(map(_is_single, kinds)):
        return Dense(np.asarray(items), None)
    parts = []
    for item in items:
        if (fault := _fault(item)) is not None:
            raise TypeError(f"a row that is {fault[0]}")
        parts.append(_MASKED if item is np.ma.masked else _read(item))
    values = np.stack([tensor_to_numpy(v) if is_tensor(v) else v for v, _ in parts])
    if all(masked is None for _, masked in parts):
        return Dense(values, None)
    masks = [np.zeros(np.shape(v), dtype=bool) if m is None else m for v, m in parts]
    return Dense(values, np.stack(masks))


def _is_single(kind: type) -> bool:
    """Whether a value of this type is one entry, which numpy reads as such."""
    return issubclass(kind, (str, bytes, np.generic)) or not (
        hasattr(kind, "__array__") or hasattr(kind, "__len__")
    )


def _from_frame(frame: Any) -> NDArray[Any]:
    """A data frame's values: floats where all columns are numbers, of which some may be blank."""
    try:
        values = np.asanyarray(frame.to_numpy())
    except UNREADABLE:  # Arrow's arrays give only what needs no copy
        values = np.asanyarray(frame)
    if values.dtype.kind == "O":
        dtypes = _column_dtypes(frame)
        if dtypes and all(getattr(dtype, "kind", "O") in "iuf" for dtype in dtypes):
            values = np.asarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))
    found: NDArray[Any] = values
    return found


def _from_tensor(tensor: Any) -> Dense:
    if hasattr(tensor, "get_mask") and hasattr(tensor, "get_data"):  # torch.masked
        masked = tensor_to_numpy(tensor.get_mask().logical_not())
        return Dense(tensor.get_data(), masked if bool(masked.any()) else None)
    return Dense(tensor.detach().resolve_conj().resolve_neg(), None)


def tensor_to_numpy(tensor: Any) -> NDArray[Any]:
    """A strided tensor as a numpy array; floats that numpy has not become float32, exactly."""
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    known = (torch.float16, torch.float32, torch.float64)
    if tensor.is_floating_point() and tensor.dtype not in known:
        tensor = tensor.float()
    array: NDArray[Any] = tensor.numpy()
    return array


def stored_entries(values: Any, *, name: str, error: type[CatwiseError]) -> Stored:
    """What a sparse (N, C) array stores; entries that are stored twice come twice.

    Formats that store blocks or diagonals are refused: there a stored zero may be padding.
    """
    form = str(getattr(values, "format", getattr(values, "layout", ""))).rpartition("sparse_")[2]
    if form not in _BY_ENTRY or not (is_tensor(values) or hasattr(values, "tocoo")):
        raise error(
            f"{name} cannot be read from this sparse array.",
            found=f"{type(values).__name__} {form}".strip(),
            expected="a scipy or torch array that stores single entries: coo, csr or csc",
            remedy="convert it (a frame by .sparse.to_coo()); blocks and diagonals hold padding",
        )
    if values.ndim != 2 or (is_tensor(values) and values.dense_dim()):
        raise error(f"{name} must have two axes.", found=f"shape {tuple(values.shape)}")
    shape = int(values.shape[0]), int(values.shape[1])
    if is_tensor(values):
        coo = values.detach().cpu().to_sparse_coo()
        index, data = coo._indices().numpy(), tensor_to_numpy(coo._values())  # noqa: SLF001 - those of `indices()` need a coalesced tensor, in which what is stored twice is summed
        row, column = index
    else:
        coo = values.tocoo()
        row, column, data = coo.row, coo.col, np.asarray(coo.data)
    for at, size in zip((row, column), shape, strict=True):
        if at.size and not 0 <= int(at.min()) <= int(at.max()) < size:
            raise error(f"{name} have entries outside of their shape {shape}.")
    return Stored(row.astype(np.int64), column.astype(np.int64), data, shape)


_BY_ENTRY: Final = {"coo", "csr", "csc", "lil", "dok"}
