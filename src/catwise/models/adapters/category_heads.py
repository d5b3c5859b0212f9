"""Models whose categories, or groups of categories, have a vector each: ML-Decoder and its like.

A layer that itself takes (N, C, D) and holds a vector for each category, such as Query2Label's
group-wise layer or SSGRL's element-wise one, is used as it is (`catwise.models.layers`).
ML-Decoder has no such layer: its module multiplies what its decoder gives by ``duplicate_pooling``.
There the decoder's output is caught, and a layer of the same numbers put beside it.

Source: Ridnik et al., "ML-Decoder: Scalable and Versatile Classification Head", WACV 2023,
section 3.2: with g = C / K categories a group, category c is column c % g of group c // g.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from catwise.errors import HeadError
from catwise.heads import Head
from catwise.models.logits import logits_of, settled


class CategoryLinear(nn.Module):
    """``logits[n, c] = features[n, c // ceil(C / K)] · weight[c] + bias[c]`` of (N, K, D)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, n_groups: int) -> None:
        super().__init__()
        self.n_groups = n_groups
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def extra_repr(self) -> str:
        """Shape and groups."""
        n_categories, n_features = self.weight.shape
        return f"{n_categories} categories, {n_features} features, {self.n_groups} groups"

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of (N, K, D) features."""
        size = -(-len(self.weight) // self.n_groups)
        group = torch.arange(len(self.weight), device=self.weight.device) // size
        logits = (features[:, group] * self.weight).sum(2)
        return logits if self.bias is None else logits + self.bias


def find_decoder(module: nn.Module, layer: str | None) -> str | None:
    """The name of the module that holds ML-Decoder's numbers, if the model has one."""
    found = [
        name
        for name, part in module.named_modules()
        if getattr(part, "duplicate_pooling", torch.empty(0)).ndim == 3
        and isinstance(getattr(part, "decoder", None), nn.Module)
    ]
    if layer is not None:
        return layer if layer in found else None
    if len(found) > 1:
        raise HeadError(
            "the model has several ML-Decoder heads.",
            found=", ".join(map(repr, found)),
            remedy="name the one that is meant with layer='…'",
        )
    return found[0] if found else None


class DecodedGroups(nn.Module):
    """A model with an ML-Decoder head, as a layer `joined` over what its decoder gives."""

    def __init__(self, model: nn.Module, name: str, head: Head) -> None:
        super().__init__()
        self.model = model
        self.name = name
        decoder = cast("Any", model.get_submodule(name))
        n_groups = int(decoder.duplicate_pooling.shape[0])
        self.joined = CategoryLinear(head.weight, head.bias, n_groups=n_groups)
        inner = (m for m in decoder.decoder.modules() if isinstance(m, nn.MultiheadAttention))
        self.batch_first = any(part.batch_first for part in inner)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the model, catch what its decoder gives, and score that beside it."""
        seen: list[torch.Tensor] = []
        decoder = cast("Any", self.model.get_submodule(self.name)).decoder
        with decoder.register_forward_hook(lambda _, __, output: seen.append(output)):
            output = self.model(*args, **kwargs)
        scored = self.joined(seen[-1] if self.batch_first else seen[-1].transpose(0, 1))
        return logits_of(settled(output), scored)
