"""Average precision and AUROC, exact with ties, for many categories at once.

Only the positives' ranks are needed: for each positive, count the positives and the
negatives that score at least as high. Three ways to the same numbers:

- :class:`RankingPlan` precomputes what depends on the labels alone and is then called
  for one set of scores after another (every epoch, every generation);
- :func:`average_precision_columns` and :func:`auroc_columns` take category-major scores
  with any leading dimensions, any device, and optional row weights;
- ``tests/reference`` holds the plain loop that both must equal.

Scores are ranked as given (half precision is widened exactly, never narrowed). What all kernels
take and give is said in :mod:`catwise.metrics`.

>>> import torch
>>> codes = torch.tensor([[1, 0, 1, -1]], dtype=torch.int8)
>>> scores = torch.tensor([[3.0, 2.0, 1.0, 9.0]])
>>> average_precision_columns(scores, codes)
tensor([0.8333], dtype=torch.float64)
>>> auroc_columns(scores, codes)
tensor([0.5000], dtype=torch.float64)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise.errors import ShapeError, check_rules
from catwise.metrics.inputs import (
    NEGATIVE,
    POSITIVE,
    Array,
    Entries,
    as_tensor,
    checked_prevalence,
    entries,
    in_order,
    restated,
    where_defined,
)

#: False-positive rate up to which the partial AUROC goes by default.
MAX_FPR = 0.1

#: Categories that one task ranks, and transposes where rows come first: a cache line of float32.
_BLOCK, _TRANSPOSED = 4, 16
#: Scores of a category, and of all, below which threads lose by waiting for one another.
_SERIAL_BELOW = 1 << 14, 1 << 20


def average_precision_columns(
    scores: Array,
    codes: Array,
    *,
    weight: Array | None = None,
    prevalence: float | Array | None = None,
) -> Tensor:
    """Average precision along the last dimension; tied scores are one threshold.

    ``AP = Σ_i w_i P(s_i) / Σ_i w_i`` over the known positives i, where
    ``P(s) = TP(s) / (TP(s) + FP(s))`` and TP, FP are the weights of the known positives and
    negatives that score at least s.

    Source: Zhu, "Recall, precision and average precision", Waterloo 2004; prevalence: Siblini
    et al., "Master your metrics with calibration", IDA 2020, eq. 4. Matches: scikit-learn.
    """
    score, code = as_tensor(scores), as_tensor(codes)
    if _is_plain(score, code, weight):
        plan, lifted = _planned(score, code)
        values = plan.average_precision(lifted, prevalence=_lifted(prevalence, code.ndim))
        return values if code.ndim == 2 else values.squeeze(-1)
    return _ap_from(accumulate(score, code, weight), checked_prevalence(prevalence, score.device))


def auroc_columns(
    scores: Array,
    codes: Array,
    *,
    weight: Array | None = None,
    prevalence: float | Array | None = None,
) -> Tensor:
    """Area under the ROC curve along the last dimension; a tie counts half.

    ``AUROC = Σ_i Σ_j w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (Σ_i w_i Σ_j w_j)`` over known
    positives i and known negatives j. The prevalence is checked, and changes nothing.

    Source: Hanley & McNeil, "The meaning and use of the area under a ROC curve", Radiology
    143, 1982. Matches: scikit-learn.
    """
    score, code = as_tensor(scores), as_tensor(codes)
    checked_prevalence(prevalence, score.device)
    if _is_plain(score, code, weight):
        plan, lifted = _planned(score, code)
        values = plan.auroc(lifted)
        return values if code.ndim == 2 else values.squeeze(-1)
    return _auroc_from(accumulate(score, code, weight))


def partial_auroc_columns(
    scores: Array, codes: Array, *, weight: Array | None = None, max_fpr: float = MAX_FPR
) -> Tensor:
    """Area under the ROC curve up to a false-positive rate, standardised; chance is 0.5.

    ``(1 + (A − a) / (b − a)) / 2`` where A is the area from 0 to `max_fpr`, with straight
    lines between thresholds (so a tie counts half), ``a = max_fpr² / 2`` that of chance and
    ``b = max_fpr`` that of a perfect ranking.

    Source: McClish, "Analyzing a portion of the ROC curve", Medical Decision Making 9, 1989.
    Matches: scikit-learn.
    """
    check_rules(
        "options of a partial AUROC", {"max_fpr": max_fpr}, {"0 < max_fpr <= 1": 0 < max_fpr <= 1}
    )
    sums = accumulate(as_tensor(scores), as_tensor(codes), weight)
    n_positive, n_negative = sums.given.n_positive[..., None], sums.given.n_negative[..., None]
    if not sums.ranked.shape[-1]:
        return where_defined(sums.given.n_positive * torch.nan, sums.given)
    first, _ = tie_edges(sums.ranked)
    starts = first == torch.arange(first.shape[-1], device=first.device)
    above = torch.cat([torch.zeros_like(sums.true[..., :1]), sums.true[..., :-1]], -1)
    width = (sums.false - sums.false_above) / n_negative
    low, rise = above / n_positive, (sums.true - above) / n_positive
    covered = (max_fpr - sums.false_above / n_negative).clamp_min(0).minimum(width)
    slope = torch.where(width > 0, rise / width, 0.0)
    area = torch.where(starts, covered * (low + slope * covered / 2), 0.0).sum(-1)
    chance = max_fpr**2 / 2
    value = (1 + (area - chance) / (max_fpr - chance)) / 2 if max_fpr < 1 else area
    return where_defined(value, sums.given)


def _is_plain(score: Tensor, code: Tensor, weight: Array | None) -> bool:
    """Whether a plan can do it: no weights, and codes for the last axes of the scores."""
    return weight is None and code.ndim <= 2 and score.shape[score.ndim - code.ndim :] == code.shape


def _planned(score: Tensor, code: Tensor) -> tuple[RankingPlan, Tensor]:
    """A plan for (C, M) or (M,) codes, and the scores as it takes them."""
    if code.ndim == 2:
        return RankingPlan(code), score
    return RankingPlan(code[None]), score.unsqueeze(-2)


class _Column(NamedTuple):
    """What the labels of one category say: where its known rows and positives are."""

    known: NDArray[np.int64] | None  # None: every row is known, nothing to gather
    positives: NDArray[np.int64]  # rows of the known positives
    n_known: int
    place: NDArray[np.float64]  # 0, 1, … of the positives in their order


class _Counts(NamedTuple):
    """Known rows that score at least (`ge`), or more than (`gt`), each positive."""

    ge: NDArray[np.float64]
    gt: NDArray[np.float64]  # empty unless asked for
    positives_ge: NDArray[np.float64]  # empty when `gt` is asked for


class RankingPlan:
    """Ranking metrics for one set of labels and many sets of scores.

    The known rows and the positives of each category are found once. On the CPU every
    category is one `numpy.sort` of its known scores and a binary search of its positives,
    in threads over blocks of categories; on other devices all categories are one batch.
    The numbers depend on neither.

    Args:
        codes: (C, M) int8; 1 positive, 0 negative, all other codes are unknown. Copied. ShapeError
            if they have not two dimensions.
        n_threads: CPU threads; by default torch's (`torch.get_num_threads()`), or one where there
            is little to rank.

    Attributes:
        n_categories: C.
        n_rows: M.
        n_positive: (C,) int64, known positives.
        n_negative: (C,) int64, known negatives.
        defined: (C,) bool, True where both classes are known.

    >>> import numpy as np
    >>> plan = RankingPlan(np.array([[1, 0, 0], [1, -1, 1]], dtype=np.int8))
    >>> plan.auroc(np.array([[0.2, 0.1, 0.3], [1.0, 2.0, 3.0]])).tolist()
    [0.5, nan]
    """

    __slots__ = (
        "_codes",
        "_columns",
        "_on_device",
        "defined",
        "n_categories",
        "n_negative",
        "n_positive",
        "n_rows",
        "n_threads",
    )

    def __init__(self, codes: Array, *, n_threads: int | None = None) -> None:
        array = as_tensor(codes).cpu().numpy()
        if array.ndim != 2:
            raise ShapeError(
                "label codes of a ranking plan have the wrong number of dimensions",
                found=f"shape {tuple(array.shape)}",
                expected="(C, M): one row of codes per category",
            )
        positive, negative = array == POSITIVE, array == NEGATIVE
        self.n_categories, self.n_rows = (int(n) for n in array.shape)
        self.n_positive: NDArray[np.int64] = positive.sum(axis=1, dtype=np.int64)
        self.n_negative: NDArray[np.int64] = negative.sum(axis=1, dtype=np.int64)
        self.defined: NDArray[np.bool_] = (self.n_positive > 0) & (self.n_negative > 0)
        self.n_threads = n_threads
        self._codes = positive.astype(np.int8) - (~positive & ~negative).astype(np.int8)
        self._columns = [_column(row) for row in self._codes]
        self._on_device: dict[torch.device, _Batch] = {}

    def average_precision(
        self,
        scores: Array,
        *,
        prevalence: float | Array | None = None,
        rows_first: bool = False,
        offset: Tensor | None = None,
    ) -> Tensor:
        """Average precision of every category, as :func:`average_precision_columns`; (..., C).

        Args:
            scores: (..., C, M) float, or (..., M, C) with `rows_first`; else ShapeError.
            prevalence: share of positives to assume, a number or (C,), in (0, 1).
            rows_first: the scores are logits (..., M, C) as models give them.
            offset: (C, M) added to the scores before they are ranked, in its own precision.
        """
        score = self._scores(scores, offset, rows_first=rows_first)
        share = checked_prevalence(prevalence, score.device)
        if score.device.type != "cpu":
            return _ap_counts_batch(self._batch(score.device), score, share)
        shares = None if share is None else np.broadcast_to(share.numpy(), (self.n_categories,))

        def one(c: int, counts: _Counts) -> Any:
            share = None if shares is None else float(shares[c])
            return _ap_counts(counts, int(self.n_positive[c]), int(self.n_negative[c]), share)

        return self._each(score, one, offset, rows_first=rows_first)

    def auroc(
        self, scores: Array, *, rows_first: bool = False, offset: Tensor | None = None
    ) -> Tensor:
        """Area under the ROC curve of every category; all as :meth:`average_precision`."""
        score = self._scores(scores, offset, rows_first=rows_first)
        if score.device.type != "cpu":
            return _auroc_counts_batch(self._batch(score.device), score)

        def one(c: int, counts: _Counts) -> Any:
            return _auroc_counts(counts, int(self.n_positive[c]), int(self.n_negative[c]))

        return self._each(score, one, offset, rows_first=rows_first, strict=True)

    def _scores(self, scores: Array, offset: Tensor | None, *, rows_first: bool) -> Tensor:
        score = as_tensor(scores)
        shape = (self.n_categories, self.n_rows)
        wanted = shape[::-1] if rows_first else shape
        if tuple(score.shape[-2:]) != wanted:
            turned = tuple(score.shape[-2:]) == wanted[::-1]
            raise ShapeError(
                "scores do not fit the labels of this ranking plan",
                found=f"scores {tuple(score.shape)}",
                expected=f"(..., {wanted[0]}, {wanted[1]})",
                remedy=f"rows_first={not rows_first}" if turned else None,
            )
        if not score.is_floating_point():
            score = score.to(torch.float64)
        if offset is not None and (tuple(offset.shape) != shape or rows_first):
            raise ShapeError(
                "the offset does not fit the labels of this ranking plan",
                found=f"offset {tuple(offset.shape)}, rows_first={rows_first}",
                expected=f"{shape}, and scores with the rows last",
            )
        if offset is not None and score.device.type != "cpu":
            return score + offset
        if score.dtype in (torch.float16, torch.bfloat16):
            score = score.to(torch.float32 if offset is None else offset.dtype)
        return score.mT if rows_first and score.device.type != "cpu" else score

    def _each(
        self,
        score: Tensor,
        one: Callable[[int, _Counts], Any],
        offset: Tensor | None,
        *,
        rows_first: bool,
        strict: bool = False,
    ) -> Tensor:
        """Count and reduce category by category, blocks of them in threads."""
        flat = score.reshape(math.prod(score.shape[:-2]), *score.shape[-2:]).numpy()
        result = np.full((flat.shape[0], self.n_categories), np.nan)
        width = _TRANSPOSED if rows_first else _BLOCK
        shift = None if offset is None else offset.numpy()
        dtype = flat.dtype if shift is None else np.result_type(flat, shift)

        def work(starts: range) -> None:
            room = np.empty((2, flat.shape[0] * self.n_rows), dtype=dtype)
            for start in starts:
                stop = min(start + width, self.n_categories)
                block = flat[..., start:stop].swapaxes(1, 2) if rows_first else flat[:, start:stop]
                block = np.ascontiguousarray(block) if rows_first else block
                for c in (np.flatnonzero(self.defined[start:stop]) + start).tolist():
                    column, own = self._columns[c], None if shift is None else shift[c]
                    if own is None and len(flat) == 1:
                        counts = _count_one(block[0, c - start], column, strict=strict)
                    else:
                        counts = _count(block[:, c - start], own, column, room, strict=strict)
                    result[:, c] = one(c, counts)

        each, whole = _SERIAL_BELOW
        ranked = flat.shape[0] * self.n_rows
        few = ranked < each and ranked * self.n_categories < whole
        n_threads = 1 if few and self.n_threads is None else self.n_threads
        _in_threads(work, range(0, self.n_categories, width), n_threads)
        return torch.from_numpy(result.reshape(*score.shape[:-2], self.n_categories))

    def _batch(self, device: torch.device) -> _Batch:
        if device not in self._on_device:
            self._on_device[device] = _Batch.build(self._codes, self._columns, device)
        return self._on_device[device]


def _column(codes: NDArray[np.int8]) -> _Column:
    known, positives = np.flatnonzero(codes >= 0), np.flatnonzero(codes == POSITIVE)
    return _Column(
        known=None if known.size == codes.size else known,
        positives=positives,
        n_known=int(known.size),
        place=np.arange(positives.size, dtype=np.float64),
    )


def _count(
    scores: NDArray[Any],
    offset: NDArray[Any] | None,
    column: _Column,
    room: NDArray[Any],
    *,
    strict: bool,
) -> _Counts:
    """Counts for the positives of one category, (P, K), ascending by score.

    `strict` counts the strictly greater scores instead of the positives among themselves:
    AUROC needs only those. A NaN among the known scores sorts last and makes its row NaN.
    `room` (2, P · M) is written over, so that threads do not wait for fresh memory.
    """
    whole = room[0].reshape(scores.shape)
    if offset is None:
        whole[:] = scores
    else:
        np.add(scores, offset, out=whole)
    positives = np.sort(whole.take(column.positives, axis=1), axis=1)
    known = whole
    if column.known is not None:
        known = room[1, : len(scores) * column.n_known].reshape(len(scores), -1)
        whole.take(column.known, axis=1, out=known, mode="clip")
    known.sort(axis=1)
    n, k = column.n_known, positives.shape[1]
    below = _search(known, positives)
    ge = (n - below).astype(np.float64)
    bad = np.isnan(known[:, -1])
    if bad.any():
        ge[bad] = np.nan
    none = ge[:, :0]
    if strict:
        return _Counts(ge, (n - _after(known, positives, below)).astype(np.float64), none)
    place = np.arange(k)
    change = positives[:, 1:] != positives[:, :-1]
    if not change.all():  # tied positives share the place of the first
        place = np.where(np.pad(change, ((0, 0), (1, 0))), place, 0)
        np.maximum.accumulate(place, axis=1, out=place)
    return _Counts(ge, none, (k - place).astype(np.float64))


def _count_one(scores: NDArray[Any], column: _Column, *, strict: bool) -> _Counts:
    """`_count` of one row (M,): with a few hundred scores its calls take longer than its sorts."""
    positives = scores.take(column.positives)
    positives.sort()
    known = scores.copy() if column.known is None else scores.take(column.known)
    known.sort()
    below = known.searchsorted(positives)
    ge = (column.n_known - below).astype(np.float64)
    if known[-1] != known[-1]:  # NaN
        ge[:] = np.nan
    none = ge[None, :0]
    if strict:
        after = _after(known[None], positives[None], below[None])
        return _Counts(ge[None], (column.n_known - after).astype(np.float64), none)
    place = column.place
    change = positives[1:] != positives[:-1]
    if not change.all():  # tied positives share the place of the first
        place = place.copy()
        place[1:][~change] = 0
        np.maximum.accumulate(place, out=place)
    return _Counts(ge[None], none, (positives.size - place)[None])


def _search(ordered: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """How many of each sorted row (P, n) are below each value (P, K), by bisection.

    All values take the same steps: numpy's own search takes one row at a time, and torch's
    reads no faster.
    """
    if len(ordered) == 1:
        return np.asarray(ordered[0].searchsorted(values[0]))[None]
    left = ordered.shape[1]
    flat, start = ordered.reshape(-1), (np.arange(len(ordered)) * left)[:, None]
    low = np.broadcast_to(start, values.shape).copy()
    while left > 1:
        half = left // 2
        low += half * (flat[half - 1 :].take(low) < values)
        left -= half
    low += flat.take(low) < values
    found: NDArray[np.int64] = low - start
    return found


def _after(
    ordered: NDArray[Any], values: NDArray[Any], below: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many of each sorted row are not above its own values, of which some are below.

    Where the next in the row differs, a value has no equal; where some do not, it is searched.
    """
    after, last = below + 1, ordered.shape[1] - 1
    place = np.minimum(after, last) + (np.arange(len(ordered)) * (last + 1))[:, None]
    tied = (ordered.reshape(-1).take(place) == values) & (below < last)
    if not bool(tied.any()):
        return after
    searched: NDArray[np.int64] = ordered.shape[1] - _search(-ordered[:, ::-1], -values)
    return searched


