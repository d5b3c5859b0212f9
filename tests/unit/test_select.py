"""Selection: rules, correction, records, the mixed head, and what is refused."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest
import torch

from catwise.errors import (
    ConfigError,
    FeatureError,
    HeadError,
    IdError,
    InSampleWarning,
    LabelError,
    MismatchError,
    ShapeError,
)
from catwise.features import Features
from catwise.heads import Head
from catwise.joining import source_digests
from catwise.labels import PartialLabels
from catwise.labels.partition import assign_parts
from catwise.metrics import METRICS, paired_bootstrap
from catwise.reporting.tables import RECORD_COLUMNS
from catwise.tuning.choice.candidates import (
    FOLDS,
    affordable_splits,
    candidate_gains,
    nested_gains,
    score_candidates,
)
from catwise.tuning.choice.nested import nested_choice
from catwise.tuning.choice.rules import choose_each
from catwise.tuning.choice.unseen import UnseenRows
from catwise.tuning.selecting import select

NAMES = ("ant", "bee", "cat", "dog")
KEYS = [*RECORD_COLUMNS, "candidates"]


def draw(rng, rows, truth, *, share=0.25, strength=1.5):
    """Features whose classes lie apart along each category's true direction."""
    labels = rng.random((rows, len(truth))) < share
    return rng.normal(size=(rows, truth.shape[1])) + strength * labels @ truth, labels


