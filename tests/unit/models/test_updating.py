"""A feature store is brought up to date: only what changed is run, and what is there stays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from catwise.errors import ConfigError, FeatureError, OutputError
from catwise.features import open_store
from catwise.models import LoadedModel, Preprocessing
from catwise.models.extraction import extract
from catwise.models.given import GivenImages
from catwise.models.sources import FolderImages
from catwise.models.updating import Updated, update_features


def model(scale: float = 1.0) -> LoadedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
        module = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        with torch.no_grad():
            module[0].weight.mul_(scale)
    return LoadedModel("tiny", module, "5", Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3))


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty images."""
    (tmp_path / "images").mkdir()
    for number in range(30):
        draw(tmp_path / "images" / f"{number:03d}.png", number)
    return tmp_path


def updated(folder: Path, **options: Any) -> Updated:
    images = FolderImages.scan(folder / "images")
    how = {"batch_rows": 4, "part_rows": 8, **options}
    return update_features(model(), images, folder / "store", **how)


def seen(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[str, list[str]]:
    """What an update says, and the images that it read."""
    read: list[str] = []
    plain = FolderImages.locate

    def locate(self: FolderImages, row: int) -> Any:
        read.append(self.id(row))
        return plain(self, row)

    with monkeypatch.context() as watched:
        watched.setattr(FolderImages, "locate", locate)
        watched.setattr(FolderImages, "stamp", lambda self, row: stamp(plain(self, row)[0]))
        return str(updated(folder, **options)), read


def stamp(path: Any) -> str:
    return f"{path.stat().st_size}:{path.stat().st_mtime_ns}" if path.exists() else "absent"


def check(folder: Path, **options: Any) -> None:
    """The store has the ids and features of a new one."""
    images = FolderImages.scan(folder / "images")
    fresh: Any = extract(model(), images, folder / "fresh", overwrite=True, **options)
    store = open_store(folder / "store", verify=True)
    assert store.ids is not None
    assert store.ids.tolist() == fresh.ids.tolist()
    found, wanted = (np.asarray(one.block(0, len(one)), dtype=np.float32) for one in (store, fresh))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_only_what_changed_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are new or changed are read, no others; the others' rows keep their bits."""
    assert str(updated(folder)) == "30 images added, 0 changed, 0 removed; 0 kept"
    check(folder)
    before = open_store(folder / "store")
    rows, ids = before.block(0, 30).copy(), before.ids
    draw(folder / "images" / "0031.png", 99)
    draw(folder / "images" / "zzz.png", 98)
    draw(folder / "images" / "004.png", 97)
    os.utime(folder / "images" / "004.png", ns=(1, 1))
    (folder / "images" / "017.png").unlink()
    text, read = seen(folder, monkeypatch)
    assert text == "2 images added, 1 changed, 1 removed; 28 kept"
    assert sorted(set(read)) == ["0031.png", "004.png", "zzz.png"]
    check(folder)
    after = open_store(folder / "store")
    assert ids is not None
    assert after.ids is not None
    at = {name: row for row, name in enumerate(after.ids.tolist())}
    kept = [row for row, name in enumerate(ids.tolist()) if row not in {4, 17}]
    same = after.rows([at[ids[row]] for row in kept])
    np.testing.assert_array_equal(same, rows[kept])
    assert sorted(p.name for p in folder.iterdir()) == ["fresh", "images", "store"]


def test_nothing_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a change nothing is read or written; the plain command takes the store, too."""
    first = updated(folder).store
    told = (folder / "store" / "manifest.json").stat().st_mtime_ns
    text, read = seen(folder, monkeypatch)
    assert text == "0 images added, 0 changed, 0 removed; 30 kept"
    assert read == []
    assert (folder / "store" / "manifest.json").stat().st_mtime_ns == told
    images = FolderImages.scan(folder / "images")
    again: Any = extract(model(), images, folder / "store", batch_rows=4, part_rows=8)
    assert again.digest == first.digest


def test_removed_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are gone leave the store without the model running."""
    updated(folder)
    (folder / "images" / "000.png").unlink()
    text, read = seen(folder, monkeypatch)
    assert (text, read) == ("0 images added, 0 changed, 1 removed; 29 kept", [])
    check(folder)


def test_undecodable_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be decoded is refused, or skipped and not tried again; repaired, it comes in."""
    updated(folder, undecodable="skip")
    broken = folder / "images" / "b.png"
    broken.write_bytes(b"no image")
    done = updated(folder, undecodable="skip")
    assert (done.added, len(done.store)) == (1, 30)
    assert done.store.origin["extract"]["skipped"] == ["b.png"]
    text, read = seen(folder, monkeypatch, undecodable="skip")
    assert (text, read) == ("0 images added, 0 changed, 0 removed; 31 kept", [])
    draw(broken, 5)
    assert updated(folder, undecodable="skip").changed == 1
    assert open_store(folder / "store").origin["extract"]["skipped"] == []
    check(folder, undecodable="skip")


def test_a_broken_image_leaves_the_store(folder: Path) -> None:
    """An error leaves the old store as it was, and the repaired image is all that is left to do."""
    digest = updated(folder).store.digest
    (folder / "images" / "b.png").write_bytes(b"no image")
    with pytest.raises(FeatureError, match=r"b\.png"):
        updated(folder)
    assert open_store(folder / "store").digest == digest
    draw(folder / "images" / "b.png", 5)
    assert updated(folder).added == 1
    check(folder)


def test_killed_updates_are_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, the old store is there; the next call takes the parts, if images are the same."""
    updated(folder)
    for number in range(40, 60):
        draw(folder / "images" / f"{number:03d}.png", number)

    def stop(progress: Any) -> None:
        if progress.done > 12:
            raise KeyboardInterrupt

    for _ in range(2):  # the second time with an image that has changed meanwhile
        with pytest.raises(KeyboardInterrupt):
            updated(folder, progress=stop)
        draw(folder / "images" / "041.png", 7)
        os.utime(folder / "images" / "041.png", ns=(2, 2))
    assert len(open_store(folder / "store")) == 30
    assert updated(folder).added == 20
    check(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["fresh", "images", "store"]


def test_another_model_or_way_is_refused(folder: Path) -> None:
    """A store of another model, dtype or way is not updated, and what differs is named."""
    updated(folder)
    images = FolderImages.scan(folder / "images")
    how: dict[str, Any] = {"batch_rows": 4, "part_rows": 8}
    with pytest.raises(OutputError, match="weights"):
        update_features(model(2.0), images, folder / "store", **how)
    with pytest.raises(OutputError, match='dtype: "float16", now "float32"'):
        updated(folder, dtype="float32")
    extract(model(), images, folder / "plain", **how)
    with pytest.raises(OutputError, match="from which images"):
        update_features(model(), images, folder / "plain", **how)


def test_images_that_say_nothing(tmp_path: Path) -> None:
    """Images in memory cannot be told from what they were; an URL has no store to update."""
    pixels = GivenImages([np.zeros((16, 16, 3), dtype=np.uint8)])
    with pytest.raises(ConfigError, match="whether its images have changed"):
        update_features(model(), pixels, tmp_path / "s")
    with pytest.raises(ConfigError, match="in a folder"):
        update_features(model(), pixels, "memory://store")
