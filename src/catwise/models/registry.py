"""Models by name: ``timm:mobilenetv2_035``, ``transformers:FOLDER``, a function of the user's.

Each kind has its adapter in a module of its own, which is imported when it is asked for; so is the
package that it adapts.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from catwise._io import atomic_path
from catwise.errors import (
    ConfigError,
    OutputError,
    ShapeError,
    nearest,
)
from catwise.models.core import LoadedModel, Preprocessing
from catwise.models.packages import FAILS, building, first_line, take_options

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from catwise.heads import Head, WriteReport

__all__ = [
    "KINDS",
    "is_new",
    "load_model",
    "reload_model",
    "write_file",
    "write_model",
]


class Kind(NamedTuple):
    """Where the adapter of a kind is, and what follows the colon."""

    module: str
    function: str
    argument: str


KINDS: Final = {
    "timm": Kind("adapters.timm", "load_timm", "NAME"),
    "torchvision": Kind("adapters.torch_modules", "load_torchvision", "NAME"),
    "transformers": Kind("adapters.transformers", "load_transformers", "FOLDER"),
    "xrv": Kind("adapters.xrv", "load_xrv", "NAME"),
    "onnx": Kind("adapters.onnx.model", "load_onnx", "FILE"),
    "python": Kind("registry", "load_python", "package.module:function"),
}
OWN_CHECKPOINT: Final = frozenset({"transformers", "onnx"})
"""The kinds whose name is the checkpoint."""


def load_model(
    spec: str,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    n_categories: int | None = None,
    categories: Sequence[str] | None = None,
    layer: str | None = None,
    prefix: str | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a model by its kind and name, with its weights, head and preprocessing.

    ======================================  =====================================================
    ``timm:NAME``                           an architecture of timm
    ``torchvision:NAME``                    an architecture of torchvision
    ``transformers:FOLDER``                 a folder with config.json and model.safetensors
    ``xrv:NAME``                            torchxrayvision, such as xrv:densenet121-res224-all
    ``onnx:FILE``                           an ONNX file
    ``python:package.module:function``      a function that returns a LoadedModel or a Module
    ======================================  =====================================================

    Nothing is downloaded, and nothing in a checkpoint is executed. Architectures are made with
    random weights and the checkpoint is loaded strictly.

    Args:
        spec: kind and name.
        checkpoint: the file with the weights; None leaves them random, which is of use in tests
            alone. A folder or a file that `spec` names is its own checkpoint.
        n_categories: rows of the classification layer; read from the checkpoint when not given.
        categories: their names, in order.
        layer: name of the classification layer, where it is not the usual one.
        prefix: what leads the model's keys in the checkpoint, such as ``"state_dict_ema:"``, where
            several copies are there or the lead is not known.
        model_args: options of the architecture, and those of the adapter: `heads` ("refuse",
            "both", "first") for models with two heads, `op_threshs` ("refuse", "drop", "keep") for
            torchxrayvision, `weights` for torchvision's preprocessing.

    Returns:
        The model, in eval mode on the CPU.

    Raises:
        ConfigError: If the kind, the name or an option is not known, or a package is absent.
        CheckpointError: If the checkpoint cannot be read or is not this model's.
        HeadError: If the classification layer is not clear or cannot be used.
    """
    kind, colon, name = spec.partition(":")
    forms = ", ".join(f"{key}:{entry.argument}" for key, entry in KINDS.items())
    if not colon or not name:
        raise ConfigError(
            f"the model {spec!r} does not say of which kind it is.", expected=f"one of {forms}"
        )
    if kind not in KINDS:
        raise ConfigError(
            f"the kind of model {kind!r} is not known{nearest(kind, KINDS)}.",
            expected=f"one of {forms}",
        )
    if categories is not None:
        categories = [str(category) for category in categories]
        if n_categories not in {None, len(categories)}:
            raise ShapeError(
                "the number of categories and their names differ.",
                found=f"n_categories={n_categories} and {len(categories):,} names",
            )
        n_categories = len(categories)
    options: dict[str, Any] = {
        "checkpoint": None if checkpoint is None else Path(checkpoint),
        "n_categories": n_categories,
        "categories": categories,
        "layer": layer,
        "prefix": prefix,
        "model_args": dict(model_args) if model_args else None,
    }
    where = KINDS[kind]
    adapter = getattr(importlib.import_module(f"catwise.models.{where.module}"), where.function)
    if "model_args" not in _accepted(adapter, options):
        options |= options.pop("model_args") or {}
    known = _accepted(adapter, options)
    given = {key: value for key, value in options.items() if value is not None}
    if refused := sorted(given.keys() - known):
        raise ConfigError(
            f"a model of the kind {kind!r} takes no {', '.join(refused)}.",
            expected=", ".join(sorted(known - {"name", "path"})),
        )
    loaded: LoadedModel = adapter(name, **given)
    loaded.name = spec
    loaded.extra["loaded_with"] = {
        "n_categories": n_categories,
        "categories": categories,
        "layer": layer,
        "prefix": prefix,
        "model_args": model_args,
    }
    _check_count(loaded, n_categories)
    return loaded


