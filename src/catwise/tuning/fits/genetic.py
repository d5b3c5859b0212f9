"""Category-wise fine-tuning by a genetic algorithm, as published, for all categories at once.

The genome of an individual is a category's row of the head, ``[w, b]``; its fitness is the
metric itself on that category's known training labels. Every population starts as clones of
the model's own row. After every generation the best individual is scored on validation, and
the best of all generations is kept, the original counting as the first.

The bias is written back with the weights, and metrics where less is better are handled: the
authors' code does neither.

Source: Chong et al., Category-wise Fine-Tuning: Resisting incorrect pseudo-labels in
multi-label image classification with partial labels, Neurocomputing 647, 2025,
arXiv 2401.16991 (CFT_GA).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from catwise.errors import check_rules
from catwise.metrics import Metric, resolve_metric
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.fits.columns import (
    HeadColumns,
    Passes,
    TuningData,
    Validation,
    check_shapes,
    resolve_column_metric,
    skip_reasons,
)
from catwise.tuning.fits.evolution import (
    EvolutionConfig,
    ask,
    init,
    keep_categories,
    tell,
)
from catwise.tuning.fits.fitness import PopulationFitness, memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["GeneticConfig", "GeneticResult", "fit_genetic"]

_STAGE = "genetic"
_COMPACT_SHARE = 1 / 8


@dataclass(frozen=True)
class GeneticConfig:
    """Options of `fit_genetic`; the defaults are the published ones.

    Args:
        metric: name in `catwise.metrics.METRICS`, or a `Metric`: the fitness, and what
            validation chooses by.
        operators: of the evolution; its direction follows the metric's.
        max_generations: bound on the generations of every category.
        patience: a category stops that many generations after its best one.
        dtype: precision of genomes and validation, float32 or float64.
        product: precision of the fitness's matrix product, such as `torch.bfloat16`; None: as
            `dtype`. Only the change from the original head passes through it.
        gather_bytes: categories evolve in blocks whose gathered rows, or scores kept of shared
            rows, are not larger than that.
        progress_every: generations between two calls of the progress callback.
        seed: of all draws.

    Raises:
        ConfigError: If an option is out of range.
    """

    metric: str | Metric = "average_precision"
    operators: EvolutionConfig = field(default_factory=EvolutionConfig)
    max_generations: int = 5_000
    patience: int = 300
    dtype: torch.dtype = torch.float32
    product: torch.dtype | None = None
    gather_bytes: int = 1 << 30
    progress_every: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        resolve_metric(self.metric)
        products = (None, torch.bfloat16, torch.float16, torch.float32, torch.float64)
        checks = {
            "max_generations >= 1": self.max_generations >= 1,
            "patience >= 1": self.patience >= 1,
            "gather_bytes >= 0": self.gather_bytes >= 0,
            "progress_every >= 1": self.progress_every >= 1,
            "dtype float32 or float64": self.dtype in (torch.float32, torch.float64),
            "product a floating dtype or None": self.product in products,
        }
        check_rules("options of the genetic algorithm", self, checks)


class GeneticResult(NamedTuple):
    """What `fit_genetic` found.

    Attributes:
        weight: (C, D) in the config's dtype; a skipped category's is the original.
        bias: (C,), or None where the head has none.
        best_step: (C,) int64 generation of the best; 0: the original head was best.
        steps: (C,) int64 generations bred.
        best_score: (C,) float64 on validation, which chose it; NaN where skipped.
        base_score: (C,) float64, of the original head; NaN where skipped.
        stop_reason: per category "patience", "max_generations" or "skipped".
        skipped: per category None or the reason: "no_known_positive_in_train", …
        history: a dict per generation: step, active (categories), best_fitness and
            mean_fitness on the training labels, score (of the best on validation) and
            step_size (scale of the mutations); means over the active categories.
        passes: how often the rows of a category were read, in training and validation.
    """

    weight: Tensor
    bias: Tensor | None
    best_step: Tensor
    steps: Tensor
    best_score: Tensor
    base_score: Tensor
    stop_reason: list[str]
    skipped: list[str | None]
    history: list[dict[str, float | int]]
    passes: Passes


def fit_genetic(
    head_weight: Tensor,
    head_bias: Tensor | None,
    train: TuningData,
    valid: TuningData,
    config: GeneticConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
) -> GeneticResult:
    """Evolve every category's row on its known training labels; validation picks.

    A category is skipped unless training and validation both know a positive and a negative.
    Scores must improve strictly to replace the best, and the original head counts as the
    first.

    Args:
        head_weight: (C, D), any floating dtype.
        head_bias: (C,), or None: then the genome has no bias.
        train: what the fitness is taken on.
        valid: what chooses the generation.
        config: options; the published ones if None.
        names: C category names, which key the random draws; positions if None.
        progress: called now and then with a `Progress` in generations.

    Returns:
        The best row of each category and how it was found.

    Raises:
        ShapeError: If head, training and validation data do not fit together.
    """
    config = config or GeneticConfig()
    metric = resolve_metric(config.metric)
    check_shapes(head_weight, head_bias, train, valid)
    device, dtype = train.features.device, config.dtype
    codes, codes_valid = train.codes.to(device), valid.codes.to(device)
    skipped = skip_reasons(codes, codes_valid)
    index = torch.tensor([c for c, why in enumerate(skipped) if why is None], device=device).long()
    base = HeadColumns(
        head_weight.detach().to(device, dtype, copy=True),
        None if head_bias is None else head_bias.detach().to(device, dtype, copy=True),
    )
    keys = [str(c) for c in range(len(base.weight))] if names is None else list(names)
    outcome = _Outcome.start(base)
    log = _Log()
    features_valid = valid.features.to(device, dtype)
    blocks = list(_blocks(codes, index, train.features.shape[1], config))
    for number, block in enumerate(blocks):
        part = base.take(block)
        size = config.operators.population_size
        fitness = PopulationFitness(
            train.features,
            codes[:, block].T.contiguous(),
            part,
            metric,
            population_size=size,
            product=config.product,
        )
        scorer = Validation(
            features_valid, codes_valid[:, block].T.contiguous(), resolve_column_metric(metric)
        )
        run = _Run(block, part, [keys[c] for c in block.tolist()], config, metric)
        told = None if progress is None else _told(progress, number, len(blocks), config)
        run.evolve(fitness, scorer, outcome, log, told)
    sign = 1.0 if metric.higher_is_better else -1.0
    waited = (outcome.steps - outcome.best_step >= config.patience).tolist()
    return GeneticResult(
        outcome.head.weight,
        outcome.head.bias,
        outcome.best_step,
        outcome.steps,
        outcome.best_score * sign,
        outcome.base_score * sign,
        [
            "skipped" if why is not None else "patience" if patient else "max_generations"
            for why, patient in zip(skipped, waited, strict=True)
        ],
        skipped,
        log.records(config, sign),
        Passes(log.generations + 1, log.generations + 1),
    )


# ------------------------------------------------------------------------------- the loop


@dataclass
class _Outcome:
    """Results of all categories, filled as they stop; larger scores are better."""

    head: HeadColumns
    best_step: Tensor
    steps: Tensor
    best_score: Tensor
    base_score: Tensor

    @classmethod
    def start(cls, base: HeadColumns) -> _Outcome:
        zeros = torch.zeros(len(base.weight), dtype=torch.int64, device=base.weight.device)
        nan = torch.full(zeros.shape, torch.nan, dtype=torch.float64, device=zeros.device)
        return cls(base, zeros, zeros.clone(), nan, nan.clone())

    def put(self, found: _Best, leaving: Tensor, step: int) -> None:
        """Write the categories that have stopped."""
        where, n_features = found.index[leaving], self.head.weight.shape[1]
        self.head.weight[where] = found.genome[leaving, :n_features]
        if self.head.bias is not None:
            self.head.bias[where] = found.genome[leaving, n_features]
        self.best_step[where] = found.step[leaving]
        self.best_score[where] = found.score[leaving]
        self.steps[where] = step


@dataclass
class _Best:
    """The best so far of the categories in the batch."""

    index: Tensor
    genome: Tensor
    score: Tensor
    step: Tensor
    alive: Tensor

    def offer(self, genome: Tensor, score: Tensor, step: int) -> None:
        better = (score > self.score) & self.alive
        self.genome = torch.where(better[:, None], genome, self.genome)
        self.score = torch.where(better, score, self.score)
        self.step = torch.where(better, step, self.step)

    def take(self, keep: Tensor) -> _Best:
        parts = self.index, self.genome, self.score, self.step, self.alive
        return _Best(*(part[keep] for part in parts))


class _Log:
    """Sums over categories of every generation, over all blocks."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    @property
    def generations(self) -> int:
        return len(self._sums)

    def add(self, step: int, *values: Tensor) -> None:
        """Add (A,) best fitness, mean fitness and validation score of one generation."""
        sums = torch.stack([torch.ones_like(values[0]), *values]).nansum(1).cpu()
        if step > len(self._sums):
            self._sums.append(sums)
        else:
            self._sums[step - 1] = self._sums[step - 1] + sums

    def records(self, config: GeneticConfig, sign: float) -> list[dict[str, float | int]]:
        rows: list[dict[str, float | int]] = []
        for step, sums in enumerate(self._sums, start=1):
            active, best, mean, score = sums.tolist()
            rows.append(
                {
                    "step": step,
                    "active": int(active),
                    "best_fitness": sign * best / active,
                    "mean_fitness": sign * mean / active,
                    "score": sign * score / active,
                    "step_size": config.operators.mutation_scale,
                }
            )
        return rows


