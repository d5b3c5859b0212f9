"""Checkpoint files whose head gets more rows, fewer rows, or rows in another order.

Sizes change, so that a file is written anew: in a safetensors file the shapes and byte ranges of
the header, in a `torch.save` archive the numbers of the pickle that say how large the head's
tensors and storages are, and the records that hold them. All other tensors, texts and records are
copied byte for byte, in their order.

Source: https://github.com/huggingface/safetensors, README, section "Format"; for archives Python's
`pickletools`, and `torch/csrc/api/include/torch/serialize` for records that begin at multiples of
64 bytes.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import shutil
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import torch

from catwise._json import parse
from catwise._safetensors import FileLayout
from catwise._zip import DAMAGE, open_zip
from catwise.errors import CheckpointError, HeadError
from catwise.heads.archive import Archive, read_record, record_name
from catwise.heads.catalog import (
    Catalog,
    Entry,
    entries_of,
    load_tensor,
    open_catalog,
    unreadable,
)
from catwise.heads.fit import same_bits
from catwise.heads.pickles import Pushed, StoredTensor, interpret

_CHUNK: Final = 2**22
_ALIGNED: Final = 64
_PADDING: Final = b"FB"  # the extra field in which torch pads


@dataclass(frozen=True, slots=True)
class Replacement:
    """A tensor of another number of rows in the place of one of a checkpoint's."""

    entry: Entry
    values: torch.Tensor  # in the entry's dtype, shaped as the entry but for its rows

    @classmethod
    def of(cls, entry: Entry, values: torch.Tensor) -> Replacement:
        """Rows of new numbers, in the entry's dtype, as the tensor that the entry is."""
        _check_alone(entry)
        return cls(entry, values.reshape(len(values), *entry.shape[1:]).contiguous())

    @property
    def raw(self) -> bytes:
        """Its bytes, row-major, little-endian."""
        flat = self.values.contiguous().flatten().view(torch.uint8)
        return flat.numpy().tobytes()


def _check_alone(entry: Entry) -> None:
    """Refuse a tensor that is a part of a storage, or lies in it in another order."""
    stride, step = [], 1
    for size in reversed(entry.shape):
        stride.append(step)
        step *= size
    plain = all(
        have == want or size == 1
        for have, want, size in zip(entry.stride, reversed(stride), entry.shape, strict=True)
    )
    stored = entry.value.storage.n_items if isinstance(entry.value, StoredTensor) else step
    # storages of no type count bytes
    sizes = {step, step * (entry.dtype.itemsize if entry.dtype is not None else 1)}
    if plain and entry.offset == 0 and stored in sizes:
        return
    raise HeadError(
        f"the tensor {entry.name!r} cannot have another number of rows.",
        found=f"shape {entry.shape}, strides {entry.stride}, {stored:,} numbers in its storage",
        expected="a storage of its own, row by row",
        remedy="save the checkpoint with a copy of the tensor, weight.clone().contiguous()",
    )


def write_resized(source: Path, target: Path, catalog: Catalog, new: Sequence[Replacement]) -> None:
    """Write a copy of a checkpoint file in which some tensors have other rows, and check it."""
    if isinstance(catalog.origin, FileLayout):
        _write_safetensors(source, target, catalog.origin, {one.entry.key: one for one in new})
    else:
        assert isinstance(catalog.origin, Archive)  # noqa: S101  # there are two kinds of files
        try:
            _write_archive(target, catalog.origin, new)
        except DAMAGE as error:
            raise unreadable(catalog.label, ValueError(str(error))) from error
        except ValueError as error:
            raise unreadable(catalog.label, error) from error
    _verify(target, catalog, new)


def _verify(path: Path, before: Catalog, new: Sequence[Replacement]) -> None:
    """Read the new file as anyone would: the tensors that were meant, and all others as before."""
    entries = open_catalog(path).entries
    meant = {one.entry.name: one.values for one in new}
    wrong = [] if [e.name for e in entries] == [e.name for e in before.entries] else ["names"]
    for was, now in zip(before.entries, entries, strict=False):
        if (values := meant.get(was.name)) is not None:
            is_right = same_bits(load_tensor(open_catalog(path), now), values.cpu())
        else:
            is_right = (was.shape, was.dtype_name) == (now.shape, now.dtype_name)
        wrong += [] if is_right else [was.name]
    if wrong:
        raise CheckpointError(
            "the written checkpoint differs from the one that was meant.",
            found=", ".join(wrong[:3]),
            remedy="report this with the checkpoint's layout (list_heads); nothing was written",
        )


# ------------------------------------------------------------------------------------ safetensors


