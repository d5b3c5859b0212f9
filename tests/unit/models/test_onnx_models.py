"""ONNX: the head is found, features are what it takes, only its bytes change."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from catwise.errors import (  # noqa: E402
    CategoryError,
    CatwiseError,
    CheckpointError,
    ConfigError,
    HeadError,
    OutputError,
    ShapeError,
)
from catwise.heads import Head  # noqa: E402
from catwise.models.adapters.onnx.model import load_onnx  # noqa: E402
from catwise.models.adapters.onnx.writing import OnnxWriter, write_onnx_head  # noqa: E402
from catwise.models.core import Preprocessing  # noqa: E402
from catwise.models.extraction import extract  # noqa: E402
from catwise.models.layers import weights_digest  # noqa: E402
from catwise.models.verify import check_output  # noqa: E402
from catwise.models.writing import write_model  # noqa: E402
from onnx_case import features_of  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.models import LoadedModel

node = onnx.helper.make_node
tensor = onnx.numpy_helper.from_array
FLOAT, FLOAT16 = 1, 10
C, D = 4, 5
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((C, D)).astype(np.float32)
BIAS = RNG.standard_normal(C).astype(np.float32)
KERNEL = RNG.standard_normal((D, 3, 3, 3)).astype(np.float32)
IMAGES = RNG.standard_normal((7, 3, 8, 8)).astype(np.float32)
NAMES = ["ant", "bee", "cat", "dog"]

TURNED = WEIGHT.T.copy()
ADD = node("Add", ["m", "b"], ["y"])
FULL = node("Gemm", ["f", "w", "b"], ["g"], name="head", transB=1)
KINDS: dict[str, tuple[list[Any], Any, Any]] = {
    "gemm": ([node("Gemm", ["f", "w", "b"], ["y"], name="head")], TURNED, BIAS),
    "gemm_transposed": ([FULL, node("Identity", ["g"], ["y"])], WEIGHT, BIAS),
    "gemm_alpha_beta": (
        [node("Gemm", ["f", "w", "b"], ["y"], name="head", transB=1, alpha=0.3, beta=0.7)],
        WEIGHT, BIAS,
    ),
    "gemm_no_bias": ([node("Gemm", ["f", "w"], ["y"], name="head", transB=1)], WEIGHT, None),
    "gemm_then_add": (
        [node("Gemm", ["f", "w"], ["m"], name="head", transB=1), ADD], WEIGHT, BIAS[None],
    ),
    "matmul": ([node("MatMul", ["f", "w"], ["y"], name="head")], TURNED, None),
    "matmul_add": ([node("MatMul", ["f", "w"], ["m"], name="head"), ADD], TURNED, BIAS),
    "add_constant_first": (
        [node("MatMul", ["f", "w"], ["m"], name="head"), node("Add", ["b", "m"], ["y"])],
        TURNED, BIAS,
    ),
    "transpose": (
        [node("Transpose", ["w"], ["wt"], perm=[1, 0]),
         node("MatMul", ["f", "wt"], ["m"], name="head"), ADD],
        WEIGHT, BIAS,
    ),
    "cast": (
        [node("Cast", ["w"], ["wide"], to=FLOAT),
         node("MatMul", ["f", "wide"], ["m"], name="head"), ADD],
        TURNED.astype(np.float16), BIAS,
    ),
    "conv": (
        [node("Conv", ["pooled", "w", "b"], ["m"], name="head"), node("Flatten", ["m"], ["y"])],
        WEIGHT[:, :, None, None], BIAS,
    ),
    "conv_add": (
        [node("Conv", ["pooled", "w"], ["m"], name="head"), node("Add", ["m", "b"], ["s"]),
         node("Flatten", ["s"], ["y"])],
        WEIGHT[:, :, None, None], BIAS[None, :, None, None],
    ),
    "dropout": (
        [FULL, node("Dropout", ["g"], ["h"]), node("Identity", ["h"], ["y"])], WEIGHT, BIAS,
    ),
    "sigmoid": ([FULL, node("Sigmoid", ["g"], ["y"])], WEIGHT, BIAS),
    "softmax": ([FULL, node("Softmax", ["g"], ["y"], axis=1)], WEIGHT, BIAS),
    "constant_nodes": ([FULL, node("Identity", ["g"], ["y"])], WEIGHT, BIAS),
    "float_data": ([FULL, node("Identity", ["g"], ["y"])], WEIGHT, BIAS),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)


def model_of(nodes: list[Any], outputs: tuple[str, ...] = ("y",), **constants: Any) -> Any:
    """A backbone whose result is `pooled` (N, D, 1, 1) and `f` (N, D), these nodes, constants."""
    backbone = [
        node("Conv", ["x", "kernel"], ["c"], name="conv"),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["pooled"], name="pool"),
        node("Flatten", ["pooled"], ["f"], name="flat"),
    ]
    held = {"kernel": KERNEL, **constants}
    graph = onnx.helper.make_graph(
        [*backbone, *nodes],
        "net",
        [onnx.helper.make_tensor_value_info("x", FLOAT, ["N", 3, 8, 8])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [v if hasattr(v, "dims") else tensor(np.array(v), name) for name, v in held.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def save(path: Path, model: Any) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def model_like(kind: str) -> Any:
    nodes, weight, bias = KINDS[kind]
    held: dict[str, Any] = {"w": weight} | ({} if bias is None else {"b": bias})
    if kind == "constant_nodes":
        nodes = [node("Constant", [], [n], value=tensor(v, n)) for n, v in held.items()] + nodes
        held = {}
    if kind == "float_data":
        make = onnx.helper.make_tensor
        held = {n: make(n, FLOAT, v.shape, v.flatten().tolist()) for n, v in held.items()}
    return model_of(nodes, **held)


def made(folder: Path, kind: str = "sigmoid", name: str = "m.onnx") -> Path:
    return save(folder / name, model_like(kind))


def head_of(path: Path, **options: Any) -> Head:
    head = load_onnx(path, **options).head
    assert head is not None
    return head


def changed(head: Head) -> Head:
    torch.manual_seed(1)
    bias = None if head.bias is None else torch.randn_like(head.bias)
    return head.replace(weight=torch.randn_like(head.weight), bias=bias)


def run(path: Path, images: Any = IMAGES, output: str = "y") -> Any:
    """The model's output, by onnxruntime alone."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run([output], {session.get_inputs()[0].name: images})[0]


