"""The functional core of the genetic algorithm, and the run built on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from catwise._configs import SELECTIONS, EvolutionConfig
from catwise.errors import ConfigError, ShapeError
from catwise.metrics import METRICS, Metric
from catwise.tuning.fits.evolution import EvolutionState, ask, draw, init, keep_categories, tell
from catwise.tuning.fits.fitness import PopulationFitness
from catwise.tuning.fits.genetic import GeneticConfig, fit_genetic
from catwise.tuning.fits.loop import HeadColumns, TuningData

SMALL = EvolutionConfig(population_size=8)


def towards_one(genomes: torch.Tensor) -> torch.Tensor:
    """A fitness in (0, 1] that is largest where every gene is 1."""
    return 1 / (1 + (genomes - 1).square().sum(-1))


def evolve(state: EvolutionState, config: EvolutionConfig, n: int) -> EvolutionState:
    for _ in range(n):
        state = tell(state, towards_one(ask(state)), config)
    return state


@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_selection_climbs(selection: str) -> None:
    """The best never falls, and rises in the end; rank and tournament beat roulette here."""
    config = EvolutionConfig(population_size=20, selection=selection, mutation_scale=0.05)
    state = init(torch.zeros(3, 5), ["a", "b", "c"], config=config)
    best = towards_one(ask(state)).amax(1)
    for _ in range(60):
        state = tell(state, towards_one(ask(state)), config)
        now = towards_one(ask(state)).amax(1)
        assert bool((now >= best).all())
        best = now
    assert bool((best > 0.25).all())


def test_less_is_better_descends() -> None:
    """The mirrored direction, which published code crashes on."""
    config = replace(SMALL, mutation_scale=0.05, higher_is_better=False)
    state = init(torch.zeros(2, 4), ["a", "b"], config=config)
    for _ in range(40):
        state = tell(state, (ask(state) - 1).square().sum(-1), config)
    assert bool(((ask(state)[:, 0] - 1).square().sum(-1) < 3.0).all())


def test_draws_do_not_depend_on_order_or_company() -> None:
    """A category evolves the same alone, in another order, and after others have left."""
    names = ["cat", "dog", "cow"]
    whole = evolve(init(torch.zeros(3, 4), names, seed=5, config=SMALL), SMALL, 6)
    turned = evolve(init(torch.zeros(3, 4), names[::-1], seed=5, config=SMALL), SMALL, 6)
    assert torch.equal(whole.population, turned.population.flip(0))
    half = evolve(init(torch.zeros(3, 4), names, seed=5, config=SMALL), SMALL, 3)
    resumed = evolve(keep_categories(half, torch.tensor([1])), SMALL, 3)
    assert torch.equal(whole.population[1:2], resumed.population)
    assert not torch.equal(whole.population[0], whole.population[1])
    other = evolve(init(torch.zeros(3, 4), names, seed=6, config=SMALL), SMALL, 6)
    assert not torch.equal(whole.population, other.population)


def test_a_saved_state_goes_on_to_the_same_bytes(tmp_path) -> None:
    """Population and generation on disk are enough; the draws come back with names and seed."""
    names = ["cat", "dog", "cow"]
    first = torch.zeros(3, 4)
    half = evolve(init(first, names, seed=5, config=SMALL), SMALL, 3)
    np.savez(tmp_path / "state.npz", population=half.population, generation=half.generation)
    kept = np.load(tmp_path / "state.npz")
    resumed = init(first, names, seed=5, config=SMALL)._replace(
        population=torch.from_numpy(kept["population"]), generation=int(kept["generation"])
    )
    assert torch.equal(evolve(half, SMALL, 4).population, evolve(resumed, SMALL, 4).population)


def test_within_a_category_draws_are_as_published() -> None:
    """Shares of crossover and mutation, uniform noise; categories share genes and noise only."""
    config = EvolutionConfig()
    state = init(torch.zeros(40, 500), [str(k) for k in range(40)], config=config)
    one, other = draw(state, config), draw(state._replace(generation=1), config)
    assert abs(one.from_first.mean() - 0.2) < 0.01
    assert abs(one.mutates.mean() - 0.5) < 0.04
    assert abs(one.noise.mean()) < 0.02
    assert abs((one.noise**2).mean() - 1 / 3) < 0.01
    assert one.noise.min() >= -1
    assert one.noise.max() < 1
    assert abs(one.parents.mean() - 0.5) < 0.01
    rows = one.parents.reshape(40, -1)
    assert np.abs(np.corrcoef(rows) - np.eye(40)).max() < 0.35  # 196 draws each
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert not np.array_equal(a, b)


def test_seeded_populations_repeat_their_genomes() -> None:
    """Several first genomes fill the population in turn."""
    genomes = torch.arange(6.0).reshape(1, 3, 2)
    state = init(genomes, ["a"], config=SMALL)
    assert torch.equal(state.population[0, :4], genomes[0, [0, 1, 2, 0]])


def test_nan_is_never_selected() -> None:
    """Only the individual with a score has offspring."""
    config = EvolutionConfig(population_size=6, mutation_probability=0.0)
    state = init(torch.randn(1, 6, 3), ["a"], config=config)
    scores = torch.full((1, 6), torch.nan)
    scores[0, 4] = 0.5
    bred = tell(state, scores, config)
    assert torch.equal(bred.population[0], state.population[0, 4].expand(6, -1))


@pytest.mark.parametrize(
    "options",
    [{"population_size": 1}, {"crossover": 1.5}, {"selection": "rulette"}, {"n_elite": 50}],
)
def test_options_out_of_range_are_refused(options: dict) -> None:
    """The error names the option."""
    with pytest.raises(ConfigError, match=next(iter(options)).split("_")[0]):
        EvolutionConfig(**options)


def test_shapes_are_checked() -> None:
    """Genomes and fitness must fit."""
    with pytest.raises(ShapeError, match="first genomes"):
        init(torch.zeros(2, 3), ["a"], config=SMALL)
    with pytest.raises(ShapeError, match="fitness"):
        tell(init(torch.zeros(2, 3), ["a", "b"], config=SMALL), torch.zeros(2, 3), SMALL)


# ------------------------------------------------------------------------------ fitness


def problem(seed: int = 0, *, known: float = 0.5, bias: bool = True):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(300, 6)))
    codes = (torch.from_numpy(rng.normal(size=(4, 6))) @ x.T + 0.5 > 1).to(torch.int8)
    codes[torch.from_numpy(rng.random((4, 300)) > known)] = -1
    head = HeadColumns(
        torch.from_numpy(rng.normal(size=(4, 6))),
        torch.from_numpy(rng.normal(size=4)) if bias else None,
    )
    genomes = torch.from_numpy(rng.normal(size=(4, 5, 7 if bias else 6)))
    return x, codes, head, genomes


def direct(metric: Metric, x, codes, genomes) -> torch.Tensor:
    """The metric on whole logits."""
    weight = genomes[..., : x.shape[1]]
    logits = weight @ x.T
    if genomes.shape[-1] > x.shape[1]:
        logits += genomes[..., -1:]
    return metric.columns(logits, codes[:, None].expand(logits.shape))


@pytest.mark.parametrize(
    "name", ["average_precision", "auroc", "best_f1", "partial_auroc", "brier"]
)
@pytest.mark.parametrize("known", [0.2, 0.9])
@pytest.mark.parametrize("bias", [True, False])
def test_fitness_is_the_metric(name: str, known: float, bias: bool) -> None:
    """Rows shared or gathered, with or without a bias, after categories have left."""
    x, codes, head, genomes = problem(known=known, bias=bias)
    fitness = PopulationFitness(x, codes, head, METRICS[name], population_size=5)
    wanted = direct(METRICS[name], x, codes, genomes)
    torch.testing.assert_close(fitness(genomes), wanted, rtol=0, atol=1e-12)
    keep = torch.tensor([1, 3])
    torch.testing.assert_close(
        fitness.select_categories(keep)(genomes[keep]), wanted[keep], rtol=0, atol=1e-12
    )


def test_a_callable_of_the_user_is_a_fitness() -> None:
    """Any function of scores and codes will do."""

    def margin(scores, codes, *, weight=None):
        positive = torch.where(codes == 1, scores, 0.0).sum(-1)
        return positive - torch.where(codes == 0, scores, 0.0).sum(-1)

    metric = Metric("margin", "Margin", margin)
    x, codes, head, genomes = problem()
    fitness = PopulationFitness(x, codes, head, metric, population_size=5)
    torch.testing.assert_close(fitness(genomes), direct(metric, x, codes, genomes))


def test_bfloat16_only_rounds_the_change() -> None:
    """At the first head the scores are exact; near it they are nearly so."""
    x, codes, head, genomes = problem()
    head = HeadColumns(head.weight.float(), head.bias.float())
    base = torch.cat([head.weight, head.bias[:, None]], 1)[:, None]
    near = base + 0.01 * genomes.float()
    metric = METRICS["auroc"]
    fitness = PopulationFitness(
        x.float(), codes, head, metric, population_size=5, product=torch.bfloat16
    )
    assert torch.equal(fitness(base), direct(metric, x.float(), codes, base))
    gap = (fitness(near) - direct(metric, x.float(), codes, near)).abs()
    assert float(gap.max()) < 2e-3


@pytest.mark.parametrize(
    ("name", "bias"), [("average_precision", True), ("auroc", False), ("log_loss", True)]
)
def test_following_the_parents_is_scoring_anew(name: str, bias: bool) -> None:
    """Generation after generation, when categories leave, and when one generation was missed."""
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(600, 80)))
    head = HeadColumns(torch.from_numpy(rng.normal(size=(6, 80))), torch.zeros(6) if bias else None)
    codes = (head.weight @ x.T + 9 * torch.from_numpy(rng.normal(size=(6, 600))) > 8).to(torch.int8)
    codes[torch.from_numpy(rng.random((6, 600)) > 0.9)] = -1
    metric = METRICS[name]
    config = replace(SMALL, mutation_scale=0.3, higher_is_better=metric.higher_is_better)
    genomes = head.weight if head.bias is None else torch.cat([head.weight, head.bias[:, None]], 1)
    state = init(genomes, list("abcdef"), config=config)
    fitness = PopulationFitness(x, codes, head, metric, population_size=8)
    follows = []
    for generation in range(8):
        scores = fitness.follow(state)
        follows.append(fitness.kept_generation)
        torch.testing.assert_close(scores, fitness(ask(state)), rtol=0, atol=1e-12)
        if generation == 3:
            keep = torch.tensor([0, 1, 3, 4, 5])
            state, fitness = keep_categories(state, keep), fitness.select_categories(keep)
            scores = scores[keep]
        state = tell(state, scores, config)
        if generation == 5:
            state = tell(state, fitness(ask(state)), config)
    assert follows == [None, 1, 2, 3, 4, 5, 7, 8]


def test_few_categories_or_features_are_scored_anew() -> None:
    """Where nothing would be saved, nothing is kept."""
    x, codes, head, _ = problem(known=0.95)
    fitness = PopulationFitness(x, codes, head, METRICS["auroc"], population_size=8)
    genomes = torch.cat([head.weight, head.bias[:, None]], 1)
    state = init(genomes, list("abcd"), config=SMALL)
    state = tell(state, fitness.follow(state), SMALL)
    assert torch.equal(fitness.follow(state), fitness(ask(state)))
    assert fitness.kept_generation is None


# ---------------------------------------------------------------------------------- run


def run(config: GeneticConfig, *, codes=None, names=None):
    x, known, head, _ = problem()
    codes = known if codes is None else codes
    data = TuningData(x[:200], codes[:, :200].T.contiguous())
    valid = TuningData(x[200:], codes[:, 200:].T.contiguous())
    return fit_genetic(head.weight, head.bias, data, valid, config, names=names), head


FAST = GeneticConfig(operators=SMALL, max_steps=25, patience=10, dtype=torch.float64)


def test_blocks_change_nothing() -> None:
    """Categories evolved one by one end where they end together."""
    whole, _ = run(FAST)
    cut, _ = run(replace(FAST, gather_bytes=1))
    assert torch.equal(whole.weight, cut.weight)
    assert torch.equal(whole.steps, cut.steps)
    for one, other in zip(whole.history, cut.history, strict=True):
        assert one == pytest.approx(other)


def test_history_and_reasons_tell_the_course() -> None:
    """Plain records; the best fitness never falls while all categories are active."""
    result, head = run(FAST)
    assert set(result.stop_reason) <= {"patience", "max_generations"}
    assert [row["step"] for row in result.history] == list(range(1, int(result.steps.max()) + 1))
    best = [row["best_fitness"] for row in result.history if row["active"] == 4]
    assert best == sorted(best)
    assert all(row["mean_fitness"] <= row["best_fitness"] for row in result.history)
    assert bool((result.best_score >= result.base_score).all())
    unmoved = result.best_step == 0
    assert torch.equal(result.weight[unmoved], head.weight[unmoved])


def test_a_category_with_one_class_is_skipped() -> None:
    """It keeps its row and says why."""
    _, codes, _, _ = problem()
    codes = codes.clone()
    codes[2, :200][codes[2, :200] == 1] = -1
    result, head = run(FAST, codes=codes)
    assert result.skipped[2] == "no_known_positive_in_train"
    assert result.stop_reason[2] == "skipped"
    assert torch.equal(result.weight[2], head.weight[2])
    assert bool(result.best_score[2].isnan())


def test_a_loss_can_be_the_fitness() -> None:
    """Less is better: the score falls or stays."""
    result, _ = run(replace(FAST, metric="log_loss"))
    assert bool((result.best_score <= result.base_score).all())
    assert bool((result.best_score < result.base_score).any())


@pytest.mark.parametrize("options", [{"patience": 0}, {"max_steps": 0}, {"product": torch.int8}])
def test_run_options_out_of_range_are_refused(options: dict) -> None:
    """The error names the option."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        GeneticConfig(**options)
