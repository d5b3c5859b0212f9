"""Schemes by name: options, losses, and what they remember from step to step."""

from __future__ import annotations

import math

import pytest
import torch

from catwise import _names
from catwise.errors import ConfigError
from catwise.training import losses, selected
from catwise.training.schemes import SCHEMES, resolve_scheme, scheme_options
from catwise.training.steps import Batch, EpochScores, PriorState, PseudoState

N, C = 40, 6


def labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(N, C, generator=generator) < 0.5
    target = (torch.rand(N, C, generator=generator) < 0.4).float()
    return known, torch.where(known, target, 0.0)


def batch_of(rows, seed=1, epoch=0, n_epochs=10):
    known, target = labels()
    logits = 2 * torch.randn(N, C, generator=torch.Generator().manual_seed(seed))
    return Batch(logits[rows], known[rows], target[rows], rows, epoch, n_epochs)


def begin(name, **given):
    scheme = resolve_scheme(name)
    options = scheme_options(name, given)
    state = None
    if scheme.start is not None:
        state = scheme.start(*labels(), options, torch.Generator().manual_seed(0))
    return scheme, options, state


ROWS = torch.tensor([3, 0, 17, 39, 8])


def test_names_are_those_of_the_command_line():
    """One list, kept where nothing loads torch."""
    assert tuple(SCHEMES) == _names.SCHEMES


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_trains(name):
    """With its default options a linear model comes to rank known labels that it can rank."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 8, generator=generator)
    truth = (x @ torch.randn(8, C, generator=generator) > 0).float()
    known = labels()[0]
    target = torch.where(known, truth, 0.0)
    weight = torch.zeros(C, 8, requires_grad=True)
    scheme = resolve_scheme(name)
    options = scheme_options(name)
    state = scheme.start and scheme.start(known, target, options, generator)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for epoch in range(12):
        for rows in torch.randperm(N, generator=generator).split(20):
            logits = x[rows] @ weight.T
            batch = Batch(
                logits, known[rows], target[rows], rows, epoch, 12, teacher=logits.detach()
            )
            step = scheme.loss(batch, state, options)
            loss = step.entries.mean() + (0 if step.extra is None else step.extra)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheme.absorb is not None:
                state = scheme.absorb(state, rows, step.update, options)
        if scheme.next_epoch is not None:
            scores = EpochScores((x @ weight.T).detach(), known, target, epoch + 1, 12)
            state = scheme.next_epoch(state, scores, options)
    assert scheme.state is None or isinstance(state, scheme.state)
    right = ((x @ weight.T) > torch.zeros(())) == (truth > 0)
    ranked = [
        (z[:, None] > other[None, :]).float().mean()
        for c in range(C)
        if len(z := (x @ weight.T)[known[:, c] & (truth[:, c] > 0), c])
        and len(other := (x @ weight.T)[known[:, c] & (truth[:, c] == 0), c])
    ]
    assert right.shape == (N, C)
    assert float(torch.stack(ranked).mean()) > 0.9


def test_options_are_checked_once():
    """A range, a choice and a name that is not there, each with what would do."""
    with pytest.raises(ConfigError, match=r"gamma_neg >= 0"):
        scheme_options("asl", {"gamma_neg": -1})
    with pytest.raises(ConfigError, match="did you mean 'ignore'"):
        scheme_options("asl", {"unknown": "ignor"})
    with pytest.raises(ConfigError, match=r"did you mean 'gamma_neg'"):
        scheme_options("asl", {"gama_neg": 1})
    with pytest.raises(ConfigError, match="takes no options"):
        scheme_options("ignore", {"gamma": 1})
    with pytest.raises(ConfigError, match="did you mean 'hill'"):
        resolve_scheme("hil")


def test_large_losses_grow_with_epochs():
    """Nothing is changed in the first epoch; then a share that grows by Δrel with each."""
    for name, correct in (("ll_r", False), ("ll_ct", True)):
        scheme, options, _ = begin(name, delta_rel=0.04)
        first = batch_of(ROWS, epoch=0)
        plain = losses.assume_negative(*first[:3])
        torch.testing.assert_close(scheme.loss(first, None, options).entries, plain)
        later = batch_of(ROWS, epoch=3)
        wanted = selected.large_loss(*later[:3], share=0.12, correct=correct)
        torch.testing.assert_close(scheme.loss(later, None, options).entries, wanted)
        assert not torch.equal(wanted, plain)


def test_permanent_corrections_stay():
    """What a step corrects is positive from then on, and only there."""
    scheme, options, state = begin("ll_cp", delta_rel=0.1)
    step = scheme.loss(batch_of(ROWS, epoch=0), state, options)
    state = scheme.absorb(state, ROWS, step.update, options)
    assert not state.corrected.any()
    batch = batch_of(ROWS, epoch=1)
    step = scheme.loss(batch, state, options)
    after = scheme.absorb(state, ROWS, step.update, options)
    assert not state.corrected.any()  # the earlier state is not touched
    assert int(after.corrected.sum()) == math.ceil(0.1 * 5 * C)
    assert not (after.corrected & labels()[0]).any()
    again = scheme.loss(batch, after, options)
    corrected = after.corrected[ROWS]
    as_positive = losses.assume_negative(
        batch.logits, batch.known | corrected, torch.where(corrected, 1.0, batch.target)
    )
    torch.testing.assert_close(again.entries[corrected], as_positive[corrected])
    assert int(scheme.absorb(after, ROWS, again.update, options).corrected.sum()) == 2 * 3


def test_priors_are_estimated_once():
    """Known labels alone until the epoch of the estimate, the selective loss after it."""
    scheme, options, state = begin("csl", prior_epochs=2, likelihood_top=1)
    batch = batch_of(ROWS)
    before = scheme.loss(batch, state, options).entries
    assert (before[~batch.known] == 0).all()
    scores = [EpochScores(batch_of(torch.arange(N), seed=s)[0], *labels(), s, 5) for s in (1, 2, 3)]
    states = [state]
    for one in scores:
        states.append(scheme.next_epoch(states[-1], one, options))
    assert states[1].prior.isnan().all()
    torch.testing.assert_close(states[2].prior, torch.sigmoid(scores[1].logits.double()).mean(0))
    assert torch.equal(states[3].prior, states[2].prior)
    low = PriorState(torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]))
    after = scheme.loss(batch, low, options).entries
    counts = selected.selective(batch.logits, batch.known, prior=low.prior, likelihood_top=1)
    wanted = losses.partial_asymmetric(*batch[:3], counts=counts)
    torch.testing.assert_close(after, wanted)
    assert (after[:, 1][~batch.known[:, 1]] == 0).all()


def test_asymmetric_pseudo_labels_are_the_lowest_scores():
    """From the warm-up on, a part of each category's unknown labels: the lowest, as soft labels."""
    scheme, options, state = begin("em_apl", share=0.5, warmup=2)
    known, target = labels()
    early = EpochScores(batch_of(torch.arange(N))[0], known, target, 1, 6)
    assert scheme.next_epoch(state, early, options) is state
    scores = early._replace(epoch=2)
    first = scheme.next_epoch(state, scores, options)
    second = scheme.next_epoch(first, scores._replace(epoch=3), options)
    for c in range(C):
        unknown = (~known[:, c]).nonzero().flatten()
        count = int(0.5 / 4 * len(unknown))
        order = unknown[scores.logits[unknown, c].argsort()]
        for made, times in ((first, 1), (second, 2)):
            chosen = (~made.target[:, c].isnan()).nonzero().flatten()
            assert sorted(chosen.tolist()) == sorted(order[: times * count].tolist())
        soft = torch.sigmoid(scores.logits[order[:count], c])
        torch.testing.assert_close(first.target[order[:count], c], soft)
    last = scores._replace(epoch=6)
    assert scheme.next_epoch(second, last, options) is second
    batch = batch_of(torch.arange(N))
    pseudo = second.target
    wanted = losses.entropy_maximization(
        *batch[:3], ~pseudo.isnan(), torch.nan_to_num(pseudo), alpha=0.1, beta=0.2
    )
    torch.testing.assert_close(scheme.loss(batch, second, options).entries, wanted)
    assert isinstance(second, PseudoState)


