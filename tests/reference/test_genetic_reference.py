"""The batched genetic algorithm against a plain loop over categories and individuals.

Features, weights, noise and mutation scale are small dyadic numbers, so that every product and
sum is exact in float64: the populations must be identical, generation by generation.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from catwise._configs import EvolutionConfig
from catwise.metrics import METRICS
from catwise.tuning.fits.evolution import Draws, ask, init, tell
from catwise.tuning.fits.fitness import PopulationFitness
from catwise.tuning.fits.genetic import GeneticConfig, fit_genetic
from catwise.tuning.fits.loop import HeadColumns, TuningData

CONFIG = EvolutionConfig(population_size=12, mutation_scale=2.0**-6)
K, N, D = 5, 60, 7


def dyadic(rng: np.random.Generator, shape: tuple[int, ...], bits: int = 3) -> np.ndarray:
    return rng.integers(-(2**bits), 2**bits + 1, size=shape) / 2.0**bits


def data(seed: int, *, known: float = 0.6, n: int = N, d: int = D):
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random((K, n)) < 0.35, 1, 0).astype(np.int8)
    codes[rng.random((K, n)) > known] = -1
    codes[:, :2] = [0, 1]
    return dyadic(rng, (n, d)), codes, dyadic(rng, (K, d)), dyadic(rng, (K,))


def drawn(rng: np.random.Generator, config: EvolutionConfig, n_genes: int) -> Draws:
    n = config.population_size - config.n_elite
    return Draws(
        rng.random((K, n, 2, 2)),
        rng.random((K, n)) < config.mutation_probability,
        rng.random((n, n_genes)) < config.crossover,
        dyadic(rng, (n, n_genes), bits=6),
    )


def plain_average_precision(scores: list[float], codes: list[int]) -> float:
    """The definition, positive by positive."""
    positives = [s for s, c in zip(scores, codes, strict=True) if c == 1]
    known = [s for s, c in zip(scores, codes, strict=True) if c >= 0]
    precisions = [sum(p >= s for p in positives) / sum(k >= s for k in known) for s in positives]
    return sum(sorted(precisions)[::-1]) / len(positives)


def plain_auroc(scores: list[float], codes: list[int]) -> float:
    """The share of pairs in order; a tie counts half."""
    positives = [s for s, c in zip(scores, codes, strict=True) if c == 1]
    negatives = [s for s, c in zip(scores, codes, strict=True) if c == 0]
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    return sum(pairs) / len(pairs)


def plain_fitness(genome, features, codes, metric) -> float:
    scores = [float(np.dot(row, genome[:-1])) + genome[-1] for row in features]  # exact: dyadic
    return metric(scores, codes)


def plain_generation(population, fitness, draws: Draws, k: int, config: EvolutionConfig):
    """One generation of category k, individual by individual."""
    order = sorted(range(len(population)), key=lambda i: -fitness[i])
    edges = list(itertools.accumulate(fitness))
    bred = [list(population[i]) for i in order[: config.n_elite]]
    for b in range(config.population_size - config.n_elite):
        parents = []
        for u in draws.parents[k, b, :, 0]:
            hit = next((i for i, edge in enumerate(edges) if edge > u * edges[-1]), len(edges) - 1)
            parents.append(population[hit])
        child = [
            one if first else other
            for one, other, first in zip(*parents, draws.from_first[b], strict=True)
        ]
        if draws.mutates[k, b]:
            steps = draws.noise[b] * config.mutation_scale
            child = [g + e for g, e in zip(child, steps, strict=True)]
        bred.append(child)
    return bred


@pytest.mark.parametrize(
    ("name", "plain"), [("average_precision", plain_average_precision), ("auroc", plain_auroc)]
)
@pytest.mark.parametrize("known", [0.3, 0.95])
def test_populations_are_those_of_the_plain_loop(name: str, plain, known: float) -> None:
    """Same draws, same populations, bit for bit, for rows gathered and shared."""
    features, codes, weight, bias = data(3, known=known)
    head = HeadColumns(torch.from_numpy(weight), torch.from_numpy(bias))
    fitness = PopulationFitness(
        torch.from_numpy(features),
        torch.from_numpy(codes),
        head,
        METRICS[name],
        population_size=CONFIG.population_size,
    )
    assert fitness.shared == (known > 0.7)
    genomes = torch.cat([head.weight, head.bias[:, None]], 1)
    state = init(genomes, [str(k) for k in range(K)], config=CONFIG)
    plain_populations = [[list(g)] * CONFIG.population_size for g in genomes.numpy()]
    rng = np.random.default_rng(11)
    for _ in range(6):
        draws = drawn(rng, CONFIG, D + 1)
        state = tell(state, fitness(ask(state)), CONFIG, draws=draws)
        for k in range(K):
            scores = [plain_fitness(g, features, codes[k], plain) for g in plain_populations[k]]
            plain_populations[k] = plain_generation(plain_populations[k], scores, draws, k, CONFIG)
        assert np.array_equal(np.array(plain_populations), state.population.numpy())
    assert np.unique(state.population.numpy(), axis=1).shape[1] > CONFIG.population_size // 2


@pytest.mark.parametrize("crossover", [0.2, 0.9])
def test_scores_that_follow_the_parents_are_those_of_the_plain_loop(crossover: float) -> None:
    """Rows shared, more than one chunk of them, wide genomes: still bit for bit, with the elite."""
    config = replace(CONFIG, population_size=8, crossover=crossover, n_elite=2)
    features, codes, weight, bias = data(9, known=0.95, n=300, d=96)
    head = HeadColumns(torch.from_numpy(weight), torch.from_numpy(bias))
    fitness = PopulationFitness(
        torch.from_numpy(features),
        torch.from_numpy(codes),
        head,
        METRICS["average_precision"],
        population_size=8,
    )
    genomes = torch.cat([head.weight, head.bias[:, None]], 1)
    state = init(genomes, [str(k) for k in range(K)], config=config)
    plain_populations = [[g] * 8 for g in genomes.numpy()]
    rng = np.random.default_rng(12)
    for generation in range(5):
        scores = fitness.follow(state)
        assert torch.equal(scores, fitness(ask(state)))
        draws = drawn(rng, config, 97)
        state = tell(state, scores, config, draws=draws)
        for k in range(K):
            plain = [
                plain_fitness(g, features, codes[k], plain_average_precision)
                for g in plain_populations[k]
            ]
            plain_populations[k] = plain_generation(plain_populations[k], plain, draws, k, config)
        assert np.array_equal(np.array(plain_populations), state.population.numpy())
        assert fitness.kept_generation == (generation or None)


def test_the_whole_run_is_that_of_the_plain_loop() -> None:
    """Best generation, validation score, bias written back, and stopping, category by category."""
    features, codes, weight, bias = data(5)
    features_valid, codes_valid, _, _ = data(6, known=1.0)
    config = GeneticConfig(operators=CONFIG, dtype=torch.float64, max_steps=40, patience=7, seed=4)
    result = fit_genetic(
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        TuningData(torch.from_numpy(features), torch.from_numpy(codes.T.copy())),
        TuningData(torch.from_numpy(features_valid), torch.from_numpy(codes_valid.T.copy())),
        config,
    )
    state = init(
        torch.from_numpy(np.column_stack([weight, bias])),
        [str(k) for k in range(K)],
        seed=4,
        config=CONFIG,
    )
    from catwise.tuning.fits.evolution import draw

    for k in range(K):
        population = [list(g) for g in state.population[k].numpy()]
        scores = [plain_fitness(g, features, codes[k], plain_average_precision) for g in population]
        best = plain_fitness(population[0], features_valid, codes_valid[k], plain_average_precision)
        assert result.base_score[k] == pytest.approx(best, abs=1e-12)
        best_step, genome, step = 0, population[0], 0
        while step < 40 and step - best_step < 7:
            draws = draw(state._replace(generation=step), CONFIG)
            population = plain_generation(population, scores, draws, k, CONFIG)
            step += 1
            scores = [
                plain_fitness(g, features, codes[k], plain_average_precision) for g in population
            ]
            leader = population[int(np.argmax(np.round(scores, 12)))]
            score = plain_fitness(leader, features_valid, codes_valid[k], plain_average_precision)
            if score > best + 1e-12:
                best, best_step, genome = score, step, leader
        assert int(result.steps[k]) == step
        assert int(result.best_step[k]) == best_step
        assert result.best_score[k] == pytest.approx(best, abs=1e-12)
        np.testing.assert_allclose(result.weight[k], genome[:-1], rtol=0, atol=1e-12)
        assert result.bias is not None
        assert float(result.bias[k]) == pytest.approx(genome[-1], abs=1e-12)
    assert int(result.best_step.max()) > 0