def _write_safetensors(
    source: Path, target: Path, layout: FileLayout, new: Mapping[str, Replacement]
) -> None:
    """The header with other shapes and ranges, its entries in their order; then the tensors."""
    with source.open("rb") as stream, target.open("wb") as out:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = parse(stream.read(length))
        position = 0
        for tensor in layout.tensors:
            size = tensor.stop - tensor.start
            entry = header[tensor.name]
            if (one := new.get(tensor.name)) is not None:
                size, entry["shape"] = len(one.raw), list(one.values.shape)
            entry["data_offsets"] = [position, position + size]
            position += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in layout.tensors:
            if (one := new.get(tensor.name)) is not None:
                out.write(one.raw)
                continue
            stream.seek(tensor.start)
            _copy(stream, out, tensor.stop - tensor.start)


def _copy(stream: IO[bytes], out: IO[bytes], size: int) -> None:
    while size:
        chunk = stream.read(min(size, _CHUNK))
        if not chunk:
            raise ValueError("the file is cut short")
        out.write(chunk)
        size -= len(chunk)


# --------------------------------------------------------------------------------------- archives


def _write_archive(target: Path, archive: Archive, new: Sequence[Replacement]) -> None:
    """The archive's records in their order: the head's and the pickle anew, all others copied."""
    pickled = f"{archive.prefix}data.pkl"
    contents = {record_name(archive, one.entry.value.storage): one.raw for one in new}
    rows = {one.entry.name: int(one.values.shape[0]) for one in new}
    contents[pickled] = resized_pickle(read_record(archive, pickled), rows)
    with (
        open_zip(archive.path) as old,
        target.open("wb") as stream,
        zipfile.ZipFile(stream, "w") as made,
    ):
        for info in old.infolist():
            data = contents.get(info.filename)
            size = info.file_size if data is None else len(data)
            with made.open(_record(info, size, stream.tell()), "w") as out:
                if data is not None:
                    out.write(data)
                    continue
                with old.open(info) as record:
                    shutil.copyfileobj(record, out, _CHUNK)


def _record(info: zipfile.ZipInfo, size: int, position: int) -> zipfile.ZipInfo:
    """A record like another one, whose bytes begin at a multiple of 64."""
    record = zipfile.ZipInfo(info.filename, info.date_time)
    record.external_attr, record.create_system = info.external_attr, info.create_system
    record.compress_type, record.file_size = zipfile.ZIP_STORED, size
    is_long = size * 1.05 > zipfile.ZIP64_LIMIT  # `zipfile` then puts 20 bytes before the padding
    begins = position + 30 + len(info.filename.encode()) + 4 + 20 * is_long
    pad = -begins % _ALIGNED
    record.extra = _PADDING + struct.pack("<H", pad) + b"Z" * pad
    return record


def resized_pickle(data: bytes, rows: Mapping[str, int]) -> bytes:
    """A pickle in which the tensors of these names, alone in their storages, have other rows.

    Only the instructions that push the first size of each tensor and the length of its storage
    change, and the lengths of the frames that they lie in.
    """
    edits: dict[int, tuple[int, bytes]] = {}
    for entry in entries_of(interpret(data, places=True)):
        if (n_rows := rows.get(entry.name)) is None:
            continue
        size, length = entry.shape[0], entry.value.storage.n_items
        for old, new in ((size, n_rows), (length, length // size * n_rows)):
            if not isinstance(old, Pushed):  # such as a text of digits
                raise ValueError(  # noqa: TRY004  # a fact of the file
                    f"the pickle does not say how large {entry.name!r} is"
                )
            edits[old.start] = old.stop, _push(new)
    return _edited(data, edits)


def _push(number: int) -> bytes:
    """The instruction that pushes a whole number, as Python's pickler writes it."""
    if number < 1 << 8:
        return b"K" + struct.pack("<B", number)
    if number < 1 << 16:
        return b"M" + struct.pack("<H", number)
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    raw = pickle.encode_long(number)
    return b"\x8a" + struct.pack("<B", len(raw)) + raw


def _edited(data: bytes, edits: Mapping[int, tuple[int, bytes]]) -> bytes:
    """Bytes with other instructions at some places, and frames that are as long as they now are."""
    edits = dict(edits)
    for opcode, argument, at in pickletools.genops(data):
        if opcode.name == "FRAME" and at is not None:
            begin, length = at + 9, int(argument or 0)
            inside = [(i, e) for i, e in edits.items() if begin <= i < begin + length]
            more = sum(len(new) - (stop - start) for start, (stop, new) in inside)
            edits[at] = begin, b"\x95" + struct.pack("<Q", length + more)
    out, position = bytearray(), 0
    for start, (stop, new) in sorted(edits.items()):
        out += data[position:start] + new
        position = stop
    return bytes(out + data[position:])
