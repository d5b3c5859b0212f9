"""Two made-up images through preprocessing and model: whether both are what they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from catwise._extras import import_optional
from catwise.models import LoadedModel, Preprocessing
from catwise.models.extraction import ImagePass, open_pass
from catwise.models.logits import ACTIVATIONS
from catwise.models.pixels import preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

_MARGIN: Final = 1.3
"""So much larger than the model's input are the images, so that resizing shows."""


def made_up_images(preprocessing: Preprocessing) -> list[Image]:
    """A picture of slopes and edges, and another way round."""
    pillow = import_optional("PIL.Image", extra="images", purpose="running a model on images")
    height, width = (int(_MARGIN * side) + 1 for side in preprocessing.size)
    rows, columns, depth = np.ogrid[:height, :width, :3]
    slopes = rows * 255 // height + columns * (depth + 1) * 85 // width
    edges = 64 * ((rows // 7 + columns // (5 + depth)) % 2)
    pixels = ((slopes + edges) % 256).astype(np.uint8)
    mode = "RGB" if preprocessing.channels == 3 else "L"
    pictures = [pixels, np.ascontiguousarray(255 - pixels[::-1])]
    return [pillow.fromarray(one).convert(mode) for one in pictures]


def probe_images(preprocessing: Preprocessing) -> Tensor:
    """(2, channels, height, width): the made-up images as the model takes them."""
    made = [preprocess(image, preprocessing) for image in made_up_images(preprocessing)]
    return torch.stack(made)


def probe_logits(model: LoadedModel, rows: list[int], *, flips: bool) -> Tensor:
    """(2, C) float32 logits of the made-up images, of some rows of the layer."""
    found = image_pass(model, probe_images(model.preprocessing), flips=flips).in_memory(None)
    return found.logits[:, rows]


def image_pass(model: LoadedModel, images: object, **options: object) -> ImagePass:
    """The pass of extraction, which keeps the logits of the model's layer.

    They are compared with what the model returns, unless its adapter knows of a sigmoid or softmax
    behind them.
    """
    check = model.output_is not in ACTIVATIONS
    return open_pass(model, images, check=check, keep="logits", **options)  # type: ignore[arg-type]
