"""One assignment of rows to folds for all categories: by group, stratified over partial labels.

A category's positives are what is scarce, so they are dealt first, the rarest category
before the others, each to the folds that have least of it; rows without a known positive
fill up the folds. Groups (patients) stay whole. The draw depends on the seed and on each
row's digest, not on the order of rows or categories.

Source: Sechidis, Tsoumakas & Vlahavas, On the Stratification of Multi-Label Data, ECML
PKDD 2011, for the order of dealing; here over known labels, a category at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from catwise.errors import ConfigError
from catwise.labels import PartialLabels
from catwise.metrics.intervals import Units

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def assign_folds(
    labels: PartialLabels, *, n_folds: int = 5, seed: int = 0, digests: NDArray[np.uint64]
) -> NDArray[np.int8]:
    """Deal rows to folds.

    Shapes:
        labels: (N, C); their groups stay together.
        digests: (N,) uint64, what each row is known by.

    Returns:
        (N,) int8 in 0 … n_folds − 1.
    """
    units_of = Units.of_labels(labels)
    unit, n_units = units_of.of_row, units_of.n_units
    if not 2 <= n_folds <= min(100, n_units):
        raise ConfigError(
            "the rows cannot be dealt to that many folds.",
            found=f"{n_folds} folds, {n_units:,} rows or groups",
            expected="2 to 100 folds, and at least as many rows or groups",
        )
    key = np.zeros(n_units, dtype=np.uint64)
    np.bitwise_xor.at(key, unit, _mixed(digests, seed))
    shuffled = np.argsort(key, kind="stable")
    place = np.empty(n_units, dtype=np.int64)
    place[shuffled] = np.arange(n_units)

    fold = np.full(n_units, -1, dtype=np.int64)
    known = (labels.known(c) for c in range(labels.shape[1]))
    held = [np.unique(unit[rows[positive]]) for rows, positive in known]
    order = sorted(range(len(held)), key=lambda c: (held[c].size, labels.categories[c]))
    sizes = np.zeros(n_folds, dtype=np.int64)
    for c in order:
        units = held[c]
        have = np.bincount(fold[units][fold[units] >= 0], minlength=n_folds)
        new = units[fold[units] < 0]
        new = new[np.argsort(place[new], kind="stable")]
        fold[new] = _deal(have, sizes, new.size)
        sizes += np.bincount(fold[new], minlength=n_folds)
    rest = shuffled[fold[shuffled] < 0]
    fold[rest] = _deal(sizes, sizes, rest.size)
    return fold[unit].astype(np.int8)


def _deal(have: NDArray[np.int64], sizes: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Folds for n units, so that the totals become as equal as can be; ties to small folds."""
    n_folds = have.size
    top = int(have.max(initial=0)) + n // n_folds + 1
    level = np.concatenate([np.arange(h, top) for h in have])
    owner = np.repeat(np.arange(n_folds), top - have)
    return owner[np.lexsort((owner, sizes[owner], level))[:n]]


def _mixed(digests: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Digests stirred with a seed (Steele, Lea & Flood, SplitMix, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = digests + np.uint64(seed % 2**64) * _GOLDEN + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        stirred: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return stirred
