"""Which rows may judge a candidate, and by which logits.

A head that fitted a row, or was chosen by it, looks too good on it. A candidate is judged

- on rows that neither fitted nor chose it: by its own logits;
- on rows that fitted it, where it is a run that was cross-fitted: by the run's out-of-fold
  logits, each made by a head that was fitted without the row's fold;
- on other rows that fitted it: not at all.

Logits of different heads are never compared with one another: rows are kept apart by the head that
made their logits, and a metric is taken inside such a part (Forman & Scholz, SIGKDD Explorations
12, 2010).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from catwise.joining import Aligned, has_default_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from catwise.heads import Head
    from catwise.tuning.results import FoldArtifacts

__all__ = ["OWN_PART", "UnseenRows", "unseen_rows"]

OWN_PART = 0
"""The part of the rows that the head itself has not seen."""


class UnseenRows(NamedTuple):
    """How a candidate is judged.

    Attributes:
        part: (N,) int16; `OWN_PART`: by the head's own logits; 1 … F: by those of a fold;
            −1: not at all.
        logits: (N, C) float32 out-of-fold logits, NaN where there are none; None without a run.
        n_seen: rows that fitted or chose the head.
    """

    part: NDArray[np.int16]
    logits: NDArray[np.float32] | None = None
    n_seen: int = 0

    @property
    def n_left_out(self) -> int:
        """Rows that may not judge it."""
        return int((self.part < 0).sum())

    def column(
        self, own: NDArray[Any], rows: NDArray[np.int64], c: int
    ) -> tuple[NDArray[Any], NDArray[np.int16]]:
        """Logits of some rows in one category, and their parts.

        Args:
            own: (n,) the head's own logits of these rows.
            rows: (n,) their numbers.
            c: the category.
        """
        part = self.part[rows]
        if self.logits is None:
            return own, part
        crossed = self.logits[rows, c]
        part = np.where((part > OWN_PART) & np.isnan(crossed), np.int16(-1), part)
        return np.where(part > OWN_PART, crossed, own).astype(own.dtype), part

    def told(self) -> str:
        """What judges it, for people."""
        n, crossed = self.part.size, int((self.part > OWN_PART).sum())
        own = n - crossed - self.n_left_out
        by = [f"{own:,} validation rows that it has not seen"] if own else []
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

    Out-of-fold logits are joined by id where both sides have ids. Where one side has none they are
    joined by position, if every row fitted the head and there are as many.

    Args:
        head: the candidate.
        folds: what cross-fitting left, or None.
        aligned: of the labels (N, C) that judge.
        digests: (N,) of the rows.
        ids: (N,) or None.
    """
    n_rows = digests.size
    part = np.zeros(n_rows, dtype=np.int16)
    seen = np.zeros(n_rows, dtype=bool)
    if head.fitted_on is not None:
        seen = np.isin(digests, head.fitted_on)
    place = None if folds is None else _places(folds, ids, seen)
    if folds is None or place is None:
        part[seen] = -1
        return UnseenRows(part, None, int(seen.sum()))
    crossed = place >= 0
    part[seen & ~crossed] = -1
    part[crossed] = 1 + folds.fold[place[crossed]].astype(np.int16)
    columns = _columns(folds.categories, aligned)
    logits = np.full((n_rows, len(columns)), np.nan, dtype=np.float32)
    known = columns >= 0
    logits[np.ix_(crossed, known)] = folds.logits[np.ix_(place[crossed], columns[known])]
    return UnseenRows(part, logits, int((seen | crossed).sum()))


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
