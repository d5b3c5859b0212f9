"""The model of a cell before it is tuned: trained by its scheme, with the features of its rows.

It is kept in the study's folder, so that another method needs no training: ``head.safetensors``,
which is written last, and the feature store ``features``. Models of images are trained as `catwise
train` does it, in the folder ``trained``, and resume where they were stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from catwise._configs import TrainConfig
from catwise._lock import remove
from catwise.errors import ConfigError, HeadError
from catwise.features import FeatureStore, open_store
from catwise.fixing.images import places
from catwise.fixing.inputs import ids_of
from catwise.heads import Head, load_head, save_head
from catwise.joining import aligned_features, name_rows
from catwise.labels import PartialLabels, make_targets
from catwise.models import LoadedModel, Preprocessing
from catwise.models.extraction import extract
from catwise.models.loading import ImageRow, ImageRows
from catwise.models.registry import load_model
from catwise.studies.cells import Cell
from catwise.studies.declared import AS_GIVEN, VECTORS, BackboneOptions, Study
from catwise.studies.sources import StudyData, load_data, weights_place
from catwise.training.loop import TrainData, Trainer
from catwise.training.processes import Processes
from catwise.training.run import RESERVED, is_better, prepare_train, with_reserve

HEAD: Final = "head.safetensors"
FEATURES: Final = "features"
_TRAINED: Final = "trained"
_LAYER: Final = "head"
_BATCH: Final = 256


class Base(NamedTuple):
    """A model before it is tuned.

    Attributes:
        head: its last layer, with the names of the categories.
        splits: labels by split, those of training with what the cell knows; "reserved" where
            images were kept from the model.
        store: features of all rows, by id.
    """

    head: Head
    splits: dict[str, PartialLabels]
    store: FeatureStore

    def pair(self, split: str) -> tuple[Any, PartialLabels] | None:
        """Features and labels of a split; None without it."""
        labels = self.splits.get(split)
        if labels is None:
            return None
        assert self.store.ids is not None  # noqa: S101  # stores of studies have ids
        at = {one: row for row, one in enumerate(self.store.ids.tolist())}
        rows = np.array([at[one] for one in ids_of(labels).tolist()], dtype=np.int64)
        return aligned_features(self.store, rows), labels

    @property
    def held_out(self) -> tuple[Any, PartialLabels] | None:
        """What `tune` takes as validation: the reserved images, else those of the validation."""
        return self.pair(RESERVED if RESERVED in self.splits else "valid")


class _Order(NamedTuple):
    """A model that is to be made."""

    study: Study
    cell: Cell
    config: TrainConfig
    data: StudyData
    splits: dict[str, PartialLabels]
    folder: Path

    @property
    def backbone(self) -> BackboneOptions:
        return self.study.backbones[self.cell.backbone]

    @property
    def is_trained(self) -> bool:
        """Whether there is a scheme to train by."""
        return self.study.schemes[self.cell.scheme].scheme != AS_GIVEN


def make_base(study: Study, cell: Cell, folder: Path) -> Base:
    """Train the model of a cell and keep it in a folder; what is there already is read.

    Raises:
        ConfigError: If backbone, scheme and data do not go together.
        CatwiseError: As `train`, `load_model` and `extract`.
    """
    data, config = load_data(study, cell.data), config_of(study, cell)
    draws = study.data[cell.data].draws
    splits = with_reserve(data.known(cell.known, cell.seed, draws), config)
    if not (folder / HEAD).is_file():
        backbone = study.backbones[cell.backbone]
        if (backbone.model == VECTORS) != (data.features is not None):
            raise ConfigError(
                f"the backbone {cell.backbone!r} does not take what {cell.data!r} holds.",
                found="features" if data.features is not None else "images",
                expected=f"model = {VECTORS!r} over features, another model over images",
            )
        make = _of_vectors if backbone.model == VECTORS else _of_images
        head = make(_Order(study, cell, config, data, splits, folder))
        save_head(head, folder / HEAD)
        remove(folder / _TRAINED / "state.pt")  # features and head are what is needed now
    return Base(load_head(folder / HEAD), splits, open_store(folder / FEATURES))


def config_of(study: Study, cell: Cell) -> TrainConfig:
    """The options of `train` for a cell."""
    scheme = study.schemes[cell.scheme]
    given = study.training(cell.scheme, cell.backbone)
    if scheme.scheme == AS_GIVEN:
        return TrainConfig(reserve=cell.reserve, seed=cell.seed, metric=study.metric, **given)
    return TrainConfig(
        scheme=str(scheme.scheme),
        scheme_options=scheme.options,
        policy=load_data(study, cell.data).policy,
        reserve=cell.reserve,
        seed=cell.seed,
        metric=study.metric,
        **given,
    )


# ------------------------------------------------------------------------------------ features


class VectorRows(Dataset[ImageRow]):
    """Rows of features where the trainer expects images."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = torch.from_numpy(values)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> ImageRow:
        return ImageRow(index, self.values[index])


