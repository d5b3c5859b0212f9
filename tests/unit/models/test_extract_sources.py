"""Extraction from the sources of images: the same features from each, with ids."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from catwise.errors import ConfigError, IdError, MismatchError, OutputError
from catwise.models import LoadedModel, Preprocessing
from catwise.models.extraction import Extracted, extract
from catwise.models.loading import ImageRows
from catwise.models.sources import FolderImages, HuggingFaceImages, ImageSource, TarImages

if TYPE_CHECKING:
    from pathlib import Path

N = 7
IDS = [f"{row}.png" for row in range(N)]
PREPROCESSING = Preprocessing((8, 8), (0.5,) * 3, (0.25,) * 3)


def png(row: int) -> bytes:
    raw = io.BytesIO()
    pixels = np.random.default_rng(row).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(raw, "PNG")
    return raw.getvalue()


class Net(nn.Module):
    """The mean of each channel, and a linear layer; fails on request."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3, 2)
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        if self.fails and len(x) < 4:
            raise RuntimeError("no such luck")
        logits: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return logits


def loaded() -> LoadedModel:
    return LoadedModel("net", Net(), "fc", PREPROCESSING)


def expected() -> np.ndarray:
    """Mean colours, computed by numpy from the bytes: the cut is 8 × 8 of 9 × 8 pixels."""
    means = []
    for row in range(N):
        pixels = np.asarray(Image.open(io.BytesIO(png(row)))).astype(np.float64)[:8]
        means.append(((pixels / 255 - 0.5) / 0.25).mean((0, 1)))
    return np.array(means)


def make(kind: str, folder: Path) -> ImageSource:
    if kind == "folder":
        for row in range(N):
            (folder / IDS[row]).write_bytes(png(row))
        return FolderImages.scan(folder)
    if kind == "tar":
        with tarfile.open(folder / "0.tar", "w") as archive:
            for row in range(N):
                info = tarfile.TarInfo(f"{row}.png.png")
                info.size = len(png(row))
                archive.addfile(info, io.BytesIO(png(row)))
        return TarImages(folder / "0.tar", extension="png.png")
    datasets = pytest.importorskip("datasets")
    table = {"image": [{"bytes": png(row), "path": None} for row in range(N)], "id": IDS}
    data = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    return HuggingFaceImages(data, "image", "id")


@pytest.mark.parametrize("kind", ["folder", "tar", "hugging face"])
def test_every_source(tmp_path: Path, kind: str) -> None:
    """A source alone is enough for a loaded model; rows and ids are right."""
    source = make(kind, tmp_path)
    ids = [name.removesuffix(".png") for name in IDS] if kind == "tar" else IDS
    store: Any = extract(loaded(), source, tmp_path / "out", dtype="float32", batch_rows=4)
    assert store.ids.tolist() == ids
    np.testing.assert_allclose(store.block(0, N), expected(), atol=1e-5)
    assert store.origin["extract"]["items"]["images"] == source.origin


@pytest.mark.parametrize("wrap", ["rows", "torch"])
def test_every_loader_of_a_source(tmp_path: Path, wrap: str) -> None:
    """What reads a source gives its ids and its undecodable images, whatever stacks the batches."""
    source = make("folder", tmp_path)
    (tmp_path / IDS[2]).write_bytes(b"no")
    rows = ImageRows(source, PREPROCESSING)
    loader = {
        "rows": lambda: rows,
        "torch": lambda: DataLoader(rows, batch_size=4),
    }[wrap]()
    found = extract(Net(), loader, undecodable="skip", batch_rows=4)
    assert isinstance(found, Extracted)
    assert found.ids is not None
    assert found.ids.tolist() == [*IDS[:2], *IDS[3:]]
    assert found.skipped == (IDS[2],)


def test_some_rows(tmp_path: Path) -> None:
    """Rows in an order of their own keep their ids; none may come twice."""
    source = make("folder", tmp_path)
    found: Any = extract(Net(), ImageRows(source, PREPROCESSING, rows=[5, 1]), dtype="float32")
    assert found.ids.tolist() == ["5.png", "1.png"]
    np.testing.assert_allclose(found.features.numpy(), expected()[[5, 1]], atol=1e-5)
    with pytest.raises(IdError, match="more than once"):
        extract(Net(), ImageRows(source, PREPROCESSING, rows=[5, 5]))


def test_a_source_without_preprocessing(tmp_path: Path) -> None:
    """A bare module does not know its preprocessing, and none is guessed."""
    with pytest.raises(ConfigError, match="ImageRows"):
        extract(Net(), make("folder", tmp_path))


def test_other_images_with_the_same_ids(tmp_path: Path) -> None:
    """A store of other files is not taken for these images', whatever their ids are."""
    source = make("folder", tmp_path)
    extract(loaded(), source, tmp_path / "out")
    paths = source.ids[::-1].tolist()
    with pytest.raises(OutputError, match="images:"):
        extract(loaded(), FolderImages(tmp_path, paths, IDS), tmp_path / "out")


def test_a_model_that_fails_is_left_as_it_was(tmp_path: Path) -> None:
    """After an error training flags and hooks are as before, and the work goes on later."""
    model = Net(fails=True)
    model.fc.eval()
    rows = ImageRows(make("folder", tmp_path), PREPROCESSING)
    with pytest.raises(MismatchError, match="no such luck"):
        extract(model, rows, tmp_path / "out", batch_rows=4)
    assert (model.training, model.drop.training, model.fc.training) == (True, True, False)
    assert not model.fc._forward_pre_hooks
    assert torch.is_grad_enabled()
    model.fails = False
    store: Any = extract(model, rows, tmp_path / "out", batch_rows=4)
    assert store.shape == (N, 3)
