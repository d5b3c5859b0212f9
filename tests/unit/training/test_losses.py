"""Losses of batches with unknown labels: formulas entry by entry, gradients, extreme logits."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from catwise.errors import ConfigError, ShapeError
from catwise.training import losses, selected


def draw(n=7, c=5, seed=0, dtype=torch.float64):
    """Logits, known, and targets of which some are soft."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, c, generator=generator, dtype=dtype)
    known = torch.rand(n, c, generator=generator) < 0.5
    target = (torch.rand(n, c, generator=generator) < 0.4).to(dtype)
    target[0, 0], known[0, 0] = 0.7, True
    return logits, known, torch.where(known, target, 0.0)


# ------------------------------------------- slow twins: one entry, plain Python, the formulas


def sigma(z):
    return 1 / (1 + math.exp(-z))


def bce(z, y):
    return -y * math.log(sigma(z)) - (1 - y) * math.log(1 - sigma(z))


def focal_entry(z, y, gamma):
    p = sigma(z)
    return -y * (1 - p) ** gamma * math.log(p) - (1 - y) * p**gamma * math.log(1 - p)


def asl_entry(z, y, *, gamma_neg, gamma_pos, clip):
    p = sigma(z)
    shifted = max(p - clip, 0)
    return -y * (1 - p) ** gamma_pos * math.log(p) - (1 - y) * shifted**gamma_neg * math.log(
        min(1 - p + clip, 1)
    )


def ignore_entry(z, k, y, row):
    return bce(z, y) if k else 0.0


def partial_entry(z, k, y, row):
    share = sum(row) / len(row)
    return (-4.45 * share + 5.45) * bce(z, y) if k else 0.0


def weak_entry(z, k, y, row):
    return bce(z, y) if k else bce(z, 0) / (len(row) - 1)


def smooth_entry(z, k, y, row, *, unknown="negative"):
    if not k and unknown == "ignore":
        return 0.0
    return bce(z, 0.9 * (y if k else 0) + 0.05)


def partial_asl_entry(z, k, y, row):
    if k:
        return asl_entry(z, y, gamma_neg=3.0, gamma_pos=1.0, clip=0.05)
    return 0.5 * asl_entry(z, 0, gamma_neg=2.0, gamma_pos=1.0, clip=0.05)


def entropy_entry(z, k, y, row):
    p = sigma(z)
    return bce(z, y) if k else 0.3 * (p * math.log(p) + (1 - p) * math.log(1 - p))


def splc_entry(z, k, y, row, *, epoch):
    if k:
        return focal_entry(z - y, y, 2)
    return focal_entry(z, 1 if epoch >= 1 and sigma(z) > 0.6 else 0, 2)


def hill_entry(z, k, y, row):
    y = y if k else 0
    return y * focal_entry(z - 1, 1, 2) + (1 - y) * (1.5 - sigma(z)) * sigma(z) ** 2


PARTIAL = {"gamma_pos": 1.0, "gamma_neg": 3.0, "alpha_unknown": 0.5, "clip": 0.05}
CASES = {
    "ignore": (losses.ignore_unknown, ignore_entry),
    "partial_bce": (losses.partial_bce, partial_entry),
    "assume_negative": (losses.assume_negative, lambda z, k, y, *_: bce(z, y if k else 0)),
    "weak": (losses.weak_assume_negative, weak_entry),
    "smoothing": (losses.label_smoothing, smooth_entry),
    "smoothing, ignore": (
        partial(losses.label_smoothing, unknown="ignore"),
        partial(smooth_entry, unknown="ignore"),
    ),
    "focal": (losses.focal_loss, lambda z, k, y, *_: focal_entry(z, y if k else 0, 2)),
    "focal, ignore": (
        partial(losses.focal_loss, unknown="ignore", gamma=1.5),
        lambda z, k, y, *_: focal_entry(z, y, 1.5) if k else 0.0,
    ),
    "asl": (
        losses.asymmetric_loss,
        lambda z, k, y, *_: asl_entry(z, y if k else 0, gamma_neg=4, gamma_pos=0, clip=0.05),
    ),
    "asl, true gradient": (
        partial(losses.asymmetric_loss, unknown="ignore", as_published=False),
        lambda z, k, y, *_: asl_entry(z, y, gamma_neg=4, gamma_pos=0, clip=0.05) if k else 0.0,
    ),
    "partial_asl": (partial(losses.partial_asymmetric, **PARTIAL), partial_asl_entry),
    "em": (partial(losses.entropy_maximization, alpha=0.3), entropy_entry),
    "splc, first epoch": (partial(losses.splc, epoch=0), partial(splc_entry, epoch=0)),
    "splc": (partial(losses.splc, epoch=3), partial(splc_entry, epoch=3)),
    "hill": (losses.hill, hill_entry),
}
each = pytest.mark.parametrize("name", CASES)


