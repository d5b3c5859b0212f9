"""The `default` preset: few strong candidates, fitted on memorised and fresh labels.

A backbone has memorised the images that it was trained on, so labels on other images
("fresh": the validation set) are worth more. Every candidate is the original head plus a
penalised change (`penalised`), in coordinates of the fresh rows (`geometry`).

`fit_and_select`: fresh labels count 1, known training labels ``omega`` (0 is always among
the candidates), each source with an intercept of its own; the bias is the fresh one's. Two
fits are averaged, because neither was always better: one pulls to the original weights W;
the other pulls to ``W + 2 T`` and gives the training rows no original logits, since those
were memorised. T is the direction that the training labels alone point to: fitted from
zero logits with penalty ``5 sqrt(n_pos / 50)``. One (omega, kappa) is chosen for all
categories by cross-fitting over the fresh rows; per category it is kept or replaced.

`select`: validation only chooses. Candidates are ``W + alpha T`` along a grid of penalties
of T and of steps alpha; per category the best shrunk gain wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from catwise.errors import ConfigError
from catwise.losses import resolve_loss
from catwise.metrics import METRICS
from catwise.metrics.ranking import RankingPlan
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.backprop import choose_regime
from catwise.tuning.decide import Decision, FoldScores, choose_each, choose_one, decide
from catwise.tuning.penalised import PenalisedFit, Source, fit_penalised, gather_known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from catwise.metrics import Metric

__all__ = [
    "DefaultConfig",
    "DefaultResult",
    "Rows",
    "Setting",
    "fit_and_select",
    "only_select",
]

_BLOCK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class DefaultConfig:
    """Options of the `default` preset; penalties multiply |delta|² / 2.

    Args:
        penalties: kappa, from strong to weak; each fit starts from the one before.
        source_weights: omega, the weight of a known training label; 0 must be among them.
        loss: name in `catwise.losses.LOSSES`.
        direction_penalty: kt of the direction T that the second fit is pulled along.
        direction_step: how far along T.
        n_folds: folds over the fresh rows.
        grid_penalties: kt of the candidates of `select`.
        grid_steps: alpha of the candidates of `select`.
        grid_powers: a; T's coordinates are stretched by the a / 2-th power of their variance.
        tolerance: of the fits, relative to the gradient's start.
        max_iterations: of each fit.

    Raises:
        ConfigError: If an option is out of range.
    """

    penalties: tuple[float, ...] = (5.0, 2.5, 1.25, 0.6, 0.3)
    source_weights: tuple[float, ...] = (0.3, 0.0)
    loss: str = "bce"
    direction_penalty: float = 5.0
    direction_step: float = 2.0
    n_folds: int = 5
    grid_penalties: tuple[float, ...] = (30.0, 10.0, 5.0, 2.5, 1.25, 0.6, 0.3)
    grid_steps: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    grid_powers: tuple[float, ...] = (0.0, 0.5)
    tolerance: float = 1e-2
    max_iterations: int = 60

    def __post_init__(self) -> None:
        resolve_loss(self.loss)
        descending = all(a > b for a, b in zip(self.penalties, self.penalties[1:], strict=False))
        checks = {
            "penalties descending and > 0": descending and min(self.penalties, default=0) > 0,
            "source_weights >= 0 with 0 among them": 0.0 in self.source_weights
            and min(self.source_weights) >= 0,
            "n_folds in 2 … 100": 2 <= self.n_folds <= 100,
            "tolerance in (0, 1)": 0 < self.tolerance < 1,
            "max_iterations >= 1": self.max_iterations >= 1,
        }
        if failed := [rule for rule, holds in checks.items() if not holds]:
            raise ConfigError(
                "options of the default preset are out of range.",
                found=", ".join(f"{n}={getattr(self, n)}" for n in (r.split()[0] for r in failed)),
                expected="; ".join(failed),
            )


class Rows(NamedTuple):
    """Rows of one source in coordinates, with the original logits and the known labels.

    Attributes:
        x: (n, k) float32.
        logits: (C, n) float32, of the original head as stored.
        codes: (C, n) int8; 1 positive, 0 negative, all else unknown. They choose and score.
        intercept: whether the head has a bias to take an intercept up.
        target: (C, n) float32 in [0, 1], what is fitted, where a label policy says more than
            the codes; else None.
        weight: (C, n) float32 of the targets, or None.
    """

    x: Tensor
    logits: Tensor
    codes: Tensor
    intercept: bool = True
    target: Tensor | None = None
    weight: Tensor | None = None

    def take(self, categories: slice, rows: Tensor | None = None) -> Rows:
        """Some categories, and all rows or some."""

        def cut(values: Tensor) -> Tensor:
            part = values[categories]
            return part if rows is None else part[:, rows]

        return Rows(
            self.x if rows is None else self.x[rows],
            cut(self.logits),
            cut(self.codes),
            self.intercept,
            None if self.target is None else cut(self.target),
            None if self.weight is None else cut(self.weight),
        )

    def known(self) -> Rows:
        """The rows with any label to fit."""
        fitted = self.codes >= 0 if self.weight is None else self.weight > 0
        return self.take(slice(None), fitted.any(0).nonzero().flatten())


class Setting(NamedTuple):
    """One candidate for all categories: its name and what it was fitted with."""

    name: str
    options: dict[str, float]


@dataclass(frozen=True, eq=False)
class DefaultResult:
    """What the preset found, in coordinates.

    Attributes:
        delta: (C, k) change of the weights; zeros where the original head is kept.
        intercept: (C,) change of the intercept.
        settings: the candidates; the first is the original head.
        decision: what was chosen, and its scores.
        scores: of every candidate in every fold.
        fold_delta: (F, C, k) changes of the heads fitted without each fold, or None; zeros
            where the original head is kept.
        fold_intercept: (F, C), or None.
        logits: (C, n) out-of-fold logits of these heads, or None.
        passes: how often the rows were read by the fits.
    """

    delta: Tensor
    intercept: Tensor
    settings: list[Setting]
    decision: Decision
    scores: FoldScores
    fold_delta: Tensor | None
    fold_intercept: Tensor | None
    logits: Tensor | None
    passes: dict[str, int] = field(default_factory=dict)


# ------------------------------------------------------------------------- fit and select


def fit_and_select(
    fresh: Rows,
    train: Rows | None,
    fold: NDArray[np.int8],
    metric: Metric,
    config: DefaultConfig,
    *,
    progress: ProgressCallback | None = None,
) -> DefaultResult:
    """Cross-fit over the fresh rows, choose once, decide per category, refit on all.

    Args:
        fresh: what is fitted, chosen and scored on.
        train: further rows to fit on, or None.
        fold: (n,) of the fresh rows.
        metric: what is maximised (or minimised).
        config: options.
        progress: called after every fit.

    Returns:
        The changes and their account.
    """
    train = None if train is None else train.known()
    weights = (0.0,) if train is None else tuple(sorted(config.source_weights, reverse=True))
    settings = [Setting("base", {})] + [
        Setting(f"omega={w:g},kappa={p:g}", {"source_weight": w, "penalty": p})
        for w in weights
        for p in config.penalties
    ]
    n_categories, n_folds = fresh.logits.shape[0], int(fold.max()) + 1
    shape = (len(settings) - 1, n_folds, n_categories)
    deltas = fresh.x.new_zeros(*shape, fresh.x.shape[1])
    intercepts = fresh.x.new_zeros(shape)
    scorer = FoldScorer(fresh.codes, fold, metric)
    values = np.full((len(settings), n_folds, n_categories), np.nan)
    blocks = list(_category_blocks(fresh, train))
    counter = _Counter(progress, "cross-fit", len(blocks) * n_folds * len(weights))
    passes = 0
    for block in blocks:
        part = fresh.take(block)
        fitter = _Fitter.build(None if train is None else train.take(block), config)
        values[0, :, block] = scorer(part.logits, block)
        out = part.logits.new_empty(len(settings) - 1, *part.logits.shape)
        for f in range(n_folds):
            inside = torch.from_numpy(np.flatnonzero(fold != f)).to(part.x.device)
            outside = torch.from_numpy(np.flatnonzero(fold == f)).to(part.x.device)
            kept = part.take(slice(None), inside)
            for i, weight in enumerate(weights):
                for j, fit in enumerate(fitter.path(kept, weight, config.penalties)):
                    k = i * len(config.penalties) + j
                    deltas[k, f, block], intercepts[k, f, block] = fit.delta, fit.intercept
                    out[k][:, outside] = _moved(part, fit.delta, fit.intercept, outside)
                counter.step(f"fold {f + 1} of {n_folds}")
        for k in range(len(settings) - 1):
            values[k + 1, :, block] = scorer(out[k], block)
        passes += fitter.passes
    scores = FoldScores(values if metric.higher_is_better else -values, scorer.positives)
    # A weight of 0 (the last) must beat the others clearly: see `choose_one`.
    preferred = len(config.penalties) * max(len(weights) - 1, 1)
    decision = decide(scores, partial(choose_one, n_preferred=preferred))
    setting = decision.setting
    delta = fresh.x.new_zeros(n_categories, fresh.x.shape[1])
    intercept = fresh.x.new_zeros(n_categories)
    logits = fresh.logits.clone()
    if setting > 0:
        options = settings[setting].options
        upto = tuple(p for p in config.penalties if p >= options["penalty"])
        for block in blocks:
            part = fresh.take(block)
            fitter = _Fitter.build(None if train is None else train.take(block), config)
            *_, last = fitter.path(part, options["source_weight"], upto)
            delta[block], intercept[block] = last.delta, last.intercept
            passes += fitter.passes
        for f in range(n_folds):
            at = torch.from_numpy(np.flatnonzero(fold == f)).to(logits.device)
            moved = _moved(fresh, deltas[setting - 1, f], intercepts[setting - 1, f], at)
            logits[:, at] = moved
    keep = torch.from_numpy(decision.chosen == 0).to(delta.device)
    best = max(setting - 1, 0)  # all categories are kept where the base was chosen
    return DefaultResult(
        delta.masked_fill(keep[:, None], 0.0),
        intercept.masked_fill(keep, 0.0),
        settings,
        _signed(decision, metric),
        FoldScores(values, scorer.positives),
        deltas[best].masked_fill(keep[:, None], 0.0),
        intercepts[best].masked_fill(keep, 0.0),
        torch.where(keep[:, None], fresh.logits, logits),
        {"fits": passes},
    )


class _Fit(NamedTuple):
    delta: Tensor
    intercept: Tensor


@dataclass
class _Fitter:
    """Both fits of a block of categories, along the path of penalties."""

    train: Rows | None
    direction: Tensor | None
    config: DefaultConfig
    passes: int = 0

    @classmethod
    def build(cls, train: Rows | None, config: DefaultConfig) -> _Fitter:
        fitter = cls(train, None, config)
        if train is not None:
            found = fit_direction(train, config.direction_penalty, config)
            fitter.direction = config.direction_step * found.delta
            fitter.passes += found.passes
        return fitter

    def path(self, fresh: Rows, weight: float, penalties: Sequence[float]) -> Iterator[_Fit]:
        """The averaged fit for each penalty, each started from the one before."""
        anchors = [None] if self.direction is None or weight == 0 else [None, self.direction]
        problems = [self._sources(fresh, weight, anchor) for anchor in anchors]
        starts: list[PenalisedFit | None] = [None] * len(anchors)
        for penalty in penalties:
            delta, intercept = torch.zeros(()), torch.zeros(())
            for i, (anchor, sources) in enumerate(zip(anchors, problems, strict=True)):
                fit = self._fit(sources, penalty, starts[i])
                starts[i] = fit
                whole = fit.delta if anchor is None else fit.delta + anchor
                delta = delta + whole / len(anchors)
                intercept = intercept + fit.intercepts[0] / len(anchors)
            yield _Fit(delta, intercept)

    def _sources(self, fresh: Rows, weight: float, anchor: Tensor | None) -> list[Source]:
        sources = [_source(fresh, 1.0, fresh.logits, anchor)]
        if self.train is not None and weight > 0:
            train = self.train
            offset = train.logits if anchor is None else torch.zeros_like(train.logits)
            sources.append(_source(train, weight, offset, anchor))
        return sources

    def _fit(
        self, sources: list[Source], penalty: float, start: PenalisedFit | None
    ) -> PenalisedFit:
        fit = _fit(sources, penalty, self.config, start)
        self.passes += fit.passes
        return fit


def _fit(
    sources: list[Source],
    penalty: float | Tensor,
    config: DefaultConfig,
    start: PenalisedFit | None = None,
) -> PenalisedFit:
    return fit_penalised(
        sources,
        penalty,
        pointwise=resolve_loss(config.loss).slope_curvature,
        start=start,
        max_iterations=config.max_iterations,
        tolerance=config.tolerance,
    )


def _source(rows: Rows, weight: float, offset: Tensor, anchor: Tensor | None) -> Source:
    """Rows as a source: dense, or each category's known rows, whichever costs less."""
    if anchor is not None:
        offset = offset + anchor @ rows.x.T
    counts = (rows.codes >= 0).sum(1)
    regime = choose_regime(rows.x.shape[0], counts.cpu(), rows.x.shape[1])
    if rows.target is not None and rows.weight is not None:
        source = Source(rows.x, offset, rows.target, rows.weight)
    elif regime.name == "gathered":
        source = gather_known(rows.x, rows.codes, offset)
    else:
        known = (rows.codes >= 0).to(rows.x.dtype)
        target = (rows.codes == 1).to(rows.x.dtype)
        source = Source(rows.x, offset, target, known)
    scaled = source.weight if weight == 1.0 else source.weight * weight
    return Source(source.x, source.offset, source.target, scaled, intercept=rows.intercept)


