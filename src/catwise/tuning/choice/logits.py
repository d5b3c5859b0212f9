"""Logits of all candidates, block by block of categories, and by which of them rows judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from catwise.errors import MismatchError
from catwise.features import of_categories
from catwise.heads import Head
from catwise.labels import PartialLabels
from catwise.metrics import Metric
from catwise.metrics.inputs import check_head_logits
from catwise.metrics.mismatch import check_match
from catwise.tuning.choice.unseen import UnseenRows

#: Logits held at once, over categories and candidates: 256 MiB as float32.
_ENTRIES: Final = 1 << 26
#: Standard deviations from stored out-of-fold logits, in the median, that are not of rounding.
_APART: Final = 0.1


class LogitBlock(NamedTuple):
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


class CandidateLogits(NamedTuple):
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

    def block(self, block: range, wanted: NDArray[np.bool_] | None = None) -> LogitBlock:
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
        return LogitBlock(whole, judging, by_fold, place, same, block.start)

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


class CandidateCheck(NamedTuple):
    """Whether a candidate, features and labels belong together."""

    candidate: str
    categories: Sequence[str]
    labels: PartialLabels
    unseen: UnseenRows
    force: bool

    def of(self, columns: LogitBlock, k: int) -> list[str]:
        """What was seen in a block of categories: by its own logits, and by those of folds."""
        if k and columns.same[k].all():
            return []
        size = columns.same.shape[1]
        whole = size == self.labels.shape[1]
        labels = self.labels if whole else self.labels.take_categories(range(size))
        at = torch.from_numpy(columns.place[k])
        name = "valid" if k == 0 else f"valid, candidate {self.candidate!r}"
        options: dict[str, Any] = {"categories": self.categories[:size], "force": self.force}
        notes = check_match(columns.own[:, at], labels, name=name, **options)
        notes += self._check_folds(columns, k, name)
        crossed = np.flatnonzero(self.unseen.crossed)
        logits = columns.judging[torch.from_numpy(crossed)][:, at]
        if notes or not crossed.size or bool(logits.isnan().any()):
            return notes
        name = f"{name}, out-of-fold logits"
        return check_match(logits, labels.take_rows(crossed), name=name, **options)

    def _check_folds(self, columns: LogitBlock, k: int, name: str) -> list[str]:
        """Whether rows, features and folds are those of one run."""
        index = np.arange(columns.same.shape[1])
        apart = self.unseen.apart(columns.by_fold[k], index if k == 0 else index[~columns.same[k]])
        if not apart > _APART:
            return []
        text = f"{name}: its folds look mismatched with the rows or the features"
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


def judged(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) whether a row may judge both."""
    return np.asarray(~(np.isnan(old) | np.isnan(new)))
