"""How much the backbone has memorised: the original head on training against held-out labels.

A backbone separates the images that it was trained on too well, so that a head fitted on them
learns what does not hold elsewhere. The gap between the original head's scores on training and
on held-out images says how much, and so how much training labels are worth for fitting. What is
known is a biased sample in either source; where the biases differ, that is in the gap too.

Intervals are those of :mod:`catwise.metrics.intervals`, of two scores of different rows: the
pooled mean counts errors that categories share as shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._json import number
from catwise.errors import ShapeError, check_rules
from catwise.labels import PartialLabels
from catwise.labels.reasons import class_reason
from catwise.metrics.bootstrap import category_names
from catwise.metrics.inputs import (
    KnownScores,
    checked_labels,
    checked_logits,
    known_scores,
    label_shape,
)
from catwise.metrics.intervals import (
    Estimate,
    MeanError,
    Units,
    estimate_of,
    interval_between,
    interval_of_score,
)

FEW: Final = 5
"""Known positives, and known negatives, that a category needs in both sources."""

_METRICS: Final = ("auroc", "average_precision")
#: Pooled AUROC gaps from which training labels count for less, and for little.
_SOME, _STRONG = 0.02, 0.06


class PooledGap(NamedTuple):
    """Mean gap of one metric over the categories that have one."""

    gap: float
    low: float
    high: float
    training: float
    fresh: float
    n_categories: int


class CategoryGap(NamedTuple):
    """Gap of one metric in every category; (C,) float64 each, NaN where there is none."""

    gap: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    training: NDArray[np.float64]
    fresh: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MemorisationGap:
    """The original head's scores on training minus those on held-out labels.

    Attributes:
        categories: C names.
        auroc: per category.
        average_precision: per category, both at the held-out labels' prevalence.
        pooled: {"auroc": …, "average_precision": …} means over categories.
        reasons: C times None, or why there is no gap: "no_known_label", "no_known_positive",
            "no_known_negative", "few_positives", "few_negatives".
        prevalence: (C,) float64 share of positives among the held-out known labels.
        n_positive_training: (C,) int64.
        n_positive_fresh: (C,) int64.
        level: confidence level of the intervals.
        advice: one sentence.
    """

    categories: tuple[str, ...]
    auroc: CategoryGap
    average_precision: CategoryGap
    pooled: dict[str, PooledGap]
    reasons: tuple[str | None, ...]
    prevalence: NDArray[np.float64]
    n_positive_training: NDArray[np.int64]
    n_positive_fresh: NDArray[np.int64]
    level: float
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """The pooled gaps and the advice, JSON-ready; None where a number is not defined."""
        pooled = {
            name: {key: number(value) for key, value in one._asdict().items()}
            for name, one in self.pooled.items()
        }
        return {**pooled, "level": self.level, "advice": self.advice}

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category.

        Keys: category, reason, n_positive_training, n_positive_fresh, prevalence, and for both
        metrics (gap_auroc, gap_average_precision) the gap, and with "_low", "_high",
        "_training" and "_fresh" its interval and its two sides.
        """
        result = []
        for c, category in enumerate(self.categories):
            record: dict[str, Any] = {
                "category": category,
                "reason": self.reasons[c],
                "n_positive_training": int(self.n_positive_training[c]),
                "n_positive_fresh": int(self.n_positive_fresh[c]),
                "prevalence": number(float(self.prevalence[c])),
            }
            for name in _METRICS:
                for key, values in getattr(self, name)._asdict().items():
                    suffix = "" if key == "gap" else f"_{key}"
                    record[f"gap_{name}{suffix}"] = number(float(values[c]))
            result.append(record)
        return result


