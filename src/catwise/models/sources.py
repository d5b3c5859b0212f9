"""Where images come from: a folder, tar shards, a data set.

A source knows its images by row number, has an id for each and decodes one when asked; nothing is
unpacked to the disk, and nothing but ids and places is held in memory. `ImageRows` makes tensors of
a source's images, with any number of workers (see :mod:`catwise.models.loading`).

A source of your own gives the ids to `ImageSource` and says where the bytes of a row are:

    class Mine(ImageSource):
        def __init__(self, keys):
            super().__init__(keys)

        def locate(self, row):
            return my_bytes_of(self.id(row)), self.id(row)   # path, bytes or file; its name
"""

from __future__ import annotations

import abc
import hashlib
import operator
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from catwise._extras import import_optional
from catwise._limits import MAX_TAR_HEADER, BoundedStream
from catwise.data import Dataset
from catwise.errors import CatwiseError, ConfigError, FeatureError, IdError, ShapeError
from catwise.features.ids import as_ids, compact, digest_of
from catwise.models.core import Undecodable
from catwise.models.images import DICOM_SUFFIXES, check_bytes, open_file, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from catwise.models.images import Enough, ImageInput


IMAGE_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp"),
    *(".pgm", ".ppm", ".pbm", ".jp2", ".avif", ".heic", *DICOM_SUFFIXES),
)
_TAIL: Final = 65536  # more than the padding after an end marker
_COMPRESSED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


class ImageSource(abc.ABC):
    """Images in a fixed order, read one by one; picklable. ``source[row]`` is (id, image).

    In place of an image that cannot be read comes an `Undecodable`. Ids (N,) are different texts or
    whole numbers; `compact_ids` are they as an Arrow array.
    """

    def __init__(self, ids: Any) -> None:
        self.compact_ids = compact(as_ids(ids))

    @abc.abstractmethod
    def locate(self, row: int) -> tuple[ImageInput, str]:
        """Path, bytes or binary file of an image, 0 <= row < N, and its name in an error."""

    def __len__(self) -> int:
        return len(self.compact_ids)

    @property
    def origin(self) -> str | None:
        """Where the images are, in a line: what tells two sources with the same ids apart."""
        return None

    @property
    def ids(self) -> NDArray[np.str_]:
        """(N,) ids in the order of the rows, a new array."""
        return np.array(self.compact_ids.to_pylist(), dtype=np.str_)

    def id(self, row: int) -> str:
        """Id of one image."""
        return str(self.compact_ids[row].as_py())

    def stamp(self, row: int) -> str | None:  # noqa: ARG002 - of sources that can tell
        """What is another text once the image's file has changed; None where that is not known."""
        return None

    def read(
        self,
        row: int,
        *,
        channels: int = 3,
        white: float | None = None,
        enough: Enough | None = None,
    ) -> Image:
        """Decode one image; options and errors are those of :func:`read_image`."""
        place, name = self.locate(row)
        return read_image(place, channels=channels, name=name, white=white, enough=enough)

    def __getitem__(self, row: int) -> tuple[str, Image | Undecodable]:
        at = operator.index(row)
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {len(self)} images")
        at %= len(self)
        name = self.id(at)
        try:
            return name, self.read(at)
        except FeatureError as error:
            return name, Undecodable(at, name, error)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_images={len(self)})"


