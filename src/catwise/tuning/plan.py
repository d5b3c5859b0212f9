"""The options of `tune`, checked and filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from catwise.errors import ConfigError, nearest
from catwise.metrics import resolve_metric
from catwise.tuning import paper
from catwise.tuning.default import DefaultConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from catwise.metrics import Metric

__all__ = ["PRESETS", "Plan", "make_plan"]

PRESETS: Final = ("default", "paper")
_VALIDATIONS: Final = ("fit_and_select", "select")


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
    if preset not in PRESETS:
        raise ConfigError(
            f"there is no preset {preset!r}{nearest(preset, PRESETS)}.",
            expected=" or ".join(PRESETS),
        )
    if validation is not None and validation not in _VALIDATIONS:
        raise ConfigError(
            f"validation cannot be used as {validation!r}{nearest(validation, _VALIDATIONS)}.",
            expected=" or ".join(_VALIDATIONS),
        )
    chosen = validation or ("select" if preset == "paper" else "fit_and_select")
    if not has_valid and (preset == "paper" or chosen == "select"):
        raise ConfigError(
            "validation data are needed to choose with.",
            found=f"valid=None with preset={preset!r}, validation={chosen!r}",
            remedy="give valid=(features, labels), or use preset='default' with "
            "validation='fit_and_select'",
        )
    wanted = paper.PaperConfig if preset == "paper" else DefaultConfig
    if config is not None and not isinstance(config, wanted):
        raise ConfigError(
            f"the preset {preset!r} does not take this config.",
            found=type(config).__name__,
            expected=wanted.__name__,
        )
    if preset == "paper":
        if chosen != "select":
            raise ConfigError(
                "the preset 'paper' uses validation for choosing only.",
                found=f"validation={chosen!r}",
                expected="validation='select' or None",
                remedy="preset='default' fits on validation labels too",
            )
        names = paper.checked_methods(methods)
    elif methods:
        raise ConfigError(
            "the preset 'default' takes no methods.",
            found=f"methods={list(methods)}",
            expected="methods=None",
            remedy="preset='paper' takes methods=['bp_bce'], ['bp_asl'] or ['ga']",
        )
    else:
        names = ()
    return Plan(preset, names, chosen, resolve_metric(metric), config or wanted())
