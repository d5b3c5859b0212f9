"""Values as bytes: arrays and tensors lie beside the pickle, so that they are read where they are.

What is packed goes between processes of one user's own program. It is read back by whoever
was given it, and from nowhere else.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from torch import Tensor

from catwise.errors import ConfigError, reason_of

_LENGTHS: Final = struct.Struct("<QQ")
_ALIGNED: Final = 64  # as torch and numpy lay out their own
_SMALL: Final = 1 << 10


class _Packer(pickle.Pickler):
    """Writes arrays into a stream, and their places into the pickle."""

    def __init__(self, text: IO[bytes], stream: IO[bytes]) -> None:
        super().__init__(text, protocol=5)
        self._stream, self.at = stream, 0
        self._places: dict[int, tuple[Any, Any]] = {}  # with what has that id, so that it stays

    def persistent_id(self, value: Any) -> Any:
        """Where the numbers of a tensor or array are; None for all else."""
        if type(value) is Tensor:
            if not _is_plain(value):
                return None
            kind, raw = value.dtype, value.detach().reshape(-1).view(torch.uint8).numpy()
        elif type(value) in (np.ndarray, np.memmap):
            if value.dtype.hasobject or value.nbytes < _SMALL or not value.flags.c_contiguous:
                return None
            kind, raw = value.dtype, np.asarray(value).reshape(-1).view(np.uint8)
        else:
            return None
        if id(value) not in self._places:
            place = self._written(raw.data), kind, tuple(value.shape)
            self._places[id(value)] = place, value
        return self._places[id(value)][0]

    def _written(self, raw: memoryview) -> int:
        self.at += self._stream.write(bytes(-self.at % _ALIGNED))
        start = self.at
        self.at += self._stream.write(raw)
        return start


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is its numbers and nothing else."""
    plain = value.device.type == "cpu" and value.layout == torch.strided
    plain = plain and not (value.requires_grad or value.is_quantized or value.is_conj())
    plain = plain and not (value.is_complex() or value.is_neg())
    return plain and value.is_contiguous() and value.numel() * value.itemsize >= _SMALL


class _Unpacker(pickle.Unpickler):
    def __init__(self, text: memoryview, numbers: memoryview) -> None:
        super().__init__(io.BytesIO(text))
        self._numbers = numbers

    def persistent_load(self, place: Any) -> Any:
        """A tensor or array on the numbers that are there, without a copy."""
        start, kind, shape = place
        count = int(np.prod(shape, dtype=np.int64))
        if isinstance(kind, torch.dtype):
            found = torch.frombuffer(self._numbers, dtype=kind, count=count, offset=start)
            return found.reshape(shape)
        flat = np.frombuffer(self._numbers, dtype=kind, count=count, offset=start)
        return flat.reshape(shape)


def write_packed(value: Any, stream: IO[bytes]) -> None:
    """Pack a value into a stream: numbers, pickle, and the lengths of both.

    Raises:
        ConfigError: If it cannot be pickled.
    """
    text = io.BytesIO()
    packer = _Packer(text, stream)
    try:
        packer.dump(value)
    except (pickle.PicklingError, TypeError, AttributeError, NotImplementedError) as error:
        raise ConfigError(
            "the work cannot be sent to other processes.",
            found=reason_of(error, named=True),
            remedy="define what it uses at the top of a module, or work without an engine",
        ) from error
    stream.write(text.getbuffer())
    stream.write(_LENGTHS.pack(packer.at, text.getbuffer().nbytes))


def pack(value: Any) -> bytes:
    """A value as bytes; ConfigError if it cannot be pickled.

    >>> unpack(pack({"a": np.arange(200)}))["a"][-1]
    np.int64(199)
    """
    stream = io.BytesIO()
    write_packed(value, stream)
    return stream.getvalue()


def unpack(raw: bytes | mmap.mmap) -> Any:
    """The value; its arrays lie in a copy of the bytes, or in the mapped file itself."""
    whole = memoryview(bytearray(raw) if isinstance(raw, bytes) else raw)
    numbers, text = _LENGTHS.unpack(whole[-_LENGTHS.size :])
    return _Unpacker(whole[numbers : numbers + text], whole[:numbers]).load()


def map_packed(path: Path) -> Any:
    """The value in a file. Its arrays are read when they are used; writing to them stays here."""
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    return unpack(mapped)
