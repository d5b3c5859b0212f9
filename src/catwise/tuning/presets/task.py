"""What the `default` preset works on: rows in coordinates and folds; and the way back to a head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._json import number
from catwise.engines.base import IN_PROCESS, Engine, Shared
from catwise.errors import LabelError
from catwise.heads import Head
from catwise.joining import source_ids
from catwise.labels import PartialLabels
from catwise.labels.partition import assign_folds
from catwise.metrics import Metric
from catwise.metrics.intervals import Units
from catwise.metrics.per_category import undefined_reason
from catwise.progress import ProgressCallback
from catwise.tuning.account.memorisation import MemorisationGap, memorisation_gap
from catwise.tuning.account.records import Scores
from catwise.tuning.account.results import FoldArtifacts, changed_head
from catwise.tuning.account.shared import SharedFits
from catwise.tuning.choice.gains import Corrected, Scorer, levels
from catwise.tuning.choice.rules import MIN_POSITIVES
from catwise.tuning.fits.affine import Pooled, fit_pooled, sampling_weights
from catwise.tuning.inputs import LabelledSource, TuningInputs, check_sources
from catwise.tuning.presets.outcome import Outcome
from catwise.tuning.rows.coordinates import (
    Coordinates,
    OwnCoordinates,
    fit_coordinates,
    outlying_rows,
    read_rows,
)
from catwise.tuning.rows.tuning_rows import FoldScorer, TuningRows

AnyCoordinates: TypeAlias = Coordinates | OwnCoordinates

NO_VALIDATION: Final = (
    "No validation data: the known training labels were cross-fitted. The backbone has memorised "
    "these images, so the scores are too high and the head is worth less."
)


@dataclass(frozen=True, eq=False)
class Task:
    """What is fitted, chosen and scored on."""

    inputs: TuningInputs
    metric: Metric  # what is maximised (or minimised)
    coordinates: AnyCoordinates
    valid: TuningRows  # what is cross-fitted and judges: validation, or training without it
    train: TuningRows | None  # further rows to fit on
    fold: NDArray[np.int8]  # (n,) of the rows that judge
    notes: list[str]
    progress: ProgressCallback | None
    # where some categories of a run are tuned again: what is held, and (m,) whether a training row
    # has a known label in any category of the run
    held: SharedFits | None = None
    labelled: Tensor | None = None

    @property
    def entries(self) -> int | None:
        """Rows times categories of a block."""
        return self.inputs.entries

    @property
    def engine(self) -> Engine:
        """Where blocks of categories are worked on."""
        return self.inputs.engine

    @property
    def shared(self) -> Shared[Task]:
        """The task for whoever works on a block of it: by `engine.map`, wherever that is."""
        return self.engine.share(self) if self.engine is IN_PROCESS else self._sent

    @cached_property
    def _sent(self) -> Shared[Task]:
        """Without what blocks do not need, with what each worker would find again."""
        nothing: Any = None
        copy = replace(self, inputs=nothing, metric=nothing, notes=[], progress=None)
        found = ("known_train_rows", "known_train", "fold_of_rows", "typical_positives")
        vars(copy).update({name: getattr(self, name) for name in found})
        return self.engine.share(copy)

    @property
    def n_folds(self) -> int:
        """F."""
        return int(self.fold.max()) + 1

    @cached_property
    def fold_of_rows(self) -> Tensor:
        """(n,) fold of each row that judges, where they are."""
        return torch.from_numpy(self.fold).to(self.valid.logits.device)

    @cached_property
    def known_train_rows(self) -> Tensor:
        """Which of the further rows have a label to fit; all where some categories are tuned."""
        if self.train is not None and self.labelled is not None:
            return torch.arange(self.train.x.shape[0])
        return torch.empty(0, dtype=torch.int64) if self.train is None else self.train.known()

    @cached_property
    def known_train(self) -> TuningRows | None:
        """The further rows that have a label to fit; without a copy where these are all."""
        if self.train is None or len(self.known_train_rows) == self.train.x.shape[0]:
            return self.train
        return self.train.take(slice(None), self.known_train_rows)

    def train_of(self, block: slice) -> TuningRows | None:
        """Further rows for a block of categories; of a few categories those that they know."""
        if self.known_train is None:
            return None
        part = self.known_train.take(block)
        if self.labelled is None or not len(rows := part.known()):
            return part
        return self.known_train.take(block, rows)

    @cached_property
    def typical_positives(self) -> float:
        """The geometric mean over categories of the positives that judge."""
        if self.held is not None:
            return self.held.typical_positives
        positives = (self.valid.codes == 1).sum(1).clamp_min(1).to(self.valid.logits.dtype)
        return float(positives.log().mean().exp())

    def fold_scorer(self) -> FoldScorer:
        """The metric inside every fold."""
        return FoldScorer(self.valid.judging, self.fold, self.metric)

    def scorer(self) -> Scorer:
        """The metric over all rows that judge."""
        units = Units.of_labels(self.inputs.judging.labels)
        return Scorer(self.metric, self.valid.judging.cpu().numpy(), units)

    def rows_of(self, f: int) -> tuple[Tensor, Tensor]:
        """Rows outside and inside of a fold."""
        rest, own = np.flatnonzero(self.fold != f), np.flatnonzero(self.fold == f)
        device = self.valid.logits.device
        return torch.from_numpy(rest).to(device), torch.from_numpy(own).to(device)


class Setting(NamedTuple):
    """One candidate for all categories: its name and what it was fitted with."""

    name: str
    options: dict[str, Any]


class Change(NamedTuple):
    """Of the head's rows: the original ones times a factor, and what is added in coordinates."""

    delta: Tensor  # (..., C, k) added to the weights
    original: Tensor  # (..., C) factor of the original row

    def without(self, kept: Tensor) -> Change:
        """The original rows in the (C,) categories that are kept."""
        delta = self.delta.masked_fill(kept[:, None], 0.0)
        return Change(delta, self.original.masked_fill(kept, 1.0))

    def part(self, *at: slice) -> Change:
        """Of some of the first dimensions; a view."""
        return Change(self.delta[at], self.original[at])

    def of_fold(self, fold: int) -> Change:
        """One of the first dimension."""
        return Change(self.delta[fold], self.original[fold])


