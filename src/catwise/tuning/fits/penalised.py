"""Penalised heads: all categories at once, by preconditioned conjugate gradients.

For every category c the change ``delta_c`` of its weight vector and one intercept for each
source of labels minimise::

    sum_s sum_i weight_sci * loss(offset_sci + x_si . delta_c + a_sc, y_sci)
        + penalty_c / 2 * |delta_c|^2 + 0.01 / 2 * sum_s a_sc^2

`offset` holds the logits that the pull goes to, such as the original head's. The second
term only keeps an intercept finite where a source knows one class alone.

The method is non-linear conjugate gradients (Polak and Ribière, restarted where the
direction does not descend) with a diagonal preconditioner and Newton steps along the line
(Nocedal & Wright, Numerical Optimization, 2nd ed., sections 5.2 and 7.1). One iteration
reads the rows twice, whatever the number of categories; a category that has converged
leaves the batch.

Arrays are category-major: parameters (C, k + S) are the weights with an intercept of each source
behind them, logits (C, n) are at the places of the rows (`rows.known`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from catwise.errors import ShapeError
from catwise.losses import LOSSES, Derivatives
from catwise.tuning.rows.known import LabelledRows

_INTERCEPT_PENALTY = 0.01
_LINE_STEPS = 8
_COMPACT_BELOW = 0.6


class PenalisedFit(NamedTuple):
    """What a fit found.

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


def fit_path(
    sources: Sequence[LabelledRows],
    penalties: Iterable[float | Tensor],
    *,
    pointwise: Callable[[Tensor, Tensor], Derivatives] = LOSSES["bce"].slope_curvature,
    max_iterations: int = 60,
    tolerance: float = 1e-3,
    starts: Sequence[Tensor] | None = None,
) -> Iterator[PenalisedFit]:
    """Fit every category to its minimum, along a path of penalties.

    Each fit starts from the one before. What does not depend on the penalty, the gradient and the
    curvature at zero, is found once; `passes` of the first fit includes it.

    Args:
        sources: rows by origin.
        penalties: float or (C,), >= 0; they multiply |delta|^2 / 2.
        pointwise: ``(logits, target) -> Derivatives`` of the loss, elementwise.
        max_iterations: bound on the steps of each fit.
        tolerance: a category stops once its preconditioned gradient norm has fallen to
            this share of its value at ``delta = 0``.
        starts: of each penalty (C, k + S) parameters to start from, where these are better than
            the fit before; None: the path's own extrapolation.

    Yields:
        A fit for each penalty; a category without known labels keeps zeros.

    Raises:
        ShapeError: If no source is given.
    """
    if not sources:
        raise ShapeError("no source of labels was given.")
    problem = _Problem.start(list(sources), pointwise)
    state = problem.state(*problem.zeros())
    first, diagonal, passes = state.gradient, problem.diagonal(state.curvatures), 2
    previous: _State | None = None
    for number, penalty in enumerate(penalties):
        problem = problem.with_penalty(penalty)
        tiny = torch.finfo(first.dtype).tiny
        scale = (diagonal + problem.pull).clamp_min(tiny)
        start = state.under(problem.pull)
        point = None if starts is None else problem.at(starts[number])
        if previous is not None and point is None:
            point = _extrapolate(problem, previous, state)
        if point is not None:  # a category starts where this leads, if that is better
            ahead = problem.state(*point)
            better = _norm(ahead.gradient, scale) < _norm(start.gradient, scale)
            start = ahead.where(better, start)
            passes += 1 + (starts is not None)
        previous = state
        reference = _norm(first, scale)
        search = _Search.start(problem, start, scale)
        result = _Result.start(search, tolerance * reference + tiny)
        state, read = result.descend(search, max_iterations)
        passes += read
        k = sources[0].rows.x.shape[1]
        yield PenalisedFit(
            state.theta[:, :k],
            state.theta[:, k:].T,
            result.iterations,
            result.norm / reference.clamp_min(tiny),
            passes,
        )
        passes = 0


