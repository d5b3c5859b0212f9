"""Scale of the features: a power of two changes no bit, and what float32 cannot hold is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import catwise
from catwise._configs import PaperConfig
from catwise.errors import FeatureError, HeadError
from catwise.features import CategoryFeatures, Features, check_finite, inputs
from catwise.testing import make_task
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.rows import coordinates as geometry

TASK = make_task(160, 120, 1, 12, 3, seed=3)
QUICK = DefaultConfig(penalties=(2.5, 0.6), n_folds=2, grid_penalties=(5.0,), grid_steps=(1.0, 4.0))


def tuned(exponent=0, *, bias=True, by_category=False, edit=None, **options):
    """The task with features times a power of two, and weights divided by it."""
    scale = np.float32(2.0**exponent)
    weight = TASK.head.weight.numpy() / scale
    head = catwise.Head(weight, TASK.head.bias if bias else None, categories=TASK.head.categories)
    pairs = []
    for split in (TASK.train, TASK.valid):
        values = np.array(split.features.values) * scale
        if edit is not None and split is edit[0]:
            values[edit[1]] = edit[2]
        if by_category:  # vectors of their own, each on a scale of its own
            own = np.stack([values, values[:, ::-1]], 1) * np.float32([[1], [2.0**20]])
            pairs.append((CategoryFeatures(own, split.features.ids), split.labels))
        else:
            pairs.append((Features(values, split.features.ids), split.labels))
    return catwise.tune(head, *pairs, force=True, **{"config": QUICK, **options})


@pytest.mark.parametrize(
    ("bias", "options"),
    [
        (True, {}),
        (False, {}),
        (False, {"validation": "select"}),
        (True, {"by_category": True}),
    ],
)
def test_a_power_of_two_changes_no_bit(bias, options):
    """Weights are those of the unscaled task, divided by it; everything told is the same."""
    expected = tuned(bias=bias, **options)
    assert expected.summary["n_replaced"]
    for exponent in (-100, 60):
        found = tuned(exponent, bias=bias, **options)
        assert torch.equal(found.head.weight * 2.0**exponent, expected.head.weight)
        assert found.head.bias is None or torch.equal(found.head.bias, expected.head.bias)
        assert found.records == expected.records


def test_a_power_of_two_changes_no_bit_of_leading_directions(monkeypatch):
    """The same where only the leading directions are kept."""
    monkeypatch.setattr(geometry, "MAX_DIRECTIONS", 6)
    expected, found = tuned(), tuned(-83)
    assert torch.equal(found.head.weight * 2.0**-83, expected.head.weight)
    assert found.records == expected.records


def test_blocks_of_other_scales_are_one_sum(monkeypatch):
    """Blocks that are summed each on its own scale give the moments of all rows."""
    rows = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    rows[20:40] *= 1e-12
    rows[40:] *= 1e3
    whole = geometry.fit_coordinates(rows)
    monkeypatch.setattr(
        geometry,
        "iterate_blocks",
        lambda values, **_: ((s, torch.from_numpy(values[s : s + 20])) for s in (0, 20, 40)),
    )
    blocks = geometry.fit_coordinates(rows)
    torch.testing.assert_close(blocks.variance, whole.variance, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(blocks.mean, whole.mean, rtol=1e-5, atol=1e-8)
    assert blocks.heaviest[0] == whole.heaviest[0]


@pytest.mark.parametrize("split", [TASK.train, TASK.valid])
@pytest.mark.parametrize("value", [3e38, 1e19, 1e8])
def test_a_row_beside_which_the_others_vanish_is_refused(split, value):
    """It is named; neither a decomposition fails nor are all categories kept without a word."""
    with pytest.raises(FeatureError, match=r"row 3 .*has a value of"):
        tuned(edit=(split, (3, 2), value))


def test_a_row_with_most_of_the_variance_is_told():
    """It makes the pull strong for all others, so the run says so."""
    assert any("Row 3 " in note for note in tuned(edit=(TASK.valid, (3, 2), 300.0)).notes)
    assert not any(note.startswith("Row ") for note in tuned().notes)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int32, "tensor"])
def test_rows_are_measured_whatever_holds_them(monkeypatch, kind):
    """The largest magnitude counts, negative too; rows of zeros do not."""
    values = np.zeros((9, 3))
    values[:5, 1], values[4, 2] = 1, -6e4
    values = torch.from_numpy(values) if kind == "tensor" else values.astype(kind)
    check_finite(values)
    check_finite(np.zeros((3, 2)), for_fitting=True)
    monkeypatch.setattr(inputs, "_OUTLYING", 1e3)
    with pytest.raises(FeatureError, match=r"row 4 has a value of 6e\+04; .* middle row is 1\n"):
        check_finite(values, for_fitting=True)


def test_features_that_float32_cannot_hold_are_refused():
    """Numbers that lose digits would give a worse head without a word."""
    with pytest.raises(FeatureError, match="too small"):
        tuned(-110)


def test_logits_too_large_for_float32_are_refused():
    """Finite features times finite weights may overflow."""
    head = catwise.Head(TASK.head.weight * 1e38, TASK.head.bias, categories=TASK.head.categories)
    with pytest.raises(FeatureError, match="logits that float32 cannot hold"):
        catwise.tune(head, *(split.pair for split in (TASK.train, TASK.valid)), force=True)


def test_a_head_that_its_dtype_cannot_hold_is_refused():
    """Half precision ends at 65,504: the error says so instead of writing infinity."""
    scale = np.float32(2.0**-17)
    head = catwise.Head((TASK.head.weight / float(scale)).clamp(-6e4, 6e4).half())
    pairs = [(np.array(s.features.values) * scale, s.labels) for s in (TASK.train, TASK.valid)]
    with pytest.raises(HeadError, match="does not fit into the head's dtype, float16"):
        catwise.tune(head, *pairs, force=True)


@pytest.mark.parametrize("method", ["bp_bce", "ga"])
def test_published_steps_that_do_not_suit_the_features_are_told(method):
    """They are absolute, as published; that nothing was replaced then says little."""
    config = PaperConfig(max_steps=5, patience=5)
    for exponent, suits in ((-60, False), (0, True), (60, False)):
        found = tuned(exponent, preset="paper", methods=[method], config=config)
        told = [note for note in found.notes if f"steps of {method} are absolute" in note]
        assert bool(told) != suits
        assert np.isfinite(found.head.weight.numpy()).all()
