"""`finetune`: a module in memory and its loaders in; the tuned module and its account out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data as torch_data

from catwise.errors import ConfigError, LabelError, ShapeError, reason_of
from catwise.labels import PartialLabels
from catwise.labels.encodings import Encoding
from catwise.models import layers
from catwise.models.extraction import Extracted, extract
from catwise.models.ways import Precision
from catwise.progress import ProgressCallback
from catwise.tuning import TuneResult, tune

IMAGE_KEYS: Final = ("images", "image", "pixel_values", "img")
LABEL_KEYS: Final = ("labels", "label", "targets", "target", "y")
ID_KEYS: Final = ("ids", "id", "image_ids", "image_id")
GROUP_KEYS: Final = ("groups", "group")


class Finetuned(NamedTuple):
    """What `finetune` gives; ``model, result = finetune(…)`` takes it apart.

    Attributes:
        model: the module with the tuned head: a copy, unless it was to be changed in place.
        result: head, records, summary and all that `catwise.tune` tells.
    """

    model: nn.Module
    result: TuneResult


def finetune(
    model: nn.Module,
    train_loader: Any,
    valid_loader: Any = None,
    *,
    test_loader: Any = None,
    encoding: str | Encoding = "nan",
    categories: Sequence[str] | None = None,
    layer: str | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "exact",
    compiled: bool = False,
    dtype: Any = "float16",
    check: bool = True,
    inplace: bool = False,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Finetuned:
    """Tune the last layer of a module in memory, category by category, on the labels it is given.

    The images of each loader go through the module once, in evaluation mode; what goes into the
    classification layer is kept in memory, and `catwise.tune` does the rest. The head is bit for
    bit that of ``catwise extract`` and ``catwise tune`` on the same images in the same batches,
    where images have the same ids and categories the same names.

    A batch is a tuple of images, labels and maybe a list of ids (texts); or a table with
    ``"images"`` or ``"pixel_values"``, with ``"labels"``, and maybe ``"ids"`` and ``"groups"``.

    Args:
        model: a module whose last layer is linear; one wrapped for several processes or compiled is
            unwrapped.
        train_loader: batches of the images that the model was trained on. A `DataLoader` that
            shuffles, draws or drops rows is read in the order of its data set instead, all of it.
            Give it images as they are at test time, without random augmentation.
        valid_loader: the same of other images, or None, which tells less.
        test_loader: the same of images that fit and choose nothing, or None.
        encoding: what the labels' values mean, a name as in `PartialLabels.from_array`; "nan": NaN
            is unknown.
        categories: names of the labels' columns, in order; "0", "1", … when not given.
        layer: name of the classification layer, where it cannot be told.
        device: where to run; None: where the model is.
        precision: "exact" or "fast", as in `catwise.extract`.
        compiled: compile the module first, as in `catwise.extract`.
        dtype: of the features that are kept: float16, bfloat16 or float32.
        check: compare the layer's output with the model's logits; False for a model that returns
            something else.
        inplace: change the module itself instead of a copy.
        progress: called now and then.
        **options: of `catwise.tune`: metric, preset, methods, validation, seed, policy, config, …

    Returns:
        The module, on its device and in its mode, and the result.

    Raises:
        HeadError: If the layer is not clear, cannot be used, or does not make the model's logits.
        LabelError: If a batch has no labels, or the encoding does not know a value.
        ConfigError: If an option or a loader is not possible, or the module cannot be copied.
        CatwiseError: As `catwise.extract` and `catwise.tune`.

    >>> import catwise
    >>> random = torch.Generator().manual_seed(0)
    >>> x = torch.randn(300, 1, 2, 2, generator=random)
    >>> y = (x.flatten(1)[:, :2] > 0.5).float()
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> _ = model[1].weight.data.copy_(torch.eye(2, 4) + 0.3)
    >>> halves = [torch_data.TensorDataset(x[i::2], y[i::2]) for i in (0, 1)]
    >>> tuned, result = catwise.finetune(model, *map(torch_data.DataLoader, halves))
    >>> torch.equal(tuned[1].weight, result.head.weight)
    True
    """
    module = unwrapped(model)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            "finetune needs a module.",
            found=f"a {type(model).__name__}",
            remedy="for a checkpoint: catwise.fix, or catwise fix",
        )
    loaders = {"train": train_loader, "valid": valid_loader, "test": test_loader}
    given = {name: labelled_loader(one, name) for name, one in loaders.items() if one is not None}
    found = _layer_of(module, layer, given["train"])
    tuned = module if inplace else _copied(module)
    how: dict[str, Any] = {"layer": found, "device": device, "dtype": dtype}
    how |= {"precision": precision, "compiled": compiled}
    pairs = {
        name: one.pair(
            extract(module, one, **how, check=check, progress=progress), encoding, categories
        )
        for name, one in given.items()
    }
    head = layers.head_of(module.get_submodule(found), name=found).to("cpu")
    if categories is not None:
        head = head.replace(categories=categories)
    others: dict[str, Any] = {"test": pairs.get("test"), "progress": progress, **options}
    result = tune(head, pairs["train"], pairs.get("valid"), **others)
    result.notes.extend(note for one in given.values() for note in one.notes)
    layers.put_head(tuned.get_submodule(found), result.head, name=found)
    return Finetuned(tuned, result)


def unwrapped(model: Any) -> Any:
    """The module inside one that is wrapped for several processes or devices, or compiled."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, parallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, parallel) else model._orig_mod  # noqa: SLF001
    return model


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise ConfigError(
            f"the {type(module).__name__} cannot be copied.",
            found=reason_of(error, named=True),
            remedy="inplace=True changes the module itself",
        ) from error


