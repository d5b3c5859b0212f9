"""The bytes of a feature store: a format that must not change without a new version."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from catwise.features import open_store, write_store

if TYPE_CHECKING:
    from pathlib import Path

VALUES = np.array([[1.0, -2.0], [0.5, 3.0], [65504.0, 0.1]], dtype=np.float32)
MANIFEST = """{
  "format": "catwise-features",
  "version": 1,
  "dtype": "float16",
  "n_rows": 3,
  "n_features": 2,
  "shards": [
    {
      "file": "features-00000.safetensors",
      "rows": 2,
      "bytes": 264,
      "sha256": "FIRST"
    },
    {
      "file": "features-00001.safetensors",
      "rows": 1,
      "bytes": 260,
      "sha256": "SECOND"
    }
  ],
  "ids": [
    {
      "file": "ids-00000.txt",
      "rows": 3,
      "bytes": 11,
      "sha256": "IDS"
    }
  ],
  "origin": {
    "model": "Zürich"
  },
  "sha256": "OWN"
}
"""
NUMBERS = {
    "float16": "003c00c000380042ff7b662e",
    "bfloat16": "803f00c0003f40408047cd3d",
    "float32": "0000803f000000c00000003f0000404000e07f47cdcccc3d",
}


def shard(header: str, numbers: bytes) -> bytes:
    return struct.pack("<Q", 248) + header.encode().ljust(248) + numbers


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of two shards with ids and origin, byte for byte, written and read."""
    monkeypatch.setattr("catwise.features.writer.SHARD_BYTES", 8)
    origin = {"model": "Zürich"}
    write_store(tmp_path / "s", VALUES, ids=["a", "b c", "é/1"], dtype="float16", origin=origin)
    numbers = bytes.fromhex(NUMBERS["float16"])
    first = shard('{"features":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}', numbers[:8])
    second = shard('{"features":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}}', numbers[8:])
    ids = "a\nb c\né/1\n".encode()
    manifest = (
        MANIFEST.replace("FIRST", sha256(first))
        .replace("SECOND", sha256(second))
        .replace("IDS", sha256(ids))
    )
    table = json.loads(manifest)
    del table["sha256"]
    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    manifest = manifest.replace("OWN", sha256(text.encode())).encode()
    expected = {
        "features-00000.safetensors": first,
        "features-00001.safetensors": second,
        "ids-00000.txt": ids,
        "manifest.json": manifest,
    }
    found = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    assert found == expected
    (tmp_path / "t").mkdir()
    for name, data in expected.items():
        (tmp_path / "t" / name).write_bytes(data)
    store = open_store(tmp_path / "t", verify=True)
    assert store.digest == sha256(manifest)
    np.testing.assert_array_equal(store.block(0, 3), VALUES.astype(np.float16))


@pytest.mark.parametrize("dtype", NUMBERS)
def test_numbers(tmp_path: Path, dtype: str) -> None:
    """Each dtype's numbers, little-endian, row after row, from byte 256 on."""
    store = write_store(tmp_path / "s", VALUES, dtype=dtype)
    raw = (store.path / "features-00000.safetensors").read_bytes()
    assert raw[256:].hex() == NUMBERS[dtype]
    assert '"ids": null' in (store.path / "manifest.json").read_text(encoding="utf-8")
