"""Training schemes by name: a loss, its options, and what it remembers between steps.

A scheme is functions over values that do not change. What it remembers is a NamedTuple of
tensors that goes into a checkpoint: `start` makes it, `absorb` gives the next one after a step,
`next_epoch` after an epoch. Schemes that remember nothing have None in its place.

>>> scheme = resolve_scheme("asl")
>>> options = scheme.options(gamma_neg=2.0)
>>> zero, yes = torch.zeros(1, 1), torch.ones(1, 1) > 0
>>> batch = Batch(zero, yes, zero, rows=torch.tensor([0]), epoch=0, n_epochs=1)
>>> scheme.loss(batch, None, options).entries
tensor([[0.1211]])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from catwise._options import check_options, described, option
from catwise.errors import ConfigError, check_choice, nearest
from catwise.training import losses, selected

__all__ = [
    "SCHEMES",
    "Batch",
    "CorrectedState",
    "EpochScores",
    "PriorState",
    "PseudoState",
    "RoleState",
    "Scheme",
    "StepLoss",
    "resolve_scheme",
    "scheme_options",
]


class Batch(NamedTuple):
    """What a scheme sees of a step.

    Attributes:
        logits: (n, C) of the model.
        known: (n, C) bool.
        target: (n, C) in [0, 1]; 0 where unknown.
        rows: (n,) int64: which training images these are.
        epoch: epochs that have gone by, from 0.
        n_epochs: of the whole training.
        teacher: (n, C) logits of the moving average of the model, for schemes that read it.
    """

    logits: Tensor
    known: Tensor
    target: Tensor
    rows: Tensor
    epoch: int
    n_epochs: int
    teacher: Tensor | None = None


class StepLoss(NamedTuple):
    """The loss of a step.

    Attributes:
        entries: (n, C), summed and divided by the number of entries.
        extra: scalar that is added to it, or None.
        update: (n, C) for `absorb`, or None.
    """

    entries: Tensor
    extra: Tensor | None = None
    update: Tensor | None = None


class EpochScores(NamedTuple):
    """What a scheme sees of an epoch that has ended.

    Attributes:
        logits: (N, C) float32 of all training images, each as it was when its step came.
        known: (N, C) bool.
        target: (N, C) in [0, 1].
        epoch: epochs that have gone by, this one included.
        n_epochs: of the whole training.
    """

    logits: Tensor
    known: Tensor
    target: Tensor
    epoch: int
    n_epochs: int


class CorrectedState(NamedTuple):
    """Unknown labels that count as positive from now on: `corrected` (N, C) bool."""

    corrected: Tensor


class PriorState(NamedTuple):
    """Priors of categories: `prior` (C,) float64, NaN as long as they are not estimated."""

    prior: Tensor


class PseudoState(NamedTuple):
    """Pseudo-labels: `target` (N, C) float32 in [0, 1], NaN where there is none."""

    target: Tensor


class RoleState(NamedTuple):
    """Label estimates of ROLE and Adam's moments.

    `estimates`, `first` and `second` are (N, C); `steps` (N,) counts each image's; `expected` is
    the number of positives that an image is expected to have.
    """

    estimates: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor
    expected: Tensor


@dataclass(frozen=True)
class Scheme:
    """A training scheme.

    Args:
        name: as in `SCHEMES`.
        title: what it does, a few words.
        source: the paper.
        options: dataclass of its options.
        loss: ``(batch, state, options) -> StepLoss``.
        start: ``(known, target, options, generator) -> state``, from the (N, C) training labels.
        absorb: ``(state, rows, update, options) -> state``, after a step.
        next_epoch: ``(state, scores, options) -> state``, after an epoch.
        state: type of the state; None where there is none.
        teacher: whether it reads the moving average of the model.
    """

    name: str
    title: str
    source: str
    options: type[Any]
    loss: Callable[[Batch, Any, Any], StepLoss]
    start: Callable[[Tensor, Tensor, Any, torch.Generator], Any] | None = None
    absorb: Callable[[Any, Tensor, Tensor, Any], Any] | None = None
    next_epoch: Callable[[Any, EpochScores, Any], Any] | None = None
    state: type[Any] | None = None
    teacher: bool = False


# -------------------------------------------------------------------------------- options


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
    unknown: str = option("negative", choices=losses.UNKNOWN, help="What unknown labels count as.")


@described
@dataclass(frozen=True)
class FocalOptions(_Checked):
    """Options of `focal`."""

    gamma: float = option(2.0, low=0, help="Focusing exponent.")
    unknown: str = option("negative", choices=losses.UNKNOWN, help="What unknown labels count as.")


@described
@dataclass(frozen=True)
class AslOptions(_Checked):
    """Options of `asl`."""

    gamma_neg: float = option(4.0, low=0, help="Focusing exponent of negatives.")
    gamma_pos: float = option(0.0, low=0, help="Focusing exponent of positives.")
    clip: float = option(0.05, low=0, below=1, help="Probability margin of negatives.")
    unknown: str = option("negative", choices=losses.UNKNOWN, help="What unknown labels count as.")
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


# ------------------------------------------------------------------- losses without state


def _plain(function: Callable[..., Tensor]) -> Callable[[Batch, Any, Any], StepLoss]:
    """A loss of entries whose arguments are the scheme's options."""

    def loss(batch: Batch, _state: Any, options: Any) -> StepLoss:
        return StepLoss(function(batch.logits, batch.known, batch.target, **vars(options)))

    return loss


