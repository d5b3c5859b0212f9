"""Running an ONNX graph by onnxruntime: as a module, so that extraction runs it as any other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from catwise.errors import CheckpointError, ConfigError, ShapeError, reason_of
from catwise.features.manifest import file_sha256
from catwise.heads import Head
from catwise.models.adapters.onnx import graph as onnx_graph
from catwise.models.adapters.onnx.graph import OnnxFile, import_onnx, open_onnx
from catwise.models.adapters.onnx.input import DTYPES, ImageInput
from catwise.models.layers import put_head


class OnnxModule(nn.Module):
    """Runs an ONNX file by onnxruntime; its classification layer stands as `head`.

    `head` is given what the graph's own layer is given, so that a hook on it catches the features;
    what is returned is what the graph's own layer gives, before any sigmoid. `features`, `logits`
    and `image` are the graph's tensors. The session is made when it is first needed.
    """

    def __init__(
        self, path: Path, head: Head, *, features: str, logits: str, image: ImageInput
    ) -> None:
        super().__init__()
        self.path, self.image, self.layout = path, image, image.layout
        self.features, self.logits = features, logits
        bias = head.bias is not None
        self.head = nn.Linear(head.n_features, head.n_categories, bias=bias, dtype=head.dtype)
        put_head(self.head, head)
        self._session: Any = None
        self._digest = ""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None}

    def extra_repr(self) -> str:
        """What the features depend on: a digest of the file and its external data; the layout."""
        if not self._digest:
            file = open_onnx(self.path)
            entries = (onnx_graph.external_entry(file, x) for x in onnx_graph.list_tensors(file))
            total = hashlib.sha256(file.raw)
            for path in sorted({entry[0] for entry in entries if entry is not None}):
                total.update(file_sha256(path).encode())
            self._digest = total.hexdigest()
        turned = "" if self.layout in {"", "nchw"} else f", layout={self.layout}"
        return f"sha256={self._digest}{turned}"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of preprocessed images."""
        if self._session is None:
            file = open_for_images(self.path, self.image)
            self._session = file, make_session(file, [self.features, self.logits])
        (file, session), sizes = self._session, (self.head.in_features, self.head.out_features)
        made = outputs_of(file, session, self.image, images, sizes)
        features, logits = map(torch.from_numpy, made)
        place = self.head.weight
        self.head(features.to(place))
        return logits.to(place.device)


def open_for_images(path: Path, image: ImageInput) -> OnnxFile:
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


def make_session(file: OnnxFile, wanted: Sequence[str]) -> Any:
    """The graph up to some of its tensors, ready to run."""
    onnx, runtime = import_onnx(), import_onnx("onnxruntime")
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
    folder = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(folder, str(file.path.parent.resolve()))
    try:
        whole = file.model.SerializeToString()
        return runtime.InferenceSession(whole, options, ["CPUExecutionProvider"])
    except Exception as error:
        raise _not_run(file, "load", error) from error


def _not_run(file: OnnxFile, what: str, error: Exception) -> CheckpointError:
    """The error for what onnxruntime raises: classes of its own, without a common base."""
    return CheckpointError(
        f"onnxruntime cannot {what} '{file.path}'.",
        found=reason_of(error),
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
            remedy="say its size: load_onnx(…, preprocessing=Preprocessing(size=…)) "
            "(--input-size HxW)",
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


def outputs_of(
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
