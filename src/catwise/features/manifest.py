"""What a feature store's folder holds, and the one file that says so.

A store is a folder::

    manifest.json                the table below, UTF-8
    features-00000.safetensors   the first rows: one tensor `features`, (rows, D)
    features-00001.safetensors   the next rows …
    ids-00000.txt                the images' ids, one on a line, UTF-8; absent when there are none
    ids-00001.txt                ids of rows that were added later …

What was written at once has shards of the same number of rows, but for the last. In each, the
header is padded with spaces so that the numbers start at byte 256. The manifest ends with its own
checksum, which stores of earlier versions lack. Files are never changed: rows
that are added are new files and a new manifest, so that a store that is open stays what it was.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from catwise._json import COUNT, TABLE, Field, own, read_fields
from catwise.errors import ConfigError, FeatureStoreError, nearest

FORMAT: Final = "catwise-features"
VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"
FIRST_IDS: Final = "ids-00000.txt"
DATA_START: Final = 256
_ALIASES: Final = {
    "fp16": "float16", "half": "float16", "f16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32", "float": "float32", "f32": "float32",
}  # fmt: skip
_SHARD_NAME: Final = re.compile(r"features-(\d{5,})\.safetensors")
_IDS_NAME: Final = re.compile(r"ids-(\d{5,})\.txt")


class StoreDtype(NamedTuple):
    """How a store's numbers lie in its files."""

    safetensors: str
    numpy: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return int(self.numpy[-1])


STORE_DTYPES: Final = {
    "float16": StoreDtype("F16", "<f2"),
    "bfloat16": StoreDtype("BF16", "<u2"),
    "float32": StoreDtype("F32", "<f4"),
}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of rows, or of their ids."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json; `origin` is JSON text."""

    dtype: str
    n_rows: int
    n_features: int
    shards: tuple[StoredFile, ...]
    ids: tuple[StoredFile, ...]
    origin: str

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files but the manifest."""
        return (*self.shards, *self.ids)


def dtype_name(dtype: Any) -> str:
    """The name of a store's dtype."""
    text = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    name = str(text).removeprefix("torch.").lower()
    name = _ALIASES.get(name, name)
    if name not in STORE_DTYPES:
        raise ConfigError(
            f"a feature store cannot hold {name!r}{nearest(name, STORE_DTYPES)}.",
            expected="float16, bfloat16 or float32",
        )
    return name


def shard_header(dtype: str, rows: int, n_features: int, item_size: int) -> bytes:
    """The first `DATA_START` bytes of a shard."""
    tensor = {
        "dtype": STORE_DTYPES[dtype].safetensors,
        "shape": [rows, n_features],
        "data_offsets": [0, rows * n_features * item_size],
    }
    text = json.dumps({"features": tensor}, separators=(",", ":")).encode()
    return struct.pack("<Q", DATA_START - 8) + text.ljust(DATA_START - 8)


def manifest_text(manifest: Manifest) -> str:
    """The text of manifest.json; equal stores have equal texts."""
    table = {**_table(manifest), "sha256": _sha256(manifest)}
    return json.dumps(table, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _table(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "dtype": manifest.dtype,
        "n_rows": manifest.n_rows,
        "n_features": manifest.n_features,
        "shards": [asdict(shard) for shard in manifest.shards],
        "ids": [asdict(part) for part in manifest.ids] or None,
        "origin": json.loads(manifest.origin),
    }


def _sha256(manifest: Manifest) -> str:
    """The checksum of all else that the manifest says; of its values, not of how they are set."""
    text = json.dumps(_table(manifest), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def parse_manifest(path: str, raw: bytes) -> Manifest:
    """Read the bytes of manifest.json; only the manifest is checked, not the files."""
    try:
        table = own(raw)
        if not isinstance(table, dict) or table.get("format") != FORMAT:
            raise ValueError("it is not the manifest of a feature store")  # noqa: TRY301
        version = table.get("version")
        if type(version) is int and version != VERSION:
            raise FeatureStoreError(
                f"'{path.rpartition('/')[0]}' is a feature store of another version.",
                found=f"version {version}",
                expected=f"version {VERSION}",
                remedy="update catwise",
            )
        return _from_table(table)
    except ValueError as error:
        raise FeatureStoreError(
            f"the manifest '{path}' is damaged.",
            found=str(error),
            remedy="copy the store again, or extract the features again",
        ) from error


def _from_table(table: Any) -> Manifest:
    fields = read_fields(table, _MANIFEST)
    shards = tuple(StoredFile(**_part(entry, _SHARD_NAME)) for entry in fields["shards"])
    ids = tuple(StoredFile(**_part(entry, _IDS_NAME)) for entry in fields["ids"] or ())
    n_rows, n_features = fields["n_rows"], fields["n_features"]
    if sum(shard.rows for shard in shards) != n_rows:
        raise ValueError(f"its shards do not sum to its {n_rows:,} rows")
    if ids and sum(part.rows for part in ids) != n_rows:
        raise ValueError(f"its ids are not those of its {n_rows:,} rows")
    names = [shard.file for shard in shards] + [part.file for part in ids]
    if len(set(names)) != len(names):
        raise ValueError("it names a file twice")
    manifest = Manifest(
        fields["dtype"], n_rows, n_features, shards, ids, json.dumps(fields["origin"])
    )
    if "sha256" in fields and fields["sha256"] != _sha256(manifest):
        raise ValueError("it is not as it was written: its checksum is wrong")
    return manifest


def _part(entry: Any, name: re.Pattern[str]) -> dict[str, Any]:
    """One file that the manifest names; never one outside of the folder."""
    file = Field(f"a name such as {name.pattern!r}", lambda v: _fits(name, v))
    return read_fields(entry, {"file": file, **_PART}, "the entry of a file")


def _fits(pattern: re.Pattern[str], value: object) -> bool:
    return type(value) is str and pattern.fullmatch(value) is not None


_SHA256: Final = Field("a checksum", lambda v: _fits(re.compile(r"[0-9a-f]{64}"), v))
_PART: Final = {"rows": COUNT, "bytes": COUNT, "sha256": _SHA256}
_PARTS: Final = "a list of files, of which there is one at least"
_MANIFEST: Final = {
    "format": Field(repr(FORMAT), lambda v: v == FORMAT),
    "version": Field(str(VERSION), lambda v: type(v) is int and v == VERSION),
    "dtype": Field("float16, bfloat16 or float32", lambda v: v in tuple(STORE_DTYPES)),
    "n_rows": COUNT,
    "n_features": COUNT,
    "shards": Field(_PARTS, lambda v: type(v) is list and v != []),
    "ids": Field(f"null, or {_PARTS}", lambda v: v is None or (type(v) is list and v != [])),
    "origin": TABLE,
    "sha256": replace(_SHA256, required=False),
}


def file_number(name: str) -> int | None:
    """The number in the name of a shard or of a file of ids; None for another file."""
    found = _SHARD_NAME.fullmatch(name) or _IDS_NAME.fullmatch(name)
    return int(found[1]) if found else None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**22):
            total.update(chunk)
    return total.hexdigest()
