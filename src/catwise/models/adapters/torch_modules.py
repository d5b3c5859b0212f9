"""PyTorch models: any module with a linear last layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from torch import nn

from catwise.errors import ConfigError, HeadError, check_choice, nearest, reason_of
from catwise.heads import Head
from catwise.heads.catalog import Catalog, open_catalog
from catwise.heads.locate import SLOT, Found, find_head
from catwise.heads.state import head_at
from catwise.models.adapters.category_heads import CategoryLinear, DecodedGroups, find_decoder
from catwise.models.adapters.lightning import (
    Placed,
    load_weights,
    open_weights,
    stored_categories,
)
from catwise.models.adapters.separate_layers import (
    SeparateLayers,
    layers_named,
    series_of,
    slotted,
)
from catwise.models.adapters.two_heads import OWN_FUNCTION, OneHead, TwoHeads, join_heads
from catwise.models.core import LoadedModel, Preprocessing
from catwise.models.layers import row_names
from catwise.models.logits import (
    TOLERANCE,
    activation_in,
    described,
    logits_gap,
    nearest_logits,
    settled,
    tensors_in,
)
from catwise.models.packages import FAILS
from catwise.models.writing import FileWriter, HeadKeys

_SHOWN: Final = 5
_POLICIES: Final = ("refuse", "both", "first")


def is_linear(layer: object) -> bool:
    """Whether a layer is linear in the features of one place: Linear, or a 1×1 convolution."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)


def _layers_with(module: nn.Module, name: str) -> dict[str, nn.Module]:
    """All layers by their names, that one among them."""
    layers = dict(module.named_modules())
    if name not in layers:
        raise ConfigError(
            f"the model has no layer {name!r}{nearest(name, layers)}.",
            remedy="print(model) shows the layers' names",
        )
    return layers


def inner_layer(module: nn.Module, name: str) -> str:
    """The linear layer that a name means: itself, or the last one inside."""
    layers = _layers_with(module, name)
    lead = f"{name}." if name else ""
    inside = [(lead + key if key else name) for key, layer in layers[name].named_modules()
              if is_linear(layer)]  # fmt: skip
    if not inside:
        raise HeadError(
            f"the layer {name!r} holds no linear layer.",
            found=type(layers[name]).__name__,
            expected="a torch.nn.Linear or a 1×1 Conv2d",
            remedy="name the classification layer with layer='…'",
        )
    return inside[-1]


def adapt_module(
    module: nn.Module,
    *,
    name: str,
    preprocessing: Preprocessing,
    layers: str | Sequence[str] | None = None,
    heads: str = "refuse",
    checkpoint: Path | None = None,
    catalog: Catalog | None = None,
    loaded: bool = False,
    prefix: str | None = None,
    n_categories: int | None = None,
    categories: Sequence[str] | None = None,
    image_argument: str | None = None,
    notes: Sequence[str] = (),
) -> LoadedModel:
    """Say what catwise needs to know of a module, and load its weights where a file is given.

    The module, on the CPU, is set to eval mode and run once on noise: its layer must give what the
    head in the checkpoint says; where its output is not what its layer gives, a note says so.

    Args (the rest is as in `LoadedModel`):
        layers: name of the classification layer; two names for a model that averages two heads;
            ``"fc_{}"`` for a layer for each category; None: found by its name, as `read_head` does.
        heads: for two: "refuse"; "both": one joined head over both inputs (see `TwoHeads`);
            "first": only the first one.
        checkpoint: the file to load, strictly; `catalog` is the same, opened, where it is already.
        loaded: the module's weights are those of the checkpoint already.
        prefix: what leads the model's keys in it.
    """
    if catalog is None and checkpoint is not None:
        catalog = open_weights(checkpoint)
    if catalog is None:
        catalog, prefix, loaded = open_catalog(module.state_dict()), "", True
    placed = load_weights(module, catalog, prefix=prefix, loaded=loaded)
    module.eval()
    decoder = find_decoder(module, layers) if isinstance(layers, str | None) else None
    every = [decoder] if decoder else _layer_names(module, layers, n_categories)
    names, said = _follow_policy(name, every, heads)
    parts = [_part(module, layer, catalog, placed) for layer in names]
    head = _head(catalog, parts, categories)
    run = _as_run(module, names, head, every, is_decoder=decoder is not None)
    keys = [HeadKeys(at.location.name, at.bias_name) for at in parts]
    adapted = LoadedModel(
        name=name,
        module=run.module,
        layer=run.layer,
        preprocessing=preprocessing,
        head=head,
        checkpoint=checkpoint,
        image_argument=image_argument,
        notes=[*notes, *said, *run.notes, *placed.notes],
        writer=FileWriter(tuple(keys) if len(keys) > 1 else ()),
    )
    if len(keys) == 1:
        adapted.weight_key, adapted.bias_key = keys[0]
    adapted.notes.extend(_trial(adapted))
    return adapted