def case(seed=0, *, rows=400, names=NAMES, share=0.25, features=12, off=0.6):
    """A base head that is a little off, and validation rows."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(len(names), features))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    z, y = draw(rng, rows, truth, share=share)
    noise = off * rng.normal(size=truth.shape) / np.sqrt(features)
    base = Head(truth + noise, np.zeros(len(names)), categories=names)
    return rng, truth, base, z, PartialLabels(y, categories=names)


def perturbed(rng, base, n, size):
    """Heads that differ from the base by noise."""
    spread = size / np.sqrt(base.n_features)
    return {
        f"noise {k}": base.replace(
            weight=base.weight + torch.from_numpy(spread * rng.normal(size=base.weight.shape))
        )
        for k in range(n)
    }


def test_greedy_takes_the_best_on_validation():
    """As published: per category the highest score, on the data that chooses."""
    rng, truth, base, z, labels = case()
    heads = {"base": base, "truth": base.replace(weight=truth), **perturbed(rng, base, 3, 0.8)}
    result = select(heads, (z, labels), rule="greedy")
    scores = torch.stack(
        [METRICS["average_precision"].per_category(h.logits(z), labels) for h in heads.values()]
    ).numpy()
    for c, record in enumerate(result.records):
        best = int(scores[:, c].argmax())
        assert record["candidate"] == list(heads)[best]
        assert record["selected_on"] == pytest.approx(scores[best, c])
        assert record["before"] == pytest.approx(scores[0, c])
        assert list(record["candidates"].values()) == pytest.approx(scores[:, c].tolist())
        assert torch.equal(result.head.weight[c], list(heads.values())[best].weight[c])


def test_honest_is_the_shrunk_rule():
    """The best m + n / (n + 30) (gain − m), m the mean gain weighted n / (n + 100)."""
    rng, _, base, z, labels = case()
    heads = {"base": base, **perturbed(rng, base, 4, 0.3)}
    result = select(heads, (z, labels), rule="honest")
    scores = torch.stack(
        [METRICS["average_precision"].per_category(h.logits(z), labels) for h in heads.values()]
    ).numpy()
    n = labels.counts().positive.astype(float)
    gain = scores - scores[0]
    mean = (gain * n / (n + 100)).sum(1) / (n / (n + 100)).sum()
    pulled = mean[:, None] + n / (n + 30) * (gain - mean[:, None])
    expected = [list(heads)[k] for k in pulled.argmax(0)]
    assert [record["candidate"] for record in result.records] == expected


def test_ties_go_to_the_base_then_to_the_order():
    """Equal scores change nothing; equal candidates are taken in the order given."""
    _, truth, base, z, labels = case(off=2.0)
    scaled = base.replace(weight=2.0 * base.weight)
    better = base.replace(weight=truth)
    kept = select({"base": base, "scaled": scaled}, (z, labels), rule="greedy")
    assert {record["status"] for record in kept.records} == {"kept"}
    taken = select({"base": base, "x": better, "y": better}, (z, labels), rule="greedy")
    assert {record["candidate"] for record in taken.records} == {"x"}


def test_the_base_is_named_or_first():
    """The one named so where there is one, else the first."""
    rng, _, base, z, labels = case()
    other = perturbed(rng, base, 1, 0.5)["noise 0"]
    assert select({"x": other, "base": base}, (z, labels)).config["base"] == "base"
    assert select({"x": other, "y": base}, (z, labels)).config["base"] == "x"


def test_a_planted_improvement_is_found():
    """The true directions beat a base that is off, and the corrected gain is near the raw."""
    _, truth, base, z, labels = case(rows=1500, off=1.5)
    result = select({"base": base, "truth": base.replace(weight=truth)}, (z, labels))
    assert result.summary["n_replaced"] == 4
    raw = result.summary["selected_on"] - result.summary["before"]
    assert result.summary["gain"] == pytest.approx(raw, abs=0.01)
    assert result.summary["gain_low"] > 0.0
    assert all(record["gain_low"] > 0.0 for record in result.records)


@pytest.mark.parametrize("rule", ["greedy", "honest"])
def test_noise_is_not_reported_as_a_gain(rule):
    """Of 30 noise candidates on 20 positives the best looks better and is not."""
    raw, corrected = [], []
    for seed in range(4):
        rng, _, base, z, labels = case(seed, rows=400, share=0.05, names=list("abcdefgh"))
        heads = {"base": base, **perturbed(rng, base, 30, 0.15)}
        summary = select(heads, (z, labels), rule=rule, splits=5).summary
        raw.append(summary["selected_on"] - summary["before"])
        corrected.append(summary["gain"])
    assert np.mean(raw) > 0.03
    assert abs(np.mean(corrected)) < 0.4 * np.mean(raw)


def test_intervals_cover_what_fresh_rows_show():
    """Per category and in the mean, to the rate that they state."""
    covered, means = [], []
    for seed in range(12):
        rng, truth, base, z, labels = case(seed, rows=600, off=1.0)
        heads = {"base": base, "truth": base.replace(weight=truth), **perturbed(rng, base, 4, 0.5)}
        result = select(heads, (z, labels), splits=4)
        fresh, codes = draw(rng, 20_000, truth)
        score = METRICS["average_precision"].per_category
        codes = codes.astype(np.int8)
        gain = (score(result.head.logits(fresh), codes) - score(base.logits(fresh), codes)).numpy()
        for record, value in zip(result.records, gain, strict=True):
            if record["status"] == "replaced":
                covered.append(record["gain_low"] <= value <= record["gain_high"])
        means.append(result.summary["gain_low"] <= gain.mean() <= result.summary["gain_high"])
    assert np.mean(covered) >= 0.85
    assert np.mean(means) >= 0.75


def test_parts_are_the_metric_on_part_of_the_rows():
    """To first order: gains without a part correlate almost fully with rescored ones."""
    rng, _, base, z, labels = case(rows=800)
    heads = [base, *perturbed(rng, base, 6, 0.5).values()]
    metric = METRICS["average_precision"]
    scored = score_candidates(heads, z, labels, metric, splits=2, seed=1)
    parts = assign_parts(labels, FOLDS, splits=2, seed=1)
    exact = np.zeros_like(scored.rest)
    for split in range(2):
        for fold in range(FOLDS):
            rows = np.flatnonzero(parts[split] != fold)
            for k, head in enumerate(heads):
                values = metric.per_category(head.logits(z[rows]), labels.take_rows(rows))
                exact[split * FOLDS + fold, k] = values
    gain = scored.values - scored.values[:1]
    moved, expected = (x[:, 1:] - x[:, :1] - gain[1:] for x in (scored.rest, exact))
    assert np.corrcoef(moved.ravel(), expected.ravel())[0, 1] > 0.98


def test_parts_of_a_mean_are_exact():
    """Log-loss on a part: its classes' means, in the shares of all rows."""
    rng, _, base, z, labels = case()
    heads = [base, *perturbed(rng, base, 2, 0.5).values()]
    scored = score_candidates(heads, z, labels, METRICS["log_loss"], splits=1)
    parts, y = assign_parts(labels, FOLDS, splits=1)[0], labels.codes
    for k, head in enumerate(heads):
        signed = np.where(y == 1, -1.0, 1.0) * head.logits(z).numpy()
        loss = np.logaddexp(0.0, signed)
        for c in range(4):
            rows = [(parts == 7) & (y[:, c] == sign) for sign in (0, 1)]
            means = [loss[one, c].mean() for one in rows]
            share = (y[:, c] == 1).mean()
            expected = -(share * means[1] + (1 - share) * means[0])  # larger is better
            assert scored.part[7, k, c] == pytest.approx(expected, rel=1e-5)
    for summed in scored.part_positives.sum(0):
        assert summed.tolist() == labels.counts().positive.tolist()


