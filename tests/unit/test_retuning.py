"""Chosen categories of a run, tuned again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import catwise
from catwise.errors import CategoryError, ConfigError, IdError, MismatchError
from catwise.features import CategoryFeatures
from catwise.labels import LabelPolicy, PartialLabels
from catwise.testing import Task, make_task
from tuning_case import QUICK, SMALL, with_codes

ALL = slice(None)


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(300, 200, 200, 16, 6, known=0.5, known_valid=0.8, seed=3)


@pytest.fixture(scope="module")
def run(task: Task) -> catwise.TuneResult:
    return catwise.tune(task.head, task.train.pair, task.valid.pair)


def matrix(split) -> np.ndarray:
    """(n, D) features."""
    return np.array(split.features.block(0, split.labels.n_rows))


def flipped(split, column: int, n: int = 12):
    """The split with the first known labels of a category turned round."""
    codes = split.labels.codes.copy()
    rows = np.flatnonzero(codes[:, column] >= 0)[:n]
    codes[rows, column] = 1 - codes[rows, column]
    return with_codes(split, codes)


def same_but(one: catwise.TuneResult, other: catwise.TuneResult, changed: list[int]) -> None:
    """All that is of other categories is the same, bit for bit."""
    rest = [c for c in range(len(one.records)) if c not in changed]
    assert [one.records[c] for c in rest] == [other.records[c] for c in rest]
    assert torch.equal(one.head.weight[rest], other.head.weight[rest])
    assert torch.equal(one.head.bias[rest], other.head.bias[rest])
    assert np.array_equal(one.folds.fold, other.folds.fold)
    for name, at in (("logits", (ALL, rest)), ("weight", (ALL, rest)), ("bias", (ALL, rest))):
        assert np.array_equal(getattr(one.folds, name)[at], getattr(other.folds, name)[at])


def close(one: catwise.TuneResult, other: catwise.TuneResult, at: list[int]) -> None:
    """Categories are equal to rounding: heads, fold heads, logits and records."""
    torch.testing.assert_close(one.head.weight[at], other.head.weight[at], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(one.head.bias[at], other.head.bias[at], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(one.folds.logits[:, at], other.folds.logits[:, at], atol=5e-3)
    np.testing.assert_allclose(one.folds.weight[:, at], other.folds.weight[:, at], atol=5e-3)
    for c in at:
        mine, theirs = one.records[c], other.records[c]
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            if isinstance(value, float):
                assert mine[key] == pytest.approx(value, abs=1e-3), key
            else:
                assert mine[key] == value, key


@pytest.mark.parametrize("metric", ["average_precision", "auroc", "log_loss"])
def test_unchanged_labels_give_the_run_again(task: Task, metric: str) -> None:
    """Whatever is chosen: what is held, and the rest fitted again, make the run's numbers."""
    run = catwise.tune(task.head, task.train.pair, task.valid.pair, metric=metric, seed=2)
    names = run.shared.categories
    for at in ([4], [1, 3], list(range(6))):
        new = catwise.retune(
            run, task.train.pair, task.valid.pair, categories=[names[c] for c in at]
        )
        same_but(new, run, at)
        close(new, run, at)
        assert new.summary["gain"] == pytest.approx(run.summary["gain"], abs=1e-3)
        assert new.summary["choice"] == run.summary["choice"]
        assert new.summary["gain_low"] is None
        assert new.config["retuned"] == [names[c] for c in at]
        assert any("Held at the run's values" in note for note in new.notes)
    assert new.base is run.base
    assert np.array_equal(new.head.fitted_on, run.head.fitted_on)


def test_a_changed_label_changes_its_category(task: Task, run) -> None:
    """And that as if this category alone had had these labels in the run, but for what is held."""
    name = run.shared.categories[2]
    train, valid = flipped(task.train, 2), flipped(task.valid, 2)
    new = catwise.retune(run, train, valid, categories=[name])
    same_but(new, run, [2])
    assert new.records[2]["n_positive_valid"] != run.records[2]["n_positive_valid"]
    assert float((new.head.weight[2] - run.head.weight[2]).norm()) > 0.01
    assert not np.array_equal(new.folds.logits[:, 2], run.folds.logits[:, 2])
    # a run that holds nothing chose with a little other shared values: near, not equal
    anew = catwise.tune(task.head, train, valid)
    near = torch.nn.functional.cosine_similarity(new.head.weight[2], anew.head.weight[2], dim=0)
    assert float(near) > 0.98
    assert new.records[2]["after"] == pytest.approx(anew.records[2]["after"], abs=0.03)
    # and back: with the first labels the first run is there again
    back = catwise.retune(new, task.train.pair, task.valid.pair, categories=[name])
    close(back, run, [2])
    same_but(back, run, [2])


