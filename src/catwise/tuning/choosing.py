"""Scores of many candidates on one set of rows, the choice between them, and its correction.

The best of many candidates looks better than it is. So the choice is repeated in bootstrap
resamples, and in each only the rows that were not drawn score what was chosen there
(out of bag). The mean of these scores is what the choosing is worth.

The resamples are stratified, by group, shared by all candidates and correlated over categories
as the images are. A candidate's score in a resample is taken to first order from its influence
function, so that all resamples of all candidates are one matrix product per category; for gains
over the original head this agrees with full rescoring far within their own error.

Source: Tsamardinos, Greasidou & Borboudakis, "Bootstrapping the out-of-sample predictions for
efficient and accurate cross-validation", Machine Learning 107, 2018 (BBC-CV).
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from zlib import crc32

import numpy as np
import torch

from catwise.heads import Head
from catwise.metrics._inputs import checked_logits
from catwise.metrics.bootstrap import (
    _CHUNK,
    _LAYERS,
    Resampler,
    _groups,
    _multinomial,
    percentile_interval,
)
from catwise.metrics.influence import influence
from catwise.metrics.mismatch import check_match
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.decide import choose_each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from catwise.labels import PartialLabels
    from catwise.metrics import Metric

__all__ = [
    "Corrected",
    "Rule",
    "Scored",
    "affordable_replicates",
    "choose",
    "correct",
    "score_candidates",
]

Rule = Literal["honest", "greedy"]

#: Logits held at once, over categories and candidates: 256 MiB as float32.
_ENTRIES: Final = 1 << 26
#: Multiply-adds of all resamples, and numbers kept of them; more are not made.
_WORK: Final = 1 << 38
_KEPT: Final = 1 << 26
#: Units of a stratum up to which its counts are exactly multinomial.
_EXACT: Final = 1024
#: Fewer resamples than this are not worth making.
_FEWEST: Final = 50


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of K candidates in C categories; larger is better, candidate 0 is the original.

    Args:
        values: (K, C) float64 on all rows; NaN where a class is not known.
        in_bag: (R, K, C) float32 on the rows drawn in each resample.
        out_of_bag: (R, K, C) float32 on the rows not drawn; NaN where a class has none.
        positives: (C,) int64 known positives.
        negatives: (C,) int64 known negatives.
        same: (K, C) bool, the candidate's row is the original's.
        passes: how often the features were read.
        notes: what was seen, a sentence each.
    """

    values: NDArray[np.float64]
    in_bag: NDArray[np.float32]
    out_of_bag: NDArray[np.float32]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    same: NDArray[np.bool_]
    passes: int
    notes: list[str]

    @property
    def weights(self) -> NDArray[np.float64]:
        """(C,) known positives, 0 where the metric is not defined."""
        return np.where(np.isfinite(self.values[0]), self.positives, 0).astype(np.float64)


class Corrected(NamedTuple):
    """What a choice is worth, corrected for the choosing; NaN where it cannot be scored."""

    gain: NDArray[np.float64]  # (C,) out of bag; 0 where the original was kept
    interval: NDArray[np.float64]  # (C, 2)
    mean: float  # of the choosing, over the n_scored categories
    mean_interval: tuple[float, float]
    n_scored: int


def affordable_replicates(
    labels: PartialLabels, n_candidates: int, wanted: int
) -> tuple[int, str | None]:
    """How many resamples are made of those wanted, and a sentence where they are fewer."""
    n_known = int(labels.counts().positive.sum() + labels.counts().negative.sum())
    by_work = _WORK // max(1, 2 * n_known * n_candidates)
    by_memory = _KEPT // max(1, n_candidates * labels.shape[1], labels.shape[0] // 4)
    made = min(wanted, max(_FEWEST, min(by_work, by_memory)))
    if made == wanted:
        return wanted, None
    return made, (
        f"{made} of {wanted} resamples were made, to bound the work on {n_known:,} known labels "
        f"and {n_candidates} candidates."
    )


def choose(values: NDArray[Any], positives: NDArray[np.float64], rule: Rule) -> NDArray[np.int64]:
    """The candidate of each category; ties go to the original head, then to the first.

    Args:
        values: (K, C) scores, larger is better, candidate 0 the original.
        positives: (C,) known positives, 0 where the metric is not defined.
        rule: "greedy", the best score; or "honest", the best shrunk gain: with n positives and
            m the mean gain of a candidate over categories weighted n / (n + 100), it is
            m + n / (n + 30) (gain − m), and m alone under 5 positives.

    >>> choose(np.array([[0.5, 0.5], [0.6, 0.5]]), np.array([40.0, 40.0]), "greedy")
    array([1, 0])
    """
    if rule == "honest":
        return choose_each(np.asarray(values, dtype=np.float64), positives)[0]
    filled = np.where(np.isfinite(values), values, -np.inf)
    return np.where(positives > 0, filled.argmax(axis=0), 0).astype(np.int64)


