"""A feature store brought up to date: only images that were added or changed are run again.

Beside the features the store keeps what its images were: a line for each, a stamp (size and time of
the file) and the id, in `images.txt`. Images whose id and stamp are the same keep their rows, as
they are; those of removed images go. A run that was killed left the old store, and features of new
images that the next call takes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._io import put_folder, write_text
from catwise._limits import MAX_TEXT, read_within
from catwise._lock import exclusive, remove
from catwise.engines.base import Engine
from catwise.errors import ConfigError, OutputError
from catwise.features import BLOCK_ROWS, FeatureStore, open_store
from catwise.features.places import is_url
from catwise.features.writer import store_writer
from catwise.models.core import LoadedModel
from catwise.models.extraction import extract, open_pass
from catwise.models.layers import ranks_of
from catwise.models.loading import ImageRows
from catwise.models.parts import STAMPS_KEY, differences, of_one_image
from catwise.models.sources import ImageSource
from catwise.progress import ProgressCallback

STAMPS: Final = "images.txt"


class Updated(NamedTuple):
    """What an update did.

    Attributes:
        store: with the features of all images as they are now.
        added: images that were not there before, run now.
        changed: images that were there with other content, run now.
        kept: images that were not run again.
        removed: images that are not there any more.
    """

    store: FeatureStore
    added: int
    changed: int
    kept: int
    removed: int

    @property
    def is_unchanged(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.added or self.changed or self.removed)

    def done(self) -> dict[str, int]:
        """The counts; JSON-ready."""
        counts = self._asdict()
        del counts["store"]
        return counts

    def __str__(self) -> str:
        return (
            f"{self.added:,} images added, {self.changed:,} changed, {self.removed:,} removed; "
            f"{self.kept:,} kept"
        )


def update_features(
    model: LoadedModel,
    images: ImageSource | ImageRows,
    out: str | os.PathLike[str],
    *,
    engine: Engine | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Updated:
    """Make a feature store, or bring it up to date with its images.

    An image is unchanged while its file has the size and the time of change that it had; in tar
    shards, its place in the shard, too. Unchanged rows keep their bits; others are what
    `catwise.extract` gives, to rounding: they run in other batches than in one run over all. What
    cannot be decoded and is unchanged is not tried again (``undecodable="skip"``).

    Args:
        model: as an adapter loads it.
        images: the images as they are now.
        out: the folder of the store; not an URL.
        engine: as in `catwise.extract`.
        progress: called after each batch.
        **options: of `catwise.extract`, the same each time.

    Returns:
        The store, and what was done.

    Raises:
        ConfigError: If `out` is an URL, several processes run, or the images do not say whether
            they have changed.
        OutputError: If the store was made otherwise (what differs is named), or holds no stamps.
        CatwiseError: As :func:`catwise.extract`.
    """
    if is_url(out) or ranks_of()[1] > 1:
        raise ConfigError(
            "a feature store is updated in a folder, by one process.",
            remedy="make it anew with overwrite=True",
        )
    folder = Path(os.path.realpath(out))
    rows = images if isinstance(images, ImageRows) else ImageRows(images, model.preprocessing)
    now = _stamps_of(rows)
    if not folder.is_dir() or not any(folder.iterdir()):
        how = {**options, "overwrite": True, "origin": _origin_of(now)}  # of unfinished work
        made: Any = extract(model, rows, folder, **how, engine=engine, progress=progress)
        _write_stamps(folder, now)
        return Updated(made, len(now), 0, 0, 0)
    store = open_store(folder)
    items = open_pass(model, rows, **{"dtype": "float16", **options}).items()
    _check_items(store, items, folder)
    before = _read_stamps(folder)
    names = list(now)
    todo = [at for at, name in enumerate(names) if before.get(name) != now[name]]
    added = sum(names[at] not in before for at in todo)
    removed = sum(name not in now for name in before)
    done = (added, len(todo) - added, len(now) - len(todo), removed)
    if not todo and names == list(before):
        return Updated(store, *done)
    with exclusive(folder, parents=True):
        some = ImageRows(rows.source, rows.preprocessing, rows=rows.rows[todo], white=rows.white)
        how = {**options, "origin": _origin_of({names[at]: now[names[at]] for at in todo})}
        how |= {"engine": engine}
        new = _new_rows(model, some, _beside(folder), progress, how) if todo else None
        _merge(_Merge(folder, store, new, items, now, todo))
    return Updated(open_store(folder), *done)


def _new_rows(
    model: LoadedModel,
    some: ImageRows,
    beside: Path,
    progress: ProgressCallback | None,
    options: dict[str, Any],
) -> FeatureStore | None:
    """Features of the images that are new, in a store beside; None if none can be decoded."""
    lost = options.get("undecodable") == "skip"
    if lost and all(some[at].image is None for at in range(len(some))):
        return None
    made: Any = extract(model, some, beside, **options, overwrite=True, progress=progress)
    return made  # type: ignore[no-any-return]


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.new")


class _Merge(NamedTuple):
    folder: Path
    old: FeatureStore
    new: FeatureStore | None
    items: dict[str, Any]
    now: dict[str, str]
    todo: list[int]


def _merge(work: _Merge) -> None:
    """Write rows of both stores in the order of the images, and put them in the old one's place."""
    names = list(work.now)
    fresh = {names[at] for at in work.todo}
    places = [
        {name: row for row, name in enumerate(() if one is None or one.ids is None else one.ids)}
        for one in (work.old, work.new)
    ]
    kept = [name for name in names if name in places[name in fresh]]
    which = np.array([name in fresh for name in kept], dtype=bool)
    rows = np.array([places[name in fresh][name] for name in kept], dtype=np.int64)
    made = dict(work.old.origin["extract"])
    other = {} if work.new is None else work.new.origin["extract"]
    made |= {
        "items": {key: value for key, value in work.items.items() if key != "origin"},
        "images": len(names),
        "skipped": [name for name in names if name not in places[name in fresh]],
        "gap": max(filter(None, (made["gap"], other.get("gap"))), default=made["gap"]),
        "off": max(made["off"], other.get("off", 0)),
        "updates": made.get("updates", 0) + 1,
    }
    origin = {**work.old.origin, **_origin_of(work.now), "extract": made}
    beside = _beside(work.folder)
    temporary = beside.with_name(f"{beside.name}.joined")
    with store_writer(temporary, dtype=work.old.dtype, origin=origin, overwrite=True) as writer:
        for block in _joined(work.old, work.new, which, rows):
            writer.write(block)
        writer.set_ids(np.array(kept, dtype=np.str_))
    _write_stamps(temporary, work.now)
    put_folder(temporary, work.folder)
    remove(beside)


