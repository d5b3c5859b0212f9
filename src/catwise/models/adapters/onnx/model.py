"""ONNX models: the head is read from the file, features come from onnxruntime, the head goes back.

The model is never unpacked or exported again: writing overwrites the head's numbers in a copy, and
every other byte stays. What made the head is told beside the file, in ``NAME.onnx.catwise.json``:
in the file it would be a new entry of `metadata_props`, so that the file would change where no
weight lies, grow with each head, and the head that was read would not give the same file again.

An ONNX file does not say how an image becomes its input; the entry ``catwise.preprocessing`` of
its `metadata_props` does: the fields of `Preprocessing` as JSON, such as
``{"size": [224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "layout": "nhwc"}``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._io import atomic_path
from catwise._json import parse, read_file
from catwise.errors import (
    CatwiseError,
    CheckpointError,
    ConfigError,
    HeadError,
    OutputError,
    ShapeError,
)
from catwise.heads import Head, HeadLocation, WriteReport, write_head_to_state_dict
from catwise.heads.fit import check_destination
from catwise.heads.provenance import fitted_rows, recall_rows, side_file
from catwise.models.adapters.onnx import graph as onnx_graph
from catwise.models.adapters.onnx.graph import (
    Linear,
    OnnxFile,
    Span,
    Stored,
    find_linear,
    import_onnx,
    open_onnx,
)
from catwise.models.adapters.onnx.input import DTYPES, ImageInput, find_input
from catwise.models.adapters.onnx.module import OnnxModule
from catwise.models.core import LoadedModel, Preprocessing, Request
from catwise.models.packages import first_line

_MEAN_STD: Final = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
_CHUNK: Final = 2**22
_OWN_OPTIONS: Final = ("layout", "node", "output", "preprocessing")


def load_onnx(
    path: str | os.PathLike[str],
    *,
    output: str | None = None,
    node: str | None = None,
    layer: str | None = None,
    n_categories: int | None = None,
    categories: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    layout: str | None = None,
) -> LoadedModel:
    """Load an ONNX model: its head, and what extraction needs. Nothing is run.

    The classification layer is a Gemm, a MatMul (and Add) or a 1×1 Conv with constant weights; it
    is found from the graph's outputs backwards, through Sigmoid, Softmax, Cast, Flatten and the
    like. Features are the tensor that it takes.

    Args:
        path: the file; its external data lie beside it.
        output: the graph's output to start from, where there are several.
        node: name of the layer's node, or of its result, where that is not enough.
        layer: the same as `node`; what `load_model` calls it.
        n_categories: how many rows the layer must have; tells outputs apart.
        categories: names of its rows; by default those that its side file knows.
        preprocessing: how images become its input; by default what the file's metadata say.
        layout: the order of its input's axes, such as "nhwc" (channels last); by default what the
            metadata say, else what the graph's first operators and the sizes tell.

    Returns:
        The model; its module runs the file by onnxruntime, and so does :func:`extract_onnx`.

    Raises:
        CheckpointError: If the file is missing, cut short, or no ONNX model.
        HeadError: If the layer is not clear (its candidates are listed), quantised, or not finite.
        MissingExtraError: If onnx or onnxruntime is absent or broken.
        ConfigError: If the metadata cannot be used, or the layout is not clear.
        ShapeError: If the names do not fit the layer.
    """
    file = open_onnx(path)
    found = find_linear(file, output=output, node=node or layer, n_categories=n_categories)
    head = _read_head(file, found, categories)
    preprocessing, image, said = _prepare(file, preprocessing, layout)
    notes = [f"the features are {found.features!r}, the input of {found}.", *said]
    if found.activations:
        chain = " of the ".join(reversed(found.activations))
        notes.append(f"the output {found.output!r} is the {chain} of the logits.")
    return LoadedModel(
        name=f"onnx:{path}",
        module=_module(file.path, head, found, image),
        layer="head",
        preprocessing=preprocessing,
        head=head,
        weight_key=found.weight.name,
        bias_key=found.bias.name if found.bias else None,
        checkpoint=file.path,
        notes=notes,
        writer=OnnxWriter(found.name, found.output),
    )


def load_by_request(request: Request) -> LoadedModel:
    """Load what `load_model` was asked for; its `model_args` are further options of `load_onnx`."""
    if unknown := sorted(request.model_args.keys() - set(_OWN_OPTIONS)):
        raise ConfigError(
            f"a model of the kind 'onnx' takes no {', '.join(unknown)}.",
            expected=", ".join(_OWN_OPTIONS),
        )
    return load_onnx(
        request.name,
        layer=request.layer,
        n_categories=request.n_categories,
        categories=request.categories,
        **request.model_args,
    )


@dataclass(frozen=True)
class OnnxWriter:
    """Writes into a copy of an ONNX file; `node` and `output` tell its layer."""

    node: str
    output: str

    def write(
        self, model: LoadedModel, head: Head, source: Path, destination: Path, *, overwrite: bool
    ) -> list[WriteReport]:
        """Write the copy; see :func:`write_onnx_head`."""
        report = write_onnx_head(
            source,
            destination,
            head,
            node=self.node,
            output=self.output,
            categories=None if model.head is None else model.head.categories,
            overwrite=overwrite,
        )
        return [report]

    def compare(self, model: LoadedModel, source: Path, copy: Path) -> int:  # noqa: ARG002
        """Count the other tensors: the writer has compared all bytes of the file."""
        tensors = onnx_graph.list_tensors(open_onnx(copy))
        return len(list(tensors)) - (1 if model.bias_key is None else 2)


def _module(path: Path, head: Head, layer: Linear, image: ImageInput) -> OnnxModule:
    """What runs the file: features and logits of images, in the model's dtype."""
    wanted = [layer.features, layer.results[-1]]  # the layer itself would keep the file in memory

    def session() -> Any:
        file = _open_for_images(path, image)
        return file, _session(file, wanted, None, None)

    def run(made: Any, images: Any) -> tuple[Any, Any]:
        file, ready = made
        sizes = head.n_features, head.n_categories
        features, logits = _outputs(file, ready, image, images, sizes)
        return features, logits

    return OnnxModule(path, head, features=wanted[0], image=image, session=session, run=run)


