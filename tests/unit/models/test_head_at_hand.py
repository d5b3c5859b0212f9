"""With the model at hand, a head is what its layer gives on a batch, before and after writing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from catwise.errors import HeadError
from catwise.models.adapters.torch_modules import adapt_module
from catwise.models.core import LoadedModel, Preprocessing, Request
from catwise.models.verify import check_output

if TYPE_CHECKING:
    from pathlib import Path

TAKE = Preprocessing((2, 2))


class Adapted(nn.Linear):
    """A layer with a low-rank adapter beside its weight."""

    def __init__(self, size: float, names: tuple[str, str] = ("lora_A", "lora_B")) -> None:
        super().__init__(12, 3)
        self.names = names
        self.register_parameter(names[0], nn.Parameter(torch.ones(2, 12)))
        self.register_parameter(names[1], nn.Parameter(torch.full((3, 2), size)))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_parameter(name) for name in self.names)
        return super().forward(x) + x @ first.T @ second.T


class Gated(nn.Linear):
    """A layer whose outputs a buffer scales."""

    def __init__(self, gate: float) -> None:
        super().__init__(12, 3)
        self.register_buffer("gate", torch.tensor(gate))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.get_buffer("gate")


class Cosine(nn.Linear):
    """A classifier of angles."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x / x.norm(dim=1, keepdim=True), self.weight, self.bias)


def adapt(layer: nn.Module, **options: Any) -> LoadedModel:
    model = nn.Sequential(nn.Flatten(), layer)
    return adapt_module(model, name="mine", preprocessing=TAKE, layers="1", **options)


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "an adapter": (Adapted(0.5), "merge the adapter first"),
    "an adapter that does nothing yet": (Adapted(0.0), "merge the adapter first"),
    "an adapter of unknown names": (Adapted(0.5, ("down", "up")), "does not give"),
    "a gate": (Gated(0.5), "does not give"),
    "a cosine": (Cosine(12, 3), "does not give"),
    "weight norm": (parametrizations.weight_norm(nn.Linear(12, 3)), "no weight of its own"),
    "spectral norm": (parametrizations.spectral_norm(nn.Linear(12, 3)), "no weight of its own"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_layer_that_gives_something_else(kind: str) -> None:
    """By its names, or by what it gives: the head is not taken."""
    layer, reason = REFUSED[kind]
    with pytest.raises(HeadError, match=reason):
        adapt(layer)


@pytest.mark.parametrize("layer", [Gated(1.0), Adapted(0.0, ("down", "up"))])
def test_names_alone_are_no_reason_then(layer: nn.Module) -> None:
    """Where the layer gives what its weight and bias say, other tensors beside it do no harm."""
    assert adapt(layer).head is not None


def test_a_function_that_changes_the_numbers_as_it_loads(tmp_path: Path) -> None:
    """The layer in memory and the head in the file must be the same."""
    layer = nn.Linear(12, 3)
    path = tmp_path / "m.pt"
    torch.save(nn.Sequential(nn.Flatten(), layer).state_dict(), path)
    assert adapt(layer, checkpoint=path, loaded=True).head is not None
    with torch.no_grad():
        layer.weight += 1
    with pytest.raises(HeadError, match="leave the layer's numbers as they are"):
        adapt(layer, checkpoint=path, loaded=True)


@pytest.mark.parametrize("layer", ["0", "2", "3", ""])
def test_layers_without_a_matrix(layer: str) -> None:
    """A layer without a weight, a norm, a container: refused, with the linear layer's name."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.LayerNorm(3), nn.Sequential())
    with pytest.raises(HeadError, match=rf"the layer '{layer}' is not a classification layer"):
        adapt_module(model, name="mine", preprocessing=TAKE, layers=layer)


@pytest.mark.parametrize(
    ("output", "asked", "refused"),
    [
        ("", {}, False),
        ("sigmoid", {}, False),
        ("softmax", {}, False),
        ("not the layer's", {}, True),
        ("not linear", {}, True),
        ("not the layer's", {"heads": "both"}, True),
        ("not the layer's", {"heads": "first"}, False),
        ("not the layer's", {"op_threshs": "keep"}, False),
    ],
)
def test_models_whose_logits_are_not_their_layer_s(
    output: str, asked: dict[str, str], refused: bool
) -> None:
    """They are not written into, unless that was asked for."""
    request = Request("mine:load", model_args=asked)
    model = LoadedModel("mine", nn.Identity(), "fc", TAKE, output_is=output, request=request)
    if refused:
        with pytest.raises(HeadError, match="are not what its layer 'fc' gives"):
            check_output(model)
    else:
        check_output(model)


@pytest.mark.parametrize("function", ["sigmoid", "softmax", "tanh"])
def test_what_lies_behind_the_layer_is_told(function: str) -> None:
    """A sigmoid and a softmax by their names."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x.flatten(1))
            squashed = {"sigmoid": out.sigmoid(), "softmax": out.softmax(1), "tanh": out.tanh()}
            return squashed[function]

    model = adapt_module(Net(), name="mine", preprocessing=TAKE)
    expected = "not the layer's" if function == "tanh" else function
    assert model.output_is == expected
