"""The options of `tune`, checked and filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from catwise._names import check_choices
from catwise.errors import ConfigError
from catwise.metrics import resolve_metric
from catwise.tuning.presets import paper
from catwise.tuning.presets.crossfit import DefaultConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from catwise.metrics import Metric

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """Options, checked and filled in."""

    preset: str
    methods: tuple[str, ...]
    validation: str
    metric: Metric
    config: DefaultConfig | paper.PaperConfig


def make_plan(
    preset: str,
    methods: Sequence[str] | None,
    validation: str | None,
    metric: str | Metric,
    config: DefaultConfig | paper.PaperConfig | None,
    *,
    has_valid: bool,
) -> Plan:
    """Check the options of `tune` and fill in the preset's own; arguments and errors as there."""
    chosen = check_choices(preset, methods, validation, has_valid=has_valid)
    wanted = paper.PaperConfig if preset == "paper" else DefaultConfig
    if config is not None and not isinstance(config, wanted):
        raise ConfigError(
            f"the preset {preset!r} does not take this config.",
            found=type(config).__name__,
            expected=wanted.__name__,
        )
    names = paper.checked_methods(methods) if preset == "paper" else ()
    return Plan(preset, names, chosen, resolve_metric(metric), config or wanted())
