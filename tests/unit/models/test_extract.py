"""Extraction: features of any model, from any loader, killed at any moment.

Run as a script, this file is the process that the tests kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from catwise._lock import exclusive
from catwise.errors import (
    CatwiseError,
    ConfigError,
    FeatureError,
    HeadError,
    IdError,
    MismatchError,
    OutputError,
    ShapeError,
)
from catwise.features import FeatureStore, open_store
from catwise.models import LoadedModel, Preprocessing
from catwise.models.extraction import Extracted, extract
from catwise.models.layers import head_of
from catwise.models.parts import PartWork
from catwise.models.ways import EXACT, distance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N = 53
BATCH, PART = 4, 12
SMALL: dict[str, Any] = {"batch_rows": BATCH, "part_rows": PART}


class Net(nn.Module):
    """A backbone with batch normalisation and dropout, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.stem(x)).relu().mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


class Images(Dataset[Any]):
    """Random images with ids, made when they are asked for."""

    def __init__(self, n: int = N, *, ids: bool = True, delay: float = 0) -> None:
        self.n, self.ids, self.delay = n, ids, delay
        self.seen: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> Any:
        time.sleep(self.delay)
        self.seen.append(row)
        image = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(row))
        return (image, f"img{row}") if self.ids else (image, 7)


IDS = [f"img{row}" for row in range(N)]


def tensors() -> Tensor:
    return torch.stack([Images()[row][0] for row in range(N)])


def batches(size: int, start: int = 0) -> Iterator[Tensor]:
    yield from tensors()[start:].split(size)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stored(*args: Any, **options: Any) -> FeatureStore:
    found = extract(*args, **{**SMALL, **options})
    assert isinstance(found, FeatureStore)
    return found


def kept(*args: Any, **options: Any) -> Extracted:
    found = extract(*args, **options)
    assert isinstance(found, Extracted)
    return found


def expected(model: Net | None = None, rows: Tensor | None = None) -> Tensor:
    """Features by hand, in the same batches."""
    model = (model or net()).eval()
    with torch.no_grad():
        every = tensors() if rows is None else rows
        return torch.cat([model.features(part) for part in every.split(BATCH)])


def check_rows(found: Any, wanted: Tensor) -> None:
    """The rows, to what `exact` allows and what float16 holds."""
    values = wanted.numpy()
    np.testing.assert_allclose(found, values, rtol=1e-3, atol=EXACT * float(np.abs(values).max()))


# What comes out


def test_store_holds_the_features(tmp_path: Path) -> None:
    """Rows, ids and what made them are in the store, and nothing lies beside it."""
    store = stored(net(), Images(), tmp_path / "s", origin={"run": 3})
    assert store.dtype == "float16"
    check_rows(store.block(0, N), expected())
    assert store.ids is not None
    assert store.ids.tolist() == IDS
    made = store.origin["extract"]
    assert store.origin["run"] == 3
    assert made["items"]["layer"] == "fc"
    assert (made["images"], made["skipped"], made["shape"]) == (N, [], [8])
    assert 0 <= made["gap"] < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    open_store(tmp_path / "s", verify=True)


LOADERS: dict[str, Callable[[], Any]] = {
    "dataset": Images,
    "loader": lambda: DataLoader(Images(), batch_size=BATCH),
    "workers": lambda: DataLoader(Images(), batch_size=BATCH, num_workers=2),
    "tensors": lambda: TensorDataset(tensors()),
    "tensor": tensors,
    "function": lambda: lambda start: batches(7, start),
    "aligned": lambda: list(batches(BATCH)),
    "odd": lambda: list(batches(5)),
    "large": lambda: list(batches(N)),
    "generator": lambda: batches(3),
    "tables": lambda: [{"pixel_values": part, "labels": 1} for part in batches(6)],
    "lists": lambda: [(list(part), "x") for part in batches(6)],
}


