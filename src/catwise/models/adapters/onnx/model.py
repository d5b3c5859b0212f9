"""ONNX models: the head is read from the file, features come from onnxruntime, the head goes back.

An ONNX file does not say how an image becomes its input; the entry ``catwise.preprocessing`` of
its `metadata_props` does: the fields of `Preprocessing` as JSON, such as
``{"size": [224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "layout": "nhwc"}``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from catwise._json import parse
from catwise.errors import ConfigError, reason_of
from catwise.models.adapters.onnx.graph import OnnxFile, find_linear, open_onnx
from catwise.models.adapters.onnx.input import ImageInput, find_input
from catwise.models.adapters.onnx.numbers import read_head
from catwise.models.adapters.onnx.running import OnnxModule
from catwise.models.adapters.onnx.writing import OnnxWriter
from catwise.models.core import ASSUMED, LoadedModel, Preprocessing, Request

_MEAN_STD: Final = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
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
    """
    file = open_onnx(path)
    found = find_linear(file, output=output, node=node or layer, n_categories=n_categories)
    head = read_head(file, found, categories)
    preprocessing, image, said = _prepare(file, preprocessing, layout)
    notes = [f"the features are {found.features!r}, the input of {found}.", *said]
    if found.activations:
        chain = " of the ".join(reversed(found.activations))
        notes.append(f"the output {found.output!r} is the {chain} of the logits.")
    return LoadedModel(
        name=f"onnx:{path}",
        module=OnnxModule(
            file.path, head, features=found.features, logits=found.results[-1], image=image
        ),
        layer="head",
        preprocessing=preprocessing,
        head=head,
        weight_key=found.weight.name,
        bias_key=found.bias.name if found.bias else None,
        checkpoint=file.path,
        notes=notes,
        writer=OnnxWriter(found.name, found.output),
        output_is="" if found.output else "not the layer's",
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
    notes.append(f"{ASSUMED}: {size[0]} x {size[1]} pixels, {pixels}.")
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
            found=reason_of(error),
            expected="a JSON table with the fields of Preprocessing",
        ) from error
    return fields