class FolderImages(ImageSource):
    """Image files, as a table names them. No file is touched before it is read.

    Args:
        root: the folder that paths start from.
        paths: (N,) paths with "/", relative to `root`, or absolute ones below it. Links in the
            folder are followed, wherever they lead.
        ids: (N,) of the images; the paths when not given.

    Raises:
        ConfigError: If `root` is not a folder, or paths are empty or lead out of it.
        IdError: If an id is empty or a duplicate.
        ShapeError: If ids and paths are not as many.

    >>> images = FolderImages(".", ["a/1.jpg", "b/2.jpg"], ["1", "2"])
    >>> len(images), images.id(1)
    (2, '2')
    """

    def __init__(self, root: str | os.PathLike[str], paths: Any, ids: Any = None) -> None:
        texts = np.asarray(paths)
        if texts.ndim != 1 or (texts.size and texts.dtype.kind not in "UO"):
            raise ShapeError(
                "paths must be one text for each image.",
                found=f"shape {texts.shape}, dtype {texts.dtype}",
                expected="shape (N,)",
            )
        names = [os.fspath(item) for item in texts.tolist()]
        if empty := [row for row, name in enumerate(names) if not name]:
            raise ConfigError(
                "images without a path cannot be read.",
                found=f"{len(empty):,} empty paths of {len(names):,} (first: row {empty[0]:,})",
                remedy="leave these images out, or give the paths",
            )
        self.root = Path(root)
        if not self.root.is_dir():
            raise ConfigError(f"the image folder '{root}' is not there.", remedy="check the path")
        _refuse_outside(self.root, names)
        super().__init__(as_ids(names if ids is None else ids, len(names)))
        self._paths = compact(names)

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> FolderImages:
        """The images of a data set, with its ids."""
        return cls(dataset.root, dataset.paths, dataset.labels.ids)

    @classmethod
    def scan(
        cls, root: str | os.PathLike[str], *, suffixes: Sequence[str] = IMAGE_SUFFIXES
    ) -> FolderImages:
        """All image files under a folder, sorted by path; ids are the paths.

        Hidden files and folders are left out, and links to folders are not followed. ConfigError if
        there is no such folder, or no image in it.
        """
        wanted = tuple(suffix.lower() for suffix in suffixes)
        found = []
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(folder).relative_to(root)
            shown = (name for name in files if not name.startswith("."))
            images = (name for name in shown if name.lower().endswith(wanted))
            found += [(inside / name).as_posix() for name in images]
        if not found:
            raise ConfigError(
                f"there are no images in '{root}'.",
                expected="files that end in " + ", ".join(wanted),
            )
        return cls(root, sorted(found))

    @property
    def origin(self) -> str:
        """The folder, and a digest of the paths."""
        return f"{self.root.absolute()} (paths {digest_of(self._paths)})"

    def locate(self, row: int) -> tuple[ImageInput, str]:
        """Path of one image."""
        path = self.root / str(self._paths[row].as_py())
        return path, str(path)

    def stamp(self, row: int) -> str:
        """Size and time of change of the file."""
        return _file_stamp(Path(self.locate(row)[0]))  # type: ignore[arg-type]


def _file_stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # reading it says what is wrong
        return "absent"
    return f"{found.st_size}:{found.st_mtime_ns}"


def _refuse_outside(root: Path, names: Sequence[str]) -> None:
    """Refuse paths that lead out of the folder by "..", or by being absolute."""
    odd = [name for name in names if ".." in name or ":" in name or name[0] in "/\\"]
    real = os.path.realpath(root)
    tops = (root.absolute(), real)

    def is_inside(name: str) -> bool:
        if "\0" in name:
            return True  # no file has such a name
        if ".." in PurePath(name).parts:  # behind a link it leads elsewhere than it seems
            return Path(os.path.realpath(root / name)).is_relative_to(real)
        path = Path(name)
        return not path.is_absolute() or any(path.is_relative_to(top) for top in tops)

    if outside := [name for name in odd if not is_inside(name)]:
        raise ConfigError(
            f"paths of images lead out of the folder '{root}'.",
            found=f"{len(outside):,} of {len(names):,}: {', '.join(map(repr, outside[:3]))}",
            expected="paths below the folder",
            remedy="name the folder that holds all of them ('/' for absolute paths)",
        )


def find_shards(root: Path) -> list[Path]:
    """The tar shards of a folder, or the one that is named; none if it is a folder without."""
    return [root] if root.is_file() or root.suffix == ".tar" else sorted(root.glob("*.tar"))


