"""Runs brought up to date: only categories whose labels changed are tuned again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import catwise
from catwise._safetensors import read_layout
from catwise.errors import ConfigError, IdError, MismatchError, OutputError
from catwise.features import CategoryFeatures
from catwise.labels import LabelPolicy, PartialLabels
from catwise.testing import Task, make_task
from catwise.tuning import TuneResult
from catwise.tuning.account.shared_file import load_shared, save_shared
from catwise.tuning.updating import check_same_options
from tuning_case import SMALL, with_codes


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(300, 200, 200, 16, 6, known=0.5, known_valid=0.8, seed=3)


@pytest.fixture(scope="module")
def saved(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = catwise.tune(task.head, task.train.pair, task.valid.pair, test=task.test.pair)
    run.save(folder)
    return folder


def altered(split, *columns: int, kind: str = "changed", n: int = 6):
    """The split with n labels of some categories changed, added or removed."""
    codes = split.labels.codes.copy()
    for column in columns:
        rows = np.flatnonzero(codes[:, column] == -1 if kind == "added" else codes[:, column] >= 0)
        new = {"changed": 1 - codes[rows[:n], column], "added": 1, "removed": -1}[kind]
        codes[rows[:n], column] = new
    return with_codes(split, codes)


def same(one: TuneResult, other: TuneResult) -> None:
    """Heads, fold heads, logits and records are equal, bit for bit."""
    assert torch.equal(one.head.weight, other.head.weight)
    assert torch.equal(one.head.bias, other.head.bias)
    assert np.array_equal(one.folds.logits, other.folds.logits)
    assert np.array_equal(one.folds.weight, other.folds.weight)
    assert one.records == other.records


@pytest.mark.parametrize("kind", ["added", "changed", "removed"])
def test_only_what_changed_is_tuned(task: Task, saved: Path, kind: str) -> None:
    """From the folder as from memory; other categories keep their bits."""
    run = TuneResult.load(saved, task.head)
    valid = altered(task.valid, 2, kind=kind)
    train = altered(task.train, 4, kind=kind, n=3)
    done = catwise.update_run(run, train, valid, test=task.test.pair)
    assert done.categories == tuple(task.head.categories[c] for c in (2, 4))
    counts = {"added": 0, "changed": 0, "removed": 0, kind: 9}
    assert done.done() == {
        **counts,
        "categories": list(done.categories),
        "share_since_all": round(9 / done.changes.n_labels, 6),
    }
    rest = [0, 1, 3, 5]
    assert torch.equal(done.result.head.weight[rest], run.head.weight[rest])
    assert [done.result.records[c] for c in rest] == [run.records[c] for c in rest]
    assert not torch.equal(done.result.head.weight[2], run.head.weight[2])
    whole = catwise.tune(task.head, task.train.pair, task.valid.pair, test=task.test.pair)
    same(catwise.update_run(whole, train, valid, test=task.test.pair).result, done.result)


def test_it_is_the_run_of_all_categories_with_what_is_held(task: Task, saved: Path) -> None:
    """Bit for bit: whichever categories are tuned with one, and in however many updates."""
    run = TuneResult.load(saved, task.head)
    train, valid = task.train.pair, altered(task.valid, 1, 3)
    once = catwise.update_run(run, train, valid).result
    every = [
        catwise.retune(run, train, valid, categories=[name]).head for name in task.head.categories
    ]
    for c in (1, 3):
        assert torch.equal(once.head.weight[c], every[c].weight[c])
    half = catwise.update_run(run, train, altered(task.valid, 1)).result
    same(catwise.update_run(half, train, valid).result, once)
    more = catwise.update_run(run, train, altered(task.valid, 0, 1, 3, 5)).result
    assert torch.equal(more.head.weight[[1, 3]], once.head.weight[[1, 3]])
    back = catwise.update_run(once, train, task.valid.pair).result
    torch.testing.assert_close(back.head.weight, run.head.weight, rtol=2e-3, atol=2e-3)


def test_saved_and_updated_again(task: Task, saved: Path, tmp_path: Path) -> None:
    """What an update leaves can be brought up to date as what `tune` leaves can."""
    run = TuneResult.load(saved, task.head)
    valid = altered(task.valid, 1)
    one = catwise.update_run(run, task.train.pair, valid, test=task.test.pair).result
    one.save(tmp_path / "one")
    loaded = TuneResult.load(tmp_path / "one", task.head)
    same(loaded, one)
    assert loaded.evaluation == one.evaluation
    again = catwise.update_run(loaded, task.train.pair, valid, test=task.test.pair)
    assert again.is_unchanged
    assert again.result is loaded
    assert int(again.since.each.sum()) == 6
    both = altered(task.valid, 1, 5)
    same(
        catwise.update_run(loaded, task.train.pair, both, test=task.test.pair).result,
        catwise.update_run(one, task.train.pair, both, test=task.test.pair).result,
    )


def test_other_test_rows_score_again(task: Task, saved: Path) -> None:
    """Where their labels changed the head stays, and has other scores."""
    run = TuneResult.load(saved, task.head)
    test = altered(task.test, 0, n=20)
    done = catwise.update_run(run, task.train.pair, task.valid.pair, test=test)
    assert (done.categories, done.is_scored, done.is_unchanged) == ((), True, False)
    assert torch.equal(done.result.head.weight, run.head.weight)
    assert done.result.records[0]["test_after"] != run.records[0]["test_after"]
    assert done.result.records[1] == run.records[1]


def test_many_changes_advise_a_new_run(task: Task, saved: Path) -> None:
    """Counted from when all categories were tuned together, over all updates."""
    run = TuneResult.load(saved, task.head)
    few = catwise.update_run(run, task.train.pair, altered(task.valid, 0, 1, n=60))
    assert few.since.share < 0.1
    assert not any("tune all of them" in note for note in few.result.notes)
    many = catwise.update_run(few.result, task.train.pair, altered(task.valid, 0, 1, 2, n=90))
    assert many.changes.share < 0.1 < many.since.share
    assert any("of the labels have changed since" in note for note in many.result.notes)


def test_category_specific_features_and_policies(task: Task, tmp_path: Path) -> None:
    """Coordinates of each category, policies and the preset's options come back as they were."""
    z = np.stack([np.array(task.valid.features.block(0, 200)) * (c + 1) for c in range(6)], 1)
    t = np.stack([np.array(task.train.features.block(0, 300)) * (c + 1) for c in range(6)], 1)
    head = task.head.replace(
        weight=task.head.weight / torch.arange(1, 7)[:, None].to(task.head.weight)
    )
    policy = LabelPolicy(uncertain=(0.6, 0.9))
    pairs = (
        (CategoryFeatures(t.astype(np.float32)), task.train.labels),
        (CategoryFeatures(z.astype(np.float32)), task.valid.labels),
    )
    run = catwise.tune(head, *pairs, policy=policy, config=SMALL)
    run.save(tmp_path / "run")
    loaded = TuneResult.load(tmp_path / "run", head)
    assert (loaded.shared.policy, loaded.shared.config) == (policy, SMALL)
    valid = pairs[1][0], altered(task.valid, 4)[1]
    same(
        catwise.update_run(loaded, pairs[0], valid).result,
        catwise.update_run(run, pairs[0], valid).result,
    )


