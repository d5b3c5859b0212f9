"""The logits in what a model returns: the values decide, when it is loaded, run and verified."""
# ruff: noqa: ARG005 - what is returned is made of logits and features, or of one of them

from __future__ import annotations

from collections import OrderedDict, UserDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import nn

from catwise.errors import HeadError
from catwise.models.adapters.torch_modules import adapt_module
from catwise.models.core import Preprocessing
from catwise.models.extraction import extract
from catwise.models.layers import find_layer
from catwise.models.logits import (
    ACTIVATIONS,
    described,
    logits_of,
    nearest_logits,
    sigmoid_gap,
    tensors_in,
)
from catwise.models.verify import noise, verify_written

if TYPE_CHECKING:
    from collections.abc import Callable

C, D = 3, 8


class Pair(NamedTuple):
    features: torch.Tensor
    scores: torch.Tensor


@dataclass
class Result:
    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] = ()


class Plain:
    def __init__(self, logits: torch.Tensor) -> None:
        self.anything = logits


class Failing(Plain):
    @property
    def logits(self) -> torch.Tensor:
        raise RuntimeError("only while training")


class Slotted:
    __slots__ = ("one", "two")

    def __init__(self, one: torch.Tensor, two: torch.Tensor) -> None:
        self.one, self.two = one, two


class Table:
    """A table that is no Mapping, as tensordict's."""

    def __init__(self, **parts: torch.Tensor) -> None:
        self._inside = list(parts.items())

    def keys(self) -> list[str]:
        return [key for key, _ in self._inside]

    def __getitem__(self, key: str) -> torch.Tensor:
        return dict(self._inside)[key]


class WithAttribute(dict[str, Any]):
    """A table whose logits are an attribute, not an item."""

    logits: torch.Tensor


def with_attribute(y: torch.Tensor) -> WithAttribute:
    table = WithAttribute(loss=torch.zeros(()))
    table.logits = y
    return table


RETURNED: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "tensor": lambda y, z: y,
    "tuple": lambda y, z: (y,),
    "list": lambda y, z: [y],
    "logits": lambda y, z: {"logits": y},
    "out": lambda y, z: {"out": y},
    "output": lambda y, z: {"output": y},
    "pred": lambda y, z: {"pred": y, "loss": None, "n": 3},
    "nested": lambda y, z: {"heads": {"finding": {"scores": y}}},
    "logits, features": lambda y, z: (y, z),
    "features, logits": lambda y, z: (z, y),
    "named tuple": lambda y, z: Pair(z, y),
    "dataclass": lambda y, z: Result(None, y, (z[:, None].repeat(1, 4, 1),)),
    "object": lambda y, z: Plain(y),
    "a property that fails": lambda y, z: Failing(y),
    "slots": lambda y, z: Slotted(z, y),
    "ordered": lambda y, z: OrderedDict(anything=y),
    "UserDict": lambda y, z: UserDict({"out": y}),
    "no Mapping": lambda y, z: Table(z=z, y=y),
    "attribute": lambda y, z: with_attribute(y),
    "deque": lambda y, z: deque([z, y]),
    "generator": lambda y, z: (part for part in (z, y)),
    "(N, C, 1, 1)": lambda y, z: {"out": y[..., None, None]},
    "(N, 1, C)": lambda y, z: y[:, None],
    "(1, N, C)": lambda y, z: y[None],
    "double": lambda y, z: y.double(),
    "logits and probabilities": lambda y, z: {"probs": y.sigmoid(), "logits": y},
    "probabilities first": lambda y, z: (y.sigmoid(), y),
    "deep supervision": lambda y, z: [y, y * 0.9 + 1, y * 0.5 - 1],
    "deep supervision, last": lambda y, z: [y * 0.5 - 1, y * 0.9 + 1, y],
    "token types": lambda y, z: {"labels": y.argmax(1), "mask": y > 0, "text": ["a"], "y": y},
    "numbers by int": lambda y, z: {0: z, 1: y},
}

