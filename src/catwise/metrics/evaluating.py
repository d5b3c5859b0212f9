"""A head's metrics on labelled features: per category, macro, micro, with intervals."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._device import resolve_device
from catwise._text import plural
from catwise.errors import ConfigError, InSampleWarning, check_rules, nearest
from catwise.features import check_finite, of_categories
from catwise.heads import Head
from catwise.joining import (
    Aligned,
    align,
    aligned_features,
    open_source,
    require_known,
    seen_rows,
    source_digests,
    source_ids,
)
from catwise.labels import PartialLabels
from catwise.labels.audit import labelled_part
from catwise.labels.chosen import ChosenCells, chosen_note
from catwise.labels.reasons import FEW
from catwise.metrics.curves import CategoryCurves, CurveCollector
from catwise.metrics.evaluation import Evaluation, HeadComparison, Interval
from catwise.metrics.inputs import (
    KnownScores,
    check_head_logits,
    known_entries,
    known_scores,
    option_at,
    option_values,
)
from catwise.metrics.intervals import (
    LEVEL,
    MIN_COUNT,
    MeanError,
    Units,
    estimate_of,
    has_interval,
    interval_of_score,
    reason_without_interval,
)
from catwise.metrics.mismatch import check_match
from catwise.metrics.paired import PairedScores
from catwise.metrics.per_category import class_counts, undefined_reason
from catwise.metrics.pooling import By, Pooling
from catwise.metrics.registry import Metric, resolve_metric

DEFAULT_METRICS: Final = (
    "average_precision",
    "auroc",
    "f1",
    "best_f1",
    "precision",
    "recall",
    "brier",
    "log_loss",
    "ece",
)
"""What :func:`evaluate` computes when nothing is asked for."""

#: Rows that a warning names.
_SHOWN_ROWS: Final = 3
#: Known positives below which an average precision is clearly too high on average.
_BIASED_BELOW: Final = 10
#: Logits held at once: 256 MiB as float32.
_ENTRIES: Final = 1 << 26
#: Known labels that a micro mean pools at most: 0.6 GiB of scores and codes.
_POOLED: Final = 1 << 27

PerCategory: TypeAlias = Any
"""A number for all categories, (C,) numbers, or a mapping from category names to numbers."""


def evaluate(
    head: Head,
    data: tuple[Any, PartialLabels],
    *,
    metrics: Sequence[str | Metric] = DEFAULT_METRICS,
    prevalence: PerCategory = None,
    thresholds: PerCategory = None,
    by: By = None,
    pool: str = "mean",
    chosen: ChosenCells | None = None,
    level: float = LEVEL,
    device: str | torch.device | None = None,
    force: bool = False,
    curves: bool = False,
) -> Evaluation:
    """Score a head on labelled features.

    Rows join by id and categories by name where both sides have them, otherwise by position;
    the head may have more categories than the labels. Only known labels count.

    Args:
        head: the head.
        data: features (N, D) of any kind, or (N, C, D) with a vector for each category; and labels
            (N, C).
        metrics: names of metrics.
        prevalence: share of positives to assume for average precision, precision and F1, in
            (0, 1); None: the share among the known labels. A number, (C,) numbers, or a mapping
            from names, in which every category has its number.
        thresholds: logit from which an image is called positive for precision, recall and F1;
            None: 0. Given as `prevalence`.
        by: what is scored as one: None or "image"; "study", images whose ids lie in one folder;
            "patient", the groups of the labels; a mapping from ids to groups, or (N,) groups. A
            group is positive where one of its images is, and negative where all are.
        pool: "mean", the logit of the mean probability of its images, or "max", their largest.
        chosen: cells whose labels were asked for because a model was unsure of them, as
            `catwise.suggest` marks them: they are no sample, and are not scored.
        level: confidence level of the intervals, in (0, 1).
        device: where logits and metrics are computed; None: where the features are.
        force: go on where head, features and labels look as if they did not belong together.
        curves: keep what curves are drawn from (`catwise.plots`), too.

    Returns:
        The metrics with their intervals (`catwise.metrics.intervals`; rows of a group count
        as one). NaN and a reason where a category lacks a known positive or negative, and no
        interval and a reason where it has fewer than 3 of them.

    Raises:
        ShapeError: If features, labels, head or options do not fit together.
        IdError: If a labelled row has no features.
        CategoryError: If the head lacks a category of the labels.
        MismatchError: If the head's rows rank the labels' columns no better than chance, or
            better in another order.
        LabelError: If no label is known.
        FeatureError: If a feature is NaN or infinite.
        ConfigError: If an option is out of range.

    Warns:
        InSampleWarning: If some of the rows fitted or selected the head.

    >>> import numpy as np
    >>> from catwise.heads import Head
    >>> from catwise.labels import PartialLabels
    >>> head = Head(np.eye(2), categories=["cat", "dog"])
    >>> y = [[1, 0], [0, None], [1, 0]]
    >>> labels = PartialLabels.from_array(y, encoding="nan", categories=["cat", "dog"])
    >>> result = evaluate(head, ([[3.0, 0.0], [2.0, 1.0], [1.0, 2.0]], labels))
    >>> result.values["average_precision"].round(3), result.reasons
    (array([0.833,   nan]), (None, 'no_known_positive'))
    >>> result.means["auroc"]
    {'macro': 0.5, 'micro': 0.666..., 'n_categories': 1}
    """
    wanted = _chosen(metrics, level)
    options = {"prevalence": prevalence, "thresholds": thresholds}
    how: dict[str, Any] = {"by": by, "pool": pool, "chosen": chosen, "device": device}
    opened = _open({"this head": head}, data, options, **how)
    scored = _Scores(wanted, opened.options, opened.labels, level=level)
    drawn = CurveCollector(opened.categories) if curves else None
    notes = opened.notes
    for block, part_labels, (logits,) in opened.blocks:
        notes += _mismatches(opened, block, part_labels, [logits], force=force)
        scored.add(block, logits, part_labels)
        if drawn is not None:
            drawn.add(block, {"score": logits}, part_labels)
    return _evaluation(
        opened, scored, level=level, notes=notes, curves=None if drawn is None else drawn.result()
    )


def compare_heads(
    before: Head,
    after: Head,
    data: tuple[Any, PartialLabels],
    *,
    metrics: Sequence[str | Metric] = ("average_precision", "auroc"),
    prevalence: PerCategory = None,
    thresholds: PerCategory = None,
    by: By = None,
    pool: str = "mean",
    chosen: ChosenCells | None = None,
    level: float = LEVEL,
    device: str | torch.device | None = None,
    force: bool = False,
    curves: bool = False,
) -> HeadComparison:
    """Score two heads on the same labelled features, and say what the difference shows.

    For each metric a :class:`~catwise.metrics.PairedComparison`: scores before and after,
    differences with paired intervals, and what they show, per category and in the mean. The metric
    named first gives the verdict. Arguments, errors and warnings are those of :func:`evaluate`;
    both heads must have the labels' categories, and ConfigError is raised for a metric without an
    interval too.

    >>> from catwise.heads import Head
    >>> from catwise.labels import PartialLabels
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(300, 2))
    >>> labels = PartialLabels((z[:, :1] + rng.normal(size=(300, 1)) > 1).astype(np.int8))
    >>> found = compare_heads(Head([[1.0, 2.0]]), Head([[1.0, 0.0]]), (z, labels))
    >>> found.first.verdict, found.comparisons["auroc"].outcome
    ('helped', ('better',))
    """
    wanted = _chosen(metrics, level)
    heads = {"the head before": before, "the head after": after}
    options = {"prevalence": prevalence, "thresholds": thresholds}
    how: dict[str, Any] = {"by": by, "pool": pool, "chosen": chosen, "device": device}
    opened = _open(heads, data, options, **how)
    categories, notes = opened.categories, opened.notes
    scores = [
        PairedScores(one, opened.labels, level=level, categories=categories) for one in wanted
    ]
    drawn = CurveCollector(categories) if curves else None
    for block, part, (old, new) in opened.blocks:
        notes += _mismatches(opened, block, part, [old, new], force=force)
        if drawn is not None:
            drawn.add(block, {"before": old, "after": new}, part)
        for one in scores:
            one.add(block, old, new, part, **_of(one.metric, opened.options, block))
    found = {one.metric.name: one.result() for one in scores}
    first = found[wanted[0].name]
    notes += _few_notes(categories, first.n_positive, first.reason, list(found))
    return HeadComparison(
        comparisons=found,
        n_in_sample=(opened.n_in_sample[0], opened.n_in_sample[1]),
        options={name: _json(value) for name, value in opened.options.items()},
        notes=tuple(dict.fromkeys(notes)),
        curves=None if drawn is None else drawn.result(),
    )


class _Opened(NamedTuple):
    """Heads, features and labels that belong together, ready to be scored."""

    labels: PartialLabels
    categories: tuple[str, ...]
    head_index: NDArray[np.int64]  # of the last head
    options: dict[str, float | torch.Tensor]
    n_in_sample: list[int | None]  # of each head
    notes: list[str]
    blocks: Iterator[tuple[slice, PartialLabels, list[torch.Tensor]]]  # the logits of each head


def _open(
    heads: Mapping[str, Head],
    data: tuple[Any, PartialLabels],
    given: Mapping[str, PerCategory],
    *,
    by: By,
    pool: str,
    chosen: ChosenCells | None,
    device: str | torch.device | None,
) -> _Opened:
    """Join, check and look at everything; `heads` by what they are called."""
    features, labels = open_source(data, name="data")
    sides = {
        name: align(head, features, labels, name="data", head_name=name.replace("this", "the"))
        for name, head in heads.items()
    }
    require_known(labels)
    last = [*sides.values()][-1]
    last, notes = _without_chosen(last, chosen)
    options = {name.removesuffix("s"): _options(value, last, name) for name, value in given.items()}
    pooling, labels = Pooling.of(by, last.labels, pool), last.labels
    if pooling is not None:
        labels = pooling.labels(labels)
    n_in_sample = []
    notes += labelled_part(labels)
    notes += [] if pooling is None else [pooling.note]
    for name, one in sides.items():
        n_in_sample.append(_count_in_sample(one.head, features, one, name=name))
        notes += one.notes
        if n_in_sample[-1] is None:
            notes.append(f"it is not known whether some of these rows fitted {name}.")
    if device is None:
        device = features.device if isinstance(features, torch.Tensor) else last.head.device
    where = resolve_device(device)
    blocks = [_blocks(one, features, labels, pooling, where) for one in sides.values()]
    return _Opened(
        labels=labels,
        categories=last.categories,
        head_index=last.head_index,
        options={name: value for name, value in options.items() if value is not None},
        n_in_sample=n_in_sample,
        notes=notes,
        blocks=(
            (*parts[0][:2], [part[2] for part in parts]) for parts in zip(*blocks, strict=True)
        ),
    )


def _without_chosen(aligned: Aligned, chosen: ChosenCells | None) -> tuple[Aligned, list[str]]:
    """Rows without the labels that a model chose, and a note on these."""
    if chosen is None:
        return aligned, []
    rest = chosen.without(aligned.labels)
    require_known(rest, "label that no model chose")
    return replace(aligned, labels=rest), chosen_note(aligned.labels, rest, "they are not scored")


def _mismatches(
    opened: _Opened,
    block: slice,
    labels: PartialLabels,
    logits: list[torch.Tensor],
    *,
    force: bool,
) -> list[str]:
    """What the first block's logits say of heads, features and labels that do not match."""
    names = opened.categories[block]
    parts = [] if block.start else logits
    return [
        note for one in parts for note in check_match(one, labels, categories=names, force=force)
    ]


