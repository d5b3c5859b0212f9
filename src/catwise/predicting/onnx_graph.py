"""A classifier as one ONNX graph: the model's own, and behind its logits what is decided.

Calibration by knots is a sum of ramps, one for each stretch between two knots. The operators are
of opset 13 and later; Mul and Add stand for affine maps.

Source: https://github.com/onnx/onnx, docs/Operators.md.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._extras import import_optional
from catwise._io import write_bytes
from catwise.errors import ConfigError
from catwise.models.adapters.onnx.running import OnnxModule, open_for_images, outputs_of
from catwise.models.packages import FAILS
from catwise.predicting.module import (
    OUTPUTS,
    cannot_export,
    check_same,
    in_pieces,
    metadata_of,
    output_names,
    probe_inputs,
    scores_of,
    wanted_of,
)

if TYPE_CHECKING:
    from catwise.decisions import DecisionRules
    from catwise.predicting.classifier import Classifier

_OPSET: Final = 17
_LEAST_OPSET: Final = 13
_LARGEST: Final = 2**31 - 1
_AXIS: Final = "n"
_FLOAT, _INT8 = 1, 3  # onnx's numbers for the types of the outputs


def export_graph(classifier: Classifier, path: Path) -> None:
    """Write one ONNX graph, once it gives what the classifier gives."""
    onnx = _package("onnx")
    runtime = _package("onnxruntime")
    model, logits = _scoring_graph(classifier, onnx)
    _append_decisions(model, logits, classifier.rules, onnx)
    onnx.helper.set_model_props(model, {**_props(model), **metadata_of(classifier)})
    if model.ByteSize() > _LARGEST:
        raise ConfigError(
            "the graph is too large for one ONNX file.",
            found=f"{model.ByteSize():,} bytes",
            expected="less than 2 GiB",
            remedy="export_torch (--torch-export) has no such bound",
        )
    onnx.checker.check_model(model)
    raw = model.SerializeToString()
    _check(classifier, raw, runtime)
    write_bytes(path, raw)


def _package(name: str) -> Any:
    return import_optional(name, extra="onnx", purpose="exporting to ONNX")


def _props(model: Any) -> dict[str, str]:
    return {one.key: one.value for one in model.metadata_props}


# --------------------------------------------------------------------------------- logits


def _scoring_graph(classifier: Classifier, onnx: Any) -> tuple[Any, str]:
    """A graph that makes the logits, and the name of that tensor, (N, C) float32."""
    if classifier.manifest.model is None:
        return _head_graph(classifier, onnx)
    module = classifier.model.module
    if isinstance(module, OnnxModule):
        return _own_graph(classifier, module, onnx)
    scores = scores_of(classifier)
    inputs = probe_inputs(classifier)[:2]
    axes = {"images": {0: _AXIS}, "scores": {0: _AXIS}}
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")  # of the exporter, about itself
            torch.onnx.export(
                scores,
                (inputs,),
                f"{folder}/scores.onnx",
                input_names=["images"],
                output_names=["scores"],
                dynamic_axes=axes,
                opset_version=_OPSET,
                dynamo=False,
            )
            return onnx.load(f"{folder}/scores.onnx"), "scores"
    except (*FAILS, AssertionError) as error:
        raise cannot_export("torch.onnx.export", error) from error


def _head_graph(classifier: Classifier, onnx: Any) -> tuple[Any, str]:
    """A graph of the head alone: features (N, D) → logits."""
    head, helper = classifier.head, onnx.helper
    weight = head.weight.detach().cpu().float().numpy()
    parts = [onnx.numpy_helper.from_array(weight, "weight")]
    names = ["features", "weight"]
    if head.bias is not None:
        bias = head.bias.detach().cpu().float().numpy()
        parts.append(onnx.numpy_helper.from_array(bias, "bias"))
        names.append("bias")
    node = helper.make_node("Gemm", names, ["scores"], name="head", transB=1)
    given = helper.make_tensor_value_info("features", _FLOAT, [_AXIS, head.n_features])
    graph = helper.make_graph([node], "classifier", [given], [], parts)
    opset = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8), "scores"


def _own_graph(classifier: Classifier, module: OnnxModule, onnx: Any) -> tuple[Any, str]:
    """The graph of an ONNX model up to what its layer gives, brought to (N, C) float32."""
    if classifier.flips:
        raise ConfigError(
            "an ONNX model with flips is not one graph.",
            remedy="make the classifier without flips, or run the model twice and take the mean",
        )
    model = onnx.load(str(module.path))
    version = next(one.version for one in model.opset_import if one.domain in {"", "ai.onnx"})
    if version < _LEAST_OPSET:
        raise ConfigError(
            "the graph of the model is too old for what is to be put behind it.",
            found=f"opset {version}",
            expected=f"opset {_LEAST_OPSET} or later",
            remedy="bring it to a later one with onnx.version_converter.convert_version",
        )
    graph = model.graph
    del graph.output[:]
    made = _Nodes(graph, onnx)
    given = made.node("Cast", [module.logits], to=_FLOAT)
    width = np.array([-1, module.head.out_features], dtype=np.int64)
    given = made.node("Reshape", [given, made.constant(width)])
    rows = classifier.rows
    if rows != [*range(module.head.out_features)]:
        given = made.node("Gather", [given, made.constant(np.array(rows, dtype=np.int64))], axis=1)
    return model, given


# ------------------------------------------------------------------------------ decisions


class _Nodes:
    """Appends nodes and constants to a graph, under names that are new in it."""

    def __init__(self, graph: Any, onnx: Any) -> None:
        self._graph, self._onnx = graph, onnx
        used = {name for node in graph.node for name in (*node.input, *node.output)}
        self._used = used | {one.name for one in (*graph.initializer, *graph.input)}

    def _name(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self._used:
            number += 1
            name = f"{wanted}_{number}"
        self._used.add(name)
        return name

    def constant(self, values: NDArray[Any]) -> str:
        """A constant; its name."""
        name = self._name("catwise_constant")
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """A node with one output; its name."""
        name = output or self._name(f"catwise_{kind.lower()}")
        node = self._onnx.helper.make_node(kind, inputs, [name], name=name, **attributes)
        self._graph.node.append(node)
        return name


def _append_decisions(model: Any, logits: str, rules: DecisionRules, onnx: Any) -> None:
    """Put what is decided behind the logits; it all becomes the graph's outputs."""
    graph = model.graph
    del graph.output[:]
    made = _Nodes(graph, onnx)
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    _rename(graph, taken & set(OUTPUTS))
    logits = f"own_{logits}" if logits in OUTPUTS else logits
    made.node("Identity", [logits], "logits")
    made.node("Sigmoid", [_calibrated(made, "logits", rules)], "probabilities")
    least = made.constant(rules.float32_thresholds())
    called = made.node("Cast", [made.node("GreaterOrEqual", ["logits", least])], to=_INT8)
    has = made.constant(~np.isnan(rules.thresholds))
    made.node("Where", [has, called, made.constant(np.array(-1, dtype=np.int8))], "decisions")
    if (cuts := rules.float32_cuts()) is not None:
        _append_sets(made, *cuts)
    shape = [_AXIS, len(rules.categories)]
    for name, kind in zip(output_names(rules), (_FLOAT, _FLOAT, _INT8, _INT8), strict=False):
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, shape))


