"""Folds: every row once, groups whole, positives spread, and nothing hangs on the order of rows."""

from __future__ import annotations

import numpy as np
import pytest

from catwise.errors import ConfigError
from catwise.features import row_digests
from catwise.labels import PartialLabels
from catwise.labels.partition import assign_folds


def table(rows=203, categories=6, *, share=0.15, known=0.7, seed=0, groups=None):
    """Partial labels with ids, and the digests of these."""
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random((rows, categories)) < share, 1, 0)
    codes = np.where(rng.random((rows, categories)) < known, codes, -1).astype(np.int8)
    ids = [f"image-{row}" for row in range(rows)]
    labels = PartialLabels(codes, ids=ids, groups=groups)
    return labels, row_digests(np.zeros((rows, 1)), ids=ids)


def spread(labels, fold, n_folds=5):
    """(F, C) known positives of each category in each fold."""
    return np.stack([(labels.codes[fold == f] == 1).sum(0) for f in range(n_folds)])


def test_every_row_has_one_fold_and_the_folds_are_level():
    """One assignment for all categories; sizes differ by little."""
    labels, digests = table()
    fold = assign_folds(labels, n_folds=5, seed=0, digests=digests)
    assert fold.shape == (203,)
    assert fold.dtype == np.int8
    sizes = np.bincount(fold, minlength=5)
    assert sizes.sum() == 203
    assert sizes.max() - sizes.min() <= 1


def test_positives_of_separate_categories_are_spread_as_evenly_as_can_be():
    """Where no row has two positives, a category's folds differ by at most one."""
    rng = np.random.default_rng(1)
    codes = np.zeros((240, 5), dtype=np.int8)
    taken = rng.permutation(240)
    start = 0
    for c, n in enumerate((3, 7, 22, 41, 68)):
        codes[taken[start : start + n], c] = 1
        start += n
    labels = PartialLabels(codes)
    fold = assign_folds(labels, seed=2, digests=row_digests(np.zeros((240, 1)), ids=range(240)))
    counts = spread(labels, fold)
    assert (counts.max(0) - counts.min(0) <= 1).all()


def test_overlapping_categories_stay_close_to_even():
    """The rarest category is spread exactly; the others by hardly more than that."""
    labels, digests = table(400, 8, share=0.2)
    counts = spread(labels, assign_folds(labels, seed=0, digests=digests))
    rarest = counts.sum(0).argmin()
    assert counts[:, rarest].max() - counts[:, rarest].min() <= 1
    assert (counts.max(0) - counts.min(0) <= 6).all()
    assert (counts > 0).all()


def test_only_known_positives_count():
    """Unknown and uncertain labels are no positives."""
    codes = np.full((50, 1), -1, dtype=np.int8)
    codes[:10] = 1
    codes[10:20] = -2
    labels = PartialLabels(codes)
    fold = assign_folds(labels, seed=0, digests=row_digests(np.zeros((50, 1)), ids=range(50)))
    assert spread(labels, fold)[:, 0].tolist() == [2] * 5


def test_groups_stay_whole():
    """All rows of a patient are in one fold, and the patients are spread."""
    groups = [f"patient-{row // 4}" for row in range(200)]
    labels, digests = table(200, groups=groups)
    fold = assign_folds(labels, seed=0, digests=digests)
    assert (fold.reshape(50, 4) == fold.reshape(50, 4)[:, :1]).all()
    assert np.bincount(fold).tolist() == [40] * 5


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_of_rows_and_categories_changes_nothing(grouped):
    """A row's fold hangs on its id, the labels and the seed alone."""
    groups = [f"patient-{row // 3}" for row in range(201)] if grouped else None
    labels, digests = table(201, groups=groups)
    fold = assign_folds(labels, seed=3, digests=digests)
    rng = np.random.default_rng(4)
    rows, columns = rng.permutation(201), rng.permutation(6)
    moved = assign_folds(labels.take_rows(rows), seed=3, digests=digests[rows])
    assert np.array_equal(moved, fold[rows])
    turned = labels.take_categories([int(c) for c in columns])
    assert np.array_equal(assign_folds(turned, seed=3, digests=digests), fold)


def test_the_seed_draws_the_folds():
    """The same seed gives the same folds, another one others; negative and huge seeds too."""
    labels, digests = table()
    drawn = [
        assign_folds(labels, seed=seed, digests=digests) for seed in (0, 0, 1, -1, 2**64, 2**70 + 5)
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[4])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[3])
    assert not np.array_equal(drawn[0], drawn[5])


def test_without_any_positive_the_folds_are_still_level():
    """Rows without a known positive fill up the folds."""
    labels = PartialLabels(np.zeros((23, 2), dtype=np.int8))
    fold = assign_folds(
        labels, n_folds=4, seed=0, digests=row_digests(np.zeros((23, 1)), ids=range(23))
    )
    assert sorted(np.bincount(fold).tolist()) == [5, 6, 6, 6]


@pytest.mark.parametrize(("rows", "n_folds", "groups"), [(4, 5, 4), (30, 5, 3), (30, 1, 30)])
def test_more_folds_than_rows_or_groups_are_refused(rows, n_folds, groups):
    """The message tells both numbers."""
    labels = PartialLabels(
        np.zeros((rows, 2), dtype=np.int8), groups=[f"g{row % groups}" for row in range(rows)]
    )
    digests = row_digests(np.zeros((rows, 1)), ids=range(rows))
    with pytest.raises(ConfigError, match=f"{n_folds} folds, {groups} rows or groups"):
        assign_folds(labels, n_folds=n_folds, digests=digests)
