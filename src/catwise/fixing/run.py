"""Read, extract, tune and evaluate, write back, verify, report.

Every step leaves its result in the output folder, whole or not at all; a run that was stopped
resumes where it was, and ends with the same bytes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from catwise._configs import FixConfig
from catwise._csv import rows_csv
from catwise._io import write_json, write_text
from catwise._json import json_ready
from catwise._lock import remove
from catwise._names import takes_engine
from catwise.engines.base import Engine
from catwise.errors import CatwiseError, ConfigError, HeadError, IdError, InSampleWarning
from catwise.features import FeatureStore
from catwise.fixing import account
from catwise.fixing.folder import (
    CARD,
    EVALUATION,
    FEATURES,
    LEFT_OUT,
    PREVIOUS,
    PREVIOUS_RUN,
    README,
    REPORT,
    RUN,
    STEPS,
    State,
    has_readme,
)
from catwise.fixing.images import FoundImages, places
from catwise.fixing.inputs import (
    checked_model,
    checked_splits,
    ids_of,
    input_note,
    joined_images,
    target_name,
    what_decides,
    without,
)
from catwise.heads import Head
from catwise.joining import aligned_features
from catwise.labels import ChosenCells, PartialLabels
from catwise.metrics import HeadComparison
from catwise.models import LoadedModel, Preprocessing
from catwise.models.card import preprocessing_text
from catwise.models.extraction import extract
from catwise.models.layers import ranks_of, weights_digest
from catwise.models.loading import ImageRows
from catwise.models.recipes import recipe_of
from catwise.models.sources import ImageSource
from catwise.models.thumbnails import make_thumbnails
from catwise.models.updating import Updated, update_features
from catwise.models.verify import Verified, check_output, first_images, noise, verify_copy
from catwise.models.ways import way_notes
from catwise.models.writing import write_model
from catwise.progress import Progress, ProgressCallback
from catwise.reporting import render_report, write_run
from catwise.reporting.run import RUN_FILES, read_run
from catwise.tuning import TuneResult, UpdatedRun, tune
from catwise.tuning.plan import make_plan
from catwise.tuning.updating import compare_with_previous, prepare_update

_DONE: Final = "done"
_LOOKED_AT: Final = 8
_OPTIONS: Final = ("missing", "undecodable", "flips", "force")
"""What decided which images are used and how, beside what the configuration of `tune` says."""
_STEP_TEXTS: Final = {
    "extract": "images through the model",
    "tune": "tuning the head and scoring both on the test images",
    "apply": "writing the checkpoint",
    "verify": "running the new checkpoint",
}


def fix(
    model: str | LoadedModel,
    images: ImageSource | FoundImages | str | os.PathLike[str],
    labels: Mapping[str, PartialLabels],
    out: str | os.PathLike[str],
    *,
    engine: Engine | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> FixResult:
    """Tune a model's head on its partly known labels and write the checkpoint back.

    Args:
        model: as `load_model` takes it, or a loaded model.
        images: the images, by the labels' ids; a folder, see `find_images`.
        labels: by split: "train" and, where there are any, "valid" and "test"; each with ids.
        out: the folder to fill; an unfinished run there is resumed.
        engine: what runs batches of images and fits blocks of categories (`catwise.engines`); None:
            this process. The preset "paper", and validation that only selects, tune in this one.
        progress: called now and then.
        **options: as `prepare`.

    Returns:
        Where everything is, and the means before and after.

    Raises:
        CatwiseError: As `prepare`, `extract`, `tune` and `write_model`.
        MismatchError: If the written checkpoint does not behave as its head says.
    """
    return prepare(model, images, labels, out, **options).run(progress, engine=engine)


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
    chosen: ChosenCells | None = None,
    inputs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    update: bool = False,
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
        chosen: cells that a model chose, as in `tune`.
        inputs: where all came from, for the report; JSON-ready.
        overwrite: replace a run with other inputs; its features stay where they would be the same.
        update: bring a run up to date with images and labels as they are now: only images that were
            added or changed are run, and the head is tuned again if anything has changed.

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
    _refuse_processes()
    splits = checked_splits(labels)
    _check_plan(config, has_valid="valid" in splits)
    loaded = checked_model(model, checkpoint, model_options, splits, preprocessing)
    source, left_out, notes = joined_images(images, splits, skip_missing=config.missing == "skip")
    kept = {name: without(part, left_out) for name, part in splits.items()}
    if empty := [name for name, part in kept.items() if not part.n_rows]:
        raise IdError(f"no image of the {empty[0]} labels is there.")
    check_output(loaded)
    state = State.read(
        Path(out),
        what_decides(loaded, source, splits, left_out, config, chosen=chosen),
        target_name(loaded),
        overwrite=overwrite,
        update=update,
    )
    return PreparedFix(
        loaded,
        source,
        kept,
        config,
        state,
        dict(inputs or {}),
        left_out,
        [*_model_notes(loaded, config), *notes],
        overwrite=overwrite,
        chosen=chosen,
    )


def _check_plan(config: FixConfig, *, has_valid: bool) -> None:
    """Refuse options of the tuning that do not go together."""
    tuning = config.tuning()
    planned = {name: tuning[name] for name in ("preset", "methods", "validation", "metric")}
    make_plan(**planned, config=tuning.get("config"), has_valid=has_valid)


def _model_notes(model: LoadedModel, config: FixConfig) -> list[str]:
    """What to know about the model, its input and how it runs."""
    way = way_notes(model.module, **config.way())
    return [*model.notes, *input_note(model.preprocessing), *way]


def _refuse_processes() -> None:
    if (n_processes := ranks_of()[1]) > 1:
        raise ConfigError(
            "fix works in one process.",
            found=f"WORLD_SIZE={n_processes}",
            remedy="start it without torchrun; catwise extract shares out its work",
        )


@dataclass(frozen=True, eq=False)
class FixResult:
    """What `fix` leaves.

    Attributes:
        out: the folder.
        checkpoint: the new checkpoint, a file or a folder.
        report: one page: what changed, how sure that is, what was left alone and why.
        card: the model's card.
        evaluation: JSON-ready: verdict, means and categories before and after on the test images,
            as in `TuneResult.evaluation`; None without test labels.
        run: the account of the tuning as `run_document` gives it: summary, records, gap, notes.
        left_out: what became of labelled images that could not be used: a table of id, split and
            reason, one row each.
        steps: of each step whether it "ran" now, or what it had made was "kept".
        updated: what an update did with images; None without one.
        relabelled: what it did with labels; None where all categories were tuned, or none.
        against: the head of the run before an update beside the new one, on the same test rows;
            None where there was none, or no test rows.
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
    updated: Updated | None = None
    relabelled: UpdatedRun | None = None
    against: HeadComparison | None = None


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
        chosen: cells that a model chose, if that is told.
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
    chosen: ChosenCells | None = None

    @property
    def base(self) -> Head:
        """The head as it was."""
        if self.model.head is None:
            raise HeadError(f"the classification layer of {self.model.name} cannot be read.")
        return self.model.head

    @property
    def ahead(self) -> list[str]:
        """The steps that are not finished."""
        return [step for step in STEPS if not self.state.has(step)]

    def run(
        self, progress: ProgressCallback | None = None, *, engine: Engine | None = None
    ) -> FixResult:
        """Do what is left to do; see `fix`."""
        tell = _teller(progress, self.ahead)
        with self.state.opened() as state:
            tell("extract")
            store, left_out, updated = _extract(self, engine, progress)
            tell("tune")
            head, relabelled = _tuned(self, store, engine, progress)
            target = state.folder / state.target
            tell("apply")
            if not state.done("apply"):
                write_model(self.model, head, target, overwrite=True)
                state.finish("apply", {"model": self._model_facts()})
            tell("verify")
            if not state.done("verify"):
                state.finish("verify", {"verified": _verified(self, target, head)._asdict()})
            result = _account(self, head, left_out, progress)
            tell(_DONE)
            against = _against(self, head, store)
            return replace(result, updated=updated, relabelled=relabelled, against=against)

    def _model_facts(self) -> dict[str, Any]:
        """How the new checkpoint is loaded, and what its features are made of."""
        model = self.model
        assert model.module is not None  # noqa: S101  # it has run
        return {
            "recipe": recipe_of(model),
            "preprocessing": json_ready(model.preprocessing.to_dict()),
            "flips": self.config.flips,
            "weights": weights_digest(model.module),
        }


