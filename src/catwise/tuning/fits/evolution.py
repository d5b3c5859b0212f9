"""A genetic algorithm as three functions, for all categories at once.

    state = init(genomes, names, seed=0)
    while ...:
        state = tell(state, fitness(ask(state)))

A state holds one population for every category, (K, P, G), and nothing else that changes but
the generation. `ask` gives the genomes to score, `tell` breeds the next generation from their
(K, P) scores. Nothing is known here about heads, labels or metrics.

Random draws are keyed. Parents, and which offspring mutate, are drawn for each category, by
seed, category name and generation. The genes that come from the first parent, and the noise,
are drawn once a generation, by seed and generation, and serve all categories: within a category
everything is independent, as published; between categories only the luck is shared, and scores
can be computed for all of them at once (`fitness`). No draw depends on the order of the
categories or on how they are cut into blocks, and a state that was put aside resumes as if it
never had been.

Source of the operators and constants: Chong et al., Category-wise Fine-Tuning, arXiv
2401.16991 (CFT_GA). Rank and tournament selection: Eiben & Smith, Introduction to
Evolutionary Computing, 2nd ed., 2015, section 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._configs import EvolutionConfig
from catwise._splitmix import mix
from catwise.errors import ShapeError
from catwise.labels.draws import category_keys, uniform

_BLOCK_GENES: Final = 1 << 20


class Draws(NamedTuple):
    """The random draws of one generation, for B = P − n_elite offspring of K categories.

    Attributes:
        parents: (K, B, 2, 2) float64 in [0, 1): for each parent two draws, of which only
            "tournament" uses the second.
        mutates: (K, B) bool.
        from_first: (B, G) bool: the gene comes from the first parent.
        noise: (B, G) in [−1, 1), for the offspring that mutate.
    """

    parents: NDArray[np.float64]
    mutates: NDArray[np.bool_]
    from_first: NDArray[np.bool_]
    noise: NDArray[np.floating]


class Origin(NamedTuple):
    """How a population came from the one before; the elite first, then the offspring.

    Attributes:
        before: (K, P, G) the population before.
        elite: (K, n_elite) int64 places in it.
        parents: (K, B, 2) int64 places in it.
        mutates: (K, B) bool.
        from_first: (B, G) bool: the gene comes from the first parent.
        steps: (B, G) what is added to the genes of an offspring that mutates.
    """

    before: Tensor
    elite: Tensor
    parents: Tensor
    mutates: Tensor
    from_first: Tensor
    steps: Tensor


class EvolutionState(NamedTuple):
    """All there is between two generations.

    To resume elsewhere, keep `population` and `generation`; the rest comes back with
    ``init(genomes, names, seed=seed)._replace(population=…, generation=…)``.

    Attributes:
        population: (K, P, G) genomes.
        generation: how many times `tell` was called.
        keys: (K,) uint64, of seed and category name, for the draws of one category.
        key: of the seed, for the draws that serve all categories.
        origin: how `tell` bred the population; None at the start. Nothing depends on it.
    """

    population: Tensor
    generation: int
    keys: NDArray[np.uint64]
    key: int
    origin: Origin | None = None


def init(
    genomes: Tensor,
    names: Sequence[str],
    *,
    seed: int = 0,
    config: EvolutionConfig | None = None,
) -> EvolutionState:
    """Start every category with clones of one genome, or with the genomes given.

    Args:
        genomes: (K, G), cloned; or (K, S, G) with S ≤ P, repeated in turn up to P.
        names: K category names, to key the draws.
        seed: another one gives another course.
        config: for the population size; the published operators if None.

    Raises:
        ShapeError: If the genomes do not fit the names or the population.

    >>> state = init(torch.zeros(2, 3), ["cat", "dog"])
    >>> tuple(ask(state).shape)
    (2, 50, 3)
    """
    config = config or EvolutionConfig()
    seeds = genomes[:, None] if genomes.ndim == 2 else genomes
    size = config.population_size
    if seeds.ndim != 3 or len(seeds) != len(names) or not 1 <= seeds.shape[1] <= size:
        raise ShapeError(
            "the first genomes do not fit the categories or the population.",
            found=f"genomes {tuple(genomes.shape)}, {len(names)} names",
            expected=f"({len(names)}, G), or ({len(names)}, S, G) with S from 1 to {size}",
        )
    places = torch.arange(size, device=seeds.device) % seeds.shape[1]
    keys = category_keys(seed, "genetic", names)
    (key,) = category_keys(seed, "genetic, for all categories", [""])
    return EvolutionState(seeds[:, places].contiguous(), 0, keys, int(key))


def ask(state: EvolutionState) -> Tensor:
    """(K, P, G) genomes to score."""
    return state.population


def tell(
    state: EvolutionState,
    fitness: Tensor,
    config: EvolutionConfig | None = None,
    *,
    draws: Draws | None = None,
) -> EvolutionState:
    """Breed the next generation.

    The elite comes first, best first (ties: in order); the offspring follow.

    Args:
        state: the state that was scored.
        fitness: (K, P) scores of `ask(state)`; NaN is never selected.
        config: operators; the published ones if None.
        draws: to use instead of `draw(state, config)`.

    Raises:
        ShapeError: If the fitness is not (K, P).
    """
    config = config or EvolutionConfig()
    population = state.population
    if tuple(fitness.shape) != tuple(population.shape[:2]):
        raise ShapeError(
            "the fitness does not fit the population.",
            found=f"fitness {tuple(fitness.shape)}",
            expected=f"{tuple(population.shape[:2])}",
        )
    drawn = draw(state, config) if draws is None else draws
    scores = fitness.detach().to("cpu", torch.float64).numpy()
    order = np.argsort(-_upward(scores, config), axis=1, kind="stable")
    parents = _selection(scores, order, drawn.parents, config)

    def on_device(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(population.device)

    origin = Origin(
        population,
        on_device(order[:, : config.n_elite]),
        on_device(parents),
        on_device(drawn.mutates),
        on_device(drawn.from_first),
        on_device(drawn.noise).to(population.dtype) * config.mutation_scale,
    )
    bred = _breed(origin)
    return EvolutionState(bred, state.generation + 1, state.keys, state.key, origin)


def keep_categories(state: EvolutionState, keep: Tensor) -> EvolutionState:
    """The state of some categories, by (k,) positions; their course stays what it was."""
    keys = state.keys[keep.cpu().numpy()]
    return state._replace(population=state.population[keep], keys=keys, origin=None)


def draw(state: EvolutionState, config: EvolutionConfig) -> Draws:
    """The draws of a generation: keyed, so that they depend on nothing else."""
    n_categories, size, n_genes = state.population.shape
    n = size - config.n_elite
    place = np.arange(5 * n, dtype=np.uint64)
    own: NDArray[np.uint64] = mix(state.keys ^ mix(np.full(1, state.generation, np.uint64)))
    drawn = uniform(mix(own[:, None] + place))
    dtype = np.float64 if state.population.dtype == torch.float64 else np.float32
    shared = np.random.SFC64(np.random.SeedSequence((state.key, state.generation)))
    source = np.random.Generator(shared)
    from_first = source.random((n, n_genes), dtype=np.float32) < np.float32(config.crossover)
    noise = 2 * source.random((n, n_genes), dtype=dtype) - 1
    return Draws(
        drawn[:, : 4 * n].reshape(n_categories, n, 2, 2),
        drawn[:, 4 * n :] < config.mutation_probability,
        from_first,
        noise,
    )


def _breed(origin: Origin) -> Tensor:
    """(K, P, G): the elite and the offspring, some categories at a time."""
    before, n_elite = origin.before, origin.elite.shape[1]
    bred = torch.empty_like(before)
    width = max(_BLOCK_GENES // max(before[0].numel(), 1), 1)
    for start in range(0, len(before), width):
        k = slice(start, start + width)
        genes, place = before[k], torch.arange(len(before[k]), device=before.device)[:, None]
        bred[k, :n_elite] = genes[place, origin.elite[k]]
        first, second = genes[place, origin.parents[k, :, 0]], genes[place, origin.parents[k, :, 1]]
        children = torch.where(origin.from_first, first, second, out=first)
        mutates = origin.mutates[k, :, None].to(children.dtype)
        bred[k, n_elite:] = children.addcmul_(mutates, origin.steps)
    return bred


def _upward(fitness: NDArray[np.float64], config: EvolutionConfig) -> NDArray[np.float64]:
    """Fitness where larger is better, and NaN is worst."""
    signed = fitness if config.higher_is_better else -fitness
    return np.where(np.isnan(signed), -np.inf, signed)


def _selection(
    fitness: NDArray[np.float64],
    order: NDArray[np.int64],
    drawn: NDArray[np.float64],
    config: EvolutionConfig,
) -> NDArray[np.int64]:
    """(K, B, 2) parents of every offspring."""
    n_categories, size = fitness.shape
    rank = np.empty((n_categories, size), dtype=np.int64)
    np.put_along_axis(rank, order, np.arange(size)[None], axis=1)
    if config.selection == "tournament":
        rivals = np.minimum((drawn * size).astype(np.int64), size - 1)
        ranks = np.take_along_axis(rank[:, None, None], rivals, axis=-1)
        winners: NDArray[np.int64] = np.where(
            ranks[..., 0] <= ranks[..., 1], rivals[..., 0], rivals[..., 1]
        )
        return winners
    share = size - rank if config.selection == "rank" else _proportions(fitness, config)
    edges = np.cumsum(share, axis=1)
    sought = drawn[..., 0] * edges[:, -1, None, None]
    passed = (edges[:, None, None] <= sought[..., None]).sum(-1)
    pick: NDArray[np.int64] = np.minimum(passed, size - 1)
    return pick


def _proportions(fitness: NDArray[np.float64], config: EvolutionConfig) -> NDArray[np.float64]:
    """What roulette shares out: the fitness itself; mirrored in its range where less is better.

    A fitness below zero is measured from the worst; where nothing differs from zero all are
    equal, and where nothing is known too.
    """
    known = np.isfinite(fitness)
    low = np.where(known, fitness, np.inf).min(axis=1, keepdims=True)
    high = np.where(known, fitness, -np.inf).max(axis=1, keepdims=True)
    low, high = np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0)
    share = fitness if config.higher_is_better else low + high - fitness
    share = np.where(known, share - np.minimum(low, 0.0), 0.0)
    some = share.sum(axis=1, keepdims=True) > 0
    equal = known | ~known.any(axis=1, keepdims=True)
    return np.where(some, share, equal.astype(np.float64))
