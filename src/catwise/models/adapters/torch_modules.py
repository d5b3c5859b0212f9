"""PyTorch models: any module with a linear last layer, and torchvision's by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import torch
from torch import nn

from catwise.errors import ConfigError, HeadError, ShapeError, nearest
from catwise.heads import Head
from catwise.heads.catalog import open_catalog
from catwise.heads.locate import find_head
from catwise.heads.state import head_at
from catwise.models.adapters.category_heads import CategoryLinear, DecodedGroups, find_decoder
from catwise.models.adapters.lightning import (
    Placed,
    count_categories,
    load_weights,
    open_weights,
    stored_categories,
)
from catwise.models.core import LoadedModel, Preprocessing
from catwise.models.layers import row_names
from catwise.models.logits import (
    TOLERANCE,
    activation_in,
    described,
    logits_gap,
    logits_of,
    nearest_logits,
    settled,
    tensors_in,
)
from catwise.models.packages import FAILS, building, first_line, import_optional, take_options

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from catwise.heads.catalog import Catalog
    from catwise.heads.locate import Found

__all__ = [
    "HeadPolicy",
    "TwoHeads",
    "adapt_module",
    "inner_layer",
    "load_torchvision",
    "split_head",
    "unique_names",
]

_SHOWN: Final = 5
HeadPolicy = Literal["refuse", "both", "first"]


def is_linear(layer: object) -> bool:
    """Whether a layer is linear in the features of one place: Linear, or a 1×1 convolution."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)


def inner_layer(module: nn.Module, name: str) -> str:
    """The linear layer that a name means: itself, or the last one inside.

    >>> inner_layer(nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(2, 1))), "0")
    '0.1'

    Raises:
        ConfigError: If the model has no layer of that name.
        HeadError: If there is no linear layer in it.
    """
    layers = dict(module.named_modules())
    if name not in layers:
        raise ConfigError(
            f"the model has no layer {name!r}{nearest(name, layers)}.",
            remedy="print(model) shows the layers' names",
        )
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


class TwoHeads(nn.Module):
    """A model whose output is the mean of two heads, as one head over both inputs.

    ``(W₁x₁ + b₁ + W₂x₂ + b₂) / 2`` is one layer of weight ``[W₁ W₂]`` and bias ``(b₁ + b₂) / 2``
    over the features ``[x₁ x₂] / 2``. The layer is called `joined`; what is returned is what the
    model itself gives, so that the two can be compared.

    Args:
        model: the model, unchanged.
        layers: names of its two heads.
        head: of the joined layer.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], head: Head) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.joined = nn.Linear(head.n_features, head.n_categories, bias=head.bias is not None)
        with torch.no_grad():
            self.joined.weight.copy_(head.weight)
            if head.bias is not None:
                self.joined.bias.copy_(head.bias)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the model, catch what enters its heads, and score that beside it."""
        seen: dict[str, torch.Tensor] = {}
        handles = [
            self.model.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, name=name: seen.update({name: inputs[0]})
            )
            for name in self.layers
        ]
        try:
            output = self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        parts = [seen[name].flatten(1) for name in self.layers]
        return logits_of(settled(output), self.joined(torch.cat(parts, dim=1) / len(parts)))