# -------------------------------------------------------------------------------- steps


def _teller(report: ProgressCallback | None, ahead: list[str]) -> Any:
    """Reports which step starts, of those that are left."""

    def tell(step: str) -> None:
        if report is not None and step in ahead:
            report(Progress("fix", ahead.index(step), len(ahead), _STEP_TEXTS[step]))
        elif report is not None and step == _DONE:
            report(Progress("fix", len(ahead), len(ahead), _DONE))

    return tell


def _extract(
    job: PreparedFix, engine: Engine | None, progress: ProgressCallback | None
) -> tuple[FeatureStore, list[dict[str, str]], Updated | None]:
    """The features of all labelled images, which images are left out, and what an update did."""
    state = job.state
    state.done("extract")
    state.steps["extract"] = "kept"  # it runs if it says how far it is

    def report(message: Progress) -> None:
        state.steps["extract"] = "ran"
        if progress is not None:
            progress(message)

    ids = np.concatenate([ids_of(part) for part in job.splits.values()])
    rows = ImageRows(job.source, job.model.preprocessing, rows=places(job.source, ids))
    store, updated = _features(job, rows, ids, engine, report)
    there = set(store.ids.tolist())
    left_out = job.left_out + [
        {"id": one, "split": name, "reason": "cannot be decoded"}
        for name, part in job.splits.items()
        for one in ids_of(part).tolist()
        if one not in there
    ]
    if left_out:
        write_text(state.folder / LEFT_OUT, rows_csv(left_out))
    if not state.has("extract"):
        state.finish("extract")
    if updated is not None and not updated.is_unchanged:
        state.redo()
    return store, left_out, updated


