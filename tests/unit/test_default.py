"""The default preset: label policies, metrics, groups, rare categories, honest scores."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import catwise
from catwise import PartialLabels
from catwise._configs import PaperConfig
from catwise.errors import (
    ConfigError,
    IdError,
)
from catwise.labels import LabelPolicy
from catwise.metrics import METRICS
from catwise.testing import assert_same_head, make_task
from catwise.tuning.presets import pooled_anchor
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.rows import known
from catwise.tuning.rows import tuning_rows as rows
from tuning_case import QUICK, SMALL, default_result, mean_score, task, tuned, with_codes


def test_validation_select_only_chooses():
    """Validation labels choose among directions of the training labels; they fit no direction."""
    result = tuned(validation="select")
    assert result.folds is None
    assert result.config["validation"] == "select"
    assert any("scale and offset" in note for note in result.notes)  # which they fit
    logits, codes = result.head.logits(task().valid.features).double(), task().valid.labels.codes
    both = ((codes == 1).any(0)) & ((codes == 0).any(0))
    known = torch.from_numpy(codes >= 0)
    expected = torch.where(known, torch.sigmoid(logits), 0.0).sum(0).numpy()
    replaced = both & np.array([record["status"] == "replaced" for record in result.records])
    assert replaced.any()
    np.testing.assert_allclose(expected[replaced], (codes == 1).sum(0)[replaced], rtol=0.02)
    assert all(r["candidate"].startswith(("base", "power=", "anchor")) for r in result.records)
    assert result.summary["choice"] == {"candidate": "one for each category"}
    gain = result.summary["selected_on"] - result.summary["after"]
    assert gain >= 0  # one scale, and the raw score is the higher one


def test_a_large_prior_lets_every_category_take_what_is_best_for_all():
    """A category's own gain counts little then, and much under a small prior."""
    candidates = []
    for prior in (1e-3, 1e9):
        found = tuned(validation="select", config=DefaultConfig(grid_prior=prior))
        candidates.append({r["candidate"] for r in found.records})
    assert len(candidates[0]) > 1
    assert len(candidates[1]) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"penalties": (0.3, 5.0)},
        {"penalties": (1.0, 0.0)},
        {"penalties": ()},
        {"source_weight": -1.0},
        {"penalty_growth": 2.0},
        {"anchor_penalties": (1.0, 2.0)},
        {"negative_weight": 0.0},
        {"negative_draw": 0.0},
        {"anchor_ridge": -1.0},
        {"n_folds": 1},
        {"grid_prior": 0.0},
        {"tolerance": 0.0},
        {"max_iterations": 0},
        {"loss": "hinge"},
        {"refinements": {"brier": (1.0, 1.0)}},
        {"refinements": {"auroc": (1.0, 0.0)}},
    ],
)
def test_configs_out_of_range_are_refused(options):
    """The rule that failed is named."""
    with pytest.raises(ConfigError):
        DefaultConfig(**options)


def test_a_label_policy_changes_the_fit_and_is_said():
    """Uncertain and blank labels fit as the policy says; scores keep to hard labels."""
    made = task()
    codes = made.train.labels.codes.copy()
    codes[(codes == 1) & (np.arange(300)[:, None] % 2 == 0)] = -2
    train = with_codes(made.train, codes)
    results = {}
    for uncertain in ("unknown", "positive", "negative", (0.6, 0.9)):
        policy = LabelPolicy(uncertain=uncertain)
        found = catwise.tune(made.head, train, made.valid.pair, policy=policy)
        assert f"fitting: {policy}" in found.notes
        assert found.config["policy"] == policy.to_dict()
        assert [r["before"] for r in found.records] == [
            r["before"] for r in default_result().records
        ]
        results[str(uncertain)] = found.head
    plain = catwise.tune(made.head, train, made.valid.pair).head
    # The same sums, once over gathered known rows and once over weighted ones.
    assert_same_head(results["unknown"], plain, rtol=1e-2, atol=1e-3)
    weights = [head.weight for head in results.values()]
    assert all(
        not torch.allclose(a, b, rtol=1e-2) for i, a in enumerate(weights) for b in weights[:i]
    )


