"""Speed of the genetic algorithm: one generation of all categories, side by side in one run.

    OMP_NUM_THREADS=2 python benches/genetic.py [--scale small|issue] [--device cuda] [--json FILE]

Three ways to breed and score one generation of populations on the same known rows: catwise's,
a plain loop over categories that is itself written sensibly (one matrix product and one sort
of all individuals of a category), and mlcpl 0.1.7 (from PyPI, where it installs). The fitness
of the same populations is asserted to agree in the same run. The floor counts the multiply-adds
of the scores and one pass of comparisons (a sort) over them, at rates measured here. For catwise
it is printed twice: for scoring every genome anew, as the peers do, and for what is left of that
where scores follow from the parents' (`PopulationFitness.follow`), which is what catwise must
come near to.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from _peers import import_mlcpl, synchronise
from torch import Tensor

from catwise._configs import EvolutionConfig
from catwise.metrics import METRICS
from catwise.tuning.fits.evolution import EvolutionState, ask, init, tell
from catwise.tuning.fits.fitness import PopulationFitness
from catwise.tuning.fits.loop import HeadColumns

WAYS = {
    "float32": ("follow", None),
    "float32, anew": ("anew", None),
    "bfloat16, anew": ("anew", torch.bfloat16),
}
BARS = {"plain": 8.0, "mlcpl": 15.0, "floor": 2.5}


POSITIVES = 0.05  # of MS-COCO's labels 3.6% are


class Scale(NamedTuple):
    """Sizes of a run: `rows` are in all, `known` of them in every category."""

    rows: int
    known: int
    features: int
    categories: int
    population: int


SCALES = {
    "small": Scale(2_000, 2_000, 256, 20, 50),
    "issue": Scale(8_000, 8_000, 2_048, 80, 50),
    "sparse": Scale(80_000, 8_000, 2_048, 20, 50),
}


def make(scale: Scale, device: torch.device) -> SimpleNamespace:
    """Features, (K, N) codes with planted signal, and a head that is a little off."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(scale.rows, scale.features, generator=rng).relu_()
    truth = torch.randn(scale.categories, scale.features, generator=rng) / scale.features**0.5
    logits = truth @ x.T + torch.randn(scale.categories, scale.rows, generator=rng)
    cut = logits.sort(dim=1).values[:, int((1 - POSITIVES) * scale.rows), None]
    codes = (logits > cut).to(torch.int8)
    if scale.known < scale.rows:
        place = torch.rand(codes.shape, generator=rng).argsort(1)
        codes[place >= scale.known] = -1
    weight = truth + torch.randn(truth.shape, generator=rng) * 0.5 / scale.features**0.5
    bias = torch.zeros(scale.categories)
    arrays = {"x": x, "codes": codes, "weight": weight, "bias": bias}
    return SimpleNamespace(**{name: array.to(device) for name, array in arrays.items()})


def best_of(run, device: torch.device, n: int) -> float:
    laps = []
    for _ in range(n):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        laps.append(time.perf_counter() - start)
    return min(laps)


# ------------------------------------------------------------------------------ catwise


class Found(NamedTuple):
    """Seconds of a generation, and of breeding it; what was reached and its scores."""

    seconds: float
    breed: float
    state: EvolutionState
    scores: Tensor
    fitness: PopulationFitness


def ours(
    task: SimpleNamespace, config: EvolutionConfig, way: str, product: torch.dtype | None, n: int
) -> Found:
    """Breed and score generations, following the parents' scores or anew."""
    head, device = HeadColumns(task.weight, task.bias), task.x.device
    fitness = PopulationFitness(
        task.x,
        task.codes,
        head,
        METRICS["average_precision"],
        population_size=config.population_size,
        product=product,
    )
    score = fitness.follow if way == "follow" else lambda state: fitness(ask(state))
    genomes = torch.cat([task.weight, task.bias[:, None]], 1)
    state = init(genomes, [str(k) for k in range(len(genomes))], config=config)
    state = tell(state, score(state), config)
    scores = score(state)

    def generation() -> None:
        nonlocal state, scores
        state = tell(state, scores, config)
        scores = score(state)

    seconds = best_of(generation, device, n)
    breed = best_of(lambda: tell(state, scores, config), device, n)
    return Found(seconds, breed, state, scores, fitness)