def reference_features(path: Path) -> Any:
    """What the pool gives, by a graph of the backbone alone."""
    return run(save(path, model_of([], ("f",))), output="f")


def features_in(path: Path) -> Any:
    return np.concatenate(list(features_of(load_onnx(path), [IMAGES[:4], IMAGES[4:]])))


def final(kind: str, logits: Any) -> Any:
    if kind == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum(1)[:, None] if kind == "softmax" else logits


def n_differing(old: Path, new: Path) -> int:
    a, b = (np.frombuffer(path.read_bytes(), np.uint8) for path in (old, new))
    return int((a != b).sum())  # of different sizes: an error


def node_of(model: LoadedModel) -> str:
    assert isinstance(model.writer, OnnxWriter)
    return model.writer.node


@kinds
def test_head_is_read_as_it_acts(tmp_path: Path, kind: str) -> None:
    """Transposition, alpha and beta are in the numbers; features times head is the output."""
    path = made(tmp_path, kind)
    model = load_onnx(path)
    no_bias = KINDS[kind][2] is None
    assert (model.layer, node_of(model), model.weight_key) == ("head", "head", "w")
    assert model.bias_key == (None if no_bias else "b")
    assert model.head is not None
    assert (model.head.bias is None) == no_bias
    (features,) = features_of(model, [torch.from_numpy(IMAGES)])
    np.testing.assert_array_equal(features, reference_features(tmp_path / "r.onnx"))
    logits = model.head.logits(features).numpy()
    np.testing.assert_allclose(final(kind, logits), run(path), rtol=1e-5, atol=1e-5)
    if kind not in {"gemm_alpha_beta", "cast"}:
        np.testing.assert_array_equal(model.head.weight.numpy(), WEIGHT)


@kinds
def test_the_head_that_was_read_gives_the_same_file(tmp_path: Path, kind: str) -> None:
    """Byte for byte, alpha and beta too."""
    path = made(tmp_path, kind)
    report = write_onnx_head(path, tmp_path / "n.onnx", head_of(path))
    assert (tmp_path / "n.onnx").read_bytes() == path.read_bytes()
    assert (report.rows, report.cast) == (tuple(range(C)), "")


