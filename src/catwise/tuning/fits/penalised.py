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

Arrays are category-major, (C, n), so that all rows and known ones alone are one case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from catwise.errors import ShapeError
from catwise.losses import LOSSES, Derivatives
from catwise.tuning.rows.gathered import Gathered
from catwise.tuning.rows.products import product
from catwise.tuning.rows.sampled import KnownEntries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["PenalisedFit", "Source", "fit_path", "fit_penalised", "index_known"]

_INTERCEPT_PENALTY = 0.01
_LINE_STEPS = 8
_LEAVE_BELOW = 0.6


@dataclass(frozen=True, eq=False)
class Source:
    """Rows of one origin: their coordinates, logits without the change, and known labels.

    Args:
        x: (N, k) float coordinates shared by all categories.
        offset: (C, n) float.
        target: (C, n) float in [0, 1].
        weight: (C, n) float >= 0, 0 where a label is not known.
        intercept: whether the source has an intercept of its own.
        rows: (C, n) int64, which rows the entries belong to, each once in a category; None: all
            of them, in order.
        entries: with `rows`, the same entries for products that leave out the rest.

    Raises:
        ShapeError: If the arrays do not fit together.
    """

    x: Tensor
    offset: Tensor
    target: Tensor
    weight: Tensor
    intercept: bool = True
    rows: Tensor | None = None
    entries: KnownEntries | Gathered | None = None

    def __post_init__(self) -> None:
        arrays = self.offset, self.target, self.weight, self.rows
        shapes = {tuple(t.shape) for t in arrays if t is not None}
        whole = self.rows is not None or self.offset.shape[1] == len(self.x)
        if len(shapes) != 1 or self.x.ndim != 2 or not whole:
            raise ShapeError(
                "a source's arrays do not fit together.",
                found=f"x {tuple(self.x.shape)}, others {sorted(shapes)}",
                expected="x (n, k); offset, target, weight and rows (C, n)",
            )

    def take(self, keep: Tensor) -> Source:
        """The same rows with some of the categories."""
        parts = self.offset[keep], self.target[keep], self.weight[keep]
        rows = None if self.rows is None else self.rows[keep]
        entries = None if self.entries is None else self.entries.take(keep)
        return Source(self.x, *parts, intercept=self.intercept, rows=rows, entries=entries)

    def forward(self, delta: Tensor) -> Tensor:
        """(C, n) products of the coordinates with (C, k) weights."""
        if self.entries is not None:
            return self.entries.forward(self.x, delta).view(self.offset.shape)
        every = product(delta, self.x.T)
        return every if self.rows is None else every.gather(1, self.rows)

    def backward(self, slope: Tensor) -> Tensor:
        """(C, k) sums over the rows of their coordinates times (C, n) slopes."""
        if self.entries is not None:
            return self.entries.backward(self.x, slope.flatten())
        return product(self._spread(slope), self.x)

    def squares(self, curvature: Tensor) -> Tensor:
        """(C, k) sums over the rows of their squared coordinates times (C, n) curvatures."""
        if self.entries is not None:
            return self.entries.squares(self.x, curvature.flatten())
        return product(self._spread(curvature), self.x.square())

    def _spread(self, entries: Tensor) -> Tensor:
        """(C, N) with the entries at their rows and zeros elsewhere."""
        if self.rows is None:
            return entries
        return entries.new_zeros(len(entries), len(self.x)).scatter_(1, self.rows, entries)


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


def index_known(
    x: Tensor,
    codes: Tensor,
    offset: Tensor,
    *,
    layout: Literal["dense", "sparse", "gathered"] = "dense",
) -> Source:
    """A source that holds each category's known entries only.

    Everything is over (C, L), where L is the largest number of known labels, except for products.

    Args:
        x: (n, k) float coordinates.
        codes: (C, n) int8; 1 positive, 0 negative, all else unknown.
        offset: (C, n) float.
        layout: of the products: over all rows, over the known entries alone, or over copies of
            each category's known rows.
    """
    order, start, target, weight = _known_first(codes, offset)
    entries: KnownEntries | Gathered | None = None
    if layout == "sparse":
        entries = KnownEntries((codes >= 0).T, length=order.shape[1])
    elif layout == "gathered":
        entries = Gathered.build(x, codes >= 0, x.dtype)
    return Source(x, start, target, weight, rows=order, entries=entries)


