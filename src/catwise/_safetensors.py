"""Safetensors files at the level of bytes: where each tensor lies, and a deterministic writer.

The format: eight bytes with the length of the header (little-endian), a JSON header that names each
tensor's dtype, shape and byte range, then the tensors' bytes, row-major and little-endian.

Source: https://github.com/huggingface/safetensors, README, section "Format".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from catwise._json import parse
from catwise._limits import MAX_HEADER, check_memory, check_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

ITEM_SIZES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
NUMPY_DTYPES: Final = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2",
    "I32": "<i4", "U32": "<u4", "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorRange:
    """One tensor of a file: `start` and `stop` are byte positions in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """What a file's header says, checked against the file's size."""

    tensors: tuple[TensorRange, ...]
    metadata: dict[str, str]


def read_layout(path: Path) -> FileLayout:
    """Read and check a file's header; no tensor is read. ValueError says what is wrong."""
    size = path.stat().st_size
    if size == 0:
        raise ValueError("the file is empty")
    with path.open("rb") as stream:
        head = stream.read(8)
        if len(head) < 8:
            raise ValueError("the file is shorter than its first eight bytes")
        (length,) = struct.unpack("<Q", head)
        if length > MAX_HEADER or 8 + length > size:
            raise ValueError(f"the header should be {length:,} bytes; the file has {size:,}")
        raw = stream.read(length)
    header = _parse_json(raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("the metadata is not a table of texts")
    base = 8 + length
    tensors = sorted(
        (_tensor(name, entry, base) for name, entry in header.items()),
        key=lambda tensor: (tensor.start, tensor.stop),
    )
    _check_cover(tensors, base, size)
    return FileLayout(tuple(tensors), metadata)


def read_arrays(path: Path, layout: FileLayout) -> dict[str, NDArray[Any]]:
    """The tensors that numpy has a dtype for, as arrays in memory."""
    import numpy as np

    found = {}
    with path.open("rb") as stream:
        for tensor in layout.tensors:
            if tensor.dtype in NUMPY_DTYPES:
                stream.seek(tensor.start)
                check_memory(tensor.stop - tensor.start, f"the tensor {tensor.name!r}")
                raw = stream.read(tensor.stop - tensor.start)
                values = np.frombuffer(bytearray(raw), NUMPY_DTYPES[tensor.dtype])
                found[tensor.name] = values.reshape(tensor.shape)
    return found


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("the header names a tensor twice")
    return table


def _parse_json(raw: bytes) -> dict[str, object]:
    try:
        header = parse(raw, object_pairs_hook=_no_duplicates)
    except ValueError as error:
        raise ValueError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON table")  # noqa: TRY004  # a fact of the file
    return header


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _tensor(name: str, entry: object, base: int) -> TensorRange:
    if not isinstance(entry, dict):
        raise ValueError(f"tensor {name!r} has no table of its own")  # noqa: TRY004  # as above
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not _is_sizes(shape) or not _is_sizes(offsets) or not isinstance(dtype, str):
        raise ValueError(f"tensor {name!r} lacks a dtype, shape or byte range")
    shape, offsets = cast("list[int]", shape), cast("list[int]", offsets)
    if len(offsets) != 2 or offsets[1] < offsets[0]:
        raise ValueError(f"tensor {name!r} has the byte range {offsets}")
    start, stop = offsets
    check_shape(shape, f"tensor {name!r}")
    if dtype in ITEM_SIZES and math.prod(shape) * ITEM_SIZES[dtype] != stop - start:
        raise ValueError(f"tensor {name!r} of shape {tuple(shape)} takes {stop - start:,} bytes")
    return TensorRange(name, dtype, tuple(shape), base + start, base + stop)


def _check_cover(tensors: list[TensorRange], base: int, size: int) -> None:
    """The tensors must follow one another from the header to the end of the file."""
    position = base
    for tensor in tensors:
        if tensor.start < position:
            raise ValueError(f"tensor {tensor.name!r} overlaps another one")
        if tensor.start > position:
            raise ValueError(f"there are unused bytes before tensor {tensor.name!r}")
        position = tensor.stop
    if position != size:
        state = "cut short" if position > size else "longer than its header says"
        raise ValueError(f"the file is {state}: {size:,} bytes, {position:,} expected")


def build(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str]
) -> bytes:
    """Return a safetensors file as bytes; equal content gives equal bytes.

    A tensor is its dtype's name, its shape, and its row-major little-endian bytes.
    """
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    order = sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name][0]], name))
    for name in order:
        dtype, shape, data = tensors[name]
        offsets = [position, position + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        position += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[name][2] for name in order)])
