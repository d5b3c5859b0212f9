"""Scores of many candidates on one set of rows, the choice between them, and its correction.

The best of many candidates looks better than it is. So the choice is repeated without a tenth
of the rows, and only that tenth scores what was chosen without it; ten such folds make a
split, and many random splits are averaged. That is what the choosing is worth. (Resamples with
replacement, as in BBC-CV, leave out a third of the rows and repeat the rest; they choose worse
than all rows do and so report too little.)

Rows of a group stay together, all categories share the splits, and folds get their share of the
rare positives. A candidate's score on part of the rows is taken to first order from its influence
function, so that all parts of all candidates are one matrix product per category.

A candidate is judged on rows that it has not seen (:mod:`catwise.tuning.choice.unseen`), always
paired with the original head on the same rows, so that candidates with different rows can be
compared by their gains.

Source: Varma & Simon, "Bias in error estimation when using cross-validation for model
selection", BMC Bioinformatics 7, 2006; Cawley & Talbot, "On over-fitting in model selection",
JMLR 11, 2010. Compare Tsamardinos et al., Machine Learning 107, 2018 (BBC-CV).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from catwise.heads import Head
from catwise.labels import PartialLabels
from catwise.labels.partition import assign_parts
from catwise.metrics import Metric
from catwise.metrics.influence import Influence, influence
from catwise.metrics.intervals import (
    LEVEL,
    Difference,
    Differences,
    Estimate,
    Units,
    difference_of,
)
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.choice.gains import Gains
from catwise.tuning.choice.logits import CandidateCheck, CandidateLogits, LogitBlock, judged
from catwise.tuning.choice.nested import Decision, Judged
from catwise.tuning.choice.rules import Chosen, Floats
from catwise.tuning.choice.unseen import UnseenRows

FOLDS: Final = 10
"""Parts of a split."""

#: Multiply-adds of all splits, and numbers kept of them; more are not made.
_WORK: Final = 1 << 38
_KEPT: Final = 1 << 26


@dataclass(eq=False)
class Scored:
    """Scores of K candidates in C categories; larger is better, candidate 0 is the original.

    Scores of the others are the original's plus the gain on the rows that may judge both.
    """

    values: NDArray[np.float64]  # (K, C) float64; NaN where the rows that may judge lack a class
    rest: NDArray[np.float32]  # (P, K, C) float32 without part p of the rows
    # (P, K, C) float32 on part p alone; NaN where a class has no row in it
    part: NDArray[np.float32]
    part_positives: NDArray[np.float32]  # (P, K, C) float32 positives of part p that judge
    positives: NDArray[np.int64]  # (K, C) int64 positives that judge
    negatives: NDArray[np.int64]  # (K, C) int64 negatives that judge
    same: NDArray[np.bool_]  # (K, C) bool, the candidate's row is the original's
    passes: int = 0  # how often the features were read
    notes: list[str] = field(default_factory=list)  # what was seen, a sentence each

    @classmethod
    def empty(cls, n_candidates: int, n_categories: int, n_parts: int) -> Scored:
        """Nothing is known, and all rows are the original's."""
        shape = (n_candidates, n_categories)
        rest, part = np.full((2, n_parts, *shape), np.nan, dtype=np.float32)
        return cls(
            values=np.full(shape, np.nan),
            rest=rest,
            part=part,
            part_positives=np.zeros(part.shape, dtype=np.float32),
            positives=np.zeros(shape, dtype=np.int64),
            negatives=np.zeros(shape, dtype=np.int64),
            same=np.ones(shape, dtype=bool),
        )

    @property
    def weights(self) -> NDArray[np.float64]:
        """(K, C) positives that judge, 0 where the metric is not defined."""
        return np.where(np.isfinite(self.values), self.positives, 0).astype(np.float64)

    @property
    def n_parts(self) -> int:
        """P."""
        return len(self.rest)

    def whole(self) -> Judged:
        """On all rows."""
        return Judged(self.values, self.weights)

    def without(self, part: int) -> Judged:
        """Without part p of the rows."""
        return Judged(self.rest[part].astype(np.float64), self.weights)


def affordable_splits(
    labels: PartialLabels, n_candidates: int, wanted: int
) -> tuple[int, str | None]:
    """How many splits are made of those wanted, and a sentence where they are fewer."""
    counts = labels.counts()
    n_known = int(counts.positive.sum() + counts.negative.sum())
    by_work = _WORK // max(1, FOLDS * n_known * n_candidates)
    by_memory = _KEPT // max(1, FOLDS * n_candidates * labels.shape[1])
    made = min(wanted, max(1, min(by_work, by_memory)))
    if made == wanted:
        return wanted, None
    return made, (
        f"{made} of {wanted} splits were made, to bound the work on {n_known:,} known labels "
        f"and {n_candidates} candidates."
    )


