"""ONNX files at the level of the graph and of the bytes: the last linear layer, and its numbers.

An ONNX file is one protobuf message, `ModelProto`. The graph's constants are `TensorProto`s among
its initializers, or in the attribute of a Constant node; their numbers are a range of bytes in the
file itself, or in another file beside it ("external data").

Source: https://github.com/onnx/onnx, onnx/onnx.proto (field numbers) and docs/ExternalData.md;
https://protobuf.dev/programming-guides/encoding (wire format).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from catwise._extras import import_optional
from catwise._limits import (
    MAX_DEPTH,
    MAX_PROTOBUF,
    MAX_STEPS,
    check_at_most,
    check_shape,
    check_unpacked,
    read_within,
)
from catwise.errors import CheckpointError, HeadError, nearest, reason_of

ACTIVATIONS: Final = frozenset({"Sigmoid", "Softmax", "LogSoftmax"})
PASSED: Final = frozenset({"Identity", "Cast", "Dropout", "Flatten", "Reshape", "Squeeze"})
BEHIND: Final = ACTIVATIONS | PASSED
RESHAPING: Final = frozenset({"Flatten", "Reshape", "Squeeze"})
LAYERS: Final = frozenset({"Gemm", "MatMul", "Conv"})
QUANTISED: Final = re.compile("[Qq]uant|QLinear|Integer|NBits|QGemm|Bnb4|FpQ4")
FLOATS: Final = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
_ITEM_BYTES: Final = {
    1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2,
}  # fmt: skip
"""Of the numbers of each ONNX type that take whole bytes."""
_FIXED: Final = {1: 8, 5: 4}  # bytes of the kinds of fields that say nothing of their length
_MAX_PASSED: Final = 16
_SHOWN: Final = 6

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A constant as the file holds it."""

    name: str  # of its tensor in the graph
    tensor: Any  # its TensorProto
    path: tuple[Span, ...]  # field number and position, from the graph down to the TensorProto
    transposed: bool = False  # whether the graph transposes it before it is used
    passed: tuple[str, ...] = ()  # the tensors' names from it to the layer, its own among them

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return FLOATS[self.tensor.data_type]

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return tuple(int(size) for size in self.tensor.dims)


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear layer with constant weights: ``alpha * x @ weight.T + beta * bias``."""

    name: str  # of the node, or of its result where the node has none
    op: str
    features: str  # the tensor that it takes
    results: tuple[str, ...]  # the tensors that it gives, with and without the bias
    weight: Stored  # (C, D), (C, D, 1, 1), or (D, C) where `flip` is true
    bias: Stored | None  # C numbers, or None
    alpha: float
    beta: float
    flip: bool
    output: str  # the graph's output that it leads to; "" where none does
    after: tuple[str, ...]  # the operators from the layer to that output

    @property
    def shape(self) -> Span:
        """(C, D)."""
        first, second = self.weight.shape[:2]
        return (second, first) if self.flip else (first, second)

    @property
    def parts(self) -> tuple[Stored, ...]:
        """The weight, and the bias if there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def activations(self) -> tuple[str, ...]:
        """Sigmoid, Softmax and LogSoftmax behind the layer, the last one last."""
        return tuple(op for op in self.after if op in ACTIVATIONS)

    def __str__(self) -> str:
        rows, columns = self.shape
        leads = f", leads to {self.output!r}" if self.output else ""
        return f"{self.name!r} ({self.op}, {rows:,} categories × {columns:,} features{leads})"


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFile:
    """A file that was read and parsed; numbers in other files were not."""

    path: Path
    raw: bytes
    model: Any
    makers: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Stored] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    takers: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(value.name for value in self.model.graph.output)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What must be given to run the graph, as ValueInfoProto."""
        graph = self.model.graph
        given = {tensor.name for tensor in graph.initializer}
        return tuple(value for value in graph.input if value.name not in given)

    def damaged(self, reason: str, *, file: Path | None = None) -> CheckpointError:
        """The error for this file, or one beside it, that cannot be read."""
        return CheckpointError(
            f"cannot read the ONNX model '{file or self.path}'.",
            found=reason,
            expected="a whole ONNX file, with the files of its external data beside it",
            remedy="copy the file again if it was cut short, or export the model again "
            "(beyond 2 GiB with its weights as external data)",
        )


def import_onnx(module: str = "onnx") -> Any:
    """Import a module of onnx or onnxruntime."""
    return import_optional(module, extra="onnx", purpose="a model of the kind onnx")


def open_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Read and parse an ONNX file; external data stay on the disk."""
    onnx = import_onnx()
    empty = OnnxFile(Path(path), b"", None)
    try:
        raw = read_within(empty.path, MAX_PROTOBUF, "bytes of one protobuf message")
        _check_fields(raw, onnx.ModelProto.DESCRIPTOR)
    except (OSError, ValueError) as error:
        raise empty.damaged(getattr(error, "strerror", None) or str(error)) from error
    file = replace(empty, raw=raw, model=onnx.ModelProto())
    model = file.model
    try:
        model.ParseFromString(raw)
        _check_tensors(model)
        _check_functions(model)
        file.uses.update(name for node in _inner(model, "NodeProto") for name in node.input)
        for graph in _inner(model, "GraphProto"):
            file.uses.update(value.name for value in graph.output)
    except Exception as error:  # protobuf's versions raise different errors
        raise empty.damaged(reason_of(error)) from error
    if not raw or not model.graph.node or not model.graph.output or not model.opset_import:
        what = "the file is empty" if not raw else "it holds no whole graph"
        raise empty.damaged(f"{what} ({len(raw):,} bytes)")
    for position, node in enumerate(model.graph.node):
        if not node.output:
            raise file.damaged(f"node {position:,} gives nothing")
        file.makers.update({name: node for name in node.output if name})
        for name in dict.fromkeys(node.input):
            file.takers.setdefault(name, []).append(node)
        for place, attribute in enumerate(node.attribute):
            if node.op_type == "Constant" and attribute.name == "value":
                way = ((1, position), (5, place), (5, 0))
                file.constants[node.output[0]] = Stored(node.output[0], attribute.t, way)
    for position, tensor in enumerate(model.graph.initializer):
        if tensor.name in file.constants:
            raise file.damaged(f"the constant {tensor.name!r} is a duplicate")
        file.constants[tensor.name] = Stored(tensor.name, tensor, ((5, position),))
    return file


