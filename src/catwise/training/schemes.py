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
from dataclasses import fields
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from catwise.errors import ConfigError, check_choice, nearest
from catwise.training import losses, pseudo_labels, selected
from catwise.training.options import (
    AplOptions,
    AslOptions,
    CslOptions,
    CurriculumOptions,
    EntropyOptions,
    FocalOptions,
    HillOptions,
    LargeLossOptions,
    MarginOptions,
    NoOptions,
    PartialAslOptions,
    PartialBceOptions,
    RoleOptions,
    SelfTrainingOptions,
    SmoothingOptions,
    SplcOptions,
    WeakOptions,
)
from catwise.training.steps import (
    Batch,
    CorrectedState,
    EpochScores,
    PriorState,
    PseudoState,
    RoleState,
    Scheme,
    StepLoss,
)

__all__ = ["SCHEMES", "resolve_scheme", "scheme_options"]


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
    seen = ~scores.logits.isnan().any(dim=1)  # images that a step has had
    return PriorState(selected.estimate_prior(scores.logits[seen]))


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
_DURAND: Final = "Durand et al., CVPR 2019"
_ZHANG: Final = "Zhang et al., arXiv 2112.07368"

_ALL: Final = (
    Scheme("ignore", "known labels alone", _COLE, NoOptions, _plain(losses.ignore_unknown)),
    Scheme(
        "partial_bce",
        "known labels alone, weighed by their share",
        _DURAND,
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
        pseudo_labels.em_apl,
        start=pseudo_labels.no_pseudo_labels,
        next_epoch=pseudo_labels.lowest_scores,
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
    Scheme(
        "curriculum",
        "sure predictions of the last epoch become labels",
        _DURAND,
        CurriculumOptions,
        pseudo_labels.curriculum,
        start=pseudo_labels.no_pseudo_labels,
        next_epoch=pseudo_labels.sure_predictions,
        state=PseudoState,
    ),
    Scheme(
        "self_training",
        "sure predictions of the moving average become labels",
        "Tarvainen & Valpola, NeurIPS 2017; Sohn et al., NeurIPS 2020",
        SelfTrainingOptions,
        pseudo_labels.self_training,
        teacher=True,
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
