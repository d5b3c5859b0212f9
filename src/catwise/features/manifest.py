"""What a feature store's folder holds, and the one file that says so.

A store is a folder::

    manifest.json                the table below, UTF-8
    features-00000.safetensors   the first rows: one tensor `features`, (rows, D)
    features-00001.safetensors   the next rows …
    ids-00000.txt                the images' ids, one on a line, UTF-8; absent when there are none
    ids-00001.txt                ids of rows that were added later …

What was written at once has shards of the same number of rows, but for the last. In each, the
header is padded with spaces so that the numbers start at byte 256. Files are never changed: rows
that are added are new files and a new manifest, so that a store that is open stays what it was.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from catwise.errors import ConfigError, FeatureStoreError, nearest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "DATA_START",
    "MANIFEST_FILE",
    "SAFETENSORS_NAMES",
    "IdsFile",
    "Manifest",
    "ShardFile",
    "dtype_name",
    "file_number",
    "file_sha256",
    "manifest_text",
    "parse_manifest",
    "shard_header",
]

FORMAT: Final = "catwise-features"
VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"
DATA_START: Final = 256
SAFETENSORS_NAMES: Final = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_ALIASES: Final = {
    "fp16": "float16", "half": "float16", "f16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32", "float": "float32", "f32": "float32",
}  # fmt: skip
_SHARD_NAME: Final = re.compile(r"features-(\d{5,})\.safetensors")
_IDS_NAME: Final = re.compile(r"ids-(\d{5,})\.txt")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of rows."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IdsFile:
    """One file of ids."""

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
    shards: tuple[ShardFile, ...]
    ids: tuple[IdsFile, ...]
    origin: str

    @property
    def files(self) -> tuple[ShardFile | IdsFile, ...]:
        """All files but the manifest."""
        return (*self.shards, *self.ids)


def dtype_name(dtype: Any) -> str:
    """The name of a store's dtype.

    Args:
        dtype: a name, or what numpy and torch call a dtype.

    Raises:
        ConfigError: If it is none of float16, bfloat16 and float32.

    >>> import torch
    >>> dtype_name(torch.bfloat16), dtype_name("fp16")
    ('bfloat16', 'float16')
    """
    text = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    name = str(text).removeprefix("torch.").lower()
    name = _ALIASES.get(name, name)
    if name not in SAFETENSORS_NAMES:
        raise ConfigError(
            f"a feature store cannot hold {name!r}{nearest(name, SAFETENSORS_NAMES)}.",
            expected="float16, bfloat16 or float32",
        )
    return name


def shard_header(dtype: str, rows: int, n_features: int, item_size: int) -> bytes:
    """The first `DATA_START` bytes of a shard."""
    tensor = {
        "dtype": SAFETENSORS_NAMES[dtype],
        "shape": [rows, n_features],
        "data_offsets": [0, rows * n_features * item_size],
    }
    text = json.dumps({"features": tensor}, separators=(",", ":")).encode()
    return struct.pack("<Q", DATA_START - 8) + text.ljust(DATA_START - 8)


def manifest_text(manifest: Manifest) -> str:
    """The text of manifest.json; equal stores have equal texts."""
    table = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": manifest.dtype,
        "n_rows": manifest.n_rows,
        "n_features": manifest.n_features,
        "shards": [asdict(shard) for shard in manifest.shards],
        "ids": [asdict(part) for part in manifest.ids] or None,
        "origin": json.loads(manifest.origin),
    }
    return json.dumps(table, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse_manifest(path: str, raw: bytes) -> Manifest:
    """Read the bytes of manifest.json; only the manifest is checked, not the files.

    Raises:
        FeatureStoreError: If it is no manifest, or one of another version.
    """
    try:
        table = json.loads(raw.decode("utf-8"))
        if not isinstance(table, dict) or table.get("format") != FORMAT:
            raise ValueError("it is not the manifest of a feature store")  # noqa: TRY301
        if table.get("version") != VERSION:
            raise FeatureStoreError(
                f"'{path.rpartition('/')[0]}' is a feature store of another version.",
                found=f"version {table.get('version')!r}",
                expected=f"version {VERSION}",
                remedy="update catwise",
            )
        return _from_table(table)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise FeatureStoreError(
            f"the manifest '{path}' is damaged.",
            found=reason,
            remedy="copy the store again, or extract the features again",
        ) from error


def _from_table(table: dict[str, Any]) -> Manifest:
    shards = tuple(ShardFile(**_checked(entry, ShardFile)) for entry in table["shards"])
    ids = tuple(IdsFile(**_checked(entry, IdsFile)) for entry in table["ids"] or [])
    dtype = table["dtype"]
    if dtype not in SAFETENSORS_NAMES:
        raise ValueError(f"its dtype is {dtype!r}")
    if not isinstance(table["origin"], dict):
        raise ValueError("its origin is no table")  # noqa: TRY004  # a fact of the file
    n_rows, n_features = _count(table["n_rows"]), _count(table["n_features"])
    if not shards or sum(shard.rows for shard in shards) != n_rows:
        raise ValueError(f"its shards do not sum to its {n_rows:,} rows")
    if ids and sum(part.rows for part in ids) != n_rows:
        raise ValueError(f"its ids are not those of its {n_rows:,} rows")
    names = [shard.file for shard in shards] + [part.file for part in ids]
    if len(set(names)) != len(names):
        raise ValueError("it names a file twice")
    return Manifest(dtype, n_rows, n_features, shards, ids, json.dumps(table["origin"]))


def _count(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a number should be positive and is {value!r}")
    return value


def _checked(entry: dict[str, Any], kind: type) -> dict[str, Any]:
    """The fields of an entry; file names never lead out of the folder."""
    fields = {name: entry[name] for name in kind.__slots__}  # type: ignore[attr-defined]
    name, sha256 = fields["file"], fields["sha256"]
    right = _IDS_NAME if kind is IdsFile else _SHARD_NAME
    if not right.fullmatch(str(name)):
        raise ValueError(f"it names the file {name!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"the checksum of {name!r} is {sha256!r}")
    for field in {"rows", "bytes"} & fields.keys():
        _count(fields[field])
    return fields


def file_number(name: str) -> int | None:
    """The number in the name of a shard or of a file of ids; None for another file.

    >>> file_number("ids-00003.txt"), file_number("manifest.json")
    (3, None)
    """
    found = _SHARD_NAME.fullmatch(name) or _IDS_NAME.fullmatch(name)
    return int(found[1]) if found else None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**22):
            total.update(chunk)
    return total.hexdigest()