def _ap_counts(counts: _Counts, k: int, n_negative: int, share: float | None) -> Any:
    if share is None:
        return np.add.reduce(counts.positives_ge / counts.ge, axis=1) / k
    false = counts.ge - counts.positives_ge
    true, false = restated(counts.positives_ge, false, k, n_negative, share)
    return (true / (true + false)).mean(axis=1)


def _auroc_counts(counts: _Counts, k: int, n_negative: int) -> Any:
    """The positives themselves add k² to the sum, whatever their ties: 2 a pair, 1 each."""
    above = (counts.ge + counts.gt).sum(axis=1) - float(k) * k
    return 1.0 - above / (2.0 * k * n_negative)


@lru_cache(maxsize=4)
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="catwise-ranking")


def _in_threads(work: Callable[[range], None], starts: range, n_threads: int | None) -> None:
    threads = min(n_threads or torch.get_num_threads(), len(starts))
    if threads <= 1:
        work(starts)
        return
    for done in _pool(threads).map(work, [starts[i::threads] for i in range(threads)]):
        assert done is None  # noqa: S101  (iterating re-raises what a thread raised)


class _Batch(NamedTuple):
    """The plan as tensors, for devices where all categories are one batch."""

    unknown: Tensor | None  # (C, M) bool
    positives: Tensor  # (C, K) rows, padded
    padding: Tensor  # (C, K) bool
    n_known: Tensor  # (C, 1)
    n_positive: Tensor  # (C, 1)

    @staticmethod
    def build(codes: NDArray[np.int8], columns: list[_Column], device: torch.device) -> _Batch:
        n_positive = np.array([column.positives.size for column in columns], dtype=np.int64)
        rows = np.zeros((len(columns), max(int(n_positive.max(initial=0)), 1)), dtype=np.int64)
        for row, column in zip(rows, columns, strict=True):
            row[: column.positives.size] = column.positives
        complete = all(column.known is None for column in columns)
        n_known = np.array([column.n_known for column in columns], dtype=np.int64)
        padding = np.arange(rows.shape[1]) >= n_positive[:, None]
        return _Batch(
            unknown=None if complete else torch.from_numpy(codes < 0).to(device),
            positives=torch.from_numpy(rows).to(device),
            padding=torch.from_numpy(padding).to(device),
            n_known=torch.from_numpy(n_known)[:, None].to(device),
            n_positive=torch.from_numpy(n_positive)[:, None].to(device),
        )


