"""Options of the `default` preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from catwise.errors import ConfigError, check_rules
from catwise.losses import resolve_loss
from catwise.tuning.fits.ranking_loss import Stage

REFINEMENTS: Final = {"average_precision": Stage(0.7, 3.0), "auroc": Stage(1.0, 0.5)}
"""The ranking-loss refinements of the preset; measured in docs/ablations.md."""


@dataclass(frozen=True)
class DefaultConfig:
    """Options of the `default` preset; penalties multiply |delta|² / 2.

    Args:
        penalties: from strong to weak, of the change around the anchor; one is chosen. Each fit
            starts from the one before.
        penalty_growth: a category's penalty grows with this power of its held-out positives,
            relative to their geometric mean.
        source_weight: the weight of a known training label, >= 0.
        source_total: the most that those of a category weigh together, > 0.
        anchor_penalties: of the heads that training labels alone make, from strong to weak.
        negative_penalties: the same of heads for which unknown training labels are negative.
        negative_weight: the weight of such a label, in (0, 1].
        negative_draw: how many of them are drawn for each known label, > 0.
        anchor_ridge: of the regression that weighs the heads of the anchor, >= 0.
        loss: a name in `catwise.losses.LOSSES`, of all fits.
        refinements: by metric, the ranking-loss refinement of the fit that was chosen; a metric
            that is not named has none.
        n_folds: folds over the validation rows.
        grid_penalties: of the directions of the candidates of `select`.
        grid_steps: along these, of the candidates of `select`.
        grid_anchor_steps: the same from the anchor, where coordinates are not stretched.
        grid_powers: the directions' coordinates are stretched by half this power of their variance.
        tolerance: of the fits, relative to the gradient's start.
        max_iterations: of each fit.
        grid_prior: known positives with which a category's own gain counts as much as the mean
            over all categories where `select` chooses.

    Raises:
        ConfigError: If an option is out of range.
    """

    penalties: tuple[float, ...] = (10.0, 5.0, 2.5, 1.25, 0.6, 0.3)
    penalty_growth: float = 0.25
    source_weight: float = 0.3
    source_total: float = 400.0
    anchor_penalties: tuple[float, ...] = (20.0, 5.0, 1.25)
    negative_penalties: tuple[float, ...] = (5.0,)
    negative_weight: float = 0.2
    negative_draw: float = 4.0
    anchor_ridge: float = 3.0
    loss: str = "bce"
    refinements: Mapping[str, Stage] = field(default_factory=lambda: dict(REFINEMENTS))
    n_folds: int = 5
    grid_penalties: tuple[float, ...] = (30.0, 10.0, 5.0, 2.5, 1.25, 0.6, 0.3)
    grid_steps: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    grid_anchor_steps: tuple[float, ...] = (0.5, 1.0, 2.0)
    grid_powers: tuple[float, ...] = (0.0, 0.5)
    tolerance: float = 1e-2
    max_iterations: int = 60
    grid_prior: float = 200.0

    def __post_init__(self) -> None:
        resolve_loss(self.loss)
        object.__setattr__(self, "refinements", _refinements(self.refinements))
        checks = {
            "penalties descending and > 0": bool(self.penalties) and _descend(self.penalties),
            "penalty_growth in [0, 1]": 0 <= self.penalty_growth <= 1,
            "source_weight >= 0": self.source_weight >= 0,
            "source_total > 0": self.source_total > 0,
            "anchor_penalties descending and > 0": _descend(self.anchor_penalties),
            "negative_penalties descending and > 0": _descend(self.negative_penalties),
            "negative_weight in (0, 1]": 0 < self.negative_weight <= 1,
            "negative_draw > 0": self.negative_draw > 0,
            "anchor_ridge >= 0": self.anchor_ridge >= 0,
            "grid_prior > 0": self.grid_prior > 0,
            "n_folds in 2 … 100": 2 <= self.n_folds <= 100,
            "tolerance in (0, 1)": 0 < self.tolerance < 1,
            "max_iterations >= 1": self.max_iterations >= 1,
        }
        check_rules("options of the default preset", self, checks)

    @property
    def fitting(self) -> dict[str, Any]:
        """What every penalised fit takes."""
        return {
            "pointwise": resolve_loss(self.loss).slope_curvature,
            "max_iterations": self.max_iterations,
            "tolerance": self.tolerance,
        }


def _descend(penalties: tuple[float, ...]) -> bool:
    falls = all(a > b for a, b in pairwise(penalties))
    return min(penalties, default=1.0) > 0 and falls


def _refinements(given: Mapping[str, Any]) -> dict[str, Stage]:
    """The refinements by metric, checked."""
    if wrong := set(given) - set(REFINEMENTS):
        raise ConfigError(
            f"there is no ranking-loss refinement for {sorted(wrong)[0]!r}.",
            expected=" or ".join(REFINEMENTS),
        )
    stages = {name: Stage(*stage) for name, stage in given.items()}
    if bad := [stage for stage in stages.values() if min(stage) <= 0]:
        raise ConfigError(
            "temperature and penalty of a ranking-loss refinement must be positive.",
            found=str(bad[0]),
        )
    return stages
