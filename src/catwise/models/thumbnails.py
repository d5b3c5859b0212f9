"""Small pictures of the images whose score moved most, for a report."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from catwise._text import plural
from catwise.errors import FeatureError
from catwise.models.images import DICOM_SUFFIXES, as_channels, open_file
from catwise.models.sources import ImageSource
from catwise.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE: Final = 96
"""Pixels of the longer side."""

MOST: Final = 600
"""Places of pictures in one report, at most; one image may have several."""

MAX_BYTES: Final = 2_000_000
"""Characters that they add to it, at most."""

MEDICAL: Final = ("chestxray14", "chexpert", "mimic_cxr", "vindr")
"""Data sets whose images are shown only where someone asks for it."""

_QUALITY: Final = 75
_START: Final = "data:image/jpeg;base64,"


def make_thumbnails(
    curves: Mapping[str, Any],
    source: ImageSource,
    *,
    wanted: bool | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Pictures for a report's images whose probability moved most.

    First the one that moved most of every category, then the second, and so on, until there are 600
    or they take 2 MB. The same images give the same bytes.

    Args:
        curves: what curves are drawn from, as `TuneResult.curves`: the images by their ids.
        source: of the images, by these ids.
        wanted: None: none at all where one of them is DICOM, since patients may be recognised.
        progress: called now and then.

    Returns:
        JSON-ready, for the document of a page: `images`, JPEGs of at most 96 x 96 pixels as "data:"
        addresses by id; `categories`, by name the ids that are shown; `problems`, by id why an
        image is not; `notes`.
    """
    uses = [(name, one["id"]) for name, one in _in_turn(curves["categories"]) if one["id"]]
    rows = _rows(source, list(dict.fromkeys(one for _, one in uses)))
    if wanted is None and any(_is_dicom(source, row) for row in list(rows.values())[:MOST]):
        return {"notes": ["Images are not shown: they are medical (DICOM)."]}
    images: dict[str, str] = {}
    problems: dict[str, str] = {}
    shown: dict[str, list[str]] = {}
    n_places, size = 0, 0
    for at, (name, one) in enumerate(uses):
        if one not in images and one not in problems:
            _add(source, rows.get(one), one, images, problems)
        full = n_places == MOST or size + len(images.get(one, "")) > MAX_BYTES
        if full or len(problems) > MOST:
            break
        if one in images:
            shown.setdefault(name, []).append(one)
            n_places, size = n_places + 1, size + len(images[one])
        if progress is not None:
            progress(Progress("thumbnails", at + 1, len(uses)))
    kept = {one for listed in shown.values() for one in listed}
    return {
        "images": {one: uri for one, uri in images.items() if one in kept},
        "categories": shown,
        "problems": problems,
        "notes": _notes(len(uses), n_places, problems),
    }


def thumbnail(image: Image) -> bytes:
    """A JPEG of at most 96 x 96 pixels of an image that was read, without its metadata."""
    from PIL import Image

    ready = as_channels(image)
    if ready.mode == "F":
        levels = np.clip(np.rint(np.asarray(ready) * 255), 0, 255).astype(np.uint8)
        ready = Image.fromarray(levels)
    scale = SIDE / max(ready.size)
    width, height = (max(1, round(side * min(1.0, scale))) for side in ready.size)
    if (width, height) != ready.size:
        ready = ready.resize((width, height), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    ready.save(file, format="JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()


def _in_turn(categories: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The first of every category, then the second of every one, and so on."""
    moved = [(str(one["category"]), one.get("moved") or []) for one in categories]
    for place in range(max((len(rows) for _, rows in moved), default=0)):
        yield from ((name, rows[place]) for name, rows in moved if place < len(rows))


def _rows(source: ImageSource, ids: Sequence[str]) -> dict[str, int]:
    """The row of each id that is there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = source.compact_ids
    at = pc.index_in(pa.array(ids, type=texts.type), value_set=texts).to_pylist()
    return {one: row for one, row in zip(ids, at, strict=True) if row is not None}


def _is_dicom(source: ImageSource, row: int) -> bool:
    """Whether an image is DICOM, by its name or its first bytes; False where it cannot be read."""
    try:
        place, name = source.locate(row)
        if name.lower().endswith(DICOM_SUFFIXES):
            return True
        if isinstance(place, (str, os.PathLike)):
            with open_file(place) as file:
                return file.read(132)[128:] == b"DICM"
        return isinstance(place, bytes) and place[128:132] == b"DICM"
    except (FeatureError, OSError):
        return False  # it will be said when the picture is made


def _enough(height: int, width: int) -> tuple[int, int]:
    """The (height, width) at which a JPEG has pixels enough to be made small."""
    longest = max(height, width)
    return 2 * SIDE * height // longest, 2 * SIDE * width // longest


def _add(
    source: ImageSource,
    row: int | None,
    name: str,
    images: dict[str, str],
    problems: dict[str, str],
) -> None:
    """The picture of an image, or why there is none."""
    if row is None:
        problems[name] = "the image is not there"
        return
    try:
        picture = thumbnail(source.read(row, enough=_enough))
    except FeatureError:
        problems[name] = "the image cannot be decoded"
        return
    images[name] = _START + base64.b64encode(picture).decode("ascii")


def _notes(n_uses: int, n_places: int, problems: Mapping[str, str]) -> list[str]:
    notes = []
    if problems:
        notes.append(f"{plural(len(problems), 'image')} cannot be shown.")
    if (rest := n_uses - n_places - len(problems)) > 0:
        notes.append(f"{plural(rest, 'further image')} would make the page too large.")
    return notes
