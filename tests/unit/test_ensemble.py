"""Ensembles: what is averaged and how, what is said of members, and what it is worth."""

from __future__ import annotations

import csv
import json
import warnings

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import rankdata

import catwise
from catwise import Ensemble, Head, PartialLabels, calibrate, ensemble
from catwise.data.readers.chexpert import COMPETITION
from catwise.decisions import Outputs, read_outputs
from catwise.decisions.combining import fit_weights
from catwise.decisions.maps import fit_ranks
from catwise.decisions.submission import CHEXPERT, write_probabilities, write_submission
from catwise.errors import (
    CategoryError,
    ConfigError,
    FeatureError,
    HeadError,
    IdError,
    LabelError,
    MismatchError,
    ShapeError,
)
from catwise.metrics import compare_logits, log_loss

NAMES = ("ant", "bee", "cat")


def case(n: int = 600, seed: int = 0, *, noise=(1.0, 1.5), known: float = 1.0, split: str = "v"):
    """Two models that see the truth through noise of their own, at scales of their own."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, 3)) * 1.5 - 1
    codes = (truth + rng.logistic(size=(n, 3)) > 0).astype(np.int8)
    codes[rng.random((n, 3)) >= known] = -1
    ids = [f"{split}{i}" for i in range(n)]
    members = {
        name: 3 * (truth + size * rng.normal(size=(n, 3))) - 1
        for name, size in zip(("one", "two"), noise, strict=True)
    }
    return members, PartialLabels(codes, ids, NAMES)


def test_the_mean_of_probabilities() -> None:
    """Each member calibrated, then averaged in probabilities: by plain numpy."""
    members, labels = case(known=0.6)
    found = ensemble(members, labels)
    assert found.method == "probability"
    own = [calibrate(z, labels) for z in members.values()]
    new, _ = case(seed=1)
    got = found.combine(new)
    mean = sum(expit(one.logits(z).numpy()) for one, z in zip(own, new.values(), strict=True)) / 2
    np.testing.assert_allclose(got.logits, logit(mean), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.probabilities, expit(got.logits.numpy()), rtol=1e-12)


def test_the_mean_of_logits_and_of_ranks() -> None:
    """A mean of calibrated logits; a mean of ranks, each member's order as it is."""
    members, labels = case()
    plain = ensemble(members, labels, method="logit")
    own = [calibrate(z, labels).logits(z).numpy() for z in members.values()]
    np.testing.assert_allclose(
        plain.combine(members).logits, (own[0] + own[1]) / 2, rtol=1e-9, atol=1e-9
    )
    by_rank = ensemble(members, labels, method="rank").combine(members)
    ranks = sum((rankdata(z, axis=0) - 0.5) / len(z) for z in members.values()) / 2
    for c in range(3):
        order = np.corrcoef(rankdata(by_rank.logits[:, c]), rankdata(ranks[:, c]))[0, 1]
        assert order > 0.9995
    assert float(log_loss(by_rank.logits, labels).mean()) < float(
        log_loss(own[0], labels).mean()
    )  # probabilities, by the calibration of the mean


