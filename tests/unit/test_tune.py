"""`tune` from the door to the records: both presets, what stays as it was, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import catwise
from catwise import Head, PartialLabels
from catwise._configs import EvolutionConfig, PaperConfig
from catwise.errors import (
    CategoryError,
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
from catwise.metrics import METRICS
from catwise.testing import assert_same_head, make_task
from catwise.tuning.presets.default_config import DefaultConfig
from tuning_case import QUICK, SMALL, default_result, mean_score, task, tuned, with_codes

EVOLVE = PaperConfig(
    max_steps=80, patience=30, operators=EvolutionConfig(population_size=20, mutation_scale=0.1)
)


# ------------------------------------------------------------------------------- the API


def test_the_api_of_the_readme_on_plain_arrays():
    """Arrays with NaN blanks and no names: tune, look at the records, evaluate."""
    made = task()
    blank = [
        np.where(s.labels.codes >= 0, s.labels.codes, np.nan).astype(float)
        for s in (made.train, made.valid)
    ]
    z, zv, zt = (s.features.values for s in (made.train, made.valid, made.test))
    labels, labels_v = (PartialLabels.from_array(y, encoding="nan") for y in blank)
    head = Head(made.head.weight, made.head.bias)
    result = catwise.tune(
        head,
        train=(z, labels),
        valid=(zv, labels_v),
        metric="average_precision",
        preset="default",
        methods=None,
        validation=None,
        seed=0,
        device=None,
    )
    assert result.head.weight.shape == head.weight.shape
    assert result.head.bias.shape == head.bias.shape
    assert [r["category"] for r in result.records] == ["0", "1", "2", "3", "4"]
    labels_t = PartialLabels.from_array(made.test.truth.codes, encoding="nan")
    after = catwise.evaluate(result.head, (zt, labels_t))
    assert after.means["average_precision"]["macro"] > mean_score(made.head, made.test) + 0.05
    # Positions and names lead to the same numbers; the folds are drawn from other digests.
    torch.testing.assert_close(result.head.weight, default_result().head.weight, rtol=0.5, atol=0.5)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 0.08),
        ({"validation": "fit_and_select"}, 0.08),
        ({"validation": "select"}, 0.05),
        ({"preset": "paper", "config": QUICK}, 0.02),
        ({"preset": "paper", "methods": ["bp_asl"], "config": QUICK}, 0.02),
        ({"preset": "paper", "methods": ["bp_bce", "bp_asl"], "config": QUICK}, 0.02),
        ({"preset": "paper", "methods": ["ga"], "config": EVOLVE}, 0.02),
        ({"metric": "auroc"}, 0.05),
        ({"metric": METRICS["best_f1"], "config": SMALL}, 0.05),
    ],
)
def test_a_tuned_head_is_better_on_clean_test_data(options, least):
    """On a task with planted signal the mean average precision of fresh data rises."""
    made = task()
    result = tuned(made, **options)
    assert mean_score(result.head, made.test) > mean_score(made.head, made.test) + least
    assert result.summary["n_replaced"] >= 3
    assert result.base is made.head


def test_without_validation_it_is_cross_fitted_on_training_labels_and_says_so():
    """valid=None warns, says what that is worth, and still gives folds and records."""
    made = task(memorised=0.0)
    noise = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    head = made.head.replace(weight=made.head.weight + 0.2 * noise)
    with pytest.warns(InSampleWarning, match="cross-fitted"):
        result = catwise.tune(head, made.train.pair)
    assert any("memorised" in note for note in result.notes)
    assert result.gap is None
    assert result.config["validation"] is None
    assert len(result.folds.fold) == 300
    for record in result.records:
        assert record["scored_on"].startswith("training labels")
        assert record["n_positive_valid"] is None
        assert record["gap_auroc"] is None
    assert mean_score(result.head, made.test) > mean_score(head, made.test) + 0.05


def test_the_paper_preset_takes_the_best_method_per_category():
    """With both methods each category has one of them, and its own best step."""
    one, other, both = (
        tuned(preset="paper", methods=m, config=QUICK)
        for m in (["bp_bce"], ["bp_asl"], ["bp_bce", "bp_asl"])
    )
    assert both.summary["choice"]["methods"] == ["bp_bce", "bp_asl"]
    assert set(both.summary["choice"]["stopped"]) == {"bp_bce", "bp_asl"}
    assert both.folds is None
    assert any("chose among all steps" in note for note in both.notes)
    for c, record in enumerate(both.records):
        scores = {m: r.records[c]["selected_on"] for m, r in (("bp_bce", one), ("bp_asl", other))}
        assert record["selected_on"] == max(scores.values())
        source = {"bp_bce": one, "bp_asl": other}[record["candidate"]]
        assert torch.equal(both.head.weight[c], source.head.weight[c])
        assert record["after"] is None
    assert {h["method"] for h in both.history} == {"bp_bce", "bp_asl"}


def test_after_the_genetic_algorithm_probabilities_mean_what_they_say():
    """Ranks are those of the evolved head; its log-loss on clean data is lower."""
    made = task()
    given = {"preset": "paper", "methods": ["ga"]}
    plain = tuned(made, config=replace(EVOLVE, recalibrate=False), **given)
    settled = tuned(made, config=EVOLVE, **given)
    assert settled.records == plain.records
    scores = [
        catwise.evaluate(r.head, made.test.pair, metrics=["average_precision", "log_loss"])
        for r in (plain, settled)
    ]
    before, after = (s.values for s in scores)
    np.testing.assert_allclose(
        before["average_precision"], after["average_precision"], rtol=0, atol=1e-4
    )
    assert np.nanmean(after["log_loss"]) < np.nanmean(before["log_loss"])
    assert any("refitted on validation" in note for note in settled.notes)
    assert {"best_fitness", "mean_fitness", "score"} <= set(settled.history[0])


def test_paper_is_its_first_method_by_default():
    """methods=None is the published binary cross-entropy."""
    result = tuned(preset="paper", config=QUICK)
    assert result.config["methods"] == ["bp_bce"]
    assert result.config["validation"] == "select"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "paper", "methods": ["bp_bec"]}, "did you mean 'bp_bce'"),
        ({"preset": "paper", "methods": []}, "once"),
        ({"preset": "paper", "methods": ["bp_bce", "bp_bce"]}, "once"),
        ({"preset": "paper", "validation": "fit_and_select"}, "choosing only"),
        ({"methods": ["bp_bce"]}, "takes no methods"),
        ({"preset": "papr"}, "did you mean 'paper'"),
        ({"validation": "selct"}, "did you mean 'select'"),
        ({"metric": "auc"}, "unknown metric"),
        ({"config": PaperConfig()}, "does not take this config"),
        ({"preset": "paper", "config": DefaultConfig()}, "does not take this config"),
    ],
)
def test_options_that_cannot_be(options, message):
    """Each impossible option has its own sentence, before anything is computed."""
    with pytest.raises(ConfigError, match=message):
        tuned(**options)


@pytest.mark.parametrize("options", [{"preset": "paper"}, {"validation": "select"}])
def test_choosing_needs_validation(options):
    """What only chooses by validation cannot do without."""
    with pytest.raises(ConfigError, match="validation data are needed"):
        catwise.tune(task().head, task().train.pair, **options)


def test_progress_is_told():
    """The callback hears of every stage, and the counts arrive at their totals."""
    seen = []
    tuned(config=SMALL, progress=seen.append)
    tuned(validation="select", progress=seen.append)
    tuned(preset="paper", config=QUICK, progress=seen.append)
    assert {p.stage for p in seen} >= {"read", "cross-fit", "candidates", "backprop"}
    for stage in ("cross-fit", "candidates"):
        last = [p for p in seen if p.stage == stage][-1]
        assert last.done == last.total


# ----------------------------------------------------------------- what stays as it was


def halved(made=None):
    """A task in which two categories cannot be judged: all positive, and unknown, on validation."""
    made = made or task()
    codes = made.valid.labels.codes.copy()
    codes[:, 1] = np.where(codes[:, 1] >= 0, 0, -1)
    codes[:, 3] = -1
    return made, with_codes(made.valid, codes)


@pytest.mark.parametrize(
    "options",
    [{}, {"validation": "select"}, {"preset": "paper", "config": QUICK}],
    ids=["default", "select", "paper"],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_skipped_categories_keep_their_bits(options, dtype):
    """What cannot be judged is skipped with a reason, and not a bit of its row changes."""
    made, valid = halved()
    head = made.head.replace(weight=made.head.weight.to(dtype), bias=made.head.bias.to(dtype))
    result = catwise.tune(head, made.train.pair, valid, **options)
    assert result.head.dtype == dtype
    assert result.head.bias.dtype == dtype
    for c, reason in ((1, "no_known_positive_in_valid"), (3, "no_known_label_in_valid")):
        record = result.records[c]
        assert (record["status"], record["candidate"]) == ("skipped", "base")
        assert record["reason"].startswith("no_known")
        assert record["reason"] == reason
        assert record["before"] is record["after"] is record["scored_on"] is None
        assert torch.equal(result.head.weight[c], head.weight[c])
        assert torch.equal(result.head.bias[c], head.bias[c])
    changed = [c for c, r in enumerate(result.records) if r["status"] == "replaced"]
    assert changed
    for c in changed:
        assert not torch.equal(result.head.weight[c], head.weight[c])


@pytest.mark.parametrize("options", [{}, {"validation": "select"}])
def test_a_head_that_is_right_already_is_kept(options):
    """Without anything to gain the rows stay, bit by bit, and the records say kept."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 6)).astype(np.float32)
    truth = 3 * rng.normal(size=(4, 6)).astype(np.float32)
    labels = PartialLabels((z @ truth.T > 3).astype(np.int8))
    parts = [(z[i::2], labels.take_rows(np.arange(500)[i::2])) for i in (0, 1)]
    head = Head(truth, np.full(4, -3.0, dtype=np.float32))
    result = catwise.tune(head, *parts, **options)
    assert [r["status"] for r in result.records] == ["kept"] * 4
    assert {r["reason"] for r in result.records} <= {"no_gain", "no_pooled_gain"}
    assert_same_head(result.head, head)
    for record in result.records:
        assert record["before"] == record["after"] == record["selected_on"] == 1.0
        assert record["gain"] == 0.0
    assert result.summary["gain"] == 0.0