def _joined(
    old: FeatureStore, new: FeatureStore | None, which: NDArray[np.bool_], rows: NDArray[np.int64]
) -> Iterator[NDArray[Any]]:
    """Rows of the old store, and of the new one where `which` says so, some at a time."""
    for start in range(0, len(rows), BLOCK_ROWS):
        at, is_new = rows[start : start + BLOCK_ROWS], which[start : start + BLOCK_ROWS]
        block = np.empty((len(at), old.shape[1]), dtype=old.block(0, 1).dtype)
        if not is_new.all():
            block[~is_new] = old.rows(at[~is_new])
        if new is not None and is_new.any():
            block[is_new] = new.rows(at[is_new])
        yield block


def _check_items(store: FeatureStore, items: dict[str, Any], folder: Path) -> None:
    """Refuse a store that was made otherwise than it would be now."""
    made = store.origin.get("extract")
    if not isinstance(made, dict) or store.ids is None or not (folder / STAMPS).is_file():
        raise OutputError(
            f"'{folder}' does not say from which images it was made.",
            expected="a store that an update made",
            remedy="choose another name, or remove it: it is made anew",
        )
    before, now = of_one_image(made["items"]), of_one_image(items)
    if before != now:
        raise OutputError(
            f"'{folder}' was made otherwise.",
            found=differences(before, now),
            remedy="repeat the options and the machine, choose another name, or remove it: it is "
            "made anew",
        )


def _stamps_of(rows: ImageRows) -> dict[str, str]:
    """What tells whether an image has changed, by id, in order."""
    ids = rows.compact_ids.to_pylist()
    stamps = [rows.source.stamp(int(row)) for row in rows.rows]
    if any(stamp is None for stamp in stamps):
        raise ConfigError(
            f"{type(rows.source).__name__} does not say whether its images have changed.",
            expected="images in a folder, or in tar shards",
        )
    return {name: str(stamp) for name, stamp in zip(ids, stamps, strict=True)}


def _origin_of(stamps: dict[str, str]) -> dict[str, str]:
    """What tells work on images as they are from work on images as they were."""
    return {STAMPS_KEY: hashlib.sha256(json.dumps(stamps).encode()).hexdigest()}


def _write_stamps(folder: Path, stamps: dict[str, str]) -> None:
    write_text(folder / STAMPS, "".join(f"{stamp} {name}\n" for name, stamp in stamps.items()))


def _read_stamps(folder: Path) -> dict[str, str]:
    lines = read_within(folder / STAMPS, MAX_TEXT).decode("utf-8").split("\n")
    pairs = (line.partition(" ") for line in lines if line)
    return {name: stamp for stamp, _, name in pairs}