class _BatchCounts(NamedTuple):
    """As `_Counts`, padded (..., C, K) tensors, and which of them count."""

    ge: Tensor
    gt: Tensor
    positives_ge: Tensor
    real: Tensor
    failed: Tensor  # (..., C) bool: a NaN among the known scores


def _count_batch(batch: _Batch, scores: Tensor, *, strict: bool) -> _BatchCounts:
    """Counts for the positives of all categories; unknown scores sink to −inf.

    Unknown and padded entries lie among the lowest scores, so they add to a count only where
    everything counts, and there clamping at the number of known rows takes them off again.
    """
    low = float("-inf")
    known = scores if batch.unknown is None else scores.masked_fill(batch.unknown, low)
    rows = batch.positives.expand(*scores.shape[:-1], -1)
    positives = known.gather(-1, rows).masked_fill(batch.padding, low)
    known, positives = known.sort(dim=-1).values, positives.sort(dim=-1).values

    def counts(ordered: Tensor, limit: Tensor, *, right: bool) -> Tensor:
        found = torch.searchsorted(ordered.contiguous(), positives.contiguous(), right=right)
        return (ordered.shape[-1] - found).clamp_max(limit)

    k = batch.padding.shape[-1]
    place = torch.arange(k, device=scores.device)
    ge = counts(known, batch.n_known, right=False)
    positives_ge = ge if strict else counts(positives, batch.n_positive, right=False)
    gt = counts(known, batch.n_known, right=True) if strict else ge
    real = place >= k - batch.n_positive
    return _BatchCounts(ge, gt, positives_ge, real, known[..., -1].isnan())


