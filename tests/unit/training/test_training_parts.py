"""What the loop is made of: step sizes, groups of parameters, the order of images, changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from catwise._configs import TrainConfig
from catwise.errors import ConfigError
from catwise.training.data import Plan, augmented
from catwise.training.optimizing import make_optimizer, parameter_groups, rate_at
from cli.train_case import SmallNet


@pytest.mark.parametrize(("total", "warmup"), [(10, 0.3), (37, 0.25), (100, 0.1)])
def test_onecycle_is_that_of_torch(total, warmup):
    """Every step's size is that of OneCycleLR, without its state."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=total, pct_start=warmup
    )
    config = TrainConfig(lr=0.3, warmup=warmup)
    for step in range(total):
        assert rate_at(step, total, config) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            schedule.step()


def test_cosine_and_constant():
    """Straight up to the largest step size, and down by half a wave that ends above 0."""
    config = TrainConfig(lr=0.5, schedule="cosine", warmup=0.2)
    rates = [rate_at(step, 20, config) for step in range(20)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    wave = [0.25 * (1 + np.cos(np.pi * k / 17)) for k in range(1, 17)]
    assert rates[4:] == pytest.approx(wave)
    plain = TrainConfig(lr=0.5, schedule="cosine", warmup=0)
    assert rate_at(0, 20, plain) == 0.5
    assert 0 < rate_at(19, 20, plain) < 0.02
    assert {rate_at(s, 20, TrainConfig(lr=0.5, schedule="constant")) for s in range(20)} == {0.5}


def test_one_dimensional_parameters_have_no_decay():
    """Biases and norms do not decay, weights do; what is frozen is in no group."""
    module = SmallNet()
    module.conv.weight.requires_grad_(requires_grad=False)
    decayed, plain = parameter_groups(module, 0.1)
    assert [p.shape for p in decayed["params"]] == [module.fc.weight.shape]
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert len(plain["params"]) == 4
    assert isinstance(make_optimizer(module, TrainConfig(optimizer="sgd")), torch.optim.SGD)


def test_order_of_images():
    """By seed and epoch alone; processes share what one that accumulates sees alone."""
    alone = Plan(103, 8, 4, 1)
    assert (alone.step_images, alone.steps) == (32, 3)
    one = alone.batches(0, 5, 0)
    assert len(one) == 12
    rows = np.concatenate(one)
    assert len(set(rows.tolist())) == 96
    assert np.array_equal(rows, np.concatenate(alone.batches(0, 5, 0)))
    for other in (alone.batches(0, 6, 0), alone.batches(1, 5, 0)):
        assert not np.array_equal(rows, np.concatenate(other))
    pair = [Plan(103, 8, 2, 2).batches(0, 5, rank) for rank in (0, 1)]
    for place, batch in enumerate(one):
        assert np.array_equal(batch, pair[place % 2][place // 2])
    with pytest.raises(ConfigError, match=r"(?s)31 images, 32 in a step.*--batch-size"):
        _ = Plan(31, 8, 4, 1).steps


def test_changed_images():
    """By seed, epoch and row: mirrored or not; shifted by up to an eighth, never further."""
    images = torch.rand(64, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(64)
    how = {"seed": 3, "epoch": 2}
    assert augmented(images, rows, **how, kind="none") is images
    flipped = augmented(images, rows, **how, kind="flip")
    mirrored = [torch.equal(flipped[i], images[i].flip(-1)) for i in range(64)]
    assert all(m or torch.equal(flipped[i], images[i]) for i, m in enumerate(mirrored))
    assert 16 < sum(mirrored) < 48
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    again = augmented(images[shuffled], rows[shuffled], **how, kind="flip")
    assert torch.equal(again, flipped[shuffled])
    other = augmented(images, rows, seed=3, epoch=3, kind="flip")
    assert not torch.equal(other, flipped)
    shifted = augmented(images, rows, **how, kind="flip_shift")
    seen = set()
    for i in range(64):
        found = [
            (top, left, flip)
            for top in range(-2, 3)
            for left in range(-3, 4)
            for flip in (False, True)
            if torch.equal(
                cut(shifted[i].flip(-1) if flip else shifted[i], -top, -left),
                cut(images[i], top, left),
            )
        ]
        assert found
        seen.add(found[0][:2])
    assert len(seen) > 15


def cut(image, top, left):
    """The part of an image that stays when it is shifted."""
    high, wide = image.shape[-2:]
    return image[:, max(top, 0) : high + min(top, 0), max(left, 0) : wide + min(left, 0)]


def test_options_that_do_not_go_together():
    """Mixing with schemes that remember images; self-training without a moving average."""
    with pytest.raises(ConfigError, match="remembers something of each image"):
        TrainConfig(scheme="role", mix="logic_mix")
    with pytest.raises(ConfigError, match=r"ema=0\.999"):
        TrainConfig(scheme="self_training")
    with pytest.raises(ConfigError, match="did you mean 'hill'"):
        TrainConfig(scheme="hil")
    with pytest.raises(ConfigError, match="reserve in"):
        TrainConfig(reserve=1.0)
