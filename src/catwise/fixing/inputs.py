"""What is checked before the first image is read, and what the results depend on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._configs import FixConfig
from catwise._version import __version__
from catwise.errors import ConfigError, HeadError, IdError
from catwise.fixing.folder import checkpoint_name, labels_digest
from catwise.fixing.images import FoundImages, find_images, places
from catwise.joining import match_categories, name_rows
from catwise.labels import ChosenCells, PartialLabels
from catwise.models import LoadedModel, Preprocessing
from catwise.models.layers import weights_digest
from catwise.models.registry import load_model
from catwise.models.sources import ImageSource

SPLITS: Final = ("train", "valid", "test")
_NOT_IN_RESULTS: Final = ("workers", "device", "paper", "thumbnails")


def checked_splits(labels: Mapping[str, PartialLabels]) -> dict[str, PartialLabels]:
    """The splits in order: "train" at least, each with ids, no image or group in two."""
    if wrong := [name for name in labels if name not in SPLITS]:
        raise ConfigError(f"there is no split {wrong[0]!r}.", expected=", ".join(SPLITS))
    if "train" not in labels:
        raise ConfigError("training labels are needed.", found=", ".join(labels) or "no split")
    if unnamed := [name for name, part in labels.items() if part.ids is None]:
        raise ConfigError(
            f"the {unnamed[0]} labels have no ids.",
            expected="an id of each image, to find its file by",
            remedy="name the column of the ids: --id-column",
        )
    splits = {name: labels[name] for name in SPLITS if name in labels}
    for what in ("ids", "groups"):
        _refuse_common(what, {name: getattr(part, what) for name, part in splits.items()})
    return splits


def _refuse_common(what: str, names: Mapping[str, NDArray[Any] | None]) -> None:
    """An image or a patient in two splits makes the scores too good."""
    seen: dict[str, str] = {}
    for split, values in names.items():
        unique = [] if values is None else np.unique(values).tolist()
        if common := [one for one in unique if one in seen]:
            raise IdError(
                f"{len(common):,} {what} are in the {seen[common[0]]} and the {split} labels.",
                found=", ".join(map(repr, common[:3])),
                expected="each image and each group (patient) in one split only",
                remedy="split again, by group" if what == "groups" else "correct the split column",
            )
        seen |= dict.fromkeys(unique, split)


def checked_model(
    model: str | LoadedModel,
    checkpoint: str | os.PathLike[str] | None,
    options: Mapping[str, Any] | None,
    splits: Mapping[str, PartialLabels],
    preprocessing: Preprocessing | None,
) -> LoadedModel:
    """The model, loaded, with a head whose rows have the names of the label columns."""
    if isinstance(model, LoadedModel):
        loaded = dataclasses.replace(model, notes=list(model.notes))
    else:
        loaded = load_model(model, checkpoint=checkpoint, **dict(options or {}))
    if loaded.head is None:
        raise HeadError(f"the classification layer of {loaded.name} cannot be read.")
    if loaded.checkpoint is None:
        raise ConfigError(
            f"{loaded.name} was loaded without a checkpoint: there is nothing to repair.",
            remedy="give the file with its weights: --checkpoint",
        )
    if loaded.request is None:
        raise ConfigError(
            f"{loaded.name} cannot be loaded again to verify what is written.",
            remedy="let load_model load it: 'python:MODULE:FUNCTION' calls a function of yours",
        )
    if preprocessing is not None:
        loaded.preprocessing = preprocessing.for_layout(loaded.preprocessing.layout)
    named = name_rows(loaded.head, splits["train"].categories)
    if named is not loaded.head:
        loaded.head = named
        loaded.notes.append("the rows of the head were named after the label columns, in order.")
    for name, part in splits.items():
        match_categories(loaded.head.categories, part.categories, name=name)
    return loaded


def input_note(take: Preprocessing) -> list[str]:
    """A word of warning where it is not known what the model was trained on."""
    if not take.source.endswith(("(untrained)", "assumed")):
        return []
    note = (
        "the checkpoint does not say what input it was trained on, so this is the architecture's "
        "default. If it is not right (the score before is then too low), say so: --input-size, "
        "--crop-pct, --mean, --std."
    )
    return [note]


def joined_images(
    images: ImageSource | FoundImages | str | os.PathLike[str],
    splits: Mapping[str, PartialLabels],
    *,
    skip_missing: bool,
) -> tuple[ImageSource, list[dict[str, str]], list[str]]:
    """The images, the labelled ones that are not there, and what to know."""
    every = np.concatenate([ids_of(part) for part in splits.values()])
    if isinstance(images, FoundImages):
        found = images
    elif isinstance(images, ImageSource):
        found = _among(images, every, skip_missing=skip_missing)
    else:
        found = find_images(images, every, skip_missing=skip_missing)
    notes = []
    if found.n_unlabelled:
        notes.append(f"{found.n_unlabelled:,} images have no labels and are not used.")
    missing = set(found.missing)
    left_out = [
        {"id": one, "split": name, "reason": "no image"}
        for name, part in splits.items()
        for one in (ids_of(part).tolist() if missing else ())
        if one in missing
    ]
    if left_out:
        notes.append(f"{len(left_out):,} labelled images are not there and are left out.")
    return found.source, left_out, notes


def _among(source: ImageSource, ids: NDArray[np.str_], *, skip_missing: bool) -> FoundImages:
    missing = ids[places(source, ids) < 0].tolist()
    if missing and not (skip_missing and len(missing) < len(ids)):
        raise IdError(
            f"{len(missing):,} of {len(ids):,} labelled images are not among the images.",
            found=", ".join(map(repr, missing[:3])),
        )
    return FoundImages(source, tuple(missing), len(source) - (len(ids) - len(missing)))


def ids_of(labels: PartialLabels) -> NDArray[np.str_]:
    """Ids of labels that have them."""
    return np.empty(0, dtype=np.str_) if labels.ids is None else labels.ids


def without(labels: PartialLabels, left_out: list[dict[str, str]]) -> PartialLabels:
    """The labels of images that can be used."""
    gone = {row["id"] for row in left_out}
    kept = [row for row, one in enumerate(ids_of(labels).tolist()) if one not in gone]
    return (
        labels if len(kept) == labels.n_rows else labels.take_rows(np.array(kept, dtype=np.int64))
    )


def what_decides(
    model: LoadedModel,
    source: ImageSource,
    splits: Mapping[str, PartialLabels],
    left_out: list[dict[str, str]],
    config: FixConfig,
    *,
    chosen: ChosenCells | None = None,
) -> dict[str, str]:
    """What the results depend on, by the names that users know."""
    decides = {"catwise": __version__, "torch": torch.__version__}
    decides |= {"model": model.name, "classification layer": model.layer}
    if model.checkpoint is not None:
        decides["checkpoint's name"] = model.checkpoint.name
    if model.module is not None:
        decides["checkpoint"] = f"sha256:{weights_digest(model.module)}"
    for key, value in model.preprocessing.to_dict().items():
        if key != "source":
            decides[f"preprocessing {key.replace('_', ' ')}"] = str(value)
    decides["images"] = str(source.origin)
    for name, part in splits.items():
        decides[f"{name} labels"] = labels_digest(part)
    decides["device"] = (config.device or "cpu").partition(":")[0]
    if left_out:
        decides["images that are not there"] = f"{len(left_out):,}"
    for field in dataclasses.fields(config):
        if field.name not in _NOT_IN_RESULTS:
            decides[field.name.replace("_", " ")] = str(getattr(config, field.name))
    if config.preset == "paper":
        decides["options of the preset"] = str(config.paper)
    if chosen is not None:
        decides["chosen cells"] = chosen.digest
    return decides


def target_name(model: LoadedModel) -> str:
    """What the new checkpoint is called."""
    if model.checkpoint is None:  # checked_model has seen to it
        raise ConfigError(f"{model.name} was loaded without a checkpoint.")
    return checkpoint_name(model.checkpoint.resolve().name)