class Calibration(NamedTuple):
    """What weights and intercept are multiplied by in the end, and what is added then.

    Fits around an anchor and what raises a metric that only ranks leave both anywhere, so they are
    refitted on out-of-fold logits, or on those of validation rows that only chose.
    """

    scale: Tensor  # (C,) float64 > 0
    offset: Tensor  # (C,) float64
    pooled: Pooled = Pooled()  # what the categories share

    @classmethod
    def none(cls, like: Tensor) -> Calibration:
        """Of as many categories as (C, …) logits."""
        scale = torch.ones(len(like), dtype=torch.float64, device=like.device)
        return cls(scale, torch.zeros_like(scale))

    @classmethod
    def fitted(
        cls,
        logits: Tensor,
        valid: TuningRows,
        kept: Tensor,
        *,
        shrink_offset: bool,
        pooled: Pooled | None = None,
    ) -> Calibration:
        """Fitted on (C, n) logits of the validation rows; none of the (C,) categories kept.

        Offsets are shrunk to the level of the original head where these rows did not fit it.
        `pooled` is what the categories of a run share, where that is held. Where a model chose some
        of the labels, they are weighted.
        """
        level = valid.logits if shrink_offset else None
        weight = None if valid.judged is None else sampling_weights(logits, valid.codes)
        options: dict[str, Any] = {"free_offset": valid.intercept, "pooled": pooled}
        fit = fit_pooled(logits, valid.codes, level=level, weight=weight, **options)
        scale, offset = torch.where(kept, 1.0, fit.scale), torch.where(kept, 0.0, fit.offset)
        return cls(scale, offset, fit.pooled)

    def of(self, logits: Tensor) -> Tensor:
        """(C, n) logits after it."""
        return (logits * self.scale[:, None] + self.offset[:, None]).to(logits.dtype)


class Crossed(NamedTuple):
    """What cross-fitting leaves; the original head's where a category is kept."""

    change: Change  # (F, C, …) of the heads fitted without each fold
    logits: Tensor  # (C, n) out-of-fold, calibrated