def _features(
    job: PreparedFix, rows: ImageRows, ids: Any, engine: Engine | None, report: ProgressCallback
) -> tuple[Any, Updated | None]:
    """The store, and what an update did."""
    folder, how = job.state.folder / FEATURES, job.config.extraction()
    how |= {"engine": engine, "progress": report}
    if job.state.update:
        updated = update_features(job.model, rows, folder, **how)
        return updated.store, updated
    store = extract(job.model, rows, folder, ids=ids, **how, overwrite=job.overwrite)
    return store, None


def _against(job: PreparedFix, head: Head, store: FeatureStore) -> HeadComparison | None:
    """The head of the run before, and the new one, on the same test rows."""
    from catwise.heads import load_head

    path = job.state.folder / PREVIOUS
    if not path.is_file():
        return None
    test, metric = _data(job, "test", store), job.config.metric
    return compare_with_previous(load_head(path), head, test, metric, chosen=job.chosen)


def _tuned(
    job: PreparedFix,
    store: FeatureStore,
    engine: Engine | None,
    progress: ProgressCallback | None,
) -> tuple[Head, UpdatedRun | None]:
    """The tuned head, and what an update did with labels."""
    from catwise.heads import load_head

    state, config, folder = job.state, job.config, job.state.folder / RUN
    if state.done("tune"):
        return load_head(folder / "head.safetensors"), None
    train, valid, test = (_data(job, name, store) for name in ("train", "valid", "test"))
    updated = _retuned(job, train, valid, test, progress)
    if updated is None:
        with warnings.catch_warnings():  # its note says the same, and is shown
            warnings.simplefilter("ignore", category=InSampleWarning)
            how = {**config.tuning(), "chosen": job.chosen, "progress": progress}
            shared = config.memory is None and takes_engine(config.preset, config.validation)
            own = engine if shared else None
            result = tune(job.base, train, valid, test=test, engine=own, **how)
    else:
        result = updated.result
    result.summary["seconds"] = None  # the same run must end with the same bytes
    about = {
        "model": {
            "name": job.model.name,
            "classification layer": job.model.layer,
            "preprocessing": preprocessing_text(job.model.preprocessing),
            "notes": job.notes,
        },
        "options": {name: getattr(config, name) for name in _OPTIONS},
        **job.inputs,
    }
    overwrite = folder.is_dir() and {item.name for item in folder.iterdir()} <= set(RUN_FILES)
    write_run(result, folder, inputs=about, overwrite=overwrite)
    state.finish("tune")
    if (before := state.folder / PREVIOUS_RUN).exists():
        remove(before)
    return result.head, updated