def _large_loss(batch: Batch, _state: Any, options: LargeLossOptions, *, correct: bool) -> StepLoss:
    share = min(batch.epoch * options.delta_rel, 1.0)
    return StepLoss(selected.large_loss(*batch[:3], share=share, correct=correct))


def _splc(batch: Batch, _state: Any, options: SplcOptions) -> StepLoss:
    return StepLoss(losses.splc(*batch[:3], epoch=batch.epoch, **vars(options)))


def _auc_margin(batch: Batch, _state: Any, options: MarginOptions) -> StepLoss:
    entries = options.bce_weight * losses.ignore_unknown(*batch[:3])
    return StepLoss(entries, selected.auc_margin(*batch[:3], margin=options.margin).mean())


# ---------------------------------------------------------------------- losses with state


def _no_corrections(known: Tensor, _target: Tensor, _options: Any, _gen: Any) -> CorrectedState:
    return CorrectedState(torch.zeros_like(known))


def _corrected_loss(batch: Batch, state: CorrectedState, options: LargeLossOptions) -> StepLoss:
    """LL-Cp: what was corrected stays; in each step of later epochs a share of the rest is."""
    corrected = state.corrected[batch.rows.cpu()].to(batch.known.device)
    known = batch.known | corrected
    target = torch.where(corrected, 1.0, batch.target)
    share = options.delta_rel if batch.epoch else 0.0
    entries = selected.large_loss(batch.logits, known, target, share=share, correct=True)
    assumed = losses.assume_negative(batch.logits, known, target)
    return StepLoss(entries, update=corrected | selected.large_losses(assumed, known, share))


def _absorb_corrections(
    state: CorrectedState, rows: Tensor, update: Tensor, _options: Any
) -> CorrectedState:
    return CorrectedState(state.corrected.index_copy(0, rows, update.bool()))


def _no_prior(known: Tensor, _target: Tensor, _options: Any, _gen: Any) -> PriorState:
    return PriorState(torch.full(known.shape[1:], torch.nan, dtype=torch.float64))


def _csl(batch: Batch, state: PriorState, options: CslOptions) -> StepLoss:
    """Known labels alone until there are priors, then the selective loss."""
    if bool(state.prior.isnan().any()):
        counts = batch.known
    else:
        top, threshold = options.likelihood_top, options.prior_threshold
        counts = selected.selective(
            batch.logits,
            batch.known,
            prior=state.prior,
            likelihood_top=top,
            prior_threshold=threshold,
        )
    own = {item.name: getattr(options, item.name) for item in fields(PartialAslOptions)}
    return StepLoss(losses.partial_asymmetric(*batch[:3], counts=counts, **own))


def _estimate_prior(state: PriorState, scores: EpochScores, options: CslOptions) -> PriorState:
    if scores.epoch != options.prior_epochs:
        return state
    return PriorState(selected.estimate_prior(scores.logits))


