"""Options of the `default` preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from catwise._options import check_options, described, option
from catwise.errors import ConfigError, check_rules
from catwise.losses import LOSSES, resolve_loss
from catwise.tuning.fits.ranking_loss import Stage

REFINEMENTS: Final = {"average_precision": Stage(0.7, 3.0), "auroc": Stage(1.0, 0.5)}
"""The ranking-loss refinements of the preset; measured in docs/ablations.md."""


@described
@dataclass(frozen=True)
class DefaultConfig:
    """Options of the `default` preset; penalties multiply |delta|² / 2 and go from strong to weak.

    `refinements` holds, by metric, the ranking-loss refinement of the fit that was chosen; a metric
    that is not named has none.

    Raises:
        ConfigError: If an option is out of range.
    """

    penalties: tuple[float, ...] = option(
        (10.0, 5.0, 2.5, 1.25, 0.6, 0.3),
        above=0,
        help="Of the change around the anchor; one is chosen. Each fit starts from the one before.",
    )
    penalty_growth: float = option(
        0.25,
        low=0,
        high=1,
        help="A category's penalty grows with this power of its held-out positives, relative to "
        "their geometric mean.",
    )
    source_weight: float = option(0.3, low=0, help="The weight of a known training label.")
    source_total: float = option(400.0, above=0, help="The most that those of a category weigh.")
    anchor_penalties: tuple[float, ...] = option(
        (20.0, 5.0, 1.25), above=0, help="Of the heads that training labels alone make."
    )
    negative_penalties: tuple[float, ...] = option(
        (5.0,), above=0, help="Of heads for which unknown training labels are negative."
    )
    negative_weight: float = option(0.2, above=0, high=1, help="The weight of such a label.")
    negative_draw: float = option(
        4.0, above=0, help="How many of them are drawn for each known label."
    )
    anchor_ridge: float = option(
        3.0, low=0, help="Of the regression that weighs the heads of the anchor."
    )
    loss: str = option("bce", choices=tuple(LOSSES), help="Of all fits.")
    refinements: Mapping[str, Stage] = field(default_factory=lambda: dict(REFINEMENTS))
    n_folds: int = option(5, low=2, high=100, help="Folds over the validation rows.")
    grid_penalties: tuple[float, ...] = option(
        (30.0, 10.0, 5.0, 2.5, 1.25, 0.6, 0.3),
        above=0,
        help="Of the directions of the candidates of `select`.",
    )
    grid_steps: tuple[float, ...] = option(
        (0.5, 1.0, 2.0, 4.0, 8.0), help="Along these, of the candidates of `select`."
    )
    grid_anchor_steps: tuple[float, ...] = option(
        (0.5, 1.0, 2.0), help="The same from the anchor, where coordinates are not stretched."
    )
    grid_powers: tuple[float, ...] = option(
        (0.0, 0.5),
        help="The directions' coordinates are stretched by half this power of their variance.",
    )
    tolerance: float = option(
        1e-2, above=0, below=1, help="Of the fits, relative to the gradient's start."
    )
    max_iterations: int = option(60, low=1, help="Of each fit.")
    grid_prior: float = option(
        200.0,
        above=0,
        help="Known positives with which a category's own gain counts as much as the mean over all "
        "categories where `select` chooses.",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "refinements", _refinements(self.refinements))
        check_options("options of the default preset", self)
        paths = ("penalties", "anchor_penalties", "negative_penalties")
        rules = {f"{name} descending": _descend(getattr(self, name)) for name in paths}
        rules["one of penalties or more"] = bool(self.penalties)
        check_rules("options of the default preset", self, rules)

    @property
    def fitting(self) -> dict[str, Any]:
        """What every penalised fit takes."""
        return {
            "pointwise": resolve_loss(self.loss).slope_curvature,
            "max_iterations": self.max_iterations,
            "tolerance": self.tolerance,
        }


def _descend(penalties: tuple[float, ...]) -> bool:
    return all(a > b for a, b in pairwise(penalties))


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
