"""What is suspicious in labels, and what is unknown together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catwise.errors import ShapeError
from catwise.labels import FINDINGS, PartialLabels, find_suspicious, findings, unknown_together

STORAGES = pytest.mark.parametrize("storage", ["dense", "columns"])


def found(labels, **more):
    """Finding → its examples."""
    return {row["finding"]: row["examples"] for row in find_suspicious(labels, **more)}


def sound(n_rows=60, n_categories=4, seed=0, **more):
    """Labels without anything odd."""
    codes = np.random.default_rng(seed).integers(-2, 2, (n_rows, n_categories))
    return PartialLabels(codes, **more)


@STORAGES
def test_sound_labels_have_no_findings(storage):
    """Nothing odd: nothing said, with all that can be looked at given."""
    ids = [f"img_{i}.jpg" for i in range(60)]
    labels = sound(ids=ids, groups=[i // 3 for i in range(60)], storage=storage)
    splits = ["train"] * 30 + ["test"] * 30
    counts = {"images": 60, "conflicting_labels": 0, "images_without_files": {"train": 0}}
    assert find_suspicious(labels, splits=splits, paths=ids, counts=counts) == []


@STORAGES
def test_categories_that_lack_a_class(storage):
    """Each odd category is in one finding; a complete one of one class is constant."""
    codes = np.array([[-1, 0, 1, 0, 1, 1], [-2, -1, -1, 0, 1, 0], [-1, -2, 1, 0, 1, -1]])
    names = ["none", "no", "yes", "all_no", "all_yes", "fine"]
    told = found(PartialLabels(codes, categories=names, storage=storage))
    assert told == {
        "no_known_label": [["none"]],
        "constant": [["all_no"], ["all_yes"]],
        "never_positive": [["no"]],
        "never_negative": [["yes"]],
    }


@STORAGES
def test_same_labels(storage):
    """Copies are found; other codes, other rows, and single labels are no copies."""
    one = np.array([1, 0, -1, -2, 1, -1])
    other_code = np.where(one == -2, 0, one)
    other_rows = np.array([-1, 1, 0, -1, -2, 1])
    single = np.array([1, -1, -1, -1, -1, -1])
    columns = [one, other_code, one, other_rows, single, single, one, other_rows]
    labels = PartialLabels(np.stack(columns, axis=1), storage=storage)
    assert found(labels)["same_labels"] == [["0", "2", "6"], ["3", "7"]]


def test_equal_hashes_are_not_enough(monkeypatch):
    """Columns whose hashes collide are compared label by label."""
    codes = np.array([[1, 0, 1], [0, 1, 0], [-1, 1, -1]])
    monkeypatch.setattr(findings, "_column_hashes", lambda _: (np.zeros(3, np.uint64),) * 2)
    assert found(PartialLabels(codes))["same_labels"] == [["0", "2"]]


def test_names_and_ids_alike():
    """Case, spaces and the endings of image files do not make two names or images."""
    labels = sound(4, ids=["a.jpg", "A.PNG", "b.1", "b.2"], categories=["x y", " X  y", "x", "z"])
    told = found(labels)
    assert told["ids_alike"] == [["a.jpg", "A.PNG"]]
    assert told["names_alike"] == [["x y", " X  y"]]


def test_ids_alike_with_lines_of_their_own():
    """An id that holds a line break is folded by itself: its lines keep their endings."""
    ids = ["a.jpg\nb", "A.JPG\nB.png ", "a\nb", "c"]
    assert found(sound(4, ids=ids))["ids_alike"] == [ids[:2]]


def test_paths_twice():
    """A path of several rows is told, unless they are of one group: objects in one image."""
    paths = ["a", "b", "a", "b", "", ""]
    assert found(sound(6), paths=paths)["paths_twice"] == [["a"], ["b"]]
    grouped = sound(6, groups=["g", "g", "g", "h", "i", "j"])
    assert found(grouped, paths=paths)["paths_twice"] == [["b"]]


def test_groups_in_two_splits():
    """Patients in several splits are told; without groups nothing is."""
    splits = ["train", "train", "test", "test", "valid", "test"]
    labels = sound(6, groups=["p", "q", "q", "r", "s", "s"])
    assert found(labels, splits=splits)["groups_in_two_splits"] == [["q"], ["s"]]
    assert "groups_in_two_splits" not in found(sound(6), splits=splits)
    with pytest.raises(ShapeError, match="splits and labels"):
        find_suspicious(labels, splits=["train"])


def test_counts_of_the_reader():
    """Counts that should be 0 are told, those of splits added up; others are not."""
    counts = {
        "images": 9,
        "conflicting_labels": 2,
        "identities_in_two_splits": 3,
        "images_without_files": {"train": 1, "test": 4},
        "images_without_findings": 5,
        "repeated_labels": 0,
        "contradictory_rows_of_train": 1,
        "files": {"train": "a.csv"},
    }
    assert found(sound(), counts=counts)["reader_counts"] == [
        ["conflicting_labels: 2"],
        ["identities_in_two_splits: 3"],
        ["images_without_files: 5"],
        ["contradictory_rows_of_train: 1"],
    ]


def test_many_examples_are_cut_but_counted():
    """At most twenty examples; the number is that of all; JSON holds it."""
    (row,) = find_suspicious(PartialLabels(np.full((3, 30), -1)))
    assert (row["finding"], row["n"], len(row["examples"])) == ("no_known_label", 30, 20)
    assert row["explanation"] == FINDINGS["no_known_label"]
    assert json.loads(json.dumps(row)) == row


def planted(n_rows=3000, n_categories=12, seed=0, share=0.5):
    """Categories unknown at random, but 3 and 7 mostly together, and 9 exactly where 2 is."""
    random = np.random.default_rng(seed)
    unknown = random.random((n_rows, n_categories)) < share
    copied = random.random(n_rows) < 0.6
    unknown[:, 7] = np.where(copied, unknown[:, 3], unknown[:, 7])
    unknown[:, 9] = unknown[:, 2]
    return np.where(unknown, -1, random.integers(0, 2, unknown.shape))


@STORAGES
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_the_planted_pair_is_found(storage, share):
    """Of 66 pairs the planted one is beyond chance, with numpy's correlation as its phi."""
    codes = planted(share=share)
    told = unknown_together(PartialLabels(codes, storage=storage))
    assert told["same"] == [["2", "9"]]
    assert told["n_beyond_chance"] == len(told["pairs"]) == 1
    (pair,) = told["pairs"]
    unknown = codes == -1
    first, second = unknown[:, 3], unknown[:, 7]
    both = int((first & second).sum())
    assert (pair["first"], pair["second"], pair["n_together"]) == ("3", "7", both)
    assert (pair["n_unknown_first"], pair["n_unknown_second"]) == (first.sum(), second.sum())
    assert pair["phi"] == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert pair["lift"] == pytest.approx(both / (first.mean() * second.sum()))
    assert json.loads(json.dumps(told)) == told


