"""Category-specific features, (N, C, D): equal to a plain loop over the categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import catwise
from catwise._configs import PaperConfig
from catwise.errors import FeatureError, MismatchError, ShapeError
from catwise.features import CategoryFeatures, by_category, open_store, write_store
from catwise.tuning.presets.default_config import DefaultConfig

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.labels import PartialLabels

N_CATEGORIES, N_FEATURES = 4, 6
NAMES = ["ant", "bee", "cat", "dog"]
SEED = 1  # with it the genetic algorithm moves a category
PAPER = PaperConfig(lr=1e-2, max_steps=60, patience=20)
# One fit of each category's validation labels from nothing: without what is pooled over categories.
ONE_FIT = DefaultConfig(
    penalties=(1.0,),
    penalty_growth=0.0,
    source_weight=0.0,
    anchor_penalties=(),
    negative_penalties=(),
    anchor_ridge=1e12,
    refinements={},
    tolerance=1e-6,
)


def draw(n_rows: int, seed: int, known: float = 0.7) -> tuple[Any, PartialLabels]:
    """Vectors that tell their own category's label, and know nothing of the others."""
    rng = np.random.default_rng(seed)
    planted = np.random.default_rng(0).normal(size=(N_CATEGORIES, N_FEATURES))
    z = rng.normal(size=(n_rows, N_CATEGORIES, N_FEATURES))
    labels = ((z * planted).sum(2) + rng.normal(size=(n_rows, N_CATEGORIES)) > 1).astype(float)
    labels[rng.random(labels.shape) > known] = np.nan
    ids = [f"{seed}-{i}" for i in range(n_rows)]
    return z, catwise.PartialLabels.from_array(labels, encoding="nan", categories=NAMES, ids=ids)


HEAD = catwise.Head(
    np.random.default_rng(0).normal(size=(N_CATEGORIES, N_FEATURES))
    + np.random.default_rng(9).normal(size=(N_CATEGORIES, N_FEATURES)),
    np.zeros(N_CATEGORIES),
    categories=NAMES,
)
TRAIN, VALID, TEST = draw(160, 1), draw(140, 2), draw(200, 3, known=1.0)


def alone(pair: tuple[Any, PartialLabels], c: int) -> tuple[Any, PartialLabels]:
    """One category's own features, (N, D), and its labels."""
    return pair[0][:, c], pair[1].take_categories([c])


def loop(**options: Any) -> list[catwise.TuneResult]:
    """The plain loop: each category by itself, on features of two axes."""
    options["force"] = True  # one category of a made-up head may rank no better than chance
    return [
        catwise.tune(HEAD.take_categories([c]), alone(TRAIN, c), alone(VALID, c), **options)
        for c in range(N_CATEGORIES)
    ]


def check_same(found: catwise.TuneResult, parts: list[catwise.TuneResult]) -> None:
    for c, part in enumerate(parts):
        assert torch.allclose(found.head.weight[c], part.head.weight[0], rtol=0, atol=1e-9)
        assert torch.allclose(found.head.bias[c], part.head.bias[0], rtol=0, atol=1e-9)
    assert not torch.equal(found.head.weight, HEAD.weight)


@pytest.mark.parametrize("methods", [["bp_bce"], ["bp_asl"], ["ga"], ["bp_bce", "ga"]])
def test_paper_equals_the_loop(methods: list[str]) -> None:
    """As published, every category moves alone: same rows, scores, reasons."""
    options = {"preset": "paper", "methods": methods, "config": PAPER, "seed": SEED}
    found, parts = catwise.tune(HEAD, TRAIN, VALID, **options), loop(**options)
    check_same(found, parts)
    for record, part in zip(found.records, parts, strict=True):
        for key in ("status", "reason", "candidate", "before", "selected_on"):
            assert record[key] == part.records[0][key]


def test_paper_history_is_that_of_shared_features() -> None:
    """Means over the moving categories, and the curves of each, are those of one batch."""
    (z, labels), (fresh, others) = alone(TRAIN, 0)[:1] + TRAIN[1:], alone(VALID, 0)[:1] + VALID[1:]
    options = {"preset": "paper", "methods": ["bp_bce", "ga"], "config": PAPER, "force": True}
    batch = catwise.tune(HEAD, (z, labels), (fresh, others), **options)
    tiled = [np.repeat(part[:, None], N_CATEGORIES, 1) for part in (z, fresh)]
    found = catwise.tune(HEAD, (tiled[0], labels), (tiled[1], others), **options)
    assert len(found.history) == len(batch.history)
    for one, other in zip(found.history, batch.history, strict=True):
        assert list(one) == list(other)
        for key, value in one.items():
            near = isinstance(value, (float, list))
            assert value == (pytest.approx(other[key], abs=1e-9) if near else other[key])


