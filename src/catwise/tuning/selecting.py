"""For each category the best of several heads, and an honest account of what that is worth."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch

from catwise._json import number
from catwise._version import __version__
from catwise.errors import ConfigError, HeadError, InSampleWarning, nearest
from catwise.features import check_finite
from catwise.joining import (
    Aligned,
    align,
    has_default_names,
    open_source,
    require_known,
    source_digests,
    source_ids,
)
from catwise.labels.audit import labelled_part
from catwise.metrics.per_category import undefined_reason
from catwise.metrics.registry import Metric, resolve_metric
from catwise.tuning.account.records import EXPLANATIONS
from catwise.tuning.account.results import FoldArtifacts, TuneResult
from catwise.tuning.choice.candidates import (
    FOLDS,
    Scored,
    affordable_splits,
    candidate_gains,
    nested_gains,
    score_candidates,
)
from catwise.tuning.choice.gains import Gains
from catwise.tuning.choice.nested import Decision, nested_choice
from catwise.tuning.choice.rules import MIN_POSITIVES, RULES, RuleName
from catwise.tuning.choice.unseen import UnseenRows, unseen_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from catwise.heads import Head
    from catwise.labels import PartialLabels
    from catwise.progress import ProgressCallback

__all__ = ["Run", "SelectResult", "select"]

_NOT_KNOWN: Final = {
    "no_known_label": "No label is known on the validation rows.",
    "no_known_positive": "No positive is known on the validation rows.",
    "no_known_negative": "No negative is known on the validation rows.",
    "not_in_labels": "The validation labels have no such category.",
}


class Run(NamedTuple):
    """A candidate that comes with the heads that were fitted without each fold of its rows.

    Attributes:
        head: tuned.
        folds: what cross-fitting left, or None.
    """

    head: Head
    folds: FoldArtifacts | None


Candidate: TypeAlias = "Head | TuneResult | Run"


@dataclass(frozen=True, eq=False, repr=False)
class SelectResult:
    """What :func:`select` chose.

    Attributes:
        head: the rows of the chosen candidates; dtype, device and categories of the base.
        records: one JSON-ready dict for each row of the head.
        summary: means, counts, time; JSON-ready.
        config: what was asked for and done; JSON-ready.
        notes: what to know about it, a sentence each.
    """

    head: Head
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    config: dict[str, Any]
    notes: list[str]

    def __repr__(self) -> str:
        counts = ", ".join(f"{key[2:]}={self.summary[key]}" for key in _COUNTS)
        return f"SelectResult({counts}, metric={self.summary['metric']!r})"


_COUNTS: Final = ("n_replaced", "n_kept", "n_skipped")


def select(
    candidates: Mapping[str, Candidate],
    valid: tuple[Any, PartialLabels],
    *,
    metric: str | Metric = "average_precision",
    rule: RuleName = "honest",
    seed: int = 0,
    level: float = 0.95,
    splits: int = 20,
    progress: ProgressCallback | None = None,
    force: bool = False,
) -> SelectResult:
    """Choose, for each category, one of several heads by its score on validation rows.

    A head is judged by the rows that it has not seen. What :func:`tune` gave back is judged, on
    rows that fitted it, by the heads that it fitted without each fold; for a metric that only
    ranks, their logits are put on one scale. A candidate that has neither is not judged: it has
    no score and is never chosen. Gains over the original are always taken on the same rows.

    Rule "greedy" takes the best on validation, as published (ties to the original head, then to
    the order given). Rule "honest" takes the best gain after shrinking it to the candidate's
    mean gain over categories, the more the fewer positives there are; under 5 positives that
    mean alone decides.

    The best of many looks better than it is. So `after` is corrected: the choice is repeated
    without each tenth of the rows, in many random splits, and scored on that tenth; the raw
    score of what was chosen is `selected_on`. The mean gain in the summary is that of the
    choosing: it also counts what the choosing would have done, on slightly other rows, to
    categories that were kept on these. A category whose own corrected interval lies wholly on the
    wrong side of zero keeps the original head.

    Args:
        candidates: heads, or results of `tune`, by name, of one model; the original is the one
            named "base", else the first.
        valid: features (N, D) of any kind, and labels (N, C).
        metric: name of what decides.
        rule: "honest" or "greedy".
        seed: of the splits.
        level: confidence level of the intervals, in (0, 1).
        splits: random splits into ten parts, at least 1; fewer are made where the work would
            be too large.
        progress: told after each category.
        force: go on where a candidate and the data look mismatched.

    Returns:
        The head with the chosen rows, and the account. The head remembers the validation rows.

    Raises:
        ConfigError: If there are no two candidates, or an option is not possible.
        HeadError: If the candidates, or the fold heads of a run, are not heads of one model.
        ShapeError: If heads, features and labels do not fit together.
        IdError: If a labelled row has no features.
        CategoryError: If the heads lack a category of the labels.
        MismatchError: If the data look as if they were not the heads' own, or the folds of a run
            not of its rows.
        LabelError: If no validation label is known.
        FeatureError: If a feature is NaN or infinite.

    Warns:
        InSampleWarning: If validation rows that fitted a candidate cannot judge it.

    Source: Chong et al., "Category-wise fine-tuning", Neurocomputing 647, 2025 (greedy);
    Varma & Simon, BMC Bioinformatics 7, 2006 (the correction).

    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(400, 2))
    >>> from catwise.heads import Head
    >>> from catwise.labels import PartialLabels
    >>> labels = PartialLabels(z > 0.5, categories=["cat", "dog"])
    >>> base = Head([[1.0, 1.0], [0.0, 1.0]], categories=["cat", "dog"])
    >>> better = Head([[1.0, 0.0], [1.0, 0.5]], categories=["cat", "dog"])
    >>> result = select({"base": base, "better": better}, (z, labels))
    >>> [(record["category"], record["candidate"]) for record in result.records]
    [('cat', 'better'), ('dog', 'base')]
    >>> result.head.weight
    tensor([[1., 0.], [0., 1.]])
    """
    started = time.perf_counter()
    chosen_metric = _checked(metric, rule, level, splits)
    names, heads = _candidates({name: _head_of(given) for name, given in candidates.items()})
    features, labels = open_source(valid, name="valid")
    aligned = align(heads[0], features, labels, name="valid")
    require_known(labels, "validation label")
    rows = aligned.take(features)
    check_finite(rows, name="valid features")
    digests, ids = source_digests(features, labels, aligned.rows), source_ids(rows, labels)
    unseen = [
        unseen_rows(head, getattr(candidates[name], "folds", None), aligned, digests, ids)
        for name, head in zip(names, heads, strict=True)
    ]
    made, capped = affordable_splits(labels, len(heads), splits)
    notes = [*labelled_part(aligned.labels), *aligned.notes]
    notes += [*_in_sample(names, unseen), *([capped] if capped else [])]
    taken = [_aligned_head(head, aligned) for head in heads]
    scored = score_candidates(
        taken,
        rows,
        labels,
        chosen_metric,
        splits=made,
        unseen=unseen,
        names=names,
        seed=seed,
        force=force,
        progress=progress,
    )
    decision = nested_choice(scored, RULES[rule])
    choice = decision.chosen.copy()
    choice[scored.same[choice, np.arange(choice.size)]] = 0
    config = {
        "metric": chosen_metric.name,
        "rule": rule,
        "seed": seed,
        "level": level,
        "splits": made,
        "folds": FOLDS,
        "candidates": names,
        "base": names[0],
        "n_rows": labels.shape[0],
    }
    gains = candidate_gains(
        taken,
        rows,
        labels,
        chosen_metric,
        scored=scored,
        gains=nested_gains(scored, decision),
        choice=choice,
        unseen=unseen,
        level=level,
    )
    harmed = gains.clearly_worse(chosen_metric) & (choice > 0)
    choice[harmed] = 0
    if not choice.any():
        gains = gains.without_mean()
    account = _Account(
        names, scored, decision, choice, gains, unseen, chosen_metric, config, harmed
    )
    return SelectResult(
        head=_mixed(heads, aligned, choice, digests, config),
        records=account.records(aligned),
        summary=account.summary(aligned) | {"seconds": time.perf_counter() - started},
        config=config,
        notes=[*notes, *scored.notes],
    )


def _checked(metric: str | Metric, rule: str, level: float, splits: int) -> Metric:
    problems = []
    if rule not in RULES:
        problems.append(f"rule={rule!r}{nearest(str(rule), RULES)}")
    if not 0.0 < level < 1.0:
        problems.append(f"level={level}")
    if splits < 1:
        problems.append(f"splits={splits}")
    if problems:
        raise ConfigError(
            "these options of a selection are not possible.",
            found="; ".join(problems),
            expected='rule "honest" or "greedy", level in (0, 1), at least 1 split',
        )
    return resolve_metric(metric)


def _candidates(candidates: Mapping[str, Head]) -> tuple[list[str], list[Head]]:
    """Names and heads, the original first; rows, dtype and device as the original's."""
    if len(candidates) < 2:
        raise ConfigError(
            "there is nothing to choose from.",
            found=f"{len(candidates)} candidates",
            expected="the original head and at least one other, by name",
        )
    names = sorted(candidates, key=lambda name: name != "base")
    base = candidates[names[0]]
    problems = [
        f"{name!r} {problem}"
        for name in names[1:]
        if (problem := _misfit(candidates[name], base)) is not None
    ]
    if problems:
        raise HeadError(
            f"the candidates are not heads of the model of {names[0]!r}.",
            found="; ".join(problems),
            expected=f"{base.n_categories:,} categories by {base.n_features:,} features, "
            f"{'with' if base.bias is not None else 'without'} bias, and the same names",
        )
    return names, [base, *(_like(candidates[name], base) for name in names[1:])]


