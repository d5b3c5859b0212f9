"""Scores of many candidates on one set of rows, the choice between them, and its correction.

The best of many candidates looks better than it is. So the choice is repeated without a tenth
of the rows, and only that tenth scores what was chosen without it; ten such folds make a
split, and many random splits are averaged. That is what the choosing is worth. (Resamples with
replacement, as in BBC-CV, leave out a third of the rows and repeat the rest; they choose worse
than all rows do and so report too little.)

Rows of a group stay together, all categories share the splits, and folds get their share of the
rare positives. A candidate's score on part of the rows is taken to first order from its influence
function, so that all parts of all candidates are one matrix product per category.

Source: Varma & Simon, "Bias in error estimation when using cross-validation for model
selection", BMC Bioinformatics 7, 2006; Cawley & Talbot, "On over-fitting in model selection",
JMLR 11, 2010. Compare Tsamardinos et al., Machine Learning 107, 2018 (BBC-CV).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import torch

from catwise.features import of_categories
from catwise.heads import Head
from catwise.metrics._inputs import checked_logits
from catwise.metrics.bootstrap import _groups
from catwise.metrics.influence import error_shares, influence
from catwise.metrics.mismatch import check_match
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.decide import choose_each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from catwise.labels import PartialLabels
    from catwise.metrics import Metric

__all__ = [
    "FOLDS",
    "GainErrors",
    "Rule",
    "Scored",
    "affordable_splits",
    "choose",
    "gain_errors",
    "score_candidates",
    "worth",
]

Rule = Literal["honest", "greedy"]

FOLDS: Final = 10
"""Parts of a split."""

#: Logits held at once, over categories and candidates: 256 MiB as float32.
_ENTRIES: Final = 1 << 26
#: Multiply-adds of all splits, and numbers kept of them; more are not made.
_WORK: Final = 1 << 38
_KEPT: Final = 1 << 26


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of K candidates in C categories; larger is better, candidate 0 is the original.

    Args:
        values: (K, C) float64 on all rows; NaN where a class is not known.
        rest: (P, K, C) float32 without part p of the rows.
        part: (P, K, C) float32 on part p alone; NaN where a class has no row in it.
        part_positives: (P, C) float32 known positives of part p.
        positives: (C,) int64 known positives.
        negatives: (C,) int64 known negatives.
        same: (K, C) bool, the candidate's row is the original's.
        passes: how often the features were read.
        notes: what was seen, a sentence each.
    """

    values: NDArray[np.float64]
    rest: NDArray[np.float32]
    part: NDArray[np.float32]
    part_positives: NDArray[np.float32]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    same: NDArray[np.bool_]
    passes: int
    notes: list[str]

    @property
    def weights(self) -> NDArray[np.float64]:
        """(C,) known positives, 0 where the metric is not defined."""
        return np.where(np.isfinite(self.values[0]), self.positives, 0).astype(np.float64)


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


def worth(scored: Scored, rule: Rule) -> NDArray[np.float64]:
    """(C,) gains of the choosing over the original head, each part's chosen without it.

    Parts count by their known positives. NaN where no part holds both classes, and where
    there are not two rows of each: what chose must not score.
    """
    index = np.arange(scored.values.shape[1])
    total, weight = np.zeros(index.size), np.zeros(index.size)
    for rest, part, positives in zip(scored.rest, scored.part, scored.part_positives, strict=True):
        chosen = choose(rest, scored.weights, rule)
        gain = part[chosen, index] - part[0]
        counts = np.where(np.isfinite(gain), positives, 0.0)
        total += counts * np.nan_to_num(gain)
        weight += counts
    weight[np.minimum(scored.positives, scored.negatives) < 2] = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, total / weight, np.nan)


