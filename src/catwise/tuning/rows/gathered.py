"""A copy of its own known rows for every category, in groups padded to one length.

For very few known labels on a device with fast memory. What the copies take is counted by the same
grouping that makes them, so that a bound on them binds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Gathered", "Group", "gathered_rows", "group_by_length"]

_BUCKET_SHARE = 0.8
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
        if not groups or values[c] < _BUCKET_SHARE * groups[-1][0]:
            groups.append((values[c], []))
        groups[-1][1].append(c)
    return [(length, sorted(members)) for length, members in groups]


def gathered_rows(counts: Tensor) -> int:
    """Rows that the copies for (C,) known labels take, padding included.

    >>> gathered_rows(torch.tensor([100, 10, 90, 9]))
    220
    """
    return sum(length * len(members) for length, members in group_by_length(counts))


class Gathered:
    """The copies of a batch of categories.

    Products have the places of (C, L), L the number of rows of the longest; what a category has
    not is zero.

    Args:
        groups: of the categories.
        length: L.
    """

    def __init__(self, groups: list[Group], length: int) -> None:
        self.groups, self.length = groups, length

    @classmethod
    def build(cls, features: Tensor, known: Tensor, dtype: torch.dtype) -> Gathered:
        """Copy the rows of (N, D) features that are known, (C, N) bool, to each category."""
        groups, counts = [], known.sum(1)
        for length, members in group_by_length(counts):
            columns = torch.tensor(members, device=known.device)
            order = torch.argsort((~known[columns]).to(torch.int8), dim=1, stable=True)
            order = order[:, :length]
            block = features.new_empty((*order.shape, features.shape[1]), dtype=dtype)
            for copy, rows in zip(block, order, strict=True):
                copy.copy_(features[rows])
            groups.append(Group(columns, order, block))
        return cls(groups, int(counts.max()))

    @property
    def nbytes(self) -> int:
        """What the copies take."""
        return sum(group.block.nbytes for group in self.groups)

    def take(self, keep: Tensor) -> Gathered:
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
        return Gathered(groups, self.length)

    def forward(self, features: Tensor, weight: Tensor) -> Tensor:
        """(C · L,) products of the copies with (C, D) weights; `features` are in the copies."""
        del features
        places = weight.new_zeros(len(weight), self.length)
        for columns, rows, block in self.groups:
            found = torch.bmm(block, weight[columns][:, :, None]).squeeze(2)
            places[columns, : rows.shape[1]] = found
        return places.flatten()

    def backward(self, features: Tensor, slopes: Tensor) -> Tensor:
        """(C, D) sums over the copies of a category times their (C · L,) slopes."""
        places = slopes.view(-1, self.length)
        sums = slopes.new_zeros(len(places), features.shape[1])
        for columns, rows, block in self.groups:
            part = places[columns, : rows.shape[1]]
            sums[columns] = torch.bmm(part[:, None], block).squeeze(1)
        return sums

    def squares(self, features: Tensor, curvatures: Tensor) -> Tensor:
        """(C, D) sums over the squared copies of a category times their (C · L,) curvatures."""
        places = curvatures.view(-1, self.length)
        sums = curvatures.new_zeros(len(places), features.shape[1])
        for columns, rows, block in self.groups:
            part = places[columns, : rows.shape[1]]
            width = max(1, _CHUNK_ENTRIES // max(1, block[0].numel()))  # squares are few at a time
            pieces = zip(torch.split(part, width), torch.split(block, width), strict=True)
            sums[columns] = torch.cat([torch.bmm(p[:, None], b.square()) for p, b in pieces])[:, 0]
        return sums
