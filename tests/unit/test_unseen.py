"""Candidates are judged by rows that they have not seen, and by out-of-fold logits."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

import catwise
from catwise.errors import HeadError, InSampleWarning, MismatchError
from catwise.features import Features
from catwise.labels import PartialLabels
from catwise.metrics import METRICS
from catwise.reporting import run_document, summary_lines
from catwise.testing import make_task
from catwise.tuning.selecting import Run, select

AP = METRICS["average_precision"].per_category


@pytest.fixture(scope="module")
def fitted():
    """A task, and a run that fitted its validation rows."""
    task = make_task(400, 600, 2000, 32, 6, seed=0)
    return task, catwise.tune(task.head, task.train.pair, task.valid.pair)


def mean_gain(head, base, split):
    """In mean average precision."""
    z = np.asarray(split.features.values)
    return float((AP(head.logits(z), split.labels) - AP(base.logits(z), split.labels)).mean())


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_is_judged_by_its_out_of_fold_logits(seed):
    """On the rows that it fitted, the headline covers the gain on test rows; in sample does not.

    The test rows are so many that their own error hardly counts.
    """
    task = make_task(800, 400, 10_000, 64, 6, known=0.9, wrong=0, memorised=0.3, seed=seed)
    run = catwise.tune(task.head, task.train.pair, task.valid.pair)
    for rule in ("greedy", "honest"):
        result = select({"base": task.head, "tuned": run}, task.valid.pair, rule=rule)
        summary = result.summary
        low, high = summary["gain_low"], summary["gain_high"]
        assert low <= mean_gain(result.head, task.head, task.test) <= high
        assert mean_gain(result.head, task.head, task.valid) > high
        assert summary["judged_by"]["tuned"] == "out-of-fold logits of 400 validation rows"
        assert summary["in_sample_rows"] == {"base": 0, "tuned": 400}
    told = {record["scored_on"] for record in result.records if record["status"] == "replaced"}
    assert "out-of-fold logits of 400 validation rows, chosen without each tenth" in told.pop()


@pytest.mark.parametrize("rule", ["greedy", "honest"])
def test_a_head_that_fitted_all_rows_is_not_judged(fitted, rule):
    """No score, no choice, no headline; said in the summary and to people."""
    task, run = fitted
    with pytest.warns(InSampleWarning, match="600 of 600 validation rows fitted or chose"):
        result = select({"base": task.head, "tuned": run.head}, task.valid.pair, rule=rule)
    assert {record["candidate"] for record in result.records} == {"base"}
    assert {record["reason"] for record in result.records} == {"not_judged"}
    assert {record["candidates"]["tuned"] for record in result.records} == {None}
    summary = json.loads(json.dumps(result.summary, allow_nan=False))
    assert [summary[key] for key in ("after", "gain", "gain_low", "selected_on")] == [None] * 4
    assert summary["judged_by"]["tuned"].startswith("nothing: all 600 validation rows fitted")
    lines = summary_lines(run_document(result))
    assert "to ?: no candidate could be judged" in lines[0]


def test_one_that_is_not_judged_leaves_the_others_as_they_are(fitted):
    """It is never chosen, however good it looks in sample."""
    task, run = fitted
    other = task.head.replace(weight=task.head.weight + 0.02)
    alone = select({"base": task.head, "other": other}, task.valid.pair, rule="greedy")
    with pytest.warns(InSampleWarning):
        both = select(
            {"base": task.head, "tuned": run.head, "other": other}, task.valid.pair, rule="greedy"
        )
    assert [r["candidate"] for r in both.records] == [r["candidate"] for r in alone.records]
    assert both.summary["gain"] == alone.summary["gain"]


def test_a_head_is_judged_by_the_rows_that_it_has_not_seen(fitted):
    """Its gain is that on those rows, beside the original on the same."""
    task, run = fitted
    z, labels = np.asarray(task.valid.features.values), task.valid.labels
    seen = np.arange(600) % 3 == 0
    half = run.head.replace(fitted_on=None).with_fitted_on(
        catwise.joining.source_digests(task.valid.features, labels)[seen]
    )
    with pytest.warns(InSampleWarning, match=r"400 validation rows .*; 200 others fitted"):
        result = select({"base": task.head, "half": half}, task.valid.pair)
    rest = labels.take_rows(np.flatnonzero(~seen))
    gain = AP(half.logits(z[~seen]), rest) - AP(task.head.logits(z[~seen]), rest)
    for record, expected in zip(result.records, gain.tolist(), strict=True):
        scores = record["candidates"]
        assert scores["half"] - scores["base"] == pytest.approx(expected, abs=1e-9)


def test_what_may_have_fitted_a_head_is_said(fitted):
    """Where nothing is known; where a checkpoint kept a part, no row is vouched for."""
    task, run = fitted
    blank = run.head.replace(fitted_on=None)
    found = select({"base": task.head, "blank": blank}, task.valid.pair)
    assert found.summary["judged_by"]["blank"] == "600 validation rows that may have fitted it"
    assert found.notes[-1].endswith("fitted the candidates 'base', 'blank'.")
    digests = catwise.joining.source_digests(task.valid.features, task.valid.labels)
    part = blank.with_fitted_on(digests[:10]).replace(provenance={"fitted_rows": 600})
    with pytest.warns(InSampleWarning):
        found = select({"base": task.head, "part": part}, task.valid.pair)
    assert found.summary["after"] is None
    assert {record["candidates"]["part"] for record in found.records} == {None}


def standardised(logits):
    """(N, C) logits of one head, less their mean, over their standard deviation."""
    logits = logits.double().numpy()
    return (logits - logits.mean(0)) / logits.std(0)


@pytest.mark.parametrize("known", [1.0, 0.4])
@pytest.mark.parametrize("metric", ["average_precision", "log_loss"])
def test_gains_are_taken_on_one_scale(metric, known):
    """Each row by the head fitted without its fold; all rows together, labelled or not."""
    task = make_task(400, 600, 1, 32, 6, known_valid=known, seed=0)
    run = catwise.tune(task.head, task.train.pair, task.valid.pair)
    z, labels, folds = np.asarray(task.valid.features.values), task.valid.labels, run.folds
    result = select({"base": task.head, "tuned": run}, task.valid.pair, metric=metric)
    ranks = metric == "average_precision"
    by_fold = [standardised(h.logits(z)) if ranks else h.logits(z).numpy() for h in folds.heads]
    mixed = np.stack(by_fold)[folds.fold, np.arange(600)]
    score = METRICS[metric].per_category
    gains = (score(mixed, labels) - score(task.head.logits(z), labels)).tolist()
    for record, gain in zip(result.records, gains, strict=True):
        scores = record["candidates"]
        assert scores["tuned"] - scores["base"] == pytest.approx(gain, abs=1e-6)


def test_out_of_fold_logits_are_joined_by_id(fitted):
    """Whatever the order of the rows and of the columns."""
    task, run = fitted
    order = np.random.default_rng(0).permutation(600)
    labels = task.valid.labels.take_rows(order).take_categories([5, 3, 1, 0, 2, 4])
    heads = {"base": task.head, "tuned": run}
    one, other = select(heads, task.valid.pair), select(heads, (task.valid.features, labels))
    for a, b in zip(one.records, other.records, strict=True):
        assert a["candidates"] == pytest.approx(b["candidates"], abs=1e-9)


def test_rows_without_ids_are_joined_by_position():
    """Where all of them fitted the run; fewer of them cannot be joined."""
    task = make_task(300, 200, 1, 16, 4, seed=2)
    z, labels = np.asarray(task.valid.features.values), task.valid.labels
    bare = PartialLabels(labels.codes, categories=labels.categories)
    train = (
        np.asarray(task.train.features.values),
        PartialLabels(task.train.labels.codes, categories=labels.categories),
    )
    run = catwise.tune(task.head, train, (z, bare))
    heads = {"base": task.head, "tuned": run}
    result = select(heads, (z, bare))
    assert result.summary["judged_by"]["tuned"].startswith("out-of-fold logits of 200")
    with pytest.warns(InSampleWarning, match="judged by nothing"):
        part = select(heads, (z[:150], bare.take_rows(range(150))))
    assert part.summary["gain"] is None


def test_new_rows_judge_the_head_beside_the_folds(fitted):
    """Rows of the run by its folds, others by the head itself."""
    task, run = fitted
    z = np.concatenate([task.valid.features.values, task.test.features.values[:300]])
    ids = [*task.valid.features.ids, *task.test.features.ids[:300]]
    codes = np.concatenate([task.valid.labels.codes, task.test.labels.codes[:300]])
    labels = PartialLabels(codes, ids=ids, categories=task.valid.labels.categories)
    result = select({"base": task.head, "tuned": run}, (Features(z, ids=ids), labels))
    told = result.summary["judged_by"]["tuned"]
    assert told == (
        "300 validation rows that it has not seen and out-of-fold logits of 600 validation rows"
    )
    assert result.summary["gain_low"] < mean_gain(result.head, task.head, task.test)
    heads = [*run.folds.heads, run.head]
    fold = np.append(run.folds.fold, np.full(300, len(heads) - 1))
    mixed = np.stack([standardised(one.logits(z)) for one in heads])[fold, np.arange(900)]
    gains = (AP(mixed, labels) - AP(task.head.logits(z), labels)).tolist()
    for record, gain in zip(result.records, gains, strict=True):
        scores = record["candidates"]
        assert scores["tuned"] - scores["base"] == pytest.approx(gain, abs=1e-6)


def test_a_run_as_the_original(fitted):
    """The original too is judged by its folds."""
    task, run = fitted
    result = select({"base": run, "before": task.head}, task.valid.pair)
    assert result.summary["n_kept"] == 6
    assert result.records[0]["candidates"]["before"] < result.records[0]["candidates"]["base"]


@pytest.mark.parametrize("of", ["head", "rows", "one row", "fold heads"])
def test_every_candidate_is_checked(fitted, of):
    """Mixed-up columns of one that is not the original, or of its folds; folds of other rows."""
    task, run = fitted
    head, folds, order = run.head, run.folds, [1, 2, 3, 4, 5, 0]
    said = "valid, candidate 'mixed', out-of-fold logits: columns or features look mismatched"
    if of == "head":
        head = head.replace(weight=head.weight[order], bias=head.bias[order], fitted_on=None)
        folds, said = None, r"valid, candidate 'mixed': columns or features look mismatched"
    elif of in {"rows", "one row"}:
        weight = folds.weight * (np.arange(6) != 2)[:, None]
        ids = np.random.default_rng(0).permutation(folds.ids)
        folds = replace(folds, **({"ids": ids} if of == "rows" else {"weight": weight}))
        said = "valid, candidate 'mixed': its folds look mismatched with the rows or the features"
    else:
        columns = {name: getattr(folds, name)[:, order] for name in ("logits", "weight", "bias")}
        folds = replace(folds, **columns)
    heads = {"base": task.head, "mixed": Run(head, folds)}
    with pytest.raises(MismatchError, match=said):
        select(heads, task.valid.pair)
    assert any("mismatched" in note for note in select(heads, task.valid.pair, force=True).notes)


def test_fold_heads_of_another_shape_are_refused(fitted):
    """Folds of another run beside a head."""
    task, run = fitted
    folds = replace(run.folds, weight=run.folds.weight[..., :-1])
    with pytest.raises(HeadError, match=r"(?s)fold heads .* 31 features, a bias"):
        select({"base": task.head, "mixed": Run(run.head, folds)}, task.valid.pair)


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_row_of_no_fold_does_not_judge(fitted, fold):
    """There is no head that was fitted without it."""
    task, run = fitted
    folds = replace(run.folds, fold=np.where(np.arange(600) < 50, np.int8(fold), run.folds.fold))
    with pytest.warns(InSampleWarning):
        result = select({"base": task.head, "tuned": Run(run.head, folds)}, task.valid.pair)
    told = "out-of-fold logits of 550 validation rows; 50 others fitted or chose it"
    assert result.summary["judged_by"]["tuned"] == told


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_run_of_a_head_of_another_dtype(dtype):
    """The folds are stored in float32, whatever the head is in."""
    task = make_task(300, 200, 1, 16, 4, seed=2)
    weight, bias = task.head.weight.to(dtype), task.head.bias.to(dtype)
    head = task.head.replace(weight=weight, bias=bias)
    run = catwise.tune(head, task.train.pair, task.valid.pair)
    result = select({"base": head, "tuned": run}, task.valid.pair)
    assert result.head.dtype == dtype
    assert result.notes[-2].endswith("out-of-fold logits of 200 validation rows.")


def test_categories_held_at_once_decide_nothing(fitted, monkeypatch):
    """Fold heads count as heads that are held; scores stay."""
    task, run = fitted
    heads = {"base": task.head, "tuned": run}
    whole = select(heads, task.valid.pair)
    monkeypatch.setattr(import_module("catwise.tuning.choice.logits"), "_ENTRIES", 600 * 7 * 2)
    cut = select(heads, task.valid.pair)
    assert (whole.summary["passes"], cut.summary["passes"]) == ({"features": 2}, {"features": 4})
    for a, b in zip(whole.records, cut.records, strict=True):
        assert a["candidates"] == pytest.approx(b["candidates"], abs=1e-9)
        assert a["gain_low"] == pytest.approx(b["gain_low"], abs=1e-9)


@pytest.mark.parametrize("kind", ["array", "tensor", "by category"])
def test_infinite_features_are_refused(fitted, kind):
    """As on the command line, by whatever scores heads."""
    task, _ = fitted
    z = np.array(task.valid.features.values)
    z[7, 2] = np.inf
    if kind == "tensor":
        z = torch.from_numpy(z)
    if kind == "by category":
        z = np.repeat(z[:, None], 6, axis=1)
    pair = z, task.valid.labels
    other = task.head.replace(weight=2 * task.head.weight)
    for run in (
        lambda: catwise.evaluate(task.head, pair),
        lambda: catwise.compare_heads(task.head, other, pair),
        lambda: select({"base": task.head, "other": other}, pair),
    ):
        with pytest.raises(catwise.errors.FeatureError, match="must be finite"):
            run()
