"""Which rows may judge a candidate, and by which logits.

A head that fitted a row, or was chosen by it, looks too good on it. A candidate is judged

- on rows that neither fitted nor chose it: by its own logits;
- on rows that fitted it, where it is a run that was cross-fitted: by the logits of the run's head
  that was fitted without the row's fold;
- on other rows that fitted it: not at all;
- on all rows, with a note, where nobody knows what fitted it.

The logits of a run's heads are put on one scale by all rows, as `tune` does for its own account
(:mod:`catwise.tuning.choice.gains`), so that all rows that judge are scored together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from catwise.errors import HeadError
from catwise.heads import Head
from catwise.joining import Aligned, has_default_names, seen_rows
from catwise.metrics import Metric
from catwise.tuning.account.results import FoldArtifacts
from catwise.tuning.choice.gains import on_one_scale

OWN_PART = 0
"""The part of the rows that the head itself has not seen."""


class UnseenRows(NamedTuple):
    """How a candidate is judged."""

    # (N,) int16; `OWN_PART`: by the head's own logits; 1 … F: by those of a fold's head; −1: not
    # at all
    part: NDArray[np.int16]
    # F heads of C categories, each fitted without a fold; none without a run
    fold_heads: tuple[Head, ...] = ()
    # (C,) whether the fold heads have the category; None without a run
    is_crossed: NDArray[np.bool_] | None = None
    # (N, C) float32 out-of-fold logits as the run has them, NaN where it has none; None without a
    # run
    stored: NDArray[np.float32] | None = None
    n_seen: int = 0  # rows that fitted or chose the head
    is_known: bool = True  # whether it is known which rows did

    @property
    def n_left_out(self) -> int:
        """Rows that may not judge it."""
        return int((self.part < 0).sum())

    @property
    def crossed(self) -> NDArray[np.bool_]:
        """(N,) whether a fold's head judges."""
        return np.asarray(self.part > OWN_PART)

    def judging(
        self,
        own: torch.Tensor,
        by_fold: Sequence[torch.Tensor],
        index: NDArray[np.int64],
        metric: Metric,
    ) -> torch.Tensor:
        """Logits by which rows judge, NaN where they may not; on one scale where heads are mixed.

        Shapes:
            own: (N, B) logits of the head.
            by_fold: F of (N, B), of the fold heads.
            index: (B,) the categories.
        """
        if not self.part.any():
            return own
        crossed = torch.from_numpy(self.crossed)
        out = on_one_scale(own.T, metric).T.contiguous() if self.fold_heads else own.clone()
        for fold, logits in enumerate(by_fold, OWN_PART + 1):
            rows = torch.from_numpy(np.flatnonzero(self.part == fold))
            out[rows] = on_one_scale(logits.T, metric).T[rows]
        if self.is_crossed is not None:
            out[crossed[:, None] & torch.from_numpy(~self.is_crossed[index])] = torch.nan
        out[torch.from_numpy(self.part < 0)] = torch.nan
        return out

    def apart(self, by_fold: Sequence[torch.Tensor], index: NDArray[np.int64]) -> float:
        """Distance of the fold heads' logits from the stored ones, in standard deviations.

        The median over the rows, in the category where it is largest.

        Args:
            by_fold: F of (N, B), of the fold heads.
            index: (B,) the categories.

        Returns:
            NaN where nothing is stored.
        """
        if self.stored is None or not self.crossed.any():
            return math.nan
        stored = self.stored[:, index]
        found = np.full(stored.shape, np.nan, dtype=np.float32)
        for fold, logits in enumerate(by_fold, OWN_PART + 1):
            found[self.part == fold] = logits.numpy()[self.part == fold]
        known = ~np.isnan(stored)
        away = np.abs(found - stored)[:, known.any(axis=0)]
        if not away.size:
            return math.nan
        return float(np.nanmedian(away, axis=0).max() / max(float(stored[known].std()), 1e-30))

    def described(self) -> str:
        """What judges it, for people."""
        n, crossed = self.part.size, int(self.crossed.sum())
        own = n - crossed - self.n_left_out
        how = "that it has not seen" if self.is_known else "that may have fitted it"
        by = [f"{own:,} validation rows {how}"] if own else []
        by += [f"out-of-fold logits of {crossed:,} validation rows"] if crossed else []
        if not by:
            return (
                f"nothing: all {n:,} validation rows fitted or chose it, and it brings no "
                "out-of-fold logits of them"
            )
        left_out = self.n_left_out
        return " and ".join(by) + (f"; {left_out:,} others fitted or chose it" if left_out else "")


