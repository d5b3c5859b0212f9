"""The account of a selection: of every row of the head, and in the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from catwise._json import number
from catwise.joining import Aligned, has_default_names
from catwise.labels.reasons import MISSING, explain
from catwise.metrics import Metric
from catwise.metrics.per_category import undefined_reason
from catwise.tuning.account.documents import Account, Record, Summary
from catwise.tuning.account.records import EXPLANATIONS
from catwise.tuning.choice.candidates import Scored
from catwise.tuning.choice.gains import Gains
from catwise.tuning.choice.nested import Decision
from catwise.tuning.choice.rules import MIN_POSITIVES, Chosen
from catwise.tuning.choice.unseen import UnseenRows

_SKIPPED: Final = {
    **{code: explain(f"{code}_in_valid") for code in MISSING},
    "not_in_labels": "The validation labels have no such category.",
}
_KEPT: Final = {
    "clearly_worse": "What would have been chosen is clearly worse here: the interval of its "
    "corrected gain lies wholly on the wrong side of zero. The original head was kept.",
    "no_other_row": "No candidate differs from the original head here.",
    "not_judged": "No candidate could be judged on rows that it has not seen; the head was kept.",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """A choice among heads and what it is worth."""

    names: Sequence[str]  # K, the original first
    scored: Scored  # of the candidates
    decision: Decision  # by the rule
    choice: Chosen  # (C,) what each category has in the end
    # (C,) whether it keeps the original head because the choice was clearly worse
    harmed: NDArray[np.bool_]
    gains: Gains  # of the choosing
    unseen: Sequence[UnseenRows]  # K, how each candidate is judged
    metric: Metric  # that chose
    rule: str  # its name
    splits: int  # how many there were
    level: float  # of the intervals

    def config(self) -> dict[str, Any]:
        """What was asked for, JSON-ready."""
        return {
            "metric": self.metric.name,
            "rule": self.rule,
            "level": self.level,
            "splits": self.splits,
            "candidates": list(self.names),
            "base": self.names[0],
        }

    def account(self, aligned: Aligned, seconds: float) -> Account:
        """Records of all rows of the head, and the summary."""
        return Account(self._records(aligned), self._summary(aligned, seconds))

    # ------------------------------------------------------------------------- records

    def _records(self, aligned: Aligned) -> tuple[Record, ...]:
        """One for each row of the base head."""
        place = {int(i): c for c, i in enumerate(aligned.head_index)}
        own = has_default_names(aligned.head.categories)
        reasons, counts = undefined_reason(aligned.labels), aligned.labels.counts()
        records = []
        for index, name in enumerate(aligned.head.categories):
            c = place.get(index)
            reason = "not_in_labels" if c is None else reasons[c]
            records.append(
                Record(
                    category=aligned.categories[c] if own and c is not None else name,
                    index=index,
                    metric=self.metric.name,
                    n_positive_train=None,
                    n_negative_train=None,
                    n_positive_valid=0 if c is None else int(counts.positive[c]),
                    n_negative_valid=0 if c is None else int(counts.negative[c]),
                    gap_auroc=None,
                    gap_average_precision=None,
                    **(self._skipped(reason) if c is None or reason else self._judged_at(c)),
                )
            )
        return tuple(records)

    def _skipped(self, reason: str | None) -> dict[str, Any]:
        """What a record says of a category that cannot be judged."""
        nothing = ("before", "after", "gain", "gain_low", "gain_high", "selected_on")
        return {
            "status": "skipped",
            "reason": reason,
            "explanation": f"{_SKIPPED[str(reason)]} The original head was kept.",
            "candidate": self.names[0],
            **dict.fromkeys((*nothing, "interval_reason")),
            "scored_on": "",
            "candidates": {},
        }

    def _judged_at(self, c: int) -> dict[str, Any]:
        """What a record says of a category that can."""
        k, reason = int(self.choice[c]), self._reason(c)
        before, gain = self._raw(0, c), float(self.gains.gain[c]) if self.choice[c] else 0.0
        after = number(before + gain)
        why_not = self.gains.why[c] if k else "unchanged"
        few = why_not in {"few_positives", "few_negatives"}
        interval = (self.gains.low[c], self.gains.high[c]) if k else (np.nan, np.nan)
        return {
            "status": "replaced" if k else "kept",
            "reason": reason,
            "explanation": self._explanation(c, reason, after)
            + (f" {EXPLANATIONS[str(why_not)]}" if few else ""),
            "candidate": self.names[k],
            "before": number(before),
            "after": after,
            "gain": number(gain),
            "gain_low": number(interval[0]),
            "gain_high": number(interval[1]),
            "interval_reason": why_not,
            "selected_on": number(self._raw(k, c)),
            "scored_on": self._scored_on(k),
            "candidates": {name: number(self._raw(i, c)) for i, name in enumerate(self.names)},
        }

    def _raw(self, k: int, c: int) -> float:
        return float(self.metric.sign * self.scored.values[k, c])

    def _scored_on(self, k: int) -> str:
        if k == 0:
            return "validation rows"
        what = self.unseen[k].described() if self.unseen[k].n_seen else "the validation rows"
        return f"{what}, chosen without each tenth in {self.splits} splits"

    def _reason(self, c: int) -> str:
        if self.harmed[c]:
            return "clearly_worse"
        if self.scored.same[1:, c].all():
            return "no_other_row"
        if not self._judged[:, c].any():
            return "not_judged"
        k = int(self.choice[c])
        few = self.rule == "honest" and self._positives(c) < MIN_POSITIVES
        if k:
            return "pooled_better" if few else "better"
        return "pooled_not_better" if few else "not_better"

    @property
    def _judged(self) -> NDArray[np.bool_]:
        """(K − 1, C) whether a candidate that differs has a score."""
        return np.isfinite(self.scored.values[1:]) & ~self.scored.same[1:]

    def _best(self, c: int) -> int:
        """The candidate with the best score, other than the original."""
        return 1 + int(np.argmax(np.where(self._judged[:, c], self.scored.values[1:, c], -np.inf)))

    def _positives(self, c: int) -> int:
        """Those that judge what was chosen, or else the best of the others."""
        return int(self.scored.positives[int(self.choice[c]) or self._best(c), c])

    def _explanation(self, c: int, reason: str, after: float | None) -> str:
        if reason in _KEPT:
            return _KEPT[reason]
        taken, is_taken = self.names[int(self.choice[c])], bool(self.choice[c])
        if reason.startswith("pooled"):
            what = f"{taken!r} is taken" if is_taken else "the original head is kept"
            return (
                f"Only {self._positives(c)} known positives: as the mean over all categories "
                f"says, {what}."
            )
        if not is_taken:
            return self._not_better(c)
        before, raw = self._raw(0, c), self._raw(int(self.choice[c]), c)
        text = f"{taken!r} scores {raw:.3f}, the original head {before:.3f}"
        if after is None:
            return f"{text}; too few rows to correct that for the choosing."
        return f"{text}; corrected for the choosing {after:.3f}."

    def _not_better(self, c: int) -> str:
        best = self._best(c)
        gain = self.scored.values[best, c] - self.scored.values[0, c]
        if gain <= 0:
            return "No candidate scores better than the original head."
        n = int(self.scored.positives[best, c])
        return (
            f"The best, {self.names[best]!r}, is {gain:.3f} better on {n} known positives: "
            "not enough beside its mean gain over all categories."
        )

    # ------------------------------------------------------------------------- summary

    def _summary(self, aligned: Aligned, seconds: float) -> Summary:
        """Means over the categories that can be scored, and counts over the head's rows."""
        scored, is_scored = self.scored, np.isfinite(self.gains.gain)
        n_defined, n_replaced = int((scored.weights[0] > 0).sum()), int((self.choice > 0).sum())
        taken = scored.values[self.choice, np.arange(self.choice.size)]
        before, selected_on = (
            self.metric.sign * float(values[is_scored].mean()) if is_scored.any() else np.nan
            for values in (scored.values[0], taken)
        )
        unknown = not self._judged.any() and not scored.same.all()
        gain, low, high = (np.nan,) * 3 if unknown else self.gains.mean
        return Summary(
            metric=self.metric.name,
            n_categories=aligned.head.n_categories,
            n_replaced=n_replaced,
            n_kept=n_defined - n_replaced,
            n_skipped=aligned.head.n_categories - n_defined,
            n_scored=int(is_scored.sum()),
            before=number(before),
            after=number(before + gain),
            gain=number(gain),
            gain_low=number(low),
            gain_high=number(high),
            level=self.level,
            selected_on=None if unknown else number(selected_on),
            choice=self._choice(),
            seconds=seconds,
            passes={"features": scored.passes + 1},
            reason="no candidate could be judged on rows that it has not seen" if unknown else "",
            judged_by=self._each([one.described() for one in self.unseen]),
            in_sample_rows=self._each([one.n_seen for one in self.unseen]),
        )

    def _choice(self) -> dict[str, Any]:
        weighed = self.scored.weights.sum(axis=1) > 0
        pooled = self.metric.sign * np.where(weighed, self.decision.pooled, np.nan)
        return {
            "rule": self.rule,
            "taken": self._each([int((self.choice == k).sum()) for k in range(len(self.names))]),
            "pooled_gain": self._each([number(value) for value in pooled.tolist()]),
        }

    def _each(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))
