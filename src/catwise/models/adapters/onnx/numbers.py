"""The numbers of an ONNX file's layer: where they lie, and as a head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from catwise._json import read_file
from catwise.errors import CatwiseError, reason_of
from catwise.heads import Head
from catwise.heads.provenance import recall_rows, side_file
from catwise.models.adapters.onnx import graph as onnx_graph
from catwise.models.adapters.onnx.graph import Linear, OnnxFile, Span, Stored


def spans_of(file: OnnxFile, stored: Stored) -> tuple[Path, list[Span]]:
    """The file and the ranges of bytes that hold a constant's numbers; none for int32_data."""
    external = onnx_graph.external_entry(file, stored.tensor)
    where = file.path if external is None else external[0]
    try:
        if external is not None:
            size = where.stat().st_size
            start = int(external[1].get("offset", 0))
            stop = start + int(external[1].get("length", size - start))
            if not 0 <= start <= stop <= size:
                raise ValueError(  # noqa: TRY301
                    f"{stored.name!r} lies from byte {start:,} to {stop:,} of {size:,}"
                )
            return where, [(start, stop)]
        (span,) = [s for n, s in onnx_graph.fields_of(file.raw) if n == 7]
        for number, position in stored.path:
            span = [s for n, s in onnx_graph.fields_of(file.raw, span) if n == number][position]
        parts = list(onnx_graph.fields_of(file.raw, span))
    except (OSError, ValueError, IndexError) as error:
        reason = reason_of(error)
        raise file.damaged(reason, file=where) from error
    raw = [s for n, s in parts if n == 9][-1:]
    return where, raw or [s for n, s in parts if n == {1: 4, 11: 10}.get(stored.tensor.data_type)]


def read_numbers(file: OnnxFile, stored: Stored) -> torch.Tensor:
    """A constant's numbers, in the shape that is stored."""
    path, spans = spans_of(file, stored)
    expected = math.prod(stored.shape) * stored.dtype.itemsize
    held = sum(stop - start for start, stop in spans) if spans else expected
    if held != expected:  # before so much is read
        reason = f"{stored.name!r} has {held:,} bytes, {expected:,} expected"
        raise file.damaged(reason, file=path)
    if not spans:
        raw = np.array(stored.tensor.int32_data, dtype="<i4").astype("<u2").tobytes()
    elif path == file.path:
        raw = b"".join(file.raw[start:stop] for start, stop in spans)
    else:
        with path.open("rb") as stream:
            stream.seek(spans[0][0])
            raw = stream.read(spans[0][1] - spans[0][0])
    if len(raw) != expected:
        reason = f"{stored.name!r} has {len(raw):,} bytes, {expected:,} expected"
        raise file.damaged(reason, file=path)
    return torch.frombuffer(bytearray(raw), dtype=stored.dtype).reshape(stored.shape)


def read_head(file: OnnxFile, layer: Linear, categories: Sequence[str] | None = None) -> Head:
    """The layer as a head, with its rows' names and what fitted it where that is known."""
    head = Head(*as_they_act(layer, [read_numbers(file, stored) for stored in layer.parts]))
    head = recall_rows(head, file.path, None)
    names = categories if categories is not None else stored_names(file, head)
    return head if names is None else head.replace(categories=names)


def as_they_act(layer: Linear, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Weight (C, D) and bias (C,) as they act: alpha and beta are multiplied in."""
    weight = (parts[0].T if layer.flip else parts[0]).reshape(layer.shape)
    return [times(weight, layer.alpha), *(times(b.reshape(-1), layer.beta) for b in parts[1:])]


def times(values: torch.Tensor, factor: float) -> torch.Tensor:
    """Numbers times alpha or beta, in float32 at least where that is not 1."""
    if factor == 1:
        return values
    exact = values.double() * factor
    return exact if values.dtype == torch.float64 else exact.float()


def stored_names(file: OnnxFile, head: Head) -> list[str] | None:
    """Names of the rows, from the side file if it was written with this head."""
    with suppress(OSError, ValueError, TypeError, KeyError, CatwiseError):
        side = read_file(side_file(file.path))
        if head.replace(categories=side["categories"]).digest == side["head"]:
            return list(side["categories"])
    return None  # no side file, or one of another head