@dataclass(frozen=True, eq=False)
class _Run:
    """One block of categories, evolved until all have stopped."""

    index: Tensor
    base: HeadColumns
    names: list[str]
    config: GeneticConfig
    metric: Metric

    def evolve(
        self,
        fitness: PopulationFitness,
        scorer: Validation,
        outcome: _Outcome,
        log: _Log,
        progress: Callable[[int, str], None] | None,
    ) -> None:
        config = self.config
        operators = replace(config.operators, higher_is_better=self.metric.higher_is_better)
        bias = self.base.bias
        genome = (
            self.base.weight if bias is None else torch.cat([self.base.weight, bias[:, None]], 1)
        )
        state = init(genome, self.names, seed=config.seed, config=operators)
        alive = torch.ones_like(self.index, dtype=torch.bool)
        best = _Best(self.index, genome, scorer(self.base), torch.zeros_like(self.index), alive)
        outcome.base_score[self.index] = best.score
        # A generation of clones: one individual tells the fitness of all.
        scores = fitness(ask(state)[:, :1]).expand(-1, operators.population_size)
        for step in range(1, config.max_generations + 1):
            state = tell(state, scores, operators)
            scores = fitness.follow(state)
            leader, upward = _leader(ask(state), scores, higher=operators.higher_is_better)
            valid = scorer(self._rows(leader))
            best.offer(leader, valid, step)
            now = best.alive
            log.add(step, upward[now].amax(1), upward[now].mean(1), valid[now])
            leaving = best.alive & (
                (step - best.step >= config.patience) | (step == config.max_generations)
            )
            if bool(leaving.any()):
                outcome.put(best, leaving, step)
                best.alive = best.alive & ~leaving
            n_left = int(best.alive.sum())
            if n_left == 0:
                break
            if len(best.alive) - n_left >= _COMPACT_SHARE * len(best.alive):
                keep = best.alive.nonzero().flatten()
                best, state, scores = best.take(keep), keep_categories(state, keep), scores[keep]
                fitness, scorer = fitness.take(keep), scorer.take(keep)
            if progress is not None and step % config.progress_every == 0:
                progress(step, f"{n_left} of {len(self.index)} categories still evolving")

    def _rows(self, genome: Tensor) -> HeadColumns:
        n_features = self.base.weight.shape[1]
        bias = None if self.base.bias is None else genome[:, n_features]
        return HeadColumns(genome[:, :n_features], bias)