def nested_gains(scored: Scored, decision: Decision) -> Floats:
    """(C,) gains of the choosing over the original head, each part's chosen without it.

    Larger is better. Parts count by the positives that judge what was chosen. NaN where no part
    holds both classes, and where there are not two rows of each: what chose must not score.
    """
    index = np.arange(scored.values.shape[1])
    total, weight = np.zeros(index.size), np.zeros(index.size)
    parts = zip(decision.chosen_without, scored.part, scored.part_positives, strict=True)
    for chosen, part, positives in parts:
        gain = part[chosen, index] - part[0]
        alone = np.minimum(scored.positives, scored.negatives)[chosen, index] < 2
        counts = np.where(np.isfinite(gain) & ~alone, positives[chosen, index], 0.0)
        total += counts * np.nan_to_num(gain)
        weight += counts
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, total / weight, np.nan)


def score_candidates(
    heads: Sequence[Head],
    features: Any,
    labels: PartialLabels,
    metric: Metric,
    *,
    splits: int,
    unseen: Sequence[UnseenRows] | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> Scored:
    """Score heads on labelled rows, and on the parts of random splits of them.

    The features are read once for as many categories as fit; rows of a candidate that are the
    original's are not scored again.

    Shapes:
        features: (N, D) of any kind, row i for row i of the labels.
        labels: (N, C); their groups stay together.
    """
    n_rows, n_categories = labels.shape
    if unseen is None:
        unseen = [UnseenRows(np.zeros(n_rows, dtype=np.int16))] * len(heads)
    names = [str(k) for k in range(len(heads))] if names is None else names
    logits = CandidateLogits(heads, unseen, features, metric)
    scored = Scored.empty(len(heads), n_categories, splits * FOLDS)
    scoring = _Scoring(
        scored, labels, metric, assign_parts(labels, FOLDS, splits=splits, seed=seed)
    )
    width = logits.width(n_rows)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        for start in range(0, n_categories, width):
            block = range(start, min(start + width, n_categories))
            columns = logits.block(block)
            scored.passes += 1
            if start == 0:
                for k, name in enumerate(names):
                    check = CandidateCheck(name, heads[0].categories, labels, unseen[k], force)
                    scored.notes += check.of(columns, k)
            scored.same[:, block.start : block.stop] = columns.same
            filled = threads.map(scoring.score, block, (columns.of(c) for c in block))
            for done, _ in enumerate(filled, start + 1):
                if progress is not None:
                    progress(Progress("scoring candidates", done, n_categories))
    return scored


def candidate_gains(
    heads: Sequence[Head],
    features: Any,
    labels: PartialLabels,
    metric: Metric,
    *,
    scored: Scored,
    gains: Floats,
    choice: Chosen,
    unseen: Sequence[UnseenRows],
    level: float = LEVEL,
) -> Gains:
    """Gains of a choice over the original head with intervals, per category and in the mean.

    By the logits and on the rows that judged. Errors that categories share through their images,
    or images through their group, count as shared. The features are read once more.

    Shapes:
        features: (N, D) of any kind, row i for row i of the labels.
        labels: (N, C).
        gains: (C,) larger is better, corrected for the choosing; NaN where that is not known.
        choice: (C,) which candidate was chosen.
    """
    gains, n_categories = metric.sign * gains, labels.shape[1]
    units = Units.of_labels(labels)
    found = Differences(n_categories, units, level)
    logits = CandidateLogits(heads, unseen, features, metric)
    wanted = choice == np.arange(len(heads))[:, None]
    width = logits.width(labels.shape[0], of_each=False)
    for c in range(n_categories):
        if c % width == 0:
            block = logits.block(range(c, min(c + width, n_categories)), wanted)
        rows = np.array(labels.known(c)[0])
        same = block.is_same(int(choice[c]), c)
        one = _same(labels, c) if same else _difference(block, labels, c, metric, units)
        one = one._replace(estimate=one.estimate._replace(value=float(gains[c])))
        found.add(c, one, rows, is_same=same, counts=bool(np.isfinite(gains[c])))
    centre = float(gains[known].mean()) if (known := np.isfinite(gains)).any() else np.nan
    mean = (centre, *found.mean.interval_of_difference(level))
    before = metric.sign * scored.values[0]
    return Gains(before, gains, found.low, found.high, found.reason, mean)


def _same(labels: PartialLabels, c: int) -> Difference:
    """Of a category that keeps its row."""
    positive = labels.known(c)[1]
    counts = int(positive.sum()), int((~positive).sum())
    return Difference(np.nan, np.nan, Estimate(0.0, 0.0, *counts), np.zeros(positive.size))


def _difference(
    block: LogitBlock, labels: PartialLabels, c: int, metric: Metric, units: Units
) -> Difference:
    """Of the chosen candidate and the original head, on the rows that judge both."""
    rows, positive = labels.known(c)
    old, new = block.of(c)[torch.from_numpy(np.array(rows))].T.contiguous().numpy()
    use = judged(old, new)
    found = difference_of(metric.name, old[use], new[use], positive[use], units.take(rows[use]))
    shares = np.zeros(positive.size)
    if found is None:
        return Difference(np.nan, np.nan, Estimate(0.0, 0.0, 0, 0), shares)
    shares[use] = found.shares
    return found._replace(shares=shares)


class _Known(NamedTuple):
    """Known labels of one category, and which part of the splits each is in."""

    rows: NDArray[np.int64]
    positive: NDArray[np.bool_]
    inside: NDArray[np.bool_]  # (P, n)


class _Split(NamedTuple):
    """Scores, or gains, on all rows, on each part, and without it."""

    values: NDArray[np.float64]  # (M,)
    part: NDArray[np.float64]  # (P, M)
    rest: NDArray[np.float64]  # (P, M)
    part_positives: NDArray[np.float64]  # (P,)
    counts: tuple[int, int]

    @classmethod
    def of(cls, found: Sequence[Influence], known: _Known, judged: NDArray[np.bool_]) -> _Split:
        """To first order from influences; only rows that judge count."""
        values = np.array([one.value for one in found])
        moves = np.stack([one.rows for one in found], axis=1).astype(np.float32)
        part, rest = (np.tile(values, (len(known.inside), 1)) for _ in range(2))
        counts, positives = [], np.zeros(0)
        for side in (known.positive & judged, ~known.positive & judged):
            drawn = known.inside[:, side].astype(np.float32)
            moved, count = drawn @ moves[side], drawn.sum(axis=1, dtype=np.float64)
            counts.append(int(np.count_nonzero(side)))
            positives = positives if positives.size else count
            inside, left = (_or_nan(n)[:, None] for n in (count, counts[-1] - count))
            part += moved / inside
            rest -= moved / left  # all rows together move nothing
        return cls(values, part, rest, positives, (counts[0], counts[1]))


def _or_nan(count: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts to divide by: without rows there is no score, however its parts were rounded."""
    return np.where(count > 0, count, np.nan)


class _Scoring(NamedTuple):
    """Fills in scores category by category, in any order."""

    into: Scored
    labels: PartialLabels
    metric: Metric
    parts: NDArray[np.int8]  # (splits, N)

    def score(self, c: int, logits: torch.Tensor) -> None:
        """Score category c from the (N, different candidates) logits."""
        rows, positive = self.labels.known(c)
        if positive.all() or not positive.any():
            return
        found = logits[torch.from_numpy(np.array(rows))].T.contiguous().numpy()
        inside = self.parts[:, None, rows] == np.arange(FOLDS, dtype=np.int8)[:, None]
        known = _Known(rows, positive, inside.reshape(-1, len(rows)))
        use = ~np.isnan(found[0])
        base = self._influence(found[0], positive, use)
        if base is None:
            return
        self._put(list(range(len(self.into.same))), c, _Split.of([base], known, use), is_gain=False)
        self._score_others(c, found, known)

    def _influence(
        self, scores: NDArray[Any], positive: NDArray[np.bool_], use: NDArray[np.bool_]
    ) -> Influence | None:
        """Of the metric on some rows, 0 for others; larger is better. None without both classes."""
        side = positive[use]
        if side.all() or not side.any():
            return None
        found, sign = influence(self.metric.name, scores[use], side), self.metric.sign
        shares = np.zeros(use.size)
        shares[use] = sign * found.rows
        return Influence(sign * found.value, shares)

    def _score_others(self, c: int, logits: NDArray[Any], known: _Known) -> None:
        """Score the candidates that differ, by their gains; those of the same rows together."""
        positive = known.positive
        together: dict[bytes, tuple[NDArray[np.bool_], Influence | None, list[Any]]] = {}
        for place, k in enumerate((np.flatnonzero(~self.into.same[1:, c]) + 1).tolist(), 1):
            use = judged(logits[0], logits[place])
            key = use.tobytes()
            if key not in together:
                together[key] = use, self._influence(logits[0], positive, use), []
            together[key][2].append((k, self._influence(logits[place], positive, use)))
        for use, before, found in together.values():
            candidates = [k for k, _ in found]
            if before is None:
                for array in (self.into.values, self.into.part, self.into.rest):
                    array[..., candidates, c] = np.nan
                self.into.positives[candidates, c] = self.into.negatives[candidates, c] = 0
                continue
            gains = [Influence(a.value - before.value, a.rows - before.rows) for _, a in found]
            self._put(candidates, c, _Split.of(gains, known, use), is_gain=True)

    def _put(self, candidates: list[int], c: int, found: _Split, *, is_gain: bool) -> None:
        """Write down scores; gains are added to the scores of the original."""
        pairs = (
            (self.into.values, found.values),
            (self.into.part, found.part),
            (self.into.rest, found.rest),
        )
        for array, more in pairs:
            array[..., candidates, c] = more + (array[..., :1, c] if is_gain else 0.0)
        self.into.part_positives[:, candidates, c] = found.part_positives[:, None]
        self.into.positives[candidates, c], self.into.negatives[candidates, c] = found.counts
