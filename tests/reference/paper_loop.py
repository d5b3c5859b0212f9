"""CFT by back-propagation as published, in its plainest form: a loop over categories.

Autograd, `torch.optim.Adam`, one category at a time, validation AP after every step.
"""

from __future__ import annotations

import torch


def plain_average_precision(logits, positive):
    """Average precision of one category, threshold by threshold; ties share one."""
    total, before = 0.0, 0.0
    n_positive = int(positive.sum())
    for threshold in sorted(set(logits.tolist()), reverse=True):
        above = logits >= threshold
        hits = int((above & positive).sum())
        recall = hits / n_positive
        total += (recall - before) * hits / int(above.sum())
        before = recall
    return total


def bce(logits, target):
    """Binary cross-entropy from its definition."""
    return -(target * torch.sigmoid(logits).log() + (1 - target) * torch.sigmoid(-logits).log())


def asl(logits, target, gamma_neg=4, gamma_pos=0, clip=0.05):
    """Asymmetric loss as its authors publish it: constant focus, clamped logarithms."""
    p = torch.sigmoid(logits)
    q = (1 - p + clip).clamp(max=1)
    loss = target * p.clamp(min=1e-8).log() + (1 - target) * q.clamp(min=1e-8).log()
    with torch.no_grad():
        p_true = p * target + q * (1 - target)
        focus = (1 - p_true) ** (gamma_pos * target + gamma_neg * (1 - target))
    return -focus * loss


def paper_loop(weight, bias, train, valid, *, loss, lr=1e-4, max_steps=5000, patience=300, keep=()):
    """Tune every category; return its head, best step, steps, scores and kept weights.

    Args:
        weight: (C, D) float64.
        bias: (C,) or None.
        train: (features, codes).
        valid: (features, codes).
        loss: `bce` or `asl`.
        lr: Adam's step size.
        max_steps: bound on the steps.
        patience: steps without improvement before stopping.
        keep: steps whose moving weights are returned.

    Returns:
        A list with a dict per category; None where it is skipped.
    """
    results = []
    for c in range(len(weight)):
        rows, rows_valid = train[1][:, c] >= 0, valid[1][:, c] >= 0
        z, y = train[0][rows], train[1][rows, c].to(weight.dtype)
        zv, yv = valid[0][rows_valid], valid[1][rows_valid, c] == 1
        if not (y.any() and (1 - y).any() and yv.any() and (~yv).any()):
            results.append(None)
            continue
        w = weight[c].clone().requires_grad_()
        b = None if bias is None else bias[c].clone().requires_grad_()
        parameters = [w] if b is None else [w, b]
        optimizer = torch.optim.Adam(parameters, lr=lr)

        def logits(features, w=w, b=b):
            return features @ w if b is None else features @ w + b

        with torch.no_grad():
            base = best = plain_average_precision(logits(zv), yv)
        best_step, best_head, kept = 0, [p.detach().clone() for p in parameters], {}
        for step in range(1, max_steps + 1):
            optimizer.zero_grad()
            loss(logits(z), y).sum().backward()
            optimizer.step()
            with torch.no_grad():
                score = plain_average_precision(logits(zv), yv)
            if step in keep:
                kept[step] = [p.detach().clone() for p in parameters]
            if score > best:
                best, best_step = score, step
                best_head = [p.detach().clone() for p in parameters]
            if step - best_step >= patience:
                break
        results.append(
            {
                "head": best_head,
                "best_step": best_step,
                "steps": step,
                "best": best,
                "base": base,
                "kept": kept,
            }
        )
    return results