def _layer_of(module: nn.Module, layer: str | None, loader: LabelledLoader) -> str:
    """The classification layer; where its name does not tell, two images do."""

    def run() -> object:
        if iter(loader.loader) is loader.loader:
            raise ConfigError(
                f"the {loader.name} loader can be read once only, and the layer is not clear.",
                remedy="name it with layer='…', or give a DataLoader or a list of batches",
            )
        first = next(iter(loader))
        images = (first[0] if isinstance(first, tuple) else first)[:2]
        return layers.call(module, images, None)

    return layers.find_layer(module, layer, run=run)[0]


# -------------------------------------------------------------------------------- loaders


class _Parts(NamedTuple):
    """What a batch holds."""

    images: Tensor
    labels: Any
    ids: list[str] | None
    groups: list[str] | None


@dataclass
class LabelledLoader:
    """Batches of images, whose labels, ids and groups are kept as they go by.

    Attributes:
        loader: gives the batches.
        name: of the split.
        notes: what to know, a sentence each.
        seen: labels, ids and groups of the batches of the last pass.
    """

    loader: Any
    name: str
    notes: list[str]
    seen: list[tuple[Any, list[str] | None, list[str] | None]]

    def __iter__(self) -> Iterator[Any]:
        self.seen = []
        for batch in self.loader:
            parts = _parts(batch, self.name)
            self.seen.append(parts[1:])
            yield parts.images if parts.ids is None else (parts.images, parts.ids)

    def pair(
        self, features: Any, encoding: str | Encoding, categories: Sequence[str] | None
    ) -> tuple[Tensor, PartialLabels]:
        """Features and labels of the pass that made them."""
        assert isinstance(features, Extracted)  # noqa: S101  # nothing is written
        values = np.concatenate([_numbers(labels, self.name) for labels, _, _ in self.seen])
        if len(values) != len(features.features):
            raise ShapeError(
                f"the {self.name} loader does not give a row of labels for each image.",
                found=f"{len(values):,} rows of labels, {len(features.features):,} images",
            )
        labels = PartialLabels.from_array(
            values,
            encoding=encoding,
            ids=features.ids,
            categories=categories,
            groups=self._joined(2),
        )
        return features.features, labels

    def _joined(self, part: int) -> list[str] | None:
        """Texts of all batches, if all have them."""
        every = [seen[part] for seen in self.seen]
        return None if None in every else [text for texts in every for text in texts or ()]