def test_default_equals_the_loop() -> None:
    """Nothing is pooled but keep or replace and the prior of the scale: the loop's directions."""
    found, parts = catwise.tune(HEAD, TRAIN, VALID, config=ONE_FIT), loop(config=ONE_FIT)
    assert [record["status"] for record in found.records] == ["replaced"] * N_CATEGORIES
    for c, part in enumerate(parts):
        assert part.records[0]["status"] == "replaced"
        mine, other = (r / r.norm() for r in (found.head.weight[c], part.head.weight[0]))
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"validation": "select"}])
def test_equal_vectors_are_shared_features(options: dict[str, Any]) -> None:
    """The whole preset, choices, folds and all, where every category has the same vector."""
    task = [(part[0][:, 0], part[1]) for part in (TRAIN, VALID)]
    tiled = [(np.repeat(z[:, None], N_CATEGORIES, 1), labels) for z, labels in task]
    shared = catwise.tune(HEAD, *task, force=True, **options)
    found = catwise.tune(HEAD, *tiled, force=True, **options)
    assert torch.allclose(found.head.weight, shared.head.weight, rtol=1e-3, atol=1e-3)
    assert [r["status"] for r in found.records] == [r["status"] for r in shared.records]
    assert found.summary["choice"] == shared.summary["choice"]
    if shared.folds is not None:
        assert np.allclose(found.folds.logits, shared.folds.logits, rtol=1e-3, atol=1e-3)
        assert np.allclose(found.folds.weight, shared.folds.weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"validation": "select"}, {"preset": "paper", "config": PAPER}]
)
def test_tuning_helps(options: dict[str, Any]) -> None:
    """The tuned rows rank fresh rows better than those that they came from."""
    result = catwise.tune(HEAD, TRAIN, VALID, **options)
    before, after = (catwise.evaluate(head, TEST) for head in (HEAD, result.head))
    assert (
        after.means["average_precision"]["macro"]
        > before.means["average_precision"]["macro"] + 0.02
    )


def test_evaluate_equals_the_loop() -> None:
    """Every metric of a category is that of its own features."""
    whole = catwise.evaluate(HEAD, TEST)
    for c in range(N_CATEGORIES):
        part = catwise.evaluate(HEAD.take_categories([c]), alone(TEST, c), force=True)
        for name, values in whole.values.items():
            assert values[c] == pytest.approx(part.values[name][0], abs=1e-12)


def test_select_equals_shared_features() -> None:
    """Candidates are scored on their category's own features."""
    mixed = HEAD.replace(weight=torch.cat([HEAD.weight[:2] - 2, HEAD.weight[2:]]))
    result = catwise.select({"base": mixed, "other": HEAD}, TEST)
    taken = [record["candidate"] for record in result.records]
    assert taken == ["other", "other", "base", "base"]


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [3, 1]])
def test_columns_find_their_vectors_by_name(order: list[int]) -> None:
    """Labels in another order, or of some categories, take the vectors of the head's rows."""
    z, labels = TEST
    whole = catwise.evaluate(HEAD, TEST).values["auroc"]
    part = catwise.evaluate(HEAD, (z, labels.take_categories(order)))
    assert part.values["auroc"].tolist() == whole[order].tolist()
    train, valid = ((z, labels.take_categories(order)) for z, labels in (TRAIN, VALID))
    options = {"preset": "paper", "config": PAPER}
    found = catwise.tune(HEAD, train, (VALID[0], VALID[1]) if len(order) == 4 else valid, **options)
    full = catwise.tune(HEAD, TRAIN, VALID, **options)
    assert torch.allclose(found.head.weight[order], full.head.weight[order], atol=1e-9)
    rest = [c for c in range(N_CATEGORIES) if c not in order]
    assert torch.equal(found.head.weight[rest], HEAD.weight[rest])