def adapt_module(
    module: nn.Module,
    *,
    name: str,
    preprocessing: Preprocessing,
    layers: str | Sequence[str] | None = None,
    heads: str = "refuse",
    checkpoint: str | os.PathLike[str] | None = None,
    catalog: Catalog | None = None,
    loaded: bool = False,
    prefix: str | None = None,
    n_categories: int | None = None,
    categories: Sequence[str] | None = None,
    image_argument: str | None = None,
    notes: Sequence[str] = (),
) -> LoadedModel:
    """Say what catwise needs to know of a module, and load its weights where a file is given.

    The model is run once on noise: its layer must give what the head in the checkpoint says; where
    its output is not what its layer gives, a note says so.

    Args:
        module: on the CPU; set to eval mode.
        name: as the user named it.
        preprocessing: what the model takes.
        layers: name of the classification layer; two names for a model that averages two heads;
            None: found by its name, as `read_head` does.
        heads: for two: "refuse"; "both": one joined head over both inputs (see `TwoHeads`);
            "first": only the first one.
        checkpoint: the file to load, strictly.
        catalog: the same, opened, where it is already.
        loaded: the module's weights are those of the checkpoint already.
        prefix: what leads the model's keys in it.
        n_categories: rows of the head; helps to find it.
        categories: their names.
        image_argument: as in `LoadedModel`.
        notes: as in `LoadedModel`.

    Raises:
        CheckpointError: If the checkpoint is not this model's.
        HeadError: If the classification layer is not clear or cannot be used.
        ConfigError: If the model has two heads and `heads` says nothing about that.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    >>> adapt_module(model, name="mine", layers="1", preprocessing=Preprocessing((2, 2))).head
    Head(n_categories=5, n_features=12, bias=True, dtype=float32)
    """
    notes = list(notes)
    if catalog is None and checkpoint is not None:
        catalog = open_weights(checkpoint)
    if catalog is None:
        catalog = open_catalog(module.state_dict())
        placed = load_weights(module, catalog, prefix="", loaded=True)
    else:
        placed = load_weights(module, catalog, prefix=prefix, loaded=loaded)
    module.eval()
    decoder = find_decoder(module, layers) if isinstance(layers, str | None) else None
    names = [decoder] if decoder else _layer_names(module, layers, n_categories)
    _check_policy(name, names, heads)
    if len(names) > 1 and heads == "first":
        notes.append(f"of the two heads only {names[0]!r} is used: the model still averages both.")
        names = names[:1]
    found = {layer: _part(module, layer, catalog, placed) for layer in names}
    head = _join([head_at(catalog, part) for part in found.values()])
    categories = categories or stored_categories(catalog, head.n_categories)
    head = head.replace(categories=categories or head.categories)
    layer, extra = names[0], {}
    if decoder:
        module, layer = DecodedGroups(module, decoder, head).eval(), "joined"
        notes.append(
            f"ML-Decoder: the features are what {f'{decoder}.decoder'.lstrip('.')!r} gives, "
            f"{module.joined.n_groups} vectors an image."
        )
    if len(found) > 1:
        module, layer = TwoHeads(module, names, head).eval(), "joined"
        extra["heads"] = [{"layer": key, **_keys(part)} for key, part in found.items()]
        notes.append(f"the heads {names[0]!r} and {names[1]!r} are averaged, and tuned as one.")
    adapted = LoadedModel(
        name=name,
        module=module,
        layer=layer,
        preprocessing=preprocessing,
        head=head,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        image_argument=image_argument,
        notes=[*notes, *placed.notes],
        extra=extra,
    )
    if len(found) == 1:
        adapted.weight_key, adapted.bias_key = _keys(found[names[0]]).values()
    adapted.notes.extend(_trial(adapted))
    return adapted


def _keys(found: Found) -> dict[str, str | None]:
    """The names of a head's tensors in the checkpoint."""
    bias = None if found.bias is None else found.bias.name
    return {"weight_key": found.weight.name, "bias_key": bias}


def _layer_names(
    module: nn.Module, layers: str | Sequence[str] | None, n_categories: int | None
) -> list[str]:
    """The classification layers' names; found where they are not given."""
    if layers is None:
        catalog = open_catalog(module.state_dict())
        found = find_head(catalog, n_categories=n_categories, at_hand=True)
        return [found.location.key.rpartition(".")[0]]
    return [layers] if isinstance(layers, str) else list(layers)


def _check_policy(name: str, layers: Sequence[str], heads: str) -> None:
    if heads not in {"refuse", "both", "first"}:
        raise ConfigError(
            f"heads={heads!r} is not known{nearest(heads, ('refuse', 'both', 'first'))}.",
            expected="refuse, both or first",
        )
    if len(layers) > 1 and heads == "refuse":
        raise ConfigError(
            f"{name} has two heads, and its output is their mean.",
            found=" and ".join(repr(layer) for layer in layers),
            expected="to be told what to tune",
            remedy="model_args={'heads': 'both'} tunes them as one, 'first' the first one alone",
        )


