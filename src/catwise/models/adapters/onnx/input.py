"""What an ONNX graph takes for an image: the order of its axes, its numbers, its own arithmetic.

An ONNX file states the sizes of its input, some of them or none, and not what they mean. The first
operators do: convolutions and poolings take (N, C, H, W), so that the transpositions between the
input and them tell the order of its axes. What neither says is asked for, never guessed.

Source: https://github.com/onnx/onnx, docs/Operators.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.errors import ConfigError
from catwise.models.adapters.onnx.graph import QUANTISED, OnnxFile, import_onnx, list_nodes
from catwise.models.core import check_layout
from catwise.models.packages import FAILS

DTYPES: Final = {1: np.float32, 2: np.uint8, 10: np.float16, 11: np.float64}
"""Of inputs that take images: uint8 ones take pixels from 0 to 255."""
_FIXED: Final = frozenset({
    "Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "DeformConv", "FusedConv",
    "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN",
    "SpaceToDepth", "DepthToSpace", "MaxRoiPool", "RoiAlign", "GridSample",
    "QLinearAveragePool", "QLinearGlobalAveragePool", "ReorderInput",
})  # fmt: skip
_KERNEL: Final = {"QLinearConv": 3}
_KEPT: Final = frozenset({
    "Identity", "Cast", "CastLike", "Clip", "Relu", "Resize", "Upsample", "Dropout",
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
})  # fmt: skip
_CUT: Final = frozenset({"Concat", "Split", "Slice", "Pad", "Tile", "Gather"})
_BENT: Final = frozenset({
    "Abs", "Sqrt", "Pow", "Exp", "Log", "Max", "Min", "Mod", "Round", "Floor", "Ceil", "Where",
    "Sigmoid", "Tanh", "LeakyRelu", "Reciprocal",
})  # fmt: skip
_AFFINE: Final = frozenset({"Add", "Sub", "Mul", "Div", "Neg"})
_REDUCED: Final = frozenset({"ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"})
_MAX_STEPS: Final = 500
_MAX_NUMBERS: Final = 2**20
_MAX_PASSED: Final = 16
_MAX_RANK: Final = 16
_INT, _INTS = 2, 7  # kinds of attributes
_COLOURS: Final = (1, 3)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input of a graph that takes the images."""

    name: str
    # its axes in order, of ``n`` (images), ``c`` (channels), ``h`` and ``w``; "" where it takes
    # no images
    layout: str
    # its declared sizes; 0 where one is free. None where even their number is free
    sizes: tuple[int, ...] | None
    channels: int  # how many; 0 where that is not known
    kind: int  # ONNX's number for its dtype
    # the largest value of a pixel, 1 or 255, where the graph normalises by itself, or takes
    # bytes; None where it does not, or that is not clear
    white: float | None
    reason: str  # what the layout was read from, in words
    arithmetic: tuple[str, ...]  # the graph's own operators on the pixels, in order

    def size(self, letter: str) -> int:
        """Declared size of an axis; 0 where it is free, or there is none."""
        at = self.layout.find(letter)
        return self.sizes[at] if self.sizes and at >= 0 else 0