def _check_fields(raw: bytes, kind: Any) -> None:
    """Refuse too many protobuf fields, or too deep: parsed, two bytes may take a hundred times."""
    waiting: list[tuple[Any, Span, int]] = [(kind, (0, len(raw)), 1)]
    n_fields = n_packed = 0
    while waiting:
        kind, span, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it nests more than {MAX_DEPTH:,} messages")
        inner, whole = _parts_of(kind)
        for number, place in fields_of(raw, span):
            n_fields += 1
            if n_fields > MAX_STEPS:
                raise ValueError(f"it has more than {MAX_STEPS:,} fields")
            if number in inner:
                waiting.append((inner[number], place, depth + 1))
            elif number in whole:
                n_packed += place[1] - place[0]
    check_unpacked(None, 8 * n_packed, "the model's whole numbers")


@cache
def _parts_of(kind: Any) -> tuple[dict[int, Any], frozenset[int]]:
    """The fields of a message that are messages again, by number; those that are whole numbers."""
    fields = kind.fields_by_number.items()
    inner = {number: what.message_type for number, what in fields if what.message_type is not None}
    whole = (
        number
        for number, what in fields
        if what.type in {what.TYPE_INT32, what.TYPE_INT64, what.TYPE_UINT64}
    )
    return inner, frozenset(whole)


def _check_tensors(model: Any) -> None:
    """Refuse a tensor that claims more numbers than it holds."""
    for tensor in _inner(model, "TensorProto"):
        what = f"the tensor {tensor.name!r}"
        n_numbers = math.prod(check_shape(tensor.dims, what))
        size = _ITEM_BYTES.get(tensor.data_type, 0)
        if tensor.data_location == 1 or not size or not n_numbers:
            continue
        typed = (tensor.float_data, tensor.int32_data, tensor.int64_data)
        held = len(tensor.raw_data) // size
        held += sum(map(len, (*typed, tensor.double_data, tensor.uint64_data)))
        if n_numbers > held:
            raise ValueError(f"{what} claims {n_numbers:,} numbers, and holds {held:,}")
    for tensor in _inner(model, "SparseTensorProto"):
        check_shape(tensor.dims, "a sparse tensor")


