"""Mixed images, and labels that a machine says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catwise.decisions.outputs import read_outputs
from catwise.errors import ConfigError, FeatureError, IdError, ShapeError
from catwise.labels import LabelPolicy, PartialLabels
from catwise.training.machine import add_machine_labels
from catwise.training.mixing import logic_mix, mixup_pme


def batch(n=16, c=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 4, 4, generator=generator)
    known = torch.rand(n, c, generator=generator) < 0.6
    target = (torch.rand(n, c, generator=generator) < 0.4).float()
    return images, known, torch.where(known, target, 0.0)


def draw(seed=1):
    return torch.Generator().manual_seed(seed)


def partner_of(images, mixed, i, k=2):
    """The other image of a mixture of two, and the share of the first, by solving for them."""
    found = []
    for j in range(len(images)):
        step = (images[i] - images[j]).flatten()
        if j != i:
            share = ((mixed[i] - images[j]).flatten() @ step) / (step @ step)
            rest = mixed[i] - (share * images[i] + (1 - share) * images[j])
            found.append((float(rest.abs().max()), j, float(share)))
    return min(found)


def test_mixup_blends_images_and_known_labels():
    """One partner each; unknown stays unknown, a partner's unknown label counts as one half."""
    images, known, target = batch()
    mixed = mixup_pme(images, known, target, generator=draw())
    shares = []
    for i in range(16):
        rest, j, share = partner_of(images, mixed.images, i)
        shares.append(share)
        assert rest < 1e-5
        for c in range(5):
            other = float(target[j, c]) if known[j, c] else 0.5
            wanted = share * float(target[i, c]) + (1 - share) * other if known[i, c] else 0.0
            assert float(mixed.target[i, c]) == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(mixed.known, known)
    assert min(shares) >= 0.75 - 1e-6
    assert max(shares) <= 1 + 1e-6
    assert max(shares) - min(shares) > 0.1


def test_logic_mix_is_or():
    """Positive where one is, negative where all are known to be, else unknown."""
    images, known, target = batch()
    mixed = logic_mix(images, known, target, generator=draw())
    kinds = set()
    for i in range(16):
        rest, j, share = partner_of(images, mixed.images, i)
        assert rest < 1e-5
        assert share == pytest.approx(0.5, abs=1e-4)
        for c in range(5):
            pair = [float(target[r, c]) if known[r, c] else None for r in (i, j)]
            wanted = 1.0 if 1.0 in pair else (None if None in pair else 0.0)
            kinds.add(wanted)
            assert bool(mixed.known[i, c]) == (wanted is not None)
            assert float(mixed.target[i, c]) == (wanted or 0.0)
    assert kinds == {0.0, 1.0, None}


def test_three_images_and_soft_targets():
    """The mean of three; soft targets join as independent ones where all are known."""
    images, known, _ = batch(3)
    known[:], soft = True, torch.full((3, 5), 0.5)
    mixed = logic_mix(images, known, soft, generator=draw(), k=3)
    assert set(mixed.target.flatten().tolist()) <= {0.75, 0.875}
    assert mixed.known.all()


def test_draws_are_those_of_the_generator():
    """The same seed, the same mixture; the inputs stay; a batch of one is refused."""
    images, known, target = batch()
    before = images.clone()
    for mix in (mixup_pme, logic_mix):
        first, again, other = (
            mix(images, known, target, generator=draw(s)).images for s in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        with pytest.raises(ConfigError, match="one image"):
            mix(images[:1], known[:1], target[:1], generator=draw())
        with pytest.raises(ShapeError, match="15 images"):
            mix(images[:15], known, target, generator=draw())
    assert torch.equal(images, before)
    with pytest.raises(ConfigError, match="k >= 2"):
        logic_mix(images, known, target, generator=draw(), k=1)


# ----------------------------------------------------------------------- labels by a machine


def test_a_table_of_scores_fills_what_is_unknown(tmp_path):
    """By id and name, in any order; people's labels stay; what is between the ends is left out."""
    labels = PartialLabels(
        [[1, -1, -2], [-1, 0, -1]], ids=["a", "b"], categories=["cat", "dog", "eel"]
    )
    table = tmp_path / "scores.csv"
    table.write_text("id,eel,cat,dog\nb,0.2,0.95,0.1\na,0.6,0.1,0.4\n")
    made = add_machine_labels(
        labels,
        read_outputs(table),
        policy=LabelPolicy(uncertain="positive"),
        weight=0.25,
        sure=(0.2, 0.9),
    )
    np.testing.assert_allclose(made.target, [[1, 0, 1], [0.95, 0, 0.2]], rtol=1e-6)
    np.testing.assert_array_equal(made.weight, [[1, 0, 1], [0.25, 1, 0.25]])
    assert made.description.endswith("2 unknown labels said by a machine, with a weight of 0.25.")


def test_scores_must_be_probabilities_of_all_images(tmp_path):
    """Logits and missing images are refused, and so are options out of range."""
    labels = PartialLabels([[1, -1], [-1, 0]], ids=["a", "b"], categories=["cat", "dog"])
    table = tmp_path / "scores.csv"
    table.write_text("id,cat,dog\na,0.6,3.1\nb,0.1,0.4\n")
    with pytest.raises(FeatureError, match=r"from 0\.1 to 3\.1"):
        add_machine_labels(labels, read_outputs(table))
    table.write_text("id,cat,dog\na,0.6,0.1\n")
    with pytest.raises(IdError, match="b"):
        add_machine_labels(labels, read_outputs(table))
    table.write_text("id,cat,dog\na,0.6,0.1\nb,0.6,0.1\n")
    with pytest.raises(ConfigError, match="weight >= 0"):
        add_machine_labels(labels, read_outputs(table), weight=-1)
    with pytest.raises(ConfigError, match="sure"):
        add_machine_labels(labels, read_outputs(table), sure=(0.9, 0.1))