def test_labels_of_others_are_not_looked_at(task: Task, run) -> None:
    """They stay as in the run, and a note says that they changed."""
    names = run.shared.categories
    valid = flipped(task.valid, 5, n=1)
    new = catwise.retune(run, task.train.pair, valid, categories=[names[0]])
    same_but(new, run, [0])
    close(new, run, [0])
    assert any("1 other categories changed" in note and names[5] in note for note in new.notes)


def test_rows_are_read_once(task: Task, run) -> None:
    """With rows read before the same numbers come, and no feature is read again."""
    rows = catwise.read_retune_rows(run, task.train.pair, task.valid.pair)
    name, valid = run.shared.categories[1], flipped(task.valid, 1)
    one = catwise.retune(run, task.train.pair, valid, categories=[name])
    two = catwise.retune(run, task.train.pair, valid, categories=name, rows=rows)
    assert torch.equal(one.head.weight, two.head.weight)
    assert np.array_equal(one.folds.logits, two.folds.logits)
    assert one.records == two.records
    features = matrix(task.valid)
    with pytest.raises(ConfigError, match="not those that `rows` were read from"):
        catwise.retune(run, task.train.pair, (features, valid[1]), categories=[name], rows=rows)
    ids = [f"x{i}" for i in range(200)]
    other = PartialLabels(valid[1].codes, ids, valid[1].categories)
    with pytest.raises(IdError, match="other ids than `rows`"):
        catwise.retune(run, task.train.pair, (valid[0], other), categories=[name], rows=rows)


@pytest.mark.parametrize("policy", [None, LabelPolicy(uncertain=(0.6, 0.9))])
def test_policies_groups_and_custom_options(task: Task, policy) -> None:
    """Held as well: the label policy, the preset's options, groups and the seed."""
    codes = task.train.labels.codes.copy()
    codes[::7] = -2  # uncertain
    groups = [f"g{i // 2}" for i in range(200)]
    labels = task.valid.labels
    pairs = (
        (task.train.features, PartialLabels(codes, categories=labels.categories)),
        (task.valid.features, PartialLabels(labels.codes, None, labels.categories, groups)),
    )
    run = catwise.tune(task.head, *pairs, policy=policy, config=SMALL, seed=5)
    new = catwise.retune(run, *pairs, categories=[labels.categories[3]])
    same_but(new, run, [3])
    close(new, run, [3])
    assert len(new.folds.heads) == 3


def test_without_bias_and_without_validation(task: Task) -> None:
    """Heads without a bias, and runs that cross-fitted the training labels."""
    head = task.head.replace(bias=None)
    run = catwise.tune(head, task.train.pair, task.valid.pair)
    new = catwise.retune(run, task.train.pair, task.valid.pair, categories=[head.categories[0]])
    torch.testing.assert_close(new.head.weight, run.head.weight, rtol=2e-3, atol=2e-3)
    with pytest.warns(catwise.InSampleWarning):
        alone = catwise.tune(task.head, task.train.pair)
    new = catwise.retune(alone, task.train.pair, categories=[head.categories[1]])
    same_but(new, alone, [1])
    close(new, alone, [1])


def test_category_specific_features(task: Task) -> None:
    """Each category has features, and so coordinates, of its own."""
    rng = np.random.default_rng(0)
    turned = [np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(6)]

    def own(split):
        z = np.stack([matrix(split) @ q for q in turned], 1).astype(np.float32)
        return CategoryFeatures(z), split.labels

    weight = np.stack([w @ q for w, q in zip(task.head.weight.numpy(), turned, strict=True)])
    head = catwise.Head(weight, task.head.bias, categories=task.head.categories)
    run = catwise.tune(head, own(task.train), own(task.valid))
    names = [head.categories[c] for c in (1, 4)]
    new = catwise.retune(run, own(task.train), own(task.valid), categories=names)
    same_but(new, run, [1, 4])
    close(new, run, [1, 4])


