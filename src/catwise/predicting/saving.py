"""Writing a classifier: head or model, calibration and thresholds, in one folder."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from catwise._io import atomic_folder, folder_names, named_as, write_json, write_text
from catwise._json import read_file, ready_text
from catwise._version import __version__
from catwise.decisions import Calibration, ConformalSets, DecisionRules, Thresholds
from catwise.decisions.rules import BY_PROBABILITY
from catwise.errors import ConfigError, HeadError
from catwise.features import FeatureStore
from catwise.features.manifest import file_sha256
from catwise.fixing.folder import read_fixed
from catwise.heads import Head, load_head, save_head
from catwise.joining import name_rows
from catwise.models import LoadedModel
from catwise.models.layers import head_of, weights_digest
from catwise.models.recipes import load_recipe, recipe_of
from catwise.models.registry import reload_model
from catwise.models.verify import check_output, verify_written
from catwise.models.writing import write_model
from catwise.predicting.card import classifier_card
from catwise.predicting.folder import (
    CALIBRATION,
    CARD,
    CHECKPOINT,
    CONFORMAL,
    FILES,
    HEAD,
    THRESHOLDS,
    Manifest,
    list_files,
)
from catwise.predicting.probe import probe_images, probe_logits

_EXPECTED: Final = ("precision", None)
_NEAR: Final = 1e-3
_SIGMOID: Final = "Probabilities are the sigmoid of the head's logits: no calibration was given."


def save_classifier(
    source: LoadedModel | Head | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    head: Head | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    thresholds: Thresholds | str | os.PathLike[str] | None = None,
    conformal: ConformalSets | str | os.PathLike[str] | None = None,
    flips: bool | None = None,
    features: FeatureStore | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a classifier's folder, whole or not at all; `load_classifier` reads it.

    It holds a copy of the model's checkpoint with the head in it (or the head alone), calibration,
    thresholds, categories, preprocessing, a model card, provenance, digests of all files, and the
    logits of two made-up images. Calibration and thresholds must be of this head's logits, not of
    those of a head into which the calibration was folded.

    Args:
        source: a model that `load_model` loaded; or a head, for a classifier of features; or the
            folder that `fix` filled.
        out: the folder to make.
        head: the tuned head, to be written into the model's layer; by default the layer's own.
        calibration: of the head's logits, or the file that it was saved to. Without it
            probabilities are the sigmoid of the logits.
        thresholds: of the head's logits, or their file. Without them nothing is decided.
        conformal: sets of answers by the head's logits, or their file.
        flips: whether logits are means over an image and its mirror image, as of features that
            were extracted so; by default as `fix` was told, else not.
        features: the store that a head alone was tuned on: features of other origin will be
            refused.
        provenance: what else to keep with it; JSON-ready.
        overwrite: replace a classifier that is there.

    Raises:
        ConfigError: If the model cannot be loaded again, or what is given does not go together.
        CategoryError: If calibration, thresholds or sets name categories that the head lacks.
        HeadError: If the model's logits are not what its layer gives.
        MismatchError: If the written copy does not behave as its head says.
        OutputError: If it cannot be written, or `out` holds something else.

    >>> import tempfile
    >>> from catwise.predicting import load_classifier
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_classifier(Head([[1.0]], [0.5], categories=["cat"]), f"{folder}/cats")
    ...     load_classifier(f"{folder}/cats").predict([[1.0], [-1.0]]).probabilities.round(3)
    array([[0.818],
           [0.378]])
    """
    given = _read_source(source, head, flips=flips, features=features)
    parts = {
        CALIBRATION: _document(calibration, Calibration),
        THRESHOLDS: _document(thresholds, Thresholds),
        CONFORMAL: _document(conformal, ConformalSets),
    }
    made = [part.made for part in parts.values()]
    DecisionRules.of(given.head.categories, *made)  # says what does not fit
    _check_chosen_by(*made[:2])
    text = ready_text(provenance, what="the provenance", error=ConfigError)
    target = Path(out)
    folder_names(target, own=FILES, what="classifier")
    with atomic_folder(target, overwrite=overwrite) as folder, named_as(target, folder):
        _fill(folder, given, parts, json.loads(text))


def _fill(
    folder: Path, given: _Source, parts: Mapping[str, _Document], provenance: dict[str, Any]
) -> None:
    """Write all files of a classifier, `classifier.json` last."""
    written = _write_model(given, folder)
    save_head(written.head, folder / HEAD)
    for name, part in parts.items():
        if part.table is not None:
            write_json(folder / name, part.table)
    said = [parts[name].table for name in (CALIBRATION, THRESHOLDS)]
    population = next(filter(None, (table["population"] for table in said if table)), _SIGMOID)
    card = classifier_card(
        written.head,
        given.model,
        population,
        calibration=said[0],
        thresholds=said[1],
        conformal=parts[CONFORMAL].table,
        lines=written.lines,
    )
    write_text(folder / CARD, card)
    Manifest(
        categories=written.head.categories,
        population=population,
        files={name: file_sha256(folder / name) for name in list_files(folder)},
        extraction=written.extraction,
        provenance={
            "torch": torch.__version__,
            **provenance,
            "head": written.head.provenance,
        },
        model=written.model,
        catwise=__version__,
    ).write(folder)


class _Source(NamedTuple):
    """What is to be written."""

    model: LoadedModel | None
    head: Head
    flips: bool
    weights: tuple[str, ...]  # of models whose features are these
    features: FeatureStore | None


class _Written(NamedTuple):
    """What was written of the model."""

    head: Head
    model: dict[str, Any] | None
    extraction: dict[str, Any]
    lines: list[str]