@pytest.mark.parametrize("options", [{}, {"validation": "select"}])
def test_the_policy_that_nobody_named_is_said_where_it_matters(options):
    """Uncertain labels are left out, and the result says so; without any it is silent."""
    codes = task().train.labels.codes.copy()
    codes[:3, 0] = -2
    uncertain = with_codes(task().train, codes)
    found = catwise.tune(task().head, uncertain, task().valid.pair, **options)
    told = [note for note in found.notes if note.startswith("fitting: Uncertain labels")]
    assert len(told) == 1
    assert "left out" in told[0]
    assert not [note for note in tuned(**options).notes if note.startswith("fitting")]


def test_the_paper_preset_takes_hard_policies_only():
    """Blanks as negatives are fine, soft targets are not."""
    made = task()
    codes = made.train.labels.codes.copy()
    codes[::7] = -2
    train = with_codes(made.train, codes)
    options = {"preset": "paper", "config": PaperConfig(lr=2e-3, max_steps=5)}
    catwise.tune(made.head, train, made.valid.pair, policy=LabelPolicy(blank="negative"), **options)
    with pytest.raises(ConfigError, match="hard labels only"):
        catwise.tune(
            made.head, train, made.valid.pair, policy=LabelPolicy(uncertain=(0.6, 0.9)), **options
        )


def test_a_metric_where_lower_is_better():
    """Log-loss falls, is reported as it is, and falls on the test data too."""
    made = task()
    result = tuned(metric="log_loss")
    assert 0 < result.summary["after"] < result.summary["before"]
    assert result.summary["gain"] < 0
    assert all(r["after"] < r["before"] for r in result.records if r["status"] == "replaced")
    assert mean_score(result.head, made.test, "log_loss") < mean_score(
        made.head, made.test, "log_loss"
    )


@pytest.mark.parametrize("metric", ["ece", "brier", "precision"])
def test_other_metrics_choose_too(metric):
    """Every metric of the registry can choose; a gain without an interval says None."""
    result = tuned(metric=metric, config=SMALL)
    for part in (result.records, result.summary):
        json.dumps(part, allow_nan=False)
    assert result.summary["metric"] == metric


def test_the_corrected_score_is_near_the_test_score():
    """What is claimed after tuning is what fresh data show, within its interval and some."""
    made = make_task(400, 400, 2000, 16, 6, seed=3)
    result = tuned(made, metric="auroc")
    fresh = mean_score(result.head, made.test, "auroc")
    assert result.summary["after"] == pytest.approx(fresh, abs=0.02)
    assert abs(result.summary["selected_on"] - result.summary["after"]) < 0.02


def test_rare_categories_follow_the_pooled_decision():
    """Under five fresh positives a category is replaced because the others gained."""
    made = task()
    codes = made.valid.labels.codes.copy()
    positives = np.flatnonzero(codes[:, 2] == 1)
    codes[positives[3:], 2] = -1
    result = catwise.tune(made.head, made.train.pair, with_codes(made.valid, codes))
    record = result.records[2]
    assert record["n_positive_valid"] == 3
    assert (record["status"], record["reason"]) == ("replaced", "pooled_gain")
    assert record["gap_auroc"] is None


def test_the_gap_is_measured_where_there_are_two_sources():
    """A memorised training set shows; each record carries its own gap."""
    result = default_result()
    assert result.gap["auroc"]["gap"] > 0.05
    assert result.gap["advice"]
    gaps = [r["gap_auroc"] for r in result.records]
    assert all(isinstance(gap, float) for gap in gaps)


def test_groups_are_respected():
    """No patient is in two folds, and a patient in both sources is refused."""
    made = task(groups=3)
    result = tuned(made, config=SMALL)
    groups = np.asarray(made.valid.labels.groups)
    for group in np.unique(groups):
        assert len(set(result.folds.fold[groups == group].tolist())) == 1
    labels = made.valid.labels
    shared = np.where(np.arange(150) == 7, "train-4", groups)
    codes = PartialLabels(labels.codes, labels.ids, labels.categories, shared)
    with pytest.raises(IdError, match=r"groups are in both.*\n.*train-4"):
        catwise.tune(made.head, made.train.pair, (made.valid.features, codes))