def _check_functions(model: Any) -> None:
    """Refuse functions that call one another without end, or become too many nodes."""
    if not model.functions:
        return
    calls = {
        (function.domain, function.name): Counter(
            (node.domain, node.op_type) for node in _inner(function, "NodeProto")
        )
        for function in model.functions
    }
    sizes: dict[tuple[str, str], int] = {}
    waiting, path = [*calls], set[tuple[str, str]]()
    while waiting:  # the functions that one calls are counted before it
        name = waiting[-1]
        inner = [other for other in calls[name] if other in calls and other not in sizes]
        if name in sizes or not inner:
            sizes[name] = sum(n * sizes.get(other, 1) for other, n in calls[name].items())
            path.discard(waiting.pop())
        elif name in path:
            raise ValueError(f"the function {name[1]!r} calls itself")
        else:
            path.add(name)
            waiting += inner
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in list_nodes(model))
    check_at_most(total, MAX_STEPS, "nodes once its functions are written out")


def _inner(message: Any, kind: str) -> Iterator[Any]:
    """Every message of one kind inside another, however deep; what is not UTF-8 is refused."""
    for what, value in message.ListFields():
        single = hasattr(value, "ListFields") or isinstance(value, (str, bytes))
        if what.message_type is not None:
            for item in [value] if single else value:
                if what.message_type.name == kind:
                    yield item
                yield from _inner(item, kind)
        elif what.type == what.TYPE_STRING and any(
            isinstance(text, bytes) for text in ([value] if single else value)
        ):
            raise ValueError(f"the {what.name} of a {message.DESCRIPTOR.name} is not a text")


def list_tensors(file: OnnxFile) -> Iterator[Any]:
    """Every TensorProto of the model, those of inner graphs and functions too."""
    return _inner(file.model, "TensorProto")


def list_nodes(model: Any) -> Iterator[Any]:
    """Every NodeProto of a model's graph, those of inner graphs too."""
    return _inner(model.graph, "NodeProto")


def find_linear(
    file: OnnxFile,
    *,
    output: str | None = None,
    node: str | None = None,
    n_categories: int | None = None,
) -> Linear:
    """Find the classification layer, from the graph's outputs backwards."""
    if output is not None and output not in file.outputs:
        raise HeadError(
            f"'{file.path}' has no output {output!r}{nearest(output, file.outputs)}.",
            expected=f"one of {_names(file.outputs)}",
        )
    layers: list[Linear] = []
    reasons: list[str] = []
    for name in (output,) if output else file.outputs:
        found = _try_walk(file, name)
        if isinstance(found, Linear):
            layers.append(found)
        else:
            reasons.append(found)
    if node is not None:
        named = [layer for layer in layers if node in {layer.name, *layer.results}]
        return named[0] if named else _by_name(file, node)
    fits = [layer for layer in layers if n_categories in {None, layer.shape[0]}]
    if len({layer.results[0] for layer in fits}) == 1:
        found = min(fits, key=lambda layer: len(layer.activations))
        if output is None and n_categories is None:
            _refuse_others(file, found, reasons)
        return found
    if fits:
        raise HeadError(
            f"it is not clear which layer of '{file.path}' is the classification layer.",
            found="; ".join(map(str, fits[:_SHOWN])),
            remedy=f"say it with output={fits[0].output!r}, node={fits[0].name!r} or another",
        )
    reasons += [f"{layer} has another number of categories" for layer in layers]
    raise _none_fits(file, reasons, n_categories)


def _none_fits(file: OnnxFile, reasons: Sequence[str], n_categories: int | None) -> HeadError:
    """The error for a graph none of whose outputs leads to a layer that can be used."""
    others = [layer.name for layer in _all_layers(file)]
    rows = "" if n_categories is None else f", of {n_categories:,} categories"
    return HeadError(
        f"no output of '{file.path}' leads to a classification layer that can be used.",
        found="; ".join(reasons[:_SHOWN]),
        expected=f"Gemm, MatMul (and Add) or a 1×1 Conv with constant weights at the end{rows}",
        remedy="export the model again so that it ends in such a layer"
        + (
            f"; to take the features of another one, name it: node={others[-1]!r}" if others else ""
        ),
    )


