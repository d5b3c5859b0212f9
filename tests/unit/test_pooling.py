"""Scores of studies and patients from those of their images."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from catwise import Head, PartialLabels, compare_heads, evaluate
from catwise.errors import ConfigError, IdError, ShapeError
from catwise.metrics import auroc, average_precision
from catwise.metrics.pooling import Pooling, RunningPool


def case(n_studies: int = 150, seed: int = 0):
    """Studies of one to three views, two studies a patient, one label a study; shuffled."""
    rng = np.random.default_rng(seed)
    views = rng.integers(1, 4, n_studies)
    study = np.repeat(np.arange(n_studies), views)
    order = rng.permutation(study.size)
    truth = rng.random((n_studies, 3)) < 0.3
    codes = truth[study].astype(np.int8)
    features = rng.normal(size=(study.size, 5)).astype(np.float32)
    features[:, :3] += codes
    number = np.concatenate([np.arange(k) for k in views])
    ids = np.array(
        [f"test/patient{s // 2}/study{s}/view{v}.jpg" for s, v in zip(study, number, strict=True)]
    )
    names = ["a", "b", "c"]
    labels = PartialLabels(
        codes[order], ids[order], names, [f"patient{s // 2}" for s in study[order]]
    )
    head = Head(np.eye(3, 5, dtype=np.float32), categories=names)
    return head, features[order], labels, study[order], truth


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_studies_are_scored_as_a_plain_loop_does(pool: str) -> None:
    """One score and one label a study, with the metrics and intervals of such a table."""
    head, features, labels, study, truth = case()
    found = evaluate(head, (features, labels), by="study", pool=pool)
    p = 1 / (1 + np.exp(-head.logits(features).double().numpy()))
    how = np.mean if pool == "mean" else np.max
    pooled = np.array([how(p[study == s], axis=0) for s in range(len(truth))])
    np.testing.assert_allclose(
        found.values["average_precision"], average_precision(pooled, truth.astype(np.int8)).numpy()
    )
    np.testing.assert_allclose(found.values["auroc"], auroc(pooled, truth.astype(np.int8)).numpy())
    assert found.n_rows == len(truth)
    assert found.n_positive.tolist() == truth.sum(0).tolist()
    assert any(f"scores are of {len(truth)} studies" in note for note in found.notes)
    patients = PartialLabels(truth.astype(np.int8), groups=[str(s // 2) for s in range(len(truth))])
    logits = np.log(pooled / (1 - pooled))
    wanted = evaluate(Head(np.eye(3, dtype=np.float32)), (logits, patients))
    np.testing.assert_allclose(
        found.intervals["auroc"].per_category, wanted.intervals["auroc"].per_category, rtol=1e-4
    )


def test_heads_are_compared_by_study() -> None:
    """Both heads' images are pooled; the difference is of studies."""
    head, features, labels, _, truth = case()
    worse = head.replace(weight=head.weight + 0.7)
    found = compare_heads(worse, head, (features, labels), by="study", pool="max")
    each = [evaluate(one, (features, labels), by="study", pool="max") for one in (worse, head)]
    comparison = found.comparisons["auroc"]
    assert comparison.n_rows == len(truth)
    assert comparison.mean_before == pytest.approx(each[0].means["auroc"]["macro"])
    assert comparison.mean_after == pytest.approx(each[1].means["auroc"]["macro"])


def test_every_way_to_name_the_groups_is_the_same() -> None:
    """By folder, by a mapping of ids, by an array; a patient is a group of the labels."""
    head, features, labels, study, truth = case()
    by_id = {i: f"s{s}" for i, s in zip(labels.ids.tolist(), study, strict=True)}
    values = [
        evaluate(head, (features, labels), by=by, pool="max").values["auroc"]
        for by in ("study", by_id, study)
    ]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])
    patients = evaluate(head, (features, labels), by="patient")
    assert patients.n_rows == len(truth) // 2
    either = truth.reshape(-1, 2, 3).any(1)
    assert patients.n_positive.tolist() == either.sum(0).tolist()
    one = evaluate(head, (features, labels), by="image")
    assert one.n_rows == len(labels)
    np.testing.assert_array_equal(
        one.values["auroc"], evaluate(head, (features, labels)).values["auroc"]
    )


def test_labels_of_a_group() -> None:
    """Positive where one image is; negative where all are; else uncertain, or unknown."""
    groups = [
        ([1, 0], 1), ([1, -1], 1), ([1, -2], 1), ([0, 0], 0), ([0, -1], -1), ([0, -2], -2),
        ([-1, -1], -1), ([-1, -2], -2), ([0], 0),
    ]  # fmt: skip
    codes = [code for images, _ in groups for code in images]
    names = [str(at) for at, (images, _) in enumerate(groups) for _ in images]
    for storage in ("dense", "columns"):
        labels = PartialLabels(np.array(codes)[:, None], storage=storage)
        pooling = Pooling.of(names, labels, "max")
        assert pooling is not None
        assert pooling.labels(labels).codes[:, 0].tolist() == [wanted for _, wanted in groups]


