"""Images through a model once: what goes into its classification layer becomes a feature store.

The work is cut into parts of a fixed number of rows, each written under a temporary name, flushed
and renamed. A part that is there is never made again, so that a run that was killed resumes where
it was. Batches are cut at the same rows however the images arrive, so that the bytes are those of
an uninterrupted run with the same machine and threads. Parts are in `<out>.parts/<fingerprint>`.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from catwise.engines.base import IN_PROCESS, Engine, Shared
from catwise.errors import ConfigError, FeatureError, check_choice
from catwise.features.blocks import BLOCK_ROWS
from catwise.features.ids import as_ids, digest_of
from catwise.features.manifest import dtype_name
from catwise.features.places import LocalPlace, open_place
from catwise.features.store import FeatureStore, open_store
from catwise.models import layers
from catwise.models.batches import BatchSource, ImageBatch, Reading, merge_batches
from catwise.models.core import LoadedModel, Preprocessing
from catwise.models.loading import ImageRows
from catwise.models.logits import logits_of
from catwise.models.parts import BatchOutput, PartWork
from catwise.models.sources import ImageSource, images_at
from catwise.models.ways import Precision, Runner, Way, choose_way, processor, running
from catwise.progress import Progress, ProgressCallback

_SHOWN: Final = 5
_STACKS: Final[list[contextlib.ExitStack]] = []


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
    precision: Precision = "exact",
    compiled: bool = False,
    ids: Any = None,
    flips: bool = False,
    dtype: Any = "float16",
    undecodable: Literal["refuse", "skip"] = "refuse",
    check: bool = True,
    resume: bool = True,
    overwrite: bool = False,
    batch_rows: int | None = None,
    part_rows: int | None = None,
    parts: str | os.PathLike[str] | None = None,
    num_workers: int = 0,
    ranks: tuple[int, int] | None = None,
    engine: Engine | None = None,
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
        loader: the path of a folder of images or of tar shards; images from
            `catwise.models.sources`, also of a Hugging Face data set; these are preprocessed as a
            `LoadedModel` says. Or one tensor; a map-style `Dataset` of tensors, such as
            `ImageRows`; a `DataLoader`, not shuffled; a function that gives batches from a row on;
            or any iterable of batches, whose finished rows are read again when a run is resumed.
        out: the folder of the store, or an URL that fsspec opens; None keeps all in memory.
        layer: name of the classification layer, where it cannot be told.
        device: where to run; None: where the model is. ``"cuda"`` is the process's own GPU.
        precision: "exact": features within 1e-5 of the model's own pass, as a share of the largest;
            "fast": half precision, bfloat16 on processors that compute in it (others run exactly)
            and float16 on a GPU, within about 0.01.
        compiled: compile the model first, which takes from seconds to minutes; what it should save
            is told by `progress`.
        ids: (N,) ids of the images; those of the loader when not given.
        flips: average with the features of the images flipped left to right, in float32.
        dtype: of the features: float16, bfloat16 or float32.
        undecodable: "refuse" images that could not be decoded, or "skip" and list them; the ids are
            the row numbers then, if there are none.
        check: compare with the model's logits; False for a model that returns something else.
        resume: resume what an earlier call left; otherwise start over.
        overwrite: replace a store, or unfinished work, that differs.
        batch_rows: images in a batch; as the loader has it (64 for a `Dataset`) when not given.
        part_rows: rows in a part, a multiple of `batch_rows`; about 4,096 when not given.
        parts: a folder for unfinished work, which a store at an URL needs; others have it in
            "<out>.parts".
        num_workers: worker processes that read a `Dataset`.
        ranks: (number of this process, number of processes); None: from RANK and WORLD_SIZE, which
            torchrun sets. Parts are shared out; the first process joins them, all return.
        engine: what runs the batches (`catwise.engines`); None: this process. Its workers read the
            images of a `Dataset` themselves. No byte depends on it.
        progress: called after each batch.
        origin: what to remember in the store, JSON-ready; part of the fingerprint.

    Returns:
        The store; its origin tells under "extract" what made it, the largest gap between the
        layer's and the model's logits, how far half precision was off, and the skipped ids.
        Features (N, C, D) are rows of C × D numbers; "shape" there is [C, D]. Without `out`: what
        is in memory.

    Raises:
        HeadError: If the layer is not clear, cannot be used, or does not make the model's logits.
        ConfigError: If an option, the loader or a batch is not possible.
        ShapeError: If the ids are not one for each image, or images differ in shape.
        FeatureError: If features are not finite in `dtype`, or images could not be decoded.
        MismatchError: If the model fails on the images.
        OutputError: If the store exists, was begun with other items (they are named), is being
            made by another process, or was removed meanwhile.

    >>> model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(2, 1))
    >>> extract(model, [torch.tensor([[[[1.0, -2.0]]]])], ids=["a"]).features
    tensor([[1., 0.]], dtype=torch.float16)
    """
    how: dict[str, Any] = {"layer": layer, "device": device, "ids": ids}
    how |= {"precision": precision, "compiled": compiled}
    how |= {"flips": flips, "dtype": dtype, "undecodable": undecodable, "check": check}
    how |= {
        "batch_rows": batch_rows,
        "part_rows": part_rows,
        "num_workers": 0 if engine else num_workers,
    }
    run = open_pass(model, loader, **how)
    if out is None:
        return run.in_memory(progress, engine)
    items, (rank, world) = run.items(origin), ranks or layers.ranks_of()
    where = _places(out, parts)
    work = PartWork(*where, items, run.part_rows, run.n_rows, rank, world, overwrite)
    with work.alone():
        if not work.is_finished(resume=resume):
            run.fill(work, progress, engine=engine)
            work.join()
    return open_store(out)


