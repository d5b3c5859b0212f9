"""The `default` preset: few strong candidates, fitted on memorised and fresh labels.

A backbone has memorised the images that it was trained on, so labels on other images
("fresh": the validation set) are worth more. Every candidate is the original head plus a
penalised change (`penalised`), in coordinates of the fresh rows (`geometry`).

`fit_and_select`: fresh labels count 1, known training labels ``omega`` (0 is always among
the candidates), each source with an intercept of its own; the bias is the fresh one's. Two
fits are averaged, because neither was always better: one pulls to the original weights W;
the other pulls to ``W + 2 T`` and gives the training rows no original logits, since those
were memorised. T is the direction that the training labels alone point to: fitted from
zero logits with penalty ``5 sqrt(n_pos / 50)``. One (loss, omega, kappa) is chosen for all
categories by cross-fitting over the fresh rows. From there the metric stage (`metric_stage`)
goes a little further along the slope of average precision or AUROC itself, if cross-fitting
says so; per category the result is kept or replaced.

`select`: validation only chooses. Candidates are ``W + alpha T`` along a grid of penalties
of T and of steps alpha; per category the best gain wins, pulled strongly to what the candidate
gains in all categories.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from catwise.errors import ConfigError, check_rules
from catwise.losses import resolve_loss
from catwise.tuning.choice.gains import Corrected, Scorer, on_one_scale, without_harm
from catwise.tuning.choice.nested import Decision, FoldScores, nested_choice
from catwise.tuning.choice.rules import choose_each, choose_one, choose_staged
from catwise.tuning.fits.affine import fit_affine
from catwise.tuning.fits.penalised import PenalisedFit, fit_path
from catwise.tuning.fits.ranking_loss import Stage, climb
from catwise.tuning.rows.known import LabelledRows, lay_out
from catwise.tuning.rows.products import product
from catwise.tuning.rows.tuning_rows import Counter, FoldScorer, Rows, category_blocks, moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from catwise.metrics import Metric
    from catwise.progress import ProgressCallback
    from catwise.tuning.fits.smooth_ranking import Kind

__all__ = [
    "DefaultConfig",
    "DefaultResult",
    "Setting",
    "fit_and_select",
    "only_select",
]


STAGES: Final = {
    "average_precision": (Stage(1.0, 3.0), Stage(1.0, 1.0)),
    "auroc": (Stage(1.0, 1.0), Stage(2.0, 1.0), Stage(2.0, 0.3)),
}
"""The metric stages of the preset; measured in docs/ablations.md."""


@dataclass(frozen=True)
class DefaultConfig:
    """Options of the `default` preset; penalties multiply |delta|² / 2.

    Args:
        penalties: kappa, from strong to weak; each fit starts from the one before.
        source_weights: omega, the weight of a known training label; 0 must be among them.
        losses: names in `catwise.losses.LOSSES`; all but the first must win clearly. None at all
            leaves only the metric stage.
        stages: by metric, the metric stages to try after the fit that was chosen; a metric that
            is not named has none.
        direction_penalty: kt of the direction T that the second fit is pulled along.
        direction_step: how far along T.
        n_folds: folds over the fresh rows.
        grid_penalties: kt of the candidates of `select`.
        grid_steps: alpha of the candidates of `select`.
        grid_powers: a; T's coordinates are stretched by the a / 2-th power of their variance.
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


