"""False alarms and power of the check that head, features and columns belong together.

    python benches/mismatch.py [--data TASKS] [--trials 500] [--only GLOB] [--seed N] [--json FILE]
    python benches/mismatch.py --limits [--trials 3000]

A trial is another draw of rows and labels (generated cells: of everything), as it is (`sound`),
with two columns exchanged, three or five changed in turn, all columns moved on by one or in random
order, or the rows in another order. `bar` cells have 200 known labels a category, 20 of them
positive; columns are exchanged where there are as many and both AUROCs are at least 0.65. Of ready
tasks (see quality.py) all labels of valid and test are the population; exchanges are shown by what
they cost: `apart` where the two columns lose at least 0.1 of AUROC each on average, `alike` where
less (there is little to see). Seconds are those of one check.

`--limits` says how many exchanges, and how many rows in another order, a test could see at best at
1% false alarms in the bar cells (likelihood ratios): one that knows every true AUROC, and one that
knows how each row scores positives and negatives, beyond which none can see.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from catwise.metrics.mismatch import check_match, cross_auroc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Draw = tuple[np.ndarray, np.ndarray]  # (N, C) logits, (N, C) codes

KNOWN, POSITIVE = 200, 20
BAR_AUROC = 0.65
APART = 0.1
QUANTILE = NormalDist().inv_cdf


# -------------------------------------------------------------------------------- generated


def independent(rng: np.random.Generator, auroc: np.ndarray, *, positive: int = POSITIVE) -> Draw:
    """Categories that have nothing in common; a tenth of the known labels is positive."""
    known = positive * KNOWN // POSITIVE
    n, c = 5 * known, len(auroc)
    codes = np.full((n, c), -1, np.int8)
    for j in range(c):
        rows = rng.permutation(n)[:known]
        codes[rows, j] = 0
        codes[rows[:positive], j] = 1
    shift = np.sqrt(2) * np.array([QUANTILE(a) for a in auroc])
    return (rng.normal(size=(n, c)) + shift * (codes == 1)).astype(np.float32), codes


def head_for(
    rng: np.random.Generator,
    labels: Callable[[np.ndarray], np.ndarray],
    known: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    train: int,
    test: int,
    features: int,
) -> Draw:
    """Ridge regression on labels whose blanks count as negative; logits and labels of test rows."""
    z = rng.normal(size=(train + test, features))
    truth = labels(z)
    codes = np.where(known(z, truth), truth, -1).astype(np.int8)
    target = (codes[:train] == 1).astype(float)
    gram = z[:train].T @ z[:train] + 0.03 * train * np.eye(features)
    weight = np.linalg.solve(gram, z[:train].T @ (target - target.mean(0))).T
    return (z[train:] @ weight.T).astype(np.float32), codes[train:]


def assays(rng: np.random.Generator, *, noise: float, c: int = 382, d: int = 96) -> Draw:
    """Twelve families of assays; whether one was run depends on the molecule and on the family.

    Assays of a family measure almost the same, and the rows of those with few positives are poor:
    in two columns of five another row ranks better by 0.1 of AUROC and more.
    """
    n_families = 12
    family = rng.integers(n_families, size=c)
    shared = rng.normal(size=(n_families, d))[family] + 0.1 * rng.normal(size=(c, d))
    shared /= np.linalg.norm(shared, axis=1, keepdims=True)
    run = rng.normal(size=(n_families, d)) / np.sqrt(d)
    cut, known = (
        np.array([QUANTILE(share) for share in rng.uniform(*shares, c)])
        for shares in ((0.9, 0.99), (0.05, 0.67))
    )
    return head_for(
        rng,
        lambda z: z @ shared.T + noise * rng.normal(size=(len(z), c)) > cut * np.hypot(1, noise),
        lambda z, _: (z @ run.T)[:, family] + rng.normal(size=(len(z), c)) > -known * np.sqrt(2),
        train=800,
        test=1500,
        features=d,
    )


def synonyms(rng: np.random.Generator, *, agree: float, c: int = 60, d: int = 32) -> Draw:
    """Twenty things with three names each; names of one thing agree in that share of the rows."""
    direction = rng.normal(size=(c // 3, d)) / np.sqrt(d)

    def labels(z: np.ndarray) -> np.ndarray:
        thing = z @ direction.T + 0.7 * rng.normal(size=(len(z), c // 3)) > 1.2
        named = np.repeat(thing, 3, axis=1)
        return np.where(rng.random(named.shape) < agree, named, rng.random(named.shape) < 0.15)

    return head_for(
        rng, labels, lambda z, _: rng.random((len(z), c)) < 0.4, train=1500, test=1000, features=d
    )


def hierarchy(rng: np.random.Generator, *, d: int = 48) -> Draw:
    """48 leaves, 16 parents, 4 grandparents: a parent is there where a child is."""
    direction = rng.normal(size=(48, d)) / np.sqrt(d)

    def labels(z: np.ndarray) -> np.ndarray:
        leaf = z @ direction.T + 0.7 * rng.normal(size=(len(z), 48)) > 1.9
        parent = leaf.reshape(len(z), 16, 3).any(2)
        return np.concatenate([leaf, parent, parent.reshape(len(z), 4, 4).any(2)], axis=1)

    return head_for(
        rng, labels, lambda z, _: rng.random((len(z), 68)) < 0.4, train=1500, test=1200, features=d
    )


def generated() -> Iterator[tuple[str, Callable[[np.random.Generator], Draw], bool]]:
    """Name, draw, and whether columns are exchanged in it."""
    for c in (3, 6, 12, 22, 60):
        for auroc in (0.65, 0.7, 0.75, 0.8):
            yield (
                f"bar {c} AUROC {auroc}",
                lambda r, c=c, a=auroc: independent(r, np.full(c, a)),
                True,
            )
        yield (
            f"bar {c} AUROC 0.65-0.9",
            lambda r, c=c: independent(r, r.uniform(0.65, 0.9, c)),
            True,
        )
    for c in (6, 22):
        for positive in (10, 50, 100):
            yield (
                f"{positive} positive {c} AUROC 0.65",
                lambda r, c=c, p=positive: independent(r, np.full(c, 0.65), positive=p),
                True,
            )
    for c in (1, 2, 6, 22):
        yield f"poor {c} AUROC 0.6", lambda r, c=c: independent(r, np.full(c, 0.6)), False
    for c in (12, 22):
        yield (
            f"a third useless {c}",
            lambda r, c=c: independent(r, np.where(r.random(c) < 0.33, 0.5, 0.75)),
            False,
        )
    yield (
        "one category AUROC 0.65, 100 positive",
        lambda r: independent(r, np.full(1, 0.65), positive=100),
        False,
    )
    for noise in (0.7, 2.0):
        yield f"assays 382 noise {noise}", lambda r, s=noise: assays(r, noise=s), True
    for agree in (1.0, 0.95, 0.8):
        yield f"synonyms 60 agree {agree}", lambda r, a=agree: synonyms(r, agree=a), False
    yield "hierarchy 68", hierarchy, True


# ------------------------------------------------------------------------------- ready tasks


def ready(folder: Path) -> Iterator[tuple[str, Callable[[np.random.Generator], Draw], np.ndarray]]:
    """Name, draw and the (C, C) AUROCs of the whole population."""
    for path in sorted(folder.glob("*.npz")):
        task = dict(np.load(path))
        parts = [name for name in ("valid", "test") if f"z_{name}" in task]
        z = np.concatenate([task[f"z_{name}"] for name in parts]).astype(np.float32)
        codes = np.concatenate([task[f"y_{name}"] for name in parts]).astype(np.int8)
        logits = z @ task["weight"].astype(np.float32).T + task["bias"].astype(np.float32)
        whole = cross_auroc(logits, codes)
        for n, known in ((250, 1.0), (1000, 1.0), (1000, 0.3)):

            def draw(
                rng: np.random.Generator, n: int = n, known: float = known, s=logits, y=codes
            ) -> Draw:
                rows = rng.permutation(len(s))[:n]
                kept = rng.random((len(rows), y.shape[1])) < known
                return s[rows], np.where(kept, y[rows], -1).astype(np.int8)

            yield f"{path.stem} {n} rows, {known:.0%} known", draw, whole
        yield f"{path.stem} bar", lambda r, s=logits, y=codes: at_bar(r, s, y), whole


def at_bar(rng: np.random.Generator, logits: np.ndarray, codes: np.ndarray) -> Draw:
    """200 known labels of each category, 20 of them positive, where there are as many."""
    kept = np.full_like(codes, -1)
    for c in range(codes.shape[1]):
        for code, n in ((1, POSITIVE), (0, KNOWN - POSITIVE)):
            rows = np.flatnonzero(codes[:, c] == code)
            kept[rng.permutation(rows)[:n], c] = code
    used = (kept >= 0).any(1)
    return logits[used], kept[used]


# ------------------------------------------------------------------------------------ trials


def exchange(
    rng: np.random.Generator, drawn: Draw, columns: np.ndarray, n: int
) -> tuple[Draw, np.ndarray] | None:
    """Some of the columns in turn: each gets the scores of the next."""
    if len(columns) < n:
        return None
    logits, codes = drawn
    chosen = rng.permutation(columns)[:n]
    mixed = logits.copy()
    mixed[:, chosen] = logits[:, np.roll(chosen, 1)]
    return (mixed, codes), chosen


def eligible(codes: np.ndarray, auroc: np.ndarray | None) -> np.ndarray:
    """Columns with 200 known labels, 20 of them positive, and an AUROC of 0.65."""
    positive, negative = (codes == 1).sum(0), (codes == 0).sum(0)
    good = (positive >= POSITIVE) & (positive + negative >= KNOWN)
    return np.flatnonzero(good if auroc is None else good & (auroc >= BAR_AUROC))


def alarm(drawn: Draw) -> bool:
    return bool(check_match(*drawn, force=True))


class Cell:
    """Alarms of a cell, by what was done to the draw."""

    def __init__(self, name: str) -> None:
        self.name, self.found, self.seconds = name, {}, []

    def add(self, kind: str, drawn: Draw | None) -> None:
        """Check one draw."""
        if drawn is None:
            return
        began = time.perf_counter()
        self.found.setdefault(kind, []).append(alarm(drawn))
        self.seconds.append(time.perf_counter() - began)

    def row(self) -> dict[str, Any]:
        """Shares of alarms and numbers of trials, and the median seconds of a check."""
        return {
            "cell": self.name,
            **{kind: [float(np.mean(v)), len(v)] for kind, v in self.found.items()},
            "seconds": float(np.median(self.seconds)),
        }


def trials(
    cell: Cell,
    draw: Callable[[np.random.Generator], Draw],
    n: int,
    *,
    whole: np.ndarray | None,
    mixed: bool,
    seed: int,
) -> dict[str, Any]:
    """All trials of a cell: half as many exchanges, a quarter rows, a tenth other columns."""
    for trial in range(n):
        rng = np.random.default_rng([trial, seed])
        drawn = draw(rng)
        logits, codes = drawn
        cell.add("sound", drawn)
        auroc = None if whole is None else np.diag(whole)
        columns = eligible(codes, auroc)
        if mixed and trial % 2 == 0 and (swapped := exchange(rng, drawn, columns, 2)):
            i, j = swapped[1]
            lost = (
                np.inf
                if whole is None
                else np.trace(whole[np.ix_([i, j], [i, j])]) - (whole[i, j] + whole[j, i])
            )
            cell.add("apart" if lost >= 2 * APART else "alike", swapped[0])
        if trial % 4 == 0:
            cell.add("rows", (logits[rng.permutation(len(logits))], codes))
        if trial % 10 == 0 and mixed:
            for size in (3, 5):
                some = exchange(rng, drawn, columns, size)
                cell.add(f"{size} columns", None if some is None else some[0])
            cell.add("moved by one", (np.roll(logits, 1, axis=1), codes))
            cell.add("all columns", (logits[:, rng.permutation(logits.shape[1])], codes))
    return cell.row()


def limit(
    rng: np.random.Generator, c: int, low: float, high: float, *, ranks: bool, n: int
) -> float:
    """The share of exchanges of rows 0 and 1 that the best test of C categories sees.

    It knows every true AUROC and sees the AUROCs (`ranks`), or how each row scores positives and
    negatives, and sees the scores: no test sees more.
    """
    best: dict[bool, list[float]] = {False: [], True: []}
    for exchanged in np.repeat([False, True], n):
        auroc = rng.uniform(low, high, c)
        right = np.arange(c)
        right[:2] = right[:2][:: -1 if exchanged else 1]
        # log likelihood ratio of "row i is that of column j" against "is not": normal, its mean
        # half its variance; above zero if it is
        distance = np.broadcast_to(separation(auroc, ranks=ranks)[:, None], (c, c))
        sign = np.where(right[None, :] == np.arange(c)[:, None], 1.0, -1.0)
        row = sign * distance**2 / 2 + distance * rng.normal(size=(c, c))
        ratio = row + row.T - np.diag(row) - np.diag(row)[:, None]
        best[bool(exchanged)].append(float(np.logaddexp.reduce(ratio[np.triu_indices(c, 1)])))
    return float((np.array(best[True]) > np.quantile(best[False], 0.99)).mean())


def separation(auroc: np.ndarray, *, ranks: bool) -> np.ndarray:
    """How far a row at that AUROC lies from one at chance, in standard errors of one column.

    By AUROCs; or by the scores of the positives, where the distributions are known: then the
    negatives say nothing more.
    """
    if ranks:
        return (auroc - 0.5) / np.sqrt((1 / POSITIVE + 1 / (KNOWN - POSITIVE)) / 12)
    return np.sqrt(2 * POSITIVE) * np.array([QUANTILE(a) for a in auroc])


def print_limits(n_trials: int) -> None:
    """Exchanges, then rows in another order, that could be seen at 1% false alarms."""
    ranges = ((0.65, 0.65), (0.7, 0.7), (0.75, 0.75), (0.65, 0.9))
    kinds = {True: "AUROCs known", False: "scores known"}
    print(
        "| two exchanged of | " + " | ".join(f"AUROC {low} to {high}" for low, high in ranges), "|"
    )
    print("|---" * (len(ranges) + 1) + "|")
    for c in (3, 6, 12, 22):
        for ranks, known in kinds.items():
            rng = np.random.default_rng(0)
            shares = [f"{limit(rng, c, *span, ranks=ranks, n=n_trials):.1%}" for span in ranges]
            print(f"| {c}, {known} | {' | '.join(shares)} |", flush=True)
    aurocs = (0.6, 0.62, 0.65, 0.7)
    print("\n| other rows, sound ones at | " + " | ".join(map(str, aurocs)), "|")
    print("|---" * (len(aurocs) + 1) + "|")
    for c in (1, 2, 3, 6, 12):
        for ranks, known in kinds.items():
            distance = np.sqrt(c) * separation(np.array(aurocs), ranks=ranks)
            shares = [f"{NormalDist().cdf(d - QUANTILE(0.99)):.1%}" for d in distance]
            print(f"| {c}, {known} | {' | '.join(shares)} |")


KINDS = ("sound", "apart", "alike", "rows", "3 columns", "5 columns", "moved by one", "all columns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of ready tasks")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=526, help="other trials")
    parser.add_argument("--only", default="*", help="cells by a glob")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--limits", action="store_true", help="what could be seen at best")
    args = parser.parse_args()
    if args.limits:
        print_limits(args.trials)
        return
    cells = [(name, draw, None, mixed) for name, draw, mixed in generated()]
    if args.data is not None:
        cells += [(name, draw, whole, True) for name, draw, whole in ready(args.data)]
    cells = [cell for cell in cells if fnmatch(cell[0], args.only)]
    rows = []
    print(f"| cell | {' | '.join(KINDS)} | seconds |")
    print("|---" * (len(KINDS) + 2) + "|")
    for name, draw, whole, mixed in cells:
        row = trials(Cell(name), draw, args.trials, whole=whole, mixed=mixed, seed=args.seed)
        rows.append(row)
        shown = [f"{row[k][0]:.1%} of {row[k][1]}" if k in row else "" for k in KINDS]
        print(f"| {name} | {' | '.join(shown)} | {row['seconds']:.3f} |", flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    worst = max(rows, key=lambda row: row["sound"][0])
    print(f"\nmost false alarms: {worst['sound'][0]:.2%}, {worst['cell']}", file=sys.stderr)


if __name__ == "__main__":
    main()