def sizes_of(value: Any) -> tuple[int, ...] | None:
    """Declared sizes of an input; 0 where one is free, None where their number is."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(max(0, int(dim.dim_value)) for dim in kind.shape.dim)


def find_input(file: OnnxFile, layout: str | None = None) -> ImageInput:
    """Find what takes the images, and how it lies."""
    images = [value for value in file.inputs if len(sizes_of(value) or ()) == 4] or [*file.inputs]
    if not images:
        raise file.damaged("the graph has no input")
    value = images[0]
    sizes, kind = sizes_of(value), int(value.type.tensor_type.elem_type)
    seen = _Trace(file, value.name).run(sizes)
    told, reason = _layout(file, value, sizes, seen, layout)
    found = ImageInput(value.name, told, sizes, 0, kind, seen.white, reason, seen.arithmetic)
    counted = {said.channels for said in seen.places if said.layout() == told} - {0}
    channels = found.size("c") or (counted.pop() if len(counted) == 1 else 0)
    if told and "c" not in told:
        channels = 1
    white = 255.0 if kind == 2 and not seen.is_quantised else found.white
    return replace(found, channels=channels, white=white)


def _layout(
    file: OnnxFile, value: Any, sizes: tuple[int, ...] | None, seen: _Seen, said: str | None
) -> tuple[str, str]:
    """The order of an input's axes, and where that is from."""
    name = value.name
    by_graph = {text: place.by for place in seen.places if (text := place.layout())}
    if said is not None:
        said = check_layout(said)
        if sizes is not None and len(said) != len(sizes):
            raise ConfigError(
                f"the layout {said!r} does not fit the input {name!r} of '{file.path}'.",
                found=f"{len(said)} axes, and the sizes {_shown(sizes)}",
                expected="a letter for each axis",
            )
        others = [f"{by} reads it as {text}" for text, by in by_graph.items() if text != said]
        return said, f"as said{', though ' + ' and '.join(others) if others else ''}"
    usual = [text for text in by_graph if text.index("h") < text.index("w")]
    by_sizes = _by_sizes(value)
    if len(by_graph) == 1 and usual and (len(by_sizes) != 1 or by_sizes == usual):
        return usual[0], f"{by_graph[usual[0]]} takes it so"
    hints = {at for at, _ in seen.hints}
    is_four = sizes is not None and len(sizes) == 4
    likely = by_sizes or (["nchw", "nhwc"] if hints and is_four else [])
    likely = [text for text in likely if hints <= {text.index("c")}]
    if not by_graph and len(likely) == 1:
        by = f"by its sizes {_shown(sizes)}" if len(by_sizes) == 1 else seen.hints[0][1]
        return likely[0], by
    if not by_graph and sizes is not None and len(sizes) not in {3, 4}:
        return "", "it takes no images"
    facts = [f"{by} reads it as {text}" for text, by in by_graph.items()]
    facts += [f"{by} sets axis {at} apart" for at, by in seen.hints if not by_graph]
    raise ConfigError(
        f"it is not clear how images lie in the input {name!r} of '{file.path}'.",
        found="; ".join([f"sizes {_shown(sizes)}", *facts]),
        expected="one order of images (n), channels (c), height (h) and width (w)",
        remedy="say it: layout='nhwc' (--model-arg layout=nhwc) for channels last, "
        "layout='nchw' for channels first, or another order of these letters",
    )


def _shown(sizes: Sequence[int] | None) -> str:
    if sizes is None:
        return "(not stated)"
    return f"({', '.join(str(size) if size else 'free' for size in sizes)})"


def _by_sizes(value: Any) -> list[str]:
    """The layouts of four axes in which the sizes are those of colour or grey images.

    None where a side has such a size too, or the images' axis is called what another is.
    """
    sizes = sizes_of(value) or ()
    first, *names = [dim.dim_param for dim in value.type.tensor_type.shape.dim] or [""]
    if len(sizes) != 4 or sizes[2] in _COLOURS or (first and first in names):
        return []
    return [text for text in ("nchw", "nhwc") if sizes[text.index("c")] in _COLOURS]


class _Place(NamedTuple):
    """An operator that takes (N, C, H, W): which axes of the input these are; None: one put in."""

    axes: tuple[int | None, ...]
    rank: int
    channels: int
    by: str

    def layout(self) -> str:
        """The letters of the input's axes; "" where it has others."""
        named = dict(zip(self.axes, "nchw", strict=False))
        text = "".join(named.get(axis, "") for axis in range(self.rank))
        fits = len(self.axes) == 4 and len(text) == self.rank and {"h", "w"} <= set(text)
        return text if fits else ""