def test_ranks_rise_everywhere() -> None:
    """Knots follow the distribution function; beyond the rows scores stay apart."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.exponential(size=5000), np.full(200, 0.7)])
    ranks = fit_ranks(scores)
    assert len(ranks.knots) <= 202
    x = np.sort(rng.exponential(size=2000))
    exact = (
        np.searchsorted(np.sort(scores), x, "left") + np.searchsorted(np.sort(scores), x, "right")
    ) / (2 * scores.size)
    inside = (x > scores.min()) & (x < scores.max())
    away = inside & (np.abs(x - 0.7) > 0.02)
    assert np.abs(expit(ranks(x)) - exact)[away].max() < 0.01
    assert (np.diff(ranks(np.linspace(-scores.max() * 0.9, 1.9 * scores.max(), 50))) > 0).all()
    assert fit_ranks(np.full(5, 2.0))(np.array([1.0, 3.0])).tolist() == [0.0, 0.0]


def test_one_class_and_identical_members() -> None:
    """A member twice is the member; a category without a positive keeps an order."""
    members, labels = case()
    codes = labels.codes.copy()
    codes[codes[:, 1] == 1, 1] = -1
    labels = PartialLabels(codes, labels.ids, NAMES)
    found = ensemble({"one": members["one"], "again": members["one"]}, labels)
    once = ensemble({"one": members["one"]}, labels)
    np.testing.assert_allclose(
        found.combine({"one": members["one"], "again": members["one"]}).logits,
        once.combine({"one": members["one"]}).logits,
        atol=1e-9,
    )
    assert any("'one' and 'again' have the same values for 'ant', 'bee'" in n for n in found.notes)
    assert found.calibration.categories[1].reason == "no_known_positive"
    column = found.combine({"one": members["one"], "again": members["one"]}).logits[:, 1]
    assert (np.argsort(column.numpy()) == np.argsort(members["one"][:, 1])).all()


def test_rows_join_by_id_and_categories_by_name() -> None:
    """Whatever the order of rows and columns, and whatever else a member has."""
    members, labels = case()
    plain = ensemble(members, labels).combine(members)
    order, columns = np.random.default_rng(3).permutation(600), [2, 0, 1]
    more = np.concatenate([members["two"][order], np.zeros((5, 3))])
    shuffled = Outputs(
        np.concatenate([more[:, columns], np.ones((605, 1))], axis=1),
        [NAMES[c] for c in columns] + ["dog"],
        [f"v{i}" for i in order] + [f"x{i}" for i in range(5)],
    )
    found = ensemble({"one": members["one"], "two": shuffled}, labels)
    named = Outputs(members["one"], NAMES, labels.ids)
    got = found.combine({"one": named, "two": shuffled})
    assert got.ids is not None
    assert got.ids.tolist() == labels.ids.tolist()
    np.testing.assert_allclose(got.logits, plain.logits, atol=1e-9)
    with pytest.raises(IdError, match="member 'two': 1 of 600 labelled rows have no features"):
        ensemble({"two": Outputs(members["two"][1:], NAMES, labels.ids[1:])}, labels)
    with pytest.raises(ShapeError, match="member 'two'"):
        ensemble({"two": members["two"][1:]}, labels)


def test_a_member_may_lack_a_category() -> None:
    """There the others are the ensemble, and it is said."""
    members, labels = case()
    part = Outputs(members["two"][:, :2], NAMES[:2])
    found = ensemble({"one": members["one"], "two": part}, labels)
    assert found.weights.tolist() == [[0.5, 0.5, 1.0], [0.5, 0.5, 0.0]]
    assert any("'two' has no 'cat'" in note for note in found.notes)
    both = ensemble(members, labels).combine(members).logits
    alone = ensemble({"one": members["one"]}, labels).combine({"one": members["one"]}).logits
    got = found.combine({"one": members["one"], "two": part}).logits
    # The slope that categories share is that of those which a member has.
    np.testing.assert_allclose(got[:, :2], both[:, :2], atol=0.01)
    np.testing.assert_allclose(got[:, 2], alone[:, 2], atol=0.01)
    test = ({"one": members["one"], "two": part}, labels)
    tested = ensemble({"one": members["one"], "two": part}, labels, test=test)
    assert tested.against["two"]["auroc"].categories == NAMES[:2]
    assert tested.records()[2]["n_members"] == 1
    with pytest.raises(CategoryError, match="no member has 'cat'"):
        ensemble({"two": part}, labels)


def test_values_that_are_no_probabilities() -> None:
    """They are flagged, and ranks are averaged unless probabilities were insisted on."""
    members, labels = case()
    members = {name: z / 2 for name, z in members.items()}
    p = {name: expit(z) for name, z in members.items()}
    fine = ensemble(p, labels, kind="probabilities")
    assert fine.method == "probability"
    np.testing.assert_allclose(
        fine.combine(p).logits, ensemble(members, labels).combine(members).logits, atol=1e-6
    )
    wrong = {**p, "two": p["two"].copy()}
    wrong["two"][:7, 1] = 2.81
    found = ensemble(wrong, labels, kind="probabilities")
    assert found.method == "rank"
    text = " ".join(found.notes)
    assert "member 'two' has values outside [0, 1]" in text
    assert "to 2.81: 'bee' (7)" in text
    assert "ranks are averaged" in text
    with pytest.raises(FeatureError, match="outside"):
        ensemble(wrong, labels, kind="probabilities", method="probability")
    said = ensemble({**members, "two": p["two"]}, labels).notes
    assert any("all logits of member 'two' lie between 0 and 1" in note for note in said)
    assert not any("lie between" in note for note in ensemble(members, labels).notes)
    scores = ensemble(members, labels, kind={"two": "scores"})
    assert scores.method == "rank"
    with pytest.raises(ConfigError, match="neither probabilities nor logits"):
        ensemble(members, labels, kind={"two": "scores"}, method="logit")
    edge = {name: one.round(1) for name, one in p.items()}  # some are exactly 0 or 1
    assert ensemble(edge, labels, kind="probabilities").combine(edge).logits.isfinite().all()
    constant = {**members, "two": members["two"].copy()}
    constant["two"][:, 0] = 3.0
    notes = ensemble(constant, labels, force=True).notes
    assert any("'two' gives every image one value for 'ant'" in note for note in notes)


def test_weights_are_fitted_and_judged_without_their_rows() -> None:
    """A member of noise gets nothing; its worth is from rows that did not fit the weights."""
    members, labels = case(noise=(0.5, 0.5))
    noise = {"noise": np.random.default_rng(5).normal(size=(600, 3))}
    parts = [calibrate(z, labels).logits(z).numpy() for z in {**members, **noise}.values()]
    weights = fit_weights(parts, labels)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[2] < 0.02
    rng = np.random.default_rng(0)
    best = min(_loss(parts, w, labels) for w in rng.dirichlet(np.ones(3) / 2, size=400))
    assert _loss(parts, weights, labels) <= best + 1e-7
    found = ensemble({**members, **noise}, labels, weights="fitted", force=True)
    np.testing.assert_allclose(found.weights[:, 0], weights, atol=1e-4)
    assert found.worth["log_loss"].verdict == "helped"
    alike = ensemble(members, labels, weights="fitted")
    assert alike.worth["log_loss"].mean_difference > -0.001
    assert any(line.startswith("weights against equal ones: ") for line in alike.sentences())
    assert ensemble(members, labels).worth is None


def _loss(parts, weights, labels) -> float:
    p = sum(w * expit(part) for w, part in zip(weights, parts, strict=True))
    return float(np.mean(-np.log(np.where(labels.codes == 1, p, 1 - p))))


def test_stated_weights() -> None:
    """As they are said, made to add up to 1; a member of weight 0 does nothing."""
    members, labels = case()
    found = ensemble(members, labels, weights={"one": 6, "two": 2})
    assert found.weights[:, 0].tolist() == [0.75, 0.25]
    none = ensemble(members, labels, weights={"one": 1, "two": 0})
    alone = ensemble({"one": members["one"]}, labels)
    np.testing.assert_allclose(
        none.combine(members).logits, alone.combine({"one": members["one"]}).logits, atol=1e-9
    )
    for given, message in (
        ({"one": 1}, "'two' has none"),
        ({"one": 1, "two": 1, "three": 1}, "'three' is not a member"),
        ({"one": -1, "two": 1}, "not be negative"),
        ({"one": 0, "two": 0}, "not be negative"),
    ):
        with pytest.raises(ConfigError, match=message):
            ensemble(members, labels, weights=given)
    with pytest.raises(ConfigError, match="fitted for a mean of probabilities"):
        ensemble(members, labels, weights="fitted", method="logit")


def test_the_account_is_of_test_rows() -> None:
    """Each member against the ensemble, as the paired comparison has it; undecided if not shown."""
    members, labels = case()
    new, test = case(seed=1, split="t")
    found = ensemble(members, labels, test=(new, test))
    assert tuple(found.against["one"]) == ("average_precision", "auroc", "log_loss")
    own = calibrate(members["two"], labels).logits(new["two"])
    after = found.combine(new).logits
    expected = compare_logits(own, after, test, "auroc")
    assert found.against["two"]["auroc"].mean() == expected.mean()
    values, ends = found.scores["auroc"]
    np.testing.assert_allclose(values, expected.after)
    assert ((ends[:, 0] < values) & (values < ends[:, 1])).all()
    same = ensemble({"one": members["one"]}, labels, test=({"one": new["one"]}, test))
    assert same.against["one"]["auroc"].mean_difference == 0.0
    close = ensemble(
        {"one": members["one"], "near": members["one"] + 0.01 * members["two"]},
        labels,
        test=({"one": new["one"], "near": new["one"] + 0.01 * new["two"]}, test),
    )
    assert any("Undecided: " in line for line in close.sentences())
    with pytest.raises(ConfigError, match="test lacks the member 'two'"):
        ensemble(members, labels, test=({"one": new["one"]}, test))
    with pytest.raises(LabelError, match="pair of members and labels"):
        ensemble(members, labels, test=(new["one"], test))  # type: ignore[arg-type]


def test_members_that_look_mismatched_are_refused() -> None:
    """Columns in another order are found out, for each member by its name."""
    members, labels = case(n=2000, noise=(0.3, 0.3))
    wrong = {**members, "two": members["two"][:, [1, 2, 0]]}
    with pytest.raises(MismatchError, match="member 'two'"):
        ensemble(wrong, labels)
    assert any("mismatched" in note for note in ensemble(wrong, labels, force=True).notes)


def heads_case(seed: int = 0):
    """Two heads over shared features, whose labels they do not know exactly."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(3, 8))
    z = {s: rng.normal(size=(500, 8)).astype(np.float32) for s in ("valid", "test")}
    labels = {
        s: PartialLabels(
            (z[s] @ weight.T + rng.logistic(size=(500, 3)) > 1).astype(np.int8),
            [f"{s}{i}" for i in range(500)],
            NAMES,
        )
        for s in z
    }
    heads = {
        name: Head((weight + rng.normal(size=(3, 8))).astype(np.float32), bias, categories=NAMES)
        for name, bias in (("one", np.full(3, -1.0, np.float32)), ("two", None))
    }
    heads["two"] = heads["two"].take_categories([2, 0, 1])
    return heads, z, labels