def test_role_steps_its_estimates_as_adam_does():
    """Three steps over the same images are those of torch.optim.Adam; other images stay."""
    scheme, options, state = begin("role", rate=0.03)
    assert ((torch.sigmoid(state.estimates) - 0.5).abs() <= 0.1 + 1e-6).all()
    assert float(state.expected) == pytest.approx(selected.expected_positives(*labels()))
    batch = batch_of(ROWS)
    plain = state.estimates[ROWS].clone().requires_grad_()
    adam = torch.optim.Adam([plain], lr=0.03)
    before = state
    for _ in range(3):
        step = scheme.loss(batch, state, options)
        state = scheme.absorb(state, ROWS, step.update, options)
        loss = selected.role(*batch[:3], plain, expected=float(state.expected))
        adam.zero_grad()
        (loss.entries.mean() + loss.regulariser).backward()
        adam.step()
    torch.testing.assert_close(state.estimates[ROWS], plain.detach(), rtol=1e-4, atol=1e-6)
    others = torch.ones(N, dtype=torch.bool)
    others[ROWS] = False
    assert torch.equal(state.estimates[others], before.estimates[others])
    assert state.steps[ROWS].tolist() == [3] * 5


def test_auc_margin_has_cross_entropy_beside_it():
    """Known labels' cross-entropy as entries, the pairs as an extra."""
    scheme, options, _ = begin("auc_margin", bce_weight=0.5)
    batch = batch_of(ROWS)
    step = scheme.loss(batch, None, options)
    torch.testing.assert_close(step.entries, 0.5 * losses.ignore_unknown(*batch[:3]))
    torch.testing.assert_close(step.extra, selected.auc_margin(*batch[:3]).mean())


