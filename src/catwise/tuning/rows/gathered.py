"""A copy of its own known rows for every category, in groups padded to one length.

For very few known labels on a device with fast memory. What the copies take is counted by the same
grouping that makes them, so that a bound on them binds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_GROUP_SHARE = 0.8
_CHUNK_ENTRIES = 1 << 22


class Group(NamedTuple):
    """Categories with about as many known rows each.

    Attributes:
        columns: (g,) positions in the batch.
        rows: (g, L) int64, the known ones first, then others that pad.
        block: (g, L, D) copies of these rows.
    """

    columns: Tensor
    rows: Tensor
    block: Tensor


def group_by_length(counts: Tensor) -> list[tuple[int, list[int]]]:
    """Cut categories, longest first, into groups whose shortest is 80% of the longest.

    Returns:
        For each group its padded length and its categories in ascending order.
    """
    values = counts.tolist()
    groups: list[tuple[int, list[int]]] = []
    for c in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        if not groups or values[c] < _GROUP_SHARE * groups[-1][0]:
            groups.append((values[c], []))
        groups[-1][1].append(c)
    return [(length, sorted(members)) for length, members in groups]


def gathered_rows(counts: Tensor) -> int:
    """Rows that the copies for (C,) known labels take, padding included.

    >>> gathered_rows(torch.tensor([100, 10, 90, 9]))
    220
    """
    return sum(length * len(members) for length, members in group_by_length(counts))


@dataclass(frozen=True, eq=False)
class Gathered:
    """The copies of a batch of categories.

    Products have the places of (C, L), L the number of rows of the longest; what a category has
    not is zero.

    Args:
        groups: of the categories.
        length: L.
        n_categories: C.
        n_features: D.
    """

    groups: list[Group]
    length: int
    n_categories: int
    n_features: int

    @classmethod
    def build(
        cls, features: Tensor, known: Tensor, dtype: torch.dtype, *, max_places: int | None = None
    ) -> Gathered:
        """Copy the rows of (N, D) features that are known, (C, N) bool, to each category.

        A group has no more than `max_places` rows, unless it is of one category.
        """
        groups, counts, n_features = [], known.sum(1), features.shape[1]
        for length, members in group_by_length(counts):
            width = len(members) if max_places is None else max(1, max_places // max(1, length))
            for start in range(0, len(members), width):
                columns = torch.tensor(members[start : start + width], device=known.device)
                order = torch.argsort((~known[columns]).to(torch.int8), dim=1, stable=True)
                order = order[:, :length]
                block = features.new_empty((*order.shape, n_features), dtype=dtype)
                for copy, rows in zip(block, order, strict=True):
                    copy.copy_(features[rows])
                groups.append(Group(columns, order, block))
        return cls(groups, int(counts.max()) if len(counts) else 0, len(counts), n_features)

    @property
    def nbytes(self) -> int:
        """What the copies take."""
        return sum(group.block.nbytes for group in self.groups)

    def select_categories(self, keep: Tensor) -> Gathered:
        """The copies of some categories, given by ascending number (A,) or as a mask (C,).

        Groups of which all stay are shared.
        """
        keep = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        place = {int(old): new for new, old in enumerate(keep)}
        groups = []
        for columns, *parts in self.groups:
            numbers = columns.tolist()
            at = [i for i, c in enumerate(numbers) if c in place]
            if at:
                new = torch.tensor([place[numbers[i]] for i in at], device=columns.device)
                rows, block = (part if len(at) == len(part) else part[at] for part in parts)
                groups.append(Group(new, rows, block))
        return Gathered(groups, self.length, len(keep), self.n_features)

    def at(self, values: Tensor) -> Tensor:
        """(C, L) of (C, N) values at the rows of each category, known ones first."""
        places = values.new_zeros(len(values), self.length)
        for columns, rows, _ in self.groups:
            places[columns, : rows.shape[1]] = values[columns].gather(1, rows)
        return places

    def forward(self, weight: Tensor) -> Tensor:
        """(C, L) products of the copies with (C, D) weights."""
        places = weight.new_zeros(len(weight), self.length)
        for columns, rows, block in self.groups:
            found = torch.bmm(block, weight[columns][:, :, None]).squeeze(2)
            places[columns, : rows.shape[1]] = found
        return places

    def backward(self, slopes: Tensor) -> Tensor:
        """(C, D) sums over the copies of a category times their (C, L) slopes."""
        sums = slopes.new_zeros(len(slopes), self.n_features)
        for columns, rows, block in self.groups:
            part = slopes[columns, : rows.shape[1]]
            sums[columns] = torch.bmm(part[:, None], block).squeeze(1)
        return sums

    def squares(self, curvatures: Tensor) -> Tensor:
        """(C, D) sums over the squared copies of a category times their (C, L) curvatures."""
        sums = curvatures.new_zeros(len(curvatures), self.n_features)
        for columns, rows, block in self.groups:
            part = curvatures[columns, : rows.shape[1]]
            width = max(1, _CHUNK_ENTRIES // max(1, block[0].numel()))  # squares are few at a time
            pieces = zip(torch.split(part, width), torch.split(block, width), strict=True)
            sums[columns] = torch.cat([torch.bmm(p[:, None], b.square()) for p, b in pieces])[:, 0]
        return sums