@pytest.mark.parametrize(
    "options",
    [{}, {"validation": "select"}, {"preset": "paper", "config": QUICK}],
    ids=["default", "select", "paper"],
)
def test_a_missing_bias_stays_missing(options):
    """No bias is invented; the weights still improve."""
    made = task()
    head = made.head.replace(bias=None)
    result = catwise.tune(head, made.train.pair, made.valid.pair, **options)
    assert result.head.bias is None
    assert mean_score(result.head, made.test) > mean_score(head, made.test)
    if result.folds is not None:
        assert result.folds.bias is None
        assert all(fold_head.bias is None for fold_head in result.folds.heads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_more_rows_than_labels_are_matched_by_name(dtype):
    """Rows without labels keep their bits; the others become what they become alone."""
    made = task()
    rng = np.random.default_rng(1)
    extra = torch.from_numpy(rng.normal(size=(3, 16))).float()
    weight = torch.cat([extra, made.head.weight.flip(0)]).to(dtype)
    bias = torch.cat([torch.ones(3), made.head.bias.flip(0)]).to(dtype)
    names = ["x", "y", "z", *reversed(made.head.categories)]
    wide = Head(weight, bias, categories=names)
    result = catwise.tune(wide, made.train.pair, made.valid.pair)
    assert result.head.categories == tuple(names)
    assert torch.equal(result.head.weight[:3], weight[:3])
    assert torch.equal(result.head.bias[:3], bias[:3])
    assert [r["category"] for r in result.records] == list(made.head.categories)
    assert [r["index"] for r in result.records] == [7, 6, 5, 4, 3]
    if dtype == torch.float32:
        narrow = default_result().head.replace(fitted_on=None, provenance=None)
        assert_same_head(
            result.head.take_categories(list(made.head.categories)), narrow, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("named", ["both", "train", "valid"])
def test_validation_columns_in_another_order_are_matched(named):
    """By name, or by the head's rows where one of the labels has no names."""
    made = task()
    order = [3, 0, 4, 2, 1]
    train, valid = made.train.labels, made.valid.labels
    nameless = {name: PartialLabels(x.codes, x.ids) for name, x in (("t", train), ("v", valid))}
    if named == "train":
        sides = train.take_categories(order), nameless["v"]
        expected = order
    elif named == "valid":
        sides = nameless["t"], valid.take_categories(order)
        expected = list(range(5))
    else:
        sides = train, valid.take_categories(order)
        expected = list(range(5))
    result = catwise.tune(
        made.head, (made.train.features, sides[0]), (made.valid.features, sides[1])
    )
    assert [r["index"] for r in result.records] == expected
    assert_same_head(result.head, default_result().head, rtol=1e-3, atol=1e-4)


def test_rows_are_joined_by_id():
    """Features in another order than the labels give the same head."""
    made = task()
    order = np.random.default_rng(2).permutation(300)
    z = made.train.features
    moved = Features(np.asarray(z.values)[order], ids=np.asarray(z.ids)[order])
    result = catwise.tune(made.head, (moved, made.train.labels), made.valid.pair)
    assert_same_head(result.head, default_result().head, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------- the door


def test_the_models_own_logits_pass():
    """Right logits, also of a wider head, of half precision, or with the head's extra rows."""
    made = task()
    own = made.head.logits(made.train.features)
    for given in (own, own.numpy(), own.half(), own.numpy().tolist()):
        tuned(logits=given, config=SMALL)
    wide = Head(
        torch.cat([made.head.weight, torch.ones(1, 16)]),
        torch.cat([made.head.bias, torch.zeros(1)]),
        categories=[*made.head.categories, "more"],
    )
    catwise.tune(
        wide,
        made.train.pair,
        made.valid.pair,
        logits=wide.logits(made.train.features),
        config=SMALL,
    )


@pytest.mark.parametrize("wrong", ["shifted", "columns", "rows", "nan", "shape"])
def test_wrong_logits_are_refused(wrong):
    """The first row and category that differ most are shown."""
    made = task()
    own = made.head.logits(made.train.features).numpy().copy()
    given = {
        "shifted": own + 0.5,
        "columns": own[:, ::-1],
        "rows": own[::-1],
        "nan": np.where(np.arange(len(own))[:, None] == 4, np.nan, own),
        "shape": own[:-1],
    }[wrong]
    with pytest.raises(MismatchError, match="logits given"):
        tuned(logits=given)


@pytest.mark.parametrize("options", [{}, {"preset": "paper", "config": QUICK}])
def test_shuffled_rows_of_the_head_are_seen(options):
    """Rows that belong to other columns stop it; force goes on and notes it."""
    made = task()
    order = [1, 2, 3, 4, 0]
    mixed = Head(made.head.weight[order], made.head.bias[order], categories=made.head.categories)
    with pytest.raises(MismatchError, match="look mismatched"):
        catwise.tune(mixed, made.train.pair, made.valid.pair, **options)
    result = catwise.tune(mixed, made.train.pair, made.valid.pair, force=True, **options)
    assert any("look mismatched" in note for note in result.notes)


def test_features_of_another_model_are_seen():
    """Features that say nothing to this head stop it."""
    made = task()
    noise = np.random.default_rng(0).normal(size=(150, 16)).astype(np.float32)
    valid = Features(noise, ids=made.valid.features.ids), made.valid.labels
    with pytest.raises(MismatchError, match="no better than chance"):
        catwise.tune(made.head, made.train.pair, valid)


@pytest.mark.parametrize("options", [{}, {"preset": "paper", "config": QUICK}])
def test_training_rows_in_another_order_are_seen(options):
    """Training features that are not those of their labels stop it, though validation fits."""
    made = make_task(2000, 150, 1, 16, 5)
    values = np.random.default_rng(0).permutation(np.asarray(made.train.features.values))
    train = Features(values, ids=made.train.features.ids), made.train.labels
    with pytest.raises(MismatchError, match="train: columns or features look mismatched"):
        catwise.tune(made.head, train, made.valid.pair, **options)
    result = catwise.tune(made.head, train, made.valid.pair, force=True, **options)
    assert any(note.startswith("train: columns or features") for note in result.notes)
    assert "worse than held-out ones" in result.gap["advice"]


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"train": "features alone"}, ShapeError, r"expected: train=\(features, labels\)"),
        ({"valid": "raw labels"}, LabelError, "labels of 'valid' are raw values"),
        ({"head": "a pair"}, HeadError, r"catwise\.Head\(weight, bias\)"),
        ({"device": "warp"}, ConfigError, "device 'warp' cannot be used"),
        ({"seed": "one"}, ConfigError, "seed='one'"),
    ],
)
def test_arguments_of_another_kind(given, kind, says):
    """What is no head, pair, device or seed is refused with what it should be."""
    made = task()
    values = {
        "features alone": made.train.features,
        "raw labels": (made.valid.features, made.valid.labels.codes),
        "a pair": (made.head.weight, made.head.bias),
    }
    known = {"head": made.head, "train": made.train.pair, "valid": made.valid.pair}
    options = known | {key: values.get(value, value) for key, value in given.items()}
    with pytest.raises(kind, match=says):
        catwise.tune(**options)


