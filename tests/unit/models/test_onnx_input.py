"""How an image lies in an ONNX graph's input: told by the graph or said, never guessed."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from catwise.errors import CatwiseError, ConfigError, HeadError, ShapeError  # noqa: E402
from catwise.models.adapters.onnx.model import load_onnx  # noqa: E402
from catwise.models.adapters.onnx.running import OnnxModule  # noqa: E402
from catwise.models.adapters.onnx.writing import write_onnx_head  # noqa: E402
from catwise.models.core import LoadedModel, Preprocessing  # noqa: E402
from catwise.models.extraction import extract  # noqa: E402
from catwise.models.registry import load_model, reload_model  # noqa: E402
from catwise.models.verify import noise, verify_written  # noqa: E402
from catwise.models.writing import write_model  # noqa: E402
from onnx_case import features_of  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

node = onnx.helper.make_node
tensor = onnx.numpy_helper.from_array
info = onnx.helper.make_tensor_value_info
FLOAT, UINT8, INT8, INT64, HALF, DOUBLE = 1, 2, 3, 7, 10, 11
C, D = 4, 5
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((C, D)).astype("f")
KERNELS = {k: RNG.standard_normal((D, k, 3, 3)).astype("f") for k in (1, 3, 6)}
MEAN, STD = np.array([0.485, 0.456, 0.406], "f"), np.array([0.229, 0.224, 0.225], "f")
TURN = node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])
CONV = [
    node("Conv", ["t", "kernel"], ["c"], name="conv"),
    node("Relu", ["c"], ["r"]),
    node("GlobalAveragePool", ["r"], ["p"]),
]
HEAD = [node("Flatten", ["p"], ["z"]), node("Gemm", ["z", "w"], ["y"], name="head", transB=1)]
FREE = ["n", None, None, None]


def model_of(
    sizes: Any, *first: Any, kind: int = FLOAT, body: Any = CONV, opset: int = 17, **held: Any
) -> Any:
    """Operators from the input `x` to `t` (N, C, H, W), a convolution, the last layer."""
    held = {"w": WEIGHT, "kernel": KERNELS[3], **held}
    graph = onnx.helper.make_graph(
        [*first, *body, *HEAD],
        "net",
        [info("x", kind, sizes)],
        [onnx.ValueInfoProto(name="y")],
        [tensor(np.asarray(value), name) for name, value in held.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("own", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def saved(folder: Path, model: Any, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def images_of(n: int = 3, channels: int = 3, height: int = 8, width: int = 6) -> Any:
    return np.random.default_rng(1).random((n, channels, height, width), dtype="f")


def expected(images: Any, kernel: Any = KERNELS[3]) -> Any:
    """Features by torch: (N, C, H, W) through the convolution, rectified and averaged."""
    given = torch.from_numpy(np.asarray(images, "f"))
    return torch.nn.functional.conv2d(given, torch.from_numpy(kernel)).relu().mean((2, 3)).numpy()


def const(name: str, value: Any) -> Any:
    return node("Constant", [], [name], value=tensor(np.asarray(value), name))


def in_function() -> Any:
    """The transposition is inside a function of the model."""
    model = model_of(FREE, node("turn", ["x"], ["t"], domain="own"))
    made = onnx.helper.make_function(
        "own", "turn", ["a"], ["b"],
        [node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2])], [onnx.helper.make_opsetid("", 17)],
    )  # fmt: skip
    model.functions.append(made)
    return model


def in_branch() -> Any:
    """The convolution is inside both branches of an If, which take the input from outside."""
    branches = {
        f"{side}_branch": onnx.helper.make_graph(
            [node("Transpose", ["x"], [f"{side}_t"], perm=[0, 3, 1, 2]),
             node("Conv", [f"{side}_t", "kernel"], [side], name=f"{side}_conv")],
            side, [], [info(side, FLOAT, None)],
        )
        for side in ("then", "else")
    }  # fmt: skip
    body = [node("If", ["ask"], ["c"], **branches), *CONV[1:]]
    return model_of(FREE, body=body, ask=np.array(True))


def without_shape() -> Any:
    model = model_of(FREE, TURN)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    return model


def listed_weights() -> Any:
    """Initializers are inputs too, as before IR version 4; the image comes last."""
    model = model_of(FREE, TURN)
    for held in model.graph.initializer:
        model.graph.input.insert(0, info(held.name, FLOAT, held.dims))
    return model


def flipped() -> Any:
    """RGB to BGR by a Split and a Concat, channels last."""
    return model_of(
        ["n", None, None, 3],
        node("Split", ["x"], ["c0", "c1", "c2"], axis=3),
        node("Concat", ["c0", "c1", "c2"], ["v"], axis=3),
        node("Transpose", ["v"], ["t"], perm=[0, 3, 1, 2]), opset=11,
    )  # fmt: skip


QUANTISED = [
    node("QuantizeLinear", ["x", "qs", "qz"], ["q"]),
    node("DequantizeLinear", ["q", "qs", "qz"], ["d"]),
    node("Transpose", ["d"], ["t"], perm=[0, 3, 1, 2]),
]
ADD_CHANNEL = node("Unsqueeze", ["x", "one"], ["t"])
RESIZE = node("Resize", ["x", "", "scales"], ["big"], mode="nearest")

READ: dict[str, tuple[Any, str]] = {
    "channels last, free sides": (lambda: model_of(["n", None, None, 3], TURN), "nhwc"),
    "channels last, all free": (lambda: model_of(FREE, TURN), "nhwc"),
    "channels last, fixed": (lambda: model_of([2, 8, 6, 3], TURN), "nhwc"),
    "channels last, one image": (lambda: model_of([1, None, 6, 3], TURN), "nhwc"),
    "one name for both sides": (lambda: model_of(["n", "side", "side", 3], TURN), "nhwc"),
    "channels first, all free": (lambda: model_of(FREE, node("Identity", ["x"], ["t"])), "nchw"),
    "channels first, free sides": (
        lambda: model_of(["n", 3, None, None], node("Identity", ["x"], ["t"])), "nchw",
    ),
    "no sizes": (without_shape, "nhwc"),
    "images last": (
        lambda: model_of(FREE, node("Transpose", ["x"], ["t"], perm=[3, 0, 1, 2])), "chwn",
    ),
    "images in the middle": (
        lambda: model_of([3, 2, 8, 6], node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3])), "cnhw",
    ),
    "two transpositions": (
        lambda: model_of(
            FREE, node("Transpose", ["x"], ["v"], perm=[3, 2, 1, 0]),
            node("Transpose", ["v"], ["t"], perm=[3, 0, 2, 1]),
        ), "nhwc",
    ),
    "one image, channels first": (
        lambda: model_of([3, None, None], const("zero", [0]),
                         node("Unsqueeze", ["x", "zero"], ["t"])), "chw",
    ),
    "one image, channels last, opset 11": (
        lambda: model_of(
            [None, None, 3], node("Unsqueeze", ["x"], ["v"], axes=[0]),
            node("Transpose", ["v"], ["t"], perm=[0, 3, 1, 2]), opset=11,
        ), "hwc",
    ),
    "a cast first": (
        lambda: model_of(
            ["n", None, None, 3], node("Cast", ["x"], ["v"], to=FLOAT),
            node("Transpose", ["v"], ["t"], perm=[0, 3, 1, 2]), kind=DOUBLE,
        ), "nhwc",
    ),
    "quantised and back": (
        lambda: model_of(FREE, *QUANTISED, qs=np.float32(1 / 255), qz=np.uint8(0)), "nhwc",
    ),
    "in a function": (in_function, "nhwc"),
    "in a branch": (in_branch, "nhwc"),
    "weights among the inputs": (listed_weights, "nhwc"),
    "channels taken apart": (flipped, "nhwc"),
    "resized inside": (
        lambda: model_of(
            FREE, const("scales", np.array([1, 1, 1, 1], "f")), RESIZE,
            node("Transpose", ["big"], ["t"], perm=[0, 3, 1, 2]),
        ), "nhwc",
    ),
    "padded inside": (
        lambda: model_of(
            FREE, node("Pad", ["x", "pads"], ["v"]),
            node("Transpose", ["v"], ["t"], perm=[0, 3, 1, 2]), pads=np.zeros(8, "i8"),
        ), "nhwc",
    ),
    "three rows, told by the graph": (lambda: model_of(["n", 3, 6, 3], TURN), "nhwc"),
    "three columns, told by the graph": (
        lambda: model_of(["n", 3, 8, 3], node("Identity", ["x"], ["t"])), "nchw",
    ),
    "a batch normalisation first": (
        lambda: model_of(
            FREE, node("Transpose", ["x"], ["v"], perm=[0, 3, 1, 2]),
            node("BatchNormalization", ["v", "g", "b", "m", "s"], ["t"], epsilon=0.0),
            g=np.ones(3, "f"), b=np.zeros(3, "f"), m=np.zeros(3, "f"), s=np.ones(3, "f"),
        ), "nhwc",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_images_reach_the_graph_as_it_takes_them(tmp_path: Path, kind: str) -> None:
    """Features are those of the same images through the convolution, whatever the order of axes."""
    make, layout = READ[kind]
    model = load_onnx(saved(tmp_path, make()))
    rows, columns = {"three rows": (3, 6), "three columns": (8, 3)}.get(
        kind[: kind.find(",")], (8, 6)
    )
    images = images_of(height=rows, width=columns)
    assert model.preprocessing.layout == layout
    assert ("read as" in " ".join(model.notes)) == (layout != "nchw")
    assert model.preprocessing.channels == 3
    (features,) = features_of(model, [images])
    near = {"rtol": 1e-5, "atol": 2e-2 if "quantised" in kind else 1e-5}
    np.testing.assert_allclose(features, expected(images), **near)
    found = extract(model, [torch.from_numpy(images)], dtype="float32")
    np.testing.assert_allclose(found.features, features, rtol=1e-6)
    np.testing.assert_allclose(found.logits, features @ WEIGHT.T, rtol=1e-5, atol=1e-5)
    sides = model.preprocessing.size
    assert isinstance(model.module, OnnxModule)
    declared = model.module.image
    assert sides == (declared.size("h") or 224, declared.size("w") or 224)


POOLED_ROWS = [
    node("GlobalAveragePool", ["t"], ["g"]),
    node("Constant", [], ["five"], value=tensor(np.array([1, D, 1, 1]), "five")),
    node("Expand", ["g", "five"], ["p"]),
]
GREY: dict[str, tuple[Any, str]] = {
    "channels last": (lambda: model_of(["n", None, None, 1], TURN, kernel=KERNELS[1]), "nhwc"),
    "all free": (lambda: model_of(FREE, TURN, kernel=KERNELS[1]), "nhwc"),
    "no channels": (
        lambda: model_of(["n", 8, 6], ADD_CHANNEL, one=np.array([1]), kernel=KERNELS[1]), "nhw",
    ),
    "no channels, put in last": (
        lambda: model_of(
            [None, None, None], node("Unsqueeze", ["x", "last"], ["v"]),
            node("Transpose", ["v"], ["t"], perm=[0, 3, 1, 2]),
            last=np.array([-1]), kernel=KERNELS[1],
        ), "nhw",
    ),
    "no channels, no images": (
        lambda: model_of([8, 6], ADD_CHANNEL, one=np.array([0, 1]), kernel=KERNELS[1]), "hw",
    ),
    "one row": (lambda: model_of(["n", 1, 6, 1], TURN, body=POOLED_ROWS), "nhwc"),
}  # fmt: skip


@pytest.mark.parametrize("kind", GREY)
def test_grey_images(tmp_path: Path, kind: str) -> None:
    """One channel is read from the sizes, the kernel, or from there being no such axis."""
    make, layout = GREY[kind]
    model = load_onnx(saved(tmp_path, make()))
    assert model.preprocessing.layout == layout
    if kind == "one row":
        images = images_of(channels=1, height=1)
        right = np.repeat(images.mean((2, 3)), D, axis=1)
    else:
        assert model.preprocessing.channels == 1
        images = images_of(channels=1)
        right = expected(images, KERNELS[1])
    (features,) = features_of(model, [images])
    np.testing.assert_allclose(features, right, rtol=1e-5, atol=1e-5)
    if kind != "one row":
        with pytest.raises(ShapeError, match="do not fit the input 'x'"):
            next(features_of(model, [images_of()]))


def test_other_numbers_of_channels(tmp_path: Path) -> None:
    """Six channels are said; tensors of six are taken as the graph does, images are refused."""
    model = load_onnx(saved(tmp_path, model_of(FREE, TURN, kernel=KERNELS[6])))
    assert any("takes 6 channels: images have 1 or 3" in note for note in model.notes)
    images = images_of(channels=6)
    (features,) = features_of(model, [images])
    np.testing.assert_allclose(features, expected(images, KERNELS[6]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match=r"sizes \[0, 6, 0, 0\]"):
        next(features_of(model, [images_of()]))


def two_ways() -> Any:
    """One convolution takes the input as it is, one transposes it."""
    body = [
        node("Conv", ["x", "kernel"], ["a"], name="plain"),
        TURN,
        *CONV,
        node("GlobalAveragePool", ["a"], ["other"]),
    ]
    return model_of(FREE, body=body)


FLAT = [
    node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=1),
    node("Expand", ["m", "five"], ["p"]),
]
NUMBERS = {"five": np.array([1, D, 1, 1])}
UNCLEAR: dict[str, tuple[Any, tuple[str, ...]]] = {
    "all free, nothing told": (lambda: model_of(FREE, body=FLAT, **NUMBERS), ("nchw", "nhwc")),
    "no size of colours": (lambda: model_of(["n", 8, 6, 5], body=FLAT, **NUMBERS), ("nhcw",)),
    "two sizes of colours": (
        lambda: model_of(["n", 3, 8, 3], body=FLAT, **NUMBERS),
        ("nchw", "nhwc"),
    ),
    "all threes": (lambda: model_of(["n", 3, 3, 3], body=FLAT, **NUMBERS), ("nchw", "nhwc")),
    "one and three": (lambda: model_of(["n", 1, 8, 3], body=FLAT, **NUMBERS), ("nhwc",)),
    "colours in the middle": (lambda: model_of(["n", 8, 3, 6], body=FLAT, **NUMBERS), ("nhcw",)),
    "colours on two axes": (
        lambda: model_of([3, 3, 3, None], body=FLAT, **NUMBERS),
        (),
    ),
    "one name for images and height": (
        lambda: model_of(["a", 3, "a", None], body=FLAT, **NUMBERS),
        ("nchw",),
    ),
    "height and width exchanged": (
        lambda: model_of(FREE, node("Transpose", ["x"], ["t"], perm=[0, 3, 2, 1])),
        ("nhwc", "nwhc"),
    ),
    "rows taken as channels": (
        lambda: model_of(
            ["n", 8, 6, 3], node("Identity", ["x"], ["t"]), kernel=np.ones((D, 8, 1, 1), "f")
        ),
        (),
    ),
    "two ways that differ": (two_ways, ()),
    "three axes": (
        lambda: model_of(
            [None, 8, 6],
            body=[
                node("ReduceMean", ["x"], ["m"], axes=[1, 2], keepdims=1),
                node("Expand", ["m", "five"], ["p"]),
            ],
            five=np.array([1, D, 1]),
        ),
        ("nhw",),
    ),
    "no sizes, nothing told": (
        lambda: (
            model := model_of(FREE, body=FLAT, **NUMBERS),
            model.graph.input[0].type.tensor_type.ClearField("shape"),
        )[0],
        ("nchw", "nhwc"),
    ),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_is_not_clear_is_asked_for(tmp_path: Path, kind: str) -> None:
    """The refusal shows the sizes and names the option; with it the model is read."""
    make, layouts = UNCLEAR[kind]
    path = saved(tmp_path, make())
    with pytest.raises(ConfigError, match=r"not clear how images lie(.|\n)*layout=nhwc"):
        load_onnx(path)
    for layout in layouts:
        model = load_model(f"onnx:{path}", model_args={"layout": layout})
        assert model.preprocessing.layout == layout
        channels = 1 if "c" not in layout else 3
        sides = {"two sizes of colours": {"nchw": (8, 3), "nhwc": (3, 8)}, "all threes": (3, 3)}
        shape = sides.get(kind, (8, 6))
        shape = shape[layout] if isinstance(shape, dict) else shape
        if kind == "one and three":
            shape = (1, 8)
        if kind == "no size of colours":
            continue
        images = images_of(2, channels, *shape)
        (features,) = features_of(model, [images])
        if kind == "height and width exchanged":
            right = expected(images.swapaxes(2, 3) if layout == "nhwc" else images)
        else:
            right = np.repeat(images.mean((1, 2, 3))[:, None], D, axis=1)
        np.testing.assert_allclose(features, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_any_order_and_any_freedom_of_sizes(tmp_path: Path, seed: int) -> None:
    """Unsaid, features are right or the layout is asked for; said, they are right. Never wrong."""
    rng = np.random.default_rng(seed)
    layout = "".join(rng.permutation(list("nchw")))
    height, width = [(8, 6), (3, 3), (3, 6), (8, 3), (4, 4)][int(rng.integers(5))]
    channels = int(rng.choice([1, 3, 6]))
    whole = {"n": int(rng.integers(1, 5)), "c": channels, "h": height, "w": width}
    sizes = [whole[x] if rng.random() < 0.5 else [None, "a", x][rng.integers(3)] for x in layout]
    turn = node("Transpose", ["x"], ["t"], perm=[layout.index(letter) for letter in "nchw"])
    images = images_of(5, channels, height, width)
    if rng.random() < 0.5:  # nothing but a mean over all of an image
        mean = [
            node("ReduceMean", ["t"], ["m"], axes=[1, 2, 3], keepdims=1),
            node("Expand", ["m", "five"], ["p"]),
        ]
        model = model_of(sizes, turn, body=mean, **NUMBERS)
        right = np.repeat(images.mean((1, 2, 3))[:, None], D, axis=1)
    else:
        model = model_of(sizes, turn, kernel=KERNELS[channels])
        right = expected(images, KERNELS[channels])
    path = saved(tmp_path, model)
    near = {"rtol": 1e-4, "atol": 1e-5}
    (features,) = features_of(load_onnx(path, layout=layout), [images])
    np.testing.assert_allclose(features, right, **near)
    with suppress(ConfigError, ShapeError):
        (features,) = features_of(load_onnx(path), [images])
        np.testing.assert_allclose(features, right, **near)


HINTS: dict[str, tuple[Any, str]] = {
    "mean over the places, channels last": (
        lambda: model_of(FREE, body=[node("ReduceMean", ["x"], ["p"], axes=[1, 2], keepdims=1)],
                         w=WEIGHT[:, :3].copy()), "nhwc",
    ),
    "mean over the places, channels first": (
        lambda: model_of(FREE, body=[node("ReduceMean", ["x"], ["p"], axes=[-2, -1], keepdims=0)],
                         w=WEIGHT[:, :3].copy()), "nchw",
    ),
    "a colour subtracted, channels last": (
        lambda: model_of(["n", 3, None, 3], node("Sub", ["x", "mean"], ["t"]), body=[
            node("ReduceMean", ["t"], ["p"], axes=[1, 2], keepdims=1)],
            mean=np.zeros(3, "f"), w=WEIGHT[:, :3].copy()), "nhwc",
    ),
    "a colour multiplied, channels first": (
        lambda: model_of(FREE, node("Mul", ["x", "one"], ["t"]), body=[
            node("ReduceMean", ["t"], ["p"], axes=[2, 3], keepdims=1)],
            one=np.ones((1, 3, 1, 1), "f"), w=WEIGHT[:, :3].copy()), "nchw",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HINTS)
def test_without_a_convolution(tmp_path: Path, kind: str) -> None:
    """Means over two axes, and colours that are added or multiplied, tell the channels as well."""
    make, layout = HINTS[kind]
    model = load_onnx(saved(tmp_path, make()))
    assert model.preprocessing.layout == layout
    images = images_of(height=3) if "subtracted" in kind else images_of()
    (features,) = features_of(model, [images])
    np.testing.assert_allclose(features, images.mean((2, 3)), rtol=1e-5, atol=1e-6)


def by_graph(*ops: tuple[str, Any], kind: int = FLOAT, last: bool = True) -> Any:
    """A graph that begins with arithmetic on the pixels, channels last or first."""
    made, held, name = [], {}, "x"
    if kind != FLOAT:
        made.append(node("Cast", ["x"], ["wide"], to=FLOAT))
        name = "wide"
    for at, (op, value) in enumerate(ops):
        number = np.asarray(value, "f")
        held[f"k{at}"] = number if last or number.ndim == 0 else number[:, None, None]
        made.append(node(op, [name, f"k{at}"], [f"a{at}"], name=f"{op.lower()}_{at}"))
        name = f"a{at}"
    end = "Transpose" if last else "Identity"
    made.append(node(end, [name], ["t"], **({"perm": [0, 3, 1, 2]} if last else {})))
    sizes = ["n", None, None, 3] if last else ["n", 3, None, None]
    return model_of(sizes, *made, kind=kind, **held)


WHITE: dict[str, tuple[Any, float | None]] = {
    "ImageNet's, of 0 to 1": (by_graph(("Sub", MEAN), ("Div", STD)), 1),
    "ImageNet's, of 0 to 255": (by_graph(("Sub", MEAN * 255), ("Div", STD * 255)), 255),
    "as products and sums": (by_graph(("Mul", 1 / STD), ("Add", -MEAN / STD), last=False), 1),
    "scaled, then ImageNet's": (by_graph(("Mul", 1 / 255), ("Sub", MEAN), ("Div", STD)), 255),
    "-1 to 1, of 0 to 255": (by_graph(("Div", 127.5), ("Sub", 1)), 255),
    "-1 to 1, of 0 to 1": (by_graph(("Mul", 2), ("Sub", 1)), 1),
    "0 to 1, of 0 to 255": (by_graph(("Mul", 1 / 255)), 255),
    "0 to 255, of 0 to 1": (by_graph(("Mul", 255)), 1),
    "means alone": (by_graph(("Sub", [123.68, 116.78, 103.94])), 255),
    "bytes": (by_graph(("Sub", MEAN * 255), ("Div", STD * 255), kind=UINT8), 255),
    "bytes, no arithmetic": (by_graph(kind=UINT8), 255),
    "a factor of no meaning": (by_graph(("Mul", 1.7)), None),
    "a power": (by_graph(("Pow", 2.2), ("Sub", MEAN)), None),
    "no arithmetic": (by_graph(), None),
}


@pytest.mark.parametrize("kind", WHITE)
def test_graphs_that_normalise_by_themselves(tmp_path: Path, kind: str) -> None:
    """Such a graph is given pixels of its range, not normalised twice; the note says so."""
    made, white = WHITE[kind]
    model = load_onnx(saved(tmp_path, made))
    take = model.preprocessing
    note = next(note for note in model.notes if "preprocessing is assumed" in note)
    if white is None:
        assert take.mean == (0.485, 0.456, 0.406)
        assert ("though the graph begins" in note) == (kind != "no arithmetic")
        return
    assert (take.mean, take.std) == ((0.0,) * 3, (1 / white,) * 3)
    assert take.source.endswith("assumed")
    assert f"pixels go in as 0 to {white:.0f}" in note
    pixels = np.random.default_rng(2).integers(0, 256, (2, 3, 8, 6)).astype("f")
    images = torch.from_numpy((pixels / 255 - 0) / np.float32(1 / white))
    (features,) = features_of(model, [images])
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    own = (pixels if white == 255 else pixels / 255).astype("f")
    own = own.astype("u1") if "bytes" in kind else own
    order = (0, 2, 3, 1) if take.layout == "nhwc" else (0, 1, 2, 3)
    (right,) = session.run(None, {"x": own.transpose(order)})
    np.testing.assert_allclose(features @ WEIGHT.T, right, rtol=1e-4, atol=1e-3)


def test_bytes_hold_nothing_else(tmp_path: Path) -> None:
    """A uint8 input takes 0 to 255, rounded; normalised images are refused with what to say."""
    model = load_onnx(saved(tmp_path, by_graph(kind=UINT8)))
    assert float(noise(model).max()) > 100
    with pytest.raises(ShapeError, match=r"pixels from 0 to 255(.|\n)*--std"):
        next(features_of(model, [images_of() * 4 - 2]))
    pixels = images_of() * 255
    (features,) = features_of(model, [pixels])
    np.testing.assert_allclose(features, expected(np.rint(pixels)), rtol=1e-4, atol=1e-2)


def with_mask() -> Any:
    model = model_of(FREE, TURN)
    model.graph.input.append(info("mask", FLOAT, ["n"]))
    return model


def optional_input() -> Any:
    model = model_of(FREE, TURN)
    one = onnx.helper.make_tensor_type_proto(FLOAT, FREE)
    model.graph.input[0].type.CopyFrom(onnx.helper.make_optional_type_proto(one))
    return model


CODES = [node("DequantizeLinear", ["x", "qs", "qz"], ["d"]),
         node("Transpose", ["d"], ["t"], perm=[0, 3, 1, 2])]  # fmt: skip
NO_IMAGES: dict[str, Any] = {
    "int8": lambda: model_of(
        FREE,
        node("Cast", ["x"], ["f"], to=FLOAT),
        node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        kind=INT8,
    ),
    "int64": lambda: model_of(
        FREE,
        node("Cast", ["x"], ["f"], to=FLOAT),
        node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        kind=INT64,
    ),
    "codes": lambda: model_of(FREE, *CODES, kind=UINT8, qs=np.float32(0.02), qz=np.uint8(114)),
    "a second input": with_mask,
    "a film": lambda: model_of(
        ["n", 3, 1, 8, 6], const("two", [2]), node("Squeeze", ["x", "two"], ["t"])
    ),
    "rows": lambda: model_of(["n", D], node("Identity", ["x"], ["p"]), body=[]),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_inputs_that_take_no_images(tmp_path: Path, kind: str) -> None:
    """Numbers of other kinds, further inputs and other ranks are refused."""
    path = saved(tmp_path, NO_IMAGES[kind]())
    with pytest.raises(CatwiseError, match=r"takes something else|do not fit|not clear"):
        next(features_of(load_onnx(path), [images_of()]))


def test_an_input_of_rows_is_said(tmp_path: Path) -> None:
    """A head alone, over features, is read, and a note says that it takes no images."""
    model = load_onnx(saved(tmp_path, NO_IMAGES["rows"]()))
    assert any("of sizes (0, 5) takes no images" in note for note in model.notes)
    rows = images_of(2, 1, 1, D).reshape(2, D)
    np.testing.assert_array_equal(next(features_of(model, [rows])), rows)


def test_an_optional_input(tmp_path: Path) -> None:
    """What is no tensor is refused when it is run, and asked about when it is loaded."""
    with pytest.raises(ConfigError, match=r"not clear|takes something else"):
        next(features_of(load_onnx(saved(tmp_path, optional_input())), [images_of()]))


def test_what_is_said(tmp_path: Path) -> None:
    """An option goes before the metadata and these before the graph; nonsense is refused."""
    model = model_of(FREE, TURN)
    entry = model.metadata_props.add()
    entry.key = "catwise.preprocessing"
    told = {"size": [8, 6], "mean": [0] * 3, "std": [1] * 3}
    entry.value = json.dumps(told)
    path = saved(tmp_path, model)
    assert load_onnx(path).preprocessing.layout == "nhwc"  # the graph, where they say nothing
    entry.value = json.dumps({**told, "layout": "channels_last"})
    path = saved(tmp_path, model)
    assert load_onnx(path).preprocessing.layout == "nhwc"
    said = load_onnx(path, layout="NHCW")
    assert said.preprocessing.layout == "nhcw"
    assert "as said, though Conv 'conv' reads it as nhwc" in said.notes[1]
    assert "read as nchw: as said, though" in load_onnx(path, layout="nchw").notes[1]
    given = Preprocessing((8, 6), layout="nhwc")
    assert load_onnx(path, preprocessing=given).preprocessing is given
    assert load_onnx(path, preprocessing=Preprocessing((8, 6))).preprocessing == given
    with pytest.raises(ConfigError, match="another order of axes"):
        load_onnx(path, preprocessing=given, layout="nchw")
    for wrong in ("nhwx", "nhhw", "nch", "", 3):
        with pytest.raises(ConfigError, match="not the order of an image's axes"):
            load_onnx(path, layout=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"3 axes(.|\n)*a letter for each"):
        load_onnx(path, layout="nhw")
    entry.value = json.dumps({**told, "layout": "sideways"})
    with pytest.raises(ConfigError, match=r"catwise\.preprocessing"):
        load_onnx(saved(tmp_path, model))


def test_the_layout_is_recorded_and_kept(tmp_path: Path) -> None:
    """It is among the facts of the store, and a written copy is loaded and run in the same way."""
    path = saved(tmp_path, model_of(["n", 8, 6, 3], body=FLAT, **NUMBERS))
    model = load_model(f"onnx:{path}", model_args={"layout": "nhwc"})
    assert isinstance(model, LoadedModel)
    assert model.head is not None
    store: Any = extract(model, [torch.from_numpy(images_of())], tmp_path / "store")
    items = store.origin["extract"]["items"]
    assert items["preprocessing"]["layout"] == "nhwc"
    other = model.head.replace(weight=model.head.weight + 1)
    write_model(model, other, tmp_path / "new.onnx")
    again = reload_model(model, tmp_path / "new.onnx")
    assert verify_written(model, again, other, noise(model)).images == 4
    assert again.preprocessing.layout == "nhwc"


def test_a_layout_that_nothing_turns_images_to(tmp_path: Path) -> None:
    """A module of one's own takes channels first: another layout is refused, not passed over."""
    last = Preprocessing((8, 6), layout="nhwc")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2))
    with pytest.raises(ConfigError, match=r"layout 'nhwc'(.|\n)*permute"):
        LoadedModel("mine", module, "1", last)
    model = LoadedModel("mine", module, "1", Preprocessing((8, 6)))
    model.preprocessing = last
    with pytest.raises(ConfigError, match="layout 'nhwc'"):
        extract(model, [torch.zeros(1, 3, 8, 6)])
    turned = load_onnx(saved(tmp_path, model_of(FREE, TURN)))
    turned.preprocessing = Preprocessing((8, 6), layout="nhcw")
    with pytest.raises(ConfigError, match="layout 'nhcw'"):
        extract(turned, [torch.from_numpy(images_of())])