def test_other_rows_features_and_heads_are_refused(task: Task, saved: Path) -> None:
    """An update takes other labels and nothing else."""
    run = TuneResult.load(saved, task.head)
    features = np.array(task.valid.features.block(0, 200))
    labels = task.valid.labels
    fewer = features[:199], labels.take_rows(range(199))
    codes, ids = np.vstack([labels.codes, labels.codes[:1]]), [*labels.ids.tolist(), "new"]
    more = np.vstack([features, features[:1]]), PartialLabels(codes, ids, labels.categories)
    for part in (fewer, more):
        with pytest.raises(IdError, match="rows, not 200"):
            catwise.update_run(run, task.train.pair, part)

    def named(split, first: int = 0):
        n = split.labels.n_rows
        ids = [f"{n}-{i}" for i in range(n)]
        values = np.array(split.features.block(0, n))
        values[first, 0] += 1e-3 * first
        return values, PartialLabels(split.labels.codes, ids, split.labels.categories)

    other = catwise.tune(task.head, named(task.train), named(task.valid))
    with pytest.raises(MismatchError, match="validation rows have changed"):
        catwise.update_run(other, named(task.train), named(task.valid, 3))
    with pytest.raises(MismatchError, match="not the one that"):
        TuneResult.load(saved, run.head)
    with pytest.raises(ConfigError, match="seed 0 before, 1 now"):
        check_same_options(saved, run.config, has_valid=True, seed=1)


def test_damaged_and_older_files_are_refused(task: Task, saved: Path, tmp_path: Path) -> None:
    """A changed byte, another version, a folder without: each says what to do."""
    path = tmp_path / "shared.safetensors"
    with pytest.raises(ConfigError, match=r"no 'shared\.safetensors'"):
        load_shared(path)
    raw = bytearray((saved / "shared.safetensors").read_bytes())
    start = read_layout(saved / "shared.safetensors").tensors[3].start
    raw[start] ^= 1
    path.write_bytes(raw)
    with pytest.raises(OutputError, match="digest"):
        load_shared(path)
    path.write_bytes((saved / "shared.safetensors").read_bytes()[:-5])
    with pytest.raises(OutputError, match="cut short"):
        load_shared(path)
    newer = (saved / "shared.safetensors").read_bytes()
    path.write_bytes(newer.replace(b'"catwise_shared":"1"', b'"catwise_shared":"9"'))
    with pytest.raises(ConfigError, match="version 9"):
        load_shared(path)
    save_shared(load_shared(saved / "shared.safetensors"), path)
    assert path.read_bytes() == newer