def test_nested_gains_repeat_the_choice_without_each_part():
    """The same sums, written plainly."""
    rng, _, base, z, labels = case()
    heads = [base, *perturbed(rng, base, 5, 0.5).values()]
    scored = score_candidates(heads, z, labels, METRICS["auroc"], splits=2)
    expected = np.zeros(4)
    for rest, part, positives in zip(scored.rest, scored.part, scored.part_positives, strict=True):
        for c, k in enumerate(choose_each(rest.astype(float), scored.weights)[0]):
            expected[c] += positives[k, c] * (part[k, c] - part[0, c])
    np.testing.assert_allclose(
        nested_gains(scored, nested_choice(scored, choose_each)),
        expected / scored.part_positives[:, 0].sum(0),
        rtol=1e-5,
        atol=1e-7,
    )


def test_parts_keep_groups_whole_and_spread_the_rare():
    """Ten parts; a group is in one of them; 20 rare positives are two in each."""
    rng = np.random.default_rng(0)
    codes = (rng.random((500, 3)) < 0.4).astype(np.int8)
    codes[:, 2] = 0
    codes[rng.choice(500, 20, replace=False), 2] = 1
    plain = assign_parts(PartialLabels(codes), FOLDS, splits=3)
    for split in plain:
        assert np.bincount(split[codes[:, 2] == 1], minlength=FOLDS).tolist() == [2] * 10
        assert np.ptp(np.bincount(split)) <= 1
    assert (plain[0] != plain[1]).any()
    groups = np.repeat(np.arange(125), 4)
    grouped = assign_parts(PartialLabels(codes, groups=groups), FOLDS, splits=2)
    assert (grouped.reshape(2, 125, 4) == grouped.reshape(2, 125, 4)[:, :, :1]).all()


def test_gain_errors_are_those_of_the_bootstrap():
    """Per category, and in the mean with what categories share."""
    rng, _, base, z, labels = case(rows=800)
    other = perturbed(rng, base, 1, 0.8)["noise 0"]
    unseen = [UnseenRows(np.zeros(800, dtype=np.int16))] * 2
    metric, pair = METRICS["average_precision"], [base, other]
    scored = score_candidates(pair, z, labels, metric, splits=1)
    found = candidate_gains(
        pair, z, labels, metric, scored=scored, gains=np.zeros(4), choice=np.ones(4, dtype=int),
        unseen=unseen,
    )  # fmt: skip
    paired = paired_bootstrap(base.logits(z), other.logits(z), labels, n_resamples=400)
    np.testing.assert_allclose(found.high, 1.98 * paired.standard_error, rtol=0.2)
    np.testing.assert_allclose(found.low, -found.high)
    width = np.subtract(*paired.mean_interval[::-1])
    assert found.mean[2] - found.mean[1] == pytest.approx(width, rel=0.2)


@pytest.mark.parametrize("metric", ["average_precision", "log_loss"])
def test_what_is_clearly_worse_is_never_taken(metric, monkeypatch):
    """A corrected gain whose interval lies wholly on the wrong side of zero keeps the head."""
    _, truth, base, z, labels = case()
    told = import_module("catwise.tuning.selecting")
    right = told.nested_gains

    def one_falls(scored, decision):
        gains = right(scored, decision)
        gains[1] = -0.5
        return gains

    monkeypatch.setattr(told, "nested_gains", one_falls)
    result = select({"base": base, "truth": base.replace(weight=truth)}, (z, labels), metric=metric)
    record = result.records[1]
    assert (record["status"], record["reason"]) == ("kept", "clearly_worse")
    assert "wrong side of zero" in record["explanation"]
    assert torch.equal(result.head.weight[1], base.weight[1])
    assert (record["gain"], record["interval_reason"]) == (0.0, "unchanged")
    assert result.summary["n_replaced"] == sum(r["status"] == "replaced" for r in result.records)