OUTPUTS: dict[str, tuple[list[Any], list[str], str]] = {
    "a sequence": (
        [node("SplitToSequence", ["y"], ["s"], axis=1)],
        ["s"],
        "SplitToSequence",
    ),
    "a layer that cannot be used, beside one that can": (
        [node("Mul", ["y", "two"], ["s"], name="scale"), node("Gemm", ["z", "v"], ["e"])],
        ["s", "e"],
        r"not clear which layer(.|\n)*'head'",
    ),
    "features, logits, probabilities": ([node("Sigmoid", ["y"], ["s"])], ["z", "y", "s"], ""),
    "a column for each": (
        [
            node("Unsqueeze", ["z", "one"], ["zz"]),
            node("MatMul", ["zz", "turned"], ["s"], name="rows"),
        ],
        ["s"],
        "",
    ),
    "classes beside the logits": ([node("ArgMax", ["y"], ["s"], axis=1)], ["y", "s"], ""),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs(tmp_path: Path, kind: str) -> None:
    """What lies before or behind the layer is no rival of it; another branch is, and is named."""
    more, names, refused = OUTPUTS[kind]
    held = {
        "two": np.float32(2),
        "v": WEIGHT[:2].T.copy(),
        "one": np.array([1]),
        "turned": WEIGHT.T.copy(),
    }
    model = model_of(FREE, TURN, **held)
    model.graph.node.extend(more)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = saved(tmp_path, model)
    if refused:
        with pytest.raises(HeadError, match=refused):
            load_onnx(path)
        return
    (features,) = features_of(load_onnx(path), [images_of()])
    np.testing.assert_allclose(features, expected(images_of()), rtol=1e-5, atol=1e-5)
    if kind.startswith("features"):
        head = load_onnx(path).head
        assert head is not None
        write_onnx_head(path, tmp_path / "same.onnx", head)
        assert (tmp_path / "same.onnx").read_bytes() == path.read_bytes()