@pytest.mark.parametrize("kind", LOADERS)
def test_any_loader_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    """However the images arrive, batches are cut at the same rows: the stores are identical."""
    stored(net(), Images(), tmp_path / "a", ids=IDS)
    stored(net(), LOADERS[kind](), tmp_path / "b", ids=IDS)
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("n", [1, PART, 2 * PART, 2 * PART + 1])
def test_images_end_anywhere(tmp_path: Path, n: int) -> None:
    """The number of images need not be known, nor be a multiple of anything."""
    rows = tensors()[:n]
    store = stored(net(), iter(rows.split(5)), tmp_path / "s")
    check_rows(store.block(0, n), expected(rows=rows))
    assert store.ids is None
    assert store.shape == (n, 8)


def test_in_memory() -> None:
    """Without a folder, features, ids and the model's own logits come back."""
    model = net()
    found = kept(model, Images(), dtype="float32", batch_rows=BATCH)
    assert distance(found.features, expected()) <= EXACT
    assert found.ids is not None
    assert found.ids.tolist() == IDS
    torch.testing.assert_close(found.logits, head_of(model.fc).logits(found.features))
    assert found.skipped == ()


def test_the_model_is_left_as_it_was() -> None:
    """Training flags, statistics, gradients and the global random state are as before."""
    model = net().train()
    model.norm.eval()
    state = {name: part.clone() for name, part in model.state_dict().items()}
    random_state = torch.get_rng_state()
    kept(model, Images(), num_workers=1)
    assert model.training
    assert model.drop.training
    assert not model.norm.training
    assert all(torch.equal(part, state[name]) for name, part in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_flips_are_averaged(tmp_path: Path, dtype: str) -> None:
    """Features are the float32 mean of those of the image and of its mirror image."""
    store = stored(net(), Images(), tmp_path / "s", flips=True, dtype=dtype)
    mean = (expected() + expected(rows=tensors().flip(-1))) / 2
    kind = getattr(torch, dtype)
    found = torch.from_numpy(store.block(0, N).astype(np.float32))
    near = EXACT + torch.finfo(kind).eps
    assert distance(found, mean) <= near
    assert distance(found, expected()) > near


def test_flipped_logits() -> None:
    """The logits with flips are those of the averaged features."""
    model = net()
    found = kept(model, Images(), flips=True, dtype="float32")
    torch.testing.assert_close(found.logits, head_of(model.fc).logits(found.features))


def test_a_convolution_as_head(tmp_path: Path) -> None:
    """A 1×1 convolution over pooled maps gives (N, D)."""
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), pool, nn.Conv2d(6, 2, 1), nn.Flatten())
    store = stored(model, Images(), tmp_path / "s")
    with torch.no_grad():
        by_hand = torch.cat([model[:3](part).flatten(1) for part in tensors().split(BATCH)])
    check_rows(store.block(0, N), by_hand)


class Group(nn.Module):
    """Two categories, each with a vector of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum(-1)


def test_category_specific_features(tmp_path: Path) -> None:
    """(N, C, D) stays that in memory; in a store it is a row, and the shape is told."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 9), nn.ReLU(), nn.Flatten(), nn.Unflatten(1, (2, 4)))
    model = nn.Sequential(body, Group())
    found = kept(model, Images(), layer="1", dtype="float32", batch_rows=BATCH)
    assert found.features.shape == (N, 2, 4)
    store = stored(model, Images(), tmp_path / "s", layer="1", dtype="float32")
    assert store.shape == (N, 8)
    assert store.origin["extract"]["shape"] == [2, 4]
    np.testing.assert_array_equal(store.block(0, N).reshape(N, 2, 4), found.features.numpy())


def test_a_loaded_model(tmp_path: Path) -> None:
    """The adapter's layer, keyword and preprocessing are used and remembered."""

    class Named(Net):
        def forward(self, *, pixel_values: Tensor) -> dict[str, Tensor]:
            return {"logits": super().forward(pixel_values)}

    model = Named()
    model.load_state_dict(net().state_dict())
    loaded = LoadedModel("mine", model, "fc", Preprocessing((9, 9)), image_argument="pixel_values")
    store = stored(loaded, Images(), tmp_path / "s")
    check_rows(store.block(0, N), expected())
    items = store.origin["extract"]["items"]
    assert (items["model"], items["preprocessing"]["size"]) == ("mine", [9, 9])
    with pytest.raises(ConfigError, match=r"no module(.|\n)*elsewhere"):
        extract(LoadedModel("elsewhere", None, "fc", Preprocessing((9, 9))), Images())


