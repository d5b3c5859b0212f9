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
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from catwise.engines.base import Shared
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
from catwise.tuning.presets.anchor import Anchor, fit_bank, shared_rows
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
from catwise.tuning.rows.tuning_rows import (
    SMALL_ENTRIES,
    Counter,
    TuningRows,
    category_blocks,
    updated_logits,
)


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
    anchor = Anchor.weighed(task, config, fit_bank(task, config))
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


class _Piece(NamedTuple):
    """A block of categories without some folds, and the anchor without them."""

    block: slice
    folds: range
    original: Tensor  # (F · B,)
    direction: Tensor  # (F · B, k)


class _PieceFits(NamedTuple):
    """What comes of a piece, for each setting."""

    deltas: Tensor  # (S, F, B, k)
    intercepts: Tensor  # (S, F, B, sources)
    logits: list[Tensor]  # of each fold (S, B, m) of those of its rows that choose the penalty
    passes: int


def _cross_fit(task: Task, config: DefaultConfig, anchor: Anchor) -> _Table:
    """Every fit without each fold, and the logits of the labels left out."""
    table, held = _Table(task, config, anchor), task.held
    settings = sorted(range(1, len(table.settings)) if held is None else set(held.settings))
    blocks = list(category_blocks(task.valid, task.known_train, task.entries))
    counter = Counter(task.progress, "cross-fit", len(blocks) * task.n_folds)
    rows, fold = anchor.rows, task.fold_of_rows[anchor.rows]
    pieces = (
        _Piece(block, folds, *anchor.at(folds, block))
        for block in blocks
        for folds in _together(task, block)
    )
    work = partial(_fit_piece, task.shared, config, settings, rows)
    found = task.engine.map(work, pieces)
    at = [setting - 1 for setting in settings]
    for block in blocks:
        part = task.valid.take(block, rows)
        out = part.logits.new_empty(len(config.penalties), *part.logits.shape)
        for folds in _together(task, block):
            fits = next(found)
            table.deltas[at, folds.start : folds.stop, block] = fits.deltas
            table.intercepts[at, folds.start : folds.stop, block] = fits.intercepts
            table.passes += fits.passes
            for f, logits in zip(folds, fits.logits, strict=False):
                out[:, :, fold == f] = logits
            counter.step(f"fold {folds.stop} of {task.n_folds}", len(folds))
        if held is None:  # else nothing is chosen
            table.parts.append(shared_rows(task, part, out, rows))
    return table


def _fit_piece(
    shared: Shared[Task], config: DefaultConfig, settings: list[int], rows: Tensor, piece: _Piece
) -> _PieceFits:
    """The fits of a block without some folds, and their logits at those of `rows` left out."""
    task, (block, folds, original, direction) = shared.value, piece
    held, part, starts = task.held, task.valid.take(piece.block), None
    penalties = [config.penalties[setting - 1] for setting in settings]
    if held is not None:
        at = slice(folds.start, folds.stop)
        starts = [held.starts.folds[s][at, block].flatten(0, 1) for s in settings]
    fits = _Fits.of(task, config, block, times=len(folds))
    kept = part.without_folds(task.fold_of_rows, folds)
    left_out = [task.rows_of(f)[1] for f in folds]
    chosen = [
        torch.searchsorted(outside, rows[task.fold_of_rows[rows] == f])
        for f, outside in zip(folds, left_out, strict=True)
    ]
    shape, passes = (len(folds), len(part.codes)), 0
    deltas, intercepts = [], []
    logits: list[list[Tensor]] = [[] for _ in folds]
    for fit in fits.path(kept, (original, direction), penalties, starts):
        intercepts.append(fit.intercepts.T.reshape(*shape, -1))
        deltas.append((direction + fit.delta).view(*shape, -1))
        passes += fit.passes
        for f, (delta, own) in enumerate(zip(deltas[-1], original.view(shape), strict=True)):
            found = updated_logits(part, delta, own, left_out[f])
            logits[f].append(found[:, chosen[f]])
    stacked = [torch.stack(found) for found in logits] if held is None else []
    return _PieceFits(torch.stack(deltas), torch.stack(intercepts), stacked, passes)


