"""Smooth average precision and AUROC of all categories, with slopes, on binned logits.

A rank counts the rows that score more: ``Σ_j [z_j > z_i]``. Here the step becomes a sigmoid of
temperature τ, so that the metric has a slope. Counting all pairs would take positives × rows;
instead the logits of each class are put in bins (linearly, between the two nearest), and the
bins are compared with each other. How far one bin is above another depends on their distance alone,
so that comparing is a convolution: rows + bins · log bins. Slopes are the exact ones of the binned
value.

Sources: Brown et al., "Smooth-AP: smoothing the path towards large-scale image retrieval", ECCV
2020 (the sigmoid in the ranks); Yan et al., "Optimizing classifier performance via an
approximation to the Wilcoxon–Mann–Whitney statistic", ICML 2003 (AUROC). Binning is ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["average_precision", "auroc"]

_N_BINS = 512
_MARGIN = 6.0
_ROOM = 2.0
_HALF = 0.5


class SmoothRanking:
    """A ranking metric as a loss, summed over the positives of each category.

    "average_precision": ``Σ_i FP_i / (TP_i + FP_i)`` over the positives i, where TP and FP are the
    smooth counts of positives and negatives that score more, i itself counted half, and half
    again for its own step. "auroc": ``Σ_i FP_i / negatives``. Both are positives × (1 − metric)
    as τ goes to 0.

    Args:
        logits: (C, n) to start from: they set the range of the bins, which reach some way beyond.
        codes: (C, n) int8; 1 positive, 0 negative, all else is left out.
        kind: which metric.
        temperature: τ, in logits.
        n_bins: of each category.

    >>> codes = torch.tensor([[1, 0, 0, 1]], dtype=torch.int8)
    >>> logits = torch.tensor([[9.0, -9.0, -8.0, 8.0]])
    >>> loss = SmoothRanking(logits, codes, "auroc", temperature=0.1)
    >>> bool(loss.value(logits) < 1e-6), bool(loss.value(-logits) > 1.99)
    (True, True)
    """

    def __init__(
        self,
        logits: Tensor,
        codes: Tensor,
        kind: Kind,
        *,
        temperature: float,
        n_bins: int = _N_BINS,
    ) -> None:
        positive = codes == 1
        self._kind, self._n_bins = kind, n_bins
        self._known = (codes >= 0).to(logits.dtype)
        inf = torch.inf
        top = logits.masked_fill(codes < 0, -inf).amax(1, keepdim=True)
        low = logits.masked_fill(~positive, inf).amin(1, keepdim=True)
        margin = _MARGIN * temperature + _ROOM
        top = torch.where(top.isfinite(), top, 0.0) + margin
        low = torch.where(low.isfinite(), low, top - 2 * margin) - margin
        self._low, self._width = low, (top - low) / (n_bins - 1)
        ahead = torch.arange(-n_bins, n_bins, device=logits.device, dtype=torch.float64)
        above = torch.sigmoid(ahead * (self._width.double() / temperature))  # by bins ahead
        self._above = torch.fft.rfft(above.roll(n_bins, 1))
        first = torch.arange(len(codes), device=codes.device)[:, None] * (2 * n_bins)
        self._shift = first + (~positive).to(torch.int64) * n_bins
        self._n_negative = (codes == 0).sum(1).clamp_min(1).to(logits.dtype)

    def select_categories(self, keep: Tensor) -> SmoothRanking:
        """The loss of some categories."""
        new = object.__new__(SmoothRanking)
        new._kind, new._n_bins = self._kind, self._n_bins
        new._known, new._n_negative = self._known[keep], self._n_negative[keep]
        new._low, new._width = self._low[keep], self._width[keep]
        new._above = self._above[keep]
        row = torch.arange(len(new._low), device=keep.device)[:, None]
        own = self._shift[keep] % (2 * self._n_bins)
        new._shift = own + row * (2 * self._n_bins)
        return new

    def value(self, logits: Tensor) -> Tensor:
        """(C,) the loss."""
        place, share = self._place(logits)
        return self._loss(*self._counts(place, share))[0]

    def slope(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) the loss, and its (C, n) slopes by the logits."""
        place, share = self._place(logits)
        loss, by_positive, by_negative = self._loss(*self._counts(place, share))
        rises = torch.stack([by_positive, by_negative], 1).diff(dim=2) / self._width[:, :, None]
        rises = torch.nn.functional.pad(rises, (0, 1))
        slopes = rises.flatten()[self._shift + place] * self._known
        inside = (logits > self._low) & (logits < self._low + (self._n_bins - 1) * self._width)
        return loss, slopes * inside

    def _place(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(C, n) lower bin of each row, and its share of the upper one."""
        place = ((logits - self._low) / self._width).clamp(0, self._n_bins - 1)
        lower = place.floor().clamp_max(self._n_bins - 2)
        return lower.to(torch.int64), place - lower

    def _counts(self, place: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """(C, G) positives and negatives in each bin."""
        index = (self._shift + place).flatten()
        size = 2 * self._n_bins * len(place)
        upper = (share * self._known).flatten()
        lower = self._known.flatten() - upper
        binned = torch.zeros(size, dtype=share.dtype, device=share.device)
        binned.scatter_add_(0, index, lower).scatter_add_(0, index + 1, upper)
        both = binned.view(len(place), 2, self._n_bins)
        return both[:, 0], both[:, 1]

    def _loss(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(C,) the loss, and its slopes by the (C, G) counts of both classes.

        Waves are of float64, so that a rank near 0 keeps its digits beside ranks of thousands.
        """

        def compared(counts: Tensor, kernel: Tensor) -> Tensor:
            size = 2 * self._n_bins  # so that the ends of the bins do not meet
            waves = torch.fft.rfft(counts.double(), size).mul_(kernel)
            found: Tensor = torch.fft.irfft(waves, size)[:, : self._n_bins]
            return found.to(counts.dtype)

        def above(counts: Tensor) -> Tensor:
            return compared(counts, self._above.conj())

        def below(weights: Tensor) -> Tensor:
            return compared(weights, self._above)

        false = above(negative)
        if self._kind == "auroc":
            scale = self._n_negative[:, None]
            return (positive * false).sum(1) / scale[:, 0], false / scale, below(positive) / scale
        true = above(positive) + _HALF
        every = true + false
        share = false / every
        by_true = below(positive * false / every**2)
        by_false = below(positive * true / every**2)
        return (positive * share).sum(1), share - by_true, by_false