def test_curriculum_takes_sure_predictions():
    """After the warm-up, unknown labels far from 0 get their sign; others lose theirs again."""
    scheme, options, state = begin("curriculum", threshold=2.5, warmup=2, weight=0.5)
    known, target = labels()
    scores = EpochScores(batch_of(torch.arange(N))[0], known, target, 1, 6)
    assert scheme.next_epoch(state, scores, options) is state
    made = scheme.next_epoch(state, scores._replace(epoch=2), options)
    sure = ~known & (scores.logits.abs() > 2.5)
    assert 0 < int(sure.sum()) < int((~known).sum())
    assert torch.equal(~made.target.isnan(), sure)
    assert torch.equal(made.target[sure] == 1, scores.logits[sure] > 0)
    batch = batch_of(ROWS, seed=9)
    entries = scheme.loss(batch, made, options).entries
    label = torch.where(sure[ROWS], torch.nan_to_num(made.target[ROWS]), batch.target)
    both = losses.ignore_unknown(batch.logits, batch.known | sure[ROWS], label)
    torch.testing.assert_close(entries, torch.where(sure[ROWS], 0.5, 1.0) * both)
    less = scheme.next_epoch(made, scores._replace(epoch=3, logits=0 * scores.logits), options)
    assert less.target.isnan().all()


def test_self_training_takes_what_the_teacher_is_sure_of():
    """Hard labels from the moving average, at two thresholds; the teacher has no gradient."""
    scheme, options, _ = begin("self_training", positive=0.8, negative=0.3, warmup=1)
    batch = batch_of(ROWS)
    with pytest.raises(ConfigError, match=r"--ema 0.999"):
        scheme.loss(batch, None, options)
    teacher = (2 * torch.randn(5, C, generator=torch.Generator().manual_seed(7))).requires_grad_()
    early = scheme.loss(batch._replace(teacher=teacher), None, options)
    torch.testing.assert_close(early.entries, losses.ignore_unknown(*batch[:3]))
    logits = batch.logits.clone().requires_grad_()
    batch = batch._replace(teacher=teacher, epoch=1, logits=logits)
    entries = scheme.loss(batch, None, options).entries
    p = torch.sigmoid(teacher.detach())
    unknown = ~batch.known
    positive, negative = unknown & (p >= 0.8), unknown & (p <= 0.3)
    undecided = unknown & ~positive & ~negative
    assert all(part.any() for part in (positive, negative, undecided))
    assert (entries[undecided] == 0).all()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.where(positive, 1.0, batch.target), reduction="none"
    )
    torch.testing.assert_close(entries[~undecided], wanted[~undecided])
    entries.sum().backward()
    assert teacher.grad is None