def test_test_rows_score_the_new_head(task: Task) -> None:
    """They are compared again where they are given; else no score of the old head is left."""
    pairs = task.train.pair, task.valid.pair
    run = catwise.tune(task.head, *pairs, test=task.test.pair)
    names = [run.shared.categories[0]]
    new = catwise.retune(
        run, pairs[0], flipped(task.valid, 0), categories=names, test=task.test.pair
    )
    same_but(new, run, [0])
    assert new.records[0]["test_after"] != run.records[0]["test_after"]
    assert new.test is not None
    without = catwise.retune(run, *pairs, categories=names)
    assert without.test is None
    assert without.evaluation is None
    assert "test_after" not in without.records[1]
    assert any("No test rows were given" in note for note in without.notes)


def test_it_is_saved_as_a_run(task: Task, run, tmp_path) -> None:
    """The folder of a run, from which classifiers and decisions read."""
    new = catwise.retune(
        run, task.train.pair, task.valid.pair, categories=[run.shared.categories[0]]
    )
    paths = new.save(tmp_path / "run")
    assert torch.equal(catwise.load_head(paths["head.safetensors"]).weight, new.head.weight)
    assert "Tuned again" in paths["report.html"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options", [{"preset": "paper", "config": QUICK}, {"validation": "select"}]
)
def test_other_results_are_refused(task: Task, options) -> None:
    """What shares nothing that is held cannot be taken up."""
    run = catwise.tune(task.head, task.train.pair, task.valid.pair, **options)
    assert run.shared is None
    with pytest.raises(ConfigError, match="cannot be tuned again") as error:
        catwise.retune(run, task.train.pair, task.valid.pair, categories=["0"])
    assert "tune all categories again" in str(error.value)


def test_extended_and_other_values_are_refused(task: Task) -> None:
    """An extension's labels are of new categories alone."""
    names = list(task.head.categories)
    head = task.head.take_categories(names[:4])
    extended = catwise.extend_head(head, task.train.pair, task.valid.pair)
    for one in (extended, None, head):
        with pytest.raises(ConfigError, match="cannot be tuned again"):
            catwise.retune(one, task.train.pair, task.valid.pair, categories=[names[0]])


def test_wrong_inputs_are_refused(task: Task, run) -> None:
    """Rows, features, columns and names that are not the run's."""
    train, valid = task.train.pair, task.valid.pair
    name = run.shared.categories[0]
    with pytest.raises(CategoryError, match="no category was named"):
        catwise.retune(run, train, valid, categories=[])
    with pytest.raises(CategoryError):
        catwise.retune(run, train, valid, categories=["nonesuch"])
    with pytest.raises(CategoryError):
        catwise.retune(run, train, valid, categories=[name, name])
    with pytest.raises(IdError, match="not the rows of the run"):
        catwise.retune(run, train, categories=[name])
    part = matrix(task.valid)[:150], task.valid.labels.take_rows(range(150))
    with pytest.raises(IdError, match="150 rows, not 200"):
        catwise.retune(run, train, part, categories=[name])
    order = np.random.default_rng(0).permutation(200)
    mixed = matrix(task.valid)[order], task.valid.labels.take_rows(order)
    with pytest.raises(IdError, match="not those of the run, in its order"):
        catwise.retune(run, train, mixed, categories=[name])
    few = [(features, labels.take_categories(range(5))) for features, labels in (train, valid)]
    with pytest.raises(CategoryError, match="not the categories of the run"):
        catwise.retune(run, *few, categories=[name])


def test_other_features_with_the_same_ids_are_refused(task: Task) -> None:
    """Ids alone do not prove that the features are those of the run."""

    def with_ids(split, prefix: str, factor: float = 1.0):
        ids = [f"{prefix}{i}" for i in range(split.labels.n_rows)]
        labels = PartialLabels(split.labels.codes, ids, split.labels.categories)
        return matrix(split) * factor, labels

    pairs = with_ids(task.train, "t"), with_ids(task.valid, "v")
    run = catwise.tune(task.head, *pairs)
    name = run.shared.categories[0]
    with pytest.raises(MismatchError, match="not the features"):
        catwise.retune(run, pairs[0], with_ids(task.valid, "v", 1.5), categories=[name])
    again = catwise.retune(run, *pairs, categories=[name])
    same_but(again, run, [0])
