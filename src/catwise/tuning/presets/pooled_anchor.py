"""The `default` preset: a pooled anchor, and for each category a penalised change around it.

A backbone has memorised the images that it was trained on, so labels on other images (validation)
are worth more. The anchor combines the original head W with heads that training labels alone make:
for known labels at several penalties (T), and with unknown ones as negatives (N). One weight of
each, shared by all categories, is found by a logistic regression on the validation labels. Few
labels tell a few weights well.

Around the anchor every category has a penalised change (`penalised`), in coordinates of the
validation rows (`coordinates`). Validation labels count 1, known training labels
``source_weight``, each source with an intercept of its own; in the training rows the original
head's own logits are left out of the anchor, since they were memorised. One penalty is chosen for
all categories by the log-loss of out-of-fold logits, after one scale for all and an intercept for
each were refitted. From there the ranking loss (`ranking_loss`) goes a little further along the
slope of average precision or AUROC itself; per category the result is kept or replaced.

All of it, the anchor's weights and the choice of the penalty too, is repeated without each fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from catwise.metrics import Metric
from catwise.progress import ProgressCallback
from catwise.tuning.account.shared import SharedFits, Starts
from catwise.tuning.choice.gains import Corrected, on_one_scale, without_harm
from catwise.tuning.choice.nested import FoldScores, nested_keep, pooled_means
from catwise.tuning.choice.rules import Floats
from catwise.tuning.fits.affine import Pooled
from catwise.tuning.fits.penalised import PenalisedFit, fit_path
from catwise.tuning.fits.ranking_loss import refine
from catwise.tuning.fits.shared import SharedFit, SharedRows, fit_shared
from catwise.tuning.fits.smooth_ranking import Kind
from catwise.tuning.inputs import TuningInputs
from catwise.tuning.presets.anchor import Anchor, shared_rows
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.presets.outcome import Outcome
from catwise.tuning.presets.task import (
    Calibration,
    Change,
    Crossed,
    Found,
    Setting,
    Task,
    make_task,
    outcome_of,
)
from catwise.tuning.rows.known import LabelledRows, lay_out
from catwise.tuning.rows.tuning_rows import Counter, TuningRows, category_blocks, updated_logits

#: Entries of a block's labels, once for each fold, up to which all folds are one batch.
_SMALL: Final = 1 << 20


def tune_default(
    inputs: TuningInputs,
    metric: Metric,
    *,
    config: DefaultConfig,
    force: bool,
    progress: ProgressCallback | None,
) -> Outcome:
    """The preset: cross-fit, choose once, decide per category, refit on all."""
    task = make_task(inputs, metric, n_folds=config.n_folds, force=force, progress=progress)
    return outcome_of(task, fit_and_choose(task, config), scored_on(task))


def scored_on(task: Task) -> str:
    """Which rows give the scores of the preset."""
    what = "training labels" if task.inputs.valid is None else "validation"
    return f"{what}, cross-fitted in {task.n_folds} folds"


def fit_and_choose(task: Task, config: DefaultConfig) -> Found:
    """Cross-fit over the rows that judge, choose once, decide per category, refit on all."""
    held = task.held
    anchor = Anchor.fit(task, config)
    table = _cross_fit(task, config, anchor)
    settings = tuple(table.best_settings()) if held is None else held.settings
    ends = {setting: table.ends(setting) for setting in set(settings)}
    for wanted in sorted(set(settings)):
        table.finish(wanted)
    *without, setting = settings
    means = pooled_means(table.scores(), setting, without) if held is None else held.means
    change, whole, passes = _refit(task, config, anchor, setting)
    corrected = _decide(task, table, settings, means)
    kept = torch.from_numpy(corrected.decision.chosen == 0).to(task.valid.logits.device)
    logits = torch.where(kept[:, None], task.valid.logits, table.held_out(setting))
    pooled, shrink = None if held is None else held.calibration, task.train is not None
    calibration = Calibration.fitted(logits, task.valid, kept, shrink_offset=shrink, pooled=pooled)
    crossed = Crossed(table.changes(setting).without(kept), calibration.of(logits))
    passes += anchor.passes + table.passes
    shared = SharedFits(
        coordinates=task.coordinates,
        fold=task.fold,
        typical_positives=task.typical_positives,
        slopes=anchor.slopes,
        settings=settings,
        means=tuple(means),
        has_mean_gain=corrected.has_mean_gain,
        calibration=calibration.pooled,
        calibrations=table.calibrations,
        gains=corrected.gains.gain,
        starts=Starts(torch.cat([anchor.heads, anchor.intercepts[..., None]], 2), ends, whole),
    )
    change = change.without(kept)
    return Found(table.settings, corrected, change, calibration, crossed, passes, shared)


def _decide(
    task: Task, table: _Table, settings: Sequence[int], means: Sequence[float]
) -> Corrected:
    """Keep or replace, per category; settings and pooled gains without each fold, and of all."""
    *without, setting = settings
    held_out = lru_cache(1)(table.held_out)
    return without_harm(
        nested_keep(table.scores(), setting, without, means=means),
        table.scores(),
        task.valid.logits,
        lambda _, setting: held_out(setting, to_judge=True),
        fold=task.fold,
        scorer=task.scorer(),
        needs_gain=task.train is not None,
        has_mean_gain=None if task.held is None else task.held.has_mean_gain,
    )


class _Fits(NamedTuple):
    """Fits of a block of categories around the anchor; without each fold at once, (F · B, …)."""

    config: DefaultConfig
    train: LabelledRows | None
    growth: Tensor  # (F · B,) of the penalties

    @classmethod
    def of(cls, task: Task, config: DefaultConfig, block: slice, *, times: int = 1) -> _Fits:
        positives = (task.valid.codes[block] == 1).sum(1).clamp_min(1)
        relative = positives.to(task.valid.logits.dtype) / task.typical_positives
        train = None
        if (known := task.train_of(block)) is not None and config.source_weight > 0:
            train = lay_out(known.without_logits().repeated(times))
            weight = torch.ones_like(train.target) if train.weight is None else train.weight
            share = config.source_total / weight.sum(1, keepdim=True).clamp_min(1)
            train = replace(train, weight=weight * share.clamp(max=config.source_weight))
        return cls(config, train, (relative**config.penalty_growth).repeat(times))

    def path(
        self,
        rows: TuningRows,
        anchor: tuple[Tensor, Tensor],
        penalties: Sequence[float],
        starts: Sequence[Tensor] | None = None,
    ) -> Iterator[PenalisedFit]:
        """For each penalty, from strong to weak."""
        original, direction = anchor
        valid = lay_out(rows)
        along, offset = valid.rows.forward(direction), cast("Tensor", valid.offset)
        sources = [replace(valid, offset=along.addcmul_(offset, original[:, None]))]
        if self.train is not None:
            along = self.train.rows.forward(direction)
            sources.append(replace(self.train, offset=along))
        scaled = [penalty * self.growth for penalty in penalties]
        return fit_path(sources, scaled, starts=starts, **self.config.fitting)


def _cross_fit(task: Task, config: DefaultConfig, anchor: Anchor) -> _Table:
    """Every fit without each fold, and the logits of the labels left out."""
    table, held = _Table(task, config, anchor), task.held
    settings = sorted(range(1, len(table.settings)) if held is None else set(held.settings))
    penalties = [config.penalties[setting - 1] for setting in settings]
    blocks = list(category_blocks(task.valid, task.known_train))
    counter = Counter(task.progress, "cross-fit", len(blocks) * task.n_folds)
    for block in blocks:
        part = task.valid.take(block)
        out = part.logits.new_empty(len(config.penalties), *part.logits.shape)
        for folds in _together(task, part):
            original, direction = anchor.at(folds, block)
            shape, at = (len(folds), len(part.codes)), slice(folds.start, folds.stop)
            starts = None
            if held is not None:
                starts = [held.starts.folds[s][at, block].flatten(0, 1) for s in settings]
            fits = _Fits.of(task, config, block, times=len(folds))
            kept = part.without_folds(task.fold_of_rows, folds)
            path = fits.path(kept, (original, direction), penalties, starts)
            for j, fit in zip([setting - 1 for setting in settings], path, strict=True):
                table.intercepts[j, at, block] = fit.intercepts.T.reshape(*shape, -1)
                table.deltas[j, at, block] = (direction + fit.delta).view(*shape, -1)
                table.passes += fit.passes
                for f, own in zip(folds, original.view(shape), strict=True):
                    _, outside = task.rows_of(f)
                    change = table.deltas[j, f, block], own
                    out[j][:, outside] = updated_logits(part, *change, outside)
            counter.step(f"fold {folds.stop} of {task.n_folds}", len(folds))
        if task.held is not None:  # nothing is chosen
            continue
        rows = anchor.rows
        table.parts.append(shared_rows(task, part.take(slice(None), rows), out[:, :, rows], rows))
    return table


def _together(task: Task, part: TuningRows) -> list[range]:
    """Which folds are left out in one batch: all where arrays stay small, else one by one.

    In one batch a category is there once for each fold, and rows are read once for all.
    """
    if task.n_folds * part.codes.numel() <= _SMALL:
        return [range(task.n_folds)]
    return [range(f, f + 1) for f in range(task.n_folds)]


class _Table:
    """Settings, and the heads fitted without each fold; setting 0 is the original head."""

    def __init__(self, task: Task, config: DefaultConfig, anchor: Anchor) -> None:
        self.task, self.anchor, self.passes = task, anchor, 0
        self.calibrations: dict[tuple[int, int], Pooled] = {}  # of `_calibrated`
        self.stage = config.refinements.get(task.metric.name)
        also = {} if self.stage is None else {"refinement": self.stage._asdict()}
        self.settings = [Setting("base", {})] + [
            Setting(f"penalty={penalty:g}", {"penalty": penalty, **also})
            for penalty in config.penalties
        ]
        valid = task.valid
        shape = (len(config.penalties), task.n_folds, *valid.logits.shape[:1], valid.x.shape[1])
        self.deltas = valid.logits.new_zeros(shape)
        n_sources = 1 + (task.known_train is not None and config.source_weight > 0)
        self.intercepts = valid.logits.new_zeros(*shape[:-1], n_sources)
        self.parts: list[SharedRows] = []  # of each block, with the logits of all penalties
        self.scorer = task.fold_scorer()
        self.values: Floats = np.full((len(self.settings), *shape[1:3]), np.nan)
        self.values[0] = self.scorer(task.valid.logits, slice(0, shape[2]))

    def best_settings(self) -> list[int]:
        """By the log-loss after one scale for all: without each fold, and of all."""
        losses = np.empty((len(self.deltas), self.task.n_folds + 1))
        whole: SharedFit | None = None
        for j in range(len(self.deltas)):
            parts = [p.only(j) for p in self.parts]
            whole = fit_shared(parts, start=whole)
            self.settings[j + 1].options["log_loss"] = round(whole.loss, 6)
            losses[j, -1] = whole.loss
            for f in range(self.task.n_folds):
                left = [p.without(f) for p in parts]
                losses[j, f] = fit_shared(left, start=whole).loss
        return [int(j) + 1 for j in losses.argmin(0)]

    def ends(self, setting: int) -> Tensor:
        """(F, C, k + S) where the fits of a setting ended, before it is finished."""
        directions = self.anchor.at(range(self.task.n_folds), slice(None))[1]
        deltas = self.deltas[setting - 1]
        deltas = deltas - directions.view(deltas.shape)
        return torch.cat([deltas, self.intercepts[setting - 1]], 2)

    def finish(self, setting: int) -> None:
        """Refine the heads of a setting by the ranking loss, and score them."""
        task = self.task
        counter = Counter(task.progress, "refinement", task.n_folds)
        for block in category_blocks(task.valid, None) if self.stage else ():
            part = task.valid.take(block)
            for folds in _together(task, part):
                change = self.changes(setting).part(slice(folds.start, folds.stop), block)
                rows = part.without_folds(task.fold_of_rows, folds)
                self.passes += _refine(task, rows, change, self.stage)
                if block.stop == len(task.valid.codes):
                    counter.step(self.settings[setting].name, len(folds))
        logits = self.held_out(setting, to_judge=not self.task.metric.ranks_only)
        self.values[setting] = self.scorer(logits, slice(0, len(logits)))

    def changes(self, setting: int) -> Change:
        """(F, C, …) of the heads fitted without each fold; the memory is the table's."""
        deltas = self.deltas[setting - 1]
        return Change(deltas, self.anchor.slopes[:-1, :1].expand(deltas.shape[:2]))

    def scores(self) -> FoldScores:
        """What keeps or replaces: larger is better."""
        return FoldScores(self.task.metric.sign * self.values, self.scorer.positives)

    def held_out(self, setting: int, *, to_judge: bool = False) -> Tensor:
        """(C, n) logits of the heads fitted without each row's fold.

        To judge: on one scale for a metric that only ranks, else with a scale and an offset that
        the other folds' labels gave.
        """
        task, metric = self.task, self.task.metric
        logits = torch.empty_like(task.valid.logits)
        for f in range(task.n_folds):
            _, own = task.rows_of(f)
            change = self.changes(setting).of_fold(f)
            if to_judge and metric.ranks_only:
                whole = updated_logits(task.valid, *change)
                logits[:, own] = on_one_scale(whole, metric)[:, own]
            else:
                logits[:, own] = updated_logits(task.valid, *change, own)
        return self._calibrated(logits, setting) if to_judge and not metric.ranks_only else logits

    def _calibrated(self, logits: Tensor, setting: int) -> Tensor:
        """Each fold's by the labels of the others."""
        found, none = torch.empty_like(logits), torch.zeros(len(logits), dtype=torch.bool)
        for f in range(self.task.n_folds):
            inside, own = self.task.rows_of(f)
            rest = self.task.valid.take(slice(None), inside)
            held = None if self.task.held is None else self.task.held.calibrations[setting, f]
            fit = Calibration.fitted(
                logits[:, inside],
                rest,
                none.to(logits.device),
                shrink_offset=self.task.train is not None,
                pooled=held,
            )
            self.calibrations[setting, f] = fit.pooled
            found[:, own] = fit.of(logits[:, own])
        return found


