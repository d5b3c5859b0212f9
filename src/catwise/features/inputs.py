"""Features from arrays and files: values with, or without, the images' ids."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._text import some
from catwise.errors import ConfigError, FeatureError, FeatureStoreError, nearest, reason_of
from catwise.features.arrays import FileArray, list_arrays
from catwise.features.blocks import BLOCK_ROWS, RowBlocks, as_rows, feature_shape, forget
from catwise.features.by_category import CategoryFeatures, by_category
from catwise.features.ids import as_ids, row_index
from catwise.features.places import is_url
from catwise.features.store import open_store

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_WITH_ISFINITE: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT16_MAGNITUDE: Final = np.uint16(0x7FFF)
_SMALLEST: Final = 2.0**-102
_OUTLYING: Final = 2.0**20
_FLOAT16_EXPONENT: Final = np.uint16(0x7C00)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Rows of features and the ids of their images.

    Args:
        values: (N, D) numpy array or memmap, torch tensor, feature store, or nested lists; kept as
            it is, never copied.
        ids: (N,) different texts or whole numbers, or None: the rows are known by position.

    Raises:
        FeatureError: If the values have not two axes.
        ShapeError: If the ids are not one for each row.
        IdError: If an id is empty or a duplicate.

    >>> features = Features([[1.0, 2.0], [3.0, 4.0]], ids=["a.jpg", "b.jpg"])
    >>> features
    Features(n_rows=2, n_features=2, ids=True)
    >>> features.block(1, 2)
    array([[3., 4.]])
    """

    values: Any
    ids: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", as_rows(self.values))
        n_rows, _ = feature_shape(self.values)
        if self.ids is not None:
            object.__setattr__(self, "ids", as_ids(self.ids, n_rows))

    def __repr__(self) -> str:
        n_rows, n_features = self.shape
        return f"Features(n_rows={n_rows}, n_features={n_features}, ids={self.ids is not None})"

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return feature_shape(self.values)

    def block(self, start: int, stop: int) -> Any:
        """Rows start to stop, as the values give them: a numpy array or a tensor."""
        if isinstance(self.values, RowBlocks):
            return self.values.block(start, stop)
        return self.values[start:stop]

    def rows(self, index: Any) -> Any:
        """Copies of the rows with these numbers (K,), in that order: (K, D), array or tensor."""
        if isinstance(self.values, torch.Tensor):
            return self.values[torch.as_tensor(row_index(index), device=self.values.device)]
        index = row_index(index)
        if hasattr(self.values, "rows"):
            return self.values.rows(index)
        if isinstance(self.values, RowBlocks):
            wanted = np.arange(len(self))[index]
            parts = [self.values.block(int(i), int(i) + 1) for i in wanted]
            return np.concatenate([self.values.block(0, 0), *parts])
        return np.asarray(self.values[index])


def read_features(
    source: Any, *, key: str | None = None, ids_key: str | None = None, check: bool = True
) -> Features | CategoryFeatures:
    """Read features from a file, a feature store or an array.

    Files are memory-mapped where they are not compressed; nothing in them is executed.

    Args:
        source: a .npy, .npz or .safetensors file, a feature store's folder or URL, or features in
            memory.
        key: the array's name in an .npz or .safetensors file; needed where several may be meant. An
            array called `features` is taken without asking.
        ids_key: the name of the array of ids in such a file; one called `ids` is taken without
            asking.
        check: read all values once and refuse NaN and infinity.

    Returns:
        The features, with ids if there are any; (N, C, D) ones as `CategoryFeatures`.

    Raises:
        FeatureStoreError: If the file is missing, empty, cut short, damaged, or lacks the array.
        FeatureError: If the values are not (N, D) finite numbers.
        IdError: If an id is empty or a duplicate.
        ShapeError: If the ids are not one for each row.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/train.npz", features=np.eye(2), ids=["a.jpg", "b.jpg"])
    ...     features = read_features(f"{folder}/train.npz")
    >>> features.ids
    array(['a.jpg', 'b.jpg'], dtype='<U5')
    """
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        features = _from_path(source, key, ids_key)
    elif key is not None or ids_key is not None:
        raise ConfigError("key and ids_key name arrays of a file.", found=type(source).__name__)
    elif isinstance(source, Features):
        features = source
    else:
        features = in_memory(source)
    if check:
        check_finite(features)
    return features


