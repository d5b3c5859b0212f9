"""Predictions of any number of images into one file: streaming, resumed after a kill, atomic.

Logits are kept in parts, as `extract` keeps features: a part that is there is never made again. The
file is written once all parts are there. Beside it stands `NAME.catwise.json`: what made it, which
images were skipped, and its digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from catwise._io import atomic_path, write_json
from catwise._json import TABLE, TEXT, TEXTS, WHOLE, read_fields, read_file
from catwise._lock import remove
from catwise.errors import OutputError, reason_of
from catwise.features import BLOCK_ROWS
from catwise.features.ids import compact, digest_of
from catwise.features.manifest import file_sha256
from catwise.heads.provenance import side_file
from catwise.metrics.pooling import Named, Pooling, is_image
from catwise.models.extraction import ImagePass, report_rows
from catwise.models.layers import ranks_of
from catwise.models.loading import ImageRows
from catwise.models.parts import BatchOutput, PartWork
from catwise.models.sources import ImageSource
from catwise.models.ways import Precision
from catwise.predicting.classifier import Classifier
from catwise.predicting.content import content_digest
from catwise.predicting.inputs import Images, Rows, check_pool, read_inputs, row_ids
from catwise.predicting.predictions import Predictions, pooled_rows
from catwise.predicting.tables import FORMATS, check_tags, format_of, table_writer
from catwise.progress import Progress, ProgressCallback

FORMAT: Final = "1"
STAGE: Final = "predict"
_PART_ROWS: Final = 16 * BLOCK_ROWS
"""Rows of features in a part."""
_SHOWN_ROWS: Final = 1024
"""Rows that are made to text at a time."""


class Written(NamedTuple):
    """What was written.

    Attributes:
        path: of the file.
        rows: in it: images, or studies or patients.
        skipped: ids of images that could not be decoded.
        made: images that this call ran; the others were there from an earlier one.
        images: that rows speak of.
    """

    path: Path
    rows: int
    skipped: tuple[str, ...]
    made: int
    images: int


def write_predictions(
    classifier: Classifier,
    images: Any,
    out: str | os.PathLike[str],
    *,
    tags: bool = False,
    by: Named = None,
    pool: str = "mean",
    undecodable: Literal["refuse", "skip"] = "refuse",
    batch_rows: int = 64,
    part_rows: int | None = None,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    precision: Precision = "exact",
    compiled: bool = False,
    check: bool = True,
    resume: bool = True,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> Written:
    """Write probability, decision, set and abstention of each category, a row for each image.

    Memory does not grow with the number of images, but for their ids. What was stopped is resumed
    by the same call, which ends with the same bytes; a finished file is recognised.

    With `by` there is a row for each study instead, and its id is the study's. Its images may be
    anywhere; memory grows with the studies that have been begun since the oldest that is not
    complete, by at most five numbers of 64 bits for each study and category: not at all where
    images of a study follow one another.

    Args:
        classifier: as `load_classifier` gives it.
        images: as `Classifier.predict` takes them.
        out: the file; its suffix says the format: .csv, .parquet, .jsonl.
        tags: write a list of the positive categories and their probabilities instead, the most
            probable first.
        by: what is decided on as one, as in `Classifier.predict`.
        pool: "mean" or "max" of the probabilities of a study's images.
        undecodable: "refuse" images that cannot be decoded, or "skip" and list them.
        batch_rows: images in a batch.
        part_rows: rows that are kept at a time; a multiple of `batch_rows`.
        num_workers: processes that read images.
        device: where the model runs; the CPU when not given.
        precision: "exact" or "fast", as in `catwise.extract`.
        compiled: compile the model first, as in `catwise.extract`.
        check: as in `Classifier.predict`.
        resume: resume what an earlier call left; otherwise start over.
        overwrite: replace a file that is there.
        progress: called now and then.

    Raises:
        ConfigError: If the name of the file says no format, or an option is not possible.
        OutputError: If the file exists, cannot be written, or is being made by another process.
        CatwiseError: As `Classifier.predict`.
    """
    target = Path(os.path.realpath(out))
    kind = format_of(target)
    if tags:
        check_tags(classifier.categories, kind)
    how: dict[str, Any] = {"undecodable": undecodable, "batch_rows": batch_rows}
    how |= {"part_rows": part_rows, "num_workers": num_workers}
    way = {"device": device, "precision": precision, "compiled": compiled}
    given = read_inputs(images)
    check_pool(by, pool, given)
    run = _open_run(classifier, given, check=check, **how, **way)
    origin = {"classifier": classifier.digest, "format": kind, "tags": tags}
    origin |= {"content": content_digest(given), **_pool_items(by, pool)}
    parts = target.with_name(f"{target.name}.parts")
    sizes = run.items(origin), run.part_rows, run.n_rows
    work = PredictionWork(target, parts, *sizes, *ranks_of(), overwrite, classifier, progress, by)
    counted = _Counted(progress)
    with work.alone():
        if not work.is_finished(resume=resume):
            run.fill(work, counted, STAGE)
            work.join()
    return _written(out, read_side(target), counted.made)


def _written(out: str | os.PathLike[str], side: Mapping[str, Any], made: int) -> Written:
    """What is told beside the file."""
    images = side.get("images", side["rows"])
    return Written(Path(out), side["rows"], tuple(side["skipped"]), made, images)


def _pool_items(by: Named, pool: str) -> dict[str, Any]:
    """What says how rows are pooled; nothing where they are not."""
    if is_image(by):
        return {}
    if isinstance(by, Mapping):
        pairs = sorted((str(one), str(group)) for one, group in by.items())
        by = digest_of(compact([text for pair in pairs for text in pair]))
    return {"by": by, "pool": pool}


def _open_run(
    classifier: Classifier, given: Images | Rows, *, check: bool, **how: Any
) -> ImagePass | _RowPass:
    """What runs the images, or the rows of features."""
    if isinstance(given, (ImageSource, ImageRows, Tensor)):
        return classifier.image_pass(given, **how)
    classifier.check_features(given, check=check)
    return _RowPass(classifier, given, how["part_rows"] or _PART_ROWS)


class _Counted:
    """Passes progress on, and counts the rows that are made now."""

    def __init__(self, report: ProgressCallback | None) -> None:
        self._report, self._first, self._last = report, -1, 0

    def __call__(self, progress: Progress) -> None:
        self._first = progress.done if self._first < 0 else self._first
        self._last = progress.done
        if self._report is not None:
            self._report(progress)

    @property
    def made(self) -> int:
        """Rows so far; what was there already is told first."""
        return max(0, self._last - max(self._first, 0))


@dataclass(frozen=True)
class PredictionWork(PartWork):
    """Parts of logits, and the file that becomes of them."""

    classifier: Classifier
    progress: ProgressCallback | None
    by: Named

    def stored_items(self) -> dict[str, Any] | None:
        """What made the file that is there; None if there is none, or it is another one."""
        path = Path(self.out)
        try:
            made = read_side(path)
            same = path.stat().st_size == made["bytes"] and file_sha256(path) == made["sha256"]
        except OSError:
            return None
        return dict(made["items"]) if same else None

    def publish(self, about: list[dict[str, Any]], **facts: Any) -> None:
        """Write the file; what is told beside it comes first, with the digest of the file."""
        path, origin = Path(self.out), self.items["origin"]
        total = sum(part["rows"] for part in about)
        parts, pooled = self._every(len(about)), self._pooling(len(about))
        n_rows = total if pooled is None else pooled.names.size
        tell = report_rows("write", self.progress, n_rows, unit="rows")
        side = side_file(path)
        try:
            with atomic_path(path) as temporary:
                with table_writer(temporary, origin["format"], tags=origin["tags"]) as write:
                    none = self._rows([], torch.empty(0, len(self.classifier.categories)))
                    write(none)
                    for rows in parts if pooled is None else pooled_rows(parts, pooled, none):
                        write(rows)
                        tell(len(rows))
                told = {
                    "catwise_predictions": FORMAT,
                    "items": self.items,
                    "rows": n_rows,
                    **({} if pooled is None else {"images": total}),
                    "skipped": [name for part in about for name in part["skipped"]],
                    "population": self.classifier.population,
                    "bytes": temporary.stat().st_size,
                    "sha256": file_sha256(temporary),
                    **facts,
                }
                write_json(side, told)
        except BaseException:
            remove(side)  # it tells of a file that is not there
            raise

    def _pooling(self, n_parts: int) -> Pooling | None:
        """What is pooled of the rows that are there."""
        if is_image(self.by):
            return None
        names: list[str] = []
        for part in range(n_parts):
            ids, n_rows = self.ids(part)
            names += ids or map(str, range(len(names), len(names) + n_rows))
        how = self.items["origin"]["pool"]
        found = Pooling.of_ids(self.by, np.array(names, dtype=np.str_), how)
        assert found is not None  # noqa: S101  # it is not by image
        return found

    def _every(self, n_parts: int) -> Iterator[Predictions]:
        """All rows in order, some at a time."""
        columns = self.columns
        number = 0
        for part in range(n_parts):
            for logits, ids in self.blocks(part):
                for start in range(0, len(logits), _SHOWN_ROWS):
                    some = logits[start : start + _SHOWN_ROWS]
                    stop = start + len(some)
                    names = (
                        [str(number + at) for at in range(len(some))]
                        if ids is None
                        else ids[start:stop]
                    )
                    number += len(some)
                    yield self._rows(names, some if columns is None else some[:, columns])

    @property
    def columns(self) -> list[int] | None:
        """The columns of the parts that are categories; None for all, in order."""
        return None if "features" in self.items else self.classifier.rows

    def _rows(self, ids: list[str], logits: Tensor) -> Predictions:
        one = self.classifier
        return Predictions(tuple(ids), one.categories, logits, one.rules)


@dataclass(frozen=True, eq=False)
class _RowPass:
    """Rows of features through a head, in parts."""

    classifier: Classifier
    rows: Rows
    part_rows: int

    @property
    def n_rows(self) -> int:
        return len(self.rows)

    def items(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the bytes of the parts."""
        ids = self.rows.ids
        return {
            "features": list(self.rows.shape),
            "rows": self.n_rows,
            "ids": None if ids is None else digest_of(compact(ids.tolist())),
            "dtype": str(self.classifier.head.compute_dtype).removeprefix("torch."),
            "part_rows": self.part_rows,
            "check": False,
            "origin": dict(origin),
        }

    def fill(self, work: PartWork, progress: ProgressCallback | None, stage: str) -> None:
        """Make the parts that are not there."""
        known = work.known()
        tell = report_rows(stage, progress, self.n_rows, unit="rows")
        tell(0, sum(about["seen"] for about in known.values()))
        for part in work.missing(known):
            first = part * self.part_rows
            stop = min(first + self.part_rows, self.n_rows)
            work.write(part, self._outputs(first, stop, tell))

    def _outputs(self, first: int, stop: int, tell: Any) -> Iterator[BatchOutput]:
        for start in range(first, stop, BLOCK_ROWS):
            end = min(start + BLOCK_ROWS, stop)
            logits = self.classifier.feature_logits(self.rows, start, end)
            yield BatchOutput(end - start, logits, logits, row_ids(self.rows, start, end), [], 0.0)
            tell(end - start)


_SIDE: Final = {
    "items": TABLE,
    "rows": WHOLE,
    "images": replace(WHOLE, required=False),
    "skipped": TEXTS,
    "bytes": WHOLE,
    "sha256": TEXT,
}


def read_side(path: Path) -> dict[str, Any]:
    """What is told beside a file of predictions.

    Raises:
        OutputError: If there is nothing, or something else.
    """
    place = side_file(path)
    try:
        return read_fields(read_file(place), _SIDE)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"'{place}' is not what is written beside predictions.", found=reason_of(error)
        ) from error


__all__ = ["FORMATS", "PredictionWork", "Written", "read_side", "write_predictions"]