def _refine(task: Task, rows: TuningRows, change: Change, stage: Any) -> int:
    """Move (…, B, k) changes along the slope of the metric in place; how often rows were read."""
    delta, original = change
    start = updated_logits(rows, delta.flatten(0, -2), original.flatten())
    fit = refine(rows.x, start, rows.codes, cast("Kind", task.metric.name), stage)
    delta += fit.delta.view(delta.shape)
    return fit.passes


def _refit(
    task: Task, config: DefaultConfig, anchor: Anchor, setting: int
) -> tuple[Change, Tensor, int]:
    """The chosen setting on all rows, where its fits ended, and how often the rows were read."""
    valid, stage, ends = task.valid, config.refinements.get(task.metric.name), []
    delta, passes = valid.logits.new_zeros(len(valid.logits), valid.x.shape[1]), 0
    for block in category_blocks(valid, task.known_train):
        own = anchor.at(range(-1, 0), block)
        fits = _Fits.of(task, config, block)
        penalties, starts = config.penalties[:setting], None
        if task.held is not None:
            penalties, starts = penalties[-1:], [task.held.starts.whole[block]]
        *_, fit = fits.path(valid.take(block), own, penalties, starts)
        ends.append(torch.cat([fit.delta, fit.intercepts.T], 1))
        delta[block] = own[1] + fit.delta
        passes += fit.passes
    change = Change(delta, anchor.slopes[-1, :1].expand(len(delta)))
    for block in category_blocks(valid, None) if stage else ():
        passes += _refine(task, valid.take(block), change.part(block), stage)
    return change, torch.cat(ends), passes