def test_heads_of_one_backbone_collapse_where_that_is_exact() -> None:
    """A mean of logits is one head, to rounding; a mean of probabilities is refused."""
    heads, z, labels = heads_case()
    members = {name: (head, z["valid"]) for name, head in heads.items()}
    test = (dict.fromkeys(heads, z["test"]), labels["test"])
    found = ensemble(members, labels["valid"], method="logit", test=test)
    one = found.collapse(heads)
    assert one.categories == NAMES
    assert one.bias is not None
    new = {name: (head, z["test"]) for name, head in heads.items()}
    wanted = found.combine(new).logits
    np.testing.assert_allclose(one.logits(z["test"]), wanted, atol=2e-5)
    np.testing.assert_allclose(found.module(heads)(torch.from_numpy(z["test"])), wanted, atol=2e-5)
    mean = ensemble(members, labels["valid"])
    with pytest.raises(ConfigError, match=r"only a mean of logits is one head(.|\n)*module"):
        mean.collapse(heads)
    wanted = mean.combine(new).logits
    got = mean.module(heads)(torch.from_numpy(z["test"]))
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    assert float((one.logits(z["test"]) - got).abs().max()) > 0.02
    with pytest.raises(ConfigError, match="head of 'two' is missing"):
        found.collapse({"one": heads["one"]})
    other = Head(np.ones((3, 5), np.float32), categories=NAMES)
    with pytest.raises(HeadError, match="different features"):
        found.collapse({"one": heads["one"], "two": other})