class Setting(NamedTuple):
    """One candidate for all categories: its name and what it was fitted with."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True, eq=False)
class DefaultResult:
    """What the preset found, in coordinates.

    Attributes:
        delta: (C, k) change of the weights; zeros where the original head is kept.
        intercept: (C,) change of the intercept.
        settings: the candidates; the first is the original head.
        corrected: what was chosen, without what it would clearly harm, and its gains.
        scores: of every candidate in every fold.
        fold_delta: (F, C, k) changes of the heads fitted without each fold, or None; zeros
            where the original head is kept.
        fold_intercept: (F, C), or None.
        logits: (C, n) out-of-fold logits of these heads, or None.
        scale: (C,) float64 > 0 by which weights and intercept are multiplied in the end, and
        offset: (C,) float64 added to the intercept then: after a metric stage, which is blind to
            both, they are refitted on the out-of-fold logits; else 1 and 0. The fold heads and
            the logits have them too.
        passes: how often the rows were read by the fits.
    """

    delta: Tensor
    intercept: Tensor
    settings: list[Setting]
    corrected: Corrected
    scores: FoldScores
    fold_delta: Tensor | None
    fold_intercept: Tensor | None
    logits: Tensor | None
    scale: Tensor
    offset: Tensor
    passes: dict[str, int] = field(default_factory=dict)

    @property
    def decision(self) -> Decision:
        """What was chosen."""
        return self.corrected.decision


# ------------------------------------------------------------------------- fit and select


def fit_and_select(
    fresh: Rows,
    train: Rows | None,
    fold: NDArray[np.int8],
    metric: Metric,
    config: DefaultConfig,
    *,
    groups: NDArray[Any] | None = None,
    progress: ProgressCallback | None = None,
) -> DefaultResult:
    """Cross-fit over the fresh rows, choose once, decide per category, refit on all.

    Args:
        fresh: what is fitted, chosen and scored on.
        train: further rows to fit on, or None.
        fold: (n,) of the fresh rows.
        metric: what is maximised (or minimised).
        config: options.
        groups: (n,) of the fresh rows; those of one group count as one. None: every row does.
        progress: called after every fit.

    Returns:
        The changes and their account.
    """
    train = None if train is None else train.known()
    grid = _Grid.of(config, has_train=train is not None)
    n_categories, n_folds = fresh.logits.shape[0], int(fold.max()) + 1
    shape = (len(grid.settings), n_folds, n_categories)
    deltas = fresh.logits.new_zeros(*shape, fresh.x.shape[1])
    intercepts = fresh.logits.new_zeros(shape)
    scorer = FoldScorer(fresh.codes, fold, metric)
    values = np.full((len(grid.settings), n_folds, n_categories), np.nan)
    blocks = list(category_blocks(fresh, train))
    counter = Counter(progress, "cross-fit", len(blocks) * n_folds * len(grid.paths))
    passes = 0
    for block in blocks:
        part = fresh.take(block)
        known = None if train is None else train.take(block)
        fitters = {loss: _Fitter.build(known, config, loss) for loss in config.losses}
        values[0, :, block] = scorer(part.logits, block)
        out = part.logits.new_empty(len(grid.settings), *part.logits.shape)
        for f in range(n_folds):
            inside, outside = _rows_of(fold, f, part.x.device)
            kept = part.take(slice(None), inside)
            for i, (loss, weight) in enumerate(grid.paths):
                for j, fit in enumerate(fitters[loss].path(kept, weight, config.penalties)):
                    k = 1 + i * len(config.penalties) + j
                    deltas[k, f, block], intercepts[k, f, block] = fit.delta, fit.intercept
                    out[k][:, outside] = moved(part, fit.delta, fit.intercept, outside)
                counter.step(f"fold {f + 1} of {n_folds}")
        for k in range(1, len(grid.settings)):
            values[k, :, block] = scorer(out[k], block)
        passes += sum(fitter.passes for fitter in fitters.values())
    table = _Table(grid.settings, values, deltas, intercepts)
    sign = metric.sign
    plain = partial(choose_one, n_preferred=grid.n_preferred)
    stages = config.stages.get(metric.name, ())
    if stages:
        found = nested_choice(FoldScores(sign * values, scorer.positives), plain)
        # Every fit that some choice would take, so that each choice can be repeated whole.
        taken = sorted({found.setting, *found.settings_without})
        passes += table.add_stages(
            taken,
            stages,
            fresh=fresh,
            fold=fold,
            scorer=scorer,
            metric=metric,
            progress=progress,
        )
    choose = partial(choose_staged, choose=plain, variants=table.variants, n_plain=len(values))
    scores = FoldScores(sign * table.values, scorer.positives)
    decision = nested_choice(scores, choose)
    delta, intercept, more = _refit(
        table, decision.setting, fresh=fresh, train=train, config=config, metric=metric
    )
    held_out = lru_cache(1)(partial(table.held_out, fresh=fresh, fold=fold))
    corrected = without_harm(
        decision,
        scores,
        fresh.logits,
        lambda _, setting: held_out(setting, metric=metric),
        fold=fold,
        scorer=Scorer.of(metric, fresh.codes, groups),
        needs_gain=train is not None,
    )
    decision, best = corrected.decision, decision.setting
    keep = torch.from_numpy(decision.chosen == 0).to(delta.device)
    logits = torch.where(keep[:, None], fresh.logits, held_out(best))
    scale = torch.ones(n_categories, dtype=torch.float64, device=delta.device)
    offset = torch.zeros_like(scale)
    if "stage" in table.settings[decision.setting].options:
        found_scale, found_offset = fit_affine(logits, fresh.codes, free_offset=fresh.intercept)
        scale, offset = torch.where(keep, scale, found_scale), torch.where(keep, 0.0, found_offset)
        logits = (logits * scale[:, None] + offset[:, None]).to(logits.dtype)
    return DefaultResult(
        delta.masked_fill(keep[:, None], 0.0),
        intercept.masked_fill(keep, 0.0),
        table.settings,
        corrected,
        FoldScores(table.values, scorer.positives),
        table.deltas[best].masked_fill(keep[:, None], 0.0),
        table.intercepts[best].masked_fill(keep, 0.0),
        logits,
        scale,
        offset,
        {"fits": passes + more},
    )


def _rows_of(fold: NDArray[np.int8], f: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows outside and inside of a fold."""
    rest, own = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
    return torch.from_numpy(rest).to(device), torch.from_numpy(own).to(device)


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
                name = f"{prefix}omega={weight:g},kappa={penalty:g}"
                options = {"loss": loss, "source_weight": weight, "penalty": penalty}
                settings.append(Setting(name, options))
        # A weight of 0 (the last), and another loss, must win clearly: see `choose_one`.
        return cls(paths, settings, len(config.penalties) * max(len(weights) - 1, 1))


