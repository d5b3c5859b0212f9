"""A genetic algorithm as three functions, for all categories at once.

    state = init(genomes, names, seed=0)
    while ...:
        state = tell(state, fitness(ask(state)))

A state holds one population for every category, (K, P, G), and nothing else that changes but
the generation. `ask` gives the genomes to score, `tell` breeds the next generation from their
(K, P) scores. Nothing is known here about heads, labels or metrics.

Random draws are keyed by seed, category name and generation. So they depend neither on the
order of the categories nor on how they are cut into blocks, and a state that was put aside
goes on as if it never had been.

Source of the operators and constants: Chong et al., Category-wise Fine-Tuning, arXiv
2401.16991 (CFT_GA). Rank and tournament selection: Eiben & Smith, Introduction to
Evolutionary Computing, 2nd ed., 2015, section 5.2.
"""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from catwise.errors import ConfigError, ShapeError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "SELECTIONS",
    "Draws",
    "EvolutionConfig",
    "EvolutionState",
    "ask",
    "draw",
    "init",
    "keep_categories",
    "tell",
]

SELECTIONS: Final = ("roulette", "rank", "tournament")


@dataclass(frozen=True)
class EvolutionConfig:
    """Operators of the genetic algorithm; the defaults are the published ones.

    Args:
        population_size: P, individuals of every category.
        selection: how each parent is drawn, with replacement. "roulette": in proportion to the
            fitness; "rank": in proportion to P − rank (best rank 0), so that nearly equal
            scores still select; "tournament": the better of two.
        crossover: probability that a gene comes from the first parent.
        mutation_probability: that an offspring mutates.
        mutation_scale: a mutating offspring adds U(−scale, scale) to every gene.
        n_elite: best individuals that live on unchanged, ahead of the offspring.
        higher_is_better: direction of the fitness.

    Raises:
        ConfigError: If an option is out of range.
    """

    population_size: int = 50
    selection: Literal["roulette", "rank", "tournament"] = "roulette"
    crossover: float = 0.2
    mutation_probability: float = 0.5
    mutation_scale: float = 1e-3
    n_elite: int = 1
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise ConfigError(
                f"there is no selection {self.selection!r}{nearest(self.selection, SELECTIONS)}.",
                expected=" or ".join(SELECTIONS),
            )
        checks = {
            "population_size >= 2": self.population_size >= 2,
            "crossover in [0, 1]": 0 <= self.crossover <= 1,
            "mutation_probability in [0, 1]": 0 <= self.mutation_probability <= 1,
            "mutation_scale >= 0": math.isfinite(self.mutation_scale) and self.mutation_scale >= 0,
            "n_elite in 0 … population_size - 1": 0 <= self.n_elite < self.population_size,
        }
        if failed := [rule for rule, holds in checks.items() if not holds]:
            raise ConfigError(
                "options of the genetic algorithm are out of range.",
                found=", ".join(f"{n}={getattr(self, n)}" for n in (r.split()[0] for r in failed)),
                expected="; ".join(failed),
            )


class EvolutionState(NamedTuple):
    """All there is between two generations.

    Attributes:
        population: (K, P, G) genomes.
        generation: how many times `tell` was called.
        keys: (K,) uint64, of seed and category name, for the draws.
    """

    population: Tensor
    generation: int
    keys: NDArray[np.uint64]


class Draws(NamedTuple):
    """The random draws of one category in one generation, for B = P − n_elite offspring.

    Attributes:
        parents: (B, 2, 2) float64 in [0, 1): for each parent two draws, of which only
            "tournament" uses the second.
        from_first: (B, G) bool: the gene comes from the first parent.
        mutates: (B,) bool.
        noise: (mutating, G) in [−1, 1), of the mutating offspring in order.
    """

    parents: NDArray[np.float64]
    from_first: NDArray[np.bool_]
    mutates: NDArray[np.bool_]
    noise: NDArray[Any]


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
    keys = np.array([_key(seed, name) for name in names], dtype=np.uint64)
    return EvolutionState(seeds[:, places].contiguous(), 0, keys)


def ask(state: EvolutionState) -> Tensor:
    """(K, P, G) genomes to score."""
    return state.population


