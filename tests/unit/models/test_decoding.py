"""JPEGs decoded at reduced size: only where enough pixels are left, and never another picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from catwise.errors import ConfigError
from catwise.models import Preprocessing
from catwise.models.card import preprocessing_text
from catwise.models.images import read_image
from catwise.models.loading import ImageRows
from catwise.models.sources import FolderImages


def picture(height: int, width: int) -> Image.Image:
    """Smooth colours that tell top from bottom and left from right."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [255 * rows / height, 255 * columns / width, 127 + 90 * np.sin(rows / 40)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "wanted", "found"),
    [
        ((800, 1200), (100, 150), (100, 150)),  # 1/8
        ((800, 1200), (101, 150), (200, 300)),
        ((800, 1200), (400, 601), (800, 1200)),
        ((800, 1200), (900, 1300), (800, 1200)),
    ],
)
def test_size(size: tuple[int, int], wanted: tuple[int, int], found: tuple[int, int]) -> None:
    """The largest reduction that leaves enough; other formats are decoded whole."""
    image = picture(*size)
    for kind, expected in (("JPEG", found), ("PNG", size)):
        read = read_image(saved(image, kind), enough=lambda *_: wanted)
        assert read.size == expected[::-1], kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images(orientation: int) -> None:
    """What is enough is asked of the upright image, and the picture is turned as ever."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = saved(picture(800, 1600), exif=exif, quality=95)
    whole = read_image(raw)
    asked: list[tuple[int, int]] = []

    def enough(height: int, width: int) -> tuple[int, int]:
        asked.append((height, width))
        return height // 4, width // 4

    read = read_image(raw, enough=enough)
    assert asked == [(whole.height, whole.width)]
    assert read.size == (whole.width // 4, whole.height // 4)
    small = np.asarray(whole.resize(read.size, Image.Resampling.BOX), dtype=float)
    assert np.abs(small - np.asarray(read, dtype=float)).mean() < 2


def test_rows(tmp_path: Path) -> None:
    """The input is nearly the same, and the manifest's preprocessing says how it was made."""
    picture(900, 1400).save(tmp_path / "large.jpg", quality=95)
    picture(60, 90).save(tmp_path / "small.jpg", quality=95)
    both = []
    for decoding in ("full", "reduced"):
        preprocessing = Preprocessing((64, 64), decoding=decoding)  # type: ignore[arg-type]
        rows = ImageRows(FolderImages.scan(tmp_path), preprocessing)
        both.append([rows[at].image for at in range(2)])
    (large, small), (reduced, same) = both
    assert not torch.equal(large, reduced)
    assert float((large - reduced).abs().mean()) < 0.02
    assert torch.equal(small, same)
    assert "reduced size" in preprocessing_text(preprocessing)
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    with pytest.raises(ConfigError, match="decoding"):
        Preprocessing((64, 64), decoding="half")  # type: ignore[arg-type]
