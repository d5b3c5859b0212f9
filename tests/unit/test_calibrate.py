"""Calibrated probabilities from logits that fitted nothing."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

import catwise
from catwise import Calibration, Head, PartialLabels, calibrate
from catwise.decisions import CategoryMap
from catwise.decisions.maps import fit_isotonic, fit_venn_abers
from catwise.errors import ConfigError, IdError, LabelError, ShapeError
from catwise.metrics import log_loss


def problem(n: int = 600, c: int = 4, seed: int = 0, known: float = 0.8):
    """Logits three times too steep and shifted, their truth, and partial labels."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, c)) * 1.5 - 1.0
    codes = (rng.random((n, c)) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    codes[rng.random((n, c)) > known] = -1
    names = [f"c{i}" for i in range(c)]
    ids = [f"{seed}-{i}" for i in range(n)]
    return 3 * truth + 2, truth, PartialLabels(codes, ids, names)


def test_it_finds_the_truth() -> None:
    """Scale 1/3 and offset −2/3, and a lower log-loss on rows that fitted nothing."""
    logits, _, labels = problem(20_000)
    found = calibrate(logits, labels)
    for one in found.categories:
        assert one.method == "affine"
        assert one.map.scale == pytest.approx(1 / 3, rel=0.06)
        assert one.map.offset == pytest.approx(-2 / 3, rel=0.1)
    other, _, test = problem(2000, seed=1)
    before, after = log_loss(other, test), log_loss(found.logits(other), test)
    assert bool((after < before).all())


def test_test_rows_show_before_and_after() -> None:
    """Three metrics with intervals around them, of rows that are given and not of those fitted."""
    logits, _, labels = problem()
    other, _, test = problem(seed=1)
    found = calibrate(logits, labels, test=(other, test))
    assert found.test is not None
    assert set(found.test) == {"log_loss", "brier", "ece"}
    expected = log_loss(other, test).numpy()
    for c, row in enumerate(found.records()):
        assert row["log_loss_before"] == pytest.approx(expected[c])
        assert row["log_loss_before_low"] < row["log_loss_before"] < row["log_loss_before_high"]
        assert row["log_loss_after_low"] < row["log_loss_after"] < row["log_loss_after_high"]
        assert row["log_loss_outcome"] == "better"
    assert found.to_dict()["test"]["ece"]["n_scored"] == 4


def test_a_known_prevalence_moves_the_offset() -> None:
    """By logit(stated) − logit(known), and only of the category that is named."""
    logits, _, labels = problem()
    plain = calibrate(logits, labels)
    found = calibrate(logits, labels, prevalence={"c1": 0.05})
    k, n = plain.categories[1].n_positive, plain.categories[1].n_negative
    moved = found.categories[1].map.offset - plain.categories[1].map.offset
    assert moved == pytest.approx(np.log(0.05 / 0.95) - np.log(k / n))
    assert found.categories[0].map == plain.categories[0].map
    assert "stated share of positives in 1 categories" in found.population
    assert "known label" in plain.population


def test_selective_labels_are_put_right_by_the_prevalence() -> None:
    """Where positives are labelled far more often, the mean probability is the true share."""
    logits, truth, _ = problem(20_000, c=1)
    rng = np.random.default_rng(3)
    y = rng.random(truth.shape) < 1 / (1 + np.exp(-truth))
    seen = rng.random(truth.shape) < np.where(y, 0.9, 0.1)
    labels = PartialLabels(np.where(seen, y, -1).astype(np.int8))
    wrong = calibrate(logits, labels).probabilities(logits).mean()
    right = calibrate(logits, labels, prevalence=float(y.mean())).probabilities(logits).mean()
    assert float(wrong) > y.mean() + 0.2
    assert float(right) == pytest.approx(y.mean(), abs=0.01)


def test_one_class_stays_or_takes_the_prevalence() -> None:
    """Without a positive the logits stay; with a stated prevalence the mean is that."""
    logits, _, labels = problem()
    codes = labels.codes.copy()
    codes[codes[:, 2] == 1, 2] = -1
    labels = PartialLabels(codes, labels.ids, labels.categories)
    kept = calibrate(logits, labels).categories[2]
    assert (kept.method, kept.map, kept.reason) == ("none", CategoryMap(), "no_known_positive")
    stated = calibrate(logits, labels, prevalence={"c2": 0.1})
    assert stated.categories[2].method == "prevalence"
    assert float(stated.probabilities(logits)[:, 2].mean()) == pytest.approx(0.1, abs=1e-9)


def test_it_folds_into_a_head() -> None:
    """The head's own logits are then the calibrated ones; a category that is not named stays."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 5))
    head = Head(rng.normal(size=(3, 5)), rng.normal(size=3), categories=["a", "b", "c"])
    codes = (rng.random((300, 2)) < 0.3).astype(np.int8)
    labels = PartialLabels(codes, categories=["c", "a"])
    logits = head.logits(z)[:, [2, 0]]
    found = calibrate(logits, labels)
    folded = found.fold(head)
    torch.testing.assert_close(folded.logits(z)[:, [2, 0]], found.logits(logits))
    torch.testing.assert_close(folded.logits(z)[:, 1], head.logits(z)[:, 1], rtol=0, atol=0)
    with pytest.raises(ConfigError, match="nowhere to put an offset"):
        found.fold(Head(head.weight, categories=head.categories))


def test_the_module_gives_the_same() -> None:
    """For affine maps and for knots, far outside of the rows too, and it exports."""
    logits, _, labels = problem(9000, c=3)
    for method in ("platt", "isotonic"):
        found = calibrate(logits, labels, method=method)
        given = torch.from_numpy(np.concatenate([logits[:500], [[-99.0] * 3, [99.0] * 3]])).float()
        module = found.module()
        torch.testing.assert_close(
            module(given).double(), found.logits(given), rtol=1e-4, atol=1e-4
        )
        exported = torch.export.export(module, (given,)).module()
        torch.testing.assert_close(exported(given), module(given), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="only affine maps"):
        found.fold(Head(np.ones((3, 1)), np.zeros(3), categories=labels.categories))


def test_flexible_methods_need_thousands() -> None:
    """With fewer than 1,000 positives "isotonic" is the affine map, and says so."""
    logits, _, labels = problem(1000)
    found = calibrate(logits, labels, method="isotonic")
    assert {one.reason for one in found.categories} == {"too_few_for_method"}
    assert found.categories[0].map == calibrate(logits, labels).categories[0].map
    chosen = calibrate(logits, labels, method="choose")
    assert [one.reason for one in chosen.categories] == [None] * 4


def test_choose_takes_what_held_out_log_loss_says() -> None:
    """An affine truth stays affine; a truth with a step does not."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(12_000, 2)) * 2
    p = np.stack([1 / (1 + np.exp(1 - z[:, 0])), np.where(z[:, 1] > 0, 0.5, 0.1)], axis=1)
    labels = PartialLabels((rng.random(z.shape) < p).astype(np.int8))
    methods = [one.method for one in calibrate(z, labels, method="choose").categories]
    assert methods[0] == "affine"
    assert methods[1] in {"isotonic", "venn_abers"}


def test_isotonic_is_scikit_learns_at_its_knots() -> None:
    """But for probabilities of 0 and 1, which no number of rows promises."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=500)
    y = rng.random(500) < 1 / (1 + np.exp(-3 * z))
    fit = IsotonicRegression(y_min=0, y_max=1).fit(z, y)
    found = fit_isotonic(z, y)
    x = np.array([knot[0] for knot in found.knots])
    p = 1 / (1 + np.exp(-found(x)))
    np.testing.assert_allclose(p, np.clip(fit.predict(x), 1 / 502, 501 / 502), atol=1e-9)


def test_venn_abers_is_the_plain_loop() -> None:
    """At every distinct score what two isotonic regressions with one row more give."""
    rng = np.random.default_rng(1)
    z = np.round(rng.normal(size=120), 1)
    y = rng.random(120) < 1 / (1 + np.exp(-2 * z))
    found = fit_venn_abers(z, y)
    for x, calibrated in found.knots:
        p = [
            IsotonicRegression().fit(np.append(z, x), np.append(y, label)).predict([x])[0]
            for label in (0, 1)
        ]
        merged = np.clip(p[1] / (1 - p[0] + p[1]), 1 / 122, 121 / 122)
        assert 1 / (1 + np.exp(-calibrated)) == pytest.approx(merged, abs=1e-9)


def test_it_is_saved_and_read(tmp_path) -> None:
    """The maps come back equal; the table has a line for each category, and no knots."""
    logits, _, labels = problem(9000, c=2)
    found = calibrate(logits, labels, method="venn_abers", prevalence={"c0": 0.2})
    found.save(tmp_path / "calibration.json")
    again = Calibration.load(tmp_path / "calibration.json")
    assert again.categories == found.categories
    assert again.population == found.population
    found.write_csv(tmp_path / "calibration.csv")
    with (tmp_path / "calibration.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == ["c0", "c1"]
    assert "knots" not in rows[0]


@pytest.mark.parametrize(
    "change",
    [
        {"scale": -1.0},
        {"scale": 0.0},
        {"offset": None},
        {"knots": [[0.0, 1.0], [1.0, 0.5]]},
        {"knots": [[0.0, 0.0], [0.0, 1.0]]},
    ],
)
def test_a_file_with_a_falling_map_is_refused(tmp_path, change: dict[str, object]) -> None:
    """And one that is no such file."""
    logits, _, labels = problem()
    document = calibrate(logits, labels).to_dict()
    document["categories"][1] |= change
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot read a calibration"):
        Calibration.load(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot read a calibration"):
        Calibration.load(path)


def tuned(validation: str | None = None):
    """A tuning by the default preset, its validation labels, and test rows with their logits."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(700, 6))
    weight = rng.normal(size=(2, 6))
    y = rng.random((700, 2)) < 1 / (1 + np.exp(1.5 - z @ weight.T))
    labels = PartialLabels(y.astype(np.int8), [f"i{i}" for i in range(700)], ["cat", "dog"])
    parts = [
        (z[rows], labels.take_rows(rows))
        for rows in (slice(0, 200), slice(200, 500), slice(500, 700))
    ]
    head = Head(weight + rng.normal(size=(2, 6)), [0.0, 0.0], categories=["cat", "dog"])
    return catwise.tune(head, *parts[:2], validation=validation), parts


def test_a_tuning_gives_its_out_of_fold_logits() -> None:
    """Rows and columns in another order, joined by id and name; test by the tuned head."""
    result, (_, (_, valid), test) = tuned()
    plain = calibrate(result, valid, test=test)
    order = np.random.default_rng(1).permutation(300)
    turned = valid.take_rows(order).take_categories(["dog", "cat"])
    other = calibrate(result.folds, turned)
    assert other.names == ("dog", "cat")
    assert other.categories[1].map.scale == pytest.approx(plain.categories[0].map.scale)
    expected = log_loss(result.head.logits(test[0]), test[1]).numpy()
    assert plain.test is not None
    np.testing.assert_allclose(plain.test["log_loss"].before, expected)


def test_what_is_calibrated_stays() -> None:
    """A second calibration of its own result changes no logit and judges nothing."""
    rng = np.random.default_rng(4)
    z = rng.normal(size=(500, 3)) * [1.0, 3.0, 0.2]
    labels = PartialLabels((rng.random((500, 3)) < 1 / (1 + np.exp(1 - z))).astype(np.int8))
    once = calibrate(z, labels)
    logits = z * [one.map.scale for one in once.categories]
    logits = logits + [one.map.offset for one in once.categories]
    assert not np.allclose(logits, z)
    again = calibrate(logits, labels, test=(logits, labels))
    assert [(one.map.scale, one.map.offset) for one in again.categories] == [(1.0, 0.0)] * 3
    told = again.to_dict()["categories"]
    assert {one["log_loss_outcome"] for one in told} == {"no_difference"}


def test_labels_of_other_rows_are_left_out() -> None:
    """With ids, the labels of all rows do as well as those of the validation rows."""
    result, parts = tuned()
    rows = [labels for _, labels in parts]
    codes = np.concatenate([one.codes for one in rows])
    ids = np.concatenate([one.ids for one in rows])
    found = calibrate(result, PartialLabels(codes, ids, rows[0].categories))
    assert found.categories == calibrate(result, rows[1]).categories
    assert any("400 labelled rows" in note for note in found.notes)


def test_rows_that_fitted_do_not_judge() -> None:
    """Validation rows as test rows are refused; so is a tuning without out-of-fold logits."""
    result, (train, valid, _) = tuned()
    with pytest.raises(IdError, match="cannot judge"):
        calibrate(result, valid[1], test=valid)
    with pytest.raises(IdError):
        calibrate(result, train[1])
    chosen, _ = tuned("select")
    with pytest.raises(ConfigError, match="no out-of-fold logits"):
        calibrate(chosen, valid[1])


def test_bad_input_is_named() -> None:
    """Raw labels, another shape, a share outside (0, 1), an unknown name or method."""
    logits, _, labels = problem()
    with pytest.raises(LabelError, match="raw values"):
        calibrate(logits, labels.codes)
    with pytest.raises(ShapeError):
        calibrate(logits[:, :2], labels)
    with pytest.raises(ConfigError, match="inside"):
        calibrate(logits, labels, prevalence=1.0)
    with pytest.raises(ConfigError, match="did you mean 'c1'"):
        calibrate(logits, labels, prevalence={"c11": 0.1})
    with pytest.raises(ConfigError, match="did you mean 'platt'"):
        calibrate(logits, labels, method="plat")
