"""Ways to maximise average precision itself, from the same fit, with the same pull back to it.

    python benches/search.py --data TASKS [--keep-valid 0.3] [--penalty 3] [--json FILE]

Every search starts at the `default` preset's fit without its metric stage, sees the validation
labels, and maximises ``positives × AP − penalty / 2 |e|²`` of a change e of the weights in the
preset's coordinates. What counts is the gain in AP on half 1 of the test rows, which no search
sees. "fitted" is the gain on the labels that were searched on: the distance between the two is
what the search has learnt by heart.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from quality import labelled, load
from torch import Tensor

from catwise import Head, tune
from catwise._configs import EvolutionConfig
from catwise.metrics.ranking import RankingPlan
from catwise.tuning.fits.evolution import ask, init, tell
from catwise.tuning.fits.ranking_loss import Stage, refine
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.rows.coordinates import fit_coordinates, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable

GENERATIONS, POPULATION = 100, 50
GRID = torch.cat([torch.linspace(-2, 2, 401), torch.tensor([0.0])])


class Problem(NamedTuple):
    """What a search may see: rows in coordinates, logits of the fit, codes; and directions."""

    x: Tensor  # (n, k)
    logits: Tensor  # (C, n)
    codes: Tensor  # (C, n)
    fit: Tensor  # (C, k) from the original head to the fit
    penalty: float
    names: list[str]

    def objective(self, delta: Tensor) -> Tensor:
        """(C, P) of changes (C, P, k), in units of AP."""
        scores = (delta.flatten(0, 1) @ self.x.T).view(*delta.shape[:2], -1)
        return self.of_scores(scores, delta.square().sum(-1))

    def of_scores(self, scores: Tensor, squares: Tensor) -> Tensor:
        """(C, P) of changes of the logits (C, P, n) and the squared lengths of their causes."""
        plan = RankingPlan(self.codes)
        ap = plan.average_precision(scores.transpose(0, 1), offset=self.logits).T
        positives = (self.codes == 1).sum(1).clamp_min(1)
        return ap.nan_to_num(0.0) - self.penalty / 2 * squares / positives[:, None]


# -------------------------------------------------------------------------- the contestants


def smooth(p: Problem, kind: str = "average_precision") -> Tensor:
    return refine(p.x, p.logits, p.codes, kind, Stage(1.0, p.penalty)).delta


def along(p: Problem, direction: Tensor) -> Tensor:
    """The best of 401 points on the line through the fit, for every category."""
    scores = (direction @ p.x.T)[:, None] * GRID[None, :, None]
    squares = direction.square().sum(1)[:, None] * GRID.square()
    found = p.of_scores(scores, squares)
    best = found.argmax(1)
    stay = found[:, -1] >= found.amax(1)  # the last point is 0: staying wins ties
    return torch.where(stay, 0.0, GRID[best])[:, None] * direction


def genetic(p: Problem, selection: str, *, adapt: bool = False, seeds: Tensor | None = None):
    """The genetic algorithm; mutations in coordinates, so that they fit the features."""
    scale = 0.02 * float(p.fit.norm(dim=1).median()) / p.fit.shape[1] ** 0.5 * 3**0.5
    config = EvolutionConfig(POPULATION, selection, mutation_scale=max(scale, 1e-4))
    first = torch.zeros_like(p.fit) if seeds is None else seeds
    state = init(first, p.names, config=config)
    score = p.objective(ask(state))
    for _ in range(GENERATIONS):
        state = tell(state, score, config)
        before, score = score.amax(1), p.objective(ask(state))
        if adapt:  # the rule of a fifth, over all categories (Rechenberg 1973)
            success = float((score[:, 1:] > before[:, None]).float().mean())
            factor = 1.1 if success > 0.2 else 1.1**-0.25
            config = EvolutionConfig(
                POPULATION, selection, mutation_scale=config.mutation_scale * factor
            )
    place = score.argmax(1)
    return ask(state)[torch.arange(len(place)), place]


def basis(p: Problem, n_leading: int = 5) -> Tensor:
    """(C, d, k) orthonormal: the fit, the smooth slope, difference of class means, leading axes."""
    positive, negative = (p.codes == 1).float(), (p.codes == 0).float()
    means = [w @ p.x / w.sum(1, keepdim=True).clamp_min(1) for w in (positive, negative)]
    leading = torch.eye(p.x.shape[1])[:n_leading].expand(len(p.fit), -1, -1)
    rows = torch.stack([p.fit, smooth(p), means[0] - means[1]], 1)
    return torch.linalg.qr(torch.cat([rows, leading], 1).mT).Q.mT


def cma(p: Problem, *, generations: int = 60) -> Tensor:
    """CMA-ES in a subspace, all categories at once (Hansen, arXiv 1604.00772, fig. 6)."""
    axes = basis(p)
    c, d = axes.shape[:2]
    rows = axes @ p.x.T  # (C, d, n)
    size = 4 + int(3 * np.log(d)) * 2
    mu = size // 2
    w = torch.log(torch.tensor(size / 2 + 0.5)) - torch.log(torch.arange(1, mu + 1).float())
    w = w / w.sum()
    mueff = 1 / float(w.square().sum())
    cs, cc = (mueff + 2) / (d + mueff + 5), (4 + mueff / d) / (d + 4 + 2 * mueff / d)
    c1 = 2 / ((d + 1.3) ** 2 + mueff)
    cmu = min(1 - c1, 2 * (mueff - 2 + 1 / mueff) / ((d + 2) ** 2 + mueff))
    damps = 1 + 2 * max(0.0, ((mueff - 1) / (d + 1)) ** 0.5 - 1) + cs
    chi = d**0.5 * (1 - 1 / (4 * d) + 1 / (21 * d * d))
    sigma = 0.1 * p.fit.norm(dim=1).clamp_min(1e-3)
    mean, ps, pc = torch.zeros(c, d), torch.zeros(c, d), torch.zeros(c, d)
    cov = torch.eye(d).repeat(c, 1, 1)
    rng = torch.Generator().manual_seed(0)
    for g in range(generations):
        values, vectors = torch.linalg.eigh(cov)
        root = values.clamp_min(1e-12).sqrt()
        z = torch.randn(c, size, d, generator=rng)
        y = (z * root[:, None]) @ vectors.mT
        points = mean[:, None] + sigma[:, None, None] * y
        found = p.of_scores(points @ rows, points.square().sum(-1))
        order = found.argsort(dim=1, descending=True)[:, :mu]
        y_best = y.gather(1, order[:, :, None].expand(-1, -1, d))
        step = (w[:, None] * y_best).sum(1)
        mean = mean + sigma[:, None] * step
        white = ((step[:, None] @ vectors) / root[:, None] @ vectors.mT)[:, 0]
        ps = (1 - cs) * ps + (cs * (2 - cs) * mueff) ** 0.5 * white
        length = ps.norm(dim=1)
        calm = length / (1 - (1 - cs) ** (2 * g + 2)) ** 0.5 < (1.4 + 2 / (d + 1)) * chi
        pc = (1 - cc) * pc + calm[:, None] * (cc * (2 - cc) * mueff) ** 0.5 * step
        rank_mu = torch.einsum("m,cmi,cmj->cij", w, y_best, y_best)
        rank_1 = pc[:, :, None] * pc[:, None]
        cov = (1 - c1 - cmu) * cov + c1 * rank_1 + cmu * rank_mu
        sigma = sigma * torch.exp((cs / damps) * (length / chi - 1))
    return (mean[:, None] @ axes)[:, 0]


def seeded(p: Problem) -> Tensor:
    """Populations that start from the fit, half of the way to it, past it, and the smooth stage."""
    stage = smooth(p)
    seeds = torch.stack([torch.zeros_like(p.fit), -p.fit / 4, p.fit / 4, stage, 2 * stage], 1)
    return genetic(p, "tournament", seeds=seeds)


SEARCHES: dict[str, Callable[[Problem], Tensor]] = {
    "smooth AP, L-BFGS (metric stage)": smooth,
    "pairwise AUROC, L-BFGS": lambda p: smooth(p, "auroc"),
    "line, along the fit": lambda p: along(p, p.fit),
    "line, along the smooth stage": lambda p: along(p, smooth(p)),
    "line, along the class means": lambda p: along(p, basis(p)[:, 2] * p.fit.norm(dim=1)[:, None]),
    "smooth, then line": lambda p: smooth(p) + along(_moved(p, smooth(p)), smooth(p)),
    "CMA-ES, 8 directions": cma,
    "GA, tournament": lambda p: genetic(p, "tournament"),
    "GA, tournament, adapted step": lambda p: genetic(p, "tournament", adapt=True),
    "GA, tournament, seeded": seeded,
}


def _moved(p: Problem, delta: Tensor) -> Problem:
    return p._replace(logits=p.logits + delta @ p.x.T)


# ----------------------------------------------------------------------------------- the run


def run(path: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Gains of all searches on one task."""
    task = load(path, 1, args.keep_valid, args.seed)
    head = Head(task["weight"].astype(np.float32), task["bias"].astype(np.float32))
    valid = labelled(task, "valid")
    result = tune(head, labelled(task, "train"), valid, config=DefaultConfig(refinements={}))
    start = result.head
    coordinates = fit_coordinates(valid[0])
    x, logits = read_rows(valid[0], start, coordinates, device=torch.device("cpu"))
    x_test, logits_test = read_rows(task["z_test"], start, coordinates, device=torch.device("cpu"))
    changed = (start.weight - head.weight).double()
    back = coordinates.basis.pinverse()  # from weights to coordinates
    codes = torch.from_numpy(task["y_valid"]).T.contiguous()
    codes_test = torch.from_numpy(task["y_test"]).T.contiguous()
    names = [str(c) for c in range(len(codes))]
    fit = (changed @ back.T).float()
    problem = Problem(x, logits, codes, fit, args.penalty, names)
    ap, ap_test = RankingPlan(codes).average_precision, RankingPlan(codes_test).average_precision
    found = {}
    for name, search in SEARCHES.items():
        began = time.perf_counter()
        delta = search(problem)
        seconds = time.perf_counter() - began
        gain = (ap_test(logits_test + delta @ x_test.T) - ap_test(logits_test)).nanmean()
        fitted = (ap(logits + delta @ x.T) - ap(logits)).nanmean()
        found[name] = {"gain": float(gain), "fitted": float(fitted), "seconds": seconds}
    return found