def unseen_rows(
    head: Head,
    folds: FoldArtifacts | None,
    aligned: Aligned,
    digests: NDArray[np.uint64],
    ids: NDArray[np.str_] | None,
) -> UnseenRows:
    """Find how a candidate may be judged.

    Rows of the folds are joined by id where both sides have ids. Where one side has none they are
    joined by position, if every row fitted the head and there are as many.

    Shapes:
        aligned: of the labels (N, C) that judge.
        digests: (N,) of the rows.
        ids: (N,) or None.
    """
    part = np.zeros(digests.size, dtype=np.int16)
    seen, is_known = seen_rows(head, digests)
    if seen.any() and not is_known:
        seen[:] = True  # the others cannot be kept apart from these
    place = None if folds is None else _places(folds, ids, seen)
    if folds is None or place is None:
        part[seen] = -1
        return UnseenRows(part, n_seen=int(seen.sum()), is_known=is_known)
    crossed = place >= 0
    part[seen & ~crossed] = -1
    fold = folds.fold[place[crossed]].astype(np.int16)
    part[crossed] = np.where((fold >= 0) & (fold < len(folds.weight)), 1 + fold, -1)
    columns = _columns(folds.categories, aligned)
    stored = np.full((digests.size, len(columns)), np.nan, dtype=np.float32)
    known = columns >= 0
    stored[np.ix_(crossed, known)] = folds.logits[np.ix_(place[crossed], columns[known])]
    heads = _fold_heads(folds, head, np.maximum(columns, 0))
    return UnseenRows(part, heads, known, stored, int((seen | crossed).sum()), is_known)


def _fold_heads(folds: FoldArtifacts, head: Head, columns: NDArray[np.int64]) -> tuple[Head, ...]:
    """Rows of the folds' heads."""
    n_features = folds.weight.shape[-1]
    if n_features != head.n_features or (head.bias is None and folds.bias is not None):
        raise HeadError(
            "the fold heads of a run do not fit its head.",
            found=f"{n_features:,} features, {'no' if folds.bias is None else 'a'} bias",
            expected=f"{head.n_features:,} features, {'no' if head.bias is None else 'a'} bias",
            remedy="the head and the folds of one run",
        )
    at = torch.from_numpy(columns)
    return tuple(
        Head(one.weight[at], None if one.bias is None else one.bias[at]) for one in folds.heads
    )


def _places(
    folds: FoldArtifacts, ids: NDArray[np.str_] | None, seen: NDArray[np.bool_]
) -> NDArray[np.int64] | None:
    """(N,) row of the folds for each row, −1 where there is none; None if they cannot be joined."""
    if folds.ids is None or ids is None:
        return np.arange(seen.size) if seen.all() and folds.fold.size == seen.size else None
    have = np.asarray(folds.ids).astype(str)
    order = np.argsort(have, kind="stable")
    found = order[np.minimum(np.searchsorted(have, ids, sorter=order), have.size - 1)]
    return np.asarray(np.where(have[found] == ids, found, -1))


def _columns(have: tuple[str, ...], aligned: Aligned) -> NDArray[np.int64]:
    """(C,) column of the folds for each category of the labels; −1 where there is none."""
    wanted = aligned.categories
    if has_default_names(have) or has_default_names(wanted):
        n = len(wanted) if len(have) == len(wanted) else 0
        return np.where(np.arange(len(wanted)) < n, np.arange(len(wanted)), -1)
    place = {name: column for column, name in enumerate(have)}
    return np.array([place.get(name, -1) for name in wanted], dtype=np.int64)
