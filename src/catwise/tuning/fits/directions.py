"""Heads that training labels alone point to, fitted from zero logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from catwise.tuning.fits.penalised import PenalisedFit, fit_path
from catwise.tuning.rows.known import LabelledRows, known_rows
from catwise.tuning.rows.tuning_rows import TuningRows

_TYPICAL_POSITIVES = 50.0


def fit_directions(
    codes: Tensor, source: LabelledRows, penalties: Sequence[float], **fitting: Any
) -> Iterator[PenalisedFit]:
    """From zero logits, for each penalty.

    The penalty grows with the root of the number of positives, so that the direction keeps
    much the same length however many labels are known.

    Shapes:
        codes: (C, n) int8 of the rows that `source` lays out.
    """
    positives = (codes == 1).sum(1).clamp_min(1).to(source.target.dtype)
    growth = (positives / _TYPICAL_POSITIVES).sqrt()
    path = [penalty * growth for penalty in penalties]
    return fit_path([replace(source, offset=None, intercept=True)], path, **fitting)


def with_drawn_negatives(
    train: TuningRows, draws: Tensor, *, per_known: float, weight: float
) -> LabelledRows:
    """Known labels, and for each of them some unknown ones that count as negative.

    Their number is bounded, so that the work stays in proportion to the known labels; the weight
    is divided by the share that is drawn.

    Shapes:
        draws: (C, n) in [0, 1); NaN where no label of any category is known: never drawn.
    """
    known = train.codes >= 0
    n_known = known.sum(1, keepdim=True)
    n_unknown = (~draws.isnan() & ~known).sum(1, keepdim=True).clamp_min(1)
    share = (per_known * n_known / n_unknown).clamp(max=1.0)
    drawn = ~known & (draws < share)
    rows, _ = known_rows(train.x, known | drawn)
    target = (rows.at(train.codes) == 1).to(train.x.dtype)
    each = torch.where(known, 1.0, torch.where(drawn, weight / share, 0.0)).to(train.x.dtype)
    return LabelledRows(rows, target, rows.at(each))