def _head(catalog: Catalog, parts: Sequence[Found], names: Sequence[str] | None) -> Head:
    """The head in the checkpoint, or two joined; its rows' names are given or told there."""
    head = join_heads([head_at(catalog, part) for part in parts])
    names = names or stored_categories(catalog, head.n_categories)
    return head if names is None else head.replace(categories=names)


class _Run(NamedTuple):
    """A module with one layer that gives all of its logits, and what to know about it."""

    module: nn.Module
    layer: str
    notes: list[str]


def _as_run(
    module: nn.Module, names: Sequence[str], head: Head, every: Sequence[str], *, is_decoder: bool
) -> _Run:
    """The module itself; around ML-Decoder, or two heads, one that has such a layer."""
    if len(every) > len(names):
        return _Run(OneHead(module, names[0]).eval(), f"model.{names[0]}", [])
    if is_decoder:
        decoded = DecodedGroups(module, names[0], head).eval()
        note = (
            f"ML-Decoder: the features are what {f'{names[0]}.decoder'.lstrip('.')!r} gives, "
            f"{decoded.joined.n_groups} vectors an image."
        )
        return _Run(decoded, "joined", [note])
    if SLOT in names[0]:
        each = layers_named(module, names[0])
        note = f"{len(each)} layers, {each[0]!r} to {each[-1]!r}, are one category each."
        return _Run(SeparateLayers(module, each, head).eval(), "joined", [note])
    if len(names) > 1:
        note = f"the heads {names[0]!r} and {names[1]!r} are averaged, and tuned as one."
        return _Run(TwoHeads(module, names, head).eval(), "joined", [note])
    return _Run(module, names[0], [])


def _layer_names(
    module: nn.Module, layers: str | Sequence[str] | None, n_categories: int | None
) -> list[str]:
    """The classification layers' names; found where they are not given."""
    if layers is None:
        catalog = open_catalog(module.state_dict())
        try:
            found = find_head(catalog, n_categories=n_categories, at_hand=True)
        except HeadError:
            series = [n for n, each in series_of(module).items()
                      if n_categories in {None, len(each)}]  # fmt: skip
            if len(series) != 1:
                raise
            return series
        return [found.location.key.rpartition(".")[0]]
    return [layers] if isinstance(layers, str) else list(layers)


def _follow_policy(name: str, layers: list[str], heads: str) -> tuple[list[str], list[str]]:
    """The layers that are used, and what to know where one of two is left out."""
    check_choice("heads", heads, _POLICIES)
    if len(layers) > 2:
        raise ConfigError(
            f"{name} has {len(layers)} heads, and mixes what they give.",
            found=", ".join(repr(layer) for layer in layers),
            expected="one classification layer, or two whose mean is the output",
            remedy=OWN_FUNCTION,
        )
    if len(layers) > 1 and heads == "refuse":
        raise ConfigError(
            f"{name} has two heads, and its output is their mean.",
            found=" and ".join(repr(layer) for layer in layers),
            expected="to be told what to tune",
            remedy="model_args={'heads': 'both'} tunes them as one, model_args={'heads': 'first'} "
            "the first one alone",
        )
    if len(layers) > 1 and heads == "first":
        note = (
            f"of the two heads only {layers[0]!r} is used, here and when it is tuned: the model "
            "itself still averages both."
        )
        return layers[:1], [note]
    return layers, []