def tell(
    state: EvolutionState,
    fitness: Tensor,
    config: EvolutionConfig | None = None,
    *,
    draws: Sequence[Draws] | None = None,
) -> EvolutionState:
    """Breed the next generation.

    The elite comes first, best first (ties: in order); the offspring follow. On the CPU every
    category is bred in a thread of its own; on another device all at once.

    Args:
        state: the state that was scored.
        fitness: (K, P) scores of `ask(state)`; NaN is never selected.
        config: operators; the published ones if None.
        draws: K draws to use instead of those keyed by seed, name and generation.

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
    scores = fitness.detach().to("cpu", torch.float64).numpy()
    bred = torch.empty_like(population)

    def one(k: int) -> None:
        given = draw(int(state.keys[k]), state.generation, population, config)
        _breed(population[k], scores[k], given if draws is None else draws[k], config, bred[k])

    for done in _pool(max(torch.get_num_threads(), 1)).map(one, range(len(population))):
        assert done is None  # noqa: S101  (iterating re-raises what a thread raised)
    return EvolutionState(bred, state.generation + 1, state.keys)


def keep_categories(state: EvolutionState, keep: Tensor) -> EvolutionState:
    """The state of some categories, by (k,) positions; their course stays what it was."""
    return EvolutionState(state.population[keep], state.generation, state.keys[keep.cpu().numpy()])


def draw(key: int, generation: int, population: Tensor, config: EvolutionConfig) -> Draws:
    """The draws of one category in one generation.

    Args:
        key: of seed and category.
        generation: from 0.
        population: (K, P, G), for its sizes and its precision.
        config: operators.
    """
    _, size, n_genes = population.shape
    n = size - config.n_elite
    dtype = np.float64 if population.dtype == torch.float64 else np.float32
    source = np.random.Generator(np.random.SFC64(np.random.SeedSequence((key, generation))))
    parents = source.random((n, 2, 2))
    mutates = source.random(n) < config.mutation_probability
    from_first = source.random((n, n_genes), dtype=np.float32) < np.float32(config.crossover)
    noise = source.random((int(mutates.sum()), n_genes), dtype=dtype)
    noise *= 2
    noise -= 1
    return Draws(parents, from_first, mutates, noise)


def _key(seed: int, name: str) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ConfigError("a seed must be a whole number.", found=repr(seed))
    text = f"{int(seed)}\0genetic\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _breed(
    population: Tensor,
    fitness: NDArray[np.float64],
    draws: Draws,
    config: EvolutionConfig,
    out: Tensor,
) -> None:
    """Fill (P, G) `out` with the elite and the offspring of one category."""
    order = np.argsort(-_upward(fitness, config), kind="stable")
    pick = _selection(fitness, order, draws.parents, config)
    n_elite = config.n_elite
    on_cpu = population.device.type == "cpu"
    genes: Any = population.numpy() if on_cpu else population
    children: Any = out.numpy() if on_cpu else out
    children[:n_elite] = genes[order[:n_elite].copy()]
    rows = n_elite + np.flatnonzero(draws.mutates)
    if on_cpu:
        children[n_elite:] = np.where(draws.from_first, genes[pick[:, 0]], genes[pick[:, 1]])
        children[rows] += draws.noise * genes.dtype.type(config.mutation_scale)
        return

    def moved(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(population.device)

    first, second = (genes[moved(pick[:, i])] for i in (0, 1))
    children[n_elite:] = torch.where(moved(draws.from_first), first, second)
    children[moved(rows)] += moved(draws.noise) * config.mutation_scale


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
    """(B, 2) parents of every offspring."""
    size = len(fitness)
    if config.selection == "tournament":
        rank = np.empty(size, dtype=np.int64)
        rank[order] = np.arange(size)
        rivals = np.minimum((drawn * size).astype(np.int64), size - 1)
        ranks = rank[rivals]
        winners: NDArray[np.int64] = np.where(
            ranks[..., 0] <= ranks[..., 1], rivals[..., 0], rivals[..., 1]
        )
        return winners
    if config.selection == "rank":
        share = np.empty(size)
        share[order] = np.arange(size, 0, -1)
    else:
        share = _proportions(fitness, config)
    edges = np.cumsum(share)
    found = np.searchsorted(edges, drawn[..., 0] * edges[-1], side="right")
    pick: NDArray[np.int64] = np.minimum(found, size - 1)
    return pick


def _proportions(fitness: NDArray[np.float64], config: EvolutionConfig) -> NDArray[np.float64]:
    """What roulette shares out: the fitness itself; mirrored in its range where less is better.

    A fitness below zero is measured from the worst; where nothing differs from zero all are
    equal.
    """
    known = np.isfinite(fitness)
    if not known.any():
        return np.ones(len(fitness))
    low, high = fitness[known].min(), fitness[known].max()
    share = fitness if config.higher_is_better else low + high - fitness
    share = np.where(known, share - min(low, 0.0), 0.0)
    return share if share.sum() > 0 else known.astype(np.float64)


@lru_cache(maxsize=2)
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="catwise-evolution")
