"""Penalised heads: all categories at once, by preconditioned conjugate gradients.

For every category c the change ``delta_c`` of its weight vector and one intercept for each
source of labels minimise::

    sum_s sum_i omega_sci * loss(offset_sci + x_si . delta_c + a_sc, y_sci)
        + penalty_c / 2 * |delta_c|^2 + 0.01 / 2 * sum_s a_sc^2

`offset` holds the logits that the pull goes to, such as the original head's. The second
term only keeps an intercept finite where a source knows one class alone.

The method is non-linear conjugate gradients (Polak and Ribière, restarted where the
direction does not descend) with a diagonal preconditioner and Newton steps along the line
(Nocedal & Wright, Numerical Optimization, 2nd ed., sections 5.2 and 7.1). One iteration
reads the rows twice, whatever the number of categories; a category that has converged
leaves the batch.

Arrays are category-major, (C, n), so that dense and gathered rows are one case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from catwise.errors import ShapeError
from catwise.losses import LOSSES, Derivatives

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["PenalisedFit", "Source", "fit_penalised", "gather_known"]

_INTERCEPT_PENALTY = 0.01
_LINE_STEPS = 8
_LEAVE_BELOW = 0.6


@dataclass(frozen=True, eq=False)
class Source:
    """Rows of one origin: their coordinates, logits without the change, and known labels.

    Args:
        x: (n, k) float coordinates shared by all categories, or (C, n, k), each category's
            own rows.
        offset: (C, n) float.
        target: (C, n) float in [0, 1].
        weight: (C, n) float >= 0, 0 where a label is not known.
        intercept: whether the source has an intercept of its own.

    Raises:
        ShapeError: If the arrays do not fit together.
    """

    x: Tensor
    offset: Tensor
    target: Tensor
    weight: Tensor
    intercept: bool = True

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.offset, self.target, self.weight)}
        n_columns, n = self.offset.shape
        if len(shapes) != 1 or tuple(self.x.shape[:-1]) not in {(n,), (n_columns, n)}:
            raise ShapeError(
                "a source's arrays do not fit together.",
                found=f"x {tuple(self.x.shape)}, others {sorted(shapes)}",
                expected="x (n, k) or (C, n, k); offset, target and weight (C, n)",
            )

    def take(self, keep: Tensor) -> Source:
        """The same rows with some of the categories."""
        x = self.x if self.x.ndim == 2 else self.x[keep]
        parts = self.offset[keep], self.target[keep], self.weight[keep]
        return Source(x, *parts, intercept=self.intercept)

    def forward(self, delta: Tensor) -> Tensor:
        """(C, n) products of the coordinates with (C, k) weights."""
        if self.x.ndim == 2:
            return delta @ self.x.T
        return torch.bmm(self.x, delta[:, :, None])[:, :, 0]

    def backward(self, slope: Tensor) -> Tensor:
        """(C, k) sums over the rows of their coordinates times (C, n) slopes."""
        if self.x.ndim == 2:
            return slope @ self.x
        return torch.bmm(slope[:, None, :], self.x)[:, 0, :]

    def squares(self, curvature: Tensor) -> Tensor:
        """(C, k) sums over the rows of their squared coordinates times (C, n) curvatures."""
        if self.x.ndim == 2:
            return curvature @ self.x.square()
        return torch.einsum("cn,cnk,cnk->ck", curvature, self.x, self.x)


class PenalisedFit(NamedTuple):
    """What `fit_penalised` found.

    Attributes:
        delta: (C, k) change of the weights, in the coordinates given.
        intercepts: (S, C) change of the intercept, for each source.
        iterations: (C,) int64, steps taken by each category.
        gradient: (C,) norm of the preconditioned gradient, relative to its start.
        passes: how often the rows were read.
    """

    delta: Tensor
    intercepts: Tensor
    iterations: Tensor
    gradient: Tensor
    passes: int


def gather_known(x: Tensor, codes: Tensor, offset: Tensor) -> Source:
    """A source of each category's own known rows, padded to the longest.

    Args:
        x: (n, k) float coordinates.
        codes: (C, n) int8; 1 positive, 0 negative, all else unknown.
        offset: (C, n) float.

    Returns:
        A source with x (C, L, k), where L is the largest number of known labels.
    """
    known = codes >= 0
    length = max(1, int(known.sum(1).max()))
    order = known.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :length]
    weight = known.gather(1, order).to(x.dtype)
    target = (codes.gather(1, order) == 1).to(x.dtype)
    return Source(x[order], offset.gather(1, order), target, weight)


def fit_penalised(
    sources: Sequence[Source],
    penalty: float | Tensor,
    *,
    pointwise: Callable[[Tensor, Tensor], Derivatives] = LOSSES["bce"].slope_curvature,
    start: PenalisedFit | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-3,
) -> PenalisedFit:
    """Fit every category to its minimum.

    Args:
        sources: rows by origin.
        penalty: float or (C,), >= 0; multiplies |delta|^2 / 2.
        pointwise: ``(logits, target) -> Derivatives`` of the loss, elementwise.
        start: a fit to start from, such as the one for a stronger penalty.
        max_iterations: bound on the steps.
        tolerance: a category stops once its preconditioned gradient norm has fallen to
            this share of its value at ``delta = 0``.

    Returns:
        The fit; a category without known labels keeps zeros.

    Raises:
        ShapeError: If no source is given.
    """
    if not sources:
        raise ShapeError("no source of labels was given.")
    x = sources[0].x
    n_columns, k = sources[0].offset.shape[0], x.shape[-1]
    lam = torch.as_tensor(penalty, dtype=x.dtype, device=x.device).expand(n_columns)[:, None]
    zero = _Point(x.new_zeros(n_columns, k), x.new_zeros(len(sources), n_columns))
    problem = _Problem(list(sources), lam, pointwise)
    logits = [s.offset.clone() for s in sources]
    descent = _Descent.start(problem, zero, logits)
    reference = descent.norm()
    passes = 2
    if start is not None:
        point = _Point(start.delta.to(x.dtype).clone(), start.intercepts.to(x.dtype).clone())
        for s, z, a in zip(sources, logits, point.intercepts, strict=True):
            z.add_(s.forward(point.delta)).add_(a[:, None])
        descent = descent.restart(point, logits)
        passes += 2
    result = _Result.start(descent.point, n_columns)
    threshold = tolerance * reference + torch.finfo(x.dtype).tiny
    index = torch.arange(n_columns, device=x.device)
    active = descent.norm() > threshold
    for _ in range(max_iterations):
        n_active = int(active.sum())
        if n_active < _LEAVE_BELOW * len(index):
            result.put(index, descent)
            index, threshold = index[active], threshold[active]
            descent = descent.take(active)
            active = active[active]
        if n_active == 0:
            break
        descent.step(active)
        result.iterations[index] += active
        passes += 2
        active = active & (descent.norm() > threshold)
    result.put(index, descent)
    relative = result.norm / reference.clamp_min(torch.finfo(x.dtype).tiny)
    return PenalisedFit(
        result.point.delta, result.point.intercepts, result.iterations, relative, passes
    )


class _Point(NamedTuple):
    """Weights (C, k) and intercepts (S, C); also a gradient or a direction in that space."""

    delta: Tensor
    intercepts: Tensor

    def take(self, keep: Tensor) -> _Point:
        return _Point(self.delta[keep], self.intercepts[:, keep])

    def dot(self, other: _Point) -> Tensor:
        """(C,) inner products."""
        return (self.delta * other.delta).sum(1) + (self.intercepts * other.intercepts).sum(0)


@dataclass
class _Result:
    """Where every category ended."""

    point: _Point
    iterations: Tensor
    norm: Tensor

    @classmethod
    def start(cls, point: _Point, n_columns: int) -> _Result:
        device = point.delta.device
        return cls(
            _Point(point.delta.clone(), point.intercepts.clone()),
            torch.zeros(n_columns, dtype=torch.int64, device=device),
            point.delta.new_zeros(n_columns),
        )

    def put(self, index: Tensor, descent: _Descent) -> None:
        self.point.delta[index] = descent.point.delta
        self.point.intercepts[:, index] = descent.point.intercepts
        self.norm[index] = descent.norm()


@dataclass
class _Problem:
    """The objective of the categories that are still in the batch."""

    sources: list[Source]
    lam: Tensor
    pointwise: Callable[[Tensor, Tensor], Derivatives]

    def take(self, keep: Tensor) -> _Problem:
        return _Problem([s.take(keep) for s in self.sources], self.lam[keep], self.pointwise)

    def derivatives(self, logits: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Weighted first and second derivatives by the logits, for each source."""
        pairs = [self.pointwise(z, s.target) for s, z in zip(self.sources, logits, strict=True)]
        slopes = [d.slope * s.weight for s, d in zip(self.sources, pairs, strict=True)]
        curvatures = [d.curvature * s.weight for s, d in zip(self.sources, pairs, strict=True)]
        return slopes, curvatures

    def gradient(self, slopes: Sequence[Tensor], point: _Point) -> _Point:
        g = self.lam * point.delta
        for s, a in zip(self.sources, slopes, strict=True):
            g += s.backward(a)
        sums = [a.sum(1) * s.intercept for s, a in zip(self.sources, slopes, strict=True)]
        return _Point(g, torch.stack(sums) + _INTERCEPT_PENALTY * point.intercepts)

    def diagonal(self, curvatures: Sequence[Tensor]) -> _Point:
        d = self.lam.expand(-1, self.sources[0].x.shape[-1]).clone()
        for s, c in zip(self.sources, curvatures, strict=True):
            d += s.squares(c)
        sums = torch.stack([c.sum(1) for c in curvatures])
        return _Point(d.clamp_min(torch.finfo(d.dtype).tiny), sums + _INTERCEPT_PENALTY)

    def along(self, direction: _Point) -> list[Tensor]:
        """How the logits of every source move along a direction."""
        return [
            s.forward(direction.delta).add_(a[:, None])
            for s, a in zip(self.sources, direction.intercepts, strict=True)
        ]


