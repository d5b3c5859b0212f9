"""What a written checkpoint says of its new head.

In a safetensors file it is a text in the header's ``__metadata__``, under the key ``catwise``; the
tensors' bytes and the other texts stay. The archive of `torch.save` and ONNX files have no place
for such a text that their readers would leave alone, so there it is a file beside the checkpoint:
``NAME.catwise.json``.
"""

from __future__ import annotations

import json
import shutil
import struct
from typing import TYPE_CHECKING, Any, Final

from catwise._io import atomic_path, write_text
from catwise._safetensors import read_layout
from catwise._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from catwise.heads.core import Head

__all__ = ["KEY", "describe", "put_beside", "side_file", "stamp"]

KEY: Final = "catwise"
"""The metadata key of a safetensors file."""


def describe(head: Head, base: Head | None) -> dict[str, Any]:
    """What to say of a head that takes the place of another: equal heads say equal things.

    Args:
        head: the new one.
        base: the one that was there, or None where it is not known.

    Returns:
        JSON-ready: version, digests, number of rows, and how the head was tuned.
    """
    return {
        "catwise": __version__,
        "head": head.digest,
        "base": None if base is None else base.digest,
        "rows": head.n_categories,
        "tuned": head.provenance.get("catwise"),
    }


def side_file(path: Path) -> Path:
    """Where the record of a file lies that has no place for it."""
    return path.with_name(f"{path.name}.catwise.json")


def stamp(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to the header of a safetensors file; no tensor's bytes change.

    Args:
        path: the file; replaced.
        record: JSON-ready.

    Raises:
        ValueError: If it is no whole safetensors file.
        OutputError: If it cannot be written.
    """
    read_layout(path)
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", None) or {"format": "pt"}
        metadata[KEY] = json.dumps(dict(record), sort_keys=True)
        table = {"__metadata__": metadata, **header}
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with atomic_path(path) as temporary, temporary.open("wb") as new:
            new.write(struct.pack("<Q", len(text)) + text)
            shutil.copyfileobj(stream, new, 2**22)


def put_beside(path: Path, record: Mapping[str, Any]) -> Path:
    """Write a record beside a file that has no place for it; returns where."""
    side = side_file(path)
    write_text(side, json.dumps(dict(record), indent=2, sort_keys=True) + "\n")
    return side
