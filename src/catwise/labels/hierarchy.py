"""What follows from labels where categories are kinds of one another: a dog is an animal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from catwise.errors import LabelError
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, Codes, Rows
from catwise.labels.core import PartialLabels

SHOWN: Final = 1000


class Conflict(NamedTuple):
    """Two known labels of one image that cannot both hold."""

    image: str  # its id, or the number of its row
    positive: str  # the category that is positive
    negative: str  # an ancestor of it that is negative


class Expanded(NamedTuple):
    """Labels with what follows from them.

    Attributes:
        labels: as they were, and what was unknown or uncertain and follows from known labels.
        n_positive: how many labels became positive.
        n_negative: how many became negative.
        conflicts: pairs of known labels that contradict one another, at most 1,000 of them.
        n_conflicts: how many labels are known negatives of categories with a known positive kind.
    """

    labels: PartialLabels
    n_positive: int
    n_negative: int
    conflicts: list[Conflict]
    n_conflicts: int


@dataclass(frozen=True)
class Hierarchy:
    """Which categories are kinds of which.

    Attributes:
        ancestors: of each category, all that it is a kind of, in any number of steps.

    >>> Hierarchy.of([("dog", "animal"), ("animal", "thing")]).ancestors["dog"] == {
    ...     "animal",
    ...     "thing",
    ... }
    True
    """

    ancestors: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Hierarchy:
        """Build it from (child, parent) pairs; a child may have several parents.

        Raises:
            LabelError: If a category is a kind of itself.
        """
        parents: dict[str, set[str]] = defaultdict(set)
        for child, parent in pairs:
            parents[child].add(parent)
        found: dict[str, frozenset[str]] = {}
        for name in list(parents):
            _climb(name, parents, found)
        return cls(found)

    def apply(self, labels: PartialLabels) -> Expanded:
        """Add what follows from known labels.

        A known positive makes its ancestors positive, a known negative its descendants negative,
        where these are unknown or uncertain. Known labels never change; where two of them
        contradict one another they are listed, and what follows from both is left as it was.

        Args:
            labels: (N, C); categories that are not in the hierarchy stay as they are.

        Raises:
            LabelError: If the hierarchy relates no two of the categories.

        >>> labels = PartialLabels([[1, -1, -1], [-1, 0, -1]], categories=["dog", "animal", "car"])
        >>> found = Hierarchy.of([("dog", "animal")]).apply(labels)
        >>> found.labels.codes.tolist(), found.n_positive, found.n_negative
        ([[1, 1, -1], [0, 0, -1]], 1, 1)
        """
        above = self._above(labels)
        below: dict[int, list[int]] = defaultdict(list)
        for child, parents in above.items():
            for parent in parents:
                below[parent].append(child)
        known = {j: _Known.of(labels, j) for j in {*above, *below}}
        columns, n_new, conflicts, n_conflicts = [], [0, 0], list[Conflict](), 0
        for j in range(labels.n_categories):
            rows, codes = labels.entries(j)
            if j in known:
                up = _union(known[k].positive for k in below.get(j, []))
                down = _union(known[k].negative for k in above.get(j, []))
                wrong = np.intersect1d(up, known[j].negative, assume_unique=True)
                n_conflicts += len(wrong)
                kinds = {k: known[k].positive for k in below.get(j, [])}
                conflicts += _listed(labels, wrong[: SHOWN - len(conflicts)], j, kinds)
                rows, codes, added = known[j].with_what_follows(up, down)
                n_new = [a + b for a, b in zip(n_new, added, strict=True)]
            columns.append((rows, codes))
        made = PartialLabels.from_columns(
            columns,
            labels.n_rows,
            labels.categories,
            ids=labels.ids,
            groups=labels.groups,
            storage=labels.storage,
        )
        return Expanded(made, n_new[0], n_new[1], conflicts, n_conflicts)

    def _above(self, labels: PartialLabels) -> dict[int, list[int]]:
        """The ancestors of each category among the categories, by position."""
        place = {name: j for j, name in enumerate(labels.categories)}
        above = {
            j: sorted(place[one] for one in self.ancestors.get(name, ()) if one in place)
            for name, j in place.items()
        }
        above = {j: parents for j, parents in above.items() if parents}
        if not above:
            raise LabelError(
                "the hierarchy relates no two of the categories.",
                found=f"categories such as {', '.join(map(repr, labels.categories[:3]))}; a "
                f"hierarchy of {', '.join(map(repr, list(self.ancestors)[:3])) or 'nothing'}",
                expected="the same names in both",
                remedy="name them alike: labels.rename_categories({…}) (--rename OLD=NEW)",
            )
        return above


def _climb(name: str, parents: Mapping[str, set[str]], found: dict[str, frozenset[str]]) -> None:
    """Find the ancestors of a category, those of its ancestors first; no recursion."""
    path = [name]
    while path:
        one = path[-1]
        ahead = [parent for parent in parents.get(one, ()) if parent not in found]
        if loop := set(ahead) & set(path):
            raise LabelError(
                f"the hierarchy makes {min(loop)!r} a kind of itself.",
                found=" < ".join([*path[path.index(min(loop)) :], min(loop)]),
                expected="parents that are no descendants",
            )
        if ahead:
            path.append(ahead[0])
            continue
        direct = parents.get(one, set())
        found[one] = frozenset(direct).union(*(found[parent] for parent in direct))
        path.pop()


class _Known(NamedTuple):
    """The labels of one category: rows ascend."""

    positive: Rows
    negative: Rows
    uncertain: Rows

    @classmethod
    def of(cls, labels: PartialLabels, j: int) -> _Known:
        rows, codes = labels.entries(j)
        return cls(*(rows[codes == code] for code in (POSITIVE, NEGATIVE, UNCERTAIN)))

    def with_what_follows(self, up: Rows, down: Rows) -> tuple[Rows, Codes, tuple[int, int]]:
        """Rows and codes, with positives and negatives that follow; and how many these are."""
        mine = np.union1d(self.positive, self.negative)
        both = np.intersect1d(up, down, assume_unique=True)
        new = [np.setdiff1d(rows, np.union1d(mine, both)) for rows in (up, down)]
        unsure = np.setdiff1d(self.uncertain, np.concatenate(new))
        parts = [
            (np.concatenate([self.positive, new[0]]), POSITIVE),
            (np.concatenate([self.negative, new[1]]), NEGATIVE),
            (unsure, UNCERTAIN),
        ]
        rows = np.concatenate([part for part, _ in parts])
        codes = np.repeat(
            np.array([code for _, code in parts], np.int8), [len(p) for p, _ in parts]
        )
        return rows, codes, (len(new[0]), len(new[1]))


def _union(parts: Iterable[Rows]) -> Rows:
    """The rows that are in any of several lists."""
    every = [*parts]
    return np.unique(np.concatenate(every)) if every else np.empty(0, dtype=np.int64)


def _listed(labels: PartialLabels, rows: Rows, j: int, kinds: Mapping[int, Rows]) -> list[Conflict]:
    """Conflicts for people: the first kind of a category that is positive in each row."""
    first = np.full(len(rows), -1)
    for kind, positive in kinds.items() if len(rows) else ():
        first[(first < 0) & np.isin(rows, positive)] = kind
    names = rows if labels.ids is None else labels.ids[rows]
    return [
        Conflict(str(name), labels.categories[kind], labels.categories[j])
        for name, kind in zip(names.tolist(), first.tolist(), strict=True)
    ]
