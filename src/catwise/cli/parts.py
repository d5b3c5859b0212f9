"""Splits and images of labelled data, for commands that take all of them: `fix` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from catwise.errors import ConfigError, nearest

if TYPE_CHECKING:
    from catwise.cli.models import ModelOptions
    from catwise.data import Dataset
    from catwise.fixing import FoundImages
    from catwise.models.sources import ImageSource


def named_parts(dataset: Dataset, train: str, valid: str, test: str) -> dict[str, Dataset]:
    """Training, validation and test rows, by what their splits are called.

    All are training rows where there are no splits; "none" of the last two is for none. One that
    nobody named may be absent, unless another split would then be left out without a word.
    """
    wanted = {"train": train, "valid": valid, "test": test}
    there = set(dataset.splits.tolist())
    if there == {""}:
        return {"train": dataset}
    unused = there - {"", *wanted.values()}
    for name, value in wanted.items():
        absent = set() if name == "train" else {"none", *(() if unused else (name,))}
        if value not in there | absent:
            raise ConfigError(
                f"no row is in the split {value!r}{nearest(value, there)}.",
                expected=" or ".join(sorted(there)),
                remedy="--train-split, --valid-split and --test-split name the splits; 'none' of "
                "the last two is for none",
            )
    named = [value for value in wanted.values() if value in there or value != "none"]
    if len(set(named)) < len(named):
        raise ConfigError("one split cannot serve twice.", found=", ".join(named))
    return {name: dataset.split(value) for name, value in wanted.items() if value in there}


def images_of(
    model: ModelOptions, dataset: Dataset, parts: dict[str, Dataset], *, skip_missing: bool
) -> FoundImages:
    """The images: the files that the data set names, or those named after the ids."""
    import numpy as np

    from catwise.fixing import find_images, listed_images

    every = [one for part in parts.values() for one in _ids(part)]
    if any(dataset.paths):
        paths = [path for part in parts.values() for path in part.paths.tolist()]
        root, paths = _common_root(model.images or dataset.root, paths)
        return listed_images(root, paths, every, skip_missing=skip_missing)
    if model.images is None:
        raise click.UsageError("Missing option '--images'.")
    return find_images(
        model.images,
        np.array(every, dtype=np.str_),
        unused=_ids(dataset),
        skip_missing=skip_missing,
    )


def images_root(source: ImageSource) -> Path | None:
    """The folder that the paths of images start from; None for tar shards."""
    from catwise.models.sources import FolderImages

    return source.root if isinstance(source, FolderImages) else None


def paths_below(source: ImageSource) -> dict[str, str]:
    """The path of each image below that folder, by its id."""
    root = images_root(source)
    if root is None:
        return {}
    files = ((source.id(row), Path(str(source.locate(row)[0]))) for row in range(len(source)))
    return {
        name: (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        for name, path in files
    }


def _common_root(root: Path, paths: list[str]) -> tuple[Path, list[str]]:
    """A folder that holds all images, and the paths from there; as given where they stay inside."""
    import os

    if not any(path.startswith(("../", "/")) for path in paths):
        return root, paths
    whole = [os.path.abspath(root / path) if path else "" for path in paths]  # noqa: PTH100 - links stay
    common = os.path.commonpath([os.path.dirname(one) for one in whole if one])  # noqa: PTH120
    inside = [Path(os.path.relpath(one, common)).as_posix() if one else "" for one in whole]
    return Path(common), inside


def _ids(part: Dataset) -> list[str]:
    if part.labels.ids is None:
        raise ConfigError(
            "the labels have no ids to find the images by.",
            remedy="name the column of the ids: --id-column",
        )
    return part.labels.ids.tolist()  # type: ignore[no-any-return]