NOT: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], object], str]] = {
    "softmax": (lambda y, z: {"probs": y.softmax(1)}, "the softmax of"),
    "log_softmax": (lambda y, z: y.log_softmax(1), "the log-softmax of"),
    "temperature": (lambda y, z: (y / 0.7, z), "1.429 times"),
    "transposed": (lambda y, z: y.T, "the transpose of"),
    "transposed in a table": (lambda y, z: {"logits": y.T, "z": z}, "the transpose of"),
    "transposed sigmoid": (lambda y, z: y.sigmoid().T, "the transpose of the sigmoid of"),
    "permuted": (lambda y, z: y.flip(1), ""),
    "shifted": (lambda y, z: {"logits": y + 1}, ""),
    "fewer": (lambda y, z: y[:, :2], ""),
    "maximum of two": (lambda y, z: torch.maximum(y, -y), ""),
    "not a number": (lambda y, z: y / 0 * 0, ""),
    "features alone": (lambda y, z: {"features": z}, ""),
    "no tensor": (lambda y, z: {"labels": y.argmax(1)}, ""),
    "nothing": (lambda y, z: None, ""),
}


class Net(nn.Module):
    """Features, a layer, and an output of any kind."""

    def __init__(self, returned: Callable[[Any, Any], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, D, 3)
        self.fc = nn.Linear(D, C)
        self.returned = returned

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).relu().mean((2, 3))

    def forward(self, images: torch.Tensor) -> object:
        z = self.features(images)
        y = self.fc(z)
        made = self.returned(y, z)
        if isinstance(made, type(part for part in ())):
            return self.slowly(images)
        return made

    def slowly(self, images: torch.Tensor) -> Any:
        z = self.features(images)
        yield z
        yield z @ self.fc.weight.T + self.fc.bias


def adapted(returned: Callable[[Any, Any], object]) -> Any:
    return adapt_module(Net(returned).eval(), name="net", preprocessing=Preprocessing((8, 8)))


@pytest.mark.parametrize("kind", RETURNED)
def test_one_rule_wherever_the_logits_are(kind: str) -> None:
    """Loading, extraction and verification find the tensor that the layer gives, in anything."""
    model = adapted(RETURNED[kind])
    assert not model.output_is
    assert not any("not what" in note or "fails" in note for note in model.notes)
    images = noise(model)
    found = extract(model, [images], dtype="float32")
    right = model.head.logits(model.module.features(images).detach())
    torch.testing.assert_close(found.logits, right)
    assert verify_written(model, model, model.head, images).change == 0


@pytest.mark.parametrize("kind", NOT)
def test_what_the_layer_does_not_give(kind: str) -> None:
    """It is said when the model is loaded, in words where there are some, and refused later."""
    returned, words = NOT[kind]
    model = adapted(returned)
    word = kind.replace("_", "-")
    assert model.output_is == (word if word in ACTIVATIONS else "not the layer's")
    assert any("output is not what its layer 'fc' gives" in note for note in model.notes)
    assert words in model.notes[-1]
    with pytest.raises(HeadError, match=words or "logits"):
        extract(model, [noise(model)])


@pytest.mark.parametrize(
    "returned",
    [
        lambda y, z: y.sigmoid(),
        lambda y, z: {"probabilities": y.sigmoid()[..., None], "features": z},
        lambda y, z: (z, y.sigmoid().double()),
    ],
)
def test_a_model_that_ends_in_a_sigmoid(returned: Any) -> None:
    """Its layer is checked through the sigmoid; the logits that come out are the layer's."""
    model = adapted(returned)
    assert model.output_is == "sigmoid"
    images = noise(model)
    found = extract(model, [images], dtype="float32")
    right = model.head.logits(model.module.features(images).detach())
    torch.testing.assert_close(found.logits, right)


def test_saturated_probabilities_prove_nothing() -> None:
    """Another layer's are not taken for this one's because all are near 0 or 1."""
    wanted = torch.randn(8, C, generator=torch.Generator().manual_seed(0)) * 3
    assert sigmoid_gap(wanted.sigmoid(), wanted) is not None
    assert sigmoid_gap((wanted * 1.05).sigmoid(), wanted) is None
    assert sigmoid_gap((wanted.sign() * 30).sigmoid(), wanted.sign() * 60) is None
    assert sigmoid_gap(wanted.flip(1).sigmoid(), wanted) is None
    assert sigmoid_gap(wanted, wanted) is None


