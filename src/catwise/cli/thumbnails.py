"""Which images a report shows small, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from catwise._configs import THUMBNAILS_HELP
from catwise._options import option
from catwise.cli.console import Output
from catwise.cli.options import LabelFiles

if TYPE_CHECKING:
    from catwise.data import Dataset
    from catwise.models.sources import ImageSource


@dataclass(frozen=True, kw_only=True)
class ThumbnailOptions:
    """Images for the report of a command that reads features."""

    images: Path | None = option(
        None,
        metavar="DIR",
        help="Images (a folder, or tar shards), named after the ids: the report shows those whose "
        "probability moved most.",
    )
    thumbnails: bool | None = option(
        None, names="--thumbnails/--no-thumbnails", help=THUMBNAILS_HELP
    )

    def __post_init__(self) -> None:
        if self.images is not None and self.thumbnails is False:
            raise click.UsageError("give either --images or --no-thumbnails.")


class Images(NamedTuple):
    """Images to be shown, and whether someone asked for it (None: nobody said)."""

    source: ImageSource
    wanted: bool | None


def is_medical(files: LabelFiles) -> bool:
    """Whether labels are of a data set whose images are shown only if someone asks for it."""
    from catwise.data.recognising import recognised_dataset
    from catwise.models.thumbnails import MEDICAL

    if files.dataset is not None:
        return files.dataset in MEDICAL
    found = None if files.labels is None else recognised_dataset(files.labels)
    return found is not None and found[0] in MEDICAL


def open_images(given: ThumbnailOptions, files: LabelFiles, dataset: Dataset) -> Images | None:
    """The images of the rows that judge, if they are to be shown.

    Looked for before the work starts: those of a folder that is named must be there.
    """
    if given.thumbnails is False:
        return None
    from catwise.errors import ConfigError, IdError
    from catwise.fixing import find_images, listed_images

    ids, paths = dataset.labels.ids, dataset.paths.tolist()
    if given.images is not None or given.thumbnails:
        if ids is None:
            raise ConfigError(
                "the labels have no ids to find the images by.",
                remedy="name the column of the ids: --id-column",
            )
        if any(paths):
            root = given.images or dataset.root
            return Images(listed_images(root, paths, ids, skip_missing=True).source, wanted=True)
        if given.images is None:
            raise click.UsageError("--thumbnails needs --images, or --dataset.")
        return Images(find_images(given.images, ids, skip_missing=True).source, wanted=True)
    if ids is None or not any(paths) or is_medical(files):
        return None
    try:
        return Images(listed_images(dataset.root, paths, ids, skip_missing=True).source, None)
    except (ConfigError, IdError):  # no image is at hand, and nobody asked for any
        return None


def thumbnails_of(
    curves: Mapping[str, Any] | None, images: Images | None, output: Output
) -> dict[str, Any] | None:
    """What the report shows; None without images, or where nothing has moved."""
    if images is None or not curves:
        return None
    from catwise.models.thumbnails import make_thumbnails

    with output.progress() as progress:
        return make_thumbnails(curves, images.source, wanted=images.wanted, progress=progress)