def _part(module: nn.Module, layer: str, catalog: Catalog, placed: Placed) -> Found:
    """Where a layer's weight lies in the checkpoint."""
    if SLOT in layer:
        return _series(module, layer, catalog, placed)
    known = _layers_with(module, layer)
    own = row_names(known[layer])
    if getattr(known[layer], "duplicate_pooling", None) is not None:
        own = "duplicate_pooling", "duplicate_pooling_bias"
    if own is not None:
        key, bias_key = (placed.names.get(f"{layer}.{n}".lstrip(".")) for n in own)
        if key is not None:
            return find_head(catalog, key=key, bias_key=bias_key, at_hand=True)
    weight = getattr(known[layer], "weight", None)
    key = placed.names.get(f"{layer}.weight")
    if is_linear(known[layer]) and key is None:
        raise HeadError(
            f"the layer {layer!r} has no weight of its own in {catalog.label}.",
            found=type(known[layer]).__name__,
            expected="a linear layer, neither weight-normed nor parametrised",
            remedy="name the classification layer with layer='…'",
        )
    if key is None or not isinstance(weight, torch.Tensor) or weight.ndim not in {2, 4}:
        raise _not_linear(known, layer)
    bias_key = placed.names.get(f"{layer}.bias")
    return find_head(catalog, key=key, bias_key=bias_key, at_hand=True)


def _series(module: nn.Module, layer: str, catalog: Catalog, placed: Placed) -> Found:
    """Where the weights of layers of one category each lie in the checkpoint."""
    each = layers_named(module, layer)
    key = slotted([f"{name}.weight" for name in each], placed.names)
    bias_key = slotted([f"{name}.bias" for name in each], placed.names)
    if key is None:
        raise HeadError(
            f"the layers {layer!r} have no weights of their own in {catalog.label}.",
            expected="linear layers, neither weight-normed nor parametrised",
            remedy="name the classification layer with layer='…'",
        )
    return find_head(catalog, key=key, bias_key=bias_key, at_hand=True)


def _not_linear(known: Mapping[str, nn.Module], layer: str) -> HeadError:
    """A layer that is not a head; those inside it, or named nearly so, that may be one."""
    linear = [name for name, part in known.items() if is_linear(part) or row_names(part)]
    lead = f"{layer}." if layer else ""
    inside = [name for name in linear if name.startswith(lead)]
    named = ", ".join(map(repr, inside[-_SHOWN:]))
    return HeadError(
        f"the layer {layer!r} is not a classification layer"
        + ("." if inside else f"{nearest(layer, linear)}."),
        found=type(known[layer]).__name__ + (f", which holds {named}" if inside else ""),
        expected="a torch.nn.Linear, a 1×1 Conv2d, or a layer with one vector for each category",
        remedy=f"name the layer itself, such as layer={inside[-1]!r}"
        if inside
        else "name the classification layer with layer='…'",
    )