def _no_pseudo(known: Tensor, _target: Tensor, _options: Any, _gen: Any) -> PseudoState:
    return PseudoState(torch.full(known.shape, torch.nan, dtype=torch.float32))


def _em_apl(batch: Batch, state: PseudoState, options: AplOptions) -> StepLoss:
    pseudo = state.target[batch.rows.cpu()].to(batch.logits.device)
    chosen = ~pseudo.isnan()
    weights: dict[str, Any] = {"alpha": options.alpha, "beta": options.beta}
    entries = losses.entropy_maximization(
        *batch[:3], pseudo=chosen, pseudo_target=torch.nan_to_num(pseudo), **weights
    )
    return StepLoss(entries)


def _asymmetric_pseudo(state: PseudoState, scores: EpochScores, options: AplOptions) -> PseudoState:
    """The lowest scores of each category get their probability as a soft pseudo-label.

    Each epoch after the warm-up adds an equal part of the share of its unknown labels. There are no
    positive pseudo-labels, as in the authors' code.
    """
    if scores.epoch < options.warmup or scores.epoch >= scores.n_epochs:
        return state
    target = state.target.clone()
    left = ~scores.known & target.isnan()
    part = options.share / max(scores.n_epochs - options.warmup, 1)
    for c in range(target.shape[1]):
        count = int(part * int((~scores.known[:, c]).sum()))
        rows = left[:, c].nonzero().flatten()
        lowest = rows[scores.logits[rows, c].argsort(stable=True)[:count]]
        target[lowest, c] = torch.sigmoid(scores.logits[lowest, c])
    return PseudoState(target)


def _start_role(
    known: Tensor, target: Tensor, options: RoleOptions, generator: torch.Generator
) -> RoleState:
    """Estimates between 0.4 and 0.6, as published."""
    near = 0.4 + 0.2 * torch.rand(known.shape, generator=generator)
    expected = options.expected or selected.expected_positives(known, target)
    zeros = torch.zeros(known.shape)
    steps = torch.zeros(len(known), dtype=torch.int64)
    return RoleState(near.logit(), zeros, zeros.clone(), steps, torch.tensor(expected))


def _role(batch: Batch, state: RoleState, _options: RoleOptions) -> StepLoss:
    estimates = state.estimates[batch.rows.cpu()].to(batch.logits.device)
    parts = (*batch[:3], estimates)
    expected = float(state.expected)
    loss = selected.role(*parts, expected=expected)
    return StepLoss(
        loss.entries, loss.regulariser, selected.role_gradient(*parts, expected=expected)
    )


def _step_role(state: RoleState, rows: Tensor, update: Tensor, options: RoleOptions) -> RoleState:
    """A step of Adam (0.9, 0.999, 1e-8) for the images of the batch alone."""
    update = update.to(state.first.dtype)
    steps = state.steps[rows] + 1
    first = state.first[rows] * 0.9 + update * 0.1
    second = state.second[rows] * 0.999 + update.square() * 0.001
    scale = [1 - base ** steps[:, None].to(update.dtype) for base in (0.9, 0.999)]
    change = options.rate * (first / scale[0]) / ((second / scale[1]).sqrt() + 1e-8)
    return RoleState(
        state.estimates.index_copy(0, rows, state.estimates[rows] - change),
        state.first.index_copy(0, rows, first),
        state.second.index_copy(0, rows, second),
        state.steps.index_copy(0, rows, steps),
        state.expected,
    )


# ------------------------------------------------------------------------------- registry

_COLE: Final = "Cole et al., CVPR 2021"
_KIM: Final = "Kim et al., CVPR 2022"
_BEN: Final = "Ben-Baruch et al., CVPR 2022"
_ZHOU: Final = "Zhou et al., ECCV 2022"
_ZHANG: Final = "Zhang et al., arXiv 2112.07368"

