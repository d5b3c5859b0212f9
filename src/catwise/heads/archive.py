"""The zip archive that `torch.save` writes: its pickle, its storages, and where their bytes lie."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from catwise._limits import MAX_PICKLE, check_at_most, check_memory
from catwise._zip import DAMAGE, data_start, members, open_zip
from catwise.heads.pickles import Storage, interpret

_CENTRAL: Final = b"PK\x01\x02"
_DESCRIPTOR: Final = b"PK\x07\x08"
_HAS_DESCRIPTOR: Final = 0x8


@dataclass(frozen=True, slots=True)
class Archive:
    """An opened checkpoint: `content` is what its pickle says, on inert values."""

    path: Path
    prefix: str
    records: dict[str, zipfile.ZipInfo]
    content: Any


def open_archive(path: Path) -> Archive:
    """Read the directory and the pickle of a `torch.save` archive; nothing is executed."""
    try:
        with open_zip(path) as archive:
            records = members(archive, path)
            prefix = _prefix(records)
            order = records.get(f"{prefix}byteorder")
            if order and (order.file_size > 16 or archive.read(order).strip() != b"little"):
                raise ValueError("the archive was written on a big-endian machine")
            info = records[f"{prefix}data.pkl"]
            check_at_most(info.file_size, MAX_PICKLE, "bytes of its pickle")
            data = archive.read(info)
    except DAMAGE as error:
        raise ValueError(f"the archive is damaged or cut short ({error})") from error
    return Archive(path, prefix, records, interpret(data))


def _prefix(records: dict[str, zipfile.ZipInfo]) -> str:
    pickles = [
        name for name in records if name == "data.pkl" or name.split("/")[1:] == ["data.pkl"]
    ]
    if any(name.split("/")[-2:-1] == ["models"] or "exported_program" in name for name in records):
        raise ValueError(
            "the archive is an exported program (torch.export, .pt2), which is no checkpoint: save "
            "model.state_dict() of the module that was exported"
        )
    if len(pickles) != 1:
        raise ValueError("the archive is not a PyTorch checkpoint (it has no data.pkl)")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in records or any(n.startswith(f"{prefix}code/") for n in records):
        raise ValueError("the archive is a TorchScript program, which has no state_dict")
    return prefix


def record_name(archive: Archive, storage: Storage) -> str:
    """The name of a storage's record."""
    name = f"{archive.prefix}data/{storage.key}"
    if name not in archive.records:
        raise ValueError(f"the archive lacks the record {name!r}")
    return name


def read_record(archive: Archive, name: str) -> bytes:
    """A record's bytes, checked against its CRC-32."""
    try:
        check_memory(archive.records[name].file_size, f"the record {name!r}")
        with open_zip(archive.path) as opened:
            return opened.read(name)
    except DAMAGE as error:
        raise ValueError(f"record {name!r} is damaged ({error})") from error


def record_start(archive: Archive, name: str) -> int:
    """The position in the file of a record's first byte."""
    info = archive.records[name]
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"record {name!r} is compressed; torch.save stores it as it is")
    with archive.path.open("rb") as stream:
        return data_start(stream, info)


def fix_crc(path: Path, name: str) -> None:
    """Make a record's CRC-32 true again after its bytes were overwritten (APPNOTE 6.3, 4.3.7).

    It stands in the record's own header, the descriptor behind its bytes, and the directory.
    """
    with open_zip(path) as archive:
        infos = archive.infolist()
        start_of_directory = archive.start_dir
    position = next(i for i, info in enumerate(infos) if info.filename == name)
    info = infos[position]
    with path.open("r+b") as stream:
        start = data_start(stream, info)
        new = struct.pack("<I", _crc(stream, start, info.file_size))
        old = struct.pack("<I", info.CRC)
        places = [_central_place(stream, start_of_directory, position)]
        stream.seek(info.header_offset + 14)
        if stream.read(4) == old:
            places.append(info.header_offset + 14)
        if info.flag_bits & _HAS_DESCRIPTOR:
            places.append(_descriptor_place(stream, start + info.file_size, old))
        for place in places:
            stream.seek(place)
            stream.write(new)


def _crc(stream: BinaryIO, start: int, size: int) -> int:
    stream.seek(start)
    crc, left = 0, size
    while left:
        chunk = stream.read(min(left, 2**22))
        if not chunk:
            raise ValueError("the archive is cut short")
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
    return crc


def _central_place(stream: BinaryIO, start: int, position: int) -> int:
    """Where the directory's entry number `position` keeps its CRC."""
    place = start
    for step in range(position + 1):
        stream.seek(place)
        entry = stream.read(46)
        if len(entry) < 46 or entry[:4] != _CENTRAL:
            raise ValueError("the archive's directory is damaged")
        if step < position:
            place += 46 + sum(struct.unpack("<HHH", entry[28:34]))
    return place + 16


def _descriptor_place(stream: BinaryIO, end: int, old: bytes) -> int:
    """Where the descriptor behind a record keeps its CRC; its signature is optional."""
    stream.seek(end)
    following = stream.read(8)
    for place, found in ((4, following[4:8]), (0, following[:4])):
        if found == old and (place == 0 or following[:4] == _DESCRIPTOR):
            return end + place
    raise ValueError("a record's descriptor is damaged")