def fit_direction(
    train: Rows, penalty: float, config: DefaultConfig, start: PenalisedFit | None = None
) -> PenalisedFit:
    """Where the known training labels alone point to, from zero logits.

    The penalty grows with the root of the number of positives, so that the direction keeps
    much the same length however many labels are known.
    """
    positives = (train.codes == 1).sum(1).clamp_min(1).to(train.x.dtype)
    source = _source(train, 1.0, torch.zeros_like(train.logits), None)
    free = Source(source.x, source.offset, source.target, source.weight)
    return _fit([free], penalty * (positives / 50.0).sqrt(), config, start)


def _moved(rows: Rows, delta: Tensor, intercept: Tensor, at: Tensor) -> Tensor:
    """(C, m) logits of some rows after a change."""
    return rows.logits[:, at] + torch.addmm(intercept[:, None], delta, rows.x[at].T)


# --------------------------------------------------------------------------------- select


def only_select(
    fresh: Rows,
    train: Rows,
    fold: NDArray[np.int8],
    metric: Metric,
    config: DefaultConfig,
    *,
    variance: Tensor,
    progress: ProgressCallback | None = None,
) -> DefaultResult:
    """Fit on the training labels alone; the fresh labels only choose.

    Arguments as `fit_and_select`; `variance` (k,) is that of the coordinates.
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
    directions = fresh.x.new_zeros(len(grid), n_categories, fresh.x.shape[1])
    blocks = list(_category_blocks(fresh, train))
    counter = _Counter(progress, "candidates", len(blocks) * len(grid))
    passes = 0
    for block in blocks:
        part, known = fresh.take(block), train.take(block)
        values[0, :, block], final[0, block] = (
            scorer(part.logits, block),
            scorer.whole(part.logits, block),
        )
        start: PenalisedFit | None = None
        for g, (power, kt) in enumerate(grid):
            stretch = _stretch(variance, power).to(known.x)
            start = None if g and grid[g - 1][0] != power else start
            stretched = known if power == 0 else known._replace(x=known.x * stretch)
            start = fit_direction(stretched, kt, config, start)
            passes += start.passes
            directions[g, block] = start.delta * stretch
            along = directions[g, block] @ part.x.T
            for s, step in enumerate(config.grid_steps):
                k = 1 + g * len(config.grid_steps) + s
                moved = part.logits + step * along
                values[k, :, block], final[k, block] = (
                    scorer(moved, block),
                    scorer.whole(moved, block),
                )
            counter.step(f"direction {g + 1} of {len(grid)}")
    sign = 1.0 if metric.higher_is_better else -1.0
    decision = decide(FoldScores(sign * values, scorer.positives), choose_each, final=sign * final)
    picked = torch.from_numpy(decision.chosen).to(directions.device)
    steps = torch.tensor([0.0, *(s.options["step"] for s in settings[1:])]).to(directions)
    which = ((picked - 1).clamp_min(0)) // len(config.grid_steps)
    index = torch.arange(n_categories, device=directions.device)
    delta = directions[which, index] * steps[picked][:, None]
    return DefaultResult(
        delta,
        fresh.x.new_zeros(n_categories),
        settings,
        _signed(decision, metric),
        FoldScores(values, scorer.positives),
        None,
        None,
        None,
        {"fits": passes},
    )


def _stretch(variance: Tensor, power: float) -> Tensor:
    """Factors of the coordinates that leave the total variance as it was."""
    factor = variance.clamp_min(1e-12) ** (power / 2)
    total = (variance * factor.square()).sum().clamp_min(1e-12)
    return factor * (variance.sum() / total).sqrt()


# ----------------------------------------------------------------------------- both


class FoldScorer:
    """A metric inside every fold.

    Args:
        codes: (C, n) int8 of the fresh rows.
        fold: (n,) fold of each row.
        metric: what is scored.

    Attributes:
        positives: (F, C) known positives of each fold; 0 where a class is missing there.
    """

    def __init__(self, codes: Tensor, fold: NDArray[np.int8], metric: Metric) -> None:
        self._codes, self._metric = codes, metric
        self._rows = [
            torch.from_numpy(np.flatnonzero(fold == f)).to(codes.device)
            for f in range(int(fold.max()) + 1)
        ]
        counted = [codes[:, rows] for rows in self._rows]
        positive = torch.stack([(part == 1).sum(1) for part in counted])
        negative = torch.stack([(part == 0).sum(1) for part in counted])
        both = torch.where((positive > 0) & (negative > 0), positive, 0)
        self.positives: NDArray[np.float64] = both.cpu().numpy().astype(np.float64)
        self._scorers: dict[tuple[int, int], list[Callable[[Tensor], Tensor]]] = {}

    def __call__(self, logits: Tensor, block: slice) -> NDArray[np.float64]:
        """(F, B) scores of (B, n) logits of a block of categories."""
        scorers = self._of(block)[1:]
        parts = [s(logits[:, rows]) for s, rows in zip(scorers, self._rows, strict=True)]
        return torch.stack(parts).cpu().numpy()

    def whole(self, logits: Tensor, block: slice) -> NDArray[np.float64]:
        """(B,) scores on all rows together."""
        score: NDArray[np.float64] = self._of(block)[0](logits).cpu().numpy()
        return score

    def _of(self, block: slice) -> list[Callable[[Tensor], Tensor]]:
        key = (block.start or 0, block.stop or 0)
        if key not in self._scorers:
            codes = self._codes[block]
            parts = [codes, *(codes[:, rows] for rows in self._rows)]
            self._scorers[key] = [prepared_metric(self._metric, part) for part in parts]
        return self._scorers[key]


def prepared_metric(metric: Metric, codes: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from (B, n) logits to (B,) scores against fixed (B, n) codes."""
    if metric is METRICS["average_precision"]:
        return RankingPlan(codes).average_precision
    if metric is METRICS["auroc"]:
        return RankingPlan(codes).auroc
    return lambda logits: metric.columns(logits, codes)


def _signed(decision: Decision, metric: Metric) -> Decision:
    """Scores back in the metric's own direction."""
    if metric.higher_is_better:
        return decision
    return decision._replace(
        selected_on=-decision.selected_on, before=-decision.before, after=-decision.after
    )


def _category_blocks(fresh: Rows, train: Rows | None) -> Iterator[slice]:
    """Blocks of categories whose entries stay bounded, whatever the machine."""
    n = fresh.x.shape[0] + (0 if train is None else train.x.shape[0])
    width = max(1, _BLOCK_ENTRIES // max(n, 1))
    n_categories = fresh.logits.shape[0]
    for start in range(0, n_categories, width):
        yield slice(start, min(start + width, n_categories))


class _Counter:
    """Tells the caller how many pieces are done."""

    def __init__(self, progress: ProgressCallback | None, stage: str, total: int) -> None:
        self._progress, self._stage, self._total, self._done = progress, stage, total, 0

    def step(self, message: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(Progress(self._stage, self._done, self._total, message))