def _read_head(file: OnnxFile, layer: Linear, categories: Sequence[str] | None = None) -> Head:
    """The layer as a head, with its rows' names and what fitted it where that is known."""
    head = Head(*_effective(layer, [_read(file, stored) for stored in layer.parts]))
    head = recall_rows(head, file.path, None)
    names = categories if categories is not None else _stored_names(file, head)
    return head if names is None else head.replace(categories=names)


def _effective(layer: Linear, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Weight (C, D) and bias (C,) as they act: alpha and beta are multiplied in."""
    weight = (parts[0].T if layer.flip else parts[0]).reshape(layer.shape)
    return [_times(weight, layer.alpha), *(_times(b.reshape(-1), layer.beta) for b in parts[1:])]


def _times(values: torch.Tensor, factor: float) -> torch.Tensor:
    if factor == 1:
        return values
    exact = values.double() * factor
    return exact if values.dtype == torch.float64 else exact.float()


def _stored_names(file: OnnxFile, head: Head) -> list[str] | None:
    """Names of the rows, from the side file if it was written with this head."""
    with suppress(OSError, ValueError, TypeError, KeyError, CatwiseError):
        side = read_file(side_file(file.path))
        if head.replace(categories=side["categories"]).digest == side["head"]:
            return list(side["categories"])
    return None  # no side file, or one of another head


def _prepare(
    file: OnnxFile, given: Preprocessing | None, layout: str | None
) -> tuple[Preprocessing, ImageInput, list[str]]:
    """How images become the input, what that takes, and what to know about it."""
    fields = {} if given else _read_metadata(file)
    if layout is None and given is not None and given.layout != "nchw":
        layout = given.layout
    said = fields.get("layout") if layout is None else layout
    image = find_input(file, said)
    order, notes = image.layout or "nchw", []
    if not image.layout:
        notes.append(f"the input {image.name!r} of sizes {image.sizes} takes no images.")
    if order != "nchw" or said is not None:
        notes.append(f"the input {image.name!r} is read as {order}: {image.reason}.")
    if given is not None:
        return given if given.layout == order else given.for_layout(order), image, notes
    if fields:
        return Preprocessing(**{**fields, "layout": order}), image, notes
    size = (image.size("h") or 224, image.size("w") or 224)
    channels = 1 if image.channels == 1 else 3
    mean, std = _MEAN_STD[channels]
    source, pixels = "assumed", "ImageNet's mean and std"
    if image.white is not None:
        mean, std = (0.0,) * channels, (1 / image.white,) * channels
        source = "pixels by the graph, the rest assumed"
        pixels = f"pixels go in as 0 to {image.white:.0f}"
        if image.arithmetic:
            pixels += f", for the graph normalises by itself ({', '.join(image.arithmetic)})"
    elif image.arithmetic:
        pixels += f", though the graph begins with {', '.join(image.arithmetic)}"
    notes.append(f"the preprocessing is assumed: {size[0]} x {size[1]} pixels, {pixels}.")
    if image.layout and image.channels not in {0, 1, 3}:
        notes.append(f"the input takes {image.channels} channels: images have 1 or 3.")
    made = Preprocessing(size, mean, std, channels=channels, source=source, layout=order)
    return made, image, notes


def _read_metadata(file: OnnxFile) -> dict[str, Any]:
    """The fields of the preprocessing that the metadata state; none where they state none."""
    texts = [p.value for p in file.model.metadata_props if p.key == "catwise.preprocessing"]
    if not texts:
        return {}
    try:
        fields: dict[str, Any] = {"source": "ONNX metadata", **parse(texts[0])}
        fields |= {key: tuple(v) for key, v in fields.items() if isinstance(v, list)}
        Preprocessing(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the metadata catwise.preprocessing of '{file.path}' cannot be used.",
            found=first_line(error),
            expected="a JSON table with the fields of Preprocessing",
        ) from error
    return fields


def extract_onnx(
    model: LoadedModel,
    batches: Iterable[Any],
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
) -> Iterator[NDArray[Any]]:
    """Run images through the backbone of an ONNX model.

    The tensor that the classification layer takes becomes the output of the graph in memory; the
    file is not touched. What lies behind it is not computed. A model with a fixed batch size is
    given batches of that size, the last one filled up.

    Args:
        model: what :func:`load_onnx` gave.
        batches: (K, channels, height, width) arrays or tensors, preprocessed; turned to the order
            of axes that the model takes, and cast to its dtype.
        threads: of onnxruntime; its own choice when not given.
        providers: of onnxruntime, such as ["CUDAExecutionProvider"]; the CPU when not given.

    Returns:
        An iterator of (K, D) features, one array for each batch, in the model's dtype.

    Raises:
        MissingExtraError: If onnxruntime is absent or broken.
        ConfigError: If it lacks the provider, or the model has
            further inputs or takes no floats.
        CheckpointError: If onnxruntime cannot load or run the model.
        ShapeError: If the batches do not fit the input, or the features are not (N, D).
    """
    module = model.module
    if model.checkpoint is None or model.head is None or not isinstance(module, OnnxModule):
        raise ConfigError(f"{model.name} is not an ONNX model.", expected="what load_onnx gave")
    file = _open_for_images(model.checkpoint, module.image)
    session = _session(file, [module.features], threads, providers)
    sizes = (model.head.n_features,)
    return (_outputs(file, session, module.image, x, sizes)[0] for x in batches)


def _open_for_images(path: Path, image: ImageInput) -> OnnxFile:
    """A file that takes nothing but images."""
    file = open_onnx(path)
    kinds = {value.name: value.type.tensor_type.elem_type for value in file.inputs}
    is_code = image.kind == 2 and image.white is None
    if len(kinds) != 1 or not set(kinds.values()) <= DTYPES.keys() or is_code:
        raise ConfigError(
            f"'{file.path}' takes something else than preprocessed images.",
            found=", ".join(f"{name!r} of ONNX type {kind}" for name, kind in kinds.items())
            + (", quantised by a scale of its own" if is_code else ""),
            expected="one input of float16 (10), float32 (1), float64 (11), or of pixels as uint8 "
            "(2)",
            remedy="export the model so that it takes the images alone",
        )
    return file


def _session(file: OnnxFile, wanted: Sequence[str], threads: int | None, providers: Any) -> Any:
    """The graph up to some of its tensors, ready to run."""
    onnx, runtime = import_onnx(), import_onnx("onnxruntime")
    asked, there = list(providers or ["CPUExecutionProvider"]), runtime.get_available_providers()
    if not set(asked) <= set(there):
        raise ConfigError("onnxruntime lacks a provider.", found=str(asked), expected=str(there))
    graph = file.model.graph
    del graph.output[:]
    for position, tensor in enumerate(wanted):
        name = f"catwise_{position}"
        while name in file.makers or name in file.uses:
            name += "_"
        graph.node.append(onnx.helper.make_node("Identity", [tensor], [name]))
        graph.output.append(onnx.ValueInfoProto(name=name))
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or 0
    folder = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(folder, str(file.path.parent.resolve()))
    try:
        return runtime.InferenceSession(file.model.SerializeToString(), options, asked)
    except Exception as error:
        raise _not_run(file, "load", error) from error


def _not_run(file: OnnxFile, what: str, error: Exception) -> CheckpointError:
    """The error for what onnxruntime raises: classes of its own, without a common base."""
    return CheckpointError(
        f"onnxruntime cannot {what} '{file.path}'.",
        found=first_line(error),
        remedy="try onnx.checker.check_model on it; update onnxruntime, or export again",
    )


def _as_input(batch: Any, image: ImageInput, file: OnnxFile) -> NDArray[Any]:
    """A batch in the model's dtype and its order of axes, an axis for the images first."""
    values = batch.detach().cpu().numpy() if isinstance(batch, torch.Tensor) else np.asarray(batch)
    layout, sizes = image.layout, image.sizes or ()
    wanted = tuple(image.size(letter) for letter in "nchw") if layout else sizes
    if layout:
        wanted = (0, image.channels, *wanted[2:])
    fits = (size in {0, given} for size, given in zip(wanted[1:], values.shape[1:], strict=False))
    if (wanted and len(wanted) != values.ndim) or not all(fits):
        raise ShapeError(
            f"the images do not fit the input {image.name!r} of '{file.path}'.",
            found=f"shape {values.shape}",
            expected=f"sizes {list(wanted)}, where 0 is free"
            + (f"; the input itself is {layout}" if layout not in {"", "nchw"} else ""),
            remedy="say its preprocessing: load_onnx(…, preprocessing=Preprocessing(size=…))",
        )
    if layout:
        values = values.transpose(
            [0, *("nchw".index(letter) for letter in layout if letter != "n")]
            + ([] if "c" in layout else [1])
        )
        values = values if "c" in layout else values[..., 0]
    dtype = DTYPES[image.kind]
    if dtype == np.uint8 and values.dtype != np.uint8:
        values = _as_bytes(values, image, file)
    return np.ascontiguousarray(values, dtype=dtype)


def _as_bytes(values: NDArray[Any], image: ImageInput, file: OnnxFile) -> NDArray[Any]:
    """Pixels from 0 to 255, rounded."""
    rounded: NDArray[Any] = np.rint(values)
    if values.size and not (rounded.min() >= 0 and rounded.max() <= 255):
        raise ShapeError(
            f"the images do not fit the input {image.name!r} of '{file.path}'.",
            found=f"values from {values.min():.4g} to {values.max():.4g}",
            expected="pixels from 0 to 255, as uint8",
            remedy="mean 0 and std 1/255 (--mean 0 --std 0.00392156862745098) give these",
        )
    return rounded


def _pieces(values: NDArray[Any], image: ImageInput) -> Iterator[tuple[NDArray[Any], int]]:
    """What is run at once, filled up to the batch that the model takes, and how many are meant."""
    layout = image.layout or "n"
    fixed = (image.sizes[layout.index("n")] if image.sizes else 0) if "n" in layout else 1
    at = layout.index("n") if "n" in layout else 0
    for start in range(0, len(values), fixed or max(1, len(values))):
        piece = values[start : start + (fixed or len(values))]
        filled = np.resize(piece, (fixed, *piece.shape[1:])) if fixed else piece
        given = np.moveaxis(filled, 0, at) if "n" in layout else filled[0]
        yield np.ascontiguousarray(given), len(piece)


def _outputs(
    file: OnnxFile, session: Any, image: ImageInput, batch: Any, sizes: Sequence[int]
) -> list[NDArray[Any]]:
    """What a session gives for a batch, a row for each image, in pieces that the model takes."""
    values = _as_input(batch, image, file)
    empty = np.float32 if values.dtype == np.uint8 else values.dtype
    parts = [[np.empty((0, size), empty)] for size in sizes]
    for piece, n_meant in _pieces(values, image):
        try:
            made = session.run(None, {image.name: piece})
        except Exception as error:
            raise _not_run(file, "run", error) from error
        layout = image.layout or "n"
        n_images = piece.shape[layout.index("n")] if "n" in layout else 1
        for given, size, kept in zip(map(np.asarray, made), sizes, parts, strict=True):
            rows = given[None] if given.ndim == 1 and "n" not in layout else given
            one = rows.size == n_images * size and size in rows.shape[1:]
            if rows.ndim < 2 or len(rows) != n_images or not one:
                raise ShapeError(
                    f"what the classification layer of '{file.path}' takes or gives is not a row "
                    "for each image.",
                    found=f"shape {given.shape} for {n_images:,} images",
                    expected=f"({n_images}, {size}), or with further sizes of 1",
                    remedy="name another layer with node='…'",
                )
            kept.append(rows[:n_meant].reshape(n_meant, size))
    return [np.concatenate(part[1:] or part) for part in parts]


def _spans(file: OnnxFile, stored: Stored) -> tuple[Path, list[Span]]:
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
        reason = getattr(error, "strerror", None) or first_line(error)
        raise file.damaged(reason, file=where) from error
    raw = [s for n, s in parts if n == 9][-1:]
    return where, raw or [s for n, s in parts if n == {1: 4, 11: 10}.get(stored.tensor.data_type)]


def _read(file: OnnxFile, stored: Stored) -> torch.Tensor:
    """A constant's numbers, in the shape that is stored."""
    path, spans = _spans(file, stored)
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

    Args:
        source: the model.
        destination: the new file; its folder must exist.
        head: the head; cast to the file's dtype.
        node: the layer, as in :func:`load_onnx`.
        output: the graph's output, as there.
        categories: names of the file's rows, as in :func:`catwise.write_head`; by default those
            that the file or its side file knows.
        overwrite: replace files that are there.

    Returns:
        What was written.

    Raises:
        CheckpointError: If the source cannot be read, or its bytes are not where they should be.
        HeadError: If the layer is not clear or quantised; if its numbers are used elsewhere too
            or have no bytes of their own; if only one of head and layer has a bias.
        ShapeError: If head and layer differ in features or rows.
        CategoryError: If a category is not among the rows.
        OutputError: If a file is there, is the source's own, or cannot be written.
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
    path, spans = _spans(file, stored)
    reasons = [f"{n} uses of {name!r}" for name in stored.passed if (n := file.uses[name]) > 1]
    if not spans:
        reasons.append("half precision as int32_data, where a value decides on its length")
    external = onnx_graph.external_entry(file, stored.tensor)
    if external is not None:
        others = [x for x in onnx_graph.list_tensors(file) if x.data_location == 1]
        places = [_spans(file, Stored(x.name, x, ())) for x in others]
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
    old = _read_head(file, layer, categories)
    named = categories is not None or _stored_names(file, old) is not None
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
        was, factor = _read(file, stored), layer.alpha if key == "weight" else layer.beta
        values = (new[key].T if layer.flip and key == "weight" else new[key]).reshape(was.shape)
        if factor != 1:  # what did not change keeps its bytes
            divided = (values.double() / factor).to(was.dtype)
            values = torch.where(values == _times(was, factor), was, divided)
        parts.append(values)
        raw = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        path, spans = _spans(file, stored)
        for start, stop in spans:
            patches.append((path, (start, stop), raw[: stop - start]))
            raw = raw[stop - start :]
    after = Head(*_effective(layer, parts), categories=old.categories)
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
