"""The `default` preset: few strong candidates, cross-fitted over the rows that judge.

A backbone has memorised the images that it was trained on, so labels on other images (validation)
are worth more. Every candidate is the original head plus a penalised change (`penalised`), in
coordinates of the validation rows (`coordinates`).

Validation labels count 1, known training labels ``source_weight`` (0 is always among the
candidates), each source with an intercept of its own; the bias is the validation one's. Two
fits are averaged, because neither was always better: one pulls to the original weights W;
the other pulls to ``W + 2 T`` and gives the training rows no original logits, since those
were memorised. T is the direction that the training labels alone point to: fitted from
zero logits with penalty ``5 sqrt(n_pos / 50)``. One (loss, source weight, penalty) is chosen for
all categories by cross-fitting over the validation rows. From there the ranking loss
(`ranking_loss`) goes a little further along the slope of average precision or AUROC itself, if
cross-fitting says so; per category the result is kept or replaced.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from catwise.errors import ConfigError, check_rules
from catwise.losses import resolve_loss
from catwise.metrics import Metric
from catwise.progress import ProgressCallback
from catwise.tuning.choice.gains import on_one_scale as _scaled
from catwise.tuning.choice.gains import without_harm
from catwise.tuning.choice.nested import FoldScores, nested_choice
from catwise.tuning.choice.rules import Floats, choose_one, choose_staged
from catwise.tuning.fits.penalised import PenalisedFit, fit_path
from catwise.tuning.fits.ranking_loss import Stage, refine
from catwise.tuning.fits.smooth_ranking import Kind
from catwise.tuning.inputs import TuningInputs
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

STAGES: Final = {
    "average_precision": (Stage(1.0, 3.0), Stage(1.0, 1.0)),
    "auroc": (Stage(1.0, 1.0), Stage(2.0, 1.0), Stage(2.0, 0.3)),
}
"""The metric stages of the preset; measured in docs/ablations.md."""


@dataclass(frozen=True)
class DefaultConfig:
    """Options of the `default` preset; penalties multiply |delta|² / 2.

    Args:
        penalties: from strong to weak; each fit starts from the one before.
        source_weights: the weight of a known training label; 0 must be among them.
        losses: names in `catwise.losses.LOSSES`; all but the first must win clearly. None at all
            leaves only the metric stage.
        stages: by metric, the metric stages to try after the fit that was chosen; a metric that
            is not named has none.
        direction_penalty: of the direction T that the second fit is pulled along.
        direction_step: how far along T.
        n_folds: folds over the validation rows.
        grid_penalties: of the directions of the candidates of `select`.
        grid_steps: along these, of the candidates of `select`.
        grid_powers: T's coordinates are stretched by half this power of their variance.
        tolerance: of the fits, relative to the gradient's start.
        max_iterations: of each fit.
        grid_prior: known positives with which a category's own gain counts as much as the mean
            over all categories where `select` chooses.

    Raises:
        ConfigError: If an option is out of range.
    """

    penalties: tuple[float, ...] = (5.0, 2.5, 1.25, 0.6, 0.3)
    source_weights: tuple[float, ...] = (0.3, 0.0)
    losses: tuple[str, ...] = ("bce",)
    stages: Mapping[str, tuple[Stage, ...]] = field(default_factory=lambda: dict(STAGES))
    direction_penalty: float = 5.0
    direction_step: float = 2.0
    n_folds: int = 5
    grid_penalties: tuple[float, ...] = (30.0, 10.0, 5.0, 2.5, 1.25, 0.6, 0.3)
    grid_steps: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    grid_powers: tuple[float, ...] = (0.0, 0.5)
    tolerance: float = 1e-2
    max_iterations: int = 60
    grid_prior: float = 200.0

    def __post_init__(self) -> None:
        for loss in self.losses:
            resolve_loss(loss)
        object.__setattr__(self, "stages", _stages(self.stages))
        descending = all(a > b for a, b in zip(self.penalties, self.penalties[1:], strict=False))
        checks = {
            "penalties descending and > 0": descending and min(self.penalties, default=0) > 0,
            "source_weights >= 0 with 0 among them": 0.0 in self.source_weights
            and min(self.source_weights) >= 0,
            "losses named once": len(self.losses) == len(set(self.losses)),
            "grid_prior > 0": self.grid_prior > 0,
            "n_folds in 2 … 100": 2 <= self.n_folds <= 100,
            "tolerance in (0, 1)": 0 < self.tolerance < 1,
            "max_iterations >= 1": self.max_iterations >= 1,
        }
        check_rules("options of the default preset", self, checks)


def tune_crossfit(
    inputs: TuningInputs,
    metric: Metric,
    *,
    config: DefaultConfig,
    force: bool,
    progress: ProgressCallback | None,
) -> Outcome:
    """The preset: cross-fit, choose once, decide per category, refit on all."""
    task = make_task(inputs, metric, n_folds=config.n_folds, force=force, progress=progress)
    what = "training labels" if inputs.valid is None else "validation"
    scored_on = f"{what}, cross-fitted in {task.n_folds} folds"
    return outcome_of(task, fit_and_select(task, config), scored_on)


def fit_and_select(task: Task, config: DefaultConfig) -> Found:
    """Cross-fit over the rows that judge, choose once, decide per category, refit on all."""
    grid = _Grid.of(config, has_train=task.train is not None)
    table = _cross_fit(task, config, grid)
    plain = partial(choose_one, n_preferred=grid.n_preferred)
    n_plain = len(table.settings)
    if stages := config.stages.get(task.metric.name, ()):
        found = nested_choice(table.scores(), plain)
        # Every fit that some choice would take, so that each choice can be repeated whole.
        table.add_stages(sorted({found.setting, *found.settings_without}), stages)
    choose = partial(choose_staged, choose=plain, variants=table.variants, n_plain=n_plain)
    decision = nested_choice(table.scores(), choose)
    change, more = _refit(task, config, table.settings[decision.setting])
    held_out = lru_cache(1)(table.held_out)
    corrected = without_harm(
        decision,
        table.scores(),
        task.valid.logits,
        lambda _, setting: held_out(setting, on_one_scale=True),
        fold=task.fold,
        scorer=task.scorer(),
        needs_gain=task.train is not None,
    )
    best = corrected.decision.setting
    kept = torch.from_numpy(corrected.decision.chosen == 0).to(task.valid.logits.device)
    logits = torch.where(kept[:, None], task.valid.logits, held_out(best))
    calibration = Calibration.none(logits)
    if "stage" in table.settings[best].options:
        calibration = Calibration.fitted(logits, task.valid, kept)
        scale, offset = (one[:, None] for one in calibration)
        logits = (logits * scale + offset).to(logits.dtype)
    crossed = Crossed(Change(table.deltas[best], table.intercepts[best]).without(kept), logits)
    return Found(
        table.settings,
        corrected,
        change.without(kept),
        calibration,
        crossed,
        table.passes + more,
    )


class _Grid(NamedTuple):
    """The fits to try: the paths, in order, and every setting along them."""

    paths: list[tuple[str, float]]
    settings: list[Setting]
    n_preferred: int

    @classmethod
    def of(cls, config: DefaultConfig, *, has_train: bool) -> _Grid:
        weights = sorted(config.source_weights, reverse=True) if has_train else [0.0]
        paths = [(loss, weight) for loss in config.losses for weight in weights]
        settings = [Setting("base", {})]
        for loss, weight in paths:
            prefix = "" if len(config.losses) == 1 else f"{loss},"
            for penalty in config.penalties:
                name = f"{prefix}source_weight={weight:g},penalty={penalty:g}"
                options = {"loss": loss, "source_weight": weight, "penalty": penalty}
                settings.append(Setting(name, options))
        # A weight of 0 (the last), and another loss, must win clearly: see `choose_one`.
        return cls(paths, settings, len(config.penalties) * max(len(weights) - 1, 1))


def _cross_fit(task: Task, config: DefaultConfig, grid: _Grid) -> _Table:
    """Every fit of the grid without each fold, and its scores inside the fold."""
    train = task.known_train
    table = _Table(task, grid.settings)
    blocks = list(category_blocks(task.valid, train))
    counter = Counter(task.progress, "cross-fit", len(blocks) * task.n_folds * len(grid.paths))
    for block in blocks:
        part = task.valid.take(block)
        known = None if train is None else train.take(block)
        fitters = {loss: _Fitter.build(known, config, loss) for loss in config.losses}
        out = part.logits.new_empty(len(grid.settings), *part.logits.shape)
        out[0] = part.logits
        for f in range(task.n_folds):
            inside, outside = task.rows_of(f)
            kept = part.take(slice(None), inside)
            for i, (loss, weight) in enumerate(grid.paths):
                for j, fit in enumerate(fitters[loss].path(kept, weight, config.penalties)):
                    k = 1 + i * len(config.penalties) + j
                    table.deltas[k, f, block] = fit.delta
                    table.intercepts[k, f, block] = fit.intercept
                    out[k][:, outside] = updated_logits(part, fit.delta, fit.intercept, outside)
                counter.step(f"fold {f + 1} of {task.n_folds}")
        for k, logits in enumerate(out):
            table.values[k, :, block] = table.scorer(logits, block)
        table.passes += sum(fitter.passes for fitter in fitters.values())
    return table


class _Table:
    """Settings, their scores in every fold, and the heads fitted without each fold."""

    def __init__(self, task: Task, settings: list[Setting]) -> None:
        valid, self.task, self.settings = task.valid, task, list(settings)
        self.scorer = task.fold_scorer()
        shape = (len(settings), task.n_folds, len(valid.logits))
        self.values: Floats = np.full(shape, np.nan)
        self.deltas = valid.logits.new_zeros(*shape, valid.x.shape[1])
        self.intercepts = valid.logits.new_zeros(shape)
        self.variants: dict[int, list[int]] = {}
        self.passes = 0

    def scores(self) -> FoldScores:
        """What chooses: larger is better."""
        return FoldScores(self.task.metric.sign * self.values, self.scorer.positives)

    def held_out(self, setting: int, *, on_one_scale: bool = False) -> Tensor:
        """(C, n) logits of the heads fitted without each row's fold."""
        valid, metric = self.task.valid, self.task.metric
        logits = torch.empty_like(valid.logits)
        every = torch.arange(self.task.fold.size, device=logits.device)
        for block in category_blocks(valid, None):
            part = valid.take(block)
            for f in range(self.task.n_folds):
                _, own = self.task.rows_of(f)
                change = self.deltas[setting, f, block], self.intercepts[setting, f, block]
                if on_one_scale:
                    logits[block, own] = _scaled(updated_logits(part, *change, every), metric)[
                        :, own
                    ]
                else:
                    logits[block, own] = updated_logits(part, *change, own)
        return logits

    def add_stages(self, taken: Sequence[int], stages: Sequence[Stage]) -> None:
        """Add the refinements by the ranking loss from some settings."""
        blocks = list(category_blocks(self.task.valid, None))
        total = len(taken) * len(stages) * len(blocks)
        counter = Counter(self.task.progress, "metric stage", total)
        deltas, values = [self.deltas], [self.values]
        for setting, stage in itertools.product(taken, stages):
            delta = self.deltas[setting].clone()
            found = np.full(self.values.shape[1:], np.nan)
            for block in blocks:
                found[:, block] = self._refine(setting, stage, delta, block)
                counter.step(self.settings[setting].name)
            self.variants.setdefault(setting, []).append(len(self.settings))
            self.settings.append(_staged(self.settings[setting], setting, stage))
            deltas.append(delta[None])
            values.append(found[None])
        origins = [setting for setting in taken for _ in stages]
        self.intercepts = torch.cat([self.intercepts, self.intercepts[origins]])
        self.deltas, self.values = torch.cat(deltas), np.concatenate(values)

    def _refine(self, setting: int, stage: Stage, delta: Tensor, block: slice) -> Floats:
        """(F, B) scores of a block of categories, whose (F, C, k) changes are updated."""
        part, kind = self.task.valid.take(block), _kind(self.task.metric)
        out = torch.empty_like(part.logits)
        for f in range(self.task.n_folds):
            inside, outside = self.task.rows_of(f)
            intercept = self.intercepts[setting, f, block]
            start = updated_logits(part, delta[f, block], intercept, inside)
            fit = refine(part.x[inside], start, part.codes[:, inside], kind, stage)
            delta[f, block] += fit.delta
            out[:, outside] = updated_logits(part, delta[f, block], intercept, outside)
            self.passes += fit.passes
        return self.scorer(out, block)