@pytest.mark.parametrize("size", [1.0, 30.0, 500.0])
def test_the_mean_is_exact_far_out(size: float) -> None:
    """Logits whose probabilities round to 0 or 1 stay apart, and one image keeps its logit."""
    logits = torch.tensor([[size], [size + 2], [-size], [-size - 1], [size + 7]]).double()
    labels = PartialLabels(np.zeros((5, 1), np.int8))
    pooling = Pooling.of(np.array(["a", "a", "b", "b", "c"]), labels, "mean")
    assert pooling is not None
    found = pooling.logits(logits)[:, 0]
    with localcontext() as context:
        context.prec = 600
        for at, rows in enumerate(([0, 1], [2, 3], [4])):
            p = sum(1 / (1 + (-Decimal(logits[i, 0].item())).exp()) for i in rows) / len(rows)
            assert float(found[at]) == pytest.approx(float((p / (1 - p)).ln()), rel=1e-12)


def test_what_cannot_be() -> None:
    """One clear error each."""
    head, features, labels, study, _ = case(30)
    data = (features, labels)
    with pytest.raises(ConfigError, match="did you mean 'study'"):
        evaluate(head, data, by="studies")
    with pytest.raises(ConfigError, match="pool cannot be 'median'"):
        evaluate(head, data, by="study", pool="median")
    with pytest.raises(ShapeError, match="by does not fit"):
        evaluate(head, data, by=study[:3])
    with pytest.raises(IdError, match="images have no group"):
        evaluate(head, data, by={"x": "y"})
    plain = PartialLabels(labels.codes, categories=labels.categories)
    with pytest.raises(IdError, match="do not tell patients"):
        evaluate(head, (features, plain), by="patient")
    with pytest.raises(IdError, match="do not tell studies"):
        evaluate(head, (features, plain), by="study")
    flat = PartialLabels(labels.codes, [f"{i}.jpg" for i in range(len(labels))], labels.categories)
    with pytest.raises(ConfigError, match="ids do not tell studies"):
        evaluate(head, (features, flat), by="study")
    mixed = PartialLabels(
        labels.codes, labels.ids, labels.categories, [str(i) for i in range(len(labels))]
    )
    with pytest.raises(IdError, match="of two groups"):
        evaluate(head, (features, mixed), by="study")


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("step", [1, 7, 400])
def test_rows_a_few_at_a_time(pool: str, step: int) -> None:
    """A running pool gives what all rows at once give; what is taken is forgotten."""
    head, features, labels, _, _ = case()
    whole = Pooling.of("study", labels, pool)
    assert whole is not None
    logits = 9 * head.logits(features)
    running = RunningPool(pool)
    taken, done = [], 0
    last = np.zeros(whole.names.size, dtype=int)
    last[whole.of_row] = np.arange(whole.of_row.size)
    for start in range(0, len(logits), step):
        stop = min(start + step, len(logits))
        running.add(torch.from_numpy(whole.of_row[start:stop] - done), logits[start:stop])
        while done < last.size and last[done] < stop:
            taken.append(running.take(1))
            done += 1
    assert running.n_groups == 0
    assert done == whole.names.size
    torch.testing.assert_close(torch.cat(taken), whole.logits(logits), rtol=1e-13, atol=1e-13)
    with pytest.raises(ValueError, match="1 groups of 0"):
        running.take(1)


def test_one_image_is_itself() -> None:
    """The logits of a group of one image are that image's, to the last bit, however extreme."""
    logits = torch.tensor([[0.1, -800.0], [37.123, 5e-9]], dtype=torch.float64)
    for pool in ("mean", "max"):
        one = Pooling(np.array(["a", "b"]), np.arange(2), pool)
        assert torch.equal(one.logits(logits), logits)


def test_ids_alone_tell_groups() -> None:
    """Folders and mappings do; patients have to be named, and so has each id."""
    ids = np.array(["p/s1/a", "p/s2/a", "p/s1/b"])
    found = Pooling.of_ids("study", ids, "mean")
    assert found is not None
    assert found.names.tolist() == ["p/s1", "p/s2"]
    assert found.of_row.tolist() == [0, 1, 0]
    assert Pooling.of_ids("image", ids, "mean") is None
    with pytest.raises(ConfigError, match="do not tell patients"):
        Pooling.of_ids("patient", ids, "mean")
    with pytest.raises(IdError, match="1 images have no group"):
        Pooling.of_ids({"p/s1/a": "x", "p/s2/a": "y"}, ids, "mean")
    with pytest.raises(ConfigError, match="mapping from ids"):
        Pooling.of_ids(np.arange(3), ids, "mean")  # type: ignore[arg-type]
