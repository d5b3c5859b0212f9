"""Optimizers, groups of parameters, and the step size as a function of the step."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn

from catwise._configs import TrainConfig

#: Where the step size starts and ends, as shares of the largest; those of OneCycleLR.
START: Final = 1 / 25
END: Final = 1 / 25 / 1e4


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights with decay; biases, norms and other 1-D parameters without.

    >>> [len(group["params"]) for group in parameter_groups(nn.Linear(2, 2), 0.1)]
    [1, 1]
    """
    groups: list[list[nn.Parameter]] = [[], []]
    for part in module.parameters():
        if part.requires_grad:
            groups[part.ndim < 2].append(part)
    decays = (weight_decay, 0.0)
    return [
        {"params": params, "weight_decay": decay}
        for params, decay in zip(groups, decays, strict=True)
        if params
    ]


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that the options ask for."""
    groups = parameter_groups(module, config.weight_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.lr)


def rate_at(step: int, total: int, config: TrainConfig) -> float:
    """The step size of a step, from 0 to total − 1: nothing to save, and never beyond its end.

    "onecycle": from lr / 25 by a cosine up to lr, and down to lr / 250,000 (Smith & Topin, 2019, as
    torch's OneCycleLR with two phases). "cosine": straight up to lr, then by a cosine down to 0.

    >>> [round(rate_at(step, 5, TrainConfig(lr=1.0, schedule="cosine")), 3) for step in range(5)]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "onecycle":
        up = max(config.warmup * total - 1, 0.0)
        if step <= up and up > 0:
            return config.lr * _between(START, 1.0, step / up)
        return config.lr * _between(1.0, END, (step - up) / max(total - 1 - up, 1e-9))
    warm = math.ceil(config.warmup * total) if config.warmup else 0
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * _between(1.0, 0.0, (step - warm + bool(warm)) / (total - warm + bool(warm)))


def _between(first: float, last: float, share: float) -> float:
    """A half wave of the cosine from one number to another."""
    return last + (first - last) / 2 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))
