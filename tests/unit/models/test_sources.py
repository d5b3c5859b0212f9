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
from torch import nn

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
from catwise.models.core import Undecodable
from catwise.models.extraction import Extracted, extract
from catwise.models.loading import ImageRows
from catwise.models.sources import FolderImages, HuggingFaceImages, ImageSource, TarImages

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
    assert f"it is not a file. (a {'named pipe' if kind == 'pipe' else kind}" in problem.reason
    rows = ImageRows(found, SMALL)
    assert sum(rows[at].image is not None for at in range(len(rows))) == 2
    with pytest.raises(FeatureError, match=r"not a file(.|\n)*y\.tar"):
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


class Level(nn.Module):
    """The level of an image's first pixel as its only feature."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1)."""
        result: torch.Tensor = self.fc(images[:, :1, 0, 0] * 255)
        return result


def read(source: ImageSource, *, workers: int = 0, rows: Any = None) -> Extracted:
    """Read a source in batches of four, and leave out what cannot be decoded."""
    images = ImageRows(source, SMALL, rows=rows)
    options: dict[str, Any] = {"num_workers": workers, "undecodable": "skip"}
    found = extract(Level(), images, dtype="float32", batch_rows=4, **options)
    assert isinstance(found, Extracted)
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_in_order(tmp_path: Path, workers: int) -> None:
    """Rows come in order, with their own pixels, whatever the number of workers."""
    source = folder(tmp_path, 11)
    levels = read(source, workers=workers).features
    assert levels.flatten().round().tolist() == list(range(11))
    chosen = read(source, workers=workers, rows=[9, 0, 6, 7, 8]).features
    assert chosen.flatten().round().tolist() == [9, 0, 6, 7, 8]


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_are_skipped(tmp_path: Path, workers: int) -> None:
    """They are left out and listed; a batch of them alone is passed over."""
    broken = [1, 4, 5, 6, 7, 9]
    source = folder(tmp_path, 11, broken)
    kept = [row for row in range(11) if row not in broken]
    found = read(source, workers=workers)
    assert found.features.flatten().round().tolist() == kept
    assert found.skipped == tuple(f"id{row}" for row in broken)
    problem = ImageRows(source, SMALL)[4].problem
    assert problem is not None
    assert (problem.row, problem.id) == (4, "id4")
    assert "4.png" in problem.reason


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_are_refused(tmp_path: Path, workers: int) -> None:
    """The first batch with one is an error that lists them, without a worker's traceback."""
    rows = ImageRows(folder(tmp_path, 12, [5, 7]), SMALL)
    with pytest.raises(FeatureError) as caught:
        extract(Level(), rows, batch_rows=4, num_workers=workers)
    message = str(caught.value)
    assert message.startswith("2 of the images in rows 4 to 7 cannot be decoded")
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
    with pytest.raises(FeatureStoreError, match=r"2\.png"):
        read(Failing(range(4)), workers=workers)


DYING = """
import os
from torch import nn
from catwise import extract
from catwise.errors import ConfigError
from catwise.models import Preprocessing
from catwise.models.loading import ImageRows
from catwise.models.sources import ImageSource

class Dying(ImageSource):
    def locate(self, row):
        os._exit(1)

try:
    rows = ImageRows(Dying([0]), Preprocessing(size=(4, 4)))
    extract(nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), rows, num_workers=1)
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

    with pytest.raises(MissingExtraError, match=r"catwise\[dicom\]"):
        read(Medical([0]), workers=workers)


def test_some_rows_of_a_source(tmp_path: Path) -> None:
    """Rows are those that were asked for; what cannot be read is None; others are refused."""
    rows = ImageRows(folder(tmp_path, 5, [3]), SMALL, rows=[4, 3, 0])
    assert [rows[at].row for at in range(len(rows))] == [4, 3, 0]
    assert rows[1].image is None
    with pytest.raises(IdError, match=r"\[5, -1\]"):
        ImageRows(rows.source, SMALL, rows=[0, 5, -1])


def test_random_state_is_untouched(tmp_path: Path) -> None:
    """Reading images draws nothing from torch's global generator."""
    images, model = ImageRows(folder(tmp_path, 3), SMALL), Level()
    before = torch.get_rng_state()
    extract(model, images, num_workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_white_reaches_the_image(tmp_path: Path) -> None:
    """Options of reading hold for the rows too."""
    Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)).save(tmp_path / "a.png")
    image = ImageRows(FolderImages(tmp_path, ["a.png"]), SMALL, white=2000)[0].image
    assert image is not None
    assert torch.equal(image, torch.full((3, 4, 4), 0.5))