@dataclass
class _Descent:
    """The state of conjugate gradients for the categories in the batch."""

    problem: _Problem
    point: _Point
    logits: list[Tensor]
    curvatures: list[Tensor]
    scale: _Point
    gradient: _Point
    direction: _Point
    descent: Tensor  # (C,) gradient . scaled gradient

    @classmethod
    def start(
        cls, problem: _Problem, point: _Point, logits: list[Tensor], scale: _Point | None = None
    ) -> _Descent:
        slopes, curvatures = problem.derivatives(logits)
        scale = problem.diagonal(curvatures) if scale is None else scale
        g = problem.gradient(slopes, point)
        z = _Point(g.delta / scale.delta, g.intercepts / scale.intercepts)
        away = _Point(-z.delta, -z.intercepts)
        return cls(problem, point, logits, curvatures, scale, g, away, g.dot(z))

    def restart(self, point: _Point, logits: list[Tensor]) -> _Descent:
        """The same problem from another point, with the preconditioner kept."""
        return _Descent.start(self.problem, point, logits, self.scale)

    def take(self, keep: Tensor) -> _Descent:
        return _Descent(
            self.problem.take(keep),
            self.point.take(keep),
            [z[keep] for z in self.logits],
            [c[keep] for c in self.curvatures],
            self.scale.take(keep),
            self.gradient.take(keep),
            self.direction.take(keep),
            self.descent[keep],
        )

    def norm(self) -> Tensor:
        """(C,) norm of the gradient in the preconditioner's metric."""
        return self.descent.clamp_min(0).sqrt()

    def step(self, active: Tensor) -> None:
        """Move every active category to the minimum along its direction, and turn."""
        d = _Point(self.direction.delta * active[:, None], self.direction.intercepts * active)
        slope = self.gradient.dot(d)
        moves = self.problem.along(d)
        step, slopes = self._line_search(moves, d, slope)
        self.point = _Point(
            torch.addcmul(self.point.delta, d.delta, step[:, None]),
            torch.addcmul(self.point.intercepts, d.intercepts, step),
        )
        g = self.problem.gradient(slopes, self.point)
        z = _Point(g.delta / self.scale.delta, g.intercepts / self.scale.intercepts)
        change = _Point(g.delta - self.gradient.delta, g.intercepts - self.gradient.intercepts)
        tiny = torch.finfo(step.dtype).tiny
        beta = (z.dot(change) / self.descent.clamp_min(tiny)).clamp_min(0)
        descent = g.dot(z)
        uphill = beta * g.dot(d) >= descent
        beta = beta.masked_fill(uphill, 0.0)
        self.direction = _Point(
            torch.addcmul(-z.delta, beta[:, None], d.delta),
            torch.addcmul(-z.intercepts, beta, d.intercepts),
        )
        self.gradient, self.descent = g, descent

    def _line_search(
        self, moves: list[Tensor], d: _Point, slope: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """A Newton step along the line; where it overshoots, secant steps back."""
        lam, point = self.problem.lam, self.point
        intercepts = _INTERCEPT_PENALTY * d.intercepts
        bend_of_penalty = (lam * d.delta * d.delta).sum(1) + (intercepts * d.intercepts).sum(0)
        slope_of_penalty = (lam * point.delta * d.delta).sum(1)
        slope_of_penalty = slope_of_penalty + (intercepts * point.intercepts).sum(0)
        bend = bend_of_penalty + _row_sum(self.curvatures, moves, moves)
        step = torch.where(bend > 0, -slope / bend.clamp_min(1e-30), 0.0)
        low, slope_low, move = torch.zeros_like(step), slope, step
        for trial in range(_LINE_STEPS):
            for z, v in zip(self.logits, moves, strict=True):
                z.addcmul_(v, move[:, None])
            slopes, self.curvatures = self.problem.derivatives(self.logits)
            here = _row_sum(slopes, moves) + slope_of_penalty + step * bend_of_penalty
            over = here > 0.5 * slope.abs()
            if trial == _LINE_STEPS - 1 or not bool(over.any()):
                break
            high = here.clamp_min(0)
            share = slope_low.abs() / (slope_low.abs() + high).clamp_min(1e-30)
            target = low + share.clamp(0.1, 0.9) * (step - low)
            move = torch.where(over, target - step, 0.0)
            step = step + move
        return step, slopes


def _row_sum(first: Sequence[Tensor], *others: Sequence[Tensor]) -> Tensor:
    """(C,) sums over sources and rows of the elementwise products of the arrays given."""
    total = torch.zeros((), dtype=first[0].dtype, device=first[0].device)
    equation = ",".join(["cn"] * (1 + len(others))) + "->c"
    for arrays in zip(first, *others, strict=True):
        total = total + torch.einsum(equation, *arrays)
    return total
