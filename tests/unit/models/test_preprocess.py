"""The model's input is what timm's evaluation transform makes, without timm or torchvision."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catwise.errors import FeatureError
from catwise.models import Preprocessing
from catwise.models.images import read_image
from catwise.models.pixels import preprocess

Image = pytest.importorskip("PIL.Image")

STUBS = Path(__file__).parents[2] / "stubs"
RNG = np.random.default_rng(0)
# Portrait, landscape, square, smaller than the model's input, the exact size, odd, very narrow.
SIZES = [(61, 97), (120, 80), (70, 70), (20, 33), (48, 40), (49, 53), (200, 9)]
TARGETS = [(48, 48), (48, 40)]
CROPS: list[tuple[Any, float]] = list(
    itertools.product(("center", "squash", "border"), (1.0, 0.875, 0.9))
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Runs in a process of its own, in which the test stubs stand in for torchvision's operators.
THEIRS = """
import sys
import numpy as np
from PIL import Image
from timm.data import create_transform

stored = np.load(sys.argv[1])
found = {}
for key in stored:
    name, interpolation, mode, crop, height, width = key.split("|")
    transform = create_transform(
        (3, int(height), int(width)), is_training=False, interpolation=interpolation,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=float(crop), crop_mode=mode,
    )
    found[key] = transform(Image.fromarray(stored[key])).numpy()
np.savez(sys.argv[2], **found)
"""


def pixels(height: int, width: int, channels: int | None = 3) -> np.ndarray:
    shape = (height, width) if channels is None else (height, width, channels)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def keys() -> list[str]:
    names = []
    for number, target in itertools.product(range(len(SIZES)), TARGETS):
        for interpolation, (mode, crop) in itertools.product(("bilinear", "bicubic"), CROPS):
            names.append(f"{number}|{interpolation}|{mode}|{crop}|{target[0]}|{target[1]}")
    rare = ("nearest", "lanczos", "box", "hamming")
    return names + [f"0|{interpolation}|center|0.875|48|48" for interpolation in rare]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each case the pixels that go in and what timm makes of them."""
    if not all(importlib.util.find_spec(name) for name in ("timm", "torchvision")):
        pytest.skip("timm and torchvision are needed to compare with")
    images = [pixels(*size) for size in SIZES]
    stored = {key: images[int(key.partition("|")[0])] for key in keys()}
    folder = tmp_path_factory.mktemp("timm")
    np.savez(folder / "in.npz", **stored)
    paths = [str(STUBS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", THEIRS, str(folder / "in.npz"), str(folder / "out.npz")]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    with np.load(folder / "out.npz") as found:
        return {key: (stored[key], found[key]) for key in stored}


@pytest.mark.parametrize("key", keys())
def test_equal_to_timm(key: str, theirs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Every crop mode, share and interpolation, for images of all shapes."""
    _, interpolation, mode, crop, height, width = key.split("|")
    image, expected = theirs[key]
    options: Any = {"interpolation": interpolation, "crop_mode": mode, "crop_pct": float(crop)}
    found = preprocess(
        Image.fromarray(image),
        Preprocessing(size=(int(height), int(width)), mean=MEAN, std=STD, **options),
    )
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert found.shape == (3, int(height), int(width))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


PLAIN: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def test_values_are_normalised() -> None:
    """An image of the right size is only divided by 255 and normalised."""
    image = pixels(8, 6)
    found = preprocess(Image.fromarray(image), Preprocessing(size=(8, 6), mean=MEAN, std=STD))
    expected = (image / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(found.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_one_channel() -> None:
    """A greyscale model gets one channel, of grey and of colour images."""
    options = Preprocessing(size=(8, 6), mean=(0.5,), std=(0.25,), channels=1)
    grey = pixels(8, 6, None)
    found = preprocess(Image.fromarray(grey), options)
    np.testing.assert_allclose(found.numpy(), (grey[None] / 255 - 0.5) / 0.25, atol=1e-6)
    assert preprocess(Image.fromarray(pixels(30, 20)), options).shape == (1, 8, 6)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(61, 97), (20, 33), (200, 9)])
def test_deep_images_keep_their_precision(mode: Any, size: tuple[int, int]) -> None:
    """16 bits differ from 8 by the rounding of 8 bits alone; each channel is the same."""
    grey = pixels(*size, None)
    options = Preprocessing(size=(48, 40), crop_mode=mode, crop_pct=0.9, **PLAIN)
    eight = preprocess(Image.fromarray(grey), options)
    deep = preprocess(Image.fromarray((grey / 255).astype(np.float32)), options)
    assert torch.equal(deep[0], deep[1])
    assert torch.equal(deep[0], deep[2])
    # Both passes of the resizing round.
    assert (eight - deep).abs().max() <= 1.01 / 255
    assert (eight - deep).abs().max() > 0
    values = np.array([[1000, 1001]], dtype=np.uint16)
    fine = preprocess(Image.fromarray(values), Preprocessing(size=(1, 2), **PLAIN))
    np.testing.assert_allclose(fine[0].numpy(), values / 65535, rtol=1e-6)


def test_overshoot_is_cut() -> None:
    """Bicubic resizing leaves no deep value beyond black and white."""
    edge = np.zeros((40, 40), dtype=np.float32)
    edge[:, 20:] = 1
    options = Preprocessing(size=(64, 64), interpolation="bicubic", **PLAIN)
    found = preprocess(Image.fromarray(edge), options)
    assert (found.min(), found.max()) == (0, 1)


def test_border_is_the_mean_colour_of_each_channel() -> None:
    """A deep grey image is padded with the mean of each channel, to the level of 8 bits."""
    options = Preprocessing(size=(9, 3), mean=MEAN, std=(1.0,) * 3, crop_mode="border")
    found = preprocess(Image.fromarray(np.full((3, 3), 0.5, dtype=np.float32)), options)
    assert found[:, 0].abs().max() < 0.5 / 255 + 1e-6
    np.testing.assert_allclose(found[:, 4, 1].numpy(), 0.5 - np.array(MEAN), atol=1e-6)


def test_other_modes_are_converted() -> None:
    """An image that somebody else opened is treated as one of ours."""
    layer = Image.new("RGBA", (5, 4), (10, 20, 30, 0))
    found = preprocess(layer, Preprocessing(size=(4, 5), **PLAIN))
    assert torch.equal(found, torch.ones(3, 4, 5))


def test_input_stays_as_it_is(tmp_path: Path) -> None:
    """Neither the image nor the next result changes with what is done to a result."""
    path = tmp_path / "a.png"
    Image.fromarray(pixels(8, 6)).save(path)
    image = read_image(path)
    before = np.asarray(image).copy()
    options = Preprocessing(size=(8, 6))
    first = preprocess(image, options)
    kept = first.clone()
    first.zero_()
    np.testing.assert_array_equal(np.asarray(image), before)
    assert torch.equal(preprocess(image, options), kept)


def test_impossible_images_are_refused() -> None:
    """Nothing to resize, or a strip that would fill the memory once it is wide enough."""
    options = Preprocessing(size=(224, 224))
    with pytest.raises(FeatureError, match="no pixels"):
        preprocess(Image.new("RGB", (0, 5)), options)
    strip = Image.new("L", (1, 60_000))
    with pytest.raises(FeatureError, match="too narrow"):
        preprocess(strip, options)
    assert preprocess(strip, Preprocessing(size=(8, 8), crop_mode="squash")).shape == (3, 8, 8)
    assert preprocess(strip, Preprocessing(size=(8, 8), crop_mode="border")).shape == (3, 8, 8)