def open_pass(
    model: nn.Module | LoadedModel,
    loader: Any,
    *,
    layer: str | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "exact",
    compiled: bool = False,
    ids: Any = None,
    flips: bool = False,
    dtype: Any = "float32",
    undecodable: Literal["refuse", "skip"] = "refuse",
    check: bool = True,
    batch_rows: int | None = None,
    part_rows: int | None = None,
    num_workers: int = 0,
    keep: Literal["features", "logits"] = "features",
) -> ImagePass:
    """What `extract` does before anything is written; arguments and errors are its own.

    `keep` says what is kept of an image, in `dtype`: its features, or the layer's logits.
    """
    check_choice("undecodable", undecodable, ("refuse", "skip"))
    given = model if isinstance(model, LoadedModel) else None
    if given is not None:
        given.check_layout()
    if isinstance(loader, (str, os.PathLike)):
        loader = images_at(Path(loader))
    if isinstance(loader, ImageSource):
        loader = ImageRows(loader, _preprocessing(given))
    source = BatchSource(loader, batch_rows, num_workers, ids)
    size = _checked_part_rows(part_rows, source.batch_rows)
    how: dict[str, Any] = {"flips": flips, "skip": undecodable == "skip", "check": check}
    how |= {"dtype": dtype_name(dtype), "part_rows": size, "keep": keep}
    way = functools.partial(choose_way, device=device, precision=precision, compiled=compiled)
    return ImagePass(model, _job(model, source, layer, way, **how), source)


@dataclass(frozen=True, eq=False)
class ImagePass:
    """Images and a model that are ready to run, in parts of so many rows."""

    model: nn.Module | LoadedModel
    job: _Job
    source: BatchSource

    @property
    def part_rows(self) -> int:
        """Rows of a part."""
        return self.job.part_rows

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about the way in which the model runs, a sentence each."""
        return self.job.way.notes

    @property
    def n_rows(self) -> int | None:
        """How many images there are, if that is known."""
        return self.source.n_rows

    def items(self, origin: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What decides the bytes of the parts."""
        return _items(self.model, self.job, self.source, origin)

    def in_memory(
        self, progress: ProgressCallback | None, engine: Engine | None = None
    ) -> Extracted:
        """All rows at once."""
        tell = report_rows("extract", progress, self.n_rows)
        return _in_memory(self.job, self.source, engine, tell)

    def fill(
        self,
        work: PartWork,
        progress: ProgressCallback | None,
        stage: str = "extract",
        engine: Engine | None = None,
    ) -> None:
        """Make those of this process's parts that are not there."""
        tell = report_rows(stage, progress, self.n_rows)
        _fill(work, self.job, self.source, engine, tell)


