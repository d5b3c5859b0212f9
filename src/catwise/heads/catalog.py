"""Every tensor of a checkpoint, whatever the container: where it is, not what it holds."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from catwise._limits import MAX_TABLES, check_memory
from catwise._safetensors import FileLayout, read_layout
from catwise.errors import CheckpointError, HeadError, reason_of
from catwise.heads.archive import Archive, open_archive, read_record, record_name, record_start
from catwise.heads.pickles import Opaque, RefusedName, StoredTensor

MAX_DEPTH: Final = 6
_TORCH_KINDS: Final = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
_SAFETENSORS_KINDS: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint. Offset and strides count items within `storage`.

    `dtype` is None where torch has no such type or the tensor is quantised; `dtype_name` always
    says what it is.
    """

    container: str
    key: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype | None
    dtype_name: str
    storage: Hashable
    value: Any

    @property
    def name(self) -> str:
        """The key, led by its container where there is one: ``"state_dict:fc.weight"``."""
        return f"{self.container}:{self.key}" if self.container else self.key

    @property
    def layout(self) -> str:
        """How the rows of a head lie in it.

        "matrix": (C, D), also of a 1×1 convolution; "one": (1, C, D), as in Query2Label; "groups":
        (K, D, C / K), as in ML-Decoder, whose category c is column c % (C / K) of group
        c // (C / K); "": in no way that is known.
        """
        shape = self.shape
        if 0 in shape:
            return ""
        if len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)):
            return "matrix"
        if len(shape) == 3 and self.key.rpartition(".")[2] == "duplicate_pooling":
            return "groups"
        return "one" if len(shape) == 3 and shape[0] == 1 else ""

    @property
    def rows(self) -> tuple[int, int]:
        """(C, D) of a head."""
        if self.layout == "groups":
            return self.shape[0] * self.shape[2], self.shape[1]
        first, second = self.shape[-2:] if self.layout == "one" else self.shape[:2]
        return first, second

    @property
    def extent(self) -> tuple[int, int]:
        """First and last byte + 1 within the storage."""
        if self.dtype is None or 0 in self.shape:
            return 0, 0
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        size = self.dtype.itemsize
        return self.offset * size, (self.offset + last + 1) * size


@dataclass(frozen=True, slots=True)
class Catalog:
    """All tensors of a checkpoint, in its own order. `label` names it in messages."""

    label: str
    entries: tuple[Entry, ...]
    origin: Archive | FileLayout | None
    path: Path | None

    @property
    def metadata(self) -> dict[str, str]:
        """The texts in a safetensors header."""
        return self.origin.metadata if isinstance(self.origin, FileLayout) else {}


def open_catalog(source: str | os.PathLike[str] | Mapping[str, Any]) -> Catalog:
    """List the tensors of a checkpoint file or state_dict; no tensor is read."""
    if isinstance(source, Mapping):
        return Catalog("the state_dict", tuple(_walk(source, _live_entry)), None, None)
    if not isinstance(source, str) and not hasattr(source, "__fspath__"):
        remedy = "pass model.state_dict()" if hasattr(source, "state_dict") else None
        raise HeadError(
            "a head is read from a checkpoint's path or a state_dict.",
            found=type(source).__name__,
            remedy=remedy,
        )
    path = Path(source)
    label = f"'{path}'"
    if path.suffix.lower() == ".onnx":
        raise CheckpointError(
            f"{label} is an ONNX model, not a checkpoint: its graph says where its head is.",
            expected="a safetensors file, or a state_dict written by torch.save",
            remedy=f"load it as a model: load_model('onnx:{path}') (--model onnx:{path}, without "
            "--checkpoint)",
        )
    try:
        if _kind(path) == "safetensors":
            layout = read_layout(path)
            return Catalog(label, tuple(_file_entries(layout)), layout, path)
        archive = open_archive(path)
        if not isinstance(archive.content, Mapping):
            raise ValueError("it holds no state_dict: something that is not a table of tensors")  # noqa: TRY004, TRY301
        entries = tuple(entries_of(archive.content))
    except RefusedName as error:
        raise _refused(label, str(error)) from error
    except (OSError, ValueError) as error:
        raise unreadable(label, error) from error
    return Catalog(label, entries, archive, path)


def entries_of(content: Mapping[Any, Any]) -> Iterator[Entry]:
    """The tensors in what the pickle of an archive says."""
    yield from _walk(content, _stored_entry)


def _refused(label: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{label} holds more than tensors, and is not opened: nothing in a checkpoint is executed.",
        found=f"it asks for {name}",
        expected="a state_dict: texts, numbers and tensors",
        remedy="if you trust the file, load it yourself and save model.state_dict()",
    )


def unreadable(label: str, error: OSError | ValueError) -> CheckpointError:
    """The error for a file that is missing, damaged or of another kind."""
    return CheckpointError(
        f"cannot read the checkpoint {label}.",
        found=reason_of(error),
        expected="a safetensors file, or a state_dict written by torch.save since PyTorch 1.6",
        remedy="check the path; copy the file again if it was cut short; "
        "re-save the state_dict with torch.save or safetensors if it is of another kind",
    )


def _kind(path: Path) -> str:
    """Which container a file is, by its first bytes."""
    with path.open("rb") as stream:
        head = stream.read(9)
    if not head:
        raise ValueError("the file is empty")
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    if head[:1] == b"\x80":
        raise ValueError("it is a bare pickle: the format of torch.save before PyTorch 1.6")
    raise ValueError("it is neither a safetensors file nor a PyTorch archive")


