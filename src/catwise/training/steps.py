"""What a training scheme is: what it sees of a step and of an epoch, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Batch",
    "CorrectedState",
    "EpochScores",
    "PriorState",
    "PseudoState",
    "RoleState",
    "Scheme",
    "StepLoss",
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