def memorisation_gap(
    logits_training: Any,
    labels_training: PartialLabels,
    logits_fresh: Any,
    labels_fresh: PartialLabels,
    *,
    level: float = 0.95,
) -> MemorisationGap:
    """Measure how much better the original head is on training than on held-out labels.

    Average precision depends on the share of positives, which differs between the sources; so
    both sides are taken at the share among the held-out known labels.

    Args:
        logits_training: (N, C) float of the original head on the training images.
        labels_training: (N, C) known labels of these images.
        logits_fresh: (M, C) float of the same head on images that the backbone has not seen.
        labels_fresh: (M, C).
        level: confidence level of the intervals, in (0, 1).

    Returns:
        Gaps per category and pooled, with intervals; a category with under 5 known positives
        or negatives in either source has none, and a reason.

    Raises:
        ShapeError: If logits and labels, or the two sources, do not fit together.
        FeatureError: If a logit is NaN or infinite.
        ConfigError: If the level is not in (0, 1).

    Source: DeLong et al., Biometrics 44, 1988 (AUROC); Efron, Biometrika 68, 1981 (the
    infinitesimal jackknife, AP); Siblini et al., IDA 2020 (AP at a stated prevalence).

    >>> rng = np.random.default_rng(0)
    >>> codes = (rng.random((400, 3)) < 0.3).astype(np.int8)
    >>> seen, fresh = (rng.normal(size=(400, 3)) + shift * codes for shift in (3.0, 1.0))
    >>> found = memorisation_gap(seen, codes, fresh, codes)
    >>> found.pooled["auroc"].n_categories, bool(found.pooled["auroc"].low > 0.1)
    (3, True)
    """
    check_rules("options of the gap", {"level": level}, {"level in (0, 1)": 0.0 < level < 1.0})
    names = category_names(labels_training)
    if len(names) != label_shape(labels_fresh)[1]:
        raise ShapeError(
            "training and held-out labels differ in their number of categories.",
            found=f"{len(names):,} and {label_shape(labels_fresh)[1]:,}",
            expected="the same categories in the same order",
        )
    training = _Side(logits_training, labels_training)
    fresh = _Side(logits_fresh, labels_fresh)
    table = np.full((len(_METRICS), 5, len(names)), np.nan)
    share, reasons = np.full(len(names), np.nan), []
    for c in range(len(names)):
        sides = training.known(c), fresh.known(c)
        reasons.append(_reason(sides[0].positive) or _reason(sides[1].positive))
        if sides[1].positive.size:
            share[c] = sides[1].positive.mean()
        if reasons[-1] is None:
            for m, metric in enumerate(_METRICS):
                seen = training.score(metric, sides[0], float(share[c]))
                new = fresh.score(metric, sides[1], float(share[c]))
                table[m, :, c] = _gap_of(metric, seen, new, level)
    pooled = {
        name: _pool(name, training.means[name], fresh.means[name], level) for name in _METRICS
    }
    return MemorisationGap(
        categories=names,
        auroc=CategoryGap(*table[0]),
        average_precision=CategoryGap(*table[1]),
        pooled=pooled,
        reasons=tuple(reasons),
        prevalence=share,
        n_positive_training=training.n_positive,
        n_positive_fresh=fresh.n_positive,
        level=level,
        advice=_advice(pooled["auroc"]),
    )


def _gap_of(metric: str, seen: Estimate, new: Estimate, level: float) -> tuple[float, ...]:
    """Gap, ends of its interval, and its two sides, in one category."""
    own = (interval_of_score(metric, side, level) for side in (seen, new))
    low, high = interval_between((seen.value, new.value), *own)
    return seen.value - new.value, low, high, seen.value, new.value


class _Side:
    """One source: its logits and labels, and the errors of its means."""

    def __init__(self, logits: Any, labels: PartialLabels) -> None:
        shape = label_shape(labels)
        self.logits = checked_logits(logits, shape).cpu()
        self.labels, self.units = checked_labels(labels), Units.of_labels(labels)
        self.means = {metric: MeanError(self.units.n_units) for metric in _METRICS}
        self.n_positive = np.zeros(shape[1], dtype=np.int64)

    def known(self, c: int) -> KnownScores:
        """The known rows of category number c."""
        found = known_scores(self.logits, self.labels, c)
        self.n_positive[c] = np.count_nonzero(found.positive)
        return found

    def score(self, metric: str, known: KnownScores, share: float) -> Estimate:
        """The metric with its standard error, which is counted into that of the mean."""
        prevalence = share if metric == "average_precision" else None
        units = self.units.take(known.rows)
        found, shares = estimate_of(
            metric, known.scores, known.positive, units, prevalence=prevalence
        )
        self.means[metric].add(found, shares, units.of_row)
        return found


def _pool(metric: str, training: MeanError, fresh: MeanError, level: float) -> PooledGap:
    if not training.n_categories:
        return PooledGap(*(float("nan"),) * 5, 0)
    sides = (training, fresh)
    values = (training.mean, fresh.mean)
    low, high = interval_between(values, *(one.interval_of_score(metric, level) for one in sides))
    return PooledGap(values[0] - values[1], low, high, *values, training.n_categories)


def _reason(positive: NDArray[np.bool_]) -> str | None:
    n_positive = int(np.count_nonzero(positive))
    return class_reason(n_positive, positive.size - n_positive, few=FEW)


def _advice(pooled: PooledGap) -> str:
    if not pooled.n_categories:
        return (
            f"No category has {FEW} known positives and negatives in both training and held-out "
            "labels, so how much was memorised is not known."
        )
    size = f"AUROC gap {pooled.gap:.3f} ({pooled.low:.3f} to {pooled.high:.3f})"
    if pooled.high < -_SOME:
        return (
            f"The original head ranks training images worse than held-out ones ({size}): look "
            "whether the training features and labels are those of this model."
        )
    if pooled.low <= 0.0 or pooled.gap < _SOME:
        return (
            f"Little was memorised ({size}): "
            "training labels are worth nearly as much as held-out ones."
        )
    if pooled.gap < _STRONG:
        return (
            f"Some was memorised ({size}): held-out labels are worth more than training labels; "
            "let validation labels take part in fitting."
        )
    return (
        f"Much was memorised ({size}): heads fitted on training labels mislead, so fit on "
        "validation labels, and label more images that the backbone has not seen."
    )