class TarImages(ImageSource):
    """Images in tar shards, as WebDataset writes them: read in place, never unpacked.

    The headers are read once. Files of one name up to its first dot are one sample; that name, with
    its folders, is the id. Names are ids and nothing else: no file is made or opened by
    them, so `../` and absolute names do no harm. Links, folders and hidden files are passed over.

    Attributes:
        n_without_image: samples without an image, which are passed over.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        extension: str | None = None,
        shard_in_id: bool = False,
    ) -> None:
        shards = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        self.paths = tuple(Path(path) for path in shards)
        wanted = None if extension is None else extension.lower().removeprefix(".")
        ids: list[str] = []
        names: list[str] = []
        places: list[tuple[int, int, int]] = []
        self.n_without_image = 0
        for number, path in enumerate(self.paths):
            images, n_samples = _samples(path, wanted)
            self.n_without_image += n_samples - len(images)
            for key, (name, start, size) in images.items():
                ids.append(f"{path.name.partition('.')[0]}/{key}" if shard_in_id else key)
                names.append(name)
                places.append((number, start, size))
        if not ids:
            raise ConfigError(
                "there are no images in the tar shards.",
                found=f"{len(self.paths):,} shards, {self.n_without_image:,} samples",
                remedy="check the paths and the extension",
            )
        _refuse_repeated(ids, shard_in_id=shard_in_id)
        super().__init__(ids)
        self._names = compact(names)
        self._places = np.array(places, dtype=np.int64)

    @property
    def origin(self) -> str:
        """The first shard, how many there are, and a digest of them and of what is in them."""
        inside = hashlib.sha256(self._places.tobytes()).hexdigest()[:16]
        shards = f"{len(self.paths):,} shards, {digest_of(self._names)}, {inside}"
        return f"{self.paths[0].absolute()} (of {shards})"

    def locate(self, row: int) -> tuple[ImageInput, str]:
        """Bytes of one image."""
        number, start, size = self._places[row].tolist()
        path = self.paths[number]
        name = f"{path}:{self._names[row].as_py()}"
        with _shard(path), open_file(path) as file:
            check_bytes(size)
            file.seek(start)
            data = file.read(size)
        if len(data) != size:
            raise FeatureError(f"'{name}': the shard was cut off after it was opened.")
        return data, name

    def stamp(self, row: int) -> str:
        """Size and time of change of the shard, and the place in it."""
        number, start, size = self._places[row].tolist()
        return f"{_file_stamp(self.paths[number])}:{start}:{size}"


@contextmanager
def _shard(path: Path) -> Iterator[None]:
    """One error for whatever is wrong with a shard."""
    try:
        yield
    except CatwiseError:
        raise
    except Exception as error:  # tarfile raises many things on bad bytes
        packed = False
        if isinstance(error, tarfile.ReadError):
            with path.open("rb") as file:
                packed = file.read(4).startswith(_COMPRESSED)
        raise FeatureError(
            f"the tar shard '{path}' cannot be read.",
            found="it is compressed" if packed else f"{type(error).__name__}: {error}",
            remedy="unpack it to a plain .tar" if packed else "check the path, or copy it again",
        ) from error


def _samples(path: Path, wanted: str | None) -> tuple[dict[str, tuple[str, int, int]], int]:
    """(name, start, size) of the image of each sample, and how many samples there are."""
    images: dict[str, tuple[str, int, int]] = {}
    keys = set()
    for member in _members(path):
        folder, _, file = member.name.rpartition("/")
        stem, dot, ending = file.partition(".")
        if not stem or not dot or "__MACOSX" in PurePosixPath(folder).parts:
            continue
        key = f"{folder}/{stem}" if folder else stem
        keys.add(key)
        ending = ending.lower()
        if not (f".{ending}".endswith(IMAGE_SUFFIXES) if wanted is None else ending == wanted):
            continue
        if key in images:
            raise IdError(
                f"a sample of the tar shard '{path}' holds several images.",
                found=f"{images[key][0]!r} and {member.name!r}",
                remedy="say which one by its extension, such as extension='jpg'",
            )
        images[key] = (member.name, member.offset_data, member.size)
    return images, len(keys)


def _headers(file: BinaryIO) -> tarfile.TarFile:
    """A shard whose headers are read, each of which is bounded."""
    bounded = BoundedStream(file, size=MAX_TAR_HEADER, what="a header")
    return tarfile.open(fileobj=cast("BinaryIO", bounded), mode="r:")


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files of a shard, by their headers alone; all of them, or an error."""
    with _shard(path), open_file(path) as file, _headers(file) as archive:
        length = file.seek(0, os.SEEK_END)
        last = -1
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined] # or it would keep them all
            whole = 0 <= member.size <= length - member.offset_data or not member.isreg()
            if member.offset <= last or not whole or member.sparse is not None:
                raise FeatureError(
                    f"the tar shard '{path}' holds a file that is not whole.",
                    found=f"{member.name!r}, {member.size:,} bytes",
                    remedy="copy the shard again, or write it without sparse files",
                )
            last = member.offset
            if member.isreg():
                yield member
        # tarfile takes a damaged header for the end: look whether the end is there, and is one.
        file.seek(archive.offset)
        rest = file.read(_TAIL)
        if len(rest) < tarfile.BLOCKSIZE or any(rest):
            raise FeatureError(
                f"the tar shard '{path}' does not end where its files do.",
                found="no end marker" if not any(rest) else "a damaged header, or a second archive",
                remedy="copy or write the shard again",
            )