def _together(task: Task, block: slice) -> list[range]:
    """Which folds are left out in one batch: all where arrays stay small, else one by one.

    In one batch a category is there once for each fold, and rows are read once for all.
    """
    if task.n_folds * task.valid.codes[block].numel() <= SMALL_ENTRIES:
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
        blocks = list(category_blocks(task.valid, None, task.entries)) if self.stage else []
        counter = Counter(task.progress, "refinement", len(blocks) * task.n_folds)
        changes = self.changes(setting)

        def part(block: slice, folds: range) -> Change:
            return changes.part(slice(folds.start, folds.stop), block)

        pieces = [(block, folds) for block in blocks for folds in _together(task, block)]
        work = partial(_refine, task.shared, task.metric.name, self.stage)
        refined = task.engine.map(work, ((*piece, part(*piece)) for piece in pieces))
        for piece, (delta, passes) in zip(pieces, refined, strict=True):
            part(*piece).delta.copy_(delta)
            self.passes += passes
            counter.step(self.settings[setting].name, len(piece[1]))
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


def _refine(
    shared: Shared[Task], metric: str, stage: Any, piece: tuple[slice, range, Change]
) -> tuple[Tensor, int]:
    """(…, B, k) changes moved along the slope of the metric; how often rows were read.

    Without some folds, or with all rows where there are none to leave out.
    """
    task, (block, folds, (delta, original)) = shared.value, piece
    rows = task.valid.take(block)
    if folds:
        rows = rows.without_folds(task.fold_of_rows, folds)
    start = updated_logits(rows, delta.flatten(0, -2), original.flatten())
    fit = refine(rows.x, start, rows.codes, cast("Kind", metric), stage)
    return delta + fit.delta.view(delta.shape), fit.passes


def _refit(
    task: Task, config: DefaultConfig, anchor: Anchor, setting: int
) -> tuple[Change, Tensor, int]:
    """The chosen setting on all rows, where its fits ended, and how often the rows were read."""
    valid, stage, ends = task.valid, config.refinements.get(task.metric.name), []
    delta, passes = valid.logits.new_zeros(len(valid.logits), valid.x.shape[1]), 0
    blocks = list(category_blocks(valid, task.known_train, task.entries))
    pieces = (_Piece(block, range(0), *anchor.at(range(-1, 0), block)) for block in blocks)
    work = partial(_fit_whole, task.shared, config, setting)
    for block, found in zip(blocks, task.engine.map(work, pieces), strict=True):
        ends.append(found[0])
        delta[block] = found[1]
        passes += found[2]
    change = Change(delta, anchor.slopes[-1, :1].expand(len(delta)))
    blocks = list(category_blocks(valid, None, task.entries)) if stage else []
    refined = task.engine.map(
        partial(_refine, task.shared, task.metric.name, stage),
        ((block, range(0), change.part(block)) for block in blocks),
    )
    for block, (moved, times) in zip(blocks, refined, strict=True):
        delta[block] = moved
        passes += times
    return change, torch.cat(ends), passes


def _fit_whole(
    shared: Shared[Task], config: DefaultConfig, setting: int, piece: _Piece
) -> tuple[Tensor, Tensor, int]:
    """Where the fits of a block on all rows ended, the change, and how often rows were read."""
    task, own = shared.value, (piece.original, piece.direction)
    fits = _Fits.of(task, config, piece.block)
    penalties, starts = config.penalties[:setting], None
    if task.held is not None:
        penalties, starts = penalties[-1:], [task.held.starts.whole[piece.block]]
    *_, fit = fits.path(task.valid.take(piece.block), own, penalties, starts)
    return torch.cat([fit.delta, fit.intercepts.T], 1), own[1] + fit.delta, fit.passes