def _staged(setting: Setting, index: int, stage: Stage) -> Setting:
    name = f"{setting.name},temperature={stage.temperature:g},stage_penalty={stage.penalty:g}"
    return Setting(name, {**setting.options, "stage": stage._asdict(), "after": index})


def _kind(metric: Metric) -> Kind:
    return cast("Kind", metric.name)


def _stages(stages: Mapping[str, Sequence[Stage]]) -> dict[str, tuple[Stage, ...]]:
    """The stages by metric, checked."""
    if wrong := set(stages) - set(STAGES):
        raise ConfigError(
            f"there is no metric stage for {sorted(wrong)[0]!r}.", expected=" or ".join(STAGES)
        )
    given = {name: tuple(Stage(*stage) for stage in row) for name, row in stages.items()}
    if bad := [s for row in given.values() for s in row if min(s) <= 0]:
        raise ConfigError(
            "temperature and penalty of a metric stage must be positive.", found=str(bad[0])
        )
    return given


def _refit(task: Task, config: DefaultConfig, chosen: Setting) -> tuple[Change, int]:
    """The chosen setting on all rows, and how often the rows were read."""
    valid, options = task.valid, chosen.options
    train = task.known_train
    delta = valid.logits.new_zeros(len(valid.logits), valid.x.shape[1])
    intercept, passes = valid.logits.new_zeros(len(delta)), 0
    for block in category_blocks(valid, train) if options else ():
        part = valid.take(block)
        if "loss" in options:
            known = None if train is None else train.take(block)
            fitter = _Fitter.build(known, config, options["loss"])
            upto = tuple(p for p in config.penalties if p >= options["penalty"])
            *_, last = fitter.path(part, options["source_weight"], upto)
            delta[block], intercept[block] = last.delta, last.intercept
            passes += fitter.passes
        if "stage" in options:
            every = torch.arange(part.x.shape[0], device=part.x.device)
            start = updated_logits(part, delta[block], intercept[block], every)
            stage = Stage(**options["stage"])
            fit = refine(part.x, start, part.codes, _kind(task.metric), stage)
            delta[block] += fit.delta
            passes += fit.passes
    return Change(delta, intercept), passes