def test_few_groups_make_fewer_folds():
    """Four patients are cross-fitted in four folds."""
    made = task(groups=38)
    result = tuned(made, config=SMALL)
    assert len(result.folds.heads) == 3
    more = tuned(made)
    assert len(more.folds.heads) == 4
    assert "4 folds" in more.records[0]["scored_on"]


@pytest.mark.parametrize("options", [{}, {"validation": "select"}, {"preset": "paper"}])
def test_a_metric_of_ones_own_chooses(options):
    """A `Metric` that is in no registry is used as it is; its gain has no interval."""
    known = METRICS["auroc"]
    own = replace(known, name="my_auroc", label="mine")
    if options.get("preset") == "paper":
        options = {**options, "config": QUICK}
    elif not options:
        options = {"config": replace(SMALL, refinements={})}  # a metric of one's own has none
    one, other = tuned(metric=own, **options), tuned(metric=known, **options)
    assert_same_head(one.head, other.head)
    assert one.summary["metric"] == "my_auroc"
    assert one.summary["before"] == pytest.approx(other.summary["before"])
    assert {r["gain_low"] for r in one.records} == {None}


def test_a_metric_that_is_made_worse_is_not_chosen():
    """Turned upside down, a metric keeps the head where the fits only raise it."""
    known = METRICS["auroc"]
    upside = replace(known, name="upside_down", higher_is_better=False)
    result = tuned(metric=upside)
    for record in result.records:
        assert record["after"] <= record["before"]


def test_more_folds_than_positives_are_no_error():
    """Folds without a positive are left out of the averages."""
    result = tuned(make_task(120, 60, 10, 6, 3, seed=1), config=DefaultConfig(n_folds=30))
    assert len(result.folds.heads) == 30
    assert all(np.isfinite(r["after"]) for r in result.records)


def test_many_blocks_of_categories_are_one_answer(monkeypatch):
    """Categories are fitted in blocks of bounded size; the size changes nothing."""
    whole = {v: tuned(validation=v) for v in ("fit_and_select", "select")}
    monkeypatch.setattr(rows, "BLOCK_ENTRIES", 2 * 450)  # two categories at a time
    for validation, first in whole.items():
        second = tuned(validation=validation)
        assert_same_head(second.head, first.head, rtol=1e-3, atol=1e-3)
        for one, other in zip(first.records, second.records, strict=True):
            assert one["after"] == pytest.approx(other["after"], abs=1e-4)