class _Table:
    """Settings, their scores in every fold, and the heads fitted without each fold."""

    def __init__(
        self,
        settings: list[Setting],
        values: NDArray[np.float64],
        deltas: Tensor,
        intercepts: Tensor,
    ) -> None:
        self.settings, self.values = list(settings), values
        self.deltas, self.intercepts = deltas, intercepts
        self.variants: dict[int, list[int]] = {}

    def held_out(
        self, setting: int, *, fresh: Rows, fold: NDArray[np.int8], metric: Metric | None = None
    ) -> Tensor:
        """(C, n) logits of the heads fitted without each row's fold; for a metric, on one scale."""
        logits = torch.empty_like(fresh.logits)
        every = torch.arange(fold.size, device=logits.device)
        for block in category_blocks(fresh, None):
            part = fresh.take(block)
            for f in range(self.deltas.shape[1]):
                _, own = _rows_of(fold, f, logits.device)
                change = self.deltas[setting, f, block], self.intercepts[setting, f, block]
                if metric is None:
                    logits[block, own] = moved(part, *change, own)
                else:
                    whole = on_one_scale(moved(part, *change, every), metric)
                    logits[block, own] = whole[:, own]
        return logits

    def add_stages(
        self,
        taken: Sequence[int],
        stages: Sequence[Stage],
        *,
        fresh: Rows,
        fold: NDArray[np.int8],
        scorer: FoldScorer,
        metric: Metric,
        progress: ProgressCallback | None,
    ) -> int:
        """Add the metric stages from some settings; returns how often the rows were read."""
        n_folds = self.deltas.shape[1]
        blocks = list(category_blocks(fresh, None))
        counter = Counter(progress, "metric stage", len(taken) * len(stages) * len(blocks))
        more, more_intercepts, more_values, passes = [], [], [], 0
        for setting in taken:
            self.variants[setting] = []
            for stage in stages:
                delta = self.deltas[setting].clone()
                values = np.full(self.values.shape[1:], np.nan)
                for block in blocks:
                    part = fresh.take(block)
                    out = torch.empty_like(part.logits)
                    for f in range(n_folds):
                        inside, outside = _rows_of(fold, f, part.x.device)
                        intercept = self.intercepts[setting, f, block]
                        start = moved(part, delta[f, block], intercept, inside)
                        fit = climb(
                            part.x[inside], start, part.codes[:, inside], _kind(metric), stage
                        )
                        delta[f, block] += fit.delta
                        out[:, outside] = moved(part, delta[f, block], intercept, outside)
                        passes += fit.passes
                    values[:, block] = scorer(out, block)
                    counter.step(self.settings[setting].name)
                self.variants[setting].append(len(self.settings))
                self.settings.append(_staged(self.settings[setting], setting, stage))
                more.append(delta)
                more_intercepts.append(self.intercepts[setting])
                more_values.append(values)
        if more:
            self.deltas = torch.cat([self.deltas, torch.stack(more)])
            self.intercepts = torch.cat([self.intercepts, torch.stack(more_intercepts)])
            self.values = np.concatenate([self.values, np.stack(more_values)])
        return passes


