"""Read, extract, tune, write back, verify, evaluate, report.

Every step leaves its result in the output folder, whole or not at all; a run that was stopped goes
on where it was, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch

from catwise._io import write_text
from catwise._version import __version__
from catwise.errors import ConfigError, HeadError, IdError, InSampleWarning
from catwise.fixing import account
from catwise.fixing.folder import (
    CARD,
    EVALUATION,
    FEATURES,
    LEFT_OUT,
    REPORT,
    RUN,
    State,
    checkpoint_name,
    labels_digest,
)
from catwise.fixing.images import FoundImages, find_images, places
from catwise.fixing.verify import verify
from catwise.joining import aligned_features, has_default_names, match_categories
from catwise.models import LoadedModel
from catwise.models.extract import extract
from catwise.models.layers import ranks_of, weights_digest
from catwise.models.preprocess import ImageRows
from catwise.models.registry import load_model, write_model
from catwise.models.sources import ImageSource
from catwise.progress import Progress
from catwise.reporting import rows_csv, write_run
from catwise.reporting.run import RUN_FILES
from catwise.tuning import tune
from catwise.tuning.plan import make_plan

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from catwise.features import FeatureStore
    from catwise.heads import Head
    from catwise.labels import LabelPolicy, PartialLabels
    from catwise.models import Preprocessing
    from catwise.progress import ProgressCallback

__all__ = ["STEPS", "FixConfig", "FixResult", "PreparedFix", "fix", "prepare"]

STEPS: Final = ("extract", "tune", "apply", "verify", "evaluate")
SPLITS: Final = ("train", "valid", "test")
_SAYS: Final = {
    "extract": "images through the model",
    "tune": "tuning the head",
    "apply": "writing the checkpoint",
    "verify": "running the new checkpoint",
    "evaluate": "scoring the test images",
}
_NOT_IN_RESULTS: Final = ("workers", "device")


@dataclass(frozen=True)
class FixConfig:
    """Options of `fix`.

    Args:
        metric: what is to become better.
        preset: as in `tune`.
        methods: as in `tune`.
        validation: as in `tune`.
        policy: as in `tune`.
        seed: as in `tune`.
        force: go on although head and labels look mismatched.
        batch_rows: images in a batch.
        workers: processes that read images.
        flips: average the features with those of the images flipped left to right.
        device: where to run the model; None: the CPU.
        undecodable: "refuse" or "skip" images that cannot be decoded.
        missing: "refuse" or "skip" ids without an image.
        bootstrap: resamples for the intervals on test images; 0 for none.

    Raises:
        ConfigError: If an option is not possible.
    """

    metric: str = "average_precision"
    preset: str = "default"
    methods: tuple[str, ...] | None = None
    validation: str | None = None
    policy: LabelPolicy | None = None
    seed: int = 0
    force: bool = False
    batch_rows: int = 64
    workers: int = 0
    flips: bool = False
    device: str | None = None
    undecodable: Literal["refuse", "skip"] = "refuse"
    missing: Literal["refuse", "skip"] = "refuse"
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        wrong = {
            "undecodable 'refuse' or 'skip'": self.undecodable not in ("refuse", "skip"),
            "missing 'refuse' or 'skip'": self.missing not in ("refuse", "skip"),
            "batch_rows of 1 or more": self.batch_rows < 1,
            "workers, bootstrap and seed of 0 or more": min(self.workers, self.bootstrap) < 0
            or self.seed < 0,
        }
        if failed := [rule for rule, broken in wrong.items() if broken]:
            raise ConfigError(
                "the options of fix are not possible.",
                found=str(self),
                expected="; ".join(failed),
            )


@dataclass(frozen=True, eq=False)
class FixResult:
    """What `fix` leaves.

    Attributes:
        out: the folder.
        checkpoint: the new checkpoint, a file or a folder.
        report: one page: what changed, how sure that is, what was left alone and why.
        card: a snippet for the model's card.
        evaluation: JSON-ready: the means before and after on the test images and the gains; None
            without test labels.
        run: the account of the tuning as `run_document` gives it: summary, records, gap, notes.
        left_out: what became of labelled images that could not be used: a table of id, split and
            reason, one row each.
        steps: which steps ran now, and which were there already.
        notes: what to know, a sentence each.
    """

    out: Path
    checkpoint: Path
    report: Path
    card: Path
    evaluation: dict[str, Any] | None
    run: dict[str, Any]
    left_out: list[dict[str, str]]
    steps: dict[str, str]
    notes: list[str]


def fix(
    model: str | LoadedModel,
    images: ImageSource | FoundImages | str | os.PathLike[str],
    labels: Mapping[str, PartialLabels],
    out: str | os.PathLike[str],
    *,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> FixResult:
    """Tune a model's head on its partly known labels and write the checkpoint back.

    Args:
        model: as `load_model` takes it, or a loaded model.
        images: the images, by the labels' ids; a folder, see `find_images`.
        labels: by split: "train" and, where there are any, "valid" and "test"; each with ids.
        out: the folder to fill; an unfinished run there goes on.
        progress: called now and then.
        **options: as `prepare`.

    Returns:
        Where everything is, and the means before and after.

    Raises:
        CatwiseError: As `prepare`, `extract`, `tune` and `write_model`.
        MismatchError: If the written checkpoint does not behave as its head says.
    """
    return prepare(model, images, labels, out, **options).run(progress)


def prepare(
    model: str | LoadedModel,
    images: ImageSource | FoundImages | str | os.PathLike[str],
    labels: Mapping[str, PartialLabels],
    out: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    model_options: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    config: FixConfig | None = None,
    inputs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> PreparedFix:
    """Check everything that can be checked before the first image is read; write nothing.

    Args:
        model: as in `fix`.
        images: as in `fix`.
        labels: as in `fix`.
        out: as in `fix`.
        checkpoint: as `load_model` takes it.
        model_options: further options of `load_model`.
        preprocessing: instead of what the model's configuration says.
        config: options.
        inputs: where all came from, for the report; JSON-ready.
        overwrite: replace a run with other inputs; its features stay where they would be the same.

    Returns:
        What `run()` finishes.

    Raises:
        ConfigError: If labels lack ids or a split, or an option is not possible.
        IdError: If images are missing, or an id or a group is in two splits.
        CategoryError: If the head lacks a category of the labels.
        OutputError: If `out` holds something else, or a run with other inputs.
        CatwiseError: As `load_model`.
    """
    config = config or FixConfig()
    if (n_processes := ranks_of()[1]) > 1:
        raise ConfigError(
            "fix works in one process.",
            found=f"WORLD_SIZE={n_processes}",
            remedy="start it without torchrun; catwise extract shares out its work",
        )
    splits = _checked(labels)
    make_plan(
        config.preset,
        config.methods,
        config.validation,
        config.metric,
        config=None,
        has_valid="valid" in splits,
    )
    loaded = _loaded(model, checkpoint, model_options, splits, preprocessing)
    source, left_out, notes = _joined(images, splits, config)
    kept = {name: _without(part, left_out) for name, part in splits.items()}
    if empty := [name for name, part in kept.items() if not part.n_rows]:
        raise IdError(f"no image of the {empty[0]} labels is there.")
    state = State.look(
        Path(out),
        _what_decides(loaded, source, splits, left_out, config),
        _target(loaded),
        overwrite=overwrite,
    )
    return PreparedFix(
        loaded,
        source,
        kept,
        config,
        state,
        dict(inputs or {}),
        left_out,
        [*loaded.notes, *_input_note(loaded.preprocessing), *notes],
        overwrite=overwrite,
    )


@dataclass(frozen=True, eq=False)
class PreparedFix:
    """Model, images and labels that fit together.

    Attributes:
        model: the model.
        source: of the images.
        splits: the labels by split, without images that are not there.
        config: options.
        state: of the output folder.
        inputs: where all came from.
        left_out: labelled images that are not there.
        notes: what to know, a sentence each.
        overwrite: whether features of a run with other inputs may be replaced.
    """

    model: LoadedModel
    source: ImageSource
    splits: dict[str, PartialLabels]
    config: FixConfig
    state: State
    inputs: dict[str, Any]
    left_out: list[dict[str, str]]
    notes: list[str]
    overwrite: bool

    @property
    def base(self) -> Head:
        """The head as it was."""
        if self.model.head is None:
            raise HeadError(f"the classification layer of {self.model.name} cannot be read.")
        return self.model.head

    @property
    def ahead(self) -> list[str]:
        """The steps that are not finished."""
        steps = STEPS if "test" in self.splits else STEPS[:-1]
        return [step for step in steps if not self.state.has(step)]

    def run(self, progress: ProgressCallback | None = None) -> FixResult:
        """Do what is left to do; see `fix`."""
        tell = _teller(progress, self.ahead)
        with self.state.opened() as state:
            tell("extract")
            store, left_out = _extract(self, progress)
            tell("tune")
            head = _tuned(self, store, progress)
            target = state.folder / state.target
            tell("apply")
            if not state.done("apply"):
                write_model(self.model, head, target, overwrite=True)
                state.finish("apply")
            tell("verify")
            if not state.done("verify"):
                state.finish("verify", {"verified": verify(self, target, head)._asdict()})
            tell("evaluate")
            evaluation = _evaluated(self, head, store)
            return _account(self, left_out, evaluation)


# ------------------------------------------------------------------------------- inputs


def _checked(labels: Mapping[str, PartialLabels]) -> dict[str, PartialLabels]:
    if wrong := [name for name in labels if name not in SPLITS]:
        raise ConfigError(f"there is no split {wrong[0]!r}.", expected=", ".join(SPLITS))
    if "train" not in labels:
        raise ConfigError("training labels are needed.", found=", ".join(labels) or "no split")
    if unnamed := [name for name, part in labels.items() if part.ids is None]:
        raise ConfigError(
            f"the {unnamed[0]} labels have no ids.",
            expected="an id of each image, to find its file by",
            remedy="name the column of the ids: --id-column",
        )
    splits = {name: labels[name] for name in SPLITS if name in labels}
    for what in ("ids", "groups"):
        _refuse_common(what, {name: getattr(part, what) for name, part in splits.items()})
    return splits


def _refuse_common(what: str, names: Mapping[str, NDArray[Any] | None]) -> None:
    """An image or a patient in two splits makes the scores too good."""
    seen: dict[str, str] = {}
    for split, values in names.items():
        unique = [] if values is None else np.unique(values).tolist()
        if common := [one for one in unique if one in seen]:
            raise IdError(
                f"{len(common):,} {what} are in the {seen[common[0]]} and the {split} labels.",
                found=", ".join(map(repr, common[:3])),
                expected="each image and each group (patient) in one split only",
                remedy="split anew by group" if what == "groups" else "correct the split column",
            )
        seen |= dict.fromkeys(unique, split)


def _loaded(
    model: str | LoadedModel,
    checkpoint: str | os.PathLike[str] | None,
    options: Mapping[str, Any] | None,
    splits: Mapping[str, PartialLabels],
    preprocessing: Preprocessing | None,
) -> LoadedModel:
    if isinstance(model, LoadedModel):
        loaded = dataclasses.replace(model, notes=list(model.notes))
    else:
        loaded = load_model(model, checkpoint=checkpoint, **dict(options or {}))
    if loaded.head is None:
        raise HeadError(f"the classification layer of {loaded.name} cannot be read.")
    if loaded.checkpoint is None:
        raise ConfigError(
            f"{loaded.name} was loaded without a checkpoint: there is nothing to repair.",
            remedy="give the file with its weights: --checkpoint",
        )
    if "loaded_with" not in loaded.extra:
        raise ConfigError(
            f"{loaded.name} cannot be loaded again to verify what is written.",
            remedy="let load_model load it: 'python:MODULE:FUNCTION' calls a function of yours",
        )
    if preprocessing is not None:
        loaded.preprocessing = preprocessing
    columns = splits["train"].categories
    if has_default_names(loaded.head.categories) and len(columns) == loaded.head.n_categories:
        loaded.head = loaded.head.replace(categories=columns)
        loaded.notes.append("the rows of the head were named after the label columns, in order.")
    for name, part in splits.items():
        match_categories(loaded.head.categories, part.categories, name=name)
    return loaded


def _input_note(take: Preprocessing) -> list[str]:
    """A word of warning where nobody said what the model was trained on."""
    if not take.source.endswith(("(untrained)", "assumed")):
        return []
    note = (
        "the checkpoint does not say what input it was trained on, so this is the architecture's "
        "default. If it is not right (the score before is then too low), say so: --input-size, "
        "--crop-pct, --mean, --std."
    )
    return [note]


def _joined(
    images: ImageSource | FoundImages | str | os.PathLike[str],
    splits: Mapping[str, PartialLabels],
    config: FixConfig,
) -> tuple[ImageSource, list[dict[str, str]], list[str]]:
    """The images, the labelled ones that are not there, and what to know."""
    every = np.concatenate([_ids(part) for part in splits.values()])
    if isinstance(images, FoundImages):
        found = images
    elif isinstance(images, ImageSource):
        found = _among(images, every, skip_missing=config.missing == "skip")
    else:
        found = find_images(images, every, skip_missing=config.missing == "skip")
    notes = []
    if found.n_unlabelled:
        notes.append(f"{found.n_unlabelled:,} images have no labels and are not used.")
    missing = set(found.missing)
    left_out = [
        {"id": one, "split": name, "reason": "no image"}
        for name, part in splits.items()
        for one in (_ids(part).tolist() if missing else ())
        if one in missing
    ]
    if left_out:
        notes.append(f"{len(left_out):,} labelled images are not there and are left out.")
    return found.source, left_out, notes


def _among(source: ImageSource, ids: NDArray[np.str_], *, skip_missing: bool) -> FoundImages:
    missing = ids[places(source, ids) < 0].tolist()
    if missing and not (skip_missing and len(missing) < len(ids)):
        raise IdError(
            f"{len(missing):,} of {len(ids):,} labelled images are not among the images.",
            found=", ".join(map(repr, missing[:3])),
        )
    return FoundImages(source, tuple(missing), len(source) - (len(ids) - len(missing)))


def _ids(labels: PartialLabels) -> NDArray[np.str_]:
    return np.empty(0, dtype=np.str_) if labels.ids is None else labels.ids


def _without(labels: PartialLabels, left_out: list[dict[str, str]]) -> PartialLabels:
    """The labels of images that can be used."""
    gone = {row["id"] for row in left_out}
    kept = [row for row, one in enumerate(_ids(labels).tolist()) if one not in gone]
    return (
        labels if len(kept) == labels.n_rows else labels.take_rows(np.array(kept, dtype=np.int64))
    )


def _what_decides(
    model: LoadedModel,
    source: ImageSource,
    splits: Mapping[str, PartialLabels],
    left_out: list[dict[str, str]],
    config: FixConfig,
) -> dict[str, str]:
    """What the results depend on, by the names that users know."""
    decides = {"catwise": __version__, "torch": torch.__version__}
    decides |= {"model": model.name, "classification layer": model.layer}
    if model.checkpoint is not None:
        decides["checkpoint's name"] = model.checkpoint.name
    if model.module is not None:
        decides["checkpoint"] = f"sha256:{weights_digest(model.module)}"
    for key, value in model.preprocessing.to_dict().items():
        if key != "source":
            decides[f"preprocessing {key.replace('_', ' ')}"] = str(value)
    decides["images"] = str(source.origin)
    for name, part in splits.items():
        decides[f"{name} labels"] = labels_digest(part)
    if left_out:
        decides["images that are not there"] = f"{len(left_out):,}"
    for field in dataclasses.fields(config):
        if field.name not in _NOT_IN_RESULTS:
            decides[field.name.replace("_", " ")] = str(getattr(config, field.name))
    return decides


def _target(model: LoadedModel) -> str:
    if model.checkpoint is None:  # checked in _loaded
        raise ConfigError(f"{model.name} was loaded without a checkpoint.")
    return checkpoint_name(model.checkpoint.resolve().name)


# -------------------------------------------------------------------------------- steps


def _teller(report: ProgressCallback | None, ahead: list[str]) -> Any:
    """What says which step begins, of those that are left."""

    def tell(step: str) -> None:
        if report is not None and step in ahead:
            at = ahead.index(step)
            report(Progress("fix", at, len(ahead), _SAYS[step]))

    return tell


def _extract(
    job: PreparedFix, progress: ProgressCallback | None
) -> tuple[FeatureStore, list[dict[str, str]]]:
    """The features of all labelled images, and which images are left out."""
    state, config = job.state, job.config
    state.done("extract")
    ids = np.concatenate([_ids(part) for part in job.splits.values()])
    rows = ImageRows(job.source, job.model.preprocessing, rows=places(job.source, ids))
    store: Any = extract(
        job.model,
        rows,
        state.folder / FEATURES,
        ids=ids,
        device=config.device,
        flips=config.flips,
        undecodable=config.undecodable,
        batch_rows=config.batch_rows,
        num_workers=config.workers,
        overwrite=job.overwrite,
        progress=progress,
    )
    there = set(store.ids.tolist())
    left_out = job.left_out + [
        {"id": one, "split": name, "reason": "cannot be decoded"}
        for name, part in job.splits.items()
        for one in _ids(part).tolist()
        if one not in there
    ]
    if left_out:
        write_text(state.folder / LEFT_OUT, rows_csv(left_out))
    if not state.has("extract"):
        state.finish("extract")
    return store, left_out


def _tuned(job: PreparedFix, store: FeatureStore, progress: ProgressCallback | None) -> Head:
    from catwise.heads import load_head

    state, config, folder = job.state, job.config, job.state.folder / RUN
    if state.done("tune"):
        return load_head(folder / "head.safetensors")
    train, valid = (_data(job, name, store) for name in ("train", "valid"))
    with warnings.catch_warnings():  # its note says the same, and is shown
        warnings.simplefilter("ignore", category=InSampleWarning)
        result = tune(
            job.base,
            train,
            valid,
            metric=config.metric,
            preset=config.preset,
            methods=config.methods,
            validation=config.validation,
            policy=config.policy,
            seed=config.seed,
            force=config.force,
            progress=progress,
        )
    result.summary["seconds"] = None  # the same run must end with the same bytes
    about = {
        "model": {
            "name": job.model.name,
            "classification layer": job.model.layer,
            "preprocessing": account.preprocessing_text(job.model.preprocessing),
            "notes": job.notes,
        },
        **job.inputs,
    }
    overwrite = folder.is_dir() and {item.name for item in folder.iterdir()} <= set(RUN_FILES)
    write_run(result, folder, inputs=about, overwrite=overwrite)
    state.finish("tune")
    return result.head


def _data(job: PreparedFix, split: str, store: FeatureStore) -> Any:
    """Features and labels of a split's images that could be decoded; None if there is no split."""
    if split not in job.splits:
        return None
    labels = job.splits[split]
    at = {} if store.ids is None else {name: row for row, name in enumerate(store.ids.tolist())}
    kept = [row for row, one in enumerate(_ids(labels).tolist()) if one in at]
    if not kept:
        raise IdError(f"no image of the {split} labels could be decoded.")
    if len(kept) < labels.n_rows:
        labels = labels.take_rows(np.array(kept, dtype=np.int64))
    rows = np.array([at[one] for one in _ids(labels).tolist()], dtype=np.int64)
    return aligned_features(store, rows), labels


def _evaluated(job: PreparedFix, head: Head, store: FeatureStore) -> dict[str, Any] | None:
    if "test" not in job.splits:
        return None
    path = job.state.folder / EVALUATION
    if job.state.done("evaluate"):
        return account.read(path)
    document = account.score(
        job.base,
        head,
        _data(job, "test", store),
        metric=job.config.metric,
        bootstrap=job.config.bootstrap,
        seed=job.config.seed,
    )
    account.write(path, document)
    job.state.finish("evaluate")
    return document


def _account(
    job: PreparedFix, left_out: list[dict[str, str]], evaluation: dict[str, Any] | None
) -> FixResult:
    """Report and card, always made anew from what the steps left."""
    folder, facts = job.state.folder, job.state.facts
    target = folder / job.state.target
    run = account.run_of(folder / RUN)
    about = account.describe_checkpoint(job.model, target, facts, left_out)
    write_text(folder / REPORT, account.report(run, evaluation, about))
    write_text(folder / CARD, account.card(job.model, run, evaluation, about))
    return FixResult(
        folder,
        target,
        folder / REPORT,
        folder / CARD,
        evaluation,
        run,
        left_out,
        dict(job.state.steps),
        [*job.notes, *run["notes"]],
    )