class _Document(NamedTuple):
    """A calibration, or thresholds, and their JSON."""

    made: Any
    table: dict[str, Any] | None


def _document(given: Any, kind: type[Calibration | Thresholds | ConformalSets]) -> _Document:
    """What was given, and its JSON with what is known of test rows."""
    if given is None:
        return _Document(None, None)
    if isinstance(given, kind):
        return _Document(given, given.to_dict())
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(
            f"what is given is not a {kind.__name__}.",
            found=type(given).__name__,
            expected=f"a {kind.__name__}, or the file that it was saved to",
        )
    return _Document(kind.load(Path(given)), read_file(Path(given)))


def _check_chosen_by(calibration: Calibration | None, thresholds: Thresholds | None) -> None:
    """Refuse thresholds that another calibration chose, where they depend on it."""
    if calibration is None or thresholds is None:
        return
    maps = {one.category: one.map for one in calibration.categories}
    for one in thresholds.categories:
        counts = one.rule not in BY_PROBABILITY and (one.rule, one.confidence) != _EXPECTED
        if counts or one.threshold is None or one.probability is None or one.category not in maps:
            continue
        logit = maps[one.category](np.array([one.threshold]))
        now = float(torch.sigmoid(torch.from_numpy(logit))[0])
        if abs(now - one.probability) > _NEAR:
            raise ConfigError(
                "the thresholds were chosen by another calibration than this one.",
                found=f"a probability of {now:.4g} at the threshold of {one.category!r}",
                expected=f"{one.probability:.4g}, as where it was chosen",
                remedy="choose them again with this one: threshold(…, calibration=…) "
                "(catwise threshold --calibration FILE)",
            )


def _read_source(
    source: Any, head: Head | None, *, flips: bool | None, features: FeatureStore | None
) -> _Source:
    if isinstance(source, Head):
        if head is not None or flips is not None:
            raise ConfigError("a head alone takes no `head` and no `flips`.")
        return _Source(None, source, flips=False, weights=(), features=features)
    if features is not None:
        raise ConfigError(
            "`features` belong to a head alone; of a model it is known what gives them."
        )
    if isinstance(source, LoadedModel):
        return _of_model(source, head, flips=bool(flips), weights=())
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(
            "a classifier is made of a model, a head, or a folder of fix.",
            found=type(source).__name__,
            expected="a LoadedModel (load_model), a Head, or a path",
        )
    fixed = read_fixed(Path(source))
    if head is not None or flips not in {None, fixed.flips}:
        raise ConfigError(
            "a folder of fix has a head, and flips, of its own.",
            found=f"flips={fixed.flips}",
            remedy="leave them out",
        )
    model = load_recipe(fixed.recipe, fixed.checkpoint)
    model.preprocessing = fixed.preprocessing
    own = load_head(fixed.head)
    return _of_model(model, own, flips=fixed.flips, weights=(fixed.weights,))


def _of_model(
    model: LoadedModel, head: Head | None, *, flips: bool, weights: tuple[str, ...]
) -> _Source:
    check_output(model)
    if model.head is None:
        raise HeadError(f"the classification layer of {model.name} cannot be read.")
    recipe_of(model)  # says why it could not be loaded again
    named = model if head is None else dataclasses.replace(
        model, head=name_rows(model.head, head.categories), notes=list(model.notes)
    )  # fmt: skip
    found = named.head if head is None else head
    assert found is not None  # noqa: S101  # read above
    return _Source(named, found, flips, weights, None)


def _write_model(given: _Source, folder: Path) -> _Written:
    """Write the checkpoint with the head in it, and see what the copy gives."""
    model, head = given.model, given.head
    if model is None:
        made = {} if given.features is None else given.features.origin.get("extract", {})
        items = made.get("items", {})
        names = ("layer", "flips", "preprocessing")
        extraction = {name: items[name] for name in names if items.get(name) is not None}
        if extraction:
            extraction["weights"] = [items["weights"]]
        return _Written(head, None, extraction, [])
    assert model.checkpoint is not None and model.head is not None  # noqa: S101,PT018  # seen to
    place = folder / CHECKPOINT
    place.mkdir()
    copy = place / model.checkpoint.resolve().name
    write_model(model, head, copy)
    again = reload_model(model, copy)
    seen = verify_written(model, again, head, probe_images(model.preprocessing))
    assert again.module is not None and model.module is not None  # noqa: S101,PT018
    layer = head_of(again.module.get_submodule(again.layer), name=again.layer)
    own = list(model.row_names or model.head.categories)
    rows = [own.index(name) for name in head.categories]
    preprocessing = again.preprocessing.to_dict()
    weights = {*given.weights, weights_digest(model.module), weights_digest(again.module)}
    table = {
        "recipe": recipe_of(model),
        "checkpoint": copy.name,
        "layer": again.layer,
        "rows": rows,
        "flips": given.flips,
        "preprocessing": json.loads(json.dumps(preprocessing)),
        "probe": probe_logits(again, rows, flips=given.flips).tolist(),
    }
    extraction = {name: table[name] for name in ("layer", "flips", "preprocessing")}
    return _Written(
        _rounded(head, layer, rows), table, {**extraction, "weights": sorted(weights)}, [str(seen)]
    )


def _rounded(head: Head, layer: Head, rows: list[int]) -> Head:
    """The head with the very numbers that the layer now has."""
    bias = None if layer.bias is None else layer.bias[torch.tensor(rows)]
    return head.replace(weight=layer.weight[torch.tensor(rows)], bias=bias)