_ALL: Final = (
    Scheme("ignore", "known labels alone", _COLE, NoOptions, _plain(losses.ignore_unknown)),
    Scheme(
        "partial_bce",
        "known labels alone, weighed by their share",
        "Durand et al., CVPR 2019",
        PartialBceOptions,
        _plain(losses.partial_bce),
    ),
    Scheme(
        "assume_negative", "unknown is negative", _COLE, NoOptions, _plain(losses.assume_negative)
    ),
    Scheme(
        "weak_assume_negative",
        "unknown is negative, with a small weight",
        _COLE,
        WeakOptions,
        _plain(losses.weak_assume_negative),
    ),
    Scheme(
        "label_smoothing",
        "targets pulled to one half",
        _COLE,
        SmoothingOptions,
        _plain(losses.label_smoothing),
    ),
    Scheme("focal", "focal loss", "Lin et al., ICCV 2017", FocalOptions, _plain(losses.focal_loss)),
    Scheme(
        "asl",
        "asymmetric loss",
        "Ridnik et al., ICCV 2021",
        AslOptions,
        _plain(losses.asymmetric_loss),
    ),
    Scheme(
        "partial_asl",
        "asymmetric loss with an exponent for unknown labels",
        _BEN,
        PartialAslOptions,
        _plain(losses.partial_asymmetric),
    ),
    Scheme(
        "csl",
        "unknown is negative where the category is rare and the score low",
        _BEN,
        CslOptions,
        _csl,
        start=_no_prior,
        next_epoch=_estimate_prior,
        state=PriorState,
    ),
    Scheme(
        "ll_r",
        "large losses of unknown labels left out",
        _KIM,
        LargeLossOptions,
        partial(_large_loss, correct=False),
    ),
    Scheme(
        "ll_ct",
        "large losses of unknown labels corrected for a step",
        _KIM,
        LargeLossOptions,
        partial(_large_loss, correct=True),
    ),
    Scheme(
        "ll_cp",
        "large losses of unknown labels corrected for good",
        _KIM,
        LargeLossOptions,
        _corrected_loss,
        start=_no_corrections,
        absorb=_absorb_corrections,
        state=CorrectedState,
    ),
    Scheme(
        "em",
        "unknown labels kept undecided",
        _ZHOU,
        EntropyOptions,
        _plain(losses.entropy_maximization),
    ),
    Scheme(
        "em_apl",
        "the same, with asymmetric pseudo-labels",
        _ZHOU,
        AplOptions,
        _em_apl,
        start=_no_pseudo,
        next_epoch=_asymmetric_pseudo,
        state=PseudoState,
    ),
    Scheme(
        "role",
        "labels learned beside the model",
        _COLE,
        RoleOptions,
        _role,
        start=_start_role,
        absorb=_step_role,
        state=RoleState,
    ),
    Scheme("splc", "high scores of unknown labels corrected", _ZHANG, SplcOptions, _splc),
    Scheme("hill", "high scores of negatives weigh less", _ZHANG, HillOptions, _plain(losses.hill)),
    Scheme(
        "auc_margin",
        "pairs of a positive and a negative",
        "Yuan et al., ICCV 2021",
        MarginOptions,
        _auc_margin,
    ),
)
SCHEMES: Mapping[str, Scheme] = MappingProxyType({scheme.name: scheme for scheme in _ALL})
"""Every scheme by name."""


def resolve_scheme(scheme: str | Scheme) -> Scheme:
    """Return the scheme of that name; a `Scheme` passes through.

    Raises:
        ConfigError: If there is none; it suggests the nearest.

    >>> resolve_scheme("hill").source
    'Zhang et al., arXiv 2112.07368'
    """
    if isinstance(scheme, Scheme):
        return scheme
    check_choice("scheme", scheme, SCHEMES)
    return SCHEMES[scheme]


def scheme_options(scheme: str | Scheme, given: Mapping[str, Any] | None = None) -> Any:
    """The options of a scheme: its defaults, and what is given instead.

    Args:
        scheme: name or scheme.
        given: option → value.

    Raises:
        ConfigError: If the scheme has no such option, or one is out of range.

    >>> scheme_options("hill", {"margin": 0.5}).margin
    0.5
    """
    scheme, given = resolve_scheme(scheme), dict(given or {})
    names = [item.name for item in fields(scheme.options)]
    if strange := [name for name in given if name not in names]:
        raise ConfigError(
            f"the scheme {scheme.name!r} has no option {strange[0]!r}{nearest(strange[0], names)}.",
            expected=", ".join(names) or "none: it takes no options",
        )
    return scheme.options(**given)