class Perceptron(nn.Module):
    """Standardised features, hidden layers with ReLU, and one linear layer."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self, values: NDArray[np.float32], n_categories: int, given: BackboneOptions
    ) -> None:
        super().__init__()
        spread = values.std(0)
        scale = np.where(spread > 0, spread, 1)
        self.register_buffer("mean", torch.from_numpy(values.mean(0)))
        self.register_buffer("scale", torch.from_numpy(scale))
        sizes = (values.shape[1], *given.hidden)
        layers: list[nn.Module] = []
        for wide, deep in itertools.pairwise(sizes):
            layers += [nn.Linear(wide, deep), nn.ReLU(), nn.Dropout(given.dropout)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], n_categories)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, C) logits of (n, D) rows."""
        return self.head(self.body((rows - self.mean) / self.scale))  # type: ignore[no-any-return]


def _of_vectors(order: _Order) -> Head:
    """Train a small network over features, and keep what goes into its last layer."""
    _, cell, config, data, splits, folder = order
    if not order.is_trained:
        raise ConfigError(f"the scheme {AS_GIVEN!r} needs a backbone with a checkpoint.")
    train, valid = splits["train"], splits.get("valid")
    values = data.rows(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        module = Perceptron(values, train.n_categories, order.backbone)
    made = make_targets(train, config.policy, seed=config.seed)
    seen = TrainData(
        VectorRows(values),  # type: ignore[arg-type]  # rows of another kind
        torch.from_numpy(made.target),
        torch.from_numpy(made.weight),
        None if valid is None else VectorRows(data.rows(valid)),  # type: ignore[arg-type]
        valid,
    )
    trainer = Trainer(module, _LAYER, None, data=seen, config=config, processes=Processes())
    best: dict[str, Any] = {}
    kept = copy.deepcopy(trainer.state.model)
    while trainer.state.epoch < config.epochs:
        record = trainer.run_epoch(lambda _rows: None)
        if is_better(record, best, config.metric):
            best, kept = dict(record), copy.deepcopy(trainer.state.model)
    parts = list(splits.values())
    rows = torch.from_numpy(np.concatenate([data.rows(part) for part in parts]))
    ids = np.concatenate([ids_of(part) for part in parts])
    extract(kept, rows, folder / FEATURES, layer=_LAYER, ids=ids, batch_rows=_BATCH, overwrite=True)
    last = kept.get_submodule(_LAYER)
    return Head(last.weight, last.bias, categories=train.categories)


# -------------------------------------------------------------------------------------- images


def _of_images(order: _Order) -> Head:
    """Train as `catwise train` does it, and keep the features of all images."""
    study, cell, config, data, _, folder = order
    backbone = order.backbone
    checkpoint = weights_place(study, cell.backbone)
    spec, given = backbone.model, _loading(backbone)
    if order.is_trained:
        assert data.images is not None  # noqa: S101  # make_base has seen to it
        draws = study.data[cell.data].draws
        job = prepare_train(
            _spec(study, spec),
            data.images,
            data.known(cell.known, cell.seed, draws),  # which reserves by itself
            folder / _TRAINED,
            checkpoint=None if spec.startswith("transformers:") else checkpoint,
            model_options=given,
            preprocessing=lambda own: _input(own, backbone),
            config=config,
            overwrite=True,
        )
        checkpoint = job.run().checkpoint
    if checkpoint is None:
        raise ConfigError(
            f"the scheme {AS_GIVEN!r} needs a checkpoint.",
            expected=f"[backbones.{cell.backbone}] checkpoint = FILE",
        )
    if spec.startswith("transformers:"):
        loaded = load_model(f"transformers:{checkpoint}", **given)
    else:
        n_categories = order.splits["train"].n_categories
        loaded = load_model(spec, checkpoint=checkpoint, n_categories=n_categories, **given)
    return _extracted(order, loaded)


def _loading(backbone: BackboneOptions) -> dict[str, Any]:
    """What `load_model` is given besides the model and the checkpoint."""
    own = dict(backbone.options)
    given: dict[str, Any] = {key: own.pop(key) for key in ("layer", "prefix") if key in own}
    return {**given, **({"model_args": own} if own else {})}


def _spec(study: Study, spec: str) -> str:
    """The name of a model; the folder of a transformers model from the study's root."""
    kind, _, rest = spec.partition(":")
    return f"{kind}:{study.place(Path(rest))}" if kind == "transformers" else spec


def _input(own: Preprocessing, backbone: BackboneOptions) -> Preprocessing:
    """The preprocessing with what the study says of it."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in backbone.preprocessing.items()
    }
    try:
        return dataclasses.replace(own, **given)
    except TypeError as error:
        raise ConfigError(
            "the preprocessing has no such option.",
            found=", ".join(given),
            expected=", ".join(item.name for item in dataclasses.fields(Preprocessing)),
        ) from error


def _extracted(order: _Order, loaded: LoadedModel) -> Head:
    """Write the features of all images; the head with the names of the categories."""
    _, _, config, data, splits, folder = order
    assert data.images is not None  # noqa: S101  # make_base has seen to it
    if loaded.head is None:
        raise HeadError(f"the classification layer of {loaded.name} cannot be read.")
    own = loaded.preprocessing
    loaded.take_input(_input(own, order.backbone).for_layout(own.layout))
    ids = np.concatenate([ids_of(part) for part in splits.values()])
    source = data.images.source
    rows = ImageRows(source, loaded.preprocessing, rows=places(source, ids))
    way: dict[str, Any] = {"num_workers": config.workers, "device": config.device}
    extract(loaded, rows, folder / FEATURES, ids=ids, overwrite=True, **way)
    return name_rows(loaded.head, splits["train"].categories)