def test_progress_is_told(tmp_path: Path) -> None:
    """Images are counted up to all of them, those of an earlier run too."""
    told: list[Any] = []

    def stop(step: Any) -> None:
        told.append(step)
        if step.done > 2 * PART:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(net(), Images(), tmp_path / "s", progress=stop)
    assert [step.done for step in told[1:4]] == [4, 8, 12]
    told.clear()
    stored(net(), Images(), tmp_path / "s", progress=told.append)
    assert told[0].done == 2 * PART
    assert (told[-1].done, {step.total for step in told}) == (N, {N})
    assert "images/s" in told[-2].message
    assert "left" in told[-2].message


# What is refused


def test_a_wrong_layer_is_refused() -> None:
    """A layer that does not make the logits is named."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(243, 3), nn.ReLU(), nn.Linear(3, 3))
    assert kept(model, Images()).features.shape == (N, 3)
    with pytest.raises(HeadError, match="'1' does not make the model's logits"):
        extract(model, Images(), layer="1")


def test_a_sigmoid_behind_the_layer(tmp_path: Path) -> None:
    """It is seen through; what else a model returns is refused, unless the check is waived."""
    model = nn.Sequential(net(), nn.Sigmoid())
    check_rows(stored(model, Images(), tmp_path / "seen", layer="0.fc").block(0, N), expected())
    assert float(kept(model, Images(), layer="0.fc").logits.min()) < 0
    model = nn.Sequential(net(), nn.Softmax(1))
    with pytest.raises(HeadError, match="softmax"):
        extract(model, Images(), layer="0.fc")
    store = stored(model, Images(), tmp_path / "s", layer="0.fc", check=False)
    check_rows(store.block(0, N), expected())
    assert store.origin["extract"]["gap"] is None
    found = kept(model, Images(), layer="0.fc", check=False)
    assert float(found.logits.min()) < 0


def test_a_layer_called_twice_is_refused() -> None:
    """Two heads that share a layer cannot be told apart."""

    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x) + super().forward(x.flip(-1))) / 2

    with pytest.raises(HeadError, match="2 calls"):
        extract(Twice(), Images())


def test_the_layer_is_found_by_running() -> None:
    """Where names leave a choice, the first images decide, and none is lost by that."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Linear(6, 3)
            self.first = nn.Linear(243, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x.flatten(1)))

    for loader in (Images(), batches(5)):
        assert kept(Odd(), loader).features.shape == (N, 6)