def test_few_positives_follow_the_pooled_decision():
    """Under 5 positives a category does what is best over all."""
    _, truth, base, z, labels = case(rows=1500, off=1.5)
    codes = labels.codes.copy()
    codes[np.flatnonzero(codes[:, 1] == 1)[3:], 1] = -1
    codes[np.flatnonzero(codes[:, 2] == 1)[1:], 2] = -1
    heads = {"base": base, "truth": base.replace(weight=truth)}
    result = select(heads, (z, PartialLabels(codes, categories=NAMES)))
    few = result.records[1]
    assert (few["status"], few["reason"]) == ("replaced", "pooled_better")
    assert "Only 3 known positives" in few["explanation"]
    assert few["interval_reason"] is None
    one = result.records[2]
    assert one["status"] == "replaced"
    assert one["after"] is None
    assert one["gain"] is None
    assert one["interval_reason"] == "few_positives"
    assert "too few for an interval" in one["explanation"]
    assert result.summary["n_scored"] == 3
    assert np.isfinite(result.summary["gain_high"])
    json.dumps(result.records, allow_nan=False)


def test_no_known_label_is_an_error():
    """With nothing to judge by there is nothing to choose."""
    _, truth, base, z, labels = case()
    blank = PartialLabels(np.full_like(labels.codes, -1), categories=NAMES)
    with pytest.raises(LabelError, match="no validation label is known"):
        select({"base": base, "truth": base.replace(weight=truth)}, (z, blank))


def test_one_class_only_is_skipped_with_a_reason():
    """The original head is kept, and the record says why."""
    _, truth, base, z, labels = case()
    codes = labels.codes.copy()
    codes[:, 0] = -1
    codes[:, 1] = np.where(codes[:, 1] == 1, -2, 0)
    codes[:, 2] = 1
    result = select(
        {"base": base, "truth": base.replace(weight=truth)},
        (z, PartialLabels(codes, categories=NAMES)),
        force=True,
    )
    reasons = [record["reason"] for record in result.records[:3]]
    assert reasons == ["no_known_label", "no_known_positive", "no_known_negative"]
    for record in result.records[:3]:
        assert record["status"] == "skipped"
        assert record["candidate"] == "base"
        assert record["after"] is None
        assert "original head was kept" in record["explanation"]
    assert torch.equal(result.head.weight[:3], base.weight[:3])
    assert result.summary["n_skipped"] == 3


def test_no_category_that_can_be_scored_keeps_the_head():
    """No score, no choice, no crash."""
    _, truth, base, z, _ = case()
    labels = PartialLabels(np.zeros((400, 4), dtype=np.int8), categories=NAMES)
    result = select({"base": base, "truth": base.replace(weight=truth)}, (z, labels))
    assert torch.equal(result.head.weight, base.weight)
    assert result.summary["after"] is None
    assert result.summary["n_scored"] == 0
    json.dumps(result.summary, allow_nan=False)


def test_rows_of_the_head_without_labels_are_kept():
    """The head may have more rows; columns match by name, in any order."""
    _, truth, base, z, labels = case(rows=1500, off=1.5)
    heads = {"base": base, "truth": base.replace(weight=truth)}
    result = select(heads, (z, labels.take_categories(["dog", "bee"])))
    assert [record["category"] for record in result.records] == list(NAMES)
    assert [record["status"] for record in result.records] == [
        "skipped",
        "replaced",
        "skipped",
        "replaced",
    ]
    assert result.records[0]["reason"] == "not_in_labels"
    expected = base.weight.clone()
    expected[[1, 3]] = heads["truth"].weight[[1, 3]]
    assert torch.equal(result.head.weight, expected)


def test_candidates_match_by_name():
    """A candidate with its rows in another order is put in the base's."""
    _, truth, base, z, labels = case(rows=1500, off=1.5)
    turned = base.replace(weight=truth).take_categories(["dog", "cat", "bee", "ant"])
    result = select({"base": base, "turned": turned}, (z, labels))
    assert torch.equal(result.head.weight, torch.from_numpy(truth))


def test_rows_join_by_id():
    """Shuffled features give the same choice and scores."""
    _, truth, base, z, labels = case(rows=600)
    ids = [f"i{i}" for i in range(600)]
    labels = PartialLabels(labels.codes, ids=ids, categories=NAMES)
    order = np.random.default_rng(1).permutation(600)
    shuffled = Features(z[order], ids=[ids[i] for i in order])
    heads = {"base": base, "truth": base.replace(weight=truth)}
    a, b = select(heads, (Features(z, ids=ids), labels)), select(heads, (shuffled, labels))
    assert a.records == b.records
    with pytest.raises(IdError):
        select(heads, (Features(z[:-1], ids=ids[:-1]), labels))