def _chosen(metrics: Sequence[str | Metric], level: float) -> list[Metric]:
    if isinstance(metrics, (str, Metric)):
        metrics = (metrics,)
    chosen = list({(one := resolve_metric(metric)).name: one for metric in metrics}.values())
    rules = {"at least one of metrics": bool(chosen), "0 < level < 1": 0.0 < level < 1.0}
    check_rules("options of an evaluation", {"metrics": [], "level": level}, rules)
    return chosen


def _options(value: PerCategory, aligned: Aligned, name: str) -> float | torch.Tensor | None:
    """An option as a number or (C,) tensor in the order of the labels' columns."""
    names = aligned.categories
    if hasattr(value, "keys"):
        lacking = [category for category in names if category not in value]
        if lacking:
            raise ConfigError(
                f"{name} must have a number for each category.",
                found=f"none for {len(lacking):,}, first {lacking[0]!r}"
                f"{nearest(lacking[0], map(str, value))}",
            )
        value = [value[category] for category in names]
    values = option_values(value, name, len(names))
    return values.cpu() if isinstance(values, torch.Tensor) else values


def _count_in_sample(head: Head, features: Any, aligned: Aligned, *, name: str) -> int | None:
    """How many of the rows fitted or selected the head, by id or content; None if unknown."""
    if head.fitted_on is None:
        return None
    if not head.fitted_on.size:
        return 0
    digests = source_digests(features, aligned.labels, aligned.rows)
    seen, is_whole = seen_rows(head, digests)
    count = int(seen.sum())
    if not count and not is_whole:
        return None
    if count:
        ids = source_ids(aligned_features(features, aligned.rows), aligned.labels)
        rows = np.flatnonzero(seen)[:_SHOWN_ROWS]
        shown = [f"row {row:,}" if ids is None else repr(str(ids[row])) for row in rows]
        more = f" and {count - len(shown):,} more" if count > len(shown) else ""
        warnings.warn(
            f"{count:,} of {digests.size:,} rows fitted or selected {name} "
            f"({', '.join(shown)}{more}): the result is in sample and too good",
            InSampleWarning,
            stacklevel=4,
        )
    return count


