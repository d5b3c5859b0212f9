"""What a written checkpoint says of its new head.

In a safetensors file it is a text in the header's ``__metadata__``, under the key ``catwise``; the
tensors' bytes and the other texts stay. The archive of `torch.save` and ONNX files have no place
for such a text that their readers would leave alone, so there it is a file beside the checkpoint:
``NAME.catwise.json``.

The record also keeps digests of the rows that fitted the head, so that a score on these rows is
marked wherever the checkpoint goes. It speaks of certain numbers: to a head with others it does
not apply. A state_dict has no place for it at all.
"""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from catwise._io import write_text
from catwise._json import WHOLE, Field, parse, read_fields, read_file
from catwise._lock import Temporary
from catwise._safetensors import read_layout
from catwise._version import __version__
from catwise.heads.core import Head

KEY: Final = "catwise"  # the metadata key of a safetensors file

MAX_ROWS: Final = 1 << 18
"""Row digests that a record keeps at most, the smallest ones: 2.8 MB as text."""
_DIGESTS: Final = Field("a text", lambda value: type(value) is str)


def describe(head: Head, base: Head | None) -> dict[str, Any]:
    """What to say of a head that takes the place of another: equal heads say equal things."""
    return {
        "catwise": __version__,
        "head": head.digest,
        "base": None if base is None else base.digest,
        "rows": head.n_categories,
        "tuned": head.provenance.get("catwise"),
        "fitted_on": fitted_rows(head),
    }


def remembered(head: Head, base: Head | None, *, n_rows: int) -> dict[str, Any] | None:
    """What a head that takes rows of another says unasked; None where nothing is known."""
    if base is not None and head.n_categories < n_rows:
        head = head.with_fitted_on(base.fitted_on)
    if head.fitted_on is None and "catwise" not in head.provenance:
        return None
    return describe(head, base)


def fitted_rows(head: Head) -> dict[str, Any] | None:
    """The digests of the rows that fitted a head, as text; None where they are not known."""
    if head.fitted_on is None:
        return None
    kept = head.fitted_on[:MAX_ROWS].astype("<u8").tobytes()
    n_rows = max(int(head.fitted_on.size), head.provenance.get("fitted_rows", 0))
    return {"n_rows": n_rows, "digests": base64.b64encode(kept).decode()}


def recall_rows(head: Head, path: Path, metadata: Mapping[str, str] | None) -> Head:
    """The head with the rows that fitted it, where a record of these very numbers names them."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        record = record_beside(path) if metadata is None else parse(metadata[KEY])
        if record["written"] == head.replace(categories=None).digest:
            rows = read_fields(record["fitted_on"], {"n_rows": WHOLE, "digests": _DIGESTS})
            digests = np.frombuffer(base64.b64decode(rows["digests"], validate=True), dtype="<u8")
            provenance = {**head.provenance, "fitted_rows": rows["n_rows"]}
            return head.replace(fitted_on=digests, provenance=provenance)
    return head


def side_file(path: Path) -> Path:
    """Where the record of a file lies that has no place for it."""
    return path.with_name(f"{path.name}.catwise.json")


def record_beside(path: Path) -> dict[str, Any]:
    """The record beside a file."""
    record: dict[str, Any] = read_file(side_file(path))
    return record


def stamp(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to the header of a safetensors file; no tensor's bytes change."""
    read_layout(path)
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", None) or {"format": "pt"}
        metadata[KEY] = json.dumps(dict(record), sort_keys=True)
        table = {"__metadata__": metadata, **header}
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with Temporary(path) as temporary:
            with temporary.open("wb") as new:
                new.write(struct.pack("<Q", len(text)) + text)
                shutil.copyfileobj(stream, new, 2**22)
            temporary.replace(path)


def put_beside(path: Path, record: Mapping[str, Any]) -> Path:
    """Write a record beside a file that has no place for it; returns where."""
    side = side_file(path)
    write_text(side, json.dumps(dict(record), indent=2, sort_keys=True) + "\n")
    return side