def _misfit(head: Head, base: Head) -> str | None:
    if head.weight.shape != base.weight.shape:
        return f"has {head.n_categories:,} categories by {head.n_features:,} features"
    if base.bias is None and head.bias is not None and bool((head.bias != 0).any()):
        return "has a bias"
    unnamed = has_default_names(head.categories) or has_default_names(base.categories)
    if not unnamed and set(head.categories) != set(base.categories):
        other = sorted(set(head.categories) - set(base.categories))
        return f"has other categories, such as {other[0]!r}"
    return None


def _like(head: Head, base: Head) -> Head:
    """A candidate as it would be stored: the base's order, dtype, device and bias."""
    if not has_default_names(head.categories) and not has_default_names(base.categories):
        head = head.take_categories(base.categories)
    bias = None
    if base.bias is not None:
        given = base.bias.new_zeros(base.n_categories) if head.bias is None else head.bias
        bias = given.to(base.device, base.bias.dtype)
    weight = head.weight.to(base.device, base.dtype)
    return head.replace(weight=weight, bias=bias, categories=base.categories)


def _aligned_head(head: Head, aligned: Aligned) -> Head:
    if np.array_equal(aligned.head_index, np.arange(head.n_categories)):
        return head
    return head.take_categories([int(i) for i in aligned.head_index])


