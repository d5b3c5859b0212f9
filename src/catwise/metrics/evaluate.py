"""A head's metrics on labelled features: per category, macro, micro, with intervals."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch

from catwise._device import resolve_device
from catwise.errors import ConfigError, InSampleWarning, ShapeError, nearest
from catwise.features import of_categories
from catwise.joining import Aligned, align, open_source, require_known, source_digests
from catwise.labels.audit import labelled_part
from catwise.metrics._inputs import as_tensor, known_entries
from catwise.metrics.bootstrap import Resampler, _groups
from catwise.metrics.evaluation import Evaluation, Interval
from catwise.metrics.mismatch import check_match
from catwise.metrics.per_category import class_counts, undefined_reason
from catwise.metrics.registry import Metric, resolve_metric
from catwise.metrics.replicates import metric_replicates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from catwise.heads import Head
    from catwise.labels import PartialLabels

__all__ = ["DEFAULT_METRICS", "evaluate"]

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
    bootstrap: int = 0,
    level: float = 0.95,
    seed: int = 0,
    device: str | torch.device | None = None,
    force: bool = False,
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
        bootstrap: replicates of the stratified bootstrap (by group where labels have groups)
            for intervals; 0: none.
        level: confidence level of the intervals, in (0, 1).
        seed: of the bootstrap.
        device: where logits and metrics are computed; None: where the features are.
        force: go on where head, features and labels look as if they did not belong together.

    Returns:
        The metrics. NaN and a reason where a category lacks a known positive or negative.

    Raises:
        ShapeError: If features, labels, head or options do not fit together.
        IdError: If a labelled row has no features.
        CategoryError: If the head lacks a category of the labels.
        MismatchError: If the head's rows rank the labels' columns no better than chance, or
            better in another order.
        LabelError: If no label is known.
        FeatureError: If a logit is NaN.
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
    chosen = _chosen(metrics, bootstrap, level)
    features, labels = open_source(data, name="data")
    aligned = align(head, features, labels, name="data")
    require_known(labels)
    rows = aligned.take(features)
    options = {
        "prevalence": _options(prevalence, aligned, "prevalence"),
        "threshold": _options(thresholds, aligned, "thresholds"),
    }
    if device is None:
        device = features.device if isinstance(features, torch.Tensor) else head.device
    n_in_sample = _count_in_sample(head, features, aligned)
    scored = _Scores(chosen, options, aligned, bootstrap=bootstrap, seed=seed)
    notes = [*labelled_part(aligned.labels), *aligned.notes]
    for block, part_labels, logits in _blocks(aligned, rows, resolve_device(device)):
        if block.start == 0:
            names = aligned.categories[block]
            notes += check_match(logits, part_labels, categories=names, force=force)
        scored.add(block, logits, part_labels)
    return _evaluation(aligned, scored, level=level, n_in_sample=n_in_sample, notes=notes)


def _chosen(metrics: Sequence[str | Metric], bootstrap: int, level: float) -> list[Metric]:
    if isinstance(metrics, (str, Metric)):
        metrics = (metrics,)
    chosen = list({(one := resolve_metric(metric)).name: one for metric in metrics}.values())
    problems = []
    if not chosen:
        problems.append("metrics is empty")
    if bootstrap < 0:
        problems.append(f"bootstrap={bootstrap}")
    if not 0.0 < level < 1.0:
        problems.append(f"level={level}")
    if problems:
        raise ConfigError(
            "these options of an evaluation are not possible.",
            found="; ".join(problems),
            expected="at least one metric, bootstrap at least 0, level in (0, 1)",
        )
    return chosen


def _options(value: PerCategory, aligned: Aligned, name: str) -> float | torch.Tensor | None:
    """An option as a number or (C,) tensor in the order of the labels' columns."""
    names = aligned.categories
    if value is None or isinstance(value, (int, float)):
        return None if value is None else float(value)
    if hasattr(value, "keys"):
        lacking = [category for category in names if category not in value]
        if lacking:
            raise ConfigError(
                f"{name} must have a number for each category.",
                found=f"none for {len(lacking):,}, first {lacking[0]!r}"
                f"{nearest(lacking[0], map(str, value))}",
            )
        value = [value[category] for category in names]
    tensor = as_tensor(value, name).double().cpu()
    if tensor.ndim == 0:
        return float(tensor)
    if tuple(tensor.shape) != (len(names),):
        raise ShapeError(
            f"{name} does not fit the categories.",
            found=f"shape {tuple(tensor.shape)}",
            expected=f"a number, or one for each of the {len(names):,} categories",
        )
    return tensor


