"""`train`: a model, images and partly known labels in; a checkpoint for `fix` out, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from catwise._configs import TrainConfig
from catwise._csv import rows_csv
from catwise._io import atomic_path, folder_names, make_folder, write_json, write_text
from catwise._json import read_file
from catwise._lock import exclusive, remove
from catwise._text import some
from catwise._version import __version__
from catwise.decisions.outputs import Outputs
from catwise.errors import ConfigError, IdError, OutputError, ShapeError, reason_of
from catwise.fixing.folder import differences, labels_digest
from catwise.fixing.images import FoundImages, places
from catwise.fixing.inputs import checked_splits, ids_of, joined_images, without
from catwise.labels import PartialLabels, make_targets
from catwise.labels.partition import split_labels
from catwise.labels.policy import Targets
from catwise.metrics import METRICS
from catwise.models import LoadedModel, Preprocessing
from catwise.models.extraction import report_rows
from catwise.models.layers import ranks_of, weights_digest
from catwise.models.loading import ImageRows
from catwise.models.sources import ImageSource
from catwise.progress import ProgressCallback
from catwise.training.backbones import save_weights, start_model, weights_place
from catwise.training.data import Plan, undecodable_ids
from catwise.training.loop import TrainCallback, TrainData, Trainer
from catwise.training.machine import add_machine_labels
from catwise.training.processes import Processes, joined_processes
from catwise.training.schemes import scheme_options

STATE: Final = "state.pt"
RUN: Final = "train.json"
HISTORY: Final = "history.json"
LABELS: Final = "labels.csv"
RESERVED: Final = "reserved"
_OURS: Final = (STATE, RUN, HISTORY, LABELS, "model.safetensors", "model", "tensorboard")
_MADE: Final = frozenset({STATE, HISTORY, "model.safetensors", "model"})
"""What training leaves: before there is any, a corrected command starts over."""
_NOT_IN_RESULTS: Final = (
    "workers", "scheme_options", "policy", "missing", "undecodable", "device", "save_every",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What `train` leaves.

    Attributes:
        out: the folder.
        checkpoint: the weights of the chosen epoch: a file, or a transformers folder.
        labels: a table of all labelled images with their split, "train", "valid", "test" or
            "reserved", for `fix`.
        history: a record of each epoch: loss and, with validation, the metric.
        epoch: the one that was chosen, from 1; the last one without validation.
        score: its mean of the metric on validation, or None.
        reserved: how many training images were kept out.
        notes: what to know, a sentence each.
    """

    out: Path
    checkpoint: Path
    labels: Path
    history: list[dict[str, Any]]
    epoch: int
    score: float | None
    reserved: int
    notes: list[str]