@dataclass(frozen=True, eq=False)
class Found:
    """What was fitted and chosen."""

    settings: list[Setting]  # the candidates; the first is the original head
    corrected: Corrected  # the choice without what it would clearly harm, and its gains
    change: Change  # (C, …); zeros where the original head is kept
    calibration: Calibration  # of the change and of what cross-fitting left
    crossed: Crossed | None
    passes: int  # how often the rows were read by the fits
    shared: SharedFits | None = None  # what `retune` holds


def make_task(
    inputs: TuningInputs,
    metric: Metric,
    *,
    n_folds: int,
    force: bool,
    progress: ProgressCallback | None,
) -> Task:
    """Read the rows in coordinates of those that judge, check them, and assign the folds."""
    source = inputs.judging
    coordinates = fit_coordinates(
        source.features,
        n_categories=inputs.scored.n_categories,
        centred=inputs.scored.bias is not None,
        device=inputs.device,
    )
    valid = _rows(inputs, source, coordinates)
    train = None if inputs.valid is None else _rows(inputs, inputs.train, coordinates)
    fitted = valid if train is None else train
    notes = check_sources(inputs, fitted.logits.T, valid.logits.T, force=force)
    notes += outlying_rows(coordinates, valid.logits.shape[1])
    if inputs.valid is None:
        notes.append(NO_VALIDATION)
    name = "train" if inputs.valid is None else "valid"
    fold = assign_folds(
        source.labels,
        n_folds=min(n_folds, _n_units(source.labels, name)),
        seed=inputs.seed,
        digests=source.digests,
    )
    return Task(inputs, metric, coordinates, valid, train, fold, notes, progress)


def _rows(inputs: TuningInputs, data: LabelledSource, coordinates: AnyCoordinates) -> TuningRows:
    x, logits = read_rows(data.features, inputs.scored, coordinates, device=inputs.device)
    target, weight = (
        None if one is None else one.to(inputs.device) for one in (data.target, data.weight)
    )
    codes = data.codes.to(inputs.device)
    judged = None if data.judged is None else data.codes_of(data.judged).to(inputs.device)
    return TuningRows(x, logits, codes, inputs.scored.bias is not None, target, weight, judged)


def _n_units(labels: PartialLabels, name: str) -> int:
    """How many rows or groups there are to assign to folds."""
    n_rows, n_units = labels.n_rows, Units.of_labels(labels).n_units
    if n_units < 2:
        raise LabelError(
            f"{name}: one {'row' if labels.groups is None else 'group'} cannot be cross-fitted.",
            found=f"{n_rows:,} rows" + ("" if labels.groups is None else " of one group"),
            expected="two rows or groups at least: one part fits, the other judges",
        )
    return n_units


# -------------------------------------------------------------------------------- outcome


def outcome_of(task: Task, found: Found, scored_on: str) -> Outcome:
    """What was found, as a head and the account of every category."""
    decision, notes = found.corrected.decision, list(task.notes)
    if bool((found.calibration.scale != 1).any()):
        on = "validation labels" if found.crossed is None else "out-of-fold logits"
        notes.append(f"What was replaced had its scale and offset refitted on {on}.")
    choice = {"candidate": "one for each category"}
    if decision.setting >= 0:
        chosen = found.settings[decision.setting]
        choice = {"candidate": chosen.name, **chosen.options}
    history = [
        {"candidate": setting.name, **setting.options, "pooled_gain": number(float(gain))}
        for setting, gain in zip(found.settings, decision.pooled, strict=True)
    ]
    return Outcome(
        head=_tuned(task, found),
        scores=_scores(task, found),
        scored_on=scored_on,
        mean_gain=found.corrected.gains.mean,
        choice=choice,
        gap=_gap(task),
        history=history,
        passes={"fits": found.passes, "coordinates": 1, "read": 1},
        folds=_folds(task, found),
        shared=found.shared,
        notes=notes,
    )


def _gap(task: Task) -> MemorisationGap | None:
    inputs = task.inputs
    if inputs.valid is None or task.train is None:
        return None
    sides = (rows.logits.T.cpu() for rows in (task.train, task.valid))
    fresh = inputs.valid.labels if inputs.valid.judged is None else inputs.valid.judged
    return memorisation_gap(next(sides), inputs.train.labels, next(sides), fresh)