class _State(NamedTuple):
    """Parameters (C, k + S), and what is known there: by source, and the gradient."""

    theta: Tensor
    pull: Tensor
    logits: list[Tensor]
    curvatures: list[Tensor]
    gradient: Tensor

    def under(self, pull: Tensor) -> _State:
        """The same parameters under another penalty, with logits in memory of their own."""
        gradient = self.gradient + (pull - self.pull) * self.theta
        return _State(self.theta, pull, [z.clone() for z in self.logits], self.curvatures, gradient)

    def where(self, keep: Tensor, other: _State) -> _State:
        """This for some categories, (C,) bool, and another for the rest."""

        def choose(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(keep[:, None], mine, theirs)

        return _State(
            choose(self.theta, other.theta),
            self.pull,
            [choose(a, b) for a, b in zip(self.logits, other.logits, strict=True)],
            [choose(a, b) for a, b in zip(self.curvatures, other.curvatures, strict=True)],
            choose(self.gradient, other.gradient),
        )


def _extrapolate(problem: _Problem, before: _State, last: _State) -> tuple[Tensor, list[Tensor]]:
    """Where the path seems to lead: on the line through its last two fits, in log penalty."""
    penalties = [pull[:, :1] for pull in (problem.pull, last.pull, before.pull)]
    share = (penalties[0] / penalties[1]).log() / (penalties[1] / penalties[2]).log()
    share = 1 + share.nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 2.0)
    logits = [torch.lerp(a, b, share) for a, b in zip(before.logits, last.logits, strict=True)]
    return torch.lerp(before.theta, last.theta, share), logits


def _norm(gradient: Tensor, scale: Tensor) -> Tensor:
    """(C,) norm of a gradient in the preconditioner's metric."""
    return (gradient * (gradient / scale)).sum(1).clamp_min(0).sqrt()


