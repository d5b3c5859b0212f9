"""Models whose output is the mean of two heads, as one head over the inputs of both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, cast

import torch
from torch import nn

from catwise.errors import HeadError, ShapeError
from catwise.heads import Head
from catwise.models.layers import put_head
from catwise.models.logits import logits_of, settled

OWN_FUNCTION: Final = (
    "build it with one of the heads in a function of yours, that the checkpoint is loaded into: "
    "python:MODULE:FUNCTION"
)


class TwoHeads(nn.Module):
    """A model whose output is the mean of two heads, as one head over both inputs.

    ``(W₁x₁ + b₁ + W₂x₂ + b₂) / 2`` is one layer of weight ``[W₁ W₂]`` and bias ``(b₁ + b₂) / 2``
    over the features ``[x₁ x₂] / 2``. The layer is called `joined`; what is returned is what the
    model itself gives, so that the two can be compared.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], head: Head) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.joined = nn.Linear(head.n_features, head.n_categories, bias=head.bias is not None)
        put_head(self.joined, head)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the model, catch what enters its heads, and score that beside it."""
        seen: dict[str, torch.Tensor] = {}
        with ExitStack() as hooks:
            for name in self.layers:
                layer = self.model.get_submodule(name)
                handle = layer.register_forward_pre_hook(
                    lambda _, inputs, name=name: seen.update({name: inputs[0]})
                )
                hooks.enter_context(handle)
            output = self.model(*args, **kwargs)
        parts = [seen[name].flatten(1) for name in self.layers]
        return logits_of(settled(output), self.joined(torch.cat(parts, dim=1) / len(parts)))


class OneHead(nn.Module):
    """A model whose output is the mean of two heads, with the output of one of them alone.

    The model is `model`, and runs as it is; the head is its layer of that name.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model = model
        self.head = layer

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the model, and give what the one head gives."""
        seen: list[torch.Tensor] = []
        layer = self.model.get_submodule(self.head)
        with layer.register_forward_hook(lambda _, __, output: seen.append(output.clone())):
            settled(self.model(*args, **kwargs))
        return seen[-1]


def join_heads(parts: Sequence[Head]) -> Head:
    """One head over the inputs of several that are averaged; see `TwoHeads`."""
    if len(parts) < 2:
        return parts[0]
    if len(parts) > 2:
        raise HeadError(
            "more than two heads are not joined.",
            found=f"{len(parts)} heads",
            remedy=OWN_FUNCTION,
        )
    if len({part.n_categories for part in parts}) != 1 or any(p.bias is None for p in parts):
        raise HeadError(
            "two heads are joined when they have as many categories, and biases.",
            found="; ".join(map(repr, parts)),
            remedy="model_args={'heads': 'first'} tunes the first one alone",
        )
    biases = torch.stack([cast("torch.Tensor", part.bias).double() for part in parts])
    whole = Head(
        torch.cat([part.weight for part in parts], dim=1),
        biases.mean(0).to(parts[0].dtype),
        categories=parts[0].categories,
        provenance={**parts[1].provenance, **parts[0].provenance},
    )
    return whole.with_fitted_on(parts[0].fitted_on).with_fitted_on(parts[1].fitted_on)


def split_head(joined: Head, olds: Sequence[Head]) -> list[Head]:
    """Cut a joined head into the heads that it averages; see `TwoHeads`.

    What its bias differs from the mean of the old ones goes to each part, so that an unchanged
    head gives unchanged parts.
    """
    whole = join_heads(olds)
    if joined.weight.shape != whole.weight.shape:
        raise ShapeError(
            "the head does not fit the two heads of the model.",
            found=f"shape {tuple(joined.weight.shape)}",
            expected=f"{tuple(whole.weight.shape)}, both side by side",
        )
    if joined.bias is None or whole.bias is None:
        raise HeadError(
            "the model's heads have biases and the new one has none.",
            remedy="head.replace(bias=torch.zeros(…)) says that the bias shall be zero",
        )
    change = joined.bias.double().cpu() - whole.bias.double()
    weights = torch.split(joined.weight, [old.n_features for old in olds], dim=1)
    return [
        joined.replace(
            weight=weight,
            bias=(cast("torch.Tensor", old.bias).double() + change).to(joined.dtype),
        )
        for old, weight in zip(olds, weights, strict=True)
    ]


def in_rows_of(head: Head, old: Head) -> Head:
    """A head with the rows of an old one in the order of another's categories, zeros for new ones.

    >>> old = Head([[5.0]], [6.0], categories=["b"])
    >>> in_rows_of(Head([[1.0], [1.0]], categories=["a", "b"]), old).bias.tolist()
    [0.0, 6.0]
    """
    weight = old.weight.new_zeros(head.n_categories, old.n_features)
    bias = None if old.bias is None else old.bias.new_zeros(head.n_categories)
    place = {name: row for row, name in enumerate(old.categories)}
    for row, name in enumerate(head.categories):
        if name in place:
            weight[row] = old.weight[place[name]]
            if bias is not None and old.bias is not None:
                bias[row] = old.bias[place[name]]
    return old.replace(weight=weight, bias=bias, categories=head.categories)