def multiply_adds(found: Found, way: str, population: int) -> int:
    """Of the scores of one generation."""
    anew, origin = found.fitness.multiply_adds * population, found.state.origin
    if way != "follow" or origin is None or not found.fitness.shared:
        return anew
    one = found.fitness.multiply_adds / origin.from_first.shape[1]  # of one gene in all categories
    genes = int(origin.from_first.sum())
    noise = found.fitness.multiply_adds / len(origin.parents) * len(origin.steps)
    return int(one * genes + noise)


def floor(macs: int, known: int, scale: Scale, device, product) -> dict:
    """Seconds that the multiply-adds and one sort of all scores take at this machine's rates."""
    size = 2_048 if device.type == "cpu" else 8_192
    dtype = product or torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    flops = 2 * size**3 / best_of(lambda: a @ b, device, 8)
    block = torch.randn(scale.population, known, device=device)
    halves = block.chunk(torch.get_num_threads()) if device.type == "cpu" else [block]
    if device.type == "cpu":
        array = block.numpy()
        sort = best_of(lambda: np.sort(array, axis=1), device, 8) / len(halves)
    else:
        sort = best_of(lambda: block.sort(dim=1), device, 8)
    product_seconds, sort_seconds = 2 * macs / flops, sort * scale.categories
    return {
        "gflops": flops / 1e9,
        "multiply_adds": macs,
        "product_seconds": product_seconds,
        "sort_seconds": sort_seconds,
        "seconds": product_seconds + sort_seconds,
    }


# -------------------------------------------------------------------------------- peers


def average_precisions(scores: Tensor, positive: Tensor) -> Tensor:
    """(P,) average precisions of (P, n) scores by one sort; tied scores share a threshold."""
    ordered, order = scores.sort(dim=1, descending=True)
    hits = positive[order].cumsum(1)
    places = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=torch.float64)
    change = ordered[:, 1:] != ordered[:, :-1]
    last = torch.cat([change, torch.ones_like(change[:, :1])], 1)
    if bool(last.all()):
        return (positive[order] * (hits.double() / places)).sum(1) / hits[:, -1]
    out = torch.empty(len(scores), dtype=torch.float64, device=scores.device)
    for i, ends in enumerate(last):
        at = ends.nonzero().flatten()
        true = hits[i, at].double()
        gain = torch.diff(true, prepend=true.new_zeros(1))
        out[i] = (gain * true / (at + 1)).sum() / true[-1]
    return out


def plain_loop(task: SimpleNamespace, config: EvolutionConfig, populations: Tensor, n: int):
    """Category after category: gather once, then one product and one sort a generation."""
    seconds, scores = [], []
    size, device = config.population_size, task.x.device
    for k, codes in enumerate(task.codes):
        rows = (codes >= 0).nonzero().flatten()
        z, y = task.x[rows], (codes[rows] == 1).float()

        def fitness(population: Tensor, z=z, y=y) -> Tensor:
            return average_precisions(population[:, :-1] @ z.T + population[:, -1:], y)

        def generation(population: Tensor, fit: Tensor) -> Tensor:
            parents = torch.multinomial(fit, 2 * (size - 1), replacement=True)
            one, other = population[parents].view(2, size - 1, -1)
            child = torch.where(torch.rand_like(one) < config.crossover, one, other)
            mutates = torch.rand(size - 1, 1, device=device) < config.mutation_probability
            noise = (torch.rand_like(child) * 2 - 1) * config.mutation_scale
            child = child + noise * mutates
            return torch.cat([population[fit.argmax()][None], child])

        state = populations[k]
        fit = fitness(state)
        scores.append(fit)

        def lap() -> None:
            nonlocal state, fit
            state = generation(state, fit)
            fit = fitness(state)

        seconds.append(best_of(lap, device, n))
    return sum(seconds), torch.stack(scores)