@pytest.mark.parametrize(
    ("loader", "options", "error", "reason"),
    [
        (DataLoader(Images(), shuffle=True), {}, ConfigError, "shuffles"),
        (DataLoader(Images(), batch_size=4, drop_last=True), {}, ConfigError, "drops"),
        ([], {}, ConfigError, "no images"),
        (Images(0), {}, ConfigError, "no images"),
        ([{"x": torch.ones(2, 3)}], {}, ConfigError, "dict"),
        ([np.ones((2, 3))], {}, ConfigError, "ndarray"),
        ([torch.ones(())], {}, ConfigError, "Tensor"),
        ([torch.ones(2, 3)], {}, MismatchError, r"size: \[\d, 3\]"),
        ([([torch.ones(3, 9, 9), torch.ones(3, 8, 8)], 1)], {}, ShapeError, "not one shape"),
        ([torch.ones(2, 3, 9, 9), torch.ones(2, 3, 8, 8)], {"batch_rows": 3}, ShapeError, "shape"),
        (Images(), {"ids": IDS[1:]}, ShapeError, "52 ids, 53 images"),
        (list(batches(5)), {"ids": IDS[1:]}, ShapeError, "52 ids, more"),
        (list(batches(5)), {"ids": [*IDS, "x"]}, ShapeError, "54 ids, 53 images"),
        (Images(), {"ids": [*IDS[1:], "img1"]}, IdError, "more than once"),
        ([(torch.ones(2, 3, 9, 9), ["a"])], {}, ShapeError, "1 ids, 2 images"),
        (Images(), {"part_rows": 6}, ConfigError, "multiple of the 4 rows"),
        (Images(), {"undecodable": "drop"}, ConfigError, "'drop'"),
        (Images(), {"dtype": "int8"}, ConfigError, "int8"),
        (Images(), {"origin": {"a": {1, 2}}}, ConfigError, "JSON"),
        (Images(), {"layer": "stem"}, HeadError, "another kind"),
        (Images(), {"device": "nowhere"}, ConfigError, "nowhere"),
    ],
)  # fmt: skip
def test_what_is_not_possible(
    tmp_path: Path, loader: Any, options: Any, error: type[CatwiseError], reason: str
) -> None:
    """Each impossible input has its own error; no store is made."""
    sizes = {} if isinstance(loader, list) and "ids" not in options else SMALL
    with pytest.raises(error, match=reason):
        extract(net(), loader, tmp_path / "s", **{**sizes, **options})
    assert not (tmp_path / "s").exists()


def test_an_iterable_dataset_streams(tmp_path: Path) -> None:
    """A loader without row numbers is read as it comes."""

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield from tensors()

    store = stored(net(), DataLoader(Stream(), batch_size=6), tmp_path / "s")
    check_rows(store.block(0, N), expected())