@pytest.mark.parametrize("method", ["probability", "logit", "rank"])
def test_the_module_gives_what_combine_gives_and_exports(method: str) -> None:
    """From stacked outputs, with a member that lacks a category; by torch.export too."""
    members, labels = case()
    part = {"one": members["one"], "two": Outputs(members["two"][:, :2], NAMES[:2])}
    found = ensemble(part, labels, method=method)
    module = found.module()
    stacked = torch.from_numpy(np.stack([members["one"], members["two"]], axis=1)).float()
    stacked[:, 1, 2] = 0.0
    wanted = found.combine(part).logits
    np.testing.assert_allclose(module(stacked), wanted, rtol=1e-3, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (stacked,))
    torch.testing.assert_close(program.module()(stacked), module(stacked))


def test_heads_are_checked_against_their_own_features() -> None:
    """Features of another size, and rows that fitted a head, are refused by the member's name."""
    heads, z, labels = heads_case()
    members = {name: (head, z["valid"]) for name, head in heads.items()}
    members["two"] = (heads["two"], z["valid"][:, :5])
    with pytest.raises(ShapeError):
        ensemble(members, labels["valid"])
    tuned = catwise.tune(heads["one"], (z["valid"], labels["valid"]), (z["test"], labels["test"]))
    with pytest.raises(IdError, match="fitted or selected"):
        ensemble({"one": (tuned.head, z["valid"])}, labels["valid"])