@pytest.mark.parametrize("kind", [kind for kind in NOT if kind.startswith("transposed")])
@pytest.mark.parametrize("rows", [C, C + 2])
def test_transposed_logits_are_never_taken(kind: str, rows: int) -> None:
    """Also where there are as many images as categories, and by a model that nobody tried out."""
    model = adapted(NOT[kind][0])
    images = torch.randn(rows, 3, 8, 8)
    with torch.no_grad():
        output = model.module(images)
    wanted = model.head.logits(model.module.features(images).detach())
    with pytest.raises(HeadError, match=rf"transposed(.|\n)*\({rows}, {C}\)"):
        logits_of(output, wanted)
    with pytest.raises(HeadError, match="the transpose of"):
        extract(model, [images])
    del model.output_is  # as a function of the user's gives it
    with pytest.raises(HeadError, match="transposed"):
        verify_written(model, model, model.head, images)


def test_a_symmetric_output_is_not_transposed() -> None:
    """As many images as categories, and the same both ways."""
    y = torch.randn(C, C)
    assert torch.equal(logits_of(y + y.T, y + y.T), y + y.T)


def test_what_else_is_returned_is_said() -> None:
    """Another tensor that might be meant has its place named; features are not one."""
    assert adapted(RETURNED["features, logits"]).notes == []
    (note,) = adapted(RETURNED["probabilities first"]).notes
    assert "'[1]' is what its layer 'fc' gives, and not '[0]' (1, 3)" in note


class TwoTasks(nn.Module):
    """Two linear layers without a head's names, and what is returned of them."""

    def __init__(self, returned: Callable[..., object]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, C), nn.Linear(4, C)
        self.returned = returned

    def forward(self, x: torch.Tensor) -> object:
        return self.returned(self.one(x), self.two(x), x)


@pytest.mark.parametrize(
    ("returned", "name"),
    [
        (lambda a, b, x: {"logits": a, "embedding": b}, "one"),
        (lambda a, b, x: (x, b), "two"),
        (lambda a, b, x: b, "two"),
        (lambda a, b, x: (a, b), None),
        (lambda a, b, x: {"probabilities": b.sigmoid(), "embedding": a}, None),
        (lambda a, b, x: {"logits": 2 * b, "embedding": a}, None),
        (lambda a, b, x: a + b, None),
    ],
)
def test_the_layer_that_is_found_by_running(
    returned: Callable[..., object], name: str | None
) -> None:
    """One layer alone makes what is returned, or what is called logits; else it is asked for."""
    model = TwoTasks(returned)
    if name is not None:
        assert find_layer(model, run=lambda: model(torch.randn(2, 4)))[0] == name
        return
    with pytest.raises(HeadError, match="2 layers"):
        find_layer(model, run=lambda: model(torch.randn(2, 4)))


def test_without_the_layer_names_decide_or_nothing() -> None:
    """One tensor, or one called logits; several are refused with their places and shapes."""
    y = torch.randn(2, C)
    assert torch.equal(logits_of({"aux": {"logits": y + 1}, "logits": y}), y)
    assert torch.equal(logits_of({"anything": y, "n": 1}), y)
    with pytest.raises(HeadError, match=r"several(.|\n)*\[0\] \(2, 3\), \[1\]\.b \(2, 3\)"):
        logits_of((y, {"b": y}))
    for nothing in (None, (), {"a": y.long()}, torch.zeros(3), "text"):
        with pytest.raises(HeadError, match="no logits"):
            logits_of(nothing)


def test_nests_have_an_end() -> None:
    """A table that holds itself, a module and deep nests are not followed for ever."""
    y = torch.randn(2, C)
    loop: dict[str, Any] = {"model": nn.Linear(2, 2), "y": y}
    loop["again"] = [loop]
    assert list(tensors_in(loop)) == ["y"]
    deep: Any = y
    for _ in range(50):
        deep = [deep]
    assert tensors_in(deep) == {}


def test_the_nearest_counts() -> None:
    """Of two tensors within rounding the nearer one is taken; half precision rounds more."""
    y = torch.randn(4, C)
    match = nearest_logits({"ema": y * 1.0005, "now": y}, y)
    assert match is not None
    assert (match.path, match.gap) == ("now", 0)
    near = nearest_logits(y * 1.005, y)
    assert near is not None
    assert not near.is_same
    half = nearest_logits(y * 1.005, y, dtype=torch.float16)
    assert half is not None
    assert half.is_same
    assert nearest_logits(y[:, :2], y) is None
    assert described(y * 3, y) == "3 times"