def labelled_loader(loader: Any, name: str) -> LabelledLoader:
    """A loader whose rows come in the order of its data set, each once."""
    if isinstance(loader, LabelledLoader):
        return loader
    ordered = _in_order(loader)
    notes = []
    if ordered is not loader:
        notes.append(
            f"The {name} loader shuffles, draws or drops rows: all rows of its data set were "
            "read, in its order."
        )
    if not hasattr(ordered, "__iter__"):
        raise ConfigError(
            f"the {name} loader gives no batches.",
            found=f"a {type(loader).__name__}",
            expected="a DataLoader, or any iterable of batches of images and labels",
        )
    return LabelledLoader(ordered, name, notes, [])


def _in_order(loader: Any) -> Any:
    """A `DataLoader` that gives every row of a map-style data set once, in order."""
    batches: Any = getattr(loader, "batch_sampler", None)
    shared = False
    while hasattr(batches, "batch_sampler"):  # of accelerate, a process's share
        batches, shared = batches.batch_sampler, True
    if (
        not isinstance(loader, torch_data.DataLoader)
        or type(batches) is not torch_data.BatchSampler
    ):
        return loader
    dataset: Any = loader.dataset
    sampler = batches.sampler
    if isinstance(sampler, torch_data.SubsetRandomSampler):
        dataset = torch_data.Subset(dataset, sorted(sampler.indices))
    drawn = (
        torch_data.RandomSampler,
        torch_data.WeightedRandomSampler,
        torch_data.DistributedSampler,
        torch_data.SubsetRandomSampler,
    )
    if not (isinstance(sampler, drawn) or batches.drop_last or shared):
        return loader
    return torch_data.DataLoader(
        dataset,
        batch_size=batches.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),
    )


def _parts(batch: Any, name: str) -> _Parts:
    """Images, labels, ids and groups of a batch."""
    if isinstance(batch, Mapping):
        found = [
            next((batch[key] for key in keys if key in batch), None)
            for keys in (IMAGE_KEYS, LABEL_KEYS, ID_KEYS, GROUP_KEYS)
        ]
    elif isinstance(batch, (tuple, list)) and batch:
        texts = [part for part in batch[2:] if _are_texts(part)]
        found = [batch[0], batch[1] if len(batch) > 1 else None, *texts[:1], *[None] * 2][:4]
    else:
        found = [batch, None, None, None]
    images, labels, ids, groups = found
    if not isinstance(images, Tensor) or labels is None or _are_texts(labels):
        raise LabelError(
            f"a batch of the {name} loader does not hold images and labels.",
            found=_described(batch),
            expected="(images, labels), or a table with 'images' (or 'pixel_values') and 'labels'",
        )
    return _Parts(
        images, labels, *(None if t is None else list(map(str, t)) for t in (ids, groups))
    )


def _are_texts(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and all(isinstance(one, str) for one in part)


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return "a table with " + (", ".join(map(repr, batch)) or "nothing")
    if isinstance(batch, (tuple, list)):
        return "(" + ", ".join(type(part).__name__ for part in batch) + ")"
    return f"a {type(batch).__name__}"


def _numbers(labels: Any, name: str) -> Any:
    """Labels of a batch as an (n, C) array."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = (labels.float() if labels.dtype == torch.bfloat16 else labels).numpy()
    values = np.asarray(labels)
    if values.ndim != 2:
        raise ShapeError(
            f"labels of the {name} loader are not one row for each image.",
            found=f"shape {values.shape}",
            expected="(images, categories)",
        )
    return values
