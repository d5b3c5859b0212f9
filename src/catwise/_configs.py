"""The options of `tune`, `extract`, `fix` and `train`, each stated once; no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from catwise._names import METHODS, METRICS, PRESETS, SCHEMES, STATEFUL_SCHEMES, VALIDATIONS
from catwise._options import check_options, described, group, option
from catwise._text import bytes_of
from catwise.errors import ConfigError, check_rules

if TYPE_CHECKING:
    from catwise.labels import LabelPolicy

SELECTIONS = ("roulette", "rank", "tournament")
THUMBNAILS_HELP: Final = (
    "Small pictures, in the report, of the images whose probability moved most.  [default: yes, "
    "but not for medical data sets and DICOM]"
)
_EXTRACTION = "Images through the model"
MEMORY_HELP = (
    "Most that tuning may hold beyond what is held when it begins, such as 2GB or 500MiB; for the "
    "preset default."
)


def memory_bytes(text: str | None) -> int | None:
    """The bytes of a bound of memory; ConfigError if it is none."""
    if text is None:
        return None
    try:
        return bytes_of(text)
    except ValueError as error:
        raise ConfigError(
            "the bound of memory is not a number of bytes.",
            found=f"memory={text!r}",
            expected="such as 8GB, 500MiB or 2000000000",
        ) from error


@described
@dataclass(frozen=True)
class EvolutionConfig:
    """Operators of the genetic algorithm; the defaults are the published ones.

    `higher_is_better` is the direction of the fitness.

    Raises:
        ConfigError: If an option is out of range.
    """

    population_size: int = option(
        50, low=2, names="--population --population-size", help="ga: individuals of each category."
    )
    selection: str = option(
        "roulette",
        choices=SELECTIONS,
        help="ga: how each parent is drawn. roulette: in proportion to the fitness. rank: in "
        "proportion to population - rank, so that nearly equal scores still select. tournament: "
        "the better of two.",
    )
    crossover: float = option(
        0.2, low=0, high=1, help="ga: probability that a gene comes from the first parent."
    )
    mutation_probability: float = option(
        0.5, low=0, high=1, help="ga: probability that an offspring mutates."
    )
    mutation_scale: float = option(
        1e-3, low=0, help="ga: a mutation adds U(-scale, scale) to every gene."
    )
    n_elite: int = option(
        1, low=0, names="--elite", help="ga: best individuals that live on unchanged."
    )
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        check_options("options of the genetic algorithm", self)
        rules = {"n_elite < population_size": self.n_elite < self.population_size}
        check_rules("options of the genetic algorithm", self, rules)


@described
@dataclass(frozen=True)
class PaperConfig:
    """Options of the `paper` preset; the defaults are the published ones.

    Raises:
        ConfigError: If an option is out of range.
    """

    lr: float = option(1e-4, above=0, help="bp_bce, bp_asl: Adam's step size.")
    max_steps: int = option(
        5_000,
        low=1,
        names="--steps --generations",
        help="Most steps (ga: generations) of each category.",
    )
    patience: int = option(
        300, low=1, help="A category stops that many steps (ga: generations) after its best one."
    )
    operators: EvolutionConfig = group("Preset paper", EvolutionConfig)
    recalibrate: bool = option(
        default=True,
        names="--recalibrate/--no-recalibrate",
        help="ga: refit scale and offset on the validation labels, to which ranks are blind.",
    )

    def __post_init__(self) -> None:
        check_options("options of the preset 'paper'", self)


def _changed(config: PaperConfig | EvolutionConfig) -> list[str]:
    """The options that are not the published ones."""
    own, published = vars(config), vars(type(config)())
    return [
        f"{name}={value!r}"
        for name, value in own.items()
        if name != "operators" and value != published[name]
    ]


@described
@dataclass(frozen=True)
class TuneConfig:
    """What `tune` and `fix` let choose, beside the data.

    Raises:
        ConfigError: If an option is out of range, or belongs to the other preset.
    """

    metric: str = option(
        "average_precision", choices=METRICS, first=True, help="Metric to optimise."
    )
    preset: str = option("default", choices=PRESETS, help="paper: as published, step for step.")
    methods: tuple[str, ...] | None = option(
        None,
        names="--method",
        choices=METHODS,
        help="For paper (repeatable).  [default: the preset's]",
    )
    validation: str | None = option(
        None,
        choices=VALIDATIONS,
        help="What validation labels are used for.  [default: fit_and_select; paper: select]",
    )
    seed: int = option(0, low=0, help="Of every random draw.")
    force: bool = option(
        default=False,
        help="Proceed although head and data look mismatched.",
    )
    paper: PaperConfig = group("Preset paper", PaperConfig)

    def __post_init__(self) -> None:
        check_options("options of tune", self)
        if self.preset != "paper" and self.paper != PaperConfig():
            raise ConfigError(
                f"the preset {self.preset!r} takes no options of the preset 'paper'.",
                found=", ".join(_changed(self.paper) + _changed(self.paper.operators)),
                remedy="--preset paper (preset='paper')",
            )

    def tuning(self) -> dict[str, Any]:
        """The arguments of `tune` that say the same."""
        names = ("metric", "preset", "validation", "seed", "force")
        given = {name: getattr(self, name) for name in names}
        given["methods"] = self.methods and list(self.methods)
        return {**given, "config": self.paper} if self.preset == "paper" else given


@described
@dataclass(frozen=True)
class RunConfig:
    """How images are read and run."""

    batch_rows: int = option(
        64, low=1, names="--batch-size", group=_EXTRACTION, help="Images in a batch."
    )
    workers: int = option(0, low=0, group=_EXTRACTION, help="Processes that read images.")
    device: str | None = option(
        None, group=_EXTRACTION, help="Such as cpu or cuda:0.  [default: cpu]"
    )
    precision: Literal["exact", "fast"] = option(
        "exact",
        choices=("exact", "fast"),
        group=_EXTRACTION,
        help="exact: as the model's own pass, to 1e-5. fast: bfloat16 on processors that compute "
        "in it, float16 on a GPU.",
    )
    compiled: bool = option(
        default=False,
        names="--compile",
        group=_EXTRACTION,
        help="Compile the model first; pays for many images.",
    )
    undecodable: Literal["refuse", "skip"] = option(
        "refuse",
        choices=("refuse", "skip"),
        group=_EXTRACTION,
        help="Images that cannot be decoded.",
    )

    def __post_init__(self) -> None:
        check_options("options of a run of images", self)

    def running(self) -> dict[str, Any]:
        """The arguments of `write_predictions` that say the same."""
        given = {"batch_rows": self.batch_rows, "undecodable": self.undecodable}
        return {"num_workers": self.workers, **given, **self.way()}

    def way(self) -> dict[str, Any]:
        """The arguments of `choose_way` that say the same."""
        names = ("device", "precision", "compiled")
        return {name: getattr(self, name) for name in names}


@described
@dataclass(frozen=True)
class ExtractConfig(RunConfig):
    """How images go through a model."""

    workers: int = option(
        0,
        low=0,
        group=_EXTRACTION,
        help="Processes that read images; with --engine, that read and run them.",
    )
    flips: bool = option(
        default=False,
        group=_EXTRACTION,
        help="Average with the features of the images flipped left to right.",
    )

    def __post_init__(self) -> None:
        check_options("options of extract", self)

    def extraction(self) -> dict[str, Any]:
        """The arguments of `extract` that say the same."""
        return {**self.running(), "flips": self.flips}


@described
@dataclass(frozen=True)
class FixConfig(TuneConfig, ExtractConfig):
    """Options of `fix`: those of `tune` and of `extract`.

    `policy` is what uncertain and blank labels count as in fitting, as in `tune`.

    Raises:
        ConfigError: If an option is out of range, or belongs to the other preset.
    """

    policy: LabelPolicy | None = None
    memory: str | None = option(None, metavar="SIZE", group="Fitting", help=MEMORY_HELP)
    missing: Literal["refuse", "skip"] = option(
        "refuse",
        choices=("refuse", "skip"),
        group=_EXTRACTION,
        help="Labelled images that are not there.",
    )
    thumbnails: bool | None = option(
        None, names="--thumbnails/--no-thumbnails", group=_EXTRACTION, help=THUMBNAILS_HELP
    )

    def __post_init__(self) -> None:
        check_options("options of fix", self)
        TuneConfig.__post_init__(self)
        memory_bytes(self.memory)

    def tuning(self) -> dict[str, Any]:
        """The arguments of `tune` that say the same."""
        given = {**super().tuning(), "policy": self.policy}
        return given if self.memory is None else {**given, "memory": memory_bytes(self.memory)}


@described
@dataclass(frozen=True)
class TrainConfig:
    """Options of `train`.

    `policy` is what uncertain labels count as (blank ones are for the scheme); `scheme_options` are
    those of the scheme.

    Raises:
        ConfigError: If an option is out of range, or does not go with another.
    """

    scheme: str = option(
        "asl", choices=SCHEMES, metavar="NAME", first=True, help=f"One of {', '.join(SCHEMES)}."
    )
    scheme_options: Mapping[str, Any] = field(default_factory=dict)
    policy: LabelPolicy | None = None
    epochs: int = option(10, low=1, help="Passes over the training images.")
    batch_size: int = option(64, low=1, help="Images that go through the model at once.")
    accumulate: int = option(
        1, low=1, help="Batches of each process whose gradients make one step."
    )
    optimizer: str = option("adamw", choices=("adamw", "sgd"), help="sgd: with momentum 0.9.")
    lr: float = option(1e-3, above=0, help="Largest step size.")
    schedule: str = option(
        "onecycle",
        choices=("onecycle", "cosine", "constant"),
        help="Of the step size. cosine: from the warm-up down to 0.",
    )
    warmup: float = option(
        0.3, low=0, below=1, help="Share of the steps in which the step size grows."
    )
    weight_decay: float = option(1e-2, low=0, help="Of weights; biases and norms (1-D) have none.")
    clip_norm: float | None = option(None, above=0, help="Largest norm of a step's gradient.")
    ema: float | None = option(
        None, above=0, below=1, help="Decay of a moving average, which then is the model."
    )
    augment: str = option(
        "none",
        choices=("none", "flip", "flip_shift"),
        help="Images mirrored at random; shifted by up to an eighth, too.",
    )
    mix: str = option(
        "none", choices=("none", "mixup_pme", "logic_mix"), help="Images mixed with one another."
    )
    reserve: float = option(
        0.0, low=0, below=1, help="Share of the training images, groups whole, that is kept out."
    )
    metric: str = option(
        "average_precision",
        choices=METRICS,
        help="Chooses the epoch on the validation labels that are known.",
    )
    amp: str = option(
        "none", choices=("none", "bfloat16", "float16"), help="Half precision where it is safe."
    )
    channels_last: bool = option(
        default=False, help="Memory format that some processors are faster with."
    )
    deterministic: bool = option(
        default=False, help="Only operators of PyTorch that give the same bits each time."
    )
    save_every: int = option(
        0, low=0, help="Save after so many steps within an epoch, too; 0: after each epoch alone."
    )
    seed: int = option(0, low=0, help="Of every random draw.")
    workers: int = option(0, low=0, help="Processes that read images.")
    device: str | None = option(None, help="Such as cpu or cuda:0.  [default: cpu]")
    missing: str = option(
        "refuse", choices=("refuse", "skip"), help="Labelled images that are not there."
    )
    undecodable: str = option(
        "refuse",
        choices=("refuse", "skip"),
        help="Images that cannot be decoded. skip: all are read once before, to leave these out.",
    )

    def __post_init__(self) -> None:
        check_options("options of train", self)
        if self.mix != "none" and self.scheme in STATEFUL_SCHEMES:
            raise ConfigError(
                f"the scheme {self.scheme!r} does not go with mixed images.",
                found=f"mix={self.mix!r}",
                expected="mix='none': it remembers something of each image",
            )
        if self.scheme == "self_training" and self.ema is None:
            raise ConfigError(
                "the scheme 'self_training' needs the moving average of the model.",
                remedy="ema=0.999",
            )