def _finish(value: Tensor, batch: _Batch, failed: Tensor) -> Tensor:
    n_positive, n_known = batch.n_positive[:, 0], batch.n_known[:, 0]
    undefined = (n_positive == 0) | (n_positive == n_known)
    return value.masked_fill(undefined | failed, float("nan"))


def _ap_counts_batch(batch: _Batch, scores: Tensor, share: Tensor | None) -> Tensor:
    counts = _count_batch(batch, scores, strict=False)
    true, every = counts.positives_ge.double(), counts.ge.double()
    if share is not None:
        n_negative = batch.n_known - batch.n_positive
        true, false = restated(true, every - true, batch.n_positive, n_negative, share[..., None])
        every = true + false
    precision = torch.where(counts.real, true / every, 0.0)
    return _finish(precision.sum(dim=-1) / batch.n_positive[:, 0], batch, counts.failed)


def _auroc_counts_batch(batch: _Batch, scores: Tensor) -> Tensor:
    counts = _count_batch(batch, scores, strict=True)
    n_positive = batch.n_positive[:, 0].double()
    above = torch.where(counts.real, counts.ge + counts.gt, 0).sum(dim=-1) - n_positive**2
    pairs = 2.0 * n_positive * (batch.n_known[:, 0] - n_positive)
    return _finish(1.0 - above / pairs, batch, counts.failed)


