"""Parts of a store to be: files that are written whole, found again, and joined at the end."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from catwise._io import atomic_path, put_folder, write_json
from catwise._json import TEXT, TEXTS, WHOLE, Field, parse, read_fields, read_file
from catwise._limits import MAX_JSON, check_at_most
from catwise._lock import check_place, exclusive, remove, translated
from catwise.errors import ConfigError, FeatureStoreError, OutputError, reason_of
from catwise.features.places import RemotePlace, is_url
from catwise.features.store import open_store
from catwise.features.writer import store_writer

_LENGTH: Final = struct.Struct("<Q")
_SHOWN: Final = 40
_POLL_SECONDS: Final = 0.2
_REMOTE_POLL_SECONDS: Final = 2.0
STAMPS_KEY: Final = "images as of"
"""In an origin: a digest of what the images were when they were run."""
_OF_THE_MACHINE: Final = ("processor", "rows at a time")
_BLOCK_BYTES: Final = 2**24
_SEEN_SECONDS: Final = 120.0  # until a file that another machine wrote is seen by all


class BatchOutput(NamedTuple):
    """What comes of a batch. `seen` counts its images, decoded or not; `way` says how it ran.

    `gap` is of the layer's logits, `off` of features in half precision, where they were looked at.
    """

    seen: int
    features: Tensor | None
    logits: Tensor | None
    ids: list[str] | None
    skipped: list[str]
    gap: float
    way: str = ""
    off: float = 0.0


@dataclass(frozen=True)
class PartWork:
    """The store to be, and the folder of its parts; `items` decide the store's bytes."""

    out: Path | str
    parts: Path
    items: dict[str, Any]
    part_rows: int
    n_rows: int | None
    rank: int
    world: int
    overwrite: bool

    @property
    def fingerprint(self) -> str:
        """A short digest of the items."""
        text = json.dumps(self.items, sort_keys=True).encode()
        return hashlib.sha256(text).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where these parts are."""
        return self.parts / self.fingerprint

    @property
    def _ready(self) -> list[Path]:
        return [self.folder / f"ready-{rank}-of-{self.world}" for rank in range(self.world)]

    def is_finished(self, *, resume: bool) -> bool:
        """Whether the store is there; otherwise make place for the parts, or refuse."""
        found = self.stored_items()
        if resume and found is not None and _of_any_machine(found) == _of_any_machine(self.items):
            if self.rank == 0:
                remove(self.parts)
            return True
        begun = self._begun()
        if not self.overwrite:
            self._refuse_others(found, [items for items in begun.values() if items is not None])
        if not resume and self.world > 1:
            raise ConfigError("resume=False works in one process only.", remedy="overwrite=True")
        check_place(self.folder)
        try:
            if not resume and self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write '{self.folder}'.", found=reason_of(error)) from error
        write_json(self.folder / "progress.json", self.items)
        for folder in [path for path, items in begun.items() if items is None and resume]:
            self._adopt(folder)
        return False

    def _begun(self) -> dict[Path, dict[str, Any] | None]:
        """Folders of other unfinished work that has parts, and its items; None: ours can use them.

        Work without a part, such as that of a command that was refused, is none.
        """
        begun: dict[Path, dict[str, Any] | None] = {}
        for path in self.parts.glob("*/progress.json"):
            items = _progress(path)
            if items != self.items and any(path.parent.glob("part-*")):
                usable = _wanted(items, self.items, []) == self.items
                begun[path.parent] = None if usable else items
        return begun

    def _refuse_others(self, found: Mapping[str, Any] | None, begun: list[dict[str, Any]]) -> None:
        """Refuse to write over what was made, or begun, with other items."""
        is_other = found is not None and found != self.items
        if not (is_other or begun or _has_content(self.out)):
            return
        others: Any = found if is_other else begun[0] if begun else None
        made = "was made otherwise." if is_other else "was begun otherwise, and is not finished."
        raise OutputError(
            f"'{self.out}' " + ("exists." if others is None else made),
            found=None if others is None else differences(others, self.items),
            remedy="choose another name, repeat the options, or start over with overwrite=True",
        )

    def _adopt(self, folder: Path) -> None:
        """Take parts that were made while undecodable images were refused, or had none."""
        for path in folder.glob("part-*"):
            about = _read_about(path, self.items["dtype"])
            skips = self.items["undecodable"] == "skip"
            if about and about["ids"] is not None and (skips or not about["skipped"]):
                with contextlib.suppress(FileNotFoundError):  # another process of this call has it
                    path.rename(self._path(int(path.name[5:])))

    def known(self) -> dict[int, dict[str, Any]]:
        """The parts that are there, in order, and what they say, but for the ids."""
        dtype = self.items["dtype"]
        read = ((path, _read_about(path, dtype)) for path in sorted(self.folder.glob("part-*")))
        return {int(path.name[5:]): about | {"ids": None} for path, about in read if about}

    def _end(self, known: Mapping[int, Mapping[str, Any]]) -> int | None:
        """How many parts there will be; where images are not counted, a short part is the last."""
        if self.n_rows is not None:
            return -(-self.n_rows // self.part_rows)
        ends = [part + 1 for part, about in known.items() if about["seen"] < self.part_rows]
        return min(ends, default=None)

    def missing(self, known: Mapping[int, Mapping[str, Any]]) -> Iterator[int]:
        """Those of this process's parts that are not there; without an end if that is not known."""
        end = self._end(known)
        mine: Iterable[int] = itertools.count(self.rank, self.world)
        if self.n_rows is not None and end:  # neighbours, so that reading begins once
            mine = range(self.rank * end // self.world, (self.rank + 1) * end // self.world)
        mine = itertools.takewhile(lambda part: end is None or part < end, mine)
        return (part for part in mine if part not in known)

    def write(self, part: int, batches: Iterable[BatchOutput]) -> None:
        """Write a part, whole or not at all."""
        _write_part(self._path(part), batches)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}"

    def join(self, **facts: Any) -> None:
        """Make the store, once every process has made its parts; the others wait for it."""
        write_json(self._ready[self.rank], None)
        if self.rank:
            while self.stored_items() != self.items:
                time.sleep(_REMOTE_POLL_SECONDS if is_url(self.out) else _POLL_SECONDS)
                if not self._ready[self.rank].exists() and self.stored_items() is None:
                    raise self._removed()
            return
        known, end = self._wait()
        self.publish([known[part] for part in range(end)], **facts)
        remove(self.parts)

    def stored_items(self) -> dict[str, Any] | None:
        """What made the output that is there; None if there is none, or it was made otherwise."""
        return _stored_items(self.out, self.items)

    def publish(self, about: list[dict[str, Any]], **facts: Any) -> None:
        """Make the output of all parts and put it in its place."""
        made = {
            "fingerprint": self.fingerprint,
            "items": {key: value for key, value in self.items.items() if key != "origin"},
            "images": sum(part["seen"] for part in about),
            "shape": next((part["shape"] for part in about if part["rows"]), []),
            "gap": max(part["gap"] for part in about) if self.items["check"] else None,
            "skipped": [name for part in about for name in part["skipped"]],
            "way": "; ".join(sorted({part["way"] for part in about} - {""})),
            "off": max(part["off"] for part in about),
        }
        origin = {**self.items["origin"], "extract": {**made, **facts}}
        if isinstance(self.out, Path):
            self._join_here(self.out, len(about), origin)
        else:
            self._write_store(self.out, len(about), origin)

    def blocks(self, part: int) -> Iterator[tuple[Tensor, list[str] | None]]:
        """The rows of a part and their ids, some at a time."""
        return _blocks(self._path(part), self.items["dtype"])

    def ids(self, part: int) -> tuple[list[str] | None, int]:
        """The ids of a part, None where it has none, and the number of its rows."""
        about = _read_about(self._path(part), self.items["dtype"])
        return (None, 0) if about is None else (about["ids"], about["rows"])

    def _wait(self) -> tuple[dict[int, dict[str, Any]], int]:
        """All parts and their number, once every process has made its own."""
        waited = 0.0
        while True:
            ready = all(path.exists() for path in self._ready)
            known = self.known()
            end = self._end(known)
            if ready and end is not None and known.keys() >= set(range(end)):
                return known, end
            late = ready and (self.world == 1 or waited > _SEEN_SECONDS)
            if late or not self._ready[self.rank].exists():
                raise self._removed()
            time.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS if ready else 0.0

    def _removed(self) -> OutputError:
        return OutputError(
            f"unfinished work in '{self.parts}' was removed while catwise ran.",
            remedy="run the command again, and leave the folder alone until it ends",
        )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other calls from making the same store; the processes of one call share the work."""
        held = self.out if isinstance(self.out, Path) else self.parts
        with contextlib.nullcontext() if self.rank else exclusive(held, parents=True):
            yield

    def _write_store(self, path: Path | str, end: int, origin: Mapping[str, Any]) -> None:
        dtype = self.items["dtype"]
        with store_writer(path, dtype=dtype, origin=origin, overwrite=True) as writer:
            for part in range(end):
                for rows, ids in self.blocks(part):
                    writer.write(rows, ids=ids)

    def _join_here(self, out: Path, end: int, origin: Mapping[str, Any]) -> None:
        """Make the store among the parts and put it in its place by one rename."""
        path = self.folder / "store"
        self._write_store(path, end, origin)
        with translated(out):
            put_folder(path, out)


def _of_any_machine(items: Mapping[str, Any]) -> dict[str, Any]:
    """The items that do not depend on the machine: by these a finished output is told."""
    kept = {key: value for key, value in items.items() if key not in _OF_THE_MACHINE}
    origin = kept.get("origin") or {}
    return {**kept, "origin": {key: v for key, v in origin.items() if key != STAMPS_KEY}}


def of_one_image(items: Mapping[str, Any]) -> dict[str, Any]:
    """The items that decide the features of an image, whichever others there are."""
    others = ("images", "rows", "ids", "undecodable", "origin")
    return {key: value for key, value in items.items() if key not in others}


def _has_content(out: Path | str) -> bool:
    """Whether something is there that must not be lost."""
    if isinstance(out, Path):
        return out.exists() and not (out.is_dir() and not any(out.iterdir()))
    try:
        return bool(RemotePlace(out).sizes())
    except OSError as error:
        raise OutputError(f"cannot write '{out}'.", found=str(error)) from error


def _write_part(path: Path, batches: Iterable[BatchOutput]) -> None:
    """Rows, then what is to be known about them as JSON, then the length of that."""
    about: dict[str, Any] = {"rows": 0, "seen": 0, "shape": [], "ids": [], "skipped": [], "gap": 0}
    about |= {"way": "", "off": 0}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for done in batches:
            about["seen"] += done.seen
            about["skipped"] += done.skipped
            about["gap"] = max(about["gap"], done.gap)
            about["way"] = done.way or about["way"]
            about["off"] = max(about["off"], done.off)
            named = done.ids is not None and about["ids"] is not None
            about["ids"] = about["ids"] + done.ids if named else None
            if done.features is not None:
                about["rows"] += len(done.features)
                about["shape"] = list(done.features.shape[1:])
                stream.write(done.features.reshape(-1).view(torch.uint8).numpy().data)
        text = json.dumps(about).encode()
        stream.write(text + _LENGTH.pack(len(text)))


_NUMBER: Final = Field("a number", lambda v: type(v) in (int, float))
_ABOUT: Final = {
    "rows": WHOLE,
    "seen": WHOLE,
    "shape": Field("sizes", lambda v: type(v) is list and all(map(WHOLE.test, v))),
    "ids": Field("null or a list of texts", lambda v: v is None or TEXTS.test(v)),
    "skipped": TEXTS,
    "gap": _NUMBER,
    "way": Field("a text", lambda v: type(v) is str),
    "off": _NUMBER,
}


def _progress(path: Path) -> dict[str, Any]:
    """What the parts in a folder were made of."""
    try:
        items: dict[str, Any] = read_file(path)
        read_fields(items, {"dtype": TEXT})
    except (OSError, ValueError) as error:
        raise OutputError(
            f"'{path}' is not as it was written.",
            found=reason_of(error),
            remedy="remove the folder that it lies in: its parts cannot be used",
        ) from error
    return items


def _read_about(path: Path, dtype: str) -> dict[str, Any] | None:
    """What a part says about its rows; None if it is not whole."""
    try:
        with path.open("rb") as stream:
            stream.seek(-_LENGTH.size, os.SEEK_END)
            (length,) = _LENGTH.unpack(stream.read())
            check_at_most(length, MAX_JSON, "bytes of JSON")
            size = stream.seek(-_LENGTH.size - length, os.SEEK_END)
            about = read_fields(parse(stream.read(length)), _ABOUT)
    except (OSError, ValueError):
        return None
    row_bytes = getattr(torch, dtype).itemsize * math.prod(about["shape"])
    return about if about["rows"] * row_bytes == size else None


def _blocks(path: Path, dtype: str) -> Iterator[tuple[Tensor, list[str] | None]]:
    """The rows of a part file and their ids."""
    about = _read_about(path, dtype) or {"rows": 0, "shape": [1], "ids": []}
    kind, width, ids = getattr(torch, dtype), math.prod(about["shape"]), about["ids"]
    step = max(1, _BLOCK_BYTES // (width * kind.itemsize))
    with path.open("rb") as stream:
        for start in range(0, about["rows"], step):
            stop = min(start + step, about["rows"])
            raw = bytearray(stream.read((stop - start) * width * kind.itemsize))
            yield torch.frombuffer(raw, dtype=kind).reshape(-1, width), ids and ids[start:stop]


def _stored_items(out: Path | str, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """What made the store that is there; None if there is none, or it was made otherwise."""
    try:
        origin = open_store(out).origin
        made = origin.pop("extract")
        return _wanted({**made["items"], "origin": origin}, wanted, made["skipped"])
    except (FeatureStoreError, KeyError, TypeError):
        return None


def _wanted(made: dict[str, Any], wanted: Mapping[str, Any], skipped: list[str]) -> dict[str, Any]:
    """`made`, or `wanted` where it gives the same rows.

    That is where they differ only in what becomes of undecodable images, and there are none. Rows
    without ids of their own are named only where images may be skipped.
    """
    alike = all(
        made.get(key) == wanted.get(key) for key in {**made, **wanted} if key != "undecodable"
    )
    same = alike and not skipped and wanted.get("ids") is not None and "undecodable" in made
    return dict(wanted) if same else made


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The items that differ, with what they were and are."""
    old, new = (
        {**side, **{f"origin {key}": one for key, one in (side.pop("origin", None) or {}).items()}}
        for side in (dict(old), dict(new))
    )
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    text = {key: [json.dumps(side.get(key)) for side in (old, new)] for key in keys}
    return "; ".join(
        f"{key}: {was}, now {now}" if max(len(was), len(now)) <= _SHOWN else f"{key}: other content"
        for key, (was, now) in text.items()
    )
