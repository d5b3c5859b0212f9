"""Folders, tar shards and Hugging Face data sets: the same images in the same order, in batches."""

from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from catwise.data import Dataset
from catwise.errors import (
    ConfigError,
    FeatureError,
    FeatureStoreError,
    IdError,
    MissingExtraError,
    ShapeError,
)
from catwise.labels import PartialLabels
from catwise.models import Preprocessing
from catwise.models.sources import (
    FolderImages,
    HuggingFaceImages,
    ImageLoader,
    ImageRows,
    ImageSource,
    TarImages,
    Undecodable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

Image = pytest.importorskip("PIL.Image")

# Python 3.12 and later warn where workers are forked beside threads of other packages.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

SMALL = Preprocessing(size=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)


def png(level: int) -> bytes:
    """A grey image that is known by its level."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def level(image: Any) -> int:
    assert not isinstance(image, Undecodable), image
    return int(image.getpixel((0, 0))[0])


def folder(root: Path, n: int, broken: Iterable[int] = ()) -> FolderImages:
    """Images 0 to n - 1 of that level, some of them broken."""
    names = [f"part{row % 2}/{row}.png" for row in range(n)]
    for row, name in enumerate(names):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"rubbish" if row in set(broken) else png(row))
    return FolderImages(root, names, [f"id{row}" for row in range(n)])


def tar(path: Path, members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def levels(source: ImageSource) -> dict[str, int]:
    """The level of each image by its id, through a copy that was pickled."""
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - what this test has just made
    return {name: level(image) for name, image in (copy[row] for row in range(len(copy)))}


def test_folder(tmp_path: Path) -> None:
    """Images come in the order of the table with its ids, also after a pickle."""
    source = folder(tmp_path, 5)
    assert len(source) == 5
    assert source.ids.tolist() == [f"id{row}" for row in range(5)]
    assert levels(source) == {f"id{row}": row for row in range(5)}
    assert [level(image) for _, image in source] == list(range(5))  # type: ignore[attr-defined]
    assert level(source[-1][1]) == 4
    with pytest.raises(IndexError):
        source[5]
    assert repr(source) == "FolderImages(n_images=5)"


def test_folder_of_a_dataset(tmp_path: Path) -> None:
    """A data set gives root, paths and ids; without ids the paths are the ids."""
    folder(tmp_path, 2)
    paths = ["part1/1.png", "part0/0.png"]
    labels = PartialLabels([[1], [0]], ids=["b", "a"])
    source = FolderImages.from_dataset(Dataset("mine", tmp_path, paths, labels, ["x", "x"]))
    assert levels(source) == {"b": 1, "a": 0}
    plain = FolderImages(tmp_path, [*paths, str(tmp_path / "part0/0.png")])
    assert list(levels(plain).values()) == [1, 0, 0]
    assert plain.ids.tolist()[:2] == paths


def test_folder_is_scanned_in_order(tmp_path: Path) -> None:
    """All images under a folder, sorted, but nothing hidden and nothing else."""
    folder(tmp_path, 3)
    (tmp_path / "part0" / "notes.txt").write_text("no image")
    (tmp_path / "part0" / "._0.png").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "9.png").write_bytes(png(9))
    (tmp_path / "UPPER.PNG").write_bytes(png(7))
    found = FolderImages.scan(tmp_path)
    assert found.ids.tolist() == ["UPPER.PNG", "part0/0.png", "part0/2.png", "part1/1.png"]
    with pytest.raises(ConfigError, match="no images"):
        FolderImages.scan(tmp_path, suffixes=[".gif"])


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """A pipe, a socket and a device among images or shards are named, and not waited for."""
    folder(tmp_path, 2)
    for name in ("part0/x.png", "y.tar"):
        path = tmp_path / name
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            os.mknod(path, 0o600 | stat.S_IFSOCK)
        else:
            path.symlink_to("/dev/null")
    found = FolderImages.scan(tmp_path)
    assert len(found) == 3
    (problem,) = [image for _, image in found if isinstance(image, Undecodable)]  # type: ignore[attr-defined]
    assert problem.id == "part0/x.png"
    assert f"it is no file. (a {'named pipe' if kind == 'pipe' else kind}" in problem.reason
    loader = ImageLoader(found, SMALL, undecodable="skip")
    assert sum(len(batch.rows) for batch in loader) == 2
    with pytest.raises(FeatureError, match=r"no file(.|\n)*y\.tar"):
        TarImages(tmp_path / "y.tar")


def test_paths_stay_in_the_folder(tmp_path: Path) -> None:
    """Paths that lead out by ".." or by being absolute are refused; links of the folder are not."""
    root, other = tmp_path / "root", tmp_path / "rooted"
    for place in (root, other):
        place.mkdir()
        folder(place, 2)
    (root / "link").symlink_to(other, target_is_directory=True)
    (tmp_path / "way").symlink_to(root, target_is_directory=True)
    good = ["part0/../part0/0.png", "..part", "link/part0/0.png", f"{root}/part1/1.png"]
    assert len(FolderImages(root, good)) == 4
    through = FolderImages(tmp_path / "way", [f"{root}/part1/1.png", f"{tmp_path}/way/part0/0.png"])
    assert list(levels(through).values()) == [1, 0]
    for bad in (
        "../rooted/part0/0.png",
        f"{other}/part0/0.png",
        f"{root}/../rooted/part0/0.png",
        "part0/../../rooted/part0/0.png",
        "link/../rooted/part0/0.png",
        "..",
        "/etc/hostname",
    ):
        with pytest.raises(ConfigError, match=r"lead out of the folder(.|\n)*1 of 2"):
            FolderImages(root, ["part0/0.png", bad])
    assert len(FolderImages("/", [f"{root}/part1/1.png", f"{other}/part0/0.png"])) == 2


def test_folder_refuses_bad_tables(tmp_path: Path) -> None:
    """Empty paths, repeated ids, another number of ids, no folder: told before any work."""
    with pytest.raises(ConfigError, match="1 empty paths of 2"):
        FolderImages(tmp_path, ["a.png", ""])
    with pytest.raises(IdError):
        FolderImages(tmp_path, ["a.png", "a.png"])
    with pytest.raises(ShapeError):
        FolderImages(tmp_path, ["a.png", "b.png"], ["a"])
    with pytest.raises(ShapeError):
        FolderImages(tmp_path, [1, 2])
    with pytest.raises(ConfigError, match="not there"):
        FolderImages(tmp_path / "no", ["a.png"])


def test_undecodable_images_are_marked(tmp_path: Path) -> None:
    """In place of an image comes a marker with row, id and the reason, which names the file."""
    source = folder(tmp_path, 3, broken=[1])
    (tmp_path / "part0/2.png").unlink()
    found = [source[row][1] for row in range(3)]
    assert level(found[0]) == 0
    for row, name in ((1, "1.png"), (2, "2.png")):
        marker = found[row]
        assert isinstance(marker, Undecodable)
        assert (marker.row, marker.id) == (row, f"id{row}")
        assert name in marker.reason
        assert isinstance(marker.error, FeatureError)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tar(tmp_path: Path, kind: int) -> None:
    """Files of one name up to the first dot are one sample; shards follow in the order given."""
    long = "deep/" * 15 + "last" if kind == tarfile.USTAR_FORMAT else "deep/" * 60 + "last"
    first = {"a/0.json": b"{}", "a/0.png": png(10), "a/0.cls": b"1", "b.1/1.x.PNG": png(11)}
    second = {f"{long}.png": png(12), "only.json": b"{}", "._2.png": b"", "a/2.png": png(13)}
    paths = [tar(tmp_path / "x.tar", first, kind), tar(tmp_path / "w.tar", second, kind)]
    source = TarImages(paths)
    assert levels(source) == {"a/0": 10, "b.1/1": 11, long: 12, "a/2": 13}
    assert list(levels(source)) == source.ids.tolist()
    assert source.n_without_image == 1
    assert level(source[2][1]) == 12  # any row, in any order
    assert levels(TarImages(str(paths[0]))) == {"a/0": 10, "b.1/1": 11}


def test_tar_writes_nothing(tmp_path: Path) -> None:
    """Names that lead out of the folder are ids, and links are passed over."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(200))
    names = ["../up", "../../up", "/catwise-absolute/up", "a/../../up", "..\\up"]
    path = tar(inside / "s.tar", {f"{name}.png": png(row) for row, name in enumerate(names)})
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo(f"link{kind!r}.png")
            entry.type, entry.linkname = kind, str(secret)
            archive.addfile(entry)
    before = sorted(tmp_path.rglob("*"))
    source = TarImages(path)
    expected = [name for name in names if not name.startswith("..\\")]
    assert list(levels(source).items()) == [(name, row) for row, name in enumerate(expected)]
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/catwise-absolute").exists()


def test_tar_chooses_the_image(tmp_path: Path) -> None:
    """Of several images in a sample one is to be named."""
    both = {"0.left.png": png(1), "0.right.png": png(2), "1.left.png": png(3), "1.right.png": b""}
    path = tar(tmp_path / "s.tar", both)
    with pytest.raises(IdError, match=r"'0\.left\.png' and '0\.right\.png'"):
        TarImages(path)
    assert levels(TarImages(path, extension="left.png")) == {"0": 1, "1": 3}
    with pytest.raises(ConfigError, match="no images"):
        TarImages(path, extension="png")


def test_tar_ids_are_different(tmp_path: Path) -> None:
    """Shards that each number from 0 are told apart by their names, when asked."""
    paths = [tar(tmp_path / f"part-{row}.tar", {"0.png": png(row)}) for row in range(2)]
    with pytest.raises(IdError, match="shard_in_id=True"):
        TarImages(paths)
    assert levels(TarImages(paths, shard_in_id=True)) == {"part-0/0": 0, "part-1/0": 1}


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    """Cut off, compressed, not a tar, missing, without images: the shard is named."""
    path = tar(tmp_path / "s.tar", {"0.png": png(0), "1.png": png(1)})
    whole = path.read_bytes()
    cases = {
        "data.tar": (whole[:550], "not whole|cannot be read"),
        "header.tar": (whole[:1200], "does not end"),
        "between.tar": (whole[:1024], "no end marker"),
        "damaged.tar": (whole[:1030] + b"x" + whole[1031:], "a damaged header"),
        "two.tar": (whole + whole, "a second archive"),
        "zipped.tar": (gzip.compress(whole), "it is compressed"),
        "text.tar": (b"rubbish" * 500, "cannot be read"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FeatureError, match=message) as caught:
            TarImages(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(FeatureError, match=r"missing\.tar"):
        TarImages(tmp_path / "missing.tar")
    with pytest.raises(ConfigError, match="no images"):
        TarImages([])
    source = TarImages(path)
    path.write_bytes(whole[:1600])
    marker = source[1][1]
    assert isinstance(marker, Undecodable)
    assert "1.png" in marker.reason


def test_damaged_bytes_of_a_shard_raise_nothing_else(tmp_path: Path) -> None:
    """Whatever is done to a shard, it is read or refused by one of our errors."""
    generator = np.random.default_rng(0)
    long = "deep/" * 30
    whole = tar(tmp_path / "s.tar", {f"{long}{row}.png": png(row) for row in range(3)}).read_bytes()
    path = tmp_path / "damaged.tar"
    refused = 0
    for _ in range(150):
        damaged = np.frombuffer(whole, dtype=np.uint8).copy()
        at = generator.integers(0, 4096, 6)
        damaged[at] = generator.integers(0, 256, len(at))
        path.write_bytes(damaged.tobytes())
        try:
            assert len(TarImages(path)) <= 3
        except (FeatureError, ConfigError, IdError):
            refused += 1
    assert refused > 10


def test_hugging_face(tmp_path: Path) -> None:
    """Encoded images, bytes and paths; ids from a column; the user's formatting set aside."""
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "2.png"
    path.write_bytes(png(2))
    columns = {
        "image": [
            {"bytes": png(0), "path": None},
            {"bytes": b"no", "path": "x.png"},
            {"bytes": None, "path": str(path)},
        ],
        "raw": [png(5), png(6), png(7)],
        "file": [str(path)] * 3,
        "key": ["a", "b", "c"],
    }
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    source = HuggingFaceImages(data.with_format("numpy"), "image", "key")
    assert source.ids.tolist() == ["a", "b", "c"]
    assert (level(source[0][1]), level(source[2][1])) == (0, 2)
    marker = source[1][1]
    assert isinstance(marker, Undecodable)
    assert "x.png" in marker.reason
    kept = data.select([2, 0])
    assert levels(HuggingFaceImages(kept, "image", "key")) == {"c": 2, "a": 0}
    assert levels(HuggingFaceImages(data, "raw")) == {"0": 5, "1": 6, "2": 7}
    assert levels(HuggingFaceImages(data, "file")) == {"0": 2, "1": 2, "2": 2}
    numbers = HuggingFaceImages(data.add_column("number", [1, 2, 3]), "number")
    assert isinstance(numbers[0][1], Undecodable)

    with pytest.raises(ConfigError, match="raw or file or key"):
        HuggingFaceImages(data, "images")
    with pytest.raises(ConfigError, match="one split"):
        HuggingFaceImages(datasets.DatasetDict(train=data), "image")
    with pytest.raises(ConfigError, match="streaming"):
        HuggingFaceImages(data.to_iterable_dataset(), "image")
    with pytest.raises(IdError):
        HuggingFaceImages(data, "image", "file")


def read(loader: ImageLoader) -> tuple[list[int], list[int]]:
    """Row numbers and levels of all batches."""
    rows: list[int] = []
    found: list[int] = []
    for batch in loader:
        assert batch.images.shape[1:] == (3, 4, 4)
        rows += batch.rows.tolist()
        found += [round(value) for value in (batch.images[:, 0, 0, 0] * 255).tolist()]
    return rows, found


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(tmp_path: Path, workers: int) -> None:
    """Rows come in order, with their own pixels, whatever the number of workers."""
    loader = ImageLoader(folder(tmp_path, 11), SMALL, batch_size=4, workers=workers)
    assert len(loader) == 3
    assert read(loader) == (list(range(11)), list(range(11)))
    rest = ImageLoader(loader.dataset.source, SMALL, workers=workers, rows=range(6, 11))
    assert read(rest) == ([6, 7, 8, 9, 10], [6, 7, 8, 9, 10])
    chosen = ImageLoader(loader.dataset.source, SMALL, batch_size=2, rows=[9, 0, 9])
    assert read(chosen) == ([9, 0, 9], [9, 0, 9])


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_are_skipped(tmp_path: Path, workers: int) -> None:
    """They are left out, listed and counted; a batch of them alone is passed over."""
    broken = [1, 4, 5, 6, 7, 9]
    source = folder(tmp_path, 11, broken)
    loader = ImageLoader(source, SMALL, batch_size=4, workers=workers, undecodable="skip")
    kept = [row for row in range(11) if row not in broken]
    for _ in range(2):  # a second iteration starts its list anew
        assert read(loader) == (kept, kept)
        assert [marker.row for marker in loader.undecodable] == broken
        assert [marker.id for marker in loader.undecodable] == [f"id{row}" for row in broken]
    assert all(f"{marker.row}.png" in marker.reason for marker in loader.undecodable)


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_are_refused(tmp_path: Path, workers: int) -> None:
    """The first batch with one is an error that lists them, without a worker's traceback."""
    loader = ImageLoader(folder(tmp_path, 12, [5, 7]), SMALL, batch_size=4, workers=workers)
    batches = iter(loader)
    assert next(batches).rows.tolist() == [0, 1, 2, 3]
    with pytest.raises(FeatureError) as caught:
        next(batches)
    message = str(caught.value)
    assert message.startswith("2 images of a batch cannot be decoded")
    assert "5.png" in message
    assert "7.png" in message
    assert "Traceback" not in message


class Failing(ImageSource):
    """Row 2 meets what is no fault of an image."""

    def locate(self, row: int) -> tuple[Any, str]:
        return (Sick() if row == 2 else png(row)), f"{row}.png"


class Sick(io.BytesIO):
    def read(self, _size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "I/O error")


@pytest.mark.parametrize("workers", [0, 1])
def test_failures_of_the_machine_are_never_skipped(workers: int) -> None:
    """A failing disk ends the work instead of thinning out the data."""
    loader = ImageLoader(
        Failing(range(4)), SMALL, batch_size=1, workers=workers, undecodable="skip"
    )
    with pytest.raises(FeatureStoreError, match=r"2\.png"):
        read(loader)


DYING = """
import os
from catwise.errors import ConfigError
from catwise.models import Preprocessing
from catwise.models.sources import ImageLoader, ImageSource

class Dying(ImageSource):
    def locate(self, row):
        os._exit(1)

try:
    list(ImageLoader(Dying([0]), Preprocessing(size=(4, 4)), workers=1))
except ConfigError as error:
    print(error.what)
"""


def test_a_worker_that_dies_is_told() -> None:
    """A killed process is one error. In a process of its own: torch tells by a signal."""
    command = [sys.executable, "-c", DYING]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "a process that decodes images died."


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Without pydicom a DICOM file is not an undecodable image: the install line comes through."""
    monkeypatch.setitem(sys.modules, "pydicom", None)

    class Medical(ImageSource):
        def locate(self, row: int) -> tuple[Any, str]:
            return b"\0" * 128 + b"DICM", f"{row}.dcm"

    loader = ImageLoader(Medical([0]), SMALL, workers=workers, undecodable="skip")
    with pytest.raises(MissingExtraError, match=r"catwise\[dicom\]"):
        read(loader)


def test_rows_for_a_loader_of_ones_own(tmp_path: Path) -> None:
    """ImageRows works with torch's DataLoader; collate sets aside what is missing."""
    rows = ImageRows(folder(tmp_path, 5, [3]), SMALL, rows=[4, 3, 0])
    assert [rows[at].row for at in range(len(rows))] == [4, 3, 0]
    assert rows[1].image is None
    loader = torch.utils.data.DataLoader(rows, batch_size=3, collate_fn=rows.collate)
    (batch,) = loader
    assert batch.rows.tolist() == [4, 0]
    assert batch.images.shape == (2, 3, 4, 4)
    assert [marker.row for marker in batch.undecodable] == [3]
    assert rows.collate([rows[1]]).images.shape == (0, 3, 4, 4)
    with pytest.raises(IdError, match=r"\[5, -1\]"):
        ImageRows(rows.source, SMALL, rows=[0, 5, -1])


def test_random_state_is_untouched(tmp_path: Path) -> None:
    """Reading images draws nothing from torch's global generator."""
    loader = ImageLoader(folder(tmp_path, 3), SMALL)
    before = torch.get_rng_state()
    read(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"workers": -1}, {"undecodable": "ignore"}], ids=str
)
def test_options_are_checked(tmp_path: Path, options: dict[str, Any]) -> None:
    """What cannot be is told when the loader is made."""
    with pytest.raises(ConfigError, match="options of an image loader are out of range"):
        ImageLoader(folder(tmp_path, 1), SMALL, **options)


def test_white_reaches_the_image(tmp_path: Path) -> None:
    """Options of reading hold for the batches too."""
    Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)).save(tmp_path / "a.png")
    loader = ImageLoader(FolderImages(tmp_path, ["a.png"]), SMALL, white=2000)
    (batch,) = loader
    assert torch.equal(batch.images, torch.full((1, 3, 4, 4), 0.5))
