"""For each category the best of several heads, and an account of what that is worth."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._version import __version__
from catwise.errors import ConfigError, HeadError, InSampleWarning, nearest
from catwise.features import check_finite
from catwise.heads import Head
from catwise.joining import (
    Aligned,
    align,
    has_default_names,
    open_source,
    require_known,
    source_digests,
    source_ids,
)
from catwise.labels import PartialLabels
from catwise.labels.audit import labelled_part
from catwise.metrics.registry import Metric, resolve_metric
from catwise.progress import ProgressCallback
from catwise.tuning.account.results import FoldArtifacts, SelectResult, TuneResult, changed_head
from catwise.tuning.account.selection import Selection
from catwise.tuning.choice.candidates import (
    FOLDS,
    affordable_splits,
    candidate_gains,
    nested_gains,
    score_candidates,
)
from catwise.tuning.choice.nested import nested_choice
from catwise.tuning.choice.rules import RULES, RuleName
from catwise.tuning.choice.unseen import UnseenRows, unseen_rows


class Run(NamedTuple):
    """A candidate that comes with the heads that were fitted without each fold of its rows."""

    head: Head  # tuned
    folds: FoldArtifacts | None  # what cross-fitting left, or None


Candidate: TypeAlias = "Head | TuneResult | Run"


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
        progress: called after each category.
        force: continue where a candidate and the data look mismatched.

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
    judging = _open_valid(valid, heads[0])
    labels, aligned = judging.labels, judging.aligned
    unseen = [
        judging.unseen_by(head, candidates[name]) for name, head in zip(names, heads, strict=True)
    ]
    notes = [*labelled_part(aligned.labels), *aligned.notes, *_in_sample(names, unseen)]
    made, capped = affordable_splits(labels, len(heads), splits)
    notes += [capped] if capped else []
    found, more = _choose(
        [_aligned_head(head, aligned) for head in heads],
        (judging.rows, labels),
        names,
        unseen,
        metric=chosen_metric,
        rule=rule,
        level=level,
        splits=made,
        seed=seed,
        force=force,
        progress=progress,
    )
    config = found.config() | {"seed": seed, "folds": FOLDS, "n_rows": labels.shape[0]}
    head = _mixed(heads, aligned, found.choice, judging.digests, config)
    account = found.account(aligned, time.perf_counter() - started)
    return SelectResult(head, account, config, [*notes, *more])


class _Judging(NamedTuple):
    """The rows that judge."""

    rows: Any
    labels: PartialLabels
    aligned: Aligned
    digests: NDArray[np.uint64]
    ids: NDArray[np.str_] | None

    def unseen_by(self, head: Head, candidate: Candidate) -> UnseenRows:
        """How they judge a candidate."""
        folds = getattr(candidate, "folds", None)
        return unseen_rows(head, folds, self.aligned, self.digests, self.ids)


def _open_valid(valid: tuple[Any, PartialLabels], head: Head) -> _Judging:
    """Check and join the rows that judge."""
    features, labels = open_source(valid, name="valid")
    aligned = align(head, features, labels, name="valid")
    require_known(labels, "validation label")
    rows = aligned.take(features)
    check_finite(rows, name="valid features")
    digests = source_digests(features, labels, aligned.rows)
    return _Judging(rows, labels, aligned, digests, source_ids(rows, labels))


def _choose(
    heads: Sequence[Head],
    valid: tuple[Any, PartialLabels],
    names: Sequence[str],
    unseen: Sequence[UnseenRows],
    *,
    metric: Metric,
    rule: RuleName,
    level: float,
    splits: int,
    **options: Any,
) -> tuple[Selection, list[str]]:
    """The nested choice among heads of the labels' categories, and what was seen on the way."""
    scored = score_candidates(
        heads, *valid, metric, splits=splits, unseen=unseen, names=names, **options
    )
    decision = nested_choice(scored, RULES[rule])
    choice = decision.chosen.copy()
    choice[scored.same[choice, np.arange(choice.size)]] = 0
    gains = candidate_gains(
        heads,
        *valid,
        metric,
        scored=scored,
        gains=nested_gains(scored, decision),
        choice=choice,
        unseen=unseen,
        level=level,
    )
    harmed = gains.clearly_worse(metric) & (choice > 0)
    choice[harmed] = 0
    found = Selection(
        names=names,
        scored=scored,
        decision=decision,
        choice=choice,
        harmed=harmed,
        gains=gains if choice.any() else gains.without_mean(),
        unseen=unseen,
        metric=metric,
        rule=rule,
        splits=splits,
        level=level,
    )
    return found, scored.notes


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
            text = (
                f"{rows.n_seen:,} of {rows.part.size:,} validation rows fitted or chose the "
                f"candidate {name!r}: it is judged by {rows.described()}."
            )
            notes.append(text)
            lost += [text] if rows.n_left_out else []
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
    mixed = base = heads[0]
    for k, head in enumerate(heads[1:], 1):
        rows = aligned.head_index[choice == k]
        at = torch.from_numpy(rows).to(head.device)
        bias = None if head.bias is None else head.bias[at]
        mixed = changed_head(mixed, rows, head.weight[at], bias)
    mixed = mixed.replace(
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