@pytest.mark.parametrize("groups", [False, True])
def test_one_unit_cannot_be_cross_fitted(groups):
    """A single row or group cannot both fit and judge."""
    made = task()
    rows = range(150) if groups else range(1)
    labels = PartialLabels(
        made.valid.labels.codes[rows],
        categories=made.valid.labels.categories,
        groups=["p"] * 150 if groups else None,
    )
    features = np.asarray(made.valid.features.values)[rows]
    says = "one group cannot be cross-fitted" if groups else "one row cannot be cross-fitted"
    with pytest.raises(LabelError, match=says):
        catwise.tune(made.head, made.train.pair, (features, labels))


@pytest.mark.parametrize("where", ["train", "valid"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers(where, value):
    """The source is named."""
    made = task()
    pairs = {"train": made.train.pair, "valid": made.valid.pair}
    features, labels = pairs[where]
    values = np.asarray(features.values).copy()
    values[5, 3] = value
    pairs[where] = Features(values, ids=features.ids), labels
    with pytest.raises(FeatureError, match=where):
        catwise.tune(made.head, pairs["train"], pairs["valid"])


def test_an_image_in_both_sources():
    """By id where there are ids, else by content."""
    made = task()
    with pytest.raises(IdError, match="both"):
        catwise.tune(made.head, made.train.pair, made.train.pair)
    z = np.asarray(made.train.features.values)
    labels = PartialLabels(made.train.labels.codes)
    with pytest.raises(IdError, match="same features"):
        catwise.tune(made.head.replace(categories=None), (z, labels), (z.copy(), labels))


def test_labels_without_features():
    """Three ids of each side are shown."""
    made = task()
    moved = Features(made.train.features.values, ids=[f"x{i}" for i in range(300)])
    with pytest.raises(IdError, match="300 of 300 labelled rows have no features"):
        catwise.tune(made.head, (moved, made.train.labels), made.valid.pair)


def test_all_training_labels_unknown():
    """Nothing to fit is an error about labels."""
    made = task()
    blank = with_codes(made.train, np.full((300, 5), -1, dtype=np.int8))
    with pytest.raises(LabelError, match="no training label is known"):
        catwise.tune(made.head, blank, made.valid.pair)


@pytest.mark.parametrize("options", [{}, {"validation": "select"}, {"preset": "paper"}])
def test_all_validation_labels_unknown(options):
    """Nothing to judge by is an error about labels."""
    made = task()
    blank = with_codes(made.valid, np.full((150, 5), -1, dtype=np.int8))
    with pytest.raises(LabelError, match="no validation label is known"):
        catwise.tune(made.head, made.train.pair, blank, **options)


@pytest.mark.parametrize("options", [{}, {"validation": "select"}, {"preset": "paper"}])
def test_no_positive_for_validation_skips_all(options):
    """Without a known positive of any category nothing can be judged, and nothing changes."""
    made = task()
    codes = np.where(made.valid.labels.codes == 1, -1, made.valid.labels.codes)
    negative = with_codes(made.valid, codes.astype(np.int8))
    result = catwise.tune(made.head, made.train.pair, negative, **options)
    assert {r["reason"] for r in result.records} == {"no_known_positive_in_valid"}
    assert {r["status"] for r in result.records} == {"skipped"}
    assert_same_head(result.head, made.head)
    assert result.summary["before"] is result.summary["gain"] is None
    json.dumps([result.records, result.summary, result.gap, result.history], allow_nan=False)


def test_shapes_that_do_not_fit():
    """Features for another head, labels with other rows or columns: each says which."""
    made = task()
    z, labels = np.asarray(made.train.features.values), PartialLabels(made.train.labels.codes)
    head = made.head.replace(categories=None)
    with pytest.raises(ShapeError, match="do not feed the head"):
        catwise.tune(head, (z[:, :7], labels))
    with pytest.raises(ShapeError, match="number of rows"):
        catwise.tune(head, (z[:-1], labels))
    with pytest.raises(ShapeError, match="number of categories"):
        catwise.tune(head, (z, PartialLabels(made.train.labels.codes[:, :3])))
    with pytest.raises(ShapeError, match="valid features do not feed"):
        catwise.tune(head, (z, labels), (z[:20, :4], labels.take_rows(range(20))))


def test_categories_that_are_not_there():
    """A name that the head lacks, and a training column that validation lacks."""
    made = task()
    labels = made.train.labels
    other = PartialLabels(labels.codes, labels.ids, [*labels.categories[:4], "categry 9"])
    with pytest.raises(CategoryError, match="categry 9"):
        catwise.tune(made.head, (made.train.features, other), made.valid.pair)
    fewer = made.valid.labels.take_categories([0, 1, 2, 3])
    with pytest.raises(CategoryError, match=r"validation labels lack 1 .*\n.*'category 4'"):
        catwise.tune(made.head, made.train.pair, (made.valid.features, fewer))