@pytest.mark.parametrize("large", [7e4, float("nan")])
def test_numbers_that_do_not_fit(tmp_path: Path, large: float) -> None:
    """An overflow in float16 and a NaN name the image; bfloat16 holds large numbers."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    rows = torch.zeros(9, 1, 2, 2)
    rows[6, 0, 1, 1] = large
    with pytest.raises(FeatureError, match=r"'g' do not fit(.|\n)*bfloat16"):
        extract(model, [rows], tmp_path / "s", ids="abcdefghi", check=False)
    if large == 7e4:
        assert len(stored(model, [rows], tmp_path / "t", dtype="bfloat16", **SMALL)) == 9


# Images that cannot be decoded


class Broken(Images):
    """Some images cannot be decoded."""

    def __init__(self, lost: set[int], *, ids: bool = True) -> None:
        super().__init__(ids=ids)
        self.lost = lost

    def __getitem__(self, row: int) -> Any:
        image, name = super().__getitem__(row)
        return (None if row in self.lost else image), name


LOST = {0, 5, 12, 13, 14, 15, N - 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_undecodable_images_are_refused(workers: int) -> None:
    """The first batch with such images stops the work and names them."""
    with pytest.raises(
        FeatureError,
        match=r"4 of the images in rows 12 to 15 cannot be decoded(.|\n)*'img12'; 'img13'",
    ):
        extract(net(), Broken(LOST - {0, 5}), num_workers=workers, **SMALL)


def test_undecodable_images_are_skipped(tmp_path: Path) -> None:
    """They are left out and listed; batches are cut as if they were there."""
    store = stored(net(), Broken(LOST), tmp_path / "s", undecodable="skip")
    good = [row for row in range(N) if row not in LOST]
    assert store.ids is not None
    assert store.ids.tolist() == [IDS[row] for row in good]
    assert store.origin["extract"]["skipped"] == [IDS[row] for row in sorted(LOST)]
    np.testing.assert_allclose(store.block(0, len(good)), expected()[good].numpy(), rtol=2e-3)
    found = kept(net(), Broken(LOST), undecodable="skip", **SMALL)
    assert found.skipped == tuple(IDS[row] for row in sorted(LOST))
    assert found.features.shape == (len(good), 8)
    given = [([None if row in LOST else image for row, image in enumerate(tensors())], IDS)]
    again = stored(net(), given, tmp_path / "t", undecodable="skip")
    np.testing.assert_array_equal(again.block(0, len(good)), store.block(0, len(good)))


def test_skipping_without_ids_numbers_the_rows(tmp_path: Path) -> None:
    """Rows that are left out would shift the others; their numbers are the ids then."""
    store = stored(net(), Broken({3}, ids=False), tmp_path / "s", undecodable="skip")
    assert store.ids is not None
    assert store.ids.tolist() == [str(row) for row in range(N) if row != 3]
    assert store.origin["extract"]["skipped"] == ["3"]


def test_nothing_but_undecodable_images(tmp_path: Path) -> None:
    """There are no features then."""
    for out in (None, tmp_path / "s"):
        with pytest.raises(FeatureError, match="no "):
            extract(net(), Broken(set(range(N))), out, undecodable="skip", **SMALL)


def test_images_of_a_folder(tmp_path: Path) -> None:
    """`ImageRows` brings its ids, and says why an image could not be read."""
    image = pytest.importorskip("PIL.Image")
    from catwise.models.loading import ImageRows
    from catwise.models.sources import FolderImages

    for name in ("a.png", "b.png", "c.png"):
        image.new("RGB", (12, 12), (len(name), 90, 200)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    source = FolderImages(tmp_path, ["a.png", "b.png", "c.png"])
    rows = ImageRows(source, Preprocessing((9, 9)))
    found = kept(net(), rows, undecodable="skip")
    assert found.ids is not None
    assert (found.ids.tolist(), found.skipped) == (["a.png", "c.png"], ("b.png",))
    with pytest.raises(
        FeatureError,
        match=r"1 of the images in rows 0 to 2 cannot be decoded(.|\n)*'b\.png'.*known format",
    ):
        extract(net(), rows)


# Resuming


def stop_after(rows: int) -> Callable[[Any], None]:
    def progress(step: Any) -> None:
        if step.done >= rows:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("kind", LOADERS)
def test_an_interrupted_run_goes_on(tmp_path: Path, kind: str) -> None:
    """What is resumed has the bytes of an uninterrupted run, from any loader."""
    for rows in (1, 2 * PART + 1, N):
        with pytest.raises(KeyboardInterrupt):
            stored(net(), LOADERS[kind](), tmp_path / "b", ids=IDS, progress=stop_after(rows))
    stored(net(), LOADERS[kind](), tmp_path / "b", ids=IDS)
    stored(net(), Images(), tmp_path / "a", ids=IDS)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_finished_parts_are_not_made_again(tmp_path: Path) -> None:
    """Only the rows from the first unfinished part on are read and computed."""
    with pytest.raises(KeyboardInterrupt):
        stored(net(), Images(), tmp_path / "s", progress=stop_after(3 * PART - 1))
    images, starts = Images(), []
    with pytest.raises(KeyboardInterrupt):
        stored(net(), images, tmp_path / "s", progress=stop_after(3 * PART))
    assert min(images.seen) == 2 * PART

    def read(start: int) -> Iterator[Any]:
        starts.append(start)
        return ((part, IDS[start : start + len(part)]) for part in batches(4, start))

    with pytest.raises(OutputError, match="rows: 53, now null"):
        stored(net(), read, tmp_path / "s")
    assert starts == []


def test_a_function_starts_where_it_must(tmp_path: Path) -> None:
    """A function of the first row is asked for the first unfinished one, and no other."""
    starts = []

    def read(start: int) -> Iterator[Tensor]:
        starts.append(start)
        return batches(5, start)

    with pytest.raises(KeyboardInterrupt):
        stored(net(), read, tmp_path / "s", progress=stop_after(2 * PART + 1))
    stored(net(), read, tmp_path / "s")
    assert starts == [0, 2 * PART]
    check_rows(open_store(tmp_path / "s").block(0, N), expected())


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    """A part that is not whole does not count."""
    with pytest.raises(KeyboardInterrupt):
        stored(net(), Images(), tmp_path / "s", progress=stop_after(4 * PART))
    first, second, third = sorted(tmp_path.glob("s.parts/*/part-*"))[:3]
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(b"")
    third.write_bytes(b"\0" + third.read_bytes())
    store = stored(net(), Images(), tmp_path / "s")
    check_rows(store.block(0, N), expected())


def test_a_finished_store_is_not_made_again(tmp_path: Path) -> None:
    """The same call gives the same store and reads no image."""
    before = stored(net(), Images(), tmp_path / "s", ids=IDS)
    images = Images()
    assert stored(net(), images, tmp_path / "s", ids=IDS).digest == before.digest
    assert images.seen == []


def other_net() -> Net:
    model = net()
    with torch.no_grad():
        model.norm.running_mean[2] += 0.5  # a buffer, not a parameter
    return model


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "item"),
    [
        ({"model": other_net()}, "weights"),
        ({"model": LoadedModel("x", net(), "fc", Preprocessing((9, 9)))}, "preprocessing"),
        ({"ids": [*IDS[1:], "z"]}, "ids"),
        ({"flips": True}, "flips: false, now true"),
        ({"dtype": "float32"}, 'dtype: "float16", now "float32"'),
        ({"batch_rows": 6}, "batch_rows: 4, now 6"),
        ({"part_rows": 24}, "part_rows: 12, now 24"),
        ({"origin": {"a": 1}}, "origin"),
        ({"undecodable": "skip", "ids": None}, "undecodable"),
    ],
)
def test_other_items_are_refused(
    tmp_path: Path, change: dict[str, Any], item: str, finished: bool
) -> None:
    """What was made, or begun, otherwise is kept, and the difference is named."""
    options: dict[str, Any] = {"model": net(), "loader": Images(), "ids": IDS, **SMALL}
    out = tmp_path / "s"
    if finished:
        extract(out=out, **options)
    else:
        with pytest.raises(KeyboardInterrupt):
            extract(out=out, progress=stop_after(30), **options)
    with pytest.raises(OutputError, match=f"otherwise(.|\n)*{item}"):
        extract(out=out, **{**options, **change})
    extract(out=out, overwrite=True, **{**options, **change})
    extract(out=tmp_path / "t", **{**options, **change})
    assert files(out) == files(tmp_path / "t")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "t"]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("order", [("refuse", "skip"), ("skip", "refuse")])
def test_parts_serve_whatever_becomes_of_undecodable_images(
    tmp_path: Path, order: tuple[str, str], finished: bool
) -> None:
    """Where all images so far could be decoded, nothing is made twice when the option changes."""
    out, first, second = tmp_path / "s", Images(), Images()
    stop = contextlib.nullcontext() if finished else pytest.raises(KeyboardInterrupt)
    until = None if finished else stop_after(30)
    with stop:
        stored(net(), first, out, ids=IDS, undecodable=order[0], progress=until)
    stored(net(), second, out, ids=IDS, undecodable=order[1])
    assert min(second.seen, default=N) == (N if finished else 2 * PART)
    stored(net(), Images(), tmp_path / "whole", ids=IDS, undecodable=order[1])
    assert open_store(out).ids.tolist() == IDS
    np.testing.assert_array_equal(
        open_store(out).block(0, N), open_store(tmp_path / "whole").block(0, N)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "whole"]


def test_parts_with_skipped_images_do_not_serve_where_these_are_refused(tmp_path: Path) -> None:
    """The part that left an image out is made again, and the image is refused; others are kept."""
    rows = [Images()[row][0] if row != 14 else None for row in range(N)]
    given = [{"images": rows[at : at + BATCH]} for at in range(0, N, BATCH)]
    options: dict[str, Any] = {"ids": IDS, "part_rows": PART, "batch_rows": BATCH}
    with pytest.raises(KeyboardInterrupt):
        extract(
            net(), given, tmp_path / "s", undecodable="skip", progress=stop_after(30), **options
        )
    with pytest.raises(FeatureError, match="img14"):
        extract(net(), given, tmp_path / "s", **options)
    work = next((tmp_path / "s.parts").glob("*/part-000000")).parent
    assert [path.name for path in sorted(work.glob("part-*"))] == ["part-000000"]
    store = stored(net(), given, tmp_path / "s", undecodable="skip", ids=IDS)
    assert store.origin["extract"]["skipped"] == ["img14"]


def test_work_without_a_part_is_in_no_ones_way(tmp_path: Path) -> None:
    """A command that was refused before it made anything does not hinder the corrected one."""
    broken = [{"images": [None] * BATCH}]
    with pytest.raises(FeatureError):
        extract(net(), broken, tmp_path / "s", ids=IDS[:BATCH], **SMALL)
    assert len(stored(net(), Images(), tmp_path / "s", dtype="float32")) == N
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_other_content_is_refused(tmp_path: Path) -> None:
    """A folder with something else in it, and a file, are replaced on request only."""
    for name in ("folder", "file"):
        out = tmp_path / name
        if name == "folder":
            out.mkdir()
        (out / "x" if name == "folder" else out).write_text("mine", encoding="utf-8")
        images = Images()
        with pytest.raises(OutputError, match="exists"):
            stored(net(), images, out)
        assert images.seen == []
        assert len(stored(net(), images, out, overwrite=True)) == N
    (tmp_path / "empty").mkdir()
    assert len(stored(net(), Images(), tmp_path / "empty")) == N


def test_beginning_anew(tmp_path: Path) -> None:
    """Without resuming, unfinished work is made again; a finished store needs `overwrite`."""
    with pytest.raises(KeyboardInterrupt):
        stored(net(), Images(), tmp_path / "s", progress=stop_after(30))
    images = Images()
    stored(net(), images, tmp_path / "s", resume=False)
    assert min(images.seen) == 0
    with pytest.raises(OutputError, match="exists"):
        stored(net(), Images(), tmp_path / "s", resume=False)
    images = Images()
    stored(net(), images, tmp_path / "s", resume=False, overwrite=True)
    assert min(images.seen) == 0
    with pytest.raises(ConfigError, match="one process"):
        stored(net(), Images(), tmp_path / "t", resume=False, ranks=(0, 2))


# Killed


def run(mode: str, *args: Any, **environment: str) -> dict[str, Any]:
    """Run this file as a script; it prints one line of JSON."""
    command = [sys.executable, __file__, mode, *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def work(out: Path, loader: Any, **options: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stored(net(), loader, out, flips=True, **options)
    finally:
        torch.set_num_threads(before)


def loader_of(kind: str, delay: float) -> Any:
    images = Images(delay=delay)
    if kind == "dataset":
        return images
    parts = [range(at, min(at + 5, N)) for at in range(0, N, 5)]
    return (([images[row][0] for row in part], [IDS[row] for row in part]) for part in parts)


def child(task: Callable[[], None]) -> int:
    """Start a process that does a task; it ends without cleaning up."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    return pid