def test_tunings_bring_their_out_of_fold_logits() -> None:
    """Rows that not every tuning cross-fitted are left out; test features go through the heads."""
    heads, z, labels = heads_case()
    rows = {"train": range(200), "valid": range(200, 500)}
    train, valid = ((z["valid"][part], labels["valid"].take_rows(part)) for part in rows.values())
    both = {name: catwise.tune(head, train, valid) for name, head in heads.items()}
    test = (dict.fromkeys(both, z["test"]), labels["test"])
    found = ensemble(both, labels["valid"], test=test)
    assert any("200 labelled rows were not cross-fitted" in note for note in found.notes)
    own = {name: result.folds for name, result in both.items()}
    plain = ensemble(own, labels["valid"])
    np.testing.assert_array_equal(plain.weights, found.weights)
    assert plain.members == found.members
    oof = found.combine(both)
    assert oof.ids is not None
    assert sorted(oof.ids) == sorted(valid[1].ids)
    mine = found.combine({name: result.folds.logits for name, result in both.items()})
    np.testing.assert_array_equal(oof.logits, mine.logits)
    ordered = found.combine(both, ids=valid[1].ids)
    cut = catwise.threshold(ordered.logits, valid[1], "sensitivity", value=0.8)
    assert all(one.threshold is not None for one in cut.categories)
    heads_then = {name: (result.head, z["test"]) for name, result in both.items()}
    after = found.combine(heads_then).logits
    np.testing.assert_allclose(
        found.against["one"]["auroc"].after, catwise.metrics.auroc(after, labels["test"])
    )


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_by_study(pool: str) -> None:
    """Members are averaged, then views; the calibration is of studies, and so is the account."""
    members, labels = case(n=900)
    codes = labels.codes[::3].repeat(3, axis=0)
    ids = [f"v/patient{i // 6}/study{i // 3}/view{i % 3}.jpg" for i in range(900)]
    own = PartialLabels(codes, ids, NAMES)
    kept = {"force": True, "by": "study", "pool": pool}
    found = ensemble(members, own, test=(members, own), **kept)
    assert (found.by, found.pool) == ("study", pool)
    got = found.combine({name: Outputs(z, NAMES, ids) for name, z in members.items()})
    assert got.ids is not None
    assert got.ids[1] == "v/patient0/study1"
    assert got.logits.shape == (300, 3)
    calibrated = [calibrate(z, own).logits(z).numpy() for z in members.values()]
    mean = sum(expit(z) for z in calibrated) / 2
    views = mean.reshape(300, 3, 3)
    study = logit(views.mean(1) if pool == "mean" else views.max(1))
    last = calibrate(study, PartialLabels(codes[::3], categories=NAMES))
    np.testing.assert_allclose(got.logits, last.logits(study), rtol=1e-7, atol=1e-7)
    assert found.against["one"]["auroc"].n_rows == 300
    for what in (found.module, lambda: found.collapse({})):
        with pytest.raises(ConfigError):
            what()
    by = {name: f"s{i // 3}" for i, name in enumerate(ids)}
    mine = ensemble(members, own, force=True, by=by, pool=pool)
    assert mine.by == "groups"
    named = {name: Outputs(z, NAMES, ids) for name, z in members.items()}
    np.testing.assert_allclose(mine.combine(named, by=by).logits, got.logits, atol=1e-9)


def test_it_is_saved_and_read(tmp_path) -> None:
    """The same logits come back; what happened on test rows is in the files."""
    members, labels = case()
    new, test = case(seed=1, split="t")
    part = {"one": members["one"], "two": Outputs(members["two"][:, :2], NAMES[:2])}
    for method in ("probability", "rank"):
        found = ensemble(part, labels, method=method, weights={"one": 1, "two": 2})
        found.save(tmp_path / "e.json")
        again = Ensemble.load(tmp_path / "e.json")
        assert (again.method, again.categories) == (method, NAMES)
        assert torch.equal(again.combine(part).logits, found.combine(part).logits)
    found = ensemble(members, labels, test=(new, test))
    found.save(tmp_path / "e.json")
    table = json.loads((tmp_path / "e.json").read_text("utf-8"))
    assert table["against"]["one"]["auroc"]["verdict"] in {"helped", "no_difference"}
    assert table["categories"][0]["auroc of two"] < 1
    found.write_csv(tmp_path / "e.csv")
    with (tmp_path / "e.csv").open(encoding="utf-8") as file:
        assert [row["category"] for row in csv.DictReader(file)] == list(NAMES)
    for wrong in (
        {"catwise_ensemble": "0"},
        {"weights": [[0.5] * 3, [0.6] * 3]},
        {"weights": [[1.0] * 3]},
        {"members": []},
    ):
        (tmp_path / "w.json").write_text(json.dumps(table | wrong), encoding="utf-8")
        with pytest.raises(ConfigError, match="cannot read an ensemble"):
            Ensemble.load(tmp_path / "w.json")


