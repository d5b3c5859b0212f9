"""An image file for each labelled id."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise.errors import IdError, nearest
from catwise.models.sources import FolderImages, ImageSource, TarImages, find_shards

_LOOKED_AT = 5_000


class FoundImages(NamedTuple):
    """Images that were looked for.

    Attributes:
        source: of the images, by id.
        missing: the ids that have no image.
        n_unlabelled: images that have no labels.
    """

    source: ImageSource
    missing: tuple[str, ...]
    n_unlabelled: int


def find_images(
    root: str | os.PathLike[str],
    ids: NDArray[np.str_],
    *,
    unused: Iterable[str] = (),
    skip_missing: bool = False,
) -> FoundImages:
    """The images of some ids: in tar shards, or files named after the ids in a folder.

    An id is a path below the folder, such a path without its suffix, or a file's name without it.

    Args:
        root: a folder of images, a folder of .tar shards, or one shard.
        ids: (N,) ids.
        unused: ids that are labelled, too, and whose images are not asked for.
        skip_missing: list ids without an image instead of refusing them.

    Raises:
        IdError: If images are missing (three are named), or an id fits several files.
        ConfigError: If there are no images at all.
    """
    path = Path(root)
    if shards := find_shards(path):
        source = TarImages(shards)
        there = set(source.ids.tolist())
        missing = tuple(one for one in ids.tolist() if one not in there)
        names, shown = sorted(there)[:_LOOKED_AT], f"samples of '{root}'"
        found = FoundImages(source, missing, len(there - {*ids.tolist(), *unused}))
    else:
        names = FolderImages.scan(path).ids.tolist()
        found, shown = _in_folder(path, names, ids, set(unused)), f"files of '{root}'"
    if found.missing and not (skip_missing and len(found.missing) < len(ids)):
        raise _missing(found.missing, len(ids), names, shown)
    return found


def _in_folder(
    root: Path, names: list[str], ids: NDArray[np.str_], unused: set[str]
) -> FoundImages:
    wanted = set(ids.tolist())
    found: dict[str, list[str]] = {}
    n_unlabelled = 0
    for name in names:
        stem = name.rpartition(".")[0]
        keys = {name, stem, stem.rpartition("/")[2]}
        n_unlabelled += not (keys & wanted or keys & unused)
        for key in keys & wanted:
            found.setdefault(key, []).append(name)
    several = [(one, files) for one, files in found.items() if len(files) > 1]
    if several:
        raise IdError(
            f"{len(several):,} ids fit several image files.",
            found=f"{several[0][0]!r}: {', '.join(map(repr, several[0][1][:3]))}",
            remedy="use paths below the folder as ids",
        )
    there = [one for one in ids.tolist() if one in found]
    source = FolderImages(root, [found[one][0] for one in there], np.array(there, dtype=np.str_))
    missing = tuple(one for one in ids.tolist() if one not in found)
    return FoundImages(source, missing, n_unlabelled)


def _missing(missing: Sequence[str], n_ids: int, names: Sequence[str], shown: str) -> IdError:
    stems = [name.rpartition(".")[0] or name for name in names[:_LOOKED_AT]]
    first = f"{missing[0]!r}{nearest(missing[0], stems)}"
    return IdError(
        f"{len(missing):,} of {n_ids:,} labelled images are not there.",
        found=f"nothing for {', '.join([first, *map(repr, missing[1:3])])}; "
        f"{shown}: {', '.join(map(repr, names[:3]))}",
        expected="files named after the ids, with any image suffix",
        remedy="--id-column names the column of the ids; --id-prefix, --id-suffix, --strip-prefix "
        "and --strip-suffix change them; --missing skip leaves these images out",
    )


def listed_images(
    root: str | os.PathLike[str], paths: Sequence[str], ids: Any, *, skip_missing: bool = False
) -> FoundImages:
    """The images of some ids, where a list says each one's file.

    Args:
        root: the folder that paths start from.
        paths: (N,) paths with "/".
        ids: (N,) ids.
        skip_missing: list ids without an image instead of refusing them.

    Raises:
        IdError: If files are missing (three are named).
        ConfigError: If there is no such folder.
    """
    told = [row for row, path in enumerate(paths) if path]
    names = [str(one) for one in ids]
    whole = FolderImages(root, [paths[row] for row in told], [names[row] for row in told])
    there = [row for row in told if (whole.root / paths[row]).is_file()]
    if len(there) == len(names):
        return FoundImages(whole, (), 0)
    kept = set(there)
    missing = [row for row in range(len(names)) if row not in kept]
    if not skip_missing or not there:
        shown = [
            repr(str(whole.root / paths[row])) if paths[row] else f"no path of {names[row]!r}"
            for row in missing[:3]
        ]
        raise IdError(
            f"{len(missing):,} of {len(names):,} labelled images are not in '{root}'.",
            found=", ".join(shown),
            remedy="--images names the folder that the paths start from; --missing skip leaves "
            "these images out",
        )
    source = FolderImages(root, [paths[row] for row in there], [names[row] for row in there])
    return FoundImages(source, tuple(names[row] for row in missing), 0)


def places(source: ImageSource, ids: NDArray[np.str_]) -> NDArray[np.int64]:
    """(N,) the row of each id in a source; −1 where it is not there."""
    at = {name: row for row, name in enumerate(source.ids.tolist())}
    return np.array([at.get(one, -1) for one in ids.tolist()], dtype=np.int64)
