"""The `default` preset where validation only chooses.

Candidates are ``W + step T`` along a grid of penalties of T and of steps; T is the direction that
the training labels alone point to, in coordinates stretched by powers of their variance. Others
are the anchor A (`anchor`) and ``A + step T``: of validation labels these know the few weights that
all categories share, which are found again without each fold. Per category the best gain wins,
pulled strongly to what the candidate gains in all categories.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from catwise.metrics import Metric
from catwise.progress import ProgressCallback
from catwise.tuning.choice.gains import on_one_scale, without_harm
from catwise.tuning.choice.nested import FoldScores, nested_choice
from catwise.tuning.choice.rules import Chosen, choose_each
from catwise.tuning.fits.directions import fit_directions
from catwise.tuning.inputs import TuningInputs
from catwise.tuning.presets.anchor import Anchor, fit_bank
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.presets.outcome import Outcome
from catwise.tuning.presets.task import (
    Calibration,
    Change,
    Found,
    Setting,
    Task,
    make_task,
    outcome_of,
)
from catwise.tuning.rows.known import lay_out
from catwise.tuning.rows.products import product
from catwise.tuning.rows.tuning_rows import Counter, TuningRows, category_blocks, updated_logits


def tune_select_only(
    inputs: TuningInputs,
    metric: Metric,
    *,
    config: DefaultConfig,
    force: bool,
    progress: ProgressCallback | None,
) -> Outcome:
    """The preset: fit on the training labels alone; the validation labels only choose."""
    task = make_task(inputs, metric, n_folds=config.n_folds, force=force, progress=progress)
    scored_on = f"validation, chosen without each of {task.n_folds} folds"
    return outcome_of(task, choose_along_directions(task, config), scored_on)


def choose_along_directions(task: Task, config: DefaultConfig) -> Found:
    """Of each category the best step along the best direction."""
    grid = _Grid(task, config, Anchor.weighed(task, config, fit_bank(task, config)))
    grid.fill()
    decision = nested_choice(grid.scores(), partial(choose_each, prior=config.grid_prior))
    corrected = without_harm(
        decision,
        grid.scores(),
        task.valid.logits,
        lambda chosen, _: grid.held_out(chosen),
        fold=task.fold,
        scorer=task.scorer(),
    )
    chosen = corrected.decision.chosen
    calibration = Calibration.none(task.valid.logits)
    if task.metric.ranks_only:  # else the scale is part of what was chosen and scored
        kept = torch.from_numpy(chosen == 0).to(task.valid.logits.device)
        calibration = Calibration.fitted(
            grid.logits(chosen), task.valid, kept, shrink_offset=task.train is not None
        )
    return Found(
        grid.settings,
        corrected,
        grid.change(chosen),
        calibration,
        None,
        grid.passes,
    )


class _Candidate(NamedTuple):
    """A step along a direction, from the original head or from the anchor."""

    direction: int
    step: float
    anchored: bool = False

    def setting(self, power: float, penalty: float) -> Setting:
        """Its name and options."""
        origin = "anchor" if self.anchored else "base"
        if not self.step:
            return Setting(origin, {})
        options = {"power": power, "direction_penalty": penalty, "step": self.step}
        name = ",".join(f"{key}={value:g}" for key, value in options.items())
        return Setting(f"anchor,{name}" if self.anchored else name, options)


class _Grid:
    """Directions by power and penalty, steps along them, and their scores."""

    def __init__(self, task: Task, config: DefaultConfig, anchor: Anchor) -> None:
        self.task, self.config, self.anchor = task, config, anchor
        self.passes = anchor.passes
        self.directions_of = list(itertools.product(config.grid_powers, config.grid_penalties))
        self.candidates = [_Candidate(0, 0.0), _Candidate(0, 0.0, anchored=True)]
        for number, (power, _) in enumerate(self.directions_of):
            self.candidates += [_Candidate(number, step) for step in config.grid_steps]
            if power == 0:
                steps = config.grid_anchor_steps
                self.candidates += [_Candidate(number, step, anchored=True) for step in steps]
        self.settings = [c.setting(*self.directions_of[c.direction]) for c in self.candidates]
        valid, n_categories = task.valid, len(task.valid.logits)
        self.scorer = task.fold_scorer()
        self.values = np.full((len(self.settings), task.n_folds, n_categories), np.nan)
        self.final = np.full((len(self.settings), n_categories), np.nan)
        shape = len(self.directions_of), n_categories, valid.x.shape[1]
        self.directions = valid.logits.new_zeros(shape)

    def fill(self) -> None:
        """Fit all directions, and score all steps along them."""
        if self.task.known_train is None:
            return
        blocks = list(category_blocks(self.task.valid, self.task.known_train, self.task.entries))
        total = len(blocks) * len(self.directions_of)
        counter = Counter(self.task.progress, "candidates", total)
        for block in blocks:
            part = self.task.valid.take(block)
            known = self.task.known_train.take(block)
            origins = (part.logits, part.logits), self._anchored(part, block)
            for k, origin in enumerate(origins):
                self._score(k, origin, block)
            for g, direction in enumerate(self._directions(known, block)):
                self.directions[g, block] = direction
                along = product(direction, part.x.T)
                for k, candidate in enumerate(self.candidates[2:], 2):
                    if candidate.direction == g:
                        apart, whole = origins[candidate.anchored]
                        step = candidate.step * along
                        self._score(k, (apart + step, whole + step), block)
                counter.step(f"direction {g + 1} of {len(self.directions_of)}")

    def _anchored(self, part: TuningRows, block: slice) -> tuple[Tensor, Tensor]:
        """(B, n) logits of the anchor without each row's fold, and of the whole one."""
        apart = torch.empty_like(part.logits)
        for f in range(self.task.n_folds):
            _, own = self.task.rows_of(f)
            original, delta = self.anchor.at(range(f, f + 1), block)
            apart[:, own] = updated_logits(part, delta, original, own)
        original, delta = self.anchor.at(range(-1, 0), block)
        return apart, updated_logits(part, delta, original)

    def _directions(self, known: TuningRows, block: slice) -> Iterator[Tensor]:
        """(B, k) where the known training labels point to, by power and penalty."""
        variance = self.task.coordinates.variance_of(block)
        for power in self.config.grid_powers:
            stretch = _stretch(variance, power).to(known.x)
            rows = known if power == 0 else known._replace(x=known.x * stretch)
            penalties, source = self.config.grid_penalties, lay_out(rows)
            for fit in fit_directions(rows.codes, source, penalties, **self.config.fitting):
                self.passes += fit.passes
                yield fit.delta * stretch

    def _score(self, k: int, logits: tuple[Tensor, Tensor], block: slice) -> None:
        apart, whole = logits
        self.values[k, :, block] = self.scorer(apart, block)
        self.final[k, block] = self.scorer.whole(whole, block)

    def scores(self) -> FoldScores:
        """What chooses: larger is better; from all rows by the score on all of them."""
        sign = self.task.metric.sign
        return FoldScores(sign * self.values, self.scorer.positives, sign * self.final)

    def change(self, chosen: Chosen, fold: int = -1) -> Change:
        """Of the (C,) candidates of the categories, with the anchor without a fold; −1: whole."""
        device, dtype = self.directions.device, self.directions.dtype
        picked = [self.candidates[k] for k in chosen.tolist()]
        which, steps, anchored = (
            torch.tensor(side, device=device) for side in zip(*picked, strict=True)
        )
        index = torch.arange(len(picked), device=device)
        delta = self.directions[which, index] * steps.to(dtype)[:, None]
        original, rest = self.anchor.at(range(fold, fold + 1), slice(None))
        return Change(
            delta + anchored[:, None] * rest, torch.where(anchored, original, 1.0).to(dtype)
        )

    def held_out(self, chosen: Chosen) -> Tensor:
        """(C, n) logits of candidates that the rows did not fit, on one scale."""
        logits = torch.empty_like(self.task.valid.logits)
        for f in range(self.task.n_folds):
            _, own = self.task.rows_of(f)
            whole = updated_logits(self.task.valid, *self.change(chosen, f))
            logits[:, own] = on_one_scale(whole, self.task.metric)[:, own]
        return logits

    def logits(self, chosen: Chosen) -> Tensor:
        """(C, n) logits of the (C,) candidates of the categories."""
        return updated_logits(self.task.valid, *self.change(chosen))


def _stretch(variance: Tensor, power: float) -> Tensor:
    """Factors of the coordinates that leave the total variance as it was."""
    factor = variance.clamp_min(1e-12) ** (power / 2)
    total = (variance * factor.square()).sum().clamp_min(1e-12)
    return factor * (variance.sum() / total).sqrt()
