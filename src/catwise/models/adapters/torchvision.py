"""Image classifiers of torchvision, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from catwise._extras import import_optional
from catwise.errors import ConfigError, nearest
from catwise.models.adapters.lightning import count_categories, open_weights
from catwise.models.adapters.torch_modules import adapt_module
from catwise.models.core import LoadedModel, Preprocessing, Request
from catwise.models.packages import building, split_options
from catwise.models.stored_names import unique_names

_REFUSED: Final = ("num_classes", "progress", "weights_backbone")


def load_torchvision(request: Request) -> LoadedModel:
    """Load an image classifier of torchvision.

    Torchvision ties the preprocessing to its published weights, of which many architectures have
    several. `model_args={"weights": "IMAGENET1K_V2"}` says from which ones the checkpoint comes;
    they are not downloaded. Without it the first ones' preprocessing is taken, and a note says so
    where they differ.
    """
    name, n_categories, categories = request.name, request.n_categories, request.categories
    models = import_optional(
        "torchvision.models", extra="torchvision", purpose=f"the model torchvision:{name}"
    )
    own, args = split_options(request.model_args, own={"weights": None}, refused=_REFUSED)
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(
            f"torchvision has no image classifier {name!r}{nearest(name, known)}.",
            expected="a name of torchvision.models.list_models(module=torchvision.models)",
        )
    preprocessing, named, notes = _published(models, name, own["weights"])
    catalog = None if request.checkpoint is None else open_weights(request.checkpoint)
    if catalog is None:
        notes.append("the weights are random: no checkpoint was given.")
    elif n_categories is None:
        n_categories = count_categories(catalog, layer=request.layer, prefix=request.prefix)
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
        layers=request.layer,
        checkpoint=request.checkpoint,
        catalog=catalog,
        prefix=request.prefix,
        n_categories=n_rows,
        categories=categories,
        notes=notes,
    )


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