def _walk(
    table: Mapping[Any, Any], entry_of: Callable[[str, str, Any], Entry | None]
) -> Iterator[Entry]:
    """Every tensor in a table of tables, in order, inner tables last; these are the containers."""
    waiting: list[tuple[Mapping[Any, Any], str, int]] = [(table, "", 0)]
    for visited, (inner, container, depth) in enumerate(waiting):
        if visited >= MAX_TABLES:
            raise ValueError(f"it nests more than {MAX_TABLES:,} tables")
        for key, value in inner.items():
            if isinstance(value, Mapping):
                if depth < MAX_DEPTH and len(waiting) <= MAX_TABLES:
                    name = f"{container}.{key}" if container else str(key)
                    waiting.append((value, name, depth + 1))
                continue
            packed = value if isinstance(value, tuple) else (value,)  # torch packs so
            for at, part in enumerate(packed):
                name = str(key) if part is value else f"{key}[{at}]"
                if (entry := entry_of(container, name, part)) is not None:
                    yield entry


def _unread(container: str, key: str, value: Any, what: str) -> Entry:
    """A tensor whose numbers do not lie in a storage of their own: it can be told of, not read."""
    shape = () if what == "nested" else tuple(getattr(value, "shape", ()))
    storage = (key, id(value))
    return Entry(container, key, shape, (0,) * len(shape), 0, None, what, storage, value)


def _live_entry(container: str, key: str, value: Any) -> Entry | None:
    if not isinstance(value, torch.Tensor):
        return None
    if type(value) not in {torch.Tensor, torch.nn.Parameter}:  # torchao's, a DTensor …
        return _unread(container, key, value, type(value).__name__)
    if value.is_nested:  # it has no shape
        return _unread(container, key, value, "nested")
    if value.layout != torch.strided or value.is_meta:
        what = "on the meta device" if value.is_meta else str(value.layout).removeprefix("torch.")
        return _unread(container, key, value, what)
    return Entry(
        container,
        key,
        tuple(value.shape),
        tuple(value.stride()),
        int(value.storage_offset()),
        None if value.is_quantized else value.dtype,
        str(value.dtype).removeprefix("torch."),
        (str(value.device), value.untyped_storage().data_ptr()),
        value,
    )


def _stored_entry(container: str, key: str, value: Any) -> Entry | None:
    if isinstance(value, Opaque) and value.what.startswith("torch._utils _rebuild"):
        return _unread(container, key, value, value.what.removeprefix("torch._utils _rebuild_"))
    if not isinstance(value, StoredTensor):
        return None
    dtype = _TORCH_KINDS.get(value.dtype) or getattr(torch, value.dtype, None)
    dtype = dtype if isinstance(dtype, torch.dtype) else None
    return Entry(
        container,
        key,
        value.shape,
        value.stride,
        value.offset,
        None if value.quantised else dtype,
        str(dtype or value.dtype).removeprefix("torch."),
        value.storage.key,
        value,
    )


def _file_entries(layout: FileLayout) -> Iterator[Entry]:
    for tensor in layout.tensors:
        stride = [math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape))]
        dtype = _SAFETENSORS_KINDS.get(tensor.dtype)
        name = str(dtype).removeprefix("torch.") if dtype else tensor.dtype
        shape, key = tensor.shape, tensor.name
        yield Entry("", key, shape, tuple(stride), 0, dtype, name, key, tensor)


def load_tensor(catalog: Catalog, entry: Entry) -> torch.Tensor:
    """Read one tensor, on the CPU, as a copy."""
    if isinstance(entry.value, torch.Tensor):
        return entry.value.detach().cpu().clone()
    try:
        raw = _storage_bytes(catalog, entry)
        return view_of(bytearray(raw), entry, entry.offset).clone()
    except (OSError, ValueError) as error:
        raise unreadable(catalog.label, error) from error


def _storage_bytes(catalog: Catalog, entry: Entry) -> bytes:
    if isinstance(catalog.origin, Archive):
        name = record_name(catalog.origin, entry.value.storage)
        raw = read_record(catalog.origin, name)
    else:
        assert catalog.path is not None  # noqa: S101  # a file that is not an archive
        check_memory(entry.value.stop - entry.value.start, f"the tensor {entry.name!r}")
        with catalog.path.open("rb") as stream:
            stream.seek(entry.value.start)
            raw = stream.read(entry.value.stop - entry.value.start)
    if entry.extent[1] > len(raw):
        raise ValueError(f"tensor {entry.name!r} reaches beyond its {len(raw):,} stored bytes")
    return raw


def view_of(raw: bytearray, entry: Entry, offset: int) -> torch.Tensor:
    """A tensor over bytes that start at the given number of items before the entry's first."""
    assert entry.dtype is not None  # noqa: S101  # refused before
    size = len(raw) - len(raw) % entry.dtype.itemsize
    flat = torch.frombuffer(raw, dtype=entry.dtype, count=size // entry.dtype.itemsize)
    return flat.as_strided(entry.shape, entry.stride, offset)


def storage_start(catalog: Catalog, entry: Entry) -> int:
    """The position in the file of the first byte of the entry's storage."""
    try:
        if isinstance(catalog.origin, Archive):
            return record_start(catalog.origin, record_name(catalog.origin, entry.value.storage))
        return int(entry.value.start)
    except (OSError, ValueError) as error:
        raise unreadable(catalog.label, error) from error