def _count_in_sample(head: Head, features: Any, aligned: Aligned) -> int:
    """How many of the rows fitted or selected the head; known by id, else by content."""
    if head.fitted_on is None or not head.fitted_on.size:
        return 0
    digests = source_digests(features, aligned.labels, aligned.rows)
    count = int(np.isin(digests, head.fitted_on).sum())
    if count:
        warnings.warn(
            f"{count:,} of {digests.size:,} rows fitted or selected this head: "
            "the result is in sample and too good",
            InSampleWarning,
            stacklevel=3,
        )
    return count


def _blocks(
    aligned: Aligned, rows: Any, device: torch.device
) -> Iterator[tuple[slice, PartialLabels, torch.Tensor]]:
    """Categories, their labels and their logits, as many at a time as memory allows."""
    n_rows, n_categories = aligned.labels.shape
    head = aligned.scored.to(device)
    width = max(1, _ENTRIES // max(n_rows, 1))
    for start in range(0, n_categories, width):
        block = slice(start, min(start + width, n_categories))
        if block.stop - block.start == n_categories:
            yield block, aligned.labels, head.logits(rows)
            return
        index = range(block.start, block.stop)
        logits = head.take_categories(index).logits(of_categories(rows, index, n_categories))
        yield block, aligned.labels.take_categories(index), logits


class _Pooled(NamedTuple):
    """Known labels of several categories as one."""

    scores: torch.Tensor
    codes: torch.Tensor
    margins: torch.Tensor  # scores above their category's threshold


class _Scores:
    """Values, pooled labels and replicates, gathered block by block."""

    def __init__(
        self,
        metrics: list[Metric],
        options: Mapping[str, float | torch.Tensor | None],
        aligned: Aligned,
        *,
        bootstrap: int,
        seed: int,
    ) -> None:
        n_rows, n_categories = aligned.labels.shape
        self.metrics, self.bootstrap = metrics, bootstrap
        self.options = {name: value for name, value in options.items() if value is not None}
        self.values = {metric.name: np.full(n_categories, np.nan) for metric in metrics}
        self.replicates = {
            metric.name: np.full((bootstrap, n_categories), np.nan)
            for metric in (metrics if bootstrap else ())
        }
        counts = class_counts(aligned.labels)
        self.pools = int(counts[0].sum() + counts[1].sum()) <= _POOLED
        self.pooled: list[_Pooled] = []
        self.resampler = Resampler(_groups(aligned.labels, None, n_rows), seed=seed)

    def of(self, metric: Metric, block: slice) -> dict[str, Any]:
        """The options that a metric takes, for a block of categories."""
        return {
            name: value[block] if isinstance(value, torch.Tensor) else value
            for name, value in self.options.items()
            if name in metric.takes
        }

    def add(self, block: slice, logits: torch.Tensor, labels: PartialLabels) -> None:
        """Score a block of categories."""
        for metric in self.metrics:
            values = metric.per_category(logits, labels, **self.of(metric, block))
            self.values[metric.name][block] = values.cpu().numpy()
        if self.pools:
            self.pooled.append(self._pool(block, logits, labels))
        if self.bootstrap:
            self._resample(block, logits, labels)

    def _pool(self, block: slice, logits: torch.Tensor, labels: PartialLabels) -> _Pooled:
        scores, codes = known_entries(logits, labels)
        threshold = self.options.get("threshold")
        if not isinstance(threshold, torch.Tensor):
            return _Pooled(scores, codes, scores)
        margins = logits.double() - threshold[block].to(logits.device)
        return _Pooled(scores, codes, known_entries(margins, labels)[0])

    def _resample(self, block: slice, logits: torch.Tensor, labels: PartialLabels) -> None:
        width = block.stop - block.start
        wanted = [
            (metric, [_at(self.of(metric, block), c) for c in range(width)])
            for metric in self.metrics
        ]
        found = metric_replicates(
            logits, labels, wanted, self.resampler, n_resamples=self.bootstrap
        )
        for name, replicates in found.items():
            self.replicates[name][:, block] = replicates

    def micro(self) -> dict[str, float]:
        """Each metric over the known labels of all categories pooled as one."""
        if not self.pooled:
            return dict.fromkeys(self.values, float("nan"))
        parts = [torch.cat(part) for part in zip(*self.pooled, strict=True)]
        return {metric.name: self._micro(metric, _Pooled(*parts)) for metric in self.metrics}

    def _micro(self, metric: Metric, pooled: _Pooled) -> float:
        given = self.of(metric, slice(None))
        if isinstance(given.get("prevalence"), torch.Tensor):
            return float("nan")  # one pool has one prevalence
        if isinstance(given.get("threshold"), torch.Tensor):
            del given["threshold"]
            return float(metric.columns(pooled.margins, pooled.codes, **given))
        return float(metric.columns(pooled.scores, pooled.codes, **given))


def _at(options: Mapping[str, Any], c: int) -> dict[str, float]:
    """The options of one category."""
    return {
        name: float(value[c]) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }


def _evaluation(
    aligned: Aligned, scored: _Scores, *, level: float, n_in_sample: int, notes: list[str]
) -> Evaluation:
    labels, micro = aligned.labels, scored.micro()
    if not scored.pools:
        notes.append(f"micro means were left out: there are over {_POOLED:,} known labels.")
    if isinstance(scored.options.get("prevalence"), torch.Tensor):
        notes.append("micro means have no prevalence per category: they are NaN.")
    n_positive, n_negative = class_counts(labels)
    means = {}
    for name, values in scored.values.items():
        covered = np.isfinite(values)
        macro = float(values[covered].mean()) if covered.any() else float("nan")
        means[name] = {"macro": macro, "micro": micro[name], "n_categories": int(covered.sum())}
    return Evaluation(
        categories=aligned.categories,
        head_index=aligned.head_index,
        values=scored.values,
        means=means,
        reasons=tuple(undefined_reason(labels)),
        intervals={
            name: Interval.of(replicates, scored.values[name], level)
            for name, replicates in scored.replicates.items()
        },
        n_rows=labels.shape[0],
        n_positive=n_positive,
        n_negative=n_negative,
        n_in_sample=n_in_sample,
        options={name: _json(value) for name, value in scored.options.items()},
        level=level,
        notes=tuple(notes),
        replicates=scored.replicates,
        sample=_fingerprint(labels, scored.resampler.seed) if scored.bootstrap else "",
    )


def _json(value: float | torch.Tensor) -> float | list[float]:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _fingerprint(labels: PartialLabels, seed: int) -> str:
    """What two evaluations must share for their replicates to be the same draws."""
    digest = hashlib.blake2b(repr((labels.shape, labels.categories, seed)).encode())
    for c in range(labels.shape[1]):
        rows, positive = labels.known(c)
        digest.update(np.ascontiguousarray(rows).tobytes() + np.packbits(positive).tobytes())
    if labels.groups is not None:
        digest.update("\n".join(labels.groups.tolist()).encode())
    return digest.hexdigest()
