"""Images that are given one by one: paths, Pillow images, arrays of pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from catwise._extras import import_optional
from catwise.errors import FeatureError
from catwise.models.images import as_channels
from catwise.models.sources import ImageSource

if TYPE_CHECKING:
    from PIL.Image import Image

    from catwise.models.images import Enough, ImageInput


class GivenImages(ImageSource):
    """Images in memory or on the disk, in the order in which they are given.

    Args:
        images: paths, the bytes of files, Pillow images, or arrays of uint8 pixels: (H, W) grey,
            (H, W, 1) grey or (H, W, 3) RGB.
        ids: (N,) of them; where all are paths these, else the row numbers, when not given.

    Attributes:
        images: as they were given.

    Raises:
        FeatureError: If one of them is something else.
        IdError: If an id is a duplicate.
        ShapeError: If ids and images are not as many.

    >>> images = GivenImages([np.zeros((4, 6, 3), dtype=np.uint8)])
    >>> images.read(0).size, images.ids.tolist()
    ((6, 4), ['0'])
    """

    def __init__(self, images: Sequence[Any], ids: Any = None) -> None:
        for row, image in enumerate(images):
            if not (is_place(image) or isinstance(image, bytes) or is_picture(image)):
                raise FeatureError(
                    f"number {row:,} of the images is not an image.",
                    found=_described(image),
                    expected="a path, bytes, a Pillow image, or uint8 pixels (H, W) or (H, W, 3)",
                )
        if ids is None:
            named = bool(images) and all(map(is_place, images))
            ids = [os.fspath(one) for one in images] if named else [*map(str, range(len(images)))]
        super().__init__(ids)
        if len(self) != len(images):
            from catwise.features.ids import as_ids

            as_ids(ids, len(images))  # says what does not fit
        self.images = list(images)

    def locate(self, row: int) -> tuple[ImageInput, str]:
        """Path or bytes of one image."""
        image = self.images[row]
        return image, os.fspath(image) if is_place(image) else f"image {self.id(row)!r}"

    def read(
        self,
        row: int,
        *,
        channels: int = 3,
        white: float | None = None,
        enough: Enough | None = None,
    ) -> Image:
        """Decode one image; what is decoded already is brought to the form of the others."""
        image = self.images[row]
        if is_place(image) or isinstance(image, bytes):
            return super().read(row, channels=channels, white=white, enough=enough)
        pillow = import_optional("PIL.Image", extra="images", purpose="reading images")
        if isinstance(image, np.ndarray):
            image = pillow.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        return as_channels(image, channels=channels, white=white, turn=True)


def is_place(image: object) -> bool:
    """Whether it is a path."""
    return isinstance(image, (str, os.PathLike))


def is_picture(image: object) -> bool:
    """Whether it is one image with its pixels: of Pillow, or an array of uint8."""
    if isinstance(image, np.ndarray):
        deep = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in {1, 3})
        return image.dtype == np.uint8 and deep
    return hasattr(image, "getexif") and hasattr(image, "convert")


def _described(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"an array of shape {tuple(value.shape)}, dtype {value.dtype}"
    return f"a {type(value).__name__}"
