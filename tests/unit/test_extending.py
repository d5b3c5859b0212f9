"""Rows for categories that a head never had."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import catwise
from catwise.errors import CategoryError, HeadError, LabelError, MismatchError
from catwise.features import CategoryFeatures
from catwise.heads import Head
from catwise.labels import PartialLabels
from catwise.metrics.levels import leave_one_out_precision
from catwise.testing import Task, make_task
from catwise.tuning import extend_head, tune
from catwise.tuning.extending import zero_head


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(known=0.5, known_valid=0.7, seed=3)


def named(task: Task, *, own: int = 4) -> tuple[Head, list[str], list[str]]:
    names = list(task.head.categories)
    return task.head.take_categories(names[:own]), names[:own], names[own:]


def pairs(task: Task) -> dict[str, tuple]:
    return {"train": task.train.pair, "valid": task.valid.pair, "test": task.test.pair}


def test_new_rows_are_fitted_and_old_ones_stay(task: Task) -> None:
    """The head has its own rows, bit for bit, then rows that are of use on test images."""
    head, own, new = named(task)
    head = head.replace(fitted_on=[7], provenance={"by": "me"})
    result = extend_head(head, **pairs(task))
    assert result.head.categories == (*own, *new)
    assert torch.equal(result.head.weight[:4], head.weight)
    assert torch.equal(result.head.bias[:4], head.bias)
    assert result.base is head
    assert [(one["category"], one["index"]) for one in result.records] == [(new[0], 4), (new[1], 5)]
    assert all(one["gap_auroc"] is None for one in result.records)
    assert result.gap is None
    assert result.test is not None
    for one in result.records:
        assert one["test_before"] < 0.4
        assert one["test_after"] > 0.6
        assert abs(one["after"] - one["test_after"]) < 0.2  # honest: of rows that did not fit
    assert 7 in result.head.fitted_on.tolist()
    assert result.head.fitted_on.size == 1 + 400 + 200
    assert result.head.provenance["by"] == "me"
    assert result.head.provenance["added"][0]["categories"] == new


def test_it_is_tune_from_zero(task: Task) -> None:
    """The very numbers of `tune` from a head of zeros, without the other categories."""
    head, _, new = named(task)
    result = extend_head(head, task.train.pair, task.valid.pair, metric="auroc", seed=4)
    counts = task.valid.labels.take_categories(new).counts()
    bias = np.log((counts.positive + 0.5) / (counts.negative + 0.5)).astype(np.float32)
    zero = Head(np.zeros((2, 32), np.float32), bias, categories=new)
    train, valid = (
        (part.features, part.labels.take_categories(new)) for part in (task.train, task.valid)
    )
    direct = tune(zero, train, valid, metric="auroc", seed=4)
    assert torch.equal(result.head.weight[4:], direct.head.weight)
    assert torch.equal(result.head.bias[4:], direct.head.bias)
    assert np.array_equal(result.folds.logits, direct.folds.logits)


def test_the_excess_of_few_positives_is_taken_off() -> None:
    """What `tune` from zero reports, less what average precision is too high by on few rows."""
    task = make_task(n_valid=150, known=0.2, known_valid=0.4, prevalence=(0.1, 0.2), seed=1)
    head, _, new = named(task, own=1)
    result = extend_head(head, task.train.pair, task.valid.pair)
    labels = task.valid.labels.take_categories(new)
    train = task.train.features, task.train.labels.take_categories(new)
    zero = zero_head([labels], torch.zeros(5, 32))
    direct = tune(zero, train, (task.valid.features, labels))
    for c, (one, plain) in enumerate(zip(result.records, direct.records, strict=True)):
        known = labels.codes[:, c] >= 0
        scores, positive = result.folds.logits[known, c], labels.codes[known, c] == 1
        excess = average_precision_score(positive, scores) - leave_one_out_precision(
            scores, positive
        )
        assert positive.sum() < 25
        assert excess > 0.001
        assert one["after"] == pytest.approx(plain["after"] - excess)
        assert one["gain"] == pytest.approx(one["after"] - one["before"])
        assert one["gain_high"] - one["gain_low"] == pytest.approx(
            plain["gain_high"] - plain["gain_low"]
        )
    means = [np.mean([one[k] for one in result.records]) for k in ("after", "gain")]
    assert means == pytest.approx([result.summary[k] for k in ("after", "gain")])
    ranks = extend_head(head, task.train.pair, task.valid.pair, metric="auroc")
    same = tune(zero, train, (task.valid.features, labels), metric="auroc")
    assert [one["after"] for one in ranks.records] == [one["after"] for one in same.records]


def test_where_rows_start_decides_nothing() -> None:
    """The bias of the zeros is what a kept row says; what is fitted is the same from any."""
    task = make_task(n_valid=1003, known=0.3, seed=2)
    labels = [part.labels for part in (task.valid, task.train)]
    start = zero_head(labels, torch.zeros(6, 32))
    pairs = task.train.pair, task.valid.pair
    found = [tune(one, *pairs).head for one in (start, start.replace(bias=torch.zeros(6)))]
    first, second = (head.logits(task.test.features) for head in found)
    assert float((first - second).abs().max()) < 1e-3


def test_decisions_from_it(task: Task, tmp_path) -> None:
    """Out-of-fold logits of the new rows calibrate and give thresholds; the run is written."""
    head, own, new = named(task)
    result = extend_head(head, task.train.pair, task.valid.pair)
    labels = task.valid.labels.take_categories(new)
    calibration = catwise.calibrate(result, labels)
    assert [one.category for one in calibration.categories] == new
    thresholds = catwise.threshold(result, labels, rule="f1")
    assert [one["category"] for one in thresholds.records()] == new
    paths = result.save(tmp_path / "run")
    again = catwise.load_head(paths["head.safetensors"])
    assert again.digest == result.head.digest
    assert "category" in paths["report.html"].read_text()
    twice = extend_head(again.drop_categories([own[0]]), task.train.pair, task.valid.pair)
    assert twice.head.categories == (*own[1:], *new, own[0])
    assert [one["categories"] for one in twice.head.provenance["added"]] == [new, [own[0]]]


def test_heads_of_other_kinds(task: Task) -> None:
    """Half precision stays, no bias is invented, one new category is enough."""
    head, _, new = named(task, own=5)
    half = head.replace(weight=head.weight.half(), bias=head.bias.half())
    result = extend_head(half, task.train.pair, task.valid.pair)
    assert result.head.dtype == torch.float16
    assert len(result.records) == len(new) == 1
    plain = extend_head(head.replace(bias=None), task.train.pair, task.valid.pair)
    assert plain.head.bias is None
    assert plain.records[0]["status"] == "replaced"


def test_a_category_that_cannot_be_fitted(task: Task) -> None:
    """Without a positive its row says how rare it is, to every image, and a note says so."""
    head, _, new = named(task)
    parts = []
    for part in (task.train, task.valid):
        codes = part.labels.codes.copy()
        codes[:, 4] = np.where(codes[:, 4] == 1, 0, codes[:, 4])
        parts.append((part.features, PartialLabels(codes, part.labels.ids, part.labels.categories)))
    result = extend_head(head, *parts)
    assert [one["status"] for one in result.records] == ["skipped", "replaced"]
    assert any("1 new categories were not fitted" in note and new[0] in note
               for note in result.notes)  # fmt: skip
    assert not result.head.weight[4].any()
    n = int((parts[1][1].codes[:, 4] == 0).sum())  # of the validation rows, which judge
    assert float(result.head.bias[4]) == pytest.approx(np.log(0.5 / (n + 0.5)), rel=1e-5)


def test_a_category_that_only_training_rows_know(task: Task) -> None:
    """Its row gives the log odds of what is known there."""
    head, *_ = named(task)
    codes = task.valid.labels.codes.copy()
    codes[:, 5] = -1
    valid = task.valid.features, PartialLabels(codes, task.valid.labels.ids, task.head.categories)
    result = extend_head(head, task.train.pair, valid)
    counts = task.train.labels.counts()
    odds = (counts.positive[5] + 0.5) / (counts.negative[5] + 0.5)
    assert result.records[1]["status"] == "skipped"
    assert float(result.head.bias[5]) == pytest.approx(np.log(odds), rel=1e-5)


def test_without_validation_rows(task: Task) -> None:
    """The labels are cross-fitted; what is said does not claim that the backbone saw the images."""
    head, *_ = named(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = extend_head(head, task.valid.pair, test=task.test.pair)
    assert any(
        note.startswith("No validation data: the labels that fitted") for note in result.notes
    )
    assert not any("has memorised" in note for note in result.notes)
    assert all(one["test_after"] > 0.5 for one in result.records)


def test_what_is_refused(task: Task) -> None:
    """Nothing new, no names, other features, raw labels, features of each category."""
    head, own, _ = named(task)
    few = task.train.labels.take_categories(own)
    with pytest.raises(CategoryError, match="no category that the head lacks"):
        extend_head(head, (task.train.features, few))
    nameless = PartialLabels(task.train.labels.codes, task.train.labels.ids)
    with pytest.raises(CategoryError, match="have no names"):
        extend_head(head, (task.train.features, nameless))
    with pytest.raises(CategoryError, match="have no names"):
        extend_head(task.head.replace(categories=None), task.train.pair)
    with pytest.raises(CategoryError, match="lack"):
        extend_head(
            head, task.train.pair, (task.valid.features, task.valid.labels.take_categories(own))
        )
    with pytest.raises(LabelError):
        extend_head(head, (task.train.features, np.zeros((400, 6))))
    many = CategoryFeatures(np.zeros((400, 4, 32), np.float32))
    with pytest.raises(HeadError, match="features of their own"):
        extend_head(head, (many, task.train.labels))


def test_mismatched_test_rows_are_still_seen(task: Task) -> None:
    """Rows of zeros stop nothing; a head with ranks of its own is still checked by `tune`."""
    head = task.head
    turned = task.test.labels.take_categories([1, 2, 3, 4, 5, 0])
    wrong = PartialLabels(turned.codes, turned.ids, head.categories)
    with pytest.raises(MismatchError):
        tune(head, task.train.pair, task.valid.pair, test=(task.test.features, wrong))
