"""The figures of docs/cft.md: `python docs/figures/cft.py` writes them, the same each time.

They are computed from made-up data whose truth is known; nothing is drawn by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import catwise
from catwise import plots
from catwise.testing import make_task

BLUE: Final = "#2f6db3"
ORANGE: Final = "#c4622d"
GREY: Final = "#8a8f98"
GREEN: Final = "#2a7d4f"

STYLE: Final = {
    "svg.hashsalt": "catwise",
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}


def new_figure(width: float, height: float, n: int = 1) -> tuple[Figure, list[Any]]:
    """A figure with n axes side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, n)))


def logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Weights and bias of a logistic regression with a small penalty, by Newton's method."""
    z = np.column_stack([x, np.ones(len(x))])
    theta = np.zeros(z.shape[1])
    w = np.ones(len(x)) if weight is None else weight
    for _ in range(30):
        p = 1 / (1 + np.exp(-z @ theta))
        slope = z.T @ (w * (p - y)) + 0.1 * theta
        curvature = (z * (w * p * (1 - p))[:, None]).T @ z + 0.1 * np.eye(len(theta))
        theta = theta - np.linalg.solve(curvature, slope)
    return theta


def boundary() -> Figure:
    """One category, two features: what unknown positives do to its row of the last layer."""
    random = np.random.default_rng(4)
    n = 260
    positive = random.random(n) < 0.45
    x = random.normal(0, 1, (n, 2)) + np.where(positive[:, None], (1.3, 0.8), (-0.7, -0.5))
    # Positives on one side are the ones that were written down: what is missing is not a fair draw.
    known = random.random(n) < np.where(positive, np.where(x[:, 1] > 0.8, 0.5, 0.06), 0.3)
    filled = logistic(x, (positive & known).astype(float))
    tuned = logistic(x[known], positive[known].astype(float))
    best = logistic(x, positive.astype(float))
    figure, (axes,) = new_figure(6.2, 4.0)
    for mask, marker, colour, label in (
        (~known, "o", "#d5d8dc", "unknown"),
        (known & ~positive, "o", BLUE, "known negative"),
        (known & positive, "o", ORANGE, "known positive"),
    ):
        rows = np.round(x[mask], 2)
        axes.scatter(rows[:, 0], rows[:, 1], s=16, marker=marker, color=colour, label=label, lw=0)
    ends = np.array([-3.5, 4.0])
    for theta, colour, style, label in (
        (filled, GREY, "--", "unknown counted as negative"),
        (tuned, GREEN, "-", "fitted on known labels alone"),
        (best, "black", ":", "fitted on all labels, if they were known"),
    ):
        line = np.round(-(theta[0] * ends + theta[2]) / theta[1], 2)
        axes.plot(ends, line, color=colour, ls=style, lw=1.8, label=label)
    axes.set(xlim=(-3.5, 4), ylim=(-3.2, 3.6), xlabel="feature 1", ylabel="feature 2")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def memorised() -> Figure:
    """Scores of one category on images that the backbone saw, and on others."""
    task = make_task(2000, 2000, 10, 32, 4, known=0.5, memorised=1.5, seed=2)
    figure, panels = new_figure(6.6, 2.6, 2)
    edges = np.linspace(-6, 4, 31)
    for axes, part, title in zip(
        panels, (task.train, task.valid), ("images it was trained on", "other images"), strict=True
    ):
        scores = task.head.logits(part.features.values)[:, 1].numpy()
        truth = part.truth.codes[:, 1] == 1
        for mask, colour, label in ((~truth, BLUE, "negative"), (truth, ORANGE, "positive")):
            share = np.histogram(scores[mask], edges)[0] / mask.sum()
            axes.stairs(np.round(share, 3), edges, color=colour, fill=True, alpha=0.55, label=label)
        axes.set(title=title, xlabel="score of the original head", yticks=[])
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def optimism() -> Figure:
    """How good the best of many equal candidates looks on the labels that chose it."""
    random = np.random.default_rng(0)
    numbers = np.array([1, 2, 5, 10, 20, 50, 100])
    figure, (axes,) = new_figure(5.4, 3.0)
    for n_positive, colour in ((10, ORANGE), (50, BLUE), (200, GREEN)):
        error = 0.5 / np.sqrt(n_positive)  # of a share near one half
        draws = random.normal(0, error, (4000, numbers.max()))
        looks = [draws[:, :k].max(axis=1).mean() for k in numbers]
        axes.plot(
            numbers, np.round(looks, 3), "o-", color=colour, ms=4, label=f"{n_positive} labels"
        )
    axes.axhline(0, color="black", ls=":", lw=1)
    axes.annotate("what it is worth", (28, 0.010), fontsize=9)
    axes.set(xscale="log", xlabel="candidates to choose from", ylabel="how much better it looks")
    axes.set_xticks(numbers, [str(k) for k in numbers])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9)
    return figure


def changes() -> plots.Chart:
    """Every category before and after, on test rows that chose nothing."""
    task = make_task(600, 300, 800, 32, 8, known=0.2, seed=3)
    result = catwise.tune(task.head, task.train.pair, task.valid.pair, test=task.test.pair)
    return plots.gains(result.records)


def write_figures(folder: Path) -> list[Path]:
    """Write the four figures as SVG into a folder."""
    made = []
    with mpl.rc_context(STYLE):
        for name, make in (("row", boundary), ("memorised", memorised), ("chosen", optimism)):
            made.append(folder / f"cft-{name}.svg")
            make().savefig(made[-1], metadata={"Date": None, "Creator": None})
    made.append(folder / "cft-changes.svg")
    changes().save(made[-1])
    return made


if __name__ == "__main__":
    write_figures(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