def _checked_part_rows(given: int | None, batch_rows: int) -> int:
    """Rows in a part: a multiple of those in a batch."""
    rows = -(-BLOCK_ROWS // batch_rows) * batch_rows if given is None else given
    if rows < 1 or rows % batch_rows:
        raise ConfigError(
            "the options of extract are not possible.",
            found=f"part_rows={rows}",
            expected=f"a multiple of the {batch_rows:,} rows of a batch",
        )
    return rows


def _job(
    model: nn.Module | LoadedModel,
    source: BatchSource,
    layer: str | None,
    choose: Callable[[nn.Module], Way],
    **how: Any,
) -> _Job:
    """Find the classification layer, the keyword that takes images, and the way to run."""
    given = model if isinstance(model, LoadedModel) else None
    module = given.module if given else model
    if not isinstance(module, nn.Module):
        raise ConfigError(
            "the model has no module to run.",
            found=given.name if given else type(model).__name__,
            remedy="wrap what runs it in a torch.nn.Module that ends in a Linear layer",
        )
    argument = given.image_argument if given else None
    found, _ = layers.find_layer(
        module,
        layer or (given.layer if given else None),
        run=lambda: layers.call(module, source.few(), argument),
    )
    return _Job(module, found, argument, choose(module), source.ids, **how)


def _places(
    out: str | os.PathLike[str], parts: str | os.PathLike[str] | None
) -> tuple[Path | str, Path]:
    """The store's folder or URL, and the folder of its parts."""
    place = open_place(out)
    if not isinstance(place, LocalPlace):
        if parts is None:
            raise ConfigError(
                f"'{out}' is not a folder of this machine, and unfinished work needs one.",
                remedy="name one with parts='…'; several machines must share it",
            )
        return str(place), Path(os.path.realpath(parts), f"{str(place).rpartition('/')[2]}.parts")
    if parts is not None:
        raise ConfigError(
            "parts is for a store at an URL.", expected=f"unfinished work in '{out}.parts'"
        )
    folder = Path(os.path.realpath(place.folder))
    return folder, folder.with_name(f"{folder.name}.parts")


def _preprocessing(model: LoadedModel | None) -> Preprocessing:
    if model is None:
        raise ConfigError(
            "a bare module does not say how images become its input.",
            remedy="give ImageRows(images, Preprocessing(…)), or a model from load_model",
        )
    return model.preprocessing


@dataclass(frozen=True)
class _Job:
    """A model and how it is run."""

    module: nn.Module
    layer: str
    argument: str | None
    way: Way
    ids: Any
    dtype: str
    part_rows: int
    flips: bool
    skip: bool
    check: bool
    keep: str


def _compute(job: _Job, run: Runner, row: int, rows: ImageBatch) -> BatchOutput:
    """Features and logits of a batch; the first images of a part are checked against the head."""
    seen = len(rows.images)
    names = rows.ids if job.ids is None else job.ids.slice(row, seen).to_pylist()
    if names is None and job.skip:
        names = [str(row + at) for at in range(seen)]
    images, skipped = rows.images, []
    if not isinstance(images, Tensor):
        skipped = _undecodable(job, row, images, names)
        kept = [at for at, image in enumerate(images) if isinstance(image, Tensor)]
        names = names and [names[at] for at in kept]
        if not kept:
            return BatchOutput(seen, None, None, names, skipped, 0.0, run.described)
        images = layers.stacked(torch.stack, [images[at] for at in kept])
    gaps: list[tuple[float, float]] = []
    found: list[tuple[Tensor, Tensor]] = []
    for some in torch.split(images, job.way.rows or len(images)):
        first = row % job.part_rows == 0 and not found and job.check
        found.append(_forward(job, run, some, gaps if first else None))
    features, logits = (torch.cat(part) for part in zip(*found, strict=True))
    stored = _stored(job, features if job.keep == "features" else logits, row, names)
    gap, off = gaps[0] if gaps else (0.0, 0.0)
    logits = logits.float().cpu()
    return BatchOutput(seen, stored, logits, names, skipped, gap, run.described, off)


def _forward(
    job: _Job, run: Runner, images: Tensor, gaps: list[tuple[float, float]] | None
) -> tuple[Tensor, Tensor]:
    """Features and logits of a few images; with `gaps`, the layer is checked."""
    features, output = run(images)
    if gaps is not None:
        gap, off = run.check(images, features, output)
        gaps.append((float(f"{gap:.0e}"), float(f"{off:.0e}")))
    logits = run.head.logits(features)
    logits = logits_of(output, logits) if job.check else logits
    if job.flips:
        mirrored, output = run(images.flip(-1))
        others = run.head.logits(mirrored)
        others = logits_of(output, others) if job.check else others
        features = (features.float() + mirrored.float()) / 2
        logits = (logits.float() + others.float()) / 2
    return features, logits


def _own_remedies(images: list[Any], lost: list[int]) -> list[str]:
    """The argument that errors of images recommend themselves, such as what white is."""
    errors = [getattr(images[at], "error", None) for at in lost]
    texts = {getattr(error, "remedy", None) or "" for error in errors}
    return sorted(text for text in texts if "=" in text)[:1]


def _stored(job: _Job, kept: Tensor, row: int, names: list[str] | None) -> Tensor:
    """What is kept, in the dtype that it is kept in."""
    stored = kept.to(getattr(torch, job.dtype)).cpu().contiguous()
    if not bool(stored.isfinite().all()):
        at = int(stored.flatten(1).isfinite().all(1).logical_not().nonzero()[0])
        raise FeatureError(
            f"the {job.keep} of {repr(names[at]) if names else f'row {row + at:,}'} do not fit.",
            found=f"up to {float(kept[at].float().abs().max()):.4g}",
            expected=f"finite numbers that {job.dtype} can hold",
            remedy="dtype='bfloat16' or 'float32' holds larger ones; precision='exact' computes in "
            "float32",
        )
    return stored


def _outputs(
    job: _Job,
    source: BatchSource,
    parts: Iterable[int],
    engine: Engine | None,
    say: Callable[[str], None],
) -> Generator[tuple[int, BatchOutput], None, None]:
    """(part, what comes of a batch), in order; here, or where an engine runs them."""
    if engine is None or engine is IN_PROCESS:
        with running(job.module, job.layer, job.way, job.argument, say) as run:
            for part, row, rows in source.batches(parts, job.part_rows):
                yield part, _compute(job, run, row, rows)
        return
    reading, begun = source.reading, collections.deque[int]()

    def tasks() -> Iterator[_BatchTask]:
        batches: Any = source.starts if reading else source.batches
        for part, row, rows in batches(parts, job.part_rows):
            begun.append(part)
            seen = rows if reading else len(rows.images)
            names = None if job.ids is None else job.ids.slice(row, seen).to_pylist()
            yield _BatchTask(row, rows, names)

    machine = processor(job.way.device)
    sent = engine.share(_Sent(replace(job, ids=None), reading, machine))
    for done in engine.map(functools.partial(_in_worker, sent), tasks()):
        yield begun.popleft(), done


class _BatchTask(NamedTuple):
    """A batch for a worker: its images, or how many of them it is to read."""

    row: int
    rows: ImageBatch | int
    names: list[str] | None


class _Sent(NamedTuple):
    """What a worker needs for all batches."""

    job: _Job
    reading: Reading | None
    machine: str


def _in_worker(sent: Shared[_Sent], task: _BatchTask) -> BatchOutput:
    """Read and compute a batch; the model is made ready once."""
    run, rows = _ready(sent), task.rows
    job, reading, _ = sent.value
    if isinstance(rows, int):
        if reading is None:
            raise TypeError("a number of images, and nothing that reads them")
        rows = reading.batch(task.row, rows)
    if task.names is not None:
        rows = rows._replace(ids=task.names)
    return _compute(job, run, task.row, rows)


@functools.lru_cache(1)
def _ready(sent: Shared[_Sent]) -> Runner:
    """The model of a worker, for as long as the worker lives."""
    job, _, machine = sent.value
    if (found := processor(job.way.device)) != machine:
        raise ConfigError(
            "a worker's processor computes otherwise than the driver's.",
            found=f"{found} on {platform.node()}",
            expected=machine,
            remedy="use machines of one kind: features would depend on who computed them",
        )
    stack = contextlib.ExitStack()
    _STACKS.append(stack)  # or its hooks would go with it
    return stack.enter_context(running(job.module, job.layer, job.way, job.argument))


def _undecodable(job: _Job, row: int, images: list[Any], names: list[str] | None) -> list[str]:
    """The ids of images that could not be decoded, unless they are refused."""
    lost = [at for at, image in enumerate(images) if not isinstance(image, Tensor)]
    for error in (getattr(images[at], "error", None) for at in lost):
        if isinstance(error, Exception) and not isinstance(error, FeatureError):
            raise error  # the machine failed, not the image
    if lost and not job.skip:
        shown = [repr(names[at]) if names else f"row {row + at:,}" for at in lost[:_SHOWN]]
        why = [getattr(images[at], "reason", "") for at in lost]
        rows = f"rows {row:,} to {row + len(images) - 1:,}"
        raise FeatureError(
            f"{len(lost):,} of the images in {rows} cannot be decoded.",
            found="; ".join(
                f"{name} {text}".strip() for name, text in zip(shown, why, strict=False)
            ),
            remedy=", ".join(["repair them", *_own_remedies(images, lost)])
            + ", or leave them out with undecodable='skip'",
        )
    return [names[at] for at in lost] if names else []


class RowReport:
    """Tells how far the work has come, how fast it is, and how long it will take."""

    def __init__(
        self, stage: str, report: ProgressCallback | None, total: int | None, unit: str
    ) -> None:
        self._stage, self._report, self._total, self._unit = stage, report, total, unit
        self._start, self._done, self._made = time.monotonic(), 0, 0

    def __call__(self, rows: int, found: int = 0) -> None:
        """So many rows more were made, or were found made."""
        self._done, self._made = self._done + rows + found, self._made + rows
        rate = self._made / max(time.monotonic() - self._start, 1e-9)
        left = self._left
        eta = f", {left / rate:,.0f} s left" if left and self._made else ""
        self.say(f"{rate:,.0f} {self._unit}/s{eta}")

    @property
    def _left(self) -> int:
        return max((self._total or self._done) - self._done, 0)

    def say(self, text: str) -> None:
        """Say something else meanwhile."""
        if self._report is not None:
            self._report(Progress(self._stage, self._done, self._done + self._left, text))


def report_rows(
    stage: str, report: ProgressCallback | None, total: int | None, *, unit: str = "images"
) -> RowReport:
    """What tells how far the work has come."""
    return RowReport(stage, report, total, unit)


def _in_memory(job: _Job, source: BatchSource, engine: Engine | None, tell: RowReport) -> Extracted:
    every: list[BatchOutput] = []
    with contextlib.closing(_outputs(job, source, itertools.count(), engine, tell.say)) as outputs:
        for _, done in outputs:
            every.append(done)
            tell(done.seen)
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


def _fill(
    work: PartWork, job: _Job, source: BatchSource, engine: Engine | None, tell: RowReport
) -> None:
    """Make those of this process's parts that are not there."""
    known = work.known()
    tell(0, sum(about["seen"] for about in known.values()))
    missing = work.missing(known)
    with contextlib.closing(_outputs(job, source, missing, engine, tell.say)) as outputs:

        def rest_of_part(done: BatchOutput) -> Iterator[BatchOutput]:
            """A part is written when its last batch is there, before the next is waited for."""
            seen = 0
            while True:
                yield done
                tell(done.seen)
                seen += done.seen
                following = None if seen >= job.part_rows else next(outputs, None)
                if following is None:
                    return
                done = following[1]

        for part, first in outputs:
            work.write(part, rest_of_part(first))


def _items(model: Any, job: _Job, source: BatchSource, origin: Any) -> dict[str, Any]:
    """The fingerprint's parts: what decides the bytes of the store."""
    items = {
        "model": model.name if isinstance(model, LoadedModel) else type(model).__name__,
        "weights": layers.weights_digest(job.module),
        "layer": job.layer,
        "preprocessing": model.preprocessing.to_dict() if isinstance(model, LoadedModel) else None,
        "images": source.origin,
        "rows": source.n_rows,
        "ids": None if source.ids is None else digest_of(source.ids),
        "device": job.way.device.type,
        **job.way.items(),
        "dtype": job.dtype,
        "flips": job.flips,
        "undecodable": "skip" if job.skip else "refuse",
        "check": job.check,
        "batch_rows": source.batch_rows,
        "part_rows": job.part_rows,
        **({} if job.keep == "features" else {"keep": job.keep}),
        "origin": dict(origin or {}),
    }
    try:
        made: dict[str, Any] = json.loads(json.dumps(items, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError("the origin must be JSON-ready.", found=str(error)) from error
    return made
