"""A metric of whole populations of head rows on known labels, as fast as it goes.

For K categories with P individuals each, (K, P, G) genomes ``[w, b]`` or ``[w]``, scores are
``offset + (w − w0) · x`` on the category's known rows, where `offset` are the logits of the
first head (w0, b0). Written so, the product holds only what has changed: it may run in
bfloat16, whose rounding is then relative to the change and not to the logits.

Cost of one call, with n known rows a category: ``2 K P n D`` operations for the scores, one
sort of n numbers and a binary search of its positives for each individual. The bias of an
individual shifts all its scores alike: it is left out where the metric only ranks.

Rows are shared by all categories where most of their labels are known (one matrix product),
and gathered category by category where few are, padded to groups of like length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from catwise.metrics import METRICS, Metric
from catwise.metrics.ranking import RankingPlan
from catwise.tuning.regimes import group_by_length

if TYPE_CHECKING:
    from catwise.tuning.columns import HeadColumns

__all__ = ["PopulationFitness", "gathered_size"]

_BLOCK_ENTRIES = 1 << 24
_SHARED_FROM = 0.7


def gathered_size(codes: Tensor) -> int:
    """Rows that gathering would copy, padding included, for (K, N) codes."""
    groups = group_by_length((codes >= 0).sum(1))
    return sum(length * len(members) for length, members in groups)


@dataclass(frozen=True, eq=False)
class _Part:
    """Categories whose rows have one length.

    Attributes:
        index: (g,) positions in the population.
        x: (N, D) shared or (g, L, D) gathered features, in the product's precision.
        offset: (g, L) logits of the first head.
        codes: (g, L) int8; −1 where padded.
        plan: for metrics that have one.
    """

    index: Tensor
    x: Tensor
    offset: Tensor
    codes: Tensor
    plan: RankingPlan | None


class PopulationFitness:
    """A metric of (K, P, G) genomes on each category's known rows.

    Args:
        features: (N, D) floating.
        codes: (K, N) int8; 1 positive, 0 negative, all else is not known here.
        head: the first head: (K, D) weights and (K,) biases, or None.
        metric: what is computed.
        population_size: P; blocks of categories are cut so that a block of scores stays bounded.
        product: precision of the matrix product; the head's if None.

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
        self._entries = max(_BLOCK_ENTRIES // population_size, 1)
        self.shared = gathered_size(codes) >= _SHARED_FROM * codes.numel()
        self._parts = (self._share if self.shared else self._gather_all)(features, codes)
        self.multiply_adds = sum(p.offset.numel() for p in self._parts) * features.shape[1]

    def _share(self, features: Tensor, codes: Tensor) -> list[_Part]:
        rows = (codes >= 0).any(0)
        x, codes = features[rows].to(self._head.weight.dtype), codes[:, rows].contiguous()
        offset = (x @ self._head.weight.T).T.contiguous()
        if self._head.bias is not None:
            offset += self._head.bias[:, None]
        x = x.to(self._product)
        width = max(1, self._entries // max(codes.shape[1], 1))
        every = torch.arange(len(codes), device=x.device)
        blocks = [every[start : start + width] for start in range(0, len(codes), width)]
        return [_Part(b, x, offset[b], codes[b], self._plan(codes[b])) for b in blocks]

    def _gather_all(self, features: Tensor, codes: Tensor) -> list[_Part]:
        parts = []
        for length, members in group_by_length((codes >= 0).sum(1)):
            width = max(1, self._entries // max(length, 1))
            for start in range(0, len(members), width):
                cut = members[start : start + width]
                parts.append(self._gather(features, codes, cut, max(length, 1)))
        return parts

    def _gather(self, features: Tensor, codes: Tensor, members: list[int], length: int) -> _Part:
        index = torch.tensor(members, device=codes.device)
        part = codes[index]
        order = (part < 0).to(torch.int8).argsort(dim=1, stable=True)[:, :length]
        picked = part.gather(1, order).clamp_min(-1)
        dtype = self._head.weight.dtype
        x = features.new_empty((len(members), length, features.shape[1]), dtype=self._product)
        offset = features.new_empty((len(members), length), dtype=dtype)
        for i, rows in enumerate(order):
            own = features[rows].to(dtype)
            torch.mv(own, self._head.weight[members[i]], out=offset[i])
            x[i].copy_(own)
        if self._head.bias is not None:
            offset += self._head.bias[index, None]
        return _Part(index, x, offset, picked, self._plan(picked))

    def take(self, keep: Tensor) -> PopulationFitness:
        """The fitness of some categories, by (k,) ascending positions."""
        new = object.__new__(PopulationFitness)
        new._head, new._metric = self._head.take(keep), self._metric
        new._product, new._entries = self._product, self._entries
        new.shared, new.multiply_adds = self.shared, self.multiply_adds
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
        x = part.x if self.shared else part.x[at]
        return _Part(index, x, part.offset[at], codes, self._plan(codes))

    def _plan(self, codes: Tensor) -> RankingPlan | None:
        planned = METRICS["average_precision"], METRICS["auroc"]
        return RankingPlan(codes) if self._metric in planned else None

    def __call__(self, population: Tensor) -> Tensor:
        """(K, P) float64 scores of (K, P, G) genomes; NaN where a class is not known."""
        result = torch.empty(population.shape[:2], dtype=torch.float64, device=population.device)
        for part in self._parts:
            result[part.index] = self._score(part, population[part.index])
        return result

    def _score(self, part: _Part, population: Tensor) -> Tensor:
        """(g, P) scores of one block."""
        n_features = part.x.shape[-1]
        head = self._head
        delta = population[..., :n_features] - head.weight[part.index][:, None]
        delta = delta.to(self._product)
        if self.shared:
            scores = (delta.flatten(0, 1) @ part.x.T).view(*delta.shape[:2], -1)
        else:
            scores = torch.bmm(delta, part.x.mT)
        if part.plan is not None:
            by_individual = scores.transpose(0, 1)
            if self._metric is METRICS["auroc"]:
                return part.plan.auroc(by_individual, offset=part.offset).T
            return part.plan.average_precision(by_individual, offset=part.offset).T
        logits = scores + part.offset[:, None]
        if head.bias is not None:
            logits += (population[..., n_features] - head.bias[part.index][:, None])[..., None]
        return self._metric.columns(logits, part.codes[:, None].expand(logits.shape))