def _part(module: nn.Module, layer: str, catalog: Catalog, placed: Placed) -> Found:
    """Where a layer's weight lies in the checkpoint."""
    known = dict(module.named_modules())
    if layer not in known:
        raise ConfigError(
            f"the model has no layer {layer!r}{nearest(layer, known)}.",
            remedy="print(model) shows the layers' names",
        )
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


def _not_linear(known: Mapping[str, nn.Module], layer: str) -> HeadError:
    """A layer that is no head; those inside it, or named nearly so, that may be one."""
    linear = [name for name, part in known.items() if is_linear(part) or row_names(part)]
    lead = f"{layer}." if layer else ""
    inside = [name for name in linear if name.startswith(lead)]
    named = ", ".join(map(repr, inside[-_SHOWN:]))
    return HeadError(
        f"the layer {layer!r} is no classification layer"
        + ("." if inside else f"{nearest(layer, linear)}."),
        found=type(known[layer]).__name__ + (f", which holds {named}" if inside else ""),
        expected="a torch.nn.Linear, a 1×1 Conv2d, or a layer with one vector for each category",
        remedy=f"name the layer itself, such as layer={inside[-1]!r}"
        if inside
        else "name the classification layer with layer='…'",
    )


def _join(parts: Sequence[Head]) -> Head:
    """One head over the inputs of several that are averaged; see `TwoHeads`."""
    if len(parts) < 2:
        return parts[0]
    if len(parts) > 2:
        raise HeadError(
            "more than two heads are not joined.",
            found=f"{len(parts)} heads",
            remedy="model_args={'heads': 'first'}",
        )
    if len({part.n_categories for part in parts}) != 1 or any(p.bias is None for p in parts):
        raise HeadError(
            "two heads are joined when they have as many categories, and biases.",
            found="; ".join(map(repr, parts)),
            remedy="model_args={'heads': 'first'}",
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

    Args:
        joined: over the inputs of all parts.
        olds: the heads as they were.

    Raises:
        ShapeError: If they do not fit together.
        HeadError: If the joined head has no bias.

    >>> olds = [Head([[1.0]], [1.0]), Head([[2.0]], [5.0])]
    >>> [part.bias.item() for part in split_head(Head([[1.0, 2.0]], [4.0]), olds)]
    [2.0, 6.0]
    """
    whole = _join(olds)
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


def _trial(model: LoadedModel) -> list[str]:
    """Run the model once on noise; say where its output is not what its layer gives."""
    try:
        seen, out = _try(model)
    except FAILS as error:
        take = model.preprocessing
        reason = f"{type(error).__name__}: {first_line(error)}"
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
        model.extra["output_is"] = "not linear"
        return [f"{each}: its input is no vector."]
    if not _agree(out, logits):
        model.extra["output_is"] = activation_in(out, logits) or "not the layer's"
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

    With `sign` −1 the model goes on with the opposite of what the layer gives.
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
    handle = module.get_submodule(model.layer).register_forward_hook(hook)
    try:
        with torch.no_grad():
            out = settled(module(*args, **kwargs))
    finally:
        handle.remove()
    return seen, out


def _agree(out: object, logits: torch.Tensor) -> bool:
    match = nearest_logits(out, logits)
    return match is not None and match.is_same


# torchvision


def load_torchvision(
    name: str,
    *,
    checkpoint: Path | None = None,
    n_categories: int | None = None,
    categories: Sequence[str] | None = None,
    layer: str | None = None,
    prefix: str | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load an image classifier of torchvision.

    Torchvision ties the preprocessing to its published weights, of which many architectures have
    several. `model_args={"weights": "IMAGENET1K_V2"}` says from which ones the checkpoint comes;
    they are not downloaded. Without it the first ones' preprocessing is taken, and a note says so
    where they differ.

    Args:
        name: of the architecture, such as ``"resnet50"``.
        checkpoint: as in :func:`catwise.models.registry.load_model`, and so are the others.
        n_categories: see there; without a checkpoint 1,000.
        categories: see there; those of ImageNet where `weights` and 1,000 rows say so.
        layer: see there.
        prefix: see there.
        model_args: further arguments of the architecture, and `weights`.

    Raises:
        MissingExtraError: If torchvision is absent or broken.
        ConfigError: If it has no such architecture or option.
        CheckpointError: If the checkpoint is not this model's.
        HeadError: If the classification layer cannot be used.
    """
    models = import_optional("torchvision.models", extra="torchvision")
    own, args = take_options(
        model_args, own={"weights": None}, refused=("num_classes", "progress", "weights_backbone")
    )
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(
            f"torchvision has no image classifier {name!r}{nearest(name, known)}.",
            expected="a name of torchvision.models.list_models(module=torchvision.models)",
        )
    preprocessing, named, notes = _published(models, name, own["weights"])
    catalog = None if checkpoint is None else open_weights(checkpoint)
    if catalog is None:
        notes.append("the weights are random: no checkpoint was given.")
    elif n_categories is None:
        n_categories = count_categories(catalog, layer=layer, prefix=prefix)
    if name in {"googlenet", "inception_v3"}:  # with auxiliary heads that train only
        parts = {part for e in catalog.entries for part in e.key.split(".")} if catalog else set()
        args = {"aux_logits": bool(parts & {"aux1", "AuxLogits"}), "init_weights": False} | args
    n_rows = n_categories or 1000
    with building(f"torchvision:{name}"):
        module = models.get_model(name, weights=None, num_classes=n_rows, **args)
    if categories is None and named is not None and len(named) == n_rows:
        categories = named
    return adapt_module(
        module,
        name=f"torchvision:{name}",
        preprocessing=preprocessing,
        layers=layer,
        checkpoint=checkpoint,
        catalog=catalog,
        prefix=prefix,
        n_categories=n_rows,
        categories=categories,
        notes=notes,
    )


def unique_names(names: Sequence[str]) -> list[str]:
    """Tell equal names apart by their positions; ImageNet has two cranes.

    >>> unique_names(["crane", "crane", "dog"])
    ['crane (0)', 'crane (1)', 'dog']
    """
    seen = Counter(names)
    return [f"{name} ({i})" if seen[name] > 1 else name for i, name in enumerate(names)]


def _published(
    models: Any, name: str, weights: str | None
) -> tuple[Preprocessing, list[str] | None, list[str]]:
    """The preprocessing of published weights, their category names where they are asked for."""
    published = {entry.name: entry for entry in models.get_model_weights(name)}
    if weights is not None and weights not in published:
        raise ConfigError(
            f"torchvision's {name!r} has no weights {weights!r}{nearest(weights, published)}.",
            expected=", ".join(published) or "no weights",
        )
    read = {key: _preset(key, entry.transforms()) for key, entry in published.items()}
    if weights is not None:
        return read[weights], unique_names(published[weights].meta["categories"]), []
    if not read:
        return Preprocessing((224, 224), crop_pct=0.875, source="assumed"), None, []
    first = next(iter(read))
    notes = []
    if len({replace(one, source="") for one in read.values()}) > 1:
        notes.append(
            f"the preprocessing is that of {first}; torchvision has others: model_args="
            f"{{'weights': …}} takes {', '.join(read)}."
        )
    return read[first], None, notes


def _preset(name: str, transforms: Any) -> Preprocessing:
    """Read torchvision's preset for classification."""
    (crop, *_), (resize, *_) = transforms.crop_size, transforms.resize_size
    return Preprocessing(
        size=(crop, crop),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        crop_pct=min(1.0, crop / resize),
        source=f"torchvision {name}",
    )