def test_groups_share_a_vector() -> None:
    """Two groups of two categories, as in ML-Decoder: each pair is tuned on its own vector."""
    z, labels = TRAIN
    pairs, fresh = z[:, [0, 2]], VALID[0][:, [0, 2]]
    options = {"preset": "paper", "config": PAPER, "force": True}
    found = catwise.tune(HEAD, (pairs, labels), (fresh, VALID[1]), **options)
    for group, index in enumerate(([0, 1], [2, 3])):
        part = catwise.tune(
            HEAD.take_categories(index),
            (pairs[:, group], labels.take_categories(index)),
            (fresh[:, group], VALID[1].take_categories(index)),
            **options,
        )
        assert torch.allclose(found.head.weight[index], part.head.weight, atol=1e-9)


def test_rows_join_by_id(tmp_path: Path) -> None:
    """From a store, in another order, with rows too many: the same head and the same scores."""
    z, labels = TEST
    ids = [f"image {i}" for i in range(len(z))]
    named = catwise.PartialLabels(labels.codes, categories=NAMES, ids=ids)
    rows = [5, 3, 150, 151, 20, 77, 8, 9, 60]
    turned = np.random.default_rng(0).permutation(len(z))
    half = z.astype(np.float32)
    write_store(
        tmp_path / "store",
        half[turned].reshape(len(z), -1),
        ids=[ids[i] for i in turned],
        dtype="float32",
        origin={"extract": {"shape": [N_CATEGORIES, N_FEATURES]}},
    )
    stored = catwise.read_features(tmp_path / "store")
    assert repr(stored) == "CategoryFeatures(n_rows=200, n_groups=4, n_features=6, ids=True)"
    whole = catwise.evaluate(HEAD, (half, labels)).values["average_precision"]
    for features in (stored, open_store(tmp_path / "store")):
        joined = catwise.evaluate(HEAD, (features, named.take_rows(range(200))))
        assert joined.values["average_precision"].tolist() == whole.tolist()
    some = catwise.evaluate(HEAD, (stored, named.take_rows(rows)))
    again = catwise.evaluate(HEAD, (half[rows], labels.take_rows(rows)))
    assert np.array_equal(some.values["auroc"], again.values["auroc"], equal_nan=True)


def test_files_of_three_axes(tmp_path: Path) -> None:
    """An array (N, C, D) in a file is category-specific, with its ids."""
    np.savez(tmp_path / "a.npz", features=TEST[0], ids=[str(i) for i in range(200)])
    found = catwise.read_features(tmp_path / "a.npz")
    assert isinstance(found, CategoryFeatures)
    assert found.ids is not None
    assert np.array_equal(found.of(2).block(3, 5), TEST[0][3:5, 2])
    assert np.array_equal(found.rows([4, 1]), TEST[0][[4, 1]].reshape(2, -1))
    bad = TEST[0].copy()
    bad[7, 1, 2] = np.nan
    with pytest.raises(FeatureError, match=r"row 7, column 8 \(nan\)"):
        catwise.read_features(bad)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_logits_equal_the_formula(kind: Any) -> None:
    """The logit of category c is its own vector times its own row."""
    expected = (TEST[0] * HEAD.weight.numpy()).sum(2) + HEAD.bias.numpy()
    assert np.allclose(HEAD.logits(kind(TEST[0])), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("features", "kind", "text"),
    [
        (TRAIN[0][:, :3, :], None, ""),  # 4 categories over 3 vectors: 2 each
        (TRAIN[0][:, :, :5], ShapeError, "do not feed the head"),
        (np.repeat(TRAIN[0], 2, 1), ShapeError, "8 vectors an image"),
        (TRAIN[0][:, 0], ShapeError, "one vector an image in training, 4 vectors"),
    ],
)
def test_features_that_do_not_fit(features: Any, kind: Any, text: str) -> None:
    """Vectors too short or too many, or one kind in training and another in validation."""
    if kind is None:
        assert by_category(features).groups_of(4).tolist() == [0, 0, 1, 1]
        return
    with pytest.raises(kind, match=text):
        catwise.tune(HEAD, (features, TRAIN[1]), VALID)


def test_exact_logits_are_compared() -> None:
    """The model's own logits must be the head's on the vectors."""
    right = HEAD.logits(TRAIN[0])
    catwise.tune(HEAD, TRAIN, VALID, preset="paper", config=PAPER, logits=right)
    with pytest.raises(MismatchError, match="not those of this head"):
        catwise.tune(HEAD, TRAIN, VALID, preset="paper", config=PAPER, logits=right.flip(1))
