"""Models with one layer for each category (`fc_0`, `fc_1`, … or a `ModuleList`), as one head.

CheXpert's winning code (jfhealthcare, 2019) has such layers, and returns a list of their outputs.
Where all are given the same features they are one layer of C rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import torch
from torch import Tensor, nn

from catwise._text import some
from catwise.errors import ConfigError, HeadError, nearest
from catwise.heads import Head
from catwise.heads.locate import SLOT, series_in
from catwise.models.layers import put_head
from catwise.models.logits import logits_of, settled

_SHOWN: Final = 5


def series_of(module: nn.Module) -> dict[str, list[str]]:
    """Linear layers of one output each whose names differ in a number, by name with a `SLOT`."""
    return series_in(name for name, part in module.named_modules() if _gives_one(part))


def _gives_one(part: nn.Module) -> bool:
    if isinstance(part, nn.Conv2d):
        return (part.out_channels, part.kernel_size, part.groups) == (1, (1, 1), 1)
    return isinstance(part, nn.Linear) and part.out_features == 1


def layers_named(module: nn.Module, name: str) -> list[str]:
    """The layers, in order, that a name with a `SLOT` means."""
    known = series_of(module)
    if name not in known:
        raise ConfigError(
            f"the model has no layers {name!r} of one output each{nearest(name, known)}.",
            found=some(sorted(known), _SHOWN) or None,
            expected=f"nn.Linear(D, 1), with a number for {SLOT} that counts from 0 or 1",
            remedy="print(model) shows the layers' names",
        )
    return known[name]


def slotted(names: Sequence[str], kept: Mapping[str, str]) -> str | None:
    """The name with a `SLOT` of a layer's tensors in a checkpoint; None where they have none."""
    there = [kept[name] for name in names if name in kept]
    fits = [key for key, found in series_in(there).items() if found == there]
    return fits[0] if fits and len(there) == len(names) else None


class SeparateLayers(nn.Module):
    """A model with a layer for each category, as one layer `joined` over what goes into them all.

    What is returned is what the model itself gives, its outputs side by side where it returns a
    list of them.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], head: Head) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.joined = nn.Linear(
            head.n_features, head.n_categories, bias=head.bias is not None, dtype=head.dtype
        )
        put_head(self.joined, head)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model, catch what enters its layers, and score that beside it."""
        seen: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        with ExitStack() as hooks:
            for name, inputs in seen.items():
                layer = self.model.get_submodule(name)
                handle = layer.register_forward_pre_hook(
                    lambda _, given, inputs=inputs: inputs.append(given[0])
                )
                hooks.enter_context(handle)
            output = settled(self.model(*args, **kwargs))
        return logits_of(_side_by_side(output, len(seen)), self.joined(_shared(seen)))


def _shared(seen: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """The features (N, D) that all layers are given."""
    calls = {name: len(inputs) for name, inputs in seen.items() if len(inputs) != 1}
    if calls:
        raise HeadError(
            "the model does not run each category's layer once.",
            found=some([f"{name!r} {n} times" for name, n in calls.items()], _SHOWN),
            expected="one call of each layer for an image, on its features (N, D)",
            remedy="take out what else uses these layers, such as a pooling that weighs places by "
            "their outputs (PCAM): such a model is not linear in their weights",
        )
    first_name, *names = seen
    first, *others = (inputs[0] for inputs in seen.values())
    apart = [
        name
        for name, other in zip(names, others, strict=True)
        if other is not first and not torch.equal(other, first)
    ]
    if apart:
        raise HeadError(
            "the layers of the categories are not given the same features.",
            found=some([f"{name!r} has others than {first_name!r}" for name in apart], _SHOWN),
            expected="one (N, D) for all of them",
            remedy="give the layers one input, or score a vector for each category by one layer "
            "that takes (N, C, D)",
        )
    if first.flatten(1).shape[1] != first.shape[1]:
        raise HeadError(
            "the layers of the categories score each place of a map.",
            found=f"features of shape {tuple(first.shape)}",
            expected="(N, D) or (N, D, 1, 1)",
            remedy="pool the features before the layers",
        )
    return first.flatten(1)


def _side_by_side(output: object, n_categories: int) -> object:
    """A model's output, where lists in it that hold a tensor (N, 1) for each category are one."""
    parts = output if isinstance(output, list | tuple) else [output]
    if _are_columns(parts, n_categories):
        return _columns(parts)
    lists = [part for part in parts if isinstance(part, list | tuple)]
    joined = [_columns(part) for part in lists if _are_columns(part, n_categories)]
    return [*joined, output] if joined else output


def _are_columns(parts: Sequence[Any], n_categories: int) -> bool:
    same = len(parts) == n_categories and all(isinstance(part, Tensor) for part in parts)
    return same and all(part.ndim and part.numel() == len(part) for part in parts)


def _columns(parts: Sequence[Any]) -> Tensor:
    return torch.cat([part.reshape(-1, 1) for part in parts], dim=1)