class _State(NamedTuple):
    """A tensor on the way: its axes, and ``scale * pixel + shift`` where that is known."""

    axes: tuple[int | None, ...]
    scale: NDArray[np.float64] | None
    shift: NDArray[np.float64]
    is_whole: bool = True
    arithmetic: tuple[str, ...] = ()


class _Seen(NamedTuple):
    """What the first operators tell."""

    places: list[_Place]  # operators that fix the order of the axes
    # axes that look like channels, or are set apart otherwise, and by which operator
    hints: list[tuple[int, str]]
    white: float | None  # 1 or 255 where the graph's arithmetic centres such pixels
    arithmetic: tuple[str, ...]
    is_quantised: bool  # whether the input goes straight into a quantised operator


class _Trace:
    """Follows an input forwards, into inner graphs and functions too."""

    def __init__(self, file: OnnxFile, name: str) -> None:
        onnx, model = import_onnx(), file.model
        if model.functions:
            inliner = import_onnx("onnx.inliner")
            with suppress(
                RuntimeError, ValueError, TypeError
            ):  # onnxruntime will say what is wrong
                model = inliner.inline_local_functions(model)
        self._to_array = onnx.numpy_helper.to_array
        self._name = name
        self._takers: dict[str, list[Any]] = defaultdict(list)
        self._makers: dict[str, Any] = {}
        for node in list_nodes(model):
            for taken in dict.fromkeys(node.input):
                self._takers[taken].append(node)
            self._makers |= dict.fromkeys(node.output, node)
        self._held = {tensor.name: tensor for tensor in model.graph.initializer}
        self._rank = 0
        self.places: list[_Place] = []
        self.hints: list[tuple[int, str]] = []
        self._ends: list[_State] = []

    def run(self, sizes: tuple[int, ...] | None) -> _Seen:
        """Follow the input; `sizes` are its declared ones."""
        first = self._takers[self._name]
        self._rank = self._rank_by(first) if sizes is None else len(sizes)
        zero = np.zeros(())
        ahead = [(self._name, _State(tuple(range(self._rank)), zero + 1, zero))]
        for tensor, state in ahead:
            for node in self._takers[tensor] if len(ahead) < _MAX_STEPS else ():
                after = self._step(node, tensor, state)
                ahead += [(name, after) for name in node.output if name and after is not None]
                if after is None and state.arithmetic:
                    self._ends.append(state)
        whites = {_white(end) for end in self._ends}
        arithmetic = self._ends[0].arithmetic if self._ends else ()
        quantised = any(QUANTISED.search(node.op_type) for node in first)
        white = whites.pop() if len(whites) == 1 else None
        return _Seen(self.places, self.hints, white, arithmetic, quantised)

    def _rank_by(self, nodes: Sequence[Any]) -> int:
        """How many axes an input has that does not state them; 0 where that is not clear."""
        for node in nodes:
            perm = _whole_numbers(node, "perm")
            kernel = self._constant_input(node, 1) if node.op_type == "Conv" else None
            if perm or kernel:
                return len(perm or kernel or ())
        return 0

    def _step(self, node: Any, tensor: str, state: _State) -> _State | None:
        """What becomes of a tensor in one operator; None where the way ends."""
        op, by = node.op_type, f"{node.op_type} {node.name or ''.join(node.output[:1])!r}"
        after: _State | None = None
        is_first = tensor == node.input[0]
        if op in _FIXED or op.startswith("Nhwc"):
            if is_first:
                self._fix(node, state, by)
        elif op in _REDUCED:
            self._reduce(node, state, by)
        elif op in _AFFINE:
            after = self._affine(node, tensor, state, by)
        elif op in {"Transpose", "Unsqueeze", "Squeeze"}:
            after = self._move(node, state) if is_first else None
        elif op in _CUT:
            removes = op == "Gather" and len(self._constant_input(node, 1) or ()) != 1
            after = None if removes else state._replace(is_whole=False)
        elif op in _BENT:
            after = state._replace(scale=None, arithmetic=(*state.arithmetic, by))
        elif op in _KEPT and is_first:
            after = state
        return after

    def _fix(self, node: Any, state: _State, by: str) -> None:
        """An operator whose axes have a meaning."""
        axes, op = state.axes, node.op_type
        last = op.startswith("Nhwc") or node.domain == "com.ms.internal.nhwc"
        if axes and (last or _whole_number(node, "channels_last", 0)):
            axes = (axes[0], axes[-1], *axes[1:-1])
        weight = self._constant_input(node, _KERNEL.get(op, 1))
        channels = 0
        if weight is not None and state.is_whole and not last:
            if "Conv" in op and op != "ConvTranspose" and len(weight) > 1:
                channels = weight[1] * _whole_number(node, "group", 1)
            elif op in {"BatchNormalization", "InstanceNormalization"} and weight:
                channels = weight[0]
        self.places.append(_Place(axes, self._rank, channels, by))

    def _affine(self, node: Any, tensor: str, state: _State, by: str) -> _State | None:
        """Sums and products with constants; with computed tensors the axes stay."""
        others = [name for name in node.input if name != tensor]
        made = (*state.arithmetic, by)
        if node.op_type == "Neg":
            scale = None if state.scale is None else -state.scale
            return state._replace(scale=scale, shift=-state.shift, arithmetic=made)
        shape = self._shape(others[0]) if len(others) == 1 else None
        if shape is None:
            return state._replace(scale=None, arithmetic=made)
        if len(shape) > len(state.axes):
            return None
        wide = [at - len(shape) for at, size in enumerate(shape) if size != 1]
        if len(wide) == 1 and shape[wide[0]] in _COLOURS:
            axis = state.axes[wide[0]]
            self.hints += [] if axis is None else [(axis, by)]
        number = self._numbers(others[0])
        if number is not None and len(wide) > 1:
            number = number.mean()
        scale, shift = _combined(node.op_type, state, number, first=node.input[0] == tensor)
        return state._replace(scale=scale, shift=shift, arithmetic=made)

    def _reduce(self, node: Any, state: _State, by: str) -> None:
        """A mean or maximum over two of four axes: height and width; over three: all but images."""
        axes = {axis % 4 for axis in self._axes(node) or ()}
        if len(state.axes) != 4 or len(axes) not in {2, 3}:
            return
        kept = {state.axes[at] for at in range(3 - len(axes), 4) if at not in axes}
        apart = kept.pop() if len(kept) == 1 else None
        if apart or (apart == 0 and len(axes) == 2):
            self.hints.append((apart, by))

    def _move(self, node: Any, state: _State) -> _State | None:
        """Transposition, and axes of size 1 that come or go."""
        axes = list(state.axes)
        if node.op_type == "Transpose":
            turned = _turned(tuple(axes), node)
            return None if turned is None else state._replace(axes=turned)
        moved = self._axes(node)
        if moved is None:
            return None
        if node.op_type == "Squeeze":
            gone = {axis % max(1, len(axes)) for axis in moved}
            axes = [axis for at, axis in enumerate(axes) if at not in gone]
        else:
            for at in sorted(axis % (len(axes) + len(moved)) for axis in moved):
                axes.insert(at, None)
        return state._replace(axes=tuple(axes))

    def _axes(self, node: Any) -> list[int] | None:
        """Axes as an attribute, as in older opsets, or as a constant input."""
        told = _whole_numbers(node, "axes")
        if told is None and len(node.input) > 1:
            held = self._numbers(node.input[1])
            told = None if held is None else [int(axis) for axis in held.reshape(-1)[:_MAX_RANK]]
        return told or None

    def _constant_input(self, node: Any, at: int) -> tuple[int, ...] | None:
        """Shape of a constant that a node takes; None where it is computed, or absent."""
        return self._shape(node.input[at]) if len(node.input) > at else None

    def _constant(self, name: str) -> Any:
        """The TensorProto of a constant, or the attribute that holds its numbers."""
        node = self._makers.get(name)
        if name in self._held or node is None or node.op_type != "Constant":
            return self._held.get(name)
        return next((a.t if a.name == "value" else a for a in node.attribute), None)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a constant, through casts, transposition and dequantisation."""
        turns: list[Any] = []
        for _ in range(_MAX_PASSED):
            held, node = self._constant(name), self._makers.get(name)
            if held is not None or node is None or not node.input:
                break
            if node.op_type not in {*_KEPT, "Transpose"}:
                return None
            turns += [node] if node.op_type == "Transpose" else []
            name = node.input[0]
        shape: tuple[Any, ...] | None = tuple(held.dims) if hasattr(held, "dims") else None
        if held is not None and shape is None:
            several = held.name in {"value_floats", "value_ints"}
            shape = (len(held.floats) + len(held.ints),) if several else ()
        for node in reversed(turns):
            shape = None if shape is None else _turned(shape, node)
        return shape

    def _numbers(self, name: str) -> NDArray[np.float64] | None:
        """A constant's numbers without axes of size 1; None where they are elsewhere, or many."""
        held = self._constant(name)
        if hasattr(held, "dims"):
            if held.data_location == 1 or np.prod(held.dims, dtype=np.float64) > _MAX_NUMBERS:
                return None
            try:
                numbers = np.asarray(self._to_array(held), dtype=np.float64).squeeze()
            except FAILS:
                return None
            return numbers if np.isfinite(numbers).all() else None
        if held is None:
            return None
        value = {"value_float": held.f, "value_int": held.i}.get(held.name)
        return np.array([*held.floats, *held.ints] if value is None else value, dtype=np.float64)


