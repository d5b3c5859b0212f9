"""Rows assigned to parts: named splits and folds, groups whole, known labels spread evenly.

Splits: every category gives two strata, its known positives and its known negatives, and the rows
are one more. Rows or groups are assigned one after the other, those that hold the rarest stratum
first. Each goes to the split that it leaves closest to the shares, by the sum over its strata of
(what the split has − what it should have)² / what it should have. With one stratum this is the
apportionment of Sainte-Laguë. A split with the same seed stays the same: papers name them.

Folds are made again in every run, of equal size, and have to be quick: a category's positives are
what is scarce, so they are assigned first, the rarest category before the others, each to the
folds that have least of it; rows without a known positive fill up the folds. Of the parts that
score a nested choice there are hundreds: rows are lined up by their rarest positive and assigned in
turn.

Source: Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD
2011, for assigning the rarest labels first; here over known labels, and for groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._splitmix import STEP, mix
from catwise.errors import ConfigError
from catwise.labels.codes import Rows
from catwise.labels.core import PartialLabels
from catwise.labels.draws import category_keys, draws, row_keys, text_keys

BLOCK_ENTRIES: Final = 1 << 23
SUM_TOLERANCE: Final = 1e-6


def split_labels(
    labels: PartialLabels,
    shares: Mapping[str, float] | Sequence[float] | Sequence[tuple[str, float]],
    *,
    seed: int = 0,
) -> NDArray[np.str_]:
    """Give every row a split.

    Rows of one group are never split. Only known labels count: unknown and uncertain ones are in
    no stratum. The result depends on the seed, the labels, the names of the groups and, for rows
    without groups, the ids; where rows have one of both, neither the order of rows nor that of
    categories changes it.

    Args:
        labels: (N, C).
        shares: name → share of the rows, as a mapping or as pairs; bare numbers are named "0",
            "1", …. They are above 0 and their sum is 1.
        seed: another one gives another split.

    Returns:
        (N,) names of the splits.

    Raises:
        ConfigError: If shares or seed cannot be used, there are fewer rows or groups than splits,
            or so few that a split would be left empty.

    >>> from catwise.labels import PartialLabels
    >>> labels = PartialLabels(np.eye(10, 2, dtype=np.int8), groups=[i // 2 for i in range(10)])
    >>> split_labels(labels, {"train": 0.6, "test": 0.4})[::2]
    array(['train', 'train', 'test', 'test', 'train'], dtype='<U5')
    """
    names, share = _checked_shares(shares)
    key = category_keys(seed, "split_labels", [""])[0]
    unit, keys = _units(labels)
    n_units = len(keys)
    if n_units < len(names):
        raise _too_few(labels, n_units, names, f"at least {len(names)}: one for each split")
    labels = _in_order_of_names(labels)
    totals = _totals(labels)
    order = _order(labels, totals, unit, draws(keys, key))
    place = np.empty(n_units, dtype=np.int64)
    place[order] = np.arange(n_units)
    assigned = np.empty(n_units, dtype=np.int64)
    assigned[order] = _assign(labels, totals, place[unit], share)
    sizes = np.bincount(assigned, minlength=len(names))
    if not sizes.all():
        empty = names[int(np.argmin(sizes))]
        raise _too_few(labels, n_units, names, f"enough to leave something for {empty!r}")
    split: NDArray[np.str_] = np.array(names)[assigned[unit]]
    return split


def _checked_shares(shares: Any) -> tuple[list[str], NDArray[np.float64]]:
    if isinstance(shares, Mapping):
        pairs = list(shares.items())
    elif isinstance(shares, (list, tuple, np.ndarray)):
        named = [isinstance(item, (list, tuple)) for item in shares]
        pairs = [
            tuple(item) if named[i] else (str(i), item)
            for i, item in enumerate(shares)
            if all(named) or not any(named)
        ]
    else:
        pairs = []
    good = (
        bool(pairs)
        and all(len(pair) == 2 for pair in pairs)
        and all(isinstance(name, str) and name.strip() for name, _ in pairs)
        and len({name for name, _ in pairs}) == len(pairs)
        and all(_is_share(share) for _, share in pairs)
    )
    if not good:
        raise _bad_shares(repr(shares))
    share = np.array([float(share) for _, share in pairs])
    if abs(share.sum() - 1) > SUM_TOLERANCE:
        raise _bad_shares(f"{shares!r}, whose sum is {share.sum():g}")
    return [name for name, _ in pairs], share / share.sum()


def _is_share(share: Any) -> bool:
    number = isinstance(share, (int, float, np.integer, np.floating))
    return number and not isinstance(share, bool) and 0 < float(share) <= 1


def _bad_shares(found: str) -> ConfigError:
    return ConfigError(
        "the shares of the splits cannot be used.",
        found=found,
        expected="different names, each with a share above 0, and shares whose sum is 1",
        remedy='shares={"train": 0.7, "valid": 0.1, "test": 0.2} '
        "(--share train=0.7 --share valid=0.1 --share test=0.2)",
    )


def _too_few(labels: PartialLabels, n_units: int, names: list[str], expected: str) -> ConfigError:
    what = "rows" if labels.groups is None else "groups"
    return ConfigError(
        f"there are too few {what} for these splits.",
        found=f"{n_units:,} {what} for {', '.join(map(repr, names))}",
        expected=expected,
        remedy="fewer splits or larger shares",
    )


def _units(labels: PartialLabels) -> tuple[Rows, NDArray[np.uint64]]:
    """The unit (row or group) of each row, and a key of each unit."""
    keys = row_keys(labels) if labels.groups is None else text_keys(np.unique(labels.groups))
    return labels.units(), keys


def _in_order_of_names(labels: PartialLabels) -> PartialLabels:
    """Categories in alphabetical order: sums of floats depend on it."""
    names = sorted(labels.categories)
    return labels if tuple(names) == labels.categories else labels.take_categories(names)


def _totals(labels: PartialLabels) -> NDArray[np.int64]:
    """(2 C,) rows of each stratum: negatives of category j at 2 j, positives at 2 j + 1."""
    counts = labels.counts()
    return np.stack([counts.negative, counts.positive], axis=1).ravel()


def _order(
    labels: PartialLabels, totals: NDArray[np.int64], unit: Rows, key: NDArray[np.uint64]
) -> Rows:
    """Units in the order of assignment: by size class, rarest stratum and key."""
    size = np.bincount(unit, minlength=len(key))
    rarest = np.full(len(key), len(totals), dtype=np.int64)
    by_rarity = np.argsort(totals, kind="stable")
    for rank in range(len(totals) - 1, -1, -1):
        j, code = divmod(int(by_rarity[rank]), 2)
        rows, positive = labels.known(j)
        rarest[unit[rows[positive == code]]] = rank
    size_class = np.frexp(size.astype(np.float64))[1]
    order: Rows = np.lexsort((key, rarest, -size_class))
    return order


class _Block(NamedTuple):
    """What some of the units hold, one unit after the other."""

    starts: list[int]  # of each unit in `strata`, and the end
    strata: Rows
    times: NDArray[np.float64] | None  # how often; None: once
    size: NDArray[np.int64]  # rows of each unit


def _blocks(labels: PartialLabels, place: Rows) -> Iterator[_Block]:
    """The units in the order of assignment, some million entries at a time."""
    size, width = np.bincount(place), max(2 * labels.n_categories, 1)
    held = _from_columns if labels.storage == "columns" else _from_dense
    for first, last, unit, strata in held(labels, place, np.cumsum(size)):
        edges = np.arange(last - first + 1)
        if labels.groups is None:
            yield _Block(np.searchsorted(unit, edges).tolist(), strata, None, size[first:last])
        else:
            packed, times = np.unique(unit * width + strata, return_counts=True)
            starts = np.searchsorted(packed, edges * width).tolist()
            yield _Block(starts, packed % width, times.astype(np.float64), size[first:last])


_Held = tuple[int, int, "Rows", "Rows"]  # units from … to, and their entries: unit and stratum


def _from_dense(labels: PartialLabels, place: Rows, ends: Rows) -> Iterator[_Held]:
    rows = np.argsort(place, kind="stable")
    labels = labels.take_rows(rows)
    for first, last in _ranges(ends, BLOCK_ENTRIES // max(labels.n_categories, 1)):
        start = int(ends[first - 1]) if first else 0
        codes = labels.block(start, int(ends[last - 1]))
        row, category = np.nonzero(codes >= 0)
        yield first, last, place[rows[start + row]] - first, 2 * category + codes[row, category]


def _from_columns(labels: PartialLabels, place: Rows, ends: Rows) -> Iterator[_Held]:
    """Sorts packed entries: never makes rows × categories."""
    columns, width = labels.as_columns(), 2 * labels.n_categories
    per_row = max(len(columns.rows) / len(place), 1)
    for first, last in _ranges(ends, int(BLOCK_ENTRIES / per_row)):
        packed = []
        for j in range(columns.n_columns):
            span = columns.span(j)
            unit, codes = place[columns.rows[span]], columns.codes[span]
            here = (codes >= 0) & (unit >= first) & (unit < last)
            packed.append((unit[here] - first) * width + 2 * j + codes[here].astype(np.int64))
        entries = np.sort(np.concatenate(packed))
        unit, strata = np.divmod(entries, width)
        yield first, last, unit, strata


def _ranges(ends: Rows, step: int) -> Iterator[tuple[int, int]]:
    """Units from … to that hold about `step` rows together, one at least."""
    first = 0
    while first < len(ends):
        start = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, start + step, "right"))
        yield first, max(last, first + 1)
        first = max(last, first + 1)


def _assign(
    labels: PartialLabels, totals: NDArray[np.int64], place: Rows, share: NDArray[np.float64]
) -> Rows:
    """The split of each unit, in the order of assignment."""
    weight = 1 / np.maximum(totals, 1)[:, None] / share  # (2 C, S)
    row_weight = 1 / labels.n_rows / share
    have = np.zeros(weight.shape)  # weight × what each split has of each stratum
    rows = np.zeros(len(share))
    assigned: list[int] = []
    for block in _blocks(labels, place):
        starts, strata, times, size = block
        for i, n in enumerate(size.tolist()):
            at = slice(starts[i], starts[i + 1])
            held = strata[at]
            step = weight.take(held, axis=0)
            if times is not None:
                step *= times[at, None]
            score = have.take(held, axis=0)
            score += 0.5 * step
            if times is not None:
                score *= times[at, None]
            score = score.sum(axis=0) + n * (rows + 0.5 * n * row_weight)
            s = int(score.argmin())
            have[held, s] += step[:, s]
            rows[s] += n * row_weight[s]
            assigned.append(s)
    return np.array(assigned, dtype=np.int64)


def assign_folds(
    labels: PartialLabels, *, n_folds: int = 5, seed: int = 0, digests: NDArray[np.uint64]
) -> NDArray[np.int8]:
    """(N,) int8 fold of each row, groups whole; the order of rows and categories changes nothing.

    `digests` (N,) uint64 are what each row is known by.
    """
    unit = labels.units()
    n_units = int(unit.max()) + 1 if unit.size else 0
    if not 2 <= n_folds <= min(100, n_units):
        raise ConfigError(
            "the rows cannot be assigned to that many folds.",
            found=f"{n_folds} folds, {n_units:,} rows or groups",
            expected="2 to 100 folds, and at least as many rows or groups",
        )
    key = np.zeros(n_units, dtype=np.uint64)
    np.bitwise_xor.at(key, unit, mix(digests + np.uint64(seed * int(STEP) % 2**64)))
    shuffled = np.argsort(key, kind="stable")
    place = np.empty(n_units, dtype=np.int64)
    place[shuffled] = np.arange(n_units)

    fold = np.full(n_units, -1, dtype=np.int64)
    known = [labels.known(c) for c in range(labels.n_categories)]
    held = [np.unique(unit[rows[positive]]) for rows, positive in known]
    order = sorted(range(len(held)), key=lambda c: (held[c].size, labels.categories[c]))
    sizes = np.zeros(n_folds, dtype=np.int64)
    for c in order:
        units = held[c]
        have = np.bincount(fold[units][fold[units] >= 0], minlength=n_folds)
        new = units[fold[units] < 0]
        new = new[np.argsort(place[new], kind="stable")]
        fold[new] = _fill(have, sizes, new.size)
        sizes += np.bincount(fold[new], minlength=n_folds)
    rest = shuffled[fold[shuffled] < 0]
    fold[rest] = _fill(sizes, sizes, rest.size)
    return fold[unit].astype(np.int8)


def _fill(have: NDArray[np.int64], sizes: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Folds for n units, so that the totals become as equal as can be; ties to small folds."""
    n_folds = have.size
    top = int(have.max(initial=0)) + n // n_folds + 1
    level = np.concatenate([np.arange(h, top) for h in have])
    owner = np.repeat(np.arange(n_folds), top - have)
    return owner[np.lexsort((owner, sizes[owner], level))[:n]]


def assign_parts(
    labels: PartialLabels, n_parts: int, *, splits: int, seed: int = 0
) -> NDArray[np.int8]:
    """(splits, N) part of each row in many random splits: groups whole, rare positives spread.

    Rows (or groups) are lined up by their rarest positive category (of equally rare ones the last
    by name), at random within one, and assigned in turn.
    """
    units = labels.units()
    n_units = int(units.max(initial=-1)) + 1
    rarest = np.full(n_units, labels.n_categories)
    by_rarity = np.lexsort((np.array(labels.categories), -labels.counts().positive))
    for rank, c in enumerate(by_rarity):
        rows, positive = labels.known(int(c))
        rarest[units[rows[positive]]] = labels.n_categories - 1 - rank
    parts = np.empty((splits, labels.n_rows), dtype=np.int8)
    for split in range(splits):
        rng = np.random.default_rng([seed, split])
        order = np.lexsort((rng.random(n_units), rarest))
        turn = np.empty(n_units, dtype=np.int64)
        turn[order] = np.arange(n_units) + rng.integers(n_parts)
        parts[split] = (turn % n_parts)[units]
    return parts
