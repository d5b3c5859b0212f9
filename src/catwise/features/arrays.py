"""Arrays inside .npy, .npz and .safetensors files: what they are, mapped rather than read."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._limits import MAX_NPY_HEADER, check_at_most, check_shape
from catwise._safetensors import NUMPY_DTYPES, read_layout
from catwise._zip import DAMAGE, data_start, members, open_zip

_NO_HEADER: Final = (SyntaxError, TypeError, RecursionError, MemoryError, OverflowError)
_NPY: Final = b"\x93NUMPY"
_ZIP: Final = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class FileArray:
    """One array of a file. `start` is None where its bytes are compressed."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int | None
    fortran: bool = False

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} {self.shape}"

    @property
    def kind(self) -> str:
        """The letter that numpy has for it: 'f' for floats, bfloat16 too."""
        return "f" if self.dtype == "BF16" else np.dtype(self.dtype).kind

    def open(self) -> Any:
        """The array: mapped, read-only; read where it is compressed; rows for bfloat16."""
        if self.kind not in "fiuUS":  # an array of objects would be pointers out of the file
            raise ValueError(f"the array {self} holds neither numbers nor texts")
        if self.start is None:
            return _decompress(self.path, self.name)
        dtype = np.dtype("<u2") if self.dtype == "BF16" else np.dtype(self.dtype)
        if 0 in self.shape:
            values: NDArray[Any] = np.empty(self.shape, dtype)
        else:
            order: Any = "F" if self.fortran else "C"
            values = np.memmap(self.path, dtype, "r", self.start, self.shape, order)
        return BFloat16Rows(values) if self.dtype == "BF16" else values


class BFloat16Rows:
    """Rows of bfloat16 numbers, whose `bits` are (N, D) uint16: given as float32, exactly."""

    __slots__ = ("bits",)

    def __init__(self, bits: NDArray[np.uint16]) -> None:
        self.bits = bits

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        return self.bits.shape

    @property
    def dtype(self) -> str:
        """``"bfloat16"``."""
        return "bfloat16"

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start to stop, widened."""
        return widen_bfloat16(self.bits[start:stop])

    def rows(self, index: Any) -> NDArray[np.float32]:
        """The rows with these numbers, widened."""
        return widen_bfloat16(self.bits[index])


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 numbers whose upper halves are given."""
    wide: NDArray[np.uint32] = bits.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def bfloat16_bits(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of float32 numbers rounded to bfloat16, halves to even."""
    rounded = torch.from_numpy(np.ascontiguousarray(rows)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16)


def list_arrays(path: Path) -> list[FileArray]:
    """What arrays a .npy, .npz or .safetensors file holds; only headers are read, none is run."""
    with path.open("rb") as stream:
        head = stream.read(9)
    if not head:
        raise ValueError("the file is empty")
    try:
        if head.startswith(_NPY):
            return _npy(path)
        if head.startswith(_ZIP):
            return _npz(path)
        if head[8:] == b"{" or path.suffix == ".safetensors":
            return _safetensors(path)
    except DAMAGE as error:
        raise ValueError(f"the file is damaged or cut short ({error})") from error
    raise ValueError("it is not a .npy, .npz or .safetensors file")


def _header(stream: BinaryIO | Any) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order and dtype in a .npy header, and how many bytes it has."""
    version = np.lib.format.read_magic(stream)
    width = 2 if version == (1, 0) else 4
    size = stream.read(width)
    length = int.from_bytes(size, "little")
    check_at_most(length, MAX_NPY_HEADER, "bytes of its header")
    text = BytesIO(size + stream.read(length))
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(text)
    except (*_NO_HEADER, TokenError) as error:
        raise ValueError(f"its header is not one ({type(error).__name__}: {error})") from error
    return check_shape(shape), bool(fortran), dtype, 8 + width + length


def _described(path: Path, name: str, stream: Any, size: int, start: int | None) -> FileArray:
    """The array that a header describes, which with the array is `size` bytes."""
    shape, fortran, dtype, length = _header(stream)
    expected = length + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and size != expected:
        what = f"the array {name!r}" if name else "the file"
        state = "cut short" if size < expected else "longer than its header says"
        raise ValueError(f"{what} is {state}: {size:,} bytes, {expected:,} expected")
    place = None if start is None else start + length
    return FileArray(path, name, dtype.str, shape, place, fortran)


def _npy(path: Path) -> list[FileArray]:
    with path.open("rb") as stream:
        return [_described(path, "", stream, path.stat().st_size, 0)]


def _npz(path: Path) -> list[FileArray]:
    arrays = []
    with open_zip(path) as archive, path.open("rb") as file:
        for info in members(archive, path).values():
            if not info.filename.endswith(".npy"):
                continue
            stored = info.compress_type == zipfile.ZIP_STORED
            start = data_start(file, info) if stored else None
            with archive.open(info) as stream:
                name = info.filename.removesuffix(".npy")
                arrays.append(_described(path, name, stream, info.file_size, start))
    return arrays


def _decompress(path: Path, name: str) -> NDArray[np.generic]:
    try:
        with open_zip(path) as archive, archive.open(f"{name}.npy") as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
    except (*DAMAGE, MemoryError) as error:
        raise ValueError(f"array {name!r} is damaged or cut short ({error})") from error


def _safetensors(path: Path) -> list[FileArray]:
    return [
        FileArray(path, tensor.name, dtype, tensor.shape, tensor.start)
        for tensor in read_layout(path).tensors
        if (dtype := NUMPY_DTYPES.get(tensor.dtype, tensor.dtype)) in _NUMBERS
    ]


_NUMBERS: Final = {*NUMPY_DTYPES.values(), "BF16"}