def _refuse_repeated(ids: list[str], *, shard_in_id: bool) -> None:
    if len(set(ids)) == len(ids):
        return
    values, counts = np.unique(np.array(ids, dtype=np.str_), return_counts=True)
    first = str(values[counts > 1][0])
    raise IdError(
        "samples of the tar shards share their ids.",
        found=f"{len(ids) - len(set(ids)):,} repeated (first: {first!r})",
        remedy="give the shards different names" if shard_in_id else "use shard_in_id=True",
    )


class HuggingFaceImages(ImageSource):
    """Images of a Hugging Face `datasets` data set, decoded by catwise.

    `image_column` holds images, encoded bytes or paths.
    """

    def __init__(
        self, dataset: Any, image_column: str = "image", id_column: str | None = None
    ) -> None:
        columns = _columns(dataset)
        for column in (image_column, *([] if id_column is None else [id_column])):
            if column not in columns:
                raise ConfigError(
                    f"the data set has no column {column!r}.", expected=" or ".join(columns)
                )
        plain = dataset.with_format(None)
        rows = range(len(plain))
        super().__init__(list(rows) if id_column is None else list(plain[id_column]))
        images = plain.select_columns([image_column])
        if type(images.features[image_column]).__name__ == "Image":
            datasets = import_optional(
                "datasets", extra="datasets", purpose="reading a Hugging Face data set"
            )
            images = images.cast_column(image_column, datasets.Image(decode=False))
        self._images = images
        self._column = image_column

    @property
    def origin(self) -> str:
        """The column, and the fingerprint that `datasets` has for its data sets."""
        return f"column {self._column!r} ({getattr(self._images, '_fingerprint', None)})"

    def locate(self, row: int) -> tuple[ImageInput, str]:
        """Bytes or path of one image."""
        value = self._images[row][self._column]
        name = f"row {row:,} (id {self.id(row)!r})"
        if isinstance(value, Mapping):
            name = value.get("path") or name
            value = value["path"] if value.get("bytes") is None else value["bytes"]
        if isinstance(value, (str, bytes)) and value:
            return value, name
        raise FeatureError(
            f"'{name}': there is no image in the column {self._column!r}.",
            found=type(value).__name__,
            expected="an image, its bytes or its path",
        )


def _columns(dataset: Any) -> list[str]:
    """Names of the columns of what must be one split of a data set in memory or on the disk."""
    if isinstance(dataset, Mapping):
        raise ConfigError(
            "choose one split of the data set.", found=" and ".join(map(str, dataset))
        )
    needed = ("with_format", "select_columns", "cast_column", "__len__")
    if not all(hasattr(dataset, name) for name in needed):
        raise ConfigError(
            "images are read from a datasets.Dataset.",
            found=type(dataset).__name__,
            remedy="load it without streaming=True",
        )
    return list(dataset.column_names)


def images_at(root: Path) -> ImageSource:
    """The images of a folder, or of tar shards: those of a folder, or one that is named."""
    shards = find_shards(root)
    return TarImages(shards) if shards else FolderImages.scan(root)
