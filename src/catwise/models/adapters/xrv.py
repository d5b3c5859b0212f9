"""Chest X-ray models of torchxrayvision, by name or already in memory.

Three things set them apart. Their published files are pickles of whole modules, which are not
opened: save `model.state_dict()`, or give the model itself. Some targets are `''`, rows that were
never trained. And `op_threshs`, when set, turn the output into a probability that is stretched so
that each operating point lies at 0.5: thresholds of the old head, which say nothing of a new one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from catwise._extras import import_optional
from catwise.errors import ConfigError, check_choice, nearest
from catwise.heads.catalog import Catalog
from catwise.models.adapters.lightning import count_categories, load_weights, open_weights
from catwise.models.adapters.torch_modules import adapt_module, inner_layer
from catwise.models.core import LoadedModel, Preprocessing, Request
from catwise.models.packages import building, split_options
from catwise.models.writing import FileWriter, writer_of

_LAYERS: Final = ("classifier", "model.fc", "fc")
_POLICIES: Final = ("refuse", "drop", "keep")
_SIZE: Final = 224
_POINTS: Final = "op_threshs, an operating point for each row"


def load_xrv(request: Request) -> LoadedModel:
    """Build a DenseNet of torchxrayvision and load a state_dict into it."""
    name, catalog, n_rows = request.name, None, request.n_categories
    xrv = import_optional("torchxrayvision", extra="xrv", purpose=f"the model xrv:{name}")
    own, args = split_options(
        request.model_args,
        own={"op_threshs": "refuse"},
        refused=("weights", "num_classes", "cache_dir"),
    )
    published = xrv.models.model_urls
    known = sorted(key for key in published if key.startswith("densenet"))
    if name not in known:
        raise ConfigError(
            f"torchxrayvision has no model {name!r} that is built here{nearest(name, known)}.",
            expected=", ".join(known),
            remedy="for others, a function that returns adapt_xrv(model): python:MODULE:FUNCTION",
        )
    targets, thresholds = published[name]["labels"], published[name].get("op_threshs")
    if request.checkpoint is not None:
        catalog = open_weights(request.checkpoint)
        n_rows = n_rows or count_categories(catalog, layer="classifier", prefix=request.prefix)
        thresholds = thresholds if _has_points(catalog) else None
    n_rows = n_rows or len(targets)
    with building(f"xrv:{name}"):
        fits = thresholds is not None and len(thresholds) == n_rows
        points = torch.tensor(thresholds if fits else [math.nan] * n_rows)
        given = {"op_threshs": points} if thresholds is not None else {}
        module = xrv.models.DenseNet(weights=None, num_classes=n_rows, **given, **args)
    if request.categories is None and len(targets) == n_rows:
        module.targets = module.pathologies = list(targets)
    elif len(module.targets) != n_rows:  # the package's own names are of a layer of 18 rows
        module.targets = module.pathologies = []
    return adapt_xrv(
        module,
        name=f"xrv:{name}",
        op_threshs=own["op_threshs"],
        layer=request.layer,
        checkpoint=request.checkpoint,
        catalog=catalog,
        prefix=request.prefix,
        categories=request.categories,
    )


def adapt_xrv(
    module: nn.Module,
    *,
    op_threshs: str = "refuse",
    name: str = "xrv",
    layer: str | None = None,
    checkpoint: Path | None = None,
    catalog: Catalog | None = None,
    prefix: str | None = None,
    categories: Sequence[str] | None = None,
) -> LoadedModel:
    """Say what catwise needs to know of a model of torchxrayvision that is in memory.

    Args:
        module: the model. `op_threshs="drop"` takes its operating points away.
        op_threshs: what to do with operating points: "refuse" them; "drop": the model then gives
            logits; "keep": the model keeps stretching its output by them.
        name: for messages.
        layer: the classification layer, where it is not the usual one.
        checkpoint: a file to load, strictly.
        catalog: the same, opened.
        prefix: what leads the model's keys in it.
        categories: names of all rows; the model's `targets` when not given. Rows named `''` are
            left out of the head, and left as they are when a head is written.

    Raises:
        ConfigError: If the model has operating points and `op_threshs` is "refuse".
        CheckpointError: If the checkpoint is not this model's.
        HeadError: If the classification layer cannot be used.
    """
    check_choice("op_threshs", op_threshs, _POLICIES)
    notes: list[str] = []
    if catalog is None and checkpoint is not None:
        catalog = open_weights(checkpoint)
    if catalog is None:
        notes.append("the weights are those in memory: no checkpoint was given.")
    else:
        load_weights(module, catalog, prefix=prefix)
    notes += _settle_points(module, op_threshs, name)
    names_given = categories if categories is not None else getattr(module, "targets", None)
    size = int(getattr(module, "input_resolution", None) or _SIZE)
    usual = next((key for key in _LAYERS if key in dict(module.named_modules())), None)
    loaded = adapt_module(
        module,
        name=name,
        preprocessing=Preprocessing(
            size=(size, size),
            mean=(0.5,),
            std=(1 / 2048,),
            channels=1,
            source="torchxrayvision: one channel in [-1024, 1024]",
        ),
        layers=layer or (None if usual is None else inner_layer(module, usual)),
        checkpoint=checkpoint,
        catalog=catalog,
        loaded=True,
        prefix=prefix,
        notes=notes,
    )
    if names_given:
        _name_rows(loaded, list(map(str, names_given)))
    return _with_points(loaded) if catalog is not None and _has_points(catalog) else loaded


def _with_points(loaded: LoadedModel) -> LoadedModel:
    """The model, whose file holds operating points, a number for each row."""
    loaded.writer = replace(cast("FileWriter", writer_of(loaded)), fixed=_POINTS)
    return loaded


def _has_points(catalog: Catalog) -> bool:
    """Whether a checkpoint holds operating points."""
    return any(entry.key.rpartition(".")[2] == "op_threshs" for entry in catalog.entries)


def _name_rows(loaded: LoadedModel, targets: list[str]) -> None:
    """Name the rows; those without a name leave the head and stay in the file."""
    if loaded.head is None:
        return
    rows = [target or f"(unnamed {i})" for i, target in enumerate(targets)]
    head = loaded.head.replace(categories=rows)
    named = [row for row, target in zip(rows, targets, strict=True) if target]
    loaded.row_names = tuple(rows)
    loaded.head = head.take_categories(named)
    if len(named) < len(rows):
        loaded.notes.append(
            f"{len(rows) - len(named)} of {len(rows)} rows have no name: they are left out of the "
            "head, and left as they are when it is written."
        )


def _settle_points(module: Any, op_threshs: str, name: str) -> list[str]:
    """Take the operating points away, or leave them; say what that means."""
    if getattr(module, "op_threshs", None) is None:
        return []
    if op_threshs == "refuse":
        raise ConfigError(
            f"{name} stretches its outputs by operating points (op_threshs) of its present head.",
            found="thresholds that say nothing of a tuned head",
            expected="to be told what becomes of them",
            remedy="model_args={'op_threshs': 'drop'} to get logits, "
            "model_args={'op_threshs': 'keep'} to leave them",
        )
    if op_threshs == "keep":
        note = (
            "op_threshs are kept: the model's output is a probability, stretched by the "
            "operating points of the old head."
        )
        return [note]
    module.op_threshs, module.apply_sigmoid = None, False
    note = (
        "op_threshs are dropped: the model gives logits. A checkpoint that holds them still does: "
        "set model.op_threshs = None wherever the tuned weights are used."
    )
    return [note]