def _append_sets(made: _Nodes, low: NDArray[np.float32], high: NDArray[np.float32]) -> None:
    """Codes of `SETS`: 1 where negative is in the set, and 2 where positive is.

    By logic and choice: runtimes need not add 8-bit numbers.
    """
    negative = made.node("Less", ["logits", made.constant(high)])
    positive = made.node("GreaterOrEqual", ["logits", made.constant(low)])
    none, one, two, both = (made.constant(np.array(code, dtype=np.int8)) for code in range(4))
    with_positive = made.node("Where", [negative, both, two])
    without = made.node("Where", [negative, one, none])
    made.node("Where", [positive, with_positive, without], "sets")


def _rename(graph: Any, names: set[str]) -> None:
    """Free the names of our outputs: tensors of the model that have them get others."""
    for node in graph.node:
        for side in (node.input, node.output):
            for at, name in enumerate(side):
                if name in names:
                    side[at] = f"own_{name}"
    for value in (*graph.initializer, *graph.input, *graph.value_info):
        if value.name in names:
            value.name = f"own_{value.name}"


def _calibrated(made: _Nodes, logits: str, rules: DecisionRules) -> str:
    """The calibrated logits, by the very numbers of the torch module."""
    module = rules.module().calibration
    scale, offset = (made.constant(part.numpy()) for part in (module.scale, module.offset))
    affine = made.node("Add", [made.node("Mul", [logits, scale]), offset])
    if not module.has_knots:
        return affine
    x, y = module.x.numpy(), module.y.numpy()
    width = np.maximum(x[:, 1:] - x[:, :-1], np.float32(1e-30))
    last = made.constant(np.array([2], dtype=np.int64))
    z = made.node("Unsqueeze", [logits, last])
    ahead = made.node("Sub", [z, made.constant(x[:, :-1])])
    share = made.node("Div", [ahead, made.constant(width)])
    ends = [made.constant(np.array(end, dtype=np.float32)) for end in (0.0, 1.0)]
    share = made.node("Clip", [share, *ends])
    ramps = made.node("Mul", [share, made.constant(y[:, 1:] - y[:, :-1])])
    total = made.node("ReduceSum", [ramps, last], keepdims=0)
    start = made.constant(y[:, 0] + module.offset.numpy())
    curve = made.node("Add", [total, start])
    return made.node("Where", [made.constant(module.by_knots.numpy()), curve, affine])


def _check(classifier: Classifier, raw: bytes, runtime: Any) -> None:
    """Run the graph on a few inputs, beside the classifier."""
    inputs, names = probe_inputs(classifier), output_names(classifier.rules)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(raw, options, ["CPUExecutionProvider"])
    module = None if classifier.manifest.model is None else classifier.model.module
    name = session.get_inputs()[0].name
    if isinstance(module, OnnxModule):
        file, image = open_for_images(module.path, module.image), replace(module.image, name=name)
        sizes = [len(classifier.categories)] * len(names)

        def run(some: torch.Tensor) -> list[Any]:
            return list(outputs_of(file, session, image, some, sizes))
    else:

        def run(some: torch.Tensor) -> list[Any]:
            return list(session.run(list(names), {name: some.numpy()}))

    given = in_pieces(run, inputs)
    check_same(classifier.rules, wanted_of(classifier, inputs), given, what="the exported graph")