@pytest.mark.parametrize("metric", ["average_precision", "auroc", "log_loss"])
@pytest.mark.parametrize("policy", [None, LabelPolicy(uncertain=(0.6, 0.9))])
def test_folds_in_one_batch_are_folds_one_by_one(metric, policy, monkeypatch):
    """All folds at once, rows read once, give what each fold's rows alone give."""
    made = task()
    codes = made.valid.labels.codes.copy()
    codes[(codes == 1) & (np.arange(len(codes))[:, None] % 3 == 0)] = -2
    pairs = made.train.pair, with_codes(made.valid, codes)
    options = {"metric": metric, "policy": policy}
    together = catwise.tune(made.head, *pairs, **options)
    monkeypatch.setattr(pooled_anchor, "SMALL_ENTRIES", 0)
    apart = catwise.tune(made.head, *pairs, **options)
    assert_same_head(together.head, apart.head, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(together.folds.logits, apart.folds.logits, atol=5e-3)
    for one, other in zip(together.records, apart.records, strict=True):
        assert one["candidate"] == other["candidate"]
        assert one["after"] == pytest.approx(other["after"], abs=1e-3)


def test_labels_stored_as_columns_are_the_same_task():
    """Compressed labels and features in half precision lead where dense ones lead."""
    made = task()
    pairs = [
        (s.features, PartialLabels(s.labels.codes, s.labels.ids, s.labels.categories, storage=kind))
        for s, kind in ((made.train, "columns"), (made.valid, "columns"))
    ]
    result = catwise.tune(made.head, *pairs)
    assert_same_head(result.head, default_result().head, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["dense", "sparse", "gathered"])
def test_the_way_in_which_rows_are_laid_out_changes_nothing(name, monkeypatch):
    """All entries, the known ones and gathered rows lead to one head."""
    plain = default_result()
    choose = known.choose_layout
    monkeypatch.setattr(known, "choose_layout", lambda *a, **k: choose(*a, **k)._replace(name=name))
    assert_same_head(tuned().head, plain.head, rtol=1e-3, atol=1e-4)


def test_constant_features_change_nothing_but_the_level():
    """Features that say nothing are no crash: no weight moves."""
    made = task()
    pairs = [
        (np.full((s.labels.n_rows, 16), level, dtype=np.float32), PartialLabels(s.labels.codes))
        for s, level in ((made.train, 1.0), (made.valid, 2.0))
    ]
    head = made.head.replace(categories=None)
    result = catwise.tune(head, *pairs, force=True)
    assert torch.equal(result.head.weight, head.weight)


def test_the_ranking_loss_refines_and_the_head_is_calibrated():
    """The fit that was chosen goes further along the metric; 0.5 means what it says."""
    made, metric = task(), "auroc"
    plain = tuned(made, metric=metric, config=DefaultConfig(refinements={}))
    staged = tuned(made, metric=metric, config=DefaultConfig(refinements={metric: (1.0, 0.5)}))
    assert staged.summary["choice"]["refinement"] == {"temperature": 1.0, "penalty": 0.5}
    assert "refinement" not in plain.summary["choice"]
    assert staged.summary["choice"]["penalty"] == plain.summary["choice"]["penalty"]
    assert not torch.equal(staged.head.weight, plain.head.weight)
    assert any("refitted on" in note for note in staged.notes)
    assert mean_score(staged.head, made.test) > mean_score(made.head, made.test) + 0.05
    assert mean_score(staged.head, made.test, "log_loss") < mean_score(
        made.head, made.test, "log_loss"
    )
    # Out-of-fold logits are those of the fold heads, scale and offset included.
    for f, head in enumerate(staged.folds.heads):
        at = np.flatnonzero(staged.folds.fold == f)
        mine = head.logits(made.valid.features.values[at]).numpy()
        np.testing.assert_allclose(mine, staged.folds.logits[at], rtol=1e-3, atol=1e-3)


def test_another_loss_fits_another_head():
    """Any loss with curvatures can fit; the record says which."""
    made = task()
    result = tuned(made, config=DefaultConfig(loss="proper_asymmetric"))
    assert result.config["options"]["loss"] == "proper_asymmetric"
    assert not torch.equal(result.head.weight, default_result().head.weight)
    assert mean_score(result.head, made.test) > mean_score(made.head, made.test)


def test_the_history_tells_the_penalties_and_what_chose():
    """Every penalty has its log-loss, the chosen one the lowest; what was not taken has no gain."""
    result = default_result()
    base, *fits = result.history
    assert base["candidate"] == "base"
    losses = [row["log_loss"] for row in fits]
    chosen = fits[int(np.argmin(losses))]
    assert result.summary["choice"]["candidate"] == chosen["candidate"]
    assert chosen["pooled_gain"] > 0
    assert {row["pooled_gain"] for row in fits if row is not chosen} <= {None} | {
        row["pooled_gain"] for row in fits
    }


def test_unknown_training_labels_as_negatives_can_be_left_out():
    """Their head is one of the anchor's; which labels are drawn is keyed by the seed."""
    without = tuned(config=DefaultConfig(negative_penalties=()))
    assert not torch.equal(without.head.weight, default_result().head.weight)
    few = DefaultConfig(negative_draw=0.5)
    one, same, other = (tuned(config=few, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_a_head_of_zeros_is_tuned_from_nothing():
    """Where the original head says nothing, the training labels make the anchor."""
    made = task()
    zero = made.head.replace(weight=made.head.weight * 0, bias=made.head.bias * 0)
    result = catwise.tune(zero, made.train.pair, made.valid.pair, force=True)
    assert mean_score(result.head, made.test) > mean_score(made.head, made.test)