def in_memory(source: Any) -> Features | CategoryFeatures:
    """Features that are not a file: with their ids, if they are rows that know them."""
    if isinstance(source, Features):
        return source
    source = as_rows(source)
    return by_category(source) or Features(source, getattr(source, "ids", None))


def _from_path(
    source: str | os.PathLike[str], key: str | None, ids_key: str | None
) -> Features | CategoryFeatures:
    path = Path(source)
    if is_url(source) or path.is_dir():
        if key is not None or ids_key is not None:
            raise ConfigError(f"'{source}' is a feature store, which has no keys.")
        store = open_store(source)
        return by_category(store) or Features(store, store.ids)
    try:
        arrays = list_arrays(path)
        chosen = _choose(path, arrays, key)
        ids = _choose_ids(path, arrays, ids_key)
        values = chosen.open()
        names = None if ids is None else np.asarray(ids.open())
    except FeatureStoreError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if 0 in chosen.shape:
        raise FeatureStoreError(f"'{path}' holds no features.", found=str(chosen))
    if len(values.shape) == 3:
        return CategoryFeatures(values, names)
    return Features(values, names)


def _unreadable(path: Path, error: OSError | ValueError) -> FeatureStoreError:
    return FeatureStoreError(
        f"cannot read features from '{path}'.",
        found=reason_of(error),
        expected="a .npy, .npz or .safetensors file, or the folder of a feature store",
        remedy="check the path; copy or extract the file again if it was cut short",
    )


def _choose(path: Path, arrays: list[FileArray], key: str | None) -> FileArray:
    """The one array that holds the features."""
    if key is not None:
        return _named(path, arrays, key)
    if len(arrays) == 1:
        return arrays[0]
    named = [array for array in arrays if array.name == "features"]
    fits = named or [a for a in arrays if len(a.shape) in {2, 3} and a.kind == "f"]
    if len(fits) == 1:
        return fits[0]
    raise FeatureStoreError(
        f"it is not clear which array of '{path}' holds the features.",
        found=_show(fits or arrays),
        expected="one floating-point array of shape (N, D) or (N, C, D), or one called 'features'",
        remedy=f"name it with key={fits[0].name!r} or another" if fits else None,
    )


def _choose_ids(path: Path, arrays: list[FileArray], ids_key: str | None) -> FileArray | None:
    found = None
    if ids_key is not None:
        found = _named(path, arrays, ids_key)
    elif len(arrays) > 1:
        found = next((array for array in arrays if array.name == "ids"), None)
    if found is not None and found.kind not in "USiu":
        raise FeatureStoreError(
            f"the ids in '{path}' are neither texts nor whole numbers.",
            found=str(found),
            remedy="save them as plain texts: numpy.asarray(ids, dtype=str)",
        )
    return found


def _named(path: Path, arrays: list[FileArray], key: str) -> FileArray:
    for array in arrays:
        if array.name == key:
            return array
    raise FeatureStoreError(
        f"'{path}' has no array {key!r}{nearest(key, [array.name for array in arrays])}.",
        found=_show(arrays),
    )


def _show(arrays: list[FileArray]) -> str:
    return some([str(array) for array in arrays], sep="; ") or "no array"