@dataclass(frozen=True)
class _Problem:
    """The objective of the categories that are still in the batch."""

    sources: list[LabelledRows]
    pull: Tensor  # (C, k + S) penalties
    pointwise: Callable[[Tensor, Tensor], Derivatives]

    @classmethod
    def start(
        cls, sources: list[LabelledRows], pointwise: Callable[[Tensor, Tensor], Derivatives]
    ) -> _Problem:
        x, n_categories = sources[0].rows.x, len(sources[0].target)
        pull = x.new_full((n_categories, x.shape[1] + len(sources)), _INTERCEPT_PENALTY)
        pull[:, : x.shape[1]] = 0
        return cls(sources, pull, pointwise)

    def with_penalty(self, penalty: float | Tensor) -> _Problem:
        """The same with float or (C,) penalties of the weights."""
        pull = self.pull.clone()
        given = torch.as_tensor(penalty, dtype=pull.dtype, device=pull.device)
        pull[:, : -len(self.sources)] = given.expand(len(pull))[:, None]
        return _Problem(self.sources, pull, self.pointwise)

    def select_categories(self, keep: Tensor) -> _Problem:
        sources = [s.select_categories(keep) for s in self.sources]
        return _Problem(sources, self.pull[keep], self.pointwise)

    def zeros(self) -> tuple[Tensor, list[Tensor]]:
        """The parameters to start from, and the logits there."""
        logits = [
            torch.zeros_like(s.target) if s.offset is None else s.offset.clone()
            for s in self.sources
        ]
        return torch.zeros_like(self.pull), logits

    def at(self, theta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Parameters (C, k + S), and the logits there."""
        n, (_, logits) = len(self.sources), self.zeros()
        weights = theta[:, :-n].contiguous()
        for s, z, intercept in zip(self.sources, logits, theta[:, -n:].T, strict=True):
            z.add_(s.rows.forward(weights)).add_(s.rows.spread(intercept))
        return theta, logits

    def state(self, theta: Tensor, logits: list[Tensor]) -> _State:
        slopes, curvatures = self.derivatives(logits)
        sums = [s.rows.backward(a) for s, a in zip(self.sources, slopes, strict=True)]
        gradient = self.gradient(theta, slopes, sums)
        return _State(theta, self.pull, logits, curvatures, gradient)

    def derivatives(self, logits: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Weighted first and second derivatives by the logits, for each source."""
        slopes, curvatures = [], []
        for s, z in zip(self.sources, logits, strict=True):
            found = self.pointwise(z, s.target)
            slopes.append(found.slope if s.weight is None else found.slope * s.weight)
            curvatures.append(found.curvature if s.weight is None else found.curvature * s.weight)
        return slopes, curvatures

    def gradient(self, theta: Tensor, slopes: list[Tensor], sums: list[Tensor]) -> Tensor:
        """(C, k + S), from the slopes and the rows' sums of them."""
        gradient, k = self.pull * theta, sums[0].shape[1]
        for number, (source, slope, total) in enumerate(
            zip(self.sources, slopes, sums, strict=True)
        ):
            gradient[:, :k] += total
            if source.intercept:
                gradient[:, k + number] += slope.sum(1)
        return gradient

    def diagonal(self, curvatures: Sequence[Tensor]) -> Tensor:
        """(C, k + S) diagonal of the second derivatives, without the penalty."""
        squares = [s.rows.squares(c) for s, c in zip(self.sources, curvatures, strict=True)]
        total = torch.stack(squares).sum(0) if len(squares) > 1 else squares[0]
        return torch.cat([total, *(c.sum(1, keepdim=True) for c in curvatures)], 1)


@dataclass
class _Search:
    """The state of conjugate gradients for the categories in the batch."""

    problem: _Problem
    theta: Tensor
    logits: list[Tensor]
    curvatures: list[Tensor]
    scale: Tensor
    gradient: Tensor
    direction: Tensor
    decrease: Tensor  # (C,) gradient . scaled gradient

    @classmethod
    def start(cls, problem: _Problem, at: _State, scale: Tensor) -> _Search:
        g, scaled = at.gradient, at.gradient / scale
        decrease = (g * scaled).sum(1)
        return cls(problem, at.theta, at.logits, at.curvatures, scale, g, -scaled, decrease)

    def select_categories(self, keep: Tensor) -> _Search:
        return _Search(
            self.problem.select_categories(keep),
            self.theta[keep],
            [z[keep] for z in self.logits],
            [c[keep] for c in self.curvatures],
            self.scale[keep],
            self.gradient[keep],
            self.direction[keep],
            self.decrease[keep],
        )

    def norm(self) -> Tensor:
        """(C,) norm of the gradient in the preconditioner's metric."""
        return self.decrease.clamp_min(0).sqrt()

    def step(self, active: Tensor) -> None:
        """Move every active category to the minimum along its direction, and turn."""
        sources = self.problem.sources
        d, k = self.direction * active[:, None], -len(sources)
        weights = d[:, :k].contiguous()
        changes = [s.rows.forward(weights) for s in sources]
        for change, intercept in zip(changes, d[:, k:].T, strict=True):
            change.add_(intercept[:, None])
        step, slopes = self._line_search(changes, d)
        self.theta = torch.addcmul(self.theta, d, step[:, None])
        sums = [s.rows.backward(a) for s, a in zip(sources, slopes, strict=True)]
        g = self.problem.gradient(self.theta, slopes, sums)
        scaled = g / self.scale
        tiny = torch.finfo(step.dtype).tiny
        beta = (scaled * (g - self.gradient)).sum(1) / self.decrease.clamp_min(tiny)
        decrease, beta = (g * scaled).sum(1), beta.clamp_min(0)
        uphill = beta * (g * d).sum(1) >= decrease
        self.direction = torch.addcmul(-scaled, beta.masked_fill(uphill, 0.0)[:, None], d)
        self.gradient, self.decrease = g, decrease

    def _line_search(self, changes: list[Tensor], d: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A Newton step along the line; where it overshoots, secant steps back."""
        slope, pulled = (self.gradient * d).sum(1), self.problem.pull * d
        curvature_of_penalty, slope_of_penalty = (pulled * d).sum(1), (pulled * self.theta).sum(1)
        curvature = curvature_of_penalty + _row_sum(self.curvatures, changes, changes)
        step = torch.where(curvature > 0, -slope / curvature.clamp_min(1e-30), 0.0)
        low, slope_low, move = torch.zeros_like(step), slope, step
        for trial in range(_LINE_STEPS):
            for z, v in zip(self.logits, changes, strict=True):
                z.addcmul_(v, move[:, None])
            slopes, self.curvatures = self.problem.derivatives(self.logits)
            now = _row_sum(slopes, changes) + slope_of_penalty + step * curvature_of_penalty
            over = now > 0.5 * slope.abs()
            if trial == _LINE_STEPS - 1 or not bool(over.any()):
                break
            high = now.clamp_min(0)
            share = slope_low.abs() / (slope_low.abs() + high).clamp_min(1e-30)
            target = low + share.clamp(0.1, 0.9) * (step - low)
            move = torch.where(over, target - step, 0.0)
            step = step + move
        return step, slopes


@dataclass
class _Result:
    """Where every category ended, and which are still moving."""

    state: _State
    iterations: Tensor
    norm: Tensor
    index: Tensor  # (A,) of the categories in the batch
    threshold: Tensor  # (A,)
    active: Tensor  # (A,) bool

    @classmethod
    def start(cls, search: _Search, threshold: Tensor) -> _Result:
        state = _State(
            search.theta.clone(),
            search.problem.pull,
            [z.clone() for z in search.logits],
            [c.clone() for c in search.curvatures],
            search.gradient.clone(),
        )
        norm = search.norm()
        index = torch.arange(len(norm), device=norm.device)
        return cls(state, torch.zeros_like(index), norm, index, threshold, norm > threshold)

    def descend(self, search: _Search, max_iterations: int) -> tuple[_State, int]:
        """Steps until all have converged: where they ended, and how often the rows were read."""
        passes = 0
        for _ in range(max_iterations):
            search = self.without_settled(search)
            if not len(search.decrease):
                break
            search.step(self.active)
            passes += 2
            self.count(search)
        return self.finish(search), passes

    def count(self, search: _Search) -> None:
        """Another step was taken."""
        self.iterations[self.index] += self.active
        self.active = self.active & (search.norm() > self.threshold)

    def without_settled(self, search: _Search) -> _Search:
        """The search without the categories that have converged, once they are many."""
        if int(self.active.sum()) >= _COMPACT_BELOW * len(self.index):
            return search
        self.put(search)
        keep = self.active
        self.index, self.threshold, self.active = self.index[keep], self.threshold[keep], keep[keep]
        return search.select_categories(keep)

    def finish(self, search: _Search) -> _State:
        """Where all have ended."""
        self.put(search)
        return self.state

    def put(self, search: _Search) -> None:
        """Take down where the categories in the batch are."""
        self.state.theta[self.index] = search.theta
        self.state.gradient[self.index] = search.gradient
        mine = [*self.state.logits, *self.state.curvatures]
        for target, value in zip(mine, [*search.logits, *search.curvatures], strict=True):
            target[self.index] = value
        self.norm[self.index] = search.norm()


def _row_sum(first: Sequence[Tensor], *others: Sequence[Tensor]) -> Tensor:
    """(C,) sums over sources and rows of the elementwise products of the arrays given."""
    equation = ",".join(["cn"] * (1 + len(others))) + "->c"
    sums = [torch.einsum(equation, *arrays) for arrays in zip(first, *others, strict=True)]
    return torch.stack(sums).sum(0)