def score_candidates(
    heads: Sequence[Head],
    features: Any,
    labels: PartialLabels,
    metric: Metric,
    *,
    splits: int,
    seed: int = 0,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> Scored:
    """Score heads on labelled rows, and on the parts of random splits of them.

    The features are read once for as many categories as fit; rows of a candidate that are the
    original's are not scored again.

    Args:
        heads: K heads of one dtype with C categories each, the labels' in their order; the
            original first.
        features: (N, D) of any kind, row i for row i of the labels.
        labels: (N, C); their groups stay together.
        metric: what to score.
        splits: how many splits into ten parts.
        seed: of the splits.
        force: go on where the original head looks mismatched.
        progress: told after each category.

    Raises:
        MismatchError: If head, features and labels look as if they did not belong together.
        FeatureError: If a logit is NaN.
    """
    n_rows, n_categories = labels.shape
    work = _Work(len(heads), labels, metric, splits=splits, seed=seed)
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


class GainErrors(NamedTuple):
    """Standard errors of the gains of one head over another."""

    error: NDArray[np.float64]  # (C,) 0 where the rows are the same
    freedom: NDArray[np.int64]  # (C,) degrees of freedom: the scarcer class, less one
    mean: float  # of the mean over the covered categories


def gain_errors(
    base: Head,
    head: Head,
    features: Any,
    labels: PartialLabels,
    metric: Metric,
    *,
    covered: NDArray[np.bool_],
) -> GainErrors:
    """How unsure the gain of a head over another is, per category and in the mean.

    Errors that categories share through their images, or images through their group, count as
    shared. The features are read once more.

    Args:
        base: C categories, the labels' in their order.
        head: as `base`, some of its rows changed.
        features: (N, D) of any kind, row i for row i of the labels.
        labels: (N, C).
        metric: of the gain.
        covered: (C,) bool, categories that the mean covers; both classes are known.
    """
    n_rows, n_categories = labels.shape
    units = _groups(labels, None, n_rows)
    n_units = int(units.max(initial=-1)) + 1
    error, freedom = np.zeros(n_categories), np.ones(n_categories, dtype=np.int64)
    total = np.zeros(n_units)
    width = max(1, _ENTRIES // max(1, 2 * n_rows))
    for start in range(0, n_categories, width):
        columns = _columns([base, head], range(start, min(start + width, n_categories)), features)
        for c in start + np.flatnonzero(~columns.same[1]):
            rows, positive = labels.known(int(c))
            pair = columns.of(int(c))[torch.from_numpy(np.array(rows))].T.contiguous().numpy()
            old, new = (influence(metric.name, scores, positive).rows for scores in pair)
            shares = error_shares(new - old, positive)
            added = np.bincount(units[rows], weights=shares, minlength=n_units)
            error[c] = np.linalg.norm(added)
            freedom[c] = max(1, min(positive.sum(), (~positive).sum()) - 1)
            if covered[c]:
                total += added
    return GainErrors(error, freedom, float(np.linalg.norm(total)) / max(1, int(covered.sum())))


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
    rows = list(block)  # of the head, for each column
    for k, head in enumerate(heads[1:], 1):
        equal = (head.weight[cut] == base.weight[cut]).all(1) & (_bias(head) == _bias(base))[cut]
        same[k] = equal.cpu().numpy()
        changed = np.flatnonzero(~same[k])
        place[k, changed] = size + np.arange(changed.size)
        size += changed.size
        index = torch.from_numpy(changed).to(base.device)
        weights.append(head.weight[cut][index])
        biases.append(_bias(head)[cut][index])
        rows += (changed + block.start).tolist()
    stacked = Head(torch.cat(weights), None if base.bias is None else torch.cat(biases))
    logits = stacked.logits(of_categories(features, rows, base.n_categories)).cpu()
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


def deal(labels: PartialLabels, splits: int, seed: int) -> NDArray[np.int8]:
    """(splits, N) part of each row: groups whole, rare positives spread over the parts.

    Rows (or groups) are lined up by their rarest positive category, at random within one, and
    dealt in turn.
    """
    n_rows, n_categories = labels.shape
    units = _groups(labels, None, n_rows)
    n_units = int(units.max(initial=-1)) + 1
    rarest = np.full(n_units, n_categories)
    for rank, c in enumerate(np.argsort(-labels.counts().positive, kind="stable")):
        rows, positive = labels.known(int(c))
        rarest[units[rows[positive]]] = n_categories - 1 - rank
    parts = np.empty((splits, n_rows), dtype=np.int8)
    for split in range(splits):
        rng = np.random.default_rng([seed, split])
        order = np.lexsort((rng.random(n_units), rarest))
        turn = np.empty(n_units, dtype=np.int64)
        turn[order] = np.arange(n_units) + rng.integers(FOLDS)
        parts[split] = (turn % FOLDS)[units]
    return parts


class _Work:
    """Values on all rows and on parts, filled in category by category, in any order."""

    def __init__(
        self, n_heads: int, labels: PartialLabels, metric: Metric, *, splits: int, seed: int
    ) -> None:
        n_categories = labels.shape[1]
        shape = (splits * FOLDS, n_heads, n_categories)
        self.labels, self.metric = labels, metric
        self.values = np.full(shape[1:], np.nan)
        self.rest = np.full(shape, np.nan, dtype=np.float32)
        self.part = np.full(shape, np.nan, dtype=np.float32)
        self.part_positives = np.zeros((splits * FOLDS, n_categories), dtype=np.float32)
        self.same = np.ones(shape[1:], dtype=bool)
        self.parts = deal(labels, splits, seed)

    def score(self, c: int, logits: torch.Tensor) -> None:
        """Score category c from the (N, different candidates) logits."""
        rows, positive = self.labels.known(c)
        if positive.all() or not positive.any():
            return
        sign = 1.0 if self.metric.higher_is_better else -1.0
        kept = logits[torch.from_numpy(np.array(rows))].T.contiguous().numpy()
        found = [influence(self.metric.name, scores, positive) for scores in kept]
        different = np.flatnonzero(~self.same[:, c] | (np.arange(len(self.same)) == 0))
        back = np.zeros(len(self.same), dtype=np.int64)
        back[different] = np.arange(different.size)
        values = sign * np.array([one.value for one in found])
        moves = np.stack([sign * one.rows for one in found], axis=1).astype(np.float32)
        inside = self.parts[:, None, rows] == np.arange(FOLDS, dtype=np.int8)[:, None]
        inside = inside.reshape(-1, len(rows))
        part, rest = values[None, :].repeat(len(inside), 0), values[None, :].repeat(len(inside), 0)
        for one in (positive, ~positive):
            drawn = inside[:, one].astype(np.float32)
            moved, count = drawn @ moves[one], drawn.sum(axis=1, dtype=np.float64)[:, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                part += moved / count
                rest -= moved / (np.count_nonzero(one) - count)  # all rows together move nothing
            if one is positive:
                self.part_positives[:, c] = count[:, 0]
        self.values[:, c] = values[back]
        self.part[:, :, c], self.rest[:, :, c] = part[:, back], rest[:, back]

    def result(self, passes: int, notes: list[str]) -> Scored:
        """All of it."""
        counts = self.labels.counts()
        return Scored(
            self.values,
            self.rest,
            self.part,
            self.part_positives,
            np.asarray(counts.positive),
            np.asarray(counts.negative),
            self.same,
            passes,
            notes,
        )
