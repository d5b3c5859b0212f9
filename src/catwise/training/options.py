"""Options of the training schemes, each stated once."""

from __future__ import annotations

from dataclasses import dataclass

from catwise._options import check_options, described, option

UNKNOWN = ("negative", "ignore")
"""What unknown labels may count as."""


class _Checked:
    """Options that are checked when made."""

    def __post_init__(self) -> None:
        check_options(f"options of the scheme ({type(self).__name__})", self)


@described
@dataclass(frozen=True)
class NoOptions(_Checked):
    """A scheme without options."""


@described
@dataclass(frozen=True)
class PartialBceOptions(_Checked):
    """Options of `partial_bce`."""

    alpha: float = option(-4.45, help="Slope of an image's weight over its share of known labels.")
    beta: float = option(5.45, help="Weight of an image without known labels.")
    gamma: float = option(1.0, above=0, help="Exponent of the share.")


@described
@dataclass(frozen=True)
class WeakOptions(_Checked):
    """Options of `weak_assume_negative`."""

    weight: float | None = option(
        None, low=0, high=1, help="Of an unknown label.  [default: 1 / (categories - 1)]"
    )


@described
@dataclass(frozen=True)
class SmoothingOptions(_Checked):
    """Options of `label_smoothing`."""

    epsilon: float = option(0.1, low=0, high=1, help="How far targets are pulled to one half.")
    unknown: str = option("negative", choices=UNKNOWN, help="What unknown labels count as.")


@described
@dataclass(frozen=True)
class FocalOptions(_Checked):
    """Options of `focal`."""

    gamma: float = option(2.0, low=0, help="Focusing exponent.")
    unknown: str = option("negative", choices=UNKNOWN, help="What unknown labels count as.")


@described
@dataclass(frozen=True)
class AslOptions(_Checked):
    """Options of `asl`."""

    gamma_neg: float = option(4.0, low=0, help="Focusing exponent of negatives.")
    gamma_pos: float = option(0.0, low=0, help="Focusing exponent of positives.")
    clip: float = option(0.05, low=0, below=1, help="Probability margin of negatives.")
    unknown: str = option("negative", choices=UNKNOWN, help="What unknown labels count as.")
    as_published: bool = option(
        default=True, help="The focusing factor is a constant to the gradient."
    )


@described
@dataclass(frozen=True)
class PartialAslOptions(_Checked):
    """Options of `partial_asl`."""

    gamma_pos: float = option(0.0, low=0, help="Focusing exponent of known positives.")
    gamma_neg: float = option(1.0, low=0, help="Focusing exponent of known negatives.")
    gamma_unknown: float = option(2.0, low=0, help="Focusing exponent of unknown labels.")
    alpha_unknown: float = option(1.0, low=0, help="Weight of unknown labels.")
    clip: float = option(0.0, low=0, below=1, help="Probability margin of negatives.")


@described
@dataclass(frozen=True)
class CslOptions(PartialAslOptions):
    """Options of `csl`."""

    likelihood_top: int = option(
        5, low=0, help="So many of an image's unknown labels with the highest scores are left out."
    )
    prior_threshold: float = option(
        0.05, low=0, high=1, help="Categories with a larger prior are left out where unknown."
    )
    prior_epochs: int = option(
        1, low=1, help="Epochs on known labels alone, from which priors are estimated."
    )


@described
@dataclass(frozen=True)
class LargeLossOptions(_Checked):
    """Options of `ll_r`, `ll_ct` and `ll_cp`."""

    delta_rel: float = option(
        0.002, low=0, high=1, help="Share of all entries that each epoch adds (ll_cp: takes)."
    )


@described
@dataclass(frozen=True)
class EntropyOptions(_Checked):
    """Options of `em`."""

    alpha: float = option(0.1, low=0, help="Weight of the entropy of unknown labels.")


@described
@dataclass(frozen=True)
class AplOptions(EntropyOptions):
    """Options of `em_apl`."""

    beta: float = option(0.2, low=0, help="Weight of pseudo-labels.")
    share: float = option(
        0.9,
        low=0,
        high=1,
        help="Of a category's unknown labels that get pseudo-labels in the end.",
    )
    warmup: int = option(4, low=0, help="Epochs before the first pseudo-labels.")


@described
@dataclass(frozen=True)
class RoleOptions(_Checked):
    """Options of `role`."""

    expected: float | None = option(
        None, above=0, help="Positives of an image.  [default: by the known labels]"
    )
    rate: float = option(0.01, above=0, help="Adam's step size for the label estimates.")


@described
@dataclass(frozen=True)
class SplcOptions(_Checked):
    """Options of `splc`."""

    threshold: float = option(
        0.6, above=0, below=1, help="Unknown labels with a larger probability count as positive."
    )
    change_epoch: int = option(1, low=0, help="Epochs before the first corrections.")
    margin: float = option(1.0, low=0, help="Of known positives, on the logit axis.")
    gamma: float = option(2.0, low=0, help="Focusing exponent.")


@described
@dataclass(frozen=True)
class HillOptions(_Checked):
    """Options of `hill`."""

    lamb: float = option(1.5, low=1, help="Place of the hill.")
    margin: float = option(1.0, low=0, help="Of positives, on the logit axis.")
    gamma: float = option(2.0, low=0, help="Focusing exponent of positives.")


@described
@dataclass(frozen=True)
class MarginOptions(_Checked):
    """Options of `auc_margin`."""

    margin: float = option(1.0, above=0, help="Between the scores of a positive and a negative.")
    bce_weight: float = option(
        1.0, low=0, help="Weight of the cross-entropy of known labels beside it."
    )


@described
@dataclass(frozen=True)
class CurriculumOptions(_Checked):
    """Options of `curriculum`."""

    threshold: float = option(
        2.0, low=0, help="Unknown labels with a logit farther from 0 get a pseudo-label."
    )
    warmup: int = option(1, low=1, help="Epochs before the first pseudo-labels.")
    weight: float = option(1.0, low=0, help="Of a pseudo-label.")


@described
@dataclass(frozen=True)
class SelfTrainingOptions(_Checked):
    """Options of `self_training`."""

    positive: float = option(
        0.9, above=0.5, high=1, help="From this probability of the teacher on: positive."
    )
    negative: float = option(
        0.05, low=0, below=0.5, help="Up to this probability of the teacher: negative."
    )
    warmup: int = option(1, low=0, help="Epochs before the first pseudo-labels.")
    weight: float = option(1.0, low=0, help="Of a pseudo-label.")
