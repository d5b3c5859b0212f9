"""The options of `tune`, checked and filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

from catwise._configs import PaperConfig
from catwise._names import check_choices, takes_engine
from catwise.engines.base import IN_PROCESS, Engine
from catwise.errors import ConfigError
from catwise.metrics import Metric, resolve_metric
from catwise.progress import ProgressCallback
from catwise.tuning.inputs import TuningInputs
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.presets.outcome import Outcome
from catwise.tuning.presets.paper import checked_methods
from catwise.tuning.presets.pooled_anchor import tune_default
from catwise.tuning.presets.published import tune_published
from catwise.tuning.presets.select_only import tune_select_only

Config: TypeAlias = DefaultConfig | PaperConfig
T = TypeVar("T")


class Preset(Protocol):
    """A preset that has its methods and its own config."""

    def __call__(
        self,
        inputs: TuningInputs,
        metric: Metric,
        *,
        force: bool,
        progress: ProgressCallback | None,
    ) -> Outcome:
        """Tune; where it chooses by validation rows, there are some."""


@dataclass(frozen=True)
class Plan:
    """Options, checked and filled in."""

    preset: str  # its name
    methods: tuple[str, ...]  # of the paper
    validation: str  # what validation labels are used for
    metric: Metric  # what chooses and scores
    config: Config  # the preset's
    run: Preset  # the preset with methods and config


def make_plan(
    preset: str,
    methods: Sequence[str] | None,
    validation: str | None,
    metric: str | Metric,
    config: Config | None,
    *,
    has_valid: bool,
) -> Plan:
    """Check the options of `tune` and fill in the preset's own; arguments and errors as there."""
    chosen = check_choices(preset, methods, validation, has_valid=has_valid)
    resolved = resolve_metric(metric)
    if preset == "paper":
        names, published = checked_methods(methods), _config_of(PaperConfig, config, preset)
        run = partial(tune_published, methods=names, config=published)
        return Plan(preset, names, chosen, resolved, published, run)
    own = _config_of(DefaultConfig, config, preset)
    run = partial(tune_select_only if chosen == "select" else tune_default, config=own)
    return Plan(preset, (), chosen, resolved, own, run)


def check_engine(plan: Plan, engine: Engine | None, memory: int | None) -> None:
    """Refuse an engine where nothing would run on it, or its workers went beyond a bound."""
    here = engine is None or engine is IN_PROCESS
    if not here and memory is not None:
        raise ConfigError(
            "a bound of memory is of one process, and an engine runs several.",
            found=f"memory={memory} and an engine",
            remedy="leave out the bound (memory=, --memory) or the engine (engine=, --engine)",
        )
    if not here and not takes_engine(plan.preset, plan.validation):
        raise ConfigError(
            "only the preset 'default' runs blocks of categories on an engine.",
            found=f"preset={plan.preset!r}, validation={plan.validation!r}",
            expected="preset='default' with validation='fit_and_select', or no engine",
        )


def _config_of(kind: type[T], given: object, preset: str) -> T:
    """The config as the preset takes it, or its own."""
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise ConfigError(
            f"the preset {preset!r} does not take this config.",
            found=type(given).__name__,
            expected=kind.__name__,
        )
    return given