def test_scores_are_of_the_head_as_stored():
    """A float32 candidate for a float16 base is rounded before it is scored."""
    _, truth, base, z, labels = case(rows=1500, off=1.5)
    half = base.replace(weight=base.weight.half(), bias=base.bias.half())
    fine = Head(torch.from_numpy(truth).float(), torch.zeros(4), categories=NAMES)
    result = select({"base": half, "fine": fine}, (z.astype(np.float16), labels))
    assert result.head.dtype == torch.float16
    stored = fine.replace(weight=fine.weight.half()).logits(z.astype(np.float16))
    expected = METRICS["average_precision"].per_category(stored, labels)
    assert result.records[0]["selected_on"] == pytest.approx(float(expected[0]), abs=1e-12)


def test_a_missing_bias_is_never_invented():
    """A candidate without bias counts as zero; a base without one takes none."""
    _, truth, base, z, labels = case()
    without = Head(truth, categories=NAMES)
    result = select({"base": base, "without": without}, (z, labels))
    assert result.head.bias is not None
    assert select({"base": without, "zero": base}, (z, labels)).head.bias is None
    with pytest.raises(HeadError, match="'biased' has a bias"):
        select({"base": without, "biased": base.replace(bias=np.ones(4))}, (z, labels))


def test_candidates_of_other_models_are_refused_all_at_once():
    """Shapes and names, each with its candidate."""
    _, _, base, z, labels = case()
    wrong = {
        "base": base,
        "narrow": Head(np.ones((4, 3)), np.zeros(4), categories=NAMES),
        "renamed": base.replace(categories=["ant", "bee", "cat", "owl"]),
    }
    with pytest.raises(HeadError) as caught:
        select(wrong, (z, labels))
    assert "'narrow' has 4 categories by 3 features" in str(caught.value)
    assert "'renamed' has other categories, such as 'owl'" in str(caught.value)


def test_the_head_remembers_what_fitted_and_selected_it():
    """The union of the candidates' rows and the validation rows."""
    _, truth, base, z, labels = case()
    fitted = base.replace(weight=truth, fitted_on=np.array([1, 2], dtype=np.uint64))
    result = select({"base": base, "fitted": fitted}, (z, labels))
    expected = np.union1d([1, 2], source_digests(z, labels).astype(np.uint64))
    np.testing.assert_array_equal(result.head.fitted_on, expected)
    provenance = result.head.provenance
    assert provenance["made_by"] == "select"
    assert provenance["candidates"]["fitted"] == fitted.digest


def test_candidates_fitted_on_the_validation_rows_are_warned_of():
    """They are judged on what they have seen."""
    _, truth, base, z, labels = case()
    seen = base.replace(weight=truth).with_fitted_on(source_digests(z, labels)[:30])
    with pytest.warns(InSampleWarning, match="30 of 400 validation rows"):
        result = select({"base": base, "seen": seen}, (z, labels))
    assert "'seen'" in result.notes[-2]
    assert (
        result.notes[-1]
        == "it is not known whether some of these rows fitted the candidate 'base'."
    )


def test_a_mixed_up_base_is_refused():
    """The head's rows in another order than the labels' columns."""
    _, _, base, z, labels = case(rows=1500, off=0.2)
    heads = {"base": base, "twice": base.replace(weight=2 * base.weight)}
    turned = PartialLabels(np.roll(labels.codes, 1, axis=1))
    with pytest.raises(MismatchError, match="valid: columns or features look mismatched"):
        select(heads, (z, turned))
    assert "mismatched" in select(heads, (z, turned), force=True).notes[-1]


def test_a_lower_is_better_metric_is_minimised():
    """Gains have the metric's own sign: an improvement of a loss is negative."""
    _, _, base, z, labels = case(rows=1500, off=1.5)
    scale = base.replace(weight=base.weight * 0.2, bias=np.full(4, -1.2))
    for metric in ("log_loss", "brier"):
        result = select({"base": base, "scaled": scale}, (z, labels), metric=metric, rule="greedy")
        scores = [
            METRICS[metric].per_category(head.logits(z), labels).numpy() for head in (base, scale)
        ]
        for c, record in enumerate(result.records):
            assert record["candidate"] == ("scaled" if scores[1][c] < scores[0][c] else "base")
            assert record["before"] == pytest.approx(scores[0][c])
            if record["status"] == "replaced":
                assert record["gain"] < 0
                assert record["gain_low"] <= record["gain"] <= record["gain_high"]
        assert result.summary["gain"] < 0


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_can_select(metric):
    """All that are registered."""
    rng, _, base, z, labels = case()
    result = select({"base": base, **perturbed(rng, base, 2, 0.5)}, (z, labels), metric=metric)
    assert result.summary["metric"] == metric
    assert np.isfinite(result.summary["gain_low"])