def _head_of(candidate: Candidate) -> Head:
    return candidate.head if isinstance(candidate, (TuneResult, Run)) else candidate


def _in_sample(names: list[str], unseen: list[UnseenRows]) -> list[str]:
    """A sentence for each candidate that some of the rows fitted; a warning if they are lost."""
    notes, lost = [], []
    for name, rows in zip(names, unseen, strict=True):
        if rows.n_seen:
            told = (
                f"{rows.n_seen:,} of {rows.part.size:,} validation rows fitted or chose the "
                f"candidate {name!r}: it is judged by {rows.told()}."
            )
            notes.append(told)
            lost += [told] if rows.n_left_out else []
    if lost:
        warnings.warn(" ".join(lost), InSampleWarning, stacklevel=3)
    unknown = [repr(name) for name, rows in zip(names, unseen, strict=True) if not rows.is_known]
    if unknown:
        which = ("candidate " if len(unknown) == 1 else "candidates ") + ", ".join(unknown)
        notes.append(f"it is not known whether some of these rows fitted the {which}.")
    return notes


def _mixed(
    heads: list[Head],
    aligned: Aligned,
    choice: NDArray[np.int64],
    digests: NDArray[np.uint64],
    config: dict[str, Any],
) -> Head:
    """The chosen rows as one head that remembers what fitted and selected it."""
    base = heads[0]
    weight, bias = base.weight.clone(), None if base.bias is None else base.bias.clone()
    for k in range(1, len(heads)):
        rows = torch.from_numpy(aligned.head_index[choice == k]).to(base.device)
        weight[rows] = heads[k].weight[rows]
        if bias is not None:
            other = heads[k].bias
            bias[rows] = 0.0 if other is None else other[rows]
    mixed = base.replace(
        weight=weight,
        bias=bias,
        provenance={
            "catwise": __version__,
            "made_by": "select",
            "config": config,
            "candidates": {n: h.digest for n, h in zip(config["candidates"], heads, strict=True)},
            "base": base.provenance,
        },
    )
    for head in heads[1:]:
        mixed = mixed.with_fitted_on(head.fitted_on)
    return mixed.with_fitted_on(digests)