def _refuse_others(file: OnnxFile, layer: Linear, reasons: Sequence[str]) -> None:
    """Refuse a layer beside which another output may be the logits: none before or behind it."""
    before = _reached({layer.features}, {name: node.input for name, node in file.makers.items()})
    behind = {
        name: [other for node in nodes for other in node.output]
        for name, nodes in file.takers.items()
    }
    known = before | _reached(set(layer.results), behind)
    if others := [name for name in file.outputs if name not in known]:
        why = [text for text in reasons if text.startswith(tuple(map(repr, others)))]
        raise HeadError(
            f"it is not clear which output of '{file.path}' are the logits.",
            found="; ".join([str(layer), *(why or map(repr, others))][:_SHOWN]),
            remedy=f"say it with output={layer.output!r} or another",
        )


def _reached(names: set[str], ways: Mapping[str, Sequence[str]]) -> set[str]:
    """All names that lie on a way from some of them, these too."""
    ahead = list(names)
    for name in ahead:
        fresh = [other for other in ways.get(name, ()) if other not in names]
        names |= set(fresh)
        ahead += fresh
    return names


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _by_name(file: OnnxFile, name: str) -> Linear:
    nodes = [n for n in file.model.graph.node if name == n.name or name in n.output]
    if len(nodes) != 1:
        known = [layer.name for layer in _all_layers(file)]
        raise HeadError(
            f"'{file.path}' has no single node {name!r}{nearest(name, known)}.",
            found=f"{len(nodes)} nodes of this name",
            expected=f"a linear layer, such as {_names(known[-_SHOWN:])}",
        )
    try:
        return _with_add(file, nodes[0])
    except ValueError as error:
        raise HeadError(
            f"the node {name!r} of '{file.path}' cannot be used.", found=str(error)
        ) from error


def _all_layers(file: OnnxFile) -> list[Linear]:
    """Every layer that could be named, in the graph's order."""
    found = []
    for node in file.model.graph.node:
        with contextlib.suppress(ValueError):
            found.append(_with_add(file, node))
    return found


def _with_add(file: OnnxFile, node: Any) -> Linear:
    """A node as a layer, with the bias that the only node behind it adds."""
    if node.op_type in LAYERS:
        behind = file.takers.get(node.output[0], [])
        if len(behind) == 1 and behind[0].op_type == "Add":
            with contextlib.suppress(ValueError):
                return replace(_walk(file, behind[0].output[0]), output="", after=())
    return _linear(file, node, None, (), "")


def _try_walk(file: OnnxFile, output: str) -> Linear | str:
    try:
        return _walk(file, output)
    except ValueError as error:
        return f"{output!r}: {error}"


def _walk(file: OnnxFile, output: str) -> Linear:
    """From a tensor back to a linear layer; a ValueError says why there is none."""
    tensor, add = output, None
    after: tuple[str, ...] = ()
    scale = _Scale()
    for _ in range(_MAX_PASSED):
        node = file.makers.get(tensor)
        if node is None:
            raise ValueError(f"{tensor!r} is not the result of a layer")
        what = f"{node.op_type} {node.name or node.output[0]!r}"
        if QUANTISED.search(node.op_type):
            raise ValueError(f"{what} is quantised: its numbers are not floats that can be tuned")
        if node.domain in {"", "ai.onnx"} and node.op_type in LAYERS:
            return _linear(file, node, add, after, output, scale=scale)
        if node.op_type == "Add" and add is None:
            add = node
            computed = [name for name in node.input if _resolve(file, name) is None]
            if len(computed) != 1:
                raise ValueError(f"{what} adds no constant to a layer's result")
            tensor = computed[0]
        elif node.input and node.op_type in (PASSED if add is not None else BEHIND):
            tensor = node.input[0]
        elif (scaled := _scaled(file, node)) is not None:
            scale = scale.times(scaled[1], node.output[0], is_behind_bias=add is None)
            tensor = scaled[0]
        else:
            raise ValueError(f"{what} {_between(file, node)}")
        after = (node.op_type, *after)
    raise ValueError("too many operators lie behind the last linear layer")


class _Scale(NamedTuple):
    """Constants that multiply a layer's result: a temperature, for one."""

    weight: float = 1.0
    bias: float = 1.0
    result: str = ""  # the tensor behind the last of them

    def times(self, factor: float, result: str, *, is_behind_bias: bool) -> _Scale:
        """One more, before those that are known."""
        if not is_behind_bias:
            return self._replace(weight=self.weight * factor)
        return _Scale(self.weight * factor, self.bias * factor, self.result or result)


