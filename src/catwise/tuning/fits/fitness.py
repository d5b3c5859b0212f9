"""A metric of whole populations of head rows on known labels, as fast as it goes.

For K categories with P individuals each, (K, P, G) genomes ``[w, b]`` or ``[w]``, scores are
``offset + (w − w0) · x`` on the category's known rows, where `offset` are the logits of the
first head (w0, b0). The bias of an individual shifts all its scores alike: it is left out where
the metric only ranks.

Rows are shared by all categories where most of their labels are known, and gathered category by
category where few are, padded to groups of like length. A call then costs ``K P n D``
multiply-adds for the scores (n known rows), one sort of n numbers for each individual and a
binary search of its positives.

`follow` needs far fewer. An offspring is its second parent but for the genes of the first, a
share s of all (0.2 as published), plus noise; and the places of these genes and the noise are the
same in all categories (`evolution`). So its scores are those of the second parent, which are
kept, plus ``K B n D s`` multiply-adds for the genes that differ, in B products with only these
features, plus ``B n D`` for the noise of all categories at once. Rounding adds up from generation
to generation, but only in the last digits of the *change*; every 128 generations all is computed
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from catwise.metrics import Metric
from catwise.tuning.fits.evolution import EvolutionState, Origin, ask
from catwise.tuning.fits.loop import HeadColumns
from catwise.tuning.rows.gathered import Gathered, gathered_rows

_BLOCK_ENTRIES = 1 << 24
_SHARE_MIN_DENSITY = 0.7
_CHUNK_ROWS = 256
_RECOMPUTE_EVERY = 128
_FOLLOW_BELOW = 0.6
_GROUPS = 4


class Memory(NamedTuple):
    """How rows are laid out for some categories.

    Attributes:
        shared: whether all categories share them.
        nbytes: of the copies where they are gathered, else of the scores that `follow` keeps.
    """

    shared: bool
    nbytes: int


def memory_of(
    known: Tensor,
    n_features: int,
    population_size: int,
    dtype: torch.dtype,
    product: torch.dtype | None = None,
) -> Memory:
    """The layout that `PopulationFitness` takes for (K, N) known labels, and its size."""
    n_rows, gathered = int(known.any(0).sum()), gathered_rows(known.sum(1))
    if 0 < _SHARE_MIN_DENSITY * n_rows * len(known) <= gathered:
        kept = n_rows * population_size * len(known) * dtype.itemsize
        return Memory(shared=True, nbytes=kept)
    return Memory(shared=False, nbytes=gathered * n_features * (product or dtype).itemsize)


@dataclass(frozen=True, eq=False)
class _Part:
    """Categories that are scored together.

    Attributes:
        index: (g,) ascending positions in the population.
        x: (g, L, D) gathered features, in the product's precision; None where rows are shared.
        offset: (g, L) logits of the first head.
        codes: (g, L) int8; −1 where padded.
        score: the metric against the codes, of (P, g, L) scores and an offset.
    """

    index: Tensor
    x: Tensor | None
    offset: Tensor
    codes: Tensor
    score: Callable[..., Tensor]


@dataclass
class _Kept:
    """The scores of a population, without the offset: (P, K, n), and its generation."""

    change: Tensor
    generation: int


class PopulationFitness:
    """A metric of (K, P, G) genomes on each category's known rows.

    Args:
        features: (N, D) floating.
        codes: (K, N) int8; 1 positive, 0 negative, all else is not known here.
        head: the first head: (K, D) weights and (K,) biases, or None.
        metric: what is computed.
        population_size: P; blocks of categories are cut so that a block of scores stays bounded.
        product: precision of the matrix product; the head's if None. A coarser one changes ranks.

    Attributes:
        shared: whether the rows are shared by all categories.
        multiply_adds: of one individual in all categories.
    """

    def __init__(
        self,
        features: Tensor,
        codes: Tensor,
        head: HeadColumns,
        metric: Metric,
        *,
        population_size: int,
        product: torch.dtype | None = None,
    ) -> None:
        self._head, self._metric = head, metric
        self._product = product or head.weight.dtype
        self._size, self._entries = population_size, max(_BLOCK_ENTRIES // population_size, 1)
        self._chunks: list[Tensor] = []  # (D + P, at most 256 rows) each: x.T, and room for noise
        self._kept: _Kept | None = None
        known = codes >= 0
        self.shared = memory_of(known, features.shape[1], population_size, self._product).shared
        if self.shared:
            rows = known.any(0)
            self._parts = self._share(features[rows], codes[:, rows].contiguous())
        else:
            self._parts = self._gather(features, codes)
        self.multiply_adds = sum(p.offset.numel() for p in self._parts) * features.shape[1]

    def _share(self, x: Tensor, codes: Tensor) -> list[_Part]:
        x = x.to(self._head.weight.dtype)
        offset = (x @ self._head.weight.T).T.contiguous()
        if self._head.bias is not None:
            offset += self._head.bias[:, None]
        for part in torch.split(x, _CHUNK_ROWS):
            chunk = x.new_zeros(x.shape[1] + self._size, len(part), dtype=self._product)
            chunk[: x.shape[1]] = part.T
            self._chunks.append(chunk)
        width = max(1, self._entries // codes.shape[1])
        every = torch.arange(len(codes), device=x.device)
        return [
            _Part(b, None, offset[b], codes[b], self._metric.prepare(codes[b]))
            for b in torch.split(every, width)
        ]

    def _gather(self, features: Tensor, codes: Tensor) -> list[_Part]:
        copies = Gathered.build(features, codes >= 0, self._product, max_places=self._entries)
        return [self._gathered_part(features, codes, *group) for group in copies.groups]

    def _gathered_part(
        self, features: Tensor, codes: Tensor, index: Tensor, rows: Tensor, block: Tensor
    ) -> _Part:
        weight, dtype = self._head.weight, self._head.weight.dtype
        offset = features.new_empty(rows.shape, dtype=dtype)
        for i, own in enumerate(rows):  # the copies may be coarser than the head
            torch.mv(features[own].to(dtype), weight[index[i]], out=offset[i])
        if self._head.bias is not None:
            offset += self._head.bias[index, None]
        known = codes[index].gather(1, rows).clamp_min(-1)
        return _Part(index, block, offset, known, self._metric.prepare(known))

    def select_categories(self, keep: Tensor) -> PopulationFitness:
        """The fitness of some categories, by (k,) ascending positions."""
        new = object.__new__(PopulationFitness)
        new._head, new._metric = self._head.select_categories(keep), self._metric
        new._product, new._size, new._entries = self._product, self._size, self._entries
        new.shared, new.multiply_adds = self.shared, self.multiply_adds
        new._chunks, new._kept = self._chunks, None
        if self._kept is not None:
            new._kept = _Kept(self._kept.change[:, keep], self._kept.generation)
        place = {int(old): i for i, old in enumerate(keep)}
        parts = [self._taken(part, place) for part in self._parts]
        new._parts = [part for part in parts if part is not None]
        return new

    def _taken(self, part: _Part, place: dict[int, int]) -> _Part | None:
        rows = [i for i, c in enumerate(part.index.tolist()) if c in place]
        if not rows:
            return None
        at = torch.tensor(rows, device=part.index.device)
        index = torch.tensor([place[int(part.index[i])] for i in rows], device=at.device)
        if len(rows) == len(part.index):
            return replace(part, index=index)
        codes = part.codes[at]
        x = None if part.x is None else part.x[at]
        return _Part(index, x, part.offset[at], codes, self._metric.prepare(codes))

    @property
    def kept_generation(self) -> int | None:
        """The generation whose scores `follow` keeps, if it does."""
        return None if self._kept is None else self._kept.generation

    # -------------------------------------------------------------------------- scoring

    def __call__(self, population: Tensor) -> Tensor:
        """(K, P) float64 scores of (K, P, G) genomes; NaN where a class is not known."""
        result = torch.empty(population.shape[:2], dtype=torch.float64, device=population.device)
        for part in self._parts:
            genomes = population[part.index]
            delta = self._delta(genomes, part.index)
            if part.x is None:
                change = self._changes(delta)
            else:
                change = torch.bmm(delta, part.x.mT).transpose(0, 1)
            result[part.index] = self._rank(part, change, genomes)
        return result

    def follow(self, state: EvolutionState) -> Tensor:
        """(K, P) float64 scores of a state's population, with those of the last call in mind.

        Where that pays, the scores of all rows are kept (see `memory_of`) and only
        what has changed is computed, if the last call was for the generation before. Else, and
        every 128 generations, this is the same as ``self(ask(state))``.
        """
        origin, kept = state.origin, self._kept
        if not self.shared or origin is None or not self._pays(origin):
            self._kept = None
            return self(ask(state))
        if (
            kept is None
            or kept.generation != state.generation - 1
            or not state.generation % _RECOMPUTE_EVERY
        ):
            every = torch.arange(len(state.population), device=state.population.device)
            kept = _Kept(self._changes(self._delta(state.population, every)), state.generation)
        else:
            self._advance(kept, origin)
        self._kept = kept
        shape = state.population.shape[:2]
        result = torch.empty(shape, dtype=torch.float64, device=state.population.device)
        for part in self._parts:
            at = slice(int(part.index[0]), int(part.index[-1]) + 1)  # all there is between them
            result[at] = self._rank(part, kept.change[:, at], state.population[at])
        return result

    def _pays(self, origin: Origin) -> bool:
        """Whether clearly fewer multiply-adds are left, in products that are wide enough."""
        share = float(origin.from_first.float().mean())
        share = min(share, 1 - share) + 1 / len(origin.parents)
        plain = self._product == self._head.weight.dtype
        return plain and share < _FOLLOW_BELOW and origin.steps.shape[1] > _CHUNK_ROWS // 4

    def _delta(self, genomes: Tensor, index: Tensor) -> Tensor:
        """(g, P, D) change of the weights since the first head."""
        n_features = self._head.weight.shape[1]
        delta = genomes[..., :n_features] - self._head.weight[index][:, None]
        return delta.to(self._product)

    def _changes(self, delta: Tensor) -> Tensor:
        """(P, g, n) scores of (g, P, D) changes of the weights on shared rows."""
        flat = delta.transpose(0, 1).flatten(0, 1)
        change = flat.new_empty(len(flat), sum(chunk.shape[1] for chunk in self._chunks))
        start = 0
        for chunk in self._chunks:
            change[:, start : start + chunk.shape[1]] = flat @ chunk[: flat.shape[1]]
            start += chunk.shape[1]
        return change.view(delta.shape[1], len(delta), -1)

    def _advance(self, kept: _Kept, origin: Origin) -> None:
        """Move the scores kept to the next generation, some rows at a time."""
        n_features, n_categories = self._head.weight.shape[1], len(origin.elite)
        order, like, groups = _differences(origin, n_features)
        n_elite, n_offspring = origin.elite.shape[1], len(order)
        every = torch.arange(n_categories, device=order.device)
        elite, parent = ((p.T * n_categories + every).flatten() for p in (origin.elite, like))
        place = ((n_elite + order)[:, None] * n_categories + every).flatten()
        steps = origin.steps[:, :n_features]
        flat = kept.change.view(-1, kept.change.shape[2])
        start = 0
        for chunk in self._chunks:
            rows = flat[:, start : start + chunk.shape[1]]
            best, moved = rows.index_select(0, elite), rows.index_select(0, parent)
            torch.mm(steps, chunk[:n_features], out=chunk[n_features : n_features + n_offspring])
            product, first = moved.view(n_offspring, n_categories, -1), 0
            for genes, differ in groups:
                x = chunk.index_select(0, genes.flatten()).view(*genes.shape, -1)
                product[first : first + len(genes)].baddbmm_(differ, x)
                first += len(genes)
            rows[: len(best)] = best
            rows.index_copy_(0, place, moved)
            start += chunk.shape[1]
        kept.generation += 1

    def _rank(self, part: _Part, change: Tensor, genomes: Tensor) -> Tensor:
        """(g, P) scores by the metric, from (P, g, L) scores without the offset."""
        if self._head.bias is not None and not self._metric.ranks_only:
            shift = genomes[..., -1] - self._head.bias[part.index][:, None]
            change = change + shift.T[:, :, None]
        return part.score(change, offset=part.offset).T


def _differences(
    origin: Origin, n_features: int
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """What an offspring adds to one of its parents, of all features and, behind them, all noise.

    Returns:
        (B,) the order of the offspring, from few to many genes that differ; (K, B) in this order,
        the place of the parent: the second, or the first if most genes come from there; and for a
        few groups of offspring in this order, padded: (g, m) places of the genes that differ, the
        last that of the noise, and (g, K, m) by how much (0 where padded; for the noise 1 if the
        offspring mutates).
    """
    minor = origin.from_first[:, :n_features]
    like, other = origin.parents[..., 1], origin.parents[..., 0]
    if float(minor.float().mean()) > 0.5:
        minor, like, other = ~minor, other, like
    counts = minor.sum(1)
    order = counts.argsort(stable=True)
    sorted_genes = minor.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    n_categories, size, n_genes = origin.before.shape
    flat, first = origin.before.flatten(), torch.arange(n_categories, device=order.device) * size
    groups = []
    for own in order.tensor_split(_GROUPS):
        if not len(own):
            continue
        genes = sorted_genes[own, : max(int(counts[own[-1]]), 1)]
        at = [((p[:, own].T + first) * n_genes)[:, :, None] + genes[:, None] for p in (other, like)]
        differ = (flat.take(at[0]) - flat.take(at[1])) * minor[own].gather(1, genes)[:, None]
        noise, mutates = n_features + own[:, None], origin.mutates[:, own].T[:, :, None]
        groups.append(
            (torch.cat([genes, noise], 1), torch.cat([differ, mutates.to(differ.dtype)], 2))
        )
    return order, like[:, order], groups