def test_equal_rows_are_kept():
    """A candidate that changes one category replaces no other."""
    _, truth, base, z, labels = case(rows=1500, off=1.5)
    weight = base.weight.clone()
    weight[2] = torch.from_numpy(truth[2])
    result = select({"base": base, "one": base.replace(weight=weight)}, (z, labels))
    assert [record["status"] for record in result.records] == ["kept", "kept", "replaced", "kept"]
    assert result.records[0]["reason"] == "no_other_row"
    assert result.records[0]["gain"] == 0.0
    assert result.records[0]["interval_reason"] == "unchanged"
    assert result.records[0]["after"] == result.records[0]["before"]


def test_records_and_summary_have_their_keys():
    """As every run writes them, JSON-ready."""
    rng, _, base, z, labels = case()
    result = select({"base": base, **perturbed(rng, base, 2, 0.5)}, (z, labels))
    for record in json.loads(json.dumps(result.records, allow_nan=False)):
        assert list(record) == KEYS
        assert record["explanation"].endswith(".")
    assert set(result.summary) == {
        "metric", "n_categories", "n_replaced", "n_kept", "n_skipped", "before", "after", "gain",
        "gain_low", "gain_high", "level", "reason", "n_scored", "selected_on", "judged_by",
        "in_sample_rows", "choice", "seconds", "passes",
    }  # fmt: skip
    assert sum(result.summary["choice"]["taken"].values()) == 4
    json.dumps([result.summary, result.config, result.notes], allow_nan=False)
    assert repr(result).startswith("SelectResult(replaced=")


def test_seed_and_cutting_decide_nothing_else(monkeypatch):
    """The same seed gives the same account, however many categories are held at once."""
    rng, _, base, z, labels = case()
    heads = {"base": base, **perturbed(rng, base, 5, 0.3)}
    whole, again = select(heads, (z, labels)), select(heads, (z, labels))
    assert whole.records == again.records
    monkeypatch.setattr(import_module("catwise.tuning.choice.logits"), "_ENTRIES", 400 * 6 * 2)
    cut = select(heads, (z, labels))
    assert cut.summary["passes"]["features"] == 3
    for a, b in zip(whole.records, cut.records, strict=True):
        assert a["candidate"] == b["candidate"]
        assert a["gain"] == pytest.approx(b["gain"], abs=1e-9)
    other = select(heads, (z, labels), seed=1)
    assert [r["selected_on"] for r in other.records] == [r["selected_on"] for r in whole.records]


def test_columns_storage_gives_the_same():
    """Storage is not content."""
    rng, _, base, z, labels = case()
    heads = {"base": base, **perturbed(rng, base, 3, 0.3)}
    dense = select(heads, (z, labels))
    assert select(heads, (z, labels.with_storage("columns"))).records == dense.records


def test_work_is_bounded_and_said():
    """Fewer splits where they would be too many."""
    labels = PartialLabels(np.zeros((1000, 10), dtype=np.int8))
    assert affordable_splits(labels, 50, 20) == (20, None)
    made, note = affordable_splits(labels, 10_000, 20_000)
    assert 1 <= made < 20_000
    assert note.startswith(f"{made} of 20000 splits were made")


def test_progress_is_told():
    """Once for each category."""
    rng, _, base, z, labels = case()
    seen = []
    select({"base": base, **perturbed(rng, base, 1, 0.3)}, (z, labels), progress=seen.append)
    assert [(p.done, p.total) for p in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bad_options_are_refused_together():
    """With what was expected."""
    rng, _, base, z, labels = case()
    heads = {"base": base, **perturbed(rng, base, 1, 0.3)}
    with pytest.raises(ConfigError) as caught:
        select(heads, (z, labels), rule="honset", level=95, splits=0)
    assert "did you mean 'honest'" in str(caught.value)
    assert "level=95; splits=0" in str(caught.value)
    with pytest.raises(ConfigError, match="nothing to choose from"):
        select({"base": base}, (z, labels))
    with pytest.raises(ConfigError, match="unknown metric"):
        select(heads, (z, labels), metric="map")
    with pytest.raises(ShapeError, match="do not feed the head"):
        select(heads, (z[:, :3], labels))
    z[5, 5] = np.nan
    with pytest.raises(FeatureError, match="NaN"):
        select(heads, (z, labels))