def _tuned(task: Task, found: Found) -> Head:
    """The base head with the changes of the replaced categories."""
    rows = np.flatnonzero(found.corrected.decision.chosen > 0)
    at = torch.from_numpy(rows)
    weight, bias = _changed(task, found, found.change)
    index = task.inputs.index[rows]
    return changed_head(task.inputs.base, index, weight[at], None if bias is None else bias[at])


def _changed(task: Task, found: Found, change: Change) -> tuple[Tensor, Tensor | None]:
    """(C, D) float64 weights and (C,) biases after a change, scale and offset."""
    head = task.inputs.scored
    delta, intercept = (one.cpu() for one in task.coordinates.fold_back(change.delta))
    scale, offset = (one.cpu() for one in found.calibration[:2])
    original = change.original.double().cpu()
    weight = scale[:, None] * (original[:, None] * head.weight.double().cpu() + delta)
    if head.bias is None:
        return weight, None
    return weight, scale * (original * head.bias.double().cpu() + intercept) + offset


def _folds(task: Task, found: Found) -> FoldArtifacts | None:
    if found.crossed is None:
        return None
    weights, biases = [], []
    for change in zip(*found.crossed.change, strict=True):
        weight, bias = _changed(task, found, Change(*change))
        weights.append(weight.float().numpy())
        if bias is not None:
            biases.append(bias.float().numpy())
    source = task.inputs.judging
    return FoldArtifacts(
        task.fold,
        np.ascontiguousarray(found.crossed.logits.T.float().cpu().numpy()),
        np.stack(weights),
        np.stack(biases) if biases else None,
        task.inputs.categories,
        source_ids(source.features, source.labels),
    )


def _scores(task: Task, found: Found) -> Scores:
    corrected, gains = found.corrected, found.corrected.gains
    chosen = corrected.decision.chosen
    kept = chosen == 0
    status, why = zip(*_reasons(task, corrected), strict=True)
    before, after = levels(gains.before, np.where(kept, 0.0, gains.gain), task.metric)
    _, selected_on = levels(before, corrected.selected_on, task.metric)
    low, high = (np.where(kept, np.nan, end) for end in (gains.low, gains.high))
    without = [
        "unchanged" if kept[c] and not np.isnan(before[c]) else reason
        for c, reason in enumerate(gains.why)
    ]
    names = [found.settings[k].name for k in chosen.tolist()]
    return Scores(list(status), list(why), names, before, after, selected_on, low, high, without)


def _reasons(task: Task, corrected: Corrected) -> list[tuple[str, str]]:
    """Status and reason code of each category."""
    name = "train" if task.inputs.valid is None else "valid"
    undefined = undefined_reason(task.valid.judging.T.cpu().numpy())
    positives = (task.valid.judging == 1).sum(1).cpu().numpy()
    found = []
    for c, taken in enumerate(corrected.decision.chosen):
        if undefined[c] is not None and not taken:
            found.append(("skipped", f"{undefined[c]}_in_{name}"))
        elif taken:
            few = bool(positives[c] < MIN_POSITIVES)
            found.append(("replaced", _replaced_because(task, corrected, c, few=few)))
        else:
            found.append(("kept", _kept_because(corrected, c)))
    return found


def _replaced_because(task: Task, corrected: Corrected, c: int, *, few: bool) -> str:
    gains = corrected.gains
    if task.metric.sign * gains.gain[c] > 0 and not few:
        return "gain"
    held = task.held
    if not (gains.has_mean_gain(task.metric) if held is None else held.has_mean_gain):
        return "gain_in_folds"
    return "pooled_gain" if few else "shared_gain"


def _kept_because(corrected: Corrected, c: int) -> str:
    if corrected.clearly_worse[c]:
        return "clearly_worse"
    if corrected.without_mean_gain[c]:
        return "no_mean_gain"
    nothing = corrected.decision.setting == 0 and not corrected.without_mean_gain.any()
    return "no_pooled_gain" if nothing else "no_gain"
