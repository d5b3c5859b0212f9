"""The ranking-loss refinement: a fitted head a little further along the slope of the metric itself.

For every category the change ``e`` of its weights minimises ``loss(z + e · x) + penalty / 2 |e|²``
on its known held-out labels, where `loss` is a smooth average precision or AUROC
(`smooth_ranking`) and z are the logits of the head to start from. Without the pull to that head the
AP of the labels that are fitted is near 1 at once, and that of others falls.

The method is L-BFGS, all categories at once with a step of its own for each (Nocedal & Wright,
Numerical Optimization, 2nd ed., algorithms 7.4 and 3.1). Logits move along a line, so the trials
of a line search read no features: an iteration reads the rows twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from catwise.tuning.fits.smooth_ranking import Kind, SmoothRanking
from catwise.tuning.rows.products import product

_MEMORY = 6
_TRIALS = 12
_DECREASE = 1e-4
_SETTLED = 1e-5
_COMPACT_BELOW = 0.6


class Stage(NamedTuple):
    """Options of a ranking-loss refinement.

    Attributes:
        temperature: of the sigmoids in the ranks, in logits; 1 is what a fit by BCE calls for.
        penalty: of |e|² / 2, against a loss summed over positives.
    """

    temperature: float
    penalty: float


class RefinedFit(NamedTuple):
    """What `refine` found.

    Attributes:
        delta: (C, k) change of the weights.
        loss: (2, C) smooth loss before and after, without the penalty.
        iterations: (C,) int64.
        passes: how often the rows were read.
    """

    delta: Tensor
    loss: Tensor
    iterations: Tensor
    passes: int


def refine(
    x: Tensor,
    logits: Tensor,
    codes: Tensor,
    kind: Kind,
    stage: Stage,
    *,
    max_iterations: int = 25,
) -> RefinedFit:
    """Move every category along the slope of its metric, pulled back to where it started.

    Args:
        x: (n, k) float coordinates.
        logits: (C, n) of the heads to start from.
        codes: (C, n) int8; 1 positive, 0 negative, all else unknown.
        kind: "average_precision" or "auroc".
        stage: temperature and penalty.
        max_iterations: bound on the steps.

    Returns:
        The changes; zeros for a category without both classes.
    """
    both = ((codes == 1).any(1) & (codes == 0).any(1)).nonzero().flatten()
    delta = x.new_zeros(len(codes), x.shape[1])
    loss = x.new_zeros(2, len(codes))
    iterations = torch.zeros(len(codes), dtype=torch.int64, device=x.device)
    if not len(both):
        return RefinedFit(delta, loss, iterations, 0)
    start = logits[both].clone()
    ranking = SmoothRanking(start, codes[both], kind, temperature=stage.temperature)
    search = _Search.start(x, start, ranking, stage.penalty)
    loss[0, both] = search.loss
    index, passes = both, 1
    for _ in range(max_iterations):
        moving = search.step()
        passes += 2
        iterations[index] += moving
        if int(moving.sum()) < _COMPACT_BELOW * len(index):
            delta[index], loss[1, index] = search.point, search.loss
            keep = moving.nonzero().flatten()
            index, search = index[keep], search.select_categories(keep)
        if not len(index):
            break
    delta[index], loss[1, index] = search.point, search.loss
    return RefinedFit(delta, loss, iterations, passes)


@dataclass
class _Search:
    """The state of L-BFGS for the categories in the batch."""

    x: Tensor
    ranking: SmoothRanking
    penalty: float
    logits: Tensor
    point: Tensor
    loss: Tensor
    gradient: Tensor
    s_pairs: list[Tensor]
    y_pairs: list[Tensor]
    moving: Tensor

    @classmethod
    def start(cls, x: Tensor, logits: Tensor, ranking: SmoothRanking, penalty: float) -> _Search:
        loss, slopes = ranking.slope(logits)
        point = x.new_zeros(len(logits), x.shape[1])
        moving = torch.ones(len(logits), dtype=torch.bool, device=x.device)
        return cls(x, ranking, penalty, logits, point, loss, product(slopes, x), [], [], moving)

    def select_categories(self, keep: Tensor) -> _Search:
        return _Search(
            self.x,
            self.ranking.select_categories(keep),
            self.penalty,
            self.logits[keep],
            self.point[keep],
            self.loss[keep],
            self.gradient[keep],
            [s[keep] for s in self.s_pairs],
            [y[keep] for y in self.y_pairs],
            self.moving[keep],
        )

    def step(self) -> Tensor:
        """One iteration; returns which categories moved on, (C,) bool."""
        direction = self._direction()
        slope = (direction * self.gradient).sum(1)
        downhill = slope < 0
        direction = torch.where(downhill[:, None], direction, -self.gradient)
        slope = torch.where(downhill, slope, -self.gradient.square().sum(1))
        along = product(direction, self.x.T)
        length, found = self._line_search(direction, slope, along)
        length = torch.where(found & self.moving, length, 0.0)
        move = length[:, None] * direction
        self.point = self.point + move
        self.logits = torch.addcmul(self.logits, along, length[:, None])
        before = self.loss + self.penalty / 2 * (self.point - move).square().sum(1)
        self.loss, slopes = self.ranking.slope(self.logits)
        after = self.loss + self.penalty / 2 * self.point.square().sum(1)
        gradient = product(slopes, self.x).add_(self.point, alpha=self.penalty)
        self._remember(move, gradient - self.gradient)
        self.gradient = gradient
        self.moving = self.moving & found & (before - after > _SETTLED * before.clamp_min(1e-6))
        return self.moving

    def _remember(self, move: Tensor, change: Tensor) -> None:
        """Keep a pair where the curvature along it is positive; elsewhere zeros."""
        good = (move * change).sum(1) > 1e-10 * move.norm(dim=1) * change.norm(dim=1)
        self.s_pairs.append(torch.where(good[:, None], move, 0.0))
        self.y_pairs.append(torch.where(good[:, None], change, 0.0))
        del self.s_pairs[:-_MEMORY], self.y_pairs[:-_MEMORY]

    def _direction(self) -> Tensor:
        """Two loops over the pairs kept (Nocedal & Wright, algorithm 7.4)."""
        q = self.gradient.clone()
        tiny = torch.finfo(q.dtype).tiny
        shares: list[Tensor] = []
        inverse = [
            torch.where(d > 0, 1 / d.clamp_min(tiny), 0.0)
            for d in ((s * y).sum(1) for s, y in zip(self.s_pairs, self.y_pairs, strict=True))
        ]
        for s, y, r in zip(self.s_pairs[::-1], self.y_pairs[::-1], inverse[::-1], strict=True):
            share = r * (s * q).sum(1)
            shares.append(share)
            q -= share[:, None] * y
        scale = torch.full_like(q[:, 0], 1 / self.penalty)
        for s, y in zip(self.s_pairs, self.y_pairs, strict=True):  # that of the last good pair
            size = y.square().sum(1)
            scale = torch.where(size > 0, (s * y).sum(1) / size.clamp_min(tiny), scale)
        q *= scale[:, None]
        for s, y, r, share in zip(self.s_pairs, self.y_pairs, inverse, shares[::-1], strict=True):
            q += (share - r * (y * q).sum(1))[:, None] * s
        return -q

    def _line_search(
        self, direction: Tensor, slope: Tensor, along: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Halve each category's step until its loss falls enough."""
        length = torch.ones_like(slope)
        now = self.loss + self.penalty / 2 * self.point.square().sum(1)
        curvature = self.penalty * direction.square().sum(1)
        pull = self.penalty * (self.point * direction).sum(1)
        base = now - self.loss
        found = ~self.moving
        for _ in range(_TRIALS):
            loss = self.ranking.value(torch.addcmul(self.logits, along, length[:, None]))
            then = loss + base + length * pull + length**2 * curvature / 2
            found = found | (then <= now + _DECREASE * length * slope)
            if bool(found.all()):
                break
            length = torch.where(found, length, length / 2)
        return length, found