def correct(
    scored: Scored, chosen: NDArray[np.int64], rule: Rule, *, level: float = 0.95
) -> Corrected:
    """Repeat the choice in every resample and score it out of bag.

    Args:
        scored: the candidates' scores.
        chosen: (C,) the choice on all rows.
        rule: what made it.
        level: confidence level of the intervals, which are those of the chosen candidate's
            gain in the resamples, about the corrected gain.
    """
    index, n_categories = np.arange(chosen.size), chosen.size
    out = np.full((len(scored.in_bag), n_categories), np.nan)
    for r, values in enumerate(scored.in_bag):
        again = choose(values, scored.weights, rule)
        out[r] = scored.out_of_bag[r][again, index] - scored.out_of_bag[r][0]
    worth = _means(out)
    raw = scored.values[chosen, index] - scored.values[0]
    spread = scored.in_bag[:, chosen, index] - scored.in_bag[:, 0] - raw
    is_scored = np.isfinite(worth)
    gain = np.where(is_scored & (chosen == 0), 0.0, worth)
    n_scored = int(is_scored.sum())
    if not n_scored:
        nothing = np.full((n_categories, 2), np.nan)
        return Corrected(gain, nothing, float("nan"), (float("nan"),) * 2, 0)
    mean = float(worth[is_scored].mean()) if (chosen > 0).any() else 0.0
    low, high = percentile_interval(spread[:, is_scored].mean(axis=1)[:, None], level)[0] + mean
    return Corrected(
        gain,
        percentile_interval(spread, level) + gain[:, None],
        mean,
        (float(low), float(high)),
        n_scored,
    )


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Column means without what is NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN alone is NaN
        return np.asarray(np.nanmean(values, axis=0)) if len(values) else values.sum(axis=0)