def _whole_numbers(node: Any, name: str) -> list[int] | None:
    """An attribute that holds whole numbers; None where it is absent."""
    found = [list(a.ints) for a in node.attribute if a.name == name and a.type == _INTS]
    return found[0] if found else None


def _whole_number(node: Any, name: str, default: int) -> int:
    """An attribute that holds one whole number."""
    return next((a.i for a in node.attribute if a.name == name and a.type == _INT), default)


def _turned(axes: tuple[Any, ...], node: Any) -> tuple[Any, ...] | None:
    """Axes, or sizes, behind a Transpose; None where it has others."""
    perm = _whole_numbers(node, "perm") or [*range(len(axes))][::-1]
    return tuple(axes[at] for at in perm) if sorted(perm) == [*range(len(axes))] else None


def _combined(
    op: str, state: _State, number: Any, *, first: bool
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Scale and shift behind one more sum or product; no scale where that is not known."""
    scale, shift = state.scale, state.shift
    if scale is None or number is None or (op == "Div" and not first):
        return None, shift
    if len({np.shape(part) for part in (scale, shift, number)} - {()}) > 1:
        return None, shift
    if op == "Add":
        return scale, shift + number
    if op == "Sub":
        return (scale, shift - number) if first else (-scale, number - shift)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = number if op == "Mul" else 1 / number
        return scale * factor, shift * factor


def _white(state: _State) -> float | None:
    """1 or 255: for which range of pixels a graph's arithmetic is a normalisation.

    A centring maps a pixel in the middle of the range to 0; a scaling alone goes from 255 to about
    1, or back.
    """
    if state.scale is None:
        return None
    scale, shift = np.broadcast_arrays(state.scale, state.shift)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all() and (scale > 0).all()):
        return None
    for white in (1.0, 255.0):
        centre = -shift / (scale * white)
        if (shift == 0).all():
            reached = scale * white if white > 1 else scale / 255
            if ((reached > 0.9) & (reached < 2.1)).all():
                return white
        elif ((centre > 0.15) & (centre < 0.85)).all():
            return white
    return None
