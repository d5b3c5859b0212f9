"""Features with planted signal, and a head trained on planted wrong labels.

Images are rows of rectified features; each category adds a direction of its own where it
is present. The head is fitted by least squares to labels of which many positives, unevenly
over the categories, were turned negative and some of a confused category's positives were
taken over: what filling in unknown labels does to a model. A few per cent of the *known*
labels are wrong as well. Test labels are clean and complete.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scale(NamedTuple):
    """Sizes of a bench."""

    train: int
    valid: int
    test: int
    features: int
    categories: int
    known_train: float
    known_valid: float


SCALES = {
    "small": Scale(2_000, 1_000, 1_000, 256, 12, 0.10, 1.0),
    "issue": Scale(20_000, 10_000, 10_000, 2_048, 80, 0.10, 1.0),
    "coco": Scale(82_081, 40_137, 2_000, 2_048, 80, 0.10, 1.0),
}
_WRONG_KNOWN = 0.02
_BLOCK = 8_192


class Split(NamedTuple):
    """Features (N, D), known codes (N, C) int8 and the truth (N, C) bool."""

    features: Tensor
    codes: Tensor
    truth: Tensor


class Task(NamedTuple):
    """A head to repair and the data to do it with."""

    weight: Tensor
    bias: Tensor
    train: Split
    valid: Split
    test: Split


def make_task(scale: Scale, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Task:
    """Draw a task; `dtype` is that of the features."""
    g = torch.Generator().manual_seed(seed)
    c, d = scale.categories, scale.features
    directions = torch.randn(c, d, generator=g) * (torch.rand(c, d, generator=g) < 0.1)
    directions *= 1.2 * (2_048 / d) ** 0.5 / directions.std(1, keepdim=True) * 0.1
    prevalence = torch.logspace(-2, -0.6, c)[torch.randperm(c, generator=g)]
    train, valid, test = (
        _split(n, known, directions, prevalence, dtype=dtype, g=g)
        for n, known in (
            (scale.train, scale.known_train),
            (scale.valid, scale.known_valid),
            (scale.test, 1.0),
        )
    )
    weight, bias = _base_head(train, g)
    return Task(weight, bias, train, valid, test)


def _split(
    n: int,
    known: float,
    directions: Tensor,
    prevalence: Tensor,
    *,
    dtype: torch.dtype,
    g: torch.Generator,
) -> Split:
    c, d = directions.shape
    truth = torch.rand(n, c, generator=g) < prevalence
    features = torch.empty(n, d, dtype=dtype)
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(n, start + _BLOCK))
        noise = torch.randn(rows.stop - start, d, generator=g)
        features[rows] = (0.5 * noise + truth[rows].float() @ directions).clamp_(min=0).to(dtype)
    codes = truth.to(torch.int8)
    if known < 1:
        wrong = torch.rand(n, c, generator=g) < _WRONG_KNOWN * prevalence * 4
        codes = torch.where(wrong, 1 - codes, codes)
        codes[torch.rand(n, c, generator=g) >= known] = -1
    return Split(features, codes, truth)


def _base_head(train: Split, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Least squares on wrongly filled labels, scaled to look like logits."""
    n, c = train.truth.shape
    d = train.features.shape[1]
    lost = torch.rand(n, c, generator=g) < torch.linspace(0.3, 0.9, c)
    taken = torch.rand(n, c, generator=g) < torch.linspace(0.4, 0.0, c)
    labels = (train.truth & ~lost) | (train.truth.roll(1, 1) & taken)
    gram, moment = torch.zeros(d + 1, d + 1), torch.zeros(d + 1, c)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        z = torch.nn.functional.pad(train.features[rows].float(), (0, 1), value=1.0)
        gram.addmm_(z.T, z)
        moment.addmm_(z.T, labels[rows].float())
    solved = torch.linalg.solve(gram + 0.01 * n * torch.eye(d + 1), moment).T
    weight = 8.0 * solved[:, :d]
    return weight.contiguous(), 8.0 * solved[:, d] - 3.0