_UNSCALED: Final = _Scale()


def _options(node: Any) -> dict[str, Any]:
    """The numbers among a node's attributes."""
    numbers = {1: "f", 2: "i", 7: "ints"}
    return {a.name: getattr(a, numbers[a.type]) for a in node.attribute if a.type in numbers}


def _scaled(file: OnnxFile, node: Any) -> tuple[str, float] | None:
    """What a node multiplies by one constant, and that; None where it does something else."""
    if node.op_type not in {"Mul", "Div"} or len(node.input) != 2:
        return None
    held = [_resolve(file, name) for name in node.input]
    constants = [at for at, one in enumerate(held) if one is not None]
    if len(constants) != 1 or (node.op_type == "Div" and constants != [1]):
        return None
    stored = held[constants[0]]
    if stored is None or math.prod(stored.shape) != 1 or stored.tensor.data_type not in FLOATS:
        return None
    value = float(import_onnx("onnx.numpy_helper").to_array(stored.tensor, _folder(file)).item())
    factor = value if node.op_type == "Mul" else (1 / value if value else 0.0)
    return (node.input[1 - constants[0]], factor) if 0 < factor < math.inf else None


def _folder(file: OnnxFile) -> str:
    return str(file.path.parent)


def _between(file: OnnxFile, node: Any) -> str:
    """Why a node behind the last linear layer is in the way."""
    if node.op_type in {"ReduceMax", "GlobalMaxPool", "MaxPool", "TopK", "Max"}:
        return "is a maximum over positions behind the last linear layer"
    ahead = [node]
    for one in ahead:
        if QUANTISED.search(one.op_type):
            return (
                "scales the result of a quantised layer: its numbers are not floats that can be "
                "tuned; use the model from before it was quantised"
            )
        if len(ahead) < _MAX_PASSED:
            ahead += [file.makers[name] for name in one.input if name in file.makers]
    return "lies between the last linear layer and the output"


def _linear(
    file: OnnxFile,
    node: Any,
    add: Any,
    after: tuple[str, ...],
    output: str,
    *,
    scale: _Scale = _UNSCALED,
) -> Linear:
    """A node (and the Add behind it) as a layer; a ValueError says why it is none."""
    name, op = node.name or node.output[0], node.op_type
    if op not in LAYERS or len(node.input) < 2:
        state = "quantised" if QUANTISED.search(node.op_type) else "not a linear layer"
        raise ValueError(f"{op} {name!r} is {state}")
    options, weight = _options(node), _resolve(file, node.input[1])
    if weight is None:
        raise ValueError(f"the weight of {op} {name!r} is not a constant")
    if problem := _not_linear(op, options, weight):
        raise ValueError(f"{op} {name!r} {problem}")
    beta = float(options.get("beta", 1.0)) if op == "Gemm" else 1.0
    biases = [i for i in node.input[2:3] if i and beta]
    if add is not None:
        biases += [i for i in add.input if _resolve(file, i) is not None]
        beta = 1.0 if len(biases) == 1 else beta
    if len(biases) > 1:
        raise ValueError(f"{op} {name!r} has a bias, and a second one is added")
    results = [node.output[0], *([] if add is None else [add.output[0]]), scale.result]
    rows_first = op == "Conv" or bool(options.get("transB", 0))
    layer = Linear(
        name=name,
        op=op,
        features=node.input[0],
        results=tuple(dict.fromkeys(filter(None, results))),
        weight=weight,
        bias=_resolve(file, biases[0]) if biases else None,
        alpha=(float(options.get("alpha", 1.0)) if op == "Gemm" else 1.0) * scale.weight,
        beta=beta * scale.bias,
        flip=rows_first == weight.transposed,
        output=output,
        after=after,
    )
    if biases:
        flat = bool(RESHAPING & set(after[: after.index("Add")] if add is not None else ()))
        _check_bias(layer, as_map=op == "Conv" and add is not None and not flat)
    _check_output(file, layer)
    return layer


