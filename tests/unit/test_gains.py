"""What a change is worth: levels without excess, folds on one scale, and no clear harm."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import catwise
from catwise.metrics import METRICS, Metric
from catwise.metrics.intervals import Units
from catwise.metrics.levels import leave_one_out_precision
from catwise.testing import make_task
from catwise.tuning.choice import gains
from catwise.tuning.choice.gains import Scorer, levels, on_one_scale, without_harm
from catwise.tuning.choice.nested import Decision, FoldScores

AP, AUROC = METRICS["average_precision"], METRICS["auroc"]


def drawn(n=200, categories=3, seed=0, share=0.2):
    """Codes and logits that say something about them."""
    rng = np.random.default_rng(seed)
    codes = (rng.random((categories, n)) < share).astype(np.int8)
    return codes, (rng.normal(size=(categories, n)) + 1.5 * codes).astype(np.float32)


def scorer(codes, metric=AP, groups=None):
    rows = (
        np.arange(codes.shape[1]) if groups is None else np.unique(groups, return_inverse=True)[1]
    )
    return Scorer(metric, codes, Units(rows, groups is not None))


# --------------------------------------------------------------------------------- levels


def naive(scores, positive):
    """Each positive's precision among all other rows, positives counted k / (k - 1) times."""
    k, found, empty = int(positive.sum()), [], None
    for i in sorted(np.flatnonzero(positive), key=lambda i: -scores[i]):
        rows = [j for j in range(scores.size) if j != i and scores[j] >= scores[i]]
        true = sum(bool(positive[j]) for j in rows) * k / (k - 1)
        false = sum(not positive[j] for j in rows)
        if not rows:
            empty = len(found)
        found.append(true / (true + false) if rows else np.nan)
    if empty is not None:
        found[empty] = found[empty + 1]
    return np.mean(found)


@pytest.mark.parametrize("ties", [1, 4, 100])
def test_leave_one_out_precision_equals_the_plain_loop(ties):
    """With ties as one threshold, and with a positive that nothing scores as high as."""
    rng = np.random.default_rng(ties)
    for _ in range(20):
        positive = rng.permutation(np.arange(12) < rng.integers(2, 11))
        scores = rng.integers(0, ties, 12).astype(float) + positive * rng.integers(0, 2)
        assert leave_one_out_precision(scores, positive) == pytest.approx(naive(scores, positive))


def test_leave_one_out_precision_at_its_ends():
    """All sorted is 1, all tied is the prevalence; one positive says nothing."""
    positive = np.arange(10) >= 7
    assert leave_one_out_precision(np.arange(10.0), positive) == 1.0
    assert leave_one_out_precision(np.zeros(10), positive) == pytest.approx(0.3)
    assert np.isnan(leave_one_out_precision(np.arange(10.0), np.arange(10) == 3))
    assert np.isnan(leave_one_out_precision(np.arange(10.0), np.ones(10, bool)))


def test_few_positives_do_not_lift_the_level():
    """On 5 positives average precision is far above that of all rows; the level is not."""
    codes, logits = drawn(6000, 1, share=0.1)
    positive, scores = codes[0] == 1, logits[0]
    truth = leave_one_out_precision(scores, positive)
    assert truth == pytest.approx(float(scorer(codes).values(logits)[0]), abs=0.005)
    rng = np.random.default_rng(0)
    plain, level = [], []
    for _ in range(400):
        rows = rng.choice(6000, 50, replace=False)
        if positive[rows].sum() >= 3:
            part = scorer(codes[:, rows])
            plain.append(part.values(logits[:, rows])[0])
            level.append(part.levels(logits[:, rows])[0])
    assert np.mean(plain) > truth + 0.05
    assert abs(np.mean(level) - truth) < 0.03