def score_candidates(
    heads: Sequence[Head],
    features: Any,
    labels: PartialLabels,
    metric: Metric,
    *,
    replicates: int,
    seed: int = 0,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> Scored:
    """Score heads on labelled rows, and in the same resamples of them.

    The features are read once for as many categories as fit; rows of a candidate that are the
    original's are not scored again.

    Args:
        heads: K heads of one dtype with C categories each, the labels' in their order; the
            original first.
        features: (N, D) of any kind, row i for row i of the labels.
        labels: (N, C); their groups are drawn together.
        metric: what to score.
        replicates: R, resamples.
        seed: of the resamples.
        force: go on where the original head looks mismatched.
        progress: told after each category.

    Raises:
        MismatchError: If head, features and labels look as if they did not belong together.
        FeatureError: If a logit is NaN.
    """
    n_rows, n_categories = labels.shape
    work = _Work(heads, labels, metric, replicates=replicates, seed=seed)
    width = max(1, _ENTRIES // max(1, n_rows * len(heads)))
    passes, notes = 0, []
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        for start in range(0, n_categories, width):
            block = range(start, min(start + width, n_categories))
            columns = _columns(heads, block, features)
            passes += 1
            if start == 0:
                notes += _check(columns, labels, heads[0].categories, force=force)
            work.same[:, block.start : block.stop] = columns.same
            scored = threads.map(work.score, block, (columns.of(c) for c in block))
            for done, _ in enumerate(scored, start + 1):
                if progress is not None:
                    progress(Progress("scoring candidates", done, n_categories))
    return work.result(passes, notes)


class _Columns(NamedTuple):
    """Logits of the different rows of all candidates, for a block of categories."""

    logits: torch.Tensor  # (N, columns)
    place: NDArray[np.int64]  # (K, B) column of each candidate and category
    same: NDArray[np.bool_]  # (K, B) the candidate's row is the original's
    first: int

    def of(self, c: int) -> torch.Tensor:
        """(N, different candidates) logits of category c, the original's first."""
        place, same = self.place[:, c - self.first], self.same[:, c - self.first]
        kept = np.concatenate([place[:1], place[1:][~same[1:]]])
        return self.logits[:, torch.from_numpy(kept)]


def _columns(heads: Sequence[Head], block: range, features: Any) -> _Columns:
    cut = slice(block.start, block.stop)
    base = heads[0]
    same = np.ones((len(heads), len(block)), dtype=bool)
    place = np.tile(np.arange(len(block)), (len(heads), 1))
    weights, biases, size = [base.weight[cut]], [_bias(base)[cut]], len(block)
    for k, head in enumerate(heads[1:], 1):
        equal = (head.weight[cut] == base.weight[cut]).all(1) & (_bias(head) == _bias(base))[cut]
        same[k] = equal.cpu().numpy()
        changed = np.flatnonzero(~same[k])
        place[k, changed] = size + np.arange(changed.size)
        size += changed.size
        index = torch.from_numpy(changed).to(base.device)
        weights.append(head.weight[cut][index])
        biases.append(_bias(head)[cut][index])
    stacked = Head(torch.cat(weights), None if base.bias is None else torch.cat(biases))
    logits = stacked.logits(features).cpu()
    return _Columns(checked_logits(logits, (len(logits), size)), place, same, block.start)


def _bias(head: Head) -> torch.Tensor:
    return head.weight.new_zeros(head.n_categories) if head.bias is None else head.bias


def _check(
    columns: _Columns, labels: PartialLabels, categories: Sequence[str], *, force: bool
) -> list[str]:
    size = columns.same.shape[1]
    part = labels if size == labels.shape[1] else labels.take_categories(range(size))
    own = columns.logits[:, :size]
    return check_match(own, part, name="valid", categories=categories[:size], force=force)


class _Chunk(NamedTuple):
    """Some resamples of all units (rows or groups), shared by all categories."""

    layers: list[NDArray[np.uint8]]  # as in `Resampler`
    total: NDArray[np.uint8]  # (100, U) Poisson counts with mean 1, the layers among them

    @staticmethod
    def draw(resampler: Resampler, number: int) -> _Chunk:
        layers = resampler.layers(number)
        rest = 1.0 - sum(_LAYERS)
        rng = np.random.default_rng([resampler.seed, number, 0])
        total = rng.poisson(rest, (_CHUNK, resampler.n_units)).astype(np.uint8)
        for layer in layers:
            total += layer
        return _Chunk(layers, total)

    def weights(self, strata: Any, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(100, n) counts of the rows of one category.

        A small stratum gets exactly multinomial counts; in a large one Poisson counts differ
        from them only by a factor near 1, which means do not see.
        """
        parts = [
            self.total[:, units]
            if units.size > _EXACT
            else _multinomial(units, self.layers, rng).astype(np.uint8)
            for units in strata.units
            if units.size
        ]
        return np.asarray(np.concatenate(parts, axis=1)[:, strata.rows])


class _Work:
    """Values and resamples, filled in category by category, in any order."""

    def __init__(
        self,
        heads: Sequence[Head],
        labels: PartialLabels,
        metric: Metric,
        *,
        replicates: int,
        seed: int,
    ) -> None:
        n_rows, n_categories = labels.shape
        shape = (replicates, len(heads), n_categories)
        self.labels, self.metric, self.seed = labels, metric, seed
        self.values = np.full(shape[1:], np.nan)
        self.in_bag = np.full(shape, np.nan, dtype=np.float32)
        self.out_of_bag = np.full(shape, np.nan, dtype=np.float32)
        self.same = np.ones(shape[1:], dtype=bool)
        self.resampler = Resampler(_groups(labels, None, n_rows), seed=seed)
        self.chunks = [_Chunk.draw(self.resampler, i) for i in range(-(-replicates // _CHUNK))]

    def score(self, c: int, logits: torch.Tensor) -> None:
        """Score category c from the (N, different candidates) logits."""
        rows, positive = self.labels.known(c)
        if positive.all() or not positive.any():
            return
        order = np.argsort(~positive, kind="stable")  # positives first: classes are slices
        rows, positive = rows[order], positive[order]
        sign = 1.0 if self.metric.higher_is_better else -1.0
        kept = logits[torch.from_numpy(rows)].T.contiguous().numpy()
        found = [influence(self.metric.name, scores, positive) for scores in kept]
        different = np.flatnonzero(~self.same[:, c] | (np.arange(len(self.same)) == 0))
        back = np.zeros(len(self.same), dtype=np.int64)
        back[different] = np.arange(different.size)
        values = sign * np.array([one.value for one in found])
        self.values[:, c] = values[back]
        moves = np.stack([sign * one.rows for one in found], axis=1).astype(np.float32)
        split = int(np.count_nonzero(positive))
        strata = self.resampler.strata(rows, positive)
        key = self.labels.categories[c].encode()
        for number, chunk in enumerate(self.chunks):
            start = number * _CHUNK
            stop = min(start + _CHUNK, len(self.in_bag))
            rng = np.random.default_rng([self.seed, number, crc32(key)])
            counts = chunk.weights(strata, rng)[: stop - start]
            for out, drawn in ((self.in_bag, counts), (self.out_of_bag, counts == 0)):
                weights = drawn.astype(np.float32)
                moved = values + _mean(weights[:, :split], moves[:split])
                moved += _mean(weights[:, split:], moves[split:])
                out[start:stop, :, c] = moved[:, back]

    def result(self, passes: int, notes: list[str]) -> Scored:
        """All of it."""
        counts = self.labels.counts()
        return Scored(
            self.values,
            self.in_bag,
            self.out_of_bag,
            np.asarray(counts.positive),
            np.asarray(counts.negative),
            self.same,
            passes,
            notes,
        )


def _mean(weights: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(R, K) weighted means over rows; NaN where no row counts."""
    total = weights.sum(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ rows) / total[:, None], dtype=np.float64)