def _check_bias(layer: Linear, *, as_map: bool) -> None:
    """Refuse a bias that is not one float for each category; `as_map`: of shape (C, 1, 1)."""
    rows, bias = layer.shape[0], layer.bias
    wanted = (rows, 1, 1) if as_map else (rows,)
    found = bias.shape if bias is not None else ()
    if found[-len(wanted) :] != wanted or math.prod(found) != rows or bias is None:
        raise ValueError(
            f"the bias of {layer.name!r} has the shape {found}: not one number for each category"
        )
    if bias.tensor.data_type not in FLOATS:
        raise ValueError(f"the bias of {layer.name!r} is quantised or holds no floats")


def _check_output(file: OnnxFile, layer: Linear) -> None:
    """A reshaped result must still be (N, C)."""
    values = {value.name: value for value in file.model.graph.output}
    if layer.output in values and RESHAPING & set(layer.after):
        sizes = [dim.dim_value for dim in values[layer.output].type.tensor_type.shape.dim]
        rows = [size for size in sizes[1:] if size != 1] or sizes[1:2]
        if any(size not in {0, layer.shape[0]} for size in rows):
            raise ValueError(f"{layer.name!r} gives {layer.shape[0]:,} numbers, not {sizes}")


def _not_linear(op: str, options: dict[str, Any], weight: Stored) -> str:
    """Why these options make no layer of one row for each category, or ''."""
    shape = weight.shape
    if weight.tensor.data_type not in FLOATS:
        return f"is quantised or holds no floats (ONNX type {weight.tensor.data_type})"
    if 0 in shape or len(shape) != (4 if op == "Conv" else 2):
        return f"has a weight of shape {shape}"
    if op == "Conv" and (
        shape[2:] != (1, 1)
        or options.get("group", 1) != 1
        or any(options.get("pads", ()))
        or weight.transposed
    ):
        return f"is not a 1×1 convolution (weight {shape}, group {options.get('group', 1)})"
    if options.get("transA", 0):
        return "transposes its features"
    return "multiplies its weight by 0" if options.get("alpha", 1.0) == 0 else ""


def _resolve(file: OnnxFile, name: str) -> Stored | None:
    """The constant that a tensor is, through casts and transposition; None: it is computed."""
    passed, transposed = [name], False
    for _ in range(_MAX_PASSED):
        if name in file.constants:
            return replace(file.constants[name], transposed=transposed, passed=tuple(passed))
        node = file.makers.get(name)
        if node is None or not node.input:
            return None
        if QUANTISED.search(node.op_type) and node.input[0] in file.constants:
            raise ValueError(f"{name!r} is a quantised constant")
        if node.op_type == "Transpose":
            perm = [list(a.ints) for a in node.attribute if a.name == "perm"]
            if perm not in ([], [[1, 0]]):
                return None
            transposed = not transposed
        elif node.op_type not in {"Identity", "Cast"}:
            return None
        name = node.input[0]
        passed.append(name)
    return None


def external_entry(file: OnnxFile, tensor: Any) -> tuple[Path, dict[str, str]] | None:
    """The file that holds a tensor's numbers, and what is said of it; None: the model's own."""
    if tensor.data_location != 1:
        return None
    entry = {item.key: item.value for item in tensor.external_data}
    location = entry.get("location", "")
    folder = file.path.parent
    inside = (folder / location).resolve().is_relative_to(folder.resolve())
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or not inside:
        raise file.damaged(f"{tensor.name!r} is to be read from {location!r}, out of the folder")
    return folder / location, entry


def fields_of(raw: bytes, span: Span | None = None) -> Iterator[tuple[int, Span]]:
    """The fields of a protobuf message: number, and where the content lies."""
    at, stop = span or (0, len(raw))
    while at < stop:
        key, at = (raw[at], at + 1) if raw[at] < 128 else _varint(raw, at, stop)
        kind = key & 7
        if kind == 2:
            size, at = _varint(raw, at, stop)
            end = at + size
        elif kind == 0:
            _, end = _varint(raw, at, stop)
        elif kind in _FIXED:
            end = at + _FIXED[kind]
        else:
            raise ValueError(f"the protobuf has a field of the unknown kind {kind}")
        if end > stop:
            raise ValueError(f"the protobuf's field {key >> 3} is cut short")
        yield key >> 3, (at, end)
        at = end


def _varint(raw: bytes, at: int, stop: int) -> Span:
    if at < stop and raw[at] < 128:
        return raw[at], at + 1
    value, shift = 0, 0
    while at < stop and shift < 70:
        value |= (raw[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if raw[at - 1] < 128:
            return value, at
    raise ValueError("the protobuf ends within a number")
