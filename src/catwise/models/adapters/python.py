"""Models that a function of the user's builds."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from catwise.errors import CatwiseError, ConfigError, nearest, reason_of
from catwise.models.adapters.lightning import count_categories, open_weights
from catwise.models.adapters.scaled import take_factor
from catwise.models.adapters.timm import read_preprocessing
from catwise.models.adapters.torch_modules import adapt_module
from catwise.models.core import ASSUMED, LoadedModel, Preprocessing, Request
from catwise.models.packages import FAILS, building, split_options


def load_python(request: Request) -> LoadedModel:
    """Load a model by a function of the user's.

    The function is given those of `checkpoint`, `n_categories` and `categories` that it names, and
    `model_args`. It returns a `LoadedModel`, or a module: the checkpoint is then loaded into that,
    unless the function took it.
    """
    function = _find_function(request.name)
    own, args = split_options(request.model_args, own={"heads": "refuse"})
    asked = {key: getattr(request, key) for key in ("checkpoint", "n_categories", "categories")}
    named = inspect.signature(function).parameters.keys()
    passed = {key: value for key, value in asked.items() if key in named and value is not None}
    given = {**passed, **args}
    if "n_categories" in named - given.keys() and request.checkpoint is not None:
        with contextlib.suppress(CatwiseError):  # else the function has a default, or is refused
            given["n_categories"] = count_categories(open_weights(request.checkpoint))
    _refuse_missing(request.name, function, given)
    with building(f"python:{request.name}", remedy="correct the function, or what it is given"):
        made = function(**given)
    if isinstance(made, LoadedModel):
        made.checkpoint = made.checkpoint or request.checkpoint
        if made.head is not None and len(request.categories or ()) == made.head.n_categories:
            made.head = made.head.replace(categories=request.categories)
        return made
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"python:{request.name} does not return a model.",
            found=type(made).__name__,
            expected="a LoadedModel or a torch.nn.Module",
        )
    preprocessing, notes = _assumed(made)
    adapted = adapt_module(
        made,
        name=request.name,
        preprocessing=preprocessing,
        layers=request.layer,
        heads=own["heads"],
        checkpoint=request.checkpoint,
        loaded="checkpoint" in passed,
        prefix=request.prefix,
        categories=request.categories,
        n_categories=request.n_categories,
        notes=notes,
    )
    return take_factor(adapted)


def takes_argument(name: str, argument: str) -> bool:
    """Whether the function of ``python:NAME`` names an argument; errors as `load_python`."""
    return argument in inspect.signature(_find_function(name)).parameters


def _refuse_missing(name: str, function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Refuse to call a function without what it needs."""
    known = inspect.signature(function).parameters
    plain = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    needed = [k for k, p in known.items() if p.default is p.empty and p.kind in plain]
    if missing := [key for key in needed if key not in given]:
        words = {"checkpoint": "checkpoint='FILE' (--checkpoint FILE)"}
        said = [words.get(k, f"model_args={{{k!r}: …}} (--model-arg {k}=…)") for k in missing]
        raise ConfigError(
            f"the function of python:{name} needs {' and '.join(missing)}.",
            expected="arguments with defaults, or given",
            remedy=" and ".join(said),
        )


def _find_function(name: str) -> Callable[..., Any]:
    module_name, colon, function_name = name.partition(":")
    if not colon or not function_name:
        raise ConfigError(
            f"'python:{name}' names no function.", expected="python:package.module:function"
        )
    try:
        module = importlib.import_module(module_name)
    except FAILS as error:
        raise ConfigError(
            f"the module {module_name!r} cannot be imported.",
            found=reason_of(error, named=True),
            remedy="run from its folder with PYTHONPATH=., or install it",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"{module_name!r} has no function {function_name!r}"
            f"{nearest(function_name, vars(module))}."
        )
    return function  # type: ignore[no-any-return]


def _assumed(module: Any) -> tuple[Preprocessing, list[str]]:
    """What a bare module says of its input (timm's do), or ImageNet's usual preprocessing."""
    if getattr(module, "pretrained_cfg", None):
        return read_preprocessing(module), []
    note = (
        f"{ASSUMED}: 224 x 224 pixels, ImageNet's mean and std; "
        "return a LoadedModel to say another."
    )
    return Preprocessing(size=(224, 224), crop_pct=0.875, source="assumed"), [note]
