"""Models that multiply what their layer gives by a constant, such as ``logits / temperature``.

The head of such a model is the layer's weight and bias times the constant, so that head(features)
are the model's logits; it is divided by it when it is written (`catwise.models.writing`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from catwise.models.core import LoadedModel
from catwise.models.layers import put_head
from catwise.models.logits import factor_in, logits_of, settled
from catwise.models.packages import FAILS
from catwise.models.writing import FileWriter, multiplied, writer_of

_SURE: Final = 1e-6
_BRIGHTNESS: Final = (1.0, 3.0, -0.5, 0.0)


class Scaled(nn.Module):
    """A model that multiplies its layer's output, beside a layer `joined` of its logits."""

    def __init__(self, model: nn.Module, layer: str, like: LoadedModel) -> None:
        super().__init__()
        assert like.head is not None  # noqa: S101  # adapted
        head = like.head
        self.model = model
        self.layer = layer
        self.joined = nn.Linear(
            head.n_features, head.n_categories, bias=head.bias is not None, dtype=head.dtype
        )
        put_head(self.joined, head)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model, catch what enters its layer, and score that beside it."""
        seen: list[Tensor] = []
        layer = self.model.get_submodule(self.layer)
        with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            output = settled(self.model(*args, **kwargs))
        return logits_of(output, self.joined(seen[-1].flatten(1)))


def take_factor(model: LoadedModel) -> LoadedModel:
    """Put a constant that multiplies a model's logits into its head; change no other model."""
    writer = writer_of(model)
    if model.output_is != "not the layer's" or model.head is None or model.module is None:
        return model
    if not isinstance(writer, FileWriter) or writer.parts or not (factor := _factor(model)):
        return model
    head = model.head
    bias = None if head.bias is None else multiplied(head.bias, factor)
    told = f"the model's output is {factor:.6g} times what its layer {model.layer!r} gives: "
    said = {**head.provenance, "factor": factor}
    weight = multiplied(head.weight, factor)
    model.head = head.replace(weight=weight, bias=bias, provenance=said)
    model.module = Scaled(model.module, model.layer, model).eval()
    model.layer, model.output_is, model.writer = "joined", "", replace(writer, factor=factor)
    gone = "the model's output is not what its layer"
    model.notes = [note for note in model.notes if not note.startswith(gone)]
    model.notes.append(told + "its head is multiplied so, and divided again when it is written.")
    return model


def _factor(model: LoadedModel) -> float:
    """By what a model multiplies whatever its layer gives, whichever the image; 0: no constant."""
    module, take = model.module, model.preprocessing
    assert module is not None  # noqa: S101  # asked before
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((len(_BRIGHTNESS), take.channels, *take.size), generator=generator)
    images *= torch.tensor(_BRIGHTNESS).view(-1, 1, 1, 1)
    given: list[Tensor] = []
    shapes: list[int] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Give made-up numbers in place of the layer's."""
        shapes.append(math.prod(inputs[0].shape[2:]) if inputs[0].ndim in {2, 4} else 0)
        given.append(torch.randn(output.shape, generator=generator).to(output))
        return given[-1].clone()  # what follows may work in place

    kwargs = {model.image_argument: images} if model.image_argument else {}
    args = () if kwargs else (images,)
    try:
        with module.get_submodule(model.layer).register_forward_hook(hook), torch.no_grad():
            output = settled(module(*args, **kwargs))
    except FAILS:
        return 0.0
    factor = factor_in(output, given[0]) if shapes == [1] else 0.0
    return _rounded(factor) if 0 < factor < math.inf else 0.0


def _rounded(factor: float) -> float:
    """A factor as somebody wrote it, to six digits or one by these, where rounding hides that."""
    for near in (float(f"{factor:.6g}"), 1 / float(f"{1 / factor:.6g}")):
        if abs(near / factor - 1) < _SURE:
            return near
    return factor
