"""What replacing rows of a head is worth, from rows that neither fitted nor chose what is scored.

Every fold is scored by the choice made without it, on a head fitted without it. These logits,
fold by fold, are put on one scale and scored together: inside a fold of 20 rows with 2 positives
average precision is far too high, and its differences are twice as uncertain. A metric that only
ranks sees logits minus their mean and divided by their standard deviation over all rows, labelled
or not, of the head that a fold is scored by; others see logits as they are.

A category whose interval lies wholly on the wrong side of zero is never replaced. The correction
repeats this, too: for each fold, from the other folds. Where the mean gain, so corrected, is not
above zero, nothing is replaced: no category then has others to lean on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise.metrics.intervals import Difference, Differences, Units, difference_of, has_interval
from catwise.metrics.levels import leave_one_out_precision
from catwise.metrics.registry import METRICS, Metric
from catwise.tuning.choice.nested import Decision, FoldScores
from catwise.tuning.choice.rules import Chosen, Floats, clearly_worse

HeldOut: TypeAlias = Callable[[Chosen, int], Tensor]
Logits: TypeAlias = NDArray[np.float32]

_BLOCK_ENTRIES = 1 << 24


@dataclass(frozen=True, eq=False)
class Gains:
    """Scores of the original head, and gains over it; (C,) each."""

    # score of the original head; in `tune` average precision is without its excess on few
    # positives. NaN where it is not defined
    before: Floats
    gain: Floats  # score after − before, in the metric's own direction, corrected for the choosing
    low: Floats  # lower end of its interval; NaN where there is none
    high: Floats  # upper end
    why: list[str | None]  # the reason without an interval, a key of `EXPLANATIONS`, or None
    # the mean gain over the categories that have one, and the ends of its interval
    mean: tuple[float, float, float]

    def has_mean_gain(self, metric: Metric) -> bool:
        """Whether the mean gain is above zero, for a loss below it; not where it is not known."""
        return metric.sign * self.mean[0] > 0.0

    def clearly_worse(self, metric: Metric) -> NDArray[np.bool_]:
        """(C,) whether an interval lies wholly on the wrong side of zero."""
        return clearly_worse(self.low, self.high, higher_is_better=metric.higher_is_better)

    def without_mean(self) -> Gains:
        """Where nothing is replaced: the mean gain is 0, without an interval."""
        return replace(self, mean=(abs(self.mean[0]) * 0.0, np.nan, np.nan))


class Scorer(NamedTuple):
    """Scores (C, n) logits against fixed labels."""

    metric: Metric  # what is scored
    codes: NDArray[np.int8]  # (C, n) int8 label codes
    units: Units  # of the n rows

    def select_rows(self, rows: Chosen) -> Scorer:
        """On some of the rows."""
        return Scorer(self.metric, self.codes[:, rows], self.units.take(rows))

    def values(self, logits: Logits) -> Floats:
        """(C,) scores; NaN where a class is not known."""
        width = max(1, _BLOCK_ENTRIES // max(logits.shape[1], 1))
        parts = [np.empty(0)]
        for start in range(0, logits.shape[0], width):
            block = slice(start, start + width)
            score = self.metric.prepare(torch.from_numpy(self.codes[block]))
            parts.append(score(torch.from_numpy(logits[block])).double().numpy())
        return np.concatenate(parts)

    def levels(self, logits: Logits) -> Floats:
        """(C,) scores, average precision without its excess on few positives."""
        if self.metric is not METRICS["average_precision"]:
            return self.values(logits)
        pairs = ((z[y >= 0], y[y >= 0] == 1) for z, y in zip(logits, self.codes, strict=True))
        return np.array([leave_one_out_precision(*pair) for pair in pairs])

    def gains(self, before: Logits, after: Logits) -> Gains:
        """What the second logits gain over the first."""
        level, gain = self.levels(before), self.values(after) - self.values(before)
        found = self._differences(np.isfinite(gain), before, after, counts=np.isfinite(level))
        gain[np.isnan(level)] = np.nan
        scored = gain[np.isfinite(gain)]
        centre = float(scored.mean()) if scored.size else float("nan")
        mean = (centre, *found.mean.interval_of_difference())
        return Gains(level, gain, found.low, found.high, found.reason, mean)

    def harmed(self, among: NDArray[np.bool_], before: Logits, after: Logits) -> NDArray[np.bool_]:
        """(C,) whether the interval of a gain lies wholly on the wrong side of zero."""
        found = self._differences(among, before, after)
        return clearly_worse(found.low, found.high, higher_is_better=self.metric.higher_is_better)

    def _differences(
        self,
        among: NDArray[np.bool_],
        before: Logits,
        after: Logits,
        *,
        counts: NDArray[np.bool_] | None = None,
    ) -> Differences:
        """Of some categories; the mean covers those that count."""
        found = Differences(among.size, self.units)
        for c in np.flatnonzero(among).tolist():
            one = self._difference(before, after, c)
            if one is None:
                found.reason[c] = "no_interval_for_metric"
                continue
            known = np.flatnonzero(self.codes[c] >= 0)
            same = np.array_equal(before[c, known], after[c, known])
            found.add(c, one, known, is_same=same, counts=counts is not None and bool(counts[c]))
        return found

    def _difference(self, before: Logits, after: Logits, c: int) -> Difference | None:
        """None where there is no interval for the metric."""
        if not has_interval(self.metric):
            return None
        rows = np.flatnonzero(self.codes[c] >= 0)
        positive, units = self.codes[c, rows] == 1, self.units.take(rows)
        return difference_of(self.metric.name, before[c, rows], after[c, rows], positive, units)


def levels(before: Floats, gain: Floats, metric: Metric) -> tuple[Floats, Floats]:
    """(C,) scores before and after; average precision is moved into [0, 1] with its gain.

    Its level has no excess and its gain may, which matters on a handful of positives only.
    """
    if metric is METRICS["average_precision"]:
        before = np.clip(before, np.maximum(0.0, -gain), np.minimum(1.0, 1.0 - gain))
    return before, before + gain


def on_one_scale(logits: Tensor, metric: Metric) -> Tensor:
    """(C, n) logits of one head as a metric is to see them beside those of other heads."""
    if not metric.ranks_only:
        return logits
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-300)
    return (centred / spread).to(logits.dtype)


class Corrected(NamedTuple):
    """A decision without what was clearly worse, and its gains."""

    # `chosen` and `chosen_without` are 0 where the choice was clearly worse; all of `chosen` is 0
    # where there is no mean gain
    decision: Decision
    # corrected for the choosing; where nothing is replaced, their mean is 0 without an interval
    gains: Gains
    selected_on: Floats  # (C,) gain of the chosen on the data that chose it; 0 where it is kept
    clearly_worse: NDArray[np.bool_]  # (C,) whether that is why a category is kept
    # (C,) whether it is kept since the mean gain was not above zero
    without_mean_gain: NDArray[np.bool_]
    has_mean_gain: bool  # whether it was above zero


def without_harm(
    decision: Decision,
    scores: FoldScores,
    base: Tensor,
    held_out: HeldOut,
    *,
    fold: NDArray[np.int8],
    scorer: Scorer,
    needs_gain: bool = True,
    has_mean_gain: bool | None = None,
) -> Corrected:
    """Keep what a choice would clearly harm, and score the choosing with this rule in it.

    Where the corrected mean gain is not above zero everything is kept, if these rows can show one.
    `has_mean_gain` says whether it is where more categories than these have decided that.

    Shapes:
        base: (C, n) logits of the original head.
        held_out: of (C,) candidates and the one for all, (C, n) logits on rows that did not fit
            them, `on_one_scale`.
        fold: (n,) of the rows.
    """
    metric, chosen = scorer.metric, decision.chosen
    before = on_one_scale(base, metric).cpu().numpy()
    after, chosen_without = before.copy(), decision.chosen_without.copy()
    for f in np.argsort(decision.settings_without, kind="stable"):
        taken = held_out(chosen_without[f], decision.settings_without[f]).cpu().numpy()
        rest, own = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        lost = _lost(scores.mean(without=f), chosen_without[f])
        worse = scorer.select_rows(rest).harmed(lost, before[:, rest], taken[:, rest])
        chosen_without[f, worse] = 0
        cells = np.ix_(chosen_without[f] > 0, own)
        after[cells] = taken[cells]
    gains, level = scorer.gains(before, after), scorer.values(before)
    taken = held_out(chosen, decision.setting).cpu().numpy()
    raw = np.where(chosen > 0, scorer.values(taken) - level, 0.0)
    worse = scorer.harmed(_lost(scores.mean(), chosen), before, taken)
    worse |= gains.clearly_worse(metric) & (chosen > 0)
    if has_mean_gain is None:
        has_mean_gain = gains.has_mean_gain(metric)
    no_gain = (chosen > 0) & ~worse & (needs_gain and not has_mean_gain)
    kept = worse | no_gain
    final = np.where(kept, 0, chosen)
    setting = min(decision.setting, 0) if no_gain.any() else decision.setting
    return Corrected(
        decision._replace(chosen=final, setting=setting, chosen_without=chosen_without),
        gains if final.any() else gains.without_mean(),
        np.where(kept, 0.0, raw),
        worse,
        no_gain,
        has_mean_gain,
    )


def _lost(scores: Floats, chosen: Chosen) -> NDArray[np.bool_]:
    """(C,) where the chosen candidate's score is below the original head's."""
    return np.asarray(scores[chosen, np.arange(chosen.size)] < scores[0])
