"""The metrics by name, and how each is computed per category and pooled.

>>> sorted(METRICS)[:4]
['auroc', 'average_precision', 'best_f1', 'brier']
>>> resolve_metric("auroc").ranks_only
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise.errors import ConfigError, nearest
from catwise.labels import PartialLabels
from catwise.metrics import calibration, ranking, threshold
from catwise.metrics.inputs import (
    NEGATIVE,
    POSITIVE,
    Array,
    category_blocks,
    checked_logits,
    known_entries,
    label_shape,
    option_values,
)
from catwise.metrics.ranking import RankingPlan


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric on logits over known labels.

    Args:
        name: key in :data:`~catwise.metrics.METRICS`.
        label: name for people.
        columns: kernel ``(scores (..., M), codes (..., M), *, weight=None, …) -> (...,)``.
        higher_is_better: False for losses and errors.
        ranks_only: True where any strictly increasing map of the logits changes nothing.
        one_class: True for means over the known labels, which one class alone has too; all else
            sets positives against negatives.
        takes: names of further kernel options: "threshold" (a logit), "prevalence", "max_fpr".
    """

    name: str
    label: str
    columns: Callable[..., Tensor]
    higher_is_better: bool = True
    ranks_only: bool = False
    one_class: bool = False
    takes: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """The label as it stands inside a sentence: "average precision", "AUROC"."""
        stays = self.label[1].isupper() or self.label == "F1"
        return self.label if stays else self.label[0].lower() + self.label[1:]

    @property
    def sign(self) -> float:
        """1.0, or -1.0 where lower is better: of ``sign * score`` more is always better."""
        return 1.0 if self.higher_is_better else -1.0

    def prepare(self, codes: Tensor) -> Callable[..., Tensor]:
        """The metric against fixed labels (C, M), for many scores: what they share is done once.

        A function of scores (..., C, M), and of an `offset` (C, M) to add to them, or None; it
        gives (..., C) float64, NaN where no positive or no negative is known: for any metric.
        """
        if self.columns in _PLANNED:
            return partial(_PLANNED[self.columns], RankingPlan(codes))
        lacking = ~((codes == POSITIVE).any(-1) & (codes == NEGATIVE).any(-1))

        def score(scores: Tensor, *, offset: Tensor | None = None) -> Tensor:
            whole = scores if offset is None else scores + offset
            return self.columns(whole, codes.expand(whole.shape)).masked_fill(lacking, torch.nan)

        return score

    def per_category(
        self, logits: Array, labels: PartialLabels | Array, **options: float | Array | None
    ) -> Tensor:
        """The metric of each category over its known labels.

        Args:
            logits: (N, C) float.
            labels: (N, C) `PartialLabels` or int8 codes.
            options: those that the metric takes, numbers or (C,); others are refused.

        Returns:
            (C,) float64 on the device of `logits`; NaN where a class is not known that the metric
            needs: both, or one for Brier score, log-loss and calibration error.

        Raises:
            ShapeError: If logits and labels differ in shape.
            FeatureError: If a logit is NaN or infinite.
            ConfigError: If the metric does not take an option.
        """
        self._check(options)
        shape = label_shape(labels)
        score = checked_logits(logits, shape)
        columns = {name: option_values(value, name, shape[1]) for name, value in options.items()}
        result = torch.full((shape[1],), float("nan"), dtype=torch.float64, device=score.device)
        for block, scores, codes in category_blocks(score, labels):
            cut = {
                name: value[block].to(score.device) if isinstance(value, Tensor) else value
                for name, value in columns.items()
                if value is not None
            }
            result[block] = self.columns(scores, codes, **cut)
        return result

    def micro(self, logits: Array, labels: PartialLabels | Array, **options: float | None) -> float:
        """The metric over all known labels of all categories pooled as one.

        Arguments and errors as :meth:`per_category`; NaN where a class that it needs is not known.
        """
        self._check(options)
        score = checked_logits(logits, label_shape(labels))
        given = {name: value for name, value in options.items() if value is not None}
        return float(self.columns(*known_entries(score, labels), **given))

    def covers(self, positive: NDArray[np.bool_]) -> bool:
        """Whether a category has a value, by which of its known labels are positive."""
        both = bool(positive.any()) and not bool(positive.all())
        return both or (self.one_class and positive.size > 0)

    def _check(self, options: Mapping[str, object]) -> None:
        for name in options:
            if name not in self.takes:
                raise ConfigError(
                    f"{self.name} does not take the option {name!r}",
                    found=f"{name}={options[name]}",
                    expected=f"one of {sorted(self.takes)}" if self.takes else "no options",
                )


#: Kernels that sort and search; what they need of the labels is found once.
_PLANNED: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    ranking.average_precision_columns: RankingPlan.average_precision,
    ranking.auroc_columns: RankingPlan.auroc,
}


def _mean(name: str, label: str, columns: Callable[..., Tensor]) -> Metric:
    """A loss or an error that is a mean over the known labels."""
    return Metric(name, label, columns, higher_is_better=False, one_class=True)


_BOTH = frozenset({"threshold", "prevalence"})
_SHARE = frozenset({"prevalence"})

#: Every metric by its name.
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric(
                "average_precision",
                "Average precision",
                ranking.average_precision_columns,
                ranks_only=True,
                takes=_SHARE,
            ),
            Metric("auroc", "AUROC", ranking.auroc_columns, ranks_only=True),
            Metric(
                "partial_auroc",
                "Partial AUROC",
                ranking.partial_auroc_columns,
                ranks_only=True,
                takes=frozenset({"max_fpr"}),
            ),
            Metric("f1", "F1", threshold.f1_columns, takes=_BOTH),
            Metric("best_f1", "Best F1", threshold.best_f1_columns, ranks_only=True, takes=_SHARE),
            Metric("precision", "Precision", threshold.precision_columns, takes=_BOTH),
            Metric("recall", "Recall", threshold.recall_columns, takes=frozenset({"threshold"})),
            _mean("brier", "Brier score", calibration.brier_columns),
            _mean("log_loss", "Log-loss", calibration.log_loss_columns),
            _mean("ece", "Calibration error", calibration.ece_columns),
        )
    }
)


def resolve_metric(metric: str | Metric) -> Metric:
    """The metric of that name, else ConfigError; a `Metric` is returned as it is.

    >>> resolve_metric("average precision")
    Traceback (most recent call last):
    catwise.errors.ConfigError: unknown metric 'average precision' ...
    """
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise ConfigError(
            f"unknown metric {metric!r}{nearest(str(metric), METRICS)}",
            expected="one of " + ", ".join(METRICS),
        )
    return METRICS[metric]
