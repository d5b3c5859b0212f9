"""What to label next, and what is done with cells that a model chose."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catwise import (
    ChosenCells,
    LabelPolicy,
    PartialLabels,
    compare_heads,
    evaluate,
    retune,
    suggest,
    tune,
)
from catwise.data.chosen import read_chosen
from catwise.errors import ConfigError, IdError, LabelError, ShapeError
from catwise.labels import audit_labels
from catwise.testing import make_task
from catwise.tuning.fits.affine import fit_pooled, sampling_weights

N, C = 500, 4
NAMES = tuple(f"c{i}" for i in range(C))
IDS = [f"i{row}" for row in range(N)]


def case(known: float = 0.3, seed: int = 0) -> tuple[np.ndarray[Any, Any], Any, PartialLabels]:
    """Logits, the truth, and labels of which a share is known."""
    rng = np.random.default_rng(seed)
    z = 3 * rng.normal(size=(N, C))
    truth = (rng.random((N, C)) < 1 / (1 + np.exp(-z))).astype(np.int8)
    codes = np.where(rng.random((N, C)) < known, truth, -1).astype(np.int8)
    return z, truth, PartialLabels(codes, IDS, NAMES)


def at(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(int(row["id"][1:]), NAMES.index(row["category"])) for row in rows]


def test_the_same_number_everywhere_nearest_one_half() -> None:
    """A plain loop: random ones apart, the nearest unknown cells of each category."""
    z, _, labels = case()
    found = suggest(z, labels, 80, seed=3)
    cells = at(found.cells)
    assert len(set(cells)) == 80
    assert all(labels.codes[cell] == -1 for cell in cells)
    assert np.bincount([c for _, c in cells]).tolist() == [20] * C
    drawn = {cell for cell, row in zip(cells, found.cells, strict=True) if row["why"] == "random"}
    assert np.bincount([c for _, c in drawn]).tolist() == [4] * C
    for c in range(C):
        own = [row for row, k in cells if k == c and (row, c) not in drawn]
        left = [row for row in range(N) if labels.codes[row, c] == -1 and (row, c) not in drawn]
        assert set(own) == set(sorted(left, key=lambda row: abs(z[row, c]))[:16])
    assert [row for row, _ in cells] == sorted(row for row, _ in cells)
    p = 1 / (1 + np.exp(-z))
    assert [row["probability"] for row in found.cells] == pytest.approx([p[cell] for cell in cells])


def test_what_is_random_is_a_sample() -> None:
    """Over three rounds: cells marked random say the mean of all cells; chosen ones do not."""
    means: list[float] = []
    hard: list[float] = []
    target: list[float] = []
    for seed in range(12):
        z, truth, labels = case(0.1, seed)
        start = labels.codes >= 0
        p = 1 / (1 + np.exp(-z))
        random, chosen = np.zeros((N, C), dtype=bool), None
        asked: list[dict[str, Any]] = []
        for _ in range(3):
            said = suggest(z, labels, 200, chosen=chosen, seed=seed)
            asked += said.cells
            codes = labels.codes.copy()
            for cell in at(said.to_label):
                assert codes[cell] == -1
                codes[cell] = truth[cell]
            labels = PartialLabels(codes, IDS, NAMES)
            pairs = [(row["id"], row["category"]) for row in asked]
            chosen = ChosenCells.of(pairs, [row["why"] for row in asked])
        for cell, row in zip(at(asked), asked, strict=True):
            random[cell] |= row["why"] == "random"
        mask = chosen.mask(labels)  # type: ignore[union-attr]
        assert not (mask & random).any()
        assert ((labels.codes >= 0) == (start | mask | random)).all()
        means.append(float((np.abs(p - 0.5))[random].mean()))
        hard.append(float((np.abs(p - 0.5))[mask].mean()))
        target.append(float((np.abs(p - 0.5))[~start].mean()))
    error = np.std(np.array(means) - target, ddof=1) / 12**0.5
    assert abs(np.mean(means) - np.mean(target)) < 3 * error
    assert np.mean(hard) < np.mean(target) - 10 * error
    assert any(row["known"] for row in asked)  # some that were chosen turned out to be random ones


def test_draws_depend_on_ids_alone() -> None:
    """Rows and categories in another order give the same cells; another seed draws others."""
    z, _, labels = case()
    rows, columns = np.random.default_rng(1).permutation(N), [2, 0, 3, 1]
    one = suggest(z, labels, 40)
    moved = labels.take_rows(rows.tolist()).take_categories(columns)
    other = suggest(z[rows][:, columns], moved, 40)

    def keys(found: Any) -> set[tuple[str, str, str]]:
        return {(row["id"], row["category"], row["why"]) for row in found.cells}

    assert keys(one) == keys(other)
    assert keys(one) != keys(suggest(z, labels, 40, seed=1))


def test_where_few_are_unknown() -> None:
    """What a category lacks goes to the others; in the end there is a note."""
    z, truth, labels = case()
    codes = labels.codes.copy()
    codes[5:, 0] = truth[5:, 0]
    codes[:5, 0] = -1
    few = PartialLabels(codes, IDS, NAMES)
    found = suggest(z, few, 83)
    assert np.bincount([c for _, c in at(found.cells)]).tolist() == [5, 26, 26, 26]
    assert "1 category has fewer unknown cells." in found.notes
    complete = PartialLabels(truth, IDS, NAMES)
    nothing = suggest(z, complete, 10)
    assert nothing.cells == []
    assert any(note.startswith("0 cells of these rows can be labelled") for note in nothing.notes)
    assert suggest(z, labels, 7, random_share=0.0).to_label[0]["why"] == "uncertain"
    assert {row["why"] for row in suggest(z, labels, 7, random_share=1.0).cells} == {"random"}


def test_uncertain_labels_are_not_asked_for() -> None:
    """They are labelled: as uncertain."""
    z, _, labels = case()
    codes = labels.codes.copy()
    codes[codes == -1] = -2
    codes[:3] = -1
    found = suggest(z, PartialLabels(codes, IDS, NAMES), 100)
    assert {row for row, _ in at(found.cells)} == {0, 1, 2}


def test_two_lists_of_suspects() -> None:
    """Given negatives by highest probability, given positives by lowest."""
    z, truth, _ = case()
    codes = truth.copy()
    highest = int(np.argmax(z[:, 1]))
    lowest = int(np.argmin(z[:, 2]))
    codes[highest, 1], codes[lowest, 2] = 0, 1
    found = suggest(z, PartialLabels(codes, IDS, NAMES), 0, n_suspects=20)
    assert found.cells == []
    assert (found.false_negatives[0]["id"], found.false_negatives[0]["given"]) == (f"i{highest}", 0)
    assert (found.false_positives[0]["id"], found.false_positives[0]["given"]) == (f"i{lowest}", 1)
    up = [row["probability"] for row in found.false_negatives]
    down = [row["probability"] for row in found.false_positives]
    assert len(up) == len(down) == 20
    assert up == sorted(up, reverse=True)
    assert down == sorted(down)
    assert not suggest(z, PartialLabels(codes, IDS, NAMES), 0, n_suspects=0).false_negatives


def test_labels_that_the_logits_speak_for_are_no_suspects() -> None:
    """However many are asked for: only what is contradicted is listed."""
    z = np.repeat([[4.0, -4.0]], 40, axis=0)
    z[:20] *= -1
    codes = (z > 0).astype(np.int8)
    codes[3, 0], codes[30, 1] = 1, 1
    found = suggest(z, PartialLabels(codes, [f"i{i}" for i in range(40)], ["a", "b"]), 0)
    suspects = [(row["id"], row["category"]) for row in found.false_positives]
    assert suspects == [("i3", "a"), ("i30", "b")]
    assert found.false_negatives == []


def test_files(tmp_path: Path) -> None:
    """Cells as CSV with a column to fill in, that are read as chosen cells; hostile ids too."""
    z, _, labels = case()
    assert labels.ids is not None
    names = ["=1+1", *labels.ids.tolist()[1:]]
    own = PartialLabels(labels.codes, names, NAMES)
    found = suggest(z, own, 1000)
    found.write_cells(tmp_path / "cells.csv")
    found.write_suspects(tmp_path / "wrong.csv")
    with (tmp_path / "cells.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["id", "category", "probability", "why", "known", "label"]
    assert {row["label"] for row in rows} == {""}
    chosen = read_chosen(tmp_path / "cells.csv")
    np.testing.assert_array_equal(chosen.mask(own), found.chosen.mask(own))
    assert chosen.mask(own)[0].any()
    with (tmp_path / "wrong.csv").open(newline="") as stream:
        n_suspects = len([*found.false_negatives, *found.false_positives])
        assert len(list(csv.DictReader(stream))) == n_suspects > 50
    (tmp_path / "more.csv").write_text(
        f"id,category,why\n{rows[-1]['id']},{rows[-1]['category']},random\n"
    )
    both = read_chosen([tmp_path / "cells.csv", tmp_path / "more.csv"])
    assert len(both) == len(chosen) - (rows[-1]["why"] != "random")
    (tmp_path / "plain.csv").write_text("id,category\ni1,c0\ni1,c0\n")
    assert len(read_chosen(tmp_path / "plain.csv")) == 1
    (tmp_path / "bad.csv").write_text("image,category\ni1,c0\n")
    with pytest.raises(LabelError, match="'id'"):
        read_chosen(tmp_path / "bad.csv")


def test_wrong_use() -> None:
    """One error each."""
    z, _, labels = case()
    with pytest.raises(ConfigError, match="random_share in"):
        suggest(z, labels, 10, random_share=1.5)
    with pytest.raises(ConfigError, match="n_cells"):
        suggest(z, labels, -1)
    plain = PartialLabels(labels.codes, categories=NAMES)
    with pytest.raises(IdError, match="without ids"):
        suggest(z, plain, 10)
    with pytest.raises(IdError, match="without ids"):
        ChosenCells.of([("a", "c0")]).mask(plain)
    with pytest.raises(ShapeError, match="an id and a category"):
        ChosenCells(np.array(["a"]), np.array(["a", "b"]))


# ---------------------------------------------------------------------- what takes chosen cells


@pytest.fixture(scope="module")
def bought() -> Any:
    """A task, what was known, what is known after a purchase, and which of it was chosen."""
    task = make_task(n_valid=400, known_valid=0.2, seed=2)
    run = tune(task.head, task.train.pair, task.valid.pair)
    said = suggest(run, task.valid.labels, 400)
    codes = task.valid.labels.codes.copy()
    ids = {name: row for row, name in enumerate(task.valid.labels.ids.tolist())}
    names = {name: c for c, name in enumerate(task.valid.labels.categories)}
    for cell in said.to_label:
        row, c = ids[cell["id"]], names[cell["category"]]
        codes[row, c] = task.valid.truth.codes[row, c]
    labels = PartialLabels(codes, task.valid.labels.ids, task.valid.labels.categories)
    return task, labels, said.chosen


def test_tune_fits_them_and_judges_without_them(bought: Any) -> None:
    """The gain is that on the others; the head is another than without their labels."""
    task, labels, chosen = bought
    valid = (task.valid.features, labels)
    told = tune(task.head, task.train.pair, valid, chosen=chosen)
    plain = tune(task.head, task.train.pair, valid)
    rest = chosen.without(labels)
    without = tune(task.head, task.train.pair, (task.valid.features, rest))
    assert told.head.digest not in {plain.head.digest, without.head.digest}
    # What it says of the original head is what the other labels say.
    before = [record["before"] for record in told.records]
    assert before == pytest.approx([record["before"] for record in without.records], abs=1e-6)
    assert before != pytest.approx([record["before"] for record in plain.records], abs=1e-3)
    n = int(labels.counts().known.sum() - rest.counts().known.sum())
    assert any(note.startswith(f"{n} of ") and "they fit" in note for note in told.notes)
    # Its out-of-fold logits are calibrated with weights: fitted again so, they stay as they are.
    assert told.folds is not None
    z = torch.from_numpy(np.ascontiguousarray(told.folds.logits.T)).double()
    codes = torch.from_numpy(np.ascontiguousarray(labels.codes.T))
    level = torch.from_numpy(np.ascontiguousarray(task.head.logits(valid[0].values).T)).double()
    fit = fit_pooled(z, codes, level=level, weight=sampling_weights(z, codes))
    taken = np.array([record["status"] == "replaced" for record in told.records])
    assert taken.all()
    np.testing.assert_allclose(fit.scale, 1.0, atol=1e-3)
    np.testing.assert_allclose(fit.offset, 0.0, atol=1e-3)
    with pytest.raises(ConfigError, match="cannot be tuned again"):
        retune(told, task.train.pair, valid, categories=[labels.categories[0]])


def test_labels_that_nobody_chose_change_nothing(bought: Any) -> None:
    """Chosen cells of other images, or none: the same head, bit for bit."""
    task, _, _ = bought
    other = ChosenCells.of([("elsewhere", "category 0")])
    told = tune(task.head, task.train.pair, task.valid.pair, chosen=other)
    plain = tune(task.head, task.train.pair, task.valid.pair)
    assert told.head.digest == plain.head.digest
    assert any("None of the chosen cells" in note for note in told.notes)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_where_validation_only_chooses_they_are_left_out(bought: Any, preset: str) -> None:
    """The same as without their labels."""
    task, labels, chosen = bought
    options: dict[str, Any] = {"preset": preset, "validation": "select"}
    if preset == "paper":
        from catwise._configs import PaperConfig

        options["config"] = PaperConfig(max_steps=20)
    told = tune(task.head, task.train.pair, (task.valid.features, labels), chosen=chosen, **options)
    rest = chosen.without(labels)
    without = tune(task.head, task.train.pair, (task.valid.features, rest), **options)
    assert told.head.digest == without.head.digest


def test_with_a_policy_and_without_validation(bought: Any) -> None:
    """Targets of a policy fit, also those of chosen cells; training labels may be chosen too."""
    task, labels, chosen = bought
    valid = (task.valid.features, labels)
    policy = LabelPolicy(blank="negative")
    told = tune(task.head, task.train.pair, valid, chosen=chosen, policy=policy)
    plain = tune(task.head, task.train.pair, valid, policy=policy)
    assert told.head.digest != plain.head.digest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = tune(task.head, valid, chosen=chosen)
    assert any("they fit" in note for note in alone.notes)
    every = ChosenCells.of([(i, c) for i in labels.ids.tolist() for c in labels.categories])
    with pytest.raises(LabelError, match="no model chose"):
        tune(task.head, task.train.pair, valid, chosen=every)


def test_evaluate_does_not_score_them(bought: Any) -> None:
    """As if their labels were unknown, with a note."""
    task, labels, chosen = bought
    data = (task.valid.features, labels)
    told = evaluate(task.head, data, chosen=chosen)
    rest = (task.valid.features, chosen.without(labels))
    wanted = evaluate(task.head, rest)
    for metric, values in wanted.values.items():
        np.testing.assert_array_equal(told.values[metric], values)
    assert any("they are not scored" in note for note in told.notes)
    other = task.head.replace(weight=task.head.weight * 2 + 0.1)
    one = compare_heads(task.head, other, data, chosen=chosen).first
    assert one.mean_difference == compare_heads(task.head, other, rest).first.mean_difference
    by_row = {name: name for name in labels.ids.tolist()}
    pooled = evaluate(task.head, data, chosen=chosen, by=by_row)
    np.testing.assert_allclose(pooled.values["auroc"], told.values["auroc"])


def test_audit_counts_them(bought: Any) -> None:
    """And gives the prevalence of the others."""
    _, labels, chosen = bought
    found = audit_labels(labels, chosen=chosen)
    rest = chosen.without(labels).counts()
    for c, row in enumerate(found.rows):
        assert row["chosen"] == row["known"] - rest.known[c]
        assert row["prevalence"] == rest.positive[c] / rest.known[c]
    assert found.summary["n_chosen"] == sum(row["chosen"] for row in found.rows) > 0
    assert any("which alone score" in note for note in found.notes)
    assert "chosen" not in audit_labels(labels).rows[0]


@pytest.mark.parametrize("storage", ["dense", "columns"])
def test_labels_of_cells_are_added_in_any_storage(storage: str) -> None:
    """Unknown and uncertain cells take them, random ones too; all else and the input stay."""
    codes = np.array([[1, -1], [-2, 0], [-1, -1]], dtype=np.int8)
    groups = ["p", "q", "q"]
    own = PartialLabels(codes, ["a", "b", "c"], ["x", "y"], groups=groups, storage=storage)
    wanted = {("a", "y"): 0, ("b", "x"): 1, ("c", "y"): -2, ("elsewhere", "x"): 1}
    chosen = ChosenCells.of([("a", "y"), ("b", "x")], ["random", ""], wanted)
    added = chosen.added_to(own)
    assert added.codes.tolist() == [[1, 0], [1, 0], [-1, -2]]
    assert own.codes.tolist() == codes.tolist()
    assert (added.ids.tolist(), added.groups.tolist(), added.storage) == (  # type: ignore[union-attr]
        ["a", "b", "c"], groups, storage,
    )  # fmt: skip
    assert chosen.without(added).codes.tolist() == [[1, 0], [-1, 0], [-1, -2]]
    with pytest.raises(LabelError, match="1 label of the cells"):
        ChosenCells.of([("a", "x")], labelled={("a", "x"): 0}).added_to(own)


def test_a_positive_below_one_half_is_contradicted_in_a_rare_category() -> None:
    """Also where its probability is above the category's mean; one above both is not listed."""
    z = np.full((40, 1), -4.0)
    z[0], z[1] = -1.0, 2.0
    codes = np.zeros((40, 1), dtype=np.int8)
    codes[:2] = 1
    labels = PartialLabels(codes, [str(row) for row in range(40)], ["rare"])
    said = suggest(z, labels, 0, n_suspects=5)
    assert [row["id"] for row in said.false_positives] == ["0"]
    assert said.false_negatives == []