def test_combine_needs_every_member() -> None:
    """And no other."""
    members, labels = case()
    found = ensemble(members, labels)
    with pytest.raises(ConfigError, match="'two' is missing"):
        found.combine({"one": members["one"]})
    with pytest.raises(ConfigError, match="'tow' is not a member"):
        found.combine({"one": members["one"], "tow": members["two"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "logit"}, "did you mean 'logits'"),
        ({"kind": {"three": "scores"}}, "kind: a member cannot be 'three'"),
        ({"method": "mean"}, "method cannot be 'mean'"),
        ({"weights": "best"}, "weights cannot be 'best'"),
        ({"pool": "median"}, "pool cannot be"),
        ({"level": 1.0}, "level is a share"),
        ({"by": np.zeros(600)}, "by is a name or a mapping"),
        ({"prevalence": 2.0}, "prevalence is a share"),
    ],
)
def test_what_cannot_be(options, message: str) -> None:
    """One clear error."""
    members, labels = case()
    with pytest.raises(ConfigError, match=message):
        ensemble(members, labels, **options)
    with pytest.raises(ConfigError, match="needs members"):
        ensemble({}, labels)
    with pytest.raises(LabelError, match="raw values"):
        ensemble(members, labels.codes)  # type: ignore[arg-type]
    members["two"][5, 1] = np.nan
    with pytest.raises(FeatureError, match="nan at row 5, category 'bee'"):
        ensemble(members, labels)


def test_outputs_from_files(tmp_path) -> None:
    """Tables by name, arrays with ids and names; one clear error for what is no number."""
    members, labels = case(20)
    table = tmp_path / "one.csv"
    rows = [
        "Study,cat,ant,note",
        *(f"{i},{z[2]},{z[0]},x" for i, z in zip(labels.ids, members["one"], strict=True)),
    ]
    table.write_text("\n".join(rows), encoding="utf-8")
    found = read_outputs(table, categories=NAMES)
    assert found.categories == ("cat", "ant")
    np.testing.assert_array_equal(found.values, members["one"][:, [2, 0]])
    assert found.ids.tolist() == labels.ids.tolist()
    np.savez(tmp_path / "one.npz", features=members["one"], ids=labels.ids, categories=NAMES)
    again = read_outputs(tmp_path / "one.npz")
    assert again.categories == NAMES
    np.testing.assert_array_equal(again.values, members["one"])
    np.save(tmp_path / "one.npy", members["one"])
    assert read_outputs(tmp_path / "one.npy").categories == ("0", "1", "2")
    with pytest.raises(FeatureError, match="'x' for 'v0', category 'note'"):
        read_outputs(table)
    rows[4] = rows[4].replace(str(members["one"][3][2]), "")
    table.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(FeatureError, match="'' for 'v3', category 'cat'"):
        read_outputs(table, categories=NAMES)
    with pytest.raises(ConfigError, match="none of the categories"):
        read_outputs(table, categories=["dog"])