def _retuned(
    job: PreparedFix, train: Any, valid: Any, test: Any, progress: ProgressCallback | None
) -> UpdatedRun | None:
    """The run before with what changed in its labels; None where all is to be tuned."""
    before = job.state.folder / PREVIOUS_RUN
    if not before.is_dir() or job.chosen is not None:  # cells that a model chose are not held
        return None
    try:
        prepared = prepare_update(TuneResult.load(before, job.base), train, valid)
    except CatwiseError as error:  # other rows or features, or nothing is held
        job.notes.append(f"All categories were tuned: {error.what}")
        return None
    return prepared.run(test, force=job.config.force, progress=progress)


def _data(job: PreparedFix, split: str, store: FeatureStore) -> Any:
    """Features and labels of a split's images that could be decoded; None if there is no split."""
    if split not in job.splits:
        return None
    labels = job.splits[split]
    at = {} if store.ids is None else {name: row for row, name in enumerate(store.ids.tolist())}
    kept = [row for row, one in enumerate(ids_of(labels).tolist()) if one in at]
    if not kept:
        raise IdError(f"no image of the {split} labels could be decoded.")
    if len(kept) < labels.n_rows:
        labels = labels.take_rows(np.array(kept, dtype=np.int64))
    rows = np.array([at[one] for one in ids_of(labels).tolist()], dtype=np.int64)
    return aligned_features(store, rows), labels


def _verified(job: PreparedFix, target: Path, head: Head) -> Verified:
    """The written checkpoint beside the original, on the first training images that can be read."""
    rows = places(job.source, ids_of(job.splits["train"])[:_LOOKED_AT])
    images = first_images(job.model, job.source, rows.tolist())
    seen = verify_copy(job.model, target, head, noise(job.model) if images is None else images)
    return seen._replace(gap=float(f"{seen.gap:.0e}"), change=float(f"{seen.change:.3g}"))


def _account(
    job: PreparedFix,
    head: Head,
    left_out: list[dict[str, str]],
    progress: ProgressCallback | None,
) -> FixResult:
    """Report and card, always made again from what the steps left.

    The card is the README, too, of a model's folder that had none.
    """
    folder, facts = job.state.folder, job.state.facts
    target = folder / job.state.target
    run = read_run(folder / RUN)
    about = account.describe_checkpoint(job.model, target, facts, left_out)
    if run["evaluation"] is not None:
        write_json(folder / EVALUATION, run["evaluation"])
    wanted, pictures = job.config.thumbnails, None
    if wanted is not False and run.get("curves"):
        pictures = make_thumbnails(run["curves"], job.source, wanted=wanted, progress=progress)
    page = {**run, "checkpoint": about, "thumbnails": pictures}
    write_text(folder / REPORT, render_report(page, progress=progress))
    card = account.card(job.model, head, run, about, job.state.inputs)
    write_text(folder / CARD, card)
    request = job.model.request
    if target.is_dir() and request is not None and not has_readme(Path(request.name)):
        write_text(target / README, card)
    return FixResult(
        out=folder,
        checkpoint=target,
        report=folder / REPORT,
        card=folder / CARD,
        evaluation=run["evaluation"],
        run=run,
        left_out=left_out,
        steps=dict(job.state.steps),
        notes=[*job.notes, *run["notes"]],
    )
