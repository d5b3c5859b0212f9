"""Images through a model once: what goes into its classification layer becomes a feature store.

The work is cut into parts of a fixed number of rows, each written under a temporary name, flushed
and renamed. A part that is there is never made again, so that a run that was killed goes on where
it was. Batches are cut at the same rows however the images arrive, so that the bytes are those of
an uninterrupted run with the same machine and threads. Parts are in `<out>.parts/<fingerprint>`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import secrets
import shutil
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from catwise._io import atomic_path, write_json
from catwise.errors import ConfigError, FeatureError, FeatureStoreError, OutputError
from catwise.features.blocks import BLOCK_ROWS
from catwise.features.ids import as_ids
from catwise.features.manifest import dtype_name
from catwise.features.store import FeatureStore, open_store
from catwise.features.writer import store_writer
from catwise.models import layers
from catwise.models.batches import BatchSource, ImageBatch, merge_batches
from catwise.models.core import LoadedModel
from catwise.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy as np

    from catwise.heads.core import Head

__all__ = ["Extracted", "extract"]

_LENGTH: Final = struct.Struct("<Q")
_POLL_SECONDS: Final = 0.2
_SHOWN: Final = 5
_BLOCK_BYTES: Final = 2**24


class Extracted(NamedTuple):
    """What `extract` gives when it writes no store, on the CPU.

    `features` are (N, D) or (N, C, D), `ids` (N,) texts or None, `logits` the model's own (N, C) in
    float32 (with flips, their mean), `skipped` the ids of images that could not be decoded.
    """

    features: Tensor
    ids: np.ndarray[Any, np.dtype[np.str_]] | None
    logits: Tensor
    skipped: tuple[str, ...]


def extract(
    model: nn.Module | LoadedModel,
    loader: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    layer: str | None = None,
    device: str | torch.device | None = None,
    amp: torch.dtype | Literal["auto", False] = "auto",
    ids: Any = None,
    flips: bool = False,
    dtype: Any = "float16",
    undecodable: Literal["refuse", "skip"] = "refuse",
    check: bool = True,
    resume: bool = True,
    overwrite: bool = False,
    batch_rows: int | None = None,
    part_rows: int | None = None,
    num_workers: int = 0,
    ranks: tuple[int, int] | None = None,
    progress: ProgressCallback | None = None,
    origin: Mapping[str, Any] | None = None,
) -> FeatureStore | Extracted:
    """Stream images through a model and keep what goes into its classification layer.

    The model runs in evaluation mode without gradients; its training flags and its device are put
    back. On the first batch of each part the layer's output is compared with the model's logits.
    Memory does not grow with the number of images when a store is written, but for their ids.

    A batch is a tensor of images; a tuple that begins with one (and may hold a list of texts, the
    ids); or a table with ``"images"`` or ``"pixel_values"`` and maybe ``"ids"``. Images may also be
    a list of tensors, in which None is an image that could not be decoded.

    Args:
        model: any module, or a model as an adapter loads it.
        loader: a map-style `Dataset` of images, such as `ImageRows`; a `DataLoader`, not shuffled;
            a function that gives batches from a row on; or any iterable of batches, whose finished
            rows are read again when a run is resumed.
        out: the folder of the store; None keeps all in memory.
        layer: name of the classification layer, where it cannot be told.
        device: where to run; None: where the model is. ``"cuda"`` is the process's own GPU.
        amp: "auto": float16 on CUDA, otherwise none; False: none; or a half-precision dtype.
        ids: (N,) ids of the images; those of the loader when not given.
        flips: average with the features of the images flipped left to right, in float32.
        dtype: of the features: float16, bfloat16 or float32.
        undecodable: "refuse" images that could not be decoded, or "skip" and list them; the ids are
            the row numbers then, if there are none.
        check: compare with the model's logits; False for a model that returns something else.
        resume: go on with what an earlier call left; otherwise begin anew.
        overwrite: replace a store, or unfinished work, that differs.
        batch_rows: images in a batch; as the loader has it (64 for a `Dataset`) when not given.
        part_rows: rows in a part, a multiple of `batch_rows`; about 4,096 when not given.
        num_workers: worker processes that read a `Dataset`.
        ranks: (number of this process, number of processes); None: from RANK and WORLD_SIZE, which
            torchrun sets. Parts are shared out; the first process joins them, all return.
        progress: called after each batch.
        origin: what to remember in the store, JSON-ready; part of the fingerprint.

    Returns:
        The store; its origin tells under "extract" what made it, the largest gap between the
        layer's and the model's logits, and the skipped ids. Features (N, C, D) are rows of C × D
        numbers; "shape" there is [C, D]. Without `out`: what is in memory.

    Raises:
        HeadError: If the layer is not clear, cannot be used, or does not make the model's logits.
        ConfigError: If an option, the loader or a batch is not possible.
        ShapeError: If the ids are not one for each image, or images differ in shape.
        FeatureError: If features are not finite in `dtype`, or images could not be decoded.
        MismatchError: If the model fails on the images.
        OutputError: If the store exists, or was begun with other items (they are named).

    >>> model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(2, 1))
    >>> extract(model, [torch.tensor([[[[1.0, -2.0]]]])], ids=["a"]).features
    tensor([[1., 0.]], dtype=torch.float16)
    """
    source = BatchSource(loader, batch_rows, num_workers, ids)
    rows = source.batch_rows
    part_rows = -(-BLOCK_ROWS // rows) * rows if part_rows is None else part_rows
    if undecodable not in {"refuse", "skip"} or part_rows < 1 or part_rows % rows:
        raise ConfigError(
            "the options of extract are not possible.",
            found=f"undecodable={undecodable!r}, part_rows={part_rows}",
            expected=f"'refuse' or 'skip'; a multiple of the {rows:,} rows of a batch",
        )
    given = model if isinstance(model, LoadedModel) else None
    module = given.module if given else model
    if not isinstance(module, nn.Module):
        raise ConfigError(
            "the model has no module to run.",
            found=given.name if given else type(model).__name__,
            remedy="wrap what runs it in a torch.nn.Module that ends in a Linear layer",
        )
    argument = given.image_argument if given else None
    layer = layer or (given.layer if given else None)
    layer, _ = layers.find_layer(
        module, layer, run=lambda: layers.call(module, source.few(), argument)
    )
    place, half = layers.place_of(module, device, amp)
    name, skip = dtype_name(dtype), undecodable == "skip"
    job = _Job(
        module, layer, argument, place, half, flips, skip, check, name, part_rows, source.ids
    )
    tell = _teller(progress, source.n_rows)
    if out is None:
        return _in_memory(job, source, tell)
    items = _items(model, job, source, origin)
    work = _Work(
        Path(os.path.realpath(out)), items, *(ranks or layers.ranks_of()), overwrite=overwrite
    )
    if not work.is_finished(resume=resume):
        work.fill(job, source, tell)
        work.join(job, source)
    return open_store(out)


@dataclass(frozen=True)
class _Job:
    """A model and how it is run."""

    module: nn.Module
    layer: str
    argument: str | None
    device: torch.device
    amp: torch.dtype | None
    flips: bool
    skip: bool
    check: bool
    dtype: str
    part_rows: int
    ids: list[str] | None


class _Done(NamedTuple):
    """What comes of a batch. `seen` counts its images, decoded or not."""

    seen: int
    features: Tensor | None
    logits: Tensor | None
    ids: list[str] | None
    skipped: list[str]
    gap: float


def _compute(job: _Job, forward: layers.Forward, head: Head, row: int, rows: ImageBatch) -> _Done:
    """Features and logits of a batch; the first of a part is checked against the head."""
    seen = len(rows.images)
    names = rows.ids if job.ids is None else job.ids[row : row + seen]
    if names is None and job.skip:
        names = [str(row + at) for at in range(seen)]
    images, skipped = rows.images, []
    if not isinstance(images, Tensor):
        skipped = _lost(job, row, images, names)
        kept = [at for at, image in enumerate(images) if isinstance(image, Tensor)]
        names = names and [names[at] for at in kept]
        if not kept:
            return _Done(seen, None, None, names, skipped, 0.0)
        images = layers.stacked(torch.stack, [images[at] for at in kept])
    features, output = forward(images, job.amp)
    gap = 0.0
    if row % job.part_rows == 0 and job.check:
        exact = (features, output) if job.amp is None else forward(images, None)
        gap = float(f"{layers.check_logits(head, *exact, name=job.layer):.0e}")
    logits = layers.logits_of(output) if job.check else layers.scores(head, features)
    if job.flips:
        mirrored, output = forward(images.flip(-1), job.amp)
        others = layers.logits_of(output) if job.check else layers.scores(head, mirrored)
        features = (features.float() + mirrored.float()) / 2
        logits = (logits.float() + others.float()) / 2
    stored = features.to(getattr(torch, job.dtype)).cpu().contiguous()
    if not bool(stored.isfinite().all()):
        at = int(stored.flatten(1).isfinite().all(1).logical_not().nonzero()[0])
        raise FeatureError(
            f"the features of {repr(names[at]) if names else f'row {row + at:,}'} do not fit.",
            found=f"up to {float(features[at].float().abs().max()):.4g}",
            expected=f"finite numbers that {job.dtype} can hold",
            remedy="dtype='bfloat16' or 'float32' holds larger ones; amp=False computes in float32",
        )
    return _Done(seen, stored, logits.float().cpu(), names, skipped, gap)


def _lost(job: _Job, row: int, images: list[Any], names: list[str] | None) -> list[str]:
    """The ids of images that could not be decoded, unless they are refused."""
    lost = [at for at, image in enumerate(images) if not isinstance(image, Tensor)]
    for error in (getattr(images[at], "error", None) for at in lost):
        if isinstance(error, Exception) and not isinstance(error, FeatureError):
            raise error  # the machine failed, not the image
    if lost and not job.skip:
        shown = [repr(names[at]) if names else f"row {row + at:,}" for at in lost[:_SHOWN]]
        why = [getattr(images[at], "reason", "") for at in lost]
        raise FeatureError(
            f"{len(lost):,} images cannot be decoded, of row {row:,} and on.",
            found="; ".join(
                f"{name} {text}".strip() for name, text in zip(shown, why, strict=False)
            ),
            remedy="repair them, or leave them out with undecodable='skip'",
        )
    return [names[at] for at in lost] if names else []


def _teller(report: ProgressCallback | None, total: int | None) -> Callable[..., None]:
    """What tells how far the work has come, how fast it is, and how long it will take."""
    start, done, made = time.monotonic(), 0, 0

    def tell(rows: int, found: int = 0) -> None:
        nonlocal done, made
        done, made = done + rows + found, made + rows
        rate = made / max(time.monotonic() - start, 1e-9)
        left = max((total or done) - done, 0)
        eta = f", {left / rate:,.0f} s left" if left and made else ""
        if report is not None:
            report(Progress("extract", done, done + left, f"{rate:,.0f} images/s{eta}"))

    return tell


def _in_memory(job: _Job, source: BatchSource, tell: Callable[..., None]) -> Extracted:
    every: list[_Done] = []
    with layers.running(job.module, job.layer, job.device, job.argument) as (forward, head):
        for _, row, rows in source.batches(itertools.count(), job.part_rows):
            every.append(_compute(job, forward, head, row, rows))
            tell(every[-1].seen)
    kept = [
        (d.features, d.logits) for d in every if d.features is not None and d.logits is not None
    ]
    if not kept:
        raise FeatureError("there are no features.", found="no image that could be decoded")
    features, logits = (torch.cat(part) for part in zip(*kept, strict=True))
    ids = merge_batches([ImageBatch([], done.ids) for done in every]).ids
    names = None if ids is None else as_ids(ids)
    return Extracted(
        features, names, logits, tuple(name for done in every for name in done.skipped)
    )


def _write_part(path: Path, batches: Iterable[_Done]) -> None:
    """Rows, then what is to be known about them as JSON, then the length of that."""
    about: dict[str, Any] = {"rows": 0, "seen": 0, "shape": [], "ids": [], "skipped": [], "gap": 0}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for done in batches:
            about["seen"] += done.seen
            about["skipped"] += done.skipped
            about["gap"] = max(about["gap"], done.gap)
            named = done.ids is not None and about["ids"] is not None
            about["ids"] = about["ids"] + done.ids if named else None
            if done.features is not None:
                about["rows"] += len(done.features)
                about["shape"] = list(done.features.shape[1:])
                stream.write(done.features.reshape(-1).view(torch.uint8).numpy().data)
        text = json.dumps(about).encode()
        stream.write(text + _LENGTH.pack(len(text)))


def _read_about(path: Path, dtype: str) -> dict[str, Any] | None:
    """What a part says about its rows; None if it is not whole."""
    try:
        with path.open("rb") as stream:
            stream.seek(-_LENGTH.size, os.SEEK_END)
            (length,) = _LENGTH.unpack(stream.read())
            size = stream.seek(-_LENGTH.size - length, os.SEEK_END)
            about: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError):
        return None
    row_bytes = getattr(torch, dtype).itemsize * math.prod(about["shape"])
    return about if about["rows"] * row_bytes == size else None


def _blocks(path: Path, dtype: str) -> Iterator[tuple[Tensor, Any]]:
    """The rows of a part and their ids, some at a time."""
    about = _read_about(path, dtype) or {"rows": 0, "shape": [1], "ids": []}
    kind, width, ids = getattr(torch, dtype), math.prod(about["shape"]), about["ids"]
    step = max(1, _BLOCK_BYTES // (width * kind.itemsize))
    with path.open("rb") as stream:
        for start in range(0, about["rows"], step):
            stop = min(start + step, about["rows"])
            raw = bytearray(stream.read((stop - start) * width * kind.itemsize))
            yield torch.frombuffer(raw, dtype=kind).reshape(-1, width), ids and ids[start:stop]


def _end(known: Mapping[int, Mapping[str, Any]], job: _Job, source: BatchSource) -> int | None:
    """How many parts there will be: where the number of images is not known, a short one ends."""
    if source.n_rows is not None:
        return -(-source.n_rows // job.part_rows)
    ends = [part + 1 for part, about in known.items() if about["seen"] < job.part_rows]
    return min(ends, default=None)


@dataclass(frozen=True)
class _Work:
    """The folder of the store to be, and the one of its parts."""

    out: Path
    items: dict[str, Any]
    rank: int
    world: int
    overwrite: bool

    @property
    def parts(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def folder(self) -> Path:
        text = json.dumps(self.items, sort_keys=True).encode()
        return self.parts / hashlib.sha256(text).hexdigest()[:16]

    @property
    def ready(self) -> list[Path]:
        return [self.folder / f"ready-{rank}-of-{self.world}" for rank in range(self.world)]

    def is_finished(self, *, resume: bool) -> bool:
        """Whether the store is there; otherwise make place for the parts, or refuse."""
        found = _stored_items(self.out)
        if resume and found == self.items:
            if self.rank == 0:
                shutil.rmtree(self.parts, ignore_errors=True)
            return True
        begun = [json.loads(path.read_bytes()) for path in self.parts.glob("*/progress.json")]
        others = [items for items in (found, *begun) if items not in (None, self.items)]
        exists = self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir()))
        if (exists or others) and not self.overwrite:
            raise OutputError(
                f"'{self.out}' " + ("was extracted otherwise." if others else "exists."),
                found=_differences(others[0] or {}, self.items) if others else None,
                remedy="choose another folder, repeat the options, or ask to overwrite it",
            )
        if not resume and self.world > 1:
            raise ConfigError("resume=False works in one process only.", remedy="overwrite=True")
        try:
            if not resume and self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write '{self.folder}'.", found=error.strerror) from error
        write_json(self.folder / "progress.json", self.items)
        return False

    def known(self, dtype: str) -> dict[int, dict[str, Any]]:
        """The parts that are there, in order, and what they say."""
        read = ((path, _read_about(path, dtype)) for path in sorted(self.folder.glob("part-*")))
        return {int(path.name[5:]): about | {"ids": None} for path, about in read if about}

    def fill(self, job: _Job, source: BatchSource, tell: Callable[..., None]) -> None:
        """Make those of this process's parts that are not there."""
        known = self.known(job.dtype)
        end = _end(known, job, source)
        mine: Iterable[int] = itertools.count(self.rank, self.world)
        if source.n_rows is not None and end:  # neighbours, so that reading begins once
            mine = range(self.rank * end // self.world, (self.rank + 1) * end // self.world)
        mine = itertools.takewhile(lambda part: end is None or part < end, mine)
        batches = source.batches((part for part in mine if part not in known), job.part_rows)
        tell(0, sum(about["seen"] for about in known.values()))
        with layers.running(job.module, job.layer, job.device, job.argument) as (forward, head):

            def made(batches: Iterable[tuple[int, int, ImageBatch]]) -> Iterator[_Done]:
                for _, row, rows in batches:
                    yield _compute(job, forward, head, row, rows)
                    tell(len(rows.images))

            for part, rows in itertools.groupby(batches, key=lambda batch: batch[0]):
                _write_part(self.folder / f"part-{part:06d}", made(rows))
        write_json(self.ready[self.rank], None)

    def join(self, job: _Job, source: BatchSource) -> None:
        """Make the store, once every process has made its parts; the others wait for it."""
        if self.rank:
            while _stored_items(self.out) != self.items:
                time.sleep(_POLL_SECONDS)
            return
        while (
            not all(path.exists() for path in self.ready)
            or (end := _end(known := self.known(job.dtype), job, source)) is None
            or not known.keys() >= set(range(end))
        ):
            time.sleep(_POLL_SECONDS)
        about = [known[part] for part in range(end)]
        made = {
            "fingerprint": self.folder.name,
            "items": {key: value for key, value in self.items.items() if key != "origin"},
            "images": sum(part["seen"] for part in about),
            "shape": next((part["shape"] for part in about if part["rows"]), []),
            "gap": max(part["gap"] for part in about) if job.check else None,
            "skipped": [name for part in about for name in part["skipped"]],
        }
        for stale in self.folder.glob(".catwise-*"):  # of a join that was killed
            shutil.rmtree(stale, ignore_errors=True)
        origin = {**self.items["origin"], "extract": made}
        path = self.folder / "store"
        with store_writer(path, dtype=job.dtype, origin=origin, overwrite=True) as writer:
            for part in range(end):
                for rows, ids in _blocks(self.folder / f"part-{part:06d}", job.dtype):
                    writer.write(rows, ids=ids)
        try:
            if self.out.exists():
                self.out.rename(self.folder / f"old-{secrets.token_hex(8)}")
            path.rename(self.out)
            descriptor = os.open(self.out.parent, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        except OSError as error:
            raise OutputError(f"cannot write '{self.out}'.", found=error.strerror) from error
        shutil.rmtree(self.parts, ignore_errors=True)


def _stored_items(out: Path) -> dict[str, Any] | None:
    """What made the store that is there; None if there is none, or it was made otherwise."""
    try:
        origin = open_store(out).origin
        made = origin.pop("extract")
        return {**made["items"], "origin": origin}
    except (FeatureStoreError, KeyError, TypeError):
        return None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    text = {key: [json.dumps(side.get(key))[:40] for side in (old, new)] for key in keys}
    return "; ".join(f"{key}: {was}, now {now}" for key, (was, now) in text.items())


def _items(model: Any, job: _Job, source: BatchSource, origin: Any) -> dict[str, Any]:
    """The fingerprint's parts: what decides the bytes of the store."""
    ids = None if source.ids is None else hashlib.sha256("\n".join(source.ids).encode()).hexdigest()
    items = {
        "model": model.name if isinstance(model, LoadedModel) else type(model).__name__,
        "weights": layers.weights_digest(job.module),
        "layer": job.layer,
        "preprocessing": model.preprocessing.to_dict() if isinstance(model, LoadedModel) else None,
        "rows": source.n_rows,
        "ids": ids,
        "amp": None if job.amp is None else str(job.amp).removeprefix("torch."),
        "device": job.device.type,
        "dtype": job.dtype,
        "flips": job.flips,
        "undecodable": "skip" if job.skip else "refuse",
        "check": job.check,
        "batch_rows": source.batch_rows,
        "part_rows": job.part_rows,
        "origin": dict(origin or {}),
    }
    try:
        made: dict[str, Any] = json.loads(json.dumps(items, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError("the origin must be JSON-ready.", found=str(error)) from error
    return made
