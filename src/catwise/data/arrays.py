"""Labels in .npy, .npz and .safetensors files: one array of raw values, and what names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from catwise.data.files import listed, unreadable
from catwise.errors import LabelError, nearest, reason_of
from catwise.features.arrays import FileArray, list_arrays

ARRAYS: Final = (".npy", ".npz", ".safetensors")
_LABELS: Final = ("labels", "y", "targets")


class ArrayFile:
    """The arrays of a file, opened when they are asked for.

    LabelError if there is no such file, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._arrays = {one.name: one for one in list_arrays(path)}
        except OSError as error:
            raise unreadable(path, error) from error
        except ValueError as error:
            raise LabelError(f"'{path}' cannot be read.", found=reason_of(error)) from error

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def labels(self) -> FileArray:
        """The array of labels: the one that is called so, or the only one of two axes."""
        tables = [one for one in self._arrays.values() if len(one.shape) == 2]
        named = [one for one in tables if one.name in _LABELS] or tables
        if len(named) == 1:
            return named[0]
        raise LabelError(
            f"'{self.path}' does not say which array holds the labels.",
            found=", ".join(map(str, self._arrays.values())) or "no array",
            expected=f"an array of rows and categories, called {' or '.join(map(repr, _LABELS))}",
        )

    def texts(self, name: str, role: str, n: int) -> NDArray[np.str_]:
        """An array of names: (n,) texts or whole numbers."""
        if name not in self._arrays:
            raise LabelError(
                f"'{self.path}' has no array {name!r}, which should hold {role}"
                f"{nearest(name, self._arrays)}.",
                found=listed(list(self._arrays)),
            )
        values = self.open(self._arrays[name])
        if values.shape != (n,) or values.dtype.kind not in "iuUS":
            raise LabelError(
                f"the array {name!r} of '{self.path}' does not hold {role}.",
                found=f"{values.dtype} {values.shape}",
                expected=f"({n:,},) texts or whole numbers",
            )
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
        return np.array(values).astype(np.str_)

    def open(self, array: FileArray) -> Any:
        """The values of an array."""
        try:
            return np.asarray(array.open())
        except (OSError, ValueError) as error:
            raise LabelError(f"'{self.path}' cannot be read.", found=reason_of(error)) from error

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._arrays)


def is_arrays(path: Path) -> bool:
    """Whether the suffix is that of a file of arrays."""
    return path.suffix.lower() in ARRAYS


def category_texts(file: ArrayFile, n: int) -> Sequence[str] | None:
    """Names of the categories, from the array that is called so."""
    if "categories" not in file:
        return None
    return [str(name) for name in file.texts("categories", "the names of the categories", n)]
