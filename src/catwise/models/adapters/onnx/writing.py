"""Writing a head into a copy of an ONNX file, in place of the bytes of the old one.

The model is never unpacked or exported again: every other byte stays. What made the head is told
beside the file, in ``NAME.onnx.catwise.json``: in the file it would be a new entry of
`metadata_props`, so that the file would change where no weight lies, grow with each head, and the
head that was read would not give the same file again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from catwise._io import atomic_path
from catwise.errors import CatwiseError, HeadError, OutputError
from catwise.heads import Head, HeadLocation, WriteReport, write_head_to_state_dict
from catwise.heads.fit import check_destination
from catwise.heads.provenance import fitted_rows, side_file
from catwise.models.adapters.onnx import graph as onnx_graph
from catwise.models.adapters.onnx.graph import (
    Linear,
    OnnxFile,
    Span,
    Stored,
    find_linear,
    open_onnx,
)
from catwise.models.adapters.onnx.numbers import (
    as_they_act,
    read_head,
    read_numbers,
    spans_of,
    stored_names,
    times,
)
from catwise.models.core import LoadedModel

_CHUNK: Final = 2**22


@dataclass(frozen=True)
class OnnxWriter:
    """Writes into a copy of an ONNX file; `node` and `output` tell its layer."""

    node: str
    output: str  # "" where something else lies behind the layer

    def write(
        self,
        model: LoadedModel,
        head: Head,
        source: Path,
        destination: Path,
        *,
        resize: bool,
        overwrite: bool,
    ) -> list[WriteReport]:
        """Write the copy; see :func:`write_onnx_head`. Rows stay as many and as they are."""
        if resize and (model.head is None or head.categories != model.head.categories):
            raise HeadError(
                f"the head of {model.name} cannot have other rows.",
                found=f"a head of {head.n_categories:,} rows for a graph with sizes in it",
                expected="the rows of the graph, in its order",
                remedy="write the head into the checkpoint that was exported "
                "(--model timm:NAME, transformers:FOLDER …), and export that again",
            )
        report = write_onnx_head(
            source,
            destination,
            head,
            node=self.node,
            output=self.output or None,
            categories=None if model.head is None else model.head.categories,
            overwrite=overwrite,
        )
        return [report]

    def compare(self, model: LoadedModel, source: Path, copy: Path, *, resized: bool) -> int:  # noqa: ARG002
        """Count the other tensors: the writer has compared all bytes of the file."""
        tensors = onnx_graph.list_tensors(open_onnx(copy))
        return len(list(tensors)) - (1 if model.bias_key is None else 2)


def write_onnx_head(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    head: Head,
    *,
    node: str | None = None,
    output: str | None = None,
    categories: Sequence[str] | None = None,
    overwrite: bool = False,
) -> WriteReport:
    """Write a head into a copy of an ONNX file; the input is never touched.

    Only the bytes of the layer's weight and bias change, and this is checked before the copy gets
    its name. Where Gemm has an alpha or beta, the numbers are divided by it; those that did not
    change keep their bytes, so that the head that was read gives the same file. External data are
    copied along under their own names: the copy then needs another folder than the source. The
    side file ``NAME.onnx.catwise.json`` keeps the names of the rows, the head's provenance, and
    digests of the rows that fitted it, which :func:`load_onnx` reads again.

    `node`, `output` and `categories` are those of :func:`load_onnx`.
    """
    file, target = open_onnx(source), Path(destination)
    layer = find_linear(file, output=output, node=node)
    for part in layer.parts:
        _refuse_shared(file, part)
    patches, after, report = _plan(file, layer, head, categories)
    copies = _plan_copies(file, target, changed={path for path, _, _ in patches})
    side = side_file(target)
    for path in (*copies.values(), side):  # what is left of a write that was killed may be there
        check_destination(
            path, copies, what="the model", overwrite=overwrite or not target.exists()
        )
    record = {
        "format": "catwise-onnx-head",
        "head": after.digest,
        "written": after.replace(categories=None).digest,
        "fitted_on": fitted_rows(after),
        "categories": list(after.categories),
        "node": layer.name,
        "provenance": head.provenance,
    }
    with ExitStack() as stack:  # the names come in the opposite order: the model's last
        for path, copy in copies.items():
            if path != file.path:
                copy.parent.mkdir(parents=True, exist_ok=True)
            mine = {span: data for at, span, data in patches if at == path}
            new = stack.enter_context(atomic_path(copy, replace=overwrite))
            _copy(file, path, new, mine)
        stack.enter_context(atomic_path(side)).write_text(json.dumps(record, indent=2) + "\n")
    return report


def _refuse_shared(file: OnnxFile, stored: Stored) -> None:
    """Refuse numbers that something else uses too, or that have no bytes of their own."""
    path, spans = spans_of(file, stored)
    reasons = [f"{n} uses of {name!r}" for name in stored.passed if (n := file.uses[name]) > 1]
    if not spans:
        reasons.append("half precision as int32_data, where a value decides on its length")
    external = onnx_graph.external_entry(file, stored.tensor)
    if external is not None:
        others = [x for x in onnx_graph.list_tensors(file) if x.data_location == 1]
        places = [spans_of(file, Stored(x.name, x, ())) for x in others]
        (low, high) = spans[0]
        n_here = sum(at == path and s[0][0] < high and low < s[0][1] for at, s in places)
        reasons += [f"{n_here} tensors with these bytes of '{path}'"] if n_here > 1 else []
        reasons += ["a checksum in its external data"] if "checksum" in external[1] else []
    if reasons:
        raise HeadError(
            f"{stored.name!r} of '{file.path}' cannot be replaced in place.",
            found="; ".join(reasons),
            expected="numbers in raw_data or external data that the head alone uses",
            remedy="export the model again with weights of its own for the head",
        )


def _plan(
    file: OnnxFile, layer: Linear, head: Head, categories: Sequence[str] | None
) -> tuple[list[tuple[Path, Span, bytes]], Head, WriteReport]:
    """The new bytes, the head that will be read from them, and the report; nothing is written."""
    old = read_head(file, layer, categories)
    named = categories is not None or stored_names(file, old) is not None
    state = {"weight": old.weight} | ({} if old.bias is None else {"bias": old.bias})
    names = old.categories if named else None
    try:
        new = write_head_to_state_dict(state, head, key="weight", categories=names)
    except CatwiseError as error:
        what = f"the head does not go into {layer.name!r} of '{file.path}': {error.what}"
        facts = {"found": error.found, "expected": error.expected, "remedy": error.remedy}
        raise type(error)(what, **facts) from error
    patches, parts = [], []
    for stored, key in zip(layer.parts, ("weight", "bias"), strict=False):
        was, factor = read_numbers(file, stored), layer.alpha if key == "weight" else layer.beta
        values = (new[key].T if layer.flip and key == "weight" else new[key]).reshape(was.shape)
        if factor != 1:  # what did not change keeps its bytes
            divided = (values.double() / factor).to(was.dtype)
            values = torch.where(values == times(was, factor), was, divided)
        parts.append(values)
        raw = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        path, spans = spans_of(file, stored)
        for start, stop in spans:
            patches.append((path, (start, stop), raw[: stop - start]))
            raw = raw[stop - start :]
    after = Head(*as_they_act(layer, parts), categories=old.categories)
    after = after.with_fitted_on(_fitted(head, old, after))
    by_name = set(head.categories) <= set(old.categories)
    order = enumerate(head.categories)
    rows = tuple(old.categories.index(name) if by_name else row for row, name in order)
    off = (head.weight.cpu().double() - after.weight[list(rows)].double()).abs().max()
    if head.bias is not None and after.bias is not None:
        off = off.max((head.bias.cpu().double() - after.bias[list(rows)].double()).abs().max())
    dtype = str(layer.weight.dtype).removeprefix("torch.")
    keys = [part.name for part in layer.parts] + [None]
    note = f"{layer.op} {layer.name!r}"
    location = HeadLocation(layer.weight.name, keys[1], "", *layer.shape, dtype, note)
    cast = f"rounded to {dtype}, by at most {float(off):.3g}" if off else ""
    return patches, after, WriteReport(location, rows, cast)


def _fitted(head: Head, old: Head, after: Head) -> Any:
    """The digests of the rows that fitted the layer as it will be; None where nobody knows."""
    if after.digest == old.digest:
        return old.fitted_on
    is_whole = head.n_categories == old.n_categories
    return head.fitted_on if is_whole else head.with_fitted_on(old.fitted_on).fitted_on


def _plan_copies(file: OnnxFile, target: Path, *, changed: set[Path]) -> dict[Path, Path]:
    """What is copied where: the model, and its external data where they must go along."""
    folder = file.path.parent
    entries = (onnx_graph.external_entry(file, x) for x in onnx_graph.list_tensors(file))
    external = {entry[0] for entry in entries if entry is not None}
    copies = {file.path: target}
    if target.parent.resolve() != folder.resolve():
        return copies | {path: target.parent / path.relative_to(folder) for path in external}
    if external & changed:
        raise OutputError(
            f"'{target}' cannot lie beside '{file.path}'.",
            found=f"the head's numbers are in '{min(external & changed)}', which both would name",
            remedy="choose another folder: the external data are copied along",
        )
    return copies


def _copy(file: OnnxFile, source: Path, new: Path, patches: Mapping[Span, bytes]) -> None:
    """Copy a file with other bytes in some ranges, and compare all of what was written."""
    shutil.copyfile(source, new)
    with new.open("r+b") as stream:
        for (start, _), data in patches.items():
            stream.seek(start)
            stream.write(data)
    at, same = 0, source.stat().st_size == new.stat().st_size
    with source.open("rb") as old, new.open("rb") as written:
        while same and (piece := bytearray(old.read(_CHUNK))):
            for (start, stop), data in patches.items():
                low, high = max(start, at), min(stop, at + len(piece))
                if low < high:
                    piece[low - at : high - at] = data[low - start : high - start]
            at, same = at + len(piece), written.read(len(piece)) == piece
    if not same:
        raise file.damaged("the file changed while it was copied", file=source)