_KEPT_BECAUSE: Final = {
    "clearly_worse": "What would have been chosen is clearly worse here: the interval of its "
    "corrected gain lies wholly on the wrong side of zero. The original head was kept.",
    "no_other_row": "No candidate differs from the original head here.",
    "not_judged": "No candidate could be judged on rows that it has not seen; the head was kept.",
}


class _Account(NamedTuple):
    """A choice and what it is worth, to be told."""

    names: list[str]
    scored: Scored
    decision: Decision
    choice: NDArray[np.int64]
    gains: Gains
    unseen: list[UnseenRows]
    metric: Metric
    config: dict[str, Any]
    harmed: NDArray[np.bool_]  # (C,) kept because the choice was clearly worse

    @property
    def sign(self) -> float:
        return self.metric.sign

    def records(self, aligned: Aligned) -> list[dict[str, Any]]:
        """One for each row of the base head."""
        place = {int(i): c for c, i in enumerate(aligned.head_index)}
        own = has_default_names(aligned.head.categories)
        reasons = undefined_reason(aligned.labels)
        records = []
        for index, name in enumerate(aligned.head.categories):
            c = place.get(index)
            known_as = aligned.categories[c] if own and c is not None else name
            record = {"category": known_as, "index": index, **self._empty()}
            if c is None:
                record |= self._skipped("not_in_labels")
            else:
                counts = aligned.labels.counts()
                record["n_positive_valid"] = int(counts.positive[c])
                record["n_negative_valid"] = int(counts.negative[c])
                reason = reasons[c]
                record |= self._told(c) if reason is None else self._skipped(reason)
            records.append(record)
        return records

    def _empty(self) -> dict[str, Any]:
        """Every key, in the order of a record, with nothing known."""
        return {
            "status": "skipped",
            "reason": "",
            "explanation": "",
            "candidate": self.names[0],
            "metric": self.metric.name,
            "before": None,
            "after": None,
            "gain": None,
            "gain_low": None,
            "gain_high": None,
            "interval_reason": None,
            "selected_on": None,
            "scored_on": "",
            "n_positive_train": None,
            "n_negative_train": None,
            "n_positive_valid": 0,
            "n_negative_valid": 0,
            "gap_auroc": None,
            "gap_average_precision": None,
            "candidates": {},
        }

    @staticmethod
    def _skipped(reason: str) -> dict[str, Any]:
        return {
            "reason": reason,
            "explanation": f"{_NOT_KNOWN[reason]} The original head was kept.",
        }

    def _told(self, c: int) -> dict[str, Any]:
        k = int(self.choice[c])
        before, raw = self._raw(0, c), self._raw(k, c)
        gain = float(self.gains.gain[c]) if k else 0.0
        low, high, why_not = self._interval(c)
        after = number(before + gain)
        reason = self._reason(c)
        without = (
            f" {EXPLANATIONS[why_not]}" if why_not in {"few_positives", "few_negatives"} else ""
        )
        return {
            "status": "replaced" if k else "kept",
            "reason": reason,
            "explanation": self._explanation(c, reason, after) + without,
            "candidate": self.names[k],
            "before": number(before),
            "after": after,
            "gain": number(gain),
            "gain_low": number(low),
            "gain_high": number(high),
            "interval_reason": why_not,
            "selected_on": number(raw),
            "scored_on": self._scored_on(k),
            "candidates": {name: number(self._raw(i, c)) for i, name in enumerate(self.names)},
        }

    def _interval(self, c: int) -> tuple[float, float, str | None]:
        """Of the gain, or why there is none."""
        if not self.choice[c]:
            return math.nan, math.nan, "unchanged"
        return float(self.gains.low[c]), float(self.gains.high[c]), self.gains.why[c]

    def _raw(self, k: int, c: int) -> float:
        return float(self.sign * self.scored.values[k, c])

    def _scored_on(self, k: int) -> str:
        if k == 0:
            return "validation rows"
        what = self.unseen[k].told() if self.unseen[k].n_seen else "the validation rows"
        return f"{what}, chosen without each tenth in {self.config['splits']} splits"

    def _reason(self, c: int) -> str:
        if self.harmed[c]:
            return "clearly_worse"
        if self.scored.same[1:, c].all():
            return "no_other_row"
        if not self._judged[:, c].any():
            return "not_judged"
        k = int(self.choice[c])
        positives = self.scored.positives[k if k else self._best(c), c]
        few = self.config["rule"] == "honest" and positives < MIN_POSITIVES
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

    def _explanation(self, c: int, reason: str, after: float | None) -> str:
        k = int(self.choice[c])
        taken, n = self.names[k], int(self.scored.positives[k if k else self._best(c), c])
        if reason in _KEPT_BECAUSE:
            return _KEPT_BECAUSE[reason]
        if reason.startswith("pooled"):
            what = f"{taken!r} is taken" if self.choice[c] else "the original head is kept"
            return f"Only {n} known positives: as the mean over all categories says, {what}."
        if not self.choice[c]:
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

    def summary(self, aligned: Aligned) -> dict[str, Any]:
        """Means over the categories that can be scored, and counts over the head's rows."""
        scored, is_scored = self.scored, np.isfinite(self.gains.gain)
        n_scored, n_defined = int(is_scored.sum()), int((scored.weights[0] > 0).sum())
        n_replaced = int((self.choice > 0).sum())
        before = self.sign * _mean(scored.values[0], is_scored)
        gain, low, high = self.gains.mean
        taken = scored.values[self.choice, np.arange(self.choice.size)]
        pooled = self.decision.pooled
        unknown = not self._judged.any() and not scored.same.all()
        if unknown:
            gain = low = high = math.nan
        return {
            "metric": self.metric.name,
            "n_categories": aligned.head.n_categories,
            "n_replaced": n_replaced,
            "n_kept": n_defined - n_replaced,
            "n_skipped": aligned.head.n_categories - n_defined,
            "before": number(before),
            "after": number(before + gain),
            "gain": number(gain),
            "gain_low": number(low),
            "gain_high": number(high),
            "reason": "no candidate could be judged on rows that it has not seen"
            if unknown
            else "",
            "n_scored": n_scored,
            "selected_on": None if unknown else number(self.sign * _mean(taken, is_scored)),
            "judged_by": dict(zip(self.names, (one.told() for one in self.unseen), strict=True)),
            "in_sample_rows": dict(
                zip(self.names, (one.n_seen for one in self.unseen), strict=True)
            ),
            "choice": {
                "rule": self.config["rule"],
                "taken": {n: int((self.choice == k).sum()) for k, n in enumerate(self.names)},
                "pooled_gain": {
                    name: number(self.sign * value) if weighed else None
                    for name, value, weighed in zip(
                        self.names, pooled.tolist(), scored.weights.sum(axis=1), strict=True
                    )
                },
            },
            "passes": {"features": scored.passes + 1},
        }


def _mean(values: NDArray[np.float64], covered: NDArray[np.bool_]) -> float:
    return float(values[covered].mean()) if covered.any() else math.nan