class Accumulated(NamedTuple):
    """Weights in descending order of score, with tied scores as one threshold."""

    given: Entries
    ranked: Tensor  # as `given.score`: scores, descending; −inf where nothing counts
    positive: Tensor  # (..., M) weight of each entry as a positive
    true: Tensor  # (..., M) weight of the positives that score at least this
    false: Tensor  # (..., M) weight of the negatives that score at least this
    false_above: Tensor  # (..., M) weight of the negatives that score more

    def restated(self, share: Tensor | None) -> tuple[Tensor, Tensor]:
        """`true` and `false`, as rates at a stated prevalence (...,) if there is one."""
        if share is None:
            return self.true, self.false
        counts = self.given.n_positive[..., None], self.given.n_negative[..., None]
        return restated(self.true, self.false, *counts, share[..., None])


def accumulate(scores: Array, codes: Array, weight: Array | None) -> Accumulated:
    """Sort each row of scores and accumulate the weights of both classes."""
    given = entries(scores, codes, weight, fill=-math.inf)
    if not given.score.shape[-1]:
        return Accumulated(given, given.score, *(given.positive,) * 4)
    order = given.score.argsort(dim=-1, descending=True)
    ranked = in_order(given.score, order)
    positive, negative = in_order(given.positive, order), in_order(given.negative, order)
    first, last = tie_edges(ranked)
    true, false = positive.cumsum(-1), negative.cumsum(-1)
    return Accumulated(
        given=given,
        ranked=ranked,
        positive=positive,
        true=in_order(true, last),
        false=in_order(false, last),
        false_above=in_order(false - negative, first),
    )