@each
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_equal_their_formula(name, seed):
    """Entry by entry the published formula, in plain Python."""
    function, entry = CASES[name]
    logits, known, target = draw(seed=seed)
    got = function(logits, known, target)
    wanted = [
        [
            entry(float(logits[i, c]), bool(known[i, c]), float(target[i, c]), known[i].tolist())
            for c in range(5)
        ]
        for i in range(7)
    ]
    torch.testing.assert_close(
        got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


CONSTANT_FACTORS = {"asl", "partial_asl"}


@pytest.mark.parametrize("name", sorted(CASES.keys() - CONSTANT_FACTORS))
def test_gradients_are_those_of_the_value(name):
    """Finite differences in float64, but for the losses whose factor is held constant."""
    function, _ = CASES[name]
    logits, known, target = draw()
    assert torch.autograd.gradcheck(
        lambda z: function(z, known, target), (logits.requires_grad_(),)
    )


@pytest.mark.parametrize("name", sorted(CONSTANT_FACTORS))
def test_published_gradients_hold_the_factor_constant(name):
    """The gradient is the focusing factor times that of the loss without focusing."""
    function, _ = CASES[name]
    logits, known, target = draw()
    known[:], target = True, target.round()
    z = logits.clone().requires_grad_()
    function(z, known, target).sum().backward()
    gammas = (4.0, 0.0) if name == "asl" else (3.0, 1.0)
    p = torch.sigmoid(logits)
    shifted = (p - 0.05).clamp(min=0)
    wanted = torch.where(
        target > 0.5,
        -((1 - p) ** gammas[1]) * (1 - p),
        shifted ** gammas[0] * p * (1 - p) / (1.05 - p).clamp(max=1) * (shifted > 0),
    )
    torch.testing.assert_close(z.grad, wanted)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_are_safe(name, dtype):
    """Values and gradients at ±10,000 are finite, in float32 and in bfloat16."""
    function, _ = CASES[name]
    ends = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4])
    logits = ends.repeat(3, 1).to(dtype).requires_grad_()
    known = torch.tensor([True, True, False])[:, None].expand(3, 7)
    target = torch.tensor([0.0, 1.0, 0.0])[:, None].expand(3, 7)
    value = function(logits, known, target)
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    value.sum().backward()
    assert logits.grad.isfinite().all()


IGNORING = ["ignore", "partial_bce", "smoothing, ignore", "focal, ignore", "asl, true gradient"]


@pytest.mark.parametrize("name", IGNORING)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_left_out_cannot_spoil_a_gradient(name, bad):
    """Loss and gradient of an unknown label are 0 whatever its logit is."""
    function, _ = CASES[name]
    logits, known, target = draw(dtype=torch.float32)
    logits[~known] = bad
    logits.requires_grad_()
    value = function(logits, known, target)
    value.sum().backward()
    assert (value[~known] == 0).all()
    assert (logits.grad[~known] == 0).all()
    assert logits.grad.isfinite().all()
    assert logits.grad[known].abs().sum() > 0


