"""Reading back the files that `save_head` writes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from catwise._json import TABLE, TEXTS, own, read_fields
from catwise._limits import check_memory
from catwise._safetensors import FileLayout, TensorRange, read_layout
from catwise.errors import CheckpointError, reason_of
from catwise.heads.core import HEAD_FORMAT, SAFETENSORS_DTYPES, Head
from catwise.heads.provenance import recall_rows

_SAID = {"categories": TEXTS, "provenance": TABLE}
_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()} | {"I64": torch.int64}


def load_head(path: str | os.PathLike[str]) -> Head:
    """Read a head that :func:`~catwise.save_head` wrote: on the CPU, bit for bit.

    It has its categories, provenance and row digests. CheckpointError if the file is missing,
    damaged, or no head of catwise.
    """
    path = Path(path)
    try:
        layout = read_layout(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read a head from '{path}'.",
            found=reason_of(error),
            expected="a safetensors file written by save_head",
            remedy="check the path; copy the file again if it was cut short",
        ) from error
    if "catwise_head" not in layout.metadata:
        raise CheckpointError(
            f"'{path}' is not a head of catwise.",
            found=f"a safetensors file with {len(layout.tensors):,} tensors",
            remedy="take the head out of a checkpoint: read_head(…) "
            "(catwise join --head CHECKPOINT --head-categories NAMES --out FILE)",
        )
    return head_of_layout(path, layout)


def head_of_layout(path: Path, layout: FileLayout) -> Head:
    """Build the head from a file whose header is already read."""
    version = layout.metadata["catwise_head"]
    if version != HEAD_FORMAT:
        raise CheckpointError(
            f"'{path}' is a head of another format.",
            found=f"format {version:.40}",
            expected=f"format {HEAD_FORMAT}",
            remedy="update catwise",
        )
    tensors = {entry.name: entry for entry in layout.tensors}
    try:
        said = {name: own(layout.metadata[name]) for name in _SAID}
        read_fields(said, _SAID, "its metadata")
        weight = _tensor(path, tensors["weight"])
        bias = _tensor(path, tensors["bias"]) if "bias" in tensors else None
        digests = _tensor(path, tensors["fitted_on"]) if "fitted_on" in tensors else None
    except (KeyError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"'{path}' is a damaged head.",
            found=reason,
            remedy="copy the file again, or save the head again",
        ) from error
    fitted_on = None if digests is None else digests.numpy().view(np.uint64)
    return recall_rows(Head(weight, bias, fitted_on=fitted_on, **said), path, layout.metadata)


def _tensor(path: Path, entry: TensorRange) -> torch.Tensor:
    dtype = _DTYPES[entry.dtype]
    if entry.start == entry.stop:
        return torch.empty(entry.shape, dtype=dtype)
    check_memory(entry.stop - entry.start, f"the tensor {entry.name!r}")
    with path.open("rb") as stream:
        stream.seek(entry.start)
        raw = bytearray(stream.read(entry.stop - entry.start))
    return torch.frombuffer(raw, dtype=dtype).reshape(entry.shape)
