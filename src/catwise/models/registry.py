"""Models by name: ``timm:mobilenetv2_035``, ``transformers:FOLDER``, a function of the user's.

Each kind has its adapter in a module of its own, which is imported when it is asked for; so is the
package that it adapts.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from catwise.errors import ConfigError, ShapeError, nearest
from catwise.models.core import LoadedModel, Request
from catwise.models.writing import write_model as write_model  # noqa: PLC0414 - of docs/models.md

_OPTIONS: Final = frozenset({"checkpoint", "n_categories", "categories", "layer", "prefix"})


class Kind(NamedTuple):
    """Where the adapter of a kind is, what follows the colon, and the options that it takes."""

    module: str
    function: str
    argument: str
    takes: frozenset[str] = _OPTIONS


KINDS: Final = {
    "timm": Kind("adapters.timm", "load_timm", "NAME"),
    "torchvision": Kind("adapters.torchvision", "load_torchvision", "NAME"),
    "transformers": Kind(
        "adapters.transformers", "load_transformers", "FOLDER", _OPTIONS - {"checkpoint", "prefix"}
    ),
    "xrv": Kind("adapters.xrv", "load_xrv", "NAME"),
    "onnx": Kind(
        "adapters.onnx.model", "load_by_request", "FILE", _OPTIONS - {"checkpoint", "prefix"}
    ),
    "python": Kind("adapters.python", "load_python", "package.module:function"),
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
    weights = None if checkpoint is None else Path(checkpoint)
    args = dict(model_args or {})
    return _load(kind, Request(name, weights, n_categories, categories, layer, prefix, args))


def _load(kind: str, request: Request) -> LoadedModel:
    where = KINDS[kind]
    asked = {key for key in _OPTIONS if getattr(request, key) is not None}
    if refused := sorted(asked - where.takes):
        raise ConfigError(
            f"a model of the kind {kind!r} takes no {', '.join(refused)}.",
            expected=", ".join(sorted({*where.takes, "model_args"})),
        )
    adapter = getattr(importlib.import_module(f"catwise.models.{where.module}"), where.function)
    loaded: LoadedModel = adapter(request)
    loaded.name, loaded.request = f"{kind}:{request.name}", request
    _check_count(loaded, request.n_categories)
    return loaded


def _check_count(loaded: LoadedModel, n_categories: int | None) -> None:
    rows = loaded.row_names or (loaded.head.categories if loaded.head else ())
    if n_categories is not None and rows and len(rows) != n_categories:
        raise ShapeError(
            f"the head of {loaded.name} has another number of categories.",
            found=f"{len(rows):,} rows",
            expected=f"{n_categories:,}",
        )


def reload_model(
    model: LoadedModel, path: str | os.PathLike[str], *, categories: Sequence[str] | None = None
) -> LoadedModel:
    """Load a written copy as the original was loaded, strictly.

    Args:
        model: what `load_model` gave.
        path: the copy: a file, or a transformers folder.
        categories: its rows, where they are others than the original's.

    Raises:
        ConfigError: If the model was not loaded by `load_model`.
        CatwiseError: As `load_model`.
    """
    if model.request is None:
        raise ConfigError(
            f"{model.name} cannot be loaded again: it was not loaded by load_model.",
            remedy="load_model('python:MODULE:FUNCTION', …) loads by a function of yours",
        )
    kind = model.name.partition(":")[0]
    where = {"name": str(path)} if kind in OWN_CHECKPOINT else {"checkpoint": Path(path)}
    request = replace(model.request, **where)
    if categories is not None:  # what was said of the rows is said of those that there are now
        n_categories = None if request.n_categories is None else len(categories)
        names = None if request.categories is None else list(categories)
        request = replace(request, n_categories=n_categories, categories=names)
    again = _load(kind, request)
    again.preprocessing = model.preprocessing
    return again