def _trial(model: LoadedModel) -> list[str]:
    """Run the model once on noise; say where its output is not what its layer gives."""
    try:
        seen, out = _try(model)
    except FAILS as error:
        if isinstance(error, HeadError) and isinstance(model.module, SeparateLayers):
            raise
        take = model.preprocessing
        reason = reason_of(error, named=True)
        return [f"a trial image of {(1, take.channels, *take.size)} fails: {reason}."]
    name = f"the layer {model.layer!r}"
    if len(seen) != 1:
        times = f"runs {len(seen)} times for one image"
        times = times if seen else "is not used when the model runs"
        return [f"{name} {times}."]
    ((features, logits),) = seen
    _check_head(model, features, logits)
    if features.ndim == 4 and features.shape[2:] != (1, 1):
        each = f"{name} scores each of {features.shape[2]}×{features.shape[3]} places"
        means = logits.flatten(2).mean(2)
        if _agree(out, means) and _agree(_try(model, sign=-1)[1], -means):  # no ReLU between them
            return [f"{each} and the model takes their mean: features are means over the places."]
        model.output_is = "not linear"
        return [f"{each}: its input is not a vector."]
    if not _agree(out, logits):
        model.output_is = activation_in(out, logits) or "not the layer's"
        made = described(out, logits)
        return [
            f"the model's output is not what its layer {model.layer!r} gives"
            + (f", but {made} that." if made else ".")
        ]
    return _others(model, out, features, logits)


def _check_head(model: LoadedModel, features: torch.Tensor, logits: torch.Tensor) -> None:
    """Refuse a layer that gives something else than the checkpoint's weight and bias."""
    assert model.head is not None  # noqa: S101  # set by adapt_module
    layer = cast("nn.Module", model.module).get_submodule(model.layer)
    if features.ndim == 4:
        features, logits = features.mean((2, 3)), logits.flatten(2).mean(2)
    many = isinstance(layer, CategoryLinear) or row_names(layer) is not None
    if features.ndim > 2 and not many and features.shape[1] != 1:  # tokens: extract refuses them
        return
    rows = features if many else features.flatten(1)
    gap = logits_gap(model.head.to(features.device), rows.float(), logits.float())
    if not gap <= max(TOLERANCE[torch.float32], TOLERANCE.get(model.head.dtype, 0)):
        raise HeadError(
            f"the layer {model.layer!r} does not give what its weight and bias in the checkpoint "
            "say.",
            found=f"outputs of a trial image that differ by {gap:.2g} of the largest",
            expected="features @ weight.T + bias, to float tolerance",
            remedy="merge or fold what else the layer computes (an adapter, a norm, a scale) and "
            "save that; a function that loads the checkpoint must leave the layer's numbers as "
            "they are in the file",
        )


def _others(
    model: LoadedModel, out: object, features: torch.Tensor, logits: torch.Tensor
) -> list[str]:
    """What else the model returns for an image that might be taken for its logits."""
    found = {path: part for path, part in tensors_in(out).items() if part.squeeze().ndim < 2}
    same = [path for path, part in found.items() if _agree(part, logits)]
    known = {*same, *(path for path, part in found.items() if _agree(part, features))}
    others = [f"{path!r} {tuple(found[path].shape)}" for path in found if path not in known]
    others = [text for text in others if not text.endswith("()")]  # losses
    told = f"of what the model returns, {same[0]!r} is what its layer {model.layer!r} gives"
    return [f"{told}, and not {', '.join(others)}."] if others else []


def _try(model: LoadedModel, sign: int = 1) -> tuple[list[tuple[Any, Any]], object]:
    """Noise through the model: what its layer takes and gives, and what the model itself gives.

    With `sign` −1 the model continues with the opposite of what the layer gives.
    """
    module, take = model.module, model.preprocessing
    assert module is not None  # noqa: S101  # made from a module
    noise = torch.rand((1, take.channels, *take.size), generator=torch.Generator().manual_seed(0))
    seen: list[tuple[Any, Any]] = []

    def hook(_: nn.Module, inputs: Any, output: Any) -> Any:
        seen.append((inputs[0], output.clone()))  # what follows may work in place
        return None if sign == 1 else -output

    kwargs = {model.image_argument: noise} if model.image_argument else {}
    args = () if kwargs else (noise,)
    with module.get_submodule(model.layer).register_forward_hook(hook), torch.no_grad():
        return seen, settled(module(*args, **kwargs))


def _agree(out: object, logits: torch.Tensor) -> bool:
    match = nearest_logits(out, logits)
    return match is not None and match.is_same
