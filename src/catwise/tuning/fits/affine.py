"""Scale and offset of logits, refitted on known labels; both fold back into (w, b).

Average precision and AUROC are blind to a shift and to a positive scale of a category's
logits, so a search that maximises them leaves both anywhere. This puts them right: after it a
probability of 0.5 means what it says, and no rank has changed.

Source: Platt, "Probabilistic outputs for support vector machines", Advances in Large Margin
Classifiers, 1999. Here the scale is exp(t), so that it stays positive, and both numbers have a
weak prior, so that separable or one-class categories stay finite.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["fit_affine"]

_PRIOR_SCALE = 1.0
_PRIOR_OFFSET = 0.01
_MAX_LOG_SCALE = 5.0


def fit_affine(
    logits: Tensor, codes: Tensor, *, free_offset: bool = True, max_iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """Scale and offset of every category that fit its known labels best.

    Minimises ``Σ BCE(exp(t) z + o, y) + t² / 2 + 0.01 o² / 2`` by damped Newton steps.

    Args:
        logits: (C, n) float.
        codes: (C, n) int8; 1 positive, 0 negative, all else is not known.
        free_offset: False where the head has no bias to take one up.
        max_iterations: bound on the steps.

    Returns:
        (C,) float64 scales > 0 and offsets; 1 and 0 where nothing is known.

    >>> z = torch.tensor([[-2.0, -1.0, 1.0, 2.0]]).repeat(1, 50)
    >>> codes = (torch.sigmoid(z) > 0.4).to(torch.int8)
    >>> scale, offset = fit_affine(z, codes)
    >>> bool(scale > 1)
    True
    """
    known = codes >= 0
    z = torch.where(known, logits.double(), 0.0)
    y = (codes == 1).double()
    t = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    o, damping = torch.zeros_like(t), torch.full_like(t, 1e-3)
    free = float(free_offset)

    def loss(t: Tensor, o: Tensor) -> Tensor:
        u = t.exp()[:, None] * z + o[:, None]
        each = torch.where(known, softplus(u) - y * u, 0.0)
        return each.sum(1) + _PRIOR_SCALE * t**2 / 2 + _PRIOR_OFFSET * o**2 / 2

    now = loss(t, o)
    for _ in range(max_iterations):
        scaled = t.exp()[:, None] * z
        p = torch.sigmoid(scaled + o[:, None])
        slope = torch.where(known, p - y, 0.0)
        bend = torch.where(known, p * (1 - p), 0.0)
        g_t = (slope * scaled).sum(1) + _PRIOR_SCALE * t
        g_o = free * (slope.sum(1) + _PRIOR_OFFSET * o)
        # Gauss–Newton curvature: positive definite, and exact at the optimum's slope of zero.
        h_tt = (bend * scaled**2).sum(1) + _PRIOR_SCALE
        h_to = free * (bend * scaled).sum(1)
        h_oo = bend.sum(1) + _PRIOR_OFFSET
        a, d = h_tt * (1 + damping), h_oo * (1 + damping)
        det = a * d - h_to**2
        step_t = (d * g_t - h_to * g_o) / det
        step_o = (a * g_o - h_to * g_t) / det
        new_t = (t - step_t).clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE)
        new_o = o - free * step_o
        then = loss(new_t, new_o)
        better = then < now
        t, o = torch.where(better, new_t, t), torch.where(better, new_o, o)
        damping = torch.where(better, damping / 5, damping * 10).clamp(1e-9, 1e12)
        settled = (now - then).abs() <= 1e-12 * now.abs() + 1e-15
        now = torch.where(better, then, now)
        if bool((settled | (damping >= 1e12)).all()):
            break
    return t.exp(), o