def test_both_ways_of_counting_agree(monkeypatch):
    """Products of matrices and pairs of labels give the same, in blocks of any size."""
    labels = PartialLabels(planted(), storage="dense")
    counts = np.array((labels.codes != -1).T.astype(int) @ (labels.codes != -1))
    for pairs in (7, 40, 1 << 22):
        monkeypatch.setattr(findings, "CHUNK_PAIRS", pairs)
        for count in (findings._dense_pairs, findings._sparse_pairs):
            blocks = list(count(labels))
            assert [start for start, _ in blocks] == list(range(0, 12, max(1, pairs // 12)))
            np.testing.assert_array_equal(np.concatenate([both for _, both in blocks]), counts)


@pytest.mark.parametrize("budget", ["DENSE_BUDGET", "SPARSE_BUDGET"])
def test_too_many_rows_are_sampled(monkeypatch, budget):
    """The search may take a part of the rows; what is told of a pair is of all rows."""
    labels = PartialLabels(planted(8000, share=0.5 if budget[0] == "D" else 0.95))
    full = unknown_together(labels)
    cost = 11**2 if budget[0] == "D" else 0.55**2
    monkeypatch.setattr(findings, budget, int(cost * 4000))
    told = unknown_together(labels)
    assert 1000 < told["n_rows_searched"] < 8000 == full["n_rows_searched"]
    assert told["pairs"] == full["pairs"] != []


def test_chance_is_not_told():
    """Where labels are dropped at random no pair is shown, over many draws and at any share."""
    for seed in range(30):
        random = np.random.default_rng(seed)
        share = random.uniform(0.02, 0.98, 40)
        codes = np.where(random.random((400, 40)) < share, -1, 0)
        assert unknown_together(PartialLabels(codes))["pairs"] == []


def test_rare_coincidences_are_not_told():
    """Categories with ten labels among thousands meet in a few rows: that is still chance."""
    random = np.random.default_rng(3)
    pairs = [(random.choice(2000, 10, replace=False), [0] * 10) for _ in range(1000)]
    assert unknown_together(PartialLabels.from_columns(pairs, 2000))["pairs"] == []


@given(st.permutations(range(12)))
def test_the_order_of_categories_does_not_matter(order):
    """Permuted categories give the same pair and the same set."""
    labels = PartialLabels(planted(600))
    told = unknown_together(labels.take_categories(order))
    (pair,) = told["pairs"]
    assert {pair["first"], pair["second"]} == {"3", "7"}
    assert [set(names) for names in told["same"]] == [{"2", "9"}]


def test_few_and_nothing_to_compare():
    """Categories with few unknown or few other rows are left out; empty labels are legal."""
    codes = np.zeros((40, 3), dtype=int)
    codes[:9, :2] = codes[:39, 2] = -1
    told = unknown_together(PartialLabels(codes))
    assert (told["n_categories"], told["same"], told["pairs"]) == (0, [], [])
    assert unknown_together(PartialLabels(codes), few=9)["same"] == [["0", "1"]]
    for shape in ((0, 3), (3, 0)):
        empty = PartialLabels(np.zeros(shape, dtype=np.int8))
        assert unknown_together(empty, few=0)["pairs"] == []
        find_suspicious(empty)


def test_uncertain_labels_are_not_unknown():
    """Somebody has looked at them."""
    codes = np.zeros((40, 2), dtype=int)
    codes[:20] = [-1, -2]
    assert unknown_together(PartialLabels(codes))["n_categories"] == 1