def killed_at_random(out: Path, kind: str, seed: int) -> dict[str, Any]:
    """Kill the work six times at random moments, then let it end."""
    draw = random.Random(seed)
    kills = 0
    while True:
        pid = child(lambda: work(out, loader_of(kind, 0.008)))
        if kills < 6:
            time.sleep(draw.uniform(0.01, 0.12))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            return {"kills": kills, "code": os.waitstatus_to_exitcode(status)}
        kills += 1


CALLS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


def kill_before_call(number: int) -> None:
    """Let this process be killed just before one of its calls that change the disk."""
    left = [number]

    def wrapped(call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def killed_everywhere(folder: Path, overwrite: str) -> dict[str, Any]:
    """Kill the work before each of its calls that change the disk; let it end; list the outcome."""
    number, outcomes, states = 0, [], set()
    while True:
        number += 1
        out = folder / f"s{number}"
        if overwrite == "overwrite":
            os.waitpid(child(lambda out=out: work(out, Images(), dtype="float32")), 0)

        def dying(out: Path = out, number: int = number) -> None:
            kill_before_call(number)
            work(out, Images(), overwrite=True)

        killed = os.WIFSIGNALED(os.waitpid(child(dying), 0)[1])
        states.add(f"store {out.exists()}, parts {out.with_name(out.name + '.parts').exists()}")
        code = os.waitpid(child(lambda out=out: work(out, Images(), overwrite=True)), 0)[1]
        beside = sorted(path.name for path in folder.iterdir() if path.name.startswith(out.name))
        outcomes.append([code, beside == [out.name]])
        if not killed:
            return {"runs": number, "bad": [o for o in outcomes if o != [0, True]],
                    "states": sorted(states)}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The stores of uninterrupted runs, by kind of loader."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in ("dataset", "stream"):
        run("whole", folder / kind, kind)
    return {kind: files(folder / kind) for kind in ("dataset", "stream")}


@pytest.mark.parametrize("kind", ["dataset", "stream"])
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(
    tmp_path: Path, whole: dict[str, dict[str, bytes]], kind: str, seed: int
) -> None:
    """Killed six times at random moments, the store has the bytes of an uninterrupted run."""
    assert run("random", tmp_path / "s", kind, seed) == {"kills": 6, "code": 0}
    assert files(tmp_path / "s") == whole[kind]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("overwrite", ["new", "overwrite"])
def test_killed_before_every_change_of_the_disk(
    tmp_path: Path, whole: dict[str, dict[str, bytes]], overwrite: str
) -> None:
    """Wherever the disk changes, a kill just before it costs nothing but time."""
    result = run("everywhere", tmp_path, overwrite)
    assert result["bad"] == []
    assert result["runs"] > 30
    assert "store True, parts True" in result["states"]
    for number in range(1, result["runs"] + 1):
        assert files(tmp_path / f"s{number}") == whole["dataset"]


@pytest.mark.parametrize(
    ("kind", "order", "lag"), [("dataset", (0, 1, 2), 0), ("stream", (2, 1, 0), 0.5)]
)
def test_several_processes_share_the_work(
    tmp_path: Path, whole: dict[str, dict[str, bytes]], kind: str, order: Any, lag: float
) -> None:
    """Processes that torchrun starts make the store of one process, whoever comes first."""
    out = tmp_path / "s"
    if kind == "dataset":
        with pytest.raises(KeyboardInterrupt):
            work(out, loader_of(kind, 0), progress=stop_after(2 * PART + 1))
    command = [sys.executable, __file__, "whole", str(out), kind]
    processes = []
    for rank in order:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "3"}
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env))
        time.sleep(lag)
    try:
        told = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert files(out) == whole[kind]
    assert len({one["digest"] for one in told}) == 1
    seen = [row for one in told for row in one["rows"]]
    assert kind == "stream" or sorted(seen) == list(range(2 * PART, N))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_one_call_at_a_time(tmp_path: Path) -> None:
    """A second call for the same store is refused while the first is at work."""
    with (
        exclusive(tmp_path / "s"),
        pytest.raises(OutputError, match="another process is writing"),
    ):
        stored(net(), Images(), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_unfinished_work_that_vanishes_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for parts that somebody has removed."""
    wait = PartWork._wait

    def lose(work: PartWork) -> Any:
        work._path(1).unlink()
        return wait(work)

    monkeypatch.setattr(PartWork, "_wait", lose)
    with pytest.raises(OutputError, match="unfinished work"):
        stored(net(), Images(), tmp_path / "s")
    monkeypatch.undo()
    stored(net(), Images(), tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def main(mode: str, out: str, *args: str) -> dict[str, Any]:
    """What this file does as a script."""
    if mode == "random":
        return killed_at_random(Path(out), args[0], int(args[1]))
    if mode == "everywhere":
        return killed_everywhere(Path(out), args[0])
    loader = loader_of(args[0], 0)
    work(Path(out), loader)
    rows = loader.seen if isinstance(loader, Images) else []
    return {"digest": open_store(out).digest, "rows": rows}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))  # noqa: T201  # how a script answers