def _leader(population: Tensor, scores: Tensor, *, higher: bool) -> tuple[Tensor, Tensor]:
    """(K, G) best genomes, the first of equals, and (K, P) fitness where larger is better."""
    upward = scores if higher else -scores
    place = upward.nan_to_num(-torch.inf).argmax(1)
    return population[torch.arange(len(place), device=place.device), place], upward


def _blocks(
    codes: Tensor, index: Tensor, n_features: int, config: GeneticConfig
) -> Iterator[Tensor]:
    """Blocks of categories: all at once, or as many as their gathered rows allow."""
    known = (codes[:, index] >= 0).T
    options = n_features, config.operators.population_size, config.dtype, config.product

    def size(width: int) -> int:
        return memory_of(known[start : start + width], *options).nbytes

    start = 0
    while start < len(index):
        widths = range(2, len(index) - start + 1)
        width = 1 + bisect_right(widths, config.gather_bytes, key=size)
        while width > 1 and size(width) > config.gather_bytes:  # the layout may change with it
            width -= 1
        yield index[start : start + width]
        start += width


def _told(
    progress: ProgressCallback, number: int, n_blocks: int, config: GeneticConfig
) -> Callable[[int, str], None]:
    """Progress of one block as a part of all of them."""
    total = n_blocks * config.max_generations

    def tell_of(step: int, message: str) -> None:
        done = number * config.max_generations + step
        progress(Progress(_STAGE, done, total, message))

    return tell_of
