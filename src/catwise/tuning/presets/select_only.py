"""The `default` preset where validation only chooses.

Candidates are ``W + step T`` along a grid of penalties of T and of steps; T is the direction that
the training labels alone point to, in coordinates stretched by powers of their variance. Per
category the best gain wins, pulled strongly to what the candidate gains in all categories.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

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
    grid = _Grid(task, config)
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
        calibration = Calibration.fitted(grid.logits(chosen), task.valid, kept)
    return Found(
        grid.settings,
        corrected,
        grid.change(chosen),
        calibration,
        None,
        grid.passes,
    )


class _Grid:
    """Directions by power and penalty, steps along them, and their scores."""

    def __init__(self, task: Task, config: DefaultConfig) -> None:
        self.task, self.config, self.passes = task, config, 0
        self.directions_of = list(itertools.product(config.grid_powers, config.grid_penalties))
        self.settings = [Setting("base", {})] + [
            Setting(
                f"power={power:g},direction_penalty={penalty:g},step={step:g}",
                {"power": power, "direction_penalty": penalty, "step": step},
            )
            for power, penalty in self.directions_of
            for step in config.grid_steps
        ]
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
        blocks = list(category_blocks(self.task.valid, self.task.known_train))
        total = len(blocks) * len(self.directions_of)
        counter = Counter(self.task.progress, "candidates", total)
        for block in blocks:
            part = self.task.valid.take(block)
            self._score(0, part.logits, block)
            known = self.task.known_train.take(block)
            for g, direction in enumerate(self._directions(known, block)):
                self.directions[g, block] = direction
                along = product(direction, part.x.T)
                for s, step in enumerate(self.config.grid_steps):
                    k = 1 + g * len(self.config.grid_steps) + s
                    self._score(k, part.logits + step * along, block)
                counter.step(f"direction {g + 1} of {len(self.directions_of)}")

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

    def _score(self, k: int, logits: Tensor, block: slice) -> None:
        self.values[k, :, block] = self.scorer(logits, block)
        self.final[k, block] = self.scorer.whole(logits, block)

    def scores(self) -> FoldScores:
        """What chooses: larger is better; from all rows by the score on all of them."""
        sign = self.task.metric.sign
        return FoldScores(sign * self.values, self.scorer.positives, sign * self.final)

    def change(self, chosen: Chosen) -> Change:
        """Of the (C,) candidates of the categories."""
        picked = torch.from_numpy(chosen).to(self.directions.device)
        steps = torch.tensor([0.0, *(s.options["step"] for s in self.settings[1:])])
        which = (picked - 1).clamp_min(0) // len(self.config.grid_steps)
        index = torch.arange(len(picked), device=picked.device)
        delta = self.directions[which, index] * steps.to(self.directions)[picked][:, None]
        return Change(delta, self.task.valid.logits.new_ones(len(picked)))

    def held_out(self, chosen: Chosen) -> Tensor:
        """(C, n) logits of candidates that the rows did not fit, on one scale."""
        return on_one_scale(self.logits(chosen), self.task.metric)

    def logits(self, chosen: Chosen) -> Tensor:
        """(C, n) logits of the (C,) candidates of the categories."""
        return updated_logits(self.task.valid, *self.change(chosen))


def _stretch(variance: Tensor, power: float) -> Tensor:
    """Factors of the coordinates that leave the total variance as it was."""
    factor = variance.clamp_min(1e-12) ** (power / 2)
    total = (variance * factor.square()).sum().clamp_min(1e-12)
    return factor * (variance.sum() / total).sqrt()
