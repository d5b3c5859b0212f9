"""Options that name a model and its images, and what is made of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._options import option
from catwise.cli.building import spelled_as

if TYPE_CHECKING:
    from catwise.models import LoadedModel, Preprocessing

KINDS_HELP: Final = (
    "timm:NAME, torchvision:NAME, transformers:FOLDER, xrv:NAME, onnx:FILE or "
    "python:package.module:function."
)
OF_MODELS: Final = {
    name: f"--model-arg {name}=" for name in ("node", "output", "layout", "n_categories")
} | {"model_arg": "--model-arg", "categories": "--head-categories"}
"""What arguments of `load_model` and of its adapters are called here."""
ROW_NAMES_HELP: Final = "Names of the model's rows, one a line, in order, or JSON."
LAYER_HELP: Final = "The classification layer, if not clear."
PREFIX_HELP: Final = "What leads the model's keys in the file."


@dataclass(frozen=True, kw_only=True)
class AnyModelOptions:
    """Which model, if one is named, and how images become its input."""

    model: str | None = option(None, metavar="KIND:NAME", first=True, help=KINDS_HELP)
    checkpoint: Path | None = option(
        None,
        metavar="FILE",
        first=True,
        help="Its weights (.safetensors, .pt); nothing in it is executed.",
    )
    model_arg: tuple[str, ...] = option(
        (),
        metavar="NAME=VALUE",
        help="An option of the architecture, such as bn_eps=0.001 (repeatable).",
    )
    layer: str | None = option(None, metavar="NAME", help=LAYER_HELP)
    prefix: str | None = option(None, help=PREFIX_HELP)
    input_size: str | None = option(None, metavar="HxW", help="Pixels.  [default: the model's own]")
    mean: str | None = option(None, metavar="LIST", help="Of the channels: 0.5 or 0.5,0.5,0.5")
    std: str | None = option(None, metavar="LIST", help="Of the channels.")
    channels: str | None = option(
        None,
        choices=("rgb", "bgr", "grey"),
        help="What the model takes: --mean and --std are in this order.  [default: its own]",
    )
    value_range: str | None = option(
        None,
        names="--range",
        metavar="LOW,HIGH",
        help="What black and white are for the model before --mean and --std, which are 0 and 1 "
        "then unless they are given: 0,255 or -1,1, for instance.",
    )
    white: float | None = option(
        None,
        above=0,
        help="The value of white in grey images of more than 8 bits that do not state it, such as "
        "4095.",
    )
    crop_pct: float | None = option(None, help="Share of the resized image that is kept.")
    crop_mode: str | None = option(
        None,
        choices=("center", "squash", "border"),
        help="How the resized image is cut to the input size.",
    )
    interpolation: str | None = option(
        None,
        choices=("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
        help="How images are resized.",
    )
    decoding: str | None = option(
        None,
        choices=("full", "reduced"),
        help="reduced: JPEGs at 1/2 to 1/8 of their size, at least twice the input's: faster for "
        "large ones, other features by a little.",
    )


@dataclass(frozen=True, kw_only=True)
class ModelOptions(AnyModelOptions):
    """Which model, how images become its input, and the images."""

    model: str = option(metavar="KIND:NAME", first=True, help=KINDS_HELP)
    images: Path | None = option(
        None,
        metavar="DIR",
        first=True,
        help="A folder of images, a folder of tar shards, or one shard.",
    )


def model_args(given: tuple[str, ...], option: str = "--model-arg") -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is JSON is read as such, all else is a text."""
    from catwise._json import parse

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE.", param_hint=f"'{option}'")
        try:
            found[name.replace("-", "_")] = parse(value)
        except ValueError:
            found[name.replace("-", "_")] = value
    return found


def load_options(options: AnyModelOptions) -> dict[str, Any]:
    """What `load_model` is given besides the model and the checkpoint."""
    given = {"layer": options.layer, "prefix": options.prefix}
    args = model_args(options.model_arg)
    return {**{k: v for k, v in given.items() if v}, **({"model_args": args} if args else {})}


def load_the_model(options: AnyModelOptions, names: list[str] | None = None) -> LoadedModel:
    """The model, with the preprocessing that was asked for, and names of its rows if given."""
    from catwise.models.registry import load_model

    given = load_options(options)
    if names is not None:
        given["categories"] = names
    with spelled_as(OF_MODELS):
        loaded = load_model(options.model or "", checkpoint=options.checkpoint, **given)
    loaded.take_input(preprocessing_of(options, loaded.preprocessing))
    return loaded


def preprocessing_of(options: AnyModelOptions, own: Preprocessing) -> Preprocessing:
    """The model's own preprocessing with what was given instead."""
    given: dict[str, Any] = {}
    if options.input_size is not None:
        given["size"] = _size(options.input_size)
    given |= _colours(options, own)
    for name in ("crop_pct", "crop_mode", "interpolation", "decoding", "white"):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    if not given:
        return own
    return dataclasses.replace(own, source=f"{own.source}; given: {', '.join(given)}", **given)


def _colours(options: AnyModelOptions, own: Preprocessing) -> dict[str, Any]:
    """Channels, and mean and std of values in [0, 1], from what was said of the model."""
    given: dict[str, Any] = {}
    channels, order = own.channels, own.order
    if options.channels is not None:
        channels = 1 if options.channels == "grey" else 3
        order = "bgr" if options.channels == "bgr" else "rgb"
        given |= {"channels": channels, "order": order}
    low, high = (0.0, 1.0) if options.value_range is None else _range(options.value_range)
    for name, plain in (("mean", 0.0), ("std", 1.0)):
        text = getattr(options, name)
        if text is not None:
            values = _numbers(text, channels, f"--{name}")
        elif options.value_range is not None:
            values = (plain,) * channels
        elif (channels, order) != (own.channels, own.order):
            values = _of_channels(getattr(own, name), channels)
        else:
            continue
        start = low if name == "mean" else 0.0
        given[name] = tuple((value - start) / (high - low) for value in values)
    return given


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Numbers of a model's own channels for others: their mean for grey, in the other order."""
    if len(values) == channels:
        return values[::-1]
    return (sum(values) / len(values),) * channels


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high < float("inf"):
        raise click.BadParameter(
            f"{text!r} is not LOW,HIGH, such as 0,255.", param_hint="'--range'"
        )
    return low, high


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not HEIGHTxWIDTH, such as 224x224.", param_hint="'--input-size'"
        ) from None
    return height, width


def _numbers(text: str, channels: int, option: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers.", param_hint=option) from None
    return values * channels if len(values) == 1 else values