def tie_edges(ranked: Tensor) -> tuple[Tensor, Tensor]:
    """For every place of sorted rows (..., M): the first and the last place of its tie."""
    size = ranked.shape[-1]
    place = torch.arange(size, device=ranked.device).expand(ranked.shape)
    edge = torch.ones_like(ranked[..., :1], dtype=torch.bool)
    change = ranked[..., 1:] != ranked[..., :-1]
    first = torch.where(torch.cat([edge, change], -1), place, 0).cummax(-1).values
    last = torch.where(torch.cat([change, edge], -1), place, size)
    return first, last.flip(-1).cummin(-1).values.flip(-1)


def _ap_from(sums: Accumulated, share: Tensor | None) -> Tensor:
    true, false = sums.restated(share)
    precision = torch.where(sums.positive > 0, true / (true + false), 0.0)
    value = (sums.positive * precision).sum(-1) / sums.given.n_positive
    return where_defined(value, sums.given)


def _auroc_from(sums: Accumulated) -> Tensor:
    beaten = (sums.positive * (sums.false + sums.false_above)).sum(-1)
    return where_defined(
        1.0 - beaten / (2.0 * sums.given.n_positive * sums.given.n_negative), sums.given
    )


def _lifted(prevalence: Any, ndim: int) -> Any:
    """A prevalence for (...,) results as one for (..., 1) results."""
    if prevalence is None or ndim == 2:
        return prevalence
    share = torch.as_tensor(prevalence, dtype=torch.float64)
    return share if share.ndim == 0 else share[..., None]