class _Fit(NamedTuple):
    delta: Tensor
    intercept: Tensor


@dataclass
class _Fitter:
    """Both fits of a block of categories, along the path of penalties."""

    train: LabelledRows | None
    direction: Tensor | None
    config: DefaultConfig
    loss: str
    passes: int = 0

    @classmethod
    def build(cls, train: TuningRows | None, config: DefaultConfig, loss: str) -> _Fitter:
        if train is None:
            return cls(None, None, config, loss)
        source = lay_out(train)
        (found,) = fit_directions(train, source, [config.direction_penalty], config, loss)
        return cls(source, config.direction_step * found.delta, config, loss, found.passes)

    def path(self, fresh: TuningRows, weight: float, penalties: Sequence[float]) -> Iterator[_Fit]:
        """The averaged fit for each penalty, each started from the one before."""
        anchors = [None] if self.direction is None or weight == 0 else [None, self.direction]
        laid_out, options = lay_out(fresh), _fit_options(self.config, self.loss)
        paths = [
            fit_path(self._sources(laid_out, weight, a), penalties, **options) for a in anchors
        ]
        for fits in zip(*paths, strict=True):
            delta, intercept = torch.zeros(()), torch.zeros(())
            for anchor, fit in zip(anchors, fits, strict=True):
                self.passes += fit.passes
                whole = fit.delta if anchor is None else fit.delta + anchor
                delta = delta + whole / len(anchors)
                intercept = intercept + fit.intercepts[0] / len(anchors)
            yield _Fit(delta, intercept)

    def _sources(
        self, fresh: LabelledRows, weight: float, anchor: Tensor | None
    ) -> list[LabelledRows]:
        """Fresh and training rows; with an anchor, the latter without their original logits."""
        train = None if weight == 0 else self.train
        if anchor is not None:
            along = fresh.rows.forward(anchor)
            fresh = replace(fresh, offset=along if fresh.offset is None else fresh.offset + along)
            train = None if train is None else replace(train, offset=train.rows.forward(anchor))
        if train is None:
            return [fresh]
        known = torch.ones_like(train.target) if train.weight is None else train.weight
        return [fresh, replace(train, weight=weight * known)]


def _fit_options(config: DefaultConfig, loss: str) -> dict[str, Any]:
    return {
        "pointwise": resolve_loss(loss).slope_curvature,
        "max_iterations": config.max_iterations,
        "tolerance": config.tolerance,
    }


def fit_directions(
    train: TuningRows,
    source: LabelledRows,
    penalties: Sequence[float],
    config: DefaultConfig,
    loss: str,
) -> Iterator[PenalisedFit]:
    """Where the known training labels alone point to, from zero logits, for each penalty.

    `source` is what `lay_out` makes of `train`.

    The penalty grows with the root of the number of positives, so that the direction keeps
    much the same length however many labels are known.
    """
    positives = (train.codes == 1).sum(1).clamp_min(1).to(train.x.dtype)
    source = replace(source, offset=None, intercept=True)
    growth = (positives / 50.0).sqrt()
    path = [penalty * growth for penalty in penalties]
    return fit_path([source], path, **_fit_options(config, loss))
