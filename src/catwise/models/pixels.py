"""From an image to a model's input, with Pillow and torch alone.

The geometry and the arithmetic are those of timm's evaluation transform, so that a model sees the
pixels that it was trained with.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._extras import import_optional
from catwise.errors import FeatureError
from catwise.models.core import Preprocessing
from catwise.models.images import as_channels, pixel_limit

if TYPE_CHECKING:
    from PIL.Image import Image


_OVER: Final = 2  # pixels a side for each of the resized image


def preprocess(image: Image, preprocessing: Preprocessing) -> Tensor:
    """Resize, cut and normalise one image: (channels, height, width) float32.

    With s = floor(size / crop_pct) for height and width, the image is resized to

    - "center": its shorter side to s (the longer side is rounded down; for s of two different
      numbers, the larger scale of the two, rounded), then cut;
    - "squash": both sides to s, then cut;
    - "border": the scale at which it just fits into s, then padded with the mean colour.

    Where the resized image is smaller than the cut it is padded with black, or with the mean colour
    for "border". Images of mode "F" keep their precision through the resizing; what an
    interpolation puts beyond black and white is cut, as in 8 bits. FeatureError if it has no
    pixels, or is so narrow that resizing it would take too many.

    Matches: timm.data.create_transform(is_training=False), to 1e-6.
    """
    import_optional("PIL.Image", extra="images", purpose="preprocessing images")
    ready = as_channels(image, channels=preprocessing.channels)
    if not min(ready.size):
        raise FeatureError("the image has no pixels.", found=f"size {ready.size}")
    pixels = _cut(_resized(ready, preprocessing), preprocessing)
    values = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    if values.dtype == torch.uint8:
        values = values.to(torch.float32).div_(255)
    if preprocessing.order == "bgr":
        values = values.flip(0)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(-1, 1, 1)
    return values.sub_(mean).div_(std)


def enough(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """The (height, width) at which an image has pixels enough to be resized with antialiasing."""
    rows, columns = _target(height, width, preprocessing)
    return _OVER * rows, _OVER * columns


def _resized(image: Image, preprocessing: Preprocessing) -> Image:
    from PIL import Image

    height, width = _target(image.height, image.width, preprocessing)
    if (width, height) == image.size:
        return image
    limit = pixel_limit()
    if limit is not None and width * height > limit:
        raise FeatureError(
            "the image is too narrow to be resized.",
            found=f"{image.width:,} x {image.height:,}, resized {width:,} x {height:,}",
            expected=f"at most {limit:,} pixels",
            remedy='leave it out, or use crop_mode="squash"',
        )
    return image.resize(
        (width, height), Image.Resampling[preprocessing.interpolation.upper()], reducing_gap=None
    )


def _target(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """(height, width) of the resized image, at least one pixel each."""
    rows, columns = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.size)
    if preprocessing.crop_mode == "squash":
        return rows, columns
    if preprocessing.crop_mode == "center" and rows == columns:
        if width <= height:
            return int(rows * height / width), rows
        return rows, int(rows * width / height)
    choose = max if preprocessing.crop_mode == "border" else min
    ratio = choose(height / rows, width / columns)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _cut(image: Image, preprocessing: Preprocessing) -> NDArray[Any]:
    """(height, width, channels) from the centre, padded where the image is smaller."""
    height, width = preprocessing.size
    top, above = _span(image.height, height)
    left, before = _span(image.width, width)
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    pixels = np.array(image.crop(box) if box != (0, 0, *image.size) else image)
    if pixels.dtype == np.float32:
        np.clip(pixels, 0.0, 1.0, out=pixels)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    channels = preprocessing.channels
    if pixels.shape != (height, width, channels):
        padded = np.empty((height, width, channels), dtype=pixels.dtype)
        padded[:] = _fill(preprocessing, pixels.dtype)
        padded[above : above + pixels.shape[0], before : before + pixels.shape[1]] = pixels
        return padded
    return pixels


def _span(have: int, want: int) -> tuple[int, int]:
    """Where the cut starts in the image, and where the image starts in the cut."""
    return (round((have - want) / 2), 0) if have >= want else (0, (want - have) // 2)


def _fill(preprocessing: Preprocessing, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The colour of the padding, for each channel."""
    if preprocessing.crop_mode != "border":
        return np.zeros(preprocessing.channels, dtype=dtype)
    mean = preprocessing.mean[:: -1 if preprocessing.order == "bgr" else 1]
    levels = np.clip([round(255 * value) for value in mean], 0, 255)
    return (levels / 255 if dtype.kind == "f" else levels).astype(dtype)
