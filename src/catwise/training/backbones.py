"""The model that training starts from, and the checkpoint that it leaves."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor, nn

from catwise._io import atomic_folder, write_bytes
from catwise.errors import ConfigError, HeadError, ShapeError
from catwise.models import LoadedModel, layers
from catwise.models.adapters.python import takes_argument
from catwise.models.registry import load_model

_KINDS: Final = ("timm", "torchvision", "transformers", "python")
FILE: Final = "model.safetensors"
FOLDER: Final = "model"
_PROCESSOR: Final = "preprocessor_config.json"


def start_model(
    spec: str,
    categories: Sequence[str],
    *,
    checkpoint: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Load or make the model that training starts from, with a row for each category.

    Weights are those of the checkpoint (or of the transformers folder); without one they are drawn
    by the seed. A classification layer with another number of rows is replaced by a new one.

    Raises:
        ConfigError: If the kind of model cannot be trained.
        ShapeError: If a user's function makes another number of rows, and does not take
            `n_categories`.
        CatwiseError: As `load_model`.
    """
    kind = spec.partition(":")[0]
    if kind not in _KINDS and ":" in spec:
        raise ConfigError(
            f"a model of the kind {kind!r} cannot be trained.",
            expected=", ".join(_KINDS),
            remedy="python:MODULE:FUNCTION takes any module",
        )
    given = dict(options or {})
    if checkpoint is None and kind != "transformers":
        if kind != "python" or takes_argument(spec.partition(":")[2], "n_categories"):
            given["n_categories"] = len(categories)
    elif kind != "transformers":
        given["checkpoint"] = checkpoint
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = load_model(spec, **given)
        _refuse_wrapped(loaded)
        if loaded.head is None or loaded.head.n_categories != len(categories):
            _refuse_fixed(spec, loaded, len(categories))
            _renew_layer(loaded, len(categories))
            loaded.notes.append(
                f"the layer {loaded.layer!r} is new: {len(categories):,} rows for the categories."
            )
    if kind == "transformers":
        _name_labels(loaded.module, categories)
    return loaded


def _refuse_wrapped(loaded: LoadedModel) -> None:
    if loaded.module is None or loaded.layer == "joined":
        raise ConfigError(
            f"{loaded.name} has no single linear classification layer to train.",
            remedy="for two heads: heads='first' (--model-arg heads=first)",
        )


def _refuse_fixed(spec: str, loaded: LoadedModel, n_categories: int) -> None:
    """Refuse a user's function that could not build again what would be trained."""
    kind, _, name = spec.partition(":")
    if kind == "python" and not takes_argument(name, "n_categories"):
        rows = "none" if loaded.head is None else f"{loaded.head.n_categories:,} rows"
        raise ShapeError(
            f"the model of {spec} has not a row for each category.",
            found=rows,
            expected=f"{n_categories:,}",
            remedy="let the function take the number, def build(…, n_categories): what is trained "
            "can then be loaded again",
        )


def _renew_layer(loaded: LoadedModel, n_categories: int) -> None:
    """Put a new layer of that many rows in the place of the classification layer."""
    module = loaded.module
    assert module is not None  # noqa: S101  # _refuse_wrapped has seen to it
    old = module.get_submodule(loaded.layer)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, n_categories, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, n_categories, 1, bias=old.bias is not None)
    else:
        raise HeadError(
            f"the layer {loaded.layer!r} of {loaded.name} cannot get other rows.",
            found=type(old).__name__,
            expected="a Linear or a 1×1 Conv2d",
        )
    parent, _, name = loaded.layer.rpartition(".")
    setattr(module.get_submodule(parent), name, new)


def _name_labels(module: Any, categories: Sequence[str]) -> None:
    """Say in the configuration of a transformers model what its rows are."""
    module.config.num_labels = module.num_labels = len(categories)
    module.config.id2label = dict(enumerate(categories))
    module.config.label2id = {name: row for row, name in enumerate(categories)}


def save_weights(module: nn.Module, loaded: LoadedModel, folder: Path) -> Path:
    """Write a module as `load_model` reads it; whole or not at all. Returns where."""
    if not loaded.name.startswith("transformers:"):
        state = {
            name: part.detach().cpu().contiguous().clone()
            for name, part in module.state_dict().items()
        }
        write_bytes(folder / FILE, save(state, metadata={"format": "pt"}))
        return folder / FILE
    target, saved = folder / FOLDER, module
    with atomic_folder(target, overwrite=True) as temporary:
        saved.save_pretrained(temporary)  # type: ignore[operator]
        start = Path(loaded.name.partition(":")[2]) / _PROCESSOR
        if start.is_file():
            shutil.copyfile(start, temporary / _PROCESSOR)
    return target


def weights_place(loaded: LoadedModel, folder: Path) -> Path:
    """Where `save_weights` writes."""
    return folder / (FOLDER if loaded.name.startswith("transformers:") else FILE)


class LayerOutput:
    """The logits: what the classification layer gave in the last forward pass."""

    def __init__(self, module: nn.Module, layer: str, argument: str | None) -> None:
        self.module, self.argument = module, argument
        self._seen: list[Tensor] = []
        self._layer = layer

    @contextlib.contextmanager
    def watching(self) -> Iterator[LayerOutput]:
        """Watch the layer while the block runs."""
        layer = self.module.get_submodule(self._layer)
        hook = layer.register_forward_hook(lambda _module, _args, out: self._seen.append(out))
        with hook:
            yield self

    def __call__(self, images: Tensor) -> Tensor:
        """(n, C) logits of images."""
        self._seen.clear()
        layers.call(self.module, images, self.argument)
        shape = [tuple(out.shape) for out in self._seen]
        if len(self._seen) != 1 or len(self._seen[0].flatten(1).shape) != 2 or self._uneven():
            raise ShapeError(
                f"the layer {self._layer!r} does not give one row of logits for each image.",
                found=", ".join(map(str, shape)) or "it did not run",
                expected="(images, categories), once",
            )
        return self._seen.pop().flatten(1)

    def _uneven(self) -> bool:
        """Whether the layer scores several places of an image."""
        out = self._seen[0]
        return out.ndim > 2 and out.flatten(2).shape[2] != 1
