"""Pseudo-labels: what the model itself says of unknown labels, taken as labels.

Known labels are never changed. What is taken is decided after an epoch, from the scores of all
training images, or in the step itself by the moving average of the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catwise.errors import ConfigError
from catwise.training import losses
from catwise.training.options import AplOptions, CurriculumOptions, SelfTrainingOptions
from catwise.training.steps import Batch, EpochScores, PseudoState, StepLoss


def no_pseudo_labels(known: Tensor, _target: Tensor, _options: Any, _gen: Any) -> PseudoState:
    """The state before the first pseudo-labels."""
    return PseudoState(torch.full(known.shape, torch.nan, dtype=torch.float32))


def em_apl(batch: Batch, state: PseudoState, options: AplOptions) -> StepLoss:
    """Entropy maximisation, with the pseudo-labels that there are."""
    pseudo = state.target[batch.rows.cpu()].to(batch.logits.device)
    chosen = ~pseudo.isnan()
    weights: dict[str, Any] = {"alpha": options.alpha, "beta": options.beta}
    entries = losses.entropy_maximization(
        *batch[:3], pseudo=chosen, pseudo_target=torch.nan_to_num(pseudo), **weights
    )
    return StepLoss(entries)


def lowest_scores(state: PseudoState, scores: EpochScores, options: AplOptions) -> PseudoState:
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


def _with_pseudo(batch: Batch, pseudo: Tensor, weight: float) -> StepLoss:
    """Cross-entropy of known labels and, with a weight, of pseudo-labels (NaN: none)."""
    chosen = ~batch.known & ~pseudo.isnan()
    target = torch.where(chosen, torch.nan_to_num(pseudo).to(batch.target.dtype), batch.target)
    entries = losses.ignore_unknown(batch.logits, batch.known | chosen, target)
    return StepLoss(torch.where(chosen, weight, 1.0) * entries)


def curriculum(batch: Batch, state: PseudoState, options: CurriculumOptions) -> StepLoss:
    """Known labels and the pseudo-labels of the last epoch."""
    pseudo = state.target[batch.rows.cpu()].to(batch.logits.device)
    return _with_pseudo(batch, pseudo, options.weight)


def sure_predictions(
    state: PseudoState, scores: EpochScores, options: CurriculumOptions
) -> PseudoState:
    """Unknown labels whose logit is far from 0 get its sign, decided again after each epoch.

    Source: Durand et al., CVPR 2019, curriculum labelling by a score threshold.
    """
    if scores.epoch < options.warmup:
        return state
    sure = ~scores.known & (scores.logits.abs() > options.threshold)
    sign = (scores.logits > 0).float()
    return PseudoState(torch.where(sure, sign, torch.nan))


def self_training(batch: Batch, _state: Any, options: SelfTrainingOptions) -> StepLoss:
    """Known labels, and what the moving average of the model is sure of.

    Source: Tarvainen & Valpola, Mean teachers are better role models, NeurIPS 2017 (the teacher);
    Sohn et al., FixMatch, NeurIPS 2020 (hard labels above a threshold).
    """
    if batch.teacher is None:
        raise ConfigError(
            "the scheme 'self_training' needs the moving average of the model.",
            remedy="give the decay of the average: --ema 0.999 (ema=0.999)",
        )
    if batch.epoch < options.warmup:
        return StepLoss(losses.ignore_unknown(*batch[:3]))
    p = torch.sigmoid(batch.teacher.detach().float())
    pseudo = torch.where(p >= options.positive, 1.0, torch.nan)
    pseudo = torch.where(p <= options.negative, 0.0, pseudo)
    return _with_pseudo(batch, pseudo, options.weight)