def _staged(setting: Setting, index: int, stage: Stage) -> Setting:
    name = f"{setting.name},tau={stage.temperature:g},mu={stage.penalty:g}"
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


def _refit(
    table: _Table,
    chosen: int,
    *,
    fresh: Rows,
    train: Rows | None,
    config: DefaultConfig,
    metric: Metric,
) -> tuple[Tensor, Tensor, int]:
    """The chosen setting on all rows: changes, intercepts, and how often the rows were read."""
    n_categories = fresh.logits.shape[0]
    delta = fresh.logits.new_zeros(n_categories, fresh.x.shape[1])
    intercept, passes = fresh.logits.new_zeros(n_categories), 0
    if chosen == 0:
        return delta, intercept, passes
    options = table.settings[chosen].options
    for block in category_blocks(fresh, train):
        part = fresh.take(block)
        if "loss" in options:
            known = None if train is None else train.take(block)
            fitter = _Fitter.build(known, config, options["loss"])
            upto = tuple(p for p in config.penalties if p >= options["penalty"])
            *_, last = fitter.path(part, options["source_weight"], upto)
            delta[block], intercept[block] = last.delta, last.intercept
            passes += fitter.passes
        if "stage" in options:
            every = torch.arange(part.x.shape[0], device=part.x.device)
            start = moved(part, delta[block], intercept[block], every)
            fit = climb(part.x, start, part.codes, _kind(metric), Stage(**options["stage"]))
            delta[block] += fit.delta
            passes += fit.passes
    return delta, intercept, passes


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
    def build(cls, train: Rows | None, config: DefaultConfig, loss: str) -> _Fitter:
        if train is None:
            return cls(None, None, config, loss)
        source = lay_out(train)
        (found,) = fit_directions(train, source, [config.direction_penalty], config, loss)
        return cls(source, config.direction_step * found.delta, config, loss, found.passes)

    def path(self, fresh: Rows, weight: float, penalties: Sequence[float]) -> Iterator[_Fit]:
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
    train: Rows, source: LabelledRows, penalties: Sequence[float], config: DefaultConfig, loss: str
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


# --------------------------------------------------------------------------------- select


