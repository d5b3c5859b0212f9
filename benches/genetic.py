"""Speed of the genetic algorithm: one generation of all categories, side by side in one run.

    OMP_NUM_THREADS=2 python benches/genetic.py [--scale small|issue] [--device cuda] [--json FILE]

Three ways to breed and score one generation of populations on the same known rows: catwise's,
a plain loop over categories that is itself written sensibly (one matrix product and one sort
of all individuals of a category), and mlcpl 0.1.7 (from PyPI, where it installs). The fitness
of the same populations is asserted to agree in the same run. The floor counts the multiply-adds
of the scores and one pass of comparisons (a sort) over them, at rates measured here.
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

from catwise.metrics import METRICS
from catwise.tuning.columns import HeadColumns
from catwise.tuning.evolution import EvolutionConfig, ask, init, tell
from catwise.tuning.fitness import PopulationFitness

BARS = {"plain": 8.0, "mlcpl": 15.0, "floor": 2.5}


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
    logits = truth @ x.T
    cut = logits.quantile(0.95, dim=1, keepdim=True) if scale.rows < 2**20 else 1.6
    codes = (logits + torch.randn(logits.shape, generator=rng) > cut).to(torch.int8)
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


def ours(task: SimpleNamespace, config: EvolutionConfig, product: torch.dtype | None, n: int):
    """Seconds of a generation, its parts, and the populations with their fitness."""
    head, device = HeadColumns(task.weight, task.bias), task.x.device
    fitness = PopulationFitness(
        task.x,
        task.codes,
        head,
        METRICS["average_precision"],
        population_size=config.population_size,
        product=product,
    )
    genomes = torch.cat([task.weight, task.bias[:, None]], 1)
    state = init(genomes, [str(k) for k in range(len(genomes))], config=config)
    state = tell(state, fitness(ask(state)), config)
    scores = fitness(ask(state))

    def generation() -> None:
        nonlocal state, scores
        state = tell(state, scores, config)
        scores = fitness(ask(state))

    seconds = best_of(generation, device, n)
    breed = best_of(lambda: tell(state, scores, config), device, n)
    return seconds, breed, state.population, scores, fitness


def floor(fitness: PopulationFitness, known: int, scale: Scale, device, product) -> dict:
    """Seconds that the multiply-adds and one sort of all scores take at this machine's rates."""
    size = 2_048 if device.type == "cpu" else 8_192
    dtype = product or torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    flops = 2 * size**3 / best_of(lambda: a @ b, device, 8)
    macs = fitness.multiply_adds * scale.population
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
    for product in (None, torch.bfloat16):
        seconds, breed, found, scores, fitness = ours(task, config, product, 5)
        least = floor(fitness, scale.known, scale, device, product)
        name = "float32" if product is None else "bfloat16"
        if populations is None:
            populations, reference = found, scores
        else:
            scores = fitness(populations)
        gap = float((scores - reference).abs().max())
        report[name] = {"seconds": seconds, "breed": breed, "floor": least, "ap_gap": gap}
        print(
            f"catwise, {name:<9} {seconds * 1e3:9.1f} ms (breeding {breed * 1e3:.1f})   floor "
            f"{least['seconds'] * 1e3:.1f} ms ({least['multiply_adds'] / 1e9:.1f} G multiply-adds "
            f"at {least['gflops']:.0f} Gflop/s {least['product_seconds'] * 1e3:.1f}, sorting "
            f"{least['sort_seconds'] * 1e3:.1f})   {seconds / least['seconds']:.2f} x the floor "
            f"(bar {BARS['floor']}); AP within {gap:.0e}"
        )
        assert gap < (1e-9 if product is None else 1e-3)
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
        ratios = {n: seconds / report[n]["seconds"] for n in ("float32", "bfloat16")}
        report[name] = {"seconds": seconds, "ap_gap": gap, "ratios": ratios}
        print(
            f"{name:<18} {seconds * 1e3:9.1f} ms   {ratios['float32']:.1f} x (float32), "
            f"{ratios['bfloat16']:.1f} x (bfloat16)   (bar {BARS[name]}); AP within {gap:.0e}"
        )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