@kinds
def test_a_new_head_predicts_and_nothing_else_changes(tmp_path: Path, kind: str) -> None:
    """Outputs are those of the new head, features stay, and so do all other bytes."""
    path, copy = made(tmp_path, kind), tmp_path / "n.onnx"
    before, new = path.read_bytes(), changed(head_of(path))
    write_onnx_head(path, copy, new)
    assert path.read_bytes() == before
    features = features_in(copy)
    np.testing.assert_array_equal(features, features_in(path))
    expected = final(kind, new.logits(features).numpy())
    np.testing.assert_allclose(run(copy), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(run(path), run(copy), atol=1e-2)
    assert 0 < n_differing(path, copy) <= C * D * (2 if kind == "cast" else 4) + C * 4
    models = [onnx.load(path), onnx.load(copy)]
    for model in models:  # without the head's tensors, the two are one
        for held in [t for t in model.graph.initializer if t.name in {"w", "b"}]:
            model.graph.initializer.remove(held)
        for constant in [n for n in model.graph.node if n.op_type == "Constant"]:
            constant.ClearField("attribute")
    assert models[0] == models[1]


def test_half_precision(tmp_path: Path) -> None:
    """A float16 model keeps its dtype, from the features to the bytes, and says what it rounded."""
    constants = {"w": WEIGHT, "b": BIAS, "kernel": KERNEL}
    halves = {name: value.astype(np.float16) for name, value in constants.items()}
    model = model_of(KINDS["sigmoid"][0], **halves)
    model.graph.input[0].type.tensor_type.elem_type = FLOAT16
    path, copy = save(tmp_path / "m.onnx", model), tmp_path / "n.onnx"
    head = head_of(path)
    assert head.dtype == torch.float16
    (features,) = features_of(load_onnx(path), [IMAGES])
    assert features.dtype == np.float16
    write_onnx_head(path, copy, head)
    assert copy.read_bytes() == path.read_bytes()
    new = changed(head).replace(weight=torch.randn(C, D) + 0.1)
    assert "rounded to float16" in write_onnx_head(path, copy, new, overwrite=True).cast
    got = run(copy, IMAGES.astype(np.float16))
    np.testing.assert_allclose(got, final("sigmoid", new.logits(features).numpy()), atol=2e-3)
    with pytest.raises(HeadError, match="too large"):
        write_onnx_head(path, tmp_path / "o.onnx", new.replace(weight=torch.full((C, D), 1e6)))


def test_half_precision_in_int32_data(tmp_path: Path) -> None:
    """It is read; in place it cannot be written, as a number's length depends on its value."""
    values = TURNED.astype(np.float16)
    held = onnx.helper.make_tensor("w", FLOAT16, values.shape, values.flatten().tolist())
    assert len(held.int32_data) == C * D
    path = save(tmp_path / "m.onnx", model_of(KINDS["cast"][0], w=held, b=BIAS))
    np.testing.assert_array_equal(head_of(path).weight.numpy(), values.T)
    with pytest.raises(HeadError, match="int32_data"):
        write_onnx_head(path, tmp_path / "n.onnx", head_of(path))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def with_external(folder: Path, *, size_threshold: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    onnx.save_model(
        model_like("sigmoid"), folder / "m.onnx", save_as_external_data=True,
        location="weights.bin", size_threshold=size_threshold,
    )  # fmt: skip
    return folder / "m.onnx"


def test_external_data(tmp_path: Path) -> None:
    """The weights' file is copied along, and only the head's bytes in it change."""
    path, copy = with_external(tmp_path / "a"), tmp_path / "b" / "n.onnx"
    copy.parent.mkdir()
    weights, copied = path.with_name("weights.bin"), copy.with_name("weights.bin")
    before, new = weights.read_bytes(), changed(head_of(path))
    write_onnx_head(path, copy, head_of(path))
    assert (copy.read_bytes(), copied.read_bytes()) == (path.read_bytes(), before)
    with pytest.raises(OutputError, match="exists"):
        write_onnx_head(path, copy, new)
    write_onnx_head(path, copy, new, overwrite=True)
    assert (copy.read_bytes(), weights.read_bytes()) == (path.read_bytes(), before)
    assert 0 < n_differing(weights, copied) <= 4 * (C * D + C)
    features = features_in(copy)
    np.testing.assert_array_equal(features, features_in(path))
    expected = final("sigmoid", new.logits(features).numpy())
    np.testing.assert_allclose(run(copy), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(OutputError, match="another folder"):  # both would name weights.bin
        write_onnx_head(path, path.with_name("n.onnx"), new)
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.onnx", "weights.bin"]


def test_external_data_of_the_backbone_alone(tmp_path: Path) -> None:
    """They are shared by a copy beside the source, and copied into another folder."""
    path = with_external(tmp_path / "a", size_threshold=200)
    beside, copy = path.with_name("n.onnx"), tmp_path / "b" / "n.onnx"
    copy.parent.mkdir()
    for target in (beside, copy):
        write_onnx_head(path, target, changed(head_of(path)))
    assert n_differing(path.with_name("weights.bin"), copy.with_name("weights.bin")) == 0
    np.testing.assert_array_equal(run(beside), run(copy))
    assert not np.allclose(run(path), run(copy), atol=1e-2)


@pytest.mark.parametrize("location", ["../weights.bin", "/weights.bin", "", "a link"])
def test_external_data_stay_in_the_folder(tmp_path: Path, location: str) -> None:
    """A name or a link that leads out of the model's folder is not followed."""
    path = with_external(tmp_path / "a")
    weights = path.with_name("weights.bin")
    shutil.move(weights, tmp_path)
    if location == "a link":
        weights.symlink_to(tmp_path / "weights.bin")
    else:
        model = onnx.load(path, load_external_data=False)
        for held in model.graph.initializer:
            held.external_data[0].value = location
        save(path, model)
    with pytest.raises(CheckpointError, match="out of the folder"):
        load_onnx(path)


def test_external_bytes_that_two_tensors_name(tmp_path: Path) -> None:
    """Overlapping ranges of the file are shared weights."""
    path = with_external(tmp_path / "a")
    model = onnx.load(path, load_external_data=False)
    offsets = {
        t.name: next(e for e in t.external_data if e.key == "offset")
        for t in model.graph.initializer
    }
    offsets["kernel"].value = str(int(offsets["w"].value) + 76)
    path.with_name("weights.bin").write_bytes(bytes(8192))
    save(path, model)
    with pytest.raises(HeadError, match="2 tensors with these bytes"):
        write_onnx_head(path, tmp_path / "n.onnx", head_of(path))


def test_external_data_cut_short(tmp_path: Path) -> None:
    """The error names the file that is too short, or missing."""
    path = with_external(tmp_path / "a")
    weights = path.with_name("weights.bin")
    for size in (100, 0):
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(CheckpointError, match=r"weights\.bin"):
            load_onnx(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.bin"):
        load_onnx(path)


def two_outputs(path: Path) -> Path:
    """Two linear layers, each with an output of its own."""
    nodes = [
        node("Gemm", ["f", "w", "b"], ["y"], name="labels", transB=1),
        node("Gemm", ["f", "v"], ["z"], name="embedding", transB=1),
    ]
    return save(path, model_of(nodes, ("y", "z"), w=WEIGHT, b=BIAS, v=WEIGHT[:3] + 1))


def test_two_outputs_are_not_clear(tmp_path: Path) -> None:
    """Both candidates are listed; output, node or the number of rows tells them apart."""
    path, copy = two_outputs(tmp_path / "m.onnx"), tmp_path / "n.onnx"
    with pytest.raises(HeadError, match=r"not clear[\s\S]*'labels'[\s\S]*'embedding'"):
        load_onnx(path)
    for options in ({"output": "y"}, {"node": "labels"}, {"node": "y"}, {"n_categories": C}):
        assert node_of(load_onnx(path, **options)) == "labels"  # type: ignore[arg-type]
    assert head_of(path, layer="embedding").n_categories == 3
    for wrong, reason in (
        ({"n_categories": 9}, "another number of categories"),
        ({"output": "yy"}, "no output 'yy'"),
        ({"node": "label"}, "did you mean 'labels'"),
        ({"node": "pool"}, "is not a linear layer"),
    ):
        with pytest.raises(HeadError, match=reason):
            load_onnx(path, **wrong)  # type: ignore[arg-type]
    new = changed(head_of(path, node="labels"))
    write_onnx_head(path, copy, new, node="labels")
    np.testing.assert_array_equal(run(path, output="z"), run(copy, output="z"))
    expected = new.logits(reference_features(tmp_path / "r.onnx")).numpy()
    np.testing.assert_allclose(run(copy), expected, rtol=1e-5, atol=1e-5)


def test_logits_and_probabilities_are_one_layer(tmp_path: Path) -> None:
    """Two outputs of one layer, one behind a sigmoid, are clear; so is a feature beside them."""
    model = model_of(KINDS["sigmoid"][0], ("y", "g", "pooled"), w=WEIGHT, b=BIAS)
    found = load_onnx(save(tmp_path / "m.onnx", model))
    assert (found.layer, found.writer) == ("head", OnnxWriter("head", "g"))
    assert not any("of the logits" in note for note in found.notes)


def test_notes_say_what_lies_behind(tmp_path: Path) -> None:
    """The sigmoid, the tensor that is taken, and what is assumed are told."""
    text = " ".join(load_onnx(made(tmp_path)).notes)
    assert "the output 'y' is the Sigmoid of the logits" in text
    assert "the features are 'f'" in text
    assert "the preprocessing is assumed: 8 x 8 pixels" in text


def test_a_named_layer_that_no_output_leads_to(tmp_path: Path) -> None:
    """Where the walk back stops the reason is told; `node` then says the layer, bias and all."""
    nodes = [*KINDS["matmul_add"][0], node("Mul", ["y", "y"], ["scaled"], name="scale")]
    model = model_of(nodes, ("scaled",), w=TURNED, b=BIAS)
    path = save(tmp_path / "m.onnx", model)
    with pytest.raises(HeadError, match=r"Mul 'scale' lies between[\s\S]*export the model again"):
        load_onnx(path)
    with pytest.raises(HeadError, match=r"not what its layer 'head' gives"):
        check_output(load_onnx(path, node="head"))  # before anything is run or fitted
    assert torch.equal(head_of(path, node="head").bias, torch.from_numpy(BIAS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "nodes",
    [
        [*KINDS["matmul_add"][0], node("Div", ["y", "two"], ["out"])],
        [*KINDS["matmul_add"][0], node("Mul", ["two", "y"], ["h"]),
         node("Mul", ["h", "two"], ["out"])],
        [node("MatMul", ["f", "w"], ["p"], name="head"), node("Mul", ["p", "two"], ["m"]),
         node("Add", ["m", "b"], ["out"])],
        [*KINDS["matmul_add"][0], node("Div", ["y", "two"], ["h"]),
         node("Sigmoid", ["h"], ["out"])],
    ],
)  # fmt: skip
def test_a_constant_that_multiplies_the_logits_is_part_of_the_head(
    tmp_path: Path, nodes: list[Any]
) -> None:
    """A temperature, before the bias or behind it: the head gives the logits that come out."""
    model = model_of(nodes, ("out",), w=TURNED, b=BIAS, two=np.float32(2.5))
    path, copy = save(tmp_path / "m.onnx", model), tmp_path / "new.onnx"
    loaded = load_onnx(path)
    assert loaded.output_is == ""
    features = torch.from_numpy(reference_features(tmp_path / "r.onnx"))
    for head, at in ((loaded.head, path), (changed(loaded.head), copy)):
        if at is copy:
            write_onnx_head(path, copy, head)
        made_by_head = head.logits(features).numpy()
        kind = "sigmoid" if nodes[-1].op_type == "Sigmoid" else ""
        np.testing.assert_allclose(
            run(at, output="out"), final(kind, made_by_head), rtol=2e-5, atol=1e-5
        )
    write_onnx_head(path, tmp_path / "same.onnx", loaded.head)
    assert (tmp_path / "same.onnx").read_bytes() == path.read_bytes()
    (batch,) = [torch.from_numpy(IMAGES)]
    np.testing.assert_allclose(
        loaded.module(batch).numpy(), loaded.head.logits(features).numpy(), rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (node("ReduceMax", ["y"], ["out"], axes=[1]), "a maximum over positions"),
        (node("Mul", ["y", "zero"], ["out"]), "lies between"),
        (node("Mul", ["y", "many"], ["out"]), "lies between"),
    ],
)
def test_what_is_no_temperature(tmp_path: Path, last: Any, said: str) -> None:
    """A maximum is refused by that name; zero, and a factor a category, as what lies between."""
    nodes = [*KINDS["matmul_add"][0], last]
    model = model_of(
        nodes, ("out",), w=TURNED, b=BIAS, zero=np.float32(0), many=np.ones(C, np.float32)
    )
    with pytest.raises(HeadError, match=said):
        load_onnx(save(tmp_path / "m.onnx", model))


def test_a_quantised_model_is_called_so(tmp_path: Path) -> None:
    """Also where the last operator is the scaling of a quantised product."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    path = made(tmp_path)
    quantization.quantize_dynamic(str(path), str(tmp_path / "q.onnx"))
    with pytest.raises(HeadError, match=r"quantised[\s\S]*from before it was quantised"):
        load_onnx(tmp_path / "q.onnx")


@pytest.mark.parametrize("what", ["w", "b", "wt", "output", "subgraph"])
def test_shared_weights_are_refused(tmp_path: Path, what: str) -> None:
    """What another node, an output or an inner graph uses too is read, and not overwritten."""
    nodes, outputs = [*KINDS["transpose" if what == "wt" else "sigmoid"][0]], ("y", "again")
    if what == "output":
        outputs = ("y", "w")
    elif what == "subgraph":
        info = onnx.helper.make_tensor_value_info
        branches = {
            f"{side}_branch": onnx.helper.make_graph(
                [node("Identity", ["w"], [side])], side, [], [info(side, FLOAT, None)]
            )
            for side in ("then", "else")
        }
        nodes.append(node("If", ["ask"], ["again"], **branches))
    else:
        nodes.append(node("Neg", [what], ["again"]))
    model = model_of(nodes, outputs, w=WEIGHT, b=BIAS, ask=np.array(True))
    path = save(tmp_path / "m.onnx", model)
    with pytest.raises(HeadError, match=r"[23] uses of"):
        write_onnx_head(path, tmp_path / "n.onnx", head_of(path, output="y"), output="y")
    assert not (tmp_path / "n.onnx").exists()


DEQUANTISED = [node("DequantizeLinear", ["q", "s", "z"], ["w"]), FULL]
INTEGER = [
    node("DynamicQuantizeLinear", ["f"], ["a", "as", "az"]),
    node("MatMulInteger", ["a", "q", "az", "z"], ["g"], name="head"),
]


@pytest.mark.parametrize("nodes", [DEQUANTISED, INTEGER])
def test_quantised_heads_are_refused(tmp_path: Path, nodes: list[Any]) -> None:
    """Such layers have no floats to tune; the reason is told, however the layer is found."""
    codes = {"q": np.ones((C, D), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    path = save(tmp_path / "m.onnx", model_of(nodes, ("g",), b=BIAS, **codes))
    for name in (None, "head"):
        with pytest.raises(HeadError, match="quantised"):
            load_onnx(path, node=name)


@pytest.mark.parametrize(
    ("nodes", "weight", "bias", "reason"),
    [
        ([node("Gemm", ["f", "w"], ["y"], transA=1)], TURNED, None, "transposes its features"),
        ([node("Gemm", ["f", "w"], ["y"], alpha=0.0)], TURNED, None, "by 0"),
        ([node("Conv", ["r", "w"], ["y"])], np.ones((C, D, 3, 3)), None, "not a 1×1 convolution"),
        ([node("MatMul", ["f", "w"], ["y"])], np.ones((2, D, C)), None, "a weight of shape"),
        ([node("MatMul", ["w", "f"], ["y"])], WEIGHT, None, "is not a constant"),
        ([*KINDS["gemm"][0]], TURNED, np.ones(1, np.float32), "not one number for each category"),
        ([FULL, node("Add", ["g", "b"], ["y"])], WEIGHT, BIAS, "a second one is added"),
        ([FULL, node("Add", ["g", "f"], ["y"])], WEIGHT, BIAS, "adds no constant"),
    ],
)
def test_layers_that_are_no_head(
    tmp_path: Path, nodes: list[Any], weight: Any, bias: Any, reason: str
) -> None:
    """Each says why it is refused."""
    held = {"w": weight.astype(np.float32)} | ({} if bias is None else {"b": bias})
    with pytest.raises(HeadError, match=reason):
        load_onnx(save(tmp_path / "m.onnx", model_of(nodes, **held)))


def test_names_of_the_rows(tmp_path: Path) -> None:
    """They come back from the side file, and some rows are then written by name."""
    path, copy = made(tmp_path), tmp_path / "n.onnx"
    new = changed(head_of(path, categories=NAMES)).replace(provenance={"seed": 3})
    write_onnx_head(path, copy, new, categories=NAMES)
    assert json.loads((tmp_path / "n.onnx.catwise.json").read_text())["provenance"] == {"seed": 3}
    assert list(head_of(copy).categories) == NAMES
    assert torch.equal(head_of(copy).weight, new.weight)
    one = Head(torch.ones(1, D), torch.zeros(1), categories=["cat"])
    assert write_onnx_head(copy, tmp_path / "o.onnx", one).rows == (2,)
    third = head_of(tmp_path / "o.onnx").weight
    assert torch.equal(third[2], torch.ones(D))
    assert torch.equal(third[[0, 1, 3]], new.weight[[0, 1, 3]])
    with pytest.raises(CategoryError, match="did you mean 'cat'"):
        write_onnx_head(copy, tmp_path / "p.onnx", one.replace(categories=["cats"]))
    made(tmp_path, name="n.onnx")  # another head: the side file is not believed
    assert head_of(copy).categories == ("0", "1", "2", "3")
    (tmp_path / "n.onnx.catwise.json").write_text("{")
    assert head_of(copy).categories == ("0", "1", "2", "3")


def test_the_rows_that_fitted_the_head_are_kept(tmp_path: Path) -> None:
    """In the side file, from copy to copy; of other numbers nothing is known."""
    path, copies = made(tmp_path), [tmp_path / f"{i}.onnx" for i in range(4)]
    new = changed(head_of(path, categories=NAMES)).replace(fitted_on=[3, 4])
    assert head_of(path).fitted_on is None
    write_onnx_head(path, copies[0], new, categories=NAMES)
    write_onnx_head(copies[0], copies[1], head_of(copies[0]))
    one = Head(torch.ones(1, D), torch.zeros(1), categories=["cat"], fitted_on=[4, 5])
    write_onnx_head(copies[1], copies[2], one)
    write_onnx_head(copies[1], copies[3], new.replace(weight=new.weight * 2, fitted_on=None))
    found = [head_of(copy).fitted_on for copy in copies]
    assert [None if one is None else one.tolist() for one in found] == [
        [3, 4], [3, 4], [3, 4, 5], None,
    ]  # fmt: skip
    made(tmp_path, name="0.onnx")
    assert head_of(copies[0]).fitted_on is None


def test_head_that_does_not_fit(tmp_path: Path) -> None:
    """Features, rows and bias must be those of the layer; the file is named."""
    path, plain = made(tmp_path), made(tmp_path, "matmul", "o.onnx")
    for source, head, error in (
        (path, Head(torch.ones(C, D + 1), torch.ones(C)), ShapeError),
        (path, Head(torch.ones(C + 1, D), torch.ones(C + 1)), ShapeError),
        (path, Head(torch.ones(C, D)), HeadError),
        (plain, Head(torch.ones(C, D), torch.ones(C)), HeadError),
    ):
        with pytest.raises(error, match=r"'head' of '.*\.onnx'"):
            write_onnx_head(source, tmp_path / "n.onnx", head)
    write_onnx_head(plain, tmp_path / "n.onnx", Head(torch.ones(C, D), torch.zeros(C)))


def test_other_rows_are_refused(tmp_path: Path) -> None:
    """Sizes are part of a graph: more rows, fewer or others need the model exported again."""
    model = load_onnx(made(tmp_path))
    head, new = model.head, tmp_path / "new.onnx"
    assert head is not None
    for other in (head.take_categories([1, 0]), head.drop_categories([0])):
        with pytest.raises(HeadError, match="cannot have other rows") as caught:
            write_model(model, other, new, resize=True)
        assert "export that again" in str(caught.value)
        assert not new.exists()
    write_model(model, head, new, resize=True)  # the same rows
    assert new.read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_what_is_there_stays(tmp_path: Path) -> None:
    """The source is never the destination; another file is replaced only when asked."""
    path, copy = made(tmp_path), tmp_path / "n.onnx"
    head = head_of(path)
    (tmp_path / "link.onnx").hardlink_to(path)
    for target in (path, tmp_path / "link.onnx"):
        with pytest.raises(OutputError, match="is the model itself"):
            write_onnx_head(path, target, head, overwrite=True)
    copy.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_onnx_head(path, copy, head)
    assert copy.read_text() == "mine"
    write_onnx_head(path, copy, head, overwrite=True)
    assert copy.read_bytes() == path.read_bytes()
    with pytest.raises(OutputError, match="make the folder first"):
        write_onnx_head(path, tmp_path / "none" / "n.onnx", head)


@pytest.mark.parametrize("kind", ["sigmoid", "constant_nodes", "matmul_add"])
def test_cut_and_damaged_files(tmp_path: Path, kind: str) -> None:
    """Wherever a file is cut, and whichever byte is wrong, there is a catwise error or a model."""
    raw = made(tmp_path, kind).read_bytes()
    path, messages = tmp_path / "d.onnx", []
    for stop in range(0, len(raw) - 1, 3):
        path.write_bytes(raw[:stop])
        with pytest.raises(CheckpointError, match=r"d\.onnx"):
            load_onnx(path)
    for at in range(0, len(raw), 3):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        try:
            write_onnx_head(path, tmp_path / "n.onnx", head_of(path), overwrite=True)
        except CatwiseError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all("d.onnx" in text or "finite" in text for text in messages)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    """Empty, text, a folder, missing; and what onnxruntime alone refuses."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"hello world, this is text")
    for name in ("empty", "text", "", "missing"):
        with pytest.raises(CheckpointError, match=f"cannot read the ONNX model '.*{name}'"):
            load_onnx(tmp_path / name)
    model = model_like("sigmoid")
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(CheckpointError, match="onnxruntime cannot load"):
        next(features_of(load_onnx(save(tmp_path / "m.onnx", model)), [IMAGES]))


def test_module_runs_the_file(tmp_path: Path) -> None:
    """`extract` streams images through onnxruntime: features of the graph, logits of its layer."""
    path = made(tmp_path, "sigmoid")
    model = load_onnx(path)
    found = extract(model, [torch.from_numpy(IMAGES[:4]), torch.from_numpy(IMAGES[4:])])
    np.testing.assert_array_equal(found.features.float(), np.float16(features_in(path)))
    np.testing.assert_allclose(found.logits, features_in(path) @ WEIGHT.T + BIAS, atol=1e-5)
    copied = copy.deepcopy(model.module)
    assert torch.equal(copied(torch.from_numpy(IMAGES)), found.logits)


def test_module_is_known_by_the_files(tmp_path: Path) -> None:
    """A resumed extraction must not go on with another backbone: its bytes are in the digest."""
    first = load_onnx(made(tmp_path))
    other = tmp_path / "other.onnx"
    shutil.copy(first.checkpoint, other)
    assert weights_digest(load_onnx(other).module) == weights_digest(first.module)
    model = onnx.load(other)
    kernel = next(x for x in model.graph.initializer if list(x.dims) == list(KERNEL.shape))
    kernel.CopyFrom(tensor(KERNEL + 1, kernel.name))
    onnx.save(model, other)
    assert weights_digest(load_onnx(other).module) != weights_digest(first.module)


def test_batches(tmp_path: Path) -> None:
    """Any batch size gives the same rows; sizes that do not fit are refused."""
    path = made(tmp_path)
    model, expected = load_onnx(path), reference_features(tmp_path / "r.onnx")
    parts = list(features_of(model, (IMAGES[i : i + 3] for i in range(0, 9, 3))))
    assert [len(part) for part in parts] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-6)
    assert next(features_of(model, [IMAGES[:0]])).shape == (0, D)
    for wrong in (IMAGES[:, :, :4], IMAGES[:, :2], IMAGES[0]):
        with pytest.raises(ShapeError, match="do not fit the input 'x'"):
            next(features_of(model, [wrong]))
    fixed = onnx.load(path)  # for exactly two images: what fills up is cut off
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    (features,) = features_of(load_onnx(save(path, fixed)), [IMAGES])
    np.testing.assert_allclose(features, expected, rtol=1e-6)


def test_features_that_are_no_rows(tmp_path: Path) -> None:
    """A layer that works on each place of a map is refused; the graph's own input is not."""
    conv = node("Conv", ["r", "w"], ["y"], name="head")
    path = save(tmp_path / "m.onnx", model_of([conv], w=WEIGHT[:, :, None, None]))
    with pytest.raises(ShapeError, match="not a row for each image"):
        next(features_of(load_onnx(path), [IMAGES]))
    model = model_of([], w=TURNED)
    del model.graph.node[:]
    model.graph.node.append(node("Gemm", ["x", "w"], ["y"]))
    del model.graph.input[0].type.tensor_type.shape.dim[2:]
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = D
    alone = load_onnx(save(path, model))
    assert node_of(alone) == "y"
    rows = np.eye(D, dtype=np.float32)
    np.testing.assert_array_equal(next(features_of(alone, [rows])), rows)


def test_preprocessing_from_the_metadata(tmp_path: Path) -> None:
    """`catwise.preprocessing` is read; what is wrong in it is refused; an argument goes first."""
    model, path = model_like("sigmoid"), tmp_path / "m.onnx"
    entry = model.metadata_props.add()
    entry.key = "catwise.preprocessing"
    told = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    entry.value = json.dumps(told)
    expected = Preprocessing((8, 8), (0.5,) * 3, (0.25,) * 3, "bicubic", source="ONNX metadata")
    assert load_onnx(save(path, model)).preprocessing == expected
    given = Preprocessing(size=(4, 4))
    assert load_onnx(path, preprocessing=given).preprocessing is given
    for wrong in ("{", "[1]", '{"size": [8]}', '{"sizes": [8, 8]}', '{"size": 8}', "3"):
        entry.value = wrong
        with pytest.raises(ConfigError, match=r"catwise\.preprocessing"):
            load_onnx(save(path, model))


class Net(nn.Module):
    """A small convolutional classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 3)
        self.fc = nn.Linear(D, C)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images)).sigmoid()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).relu().mean((2, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_of_torch(tmp_path: Path) -> None:
    """What torch.onnx.export writes is read, run and written, as the module itself would be."""
    torch.manual_seed(0)
    net, images = Net().eval(), torch.from_numpy(IMAGES)
    path, copy = tmp_path / "m.onnx", tmp_path / "n.onnx"
    torch.onnx.export(
        net, (images,), str(path), input_names=["i"], output_names=["o"], dynamo=False,
        dynamic_axes={"i": {0: "n"}, "o": {0: "n"}},
    )  # fmt: skip
    model = load_onnx(path)
    assert (model.weight_key, model.bias_key) == ("fc.weight", "fc.bias")
    assert torch.equal(head_of(path).weight, net.fc.weight)
    (features,) = features_of(model, [images])
    np.testing.assert_allclose(features, net.features(images).detach(), rtol=1e-5, atol=1e-6)
    write_onnx_head(path, copy, head_of(path))
    assert copy.read_bytes() == path.read_bytes()
    new = changed(head_of(path))
    net.fc.load_state_dict({"weight": new.weight, "bias": new.bias})
    write_onnx_head(path, copy, new, overwrite=True)
    np.testing.assert_allclose(run(copy, output="o"), net(images).detach(), atol=1e-6)


@pytest.mark.parametrize("raised", ["ModuleNotFoundError('no', name=name)", "RuntimeError('bad')"])
@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages(tmp_path: Path, package: str, raised: str) -> None:
    """Absent or broken: one error says how to install them."""
    made(tmp_path)
    code = f"""if True:
        import sys
        from catwise.errors import MissingExtraError
        from catwise.models.adapters.onnx.model import load_onnx
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == {package!r}:
                    raise {raised}
        sys.meta_path.insert(0, Finder())
        try:
            load_onnx('m.onnx').module(None)
        except MissingExtraError as error:
            print(error)"""
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert f"needs the package {package!r}, which is" in told
    assert "pip install 'catwise[onnx]'" in told


def in_one_another(depth: int) -> Any:
    """A model whose graph holds a graph that holds a graph, and so on."""
    inner = onnx.helper.make_graph([node("Identity", ["x"], ["z"])], "inner", [], [])
    for _ in range(depth):
        inner = onnx.helper.make_graph([node("If", ["x"], ["z"], then_branch=inner)], "g", [], [])
    return model_of([*KINDS["gemm"][0], *inner.node], w=TURNED, b=BIAS)


def doubling(n_functions: int, *, round_about: bool = False) -> Any:
    """A model whose functions each call the next one twice."""
    model = model_of([*KINDS["gemm"][0], node("F0", ["x"], ["z"], domain="own")], w=TURNED, b=BIAS)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]
    for i in range(n_functions):
        last = i == n_functions - 1
        op, domain = ("Identity", "") if last else (f"F{i + 1}", "own")
        op, domain = ("F0", "own") if last and round_about else (op, domain)
        body = [node(op, ["a"], ["t"], domain=domain), node(op, ["t"], ["o"], domain=domain)]
        model.functions.append(
            onnx.helper.make_function("own", f"F{i}", ["a"], ["o"], body, opsets)
        )
    model.opset_import.append(opsets[1])
    return model


def claiming(dims: list[int]) -> Any:
    model = model_of(KINDS["gemm"][0], w=TURNED, b=BIAS)
    model.graph.initializer[0].dims[:] = dims
    return model


def plain() -> Any:
    return model_of(KINDS["gemm"][0], w=TURNED, b=BIAS)


@pytest.mark.parametrize(
    ("make", "limit", "value", "reason"),
    [
        (plain, "MAX_PROTOBUF", 100, "bytes of one protobuf message, more than 100"),
        (plain, "MAX_STEPS", 40, "more than 40 fields"),
        (lambda: in_one_another(25), "MAX_DEPTH", 64, "nests more than 64 messages"),
        (plain, "MAX_DIMENSIONS", 3, "4 axes of the tensor 'kernel', more than 3"),
        (lambda: claiming([2**40, 3, 3, 3]), "MAX_DEPTH", 64, "claims 29,686,813,949,952 numbers"),
        (lambda: claiming([2**62, 2**62]), "MAX_DEPTH", 64, "entries"),
        (lambda: claiming([-5, 3, 3, 3]), "MAX_DEPTH", 64, "not a whole number: -5"),
        (lambda: doubling(9), "MAX_STEPS", 500, "nodes once its functions are written out"),
        (lambda: doubling(3, round_about=True), "MAX_DEPTH", 64, "calls itself"),
    ],
)
def test_what_a_file_claims_is_bounded(
    make: Any, limit: str, value: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size, fields, depth, shapes and functions are looked at before anything is made of them."""
    path = save(tmp_path / "m.onnx", make())
    for module in ("_limits", "models.adapters.onnx.graph"):
        monkeypatch.setattr(f"catwise.{module}.{limit}", value, raising=False)
    with pytest.raises(CheckpointError, match=reason) as refused:
        load_onnx(path)
    assert refused.value.expected
    assert refused.value.remedy


def test_what_is_within_the_bounds_is_read(tmp_path: Path) -> None:
    """Inner graphs and functions that are written out are no harm."""
    for number, model in enumerate((in_one_another(10), doubling(4))):
        assert load_onnx(save(tmp_path / f"{number}.onnx", model), node="head").head is not None


@pytest.mark.parametrize("change", [{"length": str(2**60)}, {"offset": "-1"}, {"offset": "9999"}])
def test_external_data_that_are_not_there(tmp_path: Path, change: dict[str, str]) -> None:
    """Where numbers lie is compared with the file's size before they are read."""
    path = with_external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for held in model.graph.initializer:
        for entry in held.external_data:
            entry.value = change.get(entry.key, entry.value)
    with pytest.raises(CheckpointError, match="from byte"):
        load_onnx(save(path, model))