def only_select(
    fresh: Rows,
    train: Rows,
    fold: NDArray[np.int8],
    metric: Metric,
    config: DefaultConfig,
    *,
    variance: Callable[[slice], Tensor],
    groups: NDArray[Any] | None = None,
    progress: ProgressCallback | None = None,
) -> DefaultResult:
    """Fit on the training labels alone; the fresh labels only choose.

    Arguments as `fit_and_select`; `variance` gives the (k,) variance of the coordinates of a block
    of categories.
    """
    train = train.known()
    grid = [(a, kt) for a in config.grid_powers for kt in config.grid_penalties]
    settings = [Setting("base", {})] + [
        Setting(
            f"a={a:g},kt={kt:g},alpha={step:g}",
            {"power": a, "direction_penalty": kt, "step": step},
        )
        for a, kt in grid
        for step in config.grid_steps
    ]
    n_categories, n_folds = fresh.logits.shape[0], int(fold.max()) + 1
    scorer = FoldScorer(fresh.codes, fold, metric)
    values = np.full((len(settings), n_folds, n_categories), np.nan)
    final = np.full((len(settings), n_categories), np.nan)
    directions = fresh.logits.new_zeros(len(grid), n_categories, fresh.x.shape[1])
    blocks = list(category_blocks(fresh, train))
    counter = Counter(progress, "candidates", len(blocks) * len(grid))
    passes = 0
    for block in blocks:
        part, known = fresh.take(block), train.take(block)
        values[0, :, block], final[0, block] = (
            scorer(part.logits, block),
            scorer.whole(part.logits, block),
        )
        loss = config.losses[0] if config.losses else "bce"
        found: Iterator[PenalisedFit] = iter(())
        for g, (power, _) in enumerate(grid):
            stretch = _stretch(variance(block), power).to(known.x)
            if g % len(config.grid_penalties) == 0:
                stretched = known if power == 0 else known._replace(x=known.x * stretch)
                penalties = config.grid_penalties
                found = fit_directions(stretched, lay_out(stretched), penalties, config, loss)
            fit = next(found)
            passes += fit.passes
            directions[g, block] = fit.delta * stretch
            along = product(directions[g, block], part.x.T)
            for s, step in enumerate(config.grid_steps):
                k = 1 + g * len(config.grid_steps) + s
                out = part.logits + step * along
                values[k, :, block], final[k, block] = (
                    scorer(out, block),
                    scorer.whole(out, block),
                )
            counter.step(f"direction {g + 1} of {len(grid)}")
    sign = metric.sign
    choose = partial(choose_each, prior=config.grid_prior)
    scores = FoldScores(sign * values, scorer.positives, sign * final)
    decision = nested_choice(scores, choose)
    steps = torch.tensor([0.0, *(s.options["step"] for s in settings[1:])]).to(directions)
    index = torch.arange(n_categories, device=directions.device)
    intercept = fresh.logits.new_zeros(n_categories)

    def change(chosen: NDArray[np.int64]) -> Tensor:
        picked = torch.from_numpy(chosen).to(directions.device)
        which = ((picked - 1).clamp_min(0)) // len(config.grid_steps)
        return directions[which, index] * steps[picked][:, None]

    def held_out(chosen: NDArray[np.int64], setting: int) -> Tensor:
        del setting  # every category has its own
        every = torch.arange(fold.size, device=directions.device)
        return on_one_scale(moved(fresh, change(chosen), intercept, every), metric)

    corrected = without_harm(
        decision,
        scores,
        fresh.logits,
        held_out,
        fold=fold,
        scorer=Scorer.of(metric, fresh.codes, groups),
    )
    return DefaultResult(
        change(corrected.decision.chosen),
        intercept,
        settings,
        corrected,
        FoldScores(values, scorer.positives),
        None,
        None,
        None,
        torch.ones(n_categories, dtype=torch.float64, device=directions.device),
        torch.zeros(n_categories, dtype=torch.float64, device=directions.device),
        {"fits": passes},
    )


def _stretch(variance: Tensor, power: float) -> Tensor:
    """Factors of the coordinates that leave the total variance as it was."""
    factor = variance.clamp_min(1e-12) ** (power / 2)
    total = (variance * factor.square()).sum().clamp_min(1e-12)
    return factor * (variance.sum() / total).sqrt()
