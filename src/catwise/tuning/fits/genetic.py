"""Category-wise fine-tuning by a genetic algorithm, for all categories at once.

The genome of an individual is a head row ``[w, b]``; its fitness the metric itself on the
category's known training labels; every generation's best is scored on validation, which keeps
the best of all (`loop`). The operators are in `evolution`, the fitness in `fitness`.

Source: Chong et al., arXiv 2401.16991 (CFT_GA).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from catwise._configs import EvolutionConfig
from catwise.progress import ProgressCallback
from catwise.tuning.fits.evolution import EvolutionState, ask, init, keep_categories, tell
from catwise.tuning.fits.fitness import PopulationFitness, memory_of
from catwise.tuning.fits.loop import (
    ColumnLoop,
    HeadColumns,
    LoopConfig,
    LoopResult,
    TuningData,
    Validation,
    start_loop,
)


@dataclass(frozen=True, kw_only=True)
class GeneticConfig(LoopConfig):
    """Options of `fit_genetic`, with those of the loop; the defaults are the published ones.

    Args:
        operators: of the evolution; its direction follows the metric's, which is the fitness.
        product: precision of the fitness's matrix product, such as `torch.bfloat16`; None: as
            `dtype`. Only the change from the original head passes through it.
        seed: of all draws.
    """

    operators: EvolutionConfig = field(default_factory=EvolutionConfig)
    product: torch.dtype | None = None
    seed: int = 0
    progress_every: int = 5

    stage: ClassVar[str] = "genetic"
    title: ClassVar[str] = "the genetic algorithm"
    limit: ClassVar[str] = "max_generations"

    def rules(self) -> dict[str, bool]:
        """What must hold."""
        products = (None, torch.bfloat16, torch.float16, torch.float32, torch.float64)
        fits = self.product in products
        return {**super().rules(), "product a floating dtype or None": fits}


def fit_genetic(
    head_weight: Tensor,
    head_bias: Tensor | None,
    train: TuningData,
    valid: TuningData,
    config: GeneticConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
) -> LoopResult:
    """Evolve every category's row on its known training labels; validation picks.

    Arguments, result and errors as `fit_backprop`; a step is a generation. Without a bias the
    genome has none. The C `names` key the random draws; None: positions do.
    """
    config = config or GeneticConfig()
    loop, index = start_loop(head_weight, head_bias, train, valid, config)
    keys = [str(c) for c in range(len(head_weight))] if names is None else list(names)
    own, judging = train.of(index), valid.of(index)
    run_genetic(loop, index, own, judging, config, names=keys, progress=progress)
    return loop.result()


def run_genetic(
    loop: ColumnLoop,
    index: Tensor,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    config: GeneticConfig,
    *,
    names: Sequence[str],
    progress: ProgressCallback | None = None,
) -> None:
    """Run the loop for the categories `index`; `train`, `valid` as in `run_backprop`; C names."""
    features, codes = train
    wide = valid[0].to(index.device, config.dtype)
    for block in _blocks(codes >= 0, features.shape[1], config):
        own = index[block]
        head = loop.head.select_categories(own)
        fitness = PopulationFitness(
            features,
            codes[block].contiguous(),
            head,
            loop.metric,
            population_size=config.operators.population_size,
            product=config.product,
        )
        higher = loop.metric.higher_is_better
        operators = replace(config.operators, higher_is_better=higher)
        keys = [names[c] for c in own.tolist()]
        state = init(genomes_of(head), keys, seed=config.seed, config=operators)
        stepper = Evolution(state, head, fitness, operators)
        validation = Validation(wide, valid[1][block].contiguous(), loop.metric)
        loop.run(own, stepper, validation, progress=progress)


def genomes_of(head: HeadColumns) -> Tensor:
    """(K, G) genomes ``[w, b]`` or ``[w]`` of head rows."""
    return head.weight if head.bias is None else torch.cat([head.weight, head.bias[:, None]], 1)


class Evolution:
    """A population of every category, one generation a step; its leader is the head row.

    Args:
        state: with a population of clones.
        head: what they are clones of.
        fitness: the metric on training labels.
        operators: of the evolution.
    """

    objective = "fitness"

    def __init__(
        self,
        state: EvolutionState,
        head: HeadColumns,
        fitness: PopulationFitness,
        operators: EvolutionConfig,
    ) -> None:
        self.head, self.step_size = head, operators.mutation_scale
        self._state, self._fitness, self._operators = state, fitness, operators
        # A generation of clones: one individual's fitness is that of all.
        self._scores = fitness(ask(state)[:, :1]).expand(-1, operators.population_size)

    def step(self, step: int, *, measure: bool) -> Tensor | None:
        """Breed and score a generation; return (K,) best fitness of the one before, if asked."""
        del step
        sign = 1.0 if self._operators.higher_is_better else -1.0
        before = sign * self._upward().amax(1) if measure else None
        self._state = tell(self._state, self._scores, self._operators)
        self._scores = self._fitness.follow(self._state)
        population = ask(self._state)
        place = self._upward().nan_to_num(-torch.inf).argmax(1)  # the first of equals
        leader = population[torch.arange(len(place), device=place.device), place]
        n_features = self.head.weight.shape[1]
        bias = None if self.head.bias is None else leader[:, n_features]
        self.head = HeadColumns(leader[:, :n_features], bias)
        return before

    def _upward(self) -> Tensor:
        """(K, P) fitness where larger is better."""
        return self._scores if self._operators.higher_is_better else -self._scores

    def measures(self) -> dict[str, Tensor]:
        """Fitness of the generation, where larger is better."""
        upward = self._upward()
        return {"best_fitness": upward.amax(1), "mean_fitness": upward.mean(1)}

    def select_categories(self, keep: Tensor) -> Evolution:
        """The populations of some categories; their course stays what it was."""
        taken = object.__new__(Evolution)
        taken.head, taken.step_size = self.head.select_categories(keep), self.step_size
        taken._state = keep_categories(self._state, keep)
        taken._fitness, taken._operators = self._fitness.select_categories(keep), self._operators
        taken._scores = self._scores[keep]
        return taken

    def train_passes(self, steps: int) -> int:
        """One a generation, and one for the first."""
        return steps + 1


def _blocks(known: Tensor, n_features: int, config: GeneticConfig) -> Iterator[Tensor]:
    """Blocks of (A, N) categories: all at once, or as many as their gathered rows allow."""
    options = n_features, config.operators.population_size, config.dtype, config.product

    def size(width: int) -> int:
        return memory_of(known[start : start + width], *options).nbytes

    start, n = 0, len(known)
    while start < n:
        width = 1 + bisect_right(range(2, n - start + 1), config.gather_bytes, key=size)
        while width > 1 and size(width) > config.gather_bytes:  # the layout may change with it
            width -= 1
        yield torch.arange(start, start + width, device=known.device)
        start += width