def _blocks(
    aligned: Aligned,
    features: Any,
    labels: PartialLabels,
    pooling: Pooling | None,
    device: torch.device,
) -> Iterator[tuple[slice, PartialLabels, torch.Tensor]]:
    """Categories, their labels and their finite logits, as many at a time as memory allows."""
    rows = aligned.take(features)
    check_finite(rows)
    n_rows, n_categories = aligned.labels.shape
    head = aligned.scored.to(device)
    width = max(1, _ENTRIES // max(n_rows, 1))
    for start in range(0, n_categories, width):
        block = slice(start, min(start + width, n_categories))
        names = aligned.categories[block]
        if block.stop - block.start == n_categories:
            logits = check_head_logits(head.logits(rows), names, name="data")
            yield block, labels, logits if pooling is None else pooling.logits(logits)
            return
        index = range(block.start, block.stop)
        logits = head.take_categories(index).logits(of_categories(rows, index, n_categories))
        logits = check_head_logits(logits, names, name="data")
        pooled = logits if pooling is None else pooling.logits(logits)
        yield block, labels.take_categories(index), pooled


class _Pooled(NamedTuple):
    """Known labels of several categories as one."""

    scores: torch.Tensor
    codes: torch.Tensor
    margins: torch.Tensor  # scores above their category's threshold


class _Intervals:
    """The intervals of one metric, gathered category by category."""

    def __init__(self, metric: Metric, n_categories: int, units: Units, level: float) -> None:
        self.metric, self.level = metric, level
        self.per_category = np.full((n_categories, 2), np.nan)
        self.mean = MeanError(units.n_units)

    def add(
        self, c: int, known: KnownScores, units: Units, *, threshold: float, share: float | None
    ) -> None:
        """Count category number c in."""
        name, scores = self.metric.name, known.above(threshold)
        estimate, shares = estimate_of(name, scores, known.positive, units, prevalence=share)
        self.mean.add(estimate, shares, units.of_row)
        self.per_category[c] = interval_of_score(name, estimate, self.level)

    def result(self) -> Interval:
        """The intervals, when all categories are in."""
        macro = self.mean.interval_of_score(self.metric.name, self.level)
        return Interval(self.per_category, macro)


class _Scores:
    """Values, intervals and pooled labels, gathered block by block."""

    def __init__(
        self,
        metrics: list[Metric],
        options: Mapping[str, float | torch.Tensor],
        labels: PartialLabels,
        *,
        level: float,
    ) -> None:
        n_categories = labels.shape[1]
        self.metrics, self.options = metrics, options
        self.values = {metric.name: np.full(n_categories, np.nan) for metric in metrics}
        self.units = Units.of_labels(labels)
        self.reasons = undefined_reason(labels)
        self.interval_reasons = list(self.reasons)
        self.intervals = {
            metric.name: _Intervals(metric, n_categories, self.units, level)
            for metric in metrics
            if has_interval(metric)
        }
        counts = class_counts(labels)
        self.pools = int(counts[0].sum() + counts[1].sum()) <= _POOLED
        self.pooled: list[_Pooled] = []

    def add(self, block: slice, logits: torch.Tensor, labels: PartialLabels) -> None:
        """Score a block of categories."""
        for metric in self.metrics:
            values = metric.per_category(logits, labels, **_of(metric, self.options, block))
            self.values[metric.name][block] = values.cpu().numpy()
        if self.pools:
            self.pooled.append(self._pool(block, logits, labels))
        self._bound(block, logits, labels)

    def _pool(self, block: slice, logits: torch.Tensor, labels: PartialLabels) -> _Pooled:
        scores, codes = known_entries(logits, labels)
        threshold = self.options.get("threshold")
        if not isinstance(threshold, torch.Tensor):
            return _Pooled(scores, codes, scores)
        margins = logits.double() - threshold[block].to(logits.device)
        return _Pooled(scores, codes, known_entries(margins, labels)[0])

    def _bound(self, block: slice, logits: torch.Tensor, labels: PartialLabels) -> None:
        """Intervals, and what each category adds to the error of the means."""
        options = {
            name: _of(one.metric, self.options, block) for name, one in self.intervals.items()
        }
        for at, c in enumerate(range(block.start, block.stop)):
            known = known_scores(logits, labels, at)
            units = self.units.take(known.rows)
            if self.reasons[c] is None:
                self.interval_reasons[c] = reason_without_interval(*units.by_class(known.positive))
            for name, intervals in self.intervals.items():
                if intervals.metric.covers(known.positive):
                    given = options[name]
                    intervals.add(
                        c,
                        known,
                        units,
                        threshold=option_at(given.get("threshold"), at) or 0.0,
                        share=option_at(given.get("prevalence"), at),
                    )

    def micro(self) -> dict[str, float]:
        """Each metric over the known labels of all categories pooled as one."""
        if not self.pooled:
            return dict.fromkeys(self.values, float("nan"))
        parts = [torch.cat(part) for part in zip(*self.pooled, strict=True)]
        return {metric.name: self._micro(metric, _Pooled(*parts)) for metric in self.metrics}

    def _micro(self, metric: Metric, pooled: _Pooled) -> float:
        given = _of(metric, self.options, slice(None))
        if isinstance(given.get("prevalence"), torch.Tensor):
            return float("nan")  # one pool has one prevalence
        if isinstance(given.get("threshold"), torch.Tensor):
            del given["threshold"]
            return float(metric.columns(pooled.margins, pooled.codes, **given))
        return float(metric.columns(pooled.scores, pooled.codes, **given))


def _of(
    metric: Metric, options: Mapping[str, float | torch.Tensor], block: slice
) -> dict[str, Any]:
    """The options that a metric takes, for a block of categories."""
    return {
        name: value[block] if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
        if name in metric.takes
    }


def _evaluation(
    opened: _Opened,
    scored: _Scores,
    *,
    level: float,
    notes: list[str],
    curves: tuple[CategoryCurves, ...] | None,
) -> Evaluation:
    labels, micro = opened.labels, scored.micro()
    if not scored.pools:
        notes.append(f"micro means were left out: there are over {_POOLED:,} known labels.")
    if isinstance(scored.options.get("prevalence"), torch.Tensor):
        notes.append("micro means have no prevalence per category: they are NaN.")
    n_positive, n_negative = class_counts(labels)
    notes += _few_notes(opened.categories, n_positive, scored.interval_reasons, [*scored.values])
    without = [name for name in scored.values if name not in scored.intervals]
    notes += [f"no interval is known for {name!r}." for name in without]
    means = {}
    for name, values in scored.values.items():
        covered = np.isfinite(values)
        macro = float(values[covered].mean()) if covered.any() else float("nan")
        means[name] = {"macro": macro, "micro": micro[name], "n_categories": int(covered.sum())}
    return Evaluation(
        categories=opened.categories,
        head_index=opened.head_index,
        values=scored.values,
        means=means,
        reasons=tuple(scored.reasons),
        intervals={name: one.result() for name, one in scored.intervals.items()},
        interval_reasons=tuple(scored.interval_reasons),
        n_rows=labels.shape[0],
        n_positive=n_positive,
        n_negative=n_negative,
        n_in_sample=opened.n_in_sample[0],
        options={name: _json(value) for name, value in scored.options.items()},
        level=level,
        notes=tuple(notes),
        curves=curves,
    )


def _json(value: float | torch.Tensor) -> float | list[float]:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _few_notes(
    categories: Sequence[str],
    n_positive: NDArray[np.int64],
    reasons: Sequence[str | None],
    metrics: Sequence[str],
) -> list[str]:
    """What to know of categories with few known positives or negatives."""
    found = Counter(reason for reason in reasons if reason in FEW)
    few = [
        f"{plural(found[key], 'category', 'categories')} with fewer than {MIN_COUNT} known "
        f"{str(key).removeprefix('few_')}"
        for key in found
    ]
    notes = [f"there is no interval for {' and '.join(few)}."] if few else []
    low = [
        f"{name!r} ({n})"
        for name, n, reason in zip(categories, n_positive.tolist(), reasons, strict=True)
        if n < _BIASED_BELOW and (reason is None or reason in FEW)
    ]
    if low and "average_precision" in metrics:
        shown = ", ".join(low[:3]) + (", …" if len(low) > 3 else "")
        notes.append(
            f"average precision from fewer than {_BIASED_BELOW} positives tends to be too high: "
            f"{plural(len(low), 'category', 'categories')}, {shown}."
        )
    return notes