def check_finite(
    features: Any,
    *,
    name: str = "features",
    first_row: int = 0,
    block_rows: int = BLOCK_ROWS,
    for_fitting: bool = False,
) -> None:
    """Refuse NaN, infinity, and numbers that float32 cannot hold.

    All values are read once, in bounded memory.

    Args:
        features: (N, D) features of any kind.
        name: what to call them in the error.
        first_row: the number of the first row, in the error.
        block_rows: rows at a time.
        for_fitting: refuse also what a fit in float32 cannot use: features all of which are under
            2⁻¹⁰², where digits are lost, and a row whose largest value is over 2²⁰ times that of
            the middle row, beside which the others vanish.

    Raises:
        FeatureError: If a value is not finite; names the first such row, by its id if it has one.

    >>> check_finite([[1.0], [float("nan")]])
    Traceback (most recent call last):
    catwise.errors.FeatureError: features must be finite.
      found:    1 row with NaN or infinite values; the first is row 1, column 0 (nan)
      ...
    """
    features = in_memory(features)
    n_rows, _ = features.shape
    block_rows = min(block_rows, getattr(features, "block_rows", block_rows))
    n_bad, first = 0, ""
    sizes: list[NDArray[np.float64]] = []

    def named(row: int) -> str:
        return f"row {first_row + row:,}" + (
            "" if features.ids is None else f" ({str(features.ids[row])!r})"
        )

    for start in range(0, n_rows, block_rows):
        rows = features.block(start, min(start + block_rows, n_rows))
        bad = _not_finite(rows)
        if bad is None:
            if for_fitting:
                sizes.append(_row_sizes(rows))
            forget(rows)
            continue
        where = bad.any(1).nonzero()[0]
        if not n_bad:
            row = int(where[0])
            column = int(bad[row].nonzero()[0][0])
            value = float(rows[row][column])
            first = f"{named(start + row)}, column {column:,} ({value:g})"
        n_bad += len(where)
    if n_bad:
        noun = "row" if n_bad == 1 else "rows"
        raise FeatureError(
            f"{name} must be finite.",
            found=f"{n_bad:,} {noun} with NaN or infinite values; the first is {first}",
            expected="numbers that float32 can hold",
            remedy="extract these images again (half precision overflows at 65,504), "
            "or leave them out",
        )
    if sizes:
        _check_sizes(np.concatenate(sizes), name, named)


def _row_sizes(rows: Any) -> NDArray[np.float64]:
    """(n,) largest magnitude of each row."""
    largest: NDArray[np.float64]
    if isinstance(rows, torch.Tensor):
        largest = rows.detach().abs().amax(1).double().cpu().numpy()
        return largest
    rows = np.asarray(rows)
    if rows.dtype == np.float16 and rows.dtype.isnative:  # in the order of their bits
        bits = (rows.view(np.uint16) & _FLOAT16_MAGNITUDE).max(1)
        largest = bits.view(np.float16).astype(np.float64)
        return largest
    largest = np.maximum(rows.max(1).astype(np.float64), -rows.min(1).astype(np.float64))
    return largest


def _check_sizes(sizes: NDArray[np.float64], name: str, named: Callable[[int], str]) -> None:
    """Refuse rows of magnitudes that no fit in float32 can use together."""
    largest, some = int(sizes.argmax()), sizes[sizes > 0]
    if some.size and sizes[largest] < _SMALLEST:
        raise FeatureError(
            f"{name} are too small.",
            found=f"the largest value is {sizes[largest]:.3g}",
            expected=f"values that float32 holds with all their digits: {_SMALLEST:.0e} and more",
            remedy="multiply features by a power of ten and divide the head's weights by it",
        )
    if some.size and sizes[largest] > _OUTLYING * (middle := float(np.median(some))):
        raise FeatureError(
            f"{name}: beside one row the others vanish.",
            found=f"{named(largest)} has a value of {sizes[largest]:.3g}; the largest value of the "
            f"middle row is {middle:.3g}",
            expected=f"rows within {_OUTLYING:,.0f} times of one another",
            remedy="extract this image again, or leave it out",
        )


def _not_finite(rows: Any) -> NDArray[np.bool_] | None:
    """Which values of a block float32 cannot hold; None if there are none."""
    rows = as_rows(rows)
    if isinstance(rows, torch.Tensor):
        rows = rows if rows.dtype in _WITH_ISFINITE else rows.float()
        within = rows.abs() <= _FLOAT32_MAX if rows.dtype == torch.float64 else rows.isfinite()
        return None if bool(within.all()) else within.logical_not().cpu().numpy()
    if rows.dtype.kind != "f":
        return None
    if rows.dtype == np.float16 and rows.dtype.isnative:
        bad = (rows.view(np.uint16) & _FLOAT16_EXPONENT) == _FLOAT16_EXPONENT
    elif rows.dtype.itemsize > 4:
        bad = ~(np.abs(rows) <= _FLOAT32_MAX)
    else:
        bad = ~np.isfinite(rows)
    return bad if bool(bad.any()) else None