@each
def test_unknown_targets_are_not_looked_at(name):
    """A target where the label is unknown, NaN included, changes nothing."""
    function, _ = CASES[name]
    logits, known, target = draw()
    other = torch.where(known, target, math.nan)
    torch.testing.assert_close(function(logits, known, other), function(logits, known, target))


def test_shapes_are_checked():
    """What is not three of one shape is refused, with the shapes."""
    logits, known, target = draw()
    with pytest.raises(ShapeError, match=r"\(7, 5\), \(7, 4\), \(7, 5\)"):
        losses.ignore_unknown(logits, known[:, :4], target)
    with pytest.raises(ConfigError, match="did you mean 'negative'"):
        losses.focal_loss(logits, known, target, unknown="negatve")


# ------------------------------------------------------------------- entropy, pseudo-labels


def test_pseudo_labels_count_where_nothing_is_known():
    """Weighed: a part of the cross-entropy with a soft pseudo-label; known labels go before it."""
    logits, known, target = draw()
    pseudo = torch.rand(7, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    soft = torch.full((7, 5), 0.2, dtype=torch.float64)
    got = losses.entropy_maximization(logits, known, target, pseudo, soft, alpha=0.3, beta=0.4)
    without = losses.entropy_maximization(logits, known, target, alpha=0.3)
    chosen = pseudo & ~known
    assert chosen.any()
    for i, c in chosen.nonzero().tolist():
        assert float(got[i, c]) == pytest.approx(0.4 * bce(float(logits[i, c]), 0.2))
    torch.testing.assert_close(got[~chosen], without[~chosen])


# ---------------------------------------------------------------------------- large losses


def reject_twin(logits, known, target, share, *, correct):
    """The published selection with plain loops."""
    entries = [(i, c) for i in range(7) for c in range(5)]
    y = {(i, c): float(target[i, c]) if known[i, c] else 0.0 for i, c in entries}
    loss = {(i, c): bce(float(logits[i, c]), y[i, c]) for i, c in entries}
    unknown = sorted((at for at in entries if not known[at]), key=loss.get, reverse=True)
    for at in unknown[: math.ceil(share * len(entries))]:
        loss[at] = bce(float(logits[at]), 1.0) if correct else 0.0
    return torch.tensor([[loss[i, c] for c in range(5)] for i in range(7)], dtype=torch.float64)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("correct", [False, True])
def test_large_losses_are_picked_as_published(share, correct):
    """The largest of unknown labels, as many as a share of all entries; never a known one."""
    batch = draw()
    got = selected.large_loss(*batch, share=share, correct=correct)
    torch.testing.assert_close(got, reject_twin(*batch, share, correct=correct))


def test_large_loss_gradients():
    """What is rejected has no gradient; what is corrected is pulled up; all are finite."""
    logits, known, target = draw()
    picked = selected.large_losses(losses.assume_negative(logits, known, target), known, 0.2)
    for correct in (False, True):
        z = logits.clone().requires_grad_()
        selected.large_loss(z, known, target, share=0.2, correct=correct).sum().backward()
        wanted = torch.sigmoid(logits[picked]) - 1 if correct else torch.zeros(picked.sum())
        torch.testing.assert_close(z.grad[picked], wanted.double())
    extreme = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    none = torch.zeros(1, 3, dtype=torch.bool)
    selected.large_loss(extreme, none, torch.zeros(1, 3), share=0.3).sum().backward()
    assert extreme.grad.tolist() == [[0.0, 0.0, 0.5]]


# ------------------------------------------------------------------------ selective, priors


def test_selection_by_prior_and_score():
    """Left out: frequent categories, and the highest scores of unknown labels in the batch."""
    logits, known, _ = draw()
    prior = torch.tensor([0.0, 0.2, 0.01, 0.04, 0.9])
    got = selected.selective(logits, known, prior=prior, likelihood_top=1, prior_threshold=0.05)
    unknown = sorted(
        ((i, c) for i in range(7) for c in range(5) if not known[i, c]),
        key=lambda at: float(logits[at]),
        reverse=True,
    )
    highest = set(unknown[:7])
    for i in range(7):
        for c in range(5):
            left_out = float(prior[c]) > 0.05 or (i, c) in highest
            assert bool(got[i, c]) == (bool(known[i, c]) or not left_out)


def test_priors_are_mean_probabilities():
    """The mean over images of the model's probability; one for each category is needed."""
    logits, known, _ = draw()
    wanted = [sum(sigma(float(z)) for z in logits[:, c]) / 7 for c in range(5)]
    assert selected.estimate_prior(logits).tolist() == pytest.approx(wanted)
    with pytest.raises(ShapeError, match="one for each category"):
        selected.selective(logits, known, prior=torch.zeros(4))


# ------------------------------------------------------------------------------------ ROLE


def test_role_equals_its_formula():
    """Both halves, with the other side held constant, and the regulariser of both."""
    logits, known, target = draw()
    estimates = draw(seed=5)[0]
    got = selected.role(logits, known, target, estimates, expected=1.5)
    entries = torch.zeros(7, 5, dtype=torch.float64)
    sums = [[], []]
    for i in range(7):
        z, e = logits[i].tolist(), estimates[i].tolist()
        sums[0].append(sum(map(sigma, z)))
        sums[1].append(sum(map(sigma, e)))
        for c in range(5):
            y = float(target[i, c])
            own = bce(z[c], y) + bce(e[c], y) if known[i, c] else 0.0
            entries[i, c] = 0.5 * (own + bce(z[c], sigma(e[c])) + bce(e[c], sigma(z[c])))
    regulariser = sum(0.5 * ((sum(s) / 7 - 1.5) / 5) ** 2 for s in sums)
    torch.testing.assert_close(got.entries, entries)
    assert float(got.regulariser) == pytest.approx(regulariser)


def test_role_gradients():
    """Autograd gives, by the estimates, what `role_gradient` says; each side leaves the other."""
    logits, known, target = draw()
    z, e = logits.requires_grad_(), draw(seed=5)[0].requires_grad_()
    loss = selected.role(z, known, target, e, expected=1.5)
    (loss.entries.mean() + loss.regulariser).backward()
    wanted = selected.role_gradient(z, known, target, e, expected=1.5)
    torch.testing.assert_close(e.grad, wanted)
    p, q = torch.sigmoid(z.detach()), torch.sigmoid(e.detach())
    own = 0.5 * (torch.where(known, p - target, 0.0) + p - q) / 35
    own = own + (p.sum(1).mean() - 1.5) / 25 / 7 * p * (1 - p)
    torch.testing.assert_close(z.grad, own)


# -------------------------------------------------------------------------------- AUC, CAM


def test_auc_margin_over_pairs():
    """The mean over pairs of known labels; a category without a pair counts nothing."""
    logits, known, target = draw()
    target = target.round()
    target[:, 4] = 0
    got = selected.auc_margin(logits, known, target)
    for c in range(5):
        rows = [i for i in range(7) if known[i, c]]
        pairs = [
            max(1 - sigma(float(logits[i, c])) + sigma(float(logits[j, c])), 0) ** 2
            for i in rows
            for j in rows
            if target[i, c] > 0.5 >= target[j, c]
        ]
        assert float(got[c]) == pytest.approx(sum(pairs) / len(pairs) if pairs else 0.0)
    assert got[4] == 0
    z = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: selected.auc_margin(x, known, target), (z,))
    extreme = (1e4 * torch.sign(logits)).requires_grad_()
    selected.auc_margin(extreme, known, target).sum().backward()
    assert extreme.grad.isfinite().all()


def test_boost_lu_scales_positive_places():
    """Positive places are multiplied, negative ones stay; so does the gradient."""
    maps = torch.tensor([[[[-2.0, 3.0], [0.5, -0.5]]]], requires_grad=True)
    boosted = selected.boost_lu(maps, alpha=5)
    assert boosted.tolist() == [[[[-2.0, 15.0], [2.5, -0.5]]]]
    boosted.sum().backward()
    assert maps.grad.tolist() == [[[[1.0, 5.0], [5.0, 1.0]]]]