def _accepted(function: Callable[..., Any], names: Mapping[str, Any]) -> set[str]:
    """Which of the names a function takes as keywords."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return set(names)
    return {p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}


def _check_count(loaded: LoadedModel, n_categories: int | None) -> None:
    rows = loaded.extra.get("row_names") or (loaded.head.categories if loaded.head else ())
    if n_categories is not None and rows and len(rows) != n_categories:
        raise ShapeError(
            f"the head of {loaded.name} has another number of categories.",
            found=f"{len(rows):,} rows",
            expected=f"{n_categories:,}",
        )


def write_model(
    model: LoadedModel,
    head: Head,
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> list[WriteReport]:
    """Write a head into a copy of what a model was loaded from: a file, or a transformers folder.

    The head that was read gives a copy that is equal byte for byte. Any other is told of in the
    copy: see `catwise.heads.provenance`.

    Args:
        model: what `load_model` gave.
        head: the new head; its categories are matched by name.
        destination: the new file or folder.
        overwrite: replace what is there.

    Returns:
        What was written: one report, or one for each of two joined heads.

    Raises:
        ConfigError: If the model was loaded without a checkpoint.
        CatwiseError: As :func:`catwise.heads.write_head`.
    """
    if model.checkpoint is None:
        raise ConfigError(
            f"the head of {model.name} cannot be written: it was not loaded from a checkpoint.",
            remedy="load it with checkpoint='…'",
        )
    destination = Path(destination)
    if "node" in model.extra:
        from catwise.models.adapters.onnx.model import write_onnx_head

        place = {key: model.extra[key] for key in ("node", "output")}
        names = None if model.head is None else model.head.categories
        report = write_onnx_head(
            model.checkpoint, destination, head, categories=names, overwrite=overwrite, **place
        )
        return [report]
    if "weights_file" in model.extra:
        from catwise.models.adapters.transformers import write_folder

        return write_folder(model, head, destination, overwrite=overwrite)
    return write_file(model, head, model.checkpoint, destination, overwrite=overwrite)


def write_file(
    model: LoadedModel, head: Head, source: Path, destination: Path, *, overwrite: bool = False
) -> list[WriteReport]:
    """Write a head into a copy of one file, with its provenance; see `write_model`.

    Args:
        model: says where in the file the head is.
        head: the new head.
        source: the file.
        destination: the new file.
        overwrite: replace a file that is there.

    Raises:
        CatwiseError: As :func:`catwise.heads.write_head`.
    """
    from catwise.heads import read_head, write_head
    from catwise.heads.provenance import describe, side_file
    from catwise.models.adapters.torch_modules import split_head

    told = describe(head, model.head) if is_new(head, model.head) else None
    rows = model.extra.get("row_names") or (model.head.categories if model.head else None)
    if "heads" not in model.extra:
        report = write_head(
            source,
            head,
            destination,
            key=model.weight_key,
            bias_key=model.bias_key,
            categories=rows,
            provenance=told,
            overwrite=overwrite,
        )
        return [report]
    if destination.exists() and (not overwrite or destination.samefile(source)):
        raise OutputError(
            f"'{destination}' exists.", remedy="choose another name, or ask to overwrite it"
        )
    if rows is not None:
        head = head.take_categories(rows)
    places: list[dict[str, Any]] = [
        {"key": at["weight_key"], "bias_key": at["bias_key"]} for at in model.extra["heads"]
    ]
    first, second = split_head(head, [read_head(source, **place) for place in places])
    with atomic_path(destination) as temporary:
        between = temporary.with_name(f"{temporary.stem}-first{temporary.suffix}")
        try:
            part = first.replace(fitted_on=None, provenance=None)  # the second write says it
            reports = [write_head(source, part, between, categories=rows, **places[0])]
            last = {**places[1], "provenance": told}
            reports.append(write_head(between, second, temporary, categories=rows, **last))
        finally:
            between.unlink(missing_ok=True)
            if (beside := side_file(temporary)).exists():
                beside.replace(side_file(destination))
    return reports


def is_new(head: Head, base: Head | None) -> bool:
    """Whether a head has other numbers than the one that was read, in the precision of that."""
    if base is None or not set(head.categories) <= set(base.categories):
        return True
    same = base.take_categories(head.categories)
    pairs = [(head.weight, same.weight), (head.bias, same.bias)]
    return any(
        (new is None) != (old is None)
        or (new is not None and old is not None and bool((new.to(old) != old).any()))
        for new, old in pairs
    )


def reload_model(model: LoadedModel, path: Path) -> LoadedModel:
    """Load a written copy as the original was loaded, strictly.

    Args:
        model: what `load_model` gave.
        path: the copy: a file, or a transformers folder.

    Raises:
        ConfigError: If the model was not loaded by `load_model`.
        CatwiseError: As `load_model`.
    """
    if "loaded_with" not in model.extra:
        raise ConfigError(
            f"{model.name} cannot be loaded again: it was not loaded by load_model.",
            remedy="load_model('python:MODULE:FUNCTION', …) loads by a function of yours",
        )
    kind, options = model.name.partition(":")[0], model.extra["loaded_with"]
    if kind in OWN_CHECKPOINT:
        again = load_model(f"{kind}:{path}", **options)
    else:
        again = load_model(model.name, checkpoint=path, **options)
    again.preprocessing = model.preprocessing
    return again


def load_python(
    name: str,
    *,
    checkpoint: Path | None = None,
    n_categories: int | None = None,
    categories: Sequence[str] | None = None,
    layer: str | None = None,
    prefix: str | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a model by a function of the user's.

    The function is given those of `checkpoint`, `n_categories` and `categories` that it names, and
    `model_args`. It returns a `LoadedModel`, or a module: the checkpoint is then loaded into that,
    unless the function took it.

    Args:
        name: ``"package.module:function"``.
        checkpoint: as in `load_model`, and so are the others.
        n_categories: see there.
        categories: see there.
        layer: see there.
        prefix: see there.
        model_args: see there.

    Raises:
        ConfigError: If there is no such function, it fails, or it returns something else.
    """
    from torch import nn

    from catwise.models.adapters.torch_modules import adapt_module

    function = _find_function(name)
    options = {"checkpoint": checkpoint, "n_categories": n_categories, "categories": categories}
    own, args = take_options(model_args, own={"heads": "refuse"})
    named = {key for key in inspect.signature(function).parameters if key in options}
    passed = {key: value for key, value in options.items() if key in named and value is not None}
    with building(f"python:{name}", remedy="correct the function, or what it is given"):
        made = function(**passed, **args)
    if isinstance(made, LoadedModel):
        made.checkpoint = made.checkpoint or checkpoint
        return made
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"python:{name} gives no model.",
            found=type(made).__name__,
            expected="a LoadedModel or a torch.nn.Module",
        )
    preprocessing, notes = _assumed(made)
    return adapt_module(
        made,
        name=name,
        preprocessing=preprocessing,
        layers=layer,
        heads=own["heads"],
        checkpoint=checkpoint,
        loaded="checkpoint" in passed,
        prefix=prefix,
        categories=categories,
        n_categories=n_categories,
        notes=notes,
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
            found=f"{type(error).__name__}: {first_line(error)}",
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
        from catwise.models.adapters.timm import read_preprocessing

        return read_preprocessing(module), []
    note = (
        "the preprocessing is assumed: 224 x 224 pixels, ImageNet's mean and std; "
        "return a LoadedModel to say another."
    )
    return Preprocessing(size=(224, 224), crop_pct=0.875, source="assumed"), [note]