def _known_first(codes: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(C, L) rows with the known ones first; offset, target and weight there."""
    known = codes >= 0
    length = max(1, int(known.sum(1).max()))
    order = known.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :length]
    weight = known.gather(1, order).to(offset.dtype)
    target = (codes.gather(1, order) == 1).to(offset.dtype)
    return order, offset.gather(1, order), target, weight


def fit_penalised(
    sources: Sequence[Source],
    penalty: float | Tensor,
    *,
    pointwise: Callable[[Tensor, Tensor], Derivatives] = LOSSES["bce"].slope_curvature,
    max_iterations: int = 60,
    tolerance: float = 1e-3,
) -> PenalisedFit:
    """Fit every category to its minimum.

    Args:
        sources: rows by origin.
        penalty: float or (C,), >= 0; multiplies |delta|^2 / 2.
        pointwise: ``(logits, target) -> Derivatives`` of the loss, elementwise.
        max_iterations: bound on the steps.
        tolerance: a category stops once its preconditioned gradient norm has fallen to
            this share of its value at ``delta = 0``.

    Returns:
        The fit; a category without known labels keeps zeros.

    Raises:
        ShapeError: If no source is given.
    """
    (fit,) = fit_path(
        sources,
        [penalty],
        pointwise=pointwise,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
    return fit


def fit_path(
    sources: Sequence[Source],
    penalties: Iterable[float | Tensor],
    *,
    pointwise: Callable[[Tensor, Tensor], Derivatives] = LOSSES["bce"].slope_curvature,
    max_iterations: int = 60,
    tolerance: float = 1e-3,
) -> Iterator[PenalisedFit]:
    """The fits along a path of penalties, each started from the one before.

    What does not depend on the penalty, the gradient and the curvature at ``delta = 0``, is found
    once. Arguments, each fit and errors as `fit_penalised`; `passes` of the first fit includes it.
    """
    if not sources:
        raise ShapeError("no source of labels was given.")
    x = sources[0].x
    n_columns = sources[0].offset.shape[0]
    zero = _Point(x.new_zeros(n_columns, x.shape[-1]), x.new_zeros(len(sources), n_columns))
    logits = [s.offset.clone() for s in sources]
    lam = x.new_zeros(n_columns, 1)
    problem = _Problem(list(sources), lam, pointwise)
    slopes, curvatures = problem.derivatives(logits)
    here = _Here(zero, logits, curvatures, problem.gradient(slopes, zero))
    first, bend, passes = here.gradient, problem.bend(curvatures), 2
    behind: tuple[_Here, Tensor] | None = None
    for penalty in penalties:
        given = torch.as_tensor(penalty, dtype=x.dtype, device=x.device).expand(n_columns)[:, None]
        problem = _Problem(list(sources), given, pointwise)
        scale = _Point((bend.delta + given).clamp_min(torch.finfo(x.dtype).tiny), bend.intercepts)
        start = here.at_penalty(given - lam)
        if behind is not None:
            start = _ahead(problem, behind, (here, lam), start, scale)
            passes += 1
        behind, lam = (here, lam), given
        reference = _norm(first, scale)
        descent = _Descent.start(problem, start, scale)
        result, steps = _descend(descent, reference, max_iterations, tolerance)
        relative = result.norm / reference.clamp_min(torch.finfo(x.dtype).tiny)
        yield PenalisedFit(
            result.here.point.delta,
            result.here.point.intercepts,
            result.iterations,
            relative,
            passes + 2 * steps,
        )
        here, passes = result.here, 0


def _ahead(
    problem: _Problem,
    behind: tuple[_Here, Tensor],
    now: tuple[_Here, Tensor],
    start: _Here,
    scale: _Point,
) -> _Here:
    """Where the path seems to lead: on the line through its last two fits, in log penalty.

    A category for which the gradient is not smaller there than at the last fit starts at that.
    """
    (before, lam_before), (here, lam) = behind, now
    share = (problem.lam / lam).log() / (lam / lam_before).log()
    share = share.nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 2.0)
    point = _Point(
        torch.lerp(before.point.delta, here.point.delta, 1 + share),
        torch.lerp(before.point.intercepts, here.point.intercepts, 1 + share[:, 0]),
    )
    logits = [torch.lerp(a, b, 1 + share) for a, b in zip(before.logits, here.logits, strict=True)]
    slopes, curvatures = problem.derivatives(logits)
    gradient = problem.gradient(slopes, point)
    better = _norm(gradient, scale) < _norm(start.gradient, scale)
    return _Here(point, logits, curvatures, gradient).where(better, start)


def _norm(gradient: _Point, scale: _Point) -> Tensor:
    """(C,) norm of a gradient in the preconditioner's metric."""
    scaled = _Point(gradient.delta / scale.delta, gradient.intercepts / scale.intercepts)
    return gradient.dot(scaled).clamp_min(0).sqrt()


def _descend(
    descent: _Descent, reference: Tensor, max_iterations: int, tolerance: float
) -> tuple[_Result, int]:
    """Step until every category has converged; return where they ended and the steps taken."""
    result = _Result.start(descent)
    threshold = tolerance * reference + torch.finfo(reference.dtype).tiny
    index = torch.arange(len(reference), device=reference.device)
    active = descent.norm() > threshold
    steps = 0
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
        steps += 1
        result.iterations[index] += active
        active = active & (descent.norm() > threshold)
    result.put(index, descent)
    return result, steps


class _Point(NamedTuple):
    """Weights (C, k) and intercepts (S, C); also a gradient or a direction in that space."""

    delta: Tensor
    intercepts: Tensor

    def take(self, keep: Tensor) -> _Point:
        return _Point(self.delta[keep], self.intercepts[:, keep])

    def dot(self, other: _Point) -> Tensor:
        """(C,) inner products."""
        return (self.delta * other.delta).sum(1) + (self.intercepts * other.intercepts).sum(0)


class _Here(NamedTuple):
    """A point, and what is known there: logits and curvatures by source, and the gradient."""

    point: _Point
    logits: list[Tensor]
    curvatures: list[Tensor]
    gradient: _Point

    def take(self, keep: Tensor) -> _Here:
        return _Here(
            self.point.take(keep),
            [z[keep] for z in self.logits],
            [c[keep] for c in self.curvatures],
            self.gradient.take(keep),
        )

    def where(self, keep: Tensor, other: _Here) -> _Here:
        """This for some categories, (C,) bool, and another for the rest."""

        def points(mine: _Point, theirs: _Point) -> _Point:
            return _Point(
                torch.where(keep[:, None], mine.delta, theirs.delta),
                torch.where(keep, mine.intercepts, theirs.intercepts),
            )

        def arrays(mine: list[Tensor], theirs: list[Tensor]) -> list[Tensor]:
            pairs = zip(mine, theirs, strict=True)
            return [torch.where(keep[:, None], a, b) for a, b in pairs]

        return _Here(
            points(self.point, other.point),
            arrays(self.logits, other.logits),
            arrays(self.curvatures, other.curvatures),
            points(self.gradient, other.gradient),
        )

    def at_penalty(self, more: Tensor) -> _Here:
        """The same point under a penalty that is larger by (C, 1), in memory of its own."""
        gradient = _Point(self.gradient.delta + more * self.point.delta, self.gradient.intercepts)
        logits = [z.clone() for z in self.logits]
        return _Here(self.point, logits, self.curvatures, gradient)


@dataclass
class _Result:
    """Where every category ended."""

    here: _Here
    iterations: Tensor
    norm: Tensor

    @classmethod
    def start(cls, descent: _Descent) -> _Result:
        here = descent.here()
        point = _Point(here.point.delta.clone(), here.point.intercepts.clone())
        gradient = _Point(here.gradient.delta.clone(), here.gradient.intercepts.clone())
        copies = [z.clone() for z in here.logits], [c.clone() for c in here.curvatures]
        norm = descent.norm()
        steps = torch.zeros(len(norm), dtype=torch.int64, device=norm.device)
        return cls(_Here(point, *copies, gradient), steps, norm)

    def put(self, index: Tensor, descent: _Descent) -> None:
        mine, found = self.here, descent.here()
        for old, new in (
            (mine.point, found.point),
            (mine.gradient, found.gradient),
        ):
            old.delta[index], old.intercepts[:, index] = new.delta, new.intercepts
        for old_arrays, new_arrays in (
            (mine.logits, found.logits),
            (mine.curvatures, found.curvatures),
        ):
            for target, value in zip(old_arrays, new_arrays, strict=True):
                target[index] = value
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

    def bend(self, curvatures: Sequence[Tensor]) -> _Point:
        """The diagonal of the second derivatives, without the penalty of the weights."""
        d = torch.zeros((), dtype=self.lam.dtype, device=self.lam.device)
        for s, c in zip(self.sources, curvatures, strict=True):
            d = d + s.squares(c)
        sums = torch.stack([c.sum(1) for c in curvatures])
        return _Point(d, sums + _INTERCEPT_PENALTY)

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
    def start(cls, problem: _Problem, here: _Here, scale: _Point) -> _Descent:
        g = here.gradient
        z = _Point(g.delta / scale.delta, g.intercepts / scale.intercepts)
        away = _Point(-z.delta, -z.intercepts)
        return cls(problem, here.point, here.logits, here.curvatures, scale, g, away, g.dot(z))

    def here(self) -> _Here:
        """Where the categories are now."""
        return _Here(self.point, self.logits, self.curvatures, self.gradient)

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
