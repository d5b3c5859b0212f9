"""Options that name a model and its images, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from catwise.cli.options import grouped, path_type

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.models import LoadedModel, Preprocessing

__all__ = ["ModelOptions", "load_the_model", "model_options", "preprocessing_of"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how images become its input."""

    model: str
    checkpoint: Path | None
    model_arg: tuple[str, ...]
    layer: str | None
    prefix: str | None
    input_size: str | None
    mean: str | None
    std: str | None
    crop_pct: float | None
    crop_mode: str | None
    interpolation: str | None
    images: Path | None
    device: str | None
    batch_size: int
    workers: int
    flips: bool
    undecodable: str


model_options = grouped(
    ModelOptions,
    "model",
    [
        click.option(
            "--model",
            required=True,
            metavar="KIND:NAME",
            help="timm:NAME, torchvision:NAME, transformers:FOLDER, xrv:NAME, onnx:FILE or "
            "python:package.module:function.",
        ),
        click.option(
            "--checkpoint",
            type=path_type(),
            metavar="FILE",
            help="Its weights (.safetensors, .pt); nothing in it is executed.",
        ),
        click.option(
            "--model-arg",
            multiple=True,
            metavar="NAME=VALUE",
            help="An option of the architecture, such as bn_eps=0.001 (repeatable).",
        ),
        click.option("--layer", metavar="NAME", help="The classification layer, if not clear."),
        click.option("--prefix", metavar="TEXT", help="What leads the model's keys in the file."),
        click.option("--input-size", metavar="HxW", help="Pixels.  [default: the model's own]"),
        click.option("--mean", metavar="LIST", help="Of the channels: 0.5 or 0.5,0.5,0.5"),
        click.option("--std", metavar="LIST", help="Of the channels."),
        click.option("--crop-pct", type=float, help="Share of the resized image that is kept."),
        click.option("--crop-mode", type=click.Choice(["center", "squash", "border"])),
        click.option(
            "--interpolation",
            type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
        ),
        click.option(
            "--images",
            type=path_type(),
            metavar="DIR",
            help="A folder of images, a folder of tar shards, or one shard.",
        ),
        click.option("--device", help="Such as cpu or cuda:0.  [default: cpu]"),
        click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Processes that read images.",
        ),
        click.option("--flips", is_flag=True, help="Average with flipped images."),
        click.option(
            "--undecodable",
            type=click.Choice(["refuse", "skip"]),
            default="refuse",
            show_default=True,
            help="Images that cannot be decoded.",
        ),
    ],
)


def model_args(given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is JSON is read as such, all else is a text."""
    from catwise._json import parse

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE.", param_hint="'--model-arg'")
        try:
            found[name.replace("-", "_")] = parse(value)
        except ValueError:
            found[name.replace("-", "_")] = value
    return found


def load_options(options: ModelOptions) -> dict[str, Any]:
    """What `load_model` is given besides the model and the checkpoint."""
    given = {"layer": options.layer, "prefix": options.prefix}
    args = model_args(options.model_arg)
    return {**{k: v for k, v in given.items() if v}, **({"model_args": args} if args else {})}


def load_the_model(options: ModelOptions) -> LoadedModel:
    """The model, with the preprocessing that was asked for."""
    from catwise.models.registry import load_model

    loaded = load_model(options.model, checkpoint=options.checkpoint, **load_options(options))
    loaded.preprocessing = preprocessing_of(options, loaded.preprocessing)
    return loaded


def preprocessing_of(options: ModelOptions, own: Preprocessing) -> Preprocessing:
    """The model's own preprocessing with what was said instead."""
    import dataclasses

    given: dict[str, Any] = {}
    if options.input_size is not None:
        given["size"] = _size(options.input_size)
    for name in ("mean", "std"):
        text = getattr(options, name)
        if text is not None:
            given[name] = _numbers(text, own.channels, f"--{name}")
    for name in ("crop_pct", "crop_mode", "interpolation"):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    if not given:
        return own
    return dataclasses.replace(own, source=f"{own.source}; given: {', '.join(given)}", **given)


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
        raise click.BadParameter(f"{text!r} is no list of numbers.", param_hint=option) from None
    return values * channels if len(values) == 1 else values