def mlcpl_loop(task: SimpleNamespace, populations: Tensor, n: int):
    """Run mlcpl's own steps (fitness, then breeding) on each category's known rows."""
    optimization = importlib.import_module("mlcpl.cft.optimization_method")
    functional = importlib.import_module("mlcpl.metrics.functional")
    seconds, scores, device = [], [], task.x.device
    metric = functional.partial_multilabel_average_precision
    for k, codes in enumerate(task.codes):
        rows = (codes >= 0).nonzero().flatten()
        z, y = task.x[rows], codes[rows].float()[:, None]
        head = torch.nn.Linear(z.shape[1], 1).to(device)
        head.load_state_dict({"weight": task.weight[k : k + 1], "bias": task.bias[k : k + 1]})
        with contextlib.redirect_stdout(io.StringIO()):
            method = optimization.GAForLinear(head=head, device=device, metric=metric)
            method.population = populations[k]
            scores.append(method.batch_fitness(method.population, z, y, metric).flatten())
            seconds.append(best_of(lambda m=method, z=z, y=y: m.step(z, y), device, n))
    return sum(seconds), torch.stack(scores)


# ----------------------------------------------------------------------------------- run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peers", type=int, default=2, help="laps of each peer")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    args = parser.parse_args()
    scale, device = SCALES[args.scale], torch.device(args.device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}; {scale}")
    config = EvolutionConfig(population_size=scale.population)
    task = make(scale, device)
    report: dict[str, object] = {"scale": scale._asdict(), "device": args.device}
    populations = reference = None
    for name, (way, product) in WAYS.items():
        found = ours(task, config, way, product, 5)
        if populations is None:
            populations, reference = ask(found.state), found.fitness(ask(found.state))
            gap = float((found.scores - reference).abs().max())
        else:
            gap = float((found.fitness(populations) - reference).abs().max())
        report[name] = row = {"seconds": found.seconds, "breed": found.breed, "ap_gap": gap}
        print(f"catwise, {name:<20} {found.seconds * 1e3:9.1f} ms", end="")
        print(f" (breeding {found.breed * 1e3:.1f}); AP within {gap:.0e} of scoring anew")
        for key in dict.fromkeys(("anew", way)):
            macs = multiply_adds(found, key, scale.population)
            row[f"floor_{key}"] = least = floor(macs, scale.known, scale, device, product)
            print(
                f"    floor, {key:<8} {least['seconds'] * 1e3:9.1f} ms ({macs / 1e9:.1f} G "
                f"multiply-adds at {least['gflops']:.0f} Gflop/s "
                f"{least['product_seconds'] * 1e3:.1f}, sorting {least['sort_seconds'] * 1e3:.1f}):"
                f" {found.seconds / least['seconds']:.2f} x (bar {BARS['floor']})"
            )
        assert gap < (1e-5 if product is None else 1e-3)
    peers = {"plain": lambda: plain_loop(task, config, populations, args.peers)}
    mlcpl = import_mlcpl()
    if isinstance(mlcpl, str):
        print(f"  mlcpl is not measured: {mlcpl}")
    else:
        peers["mlcpl"] = lambda: mlcpl_loop(task, populations, args.peers)
    for name, peer in peers.items():
        seconds, scores = peer()
        gap = float((scores.double().to(device) - reference).abs().max())
        assert gap < 5e-4, f"fitness differs from {name}'s by {gap:.1e}"
        ratios = {n: seconds / report[n]["seconds"] for n in WAYS}
        report[name] = {"seconds": seconds, "ap_gap": gap, "ratios": ratios}
        print(
            f"{name:<18} {seconds * 1e3:9.1f} ms (bar {BARS[name]} x); AP within {gap:.0e}; ",
            end="",
        )
        print(", ".join(f"{ratio:.1f} x {n}" for n, ratio in ratios.items()))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
