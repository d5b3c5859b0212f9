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

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import torch

from catwise.errors import MismatchError
from catwise.features import of_categories
from catwise.heads import Head
from catwise.metrics._inputs import check_head_logits
from catwise.metrics.bootstrap import _groups
from catwise.metrics.influence import Influence, influence
from catwise.metrics.intervals import Estimate, MeanError, Units, difference_of
from catwise.metrics.mismatch import check_match
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.choice.decide import choose_each
from catwise.tuning.choice.unseen import UnseenRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from catwise.labels import PartialLabels
    from catwise.metrics import Metric

__all__ = [
    "FOLDS",
    "GainEstimates",
    "Rule",
    "Scored",
    "affordable_splits",
    "choose",
    "gain_estimates",
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
#: Standard deviations from stored out-of-fold logits, in the median, that are not of rounding.
_APART: Final = 0.1


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of K candidates in C categories; larger is better, candidate 0 is the original.

    Scores of the others are the original's plus the gain on the rows that may judge both.

    Args:
        values: (K, C) float64; NaN where the rows that may judge lack a class.
        rest: (P, K, C) float32 without part p of the rows.
        part: (P, K, C) float32 on part p alone; NaN where a class has no row in it.
        part_positives: (P, K, C) float32 positives of part p that judge.
        positives: (K, C) int64 positives that judge.
        negatives: (K, C) int64 negatives that judge.
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
        """(K, C) positives that judge, 0 where the metric is not defined."""
        return np.where(np.isfinite(self.values), self.positives, 0).astype(np.float64)


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
        values: (K, C) scores, larger is better, candidate 0 the original; NaN is never chosen by
            itself.
        positives: (C,) known positives, 0 where the metric is not defined; or (K, C), those that
            judge each candidate.
        rule: "greedy", the best score; or "honest", the best shrunk gain: with n positives and
            m the mean gain of a candidate over categories weighted n / (n + 100), it is
            m + n / (n + 30) (gain − m), and m alone under 5 positives.

    >>> choose(np.array([[0.5, 0.5], [0.6, 0.5]]), np.array([40.0, 40.0]), "greedy")
    array([1, 0])
    """
    if rule == "honest":
        return choose_each(np.asarray(values, dtype=np.float64), positives)[0]
    filled = np.where(np.isfinite(values), values, -np.inf)
    defined = positives > 0 if positives.ndim == 1 else positives[0] > 0
    return np.where(defined, filled.argmax(axis=0), 0).astype(np.int64)


def worth(scored: Scored, rule: Rule) -> NDArray[np.float64]:
    """(C,) gains of the choosing over the original head, each part's chosen without it.

    Parts count by the positives that judge what was chosen. NaN where no part holds both
    classes, and where there are not two rows of each: what chose must not score.
    """
    index = np.arange(scored.values.shape[1])
    total, weight = np.zeros(index.size), np.zeros(index.size)
    for rest, part, positives in zip(scored.rest, scored.part, scored.part_positives, strict=True):
        chosen = choose(rest, scored.weights, rule)
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

    Args:
        heads: K heads of one dtype with C categories each, the labels' in their order; the
            original first.
        features: (N, D) of any kind, row i for row i of the labels.
        labels: (N, C); their groups stay together.
        metric: what to score.
        splits: how many splits into ten parts.
        unseen: how each head is judged; None: all by their own logits of all rows.
        names: K, for errors.
        seed: of the splits.
        force: go on where a head looks mismatched.
        progress: told after each category.

    Raises:
        MismatchError: If one of the heads, features and labels look as if they did not belong
            together.
        FeatureError: If a logit is NaN or infinite.
    """
    n_rows, n_categories = labels.shape
    if unseen is None:
        unseen = [UnseenRows(np.zeros(n_rows, dtype=np.int16))] * len(heads)
    names = [str(k) for k in range(len(heads))] if names is None else names
    candidates = _Candidates(heads, unseen, features, metric)
    work = _Work(len(heads), labels, metric, splits=splits, seed=seed)
    width = candidates.width(n_rows)
    passes, notes = 0, []
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
        for start in range(0, n_categories, width):
            block = range(start, min(start + width, n_categories))
            columns = candidates.columns(block)
            passes += 1
            if start == 0:
                for k, name in enumerate(names):
                    check = _Check(name, heads[0].categories, labels, unseen[k], force)
                    notes += check.of(columns, k)
            work.same[:, block.start : block.stop] = columns.same
            scored = threads.map(work.score, block, (columns.of(c) for c in block))
            for done, _ in enumerate(scored, start + 1):
                if progress is not None:
                    progress(Progress("scoring candidates", done, n_categories))
    return work.result(passes, notes)


class GainEstimates(NamedTuple):
    """Gains of a choice over the original head, with what their intervals need."""

    each: list[Estimate]  # C; error 0 where the original head is kept
    mean: MeanError  # over the covered categories


def gain_estimates(
    heads: Sequence[Head],
    features: Any,
    labels: PartialLabels,
    metric: Metric,
    *,
    gains: NDArray[np.float64],
    choice: NDArray[np.int64],
    unseen: Sequence[UnseenRows],
) -> GainEstimates:
    """How unsure the gain of a choice over the original head is, per category and in the mean.

    By the logits and on the rows that judged. Errors that categories share through their images,
    or images through their group, count as shared. The features are read once more.

    Args:
        heads: K candidates, the original first; C categories each, the labels' in their order.
        features: (N, D) of any kind, row i for row i of the labels.
        labels: (N, C).
        metric: of the gain.
        gains: (C,) in the metric's own sign; NaN where a category is not covered.
        choice: (C,) which candidate was chosen.
        unseen: how each candidate is judged.
    """
    n_rows, n_categories = labels.shape
    units = _groups(labels, None, n_rows)
    each = [Estimate(float(gain), 0.0, 0, 0) for gain in gains]
    mean = MeanError(int(units.max(initial=-1)) + 1)
    candidates = _Candidates(heads, unseen, features, metric)
    wanted = choice == np.arange(len(heads))[:, None]
    width = candidates.width(n_rows, of_each=False)
    for c in range(n_categories):
        if c % width == 0:
            columns = candidates.columns(range(c, min(c + width, n_categories)), wanted)
        rows, positive = labels.known(c)
        shares = np.zeros(positive.size)
        counts = int(positive.sum()), int((~positive).sum())
        if not columns.is_same(int(choice[c]), c):
            old, new = columns.of(c)[torch.from_numpy(np.array(rows))].T.contiguous().numpy()
            use = _judged(old, new)
            of_row = Units(units[rows[use]], labels.groups is not None)
            found = difference_of(metric.name, old[use], new[use], positive[use], of_row)
            if found is not None:
                each[c] = found.estimate._replace(value=float(gains[c]))
                shares[use] = found.shares
        else:
            each[c] = Estimate(float(gains[c]), 0.0, *counts)
        if np.isfinite(gains[c]):
            mean.add(each[c], shares, units[rows])
    return GainEstimates(each, mean)


def _judged(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) whether a row may judge both."""
    return np.asarray(~(np.isnan(old) | np.isnan(new)))


class _Columns(NamedTuple):
    """Logits of the different rows of all candidates, for a block of categories."""

    own: torch.Tensor  # (N, columns) of the candidates themselves
    judging: torch.Tensor  # (N, columns) by which rows judge; NaN where they may not
    by_fold: list[list[torch.Tensor]]  # F of (N, its columns), of the fold heads of each candidate
    place: NDArray[np.int64]  # (K, B) column of each candidate and category
    same: NDArray[np.bool_]  # (K, B) the candidate's row is the original's, or is not wanted
    first: int

    def is_same(self, k: int, c: int) -> bool:
        """Whether candidate k has the original's row in category c."""
        return bool(self.same[k, c - self.first])

    def of(self, c: int) -> torch.Tensor:
        """(N, different candidates) logits that judge in category c, the original's first."""
        place, same = self.place[:, c - self.first], self.same[:, c - self.first]
        kept = np.concatenate([place[:1], place[1:][~same[1:]]])
        return self.judging[:, torch.from_numpy(kept)]


class _Candidates(NamedTuple):
    """Candidates whose logits are taken block by block."""

    heads: Sequence[Head]
    unseen: Sequence[UnseenRows]
    features: Any
    metric: Metric

    def width(self, n_rows: int, *, of_each: bool = True) -> int:
        """Categories whose logits are held at once: of each candidate, or of one chosen."""
        n_base, *n_others = (1 + len(one.fold_heads) for one in self.unseen)
        n_heads = n_base + (sum(n_others) if of_each else max(n_others, default=0))
        return max(1, _ENTRIES // max(1, n_rows * n_heads))

    def columns(self, block: range, wanted: NDArray[np.bool_] | None = None) -> _Columns:
        """Logits in a block of categories; of the (K, C) wanted, and of the original head."""
        cut = slice(block.start, block.stop)
        same = np.stack([self._is_same(head, cut) for head in self.heads])
        if wanted is not None:
            same |= ~wanted[:, cut]
        index = [np.arange(len(block)), *(np.flatnonzero(~row) for row in same[1:])]
        same[0] = True
        ends = np.cumsum([at.size for at in index])
        place = np.tile(index[0], (len(same), 1))
        for k, at in enumerate(index):
            place[k, at] = ends[k] - at.size + np.arange(at.size)
        index = [at + block.start for at in index]
        crossed = [
            (h, at) for one, at in zip(self.unseen, index, strict=True) for h in one.fold_heads
        ]
        logits = self._logits([*zip(self.heads, index, strict=True), *crossed])
        parts = iter(
            torch.split(logits, [*(at.size for at in index), *(at.size for _, at in crossed)], 1)
        )
        own = [next(parts) for _ in index]
        by_fold = [[next(parts) for _ in one.fold_heads] for one in self.unseen]
        judging = whole = logits[:, : ends[-1]]
        if any(one.part.any() for one in self.unseen):
            every = zip(self.unseen, own, by_fold, index, strict=True)
            judging = torch.cat([one.judging(z, f, at, self.metric) for one, z, f, at in every], 1)
        return _Columns(whole, judging, by_fold, place, same, block.start)

    def _is_same(self, head: Head, cut: slice) -> NDArray[np.bool_]:
        base = self.heads[0]
        equal = (head.weight[cut] == base.weight[cut]).all(1) & (_bias(head) == _bias(base))[cut]
        return np.asarray(equal.cpu().numpy())

    def _logits(self, pairs: list[tuple[Head, NDArray[np.int64]]]) -> torch.Tensor:
        """(N, columns) of some rows of many heads, in one pass over the features."""
        base, weights, biases = self.heads[0], [], []
        for head, at in pairs:
            rows = torch.from_numpy(at).to(head.device)
            weights.append(head.weight[rows].to(base.device))
            biases.append(_bias(head)[rows].to(base.device))
        stacked = Head(torch.cat(weights), None if base.bias is None else torch.cat(biases))
        index = np.concatenate([at for _, at in pairs]).tolist()
        logits = stacked.logits(of_categories(self.features, index, base.n_categories)).cpu()
        return check_head_logits(logits, [base.categories[at] for at in index], name="valid")


def _bias(head: Head) -> torch.Tensor:
    return head.weight.new_zeros(head.n_categories) if head.bias is None else head.bias


class _Check(NamedTuple):
    """Whether a candidate, features and labels belong together."""

    name: str
    categories: Sequence[str]
    labels: PartialLabels
    unseen: UnseenRows
    force: bool

    def of(self, columns: _Columns, k: int) -> list[str]:
        """What was seen in a block of categories: by its own logits, and by those of folds."""
        if k and columns.same[k].all():
            return []
        size = columns.same.shape[1]
        whole = size == self.labels.shape[1]
        labels = self.labels if whole else self.labels.take_categories(range(size))
        at = torch.from_numpy(columns.place[k])
        told = "valid" if k == 0 else f"valid, candidate {self.name!r}"
        options: dict[str, Any] = {"categories": self.categories[:size], "force": self.force}
        notes = check_match(columns.own[:, at], labels, name=told, **options)
        notes += self._check_folds(columns, k, told)
        crossed = np.flatnonzero(self.unseen.crossed)
        logits = columns.judging[torch.from_numpy(crossed)][:, at]
        if notes or not crossed.size or bool(logits.isnan().any()):
            return notes
        told = f"{told}, out-of-fold logits"
        return check_match(logits, labels.take_rows(crossed), name=told, **options)

    def _check_folds(self, columns: _Columns, k: int, told: str) -> list[str]:
        """Whether rows, features and folds are those of one run."""
        index = np.arange(columns.same.shape[1])
        apart = self.unseen.apart(columns.by_fold[k], index if k == 0 else index[~columns.same[k]])
        if not apart > _APART:
            return []
        text = f"{told}: its folds look mismatched with the rows or the features"
        found = (
            f"a category whose logits by the fold heads are {apart:.2g} standard deviations, in "
            "the median, from the out-of-fold logits that it brings"
        )
        if self.force:
            return [f"{text}: {found}."]
        raise MismatchError(
            text,
            found=found,
            expected=f"at most {_APART:g}: the rows and features that the run was tuned on",
            remedy="the folds that belong to these rows; or force",
        )


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


class _Work:
    """Values on all rows and on parts, filled in category by category, in any order."""

    def __init__(
        self,
        n_candidates: int,
        labels: PartialLabels,
        metric: Metric,
        *,
        splits: int,
        seed: int,
    ) -> None:
        n_categories = labels.shape[1]
        shape = (splits * FOLDS, n_candidates, n_categories)
        self.labels, self.metric = labels, metric
        self.values = np.full(shape[1:], np.nan)
        self.positives, self.negatives = (np.zeros(shape[1:], dtype=np.int64) for _ in range(2))
        self.rest = np.full(shape, np.nan, dtype=np.float32)
        self.part = np.full(shape, np.nan, dtype=np.float32)
        self.part_positives = np.zeros(shape, dtype=np.float32)
        self.same = np.ones(shape[1:], dtype=bool)
        self.parts = deal(labels, splits, seed)

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
        self._put(list(range(len(self.same))), c, _Split.of([base], known, use), is_gain=False)
        self._score_others(c, found, known)

    def _influence(
        self, scores: NDArray[Any], positive: NDArray[np.bool_], use: NDArray[np.bool_]
    ) -> Influence | None:
        """Of the metric on some rows, 0 for others; larger is better. None without both classes."""
        side = positive[use]
        if side.all() or not side.any():
            return None
        sign = 1.0 if self.metric.higher_is_better else -1.0
        found = influence(self.metric.name, scores[use], side)
        moves = np.zeros(use.size)
        moves[use] = sign * found.rows
        return Influence(sign * found.value, moves)

    def _score_others(self, c: int, logits: NDArray[Any], known: _Known) -> None:
        """Score the candidates that differ, by their gains; those of the same rows together."""
        positive = known.positive
        together: dict[bytes, tuple[NDArray[np.bool_], Influence | None, list[Any]]] = {}
        for place, k in enumerate((np.flatnonzero(~self.same[1:, c]) + 1).tolist(), 1):
            use = _judged(logits[0], logits[place])
            key = use.tobytes()
            if key not in together:
                together[key] = use, self._influence(logits[0], positive, use), []
            together[key][2].append((k, self._influence(logits[place], positive, use)))
        for use, before, found in together.values():
            candidates = [k for k, _ in found]
            if before is None:
                for array in (self.values, self.part, self.rest):
                    array[..., candidates, c] = np.nan
                self.positives[candidates, c] = self.negatives[candidates, c] = 0
                continue
            gains = [Influence(a.value - before.value, a.rows - before.rows) for _, a in found]
            self._put(candidates, c, _Split.of(gains, known, use), is_gain=True)

    def _put(self, candidates: list[int], c: int, found: _Split, *, is_gain: bool) -> None:
        """Write down scores; gains are added to the scores of the original."""
        pairs = (self.values, found.values), (self.part, found.part), (self.rest, found.rest)
        for array, more in pairs:
            array[..., candidates, c] = more + (array[..., :1, c] if is_gain else 0.0)
        self.part_positives[:, candidates, c] = found.part_positives[:, None]
        self.positives[candidates, c], self.negatives[candidates, c] = found.counts

    def result(self, passes: int, notes: list[str]) -> Scored:
        """All of it."""
        return Scored(
            self.values,
            self.rest,
            self.part,
            self.part_positives,
            self.positives,
            self.negatives,
            self.same,
            passes,
            notes,
        )
