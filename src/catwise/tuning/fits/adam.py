"""Category-wise fine-tuning by back-propagation, as published, for all categories at once.

Each category is a logistic regression of its own on that category's known labels, started
at the model's own weights and moved by full-batch Adam. An epoch is one product forward and one
backward over the training rows (`rows.known`), whatever the number of categories.

Source: Chong et al., arXiv 2401.16991 (CFT_BP); Kingma & Ba, Adam, ICLR 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from catwise.errors import check_choice
from catwise.losses import Loss, resolve_loss
from catwise.progress import ProgressCallback
from catwise.tuning.fits.loop import (
    ColumnLoop,
    HeadColumns,
    LoopConfig,
    LoopResult,
    TuningData,
    Validation,
    start_loop,
)
from catwise.tuning.rows.costs import LayoutName
from catwise.tuning.rows.known import LabelledRows, known_rows


@dataclass(frozen=True, kw_only=True)
class BackpropConfig(LoopConfig):
    """Options of `fit_backprop`, with those of the loop; the defaults are the published ones.

    Args:
        loss: name in `catwise.losses.LOSSES`, or a `Loss`; summed over known labels. The
            published methods are "bce" and "asl_published" ("asl" is differentiable
            throughout).
        lr: Adam's step size.
        betas: Adam's decay rates of the two moments.
        eps: Adam's denominator offset.
        layout: "dense", "sparse", "gathered" (see `rows.known`), or "auto", which chooses by cost.
    """

    loss: str | Loss = "bce"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layout: LayoutName | Literal["auto"] = "auto"

    stage: ClassVar[str] = "backprop"
    title: ClassVar[str] = "back-propagation"

    def __post_init__(self) -> None:
        resolve_loss(self.loss)
        check_choice("layout", self.layout, ("auto", "dense", "sparse", "gathered"))
        super().__post_init__()

    def rules(self) -> dict[str, bool]:
        """What must hold."""
        return {
            "lr > 0": math.isfinite(self.lr) and self.lr > 0,
            "eps > 0": math.isfinite(self.eps) and self.eps > 0,
            "betas in [0, 1)": all(0 <= b < 1 for b in self.betas),
            **super().rules(),
        }


def fit_backprop(
    head_weight: Tensor,
    head_bias: Tensor | None,
    train: TuningData,
    valid: TuningData,
    config: BackpropConfig | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> LoopResult:
    """Tune every category's (w, b) on its known training labels; validation picks the step.

    A category is skipped unless training and validation both know a positive and a negative.

    Args:
        head_weight: (C, D), any floating dtype.
        head_bias: (C,), or None; a missing bias stays missing.
        train: what is fitted.
        valid: what chooses the step.
        config: options; the published ones if None.
        progress: called now and then with a `Progress` in steps.

    Returns:
        The best head of each category and how it was found. The arithmetic runs where the
        training features are; tensors of the result are there too.

    Raises:
        ShapeError: If head, training and validation data do not fit together.
    """
    config = config or BackpropConfig()
    loop, index = start_loop(head_weight, head_bias, train, valid, config)
    own, judging = train.of(index), valid.of(index)
    run_backprop(loop, index, own, judging, config, progress=progress)
    return loop.result()


def run_backprop(
    loop: ColumnLoop,
    index: Tensor,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    config: BackpropConfig,
    *,
    progress: ProgressCallback | None = None,
) -> None:
    """Run the loop for the categories `index`: (n, D) features, and (A, n) codes of these alone."""
    features, codes = train
    known = codes >= 0
    some = known.any(0)
    if not bool(some.all()):
        features, codes, known = features[some], codes[:, some], known[:, some]
    rows, costs = known_rows(
        features,
        known,
        dtype=config.dtype,
        layout=config.layout,
        gather_bytes=config.gather_bytes,
        by_rows=True,
    )
    loop.layout = loop.layout or costs
    if len(index):
        head = loop.head.select_categories(index)
        stepper = Adam(head, LabelledRows.from_codes(rows, codes), config)
        wide = valid[0].to(index.device, config.dtype)
        validation = Validation(wide, valid[1].contiguous(), loop.metric)
        loop.run(index, stepper, validation, progress=progress)


class Adam:
    """Full-batch Adam on the summed loss of every category (Kingma & Ba 2015, algorithm 1).

    Args:
        head: (A, D) rows to start from; they are moved in place.
        labelled: the known training rows.
        config: loss and step size.
    """

    objective = "loss"

    def __init__(self, head: HeadColumns, labelled: LabelledRows, config: BackpropConfig) -> None:
        self.head, self.step_size = head, config.lr
        self._labelled, self._config, self._loss = labelled, config, resolve_loss(config.loss)
        self._first = [torch.zeros_like(p) for p in head.parameters()]
        self._second = [torch.zeros_like(p) for p in head.parameters()]

    def step(self, step: int, *, measure: bool) -> Tensor | None:
        """Move the rows; return (A,) summed losses of those before, if asked."""
        rows, target, weight = self._labelled.rows, self._labelled.target, self._labelled.weight
        logits = rows.forward(self.head.weight)
        if self.head.bias is not None:
            logits += rows.spread(self.head.bias)
        losses = None
        if measure:
            each = self._loss.value(logits, target)
            losses = rows.sums(each if weight is None else each * weight)
        slopes = self._loss.slope(logits, target)
        if weight is not None:
            slopes *= weight
        gradients = [rows.backward(slopes)]
        if self.head.bias is not None:
            gradients.append(rows.sums(slopes))
        self._move(gradients, step)
        return losses

    def _move(self, gradients: list[Tensor], step: int) -> None:
        beta1, beta2 = self._config.betas
        size = self.step_size / (1 - beta1**step)
        correction = math.sqrt(1 - beta2**step)
        moments = zip(self.head.parameters(), gradients, self._first, self._second, strict=True)
        for parameter, gradient, first, second in moments:
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (second.sqrt() / correction).add_(self._config.eps)
            parameter.addcdiv_(first, denominator, value=-size)

    def measures(self) -> dict[str, Tensor]:
        """Nothing besides the loss, which only some steps measure."""
        return {}

    def select_categories(self, keep: Tensor) -> Adam:
        """The stepper of some categories, with their moments."""
        labelled = self._labelled.select_categories(keep)
        taken = Adam(self.head.select_categories(keep), labelled, self._config)
        taken._first = [m[keep] for m in self._first]
        taken._second = [v[keep] for v in self._second]
        return taken

    def train_passes(self, steps: int) -> int:
        """Forward and backward."""
        return 2 * steps
