"""What a classifier is given: images in any form, or features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from torch import Tensor

from catwise._names import POOLS
from catwise.errors import FeatureError, check_choice
from catwise.features import CategoryFeatures, Features, FeatureStore, read_features
from catwise.features.inputs import in_memory
from catwise.features.manifest import MANIFEST_FILE
from catwise.features.places import is_url
from catwise.metrics.pooling import Named, Pooling, is_image
from catwise.models.given import GivenImages, is_picture, is_place
from catwise.models.loading import ImageRows
from catwise.models.sources import FolderImages, ImageSource, TarImages, find_shards

Images: TypeAlias = ImageSource | ImageRows | Tensor
Rows: TypeAlias = Features | CategoryFeatures

FEATURE_FILES: Final = (".npy", ".npz", ".safetensors")
_EXPECTED: Final = (
    "a folder of images or tar shards, a path or a list of paths, Pillow images, uint8 pixels "
    "(H, W, 3) or (N, H, W, 3), preprocessed images as a float tensor (N, channels, H, W), or "
    "features: (N, D), a file of them, or a feature store"
)


def read_inputs(given: Any) -> Images | Rows:
    """Images or features, told apart by what they are.

    Raises:
        FeatureError: If they are neither.
        CatwiseError: As the readers of either.
    """
    if isinstance(given, (ImageSource, ImageRows, Features, CategoryFeatures)):
        return given
    if is_place(given):
        return _from_place(given)
    is_input = isinstance(given, Tensor) and given.ndim == 4 and given.is_floating_point()
    if is_input or isinstance(given, FeatureStore):
        return given if is_input else in_memory(given)
    if (images := _images_in(given)) is not None:
        return GivenImages(images)
    if not (hasattr(given, "shape") or isinstance(given, (list, tuple))):
        raise _unclear(given)
    if getattr(given, "ndim", 2) == 4:
        raise _unclear(given)
    return in_memory(given)


def _images_in(given: Any) -> list[Any] | None:
    """The images that are given one by one; None if they are something else."""
    if isinstance(given, bytes) or is_picture(given):
        return [given]
    pixels = isinstance(given, np.ndarray) and given.dtype == np.uint8
    several = isinstance(given, (list, tuple)) and bool(given) and _are_images(given)
    return list(given) if pixels or several else None


def _are_images(given: Sequence[Any]) -> bool:
    return any(is_place(one) or isinstance(one, bytes) or is_picture(one) for one in given)


def _unclear(given: Any) -> FeatureError:
    shape = f" of shape {tuple(given.shape)}, {given.dtype}" if hasattr(given, "shape") else ""
    return FeatureError(
        "what is to be classified is neither images nor features.",
        found=f"a {type(given).__name__}{shape}",
        expected=_EXPECTED,
    )


def _from_place(given: str | os.PathLike[str]) -> Images | Rows:
    path = Path(given)
    if is_url(given) or path.suffix.lower() in FEATURE_FILES or (path / MANIFEST_FILE).is_file():
        return read_features(given, check=False)
    if path.is_dir() or path.suffix.lower() == ".tar":
        shards = find_shards(path)
        return TarImages(shards) if shards else FolderImages.scan(path)
    return GivenImages([given])


def store_of(rows: Rows) -> FeatureStore | None:
    """The feature store that rows come from, if they do."""
    values = rows.values
    while hasattr(values, "values"):
        values = values.values
    return values if isinstance(values, FeatureStore) else None


def row_ids(rows: Rows, start: int, stop: int) -> list[str]:
    """Ids of some rows; their numbers where they have none."""
    if rows.ids is None:
        return [str(row) for row in range(start, stop)]
    return [str(one) for one in rows.ids[start:stop].tolist()]


def check_pool(
    by: Named, pool: str, given: Images | Rows, ids: Sequence[str] | None = None
) -> None:
    """Refuse ids that do not tell what is pooled, before anything is run.

    Raises:
        ConfigError: If an option is not possible, or ids tell no studies.
        IdError: If an id has no group.
    """
    check_choice("pool", pool, POOLS)
    if is_image(by):
        return
    if ids is None:
        ids = _ids_of(given)
    Pooling.of_ids(by, np.array(ids, dtype=np.str_), pool)


def _ids_of(given: Images | Rows) -> list[str]:
    """Ids of all rows; their numbers where they have none."""
    if isinstance(given, Tensor):
        return [str(row) for row in range(len(given))]
    if isinstance(given, (ImageSource, ImageRows)):
        return [str(one) for one in given.compact_ids.to_pylist()]
    return row_ids(given, 0, len(given))


def row_block(rows: Rows, start: int, stop: int) -> Any:
    """Some rows, as a head takes them."""
    part = rows.block(start, stop)
    if isinstance(rows, CategoryFeatures):
        return CategoryFeatures(part, n_groups=rows.n_groups, groups=rows.groups)
    return part