def show(done: dict[str, dict], args: argparse.Namespace) -> None:
    print(f"\n{args.keep_valid:.0%} of the validation labels, penalty {args.penalty:g}, half 1;")
    print("gains in AP x 10^4 (mean; lowest to highest task)\n")
    print("| search | test | lowest … highest | tasks up | fitted | s |\n|---|---|---|---|---|---|")
    for name in SEARCHES:
        rows = [task[name] for task in done.values()]
        gains = np.array([row["gain"] for row in rows]) * 1e4
        fitted = np.mean([row["fitted"] for row in rows]) * 1e4
        print(
            f"| {name} | {gains.mean():+.0f} | {gains.min():+.0f} … {gains.max():+.0f} | "
            f"{(gains > 0).sum()} of {len(gains)} | {fitted:+.0f} | "
            f"{np.mean([row['seconds'] for row in rows]):.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CATWISE_TASKS"))
    parser.add_argument("--tasks", default="*.npz", help="glob of the tasks to run")
    parser.add_argument("--keep-valid", type=float, default=1.0, help="share of labels kept")
    parser.add_argument("--seed", type=int, default=0, help="of the labels dropped")
    parser.add_argument("--penalty", type=float, default=3.0, help="mu, of the pull to the fit")
    parser.add_argument("--json", type=Path, help="keep finished tasks there, and go on from it")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of tasks: --data, or CATWISE_TASKS")
    done = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for path in sorted(Path(args.data).glob(args.tasks)):
        if path.stem not in done:
            done[path.stem] = run(path, args)
            if args.json:
                args.json.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    show(done, args)


if __name__ == "__main__":
    main()
