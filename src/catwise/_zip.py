"""The members of a zip archive: where their bytes lie, and that they lie apart.

`zipfile` believes what the directory says of a member. Here it is compared with the file: members
have different names, do not reach into one another, and are not larger than their bytes can give.

Source: PKWARE APPNOTE 6.3, sections 4.3.7 and 4.3.12.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

from catwise._limits import MAX_DIRECTORY, MAX_MEMBERS, check_at_most, check_unpacked

DAMAGE: Final = (
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    struct.error,
    RuntimeError,
    NotImplementedError,
)
"""What `zipfile` raises at damaged archives and unknown ways of compressing."""
_LOCAL: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 0x1
_END: Final = b"PK\x05\x06"
_END_64: Final = b"PK\x06\x06"
_LOCATOR_64: Final = b"PK\x06\x07"
_IN_END_64: Final = b"\xff\xff\xff\xff"
_SEARCHED: Final = 2**16 + 22 + 20 + 56


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive whose directory, read at once, is not too long (APPNOTE 6.3, 4.3.14)."""
    with path.open("rb") as stream:
        start = stream.seek(-min(_SEARCHED, stream.seek(0, os.SEEK_END)), os.SEEK_END)
        tail = stream.read(_SEARCHED)
        plain = len(tail) - 22
        at = plain if tail[plain:].startswith(_END) and not any(tail[-2:]) else tail.rfind(_END)
        ends = [tail[at : at + 22]] if at >= 0 else []
        locator = tail[max(0, at - 20) : max(0, at)]
        if locator.startswith(_LOCATOR_64):
            for place in (start + at - 76, int.from_bytes(locator[8:16], "little")):
                stream.seek(min(max(0, place), start + at))
                ends.append(stream.read(56))
    for end in ends:
        size = end[12:16] if end.startswith(_END) else end[40:48] if end[:4] == _END_64 else b""
        if size != _IN_END_64:
            n_bytes = int.from_bytes(size, "little")
            check_at_most(n_bytes, MAX_DIRECTORY, "bytes of the archive's directory")
    return zipfile.ZipFile(path)


def members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """All members by their names; ValueError if they are not plain and apart."""
    infos = archive.infolist()
    check_at_most(len(infos), MAX_MEMBERS, "members of the archive")
    found = {info.filename: info for info in infos}
    if len(found) != len(infos):
        raise ValueError("the archive holds two records of one name")
    with path.open("rb") as stream:
        ends = []
        for info in infos:
            name = f"record {info.filename!r}"
            if info.flag_bits & _ENCRYPTED:
                raise ValueError(f"{name} is encrypted")
            if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
                raise ValueError(f"{name} is stored in {info.compress_size:,} bytes, not its own")
            if info.compress_type != zipfile.ZIP_STORED:
                deflated = info.compress_type == zipfile.ZIP_DEFLATED
                check_unpacked(info.compress_size if deflated else None, info.file_size, name)
            start = data_start(stream, info)
            ends.append((info.header_offset, start + info.compress_size, name))
    ends.sort()
    for (_, end, name), (start, _, _) in pairwise([*ends, (archive.start_dir, 0, "")]):
        if end > start:
            raise ValueError(f"{name} reaches into what follows it")
    return found


def data_start(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    """The position in the file of a member's first byte."""
    stream.seek(info.header_offset)
    header = stream.read(30)
    if len(header) < 30 or header[:4] != _LOCAL:
        raise ValueError(f"record {info.filename!r} has no header of its own")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return int(info.header_offset + 30 + name_length + extra_length)