def train(
    model: str | LoadedModel,
    images: ImageSource | FoundImages | str | os.PathLike[str],
    labels: Mapping[str, PartialLabels],
    out: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    model_options: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | Callable[[Preprocessing], Preprocessing] | None = None,
    machine: Outputs | None = None,
    machine_weight: float = 0.3,
    paths: Mapping[str, str] | None = None,
    config: TrainConfig | None = None,
    callbacks: Sequence[TrainCallback] = (),
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> TrainResult:
    """Train a model on partly known labels, by any scheme.

    An unfinished run in `out` is resumed from its last whole epoch, or from the last state that
    `save_every` saved, and ends with the weights that it would have had. Started by torchrun, its
    processes share each step.

    Args:
        model: as `load_model` takes it: timm, torchvision, transformers or python; or a model that
            is loaded, with a row for each category.
        images: the images, by the labels' ids; a folder, see `catwise.fixing.find_images`.
        labels: by split: "train" and, where there are any, "valid" (chooses the epoch) and "test"
            (only listed); each with ids.
        out: the folder to fill.
        checkpoint: weights to start from; None: drawn by the seed, or those of the folder.
        model_options: further options of `load_model`.
        preprocessing: instead of what the model's configuration says; or a function that changes
            that.
        machine: probabilities of a machine for the training images, in place of unknown labels.
        machine_weight: weight of such a label; a person's weighs 1.
        paths: id → name in ``labels.csv``, where images are not found by their ids: the file's path
            below the folder of images.
        config: options.
        callbacks: objects that look on; see `TrainCallback`.
        overwrite: replace a run with other inputs.
        progress: called after each batch.

    Returns:
        Where everything is, and how it went.

    Raises:
        ConfigError: If an option, or a combination of options, is not possible.
        IdError: If images are missing, or an id or a group is in two splits.
        FeatureError: If an image cannot be decoded, or the loss is not finite.
        OutputError: If `out` holds something else, or a run with other inputs.
        CatwiseError: As `load_model`.
    """
    job = prepare_train(
        model,
        images,
        labels,
        out,
        checkpoint=checkpoint,
        model_options=model_options,
        preprocessing=preprocessing,
        machine=machine,
        machine_weight=machine_weight,
        paths=paths,
        config=config,
        overwrite=overwrite,
        progress=progress,
    )
    return job.run(progress, callbacks)


def prepare_train(
    model: str | LoadedModel,
    images: ImageSource | FoundImages | str | os.PathLike[str],
    labels: Mapping[str, PartialLabels],
    out: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    model_options: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | Callable[[Preprocessing], Preprocessing] | None = None,
    machine: Outputs | None = None,
    machine_weight: float = 0.3,
    paths: Mapping[str, str] | None = None,
    config: TrainConfig | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> PreparedTrain:
    """Check everything that can be checked before training; write nothing.

    Arguments and errors are those of `train`. No image is read, unless those that cannot be decoded
    are to be left out.
    """
    config = config or TrainConfig()
    scheme_options(config.scheme, config.scheme_options)
    splits = with_reserve(checked_splits(labels), config)
    skips = config.missing == "skip"
    source, left_out, notes = joined_images(images, splits, skip_missing=skips)
    kept = {name: without(part, left_out) for name, part in splits.items()}
    steps = (kept["train"].n_rows, config.batch_size, config.accumulate, ranks_of()[1])
    _ = Plan(*steps).steps  # or there are too few images
    given: dict[str, Any] = {"checkpoint": checkpoint, "options": model_options}
    loaded = _first_model(model, kept["train"].categories, **given, seed=config.seed)
    _take_input(loaded, preprocessing)
    kept, lost = _decodable(source, kept, loaded, config, progress)
    made = _targets(kept["train"], machine, machine_weight, config)
    inputs = _what_decides(loaded, source, kept, config)
    if machine is not None:
        inputs["machine labels"] = _digest_of(made)
    data = TrainData(
        _rows(source, kept["train"], loaded),
        torch.from_numpy(made.target),
        torch.from_numpy(made.weight),
        _rows(source, kept["valid"], loaded) if "valid" in kept else None,
        kept.get("valid"),
    )
    notes = [*loaded.notes, made.description, *notes, *lost]
    names, place = dict(paths or {}), Path(out)
    return PreparedTrain(
        loaded, data, kept, names, config, place, inputs, notes, overwrite=overwrite
    )


def _take_input(
    loaded: LoadedModel,
    preprocessing: Preprocessing | Callable[[Preprocessing], Preprocessing] | None,
) -> None:
    """Let the model have another preprocessing, if one is given."""
    if preprocessing is not None:
        own = loaded.preprocessing
        wanted = preprocessing(own) if callable(preprocessing) else preprocessing
        loaded.take_input(wanted.for_layout(own.layout))


def _decodable(
    source: ImageSource,
    splits: dict[str, PartialLabels],
    loaded: LoadedModel,
    config: TrainConfig,
    progress: ProgressCallback | None,
) -> tuple[dict[str, PartialLabels], list[str]]:
    """The splits without images of this training that cannot be decoded, if asked; what to know."""
    used = [name for name in ("train", "valid") if name in splits]
    if config.undecodable != "skip":
        return splits, []
    lost: list[dict[str, str]] = []
    for name in used:
        rows = _rows(source, splits[name], loaded)
        lost += [{"id": one} for one in undecodable_ids(rows, config.workers, progress)]
    if not lost:
        return splits, []
    kept = {name: without(part, lost) for name, part in splits.items()}
    if empty := [name for name in used if not kept[name].n_rows]:
        raise IdError(f"no image of the {empty[0]} labels could be decoded.")
    shown = some([row["id"] for row in lost])
    return kept, [f"{len(lost):,} images cannot be decoded and are left out: {shown}."]


def _first_model(
    model: str | LoadedModel, categories: Sequence[str], *, seed: int, **given: Any
) -> LoadedModel:
    """The model that training starts from, with a row for each category."""
    if not isinstance(model, LoadedModel):
        return start_model(model, categories, seed=seed, **given)
    if model.head is None or model.head.n_categories != len(categories):
        raise ShapeError(
            f"the head of {model.name} has not a row for each category.",
            found="none" if model.head is None else f"{model.head.n_categories:,} rows",
            expected=f"{len(categories):,}",
        )
    return dataclasses.replace(model, notes=list(model.notes))


def _targets(
    labels: PartialLabels, machine: Outputs | None, weight: float, config: TrainConfig
) -> Targets:
    """What the known labels, and a machine's, say."""
    if machine is None:
        return make_targets(labels, config.policy, seed=config.seed)
    if config.mix != "none":
        raise ConfigError(
            "labels that a machine said do not go with mixed images: a mixture has no weight.",
            remedy="mix='none'",
        )
    policy = config.policy
    return add_machine_labels(labels, machine, policy=policy, weight=weight, seed=config.seed)


def _digest_of(made: Targets) -> str:
    digest = hashlib.sha256(made.target.tobytes())
    digest.update(made.weight.tobytes())
    return f"sha256:{digest.hexdigest()}"


def is_better(record: Mapping[str, Any], best: Mapping[str, Any], metric: str) -> bool:
    """By the metric on validation; every epoch where there is none."""
    score, sign = record.get("score"), METRICS[metric].sign
    known = best.get("score")
    return known is None or (score is not None and sign * score > sign * known)


def with_reserve(splits: dict[str, PartialLabels], config: TrainConfig) -> dict[str, PartialLabels]:
    """The splits, with a part of the training images kept out under a name of its own."""
    if not config.reserve:
        return splits
    part = splits["train"]
    shares = {"train": 1 - config.reserve, RESERVED: config.reserve}
    assigned = split_labels(part, shares, seed=config.seed)
    cut = {name: part.take_rows(np.flatnonzero(assigned == name)) for name in shares}
    return {**splits, **cut}


def _rows(source: ImageSource, labels: PartialLabels, loaded: LoadedModel) -> ImageRows:
    return ImageRows(source, loaded.preprocessing, rows=places(source, ids_of(labels)))


def _what_decides(
    loaded: LoadedModel,
    source: ImageSource,
    splits: Mapping[str, PartialLabels],
    config: TrainConfig,
) -> dict[str, str]:
    """What the weights depend on, by the names that users know."""
    assert loaded.module is not None  # noqa: S101  # start_model has seen to it
    decides = {"catwise": __version__, "torch": torch.__version__}
    decides |= {"model": loaded.name, "classification layer": loaded.layer}
    decides["first weights"] = f"sha256:{weights_digest(loaded.module)}"
    decides["preprocessing"] = str({**loaded.preprocessing.to_dict(), "source": ""})
    decides["images"] = str(source.origin)
    for name, part in splits.items():
        decides[f"{name} labels"] = labels_digest(part)
    for item in dataclasses.fields(config):
        if item.name not in _NOT_IN_RESULTS:
            decides[item.name.replace("_", " ")] = str(getattr(config, item.name))
    decides["options of the scheme"] = str(scheme_options(config.scheme, config.scheme_options))
    decides["uncertain labels"] = str(config.policy)
    decides["device"] = (config.device or "cpu").partition(":")[0]
    decides["processes"] = str(ranks_of()[1])
    return decides


@dataclass(frozen=True, eq=False)
class PreparedTrain:
    """Model, images and labels that fit together.

    Attributes:
        model: the model that training starts from.
        data: training and validation images with what is known of them.
        splits: labels by split, without images that are not there.
        paths: id → name in the table of labels, where that is another one.
        config: options.
        out: the folder.
        inputs: what the weights depend on: names to short texts or digests.
        notes: what to know, a sentence each.
        overwrite: whether a run with other inputs may be replaced.
    """

    model: LoadedModel
    data: TrainData
    splits: dict[str, PartialLabels]
    paths: dict[str, str]
    config: TrainConfig
    out: Path
    inputs: dict[str, str]
    notes: list[str]
    overwrite: bool

    def run(
        self, progress: ProgressCallback | None = None, callbacks: Sequence[TrainCallback] = ()
    ) -> TrainResult:
        """Do what is left to do; see `train`."""
        assert self.model.module is not None  # noqa: S101  # start_model has seen to it
        with joined_processes(torch.device(self.config.device or "cpu")) as processes:
            with self._opened(processes):
                trainer = Trainer(
                    self.model.module,
                    self.model.layer,
                    self.model.image_argument,
                    data=self.data,
                    config=self.config,
                    processes=processes,
                    callbacks=callbacks,
                )
                self._resume(trainer)
                self._train(trainer, progress if processes.is_first else None)
                processes.wait()
            return self._result(trainer)

    @contextlib.contextmanager
    def _opened(self, processes: Processes) -> Iterator[None]:
        """Make the folder, keep other runs out; the first process alone writes."""
        if not processes.is_first:
            processes.wait()
            yield
            return
        self.check_folder()
        make_folder(self.out)
        with exclusive(self.out, inside=True):
            if self.check_folder():
                for name in _OURS:
                    remove(self.out / name)
            write_json(self.out / RUN, {"inputs": self.inputs})
            write_text(self.out / LABELS, rows_csv(self._table()))
            processes.wait()
            yield

    def check_folder(self) -> bool:
        """Refuse a folder of something else; whether a run with other inputs is to be replaced."""
        inside = folder_names(self.out)
        try:
            kept = read_file(self.out / RUN) if inside else None
            before = dict(kept["inputs"]) if kept is not None else self.inputs
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"'{self.out}' holds files of something else.",
                found=", ".join(inside[:3]),
                expected="an empty folder, a new one, or an unfinished run",
                remedy="choose another folder",
            ) from error
        changed = differences(before, self.inputs)
        if changed and not self.overwrite and not _MADE.isdisjoint(inside):
            raise OutputError(
                f"'{self.out}' holds a run with other inputs.",
                found="; ".join(changed),
                expected="the inputs and options that the run was started with",
                remedy="choose another folder, or start over with --overwrite (overwrite=True)",
            )
        return bool(changed)

    def _table(self) -> list[dict[str, Any]]:
        """Every labelled image: id, split, group where there are groups, and its labels' codes."""
        grouped = all(part.groups is not None for part in self.splits.values())
        rows = []
        for name, part in self.splits.items():
            for i, one in enumerate(ids_of(part).tolist()):
                row: dict[str, Any] = {"id": self.paths.get(one, one), "split": name}
                if grouped and part.groups is not None:
                    row["group"] = str(part.groups[i])
                codes = part.block(i, i + 1)[0].tolist()
                rows.append(row | dict(zip(part.categories, codes, strict=True)))
        return rows

    def _resume(self, trainer: Trainer) -> None:
        """Take over the last state that an earlier call saved."""
        path = self.out / STATE
        if not path.is_file():
            return
        try:
            document = torch.load(path, map_location="cpu", weights_only=True)
            trainer.restore(document)
        except Exception as error:
            raise OutputError(
                f"'{path}' cannot be resumed from.",
                found=reason_of(error, named=True),
                remedy="start over with --overwrite (overwrite=True), or remove the file",
            ) from error
        if trainer.state.epoch and not weights_place(self.model, self.out).exists():
            raise OutputError(
                f"the weights in '{self.out}' were removed.",
                expected=f"'{weights_place(self.model, self.out).name}', as training wrote it",
                remedy="start over: remove the folder",
            )

    def _train(self, trainer: Trainer, progress: ProgressCallback | None) -> None:
        state, plan = trainer.state, trainer.plan
        images = plan.steps * plan.step_images
        tell = report_rows("train", progress, self.config.epochs * images)
        tell(0, state.epoch * images + state.step * plan.step_images)
        while state.epoch < self.config.epochs:
            record = trainer.run_epoch(tell, lambda: self._save(trainer))
            better = is_better(record, state.best, self.config.metric)
            if better:
                state.best = {"epoch": record["epoch"], "score": record.get("score")}
            if trainer.processes.is_first and better:
                save_weights(state.model, self.model, self.out)
            self._save(trainer)
            if trainer.processes.is_first:
                write_json(self.out / HISTORY, state.history)

    def _save(self, trainer: Trainer) -> None:
        """Write what a later call resumes from; all processes are needed for it."""
        document = trainer.document()
        if trainer.processes.is_first:
            with atomic_path(self.out / STATE) as temporary:
                torch.save(document, temporary)

    def _result(self, trainer: Trainer) -> TrainResult:
        state = trainer.state
        return TrainResult(
            out=self.out,
            checkpoint=weights_place(self.model, self.out),
            labels=self.out / LABELS,
            history=state.history,
            epoch=state.best["epoch"],
            score=state.best["score"],
            reserved=self.splits[RESERVED].n_rows if RESERVED in self.splits else 0,
            notes=self.notes,
        )