def test_levels_stay_in_range_with_their_gains():
    """Average precision is moved into [0, 1] with its gain; a loss may be any number."""
    before, gain = np.array([0.1, 0.95, 0.4, np.nan]), np.array([-0.2, 0.1, 0.1, np.nan])
    low, high = levels(before, gain, AP)
    np.testing.assert_allclose(low, [0.2, 0.9, 0.4, np.nan])
    np.testing.assert_allclose(high - low, gain)
    _, loss = levels(before, gain + 5.0, METRICS["log_loss"])
    np.testing.assert_allclose(loss, before + gain + 5.0)


# ---------------------------------------------------------------------------------- gains


def test_a_fold_may_have_another_scale():
    """Only ranks count for average precision, so neither scale nor offset of a head matters."""
    _, logits = drawn()
    changed = on_one_scale(torch.from_numpy(logits) * 40.0 - 7.0, AP)
    torch.testing.assert_close(changed, on_one_scale(torch.from_numpy(logits), AP))
    same = torch.from_numpy(logits)
    assert on_one_scale(same, METRICS["log_loss"]) is same
    assert torch.isfinite(on_one_scale(torch.ones(2, 4), AP)).all()
    for size in (1e-30, 1e30):  # whose squares float32 cannot hold
        scaled = on_one_scale(torch.from_numpy(logits) * size, AP)
        torch.testing.assert_close(scaled, changed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", ["auroc", "average_precision", "log_loss"])
def test_gains_are_those_of_all_rows_and_have_intervals(metric):
    """Level and gain come from all known rows; the interval surrounds the gain."""
    codes, logits = drawn()
    noisy = (logits + np.random.default_rng(1).normal(size=logits.shape)).astype(np.float32)
    found = scorer(codes, METRICS[metric]).gains(noisy, logits)
    kernel = METRICS[metric].columns
    after, before = (kernel(torch.from_numpy(z), torch.from_numpy(codes)) for z in (logits, noisy))
    np.testing.assert_allclose(found.gain, after - before, atol=1e-6)
    if metric != "average_precision":
        np.testing.assert_allclose(found.before, before, atol=1e-6)
    assert ((found.low < found.gain) & (found.gain < found.high)).all()
    assert found.why == [None] * 3
    assert found.mean[0] == pytest.approx(found.gain.mean())
    assert found.mean[1] < found.mean[0] < found.mean[2]


def test_rows_of_a_group_count_once():
    """Copies as groups leave the interval much as it was; as rows they halve it."""
    codes, logits = drawn(80)
    other = (logits + np.random.default_rng(1).normal(size=logits.shape)).astype(np.float32)
    copied = [np.repeat(part, 4, axis=1) for part in (codes, logits, other)]
    one = scorer(codes).gains(logits, other)
    grouped = scorer(copied[0], groups=np.repeat(np.arange(80), 4)).gains(*copied[1:])
    rows = scorer(copied[0]).gains(*copied[1:])
    width, of_groups, of_rows = (found.high - found.low for found in (one, grouped, rows))
    np.testing.assert_allclose(of_groups, width, rtol=0.05)
    assert (of_rows < 0.6 * width).all()
    assert rows.mean[2] - rows.mean[1] < 0.6 * (grouped.mean[2] - grouped.mean[1])


def test_every_missing_interval_has_its_reason():
    """Too few of a class, nothing changed (which is said first), no pair changed its order."""
    codes = np.zeros((6, 40), dtype=np.int8)
    codes[0, :2] = codes[1, :-2] = codes[2, :8] = codes[3, :8] = codes[4, :1] = 1
    logits = np.tile(np.linspace(1, 0, 40, dtype=np.float32), (6, 1))
    after = logits.copy()
    after[:2] = np.roll(logits[:2], 1, axis=1)
    after[3] *= 2
    found = scorer(codes).gains(logits, after)
    reasons = ["few_positives", "few_negatives", "unchanged", "order_unchanged"]
    reasons += ["unchanged", None]
    assert found.why == reasons
    assert np.isnan(found.low).all()
    assert np.isnan(found.gain[4:]).all()
    assert (found.gain[2:4] == 0).all()


def test_a_metric_of_ones_own_has_gains_without_intervals():
    """It has no influence function, so nothing is known about errors and nothing is vetoed."""
    codes, logits = drawn()
    own = Metric("mean logit", "Mean logit", lambda z, y: torch.where(y == 1, z, 0.0).mean(-1))
    found = scorer(codes, own).gains(logits, logits - 1)
    assert (found.gain < 0).all()
    assert found.why == ["no_interval_for_metric"] * 3
    assert found.mean[0] == pytest.approx(found.gain.mean())
    assert np.isnan(found.mean[1:]).all()
    assert not scorer(codes, own).harmed(np.ones(3, bool), logits, logits - 1).any()


# ------------------------------------------------------------------------------- no harm


def chosen_for_all(categories=3, folds=4):
    """One candidate for all, though it lost everywhere, so that everything is looked at."""
    chosen = np.ones(categories, dtype=np.int64)
    decision = Decision(chosen, 1, np.array([0.0, 0.1]), np.tile(chosen, (folds, 1)), (1,) * folds)
    values = np.stack([np.ones((folds, categories)), np.zeros((folds, categories))])
    return decision, FoldScores(values, np.ones((folds, categories)))


def same_for_all(logits, metric, chosen, setting):
    """Every fold's head says the same of the rows."""
    assert (chosen == setting).all()
    return on_one_scale(logits, metric)


def harmful(metric=AP, seed=0):
    """Category 0 gets worse, 1 better, 2 stays as good; what each fold's head says of the rows."""
    codes, good = drawn(400, seed=seed)
    rng = np.random.default_rng(seed + 1)
    bad = (good + 3 * rng.normal(size=good.shape)).astype(np.float32)
    base, taken = good.copy(), good.copy()
    base[1], taken[0] = bad[1], bad[0]
    base, taken = (torch.from_numpy(z) for z in (base, taken))
    held_out = partial(same_for_all, taken, metric)
    fold = (np.arange(400) % 4).astype(np.int8)
    return codes, base, held_out, fold


@pytest.mark.parametrize("metric", ["average_precision", "auroc", "log_loss"])
def test_what_is_clearly_worse_is_kept(metric):
    """In the choice and in every fold's, so that the gain that is told has no harm in it either."""
    codes, base, held_out, fold = harmful(METRICS[metric])
    found = without_harm(
        *chosen_for_all(), base, held_out, fold=fold, scorer=scorer(codes, METRICS[metric])
    )
    assert found.decision.chosen.tolist() == [0, 1, 1]
    assert found.clearly_worse.tolist() == [True, False, False]
    assert found.decision.chosen_without.tolist() == [[0, 1, 1]] * 4
    sign = 1 if METRICS[metric].higher_is_better else -1
    assert found.gains.gain[0] == found.selected_on[0] == 0.0
    assert sign * found.gains.gain[1] > 0.02
    assert found.gains.why[0] == "unchanged"


def test_a_fold_does_not_veto_its_own_choice():
    """Harm that only fold 2 shows is not known to the choice made without it."""
    codes, logits = drawn(400)
    fold = (np.arange(400) % 4).astype(np.int8)
    base, taken = torch.from_numpy(logits), torch.from_numpy(logits.copy())
    taken[0, fold == 2] *= -1
    found = without_harm(
        *chosen_for_all(),
        base,
        partial(same_for_all, taken, AUROC),
        fold=fold,
        scorer=scorer(codes, AUROC),
    )
    assert found.decision.chosen_without[:, 0].tolist() == [0, 0, 1, 0]
    assert found.gains.gain[0] < 0
    assert found.decision.chosen[0] == 0


def test_few_positives_are_no_veto():
    """Below three there is no interval, so there is no clear harm."""
    codes, base, held_out, fold = harmful()
    codes[0] = np.where(np.cumsum(codes[0]) > 2, 0, codes[0])
    found = without_harm(*chosen_for_all(), base, held_out, fold=fold, scorer=scorer(codes))
    assert found.decision.chosen[0] == 1
    assert found.gains.why[0] == "few_positives"


@pytest.mark.parametrize("validation", ["fit_and_select", "select"])
def test_the_record_of_a_veto_says_so(monkeypatch, validation):
    """Kept to the bit, with its reason and a sentence, and nothing shown as a gain or a loss."""

    def refuse(low, high, *, higher_is_better=True):
        return np.arange(low.size) == 1

    monkeypatch.setattr(gains, "clearly_worse", refuse)
    task = make_task(300, 150, 50, 16, 3, seed=1)
    result = catwise.tune(task.head, task.train.pair, task.valid.pair, validation=validation)
    record = result.records[1]
    assert (record["status"], record["reason"]) == ("kept", "clearly_worse")
    assert "clearly worse" in record["explanation"]
    assert record["candidate"] == "base"
    assert (record["gain"], record["interval_reason"]) == (0.0, "unchanged")
    assert record["before"] == record["after"] == record["selected_on"]
    assert torch.equal(result.head.weight[1], task.head.weight[1])
    assert "replaced" in {r["status"] for r in result.records}


# ------------------------------------------------------------------------- no mean gain


@pytest.mark.parametrize("metric", ["average_precision", "auroc", "log_loss"])
def test_without_a_mean_gain_nothing_is_replaced(metric):
    """One small loss more than gains, none of them clear: no category has others to lean on."""
    codes, logits = drawn(400, 4)
    rng = np.random.default_rng(1)
    noise = 0.3 * rng.normal(size=logits.shape).astype(np.float32)
    fold = (np.arange(400) % 4).astype(np.int8)
    for taken, is_better in ((logits + noise, False), (logits + 0.3 * codes, True)):
        found = without_harm(
            *chosen_for_all(4),
            torch.from_numpy(logits),
            partial(same_for_all, torch.from_numpy(taken), METRICS[metric]),
            fold=fold,
            scorer=scorer(codes, METRICS[metric]),
        )
        assert found.decision.chosen.any() == is_better
        assert found.decision.setting == is_better
        if is_better:
            assert not found.without_mean_gain.any()
            assert np.isfinite(found.gains.mean).all()
            continue
        assert (found.without_mean_gain ^ found.clearly_worse).all()
        assert found.without_mean_gain.any()
        assert found.gains.mean[0] == 0.0
        assert np.isnan(found.gains.mean[1:]).all()
        assert (found.selected_on == 0).all()


def test_nothing_is_replaced_for_nothing():
    """Rows were once replaced on what all categories gain although that, corrected, was below 0."""
    task = make_task(400, 200, 10, 32, 4, known=0.6, known_valid=0.15, seed=7)
    found = catwise.tune(task.head, task.train.pair, task.valid.pair, seed=7)
    assert {r["reason"] for r in found.records} == {"no_mean_gain"}
    assert {r["status"] for r in found.records} == {"kept"}
    assert torch.equal(found.head.weight, task.head.weight)
    told = found.summary
    assert (told["n_replaced"], told["gain"], told["gain_low"]) == (0, 0.0, None)
    assert told["before"] == told["after"] == told["selected_on"]
    assert told["choice"]["candidate"] == "base"


def test_on_training_labels_alone_gains_are_told_too_low_and_do_not_decide():
    """The original head was trained on what judges: a loss is told where fresh rows gain."""
    task = make_task(300, 150, 2000, 16, 5, seed=7)
    with pytest.warns(catwise.InSampleWarning):
        result = catwise.tune(task.head, task.train.pair, test=task.test.pair)
    assert result.summary["gain"] < 0 < result.test.mean_difference
    assert result.summary["n_replaced"] == 5
    reasons = {r["reason"] for r in result.records}
    assert "gain_in_folds" in reasons <= {"gain", "gain_in_folds"}