def test_the_chexpert_ensemble_and_its_submission(tmp_path) -> None:
    """As a configuration: by study, the largest of its views; in the layout that is taken."""
    rng = np.random.default_rng(0)
    names = ["Edema", "Fracture", *COMPETITION[:3], "Pleural Effusion"]
    study = np.repeat(np.arange(200), 2)
    truth = rng.normal(size=(200, 6))[study]
    codes = ((truth + rng.logistic(size=(200, 6))[study]) > 1).astype(np.int8)
    ids = [f"test/patient{i // 2:05}/study1/view{i % 2 + 1}_frontal.jpg" for i in range(400)]
    labels = PartialLabels(codes, ids, names, [one.split("/")[1] for one in ids])
    members = {
        name: Outputs(truth + rng.normal(size=(400, 6)), names, ids) for name in ("one", "two")
    }
    found = ensemble(members, labels, test=(members, labels), **CHEXPERT)
    assert (found.by, found.pool, found.method) == ("study", "max", "probability")
    assert tuple(found.against["one"]) == ("auroc",)
    said = found.combine(members)
    write_submission(tmp_path / "s.csv", said, found.categories)
    lines = (tmp_path / "s.csv").read_text("utf-8").splitlines()
    assert lines[0] == "Study,Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion"
    assert len(lines) == 201
    name, *values = lines[2].split(",")
    assert name == "CheXpert-v1.0/test/patient00001/study1"
    wanted = said.probabilities[1, [names.index(one) for one in lines[0].split(",")[1:]]]
    np.testing.assert_allclose([float(one) for one in values], wanted.numpy(), rtol=1e-12)
    write_probabilities(tmp_path / "p.csv", said, found.categories, by="study")
    again = read_outputs(tmp_path / "p.csv")
    np.testing.assert_array_equal(again.values, said.probabilities.numpy())
    assert again.ids.tolist() == said.ids.tolist()
    with pytest.raises(CategoryError, match="needs 'Atelectasis'"):
        write_submission(tmp_path / "s.csv", said, ["Edema"])
    image = said._replace(ids=np.array(["a.jpg"] * 200))
    with pytest.raises(IdError, match="not a study of CheXpert"):
        write_submission(tmp_path / "s.csv", image, found.categories)
    with pytest.raises(IdError, match="names of its studies"):
        write_submission(tmp_path / "s.csv", said._replace(ids=None), found.categories)


def test_a_stated_prevalence_moves_the_mean() -> None:
    """By as many log odds as in `calibrate`; of ranks and studies too."""
    members, labels = case()
    same = {"one": members["one"], "again": members["one"]}
    plain, rare = (
        ensemble(same, labels, prevalence=share).combine(same).logits
        for share in (None, {"bee": 0.01})
    )
    moved = calibrate(members["one"], labels, prevalence={"bee": 0.01}).categories[1].map.offset
    moved -= calibrate(members["one"], labels).categories[1].map.offset
    np.testing.assert_allclose(rare[:, 1] - plain[:, 1], moved, atol=1e-9)
    np.testing.assert_array_equal(rare[:, 0], plain[:, 0])
    found = ensemble(members, labels, prevalence=0.01, method="rank")
    assert found.calibration.categories[0].prevalence == 0.01
    assert "stated share" in found.calibration.population
    usual = ensemble(members, labels, method="rank").combine(members).probabilities.mean()
    assert float(found.combine(members).probabilities.mean()) < float(usual) / 5


def test_ranks_of_one_class_are_no_probabilities() -> None:
    """That is said; their order is the mean rank's."""
    members, labels = case()
    codes = labels.codes.copy()
    codes[codes[:, 1] == 1, 1] = -1
    labels = PartialLabels(codes, labels.ids, NAMES)
    found = ensemble(members, labels, method="rank")
    assert any(note.startswith("'bee': ranks, not probabilities") for note in found.notes)
    assert not any("'bee': ranks" in note for note in ensemble(members, labels).notes)


def test_every_category_counts_alike_in_fitted_weights() -> None:
    """However many of its labels are known: the least mean of the categories' log-losses."""
    rng = np.random.default_rng(4)
    truth = rng.normal(size=(3000, 2)) * 2
    codes = (truth + rng.logistic(size=truth.shape) > 0).astype(np.int8)
    codes[60:, 0] = -1
    labels = PartialLabels(codes)
    noise = rng.normal(size=truth.shape)
    parts = [
        np.stack([truth[:, 0], noise[:, 1]], axis=1),
        np.stack([noise[:, 0], truth[:, 1]], axis=1),
    ]

    def loss(w: float) -> float:
        p = w * expit(parts[0]) + (1 - w) * expit(parts[1])
        each = -np.log(np.where(codes == 1, p, 1 - p))
        return each[:60, 0].mean() + each[:, 1].mean()

    grid = np.linspace(0.001, 0.999, 999)
    best = grid[int(np.argmin([loss(w) for w in grid]))]
    assert fit_weights(parts, labels)[0] == pytest.approx(best, abs=0.002)
    assert 0.2 < best < 0.8
